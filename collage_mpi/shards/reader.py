"""Reads several sources as one list of images, in any order and with checks. It notices if a source
is lost or changes during the job. "Shard" means any source here, not only HDF5 shards. `as_before`
gives the shards of a resumed run the numbers of its first session, by their content.
"""

from __future__ import annotations

import dataclasses
import os
import threading
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault, ShardFault
from collage_mpi.shards.foreign import cause_of
from collage_mpi.shards.guard import first_of, verify_shard
from collage_mpi.shards.inputs import (
    examine,
    expand_paths,
    open_source,
    place_of,
    source_class,
    source_of,
)
from collage_mpi.shards.members import MemberIndex, name_text
from collage_mpi.shards.pictures import parse_fit
from collage_mpi.shards.remote import Stamp
from collage_mpi.shards.schema import BadShard, ShardInfo, sidecar_path, stamp_of
from collage_mpi.shards.source import (
    ANY_ITEMS,
    MOST_DECODERS,
    PLAIN,
    PictureSource,
    ReadAs,
    ReadMeter,
    Source,
)
from collage_mpi.system.environment import local_size, threads_per_rank
from collage_mpi.system.printable import counted, storable

VERIFIED_AT_ONCE = 64  # images
OPEN_FILES = 64
"""The most files that are open at a time. Opening another takes about a millisecond."""


