"""Start-up and the end as rank 0 sees them: bounded waits, one fault told, all told to stop."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fakes import Clock

from collage_mpi import protocol as wire
from collage_mpi.crew import Crew
from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, ExitCode
from collage_mpi.transport import Received, Sent
from collage_mpi.waiting import COORDINATOR_BACKOFF, Backoff


class Workers:
    """The crew's transport: each rank answers by a function of what it was told."""

    def __init__(self, size: int, answer=lambda rank, content: None) -> None:
        self.size = size
        self.answer = answer
        self.told: list[tuple[int, dict[str, Any]]] = []
        self.found: list[Any] = []
        self.flushes, self.flushed, self.closed = True, False, False

    def buffer(self, nbytes: int) -> np.ndarray:
        return np.zeros(nbytes, np.uint8)

    def send_control(self, rank: int, buffer: np.ndarray, nbytes: int) -> None:
        message = buffer[:nbytes]
        content = wire.unpack_control(message)
        self.told.append((rank, content))
        session = int(wire.read_header(message)["session"])
        reply = self.answer(rank, content)
        if reply is not None:
            self.push(rank, session, reply)

    def push(self, rank: int, session: int, content: dict[str, Any]) -> None:
        out = np.zeros(4096, np.uint8)
        self.found.append(Received(rank, out[: wire.pack_control(out, session, content)], 0))

    def poll(self) -> list[Received | Sent]:
        found, self.found = self.found, []
        return [*found, Sent(1, 0)]

    def flush(self, limit_s: float) -> bool:
        self.flushed = True
        return self.flushes

    def close(self) -> None:
        self.closed = True


def crew_of(transport: Workers) -> Crew:
    clock = Clock(tick_ns=1000)
    return Crew(transport, lambda: clock() / 1e9, Backoff(COORDINATOR_BACKOFF, clock.sleep))


def polite(rank: int, content: dict[str, Any]) -> dict[str, Any] | None:
    return {
        "welcome": {"what": "hello", "rank": rank},
        "measure": {"what": "measured", "service_ns": 5},
        "stop": {"what": "bye"},
    }.get(content["what"])


def contents(size: int) -> dict[int, dict[str, Any]]:
    return {rank: {"networks": {}} for rank in range(1, size)}


def test_all_hellos_are_collected_by_rank():
    crew = crew_of(Workers(4, polite))
    assert {r: h["rank"] for r, h in crew.welcome(contents(4)).items()} == {1: 1, 2: 2, 3: 3}
    assert crew.measure(2, "single") == 5


def test_a_rank_that_never_says_hello_is_named_in_bounded_time():
    crew = crew_of(Workers(4, lambda r, c: polite(r, c) if r == 2 else None))
    with pytest.raises(EnvironmentFault, match=r"no hello from rank\(s\) 1, 3 within 5 s"):
        crew.welcome(contents(4), limit_s=5.0)


@pytest.mark.parametrize(
    ("code", "kind"), [(4, DataFault), (3, EnvironmentFault), (1, EnvironmentFault)]
)
def test_a_rank_s_fault_is_told_with_its_rank(code, kind):
    def answer(rank, content):
        if rank == 3 and content["what"] == "welcome":
            return {"what": "fault", "message": "w: damaged", "exit_code": code}
        return polite(rank, content)

    workers = Workers(4, answer)
    crew = crew_of(workers)
    with pytest.raises(kind, match="rank 3: w: damaged"):
        crew.welcome(contents(4))
    assert crew.stop(code) == []
    assert workers.closed


def test_a_second_fault_does_not_disturb_the_end():
    workers = Workers(3, polite)
    crew = crew_of(workers)
    crew.welcome(contents(3))
    workers.push(1, 1, {"what": "fault", "message": "late", "exit_code": 4})
    assert crew.stop(4) == []


def test_a_late_answer_of_the_last_session_is_no_hello():
    workers = Workers(2, polite)
    crew = crew_of(workers)
    crew.welcome(contents(2))
    workers.push(1, 1, {"what": "hello", "rank": "stale"})
    assert crew.welcome(contents(2))[1]["rank"] == 1


def test_a_signal_ends_the_wait():
    crew = crew_of(Workers(3))
    with pytest.raises(CollageError, match="SIGTERM") as caught:
        crew.welcome(contents(3), interrupted=lambda: "stopped by SIGTERM")
    assert caught.value.exit_code is ExitCode.INCOMPLETE


def test_stop_tells_everybody_once():
    workers = Workers(4, polite)
    crew = crew_of(workers)
    assert crew.stop(5) == crew.stop(5) == []
    assert workers.told == [(r, {"what": "stop", "exit_code": 5}) for r in (1, 2, 3)]
    assert workers.flushed
    assert workers.closed


def test_stop_names_the_ranks_that_do_not_end():
    workers = Workers(4, lambda rank, content: polite(rank, content) if rank != 2 else None)
    assert crew_of(workers).stop(0) == [2]
    assert not workers.closed


def test_messages_that_do_not_leave_are_no_good_end():
    workers = Workers(3, polite)
    workers.flushes = False
    assert crew_of(workers).stop(0) == [1, 2]


def test_a_world_of_one_has_nobody_to_stop():
    assert crew_of(Workers(1)).stop(3) == []


def test_a_damaged_message_is_a_wire_fault():
    workers = Workers(2)
    workers.found.append(Received(1, np.zeros(64, np.uint8), 0))
    with pytest.raises(wire.WireFault):
        crew_of(workers).welcome(contents(2))
