"""A static partition: `mpiexec -n 8 python static_loader.py ...`.

Each rank reads its own part with torch's DataLoader.
"""

from __future__ import annotations

import time

import numpy as np
from mpi4py import MPI
from torch.utils.data import DataLoader, Dataset
from work import Images, Worker, arguments, report


class Part(Dataset):
    def __init__(self, images: Images, first: int, stop: int, chunk: int) -> None:
        self.images, self.spans = (
            images,
            [(i, min(i + chunk, stop)) for i in range(first, stop, chunk)],
        )

    def __len__(self) -> int:
        return len(self.spans)

    def __getitem__(self, at: int):
        return self.images.chunk(*self.spans[at])


args, comm = arguments(), MPI.COMM_WORLD
worker = Worker(args, comm.rank + 1)
first, stop = (args.images * (comm.rank + i) // comm.size for i in (0, 1))
loader = DataLoader(Part(Images(args), first, stop, args.chunk), batch_size=None)
worker(next(iter(loader)).numpy())
comm.Barrier()
start_s = time.monotonic()
rows = sum(len(worker(pixels.numpy())) for pixels in loader)
total = np.zeros(1, np.int64)
comm.Reduce(np.array([rows], np.int64), total)
if comm.rank == 0:
    report(args, int(total[0]), start_s)
