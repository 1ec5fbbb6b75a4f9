"""A worker rank: receives tasks, skips cancelled ones, runs the network, replies.

A worker reports only durations (C3). The tasks of a message are one batch. Each task reports the
batch's duration, because its images waited for the whole batch. While a GPU computes a batch, the
next one is begun if it has come; its time counts from the end of the batch before it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple, Protocol

import numpy as np

from collage_mpi.errors import CollageError, EnvironmentFault
from collage_mpi.faults.tcp_link import Offer
from collage_mpi.job import messages
from collage_mpi.job.messages import Hello, Message, Rank0, Start, Welcome
from collage_mpi.job.networks import Loader, Networks, failed, is_of_device
from collage_mpi.job.row_reader import Faults, Inputs, RowReader, Wanted, decoded
from collage_mpi.kinds import KIND
from collage_mpi.models.info import MOST_BEGUN, Computation
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.answers import ANSWERED, SKIPPED, WireResult, in_messages, pack_results
from collage_mpi.mpi.tasks import WireTask, unpack_cancel, unpack_files, unpack_places, unpack_tasks
from collage_mpi.shards.pictures import import_decoders, parse_fit
from collage_mpi.shards.schema import HASH_LIMIT_BYTES
from collage_mpi.shards.source import ReadMeter
from collage_mpi.system.backoff import WORKER_BACKOFF, Backoff
from collage_mpi.system.bottleneck import Use
from collage_mpi.system.hard_exit import remove_shared_memory
from collage_mpi.system.limits import limit_met
from collage_mpi.system.process_tree import ProcessId

RING_SPARE = 4  # receives beyond the credit, for cancels
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


class QueuedTasks(NamedTuple):
    """A message's tasks, and their inputs, which may still be read or decoded."""

    tasks: list[WireTask]
    inputs: Inputs | Future[Inputs]


class BegunTasks(NamedTuple):
    """A message's tasks, which a device may be computing.

    Attributes:
        queued: the tasks and their inputs.
        wanted: indices of tasks that were not cancelled.
        usable: of `wanted`, indices of tasks with at least one readable image.
        results: answers to the usable tasks.
        read_ns: how long the network waited for the inputs.
        start_ns: when the network was called.
    """

    queued: QueuedTasks
    wanted: list[int]
    usable: list[int]
    results: Computation[list[WireResult]]
    read_ns: int = 0
    start_ns: int = 0


class Rank0Watch(Protocol):
    """Monitors the coordinator's process."""

    def meet(self, host: str, process: ProcessId | None, offer: Offer | None) -> None: ...
    def release(self) -> None: ...


