"""Every way to run a network agrees with plain float32; GPU parts with a GPU made of memory."""

from __future__ import annotations

import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from importlib.resources import files
from typing import Any

import numpy as np
import pytest
from job_messages import WELCOME

from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import EnvironmentFault
from collage_mpi.job.networks import Networks
from collage_mpi.models import load_predictor
from collage_mpi.models.info import MOST_BEGUN, PLAIN, Loading, Tuning
from collage_mpi.shards import ShardSet

torch = pytest.importorskip("torch")


IMAGES = 180
DATA = files("collage_mpi") / "data"
WEIGHTS = {"single": "fashion_single.safetensors", "collage": "fashion_collage_side3.safetensors"}
# (precision, share of predictions that must be those of float32, mean difference of a score)
TOLERANCE = {"bfloat16": (0.98, 1e-3), "float16": (0.99, 2e-4), "float32": (1.0, 1e-6)}


@pytest.fixture(scope="module")
def inputs() -> dict[str, np.ndarray]:
    """The shipped networks' inputs, made of the demo's first images."""
    with ShardSet.open([str(DATA / "fashion_demo.h5")]) as shards:
        images, _ = shards.read(np.arange(IMAGES))
    encoder = Encoder(Grid(3, 28), (28, 28, 1))
    groups = images.reshape(-1, 9, 28, 28, 1)
    return {"single": images, "collage": np.stack([encoder.paste(list(g)) for g in groups])}


def predictor_of(kind: str, tuning: Tuning | None, device: str = "cpu") -> Any:
    return load_predictor(str(DATA / WEIGHTS[kind]), kind, Loading(tuning=tuning, device=device))


def agreement(kind: str, batch: np.ndarray, tuned: Any, size: int) -> tuple[float, float]:
    """(share of equal predictions, mean difference of a score) to plain float32."""
    plain = predictor_of(kind, None).predict(batch)
    parts = [tuned.predict(batch[at : at + size]).copy() for at in range(0, len(batch), size)]
    scores = np.concatenate(parts)  # (n, cells, classes)
    assert scores.dtype == np.float32
    same = (scores.argmax(axis=2) == plain.argmax(axis=2)).mean()
    return float(same), float(np.abs(scores - plain).mean())


@pytest.mark.parametrize("kind", ["single", "collage"])
@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_a_cpus_answers_are_those_of_float32(inputs: dict, kind: str, precision: str) -> None:
    tuned = predictor_of(
        kind,
        replace(PLAIN, precision=precision),
    )
    same, apart = agreement(kind, inputs[kind], tuned, 20)
    least, most = TOLERANCE[precision]
    assert same >= least
    assert apart <= most
    assert tuned.tuning.startswith(precision)


class Point:
    """An event of a stream in memory."""

    def __init__(self, gpu: MemoryGpu) -> None:
        self.gpu, self.reached = gpu, False

    def wait(self) -> None:
        self.gpu.put("wait", self.synchronize, lambda: self.reached)

    def query(self) -> bool:
        for _ in range(self.gpu.random.randrange(4)):
            self.gpu.step()
        return self.reached

    def synchronize(self) -> None:
        while not self.reached:
            assert self.gpu.step(), "the streams wait for each other"


class MemoryGpu:
    """What a CUDA GPU does, on the CPU: its two streams go on when somebody looks, in an order that
    a seed draws. A graph writes where it was captured to write. Host memory that a copy has yet to
    read must not be written."""

    def __init__(self, seed: int = 0) -> None:
        self.random = random.Random(seed)
        self.captured = self.launched = 0
        self.story: list[str] = []
        self.streams: dict[str, deque[Any]] = {"copies": deque(), "runs": deque()}
        self.current = "default"
        self.hosts: list[Any] = []

    def put(self, name: str, work: Callable[[], None], ready: Any = lambda: True) -> None:
        self.story.append(f"{self.current}: {name}")
        self.streams[self.current].append((work, ready))

    @torch.inference_mode()
    def step(self) -> bool:
        """Do the next work of a stream; False if there is none that may be done."""
        able = [each for each in self.streams.values() if each and each[0][1]()]
        if able:
            self.random.choice(able).popleft()[0]()
        return bool(able)

    @contextmanager
    def within(self, stream: str) -> Iterator[None]:
        before, self.current = self.current, stream
        yield
        self.current = before

    def copying(self) -> AbstractContextManager[None]:
        return self.within("copies")

    def running(self) -> AbstractContextManager[None]:
        return self.within("runs")

    def pinned(self, like: Any) -> Any:
        self.hosts.append(torch.full(like.shape, 77, dtype=like.dtype))
        return self.hosts[-1]

    def copy(self, to: Any, given: Any) -> None:
        host = any(each is given for each in self.hosts)
        before = given.clone() if host else None

        def work() -> None:
            assert before is None or torch.equal(before, given), "written while in flight"
            to.copy_(given)

        self.put("copy in" if host else "copy", work)

    def event(self) -> Point:
        point = Point(self)
        self.put("event", lambda: setattr(point, "reached", True))
        return point

    def catch_up(self) -> None:
        self.story.append("catch up")

    def capture(self, work: Callable[[], Any]) -> tuple[Callable[[], None], Any]:
        while self.step():  # a capture waits for all that is under way
            pass
        self.captured += 1
        self.story.append("capture")
        outputs = torch.full_like(work(), 55)

        def launch() -> None:
            self.launched += 1
            self.put("launch", lambda: outputs.copy_(work()))

        return launch, outputs


