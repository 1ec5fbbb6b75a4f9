"""What the protection against lost ranks is worth and what it costs.

Usage: python tests/faults/protection.py detection --samples 20 --folder /tmp/detection
       python tests/faults/protection.py cost --pairs 10 --folder /tmp/cost

Under the environment whose MPI is to be measured.

detection: ranks are killed (or stopped) in jobs of 1 + 8 ranks, five in each; from the clock
just before the signal to rank 0's clock when it tells of the loss, for each layer by itself,
the others being blinded. cost: undisturbed jobs under a plain launch with `abort` and under a
fault-tolerant one with `continue`, in pairs whose order alternates; null networks, so that
what is measured is the job and nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from mortal_jobs import STATUS_VARIABLE, run_mortal

from collage_mpi.launch.mpiexec import Mpi, build_command, find_mpi, site_here
from collage_mpi.results import read_results
from collage_mpi.shards import write_shard

METERED = Path(__file__).parents[1] / "mpi" / "programs" / "metered.py"
SINGLES, VICTIMS = 8, 5
TIMEOUT_S = 1.0  # --reply-timeout-s of the jobs whose ranks stop

# layer -> (how the victims end, what is blinded, the MPIs that have it)
LAYERS = {
    "mpi": ("kill", "only-mpi", ("openmpi",)),
    "process": ("kill", "only-processes", ("openmpi", "mpich")),
    "connection": ("kill", "only-processes,apart", ("openmpi", "mpich")),
    "timeout": ("stop", "", ("openmpi", "mpich")),
}


# ---- detection --------------------------------------------------------------


def detection(mpi: Mpi, samples: int, folder: Path) -> str:
    """A line a layer: n, least, median and largest time in ms."""
    shard = make_shard(folder, images=400)
    lines = [f"{'layer':24}{'n':>5}{'min':>10}{'median':>10}{'max':>10}   ms, {mpi.family}"]
    for layer, (how, blind, families) in LAYERS.items():
        if mpi.family not in families:
            continue
        found: dict[str, list[float]] = {}
        for job in range(-(-samples // VICTIMS)):
            place = folder / f"{layer}-{job}"
            for what, times in one_job(mpi, place, shard, layer, how, blind).items():
                found.setdefault(what, []).extend(times)
        lines += [row(what, times) for what, times in found.items()]
    return "\n".join(lines)


def one_job(
    mpi: Mpi, place: Path, shard: Path, layer: str, how: str, blind: str
) -> dict[str, list[float]]:
    """Times in ms by what was noticed; every victim must be noticed by the layer."""
    deaths = ",".join(f"{rank}:compute:{how}:{2 * rank + 1}" for rank in range(1, VICTIMS + 1))
    out = place.with_name(f"{place.name}-out")
    words = ["run", "--shards", str(shard), "--single", "null", "--scheme", "none"]
    words += ["--side", "2", "--singles", str(SINGLES), "--depth", "3", "--out", str(out)]
    words += ["--straggler", "pinned:20"]
    words += ["--on-rank-loss", "continue"]
    words += ["--reply-timeout-s", str(TIMEOUT_S)] if how == "stop" else []
    ended = run_mortal(
        mpi, 1 + SINGLES, place, f"{deaths},{blind}".strip(","), words, out=out, forked=False
    )
    assert ended.code == 0, ended.said
    victims = range(1, VICTIMS + 1)
    assert ended.layers() == dict.fromkeys(victims, layer), ended.layers()
    names = {"losses": layer} if how == "kill" else {"silences": "silent", "losses": layer}
    return {
        name: [(ended.noted(what)[v][1] - ended.death_ns(v)) / 1e6 for v in victims]
        for what, name in names.items()
    }


def row(what: str, times: list[float]) -> str:
    """One line of the table."""
    cells = (min(times), statistics.median(times), max(times))
    return f"{what:24}{len(times):5}" + "".join(f"{cell:10.1f}" for cell in cells)


# ---- cost -------------------------------------------------------------------


def cost(mpi: Mpi, pairs: int, images: int, folder: Path) -> str:
    """The ratios continue / abort: median, least and largest of the pairs."""
    shard = make_shard(folder, images)
    ratios: dict[str, list[float]] = {}
    absolute: dict[str, list[float]] = {}
    for number in range(pairs):
        order = ("abort", "continue") if number % 2 == 0 else ("continue", "abort")
        pair = {mode: undisturbed(mpi, folder, shard, mode, number) for mode in order}
        for what, value in pair["abort"].items():
            ratios.setdefault(what, []).append(pair["continue"][what] / value)
            absolute.setdefault(what, []).append(value)
    head = f"{'continue / abort':24}{'median':>8}{'min':>8}{'max':>8}{'abort':>12}   "
    lines = [head + f"{pairs} pairs, {images} images each, {mpi.family}"]
    for what, found in ratios.items():
        cells = (statistics.median(found), min(found), max(found))
        base = statistics.median(absolute[what])
        lines.append(f"{what:24}" + "".join(f"{c:8.3f}" for c in cells) + f"{base:12.1f}")
    return "\n".join(lines)


def undisturbed(mpi: Mpi, folder: Path, shard: Path, mode: str, number: int) -> dict[str, float]:
    """One job of 1 + 9 + 1 ranks: images/s, group p50 in ms, rank 0's CPU us an image."""
    out, file = folder / f"{mode}-{number}", folder / f"{mode}-{number}.json"
    words = ["run", "--shards", str(shard), "--single", "null", "--collage", "null"]
    words += ["--side", "3", "--out", str(out), "--confidence", "0", "--on-rank-loss", mode]
    plan = build_command(
        mpi,
        11,
        [sys.executable, str(METERED), str(file), *words],
        site_here(),
        extra_env={STATUS_VARIABLE: "1", "OMP_NUM_THREADS": "1"},
        fault_tolerant=mode == "continue",
    )
    done = subprocess.run(
        plan.argv, env={**os.environ, **plan.env}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(file.read_text())
    rows = read_results(out).groups
    latency_ns = rows["latency_ns"][~rows["warmup"]]
    return {
        "images/s": found["images"] / found["wall_ns"] * 1e9,
        "group p50, ms": float(np.median(latency_ns)) / 1e6,
        "rank 0 CPU, us/image": found["process_ns"] / found["images"] / 1e3,
        "its loop, us/image": found["thread_ns"] / found["images"] / 1e3,
    }


def make_shard(folder: Path, images: int) -> Path:
    """Grey images of 28 px, as Fashion-MNIST's."""
    pixels = np.random.default_rng(0).integers(0, 256, (images, 28, 28, 1), dtype=np.uint8)
    path = folder / "shard.h5"
    write_shard(path, pixels, np.arange(images) % 251, class_names=[str(i) for i in range(251)])
    return path


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("detection", "cost"))
    parser.add_argument("--samples", type=int, default=20, help="of each layer, at least")
    parser.add_argument("--pairs", type=int, default=10, help="of undisturbed jobs")
    parser.add_argument("--images", type=int, default=9000, help="of an undisturbed job")
    parser.add_argument("--folder", type=Path, required=True, help="a new folder")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    mpi = find_mpi()
    if args.what == "detection":
        print(detection(mpi, args.samples, args.folder))
    else:
        print(cost(mpi, args.pairs, args.images, args.folder))
    print(f"load {', '.join(f'{load:.1f}' for load in os.getloadavg())} at the end")
    return 0


if __name__ == "__main__":
    sys.exit(main())
