"""A team's leases in its coordinator's loop, the link to the lead, groups that have numbers."""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from core_world import core_settings
from fakes import Clock, images_of, record
from results_harness import manifest

from collage_mpi.core import events as ev
from collage_mpi.core.core import Core
from collage_mpi.core.outcomes import Totals
from collage_mpi.core.schemes import make_scheme
from collage_mpi.core.table import Table
from collage_mpi.errors import EnvironmentFault, ExitCode
from collage_mpi.job import messages
from collage_mpi.job.calibration import Pair, PairBook
from collage_mpi.job.messages import Begin, Begun, Close, Halt, Idle, Lease, Part, Pause, Progress
from collage_mpi.job.plan import Plan
from collage_mpi.job.run import TeamRun, manifest_of, run_team
from collage_mpi.job.team import (
    LEAD_LOST,
    Dismissed,
    LeadLink,
    LeadLost,
    Supply,
    order_digest,
)
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.transport import RankFailure
from collage_mpi.results import RunWriter
from collage_mpi.results.row_sink import Pending
from collage_mpi.rows import CELL, KEY_ROW, PLACED, PRESENT
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards.order import Listed, Order, Permutation, Shuffle
from collage_mpi.workload.arrivals import ClosedLoop

MS = 1_000_000
ORDER = Order.of_list([5, 4, 3, 2, 1, 0, 6, 7])  # two shards of four images


class Reader:
    """Images by their index, all of them there at once."""

    failed = False

    def __init__(self) -> None:
        self.left: deque[tuple[int, int]] = deque()  # (position, index)

    def add(self, ranges) -> None:
        for each in ranges:
            self.left.extend(zip(range(*each), ORDER.indices(range(*each)).tolist(), strict=True))

    @property
    def remaining(self) -> int:
        return len(self.left)

    ready = remaining

    def take(self, n: int):
        taken = [self.left.popleft() for _ in range(min(n, len(self.left)))]
        images = images_of([record(index) for _, index in taken])
        return replace(images, position=np.array([position for position, _ in taken]))


class Rows:
    def __init__(self) -> None:
        self.pending: deque[Pending] = deque()
        self.flushes, self.idle = 0, True
        self.fault: EnvironmentFault | None = None

    def flush(self) -> None:
        if self.fault is not None:
            raise self.fault
        self.flushes += 1


class Link:
    def __init__(self) -> None:
        self.said: list[messages.Message] = []
        self.told: deque[messages.Message] = deque()

    def say(self, message) -> None:
        self.said.append(message)

    def hear(self):
        return self.told.popleft() if self.told else None


class Team:
    """A supply with what it needs; `look` hears what it was told before."""

    def __init__(self) -> None:
        infos = [SimpleNamespace(count=4), SimpleNamespace(count=4)]
        settings = SimpleNamespace(group_size=2, teams=2)
        shards = SimpleNamespace(infos=infos)
        self.plan = Plan(settings, shards, ORDER, None, None, None, None)
        self.link, self.reader, self.rows = Link(), Reader(), Rows()
        self.supply = Supply(self.link, self.plan, self.reader, self.rows)
        self.warm: list[int] = []
        self.attach()
        self.now_ns = 0

    def attach(self, book=None) -> None:
        self.supply.attach(Totals(images=3, errors=1, collage=2), self.warm.append, book)

    def take(self, count: int) -> list[tuple[int, int]]:
        """(position, image) of the next images."""
        found = []
        while len(found) < count and (came := self.supply.take(count - len(found))) is not None:
            first, images = came
            found += zip(range(first, first + len(images)), images.index.tolist(), strict=True)
        return found

    def look(self, *told, unresolved: int = 0) -> bool:
        self.link.told.extend(told)
        self.now_ns += 2 * MS
        return self.supply.look(self.now_ns, unresolved)


def lease(number: int, first_group: int, *ranges: tuple[int, int]) -> Lease:
    return Lease(number, 9, first_group, messages.packed_ranges(ranges))


