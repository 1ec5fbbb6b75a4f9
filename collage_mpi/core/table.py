"""The images in flight: columns by slot. They become the rows of the run.

An image holds a slot from its arrival until its row is taken and nothing refers to it any more.
Resolving images is an assignment to their slots. All that is said of images elsewhere, be it one
or many, is an array of slots.
"""

from __future__ import annotations

import numpy as np

from collage_mpi.core.states import AWAITED, DONE, DRAWN, KEPT, OPEN
from collage_mpi.rows import CELL, IMAGE_ROW, MEASURED, OTHERS, PLACED, SOURCE_CODE, reason_bytes

ROOM = 1024  # slots at first

# What is said of an image by the task whose answer counts or is kept, and by rank 0.
_SAID = ("source", "rank", "attempt", "encode_ns", "decode_ns")
# `inputs`: of the batch in which it was answered; 0 if that is not known.
_MORE = (("done_ns", "<i8"), ("inputs", "<u4"))
_OTHER = ("audited", "stages", *(name for pair in OTHERS for name in pair))
BY_RANK_0 = np.dtype([*((name, IMAGE_ROW[name]) for name in _SAID), *_MORE])
SAID = np.dtype([*BY_RANK_0.descr, *MEASURED.descr])
RECORD = np.dtype(
    [
        ("placed", PLACED),
        ("t0_ns", "<i8"),
        ("read_ns", "<i8"),
        ("said", SAID),
        ("cell", CELL),
        *((name, IMAGE_ROW[name]) for name in _OTHER),
    ]
)
COLUMNS = {
    "records": RECORD,
    "position": np.dtype("<i8"),
    "state": np.dtype("u1"),
    "holds": np.dtype("<i8"),  # work that waits for it, tasks that are out, its open group
    "deaf": np.dtype("<i8"),  # of these, tasks on silent ranks
    "sends": np.dtype("<i8"),  # tasks of the main kind that were made
    "failures": np.dtype("<i8"),  # of these, those that failed, were lost or gave no answer
    "losses": np.dtype("<i8"),  # of these, those that were lost with their rank
    "last": np.dtype("<i8"),  # a task of it that is out, if one is
    "kept": np.dtype("<i8"),  # the task whose answer is kept
    "encode_ns": np.dtype("<i8"),  # for the collages of its group
}
# Fields as bytes: numpy copies these as a whole, and other records field by field, in 5 to 9 times
# as long.
SAID_BYTES, CELL_BYTES, PLACED_BYTES, RECORD_BYTES = (
    np.dtype(f"V{dtype.itemsize}") for dtype in (SAID, CELL, PLACED, RECORD)
)
PLACE_BYTES = np.dtype(f"V{PLACED['shard'].itemsize + PLACED['row'].itemsize}")


