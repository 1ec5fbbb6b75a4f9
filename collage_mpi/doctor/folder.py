"""Examines the output folder: permissions, free space, speed, kind of file system. It uses a
temporary folder in it, which is always removed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from collage_mpi.results.file_names import MANIFEST, MARKER


def free_bytes(path: Path) -> int | None:
    """Free space for this user on the file system of `path`; None if `path` does not exist."""
    try:
        space = os.statvfs(path)
    except OSError:
        return None
    return space.f_bavail * space.f_frsize


@contextmanager
def scratch_in(out: Path | None) -> Iterator[tuple[dict[str, Any], Path | None]]:
    """Facts of the output folder, and a temporary folder in it for further tests."""
    path = (out or Path()).absolute()
    tested = path
    while not tested.exists() and tested != tested.parent:
        tested = tested.parent
    facts: dict[str, Any] = {"path": str(out or path), "tested": str(tested)}
    facts |= {"named": out is not None, "free_bytes": free_bytes(tested)}
    facts |= {"kind": file_system(tested), "holds": _holds(path)}
    try:
        scratch = Path(tempfile.mkdtemp(prefix=".collage-mpi-doctor-", dir=tested))
    except OSError as error:
        yield facts | {"error": f"{error.strerror} ({tested})"}, None
        return
    try:
        try:
            facts["sync_ms"] = _write_a_part(scratch)
        except OSError as error:
            yield facts | {"error": f"{error.strerror} ({tested})"}, None
        else:
            yield facts, scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_a_part(scratch: Path) -> float:
    """Write, sync and rename 64 KiB as results do: milliseconds. Raises OSError."""
    began_s = time.monotonic()
    with (scratch / "part.tmp").open("wb") as file:
        file.write(bytes(1 << 16))
        file.flush()
        os.fsync(file.fileno())
    (scratch / "part.tmp").rename(scratch / "part")
    return (time.monotonic() - began_s) * 1e3


def _holds(out: Path) -> str | None:
    if (out / MARKER).exists():
        return "complete"
    return "run" if (out / MANIFEST).exists() else None


def file_system(path: Path, mounts: Path = Path("/proc/mounts")) -> str | None:
    """The kind of file system of a path, e.g. `nfs4`; None if unknown."""
    try:
        lines = [line.split() for line in mounts.read_text(errors="replace").split("\n")]
    except OSError:
        return None
    resolved = str(path.resolve()) + "/"
    found = [
        (len(words[1]), words[2])
        for words in lines
        if len(words) > 2 and resolved.startswith(words[1].rstrip("/") + "/")
    ]
    return max(found)[1] if found else None
