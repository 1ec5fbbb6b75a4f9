"""Real ranks: they start, they are one world, a hang is killed whole."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

pytestmark = pytest.mark.mpi


def test_eleven_ranks_are_one_world(mpiexec, programs):
    done = mpiexec(11, [programs / "hello.py"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:12] == ["ranks", *map(str, range(11))]


def test_the_ranks_exit_code_comes_through(mpiexec, programs):
    done = mpiexec(3, [programs / "hello.py", 6])
    assert done.returncode == 6


def test_a_hang_is_killed_whole_within_the_timeout(mpiexec, programs, tmp_path):
    program = tmp_path / "hang_here.py"
    shutil.copy(programs / "hello.py", program)
    with pytest.raises(pytest.fail.Exception, match="did not end within"):
        mpiexec(3, [program, 0, 2], timeout=3)
    assert running(str(program)) == []


def running(word: str) -> list[str]:
    """Command lines of the processes that name `word`."""
    lines = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(entry.read_text())
        except OSError:
            continue
    return [line for line in lines if word in line]
