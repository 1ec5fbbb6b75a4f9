"""Real answers for a simulation, from a file of `evaluate --save-answers`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.core.events import Positions
from collage_mpi.errors import DataFault
from collage_mpi.kinds import BACKUP, COLLAGE, SINGLE
from collage_mpi.rows import ABSENT, CELL, PRESENT
from collage_mpi.system.files import reading, require_regular, save_file

VERSION = 1
# name -> kinds of dtype, dimensions
_ARRAYS = {
    **dict.fromkeys(("version", "side"), ("iu", 0)),
    "labels": ("iu", 1),
    "class_names": ("U", 1),
}
_OTHERS = (COLLAGE, BACKUP)  # a file may lack the answers of these


@dataclass(frozen=True)
class Answers:
    """For each image of a data set its label and the answers of the networks.

    Image i of a simulation takes row start + i, modulo the images in full groups. So the images of
    a full group were in one collage.

    Attributes:
        side: of the collages.
        labels: (n,) int64.
        known: kind that was evaluated -> (n,) of CELL.
        start: row of the first image, a multiple of side x side.
    """

    side: int
    class_names: tuple[str, ...]
    labels: np.ndarray
    known: Mapping[str, np.ndarray]
    start: int = 0

    def label(self, images: np.ndarray) -> np.ndarray:
        """True classes of simulated images, (n,) int64."""
        found: np.ndarray = self.labels[(self.start + images) % len(self.labels)]
        return found

    def cells(self, kind: str, positions: Positions) -> np.ndarray:
        """The kind's answers for these images, (n,) of CELL; absent if the kind was not
        evaluated."""
        known = self.known.get(kind)
        if known is None:
            return np.zeros(len(positions), CELL)
        found: np.ndarray = known[(self.start + np.asarray(positions)) % len(known)]
        return found


def save_answers(
    path: Path,
    side: int,
    labels: np.ndarray,
    answers: Mapping[str, Sequence[tuple[int, float] | None]],
    class_names: Sequence[str],
) -> None:
    """Write an .npz of plain arrays (no pickle) about n images in file order.

    Image i is cell i % side**2 of group i // side**2. The last group has blank cells.

    Arrays:
        version, side: int, no dimension.
        labels: (n,) int64.
        single_class, single_score: (n,) int16 and float32.
        collage_class, collage_score: the same for the image's cell; meaningless where absent.
        collage_absent: (n,) bool, the collage network gave no answer for the cell. Only with a
            collage network. backup_class and so on are the same for a quick network.
        class_names: (k,) unicode.

    Args:
        labels: (n,) int64.
        answers: by kind, n answers of single and of each other kind; scores are calibrated
            probabilities.

    Raises:
        EnvironmentFault: the file cannot be written.
    """
    columns: dict[str, Any] = {}
    for kind, each in answers.items():
        filled = [answer or (0, 0.0) for answer in each]
        columns[f"{kind}_class"] = np.array([label for label, _ in filled], dtype=np.int16)
        columns[f"{kind}_score"] = np.array([score for _, score in filled], dtype=np.float32)
        columns[f"{kind}_absent"] = np.array([answer is None for answer in each], dtype=bool)
    del columns[f"{SINGLE}_absent"]  # it always answers
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        version=VERSION,
        side=side,
        labels=labels.astype(np.int64),
        class_names=np.array(list(class_names), dtype=np.str_),
        **columns,
    )
    save_file(path, buffer.getvalue())


def answers_file(name: str, side: int) -> Path:
    """The file of answers for a side."""
    return Path(name.replace("{side}", str(side)))


def read_answers(path: Path, side: int) -> Answers:
    """Read a file of `evaluate --save-answers` for groups of `side` x `side`.

    Raises:
        EnvironmentFault: it cannot be read.
        DataFault: another file, damaged, of another side, or without one full group.
    """
    with reading(f"answers {path}", "no file of evaluate --save-answers"):
        require_regular(path)
        file = np.load(path, allow_pickle=False)
        if isinstance(file, np.ndarray):
            raise ValueError("it holds a single array")
        with file:
            arrays = {name: file[name] for name in (*_ARRAYS, *_arrays_of(SINGLE))}
            for kind in _OTHERS:
                if any(f"{kind}_{what}" in file for what in ("class", "score", "absent")):
                    arrays |= {name: file[name] for name in _arrays_of(kind)}
    _check(arrays, path, side)
    n = len(arrays["labels"]) // side**2 * side**2  # images in full groups
    if n == 0:
        raise DataFault(
            f"answers {path} has {len(arrays['labels'])} images; a group of side {side} needs "
            f"{side**2}"
        )
    there = _there(arrays)
    return Answers(
        side=side,
        class_names=tuple(arrays["class_names"].tolist()),
        labels=arrays["labels"][:n].astype(np.int64),
        known={kind: _scores(arrays, kind, n) for kind in there},
    )


def _arrays_of(kind: str) -> dict[str, tuple[str, int]]:
    found = {f"{kind}_class": ("iu", 1), f"{kind}_score": ("f", 1)}
    return found | ({} if kind == SINGLE else {f"{kind}_absent": ("b", 1)})


def _there(arrays: Mapping[str, np.ndarray]) -> list[str]:
    return [kind for kind in (SINGLE, *_OTHERS) if f"{kind}_class" in arrays]


def _scores(arrays: Mapping[str, np.ndarray], kind: str, n: int) -> np.ndarray:
    cells = np.zeros(n, CELL)
    cells["label"], cells["score"] = arrays[f"{kind}_class"][:n], arrays[f"{kind}_score"][:n]
    absent = arrays.get(f"{kind}_absent", np.zeros(n, bool))
    cells["state"] = np.where(absent[:n], ABSENT, PRESENT)
    return cells


def _check(arrays: Mapping[str, np.ndarray], path: Path, side: int) -> None:
    there, expected = _there(arrays), dict(_ARRAYS)
    for kind in there:
        expected |= _arrays_of(kind)
    n = len(arrays["labels"]) if arrays["labels"].ndim == 1 else -1
    for name, (kinds, dimensions) in expected.items():
        array = arrays[name]
        sized = not dimensions or name == "class_names" or len(np.atleast_1d(array)) == n
        if array.dtype.kind not in kinds or array.ndim != dimensions or not sized:
            needed = f"it does not fit {n} images" if dimensions else "it needs a whole number"
            found = f"{array.dtype} of shape {array.shape}"
            raise DataFault(f"answers {path}: {name} is {found}; {needed}")
    if int(arrays["version"]) != VERSION:
        raise DataFault(f"answers {path}: version {int(arrays['version'])}; known is {VERSION}")
    if int(arrays["side"]) != side:
        raise DataFault(
            f"answers {path} are of side {int(arrays['side'])}, the settings say --side {side}"
        )
    known = len(arrays["class_names"])
    for name in ("labels", *(f"{kind}_class" for kind in there)):
        absent = arrays.get(name.replace("class", "absent"))
        chosen = arrays[name] if name == "labels" or absent is None else arrays[name][~absent]
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < known:
            raise DataFault(f"answers {path}: {name} is outside of the {known} classes")
