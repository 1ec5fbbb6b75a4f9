"""Named collage networks with a good trade-off of accuracy and service time, and the default for
each side. docs/weights.md has the figures they were chosen by (analysis/architecture_search.py).
"""

from __future__ import annotations

from collage_mpi.errors import UsageError
from collage_mpi.kinds import COLLAGE, SINGLE
from collage_mpi.models.architecture import Architecture, Stage
from collage_mpi.models.heads import YOLO, HeadSpec

# All halve the resolution in the stem and again after a first stage: a cell of 28 px becomes
# 7 x 7, which pools without overlap into its neighbours. The wide stage costs most.
PRESETS: dict[str, tuple[int, tuple[Stage, ...]]] = {  # stem channels, stages
    "accurate": (48, (Stage(48, 1), Stage(128, 2, 2))),
    "balanced": (32, (Stage(32, 1), Stage(96, 2, 2))),
    "fast": (32, (Stage(32, 1), Stage(64, 2, 2))),
    "fastest": (32, (Stage(64, 2, 2),)),
}
# The best below 1.5 x the single network's service time, on 28 px images with the default single.
BY_SIDE = {2: "accurate", 3: "accurate", 4: "balanced", 5: "fast"}


# The set-up of the paper (arXiv 1904.12222): ResNet-34 at 224 px for singles; for the collage a
# network like YOLOv3-tiny at 416 px, 13 x 13 squares of three anchors. Cells are whole pixels: 138,
# 104 and 83 for side 3, 4 and 5, so the collage has 414, 416 and 415, 13 squares in any case.
REFERENCE = "reference"
REFERENCE_BACKBONES = {SINGLE: "torchvision:resnet34", COLLAGE: "darknet:tiny"}
REFERENCE_COLLAGE_PX = 416
REFERENCE_HEAD = HeadSpec(YOLO, anchors=((1.0, 1.0), (0.5, 0.5), (2.0, 2.0)), across=13)


def preset(name: str, norm: str = "batch") -> Architecture:
    """The architecture of that name. Raises UsageError, which lists the known names."""
    if name not in PRESETS:
        raise UsageError(f"preset {name!r}; the presets are {', '.join(PRESETS)}")
    stem_width, stages = PRESETS[name]
    return Architecture(stem_width, 4, 2, stages, norm)
