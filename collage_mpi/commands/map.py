"""`collage-mpi map FILE.py:CLASS --input ... --out DIR`: runs a class of the user on every image of
the input, with ranks on this host. The arrays that it returns are stored once for each image.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from collage_mpi.commands.classify import ClassifyArguments, ranks_here, run_words
from collage_mpi.commands.launch import LaunchArguments, check_and_launch
from collage_mpi.commands.parser import Command, MpiArguments
from collage_mpi.commands.run import proof_of
from collage_mpi.encoding.vectors import OUTPUTS
from collage_mpi.errors import ExitCode, UsageError
from collage_mpi.results import VECTORS_FOLDER
from collage_mpi.settings.flags import add_setting_flags, over_file, switch
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.system.fields import REQUIRED, same, setting
from collage_mpi.system.printable import say

ITS_OWN = ("single", "save", "top_k", "singles")  # settings of `run` that map sets itself


@dataclass(frozen=True, kw_only=True)
class MapArguments(MpiArguments):
    """The arguments of map, in addition to the settings of `run`."""

    function: str = setting(
        REQUIRED,
        "class to run, FILE.py:CLASS or MODULE:CLASS, with __init__(device) and __call__(batch). "
        "A batch has n images; the call returns a dict of arrays with n items each "
        "(docs/inputs.md)",
        metavar="CLASS",
        positional=True,
    )
    ranks: int | None = same(ClassifyArguments, "ranks")
    retry_errors: bool = switch("also process the images of error rows again")
    verbose: bool = same(ClassifyArguments, "verbose")


def execute(args: MapArguments) -> int:
    """Start or resume the run. Returns its exit code."""
    from collage_mpi.models.own import check_mapped

    given, _ = over_file(args.given, RunSettings)
    theirs = [name for name in ITS_OWN if name in given]
    if theirs:
        raise UsageError(f"map sets {', '.join(theirs)} itself: leave them out, and use --ranks")
    check_mapped(args.function)
    singles = ranks_here("map", args.ranks, given.get("device", "auto"))
    values = {"scheme": "none", "batch": None, **given}
    values |= {"single": args.function, "save": OUTPUTS, "singles": singles}
    words = run_words(values, retry_errors=args.retry_errors, verbose=args.verbose)
    code = check_and_launch(LaunchArguments(words=words, mpi=args.mpi))
    out = Path(values["out"])
    if code in (ExitCode.COMPLETE, ExitCode.COMPLETE_WITH_ERRORS):
        say(f"outputs in {out / VECTORS_FOLDER}; {proof_of(out)}")
    elif code == ExitCode.INCOMPLETE:
        say("repeat the command to continue, with any number of --ranks")
    if code == ExitCode.COMPLETE_WITH_ERRORS:
        say("--retry-errors processes the images of error rows again")
    return code


COMMAND = Command(
    execute,
    MapArguments,
    more=add_setting_flags,
    usage="collage-mpi map FILE.py:CLASS --input PATH ... --out DIR [more settings]",
    epilog="Repeat the command to continue a run, with any number of ranks. For example: "
    "collage-mpi map segment.py:Segment --input photos/ --out runs/masks, then collage-mpi "
    "export runs/masks --to zarr",
)
