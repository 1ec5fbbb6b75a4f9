"""A worker's loop against a scripted rank 0 and a clock that the test moves."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any
from weakref import ref

import numpy as np
import pytest
from fakes import MS, SESSION, SHAPE, Clock, FakeEndpoint, FakeMonitor
from job_messages import WELCOME

from collage_mpi.encoding.vectors import Extras, KeptColumn, layout_of, unpack
from collage_mpi.errors import DataFault, ExitCode
from collage_mpi.faults.tcp_link import Offer
from collage_mpi.job import networks
from collage_mpi.job.messages import (
    LEAVE_WAIT_S,
    Bye,
    Fault,
    Hello,
    Here,
    Measure,
    Measured,
    Rank0,
    Release,
    Start,
    Stop,
    Welcome,
)
from collage_mpi.job.worker import RING_SPARE, Worker
from collage_mpi.job.worker_steps import ENDED, READY
from collage_mpi.kinds import KIND
from collage_mpi.models.info import Geometry
from collage_mpi.models.null import NullPredictor
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.answers import ANSWERED, FAILED, SKIPPED, WireResult
from collage_mpi.mpi.tasks import WireTask
from collage_mpi.rows import ANSWERERS
from collage_mpi.system.backoff import WORKER_BACKOFF, Backoff
from collage_mpi.system.process_tree import ProcessId

TASK_BYTES = 4096
SIDE = 2
COLLAGE = (SIDE * SHAPE[0], SIDE * SHAPE[1], 1)


class OutOfMemoryError(RuntimeError):
    """Named as torch's."""


class Network(NullPredictor):
    """A null network that takes its time and may fail."""

    def __init__(self, kind: str, clock: Clock, service_ns: int = MS) -> None:
        super().__init__(kind, Geometry(SHAPE, SIDE, SHAPE[0], 10))
        self.clock, self.service_ns = clock, service_ns
        self.calls = 0
        self.sizes: list[int] = []
        self.most = 1 << 30  # inputs that fit
        self.refuses: int | None = None  # a class that it cannot bear to see
        self.error: Exception | None = None
        self.during = lambda: None
        self.spoil: dict[int, float] = {}  # cell -> what all its scores are

    def predict(self, batch: np.ndarray) -> np.ndarray:
        self.calls += 1
        self.clock.now_ns += self.service_ns
        self.during()
        self.sizes.append(len(batch))
        if self.error is not None:
            raise self.error
        if len(batch) > self.most:
            raise OutOfMemoryError(f"{len(batch)} are too many")
        if self.refuses is not None and (batch[:, 0, 0, 0] == self.refuses).any():
            raise ValueError(f"class {self.refuses}")
        scores = super().predict(batch)  # (n, cells, classes)
        for cell, value in self.spoil.items():
            scores[:, cell] = value
        return scores


class Bench:
    """A worker, what it is connected to, and a welcome that it has taken."""

    def __init__(
        self, kind: str = "single", *, start: bool = True, tolerant: bool = True, **welcome: Any
    ) -> None:
        self.clock = Clock()
        self.kind = kind
        self.endpoint = FakeEndpoint(rank=3)
        self.endpoint.fault_tolerant = tolerant
        self.network = Network(KIND[kind].network, self.clock)
        self.cpu_ns: Callable[[], int] = self.clock
        self.load_error: Exception | None = None
        self.monitor = FakeMonitor()
        self.worker = Worker(
            self.endpoint,
            self._load,
            monitor=self.monitor,
            clock=self.clock,
            cpu_clock=lambda: self.cpu_ns(),
            backoff=Backoff(WORKER_BACKOFF, self.clock.sleep),
        )
        self.welcome = replace(
            WELCOME,
            geometry=replace(WELCOME.geometry, image_shape=SHAPE),
            **{"networks": {kind: "null"}, **welcome},
        )
        if start:
            self.start()

    def get_ready(self) -> None:
        self.endpoint.tell(self.welcome)
        self.run()
        self.network.calls = 0

    def start(self) -> None:
        self.get_ready()
        if self.worker.steps.state == READY:
            self.endpoint.tell(Start({"collage": 1.0}, {}, 1, TASK_BYTES, wire.UP_BYTES))
            self.run()
            self.network.calls = 0

    def _load(self, spec: str, kind: str, welcome: Welcome) -> Network:
        if self.load_error is not None:
            raise self.load_error
        assert (spec, kind) == (self.welcome.networks[self.kind], self.kind)
        return self.network

    def run(self) -> None:
        """Until it has nothing to do."""
        while self.worker.steps.state != ENDED and self.worker.step():
            pass

    def single(self, task: int, pixel: int = 0, group: int = 0) -> WireTask:
        image = np.full(SHAPE, pixel, np.uint8)
        sent = WireTask(task, "single", ((task, 0),))
        self.endpoint.give([sent], [image])
        return sent

    @property
    def results(self) -> list[WireResult]:
        return self.endpoint.results()


