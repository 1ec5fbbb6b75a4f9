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
BOTH = re.compile(r"(\d+) images went through both networks")
GIVEN_UP = re.compile(r"team (\d+) \(rank \d+\) is given up")
PROGRESS = re.compile(r": (\d+) of \d+ images? \(")
START_NS = SECOND  # in which ranks start
LATE_NS = 4 * SECOND  # a status that is due is written by then


def wrong_words(run: Run, told: str, code: int | None) -> Iterator[str]:
    """Of a session that a user started, what rank 0 tells at its end.

    `code`: its exit code.
    """
    rows, expected = len(run.lasting), run.manifest["rows"]
    for found in COUNTED.findall(told) if code in (0, 5, 6) else ():
        if tuple(map(int, found)) != (rows, expected):
            yield f"it tells of {found} images, and has {rows} of {expected}"
    mine = int((run.images["session"] == run.manifest["session"]).sum())
    done = PROGRESS.findall(told)
    if done and code in (0, 5, 6) and not run.manifest.get("teams") and int(done[-1]) != mine:
        yield f"it tells of {done[-1]} images of this session, which has {mine}"
    last = [each for each in run.manifest["sessions"] if each["session"] == run.manifest["session"]]
    final = (last[0].get("final") if last else None) or {}
    agree = run.manifest["settings"]["agree"]
    ended = (run.tables["tasks"]["outcome"] <= 1).all()  # answered, or not needed any more
    whole = agree and len(run.manifest["sessions"]) == 1 and not final.get("lost") and ended
    for count in map(int, BOTH.findall(told)) if whole else ():
        if count < 9 / (1 - agree) - 1e-6:
            yield f"{count} images choose the threshold of agree {agree}"
    if "parts were removed while the job ran" in told:
        yield "it tells of parts that were removed, and nobody removed any"
    entries = {each["session"]: each for each in run.manifest["sessions"]}
    for team in map(int, GIVEN_UP.findall(told)):
        entry = entries.get(run.manifest["session"] + team)
        if entry is not None and entry["rows"] is not None:
            yield f"team {team} was given up, and its session says {entry['rows']}"
    if code == 6 and "--resume" not in told:
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
    """The status of a run while it is written.

    Attributes:
        tell: of what is wrong.
        calm: nothing disturbs the present session.
        falls: what a team could not write is done again by another one.
    """

    def __init__(self, path: Path, tell: Callable[[str], object]) -> None:
        self._path, self.tell, self.calm, self.falls = path, tell, False, False
        self._last: dict[str, Any] = {}
        self._at_ns = 0

    def written(self, now_ns: int) -> None:
        """The file has just got its name."""
        status = json.loads(self._path.read_bytes())
        last, gap_ns = self._last, now_ns - self._at_ns
        self._last, self._at_ns = status, now_ns
        if not 0 <= status["done"] <= status["total"]:
            self.tell(f"status.json: {status['done']} done of {status['total']}")
        if status.get("errors", 0) > status["done"]:
            self.tell(f"status.json: {status['errors']} errors of {status['done']}")
        if status["state"].startswith("complete") and not self._path.with_name("COMPLETE").exists():
            self.tell(f"status.json: {status['state']}, and there is no marker")
        if (last.get("run_id"), last.get("session")) != (status["run_id"], status["session"]):
            return
        for name in ("count", "elapsed_s", *(() if self.falls else ("done", "errors"))):
            if status.get(name, 0) < last.get(name, 0):  # the first one counts no errors
                self.tell(f"status.json: {name} was {last[name]}, and is {status.get(name)}")
        from_begin = (last["state"], status["state"]) == ("starting", "ending")
        if self.calm and from_begin and gap_ns > status["every_s"] * SECOND + START_NS:
            self.tell(f"status.json was not written while {status['total']} images were done")
        if self.calm and gap_ns > status["every_s"] * 1.1 * SECOND + LATE_NS:
            self.tell(f"status.json was not written for {gap_ns // MS} ms")
