"""The images in flight on a coordinator: their ids, pixels (or places) and cells.

Tasks are packed into messages from these images.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple, Protocol

import numpy as np

from collage_mpi.encoding.collage import Encoder, paste_group
from collage_mpi.kinds import KIND
from collage_mpi.mpi.tasks import (
    PLACE,
    pack_file,
    pack_places,
    pack_tasks,
    task_message_bytes,
)
from collage_mpi.results.number_sets import NO_DRAW, Draw
from collage_mpi.scheduler.events import Items, Send
from collage_mpi.shards.order import Range
from collage_mpi.shards.readahead import Columns, ImageRecord

Clock = Callable[[], int]


class Reader(Protocol):
    """Reads the images, in the order of the run."""

    @property
    def cells_ns(self) -> int: ...
    @property
    def remaining(self) -> int: ...
    @property
    def ready(self) -> int: ...
    @property
    def failed(self) -> bool: ...
    def take(self, n: int) -> list[ImageRecord]: ...
    def take_columns(self, n: int) -> Columns: ...
    def add(self, ranges: Sequence[Range]) -> None: ...


@dataclass(slots=True)
class ImageRun:
    """Images that arrived together and have consecutive numbers.

    Attributes:
        first: number of the first image.
        columns: index, shard, row and label of each image.
        t0_ns, read_ns: times, as in an `ImageRecord`.
        length: number of images.
        end: number of the last image plus 1.
        places: (n,) of PLACE, where each image lies.
        data: the bytes of `places`.
    """

    first: int
    columns: Columns
    t0_ns: int = 0
    read_ns: int = 0
    length: int = field(init=False)
    end: int = field(init=False)
    places: np.ndarray = field(init=False)
    data: bytes = field(init=False)

    def __post_init__(self) -> None:
        self.length = len(self.columns)
        self.end = self.first + self.length
        self.places = np.empty(self.length, PLACE)
        self.places["shard"], self.places["row"] = self.columns.shard, self.columns.row
        self.data = self.places.tobytes()

    def part(self, first: int, count: int) -> slice:
        """The places of `count` images from number `first` on, in this run."""
        return slice(first - self.first, first - self.first + count)

    def data_of(self, part: slice) -> bytes:
        """The bytes of these places, as they are sent."""
        return self.data[part.start * PLACE.itemsize : part.stop * PLACE.itemsize]


class InFlight(dict[int, ImageRecord]):
    """Images by id, from their admission until they are released.

    An image of a run gets a record of its own only when it is asked for.

    Attributes:
        came: whether images arrived as runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.came = False
        self._firsts: list[int] = []  # first images of the runs, ascending
        self._runs: dict[int, ImageRun] = {}
        self._left: dict[int, int] = {}  # images of each run that are in flight

    def add_run(self, run: ImageRun) -> None:
        """Add a run, whose numbers are higher than those of all runs before."""
        self.came = True
        self._firsts.append(run.first)
        self._runs[run.first] = run
        self._left[run.first] = run.length

    def run_of(self, image: int) -> ImageRun:
        """The run that the image belongs to.

        Raises:
            KeyError: the image is not in flight, or arrived by itself.
        """
        at = bisect_right(self._firsts, image) - 1
        run = self._runs[self._firsts[at]] if at >= 0 else None
        if run is None or image >= run.end:
            raise KeyError(image)
        return run

    def __missing__(self, image: int) -> ImageRecord:
        run = self.run_of(image)
        columns, at = run.columns, image - run.first
        label = None if columns.label is None else int(columns.label[at])
        index, shard, row = int(columns.index[at]), int(columns.shard[at]), int(columns.row[at])
        record = ImageRecord(index, shard, row, None, label)
        record.t0_ns, record.read_ns = run.t0_ns, run.read_ns
        self[image] = record
        return record

    def release(self, images: Sequence[int]) -> None:
        """Remove images that have their outcome and whose pixels no task needs."""
        if not self._firsts:
            for image in images:
                del self[image]
            return
        images, at = sorted(images), 0
        while at < len(images):
            run, start = self.run_of(images[at]), at
            at = bisect_left(images, run.end, at)
            self._left[run.first] -= at - start
            gone: Sequence[int] = images[start:at]
            if not self._left[run.first]:
                self._firsts.remove(run.first)
                del self._runs[run.first], self._left[run.first]
                gone = range(run.first, run.end)  # a late answer may have made a record again
            if self:
                for image in gone:
                    self.pop(image, None)


class Packed(NamedTuple):
    """A message, and how long its tasks took to encode.

    Attributes:
        buffer: (capacity,) uint8.
        nbytes: length of the message.
        encodes_ns: time for pasting each task, and for shrinking images that had no cell yet.
        pixels: whether the message carries pixels, and not only places.
    """

    buffer: np.ndarray
    nbytes: int
    encodes_ns: tuple[int, ...]
    pixels: bool = True


