"""Start-up and end for a coordinator: ranks that come late, come back, or never come."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_messages import HELLO, WELCOME
from transitions import note_transitions

from collage_mpi.core.states import IllegalMove
from collage_mpi.errors import CollageError, DataFault, EnvironmentFault
from collage_mpi.job.group_steps import (
    DONE,
    GREETED,
    HERE,
    LOST,
    MEMBER,
    OVER,
    PARTED,
    READY,
    STOPPED,
    STUCK,
    WELCOMED,
    WORKING,
    Asked,
    GiveUp,
    Gone,
    GroupSteps,
    Heard,
    Tell,
)
from collage_mpi.job.messages import (
    Bye,
    End,
    Fault,
    Here,
    Measure,
    Measured,
    Message,
    Release,
    Shards,
    Start,
    Stop,
)

LIMIT_S = 5.0
LATE_NS = 5_000_000_001
SHARDS, START, MEASURE = Shards(("a",)), Start({"collage": 1.0}, {}, 1, 1, 1), Measure("single", 1)
RANKS = (1, 2, 3)


class Play:
    """A coordinator's ranks; the test says what they send."""

    def __init__(self, *, keep_going: bool = True) -> None:
        self.group, self.keep_going, self.now_ns = GroupSteps(RANKS), keep_going, 0

    def ask(self, *told: Message, limit_s: float | None = LIMIT_S) -> list[Any]:
        """Tell all ranks that are left; `limit_s`: None if no answer is expected."""
        ranks = [rank for rank, state in self.group.states.items() if state not in OVER]
        limits_s = {} if limit_s is None else dict.fromkeys(ranks, limit_s)
        return self.step(Asked(dict.fromkeys(ranks, told), limits_s, self.keep_going))

    def say(self, message: Message, *ranks: int) -> list[Any]:
        return self.step(*(Heard(rank, message) for rank in ranks or RANKS))

    def step(self, *events: Any) -> list[Any]:
        actions = self.group.step(self.now_ns, events)
        over = {rank for rank, state in self.group.states.items() if state in OVER}
        assert not over & self.group.awaited.keys()
        assert all(self.group.states[rank] == LOST for rank, _ in gave_up(actions))
        return actions

    def wait(self) -> list[Any]:
        """Until all that was asked last is late."""
        self.now_ns += LATE_NS
        return self.step()

    def to(self, state: str) -> Play:
        """All ranks answer until they are in this state."""
        says = {HERE: Here(), READY: HELLO, PARTED: Bye()}
        asks = {
            WELCOMED: (SHARDS, WELCOME),
            WORKING: (START,),
            DONE: (End(),),
        }
        asks[STOPPED] = (Stop(0),)
        for each in (GREETED, HERE, WELCOMED, READY, WORKING, DONE, STOPPED, PARTED):
            if each in says:
                self.say(says[each])
            elif each in asks:
                self.ask(*asks[each])
            if each == state:
                return self
        raise AssertionError(state)


def gave_up(actions: list[Any]) -> list[tuple[int, str]]:
    return [tuple(action) for action in actions if isinstance(action, GiveUp)]


def test_each_rank_is_told_and_its_answer_is_awaited_until_its_time_is_over() -> None:
    play = Play()
    assert play.ask(SHARDS, WELCOME) == [
        Tell(rank, told) for rank in RANKS for told in (SHARDS, WELCOME)
    ]
    assert play.say(HELLO, 1) == []
    assert play.group.awaited.keys() == {2, 3}
    play.now_ns = round(LIMIT_S * 1e9)
    assert play.step() == []
    assert gave_up(play.wait()) == [(2, "no hello within 5 s"), (3, "no hello within 5 s")]
    assert (play.group.awaited, play.group.answers) == ({}, {1: HELLO})


def test_a_rank_that_never_comes_is_named_where_the_job_needs_all() -> None:
    play = Play(keep_going=False)
    play.ask(WELCOME)
    play.say(HELLO, 2)
    with pytest.raises(EnvironmentFault, match="no hello from ranks 1, 3 within 5 s; are their"):
        play.wait()


