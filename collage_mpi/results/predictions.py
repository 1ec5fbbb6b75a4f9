"""What a run without labels found: images a class, how sure, a few of them.

Owns: these numbers of the summary.
Does not know: how they are printed (render). With labels, accuracy says more; a simulated run has
no images of its own.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from collage_mpi.results.manifest import Json
from collage_mpi.results.reader import Results

EXAMPLES = 5


def predictions(results: Results) -> Json | None:
    """Counts and mean scores a class, and examples from all over the input.

    Returns:
        None where some image has a label, none has an answer, or all is simulated.
    """
    images = results.images
    answered = images[images["answered"]]
    simulated = "simulated" in results.manifest
    if simulated or images["has_label"].any() or not len(answered):
        return None
    names = results.manifest.get("class_names") or []
    numbers, inverse, counts = np.unique(
        answered["predicted"], return_inverse=True, return_counts=True
    )
    means = np.bincount(inverse, answered["score"]) / counts
    classes = [
        {
            "class": number,
            "name": _name(names, number),
            "n": count,
            "share": count / len(answered),
            "mean_score": mean,
        }
        for number, count, mean in zip(
            numbers.tolist(), counts.tolist(), means.tolist(), strict=True
        )
    ]
    return {
        "n": len(answered),
        "mean_score": float(answered["score"].mean()),
        "classes": sorted(classes, key=lambda one: -one["n"]),
        "examples": _examples(results, answered, names),
    }


def _examples(results: Results, answered: np.ndarray, names: list[str]) -> list[Json]:
    order = np.lexsort((answered["row"], answered["shard"]))
    places = np.linspace(0, len(answered) - 1, min(EXAMPLES, len(answered))).astype(int)
    paths = [shard.get("path") for shard in results.manifest["shards"]]
    found = []
    for row in answered[order[places]]:
        number, path = int(row["predicted"]), paths[int(row["shard"])]
        found.append(
            {
                "shard": path and Path(path).name,
                "row": int(row["row"]),
                "class": number,
                "name": _name(names, number),
                "score": float(row["score"]),
            }
        )
    return found


def _name(names: list[str], number: int) -> str | None:
    return names[number] if 0 <= number < len(names) else None
