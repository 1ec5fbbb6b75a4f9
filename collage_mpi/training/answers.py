"""The answers of several networks on the same images, in the file of `evaluate --save-answers`,
which a simulation replays.
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
    """Write an .npz of plain arrays (no pickle) about n images in file order.

    Image i is cell i % side**2 of group i // side**2. The last group has blank cells.

    Arrays:
        version, side: int, no dimension.
        labels: (n,) int64.
        single_class, single_score: (n,) int16 and float32.
        collage_class, collage_score: the same for the image's cell; meaningless where absent.
        collage_absent: (n,) bool, the collage network gave no answer for the cell.
        class_names: (k,) unicode.
        parity_class, parity_score, parity_absent: the answer decoded for the image if all other
            images of its stripe have answers; parity_k: int, images of a stripe. Only with a
            parity network. coded_class and so on are the same for scheme approx.

    Args:
        labels: (n,) int64.
        answers: n answers of single, of collage and of each kind in `stripes`; scores are
            calibrated probabilities.
        stripes: kind that decodes from stripes -> images of a stripe.

    Raises:
        EnvironmentFault: the file cannot be written.
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
    """(n,) bool: whether each answer equals the label. A missing answer is wrong."""
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
