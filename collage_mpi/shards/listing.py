"""Sources of picture files: a folder with a folder for each class (as torchvision's ImageFolder),
and a text file that names pictures.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.shards.members import Listing, Member, list_bytes, name_text
from collage_mpi.shards.pictures import SUFFIXES
from collage_mpi.shards.remote import network_faults, opened, stat_of, url_of
from collage_mpi.shards.source import MemberSource, ReadAs
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
ASKED_AT_ONCE = 16  # parallel requests for the sizes of pictures at URLs
LISTS = (".txt", ".lst", ".list")  # endings of text files that name pictures
SPLITS = {"train", "training", "val", "valid", "validation", "test", "dev"}


@dataclass
class _Seen:
    """The entries that a walk over folders skipped or found twice.

    Attributes:
        folders: the real path of each folder that was walked.
        counts: kind (a key of SAID) -> number of entries.
        first: kind -> the first entry.
    """

    root: Path
    folders: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def note(self, what: str, path: str, number: int = 1) -> None:
        """Count entries of one kind, a key of SAID."""
        self.counts[what] = self.counts.get(what, 0) + number
        self.first.setdefault(what, name_text(os.path.relpath(path, self.root)))

    def warnings(self) -> tuple[str, ...]:
        """One sentence for each kind."""
        return tuple(
            f"{n:,} {SAID[what][n > 1]}{', such as' if n > 1 else ':'} {self.first[what]}"
            for what, n in self.counts.items()
        )


def list_folder(
    root: Path, names: Sequence[str] | None = None, *, strict: bool = True, labels: bool = True
) -> Listing:
    """List the pictures below `root`. Each folder directly in `root` is a class, whose pictures may
    be at any depth. Without such folders the pictures have no labels.

    Args:
        root: the folder of class folders, or of pictures.
        names: the classes in order; by default the sorted names of the folders.
        strict: if False and the folders cannot be classes, list pictures without labels, with a
            warning.
        labels: if False, the pictures get no labels.

    Raises:
        EnvironmentFault: a folder cannot be read.
        DataFault: there is no picture; if strict, there are pictures beside class folders, or a
            folder is not in `names`.
    """
    if not os.path.isdir(root):
        raise EnvironmentFault(f"{root}: not a folder. Give the folder that holds class folders.")
    seen = _Seen(root)
    loose, folders = _scan(root, seen)
    above = (os.path.realpath(root),)
    found = {entry.name: list(_walk(Path(entry.path), seen, above)) for entry in folders}
    found = {name: entries for name, entries in found.items() if entries}
    if not loose and not found:
        raise DataFault(f"{root}: no picture below it. Pictures end in {', '.join(SUFFIXES)}.")
    known = None if names is None else tuple(names)
    classes, notes = known, seen.warnings()
    numbers: dict[str, int | None] = dict.fromkeys(found)
    if found and labels:
        why = _no_classes(loose, sorted(found), known)
        if why and strict:
            raise DataFault(f"{root}: {why}")
        if why:
            notes = (f"{root}: {why}. The pictures are read without labels", *notes)
        else:
            classes = known or tuple(map(name_text, sorted(found)))
            notes = (*_warn_of_splits(root, sorted(found)), *notes)
            if known is None and not strict:
                shown = ", ".join(classes[:3]) + (", ..." if len(classes) > 3 else "")
                advice = "if they are none, give --input-labels none"
                notes = (f"{root}: its folders are taken for classes ({shown}); {advice}", *notes)
            numbers |= {name: classes.index(name_text(name)) for name in found}
    members = [_member(entry, root, None) for entry in loose]
    for name in sorted(found):
        members += [_member(entry, root, numbers[name]) for entry in found[name]]
    names_in_root = tuple(os.path.relpath(member.path, root) for member in members)
    return Listing(tuple(members), classes, notes, names_in_root)


def _no_classes(
    loose: Sequence[os.DirEntry[str]],
    folders: Sequence[str],
    names: tuple[str, ...] | None,
) -> str:
    """The reason why the folders cannot be classes; "" if they can."""
    if loose:
        return (
            f"holds {counted(len(loose), 'picture')}, such as {loose[0].name!r}, beside "
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


def _scan(folder: Path, seen: _Seen) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
    """(pictures, folders) directly in a folder, sorted by name. Skipped entries are noted in
    `seen`.

    A broken link counts as a picture if it has the name of one.
    """
    folders, files = [], []
    try:
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=_name):
                if entry.name.startswith("."):
                    seen.note(HIDDEN, entry.path)
                elif entry.is_dir():
                    folders.append(entry)
                elif is_picture(entry.name) and (entry.is_file() or _is_broken(entry)):
                    files.append(entry)
                else:
                    seen.note(BROKEN if _is_broken(entry) else OTHER, entry.path)
    except OSError as error:
        where = error.filename or folder  # an entry that is a cycle of links, or the folder
        raise EnvironmentFault(f"{where}: cannot be read: {error.strerror}") from error
    return files, folders


def _walk(folder: Path, seen: _Seen, above: tuple[str, ...]) -> Iterator[os.DirEntry[str]]:
    """Yields the pictures below a folder. `above`: the real paths of the folders that hold it."""
    real = os.path.realpath(folder)
    if real in above:
        seen.note(LOOP, str(folder))
        return
    files, folders = _scan(folder, seen)
    if real in seen.folders and files:
        seen.note(TWICE, files[0].path, len(files))
    seen.folders.add(real)
    yield from files
    for entry in folders:
        yield from _walk(Path(entry.path), seen, (*above, real))


def _is_broken(entry: os.DirEntry[str]) -> bool:
    return entry.is_symlink() and not os.path.exists(entry.path)


def _name(entry: os.DirEntry[str]) -> str:
    return entry.name


def _member(entry: os.DirEntry[str], root: Path, label: int | None) -> Member:
    name = name_text(os.path.relpath(entry.path, root))
    if _is_broken(entry):
        return Member(name, entry.path, 0, 0, label, "a link that leads nowhere")
    return Member(name, entry.path, entry.stat().st_size, 0, label)


def is_picture(name: str) -> bool:
    """Whether a file's name has the suffix of a picture."""
    return name.lower().endswith(SUFFIXES)


