"""Loads networks of other libraries: timm, transformers, ONNX, torch.export, TorchScript. Each
loader returns the module (None for ONNX), a function that calls the network, and the facts it
declares. State dicts and checkpoints are read without running any code of the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, UsageError
from collage_mpi.models.asking import fetch_advice
from collage_mpi.models.backbones import fold_norms
from collage_mpi.models.gate import require_trust, sha256_of_network
from collage_mpi.models.info import TOLERANCE, Declared, Loading
from collage_mpi.models.named import BETWEEN, NORMS, PREFIXES, Named, NotInCache
from collage_mpi.models.predictor import WithEmbedding
from collage_mpi.shards.pictures import FILTERS
from collage_mpi.shards.schema import told_apart
from collage_mpi.system.files import reading, require_regular, sha256_of_file
from collage_mpi.system.printable import one_line, some_of


def load_tensors(file: Path) -> Any:
    """Load the tensors and plain values that torch.save wrote, without running code of the file.

    Raises:
        EnvironmentFault: the file cannot be read.
        DataFault: the file holds more than tensors, is damaged, or was not written by torch.save.
    """
    try:
        with reading(file):
            require_regular(file)
            with file.open("rb") as stream:
                return torch.load(stream, map_location="cpu", weights_only=True)
    except EnvironmentFault:
        raise
    except pickle.UnpicklingError as error:
        reason = next((line for line in str(error).splitlines() if "GLOBAL" in line), "")
        raise DataFault(
            f"{file} holds more than tensors, and loading it would run code of its maker "
            f"({reason.strip()[:160] or 'a pickled object'}). It is not loaded. Where it was made, "
            "save only the tensors: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # the unpickler raises nearly anything for damaged bytes
        raise DataFault(
            f"{file} is no file of torch.save, or damaged: {one_line(error, 200)}"
        ) from error


WRAPPERS = ("state_dict", "model_state_dict", "model", "model_ema")  # keys in checkpoints
WRITTEN_BEFORE = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile, Lightning
MAX_LISTED = 6


def read_state(file: Path) -> dict[str, Tensor]:
    """The state dict of a file, without WRAPPERS and WRITTEN_BEFORE.

    Args:
        file: a .safetensors file, or a state dict or checkpoint written by torch.save.

    Raises:
        EnvironmentFault: the file cannot be read.
        DataFault: the file holds code, or no state dict.
    """
    loaded = _load_safetensors(file) if file.suffix == ".safetensors" else load_tensors(file)
    for key in WRAPPERS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
            break
    if not isinstance(loaded, dict):
        raise DataFault(f"{file} holds a {type(loaded).__name__}; needed: a state dict")
    state = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    if len(state) < len(loaded) or not state:
        keys = [str(name) for name in loaded]
        others = [key for key in keys if key not in state]
        raise DataFault(
            f"{file} holds no state dict: its keys are {some_of(keys, MAX_LISTED)}; "
            f"no tensors are {some_of(others, MAX_LISTED)}. Save model.state_dict()"
        )
    for prefix in WRITTEN_BEFORE:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _load_safetensors(file: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        with reading(file):
            require_regular(file)
            return load_file(file)
    except (SafetensorError, ValueError, KeyError) as error:
        raise DataFault(f"{file} is no safetensors file, or damaged: {error}") from error


Made = tuple[nn.Module | None, Callable[[Tensor], Any], Declared]
ONNX_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(uint8)": np.uint8}
COLOURS = (1, 3)
FILTER_NUMBERS = {int(Image.Resampling[name.upper()]): name for name in FILTERS}
CODE_FILES = ["*.json", "*.py"]  # of a network of transformers
RESTRICTED = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # with this variable torch.load runs no code of a file
LEAST = 1e-30  # smaller probabilities are raised to this before the logarithm
ADVICE = {
    "timm": "timm:NAME,weights=FILE takes a checkpoint of yours; timm.list_pretrained() has names",
    "hf": "hf:FOLDER takes what save_pretrained wrote of a network and of its image processor",
    "scripted": "torch.jit.save makes one",
    "exported": "torch.export.save makes one",
    "onnx": "torch.onnx.export makes one",
}


class Called(nn.Module):
    """A network of another library: (n, C, H, W) float -> (n, classes) or (n, cells, classes)
    logits.

    A network that accepts only one picture is called for each picture. If a network returns
    probabilities, their logarithms are used as logits, because softmax gives the probabilities
    back.
    """

    def __init__(self, network: nn.Module | None, call: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.network, self.call = network, call
        self.tried = self.batches = self.logs = False

    def train(self, mode: bool = True) -> Called:
        """Does nothing, because an exported program cannot change its mode."""
        return self

    def forward(self, x: Tensor) -> Tensor:
        if not self.tried:
            self._try(x[:1])
        parts = [x] if self.batches else torch.split(x, 1)
        out = torch.cat([_logits(self.call(part)) for part in parts])
        return out.float().clamp_min(LEAST).log() if self.logs else out

    def _try(self, one: Tensor) -> None:
        try:
            out = _logits(self.call(torch.cat([one, one])))
            self.batches = len(out) == 2
        except Exception:  # each library raises another error if it does not accept a batch of two
            out = _logits(self.call(one))
        if out.dim() > 1 and out.shape[-1] > 1 and float(out.min()) >= 0:
            self.logs = bool(((out.sum(dim=-1) - 1).abs() <= TOLERANCE).all())
        self.tried = True


class Embedding(nn.Module):
    """Gives the embedding of a network, as the only thing that is told of an image: (n, C, H, W)
    float -> logits of one class (n, 1), which are 0, and embeddings (n, d) float32."""

    def __init__(self, network: Callable[[Tensor], Tensor], *, normalised: bool) -> None:
        """`normalised`: each embedding is divided by its Euclidean length."""
        super().__init__()
        self.network, self.normalised = network, normalised

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        found = self.network(x).flatten(1).float()
        found = nn.functional.normalize(found) if self.normalised else found
        return found.new_zeros(len(found), 1), found


class Pooled(nn.Module):
    """Gives the embedding of a network of transformers, (n, d): its image features if it has a text
    side, else its pooler's output, else the mean of its last hidden state."""

    def __init__(self, network: Any, pools: bool) -> None:
        """`pools`: the weights of the network's pooler are there, or it has none."""
        super().__init__()
        self.network, self.pools = network, pools

    def forward(self, x: Tensor) -> Tensor:
        out = getattr(self.network, "get_image_features", self.network)(pixel_values=x)
        if isinstance(out, Tensor):  # image features, before transformers 5
            return out
        pooled = out.get("pooler_output") if self.pools else None
        if pooled is not None:
            return pooled.flatten(1)
        hidden: Tensor = out.last_hidden_state  # (n, tokens, d) or (n, d, h, w)
        return hidden.mean(1) if hidden.dim() == 3 else hidden.mean((2, 3))


