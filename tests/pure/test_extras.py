"""What messages say is to be installed: as in pyproject.toml, and with no release of ours."""

from __future__ import annotations

import sys
from pathlib import Path

import collage_mpi
from collage_mpi.plugins import PACKAGES, pip_line

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]


def test_an_extras_package_is_that_of_pyproject_toml():
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for name, package in PACKAGES.items():
        assert known["optional-dependencies"][name][0] == package
    assert pip_line("plot").startswith("pip install 'matplotlib>=")


def test_no_message_asks_for_this_package_from_an_index():
    package = Path(collage_mpi.__file__).parent
    for path in [*package.rglob("*.py"), *ROOT.glob("docs/**/*.md"), ROOT / "README.md"]:
        text = path.read_text("utf-8")
        assert "collage-mpi[" not in text, path
        assert "pip install collage-mpi" not in text, path


def test_the_sdist_holds_tests_docs_and_what_they_read():
    told = (ROOT / "MANIFEST.in").read_text("utf-8").split()
    for name in ("tests", "docs", "analysis", "jobs", "containers", "CHANGELOG.md", "mkdocs.yml"):
        assert name in told
        assert (ROOT / name).exists()
