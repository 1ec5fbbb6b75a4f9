"""Reads the files of a training run, once a host: shards, first weights, and what a single network
says of every image: a teacher's answers, or the features below the last layer. They are computed
once before a training and kept in a file. If training mirrors images, the mirror image is a second
view.
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

from collage_mpi.encoding.decode import summands
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
from collage_mpi.training.peers import Arrays, Peers, read_once
from collage_mpi.training.settings import TrainArguments, TrainSettings

TEACHER_BATCH = 64


def teacher_logits(views: np.ndarray) -> np.ndarray:
    """(n, classes) float32 log-probabilities: the mean of the probabilities of all views.

    Args:
        views: (n, views, classes) float32, from `teacher_views`.
    """
    found: np.ndarray = np.logaddexp.reduce(views, axis=1) - np.float32(np.log(views.shape[1]))
    return found


def teacher_views(path: Path, images: np.ndarray, mirror: bool, how: Loading) -> np.ndarray:
    """(n, views, classes) float32 log-probabilities of a single network, calibrated.

    Args:
        images: (n, H, W, C) uint8, in the order of the shards; they are not augmented.
        mirror: whether the mirror image is a second view.
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
    """Images (n, H, W, C) of several parts, cut into batches."""
    return [part[at : at + batch] for part in parts for at in range(0, len(part), batch)]


def each_view(
    calls: Sequence[np.ndarray], look: Callable[[np.ndarray], np.ndarray], mirror: bool, text: str
) -> np.ndarray:
    """(images, views, ...): what `look` gives for the batches of images and their mirror images.

    Args:
        text: what is done, for the progress.
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
    """The views in an .npz, if it is complete and has this identity; else computed and written.

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
    """The views in a cache of this identity; None if it is missing, damaged or another one."""
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
        return None  # not there yet, or damaged: it is computed again


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


def load(
    args: TrainArguments, settings_for: Callable[[tuple[int, ...]], TrainSettings], peers: Peers
) -> tuple[TrainData, dict[str, Any], TrainSettings]:
    """Training data, read once a host; facts for the record; settings.

    Args:
        settings_for: the settings for images of a shape (H, W, C).

    Raises:
        DataFault: no labels, labels without a name, or a teacher or first weights that do not fit.
        EnvironmentFault: a file is missing or unreadable.
    """

    def read() -> tuple[Arrays, dict[str, Any]]:
        images, labels, facts = _read(args)
        settings = settings_for(images.shape[1:])
        used, held = split(len(images), settings.validation_share, settings.seed)
        arrays = {
            "images": images[used],
            "labels": labels[used],
            "held_images": images[held],
            "held_labels": labels[held],
        }
        if args.teacher is not None:
            views = _ask_teacher(args, settings, peers, images, facts)
            arrays |= _taught(views, settings, used, held)
        return arrays, facts

    arrays, facts = read_once(peers, read)
    if peers.size > 1:
        facts["processes"] = peers.size
    first = normalisation = None
    if args.init is not None:
        info = describe_weights(args.init)
        first = read_tensors(info)
        if info.shape[2] == arrays["images"].shape[3]:
            normalisation = info.metadata["normalisation"]
        facts["init_weights"] = args.init.name
    data = TrainData(
        **arrays,
        classes=len(facts["class_names"]),
        origin=_origin(facts),
        first_weights=first,
        first_normalisation=normalisation,
    )
    return data, facts, settings_for(arrays["images"].shape[1:])


def _read(args: TrainArguments) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """(images, labels, facts for the record) of all images of the shards, or the first `limit`."""
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


def _taught(
    views: np.ndarray, settings: TrainSettings, used: np.ndarray, held: np.ndarray
) -> Arrays:
    """What the objective needs of a teacher's log-probabilities (n, views, classes)."""
    if settings.parity is None:
        return {"teacher_logits": teacher_logits(views[used])}
    each = summands(np.exp(views), settings.parity.summed)
    return {"summands": each[used], "held_summands": each[held]}


def _ask_teacher(
    args: TrainArguments,
    settings: TrainSettings,
    peers: Peers,
    images: np.ndarray,
    facts: dict[str, Any],
) -> np.ndarray:
    """(n, views, classes) float32: the teacher's answers for every image of the shards."""
    path = args.teacher
    assert path is not None
    info = describe_weights(path, SINGLE)
    check_fit([info], images.shape[1:], facts["class_names"])
    facts["teacher_weights"] = path.name
    mirror, how = settings.flips, Loading(peers.device, args.threads)
    identity = json.dumps(["views", info.fingerprint, mirror, len(images), *_origin(facts)])
    return kept_in(args.teacher_file, identity, lambda: teacher_views(path, images, mirror, how))


def _origin(facts: dict[str, Any]) -> tuple[str, ...]:
    return (*facts["shard_fingerprints"], f"limit {facts['limit']}")
