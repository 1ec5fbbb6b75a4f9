"""Finished runs of an earlier version are read, proven and exported; unfinished ones are refused.

`fixtures/run_9f5ae534` holds what revision 9f5ae534 wrote: `cascade` of 20 images in two sessions,
and `parity`, each with one error row (row 13 of input.h5 is damaged); `stopped` is `cascade` after
its first session. None may be made anew: a version that cannot read them has lost its users'
results.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from collage_mpi.cli import main
from collage_mpi.errors import DataFault
from collage_mpi.results import parts, read_results, summarise, verify_run
from collage_mpi.rows import IMAGES, SOURCES, TASKS

FIXTURES = Path(__file__).parent.parent / "fixtures" / "run_9f5ae534"
ANSWERS = {  # run -> source of its answers -> images
    "cascade": {"collage": 17, "endgame": 1, "single": 1, "error": 1},
    "parity": {"parity": 11, "single": 8, "error": 1},
}


@pytest.fixture
def older(tmp_path: Path) -> Path:
    """A copy that tests may write to."""
    return Path(shutil.copytree(FIXTURES, tmp_path / "older"))


@pytest.mark.parametrize("name", ANSWERS)
def test_a_finished_run_of_an_earlier_version_is_read_and_proven(name: str) -> None:
    run = read_results(FIXTURES / name)
    assert Counter(SOURCES[code] for code in run.images["source"]) == ANSWERS[name]
    assert not run.images["runtime"].any()
    assert verify_run(FIXTURES / name).status == "complete_with_errors"
    assert summarise(run)["cost"]["sessions_told"] == len(run.manifest["sessions"])


def test_a_delay_of_an_earlier_version_is_a_part_of_the_computation() -> None:
    raw = [path.read_bytes() for path in (FIXTURES / "cascade" / "parts").glob("images-*.npy")]
    rows = [np.lib.format.read_array(io.BytesIO(part), allow_pickle=False) for part in raw]
    expected = sum(int(part["compute_ns"].sum() + part["held_ns"].sum()) for part in rows)
    assert read_results(FIXTURES / "cascade").images["compute_ns"].sum() == expected


def test_a_finished_run_of_an_earlier_version_is_exported_and_reported(older: Path) -> None:
    runs = [str(older / name) for name in ANSWERS]
    assert main(["export", runs[0], "--to", "csv"]) == 0
    with (older / "cascade" / "export" / "images.csv").open(newline="") as lines:
        assert [row["row"] for row in csv.DictReader(lines) if row["source"] == "error"] == ["13"]
    assert main(["report", *runs, "--out", str(older / "page.html")]) == 0


@pytest.mark.parametrize("command", ["run --resume --out", "run --retry-errors --out", "verify"])
@pytest.mark.parametrize("name", ["stopped", "cascade"])
def test_a_run_of_an_earlier_version_is_not_gone_on_with(
    command: str, name: str, older: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if (command, name) == ("verify", "cascade"):
        return
    before = {path: path.stat().st_mtime_ns for path in older.rglob("*")}
    assert main([*command.split(), str(older / name)]) == 3
    told = capsys.readouterr().err
    advice = {"stopped": "Finish it with the version that began it", "cascade": "export and report"}
    assert advice[name] in told
    assert "another --out" in told
    assert {path: path.stat().st_mtime_ns for path in older.rglob("*")} == before


def test_a_marker_alone_does_not_finish_an_older_run(older: Path) -> None:
    (older / "stopped" / "COMPLETE").write_text("{}")
    assert main(["verify", str(older / "stopped")]) == 3


def test_other_columns_are_named_and_refused(tmp_path: Path) -> None:
    """Such as those of a later version: one more, and reasons of more bytes."""
    codes = {name: TASKS.dtype[name] for name in TASKS.dtype.names or ()} | {"reason": "S128"}
    later = dataclasses.replace(TASKS, dtype=np.dtype([("since", "<i4"), *codes.items()]))
    path = tmp_path / "tasks-0001-000001.npy"
    parts.write_part(path, later, memoryview(np.zeros(3, later.dtype).tobytes()))
    with pytest.raises(DataFault, match=r"collage-mpi: since, reason \(.* or a later one"):
        parts.read_part(path, TASKS)
    with pytest.raises(DataFault, match="shard, row, cell"):  # another table's part
        parts.read_part(path, IMAGES)
    parts.write_part(tmp_path / "x", dataclasses.replace(TASKS, dtype=np.dtype("<i8")),
                     memoryview(bytes(8)))  # fmt: skip
    with pytest.raises(DataFault, match="no part of a run"):
        parts.read_part(tmp_path / "x", TASKS)
