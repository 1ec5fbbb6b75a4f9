"""The types for networks in the rest of the package: facts (`NetworkInfo`), loading (`Loading`),
the interface of a loaded network (`Predictor`); and checks that networks and images fit together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from collage_mpi.encoding.vectors import (
    BESIDE,
    EMBEDDINGS,
    MOST_VARIED_BYTES,
    NO_SAVE,
    OUTPUTS,
    KeptColumn,
    layout_of,
)
from collage_mpi.errors import DataFault, UsageError
from collage_mpi.kinds import COLLAGE, NETWORKS, SINGLE
from collage_mpi.system.printable import counted
from collage_mpi.workload.straggler_settings import NO_DELAYS, StragglerSettings

if TYPE_CHECKING:
    import numpy as np

    from collage_mpi.models.architecture import AcceptSpec, HeadSpec

PRECISIONS = ("auto", "float32", "float16", "bfloat16")
INT8 = "int8"  # of a first network, whose runtime's file is quantised; torch computes in float32
NO_TUNING = "null"  # of a null network, which computes nothing
OWN_TUNING = "its own"  # of an object of the user's code
TORCH, COMPILE, OPENVINO, ONNX = "torch", "compile", "openvino", "onnx"
RUNTIMES = ("auto", TORCH, COMPILE, OPENVINO, ONNX)
OWN = "own"  # an object of the user's code, which computes by itself


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Precision, memory layout and runtime.

    Attributes:
        precision: dtype of weights and activations; scores are always float32. "auto" is float32,
            and INT8 too, until another runtime has the network.
        runtime: what computes. "torch" calls each operation on a CPU, and launches CUDA graphs on
            a GPU; "compile" is torch.compile; "openvino" and "onnx" (onnxruntime) run on CPUs.
            "auto" is the quickest with answers equal to those of torch in float32.

    Raises:
        UsageError: a choice is unknown.
    """

    precision: str
    runtime: str

    def __post_init__(self) -> None:
        known = {"precision": (*PRECISIONS, INT8), "runtime": RUNTIMES}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise UsageError(
                    f"{name} is {getattr(self, name)!r}; known are: {', '.join(choices)}"
                )

    @property
    def dtype(self) -> str:
        """What torch computes in, by its name there."""
        return "float32" if self.format == INT8 else self.format

    @property
    def format(self) -> str:
        """The number format in which another runtime than torch computes."""
        return "float32" if self.precision == "auto" else self.precision

    def like(self, other: Tuning) -> bool:
        """Whether both give the same answers in the same way."""
        return (self.format, self.runtime) == (other.format, other.runtime)

    def on(self, device: str) -> Tuning:
        """How a rank on this device begins. Only on a CPU other runtimes than torch follow later.

        Args:
            device: "cpu" or "cuda", without a number.

        Raises:
            UsageError: the runtime does not run on this device.
        """
        if device == "cuda" and self.format == INT8:
            raise UsageError(
                "a first network in int8 runs on CPUs, and this rank runs on a GPU: choose "
                "@bfloat16, or --device cpu"
            )
        if device == "cuda" and self.runtime in (OPENVINO, ONNX):
            raise UsageError(
                f"--runtime {self.runtime} runs on CPUs, and this rank runs on a GPU: choose "
                "--runtime auto, or --device cpu"
            )
        compiles = device == "cuda" and self.runtime == COMPILE
        return replace(self, precision=self.dtype, runtime=COMPILE if compiles else TORCH)

    @property
    def answerer(self) -> str:
        """Runtime and format, as rows name who answered: one of ANSWERERS."""
        return f"{self.runtime} {self.precision}"

    def __str__(self) -> str:
        """The tuning in words: `float16, channels-last`."""
        return f"{self.precision}, channels-last" + (
            "" if self.runtime == TORCH else f", {COMPILE}"
        )


# The default of a network for which nothing was chosen, and the baseline for comparisons.
PLAIN = Tuning(precision="float32", runtime=TORCH)


