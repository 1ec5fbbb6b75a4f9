"""A network made for another runtime answers like torch, or is not used; nothing that happens while
it is made ends the job.
"""

from __future__ import annotations

import math
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from job_messages import HELLO, WELCOME
from library_files import PX, save_onnx

from collage_mpi.errors import UsageError
from collage_mpi.job import changeover
from collage_mpi.job.changeover import (
    Changeover,
    Work,
    chosen_runtimes,
    made_batch,
    run_child,
)
from collage_mpi.job.handshake import ServiceCosts
from collage_mpi.job.networks import Networks
from collage_mpi.job.plan import make_plan
from collage_mpi.job.session import build_encoder
from collage_mpi.models import load_predictor, runtimes
from collage_mpi.models.info import PLAIN, Geometry, Loading, Tuning
from collage_mpi.models.runtimes import TRIED_AGAIN, Runtime, open_runtime, read_record
from collage_mpi.mpi.answers import ANSWERED, FAILED
from collage_mpi.mpi.tasks import WireTask
from collage_mpi.rows import ANSWERERS
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards import ShardSet
from collage_mpi.system.process_tree import Said

torch = pytest.importorskip("torch")

from collage_mpi.models import making  # noqa: E402
from collage_mpi.models.predictor import TorchPredictor  # noqa: E402

DATA = files("collage_mpi") / "data"
SINGLE = str(DATA / "fashion_single.safetensors")
INSTALLED = [name for name, package in runtimes.PACKAGES.items() if find_spec(package)]


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    with ShardSet.open([str(DATA / "fashion_demo.h5")]) as shards:
        found: np.ndarray = shards.read(np.arange(64))[0]
    return found


def single() -> TorchPredictor:
    found = load_predictor(SINGLE, "single", Loading(tuning=PLAIN))
    assert isinstance(found, TorchPredictor)
    return found


def networks_of(network: TorchPredictor) -> Networks:
    geometry = replace(WELCOME.geometry, image_shape=(28, 28, 1))
    welcome = replace(WELCOME, geometry=geometry, networks={"single": SINGLE})
    return Networks(welcome, lambda *_: network, time.monotonic_ns, time.process_time_ns)


