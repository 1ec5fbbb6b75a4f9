"""Runs of earlier versions: read, proven and exported.

`fixtures/run_0_1_0` holds what version 0.1.0 wrote, `fixtures/formats_1_0_0` what 1.0.0 wrote:
`complete` of 20 images with one error row (row 13 of input.h5 is damaged), `stopped` by a signal
after 12. None may be made anew: a version that cannot read them has lost its users' results.
"""

from __future__ import annotations

import csv
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest

from collage_mpi.cli import main
from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.job.resume import resumed_settings
from collage_mpi.results import parts, read_results, verify_run
from collage_mpi.results.rows import IMAGES, STORED, TASKS, TableLayout

FIXTURES = Path(__file__).parent.parent / "fixtures"
OLD, FIRST = FIXTURES / "run_0_1_0", FIXTURES / "formats_1_0_0"
WORLD = 4
TASKS_OF = {OLD.name: 24, FIRST.name: 25}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """A copy of 0.1.0's that tests may write to."""
    return Path(shutil.copytree(OLD, tmp_path / "old"))


@pytest.fixture(params=[OLD, FIRST], ids=lambda folder: folder.name)
def any_old(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The same of each version."""
    return Path(shutil.copytree(request.param, tmp_path / request.param.name))


def test_the_null_network_of_0_1_0_was_right(old: Path) -> None:
    images = read_results(old / "complete").images
    answered = images[images["answered"]]
    assert (answered["predicted"] == answered["row"] % 5).all()


def test_a_run_of_an_earlier_version_is_read_proven_and_exported(any_old: Path) -> None:
    old = any_old
    run = read_results(old / "complete")
    sizes = [len(rows) for rows in (run.images, run.groups, run.tasks)]
    assert sizes == [20, 5, TASKS_OF[old.name]]
    assert verify_run(old / "complete").status == "complete_with_errors"
    assert verify_run(old / "stopped").headline == "incomplete: 12 of 20 rows, no doubles"
    assert main(["export", str(old / "complete"), "--to", "csv"]) == 0
    with (old / "complete" / "export" / "images.csv").open(newline="") as lines:
        assert [row["row"] for row in csv.DictReader(lines) if row["source"] == "error"] == ["13"]


def test_an_unfinished_run_of_an_earlier_version_is_not_gone_on_with(any_old: Path) -> None:
    given = {"out": str(any_old / "stopped"), "shards": [str(any_old / "input.h5")]}
    with pytest.raises(EnvironmentFault, match=r"grace_ms.* Finish it with the version that began"):
        resumed_settings(given, "flags", WORLD)


def wider(table: TableLayout, **later: object) -> TableLayout:
    """The table of a later version: one more column, and reasons of more bytes."""
    fields = [(name, table.dtype[name]) for name in table.dtype.names or ()]
    fields = [(name, "S128" if name == "reason" else code) for name, code in fields]
    dtype = np.dtype([("since", "<i4"), *fields])
    return dataclasses.replace(table, dtype=dtype, later={**table.later, **later})


def test_no_image_of_an_earlier_version_was_audited() -> None:
    rows = parts.read_part(OLD / "complete" / "parts" / "images-000001.npy", IMAGES)
    for name in ("audited", "other", "other_score"):
        assert not rows[name].any(), name


@pytest.mark.parametrize("table", STORED, ids=lambda table: table.name)
def test_a_column_that_came_later_has_its_default(table: TableLayout) -> None:
    path = OLD / "complete" / "parts" / f"{table.name}-000001.npy"
    then, now = parts.read_part(path, table), parts.read_part(path, wider(table, since=7))
    assert (now["since"] == 7).all()
    for name in table.dtype.names or ():
        assert (now[name] == then[name]).all()
    with pytest.raises(DataFault, match="since"):  # a default is not made up
        parts.read_part(path, wider(table))


def test_columns_of_a_later_version_are_named_and_refused(tmp_path: Path) -> None:
    later = wider(TASKS)
    path = tmp_path / "tasks-000001.npy"
    parts.write_part(path, later, memoryview(np.zeros(3, later.dtype).tobytes()))
    with pytest.raises(DataFault, match=r"this version of collage-mpi: since, .* or a later one"):
        parts.read_part(path, TASKS)
    with pytest.raises(DataFault, match="shard, row, cell"):  # another table's part
        parts.read_part(path, IMAGES)
    parts.write_part(tmp_path / "x", dataclasses.replace(TASKS, dtype=np.dtype("<i8")),
                     memoryview(bytes(8)))  # fmt: skip
    with pytest.raises(DataFault, match="no part of a run"):
        parts.read_part(tmp_path / "x", TASKS)
