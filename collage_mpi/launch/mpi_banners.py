"""What launchers print when a rank ends badly, taken out of the stream.

Owns: recognising the banners of MPICH and Open MPI, holding them back, what they say.
Does not know: processes, which stream a line came from, exit codes.

One failure gets one message. When a rank has said what is wrong, the launcher's fifteen
lines about it are dropped; when nobody has, they are all there is, and are shown last.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

# Our own message, as the command line prints it: "collage-mpi run: ...".
MESSAGE = re.compile(r"collage-mpi \w+: |This is a defect of collage-mpi")
FAILED = re.compile(r"collage-mpi: rank \d+ .* failed:")  # a rank's own last word

_RULE = re.compile(r"\s*(-{20,}|={20,})\s*$")
_FIRST_LINE = re.compile(
    r"\s*(prterun|mpirun|mpiexec|orterun) (detected|has exited|noticed)"
    r"|\s*MPI_ABORT was invoked"
    r"|\s*Primary job +terminated normally"
    r"|=\s+BAD TERMINATION OF ONE OF YOUR APPLICATION PROCESSES"
)
_LONE_LINE = re.compile(
    r"\s*Abort\(-?\d+\) on node \d+ \(rank \d+ in comm \d+\): application called MPI_Abort"
    r"|YOUR APPLICATION TERMINATED WITH THE EXIT STRING"
    r"|This typically refers to a problem with your application"
    r"|Please see the FAQ page for debugging suggestions"
)
_SEGV_OR_KILL = 11 | 9
_LONGEST = 40  # lines; a banner without its closing rule must not swallow the output


@dataclass(frozen=True)
class Death:
    """A process that ended badly: None is what nobody has said. `code` is 128 + a signal's."""

    code: int | None = None
    rank: int | None = None
    pid: int | None = None

    @property
    def by_signal(self) -> bool:
        """Whether it is certain that it was killed."""
        return self.code is not None and self.code > 128


def death_in(lines: Sequence[str]) -> Death | None:
    """The death that banners tell of; None when they tell of none.

    MPICH's names any process that it ended, and all signals as one number, ORed: of that only
    what is certain is kept, and no process.
    """
    text = "\n".join(lines)

    def number(pattern: str) -> int | None:
        found = re.search(pattern, text)
        return int(found.group(1)) if found else None

    if "BAD TERMINATION" in text:
        code = number(r"=   EXIT CODE: (\d+)")
        signal = number(r"EXIT STRING: .*\(signal (\d+)\)")
        if signal is not None:
            code = 128 + signal if signal in (code, _SEGV_OR_KILL) else None
        return Death(code)
    signal = number(r"exited on\s+signal (\d+)")
    code = number(r"Exit code: +(\d+)") if signal is None else 128 + signal
    rank = number(r"(?:process rank |Process name: \[.*,)(\d+)")
    return None if code is None else Death(code, rank, number(r"with PID ([1-9]\d*) on node"))


class BannerFilter:
    """Lines in, lines out; banners are kept until `finish` says what to do with them."""

    def __init__(self) -> None:
        self.explained = self.failed = False
        self._rule: str | None = None
        self._banner: list[str] | None = None
        self._held: list[str] = []

    def feed(self, line: str) -> list[str]:
        """The lines to show now that `line` has arrived. Lines come without newline."""
        if MESSAGE.match(line):
            self.explained = True
        self.failed = self.failed or FAILED.match(line) is not None
        if self._banner is not None:
            self._continue_banner(line)
            return []
        if self._rule is not None:
            rule, self._rule = self._rule, None
            if _FIRST_LINE.match(line):
                self._banner = [rule, line]
                return []
            return [rule, *self.feed(line)]
        if _RULE.match(line):
            self._rule = line
            return []
        if _LONE_LINE.match(line):
            self._held.append(line)
            return []
        return [line]

    def finish(self) -> list[str]:
        """At the end of the stream: what is still to be shown. Call once, for each filter."""
        left = [*self._held, *(self._banner or []), *([self._rule] if self._rule else [])]
        self._held, self._banner, self._rule = [], None, None
        return left

    def _continue_banner(self, line: str) -> None:
        assert self._banner is not None
        self._banner.append(line)
        if _RULE.match(line) or len(self._banner) >= _LONGEST:
            self._held += self._banner
            self._banner = None
