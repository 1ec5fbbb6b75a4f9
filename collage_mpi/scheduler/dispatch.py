"""Who has what: ranks, their queues and credit, the tasks under way.

Up to `batch` tasks of one kind leave in one message, a rank has at most `credit` messages at
a time. What waits for a busy rank leaves together. While groups come in (`gathering`), tasks
wait beside the queue for others of their batch: until there are `batch` of their kind for the
rank, or until `flush`. Nothing else waits for a batch to fill.

Where ranks pull (`pulls`) a task is bound to no rank until one has room for it, the fastest idle
rank first, and a message takes up to `batch` of those that wait longest; of fewer each idle rank
gets its share. With a `Bundle`, what waits and was never sent leaves as one task of another kind.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence, Set
from math import ceil, inf
from typing import NamedTuple

from collage_mpi.kinds import KIND, SINGLE
from collage_mpi.scheduler import events as ev
from collage_mpi.scheduler.backlog import AGAIN, EVERYTHING, FRESH, LATE, Backlog
from collage_mpi.scheduler.events import Action, Item
from collage_mpi.scheduler.rank_speed import Health, Paces
from collage_mpi.scheduler.state import ImageState, Message, Pool, RankState, TaskState
from collage_mpi.scheduler.transitions import CANCELLED, IMAGE, RESOLVED, SETTLED, TASK

NO_RANKS: frozenset[int] = frozenset()


class Order(NamedTuple):
    """What sort of task is wanted."""

    kind: str
    source: str
    attempt: int = 1
    spare: bool = False


class Bundle(NamedTuple):
    """How images that wait, and were never sent, leave together as one task.

    Attributes:
        order: of that task.
        least: images that must wait for it; 1 if no rank takes single images.
        most: images of a task. A rank that is slow beside others takes only full ones, and nothing
            that a quicker one could take.
        beyond_idle: idle ranks are counted off what waits.
        patient: a slow rank takes a bundle only while more images wait than the other ranks would
            answer in the time that the slow rank needs.
    """

    order: Order
    least: int
    most: int
    beyond_idle: bool = False
    patient: bool = False


class Dispatch:
    """Ranks and tasks. Actions go to `actions`, which the scheduler hands on."""

    def __init__(
        self,
        main: str = SINGLE,
        health: Health | None = None,
        batch: int = 1,
        *,
        pulls: bool = False,
        paces: Paces | None = None,
        bundle: Bundle | None = None,
    ) -> None:
        """`main`: the kind whose tasks are an image's attempts; `health` if it is watched, else
        `paces` where ranks pull; `bundle` where what waits is sent together."""
        self.main = main
        self.health = health
        self.batch = batch
        self.pulls = pulls
        self.bundle = bundle
        self._paces = health or paces
        # Where ranks pull it is asked who has nothing, never who has least: messages will do
        self._counts_tasks = health is not None or not pulls
        self.gathering = False  # whether the tasks that are made wait for others
        self.calibrating = False  # drawn images alone may leave in a bundle, and have to
        self._ended_bundles = False  # none may, while a rank takes images by themselves
        self.actions: list[Action] = []
        self.released: list[int] = []  # images whose pixels nobody needs any more, to be told
        self.ranks: dict[int, RankState] = {}
        self.tasks: dict[int, TaskState] = {}  # sent, not yet terminal
        self.closed = False  # nothing is sent any more
        self.now_ns = 0
        self._pools: defaultdict[str, Pool] = defaultdict(Pool)
        self._gathered: dict[int, RankState] = {}  # ranks for which tasks are gathered
        self._backlogs: defaultdict[str, Backlog] = defaultdict(Backlog)
        self._unbound = RankState(0, frozenset(), "", 0)  # where the tasks of backlogs are
        self._just_made: list[TaskState] = []  # of these, made while groups come in
        self._next_task = 0

    # ---- ranks --------------------------------------------------------------

    def enter(self, rank: RankState) -> None:
        """The rank takes work."""
        self.ranks[rank.id] = rank
        for kind in sorted(rank.kinds):
            self._pools[kind].add(rank.id, rank.load)
        if self._paces is not None:
            self._paces.enter(rank, self.now_ns)
        self._room_changed(rank)

    def leave(self, rank: RankState) -> list[TaskState]:
        """The rank takes no more work; the tasks that can wait no longer, to be moved."""
        for kind in rank.kinds:
            self._pools[kind].discard(rank.id)
        self._room_changed(rank)
        if self._paces is not None:
            self._paces.leave(rank)
        return self._withdraw(rank.clear()) + self._stranded(rank.kinds)

    def _stranded(self, kinds: Collection[str]) -> list[TaskState]:
        """A rank has left: tasks that no other may take, taken out; the others may now go to
        ranks that failed their image."""
        if self.bundle is not None:
            kinds = {*kinds, self.main}
        waiting = [t for kind, b in self._backlogs.items() if kind in kinds for t in b.waiting()]
        stranded = [t for t in waiting if not self._may_wait(t.kind, _held(t), self._is_fresh(t))]
        for task in self._withdraw(stranded):
            self._backlogs[task.kind].forget(task)
        for task in waiting:
            self._offer(task)
        return stranded

    def _may_wait(self, kind: str, avoid: Collection[int], fresh: bool) -> bool:
        """Whether a rank that takes work may come to take such a task."""
        if fresh and self.bundle is not None and len(self._pools[self.bundle.order.kind]):
            return True
        return self._pools[kind].has_other(avoid)

    def _is_fresh(self, task: TaskState) -> bool:
        return task.id in self._backlogs[task.kind].fresh

    def has_rank(self, kind: str) -> bool:
        """Whether any ready rank holds a network of the kind."""
        return self.count(kind) > 0

    def count(self, kind: str) -> int:
        """Ready ranks that hold a network of the kind."""
        pool = self._pools.get(kind)
        return 0 if pool is None else len(pool)

    def has_idle(self, kind: str) -> bool:
        """Whether a ready rank of the kind has nothing to do."""
        return self._pools[kind].pick_idle() is not None

    @property
    def wants_images(self) -> bool:
        """Whether a ready rank that images are sent to first has nothing to do."""
        if self.bundle is not None and self.bundling and self.has_idle(self.bundle.order.kind):
            return True
        return self.has_idle(self.main)

    def close(self) -> None:
        """Nothing more is sent; what waited is forgotten."""
        self.closed = True
        for rank in self.ranks.values():
            self._withdraw(rank.clear())
            self._load_changed(rank)
        for backlog in self._backlogs.values():
            self._withdraw(backlog.waiting())
            backlog.clear()

    def waiting(self) -> Iterator[TaskState]:
        """Tasks that are not sent yet."""
        for rank in self.ranks.values():
            yield from rank.waiting()
        for backlog in self._backlogs.values():
            yield from backlog.waiting()

    def _withdraw(self, waited: list[TaskState]) -> list[TaskState]:
        """They wait no more."""
        for task in waited:
            task.status = TASK[task.status]["withdrawn"]
            _forget(task)
            for image in task.images:
                image.sends -= task.kind == self.main  # it never left
        return waited

    # ---- making and sending tasks -------------------------------------------

    def to_next(
        self, order: Order, images: list[ImageState], avoid: Collection[int] = ()
    ) -> TaskState | None:
        """A task to the next rank of the kind in turn, if there is one not to be avoided."""
        rank = self._pools[order.kind].pick_next(avoid)
        return None if rank is None else self._make(order, images, rank)

    def to_spread(self, orders: Sequence[Order], images: list[ImageState]) -> list[TaskState]:
        """One task an order, each to a different rank of the first one's kind, in turn."""
        if self.pulls:
            return [self._wait(o, images, ()) for o in orders[: self.count(orders[0].kind)]]
        ranks = self._pools[orders[0].kind].pick_spread(len(orders))
        return [self._make(o, images, rank) for o, rank in zip(orders, ranks, strict=False)]

    def to_least(
        self, order: Order, images: list[ImageState], avoid: Collection[int]
    ) -> TaskState | None:
        """A task to the least loaded rank of the kind that is not to be avoided."""
        rank = self._pools[order.kind].pick_least(avoid)
        return None if rank is None else self._make(order, images, rank)

    def to_idle(
        self, order: Order, images: list[ImageState], avoid: Collection[int]
    ) -> TaskState | None:
        """A task to a rank of the kind that has nothing to do; None if there is none."""
        if self.closed:
            return None
        if self.health is None:
            rank = self._pools[order.kind].pick_idle(avoid)
        else:
            rank = self.health.pick_idle(order.kind, self.now_ns, avoid)
        return None if rank is None else self._make(order, images, rank)

    def to_best(
        self, order: Order, images: list[ImageState], avoid: Collection[int] = ()
    ) -> TaskState | None:
        """A task to the rank that would finish it first; if unwatched to the least loaded, or
        to the first that has room."""
        if self.health is None:
            return (self.to_any if self.pulls else self.to_least)(order, images, avoid)
        rank = self.health.pick(order.kind, self.now_ns, avoid)
        return None if rank is None else self._make(order, images, rank)

    def to_any(
        self, order: Order, images: list[ImageState], avoid: Collection[int] = ()
    ) -> TaskState | None:
        """A task to the first rank of the kind that has room and is not to be avoided."""
        sort = self._sort(order.attempt, images)
        if not self._may_wait(order.kind, avoid, sort == FRESH):
            return None
        return self._wait(order, images, avoid, sort)

    def _sort(self, attempt: int, images: list[ImageState]) -> int:
        """Of a task that waits: it may leave in a bundle if it is its image's first."""
        if attempt > 1 or images[0].bundled:
            return AGAIN
        if self.bundling and not (
            self.calibrating and self.has_rank(self.main) and not images[0].drawn
        ):
            return FRESH
        return LATE if self.calibrating else AGAIN

    @property
    def bundling(self) -> bool:
        """Whether what waits leaves together."""
        if self.bundle is None:
            return False
        return not (self._ended_bundles and self.has_rank(self.main))

    @property
    def pairing(self) -> bool:
        """Whether an image that may leave in a bundle leaves in no other way: both networks are to
        classify the images that choose a threshold."""
        return (
            self.calibrating and self.bundle is not None and self.has_rank(self.bundle.order.kind)
        )

    def first_to_finish(self, kind: str, count: int) -> list[int]:
        """The ranks that would finish a task of the kind first; () if ranks are not watched."""
        return [] if self.health is None else self.health.first(kind, count, self.now_ns)

    def skip_turn(self, kind: str) -> None:
        """An image that needs no task keeps its place among the ranks."""
        self._pools[kind].skip_turn()

    def _new(
        self,
        order: Order,
        images: list[ImageState],
        rank: RankState,
        avoid: Collection[int] = (),
    ) -> TaskState:
        kind, source, attempt, spare = order
        task = TaskState(self._next_task, kind, source, rank, images, attempt, avoid)
        task.spare = spare
        self._next_task += 1
        for image in images:
            image.tasks.append(task)
            if kind == self.main:
                image.sends += 1
        return task

    def _make(self, order: Order, images: list[ImageState], rank_id: int) -> TaskState:
        rank = self.ranks[rank_id]
        task = self._new(order, images, rank)
        if self.gathering:
            self._gather(rank, task)
        else:
            rank.queue[task.id] = task
            self.pump(rank)
        self._load_changed(rank)
        return task

    def _gather(self, rank: RankState, task: TaskState) -> None:
        """The task waits for others, if they do not make a whole batch with it."""
        gathered = rank.gathered.setdefault(task.kind, OrderedDict())
        gathered[task.id] = task
        if len(gathered) < self.batch:
            self._gathered[rank.id] = rank
        else:
            del rank.gathered[task.kind]
            rank.queue.update(gathered)
            self.pump(rank)

    def flush(self) -> None:
        """Nobody comes to join what was gathered: it leaves."""
        made, self._just_made = self._just_made, []
        for task in made:
            self._offer(task)
        ranks, self._gathered = self._gathered, {}
        for rank in ranks.values():
            for gathered in rank.gathered.values():
                rank.queue.update(gathered)
            rank.gathered.clear()
            self.pump(rank)
            if self.health is not None:
                self.health.changed(rank)

    def pump(self, rank: RankState) -> None:
        """Send what waits for the rank, then what waits for any, up to its credit."""
        if rank.messages >= rank.credit:
            return
        while rank.queue and rank.messages < rank.credit and not self.closed:
            task = rank.queue.popitem(last=False)[1]
            self._send(rank, [task] if self.batch == 1 else self._with_others(rank, task))
        while self.pulls and self._pull(rank):
            pass

    def _with_others(self, rank: RankState, task: TaskState) -> list[TaskState]:
        """The task and those behind it in the rank's queue, of one kind, a batch at most."""
        tasks = [task]
        while rank.queue and len(tasks) < self.batch:
            following = next(iter(rank.queue.values()))
            if following.kind != tasks[0].kind or _has_failed(tasks[0]) or _has_failed(following):
                break
            del rank.queue[following.id]
            tasks.append(following)
        return tasks

    # ---- tasks that ranks pull ----------------------------------------------

    def _wait(
        self,
        order: Order,
        images: list[ImageState],
        avoid: Collection[int],
        sort: int = AGAIN,
    ) -> TaskState:
        task = self._new(order, images, self._unbound, avoid)
        self._backlogs[order.kind].add(task, sort)
        if self.gathering:
            self._just_made.append(task)
        else:
            self._offer(task)
        return task

    def serve(self, *, everyone: bool = False) -> None:
        """What a rank may not take may have changed: ask the ranks with room, the fastest first.

        Not the slow ones, unless `everyone`: they take what is barred to the others, which
        changes with a failure or a rank, and whole bundles, which they were offered.
        """
        if self.bundle is None or self._paces is None:
            return
        main = self._backlogs[self.main]
        for kind in (self.main, self.bundle.order.kind):
            anyone = everyone or not self.bundling
            limit_ns = inf if anyone else self._paces.limit_ns(kind)
            passed: set[int] = set()
            while main.tasks and (rank := self._backlogs[kind].pick(passed, limit_ns)) is not None:
                if not self._pull(self.ranks[rank]):
                    passed.add(rank)
        # Where a pace has changed, a slow rank may leave fewer images to the others than before
        while self.bundle.patient and len(main.fresh) >= self.bundle.most:
            rank = self._pick_for_bundle()
            if rank is None or not self._pull(self.ranks[rank]):
                break

    def _offer(self, task: TaskState) -> None:
        """Let ranks with room pull until the task has left, or none of them may take it."""
        backlog = self._backlogs[task.kind]
        self._try_again()
        while task.id in backlog.tasks:
            barred = self._barred(task)
            fresh = self.bundling and self._is_fresh(task)
            rank = None
            if not (fresh and self.pairing):
                rank = backlog.pick(barred, self._limit_ns(task, barred))
            if rank is None and fresh:
                rank = self._pick_for_bundle()
            if rank is None or not self._pull(self.ranks[rank]):
                return

    def _pull(self, rank: RankState) -> bool:
        """A message of what waits longest and may go to the rank; whether it has room for any."""
        tasks = [] if self.closed else self._next(rank)
        if tasks:
            self._send(rank, tasks)
            self._load_changed(rank)
        return bool(tasks)

    def _next(self, rank: RankState) -> list[TaskState]:
        """Up to a batch of tasks of one kind. Before what is bundled comes what a bundle's
        answer, or a failure, has left to be sent alone."""
        if self.bundle is not None:
            main = self._backlogs[self.main]
            tasks = self._take(main, rank, (AGAIN,)) if rank.id in main else []
            tasks = tasks or self._take_bundles(self.bundle, rank)
            if tasks:
                return tasks
        sorts = (AGAIN, LATE) if self.pairing else EVERYTHING
        for backlog in self._backlogs.values():
            if rank.id in backlog and (tasks := self._take(backlog, rank, sorts)):
                return tasks
        return []

    # ---- what leaves together as one task -----------------------------------

    def end_calibration(self, *, bundles: bool) -> None:
        """From now on any image may leave in a bundle; none while a rank takes images by
        themselves if `bundles` is false. That holds for what waits already, too."""
        if self.bundle is None:
            return
        self.calibrating, self._ended_bundles = False, not bundles
        self._backlogs[self.main].renew(lambda task: self._sort(task.attempt, task.images))
        for rank in sorted(self.ranks.values(), key=self._pace_ns):
            self.pump(rank)

    def _take_bundles(self, bundle: Bundle, rank: RankState) -> list[TaskState]:
        """Up to a batch of them, whole ones if there are several; [] if too little waits."""
        kind, main = bundle.order.kind, self._backlogs[self.main]
        if not self.bundling:
            return []
        if rank.id not in self._backlogs[kind] or len(main.fresh) < self._least(bundle, rank.id):
            return []
        share = len(main.fresh) // (bundle.most * max(1, self._backlogs[kind].idle))
        tasks: list[TaskState] = []
        for _ in range(min(self.batch, max(1, share))):
            images = [task.images[0] for task in self._withdraw(main.take_fresh(bundle.most))]
            images.sort(key=lambda image: image.id)
            for image in images:
                image.bundled = True
            tasks.append(self._new(bundle.order, images, rank))
        return tasks

    def _least(self, bundle: Bundle, rank: int) -> int:
        """Images that must wait for the rank to take a bundle."""
        if not len(self._pools[self.main]):
            return 1
        if self._is_slow(bundle.order.kind, rank):
            assert self._paces is not None
            tasks = self._paces.meanwhile(bundle.order.kind, rank) if bundle.patient else 1
            return ceil(bundle.most * max(1.0, tasks))
        if self.pairing:
            return 1
        if not bundle.beyond_idle:
            return bundle.least
        assert self._paces is not None
        limit_ns = self._paces.limit_ns(self.main)
        return bundle.least + self._backlogs[self.main].idle_within(limit_ns)

    def _pick_for_bundle(self) -> int | None:
        """The rank with room that takes what waits as a bundle, where one does: a quick one, else
        a slow one, which takes only full bundles."""
        assert self.bundle is not None
        assert self._paces is not None
        kind, waiting = self.bundle.order.kind, len(self._backlogs[self.main].fresh)
        for limit_ns in (self._paces.limit_ns(kind), inf):
            rank = self._backlogs[kind].pick(NO_RANKS, limit_ns)
            if rank is not None and waiting >= self._least(self.bundle, rank):
                return rank
        return None

    def _is_slow(self, kind: str, rank: int) -> bool:
        assert self._paces is not None
        return self._paces.service_ns(rank) > self._paces.limit_ns(kind)

    def _try_again(self) -> None:
        """A rank that is slow and has long been idle is taken for one that nothing is known of."""
        if self.bundle is not None and self._paces is not None:
            rank = self._paces.forget_one(self.now_ns)
            if rank is not None:
                self._room_changed(rank)

    def _limit_ns(self, task: TaskState, barred: Collection[int]) -> float:
        """No rank slower than this may take the task by itself: a quicker one will."""
        if not self.bundling or self._paces is None:
            return inf
        quick = self._paces.has_quick(task.kind, barred)
        return self._paces.limit_ns(task.kind) if quick else inf

    def _take(self, backlog: Backlog, rank: RankState, sorts: Collection[int]) -> list[TaskState]:
        """The next batch for the rank; of less than a batch for each idle rank its share."""
        waiting = len(backlog.tasks) - (0 if FRESH in sorts else len(backlog.fresh))
        share = min(self.batch, -(-waiting // max(1, backlog.idle)))
        tasks: list[TaskState] = []

        def fits(task: TaskState) -> bool:
            barred = self._barred(task)
            if rank.id in barred:
                return False
            return self.bundle is None or self._pace_ns(rank) <= self._limit_ns(task, barred)

        alone = False
        while len(tasks) < share and not alone:
            task = backlog.take(fits, sorts)
            if task is None:
                break
            alone = share > 1 and _has_failed(task)
            if alone and tasks:
                backlog.add(task)
                break
            task.rank = rank
            tasks.append(task)
        return tasks

    def _barred(self, task: TaskState) -> Set[int]:
        """Ranks that the task must not go to now: those that failed its images are better than
        none."""
        if len(task.images) == 1 and not task.avoid:
            image = task.images[0]
            if len(image.tasks) == 1 and not image.tried:
                return NO_RANKS  # it is its image's first
        held = _held(task)
        tried = held.union(*(image.tried for image in task.images))
        return tried if self._pools[task.kind].has_other(tried) else held

    def _pace_ns(self, rank: RankState) -> float:
        return 0.0 if self._paces is None else self._paces.service_ns(rank.id)

    def _room_changed(self, rank: RankState) -> None:
        if not self.pulls:
            return
        for kind in rank.kinds:
            if rank.messages < rank.credit and rank.id in self._pools[kind]:
                self._backlogs[kind].room(rank.id, rank.messages, self._pace_ns(rank))
            else:
                self._backlogs[kind].no_room(rank.id)

    def _send(self, rank: RankState, tasks: list[TaskState]) -> None:
        """One message."""
        if self.health is not None and not rank.outstanding:
            self.health.turned(rank, self.now_ns)
        rank.messages += 1
        if self._paces is not None:
            self._paces.busy(rank.id)
        self._room_changed(rank)
        message = Message(len(tasks), len(tasks))
        sends = [self._leave(task, message) for task in tasks]
        if KIND[sends[0].kind].batched:
            message.inputs = sum(len(send.items) for send in sends)
        self.actions.append(sends[0] if len(sends) == 1 else ev.SendBatch(tuple(sends)))

    def _leave(self, task: TaskState, message: Message) -> ev.Send:
        if task.pending < len(task.images):  # what was resolved while it waited: a blank cell
            task.images = [image for image in task.images if image.status not in SETTLED]
        bundled = self.bundle is not None and task.kind == self.bundle.order.kind
        if bundled:
            task.items = tuple([Item(image.id, i) for i, image in enumerate(task.images)])
        else:
            task.items = tuple([Item(image.id, image.cell) for image in task.images])
        task.message = message
        task.status = TASK[task.status]["leaves"]
        task.rank.outstanding[task.id] = task
        self.tasks[task.id] = task
        for image in task.images:
            image.holders += 1
        places = tuple([(i.group.id, i.cell) for i in task.images]) if bundled else ()
        return ev.Send(
            task.id, task.rank.id, task.kind, task.items, task.group.id, task.attempt, places
        )

    # ---- what ends them -----------------------------------------------------

    def send_done(self, tasks: Iterable[int]) -> None:
        """The tasks' pixels have left."""
        for task_id in tasks:
            task = self.tasks.get(task_id)
            if task is not None and not task.send_done:
                self._let_go(task)

    def end(self, task: TaskState, how: str) -> None:
        """A terminal event: the task is no longer under way."""
        task.status = TASK[task.status][how]
        assert task.message is not None
        del self.tasks[task.id]
        del task.rank.outstanding[task.id]
        task.message.left -= 1
        if task.message.left == 0:
            task.rank.messages -= 1
            if self._paces is not None and not task.rank.messages:
                self._paces.idle(task.rank.id, self.now_ns)
            self._room_changed(task.rank)
        if self.health is not None:
            self.health.turned(task.rank, self.now_ns)
        if task.message.left == 0 or self._counts_tasks:
            self._load_changed(task.rank)
        _forget(task)
        if not task.send_done:
            self._let_go(task)

    def observe(self, task: TaskState, service_ns: int) -> None:
        """The task was answered, its message after so long at work: once for a message."""
        if self._paces is None or task.message is None or task.message.left:
            return
        if self._paces.observe(task, service_ns):
            self._room_changed(task.rank)

    def resolved(self, image: ImageState) -> None:
        """The image has its outcome: cancel or drop each task that has no other left."""
        tasks = image.tasks
        if len(tasks) > 1:
            tasks = sorted(tasks, key=lambda task: not task.spare)
        for task in tasks:
            task.pending -= 1
            if task.pending > 0:
                continue
            task.status = TASK[task.status]["moot"]
            if task.status == CANCELLED:
                self.actions.append(ev.Cancel(task.id, task.rank.id))
                if self.health is not None:
                    self.health.changed(task.rank)
            elif task.rank is self._unbound:
                self._backlogs[task.kind].forget(task)
            elif task.rank.forget(task):
                self._load_changed(task.rank)
        image.tasks = []
        self._release(image)

    def _let_go(self, task: TaskState) -> None:
        task.send_done = True
        for image in task.images:
            image.holders -= 1
            if image.status == RESOLVED:
                self._release(image)

    def _release(self, image: ImageState) -> None:
        """It is resolved: nobody needs its pixels, unless a send still reads them."""
        if image.holders == 0:
            image.status = IMAGE[image.status]["let go"]
            self.released.append(image.id)

    def _load_changed(self, rank: RankState) -> None:
        for kind in rank.kinds:
            self._pools[kind].change(rank.id, rank.load)
        if self.health is not None:
            self.health.changed(rank)


def _has_failed(task: TaskState) -> bool:
    """An image of it may fail again, kill its rank even: it takes no others along."""
    for image in task.images:  # noqa: SIM110 - `any` takes three times as long
        if image.failures:
            return True
    return False


def _held(task: TaskState) -> set[int]:
    """Ranks that have its images already, and those that it has to avoid."""
    return {other.rank.id for image in task.images for other in image.tasks}.union(task.avoid)


def _forget(task: TaskState) -> None:
    for image in task.images:
        if task in image.tasks:
            image.tasks.remove(task)
