"""`collage-mpi classify`: from a folder of pictures to a CSV file, begun, gone on with, refused."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from collage_mpi.cli import main
from collage_mpi.commands import classify, launch, yes_or_no
from collage_mpi.errors import ExitCode
from collage_mpi.job.networks import gpus_here
from collage_mpi.models.gate import sha256_of_network
from collage_mpi.results import verify_run
from collage_mpi.shards import write_shard

pytestmark = pytest.mark.any_mpi


def make_pictures(folder: Path) -> Path:
    """Five pictures in three folders of any depth, and a damaged one."""
    random = np.random.default_rng(0)
    for name in ("a.png", "x/b.png", "x/c.png", "x/y/d.png", "z/e.png"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    (folder / "z" / "damaged.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    return folder


@pytest.mark.parametrize(
    ("ranks", "gpus", "device", "singles"),
    [(None, 3, "auto", 3), (None, 3, "cpu", 2), (None, 0, "auto", 2), (7, 3, "auto", 7)],
)
def test_a_rank_for_each_gpu_else_for_each_core(
    ranks: int | None, gpus: int, device: str, singles: int, monkeypatch
) -> None:
    monkeypatch.setattr("collage_mpi.job.networks.gpus_here", lambda: gpus)
    monkeypatch.setattr(classify, "processes_here", lambda: 2)
    assert classify.ranks_here("classify", ranks, device) == singles


def test_far_more_ranks_than_cores_are_told(monkeypatch, capsys) -> None:
    monkeypatch.setattr("collage_mpi.job.networks.gpus_here", lambda: 0)
    monkeypatch.setattr(classify, "processes_here", lambda: 2)
    assert [classify.ranks_here("map", ranks, "auto") for ranks in (8, 9)] == [8, 9]
    assert capsys.readouterr().out.count("--ranks 9 on 2 available cores") == 1


@pytest.mark.parametrize(
    ("out", "network", "code", "said"),
    [
        ("c.txt", "null", ExitCode.USAGE, "must end in .csv or .parquet"),
        ("c.csv", "gone.onnx", ExitCode.ENVIRONMENT, "network gone.onnx: cannot be read"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_made(
    out: str, network: str, code: int, said: str, tmp_path: Path, capsys, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_pictures(tmp_path / "photos")
    monkeypatch.setattr("collage_mpi.models.gate.find_spec", lambda _: True)
    assert main(["classify", "photos", "--network", network, "--out", out]) == code
    assert said in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"photos"}


def test_without_a_driver_no_gpu_is_counted_and_torch_is_not_imported(monkeypatch) -> None:
    def no_driver(name: str) -> None:
        assert name == "libcuda.so.1"
        raise OSError(name)

    monkeypatch.setattr("collage_mpi.job.networks.ctypes.CDLL", no_driver)
    monkeypatch.setitem(sys.modules, "torch", None)  # to import it raises
    monkeypatch.setattr("os.path.exists", lambda path: False)
    assert gpus_here() == 0
    monkeypatch.setattr("os.path.exists", lambda path: path == "/dev/kfd")
    with pytest.raises(ImportError):
        gpus_here()
    monkeypatch.setattr("os.path.exists", lambda path: False)
    monkeypatch.setattr("collage_mpi.job.networks.ctypes.CDLL", lambda _: None)
    with pytest.raises(ImportError):
        gpus_here()


@pytest.mark.mpi
@pytest.mark.usefixtures("torch_once")
def test_pictures_to_a_csv_file_begun_gone_on_with_and_refused(
    tmp_path: Path, monkeypatch, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    make_pictures(tmp_path / "photos")
    from library_files import save_scripted  # imports torch

    digest = sha256_of_network(save_scripted(tmp_path / "n.ts"))
    words = ["classify", "photos", "--network", "n.ts", "--image-px", "28", "--top-k", "2"]
    words += ["--resize-px", "28", "--out", "c.csv", "--ranks", "2", "--device", "cpu"]
    assert main(words) == ExitCode.USAGE
    assert f"say --trust-network {digest}" in capfd.readouterr().err
    words += ["--trust-network", digest]
    no_ranks = lambda *_: ExitCode.INCOMPLETE  # noqa: E731
    with monkeypatch.context() as stopped:
        stopped.setattr(launch, "launch_ranks", no_ranks)
        assert main(words) == ExitCode.INCOMPLETE
    assert "repeat the command to continue" in capfd.readouterr().out
    assert not (tmp_path / "c.csv").exists()

    assert main(words) == ExitCode.COMPLETE_WITH_ERRORS, capfd.readouterr().err  # one is damaged
    rows = [*csv.DictReader((tmp_path / "c.csv").open())]
    ids = ["a.png", "x/b.png", "x/c.png", "x/y/d.png", "z/damaged.jpg", "z/e.png"]
    assert [row["id"] for row in rows] == ids
    assert [bool(row["class"]) for row in rows] == [True] * 4 + [False, True]
    assert ["cannot be decoded" in row["error"] for row in rows] == [False] * 4 + [True, False]
    assert {*rows[0]} == {"id", "class", "score", "class_2", "score_2", "error"}
    said = capfd.readouterr()
    assert "error rows: 1 x" in said.out
    assert "latency" not in said.out

    monkeypatch.setattr(launch, "launch_ranks", no_ranks)
    (tmp_path / "c.csv").unlink()
    assert main(words) == ExitCode.COMPLETE_WITH_ERRORS
    assert "c.csv.run is finished: it has the rows of 6 images, some of" in capfd.readouterr().out
    assert [*csv.DictReader((tmp_path / "c.csv").open())] == rows
    assert main([*words, "--retry-errors"]) == ExitCode.INCOMPLETE  # not finished
    assert main([*words, "--fit", "letterbox"]) == ExitCode.INCOMPLETE  # the ranks refuse it
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)

    Image.new("RGB", (50, 40)).save(tmp_path / "photos" / "z" / "damaged.jpg")  # mended
    assert main(words) == ExitCode.COMPLETE
    said = "update: 0 new, 0 changed, 1 tried again, 0 removed, 5 unchanged"
    assert said in capfd.readouterr().err
    assert all(row["class"] for row in csv.DictReader((tmp_path / "c.csv").open()))

    (tmp_path / "photos" / "a.png").rename(tmp_path / "photos" / "new.png")
    Image.new("RGB", (30, 40)).save(tmp_path / "photos" / "x" / "b.png")
    assert main(words) == ExitCode.COMPLETE
    said = "update: 1 new, 1 changed, 0 tried again, 1 removed, 4 unchanged"
    assert said in capfd.readouterr().err
    found = {row["id"]: row for row in csv.DictReader((tmp_path / "c.csv").open())}
    assert {*found} == {*ids, "new.png"}
    assert {name for name, row in found.items() if row["removed"] == "1"} == {"a.png"}
    assert found["x/b.png"]["score"] != rows[1]["score"]
    assert found["new.png"]["score"] == rows[0]["score"]

    assert main([*words, "--prune"]) == ExitCode.COMPLETE
    assert "1 dropped" in capfd.readouterr().err
    pruned = [*csv.DictReader((tmp_path / "c.csv").open())]
    assert {row["id"] for row in pruned} == {*found} - {"a.png"}
    assert verify_run(tmp_path / "c.csv.run").ok
    assert main([*words, "--fit", "letterbox"]) == ExitCode.USAGE
    assert "remove c.csv.run or choose another --out" in capfd.readouterr().out


@pytest.mark.mpi
@pytest.mark.usefixtures("torch_once")
def test_a_run_without_faults_prints_runtime_progress_and_result(
    tmp_path: Path, monkeypatch, capfd
) -> None:
    monkeypatch.chdir(tmp_path)
    from library_files import save_scripted  # imports torch

    (make_pictures(tmp_path / "photos") / "z" / "damaged.jpg").unlink()
    save_scripted(tmp_path / "n.ts")
    words = ["classify", "photos", "--network", "n.ts", "--image-px", "28", "--resize-px", "28"]
    words += ["--trust-network", "any"]
    words += ["--out", "c.csv", "--ranks", "1", "--device", "cpu"]
    capfd.readouterr()
    assert main(words) == ExitCode.COMPLETE
    said = capfd.readouterr()
    lines = [line for line in said.err.splitlines() if "smaller than" not in line]
    runtime, done = lines
    assert runtime.startswith("runtime: torch float32; 5 images are too few")
    assert done.startswith("done: 5 of 5 images (100.0 %)")
    assert said.out == "classes in c.csv; collage-mpi verify c.csv.run proves them\n"


@pytest.mark.mpi
def test_pictures_of_a_class_are_found_by_several_runs_that_go_on_after_an_end(
    tmp_path: Path, monkeypatch, capfd
) -> None:
    """Null networks read their answers from pixels: the first one is wrong for 5 % of the images,
    rather where it is unsure."""
    monkeypatch.chdir(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (2_000, 8, 8, 3), dtype=np.uint8)
    write_shard("all.h5", pixels)
    of_class = set(np.flatnonzero(pixels[:, 0, 0, 0] % 10 == 3).tolist())
    ids = [f"all.h5:{row}" for row in range(2_000)]
    # The times of null networks are noise.
    monkeypatch.setattr(yes_or_no, "seconds_of", lambda runs: 1.0 if len(runs) > 1 else COSTS.pop())
    words = ["classify", "all.h5", "--network", "null", "--first", "null:wrong=5", "--recall"]
    words += ["3=0.9", "--out", "c.csv", "--ranks", "2", "--device", "cpu"]
    launched = launch.launch_ranks

    def ends(ranks: int, how: launch.LaunchArguments) -> int:
        return ExitCode.INCOMPLETE if "exact-2" in str(how.words) else launched(ranks, how)

    with monkeypatch.context() as stopped:
        stopped.setattr(launch, "launch_ranks", ends)
        COSTS = [1.0, 0.1]
        assert main(words) == ExitCode.INCOMPLETE, capfd.readouterr().err
    assert not Path("c.csv").exists()
    COSTS = [1.0, 0.1]
    assert main(words) == ExitCode.COMPLETE, capfd.readouterr().err
    rows = [*csv.DictReader(Path("c.csv").read_text().splitlines())]
    assert [row["id"] for row in rows] == ids
    found = {at for at, row in enumerate(rows) if row["answer"] == "yes"}
    assert found <= of_class
    assert len(found) >= 0.9 * len(of_class)
    assert {row["class"] for row in rows if row["by"] == "first"} == {""}
    asked = sum(row["by"] == "exact" for row in rows)
    assert f"It classified {asked:,} of 2,000 pictures" in capfd.readouterr().out
    for run in Path("c.csv.run").iterdir():
        assert run.suffix == ".txt" or verify_run(run).status == "complete"
    assert main([*words, "--first", "null:wrong=6"]) == ExitCode.USAGE
