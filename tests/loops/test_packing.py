"""Tasks in messages: pixels go to those that do not read, and are let go with the outcome."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import Clock

from collage_mpi.core.events import Resolved
from collage_mpi.core.table import Table
from collage_mpi.core.work import Like, Message, Task
from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.grid import Grid
from collage_mpi.job.packing import FEW, Packer
from collage_mpi.job.row_reader import decoded
from collage_mpi.mpi.tasks import WireTask, unpack_files, unpack_places, unpack_tasks
from collage_mpi.rows import PLACED
from collage_mpi.shards.pictures import PictureFit
from collage_mpi.shards.readahead import Images
from collage_mpi.shards.source import ReadMeter

SHAPE = (6, 6, 1)


class CountingEncoder(Encoder):
    """Picks every other pixel, and counts the images it shrinks."""

    shrunk = 0

    def shrink(self, images: np.ndarray) -> np.ndarray:
        self.shrunk += 1
        return images[::2, ::2]


class Packing:
    """A packer with images whose place is (number % 2, 7 * number)."""

    def __init__(self, images: Images, reading=(), first: int = 0) -> None:
        self.encoder, self.table = CountingEncoder(Grid(2, 3), SHAPE), Table(4, 0, 1, 0)
        self.packer = Packer(self.table, self.encoder, 5, Clock(tick_ns=7), reading)
        self.first, self.slots = first, self.table.add(first, images.placed, None)
        if images.pixels is not None or images.files is not None:
            self.packer.held.add(first, images)

    def sent(self, rank: int, kind: str, *positions, cells=None, tasks: int = 1):
        """The tasks as their rank gets them, what follows them, and the times of pasting."""
        where = np.array(positions[0] if isinstance(positions[0], range) else positions)
        slots, message = self.slots[where - self.first], Message(tasks, tasks)
        like = Like(kind, kind, 1)
        made = [Task(n, rank, like, slots, where, cells, message, 0) for n in range(tasks)]
        packed = self.packer.pack(rank, made, lambda nbytes: np.full(nbytes + 9, 99, np.uint8))
        found, payload = unpack_tasks(packed.buffer[: packed.nbytes])
        return found, payload, packed.encodes_ns


def images(count: int, pixels: np.ndarray | None = None, **more) -> Images:
    numbers = np.arange(count)
    placed = np.zeros(count, PLACED)
    placed["shard"], placed["row"] = numbers % 2, 7 * numbers
    return Images(numbers, numbers, placed, pixels, **more)


def noise(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (count, *SHAPE), dtype=np.uint8)


@pytest.mark.parametrize("ahead", [True, False])
def test_a_collage_is_pasted_with_blank_cells_where_nothing_is(ahead: bool) -> None:
    pixels = noise(4)
    made = Packing(images(4, pixels, cells=pixels[:, ::2, ::2] if ahead else None))
    for rank in (1, 2):
        (task,), payload, (encode_ns,) = made.sent(rank, "collage", 0, 3)
        assert (encode_ns > 0, task.items) == (True, ((0, 0), (3, 3)))
        collage = payload.reshape(6, 6, 1)
        assert np.array_equal(collage[:3, :3], pixels[0, ::2, ::2])
        assert np.array_equal(collage[3:, 3:], pixels[3, ::2, ::2])
        assert not collage[:3, 3:].any()
        assert not collage[3:, :3].any()
    assert made.encoder.shrunk == (0 if ahead else 4)


def test_images_of_several_groups_are_pasted_where_their_task_says() -> None:
    pixels = noise(8)
    made = Packing(images(8, pixels))
    (task,), payload, _ = made.sent(1, "collage", 3, 6, cells=np.array([0, 1]))
    assert task.items == ((3, 0), (6, 1))
    assert np.array_equal(payload.reshape(6, 6, 1)[:3, 3:], pixels[6, ::2, ::2])


@pytest.mark.parametrize("positions", [(range(1, 4),), (0, 2, 3), (5,)], ids=str)
def test_for_a_rank_that_reads_a_task_names_the_places(positions) -> None:
    made = Packing(images(6), reading=[1])
    (task,), payload, times_ns = made.sent(1, "single", *positions)
    numbers = list(positions[0]) if isinstance(positions[0], range) else list(positions)
    assert (task.by_place, [image for image, _ in task.items]) == (True, numbers)
    assert unpack_places(payload) == [(n % 2, 7 * n) for n in numbers]
    assert times_ns == (0,)


def test_pixels_go_to_those_that_do_not_read() -> None:
    pixels = noise(2)
    made = Packing(images(2, pixels), reading=[1])
    for rank, kind in ((1, "single"), (2, "single"), (1, "collage"), (2, "collage")):
        (task,), payload, _ = made.sent(rank, kind, 1)
        assert task.by_place == (rank == 1)
        if rank == 1:
            assert unpack_places(payload) == [(1, 7)]
        elif kind == "single":
            assert payload.tobytes() == pixels[1].tobytes()
        else:
            assert np.array_equal(payload.reshape(6, 6, 1)[:3, 3:], pixels[1, ::2, ::2])


def test_files_travel_as_they_are() -> None:
    made = Packing(images(2, files=[b"abc", b"de"]))
    tasks: list[WireTask]
    tasks, payload, _ = made.sent(1, "single", range(2))
    assert [task.as_files for task in tasks] == [True]
    assert unpack_files(payload, 2)[0] == [b"abc", b"de"]


def test_pixels_take_the_place_of_a_file_that_is_larger() -> None:
    pixels = noise(2)
    made = Packing(images(2, pixels, files=[b"abc", None]))
    _, payload, _ = made.sent(1, "single", range(2))
    (file, raw), nbytes = unpack_files(payload, 2)
    assert (file, nbytes) == (b"abc", len(payload))
    assert raw.tobytes() == pixels[1].tobytes()
    inputs = decoded([[raw]], PictureFit(SHAPE[0], channels=SHAPE[2]), ReadMeter())
    assert np.array_equal(inputs.arrays[0][0], pixels[1])


def test_pixels_are_let_go_with_the_outcome_and_a_late_image_holds_its_own_alone() -> None:
    count = 8 * FEW
    made = Packing(images(count, noise(count)))
    held, late = made.packer.held, count // 2
    for position in [p for p in range(count) if p != late]:
        held.release(Resolved(np.array([position])))
    (stretch,) = held._stretches.values()
    assert len(stretch.images) < FEW + 1
    assert stretch.images.pixels.base is None, "an array of its own"
    found, at = held.find(late)
    assert np.array_equal(found.pixels[at], noise(count)[late])
    held.release(Resolved(np.array([late])))
    assert not held._stretches
