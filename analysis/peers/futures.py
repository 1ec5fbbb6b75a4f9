"""mpi4py.futures: `mpiexec -n 9 python -m mpi4py.futures futures.py ...`, as its manual has it."""

from __future__ import annotations

from mpi4py import MPI
from mpi4py.futures import MPIPoolExecutor
from work import Images, Worker, arguments, report, start

WORKER: list[Worker] = []


def begin(args) -> None:
    WORKER.append(Worker(args, MPI.COMM_WORLD.rank))


def classify(task):
    return WORKER[0](task)


def main() -> None:
    args = arguments()
    images = Images(args)
    with MPIPoolExecutor(initializer=begin, initargs=(args,)) as executor:
        executor.bootup(wait=True)
        list(executor.map(classify, [images.task(0, 1)] * args.workers))
        start_s = start(args)
        # args.chunk images travel together: its own chunksize of single images
        single = (images.task(i, i + 1) for i in range(args.images))
        report(start_s, executor.map(classify, single, chunksize=args.chunk, unordered=True))


if __name__ == "__main__":
    main()
