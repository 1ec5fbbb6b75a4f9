"""What the rest of the package knows about a network: its facts, what a user's own network is told,
the interface of a network that is ready to answer, and by which rules networks, images and side fit
together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from collage_mpi.encoding.vectors import (
    EMBEDDINGS,
    MOST_VARIED_BYTES,
    NO_SAVE,
    OUTPUTS,
    KeptColumn,
    layout_of,
)
from collage_mpi.errors import DataFault, UsageError
from collage_mpi.kinds import COLLAGE, NETWORKS, SINGLE
from collage_mpi.models.specs import AcceptSpec, HeadSpec, ParitySpec
from collage_mpi.models.tuning import Tuning
from collage_mpi.system.printable import counted

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")
U = TypeVar("U")
Answer = tuple["np.ndarray", dict[str, "np.ndarray"]]  # scores, and what is given beside them
MOST_BEGUN = 2  # computations of a network that may be begun and not finished


@dataclass(frozen=True)
class NetworkInfo:
    """The facts of a weights file.

    Attributes:
        kind: one of NETWORKS.
        architecture: the settings of `Architecture`, as a plain dict.
        shape: of one input, such as (H, W, C) of a picture: (side*cell_px, side*cell_px, C) for a
            collage network, the encoder's output for a parity network.
        side: cells along an edge of the collage; None for other networks.
        cell_px: height and width of a cell in pixels; None for other networks.
        class_names: one name a class, in the order of the scores.
        fingerprint: SHA-256 of the file, 64 hex digits.
        path: where the file is; None if there is no file.
        metadata: the whole JSON header record, training settings included.
        head: how a collage network answers; a grid of one for other networks.
        parity: what a parity network was made for; None for other networks.
        accept: from which score on a collage network's answers may count; None if unknown.
        dtype: of the values of an input; networks with a weights file take uint8.
    """

    kind: str
    architecture: dict[str, Any]
    shape: tuple[int, ...]
    side: int | None
    cell_px: int | None
    class_names: tuple[str, ...]
    fingerprint: str
    path: Path | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    head: HeadSpec = field(default_factory=HeadSpec)
    parity: ParitySpec | None = None
    accept: AcceptSpec | None = None
    dtype: str = "uint8"

    @property
    def cells(self) -> int:
        """Answers per input: side*side for a collage, 1 for other networks."""
        return 1 if self.side is None else self.side * self.side

    @property
    def origin(self) -> str:
        """The path of its file, or the user's function that made it."""
        return str(self.path or self.architecture.get("function"))

    def noise(self) -> np.ndarray:
        """(1, ...) of the dtype: an input of noise, used to test a network's answers."""
        import numpy as np  # late: --help of train reads this module

        noise = np.random.default_rng(0).integers(0, 256, (1, *self.shape), np.uint8)
        return noise.astype(self.dtype, copy=False)

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """(H, W, C), or the shape of other items, of a single or parity network; None for a collage
        network.
        """
        if self.side is not None:
            return None
        if self.parity is None:
            return self.shape
        return self.metadata["height"], self.metadata["width"], self.shape[2]


@dataclass(frozen=True)
class Loading:
    """Where a network runs, how, and what it gives.

    Attributes:
        device: "cpu", "cuda" or "cuda:N".
        threads: threads torch may use on the CPU, at least 1.
        tuning: precision, layout and launching of kernels. None: as in PLAIN, the network is not
            tried before its first batch, and norms of another library's network are not folded.
        geometry: shapes and classes for a user's own network; other networks know them.
        save: what a network is to give beside the scores, one of `vectors.SAVES`.
    """

    device: str = "cpu"
    threads: int = 1
    tuning: Tuning | None = None
    geometry: Geometry | None = None
    save: str = NO_SAVE

    @property
    def embed(self) -> bool:
        """Whether embeddings are wanted as well."""
        return self.save == EMBEDDINGS

    @property
    def names_columns(self) -> bool:
        """Whether the network itself says, once it is loaded, what it gives beside the scores."""
        return self.save in (EMBEDDINGS, OUTPUTS)


@dataclass(slots=True)  # not frozen: see WireTask
class Computation(Generic[T]):
    """A result that a device may still be computing.

    Attributes:
        finish: waits for the result; called once. What a device does not compute by itself is
            computed here.
        done: whether `finish` would not wait for a device.
    """

    finish: Callable[[], T]
    done: Callable[[], bool] = lambda: True

    def then(self, work: Callable[[T], U]) -> Computation[U]:
        """The same, with work on its result."""
        return Computation(lambda: work(self.finish()), self.done)


