"""Says what limits a run, from what each rank did with its time: decoding, reading, the network,
rank 0, arrivals, one slow rank, or too few images in flight.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

LEAST_NS = 1_000_000_000  # of all ranks together; a shorter run shows mostly its start and its end
BUSY = 0.6  # share of its time from which a part can be the limit while others wait for it
APART = 0.3  # by how much one rank must be busier than the others to be the limit
LITTLE = 0.3  # a GPU that is busy for less of the time is warned of
MOST_CORES = 16  # a larger number of further cores is no advice
MOST_GPUS = 8  # are named one by one


class Use(NamedTuple):
    """What a rank has done with its time since its first task could come, in ns.

    The rest of `elapsed_ns` it waited for work. Reading and decoding happen beside computing.

    Attributes:
        elapsed_ns: time since its first task could come.
        reading_ns: its reader read files.
        decoding_ns: its reader decoded pictures.
        starved_ns: its network waited for the input of a task that had come.
        computing_ns: its network computed; for a coordinator, its loop worked.
        decoders: how many pictures it decodes at a time.
    """

    elapsed_ns: int = 0
    reading_ns: int = 0
    decoding_ns: int = 0
    starved_ns: int = 0
    computing_ns: int = 0
    decoders: int = 1

    def share(self, ns: float) -> float:
        """A time as a share of the elapsed time."""
        return ns / max(1, self.elapsed_ns)

    @property
    def busy(self) -> float:
        """The share of the time in which the network computed, or the loop worked."""
        return min(1.0, self.share(self.computing_ns))


@dataclass(frozen=True)
class RankUse:
    """A worker's use of its time.

    Attributes:
        rank: its number.
        use: of its time.
        host: that it runs on.
        device: that its networks run on, such as "cuda:0"; "cpu" and "" are no GPU.
    """

    rank: int
    use: Use
    host: str = ""
    device: str = "cpu"

    @property
    def on_gpu(self) -> bool:
        """Whether its networks run on a GPU."""
        return self.device not in ("", "cpu")


@dataclass(frozen=True)
class Limit:
    """What limits a run.

    Attributes:
        name: one of the keys of LIFTS; "" if it is not known.
        sentence: the limit, how it shows, and what would lift it.
        gpus: host and device of each GPU -> its busy share.
    """

    name: str
    sentence: str
    gpus: Mapping[str, float] = field(default_factory=dict)

    @property
    def warning(self) -> str:
        """A warning of GPUs that are busy for less than LITTLE of the time; "" if there is none."""
        few = {gpu: share for gpu, share in self.gpus.items() if share < LITTLE}
        if not few:
            return ""
        return (
            f"warning: {gpus_text(few)}; some sites end a job that uses its GPUs so little. "
            f"{self.sentence[:1].upper()}{self.sentence[1:]}"
        )

    def text(self) -> str:
        """The sentence, and the busy share of each GPU."""
        return f"{self.sentence}. {gpus_text(self.gpus)}" if self.gpus else self.sentence


LIFTS = {
    "decoding": "{cores} or shards would lift it",
    "reading": "a faster disk, more ranks or shards would lift it",
    "gpu": "more GPUs or a quicker number format would lift it",
    "cpu": "more cores or a GPU would lift it",
    "arrivals": "fewer ranks would do",
    "rank 0": "a larger --batch or more --teams would lift it",
    "rank 0 decoding": "--pixels workers or shards would lift it",
    "rank 0 reading": "--pixels workers or a faster disk would lift it",
    "one rank": "without it the others would wait less",
    "in flight": "a larger --depth or --batch would lift it",
}


def limit_of(
    workers: Sequence[RankUse], coordinators: Sequence[Use], *, open_loop: bool = False
) -> Limit:
    """What limits a run.

    Args:
        workers: of all teams and sessions.
        coordinators: of all teams and sessions.
        open_loop: whether images arrive at times of their own.
    """
    workers = [worker for worker in workers if worker.use.elapsed_ns > 0]
    total = Use(*map(sum, zip(*(worker.use for worker in workers), strict=True)))
    gpus = busy_gpus(workers)
    if total.elapsed_ns < LEAST_NS:
        return Limit("", "the run is too short to say what limits it", gpus)
    busy, starved = total.share(total.computing_ns), total.share(total.starved_ns)
    idle = max(0.0, 1 - busy - starved)
    most = max(busy, starved, idle)
    if most == starved:
        name = "decoding" if total.decoding_ns >= total.reading_ns else "reading"
        decoders = total.decoders / len(workers)
        return _limit(name, f"the network waits {_percent(starved)} of the time", gpus,
                      _more_cores(decoders, starved))  # fmt: skip
    if most == busy:
        name = "gpu" if gpus else "cpu"
        return _limit(name, f"it computes {_percent(busy)} of the time", gpus)
    wait = f"the ranks wait for work {_percent(idle)} of the time"
    if open_loop:
        return _limit("arrivals", wait, gpus)
    for use in coordinators:
        reads = use.reading_ns + use.decoding_ns
        if use.busy >= BUSY:
            return _limit("rank 0", f"it works {_percent(use.busy)} of the time, and {wait}", gpus)
        if use.share(reads) >= BUSY:
            decodes = use.decoding_ns >= use.reading_ns
            return _limit("rank 0 decoding" if decodes else "rank 0 reading", wait, gpus)
    slow = max(workers, key=_at_work)
    others = [_at_work(worker) for worker in workers if worker is not slow]
    mean = sum(others) / max(1, len(others))
    if others and _at_work(slow) >= max(BUSY, mean + APART):
        found = (
            f"it is busy {_percent(_at_work(slow))} of the time, and the others {_percent(mean)}"
        )
        return _limit("one rank", found, gpus, subject=f"rank {slow.rank}")
    return _limit("in flight", f"{wait}, and nothing else is busy", gpus)


SUBJECTS = {
    "decoding": "decoding on the CPU is the limit",
    "reading": "reading the input is the limit",
    "gpu": "the network on the GPU is the limit",
    "cpu": "the network on the CPU is the limit",
    "arrivals": "the arrival of images is the limit",
    "rank 0": "rank 0 is the limit",
    "rank 0 decoding": "decoding on rank 0 is the limit",
    "rank 0 reading": "reading on rank 0 is the limit",
    "in flight": "too few images in flight are the limit",
}


def _limit(
    name: str, shown: str, gpus: Mapping[str, float], cores: str = "", subject: str = ""
) -> Limit:
    said = f"{subject} is the limit" if subject else SUBJECTS[name]
    return Limit(name, f"{said}: {shown}; {LIFTS[name].format(cores=cores)}", gpus)


def _at_work(worker: RankUse) -> float:
    use = worker.use
    return use.share(use.computing_ns + use.starved_ns)


def _more_cores(decoders: float, starved: float) -> str:
    """How many further cores decode as fast as the network computes: it takes decoders / (1 -
    starved) in all."""
    more = math.ceil(decoders * starved / max(1e-9, 1 - starved))
    if more > MOST_CORES:
        return "more cores a rank"
    return "one more core a rank" if more == 1 else f"{more} more cores a rank"


def busy_gpus(workers: Iterable[RankUse]) -> dict[str, float]:
    """Host and device of each GPU -> the share of the time in which a rank computed on it."""
    found: dict[str, dict[int, Use]] = {}
    for worker in workers:
        if worker.on_gpu:
            found.setdefault(f"{worker.host} {worker.device}", {})[worker.rank] = worker.use
    return {
        gpu: min(1.0, sum(use.share(use.computing_ns) for use in uses.values()))
        for gpu, uses in sorted(found.items())
    }


def gpus_text(gpus: Mapping[str, float]) -> str:
    """The busy share of each GPU in words; of many GPUs the lowest and the highest."""
    if len(gpus) > MOST_GPUS:
        low, high = _percent(min(gpus.values())), _percent(max(gpus.values()))
        return f"{len(gpus)} GPUs are busy {low} to {high} of the time"
    return ", ".join(
        f"GPU {gpu} is busy {_percent(share)} of the time" for gpu, share in gpus.items()
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def limit_of_members(members: Iterable[Mapping[str, Any]], *, open_loop: bool) -> Limit:
    """What limits a run.

    Args:
        members: of the worlds of its sessions, with their `use`, as the manifest lists them.
        open_loop: whether images arrive at times of their own.
    """
    workers, coordinators = [], []
    for member in members:
        use = Use(*(member["use"][name] for name in Use._fields))
        if member.get("role") == "coordinator":
            coordinators.append(use)
        else:
            device = next(iter(member.get("devices") or ()), "")
            workers.append(RankUse(member["rank"], use, member.get("host") or "", device))
    return limit_of(workers, coordinators, open_loop=open_loop)
