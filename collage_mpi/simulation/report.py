"""Summaries of simulations side by side: a table over seeds, and beside a real run.

Owns: which numbers are shown, medians and ranges over seeds, table.csv.
Does not know: how a number came about.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.results.file_names import TABLE
from collage_mpi.system.files import save_records, writing
from collage_mpi.system.terminal import make_table, to_text

Json = dict[str, Any]

_GROUP = ("p50_ms", "p95_ms", "p99_ms", "p99.9_ms", "std_ms", "over_3_medians")
_PRICE = (
    "collage_share",
    "parity_share",
    "wasted_work",
    "ranks",
    "rank_seconds_per_image",
    "images_per_s",
)
# name, where in a summary; what a simulation must tell of a real run comes first
_SIDES = (
    ("group p50, ms", ("latency", "group", "p50_ms")),
    ("group p99, ms", ("latency", "group", "p99_ms")),
    ("collage share", ("price", "collage_share")),
    ("parity share", ("price", "parity_share")),
    ("skipped tasks", ("price", "skipped_tasks")),
    ("group p95, ms", ("latency", "group", "p95_ms")),
    ("group std, ms", ("latency", "group", "std_ms")),
    ("image p50, ms", ("latency", "image", "p50_ms")),
    ("image p99, ms", ("latency", "image", "p99_ms")),
    ("late answers", ("price", "late_answers")),
    ("wasted work", ("price", "wasted_work")),
    ("images/s", ("price", "images_per_s")),
)


def seed_row(seed: int, summary: Json) -> Json:
    """One simulation as a row of the table; None where its sample does not support a number."""
    group, price = summary["latency"]["group"], summary["price"]
    return {
        "seed": seed,
        "status": summary["status"],
        "groups": group["groups"],
        **{name: group[name] for name in _GROUP},
        "image_p50_ms": summary["latency"]["image"]["p50_ms"],
        "image_p99_ms": summary["latency"]["image"]["p99_ms"],
        "accuracy": summary["accuracy"]["overall"]["accuracy"],
        **{name: price[name] for name in _PRICE},
    }


def write_seeds(out: Path, rows: Sequence[Json]) -> Path:
    """The table as `out`/table.csv, whole or not at all.

    Raises:
        EnvironmentFault: it cannot be written.
    """
    path = out / TABLE
    with writing(path):
        out.mkdir(parents=True, exist_ok=True)
    save_records(path, rows)
    return path


def render_seeds(rows: Sequence[Json]) -> str:
    """Median and 10-90 % range over the seeds; the seed (a placement) is the unit."""
    shown = [name for name in rows[0] if name not in ("seed", "status")]
    table = make_table("over seeds", "median", "10 %", "90 %", "seeds")
    for name in shown:
        values = [row[name] for row in rows if row[name] is not None]
        if not values:
            table.add_row(name, "n/a", "", "", "0")
            continue
        low, middle, high = np.quantile(values, (0.1, 0.5, 0.9))
        table.add_row(name, *(f"{value:.5g}" for value in (middle, low, high)), str(len(values)))
    return to_text(table)


def compare(real: Json, simulated: Json) -> list[Json]:
    """name, real, simulated and their ratio (None where there is none), the figures that a
    simulation must tell first."""
    found = []
    for name, path in _SIDES:
        ours, theirs = _at(simulated, path), _at(real, path)
        ratio = ours / theirs if ours is not None and theirs else None
        found.append({"name": name, "real": theirs, "simulated": ours, "ratio": ratio})
    return found


def render_comparison(entries: Sequence[Json]) -> str:
    """The comparison as text."""
    table = make_table("", "real", "simulated", "simulated / real")
    for entry in entries:
        numbers = [_shown(entry[key]) for key in ("real", "simulated")]
        ratio = "n/a" if entry["ratio"] is None else f"{entry['ratio']:.3f}"
        table.add_row(entry["name"], *numbers, ratio)
    return to_text(table)


def _at(summary: Mapping[str, Any], path: Sequence[str]) -> float | None:
    value: Any = summary
    for key in path:
        value = value[key]
    return None if value is None else float(value)


def _shown(value: float | None) -> str:
    return "n/a" if value is None else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
