"""The ranks of a job from start to end: who coordinates, who works, how all leave with one exit
code and one message per failure."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from types import FrameType
from typing import Any

from collage_mpi.errors import ExitCode
from collage_mpi.faults.process_monitor import CoordinatorMonitor, ProcessMonitor
from collage_mpi.job.networks import NetworkLoader
from collage_mpi.job.team import LeadLink
from collage_mpi.job.worker import Worker
from collage_mpi.job.worker_group import STOP_LIMIT_S, WorkerGroup
from collage_mpi.launch.scratch import noted_signal
from collage_mpi.mpi.protocol import CONTROL_BYTES
from collage_mpi.mpi.transport import (
    CoordinatorTransport,
    RankFailure,
    WorkerTransport,
    abort,
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
from collage_mpi.system.limits import fault_of
from collage_mpi.system.printable import numbered
from collage_mpi.system.process_tree import STOP_SIGNALS
from collage_mpi.system.progress import report
from collage_mpi.system.tell import tell

StopReason = Callable[[], str | None]

OUTLIVE_S = 25.0  # a team's coordinator without its lead: it stops in 5 s, and writes
SHORT_STOP_S = 10.0  # in a fault-tolerant world: a rank that does not end is left behind


class StopFlag:
    """Set by a signal; rank 0 stops dispatching, the others wait to be told."""

    def __init__(self) -> None:
        self._number: int | None = None

    def install(self) -> None:
        """Take over SIGTERM, SIGINT and SIGUSR2."""
        for number in STOP_SIGNALS:
            signal.signal(number, self._caught)

    def _caught(self, number: int, frame: FrameType | None) -> None:
        self._number = number

    def reason(self) -> str | None:
        """Why to stop, or None: by the signal that launch was sent, where launch has noted it."""
        if self._number is None:
            return None
        # A launcher may pass on another signal.
        through = " through the launcher" if status_word() else ""
        return f"stopped by {noted_signal() or signal.Signals(self._number).name + through}"


def run_world(
    name: str,
    body: Callable[[WorkerGroup, StopReason], int],
    *,
    teams: int = 1,
    team_body: Callable[[WorkerGroup, LeadLink, StopReason], int] | None = None,
) -> int:
    """Run `body` on rank 0 with the other ranks at work; the exit code of every rank.

    Args:
        name: of the command, for messages.
        body: given the workers and a function that says why to stop, if anything does.
        teams: of the world, each of as many ranks; one where it cannot be parted so.
        team_body: what the coordinators of the others do, given their connection to rank 0 too.
    """
    stop = StopFlag()
    stop.install()  # before MPI and torch: a signal during a slow start counts too
    tolerant = fault_tolerant_launch()
    if tolerant:
        hard_exit.arm()
        atexit.register(hard_exit.remove_shared_memory)  # of a script that leaves in its own way
    report(there=launcher_rank() or 0)
    comm, mpi = open_world(fault_tolerant=tolerant)
    if not tolerant and comm.Get_size() > 1:
        hard_exit.finalize_by(mpi.Finalize)
    world = _World(name, comm, mpi, tolerant, stop.reason)

    def work() -> int:
        rank, size = comm.Get_rank(), comm.Get_size()
        each = size // teams if size % teams == 0 and size > teams else size
        coordinator = rank - rank % each
        if rank != coordinator:
            return world.work(coordinator, each if each < size else 0)
        own = range(coordinator + 1, coordinator + each)
        if rank and team_body is not None:
            return world.work_as_team(own, team_body)
        report(up=True)
        worker_group, others = world.group(own), world.group(range(each, size, each))
        others.transport.expect(CONTROL_BYTES)
        worker_group.others = others
        code = world.coordinate(worker_group, body)
        world.part(others, code)
        world.part(worker_group, code)
        return code

    return guarded(comm, work, fault_tolerant=tolerant)


@dataclass(frozen=True)
class _World:
    """What a rank knows of its world, and the lives that it may lead there.

    Attributes:
        name: of the command, for messages.
        comm, mpi: the communicator of all ranks, and mpi4py's module.
        tolerant: whether the other ranks outlive one that dies.
        stop: says why to stop, if anything does.
    """

    name: str
    comm: Any
    mpi: Any
    tolerant: bool
    stop: StopReason

    def group(self, ranks: Sequence[int]) -> WorkerGroup:
        """The ranks that this one coordinates, told where it is."""
        process_monitor = None
        if self.tolerant and ranks:
            size = self.comm.Get_size()
            process_monitor = ProcessMonitor(
                size, one_host=local_size() == size, interface=told_interface(), ranks=ranks
            )
        transport = CoordinatorTransport(
            self.comm, self.mpi, fault_tolerant=self.tolerant, workers=ranks
        )
        worker_group = WorkerGroup(transport, process_monitor=process_monitor, name=self.name)
        worker_group.greet()
        return worker_group

    def work_as_team(
        self, own: Sequence[int], body: Callable[[WorkerGroup, LeadLink, StopReason], int]
    ) -> int:
        """The life of another team's coordinator. It may outlive rank 0 for as long as it takes to
        write what it has."""
        transport = WorkerTransport(self.comm, self.mpi, fault_tolerant=self.tolerant)

        def lead_gone() -> None:
            link.gone.set()
            time.sleep(OUTLIVE_S)
            hard_exit.leave(ExitCode.INCOMPLETE)

        link = LeadLink(transport, CoordinatorMonitor(self.comm.Get_rank(), lead_gone))
        worker_group = self.group(own)
        code = body(worker_group, link, self.stop)
        self.part(worker_group, code)
        if not link.gone.is_set():
            if not self.tolerant:
                link.wait_to_leave()
            transport.close()
        return code

    def work(self, coordinator: int, team: int) -> int:
        """A worker's life. It does not outlive its coordinator: MPI could not end without it.

        `team`: ranks of each of several, 0 of one.
        """
        rank = self.comm.Get_rank()
        transport = WorkerTransport(
            self.comm, self.mpi, fault_tolerant=self.tolerant, coordinator=coordinator
        )
        loader = NetworkLoader(rank, self.comm.Get_size(), team)
        leave = _end_alone if coordinator else partial(hard_exit.leave, ExitCode.INCOMPLETE)
        monitor = CoordinatorMonitor(rank, leave, coordinator)
        try:
            code = Worker(transport, loader, monitor=monitor).serve()
        except RankFailure:
            leave()
        transport.close()
        return code

    def coordinate(
        self, worker_group: WorkerGroup, body: Callable[[WorkerGroup, StopReason], int]
    ) -> int:
        """Rank 0's life; a user's mistake is one message and its exit code."""
        try:
            code = body(worker_group, self.stop)
        except Exception as error:
            fault = fault_of(error)
            if fault is None:
                raise
            tell(f"collage-mpi {self.name}: {fault}", logging.ERROR)
            code = int(fault.exit_code)
        return int(ExitCode(code))

    def part(self, worker_group: WorkerGroup, code: int) -> None:
        """Tell all ranks to end. MPI cannot end with a rank that does not answer: end it by
        force."""
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
    """Leave a job that goes on without this team: by SIGKILL, which all launchers outlive.

    Open MPI's has ended a job of which several ranks had left with a code.
    """
    hard_exit.remove_shared_memory()
    os.kill(os.getpid(), signal.SIGKILL)
