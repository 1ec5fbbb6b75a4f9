"""Reads settings files (TOML, JSON) into plain values."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.removed import removed
from collage_mpi.system.files import require_regular


def read_settings_file(path: Path) -> dict[str, Any]:
    """Settings from a .toml file, or from the .json that a run saved.

    Raises:
        EnvironmentFault: the file cannot be read.
        UsageError: the ending is unknown, or the content has another format or no settings.
    """
    if gone := removed(path.suffix):
        raise UsageError(f"settings file {path}: {gone}")
    if path.suffix not in _PARSERS:
        raise UsageError(f"settings file {path}: known endings are {', '.join(_PARSERS)}")
    try:
        require_regular(path)
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EnvironmentFault(f"settings file {path} cannot be read: {error}") from error
    name, parse = _PARSERS[path.suffix]
    try:
        values = parse(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"settings file {path} is not valid {name}: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise UsageError(f"settings file {path} does not hold a table of settings")
    return values


def _toml(text: str) -> Any:
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # installed with this package
        import tomli as tomllib
    return tomllib.loads(text)


# Ending -> name of the format, and its parser.
_PARSERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    ".toml": ("TOML", _toml),
    ".json": ("JSON", json.loads),
}
