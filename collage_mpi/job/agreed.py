"""The threshold of `--agree` that the jobs of a run share: `thresholds/1.json`, made by link.

Every job decides by its own pairs and by the rows that others have committed. Who is quicker makes
the record; all go by it.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from collage_mpi.bounds.promise import Promise, Threshold
from collage_mpi.bounds.sample import CHOOSING, least_images
from collage_mpi.errors import CollageError
from collage_mpi.job.pairs import Heard, Pair, pairs_of
from collage_mpi.job.plan import Plan
from collage_mpi.ledger import spans as sp
from collage_mpi.ledger.owner import LOOK_S
from collage_mpi.ledger.records import Damage
from collage_mpi.ledger.spans import Spans
from collage_mpi.ledger.store import FolderStore
from collage_mpi.results.manifest import threshold_name
from collage_mpi.results.parts import PartName, counted
from collage_mpi.results.reader import rows_of_part
from collage_mpi.rows import IMAGES
from collage_mpi.settings.stages import CLASS
from collage_mpi.system.files import make_directory
from collage_mpi.system.printable import counted as counted_words
from collage_mpi.system.tell import tell

NAME = threshold_name(1)
ALONE = "the single network classifies every image"


@dataclass(frozen=True)
class Held(Threshold):
    """A threshold, and in which runtime and number format the candidate's answers proved it."""

    how: str


class Agreed:
    """A job's part in the choice of the threshold. `turn` is called in the thread of the ledger."""

    def __init__(
        self,
        store: FolderStore,
        plan: Plan,
        session: int,
        promise: Promise,
        hows: Mapping[str, str],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Prepare. Raises OSError.

        Args:
            store: of the run's folder.
            plan: of the job.
            session: number of this job's session.
            promise: decides.
            hows: candidate -> in which runtime and number format it answers here.
            clock: monotonic, in s.
        """
        make_directory((Path(plan.settings.out) / NAME).parent)
        self._store, self._plan, self._session = store, plan, session
        self._promise, self._hows, self._clock = promise, hows, clock
        self._asks = tuple(each.name for each in promise.candidates)
        self._pairs: deque[Pair] = deque()
        self._seen: Spans = ()
        self._held: Heard | None = None
        self._look_s = clock()

    def pairs(self, pairs: Iterable[Pair]) -> None:
        """Images that several networks have classified; called in rank 0's loop."""
        self._pairs.extend(pairs)

    def turn(self) -> list[Heard]:
        """Which candidates are asked from now on, if that has changed.

        Raises:
            OSError: the folder does not work; repeat it.
            CollageError: the folder is damaged.
        """
        if self._held is not None:
            return []
        if self._clock() >= self._look_s:
            self._look_s = self._clock() + LOOK_S
            if (raw := self._store.read(NAME)) is not None:
                return [self._adopted(raw)]
            self._take(self._of_others())
        while self._pairs:
            self._take([self._pairs.popleft()])
        mine, asks = self._promise.threshold, self._promise.asks
        if mine is None:
            before, self._asks = self._asks, asks
            return [] if asks == before else [Heard(asks, None)]
        how = self._hows.get(mine.candidate or "", "")
        raw = msgspec.json.encode(Held(**asdict(mine), how=how))
        found = self._adopted(self._store.settled(NAME, raw))
        if found.threshold == mine:
            settings = self._plan.settings
            on = "" if settings.agree_on == CLASS else f" on {settings.agree_on}"
            names = {each.kind: each.text for each in settings.stages}
            agree = f"agree {self._promise.asked.agree:g}{on}"
            tell(f"collage-mpi run: {agree}: {told(self._promise, names)}")
        return [found]

    @property
    def number(self) -> int:
        """Of the threshold that applies; 0 before it is known."""
        return int(self._held is not None)

    def _take(self, pairs: Iterable[Pair]) -> None:
        for pair in pairs:
            self._promise.take(pair.place, pair.answers)

    def _adopted(self, raw: bytes) -> Heard:
        try:
            found = msgspec.json.decode(raw, type=Held)
        except (msgspec.MsgspecError, UnicodeError) as error:
            raise Damage(NAME, f"it is damaged ({error})") from error
        confidence, candidate = found.confidence, found.candidate
        here = self._hows.get(candidate or "", "")
        if candidate is not None and found.how != here:
            tell(
                f"collage-mpi run: the threshold is for a first network in {found.how}, and here "
                f"it answers in {here}: {ALONE} of this job"
            )
            confidence = candidate = None
        threshold = Threshold(confidence, candidate, found.proved, found.drawn)
        self._held = Heard(() if candidate is None else (candidate,), threshold)
        return self._held

    def _of_others(self) -> list[Pair]:
        """The pairs of drawn images that have rows of other sessions, as far as they are new."""
        found = list[Pair]()
        for part in counted(Path(self._plan.settings.out)):
            new = sp.minus(sp.common(part.spans, ((0, self._plan.front),)), self._seen)
            if part.session != self._session and part.table == IMAGES.name and new:
                self._seen = sp.union(self._seen, new)
                found += self._pairs_in(part._replace(spans=new))
        return found

    def _pairs_in(self, part: PartName) -> list[Pair]:
        with suppress(CollageError):  # verify tells of a part that is damaged
            rows = rows_of_part(part, IMAGES)
            return pairs_of(rows[rows["session"] != self._session], [*self._hows])
        return []


def told(promise: Promise, names: Mapping[str, str]) -> str:
    """What was decided, and why, as a sentence. `names`: of the candidates, as users know them."""
    asked, held, chosen = promise.asked, promise.threshold, promise.chosen
    assert held is not None
    if not promise.tried:
        return _too_small(promise)
    both = f"{counted_words(held.drawn, 'drawn image')} went through both networks"
    if len(promise.tried) > 1:
        both = (
            f"{counted_words(held.drawn, 'drawn image')} went through several networks, the first "
            f"{CHOOSING} through {' and '.join(names[each.name] for each in promise.tried)}"
        )
    changed, audited, _ = promise.audited()
    if held.candidate is not None:
        return (
            f"an answer of {names[held.candidate]} counts from a score of {held.confidence:.4g} "
            f"on. {both}; {_percent(promise.counting())} of the answers count, and {changed:,} of "
            f"{audited:,} audited ones differ. With 95 % probability at most "
            f"{_percent(1 - asked.agree)} of all answers change"
        )
    if audited:
        return f"{both}, and {changed:,} of {audited:,} audited answers differ: {ALONE}"
    why = "what the first network is sure of would not pay for it"
    if chosen is not None:
        most = _percent(1 - asked.agree)
        why = f"no score of {names[chosen.name]} is proved to change at most {most} of the answers"
    return f"{both}, and {why}: {ALONE}"


def _too_small(promise: Promise) -> str:
    asked, candidates = promise.asked, promise.candidates
    least = [least_images(asked, each) for each in candidates]
    images = min((each for each in least if each is not None), default=None)
    if images is None:
        ratio = min(each.image_s for each in candidates) / asked.image_s
        return f"an image takes {ratio:.2f} times as long on the first network: {ALONE}"
    return (
        f"the job has {counted_words(int(asked.images), 'image')}, and a first network pays from "
        f"{images:,} on: {ALONE}"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.3g} %"