class ZeroShot(nn.Module):
    """Classifies by texts: the logits of an image are the cosines of its embedding and those of the
    labels, times the scale that the network was trained with (CLIP, arXiv 2103.00020)."""

    labels: Tensor

    def __init__(self, pooled: Pooled, labels: Tensor, scale: Tensor) -> None:
        """`labels`: (classes, d) float32, the embeddings of the labels. `scale`: (), its log."""
        super().__init__()
        self.pooled = pooled
        self.register_buffer("labels", scale.exp() * nn.functional.normalize(labels))

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.normalize(self.pooled(x)) @ self.labels.T


def _logits(out: Any) -> Tensor:
    """The logits in the output of a network: the tensor named "logits", or the first one."""
    if isinstance(out, dict):
        out = out.get("logits", next(iter(out.values())))
    return out[0] if isinstance(out, tuple | list) else out


def load_named(named: Named, how: Loading) -> tuple[nn.Module, Declared]:
    """Load a network as a torch module. Returns the module and the facts that it declares.

    Raises:
        UsageError, EnvironmentFault, DataFault: the library cannot load the network.
    """
    try:
        with _only_tensors():
            network, call, facts = LOADERS[named.library](named, how)
    except CollageError:
        raise
    except Exception as error:  # a library may raise anything for a wrong name or a damaged file
        raise DataFault(
            f"{named.spec}: cannot be loaded ({type(error).__name__}: {one_line(error)}). "
            f"{ADVICE[named.library]}"
        ) from error
    if named.norm is not None:
        facts = replace(facts, mean=named.norm[0], std=named.norm[1])
    if named.library not in PREFIXES:
        facts = replace(facts, fingerprint=sha256_of_network(Path(named.name)))
    if network is not None and how.tuning and named.library in PREFIXES and facts.shape:
        fold_norms(network, (facts.shape[2], *facts.shape[:2]))
    length = named.option("embed")
    if length is not None:
        return Embedding(call, normalised=length == "l2"), facts
    module = Called(None if network is None else network.eval(), call)
    return WithEmbedding(module) if how.embed and named.library in PREFIXES else module, facts


