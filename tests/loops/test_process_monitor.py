"""Real processes and connections, without MPI: the end of either side is seen, and only that."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from collage_mpi.faults import tcp_link
from collage_mpi.faults.process_monitor import STRANGERS, CoordinatorMonitor, ProcessMonitor
from collage_mpi.faults.tcp_link import TcpLink
from collage_mpi.system import hard_exit, process_tree
from collage_mpi.system.process_tree import ProcessId, this_process, watch_process
from collage_mpi.system.records import read_record

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="pidfd and epoll are Linux's")
LIMIT_S = 10.0


@pytest.fixture
def child():
    """A process that does nothing, and what names it."""
    process = subprocess.Popen(["sleep", "60"])
    machine = this_process().machine
    started = process_tree._started(str(process.pid))
    yield process, ProcessId(machine, process.pid, started)
    process.kill()
    process.wait()


def until(found, limit_s: float = LIMIT_S):
    """What `found()` gives once it gives something."""
    end_s = time.monotonic() + limit_s
    while not (result := found()) and time.monotonic() < end_s:
        time.sleep(0.001)
    return result


# ---- processes ----------------------------------------------------------------


def test_a_process_is_seen_to_end_and_can_be_killed(child):
    process, name = child
    watch = watch_process(name)
    assert not select.select([watch.pidfd], [], [], 0)[0]
    watch.kill()
    assert select.select([watch.pidfd], [], [], LIMIT_S)[0]
    assert process.wait() == -signal.SIGKILL
    watch.kill()  # it has gone: nothing happens
    watch.close()


def test_a_pid_that_is_used_again_is_another_process(child):
    _, name = child
    with pytest.raises(ProcessLookupError):
        watch_process(dataclasses.replace(name, started=name.started - 1))


def test_a_process_that_has_ended_is_told(child):
    process, name = child
    process.kill()
    process.wait()
    with pytest.raises(ProcessLookupError):
        watch_process(name)


def test_the_same_pid_of_another_machine_or_container_is_not_watched(child):
    _, name = child
    assert watch_process(dataclasses.replace(name, machine="another")) is None


def test_its_name_survives_a_message():
    here = this_process()
    assert read_record(ProcessId, dataclasses.asdict(here)) == here
    assert here.pid == os.getpid()


# ---- rank 0's side --------------------------------------------------------------


@pytest.fixture
def process_monitor():
    found = ProcessMonitor(4, one_host=True)
    yield found
    found.close()


def joined(process_monitor, rank: int, process: ProcessId | None) -> socket.socket:
    """A worker's line, known to rank 0."""
    line = tcp_link.connect(process_monitor.offer(), rank, process)
    until(lambda: process_monitor.look() or rank in process_monitor._lines)
    return line


def test_a_rank_of_this_machine_is_watched_by_its_process(process_monitor, child):
    process, name = child
    line = joined(process_monitor, 2, name)
    line.close()  # says nothing about a process that can be watched
    assert process_monitor.look() == []
    assert process_monitor.kill(2)
    (ended,) = until(process_monitor.look)
    assert (ended.rank, ended.layer) == (2, "process")
    assert process_monitor.look() == []
    process.wait()


def test_a_rank_of_another_machine_is_watched_by_its_line(process_monitor, child):
    _, name = child
    line = joined(process_monitor, 3, dataclasses.replace(name, machine="another"))
    assert process_monitor.look() == []
    assert not process_monitor.kill(3)
    line.close()
    (ended,) = until(process_monitor.look)
    assert (ended.rank, ended.layer) == (3, "connection")
    assert process_monitor.look() == []


def test_a_network_that_is_away_for_15_s_closes_no_line_and_one_that_is_gone_does_after_20_s(
    process_monitor, child
):
    _, name = child
    line = joined(process_monitor, 3, dataclasses.replace(name, machine="another"))
    for end in (line, process_monitor._lines[3]):
        assert end.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        of_tcp = [socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT]
        idle_s, every_s, probes = (end.getsockopt(socket.IPPROTO_TCP, each) for each in of_tcp)
        assert every_s * (probes - 1) > 15  # all probes are lost, the first one at once
        assert idle_s + every_s * probes <= 20
    line.close()


def test_a_rank_that_ended_before_it_could_be_watched_is_lost(process_monitor, child):
    process, name = child
    process.kill()
    process.wait()
    tcp_link.connect(process_monitor.offer(), 1, name)
    (ended,) = until(process_monitor.look)
    assert (ended.rank, ended.layer) == (1, "process")


@pytest.mark.parametrize(
    "greeting",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        b"[1]",
        b'{"token": "x", "rank": 1}',
        b'{"rank": 1}',
        b"\xff",
        b"[" * 2000,
        b'{"token": "\\ud800", "rank": 1}',
        b'{"token": 1e400, "rank": 1}',
    ],
)
def test_a_stranger_is_shown_the_door(process_monitor, greeting):
    address = ("127.0.0.1", process_monitor.offer().port)
    with socket.create_connection(address, timeout=LIMIT_S) as line:
        line.sendall(greeting)
        line.shutdown(socket.SHUT_WR)
        line.setblocking(False)

        def closed() -> bool:
            assert process_monitor.look() == []
            try:
                return line.recv(1) == b""
            except BlockingIOError:
                return False

        assert until(closed)
    assert process_monitor._lines == {}


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
@example(b'{"token": "\\ud800", "rank": 1}')
def test_no_bytes_but_those_of_one_who_knows_the_token_are_a_greeting(data):
    assert tcp_link.read_greeting(data, "a token") is None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
NAMES = st.sampled_from(["machine", "pid", "started"])


@given(JSON | st.dictionaries(NAMES, JSON))
@example({"machine": "m", "pid": 10**400, "started": 1})
@example({"machine": "m", "pid": 1, "started": float("inf")})
def test_whatever_a_worker_says_of_its_process_is_read_or_refused(said):
    greeting = json.dumps({"token": "a token", "rank": 1, "process": said}).encode()
    read = tcp_link.read_greeting(greeting, "a token")
    if read is not None and read.process is not None:
        assert watch_process(read.process) is None


class Time:
    """ns; each look takes 0.1 s."""

    now_ns = 0

    def __call__(self) -> int:
        self.now_ns += 10**8
        return self.now_ns


@pytest.fixture
def slow_monitor():
    found = ProcessMonitor(4, one_host=True, clock=Time())
    yield found
    found.close()


def knock(process_monitor) -> socket.socket:
    return socket.create_connection(("127.0.0.1", process_monitor.offer().port), timeout=LIMIT_S)


def closed(line: socket.socket) -> bool:
    return bool(select.select([line], [], [], 0)[0])


def test_who_says_nothing_is_shown_the_door(slow_monitor):
    idle = knock(slow_monitor)
    for _ in range(90):
        slow_monitor.look()
    assert not closed(idle)
    for _ in range(30):
        slow_monitor.look()
    assert closed(idle)
    assert not slow_monitor._strangers
    idle.close()


def test_idle_connections_cannot_use_up_the_descriptors(process_monitor):
    idle = []
    for _ in range(3 * STRANGERS):
        idle.append(knock(process_monitor))
        process_monitor.look()
        process_monitor.look()
    assert len(process_monitor._strangers) == 4 + 16
    assert closed(idle[0])
    assert not closed(idle[-1])
    joined(process_monitor, 2, None).close()  # ours is let in
    for line in idle:
        line.close()


def test_the_port_closes_when_every_rank_has_connected_or_is_given_up(process_monitor):
    port = process_monitor.offer().port
    lines = [joined(process_monitor, rank, None) for rank in (1, 3)]
    idle = knock(process_monitor)
    process_monitor.look()
    assert not process_monitor.kill(2)
    assert process_monitor.look() == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)
    assert closed(idle)
    assert not any(closed(line) for line in lines)
    assert process_monitor._selector.get_map().keys() == {
        line.fileno() for line in process_monitor._lines.values()
    }
    for line in (idle, *lines):
        line.close()


def test_the_port_closes_after_a_time_in_any_case(slow_monitor):
    port = slow_monitor.offer().port
    slow_monitor._clock.now_ns += 3600 * 10**9  # rank 0 was busy elsewhere: ours may be waiting
    for _ in range(2800):
        slow_monitor.look()
    socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S).close()
    for _ in range(300):
        slow_monitor.look()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=LIMIT_S)


