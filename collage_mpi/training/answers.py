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

from collage_mpi.kinds import SINGLE
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
        collage_absent: (n,) bool, the collage network gave no answer for the cell. Only with a
            collage network. backup_class and so on are the same for a quick network.
        class_names: (k,) unicode.
        parity_class, parity_score, parity_absent: the answer decoded for the image if all other
            images of its stripe have answers; parity_k: int, images of a stripe. Only with a
            parity network. coded_class and so on are the same for scheme approx.

    Args:
        labels: (n,) int64.
        answers: by kind, n answers of single and of each other kind; scores are calibrated
            probabilities.
        stripes: kind that decodes from stripes -> images of a stripe.

    Raises:
        EnvironmentFault: the file cannot be written.
    """
    columns: dict[str, Any] = {f"{kind}_k": k for kind, k in stripes.items()}
    for kind, each in answers.items():
        names = (f"{kind}_class", f"{kind}_score", f"{kind}_absent")
        columns |= dict(zip(names, _columns(each), strict=True))
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
