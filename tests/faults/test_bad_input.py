"""Shards that are bad from the start, go bad, or change: told, and the rest is done."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from chunked import write_chunked
from test_shards_readahead import take

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, ExitCode, ShardFault
from collage_mpi.job.run import input_faults
from collage_mpi.results import read_results, verify_run
from collage_mpi.results.writer import differences
from collage_mpi.shards import ReadAhead, ShardSet, guard
from collage_mpi.shards import reader as shards_reader
from collage_mpi.shards.guard import OpenShard
from collage_mpi.shards.reader import as_before

pytestmark = pytest.mark.faults

ROWS = 20
NAMES = [f"class {i}" for i in range(251)]
RUN = ("run", "--single", "null", "--collage", "null", "--side", "2", "--singles", "2")


def make_shard(path: Path, first: int = 0, rows: int = ROWS) -> Path:
    labels = np.arange(first, first + rows) % 251
    images = np.random.default_rng(first).integers(0, 256, (rows, 6, 6, 1), dtype=np.uint8)
    images[:, 0, 0, 0] = labels
    write_chunked(path, 4, images, labels, class_names=NAMES)
    return path


def make_three(folder: Path) -> list[Path]:
    return [make_shard(folder / f"{name}.h5", 50 * k) for k, name in enumerate("abc")]


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def flipped(path: Path) -> None:
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0x40
    path.write_bytes(raw)


def empty(path: Path) -> None:
    path.write_bytes(b"")


def foreign(path: Path) -> None:
    path.write_text("PNG, if anything")
    path.with_name(path.name + ".sha256").unlink()


def folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


DAMAGE = [truncated, flipped, empty, foreign, dangling]


@pytest.fixture(autouse=True)
def no_child(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check runs in this process: a new one for each takes most of the time here."""
    monkeypatch.setattr(
        guard, "_ask", lambda task, paths, _limit: [guard._answer(task, path) for path in paths]
    )


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_shard_is_named_and_the_others_are_read(tmp_path: Path, damage) -> None:
    paths = make_three(tmp_path)
    damage(paths[1])
    with pytest.raises(CollageError, match=r"b\.h5"):
        ShardSet.open(paths)
    with ShardSet.open(paths, skip_bad=True) as shards:
        assert [*shards.bad] == [paths[1]]
        assert "b.h5" in shards.bad[paths[1]]
        assert [info.path for info in shards.infos] == [paths[0], paths[2]]
        assert shards.read_all()[0].shape == (2 * ROWS, 6, 6, 1)


def test_a_name_that_is_not_there_is_a_slip_and_refused(tmp_path: Path) -> None:
    paths = make_three(tmp_path)
    with pytest.raises(EnvironmentFault, match=r"d\.h5: cannot be read: No such file"):
        ShardSet.open([*paths, tmp_path / "d.h5"], skip_bad=True)


def test_without_a_good_shard_the_first_fault_is_raised(tmp_path: Path) -> None:
    paths = make_three(tmp_path)
    for path in paths:
        truncated(path)
    with pytest.raises(DataFault, match=r"a\.h5"):
        ShardSet.open(paths, skip_bad=True)


def test_labels_without_a_name_are_found_before_the_job(tmp_path: Path) -> None:
    path = make_shard(tmp_path / "a.h5")
    import h5py

    with h5py.File(path, "a") as file:
        file["labels"][3] = 251
    path.with_name("a.h5.sha256").unlink()
    with pytest.raises(DataFault, match="label 251 has no name"):
        ShardSet.open([path])


# ---- in mid-job -------------------------------------------------------------


def take_all(shards: ShardSet, order: np.ndarray | None = None) -> list:
    records = []
    wanted = np.arange(len(shards)) if order is None else order
    with ReadAhead(shards, wanted, batch=4, ahead=1) as reader:
        while found := take(reader, 4):
            records += found
        assert reader.remaining == 0
    return records


def rewritten(path: Path) -> None:
    make_shard(path, 100)


