"""A network that waits before it answers, as on a slow rank (analysis/simulating.md)."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from collage_mpi.core.settings import batch_factor
from collage_mpi.kinds import SPARE_KINDS
from collage_mpi.models.info import Answer, Computation, Predictor
from collage_mpi.workload.straggler_settings import StragglerSettings, make_delays


class WaitingNetwork:
    """A network whose answers come late.

    A call takes the service time that the delay model draws, or the network's own time if that is
    longer. Without a model a slow rank's call takes the network's own time, times the factor of the
    rank. Calls are counted from 0, and time from the first call. `predict`, which is for trials and
    for measuring, does not wait.
    """

    def __init__(
        self,
        network: Predictor,
        kind: str,
        rank: int,
        settings: StragglerSettings,
        clock: Callable[[], int] = time.monotonic_ns,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        """Wrap a network.

        Args:
            network: the network.
            kind: of its tasks, one of KINDS.
            rank: on which it runs.
            settings: of the delays.
            clock: monotonic, in ns.
            sleep: waits for some seconds.

        Raises:
            EnvironmentFault, DataFault: the trace cannot be read, or is not a trace.
        """
        self.kind, self.cells, self.classes = network.kind, network.cells, network.classes
        self.fingerprint, self.device = network.fingerprint, network.device
        self.tuning, self.runtime = network.tuning, network.runtime
        self.columns = network.columns
        self.predict = network.predict
        self._network, self._rank, self._injects = network, rank, settings.injects
        self._delays = make_delays(settings)
        self._ratio = (settings.cost_ratio or 1.0) if kind in SPARE_KINDS else 1.0
        self._further = 1.0 if settings.batch_cost is None else settings.batch_cost
        self._clock, self._sleep = clock, sleep
        self._calls = 0
        self._first_ns: int | None = None

    def answer(self, batch: np.ndarray) -> Answer:
        """As `Predictor.answer`, late."""
        return self.begin(batch).finish()

    def begin(self, batch: np.ndarray) -> Computation[Answer]:
        """As `Predictor.begin`, late. It waits in `finish`, so that calls follow one another."""
        start_ns, call = self._clock(), self._calls
        if self._first_ns is None:
            self._first_ns = start_ns
        since_ns = start_ns - self._first_ns
        self._calls += 1
        begun = self._network.begin(batch)

        def finish() -> Answer:
            answer = begun.finish()
            own_ns = self._clock() - start_ns
            wait_ns = self._service_ns(len(batch), call, since_ns, own_ns) - own_ns
            if wait_ns > 0:
                self._sleep(wait_ns / 1e9)
            return answer

        return Computation(finish)

    def _service_ns(self, inputs: int, call: int, since_ns: int, own_ns: int) -> int:
        """What a call takes; `own_ns`: the network alone."""
        if not self._injects:
            return round(own_ns * self._delays.slowed(self._rank))
        drawn_ns = self._delays.draw_ns(self._rank, call, 1, since_ns)
        return round(drawn_ns * self._ratio * batch_factor(inputs, self._further))
