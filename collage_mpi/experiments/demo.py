"""The runs of the demo, and the report about them. Real networks classify real images under four
schemes, with injected delays.

The delays are a fit to measured ones: lognormal, with a median of 144 ms and a sigma of 0.22. It is
the least-squares fit to the 1, 5, 25, 50, 75, 95 and 99 % quantiles of 24 cloud machines that
served the same network. A 25th machine was five times slower throughout; the slow rank of the demo
stands for it. TIME_SCALE shortens all times. All schemes have the same model, seed and ten worker
ranks.

Each scheme runs under two loads. In the first, all images wait from the start, and the run shows
how many images a second the ranks answer. In the second, images arrive at a rate somewhat below
what ten single ranks can answer, and the run shows the latency of images.

Ten ranks may share two cores. Then a rank may wait for a core when its drawn time is over. A run is
INVALID if more than 1 % of its tasks take over 10 % too long, so draws must be long compared with
this wait. Six runs each on two busy cores (load average 11 to 19) had 0.2 to 3.3 % such tasks at a
time scale of 0.5, and 0 to 0.2 % at 0.8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.kinds import COLLAGE, SINGLE
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.system.extras import pip_line
from collage_mpi.system.table import Column, Table, Value, to_text

if TYPE_CHECKING:
    from collage_mpi.job.worker_group import WorkerGroup

RANKS = 11
GROUPS = 74  # 72 without the warm-up: just enough for P95, but not for P99, which needs 368
LEAST_GROUPS = 3
MEDIAN_MS, SIGMA = 144.0, 0.22
TIME_SCALE = 0.75
SLOW, FACTOR = 4, 5.0

LOADS = ("waiting", "arriving")
LOAD = 0.8  # of the images a second that ten single ranks can answer

# Scheme -> its name in tables, and its settings. In each scheme all ten workers hold a network.
_NONE: dict[str, Any] = {"scheme": "none", "singles": RANKS - 1}
_PAPER = {"profile": "paper", COLLAGE: "shipped:fashion_collage_side3.safetensors"}
_BALANCED = {COLLAGE: "shipped:fashion_collage_side3_balanced.safetensors"}
SCHEMES: dict[str, tuple[str, dict[str, Any]]] = {
    "none": ("none", _NONE),
    "finish": ("none --assign finish", {**_NONE, "assign": "finish"}),
    "paper": ("the paper's collage", _PAPER),
    "cascade": ("cascade", {"scheme": "cascade", "placement": "fastest", **_BALANCED}),
}
NAMES = [name for name, _ in SCHEMES.values()]

Json = dict[str, Any]


def demo_settings(out: Path, load: str, scheme: str, groups: int, time_scale: float) -> RunSettings:
    """The settings of one of the demo's runs, on the shipped images and networks."""
    arriving = {"arrivals": "poisson", "rate": arrivals_per_s(time_scale)}
    return RunSettings.from_mapping(
        {
            "shards": ["shipped:fashion_demo.h5"],
            SINGLE: "shipped:fashion_single.safetensors",
            **SCHEMES[scheme][1],
            **(arriving if load == "arriving" else {}),
            "out": str(run_folder(out, load, scheme)),
            "limit": 9 * groups,
            "straggler": "lognormal",
            "straggler_seed": 1,
            "straggler_median_ms": MEDIAN_MS,
            "straggler_sigma": SIGMA,
            "time_scale": time_scale,
            "slow_ranks": [f"{SLOW}:{FACTOR:g}"],
        }
    )


def arrivals_per_s(time_scale: float) -> float:
    """The arrival rate of the second load, in images a second."""
    mean_s = MEDIAN_MS / 1e3 * math.exp(SIGMA**2 / 2) * time_scale
    return LOAD * (RANKS - 2 + 1 / FACTOR) / mean_s


def run_folder(out: Path, load: str, scheme: str) -> Path:
    """The folder of one of the demo's runs."""
    return out / load / scheme


