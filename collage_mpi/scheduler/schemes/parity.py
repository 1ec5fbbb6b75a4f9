"""Coded schemes: for each k images one more task, from which a missing answer is decoded.

The scheme is given a function that decodes answers; the scheme does not look into the evidence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

from collage_mpi.kinds import CODED, PARITY, SINGLE
from collage_mpi.scheduler.events import Score
from collage_mpi.scheduler.schemes.base import Core, Scheme, SchemeSettings, register
from collage_mpi.scheduler.state import GroupState, ImageState, Order, TaskState
from collage_mpi.scheduler.transitions import SILENT


class Stripe:
    """Up to k images of a group that are encoded into one image."""

    __slots__ = ("answers", "images", "known", "unresolved")

    def __init__(self) -> None:
        self.images: list[ImageState] = []
        self.unresolved = 0
        self.known: dict[int, tuple[int, Any]] = {}  # image -> its single task and evidence
        self.answers: list[tuple[TaskState, Any]] = []  # its answered tasks, with their evidence


@register
class ParityScheme(Scheme):
    """Sends every image to a single rank, and every k images, by arrival, to a parity rank.

    This is ParM: Kosaian, Rashmi and Venkataraman, "Parity Models", SOSP 2019. An image is resolved
    by its single rank, or by the parity answer minus the answers to the other images of the parity
    task, whichever is complete first. A parity task leaves out images that are resolved before it
    is sent, so each parity task has its own equation.
    """

    name = "parity"
    needs = frozenset({SINGLE, PARITY})
    takes = frozenset({"assign", "parity_k", "decode"})
    mark = ("#CC79A7", "X")
    stripe: ClassVar[str] = PARITY  # the kind that gets stripes

    def __init__(self, settings: SchemeSettings) -> None:
        super().__init__(settings)
        self.k, self._decode = settings.parity_k, settings.decode
        self._filling = Stripe()
        # image -> its stripe, until all images of the stripe are resolved
        self._stripes: dict[int, Stripe] = {}

    @property
    def label(self) -> str:
        """As shown in tables and legends."""
        return f"{super().label}, k = {self.k}"

    def image_placed(self, core: Core, image: ImageState) -> None:
        """Add the image, readable or not, to its stripe; a full stripe is sent."""
        if image.cell % self.k == 0:
            self._filling = Stripe()
        stripe = self._filling
        stripe.images.append(image)
        if not image.resolved:
            self._stripes[image.id] = stripe
            stripe.unresolved += 1
        if len(stripe.images) == self.k:
            self._send(core, stripe)

    def group_closed(self, core: Core, group: GroupState) -> None:
        """Send the group's last stripe if it is not full."""
        if len(group.images) % self.k:
            self._send(core, self._filling)

    def _send(self, core: Core, stripe: Stripe) -> None:
        images = [image for image in stripe.images if not image.resolved]
        if images:
            core.dispatch.to_best(Order(self.stripe, self.stripe), images)

    def answered(
        self,
        core: Core,
        task: TaskState,
        cells: Sequence[Score | None],
        now_ns: int,
        evidence: Any = None,
    ) -> None:
        """A single rank's score resolves its image; any answer may complete an equation."""
        if task.kind != SINGLE:
            stripe = self._stripes.get(task.images[0].id)
            if stripe is not None:
                stripe.answers.append((task, evidence))
                self._solve(core, stripe)
            return
        touched = self._note(task, cells, evidence)  # first: a resolved image helps its stripe
        super().answered(core, task, cells, now_ns)
        for stripe in touched:
            self._solve(core, stripe)

    def _note(self, task: TaskState, cells: Sequence[Score | None], evidence: Any) -> list[Stripe]:
        """Keep a single rank's answers that a stripe may need, and return these stripes."""
        touched = []
        for place, (image, cell) in enumerate(zip(task.images, cells, strict=True)):
            stripe = self._stripes.get(image.id)
            if cell is not None and stripe is not None and image.id not in stripe.known:
                stripe.known[image.id] = task.id, None if evidence is None else evidence[place]
                touched.append(stripe)
        return touched

    def _solve(self, core: Core, stripe: Stripe) -> None:
        """Resolve each image that is the only unknown in the equation of a parity answer."""
        known = stripe.known
        for answer in list(stripe.answers):
            task, evidence = answer
            unknown = [image for image in task.images if image.id not in known]
            if len(unknown) != 1 or unknown[0].resolved:
                continue
            missing = unknown[0]
            others = [known[image.id] for image in task.images if image is not missing]
            place = task.images.index(missing)
            score = self._decode(missing.id, place, evidence, [each for _, each in others])
            if score is None:
                stripe.answers.remove(answer)
                core.reconsider(missing)
            else:
                core.accept_from(missing, task, tuple(single for single, _ in others), score)

    def resolved(self, image: ImageState) -> Iterable[ImageState]:
        """Called when an image has its outcome; a stripe is forgotten with its last image.

        Returns:
            The unresolved images of its stripe, if its own answer is missing in their equation.
        """
        stripe = self._stripes.get(image.id)
        if stripe is None:
            return ()
        stripe.unresolved -= 1
        if stripe.unresolved == 0:
            for each in stripe.images:
                self._stripes.pop(each.id, None)
        if image.id in stripe.known:
            return ()
        return [other for other in stripe.images if not other.resolved]

    def may_follow(self, image: ImageState, *, silent: bool) -> bool:
        """Whether a parity answer, present or under way, can still be solved for the image."""
        stripe = self._stripes.get(image.id)
        if stripe is None:
            return False
        equations = [_left(t) for t in image.tasks if t.kind != SINGLE and _may_come(t, silent)]
        equations += [task.images for task, _ in stripe.answers if image in task.images]
        return any(
            all(o is image or o.id in stripe.known or _is_coming(o, silent) for o in images)
            for images in equations
        )


@register
class ApproxScheme(ParityScheme):
    """Parity with a rational code, whose coded images the single network answers without training.

    This is ApproxIFER: Soleymani, Mahdavifar and Avestimehr, AAAI 2022. If a single answer of a
    stripe is missing, it is interpolated from the other answers and that to the coded image.
    """

    name = "approx"
    needs = frozenset({SINGLE, CODED})
    mark = ("#CC79A7", "d")
    stripe = CODED


def _left(task: TaskState) -> list[ImageState]:
    """The task's images; for a task that waits, the images that will be sent."""
    return task.images if task.sent else [image for image in task.images if not image.resolved]


def _is_coming(image: ImageState, silent: bool) -> bool:
    """Whether the image has a single task; tasks of silent ranks count only if `silent`."""
    return any(task.kind == SINGLE and _may_come(task, silent) for task in image.tasks)


def _may_come(task: TaskState, silent: bool) -> bool:
    return silent or task.rank.status not in SILENT
