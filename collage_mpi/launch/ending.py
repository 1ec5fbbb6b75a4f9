"""Follows the start of a job until MPI is up on all ranks. Works out the exit code of a job that
has ended, and the line that explains it.
"""

from __future__ import annotations

import math
import signal
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from collage_mpi.errors import ExitCode
from collage_mpi.system.printable import numbered

TELL_AFTER_S = 30.0  # until the first message about a slow start; the next come at twice the time
INIT_LIMIT_S = 120.0  # until MPI must be up after all ranks have begun to start it (usually 1 s)
END_GRACE_S = 10.0  # until MPI must be up after a rank has ended
MOST_NAMED = 12

BUS_ERROR = "/dev/shm may be full"  # ranks of one host exchange messages there
SIGNAL_NAMES = {int(number): number.name for number in signal.Signals}


@dataclass(frozen=True)
class Death:
    """The end of a rank, as the shell around it reports it. `code` is 128 + the number for a
    signal.
    """

    rank: int
    code: int

    @property
    def by_signal(self) -> bool:
        """Whether a signal killed it."""
        return self.code > 128


class Startup:
    """The state of a start.

    Args:
        ranks: of the world.
        limit_s: time until rank 0 must report that MPI is up, or send anything else that
            launch listens for. None if it is unknown whether a report will come (a user's
            script); then the limit counts from the moment at which a rank reports that it
            begins to start MPI.
        clock: monotonic seconds.
    """

    def __init__(self, ranks: int, limit_s: float | None, clock: Callable[[], float]) -> None:
        self.up = False
        self.there: set[int] = set()  # ranks whose Python runs and begins to start MPI
        self.ended: Death | None = None  # the first rank that ended before MPI was up
        self._ranks, self._clock, self._began_s = ranks, clock, clock()
        self._limited = limit_s is not None
        self._until_s = math.inf if limit_s is None else self._began_s + limit_s
        self._tell_after_s = TELL_AFTER_S

    @property
    def watched(self) -> bool:
        """Whether MPI is expected to come up and has not yet."""
        return not self.up and (self._limited or bool(self.there))

    def arrived(self, rank: int) -> None:
        """A rank begins to start MPI. Once all ranks do, MPI is up within moments."""
        self.there.add(rank)
        if len(self.there) >= self._ranks:
            self._at_most(INIT_LIMIT_S)

    def has_ended(self, death: Death) -> None:
        """A rank has ended. Without it MPI cannot start, unless it was just about to."""
        if not self.up and self.ended is None:
            self.ended = death
            self._at_most(END_GRACE_S)

    def too_late(self, now_s: float) -> bool:
        """Whether the time for the start is over."""
        return self.watched and now_s > self._until_s

    def was_suspended(self, gap_s: float) -> None:
        """Launch was suspended together with the ranks, so this time does not count."""
        self._began_s += gap_s
        self._until_s += gap_s

    def news(self, now_s: float) -> str | None:
        """What to print, now and then, about a start that takes long."""
        waited_s = now_s - self._began_s
        if not self.watched or waited_s < self._tell_after_s:
            return None
        self._tell_after_s = 2 * waited_s
        return f"MPI is not up after {waited_s:.0f} s: {self.who_is_missing()}"

    def status(self) -> dict[str, Any]:
        """The status for the display."""
        there = len(self.there)
        return {"phase": "starting", "done": there, "total": self._ranks, "unit": "ranks"}

    def who_is_missing(self) -> str:
        """The ranks that the others wait for, in words."""
        if self.ended is not None:
            how = SIGNAL_NAMES.get(self.ended.code - 128, f"code {self.ended.code}")
            full = f": {BUS_ERROR}" if how == "SIGBUS" else ""
            return f"rank {self.ended.rank} has ended before it ({how}{full})"
        missing = [rank for rank in range(self._ranks) if rank not in self.there]
        if not missing:
            return f"all {self._ranks} ranks have begun to start MPI and wait for each other"
        return (
            f"{len(self.there)} of {self._ranks} ranks are there; nothing yet of "
            f"{numbered('rank', missing, MOST_NAMED)}: dead, hung or slow to import"
        )

    def _at_most(self, seconds: float) -> None:
        self._until_s = min(self._until_s, self._clock() + seconds)


