"""Small defects that may be put into a source: which, where, and a seeded sample of them.

Knows nothing of tests. Messages, types, decorators and assertions are left as they are.
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

TURNED: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
SWAPPED: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult, ast.Mod: ast.FloorDiv, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd,
    ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
EXTREMES = {"min": "max", "max": "min"}
SAYING = {"tell", "say", "print"}

Change = tuple[
    ast.AST, str, "ast.AST | str"
]  # what is replaced, the operator, what takes its place


@dataclass(frozen=True)
class Mutant:
    """One change: `before`, at byte `start` of the file, becomes `after`."""

    file: str  # from the repository's root
    line: int
    statement: int  # the first line of the statement
    operator: str
    start: int
    before: str
    after: str
    source: str  # of the whole file: the start of its SHA-256

    @property
    def key(self) -> str:
        return hashlib.sha256(repr(self).encode()).hexdigest()[:16]

    def applied(self, text: bytes) -> bytes:
        end = self.start + len(self.before.encode())
        return text[: self.start] + self.after.encode() + text[end:]

    def compiles(self, text: bytes) -> bool:
        try:
            compile(self.applied(text), self.file, "exec")
        except SyntaxError:
            return False
        return True

    def diff(self, text: bytes) -> str:
        """The lines that change, as they were and as they are."""
        old, new = (each.decode().splitlines() for each in (text, self.applied(text)))
        return "\n".join([*difflib.unified_diff(old, new, n=0, lineterm="")][3:])

    def added(self, text: bytes) -> str:
        """The lines that it makes, as one."""
        diff = self.diff(text).splitlines()
        return " ".join(line[1:].strip() for line in diff if line[0] == "+")


def mutants_of(file: str, text: bytes) -> list[Mutant]:
    """Every mutant of a file; a few of them do not compile."""
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    source, found = hashlib.sha256(text).hexdigest()[:12], []
    for node, statement in _walk(ast.parse(text), 1):
        for old, operator, new in _changes(node):
            start = starts[old.lineno - 1] + old.col_offset
            end = starts[old.end_lineno - 1] + old.end_col_offset
            after = new if isinstance(new, str) else f"({ast.unparse(new)})"
            before = text[start:end].decode()
            found.append(
                Mutant(file, old.lineno, statement, operator, start, before, after, source)
            )
    return found


def drawn(
    of_part: Mapping[str, list[Mutant]],
    size: int,
    seed: int,
    compiles: Callable[[Mutant], bool] = lambda mutant: True,
) -> list[Mutant]:
    """A sample in proportion to what each part has, at least one of each, in no order."""
    chance, total = random.Random(seed), sum(map(len, of_part.values()))
    sample = []
    for mutants in of_part.values():
        share = math.ceil(size * len(mutants) / total)
        shuffled = chance.sample(mutants, len(mutants))
        sample += islice(filter(compiles, shuffled), share)
    chance.shuffle(sample)
    return sample


def _changes(node: ast.AST) -> Iterator[Change]:
    """What may become of a node."""
    match node:
        case ast.If(test=test) | ast.While(test=test) | ast.IfExp(test=test):
            yield from _negated(test)
        case ast.comprehension(ifs=tests):
            for test in tests:
                yield from _negated(test)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            yield node, "condition negated", operand
        case ast.Compare(left=left, ops=ops, comparators=others):
            for i, op in enumerate(ops):
                turned = [*ops[:i], TURNED[type(op)](), *ops[i + 1 :]]
                yield node, "comparison turned", ast.Compare(left, turned, others)
        case ast.BoolOp(op=op, values=values):
            other = ast.Or() if isinstance(op, ast.And) else ast.And()
            yield node, "and/or swapped", ast.BoolOp(other, values)
            for i in range(len(values)):
                rest = values[:i] + values[i + 1 :]
                yield node, "operand left out", ast.BoolOp(op, rest) if rest[1:] else rest[0]
        case ast.BinOp(left=left, op=op, right=right) if type(op) in SWAPPED:
            yield node, "operator swapped", ast.BinOp(left, SWAPPED[type(op)](), right)
        case ast.Constant(value=bool(value)):
            yield node, "constant", repr(not value)
        case ast.Constant(value=int(value) | float(value)):
            for other in _others(value):
                yield node, "constant", f"({other!r})"
        case ast.Call(func=ast.Name(id=("min" | "max") as name) as func):
            yield func, "min/max swapped", EXTREMES[name]
        case ast.Return(value=ast.Constant(value=None)):
            pass
        case ast.Return(value=ast.expr()):
            yield node, "return value dropped", "return None"
        case ast.Expr(value=ast.Call(func=func)) if getattr(func, "id", None) not in SAYING:
            yield node, "statement left out", "pass"
        case ast.Assign(targets=[ast.Attribute() | ast.Subscript()]) | ast.AugAssign():
            yield node, "statement left out", "pass"
        case ast.Delete() | ast.Raise() | ast.Continue() | ast.Break():
            yield node, "statement left out", "pass"


def _others(value: float) -> tuple[float, float]:
    """One more and one less; of what is large or no whole number twice and half, which show."""
    if value == 0 or (isinstance(value, int) and abs(value) < 100):
        return value + 1, value - 1
    return value * 2, value // 2 if isinstance(value, int) else value / 2


def _negated(test: ast.expr) -> Iterator[Change]:
    """Not where to turn its comparison, or to leave its `not` out, is the same."""
    ordered = (ast.Lt, ast.LtE, ast.Gt, ast.GtE)
    same = isinstance(test, ast.Compare) and not isinstance(test.ops[0], ordered)
    if not same and not isinstance(test, ast.Constant | ast.UnaryOp):
        yield test, "condition negated", ast.UnaryOp(ast.Not(), test)


def _walk(node: ast.AST, statement: int) -> Iterator[tuple[ast.AST, int]]:
    """Every node whose change may be noticed, and the first line of its statement."""
    if isinstance(node, ast.JoinedStr | ast.Assert):
        return
    if isinstance(node, ast.keyword) and node.arg == "strict":  # of zip: an assertion
        return
    if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
        return
    statement = node.lineno if isinstance(node, ast.stmt) else statement
    yield node, statement
    for name, field in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list") or isinstance(node, ast.Raise):
            continue
        for child in field if isinstance(field, list) else [field]:
            if isinstance(child, ast.AST):
                yield from _walk(child, statement)
