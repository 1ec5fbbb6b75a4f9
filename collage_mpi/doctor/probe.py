"""Imports one package in a process of its own, as this may crash or hang, and prints a JSON object.

Usage: python -m collage_mpi.doctor.probe PACKAGE
"""

from __future__ import annotations

import json
import sys
from importlib import import_module, metadata
from typing import Any


def probe(name: str) -> dict[str, Any]:
    """Import a package: its version, {} if it is missing, or the error.

    For torch also its `build` ("cpu", "cuda 12.4", "rocm 6.2") and the number of GPUs that it sees.
    """
    module_name = {"pillow": "PIL"}.get(name, name.replace("-", "_"))
    try:
        module = import_module(module_name)
    except Exception as error:  # a broken package may raise anything
        if isinstance(error, ModuleNotFoundError) and error.name == module_name:
            return {}
        lines = str(error).strip().splitlines() or [type(error).__name__]
        return {"version": _installed(name), "error": f"{type(error).__name__}: {lines[0]}"}
    version = {"version": str(getattr(module, "__version__", None) or _installed(name) or "?")}
    return {**version, **_torch(module)} if name == "torch" else version


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch(torch: Any) -> dict[str, Any]:
    cuda, hip = torch.version.cuda, getattr(torch.version, "hip", None)
    build = f"cuda {cuda}" if cuda else f"rocm {hip}" if hip else "cpu"
    return {"build": build, "count": int(torch.cuda.device_count())}


if __name__ == "__main__":
    answer = probe(sys.argv[1])
    print("\n" + json.dumps(answer), flush=True)  # a library may have printed an incomplete line
