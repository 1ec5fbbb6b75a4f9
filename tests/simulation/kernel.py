"""Virtual time, processes and their threads.

A thread is a greenlet; one runs at a time, until it waits. All that is drawn comes from one
generator, so a world is a pure function of its seed. A process that is killed is never run again:
no `finally` of it has an effect.
"""

from __future__ import annotations

import heapq
import random
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import greenlet

SECOND = 1_000_000_000
MS = 1_000_000
FOREVER_NS = 1 << 62
LONGEST_POLL_NS = 200 * MS
POLL_NS = 6 * MS  # a wait for less is a poll: it is stretched, and ends early for a message


class Killed(BaseException):
    """Raised in threads of a process that has ended, so that they end without an effect."""


@dataclass(eq=False)
class Host:
    """A machine with clocks of its own.

    Attributes:
        drift: seconds of its clocks a second of the world.
        mono_ns: its monotonic clock at the world's begin.
        wall_ns: its wall clock likewise; a jump changes it.
    """

    name: str
    drift: float = 1.0
    mono_ns: int = 0
    wall_ns: int = 0


@dataclass(eq=False)
class Process:
    """A process, as the system knows it.

    Attributes:
        environ: its environment variables.
        code: its exit code once it has ended; minus the signal if one ended it.
        told: what it wrote to its standard streams.
        handlers: of signals.
        frozen_ns: until when it is suspended.
        own: state of stand-ins that each process has for itself.
        reads: files open to be read.
        most_open, left_open: how many files were open at once, and which when it ended itself.
    """

    pid: int
    host: Host
    name: str
    environ: dict[str, str] = field(default_factory=dict)
    code: int | None = None
    told: list[str] = field(default_factory=list)
    handlers: dict[int, Any] = field(default_factory=dict)
    at_exit: list[Callable[[], object]] = field(default_factory=list)
    frozen_ns: int = 0
    pollers: list[Thread] = field(default_factory=list)
    own: dict[Any, Any] = field(default_factory=dict)
    ended: list[Callable[[Process], object]] = field(default_factory=list)
    descriptors: dict[int, Any] = field(default_factory=dict)
    reads: dict[int, str] = field(default_factory=dict)
    most_open: int = 0
    ended_ns: int = 0
    left_open: list[str] = field(default_factory=list)

    @property
    def alive(self) -> bool:
        return self.code is None


class Thread:
    """A thread of a process."""

    def __init__(self, process: Process, body: Callable[[], object], name: str, hub: Any) -> None:
        self.process, self.name, self.done = process, name, False
        self.polls = 0  # since something came for it
        self.waits = 0  # the number of its present wait; a later wake of an earlier one is void
        self.joiners: list[Thread] = []
        self.let = greenlet.greenlet(body, hub)


