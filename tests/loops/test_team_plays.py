"""Random teams, each with its own `Supply`, play against the lead until the job is over.

Each team can read some of the images. Teams come late, hang at the start, die, cannot work or end
early. At the end each image has one row, or no team that stayed to the end can read it.
`--schedules N` plays more.
"""

from __future__ import annotations

import random
from collections import Counter, deque
from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import Clock
from test_lead import MS, READY, START, Others, Published

from collage_mpi.core.outcomes import Totals
from collage_mpi.errors import ExitCode
from collage_mpi.job.lead import Lead, LeadSettings
from collage_mpi.job.leases import LeaseBook, LeaseSettings
from collage_mpi.job.messages import Done, Fault, Message
from collage_mpi.job.plan import Plan
from collage_mpi.job.team import Supply
from collage_mpi.mpi.transport import Gone
from collage_mpi.results.row_sink import Pending
from collage_mpi.rows import KEY_ROW, PLACED
from collage_mpi.shards import readahead as shards
from collage_mpi.shards.order import Order, Permutation, Range

LATE_S = 0.2  # how long the lead waits for a team that has not come: 100 turns
TURNS = 3000  # more than any job takes


class Images:
    """What a team reads: images that it cannot read are left out."""

    def __init__(self, unreadable: frozenset[int]) -> None:
        self.unreadable, self.left = unreadable, []

    def add(self, ranges: Sequence[Range]) -> None:
        for each in ranges:
            self.left.extend(range(*each))

    @property
    def remaining(self) -> int:
        return len(self.left)

    failed = False

    @property
    def ready(self) -> int:
        return len(self.left)

    def take(self, n: int) -> shards.Images:
        taken, self.left = self.left[:n], self.left[n:]
        found = np.array([each for each in taken if each not in self.unreadable], np.int64)
        return shards.Images(found, found, np.empty(len(found), PLACED))


class Rows:
    """Rows reach the disk a turn after they were flushed."""

    def __init__(self) -> None:
        self.pending: deque[Pending] = deque()
        self.buffer: list[int] = []
        self.parts: list[list[int]] = []
        self.told, self.idle = 0, True

    def flush(self) -> None:
        if self.buffer:
            self.parts.append(self.buffer)
            self.buffer, self.idle = [], False

    def write(self) -> None:
        for images in self.parts[self.told :]:
            keys = np.array([(0, image) for image in images], KEY_ROW)
            self.pending.append(Pending("images", self.told, keys))
            self.told += 1
        self.idle = True


