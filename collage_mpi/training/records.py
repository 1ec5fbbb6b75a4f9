"""The inputs and the result of a training run: data in memory, the machine, the trained network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from collage_mpi.training.peers import ALONE, Peers


@dataclass(frozen=True)
class TrainData:
    """The training and the validation images, in memory.

    Attributes:
        images, labels: (n, H, W, C) uint8 and (n,) int64 to train on.
        held_images, held_labels: for validation.
        classes: number of classes.
        origin: fingerprints of the shards, which identify the data on resume.
        teacher_logits: (n, classes) float32 for the images to train on, or None.
        summands, held_summands: (n, views, classes) float32 of both parts. A parity network
            learns their sums; None for other networks.
        first_weights: tensors to start from, or None for random ones.
        first_normalisation: mean and std of pixels / 255 that belong to them, or None.
    """

    images: np.ndarray
    labels: np.ndarray
    held_images: np.ndarray
    held_labels: np.ndarray
    classes: int
    origin: tuple[str, ...] = ()
    teacher_logits: np.ndarray | None = None
    summands: np.ndarray | None = None
    held_summands: np.ndarray | None = None
    first_weights: Mapping[str, np.ndarray] | None = None
    first_normalisation: dict[str, list[float]] | None = None


@dataclass(frozen=True)
class Machine:
    """What may change between sessions of one run.

    Attributes:
        device: of this process.
        threads: CPU threads of this process.
        checkpoint: written by the lead, read by all; None for none.
        resume: whether to continue from the checkpoint.
        peers: the processes that share the steps.
        on_epoch: called with the history after each epoch, on the lead.
    """

    device: str = "cpu"
    threads: int = 1
    checkpoint: Path | None = None
    resume: bool = False
    peers: Peers = ALONE
    on_epoch: Callable[[list[dict[str, float]]], None] | None = None


@dataclass(frozen=True)
class Trained:
    """The result of a training run.

    Attributes:
        network: in eval mode, on the CPU.
        normalisation: mean and std of the training pixels / 255, per channel, or those that
            the first weights were trained with.
        history: one record an epoch.
        seconds: spent over all sessions.
        precision: what "auto" became.
        epoch: whose weights were kept.
    """

    network: torch.nn.Module
    normalisation: dict[str, list[float]]
    history: list[dict[str, float]]
    seconds: float
    precision: str
    epoch: int
