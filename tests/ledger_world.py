"""Jobs that share a run by the ledger, on virtual time, on a folder that lies (`tests.folder`).

Each job is a greenlet that runs the package's own code. It waits at each call to the server, so all
jobs are interleaved there.
"""

from __future__ import annotations

import heapq
import itertools
import json
import random
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import msgspec
from greenlet import getcurrent, greenlet

from collage_mpi.errors import EnvironmentFault
from collage_mpi.ledger import spans as sp
from collage_mpi.ledger.cells import Cell
from collage_mpi.ledger.jobs import register
from collage_mpi.ledger.owner import LEASE_S, LOOK_S, Owner, join
from collage_mpi.ledger.reading import counted
from collage_mpi.ledger.records import DEATHS, Part, Run, unmarked
from collage_mpi.ledger.store import FolderStore
from tests.folder.misbehaviour import Misbehaviour
from tests.folder.server import ROOT
from tests.folder.store import Hung, Store

COMMIT_S = 10.0
TURN_S = 1.0


class Wrong(Exception):
    """What must never happen."""


class Time:
    """Virtual time, and the jobs that wait for it."""

    def __init__(self, rng: random.Random) -> None:
        self.now_s, self._rng = 0.0, rng
        self._heap: list[tuple[float, int, greenlet]] = []
        self._n, self._hub, self.dead = 0, getcurrent(), set[greenlet]()

    def wait(self, seconds: float) -> None:
        me = getcurrent()
        if me is self._hub:
            return
        if me in self.dead or seconds == float("inf"):
            raise Hung
        if seconds == 0 and self._rng.random() > 0.2:
            return
        self.at(self.now_s + seconds, me)
        self._hub.switch()
        if me in self.dead:
            raise Hung

    def at(self, when_s: float, job: greenlet) -> None:
        self._n += 1
        heapq.heappush(self._heap, (when_s, self._n, job))

    def call(self, when_s: float, act: Callable[[], object]) -> None:
        """Do something at a time."""
        self.at(when_s, greenlet(act))

    def step(self) -> greenlet | None:
        """Let the next job go on to its next wait. Returns it; None if none is left."""
        while self._heap:
            when_s, _, job = heapq.heappop(self._heap)
            if job.dead or job in self.dead:
                continue
            if when_s > self.now_s:
                self.now_s = when_s
            job.switch()
            return job
        return None

    def next(self) -> greenlet | None:
        """Who goes on next."""
        while self._heap and (self._heap[0][2].dead or self._heap[0][2] in self.dead):
            heapq.heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def delay(self, job: greenlet, seconds: float) -> None:
        """A job is suspended: it goes on later."""
        self._heap = [(w + seconds * (j is job), n, j) for w, n, j in self._heap]
        heapq.heapify(self._heap)


