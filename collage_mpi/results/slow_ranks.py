"""Finds ranks, GPUs and hosts that were slower than their peers, with a confidence interval.

A rank's level is the median of its service times (of a message, divided by the cost
of a batch of its size). The rank's peers are the other ranks with the same kind of network, and
their level is the median of their levels. The ratio of the two levels says how many times slower
the rank was. The ratio does not depend on the number of tasks that a rank got. Slow ranks are found
if they are at most half of the ranks of a kind.

The interval of a level comes from order statistics. Neighbouring service times are correlated, so
the interval uses the effective number of samples (`statistics.quantile_interval`). With R levels in
a run each interval misses with probability 0.05 / R at most (Bonferroni), so all hold at once with
95 %. The median of several levels lies between the median of their low ends and the median of their
high ends, and a ratio lies between low / high and high / low. So at most one homogeneous run in
twenty has a rank whose interval lies above 1. This needs a run that is much longer than a slow
period. In a short run one slow period could fill most of a rank's time, so a rank only counts as
slow if it was slow in each third of its messages.

`trace_of` makes a trace of the service times of single ranks.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.kinds import SINGLE
from collage_mpi.results.manifest import Json, finals
from collage_mpi.results.reader import Results, Run
from collage_mpi.results.statistics import MISS, quantile_interval, times_of_messages
from collage_mpi.rows import (
    KINDS,
    OUTCOME_CODE,
    TASKS,
    columns_of,
)

OVER = 1.2  # times its peers; healthy nodes differ by less
FAILED = OUTCOME_CODE["failed"]
MANY_FAILURES = 5  # of one rank; a few may be bad luck
UNANSWERED = tuple(OUTCOME_CODE[name] for name in ("failed", "lost", "unfinished"))
Ends = tuple[float, float]


@dataclass(frozen=True)
class Speed:
    """The speed of a rank, a GPU or a host compared with its peers, for one kind of network.

    Attributes:
        unit: "rank", "gpu" or "host".
        name: "rank 3", "node7 cuda:1", "node7".
        ranks: the rank itself, or all ranks on the GPU or host.
        host, device: None if not recorded, or if the ranks have different ones.
        messages: number of answered messages of measured groups; a batch is one message.
        samples: effective number of independent service times.
        unanswered: number of tasks that failed, were lost or are unfinished.
        median_ms: median service time of one input; None if there is none.
        peers: number of levels that it is compared with.
        ratio: its level divided by the level of its peers; None if either is unknown.
        interval: of the ratio, simultaneous over the run (95 %); None if samples are too few.
        slow: whether the interval, and the ratio of each third of the messages, are above `over`.
    """

    unit: str
    name: str
    ranks: tuple[int, ...]
    kind: str
    host: str | None
    device: str | None
    messages: int
    samples: int
    unanswered: int
    median_ms: float | None
    peers: int
    ratio: float | None
    interval: Ends | None
    slow: bool


@dataclass(frozen=True)
class _Place:
    """Where service times were measured."""

    rank: int
    kind: str
    host: str | None
    device: str | None


@dataclass(frozen=True)
class _Level(_Place):
    """The service times of one rank and kind, in ns of a single input."""

    messages: int
    samples: int
    unanswered: int
    median_ns: float | None
    ends_ns: Ends | None
    thirds_ns: tuple[float, ...]  # medians of the first, second and last third; () without ends


def rank_speeds(run: Run, over: float = OVER) -> list[Speed]:
    """Compares every rank, then every GPU, then every host of a run with its peers, slowest first.

    GPUs are compared only on hosts with several. A host that has all ranks of a kind has no peers
    for that kind. Ranks that answered nothing come last and have no ratio.

    Args:
        run: complete or not; warm-up groups do not count.
        over: the ratio above which a rank, GPU or host is called slow.

    Raises:
        UsageError: `over` is below 1.
    """
    if not 1 <= over < math.inf:
        raise UsageError(f"the ratio above which a rank is slow must be 1 or more, found {over:g}")
    levels = _levels(run)
    units = {
        "rank": _grouped(levels, lambda level: f"rank {level.rank}"),
        "gpu": _grouped(levels, _gpu(levels)),
        "host": _grouped(levels, lambda level: level.host),
    }
    found = []
    for unit, members in units.items():
        speeds = [_speed(unit, *item, levels, over) for item in members.items()]
        found += sorted(speeds, key=lambda s: (s.ratio is None, -(s.ratio or 0), s.ranks))
    return found


def hosts_to_exclude(speeds: Iterable[Speed]) -> list[str]:
    """Hosts that are slow, or that have a slow rank or GPU, because Slurm excludes whole hosts."""
    return sorted({speed.host for speed in speeds if speed.slow and speed.host is not None})


def failing_hosts(run: Run) -> dict[str, list[str]]:
    """Host -> lines about ranks that were lost, kept failing or answered wrongly there."""
    found: dict[str, list[str]] = {}
    tasks = _short_tasks(run)
    for session, final in finals(run.manifest).items():
        world = {str(rank.get("rank")): rank for rank in final.get("world") or []}
        lost = [(loss.get("rank"), loss.get("why"), "was lost") for loss in final.get("lost") or []]
        retired = final.get("retired") or {}
        failed = {**_often_failed(tasks[tasks["session"] == session]), **retired}
        again = [(rank, why, "kept failing") for rank, why in failed.items()]
        told = [(rank, each.get("checked") or {"wrong": 0}) for rank, each in world.items()]
        share = "{wrong:,} of {compared:,} comparisons"
        wrong = [(r, share.format(**n), "answered wrongly") for r, n in told if n["wrong"]]
        unfit = [(rank, each.get("unfit")) for rank, each in world.items()]
        wrong += [(rank, why, "answered known inputs wrongly") for rank, why in unfit if why]
        for rank, why, how in (*lost, *again, *wrong):
            host, what = world.get(str(rank), {}).get("host"), f"rank {rank} {how} ({why})"
            if host and what not in found.setdefault(host, []):
                found[host].append(what)
    return found


def _often_failed(tasks: np.ndarray) -> dict[str, str]:
    """Rank -> its number of failed tasks, in words, if they are more than half of all failed tasks.
    A bad input fails on every rank that tries it, so it makes no single rank stand out.
    """
    ranks, counts = np.unique(tasks[tasks["outcome"] == FAILED]["rank"], return_counts=True)
    several = len(np.unique(tasks["rank"])) > 2
    often = (counts >= MANY_FAILURES) & (2 * counts > counts.sum()) & several
    return {str(r): f"{n:,} failed tasks" for r, n in zip(ranks[often], counts[often], strict=True)}


@dataclass(frozen=True)
class Recurrence:
    """How often a host was slow over several runs.

    Attributes:
        runs: number of runs in which the host could be compared.
        slow: number of runs in which `hosts_to_exclude` has it.
        ratios: for each of these, the largest ratio of the host and its slow ranks and GPUs.
        again: whether it was slow in at least two runs and in at least half of its runs.
    """

    host: str
    runs: int
    slow: int
    ratios: tuple[float, ...]

    @property
    def again(self) -> bool:
        return self.slow >= 2 and 2 * self.slow >= self.runs


def recurrences(runs: Sequence[Sequence[Speed]]) -> list[Recurrence]:
    """The hosts of several runs, most often slow first.

    Args:
        runs: `rank_speeds` of each.
    """
    met: dict[str, int] = defaultdict(int)
    ratios: dict[str, list[float]] = defaultdict(list)
    for speeds in runs:
        for host in {s.host for s in speeds if s.host is not None and s.interval is not None}:
            met[host] += 1
        for host in hosts_to_exclude(speeds):
            ratios[host].append(max(s.ratio or 0 for s in speeds if s.slow and s.host == host))
    found = [Recurrence(host, n, len(ratios[host]), tuple(ratios[host])) for host, n in met.items()]
    return sorted(found, key=lambda r: (-r.slow / r.runs, -r.slow, r.host))


def injected(run: Run) -> bool:
    """Whether delays were injected or the run is simulated. Then its hosts were not really slow."""
    settings = run.manifest.get("settings") or {}
    drawn = settings.get("straggler", "none") != "none"
    return drawn or bool(settings.get("slow_ranks")) or "simulated" in run.manifest


# ---- one rank ---------------------------------------------------------------


def service_times_ns(run: Run) -> dict[tuple[int, int, str], np.ndarray]:
    """The service times of each rank: (rank, session, kind) -> (n,) float64 ns, in order of their
    ends.

    Each answered message that took time has one: its compute time, divided by the relative cost of
    a batch of its size. The cost comes from `batch_costs` of the manifest; without it, it is the
    number of inputs.
    """
    tasks, times_ns = times_of_messages(_measured(run), run.manifest.get("batch_costs") or {})
    tasks, times_ns = tasks[times_ns > 0], times_ns[times_ns > 0]
    place = tasks[["rank", "session", "kind"]]
    starts = np.flatnonzero(np.append(True, place[1:] != place[:-1])[: len(place)])
    return {
        (int(p["rank"]), int(p["session"]), KINDS[p["kind"]]): times
        for p, times in zip(place[starts], np.split(times_ns, starts[1:]), strict=False)
    }


_SHORT = TASKS.only(
    *("rank", "kind", "session", "items", "sent_ns", "done_ns", "compute_ns"),
    *("outcome", "warmup"),
)


def _short_tasks(run: Run) -> np.ndarray:
    """All tasks with the columns of _SHORT, which are a sixth of a run's bytes: only these are held
    in memory."""
    found = [columns_of(tasks, _SHORT) for tasks in run.chunks(TASKS)]
    return np.concatenate([np.empty(0, _SHORT), *found])


def _measured(run: Run) -> np.ndarray:
    tasks = _short_tasks(run)
    return tasks[~tasks["warmup"]]


def _levels(run: Run) -> list[_Level]:
    """The level of each rank, kind and place (host and device). A rank that answered nothing has
    one for its first kind, without times."""
    worlds = _worlds(run)
    times: dict[_Place, list[np.ndarray]] = defaultdict(list)
    for (rank, session, kind), times_ns in service_times_ns(run).items():
        times[_Place(rank, kind, *_whereabouts(worlds, session, rank))].append(times_ns)
    for session, world in worlds.items():
        for rank, member in world.items():
            here = _whereabouts(worlds, session, rank)
            held = [kind for kind in KINDS if kind in (member.get("kinds") or ())]
            places = [_Place(rank, kind, *here) for kind in held]
            if places and not any(place in times for place in places):
                times[places[0]] = []
    unanswered = _unanswered(_measured(run))
    miss = MISS / max(1, len(times))
    found = []
    for place in sorted(times, key=str):
        times_ns = np.concatenate([*times[place], np.empty(0)])
        known, thirds = quantile_interval(times_ns, 0.5, miss), np.array_split(times_ns, 3)
        found.append(
            _Level(
                **vars(place),
                messages=len(times_ns),
                samples=known.samples,
                unanswered=unanswered.get((place.rank, place.kind), 0),
                median_ns=float(np.median(times_ns)) if len(times_ns) else None,
                ends_ns=known.ends,
                thirds_ns=tuple(map(float, map(np.median, thirds))) if known.ends else (),
            )
        )
    return found


def _unanswered(tasks: np.ndarray) -> dict[tuple[int, str], int]:
    """(rank, kind) -> number of tasks that failed, were lost or are unfinished."""
    mine = tasks[np.isin(tasks["outcome"], UNANSWERED)]
    pairs, counts = np.unique(mine[["rank", "kind"]], return_counts=True)
    known = zip(pairs, counts, strict=True)
    return {(int(pair["rank"]), KINDS[pair["kind"]]): int(n) for pair, n in known}


def _worlds(run: Run) -> dict[int, dict[int, Json]]:
    """Session -> rank -> its entry in the manifest. Killed sessions are missing."""
    told = {session: final.get("world") for session, final in finals(run.manifest).items()}
    if not told:  # no session has ended yet, so the manifest has at most the current world
        told = {1: run.manifest.get("world")}
    return {
        session: {member["rank"]: member for member in world}
        for session, world in told.items()
        if world
    }


def _whereabouts(
    worlds: Mapping[int, Any], session: int, rank: int
) -> tuple[str | None, str | None]:
    """The host and the devices of a rank in a session; None if not recorded."""
    member = worlds.get(session, {}).get(rank, {})
    host, devices = member.get("host"), member.get("devices")
    named = isinstance(devices, list) and devices
    return (host if isinstance(host, str) else None, "+".join(map(str, devices)) if named else None)


_Name = Callable[[_Level], str | None]


# ---- beside the peers -------------------------------------------------------


def _gpu(levels: Sequence[_Level]) -> _Name:
    """Returns a function that gives the name of a level's GPU; None on hosts with only one."""
    named: dict[str | None, set[str | None]] = defaultdict(set)
    for level in levels:
        named[level.host].add(level.device)

    def name(level: _Level) -> str | None:
        told = level.device not in (None, "cpu") and len(named[level.host]) > 1
        return f"{level.host} {level.device}" if told and level.host else None

    return name


