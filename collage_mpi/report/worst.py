"""The worst images of a run with thumbnails: wrong answers with the highest scores, or, without
labels, answers with the lowest scores.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from collage_mpi.report.tables import name_or_number
from collage_mpi.results.names import from_shards, image_names
from collage_mpi.results.reader import Results, Run
from collage_mpi.results.rows import IMAGES, SOURCES
from collage_mpi.system.printable import counted

EDGE_PX = 96
SMALL_PX = 48  # up to here PNG is smaller than JPEG


@dataclass(frozen=True)
class Picture:
    """One image: its lines of text, and its thumbnail as a data URI, or None if its shard is
    missing.
    """

    uri: str | None
    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Worst:
    """The images that are shown, and notes about those that could not be read."""

    heading: str
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...] = ()


def worst_images(run: Run, shards: Sequence[Path | str] | None, most: int) -> Worst | None:
    """The `most` wrong answers with the highest scores, or answers with the lowest scores if there
    are no labels.

    Args:
        shards: where the run's shards are now; by default where they were.

    Returns:
        None if no answer is wrong, or the images were simulated.

    Raises:
        EnvironmentFault: `shards` holds nothing.
    """
    labelled = any(rows["has_label"].any() for rows in run.chunks(IMAGES))
    chosen, n = _chosen(run, labelled, most)
    if not n:
        return None
    heading = "Wrong and sure of it" if labelled else "Least sure"
    heading += f": {len(chosen)} of {n:,} {'wrong answers' if labelled else 'answers'}"
    none = np.empty(0)
    names = image_names(Results(run.path, run.manifest, chosen, none, none, run.complete), shards)
    pixels, notes = _pixels(run, chosen, shards)
    pictures = []
    for i, row in enumerate(chosen):
        place = f"{names.shard_name[i]}, row {int(row['row']):,}"
        title = name_or_number(run, int(row["predicted"]))
        title = f"{name_or_number(run, int(row['label']))} taken for {title}" if labelled else title
        named = () if names.id[i] is np.ma.masked else (str(names.id[i]),)
        sure = f"score {float(row['score']):.3f}, {SOURCES[int(row['source'])]}"
        uri = _thumbnail(pixels[i]) if i in pixels else None
        pictures.append(Picture(uri, title, (sure, *named, place)))
    return Worst(heading, tuple(pictures), notes)


def _chosen(run: Run, labelled: bool, most: int) -> tuple[np.ndarray, int]:
    """The rows of those images, (at most `most`,) of IMAGE_ROW, and their total number."""
    entries = run.manifest["shards"]
    real = np.array([bool(entry.get("path")) for entry in entries] or [False])
    chosen, n = np.empty(0, IMAGES.dtype), 0
    for images in run.chunks(IMAGES):
        images = images[images["answered"] & (images["shard"] < len(entries))]
        images = images[real[images["shard"]]]
        if labelled:
            images = images[images["has_label"] & (images["predicted"] != images["label"])]
        n += len(images)
        chosen = np.concatenate([chosen, images])
        by = -chosen["score"] if labelled else chosen["score"]
        chosen = chosen[np.argsort(by, kind="stable")[:most]]
    return chosen, n


def _pixels(
    run: Run, chosen: np.ndarray, shards: Sequence[Path | str] | None
) -> tuple[dict[int, np.ndarray], tuple[str, ...]]:
    """Place in `chosen` -> (H, W, C) uint8 for readable images, and the reasons for the others."""
    from collage_mpi.shards import ShardSet
    from collage_mpi.shards.schema import ShardInfo

    def read(number: int, info: ShardInfo) -> dict[int, np.ndarray]:
        places = np.flatnonzero(chosen["shard"] == number)
        with ShardSet([info]) as source:
            images, _, good = source.read_checked(chosen["row"][places].astype(np.int64))
        return {p: images[i] for i, p in enumerate(places.tolist()) if good[i]}

    entries = run.manifest["shards"]
    numbers = np.unique(chosen["shard"]).tolist()
    found, missing = from_shards({number: entries[number] for number in numbers}, shards, read)
    pixels = {place: image for of in found.values() for place, image in of.items()}
    if not missing:
        return pixels, ()
    return pixels, (
        f"No pictures of {counted(len(missing), 'shard')}: {missing[0]}. --shards PATH says "
        "where they are now.",
    )


def _thumbnail(pixels: np.ndarray) -> str:
    """(H, W, C) uint8 as a data URI of at most EDGE_PX: PNG where small, else JPEG."""
    from PIL import Image

    plain = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    picture = Image.fromarray(plain)
    picture.thumbnail((EDGE_PX, EDGE_PX))
    kind = "png" if max(picture.size) <= SMALL_PX else "jpeg"
    out = io.BytesIO()
    picture.save(out, kind, **({"optimize": True} if kind == "png" else {"quality": 80}))
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"
