"""The report's tables: what stands in their cells.

Owns: rows, columns and wording of each table, how slow a rank must be to be named.
Does not know: HTML, how a number comes about (results).
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from collage_mpi.kinds import KINDS
from collage_mpi.results.comparison import STATISTICS
from collage_mpi.results.manifest import recorded_settings
from collage_mpi.results.reader import Results
from collage_mpi.results.render import optional, points, shares_shown, supported
from collage_mpi.results.rows import OUTCOME_CODE, ran_together
from collage_mpi.results.statistics import percentile
from collage_mpi.settings.run_settings import RunSettings

SLOW = 1.5  # times the median of the peers' medians, from which a rank is named
MOST_RANKS = 40
MOST_CLASSES = 20  # of a matrix that can be read
MOST_PAIRS = 12  # of classes taken for one another
MOST_SHARDS = 20

Json = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        shade: how strongly it is coloured, 0 to 1; right: in the colour of what is right.
        bar: where a range begins, its middle and its end lie, as shares of the cell's width.
        bad: worth a look.
    """

    text: str
    shade: float = 0.0
    right: bool = False
    bar: tuple[float, float, float] | None = None
    bad: bool = False


Row = Sequence[Cell | str]


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its head. A row of one cell is a heading."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str] = field(default_factory=tuple)


def compared(entries: Sequence[Json], summaries: Sequence[Json]) -> Table:
    """Latency and price (C8), a column a run; ratios to the first run in brackets."""
    rows: list[Row] = []
    latency = [summary["latency"] for summary in summaries]
    rows.append(["Latency of a group, ms"])
    for name in STATISTICS:
        cells = [
            _latency_cell(entry, row["group"], name, i)
            for i, (entry, row) in enumerate(zip(entries, latency, strict=True))
        ]
        rows.append([name.upper() if name != "std" else "standard deviation", *cells])
    rows.append(["groups measured", *(f"{row['group']['n']:,}" for row in latency)])
    rows.append(["Latency of an image, ms"])
    for name in STATISTICS[:-1]:
        values = [supported(r["image"][f"{name}_ms"], r["image"]["independent"]) for r in latency]
        rows.append([name.upper(), *values])
    return Table(
        "Of the measured groups", ["", *(e["name"] for e in entries)], rows + _price(entries)
    )


def _latency_cell(entry: Json, row: Json, name: str, i: int) -> str:
    text = supported(entry[f"{name}_ms"], entry["independent"])
    ratio, ends = entry[f"{name}_ratio"], row.get(f"{name}_ci95_ms")
    if i and ratio is not None:
        text += f" ({ratio:.2f}x)"
    return text + (f" [{ends[0]:.1f}, {ends[1]:.1f}]" if ends else "")


def _price(entries: Sequence[Json]) -> list[Row]:
    prices = [entry["price"] for entry in entries]
    pairs = [entry["paired"] for entry in entries]
    differences = [
        ""
        if i == 0
        else f"{100 * pair['difference']:+.2f} points (n={pair['n']:,})"
        if pair["n"]
        else f"n/a: {pair['why']}"
        for i, pair in enumerate(pairs)
    ]
    more = [["paired difference", *differences]] if len(entries) > 1 else []
    dropped = ("late_answers", "skipped_tasks", "failed_tasks", "lost_tasks", "unfinished_tasks")
    return [
        ["Price"],
        ["accuracy", *(points(entry["accuracy"]) for entry in entries)],
        *more,
        *(
            [f"{kind} share of images", *(points(price[f"{kind}_share"]) for price in prices)]
            for kind in shares_shown(prices)
        ),
        ["wasted work", *(points(price["wasted_work"]) for price in prices)],
        ["ranks", *(_ranks_cell(price) for price in prices)],
        [
            "rank-seconds per image",
            *(optional(price["rank_seconds_per_image"], ".4f") for price in prices),
        ],
        ["images/s", *(optional(price["images_per_s"], ",.1f") for price in prices)],
        ["cost ratio", *(optional(price["cost_ratio"], ".2f") for price in prices)],
        ["tasks", *(f"{price['tasks']:,}" for price in prices)],
        *(
            [f"\u2003{name.split('_')[0]}", *(f"{price[name]:,}" for price in prices)]
            for name in dropped
        ),
    ]


