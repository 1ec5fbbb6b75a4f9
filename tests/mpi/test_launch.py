"""Real ranks: they start, they are one world, they stop when asked, a hang is killed whole."""

from __future__ import annotations

import io
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import pytest
from mortal_jobs import LIMIT_S, running

import collage_mpi
from collage_mpi.cli import main
from collage_mpi.errors import ExitCode
from collage_mpi.launch.ending import exit_code
from collage_mpi.launch.mpiexec import build_command, site_here
from collage_mpi.launch.supervisor import Limits, Supervisor
from collage_mpi.results import read_results
from collage_mpi.system.environment import STATUS_VARIABLE
from collage_mpi.system.hard_exit import unlink
from collage_mpi.system.process_tree import holders_of, own_command, process_table

pytestmark = pytest.mark.mpi
DATA = Path(collage_mpi.__file__).parent / "data"


def test_eleven_ranks_are_one_world(mpiexec, programs):
    done = mpiexec(11, [programs / "hello.py"])
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[:12] == ["ranks", *map(str, range(11))]


def test_the_ranks_exit_code_comes_through(mpiexec, programs):
    done = mpiexec(3, [programs / "hello.py", 6])
    assert done.returncode == 6


def test_a_hang_is_killed_whole_within_the_timeout(mpiexec, programs, tmp_path):
    program = tmp_path / "hang_here.py"
    shutil.copy(programs / "hello.py", program)
    with pytest.raises(pytest.fail.Exception, match="did not end within"):
        mpiexec(3, [program, 0, 2], timeout=3)
    assert running(program) == []


def supervised(mpi, ranks: int, *words: object, **options) -> tuple[int, str, str]:
    """The exit code and output of a program under launch's supervision, launch's own line last."""
    program = [sys.executable, *map(str, words)]
    extra = {STATUS_VARIABLE: "1", "PYTHONUNBUFFERED": "1"}
    plan = build_command(mpi, ranks, program, site_here(), extra_env=extra)
    out, err = io.StringIO(), io.StringIO()
    ending = Supervisor(plan, Limits(**options), out, err).run()
    code, note = exit_code(ending, None)
    return code, out.getvalue(), err.getvalue() + (f"{note}\n" if note else "")


def when_there(file: Path, number: signal.Signals) -> None:
    """Signal this process once `file` exists."""

    def wait() -> None:
        end_s = time.monotonic() + LIMIT_S
        while not file.exists() and time.monotonic() < end_s:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=wait).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR2])
def test_a_stop_reaches_rank_0_and_its_code_comes_back(mpi, programs, tmp_path, number):
    ready = tmp_path / "ready"
    when_there(ready, number)
    code, _, err = supervised(mpi, 3, programs / "stoppable.py", ready, timeout_s=LIMIT_S)
    assert code == 6
    assert "collage-mpi run: stopped\n" in err
    assert "waiting: " in err  # the last status, drawn
    assert "@status" not in err


@pytest.mark.parametrize("rank", [0, 2])
def test_what_a_rank_says_before_an_abort_is_passed_on(mpi, programs, rank):
    code, out, err = supervised(mpi, 3, programs / "fails.py", "abort", rank, timeout_s=LIMIT_S)
    assert code == 3
    assert (out + err).count(f"collage-mpi run: rank {rank} cannot go on\n") == 1


@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_rank_ends_the_job_and_is_named(mpi, programs, rank):
    code, _, err = supervised(mpi, 3, programs / "fails.py", "kill", rank, timeout_s=LIMIT_S)
    assert code == 3  # this program never says that MPI is up
    assert f"rank {rank} was ended by SIGKILL" in err


def test_a_hang_ends_with_the_time_limit(mpi, programs, tmp_path):
    program = tmp_path / "hang_limit.py"
    shutil.copy(programs / "hello.py", program)
    code, _, _ = supervised(mpi, 3, program, 0, 2, timeout_s=3.0)
    assert code == 6
    assert running(program) == []


