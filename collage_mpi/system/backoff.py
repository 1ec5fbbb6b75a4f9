"""Waits without spinning: pauses that grow, and start anew after progress.

The constants bound how precisely a latency can be measured, so they are recorded with every run.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class BackoffSettings:
    """Some polls without a pause, then pauses that double up to a limit.

    Attributes:
        free_tests: polls without a pause.
        first_ns: the first pause.
        longest_ns: the longest pause of a short wait.
        patient_ns: the longest pause of a long wait; None for `longest_ns`.
        patience: of a long wait, a pause is at most 1 / patience.
    """

    free_tests: int
    first_ns: int
    longest_ns: int
    patient_ns: int | None = None
    patience: int = 64


# Rank 0 measures latencies, so its pauses are short: 0.2 ms, or 1.6 % of what it measures. Workers
# share cores, so theirs are longer.
COORDINATOR_BACKOFF = BackoffSettings(8, first_ns=50_000, longest_ns=200_000, patient_ns=5_000_000)
# For rank 0 of a job in whole batches, whose ranks have their next batch already. Polls took 1 ms
# of processor time for an image of 10 ms.
BATCH_BACKOFF = replace(COORDINATOR_BACKOFF, patience=8)
WORKER_BACKOFF = BackoffSettings(free_tests=4, first_ns=50_000, longest_ns=1_000_000)
# For rank 0 before and after the job, when it measures nothing. A poll every 0.2 ms took 0.5 s of a
# core from ten ranks that loaded their networks.
GROUP_BACKOFF = BackoffSettings(free_tests=4, first_ns=50_000, longest_ns=5_000_000)


class Backoff:
    """Call `reset` on progress and `pause` after a poll that found nothing."""

    def __init__(
        self, settings: BackoffSettings, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self.settings = settings
        self._sleep = sleep
        self.reset()

    def reset(self) -> None:
        """After progress: the next polls have no pause."""
        self._tests = self._waited_ns = 0
        self._pause_ns = self.settings.first_ns

    def pause(self, at_most_ns: int | None = None) -> None:
        """Wait a little, no longer than `at_most_ns`."""
        self._tests += 1
        if self._tests <= self.settings.free_tests:
            return
        wait_ns = self._pause_ns if at_most_ns is None else min(self._pause_ns, at_most_ns)
        if wait_ns > 0:
            self._sleep(wait_ns / 1e9)
        self._waited_ns += wait_ns
        limit_ns = self.settings.longest_ns
        if self.settings.patient_ns is not None:
            limit_ns = max(
                limit_ns, min(self._waited_ns // self.settings.patience, self.settings.patient_ns)
            )
        self._pause_ns = min(2 * self._pause_ns, limit_ns)

    def rest(self, for_ns: int) -> None:
        """Wait for a fixed time in which nothing can come."""
        self._sleep(for_ns / 1e9)
