"""Makes a network for other runtimes than torch, judges their answers against those of torch in
float32, times them, and keeps the quickest one with equal answers (`runtimes.Record`).
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from collage_mpi.errors import DataFault
from collage_mpi.models.info import COMPILE, INT8, ONNX, OPENVINO, TORCH, Answer
from collage_mpi.models.libraries import LEAST, channels_are_last
from collage_mpi.models.named import read_spec
from collage_mpi.models.predictor import TorchPredictor
from collage_mpi.models.runtimes import (
    FILES,
    KNOWN,
    TRIED,
    Record,
    changed_classes,
    open_runtime,
    processor,
    unfinished,
    why_unequal,
)
from collage_mpi.system.printable import one_line

OPSET = 17  # of ONNX; the newest that torch's exporter without other packages knows well
TIMED_S, LEAST_CALLS = 0.3, 3  # how long a runtime is timed
PAYS = 0.9  # a runtime is taken if it needs at most this share of torch's time
GIVEN = "inputs"  # name of what an ONNX file is given
Batches = Sequence[np.ndarray]  # inputs of the job, in batches of the size that is used


class _Whole(nn.Module):
    """A predictor's whole computation as a module: a batch of items -> outputs."""

    def __init__(self, predictor: TorchPredictor) -> None:
        super().__init__()
        self.network, self.compute = predictor.network, predictor.forward

    def forward(self, batch: Tensor) -> Tensor:
        return self.compute(batch)


def _for_onnx(predictor: TorchPredictor, batches: Batches, folder: Path, precision: str) -> None:
    """Write an ONNX file of the whole computation, for batches of this shape."""
    file = folder / FILES[ONNX]
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # a trace warns of each shape that it takes as constant
        whole, given = _Whole(predictor).eval(), (torch.from_numpy(batches[0]),)
        # The exporter of torch.export gives wrong files at times (pytorch #166797, #169178).
        torch.onnx.export(
            whole, given, str(file), input_names=[GIVEN], opset_version=OPSET, dynamo=False
        )
    if precision == INT8:
        _quantise(file, batches)


def _quantise(file: Path, batches: Batches) -> None:
    """Let an ONNX file compute in int8, in the ranges of values that it takes for these inputs
    (post-training quantisation, a scale for each channel of the weights)."""
    from onnxruntime import quantization, set_default_logger_severity
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Given:
        left = iter(batches)

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(({GIVEN: batch} for batch in self.left), None)

    set_default_logger_severity(3)
    plain = file.with_suffix(".float32.onnx")
    quant_pre_process(str(file), str(plain), skip_symbolic_shape=True)
    quantization.quantize_static(
        str(plain),
        str(file),
        Given(),
        per_channel=True,
        activation_type=quantization.QuantType.QUInt8,
        weight_type=quantization.QuantType.QInt8,
    )
    plain.unlink()


def _for_openvino(
    predictor: TorchPredictor, batches: Batches, folder: Path, precision: str
) -> None:
    import openvino

    named = read_spec(predictor.info.origin)
    if named is not None and named.library == "onnx":
        network = _of_file(predictor, batches[0], Path(named.name))
    else:
        _for_onnx(predictor, batches, folder, precision)
        network = openvino.Core().read_model(str(folder / FILES[ONNX]))
    openvino.save_model(network, str(folder / FILES[OPENVINO]), compress_to_fp16=False)


def _of_file(predictor: TorchPredictor, batch: np.ndarray, file: Path) -> Any:
    """The user's ONNX file as a network of OpenVINO that normalises as `forward` does."""
    import openvino
    from openvino import opset13 as ops

    network = openvino.Core().read_model(str(file))
    (given,) = network.inputs
    if given.element_type.is_integral():
        raise DataFault(f"{file} takes bytes, not normalised pixels")
    sizes = [axis.get_length() if axis.is_static else -1 for axis in given.partial_shape]
    last = channels_are_last(sizes)
    own = batch if last else batch.transpose(0, 3, 1, 2)
    network.reshape({given: list(own.shape)})
    before = openvino.preprocess.PrePostProcessor(network)
    items, floats = before.input(), openvino.Type.f32
    items.tensor().set_element_type(openvino.Type(batch.dtype)).set_layout(openvino.Layout("NHWC"))
    items.model().set_layout(openvino.Layout("NHWC" if last else "NCHW"))
    scale, shift = (each.flatten().tolist() for each in (predictor.scale, predictor.shift))
    steps = items.preprocess().convert_element_type(floats)
    steps = steps.mean([-b / a for a, b in zip(scale, shift, strict=True)])
    steps.scale([1 / a for a in scale])
    network = before.build()
    out = ops.convert(network.outputs[0].get_node().input_value(0), "f32")
    called: Any = predictor.network.module
    if called.logs:
        out = ops.log(ops.maximum(out, np.float32(LEAST)))
    shape = [len(batch), predictor.cells, predictor.classes]
    return openvino.Model([ops.reshape(out, shape, False)], network.get_parameters())


