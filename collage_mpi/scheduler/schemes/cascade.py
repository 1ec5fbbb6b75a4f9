"""Cascades: waiting images are classified together, and unsure images go to the single network.

The first stage is a collage, or a batch for a quick network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import ClassVar

from collage_mpi.kinds import BACKUP, COLLAGE, SINGLE
from collage_mpi.scheduler.bundles import Bundle
from collage_mpi.scheduler.events import Score
from collage_mpi.scheduler.policies import Confident
from collage_mpi.scheduler.schemes.base import Core, Scheme, SchemeSettings, register
from collage_mpi.scheduler.settings import SchedulerSettings
from collage_mpi.scheduler.state import GroupState, ImageState, Order, TaskState

LEAST = 3  # images of a collage; for two, a single answer each is faster


@register
class CascadeScheme(Scheme):
    """A collage of up to side x side waiting images, then single tasks for unsure images.

    A rank with room takes the oldest image that a collage was unsure of. Otherwise, if enough
    images wait, it takes the oldest of them as one collage, or else the oldest image alone. While
    no images wait this is scheme `none`; the more images wait, the more a rank answers in one call.
    It is a cascade of classifiers (Streeter, arXiv 1802.07697) whose first stage grows with the
    queue.
    """

    name = "cascade"
    first: ClassVar[str] = COLLAGE  # kind of the network that is asked first
    needs = frozenset({SINGLE, COLLAGE})
    takes = frozenset({"assign", "policy", "placement", "calibrate"})
    assigns = ("pull",)
    only: ClassVar[Mapping[str, tuple[str, ...]]] = {"assign": ("pull",)}
    placement = "fastest"
    bundles_runs = True
    credit = 1  # images in a rank's second message would wait, and no collage could take them

    def __init__(self, settings: SchemeSettings) -> None:
        super().__init__(settings)
        self.assign = "pull"
        self.policy = settings.policy
        self.calibrate = settings.calibrate
        self.apart = settings.placement == "fixed"

    @property
    def label(self) -> str:
        """As shown in tables and legends."""
        return self.name + (", ranks apart" if self.apart else "")

    def judge_by(self, confidence: float | None) -> None:
        """From now on a cell with at least this score is sure; None: no cell is."""
        deadline_ns = self.policy.deadline_ns if isinstance(self.policy, Confident) else None
        self.policy = Confident(inf if confidence is None else confidence, deadline_ns)

    def bundle(self, settings: SchedulerSettings) -> Bundle:
        """All waiting images, once a collage is faster than a single answer for each of them."""
        least = max(LEAST, int(settings.costs.get(self.first, 1.0)) + 1)
        most = settings.group_size
        order, open_loop = Order(self.first, self.first), not settings.together
        return Bundle(order, min(least, most), most, patient=open_loop)

    def image_arrived(self, core: Core, image: ImageState) -> None:
        """Make the image's task. While a threshold is chosen, it may also end its group's wait."""
        if core.dispatch.calibrating:
            for each in image.group.images:
                core.reconsider(each)
        else:
            super().image_arrived(core, image)

    def covers_later(self, core: Core, group: GroupState) -> bool:
        """While a threshold is chosen, drawn images wait until they fill a collage.

        Otherwise idle ranks would take most of them alone, and only one network would classify
        them.
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
    ) -> None:
        """A sure answer resolves its image. An unsure one is kept, and a single rank is asked."""
        if task.kind != self.first:
            super().answered(core, task, cells, now_ns)
            return
        for image, cell in task.each(cells):
            if cell is None or image.resolved:
                continue
            if image.count > 1:
                self._run_answered(core, task, image, cell, now_ns)
            elif image.decided_ns is not None:  # its audit may have waited for this task to end
                core.reconsider(image)
            else:
                self._judge(core, task, image, cell, now_ns)

    def _run_answered(
        self, core: Core, task: TaskState, run: ImageState, cells: Sequence[Score], now_ns: int
    ) -> None:
        """Resolve neighbouring sure images as one run, and handle each other image by itself."""
        scores, accept_at_ns = list(cells), self.policy.accept_at_ns
        times_ns = [accept_at_ns(run.t0_ns, now_ns, score) for score in scores]
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
        return self.policy.accept_at_ns(image.t0_ns, now_ns, cell)


@register
class CascadeBatchScheme(CascadeScheme):
    """As `cascade`, with a batch for the backup network instead of a collage.

    The backup network is a quick network for the same classes. If the user names none, the single
    network takes its place, and all its answers count.
    """

    name = "cascade-batch"
    first = BACKUP
    needs = frozenset({SINGLE, BACKUP})
