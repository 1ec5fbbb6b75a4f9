"""Makes runs for the tests of results: consistent tables without MPI, seeded."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rows_by_name import add_image, add_task

from collage_mpi.encoding.vectors import KeptColumn, layout_of
from collage_mpi.ledger.records import Part
from collage_mpi.results import Results
from collage_mpi.results.columns import Form
from collage_mpi.results.parts import part_path
from collage_mpi.results.row_sink import PartThread, _Part
from collage_mpi.results.sole import SoleWriter
from collage_mpi.results.statistics import Spread, TimedSample
from collage_mpi.results.vectors import extras_of
from collage_mpi.rows import KEY_ROW, STORED
from collage_mpi.system import files

SIDE = 3
CELLS = SIDE * SIDE
COLLAGE_RANK = CELLS + 1


def manifest(rows: int, /, **changes: Any) -> dict[str, Any]:
    """What the coordinator supplies, for `rows` images in two shards."""
    first = rows // 2
    return {
        "run_id": "test-run",
        "settings": {"scheme": "collage", "side": SIDE, "out": "somewhere"},
        "shards": [
            {"path": "a.h5", "fingerprint": "aa" * 32, "count": first},
            {"path": "b.h5", "fingerprint": "bb" * 32, "count": rows - first},
        ],
        "rows": rows,
        "order": "file",
        "limit": None,
        "class_names": [f"class {i}" for i in range(10)],
        "scheme": "collage",
        "accept": "first",
        "mode": "carry, depth 1",
        "side": SIDE,
        "straggler": "lognormal, rank 4 five times slower",
        "world": [
            {"rank": 0, "host": "h", "pid": 1, "kinds": [], "device": "cpu"},
            *({"rank": r, "host": "h", "pid": r, "kinds": ["single"]} for r in range(1, 10)),
            {"rank": COLLAGE_RANK, "host": "h", "pid": 10, "kinds": ["collage"]},
        ],
        "warmup_groups": 0,
        **changes,
    }


def times_ms(groups: int, slow_rank: int | None = 4, seed: int = 1) -> np.ndarray:
    """Service times, (groups, 10): nine single ranks and the collage rank."""
    rng = np.random.default_rng(seed)
    times = rng.lognormal(np.log(100), 0.25, (groups, CELLS + 1))
    if slow_rank is not None:
        times[:, slow_rank - 1] *= 5
    return times


def locate(full: dict[str, Any], index: int) -> tuple[int, int]:
    """(shard, row) of a global index."""
    first = full["shards"][0]["count"]
    return (0, index) if index < first else (1, index - first)


def fill(
    writer: SoleWriter,
    full: dict[str, Any],
    indices: range | list[int],
    *,
    collage: bool = True,
    slow_rank: int | None = 4,
    errors: frozenset[int] = frozenset(),
    seed: int = 1,
    labels: bool = True,
    kind: str = "collage",
) -> None:
    """Write image, group and task rows of the given images, nine a group.

    `kind` is what the last rank holds, in place of the collage network.
    """
    indices = list(indices)
    groups = [indices[i : i + CELLS] for i in range(0, len(indices), CELLS)]
    times = times_ms(len(groups), slow_rank, seed)
    rng = np.random.default_rng(seed + 1)
    clock_ns, task = 1_000, 0
    for number, members in enumerate(groups):
        warmup = number < full.get("warmup_groups", 0)
        common = {"group": number, "warmup": warmup}
        collage_ns = int(times[number, CELLS] * 1e6) if collage else 1 << 60
        latencies, by_collage = [], 0
        for cell, index in enumerate(members):
            single_ns = int(times[number, cell] * 1e6)
            wins = collage_ns < single_ns
            latency_ns = min(collage_ns, single_ns) + 400_000
            failed = index in errors
            label = int(rng.integers(10))
            right = rng.random() < (0.92 if wins else 0.94)
            by_collage += wins and not failed
            latencies.append(latency_ns)
            shard, row = locate(full, index)
            predicted = label if right else (label + 1) % 10
            if extras_of(full):
                writer.keep(layout_of_run(full))
            vector = vector_of(full, index, predicted) if extras_of(full) and not failed else None
            place = {} if full["order"] == "file" else {"position": CELLS * number + cell}
            add_image(
                writer,
                vector,
                **place,
                shard=shard,
                row=row,
                cell=cell,
                source="error" if failed else kind if wins else "single",
                answered=not failed,
                predicted=predicted,
                score=0.9,
                has_label=labels,
                label=label,
                rank=COLLAGE_RANK if wins else cell + 1,
                t0_ns=clock_ns,
                latency_ns=latency_ns,
                read_ns=50_000,
                encode_ns=60_000,
                decode_ns=10_000,
                compute_ns=latency_ns - 1_000_000,
                reason="crc32 of row wrong" if failed else "",
                **common,
            )
            add_task(
                writer,
                task=task,
                rank=cell + 1,
                kind="single",
                attempt=0,
                items=1,
                resolved=int(not wins and not failed),
                sent_ns=clock_ns,
                done_ns=clock_ns + single_ns,
                compute_ns=single_ns,
                outcome="answered",
                **common,
            )
            task += 1
        if collage:
            add_task(
                writer,
                task=task,
                rank=COLLAGE_RANK,
                kind=kind,
                attempt=0,
                items=len(members),
                resolved=by_collage,
                sent_ns=clock_ns,
                done_ns=clock_ns + collage_ns,
                compute_ns=collage_ns,
                outcome="answered",
                **common,
            )
            task += 1
        clock_ns += max(latencies)


def vector_of(full: dict[str, Any], index: int, predicted: int) -> np.ndarray:
    """What is kept of an image: its score falls with the distance from the class predicted."""
    scores = 0.5 ** (1 + (np.arange(10) - predicted) % 10) + index * 2.0**-20
    given = {
        "embedding": np.float32([[index, -index, 0.5]]),
        "mask": np.full((1, 2, 3), index, np.uint8),
        "share": np.array([index / 2]),
        "seen": np.array([[index % 2, True]]),
    }
    extras, layout = extras_of(full), layout_of_run(full)
    return extras.pack(layout, scores[None].astype(np.float32), given)[0]


def layout_of_run(full: dict[str, Any]) -> np.dtype:
    """Of the vectors that `vector_of` makes."""
    extras = extras_of(full)
    outputs = [
        KeptColumn("mask", "|u1", (2, 3)),
        KeptColumn("share", "<f8", ()),
        KeptColumn("seen", "|b1", (2,)),
    ]
    embedding = [KeptColumn("embedding", "<f4", (3,))]
    return layout_of(extras.columns(10, embedding if extras.classifies else outputs))


def make_run(
    out: Path,
    rows: int = 90,
    *,
    collage: bool = True,
    slow_rank: int | None = 4,
    errors: frozenset[int] = frozenset(),
    status: str = "complete",
    final: dict[str, Any] | None = None,
    seed: int = 1,
    labels: bool = True,
    kind: str = "collage",
    arrival: list[int] | None = None,
    **changes: Any,
) -> Path:
    """A whole run directory with consistent tables. Images arrive in order, or as in `arrival`."""
    scheme = {} if collage else {"scheme": "none", "accept": None}
    full = manifest(rows, **{**scheme, **changes})
    full["world"][COLLAGE_RANK]["kinds"] = [kind]
    writer = SoleWriter(out, full, rows_per_part=512)
    how = {"collage": collage, "slow_rank": slow_rank, "errors": errors, "seed": seed}
    fill(writer, full, arrival or range(rows), labels=labels, kind=kind, **how)
    end = {"poll": {"longest_gap_ns": 1_500_000}}
    writer.close(status, **{**end, **(final or {})})
    return out


def as_two_teams(run: Results, gap_ns: int = 1_000_000) -> Results:
    """The run as if its odd groups were another team's, whose clock began `gap_ns` later."""
    tables = {}
    for name in ("images", "groups", "tasks"):
        rows = getattr(run, name).copy()
        odd = rows["group"] % 2 == 1
        rows["session"][odd] = 2
        for column in {"t0_ns", "sent_ns", "done_ns"} & set(rows.dtype.names):
            rows[column][odd] -= gap_ns
        tables[name] = rows
    at_ns = 1_790_000_000 * 10**9
    began = [{"session": 1, "final": {"began_ns": at_ns, "seconds": 3600.0}}]
    began.append({"session": 2, "final": {"began_ns": at_ns + gap_ns}})
    told = {**run.manifest, "sessions": began}
    return dataclasses.replace(run, manifest=told, **tables)


