"""Copies of the checkout in which tests run on a mutant, and which tests run a line."""

from __future__ import annotations

import ast
import compileall
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from copy import copy
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue
from subprocess import Popen
from threading import Lock

from mutants import Mutant

from collage_mpi.system.process_tree import end_family

ROOT = Path(__file__).parents[2]
KEPT = ROOT / ".pytest_cache" / "lines_of_tests.json"
MEMORY_KB = 8 << 20  # a mutant may allocate without end
BY_COLLECTION = {"became": "killed", "by": "collection"}
BY_FORCE = {"became": "killed", "by": "the end of the process that runs its tests"}


class Tree:
    """A copy of the checkout, to spoil. Processes that a test starts import from it too."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._warm: Warm | None = None
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
        for name in filter(None, listed.split("\0")):
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        package = ROOT / "collage_mpi"
        compileall.compile_dir(package, quiet=1)  # what is, stays: the copies keep their times
        shutil.copytree(package, folder / package.name, dirs_exist_ok=True)

    def copied(self, folder: Path) -> Tree:
        """Another, as this is while nothing has been asked."""
        tree = copy(self)
        tree.folder = shutil.copytree(self.folder, folder)
        return tree

    def outcome(
        self, mutant: Mutant, control: bool, tests: Mapping[str, float], files: Sequence[str]
    ) -> dict:
        """What becomes of a mutant (of a control: of the code as it is) under tests.

        Args:
            tests: their names and what each takes, s of CPU.
            files: all that are ever asked, collected once.
        """
        request = {"tests": list(tests), "seconds": list(tests.values())}
        if control:
            return self._asked({**request, "mutant": None}, files, mutant, spoilt=False)
        answer = self._asked({**request, "mutant": asdict(mutant)}, files, mutant, spoilt=True)
        if answer["became"] != "cold":
            return answer
        with self._holding(mutant):
            cold = Warm(self, sorted({test.partition("::")[0] for test in tests}))
            answer = cold.ask({**request, "mutant": None}) if cold.ready else BY_COLLECTION
            cold.end()
        return answer or BY_FORCE

    @contextmanager
    def _holding(self, mutant: Mutant) -> Iterator[None]:
        path = self.folder / mutant.file
        text, at = path.read_bytes(), path.stat()
        path.write_bytes(mutant.applied(text))
        try:
            yield
        finally:
            path.write_bytes(text)
            os.utime(path, ns=(at.st_atime_ns, at.st_mtime_ns))  # what is compiled stays valid

    def _asked(self, request: dict, files: Sequence[str], mutant: Mutant, *, spoilt: bool) -> dict:
        """Of the process that has collected them, all on the code as it is: only then does the
        mutant's stand in the file. One that ends that process does it twice."""
        for _ in range(2):
            if self._warm is None:
                self._warm = Warm(self, files)
                if not self._warm.ready:
                    raise SystemExit("the tests cannot be collected on the code as it is")
            with self._holding(mutant) if spoilt else nullcontext():
                answer = self._warm.ask(request)
            if answer is not None:
                return answer
            self.end()
        return BY_FORCE

    def end(self) -> None:
        if self._warm is not None:
            self._warm.end()
            self._warm = None

    def start(self, *words: str, pass_fds: Sequence[int] = (), **environ: str) -> Popen[bytes]:
        """A process of pytest here."""
        argv = [sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"]
        argv += ["--hypothesis-seed=1", f"--basetemp={self.folder / 'tmp'}", *words]
        places = f"{self.folder}:{self.folder / 'tests' / 'mutation'}"
        return Popen(
            ["bash", "-c", f'ulimit -v {MEMORY_KB}; exec "$@"', "tests", *argv],
            cwd=self.folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True, pass_fds=pass_fds,
            env={**os.environ, "PYTHONPATH": places, "OMP_NUM_THREADS": "1",
                 "PYTHONDONTWRITEBYTECODE": "1", **environ},
        )  # fmt: skip


class Warm:
    """A process that has collected tests and runs them in forks; see `warm`."""

    def __init__(self, tree: Tree, files: Sequence[str]) -> None:
        (its_end, requests), (answers, its_answers) = os.pipe(), os.pipe()
        self._process = tree.start(
            *("-p", "warm", "--timeout=0", *files), pass_fds=(its_end, its_answers),
            WARM_IN=str(its_end), WARM_OUT=str(its_answers),
        )  # fmt: skip
        os.close(its_end)
        os.close(its_answers)
        self._requests, self._answers = os.fdopen(requests, "w"), os.fdopen(answers)
        self.ready = self._answers.readline() == "ready\n"

    def ask(self, request: dict) -> dict | None:
        """Its answer; `None` where it has ended."""
        try:
            print(json.dumps(request), file=self._requests, flush=True)
            return json.loads(self._answers.readline() or "null")
        except BrokenPipeError:
            return None

    def end(self) -> None:
        with suppress(BrokenPipeError):
            self._requests.close()
        self._answers.close()
        end_family(self._process, grace_s=0.0)
        self._process.wait()


class LinesOfTests:
    """The tests of every line and how long they take, measured once and kept."""

    def __init__(self, trees: SimpleQueue[Tree], jobs: int, files: Sequence[Path]) -> None:
        self.seconds: dict[str, float] = {}
        self.files = [str(file.relative_to(ROOT)) for file in files]
        self._of: dict[str, dict[int, set[str]]] = {}  # file, line: tests
        known = json.loads(KEPT.read_text()) if KEPT.exists() else {}
        sources = [f for f in ROOT.glob("collage_mpi/**/*.py")]
        helpers = [f for f in ROOT.glob("tests/**/*.py") if not f.name.startswith("test_")]
        helpers = [f for f in helpers if f.parent != Path(__file__).parent]
        common = _digest(sorted(sources + helpers))
        KEPT.parent.mkdir(exist_ok=True)
        kept = Lock()

        keys = {str(f.relative_to(ROOT)): common + _digest([f]) for f in files}
        new = [name for name, key in keys.items() if known.get(name, {}).get("key") != key]

        def measure(names: Sequence[str]) -> None:
            for name, found in _measured(trees, names):
                known[name] = {"key": keys[name], **found}
                with kept:
                    KEPT.write_text(json.dumps(known))

        with ThreadPoolExecutor(jobs) as pool:
            list(pool.map(measure, filter(None, (new[i::jobs] for i in range(jobs)))))
        if missing := sorted(name for name in keys if known.get(name, {}).get("key") != keys[name]):
            raise SystemExit(f"not measured: {' '.join(missing)}; pytest -p measure_lines says why")
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
        """Tests that run its line: the quickest case of each function, then the next of each.

        Of a line that runs at import: those of its module, or of its folder where it has no
        functions that a test runs.
        """
        of_file = self._of.get(mutant.file, {})
        found = of_file.get(mutant.line, set()) | of_file.get(mutant.statement, set())
        if not _in_function(mutant):  # whichever test imported it first
            folder = Path(mutant.file).parent
            near = [f for f in self._of if Path(f).parent == folder]
            own = [mutant.file] if of_file and _functions(mutant.file) else near
            found = found.union(*(t for f in own for t in self._of[f].values()))
        quickest = sorted(found, key=lambda test: (self.seconds[test], test))
        of_function: Counter[str] = Counter()
        turn = {}
        for test in quickest:
            function = test.partition("[")[0]
            turn[test] = of_function[function]
            of_function[function] += 1
        return sorted(quickest, key=turn.__getitem__)


def _measured(trees: SimpleQueue[Tree], names: Sequence[str]) -> Iterator[tuple[str, dict]]:
    tree, (read, write) = trees.get(), os.pipe()
    words = ("-p", "measure_lines", *names)
    process = tree.start(*words, pass_fds=[write], LINES_OUT=str(write))
    os.close(write)
    with os.fdopen(read) as lines:
        yield from map(json.loads, lines)
    process.wait()
    trees.put(tree)


def _functions(file: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    nodes = ast.walk(ast.parse((ROOT / file).read_bytes()))
    return [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]


def _in_function(mutant: Mutant) -> bool:
    functions = _functions(mutant.file)
    return any(f.body[0].lineno <= mutant.line <= (f.end_lineno or 0) for f in functions)


def _digest(files: Sequence[Path]) -> str:
    return hashlib.sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()[:16]
