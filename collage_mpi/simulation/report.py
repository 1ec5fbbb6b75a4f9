"""A simulation beside a real run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from collage_mpi.kinds import SHARED_KINDS
from collage_mpi.results.render import shares_shown
from collage_mpi.system.table import Column, Table
from collage_mpi.system.terminal import to_text

Json = dict[str, Any]

# name, where in a summary; what a simulation must tell of a real run comes first
_SIDES = (
    ("group p50, ms", ("latency", "group", "p50_ms")),
    ("group p99, ms", ("latency", "group", "p99_ms")),
    *((f"{kind} share", ("price", f"{kind}_share")) for kind in SHARED_KINDS),
    ("skipped tasks", ("price", "skipped_tasks")),
    ("group p95, ms", ("latency", "group", "p95_ms")),
    ("group std, ms", ("latency", "group", "std_ms")),
    ("image p50, ms", ("latency", "image", "p50_ms")),
    ("image p99, ms", ("latency", "image", "p99_ms")),
    ("late answers", ("price", "late_answers")),
    ("wasted work", ("price", "wasted_work")),
    ("images/s", ("price", "images_per_s")),
)


def compare(real: Json, simulated: Json) -> list[Json]:
    """name, real, simulated and their ratio (None where there is none), the figures that a
    simulation must tell first."""
    found = []
    shares = [f"{kind}_share" for kind in shares_shown([real["price"], simulated["price"]])]
    for name, path in _SIDES:
        if path[-1].endswith("_share") and path[-1] not in shares:
            continue
        ours, theirs = _at(simulated, path), _at(real, path)
        ratio = ours / theirs if ours is not None and theirs else None
        found.append({"name": name, "real": theirs, "simulated": ours, "ratio": ratio})
    return found


def render_comparison(entries: Sequence[Json]) -> str:
    """The comparison as text."""
    rows = [
        [entry["name"], _shown(entry["real"]), _shown(entry["simulated"]), entry["ratio"]]
        for entry in entries
    ]
    ratio = Column("simulated / real", ".3f")
    return to_text(Table(("", "real", "simulated", ratio), rows).drawn())


def _at(summary: Mapping[str, Any], path: Sequence[str]) -> float | None:
    value: Any = summary
    for key in path:
        value = value[key]
    return None if value is None else float(value)


def _shown(value: float | None) -> str:
    return "n/a" if value is None else f"{value:,.4g}" if value < 1000 else f"{value:,.0f}"
