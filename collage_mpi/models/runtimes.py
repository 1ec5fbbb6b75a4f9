"""Runs a network in another runtime than torch: OpenVINO, onnxruntime, or code that torch.compile
made ahead of time.

A folder in the user's cache holds a network that was made for one runtime, format and batch
(`models.making`), and the record of how it was judged. Its name is a digest of all that decides
what is in it. The runtimes themselves are imported when a folder is opened.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.models.info import (
    COMPILE,
    INT8,
    ONNX,
    OPENVINO,
    TORCH,
    Answer,
    Computation,
    Tuning,
    processor_facts,
)
from collage_mpi.models.named import is_function, is_onnx
from collage_mpi.plugins import pip_line
from collage_mpi.system.environment import without_rank
from collage_mpi.system.printable import one_line
from collage_mpi.system.process_tree import ask_apart, own_command
from collage_mpi.system.records import read_json

if TYPE_CHECKING:
    from torch import Tensor

SS_DISABLE = 2  # of Linux's <signal.h>: handlers run on the thread's usual stack
RECORD = "record.json"  # is written last: a folder without it is not used
KNOWN = "known.npz"  # inputs, and what the network as it was made says of them
FILES = {OPENVINO: "network.xml", ONNX: "network.onnx", COMPILE: "network.pt2"}
PACKAGES = {OPENVINO: "openvino", ONNX: "onnxruntime"}  # in the order in which they are tried
# Of OpenVINO. What is not quantised of a network in int8 is computed in bfloat16.
HINTS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16", INT8: "bf16"}
QUANTISERS = ("onnxruntime", "onnx")  # packages that write a network in int8
# Of processors that multiply int8 quickly: x86 as Linux names it, then ARM.
INT8_FLAGS = {"avx512_vnni", "avx_vnni", "amx_int8", "i8mm"}
EXTRAS = {OPENVINO: "fast", ONNX: "onnx"}  # of this package
CACHE = "COLLAGE_MPI_CACHE"  # variable that names another folder for made networks
MOST_APART = 1e-4  # two probabilities of one class by two runtimes; measured: 2e-6
TRY_LIMIT_S = 120.0
TRIED = 32  # images that a rank lets both answer before it changes over
TRIED_AGAIN = 8  # on the kind of processor on which the network was judged

Call = Callable[[np.ndarray], np.ndarray]  # a batch of the size that it was made for -> outputs


@dataclass(frozen=True)
class Record:
    """How a network was made and judged.

    Attributes:
        runtime: what answers quickest, `tuning.TORCH` if no other runtime is to be used.
        precision: number format, by its name in torch.
        batch: number of inputs of each call.
        shape, dtype: of an input.
        torch_ms, own_ms: processor time of an input, in torch and in the runtime.
        changed: of the judged inputs, those with another class than by torch in float32.
        classes: of the network; 1 if it names none, and 0 if a former version made it.
        digest: of the network's file, if it depends on the pictures that it was made with, as in
            int8; otherwise "".
        judged: number of judged inputs.
        why: why another runtime is not used, or "".
        processor: of the host where it was judged.
    """

    runtime: str
    precision: str
    batch: int
    shape: tuple[int, ...]
    dtype: str
    torch_ms: float
    own_ms: float
    changed: int
    judged: int
    why: str
    processor: str
    digest: str = ""
    classes: int = 0

    @property
    def answerer(self) -> str:
        """One of `rows.ANSWERERS`."""
        return f"{self.runtime} {self.precision}"

    @property
    def how(self) -> str:
        """The answerer, and which network of its kind: of two that are equal the answers are."""
        return f"{self.answerer} {self.digest}".rstrip()

    @property
    def times(self) -> float:
        """How many times as quick as torch the runtime is."""
        return self.torch_ms / self.own_ms

    def write(self, folder: Path) -> None:
        """Write it into the folder."""
        (folder / RECORD).write_text(json.dumps(asdict(self)))


def read_record(folder: Path) -> Record | None:
    """The record of a folder; None as long as it is not complete, or if it is another user's."""
    try:
        if folder.stat().st_uid != os.getuid():
            return None
        return read_json(Record, (folder / RECORD).read_bytes())
    except (OSError, ValueError):
        return None