def test_it_says_who_it_is_once_it_is_warm():
    bench = Bench()
    (hello,) = bench.endpoint.told()
    assert isinstance(hello, Hello)
    assert (hello.kinds, hello.devices) == (("single",), ("cpu",))
    assert hello.fingerprints == {"single": bench.network.fingerprint}
    assert hello.tuning == {"single": bench.network.tuning}
    assert hello.service_ns == {"single": MS}
    assert (hello.host, hello.pid) == (socket.gethostname(), os.getpid())
    assert bench.endpoint.ring == (4096, 2 + RING_SPARE)


def test_what_it_cannot_load_it_tells_rank_0():
    bench = Bench(start=False)
    bench.load_error = DataFault("w.safetensors: damaged")
    bench.start()
    (fault,) = bench.endpoint.told()
    assert isinstance(fault, Fault)
    assert fault.exit_code == ExitCode.DATA
    assert bench.endpoint.ring is None


def test_a_defect_while_loading_ends_the_rank():
    bench = Bench(start=False)
    bench.load_error = RuntimeError("boom")
    with pytest.raises(RuntimeError, match="boom"):
        bench.start()


def test_each_image_gets_its_own_class():
    bench = Bench()
    for task, pixel in enumerate([3, 1, 4]):
        bench.single(task, pixel)
    bench.run()
    assert [(r.task, r.cells[0].label) for r in bench.results] == [(0, 3), (1, 1), (2, 4)]
    assert all(r.compute_ns == MS for r in bench.results)


def test_each_named_cell_of_a_collage_gets_its_own_class():
    bench = Bench("collage")
    collage = np.zeros(COLLAGE, np.uint8)
    for cell, pixel in enumerate([9, 8, 7, 6]):
        row, column = divmod(cell, SIDE)
        collage[row * SHAPE[0], column * SHAPE[0]] = pixel
    items = ((10, 3), (11, 0), (12, 2))
    bench.endpoint.give([WireTask(5, "collage", items)], [collage])
    bench.run()
    (result,) = bench.results
    assert [cell.label for cell in result.cells] == [6, 9, 7]


def test_a_batch_of_tasks_is_one_predict_and_one_message():
    bench = Bench()
    tasks = [WireTask(t, "single", ((t, 0),)) for t in range(3)]
    bench.endpoint.give(tasks, [np.full(SHAPE, t + 5, np.uint8) for t in range(3)])
    bench.endpoint.cancel(1)
    bench.run()
    assert bench.network.calls == 1
    assert {r.task: r.status for r in bench.results} == {
        0: ANSWERED,
        1: SKIPPED,
        2: ANSWERED,
    }
    labels = {r.task: r.cells[0].label for r in bench.results if r.cells}
    assert labels == {0: 5, 2: 7}
    assert len(bench.endpoint.sent) == 2  # the hello and this


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA error"), ValueError("x" * 5000), MemoryError()]
)
def test_a_network_that_raises_fails_its_task_not_the_job(error):
    bench = Bench()
    bench.network.error = error
    bench.single(0)
    bench.run()
    bench.network.error = None
    bench.single(1, 2)
    bench.run()
    failed, fine = bench.results
    assert failed.status == FAILED
    assert type(error).__name__ in failed.reason
    assert fine.cells[0].label == 2


