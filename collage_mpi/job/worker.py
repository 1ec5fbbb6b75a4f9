"""A worker rank over MPI: receives tasks, reads their images, runs the network, replies.

`worker_steps` decides, and this module carries it out. A worker reports only durations (C3). The
tasks of a message are one batch. Each task reports the batch's duration, because its images waited
for the whole batch. While a GPU computes a batch, the next one is begun if it has come; its time
counts from the end of the batch before it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np

from collage_mpi.errors import CollageError, EnvironmentFault
from collage_mpi.faults.tcp_link import Offer
from collage_mpi.job import messages
from collage_mpi.job import worker_steps as steps
from collage_mpi.job.messages import Bye, Changed, Fault, Hello, Here, Measured, Message, Welcome
from collage_mpi.job.networks import Loader, Networks, failed, free_networks, is_of_device
from collage_mpi.job.row_reader import Faults, Inputs, RowReader, Wanted, decoded
from collage_mpi.job.worker_steps import Event, WorkerSteps
from collage_mpi.kinds import KIND
from collage_mpi.models.info import Computation
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.answers import ANSWERED, SKIPPED, WireResult, in_messages, pack_results
from collage_mpi.mpi.tasks import WireTask, unpack_cancel, unpack_files, unpack_places, unpack_tasks
from collage_mpi.mpi.transport import RankFailure
from collage_mpi.shards.pictures import import_decoders, parse_fit
from collage_mpi.shards.schema import HASH_LIMIT_BYTES
from collage_mpi.shards.source import ReadMeter
from collage_mpi.system.backoff import WORKER_BACKOFF, Backoff
from collage_mpi.system.bottleneck import Use
from collage_mpi.system.hard_exit import remove_shared_memory
from collage_mpi.system.limits import limit_met
from collage_mpi.system.process_tree import ProcessId

RING_SPARE = 4  # receives beyond the credit, for cancels
OVER_NS = 100_000_000  # longest pause between polls of a rank that was let go
LOOK_NS = 50_000  # between polls of a device that computes


class Endpoint(Protocol):
    """A worker's transport.

    Attributes:
        fault_tolerant: whether the other ranks go on if one ends; see `messages.Leave`.
    """

    rank: int
    fault_tolerant: bool

    def open_tasks(self, nbytes: int, slots: int) -> None: ...
    def close_tasks(self) -> None: ...
    def poll_control(self) -> np.ndarray | None: ...
    def poll_tasks(self) -> list[np.ndarray]: ...
    def buffer(self, nbytes: int) -> np.ndarray: ...
    def send(self, buffer: np.ndarray, nbytes: int) -> None: ...


class Rank0Watch(Protocol):
    """Monitors the coordinator's process."""

    def meet(self, host: str, process: ProcessId | None, offer: Offer | None) -> None: ...
    def release(self) -> None: ...


@dataclass(eq=False)
class Batch:
    """A message of tasks on its way through a worker.

    Attributes:
        tasks: of the message.
        payload: the bytes behind them.
        inputs: of the tasks; may still be read or decoded.
        wanted: indices of tasks that were not cancelled.
        usable: of `wanted`, indices of tasks with at least one readable image.
        results: answers to the usable tasks, which a device may be computing.
        read_ns: how long the network waited for the inputs.
        start_ns: when the network was called.
    """

    tasks: list[WireTask]
    payload: np.ndarray
    inputs: Inputs | Future[Inputs] | None = None
    wanted: Collection[int] = ()
    usable: list[int] = field(default_factory=list)
    results: Computation[list[WireResult]] = field(default_factory=lambda: Computation(list))
    read_ns: int = 0
    start_ns: int = 0


