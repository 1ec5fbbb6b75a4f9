"""Copies of the checkout in which tests run on a mutant, and which tests run a line."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from mutants import Mutant

from collage_mpi.system.process_tree import end_family

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".pytest_cache" / "lines_of_tests.json"
MEMORY_KB = 16 << 20  # a mutant may allocate without end


class Tree:
    """A copy of the checkout, to spoil. Processes that a test starts import from it too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)

    def pytest(self, *words: str, limit_s: float, **environ: str) -> tuple[int | None, str]:
        """Exit code (`None`: a hang) and output of tests that run here."""
        argv = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
        argv += ["--hypothesis-seed=1", *words]
        places = f"{self.folder}:{self.folder / 'tests' / 'mutation'}"
        process = subprocess.Popen(
            ["bash", "-c", f'ulimit -v {MEMORY_KB}; exec "$@"', "tests", *argv],
            cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, errors="replace", start_new_session=True,
            env={**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1",
                 "PYTHONDONTWRITEBYTECODE": "1", **environ},
        )  # fmt: skip
        try:
            out, _ = process.communicate(timeout=limit_s)
            return process.returncode, out
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            end_family(process, grace_s=0.0)


class LinesOfTests:
    """The tests of every line and how long they take, measured once and kept."""

    def __init__(self, trees: SimpleQueue[Tree], jobs: int, files: Sequence[Path]) -> None:
        self.seconds: dict[str, float] = {}
        self._of: dict[str, dict[int, set[str]]] = {}  # file, line: tests
        known = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        sources = [f for f in ROOT.glob("collage_mpi/**/*.py")]
        helpers = [f for f in ROOT.glob("tests/**/*.py") if not f.name.startswith("test_")]
        common = _digest(sorted(sources + helpers))

        def measure(file: Path) -> None:
            name, key = str(file.relative_to(ROOT)), common + _digest([file])
            if known.get(name, {}).get("key") != key:
                known[name] = {"key": key, **_measured(trees, name)}

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(measure, files))
        KEPT.parent.mkdir(exist_ok=True)
        KEPT.write_text(json.dumps(known))
        for file in files:
            self._add(known[str(file.relative_to(ROOT))])

    def _add(self, entry: dict) -> None:
        for test in entry["bad"]:
            print(f"left out, as it does not pass on the code as it is: {test}", flush=True)
        passed = {t: s for t, s in entry["seconds"].items() if t not in entry["bad"]}
        self.seconds |= passed
        for test, of_file in entry["lines"].items():
            for file, lines in of_file.items():
                for line in lines:
                    of_line = self._of.setdefault(file, {}).setdefault(line, set())
                    of_line |= passed.keys() if test == "*" else passed.keys() & {test}

    def tests(self, mutant: Mutant) -> list[str]:
        """Tests that run its line, quickest first.

        Of a line that runs at import: those of its module, or of its folder.
        """
        of_file = self._of.get(mutant.file, {})
        found = of_file.get(mutant.line, set()) | of_file.get(mutant.statement, set())
        if not found and not _in_function(mutant):
            folder = Path(mutant.file).parent
            near = [f for f in self._of if Path(f).parent == folder]
            found = found.union(
                *(t for f in ([mutant.file] if of_file else near) for t in self._of[f].values())
            )
        return sorted(found, key=lambda test: (self.seconds[test], test))


def _measured(trees: SimpleQueue[Tree], name: str) -> dict:
    tree = trees.get()
    out = tree.folder / "lines.json"
    out.unlink(missing_ok=True)
    tree.pytest("-p", "measure_lines", name, limit_s=1800.0, LINES_OF_TESTS=str(out))
    trees.put(tree)
    return (
        json.loads(out.read_text()) if out.exists() else {"seconds": {}, "bad": [name], "lines": {}}
    )


def _in_function(mutant: Mutant) -> bool:
    nodes = ast.walk(ast.parse((ROOT / mutant.file).read_bytes()))
    functions = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    return any(f.body[0].lineno <= mutant.line <= (f.end_lineno or 0) for f in functions)


def _digest(files: Sequence[Path]) -> str:
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]
