"""Command-line flags made from the fields of settings classes: their names, types, help and
groups.
"""

from __future__ import annotations

import argparse
import typing
from collections.abc import Callable, Iterable
from dataclasses import Field, fields
from pathlib import Path
from typing import Any

from collage_mpi.settings.files import read_settings_file
from collage_mpi.settings.profiles import PROFILE, PROFILES
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.system.fields import AUTO, Settings, about, default_of, names, unit

_METAVARS = {int: "N", float: "X", str: "WORD"}


class _Lines(argparse.HelpFormatter):
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n".join(fill(line, width, indent) for line in text.splitlines())


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting of a run, --profile, and --settings FILE. Flags win over the
    file.
    """
    parser.formatter_class = _Lines
    parser.add_argument(
        "--settings", metavar="FILE", help="file with settings: .toml, .yaml or .json"
    )
    lines = (f"{name}: {profile.says}" for name, profile in PROFILES.items())
    parser.add_argument_group("profiles", "\n".join(lines)).add_argument(
        "--" + PROFILE,
        choices=tuple(PROFILES),
        default=argparse.SUPPRESS,
        help="use a set of defaults made for one purpose (docs/speed.md). A setting that is given "
        "wins over the profile (default: the defaults below)",
    )
    add_flags(parser, RunSettings)


def add_flags(
    parser: argparse.ArgumentParser,
    of: type[Settings],
    only: Iterable[str] | None = None,
    kind: str | None = None,
) -> None:
    """Add a flag for each field, in its group. A flag that is not given sets no attribute.

    Args:
        of: the class.
        only: these fields, in the class's order; None: all of them.
        kind: of network, whose defaults the flags have; they are set if a flag is not given.
    """
    hints = typing.get_type_hints(of)
    specs = {spec.name: spec for spec in fields(of)}
    for name in specs if only is None else only:
        default = default_of(of, name, kind or "")
        options = _options(specs[name], hints[name], default)
        if kind is None:
            options["default"] = argparse.SUPPRESS
        known = about(specs[name])
        group_of(parser, known.group).add_argument(flag(specs[name]), dest=name, **options)


def group_of(parser: argparse.ArgumentParser, title: str) -> argparse._ActionsContainer:
    """The group of --help with that title, created if it is missing; "" is the parser itself."""
    if not title:
        return parser
    groups = (group for group in parser._action_groups if group.title == title)
    return next(groups, None) or parser.add_argument_group(title)


def flag(spec: Field[Any]) -> str:
    """The flag of a field: `--its-name`, unless the field sets another one."""
    return about(spec).flag or "--" + spec.name.replace("_", "-")


def shown_default(spec: Field[Any], default: Any) -> str:
    """A default as --help shows it, with its unit; "" if there is none."""
    if default in (None, "") or isinstance(default, tuple):
        return about(spec).unset
    if isinstance(default, bool):
        return "yes" if default else "no"
    number = f"{default:g}" if isinstance(default, float) else str(default)
    return f"{number} {unit(spec.name)}".rstrip()


def _options(spec: Field[Any], hint: Any, default: Any) -> dict[str, Any]:
    known, args = about(spec), [arg for arg in typing.get_args(hint) if arg is not type(None)]
    of_type = args[0] if args else hint
    told = shown_default(spec, default)
    text = known.help + ("; may be given several times" if known.repeated else "")
    options: dict[str, Any] = {
        "default": default,
        "help": (f"{text} (default: {told})" if told else text).replace("%", "%%"),
    }
    if of_type is bool:
        return {**options, "action": argparse.BooleanOptionalAction}
    if known.repeated:
        options["action"] = "append"
    elif typing.get_origin(hint) is tuple:
        options["nargs"] = "+"
    elif of_type is not str:
        options["type"] = _or_auto(of_type) if known.auto else of_type
    if known.choices:
        return {**options, "choices": known.choices}
    metavar = known.metavar or unit(spec.name).upper() or _METAVARS[of_type]
    metavar += "|auto" if known.auto else ""
    return {**options, "metavar": metavar}


def _or_auto(of_type: type) -> Callable[[str], Any]:
    def number_or_auto(text: str) -> Any:
        try:
            return text if text == AUTO else of_type(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor {AUTO}") from error

    return number_or_auto


def flags_of(settings: Settings) -> list[str]:
    """The flags for all values that differ from the defaults."""
    words: list[str] = []
    for spec in fields(settings):
        value = getattr(settings, spec.name)
        if value == spec.default:
            continue
        words += [flag(spec), *value] if isinstance(value, tuple) else [f"{flag(spec)}={value}"]
    return words


def settings_from_args(args: argparse.Namespace) -> RunSettings:
    """The effective settings: defaults, then the profile, then the file, then the flags."""
    return RunSettings.from_mapping(*given_settings(args))


def given_settings(
    args: argparse.Namespace, of: type[Settings] = RunSettings
) -> tuple[dict[str, Any], str]:
    """The settings that were given, flags over the file, and their source for messages."""
    values: dict[str, Any] = {}
    source = "flags"
    if getattr(args, "settings", None):
        values = read_settings_file(Path(args.settings))
        source = str(args.settings)
    known = {*names(of), PROFILE}
    return values | {key: value for key, value in vars(args).items() if key in known}, source
