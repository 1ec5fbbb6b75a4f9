"""A worker that reads the images that tasks name: what it computes on, what it says of bad ones."""

from __future__ import annotations

import fcntl
import io
import socket
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from fakes import MS, SHAPE
from PIL import Image
from test_worker import Bench

from collage_mpi.core.table import Table
from collage_mpi.core.work import Like, Message, Task
from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import EnvironmentFault, ExitCode
from collage_mpi.job import worker
from collage_mpi.job.encoders import make_encoder
from collage_mpi.job.messages import End, Fault, Hello, Shards
from collage_mpi.job.packing import Packer
from collage_mpi.job.row_reader import RowReader, described
from collage_mpi.kinds import KIND
from collage_mpi.models.info import Geometry
from collage_mpi.models.null import NullPredictor
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.answers import ANSWERED, FAILED, SKIPPED, Unread, unpack_use, use_bytes
from collage_mpi.mpi.tasks import WireTask, pack_file, pack_places
from collage_mpi.shards import ReadAhead, ShardSet, write_shard
from collage_mpi.shards import reader as shards_reader
from collage_mpi.shards.guard import inspect_here
from collage_mpi.shards.pictures import PictureFit

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
    tasks = [WireTask(i, "single", ((i, 0),), by_place=True) for i in range(len(places))]
    bench.endpoint.give(tasks, pack_places(places))
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

    class Late(Future):
        """What is not read yet when it is waited for."""

        def __init__(self, rows: RowReader, *asked: Any) -> None:
            super().__init__()
            super().__init__()
            self.found = rows.inputs(*asked)

        def result(self, timeout: float | None = None) -> object:
            bench.clock.now_ns += 3 * MS
            return self.found

    monkeypatch.setattr(RowReader, "begin", lambda rows, *asked: Late(rows, *asked))
    bench.clock.now_ns += 5 * MS  # it waits for work
    give(bench, (0, 0), (0, 1))  # one batch
    assert [(r.read_ns, r.compute_ns) for r in bench.results] == [(3 * MS, MS)] * 2
    use = unpack_use(use_bytes(bench.endpoint.sent[-1]))
    assert (use.elapsed_ns, use.starved_ns, use.computing_ns) == (9 * MS, 3 * MS, MS)
    assert use.reading_ns > 0 == use.decoding_ns
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
        sent = WireTask(task, "single", ((task, 0),), by_place=True)
        bench.endpoint.give([sent], pack_places([place]))
    bench.run()
    assert [result.cells[0].label for result in bench.results] == [1, 6]