class Kill(BaseException):
    """SIGKILL, as far as one process can play it: no handler of ours may catch it."""


def kill_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise Kill in place of the `step`-th of fsync, rename and their like that this thread does.

    Other threads' steps are not counted: the thread of an earlier run's status, which is not dead
    as that run's process would be, would take the kill of a later one.
    """
    count = 0
    killed = threading.get_ident()
    for name in ("fsync", "replace", "open"):
        real = getattr(files.os, name)

        def call(*args: Any, _real: Any = real, **kwargs: Any) -> Any:
            nonlocal count
            count += threading.get_ident() == killed
            if count == step and threading.get_ident() == killed:
                raise Kill
            return _real(*args, **kwargs)

        monkeypatch.setattr(files.os, name, call)


class InlineThread(PartThread):
    """The writer thread without a thread: parts are written when they are handed over."""

    def __init__(
        self, directory: Path, session: int, written: Callable[[Part], object], form: Form
    ) -> None:
        self.fault, self.form = None, form
        self._directory, self._session, self._written = directory, session, written
        self._numbers = {t.name: 0 for t in STORED}

    def put(self, table: Any, payload: memoryview, vectors: Any = ()) -> None:
        self._numbers[table.name] += 1
        part = _Part(table, self._numbers[table.name], payload, vectors)
        self._write(part_path(self._directory, table, self._session, part.number), part)

    def end(self) -> None:
        pass


def input_digest(shard: np.ndarray, row: np.ndarray) -> str:
    """SHA-256 over the sorted keys of an input, (n,) each: what rows of a run must add up to."""
    keys = np.empty(len(shard), KEY_ROW)
    keys["shard"], keys["row"] = shard, row
    return hashlib.sha256(np.sort(keys, order=["shard", "row"]).tobytes()).hexdigest()


def described(values: np.ndarray, independent: int | None = None) -> Spread:
    """What a sample that holds all values says of them, with intervals: they are in time order."""
    sample = TimedSample(None)
    sample.add_at(values, np.arange(len(values)).astype([("at", "<i8")]))
    return sample.spread(len(values) if independent is None else independent)