def _ranks_cell(price: Json) -> str:
    held = [f"{price[f'{kind}_ranks']} {kind}" for kind in KINDS if price[f"{kind}_ranks"]]
    return f"{price['ranks']}: 1 coordinator, {', '.join(held)}"


def accuracies(summaries: Sequence[Json], names: Sequence[str]) -> Table | None:
    """Right answers overall and by who answered, a column a run; None without labels."""
    found = [{"overall": s["accuracy"]["overall"], **s["accuracy"]["by_source"]} for s in summaries]
    sources = [name for name in dict.fromkeys(key for one in found for key in one)]
    if not any(one["overall"]["n"] for one in found):
        return None
    rows = [[source, *(_accuracy_cell(one.get(source)) for one in found)] for source in sources]
    note = (
        "In brackets the 95 % interval. Sources answered different images: compare runs by the "
        "paired difference above, which is on the same images. Error rows count as wrong."
    )
    return Table("Right answers by who gave them", ["", *names], rows, (note,))


def _accuracy_cell(row: Json | None) -> str:
    if row is None or not row["n"]:
        return ""
    low, high = row["ci95"]
    return f"{points(row['accuracy'])} of {row['n']:,} [{100 * low:.1f}, {100 * high:.1f}]"


def confusions(run: Results) -> tuple[Table | None, Table | None]:
    """Of labelled answers: the matrix, where it can be read, and the commonest mistakes."""
    images = run.images[run.images["answered"] & run.images["has_label"]]
    if not len(images):
        return None, None
    labels, predicted = images["label"], images["predicted"]
    classes = np.unique(np.concatenate([labels, predicted]))  # those that occur, any numbers
    names = [class_name(run, number) for number in classes.tolist()]
    i, j = np.searchsorted(classes, labels), np.searchsorted(classes, predicted)
    pairs, counts = np.unique(i * len(classes) + j, return_counts=True)
    is_, taken = pairs // len(classes), pairs % len(classes)
    of_label = np.bincount(i, minlength=len(classes))
    wrong = np.flatnonzero(is_ != taken)
    wrong = wrong[np.argsort(-counts[wrong], kind="stable")][:MOST_PAIRS]
    mistakes = [
        [names[is_[k]], names[taken[k]], f"{counts[k]:,}", points(counts[k] / of_label[is_[k]])]
        for k in wrong.tolist()
    ]
    head = ("is", "taken for", "images", "of its class")
    worst = Table("Commonest mistakes", head, mistakes) if mistakes else None
    if len(classes) > MOST_CLASSES:
        return None, worst
    matrix = np.zeros((len(classes),) * 2, np.int64)
    matrix[is_, taken] = counts
    rows: list[Row] = [
        [name, *(_confusion_cell(matrix, i, j) for j in range(len(names)))]
        for i, name in enumerate(names)
    ]
    note = "A row a true class, a column an answer; the shade is the share of the row."
    return Table("Confusion, images", ["", *names], rows, (note,)), worst


def _confusion_cell(matrix: np.ndarray, i: int, j: int) -> Cell:
    n, row = int(matrix[i, j]), int(matrix[i].sum())
    return Cell(f"{n:,}" if n else "", n / row if row else 0.0, right=i == j)


def class_name(run: Results, number: int) -> str:
    """A class by its name, or its number where it has none."""
    names = run.manifest.get("class_names") or []
    return names[number] if 0 <= number < len(names) else str(number)


@dataclass(frozen=True)
class RankTimes:
    """What one rank took for its tasks of one kind, in ms; None where too few support it.

    Attributes:
        against: its median over the median of its peers' medians; None without a peer.
    """

    rank: int
    host: str
    kind: str
    tasks: int
    late: int
    failed: int
    p5: float | None
    median: float | None
    p95: float | None
    against: float | None = None

    @property
    def slow(self) -> bool:
        """Worth naming."""
        return self.against is not None and self.against >= SLOW


