"""The manifest: what a run was asked to do, by whom, and how far its sessions came.

Owns: manifest.json (read, check, write), the COMPLETE marker, which settings a resumed
session must share with the first.
Does not know: rows, threads, statistics.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.config import NOT_OF_ROWS
from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.printable import shown
from collage_mpi.results.atomic import write_atomic

FORMAT = "collage-mpi run"
VERSION = 1
MANIFEST = "manifest.json"
MARKER = "COMPLETE"
COMPLETE = ("complete", "complete_with_errors")
STATUSES = (*COMPLETE, "incomplete")

_LARGEST_BYTES = 64 << 20  # a world of 10,000 ranks is about 3 MB

# What decides the rows: a session that changes one of these is another run.
SAME_KEYS: tuple[str, ...] = (
    "shards",
    "rows",
    "order",
    "limit",
    "input_digest",
    "class_names",
    "scheme",
    "accept",
)
SAME_KEYS += ("mode", "side", "straggler", "warmup_groups")
# Of these, what a shard adds that could not be read in an earlier session and now can.
GROWING_KEYS = frozenset({"shards", "rows", "input_digest"})
MOST_SHARD_LINES = 5
# Settings that say where or how loud, not what: free to differ between sessions. Shards
# are compared by content, so they may have moved.
FREE_SETTINGS = frozenset({"resume", "shards", "device", *NOT_OF_ROWS})

Json = dict[str, Any]


def is_int(value: object) -> bool:
    """True for an integer that is not a bool and fits in 63 bits."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1 << 63


def _is_count(value: object) -> bool:
    return is_int(value) and value >= 0  # type: ignore[operator]


def _is_session(value: object) -> bool:
    return is_int(value) and 1 <= value < 65_535  # type: ignore[operator]  # a u2 column


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _is_dict(value: object) -> bool:
    return isinstance(value, dict)


