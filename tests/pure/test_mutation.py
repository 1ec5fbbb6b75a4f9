"""The mutation run: what it changes, what it draws, and what it calls killed."""

from __future__ import annotations

from collections import Counter

import pytest
from equivalent import SAME
from mutants import Mutant, drawn, mutants_of
from mutate import outcome, table, wilson
from trees import ROOT, LinesOfTests
from warm import put_in

SOURCE = b'''\
"""A module's first line: 1 < 2."""
LIMIT = 3

@cached(size=8)
def f(a: 1, b=True) -> 2:
    if a < LIMIT and not b:
        raise ValueError(f"{a + 1}", 7)
    self.x = min(a, b) - 1
    tell("it is", 5)
    close(a, 1000, 0.5)
    while a is None:
        zip(a, b, strict=True)
    return [c for c in a if c] or None
'''


def mutants() -> list[Mutant]:
    return mutants_of("f.py", SOURCE)


def test_each_operator_changes_what_it_should():
    assert sorted((m.line, m.operator, m.before, m.after) for m in mutants()) == sorted([
        (2, "constant", "3", "(4)"), (2, "constant", "3", "(2)"),
        (5, "constant", "True", "False"),
        (6, "condition negated", "a < LIMIT and not b", "(not (a < LIMIT and (not b)))"),
        (6, "and/or swapped", "a < LIMIT and not b", "(a < LIMIT or not b)"),
        (6, "operand left out", "a < LIMIT and not b", "(not b)"),
        (6, "operand left out", "a < LIMIT and not b", "(a < LIMIT)"),
        (6, "comparison turned", "a < LIMIT", "(a <= LIMIT)"),
        (6, "condition negated", "not b", "(b)"),
        (7, "statement left out", 'raise ValueError(f"{a + 1}", 7)', "pass"),
        (8, "statement left out", "self.x = min(a, b) - 1", "pass"),
        (8, "operator swapped", "min(a, b) - 1", "(min(a, b) + 1)"),
        (8, "min/max swapped", "min", "max"),
        (8, "constant", "1", "(2)"), (8, "constant", "1", "(0)"),
        (9, "constant", "5", "(6)"), (9, "constant", "5", "(4)"),
        (10, "statement left out", "close(a, 1000, 0.5)", "pass"),
        (10, "constant", "1000", "(2000)"), (10, "constant", "1000", "(500)"),
        (10, "constant", "0.5", "(1.0)"), (10, "constant", "0.5", "(0.25)"),
        (11, "comparison turned", "a is None", "(a is not None)"),
        (12, "statement left out", "zip(a, b, strict=True)", "pass"),
        (13, "return value dropped", "return [c for c in a if c] or None", "return None"),
        (13, "and/or swapped", "[c for c in a if c] or None", "([c for c in a if c] and None)"),
        (13, "operand left out", "[c for c in a if c] or None", "([c for c in a if c])"),
        (13, "operand left out", "[c for c in a if c] or None", "(None)"),
        (13, "condition negated", "c", "(not c)"),
    ])  # fmt: skip


def test_a_mutant_differs_by_what_it_says_alone():
    text = SOURCE.replace(b"it is", "es är".encode())  # its offsets count bytes
    for mutant in mutants_of("f.py", text):
        end = mutant.start + len(mutant.before.encode())
        assert text[mutant.start : end].decode() == mutant.before
        applied = mutant.applied(text)
        assert applied == text[: mutant.start] + mutant.after.encode() + text[end:]
        assert applied != text
        assert "\n+" in mutant.diff(text)
    assert len({mutant.key for mutant in mutants()}) == len(mutants())


def test_the_sample_is_seeded_and_in_proportion():
    some = mutants()[:25]
    parts = {"large": some[:20], "small": some[20:24], "tiny": some[24:]}
    sample = drawn(parts, 10, seed=3)
    assert sample == drawn(parts, 10, seed=3) != drawn(parts, 10, seed=4)
    of = Counter(part for m in sample for part, those in parts.items() if m in those)
    assert of == {"large": 8, "small": 2, "tiny": 1}
    assert len(set(sample)) == 11
    assert sorted(drawn(parts, 99, 1), key=repr) == sorted(some, key=repr)


def test_the_interval_of_a_share():
    # Newcombe, Statistics in Medicine 17 (1998), table I: the score method without correction.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


class Scripted:
    """A tree that answers as it is told, and the tests that run a line; keeps what was asked."""

    files = ("test_f.py",)

    def __init__(self, found: dict[str, float], became: str = "lived") -> None:
        self.seconds, self.became = found, became

    def tests(self, mutant: Mutant) -> list[str]:
        return [*self.seconds]

    def outcome(self, mutant, control, tests, files) -> dict:
        self.asked = (control, [*tests])
        return {"became": self.became, "by": ""}


