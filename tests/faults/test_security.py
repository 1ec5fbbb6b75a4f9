"""Nothing is unpickled, nothing is written outside the output, no shell text from user text."""

from __future__ import annotations

import ast
import csv
import functools
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from results_harness import make_run
from strangers import IMAGES, run_visited
from wire_tasks import pack_wire_tasks as pack_tasks
from wire_tasks import unpack_results

from collage_mpi.cli import main
from collage_mpi.errors import CollageError, EnvironmentFault, ExitCode, UsageError
from collage_mpi.faults.process_monitor import STRANGERS
from collage_mpi.job.joining import joined_settings
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.answers import ANSWERED, Score, WireResult, pack_results
from collage_mpi.mpi.tasks import WireTask, pack_cancel, unpack_cancel, unpack_tasks
from collage_mpi.prep.arguments import IdxArguments
from collage_mpi.prep.work import from_idx, shard_paths
from collage_mpi.results import export_run, read_results, verify_run
from collage_mpi.results.writer import check_place, open_folder
from collage_mpi.shards import write_shard
from collage_mpi.slurm import KINDS, SlurmSettings, render

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
SABOTEUR = ROOT / "tests" / "mpi" / "programs" / "saboteur.py"
SOURCES = sorted([*ROOT.glob("collage_mpi/**/*.py"), *ROOT.glob("analysis/**/*.py"),
                  *ROOT.glob("data_prep/**/*.py")])  # fmt: skip
# May be imported for the names of its exceptions, and nothing of it may be called.
EXCEPTIONS_ONLY = {"collage_mpi/models/libraries.py": {"pickle.UnpicklingError"}}
UNPICKLERS = ("pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal", "joblib")
SHELLS = ("os.system", "os.popen", "subprocess.getoutput", "subprocess.getstatusoutput",
          "commands.getoutput", "pty.spawn")  # fmt: skip
HOSTILE = ("../../escape", "/tmp/escape", "..", ".", "a/../../b", "~/x", "x\0y", "-rf", "a\nb")


@functools.cache
def nodes() -> list[tuple[str, ast.AST]]:
    return [
        (str(path.relative_to(ROOT)), node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text()))
    ]


@functools.cache
def calls() -> list[tuple[str, str, ast.Call]]:
    return [
        (f"{file}:{node.lineno}", ast.unparse(node.func), node)
        for file, node in nodes()
        if isinstance(node, ast.Call)
    ]


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(k.value) for k in call.keywords if k.arg == name), None)


def test_nothing_is_unpickled() -> None:
    for file, node in nodes():
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name.partition(".")[0] for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [(node.module or "").partition(".")[0]]
        assert file in EXCEPTIONS_ONLY or not set(names) & set(UNPICKLERS), f"{file}: {names}"
        if isinstance(node, ast.Attribute) and ast.unparse(node).startswith("pickle."):
            assert ast.unparse(node) in EXCEPTIONS_ONLY.get(file, set())


def test_readers_that_could_unpickle_are_told_not_to() -> None:
    seen = 0
    for where, name, call in calls():
        if name in ("np.load", "numpy.load"):
            assert keyword(call, "allow_pickle") == "False", where
            seen += 1
        if name.endswith("torch.load"):
            assert keyword(call, "weights_only") == "True", where
            seen += 1
        if name == "h5py.File" or name.endswith(".read_pickle"):
            assert not name.endswith("read_pickle"), where
    assert seen >= 3  # the test looks at what it thinks it does


def test_mpi_sends_buffers_not_pickles() -> None:
    """mpi4py's lower-case methods pickle: none is called on a communicator."""
    lower = {"send", "recv", "isend", "irecv", "bcast", "gather", "scatter", "allgather",
             "allreduce", "reduce", "alltoall", "sendrecv", "ssend", "bsend", "mrecv"}  # fmt: skip
    for where, name, _ in calls():
        owner, _, method = name.rpartition(".")
        assert method not in lower or owner.rpartition(".")[2] not in ("comm", "_comm"), where


