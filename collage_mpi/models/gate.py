"""Decides whether a network of another library or of the user may be loaded, before a library is
imported. Formats that hold data load as they are. Files that are programs need the user's word,
because whoever made the file decides what they do.
"""

from __future__ import annotations

import hashlib
import re
import sys
import zipfile
from functools import lru_cache
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.models.named import (
    ANY,
    ENDINGS,
    FUNCTION,
    NORMS,
    OPTIONS,
    PACKAGES,
    Named,
    check_trust,
)
from collage_mpi.models.onnx_files import tensor_files
from collage_mpi.plugins import pip_line
from collage_mpi.system.files import reading, require_regular, sha256_of_file
from collage_mpi.system.printable import did_you_mean, some_of

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
        if key not in known or not value or (key == "norm" and value not in NORMS):
            raise UsageError(
                f"{named.spec}: {key}={value} is unknown; it may have "
                + " and ".join(f"{k}={'|'.join(NORMS) if k == 'norm' else 'FILE'}" for k in known)
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
