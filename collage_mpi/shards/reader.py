"""Reads several sources as one list of images, in any order and with checks. It notices if a source
is lost or changes during the job. "Shard" means any source here, not only HDF5 shards. `as_before`
gives the shards of a run that goes on the numbers that they have there, and says what has changed.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
import time
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import (
    CollageError,
    DataFault,
    EnvironmentFault,
    ShardFault,
    UsageError,
)
from collage_mpi.shards.column import pieces
from collage_mpi.shards.guard import cause_of, first_of, verify_shard
from collage_mpi.shards.inputs import (
    examine,
    expand_paths,
    open_source,
    place_of,
    source_class,
    source_of,
)
from collage_mpi.shards.members import MemberIndex
from collage_mpi.shards.pictures import parse_fit
from collage_mpi.shards.remote import Stamp
from collage_mpi.shards.schema import ShardInfo, stamp_of
from collage_mpi.shards.source import (
    ANY_ITEMS,
    MOST_DECODERS,
    PLAIN,
    MemberSource,
    PictureSource,
    ReadAs,
    ReadMeter,
    Source,
)
from collage_mpi.shards.update import Update, compare, differences, update
from collage_mpi.system.environment import local_size, threads_per_rank
from collage_mpi.system.files import write_atomic
from collage_mpi.system.printable import storable

VERIFIED_AT_ONCE = 64  # images
OPEN_FILES = 64
"""The most files that are open at a time. Opening another takes about a millisecond."""


@dataclass
class Growth:
    """What has changed in the sources of a run since it listed them.

    Attributes:
        again: global indices of pictures that have other bytes.
        touched: global indices of pictures to try again if they have no answer.
        removed: number of pictures.
        renamed: pictures have another name, or were gone and are there again.
        lines: for each source what an update would do.
    """

    again: list[int] = field(default_factory=list)
    touched: list[int] = field(default_factory=list)
    removed: int = 0
    renamed: bool = False
    lines: list[str] = field(default_factory=list)

    @property
    def nothing(self) -> bool:
        """Whether nothing has changed."""
        return not (self.again or self.touched or self.removed or self.renamed)


class ShardSet:
    """Shards as one list of images, with global indices 0 to len - 1 in file order.

    Use `ShardSet.open` to create one. Methods may be called from several threads.

    Attributes:
        infos: one description for each shard, in order.
        shape, dtype: of every item, such as (H, W, C) uint8 for pictures.
        class_names: the name of label 0, 1, ...; None if the shards have none.
        bad: path -> message that names it, for shards that could not be read at the start. Their
            images do not count.
        lost: shard number -> reason, for shards in `infos` that can no longer be read.
        left_out: shards that a resumed run does not use; see `as_before`.
        growth: what has changed in the sources since the run began; see `as_before`.
        grows: more images are to be listed.
        hash_limit_bytes: a larger file that has changed is not hashed again but counts as lost;
            None for no limit.
        decoders: number of pictures that are decoded at a time, by default one a core of this rank.
        meter: what reading has taken so far.
    """

    def __init__(self, infos: Sequence[ShardInfo], bad: Mapping[Path, str] | None = None) -> None:
        _check_alike(infos)
        self.infos = tuple(infos)
        self.bad = dict(bad or {})
        self.lost: dict[int, str] = {}
        self.left_out: tuple[Path, ...] = ()
        self.growth = Growth()
        self.grows = False
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
        return cls(infos, {path: str(fault) for path, fault in faults})

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
        """The fingerprint of each shard: with the row, the key of an image."""
        return [info.fingerprint for info in self.infos]

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

    def gone(self) -> np.ndarray:
        """(n,) bool, by global index: the picture was there when the run listed it, and is not."""
        found = np.zeros(len(self), bool)
        for shard, info in enumerate(self.infos):
            if info.members is not None:
                found[slice(*self.span(shard))] = ~info.members.live
        return found

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
                found[slice(*self.span(shard))] = own[:]
        return found

    def highest_label(self) -> int | None:
        """The largest of `labels`; None if there are none. Raises as `labels`."""
        if not self.infos[0].has_labels:
            return None
        found = 0
        for shard in range(len(self.infos)):
            if shard not in self.lost:
                with self._lock:
                    own = self._opened(shard).labels
                assert own is not None
                found = max([found, *(int(some.max()) for some in pieces(own))])
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
                path = folder.absolute() / f"{info.members.content}.npz"
                if not path.exists():
                    info.members.save(path)
                info = replace(info, index=str(path))
            infos.append(info)
        self.infos = tuple(infos)
        self.save_folders(folder)

    def save_folders(self, folder: Path, known: Sequence[Mapping[str, Any]] = ()) -> None:
        """Write `MemberIndex.folders` beside the lists of members. Its name is made of the
        names of all lists of a source, because it is true of these lists only.

        Args:
            folder: of the lists.
            known: the shards of a run whose lists say the same, if not those of this set are saved.

        Raises:
            OSError: as the system says.
        """
        names, folders = defaultdict[Path, list[str]](list), dict[Path, Mapping[str, list[int]]]()
        for number, info in enumerate(self.infos):
            if info.members is not None:
                own = content_of(known[number]) if known else info.members.content
                names[info.path].append(own)
                folders[info.path] = info.members.folders or folders.get(info.path, {})
        for path, stamps in folders.items():
            if stamps:
                write_atomic(_folders_file(folder, names[path]), [json.dumps(stamps).encode()])

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
            if source_class(info.storage).checks == "members":
                return
            if self.hash_limit_bytes is not None and stamp[0] > self.hash_limit_bytes:
                raise EnvironmentFault(
                    f"{info.path}: has another time or inode, and is too large to be hashed here"
                )
            same = source_class(info.storage).fingerprint(info.path) == info.of_path
        except OSError as error:
            raise EnvironmentFault(
                f"{info.path}: can no longer be read: {error.strerror or error}"
            ) from error
        if not same:
            raise DataFault(
                f"{info.path}: has changed since the job began: its SHA-256 is no longer "
                f"{info.of_path[:12]}..."
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
    asked: Update | None = None,
    *,
    content: bool = False,
    limited: bool = False,
    complete: bool = True,
) -> ShardSet:
    """Renumber shards by a run's manifest. New shards come last.

    A shard of the run that is bad now keeps its number and its count, and counts as lost. Pictures
    are resized as in the first session, even if the network asks for another filter now.

    A list of members is compared with the lists that the run has of the same source, which has
    one shard for its first list and one for what was new in each update. `ShardSet.growth` says
    what is other. In an update of a complete run what is new becomes another shard. Otherwise the
    shards have the members that the run knows, where they are now.

    Args:
        shards: the shards of this session, before anything is read from them.
        known: {path, fingerprint, count, ...} of each shard, in the order of their numbers.
        indexes: the folder with the run's lists of members.
        asked: how the run is updated; None if it is not.
        content: pictures are known by their bytes and not by their paths.
        limited: leave out new shards, because with them --limit would choose other images.
        complete: the run has all its rows.

    Returns:
        A new `ShardSet`; or `shards` itself if a shard of the run is missing and none of the bad
        shards has its name. The comparison of the manifests then reports the difference.

    Raises:
        UsageError: `update` refuses, or the names of members differ and no update is asked for.
    """
    by_content: dict[str, deque[ShardInfo]] = defaultdict(deque)
    for info in shards.infos:
        by_content[info.fingerprint].append(info)
    bad = dict(shards.bad)
    infos: list[ShardInfo | None] = [None] * len(known)
    lost: dict[int, str] = {}
    growth, more = Growth(), list[ShardInfo]()
    starts = np.cumsum([0, *(entry["count"] for entry in known)])
    for info, numbers, lists in _lists_of(shards.infos, known, indexes):
        by_content[info.fingerprint].remove(info)
        old, now = MemberIndex.joined(lists), info.members
        assert now is not None
        if not asked and (said := differences(old, now)):
            line = f"{info.path}: {said}. --update takes them into the run"
            if complete:
                raise UsageError(f"{line}. Or choose another --out.")
            growth.lines.append(f"{line} when it is complete")
        how = asked if complete else None
        found = update(str(info.path), old, now, how, content=content, complete=complete)
        if complete:
            at = np.concatenate([np.arange(*starts[number : number + 2]) for number in numbers])
            growth.again += at[found.again].tolist()
            growth.touched += at[found.touched].tolist()
            growth.removed += found.removed
            growth.renamed |= found.renamed
        first = 0
        for number in numbers:
            count = known[number]["count"]
            part = MemberIndex.packed(found.known.blocks(first, first + count))
            part = replace(part, folders=found.known.folders)
            first += count
            infos[number] = _listed(info, part, known[number]["fingerprint"])
        if asked and complete and len(found.more):
            salt = f"{found.more.digest()} {info.fingerprint} {starts[-1]}".encode()
            more.append(_listed(info, found.more, hashlib.sha256(salt).hexdigest()))
    for number, entry in enumerate(known):
        if (own := infos[number]) is not None:
            infos[number] = _fitted(own, entry)
        elif by_content[entry["fingerprint"]]:
            infos[number] = _fitted(by_content[entry["fingerprint"]].popleft(), entry)
        else:
            name = Path(entry.get("path") or "").name
            path = next((path for path in bad if storable(path.name) == name), None)
            if path is None:
                return shards
            lost[number] = bad.pop(path)
            infos[number] = replace(  # what is not known of it is copied from another shard
                shards.infos[0],
                path=path,
                count=entry["count"],
                fingerprint=entry["fingerprint"],
                stamp=None,
                members=None,
            )
    rest = {id(info) for left in by_content.values() for info in left}
    new = [info for info in shards.infos if id(info) in rest]
    there = [info for info in infos if info is not None]
    grown = [_fitted(info, known[0]) for info in more]
    renumbered = ShardSet(there if limited else [*there, *grown, *new], bad)
    renumbered.left_out = tuple(info.path for info in new) if limited else ()
    renumbered.lost.update(lost)
    renumbered.growth = growth
    return renumbered


def saved(
    known: Sequence[Mapping[str, Any]], indexes: Path, path: Path, read_as: ReadAs
) -> list[ShardInfo]:
    """The shards of a run by its lists alone, without a look at the source. For `known` and
    `indexes` see `as_before`; `path`: of the source.

    Raises:
        EnvironmentFault: a list cannot be read.
    """
    source, path = source_of(path)
    assert issubclass(source, MemberSource)
    infos = []
    for entry in known:
        file = indexes / f"{content_of(entry)}.npz"
        index = MemberIndex.load(file)
        if index is None or len(index) != entry["count"]:
            raise EnvironmentFault(f"{file}: missing or damaged. Restore this list of pictures")
        infos.append(_fitted(source.of_list(path, read_as, index, entry["fingerprint"]), entry))
    return infos


def content_of(entry: Mapping[str, Any]) -> str:
    """The name of a shard's list of members, without suffix."""
    return entry.get("content") or entry["fingerprint"]