class Table:
    """All images from their arrival until their rows are taken."""

    records: np.ndarray
    position: np.ndarray
    state: np.ndarray
    holds: np.ndarray
    deaf: np.ndarray
    sends: np.ndarray
    failures: np.ndarray
    losses: np.ndarray
    last: np.ndarray
    kept: np.ndarray
    encode_ns: np.ndarray

    def __init__(self, group_size: int, start_ns: int, session: int, warm_groups: int) -> None:
        """`start_ns`: the time 0 of the rows; groups up to number `warm_groups` are a warm-up."""
        self.reasons: dict[int, str] = {}  # slot -> of an error row that is not taken
        self._vectors: list[tuple[np.ndarray, np.ndarray]] = []  # of images at these positions
        self.vector_bytes = 0  # of these vectors
        self.done = 0  # resolved images that are not taken
        self.warm_groups = warm_groups
        self.group_size, self.start_ns, self.session = group_size, start_ns, session
        for name, dtype in COLUMNS.items():
            setattr(self, name, np.zeros(0, dtype))
        self._free = np.empty(0, np.int64)

    def _make_room(self, count: int) -> None:
        """Find slots that nothing refers to any more; make more if they are too few."""
        self._free = np.flatnonzero((self.state == 0) & (self.holds == 0))
        held = len(self.state)
        if len(self._free) >= max(count, held // 4):
            return
        more = max(ROOM, held, count)
        for name, dtype in COLUMNS.items():
            setattr(self, name, np.concatenate([getattr(self, name), np.zeros(more, dtype)]))
        self._free = np.concatenate([self._free, np.arange(held, held + more)])
        self.said_bytes = self.records["said"].view(SAID_BYTES)
        self.cell_bytes = self.records["cell"].view(CELL_BYTES)
        self.placed_bytes = self.records["placed"].view(PLACED_BYTES)
        placed_at = RECORD.fields["placed"][1]  # type: ignore[index]
        self.place_bytes: np.ndarray = np.ndarray(
            len(self.records), PLACE_BYTES, self.records.data, placed_at, self.records.strides
        )

    def add(self, first: int, images: np.ndarray, drawn: np.ndarray | None) -> np.ndarray:
        """Slots for images, (n,) of PLACED, at neighbouring positions; the slots, (n,) int64."""
        count = len(images)
        if count > len(self._free):
            self._make_room(count)
        slots, self._free = self._free[:count], self._free[count:]
        self.position[slots] = np.arange(first, first + count)
        self.state[slots] = OPEN if drawn is None else np.where(drawn, OPEN | DRAWN, OPEN)
        self.last[slots] = -1
        self.placed_bytes[slots] = images.view(PLACED_BYTES)
        return slots

    def open(self, slots: np.ndarray) -> np.ndarray:
        """Those of the slots whose images are unresolved, the same object if all are."""
        there = self.state[slots] & OPEN
        return slots if there.tobytes().count(OPEN) == len(slots) else slots[there != 0]

    def still(self, slots: np.ndarray, positions: np.ndarray) -> np.ndarray:
        """Those of the slots that hold the images of these positions, which are unresolved."""
        return self.open(slots[self.position[slots] == positions])

    def keep(self, positions: np.ndarray, vectors: np.ndarray) -> None:
        """Hold the vectors, (n, floats) float32, of resolved images until their rows are taken."""
        self._vectors.append((positions, vectors))
        self.vector_bytes += vectors.nbytes

    def take(self) -> tuple[np.ndarray, list[np.ndarray]]:
        """Take out what is resolved.

        Returns:
            (n,) of IMAGE_ROW by position, and the vectors that were kept of the answered images,
            (floats,) float32 each.
        """
        done = np.flatnonzero(self.state & (DONE | KEPT) == DONE)
        done = done[np.argsort(self.position[done])]
        rows = self._rows(done, self.records.view(RECORD_BYTES)[done].view(RECORD))
        self.state[done] &= AWAITED
        self.encode_ns[done] = 0
        self.done -= len(done)
        audited = done[rows["audited"] != 0]
        for name in _OTHER:
            self.records[name][audited] = 0
        return rows, self._taken_vectors(rows["answered"], self.position[done])

    def _rows(self, slots: np.ndarray, records: np.ndarray) -> np.ndarray:
        rows, said, cells = np.zeros(len(records), IMAGE_ROW), records["said"], records["cell"]
        for names, given in (
            (PLACED.names or (), records["placed"]),
            (_SAID, said),
            (_OTHER, records),
        ):
            for name in names:
                rows[name] = given[name]
        rows["group"], rows["cell"] = np.divmod(self.position[slots], self.group_size)
        rows["warmup"] = rows["group"] < self.warm_groups
        rows["answered"] = said["source"] != SOURCE_CODE["error"]
        rows["predicted"], rows["score"] = cells["label"], cells["score"]
        rows["t0_ns"] = records["t0_ns"] - self.start_ns
        rows["latency_ns"] = said["done_ns"] - records["t0_ns"]
        rows["read_ns"] = records["read_ns"]
        for name in MEASURED.names or ():
            rows[name] += said[name]
        rows["session"] = self.session
        for at in np.flatnonzero(~rows["answered"]).tolist():
            rows["reason"][at] = reason_bytes(self.reasons.pop(int(slots[at]), ""))
        return rows

    def _taken_vectors(self, answered: np.ndarray, taken: np.ndarray) -> list[np.ndarray]:
        """Take out the vectors of the answered ones of these positions."""
        found: dict[int, np.ndarray] = {}  # each as long as the longest of its own answer
        for positions, vectors in self._vectors:
            found.update(zip(positions.tolist(), vectors, strict=True))
        self._vectors, self.vector_bytes = [], 0
        own = [found.pop(position) for position in taken[answered].tolist()] if found else []
        for position, vector in found.items():  # of images whose rows wait
            self.keep(np.array([position]), vector[None])
        return own
