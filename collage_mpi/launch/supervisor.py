"""Runs one launched job to its end.

It passes on output and signals, enforces time limits, and leaves no process or file behind.
"""

from __future__ import annotations

import ctypes
import math
import os
import selectors
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TextIO, cast

from collage_mpi.launch.ending import TIME_LIMIT, Cut, Death, Ending, Reached, Startup, never_up
from collage_mpi.launch.mpiexec import LaunchPlan, held, note_signal
from collage_mpi.system.environment import STATUS_VARIABLE, without_rank
from collage_mpi.system.forked import FOLDER_VARIABLE, serving
from collage_mpi.system.hard_exit import UCX, shared_memory, unlink
from collage_mpi.system.process_tree import caught, end_family, guarded, holders_of
from collage_mpi.system.progress import display_for, split_statuses
from collage_mpi.system.tell import SafeStream

POLL_S = 0.1
POLL_CLOSED_S = 0.02  # between two looks at a launcher that has closed both its streams
DRAIN_S = 1.0  # time for output that comes after the launcher has ended
LEAVE_GRACE_S = 15.0  # from rank 0's exit code or end until the other ranks are killed
STOP_GRACE_S = 20.0  # from the request to stop until ranks are killed: time to write results
END_GRACE_S = 2.0  # from SIGTERM to SIGKILL
ASLEEP_S = 5.0  # after a longer gap between two looks launch was suspended, with the job

JOB_VARIABLE = "COLLAGE_MPI_JOB"  # marks all processes of the job, with a unique value
FORWARDED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP)


@dataclass(frozen=True)
class Limits:
    """Seconds that a job may take; `math.inf` for no limit.

    Attributes:
        timeout_s: for the whole job.
        start_limit_s: until rank 0 reports anything. If a rank dies before MPI is up, the others
            wait in MPI_Init, where no signal reaches them. None if rank 0 may never report, as in a
            user's script.
        leave_grace_s: from the exit code that rank 0 reports, or from its end, until the other
            ranks are killed, because a launcher waits for a stopped rank for ever. `math.inf` if
            ranks may do more after their run, as in a user's script.
        stop_grace_s: from the request to stop until the job is killed.
        teams_go_on: several teams survive the loss of rank 0, and end by themselves.
    """

    timeout_s: float = math.inf
    start_limit_s: float | None = None
    leave_grace_s: float = math.inf
    stop_grace_s: float = STOP_GRACE_S
    teams_go_on: bool = False


