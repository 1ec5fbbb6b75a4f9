#!/usr/bin/env python3
"""What cheap first stages save at a promise, beside one format alone, on pictures of ImageNet.

Each step keeps what it found in the cache, goes on where it was stopped, and needs the steps before:

    python analysis/first_stages.py answers  --cache C --tiny TINY_IMAGENET_100 --jpegs FOLDER
    python analysis/first_stages.py times    --cache C --tiny TINY_IMAGENET_100
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

HERE = Path(__file__).resolve()
NETWORKS = {"lite0": 224, "lite2": 260}  # pixels
FORMATS = ("float32", "bfloat16", "int8")
SHRUNK = "lite0 int8 of 260 px"  # as a first stage of Lite2 gets its pictures
BLOCK = 500  # pictures of a file of the cache


def pictures(args: argparse.Namespace, name: str) -> list[Path]:
    """The files of a set in an order that does not follow the classes."""
    folder = args.tiny if name == "tiny" else args.jpegs
    files = sorted(each for each in folder.rglob("*") if each.suffix.lower() in (".jpg", ".jpeg"))
    order = np.random.default_rng(0).permutation(len(files))
    return [files[at] for at in order]


@cache
def _classes() -> dict[str, int]:
    """Synsets and words of ImageNet -> class. Of two classes of one word the later one counts, as
    Tiny ImageNet's cardigan is the garment."""
    from timm.data import ImageNetInfo

    info, found = ImageNetInfo(), {}
    for label in range(1000):
        for word in info.index_to_description(label).split(", "):
            found[word.lower().replace(" ", "_").replace("'", "")] = label
        found[info.index_to_label_name(label)] = label
    return found


def label_of(file: Path) -> int:
    """The class that a picture's folder or name says."""
    known, synset = _classes(), file.name.partition("_")[0]
    return known[synset] if synset in known else known[file.parent.name.lower()]


def pixels_of(files: Sequence[Path], px: int) -> np.ndarray:
    """(n, px, px, 3) uint8, as `classify --image-px` decodes pictures for a network of one's own."""
    from collage_mpi.shards.pictures import PictureFit, picture_pixels, usual_resize_px

    fit = PictureFit(px, resize_px=usual_resize_px(px))
    return np.stack([picture_pixels(each.read_bytes(), fit) for each in files])


def predictor_of(network: str, precision: str, runtime: str = "torch") -> Any:
    """A network as a rank loads it."""
    from collage_mpi.kinds import SINGLE
    from collage_mpi.models import load_predictor
    from collage_mpi.models.info import Geometry, Loading, Tuning

    px = NETWORKS[network]
    geometry, tuning = Geometry((px, px, 3), 1, px, 1000), Tuning(precision=precision, runtime=runtime)
    how = Loading(tuning=tuning.on("cpu"), geometry=geometry)
    return load_predictor(f"{HERE.with_name('runtimes.py')}:{network}", SINGLE, how)


def made(args: argparse.Namespace, network: str, precision: str, files: Sequence[Path]) -> Any:
    """A network in OpenVINO, judged and, in int8, quantised by these pictures as a job does it."""
    from collage_mpi.job.changeover import MADE_BATCH, made_batch
    from collage_mpi.models.making import make
    from collage_mpi.models.runtimes import open_runtime, read_record

    folder = args.cache / "networks" / args.set / f"{network}-{precision}"
    tuned, exact = predictor_of(network, precision), predictor_of(network, "float32")
    if (record := read_record(folder)) is None:
        inputs = pixels_of(files, NETWORKS[network])
        batch = made_batch(MADE_BATCH, 1)
        record = make(exact, tuned, inputs, batch, ("openvino",), folder, precision)
        print(f"{network} {precision}: {record}", flush=True)
    if record.runtime != "openvino":
        raise SystemExit(f"{folder}: openvino was not taken: {record.why}; remove it, try again")
    tuned.change_over(open_runtime(folder, record, 1), record.answerer)
    return tuned


def answers(args: argparse.Namespace) -> None:
    """Ask all networks about all pictures. The pictures that quantise are not among them."""
    from collage_mpi.encoding.collage import decode, resized
    from collage_mpi.job.changeover import JUDGED

    for args.set, count in (("jpegs", BLOCK), ("tiny", args.count)):
        files = pictures(args, args.set)[: count + JUDGED]
        judged, files = files[:JUDGED], files[JUDGED:]
        ask = {
            f"{network} {precision}": made(args, network, precision, judged).answer
            for network in NETWORKS
            for precision in FORMATS
        }
        for at in range(0, len(files), BLOCK):
            out = args.cache / "answers" / f"{args.set}-{at:06}.npz"
            if out.exists():
                continue
            block, found = files[at : at + BLOCK], dict[str, list[Any]]()
            for start in range(0, len(block), 4):
                few = block[start : start + 4]
                given = {name: pixels_of(few, px) for name, px in NETWORKS.items()}
                said = {name: call(given[name.split()[0]])[0] for name, call in ask.items()}
                said[SHRUNK] = ask["lite0 int8"](resized(given["lite2"], NETWORKS["lite0"]))[0]
                for name, scores in said.items():
                    found.setdefault(name, []).extend(decode(scores[:, 0], margin=True))
            kept = {name: np.array(each) for name, each in found.items()}  # (n, 2) class, margin
            out.parent.mkdir(parents=True, exist_ok=True)
            with out.with_suffix(".part").open("wb") as file:
                np.savez(file, labels=[label_of(each) for each in block], **kept)
            out.with_suffix(".part").rename(out)
            print(out.name, f"{os.times().user:.0f} CPU s", flush=True)


def main(words: Sequence[str] | None = None) -> int:
    """Do one step."""
    steps = {"answers": answers}
    parser = argparse.ArgumentParser(prog="first_stages", description=__doc__.split("\n")[0])
    parser.add_argument("step", choices=steps)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--tiny", type=Path, help="Tiny ImageNet 100, unpacked")
    parser.add_argument("--jpegs", type=Path, help="a folder of ImageNet's JPEGs")
    parser.add_argument("--count", type=int, default=20_000, help="pictures of Tiny ImageNet")
    args = parser.parse_args(words)
    args.cache.mkdir(parents=True, exist_ok=True)
    steps[args.step](args)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
