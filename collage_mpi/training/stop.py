"""How a training is stopped from outside: a signal, noted, acted on after the step.

Owns: which signals count, and the error that a stopped training ends with.
Does not know: steps, checkpoints, other processes.
"""

from __future__ import annotations

import signal
from types import FrameType

from collage_mpi.errors import CollageError, ExitCode
from collage_mpi.system.process_tree import STOP_SIGNALS


class TrainingStopped(CollageError):
    """A signal came; what is done is in the checkpoint."""

    exit_code = ExitCode.INCOMPLETE


class StopSignals:
    """Context manager; `reason` says which signal came, if one did.

    A second Ctrl-C does what it did before: it ends the process at once.
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
