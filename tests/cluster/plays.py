"""Plays of jobs over virtual hosts: a host fails at a drawn moment, the job is resumed, its rows
must be those of the same job without faults.

Usage: python tests/cluster/plays.py --plays 100 --seed 1 --folder /tmp/plays [--at-once 3]
       python tests/cluster/plays.py --seed 1 --only 17 --folder /tmp/again     one play again

Under the environment whose MPI is to be tried. A failed play prints its plan, and its folder is
kept. What became of a play is a line of `verdicts.jsonl` in the folder: there it is not run again.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import traceback
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "faults"))

import h5py
from chaos_plan import SCHEMES, shape_of_work
from chaos_round import environment
from chaos_surroundings import children
from hosts import CLOCK, REMOTE_SHELL, hosts, missing, name_of
from mortal_jobs import marked_shard

from collage_mpi.errors import EnvironmentFault, ExitCode
from collage_mpi.launch.mpiexec import find_mpi
from collage_mpi.results import VerifyReport, read_results, verify_run
from collage_mpi.system.process_tree import holders_of, process_table

IMAGES = 240
DAMAGED = 100  # the row that is not as it was, in a copy that is damaged
# kind of fault -> how often it is drawn, relative to the others
WEIGHTS = {
    "kill": 4,  # the power of a host fails
    "kill first": 2,  # of the one that has rank 0 and the launcher
    "cut": 3,  # the network loses what the host sends and what is sent to it
    "cut first": 1,
    "deaf": 2,  # the network loses what is sent to it
    "mute": 2,  # the network loses what it sends
}
FOR_GOOD = ("kill", "kill first")
PHASES = ("launch", "start", "up", "work")  # of the launcher, then as in chaos_plan
SHORT_S, LONG_S = (0.3, 3.0), (5.0, 20.0)  # a network that is away for a while
PATIENCE_S = 120.0  # then the user ends the job
LIMIT_S = 200.0
LEFT_S = 45.0  # what a lost job may live on, on hosts that are up
# On other hosts than launch's. Open MPI's daemons live on for eight minutes.
STAYS = ("mpich_shm_", "hydra_hwloc_xmlfile_", "prted.")
MOST_SESSIONS = 4
TICK_S = 0.02


@dataclass(frozen=True)
class Fault:
    """What happens to a host.

    Attributes:
        kind: a key of WEIGHTS. Named plays have three more. "rank": the first rank of the host is
            killed. "suspend": the host's ranks are stopped for a while. "launcher": mpiexec is
            killed.
        host: its number.
        phase, after_s: the moment; see PHASES.
        lasts_s: until the network or the ranks work again; None: not before the session is over.
    """

    kind: str
    host: int
    phase: str
    after_s: float
    lasts_s: float | None


@dataclass(frozen=True)
class Play:
    """A job over hosts and what happens in its first session.

    Attributes:
        slots: how many ranks each host has.
        ahead_s: how much each host's date is ahead.
        back: the host is there again when the job is resumed.
        copies: each host has a copy of the input in its own /tmp. "absent" or "damaged" says what
            the last host has instead.
    """

    seed: int
    number: int
    slots: tuple[int, ...]
    ahead_s: tuple[int, ...]
    collages: int
    on_loss: str
    settings: tuple[str, ...]
    fault: Fault | None
    back: bool = True
    copies: str = ""

    @property
    def ranks(self) -> int:
        return sum(self.slots)

    def first_rank(self, host: int) -> int:
        """The lowest rank of a host."""
        return sum(self.slots[: host - 1])


def make_play(seed: int, number: int) -> Play:
    """A play; a pure function of the seed and its number."""
    rng = random.Random(f"hosts:{seed}:{number}")
    slots = tuple(rng.choice([1, 2, 2]) for _ in range(rng.choice([2, 2, 3, 3, 4, 5, 6, 8])))
    slots = slots if sum(slots) >= 4 else (2, 2)
    ahead_s = tuple(rng.choice([0, 0, rng.randint(-90_000, 90_000)]) for _ in slots)
    median_ms = rng.choice([8, 16, 24])
    settings = (
        *("--straggler", f"lognormal:{median_ms}:0.5"),
        *("--straggler-seed", str(rng.randrange(100))),
        *("--order", rng.choice(["file", f"shuffle:{rng.randrange(9)}"])),
        *shape_of_work(rng, tuple(SCHEMES), 1),
    )
    kind = rng.choices([*WEIGHTS], [*WEIGHTS.values()])[0]
    host = 1 if "first" in kind else rng.randint(2, len(slots))
    phase = rng.choices(PHASES, (1, 1, 1, 5))[0]
    after_s = rng.uniform(0, IMAGES / 4 * median_ms / 1e3 if phase == "work" else 0.8)
    lasts = rng.choice([None, round(rng.uniform(*SHORT_S), 2), round(rng.uniform(*LONG_S), 2)])
    fault = Fault(kind, host, phase, round(after_s, 3), None if kind in FOR_GOOD else lasts)
    on_loss = rng.choice(["continue", "continue", "abort"])
    back = rng.random() < 0.6 or sum(slots) - slots[host - 1] < 3
    return Play(seed, number, slots, ahead_s, 1, on_loss, settings, fault, back)


@dataclass
class Verdict:
    """What a play came to. `wrong` is empty if all is well.

    Attributes:
        met: the fault happened before the session was over.
        by_hand: the user had to end the session.
        left_s: the longest time that processes of a session lived on after it.
        stayed: processes that lived for longer on hosts that were up.
    """

    play: Play
    mpi: str
    wrong: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    met: bool = False
    by_hand: bool = False
    left_s: float = 0.0
    stayed: int = 0
    lost: int = 0
    doubled: int = 0
    seconds: float = 0.0
    said: str = ""

    def line(self) -> str:
        """Of the table."""
        fault, play = self.play.fault, self.play
        what = "no fault"
        if fault is not None:
            lasts = "for good" if fault.lasts_s is None else f"for {fault.lasts_s:g} s"
            what = f"{fault.kind} h{fault.host} {lasts}, {fault.after_s:.1f} s after {fault.phase}"
        word = "FAILED" if self.wrong else "ok"
        told = f"{', met' * self.met}{', ended by hand' * self.by_hand}"
        told += f", {self.stayed} processes stayed" if self.stayed else ""
        return (
            f"play {play.number}: {word}, {self.seconds:.0f} s, {len(play.slots)} hosts, "
            f"{play.ranks} ranks, {play.on_loss}, {what}{told}; codes {self.codes}, "
            f"left {self.left_s:.0f} s; {play.settings[play.settings.index('--scheme') + 1]}"
        )


class Game:
    """The folder of a play and its sessions."""

    def __init__(self, play: Play, folder: Path) -> None:
        self.play, self.folder, self.out = play, folder, folder / "out"
        self.mpi = find_mpi().family
        self.verdict = Verdict(play, self.mpi)
        self._gone: set[int] = set()  # hosts that are not there any more
        self._over: dict[str, float] = {}  # marks of sessions with processes, and when they ended
        folder.mkdir(parents=True)
        self.shard = marked_shard(folder / "a.h5", IMAGES)

    def run(self) -> Verdict:
        """All sessions, then the last look."""
        start_s, fault = time.monotonic(), self.play.fault
        with hosts(self.folder, self.play.ahead_s) as self.hosts:
            self._copy()
            self._first_files = set().union(*map(self._files, self.hosts.up))
            for number in range(MOST_SESSIONS):
                self._session(number, fault if number == 0 else None)
                if self.verdict.wrong or self._complete():
                    break
                self._mend(fault)
            self._judge_leftovers()
            self._judge_files()
        self._judge_rows()
        self.verdict.seconds = time.monotonic() - start_s
        return self.verdict

    def _copy(self) -> None:
        """Give each host its own copy of the input."""
        own, last = Path("/tmp/a.h5"), max(self.hosts.up)
        for number in self.hosts.up if self.play.copies else ():
            if (number, self.play.copies) != (last, "absent"):
                self.hosts.run(number, ["cp", "-p", str(self.shard), str(own)], 20)
        if self.play.copies == "damaged":
            with h5py.File(self.shard, "r") as file:
                pixels = file["images"][DAMAGED].tobytes()
            place = self.shard.read_bytes().index(pixels) + 9
            harm = f"printf x | dd of={own} bs=1 seek={place} conv=notrunc"
            self.hosts.run(last, ["sh", "-c", f"{harm}; touch -r {self.shard} {own}"], 20)
        self.shard = own if self.play.copies else self.shard

    def _mend(self, fault: Fault | None) -> None:
        """Before the job is resumed: the host is back, or the others go on without it."""
        if fault is None or fault.host in self._gone:
            return
        if self.play.back and fault.host not in self.hosts.up:
            self.hosts.revive(fault.host, self.play.ahead_s[fault.host - 1])
        elif not self.play.back:
            self._gone.add(fault.host)
        if fault.host in self.hosts.up:
            self.hosts.heal(fault.host)

    # ---- a session ----------------------------------------------------------

    def _session(self, number: int, fault: Fault | None) -> None:
        stage = self.folder / f"session-{number}"
        stage.mkdir()
        slots = {n: k for n, k in enumerate(self.play.slots, 1) if n not in self._gone}
        head, tag = min(slots), f"CHAOS_TAG={uuid.uuid4().hex}"
        words = self.hosts.up[head].command("env", *self._variables(stage, slots), *self._words())
        start_s, ended_s = time.monotonic(), None
        with open(stage / "out.txt", "w") as log:
            process = subprocess.Popen(
                words, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                env=environment(stage, tag), start_new_session=True,
            )  # fmt: skip
        acts = iter(()) if fault is None else self._acts(fault, stage, process)
        due_s = watch_s = 0.0
        while process.poll() is None:
            now_s = time.monotonic()
            if now_s >= watch_s:
                watch_s = now_s + 1.0
                self._watch_leftovers()
            if now_s >= due_s:
                pause_s = next(acts, None)
                due_s = LIMIT_S + start_s if pause_s is None else now_s + pause_s
            if now_s - start_s > PATIENCE_S and ended_s is None:
                ended_s, self.verdict.by_hand = now_s, True
                for pid in self._launch(process):
                    os.kill(pid, signal.SIGINT)  # Ctrl-C at its terminal
            if now_s - start_s > LIMIT_S:
                self.verdict.wrong.append(f"session {number} did not end in {LIMIT_S:g} s")
                break
            time.sleep(TICK_S)
        self._over[tag] = time.monotonic()
        process.kill()
        self._judge_code(number, process.wait(), fault, stage)

    def _variables(self, stage: Path, slots: dict[int, int]) -> list[str]:
        """How the launcher reaches the hosts, as words for `env`."""
        openmpi = self.mpi == "openmpi"
        file = stage / "hosts"
        pattern = "{} slots={}\n" if openmpi else "{}:{}\n"
        file.write_text("".join(pattern.format(name_of(n), k) for n, k in slots.items()))
        sent = "HOST_CLOCK CHAOS_TAG CHAOS_FOLDER PYTHONPATH"
        found = {"HOST_CLOCK": CLOCK, "SEND_ENV": sent}
        if openmpi:
            found |= {
                "PRTE_MCA_plm_ssh_agent": str(REMOTE_SHELL),
                "PRTE_MCA_prte_default_hostfile": str(file),
            }
        else:  # libfabric's TCP: UCX sees through hosts that share a machine
            found |= {
                "HYDRA_LAUNCHER": "ssh",
                "HYDRA_LAUNCHER_EXEC": str(REMOTE_SHELL),
                "HYDRA_HOST_FILE": str(file),
                "MPIR_CVAR_CH4_NETMOD": "ofi",
                "FI_PROVIDER": "tcp",
            }
        return [f"{name}={value}" for name, value in found.items()]

    def _words(self) -> list[str]:
        play = self.play
        slots = [k for n, k in enumerate(play.slots, 1) if n not in self._gone]
        ranks = sum(slots)
        words = [sys.executable, "-m", "collage_mpi", "launch", "-n", str(ranks), "--"]
        words += ["run", "--shards", str(self.shard), "--single", "null", "--collage", "null"]
        words += ["--side", "2", "--singles", str(ranks - 1 - play.collages)]
        words += ["--collage-ranks", str(play.collages), "--out", str(self.out)]
        words += ["--on-rank-loss", play.on_loss, "--start-timeout-s", "20"]
        words += ["--reply-timeout-s", "2"] if play.on_loss == "continue" else []
        words += play.settings
        return words

    def _acts(self, fault: Fault, stage: Path, process: subprocess.Popen) -> Iterator[float]:
        """A generator that does a fault's harm; it yields the seconds until its next turn."""
        rank = self.play.first_rank(fault.host)
        marks = {"start": f"rank-{rank}.pid", "up": f"up-{rank}", "work": "works-0"}
        while fault.phase != "launch" and not (stage / marks[fault.phase]).exists():
            yield TICK_S
        yield fault.after_s
        if process.poll() is not None:
            return
        self.verdict.met = True
        if fault.kind in FOR_GOOD:
            self.hosts.kill(fault.host)
            return
        if fault.kind == "launcher":
            for pid in self._launch(process):
                os.kill(children(pid)["launcher"], signal.SIGKILL)
            return
        if fault.kind in ("rank", "suspend"):
            ranks = range(rank, rank + self.play.slots[fault.host - 1])
            pids = [(stage / f"rank-{r}.pid").read_text() for r in ranks]
            if fault.kind == "rank":
                self.hosts.run(fault.host, ["kill", "-KILL", pids[0]], 20)
                return
            self.hosts.run(fault.host, ["kill", "-STOP", *pids], 20)
            yield fault.lasts_s
            self.hosts.run(fault.host, ["kill", "-CONT", *pids], 20)
            return
        self.hosts.cut(fault.host, sends=fault.kind != "deaf", hears=fault.kind != "mute")
        if fault.lasts_s is not None:
            yield fault.lasts_s
            self.hosts.heal(fault.host)

    @staticmethod
    def _launch(process: subprocess.Popen) -> list[int]:
        """The pid of launch, which is the child of what has entered its host, if it lives."""
        return [pid for pid, (parent, _) in process_table().items() if parent == process.pid]

    # ---- verdicts -----------------------------------------------------------

    def _watch_leftovers(self) -> None:
        """Of sessions that are over: note when their last process has ended."""
        for tag, over_s in [*self._over.items()]:
            if not _own_holders(tag):
                del self._over[tag]
                self.verdict.left_s = max(self.verdict.left_s, time.monotonic() - over_s)

    def _judge_leftovers(self) -> None:
        """No process of a session lives on for longer than LEFT_S, on hosts that are up.

        But for ranks that nobody can tell, without `continue` or before work has begun: faults.md
        names this limit.
        """
        play, verdict = self.play, self.verdict
        until_s = max(self._over.values(), default=0.0) + LEFT_S
        while self._over and time.monotonic() < until_s:
            self._watch_leftovers()
            time.sleep(0.1)
        left = {pid for tag in self._over for pid in _own_holders(tag)}
        names = []
        for pid in left:
            with suppress(OSError):  # it has ended now
                names.append(Path(f"/proc/{pid}/cmdline").read_bytes()[:60])
        begun = play.fault is None or play.fault.phase == "work"
        if verdict.met and (play.on_loss == "abort" or not begun):
            verdict.stayed = len(names)
        elif names or verdict.left_s > LEFT_S:
            verdict.wrong.append(f"processes were left for over {LEFT_S:g} s: {names}")
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _judge_files(self) -> None:
        """Nothing stays in the hosts' own /tmp and /dev/shm, but for what faults.md names."""
        for number in self.hosts.up if not self.verdict.stayed else ():
            more = self._files(number) - self._first_files
            left = {name for name in more if number == 1 or not name.startswith(STAYS)}
            if left:
                self.verdict.wrong.append(f"left on h{number}: {left}")

    def _files(self, number: int) -> set[str]:
        return {*self.hosts.run(number, ["ls", "-A", "/tmp", "/dev/shm"], 20).split()}

    def _report(self) -> VerifyReport | None:
        try:
            return verify_run(self.out)
        except EnvironmentFault:
            return None  # no run there yet

    def _complete(self) -> bool:
        report = self._report()
        return report is not None and report.ok

    def _judge_code(self, number: int, code: int, fault: Fault | None, stage: Path) -> None:
        """The exit code of launch must agree with what lies in the folder."""
        verdict, report = self.verdict, self._report()
        status = "no run" if report is None else report.status
        verdict.codes.append(code)
        said = (stage / "out.txt").read_text(errors="replace")
        verdict.said += f"--- session {number}: {code}, {status}\n{said[-6000:]}\n"
        of_ours = {*map(int, ExitCode)} | ({130} if verdict.by_hand else set())
        dead = fault is not None and fault.kind == "kill first" and verdict.met
        if code not in of_ours and not dead:
            verdict.wrong.append(f"session {number} said {code}, which is no code of ours")
        if status == "damaged":
            verdict.wrong.append(f"session {number} left a damaged run: {report.problems}")
        if code == 0 and status != "complete":
            verdict.wrong.append(f"session {number} said 0, the folder says {status}")
        if code == ExitCode.INCOMPLETE and status.startswith("complete"):
            verdict.wrong.append(f"session {number} said 6, but the run is {status}")
        if (fault is None or not verdict.met) and code not in (0, 5):
            verdict.wrong.append(f"session {number} was left alone and said {code} ({status})")

    def _judge_rows(self) -> None:
        """Each image once, with the answer that the null network gives without faults: its mark."""
        report, bad = self._report(), self.verdict.wrong
        if report is None:
            bad.append("there is no run")
            return
        self.verdict.lost, self.verdict.doubled = report.missing, report.doubles
        if not report.ok:
            bad.append(f"not complete after {len(self.verdict.codes)} sessions: {report.problems}")
            return
        rows = {int(row["row"]): row for row in read_results(self.out).images}
        alone = {n: n * 37 % 251 for n in range(IMAGES)}
        found = {
            n: row["predicted"] if row["answered"] else row["reason"] for n, row in rows.items()
        }
        wrong = {n: found.get(n) for n, answer in alone.items() if found.get(n) != answer}
        if wrong or len(rows) != IMAGES:
            bad.append(f"{len(rows)} rows, {len(wrong)} differ: {[*wrong.items()][:3]}")