_KNOWN_CODES = frozenset(map(int, ExitCode))
_COMPLETE_CODES = (int(ExitCode.COMPLETE), int(ExitCode.COMPLETE_WITH_ERRORS))
_INCOMPLETE = "the job is incomplete. Go on with the same command"


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
        died: the rank that ended the job, as far as the shells around the ranks tell.
    """

    launcher: int
    reported: int | None = None
    stopped_by: int | None = None
    cut: Cut | None = None
    reached: Reached = Reached.RANKS
    died: Death | None = None

    @property
    def begun(self) -> bool:
        """Whether rank 0 has said that MPI is up."""
        return self.reached is Reached.BEGUN


def exit_code(
    ending: Ending,
    status: Callable[[], str | None] | None,
    *,
    must_report: bool = False,
    earlier: str | None = None,
) -> tuple[int, str | None]:
    """The exit code, and a line that explains it (None if the job's output does).

    The launcher's code alone is not reliable. The code that rank 0 reported comes first, and a
    run is complete if its folder says so. The result is an `ExitCode`, or 128 plus the number of
    the signal that stopped the launch before the job began.

    Args:
        ending: how the job ended.
        status: gives that of the run in `--out` if it is complete, otherwise None; None without
            `--out`.
        must_report: the launcher tolerates lost ranks, so its 0 does not mean that the job is
            complete.
        earlier: the result of `status` before the job.
    """
    code, note = ending.reported, None
    if code not in _KNOWN_CODES:
        now = status() if ending.begun and status is not None else None
        if now is not None and now != earlier:  # the job had just completed the run
            wrong = now == "complete_with_errors"
            marked = ExitCode.COMPLETE_WITH_ERRORS if wrong else ExitCode.COMPLETE
            return int(marked), f"{_who_ended(ending)}, after the run was complete"
        code, note = _unreported(ending, must_report)
    if code in _COMPLETE_CODES and status is not None and status() is None:
        return int(ExitCode.INCOMPLETE), (
            f"the launcher says {code}, but images of the run have no row: the run is incomplete"
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


def _unreported(ending: Ending, must_report: bool) -> tuple[int, str | None]:
    """The exit code of a job whose rank 0 has reported none."""
    code, death, incomplete = ending.launcher, ending.died, int(ExitCode.INCOMPLETE)
    if ending.cut is not None and ending.cut.code is not ExitCode.INCOMPLETE:
        return int(ending.cut.code), f"{ending.cut.why}; collage-mpi doctor says more"
    if ending.cut is not None:
        return incomplete, f"{ending.cut.why}: {_INCOMPLETE}"
    if ending.begun:
        return incomplete, f"{_who_ended(ending)}: {_INCOMPLETE}"
    # Open MPI's launcher returns 0 when it has lost a host before MPI was up.
    false = must_report and code in _COMPLETE_CODES
    if ending.stopped_by is not None and (false or code not in (*_COMPLETE_CODES, incomplete)):
        return 128 + ending.stopped_by, None
    killed = death is not None and death.by_signal
    nobody = code == ExitCode.DEFECT and ending.reached is Reached.NO_RANK
    wrong = killed or (death is not None and code != 0) or nobody
    if code in _KNOWN_CODES and not (false or wrong):
        return code, None
    guess = ": a rank or a host has died, or MPI cannot start (is /dev/shm full?)"
    return int(ExitCode.ENVIRONMENT), (
        f"{_who_ended(ending)} before the job had begun{'' if death and not killed else guess}; "
        "collage-mpi doctor says more"
    )


def _who_ended(ending: Ending) -> str:
    """What or which process ended the job, and how, as far as that is known."""
    if ending.cut is not None:
        return ending.cut.why
    death, code = ending.died, ending.launcher
    if death is None and code < 0:
        return f"the launcher was ended by {SIGNAL_NAMES.get(-code, f'signal {-code}')}"
    if death is None:
        return f"a rank has ended without a message (the launcher's code is {code})"
    name = SIGNAL_NAMES.get(death.code - 128)
    how = f"was ended by {name}" if name else f"has ended with code {death.code}"
    full = f" ({BUS_ERROR}: collage-mpi doctor says more)" if name == "SIGBUS" else ""
    return f"rank {death.rank} {how}{full}"
