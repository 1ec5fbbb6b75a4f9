"""Renders the summary of a run as text, formats its numbers for other pages and tables too, and
compares runs: latency with its ratio to the first run, accuracy on the same images, and price.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Group, RenderableType
from rich.text import Text

from collage_mpi.kinds import COLLAGE, KIND, SHARED_KINDS, SINGLE
from collage_mpi.results.manifest import Json
from collage_mpi.results.reader import Run, distinct
from collage_mpi.results.statistics import ADVICE, weaker_by
from collage_mpi.results.summary import summarise, wrong_text
from collage_mpi.results.vectors import extras_of
from collage_mpi.rows import IMAGES, flat_keys
from collage_mpi.system.printable import counted, some_of
from collage_mpi.system.table import ABSENT, Column, Table, Value, to_text, usable_width

_MOST_CLASSES = 10  # rows of the table of predictions; summary.json has all classes
_STATISTICS = ("p50", "p95", "p99", "p99.9")
# Keys of the summary's price that count tasks without a useful answer.
DROPPED = ("late_answers", "skipped_tasks", "failed_tasks", "lost_tasks", "unfinished_tasks")


def render_summary(summary: Json, *, width: int | None = None) -> str:
    """The summary as text, with colours only if stdout is a terminal."""
    audit = summary.get("audit")
    return to_text(
        Group(
            Text(_title(summary), style="bold"),
            *(Text(line, style="bold red") for line in warnings(summary)),
            "",
            _latency_table(summary),
            *unlike_teams(summary),
            "",
            _parts_table(summary),
            "",
            _outputs(summary) if summary.get("outputs") else _accuracy_table(summary),
            *(["", f"agreement: {audit_text(audit)}"] if audit else []),
            *(["", promise_text(summary)] if summary.get("promise") else []),
            "",
            _price_table(summary),
            *_predictions(summary),
        ),
        width,
    )


def supported(value: float | None, n: int) -> str:
    """A number, or n/a with the number of samples if these are too few."""
    return f"{ABSENT} (n={n:,})" if value is None else format(value, ".1f")


def optional(value: float | None, form: str, unit: str = "") -> str:
    """A number with its unit, or n/a."""
    return ABSENT if value is None else format(value, form) + unit


def points(share: float | None) -> str:
    """A share in percent with two decimals."""
    return optional(None if share is None else 100 * share, ".2f", " %")


def _title(summary: Json) -> str:
    rows, limit = summary["rows"], summary.get("limit")
    state = "complete" if summary["complete"] else "INCOMPLETE"
    if summary["complete"] and rows["errors"]:
        state = f"complete, {counted(rows['errors'], 'error row')}"
    return (
        f"{summary['scheme']} - {summary['mode']} - stragglers: {summary['straggler'] or 'none'}\n"
        f"{state}: {rows['found']:,} of {counted(rows['expected'], 'image')}, "
        f"{counted(rows['groups'], 'group')} ({rows['warmup_groups']:,} of them warm-up, "
        "left out of all below but accuracy)"
        + (f"\nnumber format: {summary['networks']}" if summary.get("networks") else "")
        + (f"\nlimit: {limit['text']}" if limit else "")
    )


def warnings(summary: Json) -> list[str]:
    """Lines about lost ranks, error rows, and conditions that make the numbers misleading."""
    lines = []
    arrivals = summary.get("arrivals") or {}
    if arrivals.get("overloaded"):
        lines.append(
            f"OVERLOADED: {arrivals['offered_per_s']:.1f} images/s arrived, but only "
            f"{arrivals['served_per_s']:.1f} were answered. The queue grows, so latencies depend "
            "on the length of the run. Offer fewer images a second, or add ranks."
        )
    lines += _weak_collage(summary["accuracy"])
    lines += [_loss(loss) for loss in summary.get("lost_ranks", [])]
    lines += _wrong(summary)
    first = summary.get("first_errors") or {}
    lines += [
        f"error rows: {n:,} x {reason}{_place(first.get(reason), n)}"
        for reason, n in summary["errors"].items()
    ]
    return lines


def _place(first: Json | None, n: int) -> str:
    """The place of an error row, or of the first of several."""
    if first is None:
        return ""
    return f" ({'first: ' if n > 1 else ''}row {first['row']:,} of {first['shard']})"


def _weak_collage(accuracy: Json) -> list[str]:
    """A warning if the collage network is much weaker than the single network."""
    counts = {k: (row["correct"], row["n"]) for k, row in accuracy["by_source"].items()}
    if not {SINGLE, COLLAGE} <= counts.keys():
        return []
    gap = weaker_by(counts[SINGLE], counts[COLLAGE])
    if gap is None:
        return []
    single, collage = (points(accuracy["by_source"][k]["accuracy"]) for k in (SINGLE, COLLAGE))
    lost = 100 * gap * counts[COLLAGE][1] / accuracy["overall"]["n"]
    return [
        f"WEAK COLLAGE: {collage} of its answers are right, {single} of the single network's: "
        f"about {lost:.1f} points of this run's accuracy are lost by it. {ADVICE}."
    ]


def _wrong(summary: Json) -> list[str]:
    """Warnings about ranks that were outvoted, and about their rows."""
    wrong = [each for each in summary.get("checked", ()) if each["wrong"]]
    lines = [
        f"WRONG: rank {each['name']} ({' and '.join(each['devices'] or ())} of {each['host']}) was "
        f"outvoted in {wrong_text(each)}. Rows that had no second answer were not checked: run "
        f"--redo-rank {each['name']} classifies its images again. Leave {each['host']} out then."
        for each in wrong
        if each["unit"] == "rank"
    ]
    late: dict[str, list[Json]] = {}
    for row in summary.get("refuted", ()):
        late.setdefault(row["rank"], []).append(row)
    for each in wrong:
        rows = late.get(each["name"], ()) if each["written"] else ()
        named = [f"row {row['row']:,} of {row['shard']}" for row in rows]
        if named:
            lines.append(
                f"REFUTED: {counted(each['written'], 'row')} of rank {each['name']} had been "
                f"written when other ranks refuted them, and are wrong: {some_of(named, 3, '; ')}"
            )
    return lines


def _loss(loss: Json) -> str:
    held, host = "+".join(loss.get("kinds", [])), loss.get("host")
    return (
        f"lost rank {loss.get('rank')}"
        + (f" ({held})" if held else "")
        + (f" on {host}" if host else "")
        + f" after {loss.get('at_s', 0):.1f} s: {loss.get('why')}"
    )


def _latency_table(summary: Json) -> Table:
    """A row for each statistic, so that the table fits in 80 columns."""
    group, image = both = [summary["latency"][per] for per in ("group", "image")]
    rows: list[Sequence[Value]] = []
    for name in _STATISTICS:
        of_group, of_image = (supported(row[f"{name}_ms"], row["independent"]) for row in both)
        rows.append([name.upper(), of_group, _interval(group, name), of_image])
    std = Column(form=".1f")
    rows += [
        ["std", std.shown(group["std_ms"]), "", std.shown(image["std_ms"])],
        ["> 3x median", _over(group), "", _over(image)],
        ["n", counted(group["n"], "group"), "", counted(image["n"], "image")],
    ]
    return Table(("latency, ms", "per group", "95 % within run", "per image"), rows)


def _over(row: Json) -> str:
    share = row["over_3_medians"]
    return supported(None, row["independent"]) if share is None else points(share)


def _interval(row: Json, name: str) -> str:
    """The interval; n/a if there are too few samples for it; "" if there is no percentile."""
    ends = row.get(f"{name}_ci95_ms")
    if row[f"{name}_ms"] is None:
        return ""
    if ends is None:
        return supported(None, row[f"{name}_ci95_samples"])
    return f"{ends[0]:.1f}-{ends[1]:.1f}"


def _parts_table(summary: Json) -> Table:
    parts = summary["parts_ms"]
    rows = [[name, *(part[name] for part in parts.values())] for name in ("median", "mean")]
    columns = [Column(name, ".2f") for name in parts]
    return Table((Column("where an image's time goes, ms", left=True), *columns), rows)


def _accuracy_table(summary: Json) -> Table:
    accuracy = summary["accuracy"]
    rows: list[Sequence[Value]] = []
    for name, row in {"overall": accuracy["overall"], **accuracy["by_source"]}.items():
        if row["n"]:
            low, high = row["ci95"]
            ends = f"{100 * low:.2f}-{100 * high:.2f} %"
            rows.append([name, points(row["accuracy"]), row["n"], ends])
    if not accuracy["overall"]["n"]:
        rows.append(["no labels" if summary["rows"]["found"] else "no rows", None, 0, ""])
    return Table(("accuracy", "correct", Column("of n", ","), "95 % interval"), rows)


def _outputs(summary: Json) -> Text:
    """A line that says where the outputs of a mapped function are. It replaces the accuracy."""
    run, n = summary["run"], counted(summary["rows"]["answered"], "image")
    line = f"outputs of {n} in {run}/rows; collage-mpi export {run} --to zarr writes arrays"
    return Text(line, no_wrap=True, overflow="ignore")


def audit_text(audit: Json) -> str:
    """How often audited answers agree with the single network, in words."""
    if not audit["audited"]:
        return f"none of {counted(audit['not_done'], 'audit')} could be done"
    low, high = audit["ci95"]
    lacking = f"; {audit['not_done']:,} could not be done" if audit["not_done"] else ""
    return (
        f"{points(audit['agreement'])} of {audit['audited']:,} accepted answers that were audited "
        f"are the single network's too (95 % interval {100 * low:.2f}-{100 * high:.2f} %){lacking}"
    )


def promise_text(summary: Json) -> str:
    """What `--agree` has promised, what audits have found, and what was saved, in words."""
    found, saving = summary["promise"], summary["price"]["saving"]
    most = points(1 - found["agree"])
    change = "change" if found["top_k"] is None else "change in class or five best classes"
    saved = "" if saving is None else f" The single network alone takes {saving:.2f} times as long."
    if found["confidence"] is None:
        return f"promise: at most {most} of the answers {change}; all are the single network's."
    low, high = (100 * end for end in found["ci95"])
    return (
        f"promise: with 95 % probability at most {most} of the answers {change}; an answer of "
        f"{found['candidate']} counts from a score of {found['confidence']:.4g} on. "
        f"{found['differing']:,} of {found['audited']:,} audited ones differ (95 % interval "
        f"{low:.2f}-{high:.2f} %)." + saved
    )


def _predictions(summary: Json) -> list[RenderableType]:
    """The predicted classes of an input without labels. They replace the accuracy."""
    found = summary.get("predictions")
    if not found:
        return []
    n, score = Column("images", ","), Column("mean score", ".3f")
    rows: list[Sequence[Value]] = [
        [_class(one), one["n"], points(one["share"]), one["mean_score"], _exact(one)]
        for one in found["classes"][:_MOST_CLASSES]
    ]
    more = found["classes"][_MOST_CLASSES:]
    if more:
        rest = sum(one["n"] for one in more)
        rows.append([f"{len(more):,} other classes", rest, points(rest / found["n"]), "", ""])
    rows.append(["all", found["n"], "", found["mean_score"], ""])
    columns: list[Column | str] = ["predictions (no labels)", n, "share", score, "exact network"]
    if not any(one["exact_ci95"] for one in found["classes"]):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    table = Table(columns, rows)
    examples = Table(
        ("such as", "shard", Column("row", ","), Column("score", ".3f")),
        [[_class(one), one["shard"], one["row"], one["score"]] for one in found["examples"]],
    )
    line = f"collage-mpi export {summary['run']} --to csv writes a line an image, with its id"
    return ["", table, "", examples, "", Text(line, no_wrap=True, overflow="ignore")]


def _exact(one: Json) -> str:
    """How many images the exact network would call so."""
    return "{:,} to {:,}".format(*one["exact_ci95"]) if one["exact_ci95"] else ""


def _class(one: Json) -> str:
    """A class by its name, or its number if it has no name."""
    return str(one["class"]) if one["name"] is None else str(one["name"])


def shares_shown(prices: Sequence[Json]) -> list[str]:
    """The kinds whose share is shown: ranks of at least one run held them."""
    return [kind for kind in SHARED_KINDS if any(price[f"{kind}_ranks"] for price in prices)]


def share_of(price: Json, kind: str) -> str:
    """The share of images that a kind resolved; "" if no rank held it."""
    return points(price[f"{kind}_share"]) if price[f"{kind}_ranks"] else ""


def coordinators(price: Json) -> str:
    """The number of coordinators, with the noun."""
    n = price.get("coordinators", 1)
    return f"{n} coordinator" + ("s" if n > 1 else "")


def unlike_teams(summary: Json) -> list[str]:
    """A line if the 95 % intervals of the medians of two teams do not overlap."""
    known = [team for team in summary.get("teams") or [] if team["p50_ci95_ms"]]
    if not known:
        return []
    fast = min(known, key=lambda team: team["p50_ci95_ms"][1])
    slow = max(known, key=lambda team: team["p50_ci95_ms"][0])
    if fast["p50_ci95_ms"][1] >= slow["p50_ci95_ms"][0]:
        return []
    each = (f"{team['p50_ms']:.1f} in team {team['team']}" for team in (fast, slow))
    return [f"P50 per group differs between teams: {' to '.join(each)}"]


def _price_table(summary: Json) -> Table:
    """A row for each figure, with an explanation."""
    price, arrivals = summary["price"], summary.get("arrivals")
    shares, warm = shares_shown([price]), summary["rows"]["warmup_groups"]
    ranks = [f"{price['single_ranks']} hold the single network"]
    ranks += [f"{price[f'{kind}_ranks']} the {kind} network" for kind in shares]
    rows: list[Sequence[Value]] = [
        *([f"{kind} share", share_of(price, kind), KIND[kind].share or ""] for kind in shares),
        ["wasted work", points(price["wasted_work"]), _work(price)],
        [
            "rank-seconds per image",
            optional(price["rank_seconds_per_image"], ".4f"),
            f"{price['ranks']} ranks: {coordinators(price)}, {', '.join(ranks)}"
            + (f"; {cost_text(summary['cost'])}" if summary.get("cost") else ""),
        ],
        [
            "throughput",
            _per_s(price["images_per_s"]),
            f"without the warm-up, {counted(warm, 'group')}" if warm else "",
        ],
    ]
    if arrivals is not None:
        served = f"{_per_s(arrivals['served_per_s'])} answered meanwhile"
        waiting = f"{arrivals['waiting_at_the_end']:,} waiting when the last one came"
        rows.append(["offered load", _per_s(arrivals["offered_per_s"]), f"{served}, {waiting}"])
    ends = [f"{price[key]:,} {key.split('_')[0]}" for key in DROPPED]
    gap = optional(summary["rank0"]["longest_poll_gap_ms"], ".2f", " ms")
    rows += [
        ["tasks", f"{price['tasks']:,}", ", ".join(ends)],
        ["rank 0's longest poll gap", gap, "longest delay before rank 0 saw an answer"],
    ]
    checked = [each for each in summary["checked"] if each["unit"] == "rank"]
    if compared := sum(each["compared"] for each in checked) // 2:
        wrong = sum(each["wrong"] for each in checked)
        rows.append(["answers compared", f"{compared:,}", f"of two ranks each; {wrong:,} wrong"])
    if (ledger := summary["ledger"]) is not None:
        taken = ", ".join(
            counted(int(ledger[key]), one)
            for key, one in (("taken_over", "takeover"), ("split", "split"))
        )
        twice = ledger["twice"] / max(1, ledger["written"])
        cost = f"{ledger['seconds']:.1f} s, {taken}, {100 * twice:.1f} % done twice"
        rows.append(["the ledger", f"{ledger['records']:,.0f} records", cost])
    return Table([Column(left=True)] * 3, rows)


def _work(price: Json) -> str:
    done = f"of {price['work_s']:.1f} s of work, in tasks that resolved nothing"
    if not price["unfinished_tasks"]:
        return done
    return f"{done}; without unfinished tasks ({price['unfinished_s']:.1f} s together)"


def _per_s(rate: float | None) -> str:
    return optional(rate, ".1f", " images/s")


def cost_text(cost: Json) -> str:
    """The node-hours, and the sessions that they come from, in words."""
    sessions = "all sessions"
    if cost["sessions_told"] < cost["sessions"]:
        sessions = (
            f"{cost['sessions_told']} of {cost['sessions']} sessions; the others recorded nothing"
        )
    return f"{cost['node_hours']:.4g} node-hours on {counted(cost['hosts'], 'host')}, {sessions}"


STATISTICS = ("p50", "p95", "p99", "p99.9", "std")

_WIDE = 1000  # characters, so that nothing is wrapped


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
