"""A job's share in a run: what the ledger grants, what is committed, and how the input ends."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from collage_mpi.core.outcomes import Totals
from collage_mpi.errors import EnvironmentFault
from collage_mpi.job.leased_images import Close, Lease, Pause
from collage_mpi.job.shared import Share
from collage_mpi.ledger import spans as sp
from collage_mpi.ledger.owner import SILENT_S, Owner, join
from collage_mpi.ledger.reading import View, runs
from collage_mpi.ledger.records import Part, Run
from collage_mpi.ledger.store import FolderStore

IMAGES, UNIT = 96, 4


class Job:
    """A job without ranks: the test says what it does, and when the thread takes a turn."""

    clock_s = 0.0

    def __init__(self, folder, number: int, cell=IMAGES, rate=1000.0, **how) -> None:
        store = FolderStore(folder)
        store.make()
        name = f"{number:032x}"
        run = join(store, Run(1, 0, IMAGES, cell, by=name))
        self.owner = Owner(store, run, UNIT, lambda: Job.clock_s, name)
        self.share = Share(self.owner, UNIT, rate, clock=lambda: Job.clock_s, **how)
        self.share._thread = SimpleNamespace(start=lambda: None, ident=None)
        self.number, self.written = number, 0
        self.granted: list[int] = []
        self.heard: list = []
        self.last = -1
        self.leased = SimpleNamespace(remaining=0, ahead=(), hear=self.hear)
        self.totals = Totals()
        self.share.begin(self.totals, self.leased)

    def hear(self) -> None:
        while (said := self.share.hear()) is not None:
            self.heard.append(type(said))
            if isinstance(said, Lease):
                self.granted += [at for span in said.spans for at in range(*span)]
                self.last = said.number

    def turns(self, count: int = 1, each_s: float = 1.0) -> None:
        for _ in range(count):
            Job.clock_s += each_s
            self.share._turn()
            self.hear()

    def write(self, *spans: tuple[int, int], errors: sp.Spans = ()) -> None:
        self.written += 1
        file = f"images-{self.number:04d}-{self.written:06d}.parquet"
        self.share.wrote(Part(file, 1, 1, spans, errors))


def rows(folder) -> sp.Spans:
    store = FolderStore(folder)
    return View(store, runs(store)[0]).look().counted


@pytest.fixture(autouse=True)
def _clock():
    Job.clock_s = 0.0


def test_a_job_that_is_alone_gets_all_images_in_order_and_the_end_with_them(tmp_path):
    job = Job(tmp_path, 1, cell=32)
    assert job.granted == list(range(IMAGES))
    assert job.heard[-1] is Close
    job.write((0, IMAGES))
    assert job.share.leave()
    assert rows(tmp_path) == ((0, IMAGES),)


def test_a_job_that_is_started_again_does_what_has_no_row(tmp_path):
    first = Job(tmp_path, 1)
    first.write((0, 10), (20, 30))
    assert not first.share.leave()
    again = Job(tmp_path, 2)
    assert sorted(again.granted) == [*range(10, 20), *range(30, IMAGES)]


def test_two_jobs_do_no_image_twice_and_who_has_none_waits_for_the_end(tmp_path):
    one, two = Job(tmp_path, 1, cell=32, rate=3.2), Job(tmp_path, 2, cell=32, rate=3.2)
    for _ in range(20):
        one.turns()
        two.turns()
    assert sorted(one.granted + two.granted) == list(range(IMAGES))
    assert (one.heard[-1], two.heard[-1]) == (Pause, Pause)
    for job in (one, two):
        job.write(*sp.union((at, at + 1) for at in job.granted))
        job.turns(8)
    one.turns(8)
    assert (one.heard[-1], two.heard[-1]) == (Close, Close)
    assert (one.share.leave(), two.share.leave()) == (True, True)


def test_what_others_do_is_not_among_the_images_that_a_job_is_to_do(tmp_path):
    one, two = (Job(tmp_path, number, cell=32, rate=3.2) for number in (1, 2))
    assert one.share.total == IMAGES
    for _ in range(20):
        one.turns()
        two.turns()
    assert one.heard[-1] is Pause
    two.write(*sp.union((at, at + 1) for at in two.granted))
    two.turns()
    one.turns(8)
    assert one.share.total == len(one.granted)
    one.write((one.granted[0], one.granted[0] + 1))
    one.turns()
    assert (one.share.total, one.owner.rows) == (len(one.granted), 1)
    one.totals.images = len(one.granted) + 2  # another job has taken two of them
    assert one.share.total == len(one.granted) + 2


def test_a_job_that_works_learns_which_cells_others_have_closed(tmp_path):
    one, two = (Job(tmp_path, number, cell=8, rate=0.8) for number in (1, 2))
    two.leased.remaining = 0
    for at in two.granted:  # one by one, so that there are records to pack
        two.write((at, at + 1))
        two.turns()
    one.leased.remaining = IMAGES
    assert one.share.total == IMAGES
    one.turns(21)
    assert one.share.total <= IMAGES - 8


def test_the_images_of_a_job_that_is_silent_are_done_by_another(tmp_path):
    _, two = Job(tmp_path, 1), Job(tmp_path, 2)
    assert two.heard == [Pause]
    two.turns(int(SILENT_S) + 12)
    assert two.granted == list(range(IMAGES))


def test_the_images_of_a_job_whose_process_has_ended_are_taken_over_at_once(tmp_path):
    Job(tmp_path, 1)
    two = Job(tmp_path, 2)
    two.owner.died(f"{1:032x}")
    two.turns(3)
    assert two.granted == list(range(IMAGES))


def test_what_a_job_cannot_read_ends_it_and_is_free_for_others(tmp_path):
    one, two = Job(tmp_path, 1), Job(tmp_path, 2)
    one.write((0, 90))
    one.turns(3)
    one.share.rested(one.last)
    one.turns(3)
    assert one.heard[-1] is Close
    assert not one.share.leave()
    two.turns(8)
    assert two.granted == list(range(90, IMAGES))


def test_a_job_that_is_not_to_wait_ends_when_others_hold_all_that_is_left(tmp_path):
    one, two = Job(tmp_path, 1), Job(tmp_path, 2, leaves=True)
    assert two.heard == [Close]
    assert not two.share.leave()
    assert one.owner.held(0) == ((0, IMAGES),)


def test_a_job_that_is_not_to_wait_first_does_what_it_has_and_what_becomes_free(tmp_path):
    one, two = (Job(tmp_path, n, cell=32, rate=3.2, leaves=n == 2) for n in (1, 2))
    for _ in range(20):
        one.turns()
        two.turns()
    assert two.heard[-1] is Pause
    two.write(*sp.union((at, at + 1) for at in two.granted))
    two.share.rested(two.last)
    one.owner.leave()
    two.owner._again_s = Job.clock_s + 5  # another link was refused
    two.turns(4)
    assert two.heard[-1] is Pause
    two.turns(8)
    assert sorted(two.granted) == list(range(IMAGES))


def test_a_job_that_is_not_to_wait_first_finds_out_whether_the_run_is_complete(tmp_path):
    one = Job(tmp_path, 1, cell=48)
    for at in range(IMAGES):  # one by one, so that there are records to pack
        if at == 60:
            assert Job(tmp_path, 3, leaves=True).heard == [Close]
        one.write((at, at + 1))
        one.turns()
    (tmp_path / "COMPLETE.1").unlink()
    two = Job(tmp_path, 2, leaves=True)
    assert two.heard == [Pause]  # packed cells are looked at last
    two.turns(3)
    assert two.heard == [Pause, Close]
    assert two.share.leave()


def test_what_is_taken_from_a_job_is_not_held_any_more(tmp_path):
    slow, quick = Job(tmp_path, 1, rate=1.0), Job(tmp_path, 2, rate=100.0)
    slow.leased.remaining, slow.leased.ahead = IMAGES, ((8, IMAGES),)
    for _ in range(30):
        slow.turns()
        quick.turns()
    assert quick.granted
    at = np.array(slow.granted)
    assert set(at[slow.share.holds(at)].tolist()) == set(slow.granted) - set(quick.granted)


def test_a_folder_that_is_lost_ends_the_job_with_the_reason(tmp_path):
    job = Job(tmp_path, 1)
    (tmp_path / "beats").rename(tmp_path / "gone")
    job.share._wake.wait = lambda s: setattr(Job, "clock_s", Job.clock_s + 10)
    job.share._work()
    with pytest.raises(EnvironmentFault, match="has not worked for 600 s"):
        job.share.hear()
