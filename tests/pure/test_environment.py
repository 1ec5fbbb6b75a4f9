"""Launcher variables, local ranks, devices, cores: from dictionaries."""

from __future__ import annotations

import pytest

from collage_mpi.errors import EnvironmentFault
from collage_mpi.system import environment
from collage_mpi.system.launchers import expand_tasks_per_node

MPICH = {"PMI_RANK": "3", "PMI_SIZE": "11", "MPI_LOCALRANKID": "3", "MPI_LOCALNRANKS": "11"}
OPENMPI = {
    "OMPI_COMM_WORLD_RANK": "3",
    "OMPI_COMM_WORLD_SIZE": "11",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "6",
    "PMIX_RANK": "3",
}
SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_NTASKS": "11",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_ID": "0",
    "SLURM_NODEID": "1",
    "SLURM_TASKS_PER_NODE": "3(x3),2",
}
# PALS with its own PMI, with PMIx as on Aurora, and Slurm in its place.
PALS_PLACE = {"PALS_RANKID": "5", "PALS_LOCAL_RANKID": "2", "PALS_NODEID": "1"}
PALS = {**PALS_PLACE, "PMI_RANK": "5", "PMI_SIZE": "11", "PMI_LOCAL_SIZE": "3"}
PALS_PMIX = {**PALS_PLACE, "PALS_LOCAL_SIZE": "3", "PALS_PMI": "pmix", "PMIX_RANK": "5"}
CRAY_SRUN = {**PALS, "SLURM_PROCID": "5", "SLURM_STEP_ID": "0", "SLURM_NODEID": "1"}
# Flux with the PMI that it has by default; its instance may be within a job of Slurm's.
FLUX = {
    "FLUX_TASK_RANK": "5",
    "FLUX_JOB_SIZE": "11",
    "FLUX_JOB_NNODES": "2",
    "FLUX_TASK_LOCAL_ID": "0",
    "PMI_RANK": "5",
    "PMI_SIZE": "11",
    "FLUX_URI": "local:///run/flux/local",
}
BATCH_SCRIPT = {"SLURM_PROCID": "0", "SLURM_NTASKS": "11", "SLURM_LOCALID": "0"}


@pytest.mark.parametrize(
    ("environ", "rank", "size", "local", "local_size"),
    [
        ({}, None, None, None, None),
        (MPICH, 3, 11, 3, 11),
        (OPENMPI, 3, 11, 1, 6),
        (SRUN, 3, 11, 0, 3),
        ({**BATCH_SCRIPT, **MPICH}, 3, 11, 3, 11),
        (PALS, 5, 11, 2, 3),
        (PALS_PMIX, 5, None, 2, 3),
        ({**PALS_PMIX, "COLLAGE_MPI_PALS_SIZE": "11"}, 5, 11, 2, 3),
        (CRAY_SRUN, 5, 11, 2, 3),
        (FLUX, 5, 11, 0, None),
        ({**FLUX, "FLUX_JOB_SIZE": "12", "PMI_SIZE": "12"}, 5, 12, 0, 6),
        ({**FLUX, "SLURM_PROCID": "0", "SLURM_LOCALID": "1", "SLURM_STEP_ID": "0"}, 5, 11, 0, None),
        ({**FLUX, **MPICH}, 3, 11, 3, 11),
        (BATCH_SCRIPT, 0, None, 0, None),
        ({"PMI_RANK": "-1", "PMI_SIZE": ""}, None, None, None, None),
    ],
)
def test_what_the_launcher_says(environ, rank, size, local, local_size):
    assert environment.launcher_rank(environ) == rank
    assert environment.launcher_size(environ) == size
    assert environment.local_rank(environ) == local
    assert environment.local_size(environ) == local_size


@pytest.mark.parametrize(
    ("text", "counts"),
    [("", []), ("4", [4]), ("2(x3),1", [2, 2, 2, 1]), ("1,2", [1, 2]), ("x", []), ("2(x", [])],
)
def test_tasks_per_node(text, counts):
    assert expand_tasks_per_node(text) == counts


