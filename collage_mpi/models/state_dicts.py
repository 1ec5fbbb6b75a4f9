"""Reads state dicts and checkpoints of torch.save without running any code of the file."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.system.files import require_regular
from collage_mpi.system.printable import one_line, some_of


def load_tensors(file: Path) -> Any:
    """Load the tensors and plain values that torch.save wrote, without running code of the file.

    Raises:
        EnvironmentFault: the file cannot be read.
        DataFault: the file holds more than tensors, is damaged, or was not written by torch.save.
    """
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


def read_state(file: Path) -> dict[str, Tensor]:
    """The state dict of a file, without WRAPPERS and PREFIXES.

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
