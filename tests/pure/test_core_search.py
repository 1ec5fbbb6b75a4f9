"""Every order of answers, failures, losses, silences and timers in small worlds, to a depth.

To search deeper by hand: python tests/pure/test_core_search.py --depth 7
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from core_world import ABSENT, MS, STAGES, World

from collage_mpi.core import events as ev
from collage_mpi.core.policies import Confident

Choice = tuple[str, int]
UNSURE = Confident(0.99, 20 * MS)
PULL = {"assign": "pull", "credit": 1}
# How often each sort of event may happen in a schedule; answers and timers as often as they can.
MOST = {"fail": 2, "absent": 1, "silence": 2, "lose": 1, "stop": 1, "pause": 1}


def world(images: int, close: bool = True, drawn: bool = False, **settings) -> World:
    """Two or three ranks, and all images in."""
    made = World(**{"singles": 2, "side": 1, "depth": 4, "settle_ns": 5 * MS, **settings}).start()
    made.arrive(images, drawn=range(images) if drawn else None)
    if close:
        made.close()
    return made


WORLDS: dict[str, Callable[[], World]] = {
    "none": lambda: world(2, credit=1, max_attempts=2),
    "none, pulled, three images": lambda: world(3, **PULL),
    "none, batches, end game": lambda: world(3, batch=2, endgame=True, max_attempts=2, **PULL),
    "none, input open": lambda: world(2, close=False, depth=2, batch=2, together=False, **PULL),
    "replicate": lambda: world(2, scheme="replicate", max_attempts=2),
    "replicate, pulled": lambda: world(2, scheme="replicate", **PULL),
    "hedge": lambda: world(2, scheme="hedge", hedge_ns=10 * MS, **PULL),
    "collage": lambda: world(2, scheme="collage", others=1, max_attempts=2),
    "collage, unsure": lambda: world(2, scheme="collage", others=1, side=2, policy=UNSURE, **PULL),
    "collage, copies": lambda: world(
        2, scheme="collage", singles=1, others=2, collage_copies=2, **PULL
    ),
    "collage-only": lambda: world(3, scheme="collage-only", others=2, side=2, max_attempts=2),
    "cascade": lambda: world(4, scheme="cascade", singles=1, others=1, side=2, policy=UNSURE),
    "cascade of three stages": lambda: world(
        3, scheme="cascade", stages=STAGES[:2], singles=1, others=2, side=2, policy=UNSURE
    ),
    "cascade, audits": lambda: world(4, drawn=True, scheme="cascade", others=1, side=2),
}


def choices(found: World, past: list[Choice]) -> Iterator[Choice]:
    """What can happen next."""
    counts = Counter(what for what, _ in past)
    messages = dict.fromkeys(found.sent[task].message for task in sorted(found.live))
    for message in messages:
        yield "answer", message
        for what in ("absent", "fail"):
            if counts[what] < MOST[what]:
                yield what, message
    for rank in sorted({sent.rank for sent in found.live.values()} - found.silent):
        if counts["silence"] < MOST["silence"]:
            yield "silence", rank
    for rank in sorted(found.ready - found.lost):
        if counts["lose"] < MOST["lose"]:
            yield "lose", rank
    if found.core.wake_ns is not None:
        yield "wake", 0
    if not found.closed:
        for what in ("stop", "pause"):
            if counts[what] < MOST[what]:
                yield what, 0


def happen(found: World, choice: Choice) -> None:
    what, number = choice
    if what == "wake":
        found.wake()
    elif what in ("silence", "lose"):
        getattr(found, what)(number)
    elif what in ("stop", "pause"):
        found.step(ev.StopRequested("asked to") if what == "stop" else ev.InputPaused())
    else:
        tasks = [task for task in found.messages[number] if task in found.live]
        if what == "fail":
            found.step(*(found.failed(task) for task in tasks))
        else:
            state = ABSENT if what == "absent" else 1
            cells = [{i: (i % 10, 0.9, state) for i in found.live[t].images[:1]} for t in tasks]
            pairs = zip(tasks, cells, strict=True)
            found.step(*(found.answered(task, each) for task, each in pairs))


def search(make: Callable[[], World], depth: int) -> int:
    """Play all schedules of `depth` events, each to its end; how many there are."""
    schedules, waiting = 0, [list[Choice]()]
    while waiting:
        past = waiting.pop()
        found = make()
        for choice in past:
            happen(found, choice)
        following = [] if found.finish is not None else list(choices(found, past))
        if len(past) == depth or not following:
            schedules += 1
            found.run_out()
        else:
            waiting += ([*past, choice] for choice in following)
    return schedules


# Of many tasks at once there are thousands of schedules of three events.
MANY = ("replicate", "collage", "collage, unsure", "collage, copies", "cascade, audits")


@pytest.mark.parametrize("name", WORLDS)
def test_every_schedule_of_a_small_world_keeps_the_invariants(name: str) -> None:
    assert search(WORLDS[name], 2 if name in MANY else 3) > 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--depth", type=int, default=5)
    given = parser.parse_args()
    total = 0
    for name, make in WORLDS.items():
        count = search(make, given.depth)
        total += count
        print(f"{name}: {count} schedules", flush=True)
    print(f"{total} schedules of {given.depth} events and their ends")


if __name__ == "__main__":
    main()
