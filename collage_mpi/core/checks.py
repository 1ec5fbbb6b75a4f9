"""Second answers: what two ranks say of one image tells when one of them computes wrongly.

Only answers of the exact network are compared. Two of them differ

    of the same kind of rank, runtime, format and batch   if a bit of their class or score differs
    otherwise                                             if their classes differ, and one is sure

A sure answer has a score over SURE. Scores are shares of 1, so its class leads by over 0.2, and
neither another batch nor another kind of processor moves it so far. Where two ranks differ, the
image goes once more to a third, and the one that alone says what it says is wrong. The row of an
image waits for HOLD_NS at most, as long as a rank that is heard may still answer it; then it has
the right answer. A row that is refuted later was written before, which is told.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from collage_mpi.core import events as ev
from collage_mpi.core.outcomes import Answer
from collage_mpi.core.settings import SECOND_NS
from collage_mpi.core.states import AWAITED, DONE, KEPT
from collage_mpi.core.table import SAID
from collage_mpi.core.work import MOST_ATTEMPTS, Like, Task, joined
from collage_mpi.kinds import SINGLE
from collage_mpi.rows import AUDIT_CODE, SOURCE_CODE

Core = Any  # `core.core.Core`, which imports this module

SURE = 0.6  # a class with more leads every other one by over 0.2
GATHER_NS = SECOND_NS  # images that are to be checked wait so long to fill a batch
# So long a row waits for other answers. Parts are written every 5 s then, so it is on the disk
# about 10 s after its image was resolved.
HOLD_NS = 4 * SECOND_NS
EXACT = [SOURCE_CODE[name] for name in (SINGLE, "replica", "hedge", "retry", "endgame", "check")]
WAITS = DONE | KEPT | AWAITED  # another answer may replace that of its row


@dataclass
class Tally:
    """Of a rank: answers that were compared with another's, that differed, that were outvoted, and
    of these those whose rows had been written before."""

    compared: int = 0
    differed: int = 0
    wrong: int = 0
    written: int = 0


class Said(NamedTuple):
    """Exact answers for some images, (n,) arrays. `like`: of the rank; `inputs`: see BY_RANK_0."""

    rank: np.ndarray
    like: np.ndarray
    runtime: np.ndarray
    inputs: np.ndarray
    cell: np.ndarray

    def compare(self, other: Said) -> tuple[np.ndarray, np.ndarray]:
        """(n,) bool each: which images can be compared, and which of them differ."""
        ours, theirs = self.cell, other.cell
        changed = (ours["label"] != theirs["label"]) | (ours["also"] != theirs["also"])
        alike = (self.like == other.like) & (self.runtime == other.runtime)
        alike &= (self.inputs == other.inputs) & (self.inputs > 0)
        most = np.maximum(ours["score"], theirs["score"])
        sure = (most > SURE) & (most <= 1)
        bits = ours["score"].view("<u4") != theirs["score"].view("<u4")
        return alike | sure | ~changed, (changed & (alike | sure)) | (bits & alike)

    def at(self, place: int) -> Said:
        """The answer for one of the images."""
        return Said(*(values[place : place + 1] for values in self))


class Checks:
    """Compares answers, and asks for third ones.

    Attributes:
        of: rank -> its tally.
        waiting: slot of an image that is to be asked again -> since when it waits, and the ranks
            that have answered it.
        asked: number of images whose rows wait.
        held: whether a row has waited so far.
    """

    def __init__(self, core: Core) -> None:
        self.of: defaultdict[int, Tally] = defaultdict(Tally)
        self.waiting: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._core, self._table, self._share = core, core.table, core.settings.check
        # Slot of an image of which answers are awaited -> two that differ; (): they were told of.
        self._open: dict[int, tuple[Said, ...]] = {}
        # Until when rows wait at most: slots and positions of their images. The oldest is first.
        self._until: deque[tuple[int, np.ndarray, np.ndarray]] = deque()
        self.asked, self.held = 0, False
        self._likes: dict[str, int] = {}

    @property
    def busy(self) -> bool:
        """Whether an answer is awaited only in order to compare it."""
        return bool(self.waiting) or any(t.source == "check" for t in self._core.tasks.values())

    # ---- which images are asked again -----------------------------------------

    def awaited(
        self, answer: Answer, slots: np.ndarray, peers: frozenset[Task]
    ) -> np.ndarray | None:
        """Of images that this answer resolves, (k,) bool, those that may get another; None: none.

        `peers`: other tasks that have some of them.
        """
        if answer.kind != SINGLE or not (peers or self._share):
            return None
        table, found = self._table, np.zeros(len(slots), bool)
        others = [task.slots for task in peers if task.kind == SINGLE and task.covers]
        if others:
            found = np.isin(slots, joined(others))
        if self._share:
            drawn = _drawn(table.position[slots], self._share) & ~found
            for place in np.flatnonzero(drawn).tolist():
                found[place] = self._ask(int(slots[place]), (answer.tasks[0].rank,))
        # What first networks have said of an image is held against its first exact answer.
        unaudited: np.ndarray = table.records["audited"][slots] == AUDIT_CODE[""]
        for slot in slots[found & ~unaudited].tolist():
            self._ask_no_more(slot)
        found &= unaudited
        if not found.any():
            return None
        self.asked += int(found.sum())
        self.held = True
        until_ns = self._core.now_ns + HOLD_NS
        if not self._until:
            self._core.later(until_ns, self._overdue, None)
        self._until.append((until_ns, slots[found], table.position[slots[found]]))
        return found

    def _ask(self, slot: int, ranks: tuple[int, ...], since_ns: int | None = None) -> bool:
        """Ask for another answer, by none of these ranks; whether there is another rank."""
        core = self._core
        if core.stopping is not None or next(core.ranks.others(SINGLE, ranks), None) is None:
            return False
        since_ns = core.now_ns if since_ns is None else since_ns
        self.waiting[slot] = since_ns, ranks
        self._table.holds[slot] += 1
        core.later(since_ns + GATHER_NS, core.nothing, None)
        return True

    def _ask_no_more(self, slot: int) -> None:
        if self.waiting.pop(slot, None) is not None:
            self._table.holds[slot] -= 1

    @property
    def due(self) -> bool:
        """Whether images wait that may leave: a batch, or fewer if one has waited long enough."""
        if not self.waiting:
            return False
        core, oldest_ns = self._core, min(since_ns for since_ns, _ in self.waiting.values())
        over = core.admission.closed or core.admission.paused
        full = len(self.waiting) >= core.settings.batch
        return over or full or oldest_ns + GATHER_NS <= core.now_ns

    def take(self, rank: Any) -> bool:
        """Images that the rank is asked for a second or third answer; whether there are some."""
        core, table = self._core, self._table
        if SINGLE not in rank.kinds or not self.due:
            return False
        found = [
            slot
            for slot, (_, ranks) in self.waiting.items()
            if rank.id not in ranks and all(task.rank != rank.id for task in core.holders(slot))
        ][: core.settings.batch]
        if not found:
            return False
        for slot in found:
            del self.waiting[slot]
        slots = core.in_order([np.array(found)])
        attempt = min(int(table.sends[slots].max()) + 1, MOST_ATTEMPTS)
        core.sends(slots, 1)
        core.send(rank, SINGLE, [(Like(SINGLE, "check", attempt, True), slots)])
        return True

    def ranks_changed(self) -> None:
        """A rank takes no more work: ask no more where no other one is left."""
        others, gone = self._core.ranks.others, list[int]()
        for slot, (_, ranks) in list(self.waiting.items()):
            if next(others(SINGLE, ranks), None) is None:
                self._ask_no_more(slot)
                gone.append(slot)
        self.ended(np.array(gone, np.int64))

    # ---- what is compared -------------------------------------------------------

    def compare(self, answer: Answer, items: np.ndarray) -> None:
        """Compare these answers, (k,) int64, for resolved images, with those of their rows."""
        records, slots = self._table.records, answer.slots[items]
        rank = answer.tasks[0].rank
        there = np.isin(records["said"]["source"][slots], EXACT)
        there &= records["said"]["rank"][slots] != rank
        if answer.kind != SINGLE or not there.any():
            return
        slots, items = slots[there], items[there]
        given = np.broadcast_to(answer.of(answer.said.view(SAID), items), len(slots))
        rows = records[slots]
        second = self._said(given, answer.cells[items])
        first = self._said(rows["said"], rows["cell"])
        comparable, differ = first.compare(second)
        for ranks in (first.rank, second.rank):
            for each, count in Counter(ranks[comparable].tolist()).items():
                self.of[each].compared += count
            for each, count in Counter(ranks[differ].tolist()).items():
                self.of[each].differed += count
        for place, slot in enumerate(slots.tolist()):
            if slot in self._open:
                if rank not in _ranks(self._open[slot]):
                    self._judge(slot, second.at(place), answer, int(items[place]))
            elif differ[place]:
                self._differ(slot, first.at(place), second.at(place))

    def _said(self, said: np.ndarray, cells: np.ndarray) -> Said:
        known, likes = self._core.ranks.known, self._likes
        like = [likes.setdefault(known[r].like, len(likes)) for r in said["rank"].tolist()]
        return Said(said["rank"], np.array(like), said["runtime"], said["inputs"], cells)

    def _differ(self, slot: int, first: Said, second: Said) -> None:
        """Let a third rank decide."""
        ranks, awaited = _ranks((first, second)), self._table.state[slot] & AWAITED != 0
        self._ask_no_more(slot)
        if awaited and self._ask(slot, ranks, self._core.now_ns - GATHER_NS):
            self._open[slot] = first, second
        else:
            self._tell(slot, ranks, None)
            if awaited:
                self._open[slot] = ()

    def _judge(self, slot: int, third: Said, answer: Answer, item: int) -> None:
        """A third rank has answered an image of which two differ."""
        said, self._open[slot] = self._open[slot], ()
        if not said:
            return
        ranks = _ranks(said)
        wrong, written, found = None, False, [each.compare(third) for each in said]
        differs = [bool(differ) for _, differ in found]
        agrees = [bool(comparable & ~differ) for comparable, differ in found]
        for place, rank in enumerate(ranks):
            if differs[place] and agrees[1 - place]:
                wrong = rank
                self.of[rank].wrong += 1
        if wrong == ranks[0]:
            written = self._table.state[slot] != WAITS
            self.of[wrong].written += written
            if not written:
                self._core.outcomes.replace(answer, item)
        self._ask_no_more(slot)
        self._tell(slot, ranks, wrong, written=bool(written))

    def _tell(
        self, slot: int, ranks: tuple[int, ...], wrong: int | None, *, written: bool = False
    ) -> None:
        position, placed = int(self._table.position[slot]), self._table.records["placed"][slot]
        image = int(placed["shard"]), int(placed["row"])
        self._core.actions.append(ev.Differed(position, image, ranks, wrong, written))

    # ---- when no other answer will come, or too late -----------------------------

    def _overdue(self, _: object) -> None:
        """Let rows go that have waited long enough. What is answered later is compared still."""
        table = self._table
        while self._until:
            until_ns, slots, positions = self._until[0]
            still = (table.position[slots] == positions) & (table.state[slots] == WAITS)
            if still.any() and until_ns > self._core.now_ns:
                self._core.later(until_ns, self._overdue, None)
                return
            self._until.popleft()
            self._let_go(slots[still])

    def ended(self, slots: np.ndarray) -> None:
        """Tasks have ended, or are on ranks that are silent now: let those images go that wait for
        no other."""
        core, table = self._core, self._table
        awaited = table.state[slots] & AWAITED != 0
        if not awaited.any():
            return
        free = [
            slot
            for slot in dict.fromkeys(slots[awaited].tolist())
            if slot not in self.waiting
            and not any(task.kind == SINGLE and task.covers for task in core.holders(slot))
        ]
        for slot in free:
            if two := self._open.pop(slot, ()):
                self._tell(slot, _ranks(two), None)
        self._release(np.array(free, np.int64))

    def close(self) -> None:
        """No answer will come."""
        for slot in list(self.waiting):
            self._ask_no_more(slot)
        self._release(np.flatnonzero(self._table.state & AWAITED))

    def _release(self, slots: np.ndarray) -> None:
        """No other answer is awaited for these images."""
        if len(slots):
            self._let_go(slots[self._table.state[slots] == WAITS])
            self._table.state[slots] &= DONE
            self._core.actions.append(ev.Released(self._table.position[slots]))

    def _let_go(self, slots: np.ndarray) -> None:
        """The rows of these images wait no longer."""
        self.asked -= len(slots)
        self._core.outcomes.let_go(slots, used=1)
        self._table.state[slots] = DONE | AWAITED


def _ranks(said: Sequence[Said]) -> tuple[int, ...]:
    """The ranks that have given these answers, each for one image."""
    return tuple(int(each.rank[0]) for each in said)


def _drawn(positions: np.ndarray, share: float) -> np.ndarray:
    """(k,) bool, which images are checked: a share of all, which the positions alone decide.

    The numbers are mixed as in splitmix64 (Steele, Lea, Flood, OOPSLA 2014).
    """
    mixed = positions.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    found: np.ndarray = (mixed ^ (mixed >> np.uint64(31))) < np.uint64(
        min(share, 1 - 2**-53) * 2**64
    )
    return found
