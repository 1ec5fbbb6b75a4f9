"""Accuracy against service time of collage networks: a table, a figure, the frontier.

    python analysis/architecture_search.py --candidates FILE --shards train-*.h5 \
        --single single.safetensors --out DIR [--epochs 2] [--weights W.safetensors ...]

Each line of FILE is "SIDE CELL_PX STEM STAGES", such as "4 28 32x4/2 32x1,96x2/2"; text after
# is a comment. Every candidate is trained for a few epochs with the single network as teacher
(all alike, so that they can be ranked; not what a long training reaches), then all are
timed in turn beside the single network. --weights adds networks that are trained already.
Run again to go on: DIR keeps a weights file for each. Accuracies are those of the validation
split; no test image is read. Writes DIR/search.csv, DIR/search.png and DIR/search.pdf.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from model_cards import stages_text, stem_text

from collage_mpi.cli import main as collage_mpi
from collage_mpi.errors import CollageError, DataFault, UsageError
from collage_mpi.models.architecture import PRESETS, preset
from collage_mpi.models.info import Loading
from collage_mpi.models.weights import describe_weights


@dataclass(frozen=True)
class Point:
    """A row of the table."""

    name: str
    side: int
    cell_px: int
    head: str
    stem: str
    stages: str
    candidate: bool  # trained here, as shortly as all others
    epochs: int
    mflop: float
    service_ms: float
    ratio: float
    validation_accuracy: float


def main() -> int:
    """Train what is missing, time all, write; a mistake is one message and its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--candidates", type=Path, help='lines of "SIDE CELL_PX STEM STAGES"')
    parser.add_argument("--weights", nargs="*", type=Path, default=[], help="trained already")
    parser.add_argument("--shards", nargs="+", type=Path, help="to train candidates on")
    parser.add_argument("--single", required=True, type=Path, help="the single network: teacher")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR")
    parser.add_argument("--epochs", type=int, default=2, help="of a candidate's training (2)")
    parser.add_argument("--calls", type=int, default=200, help="timed calls a network (200)")
    args = parser.parse_args()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        lines = [] if args.candidates is None else read_candidates(args.candidates.read_text())
        paths = [trained(line, args) for line in lines] + args.weights
        if not paths:
            raise UsageError("nothing to compare: give --candidates or --weights")
        points = measure(paths, args.single, args.calls, candidates=len(lines))
        write(points, args.out)
    except CollageError as error:
        print(f"architecture_search: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0


def read_candidates(text: str) -> list[tuple[int, int, str, str]]:
    """(side, cell_px, stem, stages) a line. Raises UsageError on another form."""
    found = []
    for line in text.splitlines():
        words = line.partition("#")[0].split()
        if not words:
            continue
        if len(words) != 4 or not (words[0].isdecimal() and words[1].isdecimal()):
            raise UsageError(f'candidate {line!r}: write "SIDE CELL_PX STEM STAGES"')
        found.append((int(words[0]), int(words[1]), words[2], words[3]))
    return found


def trained(line: tuple[int, int, str, str], args: argparse.Namespace) -> Path:
    """The weights of a candidate, trained now unless an earlier run has done it."""
    side, cell_px, stem, stages = line
    name = f"s{side}-{cell_px}px-{stem}-{stages}-{args.epochs}e".replace("/", "s")
    path = Path(args.out) / f"{name}.safetensors"
    if path.exists():
        return path
    if args.shards is None:
        raise UsageError(f"{path} is not there: give --shards to train it")
    words = ["train", "collage", "--shards", *map(str, args.shards), "--out", str(path)]
    words += ["--side", str(side), "--cell-px", str(cell_px), "--stem", stem, "--stages", stages]
    words += ["--epochs", str(args.epochs), "--batch", str(max(2, round(144 / side**2)))]
    words += ["--seed", "1", "--label-smoothing", "0", "--teacher", str(args.single)]
    if collage_mpi([*words, "--teacher-cache", str(Path(args.out) / "teacher.npz")]) != 0:
        raise DataFault(f"candidate {line} could not be trained: the message is above")
    return path


def measure(paths: Sequence[Path], single: Path, calls: int, candidates: int) -> list[Point]:
    """Time all networks in turn with the single one; accuracies are those of their records.

    Args:
        candidates: how many of the paths, the first ones, were trained here.
    """
    from collage_mpi.models.predictor import TorchPredictor
    from collage_mpi.training.measure import count_flops, service_times

    networks = [TorchPredictor.load(str(path), "collage", Loading()) for path in paths]
    one = TorchPredictor.load(str(single), "single", Loading())
    base, *times = service_times([one, *networks], calls)
    points = []
    for number, (network, path, time) in enumerate(zip(networks, paths, times, strict=True)):
        info = describe_weights(path)
        training = info.metadata["training"]
        points.append(
            Point(
                name=path.stem,
                side=info.side or 1,
                cell_px=info.cell_px or 0,
                head=info.head.name,
                stem=stem_text(info.architecture),
                stages=stages_text(info.architecture),
                candidate=number < candidates,
                epochs=training["epochs"],
                mflop=round(count_flops(network) / 1e6, 1),
                service_ms=round(time.median_ns / 1e6, 3),
                ratio=round(time.median_ns / base.median_ns, 3),
                validation_accuracy=training["validation_accuracy"],
            )
        )
    return sorted(points, key=lambda p: (p.side, p.ratio))


def frontier(points: Sequence[Point]) -> list[Point]:
    """Of one side's points, those that no cheaper one equals in accuracy; rising."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda p: (p.ratio, -p.validation_accuracy)):
        if not kept or point.validation_accuracy > kept[-1].validation_accuracy:
            kept.append(point)
    return kept


def write(points: Sequence[Point], out: Path) -> None:
    """The table to a file and the screen, and the figure."""
    with (out / "search.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Point)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(point) for point in points)
    for p in points:
        print(
            f"side {p.side} cell {p.cell_px:2} {p.head:4} {p.stem:7} {p.stages:20} {p.epochs:3} "
            f"epochs {p.mflop:5.0f} MFLOP {p.service_ms:6.2f} ms {p.ratio:5.2f} x "
            f"{p.validation_accuracy:.2%}"
        )
    draw(points, out)


def draw(points: Sequence[Point], out: Path) -> None:
    """Accuracy against the ratio of service times: candidates and trained networks side by side.

    A colour a side, a line along its frontier, presets by their names; a yolo head is hollow.
    """
    from collage_mpi.figures.plots import STYLE, pyplot, save

    plt = pyplot()
    panels = {
        "candidates, a short training each": [p for p in points if p.candidate],
        "trained to the end": [p for p in points if not p.candidate],
    }
    filled = {title: mine for title, mine in panels.items() if mine}
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(
            1, len(filled), figsize=(4.6 * len(filled), 3.8), squeeze=False, layout="constrained"
        )
        for ax, (title, mine) in zip(axes[0], filled.items(), strict=True):
            ax.set_title(title)
            _panel(ax, mine)
        axes[0][0].set_ylabel("validation accuracy, %")
        for path in save(figure, out / "search"):
            print(path)


def _panel(ax: Any, points: Sequence[Point]) -> None:
    """The points of one panel."""
    from collage_mpi.figures.plots import COLOURS, MARKERS

    for side in sorted({p.side for p in points}):
        mine = [p for p in points if p.side == side]
        look = {"color": COLOURS[side], "marker": MARKERS[side], "linestyle": ""}
        ax.plot([], [], **look, label=f"{side} x {side}")
        for p in mine:
            face = "none" if p.head == "yolo" else COLOURS[side]
            ax.plot(p.ratio, 100 * p.validation_accuracy, **look, markerfacecolor=face)
            words = " ".join([preset_of(p), *(["yolo"] if p.head == "yolo" else [])])
            ax.annotate(
                words.strip(),
                (p.ratio, 100 * p.validation_accuracy),
                xytext=(5, -9),
                textcoords="offset points",
                fontsize=7,
                color=COLOURS[side],
            )
        best = frontier(mine)
        at, height = [p.ratio for p in best], [100 * p.validation_accuracy for p in best]
        ax.plot(at, height, color=COLOURS[side], linewidth=0.9)
    for ratio in (1.0, 1.5):
        ax.axvline(ratio, color="0.7", linewidth=0.8, zorder=0)
    ax.set_xlim(0, None)
    ax.margins(0.15)
    ax.set_xlabel("service time, collage : single")
    ax.legend(fontsize=8)


def preset_of(point: Point) -> str:
    """The name of the preset that this network is; "" where it is none."""
    for name in PRESETS:
        record = asdict(preset(name))
        if (point.stem, point.stages) == (stem_text(record), stages_text(record)):
            return name
    return ""


if __name__ == "__main__":
    raise SystemExit(main())
