"""What a network is worth: accuracy on shards, FLOPs, parameters, service time."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from collage_mpi.encoding import BERRUT
from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.decode import decode, decode_parity, summands
from collage_mpi.encoding.grid import Grid
from collage_mpi.encoding.stripe import BerrutEncoder, StripeEncoder, make_stripe_encoder
from collage_mpi.models.info import NetworkInfo, Predictor
from collage_mpi.models.own import OwnPredictor
from collage_mpi.models.predictor import TorchPredictor
from collage_mpi.models.specs import ParitySpec

SINGLE_BATCH = 64
QUICK_SIDE = 3  # a batch for a quick network has as many images as a collage of that side
RATIO_CALLS = 100  # timed calls of each network where a command has no --calls
Advance = Callable[[int], None]  # told how many more images, or calls, are done


def _silent(more: int) -> None:
    """Tell nobody."""


class Images(Protocol):
    """What the measuring functions need of a `ShardSet`."""

    shape: tuple[int, int, int]

    def __len__(self) -> int: ...

    def read(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]: ...


@dataclass(frozen=True)
class ServiceTime:
    """Durations of one predict call with batch 1, in ns: the median and a robust range."""

    median_ns: int
    p10_ns: int
    p90_ns: int
    calls: int


def single_scores(
    predictor: Predictor, images: Images, order: np.ndarray, advance: Advance = _silent
) -> np.ndarray:
    """(n, classes) float32 probabilities, one row an image, in the given order."""
    scores = np.empty((len(order), predictor.classes), np.float32)
    for at in range(0, len(order), SINGLE_BATCH):
        pixels, _ = images.read(order[at : at + SINGLE_BATCH])
        scores[at : at + len(pixels)] = predictor.predict(pixels)[:, 0]
        advance(len(pixels))
    return scores


def answers_of(
    predictor: TorchPredictor | OwnPredictor,
    images: Images,
    order: np.ndarray,
    advance: Advance = _silent,
) -> list[tuple[int, float] | None]:
    """One answer for each image, in the given order, by a single network or a collage network."""
    side, cell_px = predictor.info.side, predictor.info.cell_px
    if side is None or cell_px is None:
        return decode(single_scores(predictor, images, order, advance))
    return predict_collage(predictor, Grid(side, cell_px), images, order, advance)


def images_a_call(info: NetworkInfo, side: int | None = None) -> int:
    """Images that a network answers at a call if a cascade asks it first.

    Args:
        side: of the job; the batch of a quick network has as many images as the job's collages.
    """
    return (info.side or side or QUICK_SIDE) ** 2


def predict_parity(
    predictor: Predictor,
    spec: ParitySpec,
    temperature: float,
    scores: np.ndarray,
    images: Images,
    order: np.ndarray,
    group: int | None = None,
    advance: Advance = _silent,
) -> list[tuple[int, float] | None]:
    """The answer decoded for each image as if only its own answer were missing from its stripe.

    The pictures are made by the encoder that the job uses.

    Args:
        predictor: answers for stripes: a parity network, or the single network.
        spec: how stripes are made and decoded.
        temperature: of the decoded scores.
        scores: (n, classes) probabilities of the single network, in the given order.
        group: images of a group, which a stripe does not leave; None: all are one group.
    """
    coded = spec.encoder == BERRUT
    encoder: StripeEncoder | BerrutEncoder = (
        BerrutEncoder(spec.k, images.shape)
        if coded
        else make_stripe_encoder(spec.encoder, spec.k, images.shape)
    )
    each = summands(scores, spec.summed)  # (n, classes)
    answers: list[tuple[int, float] | None] = []
    stripes = list(stripes_of(len(order), spec.k, group))
    for at in range(0, len(stripes), SINGLE_BATCH):
        part = stripes[at : at + SINGLE_BATCH]
        pictures = [_picture(encoder, images, order[stripe]) for stripe in part]
        totals = predictor.predict(np.stack(pictures))[:, 0]  # (stripes, classes)
        if coded:
            totals = summands(totals, spec.summed)
        for total, stripe in zip(totals, part, strict=True):
            known = list(each[stripe])
            for missing in range(len(known)):
                others = known[:missing] + known[missing + 1 :]
                place = missing if coded else None
                answers.append(decode_parity(total, others, temperature, place))
        advance(sum(stripe.stop - stripe.start for stripe in part))
    return answers


def _picture(
    encoder: StripeEncoder | BerrutEncoder, images: Images, chosen: np.ndarray
) -> np.ndarray:
    pixels, _ = images.read(chosen)
    return encoder.paste(list(encoder.shrink(pixels)))


def stripes_of(count: int, k: int, group: int | None) -> Iterator[slice]:
    """Places of each stripe's images: k at a time, and the remainder of each group."""
    for first in range(0, count, group or max(1, count)):
        end = min(first + (group or count), count)
        for at in range(first, end, k):
            yield slice(at, min(at + k, end))


