"""Training batches: the split into training and validation images, augmentation, and collages or
stripes of random images. Everything is a function of (seed, epoch, step), so that a resumed run
sees the same batches as an uninterrupted one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from collage_mpi.encoding.collage import BLANK, Encoder
from collage_mpi.encoding.grid import Grid
from collage_mpi.encoding.stripe import StripeEncoder, make_stripe_encoder
from collage_mpi.errors import DataFault
from collage_mpi.training.settings import TrainSettings


@dataclass(frozen=True)
class TrainBatch:
    """Inputs of one step.

    Attributes:
        pixels: (n, H, W, C) uint8: images, collages, or pictures of stripes.
        labels: (n, cells) int64; meaningless for blank cells.
        present: (n, cells) bool; False where the cell is blank.
        step_cells: cells of the whole step that are not blank. This batch may be only a part
            of the step.
        chosen: (n, cells) int64, which of the images each cell shows.
        mirrored: (n, cells) int64, 1 where the image is mirrored.
    """

    pixels: np.ndarray
    labels: np.ndarray
    present: np.ndarray
    step_cells: int
    chosen: np.ndarray
    mirrored: np.ndarray


def split(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Random disjoint indices (training, validation), both int64, sorted.

    Raises:
        DataFault: too few images for both parts.
    """
    kept = round(count * share)
    if count - kept < 1 or (share > 0 and kept < 1):
        raise DataFault(f"{count} images cannot be split into training and {share:.0%} validation")
    order = np.random.default_rng([seed, 1]).permutation(count)
    return np.sort(order[kept:]), np.sort(order[:kept])


