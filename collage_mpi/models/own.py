"""Runs networks that are not in this package's format: a library loads them (`libraries`), or a
function of the user, MODULE:FUNCTION, creates them. Their answers are checked. torch is imported
only if the network needs it.

    def network(kind, shape, side, cell_px, classes, device):
        # single: shape (H, W, C) of an image; collage: (P, P, C), P = side * cell_px
        return a torch.nn.Module, or an object with predict(batch)

A Module gets (n, C, H, W) float pixels from 0 to 1 and returns logits: (n, classes) for a single
network; (n, side*side, classes) or (n, classes, side, side) for a collage network. `predict` gets
(n, H, W, C) uint8 and returns (n, cells, classes) float32 probabilities; a row of zeros is a cell
without an answer.

The items of a source may also have another type, or other axes. `predict` gets them unchanged. A
Module gets them as float32, not scaled; if they have three axes or more, the last axis becomes the
first: (n, C, D, H, W) for volumes. Attributes of the Module change this: `input_mean` is subtracted
and the result divided by `input_std` (for uint8, of pixels / 255), each one number or one for each
channel; `input_channels = "first"` is for items (C, ...). If the Module or object has `input_shape`
or `input_dtype`, other items are refused.

A class that is mapped over images has no classes to answer with:

    class Function:
        most_bytes = 262_144  # of an array in a list
        def __init__(self, device): ...
        def __call__(self, batch):  # items, (n, ...)
            return a dict of arrays, (n, ...) each, or of lists of n arrays or texts; an array
            without values has the type and the other dimensions too: np.zeros((0, 4), "f4")
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from collage_mpi.encoding.vectors import (
    MOST_BYTES,
    MOST_VARIED_BYTES,
    OUTPUTS,
    KeptColumn,
    objects,
    shown,
)
from collage_mpi.errors import CollageError, DataFault, UsageError
from collage_mpi.kinds import SINGLE
from collage_mpi.models.gate import admit
from collage_mpi.models.info import (
    OWN_TUNING,
    TOLERANCE,
    BeginsLater,
    Declared,
    Geometry,
    Loading,
    Predictor,
    columns_of,
    item_mismatch,
    own_info,
)
from collage_mpi.models.named import FUNCTION, HOW, embeds, is_function, read_spec

UNKNOWN_CLASSES = (
    "classes is None where nobody names the classes and no label shows how many there are: "
    "--class-names-file FILE names them. "
)
SPREAD = {"mean": 0.0, "std": 1.0}

MAP_HOW = "docs/inputs.md has an example"
RAGGED = (
    "Results must be numbers of one shape for each image, or a list of an array or a text for each "
    "image: the arrays may differ in their first dimension alone"
)

# A network's code, or its library, may raise anything. If it calls sys.exit, it failed as well.
RAISED = (Exception, SystemExit)

# Beginnings of the paths of code that is not the user's: of this package, Python and packages.
_NOT_THEIRS = (
    *(str(Path(__file__).parents[1]), "<"),
    *{sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")},
)


def load_foreign(spec: str, kind: str, how: Loading) -> tuple[Predictor, Declared]:
    """Load a network of another library or of the user. Returns a predictor and the facts that the
    network declares.

    Raises:
        UsageError: as `gate.admit`; or the function returns something else, or the network has no
            embeddings and they are wanted.
        EnvironmentFault: a library, a file or the network's weights are missing.
        DataFault: a file is damaged, or the answers have a wrong shape or are not probabilities.
    """
    named, geometry, facts = read_spec(spec), how.geometry, Declared()
    if named is None or geometry is None:
        raise UsageError(f"{spec}: a network of your own cannot be used here; name weights")
    admit(named, how.trusted)
    if named.library == FUNCTION:
        made = _called(spec, kind, geometry, how)
        facts = _declared(spec, kind, geometry, made)
    else:
        from collage_mpi.models.libraries import load_named

        made, facts = load_named(named, how)
    if facts.shape is not None and kind == SINGLE:
        if geometry.asked:
            height, width, channels = geometry.image_shape
            facts = replace(facts, shape=(height, width, channels))
        geometry = replace(geometry, image_shape=facts.shape or geometry.image_shape)
    mapped = how.save == OUTPUTS and named.library == FUNCTION
    own = MappedFunction if mapped else OwnPredictor
    if callable(getattr(made, own.method, None)):
        predictor = own(spec, kind, geometry, made, how.device)
        try:
            predictor.first_call(bool(how.embed))
        except CollageError:
            raise
        except RAISED as error:
            noise = predictor.info.noise()
            raise raised_at_first(spec, noise.dtype, noise.shape, error) from error
        return predictor, facts
    if own is MappedFunction:
        raise UsageError(
            f"{spec} made a {type(made).__name__}, which cannot be called; needed: a class with "
            f"__init__(device) and __call__(batch), which returns a dict of arrays. {MAP_HOW}"
        )
    if "torch" in sys.modules and isinstance(made, sys.modules["torch"].nn.Module):
        from collage_mpi.models.predictor import module_predictor

        try:
            return module_predictor(spec, kind, geometry, made, how, facts), facts
        except CollageError:
            raise
        except RAISED as error:
            raise raised_at_first(
                spec, geometry.dtype, geometry.input_shape(kind), error
            ) from error
    raise UsageError(
        f"{spec} returned a {type(made).__name__}; needed: a torch.nn.Module, or an object with "
        f"predict(batch). {HOW}"
    )


def _called(spec: str, kind: str, geometry: Geometry, how: Loading) -> Any:
    """Calls the user's function, and returns its result."""
    function, maps = find_function(spec), how.save == OUTPUTS
    told = {
        "kind": kind,
        "shape": geometry.input_shape(kind),
        "side": geometry.side,
        "cell_px": geometry.cell_px,
        "classes": geometry.classes,
        "device": how.device,
    }
    try:
        return function(how.device) if maps else function(**told)
    except CollageError:
        raise
    except RAISED as error:
        unknown = "" if maps or geometry.classes is not None else UNKNOWN_CLASSES
        given = {"device": how.device} if maps else told
        raise UsageError(
            f"{spec}: calling it with {', '.join(f'{k}={v!r}' for k, v in given.items())} raised "
            f"{told_error(error)}. {unknown}{MAP_HOW if maps else HOW}"
        ) from error


