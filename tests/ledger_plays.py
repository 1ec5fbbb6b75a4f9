"""Plays of the ledger: python -m tests.ledger_plays --help

Each play is the package's own code on virtual time. `plays` are random ones on a folder that lies,
`bounded` all schedules of a few owners, `damage` plays whose records are removed or changed,
`crowd`, `array` and `stalls` many jobs for hours.
"""

from __future__ import annotations

import argparse
import errno
import random
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from itertools import islice
from multiprocessing import get_context
from typing import Any

import msgspec

from collage_mpi.ledger.damage import examine, repair
from collage_mpi.ledger.records import MARK_BYTES, Record, encode
from collage_mpi.ledger.store import FolderStore
from tests.folder.misbehaviour import CHANGES, Fate, Misbehaviour
from tests.ledger_array import array, crowd, stalls
from tests.ledger_bounded import cases, play, short_times
from tests.ledger_world import World, Wrong

LIMIT_S = 30_000.0
MOST_JOBS = 40
LIVELY = (0.0, 0.0002, 0.001, 0.004)  # of the steps, those at which a job dies
HOSTS = "abcde"


@dataclass(frozen=True)
class Failing(Misbehaviour):
    """Also, for some minutes, nothing can be changed."""

    read_only_s: tuple[float, float] = (0.0, 0.0)

    def fate(self, host: str, op: str, now_s: float, rng: random.Random) -> Fate:
        if op in CHANGES and self.read_only_s[0] <= now_s < self.read_only_s[1]:
            return Fate(0.0, 0.0, instead=errno.EIO)
        return super().fate(host, op, now_s, rng)


def drawn(seed: int, rng: random.Random, calm: bool) -> Failing:
    """What goes wrong with the folder."""
    plan = Misbehaviour.drawn(seed, [] if calm else None)
    begin_s = rng.uniform(0, 200)
    end_s = begin_s + 180 if rng.random() < 0.2 and not calm else 0.0
    fields = {name: getattr(plan, name) for name in plan.__dataclass_fields__}
    return replace(Failing(**fields, read_only_s=(begin_s, end_s)), keep_s=rng.choice((0, 3, 60)))


def random_play(seed: int) -> World:
    """A random play to its end. Raises Wrong."""
    rng = random.Random(f"play {seed}")
    long = rng.random() < 0.15  # jobs still work when one of them is found dead
    total = rng.randint(150, 300) if long else rng.randint(1, 60)
    cells = [rng.choice((3, 10, 100, 100)) for _ in range(MOST_JOBS + 1)]
    clocks = {host: (rng.uniform(-1e6, 1e6), rng.choice((1.0, 1.0, 0.98, 1.02))) for host in HOSTS}
    calm = rng.random() < 0.2
    world = World(
        seed,
        drawn(seed, rng, calm),
        total,
        lambda number: cells[number],
        rng.choice((1, 1, 4)),
        lambda host: clocks.get(host, (0.0, 1.0)),
    )
    world.calm, world.refuted = calm, random.Random(seed).choice((0.0, 0.2))
    lively = rng.choice(LIVELY)
    if rng.random() < 0.1:
        world.killers = {rng.randrange(total) for _ in range(rng.randint(1, 2))}
    rates = [rng.choice((0.3, 1.0, 1.0, 3.0, 10.0)) for _ in range(5)]
    if long:
        rates = [rng.choice((0.8, 1.0, 1.2)) for _ in range(5)]
    for _ in range(rng.randint(3, 5) if long else rng.randint(1, 5)):
        job = world.add(rng.choice(HOSTS), rng.choice(rates))
        if rng.random() < 0.2:
            job.stop_s = rng.uniform(0, 100)
    mend_s, steps, found = rng.uniform(0, 600), 0, 0
    while world.live or not found:
        steps += 1
        now_s = world.time.now_s
        if now_s >= LIMIT_S or len(world.jobs) > MOST_JOBS:
            raise Wrong("no end")
        if steps % 20 == 0:
            world.look()
        if now_s >= mend_s:
            world.mend()
        if not world.live:
            world.add("last", max(rates), mended=True)
        job = world.next_job()
        dice = rng.random() if lively else 1.0
        if dice < lively and len(world.jobs) < MOST_JOBS / 2:
            world.die(job)
        elif dice < 2 * lively and not calm:
            world.suspend(job, rng.choice((5.0, 40.0, 300.0)))
        elif dice < 2.5 * lively and len(world.jobs) < 12:
            world.add(rng.choice(HOSTS), rng.choice(rates))
        else:
            world.time.step()
        if job.ended == "complete" and not job.judged:
            job.judged = True
            found += 1
            if world.look() < total:
                raise Wrong("found complete, is not")
            world.judge_reading()
        elif job.ended.partition(":")[0] not in ("", "complete", "left", "dead", "hung"):
            raise Wrong(job.ended)
    if world.killers - world.errors:
        raise Wrong("a position that kills has no error row")
    died = any(job.ended == "dead" for job in world.jobs)
    if calm and not died and world.written > total + 2 * world.splits:
        raise Wrong(f"{world.written} positions were written for {total}, and nothing went wrong")
    return world


