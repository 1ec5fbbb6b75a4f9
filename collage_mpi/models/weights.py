"""Reads and writes weights files: safetensors with a JSON record in the header. Tensors are numpy
arrays; neither torch nor pickle is used.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, UsageError
from collage_mpi.kinds import COLLAGE, NETWORKS
from collage_mpi.models.architecture import read_architecture
from collage_mpi.models.info import NetworkInfo
from collage_mpi.models.named import advice_for
from collage_mpi.models.specs import AcceptSpec, HeadSpec
from collage_mpi.system.files import require_regular, save_file, sha256_of_stream

FORMAT = "collage-mpi weights"
VERSION = 1
METADATA_KEY = "collage_mpi"
_METADATA = "__metadata__"  # the key of safetensors for metadata in the header
ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1}
MAX_HEADER_BYTES = 4 << 20  # headers have a few kB; a foreign file must not fill the memory
MOST_AXES = 16  # of a tensor
MAX_SIDE_PX, MAX_CHANNELS, MAX_CLASSES = 1 << 14, 64, 1 << 20

_REMEDY = "make one with: collage-mpi train single|collage --shards ... --out FILE.safetensors"


def describe_weights(spec: str | Path, kind: str | None = None) -> NetworkInfo:
    """Read and check the header of a weights file, and check that the file has all its tensors.

    Args:
        spec: path of the file.
        kind: the kind that the network must have, one of NETWORKS; None for any.

    Raises:
        EnvironmentFault: the file is missing or unreadable.
        DataFault: the file is damaged, or has another format or version.
        UsageError: the network is of another kind.
    """
    path = Path(spec)
    try:
        require_regular(path)
        with path.open("rb") as file:
            header = _read_header(path, file.read(8), file)
            first = file.tell()
            file.seek(0)
            fingerprint = sha256_of_stream(file)
            tensor_bytes = file.tell() - first
    except OSError as error:
        reason = "it is not there" if isinstance(error, FileNotFoundError) else error.strerror
        remedy = _REMEDY if path.suffix == ".safetensors" else advice_for(str(spec))
        raise EnvironmentFault(f"network {spec}: cannot be read: {reason}; {remedy}") from error
    info = parse_metadata(str(path), header, fingerprint, path)
    if kind is not None and info.kind != kind:
        raise UsageError(
            f"weights {path} hold a {info.kind} network; a {kind} network is needed here: "
            f"are --{kind} and --{info.kind} the wrong way round?"
        )
    _check_tensors(path, header, tensor_bytes)
    return info


def parse_metadata(
    name: str, header: Mapping[str, Any], fingerprint: str, path: Path | None = None
) -> NetworkInfo:
    """The facts in a safetensors header.

    Args:
        name: names the file in messages.

    Raises:
        DataFault: the record is missing or invalid.
    """
    metadata = header.get(_METADATA)
    text = metadata.get(METADATA_KEY) if isinstance(metadata, Mapping) else None
    if not isinstance(text, str):
        raise DataFault(
            f"weights {name} are safetensors of another program (no {METADATA_KEY!r} record in "
            f"the header). Name the network that they belong to: timm:NAME,weights={name}"
        )
    try:
        record = json.loads(text)
        if not isinstance(record, dict):
            raise DataFault(f"the record is a {type(record).__name__}, not a table")
        return _info(record, fingerprint, path)
    except (CollageError, ValueError, RecursionError) as error:
        raise DataFault(f"weights {name}: bad {METADATA_KEY!r} record: {error}") from error


def save_weights(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, Any]
) -> NetworkInfo:
    """Write a weights file atomically.

    Args:
        tensors: name -> float array. Arrays of two or more dimensions are stored as float16, which
            halves the file (11 bits suffice for trained weights); others (norms, biases) as
            float32.
        metadata: the record, without format and version.

    Raises:
        DataFault: a tensor is not finite after the conversion, or the record is invalid.
        EnvironmentFault: the file cannot be written.
    """
    from safetensors.numpy import save

    stored = {name: _stored(name, array) for name, array in tensors.items()}
    record = {"format": FORMAT, "version": VERSION, **metadata}
    _info(record, "", None)
    payload = save(stored, metadata={METADATA_KEY: json.dumps(record)})
    save_file(path, payload)
    return describe_weights(path)


def with_accept(info: NetworkInfo, accept: AcceptSpec, out: Path) -> NetworkInfo:
    """Write a copy of a weights file with a threshold in its record.

    Raises:
        DataFault, EnvironmentFault: as `read_tensors` and `save_weights`.
    """
    record = {k: v for k, v in info.metadata.items() if k not in ("format", "version")}
    return save_weights(out, read_tensors(info), {**record, "accept": accept.to_dict()})


def read_tensors(info: NetworkInfo) -> dict[str, np.ndarray]:
    """Read the tensors of a weights file as float32.

    Raises:
        DataFault: the file has changed or is damaged, or a tensor is not finite.
        EnvironmentFault: the file cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    if info.path is None:
        raise DataFault("the network has no weights file")
    try:
        payload = info.path.read_bytes()
        if hashlib.sha256(payload).hexdigest() != info.fingerprint:
            raise DataFault(f"weights {info.path} changed while being read; start again")
        tensors = load(payload)
    except OSError as error:
        raise EnvironmentFault(f"weights {info.path}: cannot read: {error.strerror}") from error
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise DataFault(f"weights {info.path} are damaged: {error}; copy them again") from error
    result = {name: np.array(array, dtype=np.float32) for name, array in tensors.items()}
    for name, array in result.items():
        if not np.isfinite(array).all():
            raise DataFault(
                f"weights {info.path}: tensor {name!r} holds NaN or infinity; train again "
                "(a lower --lr helps when training diverged)"
            )
    return result


