"""The states of images as bits, of tasks and ranks as tables: state -> event -> next state.

A status changes only by a look-up here, so a transition that is not in the table raises
IllegalMove. docs/architecture.md draws the tables.
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


# Bits of an image's state. Unresolved images are OPEN. KEPT: an answer is kept; with DONE, its row
# waits. TROUBLED: something is remembered of it (`retries`). AWAITED: it is resolved, and another
# answer may come that is compared with its own (`checks`).
OPEN, DONE, DRAWN, KEPT, DECIDED, TROUBLED, AWAITED = (1 << bit for bit in range(7))

READY, SUSPECTED, RETIRED, LOST = "ready", "suspected", "retired", "lost"
SUSPECTED_RETIRED = "suspected_retired"
SILENT = (SUSPECTED, SUSPECTED_RETIRED)
RANK = table(
    {
        READY: {"silent": SUSPECTED, "failing": RETIRED, "gone": LOST},
        SUSPECTED: {"heard": READY, "gone": LOST},
        RETIRED: {"recalled": READY, "silent": SUSPECTED_RETIRED, "gone": LOST},
        SUSPECTED_RETIRED: {"heard": RETIRED, "gone": LOST},
        LOST: {},
    }
)

SENT, CANCELLED, ENDED = "sent", "cancelled", "ended"
_ENDS = {"answered": ENDED, "failed": ENDED, "lost": ENDED, "unfinished": ENDED}
TASK = table(
    {
        SENT: {**_ENDS, "moot": CANCELLED},
        CANCELLED: {**_ENDS, "skipped": ENDED},
        ENDED: {},
    }
)
