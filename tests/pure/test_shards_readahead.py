"""Reading ahead: order, bounds, bad rows, failures, closing. No sleeps: waits are on events."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import EnvironmentFault
from collage_mpi.rows import reason_bytes
from collage_mpi.shards import ReadAhead, ShardSet, write_shard
from collage_mpi.shards.guard import cause_of, inspect_here
from collage_mpi.shards.order import BLOCK, Order, Shuffle


class Record(NamedTuple):
    """One image of those that were read together."""

    index: int
    shard: int
    row: int
    label: int | None
    pixels: np.ndarray | None
    cell: np.ndarray | None
    file: bytes | None
    fault: str | None


def take(reader: ReadAhead, n: int) -> list[Record]:
    """The next images that were read together, at most `n`."""
    found = reader.take(n)
    assert len(found) <= n

    def of(column, place):
        return None if column is None else column[place]

    return [
        Record(
            int(found.index[place]),
            int(placed["shard"]),
            int(placed["row"]),
            int(placed["label"]) if placed["has_label"] else None,
            None if found.files and found.files[place] else of(found.pixels, place),
            of(found.cells, place),
            of(found.files, place),
            found.faults.get(place),
        )
        for place, placed in enumerate(found.placed)
    ]


IMAGES = np.random.default_rng(0).integers(0, 256, (50, 2, 2, 3), dtype=np.uint8)
LABELS = np.arange(50) % 7


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory):  # type: ignore[no-untyped-def]
    folder = tmp_path_factory.mktemp("shards")
    infos = [
        write_shard(folder / "a.h5", IMAGES[:20], LABELS[:20]),
        write_shard(folder / "b.h5", IMAGES[20:], LABELS[20:]),
    ]
    with ShardSet(infos) as opened:
        yield opened


def test_cells_are_made_of_the_images_ahead(shards: ShardSet) -> None:
    shrink, order = Encoder(Grid(2, 1), IMAGES.shape[1:]).shrink, [3, 49, 0, 5, 3, 19, 20]
    with ReadAhead(shards, order, batch=5, shrink=shrink) as reader:
        records = [record for _ in order for record in take(reader, 1)]
        assert reader.cells_ns > 0
    assert np.array_equal([r.cell for r in records], shrink(IMAGES[order]))


@settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    order=st.lists(st.integers(0, 49), max_size=80),
    batch=st.integers(1, 20),
    ahead=st.integers(1, 6),
    step=st.integers(1, 30),
)
def test_images_come_in_the_order_asked(
    shards: ShardSet, order: list[int], batch: int, ahead: int, step: int
) -> None:
    with ReadAhead(shards, np.array(order, dtype=np.int64), batch, ahead) as reader:
        records = []
        while taken := take(reader, step):
            assert len(taken) <= step
            records += taken
            assert reader.remaining == len(order) - len(records)
        assert take(reader, step) == []
    assert [record.index for record in records] == order
    for record in records:
        assert (record.shard, record.row) == shards.locate(record.index)
        np.testing.assert_array_equal(record.pixels, IMAGES[record.index])
        assert record.pixels.flags.c_contiguous
        assert record.label == LABELS[record.index]
        assert record.fault is None


def test_places_and_labels_alone_read_no_pixels(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ShardSet, "read_checked", None)
    order = [30, 3, 19, 20, 49, 3]
    with ReadAhead(shards, order, batch=2, pixels=False) as reader:
        records = [record for _ in order for record in take(reader, 1)]
    assert [(r.index, r.shard, r.row) for r in records] == [(i, *shards.locate(i)) for i in order]
    assert [r.label for r in records] == [LABELS[i] for i in order]
    assert all(r.pixels is None and r.fault is None and r.cell is None for r in records)


def test_without_labels_a_lost_shard_is_noticed_all_the_same(tmp_path: Path) -> None:
    infos = [write_shard(tmp_path / name, IMAGES[:5], None) for name in ("a.h5", "b.h5")]
    (tmp_path / "a.h5").unlink()
    with (
        ShardSet(infos) as opened,
        ReadAhead(opened, range(10), pixels=False) as reader,
    ):
        records = [record for _ in range(5) for record in take(reader, 1)]
        assert take(reader, 1) == []
    assert [(r.shard, r.row, r.label) for r in records] == [(1, row, None) for row in range(5)]
    assert list(opened.lost) == [0]


def test_images_of_a_lost_shard_are_left_out_of_all_blocks_that_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    each = np.zeros((2 * BLOCK, 1, 1, 1), np.uint8)
    infos = [write_shard(tmp_path / name, each, None) for name in ("a.h5", "b.h5")]
    (tmp_path / "a.h5").unlink()
    faults: list[int] = []
    plain = ReadAhead._leave_out
    monkeypatch.setattr(ReadAhead, "_leave_out", lambda s, n: faults.append(n) or plain(s, n))
    order, found = Order(Shuffle(4 * BLOCK, 1)), []
    with ShardSet(infos) as opened, ReadAhead(opened, order, pixels=False, growing=True) as reader:
        for ranges in ([(0, 9), (BLOCK, 3 * BLOCK)], [(3 * BLOCK, 4 * BLOCK), (9, BLOCK)]):
            reader.add(ranges)
            while records := take(reader, 50):
                found += [record.index for record in records]
            assert reader.remaining == 0
    moved = [*range(9), *range(BLOCK, 4 * BLOCK), *range(9, BLOCK)]
    assert found == [i for i in order.indices(np.array(moved)).tolist() if i >= 2 * BLOCK]
    assert faults == [0]  # no block is read twice after the first


def test_a_bad_row_is_a_record_with_a_fault_however_long_its_path(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    write_shard(folder / "a.h5", IMAGES[:5], LABELS[:5])
    with h5py.File(folder / "a.h5", "a") as file:
        file["images"][3] ^= 1
    info = inspect_here(folder / "a.h5", hash_file=False)
    with ShardSet([info]) as damaged, ReadAhead(damaged, range(5)) as reader:
        records = take(reader, 5)
    assert [record.fault is None for record in records] == [True, True, True, False, True]
    why = b"checksum does not match its pixels and label"
    assert reason_bytes(records[3].fault or "") == why  # a row of the results names shard and row
    assert records[3].label is None
    assert not records[3].pixels.any()


def test_the_system_s_word_for_a_bad_sector_is_not_lost_behind_the_file_s_name() -> None:
    error = OSError(
        "Can't synchronously read data (file read failed: time = Wed Nov 25 17:00:00 2026\n, "
        f"filename = '/{'d' * 200}/a.h5', file descriptor = 9, errno = 5, "
        "error message = 'Input/output error', buf = 0x7f)"
    )
    assert cause_of(error) == "Input/output error"
    assert cause_of(OSError("Can't read data (inflate() failed)")).endswith("(inflate() failed)")


class FailingShards:
    """Reads `good` images, then fails as a vanished file system does."""

    def __init__(self, real: ShardSet, good: int) -> None:
        self._real = real
        self._good = good
        self.locate_each = real.locate_each
        self.row_fault = real.row_fault
        self.shape, self.dtype = real.shape, real.dtype

    def read_checked(self, indices: np.ndarray):  # type: ignore[no-untyped-def]
        self._good -= len(indices)
        if self._good < 0:
            raise EnvironmentFault("gone")
        return self._real.read_checked(indices)


def test_a_failure_is_raised_after_what_was_read(shards: ShardSet) -> None:
    failing = FailingShards(shards, good=20)
    with ReadAhead(failing, np.arange(50), batch=10, ahead=1) as reader:  # type: ignore[arg-type]
        taken = 0
        while taken < 20:
            taken += len(take(reader, 7))
        assert taken == 20
        for _ in range(2):
            with pytest.raises(EnvironmentFault, match="gone"):
                take(reader, 1)


class CountingShards(FailingShards):
    """Counts the images asked for and tells when a number is reached."""

    def __init__(self, real: ShardSet, wanted: int) -> None:
        super().__init__(real, good=10**9)
        self.images = 0
        self.reached = threading.Event()
        self._wanted = wanted

    def read_checked(self, indices: np.ndarray):  # type: ignore[no-untyped-def]
        self.images += len(indices)
        if self.images >= self._wanted:
            self.reached.set()
        return super().read_checked(indices)


def test_it_reads_ahead_but_not_beyond_its_room(shards: ShardSet) -> None:
    counting = CountingShards(shards, wanted=12)
    with ReadAhead(counting, np.arange(50), batch=4, ahead=3) as reader:  # type: ignore[arg-type]
        assert counting.reached.wait(10)
        assert counting.images == 12
        counting.reached.clear()
        counting._wanted = 16
        assert len(take(reader, 4)) == 4
        assert counting.reached.wait(10)
        assert counting.images == 16


def test_large_images_are_read_ahead_by_their_bytes(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    item_bytes = IMAGES[0].nbytes
    monkeypatch.setattr("collage_mpi.shards.readahead.AHEAD_BYTES", 12 * item_bytes)
    for batch, ahead, room in ((8, 4, 12), (2, 4, 8), (8, 40, 40)):
        counting = CountingShards(shards, wanted=room)
        with ReadAhead(counting, np.arange(50), batch, ahead):  # type: ignore[arg-type]
            assert counting.reached.wait(10)
        assert counting.images == room


def test_close_with_images_left_ends_the_thread(shards: ShardSet) -> None:
    reader = ReadAhead(shards, np.arange(50), batch=1, ahead=1)
    take(reader, 1)
    reader.close()
    reader.close()
    assert not reader._thread.is_alive()
    with pytest.raises(ValueError, match="closed"):
        take(reader, 1)


def test_impossible_sizes_are_refused(shards: ShardSet) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        ReadAhead(shards, [0], batch=0)
