"""The coordinator and the simulator give the same rows where rank 0's own work takes no time.

Both drive the core. The simulator keeps a loop of its own, because it packs no messages and counts
rank 0's costs. Here the coordinator works in virtual time on the simulator's worker ranks, with its
packer, wire format, failure detector and leased images.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from collage_mpi.core import events as ev
from collage_mpi.faults.failure_detector import FailureDetector
from collage_mpi.job.coordinator import Coordinator, LoopSettings, ReadyRank
from collage_mpi.job.leased_images import Close, Lease, LeasedImages
from collage_mpi.job.packing import Packer
from collage_mpi.mpi.answers import ANSWERED, SKIPPED, Score, WireResult, pack_results
from collage_mpi.mpi.protocol import CANCEL, read_header
from collage_mpi.mpi.tasks import unpack_cancel, unpack_tasks
from collage_mpi.mpi.transport import Received
from collage_mpi.results.row_sink import MemoryWriter
from collage_mpi.rows import PLACED, PRESENT
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards.readahead import Images
from collage_mpi.simulation.costs import Costs
from collage_mpi.simulation.simulator import RANK, SimulatedJob, Simulation
from collage_mpi.system.backoff import COORDINATOR_BACKOFF, Backoff
from tests.paper import PAPER

FREE = Costs(receive_ns=0, send_ns=0, encode_ns=0, network_ns=0)
SESSION, FOREVER_NS = 1, 1 << 62
CONFIDENT = {"confidence": 0.5}
SCHEMES: dict[str, dict[str, Any]] = {
    "none": {},
    "replicate": {},
    "hedge": {"deadline_ms": 150.0},
    "collage": {},
    "collage-only": {},
    "cascade": CONFIDENT,
    "cascade of three stages": {**CONFIDENT, "first": ("collage@0.6", "q")},
}
OTHERWISE: dict[str, dict[str, Any]] = {
    "batches": {"batch": 4},
    "batches in the paper's layout": {**PAPER, "batch": 4, "assign": "pull"},
    "open loop": {"batch": 4, "rate": 80.0},
    "audits": {"batch": 2, "audit": 0.2},
}


class Input:
    """A reader of images without pixels, and a ledger that grants all of them."""

    cells_ns, failed = 0, False

    def __init__(self, count: int) -> None:
        self.remaining = count
        self._taken = 0
        self._told = deque([Lease(0, ((0, count),)), Close()])

    @property
    def ready(self) -> int:
        return self.remaining

    def add(self, order: np.ndarray) -> None:
        """It has its images."""

    def take(self, n: int) -> Images:
        rows = np.arange(self._taken, self._taken + min(n, self.remaining))
        self._taken += len(rows)
        self.remaining -= len(rows)
        placed = np.zeros(len(rows), PLACED)
        placed["row"] = placed["position"] = rows
        return Images(rows, rows, placed, np.zeros((len(rows), 1, 1, 1), np.uint8))

    def holds(self, positions: np.ndarray) -> np.ndarray:
        return np.ones(len(positions), bool)

    def rested(self, number: int) -> None:
        """Nobody waits for it."""

    def hear(self) -> Any:
        return self._told.popleft() if self._told else None


class Coordinated(Simulation):
    """The simulator's worker ranks, as a coordinator's transport and pauses."""

    now_ns = 0

    def run(self) -> ev.Finish:
        settings, images = self.settings, Input(self.job.images)
        encoder: Any = SimpleNamespace(
            input_shape=(0, 1, 1), places=1 << 16, shrink=lambda i: i, paste=lambda *given: None
        )
        detector = FailureDetector(self.ranks, 0)
        unit = settings.group_size * settings.batch_size
        leased = LeasedImages(images, images, SimpleNamespace(idle=True, flush=lambda: None), unit)
        leased.hear()
        pauses = Backoff(COORDINATOR_BACKOFF)
        pauses.pause = pauses.rest = self.wait
        loop = LoopSettings(
            credit=settings.messages,
            clock=self.clock,
            backoff=pauses,
            arrivals=self._arrivals,
            stop_reason=lambda: None,
            report=lambda: None,
            draw=self._draw,
        )
        self._received: list[Received] = []
        group = SimpleNamespace(transport=self, detector=detector, session=SESSION)
        ready = [ReadyRank(rank, state.kinds, "") for rank, state in self.ranks.items()]
        packer = Packer(self.table, encoder, SESSION, self.clock, ())
        return Coordinator(self.core, group, packer, self._writer, leased, loop).run(ready)

    def clock(self) -> int:
        return self.now_ns

    def wait(self, at_most_ns: int | None = None) -> None:
        """Until something happens on a rank, at most so long."""
        limit_ns = FOREVER_NS if at_most_ns is None else self.now_ns + at_most_ns
        self.now_ns = min(limit_ns, self._heap[0][0] if self._heap else limit_ns)
        assert self.now_ns < FOREVER_NS, "nothing is to come"

    def poll(self) -> list[Received]:
        while self._heap and self._heap[0][0] <= self.now_ns:
            at_ns, _, _, call, argument = heapq.heappop(self._heap)
            call(at_ns, argument)
        found, self._received = self._received, []
        return found

    def buffer(self, nbytes: int) -> np.ndarray:
        return np.empty(nbytes, np.uint8)

    def send_task(self, rank: int, buffer: np.ndarray, nbytes: int) -> None:
        message = buffer[:nbytes]
        if read_header(message).type == CANCEL:
            for task in unpack_cancel(message):
                self._at(self.now_ns, RANK, self._cancelled, ev.Cancel(task, rank))
            return
        tasks = [self.core.tasks[task.task] for task in unpack_tasks(message)[0]]
        self._at(self.now_ns, RANK, self._arrives, tasks)

    def drop(self, rank: int) -> None:
        raise AssertionError(f"rank {rank} is not lost")

    def _answer(self, at_ns: int, answer: tuple[int, Any, int]) -> None:
        rank, ends, _ = answer
        message = np.empty(16384, np.uint8)
        results = [result for end in ends for result in self._results(end)]
        nbytes = pack_results(message, SESSION, results)
        self._received.append(Received(rank, message[:nbytes], self.now_ns))

    def _results(self, end: Any) -> Iterator[WireResult]:
        """As the rank sends them."""
        if isinstance(end, ev.Skipped):
            yield WireResult(end.task, SKIPPED)
            return
        cells = iter(end.cells)
        for task in end.tasks:
            own = [next(cells) for _ in self.core.tasks[task].slots]
            found = [Score(c["label"], c["score"]) if c["state"] == PRESENT else None for c in own]
            yield WireResult(task, ANSWERED, compute_ns=end.compute_ns, cells=found)


def rows_of(driver: type[Simulation], settings: RunSettings) -> dict[str, np.ndarray]:
    """The rows of each table in the order of their keys, and how the run ended."""
    writer = MemoryWriter()
    finish = driver(SimulatedJob(settings, 900, FREE), writer).run()
    found = writer.results(Path(), {})
    return {
        "status": np.array(finish.status),
        "images": np.sort(found.images, order="row"),
        "groups": np.sort(found.groups, order="group"),
        "tasks": np.sort(found.tasks, order="task"),
    }


@pytest.mark.parametrize("how", OTHERWISE)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_they_give_the_same_rows(scheme: str, how: str) -> None:
    more = {**SCHEMES[scheme], **OTHERWISE[how]}
    given = {"scheme": scheme.partition(" ")[0], "side": 3, "straggler": "lognormal", **more}
    settings = RunSettings.from_mapping(given)
    simulated = rows_of(Simulation, settings)
    coordinated = rows_of(Coordinated, settings)
    assert len(simulated["images"]) == 900
    for table, rows in simulated.items():
        assert np.array_equal(rows, coordinated[table]), table
