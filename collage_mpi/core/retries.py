"""Retries: the next step for an unresolved image that no task covers (invariant 4: progress).

The first line of this table that applies decides:

    one attempt is left, all others lost their rank   wait until no rank was lost for settle_ns
    attempts are left, and a ready main rank          one more task
    a task of it is on a silent rank                  park the image: the rank may recover
    attempts are left, and a main rank is silent      park the image
    the scheme has no ready and no silent rank        stop the job, to be resumed
    otherwise                                         its kept answer, or an error row

Only failures and lost ranks count against max_attempts, silence does not. If several ranks die at
about the same time, each may have been sent the image of the one before although the image is not
the cause. Therefore the last attempt waits until no more ranks are lost. An image that a host could
not read is sent to ranks of other hosts, if there are any; the error row names the hosts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from collage_mpi.core.events import Positions
from collage_mpi.core.states import KEPT, WAITS
from collage_mpi.core.work import Task, Work
from collage_mpi.kinds import KIND, SINGLE

Core = Any  # `core.core.Core`, which imports this module

NOBODY = "no rank is left that could classify an image"
NAMED_HOSTS = 3  # hosts that the reason of an error row names at most


class Trouble:
    """What is remembered of an image whose task failed, was lost or is silent."""

    __slots__ = ("bad_row", "failures", "hosts", "losses", "reason", "tried")

    def __init__(self) -> None:
        self.failures = 0  # tasks of the main kind that failed, were lost or gave no answer
        self.losses = 0  # tasks of the main kind that were lost with their rank
        self.tried: set[int] = set()  # ranks whose task for it failed, was lost or is silent
        self.hosts: tuple[str, ...] = ()  # hosts that could not read it
        self.bad_row = False  # one of them found that its row is bad
        self.reason = ""  # why its last task failed


class Retries:
    """Decides the next step for each image that needs one."""

    def __init__(self, core: Core) -> None:
        self.trouble: dict[int, Trouble] = {}  # by position; only of images that met any
        self.lost_ns = -core.settings.settle_ns  # when the last rank was lost
        self._core, self._settings = core, core.settings
        self._parked: set[int] = set()  # until a silent rank recovers
        self._deferred: set[int] = set()  # until no more ranks are lost
        self._give_up_ns: int | None = None

    # ---- what is remembered --------------------------------------------------

    def note(
        self, task: Task, positions: Positions, reason: str, *, failed: bool, lost: bool = False
    ) -> None:
        """Remember why these images need another task. `failed`: not for a silent rank; `lost`: it
        failed with its rank."""
        main = task.kind == self._core.scheme.main
        for position in np.asarray(positions).tolist():
            trouble = self.trouble.setdefault(position, Trouble())
            if main:
                trouble.tried.add(task.rank)
                trouble.failures += failed and not task.spare
                trouble.losses += lost
                trouble.reason = reason
            elif not trouble.reason:
                trouble.reason = reason

    def note_unread(self, task: Task, position: int, reason: str, *, bad_row: bool) -> None:
        """Remember that the task's host could not read the image."""
        trouble = self.trouble.setdefault(position, Trouble())
        trouble.bad_row |= bad_row
        block, at = self._core.table.find(position)
        block.state[at] |= WAITS
        host = self._core.ranks.known[task.rank].host
        if host not in trouble.hosts:
            trouble.hosts += (host,)
        named = ", ".join(each.partition(".")[0] for each in trouble.hosts[:NAMED_HOSTS])
        more = len(trouble.hosts) - NAMED_HOSTS
        said = f"on {named}{f' and {more} more' if more > 0 else ''}: {reason}"
        self.note(task, range(position, position + 1), said, failed=True)

    def failed(self, work: Work | Task) -> bool:
        """Whether an image of the work has failed before: it may fail the others of a message."""
        if not self.trouble or work.kind != self._core.scheme.main:
            return False
        found = map(self.trouble.get, np.asarray(work.positions).tolist())
        return any(trouble is not None and trouble.failures for trouble in found)

    def waits(self, position: int) -> bool:
        """Whether the image's next step waits for a rank to recover, or for no more to be lost."""
        return position in self._parked or position in self._deferred

    def forget(self, position: int) -> None:
        """The image has its outcome."""
        self.trouble.pop(position, None)
        self._wait_no_longer(position)

    # ---- the next step -------------------------------------------------------

    def all(self, positions: np.ndarray) -> None:
        """Take the next step for these images; those without trouble go on as one piece of work."""
        core = self._core
        main = core.scheme.main
        plain = not self.trouble and core.stopping is None and main == SINGLE
        if not (plain and core.ranks.ready[main]):
            for position in positions.tolist():
                self.one(position)
            return
        for block, at, items in core.table.parts(positions):
            found, made = positions[items], block.sends[at].copy()
            for sends in np.unique(made).tolist():
                these = found[made == sends]
                core.place(Work(SINGLE, "retry" if sends else SINGLE, sends + 1, these))

    def one(self, position: int) -> None:
        """Take the next step for the image, by the table at the top of this module."""
        core = self._core
        block, at = core.table.find(position)
        if core.stopping is not None:
            return
        if block.cover[at]:
            self._wait_no_longer(position)
            return
        trouble = self.trouble.get(position) or Trouble()
        left = trouble.failures < self._settings.max_attempts
        main = core.scheme.main
        holders = [task.rank for task in core.holders(position)]
        if left and self._losses_may_be_to_blame(trouble):
            self._wait(position, self._deferred)
            core.later(self._settled_ns, self._look_again, self._deferred)
        elif left and self._retry(position, trouble, holders):
            self._wait_no_longer(position)
        elif holders or (left and core.ranks.any_silent((main,))):
            self._wait(position, self._parked)
            if self._give_up_ns is None:
                self._give_up_ns = core.now_ns + self._settings.park_ns
                core.later(self._give_up_ns, self._give_up, self._give_up_ns)
        elif left and not core.anybody():
            core.stop(NOBODY)
        else:
            core.outcomes.error(position, trouble.reason or f"no {main} rank is left")

    def _wait_no_longer(self, position: int) -> None:
        self._deferred.discard(position)
        self._parked.discard(position)
        if not self._parked:
            self._give_up_ns = None

    def _wait(self, position: int, among: set[int]) -> None:
        if position not in among:
            self._wait_no_longer(position)
        among.add(position)
        block, at = self._core.table.find(position)
        block.state[at] |= WAITS

    def _retry(self, position: int, trouble: Trouble, holders: Sequence[int]) -> bool:
        """One more task of the main kind; False if no ready rank may have it."""
        core, kind = self._core, self._core.scheme.main
        positions = np.array([position], np.int64)
        if KIND[kind].encoded:  # another collage takes all of its group in need
            positions = core.in_need(position)
        block, at = core.table.find(position)
        sends, held = block.sends[at], frozenset(holders)
        tried = held | trouble.tried
        if trouble.hosts:
            known = core.ranks.known.values()
            there = tried | {rank.id for rank in known if rank.host in trouble.hosts}
            if next(core.ranks.others(kind, there), None) is not None:
                tried = there
        if next(core.ranks.others(kind, held), None) is None:
            return False
        source = kind if kind != SINGLE else "retry" if sends else SINGLE
        core.place(Work(kind, source, int(sends) + 1, positions, tried, held))
        return True

    # ---- ranks ---------------------------------------------------------------

    def again(self, task: Task, positions: Positions) -> None:
        """Send a collage again, for images with no answer kept and no other copy under way."""
        core = self._core
        if task.attempt >= self._settings.max_attempts or core.stopping is not None:
            return
        free = [
            position
            for position in positions
            if not core.table.state(position) & (KEPT | WAITS)
            and not any(each.kind == task.kind and each.covers for each in core.holders(position))
        ]
        if free:
            held = {t.rank for p in free for t in core.holders(p)}
            if next(core.ranks.others(task.kind, held), None) is not None:
                avoid = held | {task.rank}
                where = np.array(free, np.int64)
                core.place(Work(task.kind, task.source, task.attempt + 1, where, avoid, held))

    def ranks_changed(self) -> None:
        """A rank came, recovered or was lost: decide again about the parked images."""
        self._look_again(self._parked)

    def _look_again(self, among: set[int]) -> None:
        """Decide again about images that wait; the deferred ones wait on if another rank was
        lost."""
        for position in sorted(among):
            if position in among:
                self.one(position)

    def _give_up(self, until_ns: int) -> None:
        """The parked images have waited long enough for silent ranks."""
        core = self._core
        if until_ns != self._give_up_ns:
            return  # the images that it was set for wait no longer
        self._give_up_ns = None
        for position in sorted(self._parked):
            if core.stopping is not None:
                return
            if any(core.ranks.ready[kind] for kind in core.scheme.needs):
                reason = (self.trouble.get(position) or Trouble()).reason
                core.outcomes.error(
                    position, reason or "every rank that could classify it is silent"
                )
            else:
                core.stop("every rank that could classify an image is silent")

    def _losses_may_be_to_blame(self, trouble: Trouble) -> bool:
        last = trouble.failures == self._settings.max_attempts - 1
        losses = 0 < trouble.failures <= trouble.losses
        return last and losses and self._settled_ns > self._core.now_ns

    @property
    def _settled_ns(self) -> int:
        return self.lost_ns + self._settings.settle_ns
