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

from collections.abc import Iterable
from typing import Any

import numpy as np

from collage_mpi.core.states import KEPT, OPEN, TROUBLED
from collage_mpi.core.work import Task
from collage_mpi.kinds import KIND, SINGLE

Core = Any  # `core.core.Core`, which imports this module

NOBODY = "no rank is left that could classify an image"
NAMED_HOSTS = 3  # hosts that the reason of an error row names at most


class Trouble:
    """What is remembered of an image whose task failed, was lost or is silent."""

    __slots__ = ("bad_row", "hosts", "reason", "tried")

    def __init__(self) -> None:
        self.tried: set[int] = set()  # ranks whose task for it failed, was lost or is silent
        self.hosts: tuple[str, ...] = ()  # hosts that could not read it
        self.bad_row = False  # one of them found that its row is bad
        self.reason = ""  # why its last task failed


class Retries:
    """Decides the next step for each image that needs one."""

    def __init__(self, core: Core) -> None:
        self.trouble: dict[int, Trouble] = {}  # by slot; only of images that met any
        self.lost_ns = -core.settings.settle_ns  # when the last rank was lost
        self._core, self._settings, self._table = core, core.settings, core.table
        self._parked: dict[int, int] = {}  # slot -> since when it waits for a silent rank
        self._deferred: dict[int, int] = {}  # slot -> since when it waits for losses to end
        self._give_up_ns: int | None = None  # when the image that is parked longest is given up

    # ---- what is remembered --------------------------------------------------

    def note(
        self, task: Task, slots: np.ndarray, reason: str, *, failed: bool, lost: bool = False
    ) -> None:
        """Remember why these images need another task. `failed`: not for a silent rank; `lost`: it
        failed with its rank."""
        main = task.kind == self._core.scheme.main
        self._table.state[slots] |= TROUBLED
        if main:
            self._table.failures[slots] += failed and not task.spare
            self._table.losses[slots] += lost
        for slot in slots.tolist():
            trouble = self.trouble.setdefault(slot, Trouble())
            if main:
                trouble.tried.add(task.rank)
            if main or not trouble.reason:
                trouble.reason = reason

    def note_unread(self, task: Task, slot: int, reason: str, *, bad_row: bool) -> None:
        """Remember that the task's host could not read the image."""
        trouble = self.trouble.setdefault(slot, Trouble())
        trouble.bad_row |= bad_row
        host = self._core.ranks.known[task.rank].host
        if host not in trouble.hosts:
            trouble.hosts += (host,)
        named = ", ".join(each.partition(".")[0] for each in trouble.hosts[:NAMED_HOSTS])
        more = len(trouble.hosts) - NAMED_HOSTS
        said = f"on {named}{f' and {more} more' if more > 0 else ''}: {reason}"
        self.note(task, np.array([slot]), said, failed=True)

    def failed(self, kind: str, slots: np.ndarray) -> bool:
        """Whether one of the images has failed before: it may fail the others of a message."""
        main = kind == self._core.scheme.main
        return main and bool(self.trouble) and bool(self._table.failures[slots].any())

    def waits(self, slot: int) -> bool:
        """Whether the image's next step waits for a rank to recover, or for no more to be lost."""
        return slot in self._parked or slot in self._deferred

    def tried(self, slot: int) -> set[int]:
        """The ranks whose task for the image failed, was lost or is silent."""
        trouble = self.trouble.get(slot)
        return trouble.tried if trouble else set()

    def forget(self, slot: int) -> None:
        """The image has its outcome."""
        self.trouble.pop(slot, None)
        self._table.failures[slot] = self._table.losses[slot] = 0
        self._wait_no_longer(slot)

    # ---- the next step -------------------------------------------------------

    def all(self, slots: np.ndarray) -> None:
        """Take the next step for these unresolved images that count on nothing; those without
        trouble go on as one piece of work."""
        core, main = self._core, self._core.scheme.main
        if core.stopping is not None:
            return
        if main == SINGLE and core.ranks.ready[main]:
            plain = self._table.state[slots] & TROUBLED == 0
            found, slots = slots[plain], slots[~plain]
            made = self._table.sends[found]
            for sends in sorted(set(made.tolist())):
                source = "retry" if sends else SINGLE
                core.place(core.work(SINGLE, source, sends + 1, found[made == sends]))
        for slot in slots.tolist():
            self.one(slot)

    def one(self, slot: int) -> None:
        """Take the next step for the image, by the table at the top of this module."""
        core, table = self._core, self._table
        if core.stopping is not None or not table.state[slot] & OPEN:
            return
        if table.holds[slot] > table.deaf[slot]:
            self._wait_no_longer(slot)
            return
        trouble = self.trouble.get(slot) or Trouble()
        left = table.failures[slot] < self._settings.max_attempts
        main = core.scheme.main
        holders = frozenset(task.rank for task in core.holders(slot))
        if left and self._losses_may_be_to_blame(slot):
            self._wait(slot, self._deferred)
            core.later(self._settled_ns, self._look_again, self._deferred)
        elif left and next(core.ranks.others(main, holders), None) is not None:
            self._retry(slot, trouble, holders)
            self._wait_no_longer(slot)
        elif holders or (left and core.ranks.any_silent((main,))):
            self._wait(slot, self._parked)
            if self._give_up_ns is None:
                self._give_up_at(core.now_ns + self._settings.park_ns)
        elif left and not core.anybody():
            core.stop(NOBODY)
        else:
            core.outcomes.error(slot, trouble.reason or f"no {main} rank is left")

    def _wait_no_longer(self, slot: int) -> None:
        self._deferred.pop(slot, None)
        self._parked.pop(slot, None)
        if not self._parked:
            self._give_up_ns = None

    def _wait(self, slot: int, among: dict[int, int]) -> None:
        if slot not in among:
            self._wait_no_longer(slot)
            among[slot] = self._core.now_ns
        self._table.state[slot] |= TROUBLED

    def _retry(self, slot: int, trouble: Trouble, held: frozenset[int]) -> None:
        """One more task of the main kind."""
        core, kind = self._core, self._core.scheme.main
        slots = np.array([slot])
        if KIND[kind].encoded:  # another collage takes all of its group in need
            slots = core.in_need(core.group_of(slot))
            slots = slots[self._table.failures[slots] < self._settings.max_attempts]
        sends, tried = int(self._table.sends[slot]), held | trouble.tried
        if trouble.hosts:
            known = core.ranks.known.values()
            there = tried | {rank.id for rank in known if rank.host in trouble.hosts}
            if next(core.ranks.others(kind, there), None) is not None:
                tried = there
        source = kind if kind != SINGLE else "retry" if sends else SINGLE
        core.place(core.work(kind, source, sends + 1, slots, tried, held))

    # ---- ranks ---------------------------------------------------------------

    def again(self, task: Task, slots: np.ndarray) -> None:
        """Send a collage again, for images with no answer kept and no other copy under way."""
        core = self._core
        if task.attempt >= self._settings.max_attempts or core.stopping is not None:
            return
        free = [
            slot
            for slot in slots.tolist()
            if not (self._table.state[slot] & KEPT or self.waits(slot))
            and not any(each.kind == task.kind and each.covers for each in core.holders(slot))
        ]
        if free:
            where = np.array(free)
            held = {each.rank for each in core.sharers(where)}
            if next(core.ranks.others(task.kind, held), None) is not None:
                avoid = held | {task.rank}
                core.place(core.work(task.kind, task.source, task.attempt + 1, where, avoid, held))

    def ranks_changed(self) -> None:
        """A rank came, recovered or was lost: decide again about the parked images."""
        self._look_again(self._parked)

    def _look_again(self, among: dict[int, int]) -> None:
        """Decide again about images that wait; the deferred ones wait on if another rank was
        lost."""
        for slot in self._ordered(among):
            if slot in among:
                self.one(slot)

    def _ordered(self, slots: Iterable[int]) -> list[int]:
        return sorted(slots, key=lambda slot: int(self._table.position[slot]))

    def _give_up_at(self, at_ns: int) -> None:
        self._give_up_ns = at_ns
        self._core.later(at_ns, self._give_up, at_ns)

    def _give_up(self, until_ns: int) -> None:
        """Images that were parked for `park_ns` have waited long enough for silent ranks."""
        core, since_ns = self._core, until_ns - self._settings.park_ns
        if until_ns != self._give_up_ns:
            return  # the images that it was set for wait no longer
        self._give_up_ns = None
        due = [slot for slot, parked_ns in self._parked.items() if parked_ns <= since_ns]
        for slot in self._ordered(due):
            if core.stopping is not None:
                return
            if any(core.ranks.ready[kind] for kind in core.scheme.needs):
                reason = (self.trouble.get(slot) or Trouble()).reason
                core.outcomes.error(slot, reason or "every rank that could classify it is silent")
            else:
                core.stop("every rank that could classify an image is silent")
        if self._parked and core.stopping is None:
            self._give_up_at(min(self._parked.values()) + self._settings.park_ns)

    def _losses_may_be_to_blame(self, slot: int) -> bool:
        failures, losses = int(self._table.failures[slot]), int(self._table.losses[slot])
        last = failures == self._settings.max_attempts - 1
        return last and 0 < failures <= losses and self._settled_ns > self._core.now_ns

    @property
    def _settled_ns(self) -> int:
        return self.lost_ns + self._settings.settle_ns
