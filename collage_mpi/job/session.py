"""One run from its settings to its results, on rank 0.

Owns: the order of the steps: plan, claim the output, start the workers, run, close.
Does not know: who is sent what, how rows are stored.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.encoding import BERRUT
from collage_mpi.encoding.decode import decode_parity, parity_scores
from collage_mpi.encoding.stripe import AnyEncoder
from collage_mpi.errors import CollageError, ExitCode
from collage_mpi.job.calibration import AgreementWatch, Asked, Judge, Pair, PairBook, pairs_of
from collage_mpi.job.coordinator import Coordinator
from collage_mpi.job.encoders import make_cell_maker, make_encoder
from collage_mpi.job.handshake import (
    ServiceCosts,
    handshake,
    readers,
    refuse_other_networks,
    roll_call,
    service_costs,
    tell_tunings,
)
from collage_mpi.job.image_buffer import ImageBuffer, Reader
from collage_mpi.job.inputs import digests, named_files
from collage_mpi.job.lead import Lead
from collage_mpi.job.messages import Done, Hello, Start
from collage_mpi.job.plan import Plan, make_plan, warn_of_one_class_groups
from collage_mpi.job.provenance import job_facts
from collage_mpi.job.recorder import Recorder, Totals, Vectors
from collage_mpi.job.resume import has_run
from collage_mpi.job.status import Told, ranks_of_others, snapshot
from collage_mpi.job.team import ALIVE_EVERY_NS, Supply, order_digest, ranges_of
from collage_mpi.job.worker_group import WorkerGroup
from collage_mpi.kinds import KIND
from collage_mpi.results import RunWriter
from collage_mpi.results.claim import Patience
from collage_mpi.results.draw import Draw
from collage_mpi.results.manifest import KEPT_KEYS, held, read_manifest
from collage_mpi.results.marks import keys_digest
from collage_mpi.results.reader import label_of, open_run
from collage_mpi.results.row_sink import RowSink
from collage_mpi.results.rows import IMAGES
from collage_mpi.results.status import StatusFiles
from collage_mpi.scheduler import Scheduler, make_scheme
from collage_mpi.scheduler import events as ev
from collage_mpi.scheduler.events import Score
from collage_mpi.scheduler.leases import LeaseBook, LeaseSettings
from collage_mpi.scheduler.schemes import Decode
from collage_mpi.scheduler.settings import batch_factor
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards import ReadAhead, ShardSet
from collage_mpi.system.backoff import COORDINATOR_BACKOFF, WORKER_BACKOFF, Backoff
from collage_mpi.system.progress import StatusReporter
from collage_mpi.system.tell import tell
from collage_mpi.workload.arrivals import Arrivals, ClosedLoop, OpenLoop

# Images: what is done again when a coordinator is lost, and the length of a message.
LARGEST_LEASE = 2048
LARGEST_EXCEEDED_SHARE = 0.01  # of tasks that took longer than their draw and what is tolerated

EXIT_CODES = {
    ev.COMPLETE: ExitCode.COMPLETE,
    ev.COMPLETE_WITH_ERRORS: ExitCode.COMPLETE_WITH_ERRORS,
    ev.INCOMPLETE: ExitCode.INCOMPLETE,
}


@dataclass(frozen=True)
class SessionOutcome:
    """How a session ended."""

    status: str  # of the whole run: errors of a resumed run's earlier sessions count
    reason: str
    out: Path
    input_faults: tuple[str, ...] = ()  # shards that were not read in full, or have changed
    summary: dict[str, Any] | None = None  # of the run; None where nothing was left to do

    @property
    def exit_code(self) -> ExitCode:
        """The exit code that tells it; bad input outranks all but being stopped."""
        return ExitCode.DATA if self.input_faults else EXIT_CODES[self.status]


def run_session(
    settings: RunSettings,
    worker_group: WorkerGroup,
    *,
    resume: bool = False,
    retry_errors: bool = False,
    stop_reason: Callable[[], str | None] = lambda: None,
    phase: str | None = None,
) -> SessionOutcome:
    """One run on a world that is up: plan, start, classify, close.

    Args:
        resume: go on with the run in the settings' `out`, if one was begun there.
        retry_errors: likewise, and do the images of error rows again.
        phase: names it in progress lines; its scheme by default.

    Raises:
        UsageError, EnvironmentFault, DataFault: something does not fit or fails; rows
            written before are kept.
    """
    settings.require_inputs()
    resume = (resume or retry_errors) and has_run(settings.out)
    known = read_manifest(Path(settings.out))["shards"] if resume else None
    plan = make_plan(settings, worker_group.transport.size, known)
    try:
        return _run_plan(plan, worker_group, resume, retry_errors, stop_reason, phase)
    finally:
        plan.shards.close()


def _run_plan(
    plan: Plan,
    worker_group: WorkerGroup,
    resume: bool,
    retry_errors: bool,
    stop_reason: Callable[[], str | None],
    phase: str | None,
) -> SessionOutcome:
    settings = plan.settings
    out = Path(settings.out)
    warn_of_one_class_groups(plan)
    warn_of_bad_shards(plan.shards)
    job = job_facts(worker_group.transport.library)
    manifest = {**make_manifest(plan), "job": job}
    # The output is claimed before 10 ranks load their weights: a bad --out fails at once.
    known: dict[str, Any] = {}
    patience = Patience(stop_reason=stop_reason, tell=tell)
    if resume:
        status = RunWriter.finished(out, manifest, retry_errors=retry_errors)
        if status is not None:
            return SessionOutcome(status, "every image had its row already", out)
        known = read_manifest(out)
        manifest |= {key: known[key] for key in KEPT_KEYS if key in known}
        manifest["scheme"] = _one_after_the_other(known.get("scheme"), manifest["scheme"])
        writer, done = RunWriter.reopen(out, manifest, retry_errors=retry_errors, patience=patience)
        order = not_done(plan, done)
    else:
        writer, order = RunWriter.create(out, manifest, patience=patience), plan.order
    status, final = "incomplete", {}
    facts = {
        "label": label_of(manifest),
        "total": len(order),
        "before": len(plan.order) - len(order),
    }
    try:
        published = writer.publish(facts, settings.status_every_s)
        encoder = build_encoder(plan)
        lead = None
        if worker_group.others is not None:
            lead = build_lead(plan, worker_group.others, writer, order, stop_reason)
        # Opened first: the first images are read and shrunk while the ranks load.
        with ExitStack() as open_readers:
            first = open_reader(plan, order, encoder, plan.placement.workers)
            reader = open_readers.enter_context(first)
            hellos = handshake(plan, worker_group, encoder, stop_reason)
            tell_tunings(plan, hellos)
            reading = readers(plan, hellos)
            if settings.by_place and reading < set(plan.placement.workers):
                reader.close()
                reader = open_readers.enter_context(open_reader(plan, order, encoder, reading))
            refuse_other_networks(plan, hellos, held(known))
            costs = service_costs(plan, worker_group).as_known(known)
            writer.note(
                networks={k: v for h in hellos.values() for k, v in h.fingerprints.items()},
                cost_ratio=costs.ratio,
                cost_ratio_interval=costs.interval,
                batch_costs=costs.batch_costs,
            )
            worker_group.start(costs.ratio, costs.batch_costs)
            supply = None
            if lead is not None:
                lead.start(Start(costs.ratio, costs.batch_costs), writer.manifest["networks"])
                supply = Supply(lead, plan, reader, writer)
            name = phase or settings.scheme
            progress = StatusReporter(len(order), name, every_s=settings.status_every_s)
            coordinator = build_coordinator(
                plan,
                worker_group,
                writer,
                encoder,
                reader,
                stop_reason,
                progress,
                arrivals=_arrivals(plan, order),
                costs=costs,
                reading=reading,
                supply=supply,
                lead=lead,
            )
            judge = build_judge(plan, known, costs)
            if judge is not None:
                begin_judging(judge, coordinator, writer, lead)
            publish = publisher(published, writer, coordinator, worker_group, len(order), lead)
            progress.follow(publish, published.begin)
            if lead is not None:
                world_of = partial(_planned_world, plan)
                published.include(partial(ranks_of_others, out, lead, world_of))
            try:
                finish = coordinator.run(*roll_call(plan, worker_group, hellos))
                if lead is not None and supply is not None:
                    finish = wait_for_teams(lead, supply, writer, coordinator, finish)
                    publish(True)  # how each team has ended
            finally:
                progress.close()
        worker_group.end()
        read_by_others = lead is not None and not lead.unread
        status, faults = judge_input(plan.shards, finish.status, read_by_others=read_by_others)
        final = final_facts(plan, coordinator, hellos, costs, job)
        if lead is not None:
            writer.teams = lead.entries(out, partial(_planned_world, plan))
            faults = tuple(dict.fromkeys([*faults, *lead.lost, *lead.changed]))
            status = ev.INCOMPLETE if lead.unread else status
        if judge is not None:
            judge.count(all_totals(coordinator.recorder, lead).images)
            final["thresholds"] = judge.entries()
        final["cells_ns"] = reader.cells_ns  # of the reading thread, all images
        sent = reading < set(plan.placement.workers)  # to some, by rank 0
        final["read_by"] = sorted({0, *reading} if sent else reading)
    except CollageError as error:
        mistaken = error.exit_code is not ExitCode.INCOMPLETE  # that one is to be resumed
        if mistaken and not resume and not writer.written:
            writer.discard()  # the corrected command may use the same --out
        raise
    finally:
        lost = worker_group.detector.describe()
        if worker_group.others is not None:
            lost += worker_group.others.detector.describe()
        lacking = writer.close(status, summary=True, **final, lost=lost, job=job)
    reason = lacking or finish.reason
    return SessionOutcome(writer.manifest["status"], reason, out, faults, writer.summary)


def build_judge(plan: Plan, known: Mapping[str, Any], costs: ServiceCosts) -> Judge | None:
    """What chooses the threshold that keeps `agree`, where that is asked for.

    `known`: the manifest that the run had before this session, {} if there was none.
    """
    settings = plan.settings
    if settings.agree is None:
        return None
    first = settings.judged
    inputs = settings.group_size if KIND[first].batched else 1
    factor = batch_factor(inputs, costs.batch_costs.get(first, 1.0))
    asked = Asked(
        settings.agree,
        settings.calibration_size,
        plan.calibration,
        len(plan.order),
        settings.group_size,
        costs.ratio * factor,
    )
    before = known.get("thresholds") or ()
    interrupted = known and not before
    return Judge(asked, before, pairs_before(plan) if interrupted else ())


def pairs_before(plan: Plan) -> list[Pair]:
    """Of the images that choose the threshold, those that earlier sessions wrote rows of."""
    chosen = plan.order[: plan.calibration]  # (k,) int64
    by_index, starts = np.argsort(chosen), _starts(plan)
    found = []
    for rows in open_run(plan.settings.out).chunks(IMAGES):
        indices = starts[rows["shard"]] + rows["row"].astype(np.int64)
        theirs = np.isin(indices, chosen)
        at = np.searchsorted(chosen, indices[theirs], sorter=by_index)
        found += pairs_of(rows[theirs], by_index[at])
    return found


def begin_judging(
    judge: Judge, coordinator: Coordinator, writer: RunWriter, lead: Lead | None
) -> None:
    """Pairs go to the judge, and its thresholds to all coordinators."""
    book = coordinator.book
    assert book is not None
    if lead is None:
        book.tell(judge.hear)
        announce: Callable[[float | None], None] = book.heard.append
    else:
        lead.tell_pairs(judge.hear)
        announce = lead.set_threshold
    judge.begin(
        lambda: all_totals(coordinator.recorder, lead).images,
        announce,
        lambda entries: writer.note(thresholds=entries),
    )


def build_lead(
    plan: Plan,
    others: WorkerGroup,
    writer: RunWriter,
    order: np.ndarray,
    stop_reason: Callable[[], str | None],
) -> Lead:
    """The lead of a run that is claimed; the other teams make ready from now on.

    `order`: what of the plan's has no row.
    """
    assert writer.publisher is not None
    settings = plan.settings
    timeout_s = settings.reply_timeout_s
    if timeout_s is not None:  # of a coordinator, which is heard but so often
        timeout_s = max(timeout_s, 2 * ALIVE_EVERY_NS / 1e9)
    # Silence is seen in any world, and what a team has not said to be done is waited for.
    others.detector.tolerate(settings.on_rank_loss != "abort", timeout_s, all_needed=True)
    done = ranges_of(np.flatnonzero(~np.isin(plan.order, order)))
    unit = settings.batch * settings.group_size
    largest = max(1, LARGEST_LEASE // unit)
    an_image_a_rank = -(-len(plan.placement.workers) // unit)
    leases = LeaseSettings(unit, smallest=min(an_image_a_rank, largest), largest=largest)
    book = LeaseBook(leases, len(plan.order), done=done)
    lead = Lead(
        others,
        book,
        writer.publisher,
        writer.session,
        batch=settings.batch,
        late_s=settings.start_timeout_s,
        stop_reason=stop_reason,
    )
    lead.begin(writer.manifest["run_id"], order_digest(plan))
    return lead


def wait_for_teams(
    lead: Lead,
    supply: Supply,
    writer: RunWriter,
    coordinator: Coordinator,
    finish: ev.Finish,
) -> ev.Finish:
    """Team 0 has ended: its last rows are published, and then the others' are; how all ended."""
    fault = writer.drain()
    if fault is not None:
        raise fault
    supply.tell_of_parts()
    lead.say(Done(finish.status, finish.reason, (), ()))
    lead.wait(coordinator.report)
    return ev.Finish(lead.status, "" if lead.status == ev.COMPLETE else lead.reason)


