"""The scheduler's interface: the events that it is fed and the actions that it returns.

Ids (image, group, task, timer) are integers that only grow and are never reused. Every event
carries `now_ns`, the time on one monotonic clock, which never decreases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple


class Score(NamedTuple):
    """What a network says of one image: its class (index) and the class's probability, 0..1."""

    label: int
    score: float


class Item(NamedTuple):
    """One image of a task, and the image's cell in its group."""

    image: int
    cell: int


class Items(Sequence[Item]):
    """Items of images with consecutive numbers in consecutive cells, each made when asked for."""

    __slots__ = ("cells", "images")

    def __init__(self, image: int, cell: int, count: int) -> None:
        self.images, self.cells = range(image, image + count), range(cell, cell + count)

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Item]:
        return map(Item, self.images, self.cells)

    def __getitem__(self, place: Any) -> Any:
        if isinstance(place, slice):
            return tuple(self)[place]
        return Item(self.images[place], self.cells[place])

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and [*self] == [*other]


class Unread(NamedTuple):
    """Why a rank that reads its images itself could not read one.

    Attributes:
        reason: one line.
        of_input: the image's row is bad. False if the whole file cannot be read on the rank's host.
    """

    reason: str
    of_input: bool


# ---- events -----------------------------------------------------------------


class RankReady(NamedTuple):
    """A rank has loaded its networks and accepts `credit` messages at a time."""

    now_ns: int
    rank: int
    kinds: frozenset[str]
    host: str
    credit: int


class ImageArrived(NamedTuple):
    """An image has arrived, or a run of images with consecutive numbers.

    Attributes:
        image: its number, or the number of the run's first image.
        intended_ns: its latency counts from this time (C3).
        fault: why its row could not be read. The image then keeps its place in the group, is not
            sent, and resolves as an error at once.
        group: the group's number in a job of several teams. An open group with a lower number is
            closed. None: groups are numbered as they are filled.
        drawn: the image is audited: the single network classifies it too, whatever a collage says.
        length: images of the run. They stay one run until something happens to only some of them.
    """

    now_ns: int
    image: int
    intended_ns: int
    fault: str = ""
    group: int | None = None
    drawn: bool = False
    length: int = 1


class InputPaused(NamedTuple):
    """As far as is known, no further image will arrive. An image that does arrive ends the pause.

    Incomplete batches leave, and the end game begins.
    """

    now_ns: int


class InputClosed(NamedTuple):
    """No further image will arrive."""

    now_ns: int


class StopRequested(NamedTuple):
    """Send nothing more, wait a short time for answers under way, and finish as incomplete."""

    now_ns: int
    reason: str


class SendDone(NamedTuple):
    """The message with these tasks has left rank 0, so the tasks no longer need their pixels."""

    now_ns: int
    tasks: tuple[int, ...]


class Answered(NamedTuple):
    """Terminal: the rank has answered the task.

    Attributes:
        cells: one score for each item of the task; None if the network gave no answer for it.
        compute_ns: time that the network took for the task.
        unread: empty, or one entry for each item. The entry of an image that could not be read
            says why; its cell was blank, so its score means nothing.
    """

    now_ns: int
    task: int
    rank: int
    cells: Sequence[Score | None]
    compute_ns: int
    unread: tuple[Unread | None, ...] = ()


class Failed(NamedTuple):
    """Terminal: the rank could not do the task.

    Attributes:
        unread: empty, or one entry for each item, if images could not be read.
    """

    now_ns: int
    task: int
    rank: int
    reason: str
    unread: tuple[Unread | None, ...] = ()

    @property
    def of_input(self) -> bool:
        """Whether only bad rows made the task fail. This does not count against the rank."""
        return bool(self.unread) and all(why.of_input for why in self.unread if why)


class Skipped(NamedTuple):
    """Terminal: the rank saw the Cancel in time and did not start the task."""

    now_ns: int
    task: int
    rank: int


class RankSuspected(NamedTuple):
    """The rank has been silent for too long. It may still answer and recover."""

    now_ns: int
    rank: int
    why: str