class Predictor(Protocol):
    """A network that is ready to answer."""

    kind: str
    cells: int
    classes: int
    fingerprint: str
    device: str
    tuning: str  # how it runs, in words
    columns: tuple[KeptColumn, ...]  # what `answer` gives beside the scores

    def predict(self, batch: np.ndarray) -> np.ndarray:
        """Classify.

        Args:
            batch: (n, H, W, C) uint8, or (n, ...) of the shape and dtype of other items.

        Returns:
            (n, cells, classes) float32 probabilities, complete on return, on a GPU too. A row of
            zeros means no answer for that cell. A parity network returns (n, 1, classes) sums,
            which only `decode_parity` reads.
        """
        ...

    def answer(self, batch: np.ndarray) -> Answer:
        """The result of `predict`, and (n, ...) of each of the `columns`."""
        ...

    def begin(self, batch: np.ndarray) -> Computation[Answer]:
        """Begin on what `answer` gives; at most MOST_BEGUN before the first of them is finished."""
        ...


class BeginsLater:
    """A predictor that computes in this process, and so only when its answer is asked for."""

    def answer(self, batch: np.ndarray) -> Answer:
        """See `Predictor`."""
        raise NotImplementedError

    def begin(self, batch: np.ndarray) -> Computation[Answer]:
        """See `Predictor`."""
        return Computation(partial(self.answer, batch))


def check_kind(kind: str) -> None:
    """Raise UsageError unless kind is one of NETWORKS."""
    if kind not in NETWORKS:
        raise UsageError(f"a network is of kind {kind!r}; the kinds are {', '.join(NETWORKS)}")


TOLERANCE = 0.01  # of probabilities and their sum: 16-bit formats round
HOW = "docs/images.md (A network of your own) has an example"


def columns_of(
    origin: str, given: Mapping[str, np.ndarray], most_bytes: int = MOST_VARIED_BYTES
) -> tuple[KeptColumn, ...]:
    """The columns of what a network gives beside its scores, (n, ...) each. Raises UsageError for
    what cannot be kept."""
    try:
        found = tuple(KeptColumn.of(name, values, most_bytes) for name, values in given.items())
        layout_of(found)
    except UsageError as error:
        raise UsageError(f"{origin} gives what cannot be kept: {error}") from error
    return found


@dataclass(frozen=True)
class Geometry:
    """What a network without a weights file must be told.

    Attributes:
        image_shape: of an item of the source, such as (H, W, C).
        side, cell_px: of the collage.
        classes: at least 1; None if the network's first answer decides.
        dtype: of an item's values.
    """

    image_shape: tuple[int, ...]
    side: int
    cell_px: int
    classes: int | None
    dtype: str = "uint8"

    def input_shape(self, kind: str) -> tuple[int, ...]:
        """Of one input of the kind's network, such as (H, W, C)."""
        if kind == SINGLE:
            return self.image_shape
        px = self.side * self.cell_px
        return (px, px, self.image_shape[2])

    def cells(self, kind: str) -> int:
        """Answers per input."""
        return 1 if kind == SINGLE else self.side * self.side


@dataclass(frozen=True)
class Declared:
    """What a network without a weights file of this package says of itself; None: it does not say.

    Attributes:
        class_names: in the order of the scores.
        shape: (H, W, C) of an image.
        mean, std: of pixels / 255, or of the values of items that are not uint8; one for all
            channels or one each.
        resize_px: the shorter edge of a picture before the middle is cut out.
        filter: by which a picture is resized, as `PictureFit` has it.
        fingerprint: SHA-256 of the file, 64 hex digits.
        channels_first: the items' channels are their first axis, not their last.
    """

    class_names: tuple[str, ...] | None = None
    shape: tuple[int, int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize_px: int | None = None
    filter: str | None = None
    fingerprint: str | None = None
    channels_first: bool = False

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Declared:
        """Read it back from JSON, where each tuple is a list."""
        pairs = values.items()
        found: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in pairs}
        return cls(**found)


def own_info(
    spec: str, kind: str, geometry: Geometry, fingerprint: str, facts: Declared | None = None
) -> NetworkInfo:
    """The facts of a network of another's making, in the form of a weights file's."""
    collage = kind == COLLAGE
    facts = facts or Declared()
    names = facts.class_names or tuple(str(number) for number in range(geometry.classes or 0))
    return NetworkInfo(
        kind=kind,
        architecture={"function": spec},
        shape=geometry.input_shape(kind),
        side=geometry.side if collage else None,
        cell_px=geometry.cell_px if collage else None,
        class_names=names,
        fingerprint=fingerprint,
        metadata={
            "normalisation": {"mean": [*facts.mean], "std": [*facts.std]},
            "temperature": 1.0,
            "channels_first": facts.channels_first,
        },
        dtype=geometry.dtype,
    )


Item = tuple[str, tuple[int, ...]]  # dtype and shape


def item_mismatch(found: Item, network: str, needed: Item) -> str:
    """The message where a network takes other items than the source holds."""
    held, takes = (f"{dtype} {shape}" for dtype, shape in (found, needed))
    return f"the source holds items of {held}, the {network} takes {takes}"


