"""Parts of the training loop: its result, the optimizer, the running average of the weights, pixel
statistics, the choice of precision, and checkpoints.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.optim.swa_utils import AveragedModel

from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.models.backbones import COUNTER
from collage_mpi.models.state_dicts import load_tensors
from collage_mpi.models.tuning import processor_facts
from collage_mpi.system.files import save_file
from collage_mpi.training.settings import TrainSettings

MOMENTUM = 0.9


@dataclass(frozen=True)
class Trained:
    """The result of a training run.

    Attributes:
        network: in eval mode, on the CPU.
        normalisation: "mean" and "std" of pixels / 255 for each channel, of the training images, or
            from the weights of --init.
        history: a record for each epoch.
        seconds: duration, over all sessions.
        precision: float32 or bfloat16.
        epoch: the epoch whose weights were kept, from 1.
    """

    network: torch.nn.Module
    normalisation: dict[str, list[float]]
    history: list[dict[str, float]]
    seconds: float
    precision: str
    epoch: int


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