def candidates(spec: str, tuning: Tuning) -> tuple[str, ...]:
    """The runtimes to try for a network and a tuning on a CPU, in order.

    Raises:
        UsageError: the runtime that the user named is not installed, or lacks the format; or int8
            cannot be had.
    """
    if tuning.format == INT8:
        _check_int8(spec, tuning.runtime)
    if tuning.runtime == TORCH or (tuning.runtime == ONNX and is_onnx(spec)):
        return ()
    if tuning.runtime == ONNX and tuning.format not in ("float32", INT8):
        raise UsageError(
            f"--runtime onnx computes in float32 alone, and --precision is {tuning.precision}: "
            "choose --runtime openvino or auto"
        )
    there = tuple(name for name, package in PACKAGES.items() if find_spec(package) is not None)
    if tuning.runtime == COMPILE:
        return (COMPILE,)
    if tuning.runtime in PACKAGES:
        if tuning.runtime not in there:
            package = PACKAGES[tuning.runtime]
            raise UsageError(
                f"--runtime {tuning.runtime} needs {package}: {pip_line(EXTRAS[tuning.runtime])}"
            )
        return (tuning.runtime,)
    if is_onnx(spec):  # onnxruntime runs it already
        return tuple(name for name in there if name == OPENVINO)
    onnx = tuning.format in ("float32", INT8)
    return tuple(name for name in there if name != ONNX or onnx) or (COMPILE,)


def _check_int8(spec: str, runtime: str) -> None:
    """Raise UsageError if no network is made in int8 here."""
    how = "choose @bfloat16 in place of @int8"
    if runtime in (TORCH, COMPILE) or is_onnx(spec):
        what = f"FILE.onnx as it is ({spec})" if is_onnx(spec) else f"--runtime {runtime}"
        raise UsageError(f"int8 is not to be had of {what}: {how}, or --runtime auto")
    if lacking := [name for name in QUANTISERS if find_spec(name) is None]:
        raise UsageError(f"int8 needs {' and '.join(lacking)}: {pip_line('fast')}, or {how}")
    facts = processor_facts()
    flags = facts.get("flags", facts.get("Features", "")).split()
    if not INT8_FLAGS.intersection(flags):
        raise UsageError(
            f"this processor ({facts.get('model name', platform.machine())}) has none of "
            f"{', '.join(sorted(INT8_FLAGS))}, without which int8 is no quicker: {how}"
        )


def processor() -> str:
    """The kind of processor of this host: model, and a digest of its features."""
    facts = processor_facts()
    flags = hashlib.sha256(facts.get("flags", facts.get("Features", "")).encode()).hexdigest()
    return f"{facts.get('model name', platform.machine())} {flags[:8]}"


def cache_folder() -> Path:
    """The user's folder for made networks."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get(CACHE) or Path(home) / "collage-mpi") / "runtimes"


def unfinished(pid: int) -> str:
    """How the name of a folder begins in which a process of this host makes a network."""
    return f"making-{platform.node()}-{pid}-"


def folder_of(
    fingerprint: str, spec: str, kind: str, tuning: Tuning, told: Mapping[str, Any]
) -> Path:
    """Where a made network is cached.

    Args:
        fingerprint: of the network.
        told: what else decides the result, as JSON values.
    """
    source = _source_digest(spec.rpartition(":")[0]) if is_function(spec) else ""
    packages = ("collage-mpi", "torch", *PACKAGES.values())
    versions = [_version(name) for name in packages]
    facts = [fingerprint, spec, kind, asdict(tuning), dict(told), source, versions, processor()]
    facts.append(KNOWN)
    return cache_folder() / hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def _source_digest(place: str) -> str:
    """SHA-256 of the file of a user's module, or "" if it is not found without an import. The
    fingerprint of a user's network is of its weights alone."""
    found = Path(place if place.endswith(".py") else f"{place.replace('.', '/')}.py")
    return hashlib.sha256(found.read_bytes()).hexdigest() if found.is_file() else ""


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version  # 7 ms

    try:
        return version(package)
    except PackageNotFoundError:
        return ""