def check_items(
    networks: Iterable[NetworkInfo], dtype: str, shape: tuple[int, ...], advice: str
) -> None:
    """Check that networks take the items of a source, whatever their type and number of axes.

    Args:
        networks: all but those that are told what to take.
        dtype: of the items.
        shape: likewise.
        advice: what makes pictures of them, or "".

    Raises:
        DataFault: both, where they differ.
    """
    for network in networks:
        wanted = network.image_shape or network.shape
        of_pictures = len(wanted) == len(shape) == 3 and network.dtype == dtype == "uint8"
        if of_pictures:
            continue  # `check_fit` compares their sizes
        if (network.dtype, wanted) != (dtype, shape):
            raise DataFault(
                item_mismatch((dtype, shape), _title(network), (network.dtype, wanted))
                + (f". {advice}" if advice else "")
            )


Shape = tuple[int, ...]


def check_fit(
    networks: Iterable[NetworkInfo | None],
    shape: Shape,
    class_names: Sequence[str] | None,
    paths: Sequence[Path | str] = (),
    side: int | None = None,
    cell_px: int | None = None,
) -> tuple[str, ...] | None:
    """Check networks against the images, the requested grid, and each other's classes.

    Args:
        networks: those with weights; None for others.
        shape: (H, W, C) of the images.
        class_names: of the shards, if they have any.
        paths: of the shards, for the command that makes fitting shards from them.
        side: as requested; None takes a collage network's.
        cell_px: likewise.

    Returns:
        The class names that all agree on; None if none has class names.

    Raises:
        DataFault: the first thing that does not fit, and what to do.
    """
    found = [network for network in networks if network is not None]
    for network in found:
        _check_images(network, tuple(shape), paths)
        if network.side is not None:
            _check_grid(network, side, cell_px)
    named = [("the shards", class_names), *((_title(one), one.class_names) for one in found)]
    known = [(where, tuple(names)) for where, names in named if names]
    for where, names in known[1:]:
        if names != known[0][1]:
            raise DataFault(class_mismatch(*known[0], where, names))
    return known[0][1] if known else None


def check_parity(parity: NetworkInfo, single: NetworkInfo | None, asked: str) -> None:
    """Check that a parity network was trained for this single network.

    Args:
        parity: any network; only parity networks are checked.
        single: None for one without weights.
        asked: what the user gave as single network.

    Raises:
        DataFault: it was trained for another one.
    """
    spec = parity.parity
    if spec is None or (single is not None and spec.single == single.fingerprint):
        return
    other = asked if single is None else f"SHA-256 {single.fingerprint[:12]}..."
    raise DataFault(
        f"{_title(parity)} sums the answers of the single network {spec.single[:12]}..., the "
        f"single network {asked} is another ({other}): name that one, or train one with "
        f"collage-mpi train parity --single {asked}"
    )


def _check_images(network: NetworkInfo, shape: Shape, paths: Sequence[Path | str]) -> None:
    wanted = network.image_shape
    if wanted is not None and wanted != shape:
        raise DataFault(
            f"shards hold images of {shape} (H, W, C), {_title(network)} needs {wanted}: "
            f"{_remake(paths, wanted)}"
        )
    channels = network.shape[-1]
    if channels != shape[-1]:
        raise DataFault(
            f"shards hold {counted(shape[-1], 'channel')}, {_title(network)} needs {channels}: "
            f"{_remake(paths, (shape[0], shape[1], channels))}"
        )


def _check_grid(network: NetworkInfo, side: int | None, cell_px: int | None) -> None:
    if side not in (None, network.side):
        raise DataFault(
            f"--side is {side}, {_title(network)} is of side {network.side}: say --side "
            f"{network.side}, or name weights of side {side}"
        )
    if cell_px not in (None, network.cell_px):
        raise DataFault(
            f"--cell-px is {cell_px}, {_title(network)} has cells of {network.cell_px} px: leave "
            "--cell-px out, or train one with that cell size"
        )


def _title(network: NetworkInfo) -> str:
    return f"{network.kind} network {network.origin}"


def _remake(paths: Sequence[Path | str], shape: tuple[int, ...]) -> str:
    if not paths or shape[0] != shape[1] or shape[2] not in (1, 3):
        return "make shards of that shape, or train a network for this one"
    from collage_mpi.shards.schema import remake_command  # late: --help reads this module

    made = remake_command(paths, shape)
    return f"`{made}` makes shards of that shape, or train a network for this one"


def class_mismatch(where: str, names: Sequence[str], elsewhere: str, others: Sequence[str]) -> str:
    """How two lists of class names differ: in length, or the first pair that is different."""
    if len(names) != len(others):
        return f"{len(names)} classes in {where}, {len(others)} in {elsewhere}; they must agree"
    first = next(i for i, (a, b) in enumerate(zip(names, others, strict=True)) if a != b)
    return (
        f"class {first} is {names[first]!r} in {where} and {others[first]!r} in {elsewhere}; "
        "they must have the same classes in the same order"
    )