def _optional(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: value is None or check(value)


def _list_of(check: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: isinstance(value, list) and all(check(item) for item in value)


def _fields(**checks: Callable[[object], bool]) -> Callable[[object], bool]:
    return lambda value: (
        isinstance(value, dict) and all(check(value.get(key)) for key, check in checks.items())
    )


def _is_rank(value: object) -> bool:
    kinds = _optional(_list_of(_is_text))
    return _fields(rank=_is_count, kinds=kinds)(value)


def _is_interval(value: object) -> bool:
    numbers = value if isinstance(value, list) else []
    return len(numbers) == 2 and all(isinstance(n, int | float) for n in numbers)


_SHARD = _fields(path=_optional(_is_text), fingerprint=_is_text, count=_is_count)
_BAD_SHARD = _fields(path=_is_text, reason=_is_text)
_SESSION = _fields(
    session=_is_count,
    status=_is_text,
    rows=_optional(_fields(images=_is_count, groups=_is_count, tasks=_is_count)),
    final=_optional(_fields(world=_optional(_list_of(_is_rank)))),
)

_REQUIRED: dict[str, tuple[Callable[[object], bool], str]] = {
    "run_id": (_is_text, "a string"),
    "session": (_is_session, "a number of the session, from 1"),
    "shards": (_list_of(_SHARD), "a list of {path, fingerprint, count}"),
    "rows": (_is_count, "the number of images expected"),
}
_OPTIONAL: dict[str, tuple[Callable[[object], bool], str]] = {
    "settings": (_is_dict, "an object"),
    "order": (_is_text, "file or shuffle:SEED"),
    "limit": (_is_count, "a number of images"),
    "input_digest": (_is_text, "a SHA-256"),
    "class_names": (_list_of(_is_text), "a list of names"),
    "scheme": (_is_text, "a string"),
    "accept": (_is_text, "a string"),
    "mode": (_is_text, "a string"),
    "side": (_is_count, "an integer"),
    "straggler": (_is_text, "one line of text"),
    "world": (_list_of(_is_rank), "a list of {rank, host, kinds, ...}"),
    "started": (_is_text, "a time"),
    "warmup_groups": (_is_count, "a number of groups"),
    "status": (_is_text, "a status"),
    "sessions": (_list_of(_SESSION), "a list of sessions"),
    "bad_shards": (_list_of(_BAD_SHARD), "a list of {path, reason}"),
    "cost_ratio_interval": (_is_interval, "two numbers"),
    "poll": (_is_dict, "an object"),
    "validity": (_is_dict, "an object"),
    "lost": (_list_of(_is_dict), "a list of lost ranks"),
}


def check_manifest(manifest: object, where: str) -> Json:
    """Prove that the keys this package reads have the types it reads them with.

    Raises:
        DataFault: names the first key that is missing or of a wrong type.
    """
    if not isinstance(manifest, dict):
        raise DataFault(f"{where}: not a JSON object, so not the manifest of a run.")
    if manifest.get("format") != FORMAT:
        raise DataFault(
            f"{where}: format {shown(manifest.get('format'))} found, {FORMAT!r} needed."
        )
    if manifest.get("version") != VERSION:
        raise DataFault(
            f"{where}: version {shown(manifest.get('version'))} found, this collage-mpi reads "
            f"{VERSION}."
        )
    for key, (check, wanted) in _REQUIRED.items():
        if not check(manifest.get(key)):
            raise DataFault(f"{where}: {key!r} must be {wanted}; found {shown(manifest.get(key))}.")
    for key, (check, wanted) in _OPTIONAL.items():
        value = manifest.get(key)
        if value is not None and not check(value):
            raise DataFault(f"{where}: {key!r} must be {wanted}; found {shown(value)}.")
    return manifest


def read_manifest(out: Path) -> Json:
    """Read and check the manifest of the run in `out`.

    Raises:
        EnvironmentFault: there is no run in `out`, or it cannot be read.
        DataFault: the manifest is damaged.
    """
    path = out / MANIFEST
    try:
        size_bytes = path.stat().st_size
        if size_bytes > _LARGEST_BYTES:
            raise DataFault(f"{path}: {size_bytes} bytes, far too large for a manifest.")
        text = path.read_bytes().decode("utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise EnvironmentFault(
            f"{out}: no run here ({MANIFEST} not found). Name a directory that "
            "`collage-mpi run --out DIR` made."
        ) from error
    except OSError as error:
        raise EnvironmentFault(f"{path}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataFault(f"{path}: damaged, not UTF-8 text. Restore it from a copy.") from error
    try:
        found = json.loads(text)
        json.dumps(found, ensure_ascii=False).encode()  # no half characters to print later
    except (ValueError, RecursionError) as error:
        raise DataFault(f"{path}: damaged, not JSON ({error}). Restore it from a copy.") from error
    return check_manifest(found, str(path))


def write_manifest(out: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest atomically.

    Raises:
        OSError: as the system says; the former manifest is then untouched.
    """
    text = json.dumps(manifest, indent=1, default=plain)
    write_atomic(out / MANIFEST, (text.encode(), b"\n"))


def plain(value: object) -> object:
    """What JSON cannot say by itself: numpy scalars and arrays, paths."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__} cannot be written to JSON: {value!r}")


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What a resumed session would change, one line each; [] when it may go on.

    Both come from JSON, so tuples and lists compare equal.
    """
    lines = []
    grown = _mended(before, now)
    for key in SAME_KEYS:
        if grown and key in GROWING_KEYS:
            continue
        if key == "shards":
            lines += _other_shards(before["shards"], now["shards"])
            continue
        old, new = (manifest.get(key) for manifest in (before, now))
        if old != new:
            lines.append(f"{key}: {shown(old)} before, {shown(new)} now")
    old_settings, new_settings = (manifest.get("settings") or {} for manifest in (before, now))
    for key in sorted({*old_settings, *new_settings} - FREE_SETTINGS):
        old, new = old_settings.get(key), new_settings.get(key)
        if old != new:
            lines.append(f"settings.{key}: {shown(old)} before, {shown(new)} now")
    return lines


def _mended(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether the input is the former one and, behind it, shards that could not be read then."""
    more = len(now["shards"]) - len(before["shards"])
    known = now["shards"][: len(before["shards"])]
    return (
        0 < more <= len(before.get("bad_shards") or [])
        and now.get("limit") is None
        and not _other_shards(before["shards"], known)
    )


def _other_shards(before: list[Json], now: list[Json]) -> list[str]:
    """Lines for the shards that differ. One may move: its content is its identity."""
    lines = []
    if len(before) != len(now):
        lines.append(f"shards: {len(before)} before, {len(now)} now")
    for old, new in zip(before, now, strict=False):
        if (old["fingerprint"], old["count"]) != (new["fingerprint"], new["count"]):
            lines.append(
                f"shard {old['path']}: SHA-256 {old['fingerprint'][:12]}... before, "
                f"{new['path']}: {new['fingerprint'][:12]}... now"
            )
    more = len(lines) - MOST_SHARD_LINES
    return lines if more <= 0 else [*lines[:MOST_SHARD_LINES], f"... and {more} more shards"]
