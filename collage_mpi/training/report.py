"""The JSON report of `evaluate`: which networks were measured, the accuracy of their answers, and
their cost.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from collage_mpi import __version__
from collage_mpi.kinds import COLLAGE, ENCODED_KINDS, SINGLE
from collage_mpi.models.own import OwnPredictor
from collage_mpi.models.predictor import TorchPredictor
from collage_mpi.training.answers import Answers, right
from collage_mpi.training.judge import judge
from collage_mpi.training.measure import (
    count_flops,
    count_parameters,
    processor_name,
    service_times,
    torch_threads,
)
from collage_mpi.training.saving import find_savings


def make_report(
    predictors: Mapping[str, TorchPredictor | OwnPredictor],
    answers: Mapping[str, Answers],
    labels: np.ndarray,
    *,
    calls: int,
    order: str,
    shards: Sequence[Any],
    advance: Callable[[int], None] = lambda calls: None,
) -> dict[str, Any]:
    """The report as plain values; the networks are timed here.

    Args:
        predictors: kind -> network.
        answers: kind -> n answers, in the order of the labels.
        labels: (n,) int64.
        calls: timed calls a network.
        order: of the images, as the user gave it.
        shards: their infos: path, source, fingerprint.
        advance: called with how many more rounds of timed calls are made.
    """
    times = service_times(list(predictors.values()), calls, advance)
    networks: dict[str, dict[str, Any]] = {}
    for (kind, predictor), time in zip(predictors.items(), times, strict=True):
        networks[kind] = {
            **_facts(predictor),
            **judge(answers[kind], labels, predictor.classes, predictor.info.side),
            "service_ns": time.median_ns,
            "service_p10_ns": time.p10_ns,
            "service_p90_ns": time.p90_ns,
        }
    report: dict[str, Any] = {
        "device": next(iter(predictors.values())).device,
        "threads": torch_threads(),
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
    correct = {kind: right(each, labels) for kind, each in answers.items()}
    for kind in ENCODED_KINDS:
        if {SINGLE, kind} <= set(networks):
            report[f"{kind}_over_single"] = _ratios(networks, correct, kind)
    if {SINGLE, COLLAGE} <= set(networks):
        collage = predictors[COLLAGE].info
        known = collage.accept
        if known is not None and known.single != predictors[SINGLE].info.fingerprint:
            known = None
        report["saving"] = find_savings(
            answers[SINGLE],
            answers[COLLAGE],
            labels,
            collage.cells,
            report[f"{COLLAGE}_over_single"]["service"],
            None if known is None else known.confidence,
        )
    return report


def _facts(predictor: TorchPredictor | OwnPredictor) -> dict[str, Any]:
    info = predictor.info
    return {
        "weights": info.origin,
        "fingerprint": info.fingerprint,
        "bytes": 0 if info.path is None else info.path.stat().st_size,
        "side": info.side,
        "cell_px": info.cell_px,
        "head": None if info.side is None else info.head.to_dict(),
        "parity": None if info.parity is None else info.parity.to_dict(),
        "input": list(info.shape),
        "architecture": info.architecture,
        "class_names": list(info.class_names),
        "temperature": info.metadata["temperature"],
        "tuning": predictor.tuning,
        "accept": None if info.accept is None else info.accept.to_dict(),
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
