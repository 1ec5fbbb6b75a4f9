"""A run from its settings to its results, on rank 0 and on the coordinators of other teams.

Each coordinator drives a `TeamSession` for its own team. Rank 0 also claims the output, leads the
teams, chooses thresholds and closes the run.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.core import events as ev
from collage_mpi.core.settings import batch_factor
from collage_mpi.errors import CollageError, EnvironmentFault, ExitCode
from collage_mpi.job.calibration import Asked, Judge, Pair, pairs_of
from collage_mpi.job.changeover import Changeover, least_batch
from collage_mpi.job.handshake import (
    ServiceCosts,
    kept_columns,
    most_together,
    refuse_other_networks,
    service_costs,
    start_of,
    tell_tunings,
    without_room,
)
from collage_mpi.job.lead import build_lead, build_lease_book, ranks_of_others
from collage_mpi.job.leases import count
from collage_mpi.job.messages import Begin, Done, Fault, Ready, Start
from collage_mpi.job.plan import Plan, make_plan, warn_of_one_class_groups, warn_of_small_pictures
from collage_mpi.job.provenance import (
    batch_facts,
    final_facts,
    job_facts,
    make_manifest,
    planned_world,
)
from collage_mpi.job.resume import has_run
from collage_mpi.job.session import Audience, TeamSession
from collage_mpi.job.team import Dismissed, LeadLink, LeadLost, order_digest
from collage_mpi.job.worker_group import WorkerGroup
from collage_mpi.kinds import KIND
from collage_mpi.results import INDEX_FOLDER, RunWriter
from collage_mpi.results.claim import Patience
from collage_mpi.results.manifest import COMPLETE, KEPT_KEYS, plain, read_manifest
from collage_mpi.results.parts import sessions_of
from collage_mpi.results.pending import entry_path, status_folder
from collage_mpi.results.reader import label_of, open_run
from collage_mpi.results.row_sink import RowSink
from collage_mpi.results.status import StatusFiles
from collage_mpi.rows import IMAGES
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards import ShardSet
from collage_mpi.shards.reader import member_changes
from collage_mpi.system.files import write_atomic
from collage_mpi.system.limits import fault_of
from collage_mpi.system.progress import NoLines
from collage_mpi.system.tell import tell

StopReason = Callable[[], str | None]
LATE_FILE_S = 90.0  # a file server may show another host's new file up to a minute late

EXIT_CODES = {
    ev.COMPLETE: ExitCode.COMPLETE,
    ev.COMPLETE_WITH_ERRORS: ExitCode.COMPLETE_WITH_ERRORS,
    ev.INCOMPLETE: ExitCode.INCOMPLETE,
}


@dataclass(frozen=True)
class SessionOutcome:
    """How a session ended."""

    status: str  # of the whole run: errors of earlier sessions count
    reason: str
    out: Path
    input_faults: tuple[str, ...] = ()  # shards that were not read in full, or have changed
    summary: dict[str, Any] | None = None  # of the run; None if nothing was left to do

    @property
    def exit_code(self) -> ExitCode:
        """The exit code: that of bad input if there is any, otherwise that of the status."""
        return ExitCode.DATA if self.input_faults else EXIT_CODES[self.status]


@dataclass(frozen=True)
class Ask:
    """How a session is to be run.

    Attributes:
        stop_reason: says why to stop, or None.
        resume: go on with the run in the settings' `out`, if there is one.
        retry_errors: as `resume`, and classify the images of error rows again.
        phase: name of the session in progress lines; "" for its scheme.
        brief: do not tell how the batch was chosen.
    """

    stop_reason: StopReason = lambda: None
    resume: bool = False
    retry_errors: bool = False
    phase: str = ""
    brief: bool = False

    @property
    def resumes(self) -> bool:
        """Whether an existing run is continued."""
        return self.resume or self.retry_errors


def run_session(settings: RunSettings, worker_group: WorkerGroup, ask: Ask) -> SessionOutcome:
    """Run one session on rank 0, when MPI is up: plan, start, classify, close.

    Raises:
        UsageError, EnvironmentFault, DataFault: something does not fit, or fails. Rows that were
            written before are kept.
    """
    settings.require_inputs()
    resume = ask.resumes and has_run(settings.out)
    known = read_manifest(Path(settings.out)) if resume else {}
    plan = make_plan(settings, worker_group.transport.size, known)
    try:
        return LeadRun(plan, worker_group, known, ask).outcome()
    finally:
        plan.shards.close()


class LeadRun:
    """Rank 0's part of a session of a run."""

    def __init__(
        self, plan: Plan, worker_group: WorkerGroup, known: Mapping[str, Any], ask: Ask
    ) -> None:
        """`known`: the run's manifest from earlier sessions; {} for a new run."""
        self.plan, self.worker_group, self.known, self.ask = plan, worker_group, known, ask
        self.out = Path(plan.settings.out)
        self.job = job_facts(worker_group.transport.library)

    def outcome(self) -> SessionOutcome:
        """Run the session to its end."""
        warn_of_one_class_groups(self.plan)
        warn_of_small_pictures(self.plan)
        warn_of_bad_shards(self.plan.shards)
        # The output is claimed before 10 ranks load their weights: a bad --out fails at once.
        status = self._claim()
        if status is not None:
            return SessionOutcome(status, "every image had its row already", self.out)
        writer, final = self.writer, dict[str, Any]()
        status = ev.INCOMPLETE
        try:
            finish, final = self._classify()
            left_out = self.plan.shards.bad or self.lead.unread
            status = ev.INCOMPLETE if left_out else finish.status
        except CollageError as error:
            mistaken = error.exit_code is not ExitCode.INCOMPLETE  # an incomplete run is resumed
            if mistaken and not self.known and not writer.written:
                writer.discard()  # the corrected command may use the same --out
            raise
        finally:
            groups = self.worker_group, self.worker_group.others
            lost = [each for group in groups if group for each in group.detector.describe()]
            lacking = writer.close(status, summary=True, **final, lost=lost, job=self.job)
        status, reason = writer.manifest["status"], lacking or finish.reason
        stopped = finish.status == ev.INCOMPLETE  # then only that is told
        faults = () if stopped else self._input_faults(status)
        return SessionOutcome(status, reason, self.out, faults, writer.summary)

    def _claim(self) -> str | None:
        """Claim the output of a new or resumed run; the run's status if nothing is left to do."""
        ask, out, plan = self.ask, self.out, self.plan
        manifest = {**make_manifest(plan), "job": self.job}
        patience = Patience(stop_reason=ask.stop_reason, tell=tell)
        done = np.empty(0)
        if not self.known:
            self.writer = RunWriter.create(out, manifest, patience=patience)
        else:
            for line in member_changes(plan.shards, self.known["shards"], out / INDEX_FOLDER):
                tell(f"warning: {line}")
            status = RunWriter.finished(out, manifest, retry_errors=ask.retry_errors)
            if status is not None:
                return status
            manifest |= {key: self.known[key] for key in KEPT_KEYS if key in self.known}
            manifest["scheme"] = _one_after_the_other(self.known.get("scheme"), manifest["scheme"])
            self.writer, done = RunWriter.reopen(
                out, manifest, retry_errors=ask.retry_errors, patience=patience
            )
        with suppress(OSError):  # workers then list the members themselves
            plan.shards.save_indexes(out / INDEX_FOLDER)
        self.lacking = plan.lacking(done)
        self.label = label_of(manifest)
        return None

    def _classify(self) -> tuple[ev.Finish, dict[str, Any]]:
        """Lead all teams, and be team 0; how the session ended, and its facts for the manifest."""
        plan, ask, writer, group = self.plan, self.ask, self.writer, self.worker_group
        total = count(self.lacking)
        facts = {"label": self.label, "total": total, "before": len(plan.order) - total}
        files = writer.publish(facts, plan.settings.status_every_s)
        assert group.others is not None
        lead = self.lead = build_lead(plan, group.others, writer, self.lacking, ask.stop_reason)
        audience = Audience(files, self.lacking, ask.phase)
        with TeamSession(plan, group, lead, writer, audience, ask.stop_reason) as session:
            networks = session.make_ready()
            costs = self._costs(session, networks)
            self.plan = plan = plan.at_batch(costs.batch)
            lead.group_by(build_lease_book(plan, self.lacking))
            work = plan.order.part(self.lacking)
            change = Changeover(plan, session.hellos, session.encoder, costs, work)
            tell_tunings(session.hellos, change.told)
            start = start_of(
                plan, session.encoder, costs, kept_columns(session.hellos), change.folders
            )
            lead.start(start, networks)
            self._begin_to_judge(session, costs)
            files.include(partial(ranks_of_others, self.out, lead, self._world_of))
            with change:
                finish = session.work(start)
            lead.say(Done(finish.status, finish.reason, (), ()))
            lead.wait(session.report)
            session.publish()  # the final state of each team
        final = {
            **final_facts(session, self.job),
            **session.facts(),
            "idle_service_ns": costs.idle_ns,
            "idle_batch_ns": costs.batch_ns,
        }
        writer.teams = lead.entries(self.out, self._world_of)
        return lead.finish, final

    def _costs(self, session: TeamSession, networks: Mapping[str, str]) -> ServiceCosts:
        """The costs of the networks in this run, which team 0 measures for all teams."""
        refuse_other_networks(self.plan, session.hellos, self.known.get("networks") or {})
        most = most_together(
            self.plan,
            session.encoder,
            count(self.lacking),
            session.reading,
            kept_columns(session.hellos),
        )
        hellos = session.hellos.values()
        tunings = [how for hello in hellos for how in hello.tuning.values()]
        devices = [device for hello in hellos for device in hello.devices]
        least = least_batch(self.plan, tunings, devices)
        costs = service_costs(self.plan, self.worker_group, most, least)
        if costs.chosen is not None and not self.ask.brief:
            tell(f"{costs.chosen}{before_this(self.known, costs.batch)}", logging.INFO)
        self.writer.note(
            **batch_facts(self.plan.settings.at_batch(costs.batch)),
            networks=networks,
            cost_ratio=costs.ratio,
            batch_costs=costs.batch_costs,
        )
        return costs

    def _begin_to_judge(self, session: TeamSession, costs: ServiceCosts) -> None:
        """With `agree`, let a judge take all pairs and send its thresholds to all coordinators."""
        when = lambda: (self.writer.session, session.elapsed_ns)  # noqa: E731
        judge = build_judge(self.plan, self.known, costs, when)
        if judge is not None:
            self.lead.tell_pairs(judge.hear)
            note = lambda entries: self.writer.note(thresholds=entries)  # noqa: E731
            judge.begin(self.lead.set_threshold, note)

    def _input_faults(self, status: str) -> tuple[str, ...]:
        """Faults of the input that any team met, for the run's status."""
        lead = self.lead
        read_by_others = not lead.alone and not lead.unread
        faults = input_faults(self.plan.shards, status, read_by_others=read_by_others)
        return tuple(dict.fromkeys([*faults, *lead.lost_shards, *lead.changed_shards]))

    def _world_of(self, team: int) -> list[dict[str, Any]]:
        return planned_world(self.plan, team)