def _own_holders(tag: str) -> set[int]:
    """Processes with this mark, but for Open MPI's daemons, which stay for eight minutes."""
    found = set()
    for pid in holders_of(tag):
        with suppress(OSError):  # it has ended
            if Path(f"/proc/{pid}/comm").read_text() != "prted\n":
                found.add(pid)
    return found


def pool_of(plays: int) -> ProcessPoolExecutor:
    """Processes for plays, which end, and their hosts with them, when this one does."""
    return ProcessPoolExecutor(plays, initializer=_die_with_us)


def _die_with_us() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def play_one(play: Play, folder: Path, *, keep: bool = False) -> Verdict:
    """One play in a new folder, which is removed if all went well."""
    shutil.rmtree(folder, ignore_errors=True)  # of a play that was cut off
    game = Game(play, folder)
    try:
        verdict = game.run()
    except Exception:  # the other plays go on
        game.verdict.wrong.append(traceback.format_exc())
        return game.verdict
    if not (verdict.wrong or keep):
        shutil.rmtree(folder)
    return verdict


def table(told: list[dict]) -> str:
    """Markdown: by fault and how long, the plays, and what had to be done."""
    rows = ["| fault | plays | met | complete in the first session | ended by hand | failed |"]
    rows.append("|---|---|---|---|---|---|")
    groups: dict[str, list[dict]] = {}
    for verdict in told:
        fault = verdict["play"]["fault"]
        lasts = fault["lasts_s"]
        word = "for good" if lasts is None else "up to 3 s" if lasts <= SHORT_S[1] else "5 to 20 s"
        name = f"{fault['kind']}, {word}, {verdict['play']['on_loss']}"
        groups.setdefault(name, []).append(verdict)
    for name, group in [*sorted(groups.items()), ("all", told)]:
        first = sum(v["codes"][:1] in ([0], [5]) for v in group)
        counts = [len(group), sum(v["met"] for v in group), first]
        counts += [sum(v["by_hand"] for v in group), sum(bool(v["wrong"]) for v in group)]
        rows.append(f"| {name} | {' | '.join(map(str, counts))} |")
    codes = Counter(v["codes"][0] for v in told)
    rows.append(f"\n{sum(v['lost'] for v in told)} rows lost, {sum(v['doubled'] for v in told)} "
                f"doubled; codes of first sessions: {dict(sorted(codes.items()))}")  # fmt: skip
    return "\n".join(rows)


