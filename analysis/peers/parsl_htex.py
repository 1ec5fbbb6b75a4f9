"""Parsl's HighThroughputExecutor on this machine: `python parsl_htex.py ...`."""

from __future__ import annotations

import time

import parsl
from parsl.config import Config
from parsl.executors import HighThroughputExecutor
from parsl.providers import LocalProvider
from work import Images, arguments, chunks, report


@parsl.python_app
def classify(args, pixels, pause_s=0.0):
    import os
    import time

    import work

    time.sleep(pause_s)
    if not hasattr(work, "worker"):
        work.worker = work.Worker(args, int(os.environ["PARSL_WORKER_RANK"]) + 1)
    return work.worker(pixels)


def main() -> None:
    args = arguments()
    images = Images(args)
    executor = HighThroughputExecutor(
        max_workers_per_node=args.workers,
        cores_per_worker=1e-3,
        address="127.0.0.1",
        provider=LocalProvider(init_blocks=1, max_blocks=1),
    )
    with parsl.load(Config(executors=[executor], run_dir="/tmp/parsl-peers", strategy="none")):
        warm = [classify(args, images.chunk(0, 1), 1.0) for _ in range(args.workers)]
        [future.result() for future in warm]
        start_s = time.monotonic()
        futures = [classify(args, images.chunk(*span)) for span in chunks(args)]
        report(args, sum(len(future.result()) for future in futures), start_s)


main()
