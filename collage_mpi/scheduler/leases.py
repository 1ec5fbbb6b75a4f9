"""The lead's book of leases: which team has which part of the job's order, what of it is written.

Owns: leases and their sizes, the teams' epochs, what is committed.
Does not know: messages, files, clocks; how a team is found to be lost; what it does with a lease.

Sizes are those of guided self-scheduling (Polychronopoulos and Kuck, IEEE Trans. Computers 36,
1987): a share of what is left, so large at first and a group at the end. Exactly once: a position
is to be granted, held by one team, or committed, and moves by `grant`, `commit`, `lost` alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

Range = tuple[int, int]  # [start, stop) of positions in the job's order


@dataclass(frozen=True)
class LeaseSettings:
    """What the book is told once.

    Attributes:
        group_size: images of a full group.
        share: a lease is 1/(share * teams) of the groups that are left, rounded up,
        smallest, largest: but so many groups at least and at most.
        ahead: leases that a team has and has not begun.
    """

    group_size: int
    share: int = 8
    smallest: int = 1
    largest: int = 256
    ahead: int = 2


@dataclass(frozen=True)
class Lease:
    """Positions that one team alone may write rows of, while its epoch lasts.

    Attributes:
        number: 0, 1, 2, ...; never used again.
        team, epoch: whose it is.
        first_group: id of its first group; the next ones follow. Its end closes the last one.
        ranges: the positions, in the order in which they are to come.
    """

    number: int
    team: int
    epoch: int
    first_group: int
    ranges: tuple[Range, ...]


@dataclass
class _Team:
    epoch: int
    held: list[Range] = field(default_factory=list)  # uncommitted; sorted, none touch
    waiting: set[int] = field(default_factory=set)  # leases not begun


class _Pool:
    """Positions that nobody has and the ids of their groups, both taken in order."""

    def __init__(self, ranges: Iterable[Range], group_size: int, next_group: int) -> None:
        self._ranges = deque(ranges)
        self._group_size, self._next_group = group_size, next_group
        self.images = count(self._ranges)

    def put(self, ranges: Iterable[Range]) -> None:
        self._ranges.extend(ranges)
        self.images = count(self._ranges)

    def take(self, groups: int) -> tuple[int, tuple[Range, ...]]:
        """So many groups, or all: the id of the first one, their positions."""
        taken, missing = [], groups * self._group_size
        while missing and self._ranges:
            start, stop = self._ranges.popleft()
            cut = min(stop, start + missing)
            if cut < stop:
                self._ranges.appendleft((cut, stop))
            taken.append((start, cut))
            missing -= cut - start
        first, images = self._next_group, count(taken)
        self._next_group += _groups(images, self._group_size)
        self.images -= images
        return first, tuple(taken)


class LeaseBook:
    """Who holds what of positions 0 .. images - 1.

    What was never granted goes out in order, so that a position's group is the one that it has in
    a job of one team. What a lost team held goes out behind it, in groups whose ids lie beyond: so
    the ids that a team gets only grow.
    A team that is not in, or in twice, is a defect of the caller: ValueError.
    """

    def __init__(
        self, settings: LeaseSettings, images: int, first_group: int = 0, done: Iterable[Range] = ()
    ) -> None:
        """`done`: committed before, in any order; ids of groups count from `first_group`.

        Raises:
            ValueError: `done` overlaps itself, or is not of these positions.
        """
        self.settings, self.images = settings, images
        size = settings.group_size
        fresh = _without([(0, images)], done)
        rests_from = first_group + _groups(count(fresh), size)
        self._fresh, self._rests = _Pool(fresh, size, first_group), _Pool((), size, rests_from)
        self._teams: dict[int, _Team] = {}
        self._epochs = self._leases = 0  # so far
        self.committed = images - self.left

    @property
    def left(self) -> int:
        """Positions to grant; what a lost team held comes on top."""
        return self._rests.images + self._fresh.images

    @property
    def finished(self) -> bool:
        """Every position is committed."""
        return self.committed == self.images

    def held(self, team: int) -> tuple[Range, ...]:
        """What it holds and has not committed, sorted."""
        return tuple(self._in(team).held)

    def join(self, team: int) -> int:
        """A team is there, or there again after it was lost: its epoch."""
        if team in self._teams:
            raise ValueError(f"team {team} is in already")
        self._epochs += 1
        self._teams[team] = _Team(self._epochs)
        return self._epochs

    def wants(self, team: int) -> bool:
        """Whether to grant it a lease now."""
        return self.left > 0 and len(self._in(team).waiting) < self.settings.ahead

    def grant(self, team: int) -> Lease:
        """A lease for it.

        Raises:
            ValueError: nothing is left.
        """
        to, settings = self._in(team), self.settings
        if not self.left:
            raise ValueError("nothing is left to grant")
        groups = -(-_groups(self.left, settings.group_size) // (settings.share * len(self._teams)))
        groups = min(max(groups, settings.smallest), settings.largest)
        first, ranges = (self._fresh if self._fresh.images else self._rests).take(groups)
        lease = Lease(self._leases, team, to.epoch, first, ranges)
        self._leases += 1
        to.held = _merged([*to.held, *ranges])
        to.waiting.add(lease.number)
        return lease

    def begun(self, team: int, number: int) -> None:
        """It has come to that lease, and may want another."""
        self._in(team).waiting.discard(number)

    def commit(self, team: int, epoch: int, ranges: Iterable[Range]) -> bool:
        """Whether the rows of these positions count, for good. Not those of an epoch that is over.

        Raises:
            ValueError: it does not hold one of them; none was committed.
        """
        by = self._teams.get(team)
        if by is None or by.epoch != epoch:
            return False
        before = count(by.held)
        by.held = _without(by.held, ranges)
        self.committed += before - count(by.held)
        return True

    def lost(self, team: int) -> None:
        """Its epoch is over; what it held and had not committed is granted anew."""
        self._rests.put(self._in(team).held)
        del self._teams[team]

    def _in(self, team: int) -> _Team:
        if team not in self._teams:
            raise ValueError(f"team {team} is not in")
        return self._teams[team]


def count(ranges: Iterable[Range]) -> int:
    """How many positions."""
    return sum(stop - start for start, stop in ranges)


def _groups(images: int, group_size: int) -> int:
    return -(-images // group_size)


def _merged(ranges: Iterable[Range]) -> list[Range]:
    """Sorted, those that touch as one; none overlap."""
    found: list[Range] = []
    for start, stop in sorted(ranges):
        if found and found[-1][1] == start:
            start = found.pop()[0]
        found.append((start, stop))
    return found


def _without(ranges: Iterable[Range], taken: Iterable[Range]) -> list[Range]:
    """What is left of sorted ranges of which none touch.

    Raises:
        ValueError: one of `taken` is not, or no longer, among them.
    """
    left = list(ranges)
    for start, stop in taken:
        at = bisect_left(left, (start + 1,)) - 1  # the last that begins at `start` or before
        if at < 0 or not start < stop <= left[at][1]:
            raise ValueError(f"positions {start} to {stop - 1} are not among those held")
        around = ((left[at][0], start), (stop, left[at][1]))
        left[at : at + 1] = [each for each in around if each[0] < each[1]]
    return left
