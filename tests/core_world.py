"""A driver for the core that checks its invariants after every step, and counts all of it anew.

It keeps its own account of the job from the events and the actions alone: who has which image, what
was answered, and what follows from it. After each step this account and the core's must agree.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import fields
from math import inf
from typing import Any, NamedTuple

import numpy as np
import pytest

from collage_mpi.core import events as ev
from collage_mpi.core.checks import HOLD_NS
from collage_mpi.core.core import Core
from collage_mpi.core.policies import AcceptPolicy, Confident, First
from collage_mpi.core.schemes import SchemeSettings, make_scheme, scheme_class
from collage_mpi.core.settings import CoreSettings
from collage_mpi.core.states import AWAITED, DECIDED, DONE, DRAWN, KEPT, OPEN
from collage_mpi.core.table import Table
from collage_mpi.core.work import Work
from collage_mpi.kinds import COLLAGE, KIND, SINGLE, STAGES
from collage_mpi.rows import (
    ABSENT,
    AUDITS,
    BAD_ROW,
    CELL,
    KIND_CODE,
    OTHERS,
    OUTCOMES,
    PLACED,
    PRESENT,
    SOURCES,
    UNREAD,
    Measured,
    measured_bytes,
)
from collage_mpi.settings.run_settings import RedundancySettings

EXACT = (SINGLE, "replica", "hedge", "retry", "endgame")
MS = 1_000_000
SECOND_NS = 1000 * MS
__all__ = ["ABSENT", "BAD_ROW", "COLLAGE", "MS", "PRESENT", "SINGLE", "STAGES", "UNREAD", "World"]


def policy_of(
    name: str, *, confidence: float = 0.8, deadline_ns: int | None = None
) -> AcceptPolicy:
    """The accept policy of that name, made from few settings."""
    settings = RedundancySettings(
        confidence={"first": 0.0, "confident": confidence}[name],
        deadline_ms=None if deadline_ns is None else deadline_ns / MS,
    )
    return settings.accept_policy()


def scheme_settings(
    name: str,
    *,
    policy: AcceptPolicy | None = None,
    stages: Sequence[str] = (COLLAGE,),
    **changes: Any,
) -> SchemeSettings:
    """A scheme's settings where a test names only some of them. `policy`: of all `stages`."""
    plain = dict(assign="turn", accept=dict.fromkeys(stages, policy or First()), hedge_ns=None)
    plain |= dict(collage_copies=1)
    plain |= dict(placement="fixed", calibrate=False)
    return SchemeSettings(**{"name": name, **plain, **changes})


def core_settings(**changes: Any) -> CoreSettings:
    """The core's settings where a test names only some of them."""
    plain = dict(costs={}, batch_costs={}, batch=1, together=True, depth=1, paced=False)
    plain |= dict(drain=False, max_attempts=3, endgame=False, check=0.0)
    return CoreSettings(**{**plain, **changes})


class Sent(NamedTuple):
    """A task as it was sent."""

    id: int
    rank: int
    kind: str
    source: str
    attempt: int
    spare: bool
    images: tuple[int, ...]
    cells: tuple[int, ...] | None
    at_ns: int
    message: int


def told_of(action: ev.Action) -> Any:
    """The action as values that can be compared."""
    if isinstance(action, ev.Send):
        tasks = [
            (t.id, t.source, t.attempt, np.asarray(t.positions).tolist()) for t in action.tasks
        ]
        return "send", action.rank, action.kind, tasks
    if isinstance(action, ev.Resolved | ev.Released):
        arrays = [np.asarray(each).tolist() for each in action]
        return type(action).__name__, *arrays
    return action


class Exact(NamedTuple):
    """An exact answer: whose it is, and of what batch; 0: not known."""

    task: int
    rank: int
    like: str
    inputs: int
    answer: tuple[int, float, int]
    took_ns: int

    def comparable(self, other: Exact) -> bool:
        """Whether they can be compared: they are alike, or one is sure, or they agree."""
        sure = max(self.answer[1], other.answer[1])
        return (
            self._alike(other)
            or np.float32(0.6) < sure <= 1
            or self.answer[::2] == other.answer[::2]
        )

    def differs(self, other: Exact) -> bool:
        """Whether one of the two must be wrong."""
        changed = self.answer[::2] != other.answer[::2]
        bits = self._alike(other) and self.answer[1] != other.answer[1]
        return (changed and self.comparable(other)) or bits

    def _alike(self, other: Exact) -> bool:
        return self.like == other.like and self.inputs == other.inputs > 0


class Image:
    """What the world knows of an image."""

    def __init__(self, t0_ns: int, drawn: bool, label: int | None, fault: str | None) -> None:
        self.t0_ns, self.drawn, self.label, self.fault = t0_ns, drawn, label, fault
        self.kept: tuple[Any, ...] | None = None  # the row that a kept answer would give
        self.first: dict[str, tuple[int, float, int]] = {}  # what first networks have said of it
        self.decided = False
        self.late_ns: float = inf  # when a kept answer counts
        self.failures = 0  # tasks of the main kind that failed, were lost or gave no answer
        self.unread = self.bad_row = False  # by any rank
        self.expected: tuple[Any, ...] | None = None  # its row
        self.error_allowed = False
        self.exact: list[Exact] = []  # the answer of its row, and later ones of other ranks
        self.two: tuple[Exact, Exact] | None = None  # of which a third rank decides