def _grouped(levels: Sequence[_Level], name: _Name) -> dict[tuple[str, str], list[_Level]]:
    """(name, kind) -> the levels with this name. Levels whose name is None are left out."""
    found: dict[tuple[str, str], list[_Level]] = defaultdict(list)
    for level in levels:
        called = name(level)
        if called is not None:
            found[called, level.kind].append(level)
    return found


def _speed(
    unit: str, key: tuple[str, str], mine: list[_Level], levels: list[_Level], over: float
) -> Speed:
    name, kind = key
    own = {id(level) for level in mine}
    peers = [level for level in levels if level.kind == kind and id(level) not in own]
    known = [level for level in peers if level.ends_ns is not None]
    sure = [level for level in mine if level.ends_ns is not None]
    median_ns, of_peers_ns = _median(sure or mine), _median(known)
    ratio = interval = None
    slow = False
    if median_ns is not None and of_peers_ns is not None:
        ratio = median_ns / of_peers_ns
        if sure:
            (low, high), (low_p, high_p) = _ends(sure), _ends(known)
            interval = low / high_p, high / low_p
            slow = interval[0] > over and all(_thirds_of(sure) > over * _thirds_of(known))
    hosts, devices = {level.host for level in mine}, {level.device for level in mine}
    return Speed(
        unit=unit,
        name=name,
        ranks=tuple(sorted({level.rank for level in mine})),
        kind=kind,
        host=hosts.pop() if len(hosts) == 1 else None,
        device=devices.pop() if len(devices) == 1 else None,
        messages=sum(level.messages for level in mine),
        samples=sum(level.samples for level in mine),
        unanswered=sum(level.unanswered for level in mine),
        median_ms=None if median_ns is None else median_ns / 1e6,
        peers=len(known),
        ratio=ratio,
        interval=interval,
        slow=slow,
    )


