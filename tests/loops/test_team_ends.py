"""Teams of one world: what rank 0 and other coordinators tell each other at the end."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from fakes import Clock, FakeEndpoint, FakeMonitor

from collage_mpi.errors import EnvironmentFault
from collage_mpi.faults.failure_detector import FailureDetector
from collage_mpi.faults.process_monitor import Ended as Death
from collage_mpi.job import messages
from collage_mpi.job.messages import Ended, Halt, Here, Rank0, Stop
from collage_mpi.job.teams import OVER, OtherTeams, RankZero
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.transport import RankFailure, Received

SECOND = 1_000_000_000


class World:
    """The coordinators of two other teams, ranks 4 and 8, as rank 0 sees them."""

    def __init__(self, keep_going: bool = False) -> None:
        self.clock, self.arrivals, self.dropped = Clock(), [], []
        self.told: list[tuple[int, messages.Message]] = []
        self.deaths: list[Death] = []
        monitor = SimpleNamespace(look=self._deaths, kill=lambda rank: False)
        self.detector = FailureDetector((4, 8), self.clock.now_ns, monitor)
        self.detector.tolerate(keep_going, None)
        self.transport = SimpleNamespace(poll=self._poll, drop=self.dropped.append)
        self.teams = OtherTeams(self, self.clock)

    @property
    def present(self) -> list[int]:
        return self.detector.timeouts.present

    def tell(self, rank: int, message: messages.Message) -> None:
        self.told.append((rank, message))

    def _deaths(self) -> list[Death]:
        found, self.deaths = self.deaths, []
        return found

    def _poll(self) -> list[Received]:
        found, self.arrivals = self.arrivals, []
        return found

    def say(self, rank: int, message: messages.Message) -> bool:
        """A team says something; what rank 0's look at it gives."""
        out = np.zeros(wire.CONTROL_BYTES, np.uint8)
        text = out[: messages.pack(out, 0, message)]
        self.arrivals.append(Received(rank, text, self.clock.now_ns))
        return self.look()

    def look(self) -> bool:
        self.clock.now_ns += SECOND
        return self.teams.look()


def test_rank_0_waits_for_the_teams_that_have_come_and_not_for_others():
    world = World()
    assert not world.teams.awaited
    world.say(4, Here())
    assert world.teams.awaited
    world.say(4, Ended(5, ""))
    assert not world.teams.awaited
    assert world.teams.ended == {4: Ended(5, "")}


@pytest.mark.parametrize("keep_going", [False, True])
def test_a_team_that_cannot_work_ends_the_job_unless_others_go_on(keep_going):
    world = World(keep_going)
    world.say(4, Here())
    world.say(4, Ended(4, "no image could be read"))  # others may read it
    if keep_going:
        world.say(8, Ended(3, "no GPU"))
        return
    with pytest.raises(EnvironmentFault, match="team of rank 8: no GPU"):
        world.say(8, Ended(3, "no GPU"))


def test_a_lost_coordinator_is_told_once_and_awaited_no_more():
    world = World(keep_going=True)
    world.say(8, Here())
    world.deaths.append(Death(8, "process", "its process has ended"))
    assert world.look()
    assert not world.look()
    assert (world.dropped, world.teams.awaited) == ([8], False)


def test_a_stop_is_passed_on_once():
    world = World()
    world.teams.halt("stopped by SIGTERM")
    world.teams.halt("stopped by SIGTERM")
    halt = Halt("stopped by SIGTERM")
    assert world.told == [(4, halt), (8, halt)]


@pytest.mark.parametrize("complete", [True, False])
def test_a_team_that_hangs_is_waited_for_as_long_as_the_run_is_not_complete(complete):
    world, asked = World(), []
    world.say(4, Here())

    def look() -> None:
        world.clock.now_ns += SECOND
        if len(asked) == 200:
            world.say(4, Ended(0, ""))

    def is_complete() -> bool:
        asked.append(0)
        return complete

    world.teams.wait(look, is_complete)
    assert (len(asked) == 1) == complete == world.teams.awaited


def test_a_team_says_how_it_ended_and_leaves_with_the_code_of_the_job():
    endpoint, monitor = FakeEndpoint(4), FakeMonitor()
    rank_0 = RankZero(endpoint, monitor)
    endpoint.tell(Rank0("node0", None, None))
    assert rank_0.stop_reason() is None
    endpoint.tell(Halt("stopped by SIGTERM"))
    assert rank_0.stop_reason() == "stopped by SIGTERM"
    endpoint.tell(Stop(5))
    assert rank_0.end(6, "why") == 5
    assert monitor.released
    assert endpoint.told() == [Here(), messages.Bye()]


def test_a_team_that_is_told_to_leave_stops_and_one_whose_rank_0_is_lost_goes_on():
    endpoint = FakeEndpoint(4)
    rank_0 = RankZero(endpoint, FakeMonitor())
    endpoint.tell(Stop(3))
    assert rank_0.stop_reason() == OVER
    lonely = RankZero(FakeEndpoint(4), FakeMonitor())

    def lost() -> None:
        raise RankFailure(0, RuntimeError("gone"))

    lonely._endpoint.poll_control = lost
    assert lonely.stop_reason() is None
    assert lonely.end(5, "") == 5
