"""The columns that a run may keep of each image beside its class, and how their values travel.

Each column has a name, a dtype and a shape. The values of an image are one record of bytes, whose
layout the ranks know when they have loaded their networks. A record travels with the answer as an
array of float32, whose bits are never changed. If the first dimension of a column varies between
images, the record has its length, and the values follow after the record.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING, Any

from collage_mpi.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

SCORES, EMBEDDINGS, OUTPUTS, BESIDE = "scores", "embeddings", "outputs", "beside"
NO_SAVE = "none"
SAVES = (NO_SAVE, SCORES, EMBEDDINGS, OUTPUTS, BESIDE)
KEYS = ("fingerprint", "shard", "row", "session")  # further columns of the files
TAKEN = (*KEYS, "id", "answered")  # names that a kept column must not have
MOST_BYTES = 64 << 20  # of an image's record, and of those of a batch that `--batch auto` chooses
MOST_COLUMNS = 64
MOST_VARIED_BYTES = 256 << 10  # of a value of varying length, unless a user's class sets another
OFFSETS = "_offsets"  # suffix of the array of offsets in an export to Zarr
COUNT, VALUES = "count", "values"  # subfields of a field of varying length in a record
TEXT = "text"  # dtype of a column of texts, which travel as UTF-8
DTYPES = "booleans, integers and floats of at most 8 bytes, and lists of texts"


@dataclass(frozen=True)
class KeptColumn:
    """A column of values that a run keeps, one for each image.

    Attributes:
        name: a word.
        dtype: numpy's string for a little-endian dtype, such as "<f4" or "|u1"; or TEXT.
        shape: of one image's value; () for a number. It begins with None if the first dimension
            varies between images.
        most_bytes: largest size of a value of varying length. It does not count when columns are
            compared.

    Raises:
        UsageError: the name, dtype or shape is not supported.
    """

    name: str
    dtype: str
    shape: tuple[int | None, ...]
    most_bytes: int = field(default=MOST_VARIED_BYTES, compare=False, repr=False)

    def __post_init__(self) -> None:
        said = f"the column {self.name!r} of {self.dtype} with the shape {self.shape} for an image"
        if not re.fullmatch(r"[A-Za-z]\w{0,63}", self.name, re.ASCII) or self.name in TAKEN:
            raise UsageError(
                f"{said} needs another name: a word of letters, digits and _, and none of "
                + ", ".join(TAKEN)
            )
        text = self.dtype == TEXT and self.shape == (None,)
        if not (text or re.fullmatch(r"\|[biu]1|<[iuf][248]", self.dtype)) or None in self.each:
            raise UsageError(f"{said} cannot be kept: the types that can are {DTYPES}")
        if min(self.each, default=1) < 1:
            raise UsageError(f"{said} holds no value: leave it out")

    @classmethod
    def of(cls, name: str, values: np.ndarray, most_bytes: int = MOST_VARIED_BYTES) -> KeptColumn:
        """The column for the values of a batch.

        Args:
            values: (n, ...); or (n,) objects, which are arrays of varying length, or texts.
            most_bytes: largest size of a value of varying length.

        Raises:
            UsageError: the values cannot be kept, or differ in more than their first dimension.
        """
        if values.dtype != object:
            return cls(name, values.dtype.newbyteorder("<").str, values.shape[1:])
        found = {_varied(name, value, most_bytes) for value in values}
        if len(found) > 1:
            raise UsageError(
                f"{shown(sorted(found, key=repr))}: only the first dimension may differ"
            )
        return found.pop()

    @property
    def varies(self) -> bool:
        """Whether the first dimension varies between images."""
        return self.shape[:1] == (None,)

    @property
    def each(self) -> tuple[int, ...]:
        """The dimensions that are the same for all images: `shape` without a leading None."""
        return self.shape[self.varies :]  # type: ignore[return-value]

    @property
    def nbytes(self) -> int:
        """The largest size of one image's value."""
        return self.most_bytes if self.varies else int(self.dtype[-1]) * prod(self.each)

    @property
    def format(self) -> Any:
        """The numpy format of the column's field in a record. If the length varies, the field has
        the subfields COUNT and an empty array that shows the dtype."""
        if not self.varies:
            return (self.dtype, self.each)
        if self.dtype == TEXT:
            return [(COUNT, "<u4"), (TEXT, "|u1", (0,))]
        return [(COUNT, "<u4"), (VALUES, self.dtype, (0, *self.each))]


