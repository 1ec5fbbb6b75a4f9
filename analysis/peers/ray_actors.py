"""Ray actors in a pool, as its manual has it: `python ray_actors.py ...`.

An actor that died is started again, and its task with it; the loopback interface alone is used.
"""

from __future__ import annotations

import local_ray  # before ray, whose settings it makes
import ray
from ray.util import ActorPool
from work import Images, Worker, arguments, chunks, report, start


def main() -> None:
    args = arguments()
    images = Images(args)
    local_ray.begin(args.workers)
    actor = ray.remote(num_cpus=1, max_restarts=2, max_task_retries=2)(Classifier)
    pool = ActorPool([actor.remote(args, number) for number in range(1, args.workers + 1)])
    one = images.task(0, 1)
    list(pool.map_unordered(lambda a, task: a.classify.remote(task), [one] * args.workers))
    start_s = start(args)
    tasks = (images.task(*span) for span in chunks(args))
    report(start_s, pool.map_unordered(lambda a, task: a.classify.remote(task), tasks))


class Classifier:
    def __init__(self, args, number: int) -> None:
        self._worker = Worker(args, number)

    def classify(self, task):
        return self._worker(task)


main()
