"""The runs of an experiment: which are done, which go on, and the table of them all.

Owns: the state of a point's folder, one session after the other on a crew, table.csv.
Does not know: how points are expanded, how ranks are started.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.config import RunSettings
from collage_mpi.errors import EnvironmentFault, ExitCode, UsageError
from collage_mpi.experiment import Experiment, Point

if TYPE_CHECKING:
    from collage_mpi.crew import Crew

SEVERITY = (ExitCode.COMPLETE, ExitCode.COMPLETE_WITH_ERRORS, ExitCode.DATA)
NEW, STARTED, DONE = "new", "started", "done"
TABLE = "table.csv"
LATENCY = ("p50_ms", "p95_ms", "p99_ms", "p99.9_ms", "std_ms", "over_3_medians")
PRICE = ("collage_share", "cost_ratio", "wasted_work", "ranks", "rank_seconds_per_image")

Json = dict[str, Any]


def state(point: Point, out: Path) -> str:
    """How far the point's run in `out` is: NEW, STARTED or DONE.

    Raises:
        UsageError: the folder holds a run with other settings than the point's.
        DataFault: the run's manifest is damaged.
    """
    from collage_mpi.results.manifest import MANIFEST, MARKER, differences, read_manifest

    folder = out / point.name
    alone = _summary_alone(folder)
    if alone is None and not (folder / MANIFEST).exists():
        return NEW
    found = read_manifest(folder) if alone is None else alone
    settings = point.settings_in(out).to_dict()
    changed = differences(found, {**found, "settings": settings})
    if changed:
        listed = "\n  ".join(changed)
        raise UsageError(
            f"{folder} holds a run with other settings than the experiment:\n  {listed}\n"
            "Choose another --out, or remove that folder."
        )
    return DONE if alone is not None or (folder / MARKER).exists() else STARTED


def _summary_alone(folder: Path) -> Json | None:
    """What a simulation without rows left; its settings are in it."""
    if not (folder / "summary.json").exists() or (folder / "manifest.json").exists():
        return None
    from collage_mpi.simulate_runs import read_summary

    found = read_summary(folder)
    return None if found is None else {"shards": [], "rows": None, **found}


def launches(points: Sequence[Point]) -> Iterator[tuple[int, list[Point]]]:
    """(ranks, points that follow each other and need so many): each is one start of ranks."""
    for ranks, members in groupby(points, key=lambda point: point.ranks):
        yield ranks, list(members)


def check_plans(points: Sequence[Point], out: Path) -> None:
    """Open the shards and read the networks' headers of all points, each combination once.

    Raises:
        UsageError, EnvironmentFault, DataFault: the first point that cannot be run.
    """
    from collage_mpi.plan import make_plan

    seen: set[tuple[object, ...]] = set()
    for point in points:
        s = point.settings
        key = (
            s.shards,
            s.single,
            s.collage,
            s.side,
            s.cell_px,
            s.scheme,
            s.trace_file,
            s.arrival_file,
        )
        if key not in seen:
            seen.add(key)
            make_plan(point.settings_in(out), point.ranks).shards.close()


def run_points(
    points: Sequence[Point], out: Path, crew: Crew, stop_reason: Callable[[], str | None]
) -> int:
    """On rank 0: the points one after the other on the same ranks; the exit code of the worst.

    Finished runs are skipped, unfinished ones go on. Ends at the first run that stays
    incomplete: it was stopped, or its ranks are gone.
    """
    from collage_mpi.session import run_session

    worst = ExitCode.COMPLETE
    for number, point in enumerate(points, start=1):
        found = state(point, out)
        if found == DONE:
            continue
        settings = point.settings_in(out)
        print(f"[{number}/{len(points)}] {point.name}", flush=True)
        outcome = run_session(settings, crew, resume=found == STARTED, stop_reason=stop_reason)
        print(f"[{number}/{len(points)}] {outcome.status}: {_in_a_line(settings)}", flush=True)
        if outcome.exit_code is ExitCode.INCOMPLETE:
            print(f"incomplete: {outcome.reason}; the same command goes on", flush=True)
            return int(outcome.exit_code)
        worst = max(worst, outcome.exit_code, key=SEVERITY.index)
    return int(worst)


def simulate_points(
    experiment: Experiment, points: Sequence[Point], out: Path, processes: int = 1
) -> None:
    """Every point on virtual time. An unfinished one is told to be removed: none goes on.

    Raises:
        UsageError, EnvironmentFault, DataFault: the first point that cannot be simulated,
            before any is; a file that cannot be read or written.
    """
    from collage_mpi.costs import Costs, read_costs
    from collage_mpi.simulate_runs import Job, check_job, run_jobs

    assert experiment.images is not None
    costs = read_costs(Path(experiment.costs)) if experiment.costs else Costs()
    todo = [point for point in points if state(point, out) != DONE]
    jobs = []
    for point in todo:
        settings = point.settings_in(out)
        jobs.append(Job(settings, experiment.images, costs, experiment.answers, experiment.rows))
        check_job(jobs[-1])
    for number, (job, summary) in enumerate(run_jobs(jobs, processes), start=1):
        name = Path(job.settings.out).name
        print(f"[{number}/{len(todo)}] {name}: {_told(summary)}", flush=True)


def _in_a_line(settings: RunSettings) -> str:
    from collage_mpi.results import read_results, summarise

    return _told(summarise(read_results(settings.out)))


def _told(summary: Json) -> str:
    group, share = summary["latency"]["group"], summary["price"]["collage_share"]
    numbers = {name: group[f"{name}_ms"] for name in ("p50", "p95", "p99")}
    shown = ", ".join(f"{n} {'n/a' if v is None else f'{v:.1f} ms'}" for n, v in numbers.items())
    collage = "" if share is None else f", collage share {share:.1%}"
    return f"{group['groups']} groups, {shown}{collage}"


def table_rows(experiment: Experiment, out: Path) -> tuple[list[Json], list[Point]]:
    """One row a run that is there, with None where the sample does not support a number.

    Returns:
        The rows, and the points that have no run yet.
    """
    from collage_mpi.results import read_results, summarise

    rows, missing = [], []
    for point in experiment.points:
        if state(point, out) == NEW:
            missing.append(point)
            continue
        alone = _summary_alone(out / point.name)
        summary = summarise(read_results(out / point.name)) if alone is None else alone
        group, values = summary["latency"]["group"], point.settings.to_dict()
        rows.append(
            {
                "index": point.index,
                "name": point.name,
                "how": experiment.how,
                "status": summary["status"],
                **{key: _cell(values[key]) for key in experiment.varied},
                "groups": group["groups"],
                **{key: group[key] for key in LATENCY},
                "accuracy": summary["accuracy"]["overall"]["accuracy"],
                **{key: summary["price"][key] for key in PRICE},
                "valid": summary["validity"]["valid"],
            }
        )
    return rows, missing


def _cell(value: Any) -> Any:
    return " ".join(map(str, value)) if isinstance(value, list) else value


def write_table(experiment: Experiment, out: Path) -> tuple[Path, int, list[Point]]:
    """Write `out`/table.csv, whole or not at all.

    Returns:
        Its path, the number of runs in it, and the points that have no run yet.

    Raises:
        EnvironmentFault: no run is there, or the file cannot be written.
    """
    from collage_mpi.results.atomic import write_atomic

    rows, missing = table_rows(experiment, out)
    if not rows:
        raise EnvironmentFault(f"{out} holds no run of this experiment yet: leave out --table")
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    path = out / TABLE
    try:
        write_atomic(path, (text.getvalue().encode(),))
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be written: {error.strerror or error}") from error
    return path, len(rows), missing