def rank_times(run: Results) -> list[RankTimes]:
    """Service times (compute + held) of each rank, by kind of network, over measured tasks."""
    tasks = run.measured_tasks
    service_ms = (tasks["compute_ns"] + tasks["held_ns"]) / 1e6 / ran_together(tasks)  # (tasks,)
    hosts = {m["rank"]: str(m.get("host") or "") for m in run.manifest.get("world") or ()}
    order = np.lexsort((tasks["kind"], tasks["rank"]))
    key = tasks["rank"][order].astype(np.int64) * len(KINDS) + tasks["kind"][order]
    found = []
    for places in np.split(order, np.flatnonzero(np.diff(key)) + 1) if len(order) else []:
        mine = tasks[places]
        answered = mine["outcome"] == OUTCOME_CODE["answered"]
        values = service_ms[places][answered]
        rank = int(mine["rank"][0])
        p5, median, p95 = (_supported(values, q) for q in (0.05, 0.5, 0.95))
        late, failed = answered & (mine["resolved"] == 0), mine["outcome"] >= OUTCOME_CODE["failed"]
        kind, host = KINDS[int(mine["kind"][0])], hosts.get(rank, "")
        counts = (len(mine), int(late.sum()), int(failed.sum()))
        found.append(RankTimes(rank, host, kind, *counts, p5, median, p95))
    return [_against_peers(one, found) for one in found]


def _supported(values: np.ndarray, q: float) -> float | None:
    """A percentile from above or, mirrored, from below."""
    if q >= 0.5:
        return percentile(values, q)
    mirrored = percentile(-values, 1 - q)
    return None if mirrored is None else -mirrored


def _against_peers(one: RankTimes, all_ranks: Sequence[RankTimes]) -> RankTimes:
    peers = [r.median for r in all_ranks if r.kind == one.kind and r.rank != one.rank and r.median]
    if one.median is None or not peers:
        return one
    return RankTimes(**{**vars(one), "against": one.median / float(np.median(peers))})


def ranks(run: Results) -> tuple[str, list[Table]]:
    """A sentence that names the slow ranks; a line a rank, and a line a host."""
    times = rank_times(run)
    shown = times
    notes = [
        "Service: what the rank itself measured, compute and injected delay, of a task. The bar "
        "goes from the 5 % to the 95 % percentile, its mark is the median. Late: answered when "
        "all its images had their answers."
    ]
    if len(times) > MOST_RANKS:
        shown = sorted(times, key=lambda one: -(one.against or 0))[:MOST_RANKS]
        notes.append(f"The slowest {MOST_RANKS} of {len(times):,}.")
    longest = max((one.p95 or one.median or 0.0 for one in shown), default=0.0) or 1.0
    head = [*("rank", "host", "network", "median ms"), "x its peers", "P5 to P95"]
    head += ["tasks", "late", "failed"]
    rows = [_rank_row(one, longest) for one in shown]
    tables = [Table("Service time by rank", head, rows, notes)]
    hosts = {one.host for one in times}
    if len(hosts) > 1:
        tables.append(_by_host(times, sorted(hosts)))
    return _slow_named(times), tables


def _rank_row(one: RankTimes, longest: float) -> Row:
    middle = one.median or 0.0
    ends = ((one.p5 or middle) / longest, middle / longest, (one.p95 or middle) / longest)
    against = optional(one.against, ".2f", "x")
    return [
        *(str(one.rank), one.host or "\u2013", one.kind),
        supported(one.median, one.tasks),
        Cell(f"{against} slow", bad=True) if one.slow else against if one.against else "",
        Cell("", bar=ends) if one.median else "",
        *(f"{one.tasks:,}", f"{one.late:,}"),
        Cell(f"{one.failed:,}", bad=one.failed > 0),
    ]


def _by_host(times: Sequence[RankTimes], hosts: Sequence[str]) -> Table:
    rows: list[Row] = []
    for host in hosts:
        mine = [one for one in times if one.host == host]
        known = [one.against for one in mine if one.against is not None]
        slow = [str(one.rank) for one in mine if one.slow]
        middle = float(np.median(known)) if known else None
        text = optional(middle, ".2f", "x")
        cell = Cell(text, bad=middle is not None and middle >= SLOW)
        rows.append([host or "\u2013", f"{len(mine):,}", cell, ", ".join(slow) or "none"])
    note = "x their peers: the median over the host's ranks."
    return Table("By host", ("host", "ranks", "x their peers", "slow ranks"), rows, (note,))


