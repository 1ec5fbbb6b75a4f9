"""A Slurm of virtual nodes on this machine: its configuration, its daemons, their end.

Owns: slurm.conf, munged, slurmctld, a slurmd a node, each node's own name and shared memory, what
is left of jobs when the cluster goes. All of it listens on loopback.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SEARCH = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
NEEDED = ("sbatch", "scontrol", "slurmctld", "slurmd", "munged")
# What a node does not share with the others: its host name, its /etc/hosts, PMIx's folder, and
# shared memory. MPICH names its segments after the job, so that of a dead job of another cluster
# would be taken for its own.
NODE = """
set -e
if [ -n "$1" ]; then
    hostname "$1"
    mount --bind "$0/spool/$1/tmp" "$0/nodetmp"
    mount -t tmpfs tmpfs /dev/shm
fi
mount --bind "$0/etc/hosts" /etc/hosts
shift
exec "$@"
"""
START_S = 60.0
CONF = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={home}/run/munge.socket,cred_expire=5
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation={home}/state
SlurmdSpoolDir={home}/spool/%n
SlurmctldPidFile={home}/run/slurmctld.pid
SlurmdPidFile={home}/run/slurmd-%n.pid
SlurmctldLogFile={home}/log/slurmctld.log
SlurmdLogFile={home}/log/slurmd-%n.log
FirstJobId={first_job}
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,sched_min_interval=100000,bf_interval=1
MpiDefault=none
ReturnToService=2
KillWait=5
MinJobAge=3600
GresTypes=gpu
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{node_ports}] CPUs={cpus} \
RealMemory=16000 Gres=gpu:{gpus}
PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why no cluster can be started here, or None."""
    absent = [name for name in NEEDED if shutil.which(name, path=SEARCH) is None]
    if absent:
        return f"not installed: {', '.join(absent)} (apt install slurm-wlm munge)"
    tried = subprocess.run(
        ["unshare", "--uts", "--ipc", "--mount", "true"], capture_output=True, text=True
    )
    return f"no virtual nodes here: {tried.stderr.strip()} (root can)" if tried.returncode else None


def free_ports(n: int) -> int:
    """The first of n ports in a row that nobody listens on."""
    for _ in range(50):
        first = random.randrange(20_000, 28_000)
        with suppress(OSError):
            for port in range(first, first + n):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first
    raise OSError(f"no {n} free ports in a row")


