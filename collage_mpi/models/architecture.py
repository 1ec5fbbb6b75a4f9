"""The settings of a residual network, typed and checked, in a module that needs no torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.kinds import PARITY, SINGLE

NORMS = ("batch", "group")
MAX_WIDTH, MAX_BLOCKS, MAX_STRIDE, MAX_STAGES, MAX_KERNEL = 4096, 64, 4, 8, 15

_STAGE = re.compile(r"(\d+)x(\d+)(?:/(\d+))?")  # also the form of a stem


@dataclass(frozen=True)
class Stage:
    """Residual blocks of one width; the first block has the stride."""

    width: int
    blocks: int
    stride: int = 1


@dataclass(frozen=True)
class Architecture:
    """A residual network: a stem, then stages. The head follows from the kind.

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
        """Channels that the head sees."""
        return self.stages[-1].width

    def to_dict(self) -> dict[str, Any]:
        """A plain dict for JSON; `from_dict` reads it back."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Architecture:
        """Read the dict form. Raises DataFault on unknown, missing or impossible settings."""
        known = {field.name for field in fields(cls)}
        if not isinstance(record, Mapping) or set(record) != known:
            raise DataFault(
                f"the architecture record is {record!r:.200}; it needs exactly the keys "
                f"{', '.join(sorted(known))}: train the network again with this version"
            )
        try:
            stages = tuple(Stage(**stage) for stage in record["stages"])
            return cls(**{**record, "stages": stages})
        except (TypeError, UsageError) as error:
            raise DataFault(f"the architecture record cannot be built: {error}") from error


def parse_stages(text: str) -> tuple[Stage, ...]:
    """Read "WIDTHxBLOCKS[/STRIDE],...", such as "48x1,96x2/2,192x2/2".

    Raises:
        UsageError: text of another form.
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
        UsageError: text of another form.
    """
    match = _STAGE.fullmatch(text.strip())
    if match is None:
        raise UsageError(f'stem {text!r} cannot be read; write WIDTHxKERNEL[/STRIDE]: "48x4/2"')
    width, kernel, stride = (int(number) for number in match.groups(default="1"))
    return replace(architecture, stem_width=width, stem_kernel=kernel, stem_stride=stride)


def stem_text(architecture: Mapping[str, Any]) -> str:
    """The inverse of `parse_stem`, for the architecture in a record."""
    return "{stem_width}x{stem_kernel}/{stem_stride}".format_map(architecture)


def stages_text(architecture: Mapping[str, Any]) -> str:
    """The inverse of `parse_stages`, for the architecture in a record."""
    return ",".join(
        f"{s['width']}x{s['blocks']}" + (f"/{s['stride']}" if s["stride"] != 1 else "")
        for s in architecture["stages"]
    )


def default_architecture(kind: str, width: int | None = None, norm: str = "batch") -> Architecture:
    """The network that is trained by default.

    The single network keeps full resolution in its first stage. The collage network has s*s images
    to look at in about the same time: it halves the resolution in the stem and puts most of its
    width after the next halving. The parity network sees a picture as large as one image, and its
    rank should be no slower than a single rank: it is narrower and has a block less.

    Args:
        kind: one of NETWORKS.
        width: channels of the stem and the first stage; default 48, or 32 for a parity network.
    """
    if kind == PARITY:
        base = 32 if width is None else width
        stages = (Stage(base, 1), Stage(2 * base, 2, 2), Stage(4 * base, 1, 2))
        return Architecture(base, 3, 1, stages, norm)
    base = 48 if width is None else width
    if kind == SINGLE:
        stages = (Stage(base, 1), Stage(2 * base, 2, 2), Stage(4 * base, 2, 2))
        return Architecture(base, 3, 1, stages, norm)
    wide = (8 * base // 3 + 15) // 16 * 16  # 128 for 48: vector units like multiples of 16
    return Architecture(base, 4, 2, (Stage(base, 1), Stage(wide, 2, 2)), norm)


def _within(name: str, value: object, largest: int) -> None:
    if type(value) is not int or not 1 <= value <= largest:
        raise UsageError(f"{name} is {value!r}; it needs a whole number from 1 to {largest}")