def test_pairs_go_to_the_lead_in_messages_that_hold_them_and_its_threshold_comes_back():
    team = Team()
    book = PairBook(())
    team.attach(book)
    pairs = tuple(Pair(None, 1 / 3, place % 2 == 0) for place in range(1, 1202))
    for pair in pairs:
        book.judged(ev.Judged(0, pair.score, pair.differs, True))
    book.look()
    said = [message.pairs for message in team.link.said]
    assert sum(said, ()) == pairs
    buffer = np.empty(wire.CONTROL_BYTES, np.uint8)
    assert len(said) == 3
    for message in team.link.said:
        messages.pack(buffer, 0, message)  # raises where it has no room
    thresholds = [messages.SetThreshold(0.8, 1, 70), messages.SetThreshold(None, 1, 90)]
    team.look(*thresholds)
    team.look(lease(0, 0, (1, 3)))
    assert book.heard == thresholds


def test_a_threshold_says_nothing_to_a_team_that_pairs_no_answers():
    team = Team()
    team.look(messages.SetThreshold(0.8, 1, 70))
    assert team.supply.book is None


def test_of_the_images_that_choose_a_team_awaits_those_of_its_leases():
    team = Team()
    shards = SimpleNamespace(lost={0: "gone"}, locate=lambda index: (0, index))
    book = PairBook([5, 4, 3, 2], shards)
    team.attach(book)
    team.look(lease(0, 0, (1, 3)))
    book.look()
    (said,) = (message for message in team.link.said if isinstance(message, messages.Pairs))
    assert said.pairs == (Pair(1, None, False), Pair(2, None, False))


def test_images_of_a_lease_come_in_its_order_and_by_its_numbers():
    team = Team()
    assert team.look(lease(0, 10, (0, 2), (5, 6)))
    assert team.take(9) == [(20, 5), (21, 4), (22, 0)]
    assert team.warm == [10]
    team.look(lease(1, 30, (6, 8)))
    assert team.warm == [10]  # of the first one alone


def test_a_lease_is_begun_with_its_first_image():
    team = Team()
    team.look(lease(0, 0, (0, 2)), lease(1, 1, (2, 4)))
    assert team.link.said == []
    team.take(1)
    team.take(1)
    assert team.link.said == [Begun(0)]
    team.take(1)
    assert team.link.said == [Begun(0), Begun(1)]


def test_input_ends_when_the_lead_says_so_and_not_before():
    team = Team()
    assert not team.supply.exhausted
    team.look(lease(0, 0, (0, 2)), Pause())
    team.take(2)
    assert not team.supply.exhausted
    assert team.look(Close())
    assert team.supply.exhausted


def test_the_supply_is_paused_once_all_that_is_in_hand_has_come_in():
    team = Team()
    team.look(lease(0, 0, (0, 2)), Pause())
    assert not team.supply.paused
    team.take(2)
    assert team.supply.paused
    team.look(lease(1, 4, (2, 4)))
    assert not team.supply.paused
    team.take(2)
    assert not team.supply.paused  # the pause was over with the lease


def test_in_a_pause_rows_are_flushed_and_the_lead_is_told_when_they_are_on_the_disk():
    team = Team()
    team.look(lease(3, 0, (0, 2)), Pause())
    team.take(2)
    team.look(unresolved=1)
    assert team.rows.flushes == 0
    team.rows.idle = False
    team.look()
    team.look()
    assert team.rows.flushes == 1
    keys = np.array([(1, 1), (1, 0)], KEY_ROW)  # images 5 and 4, of positions 0 and 1
    team.rows.pending.append(Pending("images", 1, keys))
    team.rows.idle = True
    team.look()
    team.look()
    assert team.link.said == [Begun(3), Part("images", 1, 9, (0, 2)), Idle(3)]


def test_the_rows_of_a_part_are_in_any_order_and_of_any_lease():
    team = Team()
    team.look(lease(0, 0, (0, 2)), lease(1, 1, (4, 8)))
    rows = [(1, 3), (1, 0), (0, 0), (1, 2), (1, 1)]  # images 7, 4, 0, 6, 5: positions 7 1 5 6 0
    team.rows.pending.append(Pending("images", 1, np.array(rows, KEY_ROW)))
    team.look()
    (part,) = [said for said in team.link.said if isinstance(said, Part)]
    assert messages.unpacked_ranges(part.places) == [(0, 2), (5, 8)]


SHUFFLED = Order(Shuffle(40, 3))


