"""Whole jobs on simulated processes, clocks, MPI and disk: what seeds draw, played to the end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EACH = 100  # a process imports for three seconds


# Seeds that broke a law, each by a defect that is mended.
FOUND = (40511, 50448)
FOUND_WIDE = (229790,)


@pytest.mark.parametrize("first", range(0, 300, EACH))
def test_no_law_is_broken(first: int) -> None:
    play("--seeds", str(EACH), "--from", str(first))


def test_no_law_is_broken_again() -> None:
    play(*map(str, FOUND))
    play("--wide", *map(str, FOUND_WIDE))


def play(*seeds: str) -> None:
    command = [sys.executable, "-m", "tests.simulation.play", *seeds]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr
