"""Schemes: which tasks are made of an image and of a group, what an answer means.

Owns: their names, what each is made from, which networks each needs.
Does not know: what each of them does (a small class each, in this package).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from collage_mpi.errors import UsageError
from collage_mpi.scheduler.policies import AcceptPolicy, Delay, First
from collage_mpi.scheduler.schemes.base import ASSIGNMENTS, Core, Later, Scheme
from collage_mpi.scheduler.schemes.collage import (
    CollageHedgeScheme,
    CollageOnlyScheme,
    CollageScheme,
)
from collage_mpi.scheduler.schemes.copies import Hedger, HedgeScheme, ReplicateScheme
from collage_mpi.scheduler.schemes.parity import Decode, ParityScheme

__all__ = [
    "ASSIGNMENTS",
    "PLACEMENTS",
    "SCHEMES",
    "USE_COLLAGE",
    "USE_HEDGE",
    "USE_PARITY",
    "USE_POLICY",
    "USE_SINGLE",
    "CollageScheme",
    "Core",
    "Decode",
    "Later",
    "ParityScheme",
    "Scheme",
    "SchemeSettings",
    "make_scheme",
]

SCHEMES = ("none", "replicate", "hedge", "collage", "collage-only", "collage-hedge", "parity")
PLACEMENTS = ("fixed", "fastest")
USE_COLLAGE = frozenset({"collage", "collage-only", "collage-hedge"})  # others leave them idle
USE_SINGLE = frozenset(SCHEMES) - {"collage-only"}
USE_POLICY = frozenset({"collage", "collage-hedge"})
USE_HEDGE = frozenset({"hedge", "collage-hedge"})
USE_PARITY = frozenset({"parity"})


@dataclass(frozen=True)
class SchemeSettings:
    """What the schemes are made from.

    Attributes:
        name: one of SCHEMES.
        assign: one of ASSIGNMENTS, for first copies; `pull` for all tasks.
        policy: accept policy (those of USE_POLICY).
        collage_copies: ranks that get the same collage (those of USE_COLLAGE).
        replicas: ranks that get the same image (replicate).
        hedge_delay: when an image is late (hedge, collage-hedge).
        hedge_budget: copies allowed per image, 0..1 (hedge, collage-hedge).
        placement: one of PLACEMENTS (those of USE_COLLAGE): collages to ranks of their own, or
            to the fastest of ranks that hold both networks.
        parity_k: images of a stripe (those of USE_PARITY).
    """

    name: str
    assign: str = "turn"
    policy: AcceptPolicy = field(default_factory=First)
    collage_copies: int = 1
    replicas: int = 2
    hedge_delay: Delay | None = None
    hedge_budget: float = 0.25
    placement: str = "fixed"
    parity_k: int = 3

    def hedger(self) -> Hedger:
        """By which rule late images get their copies. Raises UsageError without a time."""
        if self.hedge_delay is None:
            raise UsageError(f"scheme {self.name} needs --hedge-ms or --hedge-quantile")
        return Hedger(self.hedge_delay, self.hedge_budget)


def tell_nothing(image: int, evidence: Any, others: Sequence[Any]) -> None:
    """A `Decode` for whoever has no evidence: nothing is decoded."""


def make_scheme(settings: SchemeSettings, decode: Decode = tell_nothing) -> Scheme:
    """The scheme of the settings.

    Args:
        decode: how an image's record is made from the answers of others (those of USE_PARITY).

    Raises:
        UsageError: what cannot work.
    """
    assign, copies = settings.assign, settings.collage_copies
    if settings.placement not in PLACEMENTS:
        raise UsageError(f"placement is {settings.placement!r}; known are: {', '.join(PLACEMENTS)}")
    fastest = settings.placement == "fastest"
    pulled = assign if assign == "pull" else "turn"  # where no other assignment has a meaning
    if fastest and settings.name not in USE_COLLAGE:
        raise UsageError(
            f"placement fastest is for collages, and scheme {settings.name} makes none: "
            "leave it out, or use --assign finish"
        )
    if settings.name == "none":
        return Scheme(assign)
    if settings.name == "replicate":
        return ReplicateScheme(settings.replicas, pulled)
    if settings.name == "hedge":
        return HedgeScheme(settings.hedger(), assign)
    if settings.name == "collage":
        return CollageScheme(settings.policy, copies, assign, fastest)
    if settings.name == "collage-only":
        return CollageOnlyScheme(copies, fastest, pulled)
    if settings.name == "collage-hedge":
        return CollageHedgeScheme(settings.policy, settings.hedger(), copies, assign, fastest)
    if settings.name == "parity":
        return ParityScheme(settings.parity_k, decode, assign)
    raise UsageError(f"scheme is {settings.name!r}; known are: {', '.join(SCHEMES)}")
