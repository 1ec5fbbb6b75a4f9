"""Settings from files and from the command line: text in, `RunSettings` out.

Owns: the formats of settings files, the flags (made from the fields of `RunSettings`, so that
a setting exists in one place), and that flags win over a file.
Does not know: what a setting means, which values it may have.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import typing
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.system.regular_file import require_regular

MOST_CHARACTERS = 4_000_000  # of a YAML file with its aliases written out


def read_settings_file(path: Path) -> dict[str, Any]:
    """Settings from a .toml or .yaml file, or from the .json that a run saved.

    Raises:
        EnvironmentFault: the file cannot be read, or is YAML and PyYAML is missing.
        DataFault: it is not what its ending says, or no table.
        UsageError: another ending.
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
        values = parse(text)
    except ImportError as error:
        raise EnvironmentFault(
            f"settings file {path}: {name} needs a package that is not installed: "
            "pip install pyyaml, or write the settings as .toml"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataFault(f"settings file {path} is no {name}: {error}") from error
    if not isinstance(values, dict) or not all(isinstance(key, str) for key in values):
        raise DataFault(f"settings file {path} does not hold a table of settings")
    return values


def _toml(text: str) -> Any:
    name = "tomllib" if sys.version_info >= (3, 11) else "tomli"
    return import_module(name).loads(text)


def _yaml(text: str) -> Any:
    """Plain values only: the safe loader makes no objects."""
    yaml = import_module("yaml")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        _check_aliases(node, {})
        return None if node is None else loader.construct_document(node)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from error


def _check_aliases(node: Any, sizes: dict[int, int | None]) -> int:
    """Characters that a YAML node has with its aliases written out.

    Raises ValueError where a few lines of aliases make a value that fills the memory.
    """
    if id(node) in sizes:
        known = sizes[id(node)]
        if known is None:
            raise ValueError("an alias (*name) stands within what it names")
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
            f"its aliases (*name) stand for more than {MOST_CHARACTERS:,} characters; write out "
            "what is meant"
        )
    sizes[id(node)] = size
    return size


# ending -> (the format's name, its parser: ValueError for what is not of the format)
_PARSERS: dict[str, tuple[str, Callable[[str], Any]]] = {
    ".toml": ("TOML", _toml),
    ".yaml": ("YAML", _yaml),
    ".yml": ("YAML", _yaml),
    ".json": ("JSON", json.loads),
}


# How --help groups the settings: what every run needs first, what few want last.
TOPICS: dict[str, tuple[str, ...]] = {
    "input and output": ("shards", "out", "bad_shards", "order", "limit"),
    "networks": (
        "single",
        "collage",
        "parity",
        "cell_px",
        "device",
        "precision",
        "channels_last",
        "compile",
        "warmup_tasks",
    ),
    "redundancy and ranks": (
        "scheme",
        "side",
        "singles",
        "collage_ranks",
        "collage_copies",
        "replicas",
        "parity_k",
        "parity_ranks",
        "assign",
        "endgame",
        "placement",
    ),
    "when a collage's answer counts": (
        "accept",
        "grace_ms",
        "grace_quantile",
        "confidence",
        "accept_deadline_ms",
        "accept_deadline_quantile",
    ),
    "late and failed images": (
        "hedge_ms",
        "hedge_quantile",
        "hedge_budget",
        "linger_ms",
        "image_timeout_s",
        "max_attempts",
    ),
    "pace": (
        "between",
        "depth",
        "batch",
        "credit",
        "arrivals",
        "rate",
        "arrival_seed",
        "arrival_file",
        "window",
        "warmup_groups",
    ),
    "lost ranks, progress": (
        "on_rank_loss",
        "reply_timeout_s",
        "start_timeout_s",
        "status_every_s",
    ),
    "injected delays, for experiments": (
        "straggler",
        "straggler_seed",
        "straggler_median_ms",
        "straggler_sigma",
        "straggler_tail",
        "straggler_slow_share",
        "straggler_slow_factor",
        "straggler_spell_s",
        "trace_file",
        "trace_draws",
        "time_scale",
        "slow_ranks",
        "dead_ranks",
        "burn_ranks",
        "cost_ratio",
        "batch_cost",
    ),
}


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """A flag for every setting, by topic, and --settings FILE. Flags win over the file."""
    parser.add_argument("--settings", metavar="FILE", help="settings file, .toml, .yaml or .json")
    hints = typing.get_type_hints(RunSettings)
    specs = {spec.name: spec for spec in dataclasses.fields(RunSettings)}
    left = [name for name in specs if not any(name in names for names in TOPICS.values())]
    for topic, names in {**TOPICS, "other settings": left}.items():
        group = parser.add_argument_group(topic)
        for name in names:
            _add_flag(group, specs[name], hints[name])


def _add_flag(group: argparse._ArgumentGroup, spec: dataclasses.Field[Any], hint: Any) -> None:
    options: dict[str, Any] = {"default": argparse.SUPPRESS, "help": _help(spec)}
    args = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    if typing.get_origin(hint) is tuple:
        options["nargs"] = "+"
    elif (args[0] if args else hint) is not str:
        options["type"] = args[0] if args else hint
    for name in ("choices", "metavar"):
        if name in spec.metadata:
            options[name] = spec.metadata[name]
    if "choices" not in options:
        kind = options.get("type", str).__name__.upper()
        options.setdefault("metavar", {"INT": "N", "FLOAT": "X"}.get(kind, kind))
    group.add_argument("--" + spec.name.replace("_", "-"), **options)


def _help(spec: dataclasses.Field[Any]) -> str:
    text = str(spec.metadata["help"])
    if spec.default in (None, "", ()):
        return text
    return f"{text} (default: {spec.default})".replace("%", "%%")


def flags_of(settings: RunSettings) -> list[str]:
    """The flags that say what is not a default, as `add_setting_flags` reads them."""
    words: list[str] = []
    for spec in dataclasses.fields(settings):
        value, flag = getattr(settings, spec.name), "--" + spec.name.replace("_", "-")
        if value == spec.default:
            continue
        words += [flag, *value] if isinstance(value, tuple) else [f"{flag}={value}"]
    return words


def settings_from_args(args: argparse.Namespace) -> RunSettings:
    """The effective settings: defaults, then the file, then the flags."""
    return RunSettings.from_mapping(*given_settings(args))


def given_settings(args: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """The settings that were given, flags over the file, and where they come from."""
    known = {spec.name for spec in dataclasses.fields(RunSettings)}
    values: dict[str, Any] = {}
    source = "flags"
    if getattr(args, "settings", None):
        values = read_settings_file(Path(args.settings))
        source = args.settings
    values |= {key: value for key, value in vars(args).items() if key in known}
    return values, source
