"""The summary of one run: latency, its parts, accuracy, and the price (C8).

Warm-up groups are left out of all times, shares and prices, but not of the accuracy. Names of times
end in _ms or _s. A percentile for which there are too few samples is None; `support` says how many
each percentile needs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.kinds import COLLAGE
from collage_mpi.models.tuning import tunings_text
from collage_mpi.results import SUMMARY
from collage_mpi.results.manifest import Json, finals, plain, readable
from collage_mpi.results.parts import began_ns, launch_of, sessions_of
from collage_mpi.results.reader import Run
from collage_mpi.results.statistics import (
    PERCENTILES,
    Spread,
    differing_interval,
    percentile_name,
    support_needed,
    wilson_interval,
)
from collage_mpi.results.tally import ImageTally, Tally, TaskTally
from collage_mpi.results.vectors import extras_of
from collage_mpi.rows import IMAGES, KIND_CODE, KINDS, OUTCOMES, SOURCES
from collage_mpi.system.bottleneck import limit_of_members
from collage_mpi.system.files import write_atomic, writing

SERVED_SHARE = 0.95  # an open loop that answers a smaller share in time is overloaded
AUDITS_BY_CLASS = 500  # from this number on, audits are shown by class
ENOUGH_IMAGES = 200  # with fewer, the images in progress at the end would look like an overload


def summarise(run: Run, tally: Tally | None = None) -> Json:
    """All figures of a run, ready for JSON. docs/results.md explains each.

    Args:
        run: complete or not, in memory or on disk. A run on disk is read a part at a time.
        tally: of the run, if it is known; otherwise the run is read.
    """
    manifest = run.manifest
    tally = tally or Tally(run)
    return {
        "run": readable(str(run.path)),
        "run_id": manifest["run_id"],
        "complete": run.complete,
        "status": manifest.get("status"),
        "scheme": run.scheme,
        "mode": run.mode,
        "batch": manifest.get("batch"),
        "side": manifest.get("side"),
        "straggler": manifest.get("straggler"),
        "order": manifest.get("order"),
        "rows": _rows(run, tally),
        "latency": _latency(tally),
        **_by_team(run, tally),
        "support": {percentile_name(q): support_needed(q) for q in PERCENTILES},
        "parts_ms": _parts_ms(tally.images),
        "accuracy": _accuracy(tally.images),
        "audit": _audit(run, tally.images),
        "predictions": _predictions(run, tally.images),
        **({"outputs": True} if _maps(run) else {}),
        "price": _price(run, tally),
        "cost": cost_of(run),
        "arrivals": _arrivals(run),
        "rank0": _rank0(run),
        "errors": _errors(tally.images),
        "first_errors": _first_errors(run, tally.images),
        "lost_ranks": [
            loss for final in finals(manifest).values() for loss in final.get("lost") or []
        ],
        "networks": networks_text(run),
        "limit": _limit(run),
    }


def networks_text(run: Run) -> str:
    """How the networks ran in all sessions, in words: number formats, runtimes that they changed
    over to, and ranks that did not. "" for null networks and simulations."""
    worlds = [found.get("world") or [] for found in (*finals(run.manifest).values(), run.manifest)]
    members = [member for world in worlds for member in world]
    text = tunings_text(member.get("tuning") or {} for member in members)
    later = {name: None for each in members for name in (each.get("runtimes") or {}).values()}
    parts = [", then ".join(filter(None, (text, " and ".join(later))))]
    parts += dict.fromkeys(
        f"rank {member['rank']} stayed with torch ({why})"
        for member in members
        for why in (member.get("stayed") or {}).values()
    )
    return "; ".join(filter(None, parts))


def _limit(run: Run) -> Json | None:
    """What limited the run; None if its ranks did not say what they did with their time."""
    worlds = [final.get("world") or [] for final in finals(run.manifest).values()]
    members = [member for world in worlds for member in world if member.get("use")]
    if not members:
        return None
    found = limit_of_members(members, open_loop=bool(run.manifest.get("open_loop")))
    return {"name": found.name, "text": found.sentence, "gpus": dict(found.gpus)}


def write_summary(
    run: Run, out: Path | None = None, check: Callable[[], object] | None = None
) -> Json:
    """Summarise a run and write summary.json to the run directory, or to `out`.

    Raises:
        EnvironmentFault: the file cannot be written.
        CollageError: of `check` (see `write_atomic`).
    """
    summary = summarise(run)
    save_summary(summary, out or run.path, check)
    return summary


def save_summary(summary: Json, out: Path, check: Callable[[], object] | None) -> None:
    """Write a summary to summary.json in `out`. Raises as `write_summary`."""
    path = out / SUMMARY
    text = json.dumps(summary, indent=1, default=plain)
    with writing(path):
        write_atomic(path, (text.encode(), b"\n"), check=check)


def _rows(run: Run, tally: Tally) -> Json:
    images, groups = tally.images, tally.groups
    return {
        "expected": run.manifest["rows"],
        "found": images.n,
        "answered": images.answered,
        "errors": images.errors,
        "groups": groups.n,
        "warmup_groups": groups.warmup,
        "warmup_images": images.warmup,
        "sessions": len(images.sessions),
    }


def _latency(tally: Tally) -> Json:
    """Latency per group and per image. For both, groups or batches are the independent samples."""
    groups, images = tally.groups, tally.images
    spreads = {
        "group": groups.latency_ms.spread(len(groups.samples)),
        "image": images.latency_ms.spread(len(images.samples)),
    }
    return {per: _in_ms(spread, groups.latency_ms.n) for per, spread in spreads.items()}


def _by_team(run: Run, tally: Tally) -> Json:
    """Latency per group of each team, if there are several. Each launch has its own teams."""
    teams, found = launch_of(run.manifest), []
    for session, first in teams.items():
        latency_ms, samples = tally.groups.of_session[session]
        spread = latency_ms.spread(len(samples))
        found.append({"session": session, "team": session - first, **_in_ms(spread, latency_ms.n)})
    return {"teams": found} if teams else {}


def _in_ms(spread: Spread, groups: int) -> Json:
    """A spread of values in ms as JSON."""
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


def _parts_ms(images: ImageTally) -> Json:
    """Median and mean of each part of the latency over answered images; encode only over answers of
    encoded tasks."""
    return {
        name: {"n": sample.n, "median": sample.median, "mean": sample.mean}
        for name, sample in images.parts_ms.items()
    }


def _accuracy(images: ImageTally) -> Json:
    """Accuracy over all labelled images and by source. Error rows count as wrong."""
    labelled, right = images.right.tolist()
    by_source = {
        name: _share(right[code], labelled[code])
        for code, name in enumerate(SOURCES)
        if labelled[code]
    }
    return {"overall": _share(sum(right), sum(labelled)), "by_source": by_source}


def _share(correct: int, n: int) -> Json:
    ci = wilson_interval(correct, n)
    accuracy = correct / n if n else None
    return {"n": n, "correct": correct, "accuracy": accuracy, "ci95": ci and list(ci)}


def _audit(run: Run, images: ImageTally) -> Json | None:
    """How often audited answers agree with the single network; None if nothing was audited."""
    audited, differing = (sum(counts[i] for counts in images.audits.values()) for i in (0, 1))
    if not audited + images.unaudited:
        return None
    names = run.manifest.get("class_names") or []
    by_class = [
        {"class": number, "name": class_name(names, number), **_agreement(*counts)}
        for number, counts in sorted(images.audits.items())
    ]
    enough = audited >= AUDITS_BY_CLASS
    return {
        **_agreement(audited, differing),
        "not_done": images.unaudited,
        "by_class": by_class if enough else None,
    }


def _agreement(audited: int, differing: int) -> Json:
    low, high = differing_interval(differing, audited)
    agreement = 1 - differing / audited if audited else None
    return {
        "audited": audited,
        "differing": differing,
        "agreement": agreement,
        "ci95": [1 - high, 1 - low],
    }


def _predictions(run: Run, images: ImageTally) -> Json | None:
    """For a run without labels: answers and mean score of each class, and some examples.

    Returns:
        None if an image has a label, no image has an answer, or the run is simulated or maps a
        function.
    """
    if "simulated" in run.manifest or images.labelled or not images.answered or _maps(run):
        return None
    names = run.manifest.get("class_names") or []
    classes = [
        {
            "class": number,
            "name": class_name(names, number),
            "n": n,
            "share": n / images.answered,
            "mean_score": score / n,
        }
        for number, (n, score) in sorted(images.classes.items())
    ]
    return {
        "n": images.answered,
        "mean_score": sum(score for _, score in images.classes.values()) / images.answered,
        "classes": sorted(classes, key=lambda one: -one["n"]),
        "examples": [_example(run, row, names) for row in images.examples.rows()],
    }


def _maps(run: Run) -> bool:
    return not extras_of(run.manifest).classifies


def _example(run: Run, row: Any, names: list[str]) -> Json:
    number, path = int(row["predicted"]), run.manifest["shards"][int(row["shard"])].get("path")
    return {
        "shard": path and Path(path).name,
        "row": int(row["row"]),
        "class": number,
        "name": class_name(names, number),
        "score": float(row["score"]),
    }


def _price(run: Run, tally: Tally) -> Json:
    """The price of the answers (C8), over measured groups."""
    tasks = tally.tasks
    ranks, (done, rank_s) = ranks_used(run, tasks), _throughput(run, tally)
    n, resolved = tally.images.measured, tally.images.resolved
    by_kind = tally.images.by_kind
    return {
        **{f"{kind}_share": n / resolved if resolved else None for kind, n in by_kind.items()},
        "cost_ratio": run.manifest.get("cost_ratio"),
        "wasted_work": tasks.wasted_s / tasks.work_s if tasks.work_s else None,
        "wasted_s": tasks.wasted_s,
        "work_s": tasks.work_s,
        "work_s_of": {KINDS[code]: float(tasks.work_of[code]) for code in tasks.by_kind},
        "ranks": ranks["all"],
        "coordinators": ranks["coordinators"],
        **{f"{kind}_ranks": ranks[kind] for kind in KINDS},
        "rank_seconds_per_image": rank_s * ranks["all"] / done if done else None,
        "busy_seconds_per_image": tasks.work_s / n if n else None,
        "images_per_s": done / rank_s if rank_s else None,
        "tasks": tasks.n,
        "collage_tasks": tasks.by_kind[KIND_CODE[COLLAGE]],
        "late_answers": tasks.late,
        **{
            f"{name}_tasks": tasks.by_outcome[code]
            for code, name in enumerate(OUTCOMES)
            if name != "answered"
        },
        "unfinished_s": float(tasks.unfinished_ns) / 1e9,
    }


def _arrivals(run: Run) -> Json | None:
    """The offered and the served rate of an open loop; None in a closed loop.

    An image is served if it was answered before the last image of its session arrived. The run is
    overloaded if fewer than 95 % of the images were served. Latencies then grow with the length of
    the run.
    """
    if not run.manifest.get("open_loop"):
        return None
    came: dict[int, tuple[int, int]] = {}  # session -> its first and last arrival, ns
    for session, rows in _measured_by_session(run):
        first, last = came.get(session, (1 << 63, -(1 << 63)))
        t0_ns = rows["t0_ns"]
        came[session] = min(first, int(t0_ns.min())), max(last, int(t0_ns.max()))
    offered = served = 0
    for session, rows in _measured_by_session(run):
        offered += len(rows)
        served += int((rows["t0_ns"] + rows["latency_ns"] <= came[session][1]).sum())
    if offered < 2:
        return None
    came_s = sum((last - first) / 1e9 for first, last in came.values())
    known = came_s > 0
    return {
        "offered_per_s": offered / came_s if known else None,
        "served_per_s": served / came_s if known else None,
        "waiting_at_the_end": offered - served,
        "overloaded": bool(served < SERVED_SHARE * offered) if offered >= ENOUGH_IMAGES else None,
    }


def _measured_by_session(run: Run) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (session, rows) of measured images, some rows at a time."""
    for rows in run.chunks(IMAGES):
        measured = rows[~rows["warmup"]]
        for session in np.unique(measured["session"]).tolist():
            yield session, measured[measured["session"] == session]


