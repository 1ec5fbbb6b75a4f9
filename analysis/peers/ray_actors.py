"""Ray actors in a pool, as its manual has it: `python ray_actors.py ...`."""

from __future__ import annotations

import time

import ray
from ray.util import ActorPool
from work import Images, Worker, arguments, chunks, report


def main() -> None:
    args = arguments()
    images = Images(args)
    ray.init(num_cpus=args.workers, include_dashboard=False, log_to_driver=False)
    actor = ray.remote(num_cpus=1)(Classifier)
    pool = ActorPool([actor.remote(args, number) for number in range(1, args.workers + 1)])
    one = images.chunk(0, 1)
    list(pool.map_unordered(lambda a, pixels: a.classify.remote(pixels), [one] * args.workers))
    start_s = time.monotonic()
    spans = (images.chunk(*span) for span in chunks(args))
    found = pool.map_unordered(lambda a, pixels: a.classify.remote(pixels), spans)
    report(args, sum(map(len, found)), start_s)


class Classifier:
    def __init__(self, args, number: int) -> None:
        self._worker = Worker(args, number)

    def classify(self, pixels):
        return self._worker(pixels)


main()
