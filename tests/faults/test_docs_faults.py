"""Every line of docs/faults.md and docs/security.md names a test that pytest runs."""

from __future__ import annotations

import ast
import re
from pathlib import Path

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


def is_run(file: str, name: str) -> bool:
    """Whether pytest would run that test: it is there, not skipped and not expected to fail.

    A skip that the machine decides on while a test runs is counted by `tests/run.sh`.
    """
    marks = ("pytest.mark.skip(", "pytest.mark.skip\n", "pytest.mark.xfail")
    code = ast.parse((ROOT / file).read_text())
    functions = {line.name: line for line in code.body if isinstance(line, ast.FunctionDef)}
    if name not in functions:
        return False
    of_all = (line for line in code.body if "pytestmark" in ast.unparse(line)[:12])
    said = [ast.unparse(line) + "\n" for line in (*of_all, *functions[name].decorator_list)]
    return not any(mark in line for line in said for mark in marks)


def test_each_line_names_tests_that_are_run() -> None:
    assert len(lines()) > 10
    for cells in lines():
        assert len(cells) == 4, cells
        assert named(cells), f"no test backs: {cells[0]}"
        for file, name in named(cells):
            assert is_run(file, name), f"{file}::{name}"


def test_every_kind_of_chaos_has_its_line() -> None:
    tried = (ROOT / "analysis/reports/chaos.md").read_text().partition("\n## What was tried\n")[2]
    kinds = re.findall(r"^\| ([^|]+) \| \d+ \(\d+\) \|", tried, re.M)
    assert kinds == [*WEIGHTS, *TEAM_WEIGHTS, "rounds in all"]
