"""The answers of the networks on the same images, in a file that a simulation replays.

Owns: which answers are right, the layout of `evaluate --save-answers` and its atomic write.
Does not know: how an answer was made, who reads the file.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from collage_mpi.kinds import COLLAGE, SINGLE
from collage_mpi.system.files import save_file

VERSION = 1

Answers = Sequence[tuple[int, float] | None]


def save_answers(
    path: Path,
    side: int,
    labels: np.ndarray,
    answers: Mapping[str, Answers],
    class_names: Sequence[str],
    stripes: Mapping[str, int] = MappingProxyType({}),
) -> None:
    """Write an .npz of plain arrays (no pickle); n images in file order.

    Image i is cell i % side**2 of group i // side**2; the last group has blanks.

    Arrays:
        version, side: int, no dimension.
        labels: (n,) int64.
        single_class, single_score: (n,) int16 and float32.
        collage_class, collage_score: the same, of the image's cell; mean nothing where absent.
        collage_absent: (n,) bool, the collage gave no answer for the cell.
        class_names: (k,) unicode.
        parity_class, parity_score, parity_absent: of the image decoded from its stripe with all
            others present; parity_k: int, images of a stripe. Only with a parity network; and
            coded_class etc. likewise.

    Args:
        labels: (n,) int64.
        answers: of single and collage, n each, and of those in `stripes`; scores are
            calibrated probabilities.
        stripes: kind that decodes from stripes -> images of one.

    Raises:
        EnvironmentFault: the place is not writable.
    """
    single_class, single_score, _ = _columns(answers[SINGLE])
    collage_class, collage_score, absent = _columns(answers[COLLAGE])
    more: dict[str, Any] = {}
    for kind, k in stripes.items():
        names = (f"{kind}_class", f"{kind}_score", f"{kind}_absent")
        more |= dict(zip(names, _columns(answers[kind]), strict=True))
        more[f"{kind}_k"] = k
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        version=VERSION,
        side=side,
        labels=labels.astype(np.int64),
        single_class=single_class,
        single_score=single_score,
        collage_class=collage_class,
        collage_score=collage_score,
        collage_absent=absent,
        class_names=np.array(list(class_names), dtype=np.str_),
        **more,
    )
    save_file(path, buffer.getvalue())


def right(answers: Answers, labels: np.ndarray) -> np.ndarray:
    """(n,) bool: whether each answer is the label; no answer is wrong."""
    return np.array(
        [
            answer is not None and answer[0] == label
            for answer, label in zip(answers, labels, strict=True)
        ],
        dtype=bool,
    )


def _columns(answers: Answers) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(n,) int16 classes, (n,) float32 scores, (n,) bool absent."""
    filled = [answer or (0, 0.0) for answer in answers]
    classes = np.array([label for label, _ in filled], dtype=np.int16)
    scores = np.array([score for _, score in filled], dtype=np.float32)
    return classes, scores, np.array([answer is None for answer in answers], dtype=bool)
