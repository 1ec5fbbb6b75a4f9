"""Start-up and the end as rank 0 sees them: bounded waits, one fault told, all told to stop."""

from __future__ import annotations

import socket
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from fakes import Clock
from job_messages import HELLO, WELCOME

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, ExitCode, UsageError
from collage_mpi.faults.process_monitor import Ended
from collage_mpi.faults.tcp_link import Offer
from collage_mpi.job import messages
from collage_mpi.job.group_steps import HERE
from collage_mpi.job.handshake import ServiceCosts, ratio_of, service_costs, shortest_ns
from collage_mpi.job.messages import (
    Bye,
    End,
    Fault,
    Hello,
    Leave,
    Measure,
    Measured,
    Message,
    Rank0,
    Release,
    Shards,
    Start,
    Stop,
    Welcome,
)
from collage_mpi.job.worker_group import MEASURE_ROUNDS, WorkerGroup
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.transport import Gone, Received
from collage_mpi.settings.batches import MostGroups
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.system.backoff import COORDINATOR_BACKOFF, GROUP_BACKOFF, Backoff
from collage_mpi.system.process_tree import this_process


class Workers:
    """The worker group's transport: each rank answers by a function of what it was told."""

    def __init__(self, size: int, answer=lambda rank, told: None) -> None:
        self.size = size
        self.workers = range(1, size)
        self.answer = answer
        self.told: list[tuple[int, Message]] = []
        self.found: list[Any] = []
        self.flushes, self.closed = True, False
        self.dropped: list[int] = []

    def buffer(self, nbytes: int) -> np.ndarray:
        return np.zeros(nbytes, np.uint8)

    def send_control(self, rank: int, buffer: np.ndarray, nbytes: int) -> None:
        message = buffer[:nbytes]
        told = messages.unpack(message, 0)
        self.told.append((rank, told))
        session = int(wire.read_header(message).session)
        reply = self.answer(rank, told)
        if reply is not None:
            self.push(rank, session, reply)

    def push(self, rank: int, session: int, message: Message) -> None:
        out = np.zeros(4096, np.uint8)
        self.found.append(Received(rank, out[: messages.pack(out, session, message)], 0))

    def poll(self) -> list[Received]:
        found, self.found = self.found, []
        return found

    def flush(self, limit_s: float) -> bool:
        return self.flushes

    def drop(self, rank: int) -> None:
        self.dropped.append(rank)

    def close(self) -> None:
        self.closed = True


def group_of(transport: Workers) -> WorkerGroup:
    clock = Clock(tick_ns=1000)
    return WorkerGroup(transport, lambda: clock() / 1e9, Backoff(COORDINATOR_BACKOFF, clock.sleep))


def hello(rank: int) -> Hello:
    return replace(HELLO, host=f"node{rank}")


def times_of(group: WorkerGroup, networks="networks", **who: list[int]):
    """Service times by kind, and the ratio, as the handshake finds them."""
    found = group.measure_in_turn(who, networks, dict.fromkeys(who, 1))
    return shortest_ns(found), ratio_of(found.get("collage", ()), found.get("single", ()))


def polite(rank: int, told: Message) -> Message | None:
    return {Welcome: hello(rank), Measure: Measured(5, None), Stop: Bye()}.get(type(told))


def welcomes(size: int) -> dict[int, Welcome]:
    return dict.fromkeys(range(1, size), WELCOME)


def test_the_input_is_told_before_the_welcome():
    heard: dict[int, list[Message]] = {1: [], 2: []}

    def listen(rank: int, told: Message) -> Message | None:
        heard[rank].append(told)
        return polite(rank, told)

    parts = [Shards(("a",)), Shards(("b",))]
    group_of(Workers(3, listen)).welcome(welcomes(3), shards=parts)
    assert heard == {1: [*parts, WELCOME], 2: [*parts, WELCOME]}


def test_all_hellos_are_collected_by_rank():
    worker_group = group_of(Workers(4, polite))
    assert worker_group.welcome(welcomes(4)) == {rank: hello(rank) for rank in (1, 2, 3)}
    assert worker_group.measure(2, "single", 1) == Measured(5, None)


def test_a_rank_that_never_says_hello_is_named_in_bounded_time():
    worker_group = group_of(Workers(4, lambda r, c: polite(r, c) if r == 2 else None))
    with pytest.raises(EnvironmentFault, match=r"no hello from ranks 1, 3 within 5 s"):
        worker_group.welcome(welcomes(4), limit_s=5.0)


