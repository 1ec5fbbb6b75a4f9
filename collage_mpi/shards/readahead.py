"""Reads the images of a job ahead in a background thread. The thread also makes their cells, so
that this takes no time of rank 0's loop.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from collage_mpi.errors import ShardFault
from collage_mpi.rows import PLACED
from collage_mpi.shards.order import BLOCK, Order, Range

if TYPE_CHECKING:
    from collage_mpi.shards.reader import ShardSet

WINDOW = 4
"""The most batches that are read at once. In shuffled order, a larger request goes through the file
in fewer passes, because it is sorted."""
AHEAD_BYTES = 256 << 20  # of pixels that are kept ready; at least one image a batch


@dataclass(frozen=True, slots=True)
class Images:
    """Images that were read together, as columns, in the order of the job.

    Attributes:
        position: (n,) int64, in the order of the run.
        index: (n,) int64, global indices in the `ShardSet`.
        placed: (n,) of PLACED: shard, row and label. An image with a fault has no label.
        pixels: (n, H, W, C) uint8, or the bytes of other items, with zeros where there is a fault;
            None if other ranks read or decode the images.
        cells: (n, cell_px, cell_px, C) uint8, the shrunk images; None if they are not needed.
        files: the bytes of each encoded picture, if other ranks decode them; None for an image with
            a fault, and for one whose pixels are smaller and are here instead.
        faults: place of an image -> why its row cannot be used.
    """

    position: np.ndarray
    index: np.ndarray
    placed: np.ndarray
    pixels: np.ndarray | None = None
    cells: np.ndarray | None = None
    files: Sequence[bytes | None] | None = None
    faults: Mapping[int, str] = field(default_factory=dict)

    def __getitem__(self, some: slice) -> Images:
        start, stop, _ = some.indices(len(self))
        return Images(
            self.position[some],
            self.index[some],
            self.placed[some],
            None if self.pixels is None else self.pixels[some],
            None if self.cells is None else self.cells[some],
            None if self.files is None else self.files[some],
            {at - start: why for at, why in self.faults.items() if start <= at < stop},
        )

    def __len__(self) -> int:
        return len(self.index)


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
        shrink: (n, H, W, C) uint8 -> (n, px, px, C) uint8, makes cells; None for a job without
            collages.
        pixels: read pixels. If False, only the labels are read, and rows are not checked.
        files: keep an encoded image as a file, unless the file is larger than the pixels.
        growing: begin without images; positions are added by `add` until `close`.
        first: position in the run of the first image of `order`.

    Attributes:
        files: as above.
        remaining: number of images that are not taken yet.
        ready: number of images that can be taken now without waiting.
        cells_ns: time that the thread spent on making cells.
    """

    def __init__(
        self,
        shards: ShardSet,
        order: Order | np.ndarray | Sequence[int],
        batch: int = 64,
        ahead: int = 4,
        *,
        shrink: Callable[[np.ndarray], np.ndarray] | None = None,
        pixels: bool = True,
        files: bool = False,
        growing: bool = False,
        first: int = 0,
    ) -> None:
        if batch < 1 or ahead < 1:
            raise ValueError(f"batch {batch} and ahead {ahead} must be at least 1")
        self.cells_ns = 0
        self.files = files
        self._shrink, self._pixels = shrink, pixels
        self._shards = shards
        self._order = order if isinstance(order, Order) else Order.of_list(order)
        self._ranges: deque[Range] = deque()  # positions whose images are not asked for yet
        self._next_read = np.empty((2, 0), np.int64)  # positions, indices
        self._left_out: list[Range] = []  # images of shards that can no longer be read
        self.remaining = 0
        self._growing, self._first = growing, first
        if not growing:
            self._ranges.append((0, len(order)))
            self.remaining = len(order)
        if pixels:
            item_bytes = math.prod(shards.shape) * np.dtype(shards.dtype).itemsize
            batch = max(1, min(batch, AHEAD_BYTES // (ahead * max(1, item_bytes))))
        self._batch = batch
        self._room = batch * ahead
        # Each holds the images of one read.
        self._stretches: deque[Images] = deque()
        self.ready = 0  # images in them
        self._change = threading.Condition()
        self._failure: Exception | None = None
        self._closed = False
        self._thread = threading.Thread(target=self._work, name="read-ahead", daemon=True)
        self._thread.start()

    @property
    def failed(self) -> bool:
        """Whether reading has ended with an error, which `take` will raise."""
        return self._failure is not None

    def take(self, n: int) -> Images:
        """The next images, at most `n`, all from one read; none at the end of the input. Waits only
        if none is ready.

        Raises:
            EnvironmentFault, DataFault: the shards can no longer be read. Images that were read
                before are returned first.
            ValueError: this object is closed.
        """
        with self._change:
            while not (self.ready or self._failure or self._closed or self.remaining == 0):
                self._change.wait()
            if self._closed:
                raise ValueError("this ReadAhead is closed")
            if self._failure and not self.ready:
                raise self._failure
            if not self._stretches:
                none = np.empty(0, np.int64)
                return Images(none, none, np.empty(0, PLACED))
            stretch = self._stretches.popleft()
            if len(stretch) > n:
                self._stretches.appendleft(stretch[n:])
                stretch = stretch[:n]
            self.ready -= len(stretch)
            self.remaining -= len(stretch)
            self._change.notify_all()
            return stretch

    def add(self, ranges: Sequence[Range]) -> None:
        """Read the images at these positions, too, after those before."""
        with self._change:
            self._ranges.extend(ranges)
            self.remaining += sum(stop - start for start, stop in ranges)
            self._change.notify_all()

    def close(self) -> None:
        """Stop the thread and wait for its end. A second call does nothing."""
        with self._change:
            self._closed = True
            self._stretches.clear()
            self.ready = 0
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
                chosen = self._chosen(room)  # (2, n) int64
                count = chosen.shape[1]
                if not count:
                    continue
                try:
                    stretch = self._read(*chosen)
                except ShardFault as fault:
                    self._leave_out(fault.shard)
                    continue
                self._next_read = self._next_read[:, count:]
                with self._change:
                    if not self._closed:
                        self._stretches.append(stretch)
                        self.ready += count
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
        """Positions and global indices of the images to read next, (2, k) int64, at most `n`; none
        if they are left out."""
        if self._next_read.shape[1] < n:
            positions = self._positions(max(n, BLOCK))
            more = self._readable(np.stack([positions, self._order.indices(positions)]))
            self._next_read = np.concatenate([self._next_read, more], axis=1)
        return self._next_read[:, :n]

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

    def _readable(self, images: np.ndarray) -> np.ndarray:
        """The images among these, (2, k) int64, that are not left out; the others count no more."""
        kept = images
        for first, end in self._left_out:
            kept = kept[:, (kept[1] < first) | (kept[1] >= end)]
        with self._change:
            self.remaining -= images.shape[1] - kept.shape[1]
            self._change.notify_all()
        return kept

    def _wait_for_room(self) -> int:
        """Waits for room. Returns how many images to read, in whole batches; 0 if closed."""
        with self._change:
            while not self._closed and self._room - self.ready < self._batch:
                self._change.wait()
            if self._closed:
                return 0
            if not self.ready:
                return self._batch  # a caller may be waiting, so read as little as possible
            batches = (self._room - self.ready) // self._batch
            return self._batch * min(WINDOW, batches)

    def _read(self, positions: np.ndarray, chosen: np.ndarray) -> Images:
        pixels = cells = files = None
        good = np.ones(len(chosen), bool)
        if not self._pixels:
            labels = self._shards.labels_at(chosen)
        elif self.files:
            files, pixels, labels, good = self._as_stored(chosen)
        else:
            pixels, labels, good = self._shards.read_checked(chosen)
            if pixels.dtype != np.uint8:
                pixels = pixels.view(np.uint8)  # items travel as bytes until the network gets them
            start_ns, shrink = time.monotonic_ns(), self._shrink
            cells = None if shrink is None else shrink(pixels)
            self.cells_ns += time.monotonic_ns() - start_ns
        placed = np.zeros(len(chosen), PLACED)
        placed["position"] = positions + self._first
        placed["shard"], placed["row"] = self._shards.locate_each(chosen)
        if labels is not None:
            placed["has_label"], placed["label"] = good, np.where(good, labels, 0)
        bad = np.flatnonzero(~good).tolist()
        faults = {place: self._shards.row_fault(int(chosen[place])) for place in bad}
        return Images(positions, chosen, placed, pixels, cells, files, faults)

    def _as_stored(
        self, chosen: np.ndarray
    ) -> tuple[list[bytes | None], np.ndarray | None, np.ndarray | None, np.ndarray]:
        """The encoded files of images, their pixels where these are smaller than the file, their
        labels, and (n,) bool, which images can be used."""
        files, labels = self._shards.read_files_checked(chosen)
        good = np.array([data is not None for data in files])
        most = math.prod(self._shards.shape)
        large = np.array([data is not None and len(data) > most for data in files])
        pixels = None
        if large.any():
            decoded, _, good[large] = self._shards.read_checked(chosen[large])
            pixels = np.zeros((len(chosen), *self._shards.shape), np.uint8)
            pixels[large] = decoded
            files = [None if big else data for big, data in zip(large, files, strict=True)]
        return files, pixels, labels, good
