"""Ranks that answer nothing any more, and cores that burn beside a rank."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
from fakes import MS
from test_worker import Bench

from collage_mpi.job.messages import End
from collage_mpi.mpi.tasks import WireTask
from collage_mpi.scheduler.events import Item
from collage_mpi.workload.background_load import Burners
from collage_mpi.workload.straggler_settings import StragglerSettings

BURN = StragglerSettings(burn_ranks=("3:2",), straggler_slow_share=1.0, straggler_spell_s=1.0)


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


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_burners_start_with_the_session_and_end_with_it():
    bench = Bench(straggler=BURN)
    session = bench.worker.session
    assert session is not None
    assert session.burners is not None
    pids = [process.pid for process in session.burners._processes]
    try:
        assert len(pids) == 2
        assert all(map(alive, pids))
        bench.endpoint.tell(End())
        bench.run()
        assert not any(map(alive, pids))
    finally:
        session.end()


def test_no_burner_outlives_its_rank():
    program = (
        "import sys; from collage_mpi.workload.background_load import Burners; "
        "from collage_mpi.workload.straggler_settings import StragglerSettings; "
        f"b = Burners({BURN}, 3); print(*[p.pid for p in b._processes], flush=True); "
        "sys.stdin.read()"
    )
    rank = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert rank.stdout is not None
    pids = [int(word) for word in rank.stdout.readline().split()]
    assert len(pids) == 2
    rank.kill()
    rank.wait(10)
    until_s = time.monotonic() + 20
    while any(map(alive, pids)) and time.monotonic() < until_s:
        os.sched_yield()
    assert not any(map(alive, pids))
    rank.stdin.close()
    rank.stdout.close()


def test_burning_is_bounded():
    burners = Burners(StragglerSettings(burn_ranks=("1:1",), straggler_slow_share=0.0), 1)
    assert len(burners._processes) == 1
    burners.end()
    burners.end()
