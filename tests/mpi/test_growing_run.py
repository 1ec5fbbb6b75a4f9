"""Runs that begin while their input is listed: rows come before the listing is over; a kill, a
second job and a signal in between.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import numpy as np
import pytest
from PIL import Image

from collage_mpi.cli import main
from collage_mpi.results import follow, read_results, verify_run
from collage_mpi.results.manifest import compose
from collage_mpi.results.parts import read_runs

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi, pytest.mark.timeout(300)]

EXTENT, PICTURES, RANKS = 15, 40, 3
QUICK = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
NETWORK = """
import time
from pathlib import Path
import numpy as np

class TopLeft:
    def predict(self, batch):
        while batch.any() and np.ptp(batch) < 40 and Path("hold").exists():  # no noise
            time.sleep(0.02)
        return np.eye(256)[batch[:, 0, 0, 0]][:, None]

def network(kind, shape, side, cell_px, classes, device):
    return TopLeft()
"""
Done = CompletedProcess[str]


@pytest.fixture
def words(tmp_path: Path, monkeypatch) -> list[str]:
    """The words of a run over photos/, in which the pictures 0 to 39 lie in folders of ten."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(NETWORK)
    for number in range(PICTURES):
        picture(number)
    found = ["run", "--shards", "photos", "--single", f"{tmp_path}/mine.py:network", "--out", "out"]
    found += ["--scheme", "none", "--singles", str(RANKS - 1), "--image-px", "8", "--batch", "2"]
    return [*found, "--pixels", "workers", "--input-labels", "none"]


def picture(number: int, folder: str = "") -> None:
    path = Path("photos", folder or f"{number // 10}", f"{number:02d}.png")
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(path)
    os.utime(path, (1e9, 1e9))  # who is listed soon after it was written may have changed since


@pytest.fixture
def start(mpiexec, programs) -> Iterator[Callable[..., Future[Done]]]:
    """Starts a command whose input is listed in gated extents, or, if not `gated`, as it is."""
    with ThreadPoolExecutor(4) as pool:

        def begin(words: list[str], *, gated: bool = True) -> Future[Done]:
            how = [programs / "slow_listing.py", EXTENT] if gated else ["-m", "collage_mpi"]
            return pool.submit(mpiexec, RANKS, [*how, *words], env=QUICK)

        yield begin
        for gate in range(1, 10):
            Path(f"open.{gate}").touch()


def wait_for(path: str, job: Future[Done]) -> None:
    until_s = time.monotonic() + 120
    while not Path(path).exists():
        assert not job.done(), job.result().stderr
        assert time.monotonic() < until_s, path
        time.sleep(0.05)


def rank_0() -> int:
    """The process of the first job's coordinator."""
    facts = json.loads(Path("out/jobs/0001.json").read_text())["facts"]
    return int(facts["job"]["pid"])


def rows_of(out: str = "out") -> dict[str, int]:
    """Path of a picture -> its class, of all rows."""
    main(["export", out, "--to", "csv"])
    lines = Path(out, "export", "images.csv").read_text().splitlines()
    head = lines[0].split(",")
    rows = [dict(zip(head, line.split(","), strict=True)) for line in lines[1:]]
    assert len({row["id"] for row in rows}) == len(rows)
    return {row["id"]: int(row["predicted"]) for row in rows}


def expected(*more: str) -> dict[str, int]:
    paths = [f"{n // 10}/{n:02d}.png" for n in range(PICTURES)]
    return {path: int(Path(path).stem) for path in [*paths, *more]}


def spans_of_runs() -> list[tuple[int, int, str | None]]:
    return [(run.first, run.stop, run.settings.get("listing")) for run in read_runs(Path("out"))]


