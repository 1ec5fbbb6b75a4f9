"""What a single network says of every image, computed once before a training and kept in a file: a
teacher's answers, or the features below the last layer. If training mirrors images, the mirror
image is a second view.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
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

TEACHER_BATCH = 64


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
        return each_view(calls, log_probabilities, mirror, "the teacher looks at the images")


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
    with TrainingProgress(len(calls), 0, len(calls[0])) as progress:
        for number, images in enumerate(calls):
            views = [images, np.ascontiguousarray(images[:, :, ::-1])] if mirror else [images]
            found = np.stack([look(view) for view in views], axis=1)
            if number == 0:
                rows = np.empty((sum(map(len, calls)), *found.shape[1:]), found.dtype)
            rows[done : done + len(images)] = found
            done += len(images)
            progress.step(number + 1, text)
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
