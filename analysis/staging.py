"""What staging gains: reads of a slow file system by a Slurm job, with CM_STAGE and without.

    pip install mfusepy && apt install fuse3 slurm-wlm munge
    python analysis/staging.py --launcher pmi2        # pmix with Open MPI; root, Linux, minutes

Starts the virtual Slurm cluster of the tests. Each of its nodes mounts a file system of its own,
which serves weights and shards, counts each read that the node's page cache does not answer, and
answers it after a delay, one at a time. The same job runs three times, each time with empty caches:
workers read, rank 0 reads for all, staged. Prints the table of jobs/slurm/README.md. Seconds are
reads times the delay, of all nodes or of the busiest one: other work on the machine does not change
them.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from collage_mpi.shards import ShardSet, ShardWriter

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "collage_mpi" / "data"
NODES, COPIES, RANKS_A_NODE = 4, 10, 2  # COPIES of the demo's 1,800 images
WEIGHTS = ("fashion_single.safetensors", "fashion_collage_side3_balanced.safetensors")
CASES = {  # what is set in front of sbatch, and what comes after the script's name
    "each node reads (`--pixels auto`)": ({}, ()),
    "rank 0 reads for all (`--pixels rank0`)": ({}, ("--pixels", "rank0")),
    "staged (`CM_STAGE=/dev/shm`)": ({"CM_STAGE": "/dev/shm"}, ()),
}


def serve(source: Path, mount: Path, log: Path, delay_s: float) -> None:
    """Serve a folder, read-only, until a signal comes; a line of `log` is the bytes of a read."""
    from mfusepy import FUSE, Operations

    class SlowFiles(Operations):
        use_ns = True

        def __init__(self) -> None:
            self.log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
            found = os.lstat(f"{source}{path}")
            times = {f"st_{kind}time": getattr(found, f"st_{kind}time_ns") for kind in "amc"}
            names = ("st_mode", "st_nlink", "st_size", "st_uid", "st_gid", "st_ino")
            return times | {name: getattr(found, name) for name in names}

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *os.listdir(f"{source}{path}")]

        def open(self, path: str, flags: int) -> int:
            return os.open(f"{source}{path}", os.O_RDONLY)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            time.sleep(delay_s)
            data = os.pread(fh, size, offset)
            os.write(self.log, b"%d\n" % len(data))
            return data

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

    FUSE(SlowFiles(), str(mount), foreground=True, nothreads=True, ro=True, kernel_cache=True)


@contextmanager
def mounted(conf: str, source: Path, mount: Path, logs: Path, delay_s: float) -> Iterator[None]:
    """The folder at `mount` of each node, and of no other process of this machine."""
    servers: list[tuple[tuple[str, ...], subprocess.Popen[bytes]]] = []
    try:
        for node in range(1, NODES + 1):
            pid = (Path(conf).parents[1] / "run" / f"slurmd-n{node}.pid").read_text().strip()
            here = ("nsenter", f"--mount=/proc/{pid}/ns/mnt")
            words = (str(source), str(mount), str(logs / f"n{node}"), str(delay_s))
            server = subprocess.Popen((*here, sys.executable, __file__, "--serve", *words))
            servers.append((here, server))
            until_s = time.monotonic() + 60
            while subprocess.run((*here, "mountpoint", "-q", str(mount)), check=False).returncode:
                if server.poll() is not None or time.monotonic() > until_s:
                    raise SystemExit(f"node n{node} could not mount {mount}")
                time.sleep(0.2)
        yield
    finally:
        for here, server in servers:
            subprocess.run((*here, "umount", str(mount)), check=False)
            server.wait()


def make_input(folder: Path) -> None:
    """Two networks, and the demo's images some times over."""
    for name in WEIGHTS:
        (folder / name).write_bytes((DATA / name).read_bytes())
    with ShardSet.open([DATA / "fashion_demo.h5"]) as shards:
        pixels, labels = shards.read(np.arange(len(shards)))
    with ShardWriter(folder / "images.h5", pixels.shape[1:]) as writer:
        for _ in range(COPIES):
            writer.append(pixels, labels)


def measure(launcher: str, delay_s: float) -> Iterator[tuple[str, list[list[int]]]]:
    """(case, bytes of each read by node)."""
    sys.path.insert(0, str(ROOT / "tests" / "slurm"))
    from slurm_cluster import cluster

    with tempfile.TemporaryDirectory(dir="/tmp") as name, cluster(Path(name), NODES) as started:
        source, mount = Path(name) / "disk", Path(name) / "slow"
        source.mkdir()
        mount.mkdir()
        make_input(source)
        words = ("--scheme", "cascade", "--batch", "8")
        files = ("CM_SINGLE", "CM_COLLAGE", "CM_SHARDS")
        given = dict(zip(files, (f"{mount}/{n}" for n in (*WEIGHTS, "images.h5")), strict=True))
        given["CM_SINGLES"] = str(NODES * RANKS_A_NODE - 2)
        for number, (case, (env, flags)) in enumerate(CASES.items()):
            logs = Path(name) / f"case{number}"
            logs.mkdir()
            with mounted(started.conf, source, mount, logs, delay_s):
                spread = (f"--ntasks-per-node={RANKS_A_NODE}",)
                env = {**given, **env, "CM_LAUNCHER": launcher}
                job = started.submit("run_nodes.sbatch", *words, *flags, flags=spread, **env)
                facts = started.wait(job, 1800.0)
                if facts["JobState"] != "COMPLETED":
                    raise SystemExit(started.text(started.log("run_nodes", job)))
            nodes = sorted(logs.iterdir())
            yield case, [list(map(int, node.read_text().split())) for node in nodes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--launcher", default="pmi2", choices=("pmi2", "pmix"))
    parser.add_argument("--delay-ms", type=float, default=5.0, help="of a read")
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        source, mount, log, delay_s = args.serve
        serve(Path(source), Path(mount), Path(log), float(delay_s))
        return
    print("| | reads | MB | s, one server for all nodes | s, a server for each node |")
    print("|---|---|---|---|---|")
    for case, nodes in measure(args.launcher, args.delay_ms / 1000):
        reads, size = [len(node) for node in nodes], sum(map(sum, nodes)) / 1e6
        all_s, busiest_s = (n * args.delay_ms / 1000 for n in (sum(reads), max(reads)))
        figures = f"{sum(reads):,} | {size:.1f} | {all_s:.2f} | {busiest_s:.2f}"
        print(f"| {case} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