def _varied(name: str, value: Any, most_bytes: int) -> KeptColumn:
    if isinstance(value, str):
        return KeptColumn(name, TEXT, (None,), most_bytes)
    return KeptColumn(name, value.dtype.newbyteorder("<").str, (None, *value.shape[1:]), most_bytes)


def shown(columns: Sequence[KeptColumn]) -> str:
    """The columns in words: names, dtypes and shapes."""
    return ", ".join(f"{each.name} {each.dtype} {each.shape}" for each in columns)


def layout_of(columns: Sequence[KeptColumn]) -> np.dtype:
    """The structured dtype of an image's record, padded to a multiple of 4 bytes. A column of
    varying length has only its count in it (see `KeptColumn.format`).

    Raises:
        UsageError: there are too many columns, or they take more than MOST_BYTES.
    """
    import numpy as np  # here, because --help of run imports this module

    nbytes = sum(column.nbytes for column in columns)
    if not 0 < nbytes <= MOST_BYTES or len(columns) > MOST_COLUMNS:
        raise UsageError(
            f"{len(columns)} columns of {nbytes:,} bytes in all for an image; 1 to {MOST_COLUMNS} "
            f"of at most {MOST_BYTES:,} bytes in all can be kept"
        )
    names = [each.name for each in columns]
    twice = {f"{each.name}{OFFSETS}" for each in columns if each.varies}.intersection(names)
    if twice:
        raise UsageError(f"the column {twice.pop()!r} needs another name: exports make one of it")
    formats = [np.dtype(each.format) for each in columns]
    *offsets, end = accumulate((each.itemsize for each in formats), initial=0)
    return np.dtype(
        {
            "names": names,
            "formats": formats,
            "offsets": offsets,
            "itemsize": _whole(end),
        }
    )


def most_floats(columns: Sequence[KeptColumn]) -> int:
    """The length of the largest possible record with the values that follow it, in float32."""
    varied = sum(column.nbytes for column in columns if column.varies)
    return (layout_of(columns).itemsize + _whole(varied)) // 4


