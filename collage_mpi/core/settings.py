"""The core's settings, in its own units (ns, groups, tasks)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SECOND_NS = 1_000_000_000


def batch_factor(inputs: int, further: float) -> float:
    """Service time of a batch divided by that of one input.

    Args:
        inputs: number of inputs of the batch, at least 1.
        further: time of each further input divided by the time of the first.
    """
    return 1.0 + (inputs - 1) * further


@dataclass(frozen=True, kw_only=True)
class CoreSettings:
    """The core's settings.

    Attributes:
        group_size: images of a full group.
        ranks: number of worker ranks. Each must be ready or lost before the first Admit.
        costs: kind -> service time of its network divided by that of the single network; 1 if the
            kind is missing.
        batch_costs: kind -> time of a further input of a batch divided by the time of the first; 1
            if the kind is missing.
        batch: most inputs of one kind that leave for a rank in one message.
        together: closed loop: `batch` groups come in together, and leave when all are there.
        depth: most groups in flight; most batches of groups if groups come in together.
        paced: the next group, or batch of groups, comes in only when a rank is idle.
        drain: the next groups come in only when no task is under way.
        max_attempts: how many tasks of the scheme's main kind may fail for one image before it
            becomes an error row.
        endgame: when no new image is left, idle ranks get copies of images still being computed.
        check: share of the images that a second rank answers, to find ranks that compute wrongly.
        max_failures: after so many failed tasks in a row a rank is retired. Tasks of bad rows, and
            of images that failed before, do not count.
        end_ns: how long late answers are waited for after every image is resolved, or before
            further groups come in (drain).
        stop_ns: how long answers under way are waited for after StopRequested.
        park_ns: how long images wait while every rank that could classify them is silent.
        settle_ns: the last attempt for an image whose other attempts lost their ranks waits until
            no rank was lost for this long.
    """

    group_size: int
    ranks: int
    costs: Mapping[str, float]
    batch_costs: Mapping[str, float]
    batch: int
    together: bool
    depth: int
    paced: bool
    drain: bool
    max_attempts: int
    endgame: bool
    check: float
    # These are no settings of a run. They are constants of the core that tests vary.
    max_failures: int = 5
    end_ns: int = 30 * SECOND_NS
    stop_ns: int = 5 * SECOND_NS
    park_ns: int = 30 * SECOND_NS
    settle_ns: int = SECOND_NS

    @property
    def late_ns(self) -> int:
        """How long the end waits for late answers; shorter if the end game has copied images."""
        return min(self.end_ns, SECOND_NS) if self.endgame else self.end_ns

    @property
    def step(self) -> int:
        """Number of groups that come in together."""
        return self.batch if self.together else 1
