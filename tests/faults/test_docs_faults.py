"""Every line of docs/faults.md names a test, and the test is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "faults.md"


def lines() -> list[list[str]]:
    """The cells of each line of the tables whose last column is a test."""
    rows, wanted = [], False
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            wanted = False
        elif cells[-1] == "test":
            wanted = True
        elif wanted and not set(line) <= set("|-"):
            rows.append(cells)
    return rows


@pytest.mark.parametrize("cells", lines(), ids=lambda cells: cells[0][:40])
def test_a_line_names_tests_that_exist(cells: list[str]) -> None:
    assert len(cells) == 4
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)", cells[-1])
    assert named, f"no test backs: {cells[0]}"
    for file, name in named:
        text = (ROOT / file).read_text()
        assert re.search(rf"^ *def {name}\(|^class {name}\b", text, re.M), f"{file} has no {name}"


def test_the_page_is_read() -> None:
    assert len(lines()) > 10
