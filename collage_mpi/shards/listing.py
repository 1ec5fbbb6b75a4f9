"""Sources of picture files: a folder with a folder for each class (as torchvision's ImageFolder),
a text file or a table that names pictures, and tar files with the layout of WebDataset. Nothing is
extracted of a tar file: pictures are read from it, so the names of members are never used as paths.
"""

from __future__ import annotations

import heapq
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import BinaryIO

import numpy as np

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.shards.column import Column, pieces
from collage_mpi.shards.members import (
    Listing,
    Member,
    MemberIndex,
    Stream,
    list_bytes,
    name_text,
)
from collage_mpi.shards.pictures import SUFFIXES
from collage_mpi.shards.remote import network_faults, opened, stat_of, url_of
from collage_mpi.shards.schema import ShardInfo, split_part
from collage_mpi.shards.source import MemberSource, ReadAs, RowColumns
from collage_mpi.shards.tables import ListedColumns, names_pictures, reader_of
from collage_mpi.shards.update import Known, repeated
from collage_mpi.system.files import reading, require_regular
from collage_mpi.system.printable import counted

HIDDEN, BROKEN, LOOP, OTHER, TWICE = "hidden", "broken", "loop", "other", "twice"
ENDS = f"not end in {', '.join(SUFFIXES)}"
SAID = {  # kind of a skipped or repeated entry -> message for one, and for several
    HIDDEN: ("hidden file or folder is passed over", "hidden files or folders are passed over"),
    BROKEN: ("link leads nowhere", "links lead nowhere"),
    LOOP: (
        "link leads to a folder that holds it and is passed over",
        "links lead to a folder that holds them and are passed over",
    ),
    OTHER: (
        f"file is passed over, whose name does {ENDS}",
        f"files are passed over, whose names do {ENDS}",
    ),
    TWICE: (
        "picture is taken twice, as a link leads to its folder",
        "pictures are taken twice, as a link leads to their folder",
    ),
}
SORTED_AT_ONCE = 1 << 16  # pictures of a folder
READ_AT_ONCE = 1 << 22  # bytes of a list
NAMED_AT_ONCE = 1 << 12  # lines of a list
ASKED_AT_ONCE = 16  # parallel requests for the sizes of pictures at URLs
LISTS = (".txt", ".lst", ".list")  # endings of text files that name pictures
SPLITS = {"train", "training", "val", "valid", "validation", "test", "dev"}


@dataclass
class _Seen:
    """The entries that a walk over folders skipped or found twice.

    Attributes:
        in_time: is called for each entry, and raises if it takes too long.
        merges: the pictures of a folder are in order; otherwise only SORTED_AT_ONCE of them are, so
            that the first ones come before the whole folder was read.
        before: pictures that are known, if folders are trusted.
        folders: the real path of each folder that was walked.
        stamps: see `MemberIndex.folders`.
        counts: kind (a key of SAID) -> number of entries.
        first: kind -> the first entry.
    """

    root: Path
    in_time: Callable[[], object] = int
    merges: bool = True
    before: Known | None = None
    folders: set[str] = field(default_factory=set)
    stamps: dict[str, list[int]] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def note(self, what: str, path: str, number: int = 1) -> None:
        """Count entries of one kind, a key of SAID."""
        self.counts[what] = self.counts.get(what, 0) + number
        self.first.setdefault(what, name_text(os.path.relpath(path, self.root)))

    def inside(self, path: str) -> str:
        """A path below the root, from there."""
        return path[self._start :]

    @cached_property
    def _start(self) -> int:
        return len(os.path.join(self.root, ""))

    def key(self, entry: os.DirEntry[str]) -> bytes:
        """The name of a picture in a list."""
        return os.fsencode(self.inside(entry.path))

    def known_in(self, folder: str) -> Known | None:
        """The pictures that are known, if nothing in a folder has another name than before. Its
        stamp is noted. Raises OSError."""
        about, inside = os.stat(folder), self.inside(folder)
        self.stamps[inside] = stamp = [about.st_ctime_ns, about.st_ino]
        same = self.before is not None and self.before.folders.get(inside) == stamp
        return self.before if same else None

    def warnings(self) -> tuple[str, ...]:
        """One sentence for each kind."""
        return tuple(
            f"{n:,} {SAID[what][n > 1]}{', such as' if n > 1 else ':'} {self.first[what]}"
            for what, n in self.counts.items()
        )


