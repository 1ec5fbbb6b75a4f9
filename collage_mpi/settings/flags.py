"""Makes command-line flags from the fields of settings classes, with names, types and help.

`--help` imports this module, so modules that only runs need are imported where they are used.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from collage_mpi.errors import UsageError
from collage_mpi.system.fields import (
    AUTO,
    REQUIRED,
    Settings,
    about,
    by_name,
    check_value,
    default_of,
    located,
    setting,
    spellings,
    unit,
    with_shipped,
)
from collage_mpi.system.files import reading, require_regular

if TYPE_CHECKING:
    from collage_mpi.settings.run_settings import RunSettings

Values = dict[str, Any]  # settings by their names, as they were given
A = TypeVar("A", bound="Arguments")

SETTINGS = "settings"  # the flag that names a settings file
SWITCH = "switch"
_METAVARS = {int: "N", float: "X", str: "WORD", Path: "PATH"}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """The base of the arguments of all commands. Fields are declared by `setting`, as in a run.

    Attributes:
        titles: groups of --help that come first.
        given: settings of other classes whose flags the command has too, as they were given.

    Raises:
        UsageError: a value is out of bounds, or names no file of this package.
    """

    titles: ClassVar[tuple[str, ...]] = ()
    given: Values = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for spec in own_fields(type(self)):
            value = located(spec, getattr(self, spec.name))
            object.__setattr__(self, spec.name, value)
            check_value(spec, value, _called(spec))

    @classmethod
    def read(cls: type[A], values: Mapping[str, Any]) -> A:
        """Build from argparse's values; values that are no fields of this class go to `given`."""
        own = {spec.name for spec in own_fields(cls)}
        mine = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in values.items()
            if name in own
        }
        return cls(given={name: values[name] for name in values.keys() - own}, **mine)


def own_fields(of: type[Arguments] | type[Settings]) -> list[Field[Any]]:
    """The fields that have a flag or a place in the command line.

    For `Arguments`, a class's own fields come before inherited ones.
    """
    specs = [spec for spec in fields(of) if "about" in spec.metadata]
    if not issubclass(of, Arguments):
        return specs
    bases = reversed([*enumerate(of.__mro__)])
    place = {name: i for i, base in bases for name in vars(base).get("__annotations__", ())}
    return sorted(specs, key=lambda spec: place[spec.name])


def switch(help_line: str, **about: Any) -> Any:
    """A field of `Arguments` that a flag without a value turns on."""
    return setting(False, help_line, metavar=SWITCH, **about)


class _Lines(argparse.HelpFormatter):
    def _fill_text(self, text: str, width: int, indent: str) -> str:
        fill = super()._fill_text
        return "\n".join(fill(line, width, indent) for line in text.splitlines())


def add_setting_flags(parser: argparse.ArgumentParser) -> None:
    """Add a flag for every setting of a run, and --settings FILE."""
    from collage_mpi.settings.run_settings import RunSettings

    parser.formatter_class = _Lines
    add_settings_file(parser)
    add_flags(parser, RunSettings)


def add_settings_file(parser: argparse.ArgumentParser) -> None:
    """Add --settings FILE."""
    parser.add_argument(
        "--" + SETTINGS,
        metavar="FILE",
        action="append",
        default=argparse.SUPPRESS,
        help="file with settings: .toml or .json; may be given several times, the last one wins. "
        "shipped:paper.json is the layout of the paper (docs/schemes.md)",
    )


def add_flags(
    parser: argparse.ArgumentParser,
    of: type[Settings] | type[Arguments],
    only: Collection[str] = (),
    kind: str = "",
) -> None:
    """Add a flag for each field, in its group. A flag that is not given sets no attribute.

    Args:
        of: the class.
        parser: gets the flags.
        of: the class.
        only: names of the fields; () for all.
        kind: a kind of network: only its flags, with its defaults in --help; "": all flags.
    """
    for title in of.titles if issubclass(of, Arguments) else ():
        group_of(parser, title)
    hints = typing.get_type_hints(of)
    groups: dict[str, argparse._ActionsContainer] = {}  # by the word of `either`
    for spec in own_fields(of):
        name, known = spec.name, about(spec)
        if (only and name not in only) or (kind and kind not in (known.kinds or (kind,))):
            continue
        options = _options(spec, hints[name], default_of(of, name, kind))
        group = group_of(parser, known.group)
        if known.either:
            if known.either not in groups:
                groups[known.either] = group.add_mutually_exclusive_group()
            group = groups[known.either]
        if known.positional:
            parser.add_argument(name, **options)
        else:
            group.add_argument(*spellings(spec), dest=name, **options)


