"""How large the package and its pages are: no larger without a line here that says why.

A function of over 50 lines, or of more than six arguments, has a line below with its size. So has
each name that two classes share, and each step by which the modules or the words of the pages grew.
A change that needs more writes its line, and behind it the reason. A change that mends a function
takes its line away; the test asks for that.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "collage_mpi"
MOST_LINES, MOST_ARGUMENTS = 50, 6
HOW = "make it smaller, or write a line in tests/pure/test_size.py with the reason behind it"

LONG = {  # up to tens
}
MANY_ARGUMENTS = {}
SHARED_NAMES: set[str] = set()
MODULES = (
    235,  # when each had become a concept of its own, without five that others took in since
    1,  # launch/ending: the exit code is worked out without processes and streams
    1,  # plugins: schemes and launchers of other packages
    1,  # job/calibration: a threshold without labels is chosen and raised while the job runs
    2,  # system/energy, results/cost: joules by counter, and what a run cost, which nothing told
    1,  # system/forked: a start of 11 ranks takes 0.29 of its processor time
    1,  # system/nvml: what the driver says is wrong with a GPU, beside the joules that it counts
    1,  # commands/classify: a command is a module
    1,  # settings/batches: the rule of --batch auto, for a run, its dry run and a simulation
    2,  # commands/map, results/outputs: functions of any outputs; --help of export needs no arrays
    3,  # models/named, libraries, asking: networks by name; two of them start no library
    5,  # shards/source, inputs, members, parquet, zarrs: pictures are read where they lie
    1,  # shards/remote: one place that opens a path or a URL
)
GUIDE_WORDS = (
    20_000,  # how to use the package: every page of docs/ but one
)
ARCHITECTURE_WORDS = (
    5_000,  # how it is built: docs/architecture.md
)


def functions() -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function of the package, by its module, its class and its name."""
    for path in sorted(PACKAGE.rglob("*.py")):
        module = str(path.relative_to(PACKAGE).with_suffix(""))
        yield from named(module, ast.parse(path.read_text("utf-8")))


def named(
    prefix: str, node: ast.AST
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for child in ast.iter_child_nodes(node):
        inner = prefix
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            inner = f"{prefix}.{child.name}"
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield inner, child
        yield from named(inner, child)


def class_names() -> Counter[str]:
    """How many classes of the package have each name."""
    trees = (ast.parse(path.read_text("utf-8")) for path in PACKAGE.rglob("*.py"))
    nodes = (node for tree in trees for node in ast.walk(tree))
    return Counter(node.name for node in nodes if isinstance(node, ast.ClassDef))


def lines_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def arguments_of(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Without self, and what any number of arguments is gathered in."""
    given = function.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def words_of(page: Path) -> int:
    return len(page.read_text("utf-8").split())


def beyond(sizes: dict[str, int], most: int, known: dict[str, int]) -> list[str]:
    """What is larger than it may be, and what has a line and needs none any more."""
    grown = [(n, s, known.get(n, most)) for n, s in sizes.items() if s > known.get(n, most)]
    small = [name for name in known if sizes.get(name, 0) <= most]
    return [
        *(f"{name}: {size}, at most {held}: {HOW}" for name, size, held in grown),
        *(f"{name}: {most} or fewer now: take its line away" for name in small),
    ]


def test_no_function_is_longer_than_it_may_be():
    assert beyond({n: lines_of(f) for n, f in functions()}, MOST_LINES, LONG) == []


def test_no_function_takes_more_arguments_than_it_may():
    sizes = {n: arguments_of(f) for n, f in functions()}
    assert beyond(sizes, MOST_ARGUMENTS, MANY_ARGUMENTS) == []


def test_a_name_is_that_of_one_class():
    found = {name for name, classes in class_names().items() if classes > 1}
    assert found - SHARED_NAMES == set(), "give one of the two classes another name"
    assert SHARED_NAMES - found == set(), "take the name out of SHARED_NAMES"


def test_there_are_no_more_modules_than_there_may_be():
    assert len(list(PACKAGE.rglob("*.py"))) <= sum(MODULES), HOW


def test_the_pages_have_no_more_words_than_they_may():
    built = ROOT / "docs" / "architecture.md"
    guide = set((ROOT / "docs").rglob("*.md")) - {built}
    assert sum(words_of(page) for page in guide) <= sum(GUIDE_WORDS), HOW
    assert words_of(built) <= sum(ARCHITECTURE_WORDS), HOW


def test_what_grows_and_what_shrinks_is_told():
    known = {"a.long": 60, "a.shorter": 60, "a.gone": 60}
    sizes = {"a.long": 60, "a.shorter": 55, "a.new": 51, "a.small": 50}
    assert beyond(sizes, 50, known) == [
        f"a.new: 51, at most 50: {HOW}",
        "a.gone: 50 or fewer now: take its line away",
    ]
    assert beyond({"a.long": 61}, 50, {"a.long": 60}) == [f"a.long: 61, at most 60: {HOW}"]
