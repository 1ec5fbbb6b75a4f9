"""Measures networks: answers on shards, FLOPs, parameters and service times; and makes the JSON
report of `evaluate`.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from collage_mpi import __version__
from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import DataFault
from collage_mpi.kinds import COLLAGE, SINGLE, SPARE_KINDS, STAGES
from collage_mpi.models.info import NetworkInfo, Predictor, processor_facts
from collage_mpi.models.own import OwnPredictor
from collage_mpi.models.predictor import TorchPredictor
from collage_mpi.system.progress import advancing
from collage_mpi.training.threshold import TwoStages, answers_in, find_savings, judge, right

if TYPE_CHECKING:
    from collage_mpi.shards import ShardSet


SINGLE_BATCH = 64
QUICK = STAGES[0]
QUICK_SIDE = 3  # a batch of a quick network has as many images as a collage with this side
RATIO_CALLS = 100  # timed calls of each network for a command without --calls
Advance = Callable[[int], None]  # called with the number of further images or calls that are done
Predictors = Mapping[str, TorchPredictor | OwnPredictor]  # kind -> network


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
    advance: Advance = lambda more: None

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C) of the images."""
        return self.images.shape[-3:]

    def read(self, part: slice) -> np.ndarray:
        """Read the images of a part of `order`: (m, H, W, C) uint8."""
        rows, of = self.order[part], self.images
        return np.ascontiguousarray(of[rows] if isinstance(of, np.ndarray) else of.read(rows)[0])


def distinct(asked: AskedImages) -> np.ndarray:
    """(m,) int64, the indices in `order` without those of images that equal an earlier one."""
    first: dict[bytes, int] = {}
    for at in range(0, len(asked.order), SINGLE_BATCH):
        for number, pixels in enumerate(asked.read(slice(at, at + SINGLE_BATCH)), at):
            first.setdefault(blake2b(pixels, digest_size=16).digest(), number)
    return asked.order[list(first.values())]


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


def answers_of(predictor: TorchPredictor | OwnPredictor, asked: AskedImages) -> np.ndarray:
    """The answers of a single or a collage network for all images, (n,) of CELL."""
    side, cell_px = predictor.info.side, predictor.info.cell_px
    if side is None or cell_px is None:
        return answers_in(single_scores(predictor, asked))
    scores = np.empty((len(asked.order), predictor.classes), np.float32)
    encoder = Encoder(Grid(side, cell_px), asked.shape)  # the same as in a job
    collage = np.empty(encoder.input_shape, dtype=np.uint8)
    for at in range(0, len(scores), encoder.places):  # the last collage may have blank cells
        pixels = asked.read(slice(at, at + encoder.places))
        encoder.paste(list(encoder.shrink(pixels)), out=collage)
        scores[at : at + len(pixels)] = predictor.predict(collage[None])[0, : len(pixels)]
        asked.advance(len(pixels))
    return answers_in(scores)


def labelled(shards: ShardSet, what: str) -> np.ndarray:
    """(n,) int64, the labels of all images. Raises DataFault if there are none; `what` needs
    them."""
    labels = shards.labels()
    if labels is None:
        raise DataFault(f"the shards have no labels; {what} needs labelled shards")
    return labels


def ask_each(predictors: Predictors, shards: ShardSet, order: np.ndarray) -> dict[str, np.ndarray]:
    """Kind -> (n,) of CELL, the answers of each network for the same images, with progress.
    `order`: see `AskedImages`."""
    answers = {}
    for kind, predictor in predictors.items():
        with advancing(len(order), kind) as advance:
            answers[kind] = answers_of(predictor, AskedImages(shards, order, advance))
    return answers


def images_a_call(info: NetworkInfo, side: int | None = None) -> int:
    """The number of images that a network classifies in one call as the first stage of a cascade.

    Args:
        side: of the job's collages, if known. A batch of a quick network has as many images as a
            collage.
    """
    return (info.side or side or QUICK_SIDE) ** 2


