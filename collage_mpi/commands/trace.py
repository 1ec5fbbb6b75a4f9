"""`collage-mpi trace`: records a run's service times as a trace, and fits delay models to a
trace.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from collage_mpi.commands.parser import Command, Commands
from collage_mpi.errors import UsageError
from collage_mpi.settings.flags import Arguments
from collage_mpi.system.fields import REQUIRED, setting
from collage_mpi.system.files import writing

if TYPE_CHECKING:
    import numpy as np

    from collage_mpi.workload.fitting import FittedModel


@dataclass(frozen=True, kw_only=True)
class RecordArguments(Arguments):
    """The arguments of `trace record`."""

    runs: tuple[str, ...] = setting(REQUIRED, "folders of runs", metavar="RUN", positional=True)
    out: Path = setting(REQUIRED, "trace file to write, .npy", metavar="FILE", endings=(".npy",))
    min_tasks: int = setting(1, "leave out ranks that did fewer tasks")


@dataclass(frozen=True, kw_only=True)
class FitArguments(Arguments):
    """The arguments of `trace fit`."""

    file: str = setting(
        REQUIRED,
        "trace file: .npy of shape (machines, requests), in seconds",
        metavar="TRACE",
        positional=True,
    )
    row: int | None = setting(
        None, "fit only this machine of the trace", unset="all machines together", metavar="R"
    )
    model: str | None = setting(None, "fit only this model", unset="all models", metavar="MODEL")
    out: Path | None = setting(
        None,
        "write the settings of the best fit to this .toml file, for --settings",
        metavar="FILE",
        endings=(".toml",),
    )


def record(args: RecordArguments) -> int:
    """Write the service times of runs as a trace, and describe it. Returns 0."""
    from collage_mpi.results import read_results
    from collage_mpi.results.slow_ranks import record_trace
    from collage_mpi.workload.trace import save_trace

    runs = [read_results(run) for run in args.runs]
    found = record_trace(runs, args.min_tasks)
    save_trace(args.out, found.times_s)
    machines, requests = found.times_s.shape
    print(f"wrote {args.out}: {machines} machines, {requests:,} service times each")
    if found.cut:
        print(
            f"{found.cut:,} service times were left out at the ends of rows, because all rows need "
            "the length of the shortest"
        )
    for run, rank, tasks in found.short:
        print(f"rank {rank} of {run} was left out: it did only {tasks} tasks")
    print(_describe(found.times_s))
    return 0


def fit(args: FitArguments) -> int:
    """Fit delay models to a trace and print them, the best first. Returns 0."""
    from collage_mpi.workload.fitting import fit_trace
    from collage_mpi.workload.trace import load_trace

    times_s = load_trace(args.file)
    if args.row is not None:
        if not 0 <= args.row < len(times_s):
            raise UsageError(f"--row {args.row}: the trace has rows 0 to {len(times_s) - 1}")
        times_s = times_s[args.row : args.row + 1]
    fits = fit_trace(times_s)
    if args.model is not None:
        known = [each.model for each in fits]
        fits = [each for each in fits if each.model == args.model]
        if not fits:
            raise UsageError(
                f"--model {args.model} was not fitted to this trace: choose {', '.join(known)}"
            )
    print(_describe(times_s))
    print("KS: largest distance between the distributions, 0 is the same, 1 the farthest\n")
    for each in fits:
        print(f"{each.model:<10} KS {each.ks:.3f}   {each.flags()}")
    if args.out:
        _write(args.out, fits[0], args.file)
        print(f"\nwrote {args.out}: collage-mpi run --settings {args.out} ...")
    return 0


def _describe(times_s: np.ndarray) -> str:
    import numpy as np

    ms = times_s * 1e3
    medians = np.median(ms, axis=1)
    line = f"{ms.size:,} service times, median {np.median(ms):.4g} ms, "
    line += f"p99 {np.quantile(ms, 0.99):.4g} ms, longest {ms.max():.4g} ms"
    if len(medians) > 1:
        line += f"; medians of the machines {medians.min():.4g} to {medians.max():.4g} ms"
        if medians.max() > 1.5 * medians.min():
            line += (
                "\nThe machines differ, but a model of all machines together has none that is "
                "slow all the time. Use the trace itself, fit one --row, or add --slow-ranks."
            )
    return line


def _write(path: Path, fit: FittedModel, source: str) -> None:
    lines = [f"# {fit.model} fitted to {Path(source).name}, KS distance {fit.ks:.3f}"]
    lines += [
        f"{name} = " + (json.dumps(value) if isinstance(value, str) else f"{value:.6g}")
        for name, value in fit.settings.items()
    ]
    with writing(path), path.open("x", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")


COMMAND = Commands(
    "WHAT",
    {
        "record": Command(
            record,
            RecordArguments,
            "make a trace of the service times of the single ranks in finished runs",
        ),
        "fit": Command(
            fit,
            FitArguments,
            "fit delay models to a trace and print the flags that inject such delays",
        ),
    },
    epilog="For example: collage-mpi trace record runs/real --out times.npy; then collage-mpi "
    "trace fit times.npy, or run --straggler trace --trace-file times.npy",
)
