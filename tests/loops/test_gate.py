"""The gate for networks of others: programs want a word, graphs keep to their folder."""

from __future__ import annotations

import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from library_files import CLASSES, PX, save_exported, save_hf, save_onnx, save_scripted

import collage_mpi
from collage_mpi.cli import main
from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, ExitCode, UsageError
from collage_mpi.models import describe, load_predictor
from collage_mpi.models.asked import confine
from collage_mpi.models.asking import ask
from collage_mpi.models.gate import sha256_of_network
from collage_mpi.models.info import PLAIN, Geometry, Loading
from collage_mpi.models.named import ANY, NotInCache
from collage_mpi.models.weights import read_tensors, save_weights
from collage_mpi.settings.run_settings import RunSettings

pytestmark = pytest.mark.usefixtures("torch_once")
GEOMETRY = Geometry((PX, PX, 3), side=2, cell_px=PX, classes=None)
SHARD = str(Path(collage_mpi.__file__).parent / "data" / "fashion_demo.h5")
HAS_LANDLOCK = subprocess.run(
    [sys.executable, "-c", "from collage_mpi.models.asked import confine; exit(confine([]))"]
).returncode


def save_shell_program(path: Path, ran: Path) -> Path:
    """A program of torch.export whose shape expression runs a shell command."""
    sound = zipfile.ZipFile(save_exported(path))
    attack = f"Symbol(['s77', __import__('os').system('touch {ran}')][0]".encode()
    files = {name: sound.read(name) for name in sound.namelist()}
    with zipfile.ZipFile(path, "w") as made:
        for name, content in files.items():
            assert not name.endswith("model.json") or b"Symbol('s77'" in content
            made.writestr(name, content.replace(b"Symbol('s77'", attack))
    return path


class Writer(torch.nn.Module):
    """Writes sixteen numbers into a file when it is called."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        written = torch.from_file(self.file, shared=True, size=16, dtype=torch.float32)
        written.fill_(1.0)
        return x.mean((2, 3)) + written[0]


def save_writing_program(path: Path, ran: Path) -> Path:
    torch.jit.script(Writer(str(ran))).save(str(path))
    return path


PROGRAMS = [(save_shell_program, "evil.pt2"), (save_writing_program, "evil.ts")]


@pytest.mark.parametrize(("save", "name"), PROGRAMS)
@pytest.mark.parametrize(
    "command",
    [
        ("run", "--dry-run", "--out", "o", "--scheme", "none", "--singles", "1", "--shards", SHARD),
        ("classify", "photos", "--out", "c.csv"),
        ("evaluate", "--shards", SHARD),
    ],
)
def test_a_program_does_nothing_before_its_user_trusts_it(
    save, name, command, tmp_path, monkeypatch, capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    file = save(tmp_path / name, tmp_path / "ran")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    words = [*command, "--network" if command[0] == "classify" else "--single", name]
    for more in ([], ["--trust-network", "0" * 64]):
        assert main([*words, *more]) == ExitCode.USAGE
        said = capsys.readouterr().err
        assert f"{name} is a program" in said
        assert f"--trust-network {digest} (its SHA-256)" in said
    assert {path.name for path in tmp_path.iterdir()} == {name, "photos"}
    assert main([*words, "--trust-network", digest[:9]]) == ExitCode.USAGE
    assert "needed: the SHA-256 of the file in 64 hex digits" in capsys.readouterr().err
    with pytest.raises(UsageError, match="is a program"):  # each rank asks again
        load_predictor(name, "single", Loading(tuning=PLAIN, geometry=GEOMETRY))


@pytest.mark.parametrize(("save", "name"), PROGRAMS)
def test_a_program_is_first_opened_without_the_right_to_run_others_or_to_write(
    save, name, tmp_path
) -> None:
    file, ran = save(tmp_path / name, tmp_path / "ran"), tmp_path / "ran"
    if HAS_LANDLOCK:
        try:
            ask(str(file), "single", GEOMETRY, sha256_of_network(file))
        except CollageError:
            pass  # what it tried has failed
        assert not ran.exists()
    how = Loading(tuning=PLAIN, geometry=GEOMETRY, trusted=f"{'0' * 64},{sha256_of_network(file)}")
    load_predictor(str(file), "single", how).predict(np.zeros((1, PX, PX, 3), np.uint8))
    assert ran.exists()  # so this was an attack


@pytest.mark.skipif(not HAS_LANDLOCK, reason="this kernel has no Landlock")
def test_a_confined_process_writes_in_its_folder_alone_and_starts_nothing(tmp_path) -> None:
    (tmp_path / "own").mkdir()
    program = """