def test_no_shell_is_started() -> None:
    for where, name, call in calls():
        assert name not in SHELLS, where
        assert keyword(call, "shell") in (None, "False"), where
        if name.startswith("subprocess.") or name.endswith("Popen"):
            first = ast.unparse(call.args[0]) if call.args else ""
            assert "'sh'" not in first or "['sh', str(GUARD)," in first, where  # a script, no -c
        assert name not in ("eval", "exec"), where


# ---- strangers at the ports, other users at the files -----------------------


@pytest.mark.mpi
@pytest.mark.slow
def test_strangers_at_the_ports_of_a_job_change_nothing(mpi, tmp_path, request) -> None:
    """Each kind of them, and many at once: the rows, the exit code, no thread and no descriptor
    more for who says nothing."""
    many = request.config.getoption("strangers")
    job = run_visited(mpi, tmp_path / "visited", many, seed=request.config.getoption("chaos_seed"))
    assert sum(job.calls.values()) + job.kept_out == many
    assert job.code == ExitCode.COMPLETE, job.said
    assert verify_run(job.out).ok
    assert len(read_results(job.out).images) == IMAGES
    assert "Traceback" not in job.said
    assert job.open_at_last == 0
    found = job.usage[0]  # alone it has 6 threads, 25 to 36 descriptors, 175 to 190 MiB
    assert found.threads <= 8
    assert found.descriptors <= 44 + STRANGERS
    assert found.rss_mib <= 210


