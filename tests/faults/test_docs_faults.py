"""Every line of docs/faults.md and docs/security.md names a test that pytest collects."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from chaos_plan import TEAM_WEIGHTS, WEIGHTS

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "docs" / name for name in ("faults.md", "security.md")]


def lines() -> list[list[str]]:
    """The cells of each line of the tables whose last column is a test."""
    rows, wanted = [], False
    for line in [line for page in PAGES for line in page.read_text().splitlines()]:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("|"):
            wanted = False
        elif cells[-1] == "test":
            wanted = True
        elif wanted and not set(line) <= set("|-"):
            rows.append(cells)
    return rows


def named(cells: list[str]) -> list[tuple[str, str]]:
    """The tests of a line: (file, function or class)."""
    return re.findall(r"`(tests/[\w/]+\.py)::(\w+)", cells[-1])


@pytest.fixture(scope="module")
def collected() -> set[tuple[str, str]]:
    """What pytest would run of the files that are named: no skip, no expected failure.

    A skip that the machine decides on while a test runs is counted by `tests/run.sh`.
    """
    files = sorted({file for cells in lines() for file, _ in named(cells)})
    words = ["--collect-only", "-q", "-m", "not skip and not xfail", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *words, *files], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return set(re.findall(r"^(tests/[\w/]+\.py)::(\w+)", done.stdout, re.M))


@pytest.mark.parametrize("cells", lines(), ids=lambda cells: cells[0][:40])
def test_a_line_names_tests_that_are_run(cells: list[str], collected: set[tuple[str, str]]) -> None:
    assert len(cells) == 4
    assert named(cells), f"no test backs: {cells[0]}"
    assert set(named(cells)) <= collected, "pytest does not run it"


def test_every_kind_of_chaos_has_its_line() -> None:
    tried = (ROOT / "analysis/reports/chaos.md").read_text().partition("\n## What was tried\n")[2]
    kinds = re.findall(r"^\| ([^|]+) \| \d+ \(\d+\) \|", tried, re.M)
    assert kinds == [*WEIGHTS, *TEAM_WEIGHTS, "rounds in all"]


def test_the_pages_are_read() -> None:
    assert len(lines()) > 10