class FolderSource(MemberSource):
    """A folder of pictures. The folders in it are taken as classes if possible."""

    name = "folder"

    @classmethod
    def takes(cls, path: Path) -> bool:
        return os.path.isdir(path)

    @classmethod
    def listed(cls, path: Path, read_as: ReadAs) -> Listing:
        return list_folder(path, read_as.class_names, strict=False, labels=read_as.labels)

    @classmethod
    def _file(cls, path: Path, name: str) -> str:
        return os.path.join(path, name)


class ListSource(MemberSource):
    """A text file that names one picture a line: by URL, or by path relative to the file's
    folder."""

    name, remote = "list", True

    @classmethod
    def takes(cls, path: Path) -> bool:
        return path.suffix.lower() in LISTS and bool(url_of(path) or os.path.isfile(path))

    @classmethod
    def listed(cls, path: Path, read_as: ReadAs) -> Listing:
        with network_faults(path), opened(path, in_order=True) as stream:
            most = list_bytes(stat_of(path)[0])
            text = stream.read(most + 1)
        if len(text) > most:
            raise DataFault(f"{path}: is longer than {most:,} bytes. Split the list.")
        lines = os.fsdecode(text).splitlines()
        names = [line.strip() for line in lines if line.strip()]
        if not names:
            raise DataFault(f"{path}: names no picture; needed: the path of one picture a line")
        with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
            members = [*pool.map(_named, [cls._file(path, name) for name in names], names)]
        doubles = [name for name, count in Counter(names).items() if count > 1]
        notes = [
            f"{path}: {counted(len(names) - len(set(names)), 'line')} for a picture that was named "
            f"before, such as {name_text(name)}: it is read for each"
            for name in doubles[:1]
        ]
        return Listing(tuple(members), read_as.class_names, tuple(notes), names=tuple(names))

    @classmethod
    def _file(cls, path: Path, name: str) -> str:
        return name if url_of(name) else os.path.join(path.parent, name)


def _named(file: str, name: str) -> Member:
    """A picture of a list. A missing picture is listed too, with a fault, so that it gets a row."""
    try:
        if url_of(file):
            return Member(name_text(name), file, stat_of(file)[0])
        found = os.stat(file)
    except EnvironmentFault as unread:
        return Member(name_text(name), file, 0, fault=str(unread))
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", None) or str(error)
        return Member(name_text(name), file, 0, fault=f"cannot be read: {why}")
    fault = None if stat.S_ISREG(found.st_mode) else "a folder, pipe or device, not a file"
    return Member(name_text(name), file, found.st_size, fault=fault)
