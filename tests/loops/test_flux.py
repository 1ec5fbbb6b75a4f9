"""A launch by Flux: a program that does as `flux run` is said to do; no Flux has run this."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from test_pals import PLACES

from collage_mpi.commands.launch import LaunchArguments, launch_ranks
from collage_mpi.launch import mpiexec
from collage_mpi.launch.ending import exit_code
from collage_mpi.launch.supervisor import Limits, Supervisor

# All ranks on one node, with the variables that the pages name; the worst end is told in a line.
FLUX = """#!{python}
import os, signal, subprocess, sys
if sys.argv[1:] == ["--version"]:
    sys.exit(print("commands:\\t0.66.0\\nlibflux-core:\\t0.66.0"))
run, _, cpus, _, gpus, _, n, *program = sys.argv[1:]
assert (run, cpus, gpus) == ("run", "cpu-affinity=off", "gpu-affinity=off"), sys.argv
def place(rank):
    own = {{"FLUX_TASK_RANK": rank, "FLUX_TASK_LOCAL_ID": rank, "FLUX_JOB_SIZE": n,
           "FLUX_JOB_NNODES": 1, "PMI_RANK": rank, "PMI_SIZE": n}}
    return {{**os.environ, **{{name: str(value) for name, value in own.items()}}}}
ranks = [subprocess.Popen(program, env=place(i)) for i in range(int(n))]
ends = [rank.wait() for rank in ranks]
code = max(end if end >= 0 else 128 - end for end in ends)
if code:
    how = signal.strsignal(code - 128) if code > 128 else f"exited with exit code {{code}}"
    print(f"flux-job: task(s) {{how}}", file=sys.stderr)
sys.exit(code)
"""


@pytest.fixture
def flux(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(mpiexec, "mpi4py_library", lambda: "MPICH 5.0.2")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program = tmp_path / "flux"
    program.write_text(FLUX.format(python=sys.executable))
    program.chmod(0o755)
    return program


def test_ranks_know_their_place(flux: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(PLACES)
    how = LaunchArguments(words=(str(script), str(tmp_path)), mpi="flux")
    assert launch_ranks(3, how) == 0
    places = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert places == [[0, 3, 0, 3], [1, 3, 1, 3], [2, 3, 2, 3]]


def test_what_flux_says_of_a_killed_rank_is_passed_on(flux: Path) -> None:
    killed = (sys.executable, "-c", "import os; os.kill(os.getpid(), 9)")
    plan = mpiexec.build_command(mpiexec.find_mpi("flux"), 2, killed, mpiexec.site_here())
    out, err = io.StringIO(), io.StringIO()
    code, note = exit_code(Supervisor(plan, Limits(), out, err).run(), None)
    assert (code, err.getvalue()) == (3, "flux-job: task(s) Killed\n")
    assert "(the launcher's code is 137) before the job had begun" in note