@pytest.mark.parametrize(
    ("code", "kind"), [(4, DataFault), (3, EnvironmentFault), (1, EnvironmentFault)]
)
def test_a_rank_s_fault_is_told_with_its_rank(code, kind):
    def answer(rank, told):
        if rank == 3 and isinstance(told, Welcome):
            return Fault("w: damaged", code)
        return polite(rank, told)

    workers = Workers(4, answer)
    worker_group = group_of(workers)
    with pytest.raises(kind, match="rank 3: w: damaged"):
        worker_group.welcome(welcomes(4))
    assert worker_group.stop(code) == []
    assert workers.closed


def test_a_signal_ends_the_wait():
    worker_group = group_of(Workers(3))
    with pytest.raises(CollageError, match=r"SIGTERM: go on with the same command") as caught:
        worker_group.welcome(welcomes(3), interrupted=lambda: "stopped by SIGTERM")
    assert caught.value.exit_code is ExitCode.INCOMPLETE


def test_stop_tells_everybody_once():
    workers = Workers(4, polite)
    worker_group = group_of(workers)
    assert worker_group.stop(5) == worker_group.stop(5) == []
    assert workers.told == [(r, told) for told in (Stop(5), Leave()) for r in (1, 2, 3)]
    assert workers.closed


def test_ranks_receive_until_all_that_was_sent_has_left():
    """MPI may hold a message, such as a cancel, until the rank has received it."""
    workers = Workers(3, polite)
    found = []
    workers.flush = lambda limit_s: found.append([told for _, told in workers.told]) or True
    assert group_of(workers).stop(0) == []
    assert found == [[Stop(0)] * 2, [Stop(0)] * 2 + [Leave()] * 2]


def test_where_ranks_leave_alone_nobody_waits_for_what_was_sent():
    workers = Workers(3, polite)
    workers.flushes = False
    worker_group, _ = hardy(workers)
    assert worker_group.stop(0) == []


def test_stop_names_the_ranks_that_do_not_end():
    workers = Workers(4, lambda rank, told: polite(rank, told) if rank != 2 else None)
    assert group_of(workers).stop(0) == [2]
    assert not workers.closed
    assert Leave() not in [told for _, told in workers.told]  # MPI will be ended by force


def test_in_a_plain_world_a_rank_that_was_given_up_does_not_let_mpi_end():
    workers = Workers(4, polite)
    worker_group = group_of(workers)
    worker_group.detector.timeouts.lose(2, "timeout", "no answer", 0)
    assert worker_group.stop(0) == [2]
    assert {told for _, told in workers.told} == {Stop(0)}


@pytest.mark.parametrize(("state", "most_s"), [("idle", 10), ("owing", 30), ("silent", 5)])
def test_how_long_a_rank_that_does_not_end_is_waited_for(state, most_s):
    """One that owes an answer may be computing, for as long as the reply timeout allows."""
    workers = Workers(4, lambda rank, told: polite(rank, told) if rank != 2 else None)
    clock = Clock(tick_ns=1000)
    worker_group = WorkerGroup(
        workers, lambda: clock() / 1e9, Backoff(COORDINATOR_BACKOFF, clock.sleep)
    )
    if state != "idle":
        worker_group.detector.sent(2, clock())
    while state == "silent" and not worker_group.detector.timeouts.silent:
        clock.sleep(0.1)
        worker_group.detector.look(clock())
    before_s = clock() / 1e9
    assert worker_group.stop(0) == [2]
    assert clock() / 1e9 - before_s == pytest.approx(most_s, abs=1)


def test_messages_that_do_not_leave_are_no_good_end():
    workers = Workers(3, polite)
    workers.flushes = False
    assert group_of(workers).stop(0) == [1, 2]


def test_a_world_of_one_has_nobody_to_stop():
    assert group_of(Workers(1)).stop(3) == []


def test_a_damaged_message_is_a_wire_fault():
    workers = Workers(2)
    workers.found.append(Received(1, np.zeros(64, np.uint8), 0))
    with pytest.raises(wire.WireFault):
        group_of(workers).welcome(welcomes(2))


# ---- without some of the ranks ------------------------------------------------


OFFER = Offer(("node0", "10.0.0.1"), 4000, "x")


class NoMonitor:
    """A fault-tolerant world in which the test says who has ended, by `ended`."""

    def __init__(self) -> None:
        self.ended: list[Ended] = []

    def offer(self) -> Offer:
        return OFFER

    def look(self) -> list[Ended]:
        ended, self.ended = self.ended, []
        return ended

    def kill(self, rank: int) -> bool:
        return False


