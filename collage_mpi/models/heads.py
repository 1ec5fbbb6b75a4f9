"""What a collage network's head is: the settings of `grid` and `yolo`, checked.

Owns: `HeadSpec` and its dict form. Does not know: torch, weights files, decoding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from collage_mpi.errors import DataFault, UsageError

HEADS = ("grid", "yolo")
MAX_ANCHORS, MAX_SQUARES = 8, 8


@dataclass(frozen=True)
class HeadSpec:
    """How a collage network says what is in its cells.

    Attributes:
        name: "grid": a row of class scores a cell. "yolo": boxes on a finer grid, each with
            an objectness and class scores, which are assigned to cells.
        squares: of a yolo's output grid along the edge of one cell; odd, so that the centre
            of a cell lies within a square and not between four.
        anchors: (width, height) of a yolo's prior boxes, in cells.
    """

    name: str = "grid"
    squares: int = 3
    anchors: tuple[tuple[float, float], ...] = ((1.0, 1.0),)

    def __post_init__(self) -> None:
        if self.name not in HEADS:
            raise UsageError(f"the head is {self.name!r}; the heads are {', '.join(HEADS)}")
        if type(self.squares) is not int or not 1 <= self.squares <= MAX_SQUARES:
            raise UsageError(f"squares is {self.squares!r}; it needs 1 to {MAX_SQUARES}")
        if self.squares % 2 == 0:
            raise UsageError(f"squares is {self.squares}; it must be odd: use {self.squares + 1}")
        if not 1 <= len(self.anchors) <= MAX_ANCHORS:
            raise UsageError(f"{len(self.anchors)} anchors; a head needs 1 to {MAX_ANCHORS}")
        for anchor in self.anchors:
            if len(anchor) != 2 or not all(0 < float(edge) < 16 for edge in anchor):
                raise UsageError(f"an anchor is {anchor!r}; it needs a width and a height in cells")

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON; `from_dict` reads it back."""
        if self.name == "grid":
            return {"name": "grid"}
        return {"name": self.name, "squares": self.squares, "anchors": [*map(list, self.anchors)]}

    @classmethod
    def from_dict(cls, record: Any) -> HeadSpec:
        """Read the dict form; a record without a head is a grid's. Raises DataFault."""
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
