"""Runs a chaos round: a real job, the faults of its plan, resume until it is complete, checks.

Owns: starting `collage-mpi launch`, doing harm at the planned moments, the verdict.
Does not know: how plans are drawn.

What must hold after every session: it has ended, no process of it is left, and its exit
code agrees with what lies in the folder. What must hold in the end: one row an image, no
double, every answer right, error rows only where a row was corrupted.
"""

from __future__ import annotations

import os
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
from chaos_plan import OUTLIVED, ROWS, SHARDS, SIGNALS, Fault, Round

from collage_mpi.errors import EnvironmentFault, ExitCode
from collage_mpi.results import SOURCES, VerifyReport, read_results, verify_run
from collage_mpi.shards import write_shard
from collage_mpi.system.process_tree import end_family, holders_of, process_table

INSIDE = Path(__file__).parent / "inside"
CLASSES = 251
PARITY = SOURCES.index("parity")
SESSION_LIMIT_S = 150.0  # late answers 30 s, silent ranks 5 s; on cores shared with others
LEFTOVER_S = 10.0
MOST_SESSIONS = 6
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
    seconds: float = 0.0
    commands: list[str] = field(default_factory=list)


def make_shards(folder: Path) -> None:
    """The input: the top-left pixel is the class, so a right answer proves the right image."""
    folder.mkdir(parents=True)
    for shard in range(SHARDS):
        labels = (np.arange(ROWS) + shard * ROWS) * 37 % CLASSES  # (ROWS,) int64
        images = np.random.default_rng(shard).integers(0, 256, (ROWS, 8, 8, 1), dtype=np.uint8)
        images[:, 0, 0, 0] = labels
        names = [f"class {i}" for i in range(CLASSES)]
        write_shard(folder / f"{shard}.h5", images, labels, class_names=names, chunk_rows=16)


