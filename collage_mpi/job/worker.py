"""A worker rank: receive, skip what is cancelled, predict, hold, reply.

Owns: the worker's loop and its session: load, warm up, measure, serve, end.
Does not know: whether it is a single or a collage rank, other ranks, how a network is built.

It reports durations only (C3): compute_ns in the network, held_ns injected on
top. A network that raises fails its task, not the job. The tasks of a message are one batch;
each reports the batch's durations, which are what its image waited for.
"""

from __future__ import annotations

import math
import os
import socket
import statistics
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import accumulate, islice
from typing import NamedTuple, Protocol

import numpy as np

from collage_mpi.encoding.decode import decode, summands
from collage_mpi.encoding.grid import Grid
from collage_mpi.encoding.stripe import AnyEncoder
from collage_mpi.encoding.vectors import EMBEDDINGS, Extras
from collage_mpi.errors import CollageError, EnvironmentFault
from collage_mpi.faults.tcp_link import Offer
from collage_mpi.job import messages
from collage_mpi.job.encoders import make_encoder
from collage_mpi.job.messages import Hello, Measured, Message, Rank0, Start, Welcome
from collage_mpi.job.row_reader import Inputs, RowReader, Wanted, decoded
from collage_mpi.kinds import KIND, SPARE_KINDS, TABLE
from collage_mpi.models.info import Predictor
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.answers import ANSWERED, FAILED, SKIPPED, WireResult, in_messages, pack_results
from collage_mpi.mpi.tasks import WireTask, unpack_cancel, unpack_files, unpack_places, unpack_tasks
from collage_mpi.scheduler import batch_factor
from collage_mpi.scheduler.events import Score, Unread
from collage_mpi.shards.guard import HASH_LIMIT_BYTES
from collage_mpi.shards.pictures import parse_fit
from collage_mpi.system.backoff import WORKER_BACKOFF, Backoff
from collage_mpi.system.hard_exit import remove_shared_memory
from collage_mpi.system.limits import limit_met
from collage_mpi.system.pidfd import ProcessId
from collage_mpi.workload.background_load import Burners
from collage_mpi.workload.service_times import DelayModel, service_ns
from collage_mpi.workload.straggler_settings import make_delays

NOT_FINITE = "the network's scores are not finite (NaN or infinite)"
# Of torch (out of memory; a GPU that fails, since torch 2.8), and Python's own.
DEVICE_ERRORS = ("OutOfMemoryError", "AcceleratorError", "MemoryError")
MEASURED_RUNS = 5  # a round: the networks take turns, and few calls keep the turns short
# A slow network, or a busy host, is measured for no longer: 5 calls of one that takes 8 s (417 px
# on a crowded core) are 40 s in which all other ranks wait.
MEASURED_NS, LEAST_MEASURED = 2_000_000_000, 2
RING_SPARE = 4  # receives beyond the credit, for cancels
FOR_EVER_NS = 1 << 62  # of the clock: a dead rank's hold


class Endpoint(Protocol):
    """What a worker needs of the transport."""

    rank: int

    def open_tasks(self, nbytes: int, slots: int) -> None: ...
    def close_tasks(self) -> None: ...
    def poll_control(self) -> np.ndarray | None: ...
    def poll_tasks(self) -> list[np.ndarray]: ...
    def buffer(self, nbytes: int) -> np.ndarray: ...
    def send(self, buffer: np.ndarray, nbytes: int) -> None: ...


Cells = tuple[Score | None, ...]  # a record an item
Faults = tuple[Unread | None, ...]  # likewise, where there is any
Outcome = tuple[Cells, np.ndarray | None]  # and the vectors, where the scheme needs them


class Batch(NamedTuple):
    """A message's tasks, and their inputs, which may be being read still."""

    tasks: list[WireTask]
    inputs: list[np.ndarray] | Future[Inputs]


# (network spec, kind, welcome) -> predictor
Loader = Callable[[str, str, Welcome], Predictor]


class CoordinatorMonitor(Protocol):
    """What watches rank 0."""

    def meet(self, host: str, process: ProcessId | None, offer: Offer | None) -> None: ...
    def release(self) -> None: ...


