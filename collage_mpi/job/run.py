"""A job on a run, from its settings to its exit code, on the coordinator of each team.

The ledger says which job does which images. Rank 0 also waits for the other teams of its world, and
prints what the run has become.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections import ChainMap, Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from msgspec import structs

from collage_mpi.bounds.promise import Promise
from collage_mpi.bounds.sample import Asked, Candidate
from collage_mpi.core import events as ev
from collage_mpi.core.settings import batch_factor
from collage_mpi.errors import CollageError, EnvironmentFault, ExitCode, UsageError
from collage_mpi.job.agreed import Agreed
from collage_mpi.job.changeover import Changeover, least_batch
from collage_mpi.job.handshake import (
    ServiceCosts,
    kept_columns,
    most_together,
    refuse_other_networks,
    service_costs,
    start_of,
    tell_tunings,
)
from collage_mpi.job.messages import Hello, Start
from collage_mpi.job.plan import (
    Growing,
    Plan,
    make_plan,
    warn_of_one_class_groups,
    warn_of_small_pictures,
)
from collage_mpi.job.provenance import batch_facts, final_facts, fixed_facts, job_facts, world_of
from collage_mpi.job.session import Audience, TeamSession
from collage_mpi.job.shared import SHARES, Share
from collage_mpi.job.teams import OtherTeams
from collage_mpi.job.worker_group import WorkerGroup
from collage_mpi.kinds import KIND, SINGLE
from collage_mpi.ledger import spans as sp
from collage_mpi.ledger.jobs import jobs, note, register
from collage_mpi.ledger.owner import Owner, cell_size, join
from collage_mpi.ledger.reading import Found, View, runs
from collage_mpi.ledger.reading import counted as counted_parts
from collage_mpi.ledger.records import LISTING, OPEN, OVER, Job, Run, complete_name, run_name
from collage_mpi.ledger.spans import Spans
from collage_mpi.ledger.store import UNSEEN_S, FolderStore
from collage_mpi.models.info import TORCH
from collage_mpi.results import INDEX_FOLDER, PARTS_FOLDER, SUMMARY, has_run
from collage_mpi.results.jobs import entry
from collage_mpi.results.lease_files import LeaseFiles, jobs_in
from collage_mpi.results.manifest import COMPLETE, DUE, compose
from collage_mpi.results.number_sets import keys_digest
from collage_mpi.results.parts import by_row_groups, read_ledger, read_runs
from collage_mpi.results.reader import StoredRun, label_of, open_run, rows_of_part
from collage_mpi.results.row_sink import RowSink, unwritable
from collage_mpi.results.status import StatusFiles
from collage_mpi.results.summary import write_summary
from collage_mpi.results.writer import (
    LATE_S,
    check_place,
    leave_alone,
    leave_no_trace,
    open_folder,
    os_errors_as,
    refuse_differences,
)
from collage_mpi.rows import IMAGES, TASKS
from collage_mpi.settings.batches import injected_ns
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards import ShardSet
from collage_mpi.shards.order import BLOCK, Order, ranges_of
from collage_mpi.shards.reader import Growth
from collage_mpi.shards.update import Update
from collage_mpi.system.printable import counted
from collage_mpi.system.process_tree import ProcessId, has_ended, this_process
from collage_mpi.system.progress import NoLines
from collage_mpi.system.records import read_record
from collage_mpi.system.tell import tell

Json = dict[str, Any]
StopReason = Callable[[], str | None]
STEPS = 20  # of the price of a first stage, beside the exact network's
FASTEST_S = 50e-6  # an image that takes less is one of a null network

EXIT_CODES = {
    ev.COMPLETE: ExitCode.COMPLETE,
    ev.COMPLETE_WITH_ERRORS: ExitCode.COMPLETE_WITH_ERRORS,
    ev.INCOMPLETE: ExitCode.INCOMPLETE,
}


@dataclass(frozen=True)
class SessionOutcome:
    """How a job ended."""

    status: str  # of the whole run
    reason: str
    out: Path
    input_faults: tuple[str, ...] = ()  # shards that were not read in full, or have changed
    summary: dict[str, Any] | None = None  # of the run; None if nothing was left to do
    grows: bool = False  # all that is listed has its row, and the listing goes on

    @property
    def exit_code(self) -> ExitCode:
        """The exit code: that of bad input if there is any, otherwise that of the status."""
        return ExitCode.DATA if self.input_faults else EXIT_CODES[self.status]


@dataclass(frozen=True)
class Ask:
    """How a job is to be run.

    Attributes:
        stop_reason: says why to stop, or None.
        retry_errors: if the run is complete, classify the images of error rows again.
        update: how to take what has changed in the input into a complete run; None: not.
        leave: do not wait for other jobs that hold all images that are left.
        phase: name of the session in progress lines; "" for its scheme.
        brief: do not tell how the batch was chosen.
        redo_rank: if the run is complete, classify the images again that this rank has answered
            (`answered_by`); "": none.
        again: this process has done another run of the input, and what it warned of is not told
            again.
    """

    stop_reason: StopReason = lambda: None
    retry_errors: bool = False
    update: Update | None = None
    leave: bool = False
    phase: str = ""
    brief: bool = False
    redo_rank: str = ""
    again: bool = False


def run_session(settings: RunSettings, worker_group: WorkerGroup, ask: Ask) -> SessionOutcome:
    """Run one job on its coordinator, when MPI is up: plan, join, classify, close.

    Raises:
        UsageError, EnvironmentFault, DataFault: something does not fit, or fails. Rows that were
            written before are kept.
    """
    settings.require_inputs()
    out = Path(settings.out)
    check_place(out, shared=settings.shared_out == "on")  # waits for a run whose name is seen late
    size, team = worker_group.transport.size, team_of(settings, worker_group)
    growing = Growing(ask.stop_reason)
    try:
        while True:
            known = compose(out) if has_run(out) else {}
            number = len(read_runs(out)) if known else 0
            try:
                plan = make_plan(
                    settings, size, known, team=team, update=ask.update, growing=growing
                )
                try:
                    outcome = JobRun(plan, worker_group, known, ask).outcome()
                finally:
                    plan.shards.close()
                if not (outcome.grows and goes_on(out, growing)):
                    return outcome
            except CollageError:
                if ask.stop_reason() or not overtaken(out, number):
                    raise
                growing.close()
                worker_group.end()
            ask = replace(ask, brief=True, again=True)
    finally:
        growing.close()


def overtaken(out: Path, number: int) -> bool:
    """Whether another job has begun a run of an input that is listed meanwhile, since there were
    `number` runs."""
    there = read_runs(out) if has_run(out) else ()
    return len(there) > number and any(LISTING in run.settings for run in there)


def goes_on(out: Path, growing: Growing) -> bool:
    """Whether a job has another run of the input to do, which is still listed. Who does not list it
    waits for the job that does, and lists the rest itself if no further run comes."""
    until_s = time.monotonic() + UNSEEN_S
    while growing.lister is None and time.monotonic() < until_s and not growing.stop_reason():
        if compose(out).get(LISTING) != DUE:
            break
        time.sleep(1.0)
    return growing.stop_reason() is None


def team_of(settings: RunSettings, group: WorkerGroup) -> int:
    """The number of the team whose ranks a coordinator has."""
    return (group.ranks[0] - 1) // (group.transport.size // settings.teams) if group.ranks else 0


def next_run(
    plan: Plan, store: FolderStore, ask: Ask, *, say: bool = False
) -> tuple[list[Run], Run | None]:
    """What is to be done in a folder that has a run: its last run, or one that comes after it.

    Args:
        plan: of a job that fits the first run.
        store: of the folder.
        ask: whether to ask again for the images of error rows or of a rank, and to update the run.
        say: tell how many pictures of each sort an update has.

    Returns:
        The runs that are there; and the run to join, which may be none of them; None if nothing is
        left to do.

    Raises:
        OSError, Damage: the folder cannot be read.
        EnvironmentFault: a source is gone, or another job has updated the run since `plan` was
            made.
        UsageError: a picture has changed that was answered before, and no update is asked for; as
            `answered_by`.
    """
    there, shards, growth = runs(store), plan.shards, plan.shards.growth
    last = there[-1]
    so_far: Json = {}
    for run in there:
        so_far |= run.settings
    grows = last.grows
    for number, shard in enumerate(so_far["shards"]):
        mine = [(info.fingerprint, info.count) for info in shards.infos[number : number + 1]]
        if mine != [(shard["fingerprint"], shard["count"])]:
            raise EnvironmentFault(
                f"{plan.settings.out}: the run has images of {shard['path']} that this job has not "
                "found. If nothing is gone, another job has updated the run meanwhile: repeat the "
                "command. Otherwise put back what was there, or choose another --out."
            )
    if store.read(complete_name(last)) is None:
        if ask.redo_rank and last.number == 1:
            raise UsageError(
                f"{plan.settings.out}: --redo-rank needs a complete run. Finish it without "
                "--redo-rank, then repeat the command"
            )
        if ask.redo_rank:
            text = "an update or another --redo-rank was cut off and goes on: repeat the command"
            tell(f"{text} if it was not that of rank {ask.redo_rank}", logging.WARNING)
        return there, last
    known, images = so_far.get("images_now") or so_far["images"], len(shards)
    more = images - known if not plan.settings.partial else 0
    parts = counted_parts(store)
    has_row = sp.union(*(part.spans for part in parts))
    asked = ask.retry_errors or ask.redo_rank or ask.update is not None
    if (
        (grows or not asked)
        and growth.nothing
        and not any(run.again or run.dropped for run in there)
        and has_row == ((0, last.stop),)
    ):
        if not more and grows == shards.grows:
            return there, None
        facts, blocks = fixed_facts(plan), range(0, images, BLOCK)
        ascending = (np.arange(at, min(at + BLOCK, images)) for at in blocks)
        now = {key: facts[key] for key in ("shards", "bad_shards")} | {"rows": last.stop + more}
        now |= {"images_now": images, "input_digest": keys_digest(ascending, plan.starts)}
        now |= {LISTING: OPEN if shards.grows else OVER} if grows else {}
        return there, Run(last.number + 1, last.stop, last.stop + more, 1, settings=now)
    place = np.full(images, -1, np.int64)  # of each image, the position that counts
    found = plan.images_of(there)
    place[found] = np.arange(len(found))

    def at(spans: Spans) -> np.ndarray:
        mask = np.zeros(images, bool)
        for first, stop in spans:
            mask[found[first:stop]] = True
        return mask

    def spans_of(images: np.ndarray) -> Spans:
        return tuple(ranges_of(np.sort(place[images])))

    has = at(has_row)
    wrong = at(sp.union(*(part.errors for part in parts)))
    changed, touched, inside = (np.zeros(images, bool) for _ in range(3))
    changed[growth.again], touched[growth.touched], inside = True, True, place >= 0
    answered = np.flatnonzero(changed & has & ~wrong)
    if ask.update is None and not grows and answered.size:
        shard, row = shards.locate(int(answered[0]))
        raise UsageError(
            f"{plan.settings.out}: {counted(len(answered), 'picture')} changed after the run "
            f"listed them, such as row {row} of {shards.infos[shard].path}. --update classifies "
            "them again. Or put back what was there, or choose another --out."
        )
    gone = shards.gone()
    tried = wrong & ~gone & (touched | ask.retry_errors)
    if ask.redo_rank:
        redone = at(answered_by(Path(plan.settings.out), ask.redo_rank)) & ~gone
        text = f"rank {ask.redo_rank}: {counted(int(redone.sum()), 'answer')} to be given again"
        tell(text, logging.INFO)
        tried |= redone
    again = inside & ~gone & (changed | tried | ~has)
    dropped = gone & has & (wrong | ask.update.prune) if ask.update else ~(has | True)
    if say and ask.update is not None:
        kept = inside & ~gone & ~again
        told = {
            "new": more + (again & ~has).sum(),  # some had lost their rows
            "changed": (again & has & ~tried).sum(),
            "tried again": tried.sum(),
            "removed": growth.removed,
            "unchanged": kept.sum(),
        }
        told |= {"dropped": dropped.sum()} if dropped.any() else {}
        tell("update: " + ", ".join(f"{n:,} {what}" for what, n in told.items()), logging.INFO)
        if marked := int((gone & has & ~dropped).sum()):
            text = f"{counted(marked, 'row')} of removed pictures"
            tell(f"{text} stay in the table, marked as removed: --prune drops them", logging.INFO)
    other = bool(more or grows or dropped.any() or growth.removed or growth.renamed)
    other |= ask.update is not None and bool(touched.any())  # the next one knows their times
    if not (again.any() or other):
        return there, None
    now = {"images_now": known + more}
    if other or changed.any() or touched.any():
        facts = fixed_facts(plan)
        rows = np.flatnonzero((has | again) & ~dropped)
        without = int((inside & (dropped | ~(has | again))).sum())
        rows = np.concatenate([rows, np.arange(known, known + more)])
        now |= {key: facts[key] for key in ("shards", "bad_shards")}
        now |= {"rows": len(rows), "dropped": without}
        now |= {"input_digest": keys_digest([rows], plan.starts)}
        now |= {LISTING: OVER} if grows else {}
    again_at, stop = spans_of(again), last.stop + int(again.sum()) + more
    run = Run(last.number + 1, last.stop, stop, 1, again=again_at, settings=now)
    return there, structs.replace(run, dropped=spans_of(dropped))


def answered_by(out: Path, asked: str) -> Spans:
    """The positions of the answers of a rank that count. `asked`: RANK, or JOB:RANK.

    Raises:
        UsageError: ranks of several jobs with this number have answered, and no job is named.
        EnvironmentFault, DataFault: a part cannot be read.
    """
    job, rank = asked.rpartition(":")[::2]
    found: dict[int, Spans] = {}
    parts = [part for part in read_ledger(out).parts if part.table == IMAGES.name]
    for piece in (piece for part in parts for piece in by_row_groups(part)):
        rows = rows_of_part(piece, IMAGES)
        rows = rows[rows["answered"] & (rows["rank"] == int(rank))]
        for number in np.unique(rows["session"]).tolist():
            if not job or number == int(job):
                places = np.sort(rows["position"][rows["session"] == number].astype(np.int64))
                found[number] = sp.union(found.get(number, ()), tuple(ranges_of(places)))
    if len(found) > 1:
        jobs = " or ".join(f"{number}:{rank}" for number in sorted(found))
        raise UsageError(f"--redo-rank {asked}: several jobs had a rank {rank}; name one: {jobs}")
    return next(iter(found.values()), ())


def close_empty(out: Path, store: FolderStore, run: Run, owner: str) -> None:
    """Make a run without positions, which only says what is gone, and mark it as complete.

    Args:
        out: the run's folder.
        store: of it.
        run: made by `next_run`, or there.
        owner: who makes it.

    Raises:
        OSError, CollageError: as `join`; another job has made another run with this number.
    """
    found = join(store, structs.replace(run, by=owner))
    refuse_other_images(out, found, run)
    Owner(store, found, 1, name=owner, files=LeaseFiles(out, found)).settle()


def left_of(plan: Plan, known: Mapping[str, Any], ask: Ask) -> tuple[Plan, Order] | None:
    """The plan of a job that joins a run, and the images that have no row; None if there are none.

    Args:
        plan: of the job, for the first run.
        known: the manifest of the run.
        ask: as in `next_run`.

    Raises:
        UsageError: the settings differ from the run's.
        EnvironmentFault, DataFault: the folder cannot be read, or is damaged.
    """
    out = Path(plan.settings.out)
    refuse_other_settings(plan, known)
    with os_errors_as(unwritable, out):
        there, run = next_run(plan, store := FolderStore(out), ask)
        if run is None or run.first == run.stop:
            return None
        plan = plan.at_run([*there[: run.number - 1], run])
        counts = View(store, run).look().counted if run in there else ()
    left = sp.minus(((run.first, run.stop),), counts)
    return plan, plan.order.part([(first - run.first, stop - run.first) for first, stop in left])


def refuse_other_settings(plan: Plan, known: Mapping[str, Any]) -> None:
    """Refuse settings and shards that are not those of a run. `known`: its manifest."""
    out = Path(plan.settings.out)
    for line in plan.shards.growth.lines:
        tell(f"warning: {line}")
    first = read_runs(out)[0].settings
    refuse_differences(out, first, entry(fixed_facts(plan, len(first["shards"]))))


class JobRun:
    """A job's part in a run, on its coordinator."""

    def __init__(
        self, plan: Plan, worker_group: WorkerGroup, known: Mapping[str, Any], ask: Ask
    ) -> None:
        """`known`: the manifest of the run that is there; {} if there is none."""
        self.plan, self.worker_group, self.known, self.ask = plan, worker_group, known, ask
        self.asked = plan
        self.out, self.owner = Path(plan.settings.out), os.urandom(16).hex()
        process = this_process()
        self.facts: Json = {
            "began": _now(),
            "job": job_facts(worker_group.transport.library),
            "process": None if process is None else asdict(process),
        }
        others = worker_group.others
        self.teams = OtherTeams(others) if others and others.ranks else None
        self.share: Share | None = None

    @property
    def first(self) -> bool:
        """Whether this is rank 0's job, which speaks for all teams of the world."""
        return self.plan.placement.coordinator == 0

    def outcome(self) -> SessionOutcome:
        """Do the job to its end."""
        plan = self.plan
        if not self.ask.again:
            warn_of_one_class_groups(plan)
            warn_of_small_pictures(plan)
            warn_of_bad_shards(plan.shards)
        if plan.shards.grows and self.first:
            text = "listed so far, and are classified while the others are listed"
            tell(f"{counted(len(plan.shards), 'picture')} {text}", logging.INFO)
        alone = plan.settings.alone == "on"
        self.store = open_folder(self.out, shared=plan.settings.shared_out == "on", alone=alone)
        try:
            return self._outcome_in_folder()
        finally:
            if alone:
                with suppress(OSError):
                    leave_alone(self.out)

    def _outcome_in_folder(self) -> SessionOutcome:
        plan = self.plan
        run: Run | None = None
        with os_errors_as(unwritable, self.out):
            if self.known:
                refuse_other_settings(plan, self.known)
                there, run = next_run(plan, self.store, self.ask, say=self.first)
                if run is not None and run not in there:
                    plan.shards.save_indexes(self.out / INDEX_FOLDER)  # the run names them
                if run is not None and run.first == run.stop:  # it only says what is gone
                    close_empty(self.out, self.store, run, self.owner)
                    (self.out / SUMMARY).unlink(missing_ok=True)
                    there, run = runs(self.store), None
                if run is None:
                    now, grows = compose(self.out), there[-1].grows
                    status = now["status"]
                    with suppress(OSError):  # it may not be writable
                        plan.shards.save_folders(self.out / INDEX_FOLDER, now["shards"])
                    summed = grows or (self.out / SUMMARY).exists()
                    if self.first and not summed:  # who marked it has died
                        write_summary(open_run(self.out))
                    faults = input_faults(plan.shards, status)
                    why = "every image had its row already"
                    return SessionOutcome(status, why, self.out, faults, grows=grows)
                self.plan = plan.at_run([*there[: run.number - 1], run])
            else:
                self.fixed = entry(fixed_facts(plan))
                if plan.shards.grows:
                    plan.shards.save_indexes(self.out / INDEX_FOLDER)  # all jobs go by them
            # A folder that cannot be used is told before 10 ranks load their weights.
            self.session = register(self.store, self.owner, entry(self.facts), rows=PARTS_FOLDER)
        with suppress(OSError):  # workers then list the members themselves
            plan.shards.save_indexes(self.out / INDEX_FOLDER)
        try:
            finish = self._work(run)
        finally:
            leave_no_trace(self.out, self.session)
        return self._outcome(finish)

    def _work(self, run: Run | None) -> ev.Finish:
        """Make the ranks ready, join the run, and do what it grants. `run`: as in `next_run`."""
        plan, group, ask = self.plan, self.worker_group, self.ask
        if self.teams is not None and group.others is not None:
            detector = group.others.detector
            goes_on = detector.fault_tolerant and plan.settings.on_rank_loss != "abort"
            detector.tolerate(goes_on, None)
        total = len(plan.order)
        if run is not None and run.by is not None:
            total -= sp.count(View(self.store, run).look().counted)
        told = {
            "session": self.session,
            "owner": self.owner,
            "run_id": (self.known or self.fixed)["run_id"],
            "label": label_of(self.known or self.fixed),
            "total": total,
            "before": len(plan.order) - total,
        }
        files = StatusFiles(self.out, told, plan.settings.status_every_s)
        audience = Audience(files, total, ask.phase, None if self.first else NoLines())
        session = TeamSession(plan, group, self.session, audience, self._why_stop)
        status = ev.INCOMPLETE
        try:
            with session:
                finish, complete = self._in_session(session, run)
            status = self._seen_status() if complete else ev.INCOMPLETE
        finally:
            if has_run(self.out):
                files.end(status)
            else:
                files.remove()
        return finish

    def _in_session(self, session: TeamSession, run: Run | None) -> tuple[ev.Finish, bool]:
        """How the core has ended, and whether the run is complete."""
        plan = self.plan
        networks = session.make_ready()
        refuse_other_networks(plan, networks, self.known.get("networks") or {})
        costs = self._costs(session)
        self.plan = plan = plan.at_batch(costs.batch)
        unit, rate = plan.settings.group_size * plan.settings.batch_size, expected_rate(plan, costs)
        self.run = run = self._joined(run, unit, rate)
        self._same_networks(networks)
        files = LeaseFiles(self.out, run)
        owner = Owner(self.store, run, unit, name=self.owner, files=files)
        work = plan.order.part([(0, len(plan.order))])
        change = Changeover(plan, session.hellos, session.encoder, costs, work)
        tell_tunings(session.hellos, change.told)
        columns = kept_columns(session.hellos)
        start = start_of(plan, session.encoder, costs, columns, change.folders)
        final: Json = {
            "placement": plan.placement.describe(),
            "scheme": plan.settings.labels()["scheme"],
            "world": world_of(plan, self.facts["job"]["host"], session.hellos),
            "batch": costs.batch,
            "cost_ratio": costs.ratio,
            "batch_costs": costs.batch_costs,
            "idle_service_ns": costs.idle_ns,
            "idle_batch_ns": costs.batch_ns,
            "began_ns": time.time_ns(),
        }
        self._note(run=run.number, final=final)
        with change:
            agreed = None
            if plan.promises:
                kinds = [each.kind for each in plan.settings.stages]
                start, hows = steady(start, kinds, session.hellos, change, self._why_stop)
                promise = build_promise(plan, costs, change)
                agreed = Agreed(self.store, plan, self.session, promise, hows)
            share = Share(
                owner,
                unit,
                rate,
                plan.settings.teams,
                agreed,
                self._dead,
                leaves=self.ask.leave,
            )
            return self._with_share(session, start, share, final)

    def _with_share(
        self, session: TeamSession, start: Start, share: Share, final: Json
    ) -> tuple[ev.Finish, bool]:
        self.share = share
        manifest = {**self.known, **self.run.settings}
        hellos = session.hellos.values()
        about = {
            "networks": dict(ChainMap(*(hello.fingerprints for hello in hellos))),
            "runtimes": dict(ChainMap(*(hello.tuning for hello in hellos))),
        }
        rows = RowSink(self.out, manifest, self.session, share.wrote, about=about)
        status, whole = ev.INCOMPLETE, False
        try:
            finish = session.work(start, share, rows)
            session.publish()
            status = finish.status
            complete = share.leave(self._why_stop)
            whole = not rows.failed
        except Exception:
            rows.drain()  # so that it is known which rows could not be written
            with suppress(Exception):
                share.leave()
            raise
        finally:
            lost = self.worker_group.detector.describe()
            with suppress(OSError, AttributeError):  # it had not begun
                final |= {**final_facts(session, self.facts["job"]), **session.facts()}
            cost = {**share.cost, "written": rows.counts["images"]}
            written = rows if whole else None
            self._note_end(status, written, share.rows, {**final, "lost": lost, "ledger": cost})
        return finish, complete

    def _why_stop(self) -> str | None:
        """Why to stop, or None. Rank 0 looks at the other teams, too."""
        reason = self.ask.stop_reason()
        if self.teams is not None:
            if self.teams.look() and self.share is not None:
                self.share.lost_a_job()
            if reason is not None:
                self.teams.halt(reason)
        return reason

    def _dead(self) -> Iterator[str]:
        """The owners of jobs that have died on this machine."""
        for number, job in jobs(self.store).items():
            if number != self.session and "ended" not in job.facts and _has_died(job):
                yield job.owner

    def _is_complete(self) -> bool:
        with suppress(OSError):
            return self.store.read(complete_name(self.run)) is not None
        return False

    def _costs(self, session: TeamSession) -> ServiceCosts:
        """The costs of the networks, on this job's ranks."""
        most = most_together(
            self.plan,
            session.encoder,
            len(self.plan.order),
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
        return costs

    def _joined(self, run: Run | None, unit: int, rate: float) -> Run:
        """The run to work on, which is made now if it is not there."""
        plan, settings = self.plan, self.plan.settings
        images = len(plan.order)
        whole = settings.open_loop or (settings.assign == "turn" and settings.teams == 1)
        cell = max(1, images) if whole else cell_size(images, unit, rate)
        if settings.teams > 1:  # which begin together, each in a cell of its own
            cell = max(1, min(cell // unit, images // (SHARES * settings.teams * unit))) * unit
        mine = run or Run(1, 0, images, cell, settings=self.fixed | entry(batch_facts(settings)))
        if mine.number > 1 and mine.by is None:
            mine = structs.replace(mine, cell=cell)
        found = join(self.store, structs.replace(mine, by=self.owner, whole=whole))
        if found.by != self.owner and run is None:  # another job was quicker
            refuse_differences(self.out, found.settings, mine.settings)
        elif found.by != self.owner:
            refuse_other_images(self.out, found, mine)
        return found

    def _same_networks(self, networks: Mapping[str, str]) -> None:
        """Refuse other networks than those of the jobs before."""
        name = f"networks.{self.run.number}.json"
        with os_errors_as(unwritable, self.out):
            self.store.settled(name, json.dumps(networks).encode())
        refuse_other_networks(self.plan, networks, compose(self.out)["networks"])

    def _note(self, **facts: Any) -> None:
        """Add to the entry of this job."""
        self.facts |= facts
        with os_errors_as(unwritable, self.out):
            note(self.store, self.session, self.owner, entry(self.facts))

    def _seen_status(self) -> str:
        """The status of a run that is marked as complete. This host may believe for a minute that
        the run, or its last records, are missing."""
        until_s = time.monotonic() + LATE_S
        while True:
            there = any(run.number == self.run.number for run in read_runs(self.out))
            manifest = compose(self.out) if there else {"status": ev.INCOMPLETE}
            status = str(manifest["status"])
            done = status in COMPLETE or manifest.get(LISTING) == DUE
            if done or self._why_stop() or time.monotonic() >= until_s:
                return status
            time.sleep(1.0)

    def _note_end(
        self, status: str, rows: RowSink | None, images: int, final: Mapping[str, Any]
    ) -> None:
        """Note how this job ended, as far as the folder lets it.

        Args:
            status: of the run.
            rows: None if some of them may not be on the disk.
            images: number of its rows that count.
            final: more facts.
        """
        with suppress(OSError, CollageError):
            counts = None
            if rows is not None:
                counts = {**rows.counts, "images": images, "written": rows.counts["images"]}
            written = {} if rows is None else rows.parts
            ended = {"status": status, "ended": _now(), "final": dict(final)}
            self._note(**ended, rows=counts, written_parts=written)

    def _outcome(self, finish: ev.Finish) -> SessionOutcome:
        """What the run has become. Rank 0 waits for the other teams before, and writes the
        summary."""
        if self.run.grows and self._is_complete():
            return SessionOutcome(ev.INCOMPLETE, "the listing goes on", self.out, grows=True)
        if self.teams is not None:
            self.teams.wait(self._why_stop, self._is_complete)
        found = open_run(self.out)
        status = found.manifest["status"]
        summary = last_summary(found, complete=status in COMPLETE) if self.first else None
        reason = finish.reason
        if status not in COMPLETE:
            left = _left(View(self.store, self.run).look(), len(self.plan.order), self.owner)
            reason = f"{reason}; {left}" if reason else left
        if status in COMPLETE:
            self.asked.shards.growth = Growth()  # is done
            _, more = next_run(self.asked, self.store, Ask())
            if more is not None:
                status, images = ev.INCOMPLETE, counted(more.stop - more.first, "image")
                reason = f"{images} can be read by now: go on with the same command"
        stopped = finish.status == ev.INCOMPLETE and status not in COMPLETE  # only that is told
        faults = () if stopped else input_faults(self.plan.shards, status)
        return SessionOutcome(status, reason, self.out, faults, summary)


def refuse_other_images(out: Path, found: Run, mine: Run) -> None:
    """Raise EnvironmentFault if the run that a job found has other images than the one with this
    number that it would have made: it would read those of its own order."""
    asks = [(run.stop, run.again, entry(run.settings)) for run in (found, mine)]
    if asks[0] != asks[1]:
        raise EnvironmentFault(
            f"{out / run_name(found.number)}: another job has begun this run meanwhile, for other "
            "images than this job found. Repeat the command"
        )


def last_summary(found: StoredRun, *, complete: bool) -> Json:
    """Write the summary of a run. Of a complete one other jobs may be writing their last rows of
    tasks: they are waited for, for `LATE_S` at the most. Of another one rows may come for hours."""
    until_s = time.monotonic() + LATE_S
    while complete and _unseen(found) and time.monotonic() < until_s:
        time.sleep(1.0)
        found = open_run(found.path)
    summary = write_summary(found)
    while complete and time.monotonic() < until_s:
        before, found = found, open_run(found.path)
        if found.parts == before.parts:
            break
        summary = write_summary(found)
    return summary


def expected_rate(plan: Plan, costs: ServiceCosts) -> float:
    """Images a second that a job may do, before it has done any."""
    kind = SINGLE if SINGLE in costs.idle_ns else next(iter(plan.networks))
    ns = max(costs.idle_ns.get(kind, 0), injected_ns(plan.settings))
    return len(plan.placement.ranks_of(kind)) / max(ns / 1e9, FASTEST_S)


def _left(found: Found, images: int, owner: str) -> str:
    """How many images have no row, and how many of these other jobs than `owner` hold."""
    held = [sp.count(spans) for holder, spans in found.holds.items() if holder != owner]
    others = f", {sum(held):,} of them held by {counted(len(held), 'other job')}" if held else ""
    return f"{counted(images - sp.count(found.counted), 'image')} without a row{others}"


def _unseen(run: StoredRun) -> bool:
    """Whether jobs have written parts of tasks, or what they say, that this host sees late."""
    seen = Counter(part.session for part in run.parts if part.table == TASKS.name)
    said = {
        entry["session"]: entry.get("written_parts") or {} for entry in run.manifest["sessions"]
    }
    jobs = {part.session for part in run.parts if not part.is_lease}
    jobs = jobs.union(*map(jobs_in, {part.path for part in run.parts if part.is_lease}))
    if not jobs <= said.keys():
        return True
    return any(seen[session] < parts.get(TASKS.name, 0) for session, parts in said.items())


def _has_died(job: Job) -> bool:
    """Whether a job's process was on this machine and has ended."""
    try:
        return has_ended(read_record(ProcessId, job.facts.get("process"))) is True
    except ValueError:
        return False


def _now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def steady(
    start: Start,
    kinds: Collection[str],
    hellos: Mapping[int, Hello],
    change: Changeover,
    stop_reason: Callable[[], str | None],
) -> tuple[Start, dict[str, str]]:
    """The start of a session in which every rank must give the same answers of some kinds, and how
    each kind answers: as most ranks can. All networks are made first, because what they say must
    not change during the job.

    Args:
        start: of another session.
        kinds: of networks.
        hellos: of this team's ranks.
        change: makes the networks for other runtimes, as far as that pays.
        stop_reason: says why not to wait for them, or None.
    """
    change.wait(stop_reason)
    hows, said = dict[str, str](), dict[str, str]()
    for kind in kinds:
        ways = sorted(hello.how(kind) for hello in hellos.values() if kind in hello.kinds)
        hows[kind] = said[kind] = max(ways, key=ways.count, default="")
        record = change.record(kind)
        if record is not None and record.runtime != TORCH:
            said[kind] = record.how
    made = {each: folder for each, folder in change.folders.items() if change.record(each)}
    return replace(start, runtimes=made, steady=hows), said


def build_promise(plan: Plan, costs: ServiceCosts, change: Changeover) -> Promise:
    """What decides on the threshold of `agree`.

    Args:
        plan: of the run.
        costs: of the networks in torch.
        change: has made the networks for other runtimes, as far as that pays.
    """
    settings = plan.settings
    assert settings.agree is not None
    prices = {each.kind: _price(plan, costs, change, each.kind) for each in settings.stages}
    # In steps, so that equal jobs seldom decide otherwise because a time was measured otherwise.
    steps = {kind: max(1, round(price * STEPS)) for kind, price in prices.items()}
    candidates = [Candidate(kind, 0.0, count / STEPS) for kind, count in steps.items()]
    return Promise(Asked(len(plan.order), settings.agree, 1.0), candidates)


def _price(plan: Plan, costs: ServiceCosts, change: Changeover, kind: str) -> float:
    """Time of an image on a first network divided by that on the exact one, in the batches that are
    sent."""
    batch, size = plan.settings.batch_size, plan.settings.group_size
    inputs = size if KIND[kind].batched else 1
    made, exact = change.record(kind), change.record(SINGLE)
    if made is not None and exact is not None:  # timed beside torch, with as many threads
        return made.own_ms / exact.own_ms * inputs / size
    ours, single = (
        batch_factor(n * batch, costs.batch_costs.get(each, 1.0)) / batch
        for each, n in ((kind, inputs), (SINGLE, 1))
    )
    ratio = costs.costs[kind] * ours / size / single  # in torch, in which one of them may stay
    return ratio * (1.0 if exact is None else exact.times) / (1.0 if made is None else made.times)


def warn_of_bad_shards(shards: ShardSet) -> None:
    """Warn at the start, and not only at the end, of shards that the run leaves out."""
    for reason in (*shards.bad.values(), *shards.lost.values()):
        tell(f"warning: {reason}\n  The other images are classified; the exit code will be 4.")
    for path in shards.left_out:
        tell(
            f"warning: {path}: left out, because the run has --limit or --only and was begun "
            "without this shard. Classify its images with another --out."
        )


def input_faults(shards: ShardSet, status: str) -> tuple[str, ...]:
    """The faults of the input, when no more images can be classified.

    A complete run has a row for every image of the shards that could be read when it began. What
    happened to a shard after its rows were read does not matter then, unless some of its rows may
    be of other bytes.

    Args:
        shards: the input.
        status: of the run.
    """
    lost = () if status in COMPLETE else shards.lost.values()
    return (*shards.bad.values(), *lost, *changes(shards))


def changes(shards: ShardSet) -> list[str]:
    """A line for each shard that has changed, if some of its rows may be of the new bytes."""
    return [
        f"{why}; which of its images were read before is not known"
        for why in shards.changed().values()
    ]


def before_this(known: Mapping[str, Any], batch: int) -> str:
    """Text to add if the run's session before had another batch; "" otherwise."""
    before = known.get("batch", batch)
    return "" if before == batch else f"; the job before had batch {before}"
