"""The bench on the ranks of one world: the job's own loop, and whose turn it is.

Owns: the turns of the variants, the job's blocks.

Every rank knows the number of rounds, so that no message says which variant comes
next. Job and bare loops have a communicator each: their messages cannot mix.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from round_bare import BareBlock, World, answer_blocking, answer_polling
from round_report import VARIANTS, Block, RoundMeter, world_report
from round_settings import BenchSettings

from collage_mpi.core.events import COMPLETE
from collage_mpi.errors import ExitCode
from collage_mpi.faults.process_monitor import CoordinatorMonitor
from collage_mpi.job.handshake import task_bytes
from collage_mpi.job.messages import Start
from collage_mpi.job.networks import NetworkLoader
from collage_mpi.job.plan import Plan, make_plan
from collage_mpi.job.provenance import fixed_facts
from collage_mpi.job.session import Audience, TeamSession
from collage_mpi.job.shared import Share
from collage_mpi.job.worker import Worker
from collage_mpi.job.worker_group import WorkerGroup
from collage_mpi.ledger.jobs import register
from collage_mpi.ledger.owner import Owner, join
from collage_mpi.ledger.records import Run
from collage_mpi.mpi.protocol import UP_BYTES
from collage_mpi.mpi.transport import CoordinatorTransport, WorkerTransport, library_version
from collage_mpi.results import read_results
from collage_mpi.results.jobs import entry
from collage_mpi.results.lease_files import LeaseFiles
from collage_mpi.results.row_sink import RowSink
from collage_mpi.results.status import StatusFiles
from collage_mpi.results.writer import open_folder
from collage_mpi.rows import PLACED
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards import ReadAhead, write_shard
from collage_mpi.shards.order import Order, Range
from collage_mpi.shards.readahead import Images
from collage_mpi.system.hard_exit import leave
from collage_mpi.system.progress import NoLines, StatusReporter

if TYPE_CHECKING:
    from cProfile import Profile

    from collage_mpi.job.coordinator import Coordinator
    from collage_mpi.job.packing import Reader

IMAGES = 128  # distinct ones, used again and again: 19 MB at 224 px, beyond most caches
EVERY_S = 1e9  # seconds between two lines on how a block stands: none come
SESSION, RATE = 1, 1000.0  # of the only job; images a second that it expects to do
GRACE_MS = 60_000.0  # the collage never wins: all nine single answers are always awaited


def bench_world(
    settings: BenchSettings, comm: Any, mpi: Any, profile: Profile | None = None
) -> dict[str, Any] | None:
    """All variants in turns; the report on rank 0, None on the others.

    Raises:
        UsageError, EnvironmentFault: on rank 0, the world or the temporary folder.
    """
    world = World(settings, comm.Dup(), comm.Dup(), mpi, profile)
    if world.rank > 0:
        serve(world)
        return None
    with tempfile.TemporaryDirectory(prefix="collage-mpi-bench-") as folder:
        return measure(world, Path(folder))


def turns(settings: BenchSettings) -> list[tuple[int, str]]:
    """(block, variant) in order; each block starts with another variant."""
    names = list(VARIANTS)
    return [
        (block, names[(block + i) % len(names)])
        for block in range(settings.blocks)
        for i in range(len(names))
    ]


# ---- rank 0 -----------------------------------------------------------------


def measure(world: World, folder: Path) -> dict[str, Any]:
    """Rank 0's part of every turn, and the report."""
    from os import getloadavg

    load, settings = getloadavg(), world.settings
    plan = bench_plan(world, folder)
    order = turns(settings)
    status = StatusReporter(len(order), f"{world.size - 2}+1 ranks", unit="blocks")
    measured: dict[str, list[Block]] = {name: [] for name in VARIANTS}
    try:
        images, _ = plan.shards.read_all()  # (IMAGES, H, W, C) uint8
        for done, (block, name) in enumerate(order):
            status.update(done)
            world.meet()
            if name.startswith("job"):
                found = JobBlock(world, plan, images, folder / f"{name}-{block}").play(name)
            else:
                made = images if name == "bare-encode" else None
                found = BareBlock(world, made).play(blocks=name == "blocking")
            measured[name].append(found)
        status.update(len(order))
    finally:
        plan.shards.close()
    library = library_version(world.mpi)
    return world_report(settings, world.size, measured, _shortened(library), load)


def _shortened(library: str) -> str:
    """`MPICH Version:   5.0.1` and `Open MPI v5.0.10, package: ...` as one short name."""
    return " ".join(library.partition(",")[0].replace("Version:", " ").split())


def bench_plan(world: World, folder: Path) -> Plan:
    """The job's plan on a shard of random images that is written for it."""
    settings = world.settings
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (IMAGES, *settings.image_shape), np.uint8)
    shard = folder / "images.h5"
    write_shard(shard, pixels, np.arange(IMAGES) % 10, class_names=[str(i) for i in range(10)])
    asked = RunSettings(
        shards=(str(shard),),
        single="null",
        collage="null",
        out=str(folder / "run"),
        side=settings.side,
        cell_px=settings.grid.cell_px,
        singles=world.size - 2,
        assign="turn",
        endgame="off",
        confidence=1.0,
        deadline_ms=GRACE_MS,
        between="drain",
        device="cpu",
        warmup_groups=settings.warmup,
        status_every_s=EVERY_S,
    )
    plan = make_plan(asked, world.size)
    order = np.arange(settings.played_rounds * settings.grid.cells, dtype=np.int64) % IMAGES
    return replace(plan, order=Order.of_list(order))


