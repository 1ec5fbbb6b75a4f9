"""The ranks of a coordinator at the start and the end, as a state machine without I/O.

`worker_group` asks the ranks, hands over what has come and the time, and carries the actions out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from collage_mpi.core.states import table
from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, UsageError
from collage_mpi.job.messages import Bye, Fault, Message
from collage_mpi.system.printable import numbered

GREETED, HERE, WELCOMED, UNABLE, READY = "greeted", "here", "welcomed", "unable", "ready"
MEASURING, WORKING, DONE, STOPPED = "measuring", "working", "done", "stopped"
PARTED, STUCK, LOST = "parted", "stuck", "lost"

ENDS = {"stop": STOPPED, "gone": LOST}
# Most events are control messages. "late": the answer has not come in time. "gone": the rank is
# lost, or is given up. "shards", which some welcomes follow, changes nothing.
MEMBER = table(
    {
        GREETED: {"here": HERE, "shards": GREETED, "welcome": WELCOMED, **ENDS},
        HERE: {"shards": HERE, "welcome": WELCOMED, **ENDS},
        WELCOMED: {"hello": READY, "fault": UNABLE, **ENDS},
        UNABLE: ENDS,
        READY: {"measure": MEASURING, "start": WORKING, "end": DONE, **ENDS},
        MEASURING: {"measured": READY, **ENDS},
        WORKING: {"end": DONE, "release": DONE, **ENDS},
        DONE: {"shards": DONE, "welcome": WELCOMED, **ENDS},
        STOPPED: {"bye": PARTED, "late": STUCK, "gone": LOST},
        PARTED: {},
        STUCK: {},
        LOST: {},
    }
)
OVER = frozenset({PARTED, STUCK, LOST})
# How an error message names the message that a rank owes in a state.
OWED = {
    GREETED: "sign of life",
    WELCOMED: "hello",
    MEASURING: "service time of its network",
}
_FAULTS = {int(error.exit_code): error for error in (UsageError, EnvironmentFault, DataFault)}


class Asked(NamedTuple):
    """Ranks are to be told something.

    Attributes:
        told: rank -> messages in order.
        limits_s: rank -> how long its answer is awaited; for no rank if no answer is expected.
        keep_going: whether ranks without an answer are given up, or else the job.
    """

    told: Mapping[int, Sequence[Message]]
    limits_s: Mapping[int, float]
    keep_going: bool = False


class Heard(NamedTuple):
    """A control message has come from a rank."""

    rank: int
    message: Message


class Gone(NamedTuple):
    """A rank is lost, or has left."""

    rank: int


class Tell(NamedTuple):
    """Send a control message."""

    rank: int
    message: Message


class GiveUp(NamedTuple):
    """A rank cannot take part, and counts as lost."""

    rank: int
    why: str


class GroupSteps:
    """Follows each rank from the greeting to its last word.

    Attributes:
        states: rank -> one of `MEMBER`.
        awaited: ranks that owe an answer -> when it is late.
        answers: those to what was asked last, by rank.
    """

    def __init__(self, ranks: Iterable[int]) -> None:
        self.states = dict.fromkeys(ranks, GREETED)
        self.awaited: dict[int, int] = {}
        self.answers: dict[int, Message] = {}
        self._faults: dict[int, CollageError] = {}
        self._reasons: dict[int, str] = {}  # rank -> why it is given up when all have answered
        self._limits_s: Mapping[int, float] = {}
        self._keep_going = False

    def step(self, now_ns: int, events: Iterable[Asked | Heard | Gone] = ()) -> list[Tell | GiveUp]:
        """Take events in, and find out whose time is over.

        Raises:
            CollageError: a rank cannot work, or is late, and the job must not go on without it; or
                no rank can work.
            IllegalMove: a message cannot come in this state.
        """
        actions: list[Tell | GiveUp] = []
        for event in events:
            match event:
                case Asked():
                    actions += self._ask(event, now_ns)
                case Heard(rank, message):
                    self._hear(rank, message)
                case Gone(rank):
                    self.awaited.pop(rank, None)
                    if self.states[rank] not in OVER:
                        self._move(rank, "gone")
        self._note_late(now_ns)
        if not self.awaited:
            actions += self._without_some()
        return actions

    def _move(self, rank: int, event: str) -> None:
        self.states[rank] = MEMBER[self.states[rank]][event]

    def _ask(self, asked: Asked, now_ns: int) -> list[Tell]:
        for rank, told in asked.told.items():
            for message in told:
                self._move(rank, _name(message))
        self.answers, self._faults, self._reasons = {}, {}, {}
        self._limits_s, self._keep_going = asked.limits_s, asked.keep_going
        self.awaited = {rank: now_ns + round(s * 1e9) for rank, s in asked.limits_s.items()}
        return [Tell(rank, each) for rank, told in asked.told.items() for each in told]

    def _hear(self, rank: int, message: Message) -> None:
        state = self.states[rank]
        if state in OVER or (state == STOPPED and not isinstance(message, Bye)):
            return  # it comes too late
        self._move(rank, _name(message))
        self.awaited.pop(rank, None)
        if not isinstance(message, Fault):
            self.answers[rank] = message
            return
        kind = _FAULTS.get(message.exit_code, EnvironmentFault)
        fault = kind(f"rank {rank}: {message.message}")
        if not self._keep_going:
            raise fault
        self._faults[rank], self._reasons[rank] = fault, f"it cannot work: {fault}"

    def _note_late(self, now_ns: int) -> None:
        late = sorted(rank for rank, until_ns in self.awaited.items() if now_ns > until_ns)
        states = {rank: self.states[rank] for rank in late}
        for rank, state in states.items():
            del self.awaited[rank]
            if state == STOPPED:
                self._move(rank, "late")
            elif self._keep_going:
                self._reasons[rank] = f"no {OWED[state]} within {self._limits_s[rank]:g} s"
            else:
                hint = "are their hosts up, and can they read the weights?"
                if state == MEASURING:
                    hint = "the network is too slow there, or the host is busy with other work"
                raise EnvironmentFault(
                    f"no {OWED[state]} from {numbered('rank', late)} within "
                    f"{self._limits_s[rank]:g} s; {hint}"
                )

    def _without_some(self) -> list[GiveUp]:
        """Give up the ranks that cannot take part. A fault is that of a rank alone unless all
        ranks have one."""
        if self._faults and not self.answers:
            raise next(iter(self._faults.values()))
        given_up = [GiveUp(*each) for each in sorted(self._reasons.items())]
        for rank, _ in given_up:
            self._move(rank, "gone")
        self._faults, self._reasons = {}, {}
        return given_up


def _name(message: Message) -> str:
    return type(message).__name__.lower()
