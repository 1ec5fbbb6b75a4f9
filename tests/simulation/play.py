"""Plays the cases of seeds: `python -m tests.simulation.play --seeds N --from S [--trace]`.

Each is played to the end of its run, and judged by `laws`. A seed that fails is printed with the
command that repeats it, and with the simplest case that fails as well. `--coverage` prints which
statements of the job they reach, as coverage.py finds them with `concurrency = greenlet`.
"""

from __future__ import annotations

import argparse
import gc
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.simulation import laws, standins, witness, world
from tests.simulation.case import HARMLESS, Case, Fault, Session, draw, simpler, wider
from tests.simulation.disk import CHANGES, ERRORS, LOOKS, Disk, Failure
from tests.simulation.inputs import HARMS, UNLABELLED, Shards, rows_of
from tests.simulation.kernel import FOREVER_NS, MS, SECOND, Host, Kernel, Process
from tests.simulation.ledger_laws import Ledger, runs_in
from tests.simulation.order_laws import overdue
from tests.simulation.row_laws import (
    facts,
    told_batch,
    wrong_export,
    wrong_files,
    wrong_predictions,
)
from tests.simulation.told_laws import Statuses, wrong_words

# Virtual time in which a job ends after its last fault: with limits of seconds for silence and for
# start-up a dead job is watched for 45 s and a rank awaited for 60; else start-up alone takes 600.
SOON_S, LATE_S = 150, 1500
# Within a session the ranks wait for work no longer than IDLE_S, if all that goes wrong is of SEEN.
# Where a rank may be silent it is SILENT_S, with a reply timeout of 2 s: a silent one is waited for
# at the end, too.
CALM_S, IDLE_S, SILENT_S, WAITS_S = 1.5, 3, 20, 3
TAKEN_S = 45  # after which the images of a dead job are done, or under way
JOBS = 3  # at once
FAILING = ("failing network", "failing networks")
SEEN = ("kill rank", "exit rank", *FAILING, "clock jump", "link shard", "no descriptor")
ALIVE = (*SEEN, "SIGTERM", "SIGINT", "SIGUSR2", "suspend job", "stall messages", "delay rank")
SILENT = ("stop rank", "stall messages")
SLOW = ("suspend job", "take-over", "slow disk")
LONGEST_S = 120  # processor time of one seed: one that loops for ever ends the command
SIMPLIFY_S = 60.0  # in which the shortest play that still fails is sought
CUT_AT = ("COMPLETE", "run", r"leases/\d", "parts/images", "parts/tasks", "jobs")
MEASURED = ("job", "mpi", "results", "faults", "core")


@dataclass
class Played:
    """What came of a case.

    Attributes:
        facts: of a run that commands have read, what is the same in a job that nothing disturbs.
    """

    faults: list[str] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    digest: int = 0
    steps: int = 0
    codes: list[int | None] = field(default_factory=list)
    facts: dict[str, object] = field(default_factory=dict)


@dataclass
class Cut:
    """A process ends, or its host, right after it has given a file its name.

    Attributes:
        name: a pattern of it, below the run's folder.
        times: how many such files pass before.
        lose: takes the host's power; None where the process alone ends.
    """

    name: str
    times: int
    lose: Callable[[Host], object] | None


