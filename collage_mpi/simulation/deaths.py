"""Ranks of a simulation that stop answering."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from collage_mpi.workload.straggler_settings import by_rank, within


@dataclass(frozen=True)
class RankDeath:
    """When a rank stops answering: seconds since the start, or a number of tasks."""

    at_s: float | None = None
    tasks: int | None = None

    def reached(self, at_ns: int, answered: int) -> bool:
        """Whether the rank is dead at `at_ns`, given the number of tasks that it has answered."""
        if self.at_s is not None:
            return at_ns >= self.at_s * 1e9
        return self.tasks is not None and answered >= self.tasks

    def __str__(self) -> str:
        """When, in words."""
        return f"{self.at_s:g} s" if self.at_s is not None else f"{self.tasks} tasks"


def deaths_of(dead_ranks: Sequence[str]) -> dict[int, RankDeath]:
    """Rank -> when it stops answering.

    Raises:
        UsageError: a text is not of the form RANK:SECONDSs or RANK:TASKS.
    """
    needs = (
        "RANK:SECONDSs or RANK:TASKS for a worker rank (1 or more), as in 3:2.5s (answers "
        "nothing from then) or 3:20 (nothing after 20 tasks)"
    )
    return by_rank("dead", dead_ranks, needs, _death)


def describe_deaths(deaths: Mapping[int, RankDeath]) -> str:
    """The deaths in words, to be put after the delays."""
    return "".join(f", rank {rank} dead after {death}" for rank, death in deaths.items())


def _death(text: str) -> RankDeath:
    if text.endswith("s"):
        return RankDeath(at_s=within(float(text[:-1]), 0, 1e9))
    return RankDeath(tasks=int(within(int(text), 0, math.inf)))
