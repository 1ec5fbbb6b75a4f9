"""Simulated runs of version 0.1.0, kept: `--profile paper` schedules as it did, byte for byte.

`fixtures/simulated_0_1_0/rows.npz` holds the rows that version 0.1.0 simulated for each case of
cases.json, beside which stand all of its settings' defaults (numpy 2; no costs of rank 0). Who
must change a row says so in the CHANGELOG and makes a new file beside this one.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from collage_mpi.settings.profiles import PROFILES
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.runs import simulate_in_memory
from collage_mpi.simulation.simulator import SimulatedJob

FOLDER = Path(__file__).parent.parent / "fixtures" / "simulated_0_1_0"
KEPT = json.loads((FOLDER / "cases.json").read_text())
CASES = KEPT["cases"]


@pytest.mark.parametrize("name", CASES)
def test_rows_are_those_of_0_1_0(name: str) -> None:
    case = CASES[name]
    settings = RunSettings.from_mapping({"profile": "paper", **case["settings"]})
    run = simulate_in_memory(SimulatedJob(settings, case["images"]))
    with np.load(FOLDER / "rows.npz") as kept:
        for table in ("images", "groups", "tasks"):
            before, now = kept[f"{name}.{table}"], getattr(run, table)
            if table == "groups":
                before = np.sort(before, order="group")
            for column in set(before.dtype.names or ()) & set(now.dtype.names or ()):
                assert np.array_equal(before[column], now[column]), f"{table}.{column}"


def test_the_profile_has_the_defaults_of_0_1_0() -> None:
    paper = dict(PROFILES["paper"].sets)
    assert paper.pop("endgame") == "off"  # is younger
    assert paper.pop("backup_ranks") == 1  # likewise, and of a younger scheme alone
    assert (paper.pop("collage_from"), paper.pop("collage_counts")) == (None, "all")  # of cascade
    assert (paper.pop("audit"), paper.pop("audit_seed"), paper.pop("agree")) == (0.0, 0, None)
    assert paper == {name: KEPT["settings"][name] for name in paper}
