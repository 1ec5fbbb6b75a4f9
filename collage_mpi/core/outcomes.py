"""Outcomes: which answer resolves an image, which is kept, and what the rows say of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from collage_mpi.core import events as ev
from collage_mpi.core.events import Positions
from collage_mpi.core.states import DECIDED, DONE, DRAWN, HARD, KEPT, OPEN, WAITS
from collage_mpi.core.table import CELL_BYTES, SAID, SAID_BYTES, At, Block, Part
from collage_mpi.core.work import Task
from collage_mpi.kinds import COLLAGE, KIND
from collage_mpi.rows import AUDIT_CODE, PRESENT, SOURCE_CODE, packer

Core = Any  # `core.core.Core`, which imports this module

_said = packer(SAID)


@dataclass
class Totals:
    """Counts for the status line.

    Attributes:
        audited: accepted answers of a first stage that the exact network checked.
        differing: of these, images to which the two networks gave different classes.
        admitted: images that entered the job, of this team only.
    """

    images: int = 0
    errors: int = 0
    collage: int = 0
    audited: int = 0
    differing: int = 0
    admitted: int = 0


class Outcomes:
    """Writes answers into the table."""

    def __init__(self, core: Core) -> None:
        self._core, self._table = core, core.table
        self.totals = Totals()
        self.vectors: np.ndarray | None = None  # (n, floats), of the task that is being answered
        self._kept_vectors: dict[int, np.ndarray] = {}

    def accept(
        self,
        task: Task,
        cells: np.ndarray,
        some: np.ndarray | None = None,
        part: Part | None = None,
    ) -> None:
        """These answers count from now on.

        Args:
            cells: (n,) of CELL, one for each image of the task.
            some: (n,) bool, whose answers are accepted; None for all. They must be present.
            part: the images, if they are neighbours to which nothing has happened.
        """
        if part is not None:
            self._assign(task, part.block, part.at, task.positions, cells)
            self._keep_vectors(task.positions, slice(None))
            part.block.states[part.at] = DONE
            return
        for block, at, items in self._table.parts(task.positions):
            states = block.states[at]
            wanted = (states & OPEN) != 0
            if some is not None:
                wanted &= some[items]
            where = wanted.nonzero()[0]
            states = states[where]
            places = where + at.start if isinstance(at, slice) else at[where]
            numbers = where + items.start if isinstance(items, slice) else items[where]
            hard = (states & HARD) != 0
            one_by_one: Iterable[tuple[int, int]] = ()
            if hard.any():
                one_by_one = zip(places[hard].tolist(), numbers[hard].tolist(), strict=True)
                states, places, numbers = states[~hard], places[~hard], numbers[~hard]
            if len(places):
                positions = block.positions(places)
                if self._kept_vectors:
                    for position in positions.tolist():
                        self._kept_vectors.pop(position, None)
                kept = block.kept[places[(states & KEPT) != 0]].tolist()
                self._assign(task, block, places, positions, cells[numbers])
                self._keep_vectors(positions, numbers)
                block.states[places] = DONE
                self._let_go(kept)
            for place, number in one_by_one:
                self._accept_one(task, block, place, cells, number)

    def _keep_vectors(self, positions: Positions, items: Any) -> None:
        if self.vectors is not None:
            self._table.keep(positions, self.vectors[items].copy())

    def _assign(
        self, task: Task, block: Block, at: At, positions: Positions, cells: np.ndarray
    ) -> None:
        """Write the answers of images that nothing else waits for; the caller sets their state."""
        count, totals = len(positions), self.totals
        said = self._said_by(task, int(positions[0]))
        block.said_bytes[at] = np.frombuffer(said, SAID_BYTES)
        block.cell_bytes[at] = cells.view(CELL_BYTES)
        self._table.resolved(block, count)
        task.resolved += count
        totals.images += count
        if task.source == COLLAGE:
            totals.collage += count
        trouble = self._core.retries.trouble
        if trouble:
            for position in np.asarray(positions).tolist():
                trouble.pop(position, None)
        self._core.gone(positions)

    def _said_by(self, task: Task, position: int) -> bytes:
        """What the task says of an image, as a SAID."""
        core, encode = self._core, task.encode_ns
        if core.scheme.grouped:
            encode = core.encode_ns.get(position // core.settings.group_size, 0)
        return _said.pack(SOURCE_CODE[task.source], task.rank, task.attempt, encode, *task.said)

    # ---- image by image ------------------------------------------------------

    def _accept_one(self, task: Task, block: Block, at: int, cells: np.ndarray, item: int) -> None:
        cell = cells[item]
        position, state = int(block.positions(np.array([at]))[0]), block.state[at]
        if state & DECIDED:
            self._use_kept(block, at, position, other=cell)
            return
        record = block.records[at]
        other = None
        if state & KEPT:
            if state & DRAWN and block.kept[at] != task.id:
                other = record["cell"].copy()
            self._let_go([int(block.kept[at])])
        record["said"] = np.frombuffer(self._said_by(task, position), SAID)[0]
        record["cell"] = cell
        task.resolved += 1
        if other is not None:
            self._audit(record, other)
        self._keep_vectors(range(position, position + 1), slice(item, item + 1))
        self._finish(block, at, position, task.source, accepted=False, other=other)

    def keep(self, task: Task, cells: np.ndarray, some: np.ndarray, flags: int = 0) -> None:
        """Keep these answers: each resolves its image only where an error row would.

        Args:
            cells: (n,) of CELL, one for each image of the task.
            some: (n,) bool, which answers.
            flags: a further bit of state, DECIDED: the answer is accepted, and waits for its audit.
        """
        for block, at, items in self._table.parts(task.positions):
            states = block.states[at]
            where = (((states & (OPEN | DECIDED)) == OPEN) & some[items]).nonzero()[0]
            if not len(where):
                continue
            places = where + at.start if isinstance(at, slice) else at[where]
            self._let_go(block.kept[places[(states[where] & KEPT) != 0]].tolist())
            said = self._said_by(task, int(block.positions(places[:1])[0]))
            block.said_bytes[places] = np.frombuffer(said, SAID_BYTES)
            block.cell_bytes[places] = cells[items][where].view(CELL_BYTES)
            block.kept[places] = task.id
            block.states[places] |= KEPT | flags
            task.kept += len(places)
            if self.vectors is not None:
                own = self.vectors[np.arange(len(cells))[items][where]].copy()
                self._kept_vectors.update(zip(block.positions(places).tolist(), own, strict=True))

    def use_late(self, positions: Positions) -> None:
        """The deadline of these images has come: their kept answers count, except those that
        are accepted and wait for their audit."""
        for position in np.asarray(positions).tolist():
            state = self._table.state(position)
            if state & OPEN and state & KEPT and not state & DECIDED:
                block, at = self._table.find(position)
                self._use_kept(block, at, position)

    def _use_kept(
        self, block: Block, at: int, position: int, other: np.ndarray | None = None
    ) -> None:
        """Resolve the image by its kept answer; `other`: that of the exact network, if it came."""
        record, decided = block.records[at], block.state[at] & DECIDED
        source = "kept"
        task = self._core.kept_task(int(block.kept[at]))
        task.resolved += 1
        if decided:
            source = task.source
            if other is None:
                record["audited"] = AUDIT_CODE["failed"]
            else:
                self._audit(record, other)
        else:
            record["said"]["done_ns"] = self._core.now_ns
        if self._core.scheme.grouped:
            group = position // self._core.settings.group_size
            record["said"]["encode_ns"] = self._core.encode_ns.get(group, 0)
        record["said"]["source"] = SOURCE_CODE[source]
        if (vector := self._kept_vectors.get(position)) is not None:
            self._table.keep(range(position, position + 1), vector[None])
        self._let_go([task.id])
        self._finish(block, at, position, source, accepted=bool(decided), other=other)

    def _audit(self, record: np.ndarray, other: np.ndarray) -> None:
        record["audited"] = AUDIT_CODE["done"]
        record["other"], record["other_score"] = other["label"], other["score"]

    def error(self, position: int, reason: str) -> None:
        """Give the image up: it becomes an error row, unless an answer was kept for this case."""
        block, at = self._table.find(position)
        if block.state[at] & KEPT:
            self._use_kept(block, at, position)
            return
        encode = self._core.encode_ns.get(position // self._core.settings.group_size, 0)
        record = block.records[at]
        record["said"] = (SOURCE_CODE["error"], 0, 0, encode, 0, 0, 0, 0, self._core.now_ns)
        record["cell"] = 0
        self._table.reasons[position] = reason
        self.totals.errors += 1
        self._finish(block, at, position, "error", accepted=False)

    def _finish(
        self,
        block: Block,
        at: int,
        position: int,
        source: str,
        *,
        accepted: bool,
        other: np.ndarray | None = None,
    ) -> None:
        """The image has its outcome: cancel what it waits for no longer."""
        core, state = self._core, block.state[at]
        if position in core.retries.trouble or state & WAITS:
            self._distrust_label(block, at, position, source)
            core.retries.forget(position)
        if state & DRAWN:
            self._judge(block.records[at], position, source, accepted, other)
        self._kept_vectors.pop(position, None)
        block.state[at] = DONE
        self._table.resolved(block, 1)
        self.totals.images += 1
        self.totals.collage += source == COLLAGE
        core.moot(position)
        core.gone(range(position, position + 1))

    def _judge(
        self,
        record: np.ndarray,
        position: int,
        source: str,
        accepted: bool,
        other: np.ndarray | None,
    ) -> None:
        """Tell of a drawn image's pair of answers."""
        if other is None:
            self._core.actions.append(ev.Judged(position, None, False, accepted))
            return
        differs = bool(other["label"] != record["cell"]["label"])
        if accepted:
            self.totals.audited += 1
            self.totals.differing += differs
        cell = record["cell"] if accepted else other
        self._core.actions.append(ev.Judged(position, float(cell["score"]), differs, accepted))

    def _distrust_label(self, block: Block, at: int, position: int, source: str) -> None:
        """A label cannot be trusted if no rank could read the image, or if its row is bad and only
        its stored cell was classified: as rank 0 would decide if it had read the row."""
        trouble = self._core.retries.trouble.get(position)
        if trouble is None or not trouble.hosts:
            return
        kind = self._core.scheme.first if source == "kept" else source
        by_row = kind not in KIND or not KIND[kind].encoded
        if source == "error" or (trouble.bad_row and not by_row):
            block.records["placed"]["has_label"][at] = False
            block.records["placed"]["label"][at] = 0

    def _let_go(self, tasks: Iterable[int]) -> None:
        """A kept answer of each of these tasks is used, or was replaced."""
        for number in tasks:
            task = self._core.kept_task(number)
            task.kept -= 1
            self._core.write_task(task)


def present(cells: np.ndarray) -> np.ndarray | None:
    """(n,) bool, which cells hold an answer; None if all do."""
    states = cells["state"].tobytes()
    if states.count(PRESENT) == len(states):
        return None
    return np.frombuffer(states, np.uint8) == PRESENT