def test_rows_are_on_the_disk_before_the_listing_is_over(words, start) -> None:
    job = start(words)
    wait_for("out/COMPLETE.1", job)
    report = verify_run("out")
    assert report.headline.startswith("incomplete: 15 of 15 rows")
    assert "a job is writing here" in report.problems[0]
    assert compose(Path("out"))["listing"] == "due"
    assert sorted(read_results("out").images["predicted"]) == list(range(EXTENT))
    with ThreadPoolExecutor(1) as reader:
        followed = reader.submit(lambda: [len(each["row"]) for each in follow("out")])
        time.sleep(1.0)  # it has seen that the first run is complete
        for gate in (1, 2, 3):
            Path(f"open.{gate}").touch()
        done = job.result()
        assert done.returncode == 0, done.stderr
        assert sum(followed.result()) == PICTURES
    assert [span[:2] for span in spans_of_runs()][-1][1] == PICTURES
    assert spans_of_runs()[0] == (0, EXTENT, "open")
    assert spans_of_runs()[-1][2] == "over"
    assert verify_run("out").headline == f"complete: {PICTURES} of {PICTURES} rows, no doubles"
    found = read_results("out").images
    assert found["predicted"][np.argsort(found["position"])].tolist() == list(range(PICTURES))
    assert rows_of() == expected()
    again = start(words, gated=False).result()
    assert (again.returncode, len(spans_of_runs())) == (0, len(spans_of_runs())), again.stderr


def test_a_kill_while_the_input_is_listed(words, start) -> None:
    job = start(words)
    wait_for("out/COMPLETE.1", job)
    os.kill(rank_0(), signal.SIGKILL)
    assert job.result().returncode != 0
    assert "more images are to be listed: collage-mpi launch" in verify_run("out").problems[0]
    picture(99, folder="0")  # among those that are listed
    Path("photos/1/10.png").unlink()
    Image.fromarray(np.full((8, 9, 3), 77, np.uint8)).save("photos/0/05.png")
    go_on = start(words, gated=False).result()
    assert go_on.returncode == 0, go_on.stderr
    assert verify_run("out").ok
    assert rows_of() == expected("0/99.png") | {"0/05.png": 77}
    assert [each[2] for each in spans_of_runs()] == ["open", "over"]


def test_a_job_that_joins_lists_the_rest_if_nobody_else_does(words, start) -> None:
    job = start(words)
    wait_for("out/COMPLETE.1", job)
    other = start(words, gated=False).result()
    assert other.returncode == 0, other.stderr
    Path("open.1").touch()
    assert job.result().returncode == 0, job.result().stderr
    assert verify_run("out").ok
    assert rows_of() == expected()
    assert [each[:2] for each in spans_of_runs()] == [(0, EXTENT), (EXTENT, PICTURES)]


def test_two_jobs_share_a_run_that_grows(words, start) -> None:
    Path("hold").touch()
    job = start(words)
    wait_for("out/run.1.json", job)
    other = start(words, gated=False)
    wait_for("out/jobs/0002.json", other)
    Path("hold").unlink()
    wait_for("out/COMPLETE.1", job)
    for gate in (1, 2, 3):
        Path(f"open.{gate}").touch()
    for each in (job, other):
        assert each.result().returncode == 0, each.result().stderr
    assert verify_run("out").ok
    assert rows_of() == expected()
    assert spans_of_runs()[0] == (0, EXTENT, "open")
    processes = [json.loads(path.read_text())["facts"]["job"]["pid"] for path in job_files()]
    assert len({*processes}) == 2, "each job goes on with its ranks"
    assert len(processes) > 2


def job_files() -> list[Path]:
    return [*Path("out/jobs").iterdir()]


def test_a_signal_while_the_next_extent_is_awaited(words, start) -> None:
    job = start(words)
    wait_for("out/COMPLETE.1", job)
    time.sleep(1.0)
    os.kill(rank_0(), signal.SIGTERM)
    stopped = job.result()
    assert stopped.returncode == 6, stopped.stderr
    assert "go on with the same command" in stopped.stderr
    assert len(read_results("out").images) == EXTENT


def test_several_networks_answer_while_the_input_is_listed(words, start) -> None:
    words[words.index("--single") + 1] = "beside:a=null;b=mine.py:network"
    job = start([*words, "--save", "beside"])
    wait_for("out/COMPLETE.1", job)
    assert sorted(read_results("out").kept("b_class")) == list(range(EXTENT))
    for gate in (1, 2, 3):
        Path(f"open.{gate}").touch()
    assert job.result().returncode == 0, job.result().stderr
    assert len(spans_of_runs()) > 1
    assert sorted(read_results("out").kept("b_class")) == list(range(PICTURES))
    assert verify_run("out").ok
