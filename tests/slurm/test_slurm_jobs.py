"""Every job script on a real Slurm of four virtual nodes; what stops a job does not lose a row."""

from __future__ import annotations

import gzip
import re
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
from daemons import missing
from PIL import Image
from slurm_cluster import ROOT, Cluster, cluster

from collage_mpi.launch.mpiexec import Mpi
from collage_mpi.results import read_results, verify_run
from collage_mpi.results.manifest import compose
from collage_mpi.slurm import SlurmSettings, render

pytest_plugins = ["second_try"]
WHY_NOT = missing()
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
]

DEMO = str(files("collage_mpi") / "data" / "fashion_demo.h5")
SINGLE = str(files("collage_mpi") / "data" / "fashion_single.safetensors")
NULL = {"CM_SHARDS": DEMO, "CM_SINGLE": "null", "CM_COLLAGE": "null"}
SHORT = ("--limit", "90")
ROWS = 270


def lasting(seconds: float) -> tuple[str, ...]:
    """A run that is in the middle for so long: 30 groups of 9, held by injected delays."""
    delays = ("--straggler", f"lognormal:{seconds * 1000 / 30}:0.05")
    often = ("--status-every-s", "0.5")
    return ("--limit", str(ROWS), *delays, *often)


PROGRAMS = Path(__file__).parent / "programs"


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("slurm")) as started:
        yield started


@pytest.fixture
def pmi(mpi: Mpi) -> str:
    """What srun must speak to this environment's MPI."""
    return "pmix" if mpi.family == "openmpi" else "pmi2"


def hosts(run: Path) -> list[str]:
    """Host of every rank but 0."""
    world = compose(run)["world"]
    return [member["host"] for member in world[1:]]


def exact(run: Path, rows: int) -> bool:
    report = verify_run(run)
    assert report.ok, report.problems
    return compose(run)["rows"] == rows


# ---- every script to its end ------------------------------------------------------------------


@pytest.mark.parametrize("launcher", ["srun", "mpiexec"])
@pytest.mark.parametrize(
    ("script", "spread"), [("run_nodes", [2, 3, 3, 2]), ("run_one_node", [10])]
)
def test_run(slurm: Cluster, pmi: str, script: str, spread: list[int], launcher: str) -> None:
    launcher = pmi if launcher == "srun" else launcher
    job = slurm.submit(f"{script}.sbatch", *SHORT, CM_LAUNCHER=launcher, **NULL)
    facts = slurm.wait(job)
    log = slurm.text(slurm.log(script, job))
    assert facts["JobState"] == "COMPLETED", log
    run = slurm.folder / f"runs/{script}-{job}"
    assert exact(run, 90)
    where = hosts(run)
    assert [where.count(host) for host in dict.fromkeys(where)] == spread


@pytest.mark.any_mpi
@pytest.mark.parametrize(("nodes", "spread"), [(2, "1 1 1 1 2 2 2 2"), (4, "1 1 2 2 3 3 4 4")])
def test_run_in_teams(slurm: Cluster, pmi: str, nodes: int, spread: str) -> None:
    """A team a node, and over nodes."""
    shape = SlurmSettings(nodes=nodes, teams=2, singles=2, launcher=pmi, cpus_per_task=1)
    script = slurm.folder / f"run_teams-{nodes}.sbatch"
    script.write_text(render("run_teams", shape))
    # The first team works for so long that the other has time to join.
    job = slurm.submit(str(script), *lasting(20.0), **NULL)
    assert slurm.wait(job)["JobState"] == "COMPLETED", slurm.text(slurm.log("run_teams", job))
    run = slurm.folder / f"runs/run_teams-{job}"
    assert exact(run, ROWS)
    world = compose(run)["world"]
    assert " ".join(member["host"].removeprefix("n") for member in world) == spread


