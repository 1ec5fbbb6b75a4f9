"""Collects a report of each rank on rank 0, by point-to-point messages with time limits.

The ranks may be a small job that the doctor starts itself, as `launch` would.

Usage as a program: python -m collage_mpi.doctor.ranks LIMIT_S DEVICE
"""

from __future__ import annotations

import io
import json
import os
import platform
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from typing import Any

from collage_mpi import __version__
from collage_mpi.doctor.checks_software import launcher_fits
from collage_mpi.doctor.facts import MpiFacts, Rank, Trial, WantedJob, World
from collage_mpi.doctor.gather import library_of, probe, started_by
from collage_mpi.errors import EnvironmentFault, ExitCode
from collage_mpi.launch.ending import TIME_LIMIT
from collage_mpi.launch.mpiexec import Mpi, build_command, site_here
from collage_mpi.launch.supervisor import Limits, Supervisor
from collage_mpi.system.backoff import WORKER_BACKOFF, Backoff
from collage_mpi.system.environment import (
    affinity,
    allowed_cores,
    assign_device,
    launcher_rank,
    launcher_size,
    local_gpu_rank,
    local_rank,
    local_size,
    threads_per_rank,
    visible_devices,
    visible_entries,
)
from collage_mpi.system.launchers import over_pmix
from collage_mpi.system.printable import numbers_text
from collage_mpi.system.process_tree import own_command

TAG_REPORT = 1
MEET_LIMIT_S = 60.0  # until all reports must have come, under a launcher
START_LIMIT_S = 90  # for MPI_Init, which waits for all ranks
VERDICT_LIMIT_S = 180.0  # how long a rank waits for rank 0, which imports torch meanwhile
MARK = "collage-mpi doctor world: "

# Time limit of a trial job; the start of a rank takes 0.5 s of a core.
BASE_LIMIT_S, LIMIT_PER_RANK_S, LONGEST_LIMIT_S = 10.0, 1.0, 120.0
OUTPUT_LINES = 12


def describe_rank(
    rank: int,
    size: int,
    device: str,
    answer: Mapping[str, Any],
    environ: Mapping[str, str] = os.environ,
) -> Rank:
    """This rank as it sees itself.

    Args:
        rank, size: as MPI says.
        device: auto, cpu or cuda.
        answer: result of `probe("rank")`, from before MPI was started.
    """
    gpus = answer.get("gpus") or 0
    usable = 0 if answer.get("torch_build") in (None, "cpu") else gpus
    visible = visible_devices(environ)
    chosen: str | None = None
    problem = None
    try:
        chosen = assign_device(local_gpu_rank(rank, environ), visible, device, usable)
    except EnvironmentFault as fault:
        problem = str(fault)
    entries = visible_entries(visible) or []
    index = int(chosen[5:]) if chosen and chosen.startswith("cuda:") else None
    return Rank(
        rank=rank,
        host=socket.gethostname(),
        cores=allowed_cores(environ),
        threads=threads_per_rank(local_size(environ) or size, environ),
        affinity=numbers_text(affinity(), None).replace(" ", ""),
        host_cores=os.cpu_count() or 1,
        software=f"collage_mpi {__version__}, Python {platform.python_version()}, "
        f"{answer.get('library')}",
        device=chosen,
        gpu=entries[index] if index is not None and index < len(entries) else None,
        visible=visible,
        gpu_count=gpus,
        omp=environ.get("OMP_NUM_THREADS"),
        problem=problem,
    )