def check_before(out: Path, time_scale: float) -> None:
    """Check before the runs for errors that would otherwise end the demo after them.

    Raises:
        UsageError: the time scale is not a positive number.
        EnvironmentFault: the output folder holds a demo already, or matplotlib is missing.
    """
    if not 0 < time_scale < math.inf:
        raise UsageError(f"--time-scale is {time_scale:g}; it needs a number above 0, such as 1.5")
    if find_spec("matplotlib") is None:
        raise EnvironmentFault(
            f"the demo draws a picture and matplotlib is missing: {pip_line('plot')}"
        )
    for load in LOADS:
        if (out / load).exists():
            raise EnvironmentFault(
                f"{out} holds a demo already: choose another --out, or remove it"
            )


def run_all(
    out: Path,
    device: str,
    worker_group: WorkerGroup,
    stop_reason: Callable[[], str | None],
    groups: int,
    time_scale: float,
) -> int:
    """On rank 0, run every scheme under each load, on the same ranks. Returns the exit code."""
    from collage_mpi.job.run import Ask, run_session

    ratios: dict[str, float] = {}  # scheme -> cost ratio, measured under the first load
    for load in LOADS:
        for scheme in SCHEMES:
            settings = demo_settings(out, load, scheme, groups, time_scale)
            settings = replace(settings, device=device, cost_ratio=ratios.get(scheme))
            name = f"{load}, {scheme}"
            outcome = run_session(settings, worker_group, Ask(stop_reason, phase=name))
            if outcome.exit_code:
                return int(outcome.exit_code)
            if settings.uses_collage and outcome.summary is not None:
                ratios[scheme] = outcome.summary["price"]["cost_ratio"]
    return 0


def tell_and_draw(out: Path) -> tuple[str, list[Path]]:
    """Make the report as text, and write the figure and the pages. Call it after the ranks have
    ended.

    Returns:
        The text, and the files written.

    Raises:
        DataFault: a run is damaged.
    """
    from collage_mpi.figures.latency_cdf import plot_latency_cdf
    from collage_mpi.report.page import write_report
    from collage_mpi.results import compare, read_results, verify_run

    folders = {load: [run_folder(out, load, scheme) for scheme in SCHEMES] for load in LOADS}
    runs = {load: [read_results(folder) for folder in folders[load]] for load in LOADS}
    waiting, arriving = (compare(runs[load], per="image") for load in LOADS)
    manifests = [run.manifest for run in runs["waiting"]]
    rate = runs["arriving"][0].manifest["settings"]["rate"]
    proofs = {verify_run(folder).headline: None for each in folders.values() for folder in each}
    parts = [
        _headline(waiting, arriving, rate),
        _tables(waiting, arriving, rate),
        _costs(manifests),
        f"verify, all {len(LOADS) * len(SCHEMES)} runs: {'; '.join(proofs)}\n",
    ]
    names = [
        f"{name} ({pace:.0f} images/s where all wait)"
        for name, pace in zip(NAMES, _paces(waiting), strict=True)
    ]
    title = _title(rate, manifests[0]["settings"]["time_scale"])
    written = plot_latency_cdf(
        runs["arriving"], out / "latency_cdf", per="image", title=title, names=names
    )
    for load in LOADS:
        written.append(out / f"report_{load}.html")
        write_report(folders[load], written[-1])
    return "\n\n".join(parts), written


def _headline(waiting: Sequence[Json], arriving: Sequence[Json], rate: float) -> str:
    """The result in sentences, without times if a run is INVALID."""
    from collage_mpi.results.comparison import INVALID_NOTE
    from collage_mpi.results.render import points

    model = (
        f"Rank {SLOW}, one of ten worker ranks, is {FACTOR:g}x slower throughout. "
        "Each scheme has all ten, and the same images.\n"
    )
    invalid = sum(entry["invalid"] for entry in (*waiting, *arriving))
    if invalid:
        return (
            f"{model}No verdict: {invalid} of {2 * len(NAMES)} runs are marked {INVALID_NOTE} Run "
            "the demo again when the machine is idle, or with --time-scale 1.5."
        )
    paces = _paces(waiting)
    most = paces.index(max(paces))
    return (
        f"{model}All images wait for a rank: {NAMES[most]} answered the most images a second, "
        f"{paces[most]:.0f}, which is {paces[most] / paces[0]:.2f} x none's rate. "
        f"{points(waiting[most]['accuracy'])} of its answers were right, and "
        f"{points(waiting[0]['accuracy'])} of none's. "
        f"{_shortest(waiting)}\n{rate:.0f} images a second arrive, {LOAD:g} of what ten single "
        f"ranks can answer. {_shortest(arriving)}"
    )


