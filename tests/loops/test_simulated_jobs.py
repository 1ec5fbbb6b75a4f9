"""Whole jobs on simulated processes, clocks, MPI and disk: what seeds draw, played to the end."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EACH = 30


def played(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.simulation.play", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("first", range(0, 300, EACH))
def test_no_law_is_broken(first: int) -> None:
    found = played("--seeds", str(EACH), "--from", str(first))
    assert found.returncode == 0, found.stdout + found.stderr


def test_a_seed_plays_the_same_again() -> None:
    digests = [re.search("digest (.*)", played("--from", "45", "--trace").stdout) for _ in range(2)]
    assert digests[0]
    assert digests[1]
    assert digests[0][1] == digests[1][1]
