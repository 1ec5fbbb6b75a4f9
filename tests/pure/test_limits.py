"""Limits of the machine: exit code 3 with what ran out, its limit and its use, and no traceback."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from collage_mpi import cli
from collage_mpi.errors import DataFault, EnvironmentFault, ExitCode, UsageError
from collage_mpi.job import main as job_main
from collage_mpi.results import row_sink
from collage_mpi.results.columns import Form
from collage_mpi.rows import IMAGES
from collage_mpi.system import limits
from collage_mpi.system.limits import fault_of, limit_met

POOL = "ARROW_DEFAULT_MEMORY_POOL"
SHARD = Path(cli.__file__).parent / "data" / "fashion_demo.h5"


def refused(number: int, *more: str) -> OSError:
    return OSError(number, os.strerror(number), *more)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (refused(errno.EMFILE), r"no file descriptor left: \d+ are in use now and `ulimit -n` al"),
        (refused(errno.EMFILE, "a.h5"), r"no file descriptor left: .*'a.h5'"),
        (refused(errno.ENFILE), r"for any process: [\d,]+ are in use now and the limit is [\d,]+"),
        (refused(errno.ENOMEM), r"no memory left: it uses [\d,]+ MiB"),
        (MemoryError(), r"no memory left: it uses [\d,]+ MiB"),
        (refused(errno.EAGAIN), r"this user has [\d,]+ now and `ulimit -u` allows"),
        (RuntimeError("can't start new thread"), r"this user has [\d,]+ now and `ulimit -u` all"),
    ],
)
def test_what_ran_out_its_limit_and_its_use_are_told(error: Exception, words: str) -> None:
    fault = fault_of(error)
    assert isinstance(fault, EnvironmentFault)
    assert isinstance(limit_met(error), EnvironmentFault)
    with pytest.raises(EnvironmentFault, match=words):
        raise fault


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("boom"),
        BlockingIOError(errno.EAGAIN, "write could not complete without blocking", 0),
        OSError("no number"),
        KeyError("x"),
    ],
)
def test_anything_else_stays_a_defect(error: Exception) -> None:
    assert fault_of(error) is None
    assert limit_met(error) is None


def hidden(cause: BaseException) -> DataFault:
    try:
        raise DataFault("a.h5: cannot be opened as HDF5") from cause
    except DataFault as fault:
        return fault


def test_a_file_that_could_not_be_opened_for_want_of_descriptors_is_not_damaged() -> None:
    fault = fault_of(hidden(refused(errno.EMFILE)))
    assert isinstance(fault, EnvironmentFault)
    assert str(fault).startswith("This process has no file descriptor left")
    assert str(fault).endswith("It was met here: a.h5: cannot be opened as HDF5")
    for other in (MemoryError(), refused(errno.ENOENT)):  # a damaged header may ask for any size
        told = hidden(other)
        assert fault_of(told) is told


def test_want_of_descriptors_is_found_behind_a_part_that_cannot_be_written(
    tmp_path: Path, monkeypatch
) -> None:
    def refuses(*_: object) -> None:
        raise refused(errno.EMFILE)

    monkeypatch.setattr(row_sink.parts, "write_part", refuses)
    thread = row_sink.PartThread(tmp_path, 1, None, Form())
    thread.put(IMAGES, memoryview(b""))
    thread.end()
    assert thread.fault is not None
    fault = fault_of(thread.fault)
    assert str(fault).startswith("This process has no file descriptor left")
    assert "repeat the command" in str(fault)


def test_a_limit_of_address_space_is_told_with_threads_too(monkeypatch) -> None:
    known = {resource.RLIMIT_AS: 300 << 20, resource.RLIMIT_NPROC: 77}
    monkeypatch.setattr(limits.resource, "getrlimit", lambda which: (known[which],) * 2)
    (threads, memory) = (
        str(limit_met(error)) for error in (RuntimeError("can't start new thread"), MemoryError())
    )
    assert "`ulimit -u` allows 77" in threads
    assert "`ulimit -v` allows 300 MiB" in threads
    assert "`ulimit -v` allows 300 MiB" in memory


def test_a_command_without_descriptors_ends_in_one_message() -> None:
    """The checker of shards cannot be started: with 326 connections to a rank's port it was so."""
    program = (
        "import os, resource, sys; from collage_mpi import cli, shards\n"
        "import collage_mpi.commands.prep, collage_mpi.shards.guard\n"
        "hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))\n"
        "held = [os.dup(0) for _ in range(60 - len(os.listdir('/proc/self/fd')))]\n"
        f"sys.exit(cli.main(['prep', 'inspect', {str(SHARD)!r}]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == ExitCode.ENVIRONMENT, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("collage-mpi prep: This process has no file descriptor left: ")
    assert "`ulimit -n` allows 64. Raise the limit" in done.stderr


def test_an_error_that_is_raised_from_itself_has_one_cause():
    error = UsageError("wrong")
    with pytest.raises(UsageError) as raised:
        raise error from error
    assert fault_of(raised.value) is error


@pytest.mark.parametrize("shared", [True, False])
def test_all_threads_of_rank_0_and_pyarrow_use_one_heap(shared: bool, tmp_path: Path) -> None:
    code = f"""
import ctypes, threading
from collage_mpi.system.limits import share_one_heap
if {shared}:
    share_one_heap()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.fopen.restype = ctypes.c_void_p, ctypes.c_void_p
together = threading.Barrier(4)
def take():
    together.wait()
    for _ in range(100):
        libc.malloc(1000)
    together.wait()
threads = [threading.Thread(target=take) for _ in range(4)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
stream = ctypes.c_void_p(libc.fopen(b"{tmp_path}/heaps", b"w"))
libc.malloc_info(0, stream)
libc.fclose(stream)
import pyarrow
print(pyarrow.default_memory_pool().backend_name)
"""
    usual = {name: value for name, value in os.environ.items() if name != POOL}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=usual, capture_output=True, text=True, check=True)
    heaps = (tmp_path / "heaps").read_text().count("<heap nr=")
    assert (heaps == 1, done.stdout == "system\n") == (shared, shared)


@pytest.mark.parametrize(("rank", "shared"), [(None, True), (0, True), (1, False)])
def test_rank_0_shares_one_heap_before_its_threads_begin(rank, shared, monkeypatch) -> None:
    done: list[str] = []

    def opened(**_: object) -> None:
        done.append("MPI")
        raise EnvironmentFault("no MPI")

    monkeypatch.setattr(job_main.StopFlag, "install", lambda self: None)
    monkeypatch.setattr(job_main, "fault_tolerant_launch", lambda: False)
    monkeypatch.setattr(job_main, "launcher_rank", lambda: rank)
    monkeypatch.setattr(job_main, "report", lambda **_: None)
    monkeypatch.setattr(job_main, "share_one_heap", lambda: done.append("heap"))
    monkeypatch.setattr(job_main, "open_world", opened)
    with pytest.raises(EnvironmentFault, match="no MPI"):
        job_main.run_world("run", lambda *_: 0)
    assert done == (["heap", "MPI"] if shared else ["MPI"])
