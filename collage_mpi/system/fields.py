"""Settings as dataclass fields: each field declares its default, help, group, bounds and choices.

The checks of values follow from these declarations.
"""

from __future__ import annotations

import dataclasses
import math
import os
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import Field, dataclass, field, fields
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import Any, TypeVar

from collage_mpi.errors import UsageError
from collage_mpi.system.printable import did_you_mean, shown

AUTO = "auto"
REQUIRED: Any = dataclasses.MISSING  # the default of a setting that must be given
LARGEST = 1e9  # bound of numbers without an upper bound of their own: ns then fit 63 bits
T = TypeVar("T", bound="Settings")
SHIPPED, DATA = "shipped:", Path(__file__).parents[1] / "data"
UNITS = {"_ms": "ms", "_s": "s", "_px": "px", "_us": "us"}  # end of a setting's name -> unit


@dataclass(frozen=True)
class About:
    """The declaration of a setting, without its name, type and default.

    Attributes:
        help: what it does, without its default and its bounds.
        group: the title under which --help shows it.
        at_least, above, below, at_most: bounds of a number. `at_most` is LARGEST if only a lower
            bound is given.
        choices: the values that are allowed.
        unset: what None stands for, in words.
        endings: the name of a file ends in one of them.
        metavar: the name of its value in --help; by default its unit or type.
        flag: the flag, if it does not follow from the name.
        repeated: a list whose flag is given once for each value.
        kinds: the kinds of network that have it as a flag; empty: all of them.
        by_kind: kind of network -> its default, if that differs from the field's own.
        auto: the word auto stands for None, which is found out later.
        positional: it is given by its place in the command line, not by a flag.
        rest: it is all words that follow, whatever they are.
        either: of the settings that share this word, only one may be given.
        shipped: a file, or several, that may be named shipped:NAME.
        hidden: --help does not list it, because it is for commands that start this one.
    """

    help: str
    group: str = ""
    at_least: float | None = None
    above: float | None = None
    below: float | None = None
    at_most: float | None = None
    choices: Collection[Any] = ()
    unset: str = ""
    metavar: str = ""
    flag: str = ""
    repeated: bool = False
    kinds: tuple[str, ...] = ()
    by_kind: Mapping[str, Any] = field(default_factory=dict)
    auto: bool = False
    positional: bool = False
    rest: bool = False
    endings: tuple[str, ...] = ()
    either: str = ""
    shipped: bool = False
    hidden: bool = False

    @property
    def bounded(self) -> bool:
        """Whether the setting is a number with bounds."""
        return (self.at_least, self.above, self.below, self.at_most) != (None,) * 4

    @property
    def most(self) -> float:
        """The upper bound; with `below` the value itself is not allowed."""
        bounds = (self.below, self.at_most, LARGEST)
        return next(bound for bound in bounds if bound is not None)

    def wants(self, value: float) -> str | None:
        """The condition that a number violates, in words; None if it is allowed. A NaN never is."""
        low = self.at_least is None or value >= self.at_least
        low = low and (self.above is None or value > self.above)
        if low and (value < self.most if self.below is not None else value <= self.most):
            return None
        if self.above is not None and self.below is not None:
            return f"a number between {self.above:g} and {self.below:g}"
        if self.below is not None:
            return f"{self.at_least:g} to below {self.below:g}"
        if self.at_most not in (None, math.inf) and self.above is None:
            return f"{self.at_least:g} to {self.at_most:g}"
        if low:
            return f"at most {self.most:g}"
        return f"at least {self.at_least:g}" if self.above is None else "a positive number"


def setting(default: Any, help_line: str, **about: Any) -> Any:
    """A field of a settings class; takes the arguments of `About`.

    In a module whose settings share a group: `_setting = partial(setting, group="pace")`.
    """
    return field(default=default, metadata={"about": About(help_line, **about)})


def about(spec: Field[Any]) -> About:
    """The declaration of a field; an empty one for a field that is no `setting`."""
    return spec.metadata.get("about") or About("")


