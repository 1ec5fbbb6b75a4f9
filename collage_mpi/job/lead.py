"""The lead: rank 0's work for all teams. It grants leases, publishes parts and notices lost teams.

Every run has a lead. If there is only one team, the lead grants it all images in one lease at once,
and its rows need no publishing.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, field, replace
from pathlib import Path
from typing import Any

from collage_mpi.core import events as ev
from collage_mpi.core.events import RankLost
from collage_mpi.core.outcomes import Totals
from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, ExitCode, UsageError
from collage_mpi.job import messages
from collage_mpi.job.calibration import Pair
from collage_mpi.job.leases import LeaseBook, LeaseSettings, count
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
from collage_mpi.job.team import ALIVE_EVERY_NS, Result, order_digest
from collage_mpi.job.worker_group import WorkerGroup
from collage_mpi.mpi.protocol import WireFault
from collage_mpi.mpi.transport import Gone, Received
from collage_mpi.results.pending import Publisher, read_entry, status_folder
from collage_mpi.results.status import read_status
from collage_mpi.results.writer import RunWriter
from collage_mpi.rows import IMAGES, STORED
from collage_mpi.shards.order import Range, gaps
from collage_mpi.system.backoff import GROUP_BACKOFF, Backoff
from collage_mpi.system.printable import counted
from collage_mpi.system.tell import tell

LOOK_EVERY_NS = 1_000_000
# Images of a lease. It bounds the work that is repeated for a lost team, and a message's length.
LARGEST_LEASE = 2048
LOOK_REST = 50  # polls take at most a fiftieth of the time, however many teams there are
LONGEST_REST_NS = 1_000_000_000  # the lead polls at least once a second
POLLS_KEPT = 8  # the shortest of them counts; in a longer one the process may have lost its core
TABLE_NAMES = frozenset(table.name for table in STORED)
_FAULTS = {int(error.exit_code): error for error in (UsageError, EnvironmentFault, DataFault)}


@dataclass(frozen=True)
class LeadSettings:
    """Settings of the lead.

    Attributes:
        session: number of team 0's session; the other teams have the numbers after it.
        late_s: how long after the start the job waits for a team that is not ready.
    """

    session: int
    late_s: float


@dataclass
class Team:
    """What the lead knows of a team.

    Attributes:
        rank: of its coordinator.
        session: number of its session.
        ready: it takes leases.
        epoch: of its leases.
        lease: number of its last lease.
        published: images in its published parts.
        paused, closed: whether it was sent `Pause`, and `Close`.
        done: how it ended; None before, and if it was given up.
        gone: why it was given up, or None.
        progress: its last report.
    """

    number: int
    rank: int
    session: int
    ready: bool = False
    epoch: int = 0
    lease: int = -1
    published: int = 0
    paused: bool = False
    closed: bool = False
    done: Done | None = None
    gone: str | None = None
    progress: Progress = field(default_factory=lambda: Progress(0, 0, 0))

    @property
    def at_work(self) -> bool:
        """Whether the team is in the book of leases: ready, and neither done nor given up."""
        return self.ready and self.done is None and self.gone is None


class Lead:
    """Leads all teams. It is polled in rank 0's loop, and only `wait` waits for a team.

    Attributes:
        teams: all teams, by number.
        unread: number of images that no team could read.
        inbox: messages for team 0.
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
        """`others`: coordinators of the other teams; `publisher` is None if there are none."""
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
        self._waiting: list[tuple[Team, Ready]] = []  # ready teams, until the costs are known
        self._halted = False
        self._late_ns = int(settings.late_s * 1e9)  # `start` turns it into a time on the clock
        self._look_at_ns = 0
        self._polls_ns: deque[int] = deque(maxlen=POLLS_KEPT)  # times of the last polls
        self._to_come = {team.number for team in self.teams}  # neither ready nor given up
        # Teams that may be due a lease, or a message about leases, since the last look.
        self._due: set[int] = set()
        self._more_may_come = True  # whether at the last look further teams could still come

    @property
    def alone(self) -> bool:
        """Whether team 0 is the only team."""
        return len(self.teams) == 1

    # ---- the link of team 0 (team.Link) ---------------------------------------

    def say(self, message: Message) -> None:
        """Take a message of team 0."""
        self._take(self.teams[0], message)

    def hear(self) -> Message | None:
        """The next message for team 0, or None."""
        self.look()
        return self.inbox.popleft() if self.inbox else None

    lost = None

    def stop_reason(self) -> str | None:
        """None: team 0 checks for signals by itself."""
        return None

    def during(self, work: Callable[[], Result]) -> Result:
        """Run `work` here: rank 0 needs to send no heartbeat meanwhile."""
        return work()

    def follow(self, progress: Callable[[], Progress]) -> None:
        """Does nothing: team 0 gives its totals to `totals`."""

    def totals(self, own: Totals) -> Totals:
        """The totals of all teams; `own`: those of team 0."""
        if self.alone:
            return own
        others = asdict(self.progress)
        return replace(own, **{name: getattr(own, name) + n for name, n in others.items()})

    # ---- the course of a job ------------------------------------------------

    def begin(self, run_id: str, order: str) -> None:
        """The run is claimed: let all teams make ready.

        A single team gets its images at once, so that it reads the first ones while its ranks load.
        """
        for team in self.teams[1:]:
            self._tell(team, Begin(team.session, run_id, order))
        if self.alone:
            self._join(self.teams[0])
            self._grant()

    def group_by(self, book: LeaseBook) -> None:
        """The batch is chosen: replace the book by one that counts in batches.

        No team of several has a lease yet. A single team keeps its lease.
        """
        if not self.alone:
            self._book = book

    def start(self, start: messages.Start, networks: Mapping[str, str]) -> None:
        """Grant leases from now on: the costs are known.

        Args:
            start: what the teams are told.
            networks: kind -> fingerprint of team 0's network; other teams must hold the same.
        """
        self._start, self._networks = start, networks
        self._late_ns += self._clock()
        if not self.alone:
            self._join(self.teams[0])
        self._look_at_ns = 0
        self.look()

    def tell_pairs(self, judge: Callable[[Iterable[Pair]], None]) -> None:
        """From now on pass the pairs of all teams to `judge`."""
        self._judge = judge

    def set_threshold(self, threshold: SetThreshold) -> None:
        """Send the threshold to all teams, also to those that are ready later."""
        self._threshold = threshold
        for team in (team for team in self.teams if team.at_work):
            self._tell(team, threshold)

    def look(self) -> None:
        """Take the messages that have come and act on them, if it is time to poll.

        Raises:
            CollageError: a team has a fault that ends the job, or a coordinator is lost and the job
                must not go on without it.
        """
        now_ns = self._clock()
        if now_ns < self._look_at_ns:
            return
        signs = self._others.detector.look(now_ns)
        arrivals = self._others.transport.poll()
        # Only the poll counts: a long rest after many messages would let even more gather.
        self._polls_ns.append(self._clock() - now_ns)
        rest_ns = min(LOOK_REST * min(self._polls_ns), LONGEST_REST_NS)
        least_ns = LONGEST_REST_NS if self.alone else LOOK_EVERY_NS  # alone no messages come
        self._look_at_ns = now_ns + max(least_ns, rest_ns)
        for arrival in arrivals:
            if isinstance(arrival, Received):
                self._others.detector.heard(arrival.rank, arrival.at_ns)
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
        """Wait until no team is awaited; `report` is called again and again."""
        backoff = Backoff(GROUP_BACKOFF)
        while self.awaits_teams:
            self.look()
            report()
            backoff.pause()
        self.look()

    @property
    def awaits_teams(self) -> bool:
        """Whether a team is at work, or may still come while images are left."""
        more = not (self._halted or self._book.finished)
        return any(team.at_work for team in self.teams) or (more and bool(self._late))

    @property
    def _late(self) -> set[int]:
        """Teams that may still come."""
        return set() if self._clock() >= self._late_ns else self._to_come

    @property
    def progress(self) -> Progress:
        """The sum of all other teams' progress; of a team given up only published images count."""
        found = [
            team.progress if team.gone is None else Progress(team.published, 0, 0)
            for team in self.teams[1:]
        ]
        all_of = [Progress(0, 0, 0), *found]
        return Progress(*map(sum, zip(*map(astuple, all_of), strict=True)))

    @property
    def finish(self) -> ev.Finish:
        """How the session has ended, once no team is at work; the reason if it is incomplete.

        Images that no team could read are counted in `unread` and do not matter here.
        """
        ended = [team.done for team in self.teams if team.done]
        if self.alone and ended:
            return ev.Finish(ended[0].status, ended[0].reason)
        if self._book.finished:
            return ev.Finish(ev.COMPLETE, "")
        said = (done.reason for done in ended if done.reason)
        return ev.Finish(ev.INCOMPLETE, next(said, "no team is left to do the rest"))

    @property
    def lost_shards(self) -> list[str]:
        """Why shards were not read in full, if this left an image without a row."""
        ended = [team.done for team in self.teams if team.done]
        return [why for done in ended for why in done.lost] if self.unread else []

    @property
    def changed_shards(self) -> list[str]:
        """Shards that teams found to have changed since the start."""
        return [why for team in self.teams if team.done for why in team.done.changed]

    def entries(
        self, out: Path, world_of: Callable[[int], list[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        """The manifest's entries for the sessions of the other teams.

        Args:
            out: the output folder, where teams that ended have left their entries.
            world_of: gives the planned ranks of a team that did not end. Its entry counts no rows.
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
        """Take a message. Raises WireFault if it is invalid, or cannot come from this team now."""
        said = messages.unpack(arrival.message, arrival.rank)
        try:
            self._take(self._by_rank[arrival.rank], said)
        except ValueError as error:
            name = type(said).__name__.lower()
            raise WireFault(f"rank {arrival.rank} sent an invalid {name}: {error}") from error

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
        """Let a ready team take leases, if its ranks hold the networks of team 0."""
        assert self._start is not None
        if team.gone is not None:
            return
        for kind, fingerprint in ready.fingerprints.items():
            mine = self._networks.get(kind, fingerprint)
            if fingerprint != mine:
                raise DataFault(
                    f"team {team.number} (rank {team.rank} and the ranks after it) holds another "
                    f"{kind} network (SHA-256 {fingerprint[:12]}...) than team 0 ({mine[:12]}...): "
                    "make the weights the same file on every host; a network of your own must load "
                    "them from a file, or seed its random numbers"
                )
        self._tell(team, self._start)
        self._join(team)
        self._others.detector.sent(team.rank, self._clock())  # from now on it owes heartbeats

    def _join(self, team: Team) -> None:
        team.ready, team.epoch = True, self._book.join(team.number)
        self._to_come.discard(team.number)
        self._due.add(team.number)
        if self._threshold is not None:
            self._tell(team, self._threshold)

    def _commit(self, team: Team, part: Part) -> None:
        """Publish the part, unless it holds images that no longer belong to the team."""
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
        """Grant to other teams the images that this team holds and could not read."""
        if self._halted or not team.at_work or idle.lease != team.lease:
            return  # the job stops, or the team has got another lease meanwhile
        held = count(self._book.held(team.number))
        self._book.lost(team.number, tried=True)
        self._join(team)
        self._all_are_due()
        others = held - self._settle()
        if others:
            text = f"team {team.number} could not read {counted(others, 'image')}"
            tell(f"collage-mpi run: {text}, which other teams try")

    def _settle(self) -> int:
        """Give up the images that all teams have tried; the number of these images."""
        able = [team.number for team in self.teams if team.at_work or team.number in self._late]
        images = self._book.settle(able) if able else 0
        if images:
            self.unread += images
            self._all_are_due()
        return images

    def _end(self, team: Team, done: Done) -> None:
        """The team has ended: grant what it had left to others."""
        if team.at_work:
            self._book.lost(team.number)
            team.done = done
            self._all_are_due()

    def _fault(self, team: Team, said: Fault) -> None:
        """A team cannot work or cannot go on: give it up, or end the job as for a lost rank.

        If every team has the fault, team 0 raises it itself.
        """
        if said.exit_code != ExitCode.INCOMPLETE and not self._others.detector.keep_going:
            kind = _FAULTS.get(said.exit_code, EnvironmentFault)
            raise kind(f"team {team.number}: {said.message}")
        self._give_up(team, f"it cannot work: {said.message}", stay=True)

    def _give_up(self, team: Team, why: str, *, stay: bool = False) -> None:
        """Give a team up: all its images that are not published are granted to others.

        `stay`: it stays until the job is over; otherwise it is told to leave now.
        """
        if team.gone is not None:
            return
        took, team.gone = team.at_work, why
        self._to_come.discard(team.number)
        self._all_are_due()
        if not stay:
            # Its exit code does not matter: the ranks that see the end of the job have the job's.
            self._tell(team, messages.Stop(int(ExitCode.COMPLETE)))
            self._others.transport.drop(team.rank)
        text = "is given up" if team.done is None else "has gone after its last row"
        if took:
            images = count(self._book.held(team.number))
            text += f"; other teams get its {counted(images, 'unpublished image')}"
            self._book.lost(team.number)
        tell(f"collage-mpi run: team {team.number} (rank {team.rank}) {text}: {why}")

    # ---- leases -------------------------------------------------------------

    def _grant(self) -> None:
        """Grant the leases that are due, and tell teams for which none is left."""
        if self._halted:
            return
        if self._book.tried:
            self._settle()
        due, self._due = [self.teams[number] for number in sorted(self._due)], set()
        for team in (team for team in due if team.at_work):
            while self._book.wants(team.number):
                lease = self._book.grant(team.number)
                team.lease, team.paused = lease.number, False
                if not self._book.fresh:  # nothing, or less than before, is left for other teams
                    self._all_are_due()
                places = messages.packed_ranges(lease.ranges)
                granted = lease.number, lease.epoch, lease.first_group
                self._tell(team, messages.Lease(*granted, places))
            # A single team never takes over another's images, so it needs no Pause.
            if not self.alone and not self._book.left_for(team.number) and not team.paused:
                team.paused = True
                self._tell(team, messages.Pause())
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
    lacking: Sequence[Range],
    stop_reason: Callable[[], str | None],
) -> Lead:
    """The lead of a claimed run. The other teams are told to make ready.

    Args:
        plan: of the run.
        others: the coordinators of the other teams.
        writer: has claimed the output folder.
        lacking: ascending positions in the plan's order whose images have no row.
        stop_reason: says why to stop, or None.
    """
    settings = plan.settings
    timeout_s = settings.reply_timeout_s
    if timeout_s is not None:  # at least two heartbeats of a coordinator
        timeout_s = max(timeout_s, 2 * ALIVE_EVERY_NS / 1e9)
    # Silence is noticed in any world, and all teams that do not say Done are waited for.
    others.detector.tolerate(settings.on_rank_loss != "abort", timeout_s, all_needed=True)
    book = build_lease_book(plan, lacking)
    told = LeadSettings(writer.session, settings.start_timeout_s)
    lead = Lead(others, book, writer.publisher, told, stop_reason)
    lead.begin(writer.manifest["run_id"], order_digest(plan) if others.ranks else "")
    return lead


def build_lease_book(plan: Plan, lacking: Sequence[Range]) -> LeaseBook:
    """The book of leases, in whole batches; a single team gets everything as one lease.

    `lacking`: as in `build_lead`.
    """
    settings = plan.settings
    images = settings.group_size * settings.batch_size
    largest = max(1, LARGEST_LEASE // images)
    smallest = min(-(-len(plan.placement.workers) // images), largest)  # an image a rank
    if settings.teams == 1:
        smallest = largest = max(1, -(-len(plan.order) // images))
    leases = LeaseSettings(settings.group_size, settings.batch_size, smallest, largest)
    return LeaseBook(leases, len(plan.order), done=gaps(lacking, len(plan.order)))


def ranks_of_others(
    out: Path, lead: Lead, world_of: Callable[[int], list[dict[str, Any]]]
) -> Iterator[dict[str, Any]]:
    """The ranks of the other teams, from the last status file of each team.

    The ranks of a team that was given up count as lost. If the team has written no status,
    `world_of` gives its planned ranks.
    """
    for team in lead.teams[1:]:
        try:
            ranks = read_status(status_folder(out, team.session))["ranks"]
        except CollageError:
            ranks = []  # it has written no status yet
        if team.gone is not None:
            ranks = ranks or [{"host": "", **rank} for rank in world_of(team.number)[1:]]
            ranks = [{**rank, "state": "lost", "tasks": 0, "why": team.gone} for rank in ranks]
        yield from ranks
