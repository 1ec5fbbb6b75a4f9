"""The page of the architecture shows the folders as they are: import-linter holds the layers."""

from __future__ import annotations

import configparser
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "collage_mpi"


def rows_of_the_map() -> list[tuple[str, str, list[str]]]:
    """Of each line of the map, from the top: its layer, its folder, the modules that it names."""
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    lines = page.partition("| layer | folder |")[2].partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.split("|")] for line in lines]
    return [(row[1], row[2].strip("`/"), re.findall(r"`([\w*]+)`", row[4])) for row in cells]


def test_the_map_is_the_layers():
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    layers = contracts["importlinter:contract:layers"]["layers"].split("\n")
    held = [set(re.split(r"\s*[|:]\s*", line.strip())) for line in layers if line.strip()]
    shown: dict[str, set[str]] = {}
    for layer, folder, _ in rows_of_the_map():
        shown.setdefault(layer, set()).add(folder)
    assert [*shown.values()] == [layer for layer in held if layer != {"__main__"}]


def test_the_map_names_modules_that_are_there():
    for _, folder, modules in rows_of_the_map():
        there = {path.stem for path in (PACKAGE / folder).glob("*.py")}
        missing = {name for name in modules if "*" not in name} - there
        assert not missing, f"{folder}: {missing}"


# Who may import what is heavy; all others are listed in its contract, a new folder too.
MAY_IMPORT = {
    "mpi4py": {"mpi"},
    "torch": {"encoding", "job", "models", "training"},
    "h5py": {"shards"},
    "matplotlib": {"figures"},
}


@pytest.mark.parametrize("library", MAY_IMPORT)
def test_a_contract_leaves_nobody_out(library):
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    held = contracts[f"importlinter:contract:{library}"]["source_modules"].split()
    there = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    there |= {path.stem for path in PACKAGE.glob("*.py")} - {"__init__"}
    assert {name.removeprefix("collage_mpi.") for name in held} == there - MAY_IMPORT[library]


def test_few_modules_lie_at_the_top():
    assert len(list(PACKAGE.glob("*.py"))) <= 9


def test_all_that_is_no_module_is_shipped():
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    line = re.search(r"\[tool.setuptools.package-data\]\ncollage_mpi = \[(.*)\]", project)
    shipped = {
        file for pattern in re.findall(r'"(.*?)"', line[1]) for file in PACKAGE.glob(pattern)
    }
    assert PACKAGE / "slurm/templates/stage.sh" in shipped
    files = {file for file in PACKAGE.rglob("*") if file.is_file()}
    assert {file for file in files - shipped if file.suffix not in (".py", ".pyc")} == set()
