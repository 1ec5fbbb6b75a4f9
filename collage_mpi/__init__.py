"""Classifies very many images over MPI: exactly one result for each image.

Public names are resolved on first use, so that importing the package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collage_mpi.api import run
    from collage_mpi.results import follow, read_results
    from collage_mpi.settings.run_settings import RunSettings

__version__ = "1.0.0"

_PUBLIC = {
    "RunSettings": "collage_mpi.settings.run_settings",
    "follow": "collage_mpi.results",
    "launch_run": "collage_mpi.api",
    "map_batches": "collage_mpi.api",
    "read_results": "collage_mpi.results",
    "run": "collage_mpi.api",
}

__all__ = [
    "RunSettings",
    "__version__",
    "follow",
    "launch_run",
    "map_batches",
    "read_results",
    "run",
]


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'collage_mpi' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
