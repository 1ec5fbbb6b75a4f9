"""A load that rises from 0.5 to 2 and falls again within a run: through real ranks, by scheme.

    python analysis/load_ramp.py --out runs/ramp --figure docs/images/load_ramp \\
        --page analysis/reports/cascade.md

All schemes meet the same images at the same times. Service times are injected, those of the demo:
lognormal, and one rank is slow throughout. A load of 1 is what single networks can serve.
Prints a table, which also goes into the page; writes FIGURE.png and .pdf. Runs that are complete in
OUT are not made again. Three jobs of a minute each: some 4 minutes on two idle cores.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from peers.page import write_into

from collage_mpi.commands.demo import FACTOR, SIGMA, SLOW
from collage_mpi.figures import plots
from collage_mpi.kinds import COLLAGE
from collage_mpi.results import Results, read_results
from collage_mpi.results.reader import open_run
from collage_mpi.results.statistics import percentile
from collage_mpi.results.writer import has_run
from collage_mpi.rows import KIND_CODE, SOURCE_CODE
from collage_mpi.shards import ShardSet, write_shard
from collage_mpi.system.fields import with_shipped
from collage_mpi.workload.arrivals import poisson_times_ns

MEDIAN_MS = 144.0  # service time of a rank
RANKS = 11  # that classify
KNOTS = np.array([(0, 0.5), (5, 0.5), (20, 2), (35, 0.5), (60, 0.5)]).T  # s since the start; load
STEP, WINDOW = 100, 400  # images between points of the figure, and of a P99, which wants 368
COLLAGE_NETWORK = "shipped:fashion_collage_side3_balanced.safetensors"
SCHEMES = {
    "none": ("--scheme", "none", "--singles", str(RANKS)),
    "cascade": ("--scheme", "cascade", "--collage", COLLAGE_NETWORK),
}


def machines(time_scale: float) -> list[str]:
    """Flags: how long the ranks take."""
    words = ["--straggler", f"lognormal:{MEDIAN_MS * time_scale:g}:{SIGMA}"]
    return [*words, "--slow-ranks", f"{SLOW}:{FACTOR:g}"]


def capacity(time_scale: float) -> float:
    """Images a second that single networks can serve: 1 / mean service time, over all ranks."""
    mean_s = MEDIAN_MS / 1e3 * time_scale * math.exp(SIGMA**2 / 2)
    return (RANKS - 1 + 1 / FACTOR) / mean_s


def arrivals_s(rate: float, seed: int = 0) -> np.ndarray:
    """(images,) seconds: a Poisson process of load times `rate` images a second."""
    at_s = np.linspace(0, KNOTS[0, -1], 6001)
    load = np.interp(at_s, *KNOTS)
    expected = rate * np.append(0, np.cumsum((load[1:] + load[:-1]) / 2 * np.diff(at_s)))
    units = poisson_times_ns(1.0, seed, 2 * int(expected[-1])) / 1e9
    return np.interp(units[units < expected[-1]], expected, at_s)


def prepare(out: Path, time_scale: float) -> tuple[Path, Path]:
    """The shard, demo images over and over, and the times at which they come."""
    shard, times = out / "images.h5", out / "times.npy"
    out.mkdir(parents=True, exist_ok=True)
    times_s = arrivals_s(capacity(time_scale))
    if not times.exists():
        with ShardSet.open([with_shipped("shipped:fashion_demo.h5")]) as demo:
            images, labels = demo.read_all()
        rows = np.arange(len(times_s)) % len(images)
        write_shard(shard, images[rows], None if labels is None else labels[rows])
        np.save(times, times_s)
    elif not np.array_equal(np.load(times, allow_pickle=False), times_s):
        raise SystemExit(f"{out} holds runs of another --time-scale: choose another --out")
    return shard, times


def run(out: Path, name: str, shard: Path, times: Path, time_scale: float) -> Results:
    """One job, unless it is complete already."""
    folder = out / name.replace(" ", "_")
    if not has_run(folder) or not open_run(folder).complete:
        words = ["launch", "-n", str(RANKS + 1), "--", "run", "--out", str(folder)]
        words += ["--shards", str(shard), "--single", "shipped:fashion_single.safetensors"]
        words += ["--arrival-file", str(times)]
        words += [*SCHEMES[name], *machines(time_scale)]
        done = subprocess.run([sys.executable, "-m", "collage_mpi", *words])
        if done.returncode:
            raise SystemExit(f"the job of {name} ended with code {done.returncode}")
    return read_results(folder)


def in_order(run: Results) -> tuple[np.ndarray, np.ndarray]:
    """(images,) each: latency in ms, whether a collage answered; by arrival."""
    rows = np.sort(run.images, order="row")
    return rows["latency_ns"] / 1e6, rows["source"] == SOURCE_CODE[COLLAGE]


def table(runs: dict[str, Results], times_s: np.ndarray) -> str:
    """Markdown: latencies and shares while the load is below 1, above, below again."""
    over = np.interp(times_s, *KNOTS) > 1
    first, last = np.flatnonzero(over)[[0, -1]]
    phases = {
        "rising, below 1": slice(0, first),
        "above 1": slice(first, last + 1),
        "below 1 again": slice(last + 1, None),
    }
    out = ["| load | images | scheme | P50, ms | P99, ms | answered by a collage |"]
    out += ["|---|---|---|---|---|---|"]
    for phase, which in phases.items():
        for name, run in runs.items():
            late_ms, shared = (values[which] for values in in_order(run))
            p50, p99 = percentile(late_ms, 0.5), percentile(late_ms, 0.99)
            cells = [phase, f"{len(late_ms):,}", f"`{name}`"]
            cells += ["n/a" if ms is None else f"{ms:,.0f}" for ms in (p50, p99)]
            out += ["| " + " | ".join([*cells, f"{shared.mean():.0%}"]) + " |"]
    return "\n".join(out)


def said_of(name: str, run: Results) -> str:
    """What else a reader wants to know of a run."""
    tasks, images = run.tasks, run.images
    together = tasks["items"][tasks["kind"] == KIND_CODE[COLLAGE]].sum() / len(images)
    busy_ms = tasks["compute_ns"].sum() / 1e6 / len(images)
    right = (images["predicted"] == images["label"])[images["answered"]].mean()
    return (
        f"- `{name}`: accuracy {right:.2%}; {together:.0%} of the images were in collages; "
        f"{busy_ms:.0f} ms of rank time an image."
    )


def windows(images: int, size: int) -> np.ndarray:
    """(points, size) int: numbers of images in a row, a window every STEP images."""
    return np.arange(0, images - size + 1, STEP)[:, None] + np.arange(size)


def draw(
    runs: dict[str, Results], times_s: np.ndarray, time_scale: float, stem: Path
) -> list[Path]:
    """Three panels over the time of arrival: load, share answered by collages, P99."""
    pyplot = plots.pyplot()
    height_in = 7.0
    with pyplot.rc_context(plots.STYLE):
        figure, panels = pyplot.subplots(
            3, 1, figsize=(8.6, height_in), sharex=True, height_ratios=(1, 1, 1.8)
        )
        figure.subplots_adjust(left=0.095, right=0.985, top=0.885, bottom=0.115, hspace=0.14)
        _load(panels[0], times_s, capacity(time_scale))
        of_share, of_p99 = (windows(len(times_s), size) for size in (STEP, WINDOW))
        for number, (name, run) in enumerate(runs.items()):
            look: dict[str, Any] = {"color": plots.COLOURS[number], "linewidth": 1.5}
            look |= {"linestyle": plots.STYLES[number], "label": name}
            late_ms, shared = in_order(run)
            panels[1].plot(times_s[of_share].mean(1), 100 * shared[of_share].mean(1), **look)
            panels[2].plot(times_s, late_ms, ".", markersize=1.2, alpha=0.25, color=look["color"])
            p99_ms = [percentile(late_ms[window], 0.99) for window in of_p99]
            panels[2].plot(times_s[of_p99].mean(1), p99_ms, **look)
        _label(panels)
        handles = panels[2].get_legend_handles_labels()
        figure.legend(*handles, loc="lower left", ncols=3, bbox_to_anchor=(0.085, 0.0))
        return plots.save(figure, stem, _title(time_scale), dpi=140)


def _load(axes: Any, times_s: np.ndarray, rate: float) -> None:
    seconds = np.arange(int(KNOTS[0, -1]) + 1)
    counts, _ = np.histogram(times_s, seconds)
    axes.stairs(
        counts / rate, seconds, color="0.7", fill=True, label="images that came, each second"
    )
    axes.plot(*KNOTS, color="black", linewidth=1.5, label="expected")
    axes.axhline(1, color="0.3", linewidth=0.8, linestyle=(0, (2, 2)))
    axes.legend(loc="upper right")


def _label(panels: Any) -> None:
    panels[0].set_ylabel("load")
    panels[0].set_ylim(bottom=0)
    panels[1].set_ylabel("answered by\na collage, %")
    panels[1].set_ylim(-3, 100)
    panels[2].set_ylabel("latency of an image, ms (log)")
    panels[2].set_yscale("log")
    panels[2].yaxis.set_major_formatter(lambda ms, _: f"{ms:,.0f}")
    panels[2].set_xlabel("time at which the image came, s")
    panels[2].set_xlim(0, KNOTS[0, -1])
    for axes in panels:
        axes.grid(color="0.92", linewidth=0.6)
        axes.set_axisbelow(True)


def _title(time_scale: float) -> str:
    return (
        f"A load that rises and falls, on {RANKS} real ranks\n"
        "Load: images that come over images that single networks can serve (dashed: 1). Injected "
        f"service times:\nlognormal, median {MEDIAN_MS * time_scale:.0f} ms, sigma {SIGMA:g}; rank "
        f"{SLOW} is {FACTOR:g} x slower. Below: a dot an image; lines are P99 of "
        f"{WINDOW} images in a row."
    )


def main() -> None:
    """The jobs one after the other, then the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the runs")
    parser.add_argument("--figure", type=Path, required=True, metavar="STEM")
    parser.add_argument("--page", type=Path, help="write the table into this page")
    parser.add_argument(
        "--time-scale",
        type=float,
        default=1.0,
        help="multiplies the injected service times; a busy machine needs a larger one",
    )
    args = parser.parse_args()
    shard, times = prepare(args.out, args.time_scale)
    runs = {name: run(args.out, name, shard, times, args.time_scale) for name in SCHEMES}
    times_s = np.load(times, allow_pickle=False)
    text = "\n".join([table(runs, times_s), "", *map(said_of, runs, runs.values())])
    print(text)
    if args.page:
        write_into(args.page, "load ramp", text)
    for path in draw(runs, times_s, args.time_scale, args.figure):
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
