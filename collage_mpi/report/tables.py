"""The tables of the report, as rows of text and numbers."""

from __future__ import annotations

import json
import shlex
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from collage_mpi.kinds import KINDS
from collage_mpi.results.class_counts import ClassCounts
from collage_mpi.results.manifest import class_name, recorded_settings
from collage_mpi.results.reader import Results, Run
from collage_mpi.results.render import (
    DROPPED,
    STATISTICS,
    accuracies_of,
    audit_text,
    coordinators,
    latency_cell,
    optional,
    paired_cell,
    points,
    share_of,
    shares_shown,
    supported,
)
from collage_mpi.results.slow_ranks import OVER, Speed, injected, rank_speeds
from collage_mpi.results.summary import compared_answers, networks_text
from collage_mpi.rows import IMAGES
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.system.printable import brief, some_of
from collage_mpi.system.table import Cell, Column, Table, Value

MOST_RANKS, MOST_NAMED = 40, 10
MOST_CLASSES = 20  # a larger confusion matrix cannot be read
MOST_PAIRS = 12  # rows of the table of commonest mistakes
MOST_SHARDS = 20
TASKS_TOLD = ("tasks", *DROPPED)

Json = dict[str, Any]


Row = Sequence[Value]


def compared(entries: Sequence[Json], summaries: Sequence[Json]) -> Table:
    """Price (C8) and latency, with a column for each run and ratios to the first run in brackets.
    Latency comes first where images arrive at a rate."""
    columns = [Column(), *(Column(entry["name"], ",") for entry in entries)]
    parts = [_price(entries), _latency(entries, summaries)]
    if any(entry["open_loop"] for entry in entries):
        parts.reverse()
    return Table(columns, [row for part in parts for row in part], "Of the measured groups")


def _latency(entries: Sequence[Json], summaries: Sequence[Json]) -> list[Row]:
    latency = [summary["latency"] for summary in summaries]
    both = list(zip(entries, latency, strict=True))
    rows: list[Row] = [["Latency of a group, ms"]]
    for name in STATISTICS:
        cells = [_latency_cell(e, row["group"], name, i) for i, (e, row) in enumerate(both)]
        rows.append([name.upper() if name != "std" else "standard deviation", *cells])
    rows += [
        ["groups measured", *(row["group"]["n"] for row in latency)],
        ["Latency of an image, ms"],
    ]
    for name in STATISTICS[:-1]:
        values = [supported(r["image"][f"{name}_ms"], r["image"]["independent"]) for r in latency]
        rows.append([name.upper(), *values])
    return rows


