"""What waits leaves together, as a collage or as a batch for a quick network; what that is unsure
of goes to the single network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import Any, ClassVar

from collage_mpi.kinds import BACKUP, COLLAGE, SINGLE
from collage_mpi.scheduler.bundles import Bundle
from collage_mpi.scheduler.events import Score
from collage_mpi.scheduler.policies import AUTO, Confident
from collage_mpi.scheduler.schemes.base import Core, Scheme, SchemeSettings, register
from collage_mpi.scheduler.settings import SchedulerSettings
from collage_mpi.scheduler.state import GroupState, ImageState, Order, TaskState

LEAST = 3  # images: of two the second one would wait for less than a collage takes


@register
class CascadeScheme(Scheme):
    """A collage of up to side x side images that wait, then singles for what it is unsure of.

    A rank with room takes the oldest image that a collage was unsure of; else, where enough
    images wait, the oldest of them as one collage; else the oldest one alone. Where nothing waits
    this is scheme `none`; the more waits, the more images a rank answers at a call. A cascade of
    classifiers (Streeter, arXiv 1802.07697) whose first stage is as large as the queue.
    """

    name = "cascade"
    first: ClassVar[str] = COLLAGE  # kind of the network that is asked first
    needs = frozenset({SINGLE, COLLAGE})
    takes = frozenset({"assign", "policy", "placement", "bundle_from", "beyond_idle", "calibrate"})
    assigns = ("pull",)
    only: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "assign": ("pull",),
        "accept": (AUTO, "confident"),
    }
    mark = ("#CC79A7", "*")
    kept_source = "kept"
    placement = "fastest"
    bundles_runs = True
    credit = 1  # in a rank's second message images would wait where no collage can take them

    def __init__(self, settings: SchemeSettings) -> None:
        super().__init__(settings)
        self.assign = "pull"
        self.policy = settings.policy
        self.calibrate = settings.calibrate
        self.apart = settings.placement == "fixed"
        self._from, self._beyond_idle = settings.bundle_from, settings.beyond_idle

    @property
    def label(self) -> str:
        """As shown in tables and legends."""
        least = "" if self._from is None else f" from {self._from}"
        beyond = " beyond idle ranks" if self._beyond_idle else ""
        return f"{self.name}{least}{beyond}" + (", ranks apart" if self.apart else "")

    def judge_by(self, confidence: float | None) -> None:
        """A cell of at least this score is sure, until a threshold is told again."""
        deadline = self.policy.deadline if isinstance(self.policy, Confident) else None
        self.policy = Confident(inf if confidence is None else confidence, deadline)

    def bundle(self, settings: SchedulerSettings) -> Bundle:
        """All that waits, from as many images on as one takes the time of single answers."""
        least = self._from or max(LEAST, int(settings.costs.get(self.first, 1.0)) + 1)
        most = settings.group_size
        order, open_loop = Order(self.first, self.first), not settings.together
        return Bundle(order, min(least, most), most, self._beyond_idle, patient=open_loop)

    def image_arrived(self, core: Core, image: ImageState) -> None:
        """While a threshold is chosen, this image may end the wait of those before it."""
        if core.dispatch.calibrating:
            for each in image.group.images:
                core.reconsider(each)
        else:
            super().image_arrived(core, image)

    def covers_later(self, core: Core, group: GroupState) -> bool:
        """While a threshold is chosen, the images that choose it wait for a whole collage of them.

        Else most of them would go alone where ranks are idle, and be classified by one network.
        """
        bundles = core.dispatch.bundles
        waits = bundles is not None and bundles.pairing and not group.closed
        return waits and all(image.drawn for image in group.images)

    def answered(
        self,
        core: Core,
        task: TaskState,
        cells: Sequence[Score | None],
        now_ns: int,
        evidence: Any = None,
    ) -> None:
        """A sure answer resolves its image; another is kept while the single network is asked."""
        if task.kind != self.first:
            super().answered(core, task, cells, now_ns)
            return
        for image, cell in task.each(cells):
            if cell is None or image.resolved:
                continue
            if image.count > 1:
                self._run_answered(core, task, image, cell, now_ns)
            elif image.decided_ns is not None:  # its audit may have waited for this task
                core.reconsider(image)
            else:
                self._judge(core, task, image, cell, now_ns)

    def _run_answered(
        self, core: Core, task: TaskState, run: ImageState, cells: Sequence[Score], now_ns: int
    ) -> None:
        """Those of it that stand together and are sure are resolved as a run, each other by
        itself."""
        scores, accept_at_ns = list(cells), self.policy.accept_at_ns
        times_ns = [accept_at_ns(run.t0_ns, now_ns, score, core.latencies) for score in scores]
        sure = [at_ns is not None and at_ns <= now_ns for at_ns in times_ns]
        start, count = 0, run.count
        for end in range(1, count + 1):
            if end < count and sure[start] and sure[end]:
                continue
            part = run if end == count else run.cut(end - start)
            if end - start > 1:
                core.accept(part, task, cells[start:end])
            else:
                self._judge(core, task, part, scores[start], now_ns)
            start = end

    def _judge(
        self, core: Core, task: TaskState, image: ImageState, cell: Score, now_ns: int
    ) -> None:
        at_ns = self._sure_at_ns(core, image, cell, now_ns)
        if at_ns is not None and at_ns <= now_ns:
            core.decide(image, task, cell)
            return
        core.keep(image, task, cell)
        if at_ns is not None and not image.resolved and image.reserve is None:
            core.reserve(image, task, cell, at_ns)

    def _sure_at_ns(self, core: Core, image: ImageState, cell: Score, now_ns: int) -> int | None:
        if core.dispatch.calibrating:
            return None
        return self.policy.accept_at_ns(image.t0_ns, now_ns, cell, core.latencies)


@register
class CascadeBatchScheme(CascadeScheme):
    """As `cascade`, with a batch for the backup network in the collage's place.

    That is a quick network of the same classes; where none is named it is the single one, whose
    answers all count: the same rule without a cheaper answer.
    """

    name = "cascade-batch"
    first = BACKUP
    needs = frozenset({SINGLE, BACKUP})
    mark = ("#CC79A7", "P")
