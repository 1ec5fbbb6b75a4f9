"""Replays jobs with `--agree` and audits on measured answers, and counts how often they err.

    nice python analysis/agree_replays.py --page analysis/reports/cascade.md

A replay is a job of all images in a file of `evaluate --save-answers`. By its own seed it draws the
images that choose the threshold, and those that are audited. The package's own parts decide
(`job.calibration`, `results.statistics`). No network is called. The exit code is 1 if a share is
above its level of 5 % by more than two standard errors. Some four minutes of CPU time.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from datetime import date
from functools import partial
from itertools import chain, product
from pathlib import Path
from typing import NamedTuple

import numpy as np
from peers.page import write_into
from savings import ANSWERS, PRECISIONS, first_kind, read, read_ratios

from collage_mpi.job.calibration import Asked, Judge, Pair, calibration_first
from collage_mpi.kinds import SINGLE
from collage_mpi.results.number_sets import Draw
from collage_mpi.results.statistics import LEVEL, differing_interval, rules_out, wilson_interval
from collage_mpi.rows import PRESENT
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards.order import Order, Permutation
from collage_mpi.training.threshold import saving_of

AGREES = (0.98, 0.99, 0.995)
FOLDERS = [ANSWERS, ANSWERS / "photographs"]
THRESHOLD = ["network", "`--agree`", "no threshold", "bound broken", "sure cells (10-90 %)"]
THRESHOLD += ["saving of a long job", "saving of this job"]
AUDITS = ["network", "`--agree`", "interval misses", "a fixed interval misses", "raised in vain"]
AUDITS += ["audits", "width, points"]
DRIFT = ["audited", "audits after the drift began", "noticed", "after audits (10-90 %)"]
DRIFTS = "fashion_collage_side3_balanced"
SHARES = (0.01, 0.02, 0.05, 0.1, 0.2)  # of images that are audited, in the table of drift
ROW = np.dtype([("shard", "u4"), ("row", "u8")])


@dataclass(frozen=True)
class Network:
    """What is known of a network that is asked first, for each image.

    Attributes:
        name: of its file of answers.
        side: of its collages; of a quick network the square root of a batch.
        scores: (n,) float64, 0..1; -1 where there is no answer.
        differs: (n,) bool, whether the single network names another class.
        ratios: precision -> service time of a collage over that of an image.
    """

    name: str
    side: int
    scores: np.ndarray
    differs: np.ndarray
    ratios: dict[str, float]


class Outcome(NamedTuple):
    """Of one replay.

    Attributes:
        threshold: None where the job went on as `none`.
        sure: share of all images whose cell counts.
        changed: share of all images whose cell counts and differs.
        audited: accepted answers that were audited.
        width: of the interval after the last of them, 0..1.
        missed: whether the interval left out the full comparison's value at a look or more.
        fixed_missed: the same of an interval that is made for one look.
        raised: whether the threshold rose.
    """

    threshold: float | None
    sure: float = 0.0
    changed: float = 0.0
    audited: int = 0
    width: float = 1.0
    missed: bool = False
    fixed_missed: bool = False
    raised: bool = False


class Job(NamedTuple):
    """A job whose threshold is chosen.

    Attributes:
        judge: has chosen, and takes the audits.
        threshold: None where the job goes on as `none`.
        rest: (k,) int64, the images that did not choose it, in order.
        drawn: of these, the ones that are audited.
    """

    judge: Judge
    threshold: float | None
    rest: np.ndarray
    drawn: np.ndarray


def read_networks(folder: Path) -> list[Network]:
    """Those of ratios.csv in the folder."""
    found = []
    for name, ratios in read_ratios(folder):
        known = read(folder / f"{name}.npz")
        cells = known.known[first_kind(known)]
        present = cells["state"] == PRESENT
        scores = np.where(present, cells["score"].astype(float), -1.0)
        differs = present & (cells["label"] != known.known[SINGLE]["label"])
        found.append(Network(name, known.side, scores, differs, ratios))
    return found


def settings_of(network: Network, agree: float, **more: float) -> RunSettings:
    """Of a job with this network."""
    return RunSettings(scheme="cascade", side=network.side, agree=agree, **more)


def begin(network: Network, agree: float, audit: float, seed: int) -> Job:
    """A job up to its first audit."""
    settings = settings_of(network, agree, audit=audit)
    n = len(network.scores)
    first = settings.calibration_images(n)
    judge = Judge(Asked(settings, n, network.ratios[PRECISIONS[0]]), lambda: (1, 0))
    order = calibration_first(Order(Permutation(n)), first, network.side**2, seed).indices(range(n))
    judge.take(pairs_at(network, order[:first], range(first)))
    judge.verdict()
    rest = order[first:]
    rows = np.zeros(len(rest), ROW)
    rows["row"] = rest
    drawn = rest[Draw(settings.audit_share, seed, ("",)).some(rows)]
    return Job(judge, judge.held[-1].confidence, rest, drawn)


def replay(network: Network, agree: float, audit: float, seed: int) -> Outcome:
    """One job: a threshold is chosen, and accepted answers are audited."""
    judge, threshold, rest, drawn = begin(network, agree, audit, seed)
    if threshold is None:
        return Outcome(None)
    differs, counts = network.differs, network.scores >= threshold
    accepted = drawn[counts[drawn]]
    truth = float(differs[rest][counts[rest]].mean())
    looks = differs[accepted].cumsum().tolist()
    audited = len(looks)
    low, high = differing_interval(looks[-1] if looks else 0, audited)
    return Outcome(
        threshold,
        float(counts.mean()),
        float((counts & differs).mean()),
        audited,
        high - low,
        any(rules_out(truth, k, m) for m, k in enumerate(looks, 1)),
        any(outside_fixed(truth, k, m) for m, k in enumerate(looks, 1)),
        raised_after(judge, pairs_at(network, drawn, (None,) * len(drawn))) is not None,
    )


def drift(network: Network, audit: float, seed: int) -> tuple[int, int | None]:
    """Audits of a job whose collage network drifts, and after how many the threshold rose.

    After a third of the job one answer in six is another one, as sure as before. The audits before
    that are not counted.
    """
    judge, _, rest, drawn = begin(network, AGREES[0], audit, seed)
    late = rest[len(network.scores) // 3 :]
    wrong = np.random.default_rng(seed).random(len(late)) < 1 / 6
    differs = network.differs.copy()
    differs[late[wrong]] = True
    spoiled = replace(network, differs=differs)
    before, after = (drawn[np.isin(drawn, late) == drifts] for drifts in (False, True))
    if raised_after(judge, pairs_at(spoiled, before, (None,) * len(before))) is not None:
        return len(after), None  # by chance, before anything was wrong
    return len(after), raised_after(judge, pairs_at(spoiled, after, (None,) * len(after)))


def pairs_at(network: Network, at: np.ndarray, places: Iterable[int | None]) -> list[Pair]:
    """What both networks say of the images at (k,) indices."""
    known = zip(places, network.scores[at].tolist(), network.differs[at].tolist(), strict=True)
    return [Pair(*each) for each in known]


def outside_fixed(share: float, differing: int, audited: int) -> bool:
    """Whether Wilson's interval, which is made for one look, leaves out the share."""
    interval = wilson_interval(differing, audited)
    return interval is not None and not interval[0] <= share <= interval[1]


