"""One coordinator's work on a run: its ranks, its images and its rows."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.core import events as ev
from collage_mpi.core.core import Core
from collage_mpi.core.outcomes import Totals
from collage_mpi.core.schemes import make_scheme
from collage_mpi.core.settings import CoreSettings
from collage_mpi.core.table import Table
from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.vectors import layout_of
from collage_mpi.faults.failure_detector import FailureDetector
from collage_mpi.job.coordinator import RELEASED, Coordinator, LoopSettings
from collage_mpi.job.encoders import make_encoder
from collage_mpi.job.handshake import handshake, kept_columns, readers, roll_call
from collage_mpi.job.leased_images import LeasedImages
from collage_mpi.job.messages import Hello, Start
from collage_mpi.job.packing import Packer, Reader
from collage_mpi.job.pairs import AgreementWatch, PairBook
from collage_mpi.job.plan import Plan
from collage_mpi.job.record import Record, RecordedCore
from collage_mpi.job.shared import Share
from collage_mpi.job.worker_group import WorkerGroup
from collage_mpi.kinds import COLLAGE, KIND
from collage_mpi.results.number_sets import Draw
from collage_mpi.results.row_sink import RowSink
from collage_mpi.results.status import ENDING, RUNNING, StatusFiles
from collage_mpi.settings.run_settings import AUDIT_SEED, RunSettings
from collage_mpi.shards import ReadAhead
from collage_mpi.system.backoff import BATCH_BACKOFF, COORDINATOR_BACKOFF, Backoff
from collage_mpi.system.bottleneck import Limit, RankUse, Use, limit_of
from collage_mpi.system.files import writing
from collage_mpi.system.progress import StatusLines, StatusReporter
from collage_mpi.system.tell import tell
from collage_mpi.workload.arrivals import Arrivals, ClosedLoop, OpenLoop

# Images that are read at a time, with their pixels, or only with their places and labels (32 bytes
# an image).
SENT_BATCH, NAMED_BATCH = 64, 1024
WARN_AFTER_NS = 60_000_000_000


@dataclass(frozen=True)
class Audience:
    """Where a session reports its progress.

    Attributes:
        files: status files in the output folder.
        total: number of images that have no row when the session begins.
        phase: name of the session in progress lines; "" for the scheme.
        lines: where progress lines go; None for the launcher or the log.
    """

    files: StatusFiles
    total: int
    phase: str = ""
    lines: StatusLines | None = None


class TeamSession(ExitStack):
    """A coordinator's work, from the welcome of its ranks to its last row.

    Use it in a `with` statement and call `make_ready`, `work` and `facts`, in this order.

    Attributes:
        hellos: the ranks' answers to the welcome, by rank.
        began_ns: Unix time of the time 0 of the rows, to align sessions.
        totals: counts of the images so far.
        reading: ranks that read their images themselves.
    """

    def __init__(
        self,
        plan: Plan,
        worker_group: WorkerGroup,
        session: int,
        audience: Audience,
        stop_reason: Callable[[], str | None],
    ) -> None:
        """`session`: its number."""
        super().__init__()
        self.plan, self.worker_group, self.session = plan, worker_group, session
        self._audience, self._stop_reason = audience, stop_reason
        self.encoder = build_encoder(plan)
        self.hellos: dict[int, Hello] = {}
        self.reading: frozenset[int] = frozenset()
        self._start_ns: int | None = None
        self._began_ns = time.monotonic_ns()
        self._warned = False  # of GPUs that are hardly busy

    @property
    def elapsed_ns(self) -> int:
        """Time since the time 0 of the rows; 0 before the start."""
        return 0 if self._start_ns is None else time.monotonic_ns() - self._start_ns

    def make_ready(self) -> dict[str, str]:
        """Welcome the ranks and wait until they are ready.

        Returns:
            Kind -> SHA-256 of its network.

        Raises:
            UsageError, EnvironmentFault, DataFault: a rank cannot work.
            RankGone: too few ranks are left to begin.
        """
        self.hellos = handshake(self.plan, self.worker_group, self.encoder, self._stop_reason)
        if self.plan.settings.by_place:
            self.reading = readers(self.plan, self.hellos)
        found = self.hellos.values()
        return {kind: text for hello in found for kind, text in hello.fingerprints.items()}

    def open_reader(self) -> AbstractContextManager[Reader]:
        """Opens the reader of the images that are granted."""
        return open_reader(self.plan, self.encoder, self.reading)

    def build_coordinator(self) -> Coordinator:
        """The coordinator's loop; called when the ranks are ready."""
        plan, settings, clock = self.plan, self.plan.settings, time.monotonic_ns
        if settings.extras:
            self.rows.keep(layout_of(kept_columns(self.hellos)))
        workers, told = len(plan.placement.workers), self.start
        asked = settings.core_settings(workers, told.costs, told.batch_costs)
        wire = self.worker_group.session
        self._start_ns, self.began_ns = clock(), time.time_ns()
        table = Table(settings.group_size, self._start_ns, self.session, settings.warm_groups)
        core = self._core(asked, table)
        self.totals = core.outcomes.totals
        in_batches = settings.in_whole_batches and settings.messages > 1
        loop = LoopSettings(
            credit=settings.messages,
            clock=clock,
            backoff=Backoff(BATCH_BACKOFF if in_batches else COORDINATOR_BACKOFF),
            arrivals=self._arrivals(),
            stop_reason=self._stop_reason,
            report=self.report,
            draw=Draw(settings.audit_share, AUDIT_SEED, plan.shards.fingerprints),
            releases=not plan.shards.grows,  # they are needed again
        )
        packer = Packer(table, self.encoder, wire, clock, self.reading)
        return Coordinator(core, self.worker_group, packer, self.rows, self.leased, loop)

    def work(self, start: Start, share: Share, rows: RowSink) -> ev.Finish:
        """Classify the images that the ledger grants, until it grants no more.

        On return all rows are on the disk.

        Args:
            start: what the ranks are told.
            share: grants images.
            rows: takes the rows.

        Raises:
            CollageError: rows could not be written, or the job must not go on.
        """
        self.start, self.plan = start, self.plan.at_batch(start.batch)
        self.share, self.rows = share, rows
        # No rank sends a message between its last answer to a question and the start.
        self.worker_group.transport.expect(start.answer_bytes)
        self.worker_group.start(start)
        self.reader = self.enter_context(self.open_reader())
        unit = self.plan.settings.group_size * start.batch
        self.leased = LeasedImages(share, self.reader, rows, unit, build_book(self.plan))
        self.coordinator = self.build_coordinator()
        share.begin(self.totals, self.leased)
        self._begin_to_tell()
        ready, lost, unfit = roll_call(self.plan, self.worker_group, self.hellos, start.steady)
        try:
            self.coordinator.unfit |= unfit
            finish = self.coordinator.run(ready, lost | unfit)
            self.worker_group.end()
        finally:
            fault = rows.drain()
        if fault is not None:
            raise fault
        return finish

    def use(self) -> Use:
        """What this coordinator has done with its time."""
        meter = self.plan.shards.meter
        return self.coordinator.work.use(meter.reading_ns, meter.decoding_ns)

    def limit(self) -> Limit:
        """What limits this team so far."""
        workers = [
            RankUse(rank, use, self.hellos[rank].host, next(iter(self.hellos[rank].devices), ""))
            for rank, use in sorted(self.coordinator.uses.items())
        ]
        return limit_of(workers, [self.use()], open_loop=self.plan.settings.open_loop)

    def report(self) -> None:
        """Update the progress lines; called again and again."""
        self.rows.tick(soon=self.share.hurry or self.coordinator.core.checks.held)
        totals = self.totals
        self._watch.look(totals.audited, totals.differing)
        losses = self.worker_group.detector.timeouts.losses
        self._told.tell(totals, len(losses), self._total)

    @property
    def _total(self) -> int:
        """The total of the progress line. Other jobs make it less."""
        return min(self._audience.total, self.share.total)

    def publish(self, last: bool = True) -> None:
        """Update the status files; `last`: now, whatever their interval."""
        self._audience.files.offer(self._snapshot, now=last)

    def facts(self) -> dict[str, Any]:
        """The manifest's facts about who read the input, and how long the session took."""
        ranks, own = set(self.plan.placement.workers), self.plan.placement.coordinator
        some_are_sent = self.reading < ranks
        return {
            "cells_ns": self.reader.cells_ns,  # time of the reading thread, for all images
            "read_by": sorted({own, *self.reading} if some_are_sent else self.reading),
            "seconds": (time.monotonic_ns() - self._began_ns) / 1e9,
        }

    # ---- the parts of a session ---------------------------------------------

    def _core(self, asked: CoreSettings, table: Table) -> Core:
        """The core, which is recorded if the settings say so."""
        settings, session = self.plan.settings, self.session
        scheme, name = settings.scheme_settings(), settings.record
        if name is None:
            return Core(asked, make_scheme(scheme), table)
        core = RecordedCore(asked, make_scheme(scheme), table)
        with writing(path := Path(name if session == 1 else f"{name}-{session}")):
            core.record = Record(path, asked, scheme, table)
        self.callback(core.record.close)
        return core

    def _arrivals(self) -> Arrivals:
        """When images arrive; if some have their row already, the first of the others arrives at
        once.
        """
        times_ns = self.plan.settings.arrival_times_ns(len(self.plan.order))  # (n,) int64
        if times_ns is None:
            return ClosedLoop()
        times_ns = times_ns[len(times_ns) - self._audience.total :]
        return OpenLoop(times_ns - times_ns[:1])

    def _begin_to_tell(self) -> None:
        settings, files = self.plan.settings, self._audience.files
        status = StatusReporter(
            self._audience.total,
            self._audience.phase or settings.scheme,
            self._audience.lines,
            every_s=settings.status_every_s,
        )
        self.callback(status.close)
        self._told, self._watch = ShownProgress(status, settings), AgreementWatch(self.plan.by_file)
        files.batch_costs = self.start.batch_costs
        files.begin()
        status.follow(self.publish, files.begin)

    def _snapshot(self) -> tuple[dict[str, Any], np.ndarray]:
        detector = self.worker_group.detector
        found = snapshot(self.coordinator.core, self.totals, detector, self._total)
        uses = self.coordinator.uses
        for rank in found["ranks"]:
            if rank["rank"] in self.coordinator.released:
                rank["state"] = RELEASED
            rank["busy"] = uses.get(rank["rank"], Use()).busy
        limit = self.limit()
        self._warn_of_idle_gpus(limit, ended=found["state"] == ENDING)
        return {**found, "limit": limit.text()}, self.rows.recent_tasks()

    def _warn_of_idle_gpus(self, limit: Limit, ended: bool) -> None:
        """Warn once, after a minute or at the end of a shorter run."""
        late = ended or self.elapsed_ns > WARN_AFTER_NS
        if late and limit.name and limit.warning and not self._warned:
            self._warned = True
            tell(limit.warning)