def test_hosts_of_the_allocation(tmp_path):
    hosts = tmp_path / "nodes"
    hosts.write_text("x1000\nx1000\nx1001\nx1001\nx1002\n")
    pbs = {"PBS_NODEFILE": str(hosts)}
    assert environment.allocated_hosts({}) == 1
    assert environment.allocated_hosts(pbs) == 3
    assert environment.allocated_hosts({"PBS_NODEFILE": str(tmp_path / "none")}) == 1
    assert environment.allocated_hosts({**pbs, "SLURM_NNODES": "2"}) == 2


@pytest.mark.parametrize("text", ["h1:2\nh2:2 # spare\n\n# h3\n", "h1 slots=2\nh2\nh1\n"])
@pytest.mark.parametrize("name", ["HYDRA_HOST_FILE", "PRTE_MCA_prte_default_hostfile"])
def test_hosts_of_a_launcher_s_file_are_hosts_of_the_job(name: str, text: str, tmp_path) -> None:
    """Else launch would tell a job over hosts to talk over the loopback device."""
    (tmp_path / "hosts").write_text(text)
    assert environment.allocated_hosts({name: str(tmp_path / "hosts")}) == 2


@pytest.mark.parametrize(
    ("visible", "entries"),
    [
        (None, None),
        ("", []),
        ("0,1", ["0", "1"]),
        ("GPU-8932f937-d72c, MIG-4f1b", ["GPU-8932f937-d72c", "MIG-4f1b"]),
        ("0,-1,1", ["0"]),
        ("NoDevFiles", []),
    ],
)
def test_visible_entries_stay_text(visible, entries):
    assert environment.visible_entries(visible) == entries


@pytest.mark.parametrize(
    ("local", "visible", "device", "count", "expected"),
    [
        (None, None, "auto", 4, "cpu"),  # the coordinator
        (0, None, "auto", 0, "cpu"),
        (0, None, "cpu", 4, "cpu"),
        (1, None, "auto", 4, "cuda:1"),
        (5, None, "cuda", 4, "cuda:1"),
        (1, "GPU-a,MIG-b", "auto", 2, "cuda:1"),
        (2, "GPU-a,MIG-b", "auto", 2, "cuda:0"),
        (3, "7", "auto", 1, "cuda:0"),
        (0, "", "auto", 0, "cpu"),
    ],
)
def test_devices(local, visible, device, count, expected):
    assert environment.assign_device(local, visible, device, count) == expected


def test_cuda_asked_for_and_none_visible():
    with pytest.raises(EnvironmentFault, match=r"sees no GPU.*is ''"):
        environment.assign_device(0, "", "cuda", 0)


def test_visible_devices_knows_rocm():
    assert environment.visible_devices({}) is None
    assert environment.visible_devices({"ROCR_VISIBLE_DEVICES": "2,3"}) == "2,3"
    assert environment.visible_devices({"HIP_VISIBLE_DEVICES": "1"}) == "1"


@pytest.mark.parametrize(
    ("rank", "environ", "expected"),
    [
        (0, MPICH, None),
        (3, {}, 2),
        (3, MPICH, 2),  # block placement beside rank 0
        (6, {"PMI_RANK": "6", "MPI_LOCALRANKID": "0"}, 0),  # another host
        (4, {"SLURM_LOCALID": "1", "SLURM_STEP_ID": "0", "SLURM_NODEID": "0"}, 0),  # cyclic
        (3, {"SLURM_LOCALID": "3", "SLURM_STEP_ID": "0", "SLURM_NODEID": "1"}, 3),
        (5, PALS, 2),
        (4, {**PALS, "PALS_LOCAL_RANKID": "1", "PALS_NODEID": "0"}, 0),
    ],
)
def test_gpu_ranks_are_counted_without_the_coordinator(rank, environ, expected):
    assert environment.local_gpu_rank(rank, environ) == expected


