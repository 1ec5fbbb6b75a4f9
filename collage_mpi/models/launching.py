"""Runs a network on arrays in host memory. On a GPU it uses pinned buffers, two streams, and a CUDA
graph for each batch size.

Most batches of a job have one image. Launching their hundred or so kernels takes longer than
running them, and a graph launches them all at once. The GPU computes one batch while the rank
copies the next batch and handles messages.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from collage_mpi.models.info import MOST_BEGUN, Computation

WARM_CALLS = 3  # before a capture, because libraries choose kernels and allocate on first calls
MOST_SIZES = 16  # batch sizes with a graph; further sizes run without one
MOST_PADDED = 2  # a graph serves batches down to its size divided by this

# Messages of CUDA, cuBLAS and cuDNN when they run out of memory outside torch's allocator.
NO_ROOM = ("CUDA error: out of memory", "CUDA out of memory", "STATUS_ALLOC_FAILED")

Forward = Callable[[Tensor], Tensor]  # (n, H, W, C) uint8 on the device -> outputs on the device
# Starts one call of the network: (n, H, W, C) uint8 -> outputs in host memory, which are valid
# until the next call starts.
KernelLauncher = Callable[[np.ndarray], Computation[Tensor]]


class DirectLauncher:
    """Calls the network without a graph, on any device."""

    def __init__(self, forward: Forward, device: torch.device) -> None:
        self._forward = forward
        self._device = device

    def __call__(self, batch: np.ndarray) -> Computation[Tensor]:
        return Computation(partial(self.outputs, batch))

    @torch.inference_mode()
    def outputs(self, batch: np.ndarray) -> Tensor:
        """The outputs in host memory, complete on return."""
        return self._forward(torch.from_numpy(batch).to(self._device)).cpu()  # .cpu() waits


class CudaGpu:
    """The operations of a GPU that a launcher needs. Tests replace it by a fake in CPU memory.

    Batches are copied to the GPU in one stream, and networks run in another.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._runs = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # One memory pool for all graphs: only one runs at a time, and its outputs are copied before
        # the next one runs.
        self._pool = torch.cuda.graph_pool_handle()

    def pinned(self, like: Tensor) -> Tensor:
        """Pinned host memory with the shape and dtype of `like`. Copies between pageable memory and
        the GPU would block this process.
        """
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def copying(self) -> AbstractContextManager[Any]:
        """A context in whose stream batches are copied to the GPU."""
        return torch.cuda.stream(self._copies)

    def running(self) -> AbstractContextManager[Any]:
        """A context in whose stream networks run, one after another."""
        return torch.cuda.stream(self._runs)

    def copy(self, to: Tensor, given: Tensor) -> None:
        """Copy asynchronously in the current stream."""
        to.copy_(given, non_blocking=True)

    def event(self) -> torch.cuda.Event:
        """An event after the work in the current stream so far."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event

    def capture(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Capture `work` as a graph. Returns a function that launches it, and its output tensor."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._runs):
            outputs = work()
        return graph.replay, outputs

    def catch_up(self) -> None:
        """Let the stream of networks wait for the default stream, in which the weights are
        prepared."""
        self._runs.wait_stream(torch.cuda.default_stream(self._device))


@dataclass(frozen=True)
class _HostBuffers:
    """The pinned buffers of one computation, while it is in progress."""

    given: Tensor  # (n, H, W, C) uint8
    found: Tensor  # outputs


class _Captured:
    """The graph and the buffers for one batch size.

    A batch is first copied to `_arrived`, because the graph may still be running on `_given` for
    the batch before.
    """

    def __init__(self, gpu: CudaGpu, forward: Forward, given: Tensor) -> None:
        """`given`: (n, H, W, C) uint8 on the device."""
        self._gpu = gpu
        gpu.catch_up()
        with gpu.running():
            for _ in range(WARM_CALLS):
                forward(given)
            self._given, self._arrived = given, torch.empty_like(given)
            self._taken = gpu.event()  # after the copy from `_arrived` to `_given`
        self._taken.synchronize()
        self._launch, self._found = gpu.capture(lambda: forward(given))
        buffers = (
            _HostBuffers(gpu.pinned(given), gpu.pinned(self._found)) for _ in range(MOST_BEGUN)
        )
        self._free = list(buffers)

    def begin(self, batch: np.ndarray) -> Computation[Tensor]:
        """Copy the batch to the GPU, run the graph and copy its output back."""
        gpu, buffers = self._gpu, self._free[-1]
        buffers.given[: len(batch)].copy_(torch.from_numpy(batch))  # the rest is padding
        with gpu.copying():
            self._taken.wait()
            gpu.copy(self._arrived, buffers.given)
            arrived = gpu.event()
        with gpu.running():
            arrived.wait()
            gpu.copy(self._given, self._arrived)
            self._taken = gpu.event()
            self._launch()
            gpu.copy(buffers.found, self._found)
            done = gpu.event()
        self._free.pop()

        def finish() -> Tensor:
            try:
                done.synchronize()  # durations include the GPU's work (C3)
            finally:
                self._free.append(buffers)
            return buffers.found[: len(batch)]

        return Computation(finish, partial(_has_ended, done))


def _has_ended(event: torch.cuda.Event) -> bool:
    try:
        return bool(event.query())  # type: ignore[no-untyped-call]
    except RuntimeError:  # the GPU has failed, and `synchronize` will raise
        return True


class GraphLauncher:
    """Runs the network on a GPU by CUDA graphs. A network that cannot be captured, such as a user's
    that looks at its values, runs without."""

    def __init__(self, forward: Forward, device: torch.device, gpu: CudaGpu) -> None:
        self._forward = forward
        self._device = device
        self._gpu = gpu
        self._plain = DirectLauncher(forward, device)
        self._captured: dict[int, _Captured] = {}
        self._most = MOST_SIZES  # 0 once a capture has failed

    @torch.inference_mode()
    def __call__(self, batch: np.ndarray) -> Computation[Tensor]:
        captured = self._captured_for(len(batch))
        if captured is None:
            if len(self._captured) >= self._most:
                return Computation(partial(self._called_plainly, batch))
            with self._gpu.running():
                given = torch.from_numpy(batch).to(self._device, copy=True)
            try:
                captured = self._captured[len(batch)] = _Captured(self._gpu, self._forward, given)
            except RuntimeError as error:
                if is_out_of_memory(error):
                    raise
                self._most = 0
                return Computation(partial(self._called_plainly, batch))
        return captured.begin(batch)

    def _captured_for(self, n: int) -> _Captured | None:
        """The smallest graph for at least n inputs, at most half of which would be padding; None if
        there is none. After a warm-up with 1, 2, 4, 8, ... a job needs no further graphs.
        """
        fitting = [size for size in self._captured if n <= size <= MOST_PADDED * n]
        return self._captured[min(fitting)] if fitting else None

    def _called_plainly(self, batch: np.ndarray) -> Tensor:
        with self._gpu.running():
            return self._plain.outputs(batch)


def make_launcher(forward: Forward, device: torch.device, compiles: bool) -> KernelLauncher:
    """The launcher for a device.

    Args:
        compiles: compile new kernels, which can take minutes.
    """
    if compiles:  # on a GPU, in this mode with CUDA graphs
        return DirectLauncher(torch.compile(forward, mode="reduce-overhead"), device)
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # shapes are few and fixed
        return GraphLauncher(forward, device, CudaGpu(device))
    return DirectLauncher(forward, device)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception was caused by a lack of GPU memory.

    torch has an error for this. But if there is no memory for a CUDA context or a library handle, a
    RuntimeError is raised, and an interrupted capture raises a further error on top.
    """
    found: BaseException | None = error
    while found is not None:
        text = str(found)
        if isinstance(found, torch.cuda.OutOfMemoryError):
            return True
        if isinstance(found, RuntimeError) and any(word in text for word in NO_ROOM):
            return True
        found = found.__cause__ or found.__context__
    return False