@contextmanager
def _only_tensors() -> Iterator[None]:
    """Inside, torch.load takes tensors from a pickle and runs no code of it, whatever a library
    asks for."""
    before = os.environ.get(RESTRICTED)
    os.environ[RESTRICTED] = "1"
    try:
        yield
    finally:
        del os.environ[RESTRICTED]
        os.environ.update({} if before is None else {RESTRICTED: before})


@contextmanager
def _from_hub(named: Named) -> Iterator[None]:
    """Raises OSErrors of a library about its cache and its hub as NotInCache."""
    try:
        yield
    except OSError as error:
        if Path(named.name.removeprefix("local-dir:")).exists():
            raise
        raise NotInCache(
            f"{named.spec}: its weights are not in the cache of this host (HF_HOME) and do not "
            f"come from the hub ({one_line(error)}). Random weights are never used. "
            f"{fetch_advice(named.spec)}. {ADVICE[named.library]}"
        ) from error


def load_timm(named: Named, how: Loading) -> Made:
    """Load a network of timm, with its trained weights or with those of a checkpoint; for its
    embedding without its classifier, which is what timm does for no classes."""
    import timm

    file = named.option("weights")
    classless = {} if named.option("embed") is None else {"num_classes": 0}
    if file is None:
        with _from_hub(named):
            network = timm.create_model(named.name, pretrained=True, **classless)
        names = None if classless else timm_names(network)
    else:
        state, names = read_state(Path(file)), None
        network = timm.create_model(named.name, pretrained=False)
        heads = network.pretrained_cfg["classifier"]
        heads = (heads,) if isinstance(heads, str) else heads
        head = f"{heads[0]}.weight"
        if not classless and head not in state:
            raise DataFault(f"{file} has no {head!r}: it is of another network than {named.name}")
        network.reset_classifier(0 if classless else len(state[head]))
        if classless:
            left_out = {f"{each}.{kind}" for each in heads for kind in ("weight", "bias")}
            state = {name: tensor for name, tensor in state.items() if name not in left_out}
        network.load_state_dict(state)
    told = timm.data.resolve_model_data_config(network)
    channels, height, width = told["input_size"]
    facts = Declared(names, (height, width, channels), tuple(told["mean"]), tuple(told["std"]))
    by = told["interpolation"] if told["interpolation"] in FILTERS else None  # not "random"
    return network, network, replace(facts, resize_px=int(height / told["crop_pct"]), filter=by)