def tunings_text(each: Iterable[Mapping[str, str]]) -> str:
    """The tunings of all ranks in words: "single network bfloat16, channels-last; collage ...".

    Args:
        each: for every rank, kind -> tuning in words. Null networks are left out.
    """
    found: dict[str, dict[str, None]] = {}
    for tunings in each:
        for kind, how in tunings.items():
            if how != NO_TUNING:
                found.setdefault(kind, {})[how] = None
    return "; ".join(f"{kind} network {' and '.join(ways)}" for kind, ways in found.items())


def processor_facts(cpuinfo: Path = Path("/proc/cpuinfo")) -> dict[str, str]:
    """The fields of /proc/cpuinfo for the first core, such as `flags` and `model name`; {} on
    systems other than Linux."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":")[::2] for line in reversed(lines))
    return {name.strip(): value.strip() for name, value in pairs}


def memory_fault(
    what: str, device: str, weights_bytes: int, free_bytes: int | None, total_bytes: int | None
) -> str:
    """The message for a network that does not fit into the memory of its GPU.

    Args:
        what: the network, in words.
        device: such as "cuda:0".
        weights_bytes: size of its weights in the requested precision.
        free_bytes: memory of the GPU that is free at that moment; None if unknown.
        total_bytes: all memory of the GPU; None if unknown.
    """
    mib = 1 << 20
    room = "its free memory is not known"
    if free_bytes is not None and total_bytes is not None:
        room = f"{free_bytes // mib:,} of {total_bytes // mib:,} MiB were free"
    return (
        f"{device} is out of memory for {what}: its weights take "
        f"{-(-weights_bytes // mib):,} MiB, its activations and CUDA itself (about 500 MiB a rank) "
        f"come on top, and {room}. What would fit: fewer ranks on this GPU (nvidia-smi shows who "
        "holds memory), --precision float16, or a smaller network"
    )


T = TypeVar("T")
U = TypeVar("U")
Answer = tuple["np.ndarray", dict[str, "np.ndarray"]]  # scores, and further outputs by name
MOST_BEGUN = 2  # computations of a network that may be in progress at a time


def usual_head() -> HeadSpec:
    """The head of a network that does not name one. The doctor runs where msgspec is lacking."""
    from collage_mpi.models.architecture import HeadSpec

    return HeadSpec()


@dataclass(frozen=True)
class NetworkInfo:
    """The facts of a network, mostly from its weights file.

    Attributes:
        kind: one of NETWORKS.
        architecture: the settings of `Architecture`, as a plain dict.
        shape: of one input: (H, W, C) for a picture, (side*cell_px, side*cell_px, C) for a collage
            network.
        side: cells along an edge of the collage; None for other networks.
        cell_px: height and width of a cell in pixels; None for other networks.
        class_names: one name a class, in the order of the scores.
        fingerprint: SHA-256 of the file, 64 hex digits.
        path: of the file; None if there is none.
        metadata: the whole JSON record of the file's header, with the settings of the training.
        head: how a collage network answers; the default for other networks.
        accept: the score from which a collage network's answers may count; None if unknown.
        dtype: of an input's values; networks with a weights file take uint8.
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
    head: HeadSpec = field(default_factory=usual_head)
    accept: AcceptSpec | None = None
    dtype: str = "uint8"

    @property
    def outdated(self) -> bool:
        """Whether its file has a threshold that an older version chose by accuracy. It promises
        nothing, so it is not used."""
        return self.accept is None and bool(self.metadata.get("accept"))

    @property
    def cells(self) -> int:
        """Number of answers for one input: side*side for a collage network, otherwise 1."""
        return 1 if self.side is None else self.side * self.side

    @property
    def origin(self) -> str:
        """The path of its file, or the user's function that created it."""
        return str(self.path or self.architecture.get("function"))

    def noise(self) -> np.ndarray:
        """A batch of one input of noise, (1, *shape) of the dtype, to test a network."""
        import numpy as np  # here, because --help of train imports this module

        noise = np.random.default_rng(0).integers(0, 256, (1, *self.shape), np.uint8)
        return noise.astype(self.dtype, copy=False)

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """The shape of one image, (H, W, C), or of another item, for a single network; None for a
        collage network.
        """
        return self.shape if self.side is None else None