class Kernel:
    """Runs threads in the order of virtual time."""

    def __init__(self, seed: str) -> None:
        self.random = random.Random(seed)
        self.now_ns = 0
        self.processes: dict[int, Process] = {}
        self.current: Thread | None = None
        self.violations: list[str] = []
        self.log: list[str] = []
        self.steps = 0
        self.settled = False  # nothing has ended or been stopped since `run` asked
        self.stretch = self.random.choice((4, 10, 30))
        self.rows_a_part = self.random.choice((0, 0, 5, 16))
        self._events: list[tuple[int, int, Callable[[], object]]] = []
        self._number = 0
        self._pid = 1000
        self._threads: list[Thread] = []
        self._hub = greenlet.getcurrent()

    # ---- for those who set the world up ---------------------------------------

    def at(self, at_ns: int, act: Callable[[], object]) -> None:
        """Do something at a time, not before now."""
        self._number += 1
        heapq.heappush(self._events, (max(at_ns, self.now_ns), self._number, act))

    def after(self, wait_ns: int, act: Callable[[], object]) -> None:
        """Do something after a while."""
        self.at(self.now_ns + wait_ns, act)

    def spawn(
        self, host: Host, name: str, body: Callable[[], object], environ: dict[str, str]
    ) -> Process:
        """Start a process; `body` returns its exit code."""
        self._pid += self.random.randint(1, 7)
        process = Process(self._pid, host, name, environ)
        self.processes[process.pid] = process

        def run() -> None:
            code = body()
            for act in reversed(process.at_exit):
                act()
            self.end(process, int(code or 0))  # type: ignore[call-overload]

        self.start_thread(process, run, "main")
        return process

    def run(self, until: Callable[[], bool], limit_ns: int) -> bool:
        """Run until `until` says so; False if nothing is left to do or the limit is over.

        Only the end of a process, or what makes `settled` False, can change what `until` says.
        """
        self.settled = False
        while True:
            if not self.settled:
                if until():
                    return True
                self.settled = True
            if not self._events or self._events[0][0] > limit_ns:
                return False
            at_ns, _, act = heapq.heappop(self._events)
            self.now_ns = max(self.now_ns, at_ns)
            self.steps += 1
            act()

    def where(self, process: Process) -> str:
        """Where the threads of a process wait."""
        threads = [each for each in self._threads if each.process is process and not each.done]
        stacks = (traceback.format_stack(each.let.gr_frame)[-9:-2] for each in threads)
        told = zip(threads, stacks, strict=True)
        return "\n".join(f"{process.name}, {each.name}:\n{''.join(at)}" for each, at in told)

    def close(self) -> None:
        """End every thread that is left, and forget all."""
        for process in self.processes.values():
            if process.alive:
                process.code = -9
        self._events.clear()
        for thread in self._threads:
            if not thread.let.dead and thread.let:
                self.current = thread
                try:
                    thread.let.throw(Killed)
                except Killed:
                    pass
        self.current = None
        self._threads.clear()

    # ---- for processes --------------------------------------------------------

    @property
    def here(self) -> Process:
        """The process whose thread runs. Raises Killed in one that has ended."""
        assert self.current is not None
        process = self.current.process
        if process.code is not None:
            raise Killed
        return process

    def tick(self, cost_ns: int = 1000) -> None:
        """The running thread has taken this long."""
        if self.here:
            self.now_ns += cost_ns

    def start_thread(self, process: Process, body: Callable[[], object], name: str) -> Thread:
        """Start a thread of a process."""

        def guarded() -> None:
            try:
                body()
            except Killed:
                pass
            except BaseException as error:
                self.crashed(thread, error)
            thread.done = True
            for joiner in thread.joiners:
                self.wake(joiner)

        thread = Thread(process, guarded, name, self._hub)
        self._threads.append(thread)
        self.after(self.random.randint(1, 20_000), lambda: self._resume(thread, 0))
        return thread

    def crashed(self, thread: Thread, error: BaseException) -> None:
        """An exception that nothing handled: in a main thread the process ends by it."""
        text = "".join(traceback.format_exception(error))
        self.violations.append(f"{thread.process.name}, thread {thread.name}: {text}")
        if thread.name == "main":
            self.end(thread.process, 1, wait=False)

    def wait(self, for_ns: int | None = None) -> None:
        """The running thread waits until it is woken, for at most this long."""
        thread = self.current
        assert thread is not None
        _ = self.here
        thread.waits += 1
        number = thread.waits
        if for_ns is not None:
            self.after(for_ns, lambda: self._resume(thread, number))
        self._hub.switch()
        _ = self.here

    def sleep(self, for_ns: int) -> None:
        """The running thread waits this long. A short wait is a poll: see POLL_NS."""
        process = self.here
        if for_ns > POLL_NS:
            self.wait(for_ns)
            return
        thread = self.current
        assert thread is not None
        process.pollers.append(thread)
        thread.polls += 1
        patience = 1 << min(8, thread.polls // 16)  # else an hour of silence takes an hour
        self.wait(min(max(1, for_ns) * self.stretch * patience, LONGEST_POLL_NS))
        if thread in process.pollers:
            process.pollers.remove(thread)

    def wake(self, thread: Thread, in_ns: int = 0) -> None:
        """End a thread's wait."""
        number = thread.waits
        spread_ns = self.random.randint(0, 5_000)
        self.after(in_ns + spread_ns, lambda: self._resume(thread, number))

    def news(self, process: Process) -> None:
        """Something has come for a process that polls."""
        pollers, process.pollers = process.pollers, []
        for thread in pollers:
            thread.polls = 0
            self.wake(thread)

    def _resume(self, thread: Thread, number: int) -> None:
        process = thread.process
        if thread.done or process.code is not None or thread.waits != number:
            return
        if process.frozen_ns > self.now_ns:
            self.at(process.frozen_ns, lambda: self._resume(thread, number))
            return
        thread.waits += 1  # other wakes of this wait are void
        before, self.current = self.current, thread
        thread.let.switch()
        self.current = before

    # ---- ends and signals -----------------------------------------------------

    def end(self, process: Process, code: int, *, wait: bool = True) -> None:
        """A process ends; if it is the running one, this does not return."""
        if process.code is None:
            process.code, process.ended_ns, self.settled = code, self.now_ns, False
            self.log.append(f"{self.now_ns / 1e9:.6f} {process.name} ended with {code}")
            if self.current is not None and self.current.process is process:
                opened = [each.path for each in process.descriptors.values()]
                process.left_open = [*opened, *process.reads.values()]
            for descriptor in list(process.descriptors.values()):
                descriptor.drop()
            process.descriptors.clear()
            for act in process.ended:
                act(process)
        if wait and self.current is not None and self.current.process is process:
            raise Killed

    def signal(self, pid: int, number: int) -> None:
        """Send a signal. Raises ProcessLookupError."""
        process = self.processes.get(pid)
        if process is None or not process.alive:
            raise ProcessLookupError(3, "No such process", str(pid))
        if number == 0:
            return
        handler = process.handlers.get(number)
        if callable(handler):
            self.after(1000, lambda: self._handle(process, handler, number))
        elif handler is None or number == 9:
            self.end(process, -number)

    def _handle(self, process: Process, handler: Any, number: int) -> None:
        if process.alive:
            self.start_thread(process, lambda: handler(number, None), f"signal {number}")
