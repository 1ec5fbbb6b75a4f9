"""Reads a finished run of manifest version 1, as revision 9f5ae534 wrote it, as a run of now."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from collage_mpi.results.manifest import VERSION, Json, is_finished, older_fault
from collage_mpi.rows import TableLayout

# Table -> its columns in version 1. The columns of now that are missing here read as 0.
_COLUMNS = {
    "images": "shard:u4 row:u8 group:i8 cell:i2 source:u1 answered:? predicted:i4 score:f4 "
    "has_label:? label:i4 rank:i4 attempt:u1 t0_ns:i8 latency_ns:i8 read_ns:i8 encode_ns:i8 "
    "decode_ns:i8 compute_ns:i8 held_ns:i8 session:u2 warmup:? audited:u1 other:i4 other_score:f4 "
    "reason:S96",
    "tasks": "task:i8 rank:i4 kind:u1 group:i8 attempt:u1 items:u2 resolved:u2 sent_ns:i8 "
    "done_ns:i8 compute_ns:i8 held_ns:i8 drawn_ns:i8 outcome:u1 session:u2 warmup:? reason:S96",
}
_LAYOUTS = {
    table: np.dtype([tuple(column.split(":")) for column in columns.split()])
    for table, columns in _COLUMNS.items()
}


def now_manifest(out: Path, found: Json) -> Json:
    """The manifest of the run in `out` as one of now, unchecked.

    Raises:
        EnvironmentFault: an earlier version began the run and did not finish it.
    """
    if not is_finished(out, found):
        raise older_fault(out, found)
    sessions = found.get("sessions")
    found = {**found, "version": VERSION}
    if isinstance(sessions, list):
        found["sessions"] = list(map(_session, sessions))
    return found


def _session(entry: object) -> object:
    """The entry of a session. Its length was recorded with its energy."""
    final = entry.get("final") if isinstance(entry, dict) else None
    energy = final.get("energy") if isinstance(final, dict) else None
    if not isinstance(entry, dict) or not isinstance(final, dict) or not isinstance(energy, dict):
        return entry
    return {**entry, "final": {**final, "seconds": energy.get("seconds")}}


def now_rows(rows: np.ndarray, table: TableLayout) -> np.ndarray:
    """The rows of a part, (n,), with the columns of now if they are of version 1.

    Its injected delays, held_ns, followed the computation, and are a part of it now.
    """
    if rows.dtype != _LAYOUTS.get(table.name):
        return rows
    now = np.zeros(len(rows), table.dtype)
    for name in set(table.dtype.names or ()) & set(rows.dtype.names or ()):
        now[name] = rows[name]
    now["compute_ns"] += rows["held_ns"]
    return now
