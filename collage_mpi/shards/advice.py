"""The `prep hdf5` command to type for a dataset that a job cannot use directly."""

from __future__ import annotations

import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.shards.schema import CHANNELS, split_part

LOOK_ROWS = 64  # from each end, to tell the range of float pixels


def convert(path: Path, images: str, labels: str | None, *flags: str) -> str:
    """The command that makes a shard of the dataset."""
    words = ["collage-mpi", "prep", "hdf5", str(split_part(path)[0]), "--images", images]
    words += ["--labels", labels] if labels else []
    return f"`{shlex.join([*words, *flags, '--out', 'shards'])}`"


def flags_for(item: Any, count: int | None = None) -> list[str] | None:
    """The flags that `prep hdf5` needs for a dataset of images, or None if they cannot be known.

    Args:
        item: the dataset.
        count: how many labels there are, if known.
    """
    if item.ndim not in (2, 3, 4) or min(item.shape) < 1 or item.dtype.kind not in "uif":
        return None
    shape: list[str] | None = []
    if item.ndim == 2:
        in_columns = count == item.shape[1] != item.shape[0]
        shape = _shape_flag(item.shape[0 if in_columns else 1])
    elif item.ndim == 4:
        first, last = item.shape[1] in CHANNELS, item.shape[3] in CHANNELS
        shape = None if not (first or last) else ["--axes", "NHWC"] if first and last else []
    bounds = range_flag(item)
    return None if shape is None or bounds is None else [*shape, *bounds]


def _shape_flag(values: int) -> list[str] | None:
    for channels in CHANNELS:
        side = math.isqrt(values // channels)
        if values > channels and side * side * channels == values:
            return ["--shape", f"{side},{side}" + (f",{channels}" if channels > 1 else "")]
    return None


def range_flag(item: Any) -> list[str] | None:
    """The --range flag for the values of a dataset; [] if none is needed, None if it is unclear."""
    if item.dtype == np.uint8:
        return []
    low, high = range_of(item)
    if item.dtype.kind == "f" and low >= 0 and high <= 1:
        return ["--range", "0:1"]
    if low >= 0 and high <= 255:
        return ["--range", "0:255"]
    if item.dtype == np.uint16:
        return ["--range", "0:65535"]
    if item.dtype.kind == "f" and low >= -1 and high <= 1:
        return ["--range=-1:1"]
    return None


def range_of(images: Any) -> tuple[float, float]:
    """Smallest and largest value in the first and last rows of a dataset."""
    rows = max(1, min(LOOK_ROWS, (32 << 20) // max(1, images.dtype.itemsize * images[0].size)))
    ends = np.concatenate([images[:rows], images[-rows:]])
    return float(ends.min()), float(ends.max())
