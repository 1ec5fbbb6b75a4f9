"""A simulated rank that errs is named, and no other one."""

from __future__ import annotations

from collage_mpi.core import events as ev
from collage_mpi.results.row_sink import MemoryWriter
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.simulator import SimulatedJob, Simulation


def played(**job) -> Simulation:
    given = dict(shards=("simulated",), out="nowhere", scheme="none", singles=4, batch=8)
    settings = RunSettings(**given, check=0.5, batch_cost=1.0)
    found = Simulation(SimulatedJob(settings, 4000, **job), MemoryWriter())
    found.run()
    return found


def test_a_rank_that_errs_is_the_only_one_that_is_wrong():
    found = played(wrong_ranks={3: 0.05})
    assert found.finish == ev.Finish(ev.COMPLETE, "")
    wrong = {rank: each.wrong for rank, each in found.core.checks.of.items()}
    assert wrong.pop(3) > 20
    assert not any(wrong.values())


def test_where_no_rank_errs_none_is_wrong_and_no_more_is_done_than_was_asked_for():
    found = played(likes={1: "a", 2: "b"})
    tallies = found.core.checks.of.values()
    assert not any(each.differed for each in tallies)
    compared = sum(each.compared for each in tallies) / 2
    assert 0.4 * 4000 < compared < 0.6 * 4000
