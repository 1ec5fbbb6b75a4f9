"""Writes the status of each job to the run's folder, and reads the status of all of them.

A job's loop hands over a snapshot every few seconds, and a thread writes it, so that a slow disk
does not delay the loop. A new snapshot replaces a waiting one. If a status cannot be written, the
user is told once and the job goes on.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from platform import node
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.ledger.owner import LOOK_S, SILENT_S
from collage_mpi.ledger.records import beat_name, is_owner, run_name
from collage_mpi.ledger.store import FolderStore
from collage_mpi.results import STATUS_FOLDER
from collage_mpi.results.manifest import (
    STATUSES,
    Check,
    Json,
    fields,
    is_int,
    is_number,
    is_text,
    list_of,
    optional,
    wrong_key,
)
from collage_mpi.results.parts import read_ledger, read_runs
from collage_mpi.results.statistics import times_of_messages
from collage_mpi.rows import KINDS
from collage_mpi.system.files import plain, reading, write_atomic
from collage_mpi.system.printable import readable
from collage_mpi.system.process_tree import ProcessId, has_ended, this_process
from collage_mpi.system.records import read_record
from collage_mpi.system.tell import tell

FORMAT, VERSION = "collage-mpi status", 2
STARTING, RUNNING, ENDING = "starting", "running", "ending"  # then one of STATUSES
STATES = (STARTING, RUNNING, ENDING, *STATUSES)
_FIRST = (RUNNING, ENDING, STARTING)  # the state of a run is the first one that a job has
_LARGEST_BYTES = 16 << 20  # 10,000 ranks are 2 MB
_NAME = re.compile(r"\d{4,5}\.json")
_BEAT_S = 2.0  # while the ranks start and while the job ends, so that it is seen to live


def status_path(out: Path, session: int) -> Path:
    """The file of a job's status."""
    return out / STATUS_FOLDER / f"{session:04d}.json"