class Player:
    """A team: its coordinator's loop with the ranks left out, a turn at a time."""

    def __init__(self, play: TeamPlay, number: int) -> None:
        draw = play.draw
        self.play, self.rank, self.session = play, 4 * number, 5 + number
        chance = draw.choice([0, 0, 0.1, 0.5, 1])
        unreadable = frozenset(each for each in range(play.images) if draw.random() < chance)
        self.reader, self.rows = Images(unreadable), Rows()
        self.supply = Supply(self, play.plan, self.reader, self.rows)
        self.supply.attach(Totals(), lambda group: None)
        self.came = -1  # the highest position so far
        self.unresolved: list[int] = []
        self.comes = draw.randrange(60) if number == 0 or draw.random() < 0.9 else None
        end = draw.choice(["stays"] * 4 + ["dies", "faults", "ends"])
        self.end = "ends" if number == 0 and end != "stays" else end  # the lead is in its process
        self.at = draw.randrange(120)
        self.there = self.left = False

    def say(self, message: Message) -> None:
        if self.rank == 0:
            self.play.lead.say(message)
        else:
            self.play.others.says(self.rank, message)

    def hear(self) -> Message | None:
        if self.rank == 0:
            return self.play.lead.hear()
        told = self.play.others.told[self.rank]
        return told.pop(0) if told else None

    def turn(self, turn: int) -> None:
        if self.left:
            return
        if turn >= self.at and self.end != "stays" and (self.there or self.end != "ends"):
            self._go()
        elif self.there:
            self._work()
        elif turn == self.comes:
            if self.rank == 0:
                self.play.lead.start(START, READY.fingerprints)
                self.there = True
            else:
                self.say(READY)
        else:
            self.there = self.rank != 0 and START in self.play.others.told[self.rank]

    def _go(self) -> None:
        if self.end == "dies":
            self.play.others.arrivals.append(Gone(self.rank, "killed", self.play.clock.now_ns))
        elif self.end == "faults":
            self.say(Fault("no device", int(ExitCode.ENVIRONMENT)))
        else:
            self._leave("incomplete")
        self.left = True

    def _work(self) -> None:
        draw = self.play.draw
        count = draw.randrange(4)
        if count and (found := self.supply.take(count)) is not None:
            first, images = found
            assert first > self.came, "positions grow, whatever was left out"
            self.came = first + len(images) - 1
            self.unresolved += images.index.tolist()
        draw.shuffle(self.unresolved)  # answers come in any order
        done = draw.randrange(len(self.unresolved) + 1)
        self.rows.buffer += self.unresolved[:done]
        del self.unresolved[:done]
        self.rows.write()
        if draw.random() < 0.05:
            self.rows.flush()
        self.supply.look(self.play.clock.now_ns, len(self.unresolved))
        if self.supply.exhausted and not self.unresolved:
            self._leave("complete")
            self.left = True

    def _leave(self, status: str) -> None:
        self.rows.flush()
        self.rows.write()
        self.supply.tell_of_parts()
        self.say(Done(status, "" if status == "complete" else "no rank is left", (), ()))


class TeamPlay:
    """A job of two to four teams, drawn by number."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.images = self.draw.randrange(1, 40)
        self.clock = Clock()
        teams = self.draw.randrange(2, 5)
        self.others = Others(self.clock, tuple(4 * team for team in range(1, teams)))
        self.published = Published()
        settings = SimpleNamespace(group_size=2, teams=2)
        shards = SimpleNamespace(infos=[SimpleNamespace(count=self.images)])
        order = Order(Permutation(self.images))
        self.plan = Plan(settings, shards, order, None, None, None, None)
        leases = LeaseSettings(2, self.draw.randrange(1, 3), smallest=1, largest=4, share=2)
        book = LeaseBook(leases, self.images)
        self.lead = Lead(
            self.others,
            book,
            self.published,
            LeadSettings(session=5, late_s=LATE_S),
            lambda: None,
            self.clock,
        )
        self.lead.begin("run", "digest")
        self.players = [Player(self, team) for team in range(teams)]

    def run(self) -> None:
        for turn in range(TURNS):
            self.clock.now_ns += 2 * MS
            for player in self.players:
                player.turn(turn)
            self.lead.look()
            if self.players[0].left and not self.lead.awaits_teams:
                return
        pytest.fail("the job does not end")

    def rows(self) -> Counter[int]:
        """How often each image is in a part that counts."""
        by_session = {player.session: player.rows.parts for player in self.players}
        return Counter(
            image for _, session, part in self.published for image in by_session[session][part]
        )


def test_what_a_team_that_stays_can_read_is_done_and_nothing_twice(request):
    for seed in range(5 * request.config.getoption("--schedules")):
        play = TeamPlay(seed)
        play.run()
        rows, lead = play.rows(), play.lead
        assert set(rows.values()) <= {1}, f"play {seed}: rows twice"
        lacking = set(range(play.images)) - set(rows)
        stayed = [
            player
            for player, team in zip(play.players, lead.teams, strict=True)
            if team.done and team.done.status == "complete"
        ]
        for player in stayed:
            readable = lacking - player.reader.unreadable
            assert not readable, f"play {seed}: team {player.rank // 4} could read {readable}"
        complete = lead.finish.status == "complete"
        assert complete == (lead.unread == len(lacking)), f"play {seed}"
        assert complete or not stayed, f"play {seed}"
