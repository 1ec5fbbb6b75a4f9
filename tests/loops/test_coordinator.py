"""Rank 0's loop in virtual time: no row lost or doubled, true stamps, bounded memory, an end."""

from __future__ import annotations

import dataclasses
import random
import time
from collections import Counter, deque
from collections.abc import Collection
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from core_world import core_settings, policy_of, scheme_settings
from fakes import (
    CLASSES,
    MS,
    SESSION,
    SHAPE,
    Clock,
    Cluster,
    ListReader,
    ListWriter,
    LoneJob,
    group_of,
    record,
    truthful,
)

from collage_mpi.bounds.promise import Answer, Threshold
from collage_mpi.core import events as ev
from collage_mpi.core.core import Core, ProtocolViolation
from collage_mpi.core.schemes import make_scheme
from collage_mpi.core.table import Table
from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.grid import Grid
from collage_mpi.faults.failure_detector import FailureDetector
from collage_mpi.faults.process_monitor import Ended
from collage_mpi.faults.tcp_link import Offer
from collage_mpi.job import coordinator
from collage_mpi.job.coordinator import (
    REPORT_EVERY_NS,
    Coordinator,
    LoopSettings,
    ReadyRank,
    WorkMeter,
)
from collage_mpi.job.leased_images import Close, Lease, LeasedImages, Pause
from collage_mpi.job.messages import Changed, pack
from collage_mpi.job.packing import Packer
from collage_mpi.job.pairs import Heard, Pair, PairBook
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.answers import ANSWERED, FAILED, Unread, WireResult
from collage_mpi.mpi.tasks import WireTask
from collage_mpi.mpi.transport import Received
from collage_mpi.results.number_sets import Draw
from collage_mpi.rows import OUTCOME_CODE, SOURCE_CODE, SOURCES
from collage_mpi.shards.order import Order, Permutation
from collage_mpi.system.backoff import COORDINATOR_BACKOFF, Backoff
from collage_mpi.workload.arrivals import ClosedLoop


class Deaths:
    """The watch over processes: each rank of `at_ms` dies so long after the start."""

    def __init__(self, clock: Clock, at_ms: dict[int, float]) -> None:
        self._clock = clock
        self._at_ns = {rank: clock.now_ns + round(ms * MS) for rank, ms in at_ms.items()}

    def offer(self) -> Offer:
        return Offer((), 0, "")

    def dead(self, rank: int) -> bool:
        return self._clock.now_ns >= self._at_ns.get(rank, 1 << 62)

    def look(self) -> list[Ended]:
        dead = [rank for rank in self._at_ns if self.dead(rank)]
        for rank in dead:
            del self._at_ns[rank]
        return [Ended(rank, "process", "its process has ended") for rank in dead]

    def kill(self, rank: int) -> bool:
        return False


