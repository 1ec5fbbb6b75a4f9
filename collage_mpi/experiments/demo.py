"""The demo: real images, real networks, a stated model of slow machines, two schemes.

Owns: what the demo runs and what it says about it.
Does not know: how a run works, how a figure is drawn.

The delays are a model of measured ones: lognormal, median 144 ms and sigma 0.22, the
least-squares fit to the 1, 5, 25, 50, 75, 95 and 99 % quantiles of 24 cloud machines
that served the same network (a 25th was five times slower all along, which is where
the one slow rank comes from). All times are scaled by TIME_SCALE so that the demo is
short; both schemes see the same draws.
"""

from __future__ import annotations

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
GROUPS = 82  # 80 beside the warm-up: enough for a p95 (72), far too few for a p99 (368)
LEAST_GROUPS = 3
MEDIAN_MS, SIGMA = 144.0, 0.22
TIME_SCALE = 0.5  # the draws stay far above the compute of ten ranks on two cores
SLOW_SINGLE, SLOW_COLLAGE, FACTOR = 4, 10, 5.0

# case -> the rank that is five times slower throughout
CASES = {"slow-single": SLOW_SINGLE, "slow-collage": SLOW_COLLAGE}
SCHEMES = ("none", "collage")


def demo_settings(out: Path, case: str, scheme: str, groups: int = GROUPS) -> RunSettings:
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
            "precision": "float32",  # the same ratio of the two networks on every processor
            "straggler": "lognormal",
            "straggler_seed": 1,
            "straggler_median_ms": MEDIAN_MS,
            "straggler_sigma": SIGMA,
            "time_scale": TIME_SCALE,
            "slow_ranks": [f"{CASES[case]}:{FACTOR:g}"],
        }
    )


def run_folder(out: Path, case: str, scheme: str) -> Path:
    """Where one of the demo's runs is."""
    return out / case / scheme


def check_before(out: Path, groups: int) -> None:
    """Refuse early what would spoil the demo late.

    Raises:
        UsageError: too few groups to show any.
        EnvironmentFault: the output folder holds a demo, or matplotlib is missing.
    """
    if groups < LEAST_GROUPS:
        raise UsageError(f"--groups is {groups}; it needs at least {LEAST_GROUPS}: 2 are warm-up")
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
) -> int:
    """On rank 0: every case with every scheme, one after the other on the same ranks."""
    from collage_mpi.job.session import run_session

    for case in CASES:
        for scheme in SCHEMES:
            settings = replace(demo_settings(out, case, scheme, groups), device=device)
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
        title = _title(case, slow)
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
        f"Measured here before the run: the collage network takes {manifest['cost_ratio']:.2f} x "
        f"the time of the single network (95 % interval {low:.2f} to {high:.2f}). The injected "
        "times of the collage rank are multiplied by this ratio."
    )


def _title(case: str, slow: int) -> str:
    role = SINGLE if case == "slow-single" else COLLAGE
    return (
        f"Fashion-MNIST on 9 + 1 ranks; {role} rank {slow} is {FACTOR:g}x slower throughout\n"
        f"injected service times: lognormal, median {MEDIAN_MS * TIME_SCALE:.0f} ms, "
        f"sigma {SIGMA:g}"
    )


def _headline(case: str, slow: int, entries: Sequence[dict[str, Any]]) -> str:
    found = entries[1]["p95_ratio"]
    ratio = "n/a (too few groups) of" if found is None else f"{found:.2f} x"
    if case == "slow-single":
        return (
            f"Rank {slow}, one of nine single ranks, is {FACTOR:g}x slower throughout: "
            f"the collage's group p95 is {ratio} that of no redundancy."
        )
    return (
        f"The other case: rank {slow}, the collage rank, is the slow one. It protects "
        f"nothing then: group p95 is {ratio} that of no redundancy."
    )
