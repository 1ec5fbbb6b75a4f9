"""Several networks that answer the same pictures, as one network. The first one's class is that of
the picture. All else that the networks answer are further columns, whose names begin with theirs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from collage_mpi.encoding.collage import decode
from collage_mpi.encoding.vectors import NO_SAVE, OUTPUTS, KeptColumn, layout_of
from collage_mpi.errors import DataFault, UsageError
from collage_mpi.models.info import (
    OWN_TUNING,
    Answer,
    Computation,
    Geometry,
    Loading,
    Predictor,
)
from collage_mpi.models.named import Part, is_foreign, is_null, parts_of
from collage_mpi.shards.pictures import split

_CLASS = (KeptColumn("class", "<i4", ()), KeptColumn("score", "<f4", ()))


class Beside:
    """Runs several networks on each batch; see `Predictor`.

    Args:
        parts: of the spec.
        networks: of the parts, loaded. The first one answers.
        shapes: (H, W, C) of each network's pictures; () if all get the same.

    Raises:
        UsageError: two columns have the same name, or the columns cannot be kept.
    """

    cells = 1
    tuning = OWN_TUNING

    def __init__(
        self,
        parts: Sequence[Part],
        networks: Sequence[Predictor],
        shapes: Sequence[tuple[int, ...]],
    ) -> None:
        self._parts, self._networks, self._shapes = parts, networks, shapes
        first = networks[0]
        self.kind, self.device, self.classes = first.kind, first.device, first.classes
        self.runtime = first.runtime  # and stays: none changes over to another one
        self.columns = tuple(
            replace(column, name=f"{part.name}_{column.name}")
            for part, network in zip(parts, networks, strict=True)
            for column in (*_CLASS * (network is not first and not part.maps), *network.columns)
        )
        names = [column.name for column in self.columns]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"two networks give the column {twice!r}: --as gives other names")
        layout_of(self.columns)
        told = [(part.name, each.fingerprint) for part, each in zip(parts, networks, strict=True)]
        self.fingerprint = hashlib.sha256(repr(told).encode()).hexdigest()

    def weights_sum(self) -> int | None:
        """The sum of the weights of all networks whose weights torch holds; None if there is
        none."""
        found = [getattr(each, "weights_sum", lambda: None)() for each in self._networks]
        known = [one for one in found if one is not None]
        return sum(known) if known else None

    def predict(self, batch: np.ndarray) -> np.ndarray:
        """See `Predictor`; all networks answer."""
        return self.answer(batch)[0]

    def answer(self, batch: np.ndarray) -> Answer:
        """See `Predictor`."""
        return self.begin(batch).finish()

    def begin(self, batch: np.ndarray) -> Computation[Answer]:
        """See `Predictor`."""
        own = split(batch, self._shapes) if self._shapes else [batch] * len(self._parts)
        begun = [
            each.begin(np.ascontiguousarray(pictures))
            for each, pictures in zip(self._networks, own, strict=True)
        ]

        def finish() -> Answer:
            answers = [each.finish() for each in begun]
            kept = {
                f"{part.name}_{name}": values
                for number, (part, answer) in enumerate(zip(self._parts, answers, strict=True))
                for name, values in _told(part, answer, classifies=number > 0).items()
            }
            return answers[0][0], kept

        return Computation(finish, lambda: all(each.done() for each in begun))


def _told(part: Part, answer: Answer, *, classifies: bool) -> dict[str, np.ndarray]:
    """What a network says of n pictures: (n, ...) by name.

    Args:
        part: the network.
        answer: of it.
        classifies: its classes are a column, unless it maps.

    Raises:
        DataFault: it has no answer.
    """
    scores, given = answer
    if part.maps or not classifies:
        return given
    found = [each for each in decode(scores[:, 0]) if each is not None]
    if len(found) < len(scores):
        raise DataFault(f"{part.spec}: no score is a finite number above 0")
    classes, best = zip(*found, strict=True)
    return {"class": np.array(classes, np.int32), "score": np.array(best, np.float32), **given}


def load_beside(spec: str, kind: str, how: Loading) -> Beside:
    """Load all networks of a spec; raises as `load_predictor`, and as `Beside`."""
    from collage_mpi.models import load_predictor

    geometry = how.geometry
    assert geometry is not None
    parts = parts_of(spec)
    shapes = geometry.beside or [geometry.image_shape] * len(parts)
    networks = [
        load_predictor(part.spec, kind, _how_of(how, geometry, part, shape, first=part is parts[0]))
        for part, shape in zip(parts, shapes, strict=True)
    ]
    return Beside(parts, networks, geometry.beside)


def _how_of(
    how: Loading, geometry: Geometry, part: Part, shape: tuple[int, ...], *, first: bool
) -> Loading:
    """How a part is run. A weights file knows its shapes."""
    told = is_foreign(part.spec) or is_null(part.spec)
    own = replace(
        geometry, image_shape=shape, beside=(), classes=geometry.classes if first else None
    )
    save = OUTPUTS if part.maps else NO_SAVE
    return replace(how, save=save, geometry=own if told else None)
