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
from collage_mpi.rows import IMAGES, TASKS


@pytest.mark.parametrize("command", ["verify", "export --to csv", "report", "top", "slow-ranks"])
@pytest.mark.parametrize("found", ["2", "4", "unknown"])
def test_a_run_of_another_format_is_refused(
    command: str, found: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    if found == "4":
        first = make_run(run, 9) / "run.1.json"
        first.write_text(json.dumps({"format": 4, "more": "than is known here"}))
    else:
        run.mkdir()
        (run / "manifest.json").write_text(json.dumps({"version": 2}) if found == "2" else "{")
    assert main([*command.split(), str(run)]) == 3
    told = capsys.readouterr().err
    assert f"a run of format {found}; this version of collage-mpi needs format 3" in told
    assert "The version that wrote the run reads it" in told


def test_other_columns_are_named_and_refused(tmp_path: Path) -> None:
    """Such as those of a later version: one more, and reasons of more bytes."""
    codes = {name: TASKS.dtype[name] for name in TASKS.dtype.names or ()} | {"reason": "S128"}
    later = dataclasses.replace(TASKS, dtype=np.dtype([("since", "<i4"), *codes.items()]))
    path = tmp_path / "tasks-0001-000001.npy"
    parts.write_part(path, later, memoryview(np.zeros(3, later.dtype).tobytes()))
    with pytest.raises(DataFault, match=r"collage-mpi: since, reason \(.* or a later one"):
        parts.read_part(path, TASKS)
    with pytest.raises(DataFault, match="shard, row, position"):  # another table's part
        parts.read_part(path, IMAGES)
    parts.write_part(tmp_path / "x", dataclasses.replace(TASKS, dtype=np.dtype("<i8")),
                     memoryview(bytes(8)))  # fmt: skip
    with pytest.raises(DataFault, match="no part of a run"):
        parts.read_part(tmp_path / "x", TASKS)