def unit(name: str) -> str:
    """The unit at the end of a setting's name, or ""."""
    return next((said for suffix, said in UNITS.items() if name.endswith(suffix)), "")


def with_shipped(value: str) -> str:
    """`shipped:NAME` as the path of that file of this package; any other value unchanged.

    A name with {side} in it stands for several files and is not checked.

    Raises:
        UsageError: the package ships no such file; lists the files that it ships.
    """
    if not value.startswith(SHIPPED):
        return value
    data = (".h5", ".safetensors", ".npy", ".npz", ".json")
    names = sorted(path.name for path in DATA.iterdir() if path.suffix in data)
    name = value.removeprefix(SHIPPED)
    if "{side}" not in name and name not in names:
        raise UsageError(f"{value}: the package ships {', '.join(names)}")
    return str(DATA / name)


def located(spec: Field[Any], value: Any) -> Any:
    """A field's value, where a file of this package is given by its path."""
    if value is None or not about(spec).shipped:
        return value
    if isinstance(value, tuple):
        return tuple(located(spec, one) for one in value)
    return type(value)(with_shipped(os.fspath(value)))


def check_value(spec: Field[Any], value: Any, name: str = "") -> None:
    """Raise UsageError unless the value is within the field's bounds, or one of its choices.

    Args:
        name: what the message calls the setting; by default the field's own name.
    """
    if value is None:
        return
    known, name = about(spec), name or spec.name
    if known.choices and value not in known.choices:
        listed = ", ".join(map(str, known.choices))
        raise UsageError(f"{name} is {shown(value)}; known are: {listed}")
    if known.bounded and (wanted := known.wants(value)):
        raise UsageError(f"{name} is {shown(value, 40)}; it needs {wanted}")
    if known.endings and not str(value).endswith(known.endings):
        ends = " or ".join(known.endings)
        raise UsageError(f"{name} is {shown(str(value))}; it needs a name that ends in {ends}")


@dataclass(frozen=True, repr=False)
class Settings:
    """The base of settings classes. A class may inherit several parts.

    If a part has a method `_check`, it checks rules between its fields. The methods of all parts
    are called, after every field's own check.

    Raises:
        UsageError: a value that is out of bounds, or contradicts another.
    """

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for spec in fields(self):
            value = located(spec, _typed(spec, getattr(self, spec.name), hints[spec.name]))
            object.__setattr__(self, spec.name, value)
            check_value(spec, value)
        for part in reversed(type(self).__mro__):
            if "_check" in vars(part):
                vars(part)["_check"](self)

    def __repr__(self) -> str:
        """The values that differ from the defaults, which is enough to build it again."""
        given = ((spec, getattr(self, spec.name)) for spec in fields(self))
        differing = (f"{spec.name}={value!r}" for spec, value in given if value != spec.default)
        return f"{type(self).__name__}({', '.join(differing)})"

    def to_dict(self, part: type[Settings] | None = None) -> dict[str, Any]:
        """All settings, or those of a part, as plain JSON values; `from_mapping` reads them."""
        values = {spec.name: getattr(self, spec.name) for spec in fields(part or self)}
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in values.items()
        }

    @classmethod
    def from_mapping(cls: type[T], values: Mapping[str, Any], source: str = "settings") -> T:
        """Build from plain values.

        Raises:
            UsageError: an unknown key (named, with the nearest known ones), a value of the wrong
                type, or any other error of the class.
        """
        known, hints, specs = names(cls), _hints(cls), cls.__dataclass_fields__
        values = by_name(cls, values, source)
        for key in values:
            if key not in known:
                hint = did_you_mean(str(key), known) or "; the command's --help lists them all"
                raise UsageError(f"{source}: unknown setting {shown(key)}{hint}")
        try:
            given = {key: _typed(specs[key], value, hints[key]) for key, value in values.items()}
        except UsageError as error:
            raise UsageError(f"{source}: {error}") from error
        return cls(**given)


