"""Which rank holds which networks, and whether the world is of the right size.

Owns: the placement of kinds on ranks (C1), the messages for a wrong world size.
Does not know: hosts, devices, MPI objects, environment variables.
"""

from __future__ import annotations

from dataclasses import dataclass

from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.scheduler.schemes import USE_COLLAGE, USE_PARITY, USE_SINGLE

COORDINATOR = 0


@dataclass(frozen=True)
class Placement:
    """Capabilities per rank: `kinds[rank]` is the set of network kinds it holds.

    A set, not a role: a rank may hold several kinds ("single" and "collage"), one, or none
    (rank 0, and ranks that a scheme leaves idle).
    """

    kinds: tuple[frozenset[str], ...]

    @property
    def world_size(self) -> int:
        """Ranks in all, rank 0 included."""
        return len(self.kinds)

    @property
    def workers(self) -> tuple[int, ...]:
        """Ranks that hold at least one network."""
        return tuple(rank for rank, held in enumerate(self.kinds) if held)

    @property
    def idle(self) -> tuple[int, ...]:
        """Ranks other than the coordinator that hold no network."""
        return tuple(r for r, held in enumerate(self.kinds) if not held and r != COORDINATOR)

    def ranks_of(self, kind: str) -> tuple[int, ...]:
        """Ranks that hold `kind`, ascending."""
        return tuple(rank for rank, held in enumerate(self.kinds) if kind in held)

    def describe(self) -> str:
        """One line for a log: `0 coordinator, 1-9 single, 10 collage`."""
        parts = ["0 coordinator"]
        runs: list[tuple[int, int, str]] = []
        for rank, held in enumerate(self.kinds[1:], start=1):
            name = "+".join(sorted(held, reverse=True)) or "idle"
            if runs and runs[-1][2] == name:
                runs[-1] = (runs[-1][0], rank, name)
            else:
                runs.append((rank, rank, name))
        parts += [f"{a if a == b else f'{a}-{b}'} {name}" for a, b, name in runs]
        return ", ".join(parts)


def placement(
    world_size: int,
    singles: int | None,
    collage_ranks: int,
    *,
    side: int,
    scheme: str = "collage",
    layout: str = "fixed",
    launcher_size: int | None = None,
    parity_ranks: int = 0,
) -> Placement:
    """Rank 0 coordinator, 1..N single, N+1..N+M collage; layout fastest: 1..N+M hold both.

    With scheme parity the ranks after N are the parity ranks, and no others.

    A scheme without collages needs no collage rank: worlds of 1+N and of 1+N+M are both
    right, and in the larger one the last M ranks stay idle. So do the N singles where a
    scheme has no use for them: there, worlds of 1+M and of 1+N+M are right.

    Args:
        world_size: what MPI says.
        singles: N, or None for side * side.
        collage_ranks: M, at least 0; at least 1 for a scheme that uses collages.
        side: cells along an edge of the collage; only the default of N and messages use it.
        scheme: name of the scheme; USE_SINGLE and USE_COLLAGE say which ranks it needs.
        layout: one of PLACEMENTS.
        launcher_size: ranks the launcher says it started; None outside a launcher.
        parity_ranks: of scheme parity, at least 1 there.

    Raises:
        UsageError: N or M cannot work.
        EnvironmentFault: the world is of the wrong size, or is N worlds of one rank.
    """
    uses_single = scheme in USE_SINGLE
    kind, others, uses_others = "collage", collage_ranks, scheme in USE_COLLAGE
    if scheme in USE_PARITY:
        kind, others, uses_others = "parity", parity_ranks, True
    n_single = side * side if singles is None else singles
    if n_single < 1:
        raise UsageError(f"--singles {n_single}: at least one single rank is needed")
    if others < (1 if uses_others else 0):
        raise UsageError(f"--{kind}-ranks {others}: --scheme {scheme} needs at least 1")
    least = 1 + n_single * uses_single + others * uses_others
    needed = least if uses_others else 1 + n_single + others  # what to launch
    if world_size == 1 or (launcher_size or world_size) != world_size:
        raise _one_world_is_missing(world_size, launcher_size, needed)
    if world_size not in (least, 1 + n_single + others):
        raise _wrong_size(world_size, singles, n_single, kind, others, side, scheme)
    single = frozenset({"single"} if uses_single else ())
    other = frozenset({kind} if uses_others else ())
    n_first = n_single if uses_single or world_size > least else 0
    if layout == "fastest":
        single = other = single | other
    last = [other] * (world_size - 1 - n_first)
    return Placement((frozenset(), *[single] * n_first, *last))


def _wrong_size(
    world: int,
    singles: int | None,
    n_single: int,
    kind: str,
    others: int,
    side: int,
    scheme: str,
) -> EnvironmentFault:
    who = f"--side {side}" if singles is None else f"--singles {singles}"
    n_needed = n_single if scheme in USE_SINGLE else 0
    m_needed = others if scheme in USE_COLLAGE | USE_PARITY else 0
    beside = f"{m_needed} {kind} rank" + ("" if m_needed == 1 else "s")
    needed = 1 + n_needed + m_needed
    counts = {"single": n_needed, kind: m_needed}
    parts = " + ".join(["1 coordinator", *[f"{n} {held}" for held, n in counts.items() if n]])
    possible = world - 1 - (m_needed if n_needed else 0)
    flag = "--singles" if n_needed else f"--{kind}-ranks"
    other = f", or pass {flag} {possible}" if possible >= 1 else ""
    what = f"with {beside}" if m_needed and n_needed else f"with --scheme {scheme}"
    return EnvironmentFault(
        f"the world has {world} ranks; {who} {what} needs {needed} ({parts}): "
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
