"""Reads IDX files, the format of MNIST, gzip or plain, and checks the header against the bytes."""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault

GZIP_MAGIC = b"\x1f\x8b"
BLOCK_BYTES = 1 << 20
MAX_DIMS = 8
DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def read_idx(path: Path | str) -> np.ndarray:
    """Read a whole IDX file.

    The header is two zero bytes, a type code, the number of axes, and each axis's length as a
    big-endian uint32; then exactly the values. Memory grows with the bytes that are there, never
    with what the header claims.

    Returns:
        The array, in the machine's byte order.

    Raises:
        EnvironmentFault: missing or unreadable.
        DataFault: not IDX, cut short, or with extra bytes.
    """
    path = Path(path)
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == GZIP_MAGIC
            raw.seek(0)
            if not zipped:
                return _parse(raw, path)
            with gzip.open(raw, "rb") as stream:
                return _parse(stream, path)  # type: ignore[arg-type]
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise DataFault(f"{path}: damaged gzip file: {error}. Fetch it again.") from error
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be read: {error.strerror or error}") from error


def _parse(stream: BinaryIO, path: Path) -> np.ndarray:
    magic = stream.read(4)
    if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in DTYPES:
        raise DataFault(
            f"{path}: not an IDX file: starts with {magic.hex(' ') or 'nothing'}; needed: two "
            f"zero bytes, a type code of {', '.join(f'{code:02x}' for code in DTYPES)}, "
            "the number of axes"
        )
    if not 1 <= magic[3] <= MAX_DIMS:
        raise DataFault(f"{path}: {magic[3]} axes; needed: 1 to {MAX_DIMS}")
    sizes = stream.read(4 * magic[3])
    if len(sizes) < 4 * magic[3]:
        raise DataFault(f"{path}: ends inside its header")
    shape = tuple(np.frombuffer(sizes, dtype=">u4").tolist())
    dtype = np.dtype(DTYPES[magic[2]])
    body = _read_exactly(stream, math.prod(shape) * dtype.itemsize, path, shape)
    return np.frombuffer(body, dtype=dtype).reshape(shape).astype(dtype.newbyteorder("="))


def _read_exactly(stream: BinaryIO, needed: int, path: Path, shape: tuple[int, ...]) -> bytearray:
    body = bytearray()
    while len(body) <= needed:
        block = stream.read(min(BLOCK_BYTES, needed + 1 - len(body)))
        if not block:
            break
        body += block
    if len(body) != needed:
        found = "more" if len(body) > needed else f"{len(body):,}"
        raise DataFault(
            f"{path}: the header says {shape}, which is {needed:,} bytes of values; the file "
            f"has {found}. Fetch it again."
        )
    return body