@pytest.mark.parametrize("kind", ["single", "stage1"])
@pytest.mark.parametrize(
    ("most", "sizes"), [(1, [3, 1, 2, 1, 1]), (2, [3, 1, 2]), (1 << 30, [3, 1, 2])]
)
def test_a_task_whose_batch_raises_is_run_in_halves(kind, most, sizes):
    """Without a record only of the image that the network cannot bear."""
    bench = Bench(kind)
    bench.network.most, bench.network.refuses = most, 5
    bench.network.runtime = ANSWERERS[3]
    pixels = np.zeros((3, *SHAPE), np.uint8)
    pixels[:, 0, 0, 0] = [5, 4, 6]
    items = tuple((image, image) for image in range(3))
    bench.endpoint.give([WireTask(0, kind, items)], [pixels])
    bench.network.sizes.clear()
    bench.run()
    (result,) = bench.results
    assert (result.status, result.runtime) == (ANSWERED, 3)
    assert [cell and cell.label for cell in result.cells] == [None, 4, 6]
    assert bench.network.sizes == sizes
    bench.network.error = RuntimeError("CUDA error")
    bench.endpoint.give([WireTask(1, kind, items)], [pixels])
    bench.run()
    assert bench.results[1].status == FAILED
    assert "CUDA error" in bench.results[1].reason


def test_scores_of_a_wrong_shape_fail_the_task():
    bench = Bench("collage")
    bench.network.predict = lambda batch: np.ones((1, 1, 10), np.float32)
    items = ((0, 0), (1, 3))
    bench.endpoint.give([WireTask(0, "collage", items)], [np.zeros(COLLAGE, np.uint8)])
    bench.run()
    assert bench.results[0].status == FAILED


def test_tasks_wait_for_the_start():
    """Start and tasks come on two channels: a task may overtake."""
    bench = Bench(start=False)
    bench.endpoint.tell(bench.welcome)
    bench.run()
    bench.single(0, 4)
    bench.run()
    assert bench.results == []
    bench.endpoint.tell(Start({"collage": 2.0}, {}, 1, TASK_BYTES, wire.UP_BYTES))
    bench.run()
    assert bench.results[0].cells[0].label == 4


def test_measure_is_answered_with_the_shortest_time_and_the_usual_processor_time():
    bench = Bench(start=False)
    bench.get_ready()
    took = iter((9, 5, 2, 2, 3))  # ms of the clock; of the processor always one
    bench.network.during = lambda: bench.clock.sleep((next(took) - 1) * MS / 1e9)
    bench.cpu_ns = lambda: MS * bench.network.calls
    bench.endpoint.tell(Measure("single", 1))
    bench.run()
    assert bench.endpoint.told()[-1] == Measured(2 * MS, MS)
    assert bench.network.calls == 5


def test_a_batch_that_the_device_has_no_room_for_is_told_when_it_is_measured(monkeypatch):
    given_back: list[int] = []
    monkeypatch.setattr(networks, "give_memory_back", lambda: given_back.append(1))
    bench = Bench(start=False)
    bench.get_ready()
    bench.network.most = 4
    bench.endpoint.tell(Measure("single", 8))
    bench.endpoint.tell(Measure("single", 4))
    bench.run()
    assert [told.fits for told in bench.endpoint.told()[-2:]] == [False, True]
    assert len(given_back) == 2


def test_on_a_gpu_there_is_no_processor_time_to_tell():
    bench = Bench(start=False)
    bench.get_ready()
    bench.network.device = "cuda:0"
    bench.endpoint.tell(Measure("single", 1))
    bench.run()
    assert bench.endpoint.told()[-1].cpu_ns is None


@pytest.mark.parametrize(("took_ms", "calls"), [(8000, 2), (60, 2), (45, 3), (20, 5)])
def test_a_slow_network_is_measured_by_few_calls(took_ms, calls):
    """All other ranks wait meanwhile, and rank 0 waits for no more than two minutes."""
    bench = Bench(start=False)
    bench.get_ready()
    bench.network.service_ns = took_ms * MS
    bench.endpoint.tell(Measure("single", 1))
    bench.run()
    assert bench.endpoint.told()[-1].service_ns == took_ms * MS
    assert bench.network.calls == calls


