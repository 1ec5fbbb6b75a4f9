"""Makes shards from shards: another size or storage, with the same images, labels and ids.

Encoded images are decoded anew to another size, so nothing is resized twice, and are copied
unchanged if they stay encoded. Pixels that become encoded are stored as PNG, which loses nothing.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from collage_mpi.errors import UsageError
from collage_mpi.shards.openshard import read_ids
from collage_mpi.shards.pictures import PictureFit, fit_pixels, parse_fit
from collage_mpi.shards.reader import ShardSet
from collage_mpi.shards.schema import split_part


class ShardRows:
    """Images of open shards by global index.

    Args:
        shards: must stay open as long as this is in use.
        fit: size to make of the images, or None to keep theirs.
    """

    def __init__(self, shards: ShardSet, fit: PictureFit | None) -> None:
        self._shards = shards
        self._fit = None if _all_encoded(shards) else fit  # those are decoded to that size
        self.shape = (len(shards), *(shards.shape if fit is None else fit.shape))

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """(m, H, W, C) uint8. Raises DataFault if a row cannot be read."""
        pixels, _ = self._shards.read(rows)
        return pixels if self._fit is None else np.stack([fit_pixels(p, self._fit) for p in pixels])

    def files(self, rows: np.ndarray) -> list[bytes]:
        """m encoded images: the stored files, or PNG. Raises DataFault."""
        if _all_encoded(self._shards):
            return self._shards.read_files(rows)
        return [_png(image) for image in self[rows]]


@contextmanager
def opened_as(paths: Sequence[Path], fit: PictureFit | None) -> Iterator[ShardSet]:
    """Open the shards; encoded ones are read as if they had been made with `fit`.

    Raises:
        EnvironmentFault, DataFault: as `ShardSet.open`.
    """
    with ShardSet.open(paths) as shards:
        if fit is None or not _all_encoded(shards):
            yield shards
            return
        height, width, channels = fit.shape
        changed = {"height": height, "width": width, "channels": channels, "fit": fit.text()}
        infos = [dataclasses.replace(info, **changed) for info in shards.infos]  # type: ignore[arg-type]
    with ShardSet(infos) as shards:
        yield shards


def stored_fit(shards: ShardSet, fit: PictureFit | None) -> PictureFit:
    """How a reader will make pixels of the images once they are stored encoded.

    Raises:
        UsageError: images that are not square, or shards with different fits.
    """
    fits = {info.fit for info in shards.infos}
    if len(fits) > 1:
        ways = ", ".join(sorted(known or "pixels" for known in fits))
        raise UsageError(f"the shards are stored in several ways ({ways}): say --store raw")
    height, width, channels = shards.shape if fit is None else fit.shape
    if height != width:
        raise UsageError(
            f"images of {height} x {width} cannot be stored encoded, which needs square ones: "
            "say --size, or --store raw"
        )
    (known,) = fits
    return parse_fit(known) if known else PictureFit(height, channels=channels)


def ids_of(shards: ShardSet) -> list[str]:
    """Every image's id, in order; for a shard without ids, its name and the row."""
    found: list[str] = []
    for info in shards.infos:
        name = split_part(info.path)[0].name
        found += read_ids(info) or [f"{name}:{row}" for row in range(info.count)]
    return found


def _all_encoded(shards: ShardSet) -> bool:
    return all(info.storage == "encoded" for info in shards.infos)


def _png(image: np.ndarray) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    plain = image[:, :, 0] if image.shape[2] == 1 else image
    Image.fromarray(plain).save(buffer, "PNG")
    return buffer.getvalue()
