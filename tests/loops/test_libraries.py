"""Networks of other libraries: the same logits as the library's own forward, names, refusals."""

from __future__ import annotations

import json
import os
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from library_files import (
    CLASSES,
    PX,
    save_clip,
    save_exported,
    save_hf,
    save_onnx,
    save_scripted,
    save_timm,
    save_vit,
    tiny,
)
from PIL import Image

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, UsageError
from collage_mpi.models import asking, describe, libraries, load_predictor
from collage_mpi.models.asking import ask
from collage_mpi.models.info import PLAIN, Declared, Geometry, Loading
from collage_mpi.models.named import ANY, NORMS, NotInCache, is_foreign, read_spec
from collage_mpi.models.predictor import TorchPredictor
from collage_mpi.shards.pictures import PictureFit, picture_pixels

pytestmark = pytest.mark.usefixtures("torch_once")
GEOMETRY = Geometry((PX, PX, 3), side=2, cell_px=PX, classes=None)
NOISE = np.random.default_rng(1).integers(0, 256, (5, PX, PX, 3), np.uint8)


def loaded(spec: object, **more: object) -> TorchPredictor:
    how = Loading(tuning=PLAIN, geometry=GEOMETRY, **{"trusted": ANY, **more})  # type: ignore[arg-type]
    found = load_predictor(str(spec), "single", how)
    assert isinstance(found, TorchPredictor)
    return found


def pixels(batch: np.ndarray, norm: str = "none") -> torch.Tensor:
    mean, std = (torch.tensor(each).reshape(1, -1, 1, 1) for each in NORMS[norm])
    return (torch.from_numpy(batch).permute(0, 3, 1, 2) / 255 - mean) / std


