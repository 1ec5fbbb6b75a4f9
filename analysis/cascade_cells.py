"""Sure cells by the number of images in a collage, of the shipped networks or of others.

    python analysis/cascade_cells.py --out analysis/answers/cells.npz    # nine minutes of CPU time
    python analysis/cascade_cells.py --from analysis/answers/cells.npz   # the table again, no data
    python analysis/cascade_cells.py --shards val/*.h5 --single single.safetensors \
        --network 'side3 60px=lite0_16_side3_60px.threshold.safetensors' --out cells.npz

For k from 1 to all cells of a collage, the images fill the first k cells of collages in file order,
as the job fills them, and the other cells are blank; images that are left over stay out. Without
`--shards` they are the 10,000 test images of Fashion-MNIST. Counted are the sure cells (score at or
above the threshold in the network's file), how many of them are right, and how often the single
network is right on the same images. Networks answer in float32 on one thread.
"""

from __future__ import annotations

import argparse
import io
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from collage_mpi import kinds
from collage_mpi.cli import main as collage_mpi
from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import CollageError, DataFault, EnvironmentFault
from collage_mpi.models import load_predictor
from collage_mpi.models.info import Predictor
from collage_mpi.models.weights import describe_weights
from collage_mpi.shards import ShardSet
from collage_mpi.system.fields import with_shipped
from collage_mpi.system.files import UNREADABLE, save_file

DATA = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "dataset-fashion-mnist"
CLASSES = Path(__file__).parents[1] / "data_prep" / "fashion_classes.txt"
SINGLE = "shipped:fashion_single.safetensors"
NETWORKS = [
    f"{name}=shipped:fashion_collage_{name}.safetensors"
    for name in ("side3", "side3_balanced", "side3_yolo", "side4", "side5")
]
BATCH = 32  # collages


@dataclass(frozen=True)
class Cells:
    """Counts of one network: entry k - 1 is of collages with k images.

    Attributes:
        threshold: the least score of a sure cell.
        counts: (cells, 5) int64: images, sure cells; of these those that are right, those on whose
            images the single network is right, and those where both are.
    """

    threshold: float
    counts: np.ndarray


def main(words: Sequence[str] | None = None) -> int:
    """Count or read, and print the table; a mistake is one message and its exit code."""
    parser = argparse.ArgumentParser(prog="cascade_cells", description=__doc__.split("\n")[0])
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--out", type=Path, metavar="FILE.npz", help="count, and write this file")
    source.add_argument("--from", type=Path, dest="kept", metavar="FILE.npz", help="read this file")
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the data set's files")
    parser.add_argument("--shards", nargs="+", help="labelled images, instead of --data")
    parser.add_argument("--single", default=SINGLE, metavar="WEIGHTS")
    parser.add_argument("--network", action="append", metavar="NAME=WEIGHTS", help="with threshold")
    args = parser.parse_args(words)
    try:
        found = read(args.kept) if args.kept else count_all(args)
        if args.out:
            save(args.out, found)
    except CollageError as error:
        print(f"cascade_cells: {error}", file=sys.stderr)
        return int(error.exit_code)
    print(table(found))
    return 0


def count_all(args: argparse.Namespace) -> dict[str, Cells]:
    """Network -> its counts on the images."""
    images, labels = read_images(args.shards) if args.shards else test_images(args.data)
    single = load_predictor(with_shipped(args.single), kinds.SINGLE)
    parts = [single.predict(images[at : at + BATCH])[:, 0] for at in range(0, len(images), BATCH)]
    alone = np.concatenate(parts)  # (n, classes)
    found = {}
    for name, _, weights in (network.partition("=") for network in args.network or NETWORKS):
        found[name] = count(with_shipped(weights), images, labels, alone)
        print(f"{name}: {len(found[name].counts)} sizes of collage counted", file=sys.stderr)
    return found


