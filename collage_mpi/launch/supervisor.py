"""Run one launched job to its end: output, progress, signals, timeout, exit code.

Owns: the launcher's process, its two streams, signal forwarding, the true exit code.
Does not know: what differs between launchers, what the ranks do.
"""

from __future__ import annotations

import ctypes
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TextIO, cast

from collage_mpi.errors import ExitCode
from collage_mpi.launch.job_ranks import LOOK_AT_START_S, LOOK_EVERY_S, Kin
from collage_mpi.launch.mpi_banners import BannerFilter
from collage_mpi.launch.mpiexec import LaunchPlan
from collage_mpi.launch.scratch import VARIABLE, held, note_signal
from collage_mpi.launch.startup import BUS_ERROR, SIGNAL_NAMES, Start
from collage_mpi.system.environment import STATUS_VARIABLE
from collage_mpi.system.launchers import FAMILIES, Death, Launcher
from collage_mpi.system.process_tree import end_family, guarded
from collage_mpi.system.progress import Display, display_for, split_statuses
from collage_mpi.system.safe_stream import SafeStream

POLL_S = 0.1
DRAIN_S = 1.0  # output that comes after the launcher has ended
LEAVE_GRACE_S = 10.0  # ranks that outlive each other leave within moments of rank 0
STOP_GRACE_S = 20.0  # from the request to stop until ranks are killed: time to write results
END_GRACE_S = 2.0  # from SIGTERM to SIGKILL
ASLEEP_S = 5.0  # between two looks: launch itself was suspended, and the job with it
STILL_NOTICE_S = 30.0  # rank 0 alone is stopped: when to say so,
STILL_LIMIT_S = 300.0  # and when to end the job

JOB_VARIABLE = "COLLAGE_MPI_JOB"  # a word of its own in the environment of all its processes
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)

# What completes a run besides the code (C7): the marker that results write last.
_KNOWN_CODES = frozenset(map(int, ExitCode))
_COMPLETE_CODES = (int(ExitCode.COMPLETE), int(ExitCode.COMPLETE_WITH_ERRORS))


@dataclass
class Outcome:
    """How the job ended, as far as the launching side can tell.

    Attributes:
        launcher: the launcher's exit code, negative for a signal, as subprocess says it.
        reported: the code rank 0 said it would leave with; None if it said nothing.
        stopped_by: the first signal that asked us to stop.
        timed_out: whether the time limit ended it.
        never_up: why MPI did not come up on all ranks in time, where that ended it.
        begun: whether rank 0 has said that MPI is up.
        heard: ranks that were there before; None where nobody listened for them.
        hung: whether it ended so though no rank had ended: another start may do.
        died: the process that ended the job, as its launcher or the shell around it says, when
            it said nothing itself.
        failed: whether a rank has said that and why it failed.
        stood_still: rank 0's process, when it was stopped for too long while others waited.
    """

    launcher: int
    reported: int | None = None
    stopped_by: int | None = None
    timed_out: bool = False
    never_up: str | None = None
    begun: bool = False
    heard: int | None = None
    hung: bool = False
    died: Death | None = None
    failed: bool = False
    stood_still: int | None = None


