"""Reads the images of a job ahead in one background thread, with their cells if the job needs them.
Shrinking here costs rank 0's loop nothing.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from collage_mpi.shards.reader import ShardSet
from collage_mpi.shards.schema import ShardFault

WINDOW = 4
"""Batches asked of the shards at once, at most: in shuffled order a larger request, sorted,
goes through the file in fewer passes."""
MADE = 64  # records made of columns at a time: the loop that takes an image waits for them


@dataclass(slots=True)  # not frozen: that takes four times as long to make
class ImageRecord:
    """One image of the input, from its reading until no task needs it any more.

    The last three attributes are noted by the coordinator while the image is in flight.

    Attributes:
        index: global index in the `ShardSet`.
        shard, row: where the image is stored.
        pixels: (H, W, C) uint8, C-contiguous, or the bytes of another item; zeros if there is a
            `fault`; None if another rank reads the pixels.
        label: class number; None without labels or with a fault.
        fault: why the row cannot be used; None for a good row.
        cell: (cell_px, cell_px, C) uint8, the shrunk image; None if nobody asked for it.
        file: the stored file, in place of pixels, if another rank decodes it.
        t0_ns: when it was admitted, or was to arrive; its latency counts from then.
        read_ns: from the request for it until it was read.
        unread: whether its row is bad, according to a rank that could not read it; None as long
            as no rank has said so.
    """

    index: int
    shard: int
    row: int
    pixels: np.ndarray | None
    label: int | None
    fault: str | None = None
    cell: np.ndarray | None = None
    file: bytes | None = None
    t0_ns: int = 0
    read_ns: int = 0
    unread: bool | None = None


@dataclass(frozen=True, slots=True)
class Columns:
    """Images that other ranks read, as columns in the order of the job.

    Attributes:
        index, shard, row: (n,) int64, as of an `ImageRecord`.
        label: (n,) int64; None without labels.
    """

    index: np.ndarray
    shard: np.ndarray
    row: np.ndarray
    label: np.ndarray | None

    def __getitem__(self, some: slice) -> Columns:
        label = self.label
        own = None if label is None else label[some]
        return Columns(self.index[some], self.shard[some], self.row[some], own)

    def __len__(self) -> int:
        return len(self.index)

    def records(self) -> list[ImageRecord]:
        """A record of each."""
        known = [None] * len(self) if self.label is None else self.label.tolist()
        columns = (column.tolist() for column in (self.index, self.shard, self.row))
        each = zip(*columns, known, strict=True)
        return [ImageRecord(index, shard, row, None, label) for index, shard, row, label in each]


@dataclass(frozen=True)
class CellMaker:
    """How images become cells.

    Attributes:
        shrink: (n, H, W, C) uint8 -> (n, px, px, C) uint8.
        stored_px: size of the cells to read from the shards instead; None to shrink all.
    """

    shrink: Callable[[np.ndarray], np.ndarray]
    stored_px: int | None = None


@dataclass(frozen=True)
class ImageParts:
    """What is read of each image.

    Attributes:
        cells: how to make its cell; None for a job without collages.
        pixels: read pixels as well; otherwise only labels, as the shard has them, unchecked.
        files: keep encoded images as files if the files are smaller than the pixels.
    """

    cells: CellMaker | None = None
    pixels: bool = True
    files: bool = False


class ReadAhead:
    """Yields the images of `order`, reading up to `batch * ahead` of them in advance.

    If a shard can no longer be read, the rest of its images are left out, and `shards.lost` says
    why.

    Args:
        shards: the input; it stays open, and the caller closes it after this.
        order: (n,) global indices in the order they are wanted.
        batch: images read at a time.
        ahead: batches kept ready.
        parts: what is read of each image.
        growing: images may be added to `order` until `close`.
    """

    def __init__(
        self,
        shards: ShardSet,
        order: np.ndarray | Sequence[int],
        batch: int = 64,
        ahead: int = 4,
        parts: ImageParts = ImageParts(),
        growing: bool = False,
    ) -> None:
        if batch < 1 or ahead < 1:
            raise ValueError(f"batch {batch} and ahead {ahead} must be at least 1")
        self.cells_ns = 0  # time of the thread spent on cells, shrunk or read
        self._shards = shards
        self._parts = parts
        self._order = np.asarray(order, np.int64)  # of images that are not read yet
        self._remaining = len(self._order)
        self._growing = growing
        self._batch = batch
        self._room = batch * ahead
        # What was read at a time: records, or columns if other ranks read the pixels.
        self._stretches: deque[list[ImageRecord] | Columns] = deque()
        self._ready = 0  # images in them
        self._change = threading.Condition()
        self._failure: Exception | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="read-ahead", daemon=True)
        self._thread.start()

    @property
    def remaining(self) -> int:
        """Images not yet taken."""
        return self._remaining

    @property
    def ready(self) -> int:
        """Images that `take` would return now without waiting."""
        return self._ready

    @property
    def failed(self) -> bool:
        """Whether reading has ended with a failure, which `take` will raise."""
        return self._failure is not None

    def take(self, n: int) -> list[ImageRecord]:
        """The next images, at most `n`; [] at the end of the input.

        It waits only if no image is ready. A failure of the reader is raised here, after the images
        that were read before it.

        Raises:
            EnvironmentFault, DataFault: the shards can no longer be read.
            ValueError: after `close`.
        """
        records: list[ImageRecord] = []
        with self._change:
            self._wait_for_any()
            while self._ready and len(records) < n:
                first = self._stretches[0]
                if isinstance(first, Columns):
                    self._stretches[0] = first[:MADE].records()
                    if len(first) > MADE:
                        self._stretches.insert(1, first[MADE:])
                part = self._next(n - len(records))
                assert isinstance(part, list)
                records += part
            return records

    def take_columns(self, n: int) -> Columns:
        """As `take` if other ranks read the pixels: one image or more."""
        with self._change:
            self._wait_for_any()
            part = self._next(n)
            assert isinstance(part, Columns)
            return part

    def _wait_for_any(self) -> None:
        while not (self._ready or self._failure or self._closed or self.remaining == 0):
            self._change.wait()
        if self._closed:
            raise ValueError("this ReadAhead is closed")
        if self._failure and not self._ready:
            raise self._failure

    def _next(self, n: int) -> list[ImageRecord] | Columns:
        """At most `n` images of one stretch."""
        stretch = self._stretches.popleft()
        there = len(stretch)
        if there > n:
            self._stretches.appendleft(stretch[n:])
            stretch = stretch[:n]
        self._ready -= len(stretch)
        self._remaining -= len(stretch)
        self._change.notify_all()
        return stretch

    def add(self, order: np.ndarray) -> None:
        """Append (k,) global indices, which stay as they are, to the order."""
        with self._change:
            self._order = np.concatenate([self._order, order]) if len(self._order) else order
            self._remaining += len(order)
            self._change.notify_all()

    def close(self) -> None:
        """Stop the thread and wait for its end. It may be called twice."""
        with self._change:
            self._closed = True
            self._stretches.clear()
            self._ready = 0
            self._change.notify_all()
        self._thread.join()

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _work(self) -> None:
        try:
            while self._more():
                room = self._wait_for_room()
                if room == 0:
                    return
                chosen = self._order[:room]
                try:
                    stretch = self._read(chosen)
                except ShardFault as fault:
                    self._leave_out(fault.shard)
                    continue
                with self._change:
                    self._order = self._order[len(chosen) :]
                    if not self._closed:
                        self._stretches.append(stretch)
                        self._ready += len(chosen)
                    self._change.notify_all()
        except Exception as error:  # handed to the caller of take
            with self._change:
                self._failure = error
                self._change.notify_all()

    def _more(self) -> bool:
        """Whether there is an image to read; waits for one that may be added."""
        with self._change:
            while self._growing and not self._closed and not len(self._order):
                self._change.wait()
            return not self._closed and len(self._order) > 0

    def _leave_out(self, shard: int) -> None:
        first, end = self._shards.span(shard)
        with self._change:
            kept = self._order[(self._order < first) | (self._order >= end)]
            self._remaining -= len(self._order) - len(kept)
            self._order = kept
            self._change.notify_all()

    def _wait_for_room(self) -> int:
        """How many images to read now, in whole batches; 0 when closed."""
        with self._change:
            while not self._closed and self._room - self._ready < self._batch:
                self._change.wait()
            if self._closed:
                return 0
            if not self._ready:
                return self._batch  # somebody may be waiting: the smallest step
            batches = (self._room - self._ready) // self._batch
            return self._batch * min(WINDOW, batches)

    def _read(self, chosen: np.ndarray) -> list[ImageRecord] | Columns:
        if not self._parts.pixels:
            return self._named(chosen)
        if self._parts.files:
            return self._as_stored(chosen)
        return self._decoded(chosen)

    def _decoded(self, chosen: np.ndarray) -> list[ImageRecord]:
        pixels, labels, good = self._shards.read_checked(chosen)
        if pixels.dtype != np.uint8:
            pixels = pixels.view(np.uint8)  # from here to the network an item is its bytes
        maker = self._parts.cells
        cells = None if maker is None else self._make_cells(maker, chosen, pixels)
        records = []
        for place, index in enumerate(chosen.tolist()):
            shard, row = self._shards.locate(index)
            usable = bool(good[place])
            records.append(
                ImageRecord(
                    index=index,
                    shard=shard,
                    row=row,
                    pixels=pixels[place],
                    label=int(labels[place]) if usable and labels is not None else None,
                    fault=None if usable else self._shards.row_fault(index),
                    cell=None if cells is None else cells[place],
                )
            )
        return records

    def _named(self, chosen: np.ndarray) -> Columns:
        """Where the images lie, and their labels, without reading pixels."""
        labels = self._shards.labels_at(chosen)
        return Columns(chosen, *self._shards.locate_each(chosen), labels)

    def _as_stored(self, chosen: np.ndarray) -> list[ImageRecord]:
        """The images' checked files; pixels if these are smaller than the file."""
        files, labels = self._shards.read_files_checked(chosen)
        records = []
        for place, (index, data) in enumerate(zip(chosen.tolist(), files, strict=True)):
            if data is not None and len(data) > math.prod(self._shards.shape):
                records += self._decoded(chosen[place : place + 1])
                continue
            label = int(labels[place]) if data is not None and labels is not None else None
            fault = self._shards.row_fault(index) if data is None else None
            where = self._shards.locate(index)
            records.append(ImageRecord(index, *where, None, label, fault, file=data))
        return records

    def _make_cells(self, maker: CellMaker, chosen: np.ndarray, pixels: np.ndarray) -> np.ndarray:
        """(n, cell_px, cell_px, C) uint8; a damaged stored cell is made again."""
        start_ns = time.monotonic_ns()
        if maker.stored_px is None:
            cells = maker.shrink(pixels)
        else:
            cells, good = self._shards.read_cells(chosen, maker.stored_px)
            if not good.all():
                cells[~good] = maker.shrink(pixels[~good])
        self.cells_ns += time.monotonic_ns() - start_ns
        return cells
