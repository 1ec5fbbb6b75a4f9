"""The start of a session: welcomes the ranks, checks their answers, and measures their speed."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from statistics import median

import numpy as np

from collage_mpi.core.schemes import make_scheme
from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.vectors import MOST_BYTES, KeptColumn, most_floats, shown
from collage_mpi.errors import DataFault, RankGone, UsageError
from collage_mpi.job.coordinator import ReadyRank
from collage_mpi.job.messages import Hello, Measured, Start, Welcome, shards_in_messages
from collage_mpi.job.plan import LARGEST_INPUT_BYTES, Plan, check_top_k
from collage_mpi.job.row_reader import described
from collage_mpi.job.worker_group import WorkerGroup
from collage_mpi.kinds import KIND, SINGLE
from collage_mpi.models.info import Loading, tunings_text
from collage_mpi.models.named import is_foreign, is_function
from collage_mpi.mpi.answers import answer_message_bytes
from collage_mpi.mpi.protocol import UP_BYTES
from collage_mpi.mpi.tasks import FILE, PLACE, cancel_message_bytes, task_message_bytes
from collage_mpi.rows import MOST_ITEMS
from collage_mpi.settings.batches import (
    ChosenBatch,
    ModelTimes,
    MostGroups,
    Times,
    choose_batch,
    injected_ns,
    most_groups,
)
from collage_mpi.system.printable import numbered
from collage_mpi.system.progress import NoLines, WaitReporter
from collage_mpi.system.tell import tell
from collage_mpi.workload.straggler_settings import StragglerSettings

LARGEST_ANSWER_BYTES = 1 << 30  # MPI counts bytes in 31 bits

AGREEING, APART = 3, 0.01  # ranks that refute another one; scores that are the same
Known = tuple[tuple[int, float], ...]
MEASURABLE_NS = 50_000  # only null networks are faster; they have no costs worth measuring

PLAIN_LAUNCH = (
    "warning: --on-rank-loss continue needs a launch that keeps the other ranks when one dies. "
    "This launch does not: a lost rank ends the job (the same command goes on). Start it with\n"
    "  collage-mpi launch -n {ranks} --on-rank-loss continue -- run ...\n"
    "which adds what mpiexec needs; --dry-run shows the line. srun cannot do it."
)


def handshake(
    plan: Plan,
    worker_group: WorkerGroup,
    encoder: Encoder,
    interrupted: Callable[[], str | None],
) -> dict[int, Hello]:
    """Welcome all ranks and wait until they are ready; their hellos, by rank.

    Raises:
        UsageError, EnvironmentFault, DataFault: a rank cannot work, or ranks differ.
        RankGone: too few ranks are left to begin.
    """
    settings = plan.settings
    _tolerate_losses(plan, worker_group)
    reporter = WaitReporter(
        len(worker_group.present),
        "loading networks",
        NoLines() if plan.placement.coordinator > 0 else None,
        every_s=settings.status_every_s,
        unit="ranks",
    )
    shards = shards_in_messages(described(plan.shards)) if settings.by_place else ()
    told, limit_s = welcomes(plan, encoder), settings.start_timeout_s
    with closing(reporter):
        hellos = worker_group.welcome(told, limit_s, interrupted, reporter.update, shards)
    _check_hellos(plan, hellos)
    _require_quorum(plan, worker_group)
    return hellos


def _tolerate_losses(plan: Plan, worker_group: WorkerGroup) -> None:
    """Tell the detector whether the job goes on without lost ranks."""
    settings, detector = plan.settings, worker_group.detector
    goes_on = detector.fault_tolerant and settings.on_rank_loss != "abort"
    detector.tolerate(goes_on, settings.reply_timeout_s)
    if settings.on_rank_loss == "continue" and not detector.fault_tolerant:
        tell(PLAIN_LAUNCH.format(ranks=worker_group.transport.size))


def _check_hellos(plan: Plan, hellos: Mapping[int, Hello]) -> None:
    kept_columns(hellos)
    check_same_weights(hellos, plan.networks)
    if plan.classes is None:
        check_top_k(plan.settings, counted_classes(hellos, plan.networks))
    warn_of_mixed_tuning(hellos)


def readers(plan: Plan, hellos: Mapping[int, Hello]) -> frozenset[int]:
    """The ranks that read their images themselves. The user is told which ranks cannot."""
    if not plan.settings.by_place:
        return frozenset()
    lacking: dict[str, list[int]] = {}
    for rank, hello in sorted(hellos.items()):
        if hello.cannot_read:
            lacking.setdefault(hello.cannot_read, []).append(rank)
    for why, ranks in lacking.items():
        tell(f"warning: rank 0 reads the images and sends them to {numbered('rank', ranks)}: {why}")
    return frozenset(plan.placement.workers).difference(*lacking.values())


def roll_call(
    plan: Plan,
    worker_group: WorkerGroup,
    hellos: Mapping[int, Hello],
    steady: Mapping[str, str],
) -> tuple[list[ReadyRank], dict[int, str], dict[int, str]]:
    """The ranks that are ready, with the kinds of task that they may get; lost ranks of the plan,
    and those that answer known inputs wrongly -> why. `steady`: see `Start`."""
    losses = worker_group.detector.timeouts.losses
    workers = plan.placement.workers
    ready, wrong = [], wrong_at_first(hellos)
    for rank in workers:
        if rank in losses or rank in wrong:
            continue
        hello = hellos[rank]
        other = {kind for kind in steady if kind in hello.kinds and hello.how(kind) != steady[kind]}
        for kind in sorted(other):
            tell(
                f"warning: rank {rank} gets no task of the {kind} network, because it answers by "
                f"{hello.how(kind)}, and the promise of --agree is for {steady[kind]}"
            )
        kinds = frozenset(hello.kinds) - other
        ready.append(ReadyRank(rank, kinds, hello.host, hello.like, hello.devices))
    return ready, {rank: losses[rank].why for rank in workers if rank in losses}, wrong


def wrong_at_first(hellos: Mapping[int, Hello]) -> dict[int, str]:
    """The ranks whose answers to the known inputs are refuted -> why: at least three ranks of their
    kind agree on others. All that differ are told."""
    alike: dict[tuple[str, str], list[int]] = {}
    for rank, hello in sorted(hellos.items()):
        if hello.known:
            alike.setdefault((hello.like, hello.tuning.get(SINGLE, "")), []).append(rank)
    wrong: dict[int, str] = {}
    for ranks in alike.values():
        groups = [[b for b in ranks if _agree(hellos[a].known, hellos[b].known)] for a in ranks]
        most = max(groups, key=len)
        for rank in sorted(set(ranks).difference(most)):
            hello = hellos[rank]
            what = f"rank {rank} ({' and '.join(hello.devices)} of {hello.host})"
            told = f"{what} answers known inputs otherwise than {numbered('rank', most, AGREEING)}"
            if len(most) >= AGREEING:
                wrong[rank] = "its answers to known inputs are wrong"
                told += f" and gets no work; have its device examined, and leave {hello.host} out"
            tell(f"warning: {told}")
    return wrong


def _agree(ours: Known, theirs: Known) -> bool:
    """Whether two ranks say the same of the inputs that both have answered."""
    pairs = zip(ours, theirs, strict=False)
    return all(a == b and abs(x - y) <= APART for (a, x), (b, y) in pairs)


def _require_quorum(plan: Plan, worker_group: WorkerGroup) -> None:
    """Raise RankGone without a single rank; if the scheme uses none, without a rank of a kind."""
    kinds = make_scheme(plan.settings.scheme_settings()).needs
    for kind in {SINGLE} & kinds or kinds:
        if not set(plan.placement.ranks_of(kind)) & set(worker_group.present):
            raise RankGone(
                f"no {kind} rank is left, so the session cannot begin; the output is kept: go on "
                "with the same command"
            )


def check_same_weights(hellos: Mapping[int, Hello], specs: Mapping[str, str]) -> None:
    """Raise DataFault unless all ranks that hold a network hold the same weights.

    Args:
        specs: kind -> the name of its network. Kinds with the same network and name are compared.
    """
    first: dict[tuple[str, str], tuple[int, str]] = {}  # network, spec -> (rank, fingerprint)
    for rank, hello in sorted(hellos.items()):
        for kind, fingerprint in hello.fingerprints.items():
            what = KIND[kind].network, specs.get(kind, kind)
            other, expected = first.setdefault(what, (rank, fingerprint))
            if fingerprint != expected:
                raise DataFault(
                    f"rank {rank} on {hello.host} holds another {kind} network "
                    f"(SHA-256 {fingerprint[:12]}...) than rank {other} on "
                    f"{hellos[other].host} ({expected[:12]}...): {same_advice(what[1])}"
                )


def same_advice(spec: str) -> str:
    """What the user can do so that all ranks hold the same network."""
    if is_function(spec):
        return (
            f"{spec} makes other weights on each rank; let it load them from a file, or seed its "
            "random numbers (torch.manual_seed)"
        )
    return "make the weights the same file on every host"


def kept_columns(hellos: Mapping[int, Hello]) -> tuple[KeptColumn, ...]:
    """The columns that all ranks keep of an image; () for none.

    Raises:
        DataFault: the ranks' networks give different columns.
    """
    found = {hello.columns: rank for rank, hello in sorted(hellos.items()) if hello.columns}
    if len(found) > 1:
        told = "; ".join(f"{shown(columns)} on rank {rank}" for columns, rank in found.items())
        raise DataFault(
            f"the ranks' networks give different values for an image ({told}): use the same "
            "networks on all ranks"
        )
    return next(iter(found), ())


def counted_classes(hellos: Mapping[int, Hello], specs: Mapping[str, str]) -> int | None:
    """Number of classes of networks without a weights file of this package, by their first answers.

    None if all networks have such a file.

    Raises:
        DataFault: the networks have different numbers of classes.
    """
    found = {
        classes: (kind, rank)
        for rank, hello in sorted(hellos.items())
        for kind, classes in hello.classes.items()
        if is_foreign(specs.get(kind, ""))
    }
    if len(found) > 1:
        told = ", ".join(f"{n} ({kind}, rank {rank})" for n, (kind, rank) in found.items())
        raise DataFault(
            f"the networks have different numbers of classes: {told}; all must have the same"
        )
    return next(iter(found), None)


def refuse_other_networks(
    plan: Plan, networks: Mapping[str, str], known: Mapping[str, str]
) -> None:
    """Refuse to work on a run with another network than its other jobs.

    Args:
        plan: of the job.
        networks: kind -> fingerprint, of this job's ranks.
        known: the same of the job whose ranks were ready first.

    Raises:
        UsageError: a network differs.
    """
    for kind, fingerprint in networks.items():
        if fingerprint != known.get(kind, fingerprint):
            raise UsageError(
                f"{plan.settings.out}: the run has another {kind} network: {plan.networks[kind]} "
                f"has fingerprint {fingerprint[:12]}... here, and had {known[kind][:12]}... in the "
                "run. Make the weights the same file on every host, let a network of your own load "
                "them from a file, or choose another --out."
            )


def tell_tunings(hellos: Mapping[int, Hello], told: Collection[str] = ()) -> None:
    """Tell the user the number format of the networks, except of kinds that were told."""
    found = tunings_text(
        {kind: how for kind, how in hello.tuning.items() if kind not in told}
        for _, hello in sorted(hellos.items())
    )
    if found:
        tell(f"number format: {found}", logging.INFO)


def warn_of_mixed_tuning(hellos: Mapping[int, Hello]) -> None:
    """Warn if ranks run a network in different precisions, as on different devices."""
    found: dict[str, dict[str, list[int]]] = {}  # kind -> tuning -> ranks
    for rank, hello in sorted(hellos.items()):
        for kind, how in hello.tuning.items():
            found.setdefault(kind, {}).setdefault(how, []).append(rank)
    for kind, ways in found.items():
        if len(ways) > 1:
            shown = "; ".join(f"{how} on {numbered('rank', ranks)}" for how, ranks in ways.items())
            tell(
                f"warning: the {kind} network runs as {shown}: answers may differ a little from "
                "rank to rank; --precision sets one for all"
            )


def welcomes(plan: Plan, encoder: Encoder) -> dict[int, Welcome]:
    """The welcome of each rank."""
    settings, common = plan.settings, _welcome(plan, encoder)
    stages = {stage.kind: stage for stage in settings.stages}
    return {
        rank: replace(
            common,
            networks={kind: plan.networks[kind] for kind in sorted(held)},
            stages={kind: stages[kind] for kind in sorted(held) if kind in stages},
            batch=max([settings.batch_size, *map(settings.most_inputs, held)]),
        )
        for rank, held in plan.placement.of_rank.items()
    }


def _welcome(plan: Plan, encoder: Encoder) -> Welcome:
    """The welcome without what differs between ranks."""
    settings = plan.settings
    return Welcome(
        networks={},
        how=Loading(
            device=settings.device,
            tuning=settings.tuning(),
            save=settings.save,
            trusted=settings.trust_network,
            delays=StragglerSettings(**settings.to_dict(StragglerSettings)),
        ),
        geometry=plan.geometry,
        credit=settings.messages,
        batch=settings.batch_size,
        extras=settings.extras,
        fit=plan.shards.fit,
        must_read=settings.pixels == "workers",
        ranks=settings.teams * plan.placement.world_size,
        agree_on=settings.agree_on,
    )


def start_of(
    plan: Plan,
    encoder: Encoder,
    costs: ServiceCosts,
    columns: Sequence[KeptColumn],
    runtimes: Mapping[str, str],
) -> Start:
    """The message that lets tasks come, for ranks and other teams. The plan has its batch.

    Args:
        columns: what is kept of each image.
        runtimes: see `Start`.

    Raises:
        UsageError: see `answer_bytes`.
    """
    room = task_bytes(plan, encoder), answer_bytes(plan, encoder, columns)
    size = plan.settings.batch_size
    return Start(costs.costs, costs.batch_costs, size, *room, dict(runtimes))


def answer_bytes(plan: Plan, encoder: Encoder, columns: Sequence[KeptColumn]) -> int:
    """Bytes of the longest message of answers, which has room for at least one task.

    Raises:
        UsageError: MPI cannot send a message of this length.
    """
    settings = plan.settings
    images = max(settings.most_inputs(kind) for kind in plan.networks)
    if settings.pastes:
        images = max(images, encoder.places)
    floats = most_floats(columns) if columns else 0
    nbytes = answer_message_bytes(images, images if floats else 0, floats)
    if nbytes > LARGEST_ANSWER_BYTES:
        raise UsageError(
            f"an answer for {images} images takes {nbytes:,} bytes; at most "
            f"{LARGEST_ANSWER_BYTES:,} can be sent: choose a smaller --batch, or scheme none, "
            "replicate or hedge"
        )
    return max(UP_BYTES, nbytes)


def _input_bytes(plan: Plan, encoder: Encoder) -> tuple[int, int]:
    """Bytes of an item of the source, and of an encoded picture (0 if the scheme pastes none)."""
    item = math.prod(plan.shards.shape) * np.dtype(plan.shards.dtype).itemsize
    return item, math.prod(encoder.input_shape) if plan.settings.pastes else 0


def task_bytes(plan: Plan, encoder: Encoder) -> int:
    """Bytes of the longest message of tasks or cancels."""
    settings, batch = plan.settings, plan.settings.batch_size
    image_bytes, encoded_bytes = _input_bytes(plan, encoder)
    if settings.pixels == "workers":
        image_bytes, encoded_bytes = PLACE.itemsize, PLACE.itemsize * encoder.places
    most = max(settings.most_inputs(kind) for kind in plan.networks)
    return max(
        task_message_bytes(batch, most, most * (image_bytes + FILE.itemsize)),
        task_message_bytes(batch, batch * encoder.places, batch * encoded_bytes),
        cancel_message_bytes(settings.messages * batch),
    )


@dataclass(frozen=True)
class ServiceCosts:
    """Service times of the networks, measured on one rank at a time while all others wait.

    Attributes:
        idle_ns: kind -> time of one input.
        batch_ns: kind -> time of a full batch, for kinds with batches of several inputs.
        costs: kind -> time of one input divided by that of a single image, for other networks than
            the single one.
        batch_costs: kind -> time of each further input of a batch divided by that of the first.
        batch: groups that are sent together.
        chosen: how `--batch auto` chose the batch; None if the user gave it.
    """

    idle_ns: dict[str, int]
    batch_ns: dict[str, int]
    costs: dict[str, float]
    batch_costs: dict[str, float]
    batch: int
    chosen: ChosenBatch | None

    @property
    def ratio(self) -> float:
        """The cost of the network that is asked first; 1 if there is only the single one."""
        return next(iter(self.costs.values()), 1.0)


def service_costs(
    plan: Plan, worker_group: WorkerGroup, most: MostGroups, least: int = 1
) -> ServiceCosts:
    """Measure the costs, except those that the settings give. Null networks have costs of 1.

    If service times are injected, the ratio and the batch costs are those of the settings.

    Args:
        most: the largest batch that `--batch auto` may choose.
        least: see `choose_batch`; over 1 only if no rank needs a try of the batch.
    """
    settings, chosen = plan.settings, None
    who = {kind: plan.placement.ranks_of(kind) for kind in plan.networks}
    networks = tuple(plan.networks.items())
    singly = worker_group.measure_in_turn(who, networks, dict.fromkeys(who, 1))
    idle_ns = shortest_ns(singly)
    measurable = bool(idle_ns) and min(idle_ns.values()) >= MEASURABLE_NS and not settings.injects
    costs = {}
    for kind in plan.networks.keys() - {SINGLE}:
        measured = ratio_of(singly.get(kind, ()), singly.get(SINGLE, ())) if measurable else None
        costs[kind] = measured or 1.0
        if settings.cost_ratio is not None:
            costs[kind] = settings.cost_ratio
    costs = {kind: costs[kind] for kind in settings.accept if kind in costs} | costs
    grows = {} if not measurable or settings.batch_cost is not None else idle_ns
    if settings.batch is None:
        model = ModelTimes(settings, injected_ns(settings), costs, settings.batch_costs(), grows)
        trial = _Trial(plan, worker_group, model)
        chosen = choose_batch(most, trial.times_of, least)
        chosen = trial.fitting(chosen) if least == 1 else chosen
        settings = settings.at_batch(chosen.size)
    batches = {kind: many for kind in who if (many := settings.most_inputs(kind)) > 1}
    batch_ns = shortest_ns(worker_group.measure_in_turn(who, networks, batches))
    batch_costs = settings.batch_costs() | {
        kind: max(0.0, (batch_ns[kind] / grows[kind] - 1) / (batches[kind] - 1))
        for kind in batch_ns
        if kind in grows
    }
    return ServiceCosts(idle_ns, batch_ns, costs, batch_costs, settings.batch_size, chosen)


def most_together(
    plan: Plan,
    encoder: Encoder,
    images: int,
    reading: Collection[int],
    columns: Sequence[KeptColumn],
) -> MostGroups:
    """The largest batch that `--batch auto` may choose.

    Args:
        images: number of images to classify.
        reading: ranks that read their images themselves.
        columns: what is kept of each image.
    """
    one, placement = plan.settings.at_batch(1), plan.placement
    image_bytes, encoded_bytes = _input_bytes(plan, encoder)
    held, sent = (
        [
            encoded_bytes if KIND[kind].encoded else one.most_inputs(kind) * image_bytes
            for rank in ranks
            for kind in placement.of_rank[rank]
        ]
        for ranks in (placement.workers, set(placement.workers).difference(reading))
    )
    most = most_groups(one, placement, images, max(sent, default=0))
    why = f"a message has room for {LARGEST_INPUT_BYTES >> 30} GiB"
    most = min(most, MostGroups(LARGEST_INPUT_BYTES // max(held), why))
    together = max(map(one.most_inputs, plan.networks))  # images of a task
    most = min(
        most, MostGroups(MOST_ITEMS // together, f"a task has at most {MOST_ITEMS:,} images")
    )
    if columns:
        kept_bytes = most_floats(columns) * 4 * together
        why = f"a message of answers has room for {MOST_BYTES >> 20} MiB of kept values"
        most = min(most, MostGroups(max(1, MOST_BYTES // kept_bytes), why))
    return most


class _Trial:
    """Tries batches while all ranks wait: on one rank of each kind, and the chosen one on all."""

    def __init__(self, plan: Plan, worker_group: WorkerGroup, injected: ModelTimes) -> None:
        self._plan, self._group, self._injected = plan, worker_group, injected
        self._networks = tuple(plan.networks.items())
        self._who = {kind: plan.placement.ranks_of(kind) for kind in plan.networks}

    def times_of(self, size: int) -> Times | None:
        """Kind -> time of a batch of `size` groups; None if it does not fit a device's memory."""
        inputs = self._injected.inputs(size, self._who)
        found = self._group.measure_in_turn(self._who, self._networks, inputs)
        if not all(each.fits for times in found.values() for each in times):
            return None
        # Other processes interrupt long calls, so the clock alone would favour small batches.
        took = {
            k: min(min(m.service_ns, m.cpu_ns or m.service_ns) for m in found[k]) for k in found
        }
        return self._injected.at_least(size, took)

    def fitting(self, chosen: ChosenBatch) -> ChosenBatch:
        """Let every rank try the batch, which warms it up; halve it until it fits all devices."""
        while chosen.size > 1 and (full := without_room(self._plan, self._group, chosen.size)):
            size = chosen.size // 2
            why = f"a batch of {chosen.size} does not fit the memory of {numbered('rank', full)}"
            chosen = replace(chosen, size=size, why=why, together=self.times_of(size) or {})
        return chosen


