"""Prints the doctor's findings: one verdict and fix a line, the map of the ranks, the
conclusion.
"""

from __future__ import annotations

import os
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

from collage_mpi.doctor.facts import BAD, OK, WARN, Finding
from collage_mpi.system.environment import launcher_size
from collage_mpi.system.printable import counted

COLOURS = {OK: "\033[32m", WARN: "\033[33m", BAD: "\033[1;31m"}
PLAIN = "\033[0m"
NAME_WIDTH = 11
PLAIN_WIDTH = 100  # of a file or a pipe


class Screen:
    """Prints to a stream, in colour only if that is wanted."""

    def __init__(self, stream: TextIO, environ: Mapping[str, str] = os.environ) -> None:
        # Open MPI gives its ranks a terminal of their own, whatever is behind it.
        terminal = stream.isatty() and launcher_size(environ) is None
        self._stream = stream
        self._colours = terminal and "NO_COLOR" not in environ and environ.get("TERM") != "dumb"
        columns = shutil.get_terminal_size((PLAIN_WIDTH, 24)).columns
        self._width = max(40, min(columns, 140))

    def line(self, text: str = "") -> None:
        """One line, flushed at once, because the next step may take seconds."""
        print(text, file=self._stream, flush=True)

    def findings(self, findings: Iterable[Finding]) -> None:
        """Each finding, its fix below it."""
        for finding in findings:
            self._entry(finding.verdict, finding.name, finding.found)
            if finding.fix:
                self._entry("", "  fix", finding.fix)

    def _entry(self, verdict: str, name: str, text: str) -> None:
        indent = " " * (6 + NAME_WIDTH + 1)
        lines = textwrap.wrap(
            text,
            max(24, self._width - len(indent)),
            break_on_hyphens=False,
            break_long_words=False,
        ) or [""]
        colour = COLOURS.get(verdict) if self._colours else None
        label = f"{verdict:<5}"
        label = f"{colour}{label}{PLAIN}" if colour else label
        self.line(f"{label} {name:<{NAME_WIDTH}} {lines[0]}".rstrip())
        for line in lines[1:]:
            self.line(indent + line)

    def map(self, lines: Sequence[str]) -> None:
        """The map of the ranks, set off."""
        self.line()
        for line in lines:
            self.line("  " + line)
        self.line()

    def verdict(self, findings: Sequence[Finding], next_step: str) -> None:
        """The conclusion."""
        bad = sum(finding.verdict == BAD for finding in findings)
        warnings = sum(finding.verdict == WARN for finding in findings)
        noted = f", {counted(warnings, 'warning')}" if warnings else ""
        if bad:
            self.line(f"{counted(bad, 'fault')}{noted}: do what `fix` says, and ask again")
        else:
            self.line(f"no fault{noted}. Next: {next_step}")
