"""The kinds of network, in one table.

Owns: their names, their codes on the wire and on disk, what holds for each.
"""

from __future__ import annotations

from dataclasses import dataclass

SINGLE, COLLAGE, PARITY = "single", "collage", "parity"


@dataclass(frozen=True)
class Kind:
    """A kind of network.

    Attributes:
        name: as settings, manifests and messages say it; the setting that names its weights too.
        code: in messages and rows; one that was given is never given again.
        encoded: rank 0 makes its input of the images of a group, so that it costs what
            `cost_ratio` says, and its answers are of a share of the images.
    """

    name: str
    code: int
    encoded: bool


TABLE = (
    Kind(SINGLE, 0, encoded=False),
    Kind(COLLAGE, 1, encoded=True),
    Kind(PARITY, 2, encoded=True),
)
KINDS = tuple(kind.name for kind in sorted(TABLE, key=lambda kind: kind.code))  # by code
ENCODED_KINDS = tuple(kind.name for kind in TABLE if kind.encoded)
