"""The IDX parser against good files, damaged files and headers that lie."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.prep.work import DTYPES, read_idx

CODES = {np.dtype(text): code for code, text in DTYPES.items()}
SHARED_FOLDER = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def idx_bytes(array: np.ndarray) -> bytes:
    """`array` (big-endian dtype) as an IDX file."""
    header = struct.pack(">BBBB", 0, 0, CODES[array.dtype], array.ndim)
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@SHARED_FOLDER
@given(
    array=st.sampled_from(sorted(DTYPES.values())).flatmap(
        lambda text: hnp.arrays(text, hnp.array_shapes(max_dims=4, max_side=5))
    ),
    zipped=st.booleans(),
)
def test_round_trip(tmp_path: Path, array: np.ndarray, zipped: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(idx_bytes(array)) if zipped else idx_bytes(array))
    read = read_idx(path)
    assert read.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(read, array)


@SHARED_FOLDER
@given(data=st.binary(max_size=64), zipped=st.booleans(), headed=st.booleans())
def test_any_bytes_are_read_or_refused(
    tmp_path: Path, data: bytes, zipped: bool, headed: bool
) -> None:
    data = b"\0\0\x08" + data if headed else data
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(data) if zipped else data)
    try:
        array = read_idx(path)
    except DataFault:
        return
    assert idx_bytes(array.astype(array.dtype.newbyteorder(">"))) == data


@SHARED_FOLDER
@given(data=st.data())
def test_damaged_gzip_is_refused_or_the_same(tmp_path: Path, data: st.DataObject) -> None:
    array = np.arange(60, dtype=">u1").reshape(3, 4, 5)
    raw = bytearray(gzip.compress(idx_bytes(array)))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "file"
    path.write_bytes(raw[: data.draw(st.integers(place + 1, len(raw)))])
    try:
        read = read_idx(path)
    except DataFault:
        return
    np.testing.assert_array_equal(read, array)


def test_a_header_that_claims_terabytes_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**31) + b"abc")
    with pytest.raises(DataFault, match="the file has 3"):
        read_idx(path)


def test_left_over_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(idx_bytes(np.zeros(4, dtype=">u1")) + b"x")
    with pytest.raises(DataFault, match="has more"):
        read_idx(path)


def test_a_missing_file_is_a_fault_of_the_environment(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cannot be read"):
        read_idx(tmp_path / "none")
