"""`--help` stays fast because nothing heavy is imported for it."""

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
print("LOADED", *sorted({name.partition(".")[0] for name in sys.modules}))
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
