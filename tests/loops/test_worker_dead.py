"""Ranks that answer nothing any more."""

from __future__ import annotations

import numpy as np
from fakes import MS
from test_worker import Bench

from collage_mpi.job.messages import End
from collage_mpi.mpi.tasks import WireTask
from collage_mpi.scheduler.events import Item
from collage_mpi.workload.straggler_settings import StragglerSettings


def ends_after(bench: Bench, polls: int) -> None:
    """Rank 0 ends the session once the worker has polled so often."""
    left = [polls]

    def count() -> None:
        left[0] -= 1
        if left[0] == 0:
            bench.endpoint.tell(End())

    bench.endpoint.at_poll = count


def test_it_answers_its_tasks_and_then_nothing_but_it_polls_and_the_session_ends():
    bench = Bench(straggler=StragglerSettings(dead_ranks=("3:2",)))
    for task in range(4):
        bench.single(task)
    ends_after(bench, 400)
    bench.endpoint.cancel(3)  # not even a skip comes back
    bench.run()
    assert [result.task for result in bench.results] == [0, 1]
    assert bench.worker.session is None  # 400 polls later


def test_a_task_in_work_at_the_time_of_death_is_not_answered():
    bench = Bench(
        straggler=StragglerSettings("pinned", straggler_median_ms=50, dead_ranks=("3:0.12s",))
    )
    for task in range(4):
        bench.single(task)
    ends_after(bench, 400)
    bench.run()
    assert [result.task for result in bench.results] == [0, 1]  # the third would end at 150 ms


def test_another_rank_lives():
    bench = Bench(straggler=StragglerSettings(dead_ranks=("2:0",)))
    bench.single(0)
    bench.run()
    assert len(bench.results) == 1


def test_a_slow_spell_is_a_matter_of_the_time_since_start():
    markov = StragglerSettings(
        "markov",
        straggler_median_ms=10,
        straggler_sigma=0.0,
        straggler_slow_share=0.5,
        straggler_spell_s=0.2,
    )
    bench = Bench(straggler=markov)
    session = bench.worker.session
    assert session is not None
    expected = []
    for task in range(100):
        at_ns = bench.clock.now_ns - session.start_ns
        expected.append(session.delays.draw_ns(3, 0, 1, at_ns))
        bench.endpoint.give(
            [WireTask(task, 0, 1, "single", (Item(task, 0),))], [np.zeros((4, 4, 1), np.uint8)]
        )
        bench.run()
    assert [result.drawn_ns for result in bench.results] == expected
    assert set(expected) == {10 * MS, 50 * MS}
