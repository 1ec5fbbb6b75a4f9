"""Shared fixtures: real ranks under mpiexec, with a timeout and nothing left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pytest

from collage_mpi.launch.mpiexec import Mpi, build_command, find_mpi, site_here
from collage_mpi.system.process_tree import end_family

# Only a hang takes so long: the ranks of a job started in 40 s on cores that five others shared.
RANKS_LIMIT_S = 120.0
PROGRAMS = Path(__file__).parent / "mpi" / "programs"


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much of the fault suite: a little by default, all of it on demand."""
    group = parser.getgroup("faults")
    group.addoption("--chaos-rounds", type=int, default=4, help="rounds of chaos on real ranks")
    group.addoption("--chaos-seed", type=int, default=1, help="what the rounds are drawn from")
    group.addoption("--fuzz", type=int, default=0, help="damaged inputs for each reader of files")


MpiExec = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="session")
def mpi() -> Mpi:
    """The MPI of this environment; tests that need one fail, not skip, without it."""
    return find_mpi()


@pytest.fixture
def programs() -> Path:
    """Folder of the small MPI programs."""
    return PROGRAMS


@pytest.fixture
def mpiexec(mpi: Mpi, tmp_path: Path) -> MpiExec:
    """Start ranks of a Python program and wait: `mpiexec(11, ["-m", "collage_mpi", ...])`.

    The first argument is the world size, the second what follows `python`. Output is
    text. After `timeout` seconds every process of the job is killed and the test fails.
    """

    def start(
        n: int,
        args: Sequence[str | Path],
        timeout: float = RANKS_LIMIT_S,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> subprocess.CompletedProcess[str]:
        return run_ranks(mpi, n, args, timeout, env or {}, cwd or tmp_path)

    return start


def run_ranks(
    mpi: Mpi,
    n: int,
    args: Sequence[str | Path],
    timeout: float,
    env: Mapping[str, str],
    cwd: Path,
) -> subprocess.CompletedProcess[str]:
    """One job in a session of its own; see the fixture `mpiexec`."""
    words = [sys.executable, *map(str, args)]
    plan = build_command(mpi, n, words, site_here(), environ=os.environ, extra_env=env)
    process = subprocess.Popen(
        plan.argv,
        env={**os.environ, **plan.env},
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        end_family(process, grace_s=0.0)
        out, err = process.communicate()
        pytest.fail(
            f"{n} ranks did not end within {timeout} s: {plan.shell_line()}\n"
            f"--- stdout\n{out[-4000:]}\n--- stderr\n{err[-4000:]}"
        )
    finally:
        end_family(process, grace_s=0.0)
        shutil.rmtree(plan.scratch or "", ignore_errors=True)
    return subprocess.CompletedProcess(plan.argv, process.returncode, out, err)
