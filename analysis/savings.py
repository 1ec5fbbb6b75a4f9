"""The savings of networks that are asked first, from their answers to the 10,000 test images.

    python analysis/savings.py    # a second; needs no data set and no network's call

For each file of `evaluate --save-answers` in analysis/answers: the saving at the threshold that
`weights threshold` finds by these answers, and at no loss (`collage_mpi.training.threshold`), as a
table in Markdown. The ratios of service times are those of
analysis/answers/ratios.csv, in float32 and in bfloat16: of a collage, or of a quick network's batch
of as many images, over the single network's for an image. The answers of analysis/answers are
float32, those of its folders photographs and cifar10 are bfloat16, as ranks answer there.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault
from collage_mpi.kinds import COLLAGE, SINGLE, STAGES
from collage_mpi.models.architecture import AcceptSpec
from collage_mpi.simulation.simulator import Answers, read_answers
from collage_mpi.system.files import UNREADABLE_OR_GONE
from collage_mpi.training.threshold import (
    TwoStages,
    choose_threshold,
    find_savings,
    saving_of,
)

ANSWERS = Path(__file__).parent / "answers"
PRECISIONS = ("float32", "bfloat16")
TITLES = ["network", "score", "sure cells", "points beside the single", "ratio", "saving"]


def main(words: Sequence[str] | None = None) -> int:
    """Print the table; a mistake is one message and its exit code."""
    parser = argparse.ArgumentParser(prog="savings", description=__doc__.split("\n")[0])
    parser.add_argument("--answers", type=Path, default=ANSWERS, metavar="DIR")
    args = parser.parse_args(words)
    try:
        rows = [
            row
            for name, ratios in read_ratios(args.answers)
            for row in savings_of(args.answers / f"{name}.npz", name, ratios)
        ]
    except CollageError as error:
        print(f"savings: {error}", file=sys.stderr)
        return int(error.exit_code)
    lines = [TITLES, ["---"] * len(TITLES), *rows]
    print("\n".join(f"| {' | '.join(line)} |" for line in lines))
    return 0


def read_ratios(folder: Path) -> Iterator[tuple[str, dict[str, float]]]:
    """(network, precision -> time of a collage over an image's by the single network)."""
    path = folder / "ratios.csv"
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                yield row["network"], {name: float(row[name]) for name in PRECISIONS}
    except OSError as error:
        raise EnvironmentFault(f"{path} cannot be read: {error.strerror or error}") from error
    except (KeyError, ValueError, TypeError) as error:
        raise DataFault(
            f"{path}: needed are a header network,{','.join(PRECISIONS)} and a number for each"
        ) from error


def savings_of(path: Path, name: str, ratios: dict[str, float]) -> list[list[str]]:
    """The rows of one network."""
    known = read(path)
    side = known.side
    found = find_savings(both(known, side), ratios["float32"], threshold(known, side))
    if found is None:
        raise DataFault(f"answers {path} has too few images for a saving")
    points = {"chosen": found["at_threshold"], "no loss": found["no_loss"]}
    return [
        [f"`{name}`", *row(at, which, side, ratios)]
        for which, at in points.items()
        if at is not None
    ]


def read(path: Path) -> Answers:
    """A file of answers, of the side that it has. Raises DataFault, EnvironmentFault."""
    try:
        with np.load(path, allow_pickle=False) as file:
            side = int(file["side"])
    except UNREADABLE_OR_GONE as error:
        raise DataFault(f"answers {path} cannot be read: {error}") from error
    return read_answers(path, side)


def first_kind(known: Answers) -> str:
    """The kind of the network that is asked first."""
    return STAGES[0] if STAGES[0] in known.known else COLLAGE


def both(known: Answers, side: int) -> TwoStages:
    both = (known.known[kind] for kind in (SINGLE, first_kind(known)))
    return TwoStages(*both, np.array(known.labels), side**2)


def threshold(known: Answers, side: int) -> AcceptSpec:
    """The score from which on the answers count, chosen on every second group.

    Args:
        known: the answers of both networks.
        side: cells along an edge of a collage, or the square root of a batch's images.
    """
    return choose_threshold(both(known, side), "")


def row(at: dict[str, Any], which: str, side: int, ratios: dict[str, float]) -> list[str]:
    """A threshold and what comes of it; both precisions in one entry."""
    both = [saving_of(ratios[name], side**2, at["share"]) for name in PRECISIONS]
    return [
        f"{at['confidence']:g}, {which}",
        f"{at['share']:.1%}",
        f"{at['points']:+.2f} ({at['two_errors']:.2f})",
        ", ".join(f"{ratios[name]:.2f}" for name in PRECISIONS),
        ", ".join(f"**{saving:.1f} x**" for saving in both),
    ]


if __name__ == "__main__":
    raise SystemExit(main())
