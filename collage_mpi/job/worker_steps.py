"""A worker rank as a state machine without I/O: `step(now_ns, events)` returns actions.

An adapter (`worker`, over MPI) hands over what has happened and carries the actions out in order.
What an action yields is an event of the next step. A step takes at most one control message.

Events are control messages of rank 0, messages that this rank has made while it carried out an
action, and the records below. Actions are control messages of rank 0, which are to be carried out,
messages of this rank, which are to be sent, and the records below.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from collage_mpi.core.states import table
from collage_mpi.job import messages
from collage_mpi.job.messages import Message
from collage_mpi.models.info import MOST_BEGUN

NEW, LOADING, READY, MEASURING, WORKING = "new", "loading", "ready", "measuring", "working"
OVER, PARTING, ENDED = "over", "parting", "ended"

# Most events are control messages. "late": Leave has not come. The loss of the coordinator ends a
# rank in every state.
WORKER = table(
    {
        NEW: {"rank0": NEW, "shards": NEW, "welcome": LOADING, "stop": PARTING},
        LOADING: {"hello": READY, "fault": OVER},
        READY: {"measure": MEASURING, "start": WORKING, "end": OVER, "stop": PARTING},
        MEASURING: {"measured": READY},
        WORKING: {"changed": WORKING, "end": OVER, "release": OVER, "stop": PARTING},
        OVER: {"shards": OVER, "welcome": LOADING, "stop": PARTING},
        PARTING: {"leave": ENDED, "late": ENDED},
        ENDED: {},
    }
)

# ---- events ------------------------------------------------------------------------


class Came(NamedTuple):
    """A message of tasks has come.

    Attributes:
        batch: the adapter's name for the message, which actions then use.
        tasks: numbers of its tasks.
        read: whether the inputs are at hand, and need no reading.
    """

    batch: Any
    tasks: tuple[int, ...]
    read: bool


class Cancelled(NamedTuple):
    """The answers to these tasks are no longer needed."""

    tasks: tuple[int, ...]


class InputsRead(NamedTuple):
    """The inputs of a batch are at hand."""

    batch: Any


class Computed(NamedTuple):
    """The network has finished a batch."""

    batch: Any


class Rank0Gone(NamedTuple):
    """The coordinator is lost."""


Event = Message | Came | Cancelled | InputsRead | Computed | Rank0Gone

# ---- actions -----------------------------------------------------------------------


class Read(NamedTuple):
    """Begin to read the inputs of a batch."""

    batch: Any


class Begin(NamedTuple):
    """Begin to compute a batch without its `skipped` tasks, when its inputs are at hand."""

    batch: Any
    skipped: tuple[int, ...]


class Answer(NamedTuple):
    """Send the answers to a batch, when they are computed, and say which tasks were skipped."""

    batch: Any
    skipped: tuple[int, ...]


Action = Message | Read | Begin | Answer


@dataclass(eq=False, slots=True)
class _Batch:
    name: Any
    tasks: tuple[int, ...]
    read: bool
    skipped: tuple[int, ...] = ()
    computed: bool = False


class WorkerSteps:
    """Decides what a worker does next.

    Attributes:
        state: one of `WORKER`.
        exit_code: that rank 0 has told; None if rank 0 was lost before.
        queue: batches that wait.
        begun: batches that the network has; several only while a device computes the first.
        open: tasks that are queued or begun.
        cancelled: of `open`, the cancelled tasks.
    """

    def __init__(self, *, leaves_alone: bool) -> None:
        """`leaves_alone`: the rank may end before the others; see `messages.Leave`."""
        self.state = NEW
        self.exit_code: int | None = None
        self.queue: deque[_Batch] = deque()
        self.begun: deque[_Batch] = deque()
        self.open: set[int] = set()
        self.cancelled: set[int] = set()
        self._leaves_alone = leaves_alone
        self._most_begun = 1
        self._leave_by_ns = 0
        self._actions: list[Action] = []

    def step(self, now_ns: int, events: Iterable[Event] = ()) -> list[Action]:
        """Take events in. If nothing follows from them, do one piece of work that waits.

        Raises:
            IllegalMove: a message cannot come in this state.
        """
        actions: list[Action] = []
        self._actions = actions
        for event in events:
            if self.state != ENDED:
                self._take(event, now_ns)
        if self.state == PARTING and now_ns > self._leave_by_ns:
            self._move("late")
        elif self.state == WORKING and not actions:
            self._work()
        return actions

    def _take(self, event: Event, now_ns: int) -> None:
        match event:
            case Came(batch, tasks, read):
                if self.state in (READY, MEASURING, WORKING):
                    self.open.update(tasks)
                    self.queue.append(_Batch(batch, tasks, read))
                    if not read:
                        self._actions.append(Read(batch))
            case Cancelled(tasks):
                # A cancel comes after its task on the same channel, so other tasks have ended.
                self.cancelled |= self.open.intersection(tasks)
            case InputsRead(batch):
                for each in self.queue:
                    each.read |= each.name == batch
            case Computed(batch):
                for each in self.begun:
                    each.computed |= each.name == batch
                self._answer_computed()
            case Rank0Gone():
                self.state = ENDED
            case _:
                self._hear(event, now_ns)

    def _hear(self, message: Message, now_ns: int) -> None:
        """Take in a message of rank 0, or of this rank."""
        if isinstance(message, messages.End | messages.Release | messages.Stop):
            while self.begun:
                self._answer()
            self.queue.clear()  # it was cancelled
            self.open.clear()
            self.cancelled.clear()
        self._move(type(message).__name__.lower())
        if self.state != ENDED:
            self._actions.append(message)
        if isinstance(message, messages.Rank0):
            self._actions.append(messages.Here())
        elif isinstance(message, messages.Welcome):
            self._most_begun = min(MOST_BEGUN, message.credit)
        elif isinstance(message, messages.Stop):
            self._actions += messages.Bye(), messages.End()
            self.exit_code = message.exit_code
            self._leave_by_ns = now_ns + round(messages.LEAVE_WAIT_S * 1e9)
            if self._leaves_alone:
                self._move("leave")

    def _move(self, event: str) -> None:
        self.state = WORKER[self.state][event]

    def _work(self) -> None:
        """Begin the next batch. If that is not possible yet, answer the first, which is awaited."""
        full = len(self.begun) >= self._most_begun
        if self.queue and (not self.begun or (self.queue[0].read and not full)):
            batch = self.queue.popleft()
            if self.cancelled:
                batch.skipped = tuple(task for task in batch.tasks if task in self.cancelled)
            batch.computed = len(batch.skipped) == len(batch.tasks)
            self.begun.append(batch)
            if not batch.computed:
                self._actions.append(Begin(batch.name, batch.skipped))
        elif full:
            self._answer()
        self._answer_computed()

    def _answer_computed(self) -> None:
        while self.begun and self.begun[0].computed:
            self._answer()

    def _answer(self) -> None:
        batch = self.begun.popleft()
        self._actions.append(Answer(batch.name, batch.skipped))
        self.open.difference_update(batch.tasks)
        self.cancelled.difference_update(batch.tasks)