class Session:
    """A worker's state between a welcome and the end of the session."""

    def __init__(self, number: int, welcome: Welcome) -> None:
        self.number, self.welcome = number, welcome
        self.networks: Networks | None = None
        self.told: Start | None = None  # tasks are not begun before it has come
        self.start_ns = 0
        self.rows: RowReader | None = None  # for tasks by place
        self.fit = None if welcome.fit is None else parse_fit(welcome.fit)
        self.decoding = ThreadPoolExecutor(1, "decode")  # its thread starts at the first use
        self.queue: deque[QueuedTasks] = deque()
        self.begun: deque[BegunTasks] = deque()  # several only while a device computes the first
        self.most_begun = min(MOST_BEGUN, welcome.credit)
        self.ended_ns = 0  # when the last batch was finished
        self.starved_ns = self.computing_ns = 0  # see `bottleneck.Use`
        self.files = ReadMeter()  # of pictures that came as files
        self.open: set[int] = set()  # tasks that are queued or begun
        self.cancelled: set[int] = set()  # of `open`, the cancelled tasks

    def read_rows(self, descriptions: list[str]) -> str:
        """Open the job's shards for tasks by place; "", or why this host cannot open them.

        Raises:
            EnvironmentFault: this host cannot open them, but must.
        """
        welcome = self.welcome
        try:
            limit_bytes = None if welcome.must_read else HASH_LIMIT_BYTES
            self.rows = RowReader(descriptions, limit_bytes)
        except EnvironmentFault as fault:
            if not welcome.must_read:
                return str(fault)[:1000]
            raise EnvironmentFault(
                f"{fault}. With --pixels workers each host reads the shards itself: put them on a "
                "file system that all hosts share, or use --pixels auto"
            ) from fault
        return ""

    def use(self, now_ns: int) -> Use:
        """What this rank has done with its time."""
        rows = self.rows.meter if self.rows is not None else ReadMeter()
        return Use(
            now_ns - self.start_ns,
            rows.reading_ns,
            rows.decoding_ns + self.files.decoding_ns,
            self.starved_ns,
            self.computing_ns,
            1 if self.rows is None else self.rows.decoders,
        )

    def start(self, told: Start, now_ns: int) -> None:
        """Tasks may come."""
        self.told, self.start_ns = told, now_ns

    def end(self) -> None:
        """Close the files."""
        self.decoding.shutdown(cancel_futures=True)
        if self.rows is not None:
            self.rows.close()
            self.rows = None

    def may_begin_another(self) -> bool:
        """Whether the next batch can be begun while a device computes one."""
        inputs = self.queue[0].inputs
        ready = not isinstance(inputs, Future) or inputs.done()
        return ready and len(self.begun) < self.most_begun


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
        self.load = load
        self.clock, self.cpu_clock = clock, cpu_clock
        self.backoff = backoff or Backoff(WORKER_BACKOFF)
        self.session: Session | None = None
        self.exit_code: int | None = None
        self._monitor = monitor
        self._told_code: int | None = None
        self._leave_by_ns = 0
        self._next_control: np.ndarray | None = None  # a message that has come and is not handled
        self._told_shards: list[str] = []  # for the next welcome

    def serve(self) -> int:
        """Work until the coordinator ends it; the exit code that the coordinator gave.

        Once the code is known, the wait for the other ranks is bounded (see `messages.Leave`).
        """
        while self.exit_code is None:
            if self._told_code is not None and self.clock() > self._leave_by_ns:
                return self._told_code
            if self.step():
                self.backoff.reset()
            else:
                self.backoff.pause()
        return self.exit_code

    def step(self) -> bool:
        """Take the messages that have come, and do one piece of work; False if there was none."""
        session = self.session
        if self._control_waits():
            while session is not None and session.begun:
                self._finish(session)
            message, self._next_control = self._next_control, None
            assert message is not None
            self._control(message)
            return True
        self._take_tasks()
        if session is None or session.told is None:
            return False
        if session.queue and (not session.begun or session.may_begin_another()):
            self._begin_tasks(session, session.queue.popleft())
        elif not session.begun:
            return False
        elif len(session.begun) == session.most_begun or session.begun[0].results.done():
            self._finish(session)
        else:
            self.backoff.rest(LOOK_NS)
        return True

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
            assert self.session.networks is not None
            self._tell(self.session.networks.measured(told.kind, told.batch))
        elif isinstance(told, Start) and self.session is not None:
            remove_shared_memory()  # by now all ranks of this host have mapped it
            slots = self.session.welcome.credit + RING_SPARE
            self.endpoint.open_tasks(told.task_bytes, slots)
            self.session.start(told, self.clock())
            assert self.session.networks is not None
            self.session.networks.await_runtimes(told.runtimes)
        elif isinstance(told, messages.End):
            self.endpoint.close_tasks()
            self._end_session()
        elif isinstance(told, messages.Stop):
            self._monitor.release()
            self._tell(messages.Bye(), number)
            self._end_session()
            self._told_code = told.exit_code
            self._leave_by_ns = self.clock() + round(messages.LEAVE_WAIT_S * 1e9)
            if self.endpoint.fault_tolerant:
                self.exit_code = told.exit_code
        elif isinstance(told, messages.Leave):
            self.exit_code = self._told_code

    def _end_session(self) -> None:
        if self.session is not None:
            self.session.end()
        self.session = None

    def _welcome(self, number: int, welcome: Welcome) -> None:
        """Load the networks and warm them up; send Hello, or a Fault that rank 0 shows the user."""
        self.session = None
        try:
            session = Session(number, welcome)
            hello = self._begin(session)
        except CollageError as error:
            self._cannot(limit_met(error) or error, number)
        except Exception as error:
            fault = limit_met(error)
            if fault is None and not is_of_device(error):
                raise
            what = f"its device cannot run the networks: {type(error).__name__}: {error}"
            self._cannot(fault or EnvironmentFault(what), number)
        else:
            self.session = session
            self._tell(hello, number)

    def _begin(self, session: Session) -> Hello:
        descriptions, self._told_shards = self._told_shards, []
        cannot_read = session.read_rows(descriptions) if descriptions else ""
        if session.fit is not None:
            import_decoders()  # now, not while the first images wait
        networks = Networks(session.welcome, self.load, self.clock, self.cpu_clock)
        session.networks = networks
        return networks.hello(cannot_read)

    def _cannot(self, error: CollageError, number: int) -> None:
        """Tell the coordinator that this rank cannot work, and why."""
        self._tell(messages.Fault(str(error)[:2000], int(error.exit_code)), number)

    def _tell(self, message: Message, session: int | None = None) -> None:
        number = session if session is not None else self.session.number if self.session else 0
        buffer = self.endpoint.buffer(wire.UP_BYTES)
        self.endpoint.send(buffer, messages.pack(buffer, number, message))

    # ---- tasks --------------------------------------------------------------

    def _take_tasks(self) -> None:
        """Queue new tasks, and note cancelled ones. Messages of other sessions are dropped."""
        for message in self.endpoint.poll_tasks():
            header = wire.read_header(message)
            session = self.session
            if session is None or header.session != session.number:
                continue
            if header.type == wire.CANCEL:
                # A cancel comes after its task on the same channel, so other tasks have ended.
                session.cancelled.update(session.open.intersection(unpack_cancel(message)))
            else:
                tasks, payload = unpack_tasks(message)
                session.open.update(task.task for task in tasks)
                begin = _read if tasks[0].by_place else _unpacked  # all tasks of it are alike
                session.queue.append(QueuedTasks(tasks, begin(session, tasks, payload)))

    def _begin_tasks(self, session: Session, queued: QueuedTasks) -> None:
        """Begin a message's tasks as one batch, without cancelled ones.

        They are finished at once, too, unless a device computes them.
        """
        self._take_tasks()  # a cancel may have just come
        assert session.networks is not None
        for changed in () if session.begun else session.networks.changes():
            self._tell(changed)
        wanted = [i for i, t in enumerate(queued.tasks) if t.task not in session.cancelled]
        session.begun.append(self._begin_batch(session, queued, wanted))
        if session.begun[0].results.done():
            self._finish(session)

    def _finish(self, session: Session) -> None:
        """Answer the tasks of the batch that was begun first."""
        begun = session.begun.popleft()
        tasks, wanted = begun.queued.tasks, begun.wanted
        results = []
        if len(wanted) < len(tasks):
            kept = set(wanted)
            results = [WireResult(t.task, SKIPPED) for i, t in enumerate(tasks) if i not in kept]
        if wanted:
            results += self._answers(session, begun)
        ended = [task.task for task in tasks]
        session.open.difference_update(ended)
        session.cancelled.difference_update(ended)
        assert session.networks is not None
        room = session.networks.answer_bytes
        for part in in_messages(results, room):
            buffer = self.endpoint.buffer(room)
            use = session.use(self.clock())
            self.endpoint.send(buffer, pack_results(buffer, session.number, part, use))

    def _begin_batch(self, session: Session, queued: QueuedTasks, wanted: list[int]) -> BegunTasks:
        """Begin the `wanted` tasks, after waiting for their inputs."""
        start_ns, read_ns, found = self.clock(), 0, queued.inputs
        if isinstance(found, Future):
            if not wanted:
                found.cancel()  # if the reading has not begun
                return BegunTasks(queued, [], [], Computation(list))
            found = found.result()
            read_ns = self.clock() - start_ns
            session.starved_ns += read_ns
            queued = QueuedTasks(queued.tasks, found)
        # A picture with some blank cells can be classified; one without any image cannot.
        usable = [i for i in wanted if not (found.faults[i] and all(found.faults[i]))]
        if not usable:
            return BegunTasks(queued, wanted, [], Computation(list), read_ns)
        assert session.networks is not None
        start_ns = self.clock()
        results = session.networks.begin(
            [queued.tasks[i] for i in usable], [found.arrays[i] for i in usable]
        )
        return BegunTasks(queued, wanted, usable, results, read_ns, start_ns)

    def _answers(self, session: Session, begun: BegunTasks) -> list[WireResult]:
        inputs = begun.queued.inputs
        assert isinstance(inputs, Inputs)
        answers = dict(zip(begun.usable, self._classified(session, begun), strict=True))
        for i in begun.wanted:
            faults = inputs.faults[i]
            result = answers.get(i) or failed(begun.queued.tasks[i], "")
            if faults and (i not in answers or result.status == ANSWERED):
                result.unread = faults
                result.reason = next(why.reason for why in faults if why is not None)
            result.read_ns = begun.read_ns
            answers[i] = result
        return list(answers.values())

    def _classified(self, session: Session, begun: BegunTasks) -> list[WireResult]:
        """The network's answers."""
        assert session.networks is not None
        results = begun.results.finish()
        # The device computes one batch after another, so this one starts when the last has ended.
        start_ns, session.ended_ns = max(begun.start_ns, session.ended_ns), self.clock()
        compute_ns = session.ended_ns - start_ns
        session.computing_ns += compute_ns
        for result in results:
            if result.status == ANSWERED:
                result.compute_ns = compute_ns
        return results


