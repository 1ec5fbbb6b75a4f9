"""Outcomes: which answers resolve images, which are kept, and what the rows say of it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np

from collage_mpi.core import events as ev
from collage_mpi.core.states import AWAITED, DECIDED, DONE, DRAWN, KEPT, TROUBLED
from collage_mpi.core.table import BY_RANK_0, CELL_BYTES, SAID_BYTES
from collage_mpi.core.work import NOBODY, Task, joined
from collage_mpi.kinds import COLLAGE, KIND
from collage_mpi.rows import AUDIT_CODE, CHANGED, OTHERS, PRESENT, SOURCE_CODE, SOURCES, packer

Core = Any  # `core.core.Core`, which imports this module

_by_rank_0 = packer(BY_RANK_0)
_COLLAGE, _KEPT, _ERROR = (SOURCE_CODE[name] for name in (COLLAGE, "kept", "error"))
_DONE, _FAILED = AUDIT_CODE["done"], AUDIT_CODE["failed"]


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


class Answer:
    """What a message says of the images of some tasks, which are of one kind and one rank.

    Attributes:
        slots, cells: of the images, (n,) int64 and (n,) of CELL.
        vectors: (n, floats), what is kept of them; None if nothing is.
    """

    __slots__ = ("cells", "kind", "said", "slots", "tasks", "vectors")

    def __init__(self, tasks: list[Task], event: ev.Answered, now_ns: int) -> None:
        self.tasks, self.kind = tasks, tasks[0].kind
        self.slots = tasks[0].slots if len(tasks) == 1 else joined([t.slots for t in tasks])
        self.cells, self.vectors = event.cells, event.vectors
        batch = tasks[0].message.inputs  # of which nothing was left out
        whole = batch == len(event.cells) == event.cells["state"].tobytes().count(PRESENT)
        rest = event.decode_ns, event.at_ns or now_ns, batch if whole else 0
        said = b""
        for t in tasks:
            said += _by_rank_0.pack(SOURCE_CODE[t.source], t.rank, t.attempt, t.encode_ns, *rest)
            said += event.measured
        self.said = np.frombuffer(said, SAID_BYTES)  # of each task

    def of(self, values: np.ndarray, items: np.ndarray | None) -> np.ndarray:
        """Of a value for each task, that of each image."""
        if len(values) == 1:
            return values
        each = values.repeat([len(task.slots) for task in self.tasks])
        return each if items is None else each[items]

    def counts(self, items: np.ndarray | None) -> list[tuple[Task, int]]:
        """How many of these images each task has."""
        if items is None:
            return [(task, len(task.slots)) for task in self.tasks]
        if len(self.tasks) == 1:
            return [(self.tasks[0], len(items))]
        ends = np.cumsum([len(task.slots) for task in self.tasks])
        places = [0, *np.searchsorted(items, ends).tolist()]
        return [(t, b - a) for t, a, b in zip(self.tasks, places, places[1:], strict=False)]


class Outcomes:
    """Writes answers into the table."""

    def __init__(self, core: Core) -> None:
        self._core, self._table = core, core.table
        self.totals = Totals()
        self._kept_vectors: dict[int, np.ndarray] = {}  # by slot
        # Slot of a drawn image -> kind of network -> its answer, which does not count.
        self._said: dict[int, dict[str, np.void]] = {}

    def accept(self, answer: Answer, items: np.ndarray | None = None) -> None:
        """These answers, (k,) int64, for unresolved images, count from now on; None: all do, and
        nothing has happened to their images."""
        slots, cells, table, states = answer.slots, answer.cells, self._table, None
        if items is not None:
            slots, cells = slots[items], cells[items]
            states = table.state[slots]
            if (kept := states & KEPT != 0).any():
                if (decided := states & DECIDED != 0).any():
                    self._use_kept(slots[decided], cells[decided])
                    self.accept(answer, items[~decided])
                    return
                table.records["audited"][slots[kept & (states & DRAWN != 0)]] = _DONE
                self.let_go(slots[kept])
            if not len(slots):
                return
        table.said_bytes[slots] = answer.of(answer.said, items)
        table.cell_bytes[slots] = cells.view(CELL_BYTES)
        peers = NOBODY
        for task, count in answer.counts(items):
            task.resolved += count
            peers |= task.peers
            if task.source == COLLAGE:
                self.totals.collage += count
        if answer.vectors is not None:
            own = answer.vectors if items is None else answer.vectors[items]
            table.keep(table.position[slots], own.copy())
        asked = self._core.checks.awaited(answer, slots, peers)
        if asked is not None:
            self._hold(answer, np.flatnonzero(asked) if items is None else items[asked])
        self._resolve(slots, states, peers, asked)

    def _hold(self, answer: Answer, items: np.ndarray) -> None:
        """The rows of the images that these answers, (k,) int64, resolve wait: another may come."""
        numbers = answer.of(np.array([task.id for task in answer.tasks]), items)
        self._table.kept[answer.slots[items]] = numbers
        for task, count in answer.counts(items):
            if count:
                task.resolved -= count
                task.kept += count
                self._core.ended[task.id] = task

    def replace(self, answer: Answer, item: int) -> None:
        """This answer becomes that of an image whose row waits, and whose answer is refuted."""
        items, table = np.array([item]), self._table
        slots = answer.slots[items]
        self.let_go(slots)
        table.said_bytes[slots] = answer.of(answer.said, items)
        table.cell_bytes[slots] = answer.cells[items].view(CELL_BYTES)
        if answer.vectors is not None:
            table.keep(table.position[slots], answer.vectors[items].copy())
        for task, count in answer.counts(items):
            task.resolved += count
        self._hold(answer, items)

    def keep(self, answer: Answer, items: np.ndarray, flags: int = 0) -> None:
        """Keep these answers, (k,) int64, for unresolved images: each resolves its image only where
        an error row would. `flags`: DECIDED if it is accepted, and waits for its audit."""
        table = self._table
        items = items[table.state[answer.slots[items]] & DECIDED == 0]
        slots = answer.slots[items]
        self.let_go(slots[table.state[slots] & KEPT != 0])
        table.said_bytes[slots] = answer.of(answer.said, items)
        table.cell_bytes[slots] = answer.cells[items].view(CELL_BYTES)
        table.kept[slots] = answer.of(np.array([task.id for task in answer.tasks]), items)
        table.state[slots] |= KEPT | flags
        drawn = table.state[slots] & DRAWN != 0
        self._note_said(answer.kind, slots[drawn], answer.cells[items[drawn]])
        for task, count in answer.counts(items):
            if count:
                task.kept += count
                self._core.ended[task.id] = task
        if answer.vectors is not None:
            own = answer.vectors[items].copy()
            self._kept_vectors.update(zip(slots.tolist(), own, strict=True))

    def use_late(self, slots: np.ndarray) -> None:
        """The deadline of these unresolved images has come: their kept answers count, except those
        that are accepted and wait for their audit."""
        slots = slots[self._table.state[slots] & (KEPT | DECIDED) == KEPT]
        if len(slots):
            self._use_kept(slots)

    def error(self, slot: int, reason: str) -> None:
        """Give the image up: it becomes an error row, unless an answer was kept for this case.
        An unsure answer is not where a scheme `promises`."""
        slots, table = np.array([slot]), self._table
        if table.state[slot] & KEPT:
            if table.state[slot] & DECIDED or not self._core.scheme.promises:
                self._use_kept(slots)
                return
            self.let_go(slots)
        said = table.records["said"]
        said[slot] = table.records["cell"][slot] = 0
        said["source"][slot], said["done_ns"][slot] = _ERROR, self._core.now_ns
        table.reasons[slot] = reason
        self.totals.errors += 1
        self._resolve(slots, table.state[slots], self._core.sharers(slots))

    def _use_kept(self, slots: np.ndarray, others: np.ndarray | None = None) -> None:
        """Resolve the images by their kept answers; `others`: those of the exact network, if they
        came, which audit them."""
        table, said = self._table, self._table.records["said"]
        states = table.state[slots]
        for slot in slots[states & TROUBLED != 0].tolist():
            self._distrust_label(slot)  # as long as the row says which network has answered
        if others is not None:
            table.records["audited"][slots] = _DONE
            self._note_said(self._core.scheme.main, slots, others)
        else:
            decided = states & DECIDED != 0
            table.records["audited"][slots[decided]] = _FAILED
            said["source"][slots[~decided]] = _KEPT
            said["done_ns"][slots[~decided]] = self._core.now_ns
        self.totals.collage += said["source"][slots].tobytes().count(_COLLAGE)
        for slot in slots.tolist() if self._kept_vectors else ():
            if (own := self._kept_vectors.get(slot)) is not None:
                table.keep(table.position[[slot]], own[None])
        self.let_go(slots, used=1)
        self._resolve(slots, states, self._core.sharers(slots))

    def let_go(self, slots: np.ndarray, used: int = 0) -> None:
        """Kept answers of these images are used, or were replaced."""
        for number, count in Counter(self._table.kept[slots].tolist()).items():
            task = self._core.ended[number]
            task.kept -= count
            task.resolved += used * count
            if not task.kept:
                del self._core.ended[number]
                if task.outcome is not None:
                    self._core.over.append(task)

    def _resolve(
        self,
        slots: np.ndarray,
        states: np.ndarray | None,
        tasks: frozenset[Task],
        asked: np.ndarray | None = None,
    ) -> None:
        """The images have their outcome: cancel those of the tasks that wait for no other.
        `states`: None if nothing has happened to the images; `asked`: (k,) bool, whose rows wait.
        """
        core, table, count = self._core, self._table, len(slots)
        if core.scheme.grouped:
            table.records["said"]["encode_ns"][slots] = table.encode_ns[slots]
        if states is not None:
            for slot in slots[states & TROUBLED != 0].tolist():
                self._distrust_label(slot)
                core.retries.forget(slot)
            for slot, state in zip(slots.tolist(), states.tolist(), strict=True):
                if state & DRAWN:
                    self._judge(slot, accepted=state & DECIDED != 0)
                self._kept_vectors.pop(slot, None)
        table.state[slots] = DONE if asked is None else np.where(asked, DONE | KEPT | AWAITED, DONE)
        table.done += count
        self.totals.images += count
        if tasks:
            core.moot(tasks)
        positions = table.position[slots]
        core.gone(positions, ev.NONE if asked is None else positions[asked])

    def _note_said(self, kind: str, slots: np.ndarray, cells: np.ndarray) -> None:
        for slot, cell in zip(slots.tolist(), cells, strict=True):
            self._said.setdefault(slot, {})[kind] = cell.copy()  # not the whole message

    def _judge(self, slot: int, *, accepted: bool) -> None:
        """Tell of a drawn image's answers, and note those of first networks that do not count."""
        record, answers = self._table.records[slot], dict[str, tuple[float, bool]]()
        said, counts = self._said.pop(slot, {}), record["cell"]
        if record["audited"] == _DONE:
            own = SOURCES[record["said"]["source"]]
            kinds = (self._core.scheme.main,) if accepted else said.keys()
            for kind in kinds:
                cell, first = said[kind], own if accepted else kind
                changed = bool(cell["label"] != counts["label"] or cell["also"] != counts["also"])
                column, place = KIND[kind].place, KIND[first].place
                record["stages"] |= (not accepted) << place | changed << place + CHANGED
                record[OTHERS[column][0]], record[OTHERS[column][1]] = cell["label"], cell["score"]
                answers[first] = float((counts if accepted else cell)["score"]), changed
                self.totals.audited += accepted
                self.totals.differing += accepted and changed
        position = int(self._table.position[slot])
        self._core.actions.append(ev.Judged(position, answers, accepted))

    def _distrust_label(self, slot: int) -> None:
        """A label cannot be trusted if no rank could read the image, or if its row is bad and only
        its stored cell was classified: as rank 0 would decide if it had read the row."""
        trouble = self._core.retries.trouble.get(slot)
        if trouble is None or not trouble.hosts:
            return
        placed, said = self._table.records["placed"], self._table.records["said"]
        source = SOURCES[said["source"][slot]]
        by_row = source not in KIND or not KIND[source].encoded
        if source == "error" or (trouble.bad_row and not by_row):
            placed["has_label"][slot], placed["label"][slot] = False, 0
