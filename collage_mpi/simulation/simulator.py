"""The same core on virtual time: a discrete-event simulation of a run.

It shares the core, the delay models and the rows with a real run, so that verify, summary and
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
import io
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.core import events as ev
from collage_mpi.core.core import Core
from collage_mpi.core.schemes import make_scheme
from collage_mpi.core.settings import batch_factor
from collage_mpi.core.table import Table
from collage_mpi.core.work import Task
from collage_mpi.errors import DataFault, UsageError
from collage_mpi.faults.reply_timeout import SCAN_EVERY_NS, TIMEOUT, ReplyTimeouts
from collage_mpi.kinds import KIND, SINGLE, SPARE_KINDS
from collage_mpi.models import describe
from collage_mpi.results.number_sets import Draw
from collage_mpi.results.row_sink import Writer
from collage_mpi.rows import ABSENT, CELL, PLACED, PRESENT, Measured, measured_bytes
from collage_mpi.settings.run_settings import (
    AUDIT_SEED,
    RunSettings,
    with_accept_of,
    with_every_answer,
)
from collage_mpi.simulation.costs import Costs
from collage_mpi.system.files import reading, require_regular, save_file
from collage_mpi.workload.arrivals import Arrivals, ClosedLoop, OpenLoop
from collage_mpi.workload.straggler_settings import (
    DelayModel,
    deaths_of,
    describe_deaths,
    make_delays,
    service_ns,
)

VERSION = 1
# name -> kinds of dtype, dimensions
_ARRAYS = {
    **dict.fromkeys(("version", "side"), ("iu", 0)),
    "labels": ("iu", 1),
    "class_names": ("U", 1),
}


@dataclass(frozen=True)
class Answers:
    """For each image of a data set its label and the answers of the networks.

    Image i of a simulation takes row start + i, modulo the images in full groups. So the images of
    a full group were in one collage.

    Attributes:
        side: of the collages.
        labels: (n,) int64.
        known: kind that was evaluated -> (n,) of CELL.
        start: row of the first image, a multiple of side x side.
    """

    side: int
    class_names: tuple[str, ...]
    labels: np.ndarray
    known: Mapping[str, np.ndarray]
    start: int = 0

    def label(self, images: np.ndarray) -> np.ndarray:
        """True classes of simulated images, (n,) int64."""
        return self.labels[(self.start + images) % len(self.labels)]

    def cells(self, kind: str, positions: np.ndarray) -> np.ndarray:
        """The kind's answers for these images, (n,) of CELL; absent if the kind was not
        evaluated."""
        known = self.known.get(kind)
        if known is None:
            return np.zeros(len(positions), CELL)
        return known[(self.start + positions) % len(known)]


def save_answers(
    path: Path,
    side: int,
    labels: np.ndarray,
    answers: Mapping[str, np.ndarray],
    class_names: Sequence[str],
) -> None:
    """Write an .npz of plain arrays (no pickle) about n images in file order.

    Image i is cell i % side**2 of group i // side**2. The last group has blank cells.

    Arrays:
        version, side: int, no dimension.
        labels: (n,) int64.
        single_class, single_score: (n,) int16 and float32.
        collage_class, collage_score: the same for the image's cell; meaningless where absent.
        collage_absent: (n,) bool, the collage network gave no answer for the cell. Only with a
            collage network. stage1_class and so on are the same for a quick network.
        class_names: (k,) unicode.

    Args:
        labels: (n,) int64.
        answers: kind -> (n,) of CELL, of single and of each other kind; scores are calibrated
            probabilities.

    Raises:
        EnvironmentFault: the file cannot be written.
    """
    columns: dict[str, Any] = {}
    for kind, each in answers.items():
        columns[f"{kind}_class"] = each["label"].astype(np.int16)
        columns[f"{kind}_score"] = each["score"].astype(np.float32)
        columns[f"{kind}_absent"] = each["state"] == ABSENT
    del columns[f"{SINGLE}_absent"]  # it always answers
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        version=VERSION,
        side=side,
        labels=labels.astype(np.int64),
        class_names=np.array(list(class_names), dtype=np.str_),
        **columns,
    )
    save_file(path, buffer.getvalue())


def answers_file(name: str, side: int) -> Path:
    """The file of answers for a side."""
    return Path(name.replace("{side}", str(side)))


def read_answers(path: Path, side: int | None) -> Answers:
    """Read a file of `evaluate --save-answers`: the full groups of `side` x `side`, or with None
    all its images.

    Raises:
        EnvironmentFault: it cannot be read.
        DataFault: another file, damaged, of another side, or without one full group.
    """
    with reading(f"answers {path}", "no file of evaluate --save-answers"):
        require_regular(path)
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it holds a single array")
        with file:
            arrays = {name: file[name] for name in (*_ARRAYS, *_arrays_of(SINGLE))}
            for kind in SPARE_KINDS:
                if any(f"{kind}_{what}" in file for what in ("class", "score", "absent")):
                    arrays |= {name: file[name] for name in _arrays_of(kind)}
    all_images, side = side is None, int(arrays["side"]) if side is None else side
    _check(arrays, path, side)
    n = len(arrays["labels"])
    n -= 0 if all_images else n % side**2
    if n == 0:
        raise DataFault(
            f"answers {path} has {len(arrays['labels'])} images; a group of side {side} needs "
            f"{side**2}"
        )
    there = _there(arrays)
    return Answers(
        side=side,
        class_names=tuple(arrays["class_names"].tolist()),
        labels=arrays["labels"][:n].astype(np.int64),
        known={kind: _scores(arrays, kind, n) for kind in there},
    )


def _arrays_of(kind: str) -> dict[str, tuple[str, int]]:
    found = {f"{kind}_class": ("iu", 1), f"{kind}_score": ("f", 1)}
    return found | ({} if kind == SINGLE else {f"{kind}_absent": ("b", 1)})


def _there(arrays: Mapping[str, np.ndarray]) -> list[str]:
    return [kind for kind in (SINGLE, *SPARE_KINDS) if f"{kind}_class" in arrays]


def _scores(arrays: Mapping[str, np.ndarray], kind: str, n: int) -> np.ndarray:
    cells = np.zeros(n, CELL)
    cells["label"], cells["score"] = arrays[f"{kind}_class"][:n], arrays[f"{kind}_score"][:n]
    absent = arrays.get(f"{kind}_absent", np.zeros(n, bool))
    cells["state"] = np.where(absent[:n], ABSENT, PRESENT)
    return cells


def _check(arrays: Mapping[str, np.ndarray], path: Path, side: int) -> None:
    there, expected = _there(arrays), dict(_ARRAYS)
    for kind in there:
        expected |= _arrays_of(kind)
    n = len(arrays["labels"]) if arrays["labels"].ndim == 1 else -1
    for name, (kinds, dimensions) in expected.items():
        array = arrays[name]
        sized = not dimensions or name == "class_names" or len(np.atleast_1d(array)) == n
        if array.dtype.kind not in kinds or array.ndim != dimensions or not sized:
            needed = f"it does not fit {n} images" if dimensions else "it needs a whole number"
            found = f"{array.dtype} of shape {array.shape}"
            raise DataFault(f"answers {path}: {name} is {found}; {needed}")
    if int(arrays["version"]) != VERSION:
        raise DataFault(f"answers {path}: version {int(arrays['version'])}; known is {VERSION}")
    if int(arrays["side"]) != side:
        raise DataFault(
            f"answers {path} are of side {int(arrays['side'])}, the settings say --side {side}"
        )
    known = len(arrays["class_names"])
    for name in ("labels", *(f"{kind}_class" for kind in there)):
        absent = arrays.get(name.replace("class", "absent"))
        chosen = arrays[name] if name == "labels" or absent is None else arrays[name][~absent]
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < known:
            raise DataFault(f"answers {path}: {name} is outside of the {known} classes")


# At equal times answers come before timers, as the core asks; work on ranks is in between.
ANSWER, RANK, TIMER = 0, 1, 2
ROWS = 4096  # that are written together
FINGERPRINT = "simulated"  # of the shard that its images would be in
ANY_CELL = np.array([(0, 1.0, PRESENT, 0, 0)], CELL)
_NOTHING = (ev.Resolved, ev.Released, ev.Differed, ev.Judged, ev.Retire, ev.Recall)
_answers = lru_cache(maxsize=8)(read_answers)


@dataclass
class _Rank:
    """A worker rank: its waiting messages and cancelled tasks, and whether it is busy."""

    id: int
    kinds: frozenset[str]
    wrong: float = 0.0  # share of its exact answers
    queue: deque[Sequence[Task]] = field(default_factory=deque)
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
        wrong_ranks: rank -> the share of its exact answers that have another class.
        likes: rank -> its kind of processor, if not all are alike.
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
    wrong_ranks: Mapping[int, float] = field(default_factory=dict)
    likes: Mapping[int, str] = field(default_factory=dict)

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
        from collage_mpi.settings.batches import ModelTimes, choose_batch, injected_ns, most_groups

        single_ns = injected_ns(settings) or self.costs.single_ns
        model = ModelTimes(settings, single_ns, self.ratios, self.batch_costs)
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
        kinds, replayed = (SINGLE, *settings.accept), self.answers is not None
        if replayed and all(map(settings.network, kinds)):
            infos = {k: describe(settings.network(k), KIND[k].network) for k in kinds}
            return with_accept_of(settings, {k: each for k, each in infos.items() if each})
        if replayed and settings.takes_threshold:
            raise UsageError(
                f"scheme {settings.scheme} must know from which score on a first answer "
                "counts: name the networks of --answers by --single, and --collage or --first, "
                "whose threshold it then takes, or set it by --confidence 0.9"
            )
        return with_every_answer(settings)

    @property
    def ratio(self) -> float:
        """Service time of the scheme's other network divided by that of the single network."""
        return 1.0 if self.settings.cost_ratio is None else self.settings.cost_ratio

    @property
    def ratios(self) -> dict[str, float]:
        """Kind -> the same, for each network but the single one."""
        return dict.fromkeys(SPARE_KINDS, self.ratio)

    def load_answers(self) -> Answers | None:
        """Raises as `read_answers`."""
        if self.answers is None:
            return None
        side = self.settings.side
        answers = _answers(answers_file(self.answers, side), side)
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
        wrong, workers = job.wrong_ranks, self.placement.workers
        self.ranks = {rank: _Rank(rank, kinds[rank], wrong.get(rank, 0.0)) for rank in workers}
        self._errors = np.random.default_rng(
            [*map(ord, "wrong"), settings.straggler_seed, job.first]
        )
        self.table = Table(settings.group_size, 0, writer.session, settings.warm_groups)
        asked = settings.core_settings(len(self.ranks), job.ratios, self._batch_costs)
        self.core = Core(asked, make_scheme(settings.scheme_settings()), self.table)
        self._writer = writer
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
        self._closed = False
        self._waiting: deque[tuple[int, Sequence[ev.Event]]] = deque()  # (time, events)
        self._woken_ns: int | None = None
        self._left: list[ev.Left] = []
        self._actions: dict[type, Callable[[Any], object]] = {
            ev.Send: self._send,
            ev.Admit: self._admit,
            ev.Cancel: self._cancel,
            ev.Finish: self._finished,
            **dict.fromkeys(_NOTHING, lambda a: None),
        }

    def run(self) -> ev.Finish:
        """Simulate from the first admission to the end."""
        for rank, state in self.ranks.items():
            like, credit = self.job.likes.get(rank, ""), self.settings.messages
            self._step(0, ev.RankReady(rank, state.kinds, "simulated", credit, like))
        if self._timeouts is not None:
            self._at(SCAN_EVERY_NS, TIMER, self._scan, self._timeouts)
        told = False
        while self.finish is None:
            at_ns, _, _, call, argument = heapq.heappop(self._heap)
            if self.stopped is not None and not told:
                told = True
                self._step(self._begin(at_ns), ev.StopRequested(self.stopped))
            call(at_ns, argument)
        self.core.close(self._stamp_ns, self._left)
        self._write()
        return self.finish

    def _write(self) -> None:
        """Write the rows of what is over."""
        self._writer.image_rows(self.table.take()[0])
        self._writer.task_rows(self.core.take_tasks())

    def stop(self, reason: str) -> None:
        """Admit no more images. A signal handler may call this at any moment."""
        self.stopped = reason

    def _at(self, at_ns: int, order: int, call: Any, argument: Any) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (at_ns, order, self._sequence, call, argument))

    # ---- rank 0 -------------------------------------------------------------

    def _step(self, now_ns: int, *events: ev.Event) -> None:
        """Tell the core, then what follows from its actions, in order."""
        self._waiting.append((now_ns, events))
        self._drain()

    def _drain(self) -> None:
        """Give the core the waiting events in order, and those that they cause."""
        while self._waiting:
            now_ns, events = self._waiting[0]
            if self.finish is None:
                self._stamp_ns = now_ns
                left, self._left = self._left, []
                for action in self.core.step(now_ns, (*left, *events)):
                    self._actions[type(action)](action)
                if self.table.done >= ROWS:
                    self._write()
                self._wake_later()
            self._waiting.popleft()

    def _wake_later(self) -> None:
        wake_ns = self.core.wake_ns
        if wake_ns is not None and (self._woken_ns is None or wake_ns < self._woken_ns):
            self._woken_ns = wake_ns
            self._at(wake_ns, TIMER, self._timer, None)

    def _begin(self, at_ns: int) -> int:
        """The time at which rank 0 begins with something that came at `at_ns`."""
        self._free_ns = max(self._free_ns, at_ns)
        return self._free_ns

    def _answer(self, at_ns: int, answer: tuple[int, Sequence[ev.Event], int]) -> None:
        """Take the answers of a message: one moment to the core, as in a real run."""
        rank, ends, tasks = answer
        now_ns = self._begin(at_ns)
        if self._timeouts is not None:
            self._timeouts.served(max(getattr(each, "compute_ns", 0) for each in ends))
            self._timeouts.heard(rank, now_ns, tasks)
        self._free_ns += tasks * self.job.costs.receive_ns
        self._step(now_ns, *ends)

    def _timer(self, at_ns: int, _: None) -> None:
        self._woken_ns = None
        self._step(self._begin(at_ns))

    def _scan(self, at_ns: int, timeouts: ReplyTimeouts) -> None:
        """Tell the core which ranks are silent, and which count as lost."""
        now_ns = self._begin(at_ns)
        for sign in timeouts.overdue(now_ns):
            if not sign.again:
                self._step(now_ns, ev.RankSilent(sign.rank, sign.why))
                continue
            if self.settings.on_rank_loss == "abort":
                continue  # as in a real run: its process is there, and it may still answer
            timeouts.lose(sign.rank, TIMEOUT, sign.why, now_ns)
            self._step(now_ns, ev.RankLost(sign.rank, sign.why))
        self._at(now_ns + SCAN_EVERY_NS, TIMER, self._scan, timeouts)

    def _admit(self, action: ev.Admit) -> None:
        # Closed loop: t0 is when rank 0 comes to it, as in a real run.
        self._arrivals.admit(max(self._stamp_ns, self._free_ns), action.images)
        self._let_in(self._stamp_ns)

    def _let_in(self, now_ns: int) -> None:
        """Images that are due arrive. If the next one has a time of arrival, wait for that time."""
        while count := min(self._arrivals.due(now_ns), self.job.images - self._next_image):
            t0_ns, _ = self._arrivals.enter(now_ns, count)
            numbers = np.arange(self._next_image, self._next_image + count)
            placed = np.zeros(count, PLACED)
            placed["row"] = placed["position"] = numbers
            if self._answers is not None:
                placed["has_label"], placed["label"] = True, self._answers.label(numbers)
            drawn = self._draw.some(placed) if self._draw.share else None
            self._next_image += count
            self._waiting.append((now_ns, (ev.Arrived(0, placed, t0_ns, drawn=drawn),)))
        if self._next_image == self.job.images and not self._closed:
            self._closed = True
            self._waiting.append((now_ns, (ev.InputClosed(),)))
        next_ns = self._arrivals.next_ns(now_ns)
        if next_ns is not None and next_ns != self._awaited_ns:
            self._awaited_ns = next_ns
            self._at(next_ns, RANK, self._arrival, None)

    def _arrival(self, at_ns: int, _: None) -> None:
        self._let_in(self._begin(at_ns))
        self._drain()

    def _send(self, send: ev.Send) -> None:
        tasks = send.tasks
        encode_ns = self.job.costs.encode_ns if KIND[send.kind].encoded else 0
        self._free_ns += self.job.costs.send_ns + len(tasks) * encode_ns
        if self._timeouts is not None:
            self._timeouts.sent(send.rank, self._free_ns, len(tasks))
        numbers = [task.id for task in tasks]
        self._left.append(ev.Left(numbers, self._free_ns, (encode_ns,) * len(tasks)))
        self._at(self._free_ns + self.job.costs.network_ns, RANK, self._arrives, tasks)

    def _cancel(self, action: ev.Cancel) -> None:
        self._free_ns += self.job.costs.send_ns
        self._at(self._free_ns + self.job.costs.network_ns, RANK, self._cancelled, action)

    def _finished(self, action: ev.Finish) -> None:
        self.finish = action

    # ---- the workers --------------------------------------------------------

    def _arrives(self, at_ns: int, tasks: Sequence[Task]) -> None:
        rank = self.ranks[tasks[0].rank]
        rank.queue.append(tasks)
        if not rank.busy:
            self._next_task(at_ns, rank)

    def _cancelled(self, at_ns: int, cancel: ev.Cancel) -> None:
        self.ranks[cancel.rank].cancelled.add(cancel.task)

    def _next_task(self, at_ns: int, rank: _Rank) -> None:
        """The rank is free: it skips cancelled messages and begins the next one."""
        rank.busy = self._dead(rank, at_ns)
        while rank.queue and not rank.busy:
            tasks = rank.queue.popleft()
            ends: list[ev.Event] = []
            wanted = tasks
            if rank.cancelled:
                ends += [ev.Skipped(t.id, rank.id) for t in tasks if t.id in rank.cancelled]
                wanted = [task for task in tasks if task.id not in rank.cancelled]
            if not wanted:
                self._reply(at_ns, rank, ends, tasks)
                continue
            rank.busy = True
            took_ns = self._service_ns(wanted, at_ns)
            cells = np.concatenate([self._said(task) for task in wanted])
            numbers, own = (
                [task.id for task in wanted],
                measured_bytes(Measured(compute_ns=took_ns)),
            )
            ends.append(ev.Answered(numbers, rank.id, cells, took_ns, own))
            self._at(at_ns + took_ns, RANK, self._done, (rank, ends, tasks, len(wanted)))

    def _said(self, task: Task) -> np.ndarray:
        """What the task's rank says of its images, (n,) of CELL, now and then wrongly."""
        cells, wrong = self._cells(task), self.ranks[task.rank].wrong
        if wrong and task.kind == SINGLE:
            cells = cells.copy()
            cells["label"] += self._errors.random(len(cells)) < wrong
        return cells

    def _cells(self, task: Task) -> np.ndarray:
        if self._answers is None:
            return ANY_CELL.repeat(len(task))
        return self._answers.cells(task.kind, task.positions)

    def _done(self, at_ns: int, done: tuple[_Rank, list[ev.Event], Sequence[Task], int]) -> None:
        rank, ends, tasks, answered = done
        if self._dead(rank, at_ns):
            return  # and it stays busy: it takes nothing more
        rank.answered += answered
        self._reply(at_ns, rank, ends, tasks)
        self._next_task(at_ns, rank)

    def _reply(self, at_ns: int, rank: _Rank, ends: list[ev.Event], tasks: Sequence[Task]) -> None:
        rank.cancelled.difference_update(task.id for task in tasks)
        answer = rank.id, ends, len(tasks)
        self._at(at_ns + self.job.costs.network_ns, ANSWER, self._answer, answer)

    def _dead(self, rank: _Rank, at_ns: int) -> bool:
        """Whether the rank has stopped answering."""
        death = self._deaths.get(rank.id)
        return death is not None and death.reached(at_ns, rank.answered)

    def _service_ns(self, tasks: Sequence[Task], at_ns: int) -> int:
        """The time that a rank takes for tasks of one kind that it runs as a batch."""
        rank, kind = tasks[0].rank, tasks[0].kind
        ratio = self._ratio if kind in SPARE_KINDS else 1.0
        inputs = len(tasks) if KIND[kind].encoded else sum(map(len, tasks))
        factor = ratio * batch_factor(inputs, self._batch_costs.get(kind, 1.0))
        if self.job.delays is None and not self.settings.injects:
            return round(self.job.costs.single_ns * factor * self._delays.slowed(rank))
        size, keys = self.settings.group_size, []
        for task in tasks:
            one = KIND[kind].encoded or KIND[kind].batched
            firsts = task.positions[:1] if one else task.positions
            keys += [(p // size, p, task.attempt) for p in firsts.tolist()]
        return service_ns(self._delays, rank, keys, at_ns, factor)


def make_timeouts(settings: RunSettings, ranks: Iterable[int]) -> ReplyTimeouts:
    """The reply timeouts of the ranks, from time 0."""
    patience_s = settings.reply_timeout_s
    return ReplyTimeouts(ranks, 0, None if patience_s is None else round(patience_s * 1e9))
