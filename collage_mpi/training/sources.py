"""Reads the inputs of a training run: shards, first weights, and outputs of a
single network for every image (a teacher's answers, or features). These outputs are computed once,
and cached in a file. If training mirrors images, the mirror image is a second view.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from collage_mpi.errors import DataFault
from collage_mpi.kinds import SINGLE
from collage_mpi.models.info import Loading, check_fit
from collage_mpi.models.predictor import TorchPredictor
from collage_mpi.models.weights import describe_weights, read_tensors
from collage_mpi.shards import ShardSet
from collage_mpi.system.files import UNREADABLE_OR_GONE, require_regular, save_file
from collage_mpi.system.progress import advancing
from collage_mpi.training.batches import split
from collage_mpi.training.parts import resolve_precision
from collage_mpi.training.settings import TrainArguments, TrainSettings

TEACHER_BATCH = 64


def teacher_logits(views: np.ndarray) -> np.ndarray:
    """The logarithm of the probabilities' mean over all views, (n, classes) float32.

    Args:
        views: (n, views, classes) float32, from `teacher_views`.
    """
    found: np.ndarray = np.logaddexp.reduce(views, axis=1) - np.float32(np.log(views.shape[1]))
    return found


def teacher_views(path: Path, images: np.ndarray, mirror: bool, how: Loading) -> np.ndarray:
    """The calibrated log-probabilities of a single network, (n, views, classes) float32.

    Args:
        path: weights of the network.
        images: (n, H, W, C) uint8, in the order of the shards, without augmentation.
        mirror: whether the mirror image is a second view.
        how: device and threads.
    """
    teacher = TorchPredictor.load(str(path), SINGLE, how)
    device = torch.device(how.device)
    half = resolve_precision("auto", device) == "bfloat16"

    @torch.inference_mode()
    def log_probabilities(pixels: np.ndarray) -> np.ndarray:
        logits = teacher.outputs(pixels)[:, 0].float() / teacher.temperature
        return logits.log_softmax(1).cpu().numpy()

    with torch.autocast(device.type, torch.bfloat16, enabled=half):
        calls = calls_of([images], TEACHER_BATCH)
        return each_view(calls, log_probabilities, mirror, "the teacher looks at")


def calls_of(parts: Sequence[np.ndarray], batch: int) -> list[np.ndarray]:
    """The batches of the images of several parts, each (n, H, W, C)."""
    return [part[at : at + batch] for part in parts for at in range(0, len(part), batch)]


def each_view(
    calls: Sequence[np.ndarray], look: Callable[[np.ndarray], np.ndarray], mirror: bool, text: str
) -> np.ndarray:
    """Call `look` for batches of images, and for their mirror images if `mirror`.

    Args:
        calls: the batches, (n, H, W, C) uint8.
        look: (n, H, W, C) uint8 -> (n, ...).
        text: label of the progress.

    Returns:
        (images, views, ...).
    """
    rows = np.empty(0)
    done = 0
    with advancing(sum(map(len, calls)), text) as advance:
        for number, images in enumerate(calls):
            views = [images, np.ascontiguousarray(images[:, :, ::-1])] if mirror else [images]
            found = np.stack([look(view) for view in views], axis=1)
            if number == 0:
                rows = np.empty((sum(map(len, calls)), *found.shape[1:]), found.dtype)
            rows[done : done + len(images)] = found
            done += len(images)
            advance(len(images))
    return rows


def kept_in(cache: Path, identity: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The views in a cache, or else from `compute`, which are then written to the cache.

    Args:
        cache: an .npz file.
        identity: identifies the content. A cache with another identity is overwritten.

    Raises:
        EnvironmentFault: the cache cannot be written.
    """
    if (kept := read_views(cache, identity)) is not None:
        return kept
    views = compute()
    buffer = io.BytesIO()
    np.savez(buffer, identity=np.array(identity), views=views)
    save_file(cache, buffer.getvalue())
    return views


