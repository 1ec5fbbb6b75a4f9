"""Writes the report: one HTML file with everything it needs, about one or several runs.

The template escapes everything that comes from data. Only the two scripts whose SHA-256 the page's
Content-Security-Policy names can run, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any

from collage_mpi import __version__
from collage_mpi.errors import UsageError
from collage_mpi.report import tables
from collage_mpi.report.charts import chart_data
from collage_mpi.report.verdict import verdicts
from collage_mpi.report.worst import worst_images
from collage_mpi.results.comparison import compare, notes
from collage_mpi.results.excerpt import excerpt
from collage_mpi.results.manifest import readable
from collage_mpi.results.reader import Run, distinct, open_run
from collage_mpi.results.render import warnings
from collage_mpi.results.summary import summarise
from collage_mpi.results.tally import Tally
from collage_mpi.results.verify import verify_run
from collage_mpi.system.files import write_atomic, writing
from collage_mpi.system.printable import printable

MOST_RUNS = 12  # about 100 KB each with its pictures
PICTURES = 24  # worst images in all, of several runs fewer each
SCRIPTS = ("uPlot.iife.min.js", "charts.js")

Json = dict[str, Any]


def write_report(
    folders: Sequence[Path], out: Path, shards: Sequence[Path | str] | None = None
) -> None:
    """Read, verify and sum up the runs, and write the page.

    Args:
        folders: of 1 to MOST_RUNS runs; the first is the baseline.
        out: the file.
        shards: files and folders in which the runs' shards are now; by default where they were.

    Raises:
        UsageError: no runs, or too many.
        EnvironmentFault: a run is missing, `shards` holds nothing, or the file cannot be written.
        DataFault: a run is damaged.
    """
    if not 1 <= len(folders) <= MOST_RUNS:
        raise UsageError(f"{len(folders)} runs; a report shows 1 to {MOST_RUNS}")
    text = render_page(folders, shards)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, (text.encode(),))


def render_page(folders: Sequence[Path], shards: Sequence[Path | str] | None = None) -> str:
    """The page as text. Raises like `write_report`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("collage_mpi.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # As it would be shown in a terminal: nothing turns or hides text. Markup is a text too.
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    assets = files("collage_mpi.report") / "assets"
    scripts = [(assets / name).read_text("utf-8") for name in SCRIPTS]
    return environment.get_template("page.html").render(
        **_contents(folders, shards),
        styles=[(assets / name).read_text("utf-8") for name in ("uPlot.min.css", "page.css")],
        scripts=scripts,
        policy=" ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
        version=__version__,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """The names of the runs on the page; how groups follow each other is named only if runs differ
    in it.
    """
    alike = len({run.mode for run in runs}) == 1
    names = [run.scheme if alike else run.label for run in runs]
    return [readable(name) for name in distinct(names, runs)]


def _short(names: Sequence[str]) -> list[str]:
    schemes = [name.split(",")[0] for name in names]
    return schemes if len(set(schemes)) == len(schemes) else list(names)


def _pace(mode: str) -> str:
    words = {
        "carry": "a rank that is still busy stays busy when the next group comes",
        "drain": "the next group comes when all ranks are idle",
    }
    known = words.get(mode.replace(",", " ").split()[0])
    return f"{known} ({mode})" if known else mode


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _contents(folders: Sequence[Path], shards: Sequence[Path | str] | None) -> Json:
    runs = [open_run(folder) for folder in folders]
    tallies = [Tally(run) for run in runs]
    summaries = [summarise(run, tally) for run, tally in zip(runs, tallies, strict=True)]
    names = _names(runs)
    entries = [
        {**entry, "name": name}
        for entry, name in zip(compare(runs, summaries=summaries), names, strict=True)
    ]
    proofs = [verify_run(run.path, run) for run in runs]
    parts = []
    for run, tally, summary, entry, name, proof in zip(
        runs, tallies, summaries, entries, names, proofs, strict=True
    ):
        some, by_team = excerpt(run, tally), bool(entry["unlike_teams"])
        slow, rank_tables = tables.ranks(some, tally.tasks.answered)
        parts.append(
            {
                "name": name,
                "run": summary["run"],
                "summary": summary,
                "pace": _pace(run.mode),
                "world": [member for member in run.manifest.get("world") or () if member],
                "simulated": "simulated" in run.manifest,
                "proof": proof,
                "warnings": readable(warnings(summary)),
                "chart": chart_data(some, printable(name), by_team=by_team, tally=tally),
                "slow": slow,
                "ranks": rank_tables,
                "confusion": tables.confusions(run),
                "worst": worst_images(run, shards, max(6, PICTURES // len(runs))),
                "errors": tables.errors(run, summary),
            }
        )
    return {
        "runs": parts,
        "verdicts": verdicts(_short(names), entries, summaries, proofs),
        "notes": notes(entries),
        "compared": tables.compared(entries, summaries),
        "accuracies": tables.accuracies(summaries, names),
        "settings": tables.settings(runs, names),
        "origins": tables.origins(runs, names),
        "charts": [part["chart"] for part in parts],
    }