class Job:
    """A job that does positions one after another, at its rate, and writes a part now and then.

    Attributes:
        stop_s: when it leaves.
        ended: how: "complete", "left", "dead", "hung", or what it said.
        slept_s: until when it was suspended last.
        busy_s: when it did a position last.
        begun: the positions that it has begun.
    """

    def __init__(
        self,
        world: Any,
        disk: Any,
        rate: float,
        clock: tuple[float, float] = (0.0, 1.0),
        start_s: float = 0.0,
    ) -> None:
        """`clock`: its offset in s, and how fast it goes."""
        self.world, self.disk, self.rate = world, disk, rate
        self.number = len(world.jobs)
        self.name = random.Random(f"{world.seed} {self.number}").randbytes(16).hex()
        self._offset_s, self._drift = clock
        self.began_s = self.ended_s = max(start_s, world.time.now_s)
        self.stop_s, self.slept_s = float("inf"), -1e9
        self.worked_s = self.busy_s = self.began_s
        self.owner: Owner | None = None
        self.ended, self.judged = "", False
        self.todo: deque[tuple[int, int, int]] = deque()  # start, position, times
        self.begun: set[int] = set()
        self.thread = greenlet(self._run)
        world.time.at(self.began_s, self.thread)

    def clock(self) -> float:
        return self._offset_s + self.world.time.now_s * self._drift

    def _run(self) -> None:
        try:
            self._play()
        except Hung:
            self.ended = self.ended or "hung"
        except Exception as error:
            self.ended = f"{type(error).__name__}: {error}"
        self.ended_s = self.world.time.now_s

    def _play(self) -> None:
        world, time = self.world, self.world.time
        wanted = Run(1, 0, world.total, world.cell_of(self.number), self.name)
        run, session = None, 0
        while not session:
            try:
                self.disk.make()
                run = join(self.disk, wanted, time.wait)
                session = register(self.disk, self.name, {"host": self.number}, time.wait)
            except (OSError, EnvironmentFault):
                time.wait(TURN_S)
        self.owner = owner = Owner(self.disk, run, world.unit, self.clock, self.name)
        owner.rate = self.rate
        world.numbered(session)
        done: list[int] = []
        parts, since_s, older = itertools.count(1), 0.0, sp.union()
        lease = max(1, int(self.rate * LEASE_S))
        while True:
            turn_s, leaving = time.now_s, time.now_s >= self.stop_s
            most = 1.5 if owner.waiting else 0.3  # one record commits and takes
            few = len(self.todo) < max(1, int(most * lease))
            owner.turn(lease if few and not leaving else 0)
            while owner.grants:
                grant = owner.grants.popleft()
                self.todo.extend((grant.start, p, grant.times) for p in positions(grant.spans))
            if owner.complete:
                self.ended = "complete"
                return
            if leaving and not done and owner.leave():
                self.ended = "left"
                return
            for position in self._work(owner):
                since_s = since_s if done else time.now_s
                done.append(position)
            commit_s = LOOK_S if owner.hurry else COMMIT_S
            if done and (time.now_s >= since_s + commit_s or not self.todo or leaving):
                spans = sp.union(*(((p, p + 1),) for p in done))
                file = f"images-{session:04d}-{next(parts):06d}.parquet"
                with suppress(OSError):
                    self._write(owner, file, spans)
                    done = []
                    if older and world.rng.random() < world.refuted:
                        file = f"images-{session:04d}-{next(parts):06d}.parquet"
                        self._write(owner, file, sp.head(older, 2), "refuted")
                    older = spans
            time.wait(max(0.01, turn_s + TURN_S - time.now_s))

    def _write(self, owner: Owner, file: str, spans: sp.Spans, reason: str = "") -> None:
        data = json.dumps(spans).encode()
        part = Part(file, len(data), zlib.crc32(data), spans, sp.head(spans, 1), reason=reason)
        self.disk.replace(f"parts/{part.file}", data)
        self.world.wrote(part)
        owner.wrote(part)

    def _work(self, owner: Owner) -> Iterator[int]:
        """What it has done since the last time."""
        now_s = self.world.time.now_s
        if not self.todo or now_s >= self.stop_s:
            self.worked_s = now_s
        while self.todo and self.worked_s + 1 / self.rate <= now_s:
            start, position, times = self.todo.popleft()
            if not sp.common(owner.held(start), ((position, position + 1),)):
                continue
            self.begun.add(position)
            self.worked_s += 1 / self.rate
            self.busy_s = now_s
            if times > DEATHS:
                self.world.errors.add(position)
            elif position in self.world.killers:
                self.world.die(self)
                self.world.time.wait(1.0)
            yield position
        owner.ahead = {}
        for start, position, _ in reversed(self.todo):  # of each cell the last run of positions
            first, stop = owner.ahead.get(start, (position + 1, position + 1))
            if position == first - 1:
                owner.ahead[start] = position, stop


