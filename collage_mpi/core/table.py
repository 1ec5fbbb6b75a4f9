"""The images in flight: columns over blocks of positions. They become the rows of the run.

A block holds one record for each of BLOCK positions, and one byte of state. Resolving an image is
an assignment to its record. Resolved images are taken out as rows. A block with few images left is
shrunk to them, so that a late image holds no memory but its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from collage_mpi.core.events import Positions
from collage_mpi.core.states import DONE, OPEN
from collage_mpi.rows import CELL, IMAGE_ROW, PLACED, SOURCE_CODE, reason_bytes

BLOCK = 4096
SPARSE = 16  # a block is shrunk when fewer than one in SPARSE of its images are left

PLAIN = bytes([OPEN]) * BLOCK  # of states

# What is said of an image by the task whose answer counts or is kept, and by rank 0.
SAID = np.dtype(
    [
        *((name, IMAGE_ROW[name]) for name in ("source", "rank", "attempt", "encode_ns")),
        *((name, IMAGE_ROW[name]) for name in ("decode_ns", "compute_ns", "runtime")),
        ("said_read_ns", "<i8"),
        ("done_ns", "<i8"),
    ]
)
RECORD = np.dtype(
    [
        ("placed", PLACED),
        ("t0_ns", "<i8"),
        ("read_ns", "<i8"),
        ("said", SAID),
        ("cell", CELL),
        *((name, IMAGE_ROW[name]) for name in ("audited", "other", "other_score")),
        ("main", "<i8"),  # its last task of the exact network; -1 if there was none
        ("first", "<i8"),  # its last task of another kind
        ("kept", "<i8"),  # the task whose answer is kept
        ("cover", "<u1"),  # tasks that wait, or are out on ranks that are heard
        ("sends", "<u1"),  # tasks of the main kind that were made
    ]
)
At = slice | np.ndarray  # where images lie in a block
# Columns as bytes: numpy copies these as a whole, and other records field by field, in 5 to 9 times
# as long.
SAID_BYTES, CELL_BYTES = np.dtype(f"V{SAID.itemsize}"), np.dtype(f"V{CELL.itemsize}")
PLACE_BYTES = np.dtype(f"V{PLACED['shard'].itemsize + PLACED['row'].itemsize}")


class Part(NamedTuple):
    """Images of one block: where they lie there, and which items of the positions asked for."""

    block: Block
    at: At
    items: At


class Block:
    """The images of BLOCK positions, or those of them that are left (`index`: their positions)."""

    def __init__(self, start: int, records: np.ndarray, state: bytearray) -> None:
        self.start = start
        self.index: np.ndarray | None = None
        self.open = self.done = 0  # unresolved images; resolved ones that are not taken yet
        self._hold(records, state)

    def _hold(self, records: np.ndarray, state: bytearray) -> None:
        self.records, self.state = records, state
        self.states = np.frombuffer(state, np.uint8)
        self.said_bytes = records["said"].view(SAID_BYTES)
        self.cell_bytes = records["cell"].view(CELL_BYTES)
        placed_at = RECORD.fields["placed"][1]  # type: ignore[index]
        self.place_bytes: np.ndarray = np.ndarray(
            len(records), PLACE_BYTES, records.data, placed_at, records.strides
        )
        self.main, self.first, self.kept = records["main"], records["first"], records["kept"]
        self.cover, self.sends = records["cover"], records["sends"]

    def shrink(self) -> None:
        """Keep only the unresolved images."""
        left = np.flatnonzero(self.states & OPEN)
        positions = left + self.start if self.index is None else self.index[left]
        self.index = positions
        self._hold(self.records[left], bytearray(self.states[left].tobytes()))

    def positions(self, at: np.ndarray) -> np.ndarray:
        """The positions of images, (n,) int64."""
        return at + self.start if self.index is None else self.index[at]

    def part(self, positions: Positions, first: int) -> Part | None:
        """Those of the positions, all within the block, that it holds; `first` item of them."""
        count = len(positions)
        items = slice(first, first + count)
        if self.index is None:
            if isinstance(positions, range) and positions.step == 1:
                start = positions.start - self.start
                return Part(self, slice(start, start + count), items)
            return Part(self, np.asarray(positions) - self.start, items)
        asked = np.asarray(positions)
        at = np.minimum(np.searchsorted(self.index, asked), len(self.index) - 1)
        there = self.index[at] == asked
        return Part(self, at[there], first + np.flatnonzero(there)) if there.any() else None


def picked(positions: Positions, items: At) -> np.ndarray:
    """Some of the positions, (n,) int64."""
    if isinstance(positions, range):
        positions = np.arange(positions.start, positions.stop, positions.step)
    return positions[items]


class Table:
    """All images from their arrival until their rows are taken."""

    def __init__(self, group_size: int, start_ns: int, session: int, warm_groups: int) -> None:
        """`start_ns`: the time 0 of the rows; groups up to number `warm_groups` are a warm-up."""
        self.blocks: dict[int, Block] = {}
        self.reasons: dict[int, str] = {}  # of error rows that are not taken
        self._vectors: list[tuple[Positions, np.ndarray]] = []  # of resolved images
        self.vector_bytes = 0  # of these vectors
        self.done = 0  # resolved images that are not taken
        self.warm_groups = warm_groups
        self.group_size, self.start_ns, self.session = group_size, start_ns, session
        self.end = 0

    def warm_up_from(self, group: int) -> None:
        """The number of the session's first group, from which warm-up groups are counted."""
        self.warm_groups += group

    def add(self, first: int, count: int) -> Sequence[Part]:
        """Make room for images at positions that follow all earlier ones."""
        self.end = first + count
        for number in range(first // BLOCK, (first + count - 1) // BLOCK + 1):
            if number not in self.blocks:
                records = np.zeros(BLOCK, RECORD)
                self.blocks[number] = Block(number * BLOCK, records, bytearray(BLOCK))
        return self.parts(range(first, first + count))

    def parts(self, positions: Positions) -> Sequence[Part]:
        """The images at these positions by block, without those whose rows were taken."""
        if not len(positions):
            return ()
        low, high = int(positions[0]) // BLOCK, int(positions[-1]) // BLOCK
        if low == high:
            block = self.blocks.get(low)
            part = None if block is None else block.part(positions, 0)
            return () if part is None else (part,)
        found = []
        if not isinstance(positions, range) or positions.step != 1:
            positions = np.asarray(positions)
        start = 0
        while start < len(positions):
            number = int(positions[start]) // BLOCK
            stop = (number + 1) * BLOCK
            if isinstance(positions, range):
                end = min(len(positions), stop - positions.start)
            else:
                end = int(np.searchsorted(positions, stop))
            block = self.blocks.get(number)
            part = None if block is None else block.part(positions[start:end], start)
            if part is not None:
                found.append(part)
            start = end
        return found

    def find(self, position: int) -> tuple[Block, int]:
        """Where the image is; KeyError if its row was taken."""
        block = self.blocks[position // BLOCK]
        if block.index is None:
            return block, position - block.start
        at = int(np.searchsorted(block.index, position))
        if at == len(block.index) or block.index[at] != position:
            raise KeyError(position)
        return block, at

    def state(self, position: int) -> int:
        """The state of the image; not OPEN if its row was taken."""
        try:
            block, at = self.find(position)
        except KeyError:
            return DONE
        return block.state[at]

    def unresolved(self, positions: Positions) -> Positions:
        """Those of the positions whose images are unresolved, the same object if all are."""
        if self.plain(positions) is not None:
            return positions
        found, count = [], 0
        for block, at, items in self.parts(positions):
            is_open = (block.states[at] & OPEN) != 0
            own = picked(positions, items)[is_open]
            found.append(own)
            count += len(own)
        if count == len(positions):
            return positions
        if len(found) == 1:
            return found[0]
        return np.concatenate(found) if found else range(0)

    def plain(self, positions: Positions) -> Part | None:
        """The images if they are neighbours in a block, unresolved, and nothing happened to
        them."""
        if not isinstance(positions, range) or positions.step != 1 or not positions:
            return None
        first, stop = positions.start, positions.stop
        block = self.blocks.get(first // BLOCK)
        if block is None or block.index is not None:
            return None
        start, count = first - block.start, stop - first
        at = slice(start, start + count)
        if start + count > BLOCK or block.state[at] != PLAIN[:count]:
            return None
        return Part(block, at, slice(0, count))

    def all_unresolved(self) -> np.ndarray:
        """The positions of all unresolved images, (n,) int64, ascending."""
        found = [
            block.positions(np.flatnonzero(block.states & OPEN))
            for _, block in sorted(self.blocks.items())
            if block.open
        ]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def resolved(self, block: Block, count: int) -> None:
        """Note that so many images of the block have become DONE."""
        block.open -= count
        block.done += count
        self.done += count

    def keep(self, positions: Positions, vectors: np.ndarray) -> None:
        """Hold the vectors, (n, floats) float32, of resolved images until their rows are taken."""
        self._vectors.append((positions, vectors))
        self.vector_bytes += vectors.nbytes

    def take(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Take out what is resolved.

        Returns:
            (n,) of IMAGE_ROW by position, and the vectors that were kept of the answered images,
            (floats,) float32 each.
        """
        taken, where = [], []
        for number, block in sorted(self.blocks.items()):
            if block.done:
                at = np.flatnonzero(block.states & DONE)
                where.append(block.positions(at))
                taken.append(block.records[at])
                block.states[at] = 0
                block.done = 0
            over = (number + 1) * BLOCK <= self.end
            if over and not block.open:
                del self.blocks[number]
            elif over and block.open * SPARSE < len(block.state):
                block.shrink()
        self.done = 0
        if not taken:
            return np.empty(0, IMAGE_ROW), []
        positions = np.concatenate(where)
        return self._rows(np.concatenate(taken), positions), self._taken_vectors()

    def _rows(self, records: np.ndarray, positions: np.ndarray) -> np.ndarray:
        rows, said, cells = np.zeros(len(records), IMAGE_ROW), records["said"], records["cell"]
        for name in PLACED.names or ():
            rows[name] = records["placed"][name]
        for name in (
            "source",
            "rank",
            "attempt",
            "encode_ns",
            "decode_ns",
            "compute_ns",
            "runtime",
        ):
            rows[name] = said[name]
        for name in ("audited", "other", "other_score"):
            rows[name] = records[name]
        rows["group"], rows["cell"] = np.divmod(positions, self.group_size)
        rows["warmup"] = rows["group"] < self.warm_groups
        rows["answered"] = said["source"] != SOURCE_CODE["error"]
        rows["predicted"], rows["score"] = cells["label"], cells["score"]
        rows["t0_ns"] = records["t0_ns"] - self.start_ns
        rows["latency_ns"] = said["done_ns"] - records["t0_ns"]
        rows["read_ns"] = records["read_ns"] + said["said_read_ns"]
        rows["session"] = self.session
        for at in np.flatnonzero(~rows["answered"]).tolist():
            rows["reason"][at] = reason_bytes(self.reasons.pop(int(positions[at]), ""))
        return rows

    def _taken_vectors(self) -> list[np.ndarray]:
        found: dict[int, np.ndarray] = {}  # each as long as the longest of its own answer
        for positions, vectors in self._vectors:
            found.update(zip(np.asarray(positions).tolist(), vectors, strict=True))
        self._vectors, self.vector_bytes = [], 0
        return [found[position] for position in sorted(found)]