def test_images(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """(10,000, 28, 28, 1) uint8 and (10,000,) int64, by `collage-mpi prep idx`."""
    files = [folder / f"t10k-{what}-ubyte.gz" for what in ("images-idx3", "labels-idx1")]
    if missing := [str(path) for path in files if not path.is_file()]:
        raise EnvironmentFault(
            f"{', '.join(missing)}: not there. On Debian or Ubuntu type apt install {PACKAGE}; "
            "elsewhere name the folder of Fashion-MNIST's files with --data"
        )
    with tempfile.TemporaryDirectory() as out:
        words = ["prep", "idx", "--images", str(files[0]), "--labels", str(files[1]), "--out", out]
        words += ["--class-names-file", str(CLASSES), "--prefix", "t10k", "--source", "t10k"]
        with redirect_stdout(sys.stderr):  # stdout is for the table
            code = collage_mpi(words)
        if code != 0:
            raise DataFault(f"{folder} could not be made into a shard: the message is above")
        return read_images([str(Path(out) / "t10k.h5")])


def read_images(paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """(n, H, W, C) uint8 and (n,) int64 of shards."""
    shards = ShardSet.open([Path(path) for path in paths])
    try:
        images, labels = shards.read(np.arange(len(shards)))
    finally:
        shards.close()
    if labels is None:
        raise DataFault(f"{paths[0]} has no labels: accuracy needs them")
    return images, labels


def count(path: str, images: np.ndarray, labels: np.ndarray, alone: np.ndarray) -> Cells:
    """One network's counts.

    Args:
        path: the network's weights.
        images, labels: (n, H, W, C) uint8 and (n,) int64.
        alone: (n, classes) scores of the single network.
    """
    info, predictor = describe_weights(path), load_predictor(path, kinds.COLLAGE)
    assert info.side is not None
    assert info.cell_px is not None
    encoder = Encoder(Grid(info.side, info.cell_px), images.shape[1:])
    scores = {k: answers(predictor, encoder, images, k) for k in range(1, info.cells + 1)}
    if info.accept is None:
        raise DataFault(f"{path} has no threshold: collage-mpi weights threshold finds one")
    threshold = info.accept.confidence
    single_right = alone.argmax(1) == labels
    rows = [counted(scores[k], labels, single_right, threshold) for k in sorted(scores)]
    return Cells(threshold, np.array(rows, np.int64))


def answers(predictor: Predictor, encoder: Encoder, images: np.ndarray, k: int) -> np.ndarray:
    """(m, classes) scores of the images in collages of the first k cells; m is a multiple of k."""
    groups = len(images) // k
    found = []
    for at in range(0, groups, BATCH):
        mine = range(at, min(at + BATCH, groups))
        cells = [list(encoder.shrink(images[g * k : (g + 1) * k])) for g in mine]
        collages = np.stack([encoder.paste(part) for part in cells])
        found.append(predictor.predict(collages)[:, :k].reshape(-1, predictor.classes))
    return np.concatenate(found)


def counted(
    scores: np.ndarray, labels: np.ndarray, single_right: np.ndarray, threshold: float
) -> tuple[int, ...]:
    """A row of `Cells.counts` from (m, classes) scores of the first m images."""
    m = len(scores)
    sure = scores.max(1) >= threshold
    right, alone = sure & (scores.argmax(1) == labels[:m]), sure & single_right[:m]
    return m, *(int(each.sum()) for each in (sure, right, alone, right & alone))


def save(path: Path, found: Mapping[str, Cells]) -> None:
    """Two plain arrays a network: NAME_threshold and NAME_counts."""
    buffer = io.BytesIO()
    arrays = {}
    for name, cells in found.items():
        arrays |= {f"{name}_threshold": cells.threshold, f"{name}_counts": cells.counts}
    np.savez_compressed(buffer, **arrays)
    save_file(path, buffer.getvalue())


def read(path: Path) -> dict[str, Cells]:
    """What `save` wrote. Raises EnvironmentFault, DataFault."""
    try:
        with np.load(path, allow_pickle=False) as file:
            names = [key.removesuffix("_counts") for key in file if key.endswith("_counts")]
            return {n: Cells(float(file[f"{n}_threshold"]), file[f"{n}_counts"]) for n in names}
    except OSError as error:
        raise EnvironmentFault(f"{path} cannot be read: {error.strerror or error}") from error
    except UNREADABLE as error:
        raise DataFault(f"{path} is no file of cascade_cells.py: {error}") from error


def table(found: Mapping[str, Cells]) -> str:
    """Markdown: a row for each number of images, a column for each network."""
    titles = [f"{name}, score {cells.threshold:g}" for name, cells in found.items()]
    lines = [["images", *titles], ["---"] * (1 + len(titles))]
    for k in range(1, 1 + max(len(cells.counts) for cells in found.values())):
        lines.append([str(k), *(told(cells.counts, k) for cells in found.values())])
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"{text}\n\nShare of sure cells; of these the share that is right (that of the single "
        "network on the same images); points of accuracy beside the single network if sure cells "
        "answer (two standard errors)."
    )


def told(counts: np.ndarray, k: int) -> str:
    """One entry of the table; empty where a collage has fewer cells."""
    if k > len(counts):
        return ""
    images, sure, right, alone, both = (int(n) for n in counts[k - 1])
    change, differ = (right - alone) / images, (right + alone - 2 * both) / images
    two_errors = 2 * ((differ - change**2) / images) ** 0.5
    of_sure = max(1, sure)
    return (
        f"{sure / images:.1%}; {right / of_sure:.2%} ({alone / of_sure:.2%}); {100 * change:+.2f} "
        f"({100 * two_errors:.2f})"
    )


if __name__ == "__main__":
    raise SystemExit(main())