@pytest.mark.parametrize("damage", [*DAMAGE, folder, Path.unlink, rewritten])
def test_a_shard_that_goes_bad_before_it_is_opened(tmp_path: Path, damage) -> None:
    """What was checked is not what lies there now: its images are left for a later session."""
    paths = make_three(tmp_path)
    with ShardSet.open(paths) as shards:
        damage(paths[1])
        records = take_all(shards)
        assert list(shards.lost) == [1]
        assert "b.h5" in shards.lost[1]
        assert [r.shard for r in records] == [0] * ROWS + [2] * ROWS
        assert all(r.fault is None for r in records)
        with pytest.raises(ShardFault):
            shards.read([ROWS])
        assert input_faults(shards, "incomplete") == (shards.lost[1],)
        assert input_faults(shards, "complete") == ()  # every image has its row


def test_a_shard_that_is_written_over_in_place_gives_error_rows(tmp_path: Path) -> None:
    """Checksums come from before: rows read afterwards do not pass for those that were hashed."""
    paths = make_three(tmp_path)
    raw = paths[1].read_bytes()
    with ShardSet.open(paths) as shards:
        shards.read([ROWS])
        other = make_shard(tmp_path / "other.h5", 100).read_bytes()
        assert len(other) == len(raw)
        with paths[1].open("r+b") as file:
            file.write(other)
        records = take_all(shards)
        wrong = [r for r in records if r.fault]
        assert {r.shard for r in wrong} == {1}
        assert wrong
        assert len(records) == 3 * ROWS
        assert input_faults(shards, "complete_with_errors") == ()


def test_a_shard_that_is_replaced_while_it_is_opened_is_lost(tmp_path: Path, monkeypatch) -> None:
    """Between the look at its stamp and its opening: labels and pixels would be another file's."""
    paths, real = make_three(tmp_path), shards_reader.open_source

    def opened(info):
        if info.path == paths[1]:
            os.replace(make_shard(tmp_path / "other.h5", 100), paths[1])
        return real(info)

    monkeypatch.setattr(shards_reader, "open_source", opened)
    with ShardSet.open(paths) as shards:
        records = take_all(shards)
        assert [r.shard for r in records] == [0] * ROWS + [2] * ROWS
        assert "has changed since the job began" in shards.lost[1]


def test_a_touched_file_is_the_same_file(tmp_path: Path) -> None:
    paths = make_three(tmp_path)
    with ShardSet.open(paths) as shards:
        os.utime(paths[1], ns=(1, 1))
        assert len(take_all(shards)) == 3 * ROWS
        assert not shards.lost
        assert shards.changed() == {}


