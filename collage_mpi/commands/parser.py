"""The argument parser of all commands. Only one rank prints usage errors, help and version."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TextIO

from collage_mpi import __version__
from collage_mpi.commands import COMMANDS
from collage_mpi.errors import ExitCode
from collage_mpi.system.environment import telling_rank
from collage_mpi.system.launchers import MPIS
from collage_mpi.system.printable import did_you_mean, printable
from collage_mpi.system.tell import SafeStream, let_rank_0_speak

MOST_USAGE_LINES = 8  # of a usage shown with an error: more would hide the message


class _Parser(argparse.ArgumentParser):
    """Prints usage errors on one rank only, because under a launcher all ranks parse argv."""

    def error(self, message: str) -> None:  # type: ignore[override]
        if telling_rank() in (None, 0):
            usage = self.format_usage()
            if usage.count("\n") > MOST_USAGE_LINES:
                usage = f"usage: {self.prog} ...; {self.prog} --help lists its flags\n"
            print(printable(f"{usage}{self.prog}: error: {message}"), file=sys.stderr)
        let_rank_0_speak()
        raise SystemExit(int(ExitCode.USAGE))

    def _print_message(self, message: str, file: TextIO | None = None) -> None:  # type: ignore[override]
        """Print help and version on one rank only; a reader that has gone is not an error."""
        if message and telling_rank() in (None, 0):
            SafeStream(sys.stderr if file is None else file).write(message)

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """Like argparse's, but an unknown argument is an error of the command that got it."""
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(self._unknown(unknown))
        return found, unknown

    def _check_value(self, action, value):  # type: ignore[no-untyped-def]
        """Like argparse's, but a mistyped command is answered with the nearest ones, not all."""
        names = action.choices
        if isinstance(action, argparse._SubParsersAction) and value not in names:
            hint = did_you_mean(value, names) or "."
            told = f"{value!r} is no command of {self.prog}{hint} {self.prog} --help lists them"
            raise argparse.ArgumentError(None, told)
        super()._check_value(action, value)

    def _unknown(self, words: Sequence[str]) -> str:
        flag = next((word.partition("=")[0] for word in words if word.startswith("--")), None)
        hint = did_you_mean(flag or "", self._option_string_actions, 1).replace("'", "")
        return f"unrecognized arguments: {' '.join(words)}{hint}"

    def help_if_bare(self, words: Sequence[str]) -> bool:
        """Print the help of a command whose subcommand is missing; returns whether it was
        printed.
        """
        parser: argparse.ArgumentParser = self
        for word in [*words, None]:
            found = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
            if word is None and found:
                parser.print_help()
                return True
            if not found or word not in found[0].choices:
                return False
            parser = found[0].choices[word]
        return False


def build_parser(command: str | None = None, *, whole: bool = False) -> _Parser:
    """The parser of all commands, with the full arguments of one command only, or of all."""
    parser = _Parser(
        prog="collage-mpi",
        description="Classify very many images over MPI with no slow tail and nothing lost.",
        epilog="Start with: collage-mpi demo --out demo-out",
    )
    parser.add_argument("--version", action="version", version=f"collage-mpi {__version__}")
    sub = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, (module, line) in COMMANDS.items():
        child = sub.add_parser(name, help=line, description=line[0].upper() + line[1:] + ".")
        if whole or name == command:
            import_module(f"collage_mpi.commands.{module}").add_arguments(child)
    return parser


def add_mpi_flag(parser: argparse.ArgumentParser) -> None:
    """--mpi, of the commands that start ranks."""
    # Added to the parser itself, argparse would list the choices at once: see `plugins.Names`.
    parser._optionals.add_argument(
        "--mpi",
        choices=MPIS,
        default="auto",
        help="which MPI to use. auto: the one that mpi4py loads (default)",
    )