class Play:
    """One case, played in a folder that is empty but for the shards."""

    def __init__(self, case: Case, folder: str, inputs: Path, tell_all: bool) -> None:
        """`tell_all`: the log has what each rank said, of sessions without a fault too."""
        self.case, self.folder, self.tell_all = case, folder, tell_all
        good = inputs if case.labelled else inputs / UNLABELLED
        self.shards = Shards(good, Path(folder), case.shards)
        self.kernel = standins.WORLD.kernel = Kernel(f"world {case.seed}")
        self.disk = standins.WORLD.disk = Disk(folder)
        self.out = Path(folder) / "out"
        self.played = Played()
        self.hosts = [self._host(number) for number in range(3)]
        self.repaired = False  # a part was lost, and its images are done again
        self.begun = "", set[str]()  # the run, and shards that were harmed when it began
        self.copies: dict[Path, bytes] = {}  # other names of parts -> what they held
        self.jobs: list[world.Job] = []
        self.misread = False  # a read may have failed for a moment
        self.promised = False  # by the exit code of the last session, that the run is complete
        self.cuts: list[Cut] = []
        self.calls: list[witness.Call] = []  # of all sessions
        tell = self.kernel.violations.append
        self.ledger, self.statuses = Ledger(self.out, tell, self.disk.lasts), Statuses(tell)
        self.disk.watch = self._made

    def _host(self, number: int) -> Host:
        rng = self.kernel.random
        drift = 1 + rng.choice((0, 1e-4, -1e-4))
        wall_s = 1_800_000_000 + rng.choice((0, 0, 7200, -90_000))
        return Host(f"h{number}", drift, rng.randrange(1 << 44), wall_s * SECOND)

    def run(self) -> Played:
        """All sessions, and others without faults until the run is complete."""
        try:
            for session in self.case.sessions:
                self._session(session)
                if self.played.faults:
                    break
            tries = 0
            while not self.played.faults and not self._complete() and tries < 4:
                if not tries and self.kernel.random.random() < 0.5:
                    self._lose_power()
                tries += 1
                self._session(Session(singles=self.kernel.random.choice((2, 3)), hosts=1))
            if not self.played.faults and not self._complete():
                self.played.faults.append("not complete after four sessions without a fault")
            if not self.played.faults:
                self._lose_power()
                self._read()
        except Exception:
            self.played.faults.append(traceback.format_exc())
        finally:
            self.played.log += self.kernel.log
            told = (text for process in self.kernel.processes.values() for text in process.told)
            text = "\n".join([*self.kernel.log, *told]).replace(self.folder, "")
            self.played.digest = zlib.crc32(text.encode())
            self.played.steps = self.kernel.steps
            self.kernel.close()
        return self.played

    def _found(self) -> laws.Run | None:
        """What is in the folder of the run."""
        return laws.run_in(self.out, labelled=self.case.labelled, misread=self.misread)

    def _complete(self) -> bool:
        """Whether a session said so: a marker that was not synced may go with the power."""
        run = self._found()
        whole = run is not None and run.complete and run.manifest["status"] == "complete"
        return whole and self.promised

    def _lose_power(self) -> None:
        """All hosts lose it: what an exit code has promised lasts, and no law is broken."""
        self.disk.settle()
        for host in self.hosts:
            self.disk.power_loss(host, shared=False)
        self.ledger.forget()
        run = self._found()
        self.played.faults += laws.broken(self.out, run, whole=not self.repaired)

    def _session(self, session: Session) -> None:
        self.disk.late_ns = session.late_ms * MS
        self.unseen = self.disk.hides
        if session.mends:
            self.shards.mend()
        self._between(session)
        self.bad, self.replaced = bool(self.shards.harmed), self._replaced()
        self.cuts.clear()
        before, self.before = self._names() if session.dry else set(), self._found()
        job = self._launch(session)
        self.statuses.calm = not (session.faults or self.unseen)  # who sees late waits
        start_ns = self.kernel.now_ns
        last_ns = start_ns
        jobs = self.jobs = [job]
        for fault in session.faults:
            at_ns = start_ns + fault.at_ms * MS
            last_ns = max(last_ns, at_ns + fault.for_ms * MS)
            strike = lambda fault=fault: self._strike(fault, session, jobs)  # noqa: E731
            if fault.at_work:
                wait_ns = fault.at_ms * MS
                job.net.at_work.append(lambda n=wait_ns, act=strike: self.kernel.after(n, act))
            else:
                self.kernel.at(at_ns, strike)
        over = lambda: all(job.over for job in jobs)  # noqa: E731
        limit_s = SOON_S if "--reply-timeout-s" in self.case.pace else LATE_S
        ended = self.kernel.run(over, last_ns + limit_s * SECOND)
        if ended:
            self.played.faults += [*self._idle(session, job), *self._unseen_losses(session, job)]
        stopped = any(fault.kind == "stop rank" for fault in session.faults)
        if not ended and stopped and (not session.tolerant or len(job.net.up) < job.net.size):
            ended = True  # a plain world, and MPI's start, wait for a stopped rank: it is ended
        self.played.faults += self.kernel.violations
        if not ended:
            left = [p for job in jobs for p in job.ranks if p.alive]
            names = ", ".join(f"{p.name} (frozen until {p.frozen_ns / 1e9:g})" for p in left)
            self.played.faults.append(f"the job has not ended in {limit_s} s: {names}")
            self.played.log += [self.kernel.where(process) for process in left]
        for each in jobs:
            each.kill("the session is over")
        self.disk.mend()
        self.played.codes += [each.code for each in jobs]
        self._judge(session, jobs)
        self.jobs = []  # a fault that is still to come strikes nobody
        if session.dry and not self._names() <= before:
            self.played.faults.append("a dry run has made files")

    def _idle(self, session: Session, job: world.Job) -> Iterator[str]:
        """Ranks are not without work for long: a loss is seen at once, or when an answer is due."""
        faults, short = session.faults, "--reply-timeout-s" in self.case.pace
        kinds = {fault.kind for fault in faults}
        lost = session.tolerant or ("--endgame", "off") not in pairwise(self.case.work)
        stalls = (f for f in faults if f.kind == "stall messages")
        alone = any(job.leads(self.case.victim(fault, session)) for fault in stalls)
        silent = kinds <= {*SEEN, *SILENT} and short and lost and not alone  # else it is waited for
        limit_s = IDLE_S if kinds <= {*SEEN} else SILENT_S if silent else 0
        limit_s = limit_s if kinds else CALM_S
        if "--straggler" in self.case.pace:  # a call ends before its network has waited
            limit_s += WAITS_S if limit_s else 0
        busy = sorted((call.began_ns, call.ended_ns) for call in job.calls)
        led = [
            f for f in faults if f.kind not in HARMLESS and job.leads(self.case.victim(f, session))
        ]
        if limit_s:  # no ledger without a descriptor
            limit_s += max((f.for_ms / 1000 for f in led if f.kind == "no descriptor"), default=0)
        before = () if self.before is None else self.before.manifest["sessions"]
        if (led and self.case.teams > 1) or not all(each["rows"] for each in before):
            limit_s += TAKEN_S if limit_s else 0  # a job is dead
        if not limit_s or not busy or "--slow-ranks" in self.case.pace or len(self.jobs) > 1:
            return
        if self.case.teams == 1:  # else they look every few seconds whether the run is complete
            busy.append((self.kernel.now_ns, self.kernel.now_ns))
        until_ns = busy[0][1]
        for began_ns, ended_ns in busy:
            if began_ns > until_ns + limit_s * SECOND:
                gap = f"{(began_ns - until_ns) / SECOND:.1f} s, from {until_ns / SECOND:.3f} s on"
                yield f"no rank computes for {gap}, after {kinds or 'no fault'}"
            until_ns = max(until_ns, ended_ns)

    def _unseen_losses(self, session: Session, job: world.Job) -> Iterator[str]:
        """A worker that was killed while the job worked on is lost by the end of its process."""
        run, kinds = self._found(), {fault.kind for fault in session.faults}
        if run is None or not kinds <= {*SEEN} or not session.tolerant or session.dry:
            return
        finals = [each["final"] for each in run.sessions_of(job.ranks).values()]
        lost = {each["rank"]: each for final in finals for each in final.get("lost") or ()}
        each = len(job.ranks) // self.case.teams
        for rank, process in enumerate(job.ranks):
            team = job.ranks[rank - rank % each :][:each]
            calls = [call for call in job.calls if call.process in team]
            first_ns = min((call.began_ns for call in calls), default=self.kernel.now_ns)
            last_ns, lead = max((call.ended_ns for call in calls), default=0), team[0]
            if process.code != -9 or lead is process or lead.code != 0:
                continue
            if first_ns < process.ended_ns < min(last_ns, lead.ended_ns - SECOND):
                said = lost.get(rank)
                if said is None or said["layer"] == "timeout":
                    yield f"rank {rank} was killed, and the session says {said}"

    def _replaced(self) -> bool:
        """Whether another shard stands under the name of one: no run goes on with it."""
        return "replace shard" in self.shards.harmed.values()

    def _names(self) -> set[str]:
        """All names below the output folder."""
        return set(map(str, self.out.rglob("*")))

    def _launch(self, session: Session) -> world.Job:
        size = self.case.ranks(session)
        share = -(-size // session.hosts)
        hosts = [self.hosts[(session.first + rank // share) % 3] for rank in range(size)]
        run = self._found()
        if self._replaced() and (run is None or not len(run.images)):
            self.shards.mend()  # a run without rows may go: the next one would be of other shards
            self.bad = self.replaced = True
        errors = run is not None and run.manifest["status"] == "complete_with_errors"
        go_on = ("--retry-errors",) if errors and not self.shards.harmed else ()
        words = self.case.words(session, self.folder, go_on)
        how = session.tolerant, session.tells_loss, self.case.teams
        job = world.Job(self.kernel, hosts, words, *how)
        job.start()
        return job

    def _judge(self, session: Session, jobs: list[world.Job]) -> None:
        run, kinds = self._found(), {fault.kind for fault in session.faults}
        self.bad |= bool(self.shards.harmed)  # nothing is mended while a session goes on
        if not session.dry:
            self.promised = any(job.code in (0, 5) for job in jobs)
        rows = self._rows(run)
        faults = laws.broken(self.out, run, whole=not self.repaired)
        for path, held in self.copies.items():
            if path.read_bytes() != held:
                faults.append(f"{path.name} was written to through another name")
        began = any(run is not None and run.sessions_of(job.ranks) for job in jobs)
        if not (self.bad or self.unseen or session.faults or faults):
            whole = run is not None and run.complete and len(run.lasting) == rows
            self._command("verify", str(self.out), right=(0 if whole else 6 if run else 3,))
            if jobs[0].code == 0 and began:
                self._command("top", str(self.out), "--once")
        self.calls += [call for job in jobs for call in job.calls]
        if run is not None:
            faults += witness.unheard(run, self.calls)
        for job in jobs:
            faults += [each for process in job.ranks for each in laws.careless(process)]
            if not session.dry and job.code is not None:
                others = self.unseen or len(jobs) > 1  # which may have done the rest later
                faults += laws.untrue(job.code, run, rows, self._excused(job, kinds), others)
                faults += self._of_job(job, kinds, run) if run is not None else ()
            raced = self.bad and len(jobs) > 1  # each would begin the run with other shards
            if job.code == 2 and not (raced or self.replaced or self._replaced()):
                faults.append("the case is refused")
            told = "".join(text for process in job.ranks for text in process.told)
            if "Traceback" in told:
                faults.append("a traceback")
        if run is not None and began and not session.dry:
            faults += self._of_work(session, run) if len(jobs) == 1 else self._together(kinds)
        if faults or self.tell_all:
            for process in (process for job in jobs for process in job.ranks):
                text = "".join(process.told)
                self.played.log.append(f"--- {process.name} ({process.code}): {text[-2500:]}")
        self.played.faults += faults

    def _of_job(self, job: world.Job, kinds: set[str], run: laws.Run) -> Iterator[str]:
        """What one launch says, and leaves."""
        lead, mine = job.ranks[0], run.sessions_of(job.ranks)
        told = "".join(lead.told)
        if not mine:
            return
        if lead.code in (0, 5, 6) and kinds <= {*ALIVE}:
            yield from laws.ended(self.out, run, job.ranks)
        number = min(mine)
        if mine[number]["process"]["pid"] == lead.pid:
            if len(self.jobs) == 1 and len(run.images):
                yield from wrong_words(run, number, told, lead.code)
            if self.case.measures_batch:
                yield from told_batch(number, mine[number], told)
        if not self.repaired:
            yield from laws.unwritten(run, job.ranks)
        if job.code in (0, 5) and not (self.unseen and len(self.jobs) > 1):  # tasks of others
            calm = kinds <= {*HARMLESS} and len(self.jobs) == 1
            yield from wrong_files(self.out, run, mine, calm)

    def _together(self, kinds: set[str]) -> Iterator[str]:
        """Several jobs that share a run end with one code, and soon do what a dead one had."""
        codes = [job.code for job in self.jobs]
        again = any("--retry-errors" in job.words for job in self.jobs)
        if kinds <= {*HARMLESS} and not (self.bad or again or self._whole()) and len({*codes}) > 1:
            yield f"jobs that share a run end with {codes}"
        if "--slow-ranks" in self.case.pace or not kinds <= {"kill job", *HARMLESS} - {*SLOW}:
            return
        for dead in (job for job in self.jobs if job.ranks[0].code == -9):
            died_ns = dead.ranks[0].ended_ns
            for job in (job for job in self.jobs if job.ranks[0].code in (0, 5) and job.calls):
                since_ns = max(died_ns, job.calls[0].began_ns)
                late_s = (job.calls[-1].began_ns - since_ns) / SECOND
                if late_s > TAKEN_S:
                    yield f"{late_s:.1f} s after a job has died, its images are begun"

    def _whole(self) -> bool:
        """Whether one job alone may do the run."""
        return any(run.get("whole") for run in runs_in(self.out))

    def _of_work(self, session: Session, run: laws.Run) -> Iterator[str]:
        """What a session of one launch did, beside what was there before it."""
        job, before = self.jobs[0], self.before
        if before is not None and before.manifest["run_id"] == run.manifest["run_id"]:
            yield from laws.forgotten(before, run)
            answered = before.images[before.images["answered"]] if len(before.images) else []
            if len(answered) and not (self.unseen or self.repaired):  # seen too late, or lost
                done = witness.images_of(before, answered)
                yield from witness.again(run, done, job.calls)
                if not {row.tobytes() for row in answered} <= {row.tobytes() for row in run.images}:
                    yield "a row that was there is gone, or another one"
        calm = not session.faults and not self.bad and job.code == 0 and len(run.images)
        codes = [process.code for process in job.ranks]
        if calm and not self.case.limits_silence and any(codes):
            yield f"ranks end with {codes}, and nothing went wrong"
        if calm and not self.case.hasty:
            mine = [*run.sessions_of(job.ranks)]
            yield from witness.unlike_tasks(run, mine, job.calls)
            yield from witness.troubled(run, mine)
            yield from overdue(run)
            told = "".join(text for process in job.ranks for text in process.told)
            if "did not end" in told and not self.unseen:  # a team waits for the run's name
                yield "ranks do not end by themselves"
            if len(run.manifest["sessions"]) == len(mine):  # nobody was killed before
                yield from laws.litter(self.out)
            yield from witness.other_processes(run, job.ranks)

    def _rows(self, run: laws.Run | None) -> int:
        """How many rows there are to be. A run with a limit stays without shards that were harmed
        when it began."""
        if run is None or not self.case.limited:
            return self.case.limit
        if self.begun[0] != run.manifest["run_id"]:
            self.begun = run.manifest["run_id"], {*self.shards.harmed}
        names = {Path(shard["path"]).name for shard in run.manifest["shards"]}
        if not {*self.case.shards} - self.begun[1] <= names <= {*self.case.shards}:
            self.played.faults.append(f"a run of {sorted(names)}, of {self.case.shards}")
        return min(self.case.limit, sum(map(rows_of, names)))

    def _excused(self, job: world.Job, kinds: set[str]) -> set[int]:
        """Exit codes that what went wrong explains."""
        if self.bad:
            return set(range(2, 256))
        if kinds <= {*HARMLESS}:
            return {3} if len(self.jobs) > 1 and self._whole() else set()
        return {3, 6, *range(7, 256)} | ({4} if "disk error" in kinds else set())  # of a shard, too

    def _read(self) -> None:
        """Commands read the run, which is complete. Few seeds make pages, which take long."""
        out, written = str(self.out), Path(self.folder) / "export"
        self._command("verify", out)
        run = self._found()
        if run is not None and not self.played.faults:
            self._damage(run)
        if self.case.read and run is not None and not self.played.faults:
            if self.case.seed % 16 == 0:
                self._command("ranks", out)
                self._command("report", out, "--out", f"{self.folder}/report.html")
            self._command("export", out, "--to", "csv", "--out", str(written))
            self._command("export", out, "--to", "csv", "--predictions", "--out", str(written))
            if not self.played.faults:
                self.played.faults += wrong_export(run, written)
                self.played.faults += wrong_predictions(run, written / "predictions.csv")
                self.played.facts = facts(run, self.out, written, exact=self.case.exact)
        self.played.faults += self.kernel.violations

    def _damage(self, run: laws.Run) -> None:
        """Damage to a complete run is told: a part that is gone, or spoilt."""
        names = [str(run.files[-1][0].relative_to(self.out))]
        closed = {each["session"] for each in run.manifest["sessions"] if each["rows"]}
        tasks = [f"parts/{path.name}" for path in sorted(self.out.glob("parts/tasks-*.parquet"))]
        names += [name for name in tasks if int(name.split("-")[1]) in closed]
        path = self.out / self.kernel.random.choice((names[0], names[-1]))
        raw = path.read_bytes()
        path.unlink()
        if self.kernel.random.random() < 0.5:
            path.write_bytes(raw[:200] + bytes([raw[200] ^ 1]) + raw[201:])
        told = " ".join(self._command("verify", str(self.out), right=(4,)).split())
        if path.name not in told and "a part is gone" not in told:
            self.played.faults.append(f"verify does not tell of {path.name}: {told}")
        path.write_bytes(raw)

    def _command(self, *words: str, right: tuple[int, ...] = (0,)) -> str:
        environ = {"HOME": "/nowhere", "PATH": "/usr/bin"}
        body = lambda: world.run_command(words)  # noqa: E731
        process = self.kernel.spawn(self.hosts[0], words[0], body, environ)
        self.kernel.run(lambda: not process.alive, self.kernel.now_ns + 100 * SECOND)
        if process.code not in right:
            told = "".join(process.told)
            self.played.faults.append(f"{words[0]} ends with {process.code}: {told}")
        return "".join(process.told)

    # ---- faults -------------------------------------------------------------------

    def _strike(self, fault: Fault, session: Session, jobs: list[world.Job]) -> None:
        if jobs is not self.jobs:
            return
        kernel, job, kind = self.kernel, jobs[fault.number % len(jobs)], fault.kind
        kernel.log.append(f"{kernel.now_ns / 1e9:.6f} {fault}")
        process = job.ranks[self.case.victim(fault, session)]
        until_ns = kernel.now_ns + fault.for_ms * MS
        alive = [each for each in job.ranks if each.alive]
        if kind == "kill rank" and process.alive:
            kernel.end(process, -9, wait=False)
        elif kind == "exit rank" and process.alive:
            code = 7 if process is job.ranks[0] else (3, 7, 0)[fault.number % 3]
            kernel.end(process, code, wait=False)
        elif kind == "stop rank" and process is not job.ranks[0]:  # that one nobody outlives
            process.frozen_ns, kernel.settled = FOREVER_NS, False
        elif kind == "delay rank":
            process.frozen_ns = max(process.frozen_ns, until_ns)
        elif kind == "stall messages":
            job.net.stalled_ns[job.ranks.index(process)] = until_ns
        elif kind == "failing network":
            process.own["fails until"] = until_ns
        elif kind == "failing networks":
            for each in alive:
                each.own["fails until"] = until_ns
                each.own["fails kind"] = ("single", "")[fault.number % 2]
        elif kind == "suspend job":
            for each in alive:
                each.frozen_ns = max(each.frozen_ns, until_ns)
        elif kind == "kill job":
            job.kill("the user kills it")
        elif kind.startswith("SIG"):
            job.kill(f"the user sends {kind}", int(signal.Signals[kind]))
        elif kind == "power loss":
            host = self.hosts[(session.first + fault.number) % 3]
            self._host_lost(host, shared=session.hosts > 1)
        elif kind == "cut":
            how, (times, power) = fault.number, divmod(fault.number // len(CUT_AT), 2)
            lose = lambda host: self._host_lost(host, shared=session.hosts > 1)  # noqa: E731
            self.cuts.append(Cut(CUT_AT[how % len(CUT_AT)], times % 3, lose if power else None))
        elif kind == "disk full":
            self.disk.full = True
            kernel.at(until_ns, lambda: setattr(self.disk, "full", False))
        elif kind == "disk error":
            how = fault.number
            kinds = ((*CHANGES, *LOOKS), LOOKS, *((each,) for each in CHANGES))
            failure = Failure(kinds[how % len(kinds)], ERRORS[how % 3], (1, 1, 3, 100)[how % 4])
            self.disk.fails.append(failure)
            self.misread = True
        elif kind in ("no descriptor", "no memory"):
            self.misread = True
            process.own[f"{kind} until"] = until_ns
        elif kind in HARMS:
            self._harm(kind, fault.number)
        elif kind == "slow disk":
            self.disk.slow_ns = 400 * MS
            kernel.at(until_ns, lambda: setattr(self.disk, "slow_ns", 3 * MS))
        elif kind == "clock jump":
            host = self.hosts[fault.number % session.hosts]
            host.wall_ns += (fault.number - 500) * 10 * SECOND
        elif kind in ("second launch", "take-over") and len(jobs) < JOBS:
            for each in alive if kind == "take-over" else ():
                each.frozen_ns = max(each.frozen_ns, until_ns)
            jobs.append(self._launch(replace(session, first=session.first + fault.number % 2)))

    def _host_lost(self, host: Host, *, shared: bool) -> None:
        for each in list(self.kernel.processes.values()):
            if each.host is host and each.alive:
                self.kernel.end(each, -9, wait=False)
        self.disk.power_loss(host, shared=shared)
        if not shared:
            self.ledger.forget()

    def _made(self, process: Process, path: str) -> None:
        """A process has made or renamed a file, and synced its folder not yet."""
        name = os.path.relpath(path, self.out)
        if re.fullmatch(r"status/\d+\.json", name):
            self.statuses.written(Path(path), self.kernel.now_ns)
        self.ledger.made(name)
        for cut in self.cuts:
            if re.match(cut.name, name):
                cut.times -= 1
                if cut.times < 0:
                    self.cuts.remove(cut)
                    self.kernel.log.append(f"{self.kernel.now_ns / 1e9:.6f} cut at {cut.name}")
                    lose, end = cut.lose, partial(self.kernel.end, process, -9, wait=False)
                    self.kernel.after(0, end if lose is None else partial(lose, process.host))
                    return

    def _harm(self, kind: str, number: int) -> None:
        """Something happens to a shard. A run that begins with another one is another run than
        that of the case."""
        run = self._found()
        begun = run is not None and not run.manifest.get("bad_shards")  # those may still come
        if begun or not self.shards.makes_another(kind, number):
            self.shards.harm(kind, number)

    def _between(self, session: Session) -> None:
        rng = self.kernel.random
        for what in session.between:
            parts = sorted(self.out.glob("[pr]*s/*.parquet"))
            if what == "lose marker":
                for path in self.out.glob("COMPLETE.*"):
                    path.unlink()
            elif what == "litter" and self.out.exists():
                (self.out / "leases").mkdir(exist_ok=True)
                (self.out / "leases/.0.1.tmp-77-0123abcd").write_bytes(b"{")
            elif what == "lose part" and parts and len(runs_in(self.out)) == 1:
                images = [path for path in parts if not path.name.startswith("tasks")]
                late_ns = self.disk.late_ns
                self.disk.settle()  # who repairs a run sees all of it
                self.disk.late_ns = late_ns
                for path in rng.sample(images, min(1, len(images))):
                    path.unlink()
                    self._command("verify", str(self.out), "--repair", right=(0, 4, 6))
                    self.repaired = True
                    self.ledger.forget()
            elif what == "copy parts" and parts:
                for path in parts:  # a copy that takes no room
                    other = Path(self.folder) / f"copy-{len(self.copies)}-{path.name}"
                    os.link(path, other)
                    self.copies[other] = path.read_bytes()
            elif what in HARMS:
                self._harm(what, rng.randrange(1000))


def play(case: Case, inputs: Path, *, tell_all: bool = False) -> Played:
    """Play a case; and of one that commands read, once more as a job that nothing disturbs, whose
    results are to be the same. A run with a limit may go on without shards that were harmed."""
    played = _play(case, inputs, tell_all=tell_all)
    calm = replace(case, sessions=(Session(),))
    harms = {fault.kind for each in case.sessions for fault in each.faults} & {*HARMS}
    harms |= {what for each in case.sessions for what in each.between} & {*HARMS}
    if played.facts and case != calm and not (case.limited and harms):
        other = _play(calm, inputs, tell_all=False)
        played.faults += other.faults
        for what, found in () if other.faults else played.facts.items():
            if None not in (found, other.facts[what]) and found != other.facts[what]:
                right = other.facts[what]
                played.faults.append(f"{what}: {found} where an undisturbed job has {right}")
    return played


def _play(case: Case, inputs: Path, *, tell_all: bool) -> Played:
    """Play a case in a folder of its own."""
    signal.setitimer(signal.ITIMER_PROF, LONGEST_S)
    forget()
    if case.seed % 20 == 0:
        gc.collect()
    folder = tempfile.mkdtemp(prefix="simulated-", dir=inputs)
    place = inputs / "job"  # always the same name: it stands in messages and manifests
    os.rename(folder, place)
    try:
        return Play(case, str(place), inputs, tell_all).run()
    finally:
        shutil.rmtree(place)


def forget() -> None:
    """Empty the caches of the package: each case begins in new processes."""
    for cached in _caches(len(sys.modules)):
        cached.cache_clear()


@lru_cache(1)
def _caches(modules: int) -> list[Any]:
    """Those of the modules that are loaded."""
    found = [(n, m) for n, m in list(sys.modules.items()) if n.startswith("collage_mpi")]
    values = [(name, value) for name, module in found for value in vars(module).values()]
    return [v for name, v in values if hasattr(v, "cache_clear") and v.__module__ == name]


def simplest(case: Case, inputs: Path) -> Case:
    """A case that fails as well, and of which no simpler one does; the best within SIMPLIFY_S."""
    until_s = time.monotonic() + SIMPLIFY_S
    others = simpler(case)
    while (other := next(others, None)) is not None and time.monotonic() < until_s:
        if play(other, inputs).faults:
            case, others = other, simpler(other)
    return case


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("each", type=int, nargs="*", help="these seeds first")
    parser.add_argument("--seeds", type=int, help="how many follow: 1, or 0 after other seeds")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them")
    parser.add_argument("--trace", action="store_true", help="print what happened")
    parser.add_argument("--wide", action="store_true", help="with more settings, see case.wider")
    parser.add_argument("--coverage", action="store_true", help="print the statements reached")
    told = parser.parse_args()
    with_fixed_order("tests.simulation.play")
    with made_inputs() as inputs, reached() if told.coverage else nullcontext():
        world.install()
        return _play_all(told, inputs)


def with_fixed_order(module: str) -> None:
    """Start again where sets have no fixed order: it is to be the same again."""
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.environ["PYTHONHASHSEED"] = "0"
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


@contextmanager
def made_inputs() -> Iterator[Path]:
    """A folder with the shards, in memory where that can be."""
    base = "/dev/shm" if os.path.isdir("/dev/shm") else None
    inputs = Path(tempfile.mkdtemp(prefix="simulation-", dir=base))
    try:
        command = [sys.executable, "-m", "tests.simulation.inputs", str(inputs)]
        subprocess.run(command, check=True)
        yield inputs
    finally:
        shutil.rmtree(inputs)


@contextmanager
def reached() -> Iterator[None]:
    """Print afterwards which statements of the job's parts were reached, and the lines missed."""
    import coverage

    package = Path(__file__).parents[2] / "collage_mpi"
    folders = [str(package / folder) for folder in MEASURED]
    found = coverage.Coverage(data_file=None, source=folders, concurrency="greenlet")
    found.start()
    yield
    found.stop()
    for folder in MEASURED:
        lines, all_of, missed_of = [], 0, 0
        for path in sorted((package / folder).rglob("*.py")):
            _, statements, _, missed, where = found.analysis2(str(path))
            all_of, missed_of = all_of + len(statements), missed_of + len(missed)
            share = 100 * (1 - len(missed) / max(1, len(statements)))
            name = str(path.relative_to(package))
            lines.append(f"{share:5.0f} %  {len(statements):4}  {name:32} {where}")
        share = 100 * (1 - missed_of / max(1, all_of))
        print(f"{folder}: {share:.1f} % of {all_of} statements", *lines, sep="\n", flush=True)


def _play_all(told: argparse.Namespace, inputs: Path) -> int:
    began_s, failed, steps = time.monotonic(), [], 0
    count = not told.each if told.seeds is None else told.seeds
    seeds = (*told.each, *range(told.first, told.first + count))
    for seed in seeds:
        case = wider(draw(seed)) if told.wide else draw(seed)
        played = play(case, inputs, tell_all=told.trace)
        steps += played.steps
        if told.trace:
            print(case, *played.log, f"codes {played.codes}, digest {played.digest:08x}", sep="\n")
        if played.faults:
            failed.append(seed)
            print(f"seed {seed} failed: {'; '.join(played.faults)[:4000]}")
            how = f"{'--wide ' if told.wide else ''}--from {seed} --trace"
            print(f"  again: python -m tests.simulation.play {how}", flush=True)
            print(f"  simplest: {simplest(case, inputs)}", flush=True)
    took_s = time.monotonic() - began_s
    print(f"{len(seeds)} seeds, {len(failed)} failed {failed}; {steps} steps, {took_s:.0f} s")
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
