"""The doctor's verdicts from facts, the map of the ranks, the screen."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from itertools import chain
from pathlib import Path

import pytest

from collage_mpi.commands.doctor import (
    Screen,
    devices_text,
    hosts_text,
    map_lines,
)
from collage_mpi.doctor.checks_machine import check_slurm, size_text
from collage_mpi.doctor.checks_software import (
    check_fault_tolerance,
    check_launcher,
    launcher_fits,
    version_key,
)
from collage_mpi.doctor.checks_world import (
    check_host_cores,
    check_shared_gpus,
    check_size,
    check_software_alike,
    check_trial,
    check_world,
    roles,
)
from collage_mpi.doctor.facts import (
    BAD,
    OK,
    WARN,
    Facts,
    Finding,
    Folder,
    Gpus,
    HostFacts,
    Library,
    MpiFacts,
    Package,
    Python,
    Rank,
    ShardCount,
    Trial,
    WantedJob,
    World,
)
from collage_mpi.doctor.gather import (
    SLURM_VARIABLES,
    can_meet,
    examine,
    file_system,
    is_bad,
    started_by,
)
from collage_mpi.launch.mpiexec import Mpi
from collage_mpi.system.printable import numbers_text, ranges_in

MPICH = Mpi(Path("/v/bin/mpiexec"), "mpich", "5.0.2")
OPENMPI = Mpi(Path("/usr/bin/mpiexec"), "openmpi", "4.1.4")
INTEL = Mpi(Path("/opt/intel/bin/mpiexec"), "intel", "2021.14")


def wanted_job(**given: object) -> WantedJob:
    """The job that a user wants who gives no more than this."""
    plain = {"ranks": None, "run": {}, "device": "auto", "mpi": "auto", "mpiexec": None}
    return WantedJob(**{**plain, **given})


SOUND = Facts(
    wanted=wanted_job(),
    python=Python("3.11.7", "/v/bin/python"),
    packages=(Package("numpy", "1.26", "2.4.6"), Package("mpi4py", "4.0.3", "4.1.2")),
    mpi=MpiFacts(library=Library("mpich", "MPICH 5.0.2"), launchers=(MPICH,), on_path=MPICH),
    gpus=Gpus(torch_build="cpu", torch_count=0),
    machine=HostFacts("vm", 16, 11, True, {}, 1 << 34, 4096, 4096),
    folder=Folder("/out", "/out", True, None, 1.0, 1 << 40, "ext4", hdf5_tried=True),
)


def changed(**parts: object) -> Facts:
    """SOUND with some fields of its parts changed: `machine=dict(cores=1)`."""
    values = {
        name: dataclasses.replace(old, **part) if dataclasses.is_dataclass(old) else part
        for name, part in parts.items()
        if isinstance(part, dict)
        for old in [getattr(SOUND, name)]
    }
    return dataclasses.replace(SOUND, **{**parts, **values})


def faults(facts: Facts) -> list[Finding]:
    return [finding for finding in examine(facts) if finding.verdict != OK]


def test_a_sound_machine_has_no_fault_and_no_fix():
    findings = examine(SOUND)
    assert not is_bad(findings)
    assert {finding.verdict for finding in findings} == {OK}
    assert not any(finding.fix for finding in findings)
    assert can_meet(SOUND)


# (what is changed, which line says so, how badly, what is found, what the fix names)
FAULTS = {
    "torch missing": (
        {"packages": (Package("torch", "2.6"),)},
        ("torch", BAD, "not installed", "pip install 'torch>=2.6'"),
    ),
    "torch too old": (
        {"packages": (Package("torch", "2.6", "2.1.0+cu118"),)},
        ("torch", BAD, "too old", "--upgrade 'torch>=2.6'"),
    ),
    "h5py broken": (
        {"packages": (Package("h5py", None, "3.1", "ImportError: libhdf5.so"),)},
        ("h5py", BAD, "libhdf5.so", "--force-reinstall"),
    ),
    "torch broken, of a build that is not PyPI's": (
        {"packages": (Package("torch", "2.6", "2.6.0+rocm6.2", "ImportError: libhip.so"),)},
        ("torch", BAD, "libhip.so", "the build for your GPUs"),
    ),
    "torch slow to import": (
        {"packages": (Package("torch", "2.6", None, "no answer within 60 s"),)},
        ("torch", BAD, "no answer within 60 s", "its file system is slow"),
    ),
    "everything missing is one line": (
        {"packages": (Package("numpy"), Package("torch"))},
        ("packages", BAD, "numpy, torch", "/v/bin/python -m pip install 'numpy' 'torch'"),
    ),
    "no library": (
        {"mpi": {"library": None, "library_error": "libmpi.so.40: cannot open"}},
        ("MPI library", BAD, "libmpi.so.40", "pip install 'mpich>="),
    ),
    "no launcher": (
        {"mpi": {"launchers": ()}},
        ("launcher", BAD, "no mpiexec", "on PATH"),
    ),
    "launcher of the other MPI": (
        {"mpi": {"launchers": (OPENMPI,)}},
        ("launcher", BAD, "0 of 1", "MPICH 5.0.2"),
    ),
    "family that is not here": (
        {"wanted": {"mpi": "intel"}},
        ("launcher", BAD, "mpich 5.0.2", "leave --mpi out"),
    ),
    "mpiexec that is none": (
        {"wanted": {"mpiexec": "/bin/ls"}, "mpi": {"launchers": ()}},
        ("launcher", BAD, "/bin/ls", "leave --mpiexec out"),
    ),
    "mpiexec on PATH of the other MPI": (
        {"mpi": {"on_path": OPENMPI}},
        ("mpiexec", WARN, "/usr/bin/mpiexec", "/v/bin/mpiexec"),
    ),
    "started by the other MPI": (
        {"mpi": {"under_launcher": True, "started_by": "openmpi"}},
        ("launcher", BAD, "cannot meet", "collage-mpi launch"),
    ),
    "srun over PMIx with an MPICH without": (
        {"mpi": {"under_launcher": True, "started_by": "srun", "pmix": True}},
        ("launcher", BAD, "built without PMIx", "--mpi=pmi2"),
    ),
    "cuda without a GPU": (
        {"wanted": {"device": "cuda"}},
        ("GPUs", BAD, "neither", "--gpus-per-node"),
    ),
    "all GPUs hidden": (
        {"gpus": {"installed": ("A100",) * 4, "visible": ("CUDA_VISIBLE_DEVICES", "")}},
        ("GPUs", WARN, "4 x A100, but CUDA_VISIBLE_DEVICES='' leaves 0", "unset CUDA_VIS"),
    ),
    "some GPUs hidden, as the driver says": (
        {"gpus": Gpus(("A100",) * 4, 1, "cuda 12.6", 1, ("CUDA_VISIBLE_DEVICES", "GPU-8932f937"))},
        ("GPUs", WARN, "leaves 1 visible", "--gpus-per-node"),
    ),
    "GPUs not asked for": (
        {"gpus": Gpus(("A100",) * 4, 0, "cuda 12.6", 0)},
        ("GPUs", WARN, "this process sees 0", "--gpus-per-node"),
    ),
    "CPU torch on a GPU host": (
        {"gpus": Gpus(("H100",), 1, "cpu", 0)},
        ("GPUs", WARN, "CPU build", "whl/cu"),
    ),
    "CPU torch where CUDA is asked for": (
        {"wanted": {"device": "cuda"}, "gpus": Gpus(("H100",), 1, "cpu", 0)},
        ("GPUs", BAD, "CPU build", "whl/cu"),
    ),
    "driver too old for torch": (
        {"gpus": Gpus(("K80",), 1, "cuda 12.6", 0)},
        ("GPUs", WARN, "torch (cuda 12.6) sees 0", "driver may be older"),
    ),
    "more ranks than cores": (
        {"machine": {"cores": 2}},
        ("cores", WARN, "11 ranks on 2 cores", "a core for each rank"),
    ),
    "too many threads": (
        {"machine": {"threads": {"OMP_NUM_THREADS": "16"}}},
        ("threads", WARN, "OMP_NUM_THREADS=16 for each of 11", "export OMP_NUM_THREADS=1"),
    ),
    "small /dev/shm": (
        {"machine": {"shm_free_bytes": 32 << 20}},
        ("/dev/shm", BAD, "needs 60 MiB", "--shm-size"),
    ),
    "few open files": (
        {"machine": {"files_soft": 256}},
        ("open files", BAD, "at most 256", "ulimit -n 344"),
    ),
    "few open files for ever": (
        {"machine": {"files_soft": 256, "files_hard": 256}},
        ("open files", BAD, "at most 256", "hard limit"),
    ),
    "unwritable output": (
        {"folder": {"error": "Permission denied (/)"}},
        ("output", BAD, "Permission denied", "another --out"),
    ),
    "full disk": (
        {"folder": {"free_bytes": 1 << 20}},
        ("output", BAD, "1 MiB free", "free space"),
    ),
    "nearly full disk": (
        {"folder": {"free_bytes": 500 << 20}},
        ("output", WARN, "500 MiB free", "free space"),
    ),
    "too little room for these shards": (
        {"shards": ShardCount(10, 10**9), "folder": {"free_bytes": 1 << 38}},
        ("output", BAD, "465.7 GiB", "free space"),
    ),
    "a run is there": (
        {"folder": {"holds": "run"}},
        ("output", WARN, "unfinished run", "--resume"),
    ),
    "HDF5 at all": (
        {"folder": {"hdf5_error": "errno = 37"}},
        ("HDF5", BAD, "cannot write", "HDF5_USE_FILE_LOCKING=FALSE"),
    ),
    "bad shards": (
        {"shards": ShardCount(error="/x: no such file")},
        ("shards", BAD, "/x", "shards verify"),
    ),
    "cpus that srun does not inherit": (
        {"slurm": {"SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "4"}},
        ("Slurm cpus", WARN, "not passed on", "export SRUN_CPUS_PER_TASK=4"),
    ),
    "gpus per task, as Slurm 24 says it": (
        {"slurm": {"SLURM_JOB_ID": "7", "SLURM_TRES_BIND": "gres/gpu:per_task:1"}},
        ("Slurm GPUs", WARN, "hides", "--gpus-per-node"),
    ),
    "gpus per task": (
        {"slurm": {"SLURM_JOB_ID": "7", "SLURM_GPUS_PER_TASK": "1"}},
        ("Slurm GPUs", WARN, "hides", "--gpus-per-node"),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_with_its_fix(name):
    parts, (line, verdict, found, fix) = FAULTS[name]
    (finding,) = faults(changed(**parts))
    assert (finding.name, finding.verdict) == (line, verdict)
    assert found in finding.found
    assert fix in (finding.fix or "")


def test_a_job_of_slurm_is_told_by_all_that_is_asked_of_it():
    told = {name: f"<{name[6:]}>" for name in SLURM_VARIABLES if name.startswith("SLURM_")}
    told |= {"SLURM_JOB_ID": "7", "SRUN_CPUS_PER_TASK": told["SLURM_CPUS_PER_TASK"]}
    found = next(check_slurm(changed(slurm=told)))
    assert (found.verdict, found.found) == (
        OK,
        "job 7, step <STEP_ID>, nodes <JOB_NUM_NODES>, tasks <NTASKS>, cpus a task "
        "<CPUS_PER_TASK>, GPUs on node <GPUS_ON_NODE>, --mpi=<MPI_TYPE>, restart <RESTART_COUNT>",
    )


def test_a_fault_of_the_current_folder_is_a_warning():
    facts = changed(folder={"named": False, "error": "Read-only file system (/)"})
    assert [finding.verdict for finding in faults(facts)] == [WARN]


def test_open_mpi_wants_less_shared_memory_and_does_without():
    library = {"library": Library("openmpi", "Open MPI 5.0.11"), "launchers": (OPENMPI,)}
    mpi = {**library, "on_path": None}
    assert not faults(changed(mpi=mpi, machine={"shm_free_bytes": 32 << 20}))
    (finding,) = faults(changed(mpi=mpi, machine={"shm_free_bytes": 1 << 20}))
    assert finding.verdict == WARN


@pytest.mark.parametrize(
    ("library", "started", "pmix", "fits"),
    [
        ("openmpi", "srun", True, True),
        ("openmpi", "srun", False, True),  # or N worlds of one: only trying tells
        ("openmpi", "hydra", False, False),
        ("mpich", "srun", False, True),
        ("mpich", "srun", True, False),
        ("mpich", "openmpi", True, False),
        ("mpich with pmix", "openmpi", True, True),
        ("mpich with pmix", "srun", True, True),
        ("mpich", "pals", False, True),
        ("mpich", "pals", True, False),
        ("openmpi", "pals", True, True),
        ("mpich", None, False, True),
    ],
)
def test_which_launcher_can_serve_which_library(library, started, pmix, fits):
    abi, _, built = library.partition(" with ")
    facts = MpiFacts(Library(abi, "MPI", bool(built)), started_by=started, pmix=pmix)
    assert launcher_fits(facts) == fits


@pytest.mark.parametrize(
    ("started", "who"),
    [
        ("openmpi", "Open MPI's mpirun"),
        ("hydra", "MPICH's or Intel's mpiexec"),
        ("srun", "srun"),
        ("pals", "PALS's mpiexec or aprun"),
        (None, "an unknown launcher"),
    ],
)
def test_who_started_it_is_named(started, who):
    facts = changed(mpi={"library": None, "under_launcher": True, "started_by": started})
    (finding,) = check_launcher(facts)
    assert finding.found == f"started by {who}"


@pytest.mark.parametrize(
    ("launchers", "said"),
    [
        ((MPICH,), "goes on (by MPICH's flag and a wrapper)"),
        ((OPENMPI, MPICH), "goes on (by MPICH's flag and a wrapper)"),
        ((INTEL,), "a lost rank ends the job with this MPI"),
        ((), "a lost rank ends the job with this MPI"),
    ],
)
def test_what_a_lost_rank_means_is_told(launchers, said):
    (finding,) = check_fault_tolerance(changed(mpi={"launchers": launchers}))
    assert said in finding.found


def test_mpi_is_not_started_where_it_would_abort():
    assert not can_meet(changed(mpi={"library": None}))
    assert not can_meet(changed(mpi={"under_launcher": True, "started_by": "openmpi"}))
    assert not can_meet(changed(packages=(Package("numpy"),)))


@pytest.mark.parametrize(
    ("environ", "family"),
    [
        ({}, None),
        ({"OMPI_COMM_WORLD_SIZE": "2", "SLURM_STEP_ID": "0"}, "openmpi"),
        ({"HYDI_CONTROL_FD": "9", "PMI_SIZE": "2", "SLURM_STEP_ID": "0"}, "hydra"),
        ({"SLURM_STEP_ID": "0", "PMI_SIZE": "2"}, "srun"),
        ({"PMI_SIZE": "2"}, "hydra"),
        ({"PALS_RANKID": "0", "PMI_SIZE": "2"}, "pals"),
        ({"PALS_RANKID": "0", "PMI_SIZE": "2", "SLURM_STEP_ID": "0"}, "srun"),
    ],
)
def test_who_started_this_process(environ, family):
    assert started_by(environ) == family


# ---- worlds ------------------------------------------------------------------


def rank(number: int, host: str = "n1", **fields: object) -> Rank:
    usual = {"cores": 16, "threads": 1, "affinity": "0-15", "host_cores": 16, "software": "one"}
    return Rank(**{"rank": number, "host": host, "device": "cpu", **usual, **fields})


def world(size: int, **fields: object) -> World:
    ranks = tuple(rank(number) for number in range(size))
    return World(**{"size": size, "launcher_size": size, "ranks": ranks, **fields})


def test_a_world_of_eleven_is_side_three():
    findings = list(check_world(SOUND, world(11)))
    assert {finding.verdict for finding in findings} == {OK}
    assert "side 3: 0 coordinator, 1-9 single, 10 collage" in findings[1].found


@pytest.mark.parametrize(
    ("wanted", "size", "verdict", "fix"),
    [
        (wanted_job(run=dict(side=3)), 8, BAD, "launch with -n 11"),
        (wanted_job(run=dict(singles=4)), 8, BAD, "launch with -n 6"),
        (wanted_job(run=dict(singles=6)), 8, OK, None),
        (wanted_job(), 8, WARN, "-n 11 (side 3)"),
        (wanted_job(), 3, WARN, "--singles 1, or launch -n 6 (side 2)"),
        (wanted_job(), 1, BAD, "-n 11"),
        (wanted_job(), 2, BAD, "-n 11"),
        (wanted_job(run=dict(singles=0)), 2, BAD, "run --help"),
        (wanted_job(run=dict(collage_ranks=2)), 12, OK, None),
        (wanted_job(run=dict(side=3)), 13, BAD, "launch with -n 11"),
        (wanted_job(run=dict(side=3, scheme="replicate")), 19, OK, None),
        (wanted_job(run=dict(side=3, scheme="replicate")), 11, BAD, "launch with -n 19"),
        (wanted_job(run=dict(side=3, scheme="replicate", replicas=3)), 28, OK, None),
        (wanted_job(run=dict(side=3, scheme="none")), 10, OK, None),
        (
            wanted_job(run=dict(scheme="replicate")),
            18,
            WARN,
            "--singles 17, or launch -n 9 (side 2)",
        ),
        (wanted_job(run=dict(scheme="replicate", replicas=4)), 2, BAD, "launch -n 17 (side 2)"),
        (wanted_job(run=dict(side=3, scheme="collage-only", collage_ranks=2)), 3, OK, None),
        (wanted_job(run=dict(teams=4, side=3)), 44, OK, None),
        (wanted_job(run=dict(teams=2, side=2)), 8, BAD, "launch with -n 12"),
        (wanted_job(run=dict(teams=2)), 8, WARN, "--singles 2, or launch -n 12 (side 2)"),
    ],
)
def test_the_size_must_fit(wanted, size, verdict, fix):
    finding = check_size(wanted, size)
    assert finding.verdict == verdict, finding
    assert (fix or "") in (finding.fix or "")


def test_of_several_teams_each_has_its_coordinator_in_the_map():
    wanted = wanted_job(run=dict(teams=2, side=2))
    assert roles(wanted, 12) == ["coordinator", *["single"] * 4, "collage"] * 2
    found = check_size(wanted, 12).found
    assert found == "2 teams, each of side 2: 0 coordinator, 1-4 single, 5 collage"


def test_the_map_names_ranks_that_hold_both():
    both = roles(wanted_job(run=dict(side=3, placement="fastest")), 11)
    assert both == ["coordinator"] + ["single+collage"] * 10


def test_n_worlds_of_one_are_told():
    (finding,) = check_world(SOUND, world(1, launcher_size=4))
    assert finding.verdict == BAD
    assert "started 4 ranks" in finding.found
    assert "srun --mpi=pmi2" in finding.fix


def test_ranks_that_do_not_report_are_named():
    findings = list(check_world(SOUND, world(11, missing=(3, 4, 5, 9), seconds=60.0)))
    assert findings[0].verdict == BAD
    assert "4 of 11 ranks did not report in 60 s: 3-5, 9" in findings[0].found


def test_other_software_on_one_host_is_named():
    (finding,) = check_software_alike([rank(0), rank(1), rank(2, "n7", software="two")])
    assert finding.verdict == BAD
    assert "rank 2 on n7 has two, but most ranks have one" in finding.found


def test_gpus_bound_per_task_are_noticed():
    ranks = [
        rank(number, device="cuda:0", gpu=str(number), visible=str(number), gpu_count=1)
        for number in range(4)
    ]
    (finding,) = check_shared_gpus(ranks)
    assert "--gpus-per-task" in finding.found
    assert not list(check_shared_gpus([rank(1, device="cuda:0", gpu_count=1, visible="0")] * 3))


def test_ranks_without_a_gpu_are_named_once():
    ranks = [rank(number, device=None, problem="sees no GPU") for number in (1, 2, 3)]
    (finding,) = check_shared_gpus(ranks)
    assert "rank 1 on n1 (and 2 more ranks): sees no GPU" in finding.found


def test_ranks_bound_to_the_same_cores():
    (finding,) = check_host_cores([rank(number, affinity="0-1") for number in range(8)])
    assert "8 ranks are bound to 2 of 16 cores" in finding.found
    assert not list(check_host_cores([rank(n, affinity=str(n), host_cores=16) for n in range(8)]))


def test_threads_of_all_ranks_on_a_host_are_summed():
    (finding,) = check_host_cores([rank(number, omp="4") for number in range(8)])
    assert "32 threads on 16 cores" in finding.found
    assert finding.fix == "export OMP_NUM_THREADS=2"
    assert not list(check_host_cores([rank(number, omp="2") for number in range(8)]))


TRIALS = {
    "root": ("prterun has detected an attempt to run as root.", "OMPI_ALLOW_RUN_AS_ROOT=1"),
    "slots": ("There are not enough slots available", "oversubscribe"),
    "bus error": ("EXIT CODE: 7", "--shm-size"),
    "interface": ("unable to find a suitable interface", "HYDRA_IFACE=lo"),
    "pmix": ("Runtime environment uses unsupported PMI version PMIx", "srun --mpi=pmi2"),
    "unknown": ("something else", "--no-launch"),
}


@pytest.mark.parametrize("name", TRIALS)
def test_what_launchers_say_becomes_a_fix(name):
    text, fix = TRIALS[name]
    finding = check_trial(Trial(2, 1.0, output=("first line", text), exit_code=213))
    assert finding.verdict == BAD
    assert fix in finding.fix


def test_a_trial_that_hangs_says_how_long():
    finding = check_trial(Trial(2, 12.3, timed_out=True, exit_code=-9))
    assert "timeout after 12 s" in finding.found


def test_a_trial_of_singletons():
    assert "rank 0 of 1" in check_trial(Trial(2, 1.0, world(1), singletons=2)).found
    assert check_trial(Trial(11, 1.0, world(11))).verdict == OK


# ---- the map -----------------------------------------------------------------


def test_the_map_of_one_host_is_a_line_a_role():
    ranks = [rank(number) for number in range(11)]
    text = map_lines(ranks, roles(wanted_job(), 11))
    assert [line.split() for line in text[1:]] == [
        ["0", "n1", "coordinator", "cpu", "1", "16"],
        ["1-9", "n1", "single", "cpu", "1", "16"],
        ["10", "n1", "collage", "cpu", "1", "16"],
    ]


@pytest.mark.parametrize("cyclic", [False, True])
def test_a_thousand_ranks_fit_on_one_screen(cyclic):
    ranks = [rank(0, "n001")]
    for number in range(1, 1002):
        host = number % 126 if cyclic else number // 8
        device = f"cuda:{number // 126 if cyclic else number % 8}"
        ranks.append(rank(number, f"n{host + 1:03d}", device=device))
    text = map_lines(ranks, roles(wanted_job(), 1002))
    assert len(text) < 12
    assert max(map(len, text)) <= 78  # and two of margin


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([0], "0"),
        ([0, 1], "0-1"),
        ([1, 2, 3, 7], "1-3, 7"),
        ([2, 9], "2, 9"),
        ([1, 9, 17, 25], "1-25/8"),
        ([0, 3, 4, 8, 9, 13, 21, 30], "0..30 (8)"),
    ],
)
def test_numbers(numbers, text):
    assert numbers_text(numbers) == text


def test_hosts():
    assert hosts_text(["n1"]) == "n1"
    assert hosts_text([f"n{k:03d}-ib" for k in (1, 2, 3, 7)]) == "n[001-003,007]-ib"
    assert hosts_text(["alpha", "beta"]) == "alpha .. beta, 2 hosts"
    assert hosts_text(["ip-10-0-0-7", "ip-10-0-0-8"]) == "ip-10-0-0-[7-8]"


def test_devices():
    assert devices_text(["cpu"]) == "cpu"
    assert devices_text(["cpu", "cpu"]) == "cpu"
    assert devices_text([f"cuda:{k}" for k in range(8)]) == "cuda:0-7"
    assert devices_text(["cuda:0", "cuda:1"] * 4) == "cuda:0-1 x4"
    assert devices_text(["cuda:0", "cuda:1", "cuda:0"]) == "cuda:0-1 x1-2"
    assert devices_text(["GPU 3", "cuda:0"]) == "GPU 3, cuda:0"


# ---- the screen --------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(stream: io.StringIO, columns: int, monkeypatch, environ=None) -> list[str]:
    monkeypatch.setenv("COLUMNS", str(columns))
    parts, _ = FAULTS["too many threads"]
    findings = examine(changed(**parts))
    screen = Screen(stream, environ or {})
    screen.findings(findings)
    screen.verdict(findings, "run")
    return stream.getvalue().splitlines()


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_screen_keeps_to_its_width(columns, monkeypatch):
    lines = shown(io.StringIO(), columns, monkeypatch)
    assert max(map(len, lines)) <= columns
    assert lines[-1] == "no fault, 1 warning. Next: run"
    assert not any("\033" in line for line in lines)


def test_colours_are_for_terminals_that_want_them(monkeypatch):
    assert any("\033[33mwarn" in line for line in shown(Terminal(), 80, monkeypatch))
    for environ in ({"NO_COLOR": "1"}, {"TERM": "dumb"}, {"PMI_SIZE": "2"}):
        assert not any("\033" in line for line in shown(Terminal(), 80, monkeypatch, environ))


# ---- small things ------------------------------------------------------------


def test_small_readers(tmp_path):
    assert version_key("2.13.0+cpu") == (2, 13, 0)
    assert version_key("?") == ()
    assert size_text(64 << 20) == "64 MiB"
    assert [*chain(*ranges_in("0-2,5"))] == [0, 1, 2, 5]
    mounts = tmp_path / "mounts"
    mounts.write_text(f"a / ext4 rw 0 0\nb {tmp_path} nfs4 rw 0 0\nc {tmp_path}x tmpfs rw 0 0\n")
    assert file_system(tmp_path / "out", mounts) == "nfs4"
    assert file_system(tmp_path, tmp_path / "none") is None


def test_nothing_heavy_is_imported():
    program = (
        "import sys, collage_mpi.commands.doctor, collage_mpi.doctor.ranks\n"
        "heavy = {'torch', 'h5py', 'mpi4py', 'numpy', 'rich'}\n"
        "assert not heavy & {name.partition('.')[0] for name in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
