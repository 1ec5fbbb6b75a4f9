"""Ten made-up jobs, each with another limit: is the limit named, and is the time foretold?

    python analysis/limits.py --out limits.csv           # some 5 minutes on two idle cores

Each job runs twice under `collage-mpi launch`: as a dry run, and in earnest. Printed for each job:
the limit that it is made to have, the limits that the dry run and the summary name, and the time
that the dry run foretells over that of the run, from the first admission to the last row. Networks
and files wait instead of working, so that two cores do for up to 13 ranks; decoding is real.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from collage_mpi.results import read_results
from collage_mpi.shards import write_shard
from collage_mpi.system.bottleneck import SUBJECTS

BIN = Path(sys.executable).parent
UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0}
NETWORKS = """
import os, time
import numpy as np

class Waits:
    def __init__(self, ms, slow=1.0):
        rank = os.environ.get("PMI_RANK") or os.environ.get("OMPI_COMM_WORLD_RANK")
        self.each_s = ms / 1e3 * (slow if rank == "2" else 1.0)

    def predict(self, batch):
        time.sleep(self.each_s * len(batch))
        scores = np.zeros((len(batch), 1, 10), np.float32)
        scores[:, :, 3] = 0.9
        return scores

def quick(**told): return Waits(0.1)
def usual(**told): return Waits(8.0)
def uneven(**told): return Waits(4.0, slow=12.0)
"""
SLOW_FILES = """
import builtins, time
plain = builtins.open
def slow(path, *more, **named):
    if "/small/" in str(path):
        time.sleep(0.01)
    return plain(path, *more, **named)
builtins.open = slow
"""


@dataclass(frozen=True)
class Job:
    """One job: the limit that it is made to have, its input, network, flags and size."""

    limit: str
    input: str
    network: str
    flags: str
    images: int
    ranks: int = 3


NONE = "--scheme none --batch 8"
JOBS = (
    Job("decoding", "photos", "quick", NONE, 400),
    Job("reading", "small", "quick", NONE, 800),
    Job("cpu", "raw.h5", "usual", NONE, 2000),
    Job("arrivals", "raw.h5", "quick", "--scheme none --rate 40", 320),
    Job("rank 0", "raw.h5", "null", "--scheme none --depth 64", 12000, 4),
    Job("rank 0 decoding", "photos", "null",
        "--scheme collage --collage null --confidence 0 --pixels rank0 --side 2", 400, 6),
    Job("rank 0 reading", "small", "null", "--scheme none --batch 8 --pixels rank0", 800),
    Job("one rank", "raw.h5", "uneven",
        "--scheme none --assign turn --endgame off --side 2", 400, 5),
    Job("in flight", "raw.h5", "usual",
        "--scheme none --settings shipped:paper.json --side 2", 1200, 13),
)  # fmt: skip


def make_inputs(folder: Path) -> None:
    """Raw images, photographs' like as JPEG files, small files that open slowly, networks."""
    rng = np.random.default_rng(0)
    write_shard(folder / "raw.h5", rng.integers(0, 256, (12000, 28, 28, 1), np.uint8))
    for name, size, count in (("photos", (1000, 750), 400), ("small", (32, 32), 800)):
        (folder / name).mkdir()
        for number in range(count):
            coarse = Image.fromarray(rng.integers(0, 256, (24, 32, 3), np.uint8))
            picture = coarse.resize(size, Image.Resampling.BICUBIC)
            picture.save(folder / name / f"{number:04d}.jpg", quality=90)
    (folder / "networks.py").write_text(NETWORKS)
    (folder / "sitecustomize.py").write_text(SLOW_FILES)


def played(job: Job, folder: Path, out: Path, *more: str) -> str:
    """What the job prints; `more`: further flags."""
    network = job.network if job.network == "null" else f"{folder}/networks.py:{job.network}"
    words = [BIN / "collage-mpi", "launch", "-n", job.ranks, "--", "run", "--input"]
    words += [folder / job.input, "--single", network, "--out", out, "--limit", job.images]
    words += [*job.flags.split(), *more]
    words += ["--image-px", "32"] if job.input == "small" else []
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(folder)}
    done = subprocess.run(
        [*map(str, words)], env=env, capture_output=True, text=True, timeout=300, check=False
    )
    if done.returncode:
        raise SystemExit(f"{job.limit}: exit code {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def foretold(text: str) -> tuple[str, float]:
    """(limit, seconds) in the output of a dry run: networks that wait need no core of their own."""
    said = re.findall(r"([\d.]+) (s|min|h)\b", re.search(r"^time .*", text, re.M)[0].split(";")[0])
    number, unit = said[0]
    sentence = re.search(r"^limit +(.*)", text, re.M)[1]
    named = [name for name, words in SUBJECTS.items() if sentence.startswith(words)]
    return (named or [sentence])[0], float(number) * UNITS[unit]


def measured(out: Path) -> tuple[str, float]:
    """(limit, seconds) of a run."""
    images, summary = read_results(out).images, json.loads((out / "summary.json").read_text())
    ended_ns = (images["t0_ns"] + images["latency_ns"]).max()
    return summary["limit"]["name"], float(ended_ns - images["t0_ns"].min()) / 1e9


def main() -> None:
    """Play the jobs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="the table as CSV")
    parser.add_argument("--only", default="", help="one limit")
    args = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder)
        for job in (job for job in JOBS if args.only in ("", job.limit)):
            out = folder / "runs" / job.limit.replace(" ", "-")
            told, told_s = foretold(played(job, folder, out, "--dry-run"))
            played(job, folder, out)
            found, took_s = measured(out)
            rows.append(
                (job.limit, told, found, told_s, round(took_s, 2), round(told_s / took_s, 2))
            )
            print(*(f"{value!s:<16}" for value in rows[-1]), flush=True)
    right = sum(limit == found for limit, _, found, *_ in rows)
    near = sum(abs(row[-1] - 1) <= 0.2 for row in rows)
    print(f"{right} of {len(rows)} limits are right; {near} times are within 20 %")
    if args.out:
        with args.out.open("w", newline="") as file:
            names = "made", "foretold", "found", "foretold_s", "took_s", "ratio"
            csv.writer(file).writerows([names, *rows])


if __name__ == "__main__":
    main()
