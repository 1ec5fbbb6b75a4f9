"""How heavy a tail is and how long slow spells last: on times that were made so, and by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tails import Tail, measure_tail

from collage_mpi.core.ranks import WINDOW


def chain(spell: float, share: float, machines: int, requests: int) -> np.ndarray:
    """(machines, requests) bool: slow spells of geometric length, drawn one after the other."""
    rng = np.random.default_rng(7)
    rows = []
    for _ in range(machines):
        row: list[bool] = []
        slow = rng.random() < share
        while len(row) < requests:
            mean = spell if slow else spell * (1 - share) / share
            row += [slow] * int(rng.geometric(min(1.0, 1 / mean)))
            slow = not slow
        rows.append(row[:requests])
    return np.array(rows)


@pytest.mark.parametrize("spell", [2.0, 9.0, 40.0])
@pytest.mark.parametrize("share", [0.05, 0.3])
def test_the_length_of_slow_spells_is_found_again(spell, share):
    slow = chain(spell, share, 20, 20_000)
    noise = np.exp(np.random.default_rng(1).normal(0, 0.1, slow.shape))
    tail = measure_tail(np.where(slow, 3.0, 1.0) * noise)
    assert tail.spell == pytest.approx(spell, rel=0.15)
    assert tail.share == pytest.approx(share, rel=0.15)
    assert tail.memories == tail.spell / WINDOW


@pytest.mark.parametrize("share", [0.05, 0.4])
def test_requests_that_are_slow_by_themselves_have_the_shortest_spells(share):
    slow = np.random.default_rng(3).random((30, 3000)) < share
    tail = measure_tail(np.where(slow, 5.0, 1.0))
    assert tail.spell == pytest.approx(1 / (1 - share), rel=0.05)
    assert tail.weight == pytest.approx(5)


def test_a_machine_that_is_slow_all_along_is_one_spell_without_an_end():
    """Its own mean is not taken off: within its row nothing varies but noise."""
    times_s = np.random.default_rng(0).uniform(0.09, 0.11, (8, 300))
    times_s[3] *= 10
    tail = measure_tail(times_s)
    assert tail.spell == math.inf == tail.memories
    assert tail.share == 1 / 8
    shuffled = np.random.default_rng(1).permuted(times_s.ravel()).reshape(times_s.shape)
    assert measure_tail(shuffled).spell < 1.3  # the same times, each by itself


def test_weight_is_of_all_machines_together_whatever_the_unit():
    times_s = np.arange(1.0, 1001.0).reshape(10, 100)
    tail = measure_tail(times_s)
    assert tail.weight == pytest.approx(990.01 / 500.5)
    assert measure_tail(times_s * 1e3).weight == pytest.approx(tail.weight)
    assert tail.share == np.mean(times_s > math.sqrt(990.01 * 500.5))


def test_times_that_are_all_alike_have_no_tail():
    assert measure_tail(np.full((3, 50), 0.1)) == Tail(1.0, 1.0, 0.0)


def test_of_three_machines_one_that_is_slow_all_along_is_so_for_ever() -> None:
    """Lags beyond half a row have so few pairs that anything could be noise."""
    tail = measure_tail(np.repeat([[1.0], [1.0], [5.0]], 200, axis=1))
    assert tail.spell == math.inf
    assert tail.share == pytest.approx(1 / 3)
