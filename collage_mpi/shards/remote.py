"""Opens files by path or URL. This is the only module that uses fsspec."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PosixPath
from typing import Any, BinaryIO

from collage_mpi.errors import CollageError, EnvironmentFault
from collage_mpi.plugins import optional
from collage_mpi.system.printable import one_line

Stamp = tuple[int, int, int]  # size in bytes, time of the last change in ns, inode
PROTOCOLS = "https? s3 gs gcs az abfss? adl r2 oci hf hdfs webhdfs s?ftp memory"
URL = re.compile(rf"({'|'.join(PROTOCOLS.split())}):/+(?=[^/])")
PAUSES_S = (0.5, 2.0, 8.0)  # before each retry of a failed request
HOW = "copy it to a file system, or mount it. A URL may name a .tar, .parquet or .zarr, or a list"


def url_of(path: Path | str) -> str | None:
    """The URL that a path stands for; None for a path in the file system."""
    found = URL.match(str(path))
    return f"{found[1]}://{str(path)[found.end() :]}" if found else None


class UrlPath(PosixPath):
    """A path that stands for a URL. `pathlib` collapses the two slashes; `str` restores them."""

    def __str__(self) -> str:
        return url_of(super().__str__()) or super().__str__()


def path_of(text: Path | str) -> Path:
    """The path for a text. If the text is a URL, `str` of the path is the URL."""
    return UrlPath(text) if url_of(text) else Path(text)


def opened(path: Path | str, *, in_order: bool = False) -> BinaryIO:
    """Open a file to read.

    Args:
        in_order: the file will be read only from its first byte to its last.

    Raises:
        OSError: the file cannot be opened.
        EnvironmentFault: the URL cannot be opened, or its server does not serve ranges of bytes.
    """
    url = url_of(path)
    if url is None:
        return open(path, "rb")
    stream: BinaryIO = _asked(url, lambda system, place: system.open(place, "rb"))
    try:
        stream.seek(0 if in_order else 1)
        stream.seek(0)
    except ValueError as error:  # the server can only send the whole file
        stream.close()
        raise EnvironmentFault(
            f"{url}: its server does not serve ranges of bytes: copy it to a file"
        ) from error
    return stream


def read_range(url: str, start: int, nbytes: int) -> bytes:
    """Read a range of bytes of a URL by one request. Raises EnvironmentFault."""
    data: bytes = _asked(
        url, lambda system, place: system.cat_file(place, start=start, end=start + nbytes)
    )
    if len(data) > nbytes:
        raise EnvironmentFault(
            f"{url}: {len(data):,} bytes came, but {nbytes:,} were requested: its server does not "
            "serve ranges of bytes, or the file has changed. Copy it to a file"
        )
    return data


def stat_of(path: Path | str) -> Stamp:
    """A stamp that changes when a file is written to or replaced. For a URL it depends on what the
    server reports.

    Raises:
        OSError: the file does not exist or cannot be read.
        EnvironmentFault: the server of a URL does not answer, or has no such file.
    """
    url = url_of(path)
    if url is None:
        found = os.stat(path)
        return (found.st_size, found.st_mtime_ns, found.st_ino)
    if url.endswith(".zarr"):
        return (0, 0, 0)  # a folder, about which some servers report nothing
    about = _asked(url, lambda system, place: system.info(place))
    said = [str(about[key]) for key in ("ETag", "etag", "mtime", "created") if about.get(key)]
    digest = hashlib.sha256(" ".join(said[:1]).encode()).digest()
    return (int(about.get("size") or 0), int.from_bytes(digest[:6], "big"), 0)


def is_there(path: Path | str) -> bool:
    """Whether a file exists. Raises EnvironmentFault if the server of a URL does not answer."""
    url = url_of(path)
    if url is None:
        return os.path.isfile(path)
    return bool(_asked(url, lambda system, place: system.exists(place)))


def absolute(path: Path) -> Path:
    """The absolute path; a URL stays unchanged."""
    return path if url_of(path) else path.absolute()


def _asked(url: str, ask: Callable[[Any, str], Any]) -> Any:
    """Calls `ask(file system, path)` for a URL, and retries after a failure.

    Raises:
        EnvironmentFault: every try failed, or there is no such file.
    """
    fsspec = optional("fsspec", "remote", url)
    for pause_s in PAUSES_S:
        try:
            return ask(*fsspec.core.url_to_fs(url))
        except (FileNotFoundError, PermissionError, ImportError, ValueError):
            break  # it would fail again
        except Exception:  # each library for a protocol has exceptions of its own
            time.sleep(pause_s)
    with network_faults(url):
        return ask(*fsspec.core.url_to_fs(url))


@contextmanager
def network_faults(path: Path | str) -> Iterator[None]:
    """Raises any error as EnvironmentFault if `path` is a URL. For other paths errors pass
    through."""
    try:
        yield
    except CollageError:
        raise
    except Exception as error:
        url = url_of(path)
        if url is None:
            raise
        why = f"{type(error).__name__}: {one_line(error, 200)}"
        if isinstance(error, FileNotFoundError):
            why = "its server has no such file, or none now"
        raise EnvironmentFault(f"{url}: cannot be read: {why}") from error
