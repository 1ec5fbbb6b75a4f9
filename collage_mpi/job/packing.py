"""Packs tasks into messages: with the pixels of their images, or with the places where workers read
them. Rank 0 holds pixels only from an image's arrival to its outcome."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from collage_mpi.core.events import Released, Resolved
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
    """Images that came together, and where among them each unresolved one is, by position."""

    def __init__(self, images: Images, places: dict[int, int]) -> None:
        self.images, self.places, self.size = images, places, len(places)

    def shrink(self) -> None:
        """Hold no more than the unresolved images, in arrays of their own."""
        own, at = self.images, list(self.places.values())
        self.images = Images(
            own.position[at],
            own.index[at],
            own.placed[at],
            None if own.pixels is None else own.pixels[at],
            None if own.cells is None else own.cells[at],
            None if own.files is None else [own.files[place] for place in at],
        )
        self.size = len(at)
        self.places = dict(zip(self.places, range(self.size), strict=True))


class Held:
    """Pixels, cells and files of the images that have no outcome yet, or are compared."""

    def __init__(self) -> None:
        self._stretches: dict[int, _Stretch] = {}  # by position

    def add(self, first: int, images: Images) -> None:
        """Images came at the positions from `first` on."""
        places = {first + place: place for place in range(len(images))}
        self._stretches.update(dict.fromkeys(places, _Stretch(images, places)))

    def find(self, position: int) -> tuple[Images, int]:
        """The images that came with this one, and its place among them."""
        stretch = self._stretches[position]
        return stretch.images, stretch.places[position]

    def release(self, action: Resolved | Released) -> None:
        """These images have their outcome: the pixels of most are not needed any more."""
        kept = set(action.held.tolist() if isinstance(action, Resolved) else ())
        for position in action.positions.tolist() if self._stretches else ():
            if position in kept:
                continue
            stretch = self._stretches.pop(position)
            del stretch.places[position]
            if 0 < len(stretch.places) * FEW < stretch.size:
                stretch.shrink()


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
        self.held = Held()
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
            of = self._table.place_bytes
            places = b"".join([of[task.slots].tobytes() for task in tasks])
            count = len(places) // PLACE.itemsize
            buffer = buffer_for(task_message_bytes(len(tasks), count, len(places)))
            return Packed(buffer, pack_tasks(buffer, self._session, tasks, items, places), no_time)
        if KIND[tasks[0].kind].encoded:
            return self._pasted(tasks, items, buffer_for)
        count = sum(len(task.positions) for task in tasks)
        arrays, as_files = [], False
        for task in tasks:
            for position in task.positions.tolist():
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

    def _items(self, task: Task) -> bytes:
        """The item records of a task: one for neighbours, otherwise one for each image."""
        positions, count = task.positions, len(task.positions)
        first = int(positions[0])
        if task.cells is None and int(positions[-1]) - first == count - 1:
            return _ITEM.pack(first, first % self._table.group_size, count)
        records = np.empty(count, ITEM)
        records["image"], records["images"] = positions, 1
        records["cell"] = self._cells(task)
        return records.tobytes()

    def _cells(self, task: Task) -> np.ndarray:
        return task.positions % self._table.group_size if task.cells is None else task.cells

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
            cells = map(self._cell, task.positions.tolist())
            pairs = zip(self._cells(task).tolist(), cells, strict=True)
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
