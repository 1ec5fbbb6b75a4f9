"""The lead: what rank 0 does for all teams, beside being the coordinator of the first one.

Every run has a lead. Where team 0 is the only team, the lead grants it everything in one lease at
once, and its rows need no publishing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, ExitCode, UsageError
from collage_mpi.job import messages
from collage_mpi.job.calibration import Pair
from collage_mpi.job.messages import (
    Begin,
    Begun,
    Done,
    Fault,
    Idle,
    Message,
    Pairs,
    Part,
    Progress,
    Ready,
    SetThreshold,
)
from collage_mpi.job.plan import Plan
from collage_mpi.job.recorder import Totals
from collage_mpi.job.team import ALIVE_EVERY_NS, Result, order_digest, ranges_of
from collage_mpi.job.worker_group import WorkerGroup
from collage_mpi.mpi.protocol import WireFault
from collage_mpi.mpi.transport import Gone, Received
from collage_mpi.results.pending import Publisher, read_entry, status_folder
from collage_mpi.results.rows import IMAGES, TABLES
from collage_mpi.results.status import read_status
from collage_mpi.results.writer import RunWriter
from collage_mpi.scheduler import events as ev
from collage_mpi.scheduler.events import RankLost
from collage_mpi.scheduler.leases import LeaseBook, LeaseSettings, count
from collage_mpi.system.backoff import GROUP_BACKOFF, Backoff
from collage_mpi.system.printable import counted
from collage_mpi.system.tell import tell

LOOK_EVERY_NS = 1_000_000
# Images: what is done again when a coordinator is lost, and the length of a message.
LARGEST_LEASE = 2048
LOOK_REST = 50  # polls take a fiftieth of the time at most, however many teams there are,
LONGEST_REST_NS = 1_000_000_000  # but the lead looks once a second at least
POLLS_KEPT = 8  # the shortest of them counts: in a longer one the process may have lost its core
TABLE_NAMES = frozenset(table.name for table in TABLES)
_FAULTS = {int(error.exit_code): error for error in (UsageError, EnvironmentFault, DataFault)}


@dataclass(frozen=True)
class LeadSettings:
    """What the lead is told once.

    Attributes:
        session: of team 0; those of the other teams follow.
        late_s: how long after the start the job waits for a team that has not come.
    """

    session: int
    late_s: float


@dataclass
class Team:
    """What the lead knows of a team.

    Attributes:
        rank: of its coordinator.
        session: of its rows.
        ready: it takes leases, under its epoch.
        lease: the last that it got.
        published: images in parts that count.
        lulled, closed: what it was told.
        done: how it ended; None before, and of one that was given up.
        gone: why it was given up.
    """

    number: int
    rank: int
    session: int
    ready: bool = False
    epoch: int = 0
    lease: int = -1
    published: int = 0
    lulled: bool = False
    closed: bool = False
    done: Done | None = None
    gone: str | None = None
    progress: Progress = field(default_factory=lambda: Progress(0, 0, 0))

    @property
    def at_work(self) -> bool:
        """Whether it takes leases, or stays until all is done: it is in the book of leases."""
        return self.ready and self.done is None and self.gone is None


class Lead:
    """Polled in rank 0's loop; never waits for a team but in `wait`.

    Attributes:
        unread: images that no team could read.
        inbox: what team 0 is told.
    """

    def __init__(
        self,
        others: WorkerGroup,
        book: LeaseBook,
        publisher: Publisher | None,
        settings: LeadSettings,
        stop_reason: Callable[[], str | None],
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        """`others`: the coordinators of the other teams; without any there is no `publisher`."""
        self.unread = 0
        self.inbox: deque[Message] = deque()
        self._judge: Callable[[Iterable[Pair]], None] = lambda pairs: None
        self._threshold: SetThreshold | None = None
        self._others, self._book, self._publisher = others, book, publisher
        self._settings, self._why_stop, self._clock = settings, stop_reason, clock
        self.teams = [
            Team(number, rank, settings.session + number)
            for number, rank in enumerate((0, *others.ranks))
        ]
        self._by_rank = {team.rank: team for team in self.teams}
        self._start: messages.Start | None = None
        self._networks: Mapping[str, str] = {}
        self._waiting: list[tuple[Team, Ready]] = []  # until the costs are known
        self._halted = False
        self._late_ns = int(settings.late_s * 1e9)  # from the start on: when that is
        self._look_at_ns = 0
        self._polls_ns: deque[int] = deque(maxlen=POLLS_KEPT)  # what the last ones took
        self._to_come = {team.number for team in self.teams}  # neither ready nor given up
        # To whom a lease or a word of leases may be due, by what has happened since the last look;
        # and whether a team could yet come then
        self._due: set[int] = set()
        self._more_may_come = True

    @property
    def alone(self) -> bool:
        """Whether team 0 is the only team."""
        return len(self.teams) == 1

    # ---- what team 0 needs of a link ----------------------------------------

    def say(self, message: Message) -> None:
        """Team 0 says it."""
        self._take(self.teams[0], message)

    def hear(self) -> Message | None:
        """What team 0 is told next."""
        self.look()
        return self.inbox.popleft() if self.inbox else None

    lost = None

    def stop_reason(self) -> str | None:
        """Never any: team 0 hears of a signal by itself."""
        return None

    def during(self, work: Callable[[], Result]) -> Result:
        """Do it: nobody watches rank 0 by its silence."""
        return work()

    def follow(self, progress: Callable[[], Progress]) -> None:
        """Nothing to keep: team 0 tells its totals when it asks for those of all teams."""

    def totals(self, own: Totals) -> Totals:
        """Those of all teams; `own`: team 0's."""
        if self.alone:
            return own
        others = asdict(self.progress)
        return replace(own, **{name: getattr(own, name) + n for name, n in others.items()})

    # ---- the course of a job ------------------------------------------------

    def begin(self, run_id: str, order: str) -> None:
        """The run is claimed: teams may make ready. A team alone gets its images at once, so that
        the first of them are read while its ranks load."""
        for team in self.teams[1:]:
            self._tell(team, Begin(team.session, run_id, order))
        if self.alone:
            self._join(self.teams[0])
            self._grant()

    def group_by(self, book: LeaseBook) -> None:
        """The batch is chosen: several teams, of which none has a lease yet, take whole batches."""
        if not self.alone:
            self._book = book

    def start(self, start: messages.Start, networks: Mapping[str, str]) -> None:
        """What networks cost is known, and what team 0 holds: leases go out from now on."""
        self._start, self._networks = start, networks
        self._late_ns += self._clock()
        if not self.alone:
            self._join(self.teams[0])
        self._look_at_ns = 0
        self.look()

    def tell_pairs(self, judge: Callable[[Iterable[Pair]], None]) -> None:
        """From now on `judge` takes the pairs of all teams."""
        self._judge = judge

    def set_threshold(self, threshold: SetThreshold) -> None:
        """All teams are to go by it, those too that come later."""
        self._threshold = threshold
        for team in (team for team in self.teams if team.at_work):
            self._tell(team, threshold)

    def look(self) -> None:
        """Take what has come and act upon it, now and then.

        Raises:
            CollageError: a fault of a team that ends the job; a coordinator is lost and the job
                is not to go on without it.
        """
        now_ns = self._clock()
        if now_ns < self._look_at_ns:
            return
        signs = self._others.detector.look(now_ns)
        arrivals = self._others.transport.poll()
        # Of the poll alone: if much that has come were followed by a long rest, more would come
        self._polls_ns.append(self._clock() - now_ns)
        rest_ns = min(LOOK_REST * min(self._polls_ns), LONGEST_REST_NS)
        least_ns = LONGEST_REST_NS if self.alone else LOOK_EVERY_NS  # alone there is nobody to hear
        self._look_at_ns = now_ns + max(least_ns, rest_ns)
        for arrival in arrivals:
            if isinstance(arrival, Received):
                self._others.detector.heard(arrival.rank, arrival.at_ns, ())
                self._hear(arrival)
            elif isinstance(arrival, Gone):
                self._others.detector.gone(arrival)
        for sign in signs:
            if isinstance(sign, RankLost):
                self._give_up(self._by_rank[sign.rank], sign.why)
        reason = None if self._halted else self._why_stop()
        if reason is not None:
            self._halted = True
            for team in self.teams[1:]:
                self._tell(team, messages.Halt(reason))
        if self._start is not None:
            waiting, self._waiting = self._waiting, []
            for team, ready in waiting:
                self._welcome(team, ready)
        may_come = bool(self._late)
        if self._due or may_come != self._more_may_come:
            self._more_may_come = may_come
            self._grant()

    def wait(self, report: Callable[[], object]) -> None:
        """Until no team is awaited; `report` is called again and again."""
        backoff = Backoff(GROUP_BACKOFF)
        while self.awaits_teams:
            self.look()
            report()
            backoff.pause()
        self.look()

    @property
    def awaits_teams(self) -> bool:
        """Whether a team is at work, or may yet come and has something to do."""
        more = not (self._halted or self._book.finished)
        return any(team.at_work for team in self.teams) or (more and bool(self._late))

    @property
    def _late(self) -> set[int]:
        """Teams that may yet come."""
        return set() if self._clock() >= self._late_ns else self._to_come

    @property
    def progress(self) -> Progress:
        """That of all other teams; of those given up what was published, which alone counts."""
        found = [
            team.progress if team.gone is None else Progress(team.published, 0, 0)
            for team in self.teams[1:]
        ]
        all_of = [Progress(0, 0, 0), *found]
        return Progress(*map(sum, zip(*map(astuple, all_of), strict=True)))

    @property
    def finish(self) -> ev.Finish:
        """How the launch has ended, once no team is at work, and why if it is incomplete. Images
        that no team could read are told apart."""
        ended = [team.done for team in self.teams if team.done]
        if self.alone and ended:
            return ev.Finish(ended[0].status, ended[0].reason)
        if self._book.finished:
            return ev.Finish(ev.COMPLETE, "")
        said = (done.reason for done in ended if done.reason)
        return ev.Finish(ev.INCOMPLETE, next(said, "no team is left to do the rest"))

    @property
    def lost_shards(self) -> list[str]:
        """Why shards were not read in full, where that left an image without a row."""
        ended = [team.done for team in self.teams if team.done]
        return [why for done in ended for why in done.lost] if self.unread else []

    @property
    def changed_shards(self) -> list[str]:
        """Shards that have changed, as teams met them."""
        return [why for team in self.teams if team.done for why in team.done.changed]

    def entries(
        self, out: Path, world_of: Callable[[int], list[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        """The other teams among the run's sessions.

        Of one that did not end no rows are vouched for, and `world_of` tells its ranks.
        """
        found = []
        for team in self.teams[1:]:
            if team.done is not None:
                found.append(read_entry(out, team.session))
            elif team.ready:
                final = {"world": world_of(team.number), "batch": self._book.settings.batch}
                lost = {"status": ev.INCOMPLETE, "rows": None, "final": final}
                found.append({"session": team.session, **lost})
        return found

    # ---- what teams say -----------------------------------------------------

    def _hear(self, arrival: Received) -> None:
        """Raises WireFault: no message, or one that this team cannot have said now."""
        said = messages.unpack(arrival.message, arrival.rank)
        try:
            self._take(self._by_rank[arrival.rank], said)
        except ValueError as error:
            name = type(said).__name__.lower()
            raise WireFault(f"rank {arrival.rank} sent {name} that cannot be: {error}") from error

    def _take(self, team: Team, said: Message) -> None:
        if isinstance(said, Progress):
            team.progress = said
        elif isinstance(said, Ready):
            if team.ready or any(waiting is team for waiting, _ in self._waiting):
                raise ValueError(f"team {team.number} is ready already")
            self._waiting.append((team, said))
        elif isinstance(said, Begun):
            if team.at_work:
                self._book.begun(team.number, said.number)
                self._due.add(team.number)
        elif isinstance(said, Part):
            self._commit(team, said)
        elif isinstance(said, Pairs) and team.gone is None:
            self._judge([Pair(*pair) for pair in said.pairs])
        elif isinstance(said, Idle):
            self._judge_rest(team, said)
        elif isinstance(said, Done):
            self._end(team, said)
        elif isinstance(said, Fault):
            self._fault(team, said)

    def _welcome(self, team: Team, ready: Ready) -> None:
        """The team has its ranks, which hold the networks of team 0: it is one of those at work."""
        assert self._start is not None
        if team.gone is not None:
            return
        for kind, fingerprint in ready.fingerprints.items():
            mine = self._networks.get(kind, fingerprint)
            if fingerprint != mine:
                raise DataFault(
                    f"team {team.number} (rank {team.rank} and those after it) holds another "
                    f"{kind} network (SHA-256 {fingerprint[:12]}...) than team 0 ({mine[:12]}...): "
                    "make the weights the same file on every host; a network of your own must load "
                    "them from a file, or seed its random numbers"
                )
        self._tell(team, self._start)
        self._join(team)
        self._others.detector.sent(team.rank, self._clock())  # a sign of life, from now on

    def _join(self, team: Team) -> None:
        team.ready, team.epoch = True, self._book.join(team.number)
        self._to_come.discard(team.number)
        self._due.add(team.number)
        if self._threshold is not None:
            self._tell(team, self._threshold)

    def _commit(self, team: Team, part: Part) -> None:
        """Publish it, unless it holds images that are not its team's any more."""
        if part.table not in TABLE_NAMES:
            raise ValueError(f"there is no table {part.table!r}")
        if team.gone is not None:
            return
        if part.table == IMAGES.name:
            ranges = messages.unpacked_ranges(part.places)
            if not self._book.commit(team.number, part.epoch, ranges):
                return
            team.published += count(ranges)
            if self._book.finished:
                self._all_are_due()
        assert self._publisher is not None
        self._publisher.put(part.table, team.session, part.number)

    def _judge_rest(self, team: Team, idle: Idle) -> None:
        """What has no row though all was done that could be read: teams try it that have not."""
        if self._halted or not team.at_work or idle.lease != team.lease:
            return  # nobody is to try it, or it has got another one meanwhile
        held = count(self._book.held(team.number))
        self._book.lost(team.number, tried=True)
        self._join(team)
        self._all_are_due()
        others = held - self._settle()
        if others:
            text = f"team {team.number} could not read {counted(others, 'image')}"
            tell(f"collage-mpi run: {text}, which other teams try")

    def _settle(self) -> int:
        """Do without what each team that could do it has tried: how many images."""
        able = [team.number for team in self.teams if team.at_work or team.number in self._late]
        images = self._book.settle(able) if able else 0
        if images:
            self.unread += images
            self._all_are_due()
        return images

    def _end(self, team: Team, done: Done) -> None:
        """It has written all it will write: what it had left goes to others."""
        if team.at_work:
            self._book.lost(team.number)
            team.done = done
            self._all_are_due()

    def _fault(self, team: Team, said: Fault) -> None:
        """A team cannot work, or not go on: as a rank, it is missed where others can."""
        kind = _FAULTS.get(said.exit_code, EnvironmentFault)
        error: CollageError = kind(f"team {team.number}: {said.message}")
        stopped = said.exit_code == ExitCode.INCOMPLETE
        if not stopped and not (self._others.detector.keep_going and kind is EnvironmentFault):
            raise error
        self._give_up(team, f"it cannot work: {said.message}", stay=True)

    def _give_up(self, team: Team, why: str, *, stay: bool = False) -> None:
        """What it wrote and was not published goes to others with all that it has not done.

        `stay`: it is to hear when the job is over; else it is told to leave, for all that it hears.
        """
        if team.gone is not None:
            return
        took, team.gone = team.at_work, why
        self._to_come.discard(team.number)
        self._all_are_due()
        if not stay:
            # Not its own code: that of the job is told by who sees its end.
            self._tell(team, messages.Stop(int(ExitCode.COMPLETE)))
            self._others.transport.drop(team.rank)
        text = "is given up" if team.done is None else "has gone after its last row"
        if took:
            images = count(self._book.held(team.number))
            text += f"; {counted(images, 'image')} that it had go to others"
            self._book.lost(team.number)
        tell(f"collage-mpi run: team {team.number} (rank {team.rank}) {text}: {why}")

    # ---- leases -------------------------------------------------------------

    def _grant(self) -> None:
        """Give what is wanted; tell who gets none."""
        if self._halted:
            return
        if self._book.tried:
            self._settle()
        due, self._due = [self.teams[number] for number in sorted(self._due)], set()
        for team in (team for team in due if team.at_work):
            while self._book.wants(team.number):
                lease = self._book.grant(team.number)
                team.lease, team.lulled = lease.number, False
                if not self._book.fresh:  # it was the last, or less is left for some of the others
                    self._all_are_due()
                places = messages.packed_ranges(lease.ranges)
                granted = lease.number, lease.epoch, lease.first_group
                self._tell(team, messages.Lease(*granted, places))
            # A team alone has nobody to take over from: it has all that there will be.
            if not self.alone and not self._book.left_for(team.number) and not team.lulled:
                team.lulled = True
                self._tell(team, messages.Lull())
            if (self.alone or self._book.finished) and not team.closed:
                team.closed = True
                self._tell(team, messages.Close())

    def _all_are_due(self) -> None:
        self._due.update(team.number for team in self.teams)

    def _tell(self, team: Team, message: Message) -> None:
        if team.number:
            self._others.tell(team.rank, message)
        else:
            self.inbox.append(message)


def build_lead(
    plan: Plan,
    others: WorkerGroup,
    writer: RunWriter,
    lacking: np.ndarray,
    stop_reason: Callable[[], str | None],
) -> Lead:
    """The lead of a run that is claimed; the other teams make ready from now on.

    `lacking`: (n,) bool, which of the plan's images have no row.
    """
    settings = plan.settings
    timeout_s = settings.reply_timeout_s
    if timeout_s is not None:  # of a coordinator, which is heard but so often
        timeout_s = max(timeout_s, 2 * ALIVE_EVERY_NS / 1e9)
    # Silence is seen in any world, and what a team has not said to be done is waited for.
    others.detector.tolerate(settings.on_rank_loss != "abort", timeout_s, all_needed=True)
    book = build_lease_book(plan, lacking)
    told = LeadSettings(writer.session, settings.start_timeout_s)
    lead = Lead(others, book, writer.publisher, told, stop_reason)
    lead.begin(writer.manifest["run_id"], order_digest(plan) if others.ranks else "")
    return lead


def build_lease_book(plan: Plan, lacking: np.ndarray) -> LeaseBook:
    """What the teams are to do, in whole batches; of a team alone everything is one lease.

    `lacking`: as of `build_lead`.
    """
    settings = plan.settings
    images = settings.group_size * settings.batch_size
    largest = max(1, LARGEST_LEASE // images)
    smallest = min(-(-len(plan.placement.workers) // images), largest)  # an image a rank
    if settings.teams == 1:
        smallest = largest = max(1, -(-len(plan.order) // images))
    leases = LeaseSettings(settings.group_size, settings.batch_size, smallest, largest)
    return LeaseBook(leases, len(plan.order), done=ranges_of(np.flatnonzero(~lacking)))


def ranks_of_others(
    out: Path, lead: Lead, world_of: Callable[[int], list[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """The ranks of the other teams, as each has last said in a status of its own.

    Those of a team that was given up are lost: where it has said nothing `world_of` tells them.
    """
    for team in lead.teams[1:]:
        try:
            ranks = read_status(status_folder(out, team.session))["ranks"]
        except CollageError:
            ranks = []  # it has none yet
        if team.gone is not None:
            ranks = ranks or [{"host": "", **rank} for rank in world_of(team.number)[1:]]
            ranks = [{**rank, "state": "lost", "tasks": 0, "why": team.gone} for rank in ranks]
        yield from ranks
