"""How long jobs with a slow rank took over the least they could.

    python analysis/slow_rank.py runs/slow runs/slow-simulated --page analysis/reports/peers.md

Owns: the two ratios of a run with pinned service times. From the first admission to the last row,
over (a) images / sum of the single ranks' speeds, which answers of further ranks make shorter;
and (b) the scheme's own ideal: all of its ranks busy all the time with the tasks that they ran,
copies and wasted ones too.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
from peers.page import markdown_of, write_into

from collage_mpi.kinds import SINGLE
from collage_mpi.ledger.records import run_name
from collage_mpi.results import Results, read_results
from collage_mpi.rows import KIND_CODE, KINDS, SOURCES, ran_together
from collage_mpi.system.table import Table
from collage_mpi.workload.straggler_settings import StragglerSettings


class Ratio(NamedTuple):
    """Seconds of a run, and over what it could have been."""

    seconds: float
    to_speeds: float
    to_own: float
    by_single: float  # share of the images


def ratio(results: Results) -> Ratio:
    """Of a complete run of pinned service times, every image of which was answered.

    Raises:
        SystemExit: it is something else.
    """
    settings, images, tasks = results.manifest["settings"], results.images, results.tasks
    model, median_ms, _ = StragglerSettings(settings["straggler"]).model()
    if model != "pinned" or not images["answered"].all():
        raise SystemExit(f"{results.path}: it needs --straggler pinned and no error rows")
    seconds = float((images["t0_ns"] + images["latency_ns"]).max() - images["t0_ns"].min()) / 1e9
    each_s = median_ms / 1e3
    slow = {int(r): float(f) for r, f in (text.split(":") for text in settings["slow_ranks"] or ())}
    singles = set(tasks["rank"][tasks["kind"] == KIND_CODE[SINGLE]].tolist())
    speed = sum(1 / (each_s * slow.get(rank, 1.0)) for rank in singles)
    busy_s = (tasks["compute_ns"] / ran_together(tasks)).sum() / 1e9
    ranks = len(np.unique(tasks["rank"]))
    shared = [code for code, name in enumerate(SOURCES) if name in KINDS and name != SINGLE]
    return Ratio(
        seconds,
        seconds * speed / len(images),
        seconds * ranks / busy_s,
        1 - float(np.isin(images["source"], shared).mean()),
    )


def ratios(folder: Path) -> dict[str, Ratio]:
    """Name -> of the complete runs in a folder, by name."""
    runs = [read_results(path.parent) for path in sorted(folder.glob(f"*/{run_name(1)}"))]
    return {run.path.name: ratio(run) for run in runs if run.complete}


def markdown(columns: dict[str, dict[str, Ratio]]) -> str:
    """A row a run, and for each folder seconds and ratios."""
    names = list(dict.fromkeys(name for found in columns.values() for name in found))
    head = ["scheme, slow rank"]
    for title in columns:
        head += [f"{title}: s", "to speeds", "to own ideal", "by single ranks"]
    rows = []
    for name in names:
        cells = [" ".join(name.rsplit("_", 1)).replace("x", " x") if name[-1] == "x" else name]
        for found in columns.values():
            one = found.get(name)
            cells += _cells(one) if one else [""] * 4
        rows.append(cells)
    return markdown_of(Table(head, rows))


def _cells(one: Ratio) -> list[str]:
    return [f"{one.seconds:.1f}", f"{one.to_speeds:.3f}", f"{one.to_own:.3f}",
            f"{100 * one.by_single:.0f} %"]  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folders", type=Path, nargs="+", help="with a folder for each run")
    parser.add_argument("--page", type=Path, help="write the table into this page")
    args = parser.parse_args()
    columns = {}
    for folder in args.folders:
        found = ratios(folder)
        if not found:
            sys.exit(f"{folder}: no complete run; collage-mpi experiment FILE --out {folder}")
        simulated = "simulated" in read_results(folder / next(iter(found))).manifest
        columns["simulated" if simulated else "real"] = found
    text = markdown(columns)
    if args.page:
        write_into(args.page, "slow rank", text)
    print(text)


if __name__ == "__main__":
    main()
