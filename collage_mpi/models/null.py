"""The null network, which reads its answer from a pixel, for tests and benchmarks of the job."""

from __future__ import annotations

import hashlib

import numpy as np

from collage_mpi.encoding.grid import Grid
from collage_mpi.encoding.vectors import KeptColumn
from collage_mpi.errors import UsageError
from collage_mpi.kinds import COLLAGE
from collage_mpi.models.info import BeginsLater, Geometry, check_kind
from collage_mpi.models.tuning import NO_TUNING

# key -> default of "null:key=value,..."
NULL_DEFAULTS = {"height": 28, "width": 28, "channels": 1, "side": 3, "cell_px": 28, "classes": 10}
NULL_CLASSES = 10  # classes of a null network if nothing else decides their number


class NullPredictor(BeginsLater):
    """Answers with the class that a cell's top-left pixel gives: channel 0, modulo the number of
    classes. For other items it is the first value, as an integer. The probability is 1.

    Args:
        kind: one of NETWORKS.
        geometry: shape of the items, number of classes, and grid of the collage. NULL_CLASSES
            classes where the number is not known.
    """

    runtime = ""

    def __init__(self, kind: str, geometry: Geometry) -> None:
        check_kind(kind)
        self.kind = kind
        self.classes = geometry.classes or NULL_CLASSES
        self.device = "cpu"
        self.tuning = NO_TUNING
        self.columns: tuple[KeptColumn, ...] = ()
        self.cells, self.shape = 1, geometry.image_shape
        if kind == COLLAGE:
            self.cells, self.shape = geometry.cells(kind), geometry.input_shape(kind)
            grid = Grid(geometry.side, geometry.cell_px)
            corners = [grid.box(cell) for cell in range(grid.cells)]
            self._rows = np.array([rows.start for rows, _ in corners])  # (cells,) int64
            self._columns = np.array([columns.start for _, columns in corners])
        text = f"null {kind} {self.shape} {self.cells} {self.classes}"
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()

    def predict(self, batch: np.ndarray) -> np.ndarray:
        """(n, H, W, C) uint8, or (n, ...) items -> (n, cells, classes) float32, one-hot."""
        if self.kind == COLLAGE:
            corners = batch[:, self._rows, self._columns, 0]  # (n, cells) uint8
        else:
            corners = batch.reshape(len(batch), -1)[:, :1]
        if corners.dtype.kind == "f":
            corners = np.nan_to_num(corners).astype(np.int64)
        scores = np.zeros((corners.size, self.classes), dtype=np.float32)
        for row, value in zip(scores, corners.ravel().tolist(), strict=True):
            row[value % self.classes] = 1.0
        return scores.reshape(len(batch), self.cells, self.classes)

    def answer(self, batch: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The result of `predict`, without further outputs."""
        return self.predict(batch), {}


def parse_null(spec: str, kind: str) -> NullPredictor:
    """Build the null network of a spec such as "null" or "null:cell_px=224,channels=3".

    Raises:
        UsageError: a key is unknown, or a value is not a positive whole number.
    """
    values = dict(NULL_DEFAULTS)
    for part in filter(None, spec.partition(":")[2].split(",")):
        key, _, value = part.partition("=")
        if key not in values:
            raise UsageError(f"{spec!r} has the key {key!r}; known are {', '.join(values)}")
        if not value.isdecimal() or int(value) < 1:
            raise UsageError(f"{spec!r}: {key} is {value!r}; it needs a whole number from 1")
        values[key] = int(value)
    shape = (values["height"], values["width"], values["channels"])
    geometry = Geometry(shape, values["side"], values["cell_px"], values["classes"])
    return NullPredictor(kind, geometry)