def _read_header(path: Path, first: bytes, file: Any) -> dict[str, Any]:
    length = struct.unpack("<Q", first)[0] if len(first) == 8 else 0
    header = None
    if 2 <= length <= MAX_HEADER_BYTES:
        with suppress(ValueError, RecursionError):
            header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise DataFault(f"weights {path} are not a safetensors file; {advice_for(str(path))}")
    return header


def _check_tensors(path: Path, header: Mapping[str, Any], found_bytes: int) -> None:
    """Raise DataFault unless the tensors in the header fill the rest of the file exactly."""
    spans = []
    for name, entry in header.items():
        if name == _METADATA:
            continue
        span = _span(entry)
        if span is None:
            raise DataFault(
                f"weights {path} are damaged: the header's entry of tensor {name!r:.80} is no "
                "dtype, shape and place; copy them again"
            )
        spans.append(span)
    end = 0
    for first, last in sorted(spans):
        if first != end:
            raise DataFault(f"weights {path} are damaged: tensors overlap; copy them again")
        end = last
    if end != found_bytes:
        raise DataFault(
            f"weights {path} are damaged: {found_bytes:,} bytes of tensors are there, {end:,} are "
            "needed; copy them again"
        )


def _span(entry: Any) -> tuple[int, int] | None:
    """(first byte, last byte + 1) of a tensor; None if its entry in the header is damaged."""
    if not isinstance(entry, dict):
        return None
    itemsize = ITEM_BYTES.get(str(entry.get("dtype")))
    shape, place = _counts(entry.get("shape")), _counts(entry.get("data_offsets"))
    if itemsize is None or shape is None or place is None or len(place) != 2:
        return None
    first, end = place
    return (first, end) if end - first == itemsize * math.prod(shape) else None


def _counts(value: Any) -> list[int] | None:
    """The value if it is a list of at most MOST_AXES non-negative integers; otherwise None."""
    if not isinstance(value, list) or len(value) > MOST_AXES:
        return None
    return value if all(type(n) is int and n >= 0 for n in value) else None


def _info(record: dict[str, Any], fingerprint: str, path: Path | None) -> NetworkInfo:
    if record.get("format") != FORMAT or record.get("version") != VERSION:
        raise DataFault(
            f"format {record.get('format')!r:.60} version {record.get('version')!r:.20}; "
            f"needed is {FORMAT!r} version {VERSION}"
        )
    kind = record.get("kind")
    if kind not in NETWORKS:
        raise DataFault(f"kind is {kind!r:.60}; the kinds are {', '.join(NETWORKS)}")
    channels = _whole(record, "channels", MAX_CHANNELS)
    side = cell_px = None
    if kind == COLLAGE:
        side, cell_px = _whole(record, "side", 16), _whole(record, "cell_px", MAX_SIDE_PX)
        px = Grid(side, cell_px).px
        shape: tuple[int, ...] = (px, px, channels)
    else:
        height, width = _whole(record, "height", MAX_SIDE_PX), _whole(record, "width", MAX_SIDE_PX)
        shape = (height, width, channels)
    _check_normalisation(record, channels)
    return NetworkInfo(
        kind=kind,
        architecture=read_architecture(record.get("architecture", {})).to_dict(),
        shape=shape,
        side=side,
        cell_px=cell_px,
        class_names=_class_names(record),
        fingerprint=fingerprint,
        path=path,
        metadata=record,
        head=HeadSpec.from_dict(record.get("head")),
        accept=AcceptSpec.from_dict(record["accept"]) if record.get("accept") else None,
    )


def _class_names(record: dict[str, Any]) -> tuple[str, ...]:
    names = record.get("class_names")
    if not isinstance(names, list) or not 1 <= len(names) <= MAX_CLASSES:
        raise DataFault("class_names is not a list of names")
    if not all(isinstance(name, str) for name in names):
        raise DataFault("class_names holds something else than names")
    return tuple(names)


def _check_normalisation(record: dict[str, Any], channels: int) -> None:
    values = record.get("normalisation")
    for key in ("mean", "std"):
        numbers = values.get(key) if isinstance(values, dict) else None
        if not isinstance(numbers, list) or len(numbers) != channels:
            raise DataFault(f"normalisation needs a {key} for each of {channels} channels")
        if not all(_is_finite(number) and (key == "mean" or number > 0) for number in numbers):
            raise DataFault(f"normalisation {key} is {numbers!r:.80}; it needs finite numbers")
    temperature: Any = record.get("temperature")
    if not _is_finite(temperature) or temperature <= 0:
        raise DataFault(f"temperature is {temperature!r:.60}; it needs a number above 0")


def _is_finite(value: object) -> bool:
    return type(value) in (int, float) and bool(abs(value) < 1e30)  # type: ignore[arg-type]


def _whole(record: dict[str, Any], key: str, largest: int) -> int:
    value = record.get(key)
    if type(value) is not int or not 1 <= value <= largest:
        raise DataFault(f"{key} is {value!r:.60}; it needs a whole number from 1 to {largest}")
    return value


def _stored(name: str, array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(array, dtype=np.float16 if array.ndim > 1 else np.float32)
    if not np.isfinite(stored).all():
        raise DataFault(f"tensor {name!r} is not finite: training diverged; try a lower --lr")
    return stored


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits. Raises OSError."""
    with path.open("rb") as file:
        return sha256_of_stream(file)
