"""Ranks that a server forks: they are what the launcher would have started, and end like it.

No MPI: a relay is started as a launcher would start a rank.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from collage_mpi.system import forked
from collage_mpi.system.process_tree import holders_of, own_command, stat_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

# What a rank sees of itself; with words, what else it does.
RANK = """
import json, os, random, signal, sys, time
if sys.argv[1:2] == ["see"]:
    socket = int(os.environ["PMI_FD"])
    os.write(socket, b"here")
    seen = {
        "argv": sys.argv, "orig": sys.orig_argv, "name": __name__, "cwd": os.getcwd(),
        "stdin": sys.stdin.read(), "cores": sorted(os.sched_getaffinity(0)),
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "ignored": [n for n in range(1, 32) if signal.getsignal(n) is signal.SIG_IGN],
        "environ": {k: v for k, v in os.environ.items() if k != "LC_CTYPE"},
        "inherits": os.get_inheritable(socket),
        "held": sorted(map(int, os.listdir("/proc/self/fd"))),
    }
    print(json.dumps(seen))
elif sys.argv[1:2] == ["numbers"]:
    import numpy
    print(os.getpid(), "colorsys" in sys.modules, random.random(), numpy.random.random())
elif sys.argv[1:2] == ["wait"]:
    signal.signal(signal.SIGTERM, lambda *_: (print("stopped", flush=True), sys.exit(5)))
    signal.signal(signal.SIGUSR2, lambda *_: print("heard", flush=True))
    print(os.getpid(), flush=True)
    while True:
        time.sleep(0.1)  # a signal just before pause() would be handled after it
elif sys.argv[1:2] == ["ask"]:
    from collage_mpi.system.forked import of_server
    from collage_mpi.system.process_tree import ask_apart, own_command
    for more in ({}, of_server):
        said = ask_apart([*own_command("a_rank"), "numbers"], {}, 60, {**os.environ, **more})
        print(said.lines[0].split()[1].decode())
