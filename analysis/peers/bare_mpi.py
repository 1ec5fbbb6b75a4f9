"""mpi4py alone: `mpiexec -n 9 python bare_mpi.py ...`.

Who answers gets the next chunk; two are under way to each rank.
"""

from __future__ import annotations

import time

import numpy as np
from mpi4py import MPI
from work import Images, Worker, arguments, chunks, report

AHEAD = 2


def main() -> None:
    args, comm = arguments(), MPI.COMM_WORLD
    images = None if comm.rank else Images(args)
    shape = np.array(images.chunk(0, 1).shape[1:] if images else (0, 0, 0), np.int64)
    comm.Bcast(shape)
    if images:
        lead(args, comm, images)
    else:
        serve(comm, Worker(args, comm.rank), np.empty((args.chunk, *shape), np.uint8))


def lead(args, comm, images: Images) -> None:
    todo = iter(chunks(args))
    answers = {r: np.empty(args.chunk, np.int64) for r in range(1, comm.size)}
    out, rows, sends = 0, 0, {}
    comm.Barrier()  # every worker has its network
    start_s = time.monotonic()

    def send(rank: int) -> bool:
        span = next(todo, None)
        if span is None:
            return False
        pixels = np.ascontiguousarray(images.chunk(*span))
        sends.setdefault(rank, []).append((comm.Isend(pixels, rank), pixels))
        return True

    for _ in range(AHEAD):
        out += sum(send(rank) for rank in range(1, comm.size))
    status = MPI.Status()
    while out:
        while not comm.Iprobe(MPI.ANY_SOURCE, 0, status):
            time.sleep(5e-5)
        rank = status.source
        comm.Recv(answers[rank], rank, 0, status)
        sends[rank].pop(0)[0].Wait()
        rows += status.Get_count(MPI.INT64_T)
        out += send(rank) - 1
    report(args, rows, start_s)
    for rank in range(1, comm.size):
        comm.Send(np.empty(0, np.uint8), rank)


def serve(comm, worker: Worker, buffer: np.ndarray) -> None:
    worker(buffer[:1])
    comm.Barrier()
    status = MPI.Status()
    while True:
        while not comm.Iprobe(0, 0, status):
            time.sleep(5e-5)
        comm.Recv(buffer, 0, 0, status)
        n = status.Get_count(MPI.UINT8_T) // buffer[0].size
        if n == 0:
            return
        comm.Send(worker(buffer[:n]).astype(np.int64), 0)


main()
