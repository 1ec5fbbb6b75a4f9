"""What the bench of a round measures.

Owns: the sizes and numbers of rounds, their defaults.
"""

from __future__ import annotations

from dataclasses import dataclass

from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import UsageError

WORLDS = (11, 3)  # 1 + 9 + 1 and 1 + 1 + 1 ranks
PAPER_COLLAGE_PX = 416  # of arXiv 1904.12222, for images of 224 px
PAPER_IMAGE_PX = 224


@dataclass(frozen=True)
class BenchSettings:
    """What one world measures.

    Attributes:
        px: edge of an image, C = 3.
        rounds: measured rounds of each variant, over all its blocks.
        blocks: the variants take turns in so many blocks, so that a drift of the machine
            falls on all of them.
        warmup: unmeasured rounds at the start of each block.

    Raises:
        UsageError: a value out of range.
    """

    px: int = PAPER_IMAGE_PX
    rounds: int = 200
    blocks: int = 4
    warmup: int = 5
    side: int = 3
    channels: int = 3

    def __post_init__(self) -> None:
        least = {"px": 8, "blocks": 1, "warmup": 1, "rounds": self.blocks}
        for name, lowest in least.items():
            if getattr(self, name) < lowest:
                raise UsageError(f"--{name} {getattr(self, name)}: at least {lowest} is needed")

    @property
    def grid(self) -> Grid:
        """Cells such that 224 px images make a collage of 417 px; the paper's has 416."""
        cell_px = round(self.px * PAPER_COLLAGE_PX / PAPER_IMAGE_PX / self.side)
        return Grid(self.side, max(1, cell_px))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, C) of an image."""
        return self.px, self.px, self.channels

    @property
    def block_rounds(self) -> int:
        """Measured rounds of one block."""
        return self.rounds // self.blocks

    @property
    def played_rounds(self) -> int:
        """All rounds of a block: warm-up, measured, and one whose start ends the last."""
        return self.warmup + self.block_rounds + 1