class Job:
    """One launched job. Use: `Job(plan, "mpich").run()`.

    Args:
        plan: command line and variables.
        family: of the MPI; decides the stop signal, and what its banners look like.
        timeout_s: None for no limit.
        out, err: where the ranks' output goes; the display is drawn on err.
        stop_grace_s: seconds a job has to end after it was asked to stop.
        leave_grace_s: seconds from rank 0's last word, or its end, until what is left is killed;
            None to wait.
            A launcher that makes nothing of lost ranks waits for a stopped one for ever.
        start_limit_s: seconds until rank 0 has said that MPI is up, or anything else that
            launch listens for; None for no limit. A rank that dies before leaves the others
            waiting in MPI_Init, deaf to signals (see startup).
        signals: that have come and are still to be passed on.
    """

    def __init__(
        self,
        plan: LaunchPlan,
        family: str,
        timeout_s: float | None = None,
        out: TextIO | None = None,
        err: TextIO | None = None,
        stop_grace_s: float = STOP_GRACE_S,
        clock: Callable[[], float] = time.monotonic,
        start_limit_s: float | None = None,
        leave_grace_s: float | None = None,
        signals: list[int] | None = None,
    ) -> None:
        self._leave_grace_s = leave_grace_s
        self._word = plan.env.get(STATUS_VARIABLE)
        self._plan, self._launcher = plan, FAMILIES[family]
        self._timeout_s, self._stop_grace_s, self._clock = timeout_s, stop_grace_s, clock
        # A log's full disk, or a reader that has gone, is no reason to end a job.
        self._out = cast(TextIO, SafeStream(out or sys.stdout))
        self._err = cast(TextIO, SafeStream(err or sys.stderr))
        self._display: Display = display_for(self._err)
        self._listens = start_limit_s is not None
        self._startup = Start(plan.ranks, start_limit_s, clock)
        self._signals = [] if signals is None else signals
        self._kill_at_s: float | None = None
        self._outcome = Outcome(launcher=0)
        # Known by this word even when the launcher has been killed: nobody's children then.
        self._job = f"{JOB_VARIABLE}={uuid.uuid4().hex}"
        self._kin = Kin(self._job)
        self._look_at_s, self._noticed = 0.0, False
        self._last_words: dict[int | None, str] = {}  # of ranks that rank 0 speaks for, by rank

    def run(self) -> Outcome:
        """Start the job, follow it to its end, leave nothing of it behind."""
        grace_s = round(self._stop_grace_s)
        with (
            handled_by(self._signals.append),
            held(self._plan.scratch) as locks,
            guarded(self._job, grace_s, self._plan.scratch, locks) as guard,
        ):
            process = _start(self._plan, self._job)
            self._show_start()
            try:
                self._follow(process)
            finally:
                end_family(process, grace_s=0.0, word=self._job)
                self._kin.tidy()
                guard.sweep = self._listens and not self._startup.up
                self._display.close()
        self._outcome.launcher = process.returncode
        if self._listens:
            self._outcome.heard = len(self._startup.there)
        return self._outcome

    def _follow(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        streams = [
            _Stream(process.stdout.fileno(), self._out, self, self._launcher),
            _Stream(process.stderr.fileno(), self._err, self, self._launcher),
        ]
        now_s = self._clock()
        limit_s = None if self._timeout_s is None else now_s + self._timeout_s
        drain_until_s: float | None = None
        with selectors.DefaultSelector() as selector:
            for stream in streams:
                selector.register(stream.fd, selectors.EVENT_READ, stream)
            while selector.get_map():
                for key, _ in selector.select(POLL_S):
                    if not key.data.read():
                        selector.unregister(key.fd)
                looked_s, now_s = now_s, self._clock()
                self._forgive(now_s - looked_s)
                self._pass_signals(process, now_s)
                if limit_s is not None and now_s > limit_s:
                    self._outcome.timed_out, limit_s = True, None
                    self._kill_at_s = now_s
                self._look_at_start(now_s)
                self._mind_rank_0(now_s)
                self._display.tick()
                if self._kill_at_s is not None and now_s >= self._kill_at_s:
                    end_family(process, END_GRACE_S)
                if process.poll() is not None:
                    # A process that outlives the launcher may hold the pipe open.
                    drain_until_s = drain_until_s or now_s + DRAIN_S
                    if now_s > drain_until_s:
                        break
        self._wait(process, limit_s)
        explained = self._outcome.reported is not None  # rank 0 ended in good order
        explained |= any(stream.filter.explained for stream in streams)
        self._outcome.failed = any(stream.filter.failed for stream in streams)
        held = [line for stream in streams for line in stream.finish()]
        if not (explained or self._outcome.failed):
            self._tell_who_ended(held)

    def _tell_who_ended(self, held: Sequence[str]) -> None:
        """No rank has said what ended the job: the rank that left first, or the launcher, does."""
        rank, code = self._startup.ended or (None, None)
        told = code is not None and (code > 128 or self._startup.watched)
        if rank is not None and told and self._outcome.stopped_by is None:
            self._outcome.died = Death(code, rank)
            self.show(self._last_words.get(rank, "").splitlines(), self._err)
            return
        died = self._outcome.died or self._launcher.death("\n".join(held))
        if died is not None and (self._outcome.begun or died.by_signal):
            self._outcome.died = died
        else:
            self.show(held, self._err)

    def _forgive(self, gap_s: float) -> None:
        """Time in which launch was suspended is no time that ranks took."""
        if gap_s > ASLEEP_S:
            self._startup.forgive(gap_s)
            self._kill_at_s = None if self._kill_at_s is None else self._kill_at_s + gap_s

    def _mind_rank_0(self, now_s: float) -> None:
        """Nobody else ends a job whose rank 0 is stopped for good: its ranks wait for it; or one
        whose launcher goes on without ranks: MPICH's waits for the rest of a stranger's message."""
        if not self._startup.up or now_s < self._look_at_s:
            return
        self._look_at_s = now_s + LOOK_EVERY_S
        still_s, pid = self._kin.look(now_s), self._kin.rank_0
        if self._kin.gone_s >= LEAVE_GRACE_S and self._kill_at_s is None:
            self.say("all ranks have ended, their launcher has not: it is ended")
            self._kill_at_s = now_s
        if still_s < STILL_NOTICE_S:
            self._noticed = False
        elif not self._noticed:
            self._noticed = True
            self.say(
                f"rank 0 (pid {pid}) is stopped and the others wait for it: kill -CONT {pid} lets "
                f"it go on; after {STILL_LIMIT_S:g} s the job is ended as incomplete"
            )
        if still_s >= STILL_LIMIT_S and self._outcome.stood_still is None:
            self._outcome.stood_still, self._kill_at_s = pid, now_s

    def _look_at_start(self, now_s: float) -> None:
        """A start that takes long is told of; one that takes too long is ended.

        A rank whose shell or proxy was killed ends without their word: its process is gone. Nobody
        is looked for while the job stops.
        """
        stopping = self._outcome.stopped_by is not None
        if self._startup.watched and not stopping and now_s >= self._look_at_s:
            self._look_at_s = now_s + LOOK_AT_START_S
            rank = self._kin.lost()
            if rank is not None:
                self._startup.has_ended(rank, None)
        news = self._startup.news(now_s)
        if news is not None:
            self.say(news)
        if self._outcome.never_up is None and self._startup.too_late(now_s):
            self._outcome.never_up = self._startup.who_is_missing()
            self._outcome.hung = self._startup.ended is None
            self._kill_at_s = now_s

    def _show_start(self) -> None:
        if self._startup.watched:
            self._display.show({**self._startup.status(), "passing": True})

    def _wait(self, process: subprocess.Popen[bytes], limit_s: float | None) -> None:
        """Both pipes are closed; the launcher itself may still be at it."""
        while process.poll() is None:
            time.sleep(POLL_S / 5)
            now_s = self._clock()
            self._pass_signals(process, now_s)
            over = limit_s is not None and now_s > limit_s
            if over or (self._kill_at_s is not None and now_s >= self._kill_at_s):
                self._outcome.timed_out |= over
                end_family(process, END_GRACE_S)

    def _pass_signals(self, process: subprocess.Popen[bytes], now_s: float) -> None:
        """First signal: ask the ranks to stop. Any later one: end them now."""
        while self._signals:
            number = self._signals.pop(0)
            if self._outcome.stopped_by is not None:
                self._kill_at_s = now_s
                continue
            self._outcome.stopped_by = number
            self._kill_at_s = now_s + self._stop_grace_s
            name = signal.Signals(number).name
            note_signal(self._plan.scratch, name)
            self.say(f"{name}: stopping; results so far are kept. Again to stop at once.")
            if process.poll() is None:
                process.send_signal(self._launcher.stop_signal)

    def say(self, message: str) -> None:
        """A line of our own."""
        self._display.clear()
        print(f"collage-mpi launch: {message}", file=self._err, flush=True)

    def line(self, text: str, target: TextIO, filtered: BannerFilter) -> None:
        """One line of output has arrived, without its newline."""
        rest, statuses = split_statuses(text, self._word)
        for status in statuses:
            self._heed(status)
        if statuses and not rest.strip():
            return
        self.show(filtered.feed(rest), target)

    def _heed(self, status: dict[str, Any]) -> None:
        """What rank 0, or the shell around a rank, has to say."""
        if isinstance(status.get("ended"), int):
            self._ended(status["ended"], status.get("code", 0))
            return
        if isinstance(status.get("there"), int):
            self._startup.arrived(status["there"])
            self._show_start()
            return
        if isinstance(status.get("fault"), str):
            self._last_words.setdefault(status.get("rank"), status["fault"])
            return
        if not self._startup.up:
            self._startup.up = True
            self._kin.meet()
        if "up" in status:
            self._outcome.begun = True
            return
        if isinstance(status.get("exit"), int):
            self._outcome.reported = status["exit"]
            if self._leave_grace_s is not None:
                self._kill_at_s = self._clock() + self._leave_grace_s
        else:
            self._display.show(status)

    def _ended(self, rank: int, code: int) -> None:
        """A rank has ended. If it is rank 0 the others leave, all but one that is stopped."""
        if rank == 0 and self._startup.up:
            if self._leave_grace_s is not None:
                self._kill_at_s = self._clock() + self._leave_grace_s
            if code:
                self._outcome.died = Death(code, rank)
        self._startup.has_ended(rank, code)

    def show(self, lines: Sequence[str], target: TextIO) -> None:
        """Pass lines on at once."""
        if lines:
            self._display.clear()
            target.write("".join(line + "\n" for line in lines))
            target.flush()


class _Stream:
    """One pipe of the launcher, cut into lines."""

    def __init__(self, fd: int, target: TextIO, job: Job, launcher: Launcher) -> None:
        self.fd, self._target, self._job = fd, target, job
        self._rest = b""
        self.filter = BannerFilter(launcher)

    def read(self) -> bool:
        """Take what is there; False at the end of the stream."""
        data = os.read(self.fd, 65536)
        text = data.replace(b"\0", b"")  # prterun ends its MPI_ABORT banner with one
        *lines, self._rest = (self._rest + text).split(b"\n")
        for line in lines:
            self._job.line(line.decode(errors="replace"), self._target, self.filter)
        return bool(data)

    def finish(self) -> list[str]:
        """The last line may have no newline; the banners that were held back."""
        if self._rest:
            self._job.line(self._rest.decode(errors="replace"), self._target, self.filter)
            self._rest = b""
        return self.filter.finish()


def exit_code(
    outcome: Outcome,
    marker: Path | None,
    *,
    must_report: bool = False,
    earlier: str | None = None,
) -> tuple[int, str | None]:
    """The code to leave with, and a line that explains it if the job's own did not.

    The launcher's code alone is not trusted: rank 0's word comes first, and a run that
    says complete must have its marker. It is an `ExitCode`, or 128 and the number of the signal
    that stopped the launch before the job had begun.

    Args:
        outcome: how the job ended.
        marker: the file that says in `--out` that the run is complete, or None if there is no
            `--out` to look at.
        must_report: a job whose rank 0 has not said its code is incomplete: the launcher was
            told to make nothing of lost ranks, rank 0 among them.
        earlier: what `marker_text` said before the job.
    """
    incomplete, note = int(ExitCode.INCOMPLETE), None
    if outcome.timed_out:
        return incomplete, "the time limit (--timeout) ended the job: incomplete"
    if outcome.stood_still is not None:
        return incomplete, f"rank 0 (pid {outcome.stood_still}) was stopped for good: {_INCOMPLETE}"
    if outcome.reported in _KNOWN_CODES:
        code = outcome.reported
    elif outcome.never_up is not None:
        return int(ExitCode.ENVIRONMENT), (
            f"MPI did not come up on all ranks in time: {outcome.never_up}; "
            "collage-mpi doctor says more"
        )
    else:
        code, note = _without_a_word(outcome, must_report)
        text = marker_text(marker) if outcome.begun else None
        if text is not None and text != earlier:  # it had just completed the run
            return _marked_code(text), f"{_who_ended(outcome)}, after the run was complete"
    if code in _COMPLETE_CODES and marker is not None and not marker.exists():
        return incomplete, (
            f"the launcher says {code}, but {marker.parent} has no {marker.name} marker: "
            "the run is incomplete"
        )
    return code, note


def script_code(outcome: Outcome) -> tuple[int, str | None]:
    """The code of a user's own script: what it left with, or, for 0, what its run ended with."""
    ended_here = outcome.timed_out or outcome.stood_still is not None or outcome.launcher < 0
    if ended_here or outcome.never_up is not None:
        return exit_code(outcome, None)
    note = None if outcome.died is None else _who_ended(outcome)
    return outcome.launcher or outcome.reported or 0, note


def marker_text(marker: Path | None) -> str | None:
    """What the marker of a complete run says; None if there is none."""
    try:
        return None if marker is None else marker.read_text(errors="replace")
    except OSError:
        return None


def _marked_code(text: str) -> int:
    return int(
        ExitCode.COMPLETE_WITH_ERRORS if '"complete_with_errors"' in text else ExitCode.COMPLETE
    )


_INCOMPLETE = "the job is incomplete. Go on with the same command and --resume"


def _without_a_word(outcome: Outcome, must_report: bool) -> tuple[int, str | None]:
    """The code of a job whose rank 0 has not said its own: launchers have codes of their own."""
    code, incomplete = outcome.launcher, int(ExitCode.INCOMPLETE)
    if outcome.begun or (must_report and code in _COMPLETE_CODES):
        return incomplete, None if outcome.failed else f"{_who_ended(outcome)}: {_INCOMPLETE}"
    if outcome.stopped_by is not None and code not in (*_COMPLETE_CODES, incomplete):
        return 128 + outcome.stopped_by, None
    death = outcome.died
    alone = death is not None and (death.by_signal or (death.rank is not None and code != 0))
    never_there = code == ExitCode.DEFECT and outcome.heard == 0
    if code in _KNOWN_CODES and not (alone or never_there):
        return code, None
    left = death is not None and death.rank is not None and not death.by_signal
    guess = "" if left else ": a rank has died, or MPI cannot start (is /dev/shm full?)"
    return int(ExitCode.ENVIRONMENT), (
        f"{_who_ended(outcome)} before the job had begun{guess}; collage-mpi doctor says more"
    )


def _who_ended(outcome: Outcome) -> str:
    """Which process ended the job, and how, as far as that is known."""
    death, code = outcome.died, outcome.launcher
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


def _start(plan: LaunchPlan, word: str) -> subprocess.Popen[bytes]:
    name, _, value = word.partition("=")
    return subprocess.Popen(
        plan.argv,
        env={**os.environ, **plan.env, name: value, VARIABLE: plan.scratch or ""},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches us, and we say what to do about it
        preexec_fn=_die_with_parent() if sys.platform == "linux" else None,
    )


def _die_with_parent() -> Callable[[], object]:
    """So that a killed launch leaves no job behind: the launcher gets SIGTERM then."""
    pr_set_pdeathsig = 1
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork
    return lambda: prctl(pr_set_pdeathsig, int(signal.SIGTERM), 0, 0, 0)


@contextmanager
def handled_by(note: Callable[[int], object]) -> Iterator[None]:
    """Signals are noted, not acted on, while a job runs, and until what it was is said."""

    def handle(number: int, _frame: FrameType | None) -> None:
        note(number)

    if threading.current_thread() is not threading.main_thread():
        yield  # they are the main thread's to take
        return
    old = {number: signal.signal(number, handle) for number in FORWARDED}
    try:
        yield
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