def test_a_rank_that_was_given_up_and_comes_back_changes_nothing() -> None:
    play = Play()
    play.ask(limit_s=LIMIT_S)
    play.say(Here(), 1, 2)
    assert gave_up(play.wait()) == [(3, "no sign of life within 5 s")]
    play.say(Here(), 3)
    play.ask(WELCOME)
    play.say(HELLO)
    assert play.group.answers.keys() == {1, 2}
    assert play.group.states == {1: READY, 2: READY, 3: LOST}


def test_a_rank_that_cannot_work_is_given_up_unless_no_rank_can() -> None:
    play = Play()
    play.ask(WELCOME)
    play.say(Fault("no GPU", 3), 1)
    assert gave_up(play.say(HELLO, 2, 3)) == [(1, "it cannot work: rank 1: no GPU")]
    play = Play()
    play.ask(WELCOME)
    play.say(Fault("damaged", 4), 1)
    play.step(Gone(3))
    with pytest.raises(DataFault, match="rank 1: damaged"):
        play.say(Fault("no GPU", 3), 2)
    play.ask(Stop(4))
    assert gave_up(play.say(Bye(), 1, 2)) == []


def test_at_the_end_only_the_last_word_counts() -> None:
    play = Play().to(STOPPED)
    play.say(HELLO, 1)
    play.say(Bye(), 1)
    play.step(Gone(1), Gone(2))
    assert play.wait() == []
    assert play.group.states == {1: PARTED, 2: LOST, 3: STUCK}


def test_what_cannot_come_in_a_state_raises() -> None:
    with pytest.raises(IllegalMove, match="'measured' in state 'ready'"):
        Play().to(READY).say(Measured(1, None))


@given(st.data(), st.booleans())
def test_every_wait_ends_and_no_lost_rank_is_heard_of_again(data, keep_going: bool) -> None:
    play = Play(keep_going=keep_going)
    says = {"here": Here(), "hello": HELLO, "fault": Fault("no", 3), "measured": Measured(1, None)}
    says["bye"] = Bye()
    asks = [
        ((), LIMIT_S),
        ((SHARDS, WELCOME), LIMIT_S),
        ((MEASURE,), LIMIT_S),
        ((MEASURE,), LIMIT_S),
    ]
    asks += [((START,), None), ((End(),), None), ((Stop(0),), LIMIT_S)]
    try:
        for told, limit_s in asks:
            actions = play.ask(*told, limit_s=limit_s)
            lost = {rank for rank, state in play.group.states.items() if state == LOST}
            assert not lost & {each.rank for each in actions if isinstance(each, Tell)}
            for rank in data.draw(st.permutations(RANKS)):
                possible = [*MEMBER[play.group.states[rank]].keys() & says.keys()]
                what = data.draw(st.sampled_from([*sorted(possible), "gone", "nothing"]))
                if what == "gone":
                    play.step(Gone(rank))
                elif what != "nothing" and rank in play.group.awaited:
                    play.say(says[what], rank)
            play.wait()
            assert play.group.awaited == {}
            assert {play.group.states[rank] for rank in lost} <= {LOST}
        assert set(play.group.states.values()) <= OVER
    except CollageError:
        play.ask(Stop(3))
        play.wait()
        assert set(play.group.states.values()) <= OVER


def test_every_transition_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = note_transitions(monkeypatch)
    for state in (GREETED, HERE, WELCOMED, READY, WORKING, DONE, STOPPED):
        Play().to(state).step(*map(Gone, RANKS))
        if state != STOPPED:
            Play().to(state).ask(Stop(0))
    for last in (Stop(0), None):
        play = Play().to(WELCOMED)
        play.say(Fault("no", 3), 1)
        play.ask(last) if last else play.step(Gone(1))
        play = Play().to(READY)
        play.ask(MEASURE)
        play.ask(last) if last else play.step(Gone(1))
    play = Play()
    play.ask(SHARDS, WELCOME)
    play = Play().to(READY)
    play.ask(MEASURE)
    play.say(Measured(1, None))
    play.ask(End())
    Play().to(WORKING).ask(Release())
    Play().to(DONE).ask(SHARDS, WELCOME)
    Play().to(PARTED)
    Play().to(STOPPED).wait()
    assert taken == {(state, event) for state, moves in MEMBER.items() for event in moves}