@dataclass(frozen=True)
class Loading:
    """Where and how to run a network.

    Attributes:
        device: "cpu", "cuda" or "cuda:N".
        threads: number of threads that torch may use on the CPU, at least 1.
        tuning: precision, layout and runtime. None means PLAIN; the network is then
            not called before its first batch, and norms of another library's network are not
            folded.
        geometry: shapes and classes for a network without a weights file of this package.
        save: which outputs to return beside the scores, one of `vectors.SAVES`.
        trusted: which networks that are programs may run: the setting trust_network.
        delays: how long networks wait before they answer.
    """

    device: str = "cpu"
    threads: int = 1
    tuning: Tuning | None = None
    geometry: Geometry | None = None
    save: str = NO_SAVE
    trusted: str = ""
    delays: StragglerSettings = NO_DELAYS

    @property
    def embed(self) -> str:
        """The dtype of the embeddings that a network returns too, or ""."""
        return {EMBEDDINGS: "float32", OUTPUTS: "float16"}.get(self.save, "")

    @property
    def names_columns(self) -> bool:
        """Whether the further outputs are known only after the network is loaded."""
        return self.save in (EMBEDDINGS, OUTPUTS, BESIDE)


@dataclass(slots=True)  # not frozen: see WireTask
class Computation(Generic[T]):
    """A result that a device may still be computing.

    Attributes:
        finish: returns the result, waiting for the device if necessary. It may be called once. On
            the CPU it does the computation.
        done: whether `finish` would return without waiting for the device.
    """

    finish: Callable[[], T]
    done: Callable[[], bool] = lambda: True

    def then(self, work: Callable[[T], U]) -> Computation[U]:
        """A computation that applies `work` to this one's result."""
        return Computation(lambda: work(self.finish()), self.done)


class Predictor(Protocol):
    """A network that is ready to answer."""

    kind: str
    cells: int
    classes: int
    fingerprint: str
    device: str
    tuning: str  # precision, layout and runtime at the start, in words
    runtime: str  # runtime and format that answer now, one of `rows.ANSWERERS`
    columns: tuple[KeptColumn, ...]  # the further outputs of `answer`

    def predict(self, batch: np.ndarray) -> np.ndarray:
        """Classify a batch.

        Args:
            batch: (n, H, W, C) uint8, or (n, ...) of the shape and dtype of other items.

        Returns:
            (n, cells, classes) float32 probabilities, complete on return. A row of zeros means that
            the cell has no answer.
        """
        ...

    def answer(self, batch: np.ndarray) -> Answer:
        """The result of `predict`, and an array (n, ...) for each of the `columns`."""
        ...

    def begin(self, batch: np.ndarray) -> Computation[Answer]:
        """Start the computation of `answer`. At most MOST_BEGUN may be unfinished."""
        ...


class BeginsLater:
    """Base class of predictors that compute in this process, when `finish` is called."""

    runtime = OWN

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


TOLERANCE = 0.01  # for probabilities and their sum, because 16-bit formats round


def columns_of(
    origin: str, given: Mapping[str, np.ndarray], most_bytes: int = MOST_VARIED_BYTES
) -> tuple[KeptColumn, ...]:
    """The columns for the further outputs of a network, (n, ...) each.

    Args:
        origin: names the network in messages.
        most_bytes: largest size of an array of varying length.

    Raises:
        UsageError: an output cannot be stored.
    """
    try:
        found = tuple(KeptColumn.of(name, values, most_bytes) for name, values in given.items())
        layout_of(found)
    except UsageError as error:
        raise UsageError(f"{origin} gives what cannot be kept: {error}") from error
    return found


@dataclass(frozen=True)
class Geometry:
    """The shapes and classes for a network without a weights file.

    Attributes:
        image_shape: of an item of the source, such as (H, W, C).
        side, cell_px: of the collage.
        classes: number of classes, at least 1; None to take it from the network's first answer.
        dtype: of an item's values.
        asked: whether the user wants this size of images, whatever the network declares.
        beside: (H, W, C) of the pictures of each network, of several that get pictures of
            different fits; see `PictureFit.beside`.
    """

    image_shape: tuple[int, ...]
    side: int
    cell_px: int
    classes: int | None
    dtype: str = "uint8"
    asked: bool = False
    beside: tuple[tuple[int, ...], ...] = ()

    def at_px(self, px: int | None) -> Geometry:
        """The same with images of this height and width; None changes nothing."""
        if px is None:
            return self
        return replace(self, image_shape=(px, px, *self.image_shape[2:]), asked=True)

    def input_shape(self, kind: str) -> tuple[int, ...]:
        """The shape of one input for a network of this kind, such as (H, W, C)."""
        if kind == SINGLE:
            return self.image_shape
        px = self.side * self.cell_px
        return (px, px, self.image_shape[2])

    def cells(self, kind: str) -> int:
        """Number of answers for one input of a network of this kind."""
        return 1 if kind == SINGLE else self.side * self.side


