"""Two jobs on one run, on two hosts of a shared folder that misbehaves: a handful of plays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.folder.mount import why_not

ROOT = Path(__file__).parents[2]


@pytest.mark.faults
@pytest.mark.slow
@pytest.mark.skipif(bool(why_not()), reason=why_not() or "")
def test_two_jobs_that_share_a_run_on_a_folder_that_misbehaves(tmp_path: Path) -> None:
    told = tmp_path / "plays.jsonl"
    words = ["--plays", "4", "--at-once", "4", "--pace", "15", "--out", str(told)]
    paths = os.pathsep.join(["tests", "tests/pure"])
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.folder.two_jobs", *words],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": paths},
        start_new_session=True,
    )
    try:
        assert process.wait(timeout=200) == 0, told.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    plays = {play["seed"]: play for play in map(json.loads, told.read_text().splitlines())}
    assert [*sorted(plays)] == [0, 1, 2, 3]
    assert plays[0]["ended"] == "killed"
    assert any(play["joined"] for play in plays.values())  # a machine with much to do may be late
