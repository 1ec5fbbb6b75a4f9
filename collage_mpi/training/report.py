"""The JSON report of `evaluate`: which networks were measured, the accuracy of their answers, and
their cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from collage_mpi import __version__
from collage_mpi.kinds import BACKUP, COLLAGE, SINGLE, SPARE_KINDS
from collage_mpi.models.own import OwnPredictor
from collage_mpi.models.predictor import TorchPredictor
from collage_mpi.training.judge import Answers, judge, right
from collage_mpi.training.measure import (
    count_flops,
    count_parameters,
    images_a_call,
    processor_name,
    service_times,
)
from collage_mpi.training.threshold import TwoStages, find_savings


@dataclass(frozen=True)
class AskedNetworks:
    """Networks and their answers to the same images.

    Attributes:
        predictors: kind -> network.
        answers: kind -> n answers, in the order of the labels.
        labels: (n,) int64.
        side: of the job's collages; see `images_a_call`.
    """

    predictors: Mapping[str, TorchPredictor | OwnPredictor]
    answers: Mapping[str, Answers]
    labels: np.ndarray
    side: int | None

    def at_once(self, kind: str) -> int:
        """See `images_a_call`."""
        return images_a_call(self.predictors[kind].info, self.side)


def make_report(
    asked: AskedNetworks,
    calls: int,
    order: str,
    shards: Sequence[Any],
    advance: Callable[[int], None] = lambda calls: None,
) -> dict[str, Any]:
    """Time the networks and make the report, as plain values.

    Args:
        asked: the networks and their answers.
        calls: number of timed calls of each network.
        order: of the images, as the user gave it.
        shards: descriptions of the shards, with path, source and fingerprint.
        advance: called with the number of further rounds of timed calls that are done.
    """
    networks = _networks(asked, calls, advance)
    report: dict[str, Any] = {
        "device": next(iter(asked.predictors.values())).device,
        "threads": torch.get_num_threads(),
        "calls": calls,
        "order": order,
        "flops_counted_by": "torch.utils.flop_counter (2 per multiply-accumulate)",
        "data": [
            {"file": i.path.name, "source": i.source, "fingerprint": i.fingerprint} for i in shards
        ],
        "processor": processor_name(),
        "versions": {"collage_mpi": __version__, "torch": torch.__version__},
        "networks": networks,
    }
    if SINGLE in networks:
        correct = {kind: right(each, asked.labels) for kind, each in asked.answers.items()}
        for kind in SPARE_KINDS:
            if kind in networks:
                report[f"{kind}_over_single"] = _ratios(networks, correct, kind)
        first = next((kind for kind in (COLLAGE, BACKUP) if kind in networks), None)
        if first is not None:
            report["saving"] = _saving(asked, networks, first)
    return report


def _networks(
    asked: AskedNetworks, calls: int, advance: Callable[[int], None]
) -> dict[str, dict[str, Any]]:
    """Kind -> facts, accuracy and service time of its network."""
    predictors, answers = asked.predictors, asked.answers
    timed, sizes = list(predictors.values()), [1] * len(predictors)
    if BACKUP in predictors:  # timed with a batch too
        timed.append(predictors[BACKUP])
        sizes.append(asked.at_once(BACKUP))
    times = service_times(timed, calls, advance, sizes)
    networks: dict[str, dict[str, Any]] = {}
    for (kind, predictor), time in zip(predictors.items(), times, strict=False):
        networks[kind] = {
            **_facts(predictor),
            **judge(answers[kind], asked.labels, predictor.classes, predictor.info.side),
            "service_ns": time.median_ns,
            "service_p10_ns": time.p10_ns,
            "service_p90_ns": time.p90_ns,
        }
    if BACKUP in predictors:
        networks[BACKUP] |= {"batch": sizes[-1], "batch_service_ns": times[-1].median_ns}
    return networks


def _saving(
    asked: AskedNetworks, networks: Mapping[str, Mapping[str, Any]], first: str
) -> dict[str, Any] | None:
    """The saving if the network of kind `first` is asked before the single network."""
    answers, single = asked.answers, asked.predictors[SINGLE].info.fingerprint
    took_ns = networks[first].get("batch_service_ns", networks[first]["service_ns"])
    known = asked.predictors[first].info.accept
    return find_savings(
        TwoStages(answers[SINGLE], answers[first], asked.labels, asked.at_once(first)),
        took_ns / networks[SINGLE]["service_ns"],
        known if known is not None and known.single == single else None,
    )


def _facts(predictor: TorchPredictor | OwnPredictor) -> dict[str, Any]:
    info = predictor.info
    return {
        "weights": info.origin,
        "fingerprint": info.fingerprint,
        "bytes": 0 if info.path is None else info.path.stat().st_size,
        "side": info.side,
        "cell_px": info.cell_px,
        "head": None if info.side is None else info.head.to_dict(),
        "input": list(info.shape),
        "architecture": info.architecture,
        "class_names": list(info.class_names),
        "temperature": info.metadata["temperature"],
        "tuning": predictor.tuning,
        "accept": None if info.accept is None else asdict(info.accept),
        "training": info.metadata.get("training"),
        "flops": count_flops(predictor),
        "parameters": count_parameters(predictor),
    }


def _over(other: int | None, single: int | None) -> float | None:
    return other / single if other is not None and single else None


def _ratios(
    networks: dict[str, dict[str, Any]], correct: dict[str, np.ndarray], kind: str
) -> dict[str, float | None]:
    single, other = networks[SINGLE], networks[kind]
    return {
        "accuracy_points": 100 * (other["accuracy"] - single["accuracy"]),
        "flops": _over(other["flops"], single["flops"]),
        "parameters": _over(other["parameters"], single["parameters"]),
        "service": other["service_ns"] / single["service_ns"],
        "both_right": float((correct[SINGLE] & correct[kind]).mean()),
        "only_single_right": float((correct[SINGLE] & ~correct[kind]).mean()),
        f"only_{kind}_right": float((correct[kind] & ~correct[SINGLE]).mean()),
    }
