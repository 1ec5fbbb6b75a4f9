"""What a rank does with an exception that nobody caught: it tells it, and ends what it must."""

from __future__ import annotations

import signal
from collections.abc import Callable
from typing import Any

import pytest

from collage_mpi.errors import EnvironmentFault
from collage_mpi.mpi import transport
from collage_mpi.mpi.transport import ABORT_PAUSE_S, guarded

PAUSE = ("pause", ABORT_PAUSE_S)


class World:
    """A communicator whose Abort returns, as a foreign MPI's may; what was done, in order."""

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.done: list[tuple[str, Any]] = []

    def Get_rank(self) -> int:
        return self.rank

    def Abort(self, code: int) -> None:
        self.done.append(("abort", code))


@pytest.fixture
def world(monkeypatch) -> Callable[[int], World]:
    """A world as one of its ranks sees it, which neither waits nor ends this process."""

    def make(rank: int) -> World:
        made = World(rank)
        monkeypatch.setattr(transport.time, "sleep", lambda s: made.done.append(("pause", s)))
        monkeypatch.setattr(transport.os, "kill", lambda pid, by: made.done.append(("kill", by)))
        monkeypatch.setattr(transport, "leave", lambda code: made.done.append(("leave", code)))
        monkeypatch.setattr(transport, "report", lambda exit: made.done.append(("report", exit)))
        return made

    return make


def fails(error: BaseException) -> Callable[[], int]:
    def body() -> int:
        raise error

    return body


@pytest.mark.parametrize("tolerant", [True, False])
def test_who_does_not_fail_gives_the_code(world, tolerant):
    seen = world(0)
    assert guarded(seen, lambda: 5, fault_tolerant=tolerant) == 5
    assert seen.done == []


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize(("error", "code"), [(EnvironmentFault("old"), 3), (KeyError("x"), 1)])
def test_in_a_plain_world_it_aborts_the_job_and_raises_should_abort_return(
    world, rank, error, code
):
    seen = world(rank)
    with pytest.raises(type(error)) as raised:
        guarded(seen, fails(error))
    assert raised.value is error
    assert seen.done == [("report", code), PAUSE, ("abort", code)]


@pytest.mark.parametrize(
    ("rank", "done"),
    [
        (0, [("report", 1), PAUSE, ("leave", 1)]),
        (2, [PAUSE, ("kill", signal.SIGKILL)]),  # alone: rank 0 has the job's code
    ],
)
def test_in_a_fault_tolerant_world_it_ends_alone(world, rank, done):
    seen = world(rank)
    with pytest.raises(KeyError):  # of the fakes: neither returns
        guarded(seen, fails(KeyError("x")), fault_tolerant=True)
    assert seen.done == done


def test_a_defect_is_told_with_its_traceback_and_a_foreign_peer_in_a_line(world, caplog):
    for error in (KeyError("x"), EnvironmentFault("another version")):
        with pytest.raises(type(error)):
            guarded(world(2), fails(error))
    defect, peer = caplog.messages
    assert defect.startswith("collage-mpi: rank 2 on ")
    assert "Traceback" in defect
    assert peer.endswith("failed: another version")


def test_a_limit_of_the_machine_is_no_defect(world, caplog):
    seen = world(2)
    with pytest.raises(MemoryError):
        guarded(seen, fails(MemoryError()))
    assert "failed: This process has no memory left" in caplog.messages[0]
    assert "Traceback" not in caplog.messages[0]
    assert seen.done == [("report", 3), PAUSE, ("abort", 3)]
