"""Reads settings files (TOML, YAML, JSON) into plain values."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.system.extras import optional
from collage_mpi.system.files import require_regular

MOST_CHARACTERS = 4_000_000  # longest YAML file, with its aliases written out


def read_settings_file(path: Path) -> dict[str, Any]:
    """Settings from a .toml or .yaml file, or from the .json that a run saved.

    Raises:
        EnvironmentFault: the file cannot be read, or is YAML and PyYAML is missing.
        UsageError: the ending is unknown, or the content has another format or no settings.
    """
    if path.suffix not in _PARSERS:
        raise UsageError(f"settings file {path}: known endings are {', '.join(_PARSERS)}")
    try:
        require_regular(path)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentFault(f"settings file {path} cannot be read: {error}") from error
    name, parse = _PARSERS[path.suffix]
    try:
        values = parse(text, f"settings file {path}")
    except (ValueError, RecursionError) as error:
        raise UsageError(f"settings file {path} is not valid {name}: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(f"settings file {path} does not hold a table of settings")
    return values


def _toml(text: str, _: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # installed with this package
        import tomli as tomllib
    return tomllib.loads(text)


def _yaml(text: str, what: str) -> Any:
    """Parse YAML into plain values; the safe loader makes no other objects."""
    yaml = optional("yaml", "yaml", what, "write the settings as .toml")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _check_aliases(node, {})
        return None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _check_aliases(node: Any, sizes: dict[int, int | None]) -> int:
    """Number of characters in a YAML node once its aliases are written out.

    Raises ValueError if a few lines of aliases stand for a value that would fill the memory.
    """
    if id(node) in sizes:
        known = sizes[id(node)]
        if known is None:
            raise ValueError("an alias (*name) lies inside the value that it names")
        return known
    sizes[id(node)] = None
    parts = getattr(node, "value", None) or ()
    size = 1 + (len(parts) if isinstance(parts, str) else 0)
    if not isinstance(parts, str):
        for part in parts:  # of a list, or pairs of a table
            for inner in part if isinstance(part, tuple) else (part,):
                size += _check_aliases(inner, sizes)
    if size > MOST_CHARACTERS:
        raise ValueError(
            f"its aliases (*name) stand for more than {MOST_CHARACTERS:,} characters; write the "
            "values out"
        )
    sizes[id(node)] = size
    return size


# Ending -> name of the format, and its parser: (text, name of the file in messages) -> values.
_PARSERS: dict[str, tuple[str, Callable[[str, str], Any]]] = {
    ".toml": ("TOML", _toml),
    ".yaml": ("YAML", _yaml),
    ".yml": ("YAML", _yaml),
    ".json": ("JSON", lambda text, _: json.loads(text)),
}
