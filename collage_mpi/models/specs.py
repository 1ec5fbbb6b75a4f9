"""Records of a weights file beside the architecture: the head of a collage network, and the score
from which a network's answers may count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.kinds import SINGLE

GRID, APART, YOLO = "grid", "apart", "yolo"
HEADS = (GRID, APART, YOLO)
MAX_ANCHORS, MAX_SQUARES, MAX_ACROSS = 8, 8, 64


@contextmanager
def _reading(what: str, record: Any) -> Iterator[None]:
    """Raises errors about a record as a DataFault that names the record."""
    try:
        if not isinstance(record, Mapping):
            raise TypeError(f"it is a {type(record).__name__}, not a table")
        yield
    except (TypeError, ValueError, UsageError) as error:
        raise DataFault(f"the {what} record {record!r:.120} cannot be read: {error}") from error


@dataclass(frozen=True)
class HeadSpec:
    """The head of a collage network.

    Attributes:
        name: "grid": class scores for each cell, from a trunk that sees the whole collage.
            "apart": the same, but the trunk sees each cell alone, so that no convolution crosses an
            edge. "yolo": boxes on a finer grid, each with an objectness and class scores, which are
            assigned to cells.
        squares: for yolo, squares of the output grid along an edge of a cell; odd, so that the
            centre of a cell is in one square and not between four.
        anchors: for yolo, (width, height) of the prior boxes, in cells.
        across: for yolo, squares along an edge of the collage, if the trunk's map is used as it is
            (13 in the paper); None to use `squares`.
    """

    name: str = GRID
    squares: int = 3
    anchors: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    across: int | None = None

    def __post_init__(self) -> None:
        if self.name not in HEADS:
            raise UsageError(f"the head is {self.name!r}; the heads are {', '.join(HEADS)}")
        if type(self.squares) is not int or not 1 <= self.squares <= MAX_SQUARES:
            raise UsageError(f"squares is {self.squares!r}; it needs 1 to {MAX_SQUARES}")
        if self.squares % 2 == 0:
            raise UsageError(f"squares is {self.squares}; it must be odd: use {self.squares + 1}")
        across = self.across
        if across is not None and (type(across) is not int or not 1 <= across <= MAX_ACROSS):
            raise UsageError(f"across is {across!r}; it needs 1 to {MAX_ACROSS}")
        if not 1 <= len(self.anchors) <= MAX_ANCHORS:
            raise UsageError(f"{len(self.anchors)} anchors; a head needs 1 to {MAX_ANCHORS}")
        for anchor in self.anchors:
            if len(anchor) != 2 or not all(0 < float(edge) < 16 for edge in anchor):
                raise UsageError(f"an anchor is {anchor!r}; it needs a width and a height in cells")

    def map_size(self, side: int) -> int:
        """For yolo, squares along an edge of the output grid."""
        return self.across or self.squares * side

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON; `from_dict` is its inverse."""
        if self.name != YOLO:
            return {"name": self.name}
        own = {"squares": self.squares} if self.across is None else {"across": self.across}
        return {"name": self.name, **own, "anchors": [*map(list, self.anchors)]}

    @classmethod
    def from_dict(cls, record: Any) -> HeadSpec:
        """The inverse of `to_dict`; None means a grid. Raises DataFault."""
        if record is None:
            return cls()
        with _reading("head", record):
            values = dict(record)
            if "anchors" in values:
                values["anchors"] = tuple((float(w), float(h)) for w, h in values["anchors"])
            return cls(**values)


@dataclass(frozen=True)
class AcceptSpec:
    """A threshold for the scores of a collage network, chosen for one single network.

    Attributes:
        confidence: the lowest score that counts, 0 to 1.
        single: fingerprint of the single network.
        chosen_on, measured_on: number of images on which the threshold was chosen, and of other
            images on which it was measured.
        chosen_points, measured_points: loss of accuracy on these images, in percentage points, if
            every cell with at least this score counts.
        share: share of the measured images whose cell counts, 0 to 1.
        agreeing: share of these cells that agree with the single network, 0 to 1; None in files of
            earlier versions.
        errors: number of standard errors that were added to the loss when the threshold was chosen
            (`weights threshold --errors`); None in files of earlier versions.
    """

    confidence: float
    single: str
    chosen_on: int
    chosen_points: float
    measured_on: int
    measured_points: float
    share: float
    agreeing: float | None = None
    errors: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON; `from_dict` is its inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Any) -> AcceptSpec:
        """The inverse of `to_dict`. Raises DataFault."""
        with _reading("accept", record):
            found = cls(**record)
        unknown = {name for name in ("agreeing", "errors") if getattr(found, name) is None}
        numbers = [n for name, n in vars(found).items() if name not in {SINGLE, *unknown}]
        if any(type(n) not in (int, float) or not abs(n) < 1e18 for n in numbers):
            raise DataFault("the accept record holds something else than numbers")
        if not isinstance(found.single, str) or not 0 <= found.confidence <= 1:
            raise DataFault("the accept record has no confidence from 0 to 1 for a single network")
        return found