def test_what_is_cancelled_before_its_turn_is_not_read(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench, queued = reading(shards), Future[Any]()
    monkeypatch.setattr(RowReader, "begin", lambda rows, *asked: queued)
    task = WireTask(0, "single", ((0, 0),), by_place=True)
    bench.endpoint.give([task], pack_places([(0, 1)]))
    bench.endpoint.cancel(0)
    bench.run()
    assert [result.status for result in bench.results] == [SKIPPED]
    assert queued.cancelled()


def test_a_bad_row_fails_its_own_task_alone(shards: ShardSet, tmp_path: Path) -> None:
    with h5py.File(tmp_path / "b.h5", "r+") as file:
        file["images"][3, 1, 1] ^= 1
    bench = reading(as_found(tmp_path, hash_file=False), batch=3)
    give(bench, (0, 1), (1, 3), (1, 4))
    found = {result.task: result for result in bench.results}
    assert [found[task].status for task in range(3)] == [ANSWERED, FAILED, ANSWERED]
    assert [found[task].cells[0].label for task in (0, 2)] == [1, 9]
    bad = found[1]
    assert bad.reason == "checksum does not match its pixels and label"
    assert bad.unread == (Unread(bad.reason, of_input=True),)
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
    assert found[1].reason.startswith(f"{shards.infos[0].path}: can no longer be read")
    assert found[1].unread == (Unread(found[1].reason, of_input=False),)


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
    assert fault.message.startswith(
        f"host {HOST} does not have the input that rank 0 has: {path}: "
    )
    assert ("can no longer be read" if what == "gone" else "has changed") in fault.message
    assert "--pixels workers" in fault.message


@pytest.mark.parametrize("what", ["gone", "other", "large copy", "small copy"])
def test_who_need_not_read_says_that_it_cannot(
    what: str, shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy's bytes tell that it is one, unless they are too many to look at."""
    path = shards.infos[1].path
    if what == "gone":
        path.unlink()
    elif what == "other":
        write_shard(path, np.ones((5, *SHAPE), np.uint8), LABELS[5:])
    else:
        path.write_bytes(path.read_bytes())
    if what == "large copy":
        monkeypatch.setattr(worker, "HASH_LIMIT_BYTES", 99)
    bench = reading(shards, must_read=False)
    (hello,) = bench.endpoint.told()
    assert isinstance(hello, Hello)
    says = {"gone": "can no longer be read", "other": "has changed", "large copy": "too large"}
    if what == "small copy":
        assert hello.cannot_read == ""
        give(bench, (1, 0))
        return
    assert hello.cannot_read.startswith(
        f"host {HOST} does not have the input that rank 0 has: {path}: "
    )
    assert says[what] in hello.cannot_read
    bench.single(0, pixel=3)
    bench.run()
    assert bench.results[0].cells[0].label == 3


@pytest.mark.parametrize("text", ["{}", "[", "[]", '{"path": 3}'])
def test_a_description_that_is_none_is_a_defect_of_the_wire(text: str) -> None:
    with pytest.raises(wire.WireFault, match="rank 0 sent an invalid shard"):
        RowReader([text])


def test_of_a_shard_that_rank_0_has_lost_nothing_is_asked(shards: ShardSet) -> None:
    shards.infos[0].path.unlink()
    with pytest.raises(EnvironmentFault):
        RowReader(described(shards))
    shards.lost[0] = "gone"
    found, faults = RowReader(described(shards)).read([(1, 0)])
    assert found[0, 0, 0, 0] == 5
    assert faults == [None]


def test_the_readers_lock_no_file(shards: ShardSet) -> None:
    reader = RowReader(described(shards))
    reader.read([(0, 0), (1, 0)])
    for info in shards.infos:
        with open(info.path, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # raises where HDF5 has one
    reader.close()


def test_a_rank_in_another_folder_finds_a_relative_path(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    told = described(as_found(Path()))
    monkeypatch.chdir("/")
    found, _ = RowReader(told).read([(1, 4)])
    assert found[0, 0, 0, 0] == 9


def test_after_the_end_nothing_more_is_read(shards: ShardSet) -> None:
    bench = reading(shards)
    rows = bench.worker.session.rows
    bench.endpoint.tell(End())
    bench.run()
    with pytest.raises(ValueError, match="closed"):
        rows.read([(0, 0)])
    with pytest.raises(RuntimeError, match="after shutdown"):
        rows.begin([], None)


def test_places_without_shards_are_a_defect_of_the_wire() -> None:
    with pytest.raises(wire.WireFault, match="no shards were sent"):
        give(Bench(), (0, 0))


@pytest.mark.parametrize("place", [(2, 0), (1, 5)])
def test_a_place_beyond_the_input_is_a_defect_of_the_wire(
    place: tuple[int, int], shards: ShardSet
) -> None:
    with pytest.raises(wire.WireFault, match="no such place"):
        give(reading(shards), place)


# ---- pictures of several rows ----------------------------------------------------------------

PX = 2


def pictures(folder: Path) -> ShardSet:
    """Random images of two shards, 4 px."""
    rng, infos = np.random.default_rng(0), []
    for name in ("a", "b"):
        images = rng.integers(1, 256, (5, *SHAPE), dtype=np.uint8)
        path = write_shard(folder / f"{name}.h5", images, LABELS[:5]).path
        infos.append(inspect_here(path, hash_file=False))
    return ShardSet(infos)


def found_again(shards: ShardSet) -> ShardSet:
    """As they are after the damage that was done to them."""
    return ShardSet([inspect_here(info.path, hash_file=False) for info in shards.infos])


class Looker(NullPredictor):
    """A network that keeps what it is shown."""

    shown: np.ndarray

    def predict(self, batch: np.ndarray) -> np.ndarray:
        self.shown = batch
        return super().predict(batch)


def grouped(shards: ShardSet, kind: str, **welcome: object) -> tuple[Bench, Looker]:
    bench = Bench(kind, start=False, **welcome)
    bench.network = looker = Looker(KIND[kind].network, Geometry(SHAPE, 2, PX, 10))
    looker.calls = 0
    geometry = replace(bench.welcome.geometry, cell_px=PX)
    bench.welcome = replace(bench.welcome, geometry=geometry)
    for text in described(shards):
        bench.endpoint.tell(Shards((text,)))
    bench.start()
    return bench, looker


def give_group(
    bench: Bench, kind: str, cells: Sequence[int], *places: tuple[int, int], task: int = 0
) -> None:
    items = tuple((10 + i, cell) for i, cell in enumerate(cells))
    sent = WireTask(task, kind, items, by_place=True)
    bench.endpoint.give([sent], pack_places(places))
    bench.run()


def as_rank_0_would(shards: ShardSet, encoder: Encoder, items: dict[int, int]) -> np.ndarray:
    """The message's pixels where rank 0 reads; items: cell -> index of its image."""
    with ReadAhead(shards, sorted(items.values()), shrink=encoder.shrink) as reader:
        images, table = reader.take(9), Table(4, 0, 1, 0)
    packer = Packer(table, encoder, 1, lambda: 0, ())
    packer.held.add(0, images)
    at = {index: place for place, index in enumerate(images.index.tolist())}
    positions = np.array([at[index] for index in items.values()])
    like = Like("collage", "collage", 1)
    task = Task(0, 1, like, positions, positions, np.array(list(items)), Message(1, 1), 0)
    packed = packer.pack(1, [task], lambda nbytes: np.full(nbytes, 77, np.uint8))
    return packed.buffer[packed.nbytes - np.prod(encoder.input_shape) : packed.nbytes]


def test_a_rank_pastes_what_rank_0_would_have(tmp_path: Path) -> None:
    shards = pictures(tmp_path)
    bench, looker = grouped(shards, "collage")
    cells = [0, 3]
    give_group(bench, "collage", cells, (1, 4), (0, 2))
    (result,) = bench.results
    assert (result.status, result.unread) == (ANSWERED, ())
    encoder = make_encoder(Grid(2, PX), SHAPE, 1)
    sent = as_rank_0_would(shards, encoder, dict(zip(cells, [9, 2], strict=True)))
    assert looker.shown.tobytes() == sent.tobytes()
    assert looker.shown.any()


def test_a_single_network_is_shown_the_image_itself(tmp_path: Path) -> None:
    bench, looker = grouped(pictures(tmp_path), "single")
    give_group(bench, "single", [3], (1, 2))
    assert looker.shown.shape == (1, *SHAPE)


def test_what_cannot_be_read_is_blank_and_the_rest_answers(tmp_path: Path) -> None:
    shards = pictures(tmp_path)
    with h5py.File(shards.infos[0].path, "r+") as file:
        file["images"][2, 1, 1] ^= 1
    shards = found_again(shards)
    bench, looker = grouped(shards, "collage")
    give_group(bench, "collage", [0, 1, 2], (0, 1), (0, 2), (0, 3))
    (result,) = bench.results
    assert result.status == ANSWERED
    why = Unread("checksum does not match its pixels and label", of_input=True)
    assert result.unread == (None, why, None)
    encoder = make_encoder(Grid(2, PX), SHAPE, 1)
    assert looker.shown.tobytes() == as_rank_0_would(shards, encoder, {0: 1, 2: 3}).tobytes()
    assert [cell is None for cell in result.cells] == [False, True, False]
    give_group(bench, "collage", [1], (0, 2), task=1)
    assert (bench.results[-1].status, bench.results[-1].unread) == (FAILED, (why,))


def test_an_image_of_a_group_that_cannot_be_read_leaves_the_others(tmp_path: Path) -> None:
    shards = pictures(tmp_path)
    images, _ = shards.read(np.array([1, 3]))
    shards.close()
    with h5py.File(shards.infos[0].path, "r+") as file:
        file["images"][2, 1, 1] ^= 1
    bench, looker = grouped(found_again(shards), "stage1")
    give_group(bench, "stage1", [0, 1, 3], (0, 1), (0, 2), (0, 3))
    (result,) = bench.results
    assert result.status == ANSWERED
    assert [why is None for why in result.unread] == [True, False, True]
    assert np.array_equal(looker.shown[[0, 2]], images)
    assert [cell and cell.label for cell in result.cells] == [
        int(images[0, 0, 0, 0]) % 10, None, int(images[1, 0, 0, 0]) % 10
    ]  # fmt: skip
    give_group(bench, "stage1", [1], (0, 2), task=1)
    assert (bench.results[-1].status, len(bench.results[-1].unread)) == (FAILED, 1)


def test_a_shard_that_goes_leaves_the_others_cells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shards_reader, "OPEN_FILES", 1)  # so that it is opened anew
    shards = pictures(tmp_path)
    bench, looker = grouped(shards, "collage")
    shards.infos[0].path.unlink()
    give_group(bench, "collage", [0, 1], (0, 1), (1, 1))
    (result,) = bench.results
    gone, there = result.unread
    assert (gone.of_input, there) == (False, None)
    assert str(shards.infos[0].path) in gone.reason
    assert looker.shown[0, :PX, PX:].any()
    assert not looker.shown[0, :PX, :PX].any()


def test_a_task_with_fewer_places_than_items_is_a_defect_of_the_wire(shards: ShardSet) -> None:
    with pytest.raises(wire.WireFault, match="fewer places"):
        give_group(reading(shards), "single", [0, 1], (0, 0))


# ---- files that rank 0 sends ------------------------------------------------------------------


def picture(value: int, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full((*SHAPE[:2],), value, np.uint8)).save(buffer, kind)
    return buffer.getvalue()


def test_files_are_decoded_where_they_are_computed_on() -> None:
    bench = Bench(batch=4, fit=PictureFit(SHAPE[0], channels=1).text())
    tasks = [WireTask(i, "single", ((i, 0),), as_files=True) for i in range(4)]
    carried = [
        pack_file(picture(5)),
        pack_file(None, np.full(SHAPE, 6, np.uint8)),  # was smaller so
        pack_file(picture(9)[:40]),
        pack_file(picture(8)),
    ]
    bench.endpoint.give(tasks, carried)
    bench.run()
    found = {result.task: result for result in bench.results}
    assert [found[task].cells[0].label for task in (0, 1, 3)] == [5, 6, 8]
    assert bench.network.sizes[-1] == 3
    (why,) = found[2].unread
    assert (found[2].status, why.of_input) == (FAILED, True)
    assert why.reason.startswith("cannot be decoded: ")


def test_a_rank_that_will_decode_has_its_decoders_when_it_says_hello(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[list[object]] = []
    for fit in (None, PictureFit(SHAPE[0], channels=1).text()):
        bench = Bench(start=False, fit=fit)
        monkeypatch.setattr(
            worker, "import_decoders", lambda own=bench: told.append(own.endpoint.told())
        )
        bench.start()
    assert told == [[]]  # once, and nothing was said before


def test_files_without_a_fit_are_a_defect_of_the_wire() -> None:
    bench = Bench()
    task = WireTask(0, "single", ((0, 0),), as_files=True)
    bench.endpoint.give([task], [pack_file(picture(5))])
    with pytest.raises(wire.WireFault, match="no fit"):
        bench.run()
