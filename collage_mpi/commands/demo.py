"""`collage-mpi demo --out DIR`: three runs with data and networks of the package, one of ten worker
ranks five times slower, and a picture of them.

The injected service times are a fit to 24 measured cloud machines that served the same network:
lognormal, median 144 ms, sigma 0.22. A 25th machine was five times slower throughout, like rank 4.
Times are multiplied by TIME_SCALE.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from collage_mpi.commands.launch import LaunchArguments, launch_ranks
from collage_mpi.commands.parser import Command, MpiArguments
from collage_mpi.errors import EnvironmentFault
from collage_mpi.plugins import optional
from collage_mpi.results import REPORT
from collage_mpi.settings.run_settings import NetworkSettings
from collage_mpi.system.fields import REQUIRED, same, setting
from collage_mpi.system.printable import say

RANKS = 11
MEDIAN_MS, SIGMA = 108.0, 0.22
SLOW, FACTOR = 4, 5
LOAD = 0.8  # of the images a second that ten single ranks can answer
MEAN_S = MEDIAN_MS / 1e3 * math.exp(SIGMA**2 / 2)
RATE = LOAD * (RANKS - 2 + 1 / FACTOR) / MEAN_S  # images a second

NONE = f"--scheme none --singles {RANKS - 1}"
COLLAGE = "--collage shipped:fashion_collage_side3"
# Cost ratios are those of docs/networks.md.
# Name in the picture -> its flags. In each scheme all ten workers hold a network.
SCHEMES = {
    "none": NONE,
    "the paper's collage": f"--settings shipped:paper.json {COLLAGE}.safetensors --cost-ratio 0.92",
    "cascade": "--scheme cascade --placement fastest --cost-ratio 0.51 "
    f"{COLLAGE}_balanced.safetensors",
}
COMMON = (
    "run --brief --shards shipped:fashion_demo.h5 --single shipped:fashion_single.safetensors "
    f"--straggler lognormal:{MEDIAN_MS:g}:{SIGMA} --straggler-seed 1 "
    f"--slow-ranks {SLOW}:{FACTOR} "
    f"--rate {RATE:.4g}"
)


@dataclass(frozen=True, kw_only=True)
class DemoArguments(MpiArguments):
    """The arguments of demo."""

    out: Path = setting(REQUIRED, "folder for the runs, the picture and the page", metavar="DIR")
    device: str = same(NetworkSettings, "device", group="")
    images: int = setting(666, "images of each run; the first 18 are warm-up", at_least=27)


def execute(args: DemoArguments) -> int:
    """Run each scheme on 11 ranks, print their table, draw the picture, write the page."""
    if args.out.exists():
        raise EnvironmentFault(f"{args.out} is there already: choose another --out, or remove it")
    optional("matplotlib", "plot", "the figure")  # the demo would end without it after all runs
    folders = [args.out / name.split()[-1] for name in SCHEMES]
    for folder, (name, flags) in zip(folders, SCHEMES.items(), strict=True):
        say(f"{name}:")
        words = f"{COMMON} {flags} --device {args.device} --limit {args.images}".split()
        how = LaunchArguments(words=(*words, "--out", str(folder)), mpi=args.mpi)
        code = launch_ranks(RANKS, how)
        if code:
            return code
    _tell_and_draw(args.out, folders)
    return 0


def _tell_and_draw(out: Path, folders: list[Path]) -> None:
    from collage_mpi.figures.plots import plot_latency_cdf
    from collage_mpi.report.page import write_report
    from collage_mpi.results import compare, read_results, render_comparison, verify_run

    runs = [read_results(folder) for folder in folders]
    print(f"\n{render_comparison(compare(runs, per='image'))}\n")
    for name, folder in zip(SCHEMES, folders, strict=True):
        print(f"verify {name}: {verify_run(folder).headline}")
    title = (
        f"Fashion-MNIST on ten worker ranks; rank {SLOW} is {FACTOR}x slower throughout\n"
        f"Latency of an image: {RATE:.0f} images a second arrive, {LOAD:g} of what ten single "
        "ranks can answer.\n"
        f"Injected service times: lognormal, median {MEDIAN_MS:.0f} ms, sigma {SIGMA}"
    )
    stem = out / "latency_cdf"
    written = plot_latency_cdf(runs, stem, per="image", title=title, names=list(SCHEMES))
    write_report(folders, out / REPORT)
    for path in (*written, out / REPORT):
        say(f"wrote {path}")


COMMAND = Command(execute, DemoArguments)
