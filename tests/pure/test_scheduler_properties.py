"""Any interleaving of answers, failures, silence, losses, timers and stops keeps the invariants."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from scheduler_harness import Harness, Twins

from collage_mpi.scheduler import events as ev
from collage_mpi.scheduler.schemes import ASSIGNMENTS, PLACEMENTS, SCHEMES
from collage_mpi.scheduler.transitions import OPEN

MS = 1_000_000


class SchedulerMachine(RuleBasedStateMachine):
    """Hypothesis drives; the harness checks after every event."""

    @initialize(
        side=st.integers(2, 3),
        singles=st.integers(1, 5),
        collages=st.integers(0, 3),
        scheme=st.sampled_from(SCHEMES),
        policy=st.sampled_from(["first", "confident"]),
        copies=st.integers(1, 2),
        assign=st.sampled_from(ASSIGNMENTS),
        placement=st.sampled_from(PLACEMENTS),
        hedge_ns=st.sampled_from([0, 10 * MS]),
        credit=st.integers(1, 3),
        batch=st.integers(1, 4),
        together=st.booleans(),
        depth=st.integers(1, 3),
        paced=st.booleans(),
        drain=st.booleans(),
        linger=st.sampled_from([None, 5 * MS]),
        max_failures=st.integers(1, 4),
        endgame=st.booleans(),
        calibrate=st.booleans(),
        silent_end=st.booleans(),
    )
    def begin(self, linger, silent_end, **settings):
        self.silent_end = silent_end
        self.job = Harness(
            deadline_ns=20 * MS,
            linger_ns=linger,
            **settings,
        )
        self.job.start()

    def running(self) -> bool:
        return self.job.finish is None

    @precondition(lambda self: self.running() and self.job.admitted > 0 and not self.job.closed)
    @rule(data=st.data(), drawn=st.booleans())
    def arrive(self, data, drawn):
        self.job.arrive(data.draw(st.integers(1, self.job.admitted)), drawn)

    @precondition(lambda self: self.running())
    @rule(confidence=st.sampled_from([0.4, 0.8, 0.95, None]), sure=st.integers(0, 3))
    def threshold(self, confidence, sure):
        if sure == 0:
            self.job.threshold(confidence)

    @precondition(lambda self: self.running() and not self.job.closed)
    @rule(sure=st.integers(0, 9))
    def close(self, sure):
        if sure == 0:
            self.job.close()

    @precondition(lambda self: self.running() and self.job.live)
    @rule(data=st.data())
    def answer(self, data):
        task = data.draw(st.sampled_from(sorted(self.job.live)))
        images = [item.image for item in self.job.live[task].items]
        absent, unsure = (data.draw(st.sets(st.sampled_from(images))) for _ in range(2))
        service_ns = data.draw(st.sampled_from([0, 5 * MS, 50 * MS]))
        self.job.answer(task, frozenset(absent), frozenset(unsure), service_ns)

    @precondition(lambda self: self.running() and self.job.live)
    @rule(data=st.data())
    def answer_whole(self, data):
        self.job.answer(data.draw(st.sampled_from(sorted(self.job.live))))

    @precondition(lambda self: self.running() and self.job.live)
    @rule(data=st.data())
    def cannot_read(self, data):
        task = data.draw(st.sampled_from(sorted(self.job.live)))
        images = [item.image for item in self.job.live[task].items]
        unread = data.draw(st.sets(st.sampled_from(images), min_size=1))
        if len(unread) < len(images):
            self.job.answer(task, unread=frozenset(unread))
        else:
            self.job.fail(task, of_input=True)

    @precondition(lambda self: self.running() and self.job.live)
    @rule(data=st.data())
    def fail(self, data):
        self.job.fail(data.draw(st.sampled_from(sorted(self.job.live))))

    @precondition(lambda self: self.running() and self.job.cancelled & set(self.job.live))
    @rule(data=st.data())
    def skip(self, data):
        tasks = sorted(self.job.cancelled & set(self.job.live))
        self.job.skip(data.draw(st.sampled_from(tasks)))

    @precondition(lambda self: self.running() and set(self.job.live) - self.job.send_done)
    @rule(data=st.data())
    def send_done(self, data):
        tasks = sorted(set(self.job.live) - self.job.send_done)
        self.job.done_sending(data.draw(st.sampled_from(tasks)))

    @precondition(lambda self: self.running() and self.job.ready - self.job.lost)
    @rule(data=st.data())
    def suspect(self, data):
        rank = data.draw(st.sampled_from(sorted(self.job.ready - self.job.lost)))
        self.job.suspect(rank)

    @precondition(lambda self: self.running() and self.job.ready - self.job.lost)
    @rule(data=st.data(), sure=st.integers(0, 3))
    def lose(self, data, sure):
        if sure == 0:
            self.job.lose(data.draw(st.sampled_from(sorted(self.job.ready - self.job.lost))))

    @precondition(lambda self: self.running() and self.job.timers)
    @rule()
    def fire(self):
        timers = self.job.timers
        self.job.fire(min(timers, key=lambda t: (timers[t], t)))

    @precondition(lambda self: self.running())
    @rule(sure=st.integers(0, 19))
    def stop(self, sure):
        if sure == 0:
            self.job.stop()

    @rule(step_ms=st.integers(1, 30))
    def time_passes(self, step_ms):
        later = self.job.now_ns + step_ms * MS
        due = [t for t, at in self.job.timers.items() if at <= later]
        if not due:
            self.job.now_ns = later

    @invariant()
    def loads_are_counted(self):
        if not hasattr(self, "job"):
            return
        ranks = self.job.scheduler.dispatch.ranks
        for pool in ranks.pools.values():
            for rank, load in pool._load.items():
                now = ranks.known[rank].load
                # Ranks that pull are only asked whether they have nothing to do.
                assert load == now if ranks.counts_tasks else (load == 0) == (now == 0)

    @invariant()
    def nothing_waits_for_a_batch_that_is_in(self):
        if hasattr(self, "job") and self.job.finish is None:
            scheduler = self.job.scheduler
            ranks = scheduler.dispatch.ranks.known.values()
            gathered = any(any(rank.gathered.values()) for rank in ranks)
            assert not (gathered and scheduler.groups.batch_is_in)

    @invariant()
    def no_rank_has_room_for_what_waits_for_any(self):
        if not hasattr(self, "job") or self.job.finish is not None:
            return
        dispatch = self.job.scheduler.dispatch
        ranks, bundles = dispatch.ranks, dispatch.bundles
        gathered = {task.id for task in dispatch._just_made}
        for kind, backlog in list(dispatch.pulled.backlogs.items()):
            ready = {r for r in ranks.pools[kind]._order if kind in ranks.known[r].kinds}
            room = {r for r in ready if ranks.known[r].messages < ranks.known[r].credit}
            found = ranks.rooms[kind]
            places = [(n, place) for n, level in enumerate(found._levels) for place in level]
            assert sorted(places) == places == sorted(found._ranks.values())
            assert {place[2] for _, place in places} == room
            for messages, (pace_ns, _, rank) in places:
                assert messages == ranks.known[rank].messages
                assert pace_ns == (ranks.paces.service_ns(rank) if ranks.paces else 0.0)
            for task in backlog.tasks.values():
                fresh = bundles is not None and task.id in backlog.fresh
                alone = ready - {*task.avoid}
                assert alone or (fresh and ranks.count(bundles.bundle.order.kind)), "for nobody"
                others = {t.rank.id for i in task.images for t in i.tasks} | {*task.avoid}
                tried = {r for i in task.images for r in i.tried}
                barred = others | (tried if ready - others - tried else set())
                bundling = bundles is not None and bundles.bundling
                slow = {r for r in room if bundling and bundles.is_slow(kind, r)}
                held_back = slow if slow and ranks.paces.has_quick(kind, barred) else set()
                if task.id not in gathered and not (fresh and bundles.pairing):
                    assert not room - barred - held_back
            if bundles and bundles.bundling and kind == "single" and not gathered:
                collages = ranks.rooms[bundles.bundle.order.kind]
                for rank in [r for r in ranks.known if r in collages]:
                    assert backlog.fresh_inputs < bundles.least(rank)

    @invariant()
    def an_image_without_a_task_waits_for_its_group_or_a_timer(self):
        if not hasattr(self, "job") or self.job.finish or self.job.scheduler.dispatch.tasks.closed:
            return
        scheduler = self.job.scheduler
        group = scheduler.groups.filling
        for image in group.images if group and scheduler.dispatch.bundles else ():
            waits = image.status == OPEN and not image.tasks
            assert not waits or scheduler.scheme.covers_later(scheduler, group)

    @invariant()
    def paces_are_those_of_the_ranks_that_take_work(self):
        ranks = self.job.scheduler.dispatch.ranks if hasattr(self, "job") else None
        paces = ranks.paces if ranks else None
        for kind, found in paces._by_pace.items() if paces else ():
            ready = ranks.pools[kind]._order
            assert found.entries == sorted((paces.service_ns(rank), rank) for rank in ready)

    @invariant()
    def ranks_are_sorted_once(self):
        health = self.job.scheduler.dispatch.ranks.health if hasattr(self, "job") else None
        for kind in health._changed if health else ():
            ranks = self.job.scheduler.dispatch.ranks
            health._sort_in(kind, ranks.now_ns)
            idle, busy = health._idlers[kind].entries, health._finishers[kind].entries
            entries = [*idle, *busy]
            assert sorted(rank for _, rank in entries) == ranks.pools[kind]._order
            busy = {rank for _, rank in busy}
            assert busy == {r for _, r in entries if ranks.known[r].load}

    def teardown(self):
        if hasattr(self, "job"):
            if self.silent_end:
                self.job.fall_silent()
                return
            self.job.run_out()
            if self.job.finish.status != ev.INCOMPLETE:
                assert set(self.job.resolved) == self.job.arrived
            self.no_memory_is_kept()

    def no_memory_is_kept(self):
        scheduler = self.job.scheduler
        assert not list(scheduler.dispatch.waiting())
        if not self.job.live:
            assert not any(rank.messages for rank in scheduler.dispatch.ranks.known.values())
        if not self.job.live:
            assert not scheduler.dispatch.tasks.out


SchedulerMachine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=50, deadline=None
)
TestSchedulerMachine = SchedulerMachine.TestCase


class RunMachine(SchedulerMachine):
    """The same where images that come together are runs."""

    @initialize(
        singles=st.integers(1, 5),
        credit=st.integers(1, 3),
        batch=st.integers(2, 9),
        depth=st.integers(1, 3),
        paced=st.booleans(),
        drain=st.booleans(),
        max_failures=st.integers(1, 4),
        endgame=st.booleans(),
        silent_end=st.booleans(),
    )
    def begin(self, **settings):
        plain = {"side": 2, "collages": 0, "scheme": "none", "assign": "pull", "linger": None}
        super().begin(**plain, runs=True, **settings)

    @invariant()
    def runs_are_whole_and_counted(self):
        if not hasattr(self, "job"):
            return
        job, scheduler = self.job, self.job.scheduler
        if job.whole_batches:
            let_in = scheduler.groups.unresolved + job.admitted
            assert let_in <= scheduler.settings.depth * scheduler.settings.group_size
        for group in job.groups.values():
            numbers = [n for image in group.images for n in range(image.id, image.id + image.count)]
            assert numbers == list(range(numbers[0], numbers[0] + group.size))
            assert [image.cell for image in group.images] == [
                image.id - group.images[0].id for image in group.images
            ]
            open_images = sum(i.count for i in group.images if not i.resolved)
            assert open_images == group.unresolved
        for backlog in scheduler.dispatch.pulled.backlogs.values():
            assert backlog.inputs == sum(task.inputs for task in backlog.tasks.values())
            assert backlog.fresh_inputs == sum(task.inputs for task in backlog.fresh.values())
            assert all(
                i.count == 1 or i.count == t.inputs
                for t in backlog.tasks.values()
                for i in t.images
            )


RunMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=50, deadline=None)
TestRunMachine = RunMachine.TestCase


class CascadeRunMachine(RunMachine):
    """A cascade's images in runs, beside the same without runs: the same is sent and resolved."""

    @initialize(
        scheme=st.sampled_from(["cascade", "cascade-batch"]),
        singles=st.integers(1, 5),
        collages=st.integers(0, 3),
        placement=st.sampled_from(PLACEMENTS),
        confidence=st.sampled_from([0.8, 1.0]),
        deadline_ns=st.sampled_from([None, 20 * MS]),
        credit=st.integers(1, 3),
        batch=st.integers(1, 4),
        depth=st.integers(1, 6),
        paced=st.booleans(),
        drain=st.booleans(),
        max_failures=st.integers(1, 4),
        endgame=st.booleans(),
        calibrate=st.booleans(),
        silent_end=st.booleans(),
    )
    def begin(self, silent_end, **settings):
        self.silent_end = silent_end
        self.job = Twins(side=2, **settings)
        self.job.start()


CascadeRunMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=50, deadline=None
)
TestCascadeRunMachine = CascadeRunMachine.TestCase


@given(data=st.data())
@settings(max_examples=50, deadline=None)
def test_the_same_events_give_the_same_actions(data):
    order = data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=40))

    def play() -> list:
        job = Harness(depth=2)
        job.start()
        log: list = []
        for choice in order:
            if job.admitted:
                job.arrive(job.admitted)
            live = sorted(job.live)
            log.append(job.answer(live[choice % len(live)]))
        return log

    assert play() == play()
