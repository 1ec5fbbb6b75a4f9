"""mpi4py alone: `mpiexec -n 9 python bare_mpi.py ...`.

Who answers gets the next chunk; two are under way to each rank.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
from mpi4py import MPI
from work import Images, Worker, arguments, chunks, report, start

AHEAD = 2


def main() -> None:
    args, comm = arguments(), MPI.COMM_WORLD
    images = None if comm.rank else Images(args)
    one = images.task(0, 1) if images else np.empty(0)
    shape = np.array(one.shape[1:] or (0, 0, 0), np.int64)  # zeros: workers read
    comm.Bcast(shape)
    if images:
        comm.Barrier()  # every worker has its network
        start_s = start(args)
        report(start_s, lead(args, comm, images))
        for rank in range(1, comm.size):
            comm.Send(np.empty(0, np.uint8), rank)
    else:
        serve(comm, Worker(args, comm.rank), shape, args.chunk)


def lead(args, comm, images: Images) -> Iterator[np.ndarray]:
    todo, sends, status = iter(chunks(args)), defaultdict(list), MPI.Status()

    def send(rank: int) -> bool:
        span = next(todo, None)
        if span is None:
            return False
        task = np.ascontiguousarray(images.task(*span)).reshape(-1).view(np.uint8)
        sends[rank].append((comm.Isend(task, rank), task))
        return True

    out = sum(send(rank) for _ in range(AHEAD) for rank in range(1, comm.size))
    while out:
        wait(comm, MPI.ANY_SOURCE, status)
        answer = np.empty(args.chunk, np.int64)
        comm.Recv(answer, status.source, 0, status)
        sends[status.source].pop(0)[0].Wait()
        yield answer[: status.Get_count(MPI.INT64_T)]
        out += send(status.source) - 1


def serve(comm, worker: Worker, shape: np.ndarray, chunk: int) -> None:
    buffer, status = np.empty(max(16, chunk * int(shape.prod())), np.uint8), MPI.Status()
    if shape.any():
        worker(np.zeros((1, *shape), np.uint8))
    comm.Barrier()
    while True:
        wait(comm, 0, status)
        comm.Recv(buffer, 0, 0, status)
        task = buffer[: status.Get_count(MPI.UINT8_T)]
        if len(task) == 0:
            return
        task = task.reshape(-1, *shape) if shape.any() else task.view(np.int64)
        comm.Send(worker(task).astype(np.int64), 0)


def wait(comm, source: int, status) -> None:
    while not comm.Iprobe(source, 0, status):
        time.sleep(5e-5)


main()
