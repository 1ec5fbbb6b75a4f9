"""`--agree`: chooses the confidence threshold of a cascade, and raises it, without labels.

The threshold keeps almost all answers those of the single network. Each image that both networks
classify gives a pair of answers. `PairBook` collects the pairs of one coordinator. `Judge`, on rank
0, chooses the threshold and raises it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple, Protocol

import numpy as np

from collage_mpi.core.events import Judged
from collage_mpi.job.messages import SetThreshold
from collage_mpi.models.architecture import AcceptSpec
from collage_mpi.results.statistics import (
    differing_interval,
    least_counted,
    least_images,
    least_threshold,
    no_scores,
    rules_out,
    step_of,
)
from collage_mpi.rows import AUDIT_CODE, cells_of
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards.order import Order, Range, gaps
from collage_mpi.system.printable import counted
from collage_mpi.system.tell import tell

ALONE = "from here on the single network classifies every image by itself"


class Pair(NamedTuple):
    """The answers of both networks to one image.

    Attributes:
        place: the image's place in the order if it belongs to the calibration; None for an audit.
        score: score of the cell, 0..1; None if only one network has classified the image.
        differs: whether the networks give different classes.
    """

    place: int | None
    score: float | None
    differs: bool


class LabelledShards(Protocol):
    """What a `PairBook` needs of a `ShardSet`."""

    lost: dict[int, str]

    def locate(self, index: int) -> tuple[int, int]: ...


def calibration_first(order: Order, images: int, cells: int, seed: int) -> Order:
    """The order with `images` drawn images moved to the front.

    The images are drawn as runs of `cells` neighbours, so that they form whole groups.

    Args:
        order: of all images.
        images: a multiple of `cells`, at most the length of the order.
        cells: images of a group.
        seed: of the draw.
    """
    groups = np.random.default_rng(seed).choice(len(order) // cells, images // cells, replace=False)
    drawn = [(first, first + cells) for first in (np.sort(groups) * cells).tolist()]
    return order.part([*drawn, *gaps(drawn, len(order))])


class PairBook:
    """Collects the pairs of one coordinator while its images are resolved.

    Attributes:
        heard: thresholds that were announced and that the coordinator has not taken yet.
    """

    def __init__(self, calibration: Sequence[int], shards: LabelledShards | None = None) -> None:
        """`calibration`: indices of the images that choose the threshold, which are the first ones
        of the order; `shards` hold them."""
        self.heard: list[SetThreshold] = []
        self._shards, self._lost = shards, 0  # number of lost shards that were handled
        self._say: Callable[[tuple[Pair, ...]], None] | None = None
        self._calibration, self._indices = calibration, np.asarray(calibration, np.int64)
        self._places = {index: place for place, index in enumerate(calibration)}
        self._awaited: dict[int, int] = {}  # of `_places`, images that are to arrive here
        self._open: dict[int, int] = {}  # image in flight -> its place in the calibration
        self._pairs: list[Pair] = []

    def tell(self, say: Callable[[tuple[Pair, ...]], None]) -> None:
        """From now on `look` passes the pairs to `say`."""
        self._say = say

    def expect(self, ranges: Iterable[Range]) -> None:
        """Images at these positions will arrive here: a lease, or the whole job."""
        for start, stop in ranges:
            mine = enumerate(self._calibration[start:stop], start)
            self._awaited.update((index, place) for place, index in mine)
        self._lost = 0

    def calibrates(self, first: int, indices: np.ndarray) -> np.ndarray | None:
        """Note that images with these indices, (n,) int64, arrive at the positions from `first` on.

        Returns:
            (n,) bool, which of them belong to the calibration; None if none does.
        """
        mine: np.ndarray = np.isin(indices, self._indices)
        if not mine.any():
            return None
        for at in np.flatnonzero(mine).tolist():
            index = int(indices[at])
            self._open[first + at] = self._places[index]
            self._awaited.pop(index, None)
        return mine

    def judged(self, judged: Judged) -> None:
        """Note the outcome of a drawn image."""
        place = self._open.pop(judged.position, None)
        if place is not None or judged.score is not None:
            self._pairs.append(Pair(place, judged.score, judged.differs))

    def look(self) -> None:
        """Pass on the new pairs, and entries for images that cannot arrive any more."""
        if self._shards is not None and len(self._shards.lost) != self._lost:
            self._miss(self._shards)
        if self._pairs and self._say is not None:
            pairs, self._pairs = self._pairs, []
            self._say(tuple(pairs))

    def _miss(self, shards: LabelledShards) -> None:
        """Stop waiting for images of shards that can no longer be read."""
        self._lost = len(shards.lost)
        missing = [index for index in self._awaited if shards.locate(index)[0] in shards.lost]
        self._pairs += [Pair(self._awaited.pop(index), None, False) for index in missing]


def pairs_of(rows: np.ndarray, places: np.ndarray) -> list[Pair]:
    """The pairs that the rows of calibration images give.

    Args:
        rows: (n,) of IMAGE_ROW.
        places: (n,) int, place of each image in the order.
    """
    scores, differs = cells_of(rows)
    both = rows["audited"] == AUDIT_CODE["done"]
    return [
        Pair(int(place), float(score) if done else None, bool(done and other))
        for place, done, score, other in zip(places, both, scores, differs, strict=True)
    ]


@dataclass(frozen=True)
class Asked:
    """What `--agree` asks for, and the job that it is asked of.

    Attributes:
        settings: of the run. They say which share of the answers must not change.
        images: number of images of the job.
        ratio: service time of the first stage (a collage, or a batch of as many images) divided by
            that of one image on the single network.
    """

    settings: RunSettings
    images: int
    ratio: float

    @property
    def agree(self) -> float:
        """Share of the images whose answer may not change, between 0 and 1."""
        assert self.settings.agree is not None
        return self.settings.agree


class Judge:
    """Chooses the threshold when all calibration images have their outcome, and may raise it later.

    Attributes:
        held: the thresholds so far; the last one applies. Empty during the calibration.
        audited: images that both networks classified since the last threshold was decided, or since
            the session began.
        differing: audited images whose cell reaches the threshold and has another class.
    """

    def __init__(
        self,
        asked: Asked,
        when: Callable[[], tuple[int, int]],
        before: Sequence[Mapping[str, Any]] = (),
        pairs: Iterable[Pair] = (),
    ) -> None:
        """Start with what earlier sessions know.

        Args:
            asked: what the user asked for.
            when: gives the session's number and its time so far, in ns.
            before: thresholds of earlier sessions. The last one applies again, with new counts.
            pairs: of earlier sessions whose calibration was interrupted.
        """
        self.asked, self._when = asked, when
        names = [field.name for field in fields(SetThreshold)]
        self.held = [SetThreshold(**{name: each[name] for name in names}) for each in before]
        self._calibration: dict[int, Pair] = {}
        self._hold(*[each.confidence for each in self.held[-1:]])
        self.take(pairs)

    def _hold(self, *confidence: float | None) -> None:
        """Apply a threshold, if one is given, and count audits anew."""
        self.held += [SetThreshold(each, *self._when()) for each in confidence]
        self.audited = self.differing = 0
        self._counts = no_scores()  # audits by score

    def begin(
        self,
        announce: Callable[[SetThreshold], None],
        note: Callable[[list[dict[str, Any]]], None],
    ) -> None:
        """Start to decide on thresholds.

        Args:
            announce: takes each new threshold.
            note: takes the manifest's list of thresholds.
        """
        self._announce, self._note = announce, note
        if self.held:
            self._tell()
        self.hear(())

    def _tell(self) -> None:
        self._note(self.entries())
        self._announce(self.held[-1])

    def hear(self, pairs: Iterable[Pair]) -> None:
        """Take pairs, and announce a new threshold if they call for one."""
        self.take(pairs)
        why = self.verdict()
        if why is not None:
            tell(f"collage-mpi run: {why}")
            self._tell()

    def take(self, pairs: Iterable[Pair]) -> None:
        """Take pairs without a decision.

        A calibration image may come twice, if its first team was lost or could not read it. Then
        the pair with both answers counts. After the calibration only audits count.
        """
        for pair in pairs:
            if self.held and pair.place is None:
                self._audit(pair)
            elif not self.held and pair.place is not None:
                if pair.score is None:
                    self._calibration.setdefault(pair.place, pair)
                else:
                    self._calibration[pair.place] = pair

    def _audit(self, pair: Pair) -> None:
        confidence = self.held[-1].confidence
        if pair.score is not None and confidence is not None:
            self.audited += 1
            self.differing += pair.differs and pair.score >= confidence
            if pair.score >= 0:
                self._counts[step_of(pair.score), int(pair.differs)] += 1

    def verdict(self) -> str | None:
        """Decide whether a new threshold is due and apply it; the reason, or None if it is not."""
        confidence, why = self._chosen() if not self.held else self._raised()
        if why is not None:
            self._hold(confidence)
            return f"agree {self.asked.agree:g}: {why}"
        return None

    def entries(self) -> list[dict[str, Any]]:
        """The thresholds so far, for the manifest."""
        return [asdict(each) for each in self.held]

    def _chosen(self) -> tuple[float | None, str | None]:
        """The threshold (None: no collages) and why; (None, None) while images are missing."""
        asked, settings = self.asked, self.asked.settings
        calibration = settings.calibration_images(asked.images)
        if not calibration:
            return None, (
                "this job is too small to choose a threshold: it has "
                f"{counted(asked.images, 'image')}, and more than {settings.calibration_size:,} "
                f"are needed; {ALONE}"
            )
        if len(self._calibration) < calibration:
            return None, None
        pairs = [pair for pair in self._calibration.values() if pair.score is not None]
        scores = np.array([pair.score for pair in pairs], np.float64)  # (n,)
        differs = np.array([pair.differs for pair in pairs], bool)
        both = f"{counted(len(pairs), 'image')} went through both networks"
        if len(pairs) < least_images(asked.agree):
            needed = f"{least_images(asked.agree):,} are needed"
            return None, (
                f"only {both}, and {needed}. Each other image got an answer from one network only, "
                f"for example because no rank of the other network was left; {ALONE}"
            )
        found = least_threshold(scores, differs, asked.agree)
        share = 0.0 if found is None else float((scores >= found).mean())
        pays = asked.ratio / settings.group_size
        if found is None or share <= pays:
            return None, (
                f"{both}, and {_percent(share)} of the cells may count; the first stage pays from "
                f"{_percent(pays)} on. The cascade does not pay here; {ALONE}"
            )
        changed = int(differs[scores >= found].sum())
        return found, (
            f"cells count from a score of {found:g} on. {both}: {_percent(share)} of the cells "
            f"count, and {changed:,} of these differ, so at most {_percent(1 - asked.agree)} of "
            "all answers change (95 % confidence)"
        )

    def _raised(self) -> tuple[float | None, str | None]:
        now, audited, differing = self.held[-1].confidence, self.audited, self.differing
        most = 1 - self.asked.agree
        if differing <= most * audited or not rules_out(most, differing, audited):
            return None, None
        # Audits are usually too few to prove a bound. The new threshold keeps it among them, and
        # starts a new interval.
        found = least_counted(self._counts, int(most * audited))
        low, high = map(_percent, differing_interval(differing, audited))
        if found is None:
            then = f"no higher score keeps the bound; {ALONE}"
        else:
            then = f"cells count from a score of {found:g} on instead of {now:g}"
        return found, (
            f"{differing:,} of {counted(audited, 'audited image')} got another answer than "
            f"the single network's (95 % interval {low} to {high}), more than {_percent(most)}: "
            f"{then}"
        )


class AgreementWatch:
    """Warns once if accepted answers agree less often than when the threshold was measured."""

    def __init__(self, spec: AcceptSpec | None) -> None:
        """`spec`: the threshold in the collage network's file, if the run uses it; else None."""
        self._most: float | None = None
        if spec is not None and spec.agreeing is not None:
            counted_then = round(spec.share * spec.measured_on)
            self._was = 1 - spec.agreeing
            # The measured share has an interval, too. Its upper end is what is tolerated.
            self._most = differing_interval(round(self._was * counted_then), counted_then)[1]

    def look(self, audited: int, differing: int) -> None:
        """Check the counts of audited answers so far, and of those that differ."""
        most = self._most
        if most is None or differing <= most * audited or not rules_out(most, differing, audited):
            return
        self._most = None
        low, high = map(_percent, differing_interval(differing, audited))
        tell(
            f"warning: {differing:,} of {audited:,} audited answers of the collage differ from the "
            f"single network's (95 % interval {low} to {high}). When the threshold was measured, "
            f"{_percent(self._was)} differed. These images may be unlike those of the measurement: "
            "measure a new threshold with `collage-mpi weights threshold`, or let the run choose "
            "one with --agree 0.99"
        )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