class Supervisor:
    """Follows one launched job. Use: `Supervisor(plan, Limits(timeout_s=60.0)).run()`.

    Args:
        plan: the command line.
        limits: time limits.
        out, err: where the ranks' output goes; the display is drawn on err.
        clock: monotonic, in seconds.
        signals: numbers of received signals that have not been passed on yet.
        brief: without a terminal, show only the last progress line of a phase of work.
    """

    def __init__(
        self,
        plan: LaunchPlan,
        limits: Limits,
        out: TextIO | None = None,
        err: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        signals: list[int] | None = None,
        brief: bool = False,
    ) -> None:
        self._plan, self._limits, self._clock = plan, limits, clock
        self.launcher = plan.launcher
        # If a disk is full or a reader has gone, output is dropped and the job goes on.
        self._out = cast(TextIO, SafeStream(out or sys.stdout))
        self._err = cast(TextIO, SafeStream(err or sys.stderr))
        self._display = display_for(self._err, brief=brief)
        self._signals = [] if signals is None else signals
        self._start = Startup(plan.ranks, limits.start_limit_s, clock)
        listens = limits.start_limit_s is not None
        self._ending = Ending(0, reached=Reached.NO_RANK if listens else Reached.RANKS)
        # The job's processes are found by this word even if the launcher has been killed.
        self._word = f"{JOB_VARIABLE}={uuid.uuid4().hex}"
        self._shared: set[Path] = set()  # files of the ranks in shared memory
        self._last_words: dict[int | None, str] = {}  # rank -> error message, if not printed
        self._until_s = self._kill_at_s = math.inf  # the time limit; when to kill the job
        self._told_who_stayed = False

    def run(self) -> Ending:
        """Start the job, follow it to its end, and remove what it left."""
        grace_s, scratch = round(self._limits.stop_grace_s), self._plan.scratch
        environment = _environment(self._plan, self._word)
        with (
            caught(FORWARDED, self._signals.append),
            held(scratch),
            guarded(self._word, grace_s, scratch, self._never_came_up),
            serving(environment, self._plan.modules, self._plan.argv),
        ):
            self._process = _started(self._plan, environment)
            self._show_start()
            try:
                self._follow()
            finally:
                end_family(self._process, grace_s=0.0, word=self._word)
                unlink(self._shared)
                self._display.close()
        self._ending.launcher = self._process.returncode
        return self._ending

    def _never_came_up(self) -> bool:
        return self._limits.start_limit_s is not None and not self._start.up

    def _follow(self) -> None:
        """Pass on output until the launcher has ended."""
        pipes = ((self._process.stdout, self._out), (self._process.stderr, self._err))
        streams = [_Stream(pipe, target, self) for pipe, target in pipes if pipe is not None]
        now_s = self._clock()
        self._until_s, drained_s = now_s + self._limits.timeout_s, math.inf
        with selectors.DefaultSelector() as selector:
            for stream in streams:
                selector.register(stream.fd, selectors.EVENT_READ, stream)
            while self._process.poll() is None or (selector.get_map() and now_s <= drained_s):
                for key, _ in selector.select(POLL_S if selector.get_map() else POLL_CLOSED_S):
                    if not key.data.read():
                        selector.unregister(key.fd)
                looked_s, now_s = now_s, self._clock()
                self._look(now_s, now_s - looked_s)
                if self._process.poll() is not None:
                    # A process that outlives the launcher may hold the streams open.
                    drained_s = min(drained_s, now_s + DRAIN_S)
        for stream in streams:
            stream.finish()
        if self._ending.reported is None and self._ending.stopped_by is None:
            self._tell_who_ended()

    def _look(self, now_s: float, gap_s: float) -> None:
        """Do what is due now; the last look was `gap_s` ago."""
        if gap_s > ASLEEP_S:  # launch was suspended with the ranks: this time does not count
            self._start.was_suspended(gap_s)
            self._kill_at_s += gap_s
        self._pass_signals(now_s)
        if now_s > self._until_s:
            self._cut(TIME_LIMIT, now_s)
        self._look_at_start(now_s)
        self._display.tick()
        if now_s >= self._kill_at_s:
            self._tell_who_stayed()
            end_family(self._process, END_GRACE_S)

    def _pass_signals(self, now_s: float) -> None:
        """First signal: ask the ranks to stop. Any later one: end them now."""
        while self._signals:
            number = self._signals.pop(0)
            if self._ending.stopped_by is not None:
                self._kill_at_s = now_s
                continue
            self._ending.stopped_by = number
            self._kill_at_s = now_s + self._limits.stop_grace_s
            name = signal.Signals(number).name
            note_signal(self._plan.scratch, name)
            self.say(f"{name}: stopping; results so far are kept. A second signal stops at once.")
            if self._process.poll() is None:
                self._process.send_signal(self.launcher.stop_signal)

    def _cut(self, reason: Cut, now_s: float) -> None:
        """End the job; only the first reason counts."""
        self._ending.cut = self._ending.cut or reason
        self._kill_at_s = now_s

    def _look_at_start(self, now_s: float) -> None:
        """Report a start that takes long, and end one that takes too long."""
        news = self._start.news(now_s)
        if news is not None:
            self.say(news)
        if self._start.too_late(now_s):
            missing, hung = self._start.who_is_missing(), self._start.ended is None
            self._cut(never_up(missing, hung=hung), now_s)

    def _tell_who_ended(self) -> None:
        """Name the rank that ended the start, and pass on what it said in vain to rank 0."""
        first = self._start.ended
        if first is not None and (first.by_signal or self._start.watched):
            self._ending.died = first
            self.show(self._last_words.get(first.rank, "").splitlines(), self._err)

    def line(self, text: str, target: TextIO) -> None:
        """One line of output has arrived, without its newline."""
        rest, statuses = split_statuses(text, self._plan.env.get(STATUS_VARIABLE))
        for status in statuses:
            self._act_on(status)
        if rest.strip() or not statuses:
            self.show([rest], target)

    def _act_on(self, status: dict[str, Any]) -> None:
        """Act on a report of a rank or of the shell around it."""
        match status:
            case {"ended": int(rank), "code": int(code)}:
                self._has_ended(Death(rank, code))
            case {"there": int(rank)}:
                if self._ending.reached is Reached.NO_RANK:
                    self._ending.reached = Reached.RANKS
                self._start.arrived(rank)
                self._show_start()
            case {"fault": str(text)}:
                self._last_words.setdefault(status.get("rank"), text)
            case _:
                self._act_on_rank_0(status)

    def _act_on_rank_0(self, status: dict[str, Any]) -> None:
        if not self._start.up and "exit" not in status:  # it may fail before MPI is up
            self._start.up = True
            self._note_shared_memory()
        match status:
            case {"up": _}:
                self._ending.reached = Reached.BEGUN
            case {"exit": int(code)}:
                self._ending.reported = code
                self._let_others_leave()
            case _:
                self._display.show(status)

    def _note_shared_memory(self) -> None:
        """Ranks that are killed leave files there. The guard is for those of a failed start."""
        for pid in holders_of(self._word):
            self._shared.update(shared_memory(Path(f"/proc/{pid}/maps"), UCX))

    def _has_ended(self, death: Death) -> None:
        """A rank has ended. If it is rank 0, the others have `leave_grace_s` to leave.

        The first one that ends badly ends the job; a worker does not if it was told to end, or if
        the job survives lost workers.
        """
        told = self._ending.stopped_by is not None
        ends_all = death.rank == 0 or not (self._plan.tolerant or told)
        if self._start.up and ends_all and death.code and self._ending.died is None:
            self._ending.died = death
        if self._start.up and death.rank == 0 and not self._limits.teams_go_on:
            self._let_others_leave()
        self._start.has_ended(death)

    def _let_others_leave(self) -> None:
        if self._limits.leave_grace_s != math.inf:
            self._kill_at_s = self._clock() + self._limits.leave_grace_s

    def _tell_who_stayed(self) -> None:
        """Say once that processes are killed although the job is over."""
        if self._ending.reported is None or self._ending.cut is not None or self._told_who_stayed:
            return
        self._told_who_stayed = True
        self.say("the job is over, but some of its processes did not end: killed")

    def _show_start(self) -> None:
        if self._start.watched:
            self._display.show({**self._start.status(), "passing": True})

    def say(self, message: str) -> None:
        """Print a message of launch itself."""
        self._display.clear()
        print(f"collage-mpi launch: {message}", file=self._err, flush=True)

    def show(self, lines: Sequence[str], target: TextIO) -> None:
        """Pass lines on at once."""
        if lines:
            self._display.clear()
            target.write("".join(line + "\n" for line in lines))
            target.flush()