import os, subprocess, sys
from pathlib import Path
from collage_mpi.models.asked import confine
top = Path(sys.argv[1])
assert confine([top / "own", top / "missing"])
(top / "own" / "a").write_text("a")
(top / "own" / "sub").mkdir()
(top / "own" / "a").rename(top / "own" / "sub" / "b")
Path("/dev/null").write_text("nothing")
assert (top / "there").read_text() == "there"
outside = top / "outside"
for what in (lambda: outside.write_text(""), lambda: (top / "there").unlink(), outside.mkdir,
             lambda: os.truncate(top / "there", 0), lambda: subprocess.run(["true"])):
    try:
        what()
    except OSError:
        continue
    sys.exit("it could")
"""
    (tmp_path / "there").write_text("there")
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "own" / "sub" / "b").read_text() == "a"


def test_a_system_without_landlock_is_left_alone(monkeypatch) -> None:
    monkeypatch.setattr("sys.platform", "darwin")
    assert not confine([Path("/")])


def test_data_loads_as_it_is_and_a_state_dict_is_no_program(tmp_path) -> None:
    torch.save({"a": torch.zeros(2)}, tmp_path / "state.pth")
    with pytest.raises(DataFault, match=r"torch.save pickled it.*timm:NAME,weights=.*state.pth"):
        describe(str(tmp_path / "state.pth"), "single")
    (tmp_path / "text.ts").write_text("no archive")
    with pytest.raises(DataFault, match="no archive of torch, or damaged"):
        describe(str(tmp_path / "text.ts"), "single")


# ---- graphs with files beside them --------------------------------------------


def save_split(folder: Path, location: str = "n.onnx.data", negated: bool = False) -> Path:
    """A graph of ONNX whose weights are in a file beside it, as torch.onnx.export writes it."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    folder.mkdir(exist_ok=True)
    model = onnx.load(save_onnx(folder / "n.onnx"))
    (weights,) = model.graph.initializer
    values = onnx.numpy_helper.to_array(weights)
    (folder / "n.onnx.data").write_bytes((-values if negated else values).tobytes())
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    weights.external_data.add(key="location", value=location)
    (folder / "n.onnx").write_bytes(model.SerializeToString())
    return folder / "n.onnx"


