"""The stages of a cascade that are asked before its exact network: what `--first` says of each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from collage_mpi.errors import UsageError
from collage_mpi.kinds import COLLAGE, STAGES
from collage_mpi.models.info import INT8, PRECISIONS, RUNTIMES, Tuning
from collage_mpi.system.fields import with_shipped

MARGIN, TOP = "margin", "top"
SCORES = (MARGIN, TOP)
CLASS, TOP5 = "class", "top5"  # what of an answer `agree` promises
FORMATS = (*PRECISIONS[1:], INT8)
BEST = 5  # classes of TOP5
HUB = "hf-hub:"  # its names may hold an @ before a revision
_PX = re.compile(r"(\d+)px")
_NUMBER = re.compile(r"\d*\.?\d+")


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A network that a cascade asks before its exact network.

    Attributes:
        kind: of its tasks, one of `kinds`.
        network: its spec; "" for the network of the setting `collage`.
        px: height and width of the pictures that it gets; None: as the exact network.
        precision, runtime: as the settings of these names; None: as these.
        score: what decides whether an answer counts: the margin between the two largest
            probabilities, or the largest one. None: as its threshold was measured.
        threshold: least score that counts; None: as the setting `confidence`.
    """

    kind: str
    network: str
    px: int | None = None
    precision: str | None = None
    runtime: str | None = None
    score: str | None = None
    threshold: float | None = None

    @property
    def scored(self) -> str:
        """What decides, if the threshold was given by hand or is chosen in the run."""
        return self.score or (TOP if self.kind == COLLAGE else MARGIN)

    def tuning(self, usual: Tuning) -> Tuning:
        """How its network is run; `usual`: other networks."""
        precision, runtime = self.precision or usual.precision, self.runtime or usual.runtime
        return Tuning(precision=precision, runtime=runtime)

    @property
    def text(self) -> str:
        """The stage as it is given, with all that is known of it."""
        named = f"{COLLAGE}:{self.network}".rstrip(":") if self.kind == COLLAGE else self.network
        px = None if self.px is None else f"{self.px}px"
        number = None if self.threshold is None else f"{self.threshold:g}"
        parts = named, px, self.precision, self.runtime, self.score, number
        return "@".join(part for part in parts if part is not None)


def read_stage(text: str, number: int) -> Stage:
    """Parse one word of `--first`.

    Args:
        text: NETWORK, collage:FILE or collage, with any of @Npx, @PRECISION, @RUNTIME, @SCORE and
            @THRESHOLD behind it.
        number: its place in the cascade, from 0.

    Raises:
        UsageError: a suffix is unknown, given twice, or does not fit.
    """
    *before, last = text.split("@")
    found: dict[str, str | int | float] = {}
    while before:
        suffix = _suffix(last)
        if suffix is None:
            break
        if suffix[0] in found:
            raise UsageError(f"first is {text!r}: {suffix[0]} is given twice")
        found[suffix[0]] = suffix[1]
        *before, last = before
    network = "@".join([*before, last])
    if before and HUB not in network and not Path(network.removeprefix("collage:")).exists():
        raise UsageError(
            f"first is {text!r}: unknown is @{last}; known are an input size such as @160px, a "
            f"format ({', '.join(FORMATS)}), a runtime ({', '.join(RUNTIMES[1:])}), a score "
            f"({', '.join(SCORES)}), and a threshold such as @0.9"
        )
    if not network:
        raise UsageError(f"first is {text!r}; it needs a network: --first timm:NAME@0.9")
    if network != COLLAGE and not network.startswith(COLLAGE + ":"):
        return Stage(kind=STAGES[number], network=with_shipped(network), **found)  # type: ignore[arg-type]
    if number or "px" in found:
        why = f"the cells' size is --cell-px, not @{found.get('px')}px"
        if number:
            why = "collages come first, because new images fill them and unsure ones do not"
        raise UsageError(f"first is {text!r}: {why}")
    named = network[len(COLLAGE) + 1 :]
    return Stage(kind=COLLAGE, network=with_shipped(named) if named else "", **found)  # type: ignore[arg-type]


def _suffix(word: str) -> tuple[str, str | int | float] | None:
    """Which field of a stage a suffix gives, and its value; None if it is no suffix."""
    if px := _PX.fullmatch(word):
        return "px", int(px[1])
    if _NUMBER.fullmatch(word) and float(word) <= 1:
        return "threshold", float(word)
    for name, known in ("precision", FORMATS), ("runtime", RUNTIMES), ("score", SCORES):
        if word in known and word != "auto":
            return name, word
    return None


def read_stages(first: Sequence[str], own: str = "") -> tuple[Stage, ...]:
    """The stages that `--first` names, in order; one of collages if it names none.

    Args:
        first: the words. One that begins with @ means the exact network.
        own: spec of the exact network; "" if there is none.

    Raises:
        UsageError: as `read_stage`; also if there are too many.
    """
    if len(first) > len(STAGES):
        raise UsageError(f"first has {len(first)} networks; at most {len(STAGES)} are possible")
    words = [f"{own}{text}" if text.startswith("@") else text for text in first or (COLLAGE,)]
    return tuple(read_stage(text, number) for number, text in enumerate(words))


def at_threshold(stage: Stage, threshold: float, score: str) -> Stage:
    """The stage with a threshold that was measured for this score."""
    return replace(stage, threshold=threshold, score=score)
