"""What a cascade's threshold gains and costs, over the draw of the half that chooses it.

    python analysis/half_draws.py    # half a minute; needs no data set and no network's call

A threshold is chosen on one half of the groups and measured on the other half. Which half chooses
is drawn 400 times, for each file in analysis/answers, with one and with two standard errors added
to the loss. The table has the middle of the savings and their range from the 5th to the 95th
percentile, with 1 % of the accepted answers audited, and the share of draws in which the other half
loses more accuracy than the 0.1 points that the threshold may cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from savings import ANSWERS, both, read, read_ratios

from collage_mpi.training.threshold import MOST_POINTS, Aim, TwoStages, saving_of

DRAWS = 400
AUDITED = 0.01  # the share of accepted answers that the single network checks
FOLDERS = (ANSWERS, ANSWERS / "photographs", ANSWERS / "cifar10")


def drawn(stages: TwoStages, errors: float) -> Iterator[tuple[float | None, np.ndarray]]:
    """For each draw: the threshold (None if no score passes), and (n,) bool, what measures it."""
    groups = np.arange(len(stages.labels)) // stages.cells
    for seed in range(DRAWS):
        chosen = np.random.default_rng(seed).permutation(groups.max() + 1) % 2 == 0
        stages.__dict__["chooses"] = chosen[groups]  # in the place of every second group
        yield stages.best_score(Aim(errors=errors)), ~stages.chooses


def row(name: str, ratio: float, stages: TwoStages, errors: float) -> str:
    """The table's line of one network and one number of standard errors."""
    savings, lost, broken, refused = [], [], 0, 0
    for confidence, measures in drawn(stages, errors):
        if confidence is None:
            refused += 1
            savings.append(1.0)
            lost.append(0.0)
            continue
        share = float((stages.scores[measures] >= confidence).mean())
        points = stages.points(confidence, measures)
        broken += points > MOST_POINTS
        savings.append(saving_of(ratio, stages.cells, share * (1 - AUDITED)))
        lost.append(points)
    low, mid, high = np.quantile(savings, [0.05, 0.5, 0.95])
    worst = np.quantile(lost, 0.95)
    return (
        f"| {name} | {errors:g} | {mid:.2f} ({low:.2f}-{high:.2f}) | {-np.median(lost):+.2f} "
        f"({-worst:+.2f}) | {broken / DRAWS:.0%} | {refused / DRAWS:.0%} |"
    )


def main() -> None:
    """Print the table."""
    print("| network | standard errors | saving | points (5 % lose more than) | over 0.1 | none |")
    print("|---|---|---|---|---|---|")
    for folder in FOLDERS:
        for name, ratios in read_ratios(folder):
            known = read(Path(folder) / f"{name}.npz")
            precision = "float32" if folder == ANSWERS else "bfloat16"
            for errors in (1.0, 2.0):
                print(row(name, ratios[precision], both(known, known.side), errors))


if __name__ == "__main__":
    main()
