"""A worker that reads the images that tasks name: what it computes on, what it says of bad ones."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest
from fakes import MS, SHAPE
from test_worker import Bench

from collage_mpi.errors import EnvironmentFault, ExitCode
from collage_mpi.job.messages import End, Fault, Shards
from collage_mpi.job.row_reader import RowReader, described
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.answers import ANSWERED, FAILED
from collage_mpi.mpi.tasks import WireTask, pack_places
from collage_mpi.shards import ShardSet, write_shard
from collage_mpi.shards import reader as shards_reader
from collage_mpi.shards.check import inspect_here

HOST = socket.gethostname()
LABELS = np.arange(10)


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    """Two shards whose images' top-left pixels are 0 .. 4 and 5 .. 9."""
    images = np.zeros((10, *SHAPE), np.uint8)
    images[:, 0, 0, 0] = LABELS
    names = [str(i) for i in range(10)]
    write_shard(tmp_path / "a.h5", images[:5], LABELS[:5], class_names=names)
    write_shard(tmp_path / "b.h5", images[5:], LABELS[5:], class_names=names)
    return as_found(tmp_path)


def as_found(folder: Path, hash_file: bool = True) -> ShardSet:
    """What rank 0 knows of the two."""
    return ShardSet([inspect_here(folder / name, hash_file=hash_file) for name in ("a.h5", "b.h5")])


def reading(shards: ShardSet, **welcome: object) -> Bench:
    bench = Bench(start=False, **welcome)
    for text in described(shards):
        bench.endpoint.tell(Shards((text,)))
    bench.start()
    return bench


def give(bench: Bench, *places: tuple[int, int]) -> None:
    tasks = [WireTask(i, i, 1, "single", ((i, 0),), by_place=True) for i in range(len(places))]
    bench.endpoint.give(tasks, [pack_places(places)])
    bench.run()


def test_it_computes_on_the_rows_that_tasks_name(shards: ShardSet) -> None:
    bench = reading(shards, batch=4)
    give(bench, (1, 4), (0, 2), (1, 0), (0, 2))
    assert [result.cells[0].label for result in bench.results] == [9, 2, 5, 2]
    assert bench.network.sizes[-1] == 4  # one batch


def test_reading_is_told_apart_from_computing(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = reading(shards)

    class Late:
        """What is not read yet when it is waited for."""

        def __init__(self, rows: RowReader, places: list[tuple[int, int]]) -> None:
            self.found = rows.read(places)

        def result(self) -> object:
            bench.clock.now_ns += 3 * MS
            return self.found

    monkeypatch.setattr(RowReader, "begin", lambda rows, places: Late(rows, places))
    give(bench, (0, 0))
    assert [(r.read_ns, r.compute_ns) for r in bench.results] == [(3 * MS, MS)]
    bench.single(7)  # with its pixels
    bench.run()
    assert bench.results[-1].read_ns == 0


def test_the_next_message_is_read_while_the_network_computes(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, plain, reads = reading(shards), ShardSet.read_checked, [threading.Event() for _ in "ab"]
    left = iter(reads)

    def told(*args: object) -> object:
        next(left).set()
        return plain(*args)

    def look() -> None:
        assert reads[1].wait(20)

    monkeypatch.setattr(ShardSet, "read_checked", told)
    bench.network.during = look
    for task, place in ((0, (0, 1)), (1, (1, 1))):
        sent = WireTask(task, task, 1, "single", ((task, 0),), by_place=True)
        bench.endpoint.give([sent], [pack_places([place])])
    bench.run()
    assert [result.cells[0].label for result in bench.results] == [1, 6]


def test_a_bad_row_fails_its_own_task_alone(shards: ShardSet, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "b.h5", "r+") as file:
        file["images"][3, 1, 1] ^= 1
    bench = reading(as_found(tmp_path, hash_file=False), batch=3)
    give(bench, (0, 1), (1, 3), (1, 4))
    found = {result.task: result for result in bench.results}
    assert [found[task].status for task in range(3)] == [ANSWERED, FAILED, ANSWERED]
    assert [found[task].cells[0].label for task in (0, 2)] == [1, 9]
    bad = found[1]
    assert (bad.retryable, bad.of_input) == (True, True)
    assert bad.reason == (
        f"checksum does not match its pixels and label (host {HOST}, {tmp_path / 'b.h5'}: row 3)"
    )
    give(bench, (1, 3))  # nothing is left to compute
    assert bench.results[-1].status == FAILED


def test_a_file_that_goes_fails_what_is_in_it_and_the_rank_is_to_blame(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_reader, "OPEN_FILES", 1)  # so that it is opened anew
    bench = reading(shards, batch=3)
    shards.infos[0].path.unlink()
    give(bench, (1, 1), (0, 1), (1, 2))
    found = {result.task: result for result in bench.results}
    assert [found[task].status for task in range(3)] == [ANSWERED, FAILED, ANSWERED]
    assert [found[task].cells[0].label for task in (0, 2)] == [6, 7]
    assert (found[1].retryable, found[1].of_input) == (True, False)
    assert found[1].reason.startswith(f"cannot be read on host {HOST}: {shards.infos[0].path}: ")


@pytest.mark.parametrize("what", ["gone", "other"])
def test_another_input_is_a_fault_at_the_start(what: str, shards: ShardSet, tmp_path: Path) -> None:
    path = shards.infos[1].path
    path.unlink()
    if what == "other":
        write_shard(path, np.ones((5, *SHAPE), np.uint8), LABELS[5:])
    bench = reading(shards)
    (fault,) = bench.endpoint.told()
    assert isinstance(fault, Fault)
    assert fault.exit_code == ExitCode.ENVIRONMENT
    assert fault.message.startswith(f"host {HOST} has not the input that rank 0 has: {path}: ")
    assert ("can no longer be read" if what == "gone" else "has changed") in fault.message
    assert "--pixels workers" in fault.message


def test_of_a_shard_that_rank_0_has_lost_nothing_is_asked(shards: ShardSet) -> None:
    shards.infos[0].path.unlink()
    with pytest.raises(EnvironmentFault):
        RowReader(described(shards))
    shards.lost[0] = "gone"
    found, faults = RowReader(described(shards)).read([(1, 0)])
    assert found[0, 0, 0, 0] == 5
    assert faults == [None]


def test_a_rank_in_another_folder_finds_a_relative_path(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = described(as_found(Path()))
    monkeypatch.chdir("/")
    found, _ = RowReader(told).read([(1, 4)])
    assert found[0, 0, 0, 0] == 9


def test_the_next_session_is_told_its_own_shards(shards: ShardSet) -> None:
    bench = reading(shards)
    rows = bench.worker.session.rows
    bench.endpoint.tell(End())
    bench.run()
    with pytest.raises(ValueError, match="closed"):
        rows.read([(0, 0)])
    with pytest.raises(RuntimeError, match="after shutdown"):
        rows.begin([(0, 0)])
    bench.start()
    assert bench.worker.session.rows is None
    with pytest.raises(wire.WireFault, match="no shards were told"):
        give(bench, (0, 0))


@pytest.mark.parametrize("place", [(2, 0), (1, 5)])
def test_a_place_beyond_the_input_is_a_defect_of_the_wire(
    place: tuple[int, int], shards: ShardSet
) -> None:
    with pytest.raises(wire.WireFault, match="no such place"):
        give(reading(shards), place)
