"""Runs a network on host bytes and returns host outputs. On a GPU it uses pinned buffers, one
stream for the rank, and a CUDA graph for each batch size.

The job mostly sends batches of one. Launching the hundred or so kernels for it takes longer than
running them; a graph launches them all at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

WARM_CALLS = 3  # before a capture: libraries choose their kernels, and allocate, on first calls
MOST_SIZES = 16  # batch sizes with buffers and a graph of their own; others are called plainly
MOST_PADDED = 2  # a graph serves batches down to this part of its size

Forward = Callable[[Tensor], Tensor]  # (n, H, W, C) uint8 on the device -> outputs there


class KernelLauncher(Protocol):
    """One call of the network."""

    def __call__(self, batch: np.ndarray) -> Tensor:
        """(n, H, W, C) uint8 -> outputs on the host, valid until the next call."""
        ...


class DirectLauncher:
    """Calls the network directly, on the CPU, or kernel by kernel on any device."""

    def __init__(self, forward: Forward, device: torch.device) -> None:
        self._forward = forward
        self._device = device

    def __call__(self, batch: np.ndarray) -> Tensor:
        return self._forward(torch.from_numpy(batch).to(self._device)).cpu()  # .cpu() waits


class Gpu(Protocol):
    """What a launcher needs of a GPU; tests replace it by one in CPU memory."""

    def pinned(self, like: Tensor) -> Tensor: ...
    def stream(self) -> AbstractContextManager[Any]: ...
    def capture(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]: ...
    def catch_up(self) -> None: ...
    def wait(self) -> None: ...


class CudaGpu:
    """A real GPU. Every call of this rank goes to one stream of its own."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # One pool for all graphs: one runs at a time, and its outputs are copied before the next.
        self._pool = torch.cuda.graph_pool_handle()

    def pinned(self, like: Tensor) -> Tensor:
        """Page-locked host memory with the shape and dtype of `like`, so that copies need no
        staging.
        """
        return torch.empty(like.shape, dtype=like.dtype, pin_memory=True)

    def stream(self) -> AbstractContextManager[Any]:
        """Work inside goes to the rank's stream."""
        return torch.cuda.stream(self._stream)

    def capture(self, work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
        """Record `work` as a graph: (launch it, the tensor it writes)."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
            outputs = work()
        return graph.replay, outputs

    def catch_up(self) -> None:
        """Let the rank's stream wait for the default stream, where the weights are prepared.

        torch's streams do not wait for the default stream by themselves.
        """
        self._stream.wait_stream(torch.cuda.default_stream(self._device))

    def wait(self) -> None:
        """Wait until the stream is done, so that durations include the GPU's work (C3)."""
        self._stream.synchronize()


@dataclass(frozen=True)
class _Slot:
    """The buffers for one batch size, and the work between them."""

    host_in: Tensor  # (n, H, W, C) uint8, pinned
    device_in: Tensor
    launch: Callable[[], None]
    device_out: Tensor
    host_out: Tensor  # pinned


class GraphLauncher:
    """On a GPU: copy in, one graph, copy out, wait; all on the rank's stream."""

    def __init__(self, forward: Forward, device: torch.device, gpu: Gpu) -> None:
        self._forward = forward
        self._device = device
        self._gpu = gpu
        self._plain = DirectLauncher(forward, device)
        self._slots: dict[int, _Slot] = {}

    def __call__(self, batch: np.ndarray) -> Tensor:
        n = len(batch)
        slot = self._slot_for(n)
        if slot is None:
            if len(self._slots) == MOST_SIZES:
                with self._gpu.stream():
                    return self._plain(batch)
            slot = self._slots[n] = self._prepare(batch)
        slot.host_in[:n].copy_(
            torch.from_numpy(batch)
        )  # (n, H, W, C); rows beyond: the last call's
        with self._gpu.stream():
            slot.device_in.copy_(slot.host_in, non_blocking=True)
            slot.launch()
            slot.host_out.copy_(slot.device_out, non_blocking=True)
        self._gpu.wait()
        return slot.host_out[:n]

    def _slot_for(self, n: int) -> _Slot | None:
        """The smallest slot that holds n and is not mostly padding. A rank warms up with 1, 2, 4,
        8, ..., and no size between them is captured during a job.
        """
        fitting = [size for size in self._slots if n <= size <= MOST_PADDED * n]
        return self._slots[min(fitting)] if fitting else None

    def _prepare(self, batch: np.ndarray) -> _Slot:
        self._gpu.catch_up()
        with self._gpu.stream():
            device_in = torch.from_numpy(batch).to(self._device)
            for _ in range(WARM_CALLS):
                self._forward(device_in)
        self._gpu.wait()
        launch, device_out = self._gpu.capture(lambda: self._forward(device_in))
        host_in, host_out = self._gpu.pinned(device_in), self._gpu.pinned(device_out)
        return _Slot(host_in, device_in, launch, device_out, host_out)


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
