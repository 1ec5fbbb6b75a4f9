"""Makes training batches: splits training and validation images, augments images, and makes
collages of random images. A batch depends only on (seed, epoch, step), so a resumed run
gets the same batches as an uninterrupted one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from collage_mpi.encoding.collage import BLANK, Encoder
from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import DataFault
from collage_mpi.training.settings import TrainSettings


@dataclass(frozen=True)
class TrainBatch:
    """The inputs of one step.

    Attributes:
        pixels: (n, H, W, C) uint8: images or collages.
        labels: (n, cells) int64; not valid for blank cells.
        present: (n, cells) bool; False for blank cells.
        chosen: (n, cells) int64, index of each cell's image.
    """

    pixels: np.ndarray
    labels: np.ndarray
    present: np.ndarray
    chosen: np.ndarray


def split(count: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Split images at random. Returns the sorted indices, int64, for training and for validation.

    Args:
        count: number of images.
        share: of the images for validation, 0 to 1.

    Raises:
        DataFault: there are too few images for both parts.
    """
    kept = round(count * share)
    if count - kept < 1 or (share > 0 and kept < 1):
        raise DataFault(f"{count} images cannot be split into training and {share:.0%} validation")
    order = np.random.default_rng([seed, 1]).permutation(count)
    return np.sort(order[kept:]), np.sort(order[:kept])


class BatchMaker:
    """Makes the steps of a training run from images of one shape.

    Args:
        images: (n, H, W, C) uint8. For collages they are shrunk once, here.
        labels: (n,) int64.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, settings: TrainSettings) -> None:
        self.settings = settings
        self.encoder = encoder_of(settings, images.shape[1:])
        self.images = images if self.encoder is None else self.encoder.shrink(images)
        self.labels = labels
        per_step = settings.batch * settings.cells
        if len(images) < settings.cells:
            raise DataFault(f"{len(images)} images; one collage needs {settings.cells}")
        self.per_step = min(per_step, len(images) // settings.cells * settings.cells)
        self.steps_per_epoch = len(images) // self.per_step

    def order(self, epoch: int) -> np.ndarray:
        """The indices of the images in each step of an epoch, (steps_per_epoch, per_step) int64.

        The remaining images, which do not fill a step, are left out. They differ between epochs.
        """
        order = np.random.default_rng([self.settings.seed, 2, epoch]).permutation(len(self.images))
        used = self.steps_per_epoch * self.per_step
        return order[:used].reshape(self.steps_per_epoch, self.per_step)

    def make(self, chosen: np.ndarray, epoch: int, step: int) -> TrainBatch:
        """Make a batch of augmented images, in which some cells are blank at random.

        Args:
            chosen: (per_step,) int64, a row of `order`.
        """
        settings, cells = self.settings, self.settings.cells
        random = np.random.default_rng([settings.seed, 3, epoch, step])
        moves = draw_moves(random, len(chosen), settings.flips, settings.shift_px)  # (3, n*cells)
        present = np.ones((len(chosen) // cells, cells), dtype=bool)
        if cells > 1:
            present = random_presence(random, len(present), cells, settings.blank_share)
        images = move(self.images[chosen], moves, settings.shift_px)
        shown = chosen.reshape(-1, cells)  # (n, cells)
        labels = self.labels[shown]
        images[~present.reshape(-1)] = BLANK
        pixels = together(images, self.encoder)
        return TrainBatch(pixels, labels, present, shown)


def plain_batches(
    images: np.ndarray, labels: np.ndarray, settings: TrainSettings
) -> list[TrainBatch]:
    """Batches of all images in order, without augmentation. The last input is padded with blank
    cells."""
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
    return [TrainBatch(pixels[p], filled[p], present[p], shown[p]) for p in parts]


def encoder_of(settings: TrainSettings, shape: tuple[int, ...]) -> Encoder | None:
    """The encoder of collages of images (H, W, C), as in a job; None for a single
    network."""
    if settings.side is None or settings.cell_px is None:
        return None
    return Encoder(Grid(settings.side, settings.cell_px), shape)


def together(cells: np.ndarray, encoder: Encoder | None) -> np.ndarray:
    """Paste shrunk images, (n*cells, h, w, C), into inputs of the network, (n, H, W, C)."""
    if encoder is None:
        return cells
    return encoder.paste_many(cells.reshape(-1, encoder.places, *cells.shape[1:]))


def draw_moves(random: np.random.Generator, n: int, flips: bool, shift_px: int) -> np.ndarray:
    """Draw the augmentation of n images, (3, n) int64: first row and first column in the padded
    image, 0 to 2*shift_px; and 1 if the image is mirrored.
    """
    moves = np.zeros((3, n), np.int64)
    moves[:2] = random.integers(0, 2 * shift_px + 1, (2, n))
    if flips:
        moves[2] = random.random(n) < 0.5
    return moves


def move(images: np.ndarray, moves: np.ndarray, shift_px: int) -> np.ndarray:
    """Shift and mirror images, (n, H, W, C) uint8, by the `moves` of `draw_moves`, in a new
    array."""
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
    """Draw which cells have an image: (n, cells) bool, for two or more cells.

    A share of the rows has 1 to cells - 1 blank cells. In half of these rows they are at the end,
    as in the last group of a job. In the others they are anywhere, as in groups that are sent
    again.
    """
    kept = random.integers(1, cells, n)
    rank = np.argsort(random.random((n, cells)), axis=1)  # a random order of the cells
    at_end = random.random(n) < 0.5
    rank[at_end] = np.arange(cells)
    return (rank < kept[:, None]) | (random.random(n) >= blank_share)[:, None]
