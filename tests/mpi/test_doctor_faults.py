"""The doctor on faults that are really there, and on real ranks."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import re
import struct
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import collage_mpi
from collage_mpi.errors import ExitCode

pytestmark = pytest.mark.mpi

SOURCE = Path(collage_mpi.__file__).parent.parent
LAUNCHERS = re.compile(r"SLURM_|SRUN_|OMPI_COMM|PMI|HYDI_|MPI4PY_|CUDA_VISIBLE|HDF5_USE|OMP_")

# Importing the real torch is 2 s of every doctor.
TORCH = """
__version__ = "{version}"
class version:
    cuda = {cuda!r}
class cuda:
    device_count = staticmethod(lambda: 0)
"""


class Patient:
    """A place to run the doctor in: variables, programs and packages that can be made ill."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.packages, self.bin = folder / "packages", folder / "bin"
        self.packages.mkdir()
        self.bin.mkdir()
        healthy = {k: v for k, v in os.environ.items() if not LAUNCHERS.match(k)}
        self.env = {**healthy, "PYTHONPATH": str(self.packages)}
        self.env["PATH"] = f"{self.bin}{os.pathsep}{healthy['PATH']}"
        self.python: tuple[str, ...] = (sys.executable,)
        self.torch(TORCH.format(version="2.99.0+cpu", cuda=None))

    def torch(self, text: str) -> None:
        """Another torch."""
        (self.packages / "torch").mkdir(exist_ok=True)
        (self.packages / "torch" / "__init__.py").write_text(text)

    def program(self, name: str, prints: str) -> Path:
        """A program on PATH that prints a text."""
        path = self.bin / name
        path.write_text(f"#!/bin/sh\ncat <<'END'\n{prints}\nEND\n")
        path.chmod(0o755)
        return path

    def ask(self, *words: object, **env: str) -> tuple[int, dict[str, dict[str, str]]]:
        """The exit code, and the findings that are not ok, by name."""
        words = (*self.python, "-m", "collage_mpi", "doctor", "--json", *map(str, words))
        done = subprocess.run(
            words,
            env={**self.env, **env},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert done.stdout.startswith("{"), done.stdout + done.stderr
        findings = json.loads(done.stdout)["findings"]
        return done.returncode, {f["name"]: f for f in findings if f["verdict"] != "ok"}


@pytest.fixture
def patient(tmp_path: Path) -> Patient:
    return Patient(tmp_path)


BAD = int(ExitCode.ENVIRONMENT)


def test_here_nothing_is_bad_and_two_ranks_start(patient):
    code, faults = patient.ask("--out", patient.folder / "run")
    assert code == 0, faults
    assert not any(finding["verdict"] == "bad" for finding in faults.values())


@pytest.mark.any_mpi
def test_a_bare_python_without_any_mpi(patient):
    venv.create(patient.folder / "bare", with_pip=False, symlinks=True)
    patient.python = (str(patient.folder / "bare/bin/python"), "-S")
    code, faults = patient.ask(PATH="/nonexistent", PYTHONPATH=str(SOURCE))
    assert code == BAD
    assert "not installed: numpy, h5py, isal, mpi4py, torch" in faults["packages"]["found"]
    assert "bare/bin/python -m pip install" in faults["packages"]["fix"]
    assert "pip install 'mpich>=" in faults["launcher"]["fix"]


OTHER = {
    "mpich": ("openmpi", "mpiexec (Open MPI) 4.1.4"),
    "openmpi": ("mpich", "HYDRA build details:\n    Version:    4.2.0"),
}


def test_the_mpiexec_on_path_is_another_mpis(patient, mpi):
    path = patient.program("mpiexec", OTHER[mpi.abi][1])
    code, faults = patient.ask("--no-launch")
    assert code == 0
    assert str(path) in faults["mpiexec"]["found"]
    assert str(mpi.mpiexec.parent) in faults["mpiexec"]["fix"]


def test_the_launcher_asked_for_is_another_mpis(patient, mpi):
    family, prints = OTHER[mpi.abi]
    code, faults = patient.ask("--mpiexec", patient.program("mpiexec", prints))
    assert code == BAD
    assert family in faults["launcher"]["found"]
    assert "0 of 1" in faults["launcher"]["found"]
    assert f"pip install '{family}>=" in faults["launcher"]["fix"]


def test_ranks_that_another_mpi_started(patient, mpi):
    foreign = {"mpich": {"OMPI_COMM_WORLD_SIZE": "3"}, "openmpi": {"PMI_SIZE": "3"}}[mpi.abi]
    code, faults = patient.ask(**foreign, OMPI_COMM_WORLD_RANK="0", PMI_RANK="0")
    assert code == BAD
    assert "the ranks cannot meet" in faults["launcher"]["found"]


@pytest.mark.any_mpi
def test_n_worlds_of_one_as_srun_without_mpi_makes_them(patient):
    srun = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
    code, faults = patient.ask(**srun)
    assert code == BAD
    assert "started 4 ranks" in faults["world"]["found"]
    assert "srun --mpi=pmi2" in faults["world"]["fix"]


@pytest.mark.any_mpi
def test_mpi4py_is_told_to_load_a_library_that_is_not_there(patient):
    code, faults = patient.ask(MPI4PY_LIBMPI="/nonexistent/libmpi.so")
    assert code == BAD
    assert "/nonexistent/libmpi.so" in faults["MPI library"]["found"]
    assert faults["MPI library"]["fix"].startswith("unset MPI4PY_LIBMPI")


@pytest.mark.any_mpi
def test_torch_broken_old_and_without_cuda(patient):
    patient.torch("raise ImportError('libcudart.so.12: cannot open shared object file')")
    code, faults = patient.ask("--no-launch")
    assert code == BAD
    assert "libcudart.so.12" in faults["torch"]["found"]

    patient.torch("import os; os.abort()")
    assert "SIGABRT" in patient.ask("--no-launch")[1]["torch"]["found"]

    patient.torch(TORCH.format(version="1.13.1", cuda=None))
    assert "too old" in patient.ask("--no-launch")[1]["torch"]["found"]

    patient.torch(TORCH.format(version="2.99.0+cpu", cuda=None))
    patient.program("nvidia-smi", "NVIDIA H100 80GB HBM3\nNVIDIA H100 80GB HBM3")
    code, faults = patient.ask("--no-launch", "--device", "cuda")
    assert code == BAD
    assert "CPU build" in faults["GPUs"]["found"]


@pytest.mark.any_mpi
def test_hidden_gpus(patient):
    patient.program("nvidia-smi", "NVIDIA A100\nNVIDIA A100")
    code, faults = patient.ask("--no-launch", CUDA_VISIBLE_DEVICES="")
    assert code == 0
    assert "2 x NVIDIA A100, but CUDA_VISIBLE_DEVICES='' leaves 0" in faults["GPUs"]["found"]


@pytest.mark.any_mpi
def test_an_output_that_cannot_be_written(patient):
    (patient.folder / "file").write_text("")
    code, faults = patient.ask("--no-launch", "--out", patient.folder / "file" / "run")
    assert code == BAD
    assert "Not a directory" in faults["output"]["found"]


@pytest.mark.any_mpi
def test_a_small_disk(patient):
    small = patient.folder / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(small)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, timeout=10).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    try:
        code, faults = patient.ask("--no-launch", "--out", small / "run")
    finally:
        subprocess.run(["umount", str(small)], check=True, timeout=10)
    assert code == BAD
    assert "2 MiB free on tmpfs" in faults["output"]["found"]


