"""A job told to stop ends in bounded time with code 6, and the next one gives the same rows."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from chaos_round import environment, make_shards

from collage_mpi.errors import CollageError, ExitCode
from collage_mpi.results import read_results, verify_run
from collage_mpi.results.status import read_status
from collage_mpi.system.process_tree import end_family

pytestmark = [pytest.mark.faults, pytest.mark.mpi]
STOP_LIMIT_S = 20.0


def launch(folder: Path, out: Path, *more: str) -> subprocess.Popen[str]:
    """A job of about 3 s on 4 ranks; files in `folder` tell how far it is."""
    folder.mkdir(exist_ok=True)
    words = [sys.executable, "-m", "collage_mpi", "launch", "-n", "4", "--", "run"]
    words += ["--shards", str(folder.parent / "shards"), "--single", "null", "--collage", "null"]
    words += ["--side", "2", "--singles", "2", "--out", str(out), "--order", "shuffle:3"]
    words += ["--straggler", "pinned:20"]
    words += ["--status-every-s", "0.2", *more]
    return subprocess.Popen(
        words,
        env=environment(folder, folder.name),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def under_way(out: Path) -> bool:
    """Whether the job has rows."""
    with suppress(CollageError):  # not there yet
        return read_status(out)["done"] > 0
    return False


def answers(out: Path) -> np.ndarray:
    """(n, 4) of shard, row, prediction, label in the order of the keys."""
    images = read_results(out).images
    rows = np.stack([images[c].astype(np.int64) for c in ("shard", "row", "predicted", "label")], 1)
    return rows[np.lexsort((rows[:, 1], rows[:, 0]))]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("signals")
    make_shards(folder / "shards", "")
    job = launch(folder / "whole-stage", folder / "whole")
    told = job.communicate(timeout=120)[0]
    assert job.returncode == 0, told
    return folder


@pytest.mark.parametrize(
    "name",  # launch passes each on as its MPI wants it: tests/mpi/test_launch
    ["SIGTERM", *(pytest.param(name, marks=pytest.mark.any_mpi) for name in ("SIGINT", "SIGUSR2"))],
)
def test_a_signal_stops_the_job_and_the_next_gives_the_same_rows(undisturbed: Path, name) -> None:
    stage, out = undisturbed / f"{name}-stage", undisturbed / name
    job = launch(stage, out)
    try:
        until_s = time.monotonic() + 60
        while not under_way(out) and time.monotonic() < until_s:
            time.sleep(0.01)
        start_s = time.monotonic()
        job.send_signal(getattr(signal, name))
        told = job.communicate(timeout=60)[0]
        took_s = time.monotonic() - start_s
    finally:
        end_family(job, grace_s=0.0)
    assert job.returncode == ExitCode.INCOMPLETE, told
    assert "go on with" in told
    assert f"stopped by {name};" in told
    assert took_s < STOP_LIMIT_S
    report = verify_run(out)
    assert report.status == "incomplete"
    assert report.rows > 0
    again = launch(stage, out)
    told = again.communicate(timeout=120)[0]
    assert again.returncode == 0, told
    assert verify_run(out).ok
    assert (answers(out) == answers(undisturbed / "whole")).all()


@pytest.mark.any_mpi
def test_a_second_job_joins_while_the_first_one_works_and_each_image_has_one_row(undisturbed):
    out, slow = undisturbed / "joined", ("--straggler", "pinned:100")  # some 10 s
    first = launch(undisturbed / "first-stage", out, *slow)
    second = None
    try:
        until_s = time.monotonic() + 60
        while not under_way(out) and time.monotonic() < until_s:
            time.sleep(0.01)
        second = launch(undisturbed / "second-stage", out, *slow)
        told = [job.communicate(timeout=120)[0] for job in (first, second)]
    finally:
        for job in filter(None, (first, second)):
            end_family(job, grace_s=0.0)
    assert (first.returncode, second.returncode) == (0, 0), told
    assert verify_run(out).ok
    assert [entry["session"] for entry in read_results(out).manifest["sessions"]] == [1, 2]
    assert (answers(out) == answers(undisturbed / "whole")).all()