else:
    exec(sys.argv[1])
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Start a rank with these words and options of Popen."""
    (tmp_path / "a_rank.py").write_text(RANK)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    ranks = []

    def begin(environment, *words, **options):
        env = {**os.environ, "PMI_RANK": "7", **environment, **options.pop("env", {})}
        command = [*own_command("a_rank"), *words]
        streams = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        ranks.append(subprocess.Popen(command, env=env, text=True, **streams, **options))
        return ranks[-1]

    yield begin
    for rank in ranks:
        rank.kill()
        rank.communicate()


@pytest.fixture
def server(start, tmp_path):
    """What the environment of ranks says of a server that has imported colorsys and numpy."""
    with serving(tmp_path) as found:
        yield found


@contextlib.contextmanager
def serving(folder, modules=("colorsys", "numpy")):
    environment = {**os.environ, forked.FOLDER_VARIABLE: str(folder), "JOB": str(folder)}
    with forked.serving(environment, modules, ["mpiexec", "w" * 4000]):
        yield {name: environment[name] for name in environment if os.environ.get(name) is None}


def seen_by(rank) -> dict:
    return json.loads(rank.communicate("typed")[0])


def test_a_forked_rank_is_what_the_launcher_would_have_started(start, server, tmp_path):
    views = []
    for environment in ({"JOB": str(tmp_path)}, server):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            env = {"PMI_FD": str(theirs.fileno()), forked.FOLDER_VARIABLE: str(tmp_path)}
            how = {"pass_fds": [theirs.fileno()], "cwd": tmp_path, "env": env}
            quiet = lambda: signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # noqa: E731
            seen = seen_by(start(environment, "see", "b c", preexec_fn=quiet, **how))
            assert ours.recv(4) == b"here"
        del seen["environ"]["PMI_FD"]
        views.append(seen)
    plain, rank = views
    assert signal.SIGUSR1 in rank["ignored"]
    assert rank["stdin"] == "typed"
    extra = {*rank.pop("held")} - {*plain.pop("held")}
    assert len(extra) <= 1  # what ends it with its relay
    assert rank == plain


def test_modules_are_imported_once_and_random_numbers_differ(start, server):
    told = [start(server, "numbers").communicate()[0].split() for _ in range(2)]
    assert [each[1] for each in told] == ["True", "True"]
    assert all(a != b for a, b in zip(*(each[2:] for each in told), strict=True))


def test_the_server_forks_a_child_of_a_rank_only_if_the_rank_asks_for_it(start, server):
    """It says whether it found a module imported that it never asked for."""
    assert start(server, "ask").communicate()[0].split() == ["False", "True"]


COLLECTS = "sys.exit(7 * __import__('gc').isenabled())"


@pytest.mark.parametrize("how", [COLLECTS, "os._exit(3)", "pass", "os.kill(os.getpid(), 9)",
                                 "signal.raise_signal(signal.SIGABRT)"])  # fmt: skip
def test_a_rank_and_its_relay_end_alike(start, server, how):
    plain, rank = start({}, how), start(server, how)
    plain.communicate()
    rank.communicate()
    assert rank.returncode == plain.returncode


def test_descriptors_of_many_ranks_have_large_numbers(start, server):
    """select() refuses those beyond 1,023; a launcher of 500 ranks gives its ranks such numbers."""

    def crowd():
        for number in range(3, 1100):
            os.dup2(0, number)

    many = {"preexec_fn": crowd, "close_fds": False, "env": {"PMI_FD": "1099"}}
    assert start(server, "sys.exit(7)", **many).wait() == 7


@contextlib.contextmanager
def waiting(start, server):
    """A rank that waits, and the pidfd of its process."""
    relay = start(server, "wait")
    pid = int(relay.stdout.readline())
    assert pid != relay.pid
    pidfd = os.pidfd_open(pid)
    yield relay, pid, pidfd
    os.close(pidfd)


def has_ended(pidfd: int) -> bool:
    return bool(select.select([pidfd], [], [], 60)[0])


def test_a_signal_to_the_relay_reaches_the_rank(start, server):
    with waiting(start, server) as (relay, _, _):
        relay.send_signal(signal.SIGTERM)
        assert relay.communicate() == ("stopped\n", None)
    assert relay.returncode == 5


def test_a_signal_that_came_before_the_relay_waits_is_passed_on_and_a_late_one_hurts_nobody():
    told, telling = os.pipe()
    rank = subprocess.Popen(["sleep", "600"])
    pidfd = os.pidfd_open(rank.pid)
    try:
        os.write(telling, bytes([signal.SIGTERM]))
        forked._pass_signals_on(told, pidfd)
        assert rank.wait(60) == -signal.SIGTERM
        os.write(telling, bytes([signal.SIGTERM]))
        forked._pass_signals_on(told, pidfd)
        assert not select.select([told], [], [], 0)[0]
    finally:
        rank.kill()
        rank.wait()
        for number in (told, telling, pidfd):
            os.close(number)


def test_a_signal_that_comes_before_the_rank_can_handle_it_is_not_lost(start, tmp_path):
    """As a stop does that the relay was sent while it waited for the server's imports."""
    early = "    real()\n    os.kill(os.getpid(), signal.SIGTERM)\n"
    code = f"import os, signal\nreal = os.setsid\ndef setsid():\n{early}os.setsid = setsid\n"
    (tmp_path / "early.py").write_text(code)
    with serving(tmp_path, ["early"]) as environment:
        assert start(environment, "sys.exit(3)").wait(60) == -signal.SIGTERM


@pytest.mark.parametrize("stopped", [False, True])
def test_a_rank_does_not_outlive_its_relay(start, server, stopped):
    with waiting(start, server) as (relay, pid, pidfd):
        if stopped:
            os.kill(pid, signal.SIGSTOP)
        relay.kill()
        assert has_ended(pidfd)


