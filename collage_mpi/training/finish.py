"""Writes a trained network to a weights file, with its temperature and its record."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from collage_mpi.kinds import SINGLE
from collage_mpi.models import load_predictor
from collage_mpi.models.backbones import stored_arrays
from collage_mpi.models.collage_net import Reading
from collage_mpi.models.info import Loading, NetworkInfo
from collage_mpi.models.predictor import TorchPredictor
from collage_mpi.models.weights import save_weights
from collage_mpi.training.batches import plain_batches
from collage_mpi.training.loop import Trained
from collage_mpi.training.measure import AskedImages, answers_of, images_a_call, service_ratio
from collage_mpi.training.settings import TrainSettings
from collage_mpi.training.sources import TrainData
from collage_mpi.training.threshold import (
    LEAST_IMAGES,
    TwoStages,
    accuracy,
    answered,
    calibration_error,
    find_savings,
    fit_temperature,
)

MIN_FOR_TEMPERATURE = 100  # validation images; with fewer the temperature stays 1.0


def store(
    out: Path,
    trained: Trained,
    settings: TrainSettings,
    data: TrainData,
    facts: dict[str, Any],
) -> NetworkInfo:
    """Write the weights file, twice: first without, then with the fitted temperature.

    The temperature (Guo et al. 2017, arXiv 1706.04599) and the accuracy in the record are measured
    with the stored float16 tensors on the validation images.

    Args:
        facts: further facts for the record: class names, sources, command, versions.
    """
    tensors = stored_arrays(trained.network.state_dict())
    record = _record(trained, settings, data, facts)
    info = save_weights(out, tensors, record)
    held = _look(out, settings, data)
    if len(held.labels) == 0:
        return info
    enough = len(held.labels) >= MIN_FOR_TEMPERATURE
    if enough:
        record["temperature"] = fit_temperature(held.scores, held.labels)
    scores = held.scores(record["temperature"])
    record["training"]["validation_accuracy"] = round(accuracy(scores, held.labels), 4)
    if enough:
        record["training"].update(
            validation_ece=_error(scores, held.labels),
            validation_ece_untempered=_error(held.scores(1.0), held.labels),
        )
    return save_weights(out, tensors, record)


@dataclass(frozen=True)
class Held:
    """The outputs of a network on the validation images, before the temperature is applied.

    Attributes:
        outputs: a tensor for each batch.
        present: (n, cells) bool for each batch: the cells with an image.
        labels: (m,) int64, of these cells.
        reading: the function that turns outputs into scores.
    """

    outputs: list[torch.Tensor]
    present: list[np.ndarray]
    labels: np.ndarray
    reading: Reading

    def scores(self, temperature: float) -> np.ndarray:
        """(m, classes) float32 probabilities of the cells with an image."""
        read = (self.reading(outputs, temperature) for outputs in self.outputs)
        return np.concatenate([s[here] for s, here in zip(read, self.present, strict=True)])


def held_savings(
    single: str, first: NetworkInfo, data: TrainData, how: Loading
) -> tuple[dict[str, Any] | None, str]:
    """The saving if a network is asked before a single network (see `find_savings`), and how it was
    timed. None and "" if there are too few validation images.

    Both networks run in float32, as in `evaluate` by default.
    """
    if len(data.held_labels) < LEAST_IMAGES:
        return None, ""
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


def _record(
    trained: Trained, settings: TrainSettings, data: TrainData, facts: dict[str, Any]
) -> dict[str, Any]:
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
def _look(out: Path, settings: TrainSettings, data: TrainData) -> Held:
    predictor = TorchPredictor.load(
        str(out), settings.kind, Loading(threads=torch.get_num_threads())
    )
    batches = plain_batches(data.held_images, data.held_labels, settings)
    labels = [batch.labels[batch.present] for batch in batches]
    outputs, reading = [predictor.outputs(batch.pixels) for batch in batches], predictor.reading
    return Held(
        outputs,
        [batch.present for batch in batches],
        np.concatenate(labels) if labels else np.zeros(0, np.int64),
        reading,
    )