def test_messages_of_another_session_are_dropped():
    bench = Bench()
    image = np.zeros(SHAPE, np.uint8)
    task = WireTask(0, "single", ((0, 0),))
    bench.endpoint.give([task], [image], session=SESSION - 1)
    bench.endpoint.cancel(0, session=SESSION - 1)
    bench.run()
    assert bench.results == []
    bench.endpoint.give([task], [image])
    bench.run()
    assert bench.results[0].status == ANSWERED


def test_stop_is_acknowledged_and_its_code_is_the_rank_s():
    bench = Bench(start=False)
    bench.endpoint.tell(Stop(3), session=0)  # before any welcome
    assert bench.worker.serve() == 3
    assert bench.endpoint.told() == [Bye()]


def test_it_waits_for_a_coordinator_that_is_stopped_meanwhile_for_a_bounded_time():
    bench = Bench(start=False, tolerant=False)
    bench.endpoint.tell(Stop(3), session=0)
    assert bench.worker.serve() == 3
    assert bench.clock.now_ns / 1e9 == pytest.approx(LEAVE_WAIT_S, abs=2)


def test_rank_0_is_watched_until_it_says_stop():
    bench = Bench(start=False)
    rank_0 = Rank0("node0", ProcessId("boot ns", 5, 7), Offer(("node0", "10.0.0.1"), 4000, "x"))
    bench.endpoint.tell(rank_0, session=0)
    bench.run()
    assert bench.monitor.met == [("node0", rank_0.process, rank_0.tcp_link)]
    assert bench.endpoint.told() == [Here()]
    assert not bench.monitor.released
    bench.endpoint.tell(Stop(0), session=0)
    bench.worker.serve()
    assert bench.monitor.released


def test_an_idle_rank_looks_about_a_thousand_times_a_second():
    assert polls_in(Bench(), 1_000) < 1100


def polls_in(bench: Bench, ms: int) -> int:
    """How often an idle worker polls in this time."""
    polls = []
    bench.endpoint.at_poll = lambda: polls.append(1)
    until_ns = bench.clock.now_ns + ms * MS
    while bench.clock.now_ns < until_ns:
        assert not bench.worker.step()
        bench.worker.backoff.pause()
    return len(polls)


def test_a_rank_that_is_let_go_drops_its_network_and_sleeps():
    bench = Bench(start=False)
    load = bench.worker._load = partial(bench.worker._load)  # as if it held the network
    bench.start()
    held = ref(bench.network), ref(load)
    del bench.network, load
    bench.endpoint.tell(Release())
    bench.run()
    assert [each() for each in held] == [None, None]
    assert polls_in(bench, 60_000) < 1500


def test_too_few_pixels_are_a_defect_of_the_wire():
    bench = Bench()
    bench.endpoint.give([WireTask(0, "single", ((0, 0),))], [np.zeros(3, np.uint8)])
    with pytest.raises(wire.WireFault, match="fewer pixels"):
        bench.run()


def test_a_damaged_message_is_a_wire_fault():
    bench = Bench()
    bench.endpoint.inbox.append(np.zeros(100, np.uint8))
    with pytest.raises(wire.WireFault):
        bench.run()


@pytest.mark.parametrize(
    "error",
    [
        OutOfMemoryError("CUDA out of memory"),
        RuntimeError("boom"),
        MemoryError("full"),
        SystemExit(7),
    ],
)
def test_what_a_network_raises_is_the_reason_of_its_task_s_failure(error):
    bench = Bench()
    bench.network.error = error
    bench.single(0)
    bench.run()
    bench.network.error = None
    bench.single(1, pixel=6)
    bench.run()
    failed, answered = bench.results
    assert failed.status == FAILED
    assert failed.reason == f"{type(error).__name__}: {error}"
    assert answered.cells[0].label == 6


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_scores_that_are_not_finite_fail_the_task(value):
    bench = Bench()
    bench.network.spoil = {0: value}
    bench.single(0)
    bench.run()
    (failed,) = bench.results
    assert failed.status == FAILED
    assert "not finite" in failed.reason