def lists_before(known: Sequence[Mapping[str, Any]], indexes: Path) -> dict[str, MemberIndex]:
    """Path of a source -> the members that a run knows of it. For arguments see `as_before`."""
    found: dict[str, list[tuple[str, MemberIndex]]] = defaultdict(list)
    for entry in known:
        name = content_of(entry)
        index = MemberIndex.load(indexes / f"{name}.npz")
        if index is not None and entry.get("path"):
            found[entry["path"]].append((name, index))
    joined = dict[str, MemberIndex]()
    for path, pairs in found.items():
        names, lists = zip(*pairs, strict=True)
        joined[path] = replace(MemberIndex.joined(lists), folders=_folders(indexes, names))
    return joined


def _folders_file(indexes: Path, lists: Sequence[str]) -> Path:
    return indexes / f"{hashlib.sha256(' '.join(lists).encode()).hexdigest()}.folders.json"


def _folders(indexes: Path, lists: Sequence[str]) -> dict[str, list[int]]:
    """What `save_folders` has written beside these lists; {} if it is missing or damaged."""
    with suppress(OSError, ValueError):
        stamps = json.loads(_folders_file(indexes, lists).read_bytes())
        return stamps if isinstance(stamps, dict) else {}
    return {}


def _lists_of(
    infos: Sequence[ShardInfo], known: Sequence[Mapping[str, Any]], indexes: Path
) -> Iterator[tuple[ShardInfo, list[int], list[MemberIndex]]]:
    """Yields the sources that the run has lists of: the source, the numbers of its shards in the
    run, and their lists. It has the same path, or pictures in common: of several such sources it is
    the one with the most, and then the one whose path ends most alike."""
    groups: dict[str, list[tuple[int, MemberIndex]]] = defaultdict(list)
    for number, entry in enumerate(known):
        index = MemberIndex.load(indexes / f"{content_of(entry)}.npz")
        if index is not None and len(index) == entry["count"]:
            groups[entry.get("path") or ""].append((number, index))
    infos = [info for info in infos if info.members is not None]
    pairs = [(info, str(info.path)) for info in infos if str(info.path) in groups]
    stay = {path for _, path in pairs}
    moved = []  # (pictures that are the same, how alike the paths end), source, its path in the run
    for path in [path for path in groups if path not in stay]:
        old = MemberIndex.joined([index for _, index in groups[path]])
        for info in infos:
            assert info.members is not None
            if str(info.path) in stay:
                continue
            changes = compare(old, info.members)
            if (there := changes.found >= 0).any():
                ends = zip(reversed(path), reversed(str(info.path)), strict=False)
                alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], ends))
                moved.append(((int((there & ~changes.changed).sum()), alike), info, path))
    for _, info, path in sorted(moved, key=lambda each: each[0], reverse=True):
        if all(info is not one and path != was for one, was in pairs):
            pairs.append((info, path))
    for info, path in pairs:
        numbers, lists = zip(*groups[path], strict=True)
        yield info, [*numbers], [*lists]


def _listed(info: ShardInfo, members: MemberIndex, fingerprint: str) -> ShardInfo:
    """A shard of some of a source's members."""
    listed = None if fingerprint == info.fingerprint else info.fingerprint
    return replace(
        info, count=len(members), members=members, fingerprint=fingerprint, listed=listed
    )


def _fitted(info: ShardInfo, entry: Mapping[str, Any]) -> ShardInfo:
    fit = parse_fit(entry["fit"]) if entry.get("fit") else None
    return info.fitted(fit) if fit is not None and fit.shape == info.shape else info
