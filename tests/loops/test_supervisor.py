"""A launched job followed to its end, with a small Python program in the launcher's place.

The programs sleep for longer than a test may take: whoever waits for one of them fails.
"""

from __future__ import annotations

import ctypes
import io
import mmap
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from collage_mpi.commands import launch as command
from collage_mpi.job.main import StopFlag
from collage_mpi.launch import ending, mpiexec, supervisor
from collage_mpi.launch.ending import TIME_LIMIT, Ending, exit_code, never_up
from collage_mpi.launch.mpiexec import PREFIX, LaunchPlan, held, note_signal
from collage_mpi.launch.supervisor import Limits, Supervisor
from collage_mpi.system import process_tree
from collage_mpi.system.environment import STATUS_VARIABLE
from collage_mpi.system.forked import FOLDER_VARIABLE
from collage_mpi.system.launchers import FAMILIES
from collage_mpi.system.process_tree import GUARD, process_table

MPICH = FAMILIES["mpich"]


def job(
    source: str, family="mpich", clock=time.monotonic, signals=None, **limits
) -> tuple[Supervisor, io.StringIO, io.StringIO]:
    out, err = io.StringIO(), io.StringIO()
    variables = {"GREETING": "hello", STATUS_VARIABLE: "w"}
    plan = LaunchPlan((sys.executable, "-c", source), FAMILIES[family], variables, 3)
    return Supervisor(plan, Limits(**limits), out, err, clock, signals), out, err


def test_output_passes_and_statuses_are_drawn():
    made, out, err = job(
        "import os, sys\n"
        "print(os.environ['GREETING'])\n"
        'print(\'@status:w {"done":1,"total":2,"phase":"none"}\', file=sys.stderr)\n'
        "print('other', file=sys.stderr)\n"
        "print('end without newline', end='')\n"
        "sys.exit(4)"
    )
    outcome = made.run()
    assert outcome.launcher == 4
    assert out.getvalue() == "hello\nend without newline\n"
    assert err.getvalue() == "other\nnone: 1 of 2 images (50.0 %)\n"


def test_rank_0s_word_is_kept_apart_from_the_launchers_code():
    made, _, err = job("import sys; print('@status:w {\"exit\":6}', file=sys.stderr)")
    outcome = made.run()
    assert (outcome.launcher, outcome.reported) == (0, 6)
    assert exit_code(outcome, None)[0] == 6
    assert err.getvalue() == ""


def test_the_time_limit_ends_the_job_and_its_children():
    made, out, _ = job(
        "import subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "child.wait()",
        timeout_s=1.0,
    )
    outcome = made.run()
    assert outcome.cut is TIME_LIMIT
    assert exit_code(outcome, None)[0] == 6
    assert int(out.getvalue()) not in process_table()  # a zombie is no process


def test_a_process_that_outlives_the_launcher_does_not_hold_us():
    made, _, _ = job("import subprocess; subprocess.Popen(['sleep', '600'])")
    assert made.run().launcher == 0


