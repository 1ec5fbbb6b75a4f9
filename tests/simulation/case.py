"""What a seed stands for: a job, its worlds, and what goes wrong in each session."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from tests.faults.chaos_plan import SCHEMES, shape_of_work
from tests.simulation.inputs import FIRST, HARMS, NETWORK, PX, ROWS, rows_of

# kind of fault -> how often it is drawn, relative to the others
KINDS = {
    "kill rank": 8,  # SIGKILL
    "exit rank": 3,  # it leaves by itself, with a code
    "stop rank": 3,  # SIGSTOP, for good
    "delay rank": 4,  # SIGSTOP, and on after a while
    "kill job": 3,
    "suspend job": 2,
    "SIGTERM": 2,
    "SIGINT": 1,
    "SIGUSR2": 2,
    "power loss": 4,  # of a host, with what it had not synced
    "disk full": 2,  # for a while
    "disk error": 4,  # one change or read fails, or some of a kind
    "no descriptor": 1,  # a rank may open no file, for a while
    "no memory": 1,  # nor has it any for one, or for a thread
    "second launch": 4,  # of the same run, at once
    "clock jump": 1,  # of a host's wall clock
    "slow disk": 1,
    "damage row": 2,  # of a shard, as the next three
    "truncate shard": 1,
    "replace shard": 1,
    "lose shard": 1,
    "link shard": 1,  # it is a link from then on, to the same content
}
# A session completes all the same.
HARMLESS = ("clock jump", "slow disk", "suspend job", "link shard", "second launch", "take-over")
# Between sessions, to what is on the disk.
BETWEEN = ("lose part", "lose marker", "litter", "copy parts", *HARMS)


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: of KINDS.
        at_ms: since the session's start, or since its first task where `at_work`.
        rank: whom it meets; of another one the rest of the division by the world's size; below 0
            one of the coordinators.
        for_ms: how long, where it passes.
        number: code, host or the like, as the kind needs.
    """

    kind: str
    at_ms: int
    rank: int = 0
    for_ms: int = 0
    number: int = 0
    at_work: bool = False

    def __str__(self) -> str:
        return f"{self.kind} (rank {self.rank}, {self.for_ms} ms, {self.number}) at {self.at_ms} ms"


@dataclass(frozen=True)
class Session:
    """One launch of the run.

    Attributes:
        tolerant: whether the world outlives a lost rank.
        tells_loss: whether MPI says that a rank is lost.
        hosts: the ranks lie on so many, from this one on.
        late_ms: the longest time after which another host sees what one does to the files.
        mends: whether the shards are mended before it.
        between: what happens to the disk before it.
        more: words that need not be the same in each session.
        dry: it is a dry run, which leaves the folder as it is.
    """

    tolerant: bool = True
    tells_loss: bool = True
    hosts: int = 1
    first: int = 0
    late_ms: int = 0
    mends: bool = True
    singles: int = 3
    faults: tuple[Fault, ...] = ()
    between: tuple[str, ...] = ()
    more: tuple[str, ...] = ()
    dry: bool = False


