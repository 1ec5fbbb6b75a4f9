"""The training loop: SGD with Nesterov momentum under a one-cycle schedule.

Owns: steps, validation after each epoch, when checkpoints are written.
Does not know: shards, the command line, where the weights go.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from collage_mpi.errors import DataFault
from collage_mpi.models.collage_net import build_network
from collage_mpi.models.resnet import channels_last
from collage_mpi.training.batches import Batch, BatchMaker, plain_batches
from collage_mpi.training.checkpoint import load_checkpoint, save_checkpoint
from collage_mpi.training.peers import ALONE, Peers
from collage_mpi.training.progress import TrainingProgress
from collage_mpi.training.settings import TrainSettings, learning_rate_at

CHECKPOINT_EVERY_S = 60.0
MOMENTUM = 0.9


@dataclass(frozen=True)
class TrainData:
    """The two parts of the shards, in memory.

    Attributes:
        images, labels: (n, H, W, C) uint8 and (n,) int64 to train on.
        held_images, held_labels: the validation part.
        classes: number of classes.
        origin: fingerprints of the shards, to know the data again on resume.
    """

    images: np.ndarray
    labels: np.ndarray
    held_images: np.ndarray
    held_labels: np.ndarray
    classes: int
    origin: tuple[str, ...] = ()


@dataclass(frozen=True)
class Machine:
    """What may change between sessions of one run.

    Attributes:
        device: of this process.
        threads: of this process on the CPU.
        checkpoint: written by the lead, read by all; None for none.
        resume: go on from the checkpoint.
        peers: the processes that share the steps.
    """

    device: str = "cpu"
    threads: int = 1
    checkpoint: Path | None = None
    resume: bool = False
    peers: Peers = ALONE


@dataclass(frozen=True)
class Trained:
    """What training gives.

    Attributes:
        network: in eval mode, on the CPU.
        normalisation: mean and std of the training pixels / 255, per channel.
        history: one record an epoch.
        seconds: spent over all sessions.
        precision: what "auto" became.
    """

    network: torch.nn.Module
    normalisation: dict[str, list[float]]
    history: list[dict[str, float]]
    seconds: float
    precision: str


class Trainer:
    """One training run; `run` makes all steps that are left."""

    def __init__(self, data: TrainData, settings: TrainSettings, machine: Machine) -> None:
        torch.set_num_threads(machine.threads)
        torch.manual_seed(settings.seed)
        self.settings, self.machine, self.data = settings, machine, data
        self.peers = machine.peers
        self.device = torch.device(machine.device)
        self.maker = BatchMaker(data.images, data.labels, settings)
        self.part = self.peers.part(self.maker.inputs_per_step)
        lead = self.peers.lead  # it alone validates
        self.held = plain_batches(data.held_images, data.held_labels, settings) if lead else []
        self.precision = resolve_precision(settings.precision, self.device)
        self.normalisation = pixel_statistics(data.images)
        channels = data.images.shape[3]
        shape = (1, channels, 1, 1)
        self._mean = torch.tensor(self.normalisation["mean"]).reshape(shape).to(self.device)
        self._std = torch.tensor(self.normalisation["std"]).reshape(shape).to(self.device)
        network = build_network(settings.architecture, channels, data.classes, settings.side)
        self.network = channels_last(network.to(self.device))
        self.optimizer = make_optimizer(self.network, settings)
        self.steps = settings.epochs * self.maker.steps_per_epoch
        self.history: list[dict[str, float]] = []
        self.done = 0
        self._earlier_s = 0.0
        self._started = self._saved = time.monotonic()
        if machine.resume and machine.checkpoint is not None:
            self._restore(machine.checkpoint)
        self.model = self.peers.wrap(self.network, self.device)  # its backward adds up all parts

    def run(self) -> Trained:
        """Train to the end, or from the checkpoint to the end.

        Raises:
            DataFault: the loss is no longer finite.
        """
        quiet = not self.peers.lead
        with TrainingProgress(self.steps, self.done, self.maker.per_step, quiet=quiet) as progress:
            while self.done < self.steps:
                self._epoch(progress)
        self.network.eval()
        return Trained(
            self.network.cpu(), self.normalisation, self.history, self._seconds(), self.precision
        )

    def _epoch(self, progress: TrainingProgress) -> None:
        epoch, first = divmod(self.done, self.maker.steps_per_epoch)
        order = self.maker.order(epoch)
        losses: list[float] = []
        self.network.train()
        for step in range(first, len(order)):
            losses.append(self._step(self.maker.make(order[step], epoch, step, self.part)))
            recent = float(np.mean(losses[-50:]))
            progress.step(self.done, f"epoch {epoch + 1}/{self.settings.epochs}, loss {recent:.3f}")
            if time.monotonic() - self._saved >= CHECKPOINT_EVERY_S:
                self._save()
        if not self.peers.lead:
            return
        loss, accuracy = self.validate()
        self.history.append(
            {
                "epoch": epoch + 1,
                "train_loss": round(float(np.mean(losses)), 4),
                "validation_loss": round(loss, 4),
                "validation_accuracy": round(accuracy, 4),
            }
        )
        progress.note(
            f"epoch {epoch + 1}/{self.settings.epochs}: train loss {np.mean(losses):.3f}, "
            f"validation {accuracy:.2%}"
        )
        self._save()

    def _step(self, batch: Batch) -> float:
        rate = learning_rate_at(self.done, self.steps, self.settings.learning_rate)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(batch, self.settings.label_smoothing)
        value = self.peers.total(float(loss.detach()), self.device)
        if not np.isfinite(value):
            raise DataFault(f"the loss is {value} at step {self.done}: try a lower --lr")
        self.optimizer.zero_grad(set_to_none=True)
        (loss * self.peers.size).backward()  # the model's backward takes the mean over processes
        self.optimizer.step()
        self.done += 1
        return value

    def _loss(self, batch: Batch, smoothing: float) -> Tensor:
        """This process's part of the step's mean loss over cells that are not blank."""
        logits = self._forward(self.model, batch)  # (n, cells, classes)
        labels = torch.from_numpy(batch.labels).to(self.device)
        present = torch.from_numpy(batch.present).to(self.device, torch.float32)
        each = F.cross_entropy(
            logits.flatten(0, 1), labels.flatten(), reduction="none", label_smoothing=smoothing
        )
        cells = torch.tensor(float(max(1, batch.step_cells)), device=self.device)
        return (each * present.flatten()).sum() / cells

    def _forward(self, model: torch.nn.Module, batch: Batch) -> Tensor:
        pixels = torch.from_numpy(batch.pixels).to(self.device).permute(0, 3, 1, 2)
        normalised = (pixels.float() / 255 - self._mean) / self._std
        enabled = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            return model(normalised).float()

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """Mean loss and accuracy of the held-out part; (nan, nan) when there is none."""
        self.network.eval()
        loss = right = count = 0.0
        for batch in self.held:
            logits = self._forward(self.network, batch).cpu()[
                torch.from_numpy(batch.present)
            ]  # (m, classes)
            labels = torch.from_numpy(batch.labels[batch.present])
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            right += int((logits.argmax(1) == labels).sum())
            count += len(labels)
        return (loss / count, right / count) if count else (float("nan"), float("nan"))

    def _identity(self) -> dict[str, Any]:
        return {**self.settings.to_dict(), "origin": list(self.data.origin)}

    def _seconds(self) -> float:
        return self._earlier_s + time.monotonic() - self._started

    def _save(self) -> None:
        if self.machine.checkpoint is None or not self.peers.lead:
            return
        progress = {
            "identity": self._identity(),
            "done": self.done,
            "history": self.history,
            "seconds": self._seconds(),
        }
        save_checkpoint(self.machine.checkpoint, self.network, self.optimizer, progress)
        self._saved = time.monotonic()

    def _restore(self, path: Path) -> None:
        progress = load_checkpoint(path, self.network, self.optimizer, self._identity())
        self.done, self.history = progress["done"], progress["history"]
        self._earlier_s = progress["seconds"]


def make_optimizer(network: torch.nn.Module, settings: TrainSettings) -> torch.optim.SGD:
    """SGD with Nesterov momentum; weight decay on tensors of two and more dimensions only."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(groups, lr=settings.learning_rate, momentum=MOMENTUM, nesterov=True)


def pixel_statistics(images: np.ndarray) -> dict[str, list[float]]:
    """Mean and std per channel of (n, H, W, C) uint8 pixels / 255, from exact counts."""
    mean, std = [], []
    for channel in range(images.shape[3]):
        counts = np.bincount(images[..., channel].reshape(-1), minlength=256)
        levels = np.arange(256) / 255
        center = float((counts * levels).sum() / counts.sum())
        spread = float(np.sqrt((counts * (levels - center) ** 2).sum() / counts.sum()))
        mean.append(round(center, 6))
        std.append(round(max(spread, 1e-3), 6))  # one grey level must not divide by zero
    return {"mean": mean, "std": std}


def resolve_precision(wanted: str, device: torch.device) -> str:
    """What "auto" means here: bfloat16 where the device multiplies it natively."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return "float32"
    native = "amx_bf16" in flags or "avx512_bf16" in flags
    return "bfloat16" if native else "float32"