def test_a_launcher_that_is_killed_leaves_nobody():
    """Its children have another parent by then, and a session and pipes of their own."""
    made, out, _ = job(
        "import os, signal, subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True, stdin=-3, stdout=-3,"
        " stderr=-3)\n"
        "print(child.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    outcome = made.run()
    code, note = exit_code(outcome, None)
    assert code == 3
    assert "the launcher was ended by SIGKILL before the job had begun" in note
    assert int(out.getvalue()) not in process_table()


ENDED = 'print(\'@status:w {"ended":3,"code":137}\', file=sys.stderr, flush=True)\n'
UP = "print('@status:w {\"up\":true}', file=sys.stderr, flush=True)\n"


def test_a_rank_that_ends_before_mpi_is_up_ends_the_start(monkeypatch):
    monkeypatch.setattr(ending, "END_GRACE_S", 0.3)
    made, _, _ = job(f"import sys, time\n{ENDED}time.sleep(600)", start_limit_s=600.0)
    code, note = exit_code(made.run(), None)
    assert code == 3
    assert "rank 3 has ended before it (SIGKILL)" in note


FAULT = 'print(\'@status:w {"rank":3,"fault":"Traceback: why"}\', file=sys.stderr, flush=True)\n'


@pytest.mark.parametrize("then", ["time.sleep(600)", "sys.exit(1)"])
def test_a_rank_that_fails_alone_before_mpi_is_up_is_heard(monkeypatch, then):
    """Rank 0 speaks for all where all fail alike; whether the launcher ends the job or launch."""
    monkeypatch.setattr(ending, "END_GRACE_S", 0.3)
    ended = ENDED.replace("137", "1")
    made, _, err = job(
        f"import sys, time\n{FAULT}{FAULT.replace('3', '2', 1)}{ended}{then}",
        start_limit_s=600.0,
    )
    code, note = exit_code(made.run(), None)
    assert code == 3
    assert err.getvalue() == "Traceback: why\n"
    assert "rank 3 has ended " in note


def test_a_fault_that_rank_0_tells_is_told_once_with_its_code():
    told = 'collage-mpi run: no\n@status:w {"exit":2}'
    made, _, err = job(
        f"import sys\nprint({told!r}, file=sys.stderr, flush=True)\n{FAULT}"
        f"{ENDED.replace('137', '2')}sys.exit(2)",
        start_limit_s=600.0,
    )
    assert exit_code(made.run(), None) == (2, None)
    assert err.getvalue() == "collage-mpi run: no\n"


@pytest.mark.parametrize("said", [UP + ENDED, ENDED + UP])
def test_a_rank_that_ends_when_mpi_is_up_is_rank_0_s_business(monkeypatch, said):
    monkeypatch.setattr(ending, "END_GRACE_S", 0.5)
    made, _, err = job(f"import sys, time\n{said}time.sleep(1)", start_limit_s=600.0)
    outcome = made.run()
    assert (outcome.cut, outcome.begun) == (None, True)
    assert err.getvalue() == ""


def test_a_start_that_is_suspended_has_not_used_up_its_time():
    """launch's clock jumps by an hour, once, as if all had been stopped meanwhile."""
    hours = []

    def clock() -> float:
        hours.append(1)
        return time.monotonic() + (3600 if len(hours) > 4 else 0)

    made, _, _ = job(f"import sys, time\ntime.sleep(1)\n{UP}", start_limit_s=60.0, clock=clock)
    assert made.run().cut is None


def test_who_does_not_leave_when_rank_0_has_died_is_killed():
    said = UP + ENDED.replace("3", "0", 1)
    made, _, _ = job(
        f"import signal, sys, time\n{said}signal.signal(15, signal.SIG_IGN)\ntime.sleep(600)",
        leave_grace_s=0.3,
    )
    code, note = exit_code(made.run(), None, must_report=True)
    assert code == 6
    assert note.startswith("rank 0 was ended by SIGKILL: the job is incomplete.")


IS_UP = '@status:w {"up": 1}\n'


def test_a_rank_that_a_signal_ends_before_mpi_is_up_is_named():
    told = "".join(f'@status:w {{"ended": {rank}, "code": 135}}\n' for rank in (2, 1))
    made, _, _ = job(f"import sys; print({told!r}, file=sys.stderr); sys.exit(135)")
    code, note = exit_code(made.run(), None)
    assert code == 3
    assert "rank 2 was ended by SIGBUS (/dev/shm may be full" in note


@pytest.mark.parametrize(
    ("status", "stopped_by", "tolerant"), [(IS_UP, None, True), (IS_UP, 15, False), ("", 15, False)]
)
def test_who_ends_when_told_to_or_is_survived_is_not_the_one_that_ended_the_job(
    status, stopped_by, tolerant
):
    told = status + '@status:w {"ended": 2, "code": 143}'
    made, _, _ = job(f"import sys; print({told!r}, file=sys.stderr); sys.exit(6)")
    made._plan = replace(made._plan, tolerant=tolerant)
    made._ending.stopped_by = stopped_by
    found, note = exit_code(made.run(), None)
    assert found == 6
    assert "rank 2" not in (note or "")


def test_of_ranks_that_end_badly_the_first_is_named():
    told = IS_UP + "".join(f'@status:w {{"ended": {rank}, "code": 137}}\n' for rank in (2, 0))
    made, _, _ = job(f"import sys; print({told!r}, file=sys.stderr); sys.exit(9)")
    code, note = exit_code(made.run(), None)
    assert code == 6
    assert note.startswith("rank 2 was ended by SIGKILL: the job is incomplete.")


KILLED = (
    "import sys\n"
    "from collage_mpi.launch.mpiexec import LaunchPlan\n"
    "from collage_mpi.launch.supervisor import Limits, Supervisor\n"
    "from collage_mpi.system.launchers import FAMILIES\n"
    "source = 'import os, signal, time; signal.signal(15, signal.SIG_IGN); '\n"
    "source += 'print(os.getpid(), flush=True); time.sleep(600)'\n"
    "plan = LaunchPlan((sys.executable, '-uc', source), FAMILIES['mpich'])\n"
    "Supervisor(plan, Limits(stop_grace_s=1.0)).run()\n"
)


def test_when_launch_is_killed_nothing_of_the_job_stays():
    """The launcher is asked to end and does not, as MPICH's with a rank 0 that is stopped."""
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True)
    pid = int(process.stdout.readline())
    pidfd = os.pidfd_open(pid)
    process.kill()
    process.wait()
    process.stdout.close()
    assert select.select([pidfd], [], [], 30.0)[0]
    os.close(pidfd)


