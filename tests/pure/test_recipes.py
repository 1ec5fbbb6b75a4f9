"""The recipes for conda, Spack and EasyBuild: they follow pyproject.toml."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import pytest
import release
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
CONDA = yaml.safe_load((RECIPES / "conda" / "recipe.yaml").read_text())
SPACK = (RECIPES / "spack" / "py-collage-mpi" / "package.py").read_text()
[EASYBUILD] = (RECIPES / "easybuild").glob("*.eb")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# package -> its lowest version, without what only old Pythons need
NEEDED = dict(
    re.match(r"([\w-]+)>=([\d.]+)", line).groups()  # type: ignore[union-attr]
    for line in (text.replace("isal>=1.7,<2", "isal>=1.7") for text in PROJECT["dependencies"])
)
OTHERWISE = {"torch": "pytorch", "isal": "python-isal"}  # as conda calls them
EASY = {
    "numpy": "SciPy-bundle",
    "h5py": "h5py",
    "mpi4py": "mpi4py",
    "pillow": "Pillow",
    "pyarrow": "Arrow",
    "torch": "PyTorch",
    "isal": "python-isal",
    "safetensors": "Safetensors",
    "msgspec": "msgspec",
    "jinja2": "Python-bundle-PyPI",
    "rich": "Python-bundle-PyPI",
}


def test_a_recipe_is_of_this_version_and_waits_for_its_checksum() -> None:
    assert CONDA["context"]["version"] == release.version()
    easy = EASYBUILD.read_text()
    assert f"version = '{release.version()}'" in easy
    assert EASYBUILD.name.startswith(f"collage_mpi-{release.version()}-")
    assert f'version("{release.version()}", ' in SPACK
    for text in (CONDA["source"]["sha256"], SPACK, easy):
        assert release.NO_CHECKSUM in text


@pytest.mark.parametrize("name", NEEDED)
def test_a_recipe_needs_what_the_package_needs(name: str) -> None:
    least = NEEDED[name]
    conda = dict(line.split(" ", 1) for line in CONDA["requirements"]["run"])
    assert conda[OTHERWISE.get(name, name)].split(",")[0] == f">={least}"
    [spack] = re.findall(rf'depends_on\("py-{name}@([\d.]+):', SPACK)
    assert least.startswith(spack)
    if name in EASY:
        assert f"('{EASY[name]}', " in EASYBUILD.read_text()
    else:
        assert name == "tomli"  # Python 3.13 has it


@pytest.mark.parametrize("path", sorted(RECIPES.glob("spack/*/package.py")), ids=str)
def test_spack_would_find_the_class(path: Path) -> None:
    [found] = [n.name for n in ast.parse(path.read_text()).body if isinstance(n, ast.ClassDef)]
    assert found == "".join(part.capitalize() for part in path.parent.name.split("-"))


def test_the_checksum_is_written_into_copies(tmp_path: Path) -> None:
    release.fill_recipes("ab" * 32, tmp_path)
    texts = [path.read_text() for path in tmp_path.rglob("*") if path.is_file()]
    assert sum("ab" * 32 in text for text in texts) == 3
    assert not any(release.NO_CHECKSUM in text for text in texts)
