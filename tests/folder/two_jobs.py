"""Two jobs that share a run, on two hosts of a shared folder that misbehaves behind FUSE.

The first job begins the run and ends by itself, is killed, or its host vanishes. The second one
joins it meanwhile. The jobs are the owners and writers of rows of the package, without ranks; their
times and those of the folder are shortened alike. A host without faults looks at the records: what
counted must not stop to count. It prints a table by fault. A repeated command does what is left:

    PYTHONPATH=tests:tests/pure python -m tests.folder.two_jobs --plays 200 --out plays.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from traceback import format_exception
from typing import Any

import numpy as np
from results_harness import CELLS, fill, manifest

from collage_mpi.errors import CollageError
from collage_mpi.ledger import spans as sp
from collage_mpi.ledger.jobs import register
from collage_mpi.ledger.owner import Owner, join
from collage_mpi.ledger.reading import counted
from collage_mpi.ledger.records import Part, Run
from collage_mpi.ledger.spans import Spans
from collage_mpi.ledger.store import FolderStore
from collage_mpi.results import verify_run
from collage_mpi.results.lease_files import LeaseFiles
from collage_mpi.results.row_sink import RowSink
from collage_mpi.results.writer import open_folder
from collage_mpi.system import process_tree
from tests.folder.misbehaviour import KINDS, Misbehaviour
from tests.folder.mount import Mounted

PACE = 6.0  # seconds of the folder and of the jobs in one second: half a minute takes five
ROWS = 20 * CELLS
GROUP_S = 4.0  # what nine images take
FULL = manifest(ROWS)
USERS = "two users"
PLAYED = ("nothing", *KINDS, USERS)
AGAIN_S = 10.0  # a job whose folder failed is begun anew
LIMIT_S = 900.0  # of a play; then a third host, which meets no faults, does the rest


@dataclass
class Play:
    """What happened. Times are the folder's.

    Attributes:
        fault: of PLAYED.
        ended: how the first job ended: "killed", "host lost", or "by itself".
        joined: whether the second job did images while the first lived.
        failed: how often a job gave up because the folder did not work.
        said: what each job said last.
        written: rows whose part was on the disk; twice: images that were done twice.
        rows: of the first job, and of all jobs.
        stopped: positions that counted and stopped to count.
        problems: what `verify` says of the finished run.
        by: who found the run complete: "first", "second", or "third", which meets no faults.
    """

    seed: int
    fault: str
    ended: str = "by itself"
    joined: bool = False
    failed: int = 0
    said: list[str] = field(default_factory=list)
    written: int = 0
    twice: int = 0
    rows: tuple[int, int] = (0, 0)
    stopped: int = 0
    problems: list[str] = field(default_factory=list)
    by: str = "third"


def work(host: str, out: Path, uid: int, log: Path, pace: float) -> None:
    """One job, in a process of its own. It tells in `log` what it has done, a line each."""

    def tell(what: str, **more: Any) -> None:
        with log.open("a") as file:
            file.write(json.dumps({"what": what, **more}) + "\n")

    def wrote(part: Part) -> None:
        tell("written", spans=part.spans)
        owner.wrote(part)

    boot = log.with_name(f"boot-{host}")
    boot.write_text(host)
    process_tree.BOOT_ID = boot
    if uid:
        os.setgid(uid)
        os.setuid(uid)
    sleep = lambda s: time.sleep(s / pace)  # noqa: E731
    name = os.urandom(16).hex()
    try:
        store = open_folder(out, shared=True)
        session = register(store, name, {"began": "now"}, sleep)
        run = join(store, Run(1, 0, ROWS, 4 * CELLS, by=name, settings=FULL), sleep)
        files = LeaseFiles(out, run)
        owner = Owner(store, run, CELLS, lambda: time.monotonic() * pace, name, files=files)
        rows = RowSink(out, FULL, session, wrote, flush_s=10.0 / pace)
        sink = Slow(rows, owner, pace)
        tell("began")
        while not owner.complete:
            owner.rate = CELLS / GROUP_S
            owner.turn(0 if owner.grants else 2 * CELLS)
            if owner.grants:
                _, spans, _ = owner.grants.popleft()
                fill(sink, FULL, [i for start, stop in spans for i in range(start, stop)])
                sink.groups += -(-sp.count(spans) // CELLS)
            else:
                rows.flush()
                sleep(1.0)
            rows.tick()
        tell("ended", message="complete")
    except CollageError as error:
        tell("failed", message=str(error))
    except Exception as error:
        tell("failed", message="".join(format_exception(error)))


class Slow:
    """A writer of rows that takes its time for each group. Meanwhile the job's turns go on."""

    def __init__(self, rows: RowSink, owner: Owner, pace: float) -> None:
        self._rows, self._owner, self._pace = rows, owner, pace
        self.session, self.groups = rows.session, 0  # groups of the grants before

    def image_rows(self, rows: np.ndarray, vectors: Sequence[np.ndarray] = ()) -> None:
        assert not vectors  # its network keeps none
        for row in rows.copy().reshape(-1, 1):
            if row["cell"][0] == 0:
                time.sleep(GROUP_S / self._pace)
                self._owner.turn()
                self._rows.tick()
            row["position"] = row["shard"] * FULL["shards"][0]["count"] + row["row"]
            row["group"] += self.groups
            self._rows.image_rows(row)

    def task_rows(self, rows: np.ndarray) -> None:
        rows = rows.copy()
        rows["group"] += self.groups
        self._rows.task_rows(rows)


