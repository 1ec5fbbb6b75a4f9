"""Runs a chaos round: a real job, the faults of its plan, resume until it is complete, checks.

Owns: starting `collage-mpi launch`, doing harm at the planned moments, the verdict.

A session is one job, or two that share the run at once. What must hold after it: it has ended, no
process of it and no shared memory is left, and its exit code agrees with what lies in the folder.
What must hold in the end: one row an image, no double, every answer right, error rows only where a
row was corrupted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from chaos_plan import EXITS, HARMLESS, NAMES, OUTLIVED, ROWS, SHARDS, SIGNALS, Fault, Round
from chaos_surroundings import SharedMemory, Strangers, children, kill, signal_all, wrappers

from collage_mpi.errors import EnvironmentFault, ExitCode
from collage_mpi.launch.mpiexec import find_mpi
from collage_mpi.ledger.records import complete_name
from collage_mpi.results import VerifyReport, has_run, read_results, verify_run
from collage_mpi.results.parts import read_ledger, read_runs
from collage_mpi.results.verify import repair_run
from collage_mpi.rows import KEPT, SOURCES
from collage_mpi.shards import ShardWriter
from collage_mpi.system.process_tree import end_family, holders_of

INSIDE = Path(__file__).parent / "inside"
CLASSES = 251
COLLAGE = "null:wrong=30"  # of 100 answers
BY_COLLAGE = ("collage", KEPT)
# Of 3 s usually. Late answers take 30 s, silent ranks 5 s; on cores that fifty others wanted a
# session has taken over 150 s.
SESSION_LIMIT_S = 400.0
FORKED_EACH = 3  # one round in three: a server forks the ranks
LEFTOVER_S = 10.0
GUARDED_S = 40.0  # of a launch that was killed: its guard gives ranks 20 s
MOST_SESSIONS = 6
BEFORE = (
    *("truncate shard before", "disk full", "full /dev/shm", "exit at start"),
    *("few descriptors", "foreign output"),
)
STRANGER = 12345  # a user's number
TICK_S = 0.005


@dataclass
class Verdict:
    """What a round came to. `wrong` is empty if all is well."""

    plan: Round
    wrong: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    done: set[str] = field(default_factory=set)  # kinds of faults that met their victim
    survived: int = 0  # sessions that lost ranks and completed all the same
    missing: int = 0
    doubles: int = 0
    hangs: int = 0
    leftovers: int = 0
    segments: int = 0  # names in /dev/shm
    strangers: int = 0  # connections to the job's ports
    seconds: float = 0.0
    commands: list[str] = field(default_factory=list)
    mpi: str = field(default_factory=lambda: find_mpi().family)

    def as_line(self) -> str:
        """JSON, for `from_line`."""
        return json.dumps(dataclasses.asdict(self), default=sorted)

    @classmethod
    def from_line(cls, line: str) -> Verdict:
        """What `as_line` has written, of a plan that need not be drawn so any more."""
        told = json.loads(line)
        sessions = tuple(tuple(Fault(**f) for f in found) for found in told["plan"]["sessions"])
        plan = {**told["plan"], "settings": tuple(told["plan"]["settings"]), "sessions": sessions}
        return cls(**{**told, "plan": Round(**plan), "done": set(told["done"])})


def input_of(shard: int) -> tuple[np.ndarray, np.ndarray]:
    """Images, (ROWS, 8, 8, 1) uint8, and labels, (ROWS,) int64: the top-left pixel is the class."""
    labels = (np.arange(ROWS) + shard * ROWS) * 37 % CLASSES
    images = np.random.default_rng(shard).integers(0, 256, (ROWS, 8, 8, 1), dtype=np.uint8)
    images[:, 0, 0, 0] = labels
    return images, labels


def answers_of(shard: int, source: str) -> tuple[np.ndarray, np.ndarray]:
    """What a source answers to a shard's images: classes, (ROWS,) int64, and scores, (ROWS,) float.

    The collage network errs, and the less often the surer it is (`models/null`). So a right answer
    proves the right image, and the network that the row names.
    """
    images, labels = input_of(shard)
    if source not in BY_COLLAGE:
        return labels, np.ones(ROWS)
    sure, draw = images[:, 0, 1, 0] / 255, images[:, 0, 2, 0]
    return (labels + (draw < 512 * 0.3 * (1 - sure))) % CLASSES, 0.6 + 0.4 * sure


def make_shards(folder: Path, prefix: str) -> None:
    """The input."""
    folder.mkdir(parents=True)
    for shard in range(SHARDS):
        images, labels = input_of(shard)
        names, path = [f"class {i}" for i in range(CLASSES)], folder / f"{prefix}{shard}.h5"
        with ShardWriter(path, (8, 8, 1), class_names=names, rows_per_chunk=16) as writer:
            writer.append(images, labels)


class Job:
    """The folder of a round and its sessions."""

    def __init__(self, plan: Round, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self.verdict = Verdict(plan)
        odd = [int(f.number) for faults in plan.sessions for f in faults if f.kind == "odd names"]
        self.prefix = NAMES[odd[0] % len(NAMES)] if odd else ""
        self.home = folder / self.prefix
        self.shards, self.out = self.home / f"{self.prefix}shards", self.home / f"{self.prefix}out"
        if odd:
            self.verdict.done.add("odd names")
        self.corrupted: set[tuple[int, int]] = set()
        self.replaced: set[int] = set()  # shards, while workers read them
        self._whole: dict[Path, bytes] = {}
        self._shared_memory = SharedMemory()
        self._second: list[subprocess.Popen] = []
        self._limits: tuple[str, ...] = ()  # what stands before a command

    def run(self) -> Verdict:
        """All sessions, then the last look."""
        start_s = time.monotonic()
        make_shards(self.shards, self.prefix)
        self._corrupt_rows()
        for number in range(MOST_SESSIONS):
            faults = self.plan.sessions[number] if number < len(self.plan.sessions) else ()
            self._session(number, faults)
            self._mend()
            self._harm_parts(number, faults)
            if self.verdict.wrong or self._complete():
                break
        self._judge_rows()
        self._shared_memory.close()
        self.verdict.seconds = time.monotonic() - start_s
        return self.verdict

    # ---- a session ----------------------------------------------------------

    def _session(self, number: int, faults: tuple[Fault, ...]) -> None:
        stage = self.folder / f"session-{number}"
        stage.mkdir()
        before = [f for f in faults if f.kind in BEFORE]
        for fault in before:
            self._harm_before(fault, stage)
        self._tag = tag = f"CHAOS_TAG={uuid.uuid4().hex}"
        self._strangers = Strangers(tag, f"{self.plan.seed}:{self.plan.number}:{number}")
        process, self._second = self._start(stage, self._words(), faults), []
        elsewhere = (*BEFORE, "damage part", "lose part", "odd names")
        processes = [process]
        try:
            during = [f for f in faults if f.kind not in elsewhere]
            hung = self._follow(process, stage, during)
            for second in self._second:
                hung |= self._follow(second, stage, [])
                processes.append(second)
        finally:
            for each in processes:
                end_family(each, grace_s=0.0)
            self._strangers.leave()
        self.verdict.strangers += self._strangers.connections
        if hung:
            self.verdict.hangs += 1
            self.verdict.wrong.append(f"session {number} did not end in {SESSION_LIMIT_S:g} s")
        self._judge_leftovers(number, faults)
        codes = [each.returncode for each in processes]
        self.verdict.codes += codes
        self._judge_codes(number, codes, faults, stage)

    def _start(self, stage: Path, words: list[str], faults: tuple[Fault, ...]) -> subprocess.Popen:
        """A launch, noted down; what it says goes to out.txt in `stage`."""
        command = f"cd {self.home} && {shlex.join(words)}   # {'; '.join(map(str, faults))}"
        self.verdict.commands.append(command)
        with open(stage / "out.txt", "w") as log:
            return subprocess.Popen(
                self._shared_memory.command([*self._limits, *words], self.home),
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment(stage, self._tag),
                start_new_session=True,
            )

    def _words(self) -> list[str]:
        plan = self.plan
        words = [sys.executable, "-m", "collage_mpi", "launch", "-n", str(plan.ranks)]
        words += ["--start", "fork" if plan.number % FORKED_EACH == 2 else "auto", "--", "run"]
        words += [f"--shards={self.shards.name}", "--single", "null", "--collage", COLLAGE]
        words += ["--side", "2", "--singles", str(plan.singles), f"--out={self.out.name}"]
        words += ["--collage-ranks", str(plan.collages), *plan.settings]
        words += ["--teams", str(plan.teams)]
        if plan.on_loss != "plain":
            words += ["--on-rank-loss", plan.on_loss, "--reply-timeout-s", "2"]
            words += ["--start-timeout-s", "20"]
        return words

    def _follow(self, process: subprocess.Popen, stage: Path, faults: list[Fault]) -> bool:
        """Do the harm in time; whether the session had to be killed."""
        start_s = time.monotonic()
        waiting = [acts for fault in faults for acts in [self._acts(fault, stage, process)]]
        due: list[tuple[float, Iterator[float]]] = [(0.0, acts) for acts in waiting]
        while process.poll() is None:
            now_s = time.monotonic()
            if now_s - start_s > SESSION_LIMIT_S:
                return True
            again = []
            for at_s, acts in due:
                if now_s < at_s:
                    again.append((at_s, acts))
                    continue
                pause_s = next(acts, None)
                if pause_s is not None:
                    again.append((now_s + pause_s, acts))
            due = again
            time.sleep(TICK_S)
        return False

    def _acts(self, fault: Fault, stage: Path, process: subprocess.Popen) -> Iterator[float]:
        """A generator that does a fault's harm; it yields the seconds until its next turn."""
        anchor = fault.rank if fault.rank is not None else 0
        marks = {"start": f"rank-{anchor}.pid", "up": f"up-{anchor}", "work": f"works-{anchor}"}
        mark = marks[fault.phase]
        while not (stage / mark).exists():
            yield TICK_S
        yield fault.after_s
        done = False
        if fault.kind in SIGNALS:
            process.send_signal(getattr(signal, fault.kind))
            done = True
        elif fault.kind in ("corrupt row during", "replace shard during"):
            done = self._harm_during(fault)
        elif fault.kind == "kill all workers":
            done = all([self._signal(stage, r, signal.SIGKILL) for r in range(1, self.plan.ranks)])
        elif fault.kind == "kill launcher":
            launcher = children(process.pid).get("launcher")
            done = launcher is not None and kill(launcher)
        elif fault.kind == "kill launch":
            done = kill(process.pid)
        elif fault.kind == "kill wrapper":
            ranks = [int(path.read_text() or 0) for path in stage.glob("rank-*.pid")]
            found = wrappers(self._tag, process.pid, ranks)
            done = bool(found) and kill(found[int(fault.number) % len(found)])
        elif fault.kind == "suspend job":
            done = signal_all(self._tag, signal.SIGSTOP)
        elif fault.kind == "second session":
            place = stage / f"second-{len(self._second)}"
            place.mkdir()
            self._second.append(self._start(place, self._words(), ()))
            done = True
        elif fault.kind == "garbage on ports":
            while True:  # until the session is over
                self._strangers.call()
                if self._strangers.connections:
                    self.verdict.done.add(fault.kind)
                yield 0.2
        elif fault.kind.startswith(("stop", "delay")):
            done = self._signal(stage, fault.rank, signal.SIGSTOP)
        elif fault.kind.startswith("kill"):
            done = self._signal(stage, fault.rank, signal.SIGKILL)
        if done:
            self.verdict.done.add(fault.kind)
        if fault.kind.startswith("delay"):
            yield fault.number
            self._signal(stage, fault.rank, signal.SIGCONT)
        elif fault.kind == "suspend job":
            yield fault.number
            signal_all(self._tag, signal.SIGCONT)

    def _signal(self, stage: Path, rank: int | None, number: int) -> bool:
        try:
            pid = int((stage / f"rank-{rank}.pid").read_text())
            # Its pid may be another's by now: only a process of this session is meant.
            if f"CHAOS_FOLDER={stage}".encode() not in Path(f"/proc/{pid}/environ").read_bytes():
                return False
            os.kill(pid, number)
        except (OSError, ValueError):
            return False
        return True

    # ---- harm to files ------------------------------------------------------

    def _corrupt_rows(self) -> None:
        """Rows damaged before the first session, in a file whose checksum is not beside it."""
        for faults in self.plan.sessions:
            for fault in faults:
                if fault.kind == "corrupt row before":
                    shard = int(fault.number)
                    self._flip(shard, row := (self.plan.number * 31 + 5) % ROWS)
                    path = self._shard(shard)
                    path.with_name(f"{path.name}.sha256").unlink(missing_ok=True)
                    self.corrupted.add((shard, row))
                    self.verdict.done.add(fault.kind)

    def _shard(self, number: int) -> Path:
        return self.shards / f"{self.prefix}{number}.h5"

    def _flip(self, shard: int, row: int) -> None:
        import h5py

        path = self._shard(shard)
        with h5py.File(path, "r", locking=False) as file:
            images = file["images"]
            chunk = images.id.get_chunk_info_by_coord((row - row % 16, 0, 0, 0))
            place = chunk.byte_offset + (row % 16) * 64 + 7
        with path.open("r+b") as raw:
            raw.seek(place)
            old = raw.read(1)[0]
            raw.seek(place)
            raw.write(bytes([old ^ 0xFF]))

    def _harm_before(self, fault: Fault, stage: Path) -> None:
        if fault.kind == "disk full":
            (stage / "disk_full_at").write_text(str(int(fault.number)))
        elif fault.kind == "exit at start":
            how = f"{fault.after_s} {EXITS[int(fault.number)]}"
            (stage / f"exits-{fault.rank}").write_text(how)
        elif fault.kind == "full /dev/shm":
            if not self._shared_memory.limit(int(fault.number)):
                return
        elif fault.kind == "few descriptors":
            self._limits = ("prlimit", f"--nofile={int(fault.number)}")
        elif fault.kind == "foreign output":
            if os.geteuid() != 0:
                return
            self.out.mkdir(exist_ok=True)
            os.chown(self.out, STRANGER, STRANGER)
        else:
            path = self._shard(int(fault.number))
            self._whole.setdefault(path, path.read_bytes())
            path.write_bytes(self._whole[path][:1500])
        self.verdict.done.add(fault.kind)

    def _harm_during(self, fault: Fault) -> bool:
        """While the job runs: a row in place, or the whole file replaced by another shard."""
        shard = int(fault.number)
        path = self._shard(shard)
        self._whole.setdefault(path, path.read_bytes())
        if fault.kind == "corrupt row during":
            self._flip(shard, row := (self.plan.number * 17 + 3) % ROWS)
            self.corrupted.add((shard, row))
        else:
            other = path.with_name(f".{path.name}.new")
            other.write_bytes(self._shard((shard + 1) % SHARDS).read_bytes())
            os.replace(other, path)
            if "workers" in self.plan.settings:  # rank 0 alone would leave its images out
                self.replaced.add(shard)
        return True

    def _mend(self) -> None:
        """What a user would do before the next session: copy the shard again, make room."""
        self._shared_memory.limit(None)
        self._limits = ()
        if self.out.exists() and self.out.stat().st_uid == STRANGER:
            os.chown(self.out, os.geteuid(), os.getegid())
        for path, raw in self._whole.items():
            path.write_bytes(raw)
        self._whole.clear()

    def _harm_parts(self, number: int, faults: tuple[Fault, ...]) -> None:
        """Of what sessions have written; damage must be told until the run is repaired."""
        for fault in faults:
            bad = self.verdict.wrong
            counted = read_ledger(self.out).parts if has_run(self.out) else ()
            parts = [part for part in counted if part.path.exists()]
            if fault.kind not in ("damage part", "lose part") or not parts or bad:
                continue
            which = int(fault.number)
            path = parts[which % len(parts)].path
            of_images = parts[which % len(parts)].table == "images"
            self.verdict.done.add(fault.kind)
            raw = bytearray(path.read_bytes())
            raw[which % len(raw)] ^= 0x10
            path.unlink()
            if fault.kind == "damage part":
                path.write_bytes((raw, raw[: which % len(raw)], b"")[which % 3])
            report = self._report()
            if report is None or (report.status != "damaged" and of_images):
                bad.append(f"{path.name} was harmed ({fault.kind}), verify said {report}")
            told = repair_run(self.out)
            if of_images and not any(path.name in each for each in told):
                bad.append(f"{path.name} was harmed ({fault.kind}), verify --repair said {told}")
            if self._complete() and of_images:
                bad.append(f"verify does not miss {path.name}")

    # ---- verdicts -----------------------------------------------------------

    def _report(self) -> VerifyReport | None:
        try:
            return verify_run(self.out)
        except EnvironmentFault:
            return None  # no run there yet

    def _complete(self) -> bool:
        report = self._report()
        return report is not None and report.ok

    def _judge_codes(
        self, number: int, codes: list[int], faults: tuple[Fault, ...], stage: Path
    ) -> None:
        """Of a session, and of those that were begun while it ran: one at a time writes."""
        kinds, bad = {fault.kind for fault in faults}, self.verdict.wrong
        said = (stage / "out.txt").read_text(errors="replace")
        if kinds <= {*HARMLESS}:
            faults = ()  # the same as none
            if "is lost" in said:
                bad.append(f"session {number} has lost a rank that was there")
        together = len(codes) > 1
        if together and kinds <= {*HARMLESS, "second session"} and not {*codes} <= {0, 5}:
            bad.append(f"jobs that shared the run in session {number} said {codes}")
        told = codes[0] in (0, 5) or (codes[0] in (3, 6) and "/dev/shm" in said)
        if kinds == {"few descriptors"} and codes[0] not in (0, 3, 5, 6):
            bad.append(f"session {number} said {codes[0]} with few descriptors: {said[-300:]}")
        if kinds == {"foreign output"} and "foreign output" in self.verdict.done and codes[0] != 3:
            bad.append(f"session {number} said {codes[0]} in another user's folder: {said[-300:]}")
        if kinds == {"full /dev/shm"} and not told:
            bad.append(f"session {number} said {codes[0]} with /dev/shm full: {said[-300:]}")
        for code in codes:
            self._judge_code(number, code, faults, said, together=together)

    def _judge_code(
        self, number: int, code: int, faults: tuple[Fault, ...], said: str, *, together: bool
    ) -> None:
        """`said`: by the session; `together`: another job went on with the run after it."""
        report = self._report()
        status = "no run" if report is None else report.status
        marked = has_run(self.out) and all(
            (self.out / complete_name(run)).exists() for run in read_runs(self.out)
        )
        truth = {
            "complete": (ExitCode.COMPLETE,),
            "complete_with_errors": (ExitCode.COMPLETE_WITH_ERRORS,),
        }
        kinds = {fault.kind for fault in faults}
        harmed = bool(kinds & {"corrupt row during", "replace shard during"})
        bad = self.verdict.wrong
        met = {getattr(signal, kind) for kind in kinds & {*SIGNALS}}
        met |= {signal.SIGKILL} if "kill launch" in kinds else set()
        # Of launch itself, before it heeds a signal or when all is over: to a shell 128 + it too.
        known = {*map(int, ExitCode)} | {128 + m for m in met} | {-m for m in met}
        if code not in known:
            bad.append(f"session {number} said {code}, which is no code of ours")
        if status == "damaged":
            bad.append(f"session {number} left a damaged run: {report.problems if report else ''}")
        if code in (0, 5) and (not marked or code not in truth.get(status, ())):
            bad.append(f"session {number} said {code}, the folder says {status}")
        if code == ExitCode.INCOMPLETE and status in truth and not together:
            bad.append(f"session {number} said {code}, but the run is {status}")
        mended = "can be read by now" in said  # a shard that was bad when the run began
        if not faults and code not in ((6,) if mended else (0, 5)):
            bad.append(f"session {number} was left alone and said {code} ({status})")
        if code == ExitCode.DEFECT and not any(k.startswith("kill") for k in kinds):
            bad.append(f"session {number} said {code}: a defect")
        if code == ExitCode.DATA and not (harmed or "truncate shard before" in kinds):
            bad.append(f"session {number} said {code}, but its input was sound")
        if [f.kind in SIGNALS and f.phase == "work" for f in faults] == [True] and kinds == (
            self.verdict.done & kinds
        ):
            in_order = (ExitCode.COMPLETE, ExitCode.COMPLETE_WITH_ERRORS, ExitCode.INCOMPLETE)
            if code not in in_order and -code not in met:
                bad.append(f"session {number} was told to stop and said {code}")
        if self.plan.on_loss == "continue" and kinds and kinds <= {*OUTLIVED}:
            self.verdict.survived += code in (0, 5)

    def _judge_leftovers(self, number: int, faults: tuple[Fault, ...]) -> None:
        guarded = any(fault.kind == "kill launch" for fault in faults)
        until_s = time.monotonic() + (GUARDED_S if guarded else LEFTOVER_S)
        while (left := holders_of(self._tag)) and time.monotonic() < until_s:
            time.sleep(0.05)
        for pid in left:
            self.verdict.leftovers += 1
            self.verdict.wrong.append(f"process {pid} was left behind")
            kill(pid)
        names = self._shared_memory.swept()
        self.verdict.segments += len(names)
        if names:
            self.verdict.wrong.append(f"session {number} left in /dev/shm: {names}")

    def _judge_rows(self) -> None:
        report, bad = self._report(), self.verdict.wrong
        if report is None:
            bad.append("there is no run")
            return
        self.verdict.doubles = report.doubles
        if bad and not report.ok:
            return  # cut short: who knows what further sessions would have done
        self.verdict.missing = report.missing
        if not report.ok:
            bad.append(f"not complete after {len(self.verdict.codes)} sessions: {report.problems}")
            return
        run = read_results(self.out)
        paths = [Path(shard["path"]).stem for shard in run.manifest["shards"]]
        sources = {SOURCES[code] for code in np.unique(run.images["source"])}
        known = {(n, name): answers_of(n, name) for n in range(SHARDS) for name in sources}
        for row in run.images:
            shard, number = int(paths[row["shard"]][-1]), int(row["row"])
            source = SOURCES[row["source"]]
            truth, score = (values[number] for values in known[shard, source])
            if not row["answered"]:
                if (shard, number) not in self.corrupted and shard not in self.replaced:
                    bad.append(f"shard {shard} row {number} is an error row: {row['reason']}")
            elif row["predicted"] != truth:
                bad.append(
                    f"shard {shard} row {number}: {row['predicted']}, not {truth} ({source})"
                )
            elif source == "collage" and score < self.plan.confidence:
                bad.append(f"shard {shard} row {number}: {score:.3f} was accepted")
        if len(run.images) != SHARDS * ROWS:
            bad.append(f"{len(run.images)} rows for {SHARDS * ROWS} images")


def environment(stage: Path, tag: str) -> dict[str, str]:
    """The surroundings of a session: its ranks meet `inside/sitecustomize.py` first."""
    path = os.pathsep.join(filter(None, [str(INSIDE), os.environ.get("PYTHONPATH", "")]))
    name, _, value = tag.partition("=")
    more = {"CHAOS_FOLDER": str(stage), name: value, "PYTHONPATH": path}
    return {**os.environ, **more, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def run_round(plan: Round, folder: Path, *, keep: bool = False) -> Verdict:
    """Run one round in a new folder, which is removed if all went well."""
    verdict = Job(plan, folder).run()
    if not (verdict.wrong or keep):
        shutil.rmtree(folder)
    return verdict
