"""The settings of a network's layers, without torch: a residual network, a network of another
library by name, the head of a collage network, the score from which its answers may count, and
presets for collage networks.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypeVar

from msgspec import Meta

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.kinds import COLLAGE, SINGLE
from collage_mpi.system.records import read_record

GRID, APART, YOLO = "grid", "apart", "yolo"
HEADS = (GRID, APART, YOLO)
MAX_ANCHORS, MAX_SQUARES, MAX_ACROSS = 8, 8, 64
T = TypeVar("T")


def read_spec(kind: type[T], what: str, record: object) -> T:
    """A record of a weights file. Raises DataFault, which names the record."""
    try:
        return read_record(kind, record)
    except (ValueError, UsageError) as error:
        raise DataFault(f"the {what} record {record!r:.120} cannot be read: {error}") from error


@dataclass(frozen=True)
class HeadSpec:
    """The head of a collage network.

    Attributes:
        name: "grid": class scores for each cell, from a trunk that sees the whole collage.
            "apart": the same, but the trunk sees each cell alone, so that no convolution crosses an
            edge. "yolo": boxes on a finer grid, each with an objectness and class scores, which are
            assigned to cells.
        squares: for yolo, squares of the output grid along an edge of a cell; odd, so that the
            centre of a cell is in one square and not between four.
        anchors: for yolo, (width, height) of the prior boxes, in cells.
        across: for yolo, squares along an edge of the collage, if the trunk's map is used as it is
            (13 in the paper); None to use `squares`.
    """

    name: str = GRID
    squares: int = 3
    anchors: tuple[tuple[float, float], ...] = ((1.0, 1.0),)
    across: int | None = None

    def __post_init__(self) -> None:
        if self.name not in HEADS:
            raise UsageError(f"the head is {self.name!r}; the heads are {', '.join(HEADS)}")
        if not 1 <= self.squares <= MAX_SQUARES:
            raise UsageError(f"squares is {self.squares}; it needs 1 to {MAX_SQUARES}")
        if self.squares % 2 == 0:
            raise UsageError(f"squares is {self.squares}; it must be odd: use {self.squares + 1}")
        if self.across is not None and not 1 <= self.across <= MAX_ACROSS:
            raise UsageError(f"across is {self.across}; it needs 1 to {MAX_ACROSS}")
        if not 1 <= len(self.anchors) <= MAX_ANCHORS:
            raise UsageError(f"{len(self.anchors)} anchors; a head needs 1 to {MAX_ANCHORS}")
        for anchor in self.anchors:
            if not all(0 < edge < 16 for edge in anchor):
                raise UsageError(f"an anchor is {anchor!r}; it needs a width and a height in cells")

    def map_size(self, side: int) -> int:
        """For yolo, squares along an edge of the output grid."""
        return self.across or self.squares * side

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON; `read_spec` is its inverse."""
        if self.name != YOLO:
            return {"name": self.name}
        own = {"squares": self.squares} if self.across is None else {"across": self.across}
        return {"name": self.name, **own, "anchors": [*map(list, self.anchors)]}


@dataclass(frozen=True)
class AcceptSpec:
    """A threshold for the scores of a network that is asked before the single network. With a
    probability of 95 % at least a share `agree` of all images, if they are like those that chose
    it, get the class that the single network gives.

    Attributes:
        confidence: the lowest score that counts, 0 to 1.
        single: fingerprint of the single network.
        agree: 0 to 1, exclusive.
        drawn: number of images on which the threshold was chosen and proved.
        share: share of those that proved it whose answer counts, above 0.
        changed: share of those that proved it that get another class.
    """

    confidence: Annotated[float, Meta(ge=0, le=1)]
    single: str
    agree: Annotated[float, Meta(gt=0, lt=1)]
    drawn: int
    share: Annotated[float, Meta(gt=0, le=1)]
    changed: float


NORMS = ("batch", "group")
MAX_WIDTH, MAX_BLOCKS, MAX_STRIDE, MAX_STAGES, MAX_KERNEL = 4096, 64, 4, 8, 15

_STAGE = re.compile(r"(\d+)x(\d+)(?:/(\d+))?")  # also the form of a stem


@dataclass(frozen=True)
class Stage:
    """Residual blocks of one width. The first block has the stride, the others have stride 1."""

    width: int
    blocks: int
    stride: int = 1