def _read(session: Session, tasks: Sequence[WireTask], payload: np.ndarray) -> Future[Inputs]:
    """Begin to read the images of tasks by place."""
    assert session.networks is not None
    if session.rows is None:
        raise wire.WireFault(f"task {tasks[0].task} names places, but no shards were sent before")
    named, wanted = iter(unpack_places(payload)), []
    for task in tasks:
        places = list(islice(named, len(task.items)))
        if len(places) < len(task.items):
            raise wire.WireFault(f"task {task.task} has fewer places than items")
        wanted.append(Wanted(places, [cell for _, cell in task.items]))
    encoder = session.networks.encoder if KIND[tasks[0].kind].encoded else None
    return session.rows.begin(wanted, encoder)


def _unpacked(
    session: Session, tasks: Sequence[WireTask], payload: np.ndarray
) -> Inputs | Future[Inputs]:
    """The inputs that the tasks carry: for each task a view, one input per image or per collage.

    A view is (n, H, W, C) uint8, or (n, ...) for other items. Files are decoded in a thread.
    """
    assert session.networks is not None
    parts: list[np.ndarray | list[bytes]] = []
    at = 0
    for task in tasks:
        if task.as_files:
            if session.fit is None:
                raise wire.WireFault(f"task {task.task} has files, but the welcome has no fit")
            files, nbytes = unpack_files(payload[at:], len(task.items))
            parts.append(files)
            at += nbytes
            continue
        count = 1 if KIND[task.kind].encoded else len(task.items)
        shape = session.networks.input_shapes[task.kind]
        dtype = session.networks.input_dtypes[task.kind]
        end = at + count * math.prod(shape) * dtype.itemsize
        if end > payload.nbytes:
            raise wire.WireFault(f"task {task.task} has fewer pixels than its items need")
        parts.append(payload[at:end].view(dtype).reshape(count, *shape))
        at = end
    arrays = [part for part in parts if not isinstance(part, list)]
    if len(arrays) < len(parts):
        assert session.fit is not None
        return session.decoding.submit(decoded, parts, session.fit, session.files)
    none: Faults = ()
    return Inputs(arrays, [none] * len(parts))
