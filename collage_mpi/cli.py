"""The command line: dispatch to the commands, exit codes, and one message for each failure."""

from __future__ import annotations

import io
import logging
import os
import sys
import traceback
from collections.abc import Sequence

from collage_mpi.commands import COMMANDS
from collage_mpi.commands.parser import read_command
from collage_mpi.errors import ExitCode
from collage_mpi.system.environment import launcher_rank
from collage_mpi.system.hard_exit import leave_if_armed
from collage_mpi.system.launchers import VARIABLE, launcher_of
from collage_mpi.system.limits import fault_of
from collage_mpi.system.tell import (
    SafeStream,
    abandon,
    let_rank_0_speak,
    report,
    tell,
    told_on_stderr,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code. A user's mistake never raises.

    A rank of a fault-tolerant world leaves at once, without returning (see `system.hard_exit`).
    """
    _print_any_name()
    with told_on_stderr():
        code = _main(list(sys.argv[1:] if argv is None else argv))
    leave_if_armed(code)
    if code:
        let_rank_0_speak()
    return code


def _print_any_name() -> None:
    """Let stdout print bytes that are not UTF-8 like stderr does, because a file's name may be any
    bytes.
    """
    if isinstance(sys.stdout, io.TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")


def _main(argv: list[str]) -> int:
    command = next((word for word in argv if word in COMMANDS), None)
    name = f"collage-mpi {command}" if command else "collage-mpi"
    try:
        if VARIABLE in os.environ:  # raises if the launcher cannot be loaded
            launcher_of(os.environ[VARIABLE])
        chosen, args = read_command(argv)
        return int(chosen.execute(args))
    except KeyboardInterrupt:
        return _last_word(f"{name}: interrupted", logging.ERROR, 130)
    except BrokenPipeError:
        abandon(sys.stdout)  # the reader of the output has gone
        return 0
    except Exception as error:
        fault = fault_of(error)
        if fault is not None:
            return _last_word(f"{name}: {fault}", logging.ERROR, fault.exit_code)
        defect = "This is a defect of collage-mpi: please report it."
        return _last_word(traceback.format_exc() + defect, logging.CRITICAL, ExitCode.DEFECT)
    finally:
        SafeStream(sys.stdout).write("")  # flushes; a failure at exit would change the exit code


def _last_word(message: str, level: int, code: int) -> int:
    """Print an error on rank 0, and tell launch the exit code, which is returned.

    Other ranks tell launch their error; launch prints it if only one rank fails.
    """
    tell(message, level)
    if launcher_rank() == 0:
        report(exit=int(code))
    elif launcher_rank() is not None:
        report(fault=message, rank=launcher_rank())
    return int(code)
