"""What a job says while it runs and when it ends: to people, and in its status."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.simulation.kernel import MS, SECOND

if TYPE_CHECKING:
    from tests.simulation.laws import Run

COUNTED = re.compile(r"(?i:complete)[^:\n]*: (\d+) of (\d+) images?,")
PROGRESS = re.compile(r": (\d+) of \d+ images? \(")
START_NS = SECOND  # in which ranks start
LATE_NS = 4 * SECOND  # a status that is due is written by then


def wrong_words(run: Run, session: int, told: str, code: int | None) -> Iterator[str]:
    """What rank 0 tells at the end of a job.

    Args:
        session: number of its session.
        told: what it told.
        code: its exit code.
    """
    rows, expected = len(run.lasting), run.manifest["rows"]
    for found in COUNTED.findall(told) if code in (0, 5, 6) else ():
        if tuple(map(int, found)) != (rows, expected):
            yield f"it tells of {found} images, and has {rows} of {expected}"
    mine = int((run.images["session"] == session).sum())
    done = PROGRESS.findall(told)
    if done and code in (0, 5, 6) and run.alone and int(done[-1]) != mine:
        yield f"it tells of {done[-1]} images of this session, which has {mine}"
    final = next(e["final"] for e in run.manifest["sessions"] if e["session"] == session)
    if code == 6 and "go on with" not in told:
        yield "an incomplete job does not say how it goes on"
    if code in (2, 3, 4, 6) and not re.search(r"collage-mpi run:|incomplete:|warning:", told):
        yield f"exit code {code} without a word"
    for lost in final.get("lost") or ():
        if not re.search(rf"ranks? (\d+, )*{lost['rank']}\b.*lost", told):
            yield f"it does not tell that rank {lost['rank']} is lost"
    if code == 5:
        for reason in {bytes(row["reason"]).decode() for row in run.lasting if not row["answered"]}:
            if reason[:20] not in " ".join(told.split()):
                yield f"it does not tell why images have no answer: {reason}"


class Statuses:
    """The statuses of jobs while they are written.

    Attributes:
        tell: of what is wrong.
        calm: nothing disturbs the present session.
    """

    def __init__(self, tell: Callable[[str], object]) -> None:
        self.tell, self.calm = tell, False
        self._last: dict[str, tuple[dict[str, Any], int]] = {}

    def written(self, path: Path, now_ns: int) -> None:
        """A file has just got its name."""
        status = json.loads(path.read_bytes())
        last, at_ns = self._last.get(path.name, (status, now_ns))
        self._last[path.name] = status, now_ns
        name, gap_ns = f"status/{path.name}", now_ns - at_ns
        if not 0 <= status["done"] <= status["total"]:
            self.tell(f"{name}: {status['done']} done of {status['total']}")
        if status.get("errors", 0) > status["done"]:
            self.tell(f"{name}: {status['errors']} errors of {status['done']}")
        if status["state"].startswith("complete") and not [*path.parents[1].glob("COMPLETE.*")]:
            self.tell(f"{name}: {status['state']}, and there is no marker")
        if last["owner"] != status["owner"]:  # one that could not begin leaves no trace
            if last["run_id"] == status["run_id"]:
                self.tell(f"{name} is written by two jobs")
            return
        for each in ("count", "elapsed_s", "done", "errors"):
            if status.get(each, 0) < last.get(each, 0):  # the first one counts no errors
                self.tell(f"{name}: {each} was {last[each]}, and is {status.get(each)}")
        from_begin = (last["state"], status["state"]) == ("starting", "ending")
        if self.calm and from_begin and gap_ns > status["every_s"] * SECOND + START_NS:
            self.tell(f"{name} was not written while {status['total']} images were done")
        if self.calm and gap_ns > status["every_s"] * 1.1 * SECOND + LATE_NS:
            self.tell(f"{name} was not written for {gap_ns // MS} ms")
