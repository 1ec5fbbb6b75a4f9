"""`collage-mpi slurm render KIND`: a job script from settings, so that nobody edits one.

Owns: the flags and where the script goes.
Does not know: what is in a script (collage_mpi.slurm.job_script).
"""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from collage_mpi.system.files import writing


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """`render`, with a flag for every setting."""
    from collage_mpi.slurm.job_script import KINDS, SlurmSettings

    kinds = parser.add_subparsers(dest="action", metavar="render", required=True)
    child = kinds.add_parser("render", help="print a job script")
    child.add_argument("kind", choices=tuple(KINDS), help="which script")
    child.add_argument(
        "--settings", type=Path, metavar="FILE", help="settings, .toml, .yaml or .json"
    )
    child.add_argument("--out", type=Path, metavar="FILE", help="write it there (default: print)")
    for spec in dataclasses.fields(SlurmSettings):
        many = isinstance(spec.default, tuple)
        number = "int" in str(spec.type)
        text = str(spec.metadata["help"]).replace("%", "%%")
        if many:
            text += "; may be given several times"
        elif spec.default is not None:
            text += f" (default: {spec.default})"
        child.add_argument(
            "--" + spec.name.removesuffix("s" if many else "").replace("_", "-"),
            dest=spec.name,
            type=int if number else str,
            action="append" if many else "store",
            metavar="LINE" if many else "N" if number else "WORD",
            default=argparse.SUPPRESS,
            help=text,
        )
    child.epilog = (
        "For example: collage-mpi slurm render run_nodes --account proj1 --partition gpu "
        "--nodes 3 --gpus-per-node 4 --setup 'module load openmpi' "
        "--setup 'source .venv/bin/activate' --out my_run.sbatch"
    )


def execute(args: argparse.Namespace) -> int:
    """Print the script, or write it."""
    from collage_mpi.settings.files import read_settings_file
    from collage_mpi.slurm.job_script import SlurmSettings, render

    known = {spec.name for spec in dataclasses.fields(SlurmSettings)}
    values = read_settings_file(args.settings) if args.settings else {}
    values |= {key: value for key, value in vars(args).items() if key in known}
    text = render(args.kind, SlurmSettings.from_mapping(values, str(args.settings or "flags")))
    if args.out is None:
        print(text, end="")
        return 0
    with writing(args.out):
        args.out.write_text(text, encoding="utf-8")
        args.out.chmod(0o755)
    print(args.out)
    return 0
