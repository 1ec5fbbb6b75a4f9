"""Leases: whatever joins, dies and comes back, all is committed in the end, and nothing twice."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from collage_mpi.job.leases import GrantedLease, LeaseBook, LeaseSettings, Range, count

BY_FOUR = LeaseSettings(group_size=4, batch=1, smallest=1, largest=100, share=2)
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
        batch=st.integers(1, 3),
        data=st.data(),
    )
    def begin(self, images, size, share, bounds, ahead, batch, data):
        done = sorted(data.draw(st.sets(st.integers(0, max(0, images - 1)), max_size=images // 2)))
        self.settings = LeaseSettings(size, batch, *bounds, share, ahead)
        self.book = LeaseBook(self.settings, images, ranges_of(done))
        self.holder: dict[int, int | None] = {p: DONE if p in done else None for p in range(images)}
        self.fresh = [p for p in range(images) if p not in done]
        self.rests: dict[frozenset[int], list[int]] = {}  # by the teams that have tried them
        self.tried: dict[int, frozenset[int]] = dict.fromkeys(range(images), frozenset())
        self.group_of = {p: i // size for i, p in enumerate(self.fresh)}
        self.beyond = -(-len(self.fresh) // (size * batch)) * batch  # the next rest's group
        self.epochs: dict[int, int] = {}
        self.waiting: dict[int, list[int]] = {}
        self.size_of: dict[int, int] = {}  # of leases
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

    def left_for(self, team: int) -> int:
        rests = sum(len(rest) for tried, rest in self.rests.items() if team not in tried)
        return len(self.fresh) + rests

    def grant_to(self, team: int) -> None:
        left = self.left_for(team)
        assert self.book.left_for(team) == left
        waiting = sum(self.size_of[number] for number in self.waiting[team])
        size, batch = self.settings.group_size, self.settings.batch
        enough = self.settings.ahead * self.settings.smallest * size * batch
        assert self.book.wants(team) == (left > 0 and waiting < enough)
        if not left:
            with pytest.raises(ValueError, match="nothing is left"):
                self.book.grant(team)
            return
        batches = -(-left // (size * batch))
        wanted = -(-batches // (self.settings.share * len(self.epochs)))
        wanted = min(max(wanted, self.settings.smallest), self.settings.largest)
        lease = self.book.grant(team)
        taken = positions(lease.ranges)
        pool = self.fresh or self.rests[self.tried[taken[0]]]
        assert len(taken) == min(wanted * size * batch, len(pool))
        assert not any(team in self.tried[p] for p in taken)
        if pool is self.fresh:  # as in a job of one team
            assert taken == pool[: len(taken)]
            first = self.group_of[taken[0]]
            assert [self.group_of[p] for p in taken] == [
                first + i // size for i in range(len(taken))
            ]
        else:
            first = self.beyond
            self.beyond += -(-len(taken) // (size * batch)) * batch
        assert lease == GrantedLease(self.number, team, self.epochs[team], first, lease.ranges)
        for each in taken:
            pool.remove(each)
        self.number += 1
        self.holder.update(dict.fromkeys(taken, team))
        self.waiting[team].append(lease.number)
        self.size_of[lease.number] = len(taken)

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
    @rule(data=st.data(), tried=st.booleans())
    def lose(self, data, tried):
        team = data.draw(st.sampled_from(sorted(self.epochs)))
        self.book.lost(team, tried=tried)
        for each in self.mine(team):
            self.tried[each] |= {team} if tried else set()
            self.rests.setdefault(self.tried[each], []).append(each)
            self.holder[each] = None
        del self.epochs[team], self.waiting[team]

    @rule(teams=st.sets(st.sampled_from(TEAMS), min_size=1))
    def settle(self, teams):
        """What each of these has tried is done without; what one of them has not is left."""
        hopeless = [tried for tried in self.rests if tried >= teams]
        gone = [each for tried in hopeless for each in self.rests.pop(tried)]
        assert self.book.settle(teams) == len(gone)
        self.holder.update(dict.fromkeys(gone, DONE))

    @invariant()
    def the_book_is_the_model(self):
        if not hasattr(self, "book"):
            return
        assert self.book.left == sum(map(len, self.rests.values())) + len(self.fresh)
        assert self.book.fresh == len(self.fresh)
        assert self.book.tried or not any(tried for tried, rest in self.rests.items() if rest)
        assert self.book.committed == sum(who == DONE for who in self.holder.values())
        assert self.book.finished == all(who == DONE for who in self.holder.values())
        for team in self.epochs:
            assert list(self.book.held(team)) == ranges_of(self.mine(team))

    def teardown(self):
        """A team that has tried nothing yet can have everything that is left."""
        if not hasattr(self, "book"):
            return
        for team in self.epochs:
            self.book.lost(team)
        epoch = self.book.join(len(TEAMS))
        while self.book.left:
            self.book.grant(len(TEAMS))
        assert self.book.commit(len(TEAMS), epoch, self.book.held(len(TEAMS)))
        assert self.book.finished


TestLeases = LeaseMachine.TestCase


@given(st.integers(1, 2000), st.integers(1, 9), st.integers(1, 20), st.integers(1, 8))
def test_sizes_shrink_to_a_group_and_none_is_above_its_share(
    images: int, size: int, share: int, teams: int
) -> None:
    book = LeaseBook(LeaseSettings(size, 1, 1, 10**9, share), images)
    for team in range(teams):
        book.join(team)
    sizes = []
    while left := book.left:
        sizes.append(count(book.grant(0).ranges))
        assert sizes[-1] - size < left / (share * teams) + size
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == images
    assert sizes[-1] <= size or share * teams == 1


def test_what_a_team_has_tried_is_known_to_be_left_as_soon_as_there_is_some() -> None:
    book = LeaseBook(BY_FOUR, 30)
    book.join(0)
    book.grant(0)
    book.lost(0)
    assert not book.tried  # nobody could say that it cannot be done
    book.join(0)
    book.grant(0)
    book.lost(0, tried=True)
    assert book.tried


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


def test_what_a_team_has_tried_goes_to_each_other_team_once() -> None:
    book = LeaseBook(BY_FOUR, 8)
    for team in (0, 1, 2):
        book.join(team)
    assert [book.grant(0).ranges, book.grant(1).ranges] == [((0, 4),), ((4, 8),)]
    book.lost(0, tried=True)
    book.join(0)
    assert (book.left, book.left_for(0), book.left_for(1)) == (4, 0, 4)
    assert book.settle((0, 1)) == 0
    assert book.grant(1).ranges == ((0, 4),)
    book.lost(1, tried=True)  # 0 to 3 both have tried, 4 to 7 this one alone
    assert book.settle((0, 1)) == 4
    assert book.grant(0).ranges == ((4, 8),)
    book.lost(0)  # it has gone: it has not tried them
    assert (book.settle((1,)), book.committed) == (4, 8)
    assert book.finished


@pytest.mark.parametrize(
    ("committed", "untried_by_2", "untried_by_0"),
    [
        ((1, 3), [((0, 1), (3, 4)), ((4, 8),)], [((4, 8),)]),  # a hole in what both have tried
        ((0, 4), [((4, 8),)], [((4, 8),)]),
        ((2, 7), [((0, 2),), ((7, 8),)], [((7, 8),)]),
        ((3, 8), [((0, 3),)], []),
    ],
)
def test_who_has_tried_what_is_kept_by_position(
    committed: Range, untried_by_2: list[tuple[Range, ...]], untried_by_0: list[tuple[Range, ...]]
) -> None:
    """Team 0 has tried positions 0 to 3, and team 1 all that it did not commit."""

    def leases_of(team: int) -> list[tuple[Range, ...]]:
        book = LeaseBook(BY_FOUR, 8)
        epochs = {team: book.join(team) for team in range(3)}
        book.grant(0)
        book.lost(0, tried=True)
        book.join(0)
        assert [book.grant(1).ranges for _ in range(2)] == [((4, 8),), ((0, 4),)]
        assert book.commit(1, epochs[1], [committed])
        book.lost(1, tried=True)
        book.join(1)
        assert book.left_for(1) == 0
        return [book.grant(team).ranges for _ in range(2) if book.left_for(team)]

    assert (leases_of(2), leases_of(0)) == (untried_by_2, untried_by_0)