class MemoryReader:
    """Images and their cells that are there already."""

    cells_ns = 0

    def __init__(self, images: np.ndarray, cells: np.ndarray) -> None:
        """Images: (n, H, W, C) uint8; cells: theirs."""
        self._images, self._cells = images, cells
        self._order: list[int] = []
        self._next = 0

    def add(self, ranges: Sequence[Range]) -> None:
        """Append the images at positions to what is taken."""
        self._order += [position % IMAGES for each in ranges for position in range(*each)]

    @property
    def remaining(self) -> int:
        """Images not yet taken."""
        return len(self._order) - self._next

    @property
    def ready(self) -> int:
        """All of them can be had at once."""
        return self.remaining

    @property
    def failed(self) -> bool:
        """Memory does not fail."""
        return False

    def take(self, n: int) -> Images:
        """The next n images."""
        chosen = np.array(self._order[self._next : self._next + n], np.int64)
        positions = np.arange(self._next, self._next + len(chosen))
        self._next += len(chosen)
        placed = np.zeros(len(chosen), PLACED)
        placed["row"], placed["has_label"], placed["label"] = chosen, True, chosen % 10
        placed["position"] = positions
        return Images(positions, chosen, placed, self._images[chosen], self._cells[chosen])


class MeteredReader:
    """Any reader; the first image of a group that is asked for begins a round."""

    def __init__(self, reader: Reader, meter: RoundMeter, group_size: int) -> None:
        self._reader, self._meter, self._group_size = reader, meter, group_size
        self._taken = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    def take(self, n: int) -> Images:
        """The next images; right after the coordinator has read t0."""
        if self._taken % self._group_size == 0:
            self._meter.begin_round()
        images = self._reader.take(n)
        self._taken += len(images)
        return images


class MeteredSession(TeamSession):
    """A team's session whose reader is metered.

    Attributes:
        meter: begins a round with each group.
        images: (n, H, W, C) uint8 in memory; None to read them from the shards.
    """

    meter: RoundMeter
    images: np.ndarray | None = None

    @contextmanager
    def open_reader(self) -> Iterator[Reader]:
        """The images in memory, or those of the shards."""
        plan, encoder, size = self.plan, self.encoder, self.plan.settings.group_size
        if self.images is not None:
            made = MemoryReader(self.images, encoder.shrink(self.images))
            yield MeteredReader(made, self.meter, size)
            return
        with ReadAhead(plan.shards, plan.order, shrink=encoder.shrink, growing=True) as reader:
            yield MeteredReader(reader, self.meter, size)

    def build_coordinator(self) -> Coordinator:
        """The loop; its polls are counted by the meter."""
        coordinator = super().build_coordinator()
        self.meter.polls = coordinator.polls
        return coordinator


class JobBlock:
    """One block of the job itself, exactly as a run builds it."""

    def __init__(self, world: World, plan: Plan, images: np.ndarray, out: Path) -> None:
        self.world, self.plan, self.images, self.out = world, plan, images, out

    def play(self, name: str) -> Block:
        """Start the workers, run all rounds, let the workers go."""
        plan = self.plan
        if name == "job-carry":
            plan = replace(plan, settings=replace(plan.settings, between="carry", confidence=0.0))
        worker_group = self._group(None)
        try:
            meter = self._run(plan, worker_group, name)
        finally:
            worker_group.stop(0)
        groups = read_results(self.out).groups
        measured = np.sort(groups, order="group")[self.world.settings.warmup : -1]
        return meter.block(measured["encode_ns"])

    def _group(self, ranks: Sequence[int] | None) -> WorkerGroup:
        transport = CoordinatorTransport(self.world.job_comm, self.world.mpi, workers=ranks)
        return WorkerGroup(transport)

    def _run(self, plan: Plan, worker_group: WorkerGroup, name: str) -> RoundMeter:
        worker_group.greet()
        fixed, images, owner = entry(fixed_facts(plan)), len(plan.order), "a" * 32
        unit = plan.settings.group_size
        store = open_folder(self.out, shared=False)
        run = join(store, Run(1, 0, images, images, by=owner, whole=True, settings=fixed))
        told = {"session": register(store, owner, {}), "owner": owner, "run_id": fixed["run_id"]}
        files = LeaseFiles(self.out, run)
        share = Share(Owner(store, run, unit, name=owner, files=files), unit, RATE)
        rows = RowSink(self.out, fixed, SESSION, share.wrote)
        files = StatusFiles(
            self.out, {**told, "label": name, "total": images, "before": 0}, EVERY_S
        )
        audience = Audience(files, images, lines=NoLines())
        with MeteredSession(plan, worker_group, SESSION, audience, lambda: None) as session:
            session.meter = meter = RoundMeter(self.world.settings)
            profile = None
            if name == "job-memory":
                session.images, profile = self.images, self.world.profile
            session.make_ready()
            work = (Start({}, {}, 1, task_bytes(plan, session.encoder), UP_BYTES), share, rows)
            finish = profile.runcall(session.work, *work) if profile else session.work(*work)
        share.leave()
        files.end(finish.status)
        assert finish.status == COMPLETE, finish
        return meter


# ---- workers ----------------------------------------------------------------


def serve(world: World) -> None:
    """A worker's part of every turn."""
    loader = NetworkLoader(world.rank, world.size)
    for _, name in turns(world.settings):
        world.meet()
        if name.startswith("job"):
            transport = WorkerTransport(world.job_comm, world.mpi)
            monitor = CoordinatorMonitor(world.rank, lambda: leave(ExitCode.INCOMPLETE))
            Worker(transport, loader, monitor=monitor).serve()
            transport.close()
        elif name == "blocking":
            answer_blocking(world)
        else:
            answer_polling(world)
