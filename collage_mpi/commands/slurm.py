"""`collage-mpi slurm render KIND`: renders a job script from settings."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

from collage_mpi.commands.parser import Command, Commands
from collage_mpi.settings.flags import Arguments, add_flags, add_settings_file, over_file
from collage_mpi.slurm import KINDS, SlurmSettings, render
from collage_mpi.system.fields import REQUIRED, setting
from collage_mpi.system.files import writing


@dataclass(frozen=True, kw_only=True)
class RenderArguments(Arguments):
    """The arguments of `slurm render`, besides the settings of a job script."""

    kind: str = setting(REQUIRED, "kind of job script", choices=tuple(KINDS), positional=True)
    out: Path | None = setting(
        None, "file to write the script to", unset="print it", metavar="FILE"
    )


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting of a job script."""
    add_settings_file(parser)
    add_flags(parser, SlurmSettings)


def execute(args: RenderArguments) -> int:
    """Print the script, or write it."""
    file = str(args.out or f"{args.kind}.sbatch")
    text = render(
        args.kind, SlurmSettings.from_mapping(*over_file(args.given, SlurmSettings)), file
    )
    if args.out is None:
        print(text, end="")
        return 0
    with writing(args.out):
        args.out.write_text(text, encoding="utf-8")
        mode = args.out.stat().st_mode
        args.out.chmod(mode | (mode & 0o444) >> 2)  # who may read the script may also run it
    print(args.out)
    return 0


RENDER = Command(
    execute,
    RenderArguments,
    "print a job script",
    add_settings,
    epilog="For example: collage-mpi slurm render run_nodes --account proj1 --partition gpu "
    "--nodes 3 --gpus-per-node 4 --setup 'module load openmpi' "
    "--setup 'source .venv/bin/activate' --out my_run.sbatch",
)
COMMAND = Commands("render", {"render": RENDER})
