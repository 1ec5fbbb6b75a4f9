"""A teacher's logits for every image of the shards, computed once and kept in a file."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from collage_mpi.kinds import SINGLE
from collage_mpi.models.fit import check_fit
from collage_mpi.models.info import Loading, NetworkInfo
from collage_mpi.models.predictor import TorchPredictor
from collage_mpi.models.weights import describe_weights
from collage_mpi.system.files import UNREADABLE_OR_GONE, require_regular, save_file
from collage_mpi.training.parts import resolve_precision
from collage_mpi.training.progress import TrainingProgress

BATCH = 64


def check_teacher(path: Path, shape: tuple[int, ...], class_names: Sequence[str]) -> NetworkInfo:
    """The facts of a single network that can teach on these images and classes.

    Raises:
        EnvironmentFault, DataFault: not weights of a single network, or made for other images
            or classes.
    """
    info = describe_weights(path, SINGLE)
    check_fit([info], shape, class_names)
    return info


def teacher_logits(views: np.ndarray) -> np.ndarray:
    """(n, classes) float32 log-probabilities: the mean of the probabilities of all views.

    Args:
        views: (n, views, classes) float32, from `teacher_views`.
    """
    found: np.ndarray = np.logaddexp.reduce(views, axis=1) - np.float32(np.log(views.shape[1]))
    return found


def teacher_views(
    path: Path,
    images: np.ndarray,
    *,
    mirror: bool,
    cache: Path | None,
    origin: Sequence[str],
    device: str = "cpu",
    threads: int = 1,
) -> np.ndarray:
    """(n, views, classes) float32 log-probabilities of a single network, calibrated.

    They are computed once, so a training step costs no more than without a teacher. The images are
    not augmented; if training mirrors them, the mirror image is a second view.

    Args:
        images: (n, H, W, C) uint8, in the order of the shards.
        mirror: whether the mirror image is a second view.
        cache: an .npz that is read if it has the same teacher, images and `mirror`, and
            written otherwise; None for no file.
        origin: fingerprints of the shards and which part of them is used.

    Raises:
        EnvironmentFault: the cache cannot be written.
    """
    info = describe_weights(path, SINGLE)
    identity = json.dumps(["views", info.fingerprint, mirror, len(images), *origin])
    if cache is not None and (kept := _read(cache, identity)) is not None:
        return kept
    views = _compute(path, images, mirror, device, threads)
    if cache is not None:
        buffer = io.BytesIO()
        np.savez(buffer, identity=np.array(identity), views=views)
        save_file(cache, buffer.getvalue())
    return views


def _compute(path: Path, images: np.ndarray, mirror: bool, device: str, threads: int) -> np.ndarray:
    teacher = TorchPredictor.load(str(path), SINGLE, Loading(device=device, threads=threads))
    rows = np.empty((len(images), 2 if mirror else 1, teacher.classes), dtype=np.float32)
    steps = -(-len(images) // BATCH)
    kind = torch.device(device).type
    half = resolve_precision("auto", torch.device(device)) == "bfloat16"
    with (
        TrainingProgress(steps, 0, BATCH) as progress,
        torch.autocast(kind, torch.bfloat16, enabled=half),
    ):
        for step in range(steps):
            chosen = slice(step * BATCH, (step + 1) * BATCH)
            rows[chosen, 0] = _log_probabilities(teacher, images[chosen])  # (n, classes)
            if mirror:
                flipped = np.ascontiguousarray(images[chosen, :, ::-1])
                rows[chosen, 1] = _log_probabilities(teacher, flipped)
            progress.step(step + 1, "the teacher looks at the images")
    return rows


@torch.inference_mode()
def _log_probabilities(teacher: TorchPredictor, images: np.ndarray) -> np.ndarray:
    logits = teacher.outputs(images)[:, 0].float() / teacher.temperature
    return logits.log_softmax(1).cpu().numpy()


def _read(cache: Path, identity: str) -> np.ndarray | None:
    """The content of the cache, if it is complete and of the same teacher and images."""
    try:
        require_regular(cache)
        with np.load(cache, allow_pickle=False) as kept:
            if str(kept["identity"]) != identity:
                return None
            views = np.array(kept["views"], dtype=np.float32)
    except UNREADABLE_OR_GONE:
        return None  # not there yet, or damaged: it is computed again
    return views if bool(np.isfinite(views).all()) else None