@pytest.mark.parametrize("batch", [{}, {"SLURM_NODEID": "0", "SLURM_PROCID": "0"}])
def test_ranks_that_mpirun_numbers_across_sockets_share_the_gpus_evenly(batch):
    local_of = [0, 2, 1, 3, 4]  # as mpirun does on two sockets: ranks 3 and 4 look in order
    world = {"OMPI_COMM_WORLD_SIZE": "5", "OMPI_COMM_WORLD_LOCAL_SIZE": "5"}
    numbers = [
        environment.local_gpu_rank(
            rank,
            {
                **batch,
                **world,
                "OMPI_COMM_WORLD_RANK": str(rank),
                "OMPI_COMM_WORLD_LOCAL_RANK": str(local),
            },
        )
        for rank, local in enumerate(local_of)
    ]
    assert numbers[0] is None
    assert sorted(numbers[1:]) == [0, 1, 2, 3]


def test_cores_obey_the_quota_and_slurm(tmp_path):
    none = tmp_path / "none"
    free = environment.allowed_cores({}, none)
    assert free >= 1
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    assert environment.allowed_cores({}, tmp_path) == 1
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert environment.allowed_cores({}, tmp_path) == free
    assert environment.allowed_cores({"SLURM_CPUS_ON_NODE": "1"}, none) == 1


def test_cgroup_version_1(tmp_path):
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu/cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("100000\n")
    assert environment.allowed_cores({}, tmp_path) == 1
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1\n")
    assert environment.allowed_cores({}, tmp_path) == environment.allowed_cores({}, tmp_path / "no")


@pytest.mark.parametrize(
    ("ranks", "cores", "threads"), [(11, 2, 1), (11, 64, 5), (1, 8, 8), (0, 4, 4)]
)
def test_threads_share_the_cores(monkeypatch, ranks, cores, threads):
    monkeypatch.setattr(environment, "allowed_cores", lambda environ: cores)
    assert environment.threads_per_rank(ranks) == threads


def test_a_slurm_task_keeps_its_own_cores():
    environ = {"SLURM_STEP_ID": "0", "SLURM_CPUS_PER_TASK": "1"}
    assert environment.threads_per_rank(1, environ=environ) == 1


def test_a_slurm_task_has_no_more_threads_than_cores(monkeypatch):
    monkeypatch.setattr(environment, "allowed_cores", lambda environ: 2)
    environ = {"SLURM_STEP_ID": "0", "SLURM_CPUS_PER_TASK": "8"}
    assert environment.threads_per_rank(4, environ) == 2


def test_status_is_wanted_only_when_asked():
    assert environment.status_word({environment.STATUS_VARIABLE: "a1"}) == "a1"
    assert environment.status_word({environment.STATUS_VARIABLE: ""}) is None
    assert environment.status_word({}) is None


def test_a_command_that_a_rank_starts_has_no_status_to_tell(monkeypatch):
    """Its exit code would be taken for the job's."""
    environ = {environment.STATUS_VARIABLE: "a1"}
    assert [environment.status_word(environ) for _ in range(2)] == ["a1", "a1"]
    monkeypatch.setattr(environment.os, "getpid", lambda: 1)
    assert environment.status_word(environ) is None


def test_the_device_that_mpi_was_told_to_use():
    assert environment.told_interface({"HYDRA_IFACE": "ib0"}) == "ib0"
    assert environment.told_interface({"HYDRA_IFACE": ""}) is None


@pytest.mark.parametrize(
    ("teams", "size", "gpus", "loads"),
    [(4, 2, 4, [1, 1, 1, 1]), (2, 4, 4, [2, 2, 1, 1]), (2, 11, 4, [5, 5, 5, 5])],
)
def test_coordinators_of_teams_take_no_gpu(teams, size, gpus, loads):
    numbers = [environment.local_gpu_rank(rank, {}, size) for rank in range(teams * size)]
    assert numbers[::size] == [None] * teams
    used = [number % gpus for number in numbers if number is not None]
    assert [used.count(gpu) for gpu in range(gpus)] == loads