class World:
    """A run, its folder and its jobs.

    Attributes:
        total: positions.
        written: positions in all parts.
        killers: positions whose job dies.
        errors: positions that were answered by an error row.
        calm: nothing goes wrong but that jobs die: no job loses what it has begun.
        takeovers: when, and of whom.
        splits: how many there were. A slow job may begin a position before it learns of one.
        refuted: share of the parts after which the job replaces rows of an older one.
        cells, rows, files: what counts, as last seen.
    """

    def __init__(
        self,
        seed: int,
        plan: Misbehaviour,
        total: int,
        cell: int | Callable[[int], int],
        unit: int = 1,
        clocks: Callable[[str], tuple[float, float]] = lambda host: (0.0, 1.0),
    ) -> None:
        self.seed, self.total, self.unit, self.clock_of = seed, total, unit, clocks
        self.cell_of = cell if callable(cell) else lambda number: cell
        self.rng = random.Random(f"world {seed}")
        self.time = Time(self.rng)
        self.store = Store(plan, self.time)
        sound = self.store.host("sound", mended=True)
        self.store.mend()
        for folder in ("/run", "/run/parts"):
            sound.mkdir(folder)
        self.store.server.room, self.store.server.quota = plan.room_bytes, plan.quota_bytes
        self.jobs: list[Job] = []
        self.parts: dict[str, sp.Spans] = {}
        self.numbers: set[int] = set()
        self.written = 0
        self.killers: set[int] = set()
        self.errors: set[int] = set()
        self.calm, self.splits, self.refuted = False, 0, 0.0
        self.takeovers: list[tuple[float, Job]] = []
        self.cells: dict[int, Cell] = {}
        self.rows: dict[int, str] = {}
        self.files: set[str] = set()

    def add(self, host: str, rate: float, **more: Any) -> Job:
        disk = FolderStore("/run", self.store.host(host, **more))
        self.jobs.append(Job(self, disk, rate, self.clock_of(host)))
        return self.jobs[-1]

    def numbered(self, number: int) -> None:
        """A job has got its number."""
        if number in self.numbers:
            raise Wrong(f"two jobs have number {number}")
        self.numbers.add(number)

    def wrote(self, part: Part) -> None:
        self.parts[part.file] = part.spans
        self.written += 0 if part.reason else sp.count(part.spans)

    def mend(self) -> None:
        """The disk has room again, and the server answers."""
        self.store.mend()

    def die(self, job: Job) -> None:
        job.ended, job.ended_s = "dead", self.time.now_s
        self.time.dead.add(job.thread)

    def suspend(self, job: Job, seconds: float) -> None:
        job.slept_s = self.time.now_s + seconds
        self.time.delay(job.thread, seconds)

    def next_job(self) -> Job:
        """Who goes on at the next step."""
        thread = self.time.next()
        return next(job for job in self.jobs if job.thread is thread)

    @property
    def live(self) -> list[Job]:
        return [job for job in self.jobs if not job.ended]

    # ---- who sees all --------------------------------------------------------------

    def _folder(self, name: str = "") -> dict[str, int]:
        nodes = self.store.server._nodes
        found = nodes[nodes[ROOT].names["run"]]
        return (
            nodes[found.names[name]].names
            if name in found.names
            else found.names
            if not name
            else {}
        )

    def _raw(self, ino: int) -> bytes:
        return bytes(self.store.server._nodes[ino].data)

    def file(self, name: str) -> bytes:
        """The content of a file in a folder of the run."""
        folder, _, last = name.partition("/")
        return self._raw(self._folder(folder)[last])

    def forget(self) -> None:
        """Somebody has repaired the ledger: judge anew."""
        self.cells, self.rows = {}, {}

    @property
    def run(self) -> Run | None:
        names = self._folder()
        if "run.1.json" not in names:
            return None
        raw = self._raw(names["run.1.json"])
        return msgspec.json.decode(raw, type=Run) if raw else None

    def look(self) -> int:
        """How many rows count now, as the server has it. Raises Wrong where one that counted counts
        no more, where a position has two, and where a job loses positions for no reason."""
        run, names = self.run, self._folder("leases")
        for start in run.starts if run else ():
            if f"{start}.0" not in names:
                continue
            known = self.cells.get(start) or Cell(start, run.end(start))
            first, last = unmarked(self._raw(names[f"{start}.0"]))
            if last is not None and not known.packed:
                cell = Cell(start, run.end(start))
                cell = cell.after(self._raw(names[f"{start}.{last[0]}"]), last[0])
                parts = known.record.parts if known.record else ()
                if not cell.closed or cell.record.parts[: len(parts)] != parts:
                    raise Wrong(f"cell {start} is packed without rows that counted")
                self._count(cell.record.parts[len(parts) :])
                cell.packed, self.cells[start] = True, cell
            if self.cells.get(start, known).packed:
                continue
            while (ino := names.get(f"{start}.{known.gen + 1}")) is not None:
                raw = self._raw(ino) if known.gen >= 0 else first
                cell = known.after(raw, known.gen + 1)
                self._follow(known, cell)
                self.cells[start] = known = cell
        for file in self.files:
            if file not in self._folder("parts"):
                raise Wrong(f"{file} counts and is not there")
        return len(self.rows)

    def judge_reading(self) -> None:
        """Whether who reads the folder finds the rows that count."""
        rows = {
            position: part.file
            for part in counted(FolderStore("/run", self.store.host("sound", mended=True)))
            for position in positions(part.spans)
        }
        if rows != self.rows:
            raise Wrong("a reader finds other rows than those that count")

    def _follow(self, before: Cell, after: Cell) -> None:
        assert after.record is not None
        new = after.record.parts[len(before.record.parts) if before.record else 0 :]
        self._count(new)
        by = after.record.by
        counted = sp.union(*(part.spans for part in new))
        for job in self.jobs:
            lost = sp.minus(sp.minus(before.held(job.name), after.held(job.name)), counted)
            if job.name == by or not lost:
                continue
            if after.times(lost) != before.times(lost) or after.times(lost)[0][0] > DEATHS:
                self.taken_over(job, before.start)
            else:
                self.split(job, before, lost, by, after)

    def _count(self, new: tuple[Part, ...]) -> None:
        for part in new:
            if zlib.crc32(self._raw(self._folder("parts")[part.file])) != part.crc:
                raise Wrong(f"{part.file} is not what counts")
            if sp.minus(part.spans, self.parts[part.file]):
                raise Wrong(f"{part.file} has no rows of {part.spans}")
            self.files.add(part.file)
            for position in positions(part.spans):
                if (position in self.rows) is not bool(part.reason):
                    raise Wrong(f"position {position} has two rows, or none that is replaced")
                self.rows[position] = part.file

    def taken_over(self, job: Job, start: int) -> None:
        """A job's positions of a cell were taken, because it was silent."""
        self.takeovers.append((self.time.now_s, job))
        hangs = any(hang.host is not None for hang in self.store.plan.hangs)
        if not job.ended and not hangs and self.time.now_s > job.slept_s + 60:
            raise Wrong(f"a live job was taken over in cell {start}")

    def split(self, job: Job, before: Cell, lost: sp.Spans, by: str, after: Cell) -> None:
        """A job lost positions of a cell to another one."""
        self.splits += 1
        held = before.held(job.name)
        left = sp.minus(held, lost)
        if sp.minus(lost, after.held(by)) or sp.count(lost) > sp.count(left):
            raise Wrong(f"a job has lost {lost} of {held} for no reason")
        if self.calm and (begun := job.begun & {*positions(lost)}):
            raise Wrong(f"a job has lost {begun}, which it had begun")


def positions(spans: sp.Spans) -> Iterator[int]:
    for first, stop in spans:
        yield from range(first, stop)
