"""Logs of a training run, one record an epoch: CSV, and TensorBoard if asked for. Each epoch writes
the whole history, so the log of a resumed run has no gap.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from collage_mpi.errors import EnvironmentFault
from collage_mpi.system.files import save_records

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
