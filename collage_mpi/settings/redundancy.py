"""The settings of schemes and ranks, and of when answers count or are late.

The numbers of ranks and copies, and which rank holds what, follow from them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

from collage_mpi.core.policies import AUTO, FIRST, AcceptPolicy, Confident, First
from collage_mpi.core.schemes import (
    ASSIGNMENTS,
    PLACEMENTS,
    SCHEME_NAMES,
    SchemeSettings,
    make_scheme,
    scheme_class,
)
from collage_mpi.encoding.grid import MAX_SIDE, MIN_SIDE
from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.kinds import BACKUP, COLLAGE, KIND, KINDS, SINGLE
from collage_mpi.system.fields import Settings, setting
from collage_mpi.system.printable import counted

RANKS = "redundancy and ranks"  # group of --help
EXPECTED = 9  # differing answers expected among the images that choose a threshold for `agree`

_setting = partial(setting, group=RANKS)


@dataclass(frozen=True, repr=False)
class RankSettings(Settings):
    """The scheme, and how many ranks and copies it has."""

    scheme: str = _setting(
        "collage", "how redundancy is added (docs/schemes.md)", choices=SCHEME_NAMES
    )
    side: int = _setting(
        3,
        "cells along an edge of a collage. A collage has side x side cells, and a group has side "
        "x side images",
        at_least=MIN_SIDE,
        at_most=MAX_SIDE,
    )
    singles: int | None = _setting(None, "number of single ranks, N", unset="side*side", at_least=1)
    collage_ranks: int = _setting(
        1,
        "number of ranks beside the single ranks, M: for collages, or with scheme cascade-batch "
        "for batches",
        at_least=0,
    )
    assign: str = _setting(
        "pull",
        "which rank gets an image. turn: the next rank in turn. pull: a rank that has room takes "
        "the oldest image, and a slow rank passes over what quicker ranks would end sooner; "
        "collages and other tasks are then handed out in this way too",
        choices=ASSIGNMENTS,
    )
    endgame: str = _setting(
        "on",
        "on: once no new image is left, idle ranks get copies of images that are still being "
        "computed",
        choices=("off", "on"),
    )
    placement: str | None = _setting(
        None,
        "which ranks get collages. fixed: M ranks that hold only the collage network. fastest: "
        "the fastest of N+M ranks that all hold both networks",
        unset="fixed; fastest with scheme cascade",
        choices=PLACEMENTS,
    )

    def _check(self) -> None:
        if scheme_class(self.scheme).needs - {SINGLE} and self.collage_ranks < 1:
            raise UsageError(f"collage_ranks is {self.collage_ranks}; it needs at least 1")
        if self.replicas > self.n_singles:
            raise UsageError(
                f"scheme {self.scheme} with {counted(self.n_singles, 'single rank')}; each copy of "
                "an image needs a rank of its own"
            )

    @property
    def layout(self) -> str:
        """Which ranks hold the collage network: one of PLACEMENTS."""
        return self.placement or scheme_class(self.scheme).placement

    @property
    def any_size(self) -> bool:
        """Whether a world may have any size. Then all ranks except rank 0 hold all networks."""
        own = scheme_class(self.scheme).placement
        return self.layout == own == "fastest" and self.singles is None

    @property
    def group_size(self) -> int:
        """Images of a full group."""
        return self.side * self.side

    def _takes(self, setting: str) -> bool:
        return setting in scheme_class(self.scheme).takes

    def uses(self, kind: str) -> bool:
        return kind in scheme_class(self.scheme).needs

    @property
    def uses_single(self) -> bool:
        """Whether the scheme needs a single network."""
        return self.uses(SINGLE)

    @property
    def only_singles(self) -> bool:
        """Whether the scheme needs a single network and no other network."""
        return scheme_class(self.scheme).needs == {SINGLE}

    @property
    def uses_collage(self) -> bool:
        """Whether the scheme needs a collage network."""
        return self.uses(COLLAGE)

    @property
    def pastes(self) -> bool:
        """Whether the scheme pastes several images into one picture."""
        return pastes(self.scheme)

    @property
    def usual_singles(self) -> int:
        """Default number of single ranks: those of a group for each copy of an image."""
        return self.group_size * self.replicas

    @property
    def replicas(self) -> int:
        """Single ranks that the scheme sends each image to at once."""
        return scheme_class(self.scheme).replicas

    @property
    def n_singles(self) -> int:
        """Single ranks, N."""
        return self.usual_singles if self.singles is None else self.singles

    @property
    def n_copies(self) -> int:
        """Number of collage ranks that get the same collage."""
        return max(1, self.collage_ranks) if self.uses_single else 1

    @property
    def world_size(self) -> int:
        """Number of ranks that the settings need, including rank 0."""
        return 1 + sum(self.n_ranks(kind) for kind in KINDS if self.uses(kind))

    def n_ranks(self, kind: str) -> int:
        """Number of ranks that hold the kind, if the scheme needs it."""
        return self.n_singles if kind == SINGLE else int(getattr(self, KIND[kind].ranks))

    def place(self, world_size: int, launcher_size: int | None = None) -> Placement:
        """Rank 0 is the coordinator, ranks 1..N are single, then come the ranks of each further
        kind.

        A scheme without further kinds needs no collage rank. Worlds of 1+N and of 1+N+M ranks are
        both right then, and in the larger one the last M ranks stay idle. If a scheme does not use
        single ranks, worlds of 1+M and of 1+N+M are right, and the N single ranks stay idle.

        Args:
            world_size: number of ranks, from MPI.
            launcher_size: number of ranks, from the launcher; None outside a launcher.

        Raises:
            EnvironmentFault: the world has the wrong size, or is N worlds of one rank.
        """
        needs = scheme_class(self.scheme).needs
        counts = {kind: self.n_ranks(kind) for kind in KINDS if kind in needs}
        beside = [
            frozenset({kind}) for kind, n in counts.items() if kind != SINGLE for _ in range(n)
        ]
        most = 1 + self.n_singles + (len(beside) or self.collage_ranks)
        if not one_world(world_size, launcher_size):
            needed = self.world_size if beside else most
            raise one_world_is_missing(world_size, launcher_size, needed)
        if self.any_size:
            return Placement((frozenset(), *[needs] * (world_size - 1)))
        if world_size not in (self.world_size, most):
            usual = self.singles is None and self.replicas == 1
            who = f"--side {self.side}" if usual else f"--singles {self.n_singles}"
            raise wrong_size(world_size, who, counts, self.scheme)
        first = self.n_singles if SINGLE in needs or world_size > self.world_size else 0
        held = [needs & {SINGLE}] * first + beside
        if self.layout == "fastest":
            held = [needs if own else own for own in held]
        idle = [frozenset[str]()] * (world_size - 1 - len(held))
        return Placement((frozenset(), *held, *idle))


UNTIL_CHOSEN = 0.9  # score that counts in a job with `agree`, which replaces it

_accept = partial(setting, group="when a collage's answer counts")
_late = partial(setting, group="late images")


@dataclass(frozen=True, repr=False)
class AcceptSettings(Settings):
    """When a collage's answer counts."""

    confidence: float | None = _accept(
        None,
        "an answer of a collage counts at once if its score is at least this. Otherwise it is "
        "kept, see --deadline-ms. 0: every answer counts at once, so the first answer to an image "
        "wins. 1: no answer counts at once. auto: the threshold in the collage network's file, or "
        "1 if the file has none for this single network (docs/weights.md)",
        unset=AUTO,
        auto=True,
        at_least=0,
        at_most=1,
    )
    agree: float | None = _accept(
        None,
        "scheme cascade: choose the lowest score that counts, without labels, so that at most 1 - "
        "A of all images get another answer than the single network's (95 % confidence). Both "
        "networks first classify a sample of the images to choose the score. Audits may raise it",
        metavar="A",
        above=0,
        below=1,
    )
    deadline_ms: float | None = _accept(
        None,
        "an answer with a lower score than --confidence counts this long after its group entered "
        "the job; the source of its row is then kept. Without a deadline it counts only if no "
        "single rank can answer the image",
        at_least=0,
    )
    audit: float = _accept(
        0.01,
        "scheme cascade: share of the images to audit. If a collage's answer for such an image is "
        "accepted, the single network classifies the image as well, and the two answers are "
        "compared",
        at_least=0,
        at_most=1,
    )

    def _check(self) -> None:
        if self.agree is not None and self.confidence is not None:
            raise UsageError(
                f"agree is {self.agree:g} with confidence {self.confidence:g}: agree chooses the "
                "score that counts; leave out --confidence, or --agree"
            )
        if self.agree is not None and self.deadline_ms is not None:
            raise UsageError(
                f"agree is {self.agree:g} with a deadline: after the deadline an answer counts "
                "whatever its score, so agree could not bound the changed answers; leave out "
                "--deadline-ms, or --agree"
            )

    def accept_policy(self) -> AcceptPolicy:
        """The accept policy of the collage."""
        if self.agree is not None:
            return Confident(UNTIL_CHOSEN, None)
        if not self.confidence:
            return First(AUTO if self.confidence is None else FIRST)
        confidence = self.confidence if self.confidence < 1 else math.inf
        return Confident(confidence, ms_to_ns(self.deadline_ms))


