"""Two jobs on one run, on two hosts of a shared folder that misbehaves behind FUSE.

The first job writes. The second one asks for the same run, is refused or not, and goes on with it
when the first one has ended or died. The jobs are today's writers of a run (`RunWriter`), without
ranks; their times and the folder's are shortened alike. It prints a table by fault. A repeated
command does what is left:

    PYTHONPATH=tests:tests/pure python -m tests.folder.two_jobs --plays 200 --out plays.jsonl
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import signal
import tempfile
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
from collage_mpi.results import MANIFEST, RunWriter, claim, parts, verify_run
from collage_mpi.results import writer as results_writer
from collage_mpi.results.manifest import read_manifest
from collage_mpi.results.reader import known_run
from collage_mpi.rows import IMAGES
from collage_mpi.system import process_tree
from tests.folder.misbehaviour import KINDS, Misbehaviour
from tests.folder.mount import Mounted

PACE = 6.0  # seconds of the folder and of the jobs in one second: half a minute takes five
ROWS = 20 * CELLS
GROUP_S = 4.0  # what nine images take
FULL = manifest(ROWS)
USERS = "two users"
PLAYED = ("nothing", *KINDS, USERS)
AGAIN_S = 10.0  # the second job asks anew
LIMIT_S = 600.0  # of a play; then a third host, which meets no faults, does the rest
OUSTED = ("another session has taken over", "No such file")  # what the first says then
REFUSED = ("another job is writing here", "holds a run already", "belongs to")


@dataclass
class Play:
    """What happened. Times are the folder's.

    Attributes:
        fault: of PLAYED.
        ended: how the first job ended: "killed", "host lost", or "by itself".
        refused: of the requests while the first job lived, those that were refused for it.
        other: of them, those that ended for another reason: the folder failed.
        admitted: of them, those that were let in: the first job gave no sign of life.
        said: the last message of the first job, then of each try of the second and the third.
        written: images whose part the writers had on the disk.
        again: of the first job's written images, those that were done again.
        lost: written images that have no row in the end.
        problems: what `verify` says of the finished run.
        by: who finished: "first", "second", or "third", which meets no faults.
    """

    seed: int
    fault: str
    ended: str = "by itself"
    refused: int = 0
    other: int = 0
    admitted: int = 0
    said: list[str] = field(default_factory=list)
    written: int = 0
    again: int = 0
    lost: int = 0
    problems: list[str] = field(default_factory=list)
    by: str = "third"


def work(host: str, out: Path, resume: bool, uid: int, log: Path, pace: float) -> None:
    """One job, in a process of its own. It tells in `log` what it has done, a line each."""

    def tell(what: str, **more: Any) -> None:
        with log.open("a") as file:
            file.write(json.dumps({"what": what, "at": time.monotonic(), **more}) + "\n")

    def write_part(path: Path, table: Any, payload: memoryview, check: Any) -> None:
        parts_write(path, table, payload, check)
        if table is IMAGES:
            rows = np.frombuffer(payload, table.dtype)
            tell("written", keys=[[int(r["shard"]), int(r["row"])] for r in rows])

    boot = log.with_name(f"boot-{host}")
    boot.write_text(host)
    process_tree.BOOT_ID, claim.node = boot, lambda: host
    claim.BEAT_S, claim._POLL_S = 1.0 / pace, 0.2 / pace
    results_writer.LOOK_S = 5.0 / pace
    parts_write, parts.write_part = parts.write_part, write_part
    if uid:
        os.setgid(uid)
        os.setuid(uid)
    options = {"patience": claim.Patience(claim.STILL_S / pace), "flush_s": 10.0 / pace}
    try:
        if resume:
            writer, done = RunWriter.reopen(out, FULL, **options)
        else:
            writer, done = RunWriter.create(out, FULL, **options), []
        tell("began")
        there = {(int(key["shard"]), int(key["row"])) for key in done}
        left = [i for i in range(ROWS) if divmod(i, ROWS // 2) not in there]
        fill(Slow(writer, pace), FULL, left)
        tell("ended", message=writer.close("complete") or "complete")
    except CollageError as error:
        tell("refused", message=str(error))
    except Exception as error:
        tell("failed", message=f"{type(error).__name__}: {error}")


class Slow:
    """A writer of rows that takes its time for each group."""

    def __init__(self, writer: RunWriter, pace: float) -> None:
        self._writer, self._pace, self._count = writer, pace, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._writer, name)

    def image_rows(self, rows: np.ndarray, vectors: Sequence[np.ndarray] = ()) -> None:
        assert not vectors  # its network keeps none
        for row in rows.reshape(-1, 1):
            if self._count % CELLS == 0:
                time.sleep(GROUP_S / self._pace)
                self._writer.tick()
            self._count += 1
            self._writer.image_rows(row)


class Job:
    """A job's process and what it has told."""

    def __init__(self, world: Mounted, host: str, resume: bool, uid: int, log: Path) -> None:
        self.log, self.began, self.end = log, time.monotonic(), None
        given = host, world.at / host / "run", resume, uid, log, world.pace
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
    def last(self) -> dict[str, Any]:
        """What it told at its end."""
        last = [line for what in ("refused", "failed", "ended") for line in self.told(what)]
        return last[-1] if last else {"message": "no word", "at": math.inf}

    @property
    def message(self) -> str:
        return self.last["message"]

    @property
    def keys(self) -> set[tuple[int, int]]:
        return {(s, r) for line in self.told("written") for s, r in line["keys"]}


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
    ask_s, second, asked = rng.uniform(0, 40), None, []
    first = Job(world, "a", False, users[0], at / "first")
    while now() < LIMIT_S:
        time.sleep(0.02)
        if now() >= die_s and how != "by itself" and result.ended != how and first.alive:
            result.ended, first.end = how, time.monotonic()
            if how == "host lost":
                os.kill(first.process.pid, signal.SIGSTOP)  # nothing is sent as it ends
                world.lose("a")
            first.process.kill()
        if second is None and now() >= ask_s:
            log = at / f"second-{len(asked)}"
            second = Job(world, "b", bool(len(asked) % 2), users[1], log)
            asked.append(second)
        if second is None or second.alive:
            continue
        if second.ended:
            result.by = "second" if second.keys or not first.ended else "first"
            break
        second, ask_s = None, now() + AGAIN_S
    result.said = [job.message for job in (first, *asked)]
    for host in [*world.hosts]:
        world.lose(host)
    for job in (first, *asked):
        job.process.kill()
        job.process.join()
    _count(result, first, asked)
    _judge(result, first, asked, world, at, users[0])