def guarding(scratch: object, shm: Path, temp: Path, proc: Path = Path("/proc")):
    """A guard of no job that waits for what launch says."""
    words = ["sh", str(GUARD), "COLLAGE_MPI_JOB=none", "1", scratch, shm, temp, proc]
    guard = subprocess.Popen([str(word) for word in words], stdin=subprocess.PIPE)
    while Path(f"/proc/{guard.pid}/syscall").read_text().split()[1:2] != ["0x0"]:
        time.sleep(0.01)
    return guard


def test_a_launch_has_a_folder_of_its_own_that_goes_with_it(tmp_path):
    mine = tmp_path / f"{PREFIX}1"
    with held(str(mine)):
        assert mine.stat().st_mode & 0o777 == 0o700
    assert not mine.exists()


@pytest.mark.parametrize("last", [b"over\n", b"sweep\n", b""])
@pytest.mark.parametrize("lives", [True, False])
def test_what_a_killed_launch_or_launcher_left_is_removed(tmp_path, last, lives):
    """The folder of a launch that was killed, b"" here; the map of the machine that MPICH's
    launcher wrote meanwhile, where no launcher of this user could need it; maps that are old."""
    temp, proc = tmp_path / "tmp", tmp_path / "proc"
    for folder in (temp, proc / "7"):
        folder.mkdir(parents=True)
    (proc / "7" / "comm").write_text("hydra_pmi_proxy\n" if lives else "python\n")
    old, others, mine = (temp / f"hydra_hwloc_xmlfile_{number}" for number in range(3))
    for path in (old, others, temp / "my_file"):
        path.touch()
    os.utime(old, (0, 0))
    scratch = temp / f"{PREFIX}1"
    scratch.mkdir()
    guard = guarding(scratch, tmp_path / "none", temp, proc)
    mine.touch()
    guard.communicate(last)
    assert [path.exists() for path in (old, others, mine)] == [False, True, lives]
    assert scratch.exists() == bool(last)
    assert (temp / "my_file").exists()


