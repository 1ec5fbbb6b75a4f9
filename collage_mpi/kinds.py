"""The kinds of network in one table: names, codes in messages and files, and properties."""

from __future__ import annotations

from dataclasses import dataclass

SINGLE, COLLAGE = "single", "collage"
# Networks for single pictures that a cascade asks before its exact network, by their place in it.
STAGES = ("stage1", "stage2", "stage3")
_STAGE_CODES = ((3, 8, "#332288"), (5, 11, "#AA4499"), (6, 12, "#88CCEE"))


@dataclass(frozen=True)
class Kind:
    """A kind of network.

    Attributes:
        name: in settings, manifests and messages. It is also the source of an image that it
            resolved, and the name of its ranks.
        code: its code in rows. A code is never reused for another kind.
        source: code of the source of images that it resolved, in rows. Never reused, either.
        ranks: the setting that says how many ranks hold it.
        colour, legend: for its answers that resolved an image, in a timeline.
        encoded: its input is one picture made of several images. Otherwise each image of a task is
            an input.
        share: text for its share of the images, in the table of costs.
        runs: the kind of network that is trained for it, if it is not this kind itself.
        batched: a full batch has as many images as `batch` groups. Otherwise it has `batch` inputs.
        place: in a cascade, from 0; of first networks only.
    """

    name: str
    code: int
    source: int
    ranks: str
    colour: str
    legend: str
    encoded: bool = False
    share: str | None = None
    runs: str | None = None
    batched: bool = False
    place: int = 0

    @property
    def network(self) -> str:
        """The kind of network that is trained for it."""
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
    *(
        Kind(
            name,
            code=code,
            source=source,
            ranks="collage_ranks",
            colour=colour,
            legend=f"{name} answer that resolved images",
            share=f"of images {name} resolved",
            runs=SINGLE,
            batched=True,
            place=place,
        )
        for place, (name, (code, source, colour)) in enumerate(
            zip(STAGES, _STAGE_CODES, strict=True)
        )
    ),
)
KIND = {kind.name: kind for kind in TABLE}
KINDS = tuple(kind.name for kind in sorted(TABLE, key=lambda kind: kind.code))  # by code
NETWORKS = tuple(kind for kind in KINDS if KIND[kind].runs is None)  # kinds that are trained
SPARE_KINDS = tuple(kind for kind in KINDS if kind != SINGLE)  # kinds to which `cost_ratio` applies
ENCODED_KINDS = tuple(kind.name for kind in TABLE if kind.encoded)
SHARED_KINDS = tuple(kind.name for kind in TABLE if kind.share)
