"""Images are shrunk once: ahead of the job, or when their first collage is packed."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import Clock, ListReader

from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.grid import Grid
from collage_mpi.job.image_buffer import ImageBuffer, ImageRun
from collage_mpi.mpi.tasks import unpack_files, unpack_places, unpack_tasks
from collage_mpi.scheduler.events import Item, Send
from collage_mpi.shards.readahead import Columns, ImageRecord

SHAPE = (6, 6, 1)


class CountingEncoder(Encoder):
    """Picks every other pixel, and counts the images it shrinks."""

    shrunk = 0

    def shrink(self, images: np.ndarray) -> np.ndarray:
        self.shrunk += 1
        return images[::2, ::2]


@pytest.mark.parametrize("ahead", [True, False])
def test_a_collage_is_pasted_from_cells_made_once(ahead: bool) -> None:
    images = np.random.default_rng(0).integers(1, 256, (4, *SHAPE), dtype=np.uint8)
    records = [
        ImageRecord(i, 0, i, image, None, cell=image[::2, ::2] if ahead else None)
        for i, image in enumerate(images)
    ]
    clock, encoder = Clock(tick_ns=7), CountingEncoder(Grid(2, 3), SHAPE)
    feed = ImageBuffer(ListReader(records, clock), encoder, 5, clock)
    assert [image for image, _ in feed.admit(4)] == [0, 1, 2, 3]
    for rank in (1, 2):
        send = Send(rank, rank, "collage", ((0, 0), (3, 2)), 0, 0)
        packed = feed.pack([send], lambda nbytes: np.full(nbytes + 9, 99, np.uint8))
        assert packed.encodes_ns[0] > 0
        (task,), pixels = unpack_tasks(packed.buffer[: packed.nbytes])
        assert task.items == send.items
        collage = pixels.reshape(6, 6, 1)
        assert np.array_equal(collage[:3, :3], images[0, ::2, ::2])
        assert np.array_equal(collage[3:, :3], images[3, ::2, ::2])
        assert not collage[:, 3:].any()
    assert encoder.shrunk == (0 if ahead else 2)
    feed.images.release(range(4))
    assert feed.images == {}


def test_without_pixels_tasks_name_their_places() -> None:
    records = [ImageRecord(i, i % 2, 7 * i, None, None) for i in range(3)]
    clock, encoder = Clock(), CountingEncoder(Grid(2, 3), SHAPE)
    feed = ImageBuffer(ListReader(records, clock), encoder, 5, clock, reading=[1])
    feed.admit(3)
    sends = [Send(t, 1, "single", ((t, 0),), t, 1) for t in (2, 1)]
    packed = feed.pack(sends, lambda nbytes: np.full(nbytes + 9, 99, np.uint8))
    tasks, payload = unpack_tasks(packed.buffer[: packed.nbytes])
    assert [(task.items, task.by_place) for task in tasks] == [(s.items, True) for s in sends]
    assert unpack_places(payload) == [(0, 14), (1, 7)]
    assert packed.encodes_ns == (0, 0)
    assert not packed.pixels
    feed.images.release(range(3))
    assert feed.images == {}


@pytest.mark.parametrize("numbers", [(1, 2, 3), (0, 2, 3), (2, 3, 4), (5,)], ids=str)
def test_places_of_a_run_are_those_of_its_images_with_a_gap_and_over_two_runs(numbers) -> None:
    records = [ImageRecord(i, i % 2, 7 * i, None, i) for i in range(6)]
    clock, encoder = Clock(), CountingEncoder(Grid(2, 3), SHAPE)
    feed = ImageBuffer(ListReader(records, clock), encoder, 5, clock, reading=[1])
    for count in (4, 2):
        feed.admit_runs(count)
    send = Send(0, 1, "single", tuple((number, 0) for number in numbers), 0, 1)
    packed = feed.pack([send], lambda nbytes: np.zeros(nbytes, np.uint8))
    _, payload = unpack_tasks(packed.buffer[: packed.nbytes])
    assert unpack_places(payload) == [(number % 2, 7 * number) for number in numbers]


def test_a_run_ends_where_a_number_is_left_out() -> None:
    records = [ImageRecord(i, 0, i, None, i) for i in range(5)]
    clock, encoder = Clock(), CountingEncoder(Grid(2, 3), SHAPE)
    feed = ImageBuffer(ListReader(records, clock), encoder, 5, clock, reading=[1])
    feed.number([0, 1], 4)
    feed.number([2, 3, 4], 7)
    assert [(run.first, run.length) for run in feed.admit_runs(5)] == [(4, 2), (7, 3)]


def test_pixels_go_to_those_that_do_not_read() -> None:
    images = np.random.default_rng(0).integers(1, 256, (2, *SHAPE), dtype=np.uint8)
    records = [ImageRecord(i, 3, i, image, None) for i, image in enumerate(images)]
    clock, encoder = Clock(tick_ns=7), CountingEncoder(Grid(2, 3), SHAPE)
    feed = ImageBuffer(ListReader(records, clock), encoder, 5, clock, reading=[1])
    feed.admit(2)
    for rank, kind in ((1, "single"), (2, "single"), (1, "collage"), (2, "collage")):
        packed = feed.pack([Send(rank, rank, kind, ((1, 0),), 0, 1)], lambda n: np.zeros(n, "u1"))
        (task,), payload = unpack_tasks(packed.buffer[: packed.nbytes])
        assert task.by_place == (rank == 1)
        if rank == 1:
            assert unpack_places(payload) == [(3, 1)]
        elif kind == "single":
            assert payload.tobytes() == images[1].tobytes()
        else:
            assert np.array_equal(payload.reshape(6, 6, 1)[:3, :3], images[1, ::2, ::2])
    feed.images.release(range(2))
    assert feed.images == {}


def test_files_travel_as_they_are_beside_pixels() -> None:
    image = np.full(SHAPE, 7, np.uint8)
    records = [ImageRecord(0, 0, 0, None, 1, file=b"abc"), ImageRecord(1, 0, 1, image, 1)]
    clock, encoder = Clock(), CountingEncoder(Grid(2, 3), SHAPE)
    feed = ImageBuffer(ListReader(records, clock), encoder, 5, clock)
    feed.admit(2)
    sends = [Send(t, 1, "single", ((t, 0),), t, 1) for t in (0, 1)]
    packed = feed.pack(sends, lambda nbytes: np.zeros(nbytes, np.uint8))
    tasks, payload = unpack_tasks(packed.buffer[: packed.nbytes])
    assert [task.as_files for task in tasks] == [True, False]
    files, nbytes = unpack_files(payload, 1)
    assert files == [b"abc"]
    assert payload[nbytes:].tobytes() == image.tobytes()


def test_a_bundle_of_images_that_are_not_in_sequence_names_the_place_of_each():
    numbers = np.arange(6)
    buffer = ImageBuffer(None, None, 1, lambda: 0, (1,))
    for first in (0, 6):
        columns = Columns(numbers, numbers * 0, 10 + first + numbers, None)
        buffer.images.add_run(ImageRun(first, columns))
    wanted = 0, 1, 3, 5, 6, 7
    send = Send(0, 1, "collage", tuple(Item(n, at) for at, n in enumerate(wanted)), 0, 1)
    places = np.frombuffer(buffer._places(send.items), np.uint8)
    assert unpack_places(places) == [(0, 10 + number) for number in wanted]


def test_images_of_two_runs_are_released_in_any_order():
    """As the tasks of a message end that were answered together."""
    numbers = np.arange(6)
    buffer = ImageBuffer(None, None, 1, lambda: 0, (1,))
    for first in (0, 6):
        buffer.images.add_run(ImageRun(first, Columns(numbers, numbers, numbers, None)))
    buffer.images.release((7, 1, 0, 6, 3))
    assert buffer.images._left == {0: 3, 6: 4}
    buffer.images.release((10, 2, 4, 11, 5, 9, 8))
    assert not buffer.images._runs
