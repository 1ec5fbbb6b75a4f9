"""The time that rank 0 and messages take: stated, or taken from a real run."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from collage_mpi.errors import DataFault
from collage_mpi.kinds import SINGLE
from collage_mpi.system.fields import setting

if TYPE_CHECKING:
    from collage_mpi.results import Results

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


def costs_of(run: Results) -> Costs:
    """The costs that a real run measured.

    Receive, send and encode are means that its rank 0 recorded. The travel time of a message is
    half of the median time from send to answer without the rank's service time, over tasks that
    were sent to an idle rank.

    Raises:
        DataFault: the run did not measure costs, or has too few such tasks.
    """
    rank0, service = run.manifest.get("rank0"), run.manifest.get("idle_service_ns") or {}
    if not isinstance(rank0, dict):
        raise DataFault(
            f"{run.path} measured no costs of rank 0 (simulated, or cut off): "
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

    from collage_mpi.rows import OUTCOME_CODE

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
    way_ns = wanted["done_ns"] - wanted["sent_ns"] - wanted["compute_ns"]
    return float(np.median(way_ns)) / 2
