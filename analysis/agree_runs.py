"""Real jobs with `--agree`, each answer compared with the single network's; spoiled networks too.

    python analysis/agree_runs.py --out runs/agree --page analysis/reports/cascade.md

Five jobs with networks that come with the package, and three whose collage network is spoiled on
purpose, over Fashion-MNIST's 10,000 test images on two worker ranks. A job of scheme `none` says
what the single network answers. The exit code is 1 if a job changed more answers than it may, or
did not notice what is wrong. Jobs that are complete in OUT are not run again. Some three minutes on
two idle cores. `--times 10` repeats the images, each time in another order.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
from agree_replays import table
from cascade_cells import CLASSES, DATA, SINGLE, test_images
from peers.page import write_into
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from collage_mpi import kinds
from collage_mpi.models import load_predictor
from collage_mpi.models.weights import describe_weights
from collage_mpi.results import MARKER, Results, read_results
from collage_mpi.results.statistics import differing_interval
from collage_mpi.rows import AUDIT_CODE, SOURCE_CODE
from collage_mpi.shards import write_shard
from collage_mpi.system.fields import with_shipped

IMAGES, CELLS, WORKERS = 10_000, 9, 2
RANDOM = "random.safetensors"
SHIPPED = "shipped:fashion_collage_{}.safetensors"
BALANCED = SHIPPED.format("side3_balanced")
TITLES = [
    "network",
    "`--agree`",
    "`--audit`",
    "threshold",
    "answered by a collage",
    "answers changed",
]
TITLES += ["accuracy (`none`)", "audited, differing", "95 % interval of what differs, points"]


@dataclass(frozen=True)
class Case:
    """A job.

    Attributes:
        name: in the table.
        agree: what is asked for; None for scheme `none`.
        network: weights of the collage network, a file that the folder is to have, or a function
            of this file.
        teams: of one worker each.
        audit: share of images that are audited.
        wanted: what makes the job a good one: that the bound is kept, that the spoiled network is
            noticed, or neither.
    """

    name: str
    agree: float | None = None
    network: str = BALANCED
    teams: int = 1
    audit: float = 0.01
    wanted: str = "bound"


CASES = [
    Case("none"),
    *(Case("side3_balanced", agree) for agree in (0.98, 0.99, 0.995)),
    Case("side3", 0.99, SHIPPED.format("side3")),
    Case("side5, two teams", 0.99, SHIPPED.format("side5"), teams=2),
    Case("balanced, random weights", 0.98, RANDOM, wanted="notice"),
    Case("balanced, a class lost", 0.98, f"{__file__}:lost", wanted="notice"),
    Case("balanced, drifts", 0.98, f"{__file__}:drift", wanted="either"),  # 62 audits are few
    Case("balanced, drifts", 0.98, f"{__file__}:drift", audit=0.05, wanted="notice"),
]


class Spoiled:
    """The balanced collage network, with answers that `spoil` makes wrong.

    `spoil` takes scores, (n, cells, classes) float32, and changes them; the generator; and how many
    collages came before them.
    """

    def __init__(self, spoil: Callable[[np.ndarray, np.random.Generator, int], None]) -> None:
        self._inner = load_predictor(with_shipped(BALANCED), kinds.COLLAGE)
        self.fingerprint, self._spoil, self._rng = spoil.__name__, spoil, np.random.default_rng(0)
        self._collages = 0

    def predict(self, batch: np.ndarray) -> np.ndarray:
        """(n, cells, classes) float32."""
        scores = self._inner.predict(batch)
        self._spoil(scores, self._rng, self._collages)
        self._collages += len(batch)
        return scores


def lost(**_: Any) -> Spoiled:
    """What was class 3 is class 0, as surely as before."""

    def lose(scores: np.ndarray, *_: Any) -> None:
        scores[..., 0] += scores[..., 3]
        scores[..., 3] = 0

    return Spoiled(lose)


def drift(**_: Any) -> Spoiled:
    """After a third of 10,000 images one cell in six names the next class, as surely as before."""

    def turn(scores: np.ndarray, rng: np.random.Generator, collages: int) -> None:
        if collages > IMAGES / CELLS / WORKERS / 3:
            wrong = rng.random(scores.shape[:-1]) < 1 / 6
            scores[wrong] = np.roll(scores[wrong], 1, axis=-1)

    return Spoiled(turn)


def write_random(path: Path) -> None:
    """The balanced network's file with the weights of each layer in random order."""
    rng, source = np.random.default_rng(0), with_shipped(BALANCED)
    with safe_open(source, "np") as file:
        metadata = file.metadata()
    tensors = load_file(source)
    for name, tensor in tensors.items():
        tensors[name] = rng.permutation(tensor.ravel()).reshape(tensor.shape)
    save_file(tensors, path, metadata=metadata)


