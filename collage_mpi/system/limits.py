"""Recognises exceptions that mean a limit of the machine, and turns them into messages.

A limit (file descriptors, memory, threads) may be met at any line of the program. So only the
outermost handlers look for one: the command line, the coordinators, and the handler around a rank's
whole work.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from collage_mpi.errors import CollageError, EnvironmentFault

MOST_DESCRIPTORS = 1 << 16  # looked at, one by one: a list of them would need a descriptor
NO_THREAD = "can't start new thread"
MIB = 1 << 20
M_ARENA_MAX = -8  # of malloc.h


def raise_descriptor_limit() -> None:
    """Raise the soft limit of descriptors, usually 1,024, as far as this process may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def share_one_heap() -> None:
    """Let all threads of this process, and pyarrow, use one heap. By default glibc gives each
    thread heaps of its own, pyarrow has another one, and each keeps what it once needed.
    """
    with suppress(AttributeError, OSError):  # another C library, or none that can be opened
        ctypes.CDLL(None).mallopt(M_ARENA_MAX, 1)
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")  # read when it first allocates


def fault_of(error: BaseException) -> CollageError | None:
    """The message for an exception that was not handled; None if it is a defect of this package.

    The message is about a limit of the machine if one was met, or it is an error of this package,
    or the system's message about a file or the output, such as a name that is too long.
    """
    limit = limit_met(error)
    if limit is not None:
        return limit
    if isinstance(error, CollageError):
        return error
    if not isinstance(error, OSError):
        return None
    if error.filename is not None:
        return EnvironmentFault(f"{error.filename}: {error.strerror or error}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return EnvironmentFault(f"the output cannot be written: {error.strerror}")
    return None


def limit_met(error: BaseException) -> EnvironmentFault | None:
    """The limit of the machine that caused the exception, with its value and use; or None.

    A lack of descriptors is found even if an error of this package hides it: a file that could not
    be opened for this reason is not damaged.
    """
    told = ""
    for cause in _causes(error):
        number = cause.errno if isinstance(cause, OSError) else None
        if number == errno.EMFILE:
            told = _descriptors()
        elif number == errno.ENFILE:
            told = _descriptors_of_all()
    if isinstance(error, MemoryError) or _is(error, errno.ENOMEM):
        told = _memory()
    elif _is(error, errno.EAGAIN) or (isinstance(error, RuntimeError) and NO_THREAD in str(error)):
        told = _threads()
    if not told:
        return None
    kind = "" if isinstance(error, CollageError) else type(error).__name__
    where = ": ".join(filter(None, (kind, str(error))))
    return EnvironmentFault(f"{told} It was met here: {where}")


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    seen: set[int] = set()  # an error may be raised from itself
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        hidden = None if cause.__suppress_context__ else cause.__context__
        cause = cause.__cause__ or hidden


def _is(error: BaseException, number: int) -> bool:
    """Compares the text too, because a non-blocking stream raises EAGAIN with a text of its own."""
    return isinstance(error, OSError) and (
        (error.errno, error.strerror) == (number, os.strerror(number))
    )


def _descriptors() -> str:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    used = 0
    for number in range(min(soft, MOST_DESCRIPTORS)):
        with suppress(OSError):
            os.fstat(number)
            used += 1
    most = f"at most {hard:,} without an administrator" if hard != resource.RLIM_INFINITY else "any"
    return (
        f"This process has no file descriptor left: {used:,} are in use now and `ulimit -n` "
        f"allows {soft:,}. Raise the limit ({most}) and start again."
    )


def _descriptors_of_all() -> str:
    use = ""
    with suppress(OSError, ValueError):  # to read it takes a descriptor
        used, _, most = Path("/proc/sys/fs/file-nr").read_text().split()
        use = f": {int(used):,} are in use now and the limit is {int(most):,}"
    return (
        f"This machine has no file descriptor left for any process{use} (/proc/sys/fs/file-max). "
        "End other programs or ask the machine's administrator, then start again."
    )


def _memory() -> str:
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    use, resident = (size // MIB for size in _sizes_bytes())
    if limit != resource.RLIM_INFINITY:
        found = f"it uses {use:,} MiB of address space now and `ulimit -v` allows {limit // MIB:,}"
        return f"This process has no memory left: {found} MiB. Raise the limit and start again."
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB
    found = f"it uses {resident:,} MiB now and the machine has {whole:,} MiB for all processes"
    return f"This process has no memory left: {found}. Start fewer ranks here, or free memory."


def _threads() -> str:
    limit, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    most = "any number" if limit == resource.RLIM_INFINITY else f"{limit:,}"
    told = (
        f"No further thread or process can be started: this user has {_threads_of_user():,} now "
        f"and `ulimit -u` allows {most}."
    )
    if resource.getrlimit(resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        return f"{told} Raise the limit, or end other programs, and start again."
    return f"{told} A thread needs memory too. {_memory()}"


def _sizes_bytes() -> tuple[int, int]:
    """The address space of this process, and its part in memory; 0 if unknown."""
    try:
        pages = Path("/proc/self/statm").read_text().split()
    except OSError:
        return 0, 0
    page_bytes = os.sysconf("SC_PAGE_SIZE")
    return int(pages[0]) * page_bytes, int(pages[1]) * page_bytes


def _threads_of_user() -> int:
    found = 0
    for task in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it ended while we looked
            if task.stat().st_uid == os.getuid():
                found += len(os.listdir(task / "task"))
    return found
