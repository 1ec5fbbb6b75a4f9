"""From a trained network to a weights file.

Owns: the calibration temperature and the record that is stored with the tensors.
Does not know: the loop, the command line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from collage_mpi.models.info import NetworkInfo
from collage_mpi.models.predictor import TorchPredictor
from collage_mpi.models.weights import save_weights
from collage_mpi.training.batches import plain_batches
from collage_mpi.training.loop import TrainData, Trained
from collage_mpi.training.settings import TrainSettings

MIN_FOR_TEMPERATURE = 100  # held-out images; with fewer the fit is noise and 1.0 stays


def store(
    out: Path,
    trained: Trained,
    settings: TrainSettings,
    data: TrainData,
    facts: dict[str, Any],
) -> NetworkInfo:
    """Write the weights twice: as trained, then with the temperature that fits them.

    The temperature (Guo et al. 2017, arXiv 1706.04599) and the reported accuracy are
    measured with the stored float16 tensors, on the validation part.

    Args:
        facts: what only the caller knows: class names, sources, command, versions.
    """
    state = trained.network.state_dict()
    tensors = {
        name: tensor.contiguous().numpy()
        for name, tensor in state.items()
        if not name.endswith("num_batches_tracked")
    }
    record = _record(trained, settings, data, facts)
    info = save_weights(out, tensors, record)
    logits, labels = _held_logits(out, settings, data)
    if len(labels) < MIN_FOR_TEMPERATURE:
        return info
    record["temperature"] = fit_temperature(logits, labels)
    accuracy = float((logits.argmax(1) == labels).float().mean())
    record["training"]["validation_accuracy"] = round(accuracy, 4)
    return save_weights(out, tensors, record)


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature from 0.2 to 5 that minimises the log loss: a scan in steps of 2 %.

    Args:
        logits: (n, classes) float32.
        labels: (n,) int64.
    """
    candidates = np.exp(np.arange(np.log(0.2), np.log(5.0), 0.02))
    losses = [float(F.cross_entropy(logits / float(t), labels)) for t in candidates]
    return round(float(candidates[int(np.argmin(losses))]), 4)


def _record(
    trained: Trained, settings: TrainSettings, data: TrainData, facts: dict[str, Any]
) -> dict[str, Any]:
    _, height, width, channels = data.images.shape
    chosen = settings.to_dict()
    del chosen["architecture"]
    return {
        "kind": settings.kind,
        "architecture": settings.architecture.to_dict(),
        "side": settings.side,
        "cell_px": settings.cell_px,
        "height": height,
        "width": width,
        "channels": channels,
        "class_names": facts["class_names"],
        "normalisation": trained.normalisation,
        "temperature": 1.0,
        "training": {
            **chosen,
            "precision": trained.precision,
            "seconds": round(trained.seconds),
            "training_images": len(data.images),
            "validation_images": len(data.held_images),
            "kept_epoch": trained.epoch,
            "history": trained.history,
            **{key: value for key, value in facts.items() if key != "class_names"},
        },
    }


@torch.inference_mode()
def _held_logits(
    out: Path, settings: TrainSettings, data: TrainData
) -> tuple[torch.Tensor, torch.Tensor]:
    threads = torch.get_num_threads()
    predictor = TorchPredictor.load(str(out), settings.kind, threads=threads)
    logits, labels = [], []
    for batch in plain_batches(data.held_images, data.held_labels, settings):
        logits.append(predictor.logits(batch.pixels)[torch.from_numpy(batch.present)])
        labels.append(torch.from_numpy(batch.labels[batch.present]))
    if not logits:
        return torch.zeros(0, data.classes), torch.zeros(0, dtype=torch.int64)
    return torch.cat(logits), torch.cat(labels)  # (n, classes), (n,)
