"""Commands stay fast because they import only what they need: nothing heavy for `--help`."""

from __future__ import annotations

import subprocess
import sys

from collage_mpi.commands import COMMANDS

HEAVY = ("torch", "h5py", "mpi4py", "numpy", "rich", "matplotlib", "PIL", "pyarrow", "safetensors")

# argparse leaves by SystemExit. The last line names the modules, and before it those of HEAVY that
# each command line was the first to load.
PROBE = """
import sys
from collage_mpi.cli import main
heavy, told = set(sys.argv[1].split()), []
for line in sys.argv[2:]:
    before = heavy & set(sys.modules)
    try:
        main(line.split())
    except SystemExit:
        pass
    told += [f"{line}: {name}" for name in heavy & set(sys.modules) - before]
print("FOUND", *told, sep="\\n")
print("LOADED", *sys.modules)
"""


def loaded_by(*lines: str) -> tuple[set[str], list[str]]:
    """The modules that command lines load in one process, and who loads something heavy."""
    words = [sys.executable, "-c", PROBE, " ".join(HEAVY), *lines]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    *told, modules = done.stdout.splitlines()
    return set(modules.split()), told[told.index("FOUND") + 1 :]


def test_help_imports_nothing_heavy():
    lines = ["--help", "--version", *(f"{command} --help" for command in COMMANDS)]
    lines += ["plot cdf --help", "slurm render --help", "train collage --help"]
    assert loaded_by(*lines, "prep images --help")[1] == []


# Modules of this package that a command loads, at the most. If a change needs more, ask first who
# imports whom, and whether this command needs it.
MOST_MODULES = {"simulate": 81, "verify": 50}  # with the ledger


def test_a_command_loads_few_modules_of_this_package(tmp_path):
    found = {}
    for command, more in (("simulate", "--images 90 --out"), ("verify", "")):
        names, _ = loaded_by(f"{command} {more} {tmp_path / 'run'}")
        found[command] = sum(name.partition(".")[0] == "collage_mpi" for name in names)
    assert {name: n for name, n in found.items() if n > MOST_MODULES[name]} == {}


def test_a_worker_loads_nothing_that_only_rank_0_needs():
    """Each of a thousand ranks loads its modules from the same disk."""
    probe = "import sys, collage_mpi.job.main, collage_mpi.job.worker; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, check=True)
    loaded = {name for name in done.stdout.split() if name.startswith("collage_mpi.")}
    assert "collage_mpi.job.networks" in loaded
    assert not {name for name in loaded if name.startswith("collage_mpi.results")}
    assert not loaded & {"collage_mpi.job.plan", "collage_mpi.job.session", "collage_mpi.launch"}