def graphed(gpu: MemoryGpu) -> Any:
    """The single network, as on a GPU."""
    from collage_mpi.models import predictor as predictors

    tuned = predictor_of("single", None)
    tuned.torch = tuned.launch = predictors.GraphLauncher(tuned.forward, torch.device("cpu"), gpu)
    return tuned


def test_a_graph_a_batch_size_and_the_same_answers(inputs: dict) -> None:
    gpu = MemoryGpu()
    tuned = graphed(gpu)
    batch = inputs["single"][:12]
    for size in (1, 4, 1):  # 4 is far from 1: padding would cost more than the capture
        same, apart = agreement("single", batch, tuned, size)
        assert (same, apart < 1e-6) == (1.0, True)
    assert gpu.captured == 2
    # weights are there, the first calls are over, then the capture, then copy, launch, copy
    assert gpu.story[:3] == ["catch up", "runs: event", "capture"]
    assert gpu.story[3:12] == [
        *("copies: wait", "copies: copy in", "copies: event"),
        *("runs: wait", "runs: copy", "runs: event", "runs: launch", "runs: copy", "runs: event"),
    ]
    assert gpu.launched == 12 + 3 + 12


@pytest.mark.parametrize("seed", range(4))
def test_two_batches_in_flight_give_each_its_own_answers(inputs: dict, seed: int) -> None:
    """Of equal sizes and of different ones, however the GPU's streams take turns."""
    gpu = MemoryGpu(seed)
    tuned, plain = graphed(gpu), predictor_of("single", None)
    images, begun, first = inputs["single"], deque(), 0
    for size in (1, 2, 2, 1, 2, 4, 3, 4, 2, 1, 1):
        batch = images[first : first + size]
        begun.append((batch, tuned.begin(batch)))
        first += size
        while len(begun) == MOST_BEGUN or (begun and gpu.random.random() < 0.2):
            given, computation = begun.popleft()
            computation.done()
            scores, _ = computation.finish()
            np.testing.assert_allclose(scores, plain.predict(given), atol=1e-6)
    for given, computation in begun:
        np.testing.assert_allclose(computation.finish()[0], plain.predict(given), atol=1e-6)
    assert gpu.captured == 3


