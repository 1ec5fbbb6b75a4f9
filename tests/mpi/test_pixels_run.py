"""Tasks without pixels, on real ranks: the rows of a run are those of rank 0's reading."""

from __future__ import annotations

import io
import os
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import codes, run_many
from PIL import Image
from test_run import QUICK, check_run, make_shard, one_message

from collage_mpi.errors import ExitCode
from collage_mpi.results import OUTCOMES, read_results, verify_run

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi]

WORLD = 5
SMALL = ("--single", "null", "--side", "2", "--order", "shuffle:1")
GROUPED = ("--collage", "null", "--cell-px", "8")
ONLY = (*GROUPED, "--collage-ranks", "4")
PHOTOS = ("--image-px", "32")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards, 123 images; two folders of pictures, 40."""
    folder = tmp_path_factory.mktemp("data")
    make_shard(folder / "a.h5", 0, 70)
    make_shard(folder / "b.h5", 70, 53)
    for name in ("c", "d"):
        for k in range(20):
            path = folder / name / f"class {k % 2}" / f"{k}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(picture(ord(name) + k))
    return folder


def picture(seed: int) -> bytes:
    """Smaller than the 32 x 32 pixels that are made of it, or else, every seventh, larger."""
    size = (20, 30, 3) if seed % 7 else (80, 90, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG")
    return buffer.getvalue()


def shards(folder: Path, names: str) -> list[Path]:
    return [folder / (f"{name}.h5" if name in "ab" else name) for name in names]


def damage(path: Path, *rows: int) -> None:
    """Other pixels than the checksums tell of, as a disk that lies would give."""
    path.with_name(path.name + ".sha256").unlink()
    with h5py.File(path, "r+") as file:
        for row in rows:
            file["images"][row, 3, 3] ^= 1


def rows_of(out: Path) -> list[tuple]:
    """What a run says of each image, times and ranks left out."""
    assert verify_run(out).ok
    rows = read_results(out).images
    names = ["shard", "row", "answered", "predicted", "score", "has_label", "label"]
    return sorted(rows[names].tolist())


def test_the_rows_are_those_of_rank_0s_reading(mpi, data, tmp_path):
    schemes = [
        ("none", "ab", ()),
        ("none", "cd", (*PHOTOS, "--batch", "3", "--assign", "pull", "--endgame", "on")),
        ("hedge", "cd", (*PHOTOS, "--deadline-ms", "0.1")),
        ("collage-only", "cd", (*ONLY, *PHOTOS, "--batch", "2")),
        ("collage", "ab", (*GROUPED, "--singles", "3")),
        ("cascade", "cd", (*PHOTOS, "--batch", "2", "--first", "null")),
    ]
    cases = []
    for scheme, which, more in schemes:
        for pixels in ("rank0", "workers"):
            run = ["run", "--shards", *shards(data, which), *SMALL, "--scheme", scheme, *more]
            run += ["--pixels", pixels, "--out", tmp_path / f"{scheme}-{which}-{pixels}"]
            cases.append(run)
    done = run_many(mpi, WORLD, cases, tmp_path, libraries=["torch"])  # to shrink
    assert [codes(case) for case in done] == [[0] * WORLD] * len(cases), done
    for scheme, which, _ in schemes:
        one, other = (tmp_path / f"{scheme}-{which}-{who}" for who in ("rank0", "workers"))
        assert rows_of(one) == rows_of(other)
        assert len(rows_of(other)) == {"ab": 123, "cd": 40}[which]
    read_ns = check_run(tmp_path / "none-ab-workers").images["read_ns"]
    assert (read_ns > 0).all()


def test_bad_rows_are_error_rows_of_no_rank(mpi, data, tmp_path):
    """As many as would retire ranks if it were theirs."""
    folder = tmp_path / "bad"
    folder.mkdir()
    for name in "ab":
        shutil.copy(data / f"{name}.h5", folder)
        shutil.copy(data / f"{name}.h5.sha256", folder)
    damage(folder / "a.h5", *range(20, 40))
    run = ["run", "--shards", *shards(folder, "ab"), *SMALL, "--pixels", "workers"]
    run += ["--order", "file"]
    schemes = {
        "none": (),
        "collage-only": ONLY,
        "cascade": ("--collage", "null", "--singles", "2", "--first", "collage", "null"),
    }
    cases = [[*run, "--scheme", s, *m, "--out", tmp_path / s] for s, m in schemes.items()]
    done = run_many(mpi, WORLD, cases, tmp_path)
    for scheme, case in zip(schemes, done, strict=True):
        assert codes(case) == [ExitCode.COMPLETE_WITH_ERRORS] * WORLD, (scheme, case[0]["err"])
        check_bad_rows(tmp_path / scheme, scheme)


def check_bad_rows(out: Path, scheme: str) -> None:
    """Rows 20 to 39 of the first shard, and no other."""
    found = check_run(out, status="complete_with_errors")
    bad = found.images[~found.images["answered"]]
    assert sorted(zip(bad["shard"].tolist(), bad["row"].tolist(), strict=True)) == [
        (0, row) for row in range(20, 40)
    ]
    why = f"on {os.uname().nodename}: checksum does not match its pixels and label"
    assert not bad["has_label"].any()
    assert {row["reason"].decode() for row in bad} == {why}
    if scheme == "none":
        failed = found.tasks[found.tasks["outcome"] == OUTCOMES.index("failed")]
        assert len(failed) == 3 * 20  # max_attempts, each on another rank
    assert found.manifest["sessions"][-1]["final"]["retired"] == {}


@pytest.mark.parametrize("how", ["missing", "other"])
def test_a_host_without_the_input_says_so_at_the_start(how, mpiexec, programs, data, tmp_path):
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    if how == "other":
        shutil.copy(data / "a.h5", folder)
        make_shard(folder / "b.h5", 71, 53)
    run = ["run", "--shards", *shards(data, "ab"), *SMALL, "--scheme", "none"]
    run += ["--pixels", "workers", "--out", tmp_path / "out"]
    done = mpiexec(WORLD, [programs / "saboteur.py", 2, f"elsewhere:{folder}", *run], env=QUICK)
    assert done.returncode == ExitCode.ENVIRONMENT
    told = one_message(done.stderr)
    assert f"rank 2: host {os.uname().nodename} does not have the input that rank 0 has" in told
    wrong = folder / ("a.h5" if how == "missing" else "b.h5")
    assert f"{wrong}: {'can no longer' if how == 'missing' else 'has changed'}" in told
    assert "--pixels auto" in told
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("rank", "more"), [(2, ("--singles", "3", *GROUPED)), (4, ONLY)])
def test_auto_sends_pixels_to_who_has_not_the_input(rank, more, mpiexec, programs, data, tmp_path):
    (tmp_path / "empty").mkdir()
    scheme = "collage-only" if more is ONLY else "collage"
    run = ["run", "--shards", *shards(data, "ab"), *SMALL, "--scheme", scheme, *more]
    run += ["--pixels", "auto", "--out", tmp_path / "out"]
    saboteur = [programs / "saboteur.py", rank, f"elsewhere:{tmp_path / 'empty'}"]
    done = mpiexec(WORLD, [*saboteur, *run], env=QUICK)
    assert done.returncode == 0, done.stderr
    assert f"sends them to rank {rank}: host {os.uname().nodename} does not have" in done.stderr
    found = check_run(tmp_path / "out")
    assert found.manifest["sessions"][-1]["final"]["read_by"] == sorted({0, 1, 2, 3, 4} - {rank})
    own = found.images["rank"] == rank
    assert own.any()
    assert set(found.tasks["rank"]) > {rank}


def test_a_copy_on_the_hosts_own_disk_will_do(mpiexec, programs, data, tmp_path):
    folder = tmp_path / "copies"
    folder.mkdir()
    for name in "ab":
        shutil.copy(data / f"{name}.h5", folder)
    run = ["run", "--shards", *shards(data, "ab"), *SMALL, "--scheme", "none"]
    run += ["--pixels", "workers", "--out", tmp_path / "out"]
    done = mpiexec(WORLD, [programs / "saboteur.py", 2, f"elsewhere:{folder}", *run], env=QUICK)
    assert done.returncode == 0, done.stderr
    assert 2 in check_run(tmp_path / "out").images["rank"]


def test_a_stopped_run_is_resumed_by_the_same_readers_only(mpi, mpiexec, programs, data, tmp_path):
    run = ["run", "--shards", *shards(data, "ab"), *SMALL, "--scheme", "none"]
    run += ["--pixels", "workers", "--out", tmp_path / "out"]
    stopped = mpiexec(WORLD, [programs / "saboteur.py", 0, "stop:SIGTERM", *run], env=QUICK)
    assert stopped.returncode == ExitCode.INCOMPLETE, stopped.stderr
    go_on = ["run", "--out", tmp_path / "out"]
    other, resumed = run_many(mpi, WORLD, [[*go_on, "--pixels", "rank0"], go_on], tmp_path)
    assert codes(other) == [ExitCode.USAGE] * WORLD
    told = "".join(rank["err"] for rank in other)
    assert "the run there has other settings" in one_message(told)
    assert "pixels" in told
    assert codes(resumed) == [0] * WORLD, resumed[0]["err"]
    found = check_run(tmp_path / "out")
    assert set(found.images["session"]) == {1, 2}
    assert (found.images["read_ns"] > 0).all()
