"""Reads the inputs of a training run: shards, first weights, and outputs of a
single network for every image (a teacher's answers, or features). These outputs are computed once,
and cached in a file. If training mirrors images, the mirror image is a second view.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.kinds import SINGLE
from collage_mpi.models import describe, load_predictor
from collage_mpi.models.gate import sha256_of_network
from collage_mpi.models.info import Geometry, Loading, check_fit
from collage_mpi.models.named import read_spec
from collage_mpi.models.weights import describe_weights, read_tensors
from collage_mpi.shards import ShardSet
from collage_mpi.system.files import UNREADABLE_OR_GONE, require_regular, save_file
from collage_mpi.system.progress import advancing
from collage_mpi.training.batches import split
from collage_mpi.training.settings import TrainArguments, TrainSettings

TEACHER_BATCH = 64


def teacher_logits(views: np.ndarray) -> np.ndarray:
    """The logarithm of the probabilities' mean over all views, (n, classes) float32.

    Args:
        views: (n, views, classes) float32, from `teacher_views`.
    """
    found: np.ndarray = np.logaddexp.reduce(views, axis=1) - np.float32(np.log(views.shape[1]))
    return found


def teacher_fingerprint(spec: str, trusted: str) -> str:
    """Identifies a teacher: the fingerprint of its weights file, or the hash of its name and file.

    Args:
        spec: any network that `run` takes as its single network.
        trusted: the setting trust_network.

    Raises:
        UsageError, EnvironmentFault, DataFault: as `describe`.
    """
    info = describe(spec, SINGLE, trusted)
    if info is not None:
        return info.fingerprint
    named = read_spec(spec)
    if named is None:
        raise UsageError(f"--teacher {spec}: a null network has nothing to teach")
    files = [
        file for file in (named.name, named.option("weights")) if file and Path(file).is_file()
    ]
    words = [spec, *(sha256_of_network(Path(file)) for file in files)]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def teacher_loading(args: TrainArguments, shape: tuple[int, ...], classes: int | None) -> Loading:
    """How a teacher is loaded for images of shape (H, W, C).

    Args:
        classes: number of classes; None to take it from the teacher.
    """
    geometry = Geometry(shape, 3, shape[0], classes)
    trusted = args.trust_network
    return Loading(args.device, args.threads, geometry=geometry, trusted=trusted)


def teacher_views(spec: str, images: np.ndarray, mirror: bool, how: Loading) -> np.ndarray:
    """The log-probabilities of a single network, (n, views, classes) float32.

    Args:
        spec: any network that `run` takes as its single network.
        images: (n, H, W, C) uint8, in the order of the shards, without augmentation.
        mirror: whether the mirror image is a second view.
        how: device, threads, and the geometry of the images.

    Raises:
        DataFault: the network takes images of another shape.
    """
    teacher: Any = load_predictor(spec, SINGLE, how)
    check_fit([teacher.info], images.shape[1:], None)

    def log_probabilities(pixels: np.ndarray) -> np.ndarray:
        found: np.ndarray = teacher.predict(pixels)[:, 0]
        logs: np.ndarray = np.log(np.maximum(found, np.float32(1e-30)))
        return logs

    return each_view(
        calls_of([images], TEACHER_BATCH), log_probabilities, mirror, "the teacher looks at"
    )


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
        DataFault: there are neither labels nor a teacher, or the teacher does not fit the images.
        EnvironmentFault: a file is missing or unreadable.
    """
    images, labels, names, facts = _read(args)
    settings = settings_for(images.shape[1:])
    used, held = split(len(images), settings.validation_share, settings.seed)
    taught = None
    if args.teacher is not None:
        names, views = _ask_teacher(args, settings, images, names, facts)
        answers = teacher_logits(views)  # (n, classes)
        taught = answers[used]
        if labels is None:
            labels, facts["labels"] = answers.argmax(1), "of the teacher"
    if labels is None:
        raise DataFault(
            f"{args.shards[0]} has no labels. Training needs labels, or a network that answers in "
            "their place: --teacher NETWORK"
        )
    facts["class_names"] = list(names or map(str, range(int(labels.max()) + 1)))
    if labels.min() < 0 or labels.max() >= len(facts["class_names"]):
        raise DataFault(
            f"labels run from {labels.min()} to {labels.max()} but there are "
            f"{len(facts['class_names'])} class names; make the shards again"
        )
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


def _read(
    args: TrainArguments,
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...] | None, dict[str, Any]]:
    """Read the images, labels and class names of the shards, up to `limit`; and facts for the
    record.
    """
    with ShardSet.open(args.shards) as shards:
        images, labels = shards.read(np.arange(len(shards))[: args.limit])
        infos, names = shards.infos, shards.class_names
    facts = {
        "sources": [info.source for info in infos],
        "shard_fingerprints": [info.fingerprint for info in infos],
        "limit": args.limit,
    }
    return images, labels, names, facts


def _ask_teacher(
    args: TrainArguments,
    settings: TrainSettings,
    images: np.ndarray,
    names: tuple[str, ...] | None,
    facts: dict[str, Any],
) -> tuple[tuple[str, ...], np.ndarray]:
    """The class names, and the teacher's log-probabilities for every image of the shards,
    (n, views, classes) float32.
    """
    spec = args.teacher
    assert spec is not None
    info = describe(spec, SINGLE, args.trust_network)
    names = check_fit([info], images.shape[1:], names)
    facts["teacher_weights"] = Path(spec).name
    how = teacher_loading(args, images.shape[1:], len(names) if names else None)
    identity = json.dumps(["views", settings.teacher, settings.flips, len(images), *_origin(facts)])
    views = kept_in(
        args.teacher_file, identity, lambda: teacher_views(spec, images, settings.flips, how)
    )
    names = names or tuple(map(str, range(views.shape[2])))
    if len(names) != views.shape[2]:
        raise DataFault(
            f"--teacher {spec} has {views.shape[2]} classes and the shards have {len(names)}: give "
            "a network of the same classes"
        )
    return names, views


def _origin(facts: dict[str, Any]) -> tuple[str, ...]:
    return (*facts["shard_fingerprints"], f"limit {facts['limit']}")
