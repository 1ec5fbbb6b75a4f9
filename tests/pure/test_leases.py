"""Leases: whatever joins, dies and comes back, all is committed in the end, and nothing twice."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from collage_mpi.scheduler.leases import Lease, LeaseBook, LeaseSettings, Range, count

BY_FOUR = LeaseSettings(group_size=4, share=2, largest=100)
TEAMS = range(4)
DONE = -1


def positions(ranges: tuple[Range, ...]) -> list[int]:
    return list(chain.from_iterable(range(*each) for each in ranges))


def ranges_of(found: list[int]) -> list[Range]:
    """In the order in which they are, one position a range where they do not follow."""
    out: list[Range] = []
    for each in found:
        if out and out[-1][1] == each:
            out[-1] = (out[-1][0], each + 1)
        else:
            out.append((each, each + 1))
    return out


class LeaseMachine(RuleBasedStateMachine):
    """Beside it a plain model: of each position who has it, and two lists of what nobody has."""

    @initialize(
        images=st.integers(0, 60),
        size=st.integers(1, 5),
        share=st.integers(1, 4),
        bounds=st.sampled_from([(1, 100), (1, 2), (2, 3)]),
        ahead=st.integers(1, 3),
        first_group=st.sampled_from([0, 7]),
        data=st.data(),
    )
    def begin(self, images, size, share, bounds, ahead, first_group, data):
        done = sorted(data.draw(st.sets(st.integers(0, max(0, images - 1)), max_size=images // 2)))
        self.settings = LeaseSettings(size, share, *bounds, ahead)
        self.book = LeaseBook(self.settings, images, first_group, ranges_of(done))
        self.holder: dict[int, int | None] = {p: DONE if p in done else None for p in range(images)}
        self.fresh = [p for p in range(images) if p not in done]
        self.rests: list[int] = []
        self.group_of = {p: first_group + i // size for i, p in enumerate(self.fresh)}
        self.beyond = first_group + -(-len(self.fresh) // size)  # the next rest's group
        self.epochs: dict[int, int] = {}
        self.waiting: dict[int, list[int]] = {}
        self.seen = {0}  # epochs
        self.number = 0

    def mine(self, team: int) -> list[int]:
        return [p for p, who in self.holder.items() if who == team]

    @precondition(lambda self: len(self.epochs) < len(TEAMS))
    @rule(data=st.data())
    def join(self, data):
        team = data.draw(st.sampled_from([t for t in TEAMS if t not in self.epochs]))
        self.epochs[team] = self.book.join(team)
        assert self.epochs[team] not in self.seen
        self.seen.add(self.epochs[team])
        self.waiting[team] = []

    @precondition(lambda self: self.epochs)
    @rule(data=st.data())
    def grant(self, data):
        self.grant_to(data.draw(st.sampled_from(sorted(self.epochs))))

    def grant_to(self, team: int) -> None:
        left = len(self.rests) + len(self.fresh)
        assert self.book.wants(team) == (left > 0 and len(self.waiting[team]) < self.settings.ahead)
        if not left:
            with pytest.raises(ValueError, match="nothing is left"):
                self.book.grant(team)
            return
        pool, size = self.fresh or self.rests, self.settings.group_size
        groups = -(-left // size)
        wanted = -(-groups // (self.settings.share * len(self.epochs)))
        wanted = min(max(wanted, self.settings.smallest), self.settings.largest)
        taken = pool[: wanted * size]
        first = self.beyond if pool is self.rests else self.group_of[taken[0]]
        if pool is self.rests:
            self.beyond += -(-len(taken) // size)
        else:  # as in a job of one team
            assert [self.group_of[p] for p in taken] == [
                first + i // size for i in range(len(taken))
            ]
        lease = self.book.grant(team)
        assert positions(lease.ranges) == taken
        assert lease == Lease(self.number, team, self.epochs[team], first, lease.ranges)
        del pool[: wanted * size]
        self.number += 1
        self.holder.update(dict.fromkeys(taken, team))
        self.waiting[team].append(lease.number)

    @precondition(lambda self: any(self.waiting.values()))
    @rule(data=st.data())
    def begun(self, data):
        team = data.draw(st.sampled_from(sorted(t for t in self.waiting if self.waiting[t])))
        number = data.draw(st.sampled_from(self.waiting[team]))
        self.book.begun(team, number)
        self.waiting[team].remove(number)

    @precondition(lambda self: any(self.mine(team) for team in self.epochs))
    @rule(data=st.data())
    def commit(self, data):
        team = data.draw(st.sampled_from([t for t in sorted(self.epochs) if self.mine(t)]))
        some = data.draw(st.lists(st.sampled_from(self.mine(team)), unique=True, min_size=1))
        assert self.book.commit(team, self.epochs[team], ranges_of(some))
        self.holder.update(dict.fromkeys(some, DONE))

    @precondition(lambda self: self.epochs and self.holder)
    @rule(data=st.data())
    def commit_of_another(self, data):
        """Committed, another team's, or nobody's: refused, with what was fine beside it."""
        team = data.draw(st.sampled_from(sorted(self.epochs)))
        others = [p for p, who in self.holder.items() if who != team]
        if others:
            wrong = [*self.mine(team), data.draw(st.sampled_from(others))]
            with pytest.raises(ValueError, match="not among those held"):
                self.book.commit(team, self.epochs[team], ranges_of(wrong))

    @precondition(lambda self: self.holder)
    @rule(data=st.data(), team=st.sampled_from(TEAMS))
    def commit_late(self, data, team):
        """Of an epoch that is over, or not begun: fenced, whatever it names."""
        epoch = data.draw(st.sampled_from(sorted(self.seen - {self.epochs.get(team)})))
        some = data.draw(st.sets(st.sampled_from(sorted(self.holder)), min_size=1))
        assert not self.book.commit(team, epoch, ranges_of(sorted(some)))

    @precondition(lambda self: self.epochs)
    @rule(data=st.data())
    def lose(self, data):
        team = data.draw(st.sampled_from(sorted(self.epochs)))
        self.book.lost(team)
        back = self.mine(team)
        self.rests += back
        self.holder.update(dict.fromkeys(back))
        del self.epochs[team], self.waiting[team]

    @invariant()
    def the_book_is_the_model(self):
        if not hasattr(self, "book"):
            return
        assert self.book.left == len(self.rests) + len(self.fresh)
        assert self.book.committed == sum(who == DONE for who in self.holder.values())
        assert self.book.finished == all(who == DONE for who in self.holder.values())
        for team in self.epochs:
            assert list(self.book.held(team)) == ranges_of(self.mine(team))

    def teardown(self):
        """As long as one team stays everything is committed."""
        if not hasattr(self, "book"):
            return
        for team in list(self.epochs)[1:]:
            self.book.lost(team)
        team, *_ = self.epochs or (0,)
        epoch = self.epochs[team] if self.epochs else self.book.join(team)
        while self.book.left:
            self.book.grant(team)
        assert self.book.commit(team, epoch, self.book.held(team))
        assert self.book.finished


TestLeases = LeaseMachine.TestCase


@given(st.integers(1, 2000), st.integers(1, 9), st.integers(1, 20), st.integers(1, 8))
def test_sizes_shrink_to_a_group_and_none_is_above_its_share(
    images: int, size: int, share: int, teams: int
) -> None:
    book = LeaseBook(LeaseSettings(size, share, largest=10**9), images)
    for team in range(teams):
        book.join(team)
    sizes = []
    while left := book.left:
        sizes.append(count(book.grant(0).ranges))
        assert sizes[-1] - size < left / (share * teams) + size
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == images
    assert sizes[-1] <= size or share * teams == 1


def test_a_job_of_one_team_has_its_groups_as_without_leases() -> None:
    book = LeaseBook(BY_FOUR, 30)
    book.join(0)
    leases = []
    while book.wants(0):
        leases.append(book.grant(0))
        book.begun(0, leases[-1].number)
    assert [(each.first_group, each.ranges) for each in leases] == [
        (0, ((0, 16),)),
        (4, ((16, 24),)),
        (6, ((24, 28),)),
        (7, ((28, 30),)),
    ]


def test_a_lease_is_neither_too_small_nor_too_large() -> None:
    book = LeaseBook(replace(BY_FOUR, smallest=2, largest=3), 40)
    book.join(0)
    assert [count(book.grant(0).ranges) for _ in range(4)] == [12, 12, 8, 8]


def test_a_stopped_team_wakes_up_and_writes_nothing() -> None:
    book = LeaseBook(BY_FOUR, 8)
    asleep, epoch = 1, book.join(1)
    other = book.join(2)
    lease = book.grant(asleep)
    assert book.commit(asleep, epoch, [(1, 2)])
    book.lost(asleep)
    assert book.grant(2).ranges == ((4, 8),)  # what was never granted comes first
    again = book.grant(2)
    assert (again.ranges, again.first_group) == (((0, 1), (2, 4)), 2)
    assert again.epoch != lease.epoch
    assert not book.commit(asleep, epoch, [(0, 1)])
    assert book.commit(2, other, [(0, 1)])
    assert book.join(asleep) > other
    assert not book.commit(asleep, epoch, [(2, 4)])
    assert book.held(2) == ((2, 8),)


@pytest.mark.parametrize("done", [[(0, 3), (2, 4)], [(28, 31)], [(5, 5)], [(-1, 2)]])
def test_what_cannot_have_been_done(done: list[Range]) -> None:
    with pytest.raises(ValueError, match="not among those held"):
        LeaseBook(BY_FOUR, 30, done=done)


def test_a_team_that_is_not_in_or_in_twice() -> None:
    book = LeaseBook(replace(BY_FOUR, ahead=1), 30)
    book.join(3)
    with pytest.raises(ValueError, match="team 3 is in already"):
        book.join(3)
    for call in (book.wants, book.grant, book.held, book.lost, lambda team: book.begun(team, 0)):
        with pytest.raises(ValueError, match="team 4 is not in"):
            call(4)


def test_a_rest_that_fills_no_group_has_a_number_of_its_own() -> None:
    book = LeaseBook(BY_FOUR, 4)
    epoch = book.join(0)
    assert book.grant(0).first_group == 0
    assert book.commit(0, epoch, [(0, 1)])
    for number in (1, 2):
        book.lost(0)
        book.join(0)
        lease = book.grant(0)
        assert (lease.first_group, lease.ranges) == (number, ((1, 4),))


def test_nothing_to_do() -> None:
    book = LeaseBook(BY_FOUR, 0)
    book.join(0)
    assert book.finished
    assert not book.wants(0)