def _for_compile(predictor: TorchPredictor, batches: Batches, folder: Path, precision: str) -> None:
    from torch import _inductor

    with torch.inference_mode(False), torch.no_grad():
        program = torch.export.export(_Whole(predictor).eval(), (torch.from_numpy(batches[0]),))
        _inductor.aoti_compile_and_package(
            program,
            package_path=str(folder / FILES[COMPILE]),
            inductor_configs={"freezing": True},
        )


Maker = Callable[[TorchPredictor, Batches, Path, str], None]
MAKERS: dict[str, Maker] = {OPENVINO: _for_openvino, ONNX: _for_onnx, COMPILE: _for_compile}


def make(
    exact: TorchPredictor,
    tuned: TorchPredictor,
    inputs: np.ndarray,
    batch: int,
    runtimes: Sequence[str],
    folder: Path,
    precision: str,
    threads: int = 1,
) -> Record:
    """Make a network for the quickest of some runtimes, in `folder`, which appears when it is done.

    Args:
        exact: the network in torch and float32, whose answers are the measure.
        tuned: the network in torch and the format that is used there, whose time is the measure.
        inputs: (n, ...) inputs of the job, on which the answers are compared.
        batch: number of inputs of each call.
        runtimes: which to try, in order.
        precision: number format of the runtimes.
        threads: of a rank.

    Returns:
        The record, which is in the folder too. Its runtime is torch if no other one is taken.
    """
    dtype = tuned.runtime.partition(" ")[2]
    wanted, named = _answers(exact, inputs, batch), precision != "float32"
    ours = wanted if dtype == "float32" else _answers(tuned, inputs, batch)
    shape = (batch, *inputs.shape[1:])
    batches = [np.resize(inputs[at:], shape) for at in range(0, len(inputs), batch)]
    torch_ms = _milliseconds(tuned, batches[0])
    best = Record(
        runtime=TORCH,
        precision=dtype,
        batch=batch,
        shape=inputs.shape[1:],
        dtype=inputs.dtype.name,
        torch_ms=torch_ms,
        own_ms=torch_ms,
        changed=int(changed_classes(ours, wanted).sum()),
        judged=len(inputs),
        classes=exact.classes,
        why="",
        processor=processor(),
    )
    reasons, said = [], ours
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    place = Path(mkdtemp(prefix=unfinished(os.getpid()), dir=folder.parent))
    try:
        for runtime in runtimes:
            here, why = place / runtime, ""
            tried = replace(best, runtime=runtime, precision=precision)
            here.mkdir()
            try:
                MAKERS[runtime](tuned, batches, here, precision)
                if precision == INT8:
                    made = hashlib.sha256((here / FILES[ONNX]).read_bytes())
                    tried = replace(tried, digest=made.hexdigest()[:16])
                tuned.change_over(open_runtime(here, tried, threads), tried.answerer)
                found = _answers(tuned, inputs, batch)
                changed = int(changed_classes(found, wanted).sum())
                tried = replace(tried, own_ms=_milliseconds(tuned, batches[0]), changed=changed)
                why = "" if named else why_unequal(found, wanted)
            except Exception as error:  # libraries raise anything for a network they cannot take
                why = f"{type(error).__name__}: {one_line(error, 160)}"
            finally:
                tuned.change_over()
            if not why and tried.own_ms > PAYS * best.own_ms:
                why = f"{tried.own_ms:.3g} ms an input, {best.runtime} {best.own_ms:.3g} ms"
            if why:
                reasons.append(f"{runtime}: {why}")
            else:
                best, said = tried, found
        best = replace(best, why="; ".join(reasons))
        kept = place / best.runtime
        kept.mkdir(exist_ok=True)
        np.savez(kept / KNOWN, inputs=inputs[:TRIED], scores=said[0][:TRIED])
        best.write(kept)
        with suppress(FileExistsError, OSError):  # another job was quicker; its network is as good
            kept.rename(folder)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return best


def _answers(predictor: TorchPredictor, inputs: np.ndarray, batch: int) -> Answer:
    """The answers to all inputs, which are given in batches of the size that is used."""
    parts = [predictor.answer(inputs[at : at + batch]) for at in range(0, len(inputs), batch)]
    scores = np.concatenate([scores for scores, _ in parts])
    names = parts[0][1]
    return scores, {name: np.concatenate([given[name] for _, given in parts]) for name in names}


def _milliseconds(predictor: TorchPredictor, batch: np.ndarray) -> float:
    """The least processor time of an input, because other work only makes calls longer."""
    predictor.predict(batch)
    took: list[float] = []
    until_s = time.monotonic() + TIMED_S
    while len(took) < LEAST_CALLS or time.monotonic() < until_s:
        start_s = time.process_time()
        predictor.predict(batch)
        took.append(time.process_time() - start_s)
    return 1e3 * min(took) / len(batch)
