"""Tasks from their making to their end: the messages they leave in and the pixels they need."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from itertools import chain, count

from collage_mpi.kinds import KIND
from collage_mpi.scheduler import events as ev
from collage_mpi.scheduler.events import Item, Items
from collage_mpi.scheduler.ranks import ReadyRanks
from collage_mpi.scheduler.state import ImageState, Message, Order, RankState, TaskState, Turn
from collage_mpi.scheduler.transitions import IMAGE, RESOLVED, SETTLED, TASK


class TaskBook:
    """Makes tasks, sends them, and ends them.

    Attributes:
        out: task id -> task, from its send to its terminal event.
        closed: nothing more is sent.
        cuts: how often a run was split.
    """

    def __init__(self, turn: Turn, ranks: ReadyRanks, main: str, mixed: str | None) -> None:
        """Start without tasks.

        Args:
            turn: takes the actions.
            ranks: is told what each rank has.
            main: the kind whose tasks count as an image's attempts.
            mixed: the kind whose tasks may hold images of several groups, or None.
        """
        self.out: dict[int, TaskState] = {}
        self.closed = False
        self.cuts = 0
        self._turn, self._ranks = turn, ranks
        self._main, self._mixed = main, mixed
        self._next = 0

    def make(
        self,
        order: Order,
        images: list[ImageState],
        rank: RankState,
        avoid: Collection[int] = (),
    ) -> TaskState:
        """Make a task, which waits."""
        task = TaskState(self._next, order, rank, images, avoid)
        self._next += 1
        for image in images:
            image.tasks.append(task)
            if order.kind == self._main:
                image.sends += 1
        return task

    def cut(self, task: TaskState, count: int) -> TaskState:
        """Split off a task for the first `count` images of a waiting task.

        The waiting task must be the only task of its run.
        """
        self.cuts += 1
        task.inputs -= count
        images = [task.images[0].cut(count)]
        images[0].sends -= task.kind == self._main  # copied from the run, and `make` adds one
        order = Order(task.kind, task.source, task.attempt, task.spare)
        return self.make(order, images, task.rank, task.avoid)

    def take_apart(self, task: TaskState) -> bool:
        """Split the task's runs into single images; False if there were no runs."""
        runs = task.take_apart()
        self.cuts += runs
        return runs

    def apart(self, run: ImageState) -> list[ImageState]:
        """Split a run into single images, and return them."""
        self.cuts += 1
        return run.apart()

    def withdraw(self, waited: list[TaskState]) -> list[TaskState]:
        """End tasks that were never sent; they do not count as attempts. Returns the tasks."""
        for task in waited:
            task.status = TASK[task.status]["withdrawn"]
            _forget(task)
            for image in task.images:
                image.sends -= task.kind == self._main
        return waited

    def send(self, rank: RankState, tasks: list[TaskState]) -> None:
        """Send these tasks to the rank in one message."""
        self._ranks.begins(rank)
        message = Message(len(tasks))
        sends = [self._leave(task, message) for task in tasks]
        self._turn.actions.append(sends[0] if len(sends) == 1 else ev.SendBatch(tuple(sends)))

    def _leave(self, task: TaskState, message: Message) -> ev.Send:
        if task.pending < len(task.images):  # resolved images leave a blank cell
            task.images = [image for image in task.images if image.status not in SETTLED]
        mixed = task.kind == self._mixed
        if mixed:
            numbers = [range(image.id, image.id + image.count) for image in task.images]
            task.items = tuple(map(Item, chain.from_iterable(numbers), count()))
        elif task.inputs > 1:
            runs = [Items(image.id, image.cell, image.count) for image in task.images]
            task.items = runs[0] if len(runs) == 1 else tuple(chain.from_iterable(runs))
        else:
            task.items = tuple([Item(image.id, image.cell) for image in task.images])
        task.message = message
        message.inputs += 1 if KIND[task.kind].encoded else len(task.items)
        task.status = TASK[task.status]["leaves"]
        task.rank.outstanding[task.id] = task
        self.out[task.id] = task
        for image in task.images:
            image.holders += 1
        bundle = tuple([(i.group.id, at) for i in task.images for at in i.cells]) if mixed else ()
        return ev.Send(
            task.id, task.rank.id, task.kind, task.items, task.group.id, task.attempt, bundle
        )

    def send_done(self, tasks: Iterable[int]) -> None:
        """The message with these tasks has left, so their pixels are not read any more."""
        for task_id in tasks:
            task = self.out.get(task_id)
            if task is not None and not task.send_done:
                self._let_go(task)

    def end(self, task: TaskState, how: str, service_ns: int = 0) -> None:
        """End a task. `how`: the terminal event; `service_ns`: time of its message, or 0."""
        task.status = TASK[task.status][how]
        message = task.message
        assert message is not None
        del self.out[task.id]
        del task.rank.outstanding[task.id]
        message.left -= 1
        if not message.left or self._ranks.counts_tasks:
            self._ranks.ended(task, service_ns)
        _forget(task)
        if not task.send_done:
            self._let_go(task)

    def release(self, image: ImageState) -> None:
        """Release the pixels of a resolved image, unless a send still reads them."""
        if image.holders == 0:
            image.status = IMAGE[image.status]["let go"]
            if image.count == 1:
                self._turn.released.append(image.id)
            else:
                self._turn.released.extend(range(image.id, image.id + image.count))

    def _let_go(self, task: TaskState) -> None:
        task.send_done = True
        for image in task.images:
            image.holders -= 1
            if image.status == RESOLVED:
                self.release(image)


def _forget(task: TaskState) -> None:
    for image in task.images:
        if task in image.tasks:
            image.tasks.remove(task)
