"""Which scheme wins where: persistence of slowness x weight of the tail x cost ratio, simulated.

    python analysis/regime_map.py --answers answers_side3.npz --out figures/regime_map \\
        --trace '25 cloud machines=cloud.npy' --trace 'training steps: one slow rank=slow.npy'

Owns: the grid, the table (STEM.csv, to which each result is added as it comes: typed again the
command goes on), which candidate a cell shows, the figure. It takes
some 10 minutes of one core, and seconds with a complete STEM.csv.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import regimes
from regimes import BATCHES, CASCADE, FASTEST, FIXED, HEDGE, NONE, ONLY, SURE, Entry
from tails import Tail, measure_tail

from collage_mpi.core.ranks import WINDOW
from collage_mpi.figures.plots import STYLE, pyplot, save
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.runs import Candidate, simulate_schemes
from collage_mpi.simulation.simulator import SimulatedJob
from collage_mpi.system.files import write_atomic
from collage_mpi.workload.arrivals import load_trace
from collage_mpi.workload.straggler_settings import DelayModel, trace_rows

SIDE, SPARE = 3, 2
PLACEMENTS, GROUPS = 11, 50  # 550 groups in all: a P99 wants 368
ALONE = 1 / (1 - regimes.SHARE)  # mean spell where each request is slow by itself
SPELLS = (ALONE, 9.0, 27.0, 81.0, regimes.ALL_ALONG)  # requests of a rank
WEIGHTS = (1.5, 2.0, 3.0, 5.0, 8.0)
GAIN = 1.05  # a smaller gain over a simpler candidate is not worth the ranks
RATIOS = (0.6, 1.0, 1.4)
LIMITS = (1.0, 0.2)  # points of accuracy that may be lost
COLUMNS = (
    "profile",
    "spell",
    "weight",
    "cost_ratio",
    "name",
    "ranks",
    "p50_ms",
    "p99_ms",
    "accuracy",
    "wasted",
    "lossless",
)
Key = tuple[str, str, str]  # profile, spell, weight


@dataclass(frozen=True)
class Place:
    """A point of the map.

    Attributes:
        profile: name of the measured service times; empty in the grid.
        tail: where it lies.
        times_s: (machines, images) float64: a column an image.
    """

    profile: str
    tail: Tail
    times_s: np.ndarray

    @property
    def key(self) -> Key:
        """As it stands in the table."""
        return self.profile, f"{self.tail.spell:.4g}", f"{self.tail.weight:.4g}"


def grid() -> Iterator[Place]:
    """Synthetic machines; a cell is placed by what they were made of."""
    for spell in SPELLS:
        for weight in WEIGHTS:
            times_s = regimes.service_times(spell, weight, SIDE**2)
            yield Place("", Tail(weight, spell, regimes.SHARE), times_s)


def measured(traces: Mapping[str, Path]) -> Iterator[Place]:
    """Traces, and the demo's lognormal. A request is one of a group, whose images a rank that
    serves several of them all serves in that time."""
    found = {name: load_trace(str(path)) for name, path in traces.items()}
    for name, times_s in {**found, "demo: lognormal": regimes.demo_times()}.items():
        yield Place(name, measure_tail(times_s), np.repeat(times_s, SIDE**2, axis=1))


# ---- the table ------------------------------------------------------------------


def simulate_places(places: Iterator[Place], answers: str, table: Path) -> None:
    """Add to the table what it lacks."""
    rows = read_table(table)
    done = {(*_key(row), row["cost_ratio"], row["name"]) for row in rows}
    _write(table, rows)  # without the end of one that was cut off
    for place in places:
        for entry in regimes.entries(SIDE**2, float(np.median(place.times_s))):
            for ratio in RATIOS if entry.by_ratio else ("",):
                if (*place.key, str(ratio), entry.name) not in done:
                    _append(table, _row(place, entry, ratio, answers))
        print("simulated", *place.key, flush=True)


def _row(place: Place, entry: Entry, ratio: float | str, answers: str) -> dict[str, Any]:
    ratio_set = {"cost_ratio": float(ratio or 1.0)} if entry.by_ratio else {}
    found = simulated(place.times_s, {**ratio_set, **entry.flags}, answers)
    values = (*place.key, ratio, entry.name, found.ranks, found.p50_ms, found.p99_ms)
    return dict(zip(COLUMNS, (*values, found.accuracy, found.wasted, found.lossless), strict=True))


def simulated(times_s: np.ndarray, flags: Mapping[str, Any], answers: str | None) -> Candidate:
    """A candidate on all placements, that is which machine is which rank."""
    usual = {"side": SIDE, "cost_ratio": 1.0, "batch_cost": 1.0}
    settings = RunSettings.from_mapping({**usual, **flags})
    images = GROUPS * settings.group_size
    jobs = [
        SimulatedJob(
            settings,
            images,
            answers=answers,
            first=seed * images,
            delays=DelayModel(trace_rows(seed, times_s), {}, by_image=True),
        )
        for seed in range(PLACEMENTS)
    ]
    return simulate_schemes([jobs])[0]


def _write(table: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    table.parent.mkdir(parents=True, exist_ok=True)
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(table, (text.getvalue().encode(),))


def _append(table: Path, row: Mapping[str, Any]) -> None:
    with open(table, "a", newline="", encoding="utf-8") as file:
        csv.DictWriter(file, COLUMNS).writerow(row)


def read_table(table: Path) -> list[dict[str, str]]:
    """Rows as text; none where there is no table yet, nor of one cut off."""
    if not table.exists():
        return []
    with open(table, newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["lossless"] in ("True", "False")]


def _key(row: Mapping[str, str]) -> Key:
    return row["profile"], row["spell"], row["weight"]


# ---- what a cell shows ------------------------------------------------------------


@dataclass(frozen=True)
class Cell:
    """The best candidate at a place.

    Attributes:
        name, family: of it.
        gain: P99 of the better baseline over its own.
        lost: points of accuracy.
        baseline: the better of BASELINES.
    """

    name: str
    family: str
    gain: float
    lost: float
    baseline: str


def best_cell(rows: Sequence[Mapping[str, str]], ratio: float, limit: float) -> Cell:
    """Of the rows of one place: the smallest P99 that loses no more than `limit` points; what gains
    less than GAIN over a simpler one is not taken."""
    mine = [row for row in rows if row["cost_ratio"] in ("", str(ratio))]
    found = {row["name"]: _candidate(row) for row in mine}
    plain = min((found[name] for name in regimes.BASELINES), key=lambda one: one.p99_ms)
    order = [entry.name for entry in regimes.entries(SIDE**2) if entry.name in found]
    others = [found[name] for name in order if found[name] is not plain]
    best = best_of([plain, *others], 1 + SIDE**2 + SPARE, limit)
    families = {entry.name: entry.family for entry in regimes.entries(SIDE**2)}
    gain = plain.p99_ms / best.p99_ms
    return Cell(best.label, families[best.label], gain, best.points_lost(plain), plain.label)


def best_of(found: Sequence[Candidate], most_ranks: int, points: float) -> Candidate:
    """The shortest P99 with at most `most_ranks` ranks that loses at most `points` of accuracy. Of
    two within GAIN it takes the first one, which is simpler."""
    plain = chosen = found[0]
    for one in found[1:]:
        lost = one.points_lost(plain)
        fits = one.ranks <= most_ranks and lost is not None and lost <= points
        if fits and one.sooner(chosen) > GAIN:
            chosen = one
    return chosen


def _candidate(row: Mapping[str, str]) -> Candidate:
    number = {name: float(row[name]) for name in ("p50_ms", "p99_ms", "accuracy", "wasted")}
    return Candidate(row["name"], int(row["ranks"]), lossless=row["lossless"] == "True", **number)


def cells(rows: Sequence[Mapping[str, str]], ratio: float, limit: float) -> dict[Key, Cell]:
    """Every place's; places of which a candidate is lacking are left out."""
    known = {entry.name for entry in regimes.entries(SIDE**2)}
    rows = [row for row in rows if row["name"] in known]  # an older table may have others
    by_place: dict[Key, list[Mapping[str, str]]] = {}
    for row in rows:
        by_place.setdefault(_key(row), []).append(row)
    whole = sum(len(RATIOS) if entry.by_ratio else 1 for entry in regimes.entries(SIDE**2))
    return {
        key: best_cell(some, ratio, limit) for key, some in by_place.items() if len(some) == whole
    }