def swapped(call: Callable[[np.ndarray], np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda batch: np.ascontiguousarray(call(batch)[:, :, ::-1])


@pytest.mark.parametrize("runtime", INSTALLED)
def test_an_answer_is_that_of_torch_whatever_batch_it_came_in(
    images: np.ndarray, tmp_path: Path, runtime: str, monkeypatch
) -> None:
    network, folder = single(), tmp_path / "made"
    wanted = network.predict(images)
    monkeypatch.setattr(making, "PAYS", math.inf)  # on a busy machine it may not be quicker
    record = making.make(network, network, images, 4, [runtime], folder, "float32")
    assert read_record(folder) == record
    assert (record.runtime, record.changed, record.judged) == (runtime, 0, 64)
    network.change_over(open_runtime(folder, record, 1), record.answerer)
    at_once = network.predict(images)
    np.testing.assert_allclose(at_once, wanted, atol=1e-4)
    for size in (1, 3, 6):
        parts = [network.predict(images[at : at + size]) for at in range(0, 64, size)]
        np.testing.assert_array_equal(np.concatenate(parts), at_once)


@pytest.mark.skipif(not all(map(find_spec, runtimes.QUANTISERS)), reason="needs onnx")
@pytest.mark.parametrize("runtime", INSTALLED)
def test_a_network_in_int8_is_made_of_pictures_and_named_by_its_bytes(
    images: np.ndarray, tmp_path: Path, runtime: str, monkeypatch
) -> None:
    network = single()
    wanted = network.predict(images)
    monkeypatch.setattr(making, "PAYS", math.inf)
    made = [
        making.make(network, network, each, 4, [runtime], tmp_path / str(number), "int8")
        for number, each in enumerate((images[:8], images[:8], images[8:20]))
    ]
    assert len({record.digest for record in made}) == 2
    assert {record.answerer for record in made} <= set(ANSWERERS)
    record = made[0]
    assert record.how == f"{runtime} int8 {record.digest}"
    assert len(record.digest) == 16
    network.change_over(open_runtime(tmp_path / "0", record, 1), record.answerer)
    at_once = network.predict(images)
    assert 1e-3 < np.abs(at_once - wanted).max() < 0.5  # it computes otherwise, and not much so
    parts = [network.predict(images[at : at + 3]) for at in range(0, 64, 3)]
    np.testing.assert_array_equal(np.concatenate(parts), at_once)


@pytest.mark.skipif(not all(map(find_spec, runtimes.QUANTISERS)), reason="needs onnx")
def test_a_stage_in_int8_is_made_as_the_job_asks_for_it(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv(runtimes.CACHE, str(tmp_path))
    monkeypatch.setattr(runtimes, "processor_facts", lambda: {"flags": "avx512_vnni"})
    monkeypatch.setattr(making, "PAYS", math.inf)
    given = {"scheme": "cascade", "agree": 0.9, "batch": 4, "runtime": INSTALLED[0]}
    data = {"shards": (str(DATA / "fashion_demo.h5"),), "single": SINGLE, "out": "x"}
    plan = make_plan(RunSettings(first=("@int8",), **given, **data), 2)
    prints = dict.fromkeys(("single", "stage1"), single().fingerprint)
    tuning = dict.fromkeys(prints, "float32, channels-last")
    hello = replace(HELLO, devices=("cpu",), fingerprints=prints, tuning=tuning)
    costs = ServiceCosts(dict.fromkeys(prints, 10**7), {}, {}, {}, 4, None)
    wanted = Changeover(plan, {1: hello}, build_encoder(plan), costs, plan.order)
    for _, request in wanted._requests:
        changeover.make_as_asked(request)
    plan.shards.close()
    found = {kind: wanted.record(kind) for kind in prints}
    assert {kind: each and each.precision for kind, each in found.items()} == {
        "single": "float32",
        "stage1": "int8",
    }
    assert wanted.folders["single"] != wanted.folders["stage1"]


def test_int8_is_refused_where_it_cannot_be_had_or_is_no_quicker(monkeypatch) -> None:
    def why(spec: str, runtime: str) -> str:
        with pytest.raises(UsageError) as caught:
            runtimes.candidates(spec, Tuning(precision="int8", runtime=runtime))
        return str(caught.value)

    monkeypatch.setattr(runtimes, "find_spec", lambda name: name != "openvino" or None)
    monkeypatch.setattr(runtimes, "processor_facts", lambda: {"flags": "sse avx512_vnni"})
    assert runtimes.candidates("timm:x", Tuning(precision="int8", runtime="auto")) == ("onnx",)
    assert "int8 is not to be had of --runtime torch" in why("timm:x", "torch")
    assert "of FILE.onnx as it is (a.onnx)" in why("a.onnx", "auto")
    monkeypatch.setattr(runtimes, "processor_facts", lambda: {"model name": "Z80", "flags": "sse"})
    assert "this processor (Z80) has none of amx_int8, avx512_vnni" in why("timm:x", "auto")
    monkeypatch.setattr(runtimes, "find_spec", lambda name: None)
    assert "int8 needs onnxruntime and onnx: pip install" in why("timm:x", "auto")
    with pytest.raises(UsageError, match="int8 runs on CPUs, and this rank runs on a GPU"):
        Tuning(precision="int8", runtime="auto").on("cuda")
    assert Tuning(precision="int8", runtime="auto").on("cpu") == PLAIN  # until it is made


def test_an_onnx_file_of_the_user_is_read_as_it_is(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("onnx")
    noise = np.random.default_rng(1).integers(0, 256, (64, PX, PX, 3), np.uint8)
    for more in ({}, {"last": True}, {"softmax": True}):
        file = save_onnx(tmp_path / f"{len(more)}.onnx", **more)
        how = Loading(tuning=PLAIN, geometry=Geometry((PX, PX, 3), 2, PX, None))
        network: Any = load_predictor(f"{file},norm=imagenet", "single", how)
        assert network.runtime == "onnx float32"
        wanted = network.predict(noise)
        making._for_openvino(network, [noise[:4]], tmp_path, "float32")
        call = runtimes._openvino(tmp_path / "network.xml", "float32", 1)
        network.change_over(Runtime(call, 4), "openvino float32")
        np.testing.assert_allclose(network.predict(noise), wanted, atol=1e-4)


OPENED = """
import ctypes, pathlib, sys
import openvino
from openvino import opset13 as ops
from collage_mpi.models import runtimes
def stack():
    found = runtimes._Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(found))
    return found.start, found.flags, found.size
given = ops.parameter([1, 4], openvino.Type.f32)
file = pathlib.Path(sys.argv[1], "network.xml")
openvino.save_model(openvino.Model([ops.relu(given)], [given]), str(file))
before = stack()
call = runtimes._openvino(file, "float32", 1)  # kept: without it the plugin is unloaded
sys.exit(0 if stack() == before else f"{before} became {stack()}")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs the right to ask Linux")
def test_signals_are_handled_on_the_same_stack_while_openvino_is_loaded(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    subprocess.run([sys.executable, "-c", OPENED, str(tmp_path)], check=True)


def test_a_runtime_with_other_answers_is_not_taken(
    images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = single()
    exact = lambda batch: network.forward(torch.from_numpy(batch)).detach().numpy()  # noqa: E731
    monkeypatch.setitem(making.MAKERS, "onnx", lambda *_: None)
    monkeypatch.setattr(making, "_milliseconds", lambda predictor, _: len(predictor.runtime))
    for name, call, why in (
        ("swapped", swapped(exact), "onnx: 6. of 64 inputs got another class"),
        ("softer", lambda batch: 0.999 * exact(batch), "onnx: a probability differs by 0.00"),
        ("nan", lambda batch: np.nan * exact(batch), "inputs got another class"),
        ("short", lambda batch: exact(batch)[:, :, :3], "onnx: "),
    ):
        monkeypatch.setitem(runtimes._OPENERS, "onnx", lambda *_, call=call: call)
        folder = tmp_path / name
        record = making.make(network, network, images, 8, ["onnx"], folder, "float32")
        assert record.runtime == "torch"
        assert re.search(why, record.why), record.why
        assert sorted(each.name for each in folder.iterdir()) == ["known.npz", "record.json"]
        assert network.launch is network.torch
    assert [each.name for each in tmp_path.iterdir() if each.name.startswith("making")] == []


@pytest.mark.parametrize("answers", ["equal", "other", "an error"])
def test_a_rank_lets_both_answer_before_it_changes_over(
    images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: str
) -> None:
    network, other = single(), single()
    plain = other.predict(images)

    def call(batch: np.ndarray) -> np.ndarray:
        if answers == "an error":
            raise RuntimeError("it broke")
        found: np.ndarray = other.forward(torch.from_numpy(batch)).detach().numpy()
        return np.ascontiguousarray(found[:, :, ::-1]) if answers == "other" else found

    monkeypatch.setitem(runtimes._OPENERS, "onnx", lambda *_: call)
    told = networks_of(network)
    told.await_runtimes({"single": str(tmp_path)})
    assert list(told.changes()) == []  # it is not there yet
    record = runtimes.Record(
        *("onnx", "float32", 8, (28, 28, 1), "uint8", 2.0, 1.0, 0, 64, "", runtimes.processor())
    )
    record.write(tmp_path)
    told._look_ns = 0
    seen = []
    for at in range(0, 64, 16):
        seen += told.changes()
        np.testing.assert_allclose(network.predict(images[at : at + 16]), plain[at : at + 16], 1e-5)
    (changed,) = seen
    if answers == "equal":
        assert (changed.kind, changed.runtime, changed.why) == ("single", "onnx float32", "")
        assert at + 16 - TRIED_AGAIN > 0
    else:
        assert changed.runtime == network.runtime == "torch float32"
        assert "got another class" in changed.why or "it broke" in changed.why
    assert networks_of(network).predictors["single"].runtime == "torch float32"


KNOWN_WRONG = {
    "equal": "",
    "other": "other answers than where the network was made",
    "an error": "onnx bfloat16 cannot be loaded: RuntimeError: no such instruction",
    "no folder": "has no network",
    "no answers": "the known images cannot be answered: FileNotFoundError",
}


@pytest.mark.parametrize("answers", KNOWN_WRONG)
def test_where_answers_are_promised_a_rank_that_gives_others_gives_none(
    images: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, answers: str
) -> None:
    network, other = single(), single()

    def opened(*_: Any) -> Any:
        if answers == "an error":
            raise RuntimeError("no such instruction")
        return lambda batch: other.forward(torch.from_numpy(batch)).detach().numpy()

    monkeypatch.setitem(runtimes._OPENERS, "onnx", opened)
    wanted = other.predict(images)
    record = runtimes.Record(
        *("onnx", "bfloat16", 8, (28, 28, 1), "uint8", 2.0, 1.0, 0, 64, "", runtimes.processor())
    )
    folder = tmp_path / "made"
    if answers != "no folder":
        folder.mkdir()
        record.write(folder)
        known = wanted[:, :, ::-1] if answers == "other" else wanted
        if answers != "no answers":
            np.savez(folder / runtimes.KNOWN, inputs=images, scores=known)
    told = networks_of(network)
    told.await_runtimes({"single": str(folder)}, {"single"})
    first = [*told.changes(), *told.changes()][0]
    task = WireTask(1, "single", tuple((i, 0) for i in range(4)))
    (result,) = told.begin([task], [images[:4]]).finish()
    if answers == "equal":
        assert (first.runtime, first.why) == (network.runtime, "") == ("onnx bfloat16", "")
        assert result.status == ANSWERED
    else:
        assert first.runtime == ""
        assert KNOWN_WRONG[answers].removeprefix("other answers ") in first.why
        assert (result.status, result.reason) == (FAILED, first.why)
    assert list(told.changes()) == []


@pytest.mark.parametrize(("code", "runtime"), [(-4, "torch float32"), (0, "onnx bfloat16")])
def test_another_kind_of_processor_is_tried_in_a_child_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, runtime: str
) -> None:
    network, asked = single(), []

    def ask(command: Any, request: Any, *_: Any) -> Said:
        asked.append(request)
        return Said([], "", code)

    monkeypatch.setattr(runtimes, "ask_apart", ask)
    monkeypatch.setitem(runtimes._OPENERS, "onnx", lambda *_: lambda batch: batch)
    record = runtimes.Record(
        *("onnx", "bfloat16", 8, (28, 28, 1), "uint8", 2.0, 1.0, 0, 64, "", "another processor")
    )
    trial = runtimes.change_over(network, tmp_path, record, 1)
    assert asked == [{"folder": str(tmp_path), "threads": 1}]
    assert network.runtime == runtime
    assert trial is not None
    assert trial.verdict is not None
    assert ("ended with -4" in trial.verdict) == (code != 0)


LEAVES_A_FOLDER = """
import os, platform, time
os.mkdir(f"making-{platform.node()}-{os.getpid()}-x")
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("code", "limit_s", "says"),
    [
        ("import os; os.kill(os.getpid(), 4)", 60, "its process was ended by SIGILL"),
        (LEAVES_A_FOLDER, 1.0, "it took longer than 1 s"),
        ("import sys; sys.exit('no such operation')", 60, "no such operation"),
    ],
)
def test_a_child_that_dies_or_hangs_is_told_and_torch_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, limit_s: float, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(changeover, "CHILD_COMMAND", (sys.executable, "-c", code))
    monkeypatch.setattr(changeover, "LIMIT_S", limit_s)
    request = {"folder": str(tmp_path / "made"), "runtimes": ["openvino"]}
    line = run_child("single", request, lambda child: None)
    assert line == f"runtime: torch goes on; openvino could not be made: {says}"
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_made_where_making_costs_more_than_it_saves(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """EfficientNet-Lite0 takes 28 ms an image in torch."""
    auto, there = replace(PLAIN, runtime="auto"), {"openvino", "onnxruntime"}
    monkeypatch.setattr(runtimes, "find_spec", lambda name: name in there or None)
    for images, ranks, chosen in (
        (500, 1, ()),
        (5_000, 2, ("openvino", "onnx")),
        (1_200, 1, ("openvino",)),
        (1_200, 8, ()),
    ):
        found, why = chosen_runtimes("net.pt2", auto, Work(images, 0.028, ranks))
        assert (found, bool(why)) == (chosen, not chosen)
    there.clear()
    for images, chosen in ((20_000, ()), (30_000, ("compile",))):
        found, why = chosen_runtimes("net.pt2", auto, Work(images, 0.028, 1))
        assert (found, "openvino" in why) == (chosen, True)
    with pytest.raises(runtimes.UsageError, match=r"--runtime onnx needs onnxruntime"):
        chosen_runtimes("net.pt2", replace(PLAIN, runtime="onnx"), Work(1, 1.0, 1))


def test_a_forecast_counts_what_is_answered_before_the_other_runtime_is_made() -> None:
    assert Work(100, 0.03, 1).gain(6.0) == 1.0  # it is over before
    assert 1.4 < Work(2_000, 0.03, 2).gain(6.0) < Work(20_000, 0.03, 2).gain(6.0) < 2.0


def test_jobs_that_choose_other_batches_share_a_made_network() -> None:
    assert [made_batch(batch, 1) for batch in (1, 2, 3, 4, 8, 100)] == [1, 2, 2, 4, 4, 4]
    assert made_batch(100, 8) == 32