def _whole(nbytes: int) -> int:
    """A number of bytes, rounded up to a multiple of 4."""
    return -(-nbytes // 4) * 4


def varied_in(layout: np.dtype) -> dict[str, np.dtype]:
    """Name of each column of varying length -> dtype of its values, with a first dimension of 0;
    uint8 for texts."""
    fields = {name: layout[name] for name in layout.names or ()}
    return {name: each[1] for name, each in fields.items() if each.names}


def objects(values: Sequence[Any]) -> np.ndarray:
    """The values as an array of n objects. `numpy.array` would merge arrays of the same shape."""
    import numpy as np

    found = np.empty(len(values), object)
    for at, value in enumerate(values):
        found[at] = value
    return found


def is_text(layout: np.dtype, name: str) -> bool:
    """Whether a column of the layout holds texts."""
    return TEXT in (layout[name].names or ())


@dataclass(frozen=True)
class Extras:
    """The values that a run keeps of each answered image.

    Attributes:
        top_k: number of best classes to keep, with their scores; None for none.
        save: one of SAVES: the scores of all classes, the embedding, the outputs of a user's
            function, or the answers of the networks beside the first one.
    """

    top_k: int | None
    save: str

    def __bool__(self) -> bool:
        return self.top_k is not None or self.save != NO_SAVE

    @property
    def classifies(self) -> bool:
        """Whether rows have a class. They have none if a user's function is mapped."""
        return self.save != OUTPUTS

    @property
    def more(self) -> bool:
        """Whether there are further columns, which only the network knows."""
        return self.save in (OUTPUTS, BESIDE)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns, in order; those that only the network knows follow them."""
        top = ("top_classes", "top_scores") if self.top_k else ()
        saved = {SCORES: ("scores",), EMBEDDINGS: ("embedding",)}
        return (*top, *saved.get(self.save, ()))

    def columns(self, classes: int, given: Sequence[KeptColumn] = ()) -> tuple[KeptColumn, ...]:
        """The columns, in order.

        Args:
            classes: number of classes.
            given: further columns that the network returns.
        """
        top = (self.top_k or 1,)
        known = [
            KeptColumn("top_classes", "<i4", top),
            KeptColumn("top_scores", "<f4", top),
            KeptColumn("scores", "<f4", (classes,)),
            *given,
        ]
        by_name = {column.name: column for column in known}
        more = [each.name for each in given if self.more]
        return tuple(by_name[name] for name in (*self.names, *more))

    def pack(
        self,
        layout: np.dtype,
        scores: np.ndarray,
        given: Mapping[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """Pack the values of n images.

        Args:
            layout: from `layout_of`.
            scores: (n, classes) float32.
            given: name -> (n, ...), the further columns that the network returns.

        Returns:
            (n, floats) float32, each row padded to the longest. Of equal scores the lowest class
            comes first, as in `decode`.
        """
        import numpy as np

        found = {"scores": scores, **(given or {})}
        if self.top_k:
            top = np.argsort(-scores, axis=1, kind="stable")[:, : self.top_k].astype(np.int32)
            found["top_classes"] = top
            found["top_scores"] = np.take_along_axis(scores, top, axis=1)
        records, tails = np.zeros(len(scores), layout), [b""] * len(scores)
        varied = varied_in(layout)
        for name in layout.names or ():
            values: Any = found[name]
            if name in varied:
                if is_text(layout, name):
                    values = [np.frombuffer(text.encode(), np.uint8) for text in values]
                records[name][COUNT] = [len(value) for value in values]
                base = varied[name].base
                own = (np.asarray(value, base).tobytes() for value in values)
                tails = [tail + more for tail, more in zip(tails, own, strict=True)]
            else:
                records[name] = values
        rows = records.view(np.uint8).reshape(len(records), -1)
        if varied:
            longest = _whole(max(map(len, tails), default=0))
            behind = b"".join(tail.ljust(longest, b"\0") for tail in tails)
            tail_rows = np.frombuffer(behind, np.uint8).reshape(len(rows), longest)
            rows = np.concatenate([rows, tail_rows], axis=1)
        return rows.view(np.float32)


def unpack(layout: np.dtype, vectors: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The inverse of `Extras.pack`: name -> (n, ...); (n,) objects for a column of varying length.

    Args:
        layout: from `layout_of`.
        vectors: (floats,) float32 for each of n images.
    """
    import numpy as np

    floats = layout.itemsize // 4
    heads = np.array([vector[:floats] for vector in vectors], np.float32).reshape(-1, floats)
    records, varied = heads.view(layout)[:, 0], varied_in(layout)
    found = {name: records[name] for name in layout.names or ()}
    starts = np.full(len(records), layout.itemsize)
    for name, each in varied.items():
        counts = records[name][COUNT].astype(np.int64)
        row_bytes = each.base.itemsize * prod(each.shape[1:])
        found[name], ends = np.empty(len(records), object), starts + counts * row_bytes
        for at, (vector, start, end) in enumerate(zip(vectors, starts, ends, strict=True)):
            raw = vector.view(np.uint8)[start:end]
            value: Any = raw.view(each.base).reshape(counts[at], *each.shape[1:])
            found[name][at] = raw.tobytes().decode() if is_text(layout, name) else value
        starts = ends
    return found