# ---- the figure -------------------------------------------------------------------

# Family -> colour, letter, what the legend says: Okabe and Ito's, lighter, under black text.
LOOK = {
    NONE: ("#E4E4E4", "", "no redundancy (pull or turn): nothing gains 5 % over it"),
    HEDGE: ("#D9A9C6", "H", "hedging"),
    BATCHES: ("#EEE08A", "B", "none, batch 9"),
    ONLY: ("#E79A8B", "O", "collage-only: every answer is a collage's, in two or four copies"),
    FIXED: ("#9AD0F0", "C", "collage on two ranks of its own, first answer counts"),
    FASTEST: ("#7CCFB4", "F", "collage on the two fastest ranks, first answer counts"),
    SURE: ("#F2BE6B", "S", "collage, counts if sure or after a deadline"),
    CASCADE: ("#B5C46A", "W", "cascade"),
}
TITLE = (
    "Which scheme has the shortest tail at N+2 ranks, and how much it gains\n"
    "Number: group P99 of the better scheme that does nothing twice (none on N+2 ranks, pull or "
    "turn, no end game), over that of the best scheme.\n"
    "Below it: points of accuracy gained (+) or lost (-), good to 0.2 points.\n"
    "Simulated: side 3, 11 ranks and rank 0, one group at a time, {placements} placements of "
    "{groups} groups; machines are slow 5 % of the time; shipped Fashion-MNIST networks"
)
WIDTH_IN, HEIGHT_IN = 12.6, 9.0