def build_judge(
    plan: Plan,
    known: Mapping[str, Any],
    costs: ServiceCosts,
    when: Callable[[], tuple[int, int]],
) -> Judge | None:
    """The judge that chooses the threshold for `agree`; None if `agree` is not set.

    Args:
        plan: of the run.
        known: the run's manifest before this session; {} if there was none.
        costs: of the networks.
        when: as in `Judge`.
    """
    settings = plan.settings
    if settings.agree is None:
        return None
    first = settings.judged
    inputs = settings.group_size if KIND[first].batched else 1
    factor = batch_factor(inputs, costs.batch_costs.get(first, 1.0))
    asked = Asked(settings, len(plan.order), costs.ratio * factor)
    before = known.get("thresholds") or ()
    interrupted = known and not before
    return Judge(asked, when, before, pairs_before(plan) if interrupted else ())


def pairs_before(plan: Plan) -> list[Pair]:
    """The pairs of calibration images that have rows of earlier sessions."""
    chosen, found = plan.order.part([(0, plan.calibration)]), list[Pair]()
    for rows in open_run(plan.settings.out).chunks(IMAGES):
        theirs, places = chosen.find(plan.indices_of(rows))
        found += pairs_of(rows[theirs], places)
    return found


def warn_of_bad_shards(shards: ShardSet) -> None:
    """Warn at the start, and not only at the end, of shards that the run leaves out."""
    for reason in _unread(shards):
        tell(f"warning: {reason}\n  The other images are classified; the exit code will be 4.")
    for path in shards.left_out:
        tell(
            f"warning: {path}: left out, because the run has a --limit and was begun without this "
            "shard. Classify its images with another --out."
        )