def test_launch_sees_the_rank_and_knows_the_relay(start, server, tmp_path):
    with waiting(start, server) as (relay, pid, _):
        relay.send_signal(signal.SIGUSR2)  # it has its name before it passes on anything
        assert relay.stdout.readline() == "heard\n"
        assert {pid, relay.pid} <= holders_of(f"JOB={tmp_path}")
        assert {pid, relay.pid} == holders_of("PMI_RANK=7") & {pid, relay.pid}
        assert stat_of(relay.pid)[0] == forked.RELAY != stat_of(pid)[0]
        line = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
        assert line[1:] == [*own_command("a_rank")[1:], "wait"]


def test_a_rank_outlives_its_server_and_ends_with_an_error(start, server):
    with waiting(start, server) as (relay, pid, pidfd):
        os.kill(int(stat_of(pid)[1][1]), signal.SIGKILL)
        relay.send_signal(signal.SIGTERM)
        assert relay.communicate()[0] == "stopped\n"
        assert has_ended(pidfd)
    assert relay.returncode == forked.SERVER_GONE


def test_without_a_server_a_rank_starts_by_itself(start, tmp_path):
    with serving(tmp_path, modules=["no_such_module"]) as broken:
        assert start(broken, "sys.exit(4)").wait(60) == 4
    rank = start(broken, "numbers")  # nobody listens any more
    assert rank.communicate()[0].split()[:2] == [str(rank.pid), "False"]
    with serving(tmp_path / "none") as nowhere:
        assert forked.VARIABLE not in nowhere
    with serving(tmp_path, modules=[]) as unwanted:
        assert forked.VARIABLE not in unwanted


def test_a_rank_that_cannot_be_forked_starts_by_itself(start, tmp_path):
    """The others and their exit codes have no part in it."""
    refuses = (
        "import os\nreal = os.fork\ndef fork():\n    os.fork = real\n    raise BlockingIOError"
    )
    (tmp_path / "refuses.py").write_text(f"{refuses}\nos.fork = fork\n")
    with serving(tmp_path, ["refuses"]) as environment:
        forked_too = "sys.exit(4 + ('refuses' in sys.modules))"
        assert [start(environment, forked_too).wait(60) for _ in range(2)] == [4, 5]


@pytest.mark.parametrize(("said", "seen"), [(None, "FALSE"), ("TRUE", "TRUE")])
def test_hdf5_is_imported_without_locks_unless_the_user_wants_them(
    start, tmp_path, monkeypatch, said, seen
):
    monkeypatch.delenv("HDF5_USE_FILE_LOCKING", raising=False)
    if said:
        monkeypatch.setenv("HDF5_USE_FILE_LOCKING", said)
    (tmp_path / "noted.py").write_text("import os\nLOCKS = os.environ['HDF5_USE_FILE_LOCKING']\n")
    with serving(tmp_path, ["noted"]) as environment:
        rank = start(environment, "print(sys.modules['noted'].LOCKS)")
        assert rank.communicate()[0].strip() == seen


def test_the_server_ends_after_launch_and_its_last_rank(start, tmp_path):
    source = (
        "import os, signal, sys; from collage_mpi.system import forked\n"
        "environment = dict(os.environ)\n"
        "with forked.serving(environment, ['colorsys'], ['w' * 4000]):\n"
        "    print(environment[forked.VARIABLE], flush=True)\n"
        "    signal.pause()\n"
    )
    env = {**os.environ, forked.FOLDER_VARIABLE: str(tmp_path)}
    launch = subprocess.Popen([sys.executable, "-c", source], env=env, stdout=-1, text=True)
    with (
        launch,
        waiting(start, {forked.VARIABLE: launch.stdout.readline().strip()}) as (
            relay,
            pid,
            _,
        ),
    ):
        server = os.pidfd_open(int(stat_of(pid)[1][1]))
        launch.kill()
        relay.send_signal(signal.SIGTERM)
        relay.communicate()
        assert relay.returncode == 5
        assert has_ended(server)
        os.close(server)
