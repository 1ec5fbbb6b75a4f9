"""Reads JSON of files and messages into typed records, and says which value is wrong."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")
_STEPS = re.compile(r"\.(\w+)|\[(\d+)\]")  # of a path such as $.stages[0].width
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "null": "null",
    "array": "a list",
    "object": "a table",
}


def read_record(kind: type[T], value: object, read: Callable[[type, Any], Any] | None = None) -> T:
    """A JSON value as a dataclass or another type that msgspec knows.

    Args:
        kind: the type. If it is a dataclass, unknown keys are refused.
        value: the value.
        read: makes values of types that JSON lacks: see `dec_hook` of `msgspec.convert`.

    Raises:
        ValueError: the value is no such record. The message says what was found and what is needed.
        Exception: of the record's own checks.
    """
    if is_dataclass(kind) and isinstance(value, dict):
        known = [field.name for field in fields(kind)]
        if foreign := [key for key in value if key not in known]:
            raise ValueError(f"it has {foreign[0]!r:.40}; known are {', '.join(known)}")
    try:
        return msgspec.convert(value, kind, dec_hook=read)
    except msgspec.ValidationError as error:
        raise ValueError(_said(str(error), value)) from error


def read_json(kind: type[T], text: bytes | str) -> T:
    """As `read_record`, of JSON text. NaN and infinite numbers are refused.

    Raises:
        ValueError: as `read_record`, or the text is no JSON.
    """
    try:
        value = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError, UnicodeError) as error:
        raise ValueError(str(error)) from error
    return read_record(kind, value)


def _said(fault: str, value: object) -> str:
    """The message of msgspec in plain words, with the value that was found."""
    reason, _, path = fault.partition(" - at `$")
    with suppress(KeyError, IndexError, TypeError):  # the path does not name keys of a table
        for name, number in _STEPS.findall(path):
            value = value[name or int(number)]  # type: ignore[index]
    where = path.strip("`.") or "it"
    if field := re.fullmatch(r"Object missing required field `(\w+)`", reason):
        return f"{field[1]} is missing" + (f" in {where}" if path else "")
    if wanted := re.match(r"Expected (.*?)(, got .*)?$", reason):
        needed = re.sub(r"`([^`]*)`", lambda type: _named(type[1]), wanted[1])
        return f"{where} is {value!r:.60}; needed is {needed}"
    return f"{where} is {value!r:.60}: {reason[:1].lower()}{reason[1:]}" if path else reason


def _named(types: str) -> str:
    return " or ".join(_WORDS.get(each, each) for each in types.split(" | "))
