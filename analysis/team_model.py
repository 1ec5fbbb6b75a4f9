"""A job of many teams on virtual time: coordinators and the lead as serial servers.

Owns: when an image leaves and comes back, what the coordinators and the lead are busy with.
Schemes, failures, pixels and the disk are not modelled: every image is sent once, alone, to
whichever rank has room.

The leases are those of the package's own book. A team is what `simulation/simulator` is under
scheme none, if twice as many groups as the ranks may hold are in the job, without its scheduler,
which makes a million images a matter of seconds; a test holds one team to it. What the simulator
lacks is here: a poll looks at every rank's receive, whether or not something has come.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from collage_mpi.job.leases import GrantedLease, LeaseBook, LeaseSettings, Range
from collage_mpi.simulation.costs import Costs
from collage_mpi.system.backoff import COORDINATOR_BACKOFF as PAUSES

CREDIT = 2  # messages that a rank has at a time: one runs, one waits
ROWS_PER_PART = 4096
SIGN_NS = 500_000_000  # a team tells the lead so often how far it is
LOOK_NS, LOOK_SHARE = 1_000_000, 50  # the lead polls so often, but for a fiftieth of its time
# At equal times a coordinator takes answers first.
ANSWER, LEASE, PAUSE, LOOK, BEGUN, PART, SIGN = range(7)


@dataclass(frozen=True)
class LeadCosts:
    """What the lead does for the teams, in ns; their own messages cost as any."""

    lease_ns: int  # "begun" received, the book asked, a lease sent
    part_ns: int  # a part of images and one of their tasks committed and renamed
    sign_ns: int  # a team's sign of life received
    look_ns: int  # whether something has come, beside a poll of the teams


@dataclass(frozen=True)
class World:
    """What is simulated.

    Attributes:
        teams: so many, each with one coordinator;
        workers: and so many ranks with a network.
        images: in all.
        leases: how the lead cuts them.
        costs: of a coordinator, a message, a rank's service.
        lead: of the lead, whose coordinator is team 0's.
        poll_ns: what a poll takes a rank.
        sigma: of the lognormal service times; their mean is `single_ns` whatever it is.
        slower: team -> its ranks' service times over the others'.
        seed: of the service times.
    """

    teams: int
    workers: int
    images: int
    leases: LeaseSettings
    costs: Costs
    lead: LeadCosts
    poll_ns: int = 0
    sigma: float = 0.0
    slower: Mapping[int, float] = field(default_factory=dict)
    seed: int = 0

    @property
    def ranks(self) -> int:
        """Coordinators included."""
        return self.teams * (1 + self.workers)


@dataclass(frozen=True)
class Outcome:
    """What became of it.

    Attributes:
        seconds: until the last part is published.
        busy_s: (teams,) float64; a coordinator's CPU time, that of its polls and of the lead's
            work included.
        images: (teams,) int64; that each has done.
        lead_s: of busy_s[0], for leases, parts and looks.
        leases, parts: that the lead saw; ranges: in the announcements of the parts.
    """

    seconds: float
    busy_s: np.ndarray
    images: np.ndarray
    lead_s: float
    leases: int
    parts: int
    ranges: int

    @property
    def dearest_us(self) -> float:
        """CPU an image of the busiest coordinator."""
        return float(1e6 * (self.busy_s / np.maximum(self.images, 1)).max())

    @property
    def images_per_s(self) -> float:
        """Of the job."""
        return float(self.images.sum() / self.seconds)


class _Team:
    """A coordinator, its ranks and what it knows of its leases."""

    def __init__(self, number: int, workers: int, epoch: int, factor: float) -> None:
        self.number, self.epoch, self.factor = number, epoch, factor
        self.free_ns = 0  # when the coordinator has done what it is doing
        self.polled_ns = -1  # when it last looked at what had come
        self.busy_ns = 0
        self.rank_free_ns = [0] * workers
        self.idle = deque(worker for _ in range(CREDIT) for worker in range(workers))
        self.leases: deque[GrantedLease] = deque()  # not begun
        self.ranges: deque[Range] = deque()  # of the one begun
        self.out = self.done = 0  # images
        self.rows: list[int] = []  # positions, not yet in a part
        self.told = self.paused = False  # by the lead that nothing is left; it has heard


class TeamsModel:
    """One job. `run` once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.book = LeaseBook(world.leases, world.images)
        self.teams = [
            _Team(n, world.workers, self.book.join(n), world.slower.get(n, 1.0))
            for n in range(world.teams)
        ]
        self._heap: list[tuple[int, ...]] = []
        self.leases: dict[int, GrantedLease] = {}
        self.parts: list[list[Range]] = []
        mean_ns, sigma = world.costs.single_ns, world.sigma
        normal = np.random.default_rng(world.seed).standard_normal(world.images)
        draws = mean_ns * np.exp(sigma * normal - sigma**2 / 2)  # (images,) float64
        self._service_ns: list[int] = draws.astype(np.int64).tolist()
        self._poll_ns = world.poll_ns * world.workers
        others = world.teams - 1
        self._look_ns = world.lead.look_ns + world.poll_ns * others if others else 0
        self._look_every_ns = max(LOOK_NS, LOOK_SHARE * self._look_ns)
        self._lead_ns = 0
        self._ranges = 0

    def run(self) -> Outcome:
        """From the first lease to the last part."""
        for team in self.teams:
            self._grant(team)
            self._at(SIGN_NS * (1 + team.number) // len(self.teams), SIGN, team.number, 0)
        takes = {
            LEASE: self._lease,
            PAUSE: self._nothing_left,
            LOOK: self._look,
            BEGUN: self._begun,
            PART: self._part,
            SIGN: self._sign,
        }
        if self._look_ns:
            self._at(self._look_every_ns, LOOK, 0, 0)
        heap = self._heap
        while not self.book.finished:
            at_ns, kind, number, what, position = heapq.heappop(heap)
            team = self.teams[number]
            if kind == ANSWER:
                self._answer(team, at_ns, what, position)
            else:
                takes[kind](team, at_ns, what)
        return Outcome(
            self.teams[0].free_ns / 1e9,
            np.array([team.busy_ns for team in self.teams]) / 1e9,
            np.array([team.done for team in self.teams]),
            self._lead_ns / 1e9,
            len(self.leases),
            len(self.parts),
            self._ranges,
        )

    def _at(self, at_ns: int, kind: int, team: int, what: int, position: int = 0) -> None:
        heapq.heappush(self._heap, (at_ns, kind, team, what, position))

    # ---- a coordinator ------------------------------------------------------

    def _turn(self, team: _Team, at_ns: int, cost_ns: int) -> None:
        """It takes what came at at_ns, for so long: at its next poll, if the last was before."""
        if at_ns > team.polled_ns:
            idle_ns = max(0, at_ns - team.free_ns)
            if self._poll_ns:  # and how often it looked in vain
                polls = min(PAUSES.free_tests, idle_ns // self._poll_ns)
                team.busy_ns += self._poll_ns * (1 + polls + idle_ns // PAUSES.longest_ns)
            team.polled_ns = max(team.free_ns, at_ns)
            team.free_ns = team.polled_ns + self._poll_ns
        team.free_ns += cost_ns
        team.busy_ns += cost_ns

    def _answer(self, team: _Team, at_ns: int, worker: int, position: int) -> None:
        self._turn(team, at_ns, self.world.costs.receive_ns)
        team.out -= 1
        team.done += 1
        team.rows.append(position)
        if len(team.rows) == ROWS_PER_PART:
            self._announce(team)
        team.idle.append(worker)
        self._feed(team)

    def _feed(self, team: _Team) -> None:
        """An image to each rank that has room."""
        costs = self.world.costs
        while team.idle and (position := self._next(team)) is not None:
            worker = team.idle.popleft()
            team.free_ns += costs.send_ns
            team.busy_ns += costs.send_ns
            begin_ns = max(team.rank_free_ns[worker], team.free_ns + costs.network_ns)
            done_ns = begin_ns + round(self._service_ns[position] * team.factor)
            team.rank_free_ns[worker] = done_ns
            team.out += 1
            self._at(done_ns + costs.network_ns, ANSWER, team.number, worker, position)
        if team.paused and not team.out and team.rows:
            self._announce(team)

    def _next(self, team: _Team) -> int | None:
        """The next position of its leases; where one begins the lead is told."""
        if not team.ranges:
            if not team.leases:
                return None
            lease = team.leases.popleft()
            team.ranges.extend(lease.ranges)
            self._tell(team, BEGUN, lease.number)
        start, stop = team.ranges.popleft()
        if start + 1 < stop:
            team.ranges.appendleft((start + 1, stop))
        return start

    def _announce(self, team: _Team) -> None:
        """A part is written: the lead is to publish it."""
        self.parts.append(_as_ranges(team.rows))
        team.rows = []
        self._tell(team, PART, len(self.parts) - 1)

    def _tell(self, team: _Team, kind: int, what: int) -> None:
        """A message to the lead, which team 0 need not send."""
        costs = self.world.costs
        if not team.number:
            self._at(team.free_ns, kind, 0, what)
            return
        team.free_ns += costs.send_ns
        team.busy_ns += costs.send_ns
        looks = -(-(team.free_ns + costs.network_ns) // self._look_every_ns)
        self._at(looks * self._look_every_ns, kind, team.number, what)

    def _lease(self, team: _Team, at_ns: int, number: int) -> None:
        self._turn(team, at_ns, self.world.costs.receive_ns if team.number else 0)
        team.leases.append(self.leases[number])
        self._feed(team)

    def _nothing_left(self, team: _Team, at_ns: int, _: int) -> None:
        self._turn(team, at_ns, self.world.costs.receive_ns if team.number else 0)
        team.paused = True
        self._feed(team)

    # ---- the lead -----------------------------------------------------------

    def _serve(self, at_ns: int, cost_ns: int) -> None:
        """The lead is at work for a team: its own images wait."""
        self._turn(self.teams[0], at_ns, cost_ns)
        self._lead_ns += cost_ns

    def _look(self, _: _Team, at_ns: int, __: int) -> None:
        self._serve(at_ns, self._look_ns)
        self._at(at_ns + self._look_every_ns, LOOK, 0, 0)

    def _begun(self, team: _Team, at_ns: int, number: int) -> None:
        self._serve(at_ns, 0)
        self.book.begun(team.number, number)
        self._grant(team)

    def _grant(self, team: _Team) -> None:
        """Leases until it has enough of them, or word that there are none."""
        lead, way_ns = self.teams[0], self.world.costs.network_ns if team.number else 0
        while self.book.wants(team.number):
            lease = self.book.grant(team.number)
            self.leases[lease.number] = lease
            self._serve(lead.polled_ns, self.world.lead.lease_ns)
            self._at(lead.free_ns + way_ns, LEASE, team.number, lease.number)
        if not self.book.left and not team.told:
            team.told = True
            self._at(lead.free_ns + way_ns, PAUSE, team.number, 0)

    def _sign(self, team: _Team, at_ns: int, _: int) -> None:
        if team.number:
            team.busy_ns += self.world.costs.send_ns
            self._serve(at_ns, self.world.lead.sign_ns)
        self._at(at_ns + SIGN_NS, SIGN, team.number, 0)

    def _part(self, team: _Team, at_ns: int, number: int) -> None:
        self._serve(at_ns, self.world.lead.part_ns)
        self._ranges += len(self.parts[number])
        assert self.book.commit(team.number, team.epoch, self.parts[number])


def _as_ranges(positions: Iterable[int]) -> list[Range]:
    """(n,) distinct positions as the fewest ranges."""
    found = np.sort(np.fromiter(positions, np.int64))
    ends = np.flatnonzero(np.diff(found) > 1)
    starts, stops = found[np.r_[0, ends + 1]], found[np.r_[ends, len(found) - 1]] + 1
    return list(zip(starts.tolist(), stops.tolist(), strict=True))