@pytest.mark.parametrize("spoilt", [1, 4])
def test_a_collage_fails_when_no_cell_of_it_is_finite(spoilt):
    bench = Bench("collage")
    bench.network.spoil = dict.fromkeys(range(spoilt), np.nan)
    items = tuple((cell, cell) for cell in range(4))
    bench.endpoint.give([WireTask(0, "collage", items)], [np.zeros(COLLAGE, np.uint8)])
    bench.run()
    (result,) = bench.results
    if spoilt == 4:
        assert result.status == FAILED
    else:
        assert [cell is None for cell in result.cells] == [True, False, False, False]


@pytest.mark.parametrize("moment", ["load", "warm-up"])
def test_a_device_that_fails_at_the_start_is_told_to_rank_0(moment):
    bench = Bench(start=False)
    error = OutOfMemoryError("CUDA out of memory")
    if moment == "load":
        bench.load_error = error
    else:
        bench.network.error = error
    bench.endpoint.tell(bench.welcome)
    bench.run()
    (fault,) = bench.endpoint.told()
    assert isinstance(fault, Fault)
    assert fault.exit_code == ExitCode.ENVIRONMENT
    assert "OutOfMemoryError: CUDA out of memory" in fault.message


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("can't start new thread")])
def test_a_limit_of_the_machine_at_the_start_is_told_to_rank_0(error):
    bench = Bench(start=False)
    bench.load_error = error
    bench.endpoint.tell(bench.welcome)
    bench.run()
    (fault,) = bench.endpoint.told()
    assert fault.exit_code == ExitCode.ENVIRONMENT
    assert fault.message.startswith(("This process has no memory left", "No further thread"))


def test_a_defect_at_the_start_is_no_fault_of_the_device():
    bench = Bench(start=False)
    bench.load_error = RuntimeError("boom")
    bench.endpoint.tell(bench.welcome)
    with pytest.raises(RuntimeError, match="boom"):
        bench.run()


def test_what_a_users_own_code_raises_at_the_start_is_told_to_rank_0():
    bench = Bench(start=False, networks={"single": "own.py:network"})
    bench.network.during = lambda: bench.network.sizes[2:] and {}["gone"]
    bench.endpoint.tell(bench.welcome)
    bench.run()
    (fault,) = bench.endpoint.told()
    assert fault.exit_code == ExitCode.DATA
    assert "own.py:network: called with noise of uint8 (1, 4, 4, 1) it raised" in fault.message
    assert "KeyError: 'gone'" in fault.message


def test_a_users_network_is_tried_with_noise_as_blank_images_may_be_refused():
    bench = Bench(start=False, batch=4, networks={"single": "own.py:network"})
    bench.network.refuses = 0
    bench.start()
    assert bench.endpoint.told()


# ---- batches ----------------------------------------------------------------


def batch_of(bench: Bench, pixels: list[int], group: int = 0) -> None:
    tasks = [WireTask(t, "single", ((t, 0),)) for t in range(len(pixels))]
    bench.endpoint.give(tasks, [np.full(SHAPE, pixel, np.uint8) for pixel in pixels])


def test_batches_up_to_the_largest_are_warm_before_the_rank_is_ready():
    bench = Bench(start=False, batch=6)
    bench.start()
    assert bench.network.sizes == [
        1,
        1,
        1,
        1,
        1,
        1,
        2,
        4,
        6,
    ]  # three dummies, three timed, batches
    (hello,) = bench.endpoint.told()
    assert hello.longest_ns == MS


def test_a_batch_that_does_not_fit_the_device_is_told_with_what_fits():
    bench = Bench(start=False, batch=16)
    bench.network.most = 5
    bench.endpoint.tell(bench.welcome)
    bench.run()
    (fault,) = bench.endpoint.told()
    assert fault.exit_code == ExitCode.ENVIRONMENT
    assert "batch of 8" in fault.message
    assert "--batch 4" in fault.message