class Job:
    """A job's process and what it has told."""

    def __init__(self, world: Mounted, host: str, uid: int, log: Path) -> None:
        self.log = log
        given = host, world.at / host / "run", uid, log, world.pace
        self.process: BaseProcess = get_context("fork").Process(target=work, args=given)
        self.process.start()

    def told(self, what: str) -> list[dict[str, Any]]:
        text = self.log.read_text() if self.log.exists() else ""
        lines = [json.loads(line) for line in text.splitlines()]
        return [line for line in lines if line["what"] == what]

    @property
    def alive(self) -> bool:
        return self.process.is_alive()

    @property
    def ended(self) -> bool:
        return bool(self.told("ended"))

    @property
    def message(self) -> str:
        last = [line["message"] for what in ("failed", "ended") for line in self.told(what)]
        return last[-1] if last else "no word"

    @property
    def written(self) -> list[Spans]:
        return [tuple((a, b) for a, b in line["spans"]) for line in self.told("written")]


class Watch:
    """Looks at the records from a host that meets no faults: what counts never stops to count."""

    def __init__(self, out: Path) -> None:
        self.counts: Spans = ()
        self.stopped = 0
        self._out, self._over = out, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._over.wait(0.2):
            try:
                now = sp.union(*(part.spans for part in counted(FolderStore(self._out))))
            except (OSError, CollageError):
                continue
            self.stopped += sp.count(sp.minus(self.counts, now))
            self.counts = now

    def end(self) -> None:
        self._over.set()
        self._thread.join()


def play(seed: int, pace: float = PACE) -> Play:
    """Play one seed, whose number chooses the fault."""
    rng = random.Random(f"two jobs {seed}")
    fault = PLAYED[seed % len(PLAYED)]
    result = Play(seed, fault)
    plan = Misbehaviour.drawn(seed, [fault] if fault in KINDS else [])
    if fault == PLAYED[0]:
        plan = Misbehaviour(seed)
    with (
        tempfile.TemporaryDirectory(prefix="two-jobs-") as name,
        hosts(Path(name), plan, pace) as world,
    ):
        _play(result, rng, world, Path(name))
    return result


@contextmanager
def hosts(at: Path, plan: Misbehaviour, pace: float) -> Iterator[Mounted]:
    at.chmod(0o777)
    with Mounted(at / "folder", plan, pace) as world:
        for host in ("a", "b"):
            world.mount(host)
        yield world


