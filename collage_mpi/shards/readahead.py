"""Reads the images of a job ahead in a background thread. The thread also makes their cells, so
that this takes no time of rank 0's loop.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from collage_mpi.errors import ShardFault
from collage_mpi.shards.order import BLOCK, Order, Range

if TYPE_CHECKING:
    from collage_mpi.shards.reader import ShardSet

WINDOW = 4
"""The most batches that are read at once. In shuffled order, a larger request goes through the file
in fewer passes, because it is sorted."""
AHEAD_BYTES = 256 << 20  # of pixels that are kept ready; at least one image a batch
MADE = 64  # records that are made from columns at a time, while the loop waits


@dataclass(slots=True)  # not frozen, because frozen ones take four times as long to create
class ImageRecord:
    """One image of the input, from its reading until no task needs it.

    The coordinator sets the last three attributes while the image is in the job.

    Attributes:
        index: global index in the `ShardSet`.
        shard, row: shard number, and row in the shard.
        pixels: (H, W, C) uint8, C-contiguous, or the bytes of another item; zeros if there is a
            `fault`; None if another rank reads or decodes the image.
        label: class number; None if there are no labels, or a fault.
        fault: why the row cannot be used; None if it can.
        cell: (cell_px, cell_px, C) uint8, the shrunk image; None if cells are not needed.
        file: the bytes of the encoded picture, if another rank decodes it.
        t0_ns: when the image was admitted, or was due to arrive; its latency counts from then.
        read_ns: time from the request for the image until it was read.
        unread: set if a rank could not read the row: whether the row is bad. None otherwise.
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
    """Images that other ranks read, as columns, in the order of the job.

    Attributes:
        index, shard, row: (n,) int64; see `ImageRecord`.
        label: (n,) int64; None if there are no labels.
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
        """A record for each image."""
        known = [None] * len(self) if self.label is None else self.label.tolist()
        columns = (column.tolist() for column in (self.index, self.shard, self.row))
        each = zip(*columns, known, strict=True)
        return [ImageRecord(index, shard, row, None, label) for index, shard, row, label in each]


@dataclass(frozen=True)
class ImageParts:
    """The parts of each image that are read.

    Attributes:
        shrink: (n, H, W, C) uint8 -> (n, px, px, C) uint8, makes cells; None for a job without
            collages.
        pixels: read pixels. If False, only the labels are read, and rows are not checked.
        files: keep an encoded image as a file, unless the file is larger than the pixels.
    """

    shrink: Callable[[np.ndarray], np.ndarray] | None = None
    pixels: bool = True
    files: bool = False


class ReadAhead:
    """Reads images of `order` in a thread, up to `batch * ahead` in advance, and at most
    AHEAD_BYTES of pixels.

    If a shard can no longer be read, its remaining images are left out, and `shards.lost` says why.

    Args:
        shards: the input. The caller closes it, after this object.
        order: the order of a run, or (n,) global indices. `take` returns the images of all
            positions, or if `growing` of the added ones.
        batch: images read at a time.
        ahead: batches kept ready.
        parts: the parts of each image to read.
        growing: begin without images; positions are added by `add` until `close`.
    """

    def __init__(
        self,
        shards: ShardSet,
        order: Order | np.ndarray | Sequence[int],
        batch: int = 64,
        ahead: int = 4,
        parts: ImageParts = ImageParts(),
        growing: bool = False,
    ) -> None:
        if batch < 1 or ahead < 1:
            raise ValueError(f"batch {batch} and ahead {ahead} must be at least 1")
        self.cells_ns = 0  # time that the thread spent on making cells
        self._shards = shards
        self._parts = parts
        self._order = order if isinstance(order, Order) else Order.of_list(order)
        self._ranges: deque[Range] = deque()  # positions whose images are not asked for yet
        self._next_read = np.empty(
            0, np.int64
        )  # images of the positions before these, not read yet
        self._left_out: list[Range] = []  # images of shards that can no longer be read
        self._remaining = 0
        self._growing = growing
        if not growing:
            self._ranges.append((0, len(order)))
            self._remaining = len(order)
        if parts.pixels:
            item_bytes = math.prod(shards.shape) * np.dtype(shards.dtype).itemsize
            batch = max(1, min(batch, AHEAD_BYTES // (ahead * max(1, item_bytes))))
        self._batch = batch
        self._room = batch * ahead
        # Each holds the images of one read: records, or columns if other ranks read the pixels.
        self._stretches: deque[list[ImageRecord] | Columns] = deque()
        self._ready = 0  # images in them
        self._change = threading.Condition()
        self._failure: Exception | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="read-ahead", daemon=True)
        self._thread.start()

    @property
    def remaining(self) -> int:
        """The number of images that are not taken yet."""
        return self._remaining

    @property
    def ready(self) -> int:
        """The number of images that can be taken now without waiting."""
        return self._ready

    @property
    def sends_files(self) -> bool:
        """Whether encoded images are kept as files, so that other ranks decode them."""
        return self._parts.files

    @property
    def failed(self) -> bool:
        """Whether reading has ended with an error, which `take` will raise."""
        return self._failure is not None

    def take(self, n: int) -> list[ImageRecord]:
        """The next images, at most `n`; [] at the end of the input. Waits only if none is ready.

        Raises:
            EnvironmentFault, DataFault: the shards can no longer be read. Images that were read
                before are returned first.
            ValueError: this object is closed.
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
        """Like `take`, if other ranks read the pixels. It returns at least one image."""
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
        """Takes at most `n` images, all from one read."""
        stretch = self._stretches.popleft()
        there = len(stretch)
        if there > n:
            self._stretches.appendleft(stretch[n:])
            stretch = stretch[:n]
        self._ready -= len(stretch)
        self._remaining -= len(stretch)
        self._change.notify_all()
        return stretch

    def add(self, ranges: Sequence[Range]) -> None:
        """Read the images at these positions, too, after those before."""
        with self._change:
            self._ranges.extend(ranges)
            self._remaining += sum(stop - start for start, stop in ranges)
            self._change.notify_all()

    def close(self) -> None:
        """Stop the thread and wait for its end. A second call does nothing."""
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
                chosen = self._chosen(room)
                if not len(chosen):
                    continue
                try:
                    stretch = self._read(chosen)
                except ShardFault as fault:
                    self._leave_out(fault.shard)
                    continue
                self._next_read = self._next_read[len(chosen) :]
                with self._change:
                    if not self._closed:
                        self._stretches.append(stretch)
                        self._ready += len(chosen)
                    self._change.notify_all()
        except Exception as error:  # handed to the caller of take
            with self._change:
                self._failure = error
                self._change.notify_all()

    def _more(self) -> bool:
        """Whether there is an image to read. If `growing`, waits until there is one, or `close`."""
        with self._change:
            while self._growing and not self._closed and not (self._ranges or self._next_read.size):
                self._change.wait()
            return not self._closed and bool(self._ranges or self._next_read.size)

    def _chosen(self, n: int) -> np.ndarray:
        """The global indices of the images to read next, at most `n`; none if they are left out."""
        if len(self._next_read) < n:
            more = self._readable(self._order.indices(self._positions(max(n, BLOCK))))
            self._next_read = np.concatenate([self._next_read, more])
        return self._next_read[:n]

    def _positions(self, n: int) -> np.ndarray:
        """Takes the first `n` positions, or all if there are fewer, from the ranges."""
        found = [np.empty(0, np.int64)]
        with self._change:
            while n and self._ranges:
                start, stop = self._ranges.popleft()
                cut = min(stop, start + n)
                if cut < stop:
                    self._ranges.appendleft((cut, stop))
                found.append(np.arange(start, cut))
                n -= cut - start
        return np.concatenate(found)

    def _leave_out(self, shard: int) -> None:
        self._left_out.append(self._shards.span(shard))
        self._next_read = self._readable(self._next_read)

    def _readable(self, indices: np.ndarray) -> np.ndarray:
        """The images among these, (k,) int64, that are not left out; the others count no more."""
        kept = indices
        for first, end in self._left_out:
            kept = kept[(kept < first) | (kept >= end)]
        with self._change:
            self._remaining -= len(indices) - len(kept)
            self._change.notify_all()
        return kept

    def _wait_for_room(self) -> int:
        """Waits for room. Returns how many images to read, in whole batches; 0 if closed."""
        with self._change:
            while not self._closed and self._room - self._ready < self._batch:
                self._change.wait()
            if self._closed:
                return 0
            if not self._ready:
                return self._batch  # a caller may be waiting, so read as little as possible
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
            pixels = pixels.view(np.uint8)  # items travel as bytes until the network gets them
        start_ns, shrink = time.monotonic_ns(), self._parts.shrink
        cells = None if shrink is None else shrink(pixels)
        self.cells_ns += time.monotonic_ns() - start_ns
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
        """The rows of the images and their labels, without pixels."""
        labels = self._shards.labels_at(chosen)
        return Columns(chosen, *self._shards.locate_each(chosen), labels)

    def _as_stored(self, chosen: np.ndarray) -> list[ImageRecord]:
        """The encoded files of the images; pixels instead if they are smaller than the file."""
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