class Session:
    """What a worker knows between a welcome and the end of that session."""

    def __init__(self, number: int, welcome: Welcome) -> None:
        self.number = number
        encoded, image = welcome.encoded_shape, welcome.image_shape
        self._shapes = {kind.name: encoded if kind.encoded else image for kind in TABLE}
        self.summed = welcome.parity.summed if welcome.parity is not None else None
        self.extras = welcome.extras
        self.answer_bytes = welcome.answer_bytes
        self.predictors: dict[str, Predictor] = {}
        self.delays: DelayModel = make_delays(welcome.straggler, by_image=welcome.draws_by_image)
        self.burn = welcome.burn
        self.burners: Burners | None = None
        self.batch = welcome.batch
        # What "start" tells, which tasks wait for: kind -> over a single image; kind -> what a
        # further input of a batch takes over the first; since when.
        self.ratios: dict[str, float] | None = None
        self.batch_costs: dict[str, float] = {}
        self.start_ns = 0
        self.answered = 0  # tasks
        self.rows: RowReader | None = None  # for tasks by place
        self.encoder: AnyEncoder | None = None  # of theirs that are of a group
        self.fit = None if welcome.fit is None else parse_fit(welcome.fit)
        self.decoding = ThreadPoolExecutor(1, "decode")  # made at its first use
        self.queue: deque[Batch] = deque()
        self.open: set[int] = set()  # tasks queued or in work
        self.cancelled: set[int] = set()  # of these

    def input_shape(self, kind: str) -> tuple[int, ...]:
        """Shape of one input of the kind's network."""
        return self._shapes[kind]

    def start(self, told: Start, now_ns: int) -> None:
        """Tasks may come: the delay model's time begins."""
        self.ratios = dict.fromkeys(SPARE_KINDS, told.cost_ratio)
        self.batch_costs = told.batch_costs
        self.start_ns = now_ns
        if self.burn is not None:
            self.burners = Burners(self.burn)

    def end(self) -> None:
        """Nothing burns any more, no file is open."""
        self.decoding.shutdown(cancel_futures=True)
        if self.rows is not None:
            self.rows.close()
            self.rows = None
        if self.burners is not None:
            self.burners.end()
            self.burners = None