def ranks_used(run: Run, tasks: TaskTally) -> dict[str, int]:
    """The number of ranks: all, coordinators, and those that hold each kind."""
    world = run.manifest.get("world")
    if not world:  # interrupted before the world was recorded: count ranks that were sent a task
        kinds = {name: tasks.ranks.get(code, set()) for name, code in KIND_CODE.items()}
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


def _throughput(run: Run, tally: Tally) -> tuple[int, float]:
    """The images that were done since the first measured group was admitted, and the seconds until
    the last measured end, summed over launches.

    Images of the warm-up that end later than this admission count, because the ranks work on them
    in these seconds. The teams of a launch run at the same time, so their clocks are aligned.
    """
    launches, began = launch_of(run.manifest), began_ns(run.manifest)
    spans: dict[int, tuple[int, int]] = {}
    for session, (first_ns, last_ns) in tally.groups.span_ns.items():
        launch, at_ns = launches.get(session, session), began.get(session, 0)
        known = spans.get(launch, (at_ns + first_ns, at_ns + last_ns))
        spans[launch] = min(known[0], at_ns + first_ns), max(known[1], at_ns + last_ns)
    done = tally.images.measured
    for session, ends_ns in tally.images.warmup_ends_ns.items():
        span = spans.get(launches.get(session, session))
        if span is not None:
            done += int((began.get(session, 0) + np.concatenate(ends_ns) > span[0]).sum())
    return done, sum(last_ns - first_ns for first_ns, last_ns in spans.values()) / 1e9


