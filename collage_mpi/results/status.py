"""Writes the status of a running job to its folder, and reads it.

Rank 0's loop hands over a snapshot every few seconds, and a thread writes it, so that a slow disk
does not delay the loop. A new snapshot replaces a waiting one. Files are renamed into place, under
the session's claim. If a status cannot be written, the user is told once and the job goes on.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from platform import node
from typing import Any

import numpy as np

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault
from collage_mpi.results import MANIFEST, MARKER, STATUS
from collage_mpi.results.claim import LOOK_S, STILL_S, Holder, read_claims
from collage_mpi.results.manifest import (
    STATUSES,
    Check,
    Json,
    fields,
    is_finished,
    is_int,
    is_number,
    is_text,
    list_of,
    optional,
    plain,
    read_manifest,
    readable,
    wrong_key,
)
from collage_mpi.results.statistics import times_of_messages
from collage_mpi.rows import KINDS
from collage_mpi.system.files import reading, write_atomic
from collage_mpi.system.tell import tell

FORMAT, VERSION = "collage-mpi status", 1
STARTING, RUNNING, ENDING = "starting", "running", "ending"  # then one of STATUSES
STATES = (STARTING, RUNNING, ENDING, *STATUSES)
_LARGEST_BYTES = 16 << 20  # 10,000 ranks are 2 MB


class StatusFiles:
    """Writes the status of one session, from its claim to its end.

    Attributes:
        batch_costs: as in `times_of_messages`; {} until they are known.

    Args:
        out: the run's folder.
        facts: fields of the status that do not change during the session: total, before, label...
        every_s: minimum of seconds between two statuses.
        check: raises if this session may no longer write to the folder.
    """

    def __init__(
        self,
        out: Path,
        facts: Mapping[str, Any],
        every_s: float,
        check: Callable[[], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._out, self._check, self._clock = out, check, clock
        self._every_s = every_s
        self.batch_costs: Mapping[str, float] = {}
        self._facts = {
            **facts,
            "out": readable(str(out.absolute())),
            "host": node(),
            "pid": os.getpid(),
            "every_s": every_s,
        }
        self._began_s = clock()
        self._began_at = self._began_s, 0  # time and images done when the average rate begins
        self._due_s = self._began_s
        self._count = 0
        self._last: Json = {"state": STARTING, "done": 0, "ranks": []}
        self._before: tuple[float, int] | None = None  # time and images done of the last snapshot
        self._told = False
        self._others: Callable[[], Iterable[Json]] = tuple
        self._waiting: tuple[Json, np.ndarray | None] | None = None
        self._closed = False
        self._changed = threading.Condition()
        with self._guarded():
            self._write(self._last)
        self._thread = threading.Thread(target=self._work, name="collage-mpi status", daemon=True)
        self._thread.start()

    def include(self, others: Callable[[], Iterable[Json]]) -> None:
        """Append the ranks of other teams to each status. `others` is called in the thread."""
        self._others = others

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
        """Write the final status, one of STATUSES. The session must still hold the claim."""
        self._end_thread()
        with self._guarded():
            self._write({**self._last, "state": status})

    def remove(self) -> None:
        """Remove the status of a run that is discarded."""
        self._end_thread()
        (self._out / STATUS).unlink(missing_ok=True)

    def _end_thread(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _work(self) -> None:
        while True:
            with self._changed:
                while self._waiting is None and not self._closed:
                    self._changed.wait()
                taken, self._waiting = self._waiting, None
            if taken is None:
                return
            said, tasks = taken
            with self._guarded():
                if tasks is not None:
                    add_service_times(said["ranks"], tasks, self.batch_costs)
                ranks = [*said["ranks"], *self._others()]
                self._last = {**said, "ranks": ranks, **self._rates(said["done"])}
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

    def _write(self, said: Json) -> None:
        self._count += 1
        written_s = time.time()
        status = {
            "format": FORMAT,
            "version": VERSION,
            "count": self._count,
            **self._facts,
            **said,
            "elapsed_s": self._clock() - self._began_s,
            "written": datetime.fromtimestamp(written_s, timezone.utc).isoformat(
                timespec="seconds"
            ),
            "written_s": written_s,
        }
        text = json.dumps(status, separators=(",", ":"), default=plain).encode()
        write_atomic(self._out / STATUS, (text, b"\n"), check=self._check)

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Reports the first error and suppresses all, so that no status ends the job."""
        try:
            yield
        except Exception as error:
            told, self._told = self._told, True
            if told or isinstance(error, CollageError):
                return  # a lost claim is reported by the thread that writes rows
            why = f"{type(error).__name__}: {error}"
            if isinstance(error, OSError):
                why = error.strerror or str(error)
            tell(f"warning: {self._out / STATUS} cannot be written: {why}. The job goes on")


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