class ImageBuffer:
    """Gives images their ids, and packs the tasks that the scheduler sends."""

    def __init__(
        self,
        reader: Reader,
        encoder: Encoder,
        session: int,
        clock: Clock,
        reading: Collection[int] = (),
        draw: Draw = NO_DRAW,
    ) -> None:
        """Start without images.

        Args:
            reader: reads the images.
            encoder: pastes collages.
            session: number of the session, for messages.
            clock: in ns.
            reading: ranks that read their images themselves and are sent places. If all ranks do,
                records need no pixels.
            draw: which images are audited.
        """
        self.draw = draw
        self._numbers: dict[int, int] = {}  # an image's index -> its id
        self._numbered = False  # ids are given by `number`; otherwise they count up from 0
        self._growing = False  # the reader may get more images
        self.reader = reader
        self.encoder = encoder
        self.session = session
        self.clock = clock
        self._next = 0
        self._reading = frozenset(reading)
        self.images = InFlight()

    @property
    def exhausted(self) -> bool:
        """Whether no further image will come."""
        return self.reader.remaining == 0 and not self._growing

    def number(self, indices: Sequence[int], first: int) -> None:
        """Give the images with these indices ids that count up from `first`."""
        self._numbered = True
        self._numbers.update(zip(indices, range(first, first + len(indices)), strict=True))

    def grow(self) -> None:
        """The reader may get more images than it has, until `close`."""
        self._growing = True

    def close(self) -> None:
        """The reader gets no more images."""
        self._growing = False

    def admit(self, count: int) -> list[tuple[int, ImageRecord]]:
        """The next images with their ids, at most `count`.

        This does not wait for the disk: while images are being read, fewer are returned, or none.
        A failure of the reader is raised here.
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

    def admit_runs(self, count: int) -> list[ImageRun]:
        """As `admit`, as runs; for jobs whose workers read all images."""
        if not (self.reader.ready or self.reader.failed):
            return []
        columns = self.reader.take_columns(count)
        numbers: Sequence[int] = range(self._next, self._next + len(columns))
        ends = [len(columns)]
        if self._numbered:
            numbers = [self._numbers.pop(index) for index in columns.index.tolist()]
            ends = [*(np.flatnonzero(np.diff(numbers) > 1) + 1).tolist(), *ends]
        runs = []
        for start, end in pairwise([0, *ends]):
            runs.append(ImageRun(numbers[start], columns[start:end]))
            self.images.add_run(runs[-1])
        self._next = runs[-1].end
        return runs

    def pack(self, sends: Sequence[Send], buffer_for: Callable[[int], np.ndarray]) -> Packed:
        """Pack tasks of one kind into a message; collages are pasted here.

        Args:
            sends: the tasks, all for one rank.
            buffer_for: gives a (capacity,) uint8 buffer for a number of bytes.
        """
        kind, by_place = sends[0].kind, sends[0].rank in self._reading
        if KIND[kind].encoded and not by_place:
            return self._pack_encoded(sends, buffer_for)
        if by_place:
            places = b"".join([self._places(send.items) for send in sends])
            items = len(places) // PLACE.itemsize
            buffer = buffer_for(task_message_bytes(len(sends), items, len(places)))
            nbytes = pack_tasks(buffer, self.session, sends, places)
            return Packed(buffer, nbytes, (0,) * len(sends), pixels=False)
        pixels = [_pixels(self.images[image]) for send in sends for image, _ in send.items]
        # A task holds one image, or several images of which none is a file.
        files = {send.task for send in sends if self.images[send.items[0][0]].file is not None}
        nbytes = sum([array.nbytes for array in pixels])
        buffer = buffer_for(task_message_bytes(len(sends), len(pixels), nbytes))
        nbytes = pack_tasks(buffer, self.session, sends, pixels, as_files=files)
        return Packed(buffer, nbytes, (0,) * len(sends))

    def _places(self, items: Sequence[tuple[int, int]]) -> bytes:
        """The places of images, as they are sent."""
        if not self.images.came:
            records = [self.images[image] for image, _ in items]
            return pack_places([(record.shard, record.row) for record in records])
        numbers = items.images if type(items) is Items else [image for image, _ in items]
        at, found = 0, []
        while at < len(numbers):
            first = numbers[at]
            run = self.images.run_of(first)
            count = min(len(numbers) - at, run.end - first)
            if numbers[at + count - 1] != first + count - 1:  # not in sequence
                count = next(n for n in range(1, count) if numbers[at + n] != first + n)
            found.append(run.data_of(run.part(first, count)))
            at += count
        return b"".join(found)

    def _pack_encoded(
        self, tasks: Sequence[Send], buffer_for: Callable[[int], np.ndarray]
    ) -> Packed:
        """Pack collages, which are pasted directly into the message."""
        now_ns = self.clock()
        shape = self.encoder.input_shape
        each = math.prod(shape)
        items, following = sum(len(task.items) for task in tasks), len(tasks) * each
        buffer = buffer_for(task_message_bytes(len(tasks), items, following))
        at = pack_tasks(buffer, self.session, tasks, following=following)
        encodes_ns = []
        for task in tasks:
            cells = ((cell, self._cell(image)) for image, cell in task.items)
            paste_group(self.encoder, cells, out=buffer[at : at + each].reshape(shape))
            at += each
            start_ns, now_ns = now_ns, self.clock()
            encodes_ns.append(now_ns - start_ns)
        return Packed(buffer, at, tuple(encodes_ns))

    def _cell(self, image: int) -> np.ndarray:
        """The image's cell, (h, w, C) uint8: from the reader, or shrunk now and kept."""
        record = self.images[image]
        if record.cell is None:
            record.cell = self.encoder.shrink(_pixels(record))
        return record.cell


def _pixels(record: ImageRecord) -> np.ndarray:
    """The bytes that a task carries of the image: its pixels, or its file."""
    if record.file is not None:
        return pack_file(record.file)
    assert record.pixels is not None  # otherwise the task names its place
    return record.pixels
