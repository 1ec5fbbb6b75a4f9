"""Reads the rows of a run: a part at a time (`StoredRun`), or all into memory (`Results`)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from collage_mpi.encoding.vectors import KEYS
from collage_mpi.errors import DataFault, UsageError
from collage_mpi.kinds import COLLAGE
from collage_mpi.ledger import spans as sp
from collage_mpi.ledger.records import run_name
from collage_mpi.plugins import optional
from collage_mpi.results.columns import ADVICE, array_of, positions_in, rows_of
from collage_mpi.results.manifest import Json, compose, finals
from collage_mpi.results.number_sets import InputCoverage, SessionNumberSets
from collage_mpi.results.parts import (
    Ledger,
    LedgerReader,
    PartName,
    by_row_groups,
    read_ledger,
    read_where_it_lies,
    rows_at,
)
from collage_mpi.results.vectors import KeptValues, extras_of, in_input_order, keys_in
from collage_mpi.rows import (
    GROUPS,
    IMAGES,
    SOURCE_CODE,
    STORED,
    TABLES,
    TASKS,
    TableLayout,
    columns_of,
    flat_keys,
)
from collage_mpi.system.printable import readable

if TYPE_CHECKING:
    from collage_mpi.results.export import ImageNames


class Run:
    """A run, complete or not. Subclasses implement how its rows are read.

    Attributes:
        path: the run directory.
        manifest: see `manifest.compose`.
        complete: whether each image has its row, and the run is marked so (C7).
        bound: the most rows or values that a statistic may hold in memory; None for no limit,
            because all rows are in memory anyway.
        parts: with its rows, in written order.
    """

    path: Path
    manifest: Json
    complete: bool
    parts: tuple[PartName, ...]
    bound: ClassVar[int | None] = None

    def pieces(self, table: TableLayout) -> Sequence[Callable[[], np.ndarray]]:
        """Functions that each return some rows of a table, (n,) of its dtype, in written order.

        Image rows that do not count are left out (see `other_pieces`).
        """
        raise NotImplementedError

    def chunks(self, table: TableLayout) -> Iterator[np.ndarray]:
        """Yields the rows of a table, some at a time: see `pieces`."""
        return (piece() for piece in self.pieces(table))

    def kept_of_piece(
        self, number: int, images: np.ndarray, names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """Kept values of the images of one of the `pieces`: name -> (n, ...), anything for images
        without an answer; {} if the piece has no answer.

        Args:
            number: of the piece.
            images: the piece, (n,) of IMAGE_ROW.
            names: of the values.
        """
        raise NotImplementedError

    def other_pieces(self) -> Sequence[Callable[[], np.ndarray]]:
        """Functions that each return some of the rows of images that `pieces` leaves out, (n,) of
        IMAGE_ROW: another job was to do the image, or it was asked again and has a newer row. They
        go with the parts of closed leases."""
        raise NotImplementedError

    def rows_of(self, table: TableLayout) -> int:
        """The number of rows of a table, or an upper bound of it."""
        raise NotImplementedError

    @cached_property
    def kept_values(self) -> KeptValues:
        """The scores, embeddings or outputs of the answered images, read a file at a time."""
        return KeptValues(self.parts, self.manifest)

    @property
    def scheme(self) -> str:
        """The scheme with its accept policy, such as "collage, first"."""
        return _scheme_of(self.manifest)

    @property
    def mode(self) -> str:
        """How groups follow each other (C6), such as "carry, depth 1"."""
        return _mode_of(self.manifest)

    @property
    def label(self) -> str:
        """Scheme, policy and mode, for legends and tables."""
        return label_of(self.manifest)

    @property
    def fingerprints(self) -> list[str]:
        """The SHA-256 of each shard, by shard number. With the row it is the key of an image
        (C4)."""
        return [shard["fingerprint"] for shard in self.manifest["shards"]]

    def samples_of(self, rows: np.ndarray) -> np.ndarray:
        """(n,) int64, the number of each row's independent sample, counted within its session.

        A sample is a group. Groups of one batch are one sample, because they are admitted together
        and end nearly together. Each session has its own batch size.

        Args:
            rows: (n,) of groups or images.
        """
        batches: np.ndarray = rows["group"].astype(np.int64)
        if not self.manifest.get("open_loop"):
            batches //= self._batches_of(rows["session"])
        return batches

    def _batches_of(self, sessions: np.ndarray) -> np.ndarray:
        """(n,) int64, the batch size, in groups, of the session of each row."""
        found = np.full(len(sessions), self.manifest.get("batch") or 1, np.int64)
        for session, final in finals(self.manifest).items():
            if final.get("batch"):
                found[sessions == session] = final["batch"]
        return found

    def independent(self, rows: np.ndarray) -> int:
        """The number of independent samples in rows of groups or images."""
        marks = SessionNumberSets(len(rows))
        marks.add(rows["session"], self.samples_of(rows))
        return len(marks)


@dataclass(frozen=True)
class StoredRun(Run):
    """A run on disk. Its rows are read a part at a time and are not kept in memory.

    Attributes:
        parts: the parts that counted when the run was opened, in written order.
    """

    path: Path
    manifest: Json
    complete: bool
    parts: tuple[PartName, ...]
    bound: ClassVar[int | None] = 1 << 17  # 1 MiB of 8-byte values; exact up to 10**5 rows

    def pieces(self, table: TableLayout) -> Sequence[Callable[[], np.ndarray]]:
        """See `Run`; each raises as `read_results`."""
        return [partial(rows_of_part, part, table) for part in self.of_table(table)]

    def chunks(self, table: TableLayout) -> Iterator[np.ndarray]:
        """See `Run`; groups are computed from the images."""
        return self._groups() if table is GROUPS else super().chunks(table)

    def _groups(self) -> Iterator[np.ndarray]:
        made = Groups(self.manifest)
        for piece in (*self.pieces(IMAGES), *self.other_pieces()):
            yield made.add(piece())
        yield made.rest()

    def other_pieces(self) -> Sequence[Callable[[], np.ndarray]]:
        """See `Run`; each raises as `read_results`."""
        there = self.of_table(IMAGES)
        in_leases = sp.union(*(part.spans for part in there if part.is_lease))

        def others(part: PartName) -> np.ndarray:
            rows = rows_of_part(part, IMAGES, counted=False)
            return rows[~rows_at(rows, in_leases)]

        return [partial(others, part) for part in there if not (part.whole or part.is_lease)]

    def rows_of(self, table: TableLayout) -> int:
        """See `Run`: an upper bound, from the size of the files."""
        table = IMAGES if table is GROUPS else table
        paths = {part.path for part in self.of_table(table)}
        return sum(path.stat().st_size // table.dtype.itemsize for path in paths if path.exists())

    def of_table(self, table: TableLayout) -> list[PartName]:
        """The parts of a table, in written order."""
        return [part for part in self.parts if part.table == table.name]

    def kept_of_piece(
        self, number: int, images: np.ndarray, names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """See `Run`."""
        answered, found = np.flatnonzero(images["answered"]), {}
        for name in names if len(answered) else ():
            kept = self.kept_values.file(number)  # which may lie elsewhere by now
            order = answered[np.argsort(flat_keys(images[answered]))]
            found[name] = np.zeros((len(images), *kept[name].shape[1:]), kept[name].dtype)
            found[name][order] = kept[name][np.argsort(flat_keys(kept))]
        return found


def rows_of_part(part: PartName, table: TableLayout, *, counted: bool = True) -> np.ndarray:
    """The rows of a part that count, or those that do not, as far as they are there. Raises as
    `read_results`."""
    found = read_where_it_lies(part, partial(_rows_in, table=table, counted=counted))
    return found[0] if len(found) == 1 else np.concatenate([np.empty(0, table.dtype), *found])


def _rows_in(part: PartName, table: TableLayout, *, counted: bool) -> np.ndarray:
    if part.is_lease and not counted:
        return np.empty(0, table.dtype)
    if part.group == 0:
        _check_rows(
            part, (rows_at({"position": each}, part.spans) for each in positions_in(part.path))
        )
    rows = rows_of(part.path, table, part.group)
    if table is not IMAGES:
        return rows
    count = rows_at(rows, part.spans)
    if part.group is None:
        _check_rows(part, [count])
    return rows if count.all() and counted else rows[count == counted]


def _check_rows(part: PartName, there: Iterable[np.ndarray]) -> None:
    """Raise DataFault if a file lacks rows. `there`: which of its rows count, some at a time."""
    found = sum(int(each.sum()) for each in there)
    if found != sp.count(part.spans):
        raise DataFault(
            f"{part.path}: {found:,} of its rows are at the {sp.count(part.spans):,} positions "
            f"that the ledger names. {ADVICE}"
        )


@dataclass(frozen=True)
class Results(Run):
    """A run with all its rows in memory.

    Attributes:
        images: (n,) of IMAGE_ROW, in the order of the input.
        groups: (n,) of GROUP_ROW, computed from the images.
        tasks: (n,) of TASK_ROW, in written order.
        others: (m,) of IMAGE_ROW, rows that do not count (see `other_pieces`).
        every: if it is k > 1, only every k-th part was read (`report.page.excerpt`).
        parts: that were read; () if the run is not on disk.
    """

    path: Path
    manifest: Json
    images: np.ndarray
    groups: np.ndarray
    tasks: np.ndarray
    complete: bool
    others: np.ndarray = field(default_factory=lambda: np.empty(0, IMAGES.dtype))
    every: int = 1
    parts: tuple[PartName, ...] = ()

    def __repr__(self) -> str:
        rows = f"{len(self.images):,} of {self.manifest['rows']:,} rows"
        status = self.manifest.get("status") or "incomplete"
        return f"<Results {str(self.path)!r}: {rows}, {status}>"

    def pieces(self, table: TableLayout) -> Sequence[Callable[[], np.ndarray]]:
        """See `Run`."""
        return [lambda: getattr(self, table.name)]

    def other_pieces(self) -> Sequence[Callable[[], np.ndarray]]:
        """See `Run`."""
        return [lambda: self.others]

    def rows_of(self, table: TableLayout) -> int:
        """See `Run`."""
        return len(getattr(self, table.name)) + len(self.others) * (table is IMAGES)

    @cached_property
    def measured_images(self) -> np.ndarray:
        """The rows of images without warm-up groups."""
        return self.images[~self.images["warmup"]]

    @cached_property
    def measured_groups(self) -> np.ndarray:
        """The rows of groups without warm-up groups."""
        return self.groups[~self.groups["warmup"]]

    @cached_property
    def measured_tasks(self) -> np.ndarray:
        """The rows of tasks without warm-up groups."""
        return self.tasks[~self.tasks["warmup"]]

    def __len__(self) -> int:
        """The number of images that have a row, errors included. With `[i]` this makes a map-style
        dataset for torch."""
        return len(self.images)

    def __getitem__(self, i: int) -> dict[str, Any]:
        """What is known of image i of the input: its key (fingerprint and row); whether it was
        answered; its class and score if the run classifies, and its kept values. An image without
        an answer has the reason instead."""
        row = self.images[range(len(self))[i]]
        key = {"fingerprint": self.fingerprints[row["shard"]], "row": int(row["row"])}
        found: dict[str, Any] = {**key, "answered": bool(row["answered"])}
        if not row["answered"]:
            return found | {"reason": row["reason"].decode("utf-8", "replace")}
        extras = extras_of(self.manifest)
        if extras.classifies:
            found |= {"class": int(row["predicted"]), "score": float(row["score"])}
        return found | (self.kept_values.of(row) if extras else {})

    def kept_of_piece(
        self, number: int, images: np.ndarray, names: Sequence[str]
    ) -> dict[str, np.ndarray]:
        """See `Run`."""
        return {name: self.kept(name) for name in names}

    def kept(self, name: str) -> np.ndarray:
        """(images, ...), in the order of the input, like `images`.

        If images have no answer, the array is a masked array: their values are masked, and NaN in
        a column of floats.

        Args:
            name: top_classes, top_scores, scores, embedding, or an output of a mapped function.

        Raises:
            UsageError: the run does not keep `name`.
            EnvironmentFault, DataFault: a file cannot be read; it is damaged or missing.
        """
        extras = extras_of(self.manifest)
        there = extras and (extras.more or name in extras.names)
        table = self.kept_values.table(only=name) if there else None
        known = extras.names
        if table is not None:
            known = tuple(each for each in table.column_names if each not in KEYS)
        if name not in known:
            raise UsageError(f"the run has no {name}; it has {', '.join(known) or 'none'}")
        found = np.empty((0, 0)) if table is None else array_of(table[name])
        keys = np.empty(0, np.uint64) if table is None else keys_in(table)
        answered, order = self.images["answered"], np.argsort(keys, kind="stable")
        if not np.array_equal(keys[order], flat_keys(self.images[answered])):
            raise DataFault(
                f"{self.path}: {len(found):,} vectors for other rows; collage-mpi verify says more"
            )
        absent = {"f": np.nan, "O": None}.get(found.dtype.kind, 0)
        whole = np.full((len(self.images), *found.shape[1:]), absent, found.dtype)
        whole[answered] = found[order]
        if answered.all():
            return whole
        mask = np.ones(whole.shape, bool)
        mask[answered] = False
        return np.ma.array(whole, mask=mask)

    def to_arrow(self, table: str = "images", names: ImageNames | None = None) -> Any:
        """A table as a pyarrow.Table, with the columns of `export`. Absent values are null.

        Args:
            table: images, groups or tasks; or vectors, the kept values (--top-k, --save) of each
                answered image, with the fingerprint of its shard and its row. Images and vectors
                are in the order of the input.
            names: of the images; by default `image_names(self)`, which reads the shards.

        Raises:
            UsageError: the table is unknown.
        """
        from collage_mpi.results.export import as_arrow, columns

        if table == "vectors":
            return in_input_order(self.kept_values.table())
        return as_arrow(columns(self, *self._asked(table, names)))

    def to_pandas(self, table: str = "images", names: ImageNames | None = None) -> Any:
        """A table as a pandas.DataFrame; see `to_arrow`. Names are categorical.

        Raises:
            UsageError: the table is unknown.
            EnvironmentFault: pandas is not installed.
        """
        from collage_mpi.results.export import pandas_frame

        optional("pandas", "pandas", "to_pandas")
        if table == "vectors":
            return self.to_arrow(table).to_pandas()
        return pandas_frame(self, *self._asked(table, names))

    def _asked(self, table: str, names: ImageNames | None) -> tuple[str, ImageNames]:
        from collage_mpi.results.export import image_names

        known = [each.name for each in TABLES]
        if table not in known:
            raise UsageError(f"a run has no table {table!r}; it has {', '.join(known)}, vectors")
        return table, names or image_names(self)


def label_of(manifest: Mapping[str, Any]) -> str:
    """The label of a run in legends and tables: scheme, policy and mode."""
    return f"{_scheme_of(manifest)} ({_mode_of(manifest)})"


def _scheme_of(manifest: Mapping[str, Any]) -> str:
    scheme = manifest.get("scheme") or "unknown scheme"
    accept = manifest.get("accept")
    return f"{scheme}, {accept}" if accept and scheme != "none" else scheme


def _mode_of(manifest: Mapping[str, Any]) -> str:
    return manifest.get("mode") or "mode unknown"


def distinct(names: Sequence[str], runs: Sequence[Run]) -> list[str]:
    """The names of the runs. If several runs have a name, their directories are added to it."""
    return [
        name if names.count(name) == 1 else f"{name} [{readable(run.path.name)}]"
        for name, run in zip(names, runs, strict=True)
    ]


def read_results(path: Path | str) -> Results:
    """Read all rows of the run in a directory. The checksum of every part is verified.

    Images are in the order of the input. `follow` gives them in the order of their answers.

    Raises:
        EnvironmentFault: there is no run, it cannot be read, or it is of another format.
        DataFault: a file is damaged or missing, or a part has unknown codes.
    """
    run = open_run(path)
    images, others, tasks = (
        np.concatenate([np.empty(0, table.dtype), *(piece() for piece in pieces)])
        for table, pieces in (
            (IMAGES, run.pieces(IMAGES)),
            (IMAGES, run.other_pieces()),
            (TASKS, run.pieces(TASKS)),
        )
    )
    groups = groups_of(np.concatenate([images, others]), run.manifest)
    images = images[np.argsort(flat_keys(images), kind="stable")]
    tables, parts = (images, groups, tasks), run.parts
    return Results(run.path, run.manifest, *tables, run.complete, others, parts=parts)


def open_run(path: Path | str) -> StoredRun:
    """The run in a directory, to be read a part at a time. Raises as read_results."""
    return _run_of(Path(path), read_ledger(Path(path)))


def _run_of(path: Path, ledger: Ledger) -> StoredRun:
    parts = tuple(each for part in ledger.parts for each in by_row_groups(part))
    return StoredRun(path, compose(path, ledger), ledger.complete, parts)


def follow(path: Path | str, *, every_s: float = 0.5) -> Iterator[dict[str, np.ndarray]]:
    """Yields the answered images of a run while another process writes them, until the job ends or
    is lost. All images of a job that has ended are yielded without waiting.

    Images are in the order of their answers: what joins them with the input is their key.

    Args:
        path: folder of a run that has begun.
        every_s: seconds between two looks for new images.

    Yields:
        A batch of images: shard and row, (n,), which are their key; class and score, (n,), if the
        run classifies; and the kept values, (n, ...).

    Raises:
        EnvironmentFault, DataFault: as read_results.
    """
    from collage_mpi.results.status import ENDED, Watch

    path, seen = Path(path), sp.union()
    watch, reader = Watch(path), LedgerReader(path)
    while True:
        view = watch.look()  # first, because the last job may end while its rows are read
        if (path / run_name(1)).exists():  # not while its first ranks load networks
            manifest = compose(path, ledger := reader.look())
            for part in (part for part in ledger.parts if part.table == IMAGES.name):
                if new := sp.minus(part.spans, seen):
                    seen = sp.union(seen, new)
                    for each in by_row_groups(part._replace(spans=new)):
                        yield _batch(manifest, each)
        if view.life == ENDED or view.lost:
            return
        time.sleep(every_s)


def _batch(manifest: Json, part: PartName) -> dict[str, np.ndarray]:
    rows, extras = rows_of_part(part, IMAGES), extras_of(manifest)
    rows = rows[rows["answered"]]
    rows = rows[np.argsort(flat_keys(rows), kind="stable")]  # as their kept values
    found = {"shard": rows["shard"], "row": rows["row"]}
    if extras.classifies:
        found |= {"class": rows["predicted"], "score": rows["score"]}
    for kept in KeptValues([part], manifest) if extras else ():
        found |= {name: values for name, values in kept.items() if name not in KEYS}
    return found


_OF_GROUP = IMAGES.only(
    *("session", "group", "t0_ns", "latency_ns", "encode_ns"),
    *("source", "has_label", "label", "warmup"),
)


class Groups:
    """Makes the rows of groups from rows of images that come some at a time.

    The images of a group that is not whole wait. A session that was killed may have lost images of
    its last groups, which are therefore left out.

    Args:
        manifest: of the run.
    """

    def __init__(self, manifest: Mapping[str, Any]) -> None:
        self._size = (manifest.get("side") or 0) ** 2
        entries = manifest.get("sessions") or []
        # The entry of a session that is about to close has no rows yet.
        self._killed = [e["session"] for e in entries if "rows" in e and e["rows"] is None]
        self._waiting = np.empty(0, _OF_GROUP)

    def add(self, images: np.ndarray) -> np.ndarray:
        """Take images, (n,) of IMAGE_ROW, also those that do not count.

        Returns:
            (k,) of GROUP_ROW: the groups that are whole now.
        """
        images = np.concatenate([self._waiting, columns_of(images, _OF_GROUP)])
        images, _, counts = _by_group(images)
        whole = np.repeat(counts == self._size, counts)  # (n,)
        self._waiting = images[~whole]
        return _group_rows(images[whole])

    def rest(self) -> np.ndarray:
        """(k,) of GROUP_ROW: the other groups, after all images have come."""
        return _group_rows(self._waiting[~np.isin(self._waiting["session"], self._killed)])


def groups_of(images: np.ndarray, manifest: Mapping[str, Any]) -> np.ndarray:
    """The rows of all groups, (k,) of GROUP_ROW, by session and number. For `images` see
    `Groups.add`.
    """
    groups = Groups(manifest)
    found = np.concatenate([groups.add(images), groups.rest()])
    return found[np.lexsort((found["group"], found["session"]))]


def _by_group(images: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The images in the order of their groups; the first place and the size of each group."""
    images = images[np.lexsort((images["t0_ns"], images["group"], images["session"]))]
    first = np.ones(len(images), bool)
    first[1:] = False
    for name in ("session", "group"):
        first[1:] |= images[name][1:] != images[name][:-1]
    starts = np.flatnonzero(first)
    return images, starts, np.diff(np.append(starts, len(images)))