def _declared(spec: str, kind: str, geometry: Geometry, made: Any) -> Declared:
    """The facts that the attributes of a user's network declare about its inputs.

    Raises:
        UsageError: an attribute is invalid.
        DataFault: the network takes other inputs than the source has.
    """
    found = geometry.dtype, geometry.input_shape(kind)
    try:
        dtype = np.dtype(getattr(made, "input_dtype", found[0])).name
        needed = dtype, tuple(int(size) for size in getattr(made, "input_shape", found[1]))
        spread = (np.atleast_1d(getattr(made, f"input_{k}", v)) for k, v in SPREAD.items())
        mean, std = (tuple(map(float, values)) for values in spread)
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"{spec}: its input_shape, input_dtype, input_mean or input_std cannot be read: {error}"
        ) from error
    if needed != found:
        raise DataFault(item_mismatch(found, f"{kind} network {spec}", needed))
    first = getattr(made, "input_channels", "last") == "first"
    return Declared(mean=mean, std=std, channels_first=first)


def raised_at_first(
    spec: str, dtype: object, shape: tuple[int, ...], error: BaseException
) -> DataFault:
    """The fault of a network that cannot answer for noise, before the job asks it for images."""
    return DataFault(f"{spec}: called with noise of {dtype} {shape} it raised {told_error(error)}")


def told_error(error: BaseException) -> str:
    """An exception in words, with the last line of the user's code in its traceback."""
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not frame.filename.startswith(_NOT_THEIRS)]
    place = f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else ""
    return f"{type(error).__name__}: {error}{place}"


def find_function(spec: str) -> Callable[..., Any]:
    """Import the function of a spec. Modules in the current folder are found too.

    Raises:
        UsageError: the module cannot be imported, or has no such function.
    """
    place, _, name = spec.rpartition(":")
    try:
        module = _file_module(Path(place)) if place.endswith(".py") else _module(place)
    except RAISED as error:
        raise UsageError(
            f"{spec}: {place} cannot be imported: {told_error(error)}. "
            "Name a module that Python finds (PYTHONPATH, or the current folder), or a .py file"
        ) from error
    function: Callable[..., Any] | None = getattr(module, name, None)
    if not callable(function):
        known = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
        raise UsageError(f"{place} has no function {name!r}; it has {', '.join(known) or 'none'}")
    return function


