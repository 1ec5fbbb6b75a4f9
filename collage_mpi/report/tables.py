"""The tables of the report: their rows, columns and wording."""

from __future__ import annotations

import json
import shlex
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from collage_mpi.kinds import KINDS
from collage_mpi.results.comparison import STATISTICS, accuracies_of
from collage_mpi.results.manifest import recorded_settings
from collage_mpi.results.reader import Results, Run
from collage_mpi.results.render import (
    coordinators,
    optional,
    points,
    share_of,
    shares_shown,
    supported,
    told_audit,
)
from collage_mpi.results.rows import IMAGES
from collage_mpi.results.slow_ranks import OVER, Speed, injected, rank_speeds, service_times_ns
from collage_mpi.results.statistics import percentile, support_needed
from collage_mpi.settings.run_settings import RunSettings

MOST_RANKS, MOST_NAMED = 40, 10
MOST_CLASSES = 20  # of a matrix that can be read
MOST_PAIRS = 12  # of classes taken for one another
MOST_SHARDS = 20

Json = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        shade: strength of its colour, 0 to 1; right: in the colour of right answers.
        bar: begin, middle and end of a range, as shares of the cell's width.
        bad: highlighted as a problem.
    """

    text: str
    shade: float = 0.0
    right: bool = False
    bar: tuple[float, float, float] | None = None
    bad: bool = False


Row = Sequence[Cell | str]
Range = tuple[float, float, float]


@dataclass(frozen=True)
class PageTable:
    """A table; the first cell of a row is its head. A row of one cell is a heading."""

    caption: str
    head: Sequence[str]
    rows: Sequence[Row]
    notes: Sequence[str] = field(default_factory=tuple)


def compared(entries: Sequence[Json], summaries: Sequence[Json]) -> PageTable:
    """Latency and price (C8), one column a run, with ratios to the first run in brackets."""
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
    return PageTable(
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
        ["accuracy", *accuracies_of(entries)],
        *more,
        *_agreement(entries),
        *(
            [f"{kind} share of images", *(share_of(price, kind) for price in prices)]
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
        *([name.replace("_", " "), *(f"{price[name]:,}" for price in prices)] for name in dropped),
    ]


def _agreement(entries: Sequence[Json]) -> list[Row]:
    """How often accepted answers are the single network's, where any run was audited."""
    audits = [entry.get("audit") for entry in entries]
    if not any(audits):
        return []
    return [["agreement of audited answers", *(told_audit(a) if a else "" for a in audits)]]


def _ranks_cell(price: Json) -> str:
    held = [f"{price[f'{kind}_ranks']} {kind}" for kind in KINDS if price[f"{kind}_ranks"]]
    return f"{price['ranks']}: {coordinators(price)}, {', '.join(held)}"


def accuracies(summaries: Sequence[Json], names: Sequence[str]) -> PageTable | None:
    """Accuracy overall and by who answered, one column a run; None without labels."""
    found = [{"overall": s["accuracy"]["overall"], **s["accuracy"]["by_source"]} for s in summaries]
    sources = [name for name in dict.fromkeys(key for one in found for key in one)]
    if not any(one["overall"]["n"] for one in found):
        return None
    rows = [[source, *(_accuracy_cell(one.get(source)) for one in found)] for source in sources]
    note = (
        "In brackets the 95 % interval. Sources answered different images: compare runs by the "
        "paired difference above, which is on the same images. Error rows count as wrong."
    )
    return PageTable("Right answers by who gave them", ["", *names], rows, (note,))


def _accuracy_cell(row: Json | None) -> str:
    if row is None or not row["n"]:
        return ""
    low, high = row["ci95"]
    return f"{points(row['accuracy'])} of {row['n']:,} [{100 * low:.1f}, {100 * high:.1f}]"