@dataclass(frozen=True)
class Case:
    """A seed's whole story. After its sessions come others without faults, to the run's end.

    Attributes:
        read: whether commands read the run in the end.
    """

    seed: int
    shards: tuple[str, ...]
    limit: int
    collages: int
    teams: int
    work: tuple[str, ...]
    pace: tuple[str, ...]
    sessions: tuple[Session, ...]
    read: bool = False

    @property
    def labelled(self) -> bool:
        """Half of the cases have shards without labels."""
        return random.Random(f"labels {self.seed}").random() < 0.5

    @property
    def exact(self) -> bool:
        """Whether only the exact network answers."""
        return not any(word.startswith(("collage", "cascade")) for word in self.work)

    @property
    def limited(self) -> bool:
        return self.limit < sum(map(rows_of, self.shards))

    @property
    def hasty(self) -> bool:
        """Whether a slow rank may count as silent, or as lost."""
        limits_s = [float(s) for word, s in pairwise(self.pace) if word == "--reply-timeout-s"]
        return "--slow-ranks" in self.pace or min(limits_s, default=30.0) < 2

    @property
    def limits_silence(self) -> bool:
        """Whether a rank that computes for seconds counts as silent."""
        return "--reply-timeout-s" in self.pace

    @property
    def measures_batch(self) -> bool:
        return ("--batch", "auto") in pairwise(self.work)

    def ranks(self, session: Session) -> int:
        """The world's size."""
        return self.teams * (1 + session.singles + self.collages)

    def victim(self, fault: Fault, session: Session) -> int:
        """The rank that a fault meets."""
        size = self.ranks(session)
        if fault.rank < 0:
            return fault.rank % self.teams * size // self.teams
        return fault.rank % size

    def words(self, session: Session, folder: str, go_on: tuple[str, ...]) -> list[str]:
        """The command line. Without a limit a shard that is mended may come to a run later."""
        words = ["run", "--shards", *(f"{folder}/{name}" for name in self.shards)]
        words += ["--single", NETWORK, "--collage", f"{FIRST},side=2", "--side", "2"]
        if self.limited:
            words += ["--limit", str(self.limit)]
        words += ["--out", f"{folder}/out", "--teams", str(self.teams)]
        words += ["--singles", str(session.singles), "--collage-ranks", str(self.collages)]
        words += ["--on-rank-loss", "continue" if session.tolerant else "abort"]
        words += [*session.more, *(("--dry-run",) if session.dry else ())]
        return [*words, *self.work, *self.pace, *go_on]


def draw(seed: int) -> Case:
    """The case of a seed."""
    rng = random.Random(f"case {seed}")
    collages = rng.choice((1, 1, 2))
    teams = rng.choice((1, 1, 1, 2, 2, 3))
    shards = tuple(rng.sample(list(ROWS), rng.randint(1, 3)))
    rows = sum(ROWS[name] for name in shards)
    median_ms = rng.choice((0, 2, 10, 40))
    pace = ["--depth", rng.choice(("1", "1", "2", "auto"))]
    if median_ms:
        pace += ["--straggler", f"lognormal:{median_ms}:0.5"]
        pace += ["--straggler-seed", str(rng.randrange(100))]
    pace += ["--order", rng.choice(("file", f"shuffle:{rng.randrange(9)}"))]
    pace += [] if teams > 1 else rng.choice(([], [], ["--rate", str(rng.choice((50, 400)))]))
    timeouts = rng.choice(((), ("2", "20"), ("2", "20"), ("2", "20")))
    if timeouts:
        pace += ["--reply-timeout-s", timeouts[0], "--start-timeout-s", timeouts[1]]
    work = shape_of_work(rng, tuple(SCHEMES), collages)
    if "cascade" not in work and rng.random() < 0.15:
        work += ("--save", "scores")
    work, pace = _in_runs(str(seed), work, pace)
    sessions = tuple(_session(rng, number) for number in range(rng.choice((1, 1, 2, 3))))
    limit = rng.choice((rows, rows, rng.randint(1, rows)))
    return Case(seed, shards, limit, collages, teams, work, tuple(pace), sessions)


def _in_runs(
    seed: str, work: tuple[str, ...], pace: list[str]
) -> tuple[tuple[str, ...], list[str]]:
    """Of some seeds the images of a batch come in together, and share what happens to them."""
    rng = random.Random(f"runs {seed}")
    if rng.random() > 0.2:
        return work, pace
    batch = rng.choice((2, 3, 4, 8))
    plain = ("--scheme", "none", "--assign", "pull", "--pixels", "workers", "--batch", str(batch))
    endgame = ("--endgame", rng.choice(("on", "off")))
    limits = {"--depth", "--order", "--reply-timeout-s", "--start-timeout-s"}
    kept = [pair for pair in pairwise(pace) if pair[0] in limits]
    if rng.random() < 0.5:
        plain += (
            "--scheme",
            "cascade",
            *SCHEMES["cascade"][1],
            "--audit",
            rng.choice(("0", "0.1")),
        )
        plain += ("--placement", rng.choice(("fixed", "fastest")))
    return (*plain, *endgame), [word for pair in kept for word in pair]


