"""The doctor on faults that are really there, and on real ranks."""

from __future__ import annotations

import json
import os
import re
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
ENDS = ("", "_CONFIRM")


def test_here_nothing_is_bad_and_two_ranks_start(patient):
    code, faults = patient.ask()
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


@pytest.mark.any_mpi
def test_n_worlds_of_one_as_srun_without_mpi_makes_them(patient):
    srun = {"SLURM_JOB_ID": "1", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}
    code, faults = patient.ask(**srun)
    assert code == BAD
    assert "started 4 ranks" in faults["ranks start"]["found"]
    assert "srun --mpi=pmi2" in faults["ranks start"]["fix"]


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
    patient.torch(TORCH.format(version="2.99.0", cuda="12.6"))
    patient.program("nvidia-smi", "NVIDIA A100\nNVIDIA A100")
    code, faults = patient.ask("--no-launch", CUDA_VISIBLE_DEVICES="")
    assert code == 0
    assert "2 x NVIDIA A100, but CUDA_VISIBLE_DEVICES='' leaves 0" in faults["GPUs"]["found"]


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


@pytest.mark.any_mpi
def test_too_many_threads_and_too_few_files(patient):
    script = 'ulimit -S -n 100 && exec "$@"'
    patient.python = ("sh", "-c", script, "sh", sys.executable)
    code, faults = patient.ask("--no-launch", OMP_NUM_THREADS="512")
    assert code == BAD
    assert "OMP_NUM_THREADS=512" in faults["threads"]["found"]
    assert "ulimit -n" in faults["open files"]["fix"]


# ---- under a launcher ---------------------------------------------------------


@pytest.mark.parametrize("launch", [False, True])
def test_ranks_of_a_launcher_meet(mpi, patient, launch):
    words = [str(mpi.mpiexec), "-n", "3", sys.executable, "-m", "collage_mpi", "doctor"]
    if launch:
        words = [sys.executable, "-m", "collage_mpi", "launch", "-n", "3", "--", "doctor"]
    as_root = {f"{who}_ALLOW_RUN_AS_ROOT{end}": "1" for who in ("OMPI", "PRTE") for end in ENDS}
    slots = {"PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe"}
    env = {**patient.env, **as_root, **slots}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("doctor on") == 1
    assert "3 ranks started and met" in done.stdout
