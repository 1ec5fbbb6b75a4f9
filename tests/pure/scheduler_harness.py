"""A driver for the scheduler that checks its invariants after every event.

Owns: carrying out actions on plain dictionaries, and the checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from collage_mpi.scheduler import (
    Scheduler,
    SchedulerSettings,
    SchemeSettings,
    make_scheme,
)
from collage_mpi.scheduler import events as ev
from collage_mpi.scheduler.policies import AcceptPolicy
from collage_mpi.scheduler.schemes import scheme_class
from collage_mpi.scheduler.state import GroupState, ImageState
from collage_mpi.scheduler.transitions import DEFERRED, PARKED, RESERVED
from collage_mpi.settings.redundancy import AcceptSettings

SINGLE, COLLAGE, BACKUP = "single", "collage", "backup"
MS = 1_000_000


def numbers(image: ImageState) -> range:
    """Of the images of a run."""
    return range(image.id, image.id + image.count)


WORN = ev.Unread("worn", of_input=True)  # why a row cannot be used


def policy_of(
    name: str,
    *,
    confidence: float = 0.8,
    deadline_ns: int | None = None,
) -> AcceptPolicy:
    """The accept policy of that name, made from few settings."""
    settings = AcceptSettings(
        confidence={"first": 0.0, "confident": confidence}[name],
        deadline_ms=None if deadline_ns is None else deadline_ns / MS,
    )
    return settings.accept_policy()


def scheme_settings(name: str, **changes: object) -> SchemeSettings:
    """A scheme's settings where a test names but some of them: its own, not those of a run."""
    plain = {
        "assign": "turn",
        "policy": policy_of("first"),
        "collage_copies": 1,
        "hedge_ns": None,
        "placement": "fixed",
        "calibrate": False,
    }
    return SchemeSettings(**{"name": name, **plain, **changes})


def scheduler_settings(**changes: object) -> SchedulerSettings:
    """The scheduler's settings where a test names but some of them: its own, not those of a run."""
    plain = {
        "costs": {},
        "batch_costs": {},
        "batch": 1,
        "together": True,
        "depth": 1,
        "paced": False,
        "drain": False,
        "linger_ns": None,
        "max_attempts": 3,
        "endgame": False,
        "whole_batches": False,
    }
    return SchedulerSettings(**{**plain, **changes})


def outcomes(run: ev.ResolveRun) -> Iterator[ev.Resolve]:
    """Those of a run's images."""
    for place, score in enumerate(run.scores):
        where = run.group, run.cell + place
        yield ev.Resolve(run.image + place, run.source, (run.task,), *where, score, "ok", "")


