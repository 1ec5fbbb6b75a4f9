"""The same scheduler on virtual time: a discrete-event simulation of a run.

It shares the scheduler, the delay models and the rows with a real run, so that verify, summary and
figures read both alike.

The model: rank 0 does one thing at a time. It takes an answer `receive_ns` after it has
come and it is free; a message sent occupies it for `send_ns`, a collage for
`encode_ns` more. A rank does its messages in the order in which they come, and skips what is
cancelled. A message travels for `network_ns`. A rank's service time is its draw, times
the cost ratio on a rank of another kind; without a delay model it is `single_ns`, times the factor
of a slow rank. The tasks of
a message are one batch: what was cancelled is left out of it, the largest draw counts, times
what such a batch takes over one input. What it answers is replayed from a file of the networks'
answers, or made up. Not modelled: shared network links, a rank's compute slowed by its
neighbours, the disk.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import Any

from collage_mpi.errors import UsageError
from collage_mpi.faults.reply_timeout import SCAN_EVERY_NS, TIMEOUT, ReplyTimeouts
from collage_mpi.job.recorder import Grouping, Recorder, Writer
from collage_mpi.kinds import BACKUP, KIND, SINGLE, SPARE_KINDS
from collage_mpi.models import describe
from collage_mpi.mpi.answers import ANSWERED, SKIPPED, WireResult, task_ends
from collage_mpi.results.number_sets import Draw
from collage_mpi.scheduler import Scheduler, batch_factor, make_scheme
from collage_mpi.scheduler import events as ev
from collage_mpi.scheduler.events import Score
from collage_mpi.settings.batches import ModelTimes, choose_batch, injected_ns, most_groups
from collage_mpi.settings.run_settings import (
    AUDIT_SEED,
    RunSettings,
    with_accept_of,
    with_every_answer,
)
from collage_mpi.shards.readahead import ImageRecord
from collage_mpi.simulation.costs import Costs
from collage_mpi.simulation.replayed_answers import Answers, answers_file, read_answers
from collage_mpi.workload.arrivals import Arrivals, ClosedLoop, OpenLoop
from collage_mpi.workload.service_times import DelayModel, service_ns
from collage_mpi.workload.straggler_settings import deaths_of, describe_deaths, make_delays

# At equal times answers come before timers, as the scheduler asks; work on ranks is in between.
ANSWER, RANK, TIMER = 0, 1, 2
FINGERPRINT = "simulated"  # of the shard that its images would be in
ANY_SCORE = Score(0, 1.0)
_answers = lru_cache(maxsize=8)(read_answers)


@dataclass
class _Rank:
    """A worker rank: its waiting messages and cancelled tasks, and whether it is busy."""

    id: int
    kinds: frozenset[str]
    queue: deque[Sequence[ev.Send]] = field(default_factory=deque)
    cancelled: set[int] = field(default_factory=set)
    busy: bool = False
    answered: int = 0  # tasks


@dataclass(frozen=True)
class SimulatedJob:
    """One simulation.

    Attributes:
        settings: of a run; shards, networks and device do not matter. Cost ratio and batch cost are
            1.0 unless set, because no network is measured.
        images: how many are classified.
        costs: of rank 0 and of messages.
        answers: a file of `evaluate --save-answers`; "{side}" in it stands for the side.
        rows: write a row for every image, group and task; otherwise only the summary.
        first: row of the answers that the first image takes, rounded up to whole groups.
        measured_batch_costs: by kind; used if the settings have no batch cost.
        delays: replaces the model of the settings.
        dead_ranks: ranks that stop answering, as RANK:WHEN; see `deaths_of`.
    """

    settings: RunSettings
    images: int
    costs: Costs = field(default_factory=Costs)
    answers: str | None = None
    rows: bool = True
    first: int = 0
    measured_batch_costs: Mapping[str, float] | None = None
    delays: DelayModel | None = None
    dead_ranks: tuple[str, ...] = ()

    @property
    def describe_delays(self) -> str:
        """The delays and deaths in one line, for tables and titles."""
        return self.settings.describe_delays() + describe_deaths(deaths_of(self.dead_ranks))

    @property
    def batch_costs(self) -> dict[str, float]:
        """Kind -> time of each further input of a batch divided by that of the first one."""
        if self.settings.batch_cost is None and self.measured_batch_costs:
            return dict(self.measured_batch_costs)
        return self.settings.batch_costs()

    @cached_property
    def effective(self) -> RunSettings:
        """The settings with values chosen for `batch auto` and `accept auto`.

        Raises as `describe`.
        """
        settings = self._with_accept
        if settings.batch is not None:
            return settings
        single_ns = injected_ns(settings) or self.costs.single_ns
        model = ModelTimes(settings, single_ns, self.ratio, self.batch_costs)
        placement = settings.place(settings.world_size)
        nothing = dict.fromkeys(sorted(frozenset().union(*placement.kinds)), 0)
        most = most_groups(settings, placement, self.images)
        return settings.at_batch(choose_batch(most, partial(model.at_least, took=nothing)).size)

    @property
    def _with_accept(self) -> RunSettings:
        """The settings with a policy chosen for `confidence auto`. It is 0 if no answers of named
        networks are replayed, because the policy then makes no difference to accuracy.

        Raises as `describe`.
        """
        settings = self.settings
        if settings.agree is not None:
            raise UsageError(
                f"agree is {settings.agree:g}: a run chooses the score that counts by the answers "
                "of its networks, and a simulation has none; give it the score that a run told: "
                "--confidence 0.9"
            )
        if settings.confidence is not None or not settings.takes_policy:
            return settings
        first = settings.network(settings.judged)
        same = settings.judged == BACKUP and first == settings.single
        replayed = self.answers is not None and not same
        if replayed and settings.single and first:
            kinds = (SINGLE, settings.judged)
            infos = (describe(settings.network(kind), KIND[kind].network) for kind in kinds)
            return with_accept_of(settings, *infos)
        if replayed and settings.takes_threshold:
            raise UsageError(
                f"scheme {settings.scheme} must know from which score on a first answer "
                f"counts: name the networks of --answers by --single and --{settings.judged}, "
                "whose threshold it then takes, or set it by --confidence 0.9"
            )
        return with_every_answer(settings)

    @property
    def ratio(self) -> float:
        """Service time of the scheme's other network divided by that of the single network."""
        return 1.0 if self.settings.cost_ratio is None else self.settings.cost_ratio

    def load_answers(self) -> Answers | None:
        """Raises as `read_answers`."""
        if self.answers is None:
            return None
        side = self.settings.side
        answers = _answers(answers_file(self.answers, side), side)
        if self.settings.network(BACKUP) == self.settings.single:  # a batch for the single network
            answers = replace(answers, known={**answers.known, BACKUP: answers.known[SINGLE]})
        return replace(answers, start=-(-self.first // side**2) * side**2)


class Simulation:
    """One run on virtual time.

    Attributes:
        finish: how the run ended; stopped: the reason that `stop` was given.
    """

    def __init__(self, job: SimulatedJob, writer: Writer, answers: Answers | None = None) -> None:
        """Ready to run; rows go to `writer`."""
        self.job, self._answers = job, answers
        self._ratio, self._batch_costs = job.ratio, job.batch_costs
        self.settings = settings = job.effective
        self.placement = settings.place(settings.world_size)
        kinds = self.placement.kinds
        self.ranks = {rank: _Rank(rank, kinds[rank]) for rank in self.placement.workers}
        self.scheduler = Scheduler(
            settings.scheduler_settings(len(self.ranks), self._ratio, self._batch_costs),
            make_scheme(settings.scheme_settings()),
        )
        self._images: dict[int, ImageRecord] = {}  # in flight
        self.recorder = Recorder(
            writer,
            self._images,
            start_ns=0,
            grouping=Grouping(settings.group_size, settings.warm_groups),
        )
        self.finish: ev.Finish | None = None
        self.stopped: str | None = None
        self._draw = Draw(settings.audit_share, AUDIT_SEED, (FINGERPRINT,))
        self._delays = job.delays or make_delays(settings, by_image=settings.draws_by_image)
        # Silence is watched only where a rank may fall silent.
        self._deaths = deaths_of(job.dead_ranks)
        self._timeouts = make_timeouts(settings, self.ranks) if self._deaths else None
        self._heap: list[tuple[int, int, int, Any, Any]] = []
        self._sequence = 0
        self._free_ns = 0  # when rank 0 has done what it is doing
        self._stamp_ns = 0
        self._next_image = 0
        times_ns = settings.arrival_times_ns(job.images)  # (images,) int64
        self._arrivals: Arrivals = ClosedLoop() if times_ns is None else OpenLoop(times_ns)
        self._awaited_ns: int | None = None
        self._events: deque[Sequence[ev.Event]] = deque()
        self._dropped_timers: set[int] = set()
        self._actions: dict[type, Callable[[Any], object]] = {
            ev.Send: lambda a: self._send((a,)),
            ev.SendBatch: lambda a: self._send(a.sends),
            ev.Resolve: lambda a: self.recorder.resolved(a, self._stamp_ns),
            ev.Admit: self._admit,
            ev.Cancel: self._cancel,
            ev.SetTimer: lambda a: self._at(a.at_ns, TIMER, self._timer, a.timer),
            ev.CancelTimer: lambda a: self._dropped_timers.add(a.timer),
            ev.Finish: self._finished,
            ev.Release: self._release,
            ev.Retire: lambda a: None,
            ev.Recall: lambda a: None,
        }

    def run(self) -> ev.Finish:
        """Simulate from the first admission to the end."""
        for rank, state in self.ranks.items():
            self._handle(ev.RankReady(0, rank, state.kinds, "simulated", self.settings.messages))
        if self._timeouts is not None:
            self._at(SCAN_EVERY_NS, TIMER, self._scan, self._timeouts)
        told = False
        while self.finish is None:
            at_ns, _, _, call, argument = heapq.heappop(self._heap)
            if self.stopped is not None and not told:
                told = True
                self._handle(ev.StopRequested(self._begin(at_ns), self.stopped))
            call(at_ns, argument)
        self.recorder.finish(self._stamp_ns)
        return self.finish

    def stop(self, reason: str) -> None:
        """Admit no more images. A signal handler may call this at any moment."""
        self.stopped = reason

    def _at(self, at_ns: int, order: int, call: Any, argument: Any) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (at_ns, order, self._sequence, call, argument))

    # ---- rank 0 -------------------------------------------------------------

    def _handle(self, *events: ev.Event) -> None:
        self._events.append(events)
        self._drain()

    def _drain(self) -> None:
        """Give the scheduler the waiting events in order, and the events that they cause."""
        while self._events:
            current = self._events[0]
            if self.finish is None:
                self._stamp_ns = current[0].now_ns
                for action in self.scheduler.handle(*current):
                    self._actions[type(action)](action)
            self._events.popleft()

    def _begin(self, at_ns: int) -> int:
        """The time at which rank 0 begins with something that came at `at_ns`."""
        self._free_ns = max(self._free_ns, at_ns)
        return self._free_ns

    def _answer(self, at_ns: int, answer: tuple[int, Sequence[WireResult]]) -> None:
        """Take the answers of a message: one moment to the scheduler, as in a real run."""
        rank, results = answer
        now_ns = self._begin(at_ns)
        if self._timeouts is not None:
            self._timeouts.served(max(result.compute_ns for result in results))
            self._timeouts.heard(rank, now_ns, len(results))
        self._free_ns += len(results) * self.job.costs.receive_ns
        self.recorder.ended(results, now_ns, 0)
        self._handle(*task_ends(rank, now_ns, results))
        self.recorder.settled([result.task for result in results])

    def _timer(self, at_ns: int, timer: int) -> None:
        if timer in self._dropped_timers:
            self._dropped_timers.discard(timer)
        else:
            self._handle(ev.TimerFired(self._begin(at_ns), timer))

    def _scan(self, at_ns: int, timeouts: ReplyTimeouts) -> None:
        """Tell the scheduler which ranks are silent, and which count as lost."""
        now_ns = self._begin(at_ns)
        for sign in timeouts.overdue(now_ns):
            if not sign.again:
                self._handle(ev.RankSuspected(now_ns, sign.rank, sign.why))
                continue
            if self.settings.on_rank_loss == "abort":
                continue  # as in a real run: its process is there, and it may still answer
            timeouts.lose(sign.rank, TIMEOUT, sign.why, now_ns)
            self._handle(ev.RankLost(now_ns, sign.rank, sign.why))
            self.recorder.lost(sign.rank, now_ns, sign.why)
        self._at(now_ns + SCAN_EVERY_NS, TIMER, self._scan, timeouts)

    def _admit(self, action: ev.Admit) -> None:
        # Closed loop: t0 is when rank 0 comes to it, as in a real run.
        self._arrivals.admit(max(self._stamp_ns, self._free_ns), action.images)
        self._let_in(self._stamp_ns)

    def _let_in(self, now_ns: int) -> None:
        """Images that are due arrive. If the next one has a time of arrival, wait for that time."""
        while count := min(self._arrivals.due(now_ns), self.job.images - self._next_image):
            arrived: list[ev.Event] = []
            for t0_ns, _ in self._arrivals.enter(now_ns, count):
                image = self._next_image
                label = None if self._answers is None else self._answers.label(image)
                self._images[image] = ImageRecord(image, 0, image, None, label, t0_ns=t0_ns)
                drawn = self._draw.one(0, image)
                arrived.append(ev.ImageArrived(now_ns, image, t0_ns, drawn=drawn))
                self._next_image += 1
            self._events.append(arrived)
        if self._next_image == self.job.images:  # to tell it again changes nothing
            self._events.append((ev.InputClosed(now_ns),))
        next_ns = self._arrivals.next_ns(now_ns)
        if next_ns is not None and next_ns != self._awaited_ns:
            self._awaited_ns = next_ns
            self._at(next_ns, RANK, self._arrival, None)

    def _arrival(self, at_ns: int, _: None) -> None:
        self._let_in(self._begin(at_ns))
        self._drain()

    def _send(self, sends: Sequence[ev.Send]) -> None:
        encode_ns = self.job.costs.encode_ns if KIND[sends[0].kind].encoded else 0
        self._free_ns += self.job.costs.send_ns + len(sends) * encode_ns
        if self._timeouts is not None:
            self._timeouts.sent(sends[0].rank, self._free_ns, len(sends))
        self.recorder.sent(sends, self._free_ns, (encode_ns,) * len(sends))
        self._events.append((ev.SendDone(self._stamp_ns, tuple(send.task for send in sends)),))
        self._at(self._free_ns + self.job.costs.network_ns, RANK, self._arrives, sends)

    def _cancel(self, action: ev.Cancel) -> None:
        self._free_ns += self.job.costs.send_ns
        self._at(self._free_ns + self.job.costs.network_ns, RANK, self._cancelled, action)

    def _release(self, action: ev.Release) -> None:
        for image in action.images:
            del self._images[image]

    def _finished(self, action: ev.Finish) -> None:
        self.finish = action

    # ---- the workers --------------------------------------------------------

    def _arrives(self, at_ns: int, sends: Sequence[ev.Send]) -> None:
        rank = self.ranks[sends[0].rank]
        rank.queue.append(sends)
        if not rank.busy:
            self._next_task(at_ns, rank)

    def _cancelled(self, at_ns: int, cancel: ev.Cancel) -> None:
        self.ranks[cancel.rank].cancelled.add(cancel.task)

    def _next_task(self, at_ns: int, rank: _Rank) -> None:
        """The rank is free: it skips cancelled messages and begins the next one."""
        rank.busy = self._dead(rank, at_ns)
        while rank.queue and not rank.busy:
            sends = rank.queue.popleft()
            results, wanted = [], sends
            if rank.cancelled:
                results = [WireResult(s.task, SKIPPED) for s in sends if s.task in rank.cancelled]
                wanted = [send for send in sends if send.task not in rank.cancelled]
            if not wanted:
                self._reply(at_ns, rank, results)
                continue
            rank.busy = True
            took_ns = self._service_ns(wanted, at_ns)
            for send in wanted:
                cells = self._cells(send)
                results.append(WireResult(send.task, ANSWERED, took_ns, cells=cells))
            self._at(at_ns + took_ns, RANK, self._done, (rank, results, len(wanted)))

    def _cells(self, send: ev.Send) -> tuple[Score | None, ...]:
        if self._answers is None:
            return (ANY_SCORE,) * len(send.items)
        return self._answers.cells(send.kind, send.items)

    def _done(self, at_ns: int, done: tuple[_Rank, list[WireResult], int]) -> None:
        rank, results, answered = done
        if self._dead(rank, at_ns):
            return  # and it stays busy: it takes nothing more
        rank.answered += answered
        self._reply(at_ns, rank, results)
        self._next_task(at_ns, rank)

    def _reply(self, at_ns: int, rank: _Rank, results: list[WireResult]) -> None:
        if rank.cancelled:
            rank.cancelled.difference_update(result.task for result in results)
        self._at(at_ns + self.job.costs.network_ns, ANSWER, self._answer, (rank.id, results))

    def _dead(self, rank: _Rank, at_ns: int) -> bool:
        """Whether the rank has stopped answering."""
        death = self._deaths.get(rank.id)
        return death is not None and death.reached(at_ns, rank.answered)

    def _service_ns(self, sends: Sequence[ev.Send], at_ns: int) -> int:
        """The time that a rank takes for tasks of one kind that it runs as a batch."""
        rank, kind = sends[0].rank, sends[0].kind
        ratio = self._ratio if kind in SPARE_KINDS else 1.0
        inputs = sum(len(s.items) for s in sends) if KIND[kind].batched else len(sends)
        factor = ratio * batch_factor(inputs, self._batch_costs.get(kind, 1.0))
        if self.job.delays is None and not self.settings.injects:
            return round(self.job.costs.single_ns * factor * self._delays.slowed(rank))
        keys = [(send.group, send.items[0].image, send.attempt) for send in sends]
        return service_ns(self._delays, rank, keys, at_ns, factor)


def make_timeouts(settings: RunSettings, ranks: Iterable[int]) -> ReplyTimeouts:
    """The reply timeouts of the ranks, from time 0."""
    patience_s = settings.reply_timeout_s
    return ReplyTimeouts(ranks, 0, None if patience_s is None else round(patience_s * 1e9))
