"""The scheduler's invariants, watched at each event of a simulated job's coordinator."""

from __future__ import annotations

from collections import Counter
from typing import Any

from tests.simulation.standins import kernel


def watched(scheduler: type) -> type:
    """The scheduler's class, which notes each invariant that its events or actions break.

    The numbers are those of docs/architecture.md.
    """

    class Watched(scheduler):  # type: ignore[misc]
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            self._laws = Laws()

        def handle(self, *events: Any) -> list[Any]:
            for event in events:
                self._laws.take(event)
            actions: list[Any] = super().handle(*events)
            for action in actions:
                self._laws.act(action)
            return actions

    return Watched


class Laws:
    """What has happened to each image, task and rank, counted here once more."""

    def __init__(self) -> None:
        self.now_ns = 0
        self.credit: dict[int, int] = {}  # of ranks that take work
        self.arrived: set[int] = set()
        self.resolved: set[int] = set()
        self.released: set[int] = set()
        self.live: dict[int, Any] = {}  # task -> its send
        self.left: set[int] = set()  # tasks whose message has left its buffer
        self.messages: dict[int, int] = {}  # task -> the first task of its message
        self.lost: set[int] = set()
        self.silent: set[int] = set()
        self.retired: set[int] = set()
        self.tries: dict[tuple[int, str], int] = {}  # image, kind -> the attempt that failed
        self.failures: Counter[int] = Counter()  # image -> how often its task failed
        self.copies = False  # there may be any, which are no attempts
        self.admitted = 0
        self.finished = False

    def broken(self, law: str, what: object) -> None:
        kernel().violations.append(f"scheduler: {law}: {what}")

    def take(self, event: Any) -> None:
        """An event, before the scheduler sees it."""
        name = type(event).__name__
        if event.now_ns < self.now_ns:
            self.broken("time runs back", event)
        self.now_ns = event.now_ns
        if self.finished:
            self.broken("an event after Finish (7)", event)
        if name == "RankReady":
            self.credit[event.rank] = event.credit
        elif name == "ImageArrived":
            run = set(range(event.image, event.image + event.length))
            if self.arrived & run:
                self.broken("an image arrives twice", event)
            self.arrived |= run
            if len(self.arrived) > self.admitted:
                self.broken("an image arrives that was not admitted", event)
        elif name == "RankSuspected" and any(s.rank == event.rank for s in self.live.values()):
            self.silent.add(event.rank)
        elif name in ("Answered", "Failed", "Skipped"):
            self.silent.discard(event.rank)
            send = self.live.pop(event.task, None)
            if send is None or send.rank != event.rank or event.rank in self.lost:
                self.broken("the end of a task that is not out there (1, 6)", event)
            elif name == "Failed" and not event.unread and not self.copies:
                for item in send.items:
                    self.tries[item.image, send.kind] = send.attempt
                    self.failures[item.image] += 1
        elif name in ("InputPaused", "InputClosed"):
            self.copies = True
        elif name == "RankLost":
            self.lost.add(event.rank)
            self.credit.pop(event.rank, None)
            self.live = {t: send for t, send in self.live.items() if send.rank != event.rank}
        elif name == "SendDone":
            self.left.update(event.tasks)

    def act(self, action: Any) -> None:
        """An action of the scheduler."""
        name = type(action).__name__
        if name == "Send":
            self._send((action,))
        elif name == "SendBatch":
            self._send(action.sends)
        elif name == "Admit":
            self.admitted += action.images
        elif name in ("Resolve", "ResolveRun"):
            count = len(action.scores) if name == "ResolveRun" else 1
            images = set(range(action.image, action.image + count))
            if images & self.resolved or images - self.arrived:
                self.broken("not one Resolve an image (2)", action)
            self.resolved |= images
            kernel().here.own["images resolved"] = len(self.resolved)
        elif name in ("Retire", "Recall"):
            (self.retired.add if name == "Retire" else self.retired.discard)(action.rank)
        elif name == "Cancel":
            send = self.live.get(action.task)
            if send is None or send.rank != action.rank:
                self.broken("a task is cancelled that is not out there", action)
        elif name == "Release":
            images = set(action.images)
            if images & (self._needed() | self.released) or images - self.resolved:
                self.broken("pixels go that are needed, or have gone (7)", action)
            self.released |= images
        elif name == "Finish":
            open_images = self.arrived - self.resolved
            if self.finished or (open_images and action.status != "incomplete"):
                self.broken("Finish before its time (7)", action)
            kept = self.arrived - self.released - self._needed()
            if action.status != "incomplete" and kept:
                self.broken("pixels are kept that nothing needs", kept)
            self.finished = True

    def _needed(self) -> set[int]:
        """Images of live tasks whose message has not left its buffer."""
        waiting = (send for task, send in self.live.items() if task not in self.left)
        return {item.image for send in waiting for item in send.items}

    def _send(self, sends: tuple[Any, ...]) -> None:
        rank = sends[0].rank
        if rank in self.silent | self.retired:
            self.broken("work for a rank that is silent or retired", sends)
        for send in sends:
            images = {item.image for item in send.items}
            if send.task in self.messages or rank not in self.credit:
                self.broken("a task again, or to a rank that is not there (3)", send)
            if images & (self.resolved | self.released) or images - self.arrived:
                self.broken("an image is sent that is resolved or unknown (2)", send)
            if any(send.attempt <= self.tries.get((i, send.kind), 0) for i in images):
                self.broken("a try of the number of one that failed", send)
            if any(self.failures[image] > 2 for image in images):
                self.broken("a try after three that failed", send)
            self.live[send.task] = send
            self.messages[send.task] = sends[0].task
            kernel().here.own["tasks sent"] = len(self.messages)
        out = {self.messages[task] for task, send in self.live.items() if send.rank == rank}
        if len(out) > self.credit.get(rank, 0):
            self.broken("more messages out than the credit (3)", sends)
