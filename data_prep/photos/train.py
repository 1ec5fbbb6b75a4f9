"""Train the two networks of efficientnet_lite.py on shards, a few steps each.

The trunk stays as ImageNet left it. The single's last layer learns from the images' features;
the collage network starts from that layer, and its last blocks learn, in a few steps on random
collages, what shrunk images beside others look like.

    python data_prep/photos/train.py SHARDS OUT --side 2 --cell-px 112 --steps 20
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite import Net

from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.grid import Grid
from collage_mpi.shards import ShardSet

TAUGHT = ("trunk._blocks.15.", "trunk._conv_head.", "trunk._bn1.", "classifier.")
BATCH = 4  # collages a step


def as_input(images: np.ndarray) -> torch.Tensor:
    """(n, H, W, 3) uint8 -> (n, 3, H, W) float from 0 to 1."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255


def train_single(images: np.ndarray, labels: np.ndarray, classes: int) -> Net:
    """A new last layer on the features of the whole images."""
    net = Net(classes, None).eval()
    with torch.inference_mode():
        parts = [net.features(as_input(images[k : k + 16])) for k in range(0, len(images), 16)]
    features = torch.cat(parts).flatten(1).clone()  # (n, FEATURES); clone: usable by autograd
    answers = torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(net.classifier.parameters(), lr=0.01, weight_decay=0.05)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(net.classifier(features), answers).backward()
        optimizer.step()
    return net


def train_collage(
    images: np.ndarray, labels: np.ndarray, single: Net, grid: Grid, steps: int
) -> Net:
    """The convolutional network, from the single's last layer, on collages made at random."""
    net = Net(single.classifier.out_features, grid.side).eval()  # norms stay as they are
    net.classifier.load_state_dict(single.classifier.state_dict())
    encoder = Encoder(grid, images.shape[1:])
    cells = encoder.shrink(images)  # (n, cell_px, cell_px, 3) uint8
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name.startswith(TAUGHT))
    taught = [parameter for parameter in net.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(taught, lr=1e-3)
    random = np.random.default_rng(0)
    for step in range(steps):
        chosen = random.integers(0, len(cells), (BATCH, grid.cells))
        collages = np.stack([encoder.paste(list(cells[row])) for row in chosen])
        optimizer.zero_grad()
        logits = net(as_input(collages))  # (BATCH, cells, classes)
        loss = F.cross_entropy(logits.flatten(0, 1), torch.from_numpy(labels[chosen]).flatten())
        loss.backward()
        optimizer.step()
        if step % 5 == 0 or step == steps - 1:
            print(f"step {step + 1} of {steps}: loss {float(loss.detach()):.3f}", flush=True)
    return net


def main() -> None:
    """Read the shards, train both, save what was taught."""
    parser = argparse.ArgumentParser(description="Train both networks, a few steps each.")
    parser.add_argument("shards", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--side", type=int, default=2)
    parser.add_argument("--cell-px", type=int, default=112)
    parser.add_argument("--steps", type=int, default=20)
    args = parser.parse_args()
    torch.manual_seed(0)
    with ShardSet.open([args.shards]) as shards:
        images, labels = shards.read_all()
        names = shards.class_names
    if labels is None or names is None:
        raise SystemExit(f"{args.shards}: labels and class names are needed")
    single = train_single(images, labels, len(names))
    grid = Grid(args.side, args.cell_px)
    collage = train_collage(images, labels, single, grid, args.steps)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, net in (("single", single), ("collage", collage)):
        state = {key: v for key, v in net.state_dict().items() if key.startswith(TAUGHT)}
        torch.save(state, args.out / f"{name}.pt")
    print(f"{args.out}: single.pt and collage.pt")


if __name__ == "__main__":
    main()
