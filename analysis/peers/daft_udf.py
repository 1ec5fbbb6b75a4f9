"""Daft with a class in a process for each worker, as its manual has it: `python daft_udf.py ...`.

The processes start with the work, so the clock starts with the first task in one of them.
"""

from __future__ import annotations

import os
import time

os.environ["DO_NOT_TRACK"] = "true"

import daft
from work import Images, Worker, arguments, chunks, next_number, report, start

INTEGERS = daft.DataType.list(daft.DataType.int64())
ANSWER = daft.DataType.struct({"classes": INTEGERS, "began": daft.DataType.float64()})


class Classifier:
    def __init__(self, args) -> None:
        self._worker = Worker(args, next_number(args))

    @daft.method.batch(return_dtype=ANSWER, batch_size=1)
    def classify(self, tasks: daft.Series) -> list[dict[str, object]]:
        began = time.monotonic()
        return [
            {"classes": self._worker(task).tolist(), "began": began} for task in tasks.to_pylist()
        ]


def main() -> None:
    args = arguments()
    images = Images(args)
    tasks = daft.from_pydict({"task": [images.task(*span) for span in chunks(args)]})
    pool = daft.cls(Classifier, cpus=1, use_process=True, max_concurrency=args.workers)(args)
    start(args)
    answers = tasks.select(pool.classify(tasks["task"]).alias("answer")).to_pydict()["answer"]
    report(min(x["began"] for x in answers), [x["classes"] for x in answers])


main()
