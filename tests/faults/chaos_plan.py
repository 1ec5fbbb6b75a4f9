"""What goes wrong in a chaos round: a pure function of the seed and the round's number.

Owns: the shape of the job, which faults, where and when; the words that repeat it.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field, replace

SIGNALS = ("SIGTERM", "SIGINT", "SIGUSR2")
# Counted from the process's start, from MPI's, or from its first task.
PHASES = ("start", "up", "work")
SHARDS, ROWS = 3, 130  # images of a job: SHARDS * ROWS, in groups of 4
MEDIANS_MS = (10, 16, 24)  # service times drawn: a job takes about a second or two

# kind of fault -> how often it is drawn, relative to the others
WEIGHTS = {
    "kill worker": 4,
    "kill rank 0": 4,
    "disk full": 3,
    "SIGUSR2": 2,
    "stop worker": 3,  # SIGSTOP for good
    "kill collage rank": 3,
    "corrupt row during": 2,
    "kill all workers": 1,
    "kill launcher": 2,  # mpiexec or prterun itself
    "delay": 2,  # SIGSTOP, and on after a while
    "corrupt row before": 2,
    "truncate shard before": 2,
    "replace shard during": 1,
    "SIGTERM": 2,
    "SIGINT": 1,
    "damage part": 2,  # of an earlier session's rows; the run is repaired before the next
    "lose part": 2,
    "second session": 12,  # of the same run, at once
    "suspend job": 2,  # SIGSTOP to all processes of it, and on after a while
    "garbage on ports": 2,  # on all of them, from then on
    "odd names": 2,  # of the folder, the shards and the output
    "full /dev/shm": 2,
    "kill wrapper": 2,  # what stands between launch, launcher and ranks
    "kill launch": 2,
    "few descriptors": 1,  # of each process, from the start
    "foreign output": 1,  # the folder belongs to another user
    "exit at start": 3,  # a rank leaves by itself, before MPI is up or about then
}
EXITS = ("no library", "exit 1", "SIGINT")  # how
# These end no session, nor does a rank get lost by them.
HARMLESS = ("damage part", "lose part", "suspend job", "garbage on ports", "odd names")
# So that an earlier session leaves part of the work to the next.
ENDS = ("kill rank 0", "kill launcher", "SIGTERM")
NAMES = ("a b", "-n", "'q' \"$HOME\";#", "ligne\nnouvelle", "caf\udce9", "画像 ü", "\x1b[2J%s{0}")
DESCRIPTORS = (16, 28, 34, 36, 64)  # MPICH starts with some 32, a job needs some 40
SHM_KIB = (4, 512, 2048, 8192, 40960)
# Of a job of several teams, besides: of another team than the lead's.
TEAM_WEIGHTS = {"kill coordinator": 5, "stop coordinator": 2, "delay coordinator": 1}
# What a job that is to outlive its ranks outlives.
OUTLIVED = (
    *TEAM_WEIGHTS,
    *("kill worker", "kill collage rank", "kill all workers", "stop worker", "delay"),
)
# scheme -> how often, and what it needs besides the shape of the job
SCHEMES: dict[str, tuple[int, tuple[str, ...]]] = {
    "collage": (6, ()),
    "none": (1, ()),
    "replicate": (1, ()),
    "hedge": (2, ("--deadline-ms", "40")),
    "collage-only": (1, ("--cost-ratio", "1.2")),
    "cascade": (6, ("--confidence", "0.9", "--audit", "0.2")),
}
CONFIDENCE = (("0",), ("0",), ("1", "--deadline-ms", "30"), ("0.9", "--deadline-ms", "60"))


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: a key of WEIGHTS.
        rank: whom it meets, None where it is no rank.
        phase: of PHASES.
        after_s: seconds after the phase's begin.
        number: shard, row, step, name, KiB or whichever, as the kind needs; seconds of a delay.
    """

    kind: str
    rank: int | None = None
    phase: str = "work"
    after_s: float = 0.0
    number: float = 0

    def __str__(self) -> str:
        where = "" if self.rank is None else f" (rank {self.rank})"
        return f"{self.kind}{where} {self.after_s:.2f} s after {self.phase} [{self.number:g}]"


@dataclass(frozen=True)
class Round:
    """One job and the faults of its sessions; sessions beyond these run undisturbed."""

    seed: int
    number: int
    singles: int
    collages: int
    on_loss: str  # continue, abort
    settings: tuple[str, ...]
    sessions: tuple[tuple[Fault, ...], ...] = field(default=())
    teams: int = 1

    @property
    def ranks(self) -> int:
        """World size."""
        return self.teams * (1 + self.singles + self.collages)

    @property
    def work(self) -> str:
        """Scheme, batch and the like, for the log."""
        return " ".join(self.settings[self.settings.index("--scheme") + 1 :])

    @property
    def confidence(self) -> float:
        """The lowest score of an answer of the collage network that counts. After a deadline any
        counts."""
        words = self.settings
        if "--confidence" not in words or "--deadline-ms" in words:
            return 0.0
        return float(words[words.index("--confidence") + 1])

    @property
    def kinds(self) -> set[str]:
        """The kinds of its faults."""
        return {fault.kind for session in self.sessions for fault in session}