def _latency_cell(entry: Json, row: Json, name: str, i: int) -> str:
    text, ends = latency_cell(entry, name, i == 0), row.get(f"{name}_ci95_ms")
    return text + (f" [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else "")


def _price(entries: Sequence[Json]) -> list[Row]:
    prices = [entry["price"] for entry in entries]
    audits = [entry.get("audit") for entry in entries]
    shares = shares_shown(prices)
    differences = (paired_cell(e, i == 0, f": {e['paired']['why']}") for i, e in enumerate(entries))
    same = ["" if i == 0 else points(e["paired"]["same"]) for i, e in enumerate(entries)]
    costs = [entry.get("cost") for entry in entries]
    agreement = ["agreement of audited answers", *(audit_text(a) if a else "" for a in audits)]
    return [
        ["Speed, answers and price"],
        *(
            [label, *(_with_ratio(prices, i, key, form) for i in range(len(prices)))]
            for label, key, form in (
                ("images/s", "images_per_s", ",.1f"),
                ("rank-seconds per image", "rank_seconds_per_image", ".4f"),
            )
        ),
        ["accuracy", *accuracies_of(entries)],
        *([["paired difference", *differences]] if len(entries) > 1 else []),
        *([["images with the same class", *same]] if len(entries) > 1 else []),
        *([agreement] if any(audits) else []),
        *([f"{kind} share of images", *(share_of(p, kind) for p in prices)] for kind in shares),
        ["wasted work", *(points(price["wasted_work"]) for price in prices)],
        ["ranks", *(_ranks_cell(price) for price in prices)],
        ["cost ratio", *(optional(price["cost_ratio"], ".2f") for price in prices)],
        *([["node-hours", *(f"{c['node_hours']:.4g}" if c else "" for c in costs)]] * any(costs)),
        *([key.replace("_", " "), *(price[key] for price in prices)] for key in TASKS_TOLD),
    ]


def _with_ratio(prices: Sequence[Json], i: int, key: str, form: str) -> str:
    text, value, base = optional(prices[i][key], form), prices[i][key], prices[0][key]
    return f"{text} ({value / base:.2f}x)" if i and value and base else text


def _ranks_cell(price: Json) -> str:
    held = [f"{price[f'{kind}_ranks']} {kind}" for kind in KINDS if price[f"{kind}_ranks"]]
    return f"{price['ranks']}: {coordinators(price)}, {', '.join(held)}"


def accuracies(summaries: Sequence[Json], names: Sequence[str]) -> Table | None:
    """Accuracy overall and by source, with a column for each run; None without labels."""
    found = [{"overall": s["accuracy"]["overall"], **s["accuracy"]["by_source"]} for s in summaries]
    if not any(one["overall"]["n"] for one in found):
        return None
    sources = dict.fromkeys(key for one in found for key in one)
    rows = [[source, *(_accuracy_cell(one.get(source)) for one in found)] for source in sources]
    note = (
        "In brackets the 95 % interval. Sources answered different images: compare runs by the "
        "paired difference above, which is on the same images. Error rows count as wrong."
    )
    return Table(["", *names], rows, "Right answers by who gave them", (note,))


def _accuracy_cell(row: Json | None) -> str:
    if row is None or not row["n"]:
        return ""
    low, high = row["ci95"]
    return f"{points(row['accuracy'])} of {row['n']:,} [{100 * low:.1f}, {100 * high:.1f}]"


def _answers(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The pairs of label and answer that occur, ascending: labels, answers, counts, (k,) each."""
    pairs: Counter[tuple[int, int]] = Counter()
    for rows in run.chunks(IMAGES):
        rows = rows[rows["answered"] & rows["has_label"]]
        columns = np.stack([rows["label"], rows["predicted"]], axis=1)  # (n, 2)
        found, counts = np.unique(columns, axis=0, return_counts=True)
        pairs.update(dict(zip(map(tuple, found.tolist()), counts.tolist(), strict=True)))
    told = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    return told[:, 0], told[:, 1], np.array([pairs[pair] for pair in sorted(pairs)], np.int64)


def confusions(run: Run) -> tuple[Table | None, Table | None]:
    """The confusion matrix, if there are few classes, and the commonest mistakes; None if there is
    no label or no mistake."""
    labels, predicted, counts = _answers(run)
    if not len(labels):
        return None, None
    classes = np.unique(np.concatenate([labels, predicted]))  # only classes that occur
    names = [name_or_number(run, number) for number in classes.tolist()]
    is_, taken = np.searchsorted(classes, labels), np.searchsorted(classes, predicted)
    of_label = np.bincount(is_, counts, minlength=len(classes))
    wrong = np.flatnonzero(is_ != taken)
    wrong = wrong[np.argsort(-counts[wrong], kind="stable")][:MOST_PAIRS]
    mistakes: list[Row] = [
        [names[is_[k]], names[taken[k]], int(counts[k]), points(counts[k] / of_label[is_[k]])]
        for k in wrong.tolist()
    ]
    columns = ("is", "taken for", Column("images", ","), "of its class")
    worst = Table(columns, mistakes, "Commonest mistakes") if mistakes else None
    if len(classes) > MOST_CLASSES:
        return None, worst
    matrix = np.zeros((len(classes),) * 2, np.int64)
    matrix[is_, taken] = counts
    rows: list[Row] = [
        [name, *(_confusion_cell(matrix, i, j) for j in range(len(names)))]
        for i, name in enumerate(names)
    ]
    note = "A row a true class, a column an answer; the shade is the share of the row."
    return Table(["", *names], rows, "Confusion, images", (note,)), worst


def class_counts(counts: ClassCounts) -> Table | None:
    """How many images the exact network calls each class, where it did not answer all of them; None
    if it did, or audited nothing."""
    told = counts.told() if counts.others else None
    if told is None:
        return None
    commonest = sorted(told, key=lambda one: -one["high"])[:MOST_CLASSES]
    rows: list[Row] = [
        [str(one["class"] if one["name"] is None else one["name"]), one["low"], one["high"]]
        for one in commonest
    ]
    note = (
        f"{counts.audited:,} of {counts.others:,} answers of other networks were audited. With a "
        "probability of 95 % all lines hold; collage-mpi count has all classes."
    )
    columns = ("the exact network calls", Column("at least", ","), Column("at most", ","))
    return Table(columns, rows, "Images by class", (note,))


def _confusion_cell(matrix: np.ndarray, i: int, j: int) -> Cell:
    n, row = int(matrix[i, j]), int(matrix[i].sum())
    return Cell(f"{n:,}" if n else "", n / row if row else 0.0, right=i == j)


def name_or_number(run: Run, number: int) -> str:
    """The name of a class, or its number if it has no name."""
    return class_name(run.manifest.get("class_names") or [], number) or str(number)


def ranks(run: Results, answered: Collection[int] = ()) -> tuple[str, list[Table]]:
    """Sentences that name slow and idle ranks, and tables of service times by rank, and by GPU and
    host; and of answers that were wrong.

    Args:
        run: the whole run, or an excerpt.
        answered: ranks that answered, even if an excerpt has no answer of theirs.
    """
    speeds = rank_speeds(run)
    by_rank = [speed for speed in speeds if speed.unit == "rank"]
    wider = [speed for speed in speeds if speed.unit != "rank" and speed.ratio is not None]
    notes = [
        f"SLOW: the rank took significantly more than {OVER:g} times as long as its peers, the "
        "other ranks of its kind. In brackets is the 95 % interval, simultaneous over all ranks."
    ]
    if run.every > 1:
        notes.append(
            f"This run is long. Only one in {run.every:,} of its parts of some thousand rows was "
            "read for this table, and only the answers in these parts are counted."
        )
    shown = sorted(by_rank[:MOST_RANKS], key=lambda speed: (speed.ranks, speed.kind))
    notes += _slowest_of(by_rank)
    tables = [speeds_table("rank", shown, "Service time by rank", notes)]
    if wider:
        notes = _slowest_of(wider)
        tables.append(speeds_table("", wider[:MOST_RANKS], "By GPU and host", notes))
    if compared := compared_answers(run.manifest):
        caption = "Answers compared with those of other ranks"
        tables.append(compared_table("", compared[:MOST_RANKS], caption))
    return _named(run, speeds, answered), tables


def _slowest_of(speeds: Sequence[Speed]) -> list[str]:
    most = MOST_RANKS
    return [f"The slowest {most} of {len(speeds):,}."] if len(speeds) > most else []


def speeds_table(
    unit: str, speeds: Sequence[Speed], caption: str = "", notes: Sequence[str] = ()
) -> Table:
    """The median service times of ranks, GPUs or hosts, beside those of their peers."""
    hosts = unit == "rank" and len({speed.host for speed in speeds}) > 1
    failing = any(speed.unanswered for speed in speeds)
    columns: list[Column | str] = [
        unit,
        *(["on"] if hosts else []),
        "network",
        "median ms",
        Column("answers", ","),
        *(["unanswered"] if failing else []),
        Column("x its peers", left=True),
    ]
    rows = []
    for speed in speeds:
        on_gpu = unit == "rank" and speed.device not in (None, "cpu")
        left = Cell(f"{speed.unanswered:,}", bad=speed.unanswered > 0)
        rows.append(
            [
                f"{speed.name} {speed.device}" if on_gpu else speed.name,
                *([speed.host or "?"] if hosts else []),
                *(speed.kind, brief(speed.median_ms), speed.messages),
                *([left] if failing else []),
                _against(speed),
            ]
        )
    return Table(columns, rows, caption, notes)


def compared_table(unit: str, compared: Sequence[Json], caption: str = "") -> Table:
    """How many answers of ranks, devices or hosts were wrong, of `summary.compared_answers`."""
    rows = []
    for one in compared:
        share, wrong = " to ".join(points(end) for end in one["interval"]), one["wrong"] > 0
        counts = one["compared"], Cell(f"{one['wrong']:,}", bad=wrong)
        ends = Cell(f"{share} WRONG", bad=True) if wrong else share
        name = one["name"] if unit else f"{one['unit']} {one['name']}"
        rows.append([name, one["host"] or "", *counts, ends])
    columns = (unit, "on", Column("compared", ","), "wrong", Column("share, 95 %", left=True))
    return Table(columns, rows, caption)


def _against(speed: Speed) -> Cell | str:
    if speed.ratio is None:
        return ""
    text = f"{speed.ratio:.2f}x"
    if speed.interval:
        text += " [{:.2f}, {:.2f}]".format(*speed.interval)
    return Cell(f"{text} SLOW", bad=True) if speed.slow else text


def _named(run: Results, speeds: Sequence[Speed], answered: Collection[int]) -> str:
    idle = [one for one in speeds if one.unit == "rank" and not one.messages]
    names = [
        one.name + (f" on {one.host}" if one.host else "")
        for one in idle
        if one.ranks[0] not in answered
    ]
    slow = _slow_named(run, speeds)
    return f"{slow} No answer came from {some_of(names, MOST_NAMED)}." if names else slow


def _slow_named(run: Results, speeds: Sequence[Speed]) -> str:
    slow = [speed for speed in speeds if speed.slow]
    if all(speed.interval is None for speed in speeds):
        return "Too few answers to tell whether a rank is slower than its peers."
    if not slow:
        return "No rank is significantly slower than its peers."
    named = [
        (f"host {s.name}" if s.unit == "host" else s.name)
        + (f" on {s.host}" if s.unit == "rank" and s.host else "")
        + f" ({s.ratio:.1f}x)"
        for s in slow
    ]
    why = " Service times were injected." if injected(run) else ""
    return f"Slow against its peers: {some_of(named, MOST_NAMED)}.{why}"


def errors(run: Run, summary: Json) -> Table | None:
    """The reasons of error rows, and the shards that could not be read; None if there are none."""
    first = summary["first_errors"]
    rows: list[Row] = [
        [reason, n, f"row {first[reason]['row']:,} of {first[reason]['shard']}"]
        for reason, n in summary["errors"].items()
    ]
    rows += [
        [f"shard cannot be read: {shard['reason']}", "", shard["path"]]
        for shard in run.manifest.get("bad_shards") or ()
    ]
    caption = f"Images without an answer: {summary['rows']['errors']:,}"
    return Table(("reason", Column("images", ","), "first at"), rows, caption) if rows else None


def settings(runs: Sequence[Run], names: Sequence[str]) -> Table:
    """The settings of each run. Settings that are not the default come first, and settings in which
    the runs differ are marked."""
    recorded = [{**RunSettings().to_dict(), **recorded_settings(run.manifest)} for run in runs]
    defaults = RunSettings().to_dict()
    rows: list[Row] = []
    for key in sorted({key for one in recorded for key in one}):
        values = [_value(one.get(key)) for one in recorded]
        differs = len(set(values)) > 1
        default = _value(defaults[key]) if key in defaults else ""
        cells = [Cell(v, bad=differs) if differs or v != default else v for v in values]
        rows.append([key, *cells, default])
    changed = [row for row in rows if any(isinstance(cell, Cell) for cell in row)]
    rest = [row for row in rows if row not in changed]
    grouped: list[Row] = [["Not the default"], *changed, ["As by default"], *rest]
    return Table(("setting", *names, "default"), grouped, "Settings")


def _value(value: Any) -> str:
    """A setting as a user types it: lists with commas, "" for None."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def origins(runs: Sequence[Run], names: Sequence[str]) -> Table:
    """The software and the input of each run."""
    jobs = [run.manifest.get("job") or {} for run in runs]
    versions = [job.get("versions") or {} for job in jobs]
    held = [run.manifest.get("networks") or {} for run in runs]
    rows: list[Row] = [
        ["folder", *(str(run.path) for run in runs)],
        ["run id", *(run.manifest["run_id"] for run in runs)],
        ["started", *(run.manifest.get("started") or "" for run in runs)],
        ["sessions", *(str(len(run.manifest.get("sessions") or ())) for run in runs)],
        ["command", *(shlex.join(map(str, job.get("command") or ())) for job in jobs)],
        ["rank 0", *(str(job.get("host") or "") for job in jobs)],
        *(
            [name, *(str(one.get(name, "")) for one in versions)]
            for name in dict.fromkeys(key for one in versions for key in one)
        ),
        *(
            [f"{kind} network, SHA-256", *(one.get(kind, "")[:16] for one in held)]
            for kind in KINDS
        ),
        ["networks ran as", *map(networks_text, runs)],
        ["shards", *(_shards(run) for run in runs)],
    ]
    return Table(("", *names), [row for row in rows if any(row[1:])], "Made by")


def _shards(run: Run) -> str:
    entries = run.manifest["shards"]
    lines = [f"{one['path'] or 'simulated'}: {one['count']:,} images" for one in entries]
    more = len(lines) - MOST_SHARDS
    return "\n".join(lines[:MOST_SHARDS] + ([f"and {more:,} more"] if more > 0 else []))