@pytest.mark.parametrize("last", [b"over\n", b"sweep\n", b""])
@pytest.mark.parametrize("sees_all", [True, False])
def test_what_a_start_that_failed_left_in_shared_memory_is_removed(tmp_path, last, sees_all):
    """Not what a process has mapped or open, or what is not MPI's; in a container, where others'
    processes are not seen, not what was there before."""
    shm, proc = tmp_path / "shm", tmp_path / "proc"
    for folder in (shm, proc / "self" / "ns"):
        folder.mkdir(parents=True)
    (proc / "self" / "ns" / "pid").symlink_to(f"pid:[{4026531836 if sees_all else 1}]")
    before, mapped, held, left = (shm / f"mpich_shm_{i}_0" for i in range(1, 5))
    before.touch()
    guard = guarding("", shm, tmp_path / "none", proc)
    for path in (mapped, held, left, shm / "x_4"):
        path.write_bytes(bytes(4096))
    libc = ctypes.CDLL(None)  # Python's own mmap keeps the file open
    libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, *[ctypes.c_long] * 5]
    with mapped.open() as file:
        page = libc.mmap(None, 4096, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    with held.open():
        guard.communicate(last)
    libc.munmap(ctypes.c_void_p(page), ctypes.c_long(4096))
    assert mapped.exists()
    assert held.exists()
    assert (shm / "x_4").exists()
    assert left.exists() == (last == b"over\n")
    assert before.exists() != sees_all


def test_the_guard_ends_a_job_where_there_is_no_shared_memory_to_look_at(tmp_path):
    word = f"COLLAGE_MPI_JOB={tmp_path}"
    name, _, value = word.partition("=")
    left = subprocess.Popen(["sleep", "600"], env={**os.environ, name: value})
    while not Path(f"/proc/{left.pid}/environ").read_bytes():
        time.sleep(0.01)  # it is empty while the program starts
    words = ["sh", str(GUARD), word, "0", "", str(tmp_path / "none"), str(tmp_path)]
    subprocess.run(words, stdin=subprocess.DEVNULL)
    assert left.wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("status", "limit_s", "last"),
    [("", 60.0, "sweep\n"), (IS_UP, 60.0, "over\n"), ("", None, "over\n")],
)
def test_the_guard_looks_for_shared_memory_where_mpi_never_came_up(
    monkeypatch, tmp_path, status, limit_s, last
):
    """Where nobody listens for the ranks it is not known."""
    guard, told = tmp_path / "guard.sh", tmp_path / "told"
    guard.write_text(f"cat > {told}")
    monkeypatch.setattr(process_tree, "GUARD", guard)
    made, _, _ = job(f"import sys; print({status!r}, file=sys.stderr)", start_limit_s=limit_s)
    made.run()
    assert told.read_text() == last


LAUNCHING = (
    "import sys\n"
    "from collage_mpi.launch.mpiexec import LaunchPlan\n"
    "from collage_mpi.launch.ending import exit_code\n"
    "from collage_mpi.launch.supervisor import Limits, Supervisor\n"
    "from collage_mpi.system.launchers import FAMILIES\n"
    "source = 'import time; print(1); time.sleep(0.5); print(2); raise SystemExit(4)'\n"
    "plan = LaunchPlan((sys.executable, '-uc', source), FAMILIES['mpich'])\n"
    "sys.exit(exit_code(Supervisor(plan, Limits()).run(), None)[0])\n"
)


@pytest.mark.parametrize("where", ["/dev/full", "closed", "a reader that goes"])
def test_output_that_cannot_be_written_does_not_end_the_job(where):
    reading, writing = os.pipe()
    os.close(reading)
    target = {"closed": "exec >&- 2>&-; ", "/dev/full": "exec >/dev/full 2>&1; "}.get(where, "")
    words = ["bash", "-c", f'{target}exec "$0" -c "$1"', sys.executable, LAUNCHING]
    done = subprocess.run(words, stdout=writing, stderr=writing, stdin=subprocess.DEVNULL)
    os.close(writing)
    assert done.returncode == 4


STOPPABLE = (
    "import signal, sys, time\n"
    "def stop(*_): print('collage-mpi run: stopped', file=sys.stderr); sys.exit(6)\n"
    "signal.signal(signal.SIGTERM, stop)\n"
    "print('ready', flush=True)\n"
    "time.sleep(600)"
)
STUBBORN = (
    "import signal, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "print('ready', flush=True)\n"
    "time.sleep(600)"
)