def _median(levels: Iterable[_Level]) -> float | None:
    found = [level.median_ns for level in levels if level.median_ns is not None]
    return float(np.median(found)) if found else None


def _ends(levels: Sequence[_Level]) -> Ends:
    """An interval for the median of the levels, from the intervals of the levels."""
    low, high = np.median([level.ends_ns for level in levels if level.ends_ns], axis=0)
    return float(low), float(high)


def _thirds_of(levels: Sequence[_Level]) -> np.ndarray:
    """(3,) ns, medians over the levels."""
    return np.median([level.thirds_ns for level in levels], axis=0)


def trace_of(run: Results) -> np.ndarray:
    """A trace of the service times of a run's single ranks: (ranks, messages) float32, seconds.

    A row holds the time of one image in each answered message, in the order of their ends, without
    warm-up groups. All rows have the length of the shortest. Collage ranks are left out, because a
    trace has times of single images. A run that injects the trace multiplies the times by the cost
    ratio for a collage.

    Raises:
        DataFault: no single rank has answered a task.
    """
    found: dict[int, list[np.ndarray]] = defaultdict(list)
    for (rank, _, kind), times_ns in service_times_ns(run).items():
        if kind == SINGLE:
            found[rank].append(times_ns / 1e9)
    if not found:
        raise DataFault(
            f"no single rank of {run.path} answered measured tasks: a longer run or fewer "
            "--warmup-groups are needed"
        )
    rows = [np.concatenate(parts) for parts in found.values()]
    return np.stack([row[: min(map(len, rows))] for row in rows]).astype(np.float32)
