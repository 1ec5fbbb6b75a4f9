"""Figures of a summary, computed here once more from the rows and the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from tests.simulation.laws import Run

Json = dict[str, Any]
ERROR = 6
SINGLE, COLLAGE = 0, 1  # kinds of task
SOURCES = ("single", "collage", "replica", "hedge", "retry", "error", "endgame", "stage1", "kept")
SOURCE_CODES = dict(zip(SOURCES, (0, 1, 2, 3, 5, 6, 7, 8, 10), strict=True))
BY_FIRST = {"collage_share": 1, "stage1_share": 8}
SECOND = 1_000_000_000
TOGETHER = ("session", "rank", "sent_ns", "done_ns", "compute_ns", "kind")  # same: one message


def wrong_figures(run: Run, summary: Json) -> Iterator[str]:
    """Each figure that differs. Of several sessions the figures by time are not computed."""
    for name, right in figures(run).items():
        said: Any = summary
        for key in name.split("/"):
            said = said.get(key) if isinstance(said, dict) else None
        if not _same(said, right):
            yield f"summary.json says {said} as {name}; it is {right}"


def _same(said: Any, right: Any) -> bool:
    if isinstance(right, float) and isinstance(said, int | float):
        return abs(said - right) <= 1e-6 * max(1.0, abs(right))
    return bool(said == right)


def figures(run: Run) -> Json:
    """What the summary is to say, by the path of each figure in it."""
    rows, manifest = run.lasting, run.manifest
    warm, cold = rows[rows["warmup"]], rows[~rows["warmup"]]
    found: Json = {
        "run_id": manifest["run_id"],
        "order": manifest["order"],
        "side": manifest["side"],
        "rows/expected": manifest["rows"],
        "rows/warmup_images": len(warm),
        "errors": dict(Counter(_reasons(rows))) if len(rows) else {},
    }
    found |= _latencies("image", cold["latency_ns"])
    whole = all(entry["rows"] for entry in manifest["sessions"])  # else a last group may lack some
    if whole and len(run.images) == len(run.lasting):  # rows that were replaced leave groups
        found |= _of_groups(run)
    right = rows["answered"] & rows["has_label"] & (rows["predicted"] == rows["label"])
    for name, code in SOURCE_CODES.items():
        of = (rows["source"] == code) & rows["has_label"]
        if of.any() and code != ERROR:
            found[f"accuracy/by_source/{name}/n"] = int(of.sum())
            found[f"accuracy/by_source/{name}/correct"] = int(right[of].sum())
    answered = cold[cold["answered"]]
    for name, code in BY_FIRST.items():
        if len(answered):
            found[f"price/{name}"] = float((cold["source"] == code).sum() / len(answered))
    times = {"read": answered["read_ns"], "compute": answered["compute_ns"]}
    times["decode"] = answered["decode_ns"]
    for name, values in times.items():
        if len(values):
            found[f"parts_ms/{name}/n"] = len(values)
            found[f"parts_ms/{name}/mean"] = float(values.mean() / 1e6)
            found[f"parts_ms/{name}/median"] = float(np.median(values) / 1e6)
    if run.alone:
        found |= _of_time(run, cold, warm)
    both = rows[(rows["audited"] == 1) & np.isin(rows["source"], (1, 8, 10))]
    if len(both):
        found["audit/audited"] = len(both)
        found["audit/differing"] = int((both["predicted"] != both["other"]).sum())
    return found | (_of_work(run) if len(run.tables["tasks"]) else {})


def _of_time(run: Run, cold: np.ndarray, warm: np.ndarray) -> Json:
    """How many images a second, by the clock of the one session."""
    entry, found = run.manifest["sessions"][-1], {}
    world = (entry.get("final") or {}).get("world")
    if not world or not len(cold):
        return {}
    began_ns = cold["t0_ns"].min()
    ended_ns = (cold["t0_ns"] + cold["latency_ns"]).max()
    seconds = float((ended_ns - began_ns) / SECOND)
    done = len(cold) + int((warm["t0_ns"] + warm["latency_ns"] > began_ns).sum())
    if seconds:
        found["price/images_per_s"] = done / seconds
        found["price/rank_seconds_per_image"] = seconds * len(world) / done
    hosts = len({member["host"] for member in world})
    found["price/ranks"] = len(world)
    if "seconds" in entry["final"]:  # the last words may have met a disk error
        found["cost/hosts"] = hosts
        found["cost/node_hours"] = entry["final"]["seconds"] * hosts / 3600
    if run.manifest["open_loop"] and len(cold) > 1:
        last_ns = cold["t0_ns"].max()
        served = int((cold["t0_ns"] + cold["latency_ns"] <= last_ns).sum())
        found["arrivals/offered_per_s"] = float(len(cold) / (last_ns - began_ns) * SECOND)
        found["arrivals/waiting_at_the_end"] = len(cold) - served
    return found


def _of_work(run: Run) -> Json:
    """What ranks took, but for tasks that did not end."""
    tasks = run.tables["tasks"]
    tasks = tasks[~tasks["warmup"] & (tasks["outcome"] < 3)]
    keys = [tuple(task[name].item() for name in TOGETHER) for task in tasks]
    inputs = np.where(tasks["kind"] == COLLAGE, 1, tasks["items"]).tolist()
    together: Counter[tuple[int, ...]] = Counter()
    for key, count in zip(keys, inputs, strict=True):
        together[key] += count
    parts = [n / max(1, together[key]) for key, n in zip(keys, inputs, strict=True)]
    took_s = tasks["compute_ns"] * np.array(parts)
    of_images = tasks["kind"] == SINGLE  # and in a cascade cells that are not sure do not count
    of_images |= run.manifest["settings"]["scheme"].startswith("cascade")
    unused = 1 - tasks["resolved"] / np.maximum(1, tasks["items"])
    unused = np.where(of_images, unused, tasks["resolved"] == 0)
    collages = run.tables["tasks"][~run.tables["tasks"]["warmup"]]["kind"] == COLLAGE
    return {
        "price/work_s": float(took_s.sum() / SECOND),
        "price/wasted_s": float((took_s * unused).sum() / SECOND),
        "price/collage_tasks": int(collages.sum()),
    }


def _reasons(rows: np.ndarray) -> list[str]:
    return [bytes(each).decode() for each in rows["reason"][rows["source"] == ERROR]]


def _of_groups(run: Run) -> Json:
    """An image is of its group also where another job's row of it counts."""
    places: dict[tuple[int, int], list[int]] = {}
    rows = np.concatenate([rows for _, rows, _ in run.files])
    for place, key in enumerate(zip(rows["session"].tolist(), rows["group"].tolist(), strict=True)):
        places.setdefault(key, []).append(place)
    groups = [rows[each] for each in places.values()]
    cold = [group for group in groups if not group["warmup"][0]]
    ends = [np.max(each["t0_ns"] + each["latency_ns"]) - np.min(each["t0_ns"]) for each in cold]
    found = {"rows/groups": len(groups), "rows/warmup_groups": len(groups) - len(cold)}
    found["rows/sessions"] = len(np.unique(rows["session"]))
    return found | _latencies("group", np.array(ends, np.int64))


def _latencies(what: str, found_ns: np.ndarray) -> Json:
    if not len(found_ns):
        return {f"latency/{what}/n": 0}
    ms = found_ns / 1e6
    return {
        f"latency/{what}/n": len(ms),
        f"latency/{what}/mean_ms": float(ms.mean()),
        f"latency/{what}/max_ms": float(ms.max()),
    }
