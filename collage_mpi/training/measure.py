"""Measures networks: answers on shards, FLOPs, parameters and service times; and makes the JSON
report of `evaluate`.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from collage_mpi import __version__
from collage_mpi.encoding.collage import Encoder, decode
from collage_mpi.encoding.grid import Grid
from collage_mpi.kinds import BACKUP, COLLAGE, SINGLE, SPARE_KINDS
from collage_mpi.models.info import NetworkInfo, Predictor, processor_facts
from collage_mpi.models.own import OwnPredictor
from collage_mpi.models.predictor import TorchPredictor
from collage_mpi.training.threshold import Answers, TwoStages, find_savings, judge, right

if TYPE_CHECKING:
    from collage_mpi.shards import ShardSet


SINGLE_BATCH = 64
QUICK_SIDE = 3  # a batch of a quick network has as many images as a collage with this side
RATIO_CALLS = 100  # timed calls of each network for a command without --calls
Advance = Callable[[int], None]  # called with the number of further images or calls that are done
Decoded = list[tuple[int, float] | None]  # (class, score) of each image; None without an answer


def _silent(more: int) -> None:
    """Ignores progress."""


@dataclass(frozen=True)
class AskedImages:
    """The images that networks classify.

    Attributes:
        images: shards, or (n, H, W, C) uint8 in memory.
        order: (n,) int64, indices of the images, in the order of the answers.
        advance: called with the number of further images that are done.
    """

    images: ShardSet | np.ndarray
    order: np.ndarray
    advance: Advance = _silent

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C) of the images."""
        return self.images.shape[-3:]

    def read(self, part: slice) -> np.ndarray:
        """Read the images of a part of `order`: (m, H, W, C) uint8."""
        rows = self.order[part]
        of = self.images
        return of[rows] if isinstance(of, np.ndarray) else of.read(rows)[0]


class ServiceTime(NamedTuple):
    """The duration of a call of `predict`, in ns: median, and 10 % and 90 % quantile."""

    p10_ns: int
    median_ns: int
    p90_ns: int


def single_scores(predictor: Predictor, asked: AskedImages) -> np.ndarray:
    """The probabilities of a single network for all images, (n, classes) float32."""
    scores = np.empty((len(asked.order), predictor.classes), np.float32)
    for at in range(0, len(scores), SINGLE_BATCH):
        pixels = asked.read(slice(at, at + SINGLE_BATCH))
        scores[at : at + len(pixels)] = predictor.predict(pixels)[:, 0]
        asked.advance(len(pixels))
    return scores


def answers_of(predictor: TorchPredictor | OwnPredictor, asked: AskedImages) -> Decoded:
    """The answers of a single or a collage network for all images."""
    side, cell_px = predictor.info.side, predictor.info.cell_px
    if side is None or cell_px is None:
        return decode(single_scores(predictor, asked))
    answers: Decoded = []
    encoder = Encoder(Grid(side, cell_px), asked.shape)  # the same as in a job
    collage = np.empty(encoder.input_shape, dtype=np.uint8)
    for at in range(0, len(asked.order), encoder.places):  # the last collage may have blank cells
        pixels = asked.read(slice(at, at + encoder.places))
        encoder.paste(list(encoder.shrink(pixels)), out=collage)
        answers += decode(predictor.predict(collage[None])[0])[: len(pixels)]
        asked.advance(len(pixels))
    return answers


def images_a_call(info: NetworkInfo, side: int | None = None) -> int:
    """The number of images that a network classifies in one call as the first stage of a cascade.

    Args:
        side: of the job's collages, if known. A batch of a quick network has as many images as a
            collage.
    """
    return (info.side or side or QUICK_SIDE) ** 2


def count_flops(predictor: TorchPredictor | OwnPredictor) -> int | None:
    """The number of floating-point operations for one input, counted by torch.utils.flop_counter:
    of convolutions and matrix products, two for each multiply-accumulate. None for a user's
    predictor, which may not use torch.
    """
    if isinstance(predictor, OwnPredictor):
        return None
    blank = np.zeros((1, *predictor.info.shape), dtype=np.uint8)
    with FlopCounterMode(display=False) as counter:
        predictor.outputs(blank)
    return int(counter.get_total_flops())


def count_parameters(predictor: TorchPredictor | OwnPredictor) -> int | None:
    """The number of parameters, with batch norms folded; None for a user's predictor."""
    if isinstance(predictor, OwnPredictor):
        return None
    return sum(parameter.numel() for parameter in predictor.network.parameters())


def service_times(
    predictors: Sequence[TorchPredictor | OwnPredictor],
    calls: int,
    advance: Advance = _silent,
    inputs: Sequence[int] | None = None,
) -> list[ServiceTime]:
    """Time `predict` for each network. The networks take turns, so that noise affects all alike.

    Each timed call follows an untimed call of the same network, as on a rank that runs only one
    network. The time includes normalisation and softmax, and on a GPU both copies.

    Args:
        calls: number of timed calls of each network.
        inputs: number of inputs in a call of each network; None for one.
    """
    sizes = inputs or [1] * len(predictors)
    noise = [p.info.noise().repeat(n, axis=0) for p, n in zip(predictors, sizes, strict=True)]
    times = np.empty((len(predictors), calls), dtype=np.int64)
    for call in range(-3, calls):
        for number, (predictor, pixels) in enumerate(zip(predictors, noise, strict=True)):
            predictor.predict(pixels)
            begin = time.perf_counter_ns()
            predictor.predict(pixels)
            took = time.perf_counter_ns() - begin
            if call >= 0:
                times[number, call] = took
        advance(int(call >= 0))
    found = np.percentile(times, [10, 50, 90], axis=1).astype(np.int64)  # (3, networks)
    return [ServiceTime(*each) for each in found.T.tolist()]


def service_ratio(
    single: TorchPredictor | OwnPredictor, first: TorchPredictor | OwnPredictor, images: int
) -> tuple[float, str]:
    """The service time of a call of the first network, divided by that of one image on the single
    network; and how it was timed, in words.

    Args:
        images: number of images that a call of the first network classifies.
    """
    inputs = [1, images // first.info.cells]
    one, whole = service_times([single, first], RATIO_CALLS, inputs=inputs)
    how = f"median of {RATIO_CALLS} calls, {first.tuning}, on {first.device}"
    return whole.median_ns / one.median_ns, how


def processor_name() -> str:
    """The model name of the processor, or the architecture of the machine if it is unknown."""
    return processor_facts().get("model name") or platform.machine()


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
    for (kind, predictor), took in zip(predictors.items(), times, strict=False):
        networks[kind] = {
            **_facts(predictor),
            **judge(answers[kind], asked.labels, predictor.classes, predictor.info.side),
            "service_ns": took.median_ns,
            "service_p10_ns": took.p10_ns,
            "service_p90_ns": took.p90_ns,
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