class Worker:
    """Serves rank 0 until it is told to stop."""

    def __init__(
        self,
        endpoint: Endpoint,
        load: Loader,
        *,
        monitor: CoordinatorMonitor,
        stays: bool = False,
        clock: Callable[[], int] = time.monotonic_ns,
        cpu_clock: Callable[[], int] = time.process_time_ns,
        backoff: Backoff | None = None,
    ) -> None:
        """`monitor` is told who rank 0 is, and when it may go; `stays`: see `messages.Leave`."""
        self.endpoint = endpoint
        self.load = load
        self.clock, self.cpu_clock = clock, cpu_clock
        self.backoff = backoff or Backoff(WORKER_BACKOFF)
        self.session: Session | None = None
        self.exit_code: int | None = None
        self._monitor, self._stays = monitor, stays
        self._told_code: int | None = None
        self._next_control: np.ndarray | None = None  # seen during a hold
        self._told_shards: list[str] = []  # for the welcome that follows

    def serve(self) -> int:
        """Work until rank 0 lets it go; the exit code it gave."""
        while self.exit_code is None:
            if self.step():
                self.backoff.reset()
            else:
                self.backoff.pause()
        return self.exit_code

    def step(self) -> bool:
        """One turn: take what has come, do one piece of work; whether there was any."""
        if self._control_waits():
            message, self._next_control = self._next_control, None
            assert message is not None
            self._control(message)
            return True
        self._take_tasks()
        session = self.session
        if session is not None and session.queue and session.ratios is not None:
            self._work(session, session.queue.popleft())
            return True
        return False

    def _control_waits(self) -> bool:
        if self._next_control is None:
            self._next_control = self.endpoint.poll_control()
        return self._next_control is not None

    # ---- control ------------------------------------------------------------

    def _control(self, message: np.ndarray) -> None:
        number, told = wire.read_header(message).session, messages.unpack(message, 0)
        if isinstance(told, Rank0):
            self._monitor.meet(told.host, told.process, told.tcp_link)
            self._tell(messages.Here())
        elif isinstance(told, messages.Shards):
            self._told_shards += told.descriptions
        elif isinstance(told, Welcome):
            self._welcome(number, told)
        elif isinstance(told, messages.Measure) and self.session is not None:
            self._tell(self._measured(self.session, told.kind, told.batch))
        elif isinstance(told, Start) and self.session is not None:
            remove_shared_memory()  # see there: on this host all ranks have it mapped
            self.session.start(told, self.clock())
        elif isinstance(told, messages.End):
            self.endpoint.close_tasks()
            self._end_session()
        elif isinstance(told, messages.Stop):
            self._monitor.release()
            self._tell(messages.Bye(), number)
            self._end_session()
            self._told_code = told.exit_code
            if not self._stays:
                self.exit_code = told.exit_code
        elif isinstance(told, messages.Leave):
            self.exit_code = self._told_code

    def _end_session(self) -> None:
        if self.session is not None:
            self.session.end()
        self.session = None

    def _welcome(self, number: int, welcome: Welcome) -> None:
        """Load and warm up; say hello, or what is wrong. Rank 0 tells the user."""
        descriptions, self._told_shards = self._told_shards, []
        try:
            session = Session(number, welcome)
            cannot_read = ""
            if descriptions:
                session.rows, cannot_read = _reader(descriptions, welcome)
                grid = Grid(welcome.side, welcome.cell_px)
                session.encoder = make_encoder(
                    grid, welcome.image_shape, welcome.parity, welcome.ranks
                )
            for kind, spec in welcome.networks.items():
                session.predictors[kind] = self.load(spec, kind, welcome)
            for kind in session.predictors:
                for _ in range(welcome.warmup_tasks):
                    self._service_ns(session, kind, 1)
            single_ns = {k: self._service_ns(session, k, 3) for k in session.predictors}
            batch_ns = [self._try_batches(session, k) for k in session.predictors]
        except CollageError as error:
            self._cannot(limit_met(error) or error, number)
            return
        except Exception as error:
            fault = limit_met(error)
            if fault is None and not _is_of_device(error):
                raise
            what = f"its device cannot run the networks: {type(error).__name__}: {error}"
            self._cannot(fault or EnvironmentFault(what), number)
            return
        self.session = session
        self.endpoint.open_tasks(welcome.task_bytes, welcome.credit + RING_SPARE)
        hello = Hello(
            host=socket.gethostname(),
            pid=os.getpid(),
            kinds=tuple(sorted(session.predictors)),
            devices=tuple(sorted({p.device for p in session.predictors.values()})),
            tuning={k: p.tuning for k, p in session.predictors.items()},
            fingerprints={k: p.fingerprint for k, p in session.predictors.items()},
            service_ns=single_ns,
            longest_ns=max([*batch_ns, *single_ns.values()], default=0),
            classes={k: p.classes for k, p in session.predictors.items()},
            embedding=next((p.embedding for p in session.predictors.values()), None),
            cannot_read=cannot_read,
        )
        self._tell(hello, number)

    def _cannot(self, error: CollageError, number: int) -> None:
        """Say what keeps this rank from working; rank 0 decides what follows."""
        self.session = None
        self._tell(messages.Fault(str(error)[:2000], int(error.exit_code)), number)

    def _service_ns(self, session: Session, kind: str, runs: int, batch: int = 1) -> int:
        """Median time of the kind's network for so many inputs."""
        times = self._times_ns(session, kind, runs, batch)
        return int(statistics.median(wall for wall, _ in times))

    def _measured(self, session: Session, kind: str, batch: int) -> Measured:
        """What rank 0 asks for before the tasks come, the other ranks waiting."""
        times = self._times_ns(session, kind, MEASURED_RUNS, batch)
        on_cpu = session.predictors[kind].device == "cpu"
        cpu_ns = int(statistics.median(cpu for _, cpu in times)) if on_cpu else None
        return Measured(min(wall for wall, _ in times), cpu_ns)

    def _times_ns(
        self, session: Session, kind: str, runs: int, batch: int
    ) -> list[tuple[int, int]]:
        """Of each call the time on the clock, and the processor time of this process."""
        inputs = np.zeros((batch, *session.input_shape(kind)), np.uint8)  # (n, H, W, C) uint8
        times: list[tuple[int, int]] = []
        until_ns = self.clock() + MEASURED_NS
        while len(times) < runs and (self.clock() < until_ns or len(times) < LEAST_MEASURED):
            start_ns, cpu_ns = self.clock(), self.cpu_clock()
            session.predictors[kind].predict(inputs)
            cpu_ns = self.cpu_clock() - cpu_ns
            times.append((self.clock() - start_ns, cpu_ns))
        return times

    def _try_batches(self, session: Session, kind: str) -> int:
        """Run batches of 2, 4, 8 ... up to the largest, which warms them up; ns of the last.

        Raises:
            EnvironmentFault: one does not fit the device, where smaller ones did.
        """
        took_ns, fits = 0, 1
        while fits < session.batch:
            size = min(2 * fits, session.batch)
            try:
                took_ns = self._service_ns(session, kind, 1, size)
            except Exception as error:
                if not _is_of_device(error):
                    raise
                advice = "" if KIND[kind].batched else f": --batch {fits}"
                raise EnvironmentFault(
                    f"its device cannot run the {kind} network with a batch of {size} "
                    f"({type(error).__name__}: {error}); {fits} fit{advice}"
                ) from error
            fits = size
        return took_ns

    def _tell(self, message: Message, session: int | None = None) -> None:
        number = session if session is not None else self.session.number if self.session else 0
        buffer = self.endpoint.buffer(wire.UP_BYTES)
        self.endpoint.send(buffer, messages.pack(buffer, number, message))

    # ---- tasks --------------------------------------------------------------

    def _take_tasks(self) -> None:
        """Queue what has come and note what is cancelled; stale sessions are dropped."""
        for message in self.endpoint.poll_tasks():
            header = wire.read_header(message)
            session = self.session
            if session is None or header.session != session.number:
                continue
            if header.type == wire.CANCEL:
                # Behind its task on the same channel: one that is not open has ended.
                session.cancelled.update(session.open.intersection(unpack_cancel(message)))
            else:
                tasks, pixels = unpack_tasks(message)
                session.open.update(task.task for task in tasks)
                session.queue.append(self._batch(session, tasks, pixels))

    def _batch(self, session: Session, tasks: list[WireTask], pixels: np.ndarray) -> Batch:
        """What has come in a message; if by place, as all of it is then, reading it begins."""
        if not tasks[0].by_place:
            parts = self._inputs(session, tasks, pixels)
            arrays = [part for part in parts if not isinstance(part, list)]
            if len(arrays) == len(parts):
                return Batch(tasks, arrays)
            assert session.fit is not None
            return Batch(tasks, session.decoding.submit(decoded, parts, session.fit))
        if session.rows is None:
            raise wire.WireFault(f"task {tasks[0].task} is by place, and no shards were told")
        named, wanted = iter(unpack_places(pixels)), []
        for task in tasks:
            places = list(islice(named, len(task.items)))
            if len(places) < len(task.items):
                raise wire.WireFault(f"task {task.task} has fewer places than items")
            wanted.append(Wanted(places, [cell for _, cell in task.items]))
        encoder = session.encoder if KIND[tasks[0].kind].encoded else None
        return Batch(tasks, session.rows.begin(wanted, encoder))

    def _work(self, session: Session, batch: Batch) -> None:
        """One message's tasks, those cancelled left out, as one batch of one kind."""
        self._take_tasks()  # a cancel may be right behind
        if self._dead(session):
            self._hold(FOR_EVER_NS)
            return
        tasks = batch.tasks
        skipped = [task for task in tasks if task.task in session.cancelled]
        wanted = [i for i, task in enumerate(tasks) if task.task not in session.cancelled]
        results = [WireResult(task.task, SKIPPED) for task in skipped]
        if wanted:
            inputs, faults, read_ns = self._await(batch)
            usable = [i for i in wanted if _usable(faults[i])]
            if usable:
                chosen, own = [tasks[i] for i in usable], [inputs[i] for i in usable]
                results += self._classify(session, chosen, own, [faults[i] for i in usable])
            results += [
                _failed(tasks[i], _first(faults[i]), faults[i]) for i in wanted if i not in usable
            ]
            for result in results:
                result.read_ns = read_ns
            if self._dead(session):
                self._hold(FOR_EVER_NS)
                return
            session.answered += len(wanted)
        elif isinstance(batch.inputs, Future):
            batch.inputs.cancel()  # if it has not begun
        ended = [task.task for task in tasks]
        session.open.difference_update(ended)
        session.cancelled.difference_update(ended)
        for part in in_messages(results, session.answer_bytes):
            buffer = self.endpoint.buffer(session.answer_bytes)
            self.endpoint.send(buffer, pack_results(buffer, session.number, part))

    def _inputs(
        self, session: Session, tasks: list[WireTask], pixels: np.ndarray
    ) -> list[np.ndarray | list[bytes]]:
        """Each task's inputs, (n, H, W, C) uint8 views: one an image, or one a collage; or the
        files of its images."""
        inputs: list[np.ndarray | list[bytes]] = []
        at = 0
        for task in tasks:
            if task.as_files:
                if session.fit is None:
                    raise wire.WireFault(f"task {task.task} has files, and no fit was told")
                files, nbytes = unpack_files(pixels[at:], len(task.items))
                inputs.append(files)
                at += nbytes
                continue
            count = 1 if KIND[task.kind].encoded else len(task.items)
            shape = session.input_shape(task.kind)
            end = at + count * math.prod(shape)
            if end > pixels.nbytes:
                raise wire.WireFault(f"task {task.task} has fewer pixels than its items need")
            inputs.append(pixels[at:end].reshape(count, *shape))
            at = end
        return inputs

    def _await(self, batch: Batch) -> tuple[list[np.ndarray], list[Faults], int]:
        """Each task's inputs, its images that could not be read, and the ns that were waited."""
        if not isinstance(batch.inputs, Future):
            return batch.inputs, [()] * len(batch.tasks), 0
        start_ns = self.clock()
        inputs, found = batch.inputs.result()
        read_ns = self.clock() - start_ns
        return inputs, [tuple(own) if any(own) else () for own in found], read_ns

    def _classify(
        self,
        session: Session,
        tasks: list[WireTask],
        inputs: list[np.ndarray],
        faults: list[Faults],
    ) -> list[WireResult]:
        """Predict, decode, hold: the batch's durations are those of each task.

        Where a network that raises has failed all of them nobody waits for a hold.
        """
        start_ns = self.clock()
        outcomes = self._outcomes(session, tasks, inputs)
        compute_ns = self.clock() - start_ns
        held_ns = drawn_ns = 0
        if any(not isinstance(outcome, str) for outcome in outcomes):
            count = sum(map(len, inputs))
            drawn_ns = self._drawn_ns(session, tasks, count, start_ns - session.start_ns)
            if drawn_ns > compute_ns:
                self._hold(start_ns + drawn_ns)
                held_ns = max(0, self.clock() - start_ns - compute_ns)
        return [
            _failed(task, outcome)
            if isinstance(outcome, str)
            else _answered(task, outcome, (compute_ns, held_ns, drawn_ns), unread)
            for task, outcome, unread in zip(tasks, outcomes, faults, strict=True)
        ]

    def _outcomes(
        self, session: Session, tasks: list[WireTask], inputs: list[np.ndarray]
    ) -> list[Outcome | str]:
        """Each task's records, or why it failed; an exception fails a task, not the job.

        A batch that raises is done again one by one, so that one bad input, or a batch that
        does not fit the device's memory now, fails none of the others. Scores that are not
        finite fail a task too when none of its items has others: a GPU that has begun to
        compute nonsense is found out by its failures in a row.
        """
        try:
            batch = inputs[0] if len(inputs) == 1 else np.concatenate(inputs)  # (n, H, W, C)
            predictor = session.predictors[tasks[0].kind]
            embeddings = None
            if session.extras.save == EMBEDDINGS:
                scores, embeddings = predictor.embed(batch)
            else:
                scores = predictor.predict(batch)  # (n, cells, classes)
            outcomes: list[Outcome | str] = []
            for task, part, end in zip(tasks, inputs, accumulate(map(len, inputs)), strict=True):
                own = slice(end - len(part), end)
                outcome = _outcome_of(task, scores[own], session.summed)
                if session.extras and not isinstance(outcome, str):
                    given = None if embeddings is None else embeddings[own]
                    outcome = _with_extras(session.extras, task, outcome, scores[own], given)
                outcomes.append(outcome)
            return outcomes
        except Exception as error:
            if len(tasks) == 1:
                return [f"{type(error).__name__}: {error}"]
        return [
            self._outcomes(session, [task], [own])[0]
            for task, own in zip(tasks, inputs, strict=True)
        ]

    def _drawn_ns(self, session: Session, tasks: list[WireTask], inputs: int, at_ns: int) -> int:
        assert session.ratios is not None
        kind = tasks[0].kind
        batch = batch_factor(inputs, session.batch_costs.get(kind, 1.0))
        keys = [(task.group, task.items[0][0], task.attempt) for task in tasks]
        factor = session.ratios.get(kind, 1.0) * batch
        return service_ns(session.delays, self.endpoint.rank, keys, at_ns, factor)

    def _dead(self, session: Session) -> bool:
        """Whether the delay model lets this rank answer nothing any more."""
        at_ns = self.clock() - session.start_ns
        return session.delays.dead(self.endpoint.rank, at_ns, session.answered)

    def _hold(self, until_ns: int) -> None:
        """Keep the answer back, testing MPI meanwhile so that messages go on flowing.

        A control message ends the hold: the session is over, nobody waits for the answer.
        """
        self.backoff.reset()
        while (left_ns := until_ns - self.clock()) > 0 and not self._control_waits():
            self._take_tasks()
            self.backoff.pause(left_ns)
        self.backoff.reset()