def configure(home: Path, nodes: int, cpus: int, gpus: int) -> None:
    for name in ("run", "log", "etc", "state", "nodetmp"):
        (home / name).mkdir()
    for n in range(nodes):
        (home / "spool" / f"n{n + 1}" / "tmp").mkdir(parents=True)
    host = socket.gethostname().partition(".")[0]
    port = free_ports(nodes + 1)
    words = {
        "home": home, "host": host, "port": port, "user": "root", "nodes": nodes,
        "node_ports": f"{port + 1}-{port + nodes}", "cpus": cpus, "gpus": gpus,
        "first_job": random.randrange(1_000, 1_000_000),
    }  # fmt: skip
    etc = home / "etc"
    (etc / "slurm.conf").write_text(CONF.format(**words))
    (etc / "gres.conf").write_text(
        f"AutoDetect=off\nNodeName=n[1-{nodes}] Name=gpu File=/dev/tty[0-{gpus - 1}]\n"
    )
    names = "".join(f"127.0.0.1 n{n + 1}\n" for n in range(nodes))
    (etc / "hosts").write_text(Path("/etc/hosts").read_text() + names)
    (etc / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    (etc / "mpi.conf").write_text(f"PMIxCliTmpDirBase={home}/nodetmp\n")
    (etc / "munge.key").touch(0o600)
    (etc / "munge.key").write_bytes(secrets.token_bytes(128))


def start(home: Path, nodes: int) -> Iterator[subprocess.Popen[bytes]]:
    """The daemons, one after another."""
    env = {k: v for k, v in os.environ.items() if k != "SLURM_CONF"} | {"PATH": SEARCH}

    def daemon(*words: str) -> subprocess.Popen[bytes]:
        with (home / "log" / "stdout").open("ab") as log:
            return subprocess.Popen(
                words, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    def at(node: str, *words: str) -> subprocess.Popen[bytes]:
        apart = ("--uts", "--ipc", "--mount") if node else ("--mount",)
        return daemon("unshare", *apart, "sh", "-c", NODE, str(home), node, *words)

    conf = f"{home}/etc/slurm.conf"
    munge = home / "run" / "munge.socket"
    yield daemon(
        "munged", "-F", "-f", f"--key-file={home}/etc/munge.key", f"--socket={munge}",
        f"--pid-file={home}/run/munged.pid", f"--log-file={home}/log/munged.log",
        f"--seed-file={home}/state/munged.seed",
    )  # fmt: skip
    until_s = time.monotonic() + START_S
    while not munge.exists() and time.monotonic() < until_s:
        time.sleep(0.05)
    yield at("", "slurmctld", "-D", "-f", conf)
    for n in range(nodes):
        yield at(f"n{n + 1}", "slurmd", "-D", "-f", conf, "-N", f"n{n + 1}")


def ask(conf: str, *words: str) -> str:
    """Output of a Slurm command; nothing if it fails."""
    env = {**os.environ, "PATH": SEARCH, "SLURM_CONF": conf}
    with suppress(subprocess.TimeoutExpired):
        return subprocess.run(words, env=env, capture_output=True, text=True, timeout=10).stdout
    return ""


def wait_for_nodes(conf: str, nodes: int) -> None:
    until_s = time.monotonic() + START_S
    while len(set(ask(conf, "sinfo", "-hN", "-t", "idle", "-o", "%N").split())) < nodes:
        if time.monotonic() > until_s:
            logs = Path(conf).parents[1].glob("log/*")
            ends = "\n".join(f"{log.name}: {log.read_text()[-500:]}" for log in logs)
            raise RuntimeError(f"the nodes did not come up: {ask(conf, 'sinfo', '-R')}\n{ends}")
        time.sleep(0.1)


def stop(conf: str, daemons: list[subprocess.Popen[bytes]]) -> None:
    """Cancel all jobs, stop the daemons, slurmd first, end what they left."""
    ask(conf, "scancel", "--state=PENDING,RUNNING,SUSPENDED", f"--user={os.geteuid()}")
    until_s = time.monotonic() + 10.0
    while ask(conf, "squeue", "-h") and time.monotonic() < until_s:
        time.sleep(0.1)
    for process in reversed(daemons):
        process.terminate()
        try:
            process.wait(10.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    mark = f"SLURM_CONF={conf}".encode()
    logs = str(Path(conf).parents[1] / "log")
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (folder / "environ").read_bytes().split(b"\0")
            of_job = mark in words and any(w.startswith(b"SLURMD_NODENAME=") for w in words)
            step = (folder / "comm").read_text() == "slurmstepd\n" and any(
                os.readlink(fd).startswith(logs) for fd in (folder / "fd").iterdir()
            )
            if of_job or step:
                os.kill(int(folder.name), signal.SIGKILL)


@contextmanager
def slurm(nodes: int, cpus: int, gpus: int) -> Iterator[str]:
    """A running cluster; the path of its slurm.conf.

    Raises:
        RuntimeError: its nodes did not come up within a minute.
    """
    home = Path(tempfile.mkdtemp(prefix="cm", dir="/tmp"))  # short: sockets lie in it
    home.chmod(0o755)  # munged asks for it
    conf = f"{home}/etc/slurm.conf"
    daemons: list[subprocess.Popen[bytes]] = []
    try:
        configure(home, nodes, cpus, gpus)
        daemons.extend(start(home, nodes))
        wait_for_nodes(conf, nodes)
        yield conf
    finally:
        stop(conf, daemons)
        shutil.rmtree(home, ignore_errors=True)