@dataclass(frozen=True, repr=False)
class LateSettings(Settings):
    """When an image or a collage is late."""

    hedge_ms: float | None = _late(
        None,
        "scheme hedge: an image is late after this long and gets a second copy when a rank is idle",
        at_least=0,
    )
    linger_ms: float | None = _late(
        None,
        "send a collage that is not full this long after its group's first image",
        unset="when it is full",
        at_least=0,
    )


def ms_to_ns(value_ms: float | None) -> int | None:
    """Milliseconds as whole ns; None stays None."""
    return None if value_ms is None else round(value_ms * 1e6)


@dataclass(frozen=True, repr=False)
class RedundancySettings(LateSettings, AcceptSettings, RankSettings):
    """All settings that the scheme is made from."""

    def _check(self) -> None:
        for name, known in scheme_class(self.scheme).only.items():
            if getattr(self, name) not in known:
                raise UsageError(
                    f"{name} is {getattr(self, name)} with scheme {self.scheme}; it takes: "
                    f"{', '.join(known)}"
                )
        if self.agree is not None and not self.takes_threshold:
            raise UsageError(
                f"agree is {self.agree:g} with scheme {self.scheme}; only scheme cascade decides "
                "by a score: add --scheme cascade, or leave out --agree"
            )
        make_scheme(self.scheme_settings())

    @property
    def takes_threshold(self) -> bool:
        """Whether the scheme needs a threshold for sure answers. It may change during the run."""
        return self._takes("calibrate")

    @property
    def judged(self) -> str:
        """The kind whose answers the accept policy judges: backup or collage."""
        return BACKUP if self.uses(BACKUP) else COLLAGE

    @property
    def calibration_size(self) -> int:
        """Number of images that choose the threshold of `agree`: a multiple of the group size."""
        runs = 0.0 if self.agree is None else EXPECTED / (1 - self.agree) / self.group_size
        return math.ceil(round(runs, 6)) * self.group_size

    def calibration_images(self, images: int) -> int:
        """How many of a job's images choose the threshold; 0 if the job is too small for it."""
        return self.calibration_size if self.calibration_size < images else 0

    def scheme_settings(self) -> SchemeSettings:
        """The settings in the core's form."""
        return SchemeSettings(
            name=self.scheme,
            assign=self.assign,
            policy=self.accept_policy(),
            collage_copies=self.n_copies,
            hedge_ns=ms_to_ns(self.hedge_ms),
            placement=self.layout,
            calibrate=self.agree is not None,
        )

    @property
    def draws_by_image(self) -> bool:
        """Whether injected delays are drawn by image instead of by group.

        This is so if a rank may run several images of a group.
        """
        return self.assign == "pull" or self.endgame == "on"

    @property
    def takes_policy(self) -> bool:
        """Whether the scheme has an accept policy."""
        return self._takes("policy")

    def labels(self) -> dict[str, str]:
        """Scheme and accept policy, as shown in tables and legends.

        Numbers of ranks are included if they are not the defaults.
        """
        parts = [make_scheme(self.scheme_settings()).label]
        if self.uses_single and self.singles not in (None, self.usual_singles):
            parts.append(f"N = {self.singles}")
        beside = scheme_class(self.scheme).needs - {SINGLE}
        if beside and self.collage_ranks != 1 and not self.any_size:
            parts.append(f"M = {self.collage_ranks}")
        if self.endgame == "on":
            parts.append("end game")
        accept = self.accept_policy().name if self.agree is None else f"agree {self.agree:g}"
        return {"scheme": ", ".join(parts), **({"accept": accept} if self.takes_policy else {})}


def pastes(scheme: str) -> bool:
    """Whether the scheme with this name pastes several images into one picture."""
    return any(KIND[kind].encoded for kind in scheme_class(scheme).needs)


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