def _session(rng: random.Random, number: int) -> Session:
    tolerant = rng.random() < 0.75
    faults = tuple(_fault(rng) for _ in range(rng.choice((0, 1, 1, 1, 2, 3))))
    between = tuple(rng.sample(BETWEEN, 1)) if rng.random() < 0.3 else ()
    tells_loss, hosts = rng.random() < 0.5, rng.choice((1, 1, 2, 3))
    first, late_ms = rng.choice((0, 0, 1)), rng.choice((0, 0, 300, 5000, 40_000))
    place = hosts, first, late_ms, rng.random() < 0.7
    return Session(tolerant, tells_loss, *place, rng.choice((2, 3, 4)), faults, between)


def _fault(rng: random.Random) -> Fault:
    kind = rng.choices(list(KINDS), list(KINDS.values()))[0]
    at_ms = rng.choice((rng.randint(0, 500), rng.randint(400, 1500), rng.randint(400, 3000)))
    for_ms = rng.choice((20, 300, 3000, 40_000))
    return Fault(kind, at_ms, rng.choice((0, rng.randrange(32))), for_ms, rng.randrange(1000))


def wider(case: Case) -> Case:
    """The case with other settings, of which there are more. Of odd seeds all faults come while
    ranks work, which is but a part of a session."""
    rng = random.Random(f"wider {case.seed}")
    work, kept = _redundancy(rng, case.collages), _kept(rng)
    work += () if "--agree" in work else kept
    pace = (*_delays(rng), *_intake(rng, case.teams))
    sessions = tuple(_wider_session(rng, each, case.seed % 2 == 1) for each in case.sessions)
    sessions = tuple(_shared(f"{case.seed} {n}", each) for n, each in enumerate(sessions))
    sessions = tuple(_stalled(f"{case.seed} {n}", each) for n, each in enumerate(sessions))
    sessions = tuple(_cut(f"{case.seed} {n}", each) for n, each in enumerate(sessions))
    sessions = tuple(_failing(f"{case.seed} {n}", each) for n, each in enumerate(sessions))
    sessions = tuple(_struck(f"{case.seed} {n}", each) for n, each in enumerate(sessions))
    if rng.random() > 0.7:  # else copies at the end make up for a task that is forgotten
        work += ("--endgame", "off")
    work, in_pace = _in_runs(f"runs of {case.seed}", work, [*pace])
    work += _measured_batch(case.seed)
    work += _seldom(case.seed, work)
    case = replace(case, work=work, pace=tuple(in_pace), sessions=sessions)
    case = _with_a_team_that_comes_back(_with_a_very_slow_rank(case))
    return _with_pictures(replace(case, read=case.seed % 4 == 0))


def _measured_batch(seed: int) -> tuple[str, ...]:
    """In some cases the batch is chosen once the ranks are ready, in each session anew."""
    rng = random.Random(f"auto {seed}")
    if rng.random() > 0.2:
        return ()
    return ("--batch", "auto", *rng.choice(((), ("--batch-cost", "0.2"))))


def _seldom(seed: int, work: tuple[str, ...]) -> tuple[str, ...]:
    """In some cases a setting that changes little."""
    rng = random.Random(f"seldom {seed}")
    words = [("--warmup-groups", "0"), ("--warmup-groups", "5"), ("--cost-ratio", "1.3")]
    if "cascade" in work and "--agree" not in work and "--first" not in work:
        words += [("--deadline-ms", "60")]
    return rng.choice(words) if rng.random() < 0.3 else ()


def _with_pictures(case: Case) -> Case:
    """In some cases the images of a shard are read as pictures of a tar file."""
    if random.Random(f"tar {case.seed}").random() > 0.15:
        return case
    shards = (case.shards[0].replace(".h5", ".tar"), *case.shards[1:])
    form = ("--image-px", str(PX), "--channels", "1")
    return replace(case, shards=shards, work=(*case.work, *form))