def test_without_a_descriptor_the_port_is_not_looked_at_for_a_while(slow_monitor, monkeypatch):
    """It stays readable: at every look rank 0 would try in vain."""
    tries = []

    def full(listener):
        tries.append(listener)
        raise OSError(errno.EMFILE, "Too many open files")

    plain = slow_monitor._tcp_link.listener
    listener = SimpleNamespace(accept=lambda: full(plain), fileno=plain.fileno, close=plain.close)
    monkeypatch.setattr(slow_monitor._tcp_link, "listener", listener)
    line = socket.create_connection(plain.getsockname(), timeout=LIMIT_S)
    greeting = {"token": slow_monitor._tcp_link.token, "rank": 1}
    line.sendall(json.dumps(greeting).encode())
    until(lambda: slow_monitor.look() or tries)
    for _ in range(50):
        slow_monitor.look()
    assert 2 <= len(tries) <= 7
    listener.accept = plain.accept  # descriptors are free again
    until(lambda: slow_monitor.look() or 1 in slow_monitor._lines)
    line.close()


def test_no_descriptor_to_look_at_a_process_by_is_no_end_of_it(child, monkeypatch):
    _, name = child
    real = process_tree._started
    none_left = OSError(errno.EMFILE, "Too many open files")

    def started(pid):
        if pid == "self":
            return real(pid)
        raise none_left

    monkeypatch.setattr(process_tree, "_started", started)
    assert watch_process(name) is None


@pytest.mark.parametrize(
    ("told", "bound"), [(None, "0.0.0.0"), ("eth7", "0.0.0.0"), ("fab0", "10.1.2.3")]
)
def test_on_several_hosts_the_port_is_open_on_the_device_that_was_told(monkeypatch, told, bound):
    asked = []

    def server(address, backlog):
        asked.append((address[0], backlog))
        return SimpleNamespace(setblocking=bool, getsockname=lambda: (address[0], 7))

    addresses = {"fab0": "10.1.2.3"}
    monkeypatch.setattr(tcp_link, "_address_of", addresses.get)
    monkeypatch.setattr(tcp_link.socket, "create_server", server)
    offer = TcpLink(3, one_host=False, interface=told).offer()
    TcpLink(300, one_host=False, interface=told)
    assert asked == [(bound, 16), (bound, 300)]  # so many may knock at once
    assert (offer.addresses == (bound,)) == (bound != "0.0.0.0")


def test_a_device_is_found_by_a_name_of_as_many_letters_as_linux_allows(monkeypatch):
    name = "enp129s0f0np0.7"

    def ask(_, what, request):
        assert (what, len(request)) == (tcp_link._SIOCGIFADDR, 256)
        if request.rstrip(b"\0").decode() != name:
            raise OSError(errno.ENODEV, "No such device")
        return request[:20] + socket.inet_aton("10.1.2.3") + request[24:]

    monkeypatch.setattr("fcntl.ioctl", ask)
    assert len(name) == 15
    assert tcp_link._address_of(name) == "10.1.2.3"
    assert tcp_link._address_of("fab0") is None


def test_once_closed_it_holds_no_descriptor(child):
    before = set(os.listdir("/proc/self/fd"))
    process_monitor = ProcessMonitor(4, one_host=True)
    joined(process_monitor, 1, child[1]).close()
    process_monitor.close()
    assert set(os.listdir("/proc/self/fd")) <= before


def test_it_may_open_as_many_descriptors_as_the_system_lets_it():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft // 2, hard))
    try:
        ProcessMonitor(4, one_host=True).close()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("rank", [0, 4, -1, True, "1"])
def test_a_rank_that_is_none_is_a_stranger(process_monitor, rank):
    offer = process_monitor.offer()
    line = tcp_link.connect(offer, rank, None)
    assert until(lambda: process_monitor.look() or select.select([line], [], [], 0)[0])
    assert process_monitor._lines == {}
    line.close()


