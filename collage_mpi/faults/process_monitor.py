"""Monitors processes: a coordinator monitors its workers, and a worker its coordinator.

A worker on the same machine is monitored by a pidfd, one on another machine by a TCP connection.
One look at all of them costs one system call. Anybody who can reach the port can connect. So a
connection that does not identify itself in time is closed, the number of waiting connections is
limited, and the port is closed as soon as all ranks are connected.
"""

from __future__ import annotations

import os
import select
import selectors
import socket
import threading
import time
from collections.abc import Callable, Collection
from typing import NamedTuple

from collage_mpi.faults.reply_timeout import SECOND_NS, WatchedTime
from collage_mpi.faults.tcp_link import Offer, TcpLink, connect, ended
from collage_mpi.system.limits import raise_descriptor_limit
from collage_mpi.system.process_tree import ProcessId, ProcessWatch, this_process, watch_process
from collage_mpi.system.tell import tell

# These times count only while rank 0 looks: while it opens its shards it accepts no connection.
GREETING_LIMIT_NS = 10 * SECOND_NS  # a worker greets as soon as it is connected
PORT_LIMIT_NS = 300 * SECOND_NS  # a rank connects as soon as MPI is up
AGAIN_NS = SECOND_NS  # pause of accepting when no file descriptor is left
STRANGERS = 16  # most connections that have not greeted yet, besides one for each rank

PROCESS, CONNECTION = "process", "connection"  # layers of detection
WORDS = {
    PROCESS: "its process has ended",
    CONNECTION: "its connection to rank 0 has closed: its process or its host has gone",
}


class Ended(NamedTuple):
    """A rank has ended, and the layer that noticed it."""

    rank: int
    layer: str
    why: str


