"""Makes many shards at once, in processes of this host. The processes are started anew and never
forked, because a fork after MPI_Init hangs.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

from collage_mpi.errors import EnvironmentFault
from collage_mpi.prep.plan import ShardJob
from collage_mpi.prep.work import ShardReport, make_shard, sweep_drafts
from collage_mpi.system.process_tree import sheltered

LOOK_S = 0.2  # how often progress is looked at

_done: Any = None  # in a child: pictures done by all children, shared


def make_shards(
    jobs: Sequence[ShardJob],
    workers: int,
    overwrite: bool = False,
    advance: Callable[[int], None] = lambda n: None,
) -> list[ShardReport]:
    """Make every shard. The first failure ends all work and leaves finished shards complete.

    Args:
        jobs: the shards to make; no other process may make them at the same time.
        workers: number of processes; 1 works in this process.
        advance: called now and then with how many more pictures are done.

    Raises:
        DataFault, EnvironmentFault: as `make_shard`; also if a process was killed.
    """
    try:
        if min(workers, len(jobs)) <= 1:
            return [make_shard(job, overwrite, advance) for job in jobs]
        return _in_processes(jobs, min(workers, len(jobs)), overwrite, advance)
    except BaseException:
        for job in jobs:
            sweep_drafts(job.path)
        raise


def _in_processes(
    jobs: Sequence[ShardJob], workers: int, overwrite: bool, advance: Callable[[int], None]
) -> list[ShardReport]:
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(counter,))
    told = 0
    with _noted_interrupts() as interrupted:
        try:
            with sheltered(signal.SIGINT):  # Ctrl-C reaches them too, in the midst of imports
                futures = [pool.submit(_work, job, overwrite) for job in jobs]
            left: set[Future[ShardReport]] = set(futures)
            while left:
                ended, left = wait(left, LOOK_S, FIRST_COMPLETED)
                if interrupted():
                    raise KeyboardInterrupt
                for future in ended:
                    future.result()  # a failure ends all
                count = counter.value
                advance(count - told)
                told = count
            pool.shutdown()
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise EnvironmentFault(
                "a process of this preparation was killed (out of memory?). The same command goes "
                "on from the finished shards; --workers with fewer processes takes less memory"
            ) from error
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                child.terminate()
                child.join()


@contextmanager
def _noted_interrupts() -> Iterator[Callable[[], bool]]:
    """Within this context SIGINT and SIGTERM are only noted, not raised.

    An exception while `wait` holds the locks of the futures would leave them locked, and this
    process would wait for the pool's thread for ever.
    """
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda which, _: noted.append(which)) for number in signals]
    try:
        yield lambda: bool(noted)
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def _start(counter: Any) -> None:
    """Runs first in each child: the parent handles interrupts, and the child ends with this
    process.
    """
    global _done
    _done = counter
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def _work(job: ShardJob, overwrite: bool) -> ShardReport:
    def count(images: int) -> None:
        with _done.get_lock():
            _done.value += images

    return make_shard(job, overwrite, count)
