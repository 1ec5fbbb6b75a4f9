"""Works out the exit code of a launched job, and the line that explains it.

Also filters the launchers' banners about ended ranks. If a rank has said what is wrong, the
launcher's fifteen lines are dropped. Otherwise they are the only explanation, and are shown last.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from collage_mpi.errors import ExitCode
from collage_mpi.launch.job_ranks import BUS_ERROR, SIGNAL_NAMES
from collage_mpi.system.launchers import Death, Launcher

_KNOWN_CODES = frozenset(map(int, ExitCode))
_COMPLETE_CODES = (int(ExitCode.COMPLETE), int(ExitCode.COMPLETE_WITH_ERRORS))
_INCOMPLETE = "the job is incomplete. Go on with the same command (run: with --resume)"

# Our own message, as the command line prints it: "collage-mpi run: ...".
MESSAGE = re.compile(r"collage-mpi \w+: |This is a defect of collage-mpi")
FAILED = re.compile(r"collage-mpi: rank \d+ .* failed:")  # printed by a rank that fails

_RULE = re.compile(r"\s*(-{20,}|={20,})\s*$")
_LONGEST = 40  # lines; a banner without its closing rule must not swallow the output


class Reached(Enum):
    """How far the job has come, as reported to launch."""

    NO_RANK = auto()  # no rank has reported
    RANKS = auto()  # ranks may have started, but MPI has not
    BEGUN = auto()  # rank 0 has reported that MPI is up


@dataclass(frozen=True)
class Cut:
    """Why launch itself ended the job.

    Attributes:
        code: the exit code that follows, unless rank 0 has reported one or the run is complete.
        why: what happened.
        hung: the missing ranks of a start that hung although no rank had ended; None for any
            other reason. A second start may succeed.
    """

    code: ExitCode
    why: str
    hung: str | None = None


TIME_LIMIT = Cut(ExitCode.INCOMPLETE, "the time limit (--timeout) ended the job")


def stood_still(pid: int | None) -> Cut:
    """The reason if rank 0 was stopped for too long while other ranks waited for it."""
    return Cut(ExitCode.INCOMPLETE, f"rank 0 (pid {pid}) was stopped for good")


def never_up(missing: str, *, hung: bool) -> Cut:
    """The reason if MPI did not start in time; `missing` says which ranks the others wait for."""
    why = f"MPI did not come up on all ranks in time: {missing}"
    return Cut(ExitCode.ENVIRONMENT, why, missing if hung else None)


@dataclass
class Ending:
    """How a job ended, as far as the launching side can tell.

    Attributes:
        launcher: the launcher's exit code; negative for a signal, as in `subprocess`.
        reported: the exit code that rank 0 reported; None if it reported none.
        stopped_by: the first signal that asked the job to stop.
        cut: why launch ended the job; None if launch did not.
        reached: how far the job has come.
        died: the process that ended the job, as reported by its launcher or the shell around it.
        failed: whether a rank has printed why it failed.
    """

    launcher: int
    reported: int | None = None
    stopped_by: int | None = None
    cut: Cut | None = None
    reached: Reached = Reached.RANKS
    died: Death | None = None
    failed: bool = False

    @property
    def begun(self) -> bool:
        """Whether rank 0 has said that MPI is up."""
        return self.reached is Reached.BEGUN


def exit_code(
    ending: Ending,
    marker: Path | None,
    *,
    must_report: bool = False,
    earlier: str | None = None,
) -> tuple[int, str | None]:
    """The exit code, and a line that explains it (None if the job's output does).

    The launcher's code alone is not reliable. The code that rank 0 reported comes first, and a
    complete run must have its marker. The result is an `ExitCode`, or 128 plus the number of the
    signal that stopped the launch before the job began.

    Args:
        ending: how the job ended.
        marker: the file in `--out` that says that the run is complete; None without `--out`.
        must_report: the launcher tolerates lost ranks, so a job is incomplete if rank 0 has not
            reported a code.
        earlier: the result of `marker_text` before the job.
    """
    code, note = ending.reported, None
    if code not in _KNOWN_CODES:
        text = marker_text(marker) if ending.begun else None
        if text is not None and text != earlier:  # the job had just completed the run
            wrong = '"complete_with_errors"' in text
            marked = ExitCode.COMPLETE_WITH_ERRORS if wrong else ExitCode.COMPLETE
            return int(marked), f"{_who_ended(ending)}, after the run was complete"
        code, note = _unreported(ending, must_report)
    if code in _COMPLETE_CODES and marker is not None and not marker.exists():
        return int(ExitCode.INCOMPLETE), (
            f"the launcher says {code}, but {marker.parent} has no {marker.name} marker: "
            "the run is incomplete"
        )
    return code, note


def script_code(ending: Ending) -> tuple[int, str | None]:
    """The exit code of a user's script; if that is 0, the code that its run reported."""
    if ending.cut is not None:  # the script may not have been over, even if its run was
        return _unreported(ending, must_report=False)
    if ending.launcher < 0:
        return exit_code(ending, None)
    note = None if ending.died is None else _who_ended(ending)
    return ending.launcher or ending.reported or 0, note


def marker_text(marker: Path | None) -> str | None:
    """The content of a complete run's marker; None if there is no marker."""
    try:
        return None if marker is None else marker.read_text(errors="replace")
    except OSError:
        return None


def _unreported(ending: Ending, must_report: bool) -> tuple[int, str | None]:
    """The exit code of a job whose rank 0 has reported none."""
    code, death, incomplete = ending.launcher, ending.died, int(ExitCode.INCOMPLETE)
    if ending.cut is not None and ending.cut.code is not ExitCode.INCOMPLETE:
        return int(ending.cut.code), f"{ending.cut.why}; collage-mpi doctor says more"
    if ending.cut is not None:
        return incomplete, f"{ending.cut.why}: {_INCOMPLETE}"
    if ending.begun or (must_report and code in _COMPLETE_CODES):
        return incomplete, None if ending.failed else f"{_who_ended(ending)}: {_INCOMPLETE}"
    if ending.stopped_by is not None and code not in (*_COMPLETE_CODES, incomplete):
        return 128 + ending.stopped_by, None
    named = death is not None and death.rank is not None
    killed = death is not None and death.by_signal
    nobody = code == ExitCode.DEFECT and ending.reached is Reached.NO_RANK
    if code in _KNOWN_CODES and not (killed or (named and code != 0) or nobody):
        return code, None
    guess = ": a rank or a host has died, or MPI cannot start (is /dev/shm full?)"
    return int(ExitCode.ENVIRONMENT), (
        f"{_who_ended(ending)} before the job had begun{'' if named and not killed else guess}; "
        "collage-mpi doctor says more"
    )


def _who_ended(ending: Ending) -> str:
    """What or which process ended the job, and how, as far as that is known."""
    if ending.cut is not None:
        return ending.cut.why
    death, code = ending.died, ending.launcher
    if death is None and code < 0:
        return f"the launcher was ended by {SIGNAL_NAMES.get(-code, f'signal {-code}')}"
    if death is None or death.code is None:
        return f"a rank has ended without a message (the launcher's code is {code})"
    who = "a rank" if death.rank is None else f"rank {death.rank}"
    who += "" if death.pid is None else f" (pid {death.pid})"
    name = SIGNAL_NAMES.get(death.code - 128)
    how = f"was ended by {name}" if name else f"has ended with code {death.code}"
    full = f" ({BUS_ERROR}: collage-mpi doctor says more)" if name == "SIGBUS" else ""
    return f"{who} {how}{full}"


class BannerFilter:
    """Takes launchers' banners out of a stream of lines and holds them back until `finish`."""

    def __init__(self, launcher: Launcher) -> None:
        self._first_line = re.compile(launcher.banner)
        self._lone_line = re.compile(launcher.lone_line)
        self.explained = self.failed = False
        self._rule: str | None = None
        self._banner: list[str] | None = None
        self._held: list[str] = []

    def feed(self, line: str) -> list[str]:
        """The lines to show now that `line` has arrived. Lines have no newline."""
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
        """The lines that were held back. Call it once, at the end of the stream."""
        left = [*self._held, *(self._banner or []), *([self._rule] if self._rule else [])]
        self._held, self._banner, self._rule = [], None, None
        return left

    def _continue_banner(self, line: str) -> None:
        assert self._banner is not None
        self._banner.append(line)
        if _RULE.match(line) or len(self._banner) >= _LONGEST:
            self._held += self._banner
            self._banner = None
