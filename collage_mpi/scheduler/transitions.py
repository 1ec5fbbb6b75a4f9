"""The state machines of a task, an image and a rank, as tables: state -> event -> next state.

The scheduler changes a status only by looking it up here (`task.status =
TASK[task.status]["leaves"]`), so that a transition that is not in the table raises IllegalMove.
docs/architecture.md draws the tables.
"""

from __future__ import annotations

from collections.abc import Mapping


class IllegalMove(Exception):
    """The event cannot happen in this state. This is a defect, never a user's mistake."""


class Moves(dict[str, str]):
    """The transitions from one state: event -> next state."""

    def __init__(self, state: str, after: Mapping[str, str]) -> None:
        super().__init__(after)
        self.state = state

    def __missing__(self, event: str) -> str:
        possible = ", ".join(self) or "nothing more"
        raise IllegalMove(f"{event!r} in state {self.state!r}; possible there: {possible}")


def table(moves: Mapping[str, Mapping[str, str]]) -> dict[str, Moves]:
    """The moves of each state."""
    return {state: Moves(state, after) for state, after in moves.items()}


# ---- a task: one send to one rank, from its making ------------------------------

WAITING, SENT, CANCELLED, DROPPED, ENDED = "waiting", "sent", "cancelled", "dropped", "ended"

TASK = table(
    {
        WAITING: {
            "leaves": SENT,
            "moot": DROPPED,  # all its images have their outcome
            "withdrawn": DROPPED,  # its rank takes no more work, or the job stops
        },
        SENT: {
            "moot": CANCELLED,  # advisory: the rank may still answer
            "answered": ENDED,
            "failed": ENDED,
            "rank lost": ENDED,
        },
        CANCELLED: {"answered": ENDED, "failed": ENDED, "skipped": ENDED, "rank lost": ENDED},
        DROPPED: {},
        ENDED: {},
    }
)

# ---- an image, from its arrival --------------------------------------------------

OPEN, RESERVED, PARKED, DEFERRED = "open", "reserved", "parked", "deferred"
RESOLVED, RELEASED = "resolved", "released"

IMAGE = table(
    {
        OPEN: {
            "held": RESERVED,  # it has an answer that counts at a later time
            "silence": PARKED,  # every rank that could resolve it is silent
            "losses": DEFERRED,  # its last attempt waits until no rank was lost for a while
            "accepted": RESOLVED,
            "given up": RESOLVED,  # an error row
        },
        RESERVED: {"accepted": RESOLVED},
        PARKED: {
            "looked at": OPEN,  # a rank has come
            "held": RESERVED,
            "losses": DEFERRED,
            "accepted": RESOLVED,
            "given up": RESOLVED,
        },
        DEFERRED: {
            "looked at": OPEN,  # no rank was lost for a while
            "held": RESERVED,
            "silence": PARKED,
            "accepted": RESOLVED,
            "given up": RESOLVED,
        },
        RESOLVED: {"let go": RELEASED},  # no task needs its pixels
        RELEASED: {},
    }
)
SETTLED = frozenset({RESOLVED, RELEASED})
ANSWERED = SETTLED | {RESERVED}  # the image needs no further task

# ---- a rank, once it was ready ---------------------------------------------------

READY, SUSPECTED, RETIRED = "ready", "suspected", "retired"
SUSPECTED_RETIRED, LOST = "suspected_retired", "lost"

RANK = table(
    {
        READY: {"silent": SUSPECTED, "failing": RETIRED, "gone": LOST},
        SUSPECTED: {"heard": READY, "gone": LOST},
        RETIRED: {"recalled": READY, "silent": SUSPECTED_RETIRED, "gone": LOST},
        SUSPECTED_RETIRED: {"heard": RETIRED, "gone": LOST},
        LOST: {},
    }
)
SILENT = frozenset({SUSPECTED, SUSPECTED_RETIRED})
