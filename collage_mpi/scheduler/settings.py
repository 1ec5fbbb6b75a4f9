"""What the scheduler is told once, in its own units."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

SECOND_NS = 1_000_000_000


def batch_factor(inputs: int, further: float) -> float:
    """A batch's service time over one input's: the first one, and what each further one adds.

    Args:
        inputs: in the batch, 1 or more.
        further: what a further input takes, over the first one.
    """
    return 1.0 + (inputs - 1) * further


@dataclass(frozen=True, kw_only=True)
class SchedulerSettings:
    """What the scheduler is told once.

    Attributes:
        group_size: images of a full group (s*s; with `whole_batches` those of a batch's groups).
        ranks: worker ranks that must be ready or lost before the first Admit.
        costs: kind -> its network's service time over the single's, 1 where not named; asked for
            where the ranks' speed is watched, as it is wherever they pull.
        batch_costs: kind -> what a further input of a batch takes over the first one, 1 where
            not named; asked for as `costs` are.
        batch: tasks of a kind that leave for a rank in one message, at most.
        together: groups come in by so many (closed loop), and the tasks that a rank gets of
            them leave together; else only what waits for a busy rank does.
        whole_batches: a group is all groups of a batch, so that one run can be all its images.
        depth: groups in flight, or batches of groups that come in together.
        paced: the next of them comes in when a rank has nothing to do; `depth` is the most then.
        drain: release the next groups only when no task is under way at all.
        linger_ns: close a group this long after its first image; None waits for it to fill.
        image_timeout_ns: give up a group's images this long after its t0; None never does.
        max_attempts: tasks of the scheme's main kind that may fail for one image before it
            becomes an error row.
        endgame: when no image is left to come, idle ranks copy those that are still out.
        max_failures: failures in a row after which a rank is retired.
        end_ns: how long late answers are waited for once every image is resolved, or before
            further groups come in (drain).
        stop_ns: how long answers under way are waited for after StopRequested.
        park_ns: how long images wait when every capable rank is suspected.
        settle_ns: before the last try of an image that has only lost ranks so far, none may have
            been lost for so long.
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
    linger_ns: int | None
    image_timeout_ns: int | None
    max_attempts: int
    endgame: bool
    whole_batches: bool
    # No setting of a run says these: they are decisions of the scheduler, which tests vary.
    max_failures: int = 5
    end_ns: int = 30 * SECOND_NS
    stop_ns: int = 5 * SECOND_NS
    park_ns: int = 30 * SECOND_NS
    settle_ns: int = SECOND_NS

    @property
    def late_ns(self) -> int:
        """How long the end waits for late answers: not long for those that were copied."""
        return min(self.end_ns, SECOND_NS) if self.endgame else self.end_ns

    @property
    def admitted_together(self) -> int:
        """Groups that come in at a time."""
        return self.batch if self.together and not self.whole_batches else 1