class Job:
    """A coordinator over a cluster in virtual time, and everything it wrote."""

    def __init__(
        self,
        records: int | list[Any],
        *,
        side: int = 2,
        singles: int | None = None,
        collages: int = 1,
        scheme: str = "collage",
        policy: str = "first",
        deadline_ns: int | None = None,
        copies: int = 1,
        every_ns: int = 0,
        reads: int = 1,
        cluster: dict[str, Any] | None = None,
        stop_at_ns: int | None = None,
        credit: int = 2,
        reading: Collection[int] = (),
        deaths: dict[int, int] | None = None,
        placement: str = "fixed",
        audit: float = 0.0,
        calibration: int = 0,
        assign: str = "turn",
        ledger: Any = None,
        **settings: Any,
    ) -> None:
        singles = side * side if singles is None else singles
        collages = collages if scheme in ("collage", "cascade") else 0
        self.records = [record(i) for i in range(records)] if type(records) is int else records
        self.clock = Clock()
        self.start_ns = self.clock.now_ns
        self.cluster = Cluster(self.clock, side=side, **(cluster or {}))
        self.writer = ListWriter()
        workers = range(1, singles + collages + 1)
        reader = ListReader(
            list(self.records),
            self.clock,
            every_ns,
            reads,
            by_place=bool(reading) and set(reading) >= set(workers),
        )
        self.reader = reader
        encoder = Encoder(Grid(side, SHAPE[0]), SHAPE)
        self.table = Table(side * side, self.start_ns, 1, 1)
        self.packer = Packer(self.table, encoder, SESSION, self.clock, reading)
        confidence = 0.8 if deadline_ns is None else 1
        self.core = Core(
            core_settings(group_size=side * side, ranks=singles + collages, **settings),
            make_scheme(
                scheme_settings(
                    scheme,
                    assign=assign,
                    policy=policy_of(policy, confidence=confidence, deadline_ns=deadline_ns),
                    collage_copies=copies,
                    placement=placement,
                    calibrate=calibration > 0,
                )
            ),
            self.table,
        )
        self.deaths = Deaths(self.clock, deaths or {})
        self.detector = FailureDetector(
            range(1, singles + collages + 1), self.clock.now_ns, self.deaths
        )
        self.detector.keep_going = True
        self.credit = credit
        kinds = ["single"] * singles + ["collage"] * collages
        held = [set(kinds) if placement == "fastest" else {kind} for kind in kinds]
        self.ready = [ReadyRank(r, frozenset(k), "host") for r, k in enumerate(held, start=1)]
        self.most_held = self.most_remembered = 0
        self.link = LoneJob(len(self.records)) if ledger is None else ledger(self)
        order, shards = Order(Permutation(len(self.records))), SimpleNamespace(lost={})
        book = PairBook(calibration, order, shards) if calibration else None
        self.leased = LeasedImages(self.link, reader, self.writer, side * side, book)
        self.leased.hear()
        self.coordinator = Coordinator(
            self.core,
            SimpleNamespace(transport=self.cluster, detector=self.detector, session=SESSION),
            self.packer,
            self.writer,
            self.leased,
            LoopSettings(
                credit=credit,
                clock=self.clock,
                backoff=Backoff(COORDINATOR_BACKOFF, self.clock.sleep),
                arrivals=ClosedLoop(),
                stop_reason=lambda: (
                    "asked" if stop_at_ns is not None and self.clock.now_ns >= stop_at_ns else None
                ),
                report=self._watch,
                draw=Draw(audit, 0, ("aa",)),
            ),
        )

    @property
    def held(self) -> int:
        """Images whose pixels are held."""
        return len(self.packer.held._stretches)

    def _watch(self) -> None:
        self.most_held = max(self.most_held, self.held)
        core = self.core
        remembered = core.admission.unresolved + len(core.tasks) + len(core.ended)
        remembered += len(core.groups) + len(core.retries.trouble) + len(core.admission.left)
        self.most_remembered = max(self.most_remembered, remembered)
        assert self.clock.now_ns < self.start_ns + 3600 * 10**9, "an hour has passed: a hang"

    def run(self) -> ev.Finish:
        finish = self.coordinator.run(self.ready)
        self.check()
        return finish

    def check(self) -> None:
        """What must hold of the rows whatever happened."""
        rows = self.writer.images
        assert max(Counter(row.row for row in rows).values(), default=0) <= 1, "a doubled row"
        tasks = {task.task: task for task in self.writer.tasks}
        assert len(tasks) == len(self.writer.tasks) == len(self.cluster.tasks)
        resolved = Counter[int]()
        for row in rows:
            if row.answered:
                assert row.predicted == self.records[row.row].row % CLASSES, "another's answer"
            assert row.latency_ns >= 0
            assert row.warmup == (row.group < 1)
            resolved[row.group] += 1
        assert {g.group: g.images for g in self.writer.groups} == dict(resolved)
        answered = sum(task.resolved for task in self.writer.tasks)
        assert answered == sum(row.answered for row in rows)
        for task in self.writer.tasks:
            assert task.resolved <= task.items
            assert task.outcome == OUTCOME_CODE["answered"] or not task.resolved
            assert 0 <= task.sent_ns <= task.done_ns

    @property
    def sources(self) -> Counter[str]:
        return Counter(SOURCES[row.source] for row in self.writer.images)

    def complete(self) -> None:
        """It ran, every image has its row, and nothing is left in memory."""
        finish = self.run()
        assert finish.status == ev.COMPLETE, finish
        assert sorted(row.row for row in self.writer.images) == list(range(len(self.records)))
        self.nothing_is_left()

    def nothing_is_left(self) -> None:
        """No image, task or pixel is remembered."""
        core = self.core
        assert not self.held
        assert not core.admission.unresolved
        for left in (core.tasks, core.ended, core.groups, core.retries.trouble, self.table.reasons):
            assert not left
        assert not core.admission.left


