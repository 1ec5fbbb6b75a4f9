"""Imports weights of other programs: reads them without running any code of the file, checks them,
and writes them in this package's format.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.kinds import SINGLE
from collage_mpi.models.architecture import EFFICIENTNET_LITE, Backbone
from collage_mpi.models.backbones import COUNTER, renamed, stored_arrays
from collage_mpi.models.collage_net import check_pixels
from collage_mpi.models.info import NetworkInfo
from collage_mpi.models.vision import VisionSingle
from collage_mpi.models.weights import save_weights, sha256_of_file
from collage_mpi.system.files import require_regular
from collage_mpi.system.printable import one_line, some_of


def load_tensors(file: Path) -> Any:
    """Load the tensors and plain values that torch.save wrote, without running code of the file.

    Raises:
        EnvironmentFault: the file cannot be read.
        DataFault: the file holds more than tensors, is damaged, or was not written by torch.save.
    """
    import torch

    try:
        require_regular(file)
        with file.open("rb") as stream:
            return torch.load(stream, map_location="cpu", weights_only=True)
    except OSError as error:
        raise EnvironmentFault(f"{file}: cannot be read: {error.strerror or error}") from error
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
PREFIXES = ("module.", "_orig_mod.", "model.")  # of DataParallel, torch.compile, Lightning
MAX_LISTED = 6


def import_weights(
    file: Path,
    backbone: Backbone,
    out: Path,
    *,
    size_px: int,
    class_names: tuple[str, ...] | None,
    normalisation: dict[str, list[float]],
) -> NetworkInfo:
    """Make a weights file of a single network from another program's state dict.

    Args:
        file: a .safetensors file, or a state dict or checkpoint written by torch.save.
        backbone: the network of the state dict.
        out: the file to write.
        size_px: height and width of the network's images.
        class_names: in order; None for "0", "1", ...
        normalisation: "mean" and "std" of pixels / 255, three numbers each.

    Raises:
        EnvironmentFault: the file cannot be read, or torchvision is missing.
        DataFault: the file holds code, has no state dict, or belongs to another network.
        UsageError: the network does not accept images of this size.
    """
    check_pixels(backbone, (size_px, size_px, 3), None)
    state = read_state(file)
    if backbone.library == EFFICIENTNET_LITE:
        state = renamed(state)
    classes, network = _network_for(file, state, backbone)
    _check_fits(file, state, network, backbone)
    names = class_names or tuple(str(number) for number in range(classes))
    if len(names) != classes:
        raise DataFault(
            f"{file} has {classes} classes, but {len(names)} names are given: give one for each"
        )
    record = {
        "kind": SINGLE,
        "architecture": backbone.to_dict(),
        "side": None,
        "cell_px": None,
        "height": size_px,
        "width": size_px,
        "channels": 3,
        "class_names": list(names),
        "normalisation": normalisation,
        "temperature": 1.0,
        "imported": {"file": file.name, "sha256": sha256_of_file(file)},
    }
    return save_weights(out, stored_arrays(state, "trunk."), record)


def read_state(file: Path) -> dict[str, Tensor]:
    """The state dict of a file, without WRAPPERS and PREFIXES. See `import_weights`."""
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
    for prefix in PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _load_safetensors(file: Path) -> Any:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        require_regular(file)
        return load_file(file)
    except OSError as error:
        raise EnvironmentFault(f"{file}: cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError) as error:
        raise DataFault(f"{file} is no safetensors file, or damaged: {error}") from error


def _network_for(
    file: Path, state: dict[str, Tensor], backbone: Backbone
) -> tuple[int, VisionSingle]:
    """The number of classes, and a network with so many, on the meta device."""
    with torch.device("meta"):
        head = VisionSingle(backbone, 2).heads[0].removeprefix("trunk.") + "weight"
    if head not in state:
        raise DataFault(
            f"{file} has no {head!r}, the last layer of {backbone.name}; it holds "
            f"{some_of(list(state), MAX_LISTED)}: is it of another network?"
        )
    classes = int(state[head].shape[0])
    with torch.device("meta"):
        return classes, VisionSingle(backbone, classes)


def _check_fits(
    file: Path, state: dict[str, Tensor], network: VisionSingle, backbone: Backbone
) -> None:
    needed = {n: t for n, t in network.trunk.state_dict().items() if not n.endswith(COUNTER)}
    missing = [name for name in needed if name not in state]
    unknown = [n for n in state if n not in needed and not n.endswith(COUNTER)]
    for name in [name for name in unknown if name.lower().startswith("aux")]:  # only for training
        del state[name]
        unknown.remove(name)
    shapes = [
        f"{name} {tuple(state[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in needed.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems = [
        f"{what}: {some_of(names, MAX_LISTED)}"
        for what, names in (("missing", missing), ("unknown", unknown), ("shapes", shapes))
        if names
    ]
    if problems:
        raise DataFault(f"{file} does not fit {backbone.name}: {'; '.join(problems)}")
