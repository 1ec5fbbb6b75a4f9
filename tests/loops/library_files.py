"""Small networks of other libraries, written to files: four classes, pictures of 28 x 28 x 3."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import nn

PX, CLASSES = 28, 4


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3, stride=2), nn.Linear(8, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.conv(x)).mean((2, 3)))


def tiny() -> Tiny:
    torch.manual_seed(0)
    return Tiny().eval()


def save_scripted(path: Path) -> Path:
    torch.jit.script(tiny()).save(str(path))
    return path


def save_exported(path: Path, batch: int | None = None) -> Path:
    """With a free batch, or for that batch alone."""
    example = (torch.rand(batch or 2, 3, PX, PX),)
    free = None if batch else ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(tiny(), example, dynamic_shapes=free), path)
    return path


def save_timm(path: Path) -> Path:
    import timm

    torch.manual_seed(0)
    torch.save(timm.create_model("test_resnet", num_classes=CLASSES).state_dict(), path)
    return path


def save_hf(folder: Path, names: tuple[str, ...] = ("a", "b", "c", "d"), head: bool = True) -> Path:
    """A residual network and its image processor; without `head` the last layer is left out."""
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessor

    torch.manual_seed(0)
    config = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        id2label=dict(enumerate(names)),
        label2id={name: number for number, name in enumerate(names)},
    )
    network = ResNetForImageClassification(config)
    (network if head else network.resnet).save_pretrained(folder)
    size = {"height": PX, "width": PX}
    ViTImageProcessor(size=size, image_mean=[0.4, 0.5, 0.6]).save_pretrained(folder)
    return folder


def save_vit(folder: Path, pooler: bool) -> Path:
    """A transformer and its image processor; without `pooler` these weights are left out."""
    from transformers import ViTConfig, ViTImageProcessor, ViTModel

    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = ViTConfig(image_size=PX, patch_size=14, num_attention_heads=2, **tiny)
    ViTModel(config, add_pooling_layer=pooler).save_pretrained(folder)
    ViTImageProcessor(size={"height": PX, "width": PX}).save_pretrained(folder)
    return folder


def save_clip(folder: Path) -> Path:
    """A network with a text side that knows the words ship, plane and a; its embeddings have 12
    values."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPModel, PreTrainedTokenizerFast, ViTImageProcessor

    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    tiny |= {"num_attention_heads": 2, "projection_dim": 12}
    text = {"vocab_size": 8, "max_position_embeddings": 6, "pad_token_id": 0, "bos_token_id": 5}
    config = CLIPConfig(
        text_config={**tiny, **text, "eos_token_id": 4},
        vision_config={**tiny, "image_size": PX, "patch_size": 14},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(folder)
    words = ("[PAD]", "ship", "plane", "a", "[EOS]")
    tokens = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, "a"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens.post_processor = processors.TemplateProcessing("$A [EOS]", None, [("[EOS]", 4)])
    named = {"pad_token": "[PAD]", "eos_token": "[EOS]"}
    PreTrainedTokenizerFast(tokenizer_object=tokens, **named).save_pretrained(folder)
    ViTImageProcessor(size={"height": PX, "width": PX}).save_pretrained(folder)
    return folder


def save_onnx(
    path: Path, batch: int | str = "n", softmax: bool = False, last: bool = False, dtype: str = ""
) -> Path:
    """Means of the channels times a matrix. `last`: the channels are the last axis."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(size=(3, CLASSES)).astype(np.float32)
    steps = [
        helper.make_node("Cast", ["pixels"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x"], ["m"], axes=[1, 2] if last else [2, 3], keepdims=0),
        helper.make_node("MatMul", ["m", "w"], ["z" if softmax else "y"]),
        *([helper.make_node("Softmax", ["z"], ["y"], axis=1)] if softmax else []),
    ]
    shape = [batch, PX, PX, 3] if last else [batch, 3, PX, PX]
    given = TensorProto.UINT8 if dtype == "uint8" else TensorProto.FLOAT
    graph = helper.make_graph(
        steps,
        "means",
        [helper.make_tensor_value_info("pixels", given, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, CLASSES])],
        [numpy_helper.from_array(weights, "w")],
    )
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)
    return path
