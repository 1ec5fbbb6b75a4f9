"""The life of each rank of a job: which ranks coordinate and which work.

All ranks end with one exit code, and a failure gives one message.
"""

from __future__ import annotations

import atexit
import logging
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import TYPE_CHECKING, Any

from collage_mpi.errors import ExitCode
from collage_mpi.faults.process_monitor import CoordinatorMonitor, ProcessMonitor
from collage_mpi.mpi.protocol import CONTROL_BYTES
from collage_mpi.mpi.transport import (
    CoordinatorTransport,
    WorkerTransport,
    abort,
    finalize,
    guarded,
    open_world,
)
from collage_mpi.system import hard_exit
from collage_mpi.system.environment import (
    fault_tolerant_launch,
    launcher_rank,
    local_size,
    status_word,
    told_interface,
)
from collage_mpi.system.limits import fault_of, share_one_heap
from collage_mpi.system.printable import numbered
from collage_mpi.system.process_tree import STOP_SIGNALS
from collage_mpi.system.tell import report, tell

if TYPE_CHECKING:  # what a rank needs it loads by its role: each loads little, and there are many
    from collage_mpi.job.worker_group import WorkerGroup

StopReason = Callable[[], str | None]

SHORT_STOP_S = 10.0  # in a fault-tolerant world a rank that does not end in time is left behind