def main() -> int:
    """Run, print the table; 1 if any play failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plays", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first play")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="one play, its folder kept")
    parser.add_argument("--at-once", type=int, default=1, help="plays at the same time")
    parser.add_argument("--folder", type=Path, required=True, help="a folder of one MPI's plays")
    args = parser.parse_args()
    if (why := missing()) is not None:
        print(why)
        return 0
    args.folder.mkdir(parents=True, exist_ok=True)
    record = args.folder / "verdicts.jsonl"
    record.touch()
    over = {json.loads(line)["play"]["number"] for line in record.read_text().splitlines()}
    numbers = [n for n in range(args.first, args.first + args.plays) if n not in over]
    numbers = numbers if args.only is None else [args.only]
    with pool_of(args.at_once) as pool:
        keep = args.only is not None
        todo = [
            pool.submit(play_one, make_play(args.seed, n), args.folder / f"play-{n}", keep=keep)
            for n in numbers
        ]
        for done in as_completed(todo):
            verdict = done.result()
            with record.open("a") as lines:
                lines.write(json.dumps(dataclasses.asdict(verdict)) + "\n")
            print(verdict.line(), flush=True)
            for text in verdict.wrong:
                print(f"  wrong: {text}", flush=True)
    told = [json.loads(line) for line in record.read_text().splitlines()]
    print(table(told))
    return int(any(verdict["wrong"] for verdict in told))


if __name__ == "__main__":
    sys.exit(main())
