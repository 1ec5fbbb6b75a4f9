"""What the schemes are made from.

Owns: the names of a scheme's settings, and what a scheme works with that does not take one.
Does not know: which scheme takes which of them (each says so).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from collage_mpi.scheduler.events import Score
from collage_mpi.scheduler.policies import AcceptPolicy, Delay, First

# (image, its place in the task that was encoded, evidence of that task, evidence of each other
# image in it, in order) -> the image's record, or None where they say nothing
Decode = Callable[[int, int, Any, Sequence[Any]], Score | None]


def tell_nothing(image: int, place: int, evidence: Any, others: Sequence[Any]) -> None:
    """A `Decode` for whoever has no evidence: nothing is decoded."""


@dataclass(frozen=True, kw_only=True)
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
    assign: str
    policy: AcceptPolicy
    collage_copies: int
    replicas: int
    hedge_delay: Delay | None
    hedge_budget: float
    placement: str
    parity_k: int
    decode: Decode
    bundle_from: int | None
    beyond_idle: bool
    calibrate: bool


# What a scheme that builds on another works with, of the settings that only the other one takes.
NOT_TAKEN: Mapping[str, Any] = {"assign": "turn", "policy": First(), "placement": "fixed"}
