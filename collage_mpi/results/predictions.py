"""What a run without labels found: images a class, how sure, a few of them.

Owns: these numbers of the summary.
Does not know: how they are printed (render). With labels, accuracy says more; a simulated run has
no images of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from collage_mpi.results.manifest import Json
from collage_mpi.results.reader import Run
from collage_mpi.results.tally import Images


def predictions(run: Run, images: Images) -> Json | None:
    """Counts and mean scores a class, and examples from all over the input.

    Returns:
        None where some image has a label, none has an answer, or all is simulated.
    """
    if "simulated" in run.manifest or images.labelled or not images.answered:
        return None
    names = run.manifest.get("class_names") or []
    classes = [
        {
            "class": number,
            "name": class_name(names, number),
            "n": n,
            "share": n / images.answered,
            "mean_score": score / n,
        }
        for number, (n, score) in sorted(images.classes.items())
    ]
    return {
        "n": images.answered,
        "mean_score": sum(score for _, score in images.classes.values()) / images.answered,
        "classes": sorted(classes, key=lambda one: -one["n"]),
        "examples": [_example(run, row, names) for row in images.examples.rows()],
    }


def _example(run: Run, row: Any, names: list[str]) -> Json:
    number, path = int(row["predicted"]), run.manifest["shards"][int(row["shard"])].get("path")
    return {
        "shard": path and Path(path).name,
        "row": int(row["row"]),
        "class": number,
        "name": class_name(names, number),
        "score": float(row["score"]),
    }


def class_name(names: list[str], number: int) -> str | None:
    return names[number] if 0 <= number < len(names) else None
