"""Simulates a run into a folder, for tests."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from collage_mpi.settings.run_settings import RunSettings
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