def input_faults(shards: ShardSet, status: str, *, read_by_others: bool = False) -> tuple[str, ...]:
    """The faults of the input, when no more images can be classified.

    A complete run has a row for every image. What happened to a shard after its rows were read
    does not matter then, unless some of its rows may be of other bytes.

    Args:
        shards: the input.
        status: of the run.
        read_by_others: other teams have read all that this process could not read.
    """
    unread = () if status in COMPLETE else _unread(shards, read_by_others)
    return (*unread, *changes(shards))


def changes(shards: ShardSet) -> list[str]:
    """A line for each shard that has changed, if some of its rows may be of the new bytes."""
    return [
        f"{why}; which of its images were read before is not known"
        for why in shards.changed().values()
    ]


def _unread(shards: ShardSet, read_by_others: bool = False) -> tuple[str, ...]:
    lost = () if read_by_others else shards.lost.values()
    return (*(shard.reason for shard in shards.bad), *lost)


def before_this(known: Mapping[str, Any], batch: int) -> str:
    """Text to add if the run's session before had another batch; "" otherwise."""
    before = known.get("batch", batch)
    return "" if before == batch else f"; the session before had batch {before}"


def _one_after_the_other(before: str | None, now: str) -> str:
    """The label of a run whose sessions had different numbers of ranks: "N = 9 then N = 4"."""
    return now if before is None or before.split(" then ")[-1] == now else f"{before} then {now}"


