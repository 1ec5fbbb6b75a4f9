"""Finds the files beside an ONNX graph that hold its tensors, without an ONNX library."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.system.files import require_regular

# Message of onnx.proto -> number of a field -> the message in it, for all ways to a tensor.
ENTRY, TENSOR = "StringStringEntryProto", "TensorProto"
FIELDS: dict[str, dict[int, str]] = {
    "ModelProto": {7: "GraphProto", 20: "TrainingInfoProto", 25: "FunctionProto"},
    "TrainingInfoProto": {1: "GraphProto", 2: "GraphProto"},
    "FunctionProto": {7: "NodeProto", 11: "AttributeProto"},
    "GraphProto": {1: "NodeProto", 5: TENSOR, 15: "SparseTensorProto"},
    "NodeProto": {5: "AttributeProto"},
    "AttributeProto": {
        5: TENSOR,
        6: "GraphProto",
        10: TENSOR,
        11: "GraphProto",
        22: "SparseTensorProto",
        23: "SparseTensorProto",
    },
    "SparseTensorProto": {1: TENSOR, 2: TENSOR},
    TENSOR: {13: ENTRY},
}
KEY, VALUE = 1, 2  # fields of an entry
VARINT, FIXED_64, LENGTH, FIXED_32 = 0, 1, 2, 5  # types of a field in protobuf's bytes
MOST_BITS = 70  # of a varint
MOST_DEPTH = 100  # of messages in messages, as in protobuf


def tensor_files(path: Path) -> list[Path]:
    """The files besides the graph itself, each once, in the order of their names.

    Raises:
        EnvironmentFault: one of them is missing or cannot be read.
        DataFault: the graph is damaged, or names a file outside of its own folder.
        OSError: the graph cannot be read.
    """
    with path.open("rb") as file:
        try:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as raw:
                names = set(_locations(raw, 0, len(raw), "ModelProto"))
        except (ValueError, IndexError, UnicodeDecodeError) as error:
            raise DataFault(f"{path}: cannot be loaded: it is no ONNX file, or damaged") from error
    return [_inside(path, name) for name in sorted(names)]


def _inside(graph: Path, name: str) -> Path:
    """The file of this name in the graph's folder; raises as `tensor_files`."""
    folder = graph.parent.resolve()
    try:
        file = folder / name
        if ".." in Path(name).parts or folder not in file.resolve().parents:
            raise DataFault(
                f"{graph} keeps tensors in {name!r}, which is outside of its own folder. A graph "
                "may name files of its own folder only: put both into one folder, without links"
            )
        require_regular(file)
        file.open("rb").close()
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        reason = getattr(error, "strerror", None) or error
        raise EnvironmentFault(
            f"{graph} keeps its weights in the file {name!r} beside it, which cannot be read: "
            f"{reason}. Copy this file too"
        ) from error
    return file


def _locations(
    raw: mmap.mmap | bytes, at: int, end: int, message: str, depth: int = 0
) -> Iterator[str]:
    """The locations of external data in the message that is raw[at:end]; raises ValueError or
    IndexError if the bytes are damaged."""
    if depth > MOST_DEPTH or end > len(raw):
        raise ValueError("too deep, or too short")
    inner = FIELDS[message]
    while at < end:
        tag, at = _varint(raw, at)
        number, form = tag >> 3, tag & 7
        if form == VARINT:
            _, at = _varint(raw, at)
        elif form in (FIXED_64, FIXED_32):
            at += 8 if form == FIXED_64 else 4
        elif form == LENGTH:
            length, start = _varint(raw, at)
            at = start + length
            if at > end:
                raise ValueError("too short")
            if inner.get(number) == ENTRY:
                key, value = _entry(raw[start:at])
                if key == b"location":
                    yield value.decode()
            elif number in inner:
                yield from _locations(raw, start, at, inner[number], depth + 1)
        else:
            raise ValueError(f"field of type {form}")


def _entry(raw: bytes) -> tuple[bytes, bytes]:
    found, at = {KEY: b"", VALUE: b""}, 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        length, start = _varint(raw, at)
        if tag & 7 != LENGTH:
            raise ValueError("an entry holds texts")
        at = start + length
        found[tag >> 3] = raw[start:at]
    return found[KEY], found[VALUE]


def _varint(raw: mmap.mmap | bytes, at: int) -> tuple[int, int]:
    """A number of protobuf at a place, and the place behind it."""
    value = bits = 0
    while True:
        byte = raw[at]
        value |= (byte & 0x7F) << bits
        at, bits = at + 1, bits + 7
        if byte < 0x80:
            return value, at
        if bits >= MOST_BITS:
            raise ValueError("a number is too long")