class StopFlag:
    """Is set by a signal. Rank 0 then stops to send tasks; the other ranks wait for its message."""

    def __init__(self) -> None:
        self._number: int | None = None

    def install(self) -> None:
        """Take over SIGTERM, SIGINT and SIGUSR2."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._caught)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self._number = number

    def reason(self) -> str | None:
        """Why to stop, or None. The reason names the signal that `launch` got, if it noted one."""
        if self._number is None:
            return None
        from collage_mpi.launch.mpiexec import noted_signal

        # A launcher may pass on another signal than it got.
        through = " through the launcher" if status_word() else ""
        return f"stopped by {noted_signal() or signal.Signals(self._number).name + through}"


def run_world(
    name: str,
    body: Callable[[WorkerGroup, StopReason], int],
    *,
    teams: int = 1,
) -> int:
    """Run `body` on the coordinator of each team while the other ranks work for it.

    Args:
        name: of the command, for messages.
        body: is given the workers, and a function that says why to stop (or None).
        teams: number of equal teams; if the ranks cannot be split equally, there is one team.

    Returns:
        The exit code, on every rank: that of rank 0, or of a team that has outlived rank 0.
    """
    stop = StopFlag()
    stop.install()  # before MPI and torch: a signal during a slow start counts too
    tolerant = fault_tolerant_launch()
    if tolerant:
        hard_exit.arm()
        atexit.register(hard_exit.remove_shared_memory)  # for scripts that end by themselves
    rank = launcher_rank() or 0
    if rank == 0:  # before its threads begin
        share_one_heap()
    report(there=rank)
    comm, mpi = open_world(fault_tolerant=tolerant)
    if not tolerant and comm.Get_size() > 1:
        hard_exit.finalize_by(partial(finalize, comm, mpi))
    world = _World(name, comm, mpi, tolerant, stop.reason)

    def work() -> int:
        rank, size = comm.Get_rank(), comm.Get_size()
        each = size // teams if size % teams == 0 and size > teams else size
        coordinator = rank - rank % each
        if rank != coordinator:
            return world.work(coordinator, each if each < size else 0)
        own = range(coordinator + 1, coordinator + each)
        if rank:
            return world.work_as_team(own, body)
        report(up=True)
        others = world.group(range(each, size, each))
        others.transport.expect(CONTROL_BYTES)
        worker_group = world.group(own, others)
        code, _ = world.coordinate(worker_group, body, stop.reason)
        world.part(others, code)
        world.part(worker_group, code)
        return code

    return guarded(comm, work, fault_tolerant=tolerant)


@dataclass(frozen=True)
class _World:
    """The world of a rank, with a method for each role that a rank can have.

    Attributes:
        name: of the command, for messages.
        comm, mpi: the communicator of all ranks, and mpi4py's module.
        tolerant: whether the other ranks go on if one dies.
        stop: says why to stop, or None.
    """

    name: str
    comm: Any
    mpi: Any
    tolerant: bool
    stop: StopReason

    def group(self, ranks: Sequence[int], others: WorkerGroup | None = None) -> WorkerGroup:
        """The ranks that this rank coordinates. They are told where it is."""
        from collage_mpi.job.worker_group import WorkerGroup

        process_monitor = None
        if self.tolerant and ranks:
            size = self.comm.Get_size()
            process_monitor = ProcessMonitor(
                size, one_host=local_size() == size, interface=told_interface(), ranks=ranks
            )
        transport = CoordinatorTransport(
            self.comm, self.mpi, fault_tolerant=self.tolerant, workers=ranks
        )
        worker_group = WorkerGroup(
            transport, process_monitor=process_monitor, name=self.name, others=others
        )
        worker_group.greet()
        return worker_group

    def work_as_team(
        self, own: Sequence[int], body: Callable[[WorkerGroup, StopReason], int]
    ) -> int:
        """Run as the coordinator of another team; the exit code. It goes on without rank 0 where
        MPI does."""
        from collage_mpi.job.teams import RankZero

        transport = WorkerTransport(self.comm, self.mpi, fault_tolerant=self.tolerant)
        rank_0 = RankZero(
            transport, CoordinatorMonitor(self.comm.Get_rank(), lambda: rank_0.gone.set())
        )
        worker_group = self.group(own)
        code, why = self.coordinate(worker_group, body, lambda: self.stop() or rank_0.stop_reason())
        code = rank_0.end(code, why)
        self.part(worker_group, code)
        if not rank_0.gone.is_set():
            if not self.tolerant:
                rank_0.wait_to_leave()
            transport.close()
        return code

    def work(self, coordinator: int, team: int) -> int:
        """Run as a worker; the exit code.

        A worker ends if its coordinator does, because MPI could not end without the coordinator.

        Args:
            coordinator: its rank.
            team: number of ranks of each team; 0 if there is one team.
        """
        from collage_mpi.job.networks import NetworkLoader
        from collage_mpi.job.worker import Worker

        rank = self.comm.Get_rank()
        transport = WorkerTransport(
            self.comm, self.mpi, fault_tolerant=self.tolerant, coordinator=coordinator
        )
        leave = _end_alone if coordinator else partial(hard_exit.leave, ExitCode.INCOMPLETE)
        monitor = CoordinatorMonitor(rank, leave, coordinator)
        size = self.comm.Get_size()
        code = Worker(transport, NetworkLoader(rank, size, team), monitor=monitor).serve()
        if code is None:
            leave()
            raise AssertionError("this process has left")
        transport.close()
        return code

    def coordinate(
        self,
        worker_group: WorkerGroup,
        body: Callable[[WorkerGroup, StopReason], int],
        stop: StopReason,
    ) -> tuple[int, str]:
        """Run as a coordinator; the exit code, and why. An error that a user can meet becomes one
        message, which rank 0 prints."""
        why = ""
        try:
            code = body(worker_group, stop)
        except Exception as error:
            fault = fault_of(error)
            if fault is None:
                raise
            why = str(fault)
            tell(f"collage-mpi {self.name}: {fault}", logging.ERROR)
            code = int(fault.exit_code)
        return int(ExitCode(code)), why

    def part(self, worker_group: WorkerGroup, code: int) -> None:
        """Tell all ranks to end. If a rank does not answer, MPI cannot end and is aborted."""
        from collage_mpi.job.worker_group import STOP_LIMIT_S

        limit_s = SHORT_STOP_S if self.tolerant else STOP_LIMIT_S
        silent = worker_group.stop(code, limit_s)
        if self.comm.Get_rank() == 0:
            report(exit=int(code))
        if silent:
            how = "left behind" if self.tolerant else "ending the job by force"
            ranks = numbered("rank", silent)
            tell(f"collage-mpi {self.name}: {ranks} did not end when told to; {how}", any_rank=True)
            if not self.tolerant:
                abort(self.comm, code)


def _end_alone() -> None:
    """Leave a job that goes on without this team, by SIGKILL, after which every launcher goes on.

    Open MPI's launcher has ended a job after several of its ranks had left with an exit code.
    """
    hard_exit.remove_shared_memory()
    os.kill(os.getpid(), signal.SIGKILL)
