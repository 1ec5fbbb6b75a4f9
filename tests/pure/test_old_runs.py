"""A run of another format is refused, and so are parts with other columns."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from results_harness import make_run

from collage_mpi.cli import main
from collage_mpi.errors import DataFault
from collage_mpi.results import parts
from collage_mpi.results.columns import Form, rows_of
from collage_mpi.rows import IMAGES, TASKS


@pytest.mark.parametrize("command", ["verify", "export --to csv", "report", "top", "ranks"])
@pytest.mark.parametrize("found", ["2", "3", "4", "unknown"])
def test_a_run_of_another_format_is_refused(
    command: str, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    if found in ("3", "4"):
        first = make_run(run, 9) / "run.1.json"
        first.write_text(json.dumps({"format": int(found), "more": "than is known here"}))
    else:
        run.mkdir()
        (run / "manifest.json").write_text(json.dumps({"version": 2}) if found == "2" else "{")
    assert main([*command.split(), str(run)]) == 3
    told = capsys.readouterr().err
    assert f"a run of format {found}; this version of collage-mpi needs format 5" in told
    assert "The version that wrote the run reads it" in told


def test_other_columns_are_named_and_refused(tmp_path: Path) -> None:
    """Such as one more, of a later version."""
    codes = {name: TASKS.dtype[name] for name in TASKS.dtype.names or ()} | {"reason": "S128"}
    later = dataclasses.replace(TASKS, dtype=np.dtype([("since", "<i4"), *codes.items()]))
    path = tmp_path / "tasks-0001-000001.parquet"
    parts.write_part(path, later, np.zeros(3, later.dtype), Form())
    with pytest.raises(DataFault, match=r"collage-mpi: since \(.* or a later one"):
        rows_of(path, TASKS)
    with pytest.raises(DataFault, match="shard, row, position"):  # another table's part
        rows_of(path, IMAGES)
