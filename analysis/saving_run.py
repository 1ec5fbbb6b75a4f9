"""Processor time of real jobs, the cascade beside the single network on as many ranks.

    python analysis/saving_run.py t10k/shard.h5 --out saving_run.csv
    python analysis/saving_run.py val/*.h5 --single single.safetensors \
        --collage side3_60px=lite0_16_side3_60px.threshold.safetensors --out photographs.csv

Each setting in turn, without injected delays. Processor seconds are those between the first task
and the last row: of the workers together, and of rank 0. It wants an idle machine, Linux and MPICH.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from startup_cost import cpu_s

from collage_mpi.errors import CollageError
from collage_mpi.models.weights import describe_weights
from collage_mpi.results.manifest import compose
from collage_mpi.system.fields import with_shipped
from collage_mpi.system.process_tree import family_of, process_table

LOOK_EVERY_S = 0.01
SINGLE = "shipped:fashion_single.safetensors"
NETWORKS = [
    f"{name}=shipped:fashion_collage_{name}.safetensors"
    for name in ("side3_balanced", "side5", "side3_yolo", "side3")
]
BATCHES = (1, 8)
DEPTH = ("--depth", "64")  # groups in flight, so that no rank waits for work


def settings(single: str, networks: Sequence[str]) -> dict[str, list[str]]:
    """name -> flags: at each batch the single network alone, then each cascade.

    Args:
        single: its weights.
        networks: NAME=WEIGHTS of collage networks.
    """
    found = {}
    for batch in BATCHES:
        common = [*DEPTH, "--batch", str(batch), "--single", single]
        found[f"none, batch {batch}"] = ["--scheme", "none", *common]
        for name, _, collage in (network.partition("=") for network in networks):
            flags = ["--scheme", "cascade", "--collage", collage, *common]
            flags += ["--side", str(describe_weights(with_shipped(collage)).side), "--audit", "0"]
            found[f"{name}, batch {batch}"] = flags
    return found


def manifest_of(out: Path) -> dict[str, Any]:
    """What the job has said of itself so far."""
    try:
        return compose(out)
    except CollageError:
        return {}


def cpu_of_ranks(pids: set[int]) -> dict[int, float]:
    """Rank -> processor seconds so far, of those of the processes that MPICH has numbered."""
    found: dict[int, float] = {}
    for pid in pids:
        try:
            words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended
        for word in words:
            if word.startswith(b"PMI_RANK="):
                rank = int(word.partition(b"=")[2])
                found[rank] = found.get(rank, 0.0) + cpu_s(pid)
    return found


def watch(job: subprocess.Popen[bytes], out: Path, ranks: int) -> list[float]:
    """Processor seconds of each rank from the first task to the last row."""
    begun: dict[int, float] = {}
    latest: dict[int, float] = {}
    pids: set[int] = set()
    while job.poll() is None:
        manifest = manifest_of(out)
        if not begun and manifest.get("cost_ratio") is not None:
            pids = family_of(job.pid, process_table())
            begun = cpu_of_ranks(pids)
        now = cpu_of_ranks(pids)
        if len(now) == ranks:
            latest = now
        if manifest.get("status") == "complete":
            break
        time.sleep(LOOK_EVERY_S)
    return [latest[rank] - begun[rank] for rank in range(ranks)]


def measure(shards: list[str], flags: list[str], ranks: int, limit: int | None) -> dict[str, Any]:
    """One job: images, seconds, accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        run = ["run", "--shards", *shards, *flags, "--out", str(out)]
        run += [] if limit is None else ["--limit", str(limit)]
        run += ["--singles", str(ranks - 1)] if "none" in flags else []
        job = subprocess.Popen(
            [sys.executable, "-m", "collage_mpi", "launch", "-n", str(ranks), "--", *run],
            stdout=subprocess.DEVNULL,
        )
        seconds = watch(job, out, ranks)
        if job.wait():
            raise SystemExit(f"the job ended with code {job.returncode}: {' '.join(run)}")
        summary = json.loads((out / "summary.json").read_text())
    images = summary["rows"]["found"]
    price = summary["price"]
    return {
        "images": images,
        "workers_us": sum(seconds[1:]) / images * 1e6,
        "rank0_us": seconds[0] / images * 1e6,
        "images_per_s": price["images_per_s"],
        "ratio": price["cost_ratio"],
        "accuracy": summary["accuracy"]["overall"]["accuracy"],
        "share": price["collage_share"],
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Medians over the repeats, least and largest; times the single network at the same batch."""
    print("| setting | ratio | worker us an image | x `none` | rank 0 us | images/s | accuracy |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in dict.fromkeys(row["setting"] for row in rows):
        mine = [row for row in rows if row["setting"] == name]
        baseline = f"none, {name.partition(', ')[2]}"
        base = {row["repeat"]: row["workers_us"] for row in rows if row["setting"] == baseline}
        gains = [base[row["repeat"]] / row["workers_us"] for row in mine]
        cells = [name, f"{statistics.median(row['ratio'] for row in mine):.2f}"]
        cells.append(_spread([row["workers_us"] for row in mine], ".0f"))
        cells.append(_spread(gains, ".2f"))
        cells.append(_spread([row["rank0_us"] for row in mine], ".0f"))
        cells.append(_spread([row["images_per_s"] for row in mine], ",.0f"))
        cells.append(f"{100 * statistics.median(row['accuracy'] for row in mine):.2f} %")
        print(f"| {' | '.join(cells)} |")


def _spread(values: list[float], form: str) -> str:
    middle, least, most = statistics.median(values), min(values), max(values)
    return f"{middle:{form}} ({least:{form}}-{most:{form}})"


def main() -> None:
    """Each setting in turn, `--repeats` times over; a line a job in the file, then a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shards", nargs="+")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.csv")
    parser.add_argument("--ranks", type=int, default=3, help="of the world, rank 0 included")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--single", default=SINGLE, metavar="WEIGHTS")
    parser.add_argument("--collage", action="append", metavar="NAME=WEIGHTS")
    args = parser.parse_args()
    rows = []
    for repeat in range(args.repeats):
        for name, flags in settings(args.single, args.collage or NETWORKS).items():
            found = measure(args.shards, flags, args.ranks, args.limit)
            rows.append({"setting": name, "repeat": repeat, **found})
            with args.out.open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)
    show(rows)


if __name__ == "__main__":
    main()
