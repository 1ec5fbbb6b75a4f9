"""Makes the rows of groups from those of their images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from collage_mpi.kinds import COLLAGE
from collage_mpi.rows import GROUPS, IMAGES, SOURCE_CODE, columns_of

_OF_GROUP = IMAGES.only(
    *("session", "group", "t0_ns", "latency_ns", "encode_ns"),
    *("source", "has_label", "label", "warmup"),
)


class Groups:
    """Makes the rows of groups from rows of images that come some at a time.

    The images of a group that is not whole wait. A session that was killed may have lost images of
    its last groups, which are therefore left out.

    Args:
        manifest: of the run.
    """

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self._size = (manifest.get("side") or 0) ** 2
        entries = manifest.get("sessions") or []
        # The entry of a session that is about to close has no rows yet.
        self._killed = [e["session"] for e in entries if "rows" in e and e["rows"] is None]
        self._waiting = np.empty(0, _OF_GROUP)

    def add(self, images: np.ndarray) -> np.ndarray:
        """Take images, (n,) of IMAGE_ROW, superseded error rows too.

        Returns:
            (k,) of GROUP_ROW: the groups that are whole now.
        """
        images = np.concatenate([self._waiting, columns_of(images, _OF_GROUP)])
        images, _, counts = _by_group(images)
        whole = np.repeat(counts == self._size, counts)  # (n,)
        self._waiting = images[~whole]
        return _rows(images[whole])

    def rest(self) -> np.ndarray:
        """(k,) of GROUP_ROW: the other groups, after all images have come."""
        return _rows(self._waiting[~np.isin(self._waiting["session"], self._killed)])


def groups_of(images: np.ndarray, manifest: Mapping[str, Any]) -> np.ndarray:
    """The rows of all groups, (k,) of GROUP_ROW, by session and number. For `images` see
    `Groups.add`.
    """
    groups = Groups(manifest)
    found = np.concatenate([groups.add(images), groups.rest()])
    return found[np.lexsort((found["group"], found["session"]))]


def _by_group(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images in the order of their groups; the first place and the size of each group."""
    images = images[np.lexsort((images["t0_ns"], images["group"], images["session"]))]
    first = np.ones(len(images), bool)
    first[1:] = False
    for name in ("session", "group"):
        first[1:] |= images[name][1:] != images[name][:-1]
    starts = np.flatnonzero(first)
    return images, starts, np.diff(np.append(starts, len(images)))


def _rows(images: np.ndarray) -> np.ndarray:
    images, starts, counts = _by_group(images)
    found = np.zeros(len(starts), GROUPS.dtype)
    if not len(starts):
        return found
    for name in ("session", "group", "t0_ns", "warmup"):
        found[name] = images[name][starts]
    found["images"] = counts
    ends_ns = np.maximum.reduceat(images["t0_ns"] + images["latency_ns"], starts)
    found["latency_ns"] = ends_ns - found["t0_ns"]
    found["encode_ns"] = np.maximum.reduceat(images["encode_ns"], starts)
    collage = images["source"] == SOURCE_CODE[COLLAGE]
    found["collage_cells"] = np.add.reduceat(collage, starts, dtype=np.int64)
    number = np.repeat(np.arange(len(starts)), counts)
    labelled = images["has_label"]
    pairs = np.unique(np.stack([number[labelled], images["label"][labelled]]), axis=1)
    found["classes"] = np.bincount(pairs[0].astype(np.int64), minlength=len(starts))
    return found
