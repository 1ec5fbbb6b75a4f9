"""Which batch `--batch auto` chooses, from the times that batches of 1, 2, 4 ... groups take."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import NamedTuple

from collage_mpi.core.settings import batch_factor
from collage_mpi.kinds import SINGLE
from collage_mpi.settings.run_settings import MOST_BATCH, Placement, RunSettings
from collage_mpi.system.printable import counted
from collage_mpi.workload.straggler_settings import make_delays

GAIN = 1.05  # a larger batch must give this many times the images a second
PATIENCE = 2  # doublings without a gain that end the search; one may be a disturbed measurement
# A larger batch without a loss is taken up to this time, because rank 0 spends 13 to 16 us an image
# on a message of 8 images, and 4 to 6 us on one of 64.
SHORT_NS = 20_000_000
LONG_NS = 500_000_000  # longest time of a batch, because the last images of the input wait for one
BATCHES_A_RANK = 8  # batches that each rank has at least, so that every rank has work
MESSAGE_BYTES = 8 << 20  # of pixels in a message; rank 0 holds four for each rank
DRAWS = 9  # ranks whose injected service times are drawn
NOTHING = "no service time was measured"  # the ranks may be lost by now

Times = Mapping[str, int]  # kind of network -> ns


class MostGroups(NamedTuple):
    """The largest batch that may be chosen, and why a larger one may not."""

    size: int
    why: str


def most_groups(
    settings: RunSettings, placement: Placement, images: int, sent_bytes: int = 0
) -> MostGroups:
    """The largest batch that the input and the messages allow.

    Args:
        settings: of the run.
        placement: of one team.
        images: number of images, for all teams.
        sent_bytes: bytes of pixels that rank 0 sends for the largest task of a group; 0 if
            workers read.
    """
    singles = placement.ranks_of(SINGLE)
    each = 1 if singles else settings.group_size  # images of a task
    ranks = settings.teams * len(singles or placement.workers)
    fits = [
        MostGroups(MOST_BATCH, f"the most is {MOST_BATCH}"),
        MostGroups(
            images // (BATCHES_A_RANK * ranks * each),
            f"each rank must get at least {BATCHES_A_RANK} batches of {counted(images, 'image')}",
        ),
    ]
    if sent_bytes:
        most = MESSAGE_BYTES // sent_bytes
        fits.append(
            MostGroups(most, f"rank 0 sends at most {MESSAGE_BYTES >> 20} MiB in a message")
        )
    return min(fits)


@dataclass(frozen=True)
class ChosenBatch:
    """The chosen batch, and why it was chosen.

    Attributes:
        size: number of groups.
        why: why no larger batch was chosen, in words.
        alone: kind -> time of a batch of one group, in ns.
        together: kind -> time of the chosen batch, in ns.
    """

    size: int
    why: str
    alone: Times
    together: Times

    def __str__(self) -> str:
        """The choice in one line."""
        found = [
            f"the {kind} network takes {took / 1e6:.3g} ms for a batch and does "
            f"{self.size * self.alone[kind] / took:.2f} times the images a second of batch 1"
            for kind, took in self.together.items()
        ]
        return "; ".join([f"batch {self.size}, chosen by --batch auto", *found, self.why])


def choose_batch(
    most: MostGroups, times_of: Callable[[int], Times | None], least: int = 1
) -> ChosenBatch:
    """Try batches of 1, 2, 4 ... groups and choose one.

    The choice is the smallest batch that gives nearly the most images a second, or a larger one
    that gives nearly as many and takes at most SHORT_NS.

    Args:
        most: the largest batch.
        times_of: gives the service times of a batch, or None if it does not fit a device.
        least: a smaller batch is only chosen if this one is not possible. Otherwise noise would
            choose among small batches that are alike, where networks gain little from large ones.
    """
    tried = {1: times_of(1) or {}}
    rates = {1: 1.0}  # relative images a second of the ranks
    size, why = 1, "" if tried[1] else NOTHING
    patience = PATIENCE if least == 1 else 0
    fits = max(1, min(least, most.size, LONG_NS // max(tried[1].values(), default=LONG_NS)))
    floor = 1 << (fits.bit_length() - 1)
    following = max(2, floor)
    while not why and (size < floor or _is_short(tried[size]) or _best(rates) * 2**patience > size):
        if following > most.size:
            why = most.why
            continue
        took = times_of(following)
        if took is None:
            why = f"a batch of {following} does not fit the memory of a device"
        elif not took:
            why = NOTHING
        elif max(took.values()) > LONG_NS:
            longest = f"{max(took.values()) / 1e6:,.0f} ms, the most is {LONG_NS / 1e6:g}"
            why = f"a batch of {following} takes {longest}"
        else:
            size, following = following, 2 * following
            tried[size] = took
            rates[size] = size * len(took) / sum(took[kind] / tried[1][kind] for kind in took)
    good = [each for each in rates if rates[each] * GAIN > max(rates.values())]
    short = [each for each in good if _is_short(tried[each])]
    chosen = max(good[:1] + short + [each for each in rates if each == floor])
    if chosen < size:
        gain = max(rates[each] for each in rates if each > chosen) / rates[chosen]
        why = f"larger batches do at most {gain:.2f} times its images a second"
    return ChosenBatch(chosen, why, tried[1], tried[chosen])


def _best(rates: Mapping[int, float]) -> int:
    return max(rates, key=lambda size: rates[size])


def _is_short(took: Times) -> bool:
    return max(took.values(), default=0) <= SHORT_NS


@dataclass(frozen=True)
class ModelTimes:
    """Service times by a model of injected delays or of a simulation.

    Attributes:
        settings: of the run.
        single_ns: time of one image on the single network.
        costs: kind -> time of its network divided by that of the single network; 1 if missing.
        batch_costs: kind -> time of a further input of a batch divided by that of the first.
        alone_ns: kind -> measured time of one input. For these kinds the measured times say how a
            batch grows with its size, instead of `batch_costs`.
    """

    settings: RunSettings
    single_ns: float
    costs: Mapping[str, float]
    batch_costs: Mapping[str, float]
    alone_ns: Times = field(default_factory=dict)

    def inputs(self, size: int, kinds: Iterable[str]) -> dict[str, int]:
        """Kind -> inputs of a message with a batch of `size` groups."""
        settings = self.settings.at_batch(size)
        return {kind: settings.most_inputs(kind) for kind in kinds}

    def at_least(self, size: int, took: Times) -> Times:
        """Kind -> the longer of the measured and the modelled time of a batch of `size` groups."""
        inputs, found = self.inputs(size, took), {}
        for kind, took_ns in took.items():
            factor = batch_factor(inputs[kind], self.batch_costs.get(kind, 1.0))
            if kind in self.alone_ns:
                factor = took_ns / self.alone_ns[kind]
            factor *= self.costs.get(kind, 1.0)
            found[kind] = max(1, took_ns, round(self.single_ns * factor))
        return found


def injected_ns(settings: RunSettings) -> int:
    """The median of the service times that the delay model draws; 0 without one."""
    if not settings.injects:
        return 0
    delays = make_delays(settings, by_image=settings.draws_by_image)
    return round(median(delays.draw_ns(rank, rank, 1, 0) for rank in range(1, DRAWS + 1)))