@dataclass(frozen=True)
class Declared:
    """The facts that a network of another library or of the user declares; None if it does not.

    Attributes:
        class_names: in the order of the scores.
        shape: (H, W, C) of an image.
        mean, std: normalisation of pixels / 255, or of the values of items that are not uint8; one
            number for all channels, or one each.
        resize_px: length of a picture's shorter edge before the crop; see `PictureFit`.
        filter: the resampling filter; see `PictureFit`.
        fingerprint: SHA-256 of the file, 64 hex digits.
        channels_first: whether the channels are the first axis of an item, not the last.
    """

    class_names: tuple[str, ...] | None = None
    shape: tuple[int, int, int] | None = None
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    resize_px: int | None = None
    filter: str | None = None
    fingerprint: str | None = None
    channels_first: bool = False


def own_info(
    spec: str, kind: str, geometry: Geometry, fingerprint: str, facts: Declared | None = None
) -> NetworkInfo:
    """The facts of a network without a weights file of this package, as a `NetworkInfo`."""
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
    """The message if the items of the source are not those that a network takes."""
    held, takes = (f"{dtype} {shape}" for dtype, shape in (found, needed))
    return f"the source holds items of {held}, the {network} takes {takes}"


def check_items(
    networks: Iterable[NetworkInfo], dtype: str, shape: tuple[int, ...], advice: str
) -> None:
    """Check that networks take the items of a source. The sizes of pictures are not compared,
    because `check_fit` does that.

    Args:
        networks: the networks that declare their input.
        dtype: of the items.
        shape: of an item.
        advice: which command converts the items to pictures, or "".

    Raises:
        DataFault: dtype or shape differ.
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
    """Check that networks fit the images and the requested grid, and have the same classes.

    Args:
        networks: the networks; None for a network without weights.
        shape: (H, W, C) of the images.
        class_names: of the shards, if they have any.
        paths: of the shards, for the command in the message that makes fitting shards.
        side: of the requested grid; None accepts that of a collage network.
        cell_px: size of its cells, likewise.

    Returns:
        The common class names; None if neither shards nor networks have class names.

    Raises:
        DataFault: something does not fit. The message says what to do.
    """
    found = [network for network in networks if network is not None]
    for network in found:
        _check_images(network, tuple(shape), paths)
        if network.side is not None:
            _check_grid(network, side, cell_px)
    return agreed_names(
        [("the shards", class_names), *((_title(one), one.class_names) for one in found)]
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
    from collage_mpi.shards.schema import remake_command  # here, because --help imports this module

    made = remake_command(paths, shape)
    return f"`{made}` makes shards of that shape, or train a network for this one"


def agreed_names(
    lists: Iterable[tuple[str, Sequence[str] | None]],
) -> tuple[str, ...] | None:
    """The class names; None if nobody names them.

    Args:
        lists: who names them, in words, and the names, if any.

    Raises:
        DataFault: two lists differ: their lengths, or the first names that do.
    """
    known = [(whose, tuple(names)) for whose, names in lists if names]
    if not known:
        return None
    where, names = known[0]
    for elsewhere, others in known[1:]:
        if len(names) != len(others):
            raise DataFault(
                f"{len(names)} classes in {where}, {len(others)} in {elsewhere}; they must agree"
            )
        for number, (name, other) in enumerate(zip(names, others, strict=True)):
            if name != other:
                raise DataFault(
                    f"class {number} is {name!r} in {where} and {other!r} in {elsewhere}; "
                    "they must have the same classes in the same order"
                )
    return names