class _Stream:
    """One of the launcher's streams, cut into lines."""

    def __init__(self, pipe: IO[bytes], target: TextIO, job: Supervisor) -> None:
        self.fd, self._target, self._job = pipe.fileno(), target, job
        self._rest = b""

    def read(self) -> bool:
        """Read what has arrived; False at the end of the stream."""
        data = os.read(self.fd, 65536)
        text = data.replace(b"\0", b"")  # prterun ends its MPI_ABORT banner with one
        *lines, self._rest = (self._rest + text).split(b"\n")
        self._take(lines)
        return bool(data)

    def finish(self) -> None:
        """Pass on a last line without a newline."""
        self._take([self._rest] if self._rest else [])

    def _take(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            self._job.line(line.decode(errors="replace"), self._target)


def _environment(plan: LaunchPlan, word: str) -> dict[str, str]:
    name, _, value = word.partition("=")
    return {
        **without_rank(os.environ),
        **plan.env,
        name: value,
        FOLDER_VARIABLE: plan.scratch or "",
    }


def _started(plan: LaunchPlan, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        plan.argv,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C reaches only this process, which passes it on
        preexec_fn=_die_with_parent() if sys.platform == "linux" else None,
    )


def _die_with_parent() -> Callable[[], object]:
    """Let the kernel send SIGTERM to the launcher if this process is killed."""
    pr_set_pdeathsig = 1
    prctl = ctypes.CDLL(None).prctl  # looked up before the fork
    return lambda: prctl(pr_set_pdeathsig, int(signal.SIGTERM), 0, 0, 0)