def test_an_order_s_digest_is_of_the_images_and_of_the_shards_that_they_are_in():
    def digest(order=SHUFFLED, fingerprints=("aa", "bb")) -> str:
        infos = [SimpleNamespace(fingerprint=each) for each in fingerprints]
        shards = SimpleNamespace(infos=infos)
        return order_digest(SimpleNamespace(order=order, shards=shards))

    assert digest() == digest(order=Order(Shuffle(40, 3)))
    others = {
        "file order": digest(order=Order(Permutation(40))),
        "another seed": digest(order=Order(Shuffle(40, 4))),
        "an older run's": digest(order=Order(Listed.by_numpy(40, 3))),
        "an older run's of another seed": digest(order=Order(Listed.by_numpy(40, 4))),
        "more images": digest(order=Order(Shuffle(41, 3))),
        "a limit": digest(order=SHUFFLED.part([(0, 39)])),
        "a calibration": digest(order=SHUFFLED.part([(8, 12), (0, 8), (12, 40)])),
        "another first shard": digest(fingerprints=("ab", "bb")),
        "another last shard": digest(fingerprints=("aa", "bc")),
        "shards in another order": digest(fingerprints=("bb", "aa")),
    }
    assert len({digest(), *others.values()}) == 1 + len(others)


def test_a_part_that_comes_to_the_disk_in_the_turn_of_the_rest_is_told_before_it():
    """Else its images would count as those that the team could not read."""
    team = Team()
    team.look(lease(3, 0, (0, 2)), Pause())
    team.take(2)
    team.look()
    written = Pending("images", 1, np.array([(1, 1), (1, 0)], KEY_ROW))
    team.rows.flush = lambda: team.rows.pending.append(written)  # since the turn began
    team.look()
    assert team.link.said[-2:] == [Part("images", 1, 9, (0, 2)), Idle(3)]


def test_what_did_not_come_to_the_disk_is_not_told_as_done():
    team = Team()
    team.look(lease(3, 0, (0, 2)), Pause())
    team.take(2)
    team.look()
    team.rows.fault = EnvironmentFault("disk full")
    with pytest.raises(EnvironmentFault, match="disk full"):
        team.look()
    assert Idle(3) not in team.link.said


def test_a_halt_is_a_reason_to_stop():
    team = Team()
    assert not team.look(Halt("SIGTERM"))
    assert team.supply.halted == "SIGTERM"
    assert team.supply.progress == Progress(3, 1, 2)


# ---- the link ---------------------------------------------------------------


class Endpoint:
    def __init__(self) -> None:
        self.said: list[messages.Message] = []
        self.told: deque = deque()

    def buffer(self, nbytes: int) -> np.ndarray:
        return np.empty(nbytes, np.uint8)

    def send(self, buffer, nbytes) -> None:
        self.said.append(messages.unpack(buffer[:nbytes], 4))

    def poll_control(self):
        if not self.told:
            return None
        told = self.told.popleft()
        if told is None:
            return None
        if isinstance(told, Exception):
            raise told
        buffer = np.empty(4096, np.uint8)
        return buffer[: messages.pack(buffer, 0, told)]


class Monitor:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def meet(self, host, process, offer) -> None:
        self.calls.append(f"met {host}")

    def release(self) -> None:
        self.calls.append("released")


@pytest.fixture
def link():
    return LeadLink(Endpoint(), Monitor(), Clock(tick_ns=MS))


def test_a_link_meets_the_lead_and_leaves_when_told(link):
    link._endpoint.told.extend([messages.Rank0("node0", None, None), Begin(2, "r", "d")])
    assert link.wait_for(Begin, lambda: None) == Begin(2, "r", "d")
    link._endpoint.told.append(messages.Stop(5))
    with pytest.raises(Dismissed) as told:
        link.hear()
    assert told.value.exit_code is ExitCode.COMPLETE_WITH_ERRORS
    assert link._monitor.calls == ["met node0", "released"]
    said = [type(message) for message in link._endpoint.said]
    assert said == [Progress, messages.Here, messages.Bye]
    # The disk may fail while the team leaves: it is told again, and awaits no lead that has gone.
    assert link.wait_for_the_end() == 5
    assert len(link._endpoint.said) == 3


def test_in_a_plain_world_a_coordinator_stays_until_the_lead_has_heard_all(link):
    link._endpoint.told.extend([None, Pause(), messages.Leave(), Pause()])
    link.wait_to_leave()
    assert list(link._endpoint.told) == [Pause()]
    link.gone.set()
    link.wait_to_leave()


