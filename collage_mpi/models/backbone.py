"""Networks of other libraries by name, as settings; `vision` builds them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.models.architecture import Architecture

EFFICIENTNET_LITE = "efficientnet-lite"
# What each has; torchvision is asked itself.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "torchvision": (),
    EFFICIENTNET_LITE: ("lite0", "lite0_16"),
    "darknet": ("tiny",),
}


@dataclass(frozen=True)
class Backbone:
    """A network by its name in a library.

    Attributes:
        name: "torchvision:resnet34", or any other that `torchvision.models` lists;
            "efficientnet-lite:lite0" and "darknet:tiny", which are built here.
    """

    name: str

    def __post_init__(self) -> None:
        library, _, network = self.name.partition(":")
        known = LIBRARIES.get(library)
        named = re.fullmatch(r"[a-z0-9_]{1,64}", network) and (not known or network in known)
        if known is None or not named:
            others = [f"{of}:{name}" for of, names in LIBRARIES.items() for name in names]
            raise UsageError(
                f"backbone {self.name!r:.80}; needed: torchvision:NAME, such as "
                f"torchvision:resnet34, or {' or '.join(others)}"
            )

    @property
    def library(self) -> str:
        """The library's name."""
        return self.name.partition(":")[0]

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
