"""What a run may keep of each image beyond its class: named columns, each with a dtype and a shape.

The values of an image are one record of bytes, whose layout the ranks learn when they load their
networks. A record travels with the answer as float32 numbers, whose bits nothing changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import TYPE_CHECKING

from collage_mpi.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

SCORES, EMBEDDINGS, OUTPUTS = "scores", "embeddings", "outputs"
NO_SAVE = "none"
SAVES = (NO_SAVE, SCORES, EMBEDDINGS, OUTPUTS)
KEYS = ("fingerprint", "shard", "row", "session")  # beside the columns, in the files
TAKEN = (*KEYS, "answered")  # beside them in files and exports
MOST_BYTES = 64 << 20  # of an image's record: room for one is kept for every message of answers
MOST_COLUMNS = 64
DTYPES = "booleans, integers and floats of at most 8 bytes"


@dataclass(frozen=True)
class KeptColumn:
    """What is kept of each image under one name.

    Attributes:
        dtype: as numpy writes it, little-endian: "<f4", "|u1".
        shape: of one image's value; () for a single number.

    Raises:
        UsageError: it cannot be kept.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __post_init__(self) -> None:
        said = f"the column {self.name!r} of {self.dtype} with the shape {self.shape} for an image"
        if not re.fullmatch(r"[A-Za-z]\w{0,63}", self.name, re.ASCII) or self.name in TAKEN:
            raise UsageError(
                f"{said} needs another name: a word of letters, digits and _, and none of "
                + ", ".join(TAKEN)
            )
        if not re.fullmatch(r"\|[biu]1|<[iuf][248]", self.dtype):
            raise UsageError(f"{said} cannot be kept: the types that can are {DTYPES}")
        if min(self.shape, default=1) < 1:
            raise UsageError(f"{said} holds no value: leave it out")

    @classmethod
    def of(cls, name: str, values: np.ndarray) -> KeptColumn:
        """The column of a batch's values, (n, ...)."""
        return cls(name, values.dtype.newbyteorder("<").str, values.shape[1:])

    @property
    def nbytes(self) -> int:
        """Of one image's value."""
        return int(self.dtype[-1]) * prod(self.shape)


def shown(columns: Sequence[KeptColumn]) -> str:
    """Columns in a message: their names, types and shapes."""
    return ", ".join(f"{each.name} {each.dtype} {each.shape}" for each in columns)


def layout_of(columns: Sequence[KeptColumn]) -> np.dtype:
    """The record of an image: the columns one behind another, in whole float32 numbers.

    Raises:
        UsageError: there are too many, or they take more than MOST_BYTES.
    """
    import numpy as np  # late: --help of run reads this module

    nbytes = sum(column.nbytes for column in columns)
    if not 0 < nbytes <= MOST_BYTES or len(columns) > MOST_COLUMNS:
        raise UsageError(
            f"{len(columns)} columns of {nbytes:,} bytes in all for an image; 1 to {MOST_COLUMNS} "
            f"of at most {MOST_BYTES:,} bytes in all can be kept"
        )
    return np.dtype(
        {
            "names": [each.name for each in columns],
            "formats": [(each.dtype, each.shape) for each in columns],
            "offsets": [*accumulate((each.nbytes for each in columns[:-1]), initial=0)],
            "itemsize": -(-nbytes // 4) * 4,
        }
    )


@dataclass(frozen=True)
class Extras:
    """What is kept of each answered image.

    Attributes:
        top_k: number of best classes, the best first, with their scores; None for none.
        save: one of SAVES: the scores of all classes, the network's embedding, or what a user's
            function returns.
    """

    top_k: int | None = None
    save: str = NO_SAVE

    def __bool__(self) -> bool:
        return self.top_k is not None or self.save != NO_SAVE

    @property
    def of_network(self) -> bool:
        """Whether the network itself names columns when it is loaded."""
        return self.save in (EMBEDDINGS, OUTPUTS)

    @property
    def classifies(self) -> bool:
        """Whether rows say a class: not where a user's function is mapped."""
        return self.save != OUTPUTS

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns, in order; () if only the network knows them."""
        top = ("top_classes", "top_scores") if self.top_k else ()
        saved = {SCORES: ("scores",), EMBEDDINGS: ("embedding",)}
        return (*top, *saved.get(self.save, ()))

    def columns(self, classes: int, given: Sequence[KeptColumn] = ()) -> tuple[KeptColumn, ...]:
        """The columns, in order; `given` are those of the network."""
        top = (self.top_k or 1,)
        known = [
            KeptColumn("top_classes", "<i4", top),
            KeptColumn("top_scores", "<f4", top),
            KeptColumn("scores", "<f4", (classes,)),
            *given,
        ]
        by_name = {column.name: column for column in known}
        return tuple(by_name[name] for name in self.names or [each.name for each in given])

    def pack(
        self,
        layout: np.dtype,
        scores: np.ndarray,
        given: Mapping[str, np.ndarray] | None = None,
    ) -> np.ndarray:
        """(n, classes) float32 scores, and (n, ...) of each column that the network gives ->
        (n, floats) float32.

        Of equal scores the lowest class comes first, as in `decode`.
        """
        import numpy as np

        found = {"scores": scores, **(given or {})}
        if self.top_k:
            top = np.argsort(-scores, axis=1, kind="stable")[:, : self.top_k].astype(np.int32)
            found["top_classes"] = top
            found["top_scores"] = np.take_along_axis(scores, top, axis=1)
        records = np.zeros(len(scores), layout)
        for name in layout.names or ():
            records[name] = found[name]
        return records.view(np.float32).reshape(len(records), -1)


def unpack(layout: np.dtype, vectors: np.ndarray) -> np.ndarray:
    """(n, floats) float32 -> (n,) of the layout: of each image what `pack` was given."""
    import numpy as np

    found: np.ndarray = np.ascontiguousarray(vectors, np.float32).view(layout)[:, 0]
    return found