class Session:
    """What a worker holds between a welcome and the end of the session.

    Args:
        welcome: of the session.
        descriptions: of the shards, if this rank is to read them.
        load: loads a network.
        clock: monotonic, in ns.
        cpu_clock: processor time of this process, in ns.

    Raises:
        CollageError: this rank cannot work, and why.
    """

    def __init__(
        self,
        welcome: Welcome,
        descriptions: list[str],
        load: Loader,
        clock: Callable[[], int],
        cpu_clock: Callable[[], int],
    ) -> None:
        self.welcome, self._clock = welcome, clock
        self.rows: RowReader | None = None  # for tasks by place
        self.cannot_read = ""  # why this host cannot open the shards
        self.answer_bytes = 0  # told at the start
        self._start_ns = self._ended_ns = 0  # of the work; of the last batch
        self._starved_ns = self._computing_ns = 0  # see `bottleneck.Use`
        self._files = ReadMeter()  # of pictures that came as files
        self._decoding = ThreadPoolExecutor(1, "decode")  # its thread starts at the first use
        if descriptions:
            self._open_rows(descriptions)
        self._fit = None if welcome.fit is None else parse_fit(welcome.fit)
        if self._fit is not None:
            import_decoders()  # now, not while the first images wait
        self.networks = Networks(welcome, load, clock, cpu_clock)

    def _open_rows(self, descriptions: list[str]) -> None:
        welcome = self.welcome
        try:
            limit_bytes = None if welcome.must_read else HASH_LIMIT_BYTES
            self.rows = RowReader(descriptions, limit_bytes)
        except EnvironmentFault as fault:
            if welcome.must_read:
                raise EnvironmentFault(
                    f"{fault}. With --pixels workers each host reads the shards itself: put them "
                    "on a file system that all hosts share, or use --pixels auto"
                ) from fault
            self.cannot_read = str(fault)[:1000]

    def start(self, answer_bytes: int) -> None:
        """Tasks may come: time counts from now. `answer_bytes`: see `Start`."""
        self.answer_bytes, self._start_ns = answer_bytes, self._clock()

    def end(self) -> None:
        """Close the files."""
        self._decoding.shutdown(cancel_futures=True)
        if self.rows is not None:
            self.rows.close()

    def use(self) -> Use:
        """What this rank has done with its time."""
        rows = self.rows.meter if self.rows is not None else ReadMeter()
        return Use(
            self._clock() - self._start_ns,
            rows.reading_ns,
            rows.decoding_ns + self._files.decoding_ns,
            self._starved_ns,
            self._computing_ns,
            1 if self.rows is None else self.rows.decoders,
        )

    # ---- a batch ------------------------------------------------------------

    def read(self, batch: Batch) -> Future[Inputs]:
        """Begin to read or decode the images of a batch."""
        if batch.tasks[0].by_place:  # all tasks of a message are alike
            return self._read_rows(batch)
        parts = self._carried(batch)
        if self._fit is None:
            raise wire.WireFault(
                f"task {batch.tasks[0].task} has files, but the welcome has no fit"
            )
        return self._decoding.submit(decoded, parts, self._fit, self._files)

    def begin(self, batch: Batch, skipped: Collection[int]) -> None:
        """Begin to compute a batch without the skipped tasks, after waiting for its inputs."""
        start_ns = self._clock()
        found = batch.inputs
        if isinstance(found, Future):
            found = found.result()
            batch.read_ns = self._clock() - start_ns
            self._starved_ns += batch.read_ns
        elif found is None:
            none: Faults = ()
            arrays = [each for each in self._carried(batch) if not isinstance(each, list)]
            found = Inputs(arrays, [none] * len(arrays))
        batch.inputs = found
        batch.wanted = [i for i, task in enumerate(batch.tasks) if task.task not in skipped]
        # A picture with some blank cells can be classified; one without any image cannot.
        faults = found.faults
        batch.usable = [i for i in batch.wanted if not (faults[i] and all(faults[i]))]
        if batch.usable:
            batch.start_ns = self._clock()
            batch.results = self.networks.begin(
                [batch.tasks[i] for i in batch.usable], [found.arrays[i] for i in batch.usable]
            )

    def results(self, batch: Batch, skipped: Collection[int]) -> list[WireResult]:
        """How the tasks of a batch have ended; waits for the network."""
        results = [WireResult(task, SKIPPED) for task in skipped]
        if isinstance(batch.inputs, Future):
            batch.inputs.cancel()  # no task was wanted: not read if the reading has not begun
        elif batch.inputs is not None:
            results += self._answers(batch, batch.inputs)
        return results

    def _answers(self, batch: Batch, inputs: Inputs) -> list[WireResult]:
        answers = dict(zip(batch.usable, self._classified(batch), strict=True))
        for i in batch.wanted:
            faults = inputs.faults[i]
            result = answers.get(i) or failed(batch.tasks[i], "")
            if faults and (i not in answers or result.status == ANSWERED):
                result.unread = faults
                result.reason = next(why.reason for why in faults if why is not None)
            result.read_ns = batch.read_ns
            answers[i] = result
        return list(answers.values())

    def _classified(self, batch: Batch) -> list[WireResult]:
        results = batch.results.finish()
        # The device computes one batch after another, so this one starts when the last has ended.
        start_ns, self._ended_ns = max(batch.start_ns, self._ended_ns), self._clock()
        compute_ns = self._ended_ns - start_ns
        self._computing_ns += compute_ns
        for result in results:
            if result.status == ANSWERED:
                result.compute_ns = compute_ns
        return results

    def _read_rows(self, batch: Batch) -> Future[Inputs]:
        if self.rows is None:
            number = batch.tasks[0].task
            raise wire.WireFault(f"task {number} names places, but no shards were sent before")
        named, wanted = iter(unpack_places(batch.payload)), []
        for task in batch.tasks:
            places = list(islice(named, len(task.items)))
            if len(places) < len(task.items):
                raise wire.WireFault(f"task {task.task} has fewer places than items")
            wanted.append(Wanted(places, [cell for _, cell in task.items]))
        encoder = self.networks.encoder if KIND[batch.tasks[0].kind].encoded else None
        return self.rows.begin(wanted, encoder)

    def _carried(self, batch: Batch) -> list[np.ndarray | list[bytes | np.ndarray]]:
        """What the tasks carry: for each task files, or a view, one input per image or per collage.

        A view is (n, H, W, C) uint8, or (n, ...) for other items.
        """
        parts: list[np.ndarray | list[bytes | np.ndarray]] = []
        at, payload = 0, batch.payload
        for task in batch.tasks:
            if task.as_files:
                files, nbytes = unpack_files(payload[at:], len(task.items))
                parts.append(files)
                at += nbytes
                continue
            count = 1 if KIND[task.kind].encoded else len(task.items)
            shape = self.networks.input_shapes[task.kind]
            dtype = self.networks.input_dtypes[task.kind]
            end = at + count * math.prod(shape) * dtype.itemsize
            if end > payload.nbytes:
                raise wire.WireFault(f"task {task.task} has fewer pixels than its items need")
            parts.append(payload[at:end].view(dtype).reshape(count, *shape))
            at = end
        return parts


