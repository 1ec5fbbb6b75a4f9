"""Stops a training run after the current step when a signal comes, and goes on from the checkpoint
that it left. Checkpoints are written atomically, and a resumed run is checked to have the same
settings and data.
"""

from __future__ import annotations

import io
import json
import signal
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, ExitCode, UsageError
from collage_mpi.models.foreign_weights import load_tensors
from collage_mpi.system.files import save_file
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


VERSION = 2


def save_checkpoint(path: Path, state: dict[str, Any], progress: dict[str, Any]) -> None:
    """Write tensors and progress. If the process is killed, the previous file stays complete.

    Args:
        state: name -> state dict, of tensors and plain values.
        progress: plain values: the identity of the run, next step, history, seconds.
    """
    buffer = io.BytesIO()
    torch.save({**state, "version": VERSION, "progress": json.dumps(progress)}, buffer)
    save_file(path, buffer.getvalue())


def load_checkpoint(path: Path, identity: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The (state, progress) that `save_checkpoint` wrote.

    Args:
        identity: settings and data of this run; the checkpoint must have the same.

    Raises:
        EnvironmentFault: there is no such file.
        DataFault: the file is not a checkpoint, or is damaged.
        UsageError: the checkpoint belongs to a run with other settings.
    """
    try:
        state = load_tensors(path)
    except EnvironmentFault as error:
        raise EnvironmentFault(f"checkpoint {error}; leave out --resume") from error
    except DataFault as error:
        raise DataFault(f"{path} is not a checkpoint, or damaged; leave out --resume") from error
    if not isinstance(state, dict) or state.get("version") != VERSION:
        raise DataFault(f"{path} is not a checkpoint of this version; leave out --resume")
    try:
        progress = json.loads(state["progress"])
        saved = dict(progress["identity"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise DataFault(f"{path} is not a checkpoint, or damaged; leave out --resume") from error
    _same_run(path, saved, json.loads(json.dumps(identity)))
    return state, progress


def _same_run(path: Path, saved: dict[str, Any], now: dict[str, Any]) -> None:
    changed = [
        f"{key}: {saved.get(key)!r:.60} then, {now.get(key)!r:.60} now"
        for key in sorted(saved.keys() | now.keys())
        if saved.get(key) != now.get(key)
    ]
    if changed:
        raise UsageError(
            f"checkpoint {path} is of another run ({'; '.join(changed)}): give the same "
            "settings, or another --checkpoint, or leave out --resume"
        )
