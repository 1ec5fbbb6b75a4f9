"""How far a training is: it stops after the current step when a signal comes, goes on from the
checkpoint that it left, and tells what it does: a bar on a terminal, or a line every few seconds
elsewhere, and logs with one record an epoch.

Checkpoints are written atomically, and a resumed run is checked to have the same settings and data.
Each epoch writes the whole history, so the log of a resumed run has no gap.
"""

from __future__ import annotations

import io
import json
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, ExitCode, UsageError
from collage_mpi.models.foreign_weights import load_tensors
from collage_mpi.system.files import save_file, save_records
from collage_mpi.system.process_tree import STOP_SIGNALS
from collage_mpi.system.progress import minutes


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


LINE_EVERY_S = 20.0


class TrainingProgress:
    """Context manager. Call `step` after each step, and `note` for lines that must stay visible.

    Args:
        steps: of the whole training.
        done: steps that an earlier session made.
        images_per_step: for the rate.
        quiet: show nothing, for all but one of several training processes.
    """

    def __init__(self, steps: int, done: int, images_per_step: int, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._steps, self._first, self._images = steps, done, images_per_step
        self._started = self._told = time.monotonic()
        self._bar = _bar(steps, done) if sys.stdout.isatty() and not quiet else None

    def __enter__(self) -> TrainingProgress:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *raised: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def step(self, done: int, text: str) -> None:
        """Report that `done` steps are made; `text` holds epoch, loss and accuracy."""
        if self._quiet:
            return
        now = time.monotonic()
        rate = (done - self._first) / max(1e-9, now - self._started)  # steps a second
        line = (
            f"{text}, {rate * self._images:.0f} images/s, "
            f"{minutes((self._steps - done) / max(1e-9, rate))} left"
        )
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, description=line)
        elif now - self._told >= LINE_EVERY_S or done == self._steps:
            self._told = now
            print(f"step {done}/{self._steps}: {line}", flush=True)

    def note(self, text: str) -> None:
        """Print a line that stays."""
        if self._quiet:
            return
        if self._bar is not None:
            self._bar.console.print(text)
        else:
            print(text, flush=True)


def _bar(steps: int, done: int):  # type: ignore[no-untyped-def]  # rich is imported only here
    from rich.progress import BarColumn, Progress, TextColumn

    bar = Progress(BarColumn(), TextColumn("{task.percentage:>5.1f} %  {task.description}"))
    bar.add_task("starting", total=steps, completed=done)
    return bar


History = list[dict[str, float]]


def epoch_logger(table: Path, events: Path | None) -> Callable[[History], None]:
    """A function to call with the history after each epoch.

    Args:
        table: CSV file to write.
        events: folder for TensorBoard, or None.

    Raises:
        EnvironmentFault: TensorBoard is asked for and not installed.
    """
    write_events = None if events is None else _tensorboard(events)

    def log(history: History) -> None:
        save_records(table, history)
        if write_events is not None:
            write_events(history[-1])

    return log


def _tensorboard(folder: Path) -> Callable[[dict[str, float]], None]:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise EnvironmentFault(
            "--tensorboard needs the package tensorboard, which is not installed: pip install "
            "tensorboard, or leave it out (the CSV log is written anyway)"
        ) from error
    writer = SummaryWriter(str(folder))

    def write(row: dict[str, float]) -> None:
        for name, value in row.items():
            if name != "epoch":
                writer.add_scalar(name, value, int(row["epoch"]))
        writer.flush()

    return write
