"""Random plays of the core: all schemes, faults of every sort, and the invariants after each step.

A play follows from its seed alone. To play many, or one again:

    python tests/core_plays.py --plays 10000 --seed 1
    python tests/core_plays.py --plays 1 --seed 4711 --show

With --planted, it plays beside each defect of core_planted.toml until one play fails.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from unittest import mock

try:
    import tomllib
except ImportError:  # Python 3.10
    import tomli as tomllib

import numpy as np
from core_world import ABSENT, BAD_ROW, MS, PRESENT, SECOND_NS, UNREAD, World

from collage_mpi import core
from collage_mpi.core import events as ev
from collage_mpi.core import table
from collage_mpi.core.policies import Confident, First
from collage_mpi.core.schemes import SCHEMES
from collage_mpi.kinds import COLLAGE, SPARE_KINDS, STAGES

STEPS = 60
# What a cascade asks before its exact network.
CHAINS = ((COLLAGE,), STAGES[:1], (COLLAGE, STAGES[1]), STAGES[:2], STAGES)
CORE = Path(core.__file__).parent


class Play:
    """One play: a world that a seed has drawn, and what happens in it."""

    def __init__(self, seed: int, steps: int = STEPS) -> None:
        self.rng = rng = random.Random(seed)
        self.steps, self.rough = rng.randint(5, steps), rng.random() < 0.7
        self.silence_weight = rng.choice([2, 4, 4, 20])
        scheme = rng.choice((*SCHEMES, "cascade"))
        deadline_ns = rng.choice([None, 20 * MS, 100 * MS])
        policy = First() if rng.random() < 0.3 else Confident(rng.choice([0.6, 0.9]), deadline_ns)
        costs = {} if rng.random() < 0.5 else {kind: 2.5 for kind in SPARE_KINDS}
        self.world = World(
            scheme=scheme,
            stages=rng.choice(CHAINS) if scheme == "cascade" else (COLLAGE,),
            side=rng.choice([1, 2, 2, 2, 3]),
            singles=rng.randint(1, 5),
            others=rng.randint(1, 4) if "c" in scheme else rng.choice([0, 0, 1]),
            assign=rng.choice(["turn", "pull"]),
            policy=policy,
            collage_copies=rng.choice([1, 1, 2, 3]),
            hedge_ns=rng.choice([0, 10 * MS, 40 * MS]),
            placement=rng.choice(["fixed", "fastest"]),
            calibrate=rng.random() < 0.3,
            credit=rng.randint(1, 3),
            hosts="".join(rng.choices("aab", k=8)) if rng.random() < 0.5 else "abcdefgh",
            costs=costs,
            batch=rng.choice([1, 1, 2, 3, 4, 8]),
            together=rng.random() < 0.6,
            depth=rng.randint(1, 4),
            paced=rng.random() < 0.3,
            drain=rng.random() < 0.15,
            max_attempts=rng.choice([1, 2, 3, 3]),
            endgame=rng.random() < 0.6,
            max_failures=rng.choice([1, 2, 5]),
            park_ns=rng.choice([50 * MS, 30 * SECOND_NS]),
            settle_ns=rng.choice([0, 30 * MS]),
            keeps=rng.random() < 0.3,
            likes="".join(rng.choices("aab", k=9)),
            check=rng.choice([0, 0, 0.3, 1]),
        )
        self.audits = rng.random() < 0.6
        self.speed = {rank: rng.choice([0, 1, 1, 1, 4]) for rank in self.world.kinds}
        # In half of the plays ranks agree, but one answers wrongly now and then.
        self.wrong = rng.choice([*self.world.kinds]) if rng.random() < 0.5 else None
        self.untold: list[tuple[int, int]] = []  # (task, when it left)

    def run(self) -> None:
        """From the first rank to the end."""
        rng, world = self.rng, self.world
        ranks = list(world.kinds)
        rng.shuffle(ranks)
        for rank in ranks:
            world.lose(rank) if rng.random() < 0.05 else world.rank_ready(rank)
            if world.finish is not None:
                break
        for _ in range(self.steps):
            if world.finish is not None:
                break
            self.move()
            if rng.random() < 0.2:
                world.take()
        if world.finish is not None:
            world.finished()
        elif rng.random() < 0.3:
            world.fall_silent()
        else:
            world.run_out()
        if rng.random() < 0.3:
            world.again()

    def move(self) -> None:
        """One step: a choice of what can happen now."""
        rng, world = self.rng, self.world
        if rng.random() < 0.6:
            self.time_passes()
        weights = {"answer": 20, "answer_some": 6}
        if world.admitted and not world.closed:
            weights["arrive"] = 14
        if not world.closed:
            weights |= {"pause": 1, "close": 0.3, "threshold": 0.7}
        if world.cancelled & world.live.keys():
            weights["skip"] = 6
        if world.core.wake_ns is not None:
            weights["wake"] = 4
        if self.rough:
            weights |= {
                "fail": 4,
                "unread": 4,
                "silence": self.silence_weight,
                "lose": 0.7,
                "unfit": 0.4,
                "stop": 0.15,
            }
        getattr(self, rng.choices([*weights], [*weights.values()])[0])()

    def step(self, *events: ev.Event) -> None:
        """Hand events over, with the times at which messages left before."""
        world, rng = self.world, self.rng
        if self.untold and rng.random() < 0.8:
            told = [each for each in self.untold if each[0] in world.live]
            self.untold.clear()
            if told:
                tasks = [task for task, _ in told]
                encode = [rng.choice([0, 3]) for _ in told]
                events = (ev.Left(tasks, max(at for _, at in told), encode), *events)
        before = len(world.sent)
        world.step(*events)
        self.untold += [(task, world.now_ns) for task in list(world.sent)[before:]]

    def time_passes(self) -> None:
        world = self.world
        later = world.now_ns + self.rng.choice([0, MS, 3 * MS, 15 * MS])
        wake_ns = world.core.wake_ns
        if wake_ns is None or later < wake_ns or self.rng.random() < 0.2:
            world.now_ns = later

    # ---- what can happen ----------------------------------------------------

    def arrive(self) -> None:
        world, rng = self.world, self.rng
        count = world.admitted if rng.random() < 0.5 else rng.randint(1, world.admitted)
        some = [place for place in range(count) if rng.random() < 0.4]
        drawn = some if self.audits and world.cascade else None
        bad = {p: f"row {p} is bad" for p in range(count) if self.rough and rng.random() < 0.03}
        ago = [rng.choice([0, 0, 30 * MS]) for _ in range(count)]
        t0_ns = np.array([max(0, world.now_ns - each) for each in ago], np.int64)
        if rng.random() < 0.5:
            t0_ns = world.now_ns
        skip = rng.choice([0] * 9 + [1, 3])
        world.arrive(count, drawn=drawn, faults=bad, t0_ns=t0_ns, skip=skip, labels=count % 3 > 0)

    def end_of(self, task: int) -> ev.Event:
        """An answer of the task: of a calm play all cells are there."""
        world, rng = self.world, self.rng
        sent = self.world.live[task]
        if task in world.cancelled and rng.random() < 0.5:
            return ev.Skipped(task, sent.rank)
        cells = {}
        for image in sent.images:
            state = PRESENT
            if self.rough and rng.random() < 0.1:
                state = rng.choice([ABSENT, UNREAD, BAD_ROW])
            label, score = rng.randrange(10), rng.choice([0.3, 0.75, 0.95, 1.0])
            also = rng.choice([0, 0, 9])
            if self.wrong is not None and not (sent.rank == self.wrong and rng.random() < 0.3):
                label, score, also = image % 7, 0.5 + image % 5 / 10, 0
            cells[image] = label, score, state, also
        at_ns = max(0, world.now_ns - MS) if rng.random() < 0.1 else 0
        took_ns = self.speed[sent.rank] * rng.choice([4, 5, 9]) * MS
        return world.answered(task, cells, compute_ns=took_ns, at_ns=at_ns)

    def answer(self) -> None:
        """A message is answered as a whole, and sometimes others with it."""
        world, rng = self.world, self.rng
        events: list[ev.Event] = []
        for _ in range(rng.choice([1, 1, 1, 2])):
            there = {world.live[task].message for task in world.live}
            if there:
                chosen = world.messages[rng.choice(sorted(there))]
                done = {each for e in events for each in getattr(e, "tasks", None) or [e.task]}
                events += [self.end_of(t) for t in chosen if t in world.live and t not in done]
        if events:
            self.step(*events)

    def answer_some(self) -> None:
        if self.world.live:
            self.step(self.end_of(self.rng.choice(sorted(self.world.live))))

    def fail(self) -> None:
        if self.world.live:
            task = self.rng.choice(sorted(self.world.live))
            chosen = self.world.messages[self.world.live[task].message]
            whole = self.rng.random() < 0.5
            tasks = [t for t in chosen if t in self.world.live] if whole else [task]
            self.step(*(self.world.failed(t) for t in tasks))

    def unread(self) -> None:
        """A host cannot read some images, so the task fails."""
        if self.world.live:
            task = self.rng.choice(sorted(self.world.live))
            images = self.world.live[task].images
            states = [self.rng.choice([ABSENT, UNREAD, BAD_ROW]) for _ in images]
            self.step(self.world.failed(task, *states))

    def skip(self) -> None:
        task = self.rng.choice(sorted(self.world.cancelled & self.world.live.keys()))
        self.step(ev.Skipped(task, self.world.live[task].rank))

    def wake(self) -> None:
        self.world.wake()

    def silence(self) -> None:
        owing = sorted({sent.rank for sent in self.world.live.values()})
        rank = self.rng.choice(owing or [1])
        self.step(ev.RankSilent(rank, "no answer"))

    def lose(self) -> None:
        self.step(ev.RankLost(self.rng.choice([*self.world.kinds]), "killed"))

    def unfit(self) -> None:
        """A rank can no longer answer first; mostly the exact network stays."""
        rank = self.rng.choice([*self.world.kinds])
        spared = self.world.scheme.main if self.rng.random() < 0.8 else None
        for kind in sorted(self.world.kinds[rank] - {spared}):
            self.step(ev.RankUnfit(rank, kind))

    def pause(self) -> None:
        self.step(ev.InputPaused())

    def close(self) -> None:
        self.step(ev.InputClosed())

    def stop(self) -> None:
        self.step(ev.StopRequested("asked to"))

    def threshold(self) -> None:
        least = self.rng.choice([0.4, 0.9, 0.97, None])
        kinds = [kind for kind in self.world.policies if self.rng.random() < 0.7]
        self.step(ev.Stages(kinds, least))


def shown(event: ev.Event) -> str:
    """The event in a short line."""
    fields = event._asdict()
    if "images" in fields:
        fields["images"] = len(fields["images"])
    if "cells" in fields:
        fields["cells"] = [cell[:3] for cell in fields["cells"].tolist()]
    return f"{type(event).__name__} {fields}"


def play(seed: int, steps: int = STEPS, show: bool = False) -> World:
    """The world after a play. In every second one slots are so few that they are soon reused."""
    with mock.patch.object(table, "ROOM", 2 if seed % 2 else table.ROOM):
        made = Play(seed, steps)
        try:
            made.run()
        finally:
            if show:
                print(made.world.asked, made.world.settings, made.world.kinds)
                for now_ns, events, told in made.world.log:
                    print(f"{now_ns / MS:g} ms", *map(shown, events), sep="\n    ")
                    print(*told, sep="\n        ")
    return made.world


def defects() -> list[dict[str, str]]:
    """The planted defects: kind, file, before, after."""
    return tomllib.loads(Path(__file__).with_name("core_planted.toml").read_text())["defect"]


def planted(plays: int) -> bool:
    """Plant each defect in a copy of the package, and play; whether all of them are found."""
    found = 0
    for defect in defects():
        with tempfile.TemporaryDirectory() as folder:
            shutil.copytree(CORE.parent, Path(folder, "collage_mpi"))
            file = Path(folder, "collage_mpi", "core", defect["file"])
            text = file.read_text()
            assert text.count(defect["before"]) == 1, f"it has no place any more: {defect['kind']}"
            file.write_text(text.replace(defect["before"], defect["after"]))
            command = [sys.executable, __file__, "--plays", str(plays), "--most", "1"]
            env = os.environ | {"PYTHONPATH": folder}
            done = subprocess.run(command, env=env, stdout=subprocess.PIPE, text=True, check=False)
        found += done.returncode == 1
        print(f"{defect['kind']}\n    {done.stdout.splitlines()[0]}", flush=True)
    print(f"{found} of {len(defects())} found")
    return found == len(defects())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--plays", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1, help="of the first play")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--most", type=int, default=10, help="stop after so many failures")
    parser.add_argument("--show", action="store_true", help="print the events and actions")
    parser.add_argument("--planted", action="store_true", help="look for the planted defects")
    given = parser.parse_args()
    if given.planted:
        sys.exit(not planted(given.plays))
    failed = []
    for seed in range(given.seed, given.seed + given.plays):
        try:
            play(seed, given.steps, given.show)
        except Exception as fault:
            failed.append(seed)
            at = traceback.extract_tb(fault.__traceback__)[-1]
            print(f"seed {seed}: {type(fault).__name__} {fault} ({at.name}, line {at.lineno})")
            if given.show:
                traceback.print_exc()
        if len(failed) >= given.most:
            break
    print(f"{seed - given.seed + 1} plays, {len(failed)} failed")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