def test_a_small_shared_memory(patient, mpi):
    script = 'mount -t tmpfs -o size=1m tmpfs /dev/shm && exec "$@"'
    patient.python = ("unshare", "-m", "sh", "-c", script, "sh", sys.executable)
    probe = subprocess.run([*patient.python, "-c", ""], capture_output=True, timeout=10)
    if probe.returncode:
        pytest.skip("needs the right to mount a tmpfs")
    code, faults = patient.ask()
    assert "--shm-size" in faults["/dev/shm"]["fix"]
    if mpi.family == "mpich":
        assert code == BAD
        assert "ranks start" in faults


FLOCK = {"x86_64": 73, "aarch64": 32}


def refuse_locks() -> None:
    """From here on flock fails in this process and its children, as on NFS without locks."""
    load, equal, answer = 0x20, 0x15, 0x06
    filters = [
        (load, 0, 0, 0),  # the number of the system call
        (equal, 0, 1, FLOCK[platform.machine()]),
        (answer, 0, 0, 0x00050000 | 37),  # ENOLCK
        (answer, 0, 0, 0x7FFF0000),  # go on
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *f) for f in filters))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(code)))
    prctl = ctypes.CDLL(None).prctl
    if prctl(38, 1, 0, 0, 0) or prctl(22, 2, program, 0, 0):  # no new rights; seccomp filter
        raise SystemExit(77)


REFUSE = (
    "import sys, os, {module} as here; here.refuse_locks(); os.execv(sys.argv[1], sys.argv[1:])"
)


