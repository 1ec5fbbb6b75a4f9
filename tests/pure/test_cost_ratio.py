"""The ratio of two networks' service times, on a host where other work goes on."""

from __future__ import annotations

import numpy as np
import pytest

from collage_mpi.job.handshake import ServiceCosts, ratio_of
from collage_mpi.job.messages import Measured


def test_processor_time_counts_and_not_what_others_took() -> None:
    random = np.random.default_rng(0)
    waits = random.integers(0, 20_000_000, (2, 15))  # of the clock: other processes had the core
    singles = [Measured(3_000_000 + int(wait), 3_000_000 + i) for i, wait in enumerate(waits[0])]
    others = [Measured(2_760_000 + int(wait), 2_760_000 + i) for i, wait in enumerate(waits[1])]
    found = ratio_of(others, singles)
    assert found is not None
    assert found.median == pytest.approx(0.92, rel=1e-4)
    assert found.low <= found.median <= found.high


def test_where_a_gpu_works_the_clock_counts() -> None:
    singles, others = [Measured(100, None)] * 7, [Measured(150, 5)] * 7
    assert ratio_of(others, singles) == (1.5, 1.5, 1.5)


@pytest.mark.parametrize(("n", "outside"), [(1, 0), (5, 0), (6, 0), (9, 1), (15, 3), (20, 5)])
def test_the_interval_is_that_of_a_median(n: int, outside: int) -> None:
    """The values from the textbook: of 15, the 4th and the 12th hold the median to 96.5 %."""
    singles = [Measured(100, 100)] * n
    others = [Measured(100 + i, 100 + i) for i in np.random.default_rng(1).permutation(n).tolist()]
    found = ratio_of(others, singles)
    assert found is not None
    assert (found.low, found.high) == ((100 + outside) / 100, (99 + n - outside) / 100)


def test_slow_spells_meet_both_networks() -> None:
    pace = [1, 1, 1, 4, 4, 4, 1, 1, 1, 1, 4, 4, 4, 1, 1]  # of the host, round by round
    singles = [Measured(0, 300 * p) for p in pace]
    others = [Measured(0, 270 * p) for p in pace]
    assert ratio_of(others, singles) == (0.9, 0.9, 0.9)


def test_a_resumed_run_goes_by_the_ratio_of_before_and_its_interval() -> None:
    measured = ServiceCosts({}, {}, 1.0, (0.9, 1.1), {}, 1, None)
    assert measured.as_known({}) == measured
    found = measured.as_known({"cost_ratio": 1.25, "cost_ratio_interval": [1.2, 1.3]})
    assert (found.ratio, found.interval) == (1.25, [1.2, 1.3])


def test_without_rounds_there_is_no_ratio() -> None:
    assert ratio_of([], []) is None
    assert ratio_of([Measured(5, 5)], []) is None
    assert ratio_of([Measured(5, 5)], [Measured(0, 0)]) is None
