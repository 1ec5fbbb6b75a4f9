"""Ranks forked from a server that has imported their modules once (`collage-mpi launch`, one host).

The process that the launcher starts stays as a relay: it gives its file descriptors to the server,
passes signals on to the rank, and ends as the rank ends. The rank takes everything else from the
relay's /proc: environment, current folder, cores, ignored signals and command line. If the relay is
killed, the kernel kills the rank.
"""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import NoReturn

VARIABLE = "COLLAGE_MPI_FORK"  # the server's socket
FOLDER_VARIABLE = "COLLAGE_MPI_SCRATCH"  # the folder of launch on this host
ROOM_VARIABLE, ROOM_BYTES = "COLLAGE_MPI_ROOM", 32768  # space for variables that launchers add
UNLOCKED = {"HDF5_USE_FILE_LOCKING": "FALSE"}  # read when h5py is imported, see `import_h5py`
RELAY = "relay"  # name of the relay's process
RELAYED = (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)
MOST_DESCRIPTORS, MOST_WAITING = 64, 4096
ARGUMENTS, ENVIRONMENT = slice(45, 47), slice(47, 49)  # fields of /proc/PID/stat: their addresses
SERVER_GONE = 1  # exit code of a rank whose own code is lost, because the server has ended
of_server: dict[str, str] = {}  # variables by which a child of this rank is forked as well


@contextmanager
def serving(
    environment: dict[str, str], modules: Sequence[str], command: Sequence[str]
) -> Iterator[None]:
    """Within this context a server that has imported `modules` forks the ranks of a launch.

    Args:
        environment: of the launcher; the server's address is added to it.
        modules: to import; if empty, there is no server.
        command: of the launcher. The server gets the same command, so that `ps` can show it for
            the ranks.
    """
    import subprocess

    from collage_mpi.system.process_tree import own_command

    with socket.socket(socket.AF_UNIX) as listener:
        path = f"{environment.get(FOLDER_VARIABLE)}/fork"
        try:
            listener.bind(path)
            listener.listen(MOST_WAITING)
        except OSError:  # no such folder, or a path that is too long for a socket
            modules = ()
        if not modules:
            yield
            return
        words = str(listener.fileno()), ",".join(modules), *command
        server = subprocess.Popen(
            [*own_command("collage_mpi.system.forked"), *words],
            env={**UNLOCKED, **environment, ROOM_VARIABLE: "x" * ROOM_BYTES},
            pass_fds=[listener.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    environment[VARIABLE] = path
    try:
        yield
    finally:
        server.kill()
        server.communicate()


def relay(server: str) -> None:
    """Let the server fork this rank, and end as the rank ends; returns if there is no server."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, RELAYED)
    life, kept = os.pipe()  # `kept` closes when this process ends, however it ends
    line = socket.socket(socket.AF_UNIX)
    numbers = _descriptors(os.environ)
    try:
        line.connect(server)
        socket.send_fds(line, [" ".join(map(str, numbers)).encode()], [life, *numbers])
        _, (rank, *_), _, _ = socket.recv_fds(line, 1, 1)
    except (OSError, ValueError):
        for number in (life, kept, line.detach()):
            os.close(number)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return
    with suppress(OSError), open("/proc/self/comm", "w") as name:
        name.write(RELAY)
    told, telling = os.pipe()
    os.set_blocking(telling, False)
    signal.set_wakeup_fd(telling, warn_on_full_buffer=False)
    for number in RELAYED:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, lambda *_: None)  # the number is written to the pipe
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for number in {life, 0, 1, 2} & {life, *numbers}:  # so they are closed when the rank ends
        os.close(number)
    _pass_signals_on(told, rank)
    _end_like(_outcome(line))


def _descriptors(environ: Mapping[str, str]) -> list[int]:
    """The open descriptors that a rank needs: its streams, and its launcher's, such as PMI_FD."""
    told = (value for name, value in environ.items() if name.endswith("_FD"))
    found = []
    for number in sorted({0, 1, 2, *(int(value) for value in told if value.isdecimal())}):
        with suppress(OSError, OverflowError):
            os.fstat(number)
            found.append(number)
    return found[:MOST_DESCRIPTORS]


def _pass_signals_on(told: int, rank: int) -> None:
    """Send the rank the signals whose numbers come through the pipe `told`, until the rank ends.

    A signal handler could not do this: Python would not run the handler of a signal that comes
    just before the wait until the wait is over.
    """
    import select

    poller = select.poll()  # takes any descriptor; select() takes those below 1,024 only
    poller.register(told, select.POLLIN)
    poller.register(rank, select.POLLIN)
    while told in dict(poller.poll()):
        for number in os.read(told, 64):
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(rank, number)


def _outcome(line: socket.socket) -> int:
    """The exit code of the ended rank; the negative signal number if a signal ended it."""
    with suppress(OSError):
        told = line.recv(16)
        if told:
            return int(told)
    return SERVER_GONE


def _end_like(code: int) -> NoReturn:
    if code < 0:
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # the rank has written its core file
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    os._exit(abs(code))


def serve(listener: socket.socket, modules: Sequence[str]) -> None:
    """Import the modules, then fork a rank for each relay; returns only in a rank.

    The server ends when launch has closed its stdin and no rank is left.
    """
    import gc
    from importlib import import_module

    from collage_mpi.system.limits import raise_descriptor_limit

    signal.pthread_sigmask(signal.SIG_BLOCK, RELAYED)  # a new rank gets early signals when ready
    raise_descriptor_limit()  # it holds two descriptors a rank
    gc.disable()  # what a module makes when it is imported stays; looking for more is 7 % of torch
    for name in modules:
        import_module(name)
    gc.enable()
    gc.collect()
    gc.freeze()  # a garbage collection in a rank would copy all pages that it visits
    if not _Server(listener).forked():
        os._exit(0)


class _Server:
    def __init__(self, listener: socket.socket) -> None:
        import select

        self._listener = listener
        self._ranks: dict[int, tuple[int, socket.socket]] = {}  # pidfd -> pid, connection to relay
        self._poll = select.poll()
        self._poll.register(0, select.POLLIN)
        self._poll.register(listener, select.POLLIN)

    def forked(self) -> bool:
        """Serve until no rank is left; True in a rank."""
        listening = True
        while listening or self._ranks:
            for number, _ in self._poll.poll():
                if number in self._ranks:
                    self._tell_end(number)
                elif number == 0:
                    self._poll.unregister(0)
                    self._poll.unregister(self._listener)
                    listening = False
                elif listening and self._take():
                    return True
        return False

    def _take(self) -> bool:
        """Fork a rank for the next relay; True in the rank."""
        line, _ = self._listener.accept()
        text, descriptors, _, _ = socket.recv_fds(line, 1024, MOST_DESCRIPTORS + 1)
        if not descriptors:  # the relay was killed meanwhile
            line.close()
            return False
        relay_pid = int.from_bytes(
            line.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4), "little"
        )
        try:
            rank = os.fork()
        except OSError:  # no process or memory is left; the relay goes on without a server
            for number in (line.detach(), *descriptors):
                os.close(number)
            return False
        if rank == 0:
            for each in (self._listener, line, *(other for _, other in self._ranks.values())):
                each.close()
            for pidfd in self._ranks:
                os.close(pidfd)
            _become(relay_pid, descriptors, list(map(int, text.split())))
            return True
        for number in descriptors:
            os.close(number)
        pidfd = os.pidfd_open(rank)
        self._ranks[pidfd] = rank, line
        self._poll.register(pidfd)
        with suppress(OSError):
            socket.send_fds(line, [b"1"], [pidfd])
        return False

    def _tell_end(self, pidfd: int) -> None:
        rank, line = self._ranks.pop(pidfd)
        self._poll.unregister(pidfd)
        os.close(pidfd)
        code = os.waitstatus_to_exitcode(os.waitpid(rank, 0)[1])
        with line, suppress(OSError):
            line.sendall(b"%d" % code)


def _become(relay_pid: int, descriptors: Sequence[int], numbers: Sequence[int]) -> None:
    """Turn this process into the rank that the relay would have become."""
    os.setsid()
    _take_over(descriptors, numbers)
    served = sys.stdout  # of /dev/null, where it can seek: a pipe cannot, and `reconfigure` asks
    assert isinstance(served, io.TextIOWrapper)
    raw = io.FileIO(1, "wb", closefd=False)
    sys.stdout = io.TextIOWrapper(
        raw if served.write_through else io.BufferedWriter(raw),
        served.encoding,
        served.errors,
        line_buffering=served.line_buffering,
        write_through=served.write_through,
    )
    proc = f"/proc/{relay_pid}"
    with open(f"{proc}/status") as status:
        ignored = int(next(line for line in status if line.startswith("SigIgn")).split()[1], 16)
    for number in RELAYED:
        usual = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        signal.signal(number, signal.SIG_IGN if ignored >> (number - 1) & 1 else usual)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, RELAYED)
    os.chdir(f"{proc}/cwd")
    os.sched_setaffinity(0, os.sched_getaffinity(relay_pid))
    with open(f"{proc}/cmdline", "rb") as file, open(f"{proc}/environ", "rb") as other:
        line, environment = file.read(), other.read()
    sys.orig_argv[:] = map(os.fsdecode, line.split(b"\0")[:-1])
    sys.argv[:] = sys.orig_argv[1:]
    os.environ.clear()
    for name, _, value in (pair.partition(b"=") for pair in environment.split(b"\0") if pair):
        os.environb[name] = value
    of_server[VARIABLE] = os.environ.pop(VARIABLE)  # most children of the rank are not forked
    _show(line, ARGUMENTS)
    _show(environment, ENVIRONMENT)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # Python's own generator reseeds itself after a fork


