"""The tables of states: drawn in the docs as they are, alone in changing a status, all of use."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from scheduler_harness import COLLAGE, MS, Harness, started

from collage_mpi.scheduler import core, transitions
from collage_mpi.scheduler import events as ev
from collage_mpi.scheduler.transitions import IMAGE, RANK, TASK, IllegalMove, Moves

TABLES = {"task": TASK, "image": IMAGE, "rank": RANK}
ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"
SOURCES = Path(core.__file__).parent


def diagram(table: dict[str, Moves]) -> str:
    """The table as Mermaid draws it; what leads from one state to another on one arrow."""
    lines = [f"    [*] --> {next(iter(table))}"]
    for state, moves in table.items():
        for after in dict.fromkeys(moves.values()):
            events = " / ".join(event for event in moves if moves[event] == after)
            lines.append(f"    {state} --> {after}: {events}")
        lines += [] if moves else [f"    {state} --> [*]"]
    return "\n".join(["```mermaid", "stateDiagram-v2", *lines, "```"])


@pytest.mark.parametrize("name", TABLES)
def test_the_docs_draw_the_table(name: str) -> None:
    drawn = diagram(TABLES[name])
    assert drawn in ARCHITECTURE.read_text(), f"docs/architecture.md needs, of a {name}:\n{drawn}"


@pytest.mark.parametrize("name", TABLES)
def test_each_state_is_in_its_table_and_can_be_reached(name: str) -> None:
    table = TABLES[name]
    reached, new = set[str](), {next(iter(table))}
    while new:
        reached |= new
        new = {after for state in new for after in table[state].values()} - reached
    assert reached == set(table)
    assert all(moves.state == state for state, moves in table.items())


def test_a_status_is_changed_by_its_table_alone() -> None:
    changed = re.compile(r"^\s*([\w.]+\.status)( = .*)", re.MULTILINE)
    table = re.compile(r" = (TASK|IMAGE|RANK)\[([\w.]+\.status)\]\[")
    found = [
        (path.name, *match.groups())
        for path in SOURCES.rglob("*.py")
        for match in changed.finditer(path.read_text())
        if not ((by := table.match(match[2])) and by[2] == match[1])
    ]
    assert sorted(found) == [
        ("state.py", "self.status", f" = {first}") for first in ("OPEN", "READY", "WAITING")
    ]


def test_what_is_not_in_the_table_raises() -> None:
    job = started()
    single = job.live.pop(job.task_of(0))
    with pytest.raises(
        IllegalMove, match=r"'skipped' in state 'sent'; possible there: moot, answered"
    ):
        job.feed(ev.Skipped(0, single.task, single.rank))
    with pytest.raises(IllegalMove, match="possible there: nothing more"):
        RANK[transitions.LOST]["heard"]


# ---- every transition is taken ----------------------------------------------------


def image_0(job: Harness) -> str:
    """The status of image 0, which has its outcome later than all else here."""
    tasks = job.scheduler.dispatch.tasks.out.values()
    (group,) = {task.group for task in tasks if not task.group.id}
    return group.images[0].status


def first_answers_win() -> None:
    """Singles or the collage, whichever is first; what is too late is cancelled."""
    for first in ("singles", "collage"):
        job = started(depth=2, credit=1)  # the second group waits for the first
        singles, collage = [job.task_of(i) for i in range(4)], job.task_of(0, COLLAGE)
        for task in [collage] if first == "collage" else singles:
            job.answer(task)
        for cancelled in sorted(job.cancelled):
            job.skip(cancelled)
        job.run_out()


def late_ranks_end_what_was_cancelled() -> None:
    job = started()
    singles = [job.task_of(i) for i in range(4)]
    job.answer(job.task_of(0, COLLAGE))
    job.answer(singles[0])
    job.fail(singles[1])
    job.lose(job.live[singles[2]].rank)


def what_waits_is_dropped_with_its_image() -> None:
    job = started(singles=1, credit=1)
    job.answer(job.task_of(0, COLLAGE))
    assert len(job.sent) == 2, "three singles never left"


def unsure() -> None:
    job = started(policy="confident", confidence=1, deadline_ns=100 * MS)
    job.answer(job.task_of(0, COLLAGE))
    assert image_0(job) == transitions.RESERVED
    job.run_out()


def failures_end_in_an_error_row() -> None:
    job = started(scheme="none", max_attempts=1)
    job.fail(job.task_of(0))
    assert job.resolved[0].outcome == "error"


def retired(**more: object) -> Harness:
    """Rank 1 rests, with a task out."""
    job = started(scheme="none", singles=2, credit=9, max_failures=1, max_attempts=9, **more)
    job.fail(job.task_of(0))
    assert job.retired == {1}
    return job


def a_retired_rank_is_recalled_or_lost() -> None:
    job = retired()
    job.lose(2)
    assert job.retired == set()
    retired().lose(1)


def a_retired_rank_may_be_silent_too() -> None:
    for last in ("heard", "lost"):
        job = retired()
        job.suspect(1)
        (task,) = [task for task, send in job.live.items() if send.rank == 1]
        job.answer(task) if last == "heard" else job.lose(1)


def parked(**more: object) -> Harness:
    """Both ranks that have image 0 are silent; there is no other."""
    job = started(scheme="none", singles=2, credit=9, **more)
    job.suspect(1)
    job.suspect(2)
    assert image_0(job) == transitions.PARKED
    return job


def silent_ranks_come_back_or_are_lost() -> None:
    for own in (False, True):
        job = parked()
        job.answer(job.task_of(0 if own else 1))
        assert (0 in job.resolved) == own
    parked().lose(1)


def an_image_is_given_up_while_it_is_parked() -> None:
    job = started(scheme="none", singles=1, max_attempts=1)
    job.suspect(1)
    assert image_0(job) == transitions.PARKED
    job.fail(job.task_of(0))
    assert job.resolved[0].outcome == "error"


def deferred(**more: object) -> Harness:
    """Image 0 was lost with rank 1 and has one try left; rank 2 and 3 have it and are silent."""
    job = started(scheme="none", singles=3, credit=9, max_attempts=2, **more)
    for rank in (1, 2, 3):
        job.suspect(rank)
    assert image_0(job) == transitions.PARKED
    job.lose(1)
    assert image_0(job) == transitions.DEFERRED
    return job


def an_image_waits_for_calm() -> None:
    job = deferred()
    settle_ns = job.now_ns + job.scheduler.settings.settle_ns
    job.fire(next(timer for timer, at_ns in job.timers.items() if at_ns == settle_ns))
    assert image_0(job) == transitions.PARKED
    job = deferred()
    job.answer(job.task_of(0))


def another_try_fails_before_it_end_deferral() -> None:
    job = deferred()
    settle_ns = job.now_ns + job.scheduler.settings.settle_ns
    assert settle_ns in job.timers.values()
    job.fail(job.task_of(0))
    assert image_0(job) == transitions.PARKED
    job.fail(job.task_of(3))  # the other image that rank 1 had
    assert settle_ns not in job.timers.values(), "it waits for losses no more"


def an_answer_to_be_held_comes_from_a_silent_collage_rank() -> None:
    for max_attempts, status in ((1, transitions.PARKED), (2, transitions.DEFERRED)):
        job = started(
            policy="confident",
            confidence=1,
            deadline_ns=100 * MS,
            singles=1,
            max_attempts=max_attempts,
        )
        job.lose(1)
        job.suspect(2)
        assert image_0(job) == status
        job.answer(job.task_of(0, COLLAGE))
        assert not job.resolved
        job.run_out()
        assert job.resolved[0].source == "kept"


SCENARIOS: list[Callable[[], None]] = [
    first_answers_win,
    late_ranks_end_what_was_cancelled,
    what_waits_is_dropped_with_its_image,
    unsure,
    failures_end_in_an_error_row,
    a_retired_rank_is_recalled_or_lost,
    a_retired_rank_may_be_silent_too,
    silent_ranks_come_back_or_are_lost,
    an_image_is_given_up_while_it_is_parked,
    an_image_waits_for_calm,
    another_try_fails_before_it_end_deferral,
    an_answer_to_be_held_comes_from_a_silent_collage_rank,
]


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> set[tuple[int, str]]:
    """(table's row, event) of every look-up."""
    seen: set[tuple[int, str]] = set()

    def look_up(moves: Moves, event: str) -> str:
        seen.add((id(moves), event))
        return moves.get(event) or moves.__missing__(event)

    monkeypatch.setattr(Moves, "__getitem__", look_up, raising=False)
    return seen


def test_every_transition_is_taken_by_some_scenario(taken: set[tuple[int, str]]) -> None:
    for play in SCENARIOS:
        play()
    never = [
        f"{name}: {state}, {event}"
        for name, table in TABLES.items()
        for state, moves in table.items()
        for event in moves
        if (id(moves), event) not in taken
    ]
    assert never == []