class WhenReady(io.StringIO):
    """Signals this process once the job has said it is ready."""

    def __init__(self, *numbers: signal.Signals) -> None:
        super().__init__()
        self._numbers = numbers

    def write(self, text: str) -> int:
        if "ready" in text:
            threading.Thread(target=self._send).start()
        return super().write(text)

    def _send(self) -> None:
        for number in self._numbers:
            os.kill(os.getpid(), number)
            time.sleep(0.3)


def stopped(source: str, *numbers: signal.Signals, grace_s: float = 20.0) -> int:
    plan, err = LaunchPlan((sys.executable, "-c", source), MPICH), io.StringIO()
    made = Supervisor(plan, Limits(stop_grace_s=grace_s), WhenReady(*numbers), err)
    code = exit_code(made.run(), None)[0]
    assert f"{numbers[0].name}: stopping; results so far are kept" in err.getvalue()
    return code


def test_a_stop_lets_the_job_end_by_itself():
    assert stopped(STOPPABLE, signal.SIGINT) == 6
    assert stopped(STOPPABLE, signal.SIGUSR2) == 6


SHOW = command.LaunchArguments(words=("show",))


def test_a_signal_that_finds_the_job_over_does_not_change_its_code(monkeypatch):
    plan = LaunchPlan((sys.executable, "-c", "raise SystemExit(5)"), MPICH)

    def told(*args, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        return exit_code(*args, **options)

    monkeypatch.setattr(command, "exit_code", told)
    before = signal.getsignal(signal.SIGTERM)
    assert command._follow(plan, SHOW) == 5
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_came_before_the_job_stops_it():
    made, _, err = job("import time; time.sleep(600)", signals=[signal.SIGTERM], stop_grace_s=0.5)
    outcome = made.run()
    assert outcome.stopped_by == signal.SIGTERM
    assert "SIGTERM: stopping" in err.getvalue()


def test_a_signal_before_the_job_is_passed_on_to_it(monkeypatch):
    class Late(Supervisor):
        def __init__(self, *args, **options) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            super().__init__(*args, **options)

    monkeypatch.setattr(command, "Supervisor", Late)
    plan = LaunchPlan((sys.executable, "-c", "import time; time.sleep(600)"), MPICH)
    assert command._follow(plan, SHOW) == 128 + signal.SIGTERM


def test_after_a_signal_between_two_starts_there_is_no_second(monkeypatch):
    class Hung(Supervisor):
        def run(self) -> Ending:
            starts.append(1)
            os.kill(os.getpid(), signal.SIGTERM)
            return Ending(launcher=1, cut=never_up("rank 1", hung=True))

    starts: list[int] = []
    monkeypatch.setattr(command, "Supervisor", Hung)
    command._follow(LaunchPlan(("true",), MPICH), SHOW)
    assert starts == [1]


def test_nor_does_one_to_a_process_on_its_way_out():
    leaving = (
        "import atexit, os, sys\n"
        "from collage_mpi import cli, __main__\n"
        "cli.main = lambda: 5\n"
        "atexit.register(lambda: os.kill(os.getpid(), int(sys.argv[1])))\n"
        "sys.exit(__main__.main())"
    )
    for number in supervisor.FORWARDED:
        done = subprocess.run([sys.executable, "-c", leaving, str(int(number))])
        assert done.returncode == 5, number


def test_a_rank_says_which_signal_launch_was_sent_where_it_can(monkeypatch, tmp_path):
    monkeypatch.delenv("COLLAGE_MPI_STATUS", raising=False)
    flag = StopFlag()
    flag._caught(signal.SIGTERM, None)
    assert flag.reason() == "stopped by SIGTERM"
    monkeypatch.setenv("COLLAGE_MPI_STATUS", "word")
    flag._caught(signal.SIGTERM, None)
    assert flag.reason() == "stopped by SIGTERM through the launcher"
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path))
    note_signal(str(tmp_path), "SIGHUP")
    assert flag.reason() == "stopped by SIGHUP"
    note_signal(str(tmp_path), "\x1b[2J")
    assert flag.reason() == "stopped by SIGTERM through the launcher"
    note_signal(str(tmp_path), "SIGHUP")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(FOLDER_VARIABLE, "")  # no folder: not the current one
    assert flag.reason() == "stopped by SIGTERM through the launcher"