def predict_collage(
    predictor: Predictor,
    grid: Grid,
    images: Images,
    order: np.ndarray,
    advance: Advance = _silent,
) -> list[tuple[int, float] | None]:
    """One answer for each image. Groups are side*side images in the given order; the last has
    blanks.

    The collages are made by the encoder that the job uses.
    """
    answers: list[tuple[int, float] | None] = []
    for collage, used in collages(grid, images, order):
        scores = predictor.predict(collage[None])  # (1, cells, classes)
        answers += decode(scores[0])[:used]
        advance(used)
    return answers


def collages(grid: Grid, images: Images, order: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Yields (collage, number of images in it), group by group. The array is reused for the next
    one.
    """
    encoder = Encoder(grid, images.shape)
    collage = np.empty(encoder.input_shape, dtype=np.uint8)
    for at in range(0, len(order), grid.cells):
        chosen = order[at : at + grid.cells]
        pixels, _ = images.read(chosen)
        yield encoder.paste(list(encoder.shrink(pixels)), out=collage), len(chosen)


def count_flops(predictor: TorchPredictor | OwnPredictor) -> int | None:
    """Floating-point operations for one input, counted by torch.utils.flop_counter.

    It counts convolutions and matrix products, two operations a multiply-accumulate. None for a
    user's own predictor, which may not use torch.
    """
    if isinstance(predictor, OwnPredictor):
        return None
    blank = np.zeros((1, *predictor.info.shape), dtype=np.uint8)
    with FlopCounterMode(display=False) as counter:
        predictor.outputs(blank)
    return int(counter.get_total_flops())


def count_parameters(predictor: TorchPredictor | OwnPredictor) -> int | None:
    """Parameters as run, with batch norms folded; None if the network does not show them."""
    if isinstance(predictor, OwnPredictor):
        return None
    return sum(parameter.numel() for parameter in predictor.network.parameters())


def service_times(
    predictors: Sequence[TorchPredictor | OwnPredictor],
    calls: int,
    advance: Advance = _silent,
    inputs: Sequence[int] | None = None,
) -> list[ServiceTime]:
    """Time predict. The networks take turns, so that noise affects all of them alike.

    Each timed call follows an untimed call of the same network, as on a rank that runs one network
    only. The time covers normalisation and softmax, and on a GPU both copies.

    Args:
        inputs: number of inputs of a call of each network; None for one.
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
    low, middle, high = np.percentile(times, [10, 50, 90], axis=1).astype(np.int64)
    return [
        ServiceTime(int(m), int(p10), int(p90), calls)
        for m, p10, p90 in zip(middle, low, high, strict=True)
    ]


def service_ratio(
    single: TorchPredictor | OwnPredictor, first: TorchPredictor | OwnPredictor, images: int
) -> tuple[float, str]:
    """Service time of a call of the network that is asked first, divided by that of an image on the
    single network, and how it was timed.

    Args:
        images: number of images that the call answers.
    """
    inputs = [1, images // first.info.cells]
    one, whole = service_times([single, first], RATIO_CALLS, inputs=inputs)
    how = f"median of {RATIO_CALLS} calls, {first.tuning}, on {first.device}"
    return whole.median_ns / one.median_ns, how


def torch_threads() -> int:
    """Threads that torch uses on the CPU."""
    return torch.get_num_threads()


def processor_name() -> str:
    """The processor's model as Linux names it, or the machine's architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()
