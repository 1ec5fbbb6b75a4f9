"""Real ranks under mpiexec, with a timeout and nothing left behind; what is skipped, and told."""

from __future__ import annotations

import ast
import inspect
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from collage_mpi.launch import supervisor
from collage_mpi.launch.mpiexec import Mpi, build_command, find_mpi, site_here
from collage_mpi.shards import guard
from collage_mpi.system.forked import FOLDER_VARIABLE, VARIABLE, of_server, serving
from collage_mpi.system.process_tree import end_family, own_command

# An example may take as long as it does: a core that others share is no slip of the code.
# The check draws the same examples each time. By hand others are drawn.
settings.register_profile(
    "any machine",
    settings.get_profile("default"),
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("any machine")

# Skips that are no loss wherever they are, or that no package to install would end: the start of
# the reason.
MEANT = (
    "only Open MPI ",
    "root may write",
    "needs a CUDA GPU",
    "needs another reader",
    "needs the right to",
    "seccomp is not allowed",
)

# Only a hang takes so long: the ranks of a job started in 40 s on cores that five others shared.
RANKS_LIMIT_S = 120.0
MANY_LIMIT_S = 280.0
PROGRAMS = Path(__file__).parent / "mpi" / "programs"
BENCH = Path(__file__).parents[1] / "analysis" / "bench"
FORKED = {("-m", name) for name in ("collage_mpi", "many", "saboteur", "round")}
# Of the server that forks ranks: what each of them loads.
MODULES = (
    "h5py",
    "numpy.random",
    "collage_mpi.job.run",
    "collage_mpi.job.main",
    "collage_mpi.job.worker",
    "collage_mpi.launch.supervisor",
)
# Whatever a test patches: servers that are started in it are those of later tests, too.
THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
ENVIRONMENT = {
    **os.environ,
    **THREADS,
    "PYTHONPATH": f"{PROGRAMS}:{BENCH}:{os.environ.get('PYTHONPATH', '')}",
}
_servers = ExitStack()


def pytest_addoption(parser: pytest.Parser) -> None:
    """How much of the fault suite: a little by default, all of it on demand."""
    group = parser.getgroup("faults")
    group.addoption("--chaos-rounds", type=int, default=4, help="rounds of chaos on real ranks")
    group.addoption("--chaos-seed", type=int, default=1, help="what the rounds are drawn from")
    group.addoption("--fuzz", type=int, default=0, help="damaged inputs for each reader of files")
    group.addoption("--strangers", type=int, default=200, help="connections to a job's ports")
    parser.addoption("--skipped", type=Path, help="append each test that is skipped, and why")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: at the end no worker has one, and the others nothing to do."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was not run, a line each, to the file that `--skipped` names: `tests/run.sh` counts."""
    config = terminalreporter.config
    path = config.getoption("skipped")
    if path is None or hasattr(config, "workerinput"):  # which reports to the one that started it
        return
    with path.open("a") as out:
        for report in terminalreporter.stats.get("skipped", []):
            why = report.longrepr[2].removeprefix("Skipped: ").replace("\n", " ")
            meant = "meant" if why.startswith(MEANT) else "unexpected"
            print(meant, why, report.nodeid, sep="\t", file=out)


@pytest.fixture(autouse=True)
def _nothing_kept() -> Iterator[None]:
    """A module that is first imported while a name is patched would keep the patch for good."""
    before = set(sys.modules)
    yield
    for name in sorted({name for name in sys.modules if name.startswith("collage_mpi.")} - before):
        module = sys.modules[name]
        for line in ast.parse(inspect.getsource(module)).body:
            for taken in line.names if isinstance(line, ast.ImportFrom) else ():
                origin, here = sys.modules.get(line.module or ""), taken.asname or taken.name
                found = getattr(origin, taken.name, None)
                kept = found is not None and getattr(module, here, found) is not found
                assert not kept, f"{name} keeps a patched {here}: import it before the patch"


@pytest.fixture(autouse=True)
def _shards_are_checked_here(request: pytest.FixtureRequest, monkeypatch) -> None:
    """In this process, but by the guard's own tests: its child takes half a second of a core."""
    ring, guarded = request.path.parent.name, request.path.stem == "test_shards_guard"
    if ring in ("pure", "loops", "mpi") and not guarded:

        def ask_here(task: str, paths: Sequence[Path], limit_s: float | None) -> list[Any]:
            return [json.loads(json.dumps(guard._answer(task, path))) for path in paths]

        monkeypatch.setattr(guard, "_ask", ask_here)


@pytest.fixture(scope="module")
def torch_once() -> Iterator[None]:
    """Children that ask a network are forked from a process that has imported torch, as those of a
    rank under `launch`: each import takes 2 s of a core."""
    of_server[VARIABLE] = server_of(("torch",))
    yield
    del of_server[VARIABLE]


@cache
def server_of(libraries: tuple[str, ...] = ()) -> str:
    """The server that forks the ranks of every job of these tests that needs these libraries.

    `launch` starts one for each job. Half of the CPU of a short job is that its server imports.
    """
    folder = _servers.enter_context(tempfile.TemporaryDirectory(prefix="ranks-"))
    environment = {**ENVIRONMENT, FOLDER_VARIABLE: folder}
    _servers.enter_context(serving(environment, (*MODULES, *libraries), ["w" * 4000]))
    return environment[VARIABLE]


@contextmanager
def serving_all(
    environment: dict[str, str], modules: Sequence[str], command: Sequence[str]
) -> Iterator[None]:
    """`serving`, by one server for all jobs that are launched in this process."""
    if modules:
        environment[VARIABLE] = server_of(tuple({*modules} & {"torch"}))
    yield


@pytest.fixture(autouse=True)
def _one_server(request: pytest.FixtureRequest, monkeypatch) -> None:
    """Of `launch` itself are the tests of test_launch."""
    if request.node.get_closest_marker("mpi") and request.path.stem != "test_launch":
        monkeypatch.setattr(supervisor, "serving", serving_all)


def pytest_sessionfinish() -> None:
    """No server outlives its tests."""
    _servers.close()


MpiExec = Callable[..., "subprocess.CompletedProcess[str]"]
Case = list[dict[str, Any]]  # what each rank returned and said: {code, out, err}


@pytest.fixture(scope="session")
def mpi() -> Mpi:
    """The MPI of this environment; tests that need one fail, not skip, without it."""
    return find_mpi()


@pytest.fixture
def programs() -> Path:
    """Folder of the small MPI programs."""
    return PROGRAMS


@pytest.fixture
def mpiexec(mpi: Mpi, tmp_path: Path) -> MpiExec:
    """Start ranks of a Python program and wait: `mpiexec(11, ["-m", "collage_mpi", ...])`.

    The first argument is the world size, the second what follows `python`. Output is
    text. After `timeout` seconds every process of the job is killed and the test fails.
    """

    def start(
        n: int,
        args: Sequence[str | Path],
        timeout: float = RANKS_LIMIT_S,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        libraries: Sequence[str] = (),
    ) -> subprocess.CompletedProcess[str]:
        return run_ranks(mpi, n, args, timeout, env or {}, cwd or tmp_path, libraries)

    return start


def run_ranks(
    mpi: Mpi,
    n: int,
    args: Sequence[str | Path],
    timeout: float,
    env: Mapping[str, str],
    cwd: Path,
    libraries: Sequence[str] = (),
) -> subprocess.CompletedProcess[str]:
    """One job in a session of its own; see the fixture `mpiexec`.

    The ranks of what is in FORKED are forked, as `launch` does it: see `server_of`. `libraries` are
    what its networks need of them, such as torch.
    """
    words = [sys.executable, *map(str, args)]
    script = Path(words[1])
    if script.suffix == ".py" and ("-m", script.stem) in FORKED:
        words[1:2] = ["-m", script.stem]
    forked = tuple(words[1:3]) in FORKED
    if forked:
        words = [*own_command(words[2]), *words[3:]]
        env = {**env, "PYTHONPATH": ENVIRONMENT["PYTHONPATH"]}
    plan = build_command(mpi, n, words, site_here(), extra_env=env)
    environment = {**os.environ, **plan.env}
    if forked:
        environment[VARIABLE] = server_of(tuple(libraries))
    process = subprocess.Popen(
        plan.argv,
        env=environment,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        end_family(process, grace_s=0.0)
        out, err = process.communicate()
        pytest.fail(
            f"{n} ranks did not end within {timeout} s: {plan.shell_line()}\n"
            f"--- stdout\n{out[-4000:]}\n--- stderr\n{err[-4000:]}"
        )
    finally:
        end_family(process, grace_s=0.0)
        shutil.rmtree(plan.scratch or "", ignore_errors=True)
    return subprocess.CompletedProcess(plan.argv, process.returncode, out, err)


def run_many(
    mpi: Mpi,
    n: int,
    cases: Sequence[Sequence[object]],
    cwd: Path,
    timeout: float = MANY_LIMIT_S,
    libraries: Sequence[str] = (),
) -> list[Case]:
    """Several `collage-mpi` commands, one after the other in one launch of n ranks."""
    folder = cwd / "said"
    folder.mkdir()
    (folder / "cases.json").write_text(json.dumps([[str(word) for word in c] for c in cases]))
    words = ["-m", "many", folder / "cases.json", folder]
    done = run_ranks(mpi, n, words, timeout, THREADS, cwd, libraries)
    assert done.returncode == 0, done.stderr
    by_rank = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(n)]
    return [list(case) for case in zip(*by_rank, strict=True)]


def codes(case: Case) -> list[int]:
    """What each rank returned."""
    return [rank["code"] for rank in case]
