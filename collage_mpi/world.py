"""The ranks of a job from start to end: who coordinates, who works, how all leave.

Owns: rank 0's and the workers' main functions, signals, one message per failure,
one exit code for all ranks.
Does not know: what the job does.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

from collage_mpi.cli import tell
from collage_mpi.crew import Crew
from collage_mpi.errors import CollageError, ExitCode
from collage_mpi.loading import NetworkLoader
from collage_mpi.progress import report_exit
from collage_mpi.transport import (
    CoordinatorTransport,
    WorkerTransport,
    guarded,
    open_world,
    watch_process,
)
from collage_mpi.worker import CoordinatorGone, Worker

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)


class StopFlag:
    """Set by a signal; rank 0 stops dispatching, the others wait to be told."""

    def __init__(self) -> None:
        self._reason: str | None = None

    def install(self) -> None:
        """Take over SIGTERM, SIGINT and SIGUSR2."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._caught)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self._reason = f"stopped by {signal.Signals(number).name}"

    def reason(self) -> str | None:
        """Why to stop, or None."""
        return self._reason


def run_world(name: str, body: Callable[[Crew, Callable[[], str | None]], int]) -> int:
    """Run `body` on rank 0 with the other ranks at work; the exit code of every rank.

    Args:
        name: of the command, for messages.
        body: given the crew and a function that says why to stop, if anything does.
    """
    stop = StopFlag()
    stop.install()  # before MPI and torch: a signal during a slow start counts too
    comm, mpi = open_world()

    def work() -> int:
        if comm.Get_rank() == 0:
            crew = Crew(CoordinatorTransport(comm, mpi))
            code = _coordinate(name, crew, body, stop)
            _part(name, comm, crew, code)
            return code
        transport = WorkerTransport(comm, mpi)
        loader = NetworkLoader(comm.Get_rank(), comm.Get_size())
        try:
            code = Worker(transport, loader, watch=watch_process).serve()
        except CoordinatorGone:
            os._exit(int(ExitCode.INCOMPLETE))  # MPI cannot end without its rank 0
        transport.close()
        return code

    return guarded(comm, work)


def _coordinate(
    name: str,
    crew: Crew,
    body: Callable[[Crew, Callable[[], str | None]], int],
    stop: StopFlag,
) -> int:
    try:
        code = body(crew, stop.reason)
    except CollageError as error:
        tell(f"collage-mpi {name}: {error}")
        code = int(error.exit_code)
    return int(ExitCode(code))


def _part(name: str, comm: Any, crew: Crew, code: int) -> None:
    """Tell all ranks to end. MPI cannot end with a rank that does not answer: end it by force."""
    silent = crew.stop(code)
    report_exit(code)
    if silent:
        tell(
            f"collage-mpi {name}: rank(s) {', '.join(map(str, silent))} did not end when told to; "
            "ending the job by force"
        )
        comm.Abort(code)
