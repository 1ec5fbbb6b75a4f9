"""A virtual Slurm cluster for tests: submit, wait, read logs.

Owns: one job's way from submission to its end.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from daemons import SEARCH, slurm

ROOT = Path(__file__).parents[2]
JOBS = ROOT / "jobs" / "slurm"
# Slurm 24.11's pmi2 plugin was seen to garble a message of MPICH's start-up; the ranks then
# wait in MPI_Init for ever. Not this package's to mend: the test is run once more (second_try).
PLUGIN_FAULT = "mpi/pmi2: invalid client request"
HANG_S = 200.0  # no job takes so long
ACTIVE = ("PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "REQUEUED")

# Every virtual node is this machine: its ranks talk over loopback, and are root in containers.
# MPICH's UCX would see through that and reach a rank of another "node" by shared memory, which
# no real node has (once the other's segment was gone, and MPI did not come up): libfabric's TCP.
LOOPBACK = {
    "MPIR_CVAR_CH4_NETMOD": "ofi",
    "FI_PROVIDER": "tcp",
    "HYDRA_IFACE": "lo",
    "FI_TCP_IFACE": "lo",
    "UCX_NET_DEVICES": "lo",
    "OMPI_MCA_btl_tcp_if_include": "lo",
}


class PluginFault(Exception):
    """The job's log holds what Slurm's pmi2 plugin says when it has lost a message."""


@dataclass(frozen=True)
class Cluster:
    """A running cluster and the folder its jobs work in."""

    conf: str
    folder: Path
    blamed: set[Path] = field(default_factory=set)  # logs whose fault was Slurm's own

    def run(
        self, *words: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a Slurm command, whatever comes of it."""
        return subprocess.run(
            words,
            cwd=self.folder,
            env={**os.environ, "PATH": SEARCH, "SLURM_CONF": self.conf, **(env or {})},
            capture_output=True,
            text=True,
            timeout=60,
        )

    def command(self, *words: str, env: Mapping[str, str] | None = None) -> str:
        """Run a Slurm command; its output. An error is a failed test with its message."""
        done = self.run(*words, env=env)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout

    def bring_up(self, node: str, timeout_s: float = 60.0) -> None:
        """Resume a node that was set down.

        Slurm may do it first: a node set down whose slurmd answers comes back by itself under
        ReturnToService=2, and `resume` of a node that is up is refused. So the state is what
        counts, not the command's exit code.
        """
        limit_s = time.monotonic() + timeout_s
        while "DOWN" in (found := self.command("scontrol", "--oneliner", "show", "node", node)):
            self.run("scontrol", "update", f"nodename={node}", "state=resume")
            assert time.monotonic() < limit_s, f"node {node} stays down: {found}"
            time.sleep(0.2)

    def job_env(self, env: Mapping[str, str]) -> dict[str, str]:
        """What is set in front of sbatch: this venv, site values, the test's own."""
        return {
            **LOOPBACK,
            "SBATCH_ACCOUNT": "lab",
            "SBATCH_PARTITION": "debug",
            "CM_VENV": sys.prefix,
            **env,
        }

    def submit(self, script: str, *words: str, flags: tuple[str, ...] = (), **env: str) -> str:
        """Submit a script of jobs/slurm (or a path); the job's number."""
        path = str(JOBS / script) if "/" not in script else script
        out = self.command("sbatch", "--parsable", *flags, path, *words, env=self.job_env(env))
        return out.strip()

    def facts(self, job: str) -> dict[str, str]:
        """`scontrol show job` of a job (the first, of an array)."""
        text = self.command("scontrol", "--oneliner", "show", "job", job).splitlines()[0]
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def states(self, job: str) -> set[str]:
        """The states of all parts of a job."""
        out = self.command("scontrol", "--oneliner", "show", "job", job)
        return set(re.findall(r"JobState=(\w+)", out))

    def wait(self, job: str, timeout_s: float = HANG_S) -> dict[str, str]:
        """Wait until no part of the job is active; its facts."""
        limit_s = time.monotonic() + timeout_s
        while self.states(job) & set(ACTIVE):
            self._blame_plugin()
            assert time.monotonic() < limit_s, f"job {job} did not end: {self.facts(job)}"
            time.sleep(0.2)
        return self.facts(job)

    def wait_for_text(self, log: Path, pattern: str, timeout_s: float = HANG_S) -> None:
        """Wait until a log holds the pattern."""
        limit_s = time.monotonic() + timeout_s
        while not (log.exists() and re.search(pattern, log.read_text(errors="replace"))):
            self._blame_plugin()
            assert time.monotonic() < limit_s, f"{log} has no {pattern!r}: {self.text(log)}"
            time.sleep(0.1)

    def _blame_plugin(self) -> None:
        """End the jobs if Slurm's own fault holds one, so that its nodes are free again."""
        for log in self.folder.glob("*.log"):
            if log in self.blamed or PLUGIN_FAULT not in self.text(log):
                continue
            self.blamed.add(log)
            self.command("scancel", "--me", "--signal=KILL", "--full")
            self.command("scancel", "--me")
            until_s = time.monotonic() + 60.0
            while self.command("squeue", "--noheader") and time.monotonic() < until_s:
                time.sleep(0.5)
            raise PluginFault(f"{log.name}: {PLUGIN_FAULT!r}, a fault of Slurm's pmi2 plugin")

    def log(self, script: str, job: str) -> Path:
        """The log of a job that is no array."""
        return self.folder / f"{script.partition('.')[0]}-{job}.log"

    def text(self, log: Path) -> str:
        """The end of a log, for messages."""
        return log.read_text(errors="replace")[-3000:] if log.exists() else "no log"


@contextmanager
def cluster(folder: Path, nodes: int = 4) -> Iterator[Cluster]:
    """A cluster of virtual nodes, 64 cores and 4 fake GPUs each, for the `with` block."""
    with slurm(nodes, cpus=64, gpus=4) as conf:
        yield Cluster(conf, folder)
