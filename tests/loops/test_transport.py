"""The transport over a scripted communicator: order, whose a buffer is and how long, lost ranks.

The communicator does what MPI may: it reads a send's buffer only when the send completes, and
writes a message into a receive's buffer when that completes.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from collage_mpi.mpi.protocol import CONTROL_BYTES, TAG_CONTROL, TAG_TASK, TAG_UP, UP_BYTES
from collage_mpi.mpi.transport import (
    RING_BYTES,
    CoordinatorTransport,
    Gone,
    Inbox,
    PendingSends,
    RankFailure,
    Received,
    ReceiveRing,
    WorkerTransport,
    library_version,
)


class MpiError(Exception):
    """What MPI raises for a lost rank."""


class Request:
    """One Isend or Irecv; complete when the script says so."""

    def __init__(self, comm: Comm, buffer: np.ndarray, rank: int, tag: int) -> None:
        self.comm, self.buffer, self.rank, self.tag = comm, buffer, rank, tag
        self.complete = self.over = self.cancelled = False
        self.message: bytes | None = None  # of a receive
        self.tests = 0

    def Test(self, status: Status | None = None) -> bool:
        self.tests += 1
        if self.rank in self.comm.lost:
            raise MpiError(f"rank {self.rank}\n is  gone")
        assert not self.over, "a request that is complete is tested no more"
        if status is None:
            self.over = self.complete
            if self.complete:
                self.comm.delivered.append((self.rank, self.tag, self.buffer.tobytes()))
            return self.complete
        if self.message is None:
            return False
        self.over = True
        self.buffer[: len(self.message)] = np.frombuffer(self.message, np.uint8)
        status.count = len(self.message)
        return True

    def Cancel(self) -> None:
        self.cancelled = True

    def Wait(self) -> None:
        assert self.cancelled
        if self.rank in self.comm.lost:
            raise MpiError(f"rank {self.rank} is gone")
        self.over = True


class Status:
    count = -1

    def Get_count(self, datatype: str) -> int:
        assert datatype == "byte"
        return self.count


def some_of(requests: list[Request], statuses: list[Status]) -> list[int]:
    """Those that are complete, their statuses in front."""
    own = [Status() for _ in requests]
    done = [i for i, request in enumerate(requests) if request.Test(own[i])]
    for place, i in enumerate(done):
        statuses[place].count = own[i].count
    return done


MPI = SimpleNamespace(
    Request=SimpleNamespace(Testsome=some_of), BYTE="byte", Status=Status, Exception=MpiError,
    Get_library_version=lambda: "Some MPI  v1.2, \x00\nmore\n",
)  # fmt: skip


class Comm:
    """A communicator whose messages the test delivers, to the oldest receive that is posted."""

    def __init__(self, size: int = 3, rank: int = 0) -> None:
        self.size, self.rank = size, rank
        self.sends: list[Request] = []
        self.receives: list[Request] = []
        self.delivered: list[tuple[int, int, bytes]] = []
        self.lost: set[int] = set()
        self.refuse: set[int] = set()  # ranks to which a send fails at once

    def Get_size(self) -> int:
        return self.size

    def Get_rank(self) -> int:
        return self.rank

    def Isend(self, buffer: np.ndarray, dest: int, tag: int) -> Request:
        if dest in self.refuse:
            raise MpiError("refused")
        self.sends.append(Request(self, buffer, dest, tag))
        return self.sends[-1]

    def Irecv(self, buffer: np.ndarray, source: int, tag: int) -> Request:
        for other in self.receives:
            if not other.over:
                assert not np.shares_memory(other.buffer, buffer), "two receives into one buffer"
        self.receives.append(Request(self, buffer, source, tag))
        return self.receives[-1]

    def posted(self, source: int, tag: int) -> list[Request]:
        return [r for r in self.receives if (r.rank, r.tag) == (source, tag) and not r.over]

    def deliver(self, source: int, tag: int, message: bytes) -> None:
        free = (r for r in self.posted(source, tag) if r.message is None)
        next(free).message = message

    def complete(self, *numbers: int) -> None:
        for number in numbers:
            self.sends[number].complete = True


def packed(buffer: np.ndarray, text: bytes) -> int:
    buffer[: len(text)] = np.frombuffer(text, np.uint8)
    return len(text)


# ---- sends -----------------------------------------------------------------------


def test_a_buffer_is_nobody_elses_until_its_send_is_complete():
    comm = Comm()
    sends = PendingSends(comm)
    for text in (b"one", b"two", b"three"):
        buffer = sends.buffer(len(text))
        sends.post(1, TAG_TASK, buffer, packed(buffer, text))
    assert len(sends) == 3
    sends.reap()
    comm.complete(1)
    sends.reap()
    assert len(sends) == 2
    again = sends.buffer(3)
    assert np.shares_memory(again, comm.sends[1].buffer), "the one that is free is used again"
    fresh = sends.buffer(3)
    for other in (comm.sends[0], comm.sends[2]):
        assert not np.shares_memory(again, other.buffer)
        assert not np.shares_memory(fresh, other.buffer)
    again[:], fresh[:] = 0, 0
    comm.complete(0, 2)
    sends.reap()
    assert [text for *_, text in comm.delivered] == [b"two", b"one", b"three"]
    sends.reap()
    assert len(sends) == 0
    assert [request.tests for request in comm.sends] == [3, 2, 3], "each until it is complete"


@pytest.mark.parametrize(
    ("nbytes", "capacity"),
    [(1, 256), (256, 256), (257, 512), (512, 512), (513, 1024), (1 << 20, 1 << 20)],
)
def test_buffers_come_in_powers_of_two(nbytes, capacity):
    sends = PendingSends(Comm())
    buffer = sends.buffer(nbytes)
    assert (buffer.shape, buffer.dtype) == ((capacity,), np.uint8)


def test_a_buffer_is_used_again_for_messages_of_its_size_only():
    comm = Comm()
    sends = PendingSends(comm)
    small = sends.buffer(10)
    sends.post(1, TAG_TASK, small, 10)
    comm.complete(0)
    sends.reap()
    assert not np.shares_memory(sends.buffer(300), small)
    assert np.shares_memory(sends.buffer(200), small)
    assert comm.sends[0].buffer.nbytes == 10, "no more bytes travel than the message has"


def test_a_send_that_fails_is_told_and_its_buffer_is_never_used_again():
    comm = Comm()
    sends = PendingSends(comm, (MpiError,))
    first, second = (sends.buffer(8) for _ in range(2))
    comm.refuse = {2}
    sends.post(2, TAG_TASK, first, 8)
    assert len(sends) == 0
    assert sends.failed[2].why == "MPI says: refused"
    sends.post(1, TAG_TASK, second, 8)
    comm.lost = {1}
    sends.reap()
    assert sends.failed[1].why == "MPI says: rank 1 is gone"
    assert str(sends.failed[1]) == "rank 1: MPI says: rank 1 is gone"
    sends.reap()
    assert (len(sends), comm.sends[0].tests) == (0, 1)
    third = sends.buffer(8)
    assert not np.shares_memory(third, first)
    assert not np.shares_memory(third, second)


def test_in_a_plain_world_an_error_is_not_caught():
    comm = Comm()
    sends = PendingSends(comm)
    sends.post(1, TAG_TASK, sends.buffer(8), 8)
    comm.lost = {1}
    with pytest.raises(MpiError):
        sends.reap()


# ---- receives --------------------------------------------------------------------


@pytest.mark.parametrize("lends", [False, True])
def test_messages_are_exact_in_order_and_the_callers_own(lends):
    comm, now = Comm(), iter(range(100, 200))
    ring = ReceiveRing(comm, MPI, Inbox(1, TAG_UP, 16, 2), lambda: next(now), lends=lends)
    assert len(comm.posted(1, TAG_UP)) == 2
    assert ring.take() is None
    texts = [b"first", b"", b"sixteen bytes ok", b"4th", b"fifth"]
    kept = []
    for number, text in enumerate(texts):
        comm.deliver(1, TAG_UP, text)
        kept.append(ring.take())
        assert ring.taken_ns == 100 + number, "the clock, once a message"
        assert len(comm.posted(1, TAG_UP)) == 2, "another is posted in its place"
    assert [message.tobytes() for message in kept] == texts, "none is written over later"
    for message in kept:
        assert not any(np.shares_memory(message, r.buffer) for r in comm.posted(1, TAG_UP))
    assert ring.take() is None


def test_a_ring_that_copies_posts_the_same_buffers_and_one_that_lends_gives_them_away():
    for lends in (False, True):
        comm = Comm()
        ring = ReceiveRing(comm, MPI, Inbox(1, TAG_UP, 16, 2), lends=lends)
        first = comm.receives[0].buffer
        comm.deliver(1, TAG_UP, b"x")
        message = ring.take()
        assert np.shares_memory(message, first) == lends
        assert np.shares_memory(comm.receives[-1].buffer, first) != lends
        assert comm.receives[-1].buffer.nbytes == 16


def test_only_the_oldest_receive_is_tested():
    comm = Comm()
    ring = ReceiveRing(comm, MPI, Inbox(1, TAG_UP, 16, 3))
    comm.receives[1].message = b"later"  # MPI would not: it matches in the order of posting
    assert ring.take() is None
    assert [request.tests for request in comm.receives] == [1, 0, 0]


def test_close_withdraws_every_receive():
    comm = Comm()
    ring = ReceiveRing(comm, MPI, Inbox(1, TAG_UP, 16, 3))
    comm.deliver(1, TAG_UP, b"x")
    ring.take()
    ring.close()
    assert [request.over for request in comm.receives] == [True] * 4
    assert [request.cancelled for request in comm.receives] == [False, True, True, True]


def test_the_librarys_name_is_one_line():
    assert library_version(MPI) == "Some MPI v1.2"


# ---- rank 0 ----------------------------------------------------------------------


def coordinator(fault_tolerant: bool = True, size: int = 4) -> tuple[Comm, CoordinatorTransport]:
    comm, now = Comm(size), iter(range(1000))
    made = CoordinatorTransport(comm, MPI, 2, lambda: next(now), fault_tolerant=fault_tolerant)
    return comm, made


def send(transport: CoordinatorTransport, rank: int, text: bytes) -> None:
    buffer = transport.buffer(len(text))
    transport.send_task(rank, buffer, packed(buffer, text))


def test_rank_0_listens_to_every_worker_and_to_no_other():
    comm, transport = coordinator()
    assert (transport.size, transport.library) == (4, "Some MPI v1.2")
    assert {(r.rank, r.tag, r.buffer.nbytes) for r in comm.receives} == {
        (rank, TAG_UP, UP_BYTES) for rank in (1, 2, 3)
    }
    assert len(comm.receives) == 3 * 2


def test_a_poll_takes_all_that_has_come_messages_first():
    comm, transport = coordinator()
    send(transport, 2, b"task")
    buffer = transport.buffer(9)
    transport.send_control(1, buffer, packed(buffer, b"control"))
    assert [(r.rank, r.tag) for r in comm.sends] == [(2, TAG_TASK), (1, TAG_CONTROL)]
    comm.complete(0, 1)
    for source, text in ((3, b"c"), (1, b"a"), (1, b"b")):
        comm.deliver(source, TAG_UP, text)
    found = transport.poll()
    received = [(f.rank, f.message.tobytes(), f.at_ns) for f in found[:3]]
    assert all(isinstance(each, Received) for each in found[:3])
    assert received == [(1, b"a", 0), (1, b"b", 1), (3, b"c", 2)]
    assert found[3:] == []
    assert [text for *_, text in comm.delivered] == [b"task", b"control"]
    assert transport.poll() == []


def test_larger_answers_get_larger_receives_smaller_ones_change_nothing():
    comm, transport = coordinator()
    transport.expect(UP_BYTES)
    assert len(comm.receives) == 6
    transport.expect(UP_BYTES + 1)
    assert [r.cancelled for r in comm.receives[:6]] == [True] * 6
    assert [r.buffer.nbytes for r in comm.receives[6:]] == [UP_BYTES + 1] * 6
    comm.deliver(2, TAG_UP, b"x")
    assert [f.rank for f in transport.poll()] == [2]
    transport.expect(UP_BYTES + 1)
    assert len(comm.receives) == 13


@pytest.mark.parametrize("fault_tolerant", [False, True])
def test_of_long_answers_one_a_worker_is_in_memory(fault_tolerant, monkeypatch):
    comm, transport = coordinator(fault_tolerant)
    transport.expect(RING_BYTES + 1)
    assert [len(comm.posted(rank, TAG_UP)) for rank in (1, 2, 3)] == [1, 1, 1]
    post, waiting = comm.Irecv, [b"b", b"c"]

    def into_what_is_posted(buffer: np.ndarray, source: int, tag: int) -> Request:
        request = post(buffer, source, tag)
        request.message = waiting.pop(0) if waiting else None
        return request

    monkeypatch.setattr(comm, "Irecv", into_what_is_posted)
    comm.deliver(1, TAG_UP, b"a")
    polls = [[each.message.tobytes() for each in transport.poll()] for _ in range(4)]
    assert polls == [[b"a"], [b"b"], [b"c"], []]


def test_a_rank_that_mpi_calls_lost_is_told_and_left_alone():
    comm, transport = coordinator()
    send(transport, 2, b"to the lost")
    send(transport, 3, b"to the other")
    comm.deliver(2, TAG_UP, b"never read")
    comm.deliver(3, TAG_UP, b"read")
    comm.lost = {2}
    comm.complete(0, 1)
    found = transport.poll()
    assert found[0].message.tobytes() == b"read"
    assert {(type(each), each.rank) for each in found[1:]} == {(Gone, 2)}
    assert found[1].why == "MPI says: rank 2 is gone"
    tests = [request.tests for request in (*comm.sends, *comm.receives)]
    send(transport, 2, b"nothing")
    transport.send_control(2, transport.buffer(1), 1)
    assert len(comm.sends) == 2, "to a lost rank: nothing"
    assert transport.poll() == []
    after = [request.tests for request in (*comm.sends, *comm.receives)]
    of_lost = [request.rank == 2 for request in (*comm.sends, *comm.receives)]
    assert all(a == b for a, b, lost in zip(after, tests, of_lost, strict=True) if lost)
    transport.close()
    assert [r.cancelled for r in comm.receives if r.rank == 2] == [False] * 2
    assert all(r.cancelled for r in comm.receives if r.rank != 2 and r.message is None)


def test_a_rank_that_is_lost_before_larger_answers_are_awaited_is_told_and_left_alone():
    comm, transport = coordinator()
    comm.lost = {2}
    transport.expect(UP_BYTES + 1)
    assert transport.poll() == [Gone(2, "MPI says: rank 2 is gone", 0)]
    assert {r.buffer.nbytes for r in comm.posted(3, TAG_UP)} == {UP_BYTES + 1}
    comm.deliver(3, TAG_UP, b"read")
    assert [each.message.tobytes() for each in transport.poll()] == [b"read"]


def test_a_send_that_is_refused_loses_its_rank():
    comm, transport = coordinator()
    comm.refuse = {1}
    send(transport, 1, b"x")
    (gone,) = transport.poll()
    assert gone == Gone(1, "MPI says: refused", 0)
    assert transport.poll() == []


def test_what_is_dropped_is_not_waited_for():
    comm, transport = coordinator()
    send(transport, 1, b"stuck")
    send(transport, 2, b"leaves")
    assert not transport.flush(0.0)
    transport.drop(1)
    transport.drop(1)
    comm.complete(1)
    assert transport.flush(5.0)
    assert transport.poll() == []
    assert comm.sends[0].tests == 0


def test_in_a_plain_world_one_call_looks_for_the_messages_of_all_ranks(monkeypatch):
    comm, transport = coordinator(fault_tolerant=False)
    calls: list[int] = []
    monkeypatch.setattr(
        MPI.Request, "Testsome", lambda *args: calls.append(len(args[0])) or some_of(*args)
    )
    for source, text in ((3, b"c"), (1, b"aa"), (1, b"b")):
        comm.deliver(source, TAG_UP, text)
    found = [(each.rank, each.message.tobytes(), each.at_ns) for each in transport.poll()]
    assert found == [(1, b"aa", 0), (3, b"c", 0), (1, b"b", 1)]  # the clock is read once a call
    transport.drop(1)
    comm.deliver(3, TAG_UP, b"dd")
    assert [each.message.tobytes() for each in transport.poll()] == [b"dd"]
    assert calls == [3, 3, 3, 2, 2]
    transport.expect(UP_BYTES + 1)
    comm.deliver(2, TAG_UP, b"e")
    assert [each.message.tobytes() for each in transport.poll()] == [b"e"]


def test_in_a_plain_world_a_lost_rank_is_a_defect():
    comm, transport = coordinator(fault_tolerant=False)
    comm.lost = {2}
    with pytest.raises(MpiError):
        transport.poll()


# ---- a worker --------------------------------------------------------------------


def worker(fault_tolerant: bool = False) -> tuple[Comm, WorkerTransport]:
    comm = Comm(3, rank=2)
    return comm, WorkerTransport(comm, MPI, fault_tolerant=fault_tolerant)


def test_a_worker_hears_and_answers_rank_0():
    comm, transport = worker()
    assert transport.rank == 2
    assert {(r.rank, r.tag, r.buffer.nbytes) for r in comm.receives} == {
        (0, TAG_CONTROL, CONTROL_BYTES)
    }
    assert transport.poll_control() is None
    assert transport.poll_tasks() == [], "none are expected yet"
    comm.deliver(0, TAG_CONTROL, b"hello")
    assert transport.poll_control().tobytes() == b"hello"
    transport.open_tasks(64, 3)
    assert len(comm.posted(0, TAG_TASK)) == 3
    for text in (b"one", b"two"):
        comm.deliver(0, TAG_TASK, text)
    messages = transport.poll_tasks()
    assert [message.tobytes() for message in messages] == [b"one", b"two"]
    came_in = [r.buffer for r in comm.receives if r.message == b"one"]
    assert np.shares_memory(messages[0], *came_in), "pixels are not copied"
    buffer = transport.buffer(3)
    transport.send(buffer, packed(buffer, b"yes"))
    comm.complete(0)
    transport.poll_control()
    assert comm.delivered == [(0, TAG_UP, b"yes")]


def test_close_lets_sends_leave_but_does_not_wait_for_ever():
    comm, transport = worker()
    transport.send(transport.buffer(1), 1)
    transport.open_tasks(64, 1)
    transport.close(limit_s=0.0)
    assert comm.sends[0].tests == 0
    assert all(r.cancelled for r in comm.receives)
    comm, transport = worker()
    transport.send(transport.buffer(1), 1)
    comm.complete(0)
    transport.close()
    assert comm.sends[0].over


@pytest.mark.parametrize("how", ["send", "control", "tasks"])
def test_a_lost_rank_0_is_told_as_that_where_it_may_be_lost(how):
    comm, transport = worker(fault_tolerant=True)
    transport.open_tasks(64, 1)
    if how == "send":
        comm.refuse = {0}
        transport.send(transport.buffer(1), 1)
    else:
        comm.lost = {0}
    with pytest.raises(RankFailure) as raised:
        transport.poll_tasks() if how == "tasks" else transport.poll_control()
    assert raised.value.rank == 0
    plain, transport = worker()
    plain.lost = {0}
    with pytest.raises(MpiError):
        transport.poll_control()


def test_buffers_of_requests_to_a_lost_rank_are_kept_and_those_of_others_go_on():
    comm = Comm()
    sends = PendingSends(comm, (MpiError,))
    buffers = [sends.buffer(8) for _ in range(2)]
    for rank, buffer in enumerate(buffers, start=1):
        sends.post(rank, TAG_TASK, buffer, 8)
    sends.abandon(1)
    (kept,) = sends._abandoned  # MPI may still read what it holds
    assert kept[0] == 1
    assert np.shares_memory(kept[2], buffers[0])
    comm.complete(0, 1)
    sends.reap()
    assert not np.shares_memory(sends.buffer(8), buffers[0])