def test_a_mutant_gets_the_tests_of_its_line_up_to_a_limit():
    mutant, world = mutants()[0], Scripted({"a": 1.0, "b": 80.0, "c": 20.0}, "killed")
    record = outcome(mutant, False, world, 90.0, world)
    assert (record["became"], record["left_out"]) == ("killed", 1)
    assert world.asked == (False, ["a", "b"])
    assert outcome(mutant, True, world, 0.5, world)["key"] == mutant.key + "-control"
    assert world.asked == (True, ["a"]), "one at least"
    assert outcome(mutant, False, Scripted({}), 90.0, world)["became"] == "untested"


def test_the_quickest_case_of_each_function_comes_first(monkeypatch):
    monkeypatch.setattr("trees._in_function", lambda mutant: True)
    lines = LinesOfTests.__new__(LinesOfTests)
    lines.seconds = {"t::a[1]": 0.1, "t::a[2]": 0.2, "t::a[3]": 0.3, "t::b": 5.0, "t::c": 9.0}
    lines._of = {"f.py": {2: {*lines.seconds} - {"t::c"}}}
    assert lines.tests(mutants()[0]) == ["t::a[1]", "t::b", "t::a[2]", "t::a[3]"]


def test_a_module_of_constants_gets_the_tests_of_its_folder():
    """Whichever test imported it first says nothing of who needs them."""
    lines = LinesOfTests.__new__(LinesOfTests)
    lines.seconds = dict.fromkeys(["t::a", "t::b", "t::c"], 1.0)
    encoding = "collage_mpi/encoding"
    lines._of = {
        f"{encoding}/__init__.py": {1: {"t::a"}},
        f"{encoding}/grid.py": {1: {"t::b"}},
        "collage_mpi/kinds.py": {1: {"t::c"}},
    }
    for file, wanted in (("__init__", ["t::a", "t::b"]), ("grid", ["t::b"])):
        mutant = Mutant(f"{encoding}/{file}.py", 1, 1, "constant", 0, "1", "2", "")
        assert lines.tests(mutant) == wanted


MODULE = b"""\
LIMIT = 3

class Sums:
    @property
    def more(self):
        return [x + 1 for x in (LIMIT,)][0]

def outer(a, b=2):
    def inner():
        return a < b
    return inner()
"""


@pytest.mark.parametrize(
    ("line", "operator", "gives"),
    [
        (6, "operator swapped", (2, True)),
        (10, "comparison turned", (4, True)),
        (1, "constant", None),
    ],
)
def test_a_mutant_is_put_into_the_functions_that_there_are(tmp_path, line, operator, gives):
    path = tmp_path / "module.py"
    space: dict = {"__name__": "module"}
    exec(compile(MODULE, path, "exec"), space)
    functions = [space["outer"], space["Sums"].more.fget]
    found = mutants_of(str(path), MODULE)
    mutant = next(m for m in found if (m.line, m.operator) == (line, operator))
    path.write_bytes(mutant.applied(MODULE))
    assert put_in(mutant, functions) is (gives is not None), "what runs at import cannot be put in"
    same = 2 if operator == "comparison turned" else 1
    assert (space["Sums"]().more, space["outer"](same)) == (gives or (4, True))


def test_the_table_counts_parts_and_says_whether_controls_died():
    def record(file: str, became: str, control: bool = False) -> dict:
        return {"file": f"collage_mpi/{file}", "became": became, "control": control}

    records = [
        *(record("scheduler/core.py", word) for word in ("killed", "killed", "hung", "lived")),
        record("mpi/tasks.py", "untested"),
        record("mpi/tasks.py", "same"),
        record("mpi/tasks.py", "killed", control=True),
    ]
    lines = table(records, ["scheduler", "mpi/tasks.py", "faults"]).splitlines()
    assert [line.split()[:8] for line in lines[1:4]] == [
        ["scheduler", "4", "2", "1", "1", "0", "0", "75%"],
        ["mpi/tasks.py", "2", "0", "0", "0", "1", "1", "0%"],
        ["all", "6", "2", "1", "1", "1", "1", "60%"],
    ]
    assert "75% (30% to 95%)" in lines[1]
    assert lines[4] == "controls: 1, of which 1 died (none may)"


def test_what_is_named_as_the_same_is_a_mutant_that_can_be_made():
    """The code changes: an entry that no mutant makes any more has to go."""
    made = set()
    for file in {file for file, _ in SAME}:
        source = (ROOT / file).read_bytes()
        lines = [mutant.added(source) for mutant in mutants_of(file, source)]
        made |= {(file, line) for line in lines}
    assert SAME.keys() - made == set()
