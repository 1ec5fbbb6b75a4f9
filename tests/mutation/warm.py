"""A plugin of pytest: tests collected once, and run in forks of this process, mutant by mutant.

To import the package and to collect its tests takes longer than most mutants live. So a line of
JSON on $WARM_IN names a mutant, which is in the file already, and its tests; a fork puts its code
into the functions that there are and runs the tests; the answer goes to $WARM_OUT. What runs at
import cannot be changed afterwards: the answer "cold" asks for a new process that imports it.

A hang is told by CPU and never by a clock, as others may use the machine: a test that takes ten
times what it took and FIRST_S, or processes that for a minute have mostly slept, though they may
look for something now and then.
"""

from __future__ import annotations

import gc
import json
import os
import select
import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FunctionType

import pytest
from hypothesis import Phase, settings
from mutants import Mutant

from collage_mpi.system.process_tree import family_of, process_table

STILL_S = 60.0
BUSY = 0.5  # of the time: at work, or kept from it by others
FIRST_S = 10.0  # of a test's CPU: what is imported late falls to the first test of a fork
LOOK_EVERY_S = 2.0


@pytest.hookimpl(tryfirst=True)
def pytest_collection(session):
    """An example that fails need not be made small."""
    phases = (Phase.explicit, Phase.generate)
    settings.register_profile("mutants", settings.get_profile("any machine"), phases=phases)
    settings.load_profile("mutants")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session):
    requests = os.fdopen(int(os.environ["WARM_IN"]))
    answers = os.fdopen(int(os.environ["WARM_OUT"]), "w")
    items = {item.nodeid: item for item in session.items}
    functions = [each for each in gc.get_objects() if isinstance(each, FunctionType)]
    gc.freeze()
    print("ready", file=answers, flush=True)
    for line in requests:
        print(json.dumps(in_fork(json.loads(line), items, functions)), file=answers, flush=True)
    return True


def in_fork(
    request: dict, items: Mapping[str, pytest.Item], functions: Sequence[FunctionType]
) -> dict:
    """What became of a request, as `_answer` has it, or a hang."""
    chosen = [items[test] for test in request["tests"]]
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.setsid()
        try:
            answer = _answer(request, chosen, functions)
        except BaseException as error:
            answer = {"became": "killed", "by": repr(error)[:300]}
        os.write(write, json.dumps(answer).encode())
        os._exit(0)
    os.close(write)
    hung = _hung(pid, 60.0 + 10 * sum(request["seconds"]))
    os.set_blocking(read, False)  # a process that a test left may hold the other end
    try:
        said = os.read(read, 1 << 16)
    except BlockingIOError:
        said = b""
    os.close(read)
    if hung:
        return {"became": "hung", "by": ""}
    return json.loads(said) if said else {"became": "killed", "by": "the process ended"}


def _hung(pid: int, limit_s: float) -> bool:
    """Wait for a process, and end it and all below it where they hang."""
    end = os.pidfd_open(pid)
    hung, looked_s, was_s, since_s = False, time.monotonic(), 0.0, time.monotonic()
    while not hung and not select.select([end], [], [], LOOK_EVERY_S)[0]:
        family, now_s = family_of(pid, process_table()), time.monotonic()
        active_s = sum(map(_active_s, family))
        if active_s < was_s or active_s - was_s > BUSY * (now_s - looked_s):  # or one has ended
            since_s = now_s
        looked_s, was_s = now_s, active_s
        hung = sum(map(_cpu_s, family)) > limit_s or now_s - since_s > STILL_S
    os.close(end)
    for each in family_of(pid, process_table()) | {pid}:
        with suppress(ProcessLookupError):
            os.kill(each, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    return hung or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGPROF)


def _cpu_s(pid: int) -> float:
    """What a process has used, and those that it waited for."""
    try:
        words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:  # it has ended
        return 0.0
    return sum(map(int, words[11:15])) / os.sysconf("SC_CLK_TCK")


def _active_s(pid: int) -> float:
    """How long the threads of a process have run, or waited for a core."""
    total_ns = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):
            total_ns += sum(map(int, thread.read_text().split()[:2]))
    return total_ns / 1e9


class _First:
    """The first test that fails."""

    def __init__(self) -> None:
        self.failed = ""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self.failed:
            self.failed = f"{report.nodeid} ({report.when})"


def _answer(
    request: dict, chosen: Sequence[pytest.Item], functions: Sequence[FunctionType]
) -> dict:
    if request["mutant"] is not None and not put_in(Mutant(**request["mutant"]), functions):
        return {"became": "cold", "by": ""}
    null = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(null, stream)
    first = _First()
    chosen[0].config.pluginmanager.register(first)
    for item, after, seconds in zip(chosen, [*chosen[1:], None], request["seconds"], strict=True):
        signal.setitimer(signal.ITIMER_PROF, max(FIRST_S, 10 * seconds))  # ends the process
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=after)
        if first.failed:
            return {"became": "killed", "by": first.failed}
    return {"became": "lived", "by": ""}


def put_in(mutant: Mutant, functions: Sequence[FunctionType]) -> bool:
    """Whether the mutant's code is now that of the functions that there are."""
    path = str(Path(mutant.file).resolve())
    now = Path(path).read_bytes()
    was = replace(mutant, before=mutant.after, after=mutant.before).applied(now)
    pairs = [*_functions(compile(was, path, "exec"), compile(now, path, "exec"))]
    changed = {_place(pair[0]): pair[1] for pair in pairs if pair and pair[0] != pair[1]}
    there = [f for f in functions if f.__code__.co_filename == path]
    there = [f for f in there if _place(f.__code__) in changed]
    if None in pairs or not changed or {_place(f.__code__) for f in there} != changed.keys():
        return False
    try:
        for function in there:
            function.__code__ = changed[_place(function.__code__)]
    except ValueError:  # it uses other names of the function around it
        return False
    return True


def _place(code: CodeType) -> tuple[str, int]:
    return code.co_name, code.co_firstlineno


def _functions(was: CodeType, now: CodeType) -> Iterator[tuple[CodeType, CodeType] | None]:
    """Each function of a module and its classes in both; `None` where they differ elsewhere."""
    inner = [[c for c in code.co_consts if isinstance(c, CodeType)] for code in (was, now)]
    own = [[c for c in code.co_consts if not isinstance(c, CodeType)] for code in (was, now)]
    rest = [repr((code.co_code, code.co_names, c)) for code, c in zip((was, now), own, strict=True)]
    if rest[0] != rest[1] or len(inner[0]) != len(inner[1]):
        yield None
        return
    for a, b in zip(*inner, strict=True):
        if a.co_flags & CO_OPTIMIZED:
            yield a, b
        else:
            yield from _functions(a, b)