def count_flops(predictor: TorchPredictor) -> int:
    """The number of floating-point operations for one input, counted by torch.utils.flop_counter:
    of convolutions and matrix products, two for each multiply-accumulate.
    """
    blank = np.zeros((1, *predictor.info.shape), dtype=np.uint8)
    with FlopCounterMode(display=False) as counter:
        predictor.outputs(blank)
    return int(counter.get_total_flops())


def service_times(
    predictors: Sequence[TorchPredictor | OwnPredictor],
    calls: int,
    advance: Advance = lambda more: None,
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


def make_report(
    predictors: Predictors,
    answers: Mapping[str, np.ndarray],
    labels: np.ndarray,
    side: int | None,
    calls: int,
    order: str,
    shards: Sequence[Any],
    advance: Callable[[int], None] = lambda calls: None,
) -> dict[str, Any]:
    """Time the networks and make the report, as plain values.

    Args:
        predictors: kind -> network.
        answers: kind -> (n,) of CELL, in the order of the labels.
        labels: (n,) int64.
        side: of the job's collages; see `images_a_call`.
        calls: number of timed calls of each network.
        order: of the images, as the user gave it.
        shards: descriptions of the shards, with path, source and fingerprint.
        advance: called with the number of further rounds of timed calls that are done.
    """
    at_once = {kind: images_a_call(each.info, side) for kind, each in predictors.items()}
    networks = _networks(predictors, at_once, calls, advance)
    for kind, entry in networks.items():
        entry |= judge(answers[kind], labels, predictors[kind].classes, predictors[kind].info.side)
    report: dict[str, Any] = {
        "device": next(iter(predictors.values())).device,
        "threads": torch.get_num_threads(),
        "calls": calls,
        "order": order,
        "flops_counted_by": "torch.utils.flop_counter (2 per multiply-accumulate)",
        "data": [
            {"file": i.path.name, "source": i.source, "fingerprint": i.fingerprint} for i in shards
        ],
        "processor": processor_facts().get("model name") or platform.machine(),
        "versions": {"collage_mpi": __version__, "torch": torch.__version__},
        "networks": networks,
    }
    if SINGLE in networks:
        correct = {kind: right(each, labels) for kind, each in answers.items()}
        for kind in SPARE_KINDS:
            if kind in networks:
                report[f"{kind}_over_single"] = _ratios(networks, correct, kind)
        first = next((kind for kind in (COLLAGE, QUICK) if kind in networks), None)
        if first is not None:
            took_ns = networks[first].get("batch_service_ns", networks[first]["service_ns"])
            known = predictors[first].info.accept
            its_own = known is not None and known.single == predictors[SINGLE].info.fingerprint
            report["saving"] = find_savings(
                TwoStages(answers[SINGLE], answers[first], labels, at_once[first]),
                took_ns / networks[SINGLE]["service_ns"],
                known if its_own else None,
            )
    return report


def _networks(
    predictors: Predictors,
    at_once: Mapping[str, int],
    calls: int,
    advance: Callable[[int], None],
) -> dict[str, dict[str, Any]]:
    """Kind -> facts and service time of its network."""
    timed, sizes = list(predictors.values()), [1] * len(predictors)
    if QUICK in predictors:  # timed with a batch too
        timed.append(predictors[QUICK])
        sizes.append(at_once[QUICK])
    times = service_times(timed, calls, advance, sizes)
    networks: dict[str, dict[str, Any]] = {}
    for (kind, predictor), took in zip(predictors.items(), times, strict=False):
        networks[kind] = {
            **_facts(predictor),
            "service_ns": took.median_ns,
            "service_p10_ns": took.p10_ns,
            "service_p90_ns": took.p90_ns,
        }
    if QUICK in predictors:
        networks[QUICK] |= {"batch": sizes[-1], "batch_service_ns": times[-1].median_ns}
    return networks


def _facts(predictor: TorchPredictor | OwnPredictor) -> dict[str, Any]:
    info, flops, parameters = predictor.info, None, None
    if isinstance(predictor, TorchPredictor):  # a user's predictor may not use torch
        flops = count_flops(predictor)
        parameters = sum(each.numel() for each in predictor.network.parameters())  # norms folded
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
        "flops": flops,
        "parameters": parameters,
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
