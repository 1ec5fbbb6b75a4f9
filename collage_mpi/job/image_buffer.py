"""The images in flight, between the shards and the wire: their ids, their pixels (or places) and
cells, and the tasks that are packed from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from collage_mpi.encoding.stripe import AnyEncoder, paste_group
from collage_mpi.kinds import KIND
from collage_mpi.mpi.tasks import (
    WireTask,
    pack_file,
    pack_places,
    pack_tasks,
    task_message_bytes,
)
from collage_mpi.results.agreement import NO_DRAW, Draw
from collage_mpi.scheduler.events import Send
from collage_mpi.shards.readahead import ImageRecord

Clock = Callable[[], int]


class Reader(Protocol):
    """Where images come from, in the order of the run."""

    @property
    def cells_ns(self) -> int: ...
    @property
    def remaining(self) -> int: ...
    @property
    def ready(self) -> int: ...
    @property
    def failed(self) -> bool: ...
    def take(self, n: int) -> list[ImageRecord]: ...
    def add(self, order: np.ndarray) -> None: ...


class Packed(NamedTuple):
    """A message, and what encoding each task cost: pasting, and shrinking if it was late.

    `pixels`: whether it carries any, and not places alone.
    """

    buffer: np.ndarray
    nbytes: int
    encodes_ns: tuple[int, ...]
    pixels: bool = True


class ImageBuffer:
    """Hands out images by id and packs what the scheduler wants sent."""

    def __init__(
        self,
        reader: Reader,
        encoder: AnyEncoder,
        session: int,
        clock: Clock,
        reading: Collection[int] = (),
        draw: Draw = NO_DRAW,
    ) -> None:
        """`encoder` is for the tasks of a kind that is not single: collages, or stripes.

        `reading`: ranks whose tasks name where the images lie. Records need no pixels if all are.
        `draw`: of which images the single network is asked too, whatever a collage says.
        """
        self.draw = draw
        self._numbers: dict[int, int] = {}  # an image's index -> its id
        self._numbered = self._growing = False  # else ids count up, and the reader gets no more
        self.reader = reader
        self.encoder = encoder
        self.session = session
        self.clock = clock
        self._next = 0
        self._reading = frozenset(reading)
        self.images: dict[int, ImageRecord] = {}  # in flight: admitted and not released yet

    @property
    def exhausted(self) -> bool:
        """No further image will come."""
        return self.reader.remaining == 0 and not self._growing

    def number(self, indices: Sequence[int], first: int) -> None:
        """The reader gets these images, whose ids count up from `first`."""
        self._numbered = True
        self._numbers.update(zip(indices, range(first, first + len(indices)), strict=True))

    def grow(self) -> None:
        """The reader may get more images than it has, until `close`."""
        self._growing = True

    def close(self) -> None:
        """The reader gets no more images."""
        self._growing = False

    def admit(self, count: int) -> list[tuple[int, ImageRecord]]:
        """The next images with their ids, at most `count`, as many as can be had at once.

        It does not wait for the disk: fewer come, or none, while they are being read. The
        reader's own failure is raised here.
        """
        count = min(count, max(1, self.reader.ready))
        if not (self.reader.ready or self.reader.failed):
            return []
        admitted: list[tuple[int, ImageRecord]] = []
        for record in self.reader.take(count):
            number = self._numbers.pop(record.index) if self._numbered else self._next
            self.images[number] = record
            admitted.append((number, record))
            self._next = number + 1
        return admitted

    def pack(self, sends: Sequence[Send], buffer_for: Callable[[int], np.ndarray]) -> Packed:
        """Tasks of one kind as a message, encoded unless they are single images or by place.

        Args:
            sends: what the scheduler wants sent together.
            buffer_for: gives a (capacity,) uint8 buffer for a number of bytes.
        """
        by_place = sends[0].rank in self._reading
        tasks = [WireTask(s.task, s.group, s.attempt, s.kind, s.items, by_place) for s in sends]
        if KIND[sends[0].kind].encoded and not by_place:
            return self._pack_encoded(tasks, buffer_for)
        records = [self.images[image] for send in sends for image, _ in send.items]
        if by_place:
            pixels = [pack_places([(record.shard, record.row) for record in records])]
        else:
            pixels = [_pixels(record) for record in records]
            for task in tasks:  # of an image, or of many of which none is a file
                task.as_files = self.images[task.items[0][0]].file is not None
        items = len(records)
        nbytes = task_message_bytes(len(tasks), items, sum(p.nbytes for p in pixels))
        buffer = buffer_for(nbytes)
        nbytes = pack_tasks(buffer, self.session, tasks, pixels)
        return Packed(buffer, nbytes, (0,) * len(tasks), not by_place)

    def _pack_encoded(
        self, tasks: Sequence[WireTask], buffer_for: Callable[[int], np.ndarray]
    ) -> Packed:
        """Pasted where they are sent from."""
        now_ns = self.clock()
        shape = self.encoder.input_shape
        each = math.prod(shape)
        items, following = sum(len(task.items) for task in tasks), len(tasks) * each
        nbytes = task_message_bytes(len(tasks), items, following)
        buffer = buffer_for(nbytes)
        at = pack_tasks(buffer, self.session, tasks, following=following)
        encodes_ns = []
        for task in tasks:
            cells = ((cell, self._cell(image)) for image, cell in task.items)
            paste_group(self.encoder, cells, out=buffer[at : at + each].reshape(shape))
            at += each
            start_ns, now_ns = now_ns, self.clock()
            encodes_ns.append(now_ns - start_ns)
        return Packed(buffer, nbytes, tuple(encodes_ns))

    def _cell(self, image: int) -> np.ndarray:
        """(h, w, C) uint8, what is pasted: from the reader, or shrunk now and kept."""
        record = self.images[image]
        if record.cell is None:
            record.cell = self.encoder.shrink(_pixels(record))
        return record.cell

    def release(self, images: Iterable[int]) -> None:
        """They have their outcome, and no task needs their pixels any more."""
        for image in images:
            del self.images[image]


def _pixels(record: ImageRecord) -> np.ndarray:
    """What a task carries of the image."""
    if record.file is not None:
        return pack_file(record.file)
    assert record.pixels is not None  # else its task goes by place
    return record.pixels
