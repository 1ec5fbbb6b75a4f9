"""Packs tasks into messages: with the pixels of their images, or with the places where workers read
them. Rank 0 holds pixels only from an image's arrival to its outcome."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from collage_mpi.core.events import Positions, Resolved
from collage_mpi.core.table import Table
from collage_mpi.core.work import Task
from collage_mpi.encoding.collage import Encoder, paste_group
from collage_mpi.kinds import KIND
from collage_mpi.mpi.tasks import ITEM, PLACE, pack_file, pack_tasks, task_message_bytes
from collage_mpi.rows import PLACED, packer
from collage_mpi.shards.order import Range
from collage_mpi.shards.readahead import Images

_ITEM = packer(ITEM)
assert PLACED.descr[:2] == PLACE.descr, "places are copied as bytes"
FEW = 8  # what is held is copied when fewer than one in FEW of its images are left


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
    def take(self, n: int) -> Images: ...
    def add(self, ranges: Sequence[Range]) -> None: ...


class _Stretch:
    """Images that came together: their positions, and what is held of them."""

    def __init__(self, first: int, images: Images) -> None:
        self.positions: Positions = range(first, first + len(images))
        self.images, self.left = images, len(images)

    def place(self, position: int) -> int:
        if isinstance(self.positions, range):
            return position - self.positions.start
        return int(np.searchsorted(self.positions, position))

    def shrink(self, left: np.ndarray) -> None:
        """Hold no more than the images at these positions, in arrays of their own."""
        own = self.images
        at = np.array([self.place(position) for position in left.tolist()])
        self.images = Images(
            own.position[at],
            own.index[at],
            own.placed[at],
            None if own.pixels is None else own.pixels[at],
            None if own.cells is None else own.cells[at],
            None if own.files is None else [own.files[place] for place in at.tolist()],
        )
        self.positions = left


class Held:
    """Pixels, cells and files of the images that have no outcome yet."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._firsts: list[int] = []
        self._stretches: list[_Stretch] = []

    def add(self, first: int, images: Images) -> None:
        """Images came at the positions from `first` on, which are higher than all before."""
        self._firsts.append(first)
        self._stretches.append(_Stretch(first, images))

    def find(self, position: int) -> tuple[Images, int]:
        """The images that came with this one, and its place among them."""
        stretch = self._stretches[bisect_right(self._firsts, position) - 1]
        return stretch.images, stretch.place(position)

    def release(self, positions: Positions) -> None:
        """These images have their outcome."""
        if not self._firsts:
            return
        for position in np.asarray(positions).tolist():
            at = bisect_right(self._firsts, position) - 1
            stretch = self._stretches[at]
            stretch.left -= 1
            if not stretch.left:
                del self._firsts[at], self._stretches[at]
            elif stretch.left * FEW < len(stretch.positions):
                left = np.asarray(self._table.unresolved(stretch.positions))
                if len(left) == stretch.left:  # not while images of the same step are released
                    stretch.shrink(left)


class Packed(NamedTuple):
    """A message, and how long its tasks took to encode.

    Attributes:
        buffer: (capacity,) uint8.
        nbytes: length of the message.
        encodes_ns: time for pasting each task, and for shrinking images that had no cell yet.
    """

    buffer: np.ndarray
    nbytes: int
    encodes_ns: tuple[int, ...]


class Packer:
    """Packs the tasks that the core sends."""

    def __init__(
        self,
        table: Table,
        encoder: Encoder,
        session: int,
        clock: Callable[[], int],
        reading: Collection[int],
    ) -> None:
        """`session`: its number is in the messages; `reading`: ranks that read their images
        themselves and are sent places."""
        self.held = Held(table)
        self._table, self._encoder, self._session, self._clock = table, encoder, session, clock
        self._reading = frozenset(reading)

    def pack(
        self, rank: int, tasks: Sequence[Task], buffer_for: Callable[[int], np.ndarray]
    ) -> Packed:
        """Pack tasks of one kind into a message for the rank; collages are pasted here.

        `buffer_for` gives a (capacity,) uint8 buffer for a number of bytes.
        """
        items = [self._items(task) for task in tasks]
        no_time = (0,) * len(tasks)
        if rank in self._reading:
            places = b"".join([self._places(task.positions) for task in tasks])
            count = len(places) // PLACE.itemsize
            buffer = buffer_for(task_message_bytes(len(tasks), count, len(places)))
            return Packed(buffer, pack_tasks(buffer, self._session, tasks, items, places), no_time)
        if KIND[tasks[0].kind].encoded:
            return self._pasted(tasks, items, buffer_for)
        count = sum(len(task.positions) for task in tasks)
        arrays, as_files = [], False
        for task in tasks:
            for position in np.asarray(task.positions).tolist():
                images, at = self.held.find(position)
                if images.files is not None:
                    as_files = True
                    own = None if images.pixels is None else images.pixels[at]
                    arrays.append(pack_file(images.files[at], own))
                else:
                    assert images.pixels is not None  # otherwise the task names its place
                    arrays.append(images.pixels[at])
        nbytes = sum([array.nbytes for array in arrays])
        buffer = buffer_for(task_message_bytes(len(tasks), count, nbytes))
        nbytes = pack_tasks(buffer, self._session, tasks, items, arrays, as_files=as_files)
        return Packed(buffer, nbytes, no_time)

    def release(self, resolved: Resolved) -> None:
        """These images have their outcome: their pixels are not needed any more."""
        self.held.release(resolved.positions)

    def _items(self, task: Task) -> bytes:
        """The item records of a task: one for neighbours, otherwise one for each image."""
        positions = task.positions
        if isinstance(positions, range) and positions.step == 1 and task.cells is None:
            first = positions.start
            return _ITEM.pack(first, first % self._table.group_size, len(positions))
        records = np.empty(len(positions), ITEM)
        records["image"], records["images"] = positions, 1
        cells = task.cells
        records["cell"] = records["image"] % self._table.group_size if cells is None else cells
        return records.tobytes()

    def _places(self, positions: Positions) -> bytes:
        """The places of images, as they are sent."""
        parts = self._table.parts(positions)
        return b"".join([block.place_bytes[at].tobytes() for block, at, _ in parts])

    def _pasted(
        self,
        tasks: Sequence[Task],
        items: Sequence[bytes],
        buffer_for: Callable[[int], np.ndarray],
    ) -> Packed:
        """Pack collages, which are pasted directly into the message."""
        now_ns = self._clock()
        shape = self._encoder.input_shape
        each = math.prod(shape)
        count, following = sum(map(len, tasks)), len(tasks) * each
        buffer = buffer_for(task_message_bytes(len(tasks), count, following))
        at = pack_tasks(buffer, self._session, tasks, items, following=following)
        encodes_ns = []
        for task in tasks:
            positions = np.asarray(task.positions).tolist()
            size = self._table.group_size
            own = [p % size for p in positions] if task.cells is None else task.cells.tolist()
            pairs = zip(own, map(self._cell, positions), strict=True)
            paste_group(self._encoder, pairs, out=buffer[at : at + each].reshape(shape))
            at += each
            start_ns, now_ns = now_ns, self._clock()
            encodes_ns.append(now_ns - start_ns)
        return Packed(buffer, at, tuple(encodes_ns))

    def _cell(self, position: int) -> np.ndarray:
        """The image's cell, (h, w, C) uint8: from the reader, or shrunk now."""
        images, at = self.held.find(position)
        if images.cells is not None:
            cell: np.ndarray = images.cells[at]
            return cell
        assert images.pixels is not None
        return self._encoder.shrink(images.pixels[at])
