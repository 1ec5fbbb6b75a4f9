"""Networks by name as single and collage networks: built, imported, trained, stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from collage_mpi.cli import main
from collage_mpi.commands.networks import architecture_of, default_cell_px, head_of
from collage_mpi.commands.parser import read_command
from collage_mpi.errors import DataFault, ExitCode, UsageError
from collage_mpi.models import describe
from collage_mpi.models.architecture import (
    REFERENCE_BACKBONES,
    REFERENCE_COLLAGE_PX,
    REFERENCE_HEAD,
    Backbone,
    HeadSpec,
    preset,
    read_architecture,
)
from collage_mpi.models.backbones import Tiny
from collage_mpi.models.collage_net import build_network
from collage_mpi.shards import write_shard
from collage_mpi.training.loop import start_from

pytestmark = pytest.mark.filterwarnings("ignore:Detected pickle protocol")

NAMES = (
    "torchvision:resnet18",
    "torchvision:mobilenet_v3_small",
    "torchvision:efficientnet_b0",
    "darknet:tiny",
)
SMALL = Backbone("torchvision:mobilenet_v3_small")


@pytest.mark.parametrize("name", NAMES)
def test_single_and_collage_share_their_trunk(name: str) -> None:
    from collage_mpi.models.backbones import fold_norms

    torch.manual_seed(0)
    single = build_network(Backbone(name), 3, 7, None)
    collage = build_network(Backbone(name), 3, 7, 3).eval()
    only = set(collage.state_dict()) - set(single.state_dict())
    assert only == {"classifier.weight", "classifier.bias"}
    for module in single.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.normal_(module.running_mean)
    x = torch.randn(2, 1, 64, 64)  # grey is taken too
    tensors = {name: tensor.numpy() for name, tensor in single.state_dict().items()}
    taken, needed = start_from(collage, tensors)  # the last layer too, where nothing is hidden
    assert needed - taken == (2 if name == "torchvision:mobilenet_v3_small" else 0)
    with torch.inference_mode():
        before = single.eval()(x)
        norms = sum(isinstance(m, torch.nn.BatchNorm2d) for m in single.modules())
        assert fold_norms(single, tuple(x.shape[1:])) == norms >= 8
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in single.modules())
        torch.testing.assert_close(single(x), before, rtol=1e-3, atol=1e-4)
        assert before.shape == (2, 1, 7)
        assert collage(torch.randn(2, 3, 139, 139)).shape == (2, 9, 7)


class Paired(torch.nn.Module):
    """Two convolutions, each with its norm; `told` says what makes folding one of them wrong."""

    def __init__(self, told: str = "") -> None:
        super().__init__()
        self.told, self.calls = told, 0
        self.a, self.b = torch.nn.Conv2d(3, 4, 1, bias=False), torch.nn.Conv2d(4, 4, 3)
        self.norms = torch.nn.ModuleList(torch.nn.BatchNorm2d(4) for _ in range(2))
        for norm in self.norms:
            torch.nn.init.uniform_(norm.running_var, 0.5, 2)
            torch.nn.init.normal_(norm.running_mean)
        if told == "of its batch":
            self.norms[0] = torch.nn.BatchNorm2d(4, track_running_stats=False)
        if told == "made anew":
            torch.nn.utils.parametrizations.weight_norm(self.a)
        if told == "hooked":
            self.a.register_forward_pre_hook(lambda module, given: None)
        if told == "watched":
            self.norms[0].register_forward_hook(lambda module, given, out: None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.told == "raises":
            raise ValueError("not here")
        first = self.a(x)
        if self.told == "in place":
            first.relu_()
        y = self.norms[0](first.clone() if self.told == "copied" else first)
        if self.told == "read twice":
            y = y + 3 * first
        if self.told == "capped":
            y = torch.where(x.abs().amax() > 9, first, y)
        if self.told == "two inputs":
            y = y + self.norms[0](x[:, [0, 1, 2, 0]])
        if self.told == "called twice":
            y = y + self.a(-x)
        y = self.norms[1](self.b(torch.relu_(y)))
        return {"logits": y} if self.told == "no tensor" else y


@pytest.mark.parametrize(
    ("told", "folded"),
    [
        ("", 2),
        ("made anew", 1),
        ("hooked", 1),
        ("watched", 1),
        ("in place", 1),
        ("copied", 1),
        ("two inputs", 1),
        ("called twice", 1),
        ("read twice", 0),
        ("capped", 0),
        ("of its batch", 1),
        ("no tensor", 0),
        ("raises", 0),
    ],
)
def test_a_norm_is_folded_only_where_the_answers_stay(told: str, folded: int) -> None:
    from collage_mpi.models.backbones import fold_norms

    torch.manual_seed(0)
    network, x = Paired(told).eval(), torch.randn(2, 3, 8, 8)
    state = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    before = None if told in ("raises", "no tensor") else network(x)
    assert fold_norms(network, (3, 8, 8)) == folded
    assert network.calls == (told not in ("raises", "no tensor"))  # a copy was asked
    left = sum(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
    assert left == 2 - folded
    hooks = [h for m in network.modules() for h in (*m._forward_hooks, *m._forward_pre_hooks)]
    assert len(hooks) == (told in ("hooked", "watched"))
    if before is not None:
        torch.testing.assert_close(network(x), before, rtol=1e-4, atol=1e-5)
    if not folded:
        assert network.state_dict().keys() == state.keys()
        assert all(torch.equal(network.state_dict()[name], state[name]) for name in state)


def test_norms_of_timm_leave_their_activations() -> None:
    from collage_mpi.models.backbones import fold_norms

    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    network, x = timm.create_model("test_efficientnet").eval(), torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        before = network(x)
        assert fold_norms(network, (3, 64, 64)) == 13
        assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in network.modules())
        torch.testing.assert_close(network(x), before, rtol=1e-3, atol=1e-4)


def test_a_network_without_norms_is_not_asked() -> None:
    from collage_mpi.models.backbones import fold_norms

    network = Paired()
    network.norms = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
    assert (fold_norms(network, (3, 8, 8)), network.calls) == (0, 0)


def test_what_is_no_backbone() -> None:
    wrong = ("resnet18", "timm:resnet18", "torchvision:", "torchvision:../x", "darknet:resnet18")
    for name in wrong:
        with pytest.raises(UsageError, match=r"torchvision:NAME.* or darknet:tiny"):
            Backbone(name)
    with pytest.raises(UsageError, match="near it are resnet101"):
        build_network(Backbone("torchvision:resnet17"), 3, 2, None)
    with torch.device("meta"), pytest.raises(UsageError, match="no convolutional trunk"):
        build_network(Backbone("torchvision:vit_b_32"), 3, 2, 3)
    for record in ({"backbone": 3}, {"backbone": "torchvision:x", "y": 1}, {"backbone": "z"}):
        with pytest.raises(DataFault, match=r"architecture record .* cannot be read"):
            read_architecture(record)


def test_a_collage_network_starts_from_a_single_network(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (24, 48, 48, 3), dtype=np.uint8)
    write_shard(tmp_path / "a.h5", images, np.arange(24) % 7, class_names=list("abcdefg"))
    common = [f"--shards={tmp_path / 'a.h5'}", "--epochs=1", "--precision=float32", "--lr=0.01"]
    common += [f"--backbone={SMALL.backbone}", "--batch=2", "--validation=0.1"]
    single, collage = tmp_path / "single.safetensors", tmp_path / "collage.safetensors"
    assert main(["train", "single", *common, f"--out={single}"]) == 0
    flags = ["--side=2", f"--init={single}", "--cell-px=32", f"--out={collage}"]
    assert main(["train", "collage", *common, *flags]) == 0
    assert "206 of 208 tensors were taken" in capsys.readouterr().out
    info = describe(str(collage), "collage")
    assert info is not None
    assert info.shape == (64, 64, 3)
    first = describe(str(single), "single")
    assert first is not None
    assert info.metadata["normalisation"] == first.metadata["normalisation"]
    command = ["evaluate", f"--shards={tmp_path / 'a.h5'}", "--calls=2"]
    assert main([*command, f"--single={single}", f"--collage={collage}"]) == 0
    wrong = [*common[:-3], f"--init={single}", "--backbone=torchvision:resnet18", "--batch=2"]
    assert main(["train", "single", *wrong, f"--out={tmp_path / 'x'}"]) == ExitCode.USAGE


def typed(*words: str) -> Any:
    """The arguments of a `train` that was typed."""
    return read_command(["train", words[0], "--shards", "a", "--out", "b", *words[1:]])[1]


def test_the_reference_preset() -> None:
    sizes = {}
    for side in (3, 4, 5):
        args = typed("collage", "--preset=reference", f"--side={side}")
        assert architecture_of(args) == Backbone("darknet:tiny")
        sizes[side] = default_cell_px(args, 224)
        head = head_of(args)
        assert (head.name, head.map_size(side), len(head.anchors)) == ("yolo", 13, 3)
    assert sizes == {3: 138, 4: 104, 5: 83}
    plain = typed("collage", "--preset=reference", "--head=grid")
    assert head_of(plain).name == "grid"
    single = typed("single", "--preset=reference")
    assert architecture_of(single) == Backbone("torchvision:resnet34")
    for flag in ("--width=8", "--stem=8x3", "--backbone=torchvision:resnet18"):
        with pytest.raises(UsageError, match="give only one of them"):
            architecture_of(typed("single", "--preset=reference", flag))


@pytest.mark.parametrize("side", [3, 4, 5])
def test_the_references_collage_network_is_the_papers(side: int) -> None:
    """13 x 13 squares of three anchors and 100 classes, 0.59 times ResNet-34's work at 224 px."""
    network = build_network(Backbone(REFERENCE_BACKBONES["collage"]), 3, 100, side, REFERENCE_HEAD)
    convolutions = [m for m in network.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == [
        *(16, 32, 64, 128, 256, 512, 1024, 256, 512),
        3 * (5 + 100),
    ]
    # YOLOv3-tiny has 8.86 million with its second map, and 80 classes
    assert sum(p.numel() for p in network.parameters()) == 7_899_339
    edge = REFERENCE_COLLAGE_PX // side * side
    products = 0

    def count(layer: torch.nn.Conv2d, _: Any, made: torch.Tensor) -> None:
        nonlocal products
        products += layer.weight.numel() * made.shape[2] * made.shape[3]

    for layer in convolutions:
        layer.register_forward_hook(count)
    with torch.inference_mode():
        outputs = network.eval()(torch.randn(1, 3, edge, edge))
    assert outputs.shape == (1, 13, 13, 3, 105)
    assert 0.58 < products / 3.664e9 < 0.595  # ResNet-34: 3.664 GMAC


def test_apart_no_cell_sees_another() -> None:
    torch.manual_seed(0)
    network = build_network(preset("fast"), 3, 7, 3, HeadSpec("apart")).eval()
    collage = torch.randn(2, 3, 96, 96)
    changed = collage.clone()
    changed[1, :, 32:64, 64:] += 1  # row 1, column 2: cell 5
    with torch.inference_mode():
        before, after = network(collage), network(changed)
        alone = network.trunk(collage[1:, :, 32:64, 64:]).mean(dim=(2, 3))
        expected = network.classifier(alone)[0]
    assert before.shape == (2, 9, 7)
    torch.testing.assert_close(before[1, 5], expected, rtol=1e-4, atol=1e-5)
    same = (before - after).abs().amax(2) < 1e-5
    assert same.sum() == 17
    assert not same[1, 5]


@pytest.mark.parametrize("head", ["apart", "grid"])
def test_pixels_that_leave_no_map_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], head: str
) -> None:
    images = np.zeros((20, 16, 16, 3), np.uint8)
    write_shard(tmp_path / "a.h5", images, np.arange(20) % 2, class_names=["a", "b"])
    command = ["train", "collage", "--backbone=torchvision:squeezenet1_1", f"--head={head}"]
    command += [f"--shards={tmp_path}/a.h5", f"--out={tmp_path}/c.safetensors", "--epochs=1"]
    code = main([*command, "--side=3", "--cell-px=15", "--batch=2"])
    if head == "grid":  # whose trunk sees all of it
        assert code == 0
        return
    assert code == ExitCode.USAGE
    told = capsys.readouterr().err
    assert "torchvision:squeezenet1_1 cannot see 45 x 45 pixels, 3 x 3 cells:" in told
    assert "--cell-px" in told


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_a_backbones_embedding_is_what_its_classifier_is_given(name):
    from collage_mpi.models.predictor import WithEmbedding

    network = build_network(Backbone(f"torchvision:{name}"), 3, 7, None).eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        logits, embedding = WithEmbedding(network)(x)
        layer = dict(network.named_modules())[network.heads[0].rstrip(".")]
        if isinstance(layer, torch.nn.Linear):
            again = layer(embedding)
            assert torch.allclose(again, logits[:, 0], atol=1e-5)
    assert embedding.shape == (2, {"resnet18": 512, "squeezenet1_1": 512}.get(name, 1024))


def test_tensors_of_tiny_have_the_names_of_weights_files() -> None:
    names = [name for name in Tiny(10).state_dict() if name.endswith("weight")]
    assert names[:3] == [
        "layers.0.conv.conv.weight",
        "layers.0.conv.norm.weight",
        "layers.1.conv.conv.weight",
    ]
