"""The notebook of docs/ does what it says, on the shard that comes with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
from notebook import run_cells

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi, pytest.mark.timeout(240)]

NOTEBOOK = Path(__file__).parents[2] / "docs" / "predictions.ipynb"


def test_the_notebook_runs_from_top_to_bottom(tmp_path):
    pytest.importorskip("pandas")
    shown = run_cells(NOTEBOOK, tmp_path)
    assert "ExitCode.COMPLETE" in shown[0]
    accuracy = float(shown[2].split()[-1])
    assert 0.9 < accuracy < 1  # the shipped network's, as in its card
    by_neighbour = float(shown[-2].split()[-1])
    assert 0.8 < by_neighbour < 1
