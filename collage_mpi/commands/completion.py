"""`collage-mpi completion SHELL`: prints a script that completes commands, flags and files. All
flags are in the script, so completion does not start Python.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass

from collage_mpi.commands.parser import Command, build_parser
from collage_mpi.errors import EnvironmentFault
from collage_mpi.settings.flags import Arguments
from collage_mpi.system.extras import optional, pip_line
from collage_mpi.system.fields import REQUIRED, setting
from collage_mpi.system.tell import SafeStream

SHELLS = ("bash", "zsh", "fish", "tcsh")
FILES = ("PATH", "FILE", "DIR", "W", "RUN")  # metavars of arguments that are files or folders


@dataclass(frozen=True, kw_only=True)
class CompletionArguments(Arguments):
    """The arguments of completion."""

    shell: str = setting(
        REQUIRED, "the shell to print the script for", choices=SHELLS, positional=True
    )


def execute(args: CompletionArguments) -> int:
    """Print the script; returns 0. Raises EnvironmentFault if shtab is missing or too old."""
    shtab = optional("shtab", "completion", "completion")
    if args.shell not in shtab.SUPPORTED_SHELLS:
        raise EnvironmentFault(
            f"shtab {shtab.__version__} supports {', '.join(shtab.SUPPORTED_SHELLS)}, but not "
            f"{args.shell}. Install a newer one: pip install -U shtab"
        )
    parser = build_parser(whole=True)
    _complete_files(parser, shtab.FILE)
    SafeStream(sys.stdout).write(shtab.complete(parser, args.shell) + "\n")
    return 0


def _complete_files(parser: argparse.ArgumentParser, how: object) -> None:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _complete_files(child, how)
        elif action.metavar in FILES:
            action.complete = how  # type: ignore[attr-defined]


COMMAND = Command(
    execute,
    CompletionArguments,
    epilog="For bash, write the script to ~/.local/share/bash-completion/completions/collage-mpi. "
    "For zsh, write it to ~/.zfunc/_collage-mpi, and put fpath=(~/.zfunc $fpath) before compinit "
    "in ~/.zshrc. For fish, write it to ~/.config/fish/completions/collage-mpi.fish. For example: "
    "collage-mpi completion fish > ~/.config/fish/completions/collage-mpi.fish. Needs shtab: "
    f"{pip_line('completion')}.",
)
