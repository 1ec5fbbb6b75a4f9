"""Makes text safe for a terminal and a spreadsheet, and formats numbers and lists for messages."""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Any

# Control characters except newline and tab, C1 controls, characters that change the direction of
# text or break lines invisibly, and surrogates, which no terminal can print.
_UNFIT = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_CONTROLS = re.compile(rf"[\t\n]|{_UNFIT.pattern}")
_FORMULA = ("=", "+", "-", "@")
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 3
_BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxset = _BRIEF.maxfrozenset = _BRIEF.maxdict = 20
_BRIEF.maxstring = _BRIEF.maxother = _BRIEF.maxlong = 120


def printable(text: str) -> str:
    r"""The text with codes such as \x1b or \u202e for characters that a terminal obeys or hides."""
    return _UNFIT.sub(lambda match: _code(ord(match[0])), text)


def _code(number: int) -> str:
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def cell(text: str) -> str:
    r"""The text as a cell of a spreadsheet.

    A spreadsheet takes a text that begins with = + - @ for a formula, so such a text gets an
    apostrophe before it, unless it is a number. Control characters are replaced by their codes.
    """
    shown_text = _CONTROLS.sub(lambda match: _code(ord(match[0])), text)
    return f"'{shown_text}" if shown_text[:1] in _FORMULA and not _is_number(text) else shown_text


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def counted(number: int, thing: str) -> str:
    """`1 rank`, `1,800 images`; no image is `0 images`."""
    return f"{number:,} {thing}" + ("" if number == 1 else "s")


def numbered(thing: str, numbers: Iterable[object], most: int | None = None) -> str:
    """`rank 3`, `ranks 1, 3`, `ranks 1, 3 and 7 more`."""
    told = [str(number) for number in numbers]
    return f"{thing}{'' if len(told) == 1 else 's'} {some_of(told, most or len(told))}"


def some_of(names: Sequence[str], most: int, joint: str = ", ") -> str:
    """`a, b and 3 more`: at most `most` names, and the number of the others."""
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return joint.join(names[:most]) + more


def one_line(error: object, most: int = 300) -> str:
    """An error's message on one line, cut off after `most` characters."""
    return " ".join(str(error).split())[:most]


def brief(value: float | None, absent: str = "n/a") -> str:
    """A number with three digits, or as a whole number from 1,000 on."""
    if value is None:
        return absent
    return f"{value:,.0f}" if abs(value) >= 999.5 or value == int(value) else f"{value:.3g}"


def size_text(nbytes: int) -> str:
    """Bytes for people: `64 MiB`, `77.0 GiB`."""
    if nbytes >= 1 << 30:
        return f"{nbytes / (1 << 30):.1f} GiB"
    return f"{nbytes / (1 << 20):.0f} MiB" if nbytes >= 1 << 20 else f"{nbytes / 1024:.0f} KiB"


def minutes(seconds: float) -> str:
    """A duration for people: "45 s", "12 min", "3.1 h"."""
    if seconds < 90:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def ranges_in(text: str) -> list[range] | None:
    """`0-3,8` as the ranges 0 to 3 and 8 to 8; None for a text of another form."""
    found = [re.fullmatch(r"\s*(\d{1,15})(?:-(\d{1,15}))?\s*", part) for part in text.split(",")]
    if None in found:
        return None
    return [range(int(part[1]), int(part[2] or part[1]) + 1) for part in found if part]


def numbers_text(numbers: Sequence[int], most_parts: int | None = 4, *, steps: bool = True) -> str:
    """Ascending numbers as `0, 2-9, 11-99/8` (from 11 to 99 in steps of 8).

    More than `most_parts` parts are cut short to `0..99 (40)`, with the count in brackets.

    Args:
        steps: False gives only ranges of neighbours.
    """
    parts: list[str] = []
    left = list(numbers)
    while left:
        step = left[1] - left[0] if steps and len(left) > 1 else 1
        end = 1
        while end < len(left) and left[end] - left[end - 1] == step:
            end += 1
        if end < 3 and step != 1:
            end = 1
        first, last = left[0], left[end - 1]
        span = f"{first}-{last}" + (f"/{step}" if step > 1 else "")
        parts.append(str(first) if end == 1 else span)
        left = left[end:]
    if most_parts and len(parts) > most_parts:
        return f"{numbers[0]}..{numbers[-1]} ({len(numbers)})"
    return ", ".join(parts)


def did_you_mean(word: str, known: Iterable[str], most: int = 3) -> str:
    """`; did you mean 'side' or 'size'?` with known words that are similar; "" if there is none."""
    near = [repr(name) for name in get_close_matches(word, [*known], most)]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def storable(text: str) -> str:
    r"""The text with bytes that are not UTF-8 as codes, such as \xe9.

    A file's name may hold any bytes, which Python keeps as surrogates. The result no longer names
    the file.
    """
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # surrogates that do not come from a file's name
        return text.encode("utf-8", "backslashreplace").decode()


def readable(value: Any) -> Any:
    """JSON whose texts can be stored and printed (`storable`). A path may thereby change, so do not
    open it."""
    if isinstance(value, str):
        return value if value.isascii() else storable(value)
    if isinstance(value, list):
        return [readable(item) for item in value]
    if isinstance(value, dict):
        return {readable(key): readable(item) for key, item in value.items()}
    return value


def say(text: str) -> None:
    """Print lines that may hold file names, and flush."""
    print(printable(text), flush=True)


def shown(value: object, most: int = 120) -> str:
    """A value for a message, `most` characters at the longest, whatever its own size."""
    text = _BRIEF.repr(value)
    return text if len(text) <= most else text[: most - 3] + "..."