def names(part: type[Settings]) -> tuple[str, ...]:
    """The names of all fields of the class, inherited ones too."""
    return tuple(spec.name for spec in fields(part))


def spellings(spec: Field[Any]) -> list[str]:
    """All flags of a field; messages name the last one."""
    return about(spec).flag.split() or ["--" + spec.name.replace("_", "-")]


def by_name(part: type[Settings], values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The values, with the names of the fields as keys. A key may also be a flag of the field
    without its leading dashes, such as `input` or `image-px`. Unknown keys are unchanged.

    Raises:
        UsageError: two keys stand for the same setting.
    """
    fields_of = {
        flag[2:].replace("-", "_"): spec.name for spec in fields(part) for flag in spellings(spec)
    }
    found: dict[str, Any] = {}
    given: dict[str, str] = {}
    for key, value in values.items():
        name = fields_of.get(str(key).replace("-", "_"), key)
        if name in given:
            raise UsageError(f"{source}: {given[name]} and {key} are one setting: give it once")
        found[name], given[name] = value, key
    return found


def same(part: type[Any], name: str, *, default: Any = REQUIRED, **changed: Any) -> Any:
    """A copy of a field that another class declares, with some changes of its `About`.

    Args:
        part: the other class.
        name: of the field.
        default: of the copy; by default that of the field.
        changed: arguments of `About` to replace.
    """
    spec = part.__dataclass_fields__[name]
    told = dataclasses.replace(about(spec), **changed)
    value = spec.default if default is REQUIRED else default
    return field(default=value, metadata={"about": told})


def default_of(part: type[Any], name: str, kind: str = "") -> Any:
    """A field's default, or the default for that kind of network if it has its own."""
    spec = part.__dataclass_fields__[name]
    return about(spec).by_kind.get(kind, spec.default)


# The type of a setting -> types of values that are converted to it; a bool is not a number here.
_TAKES: dict[type, Any] = {int: Integral, float: Real, str: (str, os.PathLike), bool: bool}
# class -> name -> type of each field, inherited ones too
_hints: Callable[[Any], dict[str, Any]] = cache(typing.get_type_hints)


def _switch(spec: Field[Any], value: Any) -> Any:
    """Read True as on, False as off, and auto as None, each only if the field has this choice."""
    if value == AUTO and about(spec).auto:
        return None
    word = {True: "on", False: "off"}[value] if isinstance(value, bool) else value
    return word if word in about(spec).choices else value


def _typed(spec: Field[Any], value: Any, hint: Any) -> Any:
    """The value converted to the type of the setting. Raises UsageError if that is not possible.

    A path becomes text, one text a tuple, an integer a float, and a numpy scalar a Python value.
    """
    if "about" not in spec.metadata:
        return value
    if getattr(value, "shape", None) == ():
        value = value.item()  # a numpy scalar; its bool_ is neither a bool nor a number
    origin, value = typing.get_origin(hint), _switch(spec, value)
    if origin in (types.UnionType, typing.Union):
        if value is None:
            return None
        hint = next(arg for arg in typing.get_args(hint) if arg is not type(None))
    if origin is tuple:
        parts = [value] if isinstance(value, (str, os.PathLike)) else value
        texts = isinstance(parts, (list, tuple))
        if texts and all(isinstance(part, (str, os.PathLike)) for part in parts):
            return tuple(map(os.fspath, parts))
    elif isinstance(value, _TAKES.get(hint, ())) and isinstance(value, bool) == (hint is bool):
        try:
            return os.fspath(value) if hint is str else hint(value)
        except OverflowError:
            raise UsageError(f"{spec.name} is a number of over 300 digits") from None
    known = about(spec)
    several = "a list of strings" if known.repeated else f"{known.metavar}, or a list of strings"
    wanted = several if origin is tuple else getattr(hint, "__name__", str(hint))
    if known.choices:
        wanted = f"one of {', '.join(map(str, known.choices))}"
    raise UsageError(f"{spec.name} is {shown(value)}; it needs {wanted}")