def test_one_bad_image_fails_its_task_alone():
    bench = Bench(batch=4)
    bench.network.refuses = 7
    batch_of(bench, [3, 7, 5, 1])
    bench.run()
    assert bench.network.calls == 1 + 4
    by_task = {r.task: r for r in bench.results}
    assert [by_task[t].status for t in range(4)] == [
        ANSWERED,
        FAILED,
        ANSWERED,
        ANSWERED,
    ]
    assert by_task[1].reason == "ValueError: class 7"
    assert [by_task[t].cells[0].label for t in (0, 2, 3)] == [3, 5, 1]
    assert {r.compute_ns for r in bench.results if r.cells} == {5 * MS}  # what they waited for
    assert len(bench.endpoint.sent) == 2  # the hello and this


def test_a_batch_that_does_not_fit_any_more_is_run_in_halves():
    bench = Bench(batch=4)
    bench.network.most = 2
    batch_of(bench, [3, 7, 5])
    bench.run()
    assert [r.status for r in bench.results] == [ANSWERED] * 3


def test_one_network_without_finite_scores_in_a_batch_fails_alone():
    bench = Bench(batch=2)
    plain = bench.network.predict

    def predict(batch: np.ndarray) -> np.ndarray:
        scores = plain(batch)
        scores[0] = np.nan
        return scores

    bench.network.predict = predict
    batch_of(bench, [3, 4])
    bench.run()
    assert [r.status for r in bench.results] == [FAILED, ANSWERED]


def test_a_skipped_task_does_not_lengthen_its_batch():
    bench = Bench(batch=2)
    batch_of(bench, [3, 4])
    bench.endpoint.cancel(0)
    bench.run()
    assert [r.status for r in bench.results] == [SKIPPED, ANSWERED]
    assert bench.network.sizes[-1] == 1


def test_answers_that_fill_more_than_a_message_go_in_several():
    bench = Bench(batch=64)
    bench.network.error = ValueError("x" * 600)
    batch_of(bench, [1] * 64)
    bench.run()
    assert [r.task for r in bench.results] == list(range(64))
    assert len(bench.endpoint.sent) > 2
    assert all(len(message) <= wire.UP_BYTES for message in bench.endpoint.sent)


def test_a_batch_is_measured_as_one():
    bench = Bench(start=False, batch=4)
    bench.get_ready()
    bench.endpoint.tell(Measure("single", 4))
    bench.run()
    assert set(bench.network.sizes[-5:]) == {4}
    assert bench.endpoint.told()[-1].service_ns == MS


def group_batch(bench: Bench, task: int, pixels: list[int], group: int = 0) -> None:
    """Images of a group, of which the first is missing, as a stage1 rank gets them."""
    items = tuple((10 * task + i, i + 1) for i in range(len(pixels)))
    images = np.stack([np.full(SHAPE, pixel, np.uint8) for pixel in pixels])
    bench.endpoint.give([WireTask(task, "stage1", items)], [images])


def test_a_group_as_a_batch_is_one_predict_and_each_image_has_its_own_class():
    bench = Bench("stage1", batch=8)
    group_batch(bench, 1, [3, 1, 4])
    bench.run()
    (result,) = bench.results
    assert bench.network.sizes[-1] == 3
    assert [cell.label for cell in result.cells] == [3, 1, 4]


def test_a_rank_of_a_stage_whose_device_takes_no_group_says_how_many_fit():
    bench = Bench("stage1", start=False, batch=9)
    bench.network.most = 4
    bench.start()
    (fault,) = bench.endpoint.told()
    assert "the stage1 network with a batch of 8 " in fault.message
    assert fault.message.endswith("a batch of 4 fits")


def kept_by(bench: Bench) -> np.ndarray:
    """The record of each image of the first answer."""
    layout = layout_of(bench.welcome.extras.columns(10))
    return unpack(layout, bench.results[0].vectors)


def test_what_is_kept_of_a_group_as_a_batch_is_of_each_image():
    extras = Extras(top_k=1, save="none")
    bench = Bench("stage1", extras=extras, batch=8)
    group_batch(bench, 1, [3, 1, 4])
    bench.run()
    assert kept_by(bench)["top_classes"].tolist() == [[3], [1], [4]]


