"""`run --dry-run`: makes the checks of a run, times the networks, and estimates how long the run
would take; nothing is written. Under mpiexec each worker loads its networks, as at the start of a
run. Without workers this process loads the networks one after another.
"""

from __future__ import annotations

import resource
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from collage_mpi.encoding.collage import Encoder
from collage_mpi.errors import ExitCode, UsageError
from collage_mpi.job.changeover import Changeover, least_batch
from collage_mpi.job.handshake import (
    ServiceCosts,
    handshake,
    kept_columns,
    most_together,
    readers,
    refuse_other_networks,
    service_costs,
    welcomes,
)
from collage_mpi.job.messages import Hello, Measured
from collage_mpi.job.networks import NetworkLoader, Networks, gpus_here
from collage_mpi.job.plan import Plan, make_plan, warn_of_one_class_groups, warn_of_small_pictures
from collage_mpi.job.run import Ask, left_of, team_of, warn_of_bad_shards
from collage_mpi.job.session import build_encoder, open_reader
from collage_mpi.job.teams import OtherTeams
from collage_mpi.job.worker_group import WorkerGroup
from collage_mpi.kinds import SINGLE
from collage_mpi.models.info import NO_TUNING
from collage_mpi.results import has_run
from collage_mpi.results.manifest import compose
from collage_mpi.results.writer import check_place
from collage_mpi.settings.run_settings import RunSettings, with_every_answer
from collage_mpi.shards import ShardSet
from collage_mpi.shards.order import Order
from collage_mpi.shards.schema import remake_command
from collage_mpi.shards.source import MOST_DECODERS, ReadMeter
from collage_mpi.simulation.costs import Costs
from collage_mpi.simulation.runs import simulate_in_memory
from collage_mpi.simulation.simulator import SimulatedJob
from collage_mpi.system.bottleneck import RankUse, Use, limit_of
from collage_mpi.system.environment import (
    allowed_cores,
    available_bytes,
    local_size,
    threads_per_rank,
)
from collage_mpi.system.files import free_bytes
from collage_mpi.system.printable import counted, minutes, numbers_text, say, size_text

READ_IMAGES = 512  # images that rank 0 reads, to measure the speed of reading
DECODED_IMAGES = 64  # images read and decoded on one core, from all parts of the input
RESULT_BYTES_PER_IMAGE = 500  # rows of image, tasks and group are 197 + 2 x 166 + 55 bytes at most
SIMULATED_GROUPS = 200  # the time of all is estimated from these; they simulate in a second
SIMULATED_BATCHES = 16  # simulated at least; fewer do not show how batches wait for each other


@dataclass(frozen=True)
class Timings:
    """The measured times, and how they were measured.

    Attributes:
        costs: measured service times.
        tunings: kind -> number format and threads of its network, as printed.
        on_gpu: whether the networks run on GPUs.
        gain: how many times as quick the single network is likely to be in another runtime.
        shared: largest number of ranks that share one core, or one GPU; at least 1.0.
        who: where the times were measured, as printed.
        memory: the memory needed and available, as printed.
    """

    costs: ServiceCosts
    tunings: Mapping[str, str]
    on_gpu: bool
    gain: float
    shared: float = 1.0
    who: str = ""
    memory: str = ""

    @property
    def asked_ns(self) -> float:
        """Service time of one image in a full batch of the single network, ns, as in the job."""
        inputs, further = self.costs.batch, self.costs.batch_costs.get(SINGLE, 1.0)
        return self.single_ns / self.gain * (1 + further * (inputs - 1)) / inputs

    @property
    def single_ns(self) -> int:
        """Measured time of one image in the single network, ns. For a scheme without a single
        network, of one input in its own network; 0 if nothing was measured.
        """
        idle_ns = self.costs.idle_ns
        return idle_ns.get(SINGLE) or next(iter(idle_ns.values()), 0)


@dataclass(frozen=True)
class Reads:
    """Times to get the input of one image, in ns.

    Attributes:
        rank0_ns: on rank 0.
        reading_ns, decoding_ns: on the rank that classifies it; decoding by one core.
        one_core_ns: to read and decode it on one core, wherever this is done.
        decoders: how many pictures a rank decodes at a time.
    """

    rank0_ns: float = 0.0
    reading_ns: float = 0.0
    decoding_ns: float = 0.0
    one_core_ns: float = 0.0
    decoders: int = 1

    @property
    def decoded_ns(self) -> float:
        """Time to decode an image on a rank with all its cores, ns."""
        return self.decoding_ns / self.decoders