def _reader(descriptions: list[str], welcome: Welcome) -> tuple[RowReader | None, str]:
    """What reads the shards, or why this host cannot. Raises EnvironmentFault if it must."""
    if not welcome.must_read:
        try:
            return RowReader(descriptions, HASH_LIMIT_BYTES), ""
        except EnvironmentFault as fault:
            return None, str(fault)[:1000]
    try:
        return RowReader(descriptions), ""
    except EnvironmentFault as fault:
        raise EnvironmentFault(
            f"{fault}. With --pixels workers each host reads the shards itself: put them on a file "
            "system that all hosts share, or say --pixels auto"
        ) from fault


def _usable(faults: Faults) -> bool:
    """Whether there is something to compute on: one of its images, where others are blank."""
    return not (faults and all(faults))


def _first(faults: Faults) -> str:
    return next((why.reason for why in faults if why is not None), "")


def _answered(
    task: WireTask, outcome: Outcome, took_ns: tuple[int, int, int], unread: Faults
) -> WireResult:
    cells, vectors = outcome
    result = WireResult(task.task, ANSWERED, *took_ns, cells=cells, vectors=vectors)
    result.unread, result.reason = unread, _first(unread)
    return result


def _failed(task: WireTask, reason: str, unread: Faults = ()) -> WireResult:
    return WireResult(task.task, FAILED, reason=reason, unread=unread)


