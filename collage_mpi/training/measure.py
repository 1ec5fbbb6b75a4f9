"""Measures networks: answers on shards, FLOPs, parameters and service times."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from torch.utils.flop_counter import FlopCounterMode

from collage_mpi.encoding.collage import Encoder, decode
from collage_mpi.encoding.grid import Grid
from collage_mpi.models.info import NetworkInfo, Predictor
from collage_mpi.models.own import OwnPredictor
from collage_mpi.models.predictor import TorchPredictor
from collage_mpi.models.tuning import processor_facts

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