def read_status(run: Path) -> Json:
    """Read and check the status in a run's folder.

    Raises:
        EnvironmentFault: there is no run, or the run has no status.
        DataFault: the status is damaged.
    """
    path = run / STATUS
    with reading(path, "damaged"):
        if not path.exists():
            raise _no_status(run)
        with open(path, "rb") as file:
            found = json.loads(file.read(_LARGEST_BYTES))
    key = wrong_key(found, _CHECKS) if isinstance(found, dict) else "all of it"
    if key is not None:
        raise DataFault(
            f"{path}: damaged: {key} is missing or has a wrong type. A running job of this version "
            f"writes {path.name} again; collage-mpi verify {run} reads the rows instead"
        )
    return found


def _no_status(run: Path) -> EnvironmentFault:
    if (run / MANIFEST).exists():
        return EnvironmentFault(
            f"{run}: this run has no {STATUS}: it was simulated, or made by version 0.1. To see "
            f"its state: collage-mpi verify {run}"
        )
    return EnvironmentFault(
        f"{run}: no run here ({STATUS} not found). Name a directory that `collage-mpi run --out "
        "DIR` writes to."
    )


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
    **dict.fromkeys(("count", "total", "before", "done", "session", "pid"), is_int),
    **dict.fromkeys(("every_s", "elapsed_s", "written_s"), is_number),
    **dict.fromkeys(("label", "host", "written", "run_id", "out"), is_text),
    "ranks": list_of(fields(**_RANK)),
    "limit": optional(is_text),
    **dict.fromkeys(("images_per_s", "images_per_s_lately", "left_s"), optional(is_number)),
    **dict.fromkeys(("errors", "by_collage", "audited", "differing"), optional(is_number)),
}


# ---- watching ---------------------------------------------------------------

# Two counters show whether a job is alive: a thread of the job increases the claim's counter every
# second, and the job's loop increases that of the status. Both are timed by the watcher's clock.
# Times that the job or a file server wrote come from other clocks and are only shown.
ENDED, ALIVE, SILENT, DEAD, UNKNOWN = "ended", "alive", "silent", "dead", "unknown"
_LATE = 3  # a status is called old when this many intervals have passed without a new one


@dataclass(frozen=True)
class View:
    """The state of a run at one look.

    Attributes:
        status: as `read_status` returns it.
        life: ENDED: the job has written its final status. ALIVE: its counter changes. SILENT: the
            counter has not changed for LOOK_S or longer. DEAD: its process was on this machine and
            has ended, or nobody claims the folder. UNKNOWN: not watched for long enough.
        still_s: for how long the watcher has seen no change of the job's counter.
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
        """Whether the job counts as dead, so that another session may take over."""
        return self.life == DEAD or self.still_s >= STILL_S


class Watch:
    """Tells by repeated looks whether the job of a run is alive."""

    def __init__(self, run: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._run, self._clock = run, clock
        self._began_s = clock()
        self._claims: dict[Path, bytes] | None = None
        self._count: tuple[str, int, int] | None = None
        self._moved_s = self._changed_s = self._began_s
        self._moves = False

    def look(self) -> View:
        """The state of the run now.

        Raises:
            EnvironmentFault, DataFault: as `read_status`.
        """
        claims = read_claims(self._run)  # first, because a job releases its claim after its status
        status = read_status(self._run)
        now_s = self._clock()
        count = status["run_id"], status["session"], status["count"]
        if claims != self._claims:
            self._moves = self._claims is not None
            self._claims, self._moved_s = claims, now_s
        if count != self._count:
            self._count, self._changed_s = count, now_s
        still_s = now_s - self._moved_s
        life = self._life(status, claims, still_s)
        if life == DEAD and (self._run / MARKER).exists():
            manifest = read_manifest(self._run)
            if is_finished(self._run, manifest):  # it was killed before its last status
                status, life = {**status, "state": manifest["status"]}, ENDED
        return View(status, life, still_s, now_s - self._changed_s)

    def _life(self, status: Json, claims: dict[Path, bytes], still_s: float) -> str:
        if not any(not Holder.read(raw).ended for raw in claims.values()):
            return ENDED if status["state"] in STATUSES else DEAD
        if still_s >= LOOK_S:  # a job killed just after its final status leaves its claim
            return ENDED if status["state"] in STATUSES else SILENT
        return ALIVE if self._moves else UNKNOWN
