"""`collage-mpi evaluate`: measures accuracy and service time of networks on the same labelled
shards.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.commands.parser import Command
from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.kinds import COLLAGE, KIND, NETWORK_SETTINGS, SINGLE
from collage_mpi.models import describe, load_predictor
from collage_mpi.models.info import PLAIN, PRECISIONS, Geometry, Loading, NetworkInfo, check_fit
from collage_mpi.models.named import is_foreign
from collage_mpi.settings.flags import Arguments, switch
from collage_mpi.settings.run_settings import NetworkSettings
from collage_mpi.system.fields import REQUIRED, same, setting
from collage_mpi.system.printable import counted
from collage_mpi.system.progress import advancing
from collage_mpi.system.table import Table, to_text
from collage_mpi.system.tell import tell

if TYPE_CHECKING:
    import numpy as np

    from collage_mpi.models.predictor import TorchPredictor

Entry = dict[str, Any]  # of the report: a network, or a ratio
Row = tuple[str, Callable[[Entry], str], Callable[[Entry], str] | None]

FIRST = "the first network"  # that a cascade asks: a collage network or a quick single network
_weights = partial(setting, None, metavar="WEIGHTS", shipped=True)


@dataclass(frozen=True, kw_only=True)
class EvaluateArguments(Arguments):
    """The arguments of evaluate."""

    shards: tuple[Path, ...] = setting(REQUIRED, "labelled shards", shipped=True)
    single: str | None = _weights("weights of the single network")
    collage: str | None = _weights("weights of the collage network", either=FIRST)
    backup: str | None = _weights(
        "in place of --collage: weights of a quick single network, which scheme cascade-batch asks "
        "first",
        either=FIRST,
    )
    side: int | None = setting(
        None,
        "check that the collage network has this many cells along an edge; the batches of a quick "
        "network have side x side images",
        unset="that of the collage network, else 3",
    )
    cell_px: int | None = setting(
        None,
        "height and width of a cell in pixels, for a collage network of your own",
        unset="the images' height",
    )
    shuffle: int | None = setting(
        None,
        "shuffle the images before they are grouped, with this seed",
        unset="the order of the files",
        metavar="SEED",
    )
    limit: int | None = setting(
        None, "use only the first N images, after shuffling", at_least=1, at_most=math.inf
    )
    calls: int = setting(300, "number of timed calls of each network", at_least=1)
    device: str = setting("cpu", "cpu, cuda or cuda:N", metavar="DEVICE")
    threads: int = setting(1, "number of CPU threads", at_least=1)
    trust_network: str = same(NetworkSettings, "trust_network", group="")
    precision: str = setting(
        PLAIN.precision,
        "number format of the networks. auto: float32",
        choices=PRECISIONS,
    )
    save_answers: Path | None = setting(
        None,
        "write every network's class and score for each image to this file, for simulate --answers",
        metavar="FILE.npz",
        endings=(".npz",),
    )
    json: bool = switch("print JSON instead of the table")


def execute(args: EvaluateArguments) -> int:
    """Measure the networks and print the table, or JSON. Returns 0."""
    given = {kind: getattr(args, kind) for kind in NETWORK_SETTINGS}
    specs = {kind: spec for kind, spec in given.items() if spec is not None}
    if not specs:
        raise UsageError("nothing to evaluate: give --single WEIGHTS, --collage WEIGHTS or both")
    if args.save_answers is not None:
        _check_save(args, args.save_answers)
    report = _measure(args, specs)
    if args.json:
        print(json.dumps(report, indent=2))
    else:
        _print_table(report)
    _warn_of_weak_collage(report["networks"])
    return 0


def _warn_of_weak_collage(networks: dict[str, dict[str, Any]]) -> None:
    """Warn on stderr, not stdout: with --json, stdout holds only the JSON."""
    from collage_mpi.results.statistics import ADVICE, weaker_by

    if not {SINGLE, COLLAGE} <= networks.keys():
        return
    pair = (networks[SINGLE], networks[COLLAGE])
    gap = weaker_by(*((round(one["accuracy"] * one["images"]), one["images"]) for one in pair))
    if gap is not None:
        tell(
            f"warning: the collage network is right {100 * gap:.1f} points less often than the "
            "single network. A job loses this accuracy on each image that the collage network "
            f"answers. {ADVICE}"
        )


def _check_save(args: EvaluateArguments, path: Path) -> None:
    if args.single is None or (args.collage is None and args.backup is None):
        raise UsageError(
            "--save-answers needs two networks: give --single, and --collage or --backup"
        )
    if args.shuffle is not None:
        raise UsageError("--save-answers keeps the file order: leave out --shuffle")
    if not path.parent.is_dir():
        raise EnvironmentFault(
            f"{path.parent} is not a directory. Create it, or change --save-answers"
        )


def _measure(args: EvaluateArguments, specs: dict[str, str]) -> dict[str, Any]:
    from collage_mpi.shards import ShardSet
    from collage_mpi.training.measure import AskedNetworks, make_report

    trusted = args.trust_network
    described = {kind: describe(spec, KIND[kind].network, trusted) for kind, spec in specs.items()}
    for kind, spec in specs.items():
        if described[kind] is None and not is_foreign(spec):
            raise UsageError(f"--{kind} {spec}: a null network has nothing to evaluate")
    infos = [info for info in described.values() if info is not None]
    with ShardSet.open(args.shards) as shards:
        check_fit(infos, shards.shape, shards.class_names, args.shards, args.side, args.cell_px)
        how = Loading(
            device=args.device,
            threads=args.threads,
            tuning=replace(PLAIN, precision=args.precision),
            geometry=_geometry(args, shards, infos),
            trusted=trusted,
        )
        predictors: dict[str, Any] = {
            kind: load_predictor(spec, KIND[kind].network, how) for kind, spec in specs.items()
        }
        answers, labels = _answers(args, shards, predictors)
        read = shards.infos
    with advancing(args.calls, "timing", unit="calls", bar=False) as advance:
        asked = AskedNetworks(predictors, answers, labels, args.side)
        order = "file" if args.shuffle is None else f"shuffle:{args.shuffle}"
        return make_report(asked, args.calls, order, read, advance)


def _geometry(args: EvaluateArguments, shards: Any, infos: list[NetworkInfo]) -> Geometry:
    """The geometry for a network of the user, which has no weights file to state it.

    The number of classes is that of the class names of the shards or of another network, or the
    largest label + 1.
    """
    labels = shards.labels()
    names = shards.class_names or next((info.class_names for info in infos), None)
    classes = len(names) if names else 1 + (0 if labels is None else int(labels.max()))
    return Geometry(shards.shape, args.side or 3, args.cell_px or shards.shape[0], classes)


def _answers(
    args: EvaluateArguments, shards: Any, predictors: dict[str, TorchPredictor]
) -> tuple[dict[str, list[tuple[int, float] | None]], np.ndarray]:
    """Kind -> n answers (class, score), and (n,) labels, for the same images in the same order."""
    import numpy as np

    from collage_mpi.simulation.simulator import save_answers
    from collage_mpi.training.measure import QUICK_SIDE, AskedImages, answers_of

    order = np.arange(len(shards))
    if args.shuffle is not None:
        order = np.random.default_rng(args.shuffle).permutation(order)
    order = order[: args.limit]
    labels = shards.labels()
    if labels is None:
        raise DataFault("the shards have no labels; accuracy needs labelled shards")
    answers, side = {}, args.side
    for kind, predictor in predictors.items():
        if kind != SINGLE:
            side = predictor.info.side or side or QUICK_SIDE
        with advancing(len(order), kind) as advance:
            answers[kind] = answers_of(predictor, AskedImages(shards, order, advance))
    if args.save_answers is not None:
        assert side is not None
        names = predictors[SINGLE].info.class_names
        save_answers(args.save_answers, side, labels[order], answers, names)
    return answers, labels[order]


def _print_table(report: dict[str, Any]) -> None:
    from collage_mpi.training.threshold import told_savings

    networks = report["networks"]
    ratios = {k: r for k in networks if (r := report.get(f"{k}_over_single")) is not None}
    titles = [_title(kind, entry) for kind, entry in networks.items()]
    columns = ("", *titles, *(f"{kind} : single" for kind in ratios))
    rows = []
    places = networks.get(COLLAGE, {}).get("places", {})
    for title, cell, ratio_cell in (*ROWS[:2], *map(_place_row, places), *ROWS[2:]):
        beside = [ratio_cell(ratio) if ratio_cell else "" for ratio in ratios.values()]
        rows.append([title, *map(cell, networks.values()), *beside])
    print(to_text(Table(columns, rows)))
    print(
        f"Service time: median of {report['calls']} calls of batch 1, networks in turn, on "
        f"{report['device']} with {counted(report['threads'], 'thread')}, {_tunings(networks)}. "
        f"FLOP: {report['flops_counted_by']}. Images in {report['order']} order."
    )
    for kind, ratio in ratios.items():
        print(
            f"Same images: both right {ratio['both_right']:.2%}, only the single "
            f"{ratio['only_single_right']:.2%}, only the {kind} "
            f"{ratio[f'only_{kind}_right']:.2%}."
        )
    for kind, entry in networks.items():
        if "batch_service_ns" in entry:
            took = entry["batch_service_ns"] / 1e6
            print(f"A batch of {entry['batch']} by the {kind} network takes {took:.2f} ms.")
    if "saving" in report:
        timed = f"median of {report['calls']} calls, {_tunings(networks)}, on {report['device']}"
        print(told_savings(report["saving"], timed))


def _tunings(networks: dict[str, dict[str, Any]]) -> str:
    told = {kind: entry["tuning"] for kind, entry in networks.items()}
    if len(set(told.values())) == 1:
        return str(next(iter(told.values())))
    return "; ".join(f"{kind} {tuning}" for kind, tuning in told.items())


def _title(kind: str, entry: dict[str, Any]) -> str:
    return f"{kind} {entry['side']}x{entry['side']}" if entry["side"] else kind


def _shown(value: float | None, form: str = "{:.2f}", unit: float = 1) -> str:
    return "n/a" if value is None else form.format(value / unit)


def _place_row(place: str) -> Row:
    from collage_mpi.training.threshold import AT

    def accuracy(entry: Entry) -> str:
        return f"{entry['places'][place]['accuracy']:.2%}" if "places" in entry else ""

    return f"  {AT[place]}", accuracy, None


# rows of the table: title, text for a network, text for its ratio to the single network
ROWS: tuple[Row, ...] = (
    ("images", lambda e: f"{e['images']:,}", None),
    ("accuracy", lambda e: f"{e['accuracy']:.2%}", lambda r: f"{r['accuracy_points']:+.2f} points"),
    ("no answer", lambda e: f"{e['absent']:.2%}", None),
    ("calibration error", lambda e: f"{e['ece']:.4f}", None),
    ("MFLOP a call", lambda e: _shown(e["flops"], "{:.0f}", 1e6), lambda r: _shown(r["flops"])),
    (
        "parameters",
        lambda e: _shown(e["parameters"], "{:,.0f}"),
        lambda r: _shown(r["parameters"]),
    ),
    (
        "service time, ms",
        lambda e: f"{e['service_ns'] / 1e6:.2f}",
        lambda r: f"{r['service']:.2f}",
    ),
    (
        "  10-90 %, ms",
        lambda e: f"{e['service_p10_ns'] / 1e6:.2f}-{e['service_p90_ns'] / 1e6:.2f}",
        None,
    ),
)

COMMAND = Command(execute, EvaluateArguments)
