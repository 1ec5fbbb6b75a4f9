"""Commands stay fast because they import only what they need: nothing heavy for `--help`."""

from __future__ import annotations

import subprocess
import sys

import pytest

from collage_mpi.commands import COMMANDS

HEAVY = ("torch", "h5py", "mpi4py", "numpy", "rich", "matplotlib", "PIL", "pyarrow", "safetensors")

# argparse leaves by SystemExit; the modules are named on the last line.
PROBE = """
import sys
from collage_mpi.cli import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print("LOADED", *sys.modules)
"""


def loaded_by(*argv: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *argv], capture_output=True, text=True, timeout=60, check=True
    )
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "line",
    [
        "--help",
        "--version",
        *(f"{command} --help" for command in COMMANDS),
        "plot cdf --help",
        "slurm render --help",
        "train collage --help",
        "prep images --help",
    ],
)
def test_help_imports_nothing_heavy(line):
    assert not loaded_by(*line.split()) & set(HEAVY)


# Modules of this package that a command loads, at the most. If a change needs more, ask first who
# imports whom, and whether this command needs it.
MOST_MODULES = {"simulate": 70, "verify": 32}


def test_a_command_loads_few_modules_of_this_package(tmp_path):
    found = {}
    for command, more in (("simulate", ("--images", "90", "--out")), ("verify", ())):
        names = loaded_by(command, *more, str(tmp_path / "run"))
        found[command] = sum(name.partition(".")[0] == "collage_mpi" for name in names)
    assert {name: n for name, n in found.items() if n > MOST_MODULES[name]} == {}
