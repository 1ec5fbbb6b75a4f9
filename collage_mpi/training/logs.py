"""The record of a training by epochs, for people and plots: CSV, and TensorBoard if asked.

Owns: both formats. Each epoch writes the whole history, so a resumed run's log has no gap.
Does not know: the loop, what the numbers mean.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from collage_mpi.errors import EnvironmentFault
from collage_mpi.system.files import save_records

History = list[dict[str, float]]


def epoch_logger(table: Path, events: Path | None) -> Callable[[History], None]:
    """A function that is called with the history after each epoch.

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
