"""What a chaos round does to a job's surroundings: its shared memory, its ports, its processes.

Owns: a /dev/shm that only the round sees, who listens where, what strangers send there, who
stands between launch and the ranks.
"""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from collage_mpi.system.process_tree import family_of, holders_of, process_table

PROC = Path("/proc")
SIZES = (0, 0, 1, 24, 300, 5000, 70_000)  # of what a stranger says, bytes


class SharedMemory:
    """A /dev/shm of the round's own, in a mount namespace: the machine's stays as it is.

    Where such a namespace is not permitted, jobs have the machine's and nothing is told of it.
    """

    def __init__(self) -> None:
        mount = "mount -t tmpfs chaos /dev/shm && echo ready && exec cat"
        self._keeper = subprocess.Popen(
            ["sh", "-c", 'exec unshare -m sh -c "$0"', mount],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert self._keeper.stdout is not None
        self.ours = self._keeper.stdout.readline() == b"ready\n"
        self._enter = ("nsenter", "-t", str(self._keeper.pid), "-m") if self.ours else ()

    def command(self, words: Sequence[str], folder: Path) -> list[str]:
        """What starts `words` in `folder` with this shared memory, as the same process."""
        return [*self._enter, "env", "-C", str(folder), *words]

    def limit(self, kib: int | None) -> bool:
        """So much fits, None: as much as before; whether that could be done."""
        size = "50%" if kib is None else f"{kib}k"
        words = [*self._enter, "mount", "-o", f"remount,size={size}", "/dev/shm"]
        return self.ours and subprocess.run(words).returncode == 0

    def swept(self) -> list[str]:
        """The names that were left there; they are removed."""
        if not self.ours:
            return []
        left = sorted((PROC / str(self._keeper.pid) / "root/dev/shm").iterdir())
        for path in left:
            path.unlink()
        return [path.name for path in left]

    def close(self) -> None:
        """It goes with its last process."""
        self._keeper.communicate()


def signal_all(word: str, number: int) -> bool:
    """A signal to everything that holds `word`, and to what that starts meanwhile."""
    met: set[int] = set()
    while more := holders_of(word) - met:
        for pid in more:
            kill(pid, number)
        met |= more
    return bool(met)


def kill(pid: int, number: int = signal.SIGKILL) -> bool:
    """False if it has ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def children(launch: int) -> dict[str, int]:
    """What launch has started: its guard and its launcher."""
    pids = [pid for pid, (parent, _) in process_table().items() if parent == launch]
    return {"guard" if b"guard.sh" in _read(pid, "cmdline") else "launcher": pid for pid in pids}


def wrappers(word: str, launch: int, ranks: Iterable[int]) -> list[int]:
    """What holds `word` and is no rank's, launch or its launcher: proxies, shells, the guard."""
    table = process_table()
    others = {launch, children(launch).get("launcher")}.union(
        *({pid} | family_of(pid, table) for pid in ranks)
    )
    found = holders_of(word) - others
    return sorted(pid for pid in found if not _ours(pid))


def _ours(pid: int) -> bool:
    return _read(pid, "comm").startswith(b"python")


def _read(pid: int, name: str) -> bytes:
    try:
        return (PROC / str(pid) / name).read_bytes()
    except OSError:
        return b""  # it has ended


def listening(word: str) -> set[tuple[str, int]]:
    """Where processes of ours that hold `word` wait for connections: (address, port).

    Not where an MPI launcher does, which its ranks may have inherited: MPICH's reads from whoever
    connects until it has a whole message, so that a stranger who says less stops it.
    """
    sockets, launchers = set(), set()
    for pid in holders_of(word):
        try:
            links = [os.readlink(entry) for entry in os.scandir(PROC / str(pid) / "fd")]
        except OSError:
            continue
        found = {link[8:-1] for link in links if link.startswith("socket:[")}
        (sockets if _ours(pid) else launchers).update(found)
    sockets -= launchers
    found = set()
    for name, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in (PROC / "net" / name).read_text().splitlines()[1:]:
            _, local, _, state, *rest = line.split()
            if state == "0A" and rest[5] in sockets:
                digits, port = local.split(":")
                raw = bytes.fromhex(digits)  # words of the machine's own order
                address = b"".join(raw[i : i + 4][::-1] for i in range(0, len(raw), 4))
                found.add((socket.inet_ntop(family, address), int(port, 16)))
    return found


class Strangers:
    """They connect to every port of a job and say anything, or nothing, and some stay."""

    def __init__(self, word: str, seed: str) -> None:
        self._word, self._rng = word, random.Random(seed)
        self._staying: list[socket.socket] = []
        self.connections = 0

    def call(self) -> None:
        """Some at every port that is open now."""
        for address in listening(self._word):
            for _ in range(self._rng.randint(1, 12)):
                try:
                    link = socket.create_connection(address, timeout=0.2)
                    self.connections += 1
                    link.sendall(self._rng.randbytes(self._rng.choice(SIZES)))
                except OSError:
                    continue  # closed meanwhile, or it takes no more
                if self._rng.random() < 0.3:
                    self._staying.append(link)
                else:
                    link.close()

    def leave(self) -> None:
        """All of them."""
        for link in self._staying:
            link.close()
