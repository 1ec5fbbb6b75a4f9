"""Each setting is declared once: its bounds, its choices and its --help follow from its field."""

from __future__ import annotations

import argparse
import dataclasses
import math
import re
from collections.abc import Iterator
from typing import Any

import pytest

from collage_mpi.commands.parser import build_parser
from collage_mpi.errors import UsageError
from collage_mpi.models.architecture import default_architecture
from collage_mpi.settings.flags import add_flags, flag, shown_default
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.slurm import SlurmSettings
from collage_mpi.system.fields import (
    About,
    Settings,
    about,
    check_value,
    default_of,
    setting,
    unit,
)
from collage_mpi.training.settings import TrainSettings

CLASSES = {"run": RunSettings, "simulate": RunSettings, "slurm render": SlurmSettings}
TRAINED = ("single", "collage")
SPECS = {
    f"{of.__name__}.{spec.name}": (of, spec)
    for of in (*dict.fromkeys(CLASSES.values()), TrainSettings)
    for spec in dataclasses.fields(of)
    if "about" in spec.metadata
}
NEEDED = {TrainSettings: {"kind": "single", "architecture": default_architecture("single")}}


def edges(spec: dataclasses.Field[Any]) -> Iterator[tuple[float, float]]:
    """(the last value that is allowed, the first beyond it) of each bound that a field has."""
    known, whole = about(spec), "int" in str(spec.type)

    def beside(value: float, towards: float) -> float:
        return value + math.copysign(1, towards) if whole else math.nextafter(value, towards)

    if known.at_least is not None:
        yield known.at_least, beside(known.at_least, -math.inf)
    if known.above is not None:
        yield beside(known.above, math.inf), known.above
    if known.below is not None:
        yield beside(known.below, -math.inf), known.below
    elif known.most < math.inf:
        yield known.most, beside(known.most, math.inf)


BOUNDED = [name for name, (_, spec) in SPECS.items() if about(spec).bounded]


@pytest.mark.parametrize("name", BOUNDED)
def test_a_bound_is_checked_on_both_sides(name: str) -> None:
    of, spec = SPECS[name]
    for inside, outside in edges(spec):
        check_value(spec, inside)
        for wrong in (outside, math.nan):
            with pytest.raises(UsageError, match=rf"^{spec.name} is .*; it needs ") as caught:
                of(**NEEDED.get(of, {}), **{spec.name: wrong})
            assert "None" not in str(caught.value)


def test_numbers_have_bounds() -> None:
    numbers = {n for n, (_, s) in SPECS.items() if re.match("int|float", str(s.type))}
    assert numbers - set(BOUNDED) == {"RunSettings.straggler_seed"}  # any integer will do


@pytest.mark.parametrize("name", [n for n, (_, spec) in SPECS.items() if about(spec).choices])
def test_what_is_no_choice_is_told_those_there_are(name: str) -> None:
    of, spec = SPECS[name]
    choices = about(spec).choices
    assert spec.default is None or spec.default in choices
    for choice in choices:
        check_value(spec, choice)
    with pytest.raises(
        UsageError, match=f"^{spec.name} is 'none such'; known are: {next(iter(choices))}"
    ):
        of(**NEEDED.get(of, {}), **{spec.name: "none such"})


