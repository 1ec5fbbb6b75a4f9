"""Compares runs: latency with its ratio to the first run, accuracy on the same images, and
price."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from collage_mpi.results.reader import Run, distinct
from collage_mpi.results.render import (
    optional,
    points,
    share_of,
    shares_shown,
    supported,
    unlike_teams,
)
from collage_mpi.results.summary import summarise
from collage_mpi.results.vectors import extras_of
from collage_mpi.rows import IMAGES, flat_keys
from collage_mpi.system.table import ABSENT, Table, to_text, usable_width

STATISTICS = ("p50", "p95", "p99", "p99.9", "std")

_WIDE = 1000  # characters, so that nothing is wrapped

Json = dict[str, Any]


def compare(
    runs: Sequence[Run], *, per: str = "group", summaries: Sequence[Json] | None = None
) -> list[Json]:
    """One entry per run; the first run is the baseline of all ratios and pairs.

    Args:
        runs: at least one.
        per: "group" or "image": which latency to compare.
        summaries: of the runs, if they are known; otherwise they are computed.

    Returns:
        For each run: name, run, label, scheme, mode, straggler, complete, n, groups,
        independent (groups, or batches); `<stat>_ms` and `<stat>_ratio` (this run / first run,
        below 1 is faster) for p50, p95, p99, p99.9 and std; open_loop; accuracy, labelled (the
        number of labelled images); paired, see `paired_accuracy`; price, audit, cost; and
        unlike_teams, lines about teams that differ. A value that the sample does not support is
        None.
    """
    summaries = summaries or [summarise(run) for run in runs]
    names = distinct([run.label for run in runs], runs)
    return [
        {"name": name, **_entry(run, summary, runs[0], summaries[0], per)}
        for name, run, summary in zip(names, runs, summaries, strict=True)
    ]


def _entry(run: Run, summary: Json, first: Run, baseline: Json, per: str) -> Json:
    row, base = summary["latency"][per], baseline["latency"][per]
    entry: Json = {
        "run": summary["run"],
        "label": run.label,
        "scheme": run.scheme,
        "mode": run.mode,
        "straggler": summary["straggler"],
        "open_loop": bool(run.manifest.get("open_loop")),
        "complete": run.complete,
        "per": per,
        "n": row["n"],
        "groups": row["groups"],
        "independent": row["independent"],
    }
    for name in STATISTICS:
        entry[f"{name}_ms"] = row[f"{name}_ms"]
        entry[f"{name}_ratio"] = _ratio(row[f"{name}_ms"], base[f"{name}_ms"])
    overall = summary["accuracy"]["overall"]
    entry["accuracy"], entry["labelled"] = overall["accuracy"], overall["n"]
    entry["paired"] = _unpaired(summary) if run is first else paired_accuracy(run, first)
    entry |= {key: summary[key] for key in ("price", "audit", "cost")}
    entry["unlike_teams"] = unlike_teams(summary)
    return entry


def _ratio(value: float | None, base: float | None) -> float | None:
    return None if value is None or not base else value / base


def paired_accuracy(run: Run, baseline: Run) -> Json:
    """The answers of both runs on the images for which both have a row.

    Images are matched by (shard fingerprint, row). Error rows count as wrong, and as no class.

    Returns:
        n, the number of labelled images; accuracy, baseline and difference (this - baseline) on
        these; only_this and only_baseline, how many of them only one of the runs got right; why: if
        n is 0, the reason in words, otherwise None; same, the share of all these images that both
        runs gave the same class, None if there is none or the runs have no classes in common.
    """
    names = {name: i for i, name in enumerate(run.fingerprints + baseline.fingerprints)}
    this, that = _answers_by_key(run, names), _answers_by_key(baseline, names)
    _, i, j = np.intersect1d(this["key"], that["key"], return_indices=True)
    this, that = this[i], that[j]
    alike = (this["class"] == that["class"]) & this["answered"] & that["answered"]
    same = float(alike.mean()) if len(alike) and _same_classes(run, baseline) else None
    labelled = this["labelled"] & that["labelled"]
    ours, theirs = this["right"][labelled], that["right"][labelled]
    if not len(ours):
        return {**_pair(0, None, None, why=_why_unpaired(run, baseline)), "same": same}
    only = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    return {**_pair(len(ours), float(ours.mean()), float(theirs.mean()), only), "same": same}


def _same_classes(run: Run, baseline: Run) -> bool:
    names = [each.manifest.get("class_names") for each in (run, baseline)]
    return names[0] == names[1] and all(
        extras_of(each.manifest).classifies for each in (run, baseline)
    )


def _unpaired(summary: Json) -> Json:
    """What `paired_accuracy` would return for the first run, which is its own baseline."""
    found = summary["accuracy"]["overall"]
    n, accuracy = found["n"], found["accuracy"]
    return {**_pair(n, accuracy, accuracy, why=None if n else "no labels"), "same": None}


def _pair(
    n: int,
    ours: float | None,
    theirs: float | None,
    only: tuple[int, int] = (0, 0),
    why: str | None = None,
) -> Json:
    return {
        "n": n,
        "accuracy": ours,
        "baseline": theirs,
        "difference": None if ours is None or theirs is None else ours - theirs,
        "only_this": only[0],
        "only_baseline": only[1],
        "why": why,
    }


def _why_unpaired(run: Run, baseline: Run) -> str:
    """The reason why two runs share no labelled image."""
    shared = set(run.fingerprints) & set(baseline.fingerprints)
    if not shared:
        ours, theirs = (_input_of(each) for each in (run, baseline))
        return f"other images than the first run's: {ours}; {theirs}"
    if not (_has_labels(run) and _has_labels(baseline)):
        return "no labels"
    return "no image that the first run classified too, beside warm-up (order, limit)"


def _has_labels(run: Run) -> bool:
    return any((rows["has_label"] & ~rows["warmup"]).any() for rows in run.chunks(IMAGES))


def _input_of(run: Run) -> str:
    names = [Path(shard["path"] or "simulated").name for shard in run.manifest["shards"]]
    more = f" and {len(names) - 2} more" if len(names) > 2 else ""
    return f"{', '.join(names[:2])}{more}, {run.manifest['rows']:,} images"


_ANSWER = np.dtype(
    [("key", "u8"), ("class", "i4"), *((name, "?") for name in ("answered", "labelled", "right"))]
)


def _answers_by_key(run: Run, names: dict[str, int]) -> np.ndarray:
    """The answers of all images, (n,) of _ANSWER; the keys are those of `flat_keys`.

    Args:
        names: shard fingerprint -> number to use in the keys.
    """
    number = np.array([names[name] for name in run.fingerprints] or [0], np.uint64)
    found = [np.empty(0, _ANSWER)]
    for images in run.chunks(IMAGES):
        images = images[images["shard"] < len(run.fingerprints)]
        some = np.empty(len(images), _ANSWER)
        some["key"] = flat_keys({"shard": number[images["shard"]], "row": images["row"]})
        some["class"], some["answered"] = images["predicted"], images["answered"]
        some["labelled"] = images["has_label"]
        some["right"] = images["answered"] & (images["predicted"] == images["label"])
        found.append(some)
    return np.concatenate(found)


def render_comparison(entries: Sequence[Json], *, width: int | None = None) -> str:
    """The comparison as text: one line a run, with ratios to the first run in brackets.

    If the tables are too wide for the terminal, the runs are numbered and named above the tables.
    """
    width = usable_width(width)
    names = [_name(entry) for entry in entries]
    drawn: Sequence[RenderableType] = _tables(entries, names)
    above: list[Text] = []
    if max(map(len, to_text(Group(*drawn), _WIDE).splitlines())) > width:
        above = [Text(f"{i}  {name}") for i, name in enumerate(names, start=1)] + [Text("")]
        numbers = [str(i + 1) for i in range(len(names))]
        drawn = [table.drawn(narrow=True) for table in _tables(entries, numbers)]
    below = [Text(line) for line in notes(entries)]
    return to_text(Group(*above, drawn[0], "", drawn[1], "", *below), width)


def _tables(entries: Sequence[Json], names: Sequence[str]) -> tuple[Table, Table]:
    shares = shares_shown([entry["price"] for entry in entries])
    named = list(enumerate(zip(names, entries, strict=True)))
    latency = [
        [name, *(latency_cell(entry, key, i == 0) for key in STATISTICS), _n(entry)]
        for i, (name, entry) in named
    ]
    accuracies = accuracies_of(entries)
    price = [
        [name, accuracies[i], *_price_cells(entry, i == 0, shares)] for i, (name, entry) in named
    ]
    percentiles = [name.upper() for name in STATISTICS[:-1]]
    columns = [*(f"{kind} share" for kind in shares), "wasted", "ranks", "rank-s/image"]
    per = f"latency per {entries[0]['per']}, ms"
    return (
        Table(["", *percentiles, "std", "n"], latency, per),
        Table(["", "accuracy", "paired difference", *columns], price, "accuracy and price"),
    )


def _name(entry: Json) -> str:
    flags = "" if entry["complete"] else " (INCOMPLETE)"
    return str(entry["name"] + flags)


def latency_cell(entry: Json, name: str, first: bool) -> str:
    """A percentile in ms, and in brackets its ratio to that of the first run."""
    text = supported(entry[f"{name}_ms"], entry["independent"])
    ratio = entry[f"{name}_ratio"]
    return text if first or ratio is None else f"{text} ({ratio:.2f}x)"


def _n(entry: Json) -> str:
    return f"{entry['n']:,}" if entry["per"] == "group" else f"{entry['n']:,}/{entry['groups']:,}"


def paired_cell(entry: Json, first: bool, why: str) -> str:
    """The paired difference to the first run, or `why` if there is none; "" for the first run."""
    paired = entry["paired"]
    if first:
        return ""
    if not paired["n"]:
        return f"{ABSENT}{why}"
    return f"{100 * paired['difference']:+.2f} points (n={paired['n']:,})"


def _price_cells(entry: Json, first: bool, shares: Sequence[str]) -> list[str]:
    price = entry["price"]
    return [
        paired_cell(entry, first, " (see below)"),
        *(share_of(price, kind) for kind in shares),
        points(price["wasted_work"]),
        str(price["ranks"]),
        optional(price["rank_seconds_per_image"], ".4f"),
    ]


def accuracies_of(entries: Sequence[Json]) -> list[str]:
    """The accuracy of each run over its own labelled images, with their number if it differs."""
    unlike = len({entry["labelled"] for entry in entries}) > 1
    return [
        points(entry["accuracy"]) + (f" of {entry['labelled']:,}" if unlike else "")
        for entry in entries
    ]


def _other_images(entry: Json, first: Json) -> str | None:
    """A note if the run and the first run share fewer images than one of them has labelled. Then
    the paired accuracies are not those in the table."""
    paired = entry["paired"]
    if not paired["n"] or entry["labelled"] == first["labelled"] == paired["n"]:
        return None
    ours, theirs = points(paired["accuracy"]), points(paired["baseline"])
    return (
        f"{paired['n']:,} labelled images were classified by both the first run and "
        f"{entry['name']}: {theirs} and {ours} of them rightly. The accuracies in the table are "
        "over all labelled images of each run."
    )


def notes(entries: Sequence[Json]) -> list[str]:
    """Lines that explain the figures of a comparison."""
    stragglers = list(dict.fromkeys(entry["straggler"] or "none" for entry in entries))
    lines = []
    if len(entries) > 1:
        lines.append("(x): this run / first run, below 1 is faster. Paired: on the same images.")
    if len(stragglers) == 1:
        lines.append(f"stragglers: {stragglers[0]}")
    else:
        lines += [f"stragglers of {e['name']}: {e['straggler'] or 'none'}" for e in entries]
    lines += [
        f"not paired: {e['name']} has {e['paired']['why']}"
        for e in entries[1:]
        if e["paired"]["why"] is not None
    ]
    lines += filter(None, (_other_images(entry, entries[0]) for entry in entries[1:]))
    lines += [f"{e['name']}: {line}" for e in entries for line in e["unlike_teams"]]
    return lines