@pytest.mark.any_mpi
def test_classify(slurm: Cluster) -> None:
    """Three workers that load torch, and the coordinator, on two nodes."""
    shape = SlurmSettings(nodes=2, gpus_per_node=0, singles=3, cpus_per_task=1)
    script = slurm.folder / "classify.sbatch"
    script.write_text(render("classify", shape))
    pictures = slurm.folder / "photos"
    pictures.mkdir()
    for number in range(9):
        pixels = np.full((28, 28, 3), 25 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{number}.png")
    words = ("classify", str(pictures), "--network", SINGLE, "--out", "classes.csv")
    job = slurm.submit(str(script), *words)
    assert slurm.wait(job)["JobState"] == "COMPLETED", slurm.text(slurm.log("classify", job))
    assert len((slurm.folder / "classes.csv").read_text().splitlines()) == 1 + 9


@pytest.mark.any_mpi
def test_runs_are_analysed_after_their_jobs(slurm: Cluster, pmi: str) -> None:
    out = slurm.folder / "runs" / "one"
    job = slurm.submit("run_one_node.sbatch", *SHORT, CM_OUT=str(out), CM_LAUNCHER=pmi, **NULL)
    # From the project's folder, as users do: analysis/ is named from there.
    after = slurm.submit(
        "analyse.sbatch",
        str(out),
        flags=(f"--dependency=afterany:{job}", f"--chdir={ROOT}"),
        CM_FIGURES=str(out / "latency"),
        SBATCH_OUTPUT=str(slurm.folder / "%x-%j.log"),
    )
    log = slurm.log("analyse", after)
    assert slurm.wait(after)["JobState"] == "COMPLETED", slurm.text(log)
    assert (out / "latency.png").exists()
    assert (out / "export" / "images.csv").exists()


def write_idx(folder: Path, name: str, count: int) -> None:
    """`count` images of noise with labels, as gzip IDX files."""
    draw = np.random.default_rng(1)
    images = draw.integers(0, 256, (count, 28, 28), dtype=np.uint8)
    labels = (np.arange(count) % 10).astype(np.uint8)
    for kind, array, magic in (("images-idx3", images, 2051), ("labels-idx1", labels, 2049)):
        head = np.array([magic, *array.shape], dtype=">i4").tobytes()
        with gzip.open(folder / f"{name}-{kind}-ubyte.gz", "wb", compresslevel=1) as file:
            file.write(head + array.tobytes())


@pytest.mark.any_mpi
def test_networks_are_trained_on_what_was_prepared(slurm: Cluster) -> None:
    slurm.command("mkdir", "idx")
    write_idx(slurm.folder / "idx", "train", 120)
    write_idx(slurm.folder / "idx", "t10k", 45)
    words = {
        "CM_IDX_DIR": str(slurm.folder / "idx"),
        "CM_DATA": str(slurm.folder / "data"),
        "CM_WEIGHTS": str(slurm.folder / "weights"),
        "CM_DEVICE": "cpu",  # the GPUs here are not real
    }
    first = slurm.submit("prepare.sbatch", **words)
    # Not 4 threads: torch 2.13 breaks its heap in a backward pass now and then, on an AMD EPYC.
    short = ("--epochs", "1", "--width", "16", "--threads", "1")
    after = (f"--dependency=afterok:{first}", "--kill-on-invalid-dep=yes")
    job = slurm.submit("train.sbatch", *short, flags=after, **words)
    slurm.wait(job)
    logs = "\n".join(slurm.text(path) for path in slurm.folder.glob("*-*_*.log"))
    assert slurm.states(job) == {"COMPLETED"}, logs
    weights = {path.name for path in (slurm.folder / "weights").glob("*.safetensors")}
    assert weights == {"single.safetensors", "collage.safetensors"}


# ---- stopped, preempted, broken ---------------------------------------------------------------


@pytest.mark.parametrize("launcher", ["srun", "mpiexec"])
def test_signalled_job_is_requeued_and_completes(slurm: Cluster, pmi: str, launcher: str) -> None:
    launcher = pmi if launcher == "srun" else launcher
    # `launch` says how far it is every 5 s. SECONDS: of the script's shell, which passes no
    # signal on in its first 15.
    words = lasting(8.0 if launcher == "mpiexec" else 4.0)
    job = slurm.submit("run_nodes.sbatch", *words, CM_LAUNCHER=launcher, SECONDS="15", **NULL)
    log = slurm.log("run_nodes", job)
    slurm.wait_for_text(log, r"\d+ of 270 images")
    # To the shell, as Slurm does before the limit; to the ranks of a step, as users may.
    batch = ("--batch",) if launcher == "mpiexec" else ()
    slurm.command("scancel", *batch, "--signal=USR2", job)
    facts = slurm.wait(job)
    text = log.read_text()
    assert facts["JobState"] == "COMPLETED", text[-3000:]
    assert facts["Restarts"] == "1"
    assert re.search(r"incomplete: stopped by SIG(USR2|TERM)", text)
    assert re.search(r"^start 2 of job .* run ", text, re.MULTILINE)
    run = slurm.folder / f"runs/run_nodes-{job}"
    assert exact(run, ROWS)
    assert len(compose(run)["sessions"]) == 2


@pytest.mark.any_mpi
def test_what_is_staged_is_read_by_each_node_and_survives_a_requeue(
    slurm: Cluster, pmi: str
) -> None:
    """Each virtual node has a /dev/shm of its own. Two ranks, one on each node, load torch."""
    shape = SlurmSettings(nodes=2, singles=2, launcher=pmi, cpus_per_task=1)
    script = slurm.folder / "staged.sbatch"
    script.write_text(render("run_nodes", shape))
    given = {**NULL, "CM_SINGLE": SINGLE, "CM_STAGE": "/dev/shm", "SECONDS": "15"}
    job = slurm.submit(str(script), *lasting(1.0), **given)
    log = slurm.log("run_nodes", job)
    slurm.wait_for_text(log, r"\d+ of 270 images")
    slurm.command("scancel", "--batch", "--signal=USR2", job)
    facts = slurm.wait(job)
    text = log.read_text()
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "1"), text[-3000:]
    stage = f"/dev/shm/collage-mpi-{job}"
    assert text.count(f"staged to {stage} on 2 nodes") == 2
    assert exact(slurm.folder / f"runs/run_nodes-{job}", ROWS)
    manifest = compose(slurm.folder / f"runs/run_nodes-{job}")
    assert [shard["path"] for shard in manifest["shards"]] == [f"{stage}/fashion_demo.h5"]
    assert "rank 0 sends" not in text  # every host reads its own copy