class Runtime:
    """Runs a network that was made for one batch shape; takes the place of torch's launcher.

    A smaller batch is filled up with its last input, and a larger one is cut. So an answer does not
    depend on the batch that its input came in.
    """

    def __init__(self, call: Call, batch: int) -> None:
        self._call, self._batch = call, batch

    def __call__(self, batch: np.ndarray) -> Computation[Tensor]:
        """See `predictor.KernelLauncher`."""
        import torch

        return Computation(lambda: torch.from_numpy(self.predict(batch)))

    def predict(self, batch: np.ndarray) -> np.ndarray:
        """(n, ...) inputs -> outputs (n, cells, ...) float32, for any n."""
        size = self._batch
        parts = [batch[at : at + size] for at in range(0, len(batch), size)]
        found = [self._call(self._filled(part))[: len(part)] for part in parts]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def _filled(self, part: np.ndarray) -> np.ndarray:
        lacking = self._batch - len(part)
        return np.concatenate([part, np.repeat(part[-1:], lacking, 0)]) if lacking else part


def open_runtime(folder: Path, record: Record, threads: int) -> Runtime:
    """Load a made network. Errors of the runtimes' libraries pass through."""
    call = _OPENERS[record.runtime](folder / FILES[record.runtime], record.precision, threads)
    return Runtime(call, record.batch)


class _Stack(ctypes.Structure):
    """`stack_t` of Linux."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


@contextmanager
def _own_signal_stack() -> Iterator[None]:
    """Keep the stack on which this thread's signal handlers run.

    On processors with AMX the plugin of OpenVINO 2026.4 gives the thread a stack that is too small,
    on which Python's handlers then run, so that any signal ends the process by SIGSEGV.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    yield
    if libc.sigaltstack(ctypes.byref(before), None):  # too small for AMX: the usual stack instead
        libc.sigaltstack(ctypes.byref(_Stack(None, SS_DISABLE, 0)), None)


def _openvino(file: Path, precision: str, threads: int) -> Call:
    import openvino

    told = {
        "INFERENCE_PRECISION_HINT": HINTS[precision],  # otherwise bfloat16 on processors with AMX
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,  # it would pin all processes of one thread to the same core
    }
    with _own_signal_stack():
        network = openvino.Core().compile_model(str(file), "CPU", told)

    def call(batch: np.ndarray) -> np.ndarray:
        return network(batch, share_inputs=True)[0]

    return call


def _onnx(file: Path, precision: str, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(file), options, ["CPUExecutionProvider"])
    (given,) = session.get_inputs()

    def call(batch: np.ndarray) -> np.ndarray:
        return session.run(None, {given.name: batch})[0]

    return call


def _compiled(file: Path, precision: str, threads: int) -> Call:
    import torch

    network: Any = torch._inductor.aoti_load_package(str(file))

    def call(batch: np.ndarray) -> np.ndarray:
        return network(torch.from_numpy(batch)).numpy()

    return call


_OPENERS: Mapping[str, Callable[[Path, str, int], Call]] = {
    OPENVINO: _openvino,
    ONNX: _onnx,
    COMPILE: _compiled,
}


def changed_classes(found: Answer, wanted: Answer) -> np.ndarray:
    """(n,) bool: whether an input has another class in any cell."""
    differs: np.ndarray = found[0].argmax(axis=2) != wanted[0].argmax(axis=2)
    return np.asarray(differs.any(axis=1))


def why_unequal(found: Answer, wanted: Answer) -> str:
    """How a runtime's answers differ from those of torch in float32; "" if they are equal.

    Equal means that no class differs, no probability by more than MOST_APART, and no other output
    by more than that share of its largest value, or by the last digit of its dtype.
    """
    changed = int(changed_classes(found, wanted).sum())
    if changed:
        return f"{changed} of {len(wanted[0])} inputs got another class"
    apart = float(np.abs(found[0] - wanted[0]).max())
    if not apart <= MOST_APART:  # also if it is NaN
        return f"a probability differs by {apart:.1g}"
    for name, values in wanted[1].items():
        apart = float(np.abs(found[1][name] - values).max() / max(1e-30, np.abs(values).max()))
        if not apart <= max(MOST_APART, float(np.finfo(values.dtype).eps)):
            return f"{name} differs by {apart:.1g} of its largest value"
    return ""


