"""Strangers at the ports of a real job: what they send, what the job makes of it.

Usage: python tests/faults/strangers.py --connections 10000 --seed 1 --folder /tmp/strangers

Jobs run under the MPI of this environment, with one team and with two. The ports stay open as
long as strangers call (programs/held_port.py). Printed: the sockets that the job's processes
listen on, those of the MPI library too, which strangers leave alone here; then each kind of
stranger, and what the ranks that listen had of threads, descriptors and memory, beside those of a
job that nobody called.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))

from mortal_jobs import marked_shard, running

from collage_mpi.commands.launch import run_status
from collage_mpi.launch.ending import exit_code
from collage_mpi.launch.mpiexec import Mpi, build_command, find_mpi, site_here
from collage_mpi.launch.supervisor import Limits, Supervisor
from collage_mpi.system.environment import STATUS_VARIABLE

PROGRAM = Path(__file__).parents[1] / "mpi" / "programs" / "held_port.py"
PROC = Path("/proc")
IMAGES, SINGLES = 400, 2
LIMIT_S = 1500.0  # of a job; a hang
CALLERS = 4
HELD = 300  # connections that stay open at one time
OPEN_S = 60.0  # until all that stayed were shown the door: 2 s in time that rank 0 watched


@dataclass
class Usage:
    """The most that a process had at any look."""

    threads: int = 0
    descriptors: int = 0
    rss_mib: float = 0.0

    def look(self, pid: int) -> None:
        """Take note of how it stands; nothing when it has ended."""
        try:
            lines = (PROC / str(pid) / "status").read_text().splitlines()
            status = dict(line.split(":", 1) for line in lines if ":" in line)
            descriptors = len(os.listdir(PROC / str(pid) / "fd"))
        except OSError:
            return
        if "VmHWM" in status:
            self.threads = max(self.threads, int(status["Threads"]))
            self.descriptors = max(self.descriptors, descriptors)
            self.rss_mib = max(self.rss_mib, int(status["VmHWM"].split()[0]) / 1024)


@dataclass
class Visit:
    """A job and the strangers that came to it.

    Attributes:
        calls: connections of each kind.
        kept_out: that could not connect: the queue of those who wait to be let in was full.
        open_at_last: connections that the job had let in and not closed when OPEN_S were over.
        usage: by rank that listens.
        listeners: of all processes of the job: (command, address).
    """

    folder: Path
    code: int = -1
    said: str = ""
    calls: Counter[str] = field(default_factory=Counter)
    kept_out: int = 0
    open_at_last: int = 0
    usage: dict[int, Usage] = field(default_factory=dict)
    listeners: set[tuple[str, str]] = field(default_factory=set)

    @property
    def out(self) -> Path:
        """The run."""
        return self.folder / "out"


# ---- strangers --------------------------------------------------------------

Call = Callable[[random.Random, socket.socket], bool]  # whether the connection stays open
KINDS: dict[str, Call] = {}


def kind(call: Call) -> Call:
    """Declare a kind of stranger."""
    KINDS[call.__name__.replace("_", " ")] = call
    return call


def greeting(rng: random.Random, token: str | None = None) -> bytes:
    """What a rank would say, but for the token, which is as long as theirs."""
    process = {"machine": "x", "pid": rng.randrange(1 << 15), "started": rng.randrange(1 << 30)}
    token = rng.randbytes(16).hex() if token is None else token
    return json.dumps({"rank": rng.randrange(5), "process": process, "token": token}).encode()


@kind
def any_bytes(rng: random.Random, line: socket.socket) -> bool:
    line.sendall(rng.randbytes(rng.choice((1, 4, 30, 300, 3000))))
    return rng.random() < 0.5


@kind
def half_a_greeting(rng: random.Random, line: socket.socket) -> bool:
    whole = greeting(rng)
    line.sendall(whole[: rng.randrange(1, len(whole))])
    return rng.random() < 0.5


@kind
def wrong_token(rng: random.Random, line: socket.socket) -> bool:
    line.sendall(greeting(rng))
    return rng.random() < 0.5


@kind
def odd_token(rng: random.Random, line: socket.socket) -> bool:
    tokens = ("", "\ud800", "0" * 31, "0" * 33, "\u00e9" * 16)
    line.sendall(greeting(rng, rng.choice(tokens)))
    return False


@kind
def silent(rng: random.Random, line: socket.socket) -> bool:
    return True


@kind
def gone_at_once(rng: random.Random, line: socket.socket) -> bool:
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    return False


@kind
def drip(rng: random.Random, line: socket.socket) -> bool:
    for byte in greeting(rng)[:3]:
        line.sendall(bytes([byte]))
        time.sleep(0.001)
    return True


@kind
def other_programs(rng: random.Random, line: socket.socket) -> bool:
    texts = (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"\x16\x03\x01\x02\x00\x01", b"SSH-2.0-x\r\n",
             b"cmd=init pmi_version=1 pmi_subversion=1\n", b"[" * 2000)  # fmt: skip
    line.sendall(rng.choice(texts))
    return False


@kind
def very_much(rng: random.Random, line: socket.socket) -> bool:
    line.settimeout(0.2)
    line.sendall(bytes(1 << 20))
    return False


class Crowd:
    """Strangers that call at the ports of one job, from several threads.

    Args:
        each: connections to each port.
    """

    def __init__(self, visit: Visit, each: int, seed: int, over: threading.Event) -> None:
        self._visit, self._each, self._seed, self._over = visit, each, seed, over
        self._lock = threading.Lock()
        self._held: list[socket.socket] = []
        self._left: dict[int, int] = {}  # port -> connections to be made
        self._pids: dict[int, int] = {}  # rank -> process
        self._hosts: dict[int, str] = {}

    def come(self, coordinators: int) -> None:
        """Wait for the ports, call, wait to be shown the door, let the last rank come."""
        while len(self._pids) < coordinators and not self._over.wait(0.05):
            self._find_ports()
        self._visit.listeners = listeners(running_pids(self._visit.folder))
        callers = [threading.Thread(target=self._call, args=(n,)) for n in range(CALLERS)]
        for caller in callers:
            caller.start()
        while any(caller.is_alive() for caller in callers):
            self._find_ports()
            self._look()
        until_s = time.monotonic() + OPEN_S
        while self._let_in() and time.monotonic() < until_s and not self._over.wait(0.1):
            self._look()
        self._visit.open_at_last = 0 if self._over.is_set() else self._let_in()
        (self._visit.folder / "go").touch()
        while not self._over.wait(0.1):
            self._look()
        for line in self._held:
            line.close()

    def _find_ports(self) -> None:
        for path in self._visit.folder.glob("port-*"):
            rank, pid, host, port = path.read_text().split()
            if int(port) not in self._hosts:
                self._hosts[int(port)], self._pids[int(rank)] = host, int(pid)
                self._left[int(port)] = self._each

    def _look(self) -> None:
        time.sleep(0.1)
        for rank, pid in self._pids.items():
            self._visit.usage.setdefault(rank, Usage()).look(pid)

    def _call(self, number: int) -> None:
        rng = random.Random(f"{self._seed}:{number}")
        while not self._over.is_set():
            with self._lock:
                open_ports = [port for port, left in self._left.items() if left > 0]
                if not open_ports:
                    return
                port = rng.choice(open_ports)
                many = 50 if self._left[port] >= 50 and rng.random() < 0.01 else 1
                self._left[port] -= many
            address = self._hosts[port], port
            if many > 1:
                self._burst(address, many)
            else:
                self._one(address, rng)

    def _one(self, address: tuple[str, int], rng: random.Random) -> None:
        name = rng.choice(list(KINDS))
        try:
            line = socket.create_connection(address, timeout=0.5)
        except ConnectionRefusedError:  # it has closed: all who are to come are there
            self._left[address[1]] = 0
            return
        except OSError:
            self._visit.kept_out += 1
            return
        self._visit.calls[name] += 1
        try:
            stays = KINDS[name](rng, line)
        except OSError:  # the job has closed it: no more to say
            stays = False
        if stays:
            self._stay([line])
        else:
            line.close()

    def _burst(self, address: tuple[str, int], many: int) -> None:
        """Many that connect before one of them is let in."""
        lines = [socket.socket() for _ in range(many)]
        for line in lines:
            line.setblocking(False)
            line.connect_ex(address)
        self._visit.calls["many at once"] += many
        self._stay(lines)

    def _stay(self, lines: list[socket.socket]) -> None:
        """Those that have stayed longest leave where many do."""
        with self._lock:
            self._held += lines
            leaving, self._held = self._held[:-HELD], self._held[-HELD:]
        for line in leaving:
            line.close()

    def _let_in(self) -> int:
        """Connections of ours that the job has accepted and not closed."""
        ours = {line.getsockname()[1] for line in self._held}
        entries = [line.split() for line in (PROC / "net/tcp").read_text().splitlines()[1:]]
        ends = [(_port(e[1]), _port(e[2])) for e in entries if e[9] != "0"]  # 0: nobody's yet
        return sum(local in self._hosts and remote in ours for local, remote in ends)


def _port(text: str) -> int:
    return int(text.rpartition(":")[2], 16)


# ---- who listens ------------------------------------------------------------


def running_pids(word: Path) -> list[int]:
    """Processes of the job: those that name its folder, and the parents of the ranks."""
    found = set()
    for entry in PROC.glob("[0-9]*"):
        try:
            if str(word).encode() in (entry / "environ").read_bytes():
                found.add(int(entry.name))
        except OSError:
            continue  # it has ended, or is another user's
    return sorted(found)


def listeners(pids: list[int]) -> set[tuple[str, str]]:
    """(command, address) of the TCP sockets that they listen on."""
    owner: dict[str, str] = {}
    for pid in sorted(pids, reverse=True):  # ranks inherit sockets of their launcher
        try:
            name = (PROC / str(pid) / "comm").read_text().strip()
            links = [os.readlink(entry) for entry in os.scandir(PROC / str(pid) / "fd")]
        except OSError:
            continue
        owner.update({link[8:-1]: name for link in links if link.startswith("socket:[")})
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in (PROC / "net" / table).read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and rest[5] in owner:
                raw = bytes.fromhex(local.partition(":")[0])  # words of the machine's order
                turned = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
                found.add((owner[rest[5]], socket.inet_ntop(family, turned)))
    return found


# ---- a job ------------------------------------------------------------------


def run_visited(mpi: Mpi, folder: Path, connections: int, seed: int = 1, teams: int = 1) -> Visit:
    """A job of `teams`, to each port of which so many strangers come."""
    folder.mkdir(parents=True)
    shard = marked_shard(folder / "a.h5", IMAGES)
    ranks = teams * (2 + SINGLES)
    words = ["run", "--shards", shard, "--single", "null", "--collage", "null", "--side", "2",
             "--singles", SINGLES, "--out", folder / "out"]  # fmt: skip
    words += ["--teams", teams] if teams > 1 else []
    plan = build_command(
        mpi, ranks, [sys.executable, str(PROGRAM), str(folder), str(ranks), *map(str, words)],
        site_here(), fault_tolerant=True,
        extra_env={STATUS_VARIABLE: "1", "OMP_NUM_THREADS": "1", "STRANGERS": str(folder)},
    )  # fmt: skip
    visit, said, done = Visit(folder), io.StringIO(), threading.Event()
    job = Supervisor(plan, Limits(LIMIT_S, leave_grace_s=3.0), said, said)
    crowd = Crowd(visit, connections, seed, done)
    strangers = threading.Thread(target=crowd.come, args=(teams,))
    strangers.start()
    try:
        ending = job.run()
    finally:
        done.set()
        strangers.join()
    visit.code, note = exit_code(ending, lambda: run_status(visit.out), must_report=True)
    visit.said = said.getvalue() + (note or "")
    assert running(folder) == []
    return visit


def main() -> int:
    """Both jobs, both numbers of strangers, as tables; 1 if one did not end as it should."""
    from collage_mpi.results import read_results, verify_run

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--connections", type=int, default=10_000, help="to each port of a job")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, required=True, help="a new folder")
    args = parser.parse_args()
    mpi, wrong = find_mpi(), 0
    for teams in (1, 2):
        for connections in (0, args.connections):
            began_s = time.monotonic()
            visit = run_visited(
                mpi, args.folder / f"{teams}-{connections}", connections, args.seed, teams
            )
            wall_s = time.monotonic() - began_s
            sound = visit.code == 0 and verify_run(visit.out).ok
            rows = len(read_results(visit.out).images) if sound else 0
            wrong += not sound or rows != IMAGES or visit.open_at_last > 0
            print(f"{mpi.family} {mpi.version}, {teams} team(s): exit code {visit.code}, "
                  f"{rows} of {IMAGES} rows, {wall_s:.0f} s; {visit.calls.total()} connections, "
                  f"{visit.kept_out} not let in, {visit.open_at_last} never closed")  # fmt: skip
            for name, count in sorted(visit.calls.items()):
                print(f"  {name:20}{count:>7}")
            for rank, usage in sorted(visit.usage.items()):
                print(f"  rank {rank} had at most {usage.threads} threads, {usage.descriptors} "
                      f"descriptors, {usage.rss_mib:.0f} MiB")  # fmt: skip
            for command, address in sorted(visit.listeners):
                print(f"  listens: {command} on {address}")
            if not sound:
                print(visit.said[-3000:])
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
