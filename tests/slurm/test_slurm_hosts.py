"""Slurm with a slurmd on each of several virtual hosts, one of which vanishes with rank 0."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from daemons import CONF, SEARCH, START_S, missing
from hosts import NET, Hosts, hosts
from hosts import missing as missing_hosts
from mortal_jobs import marked_shard
from slurm_cluster import Cluster

from collage_mpi.results import verify_run
from collage_mpi.slurm import SlurmSettings, render

WHY_NOT = missing() or missing_hosts()
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
]
NODES = ["h2", "h3", "h4"]  # h1 has the controller
# The controller tries to reach a node three times, and looks at the answers of the other nodes only
# then. So a node must be allowed to be silent for far longer than three TCPTimeout. Otherwise the
# controller sets the nodes that are up DOWN as well, and kills the job's second start.
SILENCE = ["SlurmdTimeout=30", "TCPTimeout=1"]
IMAGES = 200


@dataclass(frozen=True)
class HostCluster(Cluster):
    """Commands of Slurm are given on the first host, and jobs use the hosts' own network."""

    hosts: Hosts | None = None

    def run(
        self, *words: str, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        assert self.hosts is not None
        return subprocess.run(
            self.hosts.up[1].command("env", "-C", str(self.folder), *words),
            env={**os.environ, "PATH": SEARCH, "SLURM_CONF": self.conf, **(env or {})},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip

    def job_env(self, env: Mapping[str, str]) -> dict[str, str]:
        found = super().job_env(env)
        return {name: value for name, value in found.items() if value != "lo"}


def configure(home: Path) -> str:
    """The text of slurm.conf; every host has the same folder, and its own /tmp."""
    for name in ("run", "log", "etc", "state", "spool"):
        (home / name).mkdir()
    words = {"home": home, "host": "h1", "port": 6817, "user": "root", "nodes": 0}
    words |= {"node_ports": 0, "cpus": 4, "gpus": 0, "first_job": secrets.randbelow(900_000) + 1}
    text = CONF.format(**words).replace("h1(127.0.0.1)", f"h1({NET}.1)")
    kept = [line for line in text.splitlines() if not line.startswith(("NodeName", "GresTypes"))]
    kept = [line for line in kept if "NoInAddrAny" not in line]
    kept += [*SILENCE, f"NodeName=h[2-4] NodeAddr={NET}.[2-4] CPUs=4 RealMemory=900"]
    (home / "etc" / "cgroup.conf").write_text("CgroupPlugin=disabled\n")
    (home / "etc" / "munge.key").touch(0o600)
    (home / "etc" / "munge.key").write_bytes(secrets.token_bytes(128))
    return "\n".join([*sorted(kept, key=lambda line: "Partition" in line), ""])


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[HostCluster]:
    home = tmp_path / "c"
    home.mkdir(mode=0o755)
    conf = home / "etc" / "slurm.conf"
    text = configure(home)
    conf.write_text(text)
    with hosts(tmp_path, [0, 0, 3600, -3600]) as made:
        env = {**os.environ, "PATH": SEARCH}

        def daemon(number: int, *words: str) -> None:
            with (home / "log" / f"h{number}.out").open("ab") as log:
                subprocess.Popen(
                    made.up[number].command("setsid", *words), env=env,
                    stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                )  # fmt: skip

        files = {"key": "etc/munge.key", "pid": "run/m.pid", "log": "log/m.log", "seed": "state/m"}
        told = [f"--{name}-file={home}/{path}" for name, path in files.items()]
        daemon(1, "munged", "-F", "-f", f"--socket={home}/run/munge.socket", *told)
        daemon(1, "slurmctld", "-D", "-f", str(conf))
        for number in (2, 3, 4):
            daemon(number, "slurmd", "-D", "-f", str(conf), "-N", f"h{number}")
        found = HostCluster(str(conf), tmp_path, hosts=made)
        until_s = time.monotonic() + START_S
        while found.run("sinfo", "-hN", "-t", "idle", "-o", "%N").stdout.split() != NODES:
            assert time.monotonic() < until_s, (home / "log" / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.2)
        yield found


@pytest.mark.any_mpi
def test_when_the_node_of_rank_0_vanishes_slurm_starts_the_job_again_on_others(
    cluster: HostCluster,
) -> None:
    shape = SlurmSettings(nodes=2, singles=2, launcher="mpiexec", cpus_per_task=1, gpus_per_node=0)
    script = cluster.folder / "again.sbatch"
    script.write_text(render("run_nodes", shape))
    shard = marked_shard(cluster.folder / "a.h5", IMAGES)
    delays = ("--straggler", "lognormal:100")
    given = {"CM_SHARDS": str(shard), "CM_SINGLE": "null", "CM_COLLAGE": "null"}
    job = cluster.submit(str(script), *delays, "--status-every-s", "0.5", **given)
    log = cluster.log("run_nodes", job)
    cluster.wait_for_text(log, rf"\d+ of {IMAGES} images")
    assert cluster.hosts is not None
    cluster.hosts.kill(2)
    facts = cluster.wait(job)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), cluster.text(log)
    assert facts["NodeList"] == "h[3-4]"
    assert verify_run(cluster.folder / f"runs/run_nodes-{job}").ok