def same(predictor: TorchPredictor, expected: torch.Tensor, batch: np.ndarray = NOISE) -> None:
    """Logits, and so probabilities, are those of the library, up to rounding."""
    found = predictor.outputs(batch)[:, 0]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    scores = torch.from_numpy(predictor.predict(batch)[:, 0])
    torch.testing.assert_close(scores, expected.softmax(1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("spec", "library"),
    [
        ("timm:resnet50", "timm"),
        ("timm:hf-hub:timm/resnet50.a1_in1k", "timm"),
        ("timm:resnet50,weights=a/b.pth,norm=half", "timm"),
        ("hf:google/vit-base", "hf"),
        ("a/net.onnx", "onnx"),
        ("net.ONNX,norm=imagenet", "onnx"),
        ("net.pt2", "exported"),
        ("net.pt", "scripted"),
        ("my.net:make", "function"),
        ("net.py:make", "function"),
        ("net.safetensors", None),
        ("a,b.safetensors", None),
        ("torchvision:resnet18", None),
        ("null:classes=3", None),
        ("timm:", None),
    ],
)
def test_the_library_of_a_spec(spec: str, library: str | None) -> None:
    named = read_spec(spec)
    assert (named and named.library) == library
    assert is_foreign(spec) is (library is not None)


@torch.inference_mode()
def test_torchscript_and_exported_programs(tmp_path: Path) -> None:
    files = save_scripted(tmp_path / "n.ts"), save_exported(tmp_path / "n.pt2")
    for path in (*files, save_exported(tmp_path / "one.pt2", 1)):
        same(loaded(path), tiny()(pixels(NOISE)))
        same(loaded(f"{path},norm=imagenet"), tiny()(pixels(NOISE, "imagenet")))
        assert len(loaded(path).fingerprint) == 64
    assert libraries.load_exported(read_spec(str(files[1])), Loading())[2].shape == (PX, PX, 3)
    with pytest.raises(UsageError, match="gives no embeddings"):
        loaded(files[0], save="embeddings")


@torch.inference_mode()
def test_onnx(tmp_path: Path) -> None:
    ort = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnx")
    path = save_onnx(tmp_path / "n.onnx")
    given = pixels(NOISE).numpy()
    (logits,) = ort.InferenceSession(path).run(None, {"pixels": given})
    same(loaded(path), torch.from_numpy(logits))
    same(loaded(save_onnx(tmp_path / "one.onnx", batch=1)), torch.from_numpy(logits))
    same(loaded(save_onnx(tmp_path / "last.onnx", last=True)), torch.from_numpy(logits))
    bytes_in = loaded(save_onnx(tmp_path / "bytes.onnx", dtype="uint8"))
    same(bytes_in, torch.from_numpy(255 * logits))
    soft = loaded(save_onnx(tmp_path / "soft.onnx", softmax=True)).predict(NOISE)[:, 0]
    np.testing.assert_allclose(soft, torch.from_numpy(logits).softmax(1).numpy(), atol=1e-5)


@torch.inference_mode()
def test_timm_with_a_checkpoint_and_from_a_folder(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    file = save_timm(tmp_path / "w.pth")
    network = timm.create_model("test_resnet", num_classes=CLASSES, checkpoint_path=file).eval()
    noise = np.random.default_rng(1).integers(0, 256, (2, 160, 160, 3), np.uint8)
    expected = network(pixels(noise, "half"))
    predictor = loaded(f"timm:test_resnet,weights={file}")
    same(predictor, expected, noise)
    assert predictor.info.shape == (160, 160, 3)
    embedding = loaded(f"timm:test_resnet,weights={file}", save="embeddings").answer(noise)[1][
        "embedding"
    ]
    torch.testing.assert_close(
        torch.from_numpy(embedding), network.forward_head(network.forward_features(
            pixels(noise, "half")), pre_logits=True), atol=1e-4, rtol=1e-4)  # fmt: skip
    names = {"label_names": ["n1", "n2", "n3", "n4"], "label_descriptions": {"n1": "one"}}
    timm.models.save_for_hf(network, tmp_path / "folder", model_config=names)
    named = loaded(f"timm:local-dir:{tmp_path / 'folder'}")
    same(named, expected, noise)
    assert named.info.class_names == ("one", "n2", "n3", "n4")
    assert libraries.timm_names(timm.create_model("test_resnet"))[134] == "crane (134)"
    with pytest.raises(DataFault, match=r"cannot be loaded .*state_dict"):
        loaded(f"timm:test_resnet,weights={save_timm_other(tmp_path)}")
    with pytest.raises(DataFault, match=r"has no 'fc.weight': it is of another network"):
        loaded(f"timm:test_resnet,weights={save_state(tmp_path / 'tiny.pth')}")


def save_state(path: Path) -> Path:
    torch.save(tiny().state_dict(), path)
    return path


def norms_of(network: torch.nn.Module) -> list[torch.nn.Module]:
    """Batch norms that are not folded."""
    return [m for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize("ratio", [(2, 2), (3, 2), (2, 5)])
@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "mobilenetv3_small_100"])
def test_pictures_are_what_timms_own_transform_makes(name, ratio, tmp_path: Path) -> None:
    """Where it rounds no edge: this package cuts exact boxes. At the edge its filter sees more."""
    timm = pytest.importorskip("timm")
    network = timm.create_model(name, num_classes=CLASSES)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    config = timm.data.resolve_model_data_config(network)
    theirs = timm.data.create_transform(**{**config, "mean": (0, 0, 0), "std": (1, 1, 1)})
    named = read_spec(f"timm:{name},weights={tmp_path / 'w.pth'}")
    loaded_network, facts = libraries.load_named(named, Loading(tuning=PLAIN))
    assert not norms_of(loaded_network)
    assert norms_of(libraries.load_named(named, Loading())[0])  # as it is asked what it is
    fit = PictureFit(facts.shape[0], resize_px=facts.resize_px, filter=facts.filter)
    noise = np.random.default_rng(0).integers(0, 256, (9, 12, 3), np.uint8)
    picture = Image.fromarray(noise).resize([each * facts.resize_px for each in ratio])
    picture.save(stream := BytesIO(), "PNG")
    found, wanted = picture_pixels(stream.getvalue(), fit), 255 * theirs(picture)
    inner = slice(4, -4)
    np.testing.assert_allclose(
        found[inner, inner], wanted.permute(1, 2, 0)[inner, inner], atol=1e-3
    )


def save_timm_other(folder: Path) -> Path:
    torch.save({"fc.weight": torch.zeros(CLASSES, 3)}, folder / "other.pth")
    return folder / "other.pth"


@torch.inference_mode()
def test_hf(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder = save_hf(tmp_path / "net")
    network = transformers.AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    given = processor(list(NOISE), return_tensors="pt", input_data_format="channels_last")
    predictor = loaded(f"hf:{folder}")
    same(predictor, network(**given).logits)
    assert not norms_of(predictor.network)
    assert ask(f"hf:{folder}", "single", GEOMETRY).filter == "bilinear"
    assert predictor.info.class_names == ("a", "b", "c", "d")
    assert loaded(f"hf:{folder}", save="embeddings").answer(NOISE)[1]["embedding"].shape == (5, 16)
    unnamed = save_hf(tmp_path / "unnamed", tuple(f"LABEL_{i}" for i in range(CLASSES)))
    assert loaded(f"hf:{unnamed}").info.class_names == ("0", "1", "2", "3")
    with pytest.raises(DataFault, match=r"no weights of classifier.*would be random"):
        loaded(f"hf:{save_hf(tmp_path / 'headless', head=False)}")
    other = save_hf(tmp_path / "mismatched")
    config = json.loads((other / "config.json").read_text())
    config.update(id2label={i: str(i) for i in range(9)}, label2id={str(i): i for i in range(9)})
    (other / "config.json").write_text(json.dumps(config))
    with pytest.raises(DataFault, match=r"mismatch|would be random"):
        loaded(f"hf:{other}")
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(DataFault, match=r"no image processor.*norm=imagenet.half.none"):
        loaded(f"hf:{folder}")
    same(loaded(f"hf:{folder},norm=half"), network(pixels(NOISE, "half")).logits)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(DataFault, match="cannot be loaded"):
        loaded(f"hf:{folder},norm=half")


def embedded(spec: str, batch: np.ndarray = NOISE) -> np.ndarray:
    """(n, d) float16. The network names no class."""
    predictor = loaded(spec, save="outputs")
    scores, given = predictor.answer(batch)
    assert predictor.classes == 1
    assert (scores == 1).all()
    assert {name: values.dtype for name, values in given.items()} == {"embedding": np.float16}
    assert [(one.dtype, one.shape) for one in predictor.columns] == [
        ("<f2", given["embedding"].shape[1:])
    ]
    assert loaded(spec).predict(batch).shape == (len(batch), 1, 1)  # as rank 0 asks what it is
    return given["embedding"]


def alike(found: np.ndarray, expected: torch.Tensor, length: str = "l2") -> None:
    """Up to the rounding to float16."""
    wanted = expected / expected.norm(dim=1, keepdim=True) if length == "l2" else expected
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-3, rtol=1e-3)


@torch.inference_mode()
def test_the_embedding_of_a_network_of_timm_is_what_its_classifier_gets(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    file = save_timm(tmp_path / "w.pth")
    network = timm.create_model("test_resnet", num_classes=CLASSES, checkpoint_path=file).eval()
    noise = np.random.default_rng(1).integers(0, 256, (2, 160, 160, 3), np.uint8)
    given = network.forward_features(pixels(noise, "half"))
    expected = network.forward_head(given, pre_logits=True)
    for length in ("l2", "none"):
        spec = f"timm:test_resnet,weights={file},embed={length}"
        alike(embedded(spec, noise), expected, length)
    state = torch.load(file)
    headless = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    torch.save(headless, tmp_path / "headless.pth")
    alike(
        embedded(f"timm:test_resnet,weights={tmp_path / 'headless.pth'},embed=l2", noise), expected
    )
    torch.save({**headless, "other": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(DataFault, match=r"cannot be loaded .*other"):
        loaded(f"timm:test_resnet,weights={tmp_path / 'other.pth'},embed=l2", save="outputs")


@torch.inference_mode()
def test_the_embedding_of_a_network_of_transformers(tmp_path: Path) -> None:
    """Image features, or the pooler's output if it was trained, or the mean of what is hidden."""
    transformers = pytest.importorskip("transformers")
    given = pixels(NOISE, "half")
    folder = save_hf(tmp_path / "resnet")  # whose pooler has no weights
    network = transformers.AutoModel.from_pretrained(folder).eval()
    noise = (given / 2 + 0.5 - torch.tensor([0.4, 0.5, 0.6]).reshape(1, 3, 1, 1)) / 0.5
    processor = transformers.AutoImageProcessor.from_pretrained(folder).to_dict()
    noise = noise * 0.5 / torch.tensor(processor["image_std"]).reshape(1, 3, 1, 1)
    alike(embedded(f"hf:{folder},embed=none"), network(noise).pooler_output.flatten(1), "none")
    for pooler in (True, False):
        folder = save_vit(tmp_path / f"vit{pooler}", pooler)
        network = transformers.AutoModel.from_pretrained(folder).eval()
        out = network(given)
        wanted = out.pooler_output if pooler else out.last_hidden_state.mean(1)
        alike(embedded(f"hf:{folder},embed=l2"), wanted)
    assert {"pooler.dense.weight"} <= {*network.state_dict()}  # random ones
    weights = folder / "model.safetensors"
    state = libraries.read_state(weights)
    lacking = {name: state[name] for name in state if "layernorm.weight" not in name}
    __import__("safetensors.torch").torch.save_file(lacking, weights, {"format": "pt"})
    with pytest.raises(DataFault, match=r"no weights of .*layernorm.weight, which would be random"):
        loaded(f"hf:{folder},embed=l2", save="outputs")


@torch.inference_mode()
def test_labels_are_classes_of_a_network_with_a_text_side(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    folder, given = save_clip(tmp_path / "clip"), pixels(NOISE, "half")
    network = transformers.CLIPModel.from_pretrained(folder).eval()
    labels = ["a ship", "plane", "a"]
    tokens = transformers.AutoTokenizer.from_pretrained(folder)(
        labels, padding=True, return_tensors="pt"
    )
    told = {name: tokens[name] for name in ("input_ids", "attention_mask")}
    out = network(pixel_values=given, **told)
    predictor = loaded(f"hf:{folder},labels={'|'.join(labels)}")
    same(predictor, out.logits_per_image)
    assert predictor.info.class_names == tuple(labels)
    held = {name.split(".")[2] for name in predictor.network.state_dict() if "network" in name}
    assert "text_model" not in held
    alike(embedded(f"hf:{folder},embed=l2"), out.image_embeds)
    other = loaded(f"hf:{folder},labels=plane|a ship|a")
    assert other.fingerprint != predictor.fingerprint
    with pytest.raises(UsageError, match=r"need a network with a text side.*ViTModel has none"):
        loaded(f"hf:{save_vit(tmp_path / 'vit', True)},labels=ship|plane")
    loaded(f"hf:{folder},labels=a a a a a|ship")
    with pytest.raises(UsageError, match=r"the label 'a a a a a a' has 7 tokens.*at most 6"):
        loaded(f"hf:{folder},labels=ship|a a a a a a")


@torch.inference_mode()
def test_an_embedding_that_float16_does_not_hold_is_no_answer(tmp_path: Path) -> None:
    pytest.importorskip("timm")
    spec = f"timm:test_resnet,weights={save_timm(tmp_path / 'w.pth')},embed=none"
    predictor = loaded(spec, save="outputs")
    noise = np.random.default_rng(1).integers(0, 256, (2, 160, 160, 3), np.uint8)
    noise[1] = 128
    largest = np.abs(predictor.answer(noise)[1]["embedding"].astype(np.float64)).max(1)
    fails = largest > largest.mean()
    assert fails.sum() == 1
    embedding = predictor.network.module
    embedding.network = torch.nn.Sequential(embedding.network, Times(65_504 / largest.mean()))
    scores, given = predictor.answer(noise)
    assert np.isnan(scores[:, 0, 0]).tolist() == fails.tolist()
    assert np.isinf(given["embedding"]).any(1).tolist() == fails.tolist()


class Times(torch.nn.Module):
    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.by * x


@pytest.mark.parametrize(
    ("told", "shape", "resize_px"),
    [
        ({"size": {"height": 32, "width": 48}}, (32, 48, 3), None),
        ({"size": {"shortest_edge": 9}, "crop_size": {"height": 8, "width": 8}}, (8, 8, 3), 9),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (224, 224, 3), 256),
        ({}, None, None),
    ],
)  # fmt: skip
def test_what_an_image_processor_says(told, shape, resize_px) -> None:
    facts = libraries.processed(Declared(), told, None)
    assert (facts.shape, facts.resize_px, facts.mean, facts.std) == (shape, resize_px, (0,), (1,))
    assert facts.filter is None
    for number, name in ((0, "nearest"), (2, "bilinear"), (3, "bicubic"), (9, None)):
        assert libraries.processed(Declared(), {**told, "resample": number}, None).filter == name
    twice = {**told, "rescale_factor": 2 / 255, "image_mean": [1.0], "image_std": [0.5]}
    facts = libraries.processed(Declared(), twice, None)
    assert (facts.mean, facts.std) == ((0.5,), (0.25,))
    raw = libraries.processed(Declared(), {**twice, "do_rescale": False}, None)
    assert raw.std == (0.5 / 255,)


def test_damaged_and_wrong_files_are_refused(tmp_path: Path) -> None:
    whole = save_scripted(tmp_path / "n.ts"), save_exported(tmp_path / "n.pt2")
    for path in whole:
        cut = tmp_path / f"cut{path.suffix}"
        cut.write_bytes(path.read_bytes()[:-200])
        with pytest.raises(
            DataFault,
            match=f"{cut}(: cannot be loaded| .*is no archive of torch)",
        ):
            loaded(cut)
    torch.save(tiny(), tmp_path / "pickled.pth")
    torch.save(tiny().state_dict(), tmp_path / "state.pt")
    for name in ("pickled.pth", "state.pt"):
        with pytest.raises(DataFault, match=r"torch.save pickled it.*timm:NAME,weights="):
            loaded(tmp_path / name)
    torch.jit.script(torch.nn.Flatten()).save(str(tmp_path / "flat.ts"))
    torch.jit.script(torch.nn.Conv2d(1, 2, 3)).save(str(tmp_path / "grey.ts"))
    assert loaded(tmp_path / "flat.ts").classes == PX * PX * 3  # what it is nobody can know
    told = Loading(tuning=PLAIN, geometry=Geometry((PX, PX, 3), 2, PX, CLASSES), trusted=ANY)
    with pytest.raises(DataFault, match=r"gave \(1, 2352\); needed: logits .* or \(1, 4\)"):
        load_predictor(str(tmp_path / "flat.ts"), "single", told)
    with pytest.raises(DataFault, match=r"noise of uint8 \(28, 28, 3\) .* raised RuntimeError"):
        loaded(tmp_path / "grey.ts")
    with pytest.raises(DataFault, match=r"gave \(1, 4\); needed: logits \(1, 4, 4\)"):
        load_predictor(str(whole[0]), "collage", told)


def test_bad_onnx_files_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    path = save_onnx(tmp_path / "n.onnx")
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataFault, match=r"cut.onnx: cannot be loaded: it is no ONNX file"):
        loaded(tmp_path / "cut.onnx")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.save(model, tmp_path / "int64.onnx")
    with pytest.raises(DataFault, match=r"takes tensor\(int64\).*needed: one input of pictures"):
        loaded(tmp_path / "int64.onnx")
    with pytest.raises(EnvironmentFault, match="onnxruntime-gpu"):
        libraries.load_onnx(read_spec(str(path)), Loading("cuda:0"))


@pytest.mark.parametrize(
    ("spec", "kind", "said"),
    [
        ("n.onnx,norm=other", UsageError, "norm=other is unknown; .*norm=imagenet.half.none"),
        ("n.onnx,weights=x", UsageError, "weights=x is unknown"),
        ("timm:resnet18,labels=a|b", UsageError, "labels=a|b is unknown".replace("|", "[|]")),
        ("hf:a/b,embed=l1", UsageError, "embed=l1 is unknown; .*embed=l2.none and labels=..."),
        ("timm:resnet18,weights=", UsageError, "weights= is unknown"),
        ("hf:a/b,labels=a|b,labels=c|d", UsageError, "labels is given twice"),
        ("timm:resnet18,embed=none,embed=l2", UsageError, "embed is given twice"),
        ("hf:a/b,labels=a|b,embed=l2", UsageError, "leave out one of them"),
        ("none.onnx", EnvironmentFault, "network none.onnx: cannot be read: No such file"),
        ("timm:resnet18,weights=none.pth", EnvironmentFault, "none.pth: cannot be read"),
    ],
)
def test_what_is_seen_without_the_library(
    spec: str, kind: type[CollageError], said: str, monkeypatch
) -> None:
    monkeypatch.setattr("collage_mpi.models.gate.find_spec", lambda _: True)
    with pytest.raises(kind, match=said):
        describe(spec, "single")


def test_a_library_that_is_not_installed(monkeypatch) -> None:
    monkeypatch.setattr("collage_mpi.models.gate.find_spec", lambda _: None)
    with pytest.raises(EnvironmentFault, match=r"needs transformers: pip install 'transformers>="):
        describe("hf:a/b", "single")


def test_a_network_is_asked_in_a_process_apart(tmp_path: Path, monkeypatch) -> None:
    path = save_scripted(tmp_path / "n.ts")
    told = ask(f"{path},norm=half", "single", GEOMETRY, ANY)
    assert (told.classes, told.info.shape, told.info.class_names) == (CLASSES, (PX, PX, 3), ())
    assert told.info.metadata["normalisation"] == {"mean": [0.5], "std": [0.5]}
    show = "import os; print(os.environ.get('PMI_RANK'), os.environ['SERVER'])"
    with monkeypatch.context() as patch:
        patch.setattr(asking, "CHILD_COMMAND", (sys.executable, "-c", f"{show}; os.abort()"))
        patch.setitem(asking.of_server, "SERVER", "there")
        patch.setenv("PMI_RANK", "0")  # launch must not take the process for rank 0
        seen = []
        patch.setattr(asking.json, "loads", lambda line: seen.append(line) or {})
        asking._child({"spec": "n.ts"}, dict(os.environ))
    assert seen == [b"None there"]
    monkeypatch.setattr(asking, "CHILD_COMMAND", (sys.executable, "-c", "import os; os.abort()"))
    with pytest.raises(DataFault, match=r"ended a process with exit code -6.*file is damaged"):
        ask("crash.ts", "single", GEOMETRY)


def test_the_hub_is_asked_by_one_process_and_only_where_the_cache_lacks_it(monkeypatch) -> None:
    offline = []

    def child(request, environment):
        offline.append(environment.get("HF_HUB_OFFLINE"))
        return {"fault": "NotInCache", "message": "not there"}

    monkeypatch.setattr(asking, "_child", child)
    monkeypatch.setattr(asking, "require_hub", lambda _: None)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    with pytest.raises(NotInCache, match="not there"):
        ask("timm:resnet0", "single", GEOMETRY)
    assert offline == ["1", None]
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(NotInCache):
        ask("timm:resnet1", "single", GEOMETRY)
    assert offline == ["1", None, "1"]


def test_weights_that_are_not_in_the_cache_are_never_random(tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("timm")
    pytest.importorskip("transformers")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    for spec in ("timm:test_resnet", "hf:microsoft/resnet-18"):
        with pytest.raises(NotInCache, match=r"Random weights are never used"):
            loaded(spec)
