"""One batch at a time beside two, of which a GPU computes one while the rank unpacks and packs.

Owns: the messages, the clock. What a worker does with a message without MPI: unpack the tasks,
begin on them, finish, pack the answers. One and two slots take turns.

    python analysis/two_slots.py --device cuda      # needs collage-mpi[vision]; half a minute
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from preset_speed import REFERENCE_PX, predictor_of

from collage_mpi.core.work import FIRST, Message, Task
from collage_mpi.job.networks import result_of
from collage_mpi.kinds import SINGLE
from collage_mpi.models.architecture import REFERENCE_BACKBONES, Backbone
from collage_mpi.models.info import MOST_BEGUN, PLAIN, Answer, Computation, Predictor
from collage_mpi.mpi.answers import pack_results
from collage_mpi.mpi.tasks import ITEM, WireTask, pack_tasks, task_message_bytes, unpack_tasks

SHAPE = (REFERENCE_PX, REFERENCE_PX, 3)
TUNINGS = {
    "cpu": PLAIN,
    "cuda": replace(PLAIN, precision="float16"),
}
REPEATS = 3


def message_of(batch: int) -> np.ndarray:
    """A task of so many images, as rank 0 sends it."""
    places = np.arange(batch)
    task = Task(0, 1, FIRST[SINGLE], places, places, None, Message(1, batch), 0)
    items = np.array([(0, 0, batch)], ITEM).tobytes()
    pixels = list(np.random.default_rng(0).integers(0, 256, (batch, *SHAPE), np.uint8))
    out = np.empty(task_message_bytes(1, batch, batch * pixels[0].nbytes), np.uint8)
    pack_tasks(out, 1, [task], [items], pixels)
    return out


def images_per_s(predictor: Predictor, message: np.ndarray, calls: int, slots: int) -> float:
    """The rate over so many messages, with so many slots."""
    room = np.empty(1 << 20, np.uint8)
    begun: deque[tuple[WireTask, Computation[Answer]]] = deque()
    images = 0

    def answer() -> None:
        task, computation = begun.popleft()
        scores, _ = computation.finish()
        pack_results(room, 1, [result_of(task, scores)])

    start_ns = time.perf_counter_ns()
    for _ in range(calls):
        (task,), payload = unpack_tasks(message)
        begun.append((task, predictor.begin(payload.reshape(-1, *SHAPE))))
        images += len(task.items)
        if len(begun) == slots:
            answer()
    while begun:
        answer()
    return images / (time.perf_counter_ns() - start_ns) * 1e9


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=list(TUNINGS), default="cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--calls", type=int, default=100)
    args = parser.parse_args()
    torch.set_num_threads(1)
    tuning, network = TUNINGS[args.device], Backbone(REFERENCE_BACKBONES["single"])
    print(f"ResNet-34 at {REFERENCE_PX} px, {tuning}; images a second, the best of {REPEATS}")
    print(f"{'batch':>5} {'one slot':>10} {'two slots':>10}")
    with tempfile.TemporaryDirectory() as folder:
        predictor = predictor_of(Path(folder), network, SHAPE, None, tuning, args.device)
        for batch in args.batches:
            message = message_of(batch)
            found: dict[int, list[float]] = {1: [], MOST_BEGUN: []}
            for slots in [*found] * (1 + REPEATS):
                found[slots].append(images_per_s(predictor, message, args.calls, slots))
            one, two = (max(rates[1:]) for rates in found.values())  # the first ones warm up
            print(f"{batch:>5} {one:>10,.0f} {two:>10,.0f}", flush=True)


if __name__ == "__main__":
    main()
