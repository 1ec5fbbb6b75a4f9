"""The interval of what audits tell keeps its level, by 1,000 replays."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest

from collage_mpi.results.statistics import differing_interval, rules_out

REPLAYS = 1_000
WORST = 0.05 + 2 * math.sqrt(0.05 * 0.95 / REPLAYS)  # the nominal level and two standard errors


# ---- the interval -----------------------------------------------------------


def test_no_audit_excludes_nothing() -> None:
    assert differing_interval(0, 0) == (0, 1)


@pytest.mark.parametrize(("differing", "audited"), [(0, 100), (1, 100), (5, 1000), (7, 7), (0, 1)])
def test_the_interval_holds_what_was_seen_and_ends_where_shares_are_ruled_out(
    differing: int, audited: int
) -> None:
    low, high = differing_interval(differing, audited)
    assert low <= differing / audited <= high
    for edge, step in ((low, -1e-6), (high, 1e-6)):
        if 0 < edge < 1:
            assert rules_out(edge + step, differing, audited)
            assert not rules_out(edge - step, differing, audited)


def test_the_interval_narrows() -> None:
    assert differing_interval(7, 7) == pytest.approx((0.132, 1.0), abs=1e-4)
    few, many = differing_interval(5, 500), differing_interval(50, 5_000)
    assert few == pytest.approx((0.0017, 0.0304), abs=1e-4)
    assert many == pytest.approx((0.0059, 0.0156), abs=1e-4)
    low, high = differing_interval(50, 5_000, level=0.99)
    assert low < many[0]
    assert high > many[1]


@pytest.mark.parametrize("share", [0.0, 0.005, 0.02, 0.2])
def test_a_look_after_each_of_2000_answers_keeps_the_level(share: float) -> None:
    """A fixed interval, looked at so often, would leave 0.5 % out in a third of all runs."""
    rng = np.random.default_rng(round(1e4 * share))
    outside = cache(lambda differing, audited: rules_out(share, differing, audited))
    seen = np.cumsum(rng.random((REPLAYS, 2_000)) < share, axis=1)  # (replays, looks)
    missed = sum(any(map(outside, row.tolist(), range(1, 2_001))) for row in seen)
    assert missed / REPLAYS <= WORST