def test_a_killed_launch_leaves_no_ranks(programs, tmp_path):
    program, ready = tmp_path / "left_alone.py", tmp_path / "ready"
    shutil.copy(programs / "stoppable.py", program)
    source = (
        "import sys; from collage_mpi.launch.mpiexec import *\n"
        "from collage_mpi.launch.supervisor import Limits, Supervisor\n"
        "mpi = find_mpi()\n"
        "plan = build_command(mpi, 3, [sys.executable, *sys.argv[1:]], site_here())\n"
        "Supervisor(plan, Limits()).run()"
    )
    launch = subprocess.Popen(
        [sys.executable, "-c", source, program, ready],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    end_s = time.monotonic() + LIMIT_S
    while not ready.exists() and time.monotonic() < end_s:
        time.sleep(0.02)
    launch.kill()
    launch.wait()
    while running(program) and time.monotonic() < end_s:
        time.sleep(0.05)
    left = running(program)
    assert left == []


SEES_ALL_PROCESSES = os.readlink("/proc/self/ns/pid") == "pid:[4026531836]"  # not in a container


def test_the_next_launch_removes_the_shared_memory_of_a_job_that_was_killed_with_its_guard(
    mpi, programs, tmp_path
):
    """Not what a process has mapped; in a container, where processes may be unseen, later."""
    ready, launch = tmp_path / "ready", [*own_command(), "launch", "--mpi", mpi.family, "-n"]
    quiet = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.DEVNULL)
    job = subprocess.Popen([*launch, "3", "--", programs / "holds_memory.py", ready], **quiet)
    end_s = time.monotonic() + LIMIT_S
    while job.poll() is None and not ready.exists() and time.monotonic() < end_s:
        time.sleep(0.05)
    word, *files = ready.read_text().split()
    next_launch = [*launch, "1", "--", programs / "hello.py"]
    subprocess.run(next_launch, **quiet, check=True)
    there = [Path(file) for file in files if Path(file).exists()]
    assert there
    for pid in [*process_table(), job.pid]:  # launch, its guard, the launcher and the ranks
        with suppress(OSError):
            told = [Path(f"/proc/{pid}/{file}").read_bytes() for file in ("cmdline", "environ")]
            if pid == job.pid or word.encode() in b"".join(told):
                os.kill(pid, signal.SIGKILL)
    job.wait()
    while holders_of(f"COLLAGE_MPI_JOB={word}") and time.monotonic() < end_s:
        time.sleep(0.05)
    killed_whole = [file for file in there if file.exists()]
    subprocess.run(next_launch, **quiet, check=True)
    left = [file for file in killed_whole if file.exists()]
    unlink(left)
    assert killed_whole
    assert left == ([] if SEES_ALL_PROCESSES else killed_whole)


SCRIPT = """
import logging
import sys
import collage_mpi
if "--log" in sys.argv:
    logging.basicConfig(filename=sys.argv[-1], format="%(levelname)s of %(name)s: %(message)s")
from part_of_mine import settings
code = collage_mpi.run(settings(sys.argv[1]))
print("ended with " + str(int(code)))  # in one piece: three ranks write at once
sys.exit(7 if "--own" in sys.argv else 0)
"""
PART = f"""
from collage_mpi import RunSettings
def settings(out):
    null = {{"single": "null", "collage": "null", "cell_px": 28, "singles": 1, "limit": 24}}
    return RunSettings(shards=({str(DATA / "fashion_demo.h5")!r},), out=out, **null)
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "part_of_mine.py").write_text(PART)
    (tmp_path / "script.py").write_text(SCRIPT)
    return tmp_path / "script.py"


def test_a_script_of_ones_own_is_launched(script, tmp_path, capfd):
    words = ["launch", "-n", "3", "--", str(script), str(tmp_path / "out")]
    assert main(words) == 0
    assert capfd.readouterr().out.count("ended with 0") == 3
    assert len(read_results(tmp_path / "out").images) == 24
    assert main(words) == 0, "the run is complete"
    (tmp_path / "file").touch()
    wrong = [*words[:-1], str(tmp_path / "file")]
    assert main(wrong) == 3, "what its run said"
    assert "is a file" in capfd.readouterr().err
    assert main([*wrong, "--log", str(tmp_path / "log")]) == 3
    assert "is a file" not in capfd.readouterr().err
    assert (tmp_path / "log").read_text().startswith("ERROR of collage_mpi: collage-mpi run: ")


def test_such_a_script_outlives_lost_ranks_too(script, tmp_path):
    words = ["launch", "-n", "3", "--on-rank-loss", "continue", "--", str(script)]
    assert main([*words, str(tmp_path / "out"), "--own"]) == 7, "its own code"
    assert len(read_results(tmp_path / "out").images) == 24


@pytest.mark.any_mpi
def test_a_run_is_started_from_python(script, tmp_path, monkeypatch, capfd):
    monkeypatch.syspath_prepend(tmp_path)
    settings = import_module("part_of_mine").settings(str(tmp_path / "out"))
    done: list[object] = []
    thread = threading.Thread(target=lambda: done.append(collage_mpi.launch_run(settings)))
    thread.start()  # as a notebook's or a server's may be
    thread.join(LIMIT_S)
    assert done == [ExitCode.COMPLETE]
    assert len(collage_mpi.read_results(tmp_path / "out").images) == 24
    assert collage_mpi.launch_run(settings) == ExitCode.COMPLETE  # it was complete


def test_launch_says_what_it_would_type(mpi):
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "collage_mpi",
            "launch",
            "-n",
            "3",
            "--dry-run",
            "--",
            "verify",
            "D",
        ],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert str(mpi.mpiexec) in done.stdout
    assert "tmpdir_base" not in done.stdout  # of one job alone, and removed after it
    assert done.stdout.endswith(f"-n 3 {shlex.join(own_command())} verify D\n")


def test_what_a_killed_launcher_left_under_a_number_that_comes_again_stops_nobody(
    mpi, programs, tmp_path, monkeypatch
):
    """Open MPI's keeps its files by process number, where those of a dead one end a new one."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    last = int(Path("/proc/loadavg").read_text().split()[-1])  # process number
    for number in range(last, last + 400):
        left = tmp_path / f"ompi.{number}"
        left.mkdir(mode=0o700)
        (left / f"pmix.vm.tool.{number}").write_text("dead")
    before = set(tmp_path.iterdir())
    code, out, err = supervised(mpi, 2, programs / "hello.py")
    assert code == 0, err
    assert out.split()[:3] == ["ranks", "0", "1"]
    assert set(tmp_path.iterdir()) == before
