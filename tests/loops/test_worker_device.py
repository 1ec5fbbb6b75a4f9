"""A worker whose network runs on a device: the next batch is begun while the device computes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from fakes import MS, Clock
from test_worker import Bench, Network

from collage_mpi.job.messages import End, Stop
from collage_mpi.job.worker import LOOK_NS
from collage_mpi.models.info import MOST_BEGUN, Answer, Computation
from collage_mpi.mpi.answers import ANSWERED, FAILED

HOST_NS = MS // 10  # to unpack a message and hand its batch to the device


class OnDevice(Network):
    """Batches are computed one after another by a device, which takes `service_ns` for each."""

    def __init__(self, kind: str, clock: Clock) -> None:
        super().__init__(kind, clock, 0)
        self.takes_ns, self.free_ns = MS, 0
        self.story: list[str] = []
        self.at_begin: Callable[[], None] = lambda: None
        self.fails_at = ""

    def begin(self, batch: np.ndarray) -> Computation[Answer]:
        assert self.story.count("begin") - self.story.count("finish") < MOST_BEGUN
        self._fail("begin")
        self.story.append("begin")
        self.at_begin()
        self.clock.now_ns += HOST_NS
        until_ns = self.free_ns = max(self.free_ns, self.clock.now_ns) + self.takes_ns
        return Computation(
            partial(self._finish, batch, until_ns), lambda: self.clock.now_ns >= until_ns
        )

    def _fail(self, at: str) -> None:
        if at == self.fails_at:
            raise RuntimeError("CUDA error")

    def _finish(self, batch: np.ndarray, until_ns: int) -> Answer:
        self.story.append("finish")
        self._fail("finish")
        self.clock.now_ns = max(self.clock.now_ns, until_ns)
        return self.answer(batch)


class DeviceBench(Bench):
    """A worker with such a network, which has begun nothing yet."""

    def __init__(self, **welcome: object) -> None:
        super().__init__(start=False, **welcome)
        self.network = OnDevice("single", self.clock)
        self.start()
        self.network.story.clear()

    @property
    def story(self) -> str:
        """b for a batch that is begun, f for one that is finished, a for its answer."""
        return "".join(self.network.story).replace("begin", "b").replace("finish", "f")


def test_a_batch_that_waits_is_begun_before_the_first_is_finished():
    bench = DeviceBench()
    for task, pixel in enumerate([3, 1, 4, 1]):
        bench.single(task, pixel)
    start_ns = bench.clock.now_ns
    bench.run()
    assert bench.story == "bbfbfbff"
    assert [(r.task, r.cells[0].label) for r in bench.results] == [(0, 3), (1, 1), (2, 4), (3, 1)]
    assert bench.clock.now_ns - start_ns == HOST_NS + 4 * MS, "the device had no pause"


def test_no_service_time_counts_the_time_of_the_batch_before_it():
    bench = DeviceBench()
    for task in range(3):
        bench.single(task)
    bench.run()
    assert [r.compute_ns for r in bench.results] == [HOST_NS + MS, MS, MS]
    bench.clock.now_ns += 5 * MS  # what is idle counts for nobody
    bench.single(3)
    bench.run()
    assert 0 <= bench.results[-1].compute_ns - HOST_NS - MS < LOOK_NS


def test_a_batch_that_comes_while_the_device_computes_is_begun_then():
    bench = DeviceBench()
    bench.single(0)
    due_ns = bench.clock.now_ns + MS // 2

    def come() -> None:
        if bench.clock.now_ns >= due_ns and "1" not in came:
            came.append("1")
            bench.single(1)

    came: list[str] = []
    bench.endpoint.at_poll = come
    begun_ns: list[int] = []
    bench.network.at_begin = lambda: begun_ns.append(bench.clock.now_ns)
    bench.run()
    assert bench.story == "bbff"
    assert begun_ns[1] - due_ns <= LOOK_NS
    assert [r.compute_ns for r in bench.results] == [HOST_NS + MS, MS]


@pytest.mark.parametrize("last", [End(), Stop(6)])
def test_what_was_begun_is_answered_before_the_session_ends(last):
    bench = DeviceBench()
    for task in range(4):
        bench.single(task)
    bench.network.at_begin = lambda: (
        bench.endpoint.tell(last) if bench.network.story == ["begin"] * 2 else None
    )
    bench.run()
    assert [r.task for r in bench.results] == [0, 1]
    assert bench.story == "bbff"
    assert bench.worker.session is None


@pytest.mark.parametrize("at", ["begin", "finish"])
def test_a_batch_that_raises_fails_its_task_alone(at: str):
    bench = DeviceBench()
    for task, pixel in enumerate([3, 1, 4, 1]):
        bench.single(task, pixel)
    bench.network.fails_at, send = at, bench.endpoint.send

    def first_sent(buffer: np.ndarray, nbytes: int) -> None:
        bench.network.fails_at = ""
        send(buffer, nbytes)

    bench.endpoint.send = first_sent
    bench.run()
    assert [r.task for r in bench.results] == [0, 1, 2, 3]
    assert [r.status for r in bench.results][::3] == [FAILED, ANSWERED]
    assert "CUDA error" in bench.results[0].reason