def test_no_vectors_travel_unless_something_is_kept():
    bench = Bench()
    bench.single(1)
    bench.run()
    assert bench.results[0].vectors is None


def test_the_best_classes_travel_with_a_single_answer_where_they_are_kept():
    extras = Extras(top_k=3, save="scores")
    bench = Bench(extras=extras)
    bench.single(1, pixel=7)
    bench.run()
    kept = kept_by(bench)
    assert kept["top_classes"].tolist() == [[7, 0, 1]]  # of equal scores the lowest first
    assert kept["top_scores"].tolist() == [[1, 0, 0]]
    assert kept["scores"].tolist() == [[0] * 7 + [1, 0, 0]]


def test_a_collage_answer_has_a_vector_for_each_of_its_images_and_no_blank_cell():
    extras = Extras(top_k=1, save="none")
    bench = Bench("collage", extras=extras)
    collage = np.zeros(COLLAGE, np.uint8)
    px = SHAPE[0]
    for cell in range(SIDE**2):
        row, column = divmod(cell, SIDE)
        collage[row * px, column * px] = 5 + cell
    items = ((11, 3), (12, 1))
    bench.endpoint.give([WireTask(1, "collage", items)], [collage])
    bench.run()
    kept = kept_by(bench)
    assert kept["top_classes"].tolist() == [[8], [6]]


def test_embeddings_of_a_batch_stay_with_their_images():
    bench = Bench(start=False, batch=3, extras=Extras(top_k=None, save="embeddings"))
    bench.network.columns = (KeptColumn("embedding", "<f4", (2,)),)

    def answer(batch):
        corners = batch[:, 0, 0, 0].astype(np.float32)
        return bench.network.predict(batch), {"embedding": np.stack([corners, -corners], axis=1)}

    bench.network.answer = answer
    bench.start()
    assert bench.endpoint.told()[0].columns == bench.network.columns
    batch_of(bench, [4, 9, 2])
    bench.run()
    vectors = [result.vectors.tolist() for result in bench.results]
    assert vectors == [[[4, -4]], [[9, -9]], [[2, -2]]]


def test_of_a_mapped_batch_that_raises_each_image_has_its_own_outputs():
    bench = Bench(start=False, batch=3, extras=Extras(top_k=None, save="outputs"))
    bench.network.columns = (KeptColumn("twice", "<u2", (2,)),)

    def answer(batch):
        corners = batch[:, 0, 0, 0].astype(np.uint16)
        return bench.network.predict(batch), {"twice": np.stack([2 * corners] * 2, axis=1)}

    bench.network.answer = answer
    bench.start()
    bench.network.refuses = 9
    batch_of(bench, [4, 9, 2])
    bench.run()
    assert [result.status for result in bench.results] == [ANSWERED, FAILED, ANSWERED]
    assert bench.results[1].reason == "ValueError: class 9"
    layout = layout_of(bench.network.columns)
    kept = [unpack(layout, bench.results[place].vectors)["twice"].tolist() for place in (0, 2)]
    assert kept == [[[8, 8]], [[4, 4]]]


def test_halves_of_a_task_with_outputs_of_different_lengths_are_joined():
    bench = Bench(start=False, batch=3, extras=Extras(top_k=None, save="outputs"))
    bench.network.columns = (KeptColumn("boxes", "<f4", (None,), 64),)

    def answer(batch):
        corners = batch[:, 0, 0, 0].tolist()
        return bench.network.predict(batch), {"boxes": [np.arange(n) for n in corners]}

    bench.network.answer = answer
    bench.start()
    bench.network.refuses = 9
    pixels = np.zeros((4, *SHAPE), np.uint8)
    pixels[:, 0, 0, 0] = [9, 1, 4, 2]
    items = tuple((image, image) for image in range(4))
    bench.endpoint.give([WireTask(0, "single", items)], [pixels])
    bench.run()
    kept = unpack(layout_of(bench.network.columns), bench.results[0].vectors)["boxes"]
    assert [each.tolist() for each in kept] == [[], [0], [0, 1, 2, 3], [0, 1]]
