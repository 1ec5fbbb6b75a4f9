"""Stand-ins for the modules by which the package meets the system, and their loading.

The package's own modules are loaded anew, with an `import` that finds these instead. Nothing in
the package knows of it, and other packages (numpy, h5py) have the real modules.
"""

from __future__ import annotations

import builtins
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types
from collections import deque
from collections.abc import Callable, Iterator, MutableMapping
from datetime import datetime as real_datetime
from typing import Any, NamedTuple

from tests.simulation.kernel import FOREVER_NS, Kernel, Killed, Process, Thread

PACKAGE = "collage_mpi"


class World:
    """What the stand-ins ask: the kernel of the world that is being played, and its files."""

    kernel: Kernel
    disk: Any


WORLD = World()


def kernel() -> Kernel:
    return WORLD.kernel


def here() -> Process:
    return WORLD.kernel.here


class StandIn(types.ModuleType):
    """A module of which some names are replaced."""

    def __init__(self, name: str, real: types.ModuleType | None, **names: Any) -> None:
        super().__init__(name)
        self.__dict__["_real"] = real
        self.__dict__.update(names)

    def __getattr__(self, name: str) -> Any:
        found = self.__dict__[name] = getattr(self.__dict__["_real"], name)
        return found


# ---- time -----------------------------------------------------------------------


def monotonic_ns() -> int:
    kernel().tick()
    host = here().host
    return host.mono_ns + int(kernel().now_ns * host.drift)


def wall_ns() -> int:
    kernel().tick()
    host = here().host
    return host.wall_ns + int(kernel().now_ns * host.drift)


def sleep(seconds: float) -> None:
    kernel().sleep(max(0, round(seconds * 1e9)))


class SimulatedDatetime(real_datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return real_datetime.fromtimestamp(wall_ns() / 1e9, tz)


def make_time() -> StandIn:
    import time

    return StandIn(
        "time",
        time,
        monotonic_ns=monotonic_ns,
        monotonic=lambda: monotonic_ns() / 1e9,
        perf_counter=lambda: monotonic_ns() / 1e9,
        perf_counter_ns=monotonic_ns,
        time_ns=wall_ns,
        time=lambda: wall_ns() / 1e9,
        process_time_ns=monotonic_ns,
        thread_time_ns=monotonic_ns,
        process_time=lambda: monotonic_ns() / 1e9,
        sleep=sleep,
    )


# ---- threads --------------------------------------------------------------------


class Lock:
    """A lock, each process's own: modules make some at import."""

    again = False

    def __init__(self) -> None:
        self._of: dict[int, list[Any]] = {}  # pid -> [owner, depth, waiting]

    def _state(self) -> list[Any]:
        return self._of.setdefault(here().pid, [None, 0, deque()])

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        state, me = self._state(), kernel().current
        if kernel().random.random() < 0.02:  # another thread may come first
            kernel().wait(kernel().random.randint(1, 30_000))
        if self.again and state[0] is me:
            state[1] += 1
            return True
        until_ns = FOREVER_NS if timeout < 0 else kernel().now_ns + int(timeout * 1e9)
        while state[0] is not None:
            left_ns = until_ns - kernel().now_ns
            if not blocking or left_ns <= 0:
                return False
            state[2].append(me)
            kernel().wait(None if timeout < 0 else left_ns)
            if me in state[2]:
                state[2].remove(me)
        state[0], state[1] = me, 1
        return True

    def release(self) -> None:
        state = self._state()
        if state[0] is None or (self.again and state[0] is not kernel().current):
            raise RuntimeError("release of a lock that is not held")
        state[1] -= 1
        if state[1] == 0:
            state[0] = None
            if state[2]:
                kernel().wake(state[2].popleft())

    def locked(self) -> bool:
        return self._state()[0] is not None

    def _is_owned(self) -> bool:
        return self._state()[0] is kernel().current

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *why: object) -> None:
        self.release()


class RLock(Lock):
    again = True


class Condition:
    """Of `threading`: as there, `wait` lets the lock go."""

    def __init__(self, lock: Lock | None = None) -> None:
        self._lock = RLock() if lock is None else lock
        self.acquire, self.release = self._lock.acquire, self._lock.release
        self._waiting: deque[Thread] = deque()

    def __enter__(self) -> bool:
        return self._lock.acquire()

    def __exit__(self, *why: object) -> None:
        self._lock.release()

    def wait(self, timeout: float | None = None) -> bool:
        me = kernel().current
        assert me is not None
        self._waiting.append(me)
        self._lock.release()
        kernel().wait(None if timeout is None else max(1, int(timeout * 1e9)))
        told = me not in self._waiting
        if not told:
            self._waiting.remove(me)
        self._lock.acquire()
        return told

    def wait_for(self, predicate: Callable[[], Any], timeout: float | None = None) -> Any:
        until_ns = FOREVER_NS if timeout is None else kernel().now_ns + int(timeout * 1e9)
        while not (found := predicate()) and kernel().now_ns < until_ns:
            self.wait(None if timeout is None else (until_ns - kernel().now_ns) / 1e9)
        return found

    def notify(self, n: int = 1) -> None:
        while n and self._waiting:
            kernel().wake(self._waiting.popleft())
            n -= 1

    def notify_all(self) -> None:
        self.notify(len(self._waiting))


