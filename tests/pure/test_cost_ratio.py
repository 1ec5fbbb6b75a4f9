"""The ratio of two networks' service times, on a host where other work goes on."""

from __future__ import annotations

import numpy as np
import pytest

from collage_mpi.job.handshake import ratio_of
from collage_mpi.job.messages import Measured


def test_processor_time_counts_and_not_what_others_took() -> None:
    random = np.random.default_rng(0)
    waits = random.integers(0, 20_000_000, (2, 15))  # of the clock: other processes had the core
    singles = [Measured(3_000_000 + int(wait), 3_000_000 + i) for i, wait in enumerate(waits[0])]
    others = [Measured(2_760_000 + int(wait), 2_760_000 + i) for i, wait in enumerate(waits[1])]
    assert ratio_of(others, singles) == pytest.approx(0.92, rel=1e-4)


def test_where_a_gpu_works_the_clock_counts() -> None:
    singles, others = [Measured(100, None)] * 7, [Measured(150, 5)] * 7
    assert ratio_of(others, singles) == 1.5


def test_slow_spells_meet_both_networks() -> None:
    pace = [1, 1, 1, 4, 4, 4, 1, 1, 1, 1, 4, 4, 4, 1, 1]  # of the host, round by round
    singles = [Measured(0, 300 * p) for p in pace]
    others = [Measured(0, 270 * p) for p in pace]
    assert ratio_of(others, singles) == 0.9


def test_without_rounds_there_is_no_ratio() -> None:
    assert ratio_of([], []) is None
    assert ratio_of([Measured(5, 5)], []) is None
    assert ratio_of([Measured(5, 5)], [Measured(0, 0)]) is None
