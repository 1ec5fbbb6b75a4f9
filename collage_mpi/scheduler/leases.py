"""The lead's book of leases: which team has which part of the job's order, what of it is written.

Sizes are those of guided self-scheduling (Polychronopoulos and Kuck, IEEE Trans. Computers 36,
1987): a share of what is left, so large at first and a group at the end. Exactly once: a position
is to be granted, held by one team, or committed, and moves by `grant`, `commit`, `lost` alone.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field

Range = tuple[int, int]  # [start, stop) of positions in the job's order
Teams = frozenset[int]


@dataclass(frozen=True)
class LeaseSettings:
    """What the book is told once.

    Attributes:
        group_size: images of a full group.
        share: a lease is 1/(share * teams) of the groups that are left, rounded up, so that a team
            that is half as fast as others has not too much at the end,
        smallest, largest: but so many groups at least and at most.
        ahead: a team gets leases until it has as many images that it has not begun as so many
            smallest leases.
    """

    group_size: int
    share: int = 5
    smallest: int = 1
    largest: int = 256
    ahead: int = 2


@dataclass(frozen=True)
class GrantedLease:
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
    waiting: dict[int, int] = field(default_factory=dict)  # leases not begun, and their images
    again: dict[Teams, list[Range]] = field(default_factory=dict)  # granted anew, by who tried


class _Pool:
    """Positions that nobody has, taken in order."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._ranges = deque(ranges)
        self.images = count(self._ranges)

    def put(self, ranges: Iterable[Range]) -> None:
        self._ranges.extend(ranges)
        self.images = count(self._ranges)

    def take(self, images: int) -> tuple[Range, ...]:
        """So many positions, or all."""
        taken, missing = [], images
        while missing and self._ranges:
            start, stop = self._ranges.popleft()
            cut = min(stop, start + missing)
            if cut < stop:
                self._ranges.appendleft((cut, stop))
            taken.append((start, cut))
            missing -= cut - start
        self.images -= images - missing
        return tuple(taken)


class LeaseBook:
    """Who holds what of positions 0 .. images - 1.

    What was never granted goes out in order, so that a position's group is the one that it has in
    a job of one team. What a lost team held goes out behind it, in groups whose ids lie beyond: so
    the ids that a team gets only grow. A team never gets a position again that it has tried.
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
        self._fresh, self._fresh_group = _Pool(fresh), first_group
        self._rests: dict[Teams, _Pool] = {}  # by the teams that have tried these positions
        self._rests_group = first_group + _groups(count(fresh), size)
        self._teams: dict[int, _Team] = {}
        self._epochs = self._leases = 0  # so far
        self.committed = images - self.left

    @property
    def left(self) -> int:
        """Positions to grant, to one team or another."""
        return self._fresh.images + sum(pool.images for pool in self._rests.values())

    @property
    def fresh(self) -> int:
        """Those that were never granted: every team may have them."""
        return self._fresh.images

    @property
    def tried(self) -> bool:
        """Whether positions may be left to grant that a team has tried."""
        return any(self._rests)

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

    def left_for(self, team: int) -> int:
        """Positions to grant that the team has not tried."""
        rests = sum(pool.images for tried, pool in self._rests.items() if team not in tried)
        return self._fresh.images + rests

    def wants(self, team: int) -> bool:
        """Whether to grant it a lease now."""
        waiting, settings = sum(self._in(team).waiting.values()), self.settings
        enough = settings.ahead * settings.smallest * settings.group_size
        return waiting < enough and self.left_for(team) > 0

    def grant(self, team: int) -> GrantedLease:
        """A lease for it.

        Raises:
            ValueError: nothing is left that it has not tried.
        """
        to, settings, left = self._in(team), self.settings, self.left_for(team)
        if not left:
            raise ValueError(f"nothing is left to grant to team {team}")
        groups = -(-_groups(left, settings.group_size) // (settings.share * len(self._teams)))
        groups = min(max(groups, settings.smallest), settings.largest)
        first, ranges = self._take(to, team, groups * settings.group_size)
        lease = GrantedLease(self._leases, team, to.epoch, first, ranges)
        self._leases += 1
        to.held = _merged([*to.held, *ranges])
        to.waiting[lease.number] = count(ranges)
        return lease

    def _take(self, to: _Team, team: int, images: int) -> tuple[int, tuple[Range, ...]]:
        """The first group's id, and positions: all of those that the same teams have tried."""
        size = self.settings.group_size
        if self._fresh.images:
            first, ranges = self._fresh_group, self._fresh.take(images)
            self._fresh_group += _groups(count(ranges), size)
            return first, ranges
        tried = next(t for t, pool in self._rests.items() if pool.images and team not in t)
        first, ranges = self._rests_group, self._rests[tried].take(images)
        self._rests_group += _groups(count(ranges), size)
        to.again.setdefault(tried, []).extend(ranges)
        return first, ranges

    def begun(self, team: int, number: int) -> None:
        """It has come to that lease, and may want another."""
        self._in(team).waiting.pop(number, None)

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

    def lost(self, team: int, *, tried: bool = False) -> None:
        """Its epoch is over; what it held and had not committed is granted anew.

        `tried`: to other teams, because it did all that it could.
        """
        gone, by = self._in(team), Teams([team] if tried else [])
        del self._teams[team]
        held = gone.held
        for others, ranges in gone.again.items():
            again = _common(held, ranges)
            held = _without(held, again)
            self._put(others | by, again)
        self._put(by, held)

    def _put(self, tried: Teams, ranges: list[Range]) -> None:
        if ranges:
            self._rests.setdefault(tried, _Pool()).put(ranges)

    def settle(self, teams: Collection[int]) -> int:
        """Commit what each of these teams has tried, though it has no rows: how many positions."""
        hopeless = [pool for tried, pool in self._rests.items() if tried.issuperset(teams)]
        images = sum(pool.images for pool in hopeless)
        for pool in hopeless:
            pool.take(images)
        self.committed += images
        return images

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


def _common(ranges: Iterable[Range], others: Iterable[Range]) -> list[Range]:
    """What both have, sorted. Of neither do any overlap."""
    found: list[Range] = []
    ends = deque(sorted(others))
    for start, stop in sorted(ranges):
        while ends and ends[0][0] < stop:
            both = max(start, ends[0][0]), min(stop, ends[0][1])
            if both[0] < both[1]:
                found.append(both)
            if ends[0][1] > stop:
                break
            ends.popleft()
    return found