def forecast(settings: RunSettings, worker_group: WorkerGroup | None, ask: Ask) -> ExitCode:
    """Make the checks of a run, time its networks, and print what the run would do.

    Args:
        worker_group: the worker ranks, or None if this process is the only one.
        ask: as for `run_session`.

    Returns:
        The exit code that the run would have: COMPLETE, or DATA if shards cannot be read.

    Raises:
        UsageError, EnvironmentFault, DataFault: as the run would.
    """
    settings.require_inputs()
    out = Path(settings.out)
    check_place(out, shared=settings.shared_out == "on")
    known = compose(out) if has_run(out) else {}
    size = settings.launch_size if worker_group is None else worker_group.transport.size
    team = 0 if worker_group is None else team_of(settings, worker_group)
    launched = worker_group is not None
    plan = make_plan(settings, size, known, team=team, launched=launched, update=ask.update)
    with closing(plan.shards):
        warn_of_one_class_groups(plan)
        warn_of_small_pictures(plan)
        warn_of_bad_shards(plan.shards)
        order = plan.order
        if known:
            found = left_of(plan, known, ask)
            if found is None:
                if not team:
                    say(f"{out}: every image already has its row; there is nothing to do")
                return ExitCode.COMPLETE
            plan, order = found
        encoder = build_encoder(plan)
        reads = _reads(plan, encoder, order)
        if worker_group is None:
            measured = _measured_here(plan, encoder, order)
        else:
            asked = known.get("networks") or {}, order, ask.stop_reason
            measured = _measured_there(plan, encoder, worker_group, *asked)
            _wait_for_teams(worker_group, ask)
        plan = plan.at_batch(measured.costs.batch)
        for name, text in () if team else _lines(plan, order, measured, reads, bool(known)):
            say(f"{name:<10}{text}")
        return ExitCode.DATA if plan.shards.bad else ExitCode.COMPLETE


def _wait_for_teams(group: WorkerGroup, ask: Ask) -> None:
    """Rank 0 waits until the ranks of the other teams have loaded their networks, too."""
    if group.others is None or not group.others.ranks:
        return
    teams = OtherTeams(group.others)

    def look() -> None:
        if (reason := ask.stop_reason()) is not None:
            teams.halt(reason)
        teams.look()

    look()
    teams.wait(look, lambda: False)


def _reads(plan: Plan, encoder: Encoder, order: Order) -> Reads:
    """The times to read and decode images from all parts of the input."""
    rank0_ns, settings = _read_ns(plan, encoder, order), plan.settings
    places = np.linspace(0, len(order) - 1, min(DECODED_IMAGES, len(order))).astype(np.int64)
    chosen = order.indices(places)
    with ShardSet(plan.shards.infos) as shards:
        shards.decoders = 1
        _, firsts = np.unique(shards.locate_each(chosen)[0], return_index=True)
        shards.read_checked(chosen[firsts])  # opens the files, which a job does only once
        shards.meter = meter = ReadMeter()
        shards.read_checked(chosen)
    reading_ns, decoding_ns = (
        ns / max(1, len(chosen)) for ns in (meter.reading_ns, meter.decoding_ns)
    )
    one_core_ns = reading_ns + decoding_ns
    if not settings.by_place:  # rank 0 reads, and decodes too, or sends files to the ranks
        reading_ns = 0.0
        with open_reader(plan, encoder, ()) as reader:
            decoding_ns *= reader.files
    ranks = local_size() or len(plan.placement.kinds) * settings.teams
    decoders = min(MOST_DECODERS, threads_per_rank(ranks)) if settings.by_place else 1
    return Reads(rank0_ns, reading_ns, decoding_ns, one_core_ns, decoders)


def _read_ns(plan: Plan, encoder: Encoder, order: Order) -> float:
    """Time to read and shrink an image on rank 0, ns; 0.0 if the workers read the images."""
    read = min(READ_IMAGES, len(order))
    if plan.settings.by_place or not read:
        return 0.0
    part = order.part([(0, read)])
    # Not timed: one image of each shard, which opens the file. A job opens each file only once.
    shards, _ = plan.shards.locate_each(part.indices(range(read)))
    _, firsts = np.unique(shards, return_index=True)
    _read(plan, part.part((first, first + 1) for first in firsts.tolist()), encoder)
    start_ns = time.monotonic_ns()
    _read(plan, part, encoder)
    return (time.monotonic_ns() - start_ns) / read


