"""The command line: which command, its help, and how an error reaches the user.

Owns: the table of commands, dispatch, exit codes, one message per failure.
Does not know: what any command does. Imports nothing heavy.
"""

from __future__ import annotations

import argparse
import difflib
import io
import sys
import time
import traceback
from collections.abc import Sequence
from importlib import import_module
from typing import TextIO

from collage_mpi import __version__
from collage_mpi.errors import CollageError, ExitCode, fault_of
from collage_mpi.system.environment import telling_rank
from collage_mpi.system.hard_exit import leave_if_armed
from collage_mpi.system.printable import printable
from collage_mpi.system.safe_stream import SafeStream, abandon

# name -> (module below collage_mpi.commands, line in --help)
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("demo", "real images with and without the collage, table and picture, one command"),
    "launch": ("launch", "find the MPI at hand and start ranks: launch -n 11 -- run ..."),
    "run": ("run", "the job: classify every image of the shards (under mpiexec or launch)"),
    "simulate": ("simulate", "the same job on virtual time: any number of ranks, no MPI"),
    "trace": ("trace", "service times of a run as a trace; delay models fitted to a trace"),
    "experiment": ("experiment", "many runs from one file: grid, seeds, resumed, one table"),
    "verify": ("verify", "prove that a run holds every image exactly once"),
    "export": ("export", "write a run's rows as csv, parquet or hdf5"),
    "plot": (
        "plot",
        "figures of runs: latency CDFs, timelines, throughput, an experiment's points",
    ),
    "shards": ("shards", "inspect or verify HDF5 shards"),
    "prep": ("prep", "make shards from folders or tar files of pictures, HDF5 or IDX files"),
    "train": ("train", "train the single classifier or the collage-CNN"),
    "weights": ("weights", "make a weights file of a .pth or .safetensors file of torchvision's"),
    "evaluate": ("evaluate", "accuracy, FLOPs and service time of networks side by side"),
    "card": ("card", "model cards from the reports of evaluate"),
    "slurm": ("slurm", "render job scripts for Slurm from settings"),
    "bench": ("bench", "measure the harness itself with a null network"),
    "doctor": ("doctor", "what keeps a job from starting here, and the fix; which rank is where"),
}


# Until MPI is up nothing holds ranks together, and Open MPI ends all of them once one has left
# with an error: rank 0, which has the message, may be that much behind the others.
SPEAK_FIRST_S = 2.0
MOST_USAGE_LINES = 8  # of a usage shown with an error: more would hide the message


class _Parser(argparse.ArgumentParser):
    """Prints usage errors from one rank only: under a launcher all parse argv."""

    def error(self, message: str) -> None:  # type: ignore[override]
        if telling_rank() in (None, 0):
            usage = self.format_usage()
            if usage.count("\n") > MOST_USAGE_LINES:
                usage = f"usage: {self.prog} ...; {self.prog} --help lists its flags\n"
            print(printable(f"{usage}{self.prog}: error: {message}"), file=sys.stderr)
        _let_rank_0_speak()
        raise SystemExit(int(ExitCode.USAGE))

    def _print_message(self, message: str, file: TextIO | None = None) -> None:  # type: ignore[override]
        """Help and version, from one rank only too; a reader that has gone is no error."""
        if message and telling_rank() in (None, 0):
            SafeStream(sys.stderr if file is None else file).write(message)

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """As argparse's, but what is not known is an error of the command that got it."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(self._unknown(unknown))
        return found, unknown

    def _unknown(self, words: Sequence[str]) -> str:
        flag = next((word.partition("=")[0] for word in words if word.startswith("--")), None)
        near = difflib.get_close_matches(flag or "", self._option_string_actions, 1)
        hint = f"; did you mean {near[0]}?" if near else ""
        return f"unrecognized arguments: {' '.join(words)}{hint}"


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The parser of the whole tool, with the full arguments of one command only."""
    parser = _Parser(
        prog="collage-mpi",
        description="Classify very many images over MPI with no slow tail and nothing lost.",
        epilog="Start with: collage-mpi demo --out demo-out",
    )
    parser.add_argument("--version", action="version", version=f"collage-mpi {__version__}")
    sub = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, line) in COMMANDS.items():
        child = sub.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".")
        if name == command:
            import_module(f"collage_mpi.commands.{module}").add_arguments(child)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. Never raises for a user's mistake.

    A rank of a fault-tolerant world leaves at once, without returning (see departure).
    """
    _print_any_name()
    code = _main(list(sys.argv[1:] if argv is None else argv))
    leave_if_armed(code)
    if code:
        _let_rank_0_speak()
    return code


def _print_any_name() -> None:
    """A file's name may be any bytes: what is not UTF-8 is printed as stderr does, not an error."""
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _main(argv: list[str]) -> int:
    command = next((word for word in argv if word in COMMANDS), None)
    name = f"collage-mpi {command}" if command else "collage-mpi"
    try:
        args = build_parser(command).parse_args(argv)
        module = import_module(f"collage_mpi.commands.{COMMANDS[args.command][0]}")
        return int(module.execute(args))
    except CollageError as error:
        tell(f"{name}: {error}")
        return int(error.exit_code)
    except KeyboardInterrupt:
        tell(f"{name}: interrupted")
        return 130
    except BrokenPipeError:
        abandon(sys.stdout)  # the reader of our output has gone: nothing left to tell
        return 0
    except Exception as error:
        fault = fault_of(error) if isinstance(error, OSError) else None
        if fault is not None:
            tell(f"{name}: {fault}")
            return int(fault.exit_code)
        tell(traceback.format_exc() + "This is a defect of collage-mpi: please report it.")
        return int(ExitCode.DEFECT)
    finally:
        SafeStream(sys.stdout).write(
            ""
        )  # flushed here: at exit a failure would be a code of its own


def tell(message: str) -> None:
    """Print to stderr, from one rank only; see `printable`. A reader that has gone ends no job."""
    if telling_rank() in (None, 0):
        SafeStream(sys.stderr).write(printable(f"{message}\n"))


def _let_rank_0_speak() -> None:
    """A silent rank that is about to leave with an error waits, if MPI does not do so."""
    if telling_rank() not in (None, 0) and "mpi4py.MPI" not in sys.modules:
        time.sleep(SPEAK_FIRST_S)
