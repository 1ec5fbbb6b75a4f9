"""In how many jobs `--agree` breaks its bound, by the order of the images.

    python analysis/agree_order.py    # two minutes; needs no data set and no network's call

The jobs are replayed from analysis/answers as in agree_replays.py. The images are shuffled, or
sorted by the single network's class, or each image stands N times in a row, as near-duplicates do
in videos and in bursts of photographs. A bound that holds is broken in at most 5 % of the jobs.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from agree_replays import DRIFTS, Network, read_networks, replay
from savings import ANSWERS, read

JOBS = 500
AGREES = (0.98, 0.99)
COPIES = (3, 9, 30)  # near-duplicates of an image


def reordered(network: Network, order: np.ndarray) -> Network:
    """The network's answers to the images at `order`, (n,) int64."""
    return replace(network, scores=network.scores[order], differs=network.differs[order])


def broken(network: Network, orders: list[np.ndarray], agree: float) -> float:
    """The share of jobs in which more than 1 - agree of the answers changed."""
    jobs = [
        replay(reordered(network, order), agree, 0.0, seed) for seed, order in enumerate(orders)
    ]
    return float(np.mean([job.changed > 1 - agree for job in jobs]))


def main() -> None:
    """Print the table."""
    network = next(each for each in read_networks(ANSWERS) if each.name == DRIFTS)
    n = len(network.scores)
    shuffled = [np.random.default_rng(seed).permutation(n) for seed in range(JOBS)]
    classes = read(ANSWERS / f"{DRIFTS}.npz").known["single"]["label"]
    orders = {
        "shuffled": shuffled,
        "sorted by class": [order[np.argsort(classes[order], kind="stable")] for order in shuffled],
    }
    for copies in COPIES:
        few = [np.repeat(order[: n // copies], copies) for order in shuffled]
        orders[f"each image {copies} times in a row"] = few
    print("| order of the images | " + " | ".join(f"`--agree {a}`" for a in AGREES) + " |")
    print("|---|---|---|")
    for name, each in orders.items():
        shares = [f"{broken(network, each, agree):.1%}" for agree in AGREES]
        print(f"| {name} | {' | '.join(shares)} |")


if __name__ == "__main__":
    main()
