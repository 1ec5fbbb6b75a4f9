"""The losses of training (`Objective`), and the training loop: SGD with Nesterov momentum and a
schedule of the learning rate, with validation and a checkpoint after each epoch.
"""

from __future__ import annotations

import io
import json
import signal
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, ExitCode, UsageError
from collage_mpi.kinds import SINGLE
from collage_mpi.models import load_predictor
from collage_mpi.models.architecture import HeadSpec
from collage_mpi.models.backbones import COUNTER, channels_last, stored_arrays
from collage_mpi.models.collage_net import (
    build_network,
    check_pixels,
    jaccard,
    yolo_scores,
)
from collage_mpi.models.info import Loading, NetworkInfo, processor_facts
from collage_mpi.models.libraries import load_tensors
from collage_mpi.models.predictor import TorchPredictor
from collage_mpi.models.weights import save_weights
from collage_mpi.system.files import save_file, save_records
from collage_mpi.system.process_tree import STOP_SIGNALS, caught
from collage_mpi.system.progress import Advance, advancing
from collage_mpi.training.measure import AskedImages, answers_of, images_a_call, service_ratio
from collage_mpi.training.settings import TrainArguments, TrainSettings
from collage_mpi.training.sources import BatchMaker, TrainBatch, TrainData, plain_batches
from collage_mpi.training.threshold import (
    TwoStages,
    accuracy,
    answered,
    calibration_error,
    find_savings,
    fit_temperature,
)

MOMENTUM = 0.9


