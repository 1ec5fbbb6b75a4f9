"""The coordinator and the simulator give the same rows where rank 0's own work takes no time.

Both drive the scheduler. The simulator keeps a loop of its own, because it takes 0.5 to 0.8 of
the time: it packs no messages, and the rows of 0.1.0 hold how it counts rank 0's costs. Here the
coordinator works in virtual time on the simulator's worker ranks, with its buffer of images, wire
format, failure detector, supply and recorder.
"""

from __future__ import annotations

import heapq
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from collage_mpi.faults.failure_detector import FailureDetector
from collage_mpi.job.coordinator import Coordinator, LoopSettings, ReadyRank
from collage_mpi.job.image_buffer import ImageBuffer
from collage_mpi.job.messages import Close
from collage_mpi.job.recorder import Grouping, Recorder
from collage_mpi.job.team import Supply
from collage_mpi.mpi.answers import pack_results
from collage_mpi.mpi.protocol import CANCEL, read_header
from collage_mpi.mpi.tasks import unpack_cancel, unpack_tasks
from collage_mpi.mpi.transport import Received, Sent
from collage_mpi.results.row_sink import MemoryWriter
from collage_mpi.scheduler import events as ev
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards.readahead import ImageRecord
from collage_mpi.simulation.costs import Costs
from collage_mpi.simulation.simulator import RANK, SimulatedJob, Simulation
from collage_mpi.system.backoff import COORDINATOR_BACKOFF, Backoff

FREE = Costs(receive_ns=0, send_ns=0, encode_ns=0, network_ns=0)
SESSION, FOREVER_NS = 1, 1 << 62
NOTHING = np.empty((0, 1, 1), np.uint8)
CONFIDENT = {"confidence": 0.5}
SCHEMES: dict[str, dict[str, Any]] = {
    "none": {},
    "replicate": {},
    "hedge": {"hedge_ms": 150.0},
    "collage": {},
    "collage-only": {},
    "cascade": CONFIDENT,
    "cascade-batch": CONFIDENT,
}
OTHERWISE: dict[str, dict[str, Any]] = {
    "batches": {"batch": 4},
    "batches in the paper's layout": {"profile": "paper", "batch": 4, "assign": "pull"},
    "open loop": {"batch": 4, "rate": 80.0},
    "audits": {"batch": 2, "audit": 0.2},
}


class Images:
    """A reader of images without pixels, and the link to a lead that grants no more."""

    cells_ns, failed, lost = 0, False, None

    def __init__(self, count: int) -> None:
        self._left = deque(ImageRecord(i, 0, i, NOTHING, None) for i in range(count))
        self._told = deque([Close()])

    @property
    def remaining(self) -> int:
        return len(self._left)

    ready = remaining

    def take(self, n: int) -> list[ImageRecord]:
        return [self._left.popleft() for _ in range(min(n, len(self._left)))]

    def hear(self) -> Close | None:
        return self._told.popleft() if self._told else None


class Coordinated(Simulation):
    """The simulator's worker ranks, as a coordinator's transport and pauses."""

    now_ns = 0

    def run(self) -> ev.Finish:
        settings, images = self.settings, Images(self.job.images)
        encoder: Any = SimpleNamespace(
            places=1 << 16, input_shape=(0, 1, 1), shrink=lambda i: i, paste=lambda *given: None
        )
        feed = ImageBuffer(images, encoder, SESSION, self.clock, draw=self._draw)
        self.recorder = Recorder(
            self.recorder._writer,
            feed.images,
            start_ns=0,
            grouping=Grouping(settings.group_size, settings.warm_groups),
        )
        detector = FailureDetector(self.ranks, 0)
        rows = SimpleNamespace(pending=(), idle=True, flush=lambda: None)
        supply = Supply(images, SimpleNamespace(settings=settings), images, rows)
        supply.hear()
        supply.attach(feed, self.recorder)
        pauses = Backoff(COORDINATOR_BACKOFF)
        pauses.pause = pauses.rest = self.wait
        loop = LoopSettings(
            credit=settings.messages,
            clock=self.clock,
            backoff=pauses,
            arrivals=self._arrivals,
            stop_reason=lambda: None,
            report=lambda: None,
        )
        self._received: list[Received | Sent] = []
        group = SimpleNamespace(transport=self, detector=detector, session=SESSION)
        ready = [ReadyRank(rank, state.kinds, "") for rank, state in self.ranks.items()]
        coordinator = Coordinator(self.scheduler, group, feed, self.recorder, supply, loop)
        return coordinator.run(ready)

    def clock(self) -> int:
        return self.now_ns

    def wait(self, at_most_ns: int | None = None) -> None:
        """Until something happens on a rank, at most so long."""
        limit_ns = FOREVER_NS if at_most_ns is None else self.now_ns + at_most_ns
        self.now_ns = min(limit_ns, self._heap[0][0] if self._heap else limit_ns)
        assert self.now_ns < FOREVER_NS, "nothing is to come"

    def poll(self) -> list[Received | Sent]:
        while self._heap and self._heap[0][0] <= self.now_ns:
            at_ns, _, _, call, argument = heapq.heappop(self._heap)
            call(at_ns, argument)
        found, self._received = self._received, []
        return found

    def buffer(self, nbytes: int) -> np.ndarray:
        return np.empty(nbytes, np.uint8)

    def send_task(self, rank: int, buffer: np.ndarray, nbytes: int, token: int | None) -> None:
        message = buffer[:nbytes]
        if read_header(message).type == CANCEL:
            for task in unpack_cancel(message):
                self._at(self.now_ns, RANK, self._cancelled, ev.Cancel(task, rank))
            return
        assert token is not None
        self._received.append(Sent(token, self.now_ns))
        out = self.scheduler.dispatch.tasks.out
        sends = [
            ev.Send(
                t.task,
                rank,
                t.kind,
                [ev.Item(*i) for i in t.items],
                out[t.task].group,
                out[t.task].attempt,
            )
            for t in unpack_tasks(message)[0]
        ]
        self._at(self.now_ns, RANK, self._arrives, sends)

    def drop(self, rank: int) -> None:
        raise AssertionError(f"rank {rank} is not lost")

    def _answer(self, at_ns: int, answer: tuple[int, Any]) -> None:
        rank, results = answer
        message = np.empty(4096, np.uint8)
        nbytes = pack_results(message, SESSION, results)
        self._received.append(Received(rank, message[:nbytes], self.now_ns))


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
    given = {"scheme": scheme, "side": 3, "straggler": "lognormal", **more}
    settings = RunSettings.from_mapping(given)
    simulated = rows_of(Simulation, settings)
    coordinated = rows_of(Coordinated, settings)
    assert len(simulated["images"]) == 900
    for table, rows in simulated.items():
        assert np.array_equal(rows, coordinated[table]), table
