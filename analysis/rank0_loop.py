"""What rank 0 itself costs: CPU an image of a job whose ranks answer at once, without MPI.

Owns: ranks that answer at the next poll, the sums; table in analysis/reports/benchmarks.md.
MPI's own cost is measured by `bench/round.py` and stands in the manifest of a run.

    python analysis/rank0_loop.py                         # pixels rank0 and workers, batch 1 and 8
    python analysis/rank0_loop.py --pixels workers --batch 1 --profile loop.pstats
    python analysis/rank0_loop.py --pixels workers --batch 8 --px 28 --scheme cascade --unsure 0.2
    python analysis/rank0_loop.py --pixels workers --batch 64 --px 28 --ranks 1024 --repeats 1 \
        --order shuffle:0 --images 10000000 --late 10000 --floats 512       # its memory

The ranks' part is timed apart and taken away. A poll finds one message at most, the dearest case.
CPU time, the least of several runs: other work on the machine changes it less than wall time. With
--profile the Python calls an image are counted, those of the ranks' part too.
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import pstats
import tempfile
import time
from collections import deque
from dataclasses import replace
from pathlib import Path
from resource import RUSAGE_SELF, getrusage
from types import SimpleNamespace

import numpy as np

from collage_mpi.encoding.vectors import KeptColumn
from collage_mpi.faults.failure_detector import FailureDetector
from collage_mpi.job.handshake import task_bytes
from collage_mpi.job.messages import Hello, Start
from collage_mpi.job.plan import make_plan, run_order
from collage_mpi.job.provenance import fixed_facts
from collage_mpi.job.session import Audience, TeamSession
from collage_mpi.job.shared import Share
from collage_mpi.kinds import SINGLE
from collage_mpi.ledger.jobs import register
from collage_mpi.ledger.owner import Owner, join
from collage_mpi.ledger.records import LARGEST_CELL, Run
from collage_mpi.mpi.answers import ANSWERED, Score, WireResult, pack_results
from collage_mpi.mpi.protocol import CANCEL, UP_BYTES, read_header
from collage_mpi.mpi.tasks import WireTask, unpack_tasks
from collage_mpi.mpi.transport import Received
from collage_mpi.results.jobs import entry
from collage_mpi.results.row_sink import RowSink
from collage_mpi.results.status import StatusFiles
from collage_mpi.results.writer import open_folder
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards import write_shard
from collage_mpi.system.progress import NoLines

SESSION = 1
SURE, UNSURE = Score(3, 0.99), Score(3, 0.1)
GOLDEN = 0.6180339887
LATE_NS = 60_000_000_000
RATE = 20_000.0  # images a second that the job expects to do
EVERY_S = 1e9  # seconds between two lines on how it stands: none come
RANKS = 9
IMAGES = 450  # distinct ones, again and again: 68 MB


class Echo:
    """A transport whose ranks answer each message at the next poll but those before it."""

    def __init__(self, unsure: float = 0.0, late: int = 0, floats: int = 0) -> None:
        """`unsure`: share of a collage's cells that have a low score; late, floats: see main."""
        self.ranks_ns = 0  # CPU that the ranks' part took
        self._unsure, self._late, self._floats = unsure, late, floats
        self._answers: deque = deque()
        self._held: deque = deque()  # (when they come, rank, answer)
        self._room, self._out = np.empty(1 << 21, np.uint8), np.empty(1 << 20, np.uint8)

    def buffer(self, nbytes: int) -> np.ndarray:
        return self._room  # what is sent is read at once

    def send_task(self, rank: int, buffer: np.ndarray, nbytes: int) -> None:
        message = buffer[:nbytes]
        if read_header(message).type == CANCEL:
            return
        start_ns = time.thread_time_ns()
        tasks, _ = unpack_tasks(message)
        answer = self.answer(tasks)
        self.ranks_ns += time.thread_time_ns() - start_ns
        if self._late and any(image % self._late == 1 for t in tasks for image, _ in t.items):
            self._held.append((time.monotonic_ns() + LATE_NS, rank, answer))
        else:
            self._answers.append((rank, answer))

    def answer(self, tasks: list[WireTask]) -> np.ndarray:
        results = [
            WireResult(
                t.task,
                ANSWERED,
                compute_ns=9,
                cells=[UNSURE if self._is_unsure(t, i) else SURE for i, _ in t.items],
                vectors=np.zeros((len(t.items), self._floats), "<f4") if self._floats else None,
            )
            for t in tasks
        ]
        return self._out[: pack_results(self._out, SESSION, results)].copy()

    def _is_unsure(self, task: WireTask, image: int) -> bool:
        """Spread over the images, so that collages have different numbers of them."""
        return task.kind != SINGLE and image * GOLDEN % 1 < self._unsure

    def poll(self) -> list[Received]:
        while self._held and self._held[0][0] <= time.monotonic_ns():
            self._answers.append(self._held.popleft()[1:])
        if not self._answers:
            return []
        rank, message = self._answers.popleft()
        return [Received(rank, message, time.monotonic_ns())]

    def expect(self, nbytes: int) -> None:
        """Any message has room."""

    def drop(self, rank: int) -> None:
        raise AssertionError(f"rank {rank} is lost")


