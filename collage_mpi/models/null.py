"""The null network, which reads its answer from a pixel, for tests and benchmarks of the job."""

from __future__ import annotations

import hashlib

import numpy as np

from collage_mpi.encoding.grid import Grid
from collage_mpi.encoding.vectors import KeptColumn
from collage_mpi.errors import UsageError
from collage_mpi.kinds import COLLAGE
from collage_mpi.models.info import NO_TUNING, BeginsLater, Geometry, check_kind

# key -> default of "null:key=value,..."
NULL_DEFAULTS = {"height": 28, "width": 28, "channels": 1, "side": 3, "cell_px": 28, "classes": 10}
NULL_DEFAULTS |= {"wrong": 0}
SHAPE_KEYS = ("height", "width", "channels")
LEAST_SURE = 0.6  # the lowest probability of an answer where some are wrong
NULL_CLASSES = 10  # classes of a null network if nothing else decides their number


class NullPredictor(BeginsLater):
    """Answers with the class that a cell's top-left pixel gives: channel 0, modulo the number of
    classes. For other items it is the first value, as an integer. The probability is 1.

    With `wrong` it is a network that errs, and the less often the surer it is. The next value of
    the row, v of 0 to 255, says how sure: the probability is 0.6 + 0.4 v/255. The third one draws
    whether the answer is the next class instead; this is so with probability 2 wrong (1 - v/255).

    Args:
        kind: one of NETWORKS.
        geometry: shape of the items, number of classes, and grid of the collage. NULL_CLASSES
            classes where the number is not known.
        wrong: the share of wrong answers where these values are uniform, 0 to 0.5.
    """

    runtime = ""

    def __init__(self, kind: str, geometry: Geometry, wrong: float = 0.0) -> None:
        check_kind(kind)
        self.kind, self._wrong = kind, wrong
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
            starts = np.array([columns.start for _, columns in corners])
            self._columns = starts[:, None] + np.minimum(range(3), geometry.cell_px - 1)
        text = f"null {kind} {self.shape} {self.cells} {self.classes}"
        text += f" {wrong:g}" if wrong else ""
        self.fingerprint = hashlib.sha256(text.encode()).hexdigest()

    def predict(self, batch: np.ndarray) -> np.ndarray:
        """(n, H, W, C) uint8, or (n, ...) items -> (n, cells, classes) float32."""
        if self.kind == COLLAGE:
            values = batch[:, self._rows[:, None], self._columns, 0]  # (n, cells, 3) uint8
        else:
            row = batch[:, 0, :, 0] if batch.ndim == 4 else batch.reshape(len(batch), -1)
            values = row[:, None, np.minimum(range(3), row.shape[1] - 1)]
        values = np.nan_to_num(values.reshape(-1, 3)).astype(np.int64)
        classes, sure = values[:, 0] % self.classes, np.ones(len(values), np.float32)
        if self._wrong:
            doubt = 1 - values[:, 1] / 255
            classes = (classes + (values[:, 2] < 512 * self._wrong * doubt)) % self.classes
            sure = (1 - (1 - LEAST_SURE) * doubt).astype(np.float32)
        scores = np.zeros((len(values), self.classes), dtype=np.float32)
        scores[np.arange(len(values)), classes - 1] = 1 - sure
        scores[np.arange(len(values)), classes] = sure
        return scores.reshape(len(batch), self.cells, self.classes)

    def answer(self, batch: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """The result of `predict`, without further outputs."""
        return self.predict(batch), {}


def parse_null(spec: str, kind: str, geometry: Geometry | None = None) -> NullPredictor:
    """Build the null network of a spec such as "null" or "null:cell_px=224,channels=3".

    With "null:wrong=30" 30 % of the answers are wrong. What the spec does not name is as in
    `geometry`, that of the job.

    Raises:
        UsageError: a key is unknown, or a value is not a positive whole number, or `wrong` is more
            than 50.
    """
    values, shape = dict(NULL_DEFAULTS), None
    if geometry is not None:
        values |= dict(side=geometry.side, cell_px=geometry.cell_px)
        values["classes"] = geometry.classes or NULL_CLASSES
        shape = geometry.image_shape
    for part in filter(None, spec.partition(":")[2].split(",")):
        key, _, value = part.partition("=")
        if key not in values:
            raise UsageError(f"{spec!r} has the key {key!r}; known are {', '.join(values)}")
        if not value.isdecimal() or int(value) < 1:
            raise UsageError(f"{spec!r}: {key} is {value!r}; it needs a whole number from 1")
        values[key] = int(value)
        shape = None if key in SHAPE_KEYS else shape
    if values["wrong"] > 50:
        raise UsageError(f"{spec!r}: wrong is {values['wrong']}; it needs a percentage up to 50")
    shape = shape or tuple(values[key] for key in SHAPE_KEYS)
    found = Geometry(shape, values["side"], values["cell_px"], values["classes"])
    return NullPredictor(kind, found, values["wrong"] / 100)
