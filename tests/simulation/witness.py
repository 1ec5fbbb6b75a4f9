"""What the networks of ranks were asked, seen by themselves; rows and tasks must agree with it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from tests.simulation.inputs import PX, ROWS, number_of, pixels
from tests.simulation.kernel import Process

if TYPE_CHECKING:
    from tests.simulation.laws import Run

Image = tuple[int, int]  # the number of a shard, and a row of it
BY_FIRST = {
    1: "collage",
    8: "stage1",
}  # source -> its network; that of the others is the single one
EITHER, COLLAGE_ONLY = (5, 7, 10), "collage-only"  # sources of any network
KINDS = {0: "single", 1: "collage", 3: "stage1"}  # of tasks
ANSWERED, SKIPPED, UNFINISHED = 0, 1, 4  # outcomes
AT_END_NS = 900_000_000  # a late answer is waited for, when all images have theirs


class Call(NamedTuple):
    """A call of a network.

    Attributes:
        began_ns, ended_ns: in the world's time.
        images: of each input its cells that hold an image.
    """

    process: Process
    kind: str
    began_ns: int
    ended_ns: int
    images: tuple[tuple[Image, ...], ...]


@cache
def _known() -> dict[bytes, Image]:
    found = {}
    for shard in range(len(ROWS)):
        found |= {image.tobytes(): (shard, row) for row, image in enumerate(pixels(shard))}
    return found


def images_in(item: np.ndarray, cells: int) -> tuple[Image, ...]:
    """The images of an input, (H, W, 1) uint8."""
    side = round(cells**0.5)
    places = ((y * PX, x * PX) for y in range(side) for x in range(side))
    found = (_known().get(item[y : y + PX, x : x + PX].tobytes()) for y, x in places)
    return tuple(image for image in found if image is not None)


def images_of(run: Run, rows: np.ndarray) -> list[Image]:
    numbers = [number_of(Path(shard["path"]).name) for shard in run.manifest["shards"]]
    return [
        (numbers[shard], row)
        for shard, row in zip(rows["shard"].tolist(), rows["row"].tolist(), strict=True)
    ]


def unheard(run: Run, calls: Collection[Call]) -> Iterator[str]:
    """An answer is of a rank whose network was asked for that image.

    `calls`: of all sessions of the run.
    """
    asked = {
        (call.process.name, call.kind, image)
        for call in calls
        for images in call.images
        for image in images
    }
    collages = run.manifest["settings"]["scheme"] == COLLAGE_ONLY
    rows = run.images[run.images["answered"]]
    for row, image in zip(rows, images_of(run, rows), strict=True):
        source = int(row["source"])
        kinds = (
            KINDS.values() if source in EITHER or collages else (BY_FIRST.get(source, "single"),)
        )
        if not any((f"rank {row['rank']}", kind, image) in asked for kind in kinds):
            yield f"an answer of a rank that was not asked: {row}"
            return


def again(run: Run, done: Collection[Image], calls: Collection[Call]) -> Iterator[str]:
    """A session asks for no image that had its answer before it."""
    twice = {image for call in calls for images in call.images for image in images} & {*done}
    if twice:
        yield f"{len(twice)} images were answered before, and were done again: {min(twice)}"


def unlike_tasks(run: Run, sessions: Sequence[int], calls: Collection[Call]) -> Iterator[str]:
    """Each rank computed as many images as its tasks say, of a session that nothing disturbed."""
    tasks = run.tables["tasks"]
    tasks = tasks[np.isin(tasks["session"], sessions)]
    said, late = Counter[tuple[str, str]](), Counter[tuple[str, str]]()
    for task in tasks[np.isin(tasks["outcome"], (ANSWERED, UNFINISHED))]:
        who = f"rank {task['rank']}", KINDS[int(task["kind"])]
        (said if task["outcome"] == ANSWERED else late)[who] += int(task["items"])
    found: Counter[tuple[str, str]] = Counter()
    for call in calls:
        found[call.process.name, call.kind] += sum(map(len, call.images))
    for who in sorted({*said, *found}):
        if not said[who] <= found[who] <= said[who] + late[who]:
            yield f"{who} computed {found[who]} images, of {said[who]} in its tasks"


def troubled(run: Run, sessions: Sequence[int]) -> Iterator[str]:
    """What a launch that nothing disturbed has no reason for."""
    rows, tasks = run.images, run.tables["tasks"]
    rows = rows[np.isin(rows["session"], sessions)]
    tasks = tasks[np.isin(tasks["session"], sessions)]
    ended = np.isin(tasks["outcome"], (ANSWERED, SKIPPED))
    waited_for = (tasks["outcome"] == UNFINISHED) & (
        tasks["done_ns"] - tasks["sent_ns"] > AT_END_NS
    )
    for what, wrong in (
        ("an error row", rows[~rows["answered"]]),
        ("a retry", rows[rows["source"] == 5]),
        ("a task that was not answered", tasks[~(ended | waited_for)]),
        ("an audit that failed", rows[rows["audited"] == 2]),
    ):
        if len(wrong):
            yield f"{what}, and nothing went wrong: {wrong[0]}"
    for entry in run.manifest["sessions"]:
        final = entry.get("final") or {}
        if entry["session"] in sessions and (final.get("lost") or final.get("retired")):
            yield f"lost {final['lost']} or retired {final['retired']}, and nothing went wrong"


def other_processes(run: Run, ranks: Sequence[Process]) -> Iterator[str]:
    """The entries of a launch name its processes."""
    for entry in run.sessions_of(ranks).values():
        for member in (entry.get("final") or {}).get("world") or ():
            process = ranks[member["rank"]]
            if (member["pid"], member["host"]) != (process.pid, process.host.name):
                yield f"{process.name} is {process.pid} on {process.host.name}, not {member}"
