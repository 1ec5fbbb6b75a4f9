"""One run from the point of view of a team that is not the lead's.

Owns: the order of its steps: hear of the run, start the workers, classify, hand over.
Does not know: the manifest's writing, other teams, who is sent what.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from collage_mpi.errors import CollageError, EnvironmentFault
from collage_mpi.job.handshake import ServiceCosts, handshake, readers, roll_call
from collage_mpi.job.messages import Begin, Done, Fault, Ready, Start
from collage_mpi.job.plan import Plan, make_plan
from collage_mpi.job.provenance import job_facts
from collage_mpi.job.session import (
    build_coordinator,
    build_encoder,
    changes,
    final_facts,
    open_reader,
    publisher,
)
from collage_mpi.job.team import Dismissed, LeadLink, LeadLost, Supply, order_digest
from collage_mpi.job.worker_group import WorkerGroup
from collage_mpi.results.manifest import plain, read_manifest
from collage_mpi.results.parts import sessions_of
from collage_mpi.results.pending import entry_path, status_folder
from collage_mpi.results.reader import label_of
from collage_mpi.results.row_sink import RowSink
from collage_mpi.results.status import StatusFiles
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.system.files import write_atomic
from collage_mpi.system.limits import fault_of
from collage_mpi.system.progress import NoLines, StatusReporter

StopReason = Callable[[], str | None]
LATE_FILE_S = 90.0  # a file server shows what another host has made up to a minute late


def run_team(
    settings_of: Callable[[], RunSettings],
    worker_group: WorkerGroup,
    link: LeadLink,
    stop_reason: StopReason,
) -> int:
    """The team's part of a run; the exit code that the lead gave.

    Args:
        settings_of: makes the run's settings, once its manifest is there.
    """
    try:
        begin = link.wait_for(Begin, stop_reason)
        session = TeamSession(settings_of(), worker_group, link, begin, stop_reason)
        try:
            session.run()
        finally:
            session.plan.shards.close()
    except Dismissed as told:
        return int(told.exit_code)
    except Exception as error:
        fault = fault_of(error)
        if fault is None:
            raise
        link.say(Fault(str(fault)[:2000], int(fault.exit_code)))
    return link.wait_for_the_end()


def manifest_of(
    out: Path, begin: Begin, why_stop: StopReason, late_s: float = LATE_FILE_S
) -> dict[str, Any]:
    """That of the run which the lead has begun, as soon as it is seen here.

    Raises:
        EnvironmentFault: there is none after that time, or that of another run.
        LeadLost: the job is to stop.
        CollageError: it cannot be read.
    """
    until_s = time.monotonic() + late_s
    while True:
        late = time.monotonic() > until_s
        reason = why_stop()
        if reason is not None:
            raise LeadLost(reason)
        try:
            found = read_manifest(out)
            if found["run_id"] == begin.run_id and begin.session in sessions_of(found):
                return found
        except CollageError:
            if late:
                raise
        if late:
            raise EnvironmentFault(
                f"{out}: holds another run here than where the lead is: --out must be in a "
                "file system that the hosts of all coordinators share"
            )
        time.sleep(0.2)


class TeamSession:
    """A team's session, from its plan to its last part."""

    def __init__(
        self,
        settings: RunSettings,
        worker_group: WorkerGroup,
        link: LeadLink,
        begin: Begin,
        stop_reason: StopReason,
    ) -> None:
        self._worker_group, self._link, self._begin = worker_group, link, begin
        self._stop_reason = stop_reason
        self.out = Path(settings.out)
        self._manifest = manifest_of(self.out, begin, self._why_stop)
        team = begin.session - self._manifest["session"]
        size = worker_group.transport.size
        self.plan: Plan = make_plan(settings, size, self._manifest["shards"], team=team)
        if order_digest(self.plan) != begin.order:
            self.plan.shards.close()
            raise EnvironmentFault(
                f"the shards or settings of rank {self.plan.placement.coordinator} are not those "
                "of rank 0: they give the images another order"
            )

    def run(self) -> None:
        """Classify what the lead grants, until it says that all is done."""
        plan, worker_group, link = self.plan, self._worker_group, self._link
        encoder = build_encoder(plan)
        hellos = handshake(plan, worker_group, encoder, self._why_stop)
        reading = readers(plan, hellos)
        rows = RowSink(self.out, self._manifest, self._begin.session)
        held = {
            kind: text for hello in hellos.values() for kind, text in hello.fingerprints.items()
        }
        link.say(Ready(held))
        start = link.wait_for(Start, self._stop_reason)
        worker_group.start(start.cost_ratio, start.batch_costs)
        costs = ServiceCosts({}, {}, start.cost_ratio, None, start.batch_costs)
        with open_reader(plan, plan.order, encoder, reading) as reader:
            supply = Supply(link, plan, reader, rows)
            every_s = plan.settings.status_every_s
            progress = StatusReporter(None, "", NoLines(), every_s=every_s)
            published = self._status(every_s)
            coordinator = build_coordinator(
                plan,
                worker_group,
                rows,
                encoder,
                reader,
                lambda: link.lost or supply.halted or self._stop_reason(),
                progress,
                costs=costs,
                reading=reading,
                supply=supply,
            )
            total = self._manifest["rows"]
            progress.follow(publisher(published, rows, coordinator, worker_group, total))
            link.progress = lambda: supply.progress
            finish = coordinator.run(*roll_call(plan, worker_group, hellos))
            progress.close()
        published.end(finish.status)
        worker_group.end()
        fault = rows.drain()
        if fault is not None:
            raise fault
        supply.tell_of_parts()
        link.say(supply.progress)
        job = job_facts(worker_group.transport.library)
        final = final_facts(plan, coordinator, hellos, costs, job)
        final["cells_ns"] = reader.cells_ns
        final["read_by"] = sorted(reading) or [plan.placement.coordinator]
        final["lost"] = worker_group.detector.describe()
        self._leave(rows, finish.status, final)
        lost, changed = (
            tuple(text[:500] for text in texts[:20])
            for texts in (list(plan.shards.lost.values()), changes(plan.shards))
        )
        link.say(Done(finish.status, finish.reason, lost, changed))

    def _status(self, every_s: float) -> StatusFiles:
        """How the team stands, for the lead."""
        manifest, session = self._manifest, self._begin.session
        folder = status_folder(self.out, session)
        with suppress(OSError):  # it can be done without
            folder.mkdir(exist_ok=True)
        facts = {
            "run_id": manifest["run_id"],
            "session": session,
            "label": label_of(manifest),
            "total": manifest["rows"],
            "before": 0,
        }
        return StatusFiles(folder, facts, every_s, lambda: None)

    def _leave(self, rows: RowSink, status: str, final: dict[str, Any]) -> None:
        """What the manifest is to have of the session, which may be more than a message holds."""
        session = self._begin.session
        entry = {"session": session, "status": status, "rows": rows.counts, "final": final}
        text = json.dumps(entry, default=plain).encode()
        write_atomic(entry_path(self.out, session), (text,))

    def _why_stop(self) -> str | None:
        return self._link.stop_reason() or self._stop_reason()
