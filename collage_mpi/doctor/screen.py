"""Prints the doctor's findings: one verdict and fix a line, the conclusion, and the map of the
ranks on one screen, on which ranks and hosts that are alike share a line.
"""

from __future__ import annotations

import os
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

from collage_mpi.doctor.facts import BAD, OK, WARN, Finding, Rank
from collage_mpi.system.environment import launcher_size
from collage_mpi.system.printable import counted, numbers_text

COLOURS = {OK: "\033[32m", WARN: "\033[33m", BAD: "\033[1;31m"}
PLAIN = "\033[0m"
NAME_WIDTH = 11
PLAIN_WIDTH = 100  # of a file or a pipe
MOST_LINES = 16  # of the map


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


HEADER = ("ranks", "host", "holds", "device", "threads", "cores")


def map_lines(ranks: Sequence[Rank], roles: Sequence[str], most: int = MOST_LINES) -> list[str]:
    """The map in rank order, as aligned columns, cut to `most` lines.

    Args:
        ranks: the reports, any order.
        roles: what each rank of the world holds, e.g. "single", by rank.
    """
    on_host: dict[tuple[str, str], list[Rank]] = {}
    for rank in sorted(ranks, key=lambda rank: rank.rank):
        on_host.setdefault((rank.host, roles[rank.rank]), []).append(rank)
    alike: dict[tuple[str, ...], list[list[Rank]]] = {}
    for (_, role), group in on_host.items():
        looks = (
            role,
            devices_text([device_label(rank) for rank in group]),
            ",".join(sorted({str(rank.threads) for rank in group})),
            ",".join(sorted({str(rank.cores) for rank in group})),
            str(len(group)),
        )
        alike.setdefault(looks, []).append(group)
    rows = [HEADER, *(_row(looks, groups) for looks, groups in list(alike.items())[:most])]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = [
        "  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
    if len(alike) > most:
        text.append(f"... {len(alike) - most} more lines; --json has every rank")
    return text


def _row(looks: tuple[str, ...], groups: list[list[Rank]]) -> tuple[str, ...]:
    *shown, count = looks
    numbers = sorted(rank.rank for group in groups for rank in group)
    hosts = hosts_text(group[0].host for group in groups)
    if len(groups) > 1:
        hosts += f" ({count} each)"
    return (numbers_text(numbers), hosts, *shown)


def hosts_text(hosts: Iterable[str]) -> str:
    """Host names as `node[01-04]` if they differ only in their last number."""
    names = list(dict.fromkeys(hosts))
    if len(names) == 1:
        return names[0]
    found = [re.fullmatch(r"(.*?)(\d+)(\D*)", name) for name in names]
    stems = {(m.group(1), len(m.group(2)), m.group(3)) for m in found if m}
    if all(found) and len(stems) == 1:
        ((stem, digits, tail),) = stems
        parts = numbers_text(sorted(int(m.group(2)) for m in found if m))
        padded = re.sub(r"\d+", lambda m: m.group().zfill(digits), parts)
        if ".." not in parts and "/" not in parts:
            return f"{stem}[{padded.replace(', ', ',')}]{tail}"
    return f"{names[0]} .. {names[-1]}, {len(names)} hosts"


def device_label(rank: Rank) -> str:
    """`cuda:1`, or `GPU 3` if CUDA_VISIBLE_DEVICES gives the device another number."""
    if rank.device is None:
        return "none"
    if rank.gpu is None or rank.device in ("cpu", f"cuda:{rank.gpu}"):
        return rank.device
    return f"GPU {rank.gpu[:12]}"


def devices_text(devices: Sequence[str]) -> str:
    """Devices in rank order as `cpu`, `cuda:0-7`, `cuda:0-1 x4` (each of them four times)."""
    kinds = sorted(set(devices))
    numbers = [int(d[5:]) for d in devices if d.startswith("cuda:")]
    if len(numbers) != len(devices):
        return ", ".join(kinds[:4]) + (", ..." if len(kinds) > 4 else "")
    used = sorted(set(numbers))
    counts = {numbers.count(number) for number in used}
    times = (
        ""
        if counts == {1}
        else f" x{min(counts)}" + ("" if len(counts) == 1 else f"-{max(counts)}")
    )
    return f"cuda:{numbers_text(used).replace(' ', '')}{times}"
