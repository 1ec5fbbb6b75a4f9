"""The exceptions, besides OSError, that numpy raises for damaged .npy and .npz files, found by
damaging files (tests/faults/fuzz.py).
"""

from __future__ import annotations

import struct
import tokenize
import zipfile
import zlib

UNREADABLE: tuple[type[Exception], ...] = (
    *(ValueError, TypeError, SyntaxError, tokenize.TokenError),  # the header is a Python literal
    *(OverflowError, MemoryError),  # shapes that it claims
    *(EOFError, KeyError, RuntimeError, NotImplementedError),  # a .npz: members, methods, keys
    *(zipfile.BadZipFile, zlib.error, struct.error),
)

UNREADABLE_OR_GONE: tuple[type[Exception], ...] = (OSError, *UNREADABLE)