def timm_names(network: Any) -> tuple[str, ...] | None:
    """The class names in a network's configuration, or those of ImageNet; None if unknown."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    told, subset = network.pretrained_cfg, infer_imagenet_subset(network)
    if told.get("label_names"):
        words = told.get("label_descriptions") or {}
        return told_apart([words.get(name, name) for name in told["label_names"]])
    return told_apart(ImageNetInfo(subset).label_descriptions()) if subset else None


def load_hf(named: Named, how: Loading) -> Made:
    """Load an image classifier of transformers, from a folder, the cache or the hub; or a network
    for its embedding, or to compare it with those of labels."""
    from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification

    remote: dict[str, Any] = {"trust_remote_code": False}
    texts = named.option("labels")
    headless = texts is not None or named.option("embed") is not None
    maker = AutoModel if headless else AutoModelForImageClassification
    try:
        with _from_hub(named):
            network, found = maker.from_pretrained(named.name, output_loading_info=True, **remote)
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        remote = _code_of_hub(named, how.trusted)
        network, found = maker.from_pretrained(named.name, output_loading_info=True, **remote)
    lacking = [str(key) for name in ("missing", "mismatched") for key in found[f"{name}_keys"]]
    needed = [key for key in lacking if not headless or "pooler." not in key]
    if needed:
        raise DataFault(
            f"{named.spec} has no weights of {', '.join(sorted(needed)[:3])}, which would be "
            f"random: name one that was trained{'' if headless else ' to classify'}"
        )
    config = network.config
    labels = [str(config.id2label[i]) for i in range(config.num_labels)]
    unnamed = headless or all(label == f"LABEL_{i}" for i, label in enumerate(labels))
    facts = Declared(None if unnamed else told_apart(labels))
    if named.norm is None:
        try:
            told = AutoImageProcessor.from_pretrained(named.name, **remote).to_dict()
        except (OSError, ValueError) as error:
            raise DataFault(
                f"{named.spec} has no image processor, which says how pixels are normalised: save "
                f"it beside the network, or append ,norm={'|'.join(NORMS)}"
            ) from error
        facts = processed(facts, told, getattr(config, "vision_config", config))
    if not headless:
        return network, lambda x: network(pixel_values=x), facts
    pooled = Pooled(network.eval(), pools=not lacking)
    made: nn.Module = pooled
    if texts is not None:
        names = tuple(texts.split(BETWEEN))
        made, facts = _zero_shot(named, pooled, names, remote), replace(facts, class_names=names)
    for name in ("text_model", "text_projection"):  # ranks need not hold it
        if hasattr(network, name):
            delattr(network, name)
    return made, made, facts


@torch.inference_mode(False)
@torch.no_grad()
def _zero_shot(
    named: Named, pooled: Pooled, labels: Sequence[str], remote: dict[str, Any]
) -> ZeroShot:
    """The network that compares images with labels. Raises UsageError if it has no text side."""
    from transformers import AutoTokenizer

    network = pooled.network
    if not hasattr(network, "get_text_features") or not hasattr(network, "logit_scale"):
        raise UsageError(
            f"{named.spec}: labels need a network with a text side, such as CLIP or SigLIP, and "
            f"{type(network).__name__} has none"
        )
    length = network.config.text_config.max_position_embeddings
    tokenizer = AutoTokenizer.from_pretrained(named.name, **remote)
    for label in labels:
        if (tokens := len(tokenizer(label)["input_ids"])) > length:
            raise UsageError(
                f"{named.spec}: the label {label[:40]!r} has {tokens} tokens, and this network "
                f"takes at most {length}: make it shorter"
            )
    how = {"padding": "max_length", "max_length": length, "return_tensors": "pt"}
    found = network.get_text_features(**tokenizer([*labels], **how))
    found = found if isinstance(found, Tensor) else found.pooler_output
    return ZeroShot(pooled, found, network.logit_scale.reshape(()))


def _code_of_hub(named: Named, trusted: str) -> dict[str, Any]:
    """The arguments by which transformers runs the code that comes with a network.

    Raises:
        UsageError: the user does not trust this code.
    """
    from huggingface_hub import snapshot_download

    at_hand = Path(named.name).is_dir()
    with _from_hub(named):
        folder = Path(
            named.name if at_hand else snapshot_download(named.name, allow_patterns=CODE_FILES)
        )
    files = sorted(file for pattern in CODE_FILES for file in folder.rglob(pattern))
    lines = (f"{sha256_of_file(file)} {file.relative_to(folder)}\n" for file in files)
    digest = hashlib.sha256("".join(lines).encode()).hexdigest()
    texts = (file.read_text() for file in files if file.suffix == ".json")
    places = [json.loads(text).get("auto_map") for text in texts if '"auto_map"' in text]
    elsewhere = "--" in str(places)  # REPOSITORY--FILE.CLASS
    require_trust(
        named.spec,
        None if elsewhere else digest,
        trusted,
        "Python code comes with its weights",
    )
    return {"trust_remote_code": True, **({} if at_hand else {"revision": folder.name})}


def processed(facts: Declared, told: dict[str, Any], config: Any) -> Declared:
    """The facts, with the size and normalisation that an image processor declares.

    Args:
        told: the image processor as a dict.
        config: configuration of the network.
    """
    size, crop = told.get("size") or {}, told.get("crop_size") or {}
    short = size.get("shortest_edge")
    resize = int(short / told["crop_pct"]) if short and told.get("crop_pct") else short
    size = crop if crop and told.get("do_center_crop", True) else size
    height, width = size.get("height", short), size.get("width", short)
    if height is not None and width is not None:
        channels = getattr(config, "num_channels", 3)
        facts = replace(facts, shape=(height, width, channels), resize_px=resize)
    number = told.get("resample")
    if number in FILTER_NUMBERS:
        facts = replace(facts, filter=FILTER_NUMBERS[number])
    times = 255 * told.get("rescale_factor", 1 / 255) if told.get("do_rescale", True) else 255
    mean, std = told.get("image_mean"), told.get("image_std")
    if not told.get("do_normalize", True) or mean is None or std is None:
        mean, std = (0.0,), (1.0,)
    return replace(facts, mean=tuple(m / times for m in mean), std=tuple(s / times for s in std))


def load_onnx(named: Named, how: Loading) -> Made:
    """Load an ONNX file into onnxruntime."""
    import onnxruntime

    device, _, number = how.device.partition(":")
    providers: list[Any] = ["CPUExecutionProvider"]
    if device == "cuda":
        providers = [("CUDAExecutionProvider", {"device_id": int(number or 0)})]
        if providers[0][0] not in onnxruntime.get_available_providers():
            raise EnvironmentFault(
                f"{named.spec}: this onnxruntime does not run on GPUs: pip install onnxruntime-gpu "
                "in its place, or --device cpu"
            )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = max(1, how.threads), 3
    session = onnxruntime.InferenceSession(named.name, options, providers=providers)
    given, *more = session.get_inputs()
    dtype, shape = ONNX_TYPES.get(given.type), given.shape
    if more or dtype is None or len(shape) != 4:
        raise DataFault(
            f"{named.spec} takes {given.type} {shape}{' and more' if more else ''}; needed: one "
            f"input of pictures (n, C, H, W) or (n, H, W, C), {' or '.join(ONNX_TYPES)}"
        )
    last = channels_are_last(shape)

    def call(x: Tensor) -> Tensor:
        pixels = x.permute(0, 2, 3, 1) if last else x
        pixels = (255 * pixels).round() if dtype is np.uint8 else pixels
        (out, *_) = session.run(None, {given.name: pixels.cpu().numpy().astype(dtype)})
        return torch.from_numpy(out).to(x.device)

    return None, call, Declared(shape=_shape(shape if last else [shape[i] for i in (0, 2, 3, 1)]))


def channels_are_last(shape: Sequence[Any]) -> bool:
    """Whether a network takes pictures of this shape as (n, H, W, C)."""
    return shape[3] in COLOURS and shape[1] not in COLOURS


def load_exported(named: Named, how: Loading) -> Made:
    """Load a program of torch.export."""
    program = torch.export.load(named.name)
    inputs = program.graph_signature.user_inputs
    nodes = [node for node in program.graph.nodes if node.name in inputs]
    shape = list(nodes[0].meta["val"].shape)
    if how.device != "cpu":
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(program, how.device)
    network: Any = program.module()
    network.eval = lambda: network  # its own `eval` raises, because its mode is fixed
    return network, network, Declared(shape=_shape([shape[i] for i in (0, 2, 3, 1)]))


def load_scripted(named: Named, how: Loading) -> Made:
    """Load a TorchScript file, which declares nothing about its inputs."""
    network = torch.jit.load(named.name, map_location=how.device)  # type: ignore[no-untyped-call]
    return network, network, Declared()


def _shape(axes: Sequence[Any]) -> tuple[int, int, int] | None:
    """(H, W, C) of axes (n, H, W, C); None if one of them is dynamic."""
    _, height, width, channels = axes
    known = all(type(axis) is int and axis > 0 for axis in (height, width, channels))
    return (height, width, channels) if known else None


LOADERS: dict[str, Callable[[Named, Loading], Made]] = {
    "timm": load_timm,
    "hf": load_hf,
    "onnx": load_onnx,
    "exported": load_exported,
    "scripted": load_scripted,
}
