"""What the core is told (events) and what it asks for (actions).

All events of a step happen at its time. Positions are numbers of images: they only grow, and a
group is `group_size` of them. Tasks have numbers that are never used twice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from collage_mpi.rows import CELL, NOT_MEASURED

COMPLETE, COMPLETE_WITH_ERRORS, INCOMPLETE = "complete", "complete_with_errors", "incomplete"
NONE = np.empty(0, np.int64)
LOST_REASON = "it could not be read"  # of an image whose reason had no room in the message


# ---- events -----------------------------------------------------------------


class RankReady(NamedTuple):
    """A rank has loaded its networks and accepts `credit` messages at a time.

    Equal `like`: in equal batches the exact networks of such ranks give equal bits.
    """

    rank: int
    kinds: frozenset[str]
    host: str
    credit: int
    like: str = ""


class RankSilent(NamedTuple):
    """The rank has not answered for too long. It may still answer, and then takes work again."""

    rank: int
    why: str


class RankLost(NamedTuple):
    """The rank is gone for good: the end of all its tasks."""

    rank: int
    why: str


class RankUnfit(NamedTuple):
    """The rank can no longer do tasks of this kind, but those of its other kinds."""

    rank: int
    kind: str


class Arrived(NamedTuple):
    """Images have arrived, at neighbouring positions from `Core.next` on, or from `first` on if
    that is higher.

    Attributes:
        images: (n,) of PLACED.
        t0_ns: the time from which their latency counts (C3), or (n,) int64.
        read_ns: time from the request for them until they were read.
        drawn: (n,) bool, which images are audited; None: none is.
        faults: place in `images` -> why its row could not be read. Such an image keeps its cell, is
            not sent, and is an error row at once.
    """

    first: int
    images: np.ndarray
    t0_ns: int | np.ndarray
    read_ns: int = 0
    drawn: np.ndarray | None = None
    faults: Mapping[int, str] = {}


class InputPaused(NamedTuple):
    """As far as is known no further image will arrive: an incomplete group is closed, and the end
    game begins. An image that does arrive ends the pause."""


class InputClosed(NamedTuple):
    """No further image will arrive."""


class StopRequested(NamedTuple):
    """Send nothing more, wait a short time for answers under way, and finish as incomplete."""

    reason: str


class Left(NamedTuple):
    """A message with these tasks has left.

    Attributes:
        at_ns: when, which may be before the step in which it is told.
        encode_ns: time for making the picture of each task.
    """

    tasks: Sequence[int]
    at_ns: int
    encode_ns: Sequence[int]


class Answered(NamedTuple):
    """The rank has answered tasks, which end.

    Attributes:
        cells: (n,) of CELL, one for each image of the tasks, in order. A cell is present, absent
            (the network gave no answer for it), or says that its image could not be read.
        compute_ns: time that the network took, for the whole message.
        measured: what the rank measured, as the bytes of a MEASURED.
        decode_ns: time that rank 0 took to unpack the message.
        reasons: a line for each cell that could not be read, or for the first ones; the others
            have LOST_REASON.
        vectors: (n, floats) float32, what is kept of each image; None if nothing is.
        at_ns: when the answer was received, if that was before the step (C3).
    """

    tasks: Sequence[int]
    rank: int
    cells: np.ndarray
    compute_ns: int = 0
    measured: bytes = NOT_MEASURED
    decode_ns: int = 0
    reasons: Sequence[str] = ()
    vectors: np.ndarray | None = None
    at_ns: int = 0


class Failed(NamedTuple):
    """The rank could not do the task, which ends. `cells`: (0,), or which images it could not
    read."""

    task: int
    rank: int
    reason: str
    cells: np.ndarray = np.empty(0, CELL)
    reasons: Sequence[str] = ()
    decode_ns: int = 0


class Skipped(NamedTuple):
    """The rank saw the Cancel in time and did not begin the task, which ends."""

    task: int
    rank: int


class Stages(NamedTuple):
    """From now on only these first networks of a cascade are asked.

    Attributes:
        kinds: of networks; without any, the exact network gets all images.
        confidence: an answer of theirs is sure if it has at least this score. None: only drawn
            images are put to them, and none of their answers is sure.
    """

    kinds: Sequence[str]
    confidence: float | None


RankEvent = RankReady | RankSilent | RankLost | RankUnfit
InputEvent = Arrived | InputPaused | InputClosed | StopRequested | Stages
Event = RankEvent | InputEvent | Left | Answered | Failed | Skipped


# ---- actions ----------------------------------------------------------------


class Admit(NamedTuple):
    """Ask for so many further images (back-pressure: no image comes unasked)."""

    images: int


class Send(NamedTuple):
    """Send these tasks, all of one kind and to one rank, in one message."""

    rank: int
    kind: str
    tasks: Sequence[Any]  # of Task


class Cancel(NamedTuple):
    """Advisory: this task's answer is no longer needed."""

    task: int
    rank: int


class Resolved(NamedTuple):
    """The images at these positions, (n,) int64, have their outcome. The pixels of those at `held`,
    (k,) int64, may be needed once more; the others' are not."""

    positions: np.ndarray
    held: np.ndarray = NONE


class Released(NamedTuple):
    """The pixels of these resolved images, (n,) int64, are not needed any more."""

    positions: np.ndarray


class Differed(NamedTuple):
    """Two ranks, `ranks`, have answered an image differently.

    Attributes:
        image: its shard and row.
        wrong: the rank that a third one contradicts; None if that cannot be said.
        written: whether its answer is in a row that did not wait so long.
    """

    position: int
    image: tuple[int, int]
    ranks: Sequence[int]
    wrong: int | None
    written: bool


class Judged(NamedTuple):
    """A drawn image has its outcome.

    Attributes:
        answers: kind of a first network that has answered, as the exact one has -> its score, and
            whether it is changed.
        accepted: whether a first network's answer is the outcome.
    """

    position: int
    answers: Mapping[str, tuple[float, bool]]
    accepted: bool


class Retire(NamedTuple):
    """The rank failed too often and gets no more work. Do not stop it: it may be recalled."""

    rank: int
    reason: str


class Recall(NamedTuple):
    """The retired rank gets work again, because no other rank of a kind is left."""

    rank: int


class Finish(NamedTuple):
    """The job is over. `status` is COMPLETE, COMPLETE_WITH_ERRORS or INCOMPLETE."""

    status: str
    reason: str


Action = Admit | Send | Cancel | Resolved | Released | Differed | Judged | Retire | Recall | Finish