def test_node_that_goes_down_costs_no_row(slurm: Cluster, pmi: str) -> None:
    job = slurm.submit("run_nodes.sbatch", *lasting(4.0), CM_LAUNCHER=pmi, **NULL)
    log = slurm.log("run_nodes", job)
    slurm.wait_for_text(log, r"\d+ of 270 images")
    slurm.command("scontrol", "update", "nodename=n3", "state=down", "reason=test")
    slurm.wait_for_text(log, "DUE TO NODE FAILURE|CANCELLED")
    slurm.bring_up("n3")
    facts = slurm.wait(job)
    assert facts["JobState"] == "COMPLETED", slurm.text(log)
    assert facts["Restarts"] == "1"
    assert exact(slurm.folder / f"runs/run_nodes-{job}", ROWS)


@pytest.mark.any_mpi
def test_cancelled_job_is_not_requeued_and_can_be_gone_on_with(slurm: Cluster, pmi: str) -> None:
    job = slurm.submit("run_nodes.sbatch", *lasting(4.0), CM_LAUNCHER=pmi, **NULL)
    log = slurm.log("run_nodes", job)
    slurm.wait_for_text(log, r"\d+ of 270 images")
    slurm.command("scancel", job)
    assert slurm.wait(job)["JobState"] == "CANCELLED"
    run = f"runs/run_nodes-{job}"
    assert verify_run(slurm.folder / run).status == "incomplete"
    again = slurm.submit("run_nodes.sbatch", *lasting(4.0), CM_LAUNCHER=pmi, CM_OUT=run, **NULL)
    assert slurm.wait(again)["JobState"] == "COMPLETED", slurm.text(slurm.log("run_nodes", again))
    assert exact(slurm.folder / run, ROWS)