def commands(parser: argparse.ArgumentParser, words: list[str]) -> argparse.ArgumentParser:
    for word in words:
        actions = (a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
        parser = next(actions).choices[word]
    return parser


@pytest.mark.parametrize("command", [*CLASSES, *(f"train {kind}" for kind in TRAINED)])
def test_help_shows_each_setting_as_its_field_says_it(command: str) -> None:
    words = command.split()
    kind = words[1] if words[0] == "train" else ""
    parser = commands(build_parser(words[0]), words)
    of_flag = {option: action for action in parser._actions for option in action.option_strings}
    title = {id(a): group.title for group in parser._action_groups for a in group._group_actions}
    of = TrainSettings if kind else CLASSES[command]
    for spec in (spec for spec in dataclasses.fields(of) if "about" in spec.metadata):
        known, default = about(spec), default_of(of, spec.name, kind)
        assert (flag(spec) in of_flag) == (not kind or kind in (known.kinds or TRAINED))
        if flag(spec) not in of_flag:
            continue
        action, told = of_flag[flag(spec)], shown_default(spec, default)
        assert action.default == argparse.SUPPRESS
        assert action.dest == spec.name
        if known.hidden:
            assert action.help == argparse.SUPPRESS
            continue
        assert action.help == action.help.strip()
        assert action.help.replace("%%", "%").startswith(known.help)
        assert action.help.endswith(f" (default: {told})") == bool(told), spec.name
        if isinstance(default, (int, float)) and not isinstance(default, bool):
            assert told == f"{default:g} {unit(spec.name)}".strip()
        if unit(spec.name):
            assert action.metavar == unit(spec.name).upper()
        assert title[id(action)] == (known.group or "options")


def test_a_kind_of_network_has_no_flag_that_means_nothing_to_it() -> None:
    has = {}
    for kind in TRAINED:
        add_flags(parser := argparse.ArgumentParser(), TrainSettings, kind=kind)
        has[kind] = {action.dest for action in parser._actions}
    assert has["collage"] - has["single"] == {"side", "cell_px", "blank_share"}


@pytest.mark.parametrize("name", SPECS)
def test_no_default_is_typed_in_a_help_line(name: str) -> None:
    _, spec = SPECS[name]
    known = about(spec)
    assert known.help
    assert "default" not in known.help
    assert not re.search(r"\([\d.]+\)$", known.help)


@dataclasses.dataclass(frozen=True, repr=False)
class First(Settings):
    depth: int = setting(1, "how deep", at_least=1)
    width_px: float = setting(0.5, "how wide", above=0, below=1)

    def _check(self) -> None:
        if self.depth == 13:
            raise UsageError("13 is none of the first's")


@dataclasses.dataclass(frozen=True, repr=False)
class Second(Settings):
    names: tuple[str, ...] = setting((), "who", metavar="NAME")

    def _check(self) -> None:
        if "nobody" in self.names:
            raise UsageError("nobody is none of the second's")


@dataclasses.dataclass(frozen=True, repr=False)
class Both(Second, First):
    def _check(self) -> None:
        if len(self.names) > self.depth:
            raise UsageError("more names than depth")


def test_each_part_looks_at_its_own_settings() -> None:
    assert Both(names="a").names == ("a",)
    assert repr(Both(depth=2)) == "Both(depth=2)"
    assert list(Both().to_dict()) == ["depth", "width_px", "names"]
    assert Both(names=("a",)).to_dict(First) == {"depth": 1, "width_px": 0.5}
    for values, says in (
        ({"depth": 13}, "the first's"),
        ({"names": "nobody"}, "the second's"),
        ({"names": ("a", "b")}, "more names"),
        ({"depth": 0}, "depth is 0; it needs at least 1"),
        ({"width_px": 1.0}, "width_px is 1.0; it needs a number between 0 and 1"),
    ):
        with pytest.raises(UsageError, match=says):
            Both(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("known", "value", "wanted"),
    [
        (About("", at_least=2, at_most=16), 17, "2 to 16"),
        (About("", at_least=0, below=1), 1, "0 to below 1"),
        (About("", above=0), 0, "a positive number"),
        (About("", above=0), 2e9, "at most 1e+09"),
        (About("", above=0, at_most=5), 6, "at most 5"),
        (About("", at_least=1), 2e9, "at most 1e+09"),
        (About("", at_least=1, at_most=math.inf), 0, "at least 1"),
        (About("", at_least=1, at_most=math.inf), 1e300, None),
    ],
)
def test_the_message_says_which_bound_was_passed(
    known: About, value: float, wanted: str | None
) -> None:
    assert known.wants(value) == wanted
