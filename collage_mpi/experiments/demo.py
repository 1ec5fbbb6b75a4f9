"""The demo: real images, real networks, a stated model of slow machines, two schemes.

Owns: what the demo runs and what it says about it.
Does not know: how a run works, how a figure is drawn.

The delays are a model of measured ones: lognormal, median 144 ms and sigma 0.22, the
least-squares fit to the 1, 5, 25, 50, 75, 95 and 99 % quantiles of 24 cloud machines
that served the same network (a 25th was five times slower all along, which is where
the one slow rank comes from). All times are scaled by TIME_SCALE so that the demo is
short; both schemes see the same draws.

Ten ranks may share two cores, where each waits while others compute, also when its drawn time is
over. A run is INVALID where over 1 % of the tasks take over a tenth too long, so the draws have to
be long beside that wait. Six runs each on two cores beside other work (load average 11 to 19) had
0.2 to 3.3 % such tasks at a scale of 0.5, and 0 to 0.2 % at 0.8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.kinds import COLLAGE, SINGLE
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.system.extras import pip_line

if TYPE_CHECKING:
    from collage_mpi.job.worker_group import WorkerGroup

RANKS = 11
GROUPS = 74  # 72 beside the warm-up: just enough for a p95, far too few for a p99 (368)
MEDIAN_GROUPS = 22
LEAST_GROUPS = 3
MEDIAN_MS, SIGMA = 144.0, 0.22
TIME_SCALE = 0.75
SLOW_SINGLE, SLOW_COLLAGE, FACTOR = 4, 10, 5.0

# case -> the rank that is five times slower throughout
CASES = {"slow-single": SLOW_SINGLE, "slow-collage": SLOW_COLLAGE}
SCHEMES = ("none", "collage")


def demo_settings(
    out: Path, case: str, scheme: str, groups: int = GROUPS, time_scale: float = TIME_SCALE
) -> RunSettings:
    """The settings of one of the demo's runs, on the shipped images and networks."""
    data = files("collage_mpi") / "data"
    return RunSettings.from_mapping(
        {
            "profile": "paper",  # its layout is what is compared
            "shards": [str(data / "fashion_demo.h5")],
            SINGLE: str(data / "fashion_single.safetensors"),
            COLLAGE: str(data / "fashion_collage_side3.safetensors"),
            "out": str(run_folder(out, case, scheme)),
            "scheme": scheme,
            "limit": 9 * groups,
            "straggler": "lognormal",
            "straggler_seed": 1,
            "straggler_median_ms": MEDIAN_MS,
            "straggler_sigma": SIGMA,
            "time_scale": time_scale,
            "slow_ranks": [f"{CASES[case]}:{FACTOR:g}"],
        }
    )


def groups_of(case: str, groups: int = GROUPS) -> int:
    """How many groups a run of the case has: of the second case only the median is told."""
    return groups if case == "slow-single" else min(groups, MEDIAN_GROUPS)


def run_folder(out: Path, case: str, scheme: str) -> Path:
    """Where one of the demo's runs is."""
    return out / case / scheme


def check_before(out: Path, groups: int, time_scale: float) -> None:
    """Refuse early what would spoil the demo late.

    Raises:
        UsageError: too few groups to show any, or a time scale that is none.
        EnvironmentFault: the output folder holds a demo, or matplotlib is missing.
    """
    if groups < LEAST_GROUPS:
        raise UsageError(f"--groups is {groups}; it needs at least {LEAST_GROUPS}: 2 are warm-up")
    if not 0 < time_scale < math.inf:
        raise UsageError(f"--time-scale is {time_scale:g}; it needs a number above 0, such as 1.5")
    if find_spec("matplotlib") is None:
        raise EnvironmentFault(
            f"the demo draws a picture and matplotlib is missing: {pip_line('plot')}"
        )
    for case in CASES:
        if (out / case).exists():
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
    """On rank 0: every case with every scheme, one after the other on the same ranks."""
    from collage_mpi.job.session import run_session

    for case in CASES:
        for scheme in SCHEMES:
            settings = demo_settings(out, case, scheme, groups_of(case, groups), time_scale)
            settings = replace(settings, device=device)
            name = f"{case}, {scheme}"
            outcome = run_session(settings, worker_group, stop_reason=stop_reason, phase=name)
            if outcome.exit_code:
                return int(outcome.exit_code)
    return 0


