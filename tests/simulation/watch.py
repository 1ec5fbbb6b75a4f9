"""The core's invariants, watched at each step of a simulated job's coordinator."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.simulation.standins import WORLD, kernel

UNREAD, BAD_ROW = 2, 3  # states of a cell
TURN_NS = 10_000_000  # of rank 0: it looks who is silent, and then takes what has arrived


def watched(core: type) -> type:
    """The core's class, which notes each invariant that its events or actions break.

    The numbers are those of docs/architecture.md.
    """

    class Watched(core):  # type: ignore[misc]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._laws = Laws(self)

        def step(self, now_ns: int, events: Sequence[Any] = ()) -> list[Any]:
            self._laws.begin(now_ns, events)
            actions: list[Any] = super().step(now_ns, events)
            self._laws.end(actions)
            return actions

    return Watched


def released(held: type) -> type:
    """The class that holds pixels, which notes those that it keeps of resolved images."""

    class Released(held):  # type: ignore[misc]
        def release(self, resolved: Any) -> None:
            super().release(resolved)
            over = {*resolved.positions.tolist()} - {
                *getattr(resolved, "held", np.empty(0)).tolist()
            }
            if kept := over & self._stretches.keys():
                kernel().violations.append(f"pixels of resolved images are kept: {kept}")

    return Released


class Laws:
    """What has happened to each image, task and rank, counted here once more."""

    def __init__(self, core: Any) -> None:
        self.core, self.most = core, core.settings
        self.now_ns = 0
        self.credit: dict[int, int] = {}  # of ranks that take work
        self.kinds: dict[int, frozenset[str]] = {}
        self.reported: set[int] = set()
        self.arrived: set[int] = set()
        self.resolved: set[int] = set()
        self.live: dict[int, Any] = {}  # number -> task
        self.over: set[int] = set()  # tasks that this step's events have ended
        self.cancelled: set[int] = set()  # images of tasks that this step cancels
        self.message: dict[int, int] = {}  # task -> the first task of its message
        self.lost: set[int] = set()
        self.silent: set[int] = set()
        self.heard_ns: dict[int, int] = {}  # when a silent rank was heard again
        self.retired: set[int] = set()
        self.tries: dict[tuple[int, str], int] = {}  # image, kind -> the attempt that failed
        self.failures: Counter[tuple[int, str]] = Counter()
        self.least = 0.0  # score, of the last threshold
        self.failed_in_row: Counter[int] = Counter()  # of a rank, with images that had not failed
        self.failing: set[int] = set()  # of those, in this step
        self.idle_ns: int | None = None  # since when images wait, and no rank has any
        self.admitted = 0
        self.closed = self.stopped = self.finished = False

    def broken(self, law: str, what: object) -> None:
        kernel().violations.append(f"core: {law}: {what}")

    def begin(self, now_ns: int, events: Sequence[Any]) -> None:
        """A step, before the core takes it."""
        if now_ns < self.now_ns:
            self.broken("time runs back", now_ns)
        if self.finished:
            self.broken("a step after Finish (7)", events)
        if self.idle_ns is not None and now_ns - self.idle_ns > self._patience_ns():
            waiting = self.arrived - self.resolved
            self.broken(f"nothing is done for {(now_ns - self.idle_ns) / 1e9:.1f} s", waiting)
        self.now_ns = now_ns
        self.over.clear()
        self.failing.clear()
        self.cancelled.clear()
        for event in events:
            self._take(type(event).__name__, event)

    def _take(self, name: str, event: Any) -> None:
        if name == "RankReady":
            self.credit[event.rank] = event.credit
            self.kinds[event.rank] = frozenset(event.kinds)
            self.reported.add(event.rank)
        elif name == "Arrived":
            first = max(event.first, self.core.next)
            come = {*range(first, first + len(event.images))}
            if self.arrived & come or self.closed:
                self.broken("an image arrives twice, or after the end of the input", event)
            self.arrived |= come
            if len(self.arrived) > self.admitted:
                self.broken("an image arrives that was not admitted", event)
        elif name == "RankSilent" and any(t.rank == event.rank for t in self.live.values()):
            self.silent.add(event.rank)
        elif name in ("Answered", "Failed", "Skipped"):
            if event.rank in self.silent:
                self.silent.discard(event.rank)
                self.heard_ns[event.rank] = self.now_ns
            for number in event.tasks if name == "Answered" else [event.task]:
                task = self.live.pop(number, None)
                self.over.add(number)
                if task is None or task.rank != event.rank or event.rank in self.lost:
                    self.broken("the end of a task that is not out there (1, 6)", event)
                elif name == "Failed":
                    self._count_failure(task, event)
                    self._failed(task)
                elif name == "Answered":
                    self.failed_in_row[event.rank] = 0
        elif name == "RankLost":
            if event.rank in self.lost:
                self.broken("a rank is lost twice", event)
            heard_ns = self.heard_ns.get(event.rank, -TURN_NS)  # it may have come in the same turn
            told = event.rank in self.silent or self.now_ns - heard_ns < TURN_NS
            if event.why.startswith("no answer for") and not told:
                self.broken("a rank is lost for a silence that was not told", event)
            self.lost.add(event.rank)
            self.reported.add(event.rank)
            self.silent.discard(event.rank)
            self.credit.pop(event.rank, None)
            for task in [task for task in self.live.values() if task.rank == event.rank]:
                self.over.add(task.id)
                self._failed(self.live.pop(task.id))
        elif name == "Stages" and (event.confidence is not None or not event.kinds):
            least = 2.0 if event.confidence is None else event.confidence
            if least < self.least:
                self.broken(f"a threshold of {self.least} is lowered", event)
            self.least = least
        elif name == "Left" and {*event.tasks} - self.live.keys() - self.over:
            self.broken("a message leaves that is not out there", event)
        elif name == "InputClosed":
            self.closed = True
        elif name == "StopRequested":
            self.stopped = True

    def _count_failure(self, task: Any, event: Any) -> None:
        """A rank fails with images that no other task failed with, and that can be read."""
        bad = (event.cells["state"] == UNREAD) | (event.cells["state"] == BAD_ROW)
        again = any(n for (image, _), n in self.failures.items() if image in images_of(task))
        if not (bad.any() or again):
            self.failed_in_row[event.rank] += 1
            self.failing.add(event.rank)

    def _retired_too_late(self) -> None:
        """A rank that fails and fails gets no more work, if others hold its networks."""
        takes = self.credit.keys() - self.lost - self.silent - self.retired
        for rank in self.failing:  # in this step: later others may have come back
            count = self.failed_in_row[rank]
            if count < self.most.max_failures or rank not in takes or self.core.stopping:
                continue
            kinds = self.kinds[rank]
            if all(any(k in self.kinds[other] for other in takes - {rank}) for k in kinds):
                self.broken(f"a rank failed {count} times in a row and is not retired", rank)

    def _patience_ns(self) -> int:
        """How long the core may wait although no rank is silent and none has work."""
        frozen_ns = kernel().here.frozen_ns
        if frozen_ns > kernel().now_ns - 3 * 10**9:
            return 1 << 62
        return 2 * 10**9

    def _failed(self, task: Any) -> None:
        for image in images_of(task) if not task.spare else ():
            self.tries[image, task.kind] = task.attempt
            self.failures[image, task.kind] += 1

    def end(self, actions: Sequence[Any]) -> None:
        """What the core made of the step."""
        for action in actions:
            self._act(type(action).__name__, action)
        if self.cancelled - self.resolved:
            self.broken("a task is cancelled that is needed", self.cancelled - self.resolved)
        own = kernel().here.own
        own["tasks sent"], own["images resolved"] = len(self.message), len(self.resolved)
        self._rooms()
        self._retired_too_late()
        able = self.credit.keys() - self.lost - self.retired
        idle = able and not (self.live or self.silent or self.core.stopping or self.finished)
        idle = idle and not WORLD.disk.full  # the ledger cannot say that no image comes
        if not idle or not self.arrived - self.resolved:
            self.idle_ns = None
        elif self.idle_ns is None:
            self.idle_ns = self.now_ns
        coming = self.live or self.core.wake_ns is not None or self.core.stopping is not None
        coming = coming or self.finished or (self.admitted > len(self.arrived) and not self.closed)
        all_told = len(self.reported) >= self.most.ranks
        if all_told and not coming and self.arrived - self.resolved:
            self.broken("images wait for nothing (4)", self.arrived - self.resolved)

    def _rooms(self) -> None:
        """What a rank's messages take of its credit is what is out there."""
        out: dict[int, set[int]] = {rank: set() for rank in self.core.ranks.known}
        for number, task in self.live.items():
            out[task.rank].add(self.message[number])
        for rank, known in self.core.ranks.known.items():
            if known.messages != len(out[rank]):
                self.broken("a room is not given back, or twice", (rank, known.messages, out[rank]))

    def _act(self, name: str, action: Any) -> None:
        if name == "Send":
            self._send(action)
        elif name == "Admit":
            self.admitted += action.images
        elif name == "Resolved":
            images = {int(position) for position in action.positions}
            if images & self.resolved or images - self.arrived:
                self.broken("not one outcome an image (2)", action)
            self.resolved |= images
        elif name in ("Retire", "Recall"):
            (self.retired.add if name == "Retire" else self.retired.discard)(action.rank)
            self.failed_in_row[action.rank] = 0
        elif name == "Cancel":
            task = self.live.get(action.task)
            if action.task not in self.over and (task is None or task.rank != action.rank):
                self.broken("a task is cancelled that is not out there", action)
            if task is not None:
                self.cancelled |= images_of(task)
        elif name == "Finish":
            if self.finished or (self.arrived - self.resolved and action.status != "incomplete"):
                self.broken("Finish before its time (7)", action)
            self.finished = True

    def _send(self, send: Any) -> None:
        from collage_mpi.kinds import KIND  # the package is loaded after this module

        rank, tasks = send.rank, send.tasks
        if rank in self.silent | self.retired or rank not in self.credit or self.stopped:
            self.broken("work for a rank that takes none (3)", send)
        kind = KIND[send.kind]
        inputs = len(tasks) if kind.encoded else sum(map(len, tasks))
        if not inputs or (inputs > self.most.batch and not kind.batched):
            self.broken("a message of more than a batch (3)", send)
        for task in tasks:
            images = images_of(task)
            if task.id in self.message or (task.rank, task.kind) != (rank, send.kind):
                self.broken("a task again, or in another's message (3)", task)
            again = images & self.resolved if task.source != "check" else None
            if not images or again or images - self.arrived:
                self.broken("an image is sent that is resolved or unknown (2)", images)
            tries = [(image, task.kind) for image in images if not task.spare]
            if any(1 < task.attempt <= self.tries.get(each, 0) for each in tries):
                self.broken("a try of the number of one that failed", tries)
            main = send.kind == self.core.scheme.main  # which alone counts against the limit
            if main and any(self.failures[each] >= self.most.max_attempts for each in tries):
                self.broken("a try after all that there are have failed", tries)
            self.live[task.id] = task
            self.message[task.id] = tasks[0].id
        out = {self.message[number] for number, task in self.live.items() if task.rank == rank}
        if len(out) > self.credit.get(rank, 0):
            self.broken("more messages out than the credit (3)", send)


def images_of(task: Any) -> set[int]:
    return {int(position) for position in task.positions}
