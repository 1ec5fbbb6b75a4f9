"""Networks of other libraries by name: the settings, apart from the code that builds them.

Owns: `Backbone`, its dict form, the choice between it and `Architecture`.
Does not know: torch, torchvision, weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.models.architecture import Architecture

LIBRARIES = ("torchvision",)


@dataclass(frozen=True)
class Backbone:
    """A network of torchvision by its name there.

    Attributes:
        name: "torchvision:resnet34", or any other that `torchvision.models` lists.
    """

    name: str

    def __post_init__(self) -> None:
        library, _, network = self.name.partition(":")
        if library not in LIBRARIES or not re.fullmatch(r"[a-z0-9_]{1,64}", network):
            raise UsageError(
                f"backbone {self.name!r:.80}; needed: torchvision:NAME, such as "
                "torchvision:resnet34"
            )

    @property
    def network(self) -> str:
        """The name without its library."""
        return self.name.partition(":")[2]

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON; `read_architecture` reads it back."""
        return {"backbone": self.name}


def read_architecture(record: Any) -> Architecture | Backbone:
    """The settings of a network from their dict form. Raises DataFault."""
    if not isinstance(record, Mapping) or "backbone" not in record:
        return Architecture.from_dict(record)
    try:
        if set(record) != {"backbone"} or not isinstance(record["backbone"], str):
            raise UsageError("it needs exactly the key backbone, a name")
        return Backbone(record["backbone"])
    except UsageError as error:
        raise DataFault(f"the architecture record cannot be built: {error}") from error
