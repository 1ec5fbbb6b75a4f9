"""MPI as the package uses it, between simulated processes.

Messages of one sender, receiver and tag stay in order; all else may overtake. A small message is
eager: its send is complete before it is received. A large one is complete when it is received.
A buffer may be changed only when its send is complete: a change before that is a violation.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from tests.simulation.kernel import MS, Kernel, Process, Thread
from tests.simulation.standins import here, kernel

POISON = 0xA5
SOON_NS = 1000 * MS  # in which a coordinator that runs sees that a process has ended
TASKS = 12  # tag of messages with tasks


class MPIError(Exception):
    """What mpi4py raises where a call with a rank has failed."""


class Status:
    def __init__(self) -> None:
        self.nbytes = 0

    def Get_count(self, datatype: Any) -> int:
        return self.nbytes


@dataclass(eq=False)
class Send:
    """A send: its request, and the message under way."""

    net: Network
    source: int
    target: int
    tag: int
    buffer: np.ndarray
    content: bytes
    eager: bool
    complete: bool = False
    failed: bool = False

    def Test(self, status: Status | None = None) -> bool:
        kernel().tick()
        if self.failed or self.net.reports_loss(self.source, self.target):
            self.failed = True
            raise MPIError(f"the process of rank {self.target} has failed")
        return self.complete

    def finish(self) -> None:
        """The buffer has been read for the last time."""
        if self.complete:
            return
        if self.net.alive(self.source) and self.buffer.tobytes() != self.content:
            self.net.kernel.violations.append(
                f"rank {self.source} changed a buffer whose send to rank {self.target} with tag "
                f"{self.tag} was not complete"
            )
        self.complete = True
        process = self.net.processes.get(self.source)
        if process is not None:
            self.net.kernel.news(process)


@dataclass(eq=False)
class Receive:
    """A receive that is posted, or complete."""

    net: Network
    source: int
    target: int
    tag: int
    buffer: np.ndarray
    nbytes: int = -1
    cancelled: bool = False

    def Test(self, status: Status | None = None) -> bool:
        kernel().tick()
        if self.nbytes < 0 and self.net.reports_loss(self.target, self.source):
            raise MPIError(f"the process of rank {self.source} has failed")
        if self.nbytes < 0:
            return False
        if status is not None:
            status.nbytes = self.nbytes
        return True

    def Cancel(self) -> None:
        kernel().tick()
        self.cancelled = True
        posted = self.net.channel(self.source, self.target, self.tag).posted
        if self in posted:
            posted.remove(self)

    def Wait(self) -> None:
        kernel().tick()


class Request:
    """What mpi4py calls as a class."""

    @staticmethod
    def Testsome(requests: list[Receive], statuses: list[Status]) -> list[int]:
        """Those of the receives that are complete, and their statuses, in front."""
        done = [place for place, request in enumerate(requests) if request.Test()]
        for status, place in zip(statuses, done, strict=False):
            status.nbytes = requests[place].nbytes
        return done


@dataclass
class Channel:
    """Messages of one sender, receiver and tag."""

    posted: deque[Receive] = field(default_factory=deque)
    come: deque[Send] = field(default_factory=deque)  # before a receive was posted
    last_ns: int = 0  # when the last message arrives


class Network:
    """The world of one job.

    Attributes:
        eager_bytes: messages up to this size are eager.
        slow_ns: the longest time that a message is under way.
        tells_loss: whether calls with a lost rank fail, as under ULFM.
    """

    def __init__(self, kernel: Kernel, size: int, *, tells_loss: bool) -> None:
        rng = kernel.random
        self.kernel, self.size, self.tells_loss = kernel, size, tells_loss
        self.eager_bytes = rng.choice((0, 512, 8192, 1 << 30))
        self.slow_ns = rng.choice((MS // 20, MS, 20 * MS))
        self.processes: dict[int, Process] = {}
        self.abort: Callable[[int], object] = lambda code: None
        self.up: set[int] = set()  # ranks that have called MPI_Init
        self.at_work: list[Callable[[], object]] = []  # done once, with the first task
        self.finalized: set[int] = set()
        self.heard: set[tuple[int, int]] = set()  # (receiver, sender) of any message
        self.stalled_ns: dict[int, int] = {}  # sender -> until when its messages go no further
        self._gathered: list[Thread] = []
        self.channels: dict[tuple[int, int, int], Channel] = {}
        self._reports_ns: dict[tuple[int, int], int] = {}

    def channel(self, source: int, target: int, tag: int) -> Channel:
        return self.channels.setdefault((source, target, tag), Channel())

    def alive(self, rank: int) -> bool:
        process = self.processes.get(rank)
        return process is None or process.alive

    def reports_loss(self, observer: int, rank: int) -> bool:
        """Whether MPI says to a rank that another one has failed."""
        process = self.processes.get(rank)
        if not self.tells_loss or process is None or process.code is None or process.code >= 0:
            return False  # one that leaves with a code is not reported
        delay_ns = self.kernel.random.randint(0, 30 * MS)
        key = observer, rank
        return self.kernel.now_ns >= self._reports_ns.setdefault(key, self.kernel.now_ns + delay_ns)

    def gather(self, come: set[int], rank: int) -> None:
        """The running thread waits until all ranks have come."""
        come.add(rank)
        me = kernel().current
        assert me is not None
        while len(come) < self.size:  # others may have gathered for something else
            self._gathered.append(me)
            kernel().wait()
        while self._gathered:
            kernel().wake(self._gathered.pop())

    def send(self, send: Send) -> None:
        if send.tag == TASKS:
            self._lives(send)
            self.processes[send.target].own["has work"] = True
            while self.at_work:
                self.at_work.pop()()
        channel = self.channel(send.source, send.target, send.tag)
        delay_ns = self.kernel.random.randint(2000, self.slow_ns)
        stalled_ns = self.stalled_ns.get(send.source, 0)
        at_ns = max(self.kernel.now_ns + delay_ns, channel.last_ns + 1, stalled_ns)
        channel.last_ns = at_ns
        if send.eager:
            self.kernel.after(self.kernel.random.randint(1, delay_ns), send.finish)
        self.kernel.at(at_ns, lambda: self._arrive(send))

    def _lives(self, send: Send) -> None:
        """Nobody gives work to a rank whose process has ended some time ago."""
        to, source = self.processes[send.target], self.processes[send.source]
        seen_ns = max(to.ended_ns, source.frozen_ns) + SOON_NS
        if not to.alive and to.code < 0 and self.kernel.now_ns > seen_ns:
            ago_s = (self.kernel.now_ns - to.ended_ns) / 1e9
            text = f"rank {send.target} gets work {ago_s:.1f} s after its end"
            self.kernel.violations.append(text)

    def _arrive(self, send: Send) -> None:
        if not send.complete and not self.alive(send.source):
            return  # the sender's memory has gone
        channel = self.channel(send.source, send.target, send.tag)
        channel.come.append(send)
        self.match(channel)

    def match(self, channel: Channel) -> None:
        while channel.posted and channel.come:
            send = channel.come[0]
            if not send.complete and not self.alive(send.source):
                channel.come.popleft()
                continue
            channel.come.popleft()
            receive = channel.posted.popleft()
            if len(send.content) > receive.buffer.nbytes:
                self.kernel.violations.append(
                    f"rank {send.target} has posted {receive.buffer.nbytes} bytes for a message "
                    f"of {len(send.content)} from rank {send.source} with tag {send.tag}"
                )
                continue
            send.finish()
            if self.alive(receive.target):
                receive.buffer[: len(send.content)] = np.frombuffer(send.content, np.uint8)
                receive.nbytes = len(send.content)
                self.heard.add((receive.target, receive.source))
                process = self.processes.get(receive.target)
                if process is not None:
                    self.kernel.news(process)


class Comm:
    """The communicator of all ranks, as one of them has it."""

    def __init__(self, net: Network, rank: int) -> None:
        self._net, self._rank = net, rank

    def Get_rank(self) -> int:
        return self._rank

    def Get_size(self) -> int:
        return self._net.size

    def Set_errhandler(self, handler: Any) -> None:
        pass

    def Isend(self, buffer: np.ndarray, dest: int, tag: int) -> Send:
        kernel().tick(2000)
        eager = buffer.nbytes <= self._net.eager_bytes
        send = Send(self._net, self._rank, dest, tag, buffer, buffer.tobytes(), eager)
        if self._net.reports_loss(self._rank, dest):
            raise MPIError(f"the process of rank {dest} has failed")
        self._net.send(send)
        return send

    def Irecv(self, buffer: np.ndarray, source: int, tag: int) -> Receive:
        kernel().tick(1000)
        buffer[:] = POISON
        receive = Receive(self._net, source, self._rank, tag, buffer)
        channel = self._net.channel(source, self._rank, tag)
        channel.posted.append(receive)
        if channel.come:
            kernel().after(1000, lambda: self._net.match(channel))
        return receive

    def Abort(self, code: int) -> None:
        self._net.abort(code)
        kernel().wait(10 * MS)


class MPI:
    """mpi4py's module, as one rank has it."""

    BYTE = "BYTE"
    ERRORS_RETURN = "ERRORS_RETURN"
    Exception = MPIError
    Request = Request
    Status = Status

    def __init__(self, net: Network, rank: int) -> None:
        self.COMM_WORLD = Comm(net, rank)
        self._net, self._rank = net, rank

    def Get_library_version(self) -> str:
        return "Simulated MPI 1.0"

    def Finalize(self) -> None:
        """Waits for all ranks, for ever where one is lost. Nothing is under way any more."""
        for (source, target, tag), channel in self._net.channels.items():
            if target == self._rank and channel.posted and self._net.alive(source):
                self._net.kernel.violations.append(
                    f"rank {target} ends with a receive from rank {source} with tag {tag}"
                )
        self._net.gather(self._net.finalized, self._rank)


def network_of(process: Process) -> tuple[Network, int]:
    found: tuple[Network, int] = process.own["network"]
    return found


def open_world(*, fault_tolerant: bool = False) -> tuple[Comm, MPI]:
    """Of `mpi.transport`: MPI is up once all ranks have called it."""
    net, rank = network_of(here())
    kernel().wait(kernel().random.randint(MS, 400 * MS))
    net.gather(net.up, rank)
    mpi = here().own["mpi"] = MPI(net, rank)
    return mpi.COMM_WORLD, mpi
