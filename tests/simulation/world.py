"""Jobs of a simulated world: their processes, the launcher, and who watches whom."""

from __future__ import annotations

import ctypes
import gc
import importlib
import os
import sys
import zlib
from collections import ChainMap
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

from tests.simulation import disk, network, standins
from tests.simulation.disk import Disk, SimulatedPath
from tests.simulation.inputs import CHOOSING
from tests.simulation.kernel import FOREVER_NS, MS, SECOND, Host, Kernel, Process
from tests.simulation.network import Network
from tests.simulation.standins import StandIn, here, kernel
from tests.simulation.watch import released, watched
from tests.simulation.witness import Call, images_in

START_LIMIT_NS = 120 * SECOND  # as launch has it
TOLERANT = {"COLLAGE_MPI_FAULT_TOLERANT": "1"}


@dataclass(eq=False)
class Job:
    """One launch of the command on some ranks.

    Attributes:
        code: the launcher's exit code, once all processes have ended.
    """

    kernel: Kernel
    hosts: Sequence[Host]
    words: Sequence[str]
    tolerant: bool
    tells_loss: bool = True
    teams: int = 1
    ranks: list[Process] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    code: int | None = None

    @property
    def settings(self) -> list[str]:
        """The words that are the same wherever the run's folder lies."""
        return [word for word in self.words if "/" not in word]

    def start(self) -> None:
        """Start the ranks, host by host."""
        size = len(self.hosts)
        self.net = Network(self.kernel, size, tells_loss=self.tolerant and self.tells_loss)
        self.net.abort = self._abort
        for rank, host in enumerate(self.hosts):
            local = [r for r, other in enumerate(self.hosts) if other is host]
            environ = {
                "PMI_RANK": str(rank),
                "PMI_SIZE": str(size),
                "MPI_LOCALRANKID": str(local.index(rank)),
                "MPI_LOCALNRANKS": str(len(local)),
                "HYDI_CONTROL_FD": "1",
                "HOME": "/nowhere",
                "PATH": "/usr/bin",
                **(TOLERANT if self.tolerant else {}),
            }
            body = lambda: run_command(self.words)  # noqa: E731
            process = self.kernel.spawn(host, f"rank {rank}", body, environ)
            process.own["network"] = self.net, rank
            process.own["job"] = self
            process.ended.append(self._ended)
            self.ranks.append(process)
            self.net.processes[rank] = process
        self.kernel.after(START_LIMIT_NS, self._check_start)

    def _check_start(self) -> None:
        """A rank that hangs before MPI is up is waited for by all others: their user ends it."""
        if len(self.net.up) < len(self.hosts) and not self.over:
            self.kill("MPI is not up")

    def leads(self, rank: int) -> bool:
        """Whether the rank is a coordinator."""
        return rank % (len(self.ranks) // self.teams) == 0

    @property
    def over(self) -> bool:
        return bool(self.ranks) and not any(map(self._can_end, range(len(self.ranks))))

    def _can_end(self, rank: int) -> bool:
        """Whether a rank is to end by itself. None does that is stopped for good, or whose
        coordinator is, or whose coordinator died before it told where it can be watched: these are
        the launcher's to end."""
        process, first = self.ranks[rank], rank - rank % (len(self.ranks) // self.teams)
        if not process.alive or process.frozen_ns >= FOREVER_NS:
            return False
        above = 0 if rank == first else first  # the lead is the coordinators' coordinator
        if rank == above:
            return True
        if self.ranks[above].alive:
            return self._can_end(above)
        return (rank, above) in self.net.heard

    def kill(self, why: str, number: int = 9) -> None:
        """The launcher ends all ranks that are left."""
        self.kernel.log.append(f"{self.kernel.now_ns / 1e9:.6f} launcher ends all: {why}")
        for process in self.ranks:
            if process.alive:
                self.kernel.signal(process.pid, number)

    def _abort(self, code: int) -> None:
        if self.code is None:
            self.code = code
        self.kernel.after(MS, lambda: self.kill(f"abort with {code}"))

    def _ended(self, process: Process) -> None:
        """As the launchers do it: in a plain world all end with one that did not end well."""
        rank, code = self.ranks.index(process), process.code
        assert code is not None
        early = len(self.net.up) < self.net.size
        badly = rank not in self.net.finalized  # launchers notice it whatever the code
        if self.code is None and code != 0 and (not self.tolerant or rank == 0):
            self.code = code if code > 0 else 128 - code
        if (badly and not self.tolerant) or (early and not self.over):
            pause_ns = self.kernel.random.randint(MS, 3 * SECOND if early else 200 * MS)
            self.kernel.after(pause_ns, lambda: self.kill(f"rank {rank} ended with {code}"))
        if self.over and self.code is None:
            self.code = 0


def run_command(words: Sequence[str]) -> int:
    """The command line, in the process of a rank."""
    from collage_mpi.cli import main

    try:
        code = main(list(words))
    except SystemExit as left:
        code = int(left.code or 0)
    if here().own.get("finalize") is not None:
        here().own["finalize"](code)
    return code


# ---- who watches whom -------------------------------------------------------------


def this_process() -> Any:
    from collage_mpi.system.process_tree import ProcessId

    return ProcessId(here().host.name, here().pid, 1)


def has_ended(process: Any) -> bool | None:
    kernel().tick()
    if process.machine != here().host.name:
        return None
    found = kernel().processes.get(process.pid)
    return found is None or not found.alive


class Monitor:
    """Of a coordinator: it sees the end of its ranks, after a while."""

    def __init__(
        self, size: int, *, one_host: bool, interface: Any = None, ranks: Collection[int]
    ) -> None:
        self._me, (self._net, _) = here(), network.network_of(here())
        self._found: list[Any] = []
        for rank in ranks:
            process = self._net.processes[rank]
            process.ended.append(lambda ended, rank=rank: self._ended(rank, ended))
            if not process.alive:
                self._ended(rank, process)

    def _ended(self, rank: int, process: Process) -> None:
        from collage_mpi.faults.process_monitor import CONNECTION, PROCESS, WORDS, Ended

        layer = PROCESS if process.host is self._me.host else CONNECTION
        sign = Ended(rank, layer, WORDS[layer])
        delay_ns = self._net.kernel.random.randint(0, 50 * MS)
        self._net.kernel.after(delay_ns, lambda: self._found.append(sign))

    def offer(self) -> Any:
        from collage_mpi.faults.tcp_link import Offer

        return Offer(("127.0.0.1",), 1, "0" * 32)

    def look(self) -> list[Any]:
        kernel().tick()
        found, self._found = self._found, []
        return found

    def kill(self, rank: int) -> bool:
        process = self._net.processes[rank]
        if process.host is not here().host:
            return False
        if process.alive:
            kernel().end(process, -9, wait=False)
        return True


class CoordinatorMonitor:
    """Of a worker: it sees the end of its coordinator."""

    def __init__(self, rank: int, gone: Callable[[], None], coordinator: int = 0) -> None:
        self._gone, self._coordinator, self._released = gone, coordinator, False

    def meet(self, host: str, process: Any, offer: Any) -> None:
        net, _ = network.network_of(here())
        me, watched = here(), net.processes[self._coordinator]
        if offer is None and watched.host is not me.host:
            return

        def leave() -> None:
            if not self._released and me.alive:
                kernel().start_thread(me, self._gone, "coordinator gone")

        def ended(process: Process) -> None:
            kernel().after(kernel().random.randint(0, 50 * MS), leave)

        watched.ended.append(ended)
        if not watched.alive:
            ended(watched)

    def release(self) -> None:
        self._released = True


class Modules(ChainMap[str, Any]):
    """`sys.modules`, with MPI once a process has called MPI_Init."""

    def __contains__(self, name: object) -> bool:
        return super().__contains__(name) or (name == "mpi4py.MPI" and "mpi" in here().own)


# ---- what of the package is replaced ------------------------------------------------


def finalize_by(finalize: Callable[[int], object]) -> None:
    here().own["finalize"] = finalize


def leave_world(code: int) -> None:
    finalize = here().own.get("finalize")
    if finalize is not None:
        finalize(code)
        standins.leave(code)


def arm() -> None:
    here().own["armed"] = True


def leave_if_armed(code: int) -> None:
    if here().own.get("armed"):
        standins.leave(code)


def install(instead: dict[str, str] | None = None) -> None:
    """From now on the package is loaded into a simulated world.

    Args:
        instead: module of the package -> the text of a source with a defect.
    """
    import argparse
    import ast
    import concurrent.futures
    import platform
    import shutil
    import socket
    import typing
    from functools import cache

    import jinja2

    found_disk = Disk("/")
    time, threading = standins.make_time(), standins.make_threading()
    found_os = standins.make_os(found_disk.names())
    stream = standins.Stream()
    modules = {
        "time": time,
        "threading": threading,
        "queue": standins.make_queue(threading, time),
        "os": found_os,
        "signal": standins.make_signal(),
        "sys": StandIn("sys", sys, stdout=stream, stderr=stream, modules=Modules(sys.modules)),
        "pathlib": StandIn("pathlib", None, Path=SimulatedPath, PosixPath=SimulatedPath),
        "shutil": StandIn("shutil", shutil, rmtree=_rmtree),
        "socket": StandIn("socket", socket, gethostname=lambda: here().host.name),
        "platform": StandIn("platform", platform, node=lambda: here().host.name),
        "datetime": StandIn(
            "datetime", sys.modules["datetime"], datetime=standins.SimulatedDatetime
        ),
        "uuid": StandIn("uuid", None, uuid4=_uuid4),
        "atexit": StandIn("atexit", None, register=lambda act: here().at_exit.append(act)),
        # each process asks anew, and is told the same: a third of what a seed takes
        "typing": StandIn("typing", typing, get_type_hints=cache(typing.get_type_hints)),
        "ctypes": StandIn("ctypes", ctypes, PyDLL=standins.Libc, CDLL=standins.no_library),
        "gc": StandIn(
            "gc",
            None,
            isenabled=lambda: False,
            **dict.fromkeys(("disable", "freeze", "unfreeze", "collect"), _nothing),
        ),
        "concurrent.futures": StandIn(
            "concurrent.futures",
            concurrent.futures,
            Future=standins.Future,
            ThreadPoolExecutor=standins.ThreadPoolExecutor,
        ),
        "jinja2": StandIn("jinja2", jinja2, Environment=_page_environment()),
        "mpi4py": None,
    }
    changes = {
        "collage_mpi.system.tell": {"LOGGER": standins.Logger()},
        "collage_mpi.system.process_tree": {"this_process": this_process, "has_ended": has_ended},
        "collage_mpi.system.hard_exit": {
            "arm": arm,
            "leave_if_armed": leave_if_armed,
            "finalize_by": finalize_by,
            "leave_world": leave_world,
            "leave": standins.leave,
            "armed": lambda: bool(here().own.get("armed")),
            "remove_shared_memory": lambda *args: [],
        },
        "collage_mpi.job.session": {"Core": standins.Around(watched)},
        "collage_mpi.job.packing": {"Held": standins.Around(released)},
        "collage_mpi.models.null": {"NullPredictor": standins.Around(slow)},
        "collage_mpi.system.table": {"to_text": _table_text},  # no law reads how a table is drawn
        "collage_mpi.commands.parser": {"build_parser": standins.Around(_once)},  # each process's
        "collage_mpi.job.provenance": {"_version": standins.Around(_once)},
        "collage_mpi.job.networks": {
            "WaitingNetwork": standins.Around(partial(partial, sleep=_wait_s))  # no poll
        },
        "collage_mpi.mpi.transport": {
            "open_world": network.open_world,
            "finalize": lambda comm, mpi, code: mpi.Finalize(),
        },
        "collage_mpi.settings.batches": {"BATCHES_A_RANK": 2},  # a seed has few images
        "collage_mpi.bounds.sample": {"CHOOSING": CHOOSING, "LOOK": 4},
        "collage_mpi.results.row_sink": {"RowSink": standins.Around(_in_small_parts)},
        "collage_mpi.job.coordinator": {"ROWS": 16, "WRITE_EVERY_NS": 200 * MS},
        "collage_mpi.faults.process_monitor": {
            "ProcessMonitor": Monitor,
            "CoordinatorMonitor": CoordinatorMonitor,
        },
        "collage_mpi.shards.guard": {"_ask": _ask_here},
    }
    names = {"open": disk.open_file, "print": _print}
    argparse._ = str  # type: ignore[attr-defined]  # looks for translations on the disk
    ast.literal_eval = lru_cache(1024)(ast.literal_eval)  # numpy reads an array's header by it
    standins.install(modules, names, changes, instead or {})
    roles = "job.main", "job.run", "job.worker", "job.teams"
    for name in ("cli", "commands.run", *roles, "report.page", "results.verify"):
        importlib.import_module(f"collage_mpi.{name}")
    gc.collect()
    gc.freeze()
    gc.set_threshold(5000, 20, 20)  # the collector took a fifteenth of what a seed takes


def slow(network: type) -> type:
    """The class of a network that computes for up to 20 ms, if its ranks draw no delays, and that
    fails for a while. In half of the jobs it computes on a device, one batch after another, while
    its rank does other work."""
    from collage_mpi.models.info import Computation

    class Slow(network):  # type: ignore[misc]
        def predict(self, batch: Any) -> Any:
            began_ns = kernel().now_ns
            kernel().wait(_service_ns())
            return self.found(batch, began_ns)

        def begin(self, batch: Any) -> Any:
            own = here().own
            if zlib.crc32(" ".join(own["job"].settings).encode()) % 2:
                return super().begin(batch)
            began_ns = kernel().now_ns
            free_ns = max(own.get("device free", 0), began_ns)
            until_ns = own["device free"] = free_ns + _service_ns()

            def finish() -> Any:
                kernel().wait(max(0, until_ns - kernel().now_ns))
                return self.found(batch, began_ns), {}

            return Computation(finish, lambda: kernel().now_ns >= until_ns)

        def found(self, batch: Any, began_ns: int) -> Any:
            fails = here().own.get("fails kind", "") in ("", self.kind)
            fails &= kernel().now_ns < here().own.get("fails until", 0)
            if fails and here().own.get("has work"):
                raise RuntimeError("the network fails")
            if here().own.get("has work"):
                name = "stage1" if self.kind == "single" and self._wrong else self.kind
                images = tuple(images_in(item, self.cells) for item in batch)
                call = Call(here(), name, began_ns, kernel().now_ns, images)
                here().own["job"].calls.append(call)
            return super().predict(batch)

    return Slow


def _wait_s(seconds: float) -> None:
    kernel().wait(round(seconds * SECOND))


def _service_ns() -> int:
    drawn = "--straggler" in here().own["job"].words
    return 0 if drawn else kernel().random.randint(0, 20) * MS


def _once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, asked once for all jobs: `play.forget` does not see its cache."""
    asked = lru_cache(None)(function)
    return lambda *args: asked(*args)


def _page_environment() -> Callable[..., Any]:
    """Of `jinja2.Environment`: one for all processes, which compiles each template once."""
    import jinja2

    made: list[Any] = []

    def environment(**how: Any) -> Any:
        made[:] = made or [jinja2.Environment(**how)]
        return made[0]

    return environment


def _table_text(drawn: Any, width: int | None = None) -> str:
    """Of `system.table`: the cells of tables, and lines of text, as they are."""
    if hasattr(drawn, "renderables"):
        return "\n".join(map(_table_text, drawn.renderables))
    texts = getattr(drawn, "texts", None)
    return str(drawn) if texts is None else "\n".join(map(" ".join, texts()))


def _in_small_parts(sink: Any) -> Any:
    """The class of what takes rows: in half of the jobs a part has only few of them."""
    init = sink.__init__

    def begin(self: Any, *args: Any, **options: Any) -> None:
        few = kernel().rows_a_part
        init(self, *args, **({"rows_per_part": few, "flush_s": 0.3} if few else {}), **options)

    sink.__init__ = begin
    return sink


def _nothing(*args: Any) -> None:
    pass


def _rmtree(path: Any, ignore_errors: bool = False) -> None:
    standins.WORLD.disk.rmtree(path, ignore_errors)


def _print(*what: Any, sep: str = " ", end: str = "\n", **how: Any) -> None:
    standins.Stream().write(sep.join(map(str, what)) + end)


def _uuid4() -> Any:
    import uuid

    return uuid.UUID(bytes=kernel().random.randbytes(16), version=4)


def _ask_here(task: str, paths: Sequence[Any], limit_s: float | None) -> list[tuple[str, Any]]:
    """Of `shards.guard`: shards are first opened in this process."""
    limits = {name: here().own.pop(name, 0) for name in disk.LIMITS}  # a child has its own
    try:
        return [_answer(task, str(path)) for path in paths]
    finally:
        here().own.update(limits)


def _answer(task: str, path: str) -> tuple[str, Any]:
    """What is said of a shard; of a good one that has not changed since, what was said of it."""
    from collage_mpi.shards.guard import _answer as answer

    key = None
    if task == "inspect" and path.endswith(".h5") and os.path.isfile(path):
        found = os.stat(path)
        key = path, found.st_ino, found.st_mtime_ns, found.st_size
    if key in _GOOD:
        return _GOOD[key]
    said = answer(task, SimulatedPath(path))
    if key is not None and said[0] == "found":
        if len(_GOOD) > 64:
            _GOOD.clear()
        _GOOD[key] = said
    return said


_GOOD: dict[Any, tuple[str, Any]] = {}