def test_a_coordinator_waits_for_a_lead_that_is_stopped_for_a_bounded_time(link, monkeypatch):
    monkeypatch.setattr(messages, "LEAVE_WAIT_S", 0.05)
    link.wait_to_leave()
    assert link._clock() >= 50 * MS


def test_what_is_heard_while_something_else_is_waited_for_is_kept(link):
    link._endpoint.told.extend([Halt("x"), Begin(2, "r", "d")])
    link.wait_for(Begin, lambda: None)
    assert link.hear() == Halt("x")
    assert link.hear() is None


def test_a_sign_of_life_twice_a_second(link):
    link.follow(lambda: Progress(7, 0, 0))
    for _ in range(1100):  # two ticks of 1 ms each or so
        link.hear()
    said = link._endpoint.said
    assert set(said) == {Progress(7, 0, 0)}
    assert 3 <= len(said) <= 6


def test_the_lead_hears_of_a_team_that_waits_for_its_disk():
    endpoint, monitor, written = Endpoint(), Monitor(), threading.Event()
    link = LeadLink(endpoint, monitor, Clock(tick_ns=200 * MS))
    send = endpoint.send

    def heard(*message) -> None:
        send(*message)
        if len(endpoint.said) == 3:
            written.set()

    endpoint.send = heard
    assert link.during(written.wait)
    with pytest.raises(ZeroDivisionError):
        link.during(lambda: 1 / 0)
    written.clear()
    monitor.release = written.set
    endpoint.told.append(messages.Stop(0))
    with pytest.raises(Dismissed):
        link.during(written.wait)


def test_a_lost_lead_is_a_reason_to_stop_and_is_told_nothing_more(link):
    link._endpoint.told.append(RankFailure(0, RuntimeError("gone")))
    assert link.lost is None  # known by a look alone
    assert link.stop_reason() == link.lost == LEAD_LOST
    said = len(link._endpoint.said)
    link.say(Progress(1, 0, 0))
    assert len(link._endpoint.said) == said
    assert link.wait_for_the_end() == ExitCode.INCOMPLETE
    with pytest.raises(LeadLost, match="rank 0"):
        link.wait_for(Begin, lambda: None)


# ---- the start of a team's session ------------------------------------------


def test_a_team_waits_for_a_manifest_that_is_seen_late(tmp_path):
    begin = Begin(2, "r", "d")

    def later() -> None:
        if not looks:
            RunWriter.create(tmp_path, manifest(4, teams=2, run_id="r")).close("incomplete")
        looks.append(1)

    looks: list[int] = []
    assert manifest_of(tmp_path, begin, later)["run_id"] == "r"
    with pytest.raises(EnvironmentFault, match="sees another run in this folder"):
        manifest_of(tmp_path, Begin(2, "other", "d"), lambda: None, late_s=0.0)
    with pytest.raises(EnvironmentFault, match="sees another run in this folder"):
        manifest_of(tmp_path, Begin(3, "r", "d"), lambda: None, late_s=0.0)  # of two teams
    with pytest.raises(LeadLost, match="SIGTERM"):
        manifest_of(tmp_path / "none", begin, lambda: "SIGTERM")


@pytest.mark.parametrize("same", [True, False])
def test_a_team_whose_images_have_another_order_than_the_lead_s_does_not_begin(
    tmp_path, monkeypatch, same
):
    RunWriter.create(tmp_path, manifest(8, teams=2, run_id="r")).close("incomplete")
    closed, asked = [], []
    shards = SimpleNamespace(infos=[], close=lambda: closed.append(1))
    plan = SimpleNamespace(order=ORDER, shards=shards, placement=SimpleNamespace(coordinator=4))

    def make_plan(settings, size, shards, *, team):
        asked.append((size, team))
        return plan

    monkeypatch.setattr("collage_mpi.job.run.make_plan", make_plan)
    begin = Begin(2, "r", order_digest(plan) if same else "another")
    group = SimpleNamespace(transport=SimpleNamespace(size=8))
    link = SimpleNamespace(stop_reason=lambda: None)
    made = (SimpleNamespace(out=tmp_path), group, link, begin, lambda: None)
    if same:
        TeamRun(*made)
    else:
        with pytest.raises(EnvironmentFault, match="of rank 4 differ from those of rank 0"):
            TeamRun(*made)
    assert (asked, bool(closed)) == ([(8, 1)], not same)


