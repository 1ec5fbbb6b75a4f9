"""Defects put in on purpose, one by one: which seed finds each, or which of drawn ones and mutants.

    python -m tests.simulation.defects [--seeds 1000] [--from 0] [NAME ...]
    python -m tests.simulation.defects --planted [--seeds 400] [NAME ...]
    python -m tests.simulation.defects --mutants 60 --draw 7 --seeds 300

A defect lies in a fork that loads the package anew, with another text; no file changes. The seeds
are those of `play --wide`. All are played once without a defect: those that do not run the lines of
a defect are left out.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import importlib
import os
import signal
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from tests.simulation import world
from tests.simulation.case import Case, draw, wider
from tests.simulation.play import made_inputs, play, with_fixed_order

PACKAGE = Path(__file__).parents[2] / "collage_mpi"
PLANTED = Path(__file__).with_name("planted.toml")  # drawn by a seed
ROUNDS = (15, 60, 150)  # so many seeds of each planted defect are tried before more of any
HEAVY = ("torch", "h5py", "rich.console", "jinja2", "pyarrow.parquet")
MUTATED = ("job", "mpi", "results", "faults")


@dataclass(frozen=True)
class Defect:
    """A change of sources.

    Attributes:
        changes: (file of the package, text that is there once, what takes its place).
    """

    name: str
    changes: tuple[tuple[str, str, str], ...]

    def texts(self) -> dict[str, str]:
        """Module -> its source with the defect."""
        found: dict[str, str] = {}
        for file, old, new in self.changes:
            module = "collage_mpi." + file.removesuffix(".py").replace("/", ".")
            text = found.get(module) or (PACKAGE / file).read_text()
            assert text.count(old) == 1, f"{self.name}: {text.count(old)} times in {file}: {old}"
            found[module] = text.replace(old, new)
        return found


DEFECTS = (
    Defect(
        "an unsure answer counts",
        (
            (
                "core/core.py",
                'cells["score"][items] >= policy.confidence\n',
                'cells["score"][items] >= policy.confidence - 0.1\n',
            ),
        ),
    ),
    Defect(
        "a threshold is chosen by a bound that does not hold",
        (("bounds/sample.py", "return -math.log(1 - self.sure)", "return -math.log(self.sure)"),),
    ),
    Defect(
        "a name is not on the disk when the next thing is done",
        (
            (
                "system/files.py",
                "        raise\n    sync_directory(path.parent)\n",
                "        raise\n",
            ),
        ),
    ),
    Defect(
        "a run is marked that lacks rows",
        (
            (
                "ledger/owner.py",
                "not cells[start].free if start in cells else start in packed",
                "True",
            ),
        ),
    ),
    Defect(
        "a record names a part before it is on the disk",
        (("system/files.py", "            os.fsync(file.fileno())\n", ""),),
    ),
    Defect(
        "a buffer is used again before its send is complete",
        (
            (
                "mpi/transport.py",
                "complete = send.request.Test()",
                "complete = send.request.Test() or True",
            ),
        ),
    ),
    Defect(
        "a rank's loss during the start is not noticed",
        (("job/worker_group.py", "[*heard, *self._gone(self.steps.awaited)]", "heard"),),
    ),
    Defect(
        "an image of a lost rank is not sent again",
        (
            (
                "core/core.py",
                '"lost", reason=event.why)\n',
                '"lost", reason=event.why, left=False)\n',
            ),
        ),
    ),
    Defect(
        "the core is not told that the input pauses",
        (
            (
                "job/coordinator.py",
                "        if paused and not self._paused:\n",
                "        if False:\n",
            ),
        ),
    ),
    Defect(
        "a rank gets a message beyond its credit",
        (
            (
                "core/ranks.py",
                "self.credit, self.like = rank, kinds, host, credit, like\n",
                "self.credit, self.like = rank, kinds, host, credit + 1, like\n",
            ),
        ),
    ),
    Defect(
        "the batch that was chosen is not told",
        (
            (
                "job/run.py",
                "        if costs.chosen is not None and not self.ask.brief:\n",
                "        if False:\n",
            ),
        ),
    ),
)


def planted() -> list[Defect]:
    """Those that were drawn, in the order drawn."""
    found: list[dict[str, Any]] = tomllib.loads(PLANTED.read_text())["planted"]
    return [
        Defect(
            f"{each['number']:02d} {each['kind']}: {each['duty']}",
            tuple((file, old, new) for file, old, new in each["changes"]),
        )
        for each in found
    ]


def case_of(seed: int) -> Case:
    """The case by which defects are sought."""
    return wider(draw(seed))


def first_found(
    texts: dict[str, str], seeds: Iterable[int], inputs: Path
) -> tuple[int, str] | None:
    """The first of these seeds that a defect breaks, and how; None if none does."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        _play_until(texts, seeds, inputs, writing)
    os.close(writing)
    with os.fdopen(reading) as answers:
        told = answers.read().splitlines()
    os.waitpid(child, 0)
    last = told[-1] if told else "at the first import"
    if last == "none":
        return None
    seed, _, how = last.partition(" ")
    return int(seed) if seed.isdigit() else -1, how or "it ends the simulation, or loops for ever"


