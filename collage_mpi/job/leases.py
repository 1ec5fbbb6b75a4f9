"""The lead's book of leases: which team holds which part of the input, and which part is written.

The sizes of leases follow guided self-scheduling (Polychronopoulos and Kuck, IEEE Trans. Computers
36, 1987): each is a share of what is left, so large at first and one group at the end. Each
position is in exactly one state (not granted, held by one team, or committed), and only `grant`,
`commit`, `lost` and `settle` change its state. So every image is written exactly once.
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
    """How large leases are, and how many a team has.

    Attributes:
        group_size: images of a full group.
        batch: number of groups that are sent together. A lease has whole batches.
        smallest, largest: limits of a lease, in batches.
        share: a lease has 1/(share * teams) of the batches that are left, rounded up. So a slow
            team does not hold too much at the end.
        ahead: a team gets another lease while it has fewer images in leases that it has not begun
            than `ahead` smallest leases hold.
    """

    group_size: int
    batch: int
    smallest: int
    largest: int
    share: int = 5
    ahead: int = 2

    @property
    def unit(self) -> int:
        """Number of images of a whole batch."""
        return self.group_size * self.batch

    def batches(self, images: int) -> int:
        """Number of batches that hold `images` images."""
        return -(-images // self.unit)


@dataclass(frozen=True)
class GrantedLease:
    """Positions that only one team may write rows of, as long as its epoch lasts.

    Attributes:
        number: 0, 1, 2, ...; never used twice.
        team, epoch: who holds the lease.
        first_group: id of its first group; the ids of the other groups follow. The last group ends
            with the lease, full or not.
        ranges: the positions, in the order in which they are to be classified.
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
    waiting: dict[int, int] = field(default_factory=dict)  # leases not begun -> their images
    again: dict[Teams, list[Range]] = field(default_factory=dict)  # teams that tried -> positions


