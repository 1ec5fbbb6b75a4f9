"""The coordinator's modules as machine code: the tests of the Python code pass, and jobs run."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi, pytest.mark.slow, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
COMPILED = runpy.run_path(str(ROOT / "setup.py"))["COMPILED"]
NAMES = [f"collage_mpi.{room}.{name}" for room, listed in COMPILED.items() for name in listed]
PURE = (  # those that replace no method: compiled classes do not allow it
    "pure/test_protocol.py",
    "pure/test_recorder.py",
    "loops/test_failure_detector.py",
    "loops/test_image_buffer.py",
    "loops/test_two_drivers.py",
)
JOBS = (
    "mpi/test_teams.py::test_teams_share_the_images_and_the_run_is_one",
    "mpi/test_rank_loss.py::test_abort_ends_the_job_resumably",
    # Ranks find the modules without PYTHONPATH.
    "mpi/test_doctor_faults.py::test_ranks_of_a_launcher_meet[True]",
)
CONSTANTS = """
import importlib, inspect, sys
def tell(of, prefix):
    for name in dir(of):
        value = getattr(of, name, None)
        if isinstance(value, frozenset):
            value = sorted(value)
        if not name.startswith("__") and isinstance(value, (int, float, str, tuple, list)):
            print(f"{prefix}.{name} {value!r}")
for name in sys.argv[1:]:
    module = importlib.import_module(name)
    tell(module, name)
    for at, found in vars(module).items():
        if inspect.isclass(found) and found.__module__ == name:
            tell(found, f"{name}.{at}")
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkout whose package is compiled."""
    source, tree = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("compiled")
    shutil.copytree(ROOT / "collage_mpi", source / "collage_mpi")
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation"]
    fast = {"COLLAGE_MPI_COMPILE": "1", "COLLAGE_MPI_COMPILE_LEVEL": "0"}
    run([*pip, "--target", tree, source], tree, fast)
    for name in ("tests", "analysis", "tools"):
        shutil.copytree(ROOT / name, tree / name)
    shutil.copy(ROOT / "pyproject.toml", tree)
    return tree


def run(command: list[object], folder: Path, more: dict[str, str]) -> str:
    """What a command says that must end well."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder), **more},
        capture_output=True,
        text=True,
        timeout=850,
    )
    assert done.returncode == 0, f"{done.stdout[-6000:]}\n{done.stderr[-3000:]}"
    return done.stdout


def test_what_is_listed_is_machine_code_and_a_manifest_says_so(tree: Path) -> None:
    said = run(
        [
            sys.executable,
            "-c",
            "import importlib, sys; from collage_mpi.job.provenance import job_facts;"
            "print(*(importlib.import_module(n).__file__ for n in sys.argv[1:]), sep='\\n');"
            "print(job_facts('')['compiled'])",
            *NAMES,
        ],
        tree,
        {},
    )
    *files, compiled = said.split()
    assert {Path(file).suffix for file in files} == {".so"}
    assert all(Path(file).is_relative_to(tree) for file in files)
    assert compiled == "True"


def test_modules_and_classes_have_the_constants_of_the_python_code(tree: Path) -> None:
    """An exit code too. A default of an object is no constant of a compiled class."""
    python, compiled = (
        dict(
            line.split(" ", 1)
            for line in run([sys.executable, "-c", CONSTANTS, *NAMES], at, {}).splitlines()
        )
        for at in (ROOT, tree)
    )
    assert len(compiled) > 100
    assert compiled == {name: python[name] for name in compiled}


@pytest.mark.parametrize("tests", [PURE, JOBS])
def test_it_passes_the_tests_of_the_python_code(tree: Path, tests: tuple[str, ...]) -> None:
    words = [*(f"tests/{name}" for name in tests), "-p", "no:cacheprovider"]
    said = run([sys.executable, "-m", "pytest", "-q", "-x", *words], tree, {})
    assert " passed" in said
