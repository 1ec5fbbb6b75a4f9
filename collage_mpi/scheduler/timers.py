"""Timers by number: what is to be done when, and what no longer needs doing.

Owns: their ids, the calls behind them, which belong to a group.
Does not know: what the calls do.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from collage_mpi.scheduler import events as ev
from collage_mpi.scheduler.state import GroupState, Turn


class Timers:
    """Asks for timers through `turn.actions`; a stale one changes nothing."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._calls: dict[int, Callable[[], None]] = {}
        self._next = 0

    def set(self, at_ns: int, call: Callable[[], None], group: GroupState | None = None) -> int:
        """Call at or after `at_ns`; a group's timers end with it. Its id."""
        timer = self._next
        self._next += 1
        self._calls[timer] = call
        if group is not None:
            group.timers.add(timer)
        self._turn.actions.append(ev.SetTimer(timer, max(at_ns, self._turn.now_ns)))
        return timer

    def start(self, delay_ns: int, call: Callable[[], None]) -> Callable[[], None]:
        """Call `delay_ns` from now; the result cancels it."""
        return partial(self.cancel, self.set(self._turn.now_ns + delay_ns, call))

    def cancel(self, timer: int) -> None:
        """It need not fire, if it has not yet."""
        if self._calls.pop(timer, None) is not None:
            self._turn.actions.append(ev.CancelTimer(timer))

    def drop(self, group: GroupState) -> None:
        """The group is done: its timers need not fire."""
        for timer in sorted(group.timers):
            self.cancel(timer)
        group.timers.clear()

    def fire(self, timer: int) -> None:
        """It is due."""
        call = self._calls.pop(timer, None)
        if call is not None:
            call()
