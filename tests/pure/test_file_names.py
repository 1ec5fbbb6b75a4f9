"""The names of a run's files: written once, so that nobody looks for another one."""

from __future__ import annotations

import ast
from pathlib import Path

import collage_mpi
from collage_mpi import results

PACKAGE = Path(collage_mpi.__file__).parent
HOMES = Path(results.__file__), PACKAGE / "ledger/records.py"  # which names parts, too
NAMES = {value for key, value in vars(results).items() if key.isupper() and isinstance(value, str)}
# A command, a table, a column, a plural.
ALSO_A_WORD = {
    results.BESIDE_FOLDER,
    results.EXPORT,
    results.INDEX_FOLDER,
    results.JOBS_FOLDER,
    results.ROWS_FOLDER,
    results.STATUS_FOLDER,
}


def literals(source: str) -> list[str]:
    return [
        node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


def test_no_other_module_spells_the_name_of_a_runs_file() -> None:
    sought = NAMES - ALSO_A_WORD
    found = {
        str(path.relative_to(PACKAGE)): spelt
        for path in PACKAGE.rglob("*.py")
        if path not in HOMES
        and (spelt := [text for text in literals(path.read_text()) if Path(text).name in sought])
    }
    assert found == {}