@pytest.mark.parametrize("images", [0, 1, 3, 4, 5, 16, 37])
@pytest.mark.parametrize("scheme", ["none", "collage", "cascade"])
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"singles": 1},
        {"singles": 3, "collages": 2, "copies": 2},
        {"depth": 3},
        {"drain": True},
        {"drain": True, "depth": 2},
        {"credit": 1},
        {"every_ns": MS // 10},
        {"every_ns": MS // 2},
        {"every_ns": MS // 4, "reads": 3, "depth": 3},
        {"batch": 4},
        {"batch": 3, "depth": 2, "credit": 1},
        {"batch": 2, "drain": True},
        {"batch": 4, "singles": 3, "collages": 2, "copies": 2},
        {"batch": 3, "every_ns": MS // 2},
        {"batch": 3, "every_ns": MS // 4, "together": False, "depth": 4},
    ],
    ids=str,
)
def test_every_image_gets_its_own_answer_once(images, scheme, shape):
    Job(images, scheme=scheme, **shape).complete()


RUNS = {"scheme": "none", "assign": "pull", "reading": range(1, 20)}


def test_a_copy_of_a_run_is_the_attempt_that_answered():
    slow = {"service_ns": lambda rank, task: (50 if rank == 1 else 1) * MS}
    job = Job(24, **RUNS, batch=4, singles=2, credit=1, endgame=True, cluster=slow)
    job.complete()
    copied = [row for row in job.writer.images if SOURCES[row.source] == "endgame"]
    assert len(copied) == 4
    assert {(row.rank, row.attempt) for row in copied} == {(2, 2)}


@pytest.mark.parametrize("seed", range(30))
def test_what_happens_to_some_images_of_a_run_happens_to_them_alone(seed):
    chance = random.Random(f"runs {seed}")
    worn = {i for i in range(150) if chance.random() < 0.05 or 40 <= i < 56}  # whole runs, too

    def behave(rank: int, task: WireTask, pixels: list[int]) -> WireResult:
        images = [image for image, _ in task.items]
        unread = tuple(Unread(f"row {i} is worn", True) if i in worn else None for i in images)
        if any(unread):
            kind = FAILED if all(unread) else ANSWERED
            cells = () if kind == FAILED else truthful(rank, task, pixels).cells
            return WireResult(task.task, kind, cells=cells, unread=unread)
        if chance.random() < 0.1:
            return WireResult(task.task, FAILED, reason="boom")
        result = truthful(rank, task, pixels)
        cells = tuple(None if chance.random() < 0.02 else cell for cell in result.cells)
        return dataclasses.replace(result, cells=cells)

    service = {"service_ns": lambda rank, task: int(MS * chance.lognormvariate(0, 1))}
    job = Job(
        150,
        **RUNS,
        batch=chance.choice([2, 5, 8]),
        depth=chance.choice([1, 3]),
        endgame=chance.random() < 0.5,
        max_failures=100,
        max_attempts=9,
        cluster={"behave": behave, **service},
    )
    assert job.run().status == (ev.COMPLETE_WITH_ERRORS if worn else ev.COMPLETE)
    assert sorted(row.row for row in job.writer.images) == list(range(150))
    errors = {row.row: row for row in job.writer.images if not row.answered}
    assert errors.keys() == worn
    assert all(f"row {i} is worn" in str(row.reason) for i, row in errors.items())
    assert not any(row.has_label for row in errors.values())
    assert {row.row: (row.group, row.cell) for row in job.writer.images} == {
        i: divmod(i, 4) for i in range(150)
    }
    job.nothing_is_left()


def test_a_bad_row_of_a_run_that_is_sent_but_once_has_no_label():
    def behave(rank: int, task: WireTask, pixels: list[int]) -> WireResult:
        worn = [Unread("worn", True) if image in (3, 9) else None for image, _ in task.items]
        result = truthful(rank, task, pixels)
        return dataclasses.replace(result, unread=tuple(worn)) if any(worn) else result

    job = Job(20, **RUNS, batch=4, max_attempts=1, cluster={"behave": behave})
    assert job.run().status == ev.COMPLETE_WITH_ERRORS
    assert {row.row for row in job.writer.images if not row.has_label} == {3, 9}


@pytest.mark.parametrize("dies_ms", [0.5, 1.5, 2.5])
def test_the_run_of_a_lost_rank_is_done_by_others(dies_ms):
    job = Job(120, **RUNS, batch=8, depth=2, singles=3, deaths={2: dies_ms})
    job.complete()
    assert job.sources["retry"] > 0
    assert all(task.items == 1 for task in job.writer.tasks if task.attempt > 1)


@pytest.mark.parametrize("chosen", [0.8999, None])
def test_the_images_that_both_networks_classify_first_choose_the_threshold(chosen):
    """None is accepted before, and none after where no threshold is found."""
    job = Job(120, scheme="cascade", placement="fastest", calibration=40)
    book, pairs = job.leased.book, []

    def hear(new):
        pairs.extend(new)
        if len(pairs) == 40:
            kinds = ("collage",) if chosen else ()
            book.hear(Heard(kinds, Threshold(chosen, next(iter(kinds), None), 30, 40)))

    book.tell(hear)
    job.complete()
    assert sorted(pairs, key=lambda pair: pair.place) == [
        Pair(at, {"collage": Answer(pytest.approx(0.9), differs=False)}) for at in range(40)
    ]
    first = [row for row in job.writer.images if row.row < 40]
    assert {SOURCES[row.source] for row in first} <= {"single", "endgame"}
    assert sum(row.audited for row in first) > 30
    rest = [SOURCES[row.source] for row in job.writer.images if row.row >= 40]
    assert ("collage" in rest) == (chosen is not None)


@pytest.mark.parametrize("seed", range(30))
def test_random_delays_faults_and_absent_cells_lose_nothing(seed):
    chance = random.Random(seed)

    def behave(rank: int, task: WireTask, pixels: list[int]) -> WireResult:
        lot = chance.random()
        if lot < 0.15:
            return WireResult(task.task, FAILED, reason="boom")
        result = truthful(rank, task, pixels)
        cells = tuple(None if chance.random() < 0.1 else cell for cell in result.cells)
        return dataclasses.replace(result, cells=cells)

    job = Job(
        [record(i, "crc" if chance.random() < 0.1 else None) for i in range(60)],
        collages=2,
        copies=chance.choice([1, 2]),
        depth=chance.choice([1, 3]),
        drain=chance.random() < 0.3,
        every_ns=chance.choice([0, MS // 10, MS]),
        reads=chance.choice([1, 5, 17]),
        batch=chance.choice([1, 2, 4]),
        together=chance.random() < 0.7,
        policy=chance.choice(["first", "confident"]),
        deadline_ns=2 * MS,
        cluster={
            "service_ns": lambda rank, task: int(MS * chance.lognormvariate(0, 1)),
            "behave": behave,
        },
    )
    assert job.run().status in (ev.COMPLETE, ev.COMPLETE_WITH_ERRORS)
    assert len(job.writer.images) == 60
    job.nothing_is_left()


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("every_ns", [0, MS // 10])
def test_a_rank_gets_its_tasks_of_a_batch_in_one_message(depth, every_ns):
    """Four groups at a time: four images a single rank, four collages the collage rank."""
    job = Job(
        16 * 4, batch=4, depth=depth, every_ns=every_ns, policy="confident", deadline_ns=10**10
    )
    job.complete()
    assert job.cluster.messages == [(r, 4) for r, _ in job.cluster.messages]
    assert len(job.cluster.messages) == 5 * 4
    firsts = [task.group for task in job.writer.tasks if task.items == 4 and task.rank < 5]
    assert sorted(firsts) == sorted([0, 4, 8, 12] * 4)
    released = {g.group: g.t0_ns for g in job.writer.groups}
    assert len({released[g] for g in range(4 * depth)}) == 1  # t0 is the batch's


def test_the_last_batch_does_not_wait_for_images_that_do_not_come():
    job = Job(4 * 5 + 1, batch=4)  # a whole batch, one group more, and a group of one image
    job.complete()
    sizes = Counter(size for _, size in job.cluster.messages)
    assert sizes == {4: 5, 2: 2, 1: 3}  # image 0 and the collage twice, images 1 to 3 once


def test_an_image_that_a_batch_leaves_out_is_done_again_and_the_others_stay():
    def behave(rank: int, task: WireTask, pixels: list[int]) -> WireResult:
        found = truthful(rank, task, pixels)
        lacking = [rank == 2 and image // 4 == 1 for image, _ in task.items]
        cells = zip(found.cells, lacking, strict=True)
        return dataclasses.replace(found, cells=[None if gone else cell for cell, gone in cells])

    job = Job(16, scheme="none", batch=4, cluster={"behave": behave})
    job.complete()
    assert job.sources == {"single": 15, "retry": 1}


def test_cancels_that_follow_from_one_answer_are_one_message_a_rank():
    slow = {"service_ns": lambda rank, task: (20 if rank == 1 else 1) * MS}
    job = Job(160, batch=4, cluster=slow)
    job.complete()
    cancelled = [task for rank, task in job.cluster.tasks if rank == 1]
    assert 0 < job.cluster.cancels <= len(cancelled)


@pytest.mark.parametrize("batch", [1, 3])
def test_ranks_that_read_are_told_where_and_nobody_waits_until_that_has_left(batch):
    job = Job(37, scheme="none", batch=batch, reading=range(1, 5))
    job.complete()  # the cluster checks that no word is asked for when a message has left
    assert all(task.by_place for _, task in job.cluster.tasks)


def test_a_bad_row_is_an_error_row_and_its_neighbours_are_classified():
    job = Job([record(i, "row 5: checksum" if i == 5 else None) for i in range(8)])
    assert job.run().status == ev.COMPLETE_WITH_ERRORS
    (bad,) = [row for row in job.writer.images if not row.answered]
    assert (bad.row, bad.source, bad.reason) == (5, SOURCE_CODE["error"], "row 5: checksum")


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("bad", [4, 8, 12])
@pytest.mark.parametrize("every_ns", [0, MS])
def test_whole_groups_of_bad_rows_arrive_in_order(depth, bad, every_ns):
    records = [record(i, "crc" if i < bad else None) for i in range(14)]
    job = Job(records, depth=depth, every_ns=every_ns, reads=14)
    assert job.run().status == ev.COMPLETE_WITH_ERRORS
    assert sorted(row.row for row in job.writer.images) == list(range(14))


def test_nothing_but_bad_rows_ends():
    job = Job([record(i, "crc") for i in range(9)], depth=2)
    assert job.run().status == ev.COMPLETE_WITH_ERRORS
    assert not job.cluster.tasks
    assert job.coordinator.polls.longest_ns == 0  # it had none to make


def test_a_rank_that_always_fails_costs_retries_only():
    def behave(rank: int, task: WireTask, pixels: list[int]) -> WireResult:
        if rank == 2:
            return WireResult(task.task, FAILED, reason="CUDA error")
        return truthful(rank, task, pixels)

    job = Job(64, scheme="none", cluster={"behave": behave})
    job.complete()
    assert job.sources["retry"] > 0
    assert "CUDA error" in job.coordinator.retired[2]


def test_stamps_are_those_of_the_arrival():
    """t0 is the admission; an answer counts when it came, not when it was decoded."""
    job = Job(4, scheme="none", cluster={"service_ns": lambda rank, task: rank * MS})
    job.complete()
    latencies = {row.rank: row.latency_ns for row in job.writer.images}
    longest_pause_ns = COORDINATOR_BACKOFF.longest_ns
    for rank, latency_ns in latencies.items():
        truth_ns = rank * MS + 2 * job.cluster.wire_ns
        assert truth_ns <= latency_ns <= truth_ns + longest_pause_ns
    (group,) = job.writer.groups
    assert group.latency_ns == max(latencies.values())


def test_what_is_asked_for_comes_in_at_once():
    """Not a turn later: its latency counts from then."""
    job, sent = Job(8, scheme="none"), []
    turn = job.coordinator.turn

    def turned():
        sent.append(len(job.cluster.tasks))
        return turn()

    job.coordinator.turn = turned
    job.complete()
    assert sent[0] == 4


def test_after_an_answer_rank_0_looks_again_at_once():
    """Whatever it has waited before: others may be about to come."""
    job = Job(12, scheme="none")
    poll, looks = job.cluster.poll, []

    def look():
        found = poll()
        looks.append((job.clock.now_ns, any(isinstance(each, Received) for each in found)))
        return found

    job.cluster.poll = look
    job.complete()
    assert sum(answered for _, answered in looks) >= 3
    assert all(then == at for (at, answered), (then, _) in pairwise(looks) if answered)


def test_a_reserved_answer_is_stamped_when_it_begins_to_count():
    slow = {"service_ns": lambda rank, task: MS if task.kind == "collage" else 50 * MS}
    job = Job(4, policy="confident", deadline_ns=10 * MS, cluster=slow)
    job.complete()
    assert job.sources == {"kept": 4}
    for row in job.writer.images:
        assert 10 * MS <= row.latency_ns <= 10 * MS + COORDINATOR_BACKOFF.longest_ns


def test_a_late_answer_changes_nothing_and_is_recorded():
    slow = {"service_ns": lambda rank, task: 9 * MS if rank == 1 else MS}
    job = Job(4, cluster=slow)
    job.complete()
    (late,) = [task for task in job.writer.tasks if task.rank == 1]
    assert late.outcome == OUTCOME_CODE["answered"]
    assert late.resolved == 0
    assert late.done_ns > max(row.t0_ns + row.latency_ns for row in job.writer.images)


@pytest.mark.parametrize("factor", [5, 12])
def test_a_slow_rank_is_never_more_than_a_group_behind_when_it_begins(factor):
    """Among the tasks it begins; what was cancelled in its queue it skips."""
    job = Job(
        400,
        cluster={"service_ns": lambda rank, task: MS * (factor if rank == 1 else 1)},
    )
    job.complete()
    t0_of = {row.group: row.t0_ns for row in job.writer.images}
    groups = {task.task: group_of(task) for _, task in job.cluster.tasks}
    mine = [
        task for rank, task in job.cluster.tasks if rank == 1 and task.task in job.cluster.starts
    ]
    behind = []
    for task in mine:
        start_ns = job.cluster.starts[task.task] - job.start_ns
        current = max(group for group, t0_ns in t0_of.items() if t0_ns <= start_ns)
        behind.append(current - groups[task.task])
    assert max(behind) <= 1
    skipped = [t for t in job.writer.tasks if t.outcome == OUTCOME_CODE["skipped"]]
    assert {t.rank for t in skipped} >= {1}


def test_memory_is_that_of_the_groups_in_flight():
    """Also where a rank is slow for ever."""
    slow = {"service_ns": lambda rank, task: MS * (20 if rank == 1 else 1)}
    for shape in ({}, {"every_ns": MS // 2, "depth": 2}):
        job = Job(900, cluster=slow, **shape)
        job.complete()
        assert job.most_held <= 30, shape
        assert job.most_remembered <= 60, shape
        job.nothing_is_left()


@pytest.mark.parametrize("scheme", ["none", "cascade"])
def test_what_is_written_late_is_written_soon(scheme):
    """Rows of runs, and with them the tasks and groups that wait for these."""
    cascade = {"placement": "fastest", "policy": "confident"} if scheme == "cascade" else {}
    job = Job(900, scheme=scheme, reading=range(1, 20), batch=4, **cascade)
    job.complete()
    assert job.most_remembered <= 120
    job.nothing_is_left()


@pytest.mark.parametrize("after_ms", [0, 1, 3, 5])
@pytest.mark.parametrize("shape", [{}, {"depth": 3}, {"every_ns": MS // 10}])
def test_a_stop_keeps_what_is_known_and_the_rest_is_for_the_next_session(after_ms, shape):
    first = Job(400, stop_at_ns=1_000_000_000 + after_ms * MS, **shape)
    finish = first.run()
    assert finish.status == ev.INCOMPLETE
    assert finish.reason == "asked"
    done = {row.row for row in first.writer.images}
    assert len(done) < 400
    second = Job([r for r in first.records if r.row not in done], **shape)
    second.records, records = first.records, second.records
    assert second.run().status == ev.COMPLETE
    rest = {row.row for row in second.writer.images}
    assert rest == {r.row for r in records}
    assert rest | done == set(range(400))
    assert not rest & done


def test_a_stop_does_not_wait_for_a_rank_that_never_answers():
    job = Job(
        40,
        scheme="none",
        stop_at_ns=1_000_000_000 + 50 * MS,
        cluster={"behave": lambda *args: None if args[0] == 1 else truthful(*args)},
    )
    assert job.run().status == ev.INCOMPLETE
    lost = [task for task in job.writer.tasks if task.outcome == OUTCOME_CODE["unfinished"]]
    assert {task.rank for task in lost} == {1}
    assert job.clock.now_ns - job.start_ns < 6 * 10**9  # stop_ns and a little


def test_a_reader_that_fails_says_so_after_what_it_had_read():
    job = Job(8)
    job.reader.failed = True
    with pytest.raises(OSError, match="disk"):
        job.coordinator.run(job.ready)


def test_what_was_written_before_an_error_is_consistent(monkeypatch):
    """No task counts an image that has no row."""
    monkeypatch.setattr(coordinator, "ROWS", 200)
    job = Job(600, depth=2)
    plain, calls = job.writer.image_rows, []

    def image_rows(rows: Any, vectors: Any = ()) -> None:
        calls.extend([len(rows)] if len(rows) else [])
        if len(calls) > 1:
            raise OSError("no space left")
        plain(rows)

    job.writer.image_rows = image_rows
    with pytest.raises(OSError, match="no space"):
        job.coordinator.run(job.ready)
    assert 0 < len(job.writer.images) == calls[0] < 600
    assert sum(task.resolved for task in job.writer.tasks) <= len(job.writer.images)


def test_what_is_kept_of_images_is_handed_over_before_it_takes_much_memory(monkeypatch):
    monkeypatch.setattr(coordinator, "PART_BYTES", 8 * 100)

    def keeps(rank: int, task: WireTask, pixels: list[int]) -> WireResult:
        answer = truthful(rank, task, pixels)
        return dataclasses.replace(answer, vectors=np.zeros((len(pixels), 2), np.float32))

    job, most = Job(400, scheme="none", cluster={"behave": keeps}), []
    plain = job.writer.image_rows
    job.writer.image_rows = lambda rows, vectors: (most.append(len(vectors)), plain(rows))
    job.complete()
    assert sum(most) == 400
    assert max(most) <= 100


def test_answers_to_another_session_are_dropped():
    job = Job(4)
    job.cluster.answer(1, WireResult(0, ANSWERED), session=SESSION - 1)
    job.complete()


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (WireResult(999, ANSWERED, cells=(None,)), ProtocolViolation),
        (WireResult(0, ANSWERED, cells=(None, None, None)), ProtocolViolation),
    ],
)
def test_an_answer_nobody_asked_for_is_a_defect(result, error):
    job = Job(4)
    job.cluster.behave = lambda rank, task, pixels: dataclasses.replace(
        result, task=task.task if result.task == 0 else result.task
    )
    with pytest.raises(error):
        job.coordinator.run(job.ready)


def test_a_damaged_message_is_a_wire_fault():
    job = Job(4)
    job.cluster.push(1, np.full(64, 255, np.uint8))
    with pytest.raises(wire.WireFault):
        job.coordinator.run(job.ready)


def test_a_foreign_type_in_mid_run_is_a_wire_fault():
    job = Job(4)
    out = np.zeros(256, np.uint8)
    job.cluster.push(1, out[: wire.pack_control(out, SESSION, b"{}")])
    with pytest.raises(wire.WireFault, match="rank 1"):
        job.coordinator.run(job.ready)


def test_a_lost_rank_leaves_lost_tasks_and_no_gap():
    job = Job(40, cluster={"behave": lambda *a: None if a[0] == 1 else truthful(*a)})
    coordinator = job.coordinator
    for worker in job.ready:
        coordinator._step(
            job.clock(), ev.RankReady(worker.rank, worker.kinds, worker.host, job.credit)
        )
    for _ in range(40):
        coordinator.turn()
        job.clock.sleep(1e-4)
    coordinator._step(job.clock(), ev.RankLost(1, "killed"))
    while coordinator.finish is None:
        coordinator.turn()
        job.clock.sleep(1e-4)
    job.core.close(job.clock())
    coordinator.write()
    job.check()
    assert coordinator.finish.status == ev.COMPLETE
    assert {t.rank for t in job.writer.tasks if t.outcome == OUTCOME_CODE["lost"]} == {1}


def test_a_rank_that_says_it_can_do_no_more_of_a_kind_gets_none(caplog):
    job = Job(40, scheme="cascade", placement="fastest", singles=3, every_ns=MS // 10)
    out = np.zeros(256, np.uint8)
    told = Changed("collage", "", "it gives other answers")
    job.cluster.push(1, out[: pack(out, SESSION, told)])
    job.complete()
    assert {rank for rank, task in job.cluster.tasks if task.kind == "collage"} == {2, 3, 4}
    assert "rank 1 does no more collage tasks; it gives other answers" in caplog.text


def test_a_rank_whose_known_answers_are_wrong_gets_no_work_and_is_recorded(caplog):
    job = Job(40, scheme="none", singles=3, every_ns=MS // 10)
    out = np.zeros(256, np.uint8)
    job.cluster.push(1, out[: pack(out, SESSION, Changed("single", "", "32 inputs differ"))])
    job.complete()
    assert {rank for rank, _ in job.cluster.tasks[job.credit :]} == {2, 3}
    assert job.coordinator.unfit == {1: "32 inputs differ"}
    assert "rank 1 (host) gets no more work: 32 inputs differ" in caplog.text


def test_a_row_is_written_after_some_seconds_and_refuted_later_is_told(caplog):
    """Ranks take 6 s for an image that was sent before, and rank 1 is always wrong."""

    def behave(rank, task, pixels):
        wrong = [(pixel + (rank == 1)) % CLASSES for pixel in pixels]
        return truthful(rank, task, wrong)

    def service_ns(rank, task):
        return 6000 * MS if len(job.cluster.tasks) > 4 else MS

    cluster = {"behave": behave, "service_ns": service_ns}
    job = Job(4, scheme="none", singles=4, assign="pull", check=1.0, credit=1, cluster=cluster)
    written, take = {}, job.writer.image_rows
    job.writer.image_rows = lambda rows, vectors: (
        written.update(dict.fromkeys(rows["row"].tolist(), job.clock.now_ns)),
        take(rows, vectors),
    )
    assert job.coordinator.run(job.ready).status == ev.COMPLETE
    rows = {row.row: row for row in job.writer.images}
    (wrong,) = (row.row for row in rows.values() if row.rank == 1)
    for row in rows.values():
        assert written[row.row] - job.start_ns - row.t0_ns - row.latency_ns <= 5100 * MS
        assert row.predicted == (row.row + (row.row == wrong)) % CLASSES
    assert job.coordinator.refuted == [(1, 0, wrong)]
    assert f"rank 1 (host) answered row {wrong} of shard 0 otherwise than two other ranks;" in (
        caplog.text
    )
    job.nothing_is_left()


def test_reports_are_made_now_and_then_and_at_the_end():
    job, told = Job(37, scheme="none"), []
    job.coordinator._report = lambda: told.append((job.core.outcomes.totals.images, job.clock()))
    job.complete()
    assert told[-1][0] == 37
    between_ns = np.diff([at_ns for _, at_ns in told[:-1]])
    assert len(told) > 2
    assert between_ns.min() >= REPORT_EVERY_NS


def test_the_loop_s_processor_time_is_taken_down():
    job = Job(37)
    job.complete()
    work = job.coordinator.work.means()
    assert 0 < work["loop_cpu_ns"] <= work["process_cpu_ns"] < time.process_time_ns()


def test_work_is_told_as_means():
    meter = WorkMeter()
    assert set(meter.means().values()) == {0}
    meter.sent(10, [])
    assert meter.means()["send_ns"] == 10
    meter.sent(30, [5, 7])
    meter.receives, meter.receive_ns = 1, 9
    means = [meter.means()[f"{name}_ns"] for name in ("receive", "send", "encode")]
    assert means == [9, (10 + 30 - 12) / 2, (5 + 7) / 2]
    meter = WorkMeter()
    meter.sent(9, [4])
    assert meter.means()["encode_ns"] == 4


@pytest.mark.parametrize("scheme", ["none", "collage"])
def test_rank_0_s_work_is_told_apart(scheme):
    job = Job(37, scheme=scheme)
    job.clock.tick_ns = 10
    send = job.cluster.send_task

    def send_slowly(*message):
        job.clock.now_ns += MS
        send(*message)

    job.cluster.send_task = send_slowly
    job.complete()
    work = job.coordinator.work
    assert 0 < work.receive_ns < MS, "sending is no part of it, nor that of cancels"
    assert work.sends * MS < work.send_ns < (work.sends + 1) * MS
    assert 0 <= work.encode_ns < MS
    assert (work.encode_ns > 0) == (scheme == "collage")
    assert work.receives == len(job.writer.tasks)


def test_a_long_silence_is_the_longest_gap():
    job = Job(4)
    job.complete()
    assert job.coordinator.polls.longest_ns <= COORDINATOR_BACKOFF.longest_ns


# ---- leases ------------------------------------------------------------


class Leases(LoneJob):
    """A ledger that grants `size` images at a time, a pause before each; each begins a batch of its
    own."""

    EVERY_NS = 500 * MS

    def __init__(self, job: Job, size: int) -> None:
        super().__init__(0)
        self.job, self.left, self.size = job, len(job.records), size
        self.records, job.reader._left = list(job.records), deque()
        self.granted_ns: list[int] = []
        self.told = deque([Pause()])
        job.reader.add = self._read

    def _read(self, ranges: Any) -> None:
        for each in ranges:
            self.job.reader._left.extend(self.records[slice(*each)])

    def hear(self) -> Any:
        number, now_ns = len(self.granted_ns), self.job.clock.now_ns
        if self.left and now_ns >= self.job.start_ns + (number + 1) * self.EVERY_NS:
            self.granted_ns.append(now_ns)
            first, count = number * self.size, min(self.size, self.left)
            self.left -= count
            self.told.append(Lease(number, ((first, first + count),)))
            self.told.append(Pause() if self.left else Close())
        return super().hear()


def test_the_ledger_is_heard_and_a_stop_looked_for_once_a_ms():
    job, looks, asked = Job(40, depth=2), [], []
    hear, stop_reason = job.leased.look, job.coordinator._stop_reason

    def look(now_ns: int, unresolved: int) -> bool:
        looks.append(now_ns)
        return hear(now_ns, unresolved)

    job.leased.look = look
    job.coordinator._stop_reason = lambda: asked.append(0) or stop_reason()
    job.complete()
    assert len(looks) > 1
    assert all(later - earlier >= MS for earlier, later in pairwise(looks))
    assert len(asked) == len(looks) < job.coordinator.polls.polls


@pytest.mark.parametrize(("scheme", "batch"), [("none", 1), ("none", 4), ("collage", 1)])
def test_images_count_from_their_lease_and_wait_for_no_other(scheme, batch):
    job = Job(17, scheme=scheme, batch=batch, ledger=lambda job: Leases(job, 6))  # 4 and 2 images
    leases = job.link
    job.complete()
    assert len(leases.granted_ns) == 3
    begun_ns: dict[int, int] = {}
    for row in job.writer.images:
        lease = row.group // 2
        begun_ns[lease] = min(row.t0_ns, begun_ns.get(lease, row.t0_ns))
        assert row.latency_ns < leases.EVERY_NS // 2
    assert [begun_ns[i] + job.start_ns for i in range(3)] == leases.granted_ns
    for task in job.writer.tasks:
        assert 0 <= task.sent_ns - begun_ns[task.group // 2] < leases.EVERY_NS // 2


@pytest.mark.parametrize(("busy_ms", "released"), [(1, [[2, 3, 4]]), (300, [[3, 4], [2]])])
def test_a_job_that_waits_for_long_lets_idle_ranks_go_but_one_of_each_kind(
    monkeypatch, caplog, busy_ms, released
):
    monkeypatch.setattr(coordinator, "RELEASE_NS", 100 * MS)
    monkeypatch.setattr(coordinator, "AGAIN_NS", 100 * MS)
    caplog.set_level("INFO")
    slow = {"service_ns": lambda rank, task: (busy_ms if rank == 2 else 1) * MS}
    job = Job(8, cluster=slow, ledger=lambda job: Leases(job, 4))
    job.leased._dry = False  # it does not wait for its first images
    gone, sent = [], []

    def release(ranks: list[int]) -> None:
        assert job.clock.now_ns >= job.link.granted_ns[-1] + 100 * MS
        gone.append(ranks)
        sent.append(len(job.cluster.tasks))

    job.coordinator._group.release = release
    job.complete()
    assert gone == released
    assert {rank for rank, _ in job.cluster.tasks[sent[-1] :]} == {1, 5}
    assert OUTCOME_CODE["lost"] not in {task.outcome for task in job.writer.tasks}
    assert job.coordinator.released == {2, 3, 4}
    assert f"ranks {', '.join(map(str, released[0]))} released, the others wait" in caplog.text


def test_a_job_whose_input_is_listed_meanwhile_lets_no_rank_go(monkeypatch) -> None:
    monkeypatch.setattr(coordinator, "RELEASE_NS", 100 * MS)
    job = Job(8, ledger=lambda job: Leases(job, 4))
    job.leased._dry = False  # it does not wait for its first images
    job.coordinator._releases = False
    job.complete()
    assert not job.coordinator.released


# ---- lost ranks ---------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["none", "collage"])
@pytest.mark.parametrize("after_ms", [0, 3.3, 10])
def test_a_rank_s_death_costs_no_image(scheme, after_ms):
    job = Job(40, scheme=scheme, deaths={2: after_ms})
    job.complete()
    assert job.cluster.dropped == [2]
    lost = [task for task in job.writer.tasks if task.outcome == OUTCOME_CODE["lost"]]
    assert all((task.rank, task.reason) == (2, "its process has ended") for task in lost)
    assert not any(task.outcome == OUTCOME_CODE["unfinished"] for task in job.writer.tasks)


def test_the_collage_rank_dies_and_the_singles_go_on():
    job = Job(40, deaths={5: 4}, cluster={"service_ns": lambda rank, task: rank * MS})
    job.complete()
    assert job.sources["single"] >= 30


def test_all_ranks_die_and_the_job_stops_to_be_resumed():
    job = Job(40, scheme="none", deaths={rank: 3 + rank / 10 for rank in range(1, 5)})
    finish = job.run()
    assert finish.status == ev.INCOMPLETE
    assert "no rank is left" in finish.reason
    assert 0 < len(job.writer.images) < 40


def test_a_hung_rank_is_suspected_then_lost_and_its_images_sent_to_others():
    hang = lambda rank, task, pixels: None if rank == 3 else truthful(rank, task, pixels)  # noqa: E731
    job = Job(24, scheme="none", cluster={"behave": hang})
    job.detector.timeouts.reply_timeout_ns = 50 * MS
    job.complete()
    assert job.cluster.dropped == [3]
    (loss,) = job.detector.describe()
    assert loss["layer"] == "timeout"


def test_a_rank_that_is_only_asked_seldom_is_not_silent():
    """What it has answered is owed no more, however long the next image is awaited."""
    job = Job(8, scheme="none", every_ns=400 * MS)
    job.detector.timeouts.reply_timeout_ns = 50 * MS
    job.complete()
    assert job.detector.describe() == []
    assert job.sources == {"single": 8}


def test_a_network_that_waits_is_not_silent():
    """The longest service time, on which patience depends, has the wait in it."""

    def delayed(rank: int, task: WireTask, pixels: list[int]) -> WireResult:
        return dataclasses.replace(truthful(rank, task, pixels), compute_ns=7 * 10**9)

    job = Job(4, scheme="none", cluster={"behave": delayed})
    job.complete()
    assert job.detector.timeouts.timeout_ns == 70 * 10**9


def test_ranks_that_are_lost_before_it_begins_are_done_without():
    job = Job(12, scheme="none")
    job.detector.timeouts.lose(1, "start", "no hello", 0)
    finish = job.coordinator.run(job.ready[1:], {1: "no hello"})
    assert finish.status == ev.COMPLETE
    assert {row.rank for row in job.writer.images} <= {2, 3, 4}
    assert job.detector.timeouts.present == [2, 3, 4]


def sleeps_of(job: Job) -> dict[bool, set[int]]:
    """How long it sleeps, ns, with images in hand and without, once it has run."""
    found: dict[bool, set[int]] = {True: set(), False: set()}
    sleep = job.coordinator.backoff._sleep

    def noted(seconds: float) -> None:
        in_hand = job.core.admission.unresolved or job.reader.remaining
        found[bool(in_hand)].add(round(seconds * 1e9))
        sleep(seconds)

    job.coordinator.backoff._sleep = noted
    job.complete()
    return found


def test_a_job_with_no_image_in_hand_looks_up_once_a_ms_and_else_as_ever():
    slow = {"service_ns": lambda *_: 30 * MS}
    job = Job(8, scheme="none", cluster=slow, ledger=lambda job: Leases(job, 4))
    sleeps = sleeps_of(job)
    assert sleeps[False] == {MS}
    assert max(sleeps[True]) < COORDINATOR_BACKOFF.patient_ns  # of the 60 ms that it waits


def test_a_job_looks_up_as_ever_while_late_answers_are_awaited():
    late = {"service_ns": lambda rank, task: 100 * MS if rank == 5 else 30 * MS}
    sleeps = sleeps_of(Job(4, cluster=late))
    assert sleeps[False]
    assert max(sleeps[False] | sleeps[True]) <= COORDINATOR_BACKOFF.patient_ns
