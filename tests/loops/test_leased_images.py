"""The images of a job: those that the ledger grants, and groups that have numbers."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from core_world import core_settings
from fakes import LoneJob, images_of, record

from collage_mpi.bounds.promise import Threshold
from collage_mpi.core import events as ev
from collage_mpi.core.core import Core
from collage_mpi.core.schemes import make_scheme
from collage_mpi.core.table import Table
from collage_mpi.errors import EnvironmentFault
from collage_mpi.job.leased_images import Close, Lease, LeasedImages, Pause
from collage_mpi.job.pairs import Heard, Pair, PairBook
from collage_mpi.rows import CELL, PLACED, PRESENT
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards.order import Order, Permutation
from collage_mpi.workload.arrivals import ClosedLoop

MS = 1_000_000


class Reader:
    """Images by their position, all of them there at once; `lost`: those that cannot be read."""

    failed = False

    def __init__(self) -> None:
        self.left: deque[int] = deque()
        self.lost: set[int] = set()

    def add(self, ranges) -> None:
        for each in ranges:
            self.left.extend(position for position in range(*each) if position not in self.lost)

    @property
    def remaining(self) -> int:
        return len(self.left)

    ready = remaining

    def take(self, n: int):
        taken = [self.left.popleft() for _ in range(min(n, len(self.left)))]
        return replace(images_of([record(at) for at in taken]), position=np.array(taken))


class Rows:
    def __init__(self) -> None:
        self.flushes, self.idle = 0, True
        self.fault: EnvironmentFault | None = None

    def flush(self) -> None:
        if self.fault is not None:
            raise self.fault
        self.flushes += 1


class Link(LoneJob):
    """The ledger, which says what the test says; `taken`: positions that others have taken. It
    has cells of four images, and answers for one of them at a time."""

    def __init__(self) -> None:
        super().__init__(0)
        self.told.clear()
        self.taken: set[int] = set()
        self.rests: list[int] = []

    def holds(self, positions):
        first, *_ = asked = positions.tolist()
        return np.array([at not in self.taken and at // 4 == first // 4 for at in asked])

    def rested(self, number) -> None:
        self.rests.append(number)


class Job:
    """Leased images in batches of two images; `look` hears what it was told before."""

    def __init__(self, book=None) -> None:
        self.link, self.reader, self.rows = Link(), Reader(), Rows()
        self.leased = LeasedImages(self.link, self.reader, self.rows, 2, book)
        self.now_ns = 0

    def take(self, count: int) -> list[tuple[int, int]]:
        """(the core's position, image) of the next images."""
        found, at = [], 0
        while len(found) < count and (came := self.leased.take(count - len(found))) is not None:
            first, images = came
            at = max(first, at)
            found += zip(range(at, at + len(images)), images.position.tolist(), strict=True)
            at += len(images)
        return found

    def look(self, *told, unresolved: int = 0) -> bool:
        self.link.told.extend(told)
        self.now_ns += 2 * MS
        return self.leased.look(self.now_ns, unresolved)


def lease(number: int, *spans: tuple[int, int], times: int = 0) -> Lease:
    return Lease(number, spans, times)


def test_a_lease_begins_a_batch_of_its_own_and_its_images_come_in_order():
    job = Job()
    assert job.look(lease(0, (0, 2), (5, 6)))
    assert job.take(9) == [(0, 0), (1, 1), (2, 5)]
    job.look(lease(1, (6, 8)))
    assert job.take(9) == [(4, 6), (5, 7)]


def test_images_that_another_job_has_taken_over_are_left_out():
    job = Job()
    job.look(lease(0, (0, 6)), lease(1, (8, 10)))
    assert job.take(1) == [(0, 0)]
    job.link.taken = {1, 2, 4, 8}
    assert job.leased.ahead == ((1, 6), (8, 10))
    assert [image for _, image in job.take(9)] == [3, 5, 9]
    assert not job.leased.remaining


def test_images_that_were_read_when_another_job_takes_them_are_left_out():
    job = Job()
    job.look(lease(0, (0, 2)), lease(1, (2, 6)))
    _, images = job.leased.take(5)  # the reader gives those of both leases
    assert images.position.tolist() == [0, 1]
    job.link.taken = {2, 4}
    assert [image for _, image in job.take(9)] == [3, 5]


def test_images_of_another_cell_are_not_left_out_with_those_that_were_taken():
    job = Job()
    job.look(lease(0, (0, 3)), lease(1, (4, 6)))
    _, images = job.leased.take(1)
    assert images.position.tolist() == [0]
    job.link.taken = {1, 2}
    assert [image for _, image in job.take(9)] == [4, 5]


def test_the_rest_of_a_lease_that_cannot_be_read_is_left_out():
    job = Job()
    job.reader.lost = {1, 2, 3}
    job.look(lease(0, (0, 4)), lease(1, (4, 6)), Pause())
    assert job.take(9) == [(0, 0), (4, 4), (5, 5)]
    assert job.leased.paused


@pytest.mark.parametrize(("times", "faulty"), [(0, False), (3, False), (4, True)])
def test_an_image_that_jobs_died_of_is_asked_for_once_more_alone_and_then_no_more(times, faulty):
    job = Job()
    job.look(lease(0, (3, 4), times=times))
    _, images = job.leased.take(9)
    assert bool(images.faults) == faulty


def test_input_ends_when_the_ledger_says_so_and_not_before():
    job = Job()
    assert not job.leased.exhausted
    job.look(lease(0, (0, 2)), Pause())
    job.take(2)
    assert not job.leased.exhausted
    assert job.look(Close())
    assert job.leased.exhausted


def test_the_supply_is_paused_once_all_that_is_in_hand_has_come_in():
    job = Job()
    job.look(lease(0, (0, 2)), Pause())
    assert not job.leased.paused
    job.take(2)
    assert job.leased.paused
    job.look(lease(1, (2, 4)))
    assert not job.leased.paused
    job.take(2)
    assert not job.leased.paused  # the pause was over with the lease


def test_in_a_pause_rows_are_flushed_and_it_is_told_once_that_they_are_on_the_disk():
    job = Job()
    job.look(lease(3, (0, 2)), Pause())
    job.take(2)
    job.look(unresolved=1)
    assert job.rows.flushes == 0
    job.rows.idle = False
    job.look()
    job.look()
    assert (job.rows.flushes, job.link.rests) == (1, [])
    job.rows.idle = True
    job.look()
    job.look()
    assert job.link.rests == [3]


def test_rows_are_flushed_once_the_coordinator_has_handed_over_all_of_them():
    job = Job()
    job.look(lease(0, (0, 2)))
    job.take(2)
    job.look(Pause())  # it asked before whether all leases are done: not yet
    assert job.rows.flushes == 0
    job.look()
    assert job.rows.flushes == 1


def test_what_did_not_come_to_the_disk_is_not_told_as_done():
    job = Job()
    job.look(lease(3, (0, 2)), Pause())
    job.take(2)
    job.look()
    job.rows.fault = EnvironmentFault("disk full")
    with pytest.raises(EnvironmentFault, match="disk full"):
        job.look()
    assert job.link.rests == []


def test_of_the_images_that_choose_a_job_awaits_those_of_its_leases():
    shards = SimpleNamespace(lost={0: "gone"}, locate=lambda index: (0, index))
    book = PairBook(4, Order(Permutation(6)), shards)
    job = Job(book)
    job.look(lease(0, (1, 3)))
    book.look()
    assert job.link.said == [(Pair(1, {}), Pair(2, {}))]


def test_a_threshold_reaches_a_job_that_pairs_answers_and_no_other():
    heard = Heard(("stage1",), Threshold(0.8, "stage1", 70, 90))
    book = PairBook(4, Order(Permutation(6)), SimpleNamespace(lost={}))
    Job(book).look(heard)
    assert book.heard == [heard]
    assert book.draws(0, np.arange(4)) is None
    job = Job()
    job.look(heard)
    assert [*job.leased.stages()] == []


# ---- the core ---------------------------------------------------------------


def core(**settings) -> Core:
    scheme = make_scheme(RunSettings(scheme="none", side=2).scheme_settings())
    found = Core(core_settings(group_size=4, ranks=2, **settings), scheme, Table(4, 0, 1, 0))
    for rank in (1, 2):
        found.step(0, [ev.RankReady(rank, frozenset({"single"}), "h", 2)])
    return found


def tasks(actions) -> list:
    return [task for a in actions if isinstance(a, ev.Send) for task in a.tasks]


def arrived(first: int, count: int = 1) -> ev.Arrived:
    return ev.Arrived(first, np.zeros(count, PLACED), 1)


def test_groups_have_the_numbers_that_their_images_bring():
    found = core(depth=4)
    sent = tasks(found.step(1, [arrived(40, 2)]))
    assert {task.positions[0] // 4 for task in sent} == {10}
    sent = tasks(found.step(2, [arrived(80)]))  # of a rest: group 10 is closed
    assert {task.positions[0] // 4 for task in sent} == {20}
    assert (found.next, found.admission.left) == (81, {10: 2, 20: 1})


def admitted(actions) -> int:
    return sum(a.images for a in actions if isinstance(a, ev.Admit))


def test_behind_a_group_that_was_cut_short_images_for_a_whole_one_are_awaited():
    found = core(depth=1)  # has asked for the four images of a group

    def arrives(position: int) -> int:
        return admitted(found.step(2, [arrived(position)]))

    assert [arrives(40), arrives(42)] == [0, 3]  # 43 may come, and then a whole group
    assert arrives(44) == 3  # 43 was left out
    assert arrives(45) == 0
    assert admitted(found.step(2, [ev.InputPaused()])) == 2
    assert [arrives(number) for number in range(80, 84)] == [0, 0, 0, 0]


def test_after_a_pause_images_may_come_and_another_end_game_copies_them():
    found = core(depth=4, endgame=True)
    cell = np.array([(1, 0.5, PRESENT, 0, 0)], CELL)
    (first,) = tasks(found.step(1, [arrived(0)]))
    copies = tasks(found.step(2, [ev.InputPaused()]))
    assert [list(copy.positions) for copy in copies] == [[0]]
    for task in (first, *copies):
        found.step(3, [ev.Answered([task.id], task.rank, cell, 1)])
    (second,) = tasks(found.step(4, [arrived(8)]))
    assert second.positions[0] // 4 == 2
    copies = tasks(found.step(5, [ev.InputPaused()]))
    assert [list(copy.positions) for copy in copies] == [[8]]
    assert not any(isinstance(a, ev.Finish) for a in found.step(6, [ev.InputPaused()]))


def test_images_that_were_awaited_count_from_the_grant():
    loop = ClosedLoop()
    loop.admit(5, 2)
    loop.admit(6, 1)
    loop.granted(50)
    assert [loop.enter(51, 2), loop.enter(51, 1)] == [(50, 50), (50, 50)]
