"""The names of a run's files: written once, so that nobody looks for another one."""

from __future__ import annotations

import ast
from pathlib import Path

import collage_mpi
from collage_mpi.results import file_names

PACKAGE = Path(collage_mpi.__file__).parent
HOME = Path(file_names.__file__)
NAMES = {value for key, value in vars(file_names).items() if key.isupper()}
# A command, a table, a task's images that wait.
ALSO_A_WORD = {
    file_names.EXPORT,
    file_names.INDEX_FOLDER,
    file_names.PENDING_FOLDER,
    file_names.VECTORS_FOLDER,
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
        if path != HOME
        and (spelt := [text for text in literals(path.read_text()) if Path(text).name in sought])
    }
    assert found == {}


def test_the_names_are_those_of_older_runs() -> None:
    """Readers of other versions and users' scripts go by them."""
    old = Path(__file__).parent.parent / "fixtures" / "run_9f5ae534" / "cascade"
    there = {path.name for path in old.iterdir()}
    assert there >= {file_names.MANIFEST, file_names.MARKER, file_names.PARTS_FOLDER}
    assert file_names.SUMMARY == "summary.json"