def publisher(
    published: StatusFiles,
    writer: RowSink,
    coordinator: Coordinator,
    worker_group: WorkerGroup,
    total: int,
    lead: Lead | None = None,
) -> Callable[[bool], None]:
    """What makes a status of the session, called with each progress line; True at the last."""

    def take() -> tuple[dict[str, Any], np.ndarray]:
        scheduler, recorder = coordinator.scheduler, coordinator.recorder
        totals = all_totals(recorder, lead)
        found = snapshot(scheduler, totals, worker_group.detector, total)
        return found, writer.recent_tasks()

    published.begin()
    return lambda last: published.offer(take, now=last)


def warn_of_bad_shards(shards: ShardSet) -> None:
    """Tell at once, not only at the end, what the run will do without."""
    for reason in _unread(shards):
        tell(f"warning: {reason}\n  The rest is done, and the exit code will be 4.")


def judge_input(
    shards: ShardSet, status: str, *, read_by_others: bool = False
) -> tuple[str, tuple[str, ...]]:
    """The session's status and what to tell, after all was done that could be done.

    `read_by_others`: other teams have read what this process could not read any more.

    Without all of its shards a run is incomplete; one that was stopped says just that.
    """
    if status == ev.INCOMPLETE:
        return status, ()
    unread = _unread(shards, read_by_others)
    return ev.INCOMPLETE if unread else status, (*unread, *changes(shards))


