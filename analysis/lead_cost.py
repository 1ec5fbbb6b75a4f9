"""What the lead of several teams does beside its own images, timed.

    python analysis/lead_cost.py                          # 64 teams that are played, without MPI
    mpiexec -n 16 python analysis/lead_cost.py run --teams 4 --singles 2 --single null \\
        --collage null --shards SHARD --out OUT           # in a real job

It counts CPU time on rank 0: of each kind of message, of leases, of looks and, in a thread of its
own, of the parts that are published. What a counted call calls that is counted, too, counts only
there. The figures are in analysis/reports/teams.md.

Owns: played teams, which begin their leases, report parts and give signs of life as real ones do.
MPI takes 4 to 5 us a message more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from collage_mpi.cli import main
from collage_mpi.faults.failure_detector import FailureDetector
from collage_mpi.job import messages
from collage_mpi.job.lead import LARGEST_LEASE, Lead, LeadSettings
from collage_mpi.job.leases import LeaseBook, LeaseSettings
from collage_mpi.job.messages import Begun, Close, Done, Idle, Lease, Message, Part, Pause
from collage_mpi.job.team import ALIVE_EVERY_NS
from collage_mpi.mpi.protocol import CONTROL_BYTES
from collage_mpi.mpi.transport import Received
from collage_mpi.results import PARTS_FOLDER, PENDING_FOLDER
from collage_mpi.results.claim import PATIENT, Claim
from collage_mpi.results.parts import part_path
from collage_mpi.results.pending import Publisher
from collage_mpi.results.row_sink import ROWS_PER_PART
from collage_mpi.rows import IMAGES, TASKS
from collage_mpi.shards.order import ranges_of

SPENT_NS: Counter[str] = Counter()
TIMES: Counter[str] = Counter()
LOCAL = threading.local()  # .inner_ns: spent in what a call has called and is counted apart
HEARD, THREAD = "any message heard", "publish (in its thread)"
GROUP, TURN_NS, SERVICE_MS = 9, 1_000_000, 5


def timed(of: Any, method: str, name: Callable[..., str]) -> None:
    """Add up the CPU of the thread in a call, by the name of the call."""
    inner = getattr(of, method)

    def outer(*args: Any) -> Any:
        before, LOCAL.inner_ns = getattr(LOCAL, "inner_ns", 0), 0
        start_ns = time.thread_time_ns()
        found = inner(*args)
        spent_ns = time.thread_time_ns() - start_ns
        kind = name(found, *args)
        SPENT_NS[kind] += spent_ns - LOCAL.inner_ns
        TIMES[kind] += 1
        LOCAL.inner_ns = before + spent_ns
        return found

    setattr(of, method, outer)


def time_the_lead() -> None:
    """Count from now on."""
    timed(Lead, "look", lambda found, lead: "look")
    timed(Lead, "_grant", lambda found, lead: "whom to grant a lease")
    timed(Lead, "_hear", lambda found, *of: HEARD)
    timed(Lead, "_take", lambda found, lead, team, said: f"{type(said).__name__} acted upon")
    timed(Lead, "_tell", lambda found, lead, team, said: f"{type(said).__name__} sent")
    timed(LeaseBook, "grant", lambda found, *of: "grant")
    timed(messages, "unpack", lambda found, *of: f"{type(found).__name__} unpacked")
    timed(Publisher, "_fault_of", lambda found, *of: THREAD)


def report() -> None:
    """Print a line a kind, and what `team_model.LeadCosts` is told."""
    for kind, times in sorted(TIMES.items()):
        print(f"lead: {kind}: {times:,} of {SPENT_NS[kind] / times / 1e3:.1f} us CPU")

    heard_us = SPENT_NS[HEARD] / max(1, TIMES[HEARD]) / 1e3

    def us(number: int, *kinds: str) -> float:
        return heard_us + sum(SPENT_NS[kind] for kind in kinds) / max(1, number) / 1e3

    begun = ("Begun unpacked", "Begun acted upon", "whom to grant a lease", "grant", "Lease sent")
    print(
        f"lead: a lease {us(TIMES['grant'], *begun):.1f} us, "
        f"a part {us(TIMES['Part acted upon'], 'Part unpacked', 'Part acted upon', THREAD):.1f}, "
        f"a sign of life {us(TIMES['Progress unpacked'], 'Progress unpacked'):.1f}, "
        f"a look {us(TIMES['look'], 'look') - heard_us:.1f}"
    )


class Played:
    """Another team: its ranks take some images a turn, and it says what teams say.

    Attributes:
        images: done so far.
        done: whether it has ended.
    """

    def __init__(self, number: int, workers: int, pending: Path) -> None:
        self.number, self.images, self.done = number, 0, False
        self._pending, self._speed = pending, workers / SERVICE_MS
        self._room, self._parts, self._held = 0.0, 0, 0
        self._leases: deque[Lease] = deque()  # not begun
        self._places: deque[tuple[int, int]] = deque()  # of the one that is
        self._rows: list[np.ndarray] = []  # places, not in a part yet
        self._last = Lease(-1, 0, 0, ())
        self._told, self._idle = set[type[Message]](), False

    def hear(self, said: Message) -> None:
        """What the lead says."""
        self._told.add(type(said))
        if isinstance(said, Lease):
            self._leases.append(said)
            self._last, self._idle = said, False
            self._told.discard(Pause)

    def turn(self) -> list[Message]:
        """What it says after a further millisecond."""
        said: list[Message] = []
        self._room += self._speed
        while self._room >= 1 and (self._places or self._leases):
            if not self._places:
                lease = self._leases.popleft()
                self._places.extend(messages.unpacked_ranges(lease.places))
                said.append(Begun(lease.number))
            start, stop = self._places.popleft()
            cut = min(stop, start + int(self._room), start + ROWS_PER_PART - self._held)
            if cut < stop:
                self._places.appendleft((cut, stop))
            self._rows.append(np.arange(start, cut))
            self._room, self._held = self._room - (cut - start), self._held + cut - start
            self.images += cut - start
            if self._held == ROWS_PER_PART:
                said += self._written()
        if Pause in self._told and not (self._places or self._leases or self._idle):
            self._idle = True
            said += [*self._written(), Idle(self._last.number)]
        if Close in self._told and not self.done:
            self.done = True
            said.append(Done("complete", "", (), ()))
        return said

    def _written(self) -> list[Message]:
        """Its rows are parts: one of images, one of their tasks."""
        self._parts += 1
        for table in (IMAGES, TASKS):
            part_path(self._pending, table, self.number, self._parts).touch()
        number, epoch = self._parts, self._last.epoch
        places = messages.packed_ranges(ranges_of(np.concatenate([np.arange(0), *self._rows])))
        self._rows, self._held = [], 0
        return [
            Part(IMAGES.name, number, epoch, places),
            Part(TASKS.name, number, epoch, ()),
        ]


def play(teams: int, workers: int, images: int, out: Path) -> None:
    """A job of so many teams of so many ranks, of which each has so many images."""
    for name in (PARTS_FOLDER, PENDING_FOLDER):
        (out / name).mkdir()
    claim, clock = Claim.take(out, PATIENT), SimpleNamespace(now_ns=0)
    played = [Played(number, workers, out / PENDING_FOLDER) for number in range(teams)]
    room, arrivals = np.empty(CONTROL_BYTES, np.uint8), deque[Received]()

    def packed(said: Message) -> np.ndarray:
        return room[: messages.pack(room, 0, said)]

    def tell(rank: int, said: Message) -> None:
        packed(said)
        played[rank].hear(said)

    def poll() -> list[Received]:
        return [arrivals.popleft() for _ in range(len(arrivals))]

    ranks, transport = tuple(range(1, teams)), SimpleNamespace(poll=poll)
    detector = FailureDetector(ranks, 0)
    others = SimpleNamespace(ranks=ranks, detector=detector, transport=transport, tell=tell)
    leases = LeaseSettings(GROUP, 1, -(-workers // GROUP), LARGEST_LEASE // GROUP)
    publisher, told = Publisher(out, {}, claim.check), LeadSettings(0, 60.0)
    book = LeaseBook(leases, images * workers * teams)
    lead = Lead(others, book, publisher, told, lambda: None, lambda: clock.now_ns)  # type: ignore
    lead.begin("run", "order")
    lead.start(messages.Start(1.0, {}, 1, 1 << 16, 1 << 14), {"single": "network"})
    said: list[list[Message]] = [[messages.Ready({"single": "network"})] for _ in played]
    while not all(team.done for team in played):
        clock.now_ns += TURN_NS
        for team, first in zip(played[1:], said[1:], strict=True):
            sign = clock.now_ns % ALIVE_EVERY_NS == 0
            told_now = [messages.Progress(team.images, 0, 0)] if sign else []
            for each in (*first, *told_now, *team.turn()):
                arrivals.append(Received(team.number, packed(each).copy(), clock.now_ns))
            first.clear()
        for each in played[0].turn():
            lead.say(each)
        while (heard := lead.hear()) is not None:
            played[0].hear(heard)
    lead.look()
    publisher.end()
    claim.release()
    assert (lead.finish.status, publisher.fault) == ("complete", None), lead.finish
    report()
    thread_ns = SPENT_NS.pop(THREAD)
    loop, thread = (100 * ns / clock.now_ns for ns in (SPENT_NS.total(), thread_ns))
    print(f"lead: {loop:.1f} % of a core for {clock.now_ns / 1e9:.2f} s, its thread {thread:.1f} %")


if __name__ == "__main__":
    time_the_lead()
    if sys.argv[1:2] == ["run"]:
        code = main(sys.argv[1:])
        if TIMES["look"]:
            report()
        raise SystemExit(code)
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--teams", type=int, default=64)
    parser.add_argument("--workers", type=int, default=63, help="ranks with a network in a team")
    parser.add_argument("--images", type=int, default=200, help="of each of these ranks")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        play(args.teams, args.workers, args.images, Path(folder))