def test_a_job_that_does_not_stop_is_ended_after_its_grace():
    assert stopped(STUBBORN, signal.SIGTERM, grace_s=0.5) == 143


def test_a_second_signal_ends_it_at_once():
    assert stopped(STUBBORN, signal.SIGINT, signal.SIGINT, grace_s=600.0) == 130


LAUNCHER = """#!{python}
import os, pathlib, sys, time
if "--version" in sys.argv:
    raise SystemExit(print("HYDRA build details:\\n    Version: 5.0.2"))
folder = pathlib.Path({folder!r})
number = len(list(folder.glob("start-*")))
(folder / f"start-{{number}}").touch()
def say(text):
    print("@status:" + os.environ["COLLAGE_MPI_STATUS"], text, file=sys.stderr, flush=True)
say('{{"there":0}}')
if number < {hang}:
    time.sleep(600)
say('{{"up":true}}')
say('{{"exit":5}}')
"""


def launched(tmp_path: Path, monkeypatch, hang: int) -> int:
    """The code of a launch whose first `hang` starts hang; how often it started is in tmp_path."""
    monkeypatch.setattr(ending, "TELL_AFTER_S", 0.2)
    monkeypatch.setattr(command, "START_LIMIT_S", 4.0)  # a busy machine starts slowly
    monkeypatch.setattr(mpiexec, "mpi4py_library", lambda: "MPICH 5.0.2")
    program = tmp_path / "mpiexec"
    program.write_text(LAUNCHER.format(python=sys.executable, folder=str(tmp_path), hang=hang))
    program.chmod(0o755)
    how = command.LaunchArguments(words=("run", "--side", "2"), mpiexec=str(program))
    return command.launch_ranks(2, how)


def test_a_start_that_hangs_names_who_is_missing_and_is_tried_once_more(
    tmp_path, monkeypatch, capsys
):
    assert launched(tmp_path, monkeypatch, hang=1) == 5
    said = capsys.readouterr().err
    told = r"MPI is not up after \d s: 1 of 2 ranks are there; nothing yet of rank 1: dead"
    assert re.search(told, said), said
    assert "No work had begun, so it is started once more" in said


def test_a_start_that_hangs_again_is_given_up(tmp_path, monkeypatch, capsys):
    assert launched(tmp_path, monkeypatch, hang=9) == 3
    assert len(list(tmp_path.glob("start-*"))) == 2
    assert "MPI did not come up on all ranks in time: 1 of 2" in capsys.readouterr().err


def test_a_start_is_tried_once_more_only_within_the_time_limit(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "START_LIMIT_S", 600.0)
    monkeypatch.setattr(mpiexec, "mpi4py_library", lambda: "MPICH 5.0.2")
    program = tmp_path / "mpiexec"
    program.write_text(LAUNCHER.format(python=sys.executable, folder=str(tmp_path), hang=9))
    program.chmod(0o755)
    how = command.LaunchArguments(words=("run",), mpiexec=str(program), timeout=0.5)
    assert command.launch_ranks(2, how) == 6
    assert len(list(tmp_path.glob("start-*"))) <= 1  # none where the cores are busy


def test_what_looks_like_a_status_of_another_launch_ends_nothing():
    """A file of such a name in a warning; the words of an older version too."""
    made, _, err = job(
        "import sys, time\n"
        "print('warning: x@status {\"exit\": 0}.h5', file=sys.stderr, flush=True)\n"
        "print('warning: x@status:v {\"exit\": 0}.h5', file=sys.stderr, flush=True)\n"
        "time.sleep(0.3); raise SystemExit(4)",
        leave_grace_s=0.0,
    )
    outcome = made.run()
    assert (outcome.launcher, outcome.reported) == (4, None)
    assert err.getvalue().count("warning: x@status") == 2
