"""The training loop: SGD with Nesterov momentum and a schedule of the learning rate, with
validation and a checkpoint after each epoch.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from collage_mpi.errors import CollageError, DataFault, ExitCode
from collage_mpi.models.backbones import channels_last
from collage_mpi.models.collage_net import build_network, check_pixels
from collage_mpi.system.files import save_records
from collage_mpi.system.process_tree import STOP_SIGNALS, caught
from collage_mpi.system.progress import Advance, advancing
from collage_mpi.training.batches import BatchMaker, TrainBatch, plain_batches
from collage_mpi.training.objective import (
    Distilled,
    Labels,
    Objective,
    YoloObjective,
)
from collage_mpi.training.parts import (
    Trained,
    load_checkpoint,
    make_optimizer,
    pixel_statistics,
    resolve_precision,
    running_average,
    save_checkpoint,
    start_from,
)
from collage_mpi.training.settings import TrainArguments, TrainSettings
from collage_mpi.training.sources import TrainData

CHECKPOINT_EVERY_S = 60.0
LINE_EVERY_S = 20.0  # seconds between progress lines if there is no terminal


class TrainingStopped(CollageError):
    """Training was stopped by a signal, and the finished steps are in the checkpoint."""

    exit_code = ExitCode.INCOMPLETE


class Trainer:
    """One training run, new or from its checkpoint."""

    def __init__(self, data: TrainData, settings: TrainSettings, args: TrainArguments) -> None:
        torch.set_num_threads(args.threads)
        torch.manual_seed(settings.seed)
        self.settings, self.args, self.data = settings, args, data
        self.device = torch.device(args.device)
        self.maker = BatchMaker(data.images, data.labels, settings)
        self.held = plain_batches(data.held_images, data.held_labels, settings)
        self.precision = resolve_precision(settings.precision, self.device)
        self.normalisation = data.first_normalisation or pixel_statistics(data.images)
        shape = (1, data.images.shape[3], 1, 1)
        self._mean = torch.tensor(self.normalisation["mean"]).reshape(shape).to(self.device)
        self._std = torch.tensor(self.normalisation["std"]).reshape(shape).to(self.device)
        encoder, channels = self.maker.encoder, data.images.shape[3]
        seen = data.images.shape[1:] if encoder is None else encoder.input_shape
        head = settings.side, settings.head
        check_pixels(settings.architecture, seen, *head)
        network = build_network(settings.architecture, channels, data.classes, *head)
        self.taken: tuple[int, int] | None = None  # tensors taken from --init, and all tensors
        if data.first_weights is not None:
            self.taken = start_from(network, data.first_weights)
        self.network = channels_last(network.to(self.device))
        self.optimizer = make_optimizer(self.network, settings)
        self.objective = make_objective(data, settings)
        self.average = running_average(self.network, settings.ema) if settings.ema else None
        self.steps = settings.epochs * self.maker.steps_per_epoch
        self.history: list[dict[str, float]] = []
        self.best: dict[str, Tensor] = {}  # the kept weights, once an epoch is validated
        self.done = 0
        self._signals: list[int] = []  # received
        self._earlier_s = 0.0
        self._started = self._saved = time.monotonic()
        if args.resume:
            self._restore(args.checkpoint_file)

    def run(self) -> Trained:
        """Make all remaining steps.

        Raises:
            DataFault: the loss is not finite.
            TrainingStopped: a signal came, and the checkpoint is written.
        """
        each = self.maker.per_step
        with (
            advancing(self.steps * each, "train", LINE_EVERY_S, done=self.done * each) as advance,
            caught(STOP_SIGNALS, self._caught),
        ):
            while self.done < self.steps:
                self._epoch(advance)
        self.network.eval()
        if self.best:
            self.network.load_state_dict(self.best)
        return Trained(
            self.network.cpu(),
            self.normalisation,
            self.history,
            self._seconds(),
            self.precision,
            self._kept_epoch(),
        )

    def _caught(self, number: int) -> None:
        """Note a signal, which ends the training after the current step. A second Ctrl-C raises."""
        if self._signals and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signals.append(number)

    @property
    def judged(self) -> torch.nn.Module:
        """The network that is validated and kept: the running average, if there is one."""
        return self.network if self.average is None else self.average.module

    def _kept_epoch(self) -> int:
        if self.settings.keep == "last" or not self.held:
            return len(self.history)
        # the epoch with the highest accuracy, and among equal ones the lowest loss
        ranks = [(-row["validation_accuracy"], row["validation_loss"]) for row in self.history]
        return ranks.index(min(ranks)) + 1 if ranks else 0

    def _epoch(self, advance: Advance) -> None:
        epoch, first = divmod(self.done, self.maker.steps_per_epoch)
        order = self.maker.order(epoch)
        losses: list[float] = []
        begun = time.monotonic()
        self.network.train()
        for step in range(first, len(order)):
            losses.append(self._step(self.maker.make(order[step], epoch, step)))
            of = f"{epoch + 1}/{self.settings.epochs}"
            advance(self.maker.per_step, epoch=of, loss=float(np.mean(losses[-50:])))
            if step + 1 == len(order):
                break  # no checkpoint between an epoch's last step and its validation
            if self._signals:
                self._leave()
            if time.monotonic() - self._saved >= CHECKPOINT_EVERY_S:
                self._save()
        made = (len(order) - first) * self.maker.per_step
        self._end_epoch(epoch, losses, made / max(1e-9, time.monotonic() - begun), advance)
        if self._signals and self.done < self.steps:
            self._leave()

    def _end_epoch(self, epoch: int, losses: list[float], rate: float, advance: Advance) -> None:
        """Validate, keep the best weights, report, and write a checkpoint.

        Args:
            rate: images a second.
        """
        loss, accuracy = self.validate()
        self.history.append(
            {
                "epoch": epoch + 1,
                "train_loss": round(float(np.mean(losses)), 4),
                "validation_loss": round(loss, 4),
                "validation_accuracy": round(accuracy, 4),
                "learning_rate": round(self.optimizer.param_groups[0]["lr"], 6),
                "images_per_s": round(rate),
            }
        )
        if self._kept_epoch() == epoch + 1:
            self.best = {name: v.detach().clone() for name, v in self.judged.state_dict().items()}
        advance.say(
            f"epoch {epoch + 1}/{self.settings.epochs}: train loss {np.mean(losses):.3f}, "
            f"validation {accuracy:.2%}"
        )
        self._save()
        save_records(self.args.log_file, self.history)

    def _leave(self) -> None:
        """Stop after a signal."""
        self._save()
        raise TrainingStopped(
            f"stopped by {signal.Signals(self._signals[-1]).name} after step {self.done:,} of "
            f"{self.steps:,}; checkpoint {self.args.checkpoint_file} is written: "
            "go on with the same command and --resume"
        )

    def _step(self, batch: TrainBatch) -> float:
        rate = self.settings.learning_rate_at(self.done, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        loss = self._loss(batch)
        value = float(loss.detach())
        if not np.isfinite(value):
            raise DataFault(f"the loss is {value} at step {self.done}; try a lower --lr")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        self.done += 1
        return value

    def _loss(self, batch: TrainBatch) -> Tensor:
        """The step's loss, which is the mean over cells that are not blank."""
        total = self.objective.loss(self._forward(self.network, batch), batch)
        return total / max(1, int(batch.present.sum()))

    def _forward(self, model: torch.nn.Module, batch: TrainBatch) -> Tensor:
        pixels = torch.from_numpy(batch.pixels).to(self.device).permute(0, 3, 1, 2)
        normalised = (pixels.float() / 255 - self._mean) / self._std
        enabled = self.precision == "bfloat16"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=enabled):
            found: Tensor = model(normalised).float()
            return found

    @torch.no_grad()
    def validate(self) -> tuple[float, float]:
        """The mean loss and the accuracy on the validation images; (nan, nan) if there are none."""
        network = self.judged
        network.eval()
        loss = right = count = 0.0
        for batch in self.held:
            logits = self.objective.logits(self._forward(network, batch), batch).cpu()
            logits = logits[torch.from_numpy(batch.present)]  # (m, classes)
            labels = torch.from_numpy(batch.labels[batch.present])
            absent = logits.isnan().any(1)
            logits[absent] = 0.0  # a missing answer counts as a guess in the loss, and as wrong
            loss += float(F.cross_entropy(logits, labels, reduction="sum"))
            right += int(((logits.argmax(1) == labels) & ~absent).sum())
            count += len(labels)
        return (loss / count, right / count) if count else (float("nan"), float("nan"))

    def _identity(self) -> dict[str, Any]:
        return {**self.settings.record(), "origin": list(self.data.origin)}

    def _seconds(self) -> float:
        return self._earlier_s + time.monotonic() - self._started

    def _save(self) -> None:
        progress = {
            "identity": self._identity(),
            "done": self.done,
            "history": self.history,
            "seconds": self._seconds(),
        }
        save_checkpoint(self.args.checkpoint_file, self._state(), progress)
        self._saved = time.monotonic()

    def _state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "average": {} if self.average is None else self.average.state_dict(),
            "best": self.best,
        }

    def _restore(self, path: Path) -> None:
        state, progress = load_checkpoint(path, self._identity())
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self.best = state["best"]
        self.done, self.history = progress["done"], progress["history"]
        self._earlier_s = progress["seconds"]


def make_objective(data: TrainData, settings: TrainSettings) -> Objective:
    """The objective of a training: the labels, and a teacher's answers if there is a teacher."""
    classes = Labels(settings.label_smoothing)
    if data.teacher_logits is not None:
        weight, temperature = settings.distill_weight, settings.distill_temperature
        classes = Distilled(settings.label_smoothing, data.teacher_logits, weight, temperature)
    if settings.head.name == "yolo" and settings.side is not None:
        return YoloObjective(classes, settings.head, settings.side)
    return classes
