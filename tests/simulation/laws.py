"""What must be true of a run, whatever went wrong: read from the disk, not from the package."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from tests.simulation.inputs import answer

TRAILER = struct.Struct("<8sQI")
COMPLETE = ("complete", "complete_with_errors")
DECODED = (4, 9)  # sources: made from other answers, which the null network's are not made for


def rows_of(out: Path) -> np.ndarray | None:
    """The image rows that count, (n,) with the columns shard, row, session, ...; None: no run."""
    try:
        manifest = json.loads((out / "manifest.json").read_bytes())
    except FileNotFoundError:
        return None
    first, accepted = manifest["session"], manifest["accepted"]
    last = range(first, first + (manifest.get("teams") or 1))
    found = []
    for path in sorted((out / "parts").glob("images-*.npy")):
        _, session, number = path.stem.split("-")
        ranges = accepted.get(str(int(session)), {}).get("images", ())
        if int(session) in last or any(a <= int(number) <= b for a, b in ranges):
            raw = path.read_bytes()
            _, length, crc = TRAILER.unpack(raw[-TRAILER.size :])
            if length != len(raw) - TRAILER.size or zlib.crc32(raw[: -TRAILER.size]) != crc:
                continue  # damaged on purpose
            found.append(np.lib.format.read_array(_Bytes(raw), allow_pickle=False))
    return np.concatenate(found) if found else np.zeros(0, [("shard", "u4"), ("row", "u8")])


class _Bytes:
    """What numpy reads an array from, without what stands behind it."""

    def __init__(self, raw: bytes) -> None:
        self._raw, self._at = raw, 0

    def read(self, count: int = -1) -> bytes:
        end = len(self._raw) if count < 0 else self._at + count
        found = self._raw[self._at : end]
        self._at = end
        return found


def broken(
    out: Path, expected: int | None, places: list[tuple[int, int]], retried: bool
) -> list[str]:
    """Which laws the rows on the disk break.

    Args:
        expected: images of the run; None where a marker may be wrong.
        places: shard number of the job -> (number of the file, rows).
        retried: whether error rows may stand beside the rows of a later session.
    """
    rows = rows_of(out)
    marker = out / "COMPLETE"
    if rows is None:
        return ["a marker, and no manifest"] if marker.exists() else []
    faults = []
    keys = list(zip(rows["shard"].tolist(), rows["row"].tolist(), strict=True))
    if len(set(keys)) < len(keys) and not retried:
        double = next(key for key in keys if keys.count(key) > 1)
        faults.append(f"{len(keys) - len(set(keys))} doubled rows, of image {double} for one")
    for row in rows:
        file, count = places[int(row["shard"])]
        if int(row["row"]) >= count:
            faults.append(f"a row of no image: {row}")
        elif (
            row["answered"]
            and row["source"] not in DECODED
            and int(row["predicted"]) != answer(file, int(row["row"]))
        ):
            faults.append(f"another answer than the image's: {row}")
            break
    if marker.exists() and expected is not None and len(set(keys)) != expected:
        faults.append(f"a marker, and {len(set(keys))} of {expected} rows")
    return faults


def manifest_of(out: Path) -> dict[str, Any] | None:
    """The run's manifest, or None."""
    try:
        found: dict[str, Any] = json.loads((out / "manifest.json").read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return found
