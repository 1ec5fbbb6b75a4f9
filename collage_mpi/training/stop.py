"""Stops a training run after the current step when a signal comes."""

from __future__ import annotations

import signal
from types import FrameType

from collage_mpi.errors import CollageError, ExitCode
from collage_mpi.system.process_tree import STOP_SIGNALS


class TrainingStopped(CollageError):
    """A signal came. The finished steps are in the checkpoint."""

    exit_code = ExitCode.INCOMPLETE


class StopSignals:
    """Context manager; `reason` names the signal that came, if any.

    A second Ctrl-C ends the process at once, as without this.
    """

    def __init__(self) -> None:
        self.reason: str | None = None

    def __enter__(self) -> StopSignals:
        self._before = {
            number: signal.signal(number, self._caught) or signal.SIG_DFL for number in STOP_SIGNALS
        }
        return self

    def __exit__(self, *raised: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self.reason = signal.Signals(number).name
        signal.signal(signal.SIGINT, self._before[signal.SIGINT])
