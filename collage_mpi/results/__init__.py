"""Writes, reads and summarises the rows of a run: one for every image, group and task.

The public names are imported on first use. The names of the files of a run that the ledger
does not name are here.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collage_mpi.results.export import export_run as export_run
    from collage_mpi.results.export import image_names as image_names
    from collage_mpi.results.reader import Results as Results
    from collage_mpi.results.reader import follow as follow
    from collage_mpi.results.reader import read_results as read_results
    from collage_mpi.results.render import compare as compare
    from collage_mpi.results.render import render_comparison as render_comparison
    from collage_mpi.results.render import render_summary as render_summary
    from collage_mpi.results.summary import summarise as summarise
    from collage_mpi.results.summary import write_summary as write_summary
    from collage_mpi.results.verify import VerifyReport as VerifyReport
    from collage_mpi.results.verify import verify_run as verify_run
    from collage_mpi.rows import KINDS as KINDS
    from collage_mpi.rows import OUTCOMES as OUTCOMES
    from collage_mpi.rows import SOURCES as SOURCES

MANIFEST = "manifest.json"  # of an export, and of runs of formats 1 and 2
SUMMARY = "summary.json"
PARTS_FOLDER = "parts"  # rows, and what is kept of their images
ROWS_FOLDER = "rows"  # the same of closed leases, a file for each
INDEX_FOLDER = "index"  # lists of the members of folders, tar files and other sources
RUN = "run.1.json"  # what the run fixes; later runs add to it
BESIDE_FOLDER = "beside"  # runs of networks that came later; see `results.beside`
JOBS_FOLDER = "jobs"  # an entry for each job
STATUS_FOLDER = "status"  # the state of each job
REPORT = "report.html"
EXPORT = "export"  # the folder that `export` writes to by default


def has_run(out: os.PathLike[str] | str) -> bool:
    """Whether the folder has a run. A path that cannot be a folder has none."""
    return os.path.exists(os.path.join(out, RUN))


def runs_beside(out: Path) -> dict[str, Path]:
    """Name -> folder of each run beside the first one of a table."""
    found = sorted(path for path in (out / BESIDE_FOLDER).glob("*") if has_run(path))
    return {path.name: path for path in found}


_NAMES = {  # module -> its public names
    "export": "export_run image_names",
    "reader": "Results follow read_results",
    "render": "compare render_comparison render_summary",
    ".rows": "KINDS OUTCOMES SOURCES",
    "summary": "summarise write_summary",
    "verify": "VerifyReport verify_run",
}
_HOME = {name: module for module, names in _NAMES.items() for name in names.split()}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'collage_mpi.results' has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