class Event:
    def __init__(self) -> None:
        self._set, self._changed = False, Condition(Lock())

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        self._changed.notify_all()

    def clear(self) -> None:
        self._set = False

    def wait(self, timeout: float | None = None) -> bool:
        with self._changed:
            return bool(self._changed.wait_for(self.is_set, timeout))


class SimulatedThread:
    """Of `threading`."""

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] = lambda: None,
        name: str = "",
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
        *,
        daemon: bool | None = None,
    ) -> None:
        self.name, self.daemon = name or getattr(target, "__name__", "thread"), daemon
        self._call = target, args, kwargs or {}
        self._thread: Thread | None = None

    @property
    def ident(self) -> int | None:
        return None if self._thread is None else id(self._thread)

    def start(self) -> None:
        target, args, kwargs = self._call
        kernel().tick()
        if kernel().now_ns < here().own.get("no memory until", 0):
            raise RuntimeError("can't start new thread")
        self._thread = kernel().start_thread(here(), lambda: target(*args, **kwargs), self.name)

    def join(self, timeout: float | None = None) -> None:
        thread, me = self._thread, kernel().current
        assert thread is not None
        assert me is not None
        if not thread.done:
            thread.joiners.append(me)
            kernel().wait(None if timeout is None else int(timeout * 1e9))

    def is_alive(self) -> bool:
        return self._thread is not None and not self._thread.done


def make_threading() -> StandIn:
    import threading

    return StandIn(
        "threading",
        threading,
        Lock=Lock,
        RLock=RLock,
        Condition=Condition,
        Event=Event,
        Thread=SimulatedThread,
        get_ident=lambda: id(kernel().current),
    )


def make_queue(threading: StandIn, time: StandIn) -> types.ModuleType:
    """The standard library's own, over those threads; its C parts left out."""
    spec = importlib.util.find_spec("queue")
    assert spec is not None
    assert spec.origin is not None
    module = types.ModuleType("queue")
    found = {"threading": threading, "time": time, "_queue": None}
    module.__dict__["__builtins__"] = {**vars(builtins), "__import__": importer(found)}
    with open(spec.origin) as file:
        exec(compile(file.read(), spec.origin, "exec"), module.__dict__)
    return module


class Future:
    """Of `concurrent.futures`."""

    def __init__(self) -> None:
        self._state, self._value, self._error = "waiting", None, None
        self._changed = Condition(Lock())

    def cancel(self) -> bool:
        if self._state == "waiting":
            self._state = "cancelled"
            self._changed.notify_all()
        return self._state == "cancelled"

    def cancelled(self) -> bool:
        return self._state == "cancelled"

    def done(self) -> bool:
        return self._state in ("cancelled", "done")

    def result(self, timeout: float | None = None) -> Any:
        with self._changed:
            self._changed.wait_for(self.done, timeout)
        if self._error is not None:
            raise self._error
        if self._state == "cancelled":
            raise RuntimeError("cancelled")
        return self._value

    def _do(self, call: Callable[[], Any]) -> None:
        if self._state != "waiting":
            return
        self._state = "at work"
        try:
            self._value = call()
        except Killed:
            raise
        except BaseException as error:
            self._error = error
        self._state = "done"
        self._changed.notify_all()

    def __class_getitem__(cls, item: Any) -> Any:
        return cls


