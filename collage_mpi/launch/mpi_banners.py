"""What launchers print when a rank ends badly, taken out of the stream.

Owns: recognising banners, holding them back.
Does not know: how a launcher's look (system/launchers), processes, exit codes.

One failure gets one message. When a rank has said what is wrong, the launcher's fifteen
lines about it are dropped; when nobody has, they are all there is, and are shown last.
"""

from __future__ import annotations

import re

from collage_mpi.system.launchers import Launcher

# Our own message, as the command line prints it: "collage-mpi run: ...".
MESSAGE = re.compile(r"collage-mpi \w+: |This is a defect of collage-mpi")
FAILED = re.compile(r"collage-mpi: rank \d+ .* failed:")  # a rank's own last word

_RULE = re.compile(r"\s*(-{20,}|={20,})\s*$")
_LONGEST = 40  # lines; a banner without its closing rule must not swallow the output


class BannerFilter:
    """Lines in, lines out; banners are kept until `finish` says what to do with them."""

    def __init__(self, launcher: Launcher) -> None:
        self._first_line = re.compile(launcher.banner)
        self._lone_line = re.compile(launcher.lone_line)
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
            if self._first_line.match(line):
                self._banner = [rule, line]
                return []
            return [rule, *self.feed(line)]
        if _RULE.match(line):
            self._rule = line
            return []
        if self._lone_line.match(line):
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
