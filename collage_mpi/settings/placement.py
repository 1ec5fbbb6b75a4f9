"""Which rank holds which networks (C1), and whether the world has the right size."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.kinds import COLLAGE, KIND, SINGLE
from collage_mpi.scheduler.schemes import scheme_class


@dataclass(frozen=True)
class Placement:
    """The networks of each rank: `kinds[i]` are the kinds that rank coordinator + i holds.

    A rank may hold several kinds (single and collage), one, or none (the coordinator, and ranks
    that a scheme does not use).
    """

    kinds: tuple[frozenset[str], ...]
    coordinator: int = 0  # rank of the world; the others of its team follow

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

    def all_hold(self, kinds: frozenset[str]) -> Placement:
        """The same ranks, where each that holds a network holds these kinds."""
        return replace(self, kinds=tuple(kinds if held else held for held in self.kinds))

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


def placement(
    world_size: int,
    singles: int | None,
    ranks: Mapping[str, int],
    *,
    side: int,
    scheme: str,
    launcher_size: int | None = None,
) -> Placement:
    """Rank 0 is the coordinator, ranks 1..N are single, then come the ranks of each further kind.

    A scheme without further kinds needs no collage rank. Worlds of 1+N and of 1+N+M ranks are both
    right then, and in the larger one the last M ranks stay idle. If a scheme does not use single
    ranks, worlds of 1+M and of 1+N+M are right, and the N single ranks stay idle.

    Args:
        world_size: as MPI says.
        singles: N, or None for side * side.
        ranks: how many ranks hold each further kind; M for collages. At least 1 for each kind
            that the scheme needs.
        side: cells along an edge of the collage; only the default of N and messages use it.
        scheme: name of the scheme.
        launcher_size: ranks that the launcher says it started; None outside a launcher.

    Raises:
        UsageError: N or M cannot work.
        EnvironmentFault: the world has the wrong size, or is N worlds of one rank.
    """
    needs = scheme_class(scheme).needs
    n_single = side * side if singles is None else singles
    if n_single < 1:
        raise UsageError(f"--singles {n_single}: at least one single rank is needed")
    others = {kind: n for kind, n in ranks.items() if kind in needs}
    for kind, n in (others or {COLLAGE: ranks[COLLAGE]}).items():
        if n < (1 if kind in needs else 0):
            raise UsageError(f"{_flag(kind)} {n}: --scheme {scheme} needs at least 1")
    beside = [frozenset({kind}) for kind, n in others.items() for _ in range(n)]
    least = 1 + n_single * (SINGLE in needs) + len(beside)
    most = 1 + n_single + (len(beside) or ranks[COLLAGE])
    needed = least if beside else most  # what to launch
    if not one_world(world_size, launcher_size):
        raise _one_world_is_missing(world_size, launcher_size, needed)
    if world_size not in (least, most):
        counts = {SINGLE: n_single, **others} if SINGLE in needs else others
        who = f"--side {side}" if singles is None else f"--singles {singles}"
        raise _wrong_size(world_size, who, counts, scheme)
    n_first = n_single if SINGLE in needs or world_size > least else 0
    held = [needs & {SINGLE}] * n_first + beside
    idle = [frozenset[str]()] * (world_size - 1 - len(held))
    return Placement((frozenset(), *held, *idle))


def _flag(kind: str) -> str:
    return "--" + KIND[kind].ranks.replace("_", "-")


def _wrong_size(world: int, who: str, counts: Mapping[str, int], scheme: str) -> EnvironmentFault:
    """The message with what to type instead; counts: ranks needed of each kind, who: the flag that
    N comes from.
    """
    needed = 1 + sum(counts.values())
    parts = " + ".join(["1 coordinator", *[f"{n} {kind}" for kind, n in counts.items()]])
    beside = [
        f"{n} {kind} rank" + ("" if n == 1 else "s") for kind, n in counts.items() if kind != SINGLE
    ]
    by = " and ".join(beside) if beside and SINGLE in counts else f"--scheme {scheme}"
    first = next(iter(counts))
    possible = world - needed + counts[first]
    other = f", or pass {_flag(first)} {possible}" if possible >= 1 else ""
    return EnvironmentFault(
        f"the world has {world} ranks; {who} with {by} needs {needed} ({parts}): "
        f"launch with -n {needed}{other}"
    )


def _one_world_is_missing(world: int, launcher_size: int | None, needed: int) -> EnvironmentFault:
    lines = (
        f"  collage-mpi launch -n {needed} -- run ...     finds the matching mpiexec\n"
        f"  mpiexec -n {needed} collage-mpi run ...       the mpiexec of the MPI installed here\n"
        f"  srun --mpi=pmi2 (MPICH) or --mpi=pmix (Open MPI) -n {needed} collage-mpi run ..."
    )
    if launcher_size is not None and launcher_size > 1:
        return EnvironmentFault(
            f"the launcher started {launcher_size} ranks, but MPI says this is rank 0 of {world}: "
            f"the launcher and the MPI library do not fit together. Use one of\n{lines}"
        )
    return EnvironmentFault(
        f"this is one process on its own; the job needs {needed} ranks. Use one of\n{lines}"
    )