class Meeting:
    """A world of ranks that report to rank 0."""

    def __init__(self, device: str, answer: Mapping[str, Any]) -> None:
        """Start MPI. `answer`: result of `probe("rank")`.

        Raises:
            ImportError, RuntimeError: MPI cannot be loaded; `answer` says why.
        """
        from collage_mpi.mpi.transport import open_world

        signal.alarm(START_LIMIT_S)  # kills this process, as nothing else ends MPI_Init
        self._comm, self._mpi = open_world()
        signal.alarm(0)
        self.rank: int = self._comm.Get_rank()
        self.size: int = self._comm.Get_size()
        self._mine = describe_rank(self.rank, self.size, device, answer)
        self._sends: list[Any] = []  # requests; each keeps its message

    def guard(self, body: Callable[[], int]) -> int:
        """Run `body`. An exception ends the whole world, because the others wait for this rank."""
        from collage_mpi.mpi.transport import guarded

        return guarded(self._comm, body)

    def gather(self, limit_s: float = MEET_LIMIT_S) -> World:
        """On rank 0: collect the reports that arrive within limit_s."""
        began_s = time.monotonic()
        reports = {0: self._mine}
        arriving = self._messages(limit_s)
        while len(reports) < self.size and (arrived := next(arriving, None)):
            reports[arrived[0]] = Rank(**arrived[1])
        return World(
            size=self.size,
            launcher_size=launcher_size(),
            ranks=tuple(reports[rank] for rank in sorted(reports)),
            missing=tuple(sorted({*range(self.size)} - reports.keys())),
            seconds=time.monotonic() - began_s,
        )

    def dismiss(self, code: int, world: World) -> None:
        """On rank 0: tell all ranks to leave with `code`.

        If a report is missing, abort, because MPI cannot end normally without a rank.
        """
        if world.missing:
            self._comm.Abort(code)
        for rank in range(1, self.size):
            self._send(rank, {"code": code})
        backoff, until_s = Backoff(WORKER_BACKOFF), time.monotonic() + MEET_LIMIT_S
        while not self._mpi.Request.Testall(self._sends) and time.monotonic() < until_s:
            backoff.pause()

    def report(self, limit_s: float = VERDICT_LIMIT_S) -> int:
        """On other ranks: report to rank 0, and return the exit code that rank 0 sends."""
        self._send(0, asdict(self._mine))
        verdict = next(self._messages(limit_s), None)
        if verdict is None:
            print(f"rank {self.rank}: no message from rank 0 in {limit_s:g} s", file=sys.stderr)
            os._exit(int(ExitCode.ENVIRONMENT))  # MPI cannot end without rank 0
        return int(verdict[1]["code"])

    def _messages(self, limit_s: float) -> Iterator[tuple[int, Any]]:
        """(sender, content) of each message as it arrives, until the time is over."""
        backoff, until_s = Backoff(WORKER_BACKOFF), time.monotonic() + limit_s
        while time.monotonic() < until_s:
            self._mpi.Request.Testall(self._sends)
            status = self._mpi.Status()
            message = self._comm.Improbe(tag=TAG_REPORT, status=status)
            if message is None:
                backoff.pause()
                continue
            backoff.reset()
            data = bytearray(status.Get_count())
            message.Recv(data)
            yield status.Get_source(), json.loads(data)

    def _send(self, peer: int, content: dict[str, Any]) -> None:
        data = json.dumps(content).encode()
        self._sends.append(self._comm.Isend(data, peer, TAG_REPORT))


def open_meeting(wanted: WantedJob) -> Meeting | None:
    """Start MPI and join the world; None if that is not possible, and `examine` says why."""
    answer = probe("rank")
    facts = MpiFacts(
        library=library_of(answer), started_by=started_by(), pmix=over_pmix(os.environ)
    )
    if facts.library is None and local_rank() == 0 != launcher_rank():
        # Rank 0 may be on another host, and would wait for this rank without knowing why.
        print(f"no MPI library on {socket.gethostname()}", file=sys.stderr, flush=True)
    if facts.library is None or not launcher_fits(facts):
        return None  # MPI would abort the process
    try:
        return Meeting(wanted.device, answer)
    except ImportError:  # numpy is missing or broken
        return None


def try_ranks(mpi: Mpi, ranks: int, device: str) -> Trial:
    """Start `ranks` ranks that report and end, with a time limit."""
    limit_s = min(LONGEST_LIMIT_S, BASE_LIMIT_S + LIMIT_PER_RANK_S * ranks)
    program = (*own_command("collage_mpi.doctor.ranks"), f"{limit_s:g}", device)
    plan = build_command(mpi, ranks, program, site_here())
    out, err = io.StringIO(), io.StringIO()
    began_s = time.monotonic()
    ending = Supervisor(plan, Limits(limit_s), out, err).run()
    lines = out.getvalue().splitlines()
    worlds = [json.loads(line[len(MARK) :]) for line in lines if line.startswith(MARK)]
    other = [line for line in lines if not line.startswith(MARK)] + err.getvalue().splitlines()
    return Trial(
        asked=ranks,
        seconds=time.monotonic() - began_s,
        world=_world(worlds[0]) if worlds else None,
        singletons=len(worlds) if len(worlds) > 1 else 0,
        output=tuple(text for line in other if (text := line.strip(" -=")))[:OUTPUT_LINES],
        exit_code=ending.launcher,
        timed_out=ending.cut is TIME_LIMIT,
    )


def _world(values: dict[str, Any]) -> World:
    ranks = tuple(Rank(**rank) for rank in values.pop("ranks"))
    return World(**{**values, "ranks": ranks, "missing": tuple(values["missing"])})


def main() -> int:
    """Run a world whose ranks only report; rank 0 prints the reports as one line of JSON."""
    limit_s, device = float(sys.argv[1]), sys.argv[2]
    meeting = Meeting(device, probe("rank"))

    def gather() -> int:
        world = meeting.gather(limit_s)
        print(MARK + json.dumps(asdict(world)), flush=True)
        meeting.dismiss(0, world)
        return 0

    return meeting.guard(gather if meeting.rank == 0 else lambda: meeting.report(limit_s))


if __name__ == "__main__":
    sys.exit(main())
