"""Runs the points of an experiment on the same workers, one after another, or as simulations.
Finished runs are skipped, and unfinished ones are resumed.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.errors import CollageError, ExitCode, UsageError
from collage_mpi.experiments.spec import Experiment, Point
from collage_mpi.job.inputs import digests, named_files
from collage_mpi.results.file_names import MANIFEST, MARKER
from collage_mpi.results.manifest import (
    COMPLETE,
    differences,
    other_content,
    read_manifest,
)
from collage_mpi.results.reader import known_run, open_run, read_results
from collage_mpi.results.summary import summarise
from collage_mpi.results.tally import Inventory
from collage_mpi.settings.run_settings import PATH_SETTINGS
from collage_mpi.shards.inputs import expand_paths
from collage_mpi.shards.reader import inspect_sources
from collage_mpi.shards.remote import Stamp
from collage_mpi.shards.schema import stamp_of
from collage_mpi.simulation.costs import Costs, costs_of
from collage_mpi.simulation.runs import (
    check_job,
    read_summary,
    run_jobs,
    simulated_inputs,
)
from collage_mpi.simulation.simulator import SimulatedJob

if TYPE_CHECKING:
    from collage_mpi.job.worker_group import WorkerGroup

SEVERITY = (ExitCode.COMPLETE, ExitCode.COMPLETE_WITH_ERRORS, ExitCode.DATA)
# Settings that decide which files a plan opens, and whether they fit together.
_DECIDE_A_PLAN = (
    *PATH_SETTINGS,
    *("scheme", "side", "cell_px", "batch", "bad_shards", "order", "limit", "arrivals"),
)
NEW, STARTED, DONE = "new", "started", "done"

Json = dict[str, Any]


def state(point: Point, out: Path) -> str:
    """The state of the point's run in `out`: NEW, STARTED or DONE.

    Raises:
        UsageError: the folder holds a run with other settings than the point's.
        DataFault: the run's manifest or a part of it is damaged.
    """
    folder = out / point.name
    alone = summary_alone(folder)
    if alone is None and not (folder / MANIFEST).exists():
        return NEW
    found = read_manifest(folder) if alone is None else alone
    marked = (folder / MARKER).exists() and found.get("status") in COMPLETE
    done = alone is not None or (marked and Inventory(known_run(folder, found)).whole)
    changed = differences(found, _asked(found, point, out, done)) + _other_input(found, point)
    if changed:
        listed = "\n  ".join(changed)
        raise UsageError(
            f"{folder} holds a run with other settings than the experiment:\n  {listed}\n"
            "Choose another --out, or remove the folder to make this run again."
        )
    return DONE if done else STARTED


def _asked(found: Json, point: Point, out: Path, done: bool) -> Json:
    """The manifest that a new run of the point would have, as far as it is known without ranks.

    The shards are compared only for finished runs, because the next session of an unfinished run
    compares them. A missing file does not make a result invalid.
    """
    settings = point.settings_in(out)
    simulated = point.images is not None
    files = simulated_inputs(settings, point.answers) if simulated else named_files(settings)
    inputs = digests({name: path for name, path in files.items() if path.is_file()})
    asked = {**found, "settings": settings.to_dict(), "inputs": inputs}
    shards = _shards_now(settings.shards) if done and not simulated else None
    if shards is None or _contents(shards) == _contents(found["shards"]):
        return asked
    return {**asked, "shards": shards}


def _contents(shards: Sequence[Json]) -> list[tuple[str, int]]:
    return sorted((shard["fingerprint"], shard["count"]) for shard in shards)


def _shards_now(paths: Sequence[str]) -> list[Json] | None:
    """Path, fingerprint and count of each shard; None if one cannot be read."""
    try:
        files = expand_paths([Path(path) for path in paths])
        return _opened(tuple((path, stamp_of(path)) for path in files))
    except (CollageError, OSError):
        return None


@lru_cache(maxsize=64)
def _opened(files: tuple[tuple[Path, Stamp], ...]) -> list[Json]:
    """Path, fingerprint and count of shards; cached, because points of an experiment share
    shards."""
    return [
        {"path": str(info.path), "fingerprint": info.fingerprint, "count": info.count}
        for info in inspect_sources([path for path, _ in files])
    ]


def _other_input(found: Json, point: Point) -> list[str]:
    """Lines about inputs of a simulated run, other than its settings, that differ from the
    record."""
    if point.images is None:
        return []
    simulated = found.get("simulated") or {}
    had = {"images": found["rows"], "costs": simulated.get("costs")}
    if isinstance(had["images"], dict):  # of a summary
        had["images"] = had["images"]["expected"]
    wanted: Json = {"images": point.images}
    costs = _costs(point)
    if costs is not None:
        wanted["costs"] = asdict(costs)
    lines = [f"{k}: {had[k]!r} before, {v!r} now" for k, v in wanted.items() if had[k] != v]
    return lines + _other_answers(found, simulated.get("answers"), point)


def _costs(point: Point) -> Costs | None:
    if not isinstance(point.costs, str):
        return point.costs
    path = Path(point.costs)
    return _costs_in(path, path.stat().st_mtime_ns if path.exists() else 0)


@lru_cache(maxsize=8)
def _costs_in(path: Path, stamp: int) -> Costs:
    """Costs of a run; cached, because reading a run takes a while."""
    return costs_of(read_results(path))


def _other_answers(found: Json, before: str | None, point: Point) -> list[str]:
    """A line if the answers differ from those of the run, compared by content if that is known."""
    had = (found.get("inputs") or {}).get("answers")
    path = simulated_inputs(point.settings, point.answers).get("answers")
    if had is None or path is None or not path.exists():
        same = before == point.answers
        return [] if same else [f"answers: {before!r} before, {point.answers!r} now"]
    has = digests({"answers": path})["answers"]
    return other_content("answers", (str(before), had), (str(point.answers), has))


def summary_alone(folder: Path) -> Json | None:
    """The summary of a simulation without rows, which includes its settings; None if there is
    none."""
    found = read_summary(folder)
    return None if found is None else {"shards": [], **found}


def launches(points: Sequence[Point]) -> Iterator[tuple[int, list[Point]]]:
    """Groups consecutive points by the number of ranks that they need. Ranks are started once for
    each group."""
    for ranks, members in groupby(points, key=lambda point: point.ranks):
        yield ranks, list(members)


def check_plans(points: Sequence[Point], out: Path) -> None:
    """Open the shards and read the headers of the networks of all points, to find errors before the
    first run.

    Raises:
        UsageError, EnvironmentFault, DataFault: of the first point that cannot run.
    """
    from collage_mpi.job.plan import make_plan

    seen: set[tuple[str, ...]] = set()
    for point in points:
        values = point.settings.to_dict()
        key = tuple(json.dumps(values[name]) for name in _DECIDE_A_PLAN)
        if key not in seen:
            seen.add(key)
            make_plan(point.settings_in(out), point.ranks).shards.close()


def run_points(
    points: Sequence[Point],
    out: Path,
    worker_group: WorkerGroup,
    stop_reason: Callable[[], str | None],
) -> int:
    """On rank 0, run the points one after another on the same ranks. Returns the worst exit code.

    Finished runs are skipped, and unfinished ones are resumed. The first run that stays incomplete
    is the last one, because it was stopped, or its ranks are lost.
    """
    from collage_mpi.job.run import Ask, run_session

    worst = ExitCode.COMPLETE
    for number, point in enumerate(points, start=1):
        found = state(point, out)
        if found == DONE:
            continue
        settings = point.settings_in(out)
        print(f"[{number}/{len(points)}] {point.name}", flush=True)
        outcome = run_session(settings, worker_group, Ask(stop_reason, resume=found == STARTED))
        summary = outcome.summary or summarise(open_run(outcome.out))
        print(f"[{number}/{len(points)}] {outcome.status}: {_told(summary)}", flush=True)
        if outcome.exit_code is ExitCode.INCOMPLETE:
            print(f"incomplete: {outcome.reason}; the same command goes on", flush=True)
            return int(outcome.exit_code)
        worst = max(worst, outcome.exit_code, key=SEVERITY.index)
    return int(worst)


def simulate_points(
    experiment: Experiment, points: Sequence[Point], out: Path, processes: int
) -> None:
    """Simulate every point. An interrupted simulation starts again.

    The images of a seed begin where those of the previous seed end, so that repeats do not use the
    same answers. Runs with the same seed use the same images.

    Raises:
        UsageError, EnvironmentFault, DataFault: a point cannot be simulated, which is checked
            before the first simulation; or a file cannot be read or written.
    """
    todo = [(point, found) for point in points if (found := state(point, out)) != DONE]
    jobs = []
    for point, _ in todo:
        assert point.images is not None
        settings = point.settings_in(out)
        first = (point.draft.seed or 0) * point.images
        costs = _costs(point) or Costs()
        job = SimulatedJob(settings, point.images, costs, point.answers, experiment.rows, first)
        check_job(job)
        jobs.append(job)
    for point, found in todo:
        if found == STARTED:  # a folder that holds no run is not removed
            shutil.rmtree(out / point.name)
    for number, (job, summary) in enumerate(run_jobs(jobs, processes), start=1):
        name = Path(job.settings.out).name
        print(f"[{number}/{len(todo)}] {name}: {_told(summary)}", flush=True)


def _told(summary: Json) -> str:
    group, price = summary["latency"]["group"], summary["price"]
    numbers = {name: group[f"{name}_ms"] for name in ("p50", "p95", "p99")}
    shown = ", ".join(f"{n} {'n/a' if v is None else f'{v:.1f} ms'}" for n, v in numbers.items())
    share = price["collage_share"] if price["collage_ranks"] else None
    collage = "" if share is None else f", collage share {share:.1%}"
    return f"{group['groups']} groups, {shown}{collage}"