class ProcessMonitor:
    """Monitors the workers. Send them `offer`, so that they connect, and call `look` regularly."""

    def __init__(
        self,
        size: int,
        *,
        one_host: bool,
        interface: str | None = None,
        clock: Callable[[], int] = time.monotonic_ns,
        ranks: Collection[int] | None = None,
    ) -> None:
        """Open the port.

        Args:
            size: ranks of the world.
            one_host, interface: as in `TcpLink`.
            clock: monotonic, in ns.
            ranks: the workers; None: all ranks except rank 0.
        """
        raise_descriptor_limit()  # a thousand workers need more; without, reply timeouts are left
        self._tcp_link = TcpLink(size, one_host=one_host, interface=interface)
        self._size = size
        self._clock = clock
        self._ranks = frozenset(range(1, size) if ranks is None else ranks)
        self._awaited = set(self._ranks)  # ranks that are neither connected nor given up
        self._watched = WatchedTime(clock())
        self._open, self._again_ns = True, 0
        self._strangers: dict[socket.socket, int] = {}  # connection -> its time limit, oldest first
        self._selector = selectors.EpollSelector()  # the data of a descriptor is its handler
        self._processes: dict[int, ProcessWatch] = {}
        self._lines: dict[int, socket.socket] = {}
        self._watch(self._tcp_link.listener, self._accept)

    def offer(self) -> Offer:
        """What the workers must know to connect."""
        return self._tcp_link.offer()

    def look(self) -> list[Ended]:
        """Ranks that have ended since the last look. Never blocks."""
        found = [key.data() for key, _ in self._selector.select(0)]
        if self._open:
            self._drop_strangers(self._watched.look(self._clock()))
        return [ended for ended in found if ended is not None]

    def kill(self, rank: int) -> bool:
        """Send SIGKILL to a rank and do not wait; False if it is not on this machine."""
        self._awaited.discard(rank)
        process = self._processes.get(rank)
        if process is None:
            return False
        process.kill()
        return True

    def close(self) -> None:
        """Stop watching; the workers notice that their connections end."""
        self._close_port()
        self._selector.close()
        for process in self._processes.values():
            process.close()
        for line in self._lines.values():
            line.close()

    def _watch(self, source: socket.socket | int, act: Callable[[], Ended | None]) -> None:
        self._selector.register(source, selectors.EVENT_READ, act)

    def _drop_strangers(self, now_ns: int) -> None:
        """Close connections that have not greeted in time, and the oldest ones if too many wait.

        The port is closed when no worker is awaited any more.
        """
        if self._again_ns and now_ns >= self._again_ns:
            self._again_ns = 0
            self._watch(self._tcp_link.listener, self._accept)
        surplus = len(self._strangers) - self._size - STRANGERS
        for number, (line, until_ns) in enumerate(list(self._strangers.items())):
            if number < surplus or now_ns > until_ns:
                self._turn_away(line)
        if not self._awaited or now_ns > PORT_LIMIT_NS:
            self._close_port()

    def _close_port(self) -> None:
        if not self._open:
            return
        self._open = False
        if not self._again_ns:
            self._selector.unregister(self._tcp_link.listener)
        self._tcp_link.close()
        for line in list(self._strangers):
            self._turn_away(line)

    def _accept(self) -> None:
        now_ns = self._watched.at(self._clock())
        try:
            line = self._tcp_link.accept()
        except OSError:  # no descriptor is left: the port would be readable at every look
            self._selector.unregister(self._tcp_link.listener)
            self._again_ns = now_ns + AGAIN_NS
            return
        if line is not None:
            self._strangers[line] = now_ns + GREETING_LIMIT_NS
            self._watch(line, lambda: self._greet(line))

    def _turn_away(self, line: socket.socket) -> None:
        del self._strangers[line]
        self._selector.unregister(line)
        line.close()

    def _greet(self, line: socket.socket) -> Ended | None:
        """Identify the rank of a new connection; close that of a stranger."""
        greeting = self._tcp_link.greeted(line)
        if not greeting or (rank := greeting.rank) not in self._ranks or rank in self._lines:
            self._turn_away(line)
            return None
        del self._strangers[line]
        self._selector.unregister(line)
        self._lines[rank] = line
        self._awaited.discard(rank)
        try:
            process = None if greeting.process is None else watch_process(greeting.process)
        except ProcessLookupError:
            return Ended(rank, PROCESS, WORDS[PROCESS])
        if process is None:
            self._watch(line, lambda: self._closed(rank, line))
        else:
            self._processes[rank] = process
            self._watch(process.pidfd, lambda: self._process_ended(rank, process.pidfd))
        return None

    def _closed(self, rank: int, line: socket.socket) -> Ended | None:
        if not ended(line):
            return None
        self._selector.unregister(line)
        return Ended(rank, CONNECTION, WORDS[CONNECTION])

    def _process_ended(self, rank: int, pidfd: int) -> Ended:
        self._selector.unregister(pidfd)
        return Ended(rank, PROCESS, WORDS[PROCESS])


class CoordinatorMonitor:
    """Lets a worker end soon after the process of its coordinator has ended.

    It monitors from `meet` until `release`, which is called when the job is over. It is a thread,
    because a worker may load weights or run a network for longer than it may outlive its
    coordinator. The thread sleeps in poll.

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
        """Start to monitor the coordinator's process, over a connection if one is offered."""
        threading.Thread(target=self._keep, args=(host, process, offer), daemon=True).start()

    def release(self) -> None:
        """From now on the coordinator may end."""
        self._released.set()
        os.write(self._wake_write, b"x")

    def _keep(self, host: str, name: ProcessId | None, offer: Offer | None) -> None:
        try:
            process = None if name is None else watch_process(name)
        except ProcessLookupError:  # it ended
            self._leave()
            return
        # Without an offer the launcher ends all ranks if one ends.
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
        line = connect(offer, self._rank, this_process())
        if line is None:
            tell(
                f"collage-mpi: rank {self._rank} on {socket.gethostname()} cannot connect to rank "
                f"{self._coordinator} on {host} (tried {', '.join(offer.addresses)} port "
                f"{offer.port}): if one of them is lost, only MPI or a time limit notices it",
                any_rank=True,
            )
        return line
