#!/usr/bin/env python3
"""JPEG files to classes with networks that people use: ours beside its peers, two processes each.

    pip install timm 'ray[data]' daft           # a peer that is not installed is left out
    python analysis/peers/classes.py PICTURES --networks lite0 resnet50

All programs decode by this package and get the same pixels. Printed for each input: images a second
from the first task to the last answer (without start-up, compiling and making), and the share of
classes that differ from those of torch in float32. "?": the program does not say the classes in
order, and their sum differs.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

HERE, BIN = Path(__file__).resolve().parent, Path(sys.executable).parent
WORKERS, CHUNK, LIMIT_S = 2, 8, 280.0
TIMM = {"resnet50": "resnet50", "mobilenetv3": "mobilenetv3_large_100",
        "vit_s": "vit_small_patch16_224"}  # fmt: skip
OURS = {"ours, torch": "torch", "ours": "auto"}
PEERS = {"timm_loop": "timm", "timm_loop --compiled": "timm", "static_loader": "torch",
         "futures": "mpi4py", "ray_data": "ray", "daft_udf": "daft"}  # fmt: skip


def _timm(name: str):
    import timm
    import torch

    torch.manual_seed(0)
    return timm.create_model(TIMM[name], pretrained=False).eval()


def resnet50(**_):
    return _timm("resnet50")


def mobilenetv3(**_):
    return _timm("mobilenetv3")


def vit_s(**_):
    return _timm("vit_s")


def lite0(**_):
    """With ImageNet weights."""
    sys.path.insert(0, str(HERE.parent))
    from runtimes import lite0

    return lite0()


def make_input(kind: str, pictures: Path, count: int, folder: Path) -> Path:
    """A folder, a tar file or a folder of 2000 x 1500: the first pictures again and again."""
    files = sorted(pictures.iterdir())
    place = folder / kind
    place.mkdir()
    for number in range(count):
        out, file = place / f"{number:06}.jpg", files[number % len(files)]
        size = (2000, 1500) if kind == "large" else (500, 375)
        Image.open(file).convert("RGB").resize(size).save(out, quality=90)
    if kind != "tar":
        return place
    with tarfile.open(folder / "pictures.tar", "w") as tar:
        for file in sorted(place.iterdir()):
            tar.add(file, file.name)
    return folder / "pictures.tar"


def ours(source: Path, network: str, work: Path, runtime: str) -> tuple[float, np.ndarray]:
    """Images a second, and classes in the order of the input."""
    from compare import ours as said

    from collage_mpi.results import read_results

    words = ["launch", "-n", WORKERS + 1, "--", "run", "--input", source, "--single", network]
    words += ["--scheme", "none", "--batch", "auto", "--pixels", "workers", "--out", work]
    words += ["--input-labels", "none", "--image-px", 224, "--resize-px", 224]
    play([BIN / "collage-mpi", *words, "--runtime", runtime])
    images = read_results(work).images
    order = np.argsort(images["row"])
    return said(work)["images_per_s"], images["predicted"][order]


def peer(program: str, source: Path, network: str, count: int, work: Path) -> dict[str, float]:
    """What a program reports."""
    name, *more = program.split()
    work.mkdir()
    flags = ["--shard", source, "--images", count, "--workers", WORKERS, "--chunk", CHUNK]
    flags += ["--source", "workers", "--network", network, "--notes", work, *more]
    start = [sys.executable]
    if name in ("futures", "static_loader"):
        start = [BIN / "mpiexec", "-n", WORKERS + (name == "futures"), *start]
        start += ["-m", "mpi4py.futures"] if name == "futures" else []
    out = play([*start, HERE / f"{name}.py", *flags])
    return json.loads([line for line in out.splitlines() if line.startswith('{"rows"')][-1])


def play(words: list[object]) -> str:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE)}
    done = subprocess.run(
        [*map(str, words)], env=env, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr.strip()[-300:])
    return done.stdout


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("pictures", type=Path, help="folder of JPEGs")
    parser.add_argument("--images", type=int, default=1000, help="fewer end before ours is made")
    parser.add_argument("--inputs", nargs="+", default=["folder"], help="folder, tar, large")
    parser.add_argument("--networks", nargs="+", choices=["lite0", *TIMM], default=["lite0"])
    args = parser.parse_args()
    print("| input | network | program | images/s | changed |\n|---|---|---|---|---|", flush=True)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ["COLLAGE_MPI_CACHE"] = str(folder / "cache")
        for kind in args.inputs:
            source = make_input(kind, args.pictures, args.images, folder)
            for network in args.networks:
                compare(kind, source, network, args.images, folder / f"{kind}-{network}")


def compare(kind: str, source: Path, network: str, count: int, folder: Path) -> None:
    """Print the lines of an input and a network."""
    spec = f"{HERE / 'classes.py'}:{network}"
    folder.mkdir()
    ours(source, spec, folder / "made", "openvino")  # fills the cache
    wanted = np.empty(0, np.int64)
    for program in (*OURS, *(each for each, needs in PEERS.items() if find_spec(needs))):
        work, changed = folder / program.replace(" ", ""), "?"
        try:
            if program in OURS:
                rate, found = ours(source, spec, work, OURS[program])
                wanted = wanted if len(wanted) else found
                changed = f"{np.mean(found != wanted):.1%}"
            else:
                said = peer(program, source, spec, count, work)
                rate, saved = said["images_per_s"], work / "classes.npy"
                if saved.exists():
                    changed = f"{np.mean(np.load(saved, allow_pickle=False) != wanted):.1%}"
                elif said["class_sum"] == wanted.sum():
                    changed = "0.0%"
            print(f"| {kind} | {network} | {program} | {rate:.1f} | {changed} |", flush=True)
        except (RuntimeError, subprocess.TimeoutExpired, IndexError) as error:
            print(f"| {kind} | {network} | {program} | failed: {error} | |", flush=True)


if __name__ == "__main__":
    main()