def read_views(cache: Path, identity: str) -> np.ndarray | None:
    """The views in a cache; None if it is missing or damaged, or has another identity."""
    try:
        require_regular(cache)
        with np.load(cache, allow_pickle=False) as kept:
            if str(kept["identity"]) != identity:
                return None
            views = np.array(kept["views"])
            if views.dtype.kind != "f":
                return None
            return views if bool(np.isfinite(views).all()) else None
    except UNREADABLE_OR_GONE:
        return None  # missing or damaged, so the views are computed


@dataclass(frozen=True)
class TrainData:
    """The training and the validation images, in memory.

    Attributes:
        images, labels: (n, H, W, C) uint8 and (n,) int64, for training.
        held_images, held_labels: the same for validation.
        classes: number of classes.
        origin: fingerprints of the shards, and the limit. They identify the data on resume.
        teacher_logits: (n, classes) float32 for the training images; None without a teacher.
        first_weights: tensors to start from; None for random weights.
        first_normalisation: "mean" and "std" that belong to these tensors; None if the channels
            differ.
    """

    images: np.ndarray
    labels: np.ndarray
    held_images: np.ndarray
    held_labels: np.ndarray
    classes: int
    origin: tuple[str, ...] = ()
    teacher_logits: np.ndarray | None = None
    first_weights: Mapping[str, np.ndarray] | None = None
    first_normalisation: dict[str, list[float]] | None = None


def load(
    args: TrainArguments, settings_for: Callable[[tuple[int, ...]], TrainSettings]
) -> tuple[TrainData, dict[str, Any], TrainSettings]:
    """Read the training data. Returns the data, facts for the record, and settings.

    Args:
        settings_for: (H, W, C) of the images -> settings.

    Raises:
        DataFault: labels or class names are missing, or the teacher does not fit the images.
        EnvironmentFault: a file is missing or unreadable.
    """
    images, labels, facts = _read(args)
    settings = settings_for(images.shape[1:])
    used, held = split(len(images), settings.validation_share, settings.seed)
    taught = None
    if args.teacher is not None:
        taught = teacher_logits(_ask_teacher(args, settings, images, facts)[used])
    first = normalisation = None
    if args.init is not None:
        info = describe_weights(args.init)
        first = read_tensors(info)
        if info.shape[2] == images.shape[3]:
            normalisation = info.metadata["normalisation"]
        facts["init_weights"] = args.init.name
    data = TrainData(
        images[used],
        labels[used],
        images[held],
        labels[held],
        classes=len(facts["class_names"]),
        origin=_origin(facts),
        teacher_logits=taught,
        first_weights=first,
        first_normalisation=normalisation,
    )
    return data, facts, settings


def _read(args: TrainArguments) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Read the images and labels of the shards, up to `limit`; and facts for the record."""
    with ShardSet.open(args.shards) as shards:
        images, labels = shards.read(np.arange(len(shards))[: args.limit])
        infos, names = shards.infos, shards.class_names
    if labels is None:
        raise DataFault(f"{infos[0].path} has no labels; training needs labelled shards")
    if names is None:
        names = tuple(str(label) for label in range(int(labels.max()) + 1))
    if labels.min() < 0 or labels.max() >= len(names):
        raise DataFault(
            f"labels run from {labels.min()} to {labels.max()} but there are {len(names)} class "
            "names; make the shards again"
        )
    facts = {
        "class_names": list(names),
        "sources": [info.source for info in infos],
        "shard_fingerprints": [info.fingerprint for info in infos],
        "limit": args.limit,
    }
    return images, labels, facts


def _ask_teacher(
    args: TrainArguments,
    settings: TrainSettings,
    images: np.ndarray,
    facts: dict[str, Any],
) -> np.ndarray:
    """The teacher's log-probabilities for every image of the shards, (n, views, classes)
    float32."""
    path = args.teacher
    assert path is not None
    info = describe_weights(path, SINGLE)
    check_fit([info], images.shape[1:], facts["class_names"])
    facts["teacher_weights"] = path.name
    mirror, how = settings.flips, Loading(args.device, args.threads)
    identity = json.dumps(["views", info.fingerprint, mirror, len(images), *_origin(facts)])
    return kept_in(args.teacher_file, identity, lambda: teacher_views(path, images, mirror, how))


def _origin(facts: dict[str, Any]) -> tuple[str, ...]:
    return (*facts["shard_fingerprints"], f"limit {facts['limit']}")
