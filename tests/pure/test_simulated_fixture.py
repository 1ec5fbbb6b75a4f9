"""Simulated runs that are kept: the layout of the paper schedules as it did, byte for byte.

`fixtures/simulated_0_1_0/rows.npz` holds the rows that an early version simulated for each case of
cases.json (numpy 2; no costs of rank 0). It wrote a service time as a delay after the computation,
which took no time; it numbered tasks when they were made, and not when they left. Who must change
a row says so in the CHANGELOG and makes a new file beside this one.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from collage_mpi.simulation.runs import simulate_in_memory
from collage_mpi.simulation.simulator import SimulatedJob
from tests.paper import paper

FOLDER = Path(__file__).parent.parent / "fixtures" / "simulated_0_1_0"
KEPT = json.loads((FOLDER / "cases.json").read_text())
CASES = KEPT["cases"]
KEYS = {"images": ["group", "cell"], "groups": ["group"], "tasks": ["sent_ns", "rank"]}


@pytest.mark.parametrize("name", CASES)
def test_rows_are_those_that_are_kept(name: str) -> None:
    case = CASES[name]
    settings = paper(**case["settings"])
    run = simulate_in_memory(SimulatedJob(settings, case["images"]))
    with np.load(FOLDER / "rows.npz") as kept:
        for table in ("images", "groups", "tasks"):
            before, now = kept[f"{name}.{table}"], getattr(run, table)
            before, now = np.sort(before, order=KEYS[table]), np.sort(now, order=KEYS[table])
            if table != "groups":
                assert not before["compute_ns"].any()
                before["compute_ns"] = before["held_ns"]
            columns = set(before.dtype.names or ()) & set(now.dtype.names or ())
            for column in columns - {"task"}:
                assert np.array_equal(before[column], now[column]), f"{table}.{column}"
