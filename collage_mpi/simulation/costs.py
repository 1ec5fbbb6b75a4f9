"""The time that rank 0 and messages take: stated, read from a file, or taken from a real run."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from collage_mpi.errors import DataFault
from collage_mpi.kinds import SINGLE
from collage_mpi.system.fields import setting
from collage_mpi.system.files import reading, require_regular, save_file

if TYPE_CHECKING:
    from collage_mpi.results import Results

FORMAT, VERSION = "collage-mpi costs", 1
LEAST_TASKS = 20  # sent to an idle rank: the travel time of messages is measured on these


@dataclass(frozen=True)
class Costs:
    """Times in ns. The defaults were measured on a busy two-core host at 28 px."""

    receive_ns: int = setting(
        60_000, "time that rank 0 spends on an answer: poll, decode, decide, record"
    )
    send_ns: int = setting(40_000, "time that rank 0 spends on a send or a cancel")
    encode_ns: int = setting(30_000, "time that rank 0 spends on pasting a collage")
    network_ns: int = setting(
        50_000, "time that a message takes, including the wait until it is noticed"
    )
    single_ns: int = setting(
        5_000_000, "service time of the single network, if no delay model is set"
    )

    def describe(self) -> str:
        """One line, in us."""
        parts = [f"{name.removesuffix('_ns')} {ns / 1e3:.4g}" for name, ns in asdict(self).items()]
        return ", ".join(parts) + " us"


def read_costs(path: Path) -> Costs:
    """From a file that `save_costs` wrote, or from the folder of a real run.

    Raises:
        EnvironmentFault: it cannot be read.
        DataFault: it is no file of costs, or the run measured none.
    """
    if path.is_dir():
        from collage_mpi.results import read_results

        return costs_of(read_results(path))
    with reading(f"costs {path}", "no JSON"):
        require_regular(path)
        content = json.loads(path.read_text(encoding="utf-8"))
    head = (content.get("format"), content.get("version")) if isinstance(content, dict) else None
    if head != (FORMAT, VERSION):
        raise DataFault(
            f"costs {path}: no {FORMAT!r} of version {VERSION}: collage-mpi bench costs RUN --out "
            "FILE writes one"
        )
    found = {spec.name: content.get(spec.name) for spec in fields(Costs)}
    for name, value in found.items():
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (number and 0 <= value < 1e15):
            raise DataFault(f"costs {path}: {name} is {value!r}; it needs ns, 0 or more")
    return Costs(**{name: round(value) for name, value in found.items()})


def save_costs(path: Path, costs: Costs, source: str) -> None:
    """Write them as JSON.

    Raises:
        EnvironmentFault: the file cannot be written.
    """
    content = {"format": FORMAT, "version": VERSION, "measured_on": source, **asdict(costs)}
    save_file(path, json.dumps(content, indent=1).encode(), b"\n")


def costs_of(run: Results) -> Costs:
    """The costs that a real run measured.

    Receive, send and encode are means that its rank 0 recorded. The travel time of a message is
    half of the median time from send to answer without the rank's service time (its draw or its
    compute time, whichever is longer), over tasks that were sent to an idle rank.

    Raises:
        DataFault: the run did not measure costs, or has too few such tasks.
    """
    rank0, service = run.manifest.get("rank0"), run.manifest.get("idle_service_ns") or {}
    if not isinstance(rank0, dict):
        raise DataFault(
            f"{run.path} measured no costs of rank 0 (simulated, cut off, or of an older version): "
            "name a complete real run"
        )
    return Costs(
        receive_ns=round(rank0["receive_ns"]),
        send_ns=round(rank0["send_ns"]),
        encode_ns=round(rank0["encode_ns"]),
        network_ns=max(0, round(_way_ns(run))),
        single_ns=round(service.get(SINGLE, Costs.single_ns)),
    )


def _way_ns(run: Results) -> float:
    import numpy as np  # not for --help

    from collage_mpi.results.rows import OUTCOME_CODE

    tasks = np.sort(run.measured_tasks, order=("session", "rank", "sent_ns"))
    same = (tasks["rank"][1:] == tasks["rank"][:-1]) & (
        tasks["session"][1:] == tasks["session"][:-1]
    )
    # A rank's tasks end in the order they were sent, so the one before tells when it was free.
    idle = np.ones(len(tasks), bool)
    idle[1:] = ~same | (tasks["done_ns"][:-1] <= tasks["sent_ns"][1:])
    wanted = tasks[idle & (tasks["outcome"] == OUTCOME_CODE["answered"])]
    if len(wanted) < LEAST_TASKS:
        raise DataFault(
            f"{run.path} has {len(wanted)} measured tasks that found their rank idle; a message's "
            f"way needs {LEAST_TASKS}: run longer, or with --between drain"
        )
    service_ns = np.maximum(wanted["drawn_ns"], wanted["compute_ns"])
    return float(np.median(wanted["done_ns"] - wanted["sent_ns"] - service_ns)) / 2
