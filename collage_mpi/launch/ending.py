"""How a launched job ended, and the exit code and the line that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from collage_mpi.errors import ExitCode
from collage_mpi.launch.startup import BUS_ERROR, SIGNAL_NAMES
from collage_mpi.system.launchers import Death

_KNOWN_CODES = frozenset(map(int, ExitCode))
_COMPLETE_CODES = (int(ExitCode.COMPLETE), int(ExitCode.COMPLETE_WITH_ERRORS))
_INCOMPLETE = "the job is incomplete. Go on with the same command and --resume"


class Reached(Enum):
    """How far a job came, as far as launch has heard of it."""

    NO_RANK = auto()  # launch listened for ranks and heard none
    RANKS = auto()  # ranks may have started; nobody has said that MPI is up
    BEGUN = auto()  # rank 0 has said that MPI is up


@dataclass(frozen=True)
class Cut:
    """Why launch itself ended the job.

    Attributes:
        code: the exit code that follows.
        note: the line that explains it.
        hung: of a start that hung though no rank had ended, which ranks are missing. Another
            start may succeed.
    """

    code: ExitCode
    note: str
    hung: str | None = None


TIME_LIMIT = Cut(ExitCode.INCOMPLETE, "the time limit (--timeout) ended the job: incomplete")


def stood_still(pid: int | None) -> Cut:
    """Rank 0's process was stopped for too long while other ranks waited for it."""
    return Cut(ExitCode.INCOMPLETE, f"rank 0 (pid {pid}) was stopped for good: {_INCOMPLETE}")


def never_up(missing: str, *, hung: bool) -> Cut:
    """MPI did not come up in time on all ranks; `missing` says which ranks the others wait for."""
    note = f"MPI did not come up on all ranks in time: {missing}; collage-mpi doctor says more"
    return Cut(ExitCode.ENVIRONMENT, note, missing if hung else None)


@dataclass
class Ending:
    """How a job ended, as far as the launching side can tell.

    Attributes:
        launcher: the launcher's exit code, negative for a signal, as subprocess says it.
        reported: the code rank 0 said it would leave with; None if it said nothing.
        stopped_by: the first signal that asked the job to stop.
        cut: why launch ended the job; None if launch did not.
        died: the process that ended the job, as its launcher or the shell around it says.
        failed: whether a rank has said that it failed, and why.
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
    """The code to leave with, and a line that explains it if the job's own output did not.

    The launcher's code alone is not trusted: rank 0's word comes first, and a run that
    says complete must have its marker. The code is an `ExitCode`, or 128 and the number of the
    signal that stopped the launch before the job had begun.

    Args:
        marker: the file in `--out` that says that the run is complete; None without `--out`.
        must_report: the launcher makes nothing of lost ranks, so a job whose rank 0 has not said
            its code is incomplete.
        earlier: what `marker_text` said before the job.
    """
    cut, code, note = ending.cut, ending.reported, None
    if cut is not None and (cut.code is ExitCode.INCOMPLETE or code not in _KNOWN_CODES):
        return int(cut.code), cut.note
    if code not in _KNOWN_CODES:
        text = marker_text(marker) if ending.begun else None
        if text is not None and text != earlier:  # the job had just completed the run
            return _marked_code(text), f"{_who_ended(ending)}, after the run was complete"
        code, note = _without_a_word(ending, must_report)
    if code in _COMPLETE_CODES and marker is not None and not marker.exists():
        return int(ExitCode.INCOMPLETE), (
            f"the launcher says {code}, but {marker.parent} has no {marker.name} marker: "
            "the run is incomplete"
        )
    return code, note


def script_code(ending: Ending) -> tuple[int, str | None]:
    """The code of a user's own script: what it left with, or, for 0, what its run ended with."""
    if ending.cut is not None or ending.launcher < 0:
        return exit_code(ending, None)
    note = None if ending.died is None else _who_ended(ending)
    return ending.launcher or ending.reported or 0, note


def marker_text(marker: Path | None) -> str | None:
    """What the marker of a complete run says; None if there is none."""
    try:
        return None if marker is None else marker.read_text(errors="replace")
    except OSError:
        return None


def _marked_code(text: str) -> int:
    with_errors = '"complete_with_errors"' in text
    return int(ExitCode.COMPLETE_WITH_ERRORS if with_errors else ExitCode.COMPLETE)


def _without_a_word(ending: Ending, must_report: bool) -> tuple[int, str | None]:
    """The code of a job whose rank 0 has not said its own: launchers have codes of their own."""
    code, death, incomplete = ending.launcher, ending.died, int(ExitCode.INCOMPLETE)
    if ending.begun or (must_report and code in _COMPLETE_CODES):
        return incomplete, None if ending.failed else f"{_who_ended(ending)}: {_INCOMPLETE}"
    if ending.stopped_by is not None and code not in (*_COMPLETE_CODES, incomplete):
        return 128 + ending.stopped_by, None
    named = death is not None and death.rank is not None
    killed = death is not None and death.by_signal
    nobody = code == ExitCode.DEFECT and ending.reached is Reached.NO_RANK
    if code in _KNOWN_CODES and not (killed or (named and code != 0) or nobody):
        return code, None
    guess = ": a rank has died, or MPI cannot start (is /dev/shm full?)"
    return int(ExitCode.ENVIRONMENT), (
        f"{_who_ended(ending)} before the job had begun{'' if named and not killed else guess}; "
        "collage-mpi doctor says more"
    )


def _who_ended(ending: Ending) -> str:
    """Which process ended the job, and how, as far as that is known."""
    death, code = ending.died, ending.launcher
    if death is None and code < 0:
        return f"the launcher was ended by {SIGNAL_NAMES.get(-code, f'signal {-code}')}"
    if death is None or death.code is None:
        return f"a rank has ended without a word (the launcher's code is {code})"
    who = "a rank" if death.rank is None else f"rank {death.rank}"
    who += "" if death.pid is None else f" (pid {death.pid})"
    name = SIGNAL_NAMES.get(death.code - 128)
    how = f"was ended by {name}" if name else f"has ended with code {death.code}"
    full = f" ({BUS_ERROR}: collage-mpi doctor says more)" if name == "SIGBUS" else ""
    return f"{who} {how}{full}"