def _answers(run: Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For labelled answers, each pair of label and answer, ascending, and its count: (k,) each."""
    pairs: Counter[tuple[int, int]] = Counter()
    for rows in run.chunks(IMAGES):
        rows = rows[rows["answered"] & rows["has_label"]]
        columns = np.stack([rows["label"], rows["predicted"]], axis=1)  # (n, 2)
        found, counts = np.unique(columns, axis=0, return_counts=True)
        pairs.update(dict(zip(map(tuple, found.tolist()), counts.tolist(), strict=True)))
    told = np.array(sorted(pairs), np.int64).reshape(-1, 2)
    return told[:, 0], told[:, 1], np.array([pairs[pair] for pair in sorted(pairs)], np.int64)


def confusions(run: Run) -> tuple[PageTable | None, PageTable | None]:
    """For labelled answers: the confusion matrix if it is readable, and the commonest mistakes."""
    labels, predicted, counts = _answers(run)
    if not len(labels):
        return None, None
    classes = np.unique(np.concatenate([labels, predicted]))  # those that occur, any numbers
    names = [class_name(run, number) for number in classes.tolist()]
    is_, taken = np.searchsorted(classes, labels), np.searchsorted(classes, predicted)
    of_label = np.bincount(is_, counts, minlength=len(classes))
    wrong = np.flatnonzero(is_ != taken)
    wrong = wrong[np.argsort(-counts[wrong], kind="stable")][:MOST_PAIRS]
    mistakes = [
        [names[is_[k]], names[taken[k]], f"{counts[k]:,}", points(counts[k] / of_label[is_[k]])]
        for k in wrong.tolist()
    ]
    head = ("is", "taken for", "images", "of its class")
    worst = PageTable("Commonest mistakes", head, mistakes) if mistakes else None
    if len(classes) > MOST_CLASSES:
        return None, worst
    matrix = np.zeros((len(classes),) * 2, np.int64)
    matrix[is_, taken] = counts
    rows: list[Row] = [
        [name, *(_confusion_cell(matrix, i, j) for j in range(len(names)))]
        for i, name in enumerate(names)
    ]
    note = "A row a true class, a column an answer; the shade is the share of the row."
    return PageTable("Confusion, images", ["", *names], rows, (note,)), worst


def _confusion_cell(matrix: np.ndarray, i: int, j: int) -> Cell:
    n, row = int(matrix[i, j]), int(matrix[i].sum())
    return Cell(f"{n:,}" if n else "", n / row if row else 0.0, right=i == j)


def class_name(run: Run, number: int) -> str:
    """The name of a class, or its number if it has no name."""
    names = run.manifest.get("class_names") or []
    return names[number] if 0 <= number < len(names) else str(number)


def ranks(run: Results, answered: Collection[int] = ()) -> tuple[str, list[PageTable]]:
    """Sentences that name slow and idle ranks, and tables with a row a rank and a row a host or
    GPU.

    Args:
        run: the whole run, or an excerpt.
        answered: ranks with a known answer that is not in `run`.
    """
    speeds = rank_speeds(run)
    of_ranks = [speed for speed in speeds if speed.unit == "rank"]
    notes = [
        f"Slow is what surely took over {OVER:g} times what its peers took, the other ranks of its "
        "kind; in brackets the 95 % interval, of all ranks at once. The bar goes from the 5 % to "
        "the 95 % percentile of the rank's service times, its mark is the median; n/a: under "
        f"{support_needed(0.95)} answers, too few for it."
    ]
    if run.every > 1:
        notes.append(
            f"This run is long: one in {run.every:,} of its parts of some thousand rows was looked "
            "at here, and the answers in those are counted."
        )
    shown = of_ranks[:MOST_RANKS]  # the slowest first
    if len(of_ranks) > len(shown):
        notes.append(f"The slowest {MOST_RANKS} of {len(of_ranks):,}.")
    shown = sorted(shown, key=lambda speed: (speed.ranks, speed.kind))
    times_ms = _times_ms(run)
    ranges = {speed: _range(times_ms[speed.ranks[0], speed.kind]) for speed in shown}
    longest = max((most for _, _, most in filter(None, ranges.values())), default=0.0) or 1.0
    hosts = len({speed.host for speed in of_ranks}) > 1
    head = ["rank", *(["host"] if hosts else []), "network", "median ms", "x its peers"]
    failing = any(speed.unanswered for speed in of_ranks)
    head += ["P5 to P95", "answers", *(["unanswered"] if failing else [])]
    rows = [
        [
            *(str(speed.ranks[0]), *([speed.host or "\u2013"] if hosts else []), speed.kind),
            *(optional(speed.median_ms, ".1f"), _against(speed)),
            _range_cell(ranges[speed], longest, speed.messages),
            f"{speed.messages:,}",
            *([Cell(f"{speed.unanswered:,}", bad=speed.unanswered > 0)] if failing else []),
        ]
        for speed in shown
    ]
    tables = [PageTable("Service time by rank", head, rows, notes)]
    wider = [speed for speed in speeds if speed.unit != "rank" and speed.ratio is not None]
    if wider:
        tables.append(_wider(wider))
    return _named(run, speeds, answered), tables


def _times_ms(run: Results) -> dict[tuple[int, str], np.ndarray]:
    """(rank, kind) -> its service times in ms, of all sessions."""
    found: dict[tuple[int, str], list[np.ndarray]] = defaultdict(list)
    for (rank, _, kind), times_ns in service_times_ns(run).items():
        found[rank, kind].append(times_ns / 1e6)
    some = {key: np.concatenate(parts) for key, parts in found.items()}
    return defaultdict(lambda: np.empty(0), some)


def _range(times_ms: np.ndarray) -> Range | None:
    """P5, median and P95; None if there are too few times for P5 and P95."""
    low, high = percentile(-times_ms, 0.95), percentile(times_ms, 0.95)
    if low is None or high is None:
        return None
    return -low, float(np.quantile(times_ms, 0.5, method="inverted_cdf")), high


def _range_cell(ends: Range | None, longest: float, answers: int) -> Cell | str:
    if ends is None:
        return supported(None, answers) if answers else ""
    low, middle, high = ends
    return Cell("", bar=(low / longest, middle / longest, high / longest))


def _against(speed: Speed) -> Cell | str:
    if speed.ratio is None:
        return ""
    text = f"{speed.ratio:.2f}x"
    if speed.interval:
        text += " [{:.2f}, {:.2f}]".format(*speed.interval)
    return Cell(f"{text} slow", bad=True) if speed.slow else text


def _wider(speeds: Sequence[Speed]) -> PageTable:
    rows = [
        [*(speed.name, speed.kind, f"{len(speed.ranks):,}"), _against(speed)]
        for speed in speeds[:MOST_RANKS]
    ]
    note = (f"The slowest {MOST_RANKS} of {len(speeds):,}.",) if len(speeds) > MOST_RANKS else ()
    return PageTable("By GPU and host", ("", "network", "ranks", "x their peers"), rows, note)


def _named(run: Results, speeds: Sequence[Speed], answered: Collection[int]) -> str:
    idle = [one for one in speeds if one.unit == "rank" and not one.messages]
    idle = [one for one in idle if one.ranks[0] not in answered]
    if not idle:
        return _slow_named(run, speeds)
    names = [one.name + (f" on {one.host}" if one.host else "") for one in idle[:MOST_NAMED]]
    more = f" and {len(idle) - MOST_NAMED:,} more" if len(idle) > MOST_NAMED else ""
    return f"{_slow_named(run, speeds)} No answer came from {', '.join(names)}{more}."


def _slow_named(run: Results, speeds: Sequence[Speed]) -> str:
    slow = [speed for speed in speeds if speed.slow]
    if all(speed.interval is None for speed in speeds):
        return "Too few answers to tell whether a rank is slower than its peers."
    if not slow:
        return "No rank is surely slower than its peers."
    named = [
        (f"host {s.name}" if s.unit == "host" else s.name)
        + (f" on {s.host}" if s.unit == "rank" and s.host else "")
        + f" ({s.ratio:.1f}x)"
        for s in slow[:MOST_NAMED]
    ]
    more = f" and {len(slow) - MOST_NAMED:,} more" if len(slow) > MOST_NAMED else ""
    why = " Service times were injected." if injected(run) else ""
    return f"Slow against its peers: {', '.join(named)}{more}.{why}"


def errors(run: Run, summary: Json) -> PageTable | None:
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
    return PageTable(caption, ("reason", "images", "first at"), rows) if rows else None


def settings(runs: Sequence[Run], names: Sequence[str]) -> PageTable:
    """The settings of each run; those that differ come first and are marked."""
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
    return PageTable("Settings", ("setting", *names, "default"), grouped)


def _value(value: Any) -> str:
    """A setting as a user types it: lists with commas, nothing for None."""
    if isinstance(value, list | tuple):
        return ", ".join(map(_value, value))
    return value if isinstance(value, str) else "" if value is None else json.dumps(value)


def origins(runs: Sequence[Run], names: Sequence[str]) -> PageTable:
    """The software and the input of each run."""
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
    return PageTable("Made by", ("", *names), [[k, *row] for k, row in rows.items() if any(row)])


def _shards(run: Run) -> str:
    entries = run.manifest["shards"]
    lines = [f"{one['path'] or 'simulated'}: {one['count']:,} images" for one in entries]
    more = len(lines) - MOST_SHARDS
    return "\n".join(lines[:MOST_SHARDS] + ([f"and {more:,} more"] if more > 0 else []))