def test_a_team_that_is_stopped_before_its_start_says_so_and_waits_for_the_end(link):
    link._endpoint.told.append(None)
    stops = iter([None, "SIGTERM"])

    def stop() -> str | None:
        reason = next(stops, "SIGTERM")
        if reason is not None:
            link._endpoint.told.append(messages.Stop(6))
        return reason

    assert run_team(lambda: pytest.fail("no run"), None, link, stop) == ExitCode.INCOMPLETE
    faults = [said for said in link._endpoint.said if isinstance(said, messages.Fault)]
    assert [fault.exit_code for fault in faults] == [ExitCode.INCOMPLETE]


def test_a_team_that_cannot_say_how_it_stands_works_on(tmp_path):
    """Its folder is gone: the disk is full, or somebody removed it."""
    begin, told = Begin(2, "r", "d"), manifest(4, teams=2, run_id="r")
    session = SimpleNamespace(_manifest=told, _begin=begin, out=tmp_path / "gone")
    TeamRun._status(session, 5.0).end("complete")


# ---- the core ---------------------------------------------------------------


def core(**settings) -> Core:
    scheme = make_scheme(RunSettings(scheme="none", side=2).scheme_settings())
    found = Core(core_settings(group_size=4, ranks=2, **settings), scheme, Table(4, 0, 1, 0))
    for rank in (1, 2):
        found.step(0, [ev.RankReady(rank, frozenset({"single"}), "h", 2)])
    return found


def tasks(actions) -> list:
    return [task for a in actions if isinstance(a, ev.Send) for task in a.tasks]


def arrived(first: int, count: int = 1) -> ev.Arrived:
    return ev.Arrived(first, np.zeros(count, PLACED), 1)


def test_groups_have_the_numbers_that_their_images_bring():
    found = core(depth=4)
    sent = tasks(found.step(1, [arrived(40, 2)]))
    assert {task.positions[0] // 4 for task in sent} == {10}
    sent = tasks(found.step(2, [arrived(80)]))  # of a rest: group 10 is closed
    assert {task.positions[0] // 4 for task in sent} == {20}
    assert (found.next, found.admission.left) == (81, {10: 2, 20: 1})


def admitted(actions) -> int:
    return sum(a.images for a in actions if isinstance(a, ev.Admit))


def test_behind_a_group_that_was_cut_short_images_for_a_whole_one_are_awaited():
    found = core(depth=1)  # has asked for the four images of a group

    def arrives(position: int) -> int:
        return admitted(found.step(2, [arrived(position)]))

    assert [arrives(40), arrives(42)] == [0, 3]  # 43 may come, and then a whole group
    assert arrives(44) == 3  # 43 was left out
    assert arrives(45) == 0
    assert admitted(found.step(2, [ev.InputPaused()])) == 2
    assert [arrives(number) for number in range(80, 84)] == [0, 0, 0, 0]


def test_after_a_pause_images_may_come_and_another_end_game_copies_them():
    found = core(depth=4, endgame=True)
    cell = np.array([(1, 0.5, PRESENT, (0, 0, 0))], CELL)
    (first,) = tasks(found.step(1, [arrived(0)]))
    copies = tasks(found.step(2, [ev.InputPaused()]))
    assert [list(copy.positions) for copy in copies] == [[0]]
    for task in (first, *copies):
        found.step(3, [ev.Answered([task.id], task.rank, cell, 1)])
    (second,) = tasks(found.step(4, [arrived(8)]))
    assert second.positions[0] // 4 == 2
    copies = tasks(found.step(5, [ev.InputPaused()]))
    assert [list(copy.positions) for copy in copies] == [[8]]
    assert not any(isinstance(a, ev.Finish) for a in found.step(6, [ev.InputPaused()]))


def test_images_that_were_awaited_for_a_lease_count_from_the_grant():
    loop = ClosedLoop()
    loop.admit(5, 2)
    loop.admit(6, 1)
    loop.granted(50)
    assert [loop.enter(51, 2), loop.enter(51, 1)] == [(50, 50), (50, 50)]
