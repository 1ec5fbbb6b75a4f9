"""Results: a row for every image, group and task of a run, and what can be read from them.

Owns: the public names of this package, resolved on first use.
Does not know: networks, images.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collage_mpi.results.comparison import compare, render_comparison
    from collage_mpi.results.export import export_run
    from collage_mpi.results.names import ImageNames, image_names
    from collage_mpi.results.reader import Results, read_results
    from collage_mpi.results.render import render_summary
    from collage_mpi.results.rows import (
        GROUP_ROW,
        IMAGE_ROW,
        KEY_ROW,
        KINDS,
        OUTCOMES,
        SOURCES,
        TASK_ROW,
        GroupRow,
        ImageRow,
        TaskRow,
        wait_ns,
    )
    from collage_mpi.results.summary import summarise, write_summary
    from collage_mpi.results.verify import VerifyReport, verify_run
    from collage_mpi.results.writer import RunWriter

_HOME = {
    **dict.fromkeys(("compare", "render_comparison"), "comparison"),
    "export_run": "export",
    **dict.fromkeys(("Results", "read_results"), "reader"),
    "render_summary": "render",
    **dict.fromkeys(("GROUP_ROW", "IMAGE_ROW", "KEY_ROW", "TASK_ROW"), "rows"),
    **dict.fromkeys(("KINDS", "OUTCOMES", "SOURCES", "wait_ns"), "rows"),
    **dict.fromkeys(("GroupRow", "ImageRow", "TaskRow"), "rows"),
    **dict.fromkeys(("summarise", "write_summary"), "summary"),
    **dict.fromkeys(("VerifyReport", "verify_run"), "verify"),
    **dict.fromkeys(("ImageNames", "image_names"), "names"),
    "RunWriter": "writer",
}

__all__ = [
    "GROUP_ROW",
    "IMAGE_ROW",
    "KEY_ROW",
    "KINDS",
    "OUTCOMES",
    "SOURCES",
    "TASK_ROW",
    "GroupRow",
    "ImageNames",
    "ImageRow",
    "Results",
    "RunWriter",
    "TaskRow",
    "VerifyReport",
    "compare",
    "export_run",
    "image_names",
    "read_results",
    "render_comparison",
    "render_summary",
    "summarise",
    "verify_run",
    "wait_ns",
    "write_summary",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'collage_mpi.results' has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
