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
from collage_mpi.core.events import Action, Event, Positions
from collage_mpi.core.outcomes import Outcomes, present
from collage_mpi.core.policies import AcceptPolicy, First
from collage_mpi.core.ranks import Rank, Ranks
from collage_mpi.core.retries import NOBODY, Retries
from collage_mpi.core.schemes import Scheme
from collage_mpi.core.settings import CoreSettings
from collage_mpi.core.states import DONE, DRAWN, LOST, OPEN, READY, RETIRED, SHARED, SILENT
from collage_mpi.core.table import Table, picked
from collage_mpi.core.work import MOST_ATTEMPTS, Fresh, Message, Queue, Task, Work, overlap
from collage_mpi.kinds import KIND, SINGLE
from collage_mpi.rows import BAD_ROW, KIND_CODE, OUTCOME_CODE, TASKS, UNREAD, reason_bytes

MOST_COPIES = 8  # of an image in the end game: it is very unlikely that all are on slow ranks
NO_REASON = b""
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
        self.fresh, self.alone = Fresh(), Fresh()  # `alone`: for the main kind only
        self.queues: defaultdict[str, Queue] = defaultdict(Queue)
        self.late = Queue()  # images that an idle rank may have once more
        self.encode_ns: dict[int, int] = {}  # group -> time for making its collages
        self.stopping: str | None = None
        self.retries = Retries(self)
        self.outcomes = Outcomes(self)
        self.admission = Admission(self)
        self._reported: set[int] = set()
        self._bound: dict[int, Rank] = {}  # ranks that may have room for work of their own
        self._more: dict[int, list[Task]] = {}  # SHARED image -> its tasks that are out
        self._ended: dict[int, Task] = {}  # ended, but an answer of it is kept
        self._rows: list[bytes] = []  # of tasks
        self._numbers, self._order = count(), count()
        self._timers: list[tuple[int, int, Callable[[Any], None], Any]] = []
        self._copies: list[tuple[int, int]] | None = None  # heap of (copies, image) at the end
        self._ending = self._finished = False
        self._handlers: dict[type, Callable[[Any], None]] = {
            ev.Answered: self._answered,
            ev.Arrived: self._arrived,
            ev.Left: self._left,
            ev.RankReady: self._ready,
            ev.RankSilent: self._silent,
            ev.RankLost: self._lost,
            ev.Failed: self._failed,
            ev.Skipped: self._skipped,
            ev.InputPaused: self._input_ends,
            ev.InputClosed: self._input_ends,
            ev.StopRequested: lambda event: self.stop(event.reason),
            ev.Threshold: lambda event: scheme.judge_by(self, event.confidence),
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
        first, images = max(event.first, self.next), len(event.images)
        if self.admission.closed:
            raise ProtocolViolation(f"image {first} arrived after InputClosed")
        if self.admission.paused:
            self._copies = None
        for part in self.table.add(first, images):
            block, at, items = part
            assert isinstance(items, slice)  # new images lie side by side
            block.open += items.stop - items.start
            records = block.records
            records["placed"][at] = event.images[items]
            t0_ns = event.t0_ns
            records["t0_ns"][at] = t0_ns if isinstance(t0_ns, int) else t0_ns[items]
            records["read_ns"][at] = event.read_ns
            block.main[at] = block.first[at] = block.kept[at] = -1
            block.cover[at], block.sends[at] = self.scheme.covers, self.scheme.first_sends
            block.states[at] = OPEN
            if event.drawn is not None:
                block.states[at] |= np.where(event.drawn[items], DRAWN, 0).astype(np.uint8)
        self.outcomes.totals.admitted += images
        full = self.admission.came(first, images)
        if self.stopping is not None:
            return
        open_group = self._group_at(self.next)
        new = self.admission.filling and open_group * self._size >= first
        if new and self.settings.linger_ns is not None:
            self.later(self.now_ns + self.settings.linger_ns, self._linger, open_group)
        start = first
        for fault in sorted(event.faults):
            self._enter(range(start, first + fault), first, event)
            self.ranks.skip_turn(SINGLE)
            self.outcomes.error(first + fault, event.faults[fault])
            start = first + fault + 1
        self._enter(range(start, first + images), first, event)
        for group in full:
            self._group_closed(group)

    def _group_at(self, position: int) -> int:
        return position // self._size

    def _enter(self, positions: range, first: int, event: ev.Arrived) -> None:
        """Give images to the scheme, cut where drawn and other images meet."""
        if not positions:
            return
        if event.drawn is None:
            self.scheme.arrived(self, positions, drawn=False)
            return
        drawn = event.drawn[positions.start - first : positions.stop - first]
        cuts = (np.flatnonzero(np.diff(drawn)) + 1).tolist()
        for start, stop in zip([0, *cuts], [*cuts, len(positions)], strict=True):
            self.scheme.arrived(self, positions[start:stop], drawn=bool(drawn[start]))

    def _linger(self, group: int) -> None:
        if self.admission.filling and self._group_at(self.next) == group:
            self._cut_short()

    def _cut_short(self) -> None:
        """Close the open group before it is full."""
        group = self.admission.close_group()
        if group is not None:
            self._group_closed(group)

    def _group_closed(self, group: int) -> None:
        """The group gets no further image."""
        if self.scheme.grouped and self.stopping is None:
            self.scheme.group_full(self, self.group(group * self._size))

    def group_over(self, group: int) -> None:
        """All images of the group have their outcome."""
        self.encode_ns.pop(group, None)

    def _input_ends(self, event: ev.InputPaused | ev.InputClosed) -> None:
        if isinstance(event, ev.InputClosed):
            self.admission.close()
        self._cut_short()
        if isinstance(event, ev.InputPaused):
            self.admission.pause()

    def gone(self, positions: Positions) -> None:
        """These images have their outcome."""
        self.admission.resolved(positions)
        self.actions.append(ev.Resolved(positions))

    # ---- who has an image ---------------------------------------------------

    def holders(self, position: int) -> list[Task]:
        """The tasks of the image that are out."""
        if (found := self._more.get(position)) is not None:
            return found
        block, at = self.table.find(position)
        numbers = {int(block.main[at]), int(block.first[at])}
        return [self.tasks[number] for number in sorted(numbers) if number in self.tasks]

    def group(self, position: int) -> Positions:
        """The unresolved images of its group."""
        first = self._group_at(position) * self._size
        return self.table.unresolved(range(first, min(first + self._size, self.table.end)))

    def in_need(self, position: int) -> np.ndarray:
        """The images of its group that no task covers and that have attempts left, (n,) int64."""
        failed = {
            each
            for each, trouble in self.retries.trouble.items()
            if trouble.failures >= self.settings.max_attempts
        }
        found = self.uncovered(self.group(position)).tolist()
        return np.array([each for each in found if each not in failed], np.int64)

    def uncovered(self, positions: Positions) -> np.ndarray:
        """Those of the images that count on no task, (n,) int64."""
        found = [
            picked(positions, items)[block.cover[at] == 0]
            for block, at, items in self.table.parts(positions)
        ]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def moot(self, position: int) -> None:
        """The image has its outcome: its tasks have one image less to wait for."""
        tasks = [task for task in self._more.pop(position, ())] or self.holders(position)
        for task in sorted(tasks, key=lambda task: not task.spare):
            task.left -= 1
            if not task.left and task.id in self.tasks:
                task.move("moot")
                self.actions.append(ev.Cancel(task.id, task.rank))

    def kept_task(self, number: int) -> Task:
        """The task whose answer is kept, ended or being ended."""
        return self._ended[number]

    # ---- work ---------------------------------------------------------------

    def place(self, work: Work) -> None:
        """Let the work wait: for any rank that may take it or, where ranks do not pull, for the
        least loaded one."""
        self.expect(work)
        if self.scheme.pulls:
            self.queues[work.kind].add(work)
        else:
            self.bind(self.ranks.best(work), work)

    def expect(self, work: Work, more: int = 1) -> None:
        """Note that the images can count on so many more tasks of the kind of the work."""
        self.cover(work.positions, more)
        if work.kind == self.scheme.main:
            self.sends(work.positions, more)

    def bind(self, rank: Rank | None, work: Work) -> None:
        """Let the work, which its images count on already, wait for this rank."""
        if rank is None:
            self.uncover(work.positions)
        else:
            rank.bound.add(work)
            self._bound[rank.id] = rank

    def cover(self, positions: Positions, more: int) -> None:
        """The images can count on so many more tasks, or fewer."""
        for block, at, _ in self.table.parts(positions):
            block.cover[at] = block.cover[at].astype(np.int16) + more

    def sends(self, positions: Positions, more: int) -> None:
        """So many more tasks of the main kind are made for the images."""
        for block, at, _ in self.table.parts(positions):
            made = block.sends[at].astype(np.int16) + more
            block.sends[at] = np.minimum(made, MOST_ATTEMPTS)

    def states(self, positions: Positions) -> np.ndarray:
        """(n,) uint8, the images' states; DONE for those whose rows were taken."""
        found = np.full(len(positions), DONE, np.uint8)
        for block, at, items in self.table.parts(positions):
            found[items] = block.states[at]
        return found

    def t0s(self, positions: Positions) -> np.ndarray:
        """(n,) int64, the times from which the latencies count; 0 if the rows were taken."""
        found = np.zeros(len(positions), np.int64)
        for block, at, items in self.table.parts(positions):
            found[items] = block.records["t0_ns"][at]
        return found

    def by_t0(self, positions: Positions) -> Iterator[tuple[int, Positions]]:
        """The images by the time from which their latency counts."""
        t0s = self.t0s(positions)
        for t0_ns in np.unique(t0s).tolist():
            yield t0_ns, np.asarray(positions)[t0s == t0_ns]

    def sure(self, task: Task, cells: np.ndarray, policy: AcceptPolicy) -> np.ndarray:
        """(n,) bool, which answers count at once: by their score, or because of their deadline."""
        if isinstance(policy, First):
            return np.ones(len(cells), bool)
        found: np.ndarray = cells["score"] >= policy.confidence
        if policy.deadline_ns is not None:
            found |= self.t0s(task.positions) + policy.deadline_ns <= self.now_ns
        return found

    def keep(
        self, task: Task, cells: np.ndarray, some: np.ndarray, deadline_ns: int | None
    ) -> None:
        """Keep these answers, (n,) bool; each counts at its deadline, if there is one."""
        self.outcomes.keep(task, cells, some)
        if deadline_ns is not None:
            for t0_ns, own in self.by_t0(np.asarray(task.positions)[some]):
                self.later(t0_ns + deadline_ns, self.outcomes.use_late, own)

    def note_late(self, positions: Positions) -> None:
        """The first answers of these images are late."""
        for each in np.asarray(self.table.unresolved(positions)).tolist():
            self.late.add(Work(SINGLE, "hedge", 1, range(each, each + 1)))

    def uncover(self, positions: Positions) -> None:
        """A task or some work that images counted on will not come: give them what they need."""
        positions = self.table.unresolved(positions)
        self.cover(positions, -1)
        if len(found := self.uncovered(positions)):
            self.retries.all(found)

    def _serve(self) -> None:
        """Let the ranks with room take work: those with the fewest messages first."""
        if self._bound and not self.gathers():
            for rank in list(self._bound.values()):
                self._send_bound(rank)
        for kind in self.scheme.serves:
            room, passed = self.ranks.room[kind], 0
            while passed < len(room) and self._anything(kind):
                rank = room[passed][-1]
                works = self.scheme.next(self, rank)
                if works:
                    self._send(rank, works)
                else:
                    passed += 1

    def gathers(self) -> bool:
        """Whether work waits until all images that could leave with it are there."""
        many = self.scheme.gathers or self.settings.batch > 1
        return self.settings.together and many and self.admission.gathering

    def _anything(self, kind: str) -> bool:
        """Whether work waits that a rank of this kind could take."""
        queue = self.queues.get(kind)
        if (queue is not None and queue.works) or self.late.works or self._copying:
            return True
        return bool(self.fresh.count or self.alone.count) and not self.gathers()

    @property
    def _copying(self) -> bool:
        """Whether idle ranks may get copies."""
        over = self.admission.closed or self.admission.paused
        if not (self.settings.endgame and over and self.admission.unresolved):
            return False
        if self._copies is None:
            self._copies = [(0, each) for each in self.table.all_unresolved().tolist()]
        return bool(self._copies)

    def _send_bound(self, rank: Rank) -> None:
        while rank.bound.works and rank.messages < rank.credit:
            if works := self._taken(rank.bound, self.settings.batch, lambda work: True):
                self._send(rank, works)
        self._bound.pop(rank.id, None)

    # What schemes take for a rank, in the order that they say. Each returns [] if there is nothing.

    def _taken(self, queue: Queue, most: int, may: Callable[[Work], bool]) -> list[Work]:
        """The oldest work that may leave, up to so many inputs of one kind. Work that failed before
        leaves alone."""
        works: list[Work] = []
        place = 0
        while place < len(queue.works) and most > 0:
            work = queue.works[place]
            copy = any(overlap(work.positions, each.positions) for each in works)
            if copy or not may(work):
                place += 1  # another copy of what it takes is for another rank
                continue
            failed = self.retries.failed(work)
            if works and (failed or work.kind != works[0].kind):
                break
            queue.pop(place)
            if not len(self._unresolved(work)):
                continue
            inputs = 1
            if not KIND[work.kind].encoded:
                inputs = 1 if failed else most
                if rest := work.cut(inputs):
                    queue.add(rest)
                inputs = len(work.positions)
            works.append(work)
            most = 0 if failed else most - inputs
        return works

    def _unresolved(self, work: Work) -> Positions:
        """Leave only those images in the work that are unresolved; these."""
        work.positions = self.table.unresolved(work.positions)
        return work.positions

    def take_again(self, rank: Rank, kind: str) -> list[Work]:
        """Work of images that were sent before, or of whole groups: up to a batch."""
        queue = self.queues.get(kind)
        if queue is None or not queue.works or kind not in rank.kinds:
            return []
        encoded = KIND[kind].encoded
        waiting = len(queue.works) if encoded else queue.count + self.scheme.waiting(self)
        only = encoded and kind == self.scheme.main  # its first tasks wait here too
        share = self._portion(rank, kind, waiting, fresh=only)
        most = share or self.settings.batch
        return self._taken(queue, most, lambda work: self._may(rank, work, share))

    def _may(self, rank: Rank, work: Work, share: int) -> bool:
        """Whether the rank may take the work, and does not leave it to quicker ranks."""
        others = self.ranks.others(work.kind, work.avoid)
        if rank.has(work) or (
            rank.id in work.avoid and (rank.id in work.held or next(others, None))
        ):
            return False
        return bool(share) or not self.ranks.quicker(work.kind, work.avoid)

    def _portion(self, rank: Rank, kind: str, waiting: int, *, fresh: bool = True) -> int:
        """How many of the waiting inputs the rank takes; 0 if it passes over them. In a closed loop
        the number of `fresh` ones counts as unlimited until the input ends."""
        most, over = self.settings.batch, self.admission.closed or self.admission.paused
        if fresh and self.settings.together and not over:
            return max(1, self.ranks.portion(rank, kind, 0, most, self.now_ns))
        return self.ranks.portion(rank, kind, waiting, most, self.now_ns)

    def take_fresh(self, rank: Rank, kind: str, *fresh: Fresh) -> list[Work]:
        """Images that were never sent: up to a batch, or a share if too few wait for all ranks. An
        input of a kind that is not the main one has as many images as a group."""
        main = kind == self.scheme.main
        size = 1 if main else self._size
        for each in fresh:
            while each.count and kind in rank.kinds and not self.gathers():
                waiting = self.queues[kind].count + self.scheme.waiting(self)
                most = self._portion(rank, kind, waiting if main else -(-each.count // size))
                if not most:
                    break
                share = max(1, each.count // (size * max(1, self.ranks.idle(kind))))
                found = self.table.unresolved(each.take(min(most, share) * size))
                if not main:
                    self.sends(found, -1)  # each counted on a task of its own
                width = size if KIND[kind].encoded else max(1, len(found))
                starts = range(0, len(found), width)
                if starts:
                    return [Work(kind, kind, 1, found[at : at + width]) for at in starts]
        return []

    def take_late(self, rank: Rank) -> list[Work]:
        """An image whose first answer is late, for an idle rank that does not have it."""
        if rank.messages or rank.bound.works or SINGLE not in rank.kinds:
            return []
        works = self._taken(self.late, 1, lambda work: self._may_late(rank, int(work.positions[0])))
        for work in works:
            self.expect(work)
        return works

    def _may_late(self, rank: Rank, position: int) -> bool:
        if not self.table.state(position) & OPEN:
            return True
        trouble = self.retries.trouble.get(position)
        barred = {task.rank for task in self.holders(position)}
        if (self.scheme.pulls and not barred) or self.retries.waits(position):
            return False  # it waits for a rank with room, or for ranks to recover
        return rank.id not in barred and (trouble is None or rank.id not in trouble.tried)

    def take_copy(self, rank: Rank) -> list[Work]:
        """Copies for an idle rank when no image is left to come: of the oldest images with the
        fewest copies. An image that has failed gets none: it might make the idle ranks fail too.

        This is robust dynamic load balancing (rDLB; Mohammed, Cavelan, Ciorba, arXiv 1905.08073).
        """
        main = self.scheme.main
        if rank.messages or rank.bound.works or main not in rank.kinds or not self._copying:
            return []
        heap, aside = self._copies or [], []
        found: list[int] = []
        most = min(self.settings.batch, -(-self.admission.unresolved // self.ranks.idle(main)))
        while heap and len(found) < most:
            copies, position = heapq.heappop(heap)
            if not self._wants_copy(position, copies):
                continue
            if any(task.rank == rank.id for task in self.holders(position)):
                aside.append((copies, position))
                continue
            together = [position]
            if KIND[main].encoded:
                group = np.asarray(self.group(position)).tolist()
                together = [each for each in group if self._wants_copy(each, copies)]
                heap[:] = [each for each in heap if each[1] not in together]
                heapq.heapify(heap)
                most = 0
            aside += [(copies + 1, each) for each in together]
            found += together
        for entry in aside:
            heapq.heappush(heap, entry)
        if not found:
            return []
        where = np.array(sorted(found), np.int64)
        sends = max(int(block.sends[at].max()) for block, at, _ in self.table.parts(where))
        source = "endgame" if main == SINGLE else main
        work = Work(main, source, sends + 1, where, spare=True)
        self.expect(work)
        return [work]

    def _wants_copy(self, position: int, copies: int) -> bool:
        if not self.table.state(position) & OPEN or copies >= MOST_COPIES:
            return False
        if position in self.retries.trouble and self.retries.trouble[position].failures:
            return False
        block, at = self.table.find(position)
        few = int(block.sends[at]) < MOST_ATTEMPTS - self.settings.max_attempts
        return few and bool(self.holders(position))

    # ---- tasks --------------------------------------------------------------

    def _send(self, rank: Rank, works: list[Work]) -> None:
        """Send the work, of unresolved images, as one message."""
        kind = works[0].kind
        encoded = KIND[kind].encoded
        if len(works) > 1 and not encoded:
            same: dict[tuple[str, str, int, bool], list[Work]] = {}
            for work in works:
                same.setdefault(work.like, []).append(work)
            works = [_merged(each) for each in same.values()]
        tasks = []
        message = Message(len(works), 0)
        for work in works:
            cells = self.scheme.cells(self, work)
            task = Task(next(self._numbers), rank.id, work, cells, self.now_ns)
            task.message = message
            message.inputs += 1 if encoded else task.left
            self.tasks[task.id] = rank.tasks[task.id] = task
            self._note_holder(task)
            tasks.append(task)
        rank.messages += 1
        self.ranks.changed(rank, self.now_ns)
        self.actions.append(ev.Send(rank.id, kind, tasks))
        self.scheme.left(self, tasks)

    def _note_holder(self, task: Task) -> None:
        """Note in the table that the task has its images."""
        main = task.kind == self.scheme.main
        alone = task.attempt == 1 and not task.spare and task.source == task.kind
        alone = alone and not self.scheme.redundant and not self.retries.trouble
        for block, at, items in self.table.parts(task.positions):
            if not alone:
                before = (block.main[at] >= 0) | (block.first[at] >= 0)
                for position in picked(task.positions, items)[before].tolist():
                    self._share(position, task)
            (block.main if main else block.first)[at] = task.id

    def _share(self, position: int, task: Task) -> None:
        """Keep a list of the image's tasks if it has another one that is out."""
        others = self.holders(position)
        if others or position in self._more:
            block, at = self.table.find(position)
            block.state[at] |= SHARED
            self._more[position] = [*others, task]

    def _left(self, event: ev.Left) -> None:
        for number, encode_ns in zip(event.tasks, event.encode_ns, strict=True):
            task = self.tasks[number]
            task.sent_ns, task.encode_ns = event.at_ns, encode_ns
            if encode_ns and self.scheme.grouped:
                group = self._group_at(int(task.positions[0]))
                if group in self.admission.left:
                    self.encode_ns[group] = self.encode_ns.get(group, 0) + encode_ns

    def _end(self, number: int, rank_id: int, how: str, service_ns: int = 0) -> Task:
        """End the task that a terminal event names, and return it."""
        task = self.tasks.pop(number, None)
        if task is None or task.rank != rank_id:
            raise ProtocolViolation(f"rank {rank_id} ends task {number}, which it does not have")
        task.move(how)
        self._ended[number] = task
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
        if self._more:
            for position in np.asarray(task.positions).tolist():
                if (tasks := self._more.get(position)) is not None and task in tasks:
                    tasks.remove(task)
        return task

    def _answered(self, event: ev.Answered) -> None:
        task = self._end(event.task, event.rank, "answered", event.compute_ns)
        cells, rank = event.cells, self.ranks.known[event.rank]
        if len(cells) != len(task.positions):
            raise ProtocolViolation(
                f"task {task.id} has {len(task)} images, its answer {len(cells)} cells"
            )
        rank.failures = 0
        done_ns = event.at_ns or self.now_ns
        task.said = event.decode_ns, event.compute_ns, event.runtime, event.read_ns, done_ns
        self._end_row(task, "answered", event.compute_ns, "", event.at_ns)
        count = len(cells)
        there, part = present(cells), self.table.plain(task.positions)
        before = self.outcomes.totals.images
        if event.vectors is not None:
            self.outcomes.vectors = event.vectors
        if there is None and part is not None and self.scheme.accepts_all(task):
            self.outcomes.accept(task, cells, part=part)
        else:
            if there is None:
                there = np.ones(count, bool)
            else:
                self._note_absent(task, event, there)
            self.scheme.answered(self, task, cells, there)
        self.outcomes.vectors = None
        if self.outcomes.totals.images - before < count and task.covers:
            self.uncover(task.positions)
        self.write_task(task)
        self._alive(rank)

    def _note_absent(self, task: Task, event: ev.Answered | ev.Failed, there: np.ndarray) -> None:
        """Remember of images without an answer why they need another task."""
        lines, states = iter(event.reasons), event.cells["state"]
        for place in np.flatnonzero(~there).tolist():
            position = int(task.positions[place])
            unread = states[place] in (UNREAD, BAD_ROW)
            reason = next(lines, ev.LOST_REASON) if unread else ""
            if not self.table.state(position) & OPEN:
                continue
            if unread:
                bad_row = states[place] == BAD_ROW
                self.retries.note_unread(task, position, reason, bad_row=bool(bad_row))
            elif task.kind == self.scheme.main:
                where = range(position, position + 1)
                self.retries.note(task, where, "the network gave no answer", failed=True)

    def _failed(self, event: ev.Failed) -> None:
        task, rank = self._end(event.task, event.rank, "failed"), self.ranks.known[event.rank]
        task.said = (event.decode_ns, 0, 0, 0, self.now_ns)
        self._end_row(task, "failed", 0, event.reason)
        states = event.cells["state"]
        unread = (states == UNREAD) | (states == BAD_ROW)
        bad_rows = unread.any() and not (states == UNREAD).any()
        if not bad_rows and not self.retries.failed(task):  # else the images may be at fault
            rank.failures += 1
        spared = rank.status == READY and all(len(self.ranks.ready[k]) > 1 for k in rank.kinds)
        if rank.failures >= self.settings.max_failures and spared:  # others hold its networks
            rank.move("failing")
            why = f"{rank.failures} failures in a row, the last: {event.reason}"
            self._leave(rank)
            self.actions.append(ev.Retire(rank.id, why))
        others = task.positions
        if unread.any():
            self._note_absent(task, event, ~unread)
            others = picked(others, ~unread)
        self.retries.note(task, self.table.unresolved(others), event.reason, failed=True)
        self._redo(task)
        self._alive(rank)

    def _redo(self, task: Task) -> None:
        """Give the images of a task that will not be answered what they need."""
        if task.kind != self.scheme.main and self.scheme.grouped:
            self.retries.again(task, self.table.unresolved(task.positions))
        if task.covers:
            task.covers = False
            self.uncover(task.positions)
        self.write_task(task)

    def _skipped(self, event: ev.Skipped) -> None:
        self.write_task(self._over(event.task, event.rank, "skipped"))
        self._alive(self.ranks.known[event.rank])

    def _over(self, number: int, rank: int, how: str, reason: str = "") -> Task:
        """End a task that has no answer."""
        task = self._end(number, rank, how)
        self._end_row(task, how, 0, reason)
        return task

    def _alive(self, rank: Rank) -> None:
        """The rank has just ended a task: it recovers if it was silent."""
        if rank.status in SILENT:
            rank.move("heard")
            for task in rank.tasks.values():
                if not task.covers:
                    task.covers = True
                    self.cover(self.table.unresolved(task.positions), 1)
            if rank.status == READY:
                self.ranks.enter(rank, self.now_ns)
            self.retries.ranks_changed()

    # ---- ranks --------------------------------------------------------------

    def _ready(self, event: ev.RankReady) -> None:
        if event.rank in self._reported:
            raise ProtocolViolation(f"rank {event.rank} is ready twice, or after it was lost")
        self._reported.add(event.rank)
        rank = Rank(event.rank, event.kinds, event.host, event.credit)
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
        for task in list(rank.tasks.values()):
            why, rest = f"rank {rank.id} is silent: {event.why}", task.positions
            self.retries.note(task, self.table.unresolved(rest), why, failed=False)
            self._redo(task)

    def _lost(self, event: ev.RankLost) -> None:
        self._reported.add(event.rank)
        rank = self.ranks.known.get(event.rank)
        if rank is not None and rank.status != LOST:
            rank.move("gone")
            tasks = [self._over(each, rank.id, "lost", event.why) for each in list(rank.tasks)]
            self._leave(rank)
            self.retries.lost_ns = self.now_ns
            for task in tasks:
                why, rest = f"rank {rank.id} was lost: {event.why}", task.positions
                self.retries.note(task, self.table.unresolved(rest), why, failed=True, lost=True)
            for task in tasks:
                self._redo(task)
            self.retries.ranks_changed()
        if len(self._reported) >= self.settings.ranks and not any(
            rank.status != LOST and rank.kinds & self.scheme.needs
            for rank in self.ranks.known.values()
        ):
            self.stop(NOBODY)

    def _leave(self, rank: Rank) -> None:
        """The rank takes no more work: move what waited for it, and for its kind of rank."""
        self.ranks.leave(rank)
        self._bound.pop(rank.id, None)
        bound = rank.bound.clear()
        for kind in sorted(rank.kinds):
            self._recall(kind)
        for work in bound:
            if len(self._unresolved(work)):
                self.bind(self.ranks.best(work), work)
        for kind in rank.kinds:
            if not self.ranks.ready[kind]:
                self.scheme.nobody(self, kind)
            for work in self.queues[kind].clear():
                if next(self.ranks.others(kind, work.held), None) is None:
                    self.uncover(work.positions)
                else:
                    self.queues[kind].add(work)

    def strand(self, fresh: Fresh) -> None:
        """No rank can take these images as they wait: give each what it needs."""
        for positions in fresh.clear():
            self.uncover(positions)

    def anybody(self) -> bool:
        """Whether a rank that the scheme can use is ready, or silent and may recover."""
        needs = self.scheme.needs
        return any(self.ranks.ready[kind] for kind in needs) or self.ranks.any_silent(needs)

    # ---- rows of tasks ------------------------------------------------------

    def _end_row(
        self, task: Task, outcome: str, compute_ns: int, reason: str, at_ns: int = 0
    ) -> None:
        table, done_ns = self.table, at_ns or self.now_ns
        task.end = (
            (done_ns if done_ns > task.sent_ns else task.sent_ns) - table.start_ns,
            compute_ns,
            OUTCOME_CODE[outcome],
            table.session,
            self._group_at(int(task.positions[0])) < table.warm_groups,
            reason_bytes(reason) if reason else NO_REASON,
        )

    def write_task(self, task: Task) -> None:
        """Write the row of a task that has ended, unless one of its answers is still kept."""
        if task.kept or not task.end or self._ended.pop(task.id, None) is None:
            return
        self._rows.append(
            _pack_row(
                task.id,
                task.rank,
                KIND_CODE[task.kind],
                self._group_at(int(task.positions[0])),
                task.attempt,
                len(task.positions),
                task.resolved,
                task.sent_ns - self.table.start_ns,
                *task.end,
            )
        )

    def take_tasks(self) -> np.ndarray:
        """Take out the rows of tasks that are over, (n,) of TASK_ROW."""
        rows, self._rows = b"".join(self._rows), []
        return np.frombuffer(rows, TASKS.dtype)

    def close(self, now_ns: int, left: Sequence[ev.Left] = ()) -> None:
        """After the last step: end the rows of tasks that are still out; their times are censored.

        `left`: messages that left after it.
        """
        self.now_ns = max(now_ns, self.now_ns)
        for each in left:
            self._left(each)
        for task in list(self.tasks.values()):
            self._over(task.id, task.rank, "unfinished")
        for task in list(self._ended.values()):
            task.kept = 0
            self.write_task(task)

    # ---- the end ------------------------------------------------------------

    def stop(self, reason: str) -> None:
        """Send nothing more. Tasks under way may still be answered for `stop_ns`."""
        if self.stopping is None:
            self.stopping = reason
            self.later(self.now_ns + self.settings.stop_ns, self._finish, None)

    def _maybe_finish(self) -> None:
        if self.stopping is None and not self._done:
            return
        if not self.tasks and not self._kept_for_later():
            self._finish(None)
        elif self.stopping is None and not self._ending:
            self._ending = True
            self.later(self.now_ns + self.settings.late_ns, self._finish, None)

    def _kept_for_later(self) -> bool:
        """Whether answers are kept that will count at their deadlines."""
        late = self.outcomes.use_late
        return any(
            call == late and len(self.table.unresolved(positions))
            for _, _, call, positions in self._timers
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


def _merged(works: list[Work]) -> Work:
    """Work of the same sort as one."""
    first = works[0]
    if len(works) > 1:
        first.positions = np.unique(np.concatenate([np.asarray(w.positions) for w in works]))
    return first
