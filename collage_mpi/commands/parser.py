"""The argument parser of all commands. Usage errors, help and version are printed by one rank."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, TextIO

from collage_mpi import __version__
from collage_mpi.commands import COMMANDS, MODULES
from collage_mpi.errors import ExitCode
from collage_mpi.settings.flags import Arguments, add_flags
from collage_mpi.system.environment import launcher_rank
from collage_mpi.system.fields import setting
from collage_mpi.system.launchers import MPIS
from collage_mpi.system.printable import did_you_mean, printable
from collage_mpi.system.tell import SafeStream, let_rank_0_speak

CHOSEN = "chosen"  # attribute of argparse's namespace that holds the Command
MOST_USAGE_LINES = 8  # a longer usage is not printed with an error, as it would hide the message


@dataclass(frozen=True, kw_only=True)
class MpiArguments(Arguments):
    """The arguments of commands that start ranks."""

    mpi: str = setting("auto", "which MPI to use. auto: the one that mpi4py loads", choices=MPIS)


@dataclass(frozen=True)
class Command:
    """A command, or one of the subcommands of a command.

    Attributes:
        execute: gets an object of `takes` and returns the exit code.
        takes: class of the arguments.
        line: description of a subcommand in --help. For commands it is in COMMANDS.
        more: adds further flags to the parser; their values are in `Arguments.given`.
        epilog, usage: as in argparse.
    """

    execute: Callable[[Any], int]
    takes: type[Arguments] = Arguments
    line: str = ""
    more: Callable[[argparse.ArgumentParser], None] | None = None
    epilog: str | None = None
    usage: str | None = None


@dataclass(frozen=True)
class Commands:
    """A command that has subcommands.

    Attributes:
        metavar: stands for the subcommand in --help.
        each: name -> subcommand.
        line, epilog: as in Command.
    """

    metavar: str
    each: Mapping[str, Command | Commands]
    line: str = ""
    epilog: str | None = None


class _Parser(argparse.ArgumentParser):
    """Prints usage errors on one rank only: under a launcher every rank parses the same argv."""

    def error(self, message: str) -> None:  # type: ignore[override]
        if launcher_rank() in (None, 0):
            usage = self.format_usage()
            if usage.count("\n") > MOST_USAGE_LINES:
                usage = f"usage: {self.prog} ...; {self.prog} --help lists its flags\n"
            print(printable(f"{usage}{self.prog}: error: {message}"), file=sys.stderr)
        let_rank_0_speak()
        raise SystemExit(int(ExitCode.USAGE))

    def _print_message(self, message: str, file: TextIO | None = None) -> None:  # type: ignore[override]
        """Print help and version on one rank only. A closed pipe is not an error."""
        if message and launcher_rank() in (None, 0):
            SafeStream(sys.stderr if file is None else file).write(message)

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        """As in argparse, but for an unknown argument the subcommand prints the error, with its own
        usage.
        """
        found, unknown = super().parse_known_args(args, namespace)
        if unknown:
            self.error(self._unknown(unknown))
        return found, unknown

    def _check_value(self, action, value):  # type: ignore[no-untyped-def]
        """As in argparse, but the error for a mistyped command names similar commands, not all."""
        names = action.choices
        if isinstance(action, argparse._SubParsersAction) and value not in names:
            hint = did_you_mean(value, names) or "."
            told = f"{value!r} is not a command of {self.prog}{hint} {self.prog} --help lists them"
            raise argparse.ArgumentError(None, told)
        super()._check_value(action, value)

    def _unknown(self, words: Sequence[str]) -> str:
        flag = next((word.partition("=")[0] for word in words if word.startswith("--")), None)
        hint = did_you_mean(flag or "", self._option_string_actions, 1).replace("'", "")
        return f"unrecognized arguments: {' '.join(words)}{hint}"


def build_parser(command: str | None = None) -> _Parser:
    """The parser of all commands.

    Args:
        command: add the arguments of this command only, and import its module; "" for none. None:
            add those of all commands.
    """
    parser = _Parser(
        prog="collage-mpi",
        description="Classify very many images over MPI: every image gets exactly one result, and "
        "a slow rank need not hold up the others.",
        epilog="Start with: collage-mpi demo --out demo-out",
    )
    parser.add_argument("--version", action="version", version=f"collage-mpi {__version__}")
    sub = _subcommands(parser, "COMMAND")
    for name, line in COMMANDS.items():
        child = sub.add_parser(name, help=line, description=_sentence(line))
        if command in (None, name):
            module = import_module(f"collage_mpi.commands.{MODULES.get(name, name)}")
            own = name.replace("-", "_").upper() + "_"
            _fill(child, getattr(module, own * (name in MODULES) + "COMMAND"))
    return parser


def _fill(parser: argparse.ArgumentParser, command: Command | Commands) -> None:
    parser.epilog = command.epilog
    if isinstance(command, Commands):
        sub = _subcommands(parser, command.metavar)
        for name, each in command.each.items():
            child = sub.add_parser(name, help=each.line, description=_sentence(each.line))
            _fill(child, each)
        return
    parser.usage = command.usage
    add_flags(parser, command.takes)
    if command.more is not None:
        command.more(parser)
    parser.set_defaults(**{CHOSEN: command})


def _subcommands(
    parser: argparse.ArgumentParser, metavar: str
) -> argparse._SubParsersAction[argparse.ArgumentParser]:
    """Let a command have subcommands. Without a subcommand, it prints its help."""

    def show_help(_: Arguments) -> int:
        parser.print_help()
        return 0

    parser.set_defaults(**{CHOSEN: Command(show_help)})
    return parser.add_subparsers(metavar=metavar)


def _sentence(line: str) -> str:
    return f"{line[0].upper()}{line[1:]}."


def read_command(words: Sequence[str]) -> tuple[Command, Any]:
    """Parse a command line. Returns the command and its arguments, an object of `Command.takes`.

    Raises:
        SystemExit: after a usage error, --help or --version, which argparse has printed.
        UsageError: a value is out of bounds.
    """
    name = next((word for word in words if word in COMMANDS), "")
    values = vars(build_parser(name).parse_args(words))
    command: Command = values.pop(CHOSEN)
    return command, command.takes.read(values)