class BatchMaker:
    """Makes the steps of a training run from images of one shape.

    Args:
        images: (n, H, W, C) uint8; for collages and stripes they are shrunk here, once.
        labels: (n,) int64.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, settings: TrainSettings) -> None:
        self.settings = settings
        self.encoder = encoder_of(settings, images.shape[1:])
        self.images = images if self.encoder is None else self.encoder.shrink(images)
        self.labels = labels
        per_step = settings.batch * settings.cells
        if len(images) < settings.cells:
            what = "collage" if settings.parity is None else "stripe"
            raise DataFault(f"{len(images)} images; one {what} needs {settings.cells}")
        self.per_step = min(per_step, len(images) // settings.cells * settings.cells)
        self.steps_per_epoch = len(images) // self.per_step

    def order(self, epoch: int) -> np.ndarray:
        """(steps_per_epoch, per_step) int64: the images of each step of an epoch.

        Images that do not fill a step at the end of an epoch are left out; they differ from epoch
        to epoch.
        """
        order = np.random.default_rng([self.settings.seed, 2, epoch]).permutation(len(self.images))
        used = self.steps_per_epoch * self.per_step
        return order[:used].reshape(self.steps_per_epoch, self.per_step)

    @property
    def inputs_per_step(self) -> int:
        """Images, collages or stripes in a step."""
        return self.per_step // self.settings.cells

    def make(
        self, chosen: np.ndarray, epoch: int, step: int, part: slice = slice(None)
    ) -> TrainBatch:
        """The augmented batch of the chosen images. Some cells are blanked at random.

        Args:
            chosen: (per_step,) int64, a row of `order`.
            part: the rows of the batch to make. The random numbers of a row do not depend on the
                part, so the parts together are the batch.
        """
        settings, cells = self.settings, self.settings.cells
        random = np.random.default_rng([settings.seed, 3, epoch, step])
        moves = draw_moves(random, len(chosen), settings.flips, settings.shift_px)  # (3, n*cells)
        present = np.ones((len(chosen) // cells, cells), dtype=bool)
        if cells > 1:
            present = random_presence(random, len(present), cells, settings.blank_share)
        step_cells, present = int(present.sum()), present[part]
        own = np.arange(len(chosen)).reshape(-1, cells)[part].reshape(-1)
        images = move(self.images[chosen[own]], moves[:, own], settings.shift_px)
        shown = chosen[own].reshape(-1, cells)  # (n, cells)
        labels, mirrored = self.labels[shown], moves[2, own].reshape(-1, cells)
        images[~present.reshape(-1)] = BLANK
        pixels = together(images, self.encoder)
        return TrainBatch(pixels, labels, present, step_cells, shown, mirrored)


def plain_batches(
    images: np.ndarray, labels: np.ndarray, settings: TrainSettings
) -> list[TrainBatch]:
    """All images in order, without augmentation. The last input is filled up with blank cells."""
    encoder, cells = encoder_of(settings, images.shape[1:]), settings.cells
    images = images if encoder is None else encoder.shrink(images)
    rows = -(-len(images) // cells)
    present = (np.arange(rows * cells) < len(images)).reshape(rows, cells)
    blanks = rows * cells - len(images)
    images = np.concatenate([images, np.full((blanks, *images.shape[1:]), BLANK, np.uint8)])
    filled = np.concatenate([labels, np.zeros(blanks, np.int64)]).reshape(rows, cells)
    pixels = together(images, encoder)
    shown = np.minimum(np.arange(rows * cells), len(labels) - 1).reshape(rows, cells)
    n = max(1, 256 // cells)
    parts = [slice(at, at + n) for at in range(0, rows, n)]
    plain = np.zeros((rows, cells), np.int64)
    return [
        TrainBatch(pixels[p], filled[p], present[p], int(present[p].sum()), shown[p], plain[p])
        for p in parts
    ]


def encoder_of(settings: TrainSettings, shape: tuple[int, ...]) -> Encoder | StripeEncoder | None:
    """What a job makes collages or stripes of images (H, W, C) with; None if an input of the
    network is an image.
    """
    if settings.parity is not None:
        return make_stripe_encoder(settings.parity.encoder, settings.parity.k, shape)
    if settings.side is None or settings.cell_px is None:
        return None
    return Encoder(Grid(settings.side, settings.cell_px), shape)


def together(cells: np.ndarray, encoder: Encoder | StripeEncoder | None) -> np.ndarray:
    """(n*cells, h, w, C), as the encoder shrinks them -> (n, H, W, C) inputs of the network."""
    if encoder is None:
        return cells
    return encoder.paste_many(cells.reshape(-1, encoder.places, *cells.shape[1:]))


def draw_moves(random: np.random.Generator, n: int, flips: bool, shift_px: int) -> np.ndarray:
    """(3, n) int64: first row and first column of each image, 0 .. 2*shift_px, and 1 if it is
    mirrored.
    """
    moves = np.zeros((3, n), np.int64)
    moves[:2] = random.integers(0, 2 * shift_px + 1, (2, n))
    if flips:
        moves[2] = random.random(n) < 0.5
    return moves


def move(images: np.ndarray, moves: np.ndarray, shift_px: int) -> np.ndarray:
    """Shift and mirror (n, H, W, C) uint8 images as `draw_moves` says; returns a new array."""
    n, height, width, channels = images.shape
    edge = shift_px
    padded = np.full((n, height + 2 * edge, width + 2 * edge, channels), BLANK, np.uint8)
    padded[:, edge : edge + height, edge : edge + width] = images
    top, left, mirror = moves
    rows = top[:, None] + np.arange(height)  # (n, H)
    columns = left[:, None] + np.arange(width)  # (n, W)
    mirrored = mirror == 1
    columns[mirrored] = columns[mirrored, ::-1]
    found: np.ndarray = padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]
    return found


def random_presence(
    random: np.random.Generator, n: int, cells: int, blank_share: float
) -> np.ndarray:
    """(n, cells) bool, for 2 cells or more: where an image is shown.

    A share of the rows has 1 .. cells - 1 blank cells. Half of these rows have them at the end.

    In a job, the last group is blank at its end, and groups that are sent again are blank anywhere.
    """
    kept = random.integers(1, cells, n)
    rank = np.argsort(random.random((n, cells)), axis=1)  # a random order of the cells
    at_end = random.random(n) < 0.5
    rank[at_end] = np.arange(cells)
    return (rank < kept[:, None]) | (random.random(n) >= blank_share)[:, None]
