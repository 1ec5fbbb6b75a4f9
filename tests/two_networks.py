"""A cheap and an exact network that write runs in this process, in the place of ranks."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
from rows_by_name import add_image

from collage_mpi.encoding.vectors import KeptColumn, layout_of
from collage_mpi.errors import ExitCode
from collage_mpi.results.sole import SoleWriter
from collage_mpi.shards.order import read_numbers

CLASSES = ["cat", "blank", "dog"]
CHEAP, EXACT = {"single": "cheap", "save": "scores"}, {"single": "exact"}


class Networks:
    """Stands for the ranks: writes the run that `launch` is asked for.

    Attributes:
        scores: (images, 3) float32 of the cheap network; NaN in the first column: no answer.
        labels: (images,) of the exact network; -1: no answer.
        cheap_ms, exact_ms: for each image.
        asked: how often the exact network was asked for each image.
        stop_at: the number of the run that ends early, from 1.
    """

    def __init__(self, scores: np.ndarray, labels: np.ndarray) -> None:
        self.scores, self.labels = scores.astype(np.float32), labels
        self.cheap_ms, self.exact_ms, self.names, self.exact_names = 1, 10, CLASSES, CLASSES
        self.asked: Counter[int] = Counter()
        self.runs: list[str] = []
        self.stop_at, self.stop_code = 0, ExitCode.INCOMPLETE
        self.counts = [len(labels) - 100, 100]

    def launch(self, values: dict) -> int:
        out = Path(values["out"])
        self.runs.append(out.name)
        if len(self.runs) == self.stop_at:
            return self.stop_code
        if (out / "COMPLETE.1").exists():
            return ExitCode.COMPLETE
        cheap = values["single"] == "cheap"
        images, only = len(self.labels), values.get("only")
        some = np.arange(images) if only is None else read_numbers(Path(only), images)
        self._write(out, some, cheap)
        return ExitCode.COMPLETE

    def _write(self, out: Path, some: np.ndarray, cheap: bool) -> None:
        shards = [
            {"path": f"{n}.h5", "fingerprint": f"{n}" * 64, "count": count}
            for n, count in enumerate(self.counts)
        ]
        facts = {"run_id": "r", "shards": shards, "rows": len(some), "order": "file, only some"}
        facts |= {"limit": len(some), "scheme": "none", "side": 3}
        facts |= {"class_names": self.names if cheap else self.exact_names}
        facts |= {"extras": {"top_k": None, "save": "scores"}} if cheap else {}
        writer = SoleWriter(out, facts)
        layout = layout_of([KeptColumn("scores", "<f4", (3,))])
        if cheap:
            writer.keep(layout)
        took_ns = 1_000_000 * (self.cheap_ms if cheap else self.exact_ms)
        for position, image in enumerate(some.tolist()):
            shard = int(image >= self.counts[0])
            row = image - self.counts[0] * shard
            scores, label = self.scores[image], int(self.labels[image])
            good = not np.isnan(scores[0]) if cheap else label >= 0
            self.asked += Counter([] if cheap else [image])
            time = {"t0_ns": position * took_ns, "latency_ns": took_ns}
            given = {
                "answered": good,
                "predicted": int(scores.argmax()) if cheap else max(label, 0),
                "score": float(scores.max()) if cheap and good else 1.0,
            }
            add_image(
                writer,
                scores if cheap and good else None,
                **{"shard": shard, "row": row, "position": position, **time, **given},
                source="single" if good else "error",
                reason="" if good else "cannot be decoded",
            )
        writer.close("complete")