def _is_of_device(error: Exception) -> bool:
    """Whether a device or its memory is at fault; by name, since torch is not known here."""
    return any(base.__name__ in DEVICE_ERRORS for base in type(error).__mro__)


def _outcome_of(task: WireTask, scores: np.ndarray, summed: str | None) -> Outcome | str:
    """The records of a task's items, or why it failed: no row of the scores is finite.

    What resolves no image by itself, a parity network's sums, travels as it is; a coded image's
    scores as a single's.

    Args:
        scores: (n, 1, classes) for a single task, or a batch, a row an item; (1, cells, classes)
            for a collage, a row a cell; (1, 1, classes) for a stripe.
        summed: what of a single's scores its answer carries for others; None for nothing.
    """
    kind = KIND[task.kind]
    if not kind.resolves:
        finite = bool(np.isfinite(scores).all())
        said = scores[:, 0]  # (1, classes)
        if kind.runs is not None and summed is not None:
            said = summands(said, summed)
        return ((None,) * len(task.items), said) if finite else NOT_FINITE
    flat = scores.reshape(-1, scores.shape[-1])  # (n or cells, classes)
    records = [None if found is None else Score(*found) for found in decode(flat)]
    if not any(records) and not np.isfinite(flat).all(axis=1).any():
        return NOT_FINITE
    places = [c for _, c in task.items] if kind.encoded else range(len(task.items))
    vectors = None if summed is None else summands(scores[:, 0], summed)
    return tuple([records[place] for place in places]), vectors


def _with_extras(
    extras: Extras,
    task: WireTask,
    outcome: Outcome,
    scores: np.ndarray,
    embeddings: np.ndarray | None,
) -> Outcome:
    """With a vector an item, behind what the scheme's own vectors say.

    Args:
        scores: of the task, as `_outcome_of` has them.
        embeddings: (n, d) float32 of its items, where they are kept.
    """
    kind, (cells, vectors) = KIND[task.kind], outcome
    if not kind.resolves:
        return outcome
    flat = scores.reshape(-1, scores.shape[-1])  # (n or cells, classes)
    asked = flat[[cell for _, cell in task.items]] if kind.encoded else flat  # (items, classes)
    kept = extras.pack(asked, embeddings)
    return cells, kept if vectors is None else np.concatenate([vectors, kept], axis=1)