def draw(rows: Sequence[Mapping[str, str]], out: Path) -> list[Path]:
    """A column a cost ratio, a row a limit on the accuracy lost."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            len(LIMITS), len(RATIOS), figsize=(WIDTH_IN, HEIGHT_IN), sharex=True, sharey=True
        )
        figure.subplots_adjust(
            left=0.055, right=0.99, top=0.865, bottom=0.205, wspace=0.05, hspace=0.13
        )
        names = list(dict.fromkeys(row["profile"] for row in rows if row["profile"]))
        seen: set[str] = set()
        for line, limit in zip(axes, LIMITS, strict=True):
            for panel, ratio in zip(line, RATIOS, strict=True):
                shown = cells(rows, ratio, limit)
                seen |= {cell.family for cell in shown.values()}
                _panel(panel, shown, names)
                panel.set_title(f"at most {limit} points lost; cost ratio of the collage {ratio}")
        _frame(axes)
        _legend(figure, names, seen)
    return save(figure, out, TITLE.format(placements=PLACEMENTS, groups=GROUPS), dpi=100)


def _panel(panel: Any, shown: Mapping[Key, Cell], names: Sequence[str]) -> None:
    for (profile, spell, weight), cell in shown.items():
        x, y = position(float(spell), float(weight))
        colour, letter, _ = LOOK[cell.family]
        if profile:
            look = {"ms": 12, "mfc": colour, "mec": "black", "mew": 1.3, "zorder": 3}
            panel.plot(round(x) + 0.37, y, "o", **look)
            number = f"{names.index(profile) + 1}"
            panel.text(round(x) + 0.37, y, number, ha="center", va="center", fontsize=8, zorder=4)
            continue
        panel.add_patch(_square(x, y, colour))
        if cell.family == NONE:
            how = cell.baseline.removeprefix("none, ")
            panel.text(x - 0.14, y, how, ha="center", va="center", fontsize=8, color="0.35")
            continue
        look = {"ha": "center", "zorder": 2}
        gain = f"{cell.gain:.1f}" if cell.gain < 9.95 else f"{cell.gain:.0f}"
        panel.text(
            x - 0.14,
            y,
            f"{letter} {gain}x",
            va="bottom",
            fontsize=9,
            weight="bold",
            **look,
        )
        lost = "" if cell.lost == 0 else f"{-cell.lost:+.1f}"
        panel.text(x - 0.14, y - 0.06, lost, va="top", fontsize=8, **look)


def _square(x: float, y: float, colour: str) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.5, y - 0.5), 1, 1, fc=colour, ec="white", lw=1.2, zorder=1)


def position(spell: float, weight: float) -> tuple[float, float]:
    """In cells from the lower left one: logarithmic between them, the last column for ALL_ALONG.
    What lies outside is drawn at the edge."""
    finite = [math.log(one) for one in SPELLS if math.isfinite(one)]
    weights = [math.log(one) for one in WEIGHTS]
    y = float(np.interp(math.log(weight), weights, range(len(weights))))
    if not math.isfinite(spell):
        return len(SPELLS) - 1.0, y
    return float(np.interp(math.log(max(spell, 1.0)), finite, range(len(finite)))), y


def _frame(axes: Any) -> None:
    inner = [f"{spell / WINDOW:.2g}" for spell in SPELLS[1:-1]]
    for panel in axes.flat:
        panel.set_xlim(-0.5, len(SPELLS) - 0.5)
        panel.set_ylim(-0.5, len(WEIGHTS) - 0.5)
        panel.set_xticks(range(len(SPELLS)), ["each by\nitself", *inner, "all\nalong"])
        panel.set_yticks(range(len(WEIGHTS)), [f"{weight:g}" for weight in WEIGHTS])
        panel.tick_params(length=0)
        panel.spines[:].set_visible(False)
    axes[-1][len(RATIOS) // 2].set_xlabel(
        f"mean length of a slow spell / what the scheduler remembers of a rank ({WINDOW} requests)"
    )
    for line in axes:
        line[0].set_ylabel("P99 / median of one service time")


def _legend(figure: Any, names: Sequence[str], seen: set[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    patches = [
        Patch(fc=colour, ec="0.6", label=f"{letter}  {text}" if letter else text)
        for family, (colour, letter, text) in LOOK.items()
        if family in seen
    ]
    never = [family for family in LOOK if family not in seen]
    look: dict[str, Any] = {"ls": "", "marker": "o", "ms": 12, "mfc": "white", "mec": "black"}
    points = [
        Line2D([], [], label=f"{number}  {name}", **look) for number, name in enumerate(names, 1)
    ]
    if never:
        label = f"never the best: {'; '.join(never)}"
        patches.append(Patch(fc="none", ec="none", label=label))
    place = {"loc": "upper left", "fontsize": 9}
    figure.legend(handles=patches, bbox_to_anchor=(0.045, 0.135), ncols=2, **place)
    title = "measured, coloured by what is best there"
    figure.legend(handles=points, bbox_to_anchor=(0.77, 0.135), title=title, alignment="left",
                  title_fontsize=9, **place)  # fmt: skip


# ---- the command ------------------------------------------------------------------


def print_cells(rows: Sequence[Mapping[str, str]]) -> None:
    """The measured profiles' rows of the page: the best scheme, its gain, its price."""
    print(
        "| service times | P99/median | spell / memory | cost ratio | limit | best | gain | lost |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for ratio in RATIOS:
        for limit in LIMITS:
            for (profile, spell, weight), cell in cells(rows, ratio, limit).items():
                if profile:
                    memories = float(spell) / WINDOW
                    print(
                        f"| {profile} | {weight} | {memories:.2g} | {ratio} | {limit} "
                        f"| {cell.name} | {cell.gain:.2f} over {cell.baseline} | {cell.lost:.2f} |"
                    )


def main() -> None:
    """Simulate what the table lacks, draw the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="STEM", help="no suffix")
    line = "of evaluate --save-answers, side 3"
    parser.add_argument("--answers", required=True, metavar="FILE", help=line)
    line = "measured service times to place on the map"
    parser.add_argument("--trace", action="append", default=[], metavar="NAME=FILE.npy", help=line)
    args = parser.parse_args()
    traces = dict(given.rsplit("=", 1) for given in args.trace)
    table = args.out.with_name(args.out.name + ".csv")
    places = itertools.chain(measured({k: Path(v) for k, v in traces.items()}), grid())
    simulate_places(places, args.answers, table)
    rows = read_table(table)
    print_cells(rows)
    print(*draw(rows, args.out), sep="\n")


if __name__ == "__main__":
    main()
