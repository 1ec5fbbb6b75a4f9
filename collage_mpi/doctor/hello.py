"""Starts two ranks that say hello to each other, with a time limit.

Usage as a program, by each rank: python -m collage_mpi.doctor.hello
"""

from __future__ import annotations

import io
import signal
import time

from collage_mpi.doctor.checks import BAD, Finding, check_ranks
from collage_mpi.launch.ending import TIME_LIMIT
from collage_mpi.launch.mpiexec import Mpi, build_command, site_here
from collage_mpi.launch.supervisor import Limits, Supervisor
from collage_mpi.system.process_tree import own_command

RANKS = 2
LIMIT_S = 60  # two ranks take 1 s
MARK = "collage-mpi doctor: ranks in the world: "
OUTPUT_LINES = 3


def meet() -> int:
    """Start MPI and wait for all ranks; the size of the world.

    A signal kills this process after LIMIT_S, because nothing else ends MPI_Init.

    Raises:
        EnvironmentFault: mpi4py can load no MPI library.
        ImportError: numpy is missing.
    """
    from collage_mpi.mpi.transport import open_world

    signal.alarm(LIMIT_S)
    comm, _ = open_world()
    comm.Barrier()
    signal.alarm(0)
    return int(comm.Get_size())


def try_ranks(mpi: Mpi) -> Finding:
    """Start two ranks as `launch` would, and say whether they met."""
    plan = build_command(mpi, RANKS, own_command("collage_mpi.doctor.hello"), site_here())
    out, err = io.StringIO(), io.StringIO()
    began_s = time.monotonic()
    ending = Supervisor(plan, Limits(LIMIT_S), out, err).run()
    seconds = time.monotonic() - began_s
    lines = out.getvalue().splitlines()
    sizes = [int(line.removeprefix(MARK)) for line in lines if line.startswith(MARK)]
    if len(sizes) == RANKS and ending.launcher == 0:
        return check_ranks(sizes[0], RANKS, seconds)
    said = [*(line for line in lines if not line.startswith(MARK)), *err.getvalue().splitlines()]
    last = [text for line in said if (text := line.strip(" -="))][-OUTPUT_LINES:]
    if ending.cut is TIME_LIMIT:
        last.insert(0, f"the time limit of {LIMIT_S} s ended them")
    return Finding(
        "ranks start",
        BAD,
        f"{RANKS} ranks did not meet: {'; '.join(last) or f'exit code {ending.launcher}'}",
        "try another network for MPI (export HYDRA_IFACE=lo FI_TCP_IFACE=lo UCX_NET_DEVICES=lo on "
        "one host), or another MPI (--mpi); --no-launch leaves this test out",
    )


if __name__ == "__main__":
    print(f"{MARK}{meet()}", flush=True)
