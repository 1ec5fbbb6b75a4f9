"""Simulates a run into a folder, and asks which scheme to choose, for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.advice import Question
from collage_mpi.simulation.costs import Costs
from collage_mpi.simulation.runs import simulate
from collage_mpi.simulation.simulator import SimulatedJob


def simulate_to(
    settings: RunSettings,
    out: Path,
    images: int,
    costs: Costs | None = None,
    answers: str | None = None,
) -> tuple[str, Path]:
    """The status of the run, and `out`."""
    job = SimulatedJob(replace(settings, out=str(out)), images, costs or Costs(), answers)
    return simulate(job)["status"], out


def question_of(times_s: np.ndarray, **given: Any) -> Question:
    """A question of these service times, with the defaults of the command."""
    plain = {"spare": 2, "answers": None, "placements": 12, "groups": 200, "rate": None}
    return Question(times_s=times_s, **{**plain, **given})