def check_mapped(spec: str) -> None:
    """Raise UsageError unless the spec names a function, a class with `__call__`, or a network by
    name that gives its embedding."""
    if embeds(spec):
        return
    if not is_function(spec):
        raise UsageError(f"{spec} names no class: FILE.py:CLASS or MODULE:CLASS. {MAP_HOW}")
    made = find_function(spec)
    if isinstance(made, type) and not any("__call__" in vars(base) for base in made.__mro__):
        raise UsageError(f"{spec} has no __call__(batch): {MAP_HOW}")


class OwnPredictor(BeginsLater):
    """A user's object with `predict`, whose answers are checked; see the `Predictor` protocol.

    The fingerprint is a hash of the object's attribute `fingerprint`, if it has one. Then ranks
    with different weights are noticed.
    """

    method = "predict"  # of the user's object

    def __init__(self, spec: str, kind: str, geometry: Geometry, made: Any, device: str) -> None:
        self.spec, self.kind, self.made = spec, kind, made
        self.cells, self.classes = geometry.cells(kind), geometry.classes or 0
        self.device = str(getattr(made, "device", device))
        self.tuning = OWN_TUNING
        self.columns: tuple[KeptColumn, ...] = ()
        self._embeds = False
        told = str(getattr(made, "fingerprint", spec))
        self.fingerprint = hashlib.sha256(told.encode()).hexdigest()
        self.info = own_info(spec, kind, geometry, self.fingerprint)

    def predict(self, batch: np.ndarray) -> np.ndarray:
        """(n, ...) items -> (n, cells, classes) float32. Raises DataFault if the shape is wrong."""
        return self._checked(self.made.predict(batch), batch)

    def answer(self, batch: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Like `predict`, with (n, d) float32 embeddings if they are wanted. Raises DataFault if a
        shape is wrong."""
        if not self._embeds:
            return self.predict(batch), {}
        scores, embeddings = self.made.embed(batch)
        found = np.asarray(embeddings, dtype=np.float32)
        (length,) = self.columns[0].shape if self.columns else found.shape[1:2] or (0,)
        if found.shape != (len(batch), length):
            raise DataFault(
                f"{self.spec}: embed gave embeddings {found.shape}; needed: ({len(batch)}, "
                f"{length or 'd'})"
            )
        return self._checked(scores, batch), {"embedding": found}

    def _checked(self, given: Any, batch: np.ndarray) -> np.ndarray:
        scores = np.asarray(given, dtype=np.float32)
        if not self.classes and scores.ndim == 3:
            self.classes = scores.shape[2]  # the first answer decides
        needed = (len(batch), self.cells, self.classes)
        if scores.shape != needed:
            raise DataFault(f"{self.spec}: predict gave {scores.shape}; needed: {needed}")
        return scores

    def first_call(self, embed: bool = False) -> None:
        """Call the network with a batch of noise, and check its answer.

        Args:
            embed: embeddings are wanted too.

        Raises:
            DataFault: the answers are not probabilities.
            UsageError: the object has no `embed` but embeddings are wanted, or they are too long.
        """
        self._embeds = embed
        if not embed:
            check_probabilities(self.spec, self.predict(self.info.noise()))
            return
        if not callable(getattr(self.made, "embed", None)):
            raise UsageError(
                f"{self.spec}: what it returned gives no embeddings, which --save embeddings "
                "needs: give it embed(batch), which returns (probabilities as of predict, "
                f"embeddings (n, d)). {HOW}"
            )
        scores, found = self.answer(self.info.noise())
        check_probabilities(self.spec, scores)
        self.columns = columns_of(self.spec, found)


class MappedFunction(OwnPredictor):
    """An object of a user's class that is mapped over images, whose outputs are kept. As a network
    it has one class with probability 1, which is never shown. Its first outputs define the
    columns."""

    method = "__call__"

    def __init__(self, spec: str, kind: str, geometry: Geometry, made: Any, device: str) -> None:
        super().__init__(spec, kind, replace(geometry, classes=1), made, device)
        most = getattr(made, "most_bytes", MOST_VARIED_BYTES)
        if not isinstance(most, (int, np.integer)) or not 0 < most <= MOST_BYTES:
            raise UsageError(
                f"{spec}: most_bytes is {most!r}; needed: a whole number from 1 to {MOST_BYTES:,}, "
                "of the longest array or text in a list"
            )
        self._most_bytes = int(most)

    def predict(self, batch: np.ndarray) -> np.ndarray:
        return self.answer(batch)[0]

    def answer(self, batch: np.ndarray) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """(n, 1, 1) ones, and the outputs. Raises DataFault if the outputs have a wrong form."""
        given = self.made(batch)
        if not isinstance(given, Mapping) or not given:
            raise DataFault(
                f"{self.spec} returned a {type(given).__name__}; needed: a dict of arrays, the "
                f"first axis of each the images of the batch ({len(batch)})"
            )
        found = {str(name): self._values(name, values) for name, values in given.items()}
        for name, values in found.items():
            if values.shape[:1] != (len(batch),):
                raise DataFault(
                    f"{self.spec}: {name} has the shape {values.shape}; its first axis must be the "
                    f"images of the batch ({len(batch)})"
                )
        columns = columns_of(self.spec, found, self._most_bytes)
        if self.columns and {*columns} != {*self.columns}:
            raise DataFault(
                f"{self.spec} gave {shown(columns)}; its first outputs were "
                f"{shown(self.columns)}, and each batch must give the same, also where a list has "
                'nothing of an image: np.zeros((0, 4), "f4")'
            )
        return np.ones((len(batch), 1, 1), np.float32), found

    def _values(self, name: object, values: Any) -> np.ndarray:
        """An output as an array: (n, ...) from an array, a tensor of torch or a list of numbers;
        (n,) objects from a list of arrays or texts."""
        if _is_varied(values):
            found = objects([x if isinstance(x, str) else np.asarray(x) for x in values])
            longest = max(
                len(each.encode()) if isinstance(each, str) else each.nbytes for each in found
            )
            if longest > self._most_bytes:
                raise DataFault(
                    f"{self.spec}: {name} of an image takes {longest:,} bytes; the most is "
                    f"{self._most_bytes:,}, or what the class has as most_bytes"
                )
            return found
        try:
            found = np.asarray(values)
        except ValueError as error:  # a list of arrays of different shapes
            raise DataFault(f"{self.spec}: {name} is no array: {error}. {RAGGED}") from error
        if found.dtype == object:
            raise DataFault(f"{self.spec}: {name} is an array of objects. {RAGGED}")
        return found

    def first_call(self, embed: bool = False) -> None:
        """Call the object with noise to learn the columns.

        Raises:
            UsageError, DataFault: its outputs cannot be stored.
        """
        answer = self.answer(self.info.noise())
        self.columns = columns_of(self.spec, answer[1], self._most_bytes)
        known = f"{self.fingerprint} {self.columns}"  # a resumed run must have the same columns
        self.fingerprint = hashlib.sha256(known.encode()).hexdigest()


def _is_varied(values: Any) -> bool:
    """Whether an output is a list of texts, or of arrays that may differ in length."""
    if isinstance(values, np.ndarray) and values.dtype.kind not in "OU":
        return False
    listed = isinstance(values, (list, tuple, np.ndarray)) and len(values)
    return bool(listed) and all(isinstance(x, str) or getattr(x, "shape", ()) for x in values)


def check_probabilities(spec: str, scores: np.ndarray) -> None:
    """Raise DataFault unless scores, (n, cells, classes), are probabilities. Logits would look like
    a confidence of 18, and a row without a positive value like a missing answer.
    """
    if not np.isfinite(scores).all():
        raise DataFault(
            f"{spec}: predict gave scores that are NaN or infinite; look for NaN or infinity in "
            "its weights and its code"
        )
    low, high = float(scores.min()), float(scores.max())
    most = float(scores.sum(axis=2).max())
    if low >= -TOLERANCE and most <= 1 + TOLERANCE:
        return
    raise DataFault(
        f"{spec}: predict gave scores from {low:.3g} to {high:.3g}, those of a cell {most:.3g} in "
        "all; needed: probabilities from 0 to 1, at most 1 in all: are they logits? Apply softmax "
        f"over the classes. {HOW}"
    )


@contextmanager
def _folder_first(folder: str) -> Iterator[None]:
    """Puts a folder first in sys.path inside the block, and last afterwards.

    So later imports by the user's module still find the folder, and other imports do not change.
    """
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)


def _module(name: str) -> ModuleType:
    with _folder_first(os.getcwd()):
        return importlib.import_module(name)


def _file_module(path: Path) -> ModuleType:
    name = f"collage_mpi_own_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _folder_first(str(path.resolve().parent)):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
