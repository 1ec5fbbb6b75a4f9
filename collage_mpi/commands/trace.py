"""`collage-mpi trace record`: records the service times of runs as a trace."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from collage_mpi.commands.parser import Command, Commands
from collage_mpi.settings.flags import Arguments
from collage_mpi.system.fields import REQUIRED, setting

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True, kw_only=True)
class RecordArguments(Arguments):
    """The arguments of `trace record`."""

    runs: tuple[str, ...] = setting(REQUIRED, "folders of runs", metavar="RUN", positional=True)
    out: Path = setting(REQUIRED, "trace file to write, .npy", metavar="FILE", endings=(".npy",))
    min_tasks: int = setting(1, "leave out ranks that did fewer tasks")


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
                "slow all the time. Use the trace itself, or add --slow-ranks."
            )
    return line


COMMAND = Commands(
    "WHAT",
    {
        "record": Command(
            record,
            RecordArguments,
            "make a trace of the service times of the single ranks in finished runs",
        ),
    },
    epilog="For example: collage-mpi trace record runs/real --out times.npy; then collage-mpi "
    "simulate --straggler trace --trace-file times.npy",
)
