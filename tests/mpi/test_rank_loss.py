"""Ranks that die or hang, at any moment: the job goes on, every image has one right row.

As in test_run: the null network's answer is an image's top-left pixel, so that full accuracy
means that nothing was mixed up.
"""

from __future__ import annotations

import io
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from collage_mpi.errors import ExitCode
from collage_mpi.launch import build_command, site_here
from collage_mpi.results import OUTCOMES, read_results, verify_run
from collage_mpi.shards import write_shard
from collage_mpi.supervise import Job, exit_code
from collage_mpi.topology import STATUS_VARIABLE

pytestmark = pytest.mark.mpi

CLASSES, IMAGES = 251, 123
LIMIT_S = 60.0
COMPLETE, INCOMPLETE = int(ExitCode.COMPLETE), int(ExitCode.INCOMPLETE)


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Path:
    labels = np.arange(IMAGES) * 37 % CLASSES  # (n,) int64
    images = np.random.default_rng(0).integers(0, 256, (IMAGES, 8, 8, 1), dtype=np.uint8)
    images[:, 0, 0, 0] = labels
    path = tmp_path_factory.mktemp("data") / "a.h5"
    write_shard(path, images, labels, class_names=tuple(f"class {i}" for i in range(CLASSES)))
    return path


@dataclass
class Ended:
    """A job that is over."""

    code: int
    said: str
    out: Path
    wall_s: float
    folder: Path

    def layers(self) -> dict[int, str]:
        """Which layer noticed each loss, by rank."""
        file = self.folder / "losses"
        lines = file.read_text().splitlines() if file.exists() else []
        return {int(rank): layer for rank, layer, _ in map(str.split, lines)}

    def check(self, code: int = COMPLETE):
        """Every image has its right row, and the exit code is true."""
        assert self.code == code, self.said
        report = verify_run(self.out)
        assert report.ok or code == INCOMPLETE, report.problems
        found = read_results(self.out)
        rows = found.images[found.images["answered"]]
        assert (rows["predicted"] == rows["label"]).all()
        assert len(found.images) == IMAGES or code == INCOMPLETE
        assert "Traceback" not in self.said or "boom" in self.said
        return found


@pytest.fixture
def job(mpi, programs, shard, tmp_path):
    """Run `collage-mpi run` with deaths under launch's supervision: job(deaths, *flags)."""
    count = iter(range(1 << 30))

    def run(deaths: str, *more: str, ranks: int = 5, tolerant: bool = True, out: str = "out"):
        folder = tmp_path / f"deaths{next(count)}"
        folder.mkdir()
        flags = ["--single", "null", "--collage", "null", "--side", "2", "--singles", "3"]
        words = ["run", "--shards", shard, *flags, "--out", tmp_path / out, *more]
        program = [sys.executable, programs / "mortal.py", folder, deaths, *words]
        extra = {STATUS_VARIABLE: "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
        plan = build_command(
            mpi,
            ranks,
            [str(word) for word in program],
            site_here(),
            environ=os.environ,
            extra_env=extra,
            fault_tolerant=tolerant,
        )
        said = io.StringIO()
        start_s = time.monotonic()
        outcome = Job(plan, mpi.family, timeout_s=LIMIT_S, out=said, err=said).run()
        wall_s = time.monotonic() - start_s
        assert not outcome.timed_out, said.getvalue()
        code, note = exit_code(outcome, tmp_path / out, must_report=tolerant)
        return Ended(code, said.getvalue() + (note or ""), tmp_path / out, wall_s, folder)

    return run


def outcomes(found, rank: int) -> set[str]:
    tasks = found.tasks[found.tasks["rank"] == rank]
    return {OUTCOMES[code] for code in tasks["outcome"]}


@pytest.mark.parametrize("moment", ["start", "load", "measure", "receive:kill:3", "reply:kill:4"])
def test_a_single_rank_dies_at_any_moment(job, moment):
    ended = job(f"1:{moment if ':' in moment else moment + ':kill'}")
    found = ended.check()
    assert set(ended.layers()) == {1}
    (loss,) = found.manifest["lost"]
    assert (loss["rank"], loss["layer"]) == (1, ended.layers()[1])
    assert "rank 1" in ended.said
    assert "is lost" in ended.said


@pytest.mark.parametrize("how", ["kill", "segv", "leave", "leave0", "throw"])
def test_any_kind_of_death_is_survived(job, how):
    ended = job(f"2:{'reply' if how == 'throw' else 'compute'}:{how}:5")
    found = ended.check()
    assert set(ended.layers()) == {2}
    assert "lost" in outcomes(found, 2)
    assert ended.said.count("is lost") == 1