def hello(rank: int, kinds: tuple[str, ...], floats: int) -> Hello:
    return Hello(
        host="",
        pid=rank,
        kinds=kinds,
        devices=("cpu",),
        tuning={},
        fingerprints={},
        service_ns={},
        longest_ns=0,
        classes={},
        columns=(KeptColumn("vector", "<f4", (floats,)),) if floats else (),
        cannot_read="",
    )


def cost_us(
    given: dict, images: int, echo: Echo, floats: int, profile: cProfile.Profile | None
) -> tuple[float, float]:
    """(of the process, of the loop's thread) CPU us an image of one run."""
    asked = RunSettings.from_mapping(given)
    now_ns = time.monotonic_ns()
    plan = make_plan(asked, asked.world_size)
    workers = plan.placement.workers
    plan = replace(plan, order=run_order(asked, images))
    found = plan.order.indices
    plan.order.indices = lambda positions: found(positions) % IMAGES  # type: ignore
    kinds = plan.placement.of_rank
    group = SimpleNamespace(
        transport=echo,
        session=SESSION,
        detector=FailureDetector(workers, now_ns),
        present=workers,
        welcome=lambda *told: {rank: hello(rank, kinds[rank], floats) for rank in workers},
        start=lambda *told: None,
        end=lambda: None,
    )
    fixed, name, out = entry(fixed_facts(plan)), "a" * 32, Path(asked.out)
    unit = asked.group_size * asked.batch_size
    store = open_folder(out, shared=False)
    run = join(store, Run(1, 0, images, min(images, LARGEST_CELL), by=name, settings=fixed))
    told = {"session": register(store, name, {}), "owner": name, "run_id": fixed["run_id"]}
    share = Share(Owner(store, run, unit, name=name), unit, RATE)
    rows = RowSink(out, fixed, SESSION, share.wrote)
    files = StatusFiles(out, {**told, "label": "loop", "total": images, "before": 0}, EVERY_S)
    audience = Audience(files, images, lines=NoLines())
    process_ns, thread_ns = time.process_time_ns(), time.thread_time_ns()
    with TeamSession(plan, group, SESSION, audience, lambda: None) as session:
        session.make_ready()
        most = UP_BYTES + asked.batch * floats * 4
        work = (Start({}, {}, 1, task_bytes(plan, session.encoder), most), share, rows)
        finish = profile.runcall(session.work, *work) if profile else session.work(*work)
        thread_ns = time.thread_time_ns() - thread_ns
        process_ns = time.process_time_ns() - process_ns
    ranks_ns = echo.ranks_ns
    share.leave()
    files.end(finish.status)
    plan.shards.close()
    assert finish.status == "complete", finish
    return (process_ns - ranks_ns) / images / 1e3, (thread_ns - ranks_ns) / images / 1e3


def main() -> None:
    """Print a line a case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pixels", nargs="+", default=["rank0", "workers"])
    parser.add_argument("--batch", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--scheme", default="none", help="any: cascade, collage, hedge")
    parser.add_argument("--unsure", type=float, default=0.2, help="share of a collage's cells")
    parser.add_argument("--images", type=int, default=9000, help="a run")
    parser.add_argument("--order", default="file", help="file or shuffle:SEED")
    parser.add_argument("--late", type=int, default=0, help="one image in so many: by a minute")
    parser.add_argument("--floats", type=int, default=0, help="kept of each image")
    parser.add_argument("--px", type=int, default=224)
    parser.add_argument("--ranks", type=int, default=RANKS, help="with a network")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--record", action="store_true", help="as `run --record` does")
    parser.add_argument("--profile", type=Path, help="write that of the loop's last run there")
    args = parser.parse_args()
    common = {"scheme": args.scheme, "single": "null", "depth": 4 * -(-args.ranks // 9)}
    common |= {"singles": args.ranks, "device": "cpu", "status_every_s": EVERY_S}
    common |= {"save": "scores"} if args.floats else {}
    if args.scheme != "none":
        common |= {"singles": args.ranks - 1, "collage_ranks": 1, "collage": "null"}
        common |= {"confidence": 0.5}
    if "hedge" in args.scheme:
        common |= {"deadline_ms": 100.0}
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "images.h5"
        pixels = np.random.default_rng(0).integers(0, 256, (IMAGES, args.px, args.px, 3), np.uint8)
        write_shard(shard, pixels, np.arange(IMAGES) % 10)
        common |= {"shards": (str(shard),), "order": args.order}
        for who, batch in itertools.product(args.pixels, args.batch):
            least = np.full(2, np.inf)
            for i in range(args.repeats):
                own = {"pixels": who, "batch": batch, "out": f"{folder}/{who}-{batch}-{i}"}
                own |= {"record": f"{folder}/record"} if args.record else {}
                profile = cProfile.Profile() if args.profile else None
                echo = Echo(args.unsure, args.late, args.floats)
                found = cost_us({**common, **own}, args.images, echo, args.floats, profile)
                least = np.minimum(least, found)
                if profile:
                    profile.dump_stats(args.profile)
            said = f"pixels {who}, batch {batch}: {least[0]:.1f} us, of it the loop {least[1]:.1f}"
            said += f", memory so far {getrusage(RUSAGE_SELF).ru_maxrss >> 10} MiB"
            if profile:
                said += f", {pstats.Stats(profile).total_calls / args.images:.1f} calls"  # type: ignore
            print(said)


if __name__ == "__main__":
    main()