class RankLost(NamedTuple):
    """The rank is gone for good: terminal for all its tasks."""

    now_ns: int
    rank: int
    why: str


class Threshold(NamedTuple):
    """The confidence threshold from now on: a cell with at least this score counts.

    None: no further image is put into a collage.
    """

    now_ns: int
    confidence: float | None


class TimerFired(NamedTuple):
    """A timer that was set by SetTimer is due. A cancelled timer changes nothing."""

    now_ns: int
    timer: int


Event = (
    RankReady
    | ImageArrived
    | InputPaused
    | InputClosed
    | StopRequested
    | SendDone
    | Answered
    | Failed
    | Skipped
    | RankSuspected
    | RankLost
    | Threshold
    | TimerFired
)


# ---- actions ----------------------------------------------------------------


class Admit(NamedTuple):
    """Ask the driver for `images` further images (back-pressure: no image comes unasked)."""

    images: int


class Send(NamedTuple):
    """Send the items to the rank, for its network of this `kind`.

    Attributes:
        bundle: (group, cell in that group) for each item, if the task may hold images of several
            groups. An item's cell is then its place in the task. Otherwise empty.
    """

    task: int
    rank: int
    kind: str
    items: Sequence[Item]
    group: int
    attempt: int
    bundle: tuple[tuple[int, int], ...] = ()


class SendBatch(NamedTuple):
    """Send these tasks, all of one kind and to one rank, in one message.

    The rank computes them as one batch. Each task has its own terminal event.
    """

    sends: tuple[Send, ...]


class Cancel(NamedTuple):
    """Advisory: this task's answer is no longer needed."""

    task: int
    rank: int


class Resolve(NamedTuple):
    """The image's only outcome.

    Attributes:
        source: what resolved it: a kind of network, another reason for the task, or "error".
        tasks: the task that answered it, or none for an error.
        score: the accepted score; None exactly if the outcome is "error".
        audited: of a drawn image that a collage has answered: DONE if both networks did, FAILED if
            no single rank could answer. Otherwise empty.
        other: the score that was not accepted, of an audited image.
        decided_ns: when the answer was accepted, if that was before now.
    """

    image: int
    source: str
    tasks: tuple[int, ...]
    group: int
    cell: int
    score: Score | None
    outcome: str
    reason: str
    audited: str = ""
    other: Score | None = None
    decided_ns: int | None = None


class ResolveRun(NamedTuple):
    """The outcome of a run of images, all accepted from one task.

    Attributes:
        image, cell: of the first image.
        scores: one for each image.
    """

    image: int
    source: str
    task: int
    group: int
    cell: int
    scores: Sequence[Score]


class SetTimer(NamedTuple):
    """Ask for TimerFired(timer) at or after `at_ns`."""

    timer: int
    at_ns: int


class CancelTimer(NamedTuple):
    """The timer is no longer needed."""

    timer: int


class Retire(NamedTuple):
    """The rank failed too often and gets no more tasks. Do not stop it: it may be recalled."""

    rank: int
    reason: str


class Recall(NamedTuple):
    """The retired rank gets tasks again, because no other ready rank of a kind is left."""

    rank: int


class Release(NamedTuple):
    """No live task needs these images' pixels, so the driver may drop them.

    Comes after all sends and outcomes that follow from the same events.
    """

    images: tuple[int, ...]


class Finish(NamedTuple):
    """The job is over. `status` is COMPLETE, COMPLETE_WITH_ERRORS or INCOMPLETE."""

    status: str
    reason: str


Action = (
    Admit
    | Send
    | SendBatch
    | Cancel
    | Resolve
    | ResolveRun
    | SetTimer
    | CancelTimer
    | Retire
    | Recall
    | Release
    | Finish
)

DONE, FAILED = "done", "failed"  # values of `Resolve.audited`

COMPLETE = "complete"
COMPLETE_WITH_ERRORS = "complete_with_errors"
INCOMPLETE = "incomplete"
