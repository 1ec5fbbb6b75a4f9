"""The answers of networks that were asked later than the first run of a table: each has a run of
its own, in the folder `beside` of the first run's. An export joins them by the pictures' ids.
"""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.kinds import SINGLE
from collage_mpi.models.named import parts_of
from collage_mpi.results import runs_beside
from collage_mpi.results.export import (
    NameBook,
    SomeRows,
    answer_columns,
    excerpt,
    first_of,
    further_of,
    picked,
    together,
)
from collage_mpi.results.manifest import recorded_settings
from collage_mpi.results.reader import open_run
from collage_mpi.rows import IMAGES, flat_keys

Json = dict[str, Any]


class Beside:
    """Finds the answers of a run beside the first one, for some images of the first one at a time.

    Pictures are the same if they have the same id in the same input, or without ids the same row.
    A picture that is gone is another than one that has come back. An id that is there several times
    means several pictures, in the order of the input.

    Attributes:
        manifest: of the run.
    """

    def __init__(self, name: str, path: Path) -> None:
        """`name`: of its network, which begins the names of its columns. Raises as `open_run`."""
        self._run = open_run(path)
        self.manifest = self._run.manifest
        first, *more = parts_of(str(recorded_settings(self.manifest).get(SINGLE)))
        self._name, self._whole = first.name or name, bool(more)
        self._book = NameBook(path, self.manifest)
        self._further = further_of(self._run)
        keys, found = [np.empty(0, "S16")], [np.empty((0, 2), np.int64)]
        rows = [np.empty(0, np.uint64)]
        for number, piece in enumerate(self._run.pieces(IMAGES)):
            images = piece()
            keys.append(keys_of(self._book, self.manifest, images))
            rows.append(flat_keys(images))
            found.append(np.stack([np.full(len(images), number), np.arange(len(images))], axis=1))
        whole, places = np.concatenate(keys), np.concatenate(found)
        order = np.lexsort((np.concatenate(rows), whole))
        self._keys, self._places = whole[order], places[order]  # (n,), and (n, 2): piece, row
        self._met: Counter[bytes] = Counter()
        self._last: tuple[int, np.ndarray, dict[str, np.ndarray]] = (-1, np.empty(0), {})

    def columns(
        self, keys: np.ndarray, gone: np.ndarray
    ) -> tuple[dict[str, Any], np.ma.MaskedArray]:
        """The answers for images: name -> column, (n,); and why there is none, (n,) text.

        Args:
            keys: from `keys_of`, of images that follow those of the call before.
            gone: (n,) bool, the pictures that are gone, and so need no answer.
        """
        rows = self._rows(keys)
        found = answer_columns(rows, self._book.of(rows.images), self._further)
        named = {
            name if self._whole and name not in ("class", "score") else f"{self._name}_{name}": each
            for name, each in found.items()
        }
        reasons = np.char.decode(rows.images["reason"], "utf-8", "replace").astype(object)
        lacking = (reasons == "") & ~rows.images["answered"] & ~gone
        reasons[lacking] = "has not answered this picture"
        why = np.array([f"{self._name}: {text}" for text in reasons], object)
        return named, np.ma.array(why, mask=reasons == "")

    def _rows(self, keys: np.ndarray) -> SomeRows:
        """The rows of images, in their order, with an empty one for an image that has none."""
        first = np.searchsorted(self._keys, keys, "left")
        last = np.searchsorted(self._keys, keys, "right")
        for at in np.flatnonzero(last - first > 1).tolist():  # an id that is there several times
            first[at] += self._met[bytes(keys[at])]
            self._met[bytes(keys[at])] += 1
        there = np.flatnonzero(first < last)
        places = self._places[first[there]]
        images = np.zeros(len(keys), IMAGES.dtype)
        kept = {
            name: np.zeros_like(like, shape=(len(keys), *like.shape[1:]))
            for name, (like, _) in self._further.items()
        }
        for number in np.unique(places[:, 0]).tolist():
            own = places[:, 0] == number
            rows, values = self._piece(number)
            images[there[own]] = rows[places[own, 1]]
            for name, array in values.items():
                kept[name][there[own]] = array[places[own, 1]]
        return excerpt(self._run, {"images": images}, kept)

    def _piece(self, number: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The rows of a piece, and their kept values."""
        if self._last[0] != number:
            images = self._run.pieces(IMAGES)[number]()
            kept = self._run.kept_of_piece(number, images, tuple(self._further))
            self._last = number, images, kept
        return self._last[1:]


def keys_of(book: NameBook, manifest: Mapping[str, Any], images: np.ndarray) -> np.ndarray:
    """What tells the pictures of an input apart in all runs of it: (n,) bytes, a hash of the path
    of the input, of the id or row, and of whether the picture is gone.

    Args:
        book: of the run.
        manifest: of the run.
        images: (n,) rows of images.
    """
    paths = paths_inside(
        [entry.get("path") or entry["fingerprint"] for entry in manifest["shards"]]
    )
    ids, lost = book.ids(images), gone_of(book, images)
    named = np.where(np.ma.getmaskarray(ids), images["row"].astype(object), ids.data)
    told = zip(images["shard"].tolist(), named.tolist(), lost.tolist(), strict=True)
    digests = [
        hashlib.blake2b(repr((paths[shard], *more)).encode(), digest_size=16)
        for shard, *more in told
    ]
    return np.array([each.digest() for each in digests], "S16")


def gone_of(book: NameBook, images: np.ndarray) -> np.ndarray:
    """(n,) bool, the pictures that are gone. For arguments see `keys_of`."""
    gone = book.removed(images).get("removed")
    return np.zeros(len(images), bool) if gone is None else gone.data


def paths_inside(paths: Sequence[str]) -> list[str]:
    """Paths without what they begin with all, which is another for each way to name a folder."""
    if len({*paths}) == 1:
        return [""] * len(paths)
    common = os.path.commonpath([*map(os.path.abspath, paths)])
    return [os.path.relpath(path, common) for path in paths]


class Joined:
    """The columns of all runs beside the first one of a table.

    Args:
        book: of the first run.
        run: folder of the first run.
        manifest: of the first run.
    """

    def __init__(self, book: NameBook, run: Path, manifest: Mapping[str, Any]) -> None:
        self._book, self._manifest = book, manifest
        self._groups = [Beside(name, path) for name, path in runs_beside(run).items()]

    @property
    def manifests(self) -> Sequence[Json]:
        """Of the runs beside the first one."""
        return [each.manifest for each in self._groups]

    def columns(self, images: np.ndarray) -> tuple[dict[str, Any], np.ma.MaskedArray]:
        """As `Beside.columns`, of all of them; of several reasons the first. `images`: rows of the
        first run, which follow those of the call before."""
        keys = keys_of(self._book, self._manifest, images) if self._groups else np.empty(0)
        found: dict[str, Any] = {}
        why = picked((), np.zeros(len(images), np.int64), np.zeros(len(images), bool))
        for each in self._groups:
            own, reasons = each.columns(keys, gone_of(self._book, images))
            found = together(found, own)
            why = first_of(why, reasons)
        return found, why
