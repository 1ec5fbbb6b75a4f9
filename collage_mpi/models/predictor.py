"""Predictors for torch networks, from a weights file or a module: places the network on the CPU or
a GPU, and calls it once to check that it works.

On a GPU a network uses pinned buffers, two streams, and a CUDA graph for each batch size. Most
batches of a job have one image. Launching their hundred or so kernels takes longer than running
them, and a graph launches them all at once. The GPU computes one batch while the rank copies the
next batch and handles messages.

A GPU has two batches (`models/predictor`). While it computes one, the worker begins the next: each
has pinned buffers of its own, is copied in one stream and run in another, and shares the graph.
Answers keep their order. A service time counts from the end of the batch before. With a credit of
1, and for networks that compute in the worker's process or wait, there is one batch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from collage_mpi.encoding.vectors import KeptColumn
from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, UsageError
from collage_mpi.models.architecture import read_architecture
from collage_mpi.models.backbones import COUNTER, channels_last, fold_norms
from collage_mpi.models.collage_net import build_network, reading_of
from collage_mpi.models.info import (
    COMPILE,
    MOST_BEGUN,
    ONNX,
    PLAIN,
    TOLERANCE,
    Answer,
    Computation,
    Declared,
    Geometry,
    Loading,
    NetworkInfo,
    Tuning,
    columns_of,
    memory_fault,
    own_info,
)
from collage_mpi.models.named import HOW, is_onnx
from collage_mpi.models.weights import describe_weights, read_tensors
from collage_mpi.system.printable import counted, one_line

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
        # The pinned input and output of each computation that may be in progress
        self._free = [(gpu.pinned(given), gpu.pinned(self._found)) for _ in range(MOST_BEGUN)]

    def begin(self, batch: np.ndarray) -> Computation[Tensor]:
        """Copy the batch to the GPU, run the graph and copy its output back."""
        gpu, (given, found) = self._gpu, self._free[-1]
        given[: len(batch)].copy_(torch.from_numpy(batch))  # the rest is padding
        with gpu.copying():
            self._taken.wait()
            gpu.copy(self._arrived, given)
            arrived = gpu.event()
        with gpu.running():
            arrived.wait()
            gpu.copy(self._given, self._arrived)
            self._taken = gpu.event()
            self._launch()
            gpu.copy(found, self._found)
            done = gpu.event()
        self._free.pop()

        def finish() -> Tensor:
            try:
                done.synchronize()  # durations include the GPU's work (C3)
            finally:
                self._free.append((given, found))
            return found[: len(batch)]

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


class WithEmbedding(nn.Module):
    """A single network that returns its logits and (n, d) embeddings, the inputs of its last layer.

    The last layer is the last linear layer or 2-D convolution, as in the classifiers of torchvision
    and of this package. If its input is a map, it is averaged over height and width.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self._seen: Tensor | None = None
        layers = [m for m in network.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
        layers[-1].register_forward_pre_hook(self._see)

    def _see(self, layer: nn.Module, given: tuple[Any, ...]) -> None:
        self._seen = given[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        logits, seen = self.network(x), self._seen
        assert seen is not None
        self._seen = None
        return logits, seen.flatten(2).mean(2) if seen.dim() == 4 else seen.flatten(1)


INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


class TorchPredictor:
    """Answers batches of images or other items; see the `Predictor` protocol.

    The network gets (x / 255 - mean) / std for uint8, and (x - mean) / std for other types; by
    default mean is 0 and std is 1. If items have three axes or more, the channels, the last axis,
    become the first axis.

    It begins with torch. `change_over` gives the network to another runtime (`models.runtimes`).

    Attributes:
        torch: computes the outputs of `forward` in torch.
        scale, shift: pixels times scale plus shift are the network's inputs.
        launch: computes them now: `torch`, or the runtime that has taken its place.
        runtime: runtime and format that answer now, one of `rows.ANSWERERS`.
    """

    def __init__(
        self,
        info: NetworkInfo,
        network: torch.nn.Module,
        device: torch.device,
        tuning: Tuning | None,
        embed: str,
    ) -> None:
        """Place the network on the device.

        Args:
            tuning: None for PLAIN.
            embed: if not "", the network returns (outputs, embeddings (n, d)), and answers have the
                latter in this dtype.
        """
        self.info = info
        self.kind = info.kind
        self.cells = info.cells
        self.classes = len(info.class_names)
        self.fingerprint = info.fingerprint
        self.device = str(device)
        self.columns: tuple[KeptColumn, ...] = ()  # set by `first_call`
        self._device, self._embeds = device, embed
        network.eval()
        chosen = (tuning or PLAIN).on(device.type)
        self.tuning = str(chosen)
        onnx = is_onnx(info.origin)
        self.runtime = self._began_as = f"{ONNX} float32" if onnx else chosen.answerer
        self._dtype: torch.dtype = getattr(torch, chosen.precision)
        if device.type == "cuda" and self._dtype == torch.float32:
            torch.backends.cudnn.allow_tf32 = False  # torch allows it: a mantissa of 10 bits
        network = network.to(device, self._dtype)
        self.network = channels_last(network)
        self.launch = self.torch = make_launcher(self.forward, device, chosen.runtime == COMPILE)
        values = info.metadata["normalisation"]
        shape = (1, -1, *(1 for _ in info.shape[1:]))
        mean = torch.tensor(values["mean"], dtype=torch.float32).reshape(shape)
        std = torch.tensor(values["std"], dtype=torch.float32).reshape(shape)
        full = 255.0 if info.dtype == "uint8" else 1.0  # mean and std are those of pixels / 255
        self._moves = len(info.shape) >= 3 and not info.metadata.get("channels_first")
        self.scale = (1.0 / (full * std)).to(device)
        self.shift = (-mean / std).to(device)
        self.reading = reading_of(info)
        self.temperature = float(info.metadata["temperature"])

    @classmethod
    def load(cls, spec: str, kind: str, how: Loading) -> TorchPredictor:
        """Load a weights file; see `models.load_predictor`."""
        info = describe_weights(spec, kind)
        tensors = read_tensors(info)
        torch.set_num_threads(max(1, how.threads))
        architecture = read_architecture(info.architecture)
        with torch.device("meta"):
            network = build_network(
                architecture, info.shape[2], len(info.class_names), info.side, info.head
            )
        state = {name: torch.from_numpy(array) for name, array in tensors.items()}
        for name in network.state_dict():
            if name.endswith(COUNTER):
                state[name] = torch.zeros((), dtype=torch.int64)
        try:
            network.load_state_dict(state, assign=True)
        except RuntimeError as error:
            raise DataFault(
                f"weights {spec} do not fit their own architecture: {one_line(error)}"
            ) from error
        fold_norms(network, (info.shape[2], *info.shape[:2]))
        place = usable_device(how.device)
        with told_if_it_does_not_fit(info, network, place, how.tuning):
            network = WithEmbedding(network) if how.embed else network
            predictor = cls(info, network, place, how.tuning, how.embed)
            if how.tuning is not None or how.embed:
                predictor.first_call()
        return predictor

    def predict(self, batch: np.ndarray) -> np.ndarray:
        """See `Predictor.predict`.

        Raises:
            DataFault: the batch has another shape or dtype than the network takes.
        """
        return self.answer(batch)[0]

    def answer(self, batch: np.ndarray) -> Answer:
        """Like `predict`, with the embeddings, (n, d), if they are wanted. An image whose embedding
        is not finite in its dtype has no finite scores either, so that it fails."""
        return self.begin(batch).finish()

    def begin(self, batch: np.ndarray) -> Computation[Answer]:
        """Start the computation of `answer`, which a GPU then does by itself. Raises as
        `predict`."""
        return self.launch(self._checked(batch)).then(self.answered)

    def change_over(self, launch: KernelLauncher | None = None, runtime: str = "") -> None:
        """Let another runtime answer from the next batch on.

        Args:
            launch: computes the outputs of `forward`; None for torch, as at the start.
            runtime: one of `rows.ANSWERERS`.
        """
        self.launch = launch or self.torch
        self.runtime = runtime or self._began_as

    @torch.inference_mode()
    def weights_sum(self) -> int | None:
        """The sum of all parameters, their bits taken for integers, so that one bit that flips
        changes it; None while another runtime answers, which has its own copy of them."""
        if self.runtime != self._began_as:
            return None
        sums = [
            each.contiguous().view(INTEGERS[each.element_size()]).sum(dtype=torch.int64)
            for each in self.network.parameters()
            if each.dim() and each.is_floating_point() and each.layout is torch.strided
        ]
        return int(torch.stack(sums).sum()) if sums else 0

    @torch.inference_mode()
    def answered(self, found: torch.Tensor) -> Answer:
        """The answer that outputs of `forward` mean."""
        if not self._embeds:
            return self.reading(found, self.temperature), {}
        scores = self.reading(found[:, :, : self.classes], self.temperature)
        with np.errstate(over="ignore"):
            embedding = found[:, 0, self.classes :].numpy().astype(self._embeds)
        scores[~np.isfinite(embedding).all(axis=1)] = np.nan
        return scores, {"embedding": embedding}

    @torch.inference_mode()
    def outputs(self, batch: np.ndarray) -> torch.Tensor:
        """(n, H, W, C) uint8 -> the network's outputs on the device, which `reading` turns into
        scores.
        """
        found = self.forward(torch.from_numpy(self._checked(batch)).to(self._device))
        return found[:, :, : self.classes] if self._embeds else found

    def first_call(self) -> None:
        """Call the network with a batch of noise, to learn its columns and to check its scores.

        Raises:
            EnvironmentFault: the scores are not finite in this precision.
        """
        noise = self.info.noise()
        scores, given = self.answer(noise)
        self.columns = columns_of(self.info.origin, given) if given else ()
        if not all(np.isfinite(each).all() for each in (scores, *given.values())):
            raise EnvironmentFault(
                f"the {self.kind} network of {self.info.origin} gives no finite scores as "
                f"{self.tuning} on {self.device}: {_other_than(self._dtype)}"
            )

    def _checked(self, batch: np.ndarray) -> np.ndarray:
        if batch.shape[1:] != self.info.shape or batch.dtype != self.info.dtype:
            raise DataFault(
                f"the {self.kind} network of {self.info.origin} takes (n, "
                f"{', '.join(map(str, self.info.shape))}) {self.info.dtype}; it got {batch.shape} "
                f"{batch.dtype}"
            )
        if not batch.flags.writeable:  # torch warns about read-only buffers, though it only reads
            batch = batch.copy()
        return batch

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """(n, H, W, C) uint8, or other items, on the device -> float32 outputs on the device."""
        axes = batch.dim()
        moved = batch.permute(0, axes - 1, *range(1, axes - 1)) if self._moves else batch
        pixels = moved.float()  # (n, C, H, W)
        normalised = torch.addcmul(self.shift, pixels, self.scale).to(self._dtype)
        found = self.network(normalised)
        if self._embeds:  # concatenated for the launcher: (n, 1, classes + d)
            logits, features = found
            return torch.cat([logits.float(), features.float()[:, None]], dim=2)
        return found.float()


def _other_than(dtype: torch.dtype) -> str:
    """Advice about scores that are NaN or infinite in this precision."""
    if dtype == torch.float32:
        return "no other precision helps; look for NaN or infinity in its weights and its code"
    return f"choose --precision float32{' or bfloat16' if dtype == torch.float16 else ''}"


@contextmanager
def told_if_it_does_not_fit(
    info: NetworkInfo, network: torch.nn.Module, device: torch.device, tuning: Tuning | None
) -> Iterator[None]:
    """Raises errors of the block, in which a network is placed and first called, with advice.

    Raises:
        EnvironmentFault: the GPU's memory is too small, torch.compile does not work here, or the
            network does not work in this precision.
    """
    chosen = (tuning or PLAIN).on(device.type)
    try:
        yield
    except Exception as error:
        if is_out_of_memory(error):
            itemsize = getattr(torch, chosen.precision).itemsize
            weights = sum(p.numel() for p in network.parameters()) * itemsize
            what = f"the {info.kind} network of {info.path} ({chosen})"
            message = memory_fault(what, str(device), weights, *_memory(device))
            raise EnvironmentFault(message) from error
        compiled = chosen.runtime == COMPILE
        halved = chosen.precision != "float32" and isinstance(error, RuntimeError)
        if isinstance(error, CollageError) or not (compiled or halved):
            raise
        if not compiled:
            raise EnvironmentFault(
                f"the {info.kind} network of {info.origin} does not work as {chosen} on {device} "
                f"({one_line(error)}): choose --precision float32"
            ) from error
        raise EnvironmentFault(
            f"torch.compile cannot make the {info.kind} network here ({one_line(error)}); it needs "
            "a C++ compiler, on GPUs Triton too: choose --runtime torch"
        ) from error


def _memory(device: torch.device) -> tuple[int | None, int | None]:
    """(free, total) bytes of a GPU; None if unknown."""
    try:
        return torch.cuda.mem_get_info(device)
    except (RuntimeError, ValueError, AssertionError):
        return None, None


def usable_device(device: str) -> torch.device:
    """Check a device. A GPU becomes the current device of the process.

    Call this before anything else uses CUDA. Captures of graphs and a user's `.cuda()` use the
    current device. Without this call, a rank of another GPU would occupy some 500 MiB on GPU 0.

    Raises:
        EnvironmentFault: the device is missing, or has no memory for one more process.
    """
    try:
        chosen = torch.device(device)
        if chosen.type == "cuda" and chosen.index is not None and torch.cuda.is_available():
            torch.cuda.set_device(chosen)
        torch.zeros(1, device=chosen)
    except (RuntimeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise EnvironmentFault(
                f"{device} has no memory left for one more process (CUDA itself takes about "
                "500 MiB a rank): fewer ranks on this GPU (nvidia-smi shows who holds memory)"
            ) from error
        count = torch.cuda.device_count()
        raise EnvironmentFault(
            f"device {device!r} cannot be used ({str(error).splitlines()[0]}); this process sees "
            f"cpu and {counted(count, 'CUDA device')}: check --device and CUDA_VISIBLE_DEVICES"
        ) from error
    return chosen


def module_predictor(
    spec: str, kind: str, geometry: Geometry, module: nn.Module, how: Loading, facts: Declared
) -> TorchPredictor:
    """Make a predictor of a module, and call it once to check its answers.

    Raises:
        UsageError: the module has no embeddings, and they are wanted.
        DataFault: its output has a wrong shape, or is probabilities instead of logits.
        EnvironmentFault: the device is missing, or the module fails in this precision.
    """
    torch.set_num_threads(max(1, how.threads))
    fingerprint = facts.fingerprint or fingerprint_of(spec, module)
    info = own_info(spec, kind, geometry, fingerprint, facts)
    shaped = _Shaped(spec, module, geometry.cells(kind), geometry.classes, how.embed)
    place, chosen = usable_device(how.device), how.tuning or PLAIN
    with told_if_it_does_not_fit(info, shaped, place, chosen):
        predictor = TorchPredictor(info, shaped, place, chosen, how.embed)
        if geometry.classes is None:
            predictor.outputs(info.noise())  # sets shaped.classes
            geometry = replace(geometry, classes=shaped.classes)
            info = own_info(spec, kind, geometry, fingerprint, facts)
            predictor = TorchPredictor(info, shaped, place, chosen, how.embed)
        if predictor.classes != geometry.classes:
            raise DataFault(
                f"{spec} names {predictor.classes} classes, and its answers have {geometry.classes}"
            )
        predictor.first_call()
        _check_logits(spec, predictor.outputs(info.noise()))
    return predictor


def _check_logits(spec: str, outputs: Tensor) -> None:
    """Raise DataFault if outputs, (n, cells, classes), are probabilities. After a second softmax,
    high and low scores would hardly differ.
    """
    if outputs.shape[2] == 1 or float(outputs.min()) < 0:
        return
    if bool(((outputs.sum(dim=2) - 1).abs() <= TOLERANCE).all()):
        raise DataFault(
            f"{spec}: the network gave probabilities (from 0 to 1, 1 in all); needed of a "
            f"torch.nn.Module: logits. Leave out its softmax. {HOW}"
        )


def fingerprint_of(spec: str, module: nn.Module) -> str:
    """SHA-256 of the module's spec and its state, 64 hex digits."""
    digest = hashlib.sha256(spec.encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class _Shaped(nn.Module):
    """A user's module whose outputs are checked and reshaped to (n, cells, classes) logits.

    Attributes:
        classes: number of classes; if it is None, the first outputs set it.
    """

    def __init__(
        self, spec: str, module: nn.Module, cells: int, classes: int | None, embed: str
    ) -> None:
        super().__init__()
        self.spec, self.module, self.cells, self.classes = spec, module, cells, classes
        self.embed = embed

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        out = self.module(x)
        logits, embedding = out if isinstance(out, tuple) and len(out) == 2 else (out, None)
        if not self.embed:
            return self._logits(logits, len(x))
        if not isinstance(embedding, Tensor) or embedding.dim() < 2 or len(embedding) != len(x):
            raise UsageError(
                f"{self.spec}: the network gives no embeddings, which --save embeddings needs: let "
                f"its forward return (logits, embeddings), the latter ({len(x)}, d). {HOW}"
            )
        return self._logits(logits, len(x)), embedding.flatten(1)

    def _logits(self, out: object, n: int) -> Tensor:
        cells, side = self.cells, round(self.cells**0.5)
        if self.classes is None and isinstance(out, Tensor) and out.dim() > 1:
            self.classes = out.shape[1 if out.dim() == 4 else -1]
        classes = self.classes
        if isinstance(out, Tensor):
            if out.shape == (n, cells, classes):
                return out
            if cells == 1 and out.shape == (n, classes):
                return out[:, None]
            if cells > 1 and out.shape == (n, classes, side, side):
                return out.flatten(2).transpose(1, 2)
        found = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        form = f"({n}, {classes})" if cells == 1 else f"({n}, {classes}, {side}, {side})"
        raise DataFault(
            f"{self.spec}: the network gave {found}; needed: logits ({n}, {cells}, {classes}) or "
            f"{form}"
        )