def _read(plan: Plan, order: Order, encoder: Encoder) -> None:
    with open_reader(replace(plan, order=order), encoder, ()) as reader:
        reader.add([(0, len(order))])
        while reader.take(len(order)):
            pass


class _ThisProcess(WorkerGroup):
    """Takes the place of a team's ranks, and makes their measurements in this process."""

    def __init__(self, plan: Plan, encoder: Encoder) -> None:
        self._plan, self._clock, self._measured = plan, time.monotonic, {}
        loader = NetworkLoader(self.present[0], len(plan.placement.kinds))
        told = welcomes(plan, encoder)
        self.networks: dict[str, Networks] = {}
        self.hellos: dict[int, Hello] = {}  # of ranks that hold one network
        self.rss_bytes: dict[str, int] = {}  # kind -> peak of this process after its network ran
        clocks = time.monotonic_ns, time.process_time_ns
        for kind, spec in plan.networks.items():
            welcome = replace(told[plan.placement.ranks_of(kind)[0]], networks={kind: spec})
            self.networks[kind] = Networks(welcome, loader, *clocks)
            hello = self.networks[kind].hello()
            self.hellos |= dict.fromkeys(plan.placement.ranks_of(kind), hello)
            self.rss_bytes[kind] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    @property
    def present(self) -> list[int]:
        return list(self._plan.placement.workers)

    def measure_together(
        self,
        ranks: Collection[int],
        kind: str,
        batch: int,
        interrupted: Callable[[], str | None] = lambda: None,
    ) -> dict[int, Measured]:
        return {min(ranks): self.networks[kind].measured(kind, batch)}

    def end(self) -> None:
        """Does nothing, because no rank waits."""


def _measured_here(plan: Plan, encoder: Encoder, order: Order) -> Timings:
    """Load and time each network in this process, with the settings of a rank on this host."""
    here, workers = _ThisProcess(plan, encoder), plan.placement.workers
    ranks = plan.settings.teams * len(workers)
    needed = sum(max(here.rss_bytes[k] for k in plan.placement.kinds[rank]) for rank in workers)
    needed, there = plan.settings.teams * needed, available_bytes()
    memory = f"at most {size_text(needed)} for {ranks} ranks, measured in this process"
    if there is not None:
        memory += f"; {size_text(there)} available here"
        if needed > there:
            memory += ": TOO LITTLE for all ranks on this host"
    reading = workers if plan.settings.by_place else ()
    made = _timings(plan, here, encoder, order, here.hellos, reading)
    shared = max(1.0, ranks / (gpus_here() if made.on_gpu else allowed_cores()))
    who = f"in this process, on {'cuda' if made.on_gpu else 'cpu'}"
    return replace(made, shared=shared, who=who, memory=memory)


def _measured_there(
    plan: Plan,
    encoder: Encoder,
    worker_group: WorkerGroup,
    known: dict[str, str],
    order: Order,
    stop_reason: Callable[[], str | None],
) -> Timings:
    """Let every rank load its networks, and time one rank of each kind while the others wait."""
    hellos = handshake(plan, worker_group, encoder, stop_reason)
    for hello in hellos.values():
        refuse_other_networks(plan, hello.fingerprints, known)
    there = available_bytes()
    hosts = Counter(hello.host for hello in hellos.values() if hello.kinds)
    memory = "all ranks have loaded their networks and answered"
    if there is not None:
        memory += f"; {size_text(there)} are left on rank 0's host"
    gpus = Counter((h.host, d) for h in hellos.values() for d in h.devices if d != "cpu")
    on_cores = max(hosts.values()) / allowed_cores()  # rank 0 takes little of one
    shared = float(max(gpus.values())) if gpus else max(1.0, on_cores)
    named = ", ".join(f"{host} ({ranks} ranks)" for host, ranks in sorted(hosts.items()))
    who = f"on a rank of each kind while the others wait; on {named}"
    made = _timings(plan, worker_group, encoder, order, hellos, readers(plan, hellos))
    return replace(made, shared=shared, who=who, memory=memory)