def test_weights_beside_a_graph_are_part_of_its_fingerprint(tmp_path) -> None:
    one, same = save_split(tmp_path / "one"), save_split(tmp_path / "same")
    other = save_split(tmp_path / "other", negated=True)
    assert one.read_bytes() == other.read_bytes()
    asked = [ask(str(file), "single", GEOMETRY).info.fingerprint for file in (one, same, other)]
    assert asked[0] == asked[1] == sha256_of_network(one) != asked[2]
    settings = [RunSettings(single=str(file), scheme="none") for file in (one, same, other)]
    from collage_mpi.job.provenance import digests, named_files

    found = [digests(named_files(each))["single"] for each in settings]
    assert found == asked  # which --resume compares
    whole = save_onnx(tmp_path / "whole.onnx")
    assert sha256_of_network(whole) == hashlib.sha256(whole.read_bytes()).hexdigest()


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "link", "sub/../n.onnx.data"])
def test_a_graph_names_files_of_its_own_folder_alone(location, tmp_path) -> None:
    (tmp_path / "secret").write_bytes(bytes(3 * CLASSES * 4))
    graph = save_split(tmp_path / "own", location)
    (tmp_path / "own" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(DataFault, match="outside of its own folder"):
        describe(str(graph), "single")


def test_weights_that_are_missing_are_told_before_ranks_start(tmp_path) -> None:
    graph = save_split(tmp_path / "own")
    (tmp_path / "own" / "n.onnx.data").unlink()
    with pytest.raises(EnvironmentFault, match=r"'n.onnx.data' beside it.*No such file"):
        describe(str(graph), "single")
    memory = save_split(tmp_path / "memory", "*/_ORT_MEM_ADDR_/*")  # of onnxruntime's process
    with pytest.raises(EnvironmentFault, match="beside it, which cannot be read"):
        describe(str(memory), "single")


@pytest.mark.parametrize("place", ["function", "branch", "constant", "sparse"])
def test_files_are_found_wherever_a_graph_may_name_them(place, tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    tensor = onnx.TensorProto(data_type=1, dims=[1], data_location=onnx.TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="missing")
    constant = helper.make_node("Constant", [], ["c"], value=tensor)
    inner = helper.make_graph([constant], "inner", [], [])
    made = onnx.load(save_onnx(tmp_path / "n.onnx"))
    if place == "function":
        made.functions.append(helper.make_function("d", "f", [], ["c"], [constant], []))
    elif place == "branch":
        made.graph.node.append(helper.make_node("If", ["x"], ["c"], then_branch=inner))
    elif place == "constant":
        made.graph.node.append(constant)
    else:
        made.graph.sparse_initializer.append(onnx.SparseTensorProto(values=tensor))
    (tmp_path / "n.onnx").write_bytes(made.SerializeToString())
    with pytest.raises(EnvironmentFault, match="'missing' beside it"):
        describe(str(tmp_path / "n.onnx"), "single")


def test_operators_of_other_libraries_are_not_loaded(tmp_path) -> None:
    onnx = pytest.importorskip("onnx")
    model = onnx.load(save_onnx(tmp_path / "n.onnx"))
    model.graph.node[0].domain = "of.mine"
    model.opset_import.add(domain="of.mine", version=1)
    (tmp_path / "n.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(DataFault, match="cannot be loaded"):
        ask(str(tmp_path / "n.onnx"), "single", GEOMETRY)


# ---- code that comes with a network of a hub ----------------------------------


def test_code_of_a_hub_runs_only_when_it_is_trusted(tmp_path, monkeypatch) -> None:
    pytest.importorskip("transformers")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    folder, ran = save_hf(tmp_path / "net"), tmp_path / "ran"
    (folder / "theirs.py").write_text(
        f"open({str(ran)!r}, 'w').close()\n"
        "from transformers import ResNetConfig, ResNetForImageClassification\n"
        "class Config(ResNetConfig):\n    model_type = 'theirs'\n"
        "class Network(ResNetForImageClassification):\n    config_class = Config\n"
    )
    config = json.loads((folder / "config.json").read_text())
    places = {"AutoConfig": "theirs.Config", "AutoModelForImageClassification": "theirs.Network"}
    config.update(model_type="theirs", auto_map=places)
    (folder / "config.json").write_text(json.dumps(config))

    def loaded(trusted: str) -> int:
        how = Loading(tuning=PLAIN, geometry=GEOMETRY, trusted=trusted)
        return load_predictor(f"hf:{folder}", "single", how).classes

    with pytest.raises(UsageError, match="Python code comes with its weights") as refusal:
        loaded("")
    assert not ran.exists()
    assert loaded(str(refusal.value).split("--trust-network ")[1].split()[0]) == CLASSES
    assert ran.exists()
    config["auto_map"]["AutoConfig"] = "another/place--theirs.Config"
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="say --trust-network any, because parts of it come"):
        loaded("0" * 64)


def test_pickles_that_a_library_would_load_run_nothing(tmp_path) -> None:
    """Also where an older version of the library asks torch for it."""
    timm = pytest.importorskip("timm")

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    network = timm.create_model("test_resnet", num_classes=CLASSES)
    timm.models.save_for_hf(network, tmp_path / "net", safe_serialization=False)
    torch.save(Evil(), tmp_path / "net" / "pytorch_model.bin")
    with pytest.MonkeyPatch.context() as old:
        theirs = torch.load
        old.setattr(torch, "load", lambda *a, **k: theirs(*a, **{**k, "weights_only": False}))
        with pytest.raises(DataFault, match="cannot be loaded"):
            load_predictor(f"timm:local-dir:{tmp_path / 'net'}", "single",
                           Loading(tuning=PLAIN, geometry=GEOMETRY, trusted=ANY))  # fmt: skip
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("save", [save_scripted, save_exported])
def test_a_sound_program_of_this_digest_loads(save, tmp_path) -> None:
    file = save(tmp_path / f"n.{'ts' if save is save_scripted else 'pt2'}")
    assert ask(f"{file},norm=half", "single", GEOMETRY, sha256_of_network(file)).classes == CLASSES


# ---- what is no network, and hubs ----------------------------------------------


@pytest.mark.parametrize(
    ("spec", "advice"),
    [
        ("resnet50", "give timm:resnet50 for a network of timm"),
        ("google/vit-base", "give hf:google/vit-base for"),
        ("rnd.py", "name the function in the file too, such as rnd.py:network"),
        ("torchvision:resnet18", "give timm:resnet18, or save the network as ONNX"),
        (".", r"give hf:\. for a folder that transformers wrote"),
        ("net.ckpt", "timm:NAME,weights=net.ckpt"),
        ("net.keras", "save the network as ONNX"),
        ("photo.jpg", "give timm:photo.jpg for a network of timm; docs/networks.md"),
        ("gone.safetensors", "make one with: collage-mpi train"),
    ],
)
def test_what_is_no_network_gets_advice_that_fits(spec, advice, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(EnvironmentFault, match=advice) as told:
        describe(spec, "single")
    assert spec == "gone.safetensors" or "train single" not in str(told.value)


def test_a_name_that_timm_lacks_is_known_without_timm(monkeypatch) -> None:
    timm = pytest.importorskip("timm")
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "timm", None)
        without.setattr("collage_mpi.models.gate.find_spec", lambda _: timm.__spec__)
        with pytest.raises(UsageError, match="no network 'resnet5'; did you mean 'resnet50'"):
            describe("timm:resnet5", "single")
        for name in {name.partition(".")[0] for name in timm.list_models()[::50]}:
            assert describe(f"timm:{name}", "single") is None
        assert describe("timm:hf-hub:a/b", "single") is None


def test_a_hub_that_cannot_be_reached_is_told_at_once(monkeypatch, capsys) -> None:
    """Both where no one listens and where no one answers."""
    pytest.importorskip("timm")
    children = []

    def child(request, environment):
        children.append(environment.get("HF_HUB_OFFLINE"))
        return {"fault": "NotInCache", "message": "not there"}

    monkeypatch.setattr("collage_mpi.models.asking._child", child)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{closed.getsockname()[1]}")
        assert main(["weights", "fetch", "timm:resnet18"]) == ExitCode.ENVIRONMENT
    assert "cannot be reached: [Errno 111]" in capsys.readouterr().err
    monkeypatch.setattr("collage_mpi.models.asking.REACH_S", 0.01)
    hung = threading.Event()
    monkeypatch.setattr("socket.create_connection", lambda *_: hung.wait(60) and socket.socket())
    with pytest.raises(NotInCache, match=r"no answer within 0.01 s.* fetch timm:resnet3"):
        ask("timm:resnet34", "single", GEOMETRY)
    hung.set()
    assert children == ["1", "1"]  # the libraries were never let go to the hub


def test_fetch_fills_the_cache_and_says_what_is_there(tmp_path, monkeypatch, capsys) -> None:
    pytest.importorskip("transformers")
    folder = save_hf(tmp_path / "net")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    assert main(["weights", "fetch", f"hf:{folder}"]) == 0
    assert f"in the cache {tmp_path / 'hub'}; 4 classes, images of 28 x 28 x 3" in (
        capsys.readouterr().out
    )
    assert main(["weights", "fetch", "n.onnx"]) == ExitCode.USAGE
    assert "n.onnx comes from no hub" in capsys.readouterr().err
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert main(["weights", "fetch", f"hf:{folder}"]) == ExitCode.USAGE


@pytest.mark.parametrize("change", ["missing", "unknown", "shape"])
def test_weights_that_do_not_fit_their_own_record_are_refused(change, tmp_path) -> None:
    info = describe(str(Path(SHARD).with_name("fashion_single.safetensors")), "single")
    assert info is not None
    tensors = read_tensors(info)
    name = sorted(tensors)[-1]
    if change == "unknown":
        tensors["other"] = np.zeros(3, np.float32)
    else:
        found = tensors.pop(name)
        tensors |= {} if change == "missing" else {name: np.concatenate([found, found])}
    record = {k: v for k, v in info.metadata.items() if k not in ("format", "version")}
    made = save_weights(tmp_path / "w.safetensors", tensors, record)
    with pytest.raises(DataFault, match="do not fit their own architecture"):
        load_predictor(str(made.path), "single", Loading(tuning=PLAIN))
