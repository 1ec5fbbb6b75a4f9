"""A static partition: `mpiexec -n 8 python static_loader.py ...`.

Each rank reads its own part with torch's DataLoader.
"""

from __future__ import annotations

import numpy as np
from mpi4py import MPI
from torch.utils.data import DataLoader, Dataset
from work import Images, Worker, arguments, report, start


class Part(Dataset):
    def __init__(self, images: Images, first: int, stop: int, chunk: int) -> None:
        self._images = images
        self._spans = [(i, min(i + chunk, stop)) for i in range(first, stop, chunk)]

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, at: int):
        return self._images.chunk(*self._spans[at])


args, comm = arguments(), MPI.COMM_WORLD
first, stop = (args.images * (comm.rank + i) // comm.size for i in (0, 1))
part = Part(Images(args, first, stop), first, stop, args.chunk)
args.source = "memory"  # the worker is given pixels, whoever read them
worker = Worker(args, comm.rank + 1)
loader = DataLoader(part, batch_size=None)
worker(next(iter(loader)).numpy()[:1])
comm.Barrier()
start_s = start(args)
classes = np.concatenate([worker(pixels.numpy()) for pixels in loader]).astype(np.int64)
counts = np.array([args.images * (r + 1) // comm.size - args.images * r // comm.size
                   for r in range(comm.size)])  # fmt: skip
everything = np.empty(args.images if comm.rank == 0 else 0, np.int64)
comm.Gatherv(classes, (everything, counts))
if comm.rank == 0:
    report(start_s, [everything])
