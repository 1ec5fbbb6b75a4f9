"""Virtual hosts on this machine: each has its own network device, name, processes, clock, /tmp and
/dev/shm.

A host is a process in namespaces of its own. Its network device is a veth pair to a bridge, which
lies in a network namespace too and leads nowhere else. The kernel removes all of it when the
process has ended, and the process ends with the one that made it.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from collage_mpi.system.process_tree import process_table

ROOT = Path(__file__).parents[2]
CLOCK = "/tmp/.ahead"  # on each host: how many seconds its date is ahead
REMOTE_SHELL = Path(__file__).parent / "remote_shell.py"
NET = "10.77.0"
NOBODY = "02:00:00:00:ff:ff"  # the hardware address of no host: what is sent there is lost
# Each KEPT path is opened before /tmp is hidden, and put back at its place (PATH or FROM=PATH).
INIT = """
set -e
name=$1 hosts=$2; shift 2
hostname "$name"
mount --bind "$hosts" /etc/hosts
n=3
for kept; do eval "exec $n<\\"\\${kept%%=*}\\""; n=$((n + 1)); done
mount -t tmpfs -o mode=1777 tmpfs /tmp
mount -t tmpfs -o mode=1777 tmpfs /dev/shm
n=3
for kept; do
    place=${kept#*=}
    mkdir -p "$place"
    mount -c --bind "/proc/self/fd/$n" "$place"   # -c: not by its name
    eval "exec $n<&-"
    n=$((n + 1))
done
ip link set lo up
echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6
echo "$BOOT" >/dev/shm/.boot
mount --bind /dev/shm/.boot /proc/sys/kernel/random/boot_id
rm /dev/shm/.boot
echo "$AHEAD" >"$CLOCK"
"$PYTHON" -IS "$REMOTE_SHELL" serve &
wait
"""
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL")
APART = ("--net", "--uts", "--mount", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc")


def missing() -> str | None:
    """Why no virtual host can be started here, or None."""
    try:
        words = [*DIES_WITH_US, "unshare", *APART, "--time", "ip", "link", "add", "sw", "type"]
        tried = subprocess.run([*words, "bridge"], capture_output=True, text=True)
    except FileNotFoundError as error:
        return f"no virtual hosts here: {error.filename} is not installed"
    return f"no virtual hosts here: {tried.stderr.strip()} (root can)" if tried.returncode else None


@dataclass
class Host:
    """A virtual host.

    Attributes:
        number: from 1 on.
        ahead_s: how much its date is ahead of this machine's; its monotonic clock is too.
    """

    number: int
    ahead_s: int
    process: subprocess.Popen[str]

    @property
    def name(self) -> str:
        return name_of(self.number)

    @property
    def init(self) -> int:
        """The pid, seen from this machine, of the host's first process."""
        table = process_table()
        return next(pid for pid, (parent, _) in table.items() if parent == self.process.pid)

    def command(self, *words: str) -> list[str]:
        """What runs `words` on the host."""
        return ["nsenter", "-t", str(self.init), "--all", "--", *words]


def name_of(number: int) -> str:
    return f"h{number}"


def hardware(number: int) -> str:
    """The address of a host's network device."""
    return f"02:00:00:00:00:{number:02x}"


@dataclass
class Hosts:
    """Hosts on one network, and what happens to them.

    Attributes:
        shared: a folder that every host sees under the same path.
        mounts: by name of a host, another folder that it sees there (the host's own mount point
            of a shared file system).
    """

    shared: Path
    mounts: Mapping[str, Path] = field(default_factory=dict)
    switch: subprocess.Popen[str] | None = None
    up: dict[int, Host] = field(default_factory=dict)

    def start(self, ahead_s: Sequence[int]) -> None:
        """The switch, and a host for each of the clocks."""
        self.switch = _popen("unshare", "--net", "sh", "-c", "echo ready; exec sleep inf")
        _wait_ready(self.switch)
        self._ip("link", "add", "sw", "type", "bridge")
        self._ip("link", "set", "sw", "up")
        names = [f"{NET}.{n} {name_of(n)}\n" for n in range(1, len(ahead_s) + 1)]
        (self.shared / "hosts").write_text("127.0.0.1 localhost\n" + "".join(names))
        self._numbers = range(1, len(ahead_s) + 1)
        for number, seconds in enumerate(ahead_s, 1):
            self._boot(number, seconds)
        for host in self.up.values():
            _wait_ready(host.process)
            self._plug(host)

    def _boot(self, number: int, ahead_s: int) -> None:
        name = name_of(number)
        seen = self.mounts.get(name, self.shared)
        kept = [f"{path}={path}" for path in (ROOT, sys.prefix)] + [f"{seen}={self.shared}"]
        clock = ("--time", f"--monotonic={abs(ahead_s)}", f"--boottime={abs(ahead_s)}")
        env = {"PYTHON": sys.executable, "REMOTE_SHELL": str(REMOTE_SHELL)}
        env |= {"BOOT": str(uuid.uuid4()), "AHEAD": str(ahead_s), "CLOCK": CLOCK}
        words = ["unshare", *APART, *clock, "sh", "-c", INIT, "host", name]
        process = _popen(*words, str(self.shared / "hosts"), *kept, **env)
        self.up[number] = Host(number, ahead_s, process)

    def _plug(self, host: Host) -> None:
        n, pid = host.number, str(host.process.pid)
        device = ["peer", "name", "eth0", "address", hardware(n), "netns", pid]
        self._ip("link", "add", f"p{n}", "type", "veth", *device)
        self._ip("link", "set", f"p{n}", "master", "sw", "up")
        inside = [f"addr add {NET}.{n}/24 dev eth0", "link set eth0 up"]
        self._batch(n, *inside, *(_route(n, other, True) for other in self._numbers if other != n))

    def _ip(self, *words: str, check: bool = True) -> None:
        inside = ["nsenter", "-t", str(self.switch.pid), "-n", "ip", *words]
        subprocess.run(inside, check=check, stderr=None if check else subprocess.DEVNULL)

    def _batch(self, number: int, *lines: str) -> None:
        words = ["nsenter", "-t", str(self.up[number].process.pid), "-n", "ip", "-batch", "-"]
        subprocess.run(words, input="\n".join(lines), text=True, check=True)

    def cut(self, number: int, *, sends: bool = True, hears: bool = True) -> None:
        """From now on the network loses what the host sends, what is sent to it, or both."""
        self._set(number, sends=not sends, hears=not hears)

    def heal(self, number: int) -> None:
        """The network loses nothing of it any more."""
        self._set(number, sends=True, hears=True)

    def _set(self, number: int, *, sends: bool, hears: bool) -> None:
        others = [other for other in self.up if other != number]
        if number in self.up:
            self._batch(number, *(_route(number, other, sends) for other in others))
        for other in others:
            self._batch(other, _route(other, number, hears))

    def kill(self, number: int) -> None:
        """The power fails: no word from it any more, and none of its processes is left."""
        self.cut(number)
        host = self.up.pop(number)
        host.process.kill()  # its child, the host's first process, goes with it
        host.process.wait()
        self._ip("link", "del", f"p{number}", check=False)  # the kernel may have done so

    def revive(self, number: int, ahead_s: int) -> None:
        """A host that was killed is there again, with nothing of what it had."""
        self._boot(number, ahead_s)
        _wait_ready(self.up[number].process)
        self._plug(self.up[number])
        self.heal(number)

    def run(self, number: int, words: Sequence[str], timeout_s: float) -> str:
        """A command on a host; its output. It must end well."""
        done = subprocess.run(
            self.up[number].command(*words), capture_output=True, text=True, timeout=timeout_s
        )
        assert done.returncode == 0, f"{shlex.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def close(self) -> None:
        """End all of them; the kernel removes what was theirs."""
        for process in [*(host.process for host in self.up.values()), self.switch]:
            if process is not None:
                process.kill()
                process.wait()
        self.up.clear()


def _route(of: int, to: int, whole: bool) -> str:
    """Where a host sends what is meant for another: there, or to nobody."""
    address = hardware(to) if whole else NOBODY
    return f"neigh replace {NET}.{to} lladdr {address} dev eth0 nud permanent"


def _popen(*words: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*DIES_WITH_US, *words], env={**os.environ, **env}, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def _wait_ready(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line == "ready\n", f"a virtual host did not start: {line!r}"


@contextmanager
def hosts(
    shared: Path, ahead_s: Sequence[int], mounts: Mapping[str, Path] | None = None
) -> Iterator[Hosts]:
    """As many hosts as there are clocks, for the `with` block; see `Hosts`."""
    made = Hosts(shared, mounts or {})
    try:
        made.start(ahead_s)
        yield made
    finally:
        made.close()
