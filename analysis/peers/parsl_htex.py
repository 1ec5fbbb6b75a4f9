"""Parsl's HighThroughputExecutor on this machine: `python parsl_htex.py ...`.

A task whose worker died is tried again; the loopback interface alone is used.
"""

from __future__ import annotations

import tempfile

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
from work import Images, arguments, chunks, report, start


@parsl.python_app
def classify(args, task, pause_s=0.0):
    import os
    import time

    import work

    time.sleep(pause_s)
    if not hasattr(work, "worker"):
        work.worker = work.Worker(args, int(os.environ["PARSL_WORKER_RANK"]) + 1)
    return work.worker(task)


def main() -> None:
    args = arguments()
    images = Images(args)
    executor = HighThroughputExecutor(
        max_workers_per_node=args.workers,
        cores_per_worker=1e-3,
        prefetch_capacity=args.workers,  # shared by the workers: none is bound to a slow one
        address="127.0.0.1",
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            executors=[executor], run_dir=folder, strategy="none", retries=2, usage_tracking=0,
            initialize_logging=False,
        )  # fmt: skip
        with parsl.load(config):
            warm = [classify(args, images.task(0, 1), 1.0) for _ in range(args.workers)]
            [future.result() for future in warm]
            start_s = start(args)
            futures = [classify(args, images.task(*span)) for span in chunks(args)]
            report(start_s, (future.result() for future in futures))


main()