@runtime_checkable
class Changeable(Protocol):
    """What a network must have so that another runtime can take it over (`TorchPredictor`)."""

    device: str
    runtime: str
    torch: Any
    launch: Any

    def change_over(self, launch: Any = None, runtime: str = "") -> None: ...
    def answered(self, found: Tensor) -> Answer: ...


class Trial:
    """Lets torch and another runtime answer a rank's next images, of which torch's answers count.

    If all answers are equal, the predictor changes over; otherwise it stays with torch.

    Attributes:
        verdict: None as long as it goes on; then "", or why the predictor stays with torch.
    """

    def __init__(
        self,
        predictor: Changeable,
        runtime: Runtime | None,
        answerer: str,
        verdict: str | None,
        images: int = TRIED,
    ) -> None:
        """It begins at once, or has ended with this verdict."""
        self._predictor, self._runtime, self._answerer = predictor, runtime, answerer
        self._left, self.verdict = images, verdict
        if verdict is None:
            predictor.change_over(self, predictor.runtime)
        elif not verdict:
            predictor.change_over(runtime, answerer)

    def __call__(self, batch: np.ndarray) -> Computation[Tensor]:
        """See `predictor.KernelLauncher`."""
        return Computation(partial(self._both, batch))

    def _both(self, batch: np.ndarray) -> Tensor:
        predictor, count = self._predictor, min(len(batch), self._left)
        found: Tensor = predictor.torch(batch).finish()
        try:
            assert self._runtime is not None
            other = self._runtime(batch[:count]).finish()
            why = why_unequal(predictor.answered(other), predictor.answered(found[:count]))
        except Exception as error:  # a runtime may raise anything
            why = f"{type(error).__name__}: {one_line(error)}"
        self._left -= count
        if why:
            self.verdict = f"{self._answerer}: {why}"
            predictor.change_over()
        elif not self._left:
            self.verdict = ""
            predictor.change_over(self._runtime, self._answerer)
        return found


def change_over(predictor: Any, folder: Path, record: Record, threads: int) -> Trial | None:
    """Give a predictor's network to the runtime for which it was made, in float32 after a trial.

    Returns:
        The trial; None if there is nothing to change.
    """
    if record.runtime == TORCH or predictor.launch is not predictor.torch:
        return None
    runtime, why = None, None if record.precision == "float32" else ""
    judged_here = record.processor == processor()
    try:
        if not judged_here:
            _try_apart(folder, threads)
        runtime = open_runtime(folder, record, threads)
    except Exception as error:  # a runtime's library may raise anything
        why = f"{record.answerer} cannot be loaded: {type(error).__name__}: {one_line(error)}"
    images = TRIED_AGAIN if judged_here else TRIED
    return Trial(predictor, runtime, record.answerer, why, images)


def why_unknown(predictor: Any, folder: Path) -> str:
    """How a predictor's answers differ from those that a made network's folder has; "" if they are
    equal, as `why_unequal` understands it."""
    try:
        with np.load(folder / KNOWN, allow_pickle=False) as known:
            inputs, wanted = known["inputs"], known["scores"]
        found, _ = predictor.answer(inputs)
    except Exception as error:  # libraries raise anything
        return f"the known images cannot be answered: {type(error).__name__}: {one_line(error)}"
    why = why_unequal((found, {}), (wanted, {}))
    return why and f"{why} than where the network was made"


def _try_apart(folder: Path, threads: int) -> None:
    """Let a child process load a network that was tried on another kind of processor, because
    runtimes were seen to crash there. Raises EnvironmentFault if the child does not end well."""
    request = {"folder": str(folder), "threads": threads}
    environment = {**without_rank(os.environ)}
    said = ask_apart(own_command("collage_mpi.models.runtimes"), request, TRY_LIMIT_S, environment)
    if said.code != 0:
        raise EnvironmentFault(f"on this processor a process ended with {said.code}")


def main() -> int:
    """The child process: load a network, and let it answer zeros."""
    request = json.load(sys.stdin)
    folder = Path(request["folder"])
    record = read_record(folder)
    assert record is not None
    inputs = np.zeros((record.batch, *record.shape), record.dtype)
    open_runtime(folder, record, request["threads"]).predict(inputs)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