def _play(result: Play, rng: random.Random, world: Mounted, at: Path) -> None:
    users = (1001, 1002) if result.fault == USERS else (0, 0)
    began = time.monotonic()
    now: Callable[[], float] = lambda: (time.monotonic() - began) * world.pace  # noqa: E731
    die_s, how = rng.uniform(5, 100), rng.choice(("killed", "host lost", "by itself"))
    ask_s = rng.uniform(0, 40)
    watch = Watch(world.mount("w", mended=True) / "run")
    jobs = {"first": [Job(world, "a", users[0], at / "first-0")], "second": list[Job]()}
    again_s = {"first": 0.0, "second": ask_s}
    while now() < LIMIT_S and not any(job.ended for each in jobs.values() for job in each):
        time.sleep(0.02)
        first = jobs["first"][0]
        if now() >= die_s and how != "by itself" and result.ended != how and first.alive:
            result.ended = how
            if how == "host lost":
                os.kill(first.process.pid, signal.SIGSTOP)  # nothing is sent as it ends
                world.lose("a")
            first.process.kill()
        for who, host, uid in (("first", "a", users[0]), ("second", "b", users[1])):
            of = jobs[who]
            if (of and of[-1].alive) or (who == "first" and result.ended != "by itself"):
                continue
            if of and again_s[who] < now() - AGAIN_S * 2:
                again_s[who] = now() + AGAIN_S
            if now() >= again_s[who]:
                of.append(Job(world, host, uid, at / f"{who}-{len(of)}"))
                again_s[who] = now() + AGAIN_S
    every = [*jobs["first"], *jobs["second"]]
    for who, of in jobs.items():
        if any(job.ended for job in of):
            result.by = who
    result.joined = any(job.written for job in jobs["second"])
    result.failed = sum(len(job.told("failed")) for job in every)
    for host in [host for host in world.hosts if host != "w"]:
        world.lose(host)
    for job in every:
        job.process.kill()
        job.process.join()
    _judge(result, every, watch, world, at, users[0])


def _judge(result: Play, jobs: list[Job], watch: Watch, world: Mounted, at: Path, uid: int) -> None:
    """A third host, which meets no faults, finishes the run if it has to, and looks at it."""
    world.mend()
    point = world.mount("c", mended=True)
    out = point / "run"
    if result.by == "third":
        job = Job(world, "c", uid, at / "third")
        job.process.join()
        jobs = [*jobs, job]
        if not job.ended:
            result.problems.append(f"cannot be finished: {job.message}")
    watch.end()
    result.said, result.stopped = [job.message for job in jobs], watch.stopped
    if result.problems:
        return
    found = verify_run(out)
    result.problems += found.problems
    every = [spans for job in jobs for spans in job.written]
    result.written = sum(map(sp.count, every))
    result.twice = result.written - sp.count(sp.union(*every))
    mine = [part for part in counted(FolderStore(out)) if part.file.startswith("images-0001")]
    result.rows = sum(sp.count(part.spans) for part in mine), found.rows


def table(plays: list[Play]) -> str:
    """What was found, by fault."""
    head = ("fault", "plays", "first died", "second did images, too", "given up and begun anew")
    head += ("rows written", "images done twice", "not found complete by them", "stopped to count")
    head += ("wrong",)
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for fault in (*PLAYED, "all"):
        of = [play for play in plays if fault in (play.fault, "all")]
        cells = (fault, len(of), sum(p.ended != "by itself" for p in of), sum(p.joined for p in of))
        cells += tuple(sum(getattr(p, name) for p in of) for name in ("failed", "written", "twice"))
        cells += (sum(p.by == "third" for p in of), sum(p.stopped for p in of))
        cells += (sum(bool(p.problems) for p in of),)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def warm() -> None:
    """Import what jobs need: those of other users may not read this Python's folder."""
    with tempfile.TemporaryDirectory() as name:
        work("warm", Path(name) / "run", 0, Path(name) / "log", 1000.0)
        assert verify_run(Path(name) / "run").ok, (Path(name) / "log").read_text()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plays", type=int, default=200)
    parser.add_argument("--from", dest="first", type=int, default=0, help="the first seed")
    parser.add_argument("--at-once", type=int, default=8, help="plays wait more than they compute")
    parser.add_argument("--pace", type=float, default=PACE, help="how much times are shortened")
    parser.add_argument("--out", type=Path, required=True, help="a line of JSON for each play")
    args = parser.parse_args()
    seeds = range(args.first, args.first + args.plays)
    left = [seed for seed in seeds if seed not in {play.seed for play in read(args.out)}]
    warm()
    with ProcessPoolExecutor(args.at_once, get_context("fork")) as pool:
        started = {pool.submit(play, seed, args.pace): seed for seed in left}
        for done in as_completed(started):
            if error := done.exception():  # the other plays go on
                print(f"seed {started[done]} was not played:", *format_exception(error))
                continue
            with args.out.open("a") as file:
                file.write(json.dumps(asdict(done.result())) + "\n")
    plays = read(args.out)
    print(table(plays))
    failed = any(play.problems or play.stopped for play in plays)
    raise SystemExit(failed or any(done.exception() for done in started))


def read(path: Path) -> list[Play]:
    """The plays in a file that `--out` has written."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Play(**json.loads(line)) for line in lines]


if __name__ == "__main__":
    main()