def prepare(out: Path, data: Path, times: int) -> Path:
    """The shard: the test images, `times` over, each time in another order."""
    out.mkdir(parents=True, exist_ok=True)
    write_random(out / RANDOM)
    shard = out / f"images_{times}.h5"
    if not shard.exists():
        images, labels = test_images(data)
        rng, n = np.random.default_rng(0), len(images)
        orders = [np.arange(n), *(rng.permutation(n) for _ in range(times - 1))]
        rows = np.concatenate(orders)
        names = CLASSES.read_text().splitlines()
        write_shard(shard, images[rows], labels[rows], class_names=names)
    return shard


def flags_of(case: Case, out: Path) -> list[str]:
    """Of the job."""
    words = ["--single", SINGLE]
    if case.agree is None:
        return [*words, "--scheme", "none", "--singles", str(WORKERS)]
    network = str(out / case.network) if case.network == RANDOM else case.network
    info = describe_weights(with_shipped(BALANCED if ".py:" in network else network))
    words += ["--scheme", "cascade", "--agree", str(case.agree), "--teams", str(case.teams)]
    words += ["--collage", network, "--side", str(info.side), "--audit", str(case.audit)]
    return [*words, "--cell-px", str(info.cell_px)] if ".py:" in network else words


def run(case: Case, out: Path, shard: Path) -> Results:
    """One job, unless it is complete already."""
    folder = out / f"{case.name} {case.agree} {case.audit} {shard.stem}".replace(" ", "_")
    if not (folder / MARKER).exists():
        words = ["launch", "-n", str(WORKERS + case.teams), "--", "run", "--out", str(folder)]
        words += ["--shards", str(shard), *flags_of(case, out)]
        done = subprocess.run([sys.executable, "-m", "collage_mpi", *words], stdout=sys.stderr)
        if done.returncode:
            raise SystemExit(f"the job of {case.name} ended with code {done.returncode}")
    return read_results(folder)


def row_of(case: Case, run: Results, alone: Results) -> tuple[list[str], bool]:
    """A row of the table; whether the job kept its bound, or noticed the spoiled network."""
    mine, theirs = (np.sort(each.images, order="row") for each in (run, alone))
    changed = float((mine["predicted"] != theirs["predicted"]).mean())
    accepted = mine["source"] == SOURCE_CODE[kinds.COLLAGE]
    audits = mine[accepted & (mine["audited"] == AUDIT_CODE["done"])]
    differing = int((audits["other"] != audits["predicted"]).sum())
    low, high = (100 * end for end in differing_interval(differing, len(audits)))
    held = [each["confidence"] for each in run.manifest["thresholds"]]
    right = [f"{(each['predicted'] == each['label']).mean():.2%}" for each in (mine, theirs)]
    cells = [case.name, f"{case.agree:g}", f"{case.audit:.0%}"]
    cells += [", then ".join("`none`" if each is None else f"{each:g}" for each in held)]
    cells += [f"{accepted.mean():.1%}", f"{changed:.2%}", f"{right[0]} ({right[1]})"]
    cells += [f"{len(audits):,}, {differing:,}", f"{low:.2f} to {high:.2f}"]
    good = {
        "bound": changed <= 1 - (case.agree or 0),
        "notice": len(held) > 1 or held == [None],
        "either": True,
    }
    return cells, good[case.wanted]


def main(words: Sequence[str] | None = None) -> int:
    """The jobs one after the other, then the table."""
    parser = argparse.ArgumentParser(prog="agree_runs", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the runs")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data set's files")
    parser.add_argument("--times", type=int, default=1, help="repeat the images")
    parser.add_argument("--page", type=Path, help="write the table into this page")
    args = parser.parse_args(words)
    shard = prepare(args.out, args.data, args.times)
    runs = {case: run(case, args.out, shard) for case in CASES}
    alone = runs.pop(CASES[0])
    rows = [row_of(case, each, alone) for case, each in runs.items()]
    text = f"{table(TITLES, (cells for cells, _ in rows))}\n\n{date.today()}."
    print(text)
    if args.page:
        write_into(args.page, f"agree runs, {args.times}", text)
    return 0 if all(good for _, good in rows) else 1


if __name__ == "__main__":
    raise SystemExit(main())
