"""Runs a network on host bytes and returns host outputs. On a GPU it uses pinned buffers, two
streams for the rank, and a CUDA graph for each batch size.

The job mostly sends batches of one. Launching the hundred or so kernels for it takes longer than
running them; a graph launches them all at once. The GPU computes one batch while the rank copies
the next one, and unpacks and packs messages.
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

WARM_CALLS = 3  # before a capture: libraries choose their kernels, and allocate, on first calls
MOST_SIZES = 16  # batch sizes with buffers and a graph of their own; others are called plainly
MOST_PADDED = 2  # a graph serves batches down to this part of its size

Forward = Callable[[Tensor], Tensor]  # (n, H, W, C) uint8 on the device -> outputs there
# Begins one call of the network: (n, H, W, C) uint8 -> outputs on the host, valid until the next
# call is begun.
KernelLauncher = Callable[[np.ndarray], Computation[Tensor]]


class DirectLauncher:
    """Calls the network directly, on the CPU, or kernel by kernel on any device."""

    def __init__(self, forward: Forward, device: torch.device) -> None:
        self._forward = forward
        self._device = device

    def __call__(self, batch: np.ndarray) -> Computation[Tensor]:
        return Computation(partial(self.outputs, batch))

    @torch.inference_mode()
    def outputs(self, batch: np.ndarray) -> Tensor:
        """The outputs, complete."""
        return self._forward(torch.from_numpy(batch).to(self._device)).cpu()  # .cpu() waits


class CudaGpu:
    """What a launcher needs of a GPU; tests replace it by one in CPU memory.

    This rank's batches are copied to it in one stream and run in another.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._runs = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # One pool for all graphs: one runs at a time, and its outputs are copied before the next.
        self._pool = torch.cuda.graph_pool_handle()

    def pinned(self, like: Tensor) -> Tensor:
        """Page-locked host memory with the shape and dtype of `like`. A copy between other host
        memory and the GPU would make this process wait.
        """
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def copying(self) -> AbstractContextManager[Any]:
        """Work inside goes to the stream of copies to the GPU."""
        return torch.cuda.stream(self._copies)

    def running(self) -> AbstractContextManager[Any]:
        """Work inside goes to the stream in which networks run, one after another."""
        return torch.cuda.stream(self._runs)

    def copy(self, to: Tensor, given: Tensor) -> None:
        """Copy in the current stream; this process does not wait."""
        to.copy_(given, non_blocking=True)

    def event(self) -> torch.cuda.Event:
        """The current stream's work so far, for which another stream can wait, or this process."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        return event

    def capture(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Record `work` as a graph: (launch it, the tensor it writes)."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._runs):
            outputs = work()
        return graph.replay, outputs

    def catch_up(self) -> None:
        """Let the rank's stream wait for the default stream, where the weights are prepared.

        torch's streams do not wait for the default stream by themselves.
        """
        self._runs.wait_stream(torch.cuda.default_stream(self._device))


@dataclass(frozen=True)
class _HostBuffers:
    """Of one computation, from when it is begun until it is finished; both pinned."""

    given: Tensor  # (n, H, W, C) uint8
    found: Tensor


class _Captured:
    """One batch size: its graph, the graph's input and output, and the buffers around them.

    A batch lies in `arrived` while the graph may still run on `given` for the batch before it.
    """

    def __init__(self, gpu: CudaGpu, forward: Forward, given: Tensor) -> None:
        """`given`: (n, H, W, C) uint8 on the device."""
        self._gpu = gpu
        gpu.catch_up()
        with gpu.running():
            for _ in range(WARM_CALLS):
                forward(given)
            self._given, self._arrived = given, torch.empty_like(given)
            self._taken = gpu.event()  # what has arrived is in `given`
        self._taken.synchronize()
        self._launch, self._found = gpu.capture(lambda: forward(given))
        buffers = (
            _HostBuffers(gpu.pinned(given), gpu.pinned(self._found)) for _ in range(MOST_BEGUN)
        )
        self._free = list(buffers)

    def begin(self, batch: np.ndarray) -> Computation[Tensor]:
        """Copy the batch to the GPU, run the graph and copy its output back."""
        gpu, buffers = self._gpu, self._free[-1]
        buffers.given[: len(batch)].copy_(torch.from_numpy(batch))  # rows beyond: a former batch's
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
    except RuntimeError:  # a GPU that fails: `synchronize` raises it again
        return True


class GraphLauncher:
    """On a GPU: copy in, one graph, copy out."""

    def __init__(self, forward: Forward, device: torch.device, gpu: CudaGpu) -> None:
        self._forward = forward
        self._device = device
        self._gpu = gpu
        self._plain = DirectLauncher(forward, device)
        self._captured: dict[int, _Captured] = {}

    @torch.inference_mode()
    def __call__(self, batch: np.ndarray) -> Computation[Tensor]:
        captured = self._captured_for(len(batch))
        if captured is None:
            if len(self._captured) == MOST_SIZES:
                return Computation(partial(self._called_plainly, batch))
            with self._gpu.running():
                given = torch.from_numpy(batch).to(self._device, copy=True)
            captured = self._captured[len(batch)] = _Captured(self._gpu, self._forward, given)
        return captured.begin(batch)

    def _captured_for(self, n: int) -> _Captured | None:
        """The smallest graph that holds n and is not mostly padding. A rank warms up with 1, 2, 4,
        8, ..., and no size between them is captured during a job.
        """
        fitting = [size for size in self._captured if n <= size <= MOST_PADDED * n]
        return self._captured[min(fitting)] if fitting else None

    def _called_plainly(self, batch: np.ndarray) -> Tensor:
        with self._gpu.running():
            return self._plain.outputs(batch)


def make_launcher(forward: Forward, device: torch.device, how: str) -> KernelLauncher:
    """The launcher for a device and a `Tuning.compile` without `auto`."""
    if how == "torch-compile":
        # On a GPU this mode makes graphs of its own.
        mode = "reduce-overhead" if device.type == "cuda" else "default"
        forward = torch.compile(forward, mode=mode)
    if how == "cuda-graph":
        torch.backends.cudnn.benchmark = True  # shapes are few and fixed
        return GraphLauncher(forward, device, CudaGpu(device))
    return DirectLauncher(forward, device)