class Harness:
    """Feeds events, applies actions, and fails on the first broken invariant."""

    def __init__(
        self,
        *,
        side: int = 2,
        singles: int | None = None,
        collages: int = 1,
        scheme: str = "collage",
        policy: str = "first",
        confidence: float = 0.8,
        deadline_ns: int | None = None,
        copies: int = 1,
        assign: str = "turn",
        hedge_ns: int | None = None,
        placement: str = "fixed",
        credit: int = 2,
        batch: int = 1,
        calibrate: bool = False,
        runs: bool = False,
        **settings,
    ) -> None:
        if scheme == "collage-only":
            singles, collages = 0, max(1, collages)
        singles = side * side if singles is None else singles
        whole_batches = runs and scheme == "none"
        self.scheme = make_scheme(
            scheme_settings(
                scheme,
                assign=assign,
                policy=policy_of(policy, confidence=confidence, deadline_ns=deadline_ns),
                collage_copies=copies,
                hedge_ns=hedge_ns,
                placement=placement if "placement" in scheme_class(scheme).takes else "fixed",
                calibrate=calibrate,
            )
        )
        self.scheduler = Scheduler(
            scheduler_settings(
                group_size=side * side * (batch if whole_batches else 1),
                ranks=singles + collages,
                batch=batch,
                whole_batches=whole_batches,
                **settings,
            ),
            self.scheme,
        )
        self.runs, self.whole_batches = runs, whole_batches
        self.groups: dict[int, GroupState] = {}
        self._group_opened = self.scheme.group_opened
        self.scheme.group_opened = self._opened
        self.now_ns = 0
        self.credit, self.batch = credit, batch
        self.messages: list[tuple[ev.Send, ...]] = []
        single = frozenset({SINGLE})
        collage = scheme_class(scheme).needs - single or frozenset({COLLAGE})
        if "placement" in scheme_class(scheme).takes and placement == "fastest" and singles:
            single = collage = single | collage
        self.kinds = {r: single for r in range(1, singles + 1)}
        self.kinds |= {r: collage for r in range(singles + 1, singles + collages + 1)}
        self.live: dict[int, ev.Send] = {}  # sent, not terminal
        self.sent: dict[int, ev.Send] = {}
        self.send_done: set[int] = set()
        self.ended: set[int] = set()
        self.cancelled: set[int] = set()
        self.timers: dict[int, int] = {}
        self.resolved: dict[int, ev.Resolve] = {}
        self.released: set[int] = set()
        self.arrived: set[int] = set()
        self.drawn: set[int] = set()
        self.answers: dict[int, dict[int, ev.Score | None]] = {}  # task -> image -> record
        self.unread: dict[int, frozenset[int]] = {}  # task -> images that its answer is not of
        self.hosts: dict[int, str] = {}  # of ranks that are not on "host"
        self.ready: set[int] = set()
        self.suspected: set[int] = set()
        self.lost: set[int] = set()
        self.retired: set[int] = set()
        self.admitted = 0  # may still arrive
        self.closed = False
        self.finish: ev.Finish | None = None
        self.actions: list[ev.Action] = []

    # ---- events -------------------------------------------------------------

    def feed(self, *events: ev.Event) -> list[ev.Action]:
        """Hand one event over, or some that came together; apply and check what comes back."""
        self.now_ns = events[0].now_ns
        self.actions = self.scheduler.handle(*events)
        for action in self.actions:
            getattr(self, f"_do_{type(action).__name__.lower()}")(action)
        self._check_progress()
        self._check_leaks()
        return self.actions

    def _opened(self, core: Scheduler, group: GroupState) -> None:
        self.groups[group.id] = group
        self._group_opened(core, group)

    @property
    def states(self) -> dict[int, ImageState]:
        """What the scheduler remembers of each image."""
        states = [state for group in self.groups.values() for state in group.images]
        return {image: state for state in states for image in numbers(state)}

    def said(self) -> list[ev.Action]:
        """What the last events led to, with one outcome an image and tasks by the order in which
        they were sent."""
        return list(_told(self.actions, {task: at for at, task in enumerate(self.sent)}))

    def start(self) -> None:
        """All ranks report ready."""
        for rank in self.kinds:
            self.rank_ready(rank)

    def rank_ready(self, rank: int) -> None:
        self.ready.add(rank)
        self.feed(
            ev.RankReady(
                self.now_ns, rank, self.kinds[rank], self.hosts.get(rank, "host"), self.credit
            )
        )

    def arrive(self, count: int, drawn: bool = False) -> None:
        """The next `count` images, all admitted at once (closed loop)."""
        length = count if self.runs and not drawn else 1
        for _ in range(count // length):
            if self.finish is not None:
                return
            image = len(self.arrived)
            self.arrived.update(range(image, image + length))
            assert self.admitted >= length, "it was not asked for (C6)"
            self.admitted -= length
            # Images are drawn where a first stage is asked, and nowhere else
            drawn = drawn and self.scheduler.dispatch.bundles is not None
            self.drawn |= {image} if drawn else set()
            now_ns = self.now_ns
            self.feed(ev.ImageArrived(now_ns, image, now_ns, drawn=drawn, length=length))

    def threshold(self, confidence: float | None) -> None:
        self.feed(ev.Threshold(self.now_ns, confidence))

    def close(self) -> None:
        self.closed = True
        self.admitted = 0
        self.feed(ev.InputClosed(self.now_ns))

    def answer(
        self,
        task: int,
        absent: frozenset[int] = frozenset(),
        unsure: frozenset[int] = frozenset(),
        service_ns: int = 1000,
        unread: frozenset[int] = frozenset(),
    ) -> list[ev.Action]:
        """The task's rank answers; images in `absent` get no record, in `unsure` a low score.

        Those `unread`, some of a collage's, were blank.
        """
        send = self._terminal(task)
        self.unread[task] = unread
        cells = {
            item.image: None
            if item.image in absent | unread
            else ev.Score(item.image % 10, 0.5 if item.image in unsure else 0.9)
            for item in send.items
        }
        self.answers[task] = cells
        self.suspected.discard(send.rank)
        return self.feed(
            ev.Answered(
                self.now_ns,
                task,
                send.rank,
                tuple(cells.values()),
                service_ns,
                tuple(WORN if image in unread else None for image in cells) if unread else (),
            )
        )

    def fail(self, task: int, of_input: bool = False) -> list[ev.Action]:
        send = self._terminal(task)
        self.suspected.discard(send.rank)
        unread = (WORN,) * len(send.items) if of_input else ()
        return self.feed(ev.Failed(self.now_ns, task, send.rank, "boom", unread))

    def skip(self, task: int) -> list[ev.Action]:
        assert task in self.cancelled
        send = self._terminal(task)
        self.suspected.discard(send.rank)
        return self.feed(ev.Skipped(self.now_ns, task, send.rank))

    def done_sending(self, task: int) -> None:
        self.send_done.add(task)
        self.feed(ev.SendDone(self.now_ns, (task,)))

    def suspect(self, rank: int) -> None:
        if any(send.rank == rank for send in self.live.values()):
            self.suspected.add(rank)  # a rank that owes nothing is not silent
        self.feed(ev.RankSuspected(self.now_ns, rank, "silent"))

    def lose(self, rank: int) -> None:
        self.lost.add(rank)
        self.suspected.discard(rank)
        for task in [t for t, send in self.live.items() if send.rank == rank]:
            self._terminal(task)
        self.feed(ev.RankLost(self.now_ns, rank, "killed"))

    def fire(self, timer: int) -> None:
        at_ns = self.timers.pop(timer)
        self.feed(ev.TimerFired(max(at_ns, self.now_ns), timer))

    def stop(self) -> None:
        self.feed(ev.StopRequested(self.now_ns, "asked to"))

    def _terminal(self, task: int) -> ev.Send:
        assert task not in self.ended
        self.ended.add(task)
        return self.live.pop(task)

    def task_of(self, image: int, kind: str = SINGLE) -> int:
        """The newest live task of the kind that covers the image."""
        return max(
            t
            for t, s in self.live.items()
            if s.kind == kind and any(item.image == image for item in s.items)
        )

    # ---- actions ------------------------------------------------------------

    def _do_admit(self, action: ev.Admit) -> None:
        assert action.images > 0
        assert not self.closed
        self.admitted += action.images

    def _do_send(self, send: ev.Send) -> None:
        self._message((send,))

    def _do_sendbatch(self, batch: ev.SendBatch) -> None:
        assert len(batch.sends) >= 2
        assert len({(send.rank, send.kind) for send in batch.sends}) == 1
        self._message(batch.sends)

    def _message(self, sends: tuple[ev.Send, ...]) -> None:
        self.messages.append(sends)
        states = self.states
        inputs = sum(len(send.items) for send in sends) if self.whole_batches else len(sends)
        assert inputs <= self.batch
        for send in sends:
            self._task_leaves(send)
            failed = any(states[item.image].failures for item in send.items)
            alone = len(sends) == 1 and (len(send.items) == 1 or not self.whole_batches)
            assert not failed or alone, "what has failed takes no others along"
        rank = sends[0].rank
        out = sum(s[0].rank == rank and any(t.task in self.live for t in s) for s in self.messages)
        assert out <= self.credit, "more messages out than the credit (3)"

    def _task_leaves(self, send: ev.Send) -> None:
        assert send.task not in self.sent, "task ids are never reused"
        assert send.items
        assert send.rank in self.ready - self.lost - self.retired - self.suspected
        assert send.kind in self.kinds[send.rank]
        for item in send.items:
            assert item.image in self.arrived
            assert item.image not in self.resolved, "no Send after the Resolve (2)"
            assert item.image not in self.released, "pixels are gone (7)"
        for other in self.live.values():
            if (other.rank, other.kind) == (send.rank, send.kind):
                here = {item.image for item in other.items}
                assert not here & {item.image for item in send.items}, "it is on the rank already"
        if send.bundle:
            images = [item.image for item in send.items]
            assert [item.cell for item in send.items] == list(range(len(images)))
            assert images == sorted(images)
            before = {item.image for other in self.sent.values() for item in other.items}
            again = send.attempt > 1  # where no single rank is left
            assert again or not before & {*images}, "only what was never sent is bundled"
        self.sent[send.task] = self.live[send.task] = send

    def _do_cancel(self, action: ev.Cancel) -> None:
        assert action.task in self.live
        assert action.task not in self.cancelled
        assert self.live[action.task].rank == action.rank
        assert all(i.image in self.resolved for i in self.live[action.task].items)
        self.cancelled.add(action.task)

    def _do_resolve(self, action: ev.Resolve) -> None:
        assert action.image in self.arrived
        assert action.image not in self.resolved, "one Resolve per image (2)"
        assert (action.score is None) == (action.outcome == "error") == (not action.tasks)
        for task in action.tasks:
            record = self.answers[task][action.image]
            assert record == action.score, "resolved by an answer that covers it (2)"
        self._check_audit(action)
        self.resolved[action.image] = action

    def _do_resolverun(self, run: ev.ResolveRun) -> None:
        assert len(run.scores) > 1
        for found in outcomes(run):
            self._do_resolve(found)

    def _check_audit(self, action: ev.Resolve) -> None:
        """Both networks were asked about it, and said what it says that they said."""
        first = self.scheme.bundle(self.scheduler.settings)
        accepted = first is not None and action.source == first.order.source
        assert bool(action.audited) <= (action.image in self.drawn)
        if accepted and action.image in self.drawn:
            assert action.audited
        assert (action.other is not None) == (action.audited == ev.DONE)
        assert (action.decided_ns is not None) == (accepted and action.image in self.drawn)
        if action.other is not None:
            others = [task for task in self.answers if task not in action.tasks]
            said = {(self.sent[t].kind, self.answers[t].get(action.image)) for t in others}
            kind = SINGLE if accepted else first.order.kind
            assert (kind, action.other) in said
        assert (action.decided_ns or 0) <= self.now_ns

    def _do_settimer(self, action: ev.SetTimer) -> None:
        assert action.at_ns >= self.now_ns
        self.timers[action.timer] = action.at_ns

    def _do_canceltimer(self, action: ev.CancelTimer) -> None:
        del self.timers[action.timer]

    def _do_retire(self, action: ev.Retire) -> None:
        assert action.rank not in self.retired
        last = [send for each in self.actions for send in getattr(each, "sends", (each,))]
        to = {send.rank for send in last if isinstance(send, ev.Send)}
        assert action.rank not in to, "it gets no new work"
        self.retired.add(action.rank)

    def _do_recall(self, action: ev.Recall) -> None:
        self.retired.remove(action.rank)

    def _do_release(self, action: ev.Release) -> None:
        images = set(action.images)
        assert len(images) == len(action.images)
        assert not images & self.released
        assert images <= self.resolved.keys()
        for task, send in self.live.items():
            if task not in self.send_done:
                assert not images & {item.image for item in send.items}, "still needed (7)"
        self.released |= images

    def _do_finish(self, action: ev.Finish) -> None:
        assert self.finish is None, "Finish once (7)"
        self.finish = action
        unresolved = self.arrived - set(self.resolved)
        if action.status == ev.INCOMPLETE:
            assert unresolved or not self.closed
        else:
            assert self.closed
            assert not unresolved
            errors = any(r.outcome == "error" for r in self.resolved.values())
            assert (action.status == ev.COMPLETE_WITH_ERRORS) == errors

    def _check_progress(self) -> None:
        """Invariant 4: nobody is forgotten. A timer excuses only who waits for one."""
        if self.finish is not None:
            return
        covered = {
            item.image
            for send in self.live.values()
            if send.rank not in self.suspected
            for item in send.items
        }
        queued = list(self.scheduler.dispatch.waiting())
        waits = [image for task in queued for image in task.images]
        waiting = {number for image in waits for number in numbers(image)}
        unresolved, states = self.arrived - self.resolved.keys(), self.states
        timed = {i for i in unresolved if states[i].status in (RESERVED, PARKED, DEFERRED)}
        filling = self.scheduler.groups.filling
        open_group = {n for image in filling.images for n in numbers(image)} if filling else set()
        for image in unresolved - covered - waiting - open_group:
            stopping = self.scheduler._stopping is not None
            assert self.timers, f"image {image} is forgotten (4)"
            own = image in timed or stopping
            assert own, f"image {image} waits for a timer that is not its own (4)"

    def _check_leaks(self) -> None:
        """Pixels go as soon as no live task needs them (7); timers go with their groups."""
        if self.finish is not None:
            return
        needed = {
            item.image
            for task, send in self.live.items()
            if task not in self.send_done
            for item in send.items
        }
        assert self.resolved.keys() - self.released <= needed, "pixels leak (7)"
        assert self.scheduler.timers._calls.keys() == self.timers.keys(), "timers leak"
        assert self.scheduler.retries.suspects.keys() == self.suspected, "silent ranks leak"
        for group in self.groups.values():
            if group.closed and group.unresolved == 0:
                assert not group.timers, "timers of a group that is done"

    def fall_silent(self, limit: int = 10_000) -> None:
        """Nothing answers any more: every rank with a task is suspected, timers fire.

        The job must end, or ask for images, within bounded steps.
        """
        for _ in range(limit):
            if self.finish is not None or (self.admitted and not self.closed):
                return
            owing = {send.rank for send in self.live.values()} - self.suspected
            if owing:
                self.suspect(min(owing))
            elif self.timers:
                self.fire(min(self.timers, key=lambda t: (self.timers[t], t)))
            elif not self.closed and self.scheduler.groups.filling is not None:
                self.close()  # a part-filled group waits for its images
            else:
                break
        raise AssertionError("nothing answers, and the job neither ends nor goes on")

    def run_out(self, limit: int = 10_000) -> None:
        """Answer and fire whatever is left until the job finishes."""
        for _ in range(limit):
            if self.finish is not None:
                return
            if self.admitted and not self.closed:
                self.close()
            elif self.live:
                self.answer(min(self.live))
            elif self.timers:
                self.fire(min(self.timers, key=lambda t: (self.timers[t], t)))
            else:
                assert not self.closed, "no task, no timer, no Finish: the job hangs"
                self.close()
        raise AssertionError("the job does not end")


def both(name: str, of_task: bool = False) -> Callable[..., None]:
    """What happens to both of `Twins`; `of_task`: to the tasks that were sent at the same time."""

    def call(job: Twins, *args, **named) -> None:
        job.alone.now_ns = job.now_ns
        mapped = [*job.alone.sent][[*job.sent].index(args[0])] if of_task else None
        getattr(Harness, name)(job, *args, **named)
        getattr(job.alone, name)(*([mapped, *args[1:]] if of_task else args), **named)
        assert job.said() == job.alone.said()

    return call


class Twins(Harness):
    """A job with runs, beside one without them that meets the same: what they do is the same but
    for the numbers of tasks."""

    def __init__(self, **settings) -> None:
        super().__init__(runs=True, **settings)
        self.alone = Harness(**settings)

    def arrive(self, count: int, drawn: bool = False) -> None:
        """All at once: the first one `drawn`, if so, and the others as a run."""
        first, now_ns, alone = len(self.arrived), self.now_ns, self.alone
        images = range(first, first + count)
        for job in (self, alone):
            job.arrived.update(images)
            job.drawn.update(images[:drawn])
            job.admitted -= count
            job.now_ns = now_ns
        each = [
            ev.ImageArrived(now_ns, image, now_ns, drawn=drawn and image == first)
            for image in images
        ]
        rest = ev.ImageArrived(now_ns, first + drawn, now_ns, length=count - drawn)
        self.feed(*each[:drawn], *([rest] if rest.length else []))
        alone.feed(*each)
        assert self.said() == alone.said()

    answer, fail, skip, done_sending = (
        both(name, of_task=True) for name in ("answer", "fail", "skip", "done_sending")
    )
    rank_ready, threshold, close, suspect, lose, fire, stop = (
        both(name)
        for name in ("rank_ready", "threshold", "close", "suspect", "lose", "fire", "stop")
    )


def _told(actions: list[ev.Action], tasks: dict[int, int]) -> Iterator[ev.Action]:
    """See `Harness.said`."""
    for action in actions:
        if isinstance(action, ev.ResolveRun):
            yield from (each._replace(tasks=(tasks[action.task],)) for each in outcomes(action))
        elif isinstance(action, ev.Resolve):
            yield action._replace(tasks=tuple(tasks[task] for task in action.tasks))
        elif isinstance(action, ev.Release):
            yield ev.Release(tuple(sorted(action.images)))
        elif isinstance(action, ev.SendBatch):
            yield ev.SendBatch(tuple(s._replace(task=tasks[s.task]) for s in action.sends))
        elif isinstance(action, ev.Send | ev.Cancel):
            yield action._replace(task=tasks[action.task])
        else:
            yield action


def started(**kwargs) -> Harness:
    """A job with its first groups under way."""
    job = Harness(**kwargs)
    job.start()
    job.arrive(job.admitted)
    return job