def give_away(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if another user owned it: to change an owner one must be root."""
    real = Path.lstat

    def lstat(self: Path) -> os.stat_result:
        found = list(real(self))
        return os.stat_result([*found[:4], 54321, *found[5:]] if self == path else found)

    monkeypatch.setattr(Path, "lstat", lstat)


def ways_in(out: Path, **settings: Any) -> list[Callable[[], Any]]:
    """All that writes to a folder of results, or believes what it holds."""
    return [
        lambda: check_place(out, shared=bool(settings)),
        lambda: open_folder(out, shared=bool(settings)),
        lambda: joined_settings({"out": str(out), **settings}, "flags", None),
    ]


@pytest.mark.parametrize("name", [".", "parts", "rows", "leases", "jobs"])
def test_a_link_in_the_place_of_a_results_folder_is_refused(tmp_path: Path, name: str) -> None:
    """Rows would go where the one who made it says, so whoever owns it and whatever is shared."""
    private = tmp_path / "private"
    make_run(private, 18)
    before = sorted(private.rglob("*"))
    out = tmp_path / "out"
    if name != ".":
        out.mkdir()
        (out / "run.1.json").write_bytes((private / "run.1.json").read_bytes())
    (out / name).symlink_to(private / name, target_is_directory=True)
    for way in (*ways_in(out), *ways_in(out, shared_out="on")):
        with pytest.raises(EnvironmentFault, match=r"a symbolic link, to .*private") as caught:
            way()
        assert ("name the folder itself" if name == "." else "(rm ") in str(caught.value)
    assert sorted(private.rglob("*")) == before
    assert name == "." or {path.name for path in out.iterdir()} == {"run.1.json", name}


@pytest.mark.parametrize("name", ["parts", "rows", "leases", "jobs", "status"])
def test_a_file_in_the_place_of_a_results_folder_is_refused(tmp_path: Path, name: str) -> None:
    """A job would try for ten minutes to write into it."""
    (tmp_path / name).write_text("")
    for way in ways_in(tmp_path)[:2]:
        with pytest.raises(EnvironmentFault, match=rf"/{name}: it is no folder"):
            way()


def test_a_link_above_the_results_folder_is_the_users_own(tmp_path: Path) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "scratch")
    assert verify_run(make_run(tmp_path / "runs" / "first", 18)).ok


@pytest.mark.parametrize("name", [".", "parts", "rows", "leases", "jobs"])
def test_a_results_folder_of_another_user_wants_a_flag(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    make_run(out, 18, settings={"scheme": "collage", "side": 3, "shared_out": "on"})
    (out / name).mkdir(exist_ok=True)
    give_away(out / name, monkeypatch)
    for way in ways_in(out):  # what the folder itself says of sharing is not asked
        with pytest.raises(EnvironmentFault, match="belongs to a user without a name") as caught:
            way()
        assert "--shared-out" in str(caught.value)
    check, join, settings = ways_in(out, shared_out="on")
    check()
    join()
    assert settings().shared_out == "on"


def test_files_are_as_open_as_umask_says(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        run = make_run(tmp_path / "run", 18, extras={"top_k": 2, "save": "none"})
        export_run(read_results(run), "csv")
        write_shard(tmp_path / "s.h5", np.zeros((3, 4, 4, 1), np.uint8))
        assert main(["slurm", "render", "run_nodes", "--out", str(tmp_path / "job.sh")]) == 0
    finally:
        os.umask(before)
    for path in tmp_path.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    assert (tmp_path / "job.sh").stat().st_mode & 0o100


# ---- names in inputs --------------------------------------------------------


@pytest.mark.parametrize("name", HOSTILE)
def test_a_prefix_is_the_start_of_a_file_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(CollageError):  # refused, or no further than the images, which are not there
        from_idx(IdxArguments(prefix=name, images=tmp_path / "none.idx", out=tmp_path))
    if "/" not in name and not name.startswith("."):
        assert all(path.parent == tmp_path for path in shard_paths(tmp_path, name, 20, 5))


def test_names_in_shards_and_runs_are_only_text(tmp_path: Path) -> None:
    """Hostile class names, ids and paths in a run's manifest choose no file of an export."""
    images = np.zeros((len(HOSTILE), 4, 4, 1), np.uint8)
    names = [name.replace("\0", "0") for name in HOSTILE]
    inside = tmp_path / "inside"
    write_shard(inside / "s.h5", images, ids=names, class_names=names)
    run = make_run(
        inside / "run",
        18,
        class_names=names,
        shards=[
            {"path": "../../escape.h5", "fingerprint": "aa" * 32, "count": 9},
            {"path": "/tmp/escape.h5", "fingerprint": "bb" * 32, "count": 9},
        ],
        run_id="../../escape",
        scheme="../escape",
    )
    before = set(tmp_path.rglob("*"))
    for to in ("csv", "parquet"):
        for path in export_run(read_results(run), to):
            assert path.parent == run / "export"
    for path in set(tmp_path.rglob("*")) - before:
        assert run / "export" in (path, *path.parents)


CELLS = {
    "=HYPERLINK(1)": "'=HYPERLINK(1)",
    "+1+2": "'+1+2",
    "-n02012849": "'-n02012849",
    "@SUM(A1)": "'@SUM(A1)",
    "\t=1": r"\x09=1",
    "a\x1b[31m\nb\r\x9b": r"a\x1b[31m\x0ab\x0d\x9b",
    "-1.5": "-1.5",
    "crane = bird": "crane = bird",
    "ça, va": "ça, va",
    "class 9": "class 9",
}


def test_no_cell_of_csv_is_a_formula_or_draws_on_a_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Class names, ids and reasons come from others; --raw gives them as they are."""
    run = make_run(tmp_path / "run", 90, class_names=[*CELLS])

    def exported(*words: str) -> set[str]:
        assert main(["export", str(run), "--to", "csv", *words]) == 0
        with open(capsys.readouterr().out.splitlines()[0], newline="") as file:
            rows = list(csv.DictReader(file))
        column = "class" if "--predictions" in words else "predicted_name"
        return {row[column] for row in rows}

    assert exported() == exported("--predictions") == {*CELLS.values()}
    assert exported("--raw") == exported("--raw", "--predictions") == {*CELLS}


def test_raw_texts_are_those_of_csv(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", 18)
    assert main(["export", str(run), "--to", "zarr", "--raw"]) == ExitCode.USAGE
    assert "raw texts are for csv" in capsys.readouterr().err
    assert main(["export", str(run), "--to", "zarr", "--predictions"]) == ExitCode.USAGE
    assert "as csv or parquet, not as zarr" in capsys.readouterr().err


# ---- text that reaches a shell ----------------------------------------------

WORDS = ("a;touch${IFS}pwned", "$(touch${IFS}pwned)", "`touch${IFS}pwned`", "a'b\"c", "x|y", "a&b")


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("kind", KINDS)
def test_settings_reach_a_job_script_as_sbatch_options_only(kind: str, word: str, tmp_path) -> None:
    """`setup` is meant to be shell; every other text stands on #SBATCH lines, and is one word."""
    words = dict.fromkeys(("account", "partition", "mem_per_cpu"), word)
    words |= {"array": word} if KINDS[kind].array else {}
    settings = SlurmSettings(**words, directives=(f"--comment={word}",))
    text = render(kind, settings)
    for line in text.splitlines():
        assert word not in line or line.lstrip().startswith("#"), line
    script = tmp_path / "job.sh"
    script.write_text(text)
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0


@pytest.mark.parametrize("field", ["account", "partition", "mem_per_cpu", "array", "time"])
@pytest.mark.parametrize("text", ["a\ntouch pwned", "a b", "a\rb", "a#b", ""])
def test_a_setting_of_several_lines_is_refused(field: str, text: str) -> None:
    with pytest.raises(UsageError):
        SlurmSettings(**{field: text})


def test_a_directive_of_several_lines_is_refused() -> None:
    for text in ("--qos=x\ntouch pwned", "touch pwned", "--a\r--b"):
        with pytest.raises(UsageError):
            SlurmSettings(directives=(text,))


def test_the_launch_line_to_paste_is_quoted() -> None:
    from collage_mpi.launch.mpiexec import LaunchPlan
    from collage_mpi.system.launchers import FAMILIES

    words = ("mpiexec", "a b", "$(touch pwned)")
    line = LaunchPlan(words, FAMILIES["mpich"], {"X": "`id`"}).shell_line()
    assert "'a b'" in line
    assert "'$(touch pwned)'" in line
    assert "'`id`'" in line


# ---- the wire ---------------------------------------------------------------


def messages() -> dict[str, tuple[Any, np.ndarray]]:
    """Of each type: what reads it, and a sound one."""
    buffer = np.zeros(4096, np.uint8)

    def sound(pack: Any, *content: Any) -> np.ndarray:
        return buffer[: pack(buffer, 1, *content)].copy()

    tasks = [WireTask(1, "single", ((0, 0),))]
    results = [WireResult(1, ANSWERED, compute_ns=10, cells=(Score(3, 0.5), None))]
    return {
        "tasks": (unpack_tasks, sound(pack_tasks, tasks, [np.ones(16, np.uint8)])),
        "results": (unpack_results, sound(pack_results, results)),
        "cancel": (unpack_cancel, sound(pack_cancel, [1, 2])),
        "control": (wire.unpack_control, sound(wire.pack_control, b"{}")),
    }


@pytest.mark.parametrize("kind", ["tasks", "results", "cancel", "control"])
def test_a_message_of_another_size_or_version_is_refused(kind: str) -> None:
    unpack, message = messages()[kind]
    unpack(message)
    for wrong in (message[:-1], np.append(message, np.uint8(7)), message[:4], message[:0]):
        with pytest.raises(wire.WireFault):
            unpack(wrong)
    for at in (0, 4):  # the mark, the version
        other = message.copy()
        other[at] ^= 0xFF
        with pytest.raises(wire.ForeignPeer, match="do all ranks run the same"):
            unpack(other)


@pytest.mark.mpi
@pytest.mark.parametrize("rank", [0, pytest.param(2, marks=pytest.mark.any_mpi)])
def test_a_rank_of_another_version_ends_the_job_with_one_message(mpiexec, tmp_path, rank) -> None:
    images = np.zeros((8, 4, 4, 1), np.uint8)
    write_shard(tmp_path / "s.h5", images, np.zeros(8, np.int64), class_names=["a"])
    run = ["run", "--shards", tmp_path / "s.h5", "--single", "null", "--collage", "null"]
    run += ["--side", "2", "--singles", "2", "--out", tmp_path / "out"]
    done = mpiexec(4, [SABOTEUR, rank, "version", *run])
    assert done.returncode == ExitCode.ENVIRONMENT, done.stderr
    assert "do all ranks run the same collage_mpi?" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out" / "COMPLETE.1").exists()