def damaged_play(seed: int) -> bool:
    """Remove or change a record in the middle of a play, and repair. Returns whether it was told.

    Raises Wrong where it is neither told by its name nor without harm, and where the run is not
    complete after a repair.
    """
    rng = random.Random(f"damage {seed}")
    total = rng.randint(10, 60)
    world = World(seed, Misbehaviour(), total, rng.choice((10, 30, 60)))
    for host in HOSTS[: rng.randint(1, 3)]:
        world.add(host, rng.choice((1.0, 3.0)))
    until_s = rng.uniform(8, 40)
    while world.live and world.time.now_s < until_s:
        world.time.step()
    for job in world.live:
        world.die(job)
    sound = world.store.host("sound", mended=True)
    names = sorted(name for name in sound.listdir("/run/leases") if not name.startswith("."))
    victim = rng.choice(names)
    start, gen = (int(number) for number in victim.split("."))
    raw = world.file(f"leases/{victim}")
    text, end = (raw, b"") if gen else (raw[:-MARK_BYTES], raw[-MARK_BYTES:])
    record = msgspec.json.decode(text, type=Record)
    last = all(int(name.partition(".")[2]) <= gen for name in names if name.startswith(f"{start}."))
    sound.unlink(f"/run/leases/{victim}")
    removed = rng.random() < 0.5
    if not removed:
        deaths = (*record.tried, ((start, start + 1),))[-4:]
        changed = msgspec.structs.replace(record, tried=deaths)
        FolderStore("/run", sound).replace(f"leases/{victim}", encode(changed) + end)
    store, run = FolderStore("/run", sound), world.run
    assert run is not None
    found = examine(store, run)
    if any(name != "COMPLETE.1" and f"/{start}." not in name for name in found.damage):
        raise Wrong(f"{victim} was damaged, told is {found.damage}")
    marked = bool(end.strip())  # what its first record says does not matter any more
    if not last and not found.damage and (removed or not marked):
        raise Wrong(f"{victim} was damaged, and nothing is told")
    repair(store, run, found)
    if examine(store, run).damage:
        raise Wrong("damaged after the repair")
    world.forget()
    world.add("later", 10.0)
    while world.live and world.time.now_s < LIMIT_S:
        world.time.step()
    if world.jobs[-1].ended != "complete" or world.look() < total:
        raise Wrong(f"not complete after the repair: {world.jobs[-1].ended}")
    return bool(found.damage)


# ---- the command line ------------------------------------------------------------------


def found(what: Callable[[Any], object], one: Any) -> str:
    """What is wrong with a play, or nothing."""
    try:
        what(one)
    except (Wrong, AssertionError) as error:
        return f"{one}: {error}"
    return ""


def judged(seed: int) -> tuple[str, int, int]:
    """What is wrong with a random play, how many positions were written, and how many there are."""
    try:
        world = random_play(seed)
    except Wrong as error:
        return f"seed {seed}: {error}", 0, 0
    return "", world.written, world.total


def bounded_part(
    owners: int, cell: int, switches: int, part: int, of: int
) -> tuple[int, list[str]]:
    """Play every `of`-th case of so many owners and positions in a cell."""
    played, bad = 0, []
    with short_times():
        for case in islice(cases(owners, switches), part, None, of):
            played += 1
            if wrong := found(lambda case: play(owners, cell, cell, case), case):
                bad.append(f"{owners} owners, cells of {cell}: {wrong}")
    return played, bad


def run_plays(first: int, count: int, at_once: int) -> list[str]:
    bad, written, total, most = [], 0, 0, 0.0
    with ProcessPoolExecutor(at_once, get_context("fork")) as pool:
        for wrong, some, all_of in pool.map(judged, range(first, first + count), chunksize=20):
            bad += [wrong] if wrong else []
            written, total = written + some, total + all_of
            most = max(most, some / max(1, all_of))
    print(f"{count} plays; positions written / positions {written / total:.3f}, most {most:.2f}")
    return bad


def run_bounded(owners: int, switches: int, part: int, of: int, at_once: int) -> list[str]:
    bad, played = [], 0
    with ProcessPoolExecutor(at_once, get_context("fork")) as pool:
        asked = [
            pool.submit(bounded_part, owners, cell, switches, part * at_once + n, of * at_once)
            for cell in (3, 2, 1)
            for n in range(at_once)
        ]
        for done in asked:
            count, wrong = done.result()
            played += count
            bad += wrong
    print(f"{played} schedules of {owners} owners with at most {switches} switches")
    return bad


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("what", choices=("plays", "bounded", "damage", "crowd", "array", "stalls"))
    parser.add_argument("--count", type=int, default=200, help="plays; jobs of a crowd")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first seed")
    parser.add_argument("--owners", type=int, default=2, help="of the schedules")
    parser.add_argument("--switches", type=int, default=2, help="of the schedules, at most")
    parser.add_argument("--part", type=int, default=0, help="of the schedules, from 0")
    parser.add_argument("--of", type=int, default=1, help="parts of the schedules")
    parser.add_argument("--seconds", type=float, default=300.0, help="work of each job of a crowd")
    parser.add_argument("--until", type=float, default=float("inf"), help="of a crowd, in s")
    parser.add_argument("--at-once", type=int, default=1, help="processes")
    args = parser.parse_args()
    seeds, began_s = range(args.first, args.first + args.count), time.monotonic()
    bad: list[str] = []
    if args.what == "plays":
        bad = run_plays(args.first, args.count, args.at_once)
    elif args.what == "bounded":
        bad = run_bounded(args.owners, args.switches, args.part, args.of, args.at_once)
    elif args.what == "damage":
        told = Counter(damaged_play(seed) for seed in seeds)
        print(f"{told[True]} told by name, {told[False]} without harm")
    elif args.what == "crowd":
        print(crowd(args.count, args.seconds, args.until))
    else:
        for seed in seeds:
            print(seed, {"array": array, "stalls": stalls}[args.what](seed), flush=True)
    print(f"{len(bad)} bad, {time.monotonic() - began_s:.0f} s", *bad[:10], sep="\n")
    raise SystemExit(bool(bad))


if __name__ == "__main__":
    main()
