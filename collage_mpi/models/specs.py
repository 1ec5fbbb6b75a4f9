"""Records of a weights file beside the architecture: the head of a collage network, and the score
from which a network's answers may count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from msgspec import Meta

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.system.records import read_record

GRID, APART, YOLO = "grid", "apart", "yolo"
HEADS = (GRID, APART, YOLO)
MAX_ANCHORS, MAX_SQUARES, MAX_ACROSS = 8, 8, 64
T = TypeVar("T")


def read_spec(kind: type[T], what: str, record: object) -> T:
    """A record of a weights file. Raises DataFault, which names the record."""
    try:
        return read_record(kind, record)
    except (ValueError, UsageError) as error:
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
        if not 1 <= self.squares <= MAX_SQUARES:
            raise UsageError(f"squares is {self.squares}; it needs 1 to {MAX_SQUARES}")
        if self.squares % 2 == 0:
            raise UsageError(f"squares is {self.squares}; it must be odd: use {self.squares + 1}")
        if self.across is not None and not 1 <= self.across <= MAX_ACROSS:
            raise UsageError(f"across is {self.across}; it needs 1 to {MAX_ACROSS}")
        if not 1 <= len(self.anchors) <= MAX_ANCHORS:
            raise UsageError(f"{len(self.anchors)} anchors; a head needs 1 to {MAX_ANCHORS}")
        for anchor in self.anchors:
            if not all(0 < edge < 16 for edge in anchor):
                raise UsageError(f"an anchor is {anchor!r}; it needs a width and a height in cells")

    def map_size(self, side: int) -> int:
        """For yolo, squares along an edge of the output grid."""
        return self.across or self.squares * side

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON; `read_spec` is its inverse."""
        if self.name != YOLO:
            return {"name": self.name}
        own = {"squares": self.squares} if self.across is None else {"across": self.across}
        return {"name": self.name, **own, "anchors": [*map(list, self.anchors)]}


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
        agreeing: share of these cells that agree with the single network, 0 to 1; None if unknown.
        errors: number of standard errors that were added to the loss when the threshold was chosen
            (`weights threshold --errors`); None if unknown.
    """

    confidence: Annotated[float, Meta(ge=0, le=1)]
    single: str
    chosen_on: int
    chosen_points: float
    measured_on: int
    measured_points: float
    share: float
    agreeing: float | None = None
    errors: float | None = None
