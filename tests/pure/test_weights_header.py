"""Weights files: what is written is read back, anything else is refused in one message."""

from __future__ import annotations

import json
import struct
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, UsageError
from collage_mpi.models import describe
from collage_mpi.models.architecture import default_architecture
from collage_mpi.models.weights import (
    METADATA_KEY,
    describe_weights,
    parse_metadata,
    read_tensors,
    save_weights,
)

same_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def record(kind: str = "single", **changes: Any) -> dict[str, Any]:
    return {
        "format": "collage-mpi weights",
        "version": 1,
        "kind": kind,
        "architecture": asdict(default_architecture(kind, 8)),
        "side": 3 if kind == "collage" else None,
        "cell_px": 14 if kind == "collage" else None,
        "height": 28,
        "width": 30,
        "channels": 1,
        "class_names": ["cat", "dog"],
        "normalisation": {"mean": [0.3], "std": [0.4]},
        "temperature": 1.5,
        "training": {"seed": 4},
        **changes,
    }


def header(value: Any) -> dict[str, Any]:
    return {"__metadata__": {METADATA_KEY: json.dumps(value)}}


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    tensors = {"matrix": np.full((2, 3), 0.1, np.float32), "bias": np.full(2, 0.1, np.float32)}
    written = save_weights(path, tensors, record("collage"))
    info = describe(str(path), "collage")
    assert info == written
    assert info is not None
    assert (info.kind, info.shape, info.side, info.cell_px) == ("collage", (42, 42, 1), 3, 14)
    assert (info.class_names, info.cells, len(info.fingerprint)) == (("cat", "dog"), 9, 64)
    assert info.metadata["training"] == {"seed": 4}
    back = read_tensors(info)
    assert back["matrix"].dtype == np.float32
    assert np.allclose(back["matrix"], 0.1, atol=1e-4)  # stored as float16
    assert (back["bias"] == np.float32(0.1)).all()  # stored as float32
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]


def test_single_takes_the_images_shape() -> None:
    info = parse_metadata("w", json.dumps(record()), "f")
    assert (info.shape, info.side, info.cells) == ((28, 30, 1), None, 1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": "other"}, "format 'other'"),
        ({"version": 2}, "version 2"),
        ({"kind": "double"}, "kinds are"),
        ({"channels": 0}, "channels is 0"),
        ({"height": 1 << 15}, "height is 32768"),
        ({"height": "28"}, "height is '28'; needed is a whole number"),
        ({"height": True}, "height"),
        ({"class_names": []}, r"class_names is \[\]; needed is a list of length >= 1"),
        ({"class_names": [1]}, "class_names"),
        ({"normalisation": None}, "normalisation"),
        ({"normalisation": {"mean": [0.1], "std": [0]}}, "std"),
        ({"normalisation": {"mean": [0.1, 0.2], "std": [1, 1]}}, "mean"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": 0}, "temperature"),
        ({"temperature": 1e30}, "temperature"),
        ({"architecture": {}}, "architecture"),
        ({"architecture": {**asdict(default_architecture("single")), "norm": "x"}}, "norm"),
        (
            {"architecture": {**asdict(default_architecture("single")), "stages": [1]}},
            r"stages\[0\] is 1; needed is a table",
        ),
        ({"architecture": {"stem": 3}}, "it has 'stem'; known are stem_width"),
        ({"training": 0, "channels": None}, "channels is None; needed is a whole number"),
    ],
)
def test_bad_records_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataFault, match=message):
        parse_metadata("some.safetensors", json.dumps(record(**changes)), "f")


def test_bad_grids_are_refused() -> None:
    with pytest.raises(DataFault, match="side is 1"):
        parse_metadata("w", json.dumps(record("collage", side=1)), "f")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=5,
)


@given(
    key=st.sampled_from(sorted(record())),
    value=json_values,
    kind=st.sampled_from(["single", "collage"]),
)
def test_any_value_in_any_place_is_read_or_refused(key: str, value: Any, kind: str) -> None:
    try:
        parse_metadata("w", json.dumps({**record(kind), key: value}), "f")
    except DataFault:
        pass


@given(json_values)
def test_any_other_record_is_refused(value: Any) -> None:
    with pytest.raises(DataFault):
        parse_metadata("w", json.dumps(value), "f")


@same_folder
@given(
    st.binary(max_size=200) | st.binary(max_size=60).map(lambda b: struct.pack("<Q", len(b)) + b)
)
def test_foreign_bytes_are_refused(tmp_path: Path, payload: bytes) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(payload)
    with pytest.raises(DataFault, match="safetensors"):
        describe_weights(path)


def test_an_empty_header_lacks_what_we_need(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(struct.pack("<Q", 2) + b"{}")
    with pytest.raises(DataFault) as other:
        describe_weights(path)
    assert "not a safetensors file" not in str(other.value)


@same_folder
@given(at=st.integers(0, 10_000), value=st.integers(0, 255), cut=st.none() | st.integers(0, 10_000))
def test_damaged_files_never_crash(tmp_path: Path, at: int, value: int, cut: int | None) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"m": np.ones((8, 8), np.float32)}, record())
    payload = bytearray(path.read_bytes())
    payload[at % len(payload)] = value
    path.write_bytes(bytes(payload[: None if cut is None else cut % len(payload)]))
    message = str(path)
    try:
        read_tensors(describe_weights(path))
    except CollageError as error:
        message = str(error)
    assert str(path) in message


@pytest.mark.parametrize("cut", [1, 10, 136])
def test_a_file_that_is_cut_short_is_found_by_its_header(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"m": np.ones((8, 8), np.float32), "b": np.ones(2, np.float32)}, record())
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(DataFault, match=r"or damaged \(.*not fully covered"):
        describe_weights(path)


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F99", "shape": [2], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [3], "data_offsets": [0, 8]},
        {"dtype": "F32", "shape": [2], "data_offsets": [4, 12]},
        {"dtype": "F32", "shape": [2], "data_offsets": [0]},
        [],
    ],
)
def test_entries_of_tensors_are_checked(tmp_path: Path, entry: Any) -> None:
    path = tmp_path / "w.safetensors"
    text = json.dumps({**header(record()), "m": entry}).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(8))
    with pytest.raises(DataFault, match="or damaged"):
        describe_weights(path)


def test_missing_file_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="collage-mpi train"):
        describe(str(tmp_path / "none.safetensors"), "single")


def test_the_other_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {}, record("collage"))
    with pytest.raises(UsageError, match="wrong way round"):
        describe(str(path), "single")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6])  # 1e6 overflows float16
def test_tensors_that_are_not_finite_are_not_written(tmp_path: Path, value: float) -> None:
    path = tmp_path / "w.safetensors"
    with pytest.raises(DataFault, match="not finite"):
        save_weights(path, {"m": np.full((2, 2), value, np.float32)}, record())
    assert not path.exists()


def test_a_file_with_nan_is_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save

    path = tmp_path / "w.safetensors"
    tensors = {"m": np.full((2, 2), np.nan, np.float16)}
    path.write_bytes(save(tensors, metadata={METADATA_KEY: json.dumps(record())}))
    with pytest.raises(DataFault, match="NaN"):
        read_tensors(describe_weights(path))


def test_an_unwritable_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        save_weights(tmp_path / "none" / "w.safetensors", {}, record())
