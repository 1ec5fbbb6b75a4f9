"""A launch by PALS: a program that does as its mpiexec is said to do; no Cray has run this."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from collage_mpi.launch import mpiexec
from collage_mpi.launch.ending import exit_code
from collage_mpi.launch.supervisor import Limits, Supervisor

# Ranks by the variables that PALS sets where its PMI is pmix, in order of hosts; signals to all of
# them; who ends badly is named, the others are ended then; the largest code is its own.
MPIEXEC = """#!{python}
import contextlib, os, signal, subprocess, sys
if sys.argv[1:] == ["--version"]:
    sys.exit(print("mpiexec version 1.8.0 revision 0"))
ppn, none, n = int(sys.argv[2]), sys.argv[4], int(sys.argv[6])
assert sys.argv[1:7:2] == ["--ppn", "--cpu-bind", "-n"] and none == "none", sys.argv
def place(rank):
    host, local = divmod(rank, ppn)
    return {{"PALS_RANKID": str(rank), "PMIX_RANK": str(rank), "PALS_LOCAL_RANKID": str(local),
             "PALS_LOCAL_SIZE": str(min(ppn, n - host * ppn)), "PALS_NODEID": str(host)}}
ranks = []
def tell(number, _=None):
    for rank in ranks:
        if rank.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(rank.pid, number)
for number in (signal.SIGTERM, signal.SIGUSR2):
    signal.signal(number, tell)
ranks += [subprocess.Popen(sys.argv[7:], env={{**os.environ, **place(i)}}) for i in range(n)]
codes = [0] * n
for _ in ranks:
    pid, status = os.wait()
    rank = next(i for i in range(n) if ranks[i].pid == pid)
    ranks[rank].returncode = code = os.waitstatus_to_exitcode(status)
    codes[rank] = code if code >= 0 else 128 - code
    how = "exited with code" if code > 0 else "died from signal"
    if code:
        print(f"x1000: rank {{rank}} {{how}} {{abs(code)}}", file=sys.stderr, flush=True)
        tell(signal.SIGTERM)
sys.exit(max(codes))
"""

PLACES = """
import json, sys
from pathlib import Path
from collage_mpi.system.environment import launcher_rank, launcher_size, local_rank, local_size
rank = launcher_rank()
told = [rank, launcher_size(), local_rank(), local_size()]
Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(told))
"""

STOPPED = """
import os, signal, sys, time
from pathlib import Path
def stop(*_):
    if os.environ["PALS_RANKID"] == "0":
        print("collage-mpi run: stopped", file=sys.stderr, flush=True)
        os._exit(6)
    os._exit(0)
signal.signal(signal.SIGTERM, stop)
Path(sys.argv[1], "ready" + os.environ["PALS_RANKID"]).touch()
time.sleep(60)
"""

FAILED = """
import os, signal, time
if os.environ["PALS_RANKID"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""


# A launch of its own: a signal that stops it must not meet the process that runs the tests.
LAUNCH = """
import sys
from collage_mpi.commands.launch import LaunchArguments, launch_ranks
from collage_mpi.launch import mpiexec
mpiexec.mpi4py_library = lambda: "MPICH 5.0.2"
program, *words = sys.argv[1:]
sys.exit(launch_ranks(3, LaunchArguments(words=tuple(words), mpi="pals", mpiexec=program)))
"""


@pytest.fixture
def pals(tmp_path: Path, monkeypatch):
    """Launches a script on 3 ranks, on two hosts of a PBS job; returns the launch."""
    (tmp_path / "nodes").write_text("x1000\nx1001\n")
    monkeypatch.setenv("PBS_NODEFILE", str(tmp_path / "nodes"))
    monkeypatch.setattr(mpiexec, "mpi4py_library", lambda: "MPICH 5.0.2")
    program = tmp_path / "mpiexec"
    program.write_text(MPIEXEC.format(python=sys.executable))
    program.chmod(0o755)

    def launch(source: str) -> subprocess.Popen[str]:
        script = tmp_path / "script.py"
        script.write_text(source)
        words = (str(program), str(script), str(tmp_path))
        return subprocess.Popen(
            (sys.executable, "-c", LAUNCH, *words), stderr=subprocess.PIPE, text=True
        )

    return launch


def test_ranks_know_their_place(pals, tmp_path):
    assert pals(PLACES).wait() == 0
    places = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert places == [[0, 3, 0, 2], [1, 3, 1, 2], [2, 3, 0, 1]]


def test_a_stop_reaches_the_ranks_and_leaves_one_message(pals, tmp_path):
    launch = pals(STOPPED)
    while len(list(tmp_path.glob("ready*"))) < 3 and launch.poll() is None:
        time.sleep(0.01)
    launch.send_signal(signal.SIGINT)
    _, said = launch.communicate()
    assert launch.returncode == 6, said
    assert "collage-mpi run: stopped\n" in said


def test_what_pals_says_of_a_rank_that_dies_is_passed_on(pals, tmp_path):
    pals("").wait()  # makes the program
    mpi = mpiexec.find_mpi("pals", str(tmp_path / "mpiexec"))
    program = (sys.executable, "-c", FAILED)
    out, err = io.StringIO(), io.StringIO()
    plan = mpiexec.build_command(mpi, 3, program, mpiexec.site_here())
    ending = Supervisor(plan, Limits(), out, err).run()
    code, note = exit_code(ending, None)
    assert code == 3
    assert "x1000: rank 1 died from signal 9" in err.getvalue()
    assert "before the job had begun" in note
