"""What a training run tells while it runs: a bar on a terminal, or a line every few seconds
elsewhere, and logs with one record an epoch. Each epoch writes the whole history, so the log of a
resumed run has no gap.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

from collage_mpi.errors import EnvironmentFault
from collage_mpi.system.files import save_records
from collage_mpi.system.progress import minutes

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