@dataclass(frozen=True)
class Architecture:
    """A residual network: a stem, then stages. The kind of network decides the head.

    Attributes:
        stem_width: channels after the stem convolution.
        stem_kernel: height and width of its kernel in pixels.
        stem_stride: its stride; 2 halves the resolution at once.
        stages: the stages after the stem.
        norm: "batch" (folded into the convolutions for inference) or "group".
    """

    stem_width: int
    stem_kernel: int
    stem_stride: int
    stages: tuple[Stage, ...]
    norm: str = "batch"

    def __post_init__(self) -> None:
        _within("stem_width", self.stem_width, MAX_WIDTH)
        _within("stem_kernel", self.stem_kernel, MAX_KERNEL)
        _within("stem_stride", self.stem_stride, MAX_STRIDE)
        if not 1 <= len(self.stages) <= MAX_STAGES:
            raise UsageError(f"{len(self.stages)} stages; a network needs 1 to {MAX_STAGES}")
        for stage in self.stages:
            _within("stage width", stage.width, MAX_WIDTH)
            _within("stage blocks", stage.blocks, MAX_BLOCKS)
            _within("stage stride", stage.stride, MAX_STRIDE)
        if self.norm not in NORMS:
            raise UsageError(f"norm is {self.norm!r}; allowed are {', '.join(NORMS)}")

    @property
    def features(self) -> int:
        """Channels of the last stage, which are the inputs of the head."""
        return self.stages[-1].width


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Parse "WIDTHxBLOCKS[/STRIDE],...", such as "48x1,96x2/2,192x2/2".

    Raises:
        UsageError: the text has another form.
    """
    stages = []
    for part in text.split(","):
        match = _STAGE.fullmatch(part.strip())
        if match is None:
            raise UsageError(
                f"stages {text!r}: cannot read {part!r}; write WIDTHxBLOCKS[/STRIDE] joined by "
                'commas, such as "48x1,96x2/2,192x2/2"'
            )
        width, blocks, stride = match.groups(default="1")
        stages.append(Stage(int(width), int(blocks), int(stride)))
    return tuple(stages)


def parse_stem(architecture: Architecture, text: str) -> Architecture:
    """The architecture with another stem, "WIDTHxKERNEL[/STRIDE]", such as "48x4/2".

    Raises:
        UsageError: the text has another form.
    """
    match = _STAGE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f'stem {text!r} cannot be read; write WIDTHxKERNEL[/STRIDE]: "48x4/2"')
    width, kernel, stride = (int(number) for number in match.groups(default="1"))
    return replace(architecture, stem_width=width, stem_kernel=kernel, stem_stride=stride)


def default_architecture(kind: str, width: int | None = None, norm: str = "batch") -> Architecture:
    """The network that is trained by default.

    The single network keeps the full resolution in its first stage. The collage network classifies
    side * side images in about the same time. So it halves the resolution in the stem, and most of
    its channels come after the next halving.

    Args:
        kind: one of NETWORKS.
        width: channels of the stem and the first stage; by default 48.
        norm: one of NORMS.
    """
    base = 48 if width is None else width
    if kind == SINGLE:
        stages = (Stage(base, 1), Stage(2 * base, 2, 2), Stage(4 * base, 2, 2))
        return Architecture(base, 3, 1, stages, norm)
    wide = (8 * base // 3 + 15) // 16 * 16  # 128 for 48; a multiple of 16 suits vector units
    return Architecture(base, 4, 2, (Stage(base, 1), Stage(wide, 2, 2)), norm)


def _within(name: str, value: int, largest: int) -> None:
    if not 1 <= value <= largest:
        raise UsageError(f"{name} is {value!r}; it needs a whole number from 1 to {largest}")


TINY = "darknet:tiny"  # which this package builds


@dataclass(frozen=True)
class Backbone:
    """A network, named by its library.

    Attributes:
        backbone: "torchvision:NAME" with a NAME that `torchvision.models` lists, such as resnet34;
            or TINY.
    """

    backbone: str

    def __post_init__(self) -> None:
        if self.backbone != TINY and not re.fullmatch(
            r"torchvision:[a-z0-9_]{1,64}", self.backbone
        ):
            raise UsageError(
                f"backbone {self.backbone!r:.80}; needed: torchvision:NAME, such as "
                f"torchvision:resnet34, or {TINY}"
            )

    @property
    def network(self) -> str:
        """The name without its library."""
        return self.backbone.partition(":")[2]


def read_architecture(record: object) -> Architecture | Backbone:
    """The settings of a network, from the dict of a weights file. Raises DataFault."""
    own: type[Architecture | Backbone] = Architecture
    if isinstance(record, dict) and "backbone" in record:
        own = Backbone
    return read_spec(own, "architecture", record)


# All presets halve the resolution in the stem and again after a first stage. So a cell of 28 px
# becomes 7 x 7, which is pooled without overlap with other cells. The wide stage takes most time.
PRESETS: dict[str, tuple[int, tuple[Stage, ...]]] = {  # stem channels, stages
    "accurate": (48, (Stage(48, 1), Stage(128, 2, 2))),
    "balanced": (32, (Stage(32, 1), Stage(96, 2, 2))),
    "fast": (32, (Stage(32, 1), Stage(64, 2, 2))),
    "fastest": (32, (Stage(64, 2, 2),)),
}
# The best preset that takes less than 1.5 x the time of the default single network, at 28 px.
BY_SIDE = {2: "accurate", 3: "accurate", 4: "balanced", 5: "fast"}


# The networks of the paper (arXiv 1904.12222): ResNet-34 at 224 px as single network; as collage
# network one like YOLOv3-tiny at 416 px, with 13 x 13 squares of three anchors. Cells have 138, 104
# and 83 px for side 3, 4 and 5, so the collage has 414, 416 and 415 px, and always 13 squares.
REFERENCE = "reference"
REFERENCE_BACKBONES = {SINGLE: "torchvision:resnet34", COLLAGE: TINY}
REFERENCE_COLLAGE_PX = 416
REFERENCE_HEAD = HeadSpec(YOLO, anchors=((1.0, 1.0), (0.5, 0.5), (2.0, 2.0)), across=13)


def preset(name: str, norm: str = "batch") -> Architecture:
    """The architecture of a preset. Raises UsageError if the name is unknown."""
    if name not in PRESETS:
        raise UsageError(f"preset {name!r}; the presets are {', '.join(PRESETS)}")
    stem_width, stages = PRESETS[name]
    return Architecture(stem_width, 4, 2, stages, norm)
