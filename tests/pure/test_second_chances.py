"""Second chances beside a model that counts: who is tried again, where, how often, until when."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scheduler_harness import COLLAGE, MS, SINGLE, Harness, started

from collage_mpi.scheduler import events as ev

PLENTY = 99  # of credit, so that what is sent leaves at once; of failures, so that no rank retires


class Model:
    """A job of single ranks, and what its images have been through, counted apart from it."""

    def __init__(self, **kwargs) -> None:
        self.limit = kwargs["max_attempts"]
        self.job = Harness(collages=0, credit=PLENTY, max_failures=PLENTY, settle_ns=0, **kwargs)
        self.job.start()
        self.failures: Counter[int] = Counter()  # tasks of an image that failed or were lost
        self.silences: Counter[int] = Counter()  # that fell silent with their rank
        self.made: Counter[int] = Counter()  # that were sent
        self.had: dict[int, set[int]] = {}  # image -> ranks that failed, lost, or have it
        self.seen = 0
        self.job.arrive(self.job.admitted)
        self.look()

    def over(self, tasks: list[ev.Send]) -> None:
        for send in tasks:
            for item in send.items:
                self.failures[item.image] += item.image not in self.job.resolved

    def fail(self, task: int) -> None:
        self.over([self.job.live[task]])
        self.job.fail(task)

    def absent(self, task: int) -> None:
        send = self.job.live[task]
        self.over([send])
        self.job.answer(task, absent=frozenset(item.image for item in send.items))

    def of(self, rank: int) -> list[ev.Send]:
        return [send for send in self.job.live.values() if send.rank == rank]

    def suspect(self, rank: int) -> None:
        if rank not in self.job.suspected:
            self.silences.update(i.image for send in self.of(rank) for i in send.items)
        self.job.suspect(rank)

    def lose(self, rank: int) -> None:
        self.over(self.of(rank))
        self.job.lose(rank)

    def ready(self) -> set[int]:
        return self.job.ready - self.job.lost - self.job.suspected

    def look(self) -> None:
        """After every event."""
        for task in range(self.seen, 1 + max(self.job.sent, default=-1)):
            send = self.job.sent.get(task)
            if send is None:
                continue  # it never left
            for item in send.items:
                self.made[item.image] += 1
                had = self.had.setdefault(item.image, set())
                others = self.ready() - had
                assert not (send.rank in had and others), f"back to rank {send.rank}, not {others}"
                had.add(send.rank)
            self.seen = task + 1
        for image in self.job.arrived:
            gone = self.failures[image] >= self.limit
            resolve = self.job.resolved.get(image)
            if resolve is not None and resolve.outcome == "error":
                assert gone, f"image {image} is given up after {self.failures[image]} failures"
            elif gone and resolve is None:
                held = [s for s in self.job.live.values() if image in {i.image for i in s.items}]
                assert held, f"image {image} has failed often enough"
            if self.job.scheme.name == "none":
                bound = 1 + self.failures[image] + self.silences[image]
                assert self.made[image] <= min(bound, self.limit + self.silences[image])


@given(data=st.data())
@settings(max_examples=150)
def test_who_is_tried_again_where_and_how_often(data):
    model = Model(
        scheme=data.draw(st.sampled_from(["none", "hedge", "replicate"])),
        side=2,
        singles=data.draw(st.integers(4, 7)),
        hedge_ns=10 * MS,
        max_attempts=data.draw(st.integers(2, 4)),
        park_ns=10**15,
    )
    job = model.job
    for _ in range(data.draw(st.integers(1, 40))):
        if job.finish is not None or not job.live:
            break
        task = data.draw(st.sampled_from(sorted(job.live)))
        rank = job.live[task].rank
        choice = data.draw(st.sampled_from(["fail", "fail", "absent", "answer", "suspect", "lose",
                                            "fire"]))  # fmt: skip
        if choice == "fire":
            near = {t: at for t, at in job.timers.items() if at < 10**12}
            if near:
                job.fire(min(near, key=near.get))
        elif choice == "lose" and len(model.ready()) < 3:
            continue  # without ready ranks the job stops, which other tests see
        elif choice == "answer":
            job.answer(task)
        else:
            getattr(model, choice)(rank if choice in ("suspect", "lose") else task)
        model.look()


@pytest.mark.parametrize("end", ["fail", "absent"])
@pytest.mark.parametrize("scheme", ["none", "collage", "collage-only", "hedge"])
def test_what_always_goes_wrong_ends_after_so_many_tries(scheme, end):
    """Each image of a main kind `max_attempts` times, a collage as often, and no task more."""
    job = Harness(scheme=scheme, collages=1, max_attempts=3, max_failures=PLENTY, credit=PLENTY,
                  hedge_ns=10**12)  # fmt: skip
    job.start()
    job.arrive(4)
    job.close()
    for _ in range(200):
        if not job.live:
            break
        task = min(job.live)
        images = frozenset(item.image for item in job.live[task].items)
        job.answer(task, absent=images) if end == "absent" else job.fail(task)
    else:
        pytest.fail("it is tried for ever")
    assert job.finish.status == ev.COMPLETE_WITH_ERRORS
    assert {resolve.outcome for resolve in job.resolved.values()} == {"error"}
    tries = Counter((send.kind, item.image) for send in job.sent.values() for item in send.items)
    assert max(tries.values()) <= 3
    main = COLLAGE if scheme == "collage-only" else SINGLE
    assert [tries[main, image] for image in range(4)] == [3] * 4


def test_a_silent_rank_is_no_failure_of_its_images_however_often():
    """Five ranks fall silent one after the other; then two tasks fail, and the third counts."""
    job = started(scheme="none", collages=0, singles=9, max_attempts=3)
    for _ in range(5):
        job.suspect(job.live[job.task_of(0)].rank)
    tried = [send.rank for send in job.sent.values() if send.items[0].image == 0]
    assert len(tried) == len(set(tried)) == 6
    job.fail(job.task_of(0))
    job.fail(job.task_of(0))
    assert 0 not in job.resolved
    job.answer(job.task_of(0))
    assert job.resolved[0].source == "retry"


def test_an_answer_clears_what_a_rank_has_failed_before():
    """Only failures in a row retire a rank, and silence or a skipped task is none of them."""
    job = Harness(scheme="none", collages=0, singles=2, max_failures=3, max_attempts=99, side=4)
    job.start()

    def task() -> int:
        while not (of_rank := [t for t, send in job.live.items() if send.rank == 1]):
            if job.admitted:
                job.arrive(job.admitted)
            else:
                job.answer(min(job.live))
        return min(of_rank)

    for _ in range(4):
        job.fail(task())
        job.suspect(1)
        job.fail(task())
        assert not job.retired
        job.answer(task())
    for _ in range(2):
        job.fail(task())
    assert not job.retired
    job.fail(task())
    assert job.retired == {1}


def test_when_the_last_rank_rests_and_is_silent_the_job_stops_to_be_resumed():
    """It cannot be recalled, and nobody knows whether it will be heard again."""
    job = Harness(scheme="none", collages=0, singles=2, max_failures=1, max_attempts=9)
    job.start()
    job.arrive(4)
    of_rank = sorted(task for task, send in job.live.items() if send.rank == 1)
    job.fail(of_rank[0])
    assert job.retired == {1}
    job.suspect(1)
    job.lose(2)
    assert not job.resolved, "no error rows: another session does these images"
    (timer,) = job.timers
    job.fire(timer)
    assert job.finish == ev.Finish(ev.INCOMPLETE, "no rank is left that could classify an image")