def changes(shards: ShardSet) -> list[str]:
    """Shards that are not what they were at the start."""
    return [
        f"{why}; its rows are those of the file as it was at the start"
        for why in shards.changed().values()
    ]


def _unread(shards: ShardSet, read_by_others: bool = False) -> tuple[str, ...]:
    lost = () if read_by_others else shards.lost.values()
    return (*(shard.reason for shard in shards.bad), *lost)


def build_encoder(plan: Plan) -> AnyEncoder:
    """Rank 0's encoder."""
    return make_encoder(plan.grid, plan.shards.shape, plan.parity, len(plan.placement.kinds))


def all_totals(recorder: Recorder, lead: Lead | None) -> Totals:
    """Of all teams, where this is the lead."""
    totals = recorder.totals
    if lead is None:
        return totals
    others = asdict(lead.progress)
    return replace(totals, **{name: getattr(totals, name) + n for name, n in others.items()})


def open_reader(
    plan: Plan, order: np.ndarray, encoder: AnyEncoder, reading: Collection[int]
) -> ReadAhead:
    """The coordinator's part of reading `order`: what those do not read that are to be `reading`.

    Their cells too, where one of them is to paste; else encoded images stay as they are, for
    their ranks to decode, but where a task has many, of which some may be larger as files.
    Of several teams each gets its images later.
    """
    others = set(plan.placement.workers) - (set(reading) if plan.settings.by_place else set())
    kinds = [KIND[kind] for rank in others for kind in plan.placement.of_rank[rank]]
    pasted = any(kind.encoded for kind in kinds)
    batched = any(kind.batched for kind in kinds)
    maker = make_cell_maker(encoder, plan.shards.cell_sizes) if pasted else None
    files = not (pasted or batched) and plan.shards.fit is not None
    several = plan.settings.teams > 1
    order = order[:0] if several else order
    more = {"pixels": bool(others), "files": files, "growing": several}
    return ReadAhead(plan.shards, order, cells=maker, **more)