def build_encoder(plan: Plan) -> Encoder:
    """The encoder of a coordinator."""
    return make_encoder(plan.grid, plan.shards.shape, len(plan.placement.kinds))


def open_reader(plan: Plan, encoder: Encoder, reading: Collection[int]) -> ReadAhead:
    """The coordinator's reader, for workers that do not read their images themselves.

    It also makes cells if collages are pasted here. Otherwise encoded images are sent as files and
    decoded by the worker, except for tasks with many images: these are decoded here, because a file
    can be larger than its pixels. If all workers read, only places and labels are read here.

    Args:
        plan: of the run. Images are added to the reader as they are granted.
        encoder: pastes collages.
        reading: ranks that read their images themselves.
    """
    others = set(plan.placement.workers) - (set(reading) if plan.settings.by_place else set())
    kinds = [KIND[kind] for rank in others for kind in plan.placement.of_rank[rank]]
    pasted = any(kind.encoded for kind in kinds)
    batched = any(kind.batched for kind in kinds)
    return ReadAhead(
        plan.shards,
        plan.order,
        SENT_BATCH if others else NAMED_BATCH,
        shrink=encoder.shrink if pasted else None,
        pixels=bool(others),
        files=not (pasted or batched) and plan.shards.fit is not None,
        growing=True,
        first=plan.first,
    )


