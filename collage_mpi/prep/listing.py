"""Lists the pictures in folders by class (ImageFolder). Nothing is opened or written here."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.shards.pictures import SUFFIXES
from collage_mpi.system.printable import counted, storable

HIDDEN, BROKEN, OTHER, TWICE = "hidden", "broken", "other", "twice"
ENDS = f"not end in {', '.join(SUFFIXES)}"
SAID = {  # what is said of one, and of several
    HIDDEN: ("hidden file or folder is passed over", "hidden files or folders are passed over"),
    BROKEN: ("link leads nowhere", "links lead nowhere"),
    OTHER: (
        f"file is passed over, whose name does {ENDS}",
        f"files are passed over, whose names do {ENDS}",
    ),
    TWICE: (
        "picture is taken twice, as a link leads to its folder",
        "pictures are taken twice, as a link leads to their folder",
    ),
}
SPLITS = {"train", "training", "val", "valid", "validation", "test", "dev"}


@dataclass(frozen=True)
class Member:
    """One picture, not read yet.

    Attributes:
        id: its place relative to the given folder or file; a name in the results, never a
            path to write to.
        path: the file that holds it.
        nbytes: of the picture.
        offset: where it starts in that file; 0 for a file of its own.
        label: class number, or None.
        fault: why it cannot be used, even if its bytes are sound; None for a good one.
    """

    id: str
    path: str
    nbytes: int
    offset: int = 0
    label: int | None = None
    fault: str | None = None


@dataclass(frozen=True)
class Listing:
    """All pictures in sorted order. Either all have labels or none has, except pictures with a
    fault.

    Attributes:
        warnings: sentences for the user.
    """

    members: tuple[Member, ...]
    class_names: tuple[str, ...] | None
    warnings: tuple[str, ...] = ()


@dataclass
class _Seen:
    """What a walk over folders skipped or found twice: how often, and the first one.

    Attributes:
        folders: the real path of each folder that was walked.
    """

    root: Path
    folders: set[str] = field(default_factory=set)
    counts: dict[str, int] = field(default_factory=dict)
    first: dict[str, str] = field(default_factory=dict)

    def note(self, what: str, path: str, number: int = 1) -> None:
        """Count a skipped name of one sort, a key of SAID."""
        self.counts[what] = self.counts.get(what, 0) + number
        self.first.setdefault(what, name_text(os.path.relpath(path, self.root)))

    def warnings(self) -> tuple[str, ...]:
        """One sentence for each sort."""
        return tuple(
            f"{n:,} {SAID[what][n > 1]}{', such as' if n > 1 else ':'} {self.first[what]}"
            for what, n in self.counts.items()
        )


def list_folder(root: Path, names: Sequence[str] | None = None) -> Listing:
    """Pictures below `root`. Each folder in it is a class, at any depth; without folders there are
    no labels.

    Args:
        root: the folder of class folders, or of pictures.
        names: the classes in order, if they are not the sorted folder names.

    Raises:
        EnvironmentFault: a folder cannot be read.
        DataFault: no picture, pictures beside class folders, or a folder that is no class.
    """
    if not os.path.isdir(root):
        raise EnvironmentFault(f"{root}: not a folder. Give the folder that holds class folders.")
    seen = _Seen(root)
    loose, folders = _scan(root, seen)
    found = {entry.name: list(_walk(Path(entry.path), seen)) for entry in folders}
    found = {name: entries for name, entries in found.items() if entries}
    if loose and found:
        raise DataFault(
            f"{root}: holds {counted(len(loose), 'picture')}, such as {loose[0].name!r}, beside "
            f"{counted(len(found), 'folder')} of pictures; needed: pictures in one folder a class, "
            "or no folders at all"
        )
    if not loose and not found:
        raise DataFault(f"{root}: no picture below it. Pictures end in {', '.join(SUFFIXES)}.")
    if loose:
        known = None if names is None else tuple(names)
        members = [_member(entry, root, None) for entry in loose]
        return Listing(tuple(members), known, seen.warnings())
    classes = _classes(root, sorted(found), names)
    numbers = {name: number for number, name in enumerate(classes)}
    members = [
        _member(entry, root, numbers[name_text(name)])
        for name in sorted(found)
        for entry in found[name]
    ]
    return Listing(tuple(members), classes, _warn_of_splits(root, classes) + seen.warnings())


def _classes(root: Path, folders: Sequence[str], names: Sequence[str] | None) -> tuple[str, ...]:
    classes = tuple(name_text(name) for name in folders)
    if names is None:
        return classes
    unknown = [name for name in classes if name not in set(names)]
    if unknown:
        raise DataFault(
            f"{root}: folder {unknown[0]!r} is none of the {len(names)} classes named; name it "
            "too, or move it away"
        )
    return tuple(names)


def _warn_of_splits(root: Path, classes: Sequence[str]) -> tuple[str, ...]:
    if not {name.lower() for name in classes} <= SPLITS:
        return ()
    first = root / classes[0]
    return (
        f"the classes are {', '.join(classes)}: are these parts of the data set, with the class "
        f"folders inside? Then give {first}, and the others each in its turn",
    )


def _scan(folder: Path, seen: _Seen) -> tuple[list[os.DirEntry[str]], list[os.DirEntry[str]]]:
    """(pictures, folders) directly in a folder, sorted by name; skipped entries are noted.

    A link that leads nowhere counts as a picture if its name looks like one.
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
        where = error.filename or folder  # an entry of it that is a link in a circle, or itself
        raise EnvironmentFault(f"{where}: cannot be read: {error.strerror}") from error
    return files, folders


def _walk(folder: Path, seen: _Seen, above: tuple[str, ...] = ()) -> Iterator[os.DirEntry[str]]:
    real = os.path.realpath(folder)
    if real in above:
        return  # a link that leads back up
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
    name = name_text(Path(entry.path).relative_to(root).as_posix())
    if _is_broken(entry):
        return Member(name, entry.path, 0, 0, label, "a link that leads nowhere")
    return Member(name, entry.path, entry.stat().st_size, 0, label)


def is_picture(name: str) -> bool:
    """Whether a file's name has the ending of a picture."""
    return name.lower().endswith(SUFFIXES)


def name_text(name: str) -> str:
    """A file's name as text that a shard can hold; other bytes and NUL become \\xNN."""
    return storable(name).replace("\0", "\\x00")
