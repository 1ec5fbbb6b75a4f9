"""Chooses who decodes the JPEG files of a run: libjpeg-turbo, if it gives the pixels of Pillow."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from collage_mpi.errors import UsageError
from collage_mpi.shards.pictures import (
    GPU,
    PILLOW,
    TURBO,
    UnreadablePicture,
    parse_fit,
    picture_pixels,
)
from collage_mpi.shards.reader import ShardSet
from collage_mpi.system.fields import AUTO

JUDGED, LEAST_JUDGED = 64, 8  # pictures that both decoders decode
JUDGED_SHARE = 100  # one picture of so many is judged, since libjpeg-turbo saves only some 6 %


def choose_decoder(asked: str, shards: ShardSet, order: np.ndarray) -> str:
    """The decoder of a run, one of `pictures.DECODERS`, which its manifest names.

    Args:
        asked: the setting.
        shards: the input.
        order: (n,) int64, global indices of the images that are classified.

    Raises:
        UsageError: the decoder is not installed, or does not exist yet.
        ShardFault: a shard can no longer be read.
    """
    installed = find_spec("simplejpeg") is not None
    if asked == GPU:
        raise UsageError("--decoder gpu: not yet. Choose auto, pillow or turbo")
    if asked == TURBO and not installed:
        raise UsageError(
            "--decoder turbo needs the package simplejpeg, which is not installed: "
            "pip install 'simplejpeg>=1.9'"
        )
    count = min(JUDGED, len(order) // JUDGED_SHARE)
    if asked != AUTO or shards.fit is None or not installed or count < LEAST_JUDGED:
        return asked if asked == TURBO else PILLOW
    chosen = order[np.linspace(0, len(order) - 1, count).astype(np.int64)]
    files, _ = shards.read_files_checked(np.unique(chosen))
    return TURBO if _alike([data for data in files if data is not None], shards.fit) else PILLOW


def _alike(files: list[bytes], fit: str) -> bool:
    """Whether both decoders give the same pixels for all good pictures, and one is good."""
    alike = 0
    for data in files:
        try:
            known = picture_pixels(data, parse_fit(fit))
        except UnreadablePicture:
            continue
        if not np.array_equal(known, picture_pixels(data, parse_fit(fit), decoder=TURBO)):
            return False
        alike += 1
    return alike > 0
