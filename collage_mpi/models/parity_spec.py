"""What a parity network was made for. Its answers can be decoded only under the same conditions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from collage_mpi.encoding import BERRUT, ENCODERS, MAX_K, MIN_K, SUMMED
from collage_mpi.errors import DataFault, UsageError


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
        try:
            if not isinstance(record, Mapping):
                raise TypeError(f"it is a {type(record).__name__}, not a table")
            if record.get("encoder") == BERRUT:
                raise TypeError(f"no network is trained for encoder {BERRUT}")
            return cls(**record)
        except (TypeError, UsageError) as error:
            raise DataFault(f"the parity record cannot be read: {error}") from error
