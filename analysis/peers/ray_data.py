"""Ray Data's `map_batches` with a pool of actors, as its manual has it: `python ray_data.py ...`.

The actors start with the work, so the clock starts with the first batch in an actor.
"""

from __future__ import annotations

import time

import local_ray  # before ray, whose settings it makes
import numpy as np
import ray
from work import Images, Worker, arguments, chunks, next_number, report, start


def main() -> None:
    args = arguments()
    images = Images(args)
    local_ray.begin(args.workers)
    ray.data.DataContext.get_current().enable_progress_bars = False
    if args.source == "workers":
        spans = [{"first": first, "stop": stop} for first, stop in chunks(args)]
        data, batch = ray.data.from_items(spans, override_num_blocks=len(spans)), 1
    else:
        blocks = [images.chunk(*span) for span in chunks(args)]
        data, batch = ray.data.from_numpy(blocks), args.chunk
    done = data.map_batches(
        Classifier,
        fn_constructor_args=(args,),
        batch_size=batch,
        concurrency=args.workers,
        num_cpus=1,
    )
    start(args)
    found = list(done.iter_batches(batch_size=None))
    report(min(x["began"].min() for x in found), (x["classes"] for x in found))


class Classifier:
    def __init__(self, args) -> None:
        self._worker = Worker(args, next_number(args))

    def __call__(self, batch):
        began = time.monotonic()
        named = "first" in batch
        task = np.array([batch["first"][0], batch["stop"][0]]) if named else batch["data"]
        classes = self._worker(task)
        return {"classes": classes, "began": np.full(len(classes), began)}


main()