def _shortest(entries: Sequence[Json]) -> str:
    tails = [entry["p95_ms"] for entry in entries]
    if None in tails:
        return "The runs have too few groups for a P95."
    ms = min(tails)
    name = NAMES[tails.index(ms)]
    return (
        f"The shortest P95 of an image was that of {name}: {ms:.0f} ms, "
        f"{ms / tails[0]:.2f} x none's."
    )


def _paces(entries: Sequence[Json]) -> list[float]:
    return [entry["price"]["images_per_s"] for entry in entries]


def _tables(waiting: Sequence[Json], arriving: Sequence[Json], rate: float) -> str:
    """A table for each load, with a row for each scheme."""
    from rich.console import Group

    from collage_mpi.results.comparison import latency_cell
    from collage_mpi.results.render import points

    answers = ("accuracy", "gained", "lost")
    rows: tuple[list[list[Value]], ...] = ([], [])
    paces = _paces(waiting)
    for table, entries in zip(rows, (waiting, arriving), strict=True):
        for i, (name, entry) in enumerate(zip(NAMES, entries, strict=True)):
            price, paired = entry["price"]["rank_seconds_per_image"], entry["paired"]
            rates = f"{paces[i]:.1f} ({paces[i] / paces[0]:.2f}x)", price
            p50, p95 = (latency_cell(entry, key, i == 0) for key in ("p50", "p95"))
            row = [name + (" (INVALID)" if entry["invalid"] else "")]
            row += [*(rates if entries is waiting else (p50,)), p95, points(entry["accuracy"])]
            table.append([*row, paired["only_this"], paired["only_baseline"]])
    price = Column("rank-s/image", ".4f")
    pace = Table(("all images wait", "images/s", price, "P95, ms", *answers), rows[0])
    arrive = f"{rate:.0f} images a second arrive"
    tail = Table((arrive, "P50, ms", "P95, ms", *answers), rows[1])
    below = (
        "(x): the ratio to none. gained: images on which the scheme is right and none is wrong; "
        f"lost: the reverse; of {waiting[0]['labelled']:,} images."
    )
    return to_text(Group(pace, "", tail, "", below))


def _costs(manifests: Sequence[Json]) -> str:
    """The cost ratios, by which injected times of collages are multiplied. The service times behind
    them are not shown, because other work on the machine changes their ratio (`ratio_of` in
    job/handshake).
    """
    ratios = []
    for name, manifest in zip(NAMES, manifests, strict=True):
        if interval := manifest.get("cost_ratio_interval"):
            low, high = interval
            ratios.append(f"{manifest['cost_ratio']:.2f} x ({low:.2f} to {high:.2f}) for {name}")
    return (
        f"Measured here before the runs, in {_precision(manifests[0])} as the ranks compute: a "
        "collage network's time over the single network's, with its 95 % interval: "
        f"{', '.join(ratios)}. The injected times of collages are multiplied by it."
    )


def _precision(manifest: Json) -> str:
    """The precision of the single network, as its ranks reported it."""
    tunings = (member["tuning"].get(SINGLE) for member in manifest["world"] if "tuning" in member)
    return str(next(filter(None, tunings))).partition(",")[0]


def _title(rate: float, time_scale: float) -> str:
    return (
        f"Fashion-MNIST on ten worker ranks; rank {SLOW} is {FACTOR:g}x slower throughout\n"
        f"Latency of an image: {rate:.0f} images a second arrive, {LOAD:g} of what ten single "
        "ranks can answer.\n"
        f"Injected service times: lognormal, median {MEDIAN_MS * time_scale:.0f} ms, "
        f"sigma {SIGMA:g}"
    )
