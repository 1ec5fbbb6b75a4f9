"""What the ledger of a run says, read from its files and not by the package."""

from __future__ import annotations

import json
import re
import zlib
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

Json = dict[str, Any]
MARK = re.compile(rb"(\d+) ([0-9a-f]{32}) *")
MARK_BYTES = 64


def runs_in(out: Path) -> list[Json]:
    """The numbered runs, in order."""
    found = [json.loads(path.read_bytes()) for path in out.glob("run.*.json")]
    return sorted(found, key=lambda run: int(run["number"]))


def sessions_in(out: Path) -> list[Json]:
    """What each job says of itself, by its number."""
    found = []
    for path in sorted(out.glob("jobs/[0-9]*.json")):
        job = json.loads(path.read_bytes())
        killed = {"session": int(path.stem), "rows": None, "final": {}}
        found.append({**killed, **job["facts"]})
    return found


def cell_in(out: Path, start: int) -> Json | None:
    """The last record of a cell; None if there is none."""
    first = out / f"leases/{start}.0"
    if not first.exists():
        return None
    raw, end = first.read_bytes()[:-MARK_BYTES], first.read_bytes()[-MARK_BYTES:]
    if (mark := MARK.fullmatch(end)) is not None:
        raw = (out / f"leases/{start}.{mark[1].decode()}").read_bytes()
        if sha256(raw).hexdigest()[:32] != mark[2].decode():
            raise AssertionError(f"the mark of cell {start} is that of another record")
        return dict(json.loads(raw))
    gen = 0
    while (later := out / f"leases/{start}.{gen + 1}").exists():
        before, raw, gen = raw, later.read_bytes(), gen + 1
        if json.loads(raw)["prev"] != sha256(before).hexdigest()[:32]:
            raise AssertionError(f"{later.name} does not follow the record before it")
    return dict(json.loads(raw))


def rows_of_cell(cell: Json | None) -> dict[int, str]:
    """Position -> the file of parts with the row that counts."""
    parts = () if cell is None else cell.get("parts", ())
    return {p: part["file"] for part in parts for span in part["spans"] for p in range(*span)}


def rows_in(out: Path, run: Json) -> dict[int, str]:
    """As `rows_of_cell`, of a whole run."""
    found: dict[int, str] = {}
    for start in range(run["first"], run["stop"], run["cell"]):
        found |= rows_of_cell(cell_in(out, start))
    return found


class Ledger:
    """The ledger while jobs write it: a row that counts never stops to count.

    Attributes:
        counts: start of a cell -> its rows.
    """

    def __init__(
        self, out: Path, tell: Callable[[str], object], lasts: Callable[[Path], bool]
    ) -> None:
        """`lasts`: whether a file would outlive a loss of power."""
        self._out, self._tell, self._lasts = out, tell, lasts
        self.counts: dict[int, dict[int, str]] = {}

    def forget(self) -> None:
        """Records were lost with the power, or taken away."""
        self.counts.clear()
        for run in runs_in(self._out):
            for start in range(run["first"], run["stop"], run["cell"]):
                self.counts[start] = rows_of_cell(cell_in(self._out, start))

    def made(self, name: str) -> None:
        """A file has got its name, below the run's folder."""
        for text in self._broken(name):
            self._tell(text)

    def _broken(self, name: str) -> Iterator[str]:
        if lease := re.fullmatch(r"leases/(\d+)\.\d+", name):
            start = int(lease[1])
            cell, before = cell_in(self._out, start), self.counts.get(start, {})
            now = self.counts[start] = rows_of_cell(cell)
            if gone := {p for p, file in before.items() if now.get(p) != file}:
                yield f"{len(gone)} rows do not count any more, after {name}"
            for part in cell["parts"] if cell and now != before else ():
                if part["file"] not in before.values():
                    yield from self._too_early(name, part)
        elif marked := re.fullmatch(r"COMPLETE\.(\d+)", name):
            run = next(run for run in runs_in(self._out) if run["number"] == int(marked[1]))
            if lacks := {*range(run["first"], run["stop"])} - {*rows_in(self._out, run)}:
                yield f"{name} is made, and {len(lacks)} images have no row that counts"

    def _too_early(self, name: str, part: Json) -> Iterator[str]:
        """What must be on the disk when a record names a part."""
        path = self._out / "parts" / part["file"]
        if not path.exists():
            yield f"{name} names {path.name}, which is missing"
            return
        raw = path.read_bytes()
        if (len(raw), zlib.crc32(raw)) != (part["size"], part["crc"]):
            yield f"{name} names {path.name} with another size or checksum"
        if not self._lasts(path):
            yield f"{name} is made, and {path.name} may be lost with the power"
        if not any(self._out.glob("networks.*.json")):
            yield f"{name} is made, and no file says by which networks"
        job = json.loads((self._out / f"jobs/{path.stem.split('-')[1]}.json").read_bytes())
        if "final" not in job["facts"]:
            yield f"{name} is made, and the job of {path.name} does not say how it began"
