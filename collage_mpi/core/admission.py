"""How many images may come in (C6), and which of them form a group."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from collage_mpi.core import events as ev

Core = Any  # `core.core.Core`, which imports this module


class Admission:
    """Counts the images in the job, and asks for more while there is room.

    The depth counts groups that are not over. With batches of a scheme that makes no collages of
    groups it counts images, because a group is then no unit of work.

    Attributes:
        next: the position of the next image; if no group is open, the first one of a group.
        unresolved: number of images that have come and have no outcome.
        left: group -> its unresolved images; empty if groups are not counted.
        closed, paused: whether no image will come, for good or as far as is known.
    """

    def __init__(self, core: Core) -> None:
        self.next = self.unresolved = self.promised = 0
        self.left: dict[int, int] = {}
        self.closed = self.paused = False
        self._settled = False  # nothing has changed since it was seen how many may come
        self._core, self._settings = core, core.settings
        self._size, self._step = core.settings.group_size, core.settings.step
        self._by_group = core.scheme.grouped or core.settings.batch == 1
        self._drain_until: int | None = None  # when the wait for the ranks to be idle ends

    @property
    def filling(self) -> int:
        """Images of the open group; 0 if no group is open."""
        return self.next % self._size

    @property
    def gathering(self) -> bool:
        """Whether an image is awaited that could leave together with those that are there."""
        whole = self.next % (self._size * self._step) == 0
        return self.promised > 0 and not (whole or self.paused)

    def came(self, first: int, count: int) -> list[int]:
        """Note images; returns the groups that they filled, and one that they left incomplete."""
        size, before = self._size, self.next
        over = [before // size] if before % size and first // size > before // size else []
        self.promised = max(0, self.promised - count)
        self.unresolved += count
        self.next = first + count
        self.paused = self._settled = False
        if self._by_group:
            at = first
            while at < self.next:
                stop = min(self.next, (at // size + 1) * size)
                self.left[at // size] = self.left.get(at // size, 0) + stop - at
                at = stop
        if over:
            self._fewer(over[0], 0)
        if first > before:  # images were left out
            self._make_up()
        return over + list(range(first // size, self.next // size))

    def resolved(self, positions: np.ndarray) -> None:
        """The images at these positions, in any order, have their outcome."""
        self.unresolved -= len(positions)
        if not self._by_group:
            return
        first, last = int(positions.min()) // self._size, int(positions.max()) // self._size
        if first == last:
            self._fewer(first, len(positions))
            return
        for group, count in Counter((positions // self._size).tolist()).items():
            self._fewer(group, count)

    def _fewer(self, group: int, count: int) -> None:
        left = self.left.get(group, 0) - count
        if left or group == self.next // self._size:  # an open group is not over
            self.left[group] = left
        else:
            self._settled = False
            self.left.pop(group, None)
            self._core.group_over(group)

    def close_group(self) -> int | None:
        """Close the open group before it is full; its number, or None if no group is open."""
        if not self.filling:
            return None
        group = self.next // self._size
        self.next, self._settled = (group + 1) * self._size, False
        self._fewer(group, 0)
        return group

    def pause(self) -> None:
        """As far as is known, no further image will come."""
        self.paused = True
        self._make_up()

    def close(self) -> None:
        """No further image will come."""
        self.closed, self.promised = True, 0

    def _make_up(self) -> None:
        """Ask for so many images that the open group and those on their way are whole groups.

        Otherwise the last group would stay incomplete, because nobody asks for single images.
        """
        lacking = -(self.promised + self.filling) % self._size
        if lacking and self._core.stopping is None:
            self.promised += lacking
            self._core.actions.append(ev.Admit(lacking))

    def admit(self) -> None:
        """Ask for further images, as whole groups, while there is room."""
        settings = self._settings
        if self._settled or self.closed or (settings.drain and (self.unresolved or self.promised)):
            return
        depth = settings.depth * self._step
        if settings.drain:
            missing = depth if self._drained() else 0
        else:
            there, whole = self.unresolved, 0
            if self._by_group:
                there = self.filling
                whole = len(self.left) - (self.next // self._size in self.left)
            missing = depth - whole - -(-(there + self.promised) // self._size)
            missing -= missing % self._step
            self._settled = self._by_group and not settings.paced
            if settings.paced:
                missing = min(missing, self._step) if self._wanted() else 0
        if missing > 0:
            self.promised += missing * self._size
            self._core.actions.append(ev.Admit(missing * self._size))

    def _wanted(self) -> bool:
        """Whether a rank is idle, or no image is unresolved, and no image is on its way."""
        core = self._core
        idle = any(core.ranks.wants(kind) for kind in core.scheme.serves)
        return not self.promised and (idle or not self.unresolved)

    def _drained(self) -> bool:
        """Whether all ranks are idle; silent ranks do not count, nor do any after `end_ns`."""
        core = self._core
        out = any(task.covers for task in core.tasks.values())
        if out and (self._drain_until is None or core.now_ns < self._drain_until):
            if self._drain_until is None:
                self._drain_until = core.now_ns + self._settings.end_ns
                core.later(self._drain_until, core.nothing, None)
            return False
        self._drain_until = None
        return True
