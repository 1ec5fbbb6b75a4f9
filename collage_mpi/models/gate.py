"""Decides whether a network of another library or of the user may be loaded, before a library is
imported. Formats that hold data load as they are. Files that are programs need the user's word,
because whoever made the file decides what they do. `tensor_files` finds the files beside an ONNX
graph that hold its tensors, without an ONNX library.
"""

from __future__ import annotations

import hashlib
import mmap
import re
import sys
import zipfile
from collections.abc import Iterator
from functools import lru_cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.models.named import (
    ANY,
    CHOICES,
    ENDINGS,
    FUNCTION,
    OPTIONS,
    PACKAGES,
    Named,
    check_trust,
)
from collage_mpi.plugins import pip_line
from collage_mpi.system.files import reading, require_regular, sha256_of_file
from collage_mpi.system.printable import did_you_mean, some_of

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


PROGRAMS = {
    "exported": "torch.export.load evaluates Python expressions that are in the file",
    "scripted": "TorchScript can write files of yours",
}
GENERATORS = ("globals", "setattr", "exec", "__getattr__")  # words of code that makes further names
MOST_LISTED = 10


def admit(named: Named, trusted: str = "") -> None:
    """Check a network as far as no library is needed for it.

    Args:
        trusted: the setting trust_network.

    Raises:
        UsageError: an option, a name or a function is unknown, or the file is a program and the
            user has not said that it is trusted.
        EnvironmentFault: the library is not installed, or a file cannot be read.
        DataFault: a file is damaged, or a graph names files outside of its own folder.
    """
    known = OPTIONS.get(named.library, ("norm",))
    for key, value in named.options:
        if key not in known or not value or value not in CHOICES.get(key, (value,)):
            may = (f"{k}={'|'.join(CHOICES.get(k, ('...',)))}" for k in known)
            raise UsageError(
                f"{named.spec}: {key}={value} is unknown; it may have {' and '.join(may)}"
            )
    keys = [key for key, _ in named.options]
    if twice := next((key for key in keys if keys.count(key) > 1), None):
        raise UsageError(f"{named.spec}: {twice} is given twice; give it once")
    if {"embed", "labels"} <= {*keys}:
        raise UsageError(
            f"{named.spec}: embed= gives the embedding, and labels= compares it with words; leave "
            "out one of them"
        )
    package = PACKAGES.get(named.library)
    if package is not None and find_spec(package) is None:
        raise EnvironmentFault(f"{named.spec} needs {package}: {pip_line(named.library)}")
    if named.library == FUNCTION:
        _check_function(named.spec)
    if named.library == "timm":
        _check_timm(named)
    is_a_file = named.library in ENDINGS.values()
    for file in map(Path, filter(None, (named.name * is_a_file, named.option("weights")))):
        with reading(f"network {file}"):
            require_regular(file)
            file.open("rb").close()
    if named.library == "onnx":
        tensor_files(Path(named.name))
    if named.library == "scripted":
        _check_scripted(Path(named.name))
    if named.library in PROGRAMS:
        digest = sha256_of_network(Path(named.name))
        require_trust(named.spec, digest, trusted, PROGRAMS[named.library])


def require_trust(spec: str, digest: str | None, trusted: str, why: str) -> None:
    """Raise UsageError unless the user trusts this program.

    Args:
        digest: SHA-256 of the program; None if it has parts that no digest covers.
        trusted: the setting trust_network.
        why: what the program can do.
    """
    check_trust(trusted)
    given = trusted.split(",")
    if ANY in given or (digest in given and digest):
        return
    say = f"--trust-network {ANY}, because parts of it come from other places"
    if digest:
        say = f"--trust-network {digest} (its SHA-256), or --trust-network {ANY} for every network"
    raise UsageError(
        f"{spec} is a program, and its maker decides what it does on your account: {why}. "
        + ("--trust-network names another one. " if trusted else "")
        + f"Nothing of it has run. If you trust its maker, say {say}. ONNX files and safetensors "
        "hold only data and need no such word"
    )


def sha256_of_network(path: Path) -> str:
    """SHA-256 of a network's file, 64 hex digits; of an ONNX graph together with the files that
    hold its tensors. Raises OSError, and as `tensor_files`."""
    is_graph = ENDINGS.get(path.suffix.lower()) == "onnx"
    beside = tensor_files(path) if is_graph else []
    digests = [_digest(file) for file in (path, *beside)]  # the graph's bytes have the names
    return hashlib.sha256("".join(digests).encode()).hexdigest() if beside else digests[0]


def _digest(path: Path) -> str:
    stat = path.stat()
    return _digest_of(path.absolute(), (stat.st_size, stat.st_mtime_ns, stat.st_ino))


@lru_cache(maxsize=256)
def _digest_of(path: Path, stamp: tuple[int, int, int]) -> str:
    """SHA-256 of a file; it is read again only if its stamp has changed."""
    return sha256_of_file(path)


def _check_scripted(path: Path) -> None:
    """Raise DataFault if the file is no TorchScript, but what torch.save pickled."""
    try:
        with zipfile.ZipFile(path) as file:
            names = file.namelist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        names = []
    if any(name.endswith("/constants.pkl") for name in names):
        return
    pickled = any(name.endswith("/data.pkl") for name in names)
    raise DataFault(
        f"{path} is no TorchScript: "
        + ("torch.save pickled it" if pickled else "it is no archive of torch, or damaged")
        + ". It is not loaded. If it holds the tensors of a state dict, name the network that they "
        f"belong to: timm:NAME,weights={path}. If it holds a whole network, loading it would run "
        "code of its maker: save the network with torch.onnx.export where it was made"
    )


def _check_timm(named: Named) -> None:
    """Raise UsageError if timm has no network of this name. timm is not imported, which takes
    seconds: a name that stands nowhere in its source is unknown."""
    name = named.name.partition(".")[0]
    places = getattr(find_spec("timm"), "submodule_search_locations", None)
    if ":" in named.name or not places:
        return
    source = Path(places[0]) / "models"
    texts = [file.read_text("utf-8", "replace") for file in sorted(source.glob("*.py"))]
    if not texts or any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) for text in texts):
        return
    known = re.findall(r"(?m)^@register_model\s*\ndef (\w+)", "\n".join(texts))
    raise UsageError(
        f"{named.spec}: timm has no network {name!r}{did_you_mean(name, known)} "
        "timm.list_pretrained() lists the names"
    )


def _check_function(spec: str) -> None:
    """Raise unless the user's module is there and names the function. It is not imported, because
    that would run its code: a name that stands nowhere in its source is unknown."""
    place, _, name = spec.rpartition(":")
    if place.endswith(".py"):
        with reading(f"network {spec}"):
            require_regular(place)
        file = Path(place)
    else:
        found = PathFinder.find_spec(place.partition(".")[0], ["", *sys.path])
        if found is None and place not in sys.modules:
            raise UsageError(
                f"{spec}: there is no module {place}. Name a module that Python finds (PYTHONPATH, "
                "or the current folder), or a .py file"
            )
        file = Path((found and found.origin) or "")
        if "." in place or file.suffix != ".py":
            return
    text = file.read_text("utf-8", "replace")
    if not re.search(rf"\b(?:{name}|{'|'.join(GENERATORS)})\b|import \*", text):
        theirs = re.findall(r"(?m)^(?:def|class) ([A-Za-z]\w*)", text)
        raise UsageError(
            f"{place} has no function {name!r}; it has {some_of(theirs, MOST_LISTED) or 'none'}"
        )
