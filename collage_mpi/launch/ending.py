"""Works out the exit code of a launched job, and the line that explains it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from collage_mpi.errors import ExitCode
from collage_mpi.launch.startup import BUS_ERROR, SIGNAL_NAMES, Death

_KNOWN_CODES = frozenset(map(int, ExitCode))
_COMPLETE_CODES = (int(ExitCode.COMPLETE), int(ExitCode.COMPLETE_WITH_ERRORS))
_INCOMPLETE = "the job is incomplete. Go on with the same command (run: with --resume)"


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
        must_report: the launcher tolerates lost ranks, so its 0 does not mean that the job is
            complete.
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