def tell_and_draw(out: Path) -> tuple[str, list[Path]]:
    """After the ranks have ended: what they showed, in words, the pictures and the pages.

    Returns:
        The report, and the files written.

    Raises:
        DataFault: a run is damaged.
    """
    from collage_mpi.figures.latency_cdf import plot_latency_cdf
    from collage_mpi.report.page import write_report
    from collage_mpi.results import compare, read_results, render_comparison, verify_run

    parts, written = [], []
    for case, slow in CASES.items():
        folders = [run_folder(out, case, scheme) for scheme in SCHEMES]
        runs = [read_results(folder) for folder in folders]
        entries = compare(runs, per="group")
        proofs = [verify_run(folder) for folder in folders]
        parts.append(_headline(case, slow, entries))
        parts.append(_costs(runs[-1].manifest))
        parts.append(render_comparison(entries).rstrip())
        parts.append(
            "\n".join(f"verify {p.path.relative_to(out)}: {p.headline}" for p in proofs) + "\n"
        )
        title = _title(case, slow, runs[-1].manifest["settings"]["time_scale"])
        written += plot_latency_cdf(runs, out / f"latency_cdf_{case}", per="group", title=title)
        page = out / f"report_{case}.html"
        write_report(folders, page)
        written.append(page)
    return "\n".join(parts), written


def _costs(manifest: dict[str, Any]) -> str:
    """What the injected times of the collage rank are multiplied by. The networks' times on the
    clock are not told: other work makes their ratio another one (job/cost_ratio)."""
    low, high = manifest.get("cost_ratio_interval") or (manifest["cost_ratio"],) * 2
    return (
        f"Measured here before the run, in {_precision(manifest)} as the ranks compute: the "
        f"collage network takes {manifest['cost_ratio']:.2f} x the time of the single network "
        f"(95 % interval {low:.2f} to {high:.2f}). The injected times of the collage rank are "
        "multiplied by this ratio."
    )


def _precision(manifest: dict[str, Any]) -> str:
    """The number format of the single network, as its ranks told it."""
    tunings = (member["tuning"].get(SINGLE) for member in manifest["world"] if "tuning" in member)
    return str(next(filter(None, tunings))).partition(",")[0]


def _title(case: str, slow: int, time_scale: float) -> str:
    role = SINGLE if case == "slow-single" else COLLAGE
    return (
        f"Fashion-MNIST on 9 + 1 ranks; {role} rank {slow} is {FACTOR:g}x slower throughout\n"
        f"injected service times: lognormal, median {MEDIAN_MS * time_scale:.0f} ms, "
        f"sigma {SIGMA:g}"
    )


def _headline(case: str, slow: int, entries: Sequence[dict[str, Any]]) -> str:
    percentile = "p95" if case == "slow-single" else "p50"
    found = entries[1][f"{percentile}_ratio"]
    ratio = "n/a (too few groups) of" if found is None else f"{found:.2f} x"
    if case == "slow-single":
        return (
            f"Rank {slow}, one of nine single ranks, is {FACTOR:g}x slower throughout: "
            f"the collage's group p95 is {ratio} that of no redundancy.\n"
            "A rank that is slow all along can be avoided without a collage, at full accuracy: "
            "--scheme none --assign finish."
        )
    return (
        f"The other case: rank {slow}, the collage rank, is the slow one. It protects "
        f"nothing then: the median group takes {ratio} the time of no redundancy."
    )
