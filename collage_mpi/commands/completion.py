"""`collage-mpi completion SHELL`: prints a script that completes commands, flags and files. The
script holds all flags, so completing does not start Python.
"""

from __future__ import annotations

import argparse
import sys

from collage_mpi.errors import EnvironmentFault
from collage_mpi.system.extras import pip_line
from collage_mpi.system.tell import SafeStream

SHELLS = ("bash", "zsh", "fish", "tcsh")
FILES = ("PATH", "FILE", "DIR", "W", "RUN")  # metavars of what may be a file or a folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument("shell", choices=SHELLS, help="the shell to print the script for")
    parser.epilog = (
        "bash: collage-mpi completion bash > ~/.local/share/bash-completion/completions/collage-mpi"
        "; zsh: ... zsh > ~/.zfunc/_collage-mpi, and fpath=(~/.zfunc $fpath) before compinit in "
        "~/.zshrc; fish: ... fish > "
        f"~/.config/fish/completions/collage-mpi.fish. Needs shtab: {pip_line('completion')}."
    )


def execute(args: argparse.Namespace) -> int:
    """Print the script."""
    from collage_mpi.commands.parser import build_parser

    try:
        import shtab
    except ImportError as error:
        raise EnvironmentFault(
            f"completion needs shtab, which is not installed: {pip_line('completion')}"
        ) from error
    if args.shell not in shtab.SUPPORTED_SHELLS:
        raise EnvironmentFault(
            f"shtab {shtab.__version__} knows {', '.join(shtab.SUPPORTED_SHELLS)}, not "
            f"{args.shell}: pip install -U shtab"
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
