"""The mutation run: what it changes, what it draws, and what it calls killed."""

from __future__ import annotations

from collections import Counter

import pytest
from mutants import Mutant, drawn, mutants_of
from mutate import outcome, table, wilson

SOURCE = b'''\
"""A module's first line: 1 < 2."""
LIMIT = 3

@cached(size=8)
def f(a: 1, b=True) -> 2:
    if a < LIMIT and not b:
        raise ValueError(f"{a + 1}", 7)
    self.x = min(a, b) - 1
    tell("it is", 5)
    close(a)
    while a is None:
        break
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
        (10, "statement left out", "close(a)", "pass"),
        (11, "comparison turned", "a is None", "(a is not None)"),
        (12, "statement left out", "break", "pass"),
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
    some = mutants()
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
    """A tree whose tests end as they are told, and keep what they saw."""

    def __init__(self, folder, code: int | None, out: str = "") -> None:
        self.folder, self.end = folder, (code, out)
        (folder / "f.py").write_bytes(SOURCE)

    def pytest(self, *words: str, limit_s: float) -> tuple[int | None, str]:
        self.saw = (self.folder / "f.py").read_bytes()
        self.tests = (self.folder / "chosen_tests").read_text().split("\n")
        return self.end


@pytest.mark.parametrize(
    ("code", "out", "became"),
    [
        (0, "", "lived"),
        (1, "FAILED a::b - it", "killed"),
        (2, "ERROR a", "killed"),
        (None, "", "hung"),
        (1, "Failed: Timeout (>60s)", "hung"),
    ],
)
def test_what_a_mutant_becomes(tmp_path, code, out, became):
    tree, mutant = Scripted(tmp_path, code, out), mutants()[0]
    seconds = {"a": 1.0, "b": 80.0, "c": 20.0}
    record = outcome(mutant, False, ["a", "b", "c"], seconds, tree)
    assert record["became"] == became
    assert (tree.tests, record["left_out"]) == (["a", "b"], 1), "no more than 90 s of tests"
    assert tree.saw == mutant.applied(SOURCE)
    assert (tmp_path / "f.py").read_bytes() == SOURCE, "the tree is as it was"
    assert outcome(mutant, True, ["a"], seconds, tree)["key"] == mutant.key + "-control"
    assert tree.saw == SOURCE


def test_a_line_that_no_test_runs_lives(tmp_path):
    assert outcome(mutants()[0], False, [], {}, Scripted(tmp_path, 1))["became"] == "untested"


def test_the_table_counts_parts_and_says_whether_controls_died():
    def record(file: str, became: str, control: bool = False) -> dict:
        return {"file": f"collage_mpi/{file}", "became": became, "control": control}

    records = [
        *(record("scheduler/core.py", word) for word in ("killed", "killed", "hung", "lived")),
        record("mpi/tasks.py", "untested"),
        record("mpi/tasks.py", "killed", control=True),
    ]
    lines = table(records, ["scheduler", "mpi/tasks.py", "faults"]).splitlines()
    assert [line.split()[:6] for line in lines[1:4]] == [
        ["scheduler", "4", "2", "1", "1", "0"],
        ["mpi/tasks.py", "1", "0", "0", "0", "1"],
        ["all", "5", "2", "1", "1", "1"],
    ]
    assert "75% (30% to 95%)" in lines[1]
    assert lines[4] == "controls: 1, of which 1 died (none may)"