def hardy(transport: Workers) -> tuple[WorkerGroup, NoMonitor]:
    """A worker group that goes on without lost ranks."""
    clock, process_monitor = Clock(tick_ns=1000), NoMonitor()
    backoff = Backoff(COORDINATOR_BACKOFF, clock.sleep)
    worker_group = WorkerGroup(transport, lambda: clock() / 1e9, backoff, process_monitor)
    worker_group.detector.keep_going = True
    worker_group.steps.states = dict.fromkeys(worker_group.ranks, HERE)  # all have said so
    return worker_group, process_monitor


def test_everybody_is_told_where_rank_0_is():
    workers = Workers(3)
    worker_group, _ = hardy(workers)
    worker_group.greet()
    rank_0 = Rank0(socket.gethostname(), this_process(), OFFER)
    assert workers.told == [(1, rank_0), (2, rank_0)]


def test_ranks_that_say_nothing_are_lost_and_the_others_begin(caplog):
    worker_group, _ = hardy(Workers(4, lambda r, c: polite(r, c) if r == 2 else None))
    assert worker_group.welcome(welcomes(4), limit_s=5.0).keys() == {2}
    assert worker_group.present == [2]
    assert worker_group.transport.dropped == [1, 3]
    assert caplog.text.count("is lost: no hello within 5 s; written off") == 2
    assert [loss["layer"] for loss in worker_group.detector.describe()] == ["start", "start"]


def test_a_rank_that_dies_while_it_loads_is_not_waited_for():
    worker_group, process_monitor = hardy(Workers(3, lambda r, c: polite(r, c) if r == 1 else None))
    process_monitor.ended = [Ended(2, "process", "its process has ended")]
    assert worker_group.welcome(welcomes(3)).keys() == {1}
    assert worker_group.detector.timeouts.losses[2].layer == "process"
    assert worker_group.detector.timeouts.watch.watched_ns < 10**9  # of the 600 s that it had


def test_mpi_s_word_on_a_rank_is_taken():
    workers = Workers(3, lambda r, c: polite(r, c) if r == 1 else None)
    worker_group, _ = hardy(workers)
    workers.found.append(Gone(2, "MPI says: ERR_PROC_FAILED", 0))
    assert worker_group.welcome(welcomes(3)).keys() == {1}
    assert worker_group.detector.timeouts.losses[2].layer == "mpi"


def test_a_start_that_was_suspended_has_not_used_up_its_time():
    """All ranks are stopped for an hour while they load; what they say comes after it."""
    workers, clock, found = Workers(3), Clock(tick_ns=1000), []

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        found.append(seconds)
        if len(found) == 100:
            clock.sleep(3600)
        elif len(found) == 200:
            for rank in (1, 2):
                workers.push(rank, 1, hello(rank))

    worker_group = WorkerGroup(workers, lambda: clock() / 1e9, Backoff(COORDINATOR_BACKOFF, sleep))
    assert worker_group.welcome(welcomes(3), limit_s=5.0).keys() == {1, 2}


@pytest.mark.parametrize("kind", [UsageError, EnvironmentFault, DataFault])
@pytest.mark.parametrize("others", [True, False])
def test_a_rank_that_cannot_work_is_lost_unless_all_are_so(others, kind):
    """Whether its host, its file or what its network's code raises there is the cause."""

    def answer(rank, told):
        if isinstance(told, Welcome) and (rank == 2 or not others):
            return Fault("no CUDA device", int(kind.exit_code))
        return polite(rank, told)

    worker_group, _ = hardy(Workers(3, answer))
    if others:
        assert worker_group.welcome(welcomes(3)).keys() == {1}
        why = worker_group.detector.timeouts.losses[2].why
        assert why == "it cannot work: rank 2: no CUDA device; written off"
    else:
        with pytest.raises(kind, match="rank 1: no CUDA device"):
            worker_group.welcome(welcomes(3))


def test_a_network_that_is_too_slow_to_measure_is_told_as_that():
    worker_group = group_of(
        Workers(2, lambda r, c: polite(r, c) if isinstance(c, Welcome) else None)
    )
    worker_group.welcome(welcomes(2))
    with pytest.raises(EnvironmentFault, match=r"no service time .* rank 1 .* too slow there"):
        worker_group.measure(1, "single", 1)


def test_slow_networks_are_measured_in_fewer_rounds():
    clock = Clock(tick_ns=1000)

    def answer(rank: int, told: Message) -> Message | None:
        if isinstance(told, Measure):
            clock.now_ns += 12 * 10**9
        return polite(rank, told)

    workers = Workers(3, answer)
    worker_group = WorkerGroup(
        workers, lambda: clock() / 1e9, Backoff(COORDINATOR_BACKOFF, clock.sleep)
    )
    worker_group.welcome(welcomes(3))
    assert times_of(worker_group, single=[1], collage=[2])[1] == 1
    assert [told for _, told in workers.told if isinstance(told, Measure)] == [
        Measure("single", 1),
        Measure("collage", 1),
    ]