def make_optimizer(network: torch.nn.Module, settings: TrainSettings) -> torch.optim.SGD:
    """SGD with Nesterov momentum, and weight decay for tensors of two or more dimensions."""
    parameters = list(network.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.SGD(
        groups, lr=settings.learning_rate, momentum=MOMENTUM, nesterov=True, fused=True
    )


def running_average(network: torch.nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the weights: average = decay * average + (1 - decay) * now.

    After n steps the decay is at most (1 + n) / (10 + n), so that the random first weights fade
    soon. The statistics of norms are averaged in the same way.
    """

    @torch.no_grad()
    def follow(averages, now, count) -> None:  # type: ignore[no-untyped-def]  # torch's own form
        keep = min(decay, (1 + float(count)) / (10 + float(count)))
        for average, value in zip(averages, now, strict=True):
            if average.is_floating_point():
                average.lerp_(value, 1 - keep)
            else:
                average.copy_(value)

    return AveragedModel(network, multi_avg_fn=follow, use_buffers=True)


def start_from(network: torch.nn.Module, tensors: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Load trained tensors into a network. Tensors that do not exist in `tensors` stay random.

    The tensors may be of any network with the same trunk: with another side or head, or of a single
    network.

    Returns:
        The number of tensors that were loaded, and of those that the network has.

    Raises:
        UsageError: the trunk differs.
    """
    state = network.state_dict()
    heads = getattr(network, "heads", ())  # layers in the trunk that depend on the classes
    tensors = {**_as_classifier(tensors, state), **tensors}
    fitting = {
        name: torch.from_numpy(array)
        for name, array in tensors.items()
        if name in state and state[name].shape == array.shape
    }
    for name, tensor in state.items():
        counter = name.endswith(COUNTER)
        needed = name.startswith("trunk.") and not name.startswith(heads) and not counter
        if needed and name not in fitting:
            have = tensors[name].shape if name in tensors else "nothing"
            raise UsageError(
                f"--init cannot be used: {name} is {tuple(tensor.shape)} in the network to train "
                f"and {have} in the file: give the --stem, --stages and --norm of the file, or its "
                "--backbone"
            )
    network.load_state_dict(fitting, strict=False)
    counted = [name for name in state if not name.endswith(COUNTER)]
    return sum(name in fitting for name in counted), len(counted)


def _as_classifier(
    tensors: Mapping[str, np.ndarray], state: Mapping[str, torch.Tensor]
) -> dict[str, np.ndarray]:
    if "classifier.weight" in tensors or "classifier.weight" not in state:
        return {}
    shape = tuple(state["classifier.weight"].shape)
    same = [n for n in tensors if n.startswith("trunk.") and tensors[n].shape == shape]
    if len(same) != 1:
        return {}
    stem = same[0].removesuffix("weight")
    return {f"classifier.{k}": tensors[stem + k] for k in ("weight", "bias") if stem + k in tensors}


def pixel_statistics(images: np.ndarray) -> dict[str, list[float]]:
    """Mean and standard deviation for each channel of pixels / 255, from (n, H, W, C) uint8."""
    mean, std = [], []
    for channel in range(images.shape[3]):
        counts = np.bincount(images[..., channel].reshape(-1), minlength=256)
        levels = np.arange(256) / 255
        center = float((counts * levels).sum() / counts.sum())
        spread = float(np.sqrt((counts * (levels - center) ** 2).sum() / counts.sum()))
        mean.append(round(center, 6))
        std.append(round(max(spread, 1e-3), 6))  # above 0, even if all pixels are equal
    return {"mean": mean, "std": std}


def resolve_precision(wanted: str, device: torch.device) -> str:
    """The precision. "auto" means bfloat16 if the device multiplies it natively, otherwise
    float32."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported() else "float32"
    flags = processor_facts().get("flags", "").split()
    native = "amx_bf16" in flags or "avx512_bf16" in flags
    return "bfloat16" if native else "float32"


VERSION = 2  # of checkpoints


def save_checkpoint(path: Path, state: dict[str, Any], progress: dict[str, Any]) -> None:
    """Write a checkpoint atomically.

    Args:
        state: name -> state dict of tensors and plain values.
        progress: identity of the run, number of steps done, history, seconds; plain values.
    """
    buffer = io.BytesIO()
    torch.save({**state, "version": VERSION, "progress": json.dumps(progress)}, buffer)
    save_file(path, buffer.getvalue())


def load_checkpoint(path: Path, identity: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Read a checkpoint: (state, progress) as in `save_checkpoint`.

    Args:
        identity: settings and data of this run. Those of the checkpoint must be the same.

    Raises:
        EnvironmentFault: the file cannot be read.
        DataFault: the file is not a checkpoint, or is damaged.
        UsageError: the checkpoint belongs to a run with other settings.
    """
    try:
        state = load_tensors(path)
    except EnvironmentFault as error:
        raise EnvironmentFault(f"checkpoint {error}; leave out --resume") from error
    except DataFault as error:
        raise DataFault(f"{path} is not a checkpoint, or damaged; leave out --resume") from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise DataFault(f"{path} is not a checkpoint of this version; leave out --resume")
    try:
        progress = json.loads(state["progress"])
        saved = dict(progress["identity"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataFault(f"{path} is not a checkpoint, or damaged; leave out --resume") from error
    _same_run(path, saved, json.loads(json.dumps(identity)))
    return state, progress


def _same_run(path: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [
        f"{key}: {saved.get(key)!r:.60} then, {now.get(key)!r:.60} now"
        for key in sorted(saved.keys() | now.keys())
        if saved.get(key) != now.get(key)
    ]
    if changed:
        raise UsageError(
            f"checkpoint {path} is of another run ({'; '.join(changed)}): give the same "
            "settings, or another --checkpoint, or leave out --resume"
        )


class Objective(Protocol):
    """The loss that the training loop minimises."""

    def loss(self, outputs: Tensor, batch: TrainBatch) -> Tensor:
        """The sum of the losses over cells of the batch that are not blank. The loop divides it by
        their number.

        Args:
            outputs: the network's outputs for `batch.pixels`, float32.
        """
        ...

    def logits(self, outputs: Tensor, batch: TrainBatch) -> Tensor:
        """(n, cells, classes) float32 logits for validation. A row of NaN is a cell without an
        answer.
        """
        ...


class Labels:
    """The cross-entropy with the labels.

    Args:
        smoothing: label smoothing, the share of the target that is spread over all classes (arXiv
            1512.00567).
    """

    def __init__(self, smoothing: float) -> None:
        self.smoothing = smoothing

    def loss(self, outputs: Tensor, batch: TrainBatch) -> Tensor:
        labels = torch.from_numpy(batch.labels).to(outputs.device)
        each = F.cross_entropy(
            outputs.flatten(0, 1),
            labels.flatten(),
            reduction="none",
            label_smoothing=self.smoothing,
        )
        return (each * present_of(batch, outputs)).sum()

    def logits(self, outputs: Tensor, batch: TrainBatch) -> Tensor:
        return outputs


class Distilled(Labels):
    """Knowledge distillation: the loss has a part for the labels and a part for a teacher's
    probabilities (Hinton et al. 2015, arXiv 1503.02531).

    The second part softens both sides by a temperature t. Its factor t * t keeps the proportion of
    the gradients of both parts the same for every t.

    Args:
        smoothing: as in `Labels`, for the part with the labels.
        teacher_logits: (images, classes) float32, calibrated, a row for each training image.
        weight: of the part with the teacher, 0 to 1.
        temperature: t.
    """

    def __init__(
        self, smoothing: float, teacher_logits: np.ndarray, weight: float, temperature: float
    ) -> None:
        super().__init__(smoothing)
        self.weight, self.temperature = weight, temperature
        self._teacher = torch.from_numpy(np.asarray(teacher_logits, dtype=np.float32))

    def loss(self, outputs: Tensor, batch: TrainBatch) -> Tensor:
        rows = torch.from_numpy(batch.chosen).flatten()
        taught = (self._teacher[rows].to(outputs.device) / self.temperature).log_softmax(1)
        own = (outputs.flatten(0, 1) / self.temperature).log_softmax(1)  # (n*cells, classes)
        each = F.kl_div(own, taught, reduction="none", log_target=True).sum(1)
        soft = (each * present_of(batch, outputs)).sum() * self.temperature**2
        return (1 - self.weight) * super().loss(outputs, batch) + self.weight * soft


def present_of(batch: TrainBatch, outputs: Tensor) -> Tensor:
    """(n*cells,) float32 on the device of `outputs`: 1 for a cell with an image, 0 for a blank
    cell."""
    return torch.from_numpy(batch.present).to(outputs.device, torch.float32).flatten()


BOX_WEIGHT = 5.0
# Most squares have no cell's centre. They count half, as in YOLO (arXiv 1506.02640).
EMPTY_WEIGHT = 0.5


class YoloObjective:
    """The loss of a yolo head: of boxes, objectness and classes.

    For each cell, the box of the square with the cell's centre is trained, with the anchor whose
    size is nearest to that of a cell.

    Args:
        classes: the loss for the class logits of these boxes.
        head: of the network.
        side: cells along an edge of the collage.
    """

    def __init__(self, classes: Objective, head: HeadSpec, side: int) -> None:
        self.classes = classes
        self.reading = partial(yolo_scores, head, side)
        anchors = np.array(head.anchors)  # (anchors, 2)
        self.anchor = likest_anchor(anchors)
        width, height = anchors[self.anchor]
        centre = (np.arange(side) + 0.5) * head.map_size(side) / side  # of a cell, in squares
        square = centre.astype(np.int64)
        self.rows = torch.from_numpy(np.repeat(square, side))  # (cells,)
        self.columns = torch.from_numpy(np.tile(square, side))
        across, down = np.tile(centre - square, side), np.repeat(centre - square, side)
        edges = np.full((2, side * side), [[-np.log(width)], [-np.log(height)]])  # of one cell
        self.boxes = torch.from_numpy(
            np.stack([across, down, *edges], axis=1)
        ).float()  # (cells, 4)

    def loss(self, outputs: Tensor, batch: TrainBatch) -> Tensor:
        present = torch.from_numpy(batch.present).to(outputs.device, torch.float32)  # (n, cells)
        own = outputs[:, self.rows, self.columns, self.anchor]  # (n, cells, 5 + classes)
        found = torch.cat([own[..., :2].sigmoid(), own[..., 2:4]], dim=2)
        boxes = ((found - self.boxes.to(outputs.device)) ** 2).sum(2) * present
        objectness = outputs[..., 4]
        wanted = torch.zeros_like(objectness)
        wanted[:, self.rows, self.columns, self.anchor] = present
        each = F.binary_cross_entropy_with_logits(objectness, wanted, reduction="none")
        objects = each * torch.where(wanted > 0, 1.0, EMPTY_WEIGHT)
        return (
            self.classes.loss(own[..., 5:].contiguous(), batch)
            + BOX_WEIGHT * boxes.sum()
            + objects.sum()
        )

    def logits(self, outputs: Tensor, batch: TrainBatch) -> Tensor:
        scores = torch.from_numpy(self.reading(outputs, 1.0))  # (n, cells, classes)
        absent = scores.amax(2, keepdim=True) <= 0
        return torch.where(absent, torch.nan, scores.clamp_min(1e-9).log())


def likest_anchor(anchors: np.ndarray) -> int:
    """The index of the anchor with the largest intersection over union with a cell.

    Args:
        anchors: (anchors, 2), widths and heights in cells.
    """
    boxes = np.concatenate([-anchors / 2, anchors / 2], axis=1)
    cell = np.array([[-0.5, -0.5, 0.5, 0.5]])
    return int(jaccard(boxes, cell)[:, 0].argmax())


CHECKPOINT_EVERY_S = 60.0
LINE_EVERY_S = 20.0  # seconds between progress lines if there is no terminal


class TrainingStopped(CollageError):
    """Training was stopped by a signal, and the finished steps are in the checkpoint."""

    exit_code = ExitCode.INCOMPLETE


class Trainer:
    """One training run, new or from its checkpoint.

    Attributes:
        network: once the run is over, the kept weights, in eval mode, on the CPU.
        normalisation: "mean" and "std" of pixels / 255 for each channel, of the training images, or
            from the weights of --init.
        precision: float32 or bfloat16.
        history: a record for each epoch.
        taken: number of tensors taken from --init, and of all tensors; None without it.
    """

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
        self.taken: tuple[int, int] | None = None
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

    def run(self) -> None:
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
        self.network.cpu()

    def _caught(self, number: int) -> None:
        """Note a signal, which ends the training after the current step. A second Ctrl-C raises."""
        if self._signals and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signals.append(number)

    @property
    def judged(self) -> torch.nn.Module:
        """The network that is validated and kept: the running average, if there is one."""
        return self.network if self.average is None else self.average.module

    @property
    def kept_epoch(self) -> int:
        """The epoch whose weights are kept, from 1; 0 if there is none."""
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
        if self.kept_epoch == epoch + 1:
            self.best = {name: v.detach().clone() for name, v in self.judged.state_dict().items()}
        advance.say(
            f"epoch {epoch + 1}/{self.settings.epochs}: train loss {np.mean(losses):.3f}, "
            f"validation {accuracy:.2%}"
        )
        self._save()
        save_records(self.args.log or self.args.beside(".csv"), self.history)

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
            return model(normalised).float()

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

    @property
    def seconds(self) -> float:
        """The duration so far, over all sessions."""
        return self._earlier_s + time.monotonic() - self._started

    def _save(self) -> None:
        progress = {
            "identity": self._identity(),
            "done": self.done,
            "history": self.history,
            "seconds": self.seconds,
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


MIN_FOR_TEMPERATURE = 100  # validation images; with fewer the temperature stays 1.0


def store(out: Path, trainer: Trainer, facts: dict[str, Any]) -> NetworkInfo:
    """Write the weights file, twice: first without, then with the fitted temperature.

    The temperature (Guo et al. 2017, arXiv 1706.04599) and the accuracy in the record are measured
    with the stored float16 tensors on the validation images.

    Args:
        facts: further facts for the record: class names, sources, command, versions.
    """
    tensors = stored_arrays(trainer.network.state_dict())
    record = _record(trainer, facts)
    info = save_weights(out, tensors, record)
    if not trainer.held:
        return info
    how = Loading(threads=torch.get_num_threads())
    stored = TorchPredictor.load(str(out), trainer.settings.kind, how)
    with torch.inference_mode():
        outputs = [stored.outputs(batch.pixels) for batch in trainer.held]
    labels = np.concatenate([batch.labels[batch.present] for batch in trainer.held])

    def scores_at(temperature: float) -> np.ndarray:
        """(m, classes) float32 probabilities of the cells with an image."""
        found = zip(outputs, trainer.held, strict=True)
        read = [stored.reading(each, temperature)[batch.present] for each, batch in found]
        return np.concatenate(read)

    enough = len(labels) >= MIN_FOR_TEMPERATURE
    if enough:
        record["temperature"] = fit_temperature(scores_at, labels)
    scores = scores_at(record["temperature"])
    record["training"]["validation_accuracy"] = round(accuracy(scores, labels), 4)
    if enough:
        record["training"].update(
            validation_ece=_error(scores, labels),
            validation_ece_untempered=_error(scores_at(1.0), labels),
        )
    return save_weights(out, tensors, record)


def held_savings(
    single: str, first: NetworkInfo, data: TrainData, how: Loading
) -> tuple[dict[str, Any], str]:
    """The saving if a network is asked before a single network (see `find_savings`), and how it was
    timed. Both networks run in float32, as in `evaluate` by default.
    """
    one: Any = load_predictor(single, SINGLE, how)
    asked = TorchPredictor.load(str(first.path), first.kind, how)
    images = AskedImages(data.held_images, np.arange(len(data.held_labels)))
    alone, early = answers_of(one, images), answers_of(asked, images)
    at_once = images_a_call(first)
    ratio, timed = service_ratio(one, asked, at_once)
    return find_savings(TwoStages(alone, early, data.held_labels, at_once), ratio), timed


def _error(scores: np.ndarray, labels: np.ndarray) -> float:
    here = answered(scores)
    right = scores.argmax(1) == labels
    return round(calibration_error(scores.max(1)[here], right[here]), 4)


def _record(trainer: Trainer, facts: dict[str, Any]) -> dict[str, Any]:
    settings, data = trainer.settings, trainer.data
    _, height, width, channels = data.images.shape
    chosen = settings.record()
    for name in ("architecture", "head", "kind", "side", "cell_px"):  # are keys already
        del chosen[name]
    return {
        "kind": settings.kind,
        "architecture": asdict(settings.architecture),
        "side": settings.side,
        "cell_px": settings.cell_px,
        "height": height,
        "width": width,
        "channels": channels,
        **({} if settings.side is None else {"head": settings.head.to_dict()}),
        "class_names": facts["class_names"],
        "normalisation": trainer.normalisation,
        "temperature": 1.0,
        "training": {
            **chosen,
            "precision": trainer.precision,
            "seconds": round(trainer.seconds),
            "training_images": len(data.images),
            "validation_images": len(data.held_images),
            "kept_epoch": trainer.kept_epoch,
            "history": trainer.history,
            **{key: value for key, value in facts.items() if key != "class_names"},
        },
    }