# ---- the other teams --------------------------------------------------------


def run_team(
    settings_of: Callable[[], RunSettings],
    worker_group: WorkerGroup,
    link: LeadLink,
    stop_reason: StopReason,
) -> int:
    """Run another team's part of a run, on its coordinator.

    Args:
        settings_of: gives the run's settings; called after the run was begun.
        worker_group: the team's workers.
        link: to the lead.
        stop_reason: says why to stop, or None.

    Returns:
        The exit code that the lead gave.
    """
    try:
        begin = link.wait_for(Begin, stop_reason)
        team = TeamRun(settings_of(), worker_group, link, begin, stop_reason)
        try:
            team.run()
        finally:
            team.plan.shards.close()
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
    """The manifest of the run that the lead has begun, as soon as this host sees it.

    Args:
        out: the output folder.
        begin: the lead's message.
        why_stop: says why to stop, or None.
        late_s: how long to wait for the manifest.

    Raises:
        EnvironmentFault: after this time the folder shows no manifest, or that of another run.
        LeadLost: the job is to stop.
        CollageError: the manifest cannot be read.
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
                f"{out}: this host sees another run in this folder than the lead's host: --out "
                "must be in a file system that the hosts of all coordinators share"
            )
        time.sleep(0.2)


class TeamRun:
    """Another team's part of a run, on its coordinator.

    It waits for the run's manifest, runs the team's session, and writes the team's entry for the
    manifest.
    """

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
        self.plan: Plan = make_plan(settings, size, self._manifest, team=team)
        if order_digest(self.plan) != begin.order:
            self.plan.shards.close()
            raise EnvironmentFault(
                f"the shards or settings of rank {self.plan.placement.coordinator} differ from "
                "those of rank 0: they give another order of the images"
            )

    def run(self) -> None:
        """Classify the images that the lead grants, until the lead closes the input."""
        plan, group, link = self.plan, self._worker_group, self._link
        rows = RowSink(self.out, self._manifest, self._begin.session)
        files = self._status(plan.settings.status_every_s)
        audience = Audience(files, [(0, len(plan.order))], lines=NoLines())
        with TeamSession(plan, group, link, rows, audience, self._stop_reason) as session:
            link.say(Ready(session.make_ready()))
            start = link.wait_for(Start, self._stop_reason)
            if plan.settings.batch is None:  # team 0 has chosen it
                without_room(plan, group, start.batch, self._why_stop)
            finish = session.work(start)
            session.publish()
            final = final_facts(session, job_facts(group.transport.library))
            final |= {**session.facts(), "lost": group.detector.describe()}
            entry = {"status": finish.status, "rows": rows.counts, "final": final}
            link.during(partial(self._leave, files, entry))
            link.say(session.supply.progress)
        lost, changed = (
            tuple(text[:500] for text in texts[:20])
            for texts in (list(plan.shards.lost.values()), changes(plan.shards))
        )
        link.say(Done(finish.status, finish.reason, lost, changed))

    def _status(self, every_s: float) -> StatusFiles:
        """The team's status files, which the lead reads."""
        manifest, session = self._manifest, self._begin.session
        folder = status_folder(self.out, session)
        with suppress(OSError):  # the run does not need them
            folder.mkdir(exist_ok=True)
        facts = {
            "run_id": manifest["run_id"],
            "session": session,
            "label": label_of(manifest),
            "total": manifest["rows"],
            "before": 0,
        }
        return StatusFiles(folder, facts, every_s, lambda: None)

    def _leave(self, files: StatusFiles, entry: dict[str, Any]) -> None:
        """Write the session's entry for the manifest, which may be too long for a message."""
        files.end(entry["status"])
        session = self._begin.session
        text = json.dumps({"session": session, **entry}, default=plain).encode()
        write_atomic(entry_path(self.out, session), (text,))

    def _why_stop(self) -> str | None:
        return self._link.stop_reason() or self._stop_reason()