def test_networks_are_measured_in_turn():
    def answer(rank: int, told: Message) -> Message | None:
        if not isinstance(told, Measure):
            return polite(rank, told)
        return Measured(70 - rank, 10 * rank)

    workers = Workers(3, answer)
    worker_group, _ = hardy(workers)
    worker_group.welcome(welcomes(3))
    services, ratio = times_of(worker_group, single=[1], collage=[2])
    asked = [rank for rank, told in workers.told if isinstance(told, Measure)]
    assert asked == [1, 2] * MEASURE_ROUNDS
    assert services == {"single": 69, "collage": 68}
    assert ratio == 2  # of the processor times


def test_one_file_that_makes_both_networks_has_two_costs(monkeypatch):
    worker_group = group_of(Workers(3, polite))
    found = {"single": [Measured(10**8, 10**8)], "collage": [Measured(4 * 10**8, 4 * 10**8)]}

    def measured(who, networks, batches):
        return {kind: found[kind] for kind in batches}

    monkeypatch.setattr(worker_group, "measure_in_turn", measured)
    plan = SimpleNamespace(
        settings=RunSettings(),
        placement=SimpleNamespace(ranks_of=lambda kind: [1] if kind == "single" else [2]),
        networks={"single": "mine.py:network", "collage": "mine.py:network"},
    )
    assert service_costs(plan, worker_group, MANY).ratio == 4.0
    plan.settings = RunSettings(straggler="pinned")  # drawn times have the ratio of the settings
    assert service_costs(plan, worker_group, MANY).ratio == 1.0
    plan.settings = RunSettings(straggler="pinned", cost_ratio=1.5)
    assert service_costs(plan, worker_group, MANY).ratio == 1.5
    plan.settings = RunSettings(scheme="cascade", first=("collage", "q"))
    found["stage2"] = [Measured(3 * 10**7, 3 * 10**7)]
    plan.networks |= {"stage2": "q"}
    costs = service_costs(plan, worker_group, MANY)
    assert costs.costs == {"collage": 4.0, "stage2": 0.3}, "each stage has its own"


def test_ranks_that_load_are_left_the_cores():
    workers, clock = Workers(2), Clock(tick_ns=1000)
    polls = 0

    def poll() -> list[Received]:
        nonlocal polls
        polls += 1
        if clock.now_ns > 2 * 10**9:  # it takes a second
            workers.push(1, 1, HELLO)
        return Workers.poll(workers)

    workers.poll = poll
    worker_group = WorkerGroup(workers, lambda: clock() / 1e9, Backoff(GROUP_BACKOFF, clock.sleep))
    assert worker_group.welcome(welcomes(2)) == {1: HELLO}
    assert polls <= 220
    assert WorkerGroup(workers)._backoff.settings is GROUP_BACKOFF


def test_when_the_measured_rank_dies_the_next_is_measured():
    workers = Workers(4, lambda r, c: None if (r, type(c)) == (1, Measure) else polite(r, c))
    worker_group, process_monitor = hardy(workers)
    worker_group.welcome(welcomes(4))
    process_monitor.ended = [Ended(1, "process", "its process has ended")]
    services, ratio = times_of(worker_group, single=[1, 2], collage=[3])
    assert services == {"single": 5, "collage": 5}
    assert ratio == 1
    worker_group.detector.timeouts.lose(3, "process", "gone", 0)
    assert times_of(worker_group, "others", single=[1, 2], collage=[3]) == ({"single": 5}, None)


def test_a_dead_rank_is_not_told_to_stop_and_one_that_dies_then_has_stopped():
    workers = Workers(4, lambda r, c: polite(r, c) if r != 3 else None)
    worker_group, process_monitor = hardy(workers)
    worker_group.detector.timeouts.lose(1, "process", "gone", 0)
    process_monitor.ended = [Ended(3, "process", "its process has ended")]
    assert worker_group.stop(0) == []
    assert [rank for rank, _ in workers.told] == [2, 3]
    assert worker_group.detector.timeouts.losses.keys() == {1}


START = Start({"collage": 1.0}, {}, 1, 1, 1)


