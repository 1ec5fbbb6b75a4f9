"""The commands about networks: `train` trains one on shards; `weights` downloads networks, and
finds the score from which their answers count; `evaluate` measures accuracy and service time of
networks on the same labelled shards.
"""

from __future__ import annotations

import json
import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.commands.parser import Command, Commands
from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.kinds import COLLAGE, KIND, NETWORKS, SINGLE, STAGES
from collage_mpi.models import describe, load_predictor
from collage_mpi.models.architecture import (
    BY_SIDE,
    HEADS,
    PRESETS,
    REFERENCE,
    REFERENCE_BACKBONES,
    REFERENCE_COLLAGE_PX,
    REFERENCE_HEAD,
    YOLO,
    Architecture,
    Backbone,
    HeadSpec,
    default_architecture,
    parse_stages,
    parse_stem,
    preset,
)
from collage_mpi.models.info import PLAIN, PRECISIONS, Geometry, Loading, NetworkInfo, check_fit
from collage_mpi.models.named import OFFLINE, PREFIXES, is_foreign, read_spec
from collage_mpi.settings.flags import Arguments, add_flags, switch
from collage_mpi.settings.run_settings import NetworkSettings
from collage_mpi.system.environment import torchrun_size
from collage_mpi.system.fields import REQUIRED, about, same, setting
from collage_mpi.system.printable import counted, say
from collage_mpi.system.progress import advancing
from collage_mpi.system.table import Table, to_text
from collage_mpi.system.tell import tell
from collage_mpi.training.settings import DISTILLATION, GRID, TrainArguments, TrainSettings

