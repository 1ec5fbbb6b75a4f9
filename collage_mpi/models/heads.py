"""The settings of a collage network's head: `grid`, `apart` or `yolo`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from collage_mpi.errors import DataFault, UsageError

GRID, APART, YOLO = "grid", "apart", "yolo"
HEADS = (GRID, APART, YOLO)
MAX_ANCHORS, MAX_SQUARES, MAX_ACROSS = 8, 8, 64


@dataclass(frozen=True)
class HeadSpec:
    """How a collage network answers for its cells.

    Attributes:
        name: "grid": one row of class scores a cell, from a trunk that sees the whole collage.
            "apart": the same, but the trunk sees each cell by itself, so that no convolution
            crosses an edge. "yolo": boxes on a finer grid, each with an objectness and class
            scores, which are assigned to cells.
        squares: of a yolo's output grid along the edge of one cell; odd, so that the centre
            of a cell lies within a square and not between four.
        anchors: (width, height) of a yolo's prior boxes, in cells.
        across: squares along an edge of the whole collage, if that is the trunk's own map and
            no multiple of the side, such as the paper's 13; None for `squares` a cell.
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
        """Squares along an edge of a yolo's output grid."""
        return self.across or self.squares * side

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON; `from_dict` reads it back."""
        if self.name != YOLO:
            return {"name": self.name}
        own = {"squares": self.squares} if self.across is None else {"across": self.across}
        return {"name": self.name, **own, "anchors": [*map(list, self.anchors)]}

    @classmethod
    def from_dict(cls, record: Any) -> HeadSpec:
        """Read the dict form; a record without a head means a grid. Raises DataFault."""
        if record is None:
            return cls()
        try:
            if not isinstance(record, Mapping):
                raise TypeError(f"it is a {type(record).__name__}, not a table")
            values = dict(record)
            if "anchors" in values:
                values["anchors"] = tuple((float(w), float(h)) for w, h in values["anchors"])
            return cls(**values)
        except (TypeError, ValueError, UsageError) as error:
            raise DataFault(f"the head record {record!r:.120} cannot be read: {error}") from error