def not_done(plan: Plan, done: np.ndarray) -> np.ndarray:
    """The part of the order that has no row yet; done: (k,) of (shard u4, row u8)."""
    finished = _starts(plan)[done["shard"]] + done["row"].astype(np.int64)
    return plan.order[~np.isin(plan.order, finished)]


def _one_after_the_other(before: str | None, now: str) -> str:
    """The label of a run whose sessions had other numbers of ranks: "N = 9 then N = 4"."""
    return now if before is None or before.split(" then ")[-1] == now else f"{before} then {now}"


def _arrivals(plan: Plan, order: np.ndarray) -> Arrivals:
    """When the images of `order` come; of a resumed run's rest the first comes at once."""
    times_ns = plan.settings.arrival_times_ns(len(plan.order))  # (n,) int64
    if times_ns is None:
        return ClosedLoop()
    if len(order) < len(plan.order):
        times_ns = times_ns[np.isin(plan.order, order)]
        times_ns = times_ns - times_ns[:1]
    return OpenLoop(times_ns)


def _starts(plan: Plan) -> np.ndarray:
    """(shards + 1,) int64: the global index of each shard's first row, and the end."""
    return np.cumsum([0, *(info.count for info in plan.shards.infos)], dtype=np.int64)


def make_manifest(plan: Plan) -> dict[str, Any]:
    """What the run was asked to do, for its manifest."""
    settings = plan.settings
    starts = _starts(plan)
    return {
        "run_id": uuid.uuid4().hex,
        "settings": (plan.asked or settings).to_dict(),
        "inputs": digests(named_files(settings)),
        "shards": [
            {"path": str(info.path), "fingerprint": info.fingerprint, "count": info.count}
            for info in plan.shards.infos
        ],
        "bad_shards": [{"path": str(bad.path), "reason": bad.reason} for bad in plan.shards.bad],
        "rows": len(plan.order),
        "order": settings.order,
        "limit": settings.limit,
        "input_digest": keys_digest(plan.order, starts),
        "class_names": list(plan.class_names) if plan.class_names else None,
        **settings.labels(),
        "mode": settings.mode,
        "open_loop": settings.open_loop,
        "batch": settings.batch,
        "side": settings.side,
        "straggler": settings.describe_delays(),
        "placement": plan.placement.describe(),
        "started": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "warmup_groups": settings.warm_groups,
        **({"extras": asdict(settings.extras)} if settings.extras else {}),
        **({"teams": settings.teams} if settings.teams > 1 else {}),
        **settings.audit_facts(),
    }


