"""Which rank holds which networks (C1), and whether the world has the right size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from collage_mpi.errors import EnvironmentFault
from collage_mpi.kinds import KIND, SINGLE


@dataclass(frozen=True)
class Placement:
    """The networks of each rank: `kinds[i]` are the kinds that rank coordinator + i holds.

    A rank may hold several kinds (single and collage), one, or none (the coordinator, and ranks
    that a scheme does not use).
    """

    kinds: tuple[frozenset[str], ...]
    coordinator: int = 0  # its rank in the world; the other ranks of its team follow

    @property
    def world_size(self) -> int:
        """Number of ranks, including the coordinator."""
        return len(self.kinds)

    @property
    def of_rank(self) -> dict[int, frozenset[str]]:
        """Rank -> the kinds that it holds, without the coordinator."""
        return dict(enumerate(self.kinds[1:], start=self.coordinator + 1))

    @property
    def workers(self) -> tuple[int, ...]:
        """Ranks that hold at least one network."""
        return tuple(rank for rank, held in self.of_rank.items() if held)

    @property
    def idle(self) -> tuple[int, ...]:
        """Ranks other than the coordinator that hold no network."""
        return tuple(rank for rank, held in self.of_rank.items() if not held)

    def ranks_of(self, kind: str) -> tuple[int, ...]:
        """Ranks that hold `kind`, ascending."""
        return tuple(rank for rank, held in self.of_rank.items() if kind in held)

    def describe(self) -> str:
        """One line for a log: `0 coordinator, 1-9 single, 10 collage`."""
        parts = [f"{self.coordinator} coordinator"]
        runs: list[tuple[int, int, str]] = []
        for rank, held in self.of_rank.items():
            name = "+".join(sorted(held, reverse=True)) or "idle"
            if runs and runs[-1][2] == name:
                runs[-1] = (runs[-1][0], rank, name)
            else:
                runs.append((rank, rank, name))
        parts += [f"{a if a == b else f'{a}-{b}'} {name}" for a, b, name in runs]
        return ", ".join(parts)


def one_world(world_size: int, launcher_size: int | None) -> bool:
    """Whether the ranks that the launcher started are one world of several ranks."""
    return world_size > 1 and (launcher_size or world_size) == world_size


def wrong_size(world: int, who: str, counts: Mapping[str, int], scheme: str) -> EnvironmentFault:
    """The error for a world of the wrong size, with what to type instead.

    Args:
        world: number of ranks.
        who: the flag that gives the number of single ranks.
        counts: kind -> number of ranks that are needed.
        scheme: its name.
    """
    needed = 1 + sum(counts.values())
    parts = " + ".join(["1 coordinator", *[f"{n} {kind}" for kind, n in counts.items()]])
    beside = [
        f"{n} {kind} rank" + ("" if n == 1 else "s") for kind, n in counts.items() if kind != SINGLE
    ]
    by = " and ".join(beside) if beside and SINGLE in counts else f"--scheme {scheme}"
    first = next(iter(counts))
    possible = world - needed + counts[first]
    flag = "--" + KIND[first].ranks.replace("_", "-")
    other = f", or pass {flag} {possible}" if possible >= 1 else ""
    return EnvironmentFault(
        f"the world has {world} ranks; {who} with {by} needs {needed} ({parts}): "
        f"launch with -n {needed}{other}"
    )


def one_world_is_missing(world: int, launcher_size: int | None, needed: int) -> EnvironmentFault:
    """The error for ranks that are not one world, with what to type instead."""
    lines = (
        f"  collage-mpi launch -n {needed} -- run ...     finds the matching mpiexec\n"
        f"  mpiexec -n {needed} collage-mpi run ...       the mpiexec of the MPI installed here\n"
        f"  srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI) -n {needed} collage-mpi run ..."
    )
    if launcher_size is not None and launcher_size > 1:
        return EnvironmentFault(
            f"the launcher started {launcher_size} ranks, but MPI says this is rank 0 of {world}: "
            f"the launcher and the MPI library do not match. Use one of\n{lines}"
        )
    return EnvironmentFault(
        f"this is one process on its own; the job needs {needed} ranks. Use one of\n{lines}"
    )