def make_round(
    seed: int, number: int, modes: tuple[str, ...], kinds: tuple[str, ...], schemes: tuple[str, ...]
) -> Round:
    """The plan of a round.

    Args:
        seed: of the whole suite.
        number: of the round, from 0; the first rounds go through `kinds` in turn, from where the
            seed says, so that a short suite of another seed each day meets them all.
        modes: what --on-rank-loss may be.
        kinds: of WEIGHTS, those to draw from.
        schemes: of SCHEMES likewise.
    """
    rng = random.Random(f"{seed}:{number}")
    singles, collages = rng.choice([(2, 1), (3, 1), (2, 2), (4, 1)])
    on_loss = rng.choice(modes)
    median_ms = rng.choice(MEDIANS_MS)
    job_s = SHARDS * ROWS / 4 * median_ms / 1e3
    weights = [WEIGHTS[kind] for kind in kinds]

    def draw() -> str:
        return rng.choices(kinds, weights)[0]

    first = [kinds[(4 * seed + number) % len(kinds)] if number < len(kinds) else draw()]
    if rng.random() < 0.4:
        first.append(draw())
    if {"damage part", "lose part"} & {*first}:
        first.append(rng.choice(ENDS))
    later = [draw()] if rng.random() < 0.3 else []
    sessions = tuple(
        tuple(make_fault(rng, kind, (singles, collages), job_s) for kind in drawn)
        for drawn in (first, later)
        if drawn
    )
    settings = (
        *("--depth", str(rng.choice([1, 1, 2]))),
        *("--straggler", f"lognormal:{median_ms}:0.5"),
        *("--straggler-seed", str(rng.randrange(100))),
        *("--order", rng.choice(["file", f"shuffle:{rng.randrange(9)}"])),
        *shape_of_work(rng, schemes, collages),
    )
    return Round(seed, number, singles, collages, on_loss, settings, sessions)


def with_teams(plan: Round) -> Round:
    """The round in a world of two or three teams, its faults in any of them.

    In most rounds a coordinator other than rank 0 meets something too, killed more often than not.
    """
    rng = random.Random(f"teams:{plan.seed}:{plan.number}")
    teams, size = rng.choice([2, 2, 3]), plan.ranks

    def moved(fault: Fault) -> Fault:
        return (
            replace(fault, rank=fault.rank + size * rng.randrange(teams)) if fault.rank else fault
        )

    sessions = []
    for faults in plan.sessions:
        found = [moved(fault) for fault in faults]
        if rng.random() < 0.75:
            kind = rng.choices(tuple(TEAM_WEIGHTS), tuple(TEAM_WEIGHTS.values()))[0]
            phase, after_s = rng.choices(PHASES, (0, 1, 4))[0], round(rng.uniform(0, 1.0), 3)
            pause_s = round(rng.uniform(0.2, 6.0), 2)
            found.append(Fault(kind, size * rng.randrange(1, teams), phase, after_s, pause_s))
        sessions.append(tuple(found))
    return replace(plan, sessions=tuple(sessions), teams=teams)


def shape_of_work(rng: random.Random, schemes: tuple[str, ...], collages: int) -> tuple[str, ...]:
    """How redundancy is added, who gets what, and how many groups travel together.

    The last `collages` ranks are of whatever kind the scheme has beside its singles.
    """
    scheme = rng.choices(schemes, [SCHEMES[name][0] for name in schemes])[0]
    words = ["--scheme", scheme, *SCHEMES[scheme][1], "--batch", str(rng.choice([1, 1, 1, 2, 3]))]
    if scheme.startswith("collage") and scheme != "collage-only":
        words += ["--confidence", *rng.choice(CONFIDENCE)]
    if scheme in ("collage", "cascade"):
        words += ["--placement", rng.choice(["fixed", "fixed", "fastest"])]
    if scheme == "none":
        words += ["--assign", "turn"]
    words += rng.choice([[], [], ["--assign", "pull"]])  # the last one counts
    words += rng.choice([[], [], ["--endgame", "on"]])
    words += rng.choice([[], [], ["--pixels", "workers"]])
    return tuple(words)


def make_fault(rng: random.Random, kind: str, ranks: tuple[int, int], job_s: float) -> Fault:
    """A fault of a kind, its victim and its moment drawn; job_s: about how long work takes.

    A start waits up to 10 minutes for a rank that hangs before MPI is up: too long to try here.
    """
    phase = rng.choices(PHASES, (0 if kind == "stop worker" else 1, 1, 4))[0]
    after_s = rng.uniform(0, job_s if phase == "work" else 0.8)
    number: float = rng.randrange(SHARDS)
    singles, collages = ranks
    rank = None
    if kind in ("kill worker", "stop worker", "delay"):
        rank = rng.randint(1, singles)
    elif kind == "kill collage rank":
        rank = rng.randint(singles + 1, singles + collages)
    elif kind == "kill rank 0":
        rank = 0
    elif kind == "exit at start":
        phase, after_s = "start", rng.uniform(0, 0.8)
        rank = rng.randint(0, singles + collages)
    if kind == "delay":
        number = round(rng.uniform(0.2, 1.5), 2)
    elif kind == "disk full":
        number = rng.randint(1, 40)
    elif kind == "suspend job":
        number = round(rng.uniform(0.5, 8.0), 2)
    elif kind == "full /dev/shm":
        number = rng.choice(SHM_KIB)
    elif kind == "few descriptors":
        number = rng.choice(DESCRIPTORS)
    elif kind == "exit at start":
        number = rng.randrange(len(EXITS))
    elif kind in ("odd names", "kill wrapper", "damage part", "lose part"):
        number = rng.randrange(1000)
    elif kind in SIGNALS:
        after_s += 0.3 if phase == "start" else 0.0
    return Fault(kind, rank, phase, round(after_s, 3), number)
