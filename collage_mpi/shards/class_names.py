"""Reads lists of class names from files. Class names in shards and weights must be unique; repeated
names, as in ImageNet's list, get their class number appended.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.system.tell import tell

SHOWN = 5  # doubles that are named in the message


def read_class_names(path: Path) -> tuple[str, ...]:
    """The names in a file, one a line, the name of class 0 first. Empty lines are skipped.

    Raises:
        EnvironmentFault: the file cannot be read.
        UsageError: the file holds no name.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentFault(f"{path}: cannot be read: {error}") from error
    return told_apart([line.strip() for line in lines if line.strip()])


def told_apart(names: Sequence[str]) -> tuple[str, ...]:
    """The names; a name that occurs more than once gets its class number appended.

    The user is told which names were changed.

    Raises:
        UsageError: there is no name, an empty one, or a changed name equals another one.
    """
    places: dict[str, list[int]] = defaultdict(list)
    for number, name in enumerate(names):
        places[name].append(number)
    if not names or "" in places:
        where = f"class {places[''][0]} has none" if names else "there are none"
        raise UsageError(f"class names must be one or more, and none may be empty: {where}")
    doubles = {name: numbers for name, numbers in places.items() if len(numbers) > 1}
    if not doubles:
        return tuple(names)
    made = tuple(f"{n} ({i})" if n in doubles else n for i, n in enumerate(names))
    listed = _listed(doubles)
    if len(set(made)) < len(made):
        raise UsageError(f"class names are in the list more than once: {listed}; rename them")
    tell(f"note: a class name that is in the list more than once gets its class number: {listed}")
    return made


def _listed(doubles: dict[str, list[int]]) -> str:
    """The first few repeated names, such as `"crane" (134, 517)`."""
    shown = [f'"{name}" ({", ".join(map(str, doubles[name][:SHOWN]))})' for name in doubles]
    more = len(shown) - SHOWN
    return ", ".join(shown[:SHOWN]) + (f" and {more} more" if more > 0 else "")
