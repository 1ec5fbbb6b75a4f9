"""Whole jobs on simulated processes, clocks, MPI and disk: what seeds draw, played to the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "more"), [(10, ()), (20, ("--wide",))], ids=str)
def test_no_law_is_broken(seeds: int, more: tuple[str, ...]) -> None:
    words = map(str, (*more, "--seeds", seeds))
    command = [sys.executable, "-m", "tests.simulation.play", *words]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