def test_ranks_that_are_let_go_learn_the_end_once_and_stop_with_the_others():
    workers = Workers(4, polite)
    group = group_of(workers)
    group.welcome(welcomes(4))
    group.start(START)
    workers.told.clear()
    group.release([2, 3])
    assert workers.told == [(2, Release()), (3, Release())]
    group.end()
    assert workers.told[2:] == [(1, End())]
    assert group.stop(6) == []
    assert [rank for rank, told in workers.told if told == Stop(6)] == [1, 2, 3]


def test_ranks_that_are_let_go_and_may_leave_alone_do_so_and_are_not_lost():
    workers = Workers(4, polite)
    group, process_monitor = hardy(workers)
    group.welcome(welcomes(4))
    workers.told.clear()
    group.release([2, 3])
    assert workers.told == [(2, Stop(0)), (3, Stop(0))]
    process_monitor.ended = [Ended(2, "process", "its process has ended")]
    assert group.detector.look(1 << 62) == []
    group.end()
    assert group.stop(6) == []
    assert [rank for rank, told in workers.told if told in (End(), Stop(6))] == [1, 1]
    assert group.detector.timeouts.losses == {}


def plan_of_batches(images: int = 10**6, **settings) -> SimpleNamespace:
    ranks = {"single": [1, 2], "collage": [3]}
    return SimpleNamespace(
        settings=RunSettings(batch=None, **settings),
        placement=SimpleNamespace(ranks_of=ranks.get),
        networks={"single": "w", "collage": "c"},
    )


MANY = MostGroups(256, "the most is 256")


def chosen_of(answer, most=MANY, **settings) -> ServiceCosts:
    workers = Workers(4, answer)
    group = group_of(workers)
    group.welcome(welcomes(4))
    costs = service_costs(plan_of_batches(**settings), group, most)
    tried = [
        (rank, told.kind, told.batch) for rank, told in workers.told if isinstance(told, Measure)
    ]
    assert costs.batch == costs.chosen.size
    assert {each[0] for each in tried if each[2] == costs.batch} == {1, 2, 3}  # all have tried it
    return costs


def curve(rank: int, told: Message) -> Message | None:
    """The single network takes 10 ms and 10 for each image, the collage network 30 for each."""
    if not isinstance(told, Measure):
        return polite(rank, told)
    ms = 10 + 10 * told.batch if told.kind == "single" else 30 * told.batch
    return Measured(ms * 10**6, None)


def test_batch_auto_is_the_known_best_of_the_networks():
    costs = chosen_of(curve)
    assert costs.batch == 8
    assert (costs.batch_ns["single"], costs.batch_costs["collage"]) == (90 * 10**6, 1.0)
    assert costs.chosen.why == "larger batches do at most 1.02 times its images a second"
    assert chosen_of(curve, MostGroups(4, "the most is 4")).chosen.why == "the most is 4"
    slow = chosen_of(curve, straggler="pinned:100", batch_cost=0.5)
    assert slow.batch == 8
    assert slow.chosen.why == "a batch of 16 takes 850 ms, the most is 500"


@pytest.mark.parametrize(
    ("rank", "says"), [(1, "the memory of a device"), (2, "the memory of rank 2")]
)
def test_a_batch_that_one_rank_has_no_room_for_is_not_taken(rank, says):
    def answer(asked: int, told: Message) -> Message | None:
        if isinstance(told, Measure) and asked == rank and told.batch > 4:
            return Measured(0, None, fits=False)
        return curve(asked, told)

    costs = chosen_of(answer)
    assert (costs.batch, costs.chosen.together["single"]) == (4, 50 * 10**6)
    assert costs.chosen.why == f"a batch of 8 does not fit {says}"


def test_what_other_processes_take_does_not_make_a_batch_small():
    def loaded(rank: int, told: Message) -> Message | None:
        found = curve(rank, told)
        if not isinstance(told, Measure):
            return found
        return Measured(found.service_ns * told.batch, found.service_ns)

    assert chosen_of(loaded).batch == 8


def test_a_second_session_hears_nothing_of_the_first() -> None:
    transport = Workers(3, polite)
    group = group_of(transport)
    group.end()  # no rank has begun anything
    assert transport.told == []
    for session in (1, 2):
        group.welcome(welcomes(3))
        assert group.session == session
        group.start(Start({"collage": 1.0}, {}, 1, 1, 1))
        group.end()
        assert [told for _, told in transport.told[-2:]] == [End(), End()]
    transport.push(1, 1, Measured(7, None))  # late
    transport.answer = lambda rank, told: None if rank == 1 else polite(rank, told)
    transport.push(1, 3, hello(9))
    assert group.welcome(welcomes(3)) == {1: hello(9), 2: hello(2)}
