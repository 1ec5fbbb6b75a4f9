"""A worker's watch over rank 0: its process ends soon after rank 0's has.

Owns: the thread that waits for the end of rank 0, and for nothing else.
Does not know: MPI, tasks, how the process is ended.

A thread, since the worker itself may be loading weights or in the midst of a network for
longer than it may outlive rank 0. It sleeps in poll and costs nothing.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable, Mapping
from typing import Any

from collage_mpi.faults.tcp_link import connect, ended
from collage_mpi.system.pidfd import ProcessId, ProcessWatch, this_process, watch_process
from collage_mpi.system.tell import tell


class CoordinatorMonitor:
    """`meet` rank 0, `release` when it has said that the job is over.

    Args:
        rank: this rank.
        gone: called from the thread when rank 0 has ended.
    """

    def __init__(self, rank: int, gone: Callable[[], None]) -> None:
        self._rank, self._gone = rank, gone
        self._released = threading.Event()
        self._wake_read, self._wake_write = os.pipe()

    def meet(self, content: Mapping[str, Any]) -> None:
        """Watch the rank 0 that this message tells of."""
        threading.Thread(target=self._keep, args=(content,), daemon=True).start()

    def release(self) -> None:
        """Rank 0 may go now."""
        self._released.set()
        os.write(self._wake_write, b"x")

    def _keep(self, content: Mapping[str, Any]) -> None:
        try:
            process = _process_of(content)
        except ProcessLookupError:
            self._leave()
            return
        line = self._connect(content)
        watched = {self._wake_read: None, **({process.pidfd: None} if process else {})}
        poller = select.poll()
        for descriptor in watched:
            poller.register(descriptor, select.POLLIN)
        if line is not None:
            poller.register(line, select.POLLIN)
        while not self._released.is_set():
            found = {descriptor for descriptor, _ in poller.poll()}
            if found & watched.keys() or (line is not None and ended(line)):
                break
        self._leave()

    def _leave(self) -> None:
        if not self._released.is_set():
            self._gone()

    def _connect(self, content: Mapping[str, Any]) -> socket.socket | None:
        offer = content.get("lifeline")
        if offer is None:  # an end of any rank is the launcher's business
            return None
        here = this_process()
        greeting = {"rank": self._rank, "process": here.to_dict() if here else None}
        line = connect(offer, greeting)
        if line is None:
            tell(
                f"collage-mpi: rank {self._rank} on {socket.gethostname()} cannot connect to rank "
                f"0 on {content['host']} (tried {', '.join(offer['addresses'])} port "
                f"{offer['port']}): a loss of either is noticed by MPI or by time limits only",
                any_rank=True,
            )
        return line


def _process_of(content: Mapping[str, Any]) -> ProcessWatch | None:
    """A watch over rank 0 where it is on this machine. Raises ProcessLookupError: it ended."""
    values = content.get("process")
    return None if values is None else watch_process(ProcessId.from_dict(values))