@pytest.mark.any_mpi
def test_jobs_of_an_array_share_a_run_and_one_that_is_cancelled_costs_no_row(
    slurm: Cluster, pmi: str
) -> None:
    given = {**NULL, "CM_LAUNCHER": pmi, "CM_OUT": "runs/array"}
    array = slurm.submit("run_one_node.sbatch", *lasting(12.0), flags=("--array=1-3",), **given)
    run = slurm.folder / "runs/array"
    slurm.wait_for_text(run / "status/0003.json", "running")
    slurm.command("scancel", f"{array}_2")
    slurm.wait(array)
    codes = [slurm.facts(f"{array}_{n}")["ExitCode"] for n in (1, 3)]
    assert codes == ["0:0", "0:0"]
    assert exact(run, ROWS)
    assert len({row["session"] for row in read_results(run).images}) > 1


def test_exit_codes_are_kept(slurm: Cluster, pmi: str) -> None:
    wrong = slurm.submit(
        "run_nodes.sbatch", CM_LAUNCHER={"pmix": "pmi2", "pmi2": "pmix"}[pmi], **NULL
    )
    jobs = {
        slurm.submit("run_nodes.sbatch", CM_LAUNCHER="mpirun", **NULL): "2:0",
        slurm.submit("run_nodes.sbatch", "--accept", "x", CM_LAUNCHER=pmi, **NULL): "2:0",
        slurm.submit("analyse.sbatch", "no/such/run"): "3:0",
    }
    for job, code in jobs.items():
        facts = slurm.wait(job)
        assert facts["ExitCode"] == code, slurm.text(slurm.log(facts["JobName"], job))
    # MPICH says itself that it does not speak PMIx; Open MPI's ranks find that they are alone.
    assert slurm.wait(wrong)["ExitCode"] == ("3:0" if pmi == "pmix" else "16:0")


# ---- which rank takes which GPU -----------------------------------------------------------------


def said(log: Path) -> list[dict[str, str]]:
    """What programs/devices.py printed, a dict a rank."""
    lines = log.read_text().splitlines()
    return [dict(re.findall(r"(\w+)=(\S+)", line)) for line in lines if line.startswith("rank=")]


def devices(slurm: Cluster, launch: str) -> dict[int, dict[str, str]]:
    """What 11 ranks on 4 nodes with 2 GPUs each say of themselves."""
    script = slurm.folder / "devices.sbatch"
    program = f"{sys.executable} {PROGRAMS / 'devices.py'}"
    script.write_text(
        "#!/bin/bash\n#SBATCH --nodes=4 --ntasks-per-node=3 --gpus-per-node=2 --cpus-per-task=2\n"
        "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK\n"
        f"{launch.format(ranks=11)} {program}\n"
    )
    roots = {
        f"{who}_ALLOW_RUN_AS_ROOT{end}": "1" for who in ("OMPI", "PRTE") for end in ("", "_CONFIRM")
    }
    job = slurm.submit(
        str(script),
        flags=("--output=devices-%j.log",),
        PRTE_MCA_hwloc_default_binding_policy="none",
        **roots,
    )
    log = slurm.log("devices", job)
    assert slurm.wait(job)["JobState"] == "COMPLETED", slurm.text(log)
    return {int(rank["rank"]): rank for rank in said(log)}


@pytest.mark.parametrize("launcher", ["srun", "mpiexec"])
def test_gpus_are_shared_evenly_and_rank_0_takes_none(
    slurm: Cluster, mpi: Mpi, pmi: str, launcher: str
) -> None:
    start = f"srun --mpi={pmi} --ntasks={{ranks}}"
    if launcher == "mpiexec":
        start = f"{mpi.mpiexec} -n {{ranks}}"
    ranks = devices(slurm, start)
    assert sorted(ranks) == list(range(11))
    assert ranks[0]["device"] == "cpu"
    if launcher == "srun":  # elsewhere it is the cores of a host / its ranks
        assert all(rank["threads"] == "2" for rank in ranks.values())  # --cpus-per-task
    shares = Counter((rank["host"], rank["device"]) for n, rank in ranks.items() if n > 0)
    assert {host for host, _ in shares} == {"n1", "n2", "n3", "n4"}
    assert {device for _, device in shares} == {"cuda:0", "cuda:1"}
    assert max(shares.values()) <= 2  # 3 ranks on 2 GPUs: one GPU has two
    assert len(shares) == 8  # and none is idle
    assert {rank["visible"] for rank in ranks.values()} == {"0,1"}
