"""Pictures to classes with torch and timm alone: what `collage-mpi classify` is measured against.

    python analysis/plain_loop.py PICTURES NETWORK WEIGHTS OUT.csv

It reads in one process, in batches of 32, and writes file, class and probability of each picture.
"""

import csv
import sys
from pathlib import Path

import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

pictures, name, weights, out = sys.argv[1:]
torch.set_num_threads(1)
network = timm.create_model(name, checkpoint_path=weights).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network))
files = sorted(Path(pictures).rglob("*.jpg"))


class Pictures(Dataset):
    def __len__(self):
        return len(files)

    def __getitem__(self, at):
        return transform(Image.open(files[at]).convert("RGB"))


with open(out, "w") as rows, torch.inference_mode():
    writer, done = csv.writer(rows), 0
    for batch in DataLoader(Pictures(), batch_size=32):
        best = network(batch).softmax(1).max(1)
        for probability, predicted in zip(*map(torch.Tensor.tolist, best), strict=True):
            writer.writerow([files[done], predicted, probability])
            done += 1
