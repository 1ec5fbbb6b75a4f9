"""Rank 0's watch over the workers' processes: one look costs a system call.

Owns: a pidfd for each worker of this machine, a lifeline for each of another, which of
them have ended since the last look.
Does not know: MPI, tasks, what a loss means for the job.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from typing import Any, NamedTuple

from collage_mpi.lifeline import Lifeline, ended
from collage_mpi.liveness import ProcessId, ProcessWatch, watch_process

PROCESS, CONNECTION = "process", "connection"  # layers of detection
WORDS = {
    PROCESS: "its process has ended",
    CONNECTION: "its connection to rank 0 has closed: its process or its host has gone",
}


class Ended(NamedTuple):
    """A rank has gone, and which layer saw it."""

    rank: int
    layer: str
    why: str


class RankWatches:
    """Give workers `offer`; they connect and say who they are; `look` now and then."""

    def __init__(self, size: int, *, one_host: bool) -> None:
        _raise_descriptor_limit()
        self._lifeline = Lifeline(size, one_host=one_host)
        self._size = size
        self._epoll = select.epoll()
        self._processes: dict[int, ProcessWatch] = {}
        self._lines: dict[int, socket.socket] = {}
        self._acts: dict[int, Callable[[], Ended | None]] = {}  # by descriptor
        self._watch(self._lifeline.listener.fileno(), self._accept)

    def offer(self) -> dict[str, Any]:
        """What to tell the workers."""
        return self._lifeline.offer()

    def look(self) -> list[Ended]:
        """Ranks that have ended since; never blocks."""
        found = []
        for descriptor, _ in self._epoll.poll(0):
            act = self._acts.get(descriptor)
            result = act() if act is not None else None
            if result is not None:
                found.append(result)
        return found

    def kill(self, rank: int) -> bool:
        """SIGKILL a rank of this machine; False when it is not here."""
        process = self._processes.get(rank)
        if process is None:
            return False
        process.kill()
        return True

    def close(self) -> None:
        """Stop watching; the workers' ends of the lines see it."""
        self._epoll.close()
        self._lifeline.close()
        for process in self._processes.values():
            process.close()
        for line in self._lines.values():
            line.close()

    def _watch(self, descriptor: int, act: Callable[[], Ended | None]) -> None:
        self._acts[descriptor] = act
        self._epoll.register(descriptor, select.EPOLLIN)

    def _forget(self, descriptor: int) -> None:
        self._epoll.unregister(descriptor)
        del self._acts[descriptor]

    def _accept(self) -> None:
        line = self._lifeline.accept()
        if line is not None:
            self._watch(line.fileno(), lambda: self._greet(line))

    def _greet(self, line: socket.socket) -> Ended | None:
        """A new line says who it is; a stranger's is closed."""
        descriptor = line.fileno()
        self._forget(descriptor)
        greeting = self._lifeline.greeted(line)
        rank = greeting["rank"] if greeting else 0
        if greeting is None or not 0 < rank < self._size or rank in self._lines:
            line.close()
            return None
        self._lines[rank] = line
        try:
            process = watch_process(ProcessId.from_dict(greeting["process"]))
        except (KeyError, TypeError, ValueError):  # its system does not tell
            process = None
        except ProcessLookupError:
            return Ended(rank, PROCESS, WORDS[PROCESS])
        if process is None:
            self._watch(descriptor, lambda: self._closed(rank, line))
        else:
            self._processes[rank] = process
            self._watch(process.pidfd, lambda: self._process_ended(rank, process.pidfd))
        return None

    def _closed(self, rank: int, line: socket.socket) -> Ended | None:
        if not ended(line):
            return None
        self._forget(line.fileno())
        return Ended(rank, CONNECTION, WORDS[CONNECTION])

    def _process_ended(self, rank: int, pidfd: int) -> Ended:
        self._forget(pidfd)
        return Ended(rank, PROCESS, WORDS[PROCESS])


def _raise_descriptor_limit() -> None:
    """A thousand workers need more than the usual 1,024 descriptors."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            pass  # those beyond the limit are watched by reply_timeout alone
