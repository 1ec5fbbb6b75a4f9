"""Lists the groups and datasets in an HDF5 file of another program. Only what lies in the file
itself is used, never a link to another file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from collage_mpi.errors import DataFault
from collage_mpi.shards.hdf5 import import_h5py

MAX_LISTED = 8
DEEPEST = 4  # levels of groups that are looked through: links may lead back up
MAX_GROUPS = 1000


class ForeignFault(DataFault):
    """The file of another program was not understood; the message says what to type."""


def own_dataset(file: Any, name: str) -> Any:
    """A dataset by name. Raises ForeignFault if it lies outside this file."""
    h5py = import_h5py()
    if name not in file:
        raise ForeignFault(f"has no dataset {name!r}; it holds {listed(file)}")
    item = file[name]
    if not isinstance(item, h5py.Dataset) or not _is_here(file, name):
        raise ForeignFault(f"{name!r} is no dataset of this file itself: a group, or a link")
    if item.is_virtual or item.external:
        raise ForeignFault(f"dataset {name!r} lies in other files: name those instead")
    return item


def datasets(file: Any, group: str) -> Iterator[tuple[str, Any]]:
    """(name, dataset) directly in a group; links to other places are left out."""
    h5py = import_h5py()
    for name in file[group] if group else file:
        whole = f"{group}/{name}" if group else name
        if _is_here(file, whole) and isinstance(file[whole], h5py.Dataset):
            yield whole, file[whole]


def groups_below(file: Any, top: str = "") -> list[str]:
    """A group and the groups in it, `DEEPEST` levels down; the root is ""."""
    found = level = [top]
    for _ in range(DEEPEST):
        level = [
            whole
            for group in level
            for name in (file[group] if group else file)
            if _is_group(file, whole := f"{group}/{name}" if group else name)
        ]
        found = [*found, *level][:MAX_GROUPS]
        level = level[:MAX_GROUPS]
    return found


def _is_group(file: Any, name: str) -> bool:
    return _is_here(file, name) and isinstance(file[name], import_h5py().Group)


def _is_here(file: Any, name: str) -> bool:
    """Whether a name is neither a soft nor an external link."""
    return isinstance(file.get(name, getlink=True), import_h5py().HardLink)


def listed(file: Any) -> str:
    """The datasets of the file, in words."""
    groups = groups_below(file)
    found = [f"{name} ({what(item)})" for group in groups for name, item in datasets(file, group)]
    more = f" and {len(found) - MAX_LISTED} more" if len(found) > MAX_LISTED else ""
    return (", ".join(found[:MAX_LISTED]) + more) or "no dataset"


def what(item: Any) -> str:
    """Type and shape of a dataset, in words."""
    return f"{item.dtype} {tuple(item.shape)}"
