"""Lets a worker end soon after the process of rank 0 has ended. It is a thread, because the worker
may load weights or run a network for longer than it may outlive rank 0. The thread sleeps in poll
and costs nothing.
"""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Callable

from collage_mpi.faults.tcp_link import Offer, connect, ended
from collage_mpi.system.pidfd import ProcessId, this_process, watch_process
from collage_mpi.system.tell import tell


class CoordinatorMonitor:
    """Watches the coordinator from `meet` until `release`, which is called when the job is over.

    Args:
        rank: this rank.
        gone: called from the thread when the coordinator has ended.
        coordinator: its rank, for messages.
    """

    def __init__(self, rank: int, gone: Callable[[], None], coordinator: int = 0) -> None:
        self._rank, self._gone, self._coordinator = rank, gone, coordinator
        self._released = threading.Event()
        self._wake_read, self._wake_write = os.pipe()

    def meet(self, host: str, process: ProcessId | None, offer: Offer | None) -> None:
        """Start to watch rank 0's process on its host, over a connection if one is offered."""
        threading.Thread(target=self._keep, args=(host, process, offer), daemon=True).start()

    def release(self) -> None:
        """From now on rank 0 may end."""
        self._released.set()
        os.write(self._wake_write, b"x")

    def _keep(self, host: str, name: ProcessId | None, offer: Offer | None) -> None:
        try:
            process = None if name is None else watch_process(name)
        except ProcessLookupError:  # it ended
            self._leave()
            return
        # Without an offer the end of any rank is the launcher's business.
        line = None if offer is None else self._connect(host, offer)
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

    def _connect(self, host: str, offer: Offer) -> socket.socket | None:
        here = this_process()
        greeting = {"rank": self._rank, "process": here.to_dict() if here else None}
        line = connect(offer, greeting)
        if line is None:
            tell(
                f"collage-mpi: rank {self._rank} on {socket.gethostname()} cannot connect to rank "
                f"{self._coordinator} on {host} (tried {', '.join(offer.addresses)} port "
                f"{offer.port}): a loss of either is noticed by MPI or by time limits only",
                any_rank=True,
            )
        return line
