"""How long a loop waits between two polls that find nothing."""

from __future__ import annotations

import pytest

from collage_mpi.system.backoff import BATCH_BACKOFF, COORDINATOR_BACKOFF, Backoff

MS = 1_000_000


@pytest.mark.parametrize(
    ("settings", "part", "polls"), [(COORDINATOR_BACKOFF, 64, 400), (BATCH_BACKOFF, 8, 150)]
)
def test_a_coordinator_pauses_for_a_small_part_of_what_it_has_waited(settings, part, polls) -> None:
    """So its time stamps are late by 0.2 ms or by 1.6 %, and a long wait takes few polls."""
    pauses: list[int] = []
    backoff = Backoff(settings, lambda s: pauses.append(round(s * 1e9)))
    for _ in range(2):  # a reset begins anew
        backoff.reset()
        pauses.clear()
        while sum(pauses) < 500 * MS:
            waited_ns = sum(pauses)
            backoff.pause()
            if pauses:
                assert pauses[-1] <= max(MS // 5, min(waited_ns // part, 5 * MS))
        assert pauses[:3] == [50_000, 100_000, 200_000]
        assert pauses[-1] == 5 * MS
        assert len(pauses) < polls  # 2,500 without