def _timings(
    plan: Plan,
    group: WorkerGroup,
    encoder: Encoder,
    order: Order,
    hellos: Mapping[int, Hello],
    reading: Collection[int],
) -> Timings:
    """The times of the ranks' networks, in the batch that the job would choose."""
    tunings = {kind: how for hello in hellos.values() for kind, how in hello.tuning.items()}
    devices = {device for hello in hellos.values() for device in hello.devices}
    most = most_together(plan, encoder, len(order), reading, kept_columns(hellos))
    costs = service_costs(plan, group, most, least_batch(plan, tunings.values(), devices))
    group.end()
    change = Changeover(plan.at_batch(costs.batch), hellos, encoder, costs, order)
    on_gpu = any(device != "cpu" for device in devices)
    return Timings(costs, tunings, on_gpu, change.gains.get(SINGLE, 1.0))


def _lines(
    plan: Plan, order: Order, measured: Timings, reads: Reads, resume: bool
) -> Iterator[tuple[str, str]]:
    settings, shards = plan.settings, plan.shards
    labels = settings.labels()
    shape = " x ".join(map(str, shards.shape))
    groups = -(-len(order) // settings.group_size)
    yield "scheme", ", ".join([*labels.values(), settings.mode, settings.describe_delays()])
    of = (f"{len(order):,} of " if resume else "") + counted(len(plan.order), "image")
    grouped = f"{counted(groups, 'group')} of {settings.group_size}"
    yield "images", f"{of}, {grouped}, order {settings.order}"
    named = "number of classes known from the network's first answer"
    if plan.classes is not None:
        named = f"{plan.classes} classes" + ("" if shards.labels() is None else ", labelled")
    bad = f", {len(shards.bad)} cannot be read" if shards.bad else ""
    yield "shards", f"{len(shards.infos)} good{bad}; {shape} {shards.dtype}, {named}"
    for kind, spec in plan.networks.items():
        where = numbers_text(plan.placement.ranks_of(kind))
        how = measured.tunings.get(kind, NO_TUNING)
        many = "" if where.isdecimal() else "s"
        yield kind, f"{spec} on rank{many} {where}" + ("" if how == NO_TUNING else f", {how}")
    ranks = f"{len(plan.placement.kinds)}: {plan.placement.describe()}"
    teams = settings.teams
    yield "ranks", ranks if teams == 1 else f"{teams} teams, each of {ranks}"
    yield "memory", measured.memory
    yield "output", _output(Path(settings.out), len(order), resume)
    yield "service", _service(plan, measured)
    if any(info.storage != "images" and info.is_picture for info in shards.infos):
        yield "prep", prep_text(plan, measured, reads)
    images = -(-len(order) // teams)
    yield "time", _time(plan, images, measured, reads)
    yield "limit", _limit(plan, images, measured, reads)
    yield "", "nothing was written"


def _output(out: Path, images: int, resume: bool) -> str:
    free = free_bytes(next(path for path in (out, *out.parents) if path.exists()))
    room = "" if free is None else f", {size_text(free)} are free"
    needed = images * RESULT_BYTES_PER_IMAGE
    short = ": TOO LITTLE" if free is not None and free < needed else ""
    begins = "goes on" if resume else "is new"
    return f"{out} {begins}; at most {size_text(needed)} of rows{room}{short}"


def prep_text(plan: Plan, measured: Timings, reads: Reads) -> str:
    """Says whether reading and decoding an image on one core takes longer than the network, so that
    shards would be faster, and which command makes them.
    """
    settings, read_ns, asked_ns = plan.settings, reads.one_core_ns, measured.asked_ns
    readers = "each rank" if settings.by_place else "rank 0"
    ranks = 1 if settings.by_place else settings.teams * len(plan.placement.workers)
    text = f"{readers} reads and decodes an image in {read_ns / 1e6:.3g} ms (one core of this "
    text += f"host); the network takes {asked_ns / 1e6:.3g} ms"
    text += f" on each of {ranks} ranks" if ranks > 1 else ""
    if read_ns <= asked_ns / ranks:
        return f"{text}: shards would not be faster"
    height, width, _ = plan.shards.shape
    shape = plan.shards.shape if height == width else None
    return f"{text}: shards would be faster: `{remake_command(settings.shards, shape)}`"


def _service(plan: Plan, measured: Timings) -> str:
    kinds = list(plan.networks)
    text = f"{kinds[0]} {measured.single_ns / 1e6:.3g} ms"
    if len(kinds) > 1:
        text += f", {kinds[1]} {measured.costs.ratio:.2f} times that"
    if measured.gain > 1.0:
        text += f", in another runtime {measured.gain:.1f} times as quick in all"
    return f"{text}; measured {measured.who}"


def _seconds(plan: Plan, images: int, measured: Timings, reads: Reads, share: float) -> float:
    """The time of the run: simulated, and no less than its input takes.

    A network on the CPU and the decoder take turns on the same cores. A GPU computes meanwhile.

    Args:
        plan: of the run.
        images: of one team.
        measured: times of the networks.
        reads: times of the input.
        share: how many ranks share a core or a GPU.
    """
    each_s = images / len(plan.placement.workers) / 1e9  # for a ns an image on each rank
    network_s = _simulated_s(plan, images, measured, share)
    decoding_s = each_s * reads.decoded_ns * (1.0 if measured.on_gpu else share)
    if not measured.on_gpu:
        network_s += decoding_s
    return max(network_s, each_s * reads.reading_ns + decoding_s, images * reads.rank0_ns / 1e9)


def _limit(plan: Plan, images: int, measured: Timings, reads: Reads) -> str:
    """What would limit the run on the ranks that were measured."""
    try:
        total_s = _seconds(plan, images, measured, reads, measured.shared)
    except UsageError:
        return "not known, since there is no estimate of the time"
    each, total_ns = images / len(plan.placement.workers), total_s * 1e9
    computing_ns = min(total_ns, each * measured.asked_ns * measured.shared)
    reading_ns, decoding_ns = each * reads.reading_ns, each * reads.decoded_ns
    decoding_ns *= 1.0 if measured.on_gpu else measured.shared
    input_ns = reading_ns + decoding_ns
    starved_ns = max(0.0, min(total_ns, input_ns) - measured.on_gpu * computing_ns)
    if plan.settings.injects:
        computing_ns = total_ns - starved_ns
    times = (total_ns, reading_ns, decoding_ns, starved_ns, computing_ns, reads.decoders)
    device = "cuda" if measured.on_gpu else "cpu"
    worker = RankUse(1, Use(*map(round, times)), "each", device)
    messages = images / measured.costs.batch
    read_ns = round(images * reads.rank0_ns)
    decodes = plan.shards.fit is not None and not reads.decoding_ns
    rank0 = Use(
        round(total_ns),
        0 if decodes else read_ns,
        read_ns if decodes else 0,
        computing_ns=round(messages * (Costs().receive_ns + Costs().send_ns)),
    )
    return limit_of([worker], [rank0], open_loop=plan.settings.open_loop).sentence


def _time(plan: Plan, images: int, measured: Timings, reads: Reads) -> str:
    """The time of the run, simulated with the measured service times: if each rank has a core or
    GPU of its own, and if they are shared as they are here.
    """
    try:
        least, most = (
            _seconds(plan, images, measured, reads, share) for share in (1.0, measured.shared)
        )
    except UsageError as error:
        return f"no estimate: {error}"
    text = f"about {minutes(least)}"
    if most > 1.1 * least:
        text += f" with a core or GPU for each rank, {minutes(most)} if {measured.shared:.1f} ranks"
        text += " share one"
    if plan.settings.takes_threshold:
        text += ", if the first network's answer counts for every image"
    return f"{text}; start-up not counted; simulated from these service times and rank 0's " + (
        "usual costs" + _reading_text(reads)
    )


def _reading_text(reads: Reads) -> str:
    if reads.rank0_ns:
        return f", read at {1e9 / reads.rank0_ns:,.0f} images/s"
    each_ns = reads.reading_ns + reads.decoded_ns
    return f"; each rank reads and decodes {1e9 / each_ns:,.0f} images/s" if each_ns else ""


def _simulated_s(plan: Plan, images: int, measured: Timings, share: float) -> float:
    groups = max(SIMULATED_GROUPS, SIMULATED_BATCHES * plan.settings.batch_size)
    count = min(images, groups * plan.settings.group_size)
    if count == 0:
        return 0.0
    settings = replace(plan.settings, out="", cost_ratio=measured.costs.ratio)
    if settings.takes_threshold:  # a simulation without answers has no scores
        settings = with_every_answer(settings)
    elif plan.asked:
        settings = replace(settings, confidence=plan.asked.confidence)
    costs = Costs(single_ns=max(1, round(measured.single_ns / measured.gain * share)))
    batch_costs = measured.costs.batch_costs
    job = SimulatedJob(settings, count, costs, measured_batch_costs=batch_costs)
    simulated = simulate_in_memory(job).groups
    return float((simulated["t0_ns"] + simulated["latency_ns"]).max()) / 1e9 * images / count