def _rank0(run: Run) -> Json:
    poll = run.manifest.get("poll") or {}
    gap_ns = poll.get("longest_gap_ns")
    return {"longest_poll_gap_ms": None if gap_ns is None else gap_ns / 1e6, "poll": poll}


def _first_errors(run: Run, images: ImageTally) -> dict[str, Json]:
    """Reason of error rows -> shard (a path) and row of the first image with this reason."""
    shards = run.manifest["shards"]
    found = {}
    for reason, image in sorted(images.first.items()):
        shard = int(image["shard"])
        path = shards[shard].get("path") if shard < len(shards) else None
        found[reason.decode("utf-8", "replace")] = {"shard": path, "row": int(image["row"])}
    return found


def _errors(images: ImageTally) -> dict[str, int]:
    """The ten commonest reasons of error rows -> their number."""
    commonest = sorted(images.reasons.items(), key=lambda item: (-item[1], item[0]))[:10]
    return {reason.decode("utf-8", "replace"): n for reason, n in commonest}


def class_name(names: Sequence[str], number: int) -> str | None:
    """The name of a class; None if it has none."""
    return names[number] if 0 <= number < len(names) else None


def cost_of(run: Run) -> Json | None:
    """Node-hours of the sessions that ended.

    A host counts once in each launch, even if several coordinators run on it. A killed session
    recorded nothing.

    Returns:
        node_hours; hosts; sessions, and sessions_told, how many of them recorded their time. None
        if no session recorded it.
    """
    launches = launch_of(run.manifest)
    seconds: dict[int, float] = {}
    hosts_of: dict[int, set[str]] = {}
    told = 0
    for session, final in finals(run.manifest).items():
        world = final.get("world") or []
        if final.get("seconds") is None or not world:
            continue
        told += 1
        launch = launches.get(session, session)
        seconds[launch] = max(seconds.get(launch, 0.0), final["seconds"])
        hosts_of.setdefault(launch, set()).update(str(member.get("host")) for member in world)
    if not told:
        return None
    return {
        "node_hours": sum(seconds[launch] * len(hosts_of[launch]) for launch in seconds) / 3600,
        "hosts": len(set().union(*hosts_of.values())),
        "sessions": sessions_of(run.manifest).stop - 1,  # killed ones too
        "sessions_told": told,
    }