class _Pool:
    """Positions that no team holds, taken in order."""

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._ranges = deque(ranges)
        self.images = count(self._ranges)

    def put(self, ranges: Iterable[Range]) -> None:
        self._ranges.extend(ranges)
        self.images = count(self._ranges)

    def take(self, images: int) -> tuple[Range, ...]:
        """Take `images` positions, or all if there are fewer."""
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
    """Which team holds which of the positions 0 .. images - 1.

    Positions that were never granted are granted first and in order, so that their groups are those
    of a job with one team. The positions of lost teams follow, in groups with higher ids, so that
    the group ids of a team only grow. A team never gets a position again that it has tried.

    Methods that take a team raise ValueError if the team has not joined (`join`: if it has), which
    is a defect of the caller.
    """

    def __init__(self, settings: LeaseSettings, images: int, done: Iterable[Range] = ()) -> None:
        """Start the book.

        Args:
            settings: sizes of leases.
            images: number of positions.
            done: positions that are committed already, in any order.

        Raises:
            ValueError: ranges of `done` overlap, or lie beyond the positions.
        """
        self.settings, self.images = settings, images
        fresh = _without([(0, images)], done)
        self._fresh, self._fresh_batch = _Pool(fresh), 0
        # positions of lost teams: teams that have tried them -> positions
        self._rests: dict[Teams, _Pool] = {}
        self._rests_batch = settings.batches(count(fresh))
        self._teams: dict[int, _Team] = {}
        self._epochs = self._leases = 0  # how many there were so far
        self.committed = images - self.left

    @property
    def left(self) -> int:
        """Number of positions that no team holds and that are not committed."""
        return self._fresh.images + sum(pool.images for pool in self._rests.values())

    @property
    def fresh(self) -> int:
        """Number of positions that were never granted; any team may get them."""
        return self._fresh.images

    @property
    def tried(self) -> bool:
        """Whether some of the positions left to grant may have been tried by a team."""
        return any(self._rests)

    @property
    def finished(self) -> bool:
        """Whether every position is committed."""
        return self.committed == self.images

    def held(self, team: int) -> tuple[Range, ...]:
        """The positions that the team holds and has not committed, sorted."""
        return tuple(self._in(team).held)

    def join(self, team: int) -> int:
        """A team joins, or joins again after it was lost; its new epoch."""
        if team in self._teams:
            raise ValueError(f"team {team} is in already")
        self._epochs += 1
        self._teams[team] = _Team(self._epochs)
        return self._epochs

    def left_for(self, team: int) -> int:
        """Number of positions left to grant that the team has not tried."""
        rests = sum(pool.images for tried, pool in self._rests.items() if team not in tried)
        return self._fresh.images + rests

    def wants(self, team: int) -> bool:
        """Whether the team should get a lease now."""
        waiting, settings = sum(self._in(team).waiting.values()), self.settings
        enough = settings.ahead * settings.smallest * settings.unit
        return waiting < enough and self.left_for(team) > 0

    def grant(self, team: int) -> GrantedLease:
        """Grant the team a lease.

        Raises:
            ValueError: the team has tried all positions that are left.
        """
        to, settings, left = self._in(team), self.settings, self.left_for(team)
        if not left:
            raise ValueError(f"nothing is left to grant to team {team}")
        batches = -(-settings.batches(left) // (settings.share * len(self._teams)))
        batches = min(max(batches, settings.smallest), settings.largest)
        first, ranges = self._take(to, team, batches * settings.unit)
        lease = GrantedLease(self._leases, team, to.epoch, first * settings.batch, ranges)
        self._leases += 1
        to.held = _merged([*to.held, *ranges])
        to.waiting[lease.number] = count(ranges)
        return lease

    def _take(self, to: _Team, team: int, images: int) -> tuple[int, tuple[Range, ...]]:
        """Number of the first batch, and positions that were all tried by the same teams."""
        if self._fresh.images:
            first, ranges = self._fresh_batch, self._fresh.take(images)
            self._fresh_batch += self.settings.batches(count(ranges))
            return first, ranges
        tried = next(t for t, pool in self._rests.items() if pool.images and team not in t)
        first, ranges = self._rests_batch, self._rests[tried].take(images)
        self._rests_batch += self.settings.batches(count(ranges))
        to.again.setdefault(tried, []).extend(ranges)
        return first, ranges

    def begun(self, team: int, number: int) -> None:
        """The team has begun the lease with this number, and may want another."""
        self._in(team).waiting.pop(number, None)

    def commit(self, team: int, epoch: int, ranges: Iterable[Range]) -> bool:
        """Commit these positions: the team's rows of them count.

        Returns:
            False, and nothing is committed, if the team's epoch is over.

        Raises:
            ValueError: the team does not hold one of the positions. None of them is committed.
        """
        by = self._teams.get(team)
        if by is None or by.epoch != epoch:
            return False
        before = count(by.held)
        by.held = _without(by.held, ranges)
        self.committed += before - count(by.held)
        return True

    def lost(self, team: int, *, tried: bool = False) -> None:
        """End the team's epoch. What it held and had not committed can be granted again.

        `tried`: it is granted only to other teams, because this one could not classify it.
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
        """Commit, without rows, the positions that all of these teams have tried.

        Returns:
            The number of these positions.
        """
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
    """Number of positions in the ranges."""
    return sum(stop - start for start, stop in ranges)


def _merged(ranges: Iterable[Range]) -> list[Range]:
    """Sort ranges that do not overlap, and join those that touch."""
    found: list[Range] = []
    for start, stop in sorted(ranges):
        if found and found[-1][1] == start:
            start = found.pop()[0]
        found.append((start, stop))
    return found


def _without(ranges: Iterable[Range], taken: Iterable[Range]) -> list[Range]:
    """Take `taken` out of `ranges`, which are sorted and do not touch each other.

    Raises:
        ValueError: `taken` has a position that is not in `ranges`, or has it twice.
    """
    left = list(ranges)
    for start, stop in taken:
        at = bisect_left(left, (start + 1,)) - 1  # the last range that begins at or before `start`
        if at < 0 or not start < stop <= left[at][1]:
            raise ValueError(f"positions {start} to {stop - 1} are not among those held")
        around = ((left[at][0], start), (stop, left[at][1]))
        left[at : at + 1] = [each for each in around if each[0] < each[1]]
    return left


def _common(ranges: Iterable[Range], others: Iterable[Range]) -> list[Range]:
    """The positions in both, sorted. Neither `ranges` nor `others` overlap among themselves."""
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
