"""A loop in one process that computes: channels-last, bfloat16 autocast, and a DataLoader whose
workers decode. `python timm_loop.py --compiled ...` compiles the network first.
"""

from __future__ import annotations

import os
import runpy
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from work import Images, arguments, chunks, report, start


class Chunks(Dataset):
    def __init__(self, args) -> None:
        self._args, self._spans, self._images = args, chunks(args), None

    def __len__(self) -> int:
        return len(self._spans)

    def __getitem__(self, at: int) -> np.ndarray:
        self._images = self._images or Images(self._args)  # opened in the worker
        return self._images.chunk(*self._spans[at])


args = arguments()
torch.set_num_threads(args.workers)
file, _, name = args.network.rpartition(":")
network = runpy.run_path(file)[name]().to(memory_format=torch.channels_last)
compute = torch.compile(network) if args.compiled else network


@torch.inference_mode()
def classes(pixels: np.ndarray) -> np.ndarray:
    whole = np.resize(pixels, (args.chunk, *pixels.shape[1:]))  # one shape, for the compiler
    batch = torch.from_numpy(whole).permute(0, 3, 1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = compute(batch.float() / 255)
    return found[: len(pixels)].argmax(1).numpy()


loader = iter(DataLoader(Chunks(args), batch_size=None, num_workers=args.workers))
first = next(loader).numpy()
classes(first)
start_s = start(args)
found = [classes(pixels) for pixels in chain([first], map(torch.Tensor.numpy, loader))]
report(start_s, found)
np.save(Path(args.notes, "classes.npy"), np.concatenate(found))
os._exit(0)  # the loader's workers
