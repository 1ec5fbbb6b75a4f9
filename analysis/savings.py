"""The savings of networks that are asked first, from their answers to the test images.

    python analysis/savings.py    # seconds; needs no data set and no network's call

For each file of `evaluate --save-answers` in a folder: the threshold that `weights threshold`
chooses by these answers, what it does to them, and the saving, as a table in Markdown. The ratios
of service times are those of ratios.csv there, in float32 and in bfloat16: of a collage, or of a
quick network's batch of as many images, over the single network's for an image. The answers of
analysis/answers are float32, those of its folders photographs and cifar10 are bfloat16, as ranks
answer there.

With `--samples 200` the table is of that many samples of as many images, drawn with replacement, so
that the answers of the file are the endless population: in how many of them the threshold breaks
the promise, and the savings of the 5th, 50th and 95th percentile.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault
from collage_mpi.kinds import COLLAGE, SINGLE, STAGES
from collage_mpi.rows import PRESENT
from collage_mpi.simulation.simulator import Answers, read_answers
from collage_mpi.training.threshold import TwoStages, saving_of

ANSWERS = Path(__file__).parent / "answers"
PRECISIONS = ("float32", "bfloat16")
AGREES = (0.995, 0.99)
TITLES = ["network", "agree", "score", "sure", "other class", "points", "ratio", "saving"]
SAMPLED = ["network", "agree", "broken", "none proved", "saving, 5 %", "50 %", "95 %"]


def main(words: Sequence[str] | None = None) -> int:
    """Print the table; a mistake is one message and its exit code."""
    parser = argparse.ArgumentParser(prog="savings", description=__doc__.split("\n")[0])
    parser.add_argument("--answers", type=Path, default=ANSWERS, metavar="DIR")
    parser.add_argument("--samples", type=int, default=0, metavar="N")
    args = parser.parse_args(words)
    try:
        rows = [
            row
            for name, ratios in read_ratios(args.answers)
            for row in savings_of(args.answers / f"{name}.npz", name, ratios, args.samples)
        ]
    except CollageError as error:
        print(f"savings: {error}", file=sys.stderr)
        return int(error.exit_code)
    titles = SAMPLED if args.samples else TITLES
    lines = [titles, ["---"] * len(titles), *rows]
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


def savings_of(
    path: Path, name: str, ratios: dict[str, float], samples: int
) -> Iterator[list[str]]:
    """The rows of one network."""
    stages = both(read(path))
    for agree in AGREES:
        if samples:
            yield [f"`{name}`", f"{agree:g}", *sampled(stages, agree, ratios, samples)]
            continue
        confidence = stages.lowest_score(agree)
        if confidence is None:
            raise DataFault(f"answers {path} prove no threshold for {agree:g}")
        at = stages.at(confidence)
        savings = [saving_of(ratios[each], stages.cells, at["share"]) for each in PRECISIONS]
        yield [
            f"`{name}`",
            f"{agree:g}",
            f"{confidence:g}",
            f"{at['share']:.1%}",
            f"{at['changed']:.2%}",
            f"{at['points']:+.2f} ({at['two_errors']:.2f})",
            ", ".join(f"{ratios[each]:.2f}" for each in PRECISIONS),
            ", ".join(f"**{saving:.1f} x**" for saving in savings),
        ]


def sampled(
    stages: TwoStages, agree: float, ratios: dict[str, float], samples: int
) -> Iterator[str]:
    """The last cells of a row about samples: the answers are the population."""
    n, broken, none, savings = len(stages.single), 0, 0, []
    scores = np.where(stages.first["state"] == PRESENT, stages.first["score"], -1.0)
    differs = stages.single["label"] != stages.first["label"]
    for seed in range(samples):
        mine = np.random.default_rng(seed).integers(0, n, n)
        sample = TwoStages(stages.single[mine], stages.first[mine], None, stages.cells)
        confidence = sample.lowest_score(agree)
        none += confidence is None
        counts = scores >= (np.inf if confidence is None else confidence)
        broken += (counts & differs).mean() > 1 - agree
        ratio = ratios["float32"]
        savings.append(max(1.0, saving_of(ratio, stages.cells, float(counts.mean()))))
    yield from (f"{each / samples:.1%}" for each in (broken, none))
    yield from (f"{each:.1f} x" for each in np.quantile(savings, [0.05, 0.5, 0.95]))


def read(path: Path) -> Answers:
    """A file of answers, of the side that it has, with all images. Raises DataFault,
    EnvironmentFault."""
    return read_answers(path, None)


def first_kind(known: Answers) -> str:
    """The kind of the network that is asked first."""
    return STAGES[0] if STAGES[0] in known.known else COLLAGE


def both(known: Answers) -> TwoStages:
    """The answers of both networks."""
    both = (known.known[kind] for kind in (SINGLE, first_kind(known)))
    return TwoStages(*both, np.array(known.labels), known.side**2)


if __name__ == "__main__":
    raise SystemExit(main())
