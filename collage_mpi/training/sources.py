"""Reads the inputs of a training run: shards, first weights, and outputs of a
single network for every image (a teacher's answers, or features). These outputs are computed once,
and cached in a file. If training mirrors images, the mirror image is a second view.

Makes training batches too: splits training and validation images, augments images, and makes
collages of random images. A batch depends only on (seed, epoch, step), so a resumed run gets the
same batches as an uninterrupted one.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.encoding.collage import BLANK, Encoder
from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import DataFault, UsageError
from collage_mpi.kinds import SINGLE
from collage_mpi.models import describe, load_predictor
from collage_mpi.models.gate import sha256_of_network
from collage_mpi.models.info import Geometry, Loading, check_fit
from collage_mpi.models.named import read_spec
from collage_mpi.models.weights import describe_weights, read_tensors
from collage_mpi.shards import ShardSet
from collage_mpi.system.files import UNREADABLE_OR_GONE, require_regular, save_file
from collage_mpi.system.progress import advancing
from collage_mpi.training.measure import AskedImages, single_scores
from collage_mpi.training.settings import TrainArguments, TrainSettings


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
    return padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


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


def teacher_logits(views: np.ndarray) -> np.ndarray:
    """The logarithm of the probabilities' mean over all views, (n, classes) float32.

    Args:
        views: (n, views, classes) float32, from `teacher_views`.
    """
    return np.logaddexp.reduce(views, axis=1) - np.float32(np.log(views.shape[1]))


def teacher_fingerprint(spec: str, trusted: str) -> str:
    """Identifies a teacher: the fingerprint of its weights file, or the hash of its name and file.

    Args:
        spec: any network that `run` takes as its single network.
        trusted: the setting trust_network.

    Raises:
        UsageError, EnvironmentFault, DataFault: as `describe`.
    """
    info = describe(spec, SINGLE, trusted)
    if info is not None:
        return info.fingerprint
    named = read_spec(spec)
    if named is None:
        raise UsageError(f"--teacher {spec}: a null network has nothing to teach")
    files = [
        file for file in (named.name, named.option("weights")) if file and Path(file).is_file()
    ]
    words = [spec, *(sha256_of_network(Path(file)) for file in files)]
    return hashlib.sha256("\n".join(words).encode()).hexdigest()


def teacher_loading(args: TrainArguments, shape: tuple[int, ...], classes: int | None) -> Loading:
    """How a teacher is loaded for images of shape (H, W, C).

    Args:
        classes: number of classes; None to take it from the teacher.
    """
    geometry = Geometry(shape, 3, shape[0], classes)
    trusted = args.trust_network
    return Loading(args.device, args.threads, geometry=geometry, trusted=trusted)


def teacher_views(spec: str, images: np.ndarray, mirror: bool, how: Loading) -> np.ndarray:
    """The log-probabilities of a single network, (n, views, classes) float32.

    Args:
        spec: any network that `run` takes as its single network.
        images: (n, H, W, C) uint8, in the order of the shards, without augmentation.
        mirror: whether the mirror image is a second view.
        how: device, threads, and the geometry of the images.

    Raises:
        DataFault: the network takes images of another shape.
    """
    teacher: Any = load_predictor(spec, SINGLE, how)
    check_fit([teacher.info], images.shape[1:], None)
    views, order = [images, images[:, :, ::-1]] if mirror else [images], np.arange(len(images))
    with advancing(len(views) * len(images), "the teacher looks at") as advance:
        found = [single_scores(teacher, AskedImages(view, order, advance)) for view in views]
    return np.log(np.maximum(np.stack(found, axis=1), np.float32(1e-30)))


def kept_in(cache: Path, identity: str, compute: Callable[[], np.ndarray]) -> np.ndarray:
    """The views in a cache, or else from `compute`, which are then written to the cache.

    Args:
        cache: an .npz file.
        identity: identifies the content. A cache with another identity is overwritten.

    Raises:
        EnvironmentFault: the cache cannot be written.
    """
    if (kept := read_views(cache, identity)) is not None:
        return kept
    views = compute()
    buffer = io.BytesIO()
    np.savez(buffer, identity=np.array(identity), views=views)
    save_file(cache, buffer.getvalue())
    return views


def read_views(cache: Path, identity: str) -> np.ndarray | None:
    """The views in a cache; None if it is missing or damaged, or has another identity."""
    try:
        require_regular(cache)
        with np.load(cache, allow_pickle=False) as kept:
            if str(kept["identity"]) != identity:
                return None
            views = np.array(kept["views"])
            if views.dtype.kind != "f":
                return None
            return views if bool(np.isfinite(views).all()) else None
    except UNREADABLE_OR_GONE:
        return None  # missing or damaged, so the views are computed


@dataclass(frozen=True)
class TrainData:
    """The training and the validation images, in memory.

    Attributes:
        images, labels: (n, H, W, C) uint8 and (n,) int64, for training.
        held_images, held_labels: the same for validation.
        classes: number of classes.
        origin: fingerprints of the shards, and the limit. They identify the data on resume.
        teacher_logits: (n, classes) float32 for the training images; None without a teacher.
        first_weights: tensors to start from; None for random weights.
        first_normalisation: "mean" and "std" that belong to these tensors; None if the channels
            differ.
    """

    images: np.ndarray
    labels: np.ndarray
    held_images: np.ndarray
    held_labels: np.ndarray
    classes: int
    origin: tuple[str, ...] = ()
    teacher_logits: np.ndarray | None = None
    first_weights: Mapping[str, np.ndarray] | None = None
    first_normalisation: dict[str, list[float]] | None = None


def load(
    args: TrainArguments, settings_for: Callable[[tuple[int, ...]], TrainSettings]
) -> tuple[TrainData, dict[str, Any], TrainSettings]:
    """Read the training data. Returns the data, facts for the record, and settings.

    Args:
        settings_for: (H, W, C) of the images -> settings.

    Raises:
        DataFault: there are neither labels nor a teacher, or the teacher does not fit the images.
        EnvironmentFault: a file is missing or unreadable.
    """
    images, labels, names, facts = _read(args)
    settings = settings_for(images.shape[1:])
    used, held = split(len(images), settings.validation_share, settings.seed)
    taught = None
    if args.teacher is not None:
        names, views = _ask_teacher(args, settings, images, names, facts)
        answers = teacher_logits(views)  # (n, classes)
        taught = answers[used]
        if labels is None:
            labels, facts["labels"] = answers.argmax(1), "of the teacher"
    if labels is None:
        raise DataFault(
            f"{args.shards[0]} has no labels. Training needs labels, or a network that answers in "
            "their place: --teacher NETWORK"
        )
    facts["class_names"] = list(names or map(str, range(int(labels.max()) + 1)))
    if labels.min() < 0 or labels.max() >= len(facts["class_names"]):
        raise DataFault(
            f"labels run from {labels.min()} to {labels.max()} but there are "
            f"{len(facts['class_names'])} class names; make the shards again"
        )
    first = normalisation = None
    if args.init is not None:
        info = describe_weights(args.init)
        first = read_tensors(info)
        if info.shape[2] == images.shape[3]:
            normalisation = info.metadata["normalisation"]
        facts["init_weights"] = args.init.name
    data = TrainData(
        images[used],
        labels[used],
        images[held],
        labels[held],
        classes=len(facts["class_names"]),
        origin=_origin(facts),
        teacher_logits=taught,
        first_weights=first,
        first_normalisation=normalisation,
    )
    return data, facts, settings


def _read(
    args: TrainArguments,
) -> tuple[np.ndarray, np.ndarray | None, tuple[str, ...] | None, dict[str, Any]]:
    """Read the images, labels and class names of the shards, up to `limit`; and facts for the
    record.
    """
    with ShardSet.open(args.shards) as shards:
        images, labels = shards.read(np.arange(len(shards))[: args.limit])
        infos, names = shards.infos, shards.class_names
    facts = {
        "sources": [info.source for info in infos],
        "shard_fingerprints": [info.fingerprint for info in infos],
        "limit": args.limit,
    }
    return images, labels, names, facts


def _ask_teacher(
    args: TrainArguments,
    settings: TrainSettings,
    images: np.ndarray,
    names: tuple[str, ...] | None,
    facts: dict[str, Any],
) -> tuple[tuple[str, ...], np.ndarray]:
    """The class names, and the teacher's log-probabilities for every image of the shards,
    (n, views, classes) float32.
    """
    spec = args.teacher
    assert spec is not None
    info = describe(spec, SINGLE, args.trust_network)
    names = check_fit([info], images.shape[1:], names)
    facts["teacher_weights"] = Path(spec).name
    how = teacher_loading(args, images.shape[1:], len(names) if names else None)
    identity = json.dumps(["views", settings.teacher, settings.flips, len(images), *_origin(facts)])
    cache = args.teacher_cache or args.beside(".teacher.npz")
    views = kept_in(cache, identity, lambda: teacher_views(spec, images, settings.flips, how))
    names = names or tuple(map(str, range(views.shape[2])))
    if len(names) != views.shape[2]:
        raise DataFault(
            f"--teacher {spec} has {views.shape[2]} classes and the shards have {len(names)}: give "
            "a network of the same classes"
        )
    return names, views


def _origin(facts: dict[str, Any]) -> tuple[str, ...]:
    return (*facts["shard_fingerprints"], f"limit {facts['limit']}")
