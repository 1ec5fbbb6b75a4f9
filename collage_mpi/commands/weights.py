"""`collage-mpi weights`: finds the score from which a network's answers count."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.commands.evaluate import EvaluateArguments
from collage_mpi.commands.parser import Command, Commands
from collage_mpi.commands.weights_fetch import FETCH
from collage_mpi.errors import DataFault, UsageError
from collage_mpi.kinds import BACKUP, COLLAGE, KIND, SINGLE
from collage_mpi.models import describe, load_predictor
from collage_mpi.models.info import Loading, NetworkInfo, check_fit
from collage_mpi.models.tuning import PLAIN, PRECISIONS
from collage_mpi.settings.flags import Arguments
from collage_mpi.system.fields import REQUIRED, same, setting
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


COMMAND = Commands(
    "TASK",
    {
        "fetch": FETCH,
        "threshold": Command(
            threshold,
            ThresholdArguments,
            "find the score from which a network's answers count, for its weights file",
            epilog="The score is chosen on one half of labelled images that neither network was "
            "trained on, and measured on the other half. `run` uses it by default.",
        ),
    },
)