def without_room(
    plan: Plan,
    worker_group: WorkerGroup,
    size: int,
    interrupted: Callable[[], str | None] = lambda: None,
) -> list[int]:
    """Let every rank of a team try a batch of `size` groups, which warms it up.

    `interrupted`: as in `handshake`.

    Returns:
        The ranks whose device has no memory for the batch.
    """
    settings = plan.settings.at_batch(size)
    full: set[int] = set()
    for kind in plan.networks:
        ranks = plan.placement.ranks_of(kind)
        found = worker_group.measure_together(ranks, kind, settings.most_inputs(kind), interrupted)
        full.update(rank for rank, measured in found.items() if not measured.fits)
    return sorted(full)


def ratio_of(others: Sequence[Measured], singles: Sequence[Measured]) -> float | None:
    """The other network's time divided by the single network's: the median over the rounds.

    The networks are measured in turn, so that a slower host affects both. Processor time is used if
    all rounds have it, because it does not count other processes. On a busy host the shortest
    wall-clock times gave ratios from 0.45 to 1.55 for two networks whose ratio is 0.92; this method
    gave 0.89 to 0.94.

    Returns:
        The median; None without rounds, or if a single's time is 0.
    """
    rounds = list(zip(others, singles, strict=False))
    if all(m.cpu_ns is not None for pair in rounds for m in pair):
        times = [(other.cpu_ns or 0, single.cpu_ns or 0) for other, single in rounds]
    else:
        times = [(other.service_ns, single.service_ns) for other, single in rounds]
    if not times or min(single for _, single in times) <= 0:
        return None
    return median(other / single for other, single in times)


def shortest_ns(rounds: Mapping[str, Sequence[Measured]]) -> dict[str, int]:
    """The shortest service time by kind, because other work on the host only makes times longer."""
    return {kind: min(m.service_ns for m in found) for kind, found in rounds.items()}