def group_of(parser: argparse.ArgumentParser, title: str) -> argparse._ActionsContainer:
    """The group of --help with this title, made if it is missing; "" is the group of options."""
    if not title:  # the parser itself would list all choices now and load `plugins.Names`
        return parser._optionals
    groups = (group for group in parser._action_groups if group.title == title)
    return next(groups, None) or parser.add_argument_group(title)


def flag(spec: Field[Any]) -> str:
    """The flag of a field: `--its-name`, unless the field sets another one."""
    return spellings(spec)[-1]


def _called(spec: Field[Any]) -> str:
    known = about(spec)
    return known.metavar if known.positional else flag(spec)


def shown_default(spec: Field[Any], default: Any) -> str:
    """A default as --help shows it, with its unit; "" if there is none."""
    if default in (None, "", REQUIRED) or isinstance(default, tuple):
        return about(spec).unset
    if isinstance(default, bool):
        return "yes" if default else "no"
    number = f"{default:g}" if isinstance(default, float) else str(default)
    return f"{number} {unit(spec.name)}".rstrip()


def _options(spec: Field[Any], hint: Any, default: Any) -> dict[str, Any]:
    known, args = about(spec), [arg for arg in typing.get_args(hint) if arg is not type(None)]
    of_type = args[0] if args else hint
    told = "" if known.metavar == SWITCH else shown_default(spec, default)
    text = known.help + ("; may be given several times" if known.repeated else "")
    options: dict[str, Any] = {
        "default": argparse.SUPPRESS,
        "help": (f"{text} (default: {told})" if told else text).replace("%", "%%"),
    }
    if known.hidden:
        options["help"] = argparse.SUPPRESS
    if spec.default is REQUIRED and not known.positional:
        options["required"] = True
    if known.metavar == SWITCH:
        return {**options, "action": "store_true"}
    if of_type is bool:
        return {**options, "action": argparse.BooleanOptionalAction}
    if known.repeated:
        options["action"] = "append"
    elif typing.get_origin(hint) is tuple:
        options["nargs"] = argparse.REMAINDER if known.rest else "+"
        if not (known.rest or known.positional):
            options["action"] = "extend"  # a flag that is given twice adds to its values
    if of_type is not str:
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
    """The flags for all values that are `changed`."""
    return words_of(changed(settings))


def changed(settings: Settings) -> Values:
    """All values that differ from the defaults, and the scheme, which is usual or not by other
    settings."""
    values = {spec.name: getattr(settings, spec.name) for spec in fields(settings)}
    defaults = {spec.name: spec.default for spec in fields(settings)}
    return {k: v for k, v in values.items() if v != defaults[k] or k == "scheme"}


def words_of(values: Mapping[str, Any]) -> list[str]:
    """The flags that give these settings to a run."""
    from collage_mpi.settings.run_settings import RunSettings

    specs, words = {spec.name: spec for spec in fields(RunSettings)}, []
    for name, value in values.items():
        word = flag(specs[name]) if name in specs else f"--{name}"
        many = isinstance(value, (tuple, list))
        one = AUTO if value is None else value
        words += [word, *map(str, value)] if many else [f"{word}={one}"]
    return words


def given_run(given: Mapping[str, Any]) -> RunSettings:
    """The settings of a run: defaults, then the files in their order, then the flags."""
    from collage_mpi.settings.run_settings import RunSettings

    return RunSettings.from_mapping(*over_file(given, RunSettings))


def over_file(given: Mapping[str, Any], of: type[Settings]) -> tuple[Values, str]:
    """The given settings, by their names, and their source for messages. Flags override the
    --settings files, and a later file an earlier one.

    Args:
        given: the values of the flags.
        of: the class of the settings, which says how a key of a file may be spelled.
    """
    files, values = given.get(SETTINGS, ()), Values()
    for file in files:
        values |= by_name(of, read_settings_file(Path(with_shipped(file))), file)
    values |= {name: value for name, value in given.items() if name != SETTINGS}
    return values, ", ".join(files) or "flags"


def read_settings_file(path: Path) -> dict[str, Any]:
    """Settings from a .toml file, or from the .json that a run saved.

    Raises:
        EnvironmentFault: the file cannot be read.
        UsageError: the ending is unknown, or the content has another format or no settings.
    """
    if path.suffix not in _PARSERS:
        raise UsageError(f"settings file {path}: known endings are {', '.join(_PARSERS)}")
    with reading(f"settings file {path}", also=UnicodeDecodeError):
        require_regular(path)
        text = path.read_text(encoding="utf-8")
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
