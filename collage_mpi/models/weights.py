"""Reads and writes weights files: safetensors with a JSON record in the header. Tensors are numpy
arrays; neither torch nor pickle is used.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta, Struct
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, UsageError
from collage_mpi.kinds import COLLAGE, NETWORKS, SINGLE
from collage_mpi.models.architecture import AcceptSpec, HeadSpec, read_architecture, read_spec
from collage_mpi.models.info import NetworkInfo
from collage_mpi.models.named import advice_for
from collage_mpi.system.files import require_regular, save_file, sha256_of_file
from collage_mpi.system.records import read_record

FORMAT = "collage-mpi weights"
VERSION = 1
METADATA_KEY = "collage_mpi"
MAX_SIDE_PX, MAX_CHANNELS, MAX_CLASSES = 1 << 14, 64, 1 << 20

_Px = Annotated[int, Meta(ge=1, le=MAX_SIDE_PX)]
_Finite = Annotated[float, Meta(gt=-1e30, lt=1e30)]
_Positive = Annotated[float, Meta(gt=0, lt=1e30)]

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
        with safe_open(path, "numpy") as file:  # checks that the tensors fill the file exactly
            text = (file.metadata() or {}).get(METADATA_KEY)
        fingerprint = sha256_of_file(path)
    except OSError as error:
        gone = isinstance(error, FileNotFoundError)
        reason = "it is not there" if gone else error.strerror or error
        remedy = _REMEDY if path.suffix == ".safetensors" else advice_for(str(spec))
        raise EnvironmentFault(f"network {spec}: cannot be read: {reason}; {remedy}") from error
    except SafetensorError as error:
        raise DataFault(
            f"weights {path} are not a safetensors file, or damaged ({error}): copy them again if "
            f"they are one; {advice_for(str(path))}"
        ) from error
    info = parse_metadata(str(path), text, fingerprint, path)
    if kind is not None and info.kind != kind:
        raise UsageError(
            f"weights {path} hold a {info.kind} network; a {kind} network is needed here: "
            f"are --{kind} and --{info.kind} the wrong way round? In --first a collage network is "
            "written collage:FILE"
        )
    return info


def parse_metadata(
    name: str, text: str | None, fingerprint: str, path: Path | None = None
) -> NetworkInfo:
    """The facts in the record of a file's header.

    Args:
        name: names the file in messages.
        text: the record; None if the header has none.

    Raises:
        DataFault: the record is missing or invalid.
    """
    if text is None:
        raise DataFault(
            f"weights {name} are safetensors of another program (no {METADATA_KEY!r} record in "
            f"the header). Name the network that they belong to: timm:NAME,weights={name}"
        )
    try:
        # A training without validation images has written NaN as its accuracy.
        return _info(read_record(dict[str, Any], json.loads(text)), fingerprint, path)
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
    return save_weights(out, read_tensors(info), {**record, "accept": asdict(accept)})


def read_tensors(info: NetworkInfo) -> dict[str, np.ndarray]:
    """Read the tensors of a weights file as float32.

    Raises:
        DataFault: the file has changed or is damaged, or a tensor is not finite.
        EnvironmentFault: the file cannot be read.
    """
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


class _Normalisation(Struct):
    mean: list[_Finite]
    std: list[_Positive]


class _Record(Struct, tag_field="kind", kw_only=True):
    """What every weights file says of its network."""

    channels: Annotated[int, Meta(ge=1, le=MAX_CHANNELS)]
    class_names: Annotated[tuple[str, ...], Meta(min_length=1, max_length=MAX_CLASSES)]
    normalisation: _Normalisation
    temperature: _Positive
    architecture: Any
    head: Any = None
    accept: Any = None


class _Single(_Record, tag=SINGLE, kw_only=True):
    height: _Px
    width: _Px


class _Collage(_Record, tag=COLLAGE, kw_only=True):
    side: _Px
    cell_px: _Px


def _info(record: dict[str, Any], fingerprint: str, path: Path | None) -> NetworkInfo:
    if record.get("format") != FORMAT or record.get("version") != VERSION:
        raise DataFault(
            f"format {record.get('format')!r:.60} version {record.get('version')!r:.20}; "
            f"needed is {FORMAT!r} version {VERSION}"
        )
    kind = record.get("kind")
    if kind not in NETWORKS:
        raise DataFault(f"kind is {kind!r:.60}; the kinds are {', '.join(NETWORKS)}")
    own: type[_Single | _Collage] = _Single if kind == SINGLE else _Collage
    said = read_record(own, record)
    for name in ("mean", "std"):
        if len(getattr(said.normalisation, name)) != said.channels:
            raise DataFault(f"normalisation needs a {name} for each of {said.channels} channels")
    side = cell_px = None
    if isinstance(said, _Collage):
        side, cell_px = said.side, said.cell_px
        px = Grid(side, cell_px).px
        shape = (px, px, said.channels)
    else:
        shape = (said.height, said.width, said.channels)
    return NetworkInfo(
        kind=kind,
        architecture=asdict(read_architecture(said.architecture)),
        shape=shape,
        side=side,
        cell_px=cell_px,
        class_names=said.class_names,
        fingerprint=fingerprint,
        path=path,
        metadata=record,
        head=HeadSpec() if said.head is None else read_spec(HeadSpec, "head", said.head),
        accept=_accept(said.accept),
    )


def _accept(said: Any) -> AcceptSpec | None:
    """The threshold of a record; None for one that was chosen by accuracy, see
    `NetworkInfo.outdated`."""
    by_accuracy = isinstance(said, dict) and "chosen_points" in said
    return read_spec(AcceptSpec, "accept", said) if said and not by_accuracy else None


def _stored(name: str, array: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(array, dtype=np.float16 if array.ndim > 1 else np.float32)
    if not np.isfinite(stored).all():
        raise DataFault(f"tensor {name!r} is not finite: training diverged; try a lower --lr")
    return stored