def list_folder(
    root: Path,
    names: Sequence[str] | None = None,
    *,
    strict: bool = True,
    labels: bool = True,
    in_time: Callable[[], object] = int,
    before: MemberIndex | None = None,
) -> Listing:
    """List the pictures below `root`. Each folder directly in `root` is a class, whose pictures may
    be at any depth. Without such folders the pictures have no labels.

    Args:
        root: the folder of class folders, or of pictures.
        names: the classes in order; by default the sorted names of the folders.
        strict: if False and the folders cannot be classes, list pictures without labels, with a
            warning.
        labels: if False, the pictures get no labels.
        in_time: see `ReadAs`.
        before: a list whose sizes and times are taken where a folder has its stamp of then.

    Raises:
        EnvironmentFault: a folder cannot be read.
        DataFault: there is no picture; if strict, there are pictures beside class folders, or a
            folder is not in `names`.
    """
    if not os.path.isdir(root):
        raise EnvironmentFault(f"{root}: not a folder. Give the folder that holds class folders.")
    seen = _Seen(root, in_time, before=None if before is None else Known(before))
    found = list[str]()  # the folders with pictures
    loose = 0

    def members() -> Iterator[tuple[str, Member]]:
        nonlocal loose
        for name, member in _below(seen):
            folder, inside, _ = name.partition(os.sep)
            if not inside:
                loose += 1
                yield name, member
                continue
            if found[-1:] != [folder]:
                found.append(folder)
            yield name, replace(member, label=len(found) - 1)

    index = MemberIndex.of(members())
    if not len(index):
        raise DataFault(f"{root}: no picture below it. Pictures end in {', '.join(SUFFIXES)}.")
    known = None if names is None else tuple(names)
    classes, notes, numbers = known, seen.warnings(), list[int]()
    if found and labels:
        why = _no_classes(loose, index.name(0), found, known)
        if why and strict:
            raise DataFault(f"{root}: {why}")
        if why:
            notes = (f"{root}: {why}. The pictures are read without labels", *notes)
        else:
            classes = known or tuple(map(name_text, found))
            notes = (*_warn_of_splits(root, found), *notes)
            if known is None and not strict:
                shown = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
                advice = "if they are none, give --input-labels none"
                notes = (f"{root}: its folders are taken for classes ({shown}); {advice}", *notes)
            numbers = [classes.index(name_text(name)) for name in found]
    own = None
    if numbers and index.labels is not None:
        own = Column.of(np.array(numbers)[some] for some in pieces(index.labels))
    index = replace(index, labels=own, folders=seen.stamps)
    return Listing(index, lambda row: os.path.join(root, index.name(row)), classes, notes)


def _no_classes(
    loose: int, first: str, folders: Sequence[str], names: tuple[str, ...] | None
) -> str:
    """The reason why the folders cannot be classes; "" if they can. `loose`: number of pictures
    beside them, of which `first` is one."""
    if loose:
        return (
            f"holds {counted(loose, 'picture')}, such as {first!r}, beside "
            f"{counted(len(folders), 'folder')} of pictures; needed: pictures in one folder a "
            "class, or no folders at all"
        )
    known = None if names is None else set(names)
    unknown = [name for name in map(name_text, folders) if known is not None and name not in known]
    if not unknown:
        return ""
    return (
        f"folder {unknown[0]!r} is none of the {len(names or ())} classes named; name it too, or "
        "move it away"
    )


def _warn_of_splits(root: Path, folders: Sequence[str]) -> tuple[str, ...]:
    classes = [name_text(name) for name in folders]
    if not {name.lower() for name in classes} <= SPLITS:
        return ()
    first = root / classes[0]
    return (
        f"the classes are {', '.join(classes)}: are these parts of the data set, with the class "
        f"folders inside? Then give {first}, and the others each in its turn",
    )


def _below(seen: _Seen) -> Iterator[tuple[str, Member]]:
    """Yields the pictures below the root by their paths there."""
    walked = _walk(str(seen.root), seen, ())
    return ((seen.inside(path), member) for path, member in walked)