class StatusFiles:
    """Writes the status of one job, from its beginning to its end.

    Attributes:
        batch_costs: as in `times_of_messages`; {} until they are known.

    Args:
        out: the run's folder.
        facts: fields of the status that do not change: session, owner (the job's name in the
            ledger), run_id, label, total (images without a row when the job began) and before
            (images with one).
        every_s: minimum of seconds between two statuses.
    """

    def __init__(
        self,
        out: Path,
        facts: Mapping[str, Any],
        every_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path, self._clock = status_path(out, facts["session"]), clock
        self._every_s = every_s
        process = this_process()
        self.batch_costs: Mapping[str, float] = {}
        self._facts = {
            **facts,
            "out": readable(str(out.absolute())),
            "host": node(),
            "pid": os.getpid(),
            "process": None if process is None else asdict(process),
            "every_s": every_s,
        }
        self._began_s = clock()
        self._began_at = self._began_s, 0  # time and images done when the average rate begins
        self._due_s = self._began_s
        self._count = self._beats = 0
        self._last: Json = {"state": STARTING, "done": 0, "ranks": []}
        self._before: tuple[float, int] | None = None  # time and images done of the last snapshot
        self._told = False
        self._waiting: tuple[Json, np.ndarray | None] | None = None
        self._closed = False
        self._changed = threading.Condition()
        with self._guarded():
            self._write(self._last)
        self._thread = threading.Thread(target=self._work, name="collage-mpi status", daemon=True)
        self._thread.start()

    def begin(self, done: int = 0) -> None:
        """Let the average rate begin now: when the first images come, or the warm-up is over.

        Args:
            done: number of images that are done.
        """
        self._began_at = self._clock(), done

    def offer(self, snapshot: Callable[[], tuple[Json, np.ndarray]], *, now: bool = False) -> None:
        """Take a snapshot if one is due. The loop calls this often; it takes well under 1 us if
        not.

        Args:
            snapshot: returns fields of the status, with `done` and `ranks`; and recent tasks, (n,)
                of TASK_ROW, for the service times of ranks.
            now: take a snapshot even if none is due.
        """
        if now or self._clock() >= self._due_s:
            self._due_s = self._clock() + self._every_s
            with self._guarded(), self._changed:
                self._waiting = snapshot()
                self._changed.notify()

    def end(self, status: str) -> None:
        """Write the final status, one of STATUSES."""
        self._end_thread()
        with self._guarded():
            self._write({**self._last, "state": status})

    def remove(self) -> None:
        """Remove the status of a job that did not begin."""
        self._end_thread()
        self._path.unlink(missing_ok=True)

    def _end_thread(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                if self._waiting is None and not self._closed:
                    self._changed.wait(None if self._last["state"] == RUNNING else _BEAT_S)
                taken, self._waiting = self._waiting, None
            if taken is None:
                if self._closed:
                    return
                if self._last["state"] != RUNNING:
                    with self._guarded():
                        self._write(self._last, new=False)
                continue
            said, tasks = taken
            with self._guarded():
                if tasks is not None:
                    add_service_times(said["ranks"], tasks, self.batch_costs)
                self._last = {**said, **self._rates(said["done"])}
                self._write(self._last)

    def _rates(self, done: int) -> Json:
        """Images per second since the warm-up and since the last snapshot; seconds left."""
        now_s = self._clock()
        loop_s, first = self._began_at
        before_s, before = self._before or self._began_at
        self._before = (now_s, done)
        lately = (done - before) / max(now_s - before_s, 1e-9)
        left = self._facts["total"] - done
        return {
            "images_per_s": (done - first) / max(now_s - loop_s, 1e-9),
            "images_per_s_lately": lately,
            "left_s": left / lately if lately > 0 else None,
        }

    def _write(self, said: Json, *, new: bool = True) -> None:
        self._count += new
        self._beats += 1
        written_s = time.time()
        status = {
            "format": FORMAT,
            "version": VERSION,
            "count": self._count,
            "beats": self._beats,
            **self._facts,
            **said,
            "elapsed_s": self._clock() - self._began_s,
            "written": datetime.fromtimestamp(written_s, timezone.utc).isoformat(
                timespec="seconds"
            ),
            "written_s": written_s,
        }
        text = json.dumps(status, separators=(",", ":"), default=plain).encode()
        write_atomic(self._path, (text, b"\n"))

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Reports the first error and suppresses all, so that no status ends the job."""
        try:
            yield
        except Exception as error:
            told, self._told = self._told, True
            if told:
                return
            why = f"{type(error).__name__}: {error}"
            if isinstance(error, OSError):
                why = error.strerror or str(error)
            tell(f"warning: {self._path} cannot be written: {why}. The job goes on")


def add_service_times(
    ranks: list[Json], tasks: np.ndarray, batch_costs: Mapping[str, float]
) -> None:
    """Add to each rank its number of recent answers and their median service time.

    Args:
        ranks: dicts with `rank`, to which `service_ms` (of one input; None without answers) and
            `answers` (messages) are added.
        tasks: (n,) of TASK_ROW.
        batch_costs: as in `times_of_messages`.
    """
    found, service_ns = times_of_messages(tasks, batch_costs)
    order = np.lexsort([service_ns, found["rank"]])
    numbers, starts, counts = np.unique(found["rank"][order], return_index=True, return_counts=True)
    medians_ns = service_ns[order][starts + (counts - 1) // 2]
    medians_ms = dict(zip(numbers.tolist(), (medians_ns / 1e6).tolist(), strict=True))
    answers = dict(zip(numbers.tolist(), counts.tolist(), strict=True))
    for rank in ranks:
        rank["service_ms"] = medians_ms.get(rank["rank"])
        rank["answers"] = answers.get(rank["rank"], 0)


# ---- reading ----------------------------------------------------------------


def read_statuses(run: Path) -> list[Json]:
    """Read and check the status of each job of a run, in the order of the sessions.

    Raises:
        EnvironmentFault: there is no run, it cannot be read, or it is of another format.
        DataFault: a status is damaged.
    """
    folder = run / STATUS_FOLDER
    with reading(folder):
        names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if not names:
        read_runs(run)
    found = [_read_status(folder / name) for name in sorted(filter(_NAME.fullmatch, names))]
    return sorted(filter(None, found), key=lambda status: status["session"])


def _read_status(path: Path) -> Json | None:
    """None if the file was removed meanwhile."""
    with reading(path, "damaged"):
        try:
            with open(path, "rb") as file:
                found = json.loads(file.read(_LARGEST_BYTES))
        except FileNotFoundError:
            return None
    key = wrong_key(found, _CHECKS) if isinstance(found, dict) else "all of it"
    if key is not None:
        raise DataFault(
            f"{path}: damaged: {key} is missing or has a wrong type. A running job of this version "
            f"writes it again; collage-mpi verify {path.parent.parent} reads the rows instead"
        )
    return readable(found)


def read_status(run: Path) -> Json:
    """The status of a run: see `add_up`. Raises as `read_statuses`."""
    return add_up(read_statuses(run), run)


def add_up(jobs: Sequence[Json], run: Path, at_work: Sequence[Json] = ()) -> Json:
    """The status of a run, of those of its jobs.

    Args:
        jobs: of all jobs, at least one.
        run: the run's folder.
        at_work: of those that live; by default of the last job.

    Returns:
        A status as a job writes it, of all images of the run. `before` says how many of them jobs
        did that are not at work. `jobs` is the number of those at work.

    Raises:
        EnvironmentFault: there is no job.
    """
    if not jobs:
        raise EnvironmentFault(
            f"{run}: no job has written its status here: the run was simulated. To see its state: "
            f"collage-mpi verify {run}"
        )
    now = [*at_work] or [jobs[-1]]
    newest = max(now, key=lambda status: float(status["written_s"]))
    total = max(status["total"] + status["before"] for status in jobs)
    done = sum(status["done"] for status in jobs)
    done = max(done, *(each["before"] + each["done"] for each in now))
    states = {status["state"] for status in now}
    mine = sum(status["done"] for status in now)
    lately = _sum(now, "images_per_s_lately")
    ranks = [{**rank, "session": each["session"]} for each in now for rank in each["ranks"]]
    return {
        **newest,
        **{name: now[0][name] for name in ("host", "pid", "session", "label")},
        "state": next((each for each in _FIRST if each in states), now[-1]["state"]),
        "jobs": len(now),
        "total": total,
        "done": min(done, total),
        "before": max(0, min(done, total) - mine),
        "elapsed_s": max(each["elapsed_s"] for each in now),
        "count": sum(each["count"] for each in now),
        "images_per_s": _sum(now, "images_per_s"),
        "images_per_s_lately": lately,
        "left_s": max(0, total - done) / lately if lately else None,
        "ranks": ranks,
        **{name: _sum(jobs, name) for name in ("errors", "by_collage", "audited", "differing")},
        "limit": next((each["limit"] for each in now if each.get("limit")), None),
    }


def _sum(jobs: Sequence[Json], name: str) -> Any:
    """The sum of a field of all jobs; None if none of them has it."""
    known = [each[name] for each in jobs if each.get(name) is not None]
    return sum(known) if known else None


_RANK = {
    **dict.fromkeys(("host", "state"), is_text),
    "rank": is_int,
    "kinds": list_of(lambda kind: kind in KINDS),
    **dict.fromkeys(("service_ms", "answers", "tasks", "busy"), optional(is_number)),
}
_CHECKS: dict[str, Check] = {
    "format": lambda v: v == FORMAT,
    "version": lambda v: v == VERSION,
    "state": lambda v: v in STATES,
    **dict.fromkeys(("count", "beats", "total", "before", "done", "session", "pid"), is_int),
    "owner": lambda v: is_text(v) and is_owner(v),
    "process": optional(lambda v: isinstance(v, dict)),
    **dict.fromkeys(("every_s", "elapsed_s", "written_s"), is_number),
    **dict.fromkeys(("label", "host", "written", "run_id", "out"), is_text),
    "ranks": list_of(fields(**_RANK)),
    "limit": optional(is_text),
    **dict.fromkeys(("images_per_s", "images_per_s_lately", "left_s"), optional(is_number)),
    **dict.fromkeys(("errors", "by_collage", "audited", "differing"), optional(is_number)),
}


# ---- watching ---------------------------------------------------------------

# Two counters show whether a job is alive: a thread of the job gives signs of life (beats, of the
# ledger or in its status), and the job's loop increases the count of the status. Both are timed by
# the watcher's clock. Times that a job or a file server wrote come from other clocks and are only
# shown.
ENDED, ALIVE, SILENT, DEAD, UNKNOWN = "ended", "alive", "silent", "dead", "unknown"
_LATE = 3  # a status is called old when this many intervals have passed without a new one
_POLL_S = 0.2


@dataclass(frozen=True)
class View:
    """The state of a run at one look.

    Attributes:
        status: of the run: see `add_up`.
        life: ALIVE: a job gives signs of life. UNKNOWN: not watched for long enough. ENDED: the run
            is complete, or its last job has ended. SILENT: the last job has given no sign for
            LOOK_S or longer. DEAD: its process was on this machine and has ended.
        still_s: for how long the watcher has seen no sign of life of any job.
        age_s: for how long the watcher has seen no change of the status, so its minimum age.
    """

    status: Json
    life: str
    still_s: float
    age_s: float

    @property
    def old(self) -> bool:
        """Whether the status should have been updated by now."""
        return self.life in (SILENT, DEAD) or self.age_s > _LATE * self.status["every_s"] + 1

    @property
    def lost(self) -> bool:
        """Whether the job counts as dead, so that other jobs take over its images."""
        return self.life == DEAD or self.still_s >= SILENT_S


@dataclass
class _Signs:
    """The signs of life of a job: the last ones, when they changed, and whether they ever did."""

    last: tuple[int, bytes | None]
    since_s: float
    moves: bool = False


class Watch:
    """Tells by repeated looks whether the jobs of a run are alive."""

    def __init__(self, run: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._run, self._clock, self._store = run, clock, FolderStore(run)
        self._signs: dict[int, _Signs] = {}
        self._count: tuple[int, int] | None = None
        self._changed_s = clock()

    def look(self) -> View:
        """The state of the run now.

        Raises:
            EnvironmentFault, DataFault: as `read_statuses`; no job has written a status.
        """
        jobs = self.jobs()
        at_work = [status for status, life in jobs if life in (ALIVE, UNKNOWN)]
        status = add_up([status for status, _ in jobs], self._run, at_work)
        now_s = self._clock()
        if self._count != (count := (status["session"], status["count"])):
            self._count, self._changed_s = count, now_s
        lives = {life for _, life in jobs}
        life = next((each for each in (ALIVE, UNKNOWN) if each in lives), jobs[-1][1])
        if life in (SILENT, DEAD) and (self._run / run_name(1)).exists():
            ledger = read_ledger(self._run)
            if ledger.complete:
                status, life = {**status, "state": ledger.status}, ENDED
        still_s = now_s - max(signs.since_s for signs in self._signs.values())
        return View(status, life, still_s, now_s - self._changed_s)

    def jobs(self) -> list[tuple[Json, str]]:
        """The status of each job, in the order of the sessions, and whether it lives: see `View`.

        Raises:
            EnvironmentFault, DataFault: as `read_statuses`.
        """
        found = [(status, self._life(status)) for status in read_statuses(self._run)]
        if found and found[-1][1] == ENDED and self._goes_on(last := found[-1][0]):
            found[-1] = last, ALIVE
        return found

    def _goes_on(self, status: Json) -> bool:
        """Whether a job has ended only one run of an input that it still lists: its process is on
        this machine and lives."""
        there = status["state"] == "incomplete" and (self._run / run_name(1)).exists()
        goes_on = there and _ended(status) is False and read_ledger(self._run).due
        if goes_on:
            self._signs[status["session"]].since_s = self._clock()
        return goes_on

    def _life(self, status: Json) -> str:
        now_s = self._clock()
        with reading(self._run):
            signs = status["beats"], self._store.read(beat_name(status["owner"]))
        known = self._signs.setdefault(status["session"], _Signs(signs, now_s))
        if known.last != signs:
            known.last, known.since_s, known.moves = signs, now_s, True
        if status["state"] in STATUSES:
            return ENDED
        if _ended(status):
            return DEAD
        if now_s - known.since_s >= LOOK_S:
            return SILENT
        return ALIVE if known.moves else UNKNOWN


def _ended(status: Json) -> bool | None:
    """Whether the process of a job has ended; None if it cannot be seen from here."""
    try:
        process = read_record(ProcessId, status["process"])
    except (KeyError, ValueError):
        return None
    return has_ended(process)


def find_writer(
    run: Path,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], object] = time.sleep,
) -> str | None:
    """A job that is at work on a run, as "host h, pid p"; None if there is none. Takes at most
    LOOK_S.

    Raises:
        EnvironmentFault, DataFault: as `read_statuses`.
    """
    watch = Watch(run, clock)
    while True:
        jobs = watch.jobs()
        for status, life in jobs:
            if life == ALIVE:
                return f"host {status['host']}, pid {status['pid']}"
        if not any(life == UNKNOWN for _, life in jobs):
            return None
        sleep(_POLL_S)
