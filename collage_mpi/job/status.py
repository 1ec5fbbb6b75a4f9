"""How a running job stands: the progress line's figures, and a snapshot for its folder.

Rank 0 knows all of it anyway, so nothing is counted for it in the loop; the snapshot itself is
O(ranks), once in a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from collage_mpi.errors import CollageError
from collage_mpi.faults.failure_detector import FailureDetector
from collage_mpi.job.lead import Lead
from collage_mpi.job.recorder import Totals
from collage_mpi.kinds import COLLAGE
from collage_mpi.results.pending import status_folder
from collage_mpi.results.status import ENDING, RUNNING, read_status
from collage_mpi.scheduler import Scheduler
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.system.progress import StatusReporter


class Told:
    """How far the job is, for people. As in the summary, rate and share leave the warm-up out."""

    def __init__(self, status: StatusReporter, settings: RunSettings) -> None:
        self._status = status
        self._warmup = settings.teams * settings.warm_groups * settings.group_size
        self._collages = settings.uses(COLLAGE)
        self._before = Totals()  # of the warm-up

    def tell(self, totals: Totals, lost_ranks: int) -> None:
        """Of all images of the session so far."""
        if self._before.images < self._warmup <= totals.images:
            self._before = replace(totals)
            self._status.begin(totals.images)
        fields: dict[str, Any] = {}
        if self._collages:
            measured = max(1, totals.images - self._before.images)
            share = (totals.collage - self._before.collage) / measured
            fields["collage_share"] = f"{100 * share:.1f} %"
        if lost_ranks:
            fields["lost_ranks"] = lost_ranks
        self._status.update(totals.images, **fields)


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
        "audited": totals.audited,
        "differing": totals.differing,
        "ranks": ranks,
    }


def ranks_of_others(
    out: Path, lead: Lead, world_of: Callable[[int], list[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """The ranks of the other teams, as each has last said in a status of its own.

    Those of a team that was given up are lost: where it has said nothing `world_of` tells them.
    """
    for team in lead.teams[1:]:
        try:
            ranks = read_status(status_folder(out, team.session))["ranks"]
        except CollageError:
            ranks = []  # it has none yet
        if team.gone is not None:
            ranks = ranks or [{"host": "", **rank} for rank in world_of(team.number)[1:]]
            ranks = [{**rank, "state": "lost", "tasks": 0, "why": team.gone} for rank in ranks]
        yield from ranks