class World:
    """Feeds events, applies actions, and fails on the first broken invariant.

    Attributes:
        live: task -> what was sent, not ended.
        rows: image -> its row, by name; tasks: task -> its row.
    """

    def __init__(
        self,
        *,
        scheme: str = "none",
        side: int = 2,
        singles: int = 4,
        others: int = 0,
        placement: str = "fixed",
        calibrate: bool = False,
        credit: int = 2,
        hosts: str = "",
        likes: str = "",
        keeps: bool = False,
        checked: bool = True,
        **settings: Any,
    ) -> None:
        made = scheme_class(scheme)
        names = {each.name for each in fields(SchemeSettings)} | {"policy", "stages"}
        own = {name: settings.pop(name) for name in names & settings.keys()}
        stages = own.get("stages", (COLLAGE,))
        other = sorted({*stages} if scheme == "cascade" else made.needs - {SINGLE} or {COLLAGE})
        if SINGLE not in made.needs:
            singles = 0
        fastest = placement == "fastest" and "placement" in made.takes and singles > 0
        own |= dict(placement="fastest" if fastest else "fixed", calibrate=calibrate)
        self.asked = scheme_settings(scheme, **own)
        self.scheme = make_scheme(self.asked)
        both = frozenset({SINGLE, *other})
        self.kinds = {r: both if fastest else frozenset({SINGLE}) for r in range(1, singles + 1)}
        apart = [{kind} for kind in other] if others >= len(other) else [other]
        for number in range(others):
            held = both if fastest else frozenset(apart[number % len(apart)])
            self.kinds[singles + 1 + number] = held
        self.hosts = {r: f"{hosts[r - 1] if r <= len(hosts) else 'h'}.org" for r in self.kinds}
        self.likes = {r: likes[r - 1] if r <= len(likes) else "" for r in self.kinds}
        size = side * side
        self.table = Table(size, 0, 3, 1)
        self.settings = core_settings(group_size=size, ranks=len(self.kinds), **settings)
        self.core = Core(self.settings, self.scheme, self.table)
        self.size, self.credit, self.keeps, self.checked = size, credit, keeps, checked
        self.policies = dict(self.scheme.accept)
        self.cascade = scheme == "cascade"
        self.promises = self.calibrating = self.cascade and calibrate
        self.asking: Iterable[str] = {*self.policies}  # first networks that get new images
        self.sent_once: set[int] = set()  # images
        self.now_ns = 0
        self.log: list[tuple[int, tuple[ev.Event, ...], list[Any]]] = []
        self.sent: dict[int, Sent] = {}
        self.live: dict[int, Sent] = {}
        self.messages: list[list[int]] = []  # numbers of tasks
        self.cancelled: set[int] = set()
        self.answers: dict[int, dict[int, tuple[int, float, int]]] = {}
        self.task_rows: dict[int, tuple[Any, ...]] = {}  # as expected
        self.used: Counter[int] = Counter()  # task -> images that it resolved
        self.images: dict[int, Image] = {}
        self.open: dict[int, Image] = {}  # of these, the unresolved
        self.judged: dict[int, ev.Judged] = {}
        self.held: set[int] = set()  # resolved images of which another answer is awaited
        self.until: dict[int, int] = {}  # of these, whose rows wait -> until when at most
        self.tally: defaultdict[int, Counter[str]] = defaultdict(Counter)  # by rank
        self.differed: list[ev.Differed] = []
        self.late_heard: set[int] = set()  # images with a task on a rank that was silent
        self.encodes: defaultdict[int, int] = defaultdict(int)
        self.encoded: dict[int, int] = {}  # task -> what was told of it
        self.ready: set[int] = set()
        self.silent: set[int] = set()
        self.lost: set[int] = set()
        self.retired: set[int] = set()
        self.failures: Counter[int] = Counter()  # of a rank, in a row
        self.parked: dict[int, int] = {}  # image -> since when it waits for a silent rank
        self.admitted = self.left_behind = 0
        self.closed = self.paused = False
        self.finish: ev.Finish | None = None
        self.rows: dict[int, dict[str, Any]] = {}
        self.tasks: dict[int, dict[str, Any]] = {}
        self.actions: list[ev.Action] = []

    # ---- events -------------------------------------------------------------

    def step(self, *events: ev.Event, now_ns: int | None = None) -> list[ev.Action]:
        """Hand events of one moment to the core; apply and check what comes back."""
        self.now_ns = now_ns = self.now_ns if now_ns is None else now_ns
        self._able_before, self._mixed = self._able(), len(events) > 1
        for event in events:
            getattr(self, f"_on_{type(event).__name__.lower()}", lambda event: None)(event)
        self._deadlines()
        told: list[Any] = []
        self.log.append((now_ns, events, told))
        came = [self.core.next, *(e.first + len(e.images) for e in events if type(e) is ev.Arrived)]
        self.actions = self.core.step(now_ns, events)
        if self.core.next > max(came) and not self.paused:
            self.left_behind += 1  # a group was cut short
        for action in self.actions:
            told.append(told_of(action))
            getattr(self, f"_do_{type(action).__name__.lower()}")(action)
        self.until = {i: until_ns for i, until_ns in self.until.items() if until_ns > now_ns}
        for image, found in self.open.items():
            assert found.expected is None, f"image {image} has its answer and no outcome (2)"
        if self.checked:
            self.check()
        return self.actions

    def start(self) -> World:
        """All ranks report ready."""
        for rank in self.kinds:
            self.rank_ready(rank)
        return self

    def rank_ready(self, rank: int) -> None:
        self.step(
            ev.RankReady(rank, self.kinds[rank], self.hosts[rank], self.credit, self.likes[rank])
        )

    def arrive(
        self,
        count: int,
        *,
        drawn: Iterable[int] | None = None,
        faults: dict[int, str] | None = None,
        skip: int = 0,
        gap: int = 0,
        t0_ns: int | np.ndarray | None = None,
        labels: bool = True,
        others: Sequence[ev.Event] = (),
    ) -> None:
        """`count` images come; `drawn`, `faults`: by their place among them. `skip`: so many groups
        are left behind; `gap`: so many images are left out."""
        first = self.core.next + gap
        if skip:
            self.left_behind += 1
            first = (first // self.size + skip) * self.size
        placed = np.zeros(count, PLACED)
        numbers = np.arange(first, first + count)
        placed["row"], placed["shard"] = numbers, 5
        placed["has_label"], placed["label"] = labels, numbers % 10 if labels else 0
        mask = None if drawn is None else np.isin(np.arange(count), list(drawn))
        t0_ns = self.now_ns if t0_ns is None else t0_ns
        self.step(*others, ev.Arrived(first, placed, t0_ns, 7, mask, faults or {}))

    def close(self) -> None:
        self.step(ev.InputClosed())

    def answered(
        self,
        task: int,
        cells: dict[int, tuple[int, float, int]] | None = None,
        *,
        score: float = 0.9,
        compute_ns: int = 0,
        at_ns: int = 0,
    ) -> ev.Answered:
        """The event that the task's rank answers. Images have the label of their last digit."""
        sent, given = self.live[task], cells or {}
        found = [given.get(i, (i % 10, score, PRESENT)) for i in sent.images]
        reasons = [
            f"worn {i}" for i, cell in zip(sent.images, found, strict=True) if cell[2] > PRESENT
        ]
        made = np.array([(*cell[:3], 0, cell[3] if len(cell) > 3 else 0) for cell in found], CELL)
        kept = np.array([(task, i) for i in sent.images], np.float32) if self.keeps else None
        own = measured_bytes(Measured(compute_ns=compute_ns, read_ns=11, runtime=2))
        return ev.Answered((task,), sent.rank, made, compute_ns, own, 13, reasons, kept, at_ns)

    def answer(self, task: int, *states: int, **how: Any) -> None:
        """The task's rank answers; `states`: of the cells of its first images."""
        images = self.live[task].images
        cells = {i: (i % 10, 0.9, state) for i, state in zip(images, states, strict=False)}
        self.step(self.answered(task, cells, **how))

    def answer_with(self, task: int, label: int, score: float = 0.9) -> None:
        """The task's rank answers all its images with this class."""
        images = self.live[task].images
        self.step(self.answered(task, {image: (label, score, PRESENT) for image in images}))

    def unsure(self, task: int, *images: int) -> None:
        """The task's rank answers; the answers for these images have a low score."""
        self.step(self.answered(task, {i: (i % 10, 0.5, PRESENT) for i in images}))

    def failed(self, task: int, *states: int) -> ev.Failed:
        cells = np.zeros(len(states), CELL)
        cells["state"] = states
        reasons = [f"worn {s}" for s in states if s > PRESENT]
        return ev.Failed(task, self.live[task].rank, "boom", cells, reasons)

    def fail(self, task: int, *states: int) -> None:
        self.step(self.failed(task, *states))

    def skip(self, task: int) -> None:
        self.step(ev.Skipped(task, self.live[task].rank))

    def silence(self, rank: int) -> None:
        self.step(ev.RankSilent(rank, "no answer"))

    def lose(self, rank: int) -> None:
        self.step(ev.RankLost(rank, "killed"))

    def stop(self) -> None:
        self.step(ev.StopRequested("asked to"))

    def wake(self) -> None:
        """The next timer is due."""
        assert self.core.wake_ns is not None
        self.step(now_ns=max(self.now_ns, self.core.wake_ns))

    def task_of(self, image: int, kind: str = SINGLE) -> int:
        """The newest live task of the kind that has the image."""
        return max(t for t, s in self.live.items() if s.kind == kind and image in s.images)

    def of(self, rank: int) -> list[int]:
        """The live tasks of the rank, oldest first."""
        return sorted(task for task, sent in self.live.items() if sent.rank == rank)

    def out(self) -> list[tuple[int, str, list[int]]]:
        """(rank, kind, images) of what is out, in the order in which it left."""
        return [(s.rank, s.kind, list(s.images)) for _, s in sorted(self.live.items())]

    def source(self, image: int) -> str:
        """Where the image's outcome came from."""
        self.take()
        if image in self.until:
            slot = np.flatnonzero((self.table.position == image) & (self.table.state != 0))[0]
            return SOURCES[self.table.records["said"]["source"][slot]]
        return self.rows[image]["source"]

    # ---- what events mean ---------------------------------------------------

    def _able(self) -> set[int]:
        """Ranks that can do tasks of the main kind."""
        ranks = self.ready - self.lost - self.silent - self.retired
        return {rank for rank in ranks if self.scheme.main in self.kinds[rank]}

    def _on_rankready(self, event: ev.RankReady) -> None:
        self.ready.add(event.rank)

    def _on_ranksilent(self, event: ev.RankSilent) -> None:
        owes = any(sent.rank == event.rank for sent in self.live.values())
        if owes:
            self.silent.add(event.rank)
            self.late_heard.update(
                i for task in self.of(event.rank) for i in self.sent[task].images
            )

    def _on_rankunfit(self, event: ev.RankUnfit) -> None:
        self.kinds[event.rank] -= {event.kind}

    def _on_ranklost(self, event: ev.RankLost) -> None:
        if event.rank in self.lost:
            return
        for task in self.of(event.rank):
            self._ended(task, "lost", event.why)
            self._count_failure(self.sent[task], self.sent[task].images)
        self.lost.add(event.rank)
        self.silent.discard(event.rank)

    def _on_arrived(self, event: ev.Arrived) -> None:
        count = len(event.images)
        self.admitted -= count
        assert self.admitted >= 0 or self.paused, "it was not asked for (C6)"
        t0s = np.broadcast_to(event.t0_ns, count)
        for place in range(count):
            drawn = event.drawn is not None and bool(event.drawn[place])
            placed = event.images[place]
            label = int(placed["label"]) if placed["has_label"] else None
            image = Image(int(t0s[place]), drawn, label, event.faults.get(place))
            self.images[event.first + place] = self.open[event.first + place] = image
        self.paused = False

    def _on_inputpaused(self, _: ev.InputPaused) -> None:
        self.paused = True
        self.left_behind += 1

    def _on_inputclosed(self, _: ev.InputClosed) -> None:
        self.closed, self.admitted = True, 0

    def _on_stages(self, event: ev.Stages) -> None:
        if self.cascade:
            self.asking = event.kinds
            self.calibrating = bool(event.kinds) and event.confidence is None
            for kind, policy in self.policies.items():
                bar = event.confidence if kind in event.kinds else None
                self.policies[kind] = Confident(inf if bar is None else bar, policy.deadline_ns)

    def _on_left(self, event: ev.Left) -> None:
        for task, encode_ns in zip(event.tasks, event.encode_ns, strict=True):
            self.encoded[task] = encode_ns
            self.sent[task] = self.sent[task]._replace(at_ns=event.at_ns)
            if task in self.live:
                self.live[task] = self.sent[task]
            self.encodes[self.sent[task].images[0] // self.size] += encode_ns

    def _ended(
        self, task: int, how: str, reason: str = "", compute_ns: int = 0, at_ns: int = 0
    ) -> Sent:
        sent = self.live.pop(task)
        group = sent.images[0] // self.size
        self.task_rows[task] = (
            *(task, sent.rank, KIND_CODE[sent.kind], group, sent.attempt, len(sent.images)),
            *(sent.at_ns, max(at_ns or self.now_ns, sent.at_ns), compute_ns, how, reason),
        )
        self.silent.discard(sent.rank)
        return sent

    def _on_skipped(self, event: ev.Skipped) -> None:
        assert event.task in self.cancelled
        self._ended(event.task, "skipped")

    def _on_failed(self, event: ev.Failed) -> None:
        sent = self._ended(event.task, "failed", event.reason)
        states = set(event.cells["state"].tolist())
        self.failures[sent.rank] += BAD_ROW not in states or UNREAD in states
        self._count_failure(sent, sent.images)
        self._note_unread(sent, event.cells)

    def _count_failure(self, sent: Sent, images: Iterable[int]) -> None:
        for image in images:
            if image in self.open and sent.kind == self.scheme.main and not sent.spare:
                self.open[image].failures += 1

    def _note_unread(self, sent: Sent, cells: np.ndarray) -> None:
        for image, cell in zip(sent.images, cells, strict=False):
            if image in self.open and cell["state"] in (UNREAD, BAD_ROW):
                self.open[image].unread = True
                self.open[image].bad_row |= bool(cell["state"] == BAD_ROW)

    def _on_answered(self, event: ev.Answered) -> None:
        (task,) = event.tasks
        sent = self._ended(task, "answered", "", event.compute_ns, event.at_ns)
        self.failures[sent.rank] = 0
        here = event.cells["state"] == PRESENT
        absent = [i for i, present in zip(sent.images, here, strict=True) if not present]
        self._count_failure(sent, absent)
        self._note_unread(sent, event.cells)
        self.answers[sent.id] = {}
        whole = here.all() and len(self.messages[sent.message]) == 1
        for image, cell, present in zip(sent.images, event.cells, here, strict=True):
            found = self.open.get(image)
            if present and sent.kind == SINGLE:
                given = int(cell["label"]), float(cell["score"]), int(cell["also"])
                inputs = len(sent.images) if whole else 0
                took_ns = (event.at_ns or self.now_ns) - self.images[image].t0_ns
                said = Exact(task, sent.rank, self.likes[sent.rank], inputs, given, took_ns)
                self._compare(self.images[image], said)
            if found is None or not present or found.expected is not None:
                continue
            answer = int(cell["label"]), float(cell["score"]), int(cell["also"])
            self.answers[sent.id][image] = answer
            took_ns = (event.at_ns or self.now_ns) - found.t0_ns
            row = (sent.source, sent.id, answer, took_ns, "", {})
            found.first |= {sent.kind: answer} if sent.kind != self.scheme.main else {}
            when = self._counts(sent, found, answer[1])
            if when == "now" and found.decided and sent.kind != self.scheme.main:
                continue
            if when == "now" and self.cascade and found.drawn and sent.kind != self.scheme.main:
                found.kept, found.decided = row, True
            elif when == "now" and found.decided:
                assert found.kept is not None
                found.expected = (*found.kept[:4], "done", {"": answer})
            elif when == "now":
                audited = found.drawn and found.kept
                found.expected = (*row[:4], *(("done", found.first) if audited else ("", {})))
            elif not found.decided:
                found.kept = row
                if when == "late":
                    deadline_ns = self.policies[sent.kind].deadline_ns
                    found.late_ns = min(found.late_ns, found.t0_ns + deadline_ns)

    def _compare(self, image: Image, said: Exact) -> None:
        """Hold an exact answer against that of the image's row, or make it that of its row."""
        if image.expected is None:
            if not image.exact and not image.decided:
                image.exact = [said]
            return
        if not image.exact or image.exact[0].rank == said.rank:
            return
        first = image.exact[0]
        for rank in (first.rank, said.rank):
            self.tally[rank]["compared"] += first.comparable(said)
            self.tally[rank]["differed"] += first.differs(said)
        if image.two is None and first.differs(said):
            image.two = first, said
        image.exact.append(said)

    def _counts(self, sent: Sent, image: Image, score: float) -> str:
        """now; late: at its deadline; kept: where an error row would be."""
        policy = self.policies.get(sent.kind, First())
        if sent.kind == self.scheme.main or isinstance(policy, First):
            return "now"
        deadline_ns = policy.deadline_ns
        over = deadline_ns is not None and image.t0_ns + deadline_ns <= self.now_ns
        if np.float32(score) >= policy.confidence or over:
            return "now"
        return "kept" if deadline_ns is None else "late"

    def _deadlines(self) -> None:
        for image in self.open.values():
            if image.decided or image.expected is not None:
                continue
            if image.late_ns <= self.now_ns:
                image.expected = self._kept_row(image)

    def _kept_row(self, image: Image) -> tuple[Any, ...]:
        assert image.kept is not None
        if image.decided:
            return (*image.kept[:4], "failed", {})
        return ("kept", *image.kept[1:3], self.now_ns - image.t0_ns, "", {})

    # ---- actions ------------------------------------------------------------

    def _do_admit(self, action: ev.Admit) -> None:
        assert action.images > 0
        assert not self.closed
        assert self.core.stopping is None
        assert self.ready | self.lost >= self.kinds.keys(), "not before each rank has reported"
        self.admitted += action.images

    def _do_send(self, send: ev.Send) -> None:
        rank, batch = send.rank, self.settings.batch
        assert self.core.stopping is None, "no Send after a stop"
        assert rank in self.ready - self.lost - self.retired - self.silent, "to no such rank (3)"
        assert send.kind in self.kinds[rank]
        assert send.tasks
        number, there = len(self.messages), set[int]()
        for other in self.live.values():
            if (other.rank, other.kind) == (rank, send.kind):
                there |= {*other.images}
        failed = False
        for task in send.tasks:
            images = tuple(np.asarray(task.positions).tolist())
            assert images == tuple(sorted(set(images)))
            assert images
            assert len(images) <= self.size or not KIND[task.kind].encoded
            assert not there & {*images}, "the rank has the image already"
            there |= {*images}
            for image in images:
                if task.source == "check":
                    assert image in self.held, "only an answer that can be replaced is checked"
                    ranks = {said.rank for said in self.images[image].exact[:1]}
                    ranks |= {said.rank for said in self.images[image].two or ()}
                    assert ranks, "no answer is checked"
                    assert rank not in ranks, "a rank checks itself"
                    continue
                assert image in self.open, "no Send after the outcome (2)"
                assert self.open[image].fault is None
                failed |= self.open[image].failures > 0 and task.attempt > 1
                if self.cascade and task.kind != self.scheme.main:
                    others = [s for s in self.live.values() if image in s.images]
                    asked = {sent.rank for sent in others if sent.id != task.id}
                    assert asked <= self.silent, "two stages are asked at a time"
                    assert task.kind in self.asking or image in self.sent_once
                self.sent_once.add(image)
                if task.spare:
                    assert self.closed or self.paused, "a copy though images may come"
                    assert not self.open[image].failures, "a copy of what has failed"
            if self.scheme.grouped and KIND[task.kind].encoded:
                assert len({image // self.size for image in images}) == 1
            assert (task.rank, task.kind, task.id in self.sent) == (rank, send.kind, False)
            assert 1 <= task.attempt <= 255
            cells = None if task.cells is None else tuple(np.asarray(task.cells).tolist())
            self.sent[task.id] = self.live[task.id] = Sent(
                *(task.id, rank, task.kind, task.source, task.attempt, task.spare),
                *(images, cells, self.now_ns, number),
            )
        encoded = KIND[send.kind].encoded
        inputs = len(send.tasks) if encoded else sum(map(len, send.tasks))
        most = batch * (self.size if KIND[send.kind].batched else 1)
        assert inputs <= most, "over the batch (3)"
        if failed and send.kind == self.scheme.main and not encoded:
            assert inputs == 1, "what has failed takes no others along"
        self.messages.append([task.id for task in send.tasks])
        out = {sent.message for sent in self.live.values() if sent.rank == rank}
        assert len(out) <= self.credit, "more messages out than the credit (3)"

    def _do_cancel(self, action: ev.Cancel) -> None:
        assert action.task not in self.cancelled
        assert self.sent[action.task].rank == action.rank
        assert action.task in self.live or self._mixed
        self.cancelled.add(action.task)

    def _do_resolved(self, action: ev.Resolved) -> None:
        assert len(action.positions)
        for image in np.asarray(action.positions).tolist():
            found = self.open.pop(image)  # KeyError: a second outcome (2)
            gone = found.failures >= self.settings.max_attempts or found.fault is not None
            nobody = not self._able_before or not self._able()
            found.error_allowed = gone or nobody or self._mixed

            if image in action.held:
                assert found.exact, "a row waits that no exact network has answered"
                self.held.add(image)
                self.until[image] = self.now_ns + HOLD_NS

    def _do_released(self, action: ev.Released) -> None:
        for image in np.asarray(action.positions).tolist():
            self.held.remove(image)
            self.until.pop(image, None)

    def _do_differed(self, action: ev.Differed) -> None:
        found = self.images[action.position]
        first, *later = found.exact
        second = next(said for said in later if said.rank == action.ranks[1])
        assert (first.rank, first.differs(second)) == (action.ranks[0], True)
        assert action.image == (5, action.position)
        assert action.written == (action.wrong == first.rank and action.position not in self.until)
        self.differed.append(action)
        if action.wrong is not None:
            right, wrong = (second, first) if action.wrong == first.rank else (first, second)
            third = next(
                said
                for said in later
                if said.rank not in action.ranks and wrong.differs(said)
                if right.comparable(said) and not right.differs(said)
            )
            self.tally[action.wrong]["wrong"] += 1
            self.tally[action.wrong]["written"] += action.written
            if wrong is first and not action.written:
                assert action.position not in self.rows
                source = self.sent[third.task].source
                found.expected = (source, third.task, third.answer, third.took_ns, "", {})
                found.exact[0] = third

    def _do_judged(self, action: ev.Judged) -> None:
        assert action.position not in self.judged
        self.judged[action.position] = action

    def _do_retire(self, action: ev.Retire) -> None:
        assert action.rank not in self.retired
        assert self.failures[action.rank] >= self.settings.max_failures or self._mixed
        self.retired.add(action.rank)

    def _do_recall(self, action: ev.Recall) -> None:
        self.retired.remove(action.rank)
        self.failures[action.rank] = 0

    def _do_finish(self, action: ev.Finish) -> None:
        assert self.finish is None, "Finish once (7)"
        assert action is self.actions[-1]
        self.finish = action
        if action.status == ev.INCOMPLETE:
            assert self.open or not self.closed
        else:
            assert self.closed
            assert not self.open

    # ---- rows ---------------------------------------------------------------

    def take(self) -> None:
        """Take the rows of what is resolved, and hold them against what was answered."""
        rows, vectors = self.table.take()
        with_vector = []
        for row in rows:
            image = int(row["group"]) * self.size + int(row["cell"])
            assert image not in self.rows, "one row an image (1)"
            assert image not in self.until, "a row is taken that may be replaced"
            named = {name: row[name].item() for name in row.dtype.names}
            named["source"] = SOURCES[named["source"]]
            named["audited"] = AUDITS[named["audited"]]
            self.rows[image] = named
            self._check_row(image, named)
            if named["answered"]:
                with_vector.append(image)
        assert len(vectors) == (len(with_vector) if self.keeps else 0)
        for image, vector in zip(with_vector, vectors, strict=self.keeps):
            expected = self.images[image].expected
            assert expected is not None
            assert (*vector,) == (expected[1], image), "the vector of another task or image"
        for row in self.core.take_tasks():
            named = {name: row[name].item() for name in row.dtype.names}
            assert named["task"] not in self.tasks, "one row a task"
            self.tasks[named["task"]] = named

    def _check_row(self, image: int, row: dict[str, Any]) -> None:
        found = self.images[image]
        assert image not in self.open
        assert (row["row"], row["shard"], row["session"]) == (image, 5, 3)
        assert row["warmup"] == (image < self.size)
        assert row["t0_ns"] == found.t0_ns
        if found.expected is None or (not row["answered"] and found.error_allowed):
            assert found.error_allowed, f"image {image} was given up too early: {row}"
            if row["source"] == "error":
                unsure = found.kept is None or (self.promises and not found.decided)
                assert unsure or found.expected is not None
                assert found.fault is None or row["reason"].decode() == found.fault
                assert row["reason"]
                assert not found.drawn or self.judged[image][1:] == ({}, False)
                trusted = found.label is not None and not found.unread
                assert row["has_label"] == trusted
                return
            assert found.kept is not None
            assert found.decided or not self.promises
            at_ns = row["latency_ns"] + found.t0_ns
            late = ("kept", *found.kept[1:3], at_ns - found.t0_ns, "", {})
            found.expected = (*found.kept[:4], "failed", {}) if found.decided else late
        source, task, (label, score, also), latency_ns, audited, others = found.expected
        sent = self.sent[task]
        self.used[task] += 1
        assert row["source"] == source
        assert (row["rank"], row["attempt"]) == (sent.rank, sent.attempt)
        assert (row["predicted"], row["score"]) == (label, np.float32(score))
        assert row["latency_ns"] == latency_ns
        assert row["audited"] == audited
        differs = {kind: (said, bits) != (label, also) for kind, (said, _, bits) in others.items()}
        by = {kind: KIND[kind or source].place for kind in others}  # "": that audits
        assert row["stages"] == sum(
            (1 << by[kind] if kind else 0) + (8 << by[kind] if differs[kind] else 0) for kind in by
        )
        places = {by[kind] if kind else 0: said[:2] for kind, said in others.items()}
        for place, names in enumerate(OTHERS):
            columns = tuple(row[name] for name in names)
            assert columns == pytest.approx(places.get(place, (0, 0.0)))
        assert (row["decode_ns"], row["read_ns"], row["runtime"]) == (13, 7 + 11, 2)
        assert row["compute_ns"] == self.task_rows[task][8]
        if not self.scheme.grouped:
            assert row["encode_ns"] == self.encoded.get(task, 0)
        if found.drawn:
            told = {
                kind or source: (np.float32(bar if kind else score), differs[kind])
                for kind, (_, bar, _) in others.items()
            }
            assert self.judged[image] == (image, told, found.decided)

    # ---- invariants ---------------------------------------------------------

    def check(self) -> None:
        """Count all that the core counts anew."""
        if self.finish is not None:
            return
        core, table = self.core, self.table
        self._check_table()
        holders, deaf = defaultdict(set), Counter[int]()
        for task, sent in self.live.items():
            deaf.update(sent.images if sent.rank in self.silent else ())
            for image in sent.images:
                holders[image].add(task)
        parked, deferred, troubled = (
            {int(table.position[slot]) for slot in among}
            for among in (core.retries._parked, core.retries._deferred, core.retries.trouble)
        )
        going_on = core.stopping is None
        for image, slot in self.slots().items():
            assert {task.id for task in core.holders(slot)} == holders[image], image
            assert table.deaf[slot] == deaf[image]
            covers = table.holds[slot] - deaf[image]
            if going_on:
                waits = image in parked or image in deferred
                assert covers or waits, f"image {image} is forgotten (4)"
                assert not (covers and image in parked), f"image {image} waits without need"
        gone = [i for i in self.parked if i not in self.open and self.images[i].expected is None]
        if (gone or not going_on) and self.parked and not self.log[-1][1]:
            begun = max(self.parked[i] for i in gone) if gone else min(self.parked.values())
            waited = self.now_ns - begun
            late = core.stopping not in (None, "every rank that could classify an image is silent")
            assert late or waited >= self.settings.park_ns, "given up before the wait was over"
        self.parked = {image: self.parked.get(image, self.now_ns) for image in parked}
        if going_on and (parked or deferred):
            assert core.wake_ns is not None, "nothing wakes what waits (4)"
        assert parked | deferred | troubled <= self.open.keys()
        self._check_tasks()
        self._check_ranks()
        self._check_checks()
        if going_on:
            self._check_holds()
            self._check_queues()
            self._check_admission()

    def _works(self) -> list[Work]:
        queued = [work for queue in self.core.queues.values() for work in queue.works]
        bound = [work for rank in self.core.ranks.known.values() for work in rank.bound.works]
        return queued + bound

    def _check_table(self) -> None:
        core, table = self.core, self.table
        unresolved = {*self.slots()}
        done = table.state & DONE != 0
        assert not (table.state[done] & ~np.uint8(DONE | KEPT | AWAITED)).any()
        awaited, waits = table.state & AWAITED != 0, table.state == DONE | KEPT | AWAITED
        assert {*self.images_of(np.flatnonzero(awaited))} == self.held
        assert {*self.images_of(np.flatnonzero(waits))} == self.until.keys()
        assert core.checks.asked == waits.sum()
        assert unresolved == self.open.keys()
        assert table.done == done.sum()
        assert not (table.state[table._free]).any()
        assert not (table.holds[table._free]).any(), "a slot is free that something refers to"
        assert core.admission.unresolved == len(self.open)
        kept = Counter[int]()
        for image, slot in self.slots().items():
            state, found = table.state[slot], self.open[image]
            assert bool(state & DRAWN) == found.drawn
            assert bool(state & KEPT) == (found.kept is not None), image
            assert bool(state & DECIDED) == found.decided
            if state & KEPT:
                kept[int(table.kept[slot])] += 1
                assert found.kept is not None
                assert found.kept[1] == table.kept[slot]
        kept.update(table.kept[waits].tolist())
        waiting = {task for task, count in kept.items() if count}
        assert core.ended.keys() == waiting, "rows of tasks are held back without need"
        assert all(core.ended[task].kept == count for task, count in kept.items())
        with_kept = {image for image, found in self.open.items() if found.kept is not None}
        vectors = {int(table.position[slot]) for slot in core.outcomes._kept_vectors}
        assert vectors <= with_kept, "vectors leak"

    def _check_holds(self) -> None:
        """A slot is free only when nothing refers to it."""
        core, counts = self.core, Counter[int]()
        arrays = [each.slots for each in (*core.tasks.values(), *self._works())]
        arrays += [core.groups[group] for group in core._filling]
        arrays += [np.array([slot]) for slot in core.checks.waiting]
        for fresh in (core.fresh, core.alone):
            images = [image for part in fresh.parts for image in self.images_of(part)]
            assert fresh.count == len(images)
            assert images == sorted(images)
            arrays += fresh.parts
        for slots in arrays:
            counts.update(slots.tolist())
        held = np.flatnonzero(self.table.holds).tolist()
        assert counts == {slot: self.table.holds[slot] for slot in held}

    def slots(self) -> dict[int, int]:
        """The unresolved images and their slots."""
        slots = np.flatnonzero(self.table.state & OPEN)
        return dict(zip(self.images_of(slots), slots.tolist(), strict=True))

    def images_of(self, slots: np.ndarray) -> list[int]:
        return list(self.table.position[slots].tolist())

    def _check_tasks(self) -> None:
        core = self.core
        assert core.tasks.keys() == self.live.keys()
        for task, sent in self.live.items():
            left = sum(image in self.open for image in sent.images)
            state = core.tasks[task]
            assert state.covers == (sent.rank not in self.silent)
            assert (state.status == "cancelled") == (task in self.cancelled)
            assert {peer.id for peer in state.peers} <= self.live.keys()
            useful = left or sent.source == "check" or task in self.cancelled
            assert useful, f"task {task} is of no use, and not cancelled"

    def _check_checks(self) -> None:
        """A row waits only for an answer that comes, and each that can be replaced waits."""
        core, coming = self.core, set[int]()
        for sent in self.live.values():
            if sent.kind == SINGLE and sent.rank not in self.silent:
                coming |= {*sent.images}
        waiting = {int(self.table.position[slot]) for slot in core.checks.waiting}
        assert waiting <= self.held
        assert self.held <= coming | waiting, "a row waits for nothing (4)"
        for slot, (_, ranks) in core.checks.waiting.items():
            others = [each for each in core.ranks.ready[SINGLE] if each not in ranks]
            assert others or core.stopping, "a check waits for nobody (4)"
            has = {task.rank for task in core.holders(slot)}
            room = {place[-1].id for place in core.ranks.room[SINGLE]}
            due = core.checks.due and core.stopping is None
            assert not due or not room - {*ranks} - has, "a rank with room lets a check wait (4)"
            assert core.stopping or core.wake_ns is not None or self.live
        for image in coming - self.open.keys() - self.held - self.rows.keys():
            found = self.images[image]
            exact = found.expected is not None and found.expected[0] in EXACT
            audited = exact and found.expected is not None and found.expected[4]
            ended = core.stopping or self._mixed or audited
            assert not exact or ended or image in self.late_heard, f"{image}'s row does not wait"
        for rank, counts in self.tally.items():
            told = core.checks.of[rank]
            names = ("compared", "differed", "wrong", "written")
            assert vars(told) == {name: counts[name] for name in names}, rank

    def _check_ranks(self) -> None:
        core = self.core
        for rank, state in core.ranks.known.items():
            out = {sent.message for sent in self.live.values() if sent.rank == rank}
            assert state.messages == len(out)
            assert state.tasks.keys() == {*self.of(rank)}
            assert state.heard == (rank not in self.silent | self.lost)
            works = rank in self.ready - self.lost - self.silent - self.retired
            assert (state.status == "ready") == works
            for kind in state.kinds:
                places = core.ranks.room[kind]
                assert (rank in core.ranks.ready[kind]) == works
                assert (state.place in places) == (works and len(out) < state.credit)
                assert [p for p in places if p[-1] is state] in ([], [state.place])
            assert not state.bound.works or works
        for kind, ready in core.ranks.ready.items():
            assert ready == sorted(ready)
            assert core.ranks.room[kind] == sorted(core.ranks.room[kind])
            paces = sorted((core.ranks.known[rank].pace_ns, rank) for rank in ready)
            assert core.ranks._paces[kind] == paces

    def _check_queues(self) -> None:
        """What waits can leave, and no quick rank with room lets it wait (4)."""
        core = self.core
        for kind, queue in core.queues.items():
            assert queue.count == sum(len(work.slots) for work in queue.works)
            firsts = [work.first for work in queue.works]
            assert firsts == sorted(firsts)
            room = [place[-1] for place in core.ranks.room[kind] if self._quick(place[-1], kind)]
            for work in queue.works:
                ready = {*core.ranks.ready[kind]}
                useful = any(image in self.open for image in self.images_of(work.slots))
                assert ready - {*work.held} or not useful, "work for nobody waits (4)"
                for rank in room:
                    apart = core.ranks.fastest(COLLAGE)
                    others = rank.id in apart and core.fresh.count
                    if kind == COLLAGE:
                        others = apart and rank.id not in apart
                    barred = rank.id in work.avoid or others or core.has(rank, work)
                    assert barred or not useful, f"rank {rank.id} has room for {work.first} (4)"
        if self.scheme.pulls and not core.gathers():
            self._check_fresh()
        if not core.gathers():
            for rank in core.ranks.known.values():
                assert not rank.bound.works or rank.messages == rank.credit

    def _check_fresh(self) -> None:
        core, apart = self.core, self.core.ranks.fastest(COLLAGE)
        kinds = {SINGLE, *self.scheme.serves}
        for fresh, able in ((core.fresh, kinds), (core.alone, {SINGLE})):
            useful = any(i in self.open for part in fresh.parts for i in self.images_of(part))
            assert not useful or any(core.ranks.ready[kind] for kind in able), "for nobody (4)"
        for rank in [place[-1] for place in core.ranks.room[SINGLE]]:
            if rank.id in apart or not self._quick(rank, SINGLE):
                continue
            assert not core.alone.count
            assert not core.fresh.count or (self.cascade and self.calibrating)
        first = self.scheme.first(core) if self.cascade else None
        for rank in [place[-1] for place in core.ranks.room[first]] if first else ():
            if self._quick(rank, first):
                assert core.fresh.count < self.scheme.least(core, first)

    def _quick(self, rank: Any, kind: str) -> bool:
        return rank.pace_ns <= self.core.ranks.limit_ns(kind)

    def _check_admission(self) -> None:
        core, settings = self.core, self.settings
        admission = core.admission
        assert admission.promised == self.admitted
        most = settings.depth * settings.step + self.left_behind + 1
        if admission._by_group:
            left = Counter(image // self.size for image in self.open)
            filling = core.next // self.size if admission.filling else None
            assert {g: n for g, n in admission.left.items() if n} == left
            assert {g for g, n in admission.left.items() if not n} <= {filling}
            assert len(left) <= most, "more groups than the depth"
        else:
            assert len(self.open) <= most * self.size, "more images than the depth"
        reported = self.ready | self.lost >= self.kinds.keys()
        goes_on = self.open or self.admitted or self.closed or self.live or core.wake_ns
        assert goes_on or not reported, "no image is asked for, and nothing else will happen (4)"

    # ---- the end ------------------------------------------------------------

    def run_out(self, limit: int = 5000) -> World:
        """Answer and wake until the job finishes."""
        for _ in range(limit):
            if self.finish is not None:
                return self.finished()
            if not self.closed and (self.admitted or not self.live):
                self.close()
            elif self.live:
                self.answer(min(self.live))
            else:
                self.wake()
        raise AssertionError("the job does not end")

    def fall_silent(self, limit: int = 5000) -> World:
        """Nothing answers any more. The job must end."""
        for _ in range(limit):
            if self.finish is not None:
                return self.finished()
            owing = {sent.rank for sent in self.live.values()} - self.silent
            if not self.closed:
                self.close()
            elif owing:
                self.silence(min(owing))
            else:
                self.wake()
        raise AssertionError("nothing answers, and the job does not end")

    def finished(self) -> World:
        """Take all rows, and check that nothing is left behind."""
        core, totals = self.core, self.core.outcomes.totals
        assert self.finish is not None
        for task in list(self.live):
            self._ended(task, "unfinished")
        told = {each.position for each in self.differed}
        untold = {image for image, found in self.images.items() if found.two} - told
        assert untold <= self.held, "two ranks differ, and nobody is told"
        core.close(self.now_ns)
        self.held.clear()
        self.until.clear()
        self.take()
        assert self.rows.keys() == self.images.keys() - self.open.keys(), "one row an image (1)"
        errors = [row for row in self.rows.values() if not row["answered"]]
        if self.finish.status != ev.INCOMPLETE:
            assert (self.finish.status == ev.COMPLETE_WITH_ERRORS) == bool(errors)
            assert not core.retries.trouble
            assert not core.admission.left
            assert not core.groups
            assert not core._filling
        assert not core.tasks
        assert not core.ended
        assert not self.table.reasons
        for task, expected in self.task_rows.items():
            row = self.tasks[task]
            found = (
                *(row["task"], row["rank"], row["kind"], row["group"], row["attempt"]),
                *(row["items"], row["sent_ns"], row["done_ns"], row["compute_ns"]),
                *(OUTCOMES[row["outcome"]], row["reason"].decode()),
            )
            assert found == expected
            assert row["resolved"] == self.used[task], task
        assert self.tasks.keys() == self.sent.keys()
        assert (totals.images, totals.errors) == (len(self.rows), len(errors))
        assert totals.admitted == len(self.images)
        sources = Counter(row["source"] for row in self.rows.values())
        assert totals.collage == sources[COLLAGE]
        decided = [row for image, row in self.rows.items() if self.images[image].decided]
        audited = [row for row in decided if row["audited"] == "done"]
        assert totals.audited == len(audited)
        assert totals.differing == sum(r["stages"] >= 8 for r in audited)
        drawn = {i for i in self.rows if self.images[i].drawn}
        assert self.judged.keys() == drawn
        return self

    def again(self) -> None:
        """Give the same events to a new core: it must act in the same way (5)."""
        core = Core(self.settings, make_scheme(self.asked), Table(self.size, 0, 3, 1))
        for now_ns, events, told in self.log:
            assert [told_of(action) for action in core.step(now_ns, events)] == told