def _scan(folder: str, seen: _Seen, folders: list[str]) -> Iterator[tuple[str, Member]]:
    """Yields the pictures directly in a folder by their names, in order, and then has added its
    folders.

    A broken link counts as a picture if it has the name of one. The pictures of a large folder are
    sorted on the disk.
    """
    runs, files = list[MemberIndex](), list[os.DirEntry[str]]()
    odd: dict[str, list[str]] = {HIDDEN: [], BROKEN: [], OTHER: []}
    try:
        known = seen.known_in(folder)
        with os.scandir(folder) as entries:
            for entry in entries:
                seen.in_time()
                if entry.name.startswith("."):
                    odd[HIDDEN].append(entry.path)
                elif entry.is_dir():
                    folders.append(entry.name)
                elif is_picture(entry.name) and (entry.is_file() or _is_broken(entry)):
                    files.append(entry)
                else:
                    odd[BROKEN if _is_broken(entry) else OTHER].append(entry.path)
                if len(files) >= SORTED_AT_ONCE:
                    members = _members(files, seen, known)
                    if seen.merges:
                        runs.append(MemberIndex.of(members))
                    else:
                        yield from members
                    files = []
        members = _members(files, seen, known)
    except OSError as error:
        where = error.filename or folder  # an entry that is a cycle of links, or the folder
        raise EnvironmentFault(f"{where}: cannot be read: {error.strerror}") from error
    for what, paths in odd.items():
        if paths:
            seen.note(what, min(paths), len(paths))
    folders.sort()
    yield from heapq.merge(*map(_of_run, runs), members, key=_name)


def _of_run(run: MemberIndex) -> Iterator[tuple[str, Member]]:
    for block in run.blocks():
        yield from ((name := block.name(row), block.member(row, name)) for row in range(len(block)))


def _walk(folder: str, seen: _Seen, above: tuple[str, ...]) -> Iterator[tuple[str, Member]]:
    """Yields the pictures below a folder by their paths. `above`: the real paths of the folders
    that hold it."""
    real = os.path.realpath(folder)
    if real in above:
        seen.note(LOOP, folder)
        return
    folders = list[str]()
    twice = real in seen.folders
    seen.folders.add(real)
    for name, member in _scan(folder, seen, folders):
        path = os.path.join(folder, name)
        if twice:
            seen.note(TWICE, path)
        yield path, member
    for name in folders:
        yield from _walk(os.path.join(folder, name), seen, (*above, real))


