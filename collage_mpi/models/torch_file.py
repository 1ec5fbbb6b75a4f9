"""Reads files of torch.save without running any code in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.system.files import require_regular


def load_tensors(file: Path) -> Any:
    """Tensors and plain values of the file. torch's restricted unpickler runs no code of the file.

    Raises:
        EnvironmentFault: the file cannot be read.
        DataFault: the file holds more than tensors, is damaged, or is no file of torch.save.
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
            "save the tensors alone: torch.save(model.state_dict(), FILE)"
        ) from error
    except Exception as error:  # damaged bytes lead the unpickler to any of them, IndexError too
        detail = " ".join(str(error).split())[:200]
        raise DataFault(f"{file} is no file of torch.save, or damaged: {detail}") from error
