"""A snapshot of a running job, for who looks into its folder.

Owns: what is taken from the scheduler, the totals and the watch over ranks.
Does not know: when a snapshot is due, files (results/status).

Rank 0 knows all of it anyway, so nothing is counted for it in the loop; the snapshot itself is
O(ranks), once in a few seconds.
"""

from __future__ import annotations

from typing import Any

from collage_mpi.faults.failure_detector import FailureDetector
from collage_mpi.job.recorder import Totals
from collage_mpi.results.status import ENDING, RUNNING
from collage_mpi.scheduler import Scheduler


def snapshot(
    scheduler: Scheduler, totals: Totals, detector: FailureDetector, total: int
) -> dict[str, Any]:
    """Progress, and every rank with its state and how many tasks it has.

    Args:
        totals: of images so far.
        total: images of the session.
    """
    lost = {loss["rank"]: loss for loss in detector.describe()}
    ranks: list[dict[str, Any]] = [
        {
            "rank": rank.id,
            "host": rank.host,
            "kinds": sorted(rank.kinds),
            "state": rank.status,
            "tasks": rank.load,
        }
        for rank in scheduler.dispatch.ranks.values()
    ]
    for rank, loss in lost.items():
        if rank not in scheduler.dispatch.ranks:  # before it was ready
            seen = {"rank": rank, "host": loss["host"], "kinds": loss["kinds"]}
            ranks.append({**seen, "state": "lost", "tasks": 0})
    for record in ranks:
        if record["rank"] in lost:
            record["why"] = lost[record["rank"]]["why"]
    return {
        "state": ENDING if totals.images >= total else RUNNING,
        "done": totals.images,
        "errors": totals.errors,
        "by_collage": totals.collage,
        "ranks": ranks,
    }
