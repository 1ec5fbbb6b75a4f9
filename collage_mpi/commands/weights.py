"""`collage-mpi weights`: downloads networks, and finds the score from which their answers count."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.commands.evaluate import EvaluateArguments
from collage_mpi.commands.parser import Command, Commands
from collage_mpi.errors import DataFault, UsageError
from collage_mpi.kinds import BACKUP, COLLAGE, KIND, SINGLE
from collage_mpi.models import describe, load_predictor
from collage_mpi.models.info import PLAIN, PRECISIONS, Loading, NetworkInfo, check_fit
from collage_mpi.models.named import OFFLINE, PREFIXES, read_spec
from collage_mpi.settings.flags import Arguments
from collage_mpi.settings.run_settings import NetworkSettings
from collage_mpi.system.fields import REQUIRED, same, setting
from collage_mpi.system.printable import say
from collage_mpi.system.progress import advancing

if TYPE_CHECKING:
    from collage_mpi.training.threshold import TwoStages


@dataclass(frozen=True, kw_only=True)
class ThresholdArguments(Arguments):
    """The arguments of `weights threshold`."""

    shards: tuple[Path, ...] = same(EvaluateArguments, "shards")
    single: str = setting(
        REQUIRED, "weights of the single network", metavar="WEIGHTS", shipped=True
    )
    collage: str | None = same(EvaluateArguments, "collage")
    backup: str | None = same(EvaluateArguments, "backup")
    out: Path | None = setting(
        None, "weights file to write", unset="the file of --collage or --backup", metavar="FILE"
    )
    aim: str = setting(
        "share",
        "what the threshold optimises. share: as many answers as possible count, for a loss of at "
        "most 0.1 points of accuracy. accuracy: the score that gives the highest accuracy; choose "
        "this if the network is worse than the single network but better where its score is high",
        choices=("share", "accuracy"),
    )
    errors: float = setting(
        2.0,
        "number of standard errors that are added to the loss when the score is chosen. A larger "
        "number is safer, but fewer answers count",
        metavar="N",
        at_least=0,
    )
    device: str = setting("cpu", "cpu, cuda", metavar="DEVICE")
    precision: str = setting(PLAIN.precision, "number format of the networks", choices=PRECISIONS)

    @property
    def networks(self) -> dict[str, str]:
        """Kind -> weights file, the single network first. Raises UsageError if there is only
        one."""
        if self.collage is None and self.backup is None:
            raise UsageError(
                "--collage or --backup is missing: give the network to find a threshold for"
            )
        kind, given = (BACKUP, self.backup) if self.collage is None else (COLLAGE, self.collage)
        return {SINGLE: self.single, kind: str(given)}


def threshold(args: ThresholdArguments) -> int:
    """Choose a network's threshold, write it into the weights file, and print its effect. Returns
    0.
    """
    from collage_mpi.models.weights import with_accept
    from collage_mpi.training.measure import service_ratio
    from collage_mpi.training.threshold import (
        Aim,
        choose_threshold,
        find_savings,
        told_errors,
        told_savings,
    )

    single, first = _described(args.networks)
    stages, (alone, asked) = _ask_both(args, [single, first])
    aim = Aim(share=args.aim == "share", errors=args.errors)
    found = choose_threshold(stages, single.fingerprint, aim)
    made = with_accept(first, found, args.out or Path([*args.networks.values()][1]))
    print(
        f"{made.path}: answers count from a score of {found.confidence:g}, chosen with "
        f"{told_errors(args.errors)}, which changes accuracy "
        f"by {0 - found.chosen_points:+.2f} points on {found.chosen_on:,} images and by "
        f"{0 - found.measured_points:+.2f} on {found.measured_on:,} others, where "
        f"{found.share:.0%} of the answers count; sha256 {made.fingerprint[:12]}"
    )
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
        raise UsageError(f"--{kind} {spec} is the same network as --single: give another one")
    return single, first


def _ask_both(
    args: ThresholdArguments, infos: Sequence[NetworkInfo]
) -> tuple[TwoStages, list[Any]]:
    """The answers of both networks to all images of the shards, and the two networks."""
    import numpy as np

    from collage_mpi.shards import ShardSet
    from collage_mpi.training.measure import AskedImages, answers_of, images_a_call
    from collage_mpi.training.threshold import TwoStages, require_images

    with ShardSet.open(args.shards) as shards:
        check_fit(infos, shards.shape, shards.class_names, args.shards)
        labels = shards.labels()
        if labels is None:
            raise DataFault("the shards have no labels; a threshold needs labelled shards")
        require_images(len(labels))
        how = Loading(device=args.device, tuning=replace(PLAIN, precision=args.precision))
        networks: list[Any] = []
        answers = []
        for kind, spec in args.networks.items():
            networks.append(load_predictor(spec, KIND[kind].network, how))
            with advancing(len(shards), kind) as advance:
                images = AskedImages(shards, np.arange(len(shards)), advance)
                answers.append(answers_of(networks[-1], images))
    return TwoStages(answers[0], answers[1], labels, images_a_call(infos[1])), networks


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
    from collage_mpi.models import describe
    from collage_mpi.models.asking import ask
    from collage_mpi.models.info import Geometry
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


COMMAND = Commands(
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
            epilog="The score is chosen on one half of labelled images that neither network was "
            "trained on, and measured on the other half. `run` uses it by default.",
        ),
    },
)