class Job:
    """The folder of a round and its sessions."""

    def __init__(self, plan: Round, folder: Path) -> None:
        self.plan, self.folder = plan, folder
        self.verdict = Verdict(plan)
        self.shards, self.out = folder / "shards", folder / "out"
        self.corrupted: set[tuple[int, int]] = set()
        self.replaced: set[int] = set()  # shards, while workers read them
        self._whole: dict[Path, bytes] = {}
        self._harmed_while_open: set[int] = set()

    def run(self) -> Verdict:
        """All sessions, then the last look."""
        start_s = time.monotonic()
        make_shards(self.shards)
        self._corrupt_rows()
        for number in range(MOST_SESSIONS):
            faults = self.plan.sessions[number] if number < len(self.plan.sessions) else ()
            self._session(number, faults)
            self._mend()
            if self.verdict.wrong or self._complete():
                break
        self._judge_rows()
        self.verdict.seconds = time.monotonic() - start_s
        return self.verdict

    # ---- a session ----------------------------------------------------------

    def _session(self, number: int, faults: tuple[Fault, ...]) -> None:
        stage = self.folder / f"session-{number}"
        stage.mkdir()
        before = [f for f in faults if f.kind in ("truncate shard before", "disk full")]
        for fault in before:
            self._harm_before(fault, stage)
        words = self._words()
        self.verdict.commands.append(f"{' '.join(words)}   # {'; '.join(map(str, faults))}")
        tag = uuid.uuid4().hex
        with open(stage / "out.txt", "w") as log:
            process = subprocess.Popen(
                words,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment(stage, tag),
                start_new_session=True,
            )
        try:
            hung = self._follow(process, stage, [f for f in faults if f not in before])
        finally:
            end_family(process, grace_s=0.0)
        self.verdict.codes.append(process.returncode)
        if hung:
            self.verdict.hangs += 1
            self.verdict.wrong.append(f"session {number} did not end in {SESSION_LIMIT_S:g} s")
        self._judge_leftovers(tag)
        self._judge_code(number, process.returncode, faults)

    def _words(self) -> list[str]:
        plan = self.plan
        words = [sys.executable, "-m", "collage_mpi", "launch", "-n", str(plan.ranks), "--", "run"]
        words += ["--shards", str(self.shards), "--single", "null", "--collage", "null"]
        words += ["--side", "2", "--singles", str(plan.singles), "--out", str(self.out)]
        words += ["--collage-ranks", str(plan.collages), *plan.settings]
        words += ["--teams", str(plan.teams)]
        if plan.on_loss != "plain":
            words += ["--on-rank-loss", plan.on_loss, "--reply-timeout-s", "2"]
            words += ["--start-timeout-s", "20"]
        return [*words, "--resume"] if (self.out / "manifest.json").exists() else words

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
            done = self._kill_launcher(process)
        elif fault.kind.startswith(("stop", "delay")):
            done = self._signal(stage, fault.rank, signal.SIGSTOP)
        elif fault.kind.startswith("kill"):
            done = self._signal(stage, fault.rank, signal.SIGKILL)
        if done:
            self.verdict.done.add(fault.kind)
        if fault.kind.startswith("delay"):
            yield fault.number
            self._signal(stage, fault.rank, signal.SIGCONT)

    def _kill_launcher(self, launch: subprocess.Popen) -> bool:
        """The one child of `launch`."""
        children = [pid for pid, (parent, _) in process_table().items() if parent == launch.pid]
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        return bool(children)

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
                    (self.shards / f"{shard}.h5.sha256").unlink(missing_ok=True)
                    self.corrupted.add((shard, row))
                    self.verdict.done.add(fault.kind)

    def _flip(self, shard: int, row: int) -> None:
        import h5py

        path = self.shards / f"{shard}.h5"
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
        else:
            path = self.shards / f"{int(fault.number)}.h5"
            self._whole.setdefault(path, path.read_bytes())
            path.write_bytes(self._whole[path][:1500])
        self.verdict.done.add(fault.kind)

    def _harm_during(self, fault: Fault) -> bool:
        """While the job runs: a row in place, or the whole file replaced by another shard."""
        shard = int(fault.number)
        path = self.shards / f"{shard}.h5"
        self._whole.setdefault(path, path.read_bytes())
        if fault.kind == "corrupt row during":
            self._flip(shard, row := (self.plan.number * 17 + 3) % ROWS)
            self.corrupted.add((shard, row))
        else:
            other = path.with_name(f".{path.name}.new")
            other.write_bytes((self.shards / f"{(shard + 1) % SHARDS}.h5").read_bytes())
            os.replace(other, path)
            if "workers" in self.plan.settings:  # rank 0 alone would leave its images out
                self.replaced.add(shard)
        return True

    def _mend(self) -> None:
        """What a user would do before the next session: copy the shard again."""
        for path, raw in self._whole.items():
            path.write_bytes(raw)
        self._whole.clear()

    # ---- verdicts -----------------------------------------------------------

    def _report(self) -> VerifyReport | None:
        try:
            return verify_run(self.out)
        except EnvironmentFault:
            return None  # no run there yet

    def _complete(self) -> bool:
        report = self._report()
        return report is not None and report.ok

    def _judge_code(self, number: int, code: int, faults: tuple[Fault, ...]) -> None:
        report = self._report()
        status = "no run" if report is None else report.status
        marked = (self.out / "COMPLETE").exists()
        truth = {
            "complete": (ExitCode.COMPLETE,),
            "complete_with_errors": (ExitCode.COMPLETE_WITH_ERRORS,),
        }
        kinds = {fault.kind for fault in faults}
        harmed = bool(kinds & {"corrupt row during", "replace shard during"})
        bad = self.verdict.wrong
        if status == "damaged":
            bad.append(f"session {number} left a damaged run: {report.problems if report else ''}")
        if code in (0, 5) and (not marked or code not in truth.get(status, ())):
            bad.append(f"session {number} said {code}, the folder says {status}")
        if code == ExitCode.INCOMPLETE and status in truth:
            bad.append(f"session {number} said {code}, but the run is {status}")
        if not faults and code not in (0, 5):
            bad.append(f"session {number} was left alone and said {code} ({status})")
        if code == ExitCode.DEFECT and not any(k.startswith("kill") for k in kinds):
            bad.append(f"session {number} said {code}: a defect")
        if code == ExitCode.DATA and not (harmed or "truncate shard before" in kinds):
            bad.append(f"session {number} said {code}, but its input was sound")
        if [f.kind in SIGNALS and f.phase == "work" for f in faults] == [True] and kinds == (
            self.verdict.done & kinds
        ):
            in_order = (ExitCode.COMPLETE, ExitCode.COMPLETE_WITH_ERRORS, ExitCode.INCOMPLETE)
            if code not in in_order:
                bad.append(f"session {number} was told to stop and said {code}")
        if self.plan.on_loss == "continue" and kinds and kinds <= {*OUTLIVED}:
            self.verdict.survived += code in (0, 5)

    def _judge_leftovers(self, tag: str) -> None:
        until_s = time.monotonic() + LEFTOVER_S
        while (left := holders_of(f"CHAOS_TAG={tag}")) and time.monotonic() < until_s:
            time.sleep(0.05)
        for pid in left:
            self.verdict.leftovers += 1
            self.verdict.wrong.append(f"process {pid} was left behind")
            os.kill(pid, signal.SIGKILL)

    def _judge_rows(self) -> None:
        report, bad = self._report(), self.verdict.wrong
        if report is None:
            bad.append("there is no run")
            return
        self.verdict.missing, self.verdict.doubles = report.missing, report.doubles
        if not report.ok:
            bad.append(f"not complete after {len(self.verdict.codes)} sessions: {report.problems}")
            return
        run = read_results(self.out)
        paths = [Path(shard["path"]).stem for shard in run.manifest["shards"]]
        for row in run.images:
            shard, number = int(paths[row["shard"]]), int(row["row"])
            truth = (number + shard * ROWS) * 37 % CLASSES
            if not row["answered"]:
                if (shard, number) not in self.corrupted and shard not in self.replaced:
                    bad.append(f"shard {shard} row {number} is an error row: {row['reason']}")
            elif row["predicted"] != truth and row["source"] != PARITY:  # null decodes to anything
                bad.append(f"shard {shard} row {number}: {row['predicted']}, not {truth}")
        if len(run.images) != SHARDS * ROWS:
            bad.append(f"{len(run.images)} rows for {SHARDS * ROWS} images")


def environment(stage: Path, tag: str) -> dict[str, str]:
    """The surroundings of a session: its ranks meet `inside/sitecustomize.py` first."""
    path = os.pathsep.join(filter(None, [str(INSIDE), os.environ.get("PYTHONPATH", "")]))
    more = {"CHAOS_FOLDER": str(stage), "CHAOS_TAG": tag, "PYTHONPATH": path}
    return {**os.environ, **more, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}


def run_round(plan: Round, folder: Path, *, keep: bool = False) -> Verdict:
    """Run one round in a new folder, which is removed if all went well."""
    verdict = Job(plan, folder).run()
    if not (verdict.wrong or keep):
        shutil.rmtree(folder)
    return verdict
