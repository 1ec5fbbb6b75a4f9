"""The kinds of network in one table: their names, their codes in messages and files, their
properties.
"""

from __future__ import annotations

from dataclasses import dataclass

SINGLE, COLLAGE, PARITY = "single", "collage", "parity"
BACKUP, CODED = "backup", "coded"


@dataclass(frozen=True)
class Kind:
    """A kind of network.

    Attributes:
        name: in settings, manifests and messages; also the setting that names its weights, the
            source of an image that it resolved, and the name of its ranks.
        code: in messages and rows; a code is never used for another kind.
        source: the code of its answers as an image's source, in rows; likewise.
        ranks: the setting that says how many ranks hold it.
        colour, legend: in a timeline, of its answers that resolved an image.
        encoded: its input is made of the images of a group. Otherwise each image of a task is
            an input.
        resolves: its answer resolves an image by itself, not only with the answers of others.
        share: describes its share of the images, in the table of the price.
        runs: the kind of network that its ranks hold if it has none of its own. Such kinds
            are neither trained nor evaluated.
        batched: a task has the images of a whole group. Otherwise, if not encoded, one image.
    """

    name: str
    code: int
    source: int
    ranks: str
    colour: str
    legend: str
    encoded: bool = False
    resolves: bool = True
    share: str | None = None
    runs: str | None = None
    batched: bool = False

    @property
    def network(self) -> str:
        """The kind of network that its ranks hold."""
        return self.runs or self.name


TABLE = (
    Kind(
        SINGLE,
        code=0,
        source=0,
        ranks="singles",
        colour="#0072B2",
        legend="single answer that resolved its image",
    ),
    Kind(
        COLLAGE,
        code=1,
        source=1,
        ranks="collage_ranks",
        encoded=True,
        colour="#009E73",
        legend="collage answer that resolved images",
        share="of images the collage resolved",
    ),
    Kind(
        PARITY,
        code=2,
        source=4,
        ranks="parity_ranks",
        encoded=True,
        resolves=False,
        colour="#56B4E9",
        legend="parity answer that decoded images",
        share="of images decoded from a parity answer and those of others",
    ),
    Kind(
        BACKUP,
        code=3,
        source=8,
        ranks="backup_ranks",
        colour="#332288",
        legend="backup batch that resolved images",
        share="of images a backup batch resolved",
        runs=SINGLE,
        batched=True,
    ),
    Kind(
        CODED,
        code=4,
        source=9,
        ranks="parity_ranks",
        encoded=True,
        resolves=False,
        colour="#882255",
        legend="coded answer that decoded images",
        share="of images decoded from a coded answer and those of others",
        runs=SINGLE,
    ),
)
KIND = {kind.name: kind for kind in TABLE}
KINDS = tuple(kind.name for kind in sorted(TABLE, key=lambda kind: kind.code))  # by code
NETWORKS = tuple(kind for kind in KINDS if KIND[kind].runs is None)  # that are trained
NETWORK_SETTINGS = (*NETWORKS, BACKUP)  # settings that name what ranks load
SPARE_KINDS = tuple(kind for kind in KINDS if kind != SINGLE)  # what `cost_ratio` is of
ENCODED_KINDS = tuple(kind.name for kind in TABLE if kind.encoded)
SHARED_KINDS = tuple(kind.name for kind in TABLE if kind.share)
RESOLVING_KINDS = frozenset(kind.name for kind in TABLE if kind.resolves)