def _wider_session(rng: random.Random, session: Session, at_work: bool) -> Session:
    faults = []
    for fault in session.faults:
        if fault.kind == "second launch" and rng.random() < 0.6:
            fault = replace(fault, kind="take-over")
        if rng.random() < 0.3:
            fault = replace(fault, rank=-rng.randint(1, 6))
        if at_work:
            fault = replace(fault, at_ms=fault.at_ms // 5, at_work=True)
        faults.append(fault)
    more = rng.choice(((), ("--status-every-s", "0.2")))
    return replace(session, faults=tuple(faults), more=more, dry=rng.random() < 0.05)


def _shared(seed: str, session: Session) -> Session:
    """In some sessions jobs join while the first one works; one of them is killed or suspended."""
    rng = random.Random(f"shared {seed}")
    if rng.random() > 0.3:
        return session
    more = [Fault("second launch", rng.randint(0, 1000), number=rng.randrange(1000))]
    for kind in rng.sample(("kill job", "kill job", "suspend job", "second launch"), 2):
        for_ms = rng.choice((300, 3000, 40_000))
        more.append(Fault(kind, rng.randint(0, 3000), 0, for_ms, rng.randrange(1000)))
    more = [replace(each, at_work=rng.random() < 0.7) for each in more[: rng.choice((1, 2, 2, 3))]]
    alone = rng.random() < 0.5  # nothing else happens
    return replace(session, faults=(*more, *(() if alone else session.faults)))


def _stalled(seed: str, session: Session) -> Session:
    """In some sessions what a rank sends is under way for longer than it is waited for."""
    rng = random.Random(f"stalled {seed}")
    if rng.random() > 0.2:
        return session
    rank = rng.choice((-1, -2, rng.randrange(32)))
    for_ms = rng.choice((300, 40_000, *(rng.randint(2000, 7000) for _ in range(3))))
    stall = Fault("stall messages", rng.randint(0, 1500), rank, for_ms, at_work=True)
    return replace(session, faults=(*session.faults, stall))


def _cut(seed: str, session: Session) -> Session:
    """In some sessions who has given a file its name ends before that is on the disk."""
    rng = random.Random(f"cut {seed}")
    if rng.random() > 0.2:
        return session
    return replace(session, faults=(*session.faults, Fault("cut", 0, number=rng.randrange(1000))))


def _failing(seed: str, session: Session) -> Session:
    """In some sessions the network of a rank raises for a while."""
    rng = random.Random(f"failing {seed}")
    if rng.random() > 0.12:
        return session
    at_ms, for_ms = rng.randint(0, 300), rng.choice((20, 300, 3000, 40_000))
    fault = Fault("failing network", at_ms, rng.randrange(32), for_ms, at_work=True)
    return replace(session, faults=(*session.faults, fault))


def _struck(seed: str, session: Session) -> Session:
    """In some sessions that outlive their ranks one or two are lost or silent while they work, or
    the networks of all ranks raise for a while."""
    rng = random.Random(f"struck {seed}")
    if not session.tolerant or rng.random() > 0.35:
        return session
    kinds = ("kill rank", "kill rank", "exit rank", "delay rank", "delay rank", "failing networks")
    more, at_work = [], rng.random() < 0.7
    for kind in rng.sample(kinds, rng.choice((1, 1, 2))):
        for_ms = rng.choice((60, 400)) if kind == "failing networks" else rng.randint(300, 5000)
        rank, number = rng.randrange(32), rng.randrange(1000)
        at_ms = rng.randint(0, 500) if at_work else rng.randint(380, 900)
        more.append(Fault(kind, at_ms, rank, for_ms, number, at_work=at_work))
    return replace(session, faults=(*session.faults, *more))


def _with_a_very_slow_rank(case: Case) -> Case:
    """In some cases one rank still computes for seconds when all images have their answers."""
    rng = random.Random(f"very slow {case.seed}")
    if case.teams > 1 or case.measures_batch or rng.random() > 0.06:
        return case
    pace = ("--straggler", "pinned:250", "--slow-ranks", "1:30")
    first = replace(case.sessions[0], faults=(), hosts=1, between=())
    work = (*case.work, "--endgame", "on", "--batch", "1")
    return replace(case, work=work, pace=pace, sessions=(first,))


def _with_a_team_that_comes_back(case: Case) -> Case:
    """In some cases of several teams the coordinator of one is not heard for so long that it is
    given up, and then goes on, while the others work."""
    rng = random.Random(f"comes back {case.seed}")
    if case.teams == 1 or case.measures_batch or rng.random() > 0.25:
        return case
    kind = rng.choice(("stall messages", "stall messages", "delay rank"))
    fault = Fault(kind, rng.randint(0, 200), -1, rng.randint(2100, 4000), at_work=True)
    sessions = [replace(s, faults=(), tolerant=True, hosts=3) for s in case.sessions]
    sessions[0] = replace(sessions[0], faults=(fault,), late_ms=0)
    drawn = [word for word in pairwise(case.pace) if word[0] in ("--depth", "--order")]
    pace = [word for pair in drawn for word in pair]
    pace += ["--straggler", f"lognormal:{rng.choice((100, 300))}"]
    pace += ["--reply-timeout-s", "1", "--start-timeout-s", "20"]
    work = (*case.work, "--batch", "1")
    return replace(case, work=work, pace=tuple(pace), sessions=tuple(sessions))


def _redundancy(rng: random.Random, collages: int) -> tuple[str, ...]:
    """The scheme, and which answers count. Of a word that is there twice the last one counts."""
    words = shape_of_work(rng, tuple(SCHEMES), collages)
    scheme = words[words.index("--scheme") + 1]
    if scheme == "cascade" and rng.random() < 0.5:
        at = words.index("--confidence")  # chosen while the job runs instead
        words = (*words[:at], *words[at + 2 :], "--agree", rng.choice(("0.5", "0.8")))
        words += ("--audit", rng.choice(("0.2", "0.5", "0")))
    if scheme == "cascade" and "--agree" not in words and rng.random() < 0.2:
        words += ("--first", FIRST, "--collage-ranks", str(collages))
        words += ("--placement", "fixed")
    if scheme == "collage" and rng.random() < 0.2:
        words += ("--confidence", "1")
    return words + rng.choice(((), ("--pixels", "auto"), ("--pixels", "rank0")))


def _kept(rng: random.Random) -> tuple[str, ...]:
    """What is kept of an image."""
    return rng.choices(((), ("--save", "scores"), ("--top-k", "2")), (8, 1, 1))[0]


def _delays(rng: random.Random) -> tuple[str, ...]:
    """How long ranks take, and when a silent one is given up."""
    median_ms = rng.choice((0, 2, 10, 40))
    words: tuple[str, ...] = ()
    if median_ms:
        model = rng.choice(("lognormal", "lognormal", "bimodal", "markov", "pinned"))
        words = ("--straggler", f"{model}:{median_ms}" + ":0.5" * (model != "pinned"))
        words += ("--straggler-seed", str(rng.randrange(100)))
    if median_ms and rng.random() < 0.15:
        words += ("--slow-ranks", f"{rng.randint(1, 2)}:{rng.choice((3, 12, 30))}")
    timeouts = rng.choice(((), ("2", "20"), ("2", "20"), ("0.5" if median_ms <= 10 else "2", "20")))
    if timeouts:
        words += ("--reply-timeout-s", timeouts[0], "--start-timeout-s", timeouts[1])
    return words


def _intake(rng: random.Random, teams: int) -> tuple[str, ...]:
    """How images come in."""
    words = ("--depth", rng.choice(("1", "1", "2", "auto")))
    words += ("--order", rng.choice(("file", f"shuffle:{rng.randrange(9)}")))
    if teams == 1 and rng.random() < 0.3:
        return (*words, "--rate", rng.choice(("50", "400")))
    return words + rng.choices(((), ("--between", "drain")), (6, 1))[0]


def simpler(case: Case) -> Iterator[Case]:
    """Cases with one thing less, the largest steps first."""
    for number, session in enumerate(case.sessions):
        rest = case.sessions[:number], case.sessions[number + 1 :]
        yield replace(case, sessions=(*rest[0], *rest[1]))
        for without in range(len(session.faults)):
            faults = session.faults[:without] + session.faults[without + 1 :]
            less = replace(session, faults=faults)
            yield replace(case, sessions=(*rest[0], less, *rest[1]))
        if session.between:
            yield replace(case, sessions=(*rest[0], replace(session, between=()), *rest[1]))
        if session.hosts > 1:
            yield replace(case, sessions=(*rest[0], replace(session, hosts=1), *rest[1]))
        if session.late_ms:
            yield replace(case, sessions=(*rest[0], replace(session, late_ms=0), *rest[1]))
    if case.teams > 1:
        yield replace(case, teams=1)
    for limit in (1, case.limit // 2):
        if 0 < limit < case.limit:
            yield replace(case, limit=limit)
