"""`collage-mpi slurm render KIND`: renders a job script from settings, so that nobody has to edit
one.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from collage_mpi.system.files import writing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `slurm render`, with a flag for every setting."""
    from collage_mpi.settings.flags import add_flags
    from collage_mpi.slurm import KINDS, SlurmSettings

    kinds = parser.add_subparsers(dest="action", metavar="render", required=True)
    child = kinds.add_parser("render", help="print a job script")
    child.add_argument("kind", choices=tuple(KINDS), help="kind of job script")
    child.add_argument(
        "--settings", type=Path, metavar="FILE", help="file with settings: .toml, .yaml or .json"
    )
    child.add_argument(
        "--out", type=Path, metavar="FILE", help="file to write the script to (default: print it)"
    )
    add_flags(child, SlurmSettings)
    child.epilog = (
        "For example: collage-mpi slurm render run_nodes --account proj1 --partition gpu "
        "--nodes 3 --gpus-per-node 4 --setup 'module load openmpi' "
        "--setup 'source .venv/bin/activate' --out my_run.sbatch"
    )


def execute(args: argparse.Namespace) -> int:
    """Print the script, or write it."""
    from collage_mpi.settings.flags import given_settings
    from collage_mpi.slurm import SlurmSettings, render

    text = render(args.kind, SlurmSettings.from_mapping(*given_settings(args, SlurmSettings)))
    if args.out is None:
        print(text, end="")
        return 0
    with writing(args.out):
        args.out.write_text(text, encoding="utf-8")
        mode = args.out.stat().st_mode
        args.out.chmod(mode | (mode & 0o444) >> 2)  # whoever may read it may run it, as umask says
    print(args.out)
    return 0