@pytest.mark.any_mpi
@pytest.mark.skipif(platform.machine() not in FLOCK, reason="no number of flock known")
def test_a_file_system_without_locks(patient):
    here = Path(__file__)
    text = REFUSE.format(module=here.stem)
    patient.env["PYTHONPATH"] += f"{os.pathsep}{here.parent}"
    patient.python = (sys.executable, "-c", text, sys.executable)
    probe = subprocess.run([*patient.python, "-c", ""], env=patient.env, timeout=60)
    if probe.returncode == 77:
        pytest.skip("seccomp is not allowed here")
    code, faults = patient.ask("--no-launch")
    assert code == 0
    assert "HDF5" not in faults  # the package does without them
    code, faults = patient.ask("--no-launch", HDF5_USE_FILE_LOCKING="TRUE")
    assert code == BAD
    assert "cannot write and read" in faults["HDF5"]["found"]


@pytest.mark.any_mpi
def test_too_many_threads_and_too_few_files(patient):
    script = 'ulimit -S -n 100 && exec "$@"'
    patient.python = ("sh", "-c", script, "sh", sys.executable)
    code, faults = patient.ask("--no-launch", OMP_NUM_THREADS="512")
    assert code == BAD
    assert "OMP_NUM_THREADS=512" in faults["threads"]["found"]
    assert "ulimit -n" in faults["open files"]["fix"]


@pytest.mark.any_mpi
def test_shards_that_are_none(patient):
    (patient.folder / "bad.h5").write_text("no HDF5")
    code, faults = patient.ask("--no-launch", "--shards", patient.folder / "bad.h5")
    assert code == BAD
    assert "bad.h5" in faults["shards"]["found"]


def test_open_mpi_as_root(patient, mpi):
    if mpi.family != "openmpi" or os.geteuid() != 0:
        pytest.skip("only Open MPI minds root")
    code, faults = patient.ask(OMPI_ALLOW_RUN_AS_ROOT="0", PRTE_ALLOW_RUN_AS_ROOT="0")
    assert code == BAD
    assert "OMPI_ALLOW_RUN_AS_ROOT=1" in faults["ranks start"]["fix"]


def test_open_mpi_without_slots(patient, mpi):
    if mpi.family != "openmpi":
        pytest.skip("only Open MPI counts slots")
    # In an allocation of several hosts launch leaves slots to the batch system.
    code, faults = patient.ask("-n", 500, SLURM_JOB_NUM_NODES="2")
    assert code == BAD
    assert "fewer slots than ranks" in faults["ranks start"]["found"]


# ---- real ranks --------------------------------------------------------------


def test_a_trial_of_more_ranks_shows_the_map(patient):
    code, faults = patient.ask("-n", 6)
    assert code == 0, faults
    assert patient.ask("-n", 6, "--side", 3)[1]["world size"]["fix"].startswith("launch with -n 11")


@pytest.mark.parametrize("ranks", [6, 5])
def test_ranks_report_where_they_are(mpiexec, patient, ranks):
    words = ["-m", "collage_mpi", "doctor", "--side", "2"]
    done = mpiexec(ranks, words, env={"PYTHONPATH": str(patient.packages)}, timeout=120)
    fits = ranks == 6
    assert done.returncode == (0 if fits else BAD), done.stdout + done.stderr
    assert done.stdout.count("doctor on") == 1
    assert f"{ranks} ranks on 1 host met" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    held = [line[2] for line in lines if len(line) == 6 and "cpu" in line]
    assert held == (["coordinator", "single", "collage"] if fits else ["coordinator", "-"])
    assert ("launch with -n 6" in done.stdout) != fits


@pytest.mark.any_mpi
def test_json_under_a_launcher_has_every_rank(mpiexec, patient):
    words = ["-m", "collage_mpi", "doctor", "--json"]
    done = mpiexec(3, words, env={"PYTHONPATH": str(patient.packages)}, timeout=120)
    assert done.returncode == 0, done.stderr
    world = json.loads(done.stdout)["world"]
    assert [rank["rank"] for rank in world["ranks"]] == [0, 1, 2]
    assert len({rank["software"] for rank in world["ranks"]}) == 1


SILENT = """
import time
from collage_mpi.doctor.facts import WantedJob
from collage_mpi.doctor.ranks import open_meeting
meeting = open_meeting(WantedJob(None, {}, "auto", "auto", None))
if meeting.rank == 2:
    time.sleep(600)
if meeting.rank:
    meeting.report()
world = meeting.gather(3.0)
print("missing", *world.missing, flush=True)
meeting.dismiss(3, world)
"""


def test_a_rank_that_does_not_report_is_named_and_holds_nobody(mpiexec):
    done = mpiexec(4, ["-c", SILENT], timeout=60)
    assert done.returncode != 0
    assert "missing 2" in done.stdout


def test_under_launch(patient):
    words = ["launch", "-n", "3", "--", "doctor", "--singles", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "collage_mpi", *words],
        env=patient.env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "0 coordinator, 1 single, 2 collage" in done.stdout
    assert "\033" not in done.stdout
