"""What a weights file says of a network beyond its layers: the head of a collage network, what a
parity network was made for, and the score from which a network's answers may count.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

from collage_mpi.encoding import BERRUT, ENCODERS, MAX_K, MIN_K, SUMMED
from collage_mpi.errors import DataFault, UsageError
from collage_mpi.kinds import SINGLE

GRID, APART, YOLO = "grid", "apart", "yolo"
HEADS = (GRID, APART, YOLO)
MAX_ANCHORS, MAX_SQUARES, MAX_ACROSS = 8, 8, 64


@contextmanager
def _reading(what: str, record: Any) -> Iterator[None]:
    """Turns whatever is wrong with a record into a DataFault that names it."""
    try:
        if not isinstance(record, Mapping):
            raise TypeError(f"it is a {type(record).__name__}, not a table")
        yield
    except (TypeError, ValueError, UsageError) as error:
        raise DataFault(f"the {what} record {record!r:.120} cannot be read: {error}") from error


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
        with _reading("head", record):
            values = dict(record)
            if "anchors" in values:
                values["anchors"] = tuple((float(w), float(h)) for w, h in values["anchors"])
            return cls(**values)


@dataclass(frozen=True)
class ParitySpec:
    """How a stripe is encoded, and which sum the network's answer is.

    Attributes:
        k: images of a full stripe.
        encoder: one of ENCODERS, or BERRUT: then the network is the single network itself,
            and its answers are interpolated.
        summed: one of SUMMED.
        single: fingerprint of the single network whose answers are summed.

    Raises:
        UsageError: a value that cannot work.
    """

    k: int
    encoder: str
    summed: str
    single: str

    def __post_init__(self) -> None:
        if type(self.k) is not int or not MIN_K <= self.k <= MAX_K:
            raise UsageError(f"parity k is {self.k!r:.60}; a stripe needs {MIN_K} to {MAX_K}")
        for what, known in (("encoder", (*ENCODERS, BERRUT)), ("summed", SUMMED)):
            value = getattr(self, what)
            if value not in known:
                raise UsageError(f"parity {what} is {value!r:.60}; known are: {', '.join(known)}")
        if not isinstance(self.single, str) or not self.single:
            raise UsageError("parity single is no fingerprint of a single network")

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Any) -> ParitySpec:
        """Read the dict form, of a trained network. Raises DataFault."""
        with _reading("parity", record):
            if record.get("encoder") == BERRUT:
                raise TypeError(f"no network is trained for encoder {BERRUT}")
            return cls(**record)


@dataclass(frozen=True)
class AcceptSpec:
    """A threshold for the answers of a collage network next to one single network.

    Attributes:
        confidence: the lowest score that counts, 0..1.
        single: fingerprint of that single network.
        chosen_on, measured_on: images of the two parts, no image in both.
        chosen_points, measured_points: percentage points of accuracy that were lost on each
            part if every cell with at least that score counts.
        share: of the measured images, the share whose cell counts, 0..1.
        agreeing: the share of these cells whose class is the single network's, 0..1; None in
            files of earlier versions.
        errors: standard errors that were added to the loss when the score was chosen (`weights
            threshold --errors`); None in files of earlier versions.
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
        """A plain dict for JSON; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Any) -> AcceptSpec:
        """Read the dict form. Raises DataFault."""
        with _reading("accept", record):
            found = cls(**record)
        unknown = {name for name in ("agreeing", "errors") if getattr(found, name) is None}
        numbers = [n for name, n in vars(found).items() if name not in {SINGLE, *unknown}]
        if any(type(n) not in (int, float) or not abs(n) < 1e18 for n in numbers):
            raise DataFault("the accept record holds something else than numbers")
        if not isinstance(found.single, str) or not 0 <= found.confidence <= 1:
            raise DataFault("the accept record has no confidence from 0 to 1 for a single network")
        return found