def _count(result: Play, first: Job, asked: list[Job]) -> None:
    """What became of the requests while another job lived."""
    if any(text in first.message for text in REFUSED):  # the second job was there before it
        result.refused = 1
        return
    end, ousted = first.end or first.last["at"], any(text in first.message for text in OUSTED)
    for job in asked:
        if job.began < end:
            there = any(text in job.message for text in REFUSED)
            let_in = [line["at"] for line in job.told("began")]
            if let_in and let_in[0] >= end and not ousted:
                continue  # it waited, and the first job ended meanwhile
            name = "admitted" if let_in else "refused" if there else "other"
            setattr(result, name, getattr(result, name) + 1)


def _judge(result: Play, first: Job, asked: list[Job], world: Mounted, at: Path, uid: int) -> None:
    """A third host, which meets no faults, finishes the run if it has to, and looks at it."""
    world.mend()
    point = world.mount("c", mended=True)
    out = point / "run"
    if result.by == "third":
        job = Job(world, "c", (out / MANIFEST).exists(), uid, at / "third")
        job.process.join()
        asked = [*asked, job]
        result.said.append(job.message)
        if not job.ended:
            result.problems.append(f"cannot be finished: {job.message}")
            return
    found = verify_run(out)
    result.problems += found.problems
    run = known_run(out, read_manifest(out))
    rows = np.concatenate([np.asarray(rows) for rows in run.chunks(IMAGES)])
    by = {(int(row["shard"]), int(row["row"])): int(row["session"]) for row in rows}
    written = set().union(*(job.keys for job in (first, *asked)))
    result.written, result.lost = len(written), len(written - set(by))
    result.again = sum(by.get(key, 1) != 1 for key in first.keys)


def table(plays: list[Play]) -> str:
    """What was found, by fault."""
    head = ("fault", "plays", "first died", "asked while it lived", "refused", "folder failed")
    head += ("let in", "written rows", "done again", "lost", "not finished by the second", "wrong")
    lines = ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
    for fault in (*PLAYED, "all"):
        of = [play for play in plays if fault in (play.fault, "all")]
        asked = [play.refused + play.other + play.admitted for play in of]
        cells = (fault, len(of), sum(p.ended != "by itself" for p in of), sum(asked))
        sums = ("refused", "other", "admitted", "written", "again", "lost")
        cells += tuple(sum(getattr(p, name) for p in of) for name in sums)
        cells += (sum(p.by == "third" for p in of), sum(bool(p.problems) for p in of))
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def warm() -> None:
    """Import what jobs need: those of other users may not read this Python's folder."""
    with tempfile.TemporaryDirectory() as name:
        writer = RunWriter.create(Path(name), FULL)
        fill(writer, FULL, range(ROWS))
        writer.close("complete")
        assert verify_run(Path(name)).ok


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
    failed = any(play.problems or play.lost for play in plays)
    raise SystemExit(failed or any(done.exception() for done in started))


def read(path: Path) -> list[Play]:
    """The plays in a file that `--out` has written."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [Play(**json.loads(line)) for line in lines]


if __name__ == "__main__":
    main()