def _slow_named(times: Sequence[RankTimes]) -> str:
    slow = sorted((one for one in times if one.slow), key=lambda one: -(one.against or 0))
    if not slow:
        return f"No rank's median is over {SLOW:g} times its peers'."
    named = [
        f"rank {one.rank}" + (f" on {one.host}" if one.host else "") + f" ({one.against:.1f}x)"
        for one in slow[:10]
    ]
    more = f" and {len(slow) - 10:,} more" if len(slow) > 10 else ""
    against = "by median service time against the same kind's other ranks"
    return f"Slow, {against}: {', '.join(named)}{more}."


def errors(run: Results, summary: Json) -> Table | None:
    """Why images have no answer, and which ranks and shards are missing."""
    first = summary["first_errors"]
    rows: list[Row] = [
        [reason, f"{n:,}", f"row {first[reason]['row']:,} of {first[reason]['shard']}"]
        for reason, n in summary["errors"].items()
    ]
    rows += [
        [f"shard cannot be read: {shard['reason']}", "", shard["path"]]
        for shard in run.manifest.get("bad_shards") or ()
    ]
    caption = f"Images without an answer: {summary['rows']['errors']:,}"
    return Table(caption, ("reason", "images", "first at"), rows) if rows else None


def settings(runs: Sequence[Results], names: Sequence[str]) -> Table:
    """What each run was asked to do; those that differ first and marked."""
    recorded = [{**RunSettings().to_dict(), **recorded_settings(run.manifest)} for run in runs]
    defaults = RunSettings().to_dict()
    rows: list[Row] = []
    for key in sorted({key for one in recorded for key in one}):
        values = [_value(one.get(key)) for one in recorded]
        differs = len(set(values)) > 1
        default = _value(defaults[key]) if key in defaults else ""
        cells = [Cell(value, bad=differs) if value != default else value for value in values]
        rows.append([key, *cells, default])
    changed = [row for row in rows if any(isinstance(cell, Cell) for cell in row)]
    rest = [row for row in rows if row not in changed]
    grouped: list[Row] = [["Not the default"], *changed, ["As by default"], *rest]
    return Table("Settings", ("setting", *names, "default"), grouped)


def _value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def origins(runs: Sequence[Results], names: Sequence[str]) -> Table:
    """By what each run was made, and from what."""
    rows: dict[str, Sequence[Cell | str]] = {}
    jobs = [run.manifest.get("job") or {} for run in runs]
    rows["folder"] = [str(run.path) for run in runs]
    rows["run id"] = [run.manifest["run_id"] for run in runs]
    rows["started"] = [run.manifest.get("started") or "" for run in runs]
    rows["sessions"] = [str(len(run.manifest.get("sessions") or ())) for run in runs]
    rows["command"] = [shlex.join(map(str, job.get("command") or ())) for job in jobs]
    rows["rank 0"] = [str(job.get("host") or "") for job in jobs]
    versions = [job.get("versions") or {} for job in jobs]
    for name in dict.fromkeys(key for one in versions for key in one):
        rows[name] = [str(one.get(name, "")) for one in versions]
    for kind in KINDS:
        held = [(run.manifest.get("networks") or {}).get(kind, "") for run in runs]
        if any(held):
            rows[f"{kind} network, SHA-256"] = [text[:16] for text in held]
    rows["shards"] = [_shards(run) for run in runs]
    return Table("Made by", ("", *names), [[key, *cells] for key, cells in rows.items()])


def _shards(run: Results) -> str:
    entries = run.manifest["shards"]
    lines = [f"{one['path'] or 'simulated'}: {one['count']:,} images" for one in entries]
    more = len(lines) - MOST_SHARDS
    return "\n".join(lines[:MOST_SHARDS] + ([f"and {more:,} more"] if more > 0 else []))