def raised_after(judge: Judge, audits: Iterable[Pair]) -> int | None:
    """After how many audits the threshold rises, with a look after each; None if it does not."""
    for number, pair in enumerate(audits, 1):
        judge.take([pair])
        if judge.verdict() is not None:
            return number
    return None


def most(replays: int) -> float:
    """The share that may err: the nominal level and two standard errors."""
    return (1 - LEVEL) + 2 * (LEVEL * (1 - LEVEL) / replays) ** 0.5


@dataclass(frozen=True)
class Row:
    """The replays of one network and one `--agree`.

    Attributes:
        within: whether each share of errors is within its level.
        threshold, audits: cells of the two tables.
    """

    within: bool
    threshold: list[str]
    audits: list[str]


def row_of(network: Network, agree: float, found: list[Outcome]) -> Row:
    """Counts the outcomes."""
    chosen = [outcome for outcome in found if outcome.threshold is not None]

    def share(which: Iterable[bool]) -> float:
        return sum(which) / len(found)

    broken = share(one.changed > 1 - agree for one in chosen)
    missed = share(one.missed for one in chosen)
    raised = share(one.raised and one.changed <= 1 - agree for one in chosen)
    named = [f"`{network.name}`", f"{agree:g}"]
    threshold = [*named, f"{1 - len(chosen) / len(found):.1%}", f"{broken:.1%}"]
    audits = [*named, f"{missed:.1%}", f"{share(one.fixed_missed for one in chosen):.1%}"]
    audits += [f"{raised:.1%}"]
    if chosen:
        sure, low, high = np.quantile([one.sure for one in chosen], [0.5, 0.1, 0.9])
        others = 1 - settings_of(network, agree).calibration_images(len(network.scores)) / len(
            network.scores
        )
        threshold += [f"{sure:.0%} ({low:.0%}-{high:.0%})"]
        threshold += [savings(network, each) for each in (sure, sure * others)]
        audited, width = np.median([(one.audited, 100 * one.width) for one in chosen], axis=0)
        audits += [f"{audited:,.0f}", f"{width:.1f}"]
    return Row(max(broken, missed, raised) <= most(len(found)), threshold, audits)