def build_coordinator(
    plan: Plan,
    worker_group: WorkerGroup,
    writer: RowSink,
    encoder: AnyEncoder,
    reader: Reader,
    stop_reason: Callable[[], str | None],
    status: StatusReporter,
    *,
    arrivals: Arrivals | None = None,
    costs: ServiceCosts | None = None,
    reading: Collection[int] = (),
    supply: Supply | None = None,
    lead: Lead | None = None,
) -> Coordinator:
    """A coordinator's loop for a plan, ready to run on workers that were told to start.

    `reading`: ranks that read their images themselves. `supply`: of one team of several, `lead`
    of the first one.
    """
    settings, clock = plan.settings, time.monotonic_ns
    vectors = None
    if settings.extras:
        evidence = 0 if plan.parity is None else plan.classes or 0
        vectors = Vectors(settings.extras, writer.vector, evidence)
    decoder = parity_decoder(plan, vectors)
    scheme = make_scheme(replace(settings.scheme_settings(), decode=decoder))
    known = (costs.ratio, costs.batch_costs) if costs is not None else ()
    workers = len(plan.placement.workers)
    scheduler = Scheduler(settings.scheduler_settings(workers, *known), scheme)
    fingerprints = [info.fingerprint for info in plan.shards.infos]
    draw = Draw(settings.audit_share, settings.audit_seed, fingerprints)
    feed = ImageBuffer(reader, encoder, worker_group.session, clock, reading, draw)
    recorder = Recorder(
        writer,
        feed.images,
        start_ns=clock(),
        group_size=settings.group_size,
        warmup_groups=settings.warm_groups,
        vectors=vectors,
    )

    told = Told(status, settings)
    watch = AgreementWatch(plan.by_file)

    def report(recorder: Recorder) -> None:
        writer.tick()
        totals = all_totals(recorder, lead)
        watch.look(totals.audited, totals.differing)
        told.tell(totals, len(worker_group.detector.timeouts.losses))

    book = build_book(plan, alone=supply is None)
    if supply is not None:
        supply.attach(feed, recorder, book)
    return Coordinator(
        scheduler,
        worker_group.transport,
        feed,
        recorder,
        worker_group.detector,
        session=worker_group.session,
        credit=settings.messages,
        clock=clock,
        backoff=Backoff(COORDINATOR_BACKOFF),
        stop_reason=stop_reason,
        report=report,
        arrivals=arrivals,
        supply=supply,
        book=book,
    )