class Worker:
    """Works for a coordinator until it is told to stop.

    Args:
        endpoint: the transport.
        load: loads a network.
        monitor: monitors the coordinator's process.
        clock: monotonic, in ns.
        cpu_clock: processor time of this process, in ns.
        backoff: how to wait while nothing happens.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        load: Loader,
        *,
        monitor: Rank0Watch,
        clock: Callable[[], int] = time.monotonic_ns,
        cpu_clock: Callable[[], int] = time.process_time_ns,
        backoff: Backoff | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.clock = clock
        self.backoff = backoff or Backoff(WORKER_BACKOFF)
        self.steps = WorkerSteps(leaves_alone=endpoint.fault_tolerant)
        self.session: Session | None = None
        self._load, self._cpu_clock, self._monitor = load, cpu_clock, monitor
        self._number = 0  # of the session, as the last control message says
        self._told_shards: list[str] = []  # for the welcome
        self._acts: dict[type, Callable[[Any], Iterable[Event] | None]] = {
            messages.Rank0: lambda told: monitor.meet(told.host, told.process, told.tcp_link),
            messages.Shards: lambda told: self._told_shards.extend(told.descriptions),
            messages.Welcome: self._welcome,
            messages.Measure: self._measure,
            messages.Start: self._start,
            messages.End: self._end,
            messages.Release: self._release,
            messages.Stop: lambda told: monitor.release(),
            **dict.fromkeys((Here, Hello, Fault, Measured, Changed, Bye), self._send),
            steps.Read: self._read,
            steps.Begin: self._begin,
            steps.Answer: self._answer,
        }

    def serve(self) -> int | None:
        """Work until the coordinator ends it.

        Returns:
            The exit code that the coordinator gave; None if it was lost before.
        """
        while self.steps.state != steps.ENDED:
            if self.step():
                self.backoff.reset()
            else:
                self.backoff.pause()
        return self.steps.exit_code

    def step(self) -> bool:
        """Take the messages that have come, and do one piece of work; False if there was none."""
        if self._advance(self._come()):
            return True
        if not self.steps.begun:
            return False
        first = self.steps.begun[0].name
        if first.results.done():
            return self._advance([steps.Computed(first)])
        self.backoff.rest(LOOK_NS)
        return True

    def _advance(self, events: Iterable[Event]) -> bool:
        """Carry out what follows from the events, and from what that yields; False if nothing."""
        actions = self.steps.step(self.clock(), events)
        happened = bool(actions)
        while actions:
            events = [
                event for action in actions for event in self._acts[type(action)](action) or ()
            ]
            actions = self.steps.step(self.clock(), events) if events else []
        return happened

    def _come(self) -> list[Event]:
        """What has come: one control message; or tasks and cancels, and images that were read."""
        try:
            control = self.endpoint.poll_control()
            if control is not None:
                self._number = wire.read_header(control).session
                return [messages.unpack(control, 0)]
            found = [(wire.read_header(each), each) for each in self.endpoint.poll_tasks()]
        except RankFailure:
            return [steps.Rank0Gone()]
        events = [_event_of(*each) for each in found if each[0].session == self._number]
        if self.steps.queue:
            first = self.steps.queue[0].name
            if isinstance(first.inputs, Future) and first.inputs.done():
                events.append(steps.InputsRead(first))
        return events

    # ---- actions ------------------------------------------------------------

    def _send(self, message: Message) -> None:
        buffer = self.endpoint.buffer(wire.UP_BYTES)
        self.endpoint.send(buffer, messages.pack(buffer, self._number, message))

    def _welcome(self, welcome: Welcome) -> list[Event]:
        """Load the networks and warm them up, or find out why this rank cannot work."""
        self.endpoint.close_tasks()  # of the session before: the next tasks may be larger
        told, self._told_shards = self._told_shards, []
        try:
            self.session = Session(welcome, told, self._load, self.clock, self._cpu_clock)
            return [self.session.networks.hello(self.session.cannot_read)]
        except Exception as error:
            fault = limit_met(error) or error
            if is_of_device(error) and fault is error:
                what = f"its device cannot run the networks: {type(error).__name__}: {error}"
                fault = EnvironmentFault(what)
            if not isinstance(fault, CollageError):
                raise
            return [Fault(str(fault)[:2000], int(fault.exit_code))]

    def _measure(self, told: messages.Measure) -> list[Event]:
        assert self.session is not None
        return [self.session.networks.measured(told.kind, told.batch)]

    def _start(self, told: messages.Start) -> None:
        assert self.session is not None
        remove_shared_memory()  # by now all ranks of this host have mapped it
        self.endpoint.open_tasks(told.task_bytes, self.session.welcome.credit + RING_SPARE)
        self.session.start(told.answer_bytes)
        self.session.networks.await_runtimes(told.runtimes, told.steady)

    def _end(self, told: messages.End | messages.Release) -> None:
        if self.session is not None:
            self.session.end()
            self.session = None

    def _release(self, told: messages.Release) -> None:
        self._end(told)
        del self._load  # it holds the networks
        free_networks()
        self.backoff.settings = replace(self.backoff.settings, patient_ns=OVER_NS)

    def _read(self, action: steps.Read) -> None:
        assert self.session is not None
        action.batch.inputs = self.session.read(action.batch)

    def _begin(self, action: steps.Begin) -> list[Event]:
        assert self.session is not None
        first = self.steps.begun[0].name
        events: list[Event] = []
        if first is action.batch:  # the network computes nothing else
            events += self.session.networks.changes()
        self.session.begin(action.batch, action.skipped)
        if first.results.done():
            events.append(steps.Computed(first))
        return events

    def _answer(self, action: steps.Answer) -> None:
        assert self.session is not None
        results, room = self.session.results(*action), self.session.answer_bytes
        for part in in_messages(results, room):
            buffer = self.endpoint.buffer(room)
            use = self.session.use()
            self.endpoint.send(buffer, pack_results(buffer, self._number, part, use))


def _event_of(header: wire.Header, message: np.ndarray) -> Event:
    """The event of a message on the channel of tasks."""
    if header.type == wire.CANCEL:
        return steps.Cancelled(tuple(unpack_cancel(message)))
    tasks, payload = unpack_tasks(message)
    read = not any(task.by_place or task.as_files for task in tasks)
    return steps.Came(Batch(tasks, payload), tuple(task.task for task in tasks), read)
