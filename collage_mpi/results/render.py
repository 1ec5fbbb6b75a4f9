"""Renders the summary as text, and formats its numbers for other pages and tables too."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.text import Text

from collage_mpi.kinds import COLLAGE, KIND, SHARED_KINDS, SINGLE
from collage_mpi.results.manifest import Json
from collage_mpi.results.statistics import ADVICE, weaker_by
from collage_mpi.system.printable import counted
from collage_mpi.system.table import ABSENT, Column, Table, Value, to_text

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
    line = f"outputs of {n} in {run}/vectors; collage-mpi export {run} --to zarr writes arrays"
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


def _predictions(summary: Json) -> list[RenderableType]:
    """The predicted classes of an input without labels. They replace the accuracy."""
    found = summary.get("predictions")
    if not found:
        return []
    n, score = Column("images", ","), Column("mean score", ".3f")
    rows: list[Sequence[Value]] = [
        [_class(one), one["n"], points(one["share"]), one["mean_score"]]
        for one in found["classes"][:_MOST_CLASSES]
    ]
    more = found["classes"][_MOST_CLASSES:]
    if more:
        rest = sum(one["n"] for one in more)
        rows.append([f"{len(more):,} other classes", rest, points(rest / found["n"]), ""])
    rows.append(["all", found["n"], "", found["mean_score"]])
    table = Table(("predictions (no labels)", n, "share", score), rows)
    examples = Table(
        ("such as", "shard", Column("row", ","), Column("score", ".3f")),
        [[_class(one), one["shard"], one["row"], one["score"]] for one in found["examples"]],
    )
    line = f"collage-mpi export {summary['run']} --to csv writes a line an image, with its id"
    return ["", table, "", examples, "", Text(line, no_wrap=True, overflow="ignore")]


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
