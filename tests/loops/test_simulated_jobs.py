"""Whole jobs on simulated processes, clocks, MPI and disk: what seeds draw, played to the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Seeds that broke a law, each by a defect that is mended, or by a law that was too strict.
FOUND = (1020, 40511, 50448, 101816, 301952, 400130, 2000547, 2004465, 2007701)
FOUND_WIDE = (164, 62031, 62238, 229790, 300632, 3000115, 7000126)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "more"), [(0, FOUND), (100, ()), (0, ("--wide", *FOUND_WIDE))], ids=str
)  # a process imports for three seconds
def test_no_law_is_broken(first: int, more: tuple[object, ...]) -> None:
    words = map(str, (*more, "--seeds", 100, "--from", first))
    command = [sys.executable, "-m", "tests.simulation.play", *words]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