def _group_rows(images: np.ndarray) -> np.ndarray:
    images, starts, counts = _by_group(images)
    found = np.zeros(len(starts), GROUPS.dtype)
    if not len(starts):
        return found
    for name in ("session", "group", "t0_ns", "warmup"):
        found[name] = images[name][starts]
    found["images"] = counts
    ends_ns = np.maximum.reduceat(images["t0_ns"] + images["latency_ns"], starts)
    found["latency_ns"] = ends_ns - found["t0_ns"]
    found["encode_ns"] = np.maximum.reduceat(images["encode_ns"], starts)
    collage = images["source"] == SOURCE_CODE[COLLAGE]
    found["collage_cells"] = np.add.reduceat(collage, starts, dtype=np.int64)
    number = np.repeat(np.arange(len(starts)), counts)
    labelled = images["has_label"]
    pairs = np.unique(np.stack([number[labelled], images["label"][labelled]]), axis=1)
    found["classes"] = np.bincount(pairs[0].astype(np.int64), minlength=len(starts))
    return found


class Inventory:
    """The rows that a run has.

    Attributes:
        rows: (table, session) -> number of rows, including those that do not count.
        errors: number of error rows that count.
        input: which images have a row that counts.
    """

    def __init__(
        self,
        run: Run,
        also: Callable[[TableLayout, np.ndarray], object] | None = None,
        *,
        groups: bool = False,
    ) -> None:
        """Read the run. `also` is called with each table and its rows that count, some at a time;
        with those of groups too if `groups`. Raises as `read_results`."""
        self.rows: Counter[tuple[str, int]] = Counter()
        self.errors = 0
        self.input = InputCoverage(run.manifest, run.rows_of(IMAGES))
        made = Groups(run.manifest)
        for table in STORED:
            for rows in run.chunks(table):
                self._count(table, rows)
                if table is IMAGES:
                    self.errors += int((~rows["answered"]).sum())
                    self.input.add(rows)
                if also is not None:
                    also(table, rows)
                if groups and also is not None and table is IMAGES:
                    also(GROUPS, made.add(rows))
        for piece in run.other_pieces():
            rows = piece()
            self._count(IMAGES, rows)
            if groups and also is not None:
                also(GROUPS, made.add(rows))
        if groups and also is not None:
            also(GROUPS, made.rest())

    def all(self, table: str) -> int:
        """The number of rows of a table, including those that do not count."""
        return sum(n for (name, _), n in self.rows.items() if name == table)

    def _count(self, table: TableLayout, rows: np.ndarray) -> None:
        sessions, n = np.unique(rows["session"], return_counts=True)
        for session, count in zip(sessions.tolist(), n.tolist(), strict=True):
            self.rows[table.name, session] += count