class ThreadPoolExecutor:
    """Of `concurrent.futures`; each process has its own threads."""

    def __init__(self, max_workers: int | None = None, thread_name_prefix: str = "") -> None:
        self._most, self._name = max_workers or 4, thread_name_prefix or "pool"
        self._of: dict[int, tuple[deque[Any], list[Thread]]] = {}

    def submit(self, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        waiting, threads = self._of.setdefault(here().pid, (deque(), []))
        future = Future()
        waiting.append((future, lambda: call(*args, **kwargs)))
        if len(threads) < self._most:
            body = lambda: self._work(waiting, threads)  # noqa: E731
            threads.append(kernel().start_thread(here(), body, self._name))
        return future

    def _work(self, waiting: deque[Any], threads: list[Thread]) -> None:
        while waiting:
            future, call = waiting.popleft()
            kernel().wait(kernel().random.randint(1, 200_000))
            future._do(call)
        threads.remove(kernel().current)  # type: ignore[arg-type]

    def map(self, call: Callable[..., Any], *each: Any) -> Iterator[Any]:
        futures = [self.submit(call, *args) for args in zip(*each, strict=False)]
        return iter([future.result() for future in futures])

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        waiting, threads = self._of.get(here().pid, (deque(), []))
        for future, _ in list(waiting) if cancel_futures else ():
            future.cancel()
        while wait and threads:
            kernel().wait(50_000)

    def __enter__(self) -> ThreadPoolExecutor:
        return self

    def __exit__(self, *why: object) -> None:
        self.shutdown()


# ---- processes ------------------------------------------------------------------


class Environ(MutableMapping[str, str]):
    """Of the process that asks."""

    def __getitem__(self, name: str) -> str:
        return here().environ[name]

    def __setitem__(self, name: str, value: str) -> None:
        here().environ[name] = value

    def __delitem__(self, name: str) -> None:
        del here().environ[name]

    def __iter__(self) -> Iterator[str]:
        return iter(here().environ) if kernel().current else iter(())

    def __len__(self) -> int:
        return len(here().environ)

    def copy(self) -> dict[str, str]:
        return dict(here().environ)


class Stream:
    """Standard output or error: what is written is kept."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        here().told.append(text)
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return False

    def fileno(self) -> int:
        raise ValueError("no descriptor")


def leave(code: int) -> None:
    """End this process."""
    kernel().end(here(), int(code))


def no_library(name: str) -> None:
    """What `ctypes.CDLL` finds: no host has a GPU."""
    raise OSError(f"{name}: cannot open shared object file")


class Libc:
    """What `ctypes.PyDLL(None)` gives."""

    def __init__(self, name: None) -> None:
        self.exit = leave


class Logger:
    """The package's logger: its records go to the standard error of their process."""

    level, propagate = 20, False

    def log(self, level: int, message: str, stacklevel: int = 1) -> None:
        Stream().write(f"{message}\n")

    def isEnabledFor(self, level: int) -> bool:
        return True

    def addHandler(self, handler: object) -> None:
        pass

    def removeHandler(self, handler: object) -> None:
        pass

    def setLevel(self, level: int) -> None:
        pass


def make_os(disk_names: dict[str, Any]) -> StandIn:
    import os

    return StandIn(
        "os",
        os,
        environ=Environ(),
        getpid=lambda: here().pid,
        getppid=lambda: 1,
        urandom=lambda count: kernel().random.randbytes(count),
        kill=lambda pid, number: kernel().signal(pid, int(number)),
        _exit=leave,
        cpu_count=lambda: 4,
        sched_getaffinity=lambda pid: {0, 1, 2, 3},
        **disk_names,
    )


def make_signal() -> StandIn:
    import signal

    def handle(number: int, handler: Any) -> Any:
        before = here().handlers.get(int(number), signal.SIG_DFL)
        here().handlers[int(number)] = None if handler == signal.SIG_DFL else handler
        return before

    return StandIn("signal", signal, signal=handle)


# ---- loading --------------------------------------------------------------------


def importer(found: dict[str, Any]) -> Callable[..., Any]:
    """An `__import__` that finds these modules first; None: there is no such module."""

    def simulated(
        name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0
    ) -> Any:
        if level == 0 and name in found:
            if found[name] is None:
                raise ImportError(name)
            return found[name]
        return builtins.__import__(name, globals, locals, fromlist, level)

    return simulated


class Around(NamedTuple):
    """A change that is made of what the package has there."""

    make: Callable[[Any], Any]


class Loader(importlib.abc.Loader):
    """Loads a module of the package with other builtins, and changes it afterwards."""

    def __init__(
        self,
        real: Any,
        builtin_names: dict[str, Any],
        changes: dict[str, Any],
        instead: dict[str, str],
    ) -> None:
        self._real, self._builtins, self._changes = real, builtin_names, changes
        self._instead = instead

    def create_module(self, spec: Any) -> Any:
        return None

    def exec_module(self, module: types.ModuleType) -> None:
        module.__dict__["__builtins__"] = self._builtins
        text = self._instead.get(module.__name__)
        if text is None:
            self._real.exec_module(module)
        else:
            exec(compile(text, self._real.path, "exec"), module.__dict__)
        for name, change in self._changes.get(module.__name__, {}).items():
            around = isinstance(change, Around)
            module.__dict__[name] = change.make(module.__dict__[name]) if around else change

    def __getattr__(self, name: str) -> Any:  # what importlib.resources asks
        return getattr(self.__dict__["_real"], name)


class Finder(importlib.abc.MetaPathFinder):
    """Finds the package's modules for `Loader`."""

    def __init__(self, *told: dict[str, Any]) -> None:
        self._told = told

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name.partition(".")[0] != PACKAGE:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is not None and spec.loader is not None and spec.origin is not None:
            spec.loader = Loader(spec.loader, *self._told)
        return spec


def install(
    found: dict[str, Any], names: dict[str, Any], changes: dict[str, Any], instead: dict[str, str]
) -> None:
    """From now on the package is loaded so.

    Args:
        found: modules by name.
        names: builtins by name.
        changes: module of the package -> what it is to have instead, after it is loaded.
        instead: module of the package -> the text of a source with a defect.
    """
    assert PACKAGE not in sys.modules, "the package is loaded already"
    told = {**vars(builtins), **names, "__import__": importer(found)}
    sys.meta_path.insert(0, Finder(told, changes, instead))
