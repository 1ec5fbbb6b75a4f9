"""The running quantile against numpy's."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from collage_mpi.scheduler.policies import MIN_COUNT, RunningQuantile


@given(
    values=st.lists(st.integers(1, 10**12), min_size=MIN_COUNT, max_size=300),
    q=st.sampled_from([0.01, 0.5, 0.95, 0.99]),
)
def test_within_its_resolution(values, q):
    running = RunningQuantile()
    for value in values:
        running.add(value)
    exact = np.quantile(values, q, method="inverted_cdf")
    assert exact <= running.quantile(q) <= exact * (1 + 1 / 32) + 1


def test_nothing_is_said_of_few():
    running = RunningQuantile()
    for _ in range(MIN_COUNT - 1):
        running.add(5)
    assert running.quantile(0.5) is None


def test_it_follows_what_is_added():
    running = RunningQuantile()
    for _ in range(100):
        running.add(1000)
    assert running.quantile(0.5) < 1040
    for _ in range(300):
        running.add(9000)
    assert running.quantile(0.5) >= 9000


def test_it_looks_again_once_2_percent_more_is_there():
    running, looked = RunningQuantile(), []
    running._walk = lambda q: looked.append(running.count) or 7
    for _ in range(104):
        running.add(1)
        assert running.quantile(0.5) == (7 if running.count >= MIN_COUNT else None)
    assert looked[:3] == [50, 52, 54]
    assert looked[-2:] == [100, 103]
