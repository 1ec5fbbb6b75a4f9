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
    dead_ranks: tuple[str, ...] = (),
) -> tuple[str, Path]:
    """The status of the run, and `out`."""
    settings, costs = replace(settings, out=str(out)), costs or Costs()
    job = SimulatedJob(settings, images, costs, answers, dead_ranks=dead_ranks)
    return simulate(job)["status"], out