def _is_broken(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _name(named: tuple[str, Member]) -> str:
    return named[0]


def _members(
    entries: Iterable[os.DirEntry[str]], seen: _Seen, known: Known | None
) -> list[tuple[str, Member]]:
    """Pictures of a folder by their names, in order. `known`: those that need not be looked at. A
    link is looked at, as what it leads to is in another folder. Raises OSError."""
    found, facts = list[tuple[str, Member]](), dict[bytes, tuple[int, int]]()
    if known is not None:
        facts = known.facts([seen.key(entry) for entry in entries])
    for entry in entries:
        seen.in_time()
        own = facts.get(seen.key(entry)) if facts and not entry.is_symlink() else None
        kept = own and Member(entry.name, entry.path, own[0], time_ns=own[1])
        found.append((entry.name, kept or _member(entry)))
    found.sort(key=_name)
    return found


def _member(entry: os.DirEntry[str]) -> Member:
    if _is_broken(entry):
        return Member(entry.name, entry.path, 0, fault="a link that leads nowhere")
    about = entry.stat()
    return Member(entry.name, entry.path, about.st_size, time_ns=about.st_mtime_ns)


def is_picture(name: str) -> bool:
    """Whether a file's name has the suffix of a picture."""
    return name.lower().endswith(SUFFIXES)


class FolderSource(MemberSource):
    """A folder of pictures. The folders in it are taken as classes if possible."""

    name, checks = "folder", "members"

    @classmethod
    def takes(cls, path: Path) -> bool:
        return os.path.isdir(path)

    @classmethod
    def listed(cls, path: Path, read_as: ReadAs) -> Listing:
        return list_folder(
            path,
            read_as.class_names,
            strict=False,
            labels=read_as.labels,
            in_time=read_as.in_time,
            before=read_as.before.get(str(path)) if read_as.trust_dirs else None,
        )

    @classmethod
    def stream(cls, path: Path, read_as: ReadAs) -> Stream | None:
        if read_as.labels:  # which folders are classes is known at the end
            return None
        seen = _Seen(path, merges=False)
        return Stream(_below(seen), seen.warnings)

    @classmethod
    def _file(cls, path: Path, name: str) -> str:
        return os.path.join(path, name)


class ListSource(MemberSource):
    """A text file that names one picture a line: by URL, or by path relative to the file's folder.
    Or a table with such a column, in which a member's offset is its row."""

    name, remote, checks = "list", True, "members"

    @classmethod
    def takes(cls, path: Path) -> bool:
        file = split_part(path)[0]
        known = file.suffix.lower() in LISTS or reader_of(path) is not None
        there = known and bool(url_of(file) or os.path.isfile(file))
        return there and (file.suffix.lower() != ".parquet" or names_pictures(path))

    @classmethod
    def columns(cls, info: ShardInfo) -> RowColumns | None:
        reader = reader_of(info.path)
        return None if reader is None else ListedColumns(reader(info.path), cls._known(info))

    @classmethod
    def listed(cls, path: Path, read_as: ReadAs) -> Listing:
        index = MemberIndex.of(cls._each(path, read_as.in_time))
        if not len(index):
            raise DataFault(f"{path}: names no picture; needed: the path of one picture a line")
        doubles = repeated(index)
        notes = [
            f"{path}: {counted(len(doubles), 'line')} for a picture that was named before, such as "
            f"{name_text(index.name(row))}: it is read for each"
            for row in doubles[:1].tolist()
        ]
        return Listing(
            index, lambda row: cls._file(path, index.name(row)), read_as.class_names, tuple(notes)
        )

    @classmethod
    def stream(cls, path: Path, read_as: ReadAs) -> Stream:
        return Stream(cls._each(path))

    @classmethod
    def _each(cls, path: Path, in_time: Callable[[], object] = int) -> Iterator[tuple[str, Member]]:
        reader, row = reader_of(path), 0
        names = cls._lines(path) if reader is None else iter(reader(path).pictures())
        with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
            while some := [*islice(names, NAMED_AT_ONCE)]:
                for name, member in pool.map(_named, some, [cls._file(path, one) for one in some]):
                    in_time()
                    yield name, member if reader is None else replace(member, offset=row)
                    row += 1

    @staticmethod
    def _lines(path: Path) -> Iterator[str]:
        with network_faults(path), opened(path, in_order=True) as stream:
            left = most = list_bytes(stat_of(path)[0])
            rest = b""
            while text := stream.read(min(left + 1, READ_AT_ONCE)):
                left -= len(text)
                if left < 0:
                    raise DataFault(f"{path}: is longer than {most:,} bytes. Split the list.")
                whole, _, rest = (rest + text).rpartition(b"\n")
                yield from filter(None, map(str.strip, os.fsdecode(whole).splitlines()))
            yield from filter(None, map(str.strip, os.fsdecode(rest).splitlines()))

    @classmethod
    def _file(cls, path: Path, name: str) -> str:
        return name if url_of(name) else os.path.join(split_part(path)[0].parent, name)

    @classmethod
    def _member(cls, path: Path, index: MemberIndex, row: int, time_ns: int = 0) -> Member:
        return replace(super()._member(path, index, row, time_ns), offset=0)


def _named(name: str, file: str) -> tuple[str, Member]:
    """A picture of a list, by its name. A missing picture is listed too, with a fault, so that it
    gets a row."""
    try:
        if not url_of(file):
            require_regular(file)
        size, time_ns, _ = stat_of(file)
        return name, Member(name_text(name), file, size, time_ns=time_ns)
    except EnvironmentFault as unread:
        return name, Member(name_text(name), file, 0, fault=str(unread))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", None) or str(error)
        return name, Member(name_text(name), file, 0, fault=f"cannot be read: {why}")


LABEL_KEYS = ("cls", "label", "class", "class_name")  # in a .json member; the first that exists
LARGEST_LABEL_BYTES = 1 << 20
BLOCK_BYTES = 512  # of the tar format
LARGEST_CLASS = 2**31 - 1  # results keep a label as int32


class LabelFault(DataFault):
    """The labels cannot be used. The pictures may be sound."""


# A picture and its class from the tar file: a number, a name, or None.
Sample = tuple[Member, int | str | None]


def list_tars(
    paths: Sequence[Path],
    names: Sequence[str] | None = None,
    *,
    label_key: str | None = None,
    picture: str | None = None,
    labels: bool = True,
) -> Listing:
    """Pictures of tar files, in the order of the files.

    Args:
        paths: tar files. They must not be compressed, because pictures are read in any order.
        names: the classes in order; by default the sorted class names. Classes given by number
            have no names by default.
        label_key: key of the label in `.json` members; by default the first of `LABEL_KEYS`
            that exists.
        picture: the extension of the image if a sample has several, such as "jpg".
        labels: if False, the pictures get no labels.

    Raises:
        EnvironmentFault: a file cannot be read.
        DataFault: a file is damaged, compressed or truncated, or its labels cannot be used. A
            picture whose own label cannot be read is listed with a `fault`, unless all are so.
    """
    samples: list[Sample] = []
    for path in paths:
        with reading(path):
            samples += _samples(path, label_key, picture)
    if not labels:
        samples = [(replace(member, fault=None), None) for member, _ in samples]
    if not samples:
        raise DataFault(f"{paths[0]}: no picture in it. Pictures end in {', '.join(SUFFIXES)}.")
    good = [sample for sample in samples if sample[0].fault is None]
    if not good:
        raise LabelFault(f"{samples[0][0].id}: {samples[0][0].fault}")
    found, classes = _resolve(good, None if names is None else tuple(names))
    numbers = iter(found)
    members = [m if m.fault else replace(m, label=next(numbers)) for m, _ in samples]
    index = MemberIndex.of((member.id, member) for member in members)
    return Listing(index, lambda row: members[row].path, classes)


def _samples(path: Path, label_key: str | None, picture: str | None) -> Iterator[Sample]:
    pictures: dict[str, tuple[str, Member]] = {}  # key -> (extension, member)
    answers: dict[str, int | str] = {}
    faults: dict[str, str] = {}  # key -> why its label cannot be read
    time_ns = stat_of(path)[1]
    with network_faults(path), opened(path) as stream:
        for info in _headers(path, stream):
            key, extension = split_key(info.name)
            if f".{extension}".endswith(SUFFIXES):
                if picture is not None and extension != picture.lower().lstrip("."):
                    continue
                if key in pictures:
                    raise _two_pictures(path, key, pictures[key][0], extension)
                name = name_text(f"{path.name}:{info.name}")
                where = Member(name, str(path), info.size, info.offset_data, time_ns=time_ns)
                pictures[key] = (extension, where)
            elif extension.rpartition(".")[2] in ("cls", "json"):
                try:
                    answer = _answer(stream, info, extension, label_key)
                except DataFault as fault:
                    faults[key] = str(fault)
                    continue
                if answer is not None:
                    answers[key] = answer
    for key, (_, member) in pictures.items():
        yield replace(member, fault=faults.get(key)), answers.get(key)


def _headers(path: Path, stream: BinaryIO) -> Iterator[tarfile.TarInfo]:
    """Yields the regular members in order. Raises DataFault if the tar file is truncated."""
    try:
        with tarfile.open(fileobj=stream, mode="r:") as tar:
            size = stat_of(path)[0]
            for info in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                if info.offset_data + info.size > size:
                    raise DataFault(f"{path}: cut off within {name_text(info.name)!r}. Copy it.")
                if info.isreg() and not info.issparse():
                    yield info
            stream.seek(tar.offset)
            end = stream.read(BLOCK_BYTES)
    except (tarfile.TarError, ValueError, UnicodeError) as error:
        raise DataFault(
            f"{path}: not a plain tar file ({error}). If it is compressed, unpack it "
            "(gunzip, unzstd): pictures are read from where they lie in it."
        ) from error
    if len(end) < BLOCK_BYTES or end.strip(b"\0"):
        raise DataFault(f"{path}: damaged or cut off at byte {tar.offset:,}. Copy it again.")


def split_key(name: str) -> tuple[str, str]:
    """Split a member's name as WebDataset does into the key of its sample and its extension.

    The extension, in lower case, starts at the first dot of the last part of the path:
    "a.b/c.seg.png" is "a.b/c" and "seg.png".
    """
    folder, slash, last = name.rpartition("/")
    stem, _, extension = last.partition(".")
    return folder + slash + stem, extension.lower()


def _two_pictures(path: Path, key: str, one: str, other: str) -> DataFault:
    how = f"say which is the image with --picture {one} or --picture {other}"
    how = "a key names one sample" if one == other else how
    return DataFault(f"{path}: key {name_text(key)!r} has two pictures, .{one} and .{other}: {how}")


def _answer(
    stream: BinaryIO, info: tarfile.TarInfo, extension: str, label_key: str | None
) -> int | str | None:
    """The class in a .cls or .json member. Raises DataFault."""
    name = name_text(info.name)
    if info.size > LARGEST_LABEL_BYTES:
        raise DataFault(f"{name} has {info.size:,} bytes; that is no label")
    here = stream.tell()  # tarfile reads the next header from here
    stream.seek(info.offset_data)
    data = stream.read(info.size)
    stream.seek(here)
    try:
        text = data.decode("utf-8").strip()
        if extension.endswith("cls"):
            return _class(name, int(text)) if text.isdecimal() else text or None
        record = json.loads(text)
    except RecursionError as error:
        raise DataFault(f"{name} cannot be read: its lists are nested too deeply") from error
    except ValueError as error:  # for a huge number Python adds advice after a semicolon
        raise DataFault(f"{name} cannot be read: {str(error).partition(';')[0]}") from error
    return _answer_in(name, record, label_key)


def _class(name: str, number: int) -> int:
    if 0 <= number <= LARGEST_CLASS:
        return number
    text = str(number)
    text = text if len(text) <= 20 else f"a number of {len(text)} digits"
    raise DataFault(f"{name}: {text} is no class number; needed: 0 to {LARGEST_CLASS}")


def _answer_in(name: str, record: object, label_key: str | None) -> int | str | None:
    if not isinstance(record, dict):
        raise DataFault(f'{name} is no JSON object; needed: such as {{"label": 3}}')
    keys = (label_key,) if label_key else LABEL_KEYS
    value = next((record[key] for key in keys if key in record), None)
    if type(value) is int:
        return _class(name, value)
    if isinstance(value, str):
        return value
    if value is None and label_key is None:
        return None
    raise DataFault(
        f"{name}: no class under {' or '.join(map(repr, keys))} ({value!r:.60}); it holds "
        f"{', '.join(sorted(record)[:12]) or 'nothing'}: say which with --label-key"
    )


def _resolve(
    samples: Sequence[Sample], names: tuple[str, ...] | None
) -> tuple[Sequence[int | None], tuple[str, ...] | None]:
    """The number of each picture's class, and the names of the classes."""
    numbered = {member.id: each for member, each in samples if isinstance(each, int)}
    named = {member.id: each for member, each in samples if isinstance(each, str)}
    without = [member.id for member, answer in samples if answer is None]
    if without and (numbered or named):
        raise LabelFault(
            f"{without[0]}: no .cls and no .json with a class beside it; {len(without):,} of "
            f"{len(samples):,} pictures have none. Either all pictures or none must have a label."
        )
    if numbered and named:
        (number, one), (name, other) = next(iter(numbered.items())), next(iter(named.items()))
        raise LabelFault(
            f"{number} has the class {one} and {name} {other!r}: give all by number or all by name"
        )
    if not named:
        return [answer for _, answer in samples if not isinstance(answer, str)], names
    classes = tuple(sorted({*named.values()})) if names is None else names
    numbers = {name: number for number, name in enumerate(classes)}
    for member, answer in samples:
        if answer not in numbers:
            raise LabelFault(f"{member.id}: class {answer!r} is none of the {len(classes)} named")
    return [numbers[str(answer)] for _, answer in samples], classes


class TarSource(MemberSource):
    """One tar file."""

    name, remote, checks = "tar", True, "file"  # each read opens the file by its name
    suffixes = (".tar",)

    @classmethod
    def listed(cls, path: Path, read_as: ReadAs) -> Listing:
        if not read_as.labels:
            return list_tars([path], labels=False)
        try:
            return list_tars([path], read_as.class_names)
        except LabelFault as fault:
            raise DataFault(f"{fault}. --input-labels none takes no labels") from fault

    @classmethod
    def _file(cls, path: Path, name: str) -> str:
        return str(path)
