"""`--agree`: the images that both networks of a cascade classify, so that no labels are needed to
choose a threshold. `PairBook` collects their answers in a coordinator's loop; `job/agreed` decides.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple, Protocol

import numpy as np

from collage_mpi.bounds.draw import Draw
from collage_mpi.bounds.promise import Answer, Threshold
from collage_mpi.core.events import Judged
from collage_mpi.models.architecture import AcceptSpec
from collage_mpi.results.statistics import differing_interval, rules_out
from collage_mpi.rows import pairs_in
from collage_mpi.shards.order import Order, Range, gaps, ranges_of
from collage_mpi.system.tell import tell


class Pair(NamedTuple):
    """The answers of first networks to a drawn image, each beside the exact network's.

    Attributes:
        place: the image's position in the order, which is its number in the draw.
        answers: by the kind of the first network; empty if only one network has classified the
            image.
    """

    place: int
    answers: Mapping[str, Answer]


class Heard(NamedTuple):
    """Which first networks are asked from now on.

    Attributes:
        kinds: those that classify drawn images, or the one whose answers count.
        threshold: from which they count; None as long as that is not known.
    """

    kinds: tuple[str, ...]
    threshold: Threshold | None


class Shards(Protocol):
    """What a `PairBook` needs of a `ShardSet`."""

    lost: dict[int, str]

    def locate(self, index: int) -> tuple[int, int]: ...


def drawn_first(order: Order, images: int) -> Order:
    """The order with images drawn from all over it moved to the front, in the order of the draw.

    Args:
        order: of all images.
        images: how many are drawn, at most the length of the order.
    """
    drawn = Draw(len(order), 0).first(images)
    rest = gaps(ranges_of(np.sort(np.array(drawn, np.int64))), len(order))
    return order.part([*((each, each + 1) for each in drawn), *rest])


class PairBook:
    """Collects the pairs of one coordinator while its images are resolved.

    Attributes:
        heard: what was announced and what the coordinator has not taken yet.
    """

    def __init__(self, front: int, order: Order, shards: Shards) -> None:
        """`front`: number of images at the start of the `order`, which are drawn; `shards` hold
        them."""
        self.heard: list[Heard] = []
        self._front, self._order, self._shards = front, order, shards
        self._lost = 0  # number of lost shards that were handled
        self._say: Callable[[tuple[Pair, ...]], None] | None = None
        self._awaited: set[int] = set()  # drawn positions that are to arrive here
        self._open: dict[int, int] = {}  # position in the core of an image in flight -> that one
        self._pairs: list[Pair] = []

    def tell(self, say: Callable[[tuple[Pair, ...]], None]) -> None:
        """From now on `look` passes the pairs to `say`."""
        self._say = say

    def expect(self, ranges: Iterable[Range]) -> None:
        """Images at these positions will arrive here: a lease, or the whole job."""
        for start, stop in ranges:
            self._awaited.update(range(start, min(stop, self._front)))
        self._lost = 0

    def draws(self, first: int, positions: np.ndarray) -> np.ndarray | None:
        """Note that images at these positions of the order, (n,) int64, arrive in the core at the
        positions from `first` on.

        Returns:
            (n,) bool, which of them are drawn; None if none is.
        """
        mine: np.ndarray = positions < self._front
        if not mine.any():
            return None
        found = positions[mine].tolist()
        self._open.update(zip((first + np.flatnonzero(mine)).tolist(), found, strict=True))
        self._awaited.difference_update(found)
        return mine

    def hear(self, heard: Heard) -> None:
        """If the threshold is known, no further image has to go through both networks."""
        self.heard.append(heard)
        if heard.threshold is not None:
            self._front = 0
            self._awaited.clear()

    def judged(self, judged: Judged) -> None:
        """Note the outcome of a drawn image."""
        place = self._open.pop(judged.position, None)
        if place is not None:
            answers = {kind: Answer(*given) for kind, given in judged.answers.items()}
            self._pairs.append(Pair(place, answers))

    def look(self) -> None:
        """Pass on the new pairs, and entries for images that cannot arrive any more."""
        if len(self._shards.lost) != self._lost:
            self._miss()
        if self._pairs and self._say is not None:
            pairs, self._pairs = self._pairs, []
            self._say(tuple(pairs))

    def _miss(self) -> None:
        """Stop waiting for images of shards that can no longer be read."""
        self._lost = len(self._shards.lost)
        awaited = sorted(self._awaited)
        indices = self._order.indices(np.array(awaited, np.int64)).tolist()
        for place, index in zip(awaited, indices, strict=True):
            if self._shards.locate(index)[0] in self._shards.lost:
                self._awaited.discard(place)
                self._pairs.append(Pair(place, {}))


def pairs_of(rows: np.ndarray, kinds: Sequence[str]) -> list[Pair]:
    """The pairs that the rows of drawn images, (n,) of IMAGE_ROW, give. `kinds`: of the first
    networks."""
    answers: list[dict[str, Answer]] = [{} for _ in rows]
    for kind in kinds:
        both, scores, differs = pairs_in(rows, kind)
        for at in np.flatnonzero(both).tolist():
            answers[at][kind] = Answer(float(scores[at]), bool(differs[at]))
    return [Pair(*each) for each in zip(rows["position"].tolist(), answers, strict=True)]


class AgreementWatch:
    """Warns once if more of the accepted answers differ than the weights file promises."""

    def __init__(self, spec: AcceptSpec | None) -> None:
        """`spec`: the threshold in the collage network's file, if the run uses it; else None."""
        # The promise is about all images. Only accepted answers are audited.
        self._most = None if spec is None else (1 - spec.agree) / spec.share

    def look(self, audited: int, differing: int) -> None:
        """Check the counts of audited answers so far, and of those that differ."""
        most = self._most
        if most is None or differing <= most * audited or not rules_out(most, differing, audited):
            return
        self._most = None
        low, high = map(_percent, differing_interval(differing, audited))
        tell(
            f"warning: {differing:,} of {audited:,} audited answers of the first stage differ from "
            f"the single network's (95 % interval {low} to {high}). The threshold in the weights "
            f"file promises at most {_percent(most)}. These images may be unlike those that chose "
            "it: choose a new one with `collage-mpi weights threshold`, or let the run choose one "
            "with --agree 0.99"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
