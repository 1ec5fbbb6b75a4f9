"""The GPU's report in its small form on the CPU: every part runs, and what fails is told."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import server_of

from collage_mpi.system.forked import VARIABLE
from collage_mpi.system.process_tree import own_command

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi, pytest.mark.slow, pytest.mark.timeout(900)]

SCRIPT = Path(__file__).parents[2] / "analysis" / "gpu_report.sh"


def report(
    out: Path, *flags: str, python: str = sys.executable
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(SCRIPT), str(out), *flags],
        capture_output=True,
        text=True,
        timeout=850,
        env={**os.environ, "PYTHON": python},
        stdin=subprocess.DEVNULL,
    )


def test_every_part_runs_without_a_gpu(tmp_path: Path) -> None:
    """By a Python that has imported torch: six imports would be half of the CPU."""
    python = tmp_path / "python"
    server = f"{VARIABLE}={server_of(('torch', 'torchvision'))}"
    python.write_text(f'#!/bin/sh\n{server} exec {" ".join(own_command("as_python"))} "$@"\n')
    python.chmod(0o755)
    done = report(tmp_path / "r", "--device", "cpu", python=str(python))
    text = (tmp_path / "r" / "report.md").read_text()
    assert done.returncode == 0, text
    assert "CUT OFF" not in text
    assert "FAILED" not in text
    for line in (
        "single   float32, channels-last",
        "reference single, ResNet-34     224     2",
        "reference, side 3               414     1",
        "one slot  two slots",
        "torchvision, cpu        64",
        "## A job of 2 ranks",
        "36 images",
    ):
        assert line in text


def test_what_fails_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    done = report(tmp_path / "r", "--device", "cpu", python="false")
    text = (tmp_path / "r" / "report.md").read_text()
    assert done.returncode == 1
    assert text.count("## ") == text.count("FAILED with code 1") == 7
    again = report(tmp_path / "r", "--device", "cpu")
    assert (again.returncode, "exists" in again.stderr) == (2, True)
    assert report(tmp_path / "s", "--device", "tpu").returncode == 2
    assert not (tmp_path / "s").exists()
