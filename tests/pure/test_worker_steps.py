"""A worker's life without processes: any order of events, and what always holds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from job_messages import HELLO, WELCOME
from transitions import note_transitions

from collage_mpi.core.states import IllegalMove
from collage_mpi.job import messages
from collage_mpi.job.messages import (
    LEAVE_WAIT_S,
    Bye,
    Changed,
    End,
    Fault,
    Leave,
    Measure,
    Measured,
    Rank0,
    Release,
    Shards,
    Start,
    Stop,
)
from collage_mpi.job.worker_steps import (
    ENDED,
    LOADING,
    MEASURING,
    NEW,
    OVER,
    PARTING,
    READY,
    WORKER,
    WORKING,
    Answer,
    Begin,
    Came,
    Cancelled,
    Computed,
    Event,
    InputsRead,
    Rank0Gone,
    Read,
    WorkerSteps,
)
from collage_mpi.models.info import MOST_BEGUN

RANK_0, SHARDS, START = (
    Rank0("host", None, None),
    Shards(("a",)),
    Start({"collage": 1.0}, {}, 1, 1, 1),
)
MEASURE, MEASURED, CHANGED = Measure("single", 1), Measured(1, None), Changed("single", "torch", "")
# The events that lead to a state.
UNTIL: dict[str, list[Event]] = {NEW: [RANK_0, SHARDS], LOADING: [RANK_0, SHARDS, WELCOME]}
UNTIL[READY] = [*UNTIL[LOADING], HELLO]
UNTIL[MEASURING] = [*UNTIL[READY], MEASURE]
UNTIL[WORKING] = [*UNTIL[MEASURING], MEASURED, START, CHANGED]
UNTIL[OVER] = [*UNTIL[WORKING], End()]
UNTIL[PARTING] = [*UNTIL[OVER], Stop(3)]
LATE_NS = round(LEAVE_WAIT_S * 1e9) + 1


class Play:
    """A worker that is handed events, and all that it has done; the laws hold after each step."""

    def __init__(self, state: str = WORKING, *, tolerant: bool = False, credit: int = 2) -> None:
        self.steps = WorkerSteps(leaves_alone=tolerant)
        self.came: dict[int, tuple[int, ...]] = {}  # batch -> its tasks
        self.late: set[int] = set()  # tasks that were cancelled before they were begun
        self.asked: set[int] = set()  # batches that are being read
        self.begun: list[int] = []  # batches that are computed
        self.ended: list[tuple[int, bool]] = []  # (task, whether it was skipped), in order
        self.said: list[object] = []
        for event in UNTIL[state]:
            if isinstance(event, messages.Welcome):
                event = replace(event, credit=credit)
            self.step(event)

    def step(self, *events: Event, now_ns: int = 0) -> list[object]:
        gone = self.steps.state == ENDED
        self.asked -= {event.batch for event in events if isinstance(event, InputsRead)}
        actions = list(self.steps.step(now_ns, events))
        assert not (gone and actions)
        for action in actions:
            self._look(action)
        return actions

    def _look(self, action: object) -> None:
        parted = any(isinstance(said, Bye) for said in self.said)
        if isinstance(action, Read):
            self.asked.add(action.batch)
        elif isinstance(action, Begin):
            tasks = self.came[action.batch]
            assert set(action.skipped) == self.late.intersection(tasks) < set(tasks)
            assert not self.begun or action.batch not in self.asked, "it would wait for a disk"
            self.begun.append(action.batch)
            assert len(self.begun) <= MOST_BEGUN
        elif isinstance(action, Answer):
            assert not parted
            tasks, skipped = self.came[action.batch], set(action.skipped)
            assert self.begun[:1] == [action.batch] or skipped == set(tasks)
            self.begun = self.begun[skipped < set(tasks) :]
            self.ended += [(task, task in skipped) for task in tasks]
        elif isinstance(action, messages.FromWorkers):
            assert not parted
            self.said.append(action)

    def come(self, tasks: int, read: bool) -> None:
        batch, first = len(self.came), sum(map(len, self.came.values()))
        self.came[batch] = tuple(range(first, first + tasks))
        self.step(Came(batch, self.came[batch], read))

    def cancel(self, tasks: tuple[int, ...]) -> None:
        waiting = {task for batch in self.steps.queue for task in batch.tasks}
        self.late |= waiting.intersection(tasks)
        self.step(Cancelled(tasks))

    def run_out(self) -> None:
        """All that is read or computed comes to its end, and nothing else comes."""
        while self.asked or self.begun or self.steps.queue:
            self.step(*map(InputsRead, sorted(self.asked)), *map(Computed, self.begun))


@given(st.data(), st.sampled_from((1, 2, 5)))
def test_each_task_has_one_end_in_the_order_in_which_they_came(data, credit: int) -> None:
    play = Play(credit=credit)
    doings: dict[str, Callable[[], object]] = {
        "come": lambda: play.come(data.draw(st.integers(1, 3)), data.draw(st.booleans())),
        "cancel": lambda: play.cancel(tuple(data.draw(st.sets(st.integers(0, 40), max_size=5)))),
        "read": lambda: play.asked and play.step(InputsRead(min(play.asked))),
        "computed": lambda: (
            play.begun and play.step(Computed(data.draw(st.sampled_from(play.begun))))
        ),
        "nothing": play.step,
    }
    for name in data.draw(st.lists(st.sampled_from(sorted(doings)), max_size=30)):
        doings[name]()
    last = data.draw(st.sampled_from((None, End(), Stop(0), Rank0Gone())))
    if last is not None:
        begun = list(play.begun)
        play.step(last)
        assert play.begun == (begun if isinstance(last, Rank0Gone) else [])
        left = len(play.steps.queue)
        play.come(1, read=True)
        assert len(play.steps.queue) == left, "it comes too late"
    else:
        play.run_out()
        assert not play.steps.open
        assert not play.steps.cancelled
    tasks = [task for batch in sorted(play.came) for task in play.came[batch]]
    assert [task for task, _ in play.ended] == tasks[: len(play.ended)]
    assert last is not None or len(play.ended) == len(tasks)
    assert {task for task, skipped in play.ended if skipped} <= play.late


def test_a_batch_is_begun_while_a_device_computes_one_if_its_images_are_read() -> None:
    play = Play()
    play.come(1, read=True)
    play.come(1, read=False)
    assert play.step() == []
    assert play.step(InputsRead(1)) == [Begin(1, ())]
    assert play.step(Computed(1)) == [Answer(0, ()), Answer(1, ())], "no third: one is awaited"


@pytest.mark.parametrize("state", UNTIL)
def test_a_rank_that_loses_rank_0_ends(state: str) -> None:
    play = Play(state)
    assert play.step(Rank0Gone()) == play.step(Stop(0)) == []
    assert play.steps.state == ENDED
    assert play.steps.exit_code == (3 if state == PARTING else None)


@pytest.mark.parametrize("tolerant", [True, False])
def test_the_last_word_is_bye(tolerant: bool) -> None:
    play = Play(tolerant=tolerant)
    play.come(2, read=True)
    assert play.step(Stop(4)) == [Answer(0, ()), Stop(4), Bye(), End()]
    assert (play.steps.state == ENDED, play.steps.exit_code) == (tolerant, 4)


def test_what_cannot_come_in_a_state_raises() -> None:
    with pytest.raises(IllegalMove, match="'start' in state 'new'; possible there: rank0, shards"):
        Play(NEW).step(START)


def test_every_transition_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = note_transitions(monkeypatch)
    for state in (NEW, READY, WORKING):
        Play(state, tolerant=True).step(Stop(0))
    over = Play(READY)
    for told in (End(), SHARDS, WELCOME):
        over.step(told)
    Play(WORKING).step(Release())
    Play(LOADING).step(Fault("no GPU", 3))
    Play(PARTING).step(now_ns=LATE_NS)
    Play(PARTING).step(Leave())
    assert taken == {(state, event) for state, moves in WORKER.items() for event in moves}


def test_a_session_begins_with_nothing_of_the_one_before() -> None:
    play = Play()
    for _ in range(3):
        play.come(1, read=False)
    play.step(Cancelled((2,)))
    for told in (End(), WELCOME, HELLO, START):
        play.step(told)
    assert not [*play.steps.queue, *play.steps.open, *play.steps.cancelled]
    play.come(1, read=True)
    assert play.begun == [3]