if TYPE_CHECKING:
    import numpy as np

    from collage_mpi.models.predictor import TorchPredictor
    from collage_mpi.training.sources import TrainData
    from collage_mpi.training.threshold import TwoStages


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
    first: str | None = _weights(
        "in place of --collage: weights of a quick single network, which scheme cascade asks first",
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


def evaluate(args: EvaluateArguments) -> int:
    """Measure the networks and print the table, or JSON. Returns 0."""
    given = {kind: getattr(args, kind) for kind in NETWORKS} | {STAGES[0]: args.first}
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
    if args.single is None or (args.collage is None and args.first is None):
        raise UsageError(
            "--save-answers needs two networks: give --single, and --collage or --first"
        )
    if args.shuffle is not None:
        raise UsageError("--save-answers keeps the file order: leave out --shuffle")
    if not path.parent.is_dir():
        raise EnvironmentFault(
            f"{path.parent} is not a directory. Create it, or change --save-answers"
        )


def _measure(args: EvaluateArguments, specs: dict[str, str]) -> dict[str, Any]:
    from collage_mpi.shards import ShardSet
    from collage_mpi.training.measure import make_report

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
        order = "file" if args.shuffle is None else f"shuffle:{args.shuffle}"
        return make_report(predictors, answers, labels, args.side, args.calls, order, read, advance)


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
) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Kind -> (n,) of CELL, the answers, and (n,) labels, for the same images in the same order."""
    import numpy as np

    from collage_mpi.simulation.simulator import save_answers
    from collage_mpi.training.measure import QUICK_SIDE, ask_each, labelled

    order = np.arange(len(shards))
    if args.shuffle is not None:
        order = np.random.default_rng(args.shuffle).permutation(order)
    order = order[: args.limit]
    labels = labelled(shards, "accuracy")[order]
    answers = ask_each(predictors, shards, order)
    if args.save_answers is not None:
        sides = [one.info.side for kind, one in predictors.items() if kind != SINGLE]
        side = next(filter(None, sides), None) or args.side or QUICK_SIDE
        names = predictors[SINGLE].info.class_names
        save_answers(args.save_answers, side, labels, answers, names)
    return answers, labels


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

EVALUATE_COMMAND = Command(evaluate, EvaluateArguments)


@dataclass(frozen=True, kw_only=True)
class ThresholdArguments(Arguments):
    """The arguments of `weights threshold`."""

    shards: tuple[Path, ...] = setting(
        REQUIRED, "shards, of images that neither network was trained on", shipped=True
    )
    single: str = setting(
        REQUIRED, "weights of the single network", metavar="WEIGHTS", shipped=True
    )
    collage: str | None = same(EvaluateArguments, "collage")
    first: str | None = same(EvaluateArguments, "first")
    out: Path | None = setting(
        None, "weights file to write", unset="the file of --collage or --first", metavar="FILE"
    )
    agree: float = setting(
        0.99,
        "share of all images, if they are like these, that get the single network's class, "
        "promised with a probability of 95 %",
        metavar="A",
        above=0,
        below=1,
    )
    device: str = setting("cpu", "cpu, cuda", metavar="DEVICE")
    precision: str = setting(PLAIN.precision, "number format of the networks", choices=PRECISIONS)

    @property
    def networks(self) -> dict[str, str]:
        """Kind -> weights file, the single network first. Raises UsageError if there is only
        one."""
        if self.collage is None and self.first is None:
            raise UsageError(
                "--collage or --first is missing: give the network to find a threshold for"
            )
        kind, given = (STAGES[0], self.first) if self.collage is None else (COLLAGE, self.collage)
        return {SINGLE: self.single, kind: str(given)}


def threshold(args: ThresholdArguments) -> int:
    """Choose a network's threshold, write it into the weights file, and print its effect. Returns
    0.
    """
    from collage_mpi.models.weights import with_accept
    from collage_mpi.training.measure import service_ratio
    from collage_mpi.training.threshold import choose_threshold, find_savings, told_savings

    single, first = _described(args.networks)
    stages, (alone, asked) = _ask_both(args, [single, first])
    found = choose_threshold(stages, single.fingerprint, args.agree)
    made = with_accept(first, found, args.out or Path([*args.networks.values()][1]))
    print(
        f"{made.path}: answers count from a score of {found.confidence:g}. With a probability of "
        f"95 % at least {found.agree:g} of all images, if they are like these, get the single "
        f"network's class. {found.drawn:,} images were drawn; of those that proved the score "
        f"{found.share:.1%} are sure and {found.changed:.2%} get another class. "
        f"sha256 {made.fingerprint[:12]}"
    )
    if stages.labels is not None:
        print(stages.told_accuracy(found.confidence))
    ratio, timed = service_ratio(alone, asked, stages.cells)
    print(told_savings(find_savings(stages, ratio, found), timed))
    return 0


def _described(specs: Mapping[str, str]) -> tuple[NetworkInfo, NetworkInfo]:
    """The descriptions of both networks, the single one first. Raises UsageError if one has no
    weights file, or both are the same.
    """
    single, first = (describe(spec, KIND[kind].network) for kind, spec in specs.items())
    if single is None or first is None:
        raise UsageError("a threshold needs two networks with weights files")
    if single.fingerprint == first.fingerprint:
        kind, spec = [*specs.items()][1]
        flag = kind if kind == COLLAGE else "first"
        raise UsageError(f"--{flag} {spec} is the same network as --single: give another one")
    return single, first


def _ask_both(
    args: ThresholdArguments, infos: Sequence[NetworkInfo]
) -> tuple[TwoStages, list[Any]]:
    """The answers of both networks to all images of the shards, and the two networks. Of images
    with equal pixels only the first counts: a copy proves nothing.
    """
    import numpy as np

    from collage_mpi.shards import ShardSet
    from collage_mpi.training.measure import AskedImages, ask_each, distinct, images_a_call
    from collage_mpi.training.threshold import TwoStages, require_images

    with ShardSet.open(args.shards) as shards:
        check_fit(infos, shards.shape, shards.class_names, args.shards)
        order = distinct(AskedImages(shards, np.arange(len(shards))))
        if len(order) < len(shards):
            say(f"{counted(len(shards) - len(order), 'image')} left out: copies of others")
        require_images(len(order), args.agree)
        how = Loading(device=args.device, tuning=replace(PLAIN, precision=args.precision))
        networks: dict[str, Any] = {
            kind: load_predictor(spec, KIND[kind].network, how)
            for kind, spec in args.networks.items()
        }
        single, first = ask_each(networks, shards, order).values()
        labels = shards.labels()
    known = None if labels is None else labels[order]
    return TwoStages(single, first, known, images_a_call(infos[1])), [*networks.values()]


CACHE = ("HF_HOME", "~/.cache/huggingface")


@dataclass(frozen=True, kw_only=True)
class FetchArguments(Arguments):
    """The arguments of `weights fetch`."""

    networks: tuple[str, ...] = setting(
        REQUIRED,
        "networks by name, timm:NAME or hf:ID, as `run` and `classify` take them",
        metavar="W",
        positional=True,
    )
    trust_network: str = same(NetworkSettings, "trust_network", group="")


def fetch(args: FetchArguments) -> int:
    """Download each network that the cache lacks, and try it. Returns 0."""
    from collage_mpi.models.asking import ask
    from collage_mpi.shards.pictures import DEFAULT_PX

    for spec in args.networks:
        named = read_spec(spec)
        if named is None or named.library not in PREFIXES:
            raise UsageError(f"{spec} comes from no hub: give timm:NAME or hf:ID")
        describe(spec, SINGLE, args.trust_network)
    if os.environ.get(OFFLINE, "0") not in ("", "0"):
        raise UsageError(f"{OFFLINE} is set, so that no hub may be asked: unset it first")
    geometry = Geometry((DEFAULT_PX, DEFAULT_PX, 3), side=1, cell_px=DEFAULT_PX, classes=None)
    folder = os.path.expanduser(os.environ.get(*CACHE) or CACHE[1])
    for spec in args.networks:
        found = ask(spec, SINGLE, geometry, args.trust_network)
        size = " x ".join(map(str, found.info.shape))
        say(f"{spec}: in the cache {folder}; {found.classes:,} classes, images of {size}")
    return 0


WEIGHTS_COMMAND = Commands(
    "TASK",
    {
        "fetch": Command(
            fetch,
            FetchArguments,
            "download networks of timm and transformers into the cache, as on a login node",
            epilog="Ranks find the networks there if HF_HOME names the same folder on their hosts. "
            "For example: HF_HOME=/shared/hub collage-mpi weights fetch timm:resnet50 "
            "hf:microsoft/resnet-18",
        ),
        "threshold": Command(
            threshold,
            ThresholdArguments,
            "find the score from which a network's answers count, for its weights file",
            epilog="The score is chosen and proved as `run --agree` does it, for images like those "
            "of --shards. No labels are needed. `run` uses it by default.",
        ),
    },
)


# Entries of a training record that decide which images are kept for validation
SPLIT = ("shard_fingerprints", "limit", "seed", "validation_share")


@dataclass(frozen=True, kw_only=True)
class _TaughtArguments(TrainArguments):
    teacher: str | None = setting(
        None,
        "single network whose answers this network also learns: anything that run takes as "
        "--single. Labels are then not needed",
        metavar="NETWORK",
        shipped=True,
        group=DISTILLATION,
    )
    trust_network: str = same(NetworkSettings, "trust_network", group=DISTILLATION)
    teacher_cache: Path | None = setting(
        None,
        "file that keeps the answers of the teacher",
        unset="OUT.teacher.npz",
        metavar="NPZ",
        group=DISTILLATION,
    )


@dataclass(frozen=True, kw_only=True)
class TrainSingleArguments(_TaughtArguments):
    """The arguments of `train single`."""

    kind = SINGLE
    preset: str | None = setting(
        None, "train a predefined network: resnet34, for images of 224 px", choices=(REFERENCE,)
    )


@dataclass(frozen=True, kw_only=True)
class TrainCollageArguments(_TaughtArguments):
    """The arguments of `train collage`."""

    kind = COLLAGE
    head: str | None = setting(
        None,
        "how the network answers for the cells",
        unset=f"{HeadSpec.name}; {YOLO} with --preset {REFERENCE}",
        choices=HEADS,
        group=GRID,
    )
    preset: str | None = setting(
        None,
        "train a predefined network",
        unset="by side; see docs/networks.md",
        choices=(*PRESETS, REFERENCE),
        group=GRID,
    )


def train(args: TrainArguments) -> int:
    """Train, write the weights, and print their accuracy. Returns 0.

    Raises:
        UsageError: the weights file or a checkpoint exists and --resume is not given, or torchrun
            started several processes.
        EnvironmentFault: the folder of --out cannot be written.
    """
    if torchrun_size() > 1:
        raise UsageError(
            "torchrun started several processes; training is one process: collage-mpi train ..."
        )
    if args.out.exists() and not args.resume:
        raise UsageError(
            f"{args.out} exists. Choose another --out, remove the file, or continue its training "
            "with --resume"
        )
    checkpoint = args.checkpoint_file
    if checkpoint.exists() and not args.resume:
        raise UsageError(
            f"{checkpoint} exists from an earlier training. Continue that training with "
            f"--resume, or remove the checkpoint: rm {shlex.quote(str(checkpoint))}"
        )
    if args.out.parent.is_dir() and not os.access(args.out.parent, os.W_OK):
        raise EnvironmentFault(f"{args.out.parent}: cannot be written. Choose another --out")
    if not args.out.parent.is_dir():
        raise EnvironmentFault(f"{args.out.parent} is not a directory. Create it, or change --out")
    return _train(args)


def _train(args: TrainArguments) -> int:
    from collage_mpi.models.predictor import usable_device
    from collage_mpi.training.loop import Trainer, store
    from collage_mpi.training.sources import load

    data, facts, settings = load(args, lambda shape: settings_of(args, shape))
    usable_device(args.device)
    trainer = Trainer(data, settings, args)
    if trainer.taken is not None and not args.resume:
        print(f"{trainer.taken[0]} of {trainer.taken[1]} tensors were taken from {args.init}")
    weights = sum(p.numel() for p in trainer.network.parameters())
    print(
        f"{args.kind}: {weights:,} parameters, {len(data.images):,} images to train on, "
        f"{len(data.held_images):,} to validate, {settings.epochs} epochs, "
        f"{trainer.precision}, checkpoint {args.checkpoint_file}",
        flush=True,
    )
    trainer.run()
    info = store(args.out, trainer, facts)
    print(f"{args.out}: {_worth(info.metadata)}, sha256 {info.fingerprint[:12]}")
    if args.kind == COLLAGE or (args.kind == SINGLE and args.teacher is not None):
        print(_saving(args, info, data))
    return 0


def _saving(args: TrainArguments, info: NetworkInfo, data: TrainData) -> str:
    """Describes the service time saved by asking the network before its teacher, on the validation
    images.
    """
    from collage_mpi.training.loop import held_savings
    from collage_mpi.training.sources import teacher_loading
    from collage_mpi.training.threshold import told_savings

    if args.teacher is None:
        return (
            "Saving: n/a, because it needs the single network to compare with: give --teacher, or "
            "use evaluate or weights threshold."
        )
    how = teacher_loading(args, data.images.shape[1:], data.classes)
    told = told_savings(*held_savings(args.teacher, info, data, how))
    mine = info.metadata["training"]
    teacher = describe(args.teacher, SINGLE, args.trust_network)
    its = None if teacher is None else teacher.metadata.get("training")
    if its and any(its.get(name) != mine[name] for name in SPLIT):
        told += (
            "\nThe teacher was trained on another part of the images, so it may have seen images "
            "of this validation split. Give both the same --shards, --limit, --seed and "
            "--validation."
        )
    return told


def _worth(metadata: dict[str, Any]) -> str:
    """Describes the accuracy on the validation images, or why it is unknown."""
    from collage_mpi.results.statistics import wilson_interval
    from collage_mpi.training.loop import MIN_FOR_TEMPERATURE

    training = metadata["training"]
    accuracy, n = training.get("validation_accuracy"), training["validation_images"]
    what = "agreement with the teacher" if "labels" in training else "validation accuracy"
    if accuracy is None:
        return f"{what} n/a (no images were kept for it: --validation 0.05 keeps one in 20)"
    low, high = wilson_interval(round(accuracy * n), n) or (0.0, 1.0)
    found = f"{what} {accuracy:.2%} ({n:,} images: {low:.1%} to {high:.1%})"
    if "validation_ece" not in training:
        few = (
            f"the temperature needs at least {MIN_FOR_TEMPERATURE} validation images: --validation"
        )
        return f"{found}, temperature 1.0 ({few})"
    error = f"calibration error {training['validation_ece']:.4f}"
    return f"{found}, temperature {metadata['temperature']}, {error}"


def settings_of(args: TrainArguments, shape: tuple[int, ...]) -> TrainSettings:
    """The settings of a training on images of shape (H, W, C). Raises UsageError if the flags
    contradict each other.
    """
    from collage_mpi.models.weights import describe_weights
    from collage_mpi.training.sources import teacher_fingerprint

    teacher = None
    if args.teacher is not None:
        teacher = teacher_fingerprint(args.teacher, args.trust_network)
    init = None if args.init is None else describe_weights(args.init)
    chosen = {
        spec.name: args.said(spec.name) for spec in fields(TrainSettings) if about(spec).group
    }
    if args.kind == COLLAGE and chosen["cell_px"] is None:
        chosen["cell_px"] = default_cell_px(args, int(shape[0]))
    return TrainSettings(
        args.kind,
        architecture_of(args),
        **chosen,
        teacher=teacher,
        head=head_of(args),
        init=None if init is None else init.fingerprint,
    )


def architecture_of(args: TrainArguments) -> Architecture | Backbone:
    """The architecture that the flags choose. Raises UsageError if they contradict each other."""
    name = args.preset
    backbone = REFERENCE_BACKBONES[args.kind] if name == REFERENCE else args.backbone
    given = {
        "--backbone": args.backbone,
        "--preset": name,
        "--width": args.width,
        "--stem": None if backbone is None else args.stem,
        "--stages": None if backbone is None else args.stages,
    }
    several = [f"{flag} {value}" for flag, value in given.items() if value is not None]
    if len(several) > 1:
        raise UsageError(f"{' and '.join(several)}: give only one of them")
    if backbone is not None:
        return Backbone(backbone)
    if args.kind == COLLAGE and name is None and args.width is None:
        name = BY_SIDE.get(args.said("side"))
    architecture = (
        default_architecture(args.kind, args.width, args.norm)
        if name is None
        else preset(name, args.norm)
    )
    if args.stem is not None:
        architecture = parse_stem(architecture, args.stem)
    if args.stages is not None:
        architecture = replace(architecture, stages=parse_stages(args.stages))
    return architecture


def head_of(args: TrainArguments) -> HeadSpec:
    """The head that the flags choose. Only collage networks use it. Raises UsageError if the head
    of the reference network is too coarse for the side.
    """
    name = args.head
    reference = args.kind == COLLAGE and args.preset == REFERENCE
    if reference and name in (None, YOLO):
        side = args.said("side")
        if side > REFERENCE_HEAD.across:
            raise UsageError(
                f"--preset {REFERENCE} has {REFERENCE_HEAD.across} squares along an edge, too few "
                f"for --side {side}: choose a smaller side, or --head grid"
            )
        return REFERENCE_HEAD
    return HeadSpec() if name is None else HeadSpec(name)


def default_cell_px(args: TrainArguments, image_px: int) -> int:
    """The default height and width of a cell: those of the image, or for --preset reference those
    that make a collage of REFERENCE_COLLAGE_PX.
    """
    if args.preset == REFERENCE:
        side: int = args.said("side")
        return REFERENCE_COLLAGE_PX // side
    return image_px


TRAIN_COMMAND = Commands(
    "single|collage",
    {
        takes.kind: Command(
            train, takes, line, partial(add_flags, of=TrainSettings, kind=takes.kind)
        )
        for takes, line in (
            (TrainSingleArguments, "train the single network, which classifies one image"),
            (
                TrainCollageArguments,
                "train the collage network, which classifies side x side images at once",
            ),
        )
    },
)
