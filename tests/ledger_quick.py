"""A folder for many owners in little time: a dictionary that is judged at each record.

It keeps only the weakest promises of `collage_mpi.ledger.store`: what an owner has found missing is
missing for it for `keep_s`, and listings are as old. More than any folder does, a name that
was made may be missing for others for `lag` operations. The reply of a link may be lost.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from collage_mpi.ledger import spans as sp
from collage_mpi.ledger.cells import Cell
from collage_mpi.ledger.records import MARK_BYTES, Run, lease_of, unmarked
from collage_mpi.ledger.store import FolderStore
from tests.ledger_world import Wrong


class Quick:
    """The truth.

    Attributes:
        files: name -> (number of the operation that made it, content).
        operations: of each kind.
    """

    def __init__(
        self,
        run: Run,
        lag: int = 0,
        lost: int = -1,
        keep_s: float = 0.0,
        now: Callable[[], float] = lambda: 0.0,
    ) -> None:
        """`lost`: the reply of this link is lost."""
        self.run, self.lag, self.lost, self.keep_s, self.now = run, lag, lost, keep_s, now
        self.files: dict[str, tuple[int, bytes]] = {}
        self.step = self.links = 0
        self.operations: dict[str, int] = {}
        self.cells: dict[int, Cell] = {}
        self.counted = 0
        self.on_record: Callable[[Cell, Cell], None] = lambda before, after: None
        self.done: Counter[str] = Counter()  # what owners have done

    def linked(self, name: str, data: bytes) -> None:
        """Judge a record that was made."""
        folder, _, last = name.partition("/")
        found = lease_of(last) if folder == "leases" else None
        if found is None:
            return
        start, gen = found
        before = self.cells.get(start) or Cell(start, self.run.end(start))
        if before.packed:
            return  # void
        after = before.after(data if gen else unmarked(data)[0], gen)
        if gen != before.gen + 1:
            raise Wrong(f"{name} follows {before.gen}")
        assert after.record is not None
        old = before.record.parts if before.record else ()
        new = after.record.parts[len(old) :]
        if lost := {part.name for part in new} - self.files.keys():
            raise Wrong(f"{lost} count and are not there")
        self.counted += sum(sp.count(part.spans) for part in new if not part.reason)
        self.cells[start] = after
        self.on_record(before, after)

    def marked(self, name: str, data: bytes) -> None:
        """Judge what is written to the end of a cell's first file."""
        start = int(name.partition("/")[2].partition(".")[0])
        cell = self.cells[start]
        if unmarked(data)[1] != (cell.gen, cell.digest) or not cell.closed:
            raise Wrong(f"cell {start} is packed, and its last record is another one")
        if not data.startswith(self.files[name][1][:-MARK_BYTES]):
            raise Wrong(f"{name} has changed")
        cell.packed = True

    def removed(self, name: str) -> None:
        """Judge a removal."""
        folder, _, last = name.partition("/")
        named = {part.file for cell in self.cells.values() for part in cell.parts}
        counts = folder == "parts" and name in self.files and last in named
        spans = json.loads(self.files[name][1]) if counts else ()
        for at in (at for span in spans for at in range(*span)):
            start = at - (at - self.run.first) % self.run.cell
            if not self.cells[start].packed or f"rows/{start}.parquet" not in self.files:
                raise Wrong(f"{name} is removed, and the row of {at} lies nowhere else")
        found = lease_of(last) if folder == "leases" else None
        if found is not None and not self.cells[found[0]].packed:
            raise Wrong(f"{name} is removed before its cell is packed")

    @property
    def complete(self) -> bool:
        return self.counted == self.run.stop - self.run.first


class QuickStore:
    """What one owner sees. `pause` is called before each operation."""

    def __init__(self, truth: Quick, pause: Callable[[str], Any]) -> None:
        self._truth, self._pause = truth, pause
        self._mine: set[str] = set()  # names that the owner has asked the server to make
        self._missing: dict[str, float] = {}  # until when it believes that a name is missing
        self._lists: dict[str, tuple[float, list[str]]] = {}

    def _begin(self, operation: str) -> None:
        self._pause(operation)
        self._truth.step += 1
        self._truth.operations[operation] = self._truth.operations.get(operation, 0) + 1

    def _seen(self, name: str) -> bool:
        made = self._truth.files[name][0]
        return name in self._mine or made + self._truth.lag <= self._truth.step

    settled = FolderStore.settled

    def make(self) -> None:
        pass

    def link(self, name: str, data: bytes) -> bool:
        self._begin("link")
        truth = self._truth
        self._mine.add(name)
        self._missing.pop(name, None)
        if name in truth.files:
            return False
        truth.files[name] = truth.step, data
        truth.linked(name, data)
        truth.links += 1
        return truth.links - 1 != truth.lost

    def read(self, name: str) -> bytes | None:
        self._begin("read")
        now_s = self._truth.now()
        if now_s < self._missing.get(name, 0.0):
            return None
        if name not in self._truth.files or not self._seen(name):
            if self._truth.keep_s:
                self._missing[name] = now_s + self._truth.keep_s
            return None
        return self._truth.files[name][1]

    def overwrite(self, name: str, data: bytes) -> None:
        self._begin("overwrite")
        made, _ = self._truth.files.get(name, (self._truth.step, b""))
        self._mine.add(name)
        if name.startswith("leases/"):
            self._truth.marked(name, data)
        self._truth.files[name] = made, data

    def replace(self, name: str, data: bytes) -> None:
        self._begin("replace")
        assert name.startswith("parts/")
        self._mine.add(name)
        self._truth.files[name] = self._truth.step, data

    def sync_folder(self, name: str) -> None:
        pass  # what is linked stays

    def remove(self, name: str) -> None:
        self._begin("remove")
        self._truth.removed(name)
        self._truth.files.pop(name, None)

    def names(self, folder: str) -> list[str]:
        self._begin("list")
        now_s = self._truth.now()
        until_s, found = self._lists.get(folder, (0.0, []))
        if now_s >= until_s:
            names = [name for name in self._truth.files if name.startswith(f"{folder}/")]
            found = [name.partition("/")[2] for name in names if self._seen(name)]
            self._lists[folder] = now_s + self._truth.keep_s, found
        return found
