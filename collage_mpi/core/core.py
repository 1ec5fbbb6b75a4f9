"""The core's machine: what events change, which rank is served with what, and when the job is over.

One rule assigns the work: a rank with room takes the oldest work that it may take. Its scheme says
what arrivals, full groups and answers add to the work that waits (`schemes`).
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any

import numpy as np

from collage_mpi.core import events as ev
from collage_mpi.core.admission import Admission
from collage_mpi.core.checks import Checks
from collage_mpi.core.events import Action, Event
from collage_mpi.core.outcomes import Answer, Outcomes
from collage_mpi.core.policies import AcceptPolicy, First
from collage_mpi.core.ranks import Rank, Ranks
from collage_mpi.core.retries import NOBODY, Retries
from collage_mpi.core.schemes import Scheme
from collage_mpi.core.settings import CoreSettings
from collage_mpi.core.states import LOST, OPEN, READY, RETIRED, SENT, SILENT
from collage_mpi.core.table import Table
from collage_mpi.core.work import (
    FIRST,
    MOST_ATTEMPTS,
    Fresh,
    Like,
    Message,
    Queue,
    Task,
    Work,
    joined,
    overlap,
)
from collage_mpi.kinds import KIND, SINGLE
from collage_mpi.rows import BAD_ROW, KIND_CODE, OUTCOME_CODE, PRESENT, TASKS, UNREAD, reason_bytes

MOST_COPIES = 8  # of an image in the end game: it is very unlikely that all are on slow ranks
_pack_row = TASKS.packer.pack


class ProtocolViolation(Exception):
    """The driver broke the contract of the events. This is a defect, never a user's mistake."""