def build_book(plan: Plan) -> PairBook | None:
    """The book of pairs that choose a threshold; None if `agree` is not set."""
    if plan.settings.agree is None:
        return None
    return PairBook(plan.front, plan.order, plan.shards)


class ShownProgress:
    """Progress lines. As in the summary, the rate counts from the admission of the first image
    after the warm-up, and the collage share leaves out the warm-up."""

    def __init__(self, status: StatusReporter, settings: RunSettings) -> None:
        self._status = status
        self._own_warmup = settings.warm_groups * settings.group_size  # images of this team
        self._warmup = settings.teams * self._own_warmup
        self._counts = self._own_warmup == 0  # whether the rate leaves out the warm-up already
        self._collages = settings.uses(COLLAGE)
        self._before = Totals()  # totals of the warm-up

    def tell(self, totals: Totals, lost_ranks: int, total: int) -> None:
        """Show the totals of the session so far, of `total` images."""
        self._status.total = total
        if not self._counts and totals.admitted > self._own_warmup:
            self._counts = True
            self._status.begin(totals.images)
        if self._before.images < self._warmup <= totals.images:
            self._before = replace(totals)
        fields: dict[str, Any] = {}
        if self._collages:
            measured = max(1, totals.images - self._before.images)
            share = (totals.collage - self._before.collage) / measured
            fields["collage_share"] = f"{100 * share:.1f} %"
        if lost_ranks:
            fields["lost_ranks"] = lost_ranks
        self._status.update(totals.images, **fields)


def snapshot(core: Core, totals: Totals, detector: FailureDetector, total: int) -> dict[str, Any]:
    """The content of a status file: progress, and each rank's state and number of tasks.

    Args:
        core: knows the ranks that were ready.
        totals: counts so far.
        detector: knows the lost ranks.
        total: number of images of the session.
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
        for rank in core.ranks.known.values()
    ]
    for rank, loss in lost.items():
        if rank not in core.ranks.known:  # lost before it was ready
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
