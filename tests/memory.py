"""How much memory something takes at its most."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from multiprocessing import get_context


def peak_bytes(work: Callable[[], object]) -> int:
    """Bytes that Python and numpy hold at most while `work` runs in a process of its own.

    That process has one thread and counts until it ends: to stop counting beside
    another thread, as pytest-xdist has one, may crash Python before 3.12
    (https://github.com/python/cpython/issues/128679).
    """
    fork = get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)

    def counted() -> None:
        tracemalloc.start()
        work()
        sender.send(tracemalloc.get_traced_memory()[1])

    process = fork.Process(target=counted)
    process.start()
    sender.close()
    process.join()
    assert process.exitcode == 0, "see the traceback above"
    return receiver.recv()
