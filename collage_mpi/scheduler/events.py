"""The scheduler's vocabulary: the events it is fed and the actions it returns.

Ids (image, group, task, timer) are integers that only grow and are never
reused. Every event carries `now_ns`, which never decreases.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple


class Score(NamedTuple):
    """What a network says of one image: class index and its probability, 0..1."""

    label: int
    score: float


class Item(NamedTuple):
    """One image of a task and the cell of its group that it stands in."""

    image: int
    cell: int


class Items(Sequence[Item]):
    """Images with consecutive numbers in consecutive cells, each made when it is asked for."""

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
    """Why a rank that reads its images itself has not read one; `of_input` if its row is bad,
    and not what the rank's host has of the whole file."""

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
    """An image entered; its latency counts from `intended_ns` (C3).

    With a `fault` (its row could not be read) it keeps its place in the group, is
    sent nowhere and resolves as an error at once.

    `group` is the number that its group has in a job of several teams, which closes one of a
    lower number that is being filled; None: groups are counted as they are filled.

    The single network classifies a `drawn` image too, whatever a collage says of it.

    `length` images with consecutive numbers have arrived; `image` is the first. They are one run
    until something happens to some of them only.
    """

    now_ns: int
    image: int
    intended_ns: int
    fault: str = ""
    group: int | None = None
    drawn: bool = False
    length: int = 1


class InputPaused(NamedTuple):
    """No image is left to come, as far as is known. An image that comes later ends the pause.

    Tasks that wait for others of their batch leave, and idle ranks copy what is out.
    """

    now_ns: int


class InputClosed(NamedTuple):
    """No further image will arrive."""

    now_ns: int


class StopRequested(NamedTuple):
    """Stop dispatching, take what is under way, finish as incomplete."""

    now_ns: int
    reason: str


class SendDone(NamedTuple):
    """The message of these tasks has left rank 0: their images are no longer needed for them."""

    now_ns: int
    tasks: tuple[int, ...]


class Answered(NamedTuple):
    """Terminal: one record per item of the task, None where the network gave none.

    `evidence` is what a scheme decodes other images from, opaque here: of a parity task one
    thing, of another one an item. None where no scheme needs it. `unread`, one an item where
    there is any: images that the answer is not of, since their cells were blank.
    """

    now_ns: int
    task: int
    rank: int
    cells: Sequence[Score | None]
    compute_ns: int
    held_ns: int
    evidence: Any = None
    unread: tuple[Unread | None, ...] = ()


class Failed(NamedTuple):
    """Terminal: the rank could not do the task.

    `unread`, one an item, if it was for want of images.
    """

    now_ns: int
    task: int
    rank: int
    reason: str
    unread: tuple[Unread | None, ...] = ()

    @property
    def of_input(self) -> bool:
        """Whether only rows are at fault: that is held against no rank."""
        return bool(self.unread) and all(why.of_input for why in self.unread if why)


class Skipped(NamedTuple):
    """Terminal: the rank saw the Cancel in time and did not start the task."""

    now_ns: int
    task: int
    rank: int


class RankSuspected(NamedTuple):
    """The rank has been silent for too long; it may still answer and recover."""

    now_ns: int
    rank: int
    why: str


class RankLost(NamedTuple):
    """The rank is gone for good: terminal for all its tasks."""

    now_ns: int
    rank: int
    why: str


class Threshold(NamedTuple):
    """From now on a cell of at least this score is sure; None: nothing is collaged any more."""

    now_ns: int
    confidence: float | None


class TimerFired(NamedTuple):
    """A timer asked for with SetTimer is due; a stale one changes nothing."""

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
    """The driver may let `images` further images arrive (back-pressure is pull)."""

    images: int


class Send(NamedTuple):
    """Send the items to the rank for the network named by `kind`.

    `bundle`: (group, cell there) of each item, where they may be of several groups; an item's cell
    is then its place in the task.
    """

    task: int
    rank: int
    kind: str
    items: Sequence[Item]
    group: int
    attempt: int
    bundle: tuple[tuple[int, int], ...] = ()


class SendBatch(NamedTuple):
    """Send these, all of one kind and to one rank, in one message: the rank runs them at once.

    Each task has its own terminal event.
    """

    sends: tuple[Send, ...]


class Cancel(NamedTuple):
    """Advisory: nobody waits for this task's answer any more."""

    task: int
    rank: int


class Resolve(NamedTuple):
    """The image's one and only outcome.

    `tasks` are the tasks it was decoded from (several for a parity scheme, none
    for an error), `score` the accepted record, None exactly when outcome is
    "error".

    Of a drawn image that a collage has answered, `audited` is DONE if both networks did, FAILED if
    the collage's answer was accepted and no single rank could answer; `other` is the record that
    was not accepted. `decided_ns`: when the accepted answer counted, if that was before now.
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
    """The outcome of a run of images, of which `image` is the first: one score an image, all
    accepted from one task.

    `cell` is that of the first image.
    """

    image: int
    source: str
    task: int
    group: int
    cell: int
    scores: Sequence[Score]


class SetTimer(NamedTuple):
    """Feed TimerFired(timer) at or after `at_ns`."""

    timer: int
    at_ns: int


class CancelTimer(NamedTuple):
    """The timer is no longer needed."""

    timer: int


class Retire(NamedTuple):
    """The rank is sent nothing more, unless it is recalled: it must not be stopped."""

    rank: int
    reason: str


class Recall(NamedTuple):
    """The retired rank works again: it has become the last of a kind."""

    rank: int


class Release(NamedTuple):
    """No live task needs the images' pixels: the driver may drop them. Last of what is to do."""

    images: tuple[int, ...]


class Finish(NamedTuple):
    """The job is over: complete, complete_with_errors or incomplete."""

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

DONE, FAILED = "done", "failed"  # of an audit

COMPLETE = "complete"
COMPLETE_WITH_ERRORS = "complete_with_errors"
INCOMPLETE = "incomplete"