def build_book(plan: Plan, *, alone: bool) -> PairBook | None:
    """Where the pairs go that choose a threshold, if one is to be chosen. `alone`: all images of
    the calibration are this coordinator's."""
    if plan.settings.agree is None:
        return None
    chosen = plan.order[: plan.calibration].tolist()
    book = PairBook(chosen, plan.shards)
    if alone:
        book.expect(chosen)
    return book


def parity_decoder(plan: Plan, vectors: Vectors | None = None) -> Decode:
    """How schemes parity and approx make an image's record from the vectors that answers carry.

    `vectors` is told the scores: a record that is made resolves its image.
    """

    coded = plan.parity is not None and plan.parity.encoder == BERRUT

    def decode(image: int, place: int, evidence: Any, others: Sequence[Any]) -> Score | None:
        total, temperature = evidence[0], plan.parity_temperature
        others = [other[: len(total)] for other in others]  # behind it is what is kept
        given = total, others, temperature, place if coded else None
        found = decode_parity(*given)
        if vectors is not None and found is not None:
            scores = parity_scores(*given)
            assert scores is not None
            vectors.decoded(image, scores)
        return None if found is None else Score(*found)

    return decode


def final_facts(
    plan: Plan,
    coordinator: Coordinator,
    hellos: dict[int, Hello],
    costs: ServiceCosts,
    job: Mapping[str, Any],
) -> dict[str, Any]:
    """What is known only at the end, for the manifest."""
    return {
        "world": [
            {
                "rank": plan.placement.coordinator,
                "host": job["host"],
                "pid": job["pid"],
                "kinds": [],
                "role": "coordinator",
            },
            *({"rank": rank, **_member(hello)} for rank, hello in sorted(hellos.items())),
        ],
        "cost_ratio": costs.ratio,
        "cost_ratio_interval": costs.interval,
        "batch_costs": costs.batch_costs,
        "idle_service_ns": costs.idle_ns,
        "idle_batch_ns": costs.batch_ns,
        "rank0": coordinator.work.means(),
        "poll": {
            "longest_gap_ns": coordinator.polls.longest_ns,
            "polls": coordinator.polls.polls,
            "coordinator_backoff": asdict(COORDINATOR_BACKOFF),
            "worker_backoff": asdict(WORKER_BACKOFF),
        },
        "validity": validity(coordinator.recorder.totals, plan.settings),
        "retired": coordinator.retired,
        **({"began_ns": coordinator.recorder.began_ns} if plan.settings.teams > 1 else {}),
    }


def validity(totals: Totals, settings: RunSettings) -> dict[str, Any]:
    """Whether the injected delays were those of the model (docs/stragglers.md).

    Burnt ranks are meant to be slower than their draws: with them there is no such rule.
    """
    share = totals.exceeded / totals.drawn_tasks if totals.drawn_tasks else 0.0
    return {
        "valid": share <= LARGEST_EXCEEDED_SHARE or bool(settings.burn_ranks),
        "exceeded": totals.exceeded,
        "tasks": totals.drawn_tasks,
        "share": share,
    }


def _planned_world(plan: Plan, team: int) -> list[dict[str, Any]]:
    """The ranks of a team that did not tell of them itself."""
    settings = plan.settings
    placed = settings.place_team(settings.teams * plan.placement.world_size, team, None)
    ranks = [{"rank": rank, "kinds": sorted(held)} for rank, held in placed.of_rank.items()]
    return [{"rank": placed.coordinator, "kinds": [], "role": "coordinator"}, *ranks]


def _member(hello: Hello) -> dict[str, Any]:
    return {
        "host": hello.host,
        "pid": hello.pid,
        "kinds": hello.kinds,
        "devices": hello.devices,
        "tuning": hello.tuning,
        "fingerprints": hello.fingerprints,
        "service_ns": hello.service_ns,
    }