def drift_row(audit: float, found: list[tuple[int, int | None]]) -> list[str]:
    """A row of the table of drift."""
    noticed = [after for _, after in found if after is not None]
    cells = [f"{audit:.0%}", f"{np.median([audits for audits, _ in found]):,.0f}"]
    cells += [f"{len(noticed) / len(found):.1%}"]
    if noticed:
        cells += ["{:.0f} ({:.0f}-{:.0f})".format(*np.quantile(noticed, [0.5, 0.1, 0.9]))]
    return cells


def savings(network: Network, sure: float) -> str:
    """In both precisions."""
    found = (saving_of(network.ratios[name], network.side**2, sure) for name in PRECISIONS)
    return ", ".join(f"{saving:.1f} x" for saving in found)


def table(titles: list[str], rows: Iterable[list[str]]) -> str:
    """Markdown; short rows are filled up."""
    lines = [titles, ["---"] * len(titles), *rows]
    filled = ([*line, *[""] * (len(titles) - len(line))] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in filled)


def main(words: Sequence[str] | None = None) -> int:
    """All replays, then the table."""
    parser = argparse.ArgumentParser(prog="agree_replays", description=__doc__.split("\n")[0])
    parser.add_argument("--answers", type=Path, nargs="+", metavar="DIR", default=FOLDERS)
    parser.add_argument("--replays", type=int, default=1000)
    parser.add_argument("--audit", type=float, default=0.2, help="share of images drawn (0.2)")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--page", type=Path, help="write the table into this page")
    args = parser.parse_args(words)
    began, rows, seeds = time.monotonic(), [], range(args.replays)
    networks = list(chain(*map(read_networks, args.answers)))
    shown = next((each for each in networks if each.name == DRIFTS), networks[0])
    with ProcessPoolExecutor(args.jobs) as pool:
        for network, agree in product(networks, AGREES):
            found = pool.map(partial(replay, network, agree, args.audit), seeds, chunksize=10)
            rows.append(row_of(network, agree, list(found)))
            print(f"{network.name}, {agree:g}: done", file=sys.stderr)
        drifts = [
            drift_row(share, list(pool.map(partial(drift, shown, share), seeds, chunksize=10)))
            for share in SHARES
        ]
    beyond = sum(not row.within for row in rows)
    text = (
        f"{table(THRESHOLD, (row.threshold for row in rows))}\n\n"
        f"{table(AUDITS, (row.audits for row in rows))}\n\n"
        f"{date.today()}: {args.replays:,} replays a row, {args.audit:.0%} of the images audited. "
        f"At most {most(args.replays):.1%} may err: the level of {1 - LEVEL:.0%} and two standard "
        f"errors. Rows beyond that: {beyond} of {len(rows)}.\n\n"
        f"`{shown.name}` with `--agree {AGREES[0]:g}`. After a third of the job one answer in six "
        f"is another one:\n\n{table(DRIFT, drifts)}"
    )
    print(text)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    if args.page:
        write_into(args.page, "agree replays", text)
    return 1 if beyond else 0


if __name__ == "__main__":
    raise SystemExit(main())