def test_a_host_that_has_gone_is_noticed_after_20_s(process_monitor):
    with joined(process_monitor, 1, None) as its_end:
        for line in (its_end, process_monitor._lines[1]):
            assert line.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
            names = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            idle_s, every_s, probes = (line.getsockopt(socket.IPPROTO_TCP, n) for n in names)
            assert idle_s + every_s * probes == 20  # docs/faults.md


def test_nobody_at_the_port_is_not_waited_for(process_monitor):
    """Who knocked may have gone before it is let in."""
    assert process_monitor._tcp_link.listener.gettimeout() == 0
    assert process_monitor._tcp_link.accept() is None


def test_a_job_on_one_host_opens_no_port_to_others(process_monitor):
    assert process_monitor._tcp_link.listener.getsockname()[0] == "127.0.0.1"
    assert process_monitor.offer().addresses == ("127.0.0.1",)


# ---- a worker's side ------------------------------------------------------------


def monitor_over(process=None, offer=None) -> tuple[CoordinatorMonitor, threading.Event]:
    gone = threading.Event()
    monitor = CoordinatorMonitor(1, gone.set)
    monitor.meet("node0", process, offer)
    return monitor, gone


def test_it_sees_rank_0_s_process_end(child):
    process, name = child
    _, gone = monitor_over(name)
    assert not gone.wait(0.05)
    process.kill()
    assert gone.wait(LIMIT_S)


def test_it_sees_rank_0_s_connection_close(process_monitor):
    _, gone = monitor_over(offer=process_monitor.offer())
    until(lambda: process_monitor.look() or 1 in process_monitor._lines)
    process_monitor._lines[1].send(b"x")  # it lives
    assert not gone.wait(0.05)
    process_monitor._lines[1].shutdown(socket.SHUT_RDWR)
    assert gone.wait(LIMIT_S)


def test_once_released_it_does_not_mind(child):
    process, name = child
    monitor, gone = monitor_over(name)
    monitor.release()
    process.kill()
    process.wait()
    assert not gone.wait(0.1)


def test_a_rank_0_that_ended_at_once_is_noticed(child):
    process, name = child
    process.kill()
    process.wait()
    _, gone = monitor_over(name)
    assert gone.wait(LIMIT_S)


def test_who_cannot_connect_says_so_and_works_on(caplog, monkeypatch):
    monkeypatch.setenv("PMI_RANK", "1")  # rank 0 has no need to say it
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]  # nobody listens there in a moment
    _, gone = monitor_over(offer=tcp_link.Offer(("127.0.0.1",), port, "x"))
    said = until(lambda: caplog.text)
    assert "rank 1" in said
    assert "cannot connect to rank 0 on node0" in said
    assert not gone.is_set()


# ---- leaving --------------------------------------------------------------------


def test_only_the_mpi_library_s_own_shared_memory_is_removed(tmp_path, monkeypatch):
    names = ["mpich_shm_ab_0", "sm_segment.n1.0.x", "torch_123", "mpich_shm_other"]
    for name in names:
        (tmp_path / name).touch()
    shared = tuple(f"{tmp_path}/{start}" for start in ("mpich_shm_", "sm_segment."))
    monkeypatch.setattr(hard_exit, "SHARED", shared)
    monkeypatch.setattr(hard_exit, "FOLDER", f"{tmp_path}/")
    maps = tmp_path / "maps"
    maps.write_text(
        "".join(f"7f00-7f01 rw-s 00000000 00:19 12 {tmp_path}/{n}\n" for n in names[:3])
        + "7f01-7f02 rw-p 00000000 00:00 0\n7f02-7f03 r--p 0 00:00 0 [heap]\n"
    )
    hard_exit.remove_shared_memory(maps)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["maps", "mpich_shm_other", "torch_123"]


def test_a_rank_leaves_without_taking_python_apart():
    """That takes 0.4 s of a core where torch is loaded, in each rank; MPI's end stays."""
    program = (
        "import atexit; from collage_mpi.system.hard_exit import finalize_by, leave_world\n"
        "leave_world(1)\n"
        "atexit.register(print, 'taken apart')\n"
        "finalize_by(lambda code: print('MPI_Finalize', code))\n"
        "leave_world(6)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (6, "MPI_Finalize 6\n")
