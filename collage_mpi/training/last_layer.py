"""Trains only the last layer of a single network. The features below it are computed once for each
image and its mirror image, so an epoch takes seconds.
"""

from __future__ import annotations

import json
import time
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from collage_mpi.encoding.vectors import EMBEDDINGS
from collage_mpi.errors import UsageError
from collage_mpi.kinds import SINGLE
from collage_mpi.models.collage_net import build_network
from collage_mpi.models.info import Loading
from collage_mpi.models.predictor import TorchPredictor
from collage_mpi.models.tuning import PLAIN
from collage_mpi.models.weights import describe_weights
from collage_mpi.system.files import save_records
from collage_mpi.training.parts import (
    Trained,
    make_optimizer,
    resolve_precision,
    start_from,
)
from collage_mpi.training.settings import TrainArguments, TrainSettings
from collage_mpi.training.sources import TrainData, calls_of, each_view, kept_in

CALL = 16  # images in a call; at 128 px 1.5 x as fast as 64, whose maps do not fit into the cache


def train_last_layer(
    data: TrainData,
    settings: TrainSettings,
    args: TrainArguments,
) -> Trained:
    """Train a new last layer for the network of --init, by SGD on the features below it.

    The features are cached in OUT.features.npz, which is used again for the same weights and
    images.

    Raises:
        UsageError: --init is missing, its images have other channels, or there is a teacher.
        EnvironmentFault: the cache cannot be written.
    """
    if args.init is None or settings.teacher is not None:
        raise UsageError("--layers last needs --init and no --teacher")
    began_s = time.monotonic()
    torch.set_num_threads(args.threads)
    torch.manual_seed(settings.seed)
    if data.first_normalisation is None:
        raise UsageError(
            f"--init {args.init}: its images have other channels than those of the shards"
        )
    network, layer = _with_new_layer(data, settings)
    views = _features(data, settings, args)  # (images, views, features)
    used, held = views[: len(data.images)], views[len(data.images) :, 0]
    optimizer = make_optimizer(layer, settings)
    history: list[dict[str, float]] = []
    best: tuple[float, int, dict[str, Tensor]] = (-1.0, 0, {})
    for epoch in range(settings.epochs):
        loss = _epoch(layer, optimizer, used, data.labels, settings, epoch)
        row = {"epoch": epoch + 1, "train_loss": round(loss, 4), **_judge(layer, held, data)}
        history.append(row)
        accuracy = row["validation_accuracy"]
        if settings.keep == "last" or not len(held) or accuracy > best[0]:
            state = {name: value.clone() for name, value in layer.state_dict().items()}
            best = (accuracy, epoch + 1, state)
        save_records(args.log_file, history)
    layer.load_state_dict(best[2])
    spent_s = time.monotonic() - began_s
    normalisation = data.first_normalisation
    return Trained(network.eval(), normalisation, history, spent_s, "float32", best[1])


def _with_new_layer(data: TrainData, settings: TrainSettings) -> tuple[nn.Module, nn.Linear]:
    """The network with the weights of --init, and its last layer, with random weights."""
    network = build_network(settings.architecture, data.images.shape[3], data.classes, None)
    assert data.first_weights is not None
    start_from(network, data.first_weights)
    layers = [module for module in network.modules() if isinstance(module, nn.Linear)]
    if not layers:
        raise UsageError("--layers last needs a network whose last layer is linear")
    layers[-1].reset_parameters()
    return network, layers[-1]


def _epoch(
    layer: nn.Module,
    optimizer: torch.optim.Optimizer,
    views: np.ndarray,
    labels: np.ndarray,
    settings: TrainSettings,
    epoch: int,
) -> float:
    """Train for an epoch, with one random view of each image. Returns the mean loss."""
    random = np.random.default_rng([settings.seed, 2, epoch])
    steps = -(-len(views) // settings.batch)
    total = 0.0
    for step, rows in enumerate(np.array_split(random.permutation(len(views)), steps)):
        rate = settings.learning_rate_at(epoch * steps + step, settings.epochs * steps)
        for group in optimizer.param_groups:
            group["lr"] = rate
        shown = views[rows, random.integers(0, views.shape[1], len(rows))]  # (n, features)
        loss = F.cross_entropy(
            layer(torch.from_numpy(shown).float()),
            torch.from_numpy(labels[rows]),
            label_smoothing=settings.label_smoothing,
        )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        total += float(loss.detach()) * len(rows)
    return total / len(views)


@torch.inference_mode()
def _judge(layer: nn.Module, held: np.ndarray, data: TrainData) -> dict[str, float]:
    """The loss and the accuracy on the validation images, as entries of the history."""
    if not len(held):
        return {"validation_loss": float("nan"), "validation_accuracy": float("nan")}
    logits, labels = layer(torch.from_numpy(held).float()), torch.from_numpy(data.held_labels)
    right = float((logits.argmax(1) == labels).float().mean())
    return {
        "validation_loss": round(float(F.cross_entropy(logits, labels)), 4),
        "validation_accuracy": round(right, 4),
    }


def _features(data: TrainData, settings: TrainSettings, args: TrainArguments) -> np.ndarray:
    """The features of the training images, then of the validation images: (images, views, features)
    float16."""
    assert args.init is not None
    fingerprint, init = describe_weights(args.init, SINGLE).fingerprint, str(args.init)
    parts = [data.images, data.held_images]
    chosen = [settings.seed, settings.validation_share, settings.flips]
    identity = json.dumps([fingerprint, *chosen, *map(len, parts), *data.origin])

    def compute() -> np.ndarray:
        precision = resolve_precision(settings.precision, torch.device(args.device))
        tuning = replace(PLAIN, precision=precision)
        how = Loading(args.device, args.threads, tuning, save=EMBEDDINGS)
        below = TorchPredictor.load(init, SINGLE, how)

        def look(images: np.ndarray) -> np.ndarray:
            return below.answer(images)[1]["embedding"].astype(np.float16)

        return each_view(calls_of(parts, CALL), look, settings.flips, "features of")

    return kept_in(args.beside(".features.npz"), identity, compute)