class ShardSet:
    """Shards as one list of images, with global indices 0 to len - 1 in file order.

    Use `ShardSet.open` to create one. Methods may be called from several threads.

    Attributes:
        infos: one description for each shard, in order.
        shape, dtype: of every item, such as (H, W, C) uint8 for pictures.
        class_names: the name of label 0, 1, ...; None if the shards have none.
        bad: shards that could not be read at the start. Their images do not count.
        lost: shard number -> reason, for shards in `infos` that can no longer be read.
        left_out: shards that a resumed run does not use; see `resumed`.
        since: shard number -> what the manifest of a resumed run says of a source whose members
            have changed since the run began; see `resumed`.
        hash_limit_bytes: a larger file that has changed is not hashed again but counts as lost;
            None for no limit.
        decoders: number of pictures that are decoded at a time, by default one a core of this rank.
        meter: what reading has taken so far.
    """

    def __init__(self, infos: Sequence[ShardInfo], bad: Sequence[BadShard] = ()) -> None:
        _check_alike(infos)
        self.infos = tuple(infos)
        self.bad = tuple(bad)
        self.lost: dict[int, str] = {}
        self.left_out: tuple[Path, ...] = ()
        self.since: dict[int, dict[str, Any]] = {}
        self._row_faults: dict[int, str] = {}  # global index -> why the row cannot be used
        self._stamps: list[Stamp | None] = [info.stamp for info in infos]
        self.shape, self.dtype = infos[0].shape, infos[0].dtype
        self.class_names = infos[0].class_names
        self._starts = np.cumsum([0, *(info.count for info in infos)])  # (shards + 1,)
        self.hash_limit_bytes: int | None = None
        self.decoders = min(MOST_DECODERS, threads_per_rank(local_size() or 1))
        self.meter = ReadMeter()
        self._lock = threading.RLock()
        self._open: OrderedDict[int, Source] = OrderedDict()  # least recently used first
        self._closed = False

    @classmethod
    def open(
        cls,
        paths: Sequence[Path | str],
        *,
        skip_bad: bool = False,
        read_as: ReadAs = PLAIN,
    ) -> ShardSet:
        """Check and open sources.

        Args:
            paths: files and folders; `inputs.expand_paths` says what a folder stands for.
            skip_bad: leave out shards that cannot be read, and list them in `bad`. If no shard
                can be read, the first fault is raised.
            read_as: how to read pictures and labels.

        Raises:
            EnvironmentFault: a path does not exist or cannot be read.
            DataFault: a source is damaged or unusable, or the sources have different items.
        """
        files = expand_paths(paths)
        found = examine(files, read_as)
        infos = [item for item in found if isinstance(item, ShardInfo)]
        pairs = zip(files, found, strict=True)
        faults = [(path, item) for path, item in pairs if isinstance(item, CollageError)]
        for path, fault in faults:
            named = os.path.lexists(place_of(path))  # if not, the user has mistyped the path
            if not (skip_bad and infos and named):
                raise fault
        return cls(infos, [BadShard(path, str(fault)) for path, fault in faults])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def locate(self, index: int) -> tuple[int, int]:
        """(shard number, row) of a global index. Raises IndexError."""
        if not 0 <= index < len(self):
            raise IndexError(f"image {index} of {len(self)}")
        shard = int(np.searchsorted(self._starts, index, side="right")) - 1
        return shard, index - int(self._starts[shard])

    def locate_each(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(n,) int64 shard numbers and (n,) int64 rows of valid global indices."""
        shards = np.searchsorted(self._starts, indices, side="right") - 1
        return shards, indices - self._starts[shards]

    def span(self, shard: int) -> tuple[int, int]:
        """The global indices of a shard's images: first, and last + 1."""
        return int(self._starts[shard]), int(self._starts[shard + 1])

    def read(self, indices: np.ndarray | Sequence[int]) -> tuple[np.ndarray, np.ndarray | None]:
        """Read images in any order. Indices may repeat.

        Args:
            indices: (n,) global indices.

        Returns:
            (n, ...) items, such as (n, H, W, C) uint8; and (n,) int64 labels, or None if there are
            none.

        Raises:
            DataFault: a row cannot be read or its checksum does not match.
            ShardFault: a file can no longer be read, or has been replaced or changed.
            IndexError: an index is out of range.
        """
        pixels, labels, good = self.read_checked(indices)
        if not good.all():
            index = int(np.asarray(indices)[np.argmin(good)])
            shard, row = self.locate(index)
            raise DataFault(f"{self.infos[shard].path}: row {row}: {self.row_fault(index)}")
        return pixels, labels

    def read_checked(
        self, indices: np.ndarray | Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
        """Like `read`, but a bad row does not raise: its item is zeros, and it is False in the
        third array, (n,) bool.

        Raises:
            ShardFault, IndexError: as `read`. After a ShardFault the shard is in `lost`.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        if wanted.size and not 0 <= wanted.min() <= wanted.max() < len(self):
            raise IndexError(f"images {wanted.min()}..{wanted.max()} of {len(self)}")
        pixels = np.empty((len(wanted), *self.shape), dtype=self.dtype)
        labels = np.empty(len(wanted), dtype=np.int64) if self.infos[0].has_labels else None
        good = np.ones(len(wanted), dtype=bool)

        def read(source: Source, places: np.ndarray, rows: np.ndarray) -> None:
            source.read_into(pixels, places, rows)

        for shard, places in self._by_shard(wanted):
            rows = wanted[places] - self._starts[shard]  # ascending
            with self._lock, self._metered():
                source = self._read(shard, places, rows, read)
                good[places] = source.sound(pixels, places, rows)
                good[places] &= Source.sound(source, pixels, places, rows)  # `sound` may omit this
            if labels is not None and source.labels is not None:
                labels[places] = source.labels[rows]
        pixels[~good] = 0
        return pixels, labels, good

    @property
    def fit(self) -> str | None:
        """The text of the `PictureFit` of all images; None if it is not the same for all shards, or
        they are not encoded."""
        fits = {info.fit for info in self.infos}
        return self.infos[0].fit if len(fits) == 1 else None

    @property
    def fingerprints(self) -> list[str]:
        """The fingerprint of each shard when the run began: with the row, the key of an image."""
        return [
            self.since.get(number, {}).get("fingerprint", info.fingerprint)
            for number, info in enumerate(self.infos)
        ]

    def read_files_checked(
        self, indices: np.ndarray | Sequence[int]
    ) -> tuple[list[bytes | None], np.ndarray | None]:
        """The files of pictures, with None for a bad row; and (n,) int64 labels, or None. All
        sources must be a `PictureSource`.

        Raises:
            ShardFault: as `read`. The shard then is in `lost`.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        files: list[bytes | None] = [None] * len(wanted)

        def read(source: Source, places: np.ndarray, rows: np.ndarray) -> None:
            assert isinstance(source, PictureSource)
            for place, data in zip(places.tolist(), source.files(rows), strict=True):
                files[place] = data

        for shard, places in self._by_shard(wanted):
            with self._lock, self._metered():
                self._read(shard, places, wanted[places] - self._starts[shard], read)
        return files, self.labels_at(wanted)

    def row_fault(self, index: int) -> str:
        """The reason why a row cannot be used, without its shard and row, which the row of the
        results has in other columns.
        """
        return self._row_faults.get(index, "checksum does not match its pixels and label")

    def changed(self) -> dict[int, str]:
        """Shard number -> message, for shards that have changed since they were described, if a
        read does not notice this (`Source.checks`). A shard that is gone has not changed.

        Only a file with another size, time or inode is hashed again.
        """
        found = {}
        for number, info in enumerate(self.infos):
            if number not in self.lost and not source_class(info.storage).checks:
                try:
                    self._check_same(number)
                except DataFault as error:
                    found[number] = str(error)
                except EnvironmentFault:
                    continue
        return found

    def read_all(self) -> tuple[np.ndarray, np.ndarray | None]:
        """All images in file order; see `read`."""
        return self.read(np.arange(len(self)))

    def labels(self) -> np.ndarray | None:
        """The labels of all images, (n,) int64; None if there are none. Labels of lost shards are
        0.

        Raises:
            ShardFault: a shard can no longer be read.
        """
        if not self.infos[0].has_labels:
            return None
        found = np.zeros(len(self), dtype=np.int64)
        for shard in range(len(self.infos)):
            if shard not in self.lost:
                with self._lock:
                    own = self._opened(shard).labels
                assert own is not None
                found[slice(*self.span(shard))] = own
        return found

    def labels_at(self, indices: np.ndarray | Sequence[int]) -> np.ndarray | None:
        """The labels of images whose pixels another rank reads, (n,) int64; None if there are none.

        Raises:
            ShardFault: as `read`, also if there are no labels.
        """
        wanted = np.asarray(indices, dtype=np.int64)
        labels = np.empty(len(wanted), dtype=np.int64) if self.infos[0].has_labels else None
        for shard, places in self._by_shard(wanted):
            with self._lock:
                own = self._opened(shard).labels
            if labels is not None and own is not None:
                labels[places] = own[wanted[places] - self._starts[shard]]
        return labels

    def check_each(self) -> None:
        """Open each shard once and check that it is the file that was described. Shards without a
        stamp are skipped, because they could not be read then.

        Raises:
            ShardFault: a shard cannot be read or has changed.
        """
        for number, info in enumerate(self.infos):
            if info.stamp is not None:
                with self._lock:
                    self._opened(number)

    def save_indexes(self, folder: Path) -> None:
        """Write the lists of members to a folder, where workers find them. Raises OSError."""
        infos = []
        for info in self.infos:
            if info.members is not None:
                folder.mkdir(exist_ok=True)
                path = folder.absolute() / f"{info.fingerprint}.npz"
                info.members.save(path)
                info = replace(info, index=str(path))
            infos.append(info)
        self.infos = tuple(infos)

    def close(self) -> None:
        """Close the files. Later reads raise. A second call does nothing."""
        with self._lock:
            self._closed = True
            for shard in self._open.values():
                shard.close()
            self._open.clear()

    def __enter__(self) -> ShardSet:
        return self

    def __exit__(self, *raised: object) -> None:
        self.close()

    def _by_shard(self, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Yields (shard, places): the places in `wanted` of the shard's images, in ascending order
        of their indices."""
        order = np.argsort(wanted, kind="stable")
        cuts = np.searchsorted(wanted[order], self._starts)
        for shard in np.flatnonzero(np.diff(cuts)).tolist():
            yield shard, order[cuts[shard] : cuts[shard + 1]]

    def _shard(self, number: int) -> Source:
        """The open shard. The caller must hold the lock while it uses the shard."""
        if self._closed:
            raise ValueError("this ShardSet is closed")
        if number not in self._open:
            if len(self._open) >= OPEN_FILES:
                self._open.popitem(last=False)[1].close()
            self._check_same(number)
            self._open[number] = open_source(self.infos[number])
            try:
                self._check_same(number)  # again: it may have been replaced before it was opened
            except (DataFault, EnvironmentFault):
                self._open.pop(number).close()
                raise
        self._open.move_to_end(number)
        source = self._open[number]
        source.decoders, source.meter = self.decoders, self.meter
        return source

    def _opened(self, number: int) -> Source:
        """Like `_shard`, but a fault marks the shard as lost and is raised as ShardFault."""
        if number in self.lost:
            raise ShardFault(number, self.lost[number])
        with self._losing(number):
            return self._shard(number)

    @contextmanager
    def _losing(self, number: int) -> Iterator[None]:
        """A fault marks the shard as lost and is raised as ShardFault."""
        try:
            yield
        except (DataFault, EnvironmentFault) as error:
            self.lost[number] = str(error)
            raise ShardFault(number, str(error)) from error

    @contextmanager
    def _metered(self) -> Iterator[None]:
        """Counts the time as reading, without the part in which a source decodes."""
        start_ns, decoded_ns = time.monotonic_ns(), self.meter.decoding_ns
        yield
        decoded_ns -= self.meter.decoding_ns
        self.meter.reading_ns += time.monotonic_ns() - start_ns + decoded_ns

    def _read(
        self,
        number: int,
        places: np.ndarray,
        rows: np.ndarray,
        read: Callable[[Source, np.ndarray, np.ndarray], None],
    ) -> Source:
        """Calls `read` for ascending `rows` of a shard, and returns the open shard.

        If this fails and the file can be opened again unchanged, each row is read alone, and rows
        that cannot be read are noted in `row_faults`. Otherwise the shard is lost. It is also lost
        if its file is checked after each read, and has changed or is gone.
        """
        source = self._opened(number)
        for row in rows.tolist() if source.row_faults else ():
            source.row_faults.pop(row, None)  # the row may be readable again
        try:
            read(source, places, rows)
        except EnvironmentFault:
            self._open.pop(number).close()
            source = self._opened(number)
            for at, row in enumerate(rows.tolist()):
                try:
                    read(source, places[at : at + 1], rows[at : at + 1])
                except EnvironmentFault as error:
                    why = cause_of(error.__cause__ or error)
                    source.row_faults[row] = f"cannot be read: {why}"
        if source.checks == "file":
            with self._losing(number):
                self._check_same(number)
        for row, why in source.row_faults.items():
            self._row_faults[int(self._starts[number]) + row] = why
        return source

    def _check_same(self, number: int) -> None:
        """Raise if the file is not the one that was checked: stamp and SHA-256 differ."""
        info, known = self.infos[number], self._stamps[number]
        if known is None:
            return
        try:
            stamp = stamp_of(info.path)
            if stamp == known:
                return
            if self.hash_limit_bytes is not None and stamp[0] > self.hash_limit_bytes:
                raise EnvironmentFault(
                    f"{info.path}: has another time or inode, and is too large to be hashed here"
                )
            same = source_class(info.storage).fingerprint(info.path) == info.fingerprint
        except OSError as error:
            raise EnvironmentFault(
                f"{info.path}: can no longer be read: {error.strerror or error}"
            ) from error
        if not same:
            raise DataFault(
                f"{info.path}: has changed since the job began: its SHA-256 is no longer "
                f"{info.fingerprint[:12]}..."
            )
        self._stamps[number] = stamp


def inspect_sources(paths: Sequence[Path], read_as: ReadAs = PLAIN) -> list[ShardInfo]:
    """Describe sources.

    Raises:
        DataFault, EnvironmentFault: of the first source that cannot be read.
    """
    found = examine(paths, read_as)
    for fault in found:
        if isinstance(fault, CollageError):
            raise fault
    return [info for info in found if isinstance(info, ShardInfo)]


def verify_source(path: Path) -> list[str]:
    """The problems of a source, in a few lines; [] if none. In a source that is not an HDF5 file,
    every image is read.

    Raises:
        EnvironmentFault: the source is missing or unreadable.
    """
    if source_of(path)[0] is source_class("images"):
        return verify_shard(path)
    bad: list[str] = []
    with ShardSet(inspect_sources([path], ANY_ITEMS)) as source:
        for start in range(0, len(source), VERIFIED_AT_ONCE):
            rows = np.arange(start, min(start + VERIFIED_AT_ONCE, len(source)))
            good = source.read_checked(rows)[2]
            bad += [f"row {row}: {source.row_fault(row)}" for row in rows[~good].tolist()]
    return first_of(bad)


def _check_alike(infos: Sequence[ShardInfo]) -> None:
    first = infos[0]
    for info in infos[1:]:
        for what in ("shape", "dtype", "class_names", "has_labels"):
            one, other = getattr(first, what), getattr(info, what)
            if one != other:
                raise DataFault(
                    f"{info.path}: {what} is {other}, but {first.path} has {one}; the shards "
                    "of one job must be alike"
                )


def as_before(
    shards: ShardSet,
    known: Sequence[Mapping[str, Any]],
    indexes: Path,
    session: int,
    *,
    limited: bool = False,
) -> ShardSet:
    """Renumber shards by a run's manifest. New shards come last.

    A shard of the run that is bad now keeps its number and its count, and counts as lost. Pictures
    are resized as in the first session, even if the network asks for another filter now.

    A source whose members have the same names and other bytes keeps its number, and the fingerprint
    that it had when the run began. Its entry then has two further keys: `content`, its fingerprint
    now, and `changed`, a list of [row, session]. A row of the results counts for a changed picture
    only if it was written in that session or later.

    Args:
        shards: the shards of this session, before anything is read from them.
        known: {path, fingerprint, count, ...} of each shard, in the order of their numbers.
        indexes: the folder with the run's lists of members.
        session: the number of this session.
        limited: leave out new shards, because with them --limit would choose other images.

    Returns:
        A new `ShardSet`; or `shards` itself if a shard of the run is missing and none of the bad
        shards has its name. The comparison of the manifests then reports the difference.
    """
    by_content: dict[str, deque[ShardInfo]] = defaultdict(deque)
    for info in shards.infos:
        by_content[info.fingerprint].append(info)
    bad = list(shards.bad)
    infos: list[ShardInfo] = []
    lost: dict[int, str] = {}
    since: dict[int, dict[str, Any]] = {}
    contents = {content_of(entry) for entry in known}
    others = [info for info in shards.infos if info.fingerprint not in contents]
    for number, entry in enumerate(known):
        found, changed = by_content[content_of(entry)], entry.get("changed") or []
        if not found:
            for info in others:
                rows = _changed_rows(info, entry, indexes)
                if rows is not None:
                    others.remove(info)
                    found = by_content[info.fingerprint]
                    changed = [*({**dict(changed), **dict.fromkeys(rows, session)}.items())]
                    break
        if found:
            infos.append(_fitted(found.popleft(), entry))
            content = infos[-1].fingerprint
            if changed:
                own = {"fingerprint": entry["fingerprint"], "content": content}
                since[number] = {**own, "changed": sorted(map(list, changed))}
            continue
        stand_in = _same_name(bad, entry)
        if stand_in is None:
            return shards
        bad.remove(stand_in)
        lost[number] = stand_in.reason
        infos.append(_unreadable(shards.infos[0], stand_in, entry))
    rest = {id(info) for left in by_content.values() for info in left}
    new = [info for info in shards.infos if id(info) in rest]
    renumbered = ShardSet(infos if limited else [*infos, *new], bad)
    renumbered.left_out = tuple(info.path for info in new) if limited else ()
    renumbered.lost.update(lost)
    renumbered.since.update(since)
    return renumbered


def content_of(entry: Mapping[str, Any]) -> str:
    """The fingerprint of a source when the run's last session began."""
    return entry.get("content") or entry["fingerprint"]


def _changed_rows(info: ShardInfo, entry: Mapping[str, Any], indexes: Path) -> list[int] | None:
    """The rows of a source whose pictures have changed since the last session; None if it is
    another source, or if the changed pictures cannot be told."""
    before = MemberIndex.load(indexes / f"{content_of(entry)}.npz")
    if info.members is None or before is None or len(before) != info.count:
        return None
    rows = info.members.changed_since(before)
    if rows is None or (info.members.crc32 is None and os.path.exists(sidecar_path(info.path))):
        return None  # the .sha256 file says that bytes differ, and not whose
    return [int(row) for row in rows] or None


def member_changes(
    shards: ShardSet, known: Sequence[Mapping[str, Any]], indexes: Path
) -> list[str]:
    """Lines that say how the members of sources have changed since the last session.

    Args:
        shards: the shards of this session.
        known: as in `as_before`.
        indexes: the folder with the run's lists of members.
    """
    lines = []
    for number, (info, entry) in enumerate(zip(shards.infos, known, strict=False)):
        if info.fingerprint == content_of(entry) or info.members is None:
            continue
        before = MemberIndex.load(indexes / f"{content_of(entry)}.npz")
        if before is None:
            continue
        rows = info.members.changed_since(before) if number in shards.since else None
        if rows is None:
            lines.append(f"{info.path}: {info.members.difference(before)}")
        else:
            first = name_text(info.members.name(int(rows[0])))
            lines.append(
                f"{info.path}: {counted(len(rows), 'picture')} changed since the last session, "
                f"such as {first}. Changed pictures without an answer are classified again"
            )
    return lines


def _fitted(info: ShardInfo, entry: Mapping[str, Any]) -> ShardInfo:
    fit = parse_fit(entry["fit"]) if entry.get("fit") else None
    return info.fitted(fit) if fit is not None and fit.shape == info.shape else info


def _same_name(bad: Sequence[BadShard], entry: Mapping[str, Any]) -> BadShard | None:
    name = Path(entry.get("path") or "").name
    return next((shard for shard in bad if storable(shard.path.name) == name), None)


def _unreadable(like: ShardInfo, bad: BadShard, entry: Mapping[str, Any]) -> ShardInfo:
    """The description of a bad shard: path, count and fingerprint are its own, the rest is copied
    from another shard."""
    return dataclasses.replace(
        like,
        path=bad.path,
        count=entry["count"],
        fingerprint=entry["fingerprint"],
        stamp=None,
    )
