"""The errors that a user can meet, and the exit code of each.

A message says what was found, what is needed, and what to do next. A `CollageError` is printed
without a traceback. Any other exception is a defect of this package and keeps its traceback.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of a process (C7)."""

    COMPLETE = 0  # every image has its row
    DEFECT = 1  # an unexpected exception: a defect of this package
    USAGE = 2  # a wrong flag, setting or combination of them
    ENVIRONMENT = 3  # no MPI, wrong world size, unreadable or unwritable files
    DATA = 4  # damaged or mismatched input: shards, weights, traces, results
    COMPLETE_WITH_ERRORS = 5  # every image has a row, some rows say error
    INCOMPLETE = 6  # stopped early; the same command goes on from here


class CollageError(Exception):
    """Base of all errors that the user gets as one message."""

    exit_code: ExitCode = ExitCode.DEFECT


class UsageError(CollageError):
    """A flag, a setting, or a combination of them cannot work."""

    exit_code = ExitCode.USAGE


class EnvironmentFault(CollageError):
    """Something outside this program is wrong: MPI, the number of ranks, files, devices."""

    exit_code = ExitCode.ENVIRONMENT


class DataFault(CollageError):
    """The input is damaged, has another format, or does not fit together."""

    exit_code = ExitCode.DATA


class RankGone(CollageError):
    """A rank is lost, and the job must not go on without it."""

    exit_code = ExitCode.INCOMPLETE


class Interrupted(CollageError):
    """A signal came before the job began."""

    exit_code = ExitCode.INCOMPLETE


class ShardFault(EnvironmentFault):
    """A shard that was sound when the job began can no longer be read, or has changed."""

    def __init__(self, shard: int, message: str) -> None:
        """`shard` is its number in the `ShardSet`."""
        super().__init__(message)
        self.shard = shard
