"""What a network is worth: accuracy on shards, FLOPs, parameters, service time."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
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
from collage_mpi.models.tuning import processor_facts

if TYPE_CHECKING:
    from collage_mpi.shards import ShardSet

SINGLE_BATCH = 64
QUICK_SIDE = 3  # a batch for a quick network has as many images as a collage of that side
RATIO_CALLS = 100  # timed calls of each network where a command has no --calls
Advance = Callable[[int], None]  # told how many more images, or calls, are done
Decoded = list[tuple[int, float] | None]  # (class, score) of each image; None without an answer


def _silent(more: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True)
class AskedImages:
    """The images that networks are asked about.

    Attributes:
        images: the shards, or (n, H, W, C) uint8 in memory.
        order: (n,) int64, which of them, in the order of the answers.
        advance: told how many more images are done.
    """

    images: ShardSet | np.ndarray
    order: np.ndarray
    advance: Advance = _silent

    @property
    def shape(self) -> tuple[int, ...]:
        """(H, W, C)."""
        return self.images.shape[-3:]

    def read(self, part: slice) -> np.ndarray:
        """(m, H, W, C) uint8: the pixels of a part of the order."""
        rows = self.order[part]
        of = self.images
        return of[rows] if isinstance(of, np.ndarray) else of.read(rows)[0]


class ServiceTime(NamedTuple):
    """Durations of one predict call, in ns: a robust range, and the median."""

    p10_ns: int
    median_ns: int
    p90_ns: int


def single_scores(predictor: Predictor, asked: AskedImages) -> np.ndarray:
    """(n, classes) float32 probabilities, one row an image."""
    scores = np.empty((len(asked.order), predictor.classes), np.float32)
    for at in range(0, len(scores), SINGLE_BATCH):
        pixels = asked.read(slice(at, at + SINGLE_BATCH))
        scores[at : at + len(pixels)] = predictor.predict(pixels)[:, 0]
        asked.advance(len(pixels))
    return scores


def answers_of(predictor: TorchPredictor | OwnPredictor, asked: AskedImages) -> Decoded:
    """One answer for each image by a single network or a collage network."""
    side, cell_px = predictor.info.side, predictor.info.cell_px
    if side is None or cell_px is None:
        return decode(single_scores(predictor, asked))
    answers: Decoded = []
    encoder = Encoder(Grid(side, cell_px), asked.shape)  # as the job has it
    collage = np.empty(encoder.input_shape, dtype=np.uint8)
    for at in range(0, len(asked.order), encoder.places):  # the last may have blanks
        pixels = asked.read(slice(at, at + encoder.places))
        encoder.paste(list(encoder.shrink(pixels)), out=collage)
        answers += decode(predictor.predict(collage[None])[0])[: len(pixels)]
        asked.advance(len(pixels))
    return answers


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
    asked: AskedImages,
    group: int | None = None,
) -> Decoded:
    """The answer decoded for each image as if only its own answer were missing from its stripe.

    The pictures are made by the encoder that the job uses.

    Args:
        predictor: answers for stripes: a parity network, or the single network.
        spec: how stripes are made and decoded.
        temperature: of the decoded scores.
        scores: (n, classes) probabilities of the single network for the same images.
        group: images of a group, which a stripe does not leave; None: all are one group.
    """
    coded, shape = spec.encoder == BERRUT, asked.shape
    encoder: StripeEncoder | BerrutEncoder = (
        BerrutEncoder(spec.k, shape) if coded else make_stripe_encoder(spec.encoder, spec.k, shape)
    )
    each = summands(scores, spec.summed)  # (n, classes)
    answers: Decoded = []
    stripes = list(stripes_of(len(asked.order), spec.k, group))
    for at in range(0, len(stripes), SINGLE_BATCH):
        part = stripes[at : at + SINGLE_BATCH]
        pictures = [encoder.paste(list(encoder.shrink(asked.read(stripe)))) for stripe in part]
        totals = predictor.predict(np.stack(pictures))[:, 0]  # (stripes, classes)
        if coded:
            totals = summands(totals, spec.summed)
        for total, stripe in zip(totals, part, strict=True):
            known = list(each[stripe])
            for missing in range(len(known)):
                others = known[:missing] + known[missing + 1 :]
                place = missing if coded else None
                answers.append(decode_parity(total, others, temperature, place))
        asked.advance(sum(stripe.stop - stripe.start for stripe in part))
    return answers


def stripes_of(count: int, k: int, group: int | None) -> Iterator[slice]:
    """Places of each stripe's images: k at a time, and the remainder of each group."""
    for first in range(0, count, group or max(1, count)):
        end = min(first + (group or count), count)
        for at in range(first, end, k):
            yield slice(at, min(at + k, end))


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
    found = np.percentile(times, [10, 50, 90], axis=1).astype(np.int64)  # (3, networks)
    return [ServiceTime(*each) for each in found.T.tolist()]


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


def processor_name() -> str:
    """The processor's model as Linux names it, or the machine's architecture."""
    return processor_facts().get("model name") or platform.machine()