def test_a_gpu_that_fails_says_so_when_the_answer_is_taken(
    inputs: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(point: Point) -> bool:
        raise RuntimeError("CUDA error: unspecified launch failure")

    tuned = graphed(MemoryGpu())
    computation = tuned.begin(inputs["single"][:1])
    monkeypatch.setattr(Point, "query", broken)
    monkeypatch.setattr(Point, "synchronize", broken)
    assert computation.done()
    with pytest.raises(RuntimeError, match="launch failure"):
        computation.finish()
    monkeypatch.undo()
    assert tuned.predict(inputs["single"][:1]).shape == (1, 1, 10)


def test_batch_sizes_beyond_the_most_are_called_plainly(
    inputs: dict, monkeypatch: pytest.MonkeyPatch
) -> None:
    from collage_mpi.models import predictor as predictors

    monkeypatch.setattr(predictors, "MOST_SIZES", 1)
    gpu = MemoryGpu()
    tuned = graphed(gpu)
    for size in (2, 3):
        assert agreement("single", inputs["single"][:6], tuned, size)[0] == 1.0
    assert gpu.captured == 1


def test_sizes_between_those_warmed_up_use_their_graphs(inputs: dict) -> None:
    gpu = MemoryGpu()
    tuned = graphed(gpu)
    for size in (1, 2, 4, 6):  # as a rank with --batch 6 does
        tuned.predict(inputs["single"][:size])
    for size in (3, 5, 6, 2, 1):
        same, apart = agreement("single", inputs["single"][:30], tuned, size)
        assert (same, apart < 1e-6) == (1.0, True)
    assert gpu.captured == 4


@pytest.mark.parametrize("batch", [1, 6])
def test_the_batch_that_is_chosen_has_its_graphs_before_the_job(inputs: dict, batch: int) -> None:
    """As those up to a batch that was given. So has each shorter message."""
    gpu = MemoryGpu()
    geometry = replace(WELCOME.geometry, image_shape=inputs["single"].shape[1:])
    told = replace(WELCOME, geometry=geometry, networks={"single": "w"})
    load = lambda *_: graphed(gpu)  # noqa: E731
    networks = Networks(replace(told, batch=batch), load, time.monotonic_ns, time.monotonic_ns)
    networks.warm_up()
    assert gpu.captured == {1: 1, 6: 4}[batch]  # 1; 2, 4, 6
    networks.measured("single", 13)  # of batch auto
    assert gpu.captured == {1: 5, 6: 6}[batch]  # 2, 4, 8, 13; 12, 13
    for size in range(1, 14):
        networks.service_ns("single", 1, size)
    assert gpu.captured == {1: 5, 6: 6}[batch]


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (torch.cuda.OutOfMemoryError("CUDA out of memory"), "fewer ranks on this GPU"),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), "fewer ranks on this"),
        (None, "no finite scores .*: no other precision helps"),
    ],
)
def test_what_a_device_refuses_is_told_before_the_rank_is_ready(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, says: str
) -> None:
    from collage_mpi.models.predictor import TorchPredictor

    def refuse(self: TorchPredictor, batch: Any) -> Any:
        if error is None:
            return torch.full((len(batch), 1, 10), float("nan"))
        raise error

    monkeypatch.setattr(TorchPredictor, "forward", refuse)
    with pytest.raises(EnvironmentFault, match=says):
        predictor_of("single", PLAIN)


def test_a_gpu_without_a_compiler_is_told_what_to_choose() -> None:
    from collage_mpi.models.predictor import told_if_it_does_not_fit

    tuned, asked = predictor_of("single", PLAIN), replace(PLAIN, runtime="compile")
    given = tuned.info, tuned.network, torch.device("cuda"), asked
    with (
        pytest.raises(EnvironmentFault, match="choose --runtime torch"),
        told_if_it_does_not_fit(*given),
    ):
        raise RuntimeError("no compiler")


def test_a_network_that_cannot_be_captured_runs_without_a_graph(inputs: dict) -> None:
    class NoCapture(MemoryGpu):
        def capture(self, work: Callable[[], Any]) -> Any:
            self.captured += 1
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    gpu = NoCapture()
    tuned = graphed(gpu)
    for size in (1, 4):
        assert agreement("single", inputs["single"][:8], tuned, size)[0] == 1.0
    assert gpu.captured == 1


def test_memory_that_runs_out_in_a_capture_is_seen_through_the_error_on_top() -> None:
    from collage_mpi.models.predictor import is_out_of_memory

    def capture() -> None:
        try:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error")

    with pytest.raises(RuntimeError, match="previous error") as caught:
        capture()
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("CUDA error: invalid device ordinal"))
    assert not is_out_of_memory(ValueError("CUDA error: out of memory"))


@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("CUDA error: out of memory", "no memory left for one more process"),
        ("CUDA error: invalid device ordinal", "check --device and CUDA_VISIBLE_DEVICES"),
    ],
)
def test_a_ranks_gpu_is_the_current_one_before_anything_is_put_on_it(
    monkeypatch: pytest.MonkeyPatch, error: str, says: str
) -> None:
    from collage_mpi.models.predictor import usable_device

    story: list[str] = []

    def zeros(size: int, device: Any) -> None:
        story.append(f"tensor on {device}")
        raise RuntimeError(error)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: story.append(f"current {device}"))
    monkeypatch.setattr(torch, "zeros", zeros)
    with pytest.raises(EnvironmentFault, match=says):
        usable_device("cuda:3")
    assert story == ["current cuda:3", "tensor on cuda:3"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("kind", ["single", "collage"])
@pytest.mark.parametrize("how", ["torch", "compile"])
@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_gpus_answers_are_those_of_float32(
    inputs: dict, kind: str, how: str, precision: str
) -> None:
    tuned = predictor_of(kind, Tuning(precision=precision, runtime=how), "cuda")
    for size in (1, 4):
        same, apart = agreement(kind, inputs[kind], tuned, size)
        least, most = TOLERANCE[precision]
        assert same >= least
        assert apart <= most