def _take_over(descriptors: Sequence[int], numbers: Sequence[int]) -> None:
    """Give the descriptors the relay's numbers. The first one is a pipe whose end kills this
    process together with the relay."""
    import fcntl
    import select

    above = max(numbers, default=2) + 1
    life, *others = (fcntl.fcntl(each, fcntl.F_DUPFD_CLOEXEC, above) for each in descriptors)
    for each in descriptors:
        os.close(each)
    for each, number in zip(others, numbers, strict=True):
        os.dup2(each, number)
        os.close(each)
    fcntl.fcntl(life, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(life, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(life, fcntl.F_SETFL, fcntl.fcntl(life, fcntl.F_GETFL) | os.O_ASYNC)
    poller = select.poll()
    poller.register(life)
    if poller.poll(0):  # the relay ended before this was set up
        os._exit(SERVER_GONE)


def _show(text: bytes, place: slice) -> None:
    """Let /proc show this text, by which launch finds the ranks of its job and `ps` names them."""
    import ctypes

    from collage_mpi.system.process_tree import stat_of

    start, end = map(int, stat_of("self")[1][place])
    if len(text) <= end - start:
        ctypes.memmove(start, text.ljust(end - start, b"\0"), end - start)


if __name__ == "__main__":
    import runpy

    from collage_mpi.system import forked  # one copy of it, as everywhere

    forked.serve(socket.socket(fileno=int(sys.argv[1])), sys.argv[2].split(","))
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