class Flaky:
    """Reads of a shard's rows fail; opening it works."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, rows: set[int], times: int) -> None:
        real, left = OpenShard.__init__, [times]

        class Images:
            def __init__(self, images) -> None:
                self.images, self.shape = images, images.shape

            def __getitem__(self, key):
                asked = range(key.start, key.stop) if isinstance(key, slice) else [key]
                if rows & set(asked) and left[0] > 0:
                    left[0] -= 1
                    raise OSError(errno.EIO, "Input/output error")
                return self.images[key]

        def opened(self, info) -> None:
            real(self, info)
            self._images = Images(self._images)

        monkeypatch.setattr(OpenShard, "__init__", opened)


def test_a_read_that_fails_once_is_repeated(tmp_path: Path, monkeypatch) -> None:
    path = make_shard(tmp_path / "a.h5")
    with ShardSet.open([path]) as shards:
        Flaky(monkeypatch, {5}, times=1)
        assert all(r.fault is None for r in take_all(shards))


def test_a_row_that_cannot_be_read_is_an_error_row(tmp_path: Path, monkeypatch) -> None:
    path = make_shard(tmp_path / "a.h5")
    with ShardSet.open([path]) as shards:
        Flaky(monkeypatch, {5, 6}, times=1 << 30)
        records = take_all(shards)
        assert [r.row for r in records if r.fault] == [5, 6]
        assert all("cannot be read" in r.fault for r in records if r.fault)
        assert not shards.lost


# ---- a resumed run's shards -------------------------------------------------


def entries(shards: ShardSet) -> list[dict]:
    return [
        {"path": str(i.path), "fingerprint": i.fingerprint, "count": i.count} for i in shards.infos
    ]


def test_a_resumed_run_keeps_its_numbers(tmp_path: Path) -> None:
    paths = make_three(tmp_path)
    with ShardSet.open([paths[0], paths[2]]) as first:
        known = entries(first)
    with as_before(ShardSet.open(paths), known, tmp_path) as again:
        assert [info.path.name for info in again.infos] == ["a.h5", "c.h5", "b.h5"]
    truncated(paths[2])
    with as_before(ShardSet.open(paths, skip_bad=True), known, tmp_path) as again:
        assert [info.path.name for info in again.infos] == ["a.h5", "c.h5", "b.h5"]
        assert list(again.lost) == [1]
        assert again.bad == {}
        assert {r.shard for r in take_all(again)} == {0, 2}
        assert again.labels() is not None
    other = make_shard(tmp_path / "d.h5", 200)
    with ShardSet.open([paths[0], other]) as foreign_input:
        assert as_before(foreign_input, known, tmp_path) is foreign_input


def test_only_what_was_bad_may_be_added(tmp_path: Path) -> None:
    with ShardSet.open(make_three(tmp_path)) as shards:
        a, b, c = entries(shards)
    bad = [{"path": "b.h5", "reason": "b.h5: truncated"}]
    before = {"shards": [a, c], "rows": 2 * ROWS, "limit": None, "bad_shards": bad}
    assert differences(before, {"shards": [a, c], "rows": 2 * ROWS}) == []
    assert differences(before, {"shards": [a, c, b], "rows": 3 * ROWS})
    told = differences(before, {"shards": [a, b], "rows": 2 * ROWS})
    assert len(told) == 1
    assert "c.h5: SHA-256" in told[0]
    assert "before" in told[0]


def test_bad_shards_of_one_name_keep_apart(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    (tmp_path / "y").mkdir()
    one, two = make_shard(tmp_path / "x/s.h5"), make_shard(tmp_path / "y/s.h5", 60)
    with ShardSet.open([one, two, make_shard(tmp_path / "z.h5", 120)]) as shards:
        known = entries(shards)
    truncated(one)
    truncated(two)
    found = ShardSet.open([one, two, tmp_path / "z.h5"], skip_bad=True)
    with as_before(found, known, tmp_path, 2) as again:
        assert [info.path for info in again.infos][:2] == [one, two]
        assert again.bad == {}


# ---- whole jobs -------------------------------------------------------------


@pytest.mark.any_mpi
@pytest.mark.mpi
def test_the_rest_is_done_and_a_mended_shard_completes_the_run(mpiexec, tmp_path: Path) -> None:
    paths = make_three(tmp_path)
    whole = paths[1].read_bytes()
    truncated(paths[1])
    out = tmp_path / "out"
    words = ["-m", "collage_mpi", *RUN, "--shards", *paths, "--out", out]
    done = mpiexec(4, words)
    assert done.returncode == ExitCode.DATA, done.stderr
    assert "warning: " in done.stderr
    assert "1 shard not read in full" in done.stderr
    report = verify_run(out)
    assert (report.status, report.rows, report.doubles) == ("incomplete", 2 * ROWS, 0)
    assert "b.h5" in report.problems[-1]
    assert mpiexec(4, words).returncode == ExitCode.DATA, "also of a job with nothing to do"
    paths[1].write_bytes(whole)
    done = mpiexec(4, words)  # the next run has the images of this shard
    assert done.returncode == 0, done.stderr
    assert verify_run(out).ok
    images = read_results(out).images
    assert len(images) == 3 * ROWS
    assert (images["predicted"] == images["label"]).all()
