"""Many teams on virtual time: one is as the simulator has it; what the lead does is counted."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from collage_mpi.job.leases import LeaseSettings, count
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.costs import Costs
from collage_mpi.simulation.runs import simulate_in_memory
from collage_mpi.simulation.simulator import SimulatedJob

ANALYSIS = Path(__file__).parents[2] / "analysis"
COSTS = Costs(receive_ns=46_000, send_ns=31_000, encode_ns=0)
BY_HAND = Costs(receive_ns=3, send_ns=10, encode_ns=0, network_ns=7, single_ns=1000)
NINES = LeaseSettings(group_size=9, batch=1, smallest=1, largest=256)


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(ANALYSIS)
    monkeypatch.delitem(sys.modules, "team_model", raising=False)
    yield importlib.import_module("team_model")
    sys.modules.pop("team_model", None)


@pytest.mark.parametrize("sigma", [0.0, 0.5])
@pytest.mark.parametrize("workers", [10, 40, 80])
def test_one_team_takes_as_long_as_in_the_simulator(model: Any, workers: int, sigma: float) -> None:
    """With 80 ranks the coordinator is the bottleneck."""
    images = 100 * workers
    median_ms = 5.0 / model.np.exp(sigma**2 / 2)  # so that the mean is 5
    delays = {"straggler": "lognormal", "straggler_sigma": sigma, "straggler_median_ms": median_ms}
    given = {"scheme": "none", "singles": workers, "endgame": "off", "batch": 1}
    given |= {"depth": 4 * -(-workers // 9)}
    settings = RunSettings.from_mapping({**given, **(delays if sigma else {})})
    rows = simulate_in_memory(SimulatedJob(settings, images, COSTS)).images
    seconds = (rows["t0_ns"] + rows["latency_ns"]).max() / 1e9
    free, leases = model.LeadCosts(0, 0, 0, 0), replace(NINES, smallest=-(-workers // 9))
    of = model.World(1, workers, images, leases, COSTS, free, sigma=sigma)
    done = model.TeamsModel(of).run()
    assert done.seconds == pytest.approx(seconds, rel=0.03 if sigma else 0.002)
    assert done.busy_s[0] == pytest.approx(images * 77e-6)


def test_a_coordinator_is_a_serial_server_by_hand(model: Any) -> None:
    """Two images to the one rank at once, at 10 and 20; the third when the first is back."""
    of = model.World(1, 1, 3, NINES, BY_HAND, model.LeadCosts(0, 0, 0, 0))
    done = model.TeamsModel(of).run()
    first_back = 10 + 7 + 1000 + 7
    assert first_back + 3 + 10 + 7 < 10 + 7 + 2 * 1000  # the third waits for the second
    assert done.seconds == pytest.approx((10 + 7 + 3 * 1000 + 7 + 3) / 1e9)
    assert done.busy_s.tolist() == [pytest.approx(3 * (3 + 10) / 1e9)]


def test_a_poll_looks_at_every_rank(model: Any) -> None:
    """Three answers that come apart: a poll each, and those that found nothing."""
    of = model.World(1, 1, 3, NINES, BY_HAND, model.LeadCosts(0, 0, 0, 0), poll_ns=5)
    done = model.TeamsModel(of).run()
    free = 8  # polls in vain before the first pause; the pauses are longer than this job
    leases = 2  # the lease, and that there is no other: found by the first poll
    assert done.busy_s[0] * 1e9 == pytest.approx(3 * 13 + 5 * (1 + 3 * (1 + free)), abs=5 * leases)


@pytest.mark.parametrize("teams", [1, 3])
def test_every_image_is_in_one_part(model: Any, teams: int) -> None:
    free = model.LeadCosts(0, 0, 0, 0)
    of = model.World(teams, 7, 20_011, NINES, COSTS, free, sigma=1.0, slower={0: 2.0})
    job = model.TeamsModel(of)
    done = job.run()
    assert sum(count(ranges) for ranges in job.parts) == done.images.sum() == of.images
    assert job.book.finished  # which a position committed twice would not have let happen
    assert done.parts >= 20_011 // model.ROWS_PER_PART
    assert done.leases == len(job.leases) > teams


def test_the_leads_work_is_in_its_own_coordinators_time(model: Any) -> None:
    of = model.World(4, 7, 20_000, NINES, COSTS, model.LeadCosts(1_000_000, 3_000_000, 0, 0))
    done = model.TeamsModel(of).run()
    assert done.lead_s == pytest.approx((done.leases + 3 * done.parts) / 1e3)
    own = done.busy_s - [done.lead_s, 0, 0, 0]
    assert own / done.images == pytest.approx([77e-6] * 4, rel=0.02)
    assert done.dearest_us == pytest.approx(1e6 * done.busy_s[0] / done.images[0])


def test_a_lead_that_is_too_slow_holds_up_the_job(model: Any) -> None:
    small = LeaseSettings(group_size=9, batch=1, smallest=1, largest=1)

    def rate(lease_ns: int) -> float:
        of = model.World(8, 7, 20_000, small, COSTS, model.LeadCosts(lease_ns, 0, 0, 0))
        return model.TeamsModel(of).run().images_per_s

    ideal = 8 * 7 / 5e-3
    assert rate(10_000) == pytest.approx(ideal, rel=0.05)
    assert rate(10_000_000) == pytest.approx(9 / 10e-3, rel=0.05)  # a group a lease


def test_the_lead_looks_at_every_team_for_a_fiftieth_of_its_time(model: Any) -> None:
    def looks(look_ns: int, poll_ns: int = 0) -> float:
        of = model.World(4, 7, 20_000, NINES, COSTS, model.LeadCosts(0, 0, 0, look_ns), poll_ns)
        done = model.TeamsModel(of).run()
        return done.lead_s / done.seconds

    assert looks(4000) == pytest.approx(4000 / 1e6, rel=0.05)  # once a ms
    assert looks(1000, 1000) == pytest.approx((1000 + 3 * 1000) / 1e6, rel=0.05)  # of three others
    assert looks(100_000) == pytest.approx(1 / 50, rel=0.05)


def test_ranges_of_a_part(model: Any) -> None:
    assert model._as_ranges([5, 3, 4, 9, 1]) == [(1, 2), (3, 6), (9, 10)]
