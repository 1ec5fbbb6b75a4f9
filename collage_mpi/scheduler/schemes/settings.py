"""What the schemes are made from.

Owns: the names of a scheme's settings, and their defaults.
Does not know: which scheme takes which of them (each says so).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from collage_mpi.scheduler.events import Score
from collage_mpi.scheduler.policies import AcceptPolicy, Delay, First

# (image, its place in the task that was encoded, evidence of that task, evidence of each other
# image in it, in order) -> the image's record, or None where they say nothing
Decode = Callable[[int, int, Any, Sequence[Any]], Score | None]


def tell_nothing(image: int, place: int, evidence: Any, others: Sequence[Any]) -> None:
    """A `Decode` for whoever has no evidence: nothing is decoded."""


@dataclass(frozen=True)
class SchemeSettings:
    """What the schemes are made from; each takes those that it names in `takes`.

    Bounds and choices are checked where users give the values (settings/redundancy).

    Attributes:
        name: one of SCHEMES.
        assign: one of ASSIGNMENTS, for first copies.
        policy: when a collage's answer counts.
        collage_copies: ranks that get the same collage.
        replicas: ranks that get the same image.
        hedge_delay: when an image is late.
        hedge_budget: copies allowed per image, 0..1.
        placement: one of PLACEMENTS: collages to ranks of their own, or to the fastest of ranks
            that hold both networks.
        parity_k: images of a stripe.
        decode: how an image's record is made from the answers of others.
        bundle_from: images that must wait for a collage (cascade); None: as many as pay.
        beyond_idle: idle ranks are counted off them.
        calibrate: no cell is sure, and only drawn images are collaged, until a threshold is told.
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
    decode: Decode = tell_nothing
    bundle_from: int | None = None
    beyond_idle: bool = False
    calibrate: bool = False
