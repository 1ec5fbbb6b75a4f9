"""The summary of one run: latency, its parts, accuracy, and the price (C8).

Owns: which rows enter which number, and the layout of summary.json.
Does not know: how it is printed (render), other runs (comparison).

Warm-up groups enter no time, share or price; accuracy is that of all labelled images. Times
in the summary are ms or s and say so in their names; a number the sample cannot support is None,
with the n it needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.kinds import COLLAGE, KINDS, SHARED_KINDS
from collage_mpi.results.file_names import SUMMARY
from collage_mpi.results.manifest import is_int, plain, readable
from collage_mpi.results.parts import began_ns, launch_of
from collage_mpi.results.predictions import predictions
from collage_mpi.results.reader import Results
from collage_mpi.results.rows import (
    ENCODED,
    KIND_CODE,
    OUTCOMES,
    SOURCE_CODE,
    SOURCES,
    ran_together,
    wait_ns,
)
from collage_mpi.results.statistics import (
    PERCENTILES,
    Spread,
    describe,
    percentile_name,
    support_needed,
    wilson_interval,
)
from collage_mpi.system.files import write_atomic, writing

SERVED_SHARE = 0.95  # of what an open loop offers; below it is overloaded
ENOUGH_IMAGES = 200  # below, those still under way at the end weigh too much to say so
PARTS = ("read", "encode", "wait", "compute", "held", "decode")

Json = dict[str, Any]


def summarise(results: Results) -> Json:
    """All numbers of one run, ready for JSON; see docs/results.md for each.

    Works on incomplete runs too: `complete` says which it is.
    """
    manifest = results.manifest
    return {
        "run": readable(str(results.path)),
        "run_id": manifest["run_id"],
        "complete": results.complete,
        "status": manifest.get("status"),
        "scheme": results.scheme,
        "mode": results.mode,
        "side": manifest.get("side"),
        "straggler": manifest.get("straggler"),
        "order": manifest.get("order"),
        "rows": _rows(results),
        "latency": _latency(results),
        **_by_team(results),
        "support": {percentile_name(q): support_needed(q) for q in PERCENTILES},
        "parts_ms": _parts_ms(results.measured_images),
        "accuracy": accuracy(results.images),
        "predictions": predictions(results),
        "price": _price(results),
        "arrivals": _arrivals(results),
        "rank0": _rank0(results),
        "validity": _validity(results),
        "errors": _errors(results.images),
        "first_errors": _first_errors(results),
        "lost_ranks": _lost_ranks(results),
    }


def write_summary(
    results: Results, out: Path | None = None, check: Callable[[], object] | None = None
) -> Json:
    """Summarise and save as summary.json in the run directory (or `out`).

    Raises:
        EnvironmentFault: the file cannot be written.
        CollageError: of `check` (see `write_atomic`).
    """
    summary = summarise(results)
    path = (out or results.path) / SUMMARY
    text = json.dumps(summary, indent=1, default=plain)
    with writing(path):
        write_atomic(path, (text.encode(), b"\n"), check=check)
    return summary


def _rows(results: Results) -> Json:
    images = results.images
    return {
        "expected": results.manifest["rows"],
        "found": len(images),
        "answered": int(images["answered"].sum()),
        "errors": int((~images["answered"]).sum()),
        "groups": len(results.groups),
        "warmup_groups": int(results.groups["warmup"].sum()),
        "warmup_images": int(images["warmup"].sum()),
        "sessions": len(np.unique(images["session"])),
    }


def _latency(results: Results) -> Json:
    """Per group and per image; support is counted in groups, or batches, for both."""
    groups = np.sort(results.measured_groups, order=("session", "t0_ns", "group"))
    images = results.measured_images
    spreads = {
        "group": describe(groups["latency_ns"] / 1e6, results.independent(groups), ci=True),
        "image": describe(images["latency_ns"] / 1e6, results.independent(images)),
    }
    return {per: _in_ms(spread, len(groups)) for per, spread in spreads.items()}


def _by_team(results: Results) -> Json:
    """Latency per group of each team, where there are several; a team of each launch is one."""
    teams, found = launch_of(results.manifest), []
    for session, first in teams.items():
        groups = results.measured_groups
        groups = np.sort(groups[groups["session"] == session], order=("t0_ns", "group"))
        spread = describe(groups["latency_ns"] / 1e6, results.independent(groups), ci=True)
        found.append({"session": session, "team": session - first, **_in_ms(spread, len(groups))})
    return {"teams": found} if teams else {}


def _in_ms(spread: Spread, groups: int) -> Json:
    """A spread of ms values as JSON, None where unsupported."""
    return {
        "n": spread.n,
        "groups": groups,
        "independent": spread.independent,
        **{f"{name}_ms": value for name, value in spread.percentiles.items()},
        **{f"{name}_ci95_ms": ci.ends and list(ci.ends) for name, ci in spread.intervals.items()},
        **{f"{name}_ci95_samples": ci.samples for name, ci in spread.intervals.items()},
        "mean_ms": spread.mean,
        "std_ms": spread.std,
        "max_ms": spread.maximum,
        "over_3_medians": spread.over_3_medians,
    }


def _parts_ms(images: np.ndarray) -> Json:
    """Median and mean of each part over answered images; encode over those of encoded tasks."""
    answered = images[images["answered"]]
    encoded = answered[np.isin(answered["source"], ENCODED)]
    found: Json = {}
    for name in PARTS:
        rows = encoded if name == "encode" else answered
        values_ms = (wait_ns(rows) if name == "wait" else rows[f"{name}_ns"]) / 1e6
        median, mean = (
            (float(np.median(values_ms)), float(values_ms.mean())) if len(rows) else (None, None)
        )
        found[name] = {"n": len(rows), "median": median, "mean": mean}
    return found


def accuracy(images: np.ndarray) -> Json:
    """Accuracy over the labelled images, an error row counting as wrong, and by source."""
    labelled = images[images["has_label"]]
    right = labelled["answered"] & (labelled["predicted"] == labelled["label"])
    by_source = {}
    for code, name in enumerate(SOURCES):
        mask = labelled["source"] == code
        if mask.any():
            by_source[name] = _share(int(right[mask].sum()), int(mask.sum()))
    return {"overall": _share(int(right.sum()), len(labelled)), "by_source": by_source}


def _share(correct: int, n: int) -> Json:
    ci = wilson_interval(correct, n)
    accuracy = correct / n if n else None
    return {"n": n, "correct": correct, "accuracy": accuracy, "ci95": ci and list(ci)}


def _price(results: Results) -> Json:
    """What the answers cost (C8), over measured groups."""
    images, tasks = results.measured_images, results.measured_tasks
    work_s = (tasks["compute_ns"] + tasks["held_ns"]) / 1e9 / ran_together(tasks)  # (tasks,)
    answered = tasks["outcome"] == OUTCOMES.index("answered")
    useless = tasks["resolved"] == 0
    unfinished = tasks[tasks["outcome"] == OUTCOMES.index("unfinished")]
    ranks, rank_s = ranks_used(results), _measured_span_s(results)
    n = len(images)
    resolved = int(images["answered"].sum())
    by_kind = {kind: int((images["source"] == SOURCE_CODE[kind]).sum()) for kind in SHARED_KINDS}
    total_s = float(work_s.sum())
    wasted_s = float(work_s[useless].sum())
    return {
        **{f"{kind}_share": n / resolved if resolved else None for kind, n in by_kind.items()},
        "cost_ratio": results.manifest.get("cost_ratio"),
        "cost_ratio_ci95": results.manifest.get("cost_ratio_interval"),
        "injected": _injected(results.manifest),
        "wasted_work": wasted_s / total_s if total_s else None,
        "wasted_s": wasted_s,
        "work_s": total_s,
        "ranks": ranks["all"],
        "coordinators": ranks["coordinators"],
        **{f"{kind}_ranks": ranks[kind] for kind in KINDS},
        "rank_seconds_per_image": rank_s * ranks["all"] / n if n else None,
        "busy_seconds_per_image": total_s / n if n else None,
        "images_per_s": n / rank_s if rank_s else None,
        "tasks": len(tasks),
        "collage_tasks": int((tasks["kind"] == KIND_CODE[COLLAGE]).sum()),
        "late_answers": int((answered & useless).sum()),
        **{
            f"{name}_tasks": int((tasks["outcome"] == code).sum())
            for code, name in enumerate(OUTCOMES)
            if name != "answered"
        },
        "unfinished_s": float((unfinished["done_ns"] - unfinished["sent_ns"]).sum()) / 1e9,
    }


def _injected(manifest: Json) -> bool:
    """Whether service times were drawn; all of them are in a simulation."""
    drawn = (manifest.get("settings") or {}).get("straggler") != "none"
    return drawn or "simulated" in manifest


def _arrivals(results: Results) -> Json | None:
    """An open loop's offered and served rate; None in a closed loop.

    Served: answers within the time in which images came. It is overloaded where that is
    less than 95 % of what was offered: its latencies then grow with the length of the run.
    """
    images = results.measured_images
    if not results.manifest.get("open_loop") or len(images) < 2:
        return None
    came_s, offered, served, waiting = 0.0, 0, 0, 0
    for session in np.unique(images["session"]):
        rows = images[images["session"] == session]
        last_ns = int(rows["t0_ns"].max())
        came_s += (last_ns - int(rows["t0_ns"].min())) / 1e9
        done = int((rows["t0_ns"] + rows["latency_ns"] <= last_ns).sum())
        offered, served, waiting = offered + len(rows), served + done, len(rows) - done
    known = came_s > 0
    return {
        "offered_per_s": offered / came_s if known else None,
        "served_per_s": served / came_s if known else None,
        "waiting_at_the_end": waiting,
        "overloaded": bool(served < SERVED_SHARE * offered) if offered >= ENOUGH_IMAGES else None,
    }


def ranks_used(results: Results) -> dict[str, int]:
    """Ranks of the world: all, its coordinators, and those that hold each kind."""
    world = results.manifest.get("world")
    if not world:  # interrupted before the world was recorded: those that were sent a task
        kinds = {
            name: {int(rank) for rank in results.tasks["rank"][results.tasks["kind"] == code]}
            for name, code in KIND_CODE.items()
        }
    else:
        kinds = {
            name: {member["rank"] for member in world if name in (member.get("kinds") or ())}
            for name in KIND_CODE
        }
    members = {member["rank"] for member in world or ()}
    everyone = {0, *members}.union(*kinds.values())
    leading = sum(member.get("role") == "coordinator" for member in world or ())
    found = {"all": len(everyone), "coordinators": max(1, leading)}
    return {**found, **{name: len(ranks) for name, ranks in kinds.items()}}


def _measured_span_s(results: Results) -> float:
    """Seconds from the first measured release to the last measured end of each launch, added.

    The sessions of a launch's teams ran side by side, each from the Unix time that it began at.
    """
    groups = results.measured_groups
    launches, began = launch_of(results.manifest), began_ns(results.manifest)
    spans: dict[int, list[tuple[int, int]]] = {}
    for session in np.unique(groups["session"]).tolist():
        rows = groups[groups["session"] == session]
        launch = launches.get(session, session)
        at_ns = began.get(session, 0)
        ends_ns = rows["t0_ns"] + rows["latency_ns"]
        span = at_ns + int(rows["t0_ns"].min()), at_ns + int(ends_ns.max())
        spans.setdefault(launch, []).append(span)
    starts_and_ends = (zip(*each, strict=True) for each in spans.values())
    total_ns: int = sum(max(ends) - min(starts) for starts, ends in starts_and_ends)
    return total_ns / 1e9


def _rank0(results: Results) -> Json:
    poll = results.manifest.get("poll") or {}
    gap_ns = poll.get("longest_gap_ns")
    gap_ms = float(gap_ns) / 1e6 if isinstance(gap_ns, int | float) and abs(gap_ns) < 1e18 else None
    return {"longest_poll_gap_ms": gap_ms, "poll": poll}


def _validity(results: Results) -> Json:
    """The injection rule over all sessions; None where nothing was injected or recorded."""
    manifest = results.manifest
    finals = [entry.get("final") or {} for entry in manifest.get("sessions") or []]
    found = [final["validity"] for final in finals if isinstance(final.get("validity"), dict)]
    if not found and manifest.get("validity"):
        found = [manifest["validity"]]
    if not found:
        return {"valid": None, "exceeded": None, "tasks": None, "share": None}
    exceeded, tasks = (
        sum(_number(item.get(key)) for item in found) for key in ("exceeded", "tasks")
    )
    share = exceeded / tasks if tasks else 0.0
    return {"valid": not results.invalid, "exceeded": exceeded, "tasks": tasks, "share": share}


def _number(value: object) -> int:
    return int(value) if is_int(value) else 0  # type: ignore[call-overload]


def _lost_ranks(results: Results) -> list[Json]:
    """The ranks that were lost in any session."""
    finals = [entry.get("final") or {} for entry in results.manifest.get("sessions") or []]
    return [loss for final in finals for loss in final.get("lost") or []]


def _first_errors(results: Results) -> dict[str, Json]:
    """Reason of error rows -> shard (its path) and row of the first such image."""
    images, shards = results.images, results.manifest["shards"]
    images = images[~images["answered"]]
    reasons, first = np.unique(images["reason"], return_index=True)
    found = {}
    for reason, image in zip(reasons.tolist(), images[first], strict=True):
        shard = int(image["shard"])
        path = shards[shard].get("path") if shard < len(shards) else None
        found[reason.decode("utf-8", "replace")] = {"shard": path, "row": int(image["row"])}
    return found


def _errors(images: np.ndarray) -> dict[str, int]:
    """Reasons of error rows and how often, the commonest ten."""
    reasons, counts = np.unique(images["reason"][~images["answered"]], return_counts=True)
    order = np.argsort(-counts, kind="stable")[:10]
    return {reasons[i].decode("utf-8", "replace"): int(counts[i]) for i in order}
