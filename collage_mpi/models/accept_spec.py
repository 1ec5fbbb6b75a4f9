"""The score from which a collage network's answers may count, and the measured cost in accuracy, as
they stand in a weights file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from collage_mpi.errors import DataFault
from collage_mpi.kinds import SINGLE


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
        try:
            if not isinstance(record, Mapping):
                raise TypeError(f"it is a {type(record).__name__}, not a table")
            found = cls(**record)
        except TypeError as error:
            raise DataFault(f"the accept record cannot be read: {error}") from error
        unknown = {name for name in ("agreeing", "errors") if getattr(found, name) is None}
        numbers = [n for name, n in vars(found).items() if name not in {SINGLE, *unknown}]
        if any(type(n) not in (int, float) or not abs(n) < 1e18 for n in numbers):
            raise DataFault("the accept record holds something else than numbers")
        if not isinstance(found.single, str) or not 0 <= found.confidence <= 1:
            raise DataFault("the accept record has no confidence from 0 to 1 for a single network")
        return found