class Core:
    """Feed it events with `step`; carry out the actions that it returns, in order.

    Attributes:
        table: the images in flight. `table.take` gives the rows of those that are resolved.
        stopping: why the job ends before its images do; None if it does not.
        wake_ns: when `step` is to be called again if nothing happens before; None: not before.
    """

    def __init__(self, settings: CoreSettings, scheme: Scheme, table: Table) -> None:
        self.settings, self.scheme, self.table = settings, scheme, table
        self.now_ns, self._size = 0, settings.group_size
        self.actions: list[Action] = []
        self.ranks = Ranks(settings.costs, settings.batch_costs, scheme.fastest_of)
        self.tasks: dict[int, Task] = {}  # sent and not ended
        self.ended: dict[int, Task] = {}  # an answer of it is kept
        self.over: list[Task] = []  # of which no more is known, and whose rows are not taken
        self.fresh, self.alone = Fresh(), Fresh()  # `alone`: for the main kind only
        self.queues: defaultdict[str, Queue] = defaultdict(Queue)
        self.late: list[tuple[np.ndarray, np.ndarray]] = []  # slots and positions: each hedged once
        self.groups: dict[int, np.ndarray] = {}  # of a grouped scheme: its images
        self.stopping: str | None = None
        self.retries = Retries(self)
        self.outcomes = Outcomes(self)
        self.admission = Admission(self)
        self.checks = Checks(self)
        self._filling: set[int] = set()  # of `groups`, those that may get further images
        self._reported: set[int] = set()
        self._bound: dict[int, Rank] = {}  # ranks that may have room for work of their own
        self._numbers, self._order = count(), count()
        self._timers: list[tuple[int, int, Callable[[Any], None], Any]] = []
        self._copies: list[Fresh] | None = None  # at the end: images by the number of their copies
        self._ending = self._finished = self._gathers = False
        self._handlers: dict[type, Callable[[Any], None]] = {
            ev.Answered: self._answered,
            ev.Arrived: self._arrived,
            ev.Left: self._left,
            ev.RankReady: self._ready,
            ev.RankSilent: self._silent,
            ev.RankLost: self._lost,
            ev.RankUnfit: self._unfit,
            ev.Failed: self._failed,
            ev.Skipped: self._skipped,
            ev.InputPaused: self._input_ends,
            ev.InputClosed: self._input_ends,
            ev.StopRequested: lambda event: self.stop(event.reason),
            ev.Stages: lambda event: scheme.judge_by(self, event.kinds, event.confidence),
        }

    def step(self, now_ns: int, events: Sequence[Event] = ()) -> list[Action]:
        """Handle the events of one moment, and the timers that are due.

        Raises:
            ProtocolViolation: time runs backwards, a number is unknown or used twice, or something
                follows Finish.
        """
        if now_ns < self.now_ns or self._finished:
            raise ProtocolViolation(f"a step at {now_ns} after {self.now_ns}, or after Finish")
        self.now_ns = now_ns
        actions: list[Action] = []
        self.actions = actions
        handlers = self._handlers
        for event in events:
            handlers[type(event)](event)
        while self._timers and self._timers[0][0] <= now_ns:
            _, _, call, argument = heapq.heappop(self._timers)
            call(argument)
        if self.stopping is None:
            self._serve()
            if len(self._reported) >= self.settings.ranks:
                self.admission.admit()
        if not self.admission.unresolved or self.stopping is not None:
            self._maybe_finish()
        return actions

    @property
    def wake_ns(self) -> int | None:
        """When the next timer is due."""
        return self._timers[0][0] if self._timers else None

    @property
    def next(self) -> int:
        """The position of the next image that arrives, unless it belongs to a later group."""
        return self.admission.next

    def later(self, at_ns: int, call: Callable[[Any], None], argument: Any) -> None:
        """Call it in the step at or after this time."""
        heapq.heappush(self._timers, (at_ns, next(self._order), call, argument))

    def nothing(self, _: object) -> None:
        """A timer that only wakes."""

    # ---- images -------------------------------------------------------------

    def _arrived(self, event: ev.Arrived) -> None:
        first, images, table, size = (
            max(event.first, self.next),
            event.images,
            self.table,
            self._size,
        )
        if self.admission.closed:
            raise ProtocolViolation(f"image {first} arrived after InputClosed")
        if self.admission.paused:
            self._copies = None
        slots = table.add(first, images, event.drawn)
        table.records["t0_ns"][slots], table.records["read_ns"][slots] = event.t0_ns, event.read_ns
        table.holds[slots], table.sends[slots] = self.scheme.covers, self.scheme.first_sends
        self.outcomes.totals.admitted += len(images)
        full = self.admission.came(first, len(images))
        if self.stopping is not None:
            return
        if self.scheme.grouped:
            for group in range(first // size, (first + len(images) - 1) // size + 1):
                own = slots[max(0, group * size - first) : (group + 1) * size - first]
                self.groups[group] = joined([self.groups.get(group, own[:0]), own])
                self._filling.add(group)
        start = 0
        for fault in [*sorted(event.faults), len(images)]:
            if start < fault:
                self.scheme.arrived(self, slots[start:fault])
            if fault < len(images):
                table.holds[slots[fault]] = self.scheme.grouped
                self.ranks.skip_turn(SINGLE)
                self.outcomes.error(int(slots[fault]), event.faults[fault])
            start = fault + 1
        for group in full:
            self._group_closed(group)

    def _group_closed(self, group: int) -> None:
        """The group gets no further image."""
        if group in self._filling and self.stopping is None:
            self._filling.remove(group)
            slots = self.groups[group]
            self.table.holds[slots] -= 1
            self.scheme.group_full(self, self.table.open(slots))

    def group_over(self, group: int) -> None:
        """All images of the group have their outcome."""
        slots = self.groups.pop(group, None)
        if slots is not None and group in self._filling:
            self._filling.remove(group)
            self.table.holds[slots] -= 1

    def _input_ends(self, event: ev.InputPaused | ev.InputClosed) -> None:
        if isinstance(event, ev.InputClosed):
            self.admission.close()
        if (group := self.admission.close_group()) is not None:
            self._group_closed(group)
        if isinstance(event, ev.InputPaused):
            self.admission.pause()

    def gone(self, positions: np.ndarray, held: np.ndarray) -> None:
        """The images at these positions have their outcome. `held`: see `Resolved`."""
        self.admission.resolved(positions)
        self.actions.append(ev.Resolved(positions, held))

    # ---- who has an image ---------------------------------------------------

    def sharers(self, slots: np.ndarray) -> frozenset[Task]:
        """The tasks that are out and have one of the images."""
        found: set[Task] = set()
        for number in set(self.table.last[slots].tolist()):
            if (task := self.tasks.get(number)) is not None:
                found.add(task)
                found.update(peer for peer in task.peers if overlap(peer.slots, slots))
        return frozenset(found)

    def holders(self, slot: int) -> list[Task]:
        """The tasks of the image that are out, in the order in which they were sent."""
        return sorted(self.sharers(np.array([slot])), key=lambda task: task.id)

    def group_of(self, slot: int) -> np.ndarray:
        """The unresolved images of its group."""
        group = self.table.position[slot] // self._size
        slots = self.groups[int(group)]
        return self.table.open(slots[self.table.position[slots] // self._size == group])

    def in_need(self, slots: np.ndarray) -> np.ndarray:
        """Those of the unresolved images that no work and no task covers."""
        return slots[self.table.holds[slots] == self.table.deaf[slots]]

    def moot(self, tasks: frozenset[Task]) -> None:
        """Some images of these tasks have their outcome: cancel the tasks that wait for no other,
        copies first."""
        for task in sorted(tasks, key=lambda task: (not task.spare, task.id)):
            if task.status != SENT or task.source == "check":
                continue
            if not (self.table.state[task.slots] & OPEN).any():
                task.move("moot")
                self.actions.append(ev.Cancel(task.id, task.rank))

    # ---- work ---------------------------------------------------------------

    def place(self, work: Work, holds: int = 1) -> None:
        """Let the work wait: for any rank that may take it or, where ranks do not pull, for the
        least loaded one. `holds`: 0 if its images count on it already."""
        if holds:
            self.table.holds[work.slots] += 1
            if work.like.kind == self.scheme.main:
                self.sends(work.slots, 1)
        if self.scheme.pulls:
            self.queues[work.like.kind].add(work)
        else:
            self.bind(self.ranks.best(work, self.has), work)

    def work(self, kind: str, source: str, attempt: int, slots: np.ndarray, *ranks: Any) -> Work:
        """Work for these images, in the order of their positions; `ranks`: avoid, held."""
        like = Like(kind, source, min(attempt, MOST_ATTEMPTS))
        return Work(like, slots, int(self.table.position[slots[0]]), *ranks)

    def bind(self, rank: Rank | None, work: Work) -> None:
        """Let the work, which its images count on already, wait for this rank."""
        if rank is None:
            self.release(work.slots)
        else:
            rank.bound.add(work)
            self._bound[rank.id] = rank

    def sends(self, slots: np.ndarray, more: int) -> None:
        """So many more tasks of the main kind are made for the images."""
        self.table.sends[slots] = np.minimum(self.table.sends[slots] + more, MOST_ATTEMPTS)

    def release(self, slots: np.ndarray) -> None:
        """A task or some work that images counted on will not come: give them what they need."""
        self.table.holds[slots] -= 1
        self.help(slots)

    def help(self, slots: np.ndarray) -> None:
        """Give those of the images that count on nothing what they need."""
        slots = self.in_need(self.table.open(slots))
        if len(slots):
            self.retries.all(slots)

    def wanted(self, slots: np.ndarray) -> np.ndarray:
        """Those of the images that waited which are unresolved; the others wait no longer."""
        found = self.table.open(slots)
        if found is not slots:
            self.table.holds[slots[self.table.state[slots] & OPEN == 0]] -= 1
        return found

    def by_t0(self, slots: np.ndarray) -> Iterator[tuple[int, tuple[np.ndarray, np.ndarray]]]:
        """The images, and their positions, by the time from which their latency counts."""
        t0s = self.table.records["t0_ns"][slots]
        for t0_ns in np.unique(t0s).tolist():
            own = slots[t0s == t0_ns]
            yield t0_ns, (own, self.table.position[own])

    def sure(self, answer: Answer, items: np.ndarray, policy: AcceptPolicy) -> np.ndarray:
        """(k,) bool, which of these answers, (k,) int64, count at once: by their score, or because
        of their deadline."""
        if isinstance(policy, First):
            return np.ones(len(items), bool)
        found: np.ndarray = answer.cells["score"][items] >= policy.confidence
        if policy.deadline_ns is not None:
            t0s = self.table.records["t0_ns"][answer.slots[items]]
            found |= t0s + policy.deadline_ns <= self.now_ns
        return found

    def keep(self, answer: Answer, items: np.ndarray, deadline_ns: int | None) -> None:
        """Keep these answers, (k,) int64; each counts at its deadline, if there is one."""
        self.outcomes.keep(answer, items)
        if deadline_ns is not None:
            for t0_ns, own in self.by_t0(answer.slots[items]):
                self.later(t0_ns + deadline_ns, self._deadline, own)

    def _deadline(self, own: tuple[np.ndarray, np.ndarray]) -> None:
        self.outcomes.use_late(self.table.still(*own))

    def _serve(self) -> None:
        """Let the ranks with room take work: those with the fewest messages first."""
        self._gathers = self.gathers()
        if self._bound and not self._gathers:
            for rank in list(self._bound.values()):
                while rank.bound.works and rank.messages < rank.credit:
                    self._take(rank, rank.bound, self.settings.batch, lambda work: True)
                self._bound.pop(rank.id, None)
        for kind in self.scheme.serves:
            room, passed = self.ranks.room[kind], 0
            while passed < len(room) and self._anything(kind):
                rank = room[passed][-1]
                pace_ns = rank.pace_ns
                # A speed that is forgotten may free others.
                if not (self.checks.take(rank) or self.scheme.next(self, rank)):
                    passed = passed + 1 if rank.pace_ns == pace_ns else 0

    def gathers(self) -> bool:
        """Whether work waits until all images that could leave with it are there."""
        many = self.scheme.gathers or self.settings.batch > 1
        return self.settings.together and many and self.admission.gathering

    def _anything(self, kind: str) -> bool:
        """Whether work waits that a rank of this kind could take."""
        if (self.fresh.count or self.alone.count) and not self._gathers:
            return True
        queue = self.queues.get(kind)
        waits = bool(queue is not None and queue.works) or bool(self.late) or self.checks.due
        return waits or self._copying

    @property
    def _copying(self) -> bool:
        """Whether idle ranks may get copies."""
        over = self.admission.closed or self.admission.paused
        if not (self.settings.endgame and over and self.admission.unresolved):
            return False
        if self._copies is None:
            self._copies = [Fresh() for _ in range(MOST_COPIES)]
            slots = np.flatnonzero(self.table.state & OPEN)
            self._copies[0].add(slots[np.argsort(self.table.position[slots])])
        return any(each.count for each in self._copies)

    # What schemes let a rank take, in the order that they say; whether it took something.

    def _take(self, rank: Rank, queue: Queue, most: int, may: Callable[[Work], bool]) -> bool:
        """The oldest work that may leave, up to so many inputs of one kind. Work that failed before
        leaves alone."""
        works: list[Work] = []
        place = 0
        while place < len(queue.works) and most > 0:
            work = queue.works[place]
            if (
                self.scheme.redundant and any(overlap(work.slots, each.slots) for each in works)
            ) or not may(work):
                place += 1  # another copy of what it takes is for another rank
                continue
            failed = self.retries.failed(work.like.kind, work.slots)
            if works and (failed or work.like.kind != works[0].like.kind):
                break
            queue.pop(place)
            work.slots = self.wanted(work.slots)
            if not len(work.slots):
                continue
            inputs = 1
            if not KIND[work.like.kind].encoded:
                inputs = 1 if failed else most
                if len(work.slots) > inputs:
                    queue.add(self.work(*work.like[:3], work.slots[inputs:], work.avoid, work.held))
                    work.slots = work.slots[:inputs]
                inputs = len(work.slots)
            works.append(work)
            most = 0 if failed else most - inputs
        if not works:
            return False
        kind, parts = works[0].like.kind, [(work.like, work.slots) for work in works]
        if len(works) > 1 and not KIND[kind].encoded:  # images of the same sort are one task
            same: dict[Like, list[np.ndarray]] = {}
            for like, slots in parts:
                same.setdefault(like, []).append(slots)
            parts = [(like, self.in_order(slots)) for like, slots in same.items()]
        self.send(rank, kind, parts)
        return True

    def in_order(self, arrays: list[np.ndarray]) -> np.ndarray:
        """The slots of some arrays in the order of their positions."""
        slots = joined(arrays)
        return slots[np.argsort(self.table.position[slots])]

    def has(self, rank: Rank, work: Work) -> bool:
        """Whether the rank has an image of the work for the same network, or is to get it."""
        kind = work.like.kind
        if any(t.rank == rank.id and t.kind == kind for t in self.sharers(work.slots)):
            return True
        bound = rank.bound.works
        return any(w.like.kind == kind and overlap(w.slots, work.slots) for w in bound)

    def take_again(self, rank: Rank, kind: str) -> bool:
        """Work of images that were sent before, or of whole groups: up to a batch."""
        queue = self.queues.get(kind)
        if queue is None or not queue.works or kind not in rank.kinds:
            return False
        encoded, main = KIND[kind].encoded, kind == self.scheme.main
        size = self._size if KIND[kind].batched else 1  # images that count as an input
        waiting = len(queue.works) if encoded else -(-queue.count // size)
        if main and not encoded:
            waiting += self.scheme.waiting(self)
        only = encoded and main  # its first tasks wait here too
        share = self._portion(rank, kind, waiting, fresh=only)
        most = (share or self.settings.batch) * size
        return self._take(rank, queue, most, lambda work: self._may(rank, work, share))

    def _may(self, rank: Rank, work: Work, share: int) -> bool:
        """Whether the rank may take the work, and does not leave it to quicker ranks."""
        kind = work.like.kind
        twice = self.scheme.redundant or self._copies is not None
        if rank.id in work.held or (twice and self.has(rank, work)):
            return False
        if rank.id in work.avoid and next(self.ranks.others(kind, work.avoid), None):
            return False
        return bool(share) or not self.ranks.quicker(kind, work.avoid)

    def _portion(self, rank: Rank, kind: str, waiting: int, *, fresh: bool = True) -> int:
        """How many of the waiting inputs the rank takes; 0 if it passes over them. In a closed loop
        the number of `fresh` ones counts as unlimited until the input ends."""
        over = self.admission.closed or self.admission.paused
        endless = fresh and self.settings.together and not over
        waiting = 0 if endless else waiting
        most = self.ranks.portion(rank, kind, waiting, self.settings.batch, self.now_ns)
        return most or int(endless)

    def take_fresh(self, rank: Rank, kind: str, *fresh: Fresh) -> bool:
        """Images that were never sent: up to a batch, or a share if too few wait for all ranks. An
        input of a kind that is not the main one has as many images as a group."""
        main = kind == self.scheme.main
        size = 1 if main else self._size
        for each in fresh:
            while each.count and kind in rank.kinds and not self._gathers:
                waiting = -(-each.count // size)
                if main:
                    waiting = self.queues[kind].count + self.scheme.waiting(self)
                most = self._portion(rank, kind, waiting)
                if not most:
                    break
                share = each.count // (size * (self.ranks.idle(kind) or 1)) or 1
                slots = each.take((most if most < share else share) * size)
                if self.scheme.redundant:
                    slots = self.wanted(slots)
                if not main:
                    self.sends(slots, -1)  # each counted on a task of its own
                if len(slots):
                    parts, like = [(FIRST[kind], slots)], FIRST[kind]
                    if KIND[kind].encoded and len(slots) > size:
                        starts = range(0, len(slots), size)
                        parts = [(like, slots[at : at + size]) for at in starts]
                    self.send(rank, kind, parts)
                    return True
        return False

    def note_late(self, own: tuple[np.ndarray, np.ndarray]) -> None:
        """The first answers of these images are late: an idle rank may have them once more."""
        for slot, position in zip(*own, strict=True):
            self.late.append((slot[None], position[None]))
        self.late.sort(key=lambda each: int(each[1][0]))

    def take_late(self, rank: Rank) -> bool:
        """An image whose first answer is late, for an idle rank that does not have it."""
        if not self.late or rank.messages or rank.bound.works or SINGLE not in rank.kinds:
            return False
        place = 0
        while place < len(self.late):
            slots, positions = self.late[place]
            slot, barred = int(slots[0]), {task.rank for task in self.sharers(slots)}
            if not len(self.table.still(slots, positions)):
                del self.late[place]
                continue
            # Otherwise it waits for a rank with room, or for ranks to recover.
            free = (barred or not self.scheme.pulls) and not self.retries.waits(slot)
            if free and rank.id not in barred | self.retries.tried(slot):
                del self.late[place]
                self._send_more(rank, Like(SINGLE, "hedge", 1), [slots])
                return True
            place += 1
        return False

    def take_copy(self, rank: Rank) -> bool:
        """Copies for an idle rank when no image is left to come: of the oldest images with the
        fewest copies. An image that has failed gets none: it might make the idle ranks fail too.

        This is robust dynamic load balancing (rDLB; Mohammed, Cavelan, Ciorba, arXiv 1905.08073).
        """
        main = self.scheme.main
        if rank.messages or rank.bound.works or main not in rank.kinds or not self._copying:
            return False
        encoded, levels = KIND[main].encoded, self._copies or []
        most = min(self.settings.batch, -(-self.admission.unresolved // self.ranks.idle(main)))
        found: list[tuple[int, np.ndarray]] = []
        taken = 0
        for copies, level in enumerate(levels):
            while level.count and taken < most:
                slots = self._copied(level.take(1 if encoded else most - taken))
                if encoded and len(slots):  # its group leaves with it
                    slots = self._copied(self.group_of(int(slots[0])))
                    for each in levels:
                        rest = each.clear()
                        each.add(rest[~np.isin(rest, slots)])
                    most = 0
                if len(slots):
                    found.append((copies + 1, slots))
                    taken += len(slots)
        for copies, slots in found:
            if copies < MOST_COPIES:
                levels[copies].add(slots)
        if not found:
            return False
        parts = [self.in_order([slots for _, slots in found])]
        attempt = min(int(self.table.sends[parts[0]].max()) + 1, MOST_ATTEMPTS)
        self._send_more(
            rank, Like(main, "endgame" if main == SINGLE else main, attempt, True), parts
        )
        return True

    def _copied(self, slots: np.ndarray) -> np.ndarray:
        """Those of the images that may be copied: they are out, and have not failed."""
        slots, table = self.table.open(slots), self.table
        few = table.sends[slots] < MOST_ATTEMPTS - self.settings.max_attempts
        out = [number in self.tasks for number in table.last[slots].tolist()]
        return slots[few & (table.failures[slots] == 0) & np.array(out, bool)]

    def _send_more(self, rank: Rank, like: Like, parts: list[np.ndarray]) -> None:
        """Send images that did not wait for it."""
        for slots in parts:
            self.table.holds[slots] += 1
            self.sends(slots, 1)
        self.send(rank, like.kind, [(like, slots) for slots in parts])

    # ---- tasks --------------------------------------------------------------

    def send(self, rank: Rank, kind: str, parts: Sequence[tuple[Like, np.ndarray]]) -> None:
        """Send unresolved images as the tasks of one message."""
        table, scheme, tasks = self.table, self.scheme, []
        encoded, inputs = KIND[kind].encoded, len(parts)
        if not encoded:
            inputs = sum([len(slots) for _, slots in parts])
        message = Message(len(parts), inputs)
        for like, slots in parts:
            cells = np.arange(len(slots)) if encoded and scheme.mixes else None
            number, positions = next(self._numbers), table.position[slots]
            task = Task(number, rank.id, like, slots, positions, cells, message, self.now_ns)
            if scheme.redundant or like[2:] != (1, False) or self.retries.trouble:
                task.peers = self.sharers(slots)
                for peer in task.peers:
                    peer.peers |= {task}
            table.last[slots] = number
            self.tasks[number] = rank.tasks[number] = task
            tasks.append(task)
        rank.messages += 1
        self.ranks.changed(rank, self.now_ns)
        self.actions.append(ev.Send(rank.id, kind, tasks))
        scheme.left(self, tasks)

    def _left(self, event: ev.Left) -> None:
        for number, encode_ns in zip(event.tasks, event.encode_ns, strict=True):
            task = self.tasks[number]
            task.sent_ns, task.encode_ns = event.at_ns, encode_ns
            if encode_ns:
                self.table.encode_ns[self.table.open(task.slots)] += encode_ns

    def _end(self, number: int, rank_id: int, how: str, service_ns: int = 0) -> Task:
        """End the task that a terminal event names, and return it."""
        task = self.tasks.pop(number, None)
        if task is None or task.rank != rank_id:
            raise ProtocolViolation(f"rank {rank_id} ends task {number}, which it does not have")
        task.move(how)
        rank = self.ranks.known[rank_id]
        del rank.tasks[number]
        message = task.message
        message.left -= 1
        if not message.left:
            rank.messages -= 1
            if service_ns > 0:
                self.ranks.observe(rank, service_ns / self.ranks.cost(task.kind, message.inputs))
            self.ranks.changed(rank, self.now_ns)
            if rank.bound.works:
                self._bound[rank_id] = rank
        for peer in task.peers:
            peer.peers -= {task}
            last = self.table.last[peer.slots]
            self.table.last[peer.slots] = np.where(last == number, peer.id, last)
        return task

    def _answered(self, event: ev.Answered) -> None:
        rank_id, compute_ns, cells = event.rank, event.compute_ns, event.cells
        tasks = [self._end(number, rank_id, "answered", compute_ns) for number in event.tasks]
        answer, rank = Answer(tasks, event, self.now_ns), self.ranks.known[rank_id]
        slots = answer.slots
        if len(cells) != len(slots):
            raise ProtocolViolation(
                f"tasks {event.tasks} have {len(slots)} images, their answer {len(cells)} cells"
            )
        rank.failures = 0
        there, states = cells["state"].tobytes(), self.table.state[slots].tobytes()
        plain = there.count(PRESENT) == states.count(OPEN) == len(slots)
        if plain and self.scheme.accepts_all(answer.kind):
            self.outcomes.accept(answer)
        else:
            plain = False
            present = np.frombuffer(there, np.uint8) == PRESENT
            self._note_absent(tasks, event, present)
            still = np.frombuffer(states, np.uint8) & OPEN != 0
            self.checks.compare(answer, np.flatnonzero(present & ~still))
            self.scheme.answered(self, answer, np.flatnonzero(present & still))
        self._over(tasks, slots, "answered", compute_ns, event.at_ns, left=not plain)
        if rank.status in SILENT:
            self._alive(rank)

    def _over(
        self,
        tasks: Sequence[Task],
        slots: np.ndarray,
        outcome: str,
        compute_ns: int = 0,
        at_ns: int = 0,
        reason: str = "",
        *,
        left: bool = True,
    ) -> None:
        """Images count no longer on these tasks, which have ended: write the tasks' rows. `left`:
        some of the images may be unresolved."""
        self.table.holds[slots] -= 1
        if not tasks[0].covers:
            self.table.deaf[slots] -= 1
        elif left:
            self.help(slots)
        done_ns, code = at_ns or self.now_ns, OUTCOME_CODE[outcome]
        for task in tasks:
            task.outcome, task.done_ns, task.compute_ns = code, done_ns, compute_ns
            task.reason = reason
            if not task.kept:
                self.over.append(task)
        self.checks.ended(slots)

    def _note_absent(
        self, tasks: Sequence[Task], event: ev.Answered | ev.Failed, there: np.ndarray
    ) -> None:
        """Remember of images without an answer why they need another task."""
        lines, states, place = iter(event.reasons), event.cells["state"].tolist(), 0
        for task in tasks:
            for slot in task.slots.tolist():
                if not there[place]:
                    unread = states[place] in (UNREAD, BAD_ROW)
                    reason = next(lines, ev.LOST_REASON) if unread else ""
                    if not self.table.state[slot] & OPEN:
                        pass
                    elif unread:
                        bad_row = states[place] == BAD_ROW
                        self.retries.note_unread(task, slot, reason, bad_row=bad_row)
                    elif task.kind == self.scheme.main:
                        own = np.array([slot])
                        self.retries.note(task, own, "the network gave no answer", failed=True)
                place += 1

    def _failed(self, event: ev.Failed) -> None:
        task = self._end(event.task, event.rank, "failed")
        rank, slots = self.ranks.known[event.rank], task.slots
        states = event.cells["state"]
        unread = (states == UNREAD) | (states == BAD_ROW)
        bad_rows = unread.any() and not (states == UNREAD).any()
        if not bad_rows and not self.retries.failed(
            task.kind, task.slots
        ):  # else the images may be at fault
            rank.failures += 1
        spared = rank.status == READY and all(len(self.ranks.ready[k]) > 1 for k in rank.kinds)
        if rank.failures >= self.settings.max_failures and spared:  # others hold its networks
            rank.move("failing")
            why = f"{rank.failures} failures in a row, the last: {event.reason}"
            self._leave(rank)
            self.actions.append(ev.Retire(rank.id, why))
        if unread.any():
            self._note_absent([task], event, ~unread)
            slots = slots[~unread]
        self.retries.note(task, self.table.open(slots), event.reason, failed=True)
        self._redo(task)
        self._over([task], task.slots, "failed", reason=event.reason)
        self._alive(rank)

    def _redo(self, task: Task) -> None:
        """Send a collage again that will not be answered, or not soon."""
        if task.kind != self.scheme.main and self.scheme.grouped:
            self.retries.again(task, self.table.open(task.slots))

    def _skipped(self, event: ev.Skipped) -> None:
        task = self._end(event.task, event.rank, "skipped")
        self._over([task], task.slots, "skipped")
        self._alive(self.ranks.known[event.rank])

    def _alive(self, rank: Rank) -> None:
        """The rank has just ended a task: it recovers if it was silent."""
        if rank.status in SILENT:
            rank.move("heard")
            for task in rank.tasks.values():
                task.covers = True
                self.table.deaf[task.slots] -= 1
            if rank.status == READY:
                self.ranks.enter(rank, self.now_ns)
            self.retries.ranks_changed()

    # ---- ranks --------------------------------------------------------------

    def _ready(self, event: ev.RankReady) -> None:
        if event.rank in self._reported:
            raise ProtocolViolation(f"rank {event.rank} is ready twice, or after it was lost")
        self._reported.add(event.rank)
        rank = Rank(*event)
        self.ranks.enter(rank, self.now_ns)
        self.retries.ranks_changed()

    def _recall(self, kind: str) -> None:
        """Let a retired rank work again if no rank of the kind is ready any more."""
        retired = (r for r in self.ranks.known.values() if r.status == RETIRED and kind in r.kinds)
        if not self.ranks.ready[kind] and (rank := next(retired, None)) is not None:
            rank.move("recalled")
            rank.failures = 0
            self.actions.append(ev.Recall(rank.id))
            self.ranks.enter(rank, self.now_ns)

    def _silent(self, event: ev.RankSilent) -> None:
        rank = self.ranks.known.get(event.rank)
        if rank is None or rank.status in SILENT or rank.status == LOST or not rank.tasks:
            return  # a rank that owes no answer is not silent: its last answer has just come
        rank.move("silent")
        self._leave(rank)
        why = f"rank {rank.id} is silent: {event.why}"
        for task in list(rank.tasks.values()):
            self.retries.note(task, self.table.open(task.slots), why, failed=False)
            self._redo(task)
            task.covers = False
            self.table.deaf[task.slots] += 1
            self.help(task.slots)
            self.checks.ended(task.slots)

    def _lost(self, event: ev.RankLost) -> None:
        self._reported.add(event.rank)
        rank = self.ranks.known.get(event.rank)
        if rank is not None and rank.status != LOST:
            rank.move("gone")
            tasks = [self._end(each, rank.id, "lost") for each in list(rank.tasks)]
            self._leave(rank)
            self.retries.lost_ns = self.now_ns
            why = f"rank {rank.id} was lost: {event.why}"
            for task in tasks:
                self.retries.note(task, self.table.open(task.slots), why, failed=True, lost=True)
            for task in tasks:
                self._redo(task)
                self._over([task], task.slots, "lost", reason=event.why)
            self.retries.ranks_changed()
        if len(self._reported) >= self.settings.ranks and not any(
            rank.status != LOST and rank.kinds & self.scheme.needs
            for rank in self.ranks.known.values()
        ):
            self.stop(NOBODY)

    def _unfit(self, event: ev.RankUnfit) -> None:
        rank = self.ranks.known.get(event.rank)
        if rank is not None and event.kind in rank.kinds:
            self.ranks.drop(rank, event.kind)
            self._bind_again(rank.bound.clear(), rank)
            self._without(event.kind)

    def _leave(self, rank: Rank) -> None:
        """The rank takes no more work: move what waited for it, and for its kind of rank."""
        self.ranks.leave(rank, self.now_ns)
        self._bound.pop(rank.id, None)
        bound = rank.bound.clear()
        for kind in sorted(rank.kinds):
            self._recall(kind)
        self._bind_again(bound)
        for kind in rank.kinds:
            self._without(kind)

    def _bind_again(self, works: Sequence[Work], rank: Rank | None = None) -> None:
        """Bind the work to `rank` again, or to another one if that cannot do it any more."""
        for work in works:
            work.slots = self.wanted(work.slots)
            if len(work.slots):
                stays = rank is not None and work.like.kind in rank.kinds
                self.bind(rank if stays else self.ranks.best(work, self.has), work)

    def _without(self, kind: str) -> None:
        """A rank takes no more work of this kind: move what no other one can take."""
        if not self.ranks.ready[kind]:
            self.scheme.nobody(self, kind)
        self.checks.ranks_changed()
        for work in self.queues[kind].clear():
            if next(self.ranks.others(kind, work.held), None) is None:
                self.release(work.slots)
            else:
                self.queues[kind].add(work)

    def strand(self, fresh: Fresh) -> None:
        """No rank can take these images as they wait: give each what it needs."""
        self.release(fresh.clear())

    def anybody(self) -> bool:
        """Whether a rank that the scheme can use is ready, or silent and may recover."""
        needs = self.scheme.needs
        return any(self.ranks.ready[kind] for kind in needs) or self.ranks.any_silent(needs)

    # ---- rows of tasks ------------------------------------------------------

    def take_tasks(self) -> np.ndarray:
        """Take out the rows of tasks that are over, (n,) of TASK_ROW."""
        tasks, self.over = self.over, []
        return np.frombuffer(b"".join([self._row(task) for task in tasks]), TASKS.dtype)

    def _row(self, task: Task) -> bytes:
        table, kind, group = self.table, KIND_CODE[task.kind], int(task.positions[0]) // self._size
        sent_ns, over_ns = task.sent_ns - table.start_ns, max(task.done_ns, task.sent_ns)
        what = task.id, task.rank, kind, group, task.attempt, len(task.slots), task.resolved
        when = sent_ns, over_ns - table.start_ns, task.compute_ns
        warm, reason = group < table.warm_groups, reason_bytes(task.reason)
        return _pack_row(*what, *when, task.outcome, table.session, warm, reason)

    def close(self, now_ns: int, left: Sequence[ev.Left] = ()) -> None:
        """After the last step: end the rows of tasks that are still out; their times are censored.

        `left`: messages that left after it.
        """
        self.now_ns = max(now_ns, self.now_ns)
        for each in left:
            self._left(each)
        for task in list(self.tasks.values()):
            ended = self._end(task.id, task.rank, "unfinished")
            self._over([ended], task.slots, "unfinished", left=False)
        self.checks.close()
        self.over += self.ended.values()
        self.ended.clear()

    # ---- the end ------------------------------------------------------------

    def stop(self, reason: str) -> None:
        """Send nothing more. Tasks under way may still be answered for `stop_ns`."""
        if self.stopping is None:
            self.stopping = reason
            self.later(self.now_ns + self.settings.stop_ns, self._finish, None)

    def _maybe_finish(self) -> None:
        if self.stopping is None and not self._done:
            return
        checks = self.stopping is None and self.checks.busy
        if not self.tasks and not checks and not self._kept_for_later():
            self._finish(None)
        elif self.stopping is None and not self._ending:
            self._ending = True
            self.later(self.now_ns + self.settings.late_ns, self._end_late, self.now_ns)

    def _end_late(self, since_ns: int) -> None:
        """Late answers were waited for, and those that decide between others are a while longer."""
        until_ns = since_ns + self.settings.end_ns
        if self.checks.busy and self.now_ns < until_ns:
            self.later(min(until_ns, self.now_ns + self.settings.late_ns), self._end_late, since_ns)
        else:
            self._finish(None)

    def _kept_for_later(self) -> bool:
        """Whether answers are kept that will count at their deadlines."""
        return any(
            call == self._deadline and len(self.table.still(*own))
            for _, _, call, own in self._timers
        )

    @property
    def _done(self) -> bool:
        return self.admission.closed and not self.admission.unresolved

    def _finish(self, _: object) -> None:
        if self._finished:
            return
        self._finished = True
        status, reason = ev.INCOMPLETE, self.stopping or ""
        if self._done:
            status, reason = ev.COMPLETE, ""
            if self.outcomes.totals.errors:
                status = ev.COMPLETE_WITH_ERRORS
        self.actions.append(ev.Finish(status, reason))