def _play_until(texts: dict[str, str], seeds: Iterable[int], inputs: Path, writing: int) -> None:
    """In a process of its own, which it ends: a line at the begin of each seed, one at the end."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)
    try:
        world.install(texts)
        for seed in seeds:
            os.write(writing, f"{seed}\n".encode())
            faults = play(case_of(seed), inputs).faults
            if faults:
                os.write(writing, f"{seed} {' '.join(faults[0].split())[-160:]}\n".encode())
                os._exit(0)
        os.write(writing, b"none\n")
    finally:
        os._exit(0)


def probed(defects: Sequence[Defect]) -> tuple[dict[str, str], set[int]]:
    """Sources that note which defect's lines run; and the numbers of those that run at import."""
    trees: dict[str, ast.Module] = {}
    always = set()
    for number, defect in enumerate(defects):
        for file, old, new in defect.changes:
            text = (PACKAGE / file).read_text()
            tree = trees.setdefault(file, ast.parse(text))
            begin = text[: text.index(old)].count("\n") + 1
            lines = old.splitlines(), new.splitlines()
            same = next((n for n, (a, b) in enumerate(zip(*lines, strict=False)) if a != b), 0)
            span = begin + same, begin + max(same, len(lines[0]) - 1)
            inside = [
                (body, each)
                for function in ast.walk(tree)
                if isinstance(function, ast.FunctionDef)
                for node in ast.walk(function)
                for body in (getattr(node, name, None) for name in ("body", "orelse", "finalbody"))
                for each in (body if isinstance(body, list) else ())
                if each.lineno <= span[0] and (each.end_lineno or 0) >= span[1]
            ]
            if not inside:
                always.add(number)
                continue
            body, place = min(inside, key=lambda found: found[1].end_lineno - found[1].lineno)
            body.insert(body.index(place), ast.parse(f"__reached__.add({number})").body[0])
    names = {file: "collage_mpi." + file.removesuffix(".py").replace("/", ".") for file in trees}
    return {names[file]: ast.unparse(tree) for file, tree in trees.items()}, always


def reaching(defects: Sequence[Defect], seeds: range, inputs: Path) -> list[list[int]]:
    """Of each defect the seeds that run its lines; those that fail without any are left out."""
    texts, always = probed(defects)
    found: list[list[int]] = [[] for _ in defects]
    reading, writing = os.pipe()
    if os.fork() == 0:
        builtins.__reached__ = reached = set()  # type: ignore[attr-defined]
        world.install(texts)
        for seed in seeds:
            reached.clear()
            faults = play(case_of(seed), inputs).faults
            for text in faults[:1]:
                print(f"seed {seed} fails without a defect: {text[:600]}", flush=True)
            told = [] if faults else sorted(reached | always)
            os.write(writing, f"{seed} {' '.join(map(str, told))}\n".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers:
        told = [[*map(int, line.split())] for line in answers]
    if len(told) < len(seeds):  # else each defect counts as found
        raise SystemExit("without any defect the simulation does not play all seeds")
    for seed, *numbers in told:
        for number in numbers:
            found[number].append(seed)
    return found


def play_defects(defects: Sequence[Defect], seeds: range, inputs: Path) -> int:
    """Play them in rounds of ever more seeds; returns how many are not found."""
    reach = reaching(defects, seeds, inputs)
    left, at = list(range(len(defects))), 0
    for most in (*(n for n in ROUNDS if n < len(seeds)), len(seeds)):
        for number in tuple(left):
            tried = reach[number][at:most]
            found = tried and first_found(defects[number].texts(), tried, inputs)
            if found:
                left.remove(number)
                print(f"{defects[number].name}: {_told(found)}", flush=True)
        print(f"{len(defects) - len(left)} of {len(defects)} found, each by {most} of its seeds")
        at = most
    for number in left:
        print(f"{defects[number].name}: not found by {len(reach[number])} that run it")
    return len(left)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="words of the defects' names; by default all")
    parser.add_argument("--seeds", type=int, default=1000, help="how many are tried")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them")
    parser.add_argument("--planted", action="store_true", help="those of planted.toml instead")
    parser.add_argument("--mutants", type=int, help="so many mutants instead")
    parser.add_argument("--draw", type=int, default=1, help="seed by which mutants are drawn")
    told = parser.parse_args()
    with_fixed_order("tests.simulation.defects")
    with made_inputs() as inputs:
        for name in HEAVY:  # else each fork loads them anew
            importlib.import_module(name)
        if told.mutants:
            return _judge_mutants(told, inputs)
        words, seeds = told.names or [""], range(told.first, told.first + told.seeds)
        defects = planted() if told.planted else DEFECTS
        played = [each for each in defects if any(word in each.name for word in words)]
        return bool(play_defects(played, seeds, inputs))


def _told(found: tuple[int, str] | None) -> str:
    return "not found" if found is None else f"seed {found[0]}: {found[1]}"


def _judge_mutants(told: argparse.Namespace, inputs: Path) -> int:
    sys.path.insert(0, str(PACKAGE.parent / "tests" / "mutation"))
    from mutants import drawn, mutants_of

    root, texts, parts = PACKAGE.parent, {}, {}
    for part in MUTATED:
        files = sorted((PACKAGE / part).rglob("*.py"))
        texts |= {str(file.relative_to(root)): file.read_bytes() for file in files}
        names = [str(file.relative_to(root)) for file in files]
        parts[part] = [mutant for name in names for mutant in mutants_of(name, texts[name])]
    sample = drawn(parts, told.mutants, told.draw, lambda m: m.compiles(texts[m.file]))
    killed, seeds = 0, range(told.first, told.first + told.seeds)
    for mutant in sample[: told.mutants]:
        module = mutant.file.removesuffix(".py").replace("/", ".")
        changed = {module: mutant.applied(texts[mutant.file]).decode()}
        found = first_found(changed, seeds, inputs)
        killed += found is not None
        change = " ".join(mutant.diff(texts[mutant.file]).split())
        print(f"{mutant.key} {mutant.file}:{mutant.line} {change}\n    {_told(found)}", flush=True)
    print(f"{killed} of {told.mutants} found by {told.seeds} seeds, drawn by {told.draw}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
