"""Real jobs whose ranks die or hang at chosen moments, under launch's supervision.

Owns: starting `programs/mortal.py`, its images, what it noted of deaths and of losses.
"""

from __future__ import annotations

import io
import math
import os
import sys
import time
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from conftest import MODULES

from collage_mpi.commands.launch import run_status
from collage_mpi.launch.ending import TIME_LIMIT, exit_code
from collage_mpi.launch.mpiexec import Mpi, build_command, site_here
from collage_mpi.launch.supervisor import Limits, Supervisor
from collage_mpi.shards import write_shard
from collage_mpi.system.environment import STATUS_VARIABLE
from collage_mpi.system.process_tree import own_command, process_table

MORTAL = Path(__file__).parent / "mpi" / "programs" / "mortal.py"
LIMIT_S = 120.0  # a hang; on an idle machine a job takes 3 s


def marked_shard(path: Path, images: int, classes: int = 251) -> Path:
    """Noise of 8 px whose top-left pixel is its label: what the null network answers."""
    labels = np.arange(images) * 37 % classes  # (images,) int64
    pixels = np.random.default_rng(0).integers(0, 256, (images, 8, 8, 1), dtype=np.uint8)
    pixels[:, 0, 0, 0] = labels
    write_shard(path, pixels, labels, class_names=tuple(f"class {i}" for i in range(classes)))
    return path


@dataclass
class Ended:
    """A job that is over.

    Attributes:
        said: both streams of all ranks, and launch's own last line.
        folder: where the ranks noted what happened.
    """

    code: int
    said: str
    out: Path
    wall_s: float
    folder: Path

    def noted(self, what: str) -> dict[int, tuple[str, int]]:
        """By rank, the layer and rank 0's clock in ns of its loss, or of its silence.

        Args:
            what: "losses" or "silences".
        """
        file = self.folder / what
        lines = file.read_text().splitlines() if file.exists() else []
        return {int(rank): (layer, int(at)) for rank, layer, at in map(str.split, lines)}

    def layers(self) -> dict[int, str]:
        """Which layer noticed each loss, by rank."""
        return {rank: layer for rank, (layer, _) in self.noted("losses").items()}

    def death_ns(self, rank: int) -> int:
        """The clock just before the rank died or stopped."""
        file = self.folder / f"{rank}.death"
        assert file.exists(), f"rank {rank} lived; code {self.code}, {self.said}"
        return int(file.read_text())


def run_mortal(
    mpi: Mpi,
    ranks: int,
    folder: Path,
    deaths: str,
    words: list[str],
    *,
    out: Path,
    tolerant: bool = True,
    start_limit_s: float | None = None,
    forked: bool = True,
) -> Ended:
    """Run `collage-mpi WORDS` with deaths to its end; nothing of it may be left running.

    Args:
        folder: a new folder for what the ranks note.
        deaths: as mortal.py takes them.
        out: the `--out` among the words.
        forked: the ranks are forked from a server, which takes half of the CPU.
    """
    folder.mkdir()
    program = [sys.executable, str(MORTAL), str(folder), deaths, *words]
    extra = {STATUS_VARIABLE: "1", "PYTHONUNBUFFERED": "1", "OMP_NUM_THREADS": "1"}
    if forked:
        program = [*own_command("mortal"), str(folder), deaths, *words]
        extra["PYTHONPATH"] = f"{MORTAL.parent}:{os.environ.get('PYTHONPATH', '')}"
    plan = build_command(mpi, ranks, program, site_here(), extra_env=extra, fault_tolerant=tolerant)
    plan = replace(plan, modules=(*MODULES, "collage_mpi.launch.supervisor") if forked else ())
    said = io.StringIO()
    start_s = time.monotonic()
    teams = tolerant and "--teams" in words and words[words.index("--teams") + 1] != "1"
    grace_s = 3.0 if tolerant else math.inf
    limits = Limits(LIMIT_S, start_limit_s, grace_s, teams_go_on=teams)
    ending = Supervisor(plan, limits, said, said).run()
    wall_s = time.monotonic() - start_s
    assert ending.cut is not TIME_LIMIT, said.getvalue()
    assert running(folder) == []
    assert forked == any(folder.glob("*.relay"))
    code, note = exit_code(ending, partial(run_status, out), must_report=tolerant)
    return Ended(code, said.getvalue() + (note or ""), out, wall_s, folder)


def running(word: Path) -> list[str]:
    """Command lines of the processes that name `word`."""
    lines = []
    for pid in process_table():
        try:
            lines.append(Path(f"/proc/{pid}/cmdline").read_text(errors="replace"))
        except OSError:
            continue  # it ended while we looked
    return [line for line in lines if str(word) in line]
