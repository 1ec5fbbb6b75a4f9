"""The doctor's verdicts, each from the values that it judges, and its screen."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from collage_mpi.cli import main
from collage_mpi.commands import doctor as command
from collage_mpi.doctor import examine as looks
from collage_mpi.doctor.examine import (
    BAD,
    OK,
    WARN,
    Finding,
    check_cores,
    check_gpus,
    check_open_files,
    check_packages,
    check_ranks,
    check_shared_memory,
    version_key,
)
from collage_mpi.errors import EnvironmentFault
from collage_mpi.launch.ending import TIME_LIMIT, Ending
from collage_mpi.launch.mpiexec import FIX, Mpi

MPICH = Mpi(Path("/v/bin/mpiexec"), "mpich", "5.0.2")
OPENMPI = Mpi(Path("/usr/bin/mpiexec"), "openmpi", "4.1.4")
MINIMUMS = {"torch": "2.6", "mpi4py": "4.0.3"}
HIDDEN = ("CUDA_VISIBLE_DEVICES", "")


def gpus(count, build="cuda 12.6", device="auto", installed=(), visible=None):
    return partial(check_gpus, device, installed, {"build": build, "count": count}, visible)


# what is judged -> its line, how badly, what is found, what the fix names
FAULTS = {
    "torch too old": (
        partial(check_packages, {"torch": {"version": "2.1.0+cu118"}}, MINIMUMS),
        ("torch", BAD, "too old", "--upgrade 'torch>=2.6'"),
    ),
    "h5py broken": (
        partial(check_packages, {"h5py": {"version": "3", "error": "ImportError: libhdf5"}}, {}),
        ("h5py", BAD, "h5py 3 is installed but does not load: ImportError", "--force-reinstall"),
    ),
    "torch broken, of a build that is not PyPI's": (
        partial(check_packages, {"torch": {"version": "2.6.0+rocm", "error": "libhip"}}, {}),
        ("torch", BAD, "libhip", "the build for your GPUs"),
    ),
    "torch slow to import": (
        partial(check_packages, {"torch": {"error": "no answer within 60 s"}}, {}),
        ("torch", BAD, "no answer within 60 s", "its file system is slow"),
    ),
    "missing packages are one line": (
        partial(check_packages, {"numpy": {}, "torch": {}}, MINIMUMS),
        ("packages", BAD, "not installed: numpy, torch", "-m pip install 'numpy' 'torch>=2.6'"),
    ),
    "cuda without a GPU": (
        gpus(0, device="cuda"),
        ("GPUs", BAD, "neither", "--gpus-per-node"),
    ),
    "all GPUs hidden": (
        gpus(0, installed=("A100",) * 4, visible=HIDDEN),
        ("GPUs", WARN, "4 x A100, but CUDA_VISIBLE_DEVICES='' leaves 0", "unset CUDA_VIS"),
    ),
    "some GPUs hidden where they are asked for": (
        gpus(1, "rocm 6.2", "cuda", ("A100",) * 4, ("HIP_VISIBLE_DEVICES", "0")),
        ("GPUs", WARN, "leaves 1 visible", "--gpus-per-node"),
    ),
    "all GPUs hidden where they are asked for": (
        gpus(0, device="cuda", installed=("A100",), visible=HIDDEN),
        ("GPUs", BAD, "leaves 0 visible", "--gpus-per-node"),
    ),
    "GPUs not asked for, or a driver too old": (
        gpus(0, installed=("A100",) * 4),
        ("GPUs", WARN, "torch (cuda 12.6) sees 0", "--gpus-per-node=N"),
    ),
    "CPU torch on a GPU host": (
        gpus(0, "cpu", installed=("H100",)),
        ("GPUs", WARN, "CPU build", "whl/cu"),
    ),
    "CPU torch where CUDA is asked for": (
        gpus(0, "cpu", "cuda", ("H100",)),
        ("GPUs", BAD, "CPU build", "whl/cu"),
    ),
    "more ranks than cores": (
        partial(check_cores, 2, 11, {}),
        ("cores", WARN, "2 usable for 11 ranks", "a core for each rank"),
    ),
    "small /dev/shm": (
        partial(check_shared_memory, 32 << 20, 11, "MPICH 5.0.2"),
        ("/dev/shm", BAD, "needs 60 MiB", "--shm-size"),
    ),
    "small /dev/shm under Open MPI, which does without": (
        partial(check_shared_memory, 1 << 20, 11, "Open MPI 5.0.11"),
        ("/dev/shm", WARN, "MPI uses slower ways", "--shm-size"),
    ),
    "few open files": (
        partial(check_open_files, 256, 4096, 11),
        ("open files", BAD, "at most 256; 11 ranks may need 344", "ulimit -n 344"),
    ),
    "few open files for ever": (
        partial(check_open_files, 256, 256, 11),
        ("open files", BAD, "at most 256", "hard limit"),
    ),
    "worlds of one rank each": (
        lambda: [check_ranks(1, 4)],
        ("ranks start", BAD, "started 4 ranks, but MPI makes each of them", "srun --mpi=pmi2"),
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_line_with_its_fix(name):
    judge, (line, verdict, found, fix) = FAULTS[name]
    (finding,) = judge()
    assert (finding.name, finding.verdict) == (line, verdict)
    assert found in finding.found
    assert fix in finding.fix


@pytest.mark.parametrize(
    "judge",
    [
        partial(
            check_packages, {"torch": {"version": "2.13.0+cpu"}, "numpy": {"version": "2"}}, {}
        ),
        gpus(0),
        gpus(0, device="cpu", installed=("A100",)),
        gpus(4, installed=("A100",) * 4, visible=("CUDA_VISIBLE_DEVICES", "0,1,2,3")),
        gpus(2, "rocm 6.2"),
        gpus(0, None, installed=("A100",)),  # the packages' line says that torch is missing
        partial(check_cores, 16, 11, {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "all"}),
        partial(check_shared_memory, 61 << 20, 11, "MPICH 5.0.2"),
        partial(check_shared_memory, 17 << 20, 11, "Open MPI 5.0.11"),
        partial(check_open_files, None, None, 11),
        partial(check_open_files, 344, 344, 11),
    ],
)
def test_what_is_sound_is_one_line_without_a_fix(judge):
    (finding,) = judge()
    assert (finding.verdict, finding.fix) == (OK, "")


def test_too_many_threads_are_told_beside_the_cores():
    cores, threads = check_cores(16, 8, {"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "2"})
    assert cores.verdict == OK
    assert (threads.name, threads.verdict) == ("threads", WARN)
    assert "OMP_NUM_THREADS=3 for each of 8 ranks on 16 cores" in threads.found
    assert "export OMP_NUM_THREADS=2" in threads.fix


def test_without_a_dev_shm_nothing_is_said_of_it():
    assert not list(check_shared_memory(None, 11, "MPI"))


def test_versions_are_compared_by_their_numbers():
    assert version_key("2.13.0+cpu") == (2, 13, 0) > version_key("2.6")
    assert version_key("?") == ()


# ---- MPI and the ranks that start ------------------------------------------------


def looked(monkeypatch, environ=(), library="MPICH 5.0.2", found=MPICH, typed=MPICH):
    """Findings that are not ok, the library and the launcher, of a host with these."""

    def answer(value):
        if isinstance(value, Exception):
            raise value
        return value

    monkeypatch.setattr(looks, "mpi4py_library", lambda: answer(library))
    monkeypatch.setattr(looks, "find_mpi", lambda *_: answer(found))
    monkeypatch.setattr(looks, "inspect_launcher", lambda _: typed)
    findings, name, mpi = looks.look_at_mpi("auto", None, dict(environ))
    return [finding for finding in findings if finding.verdict != OK], name, mpi


def test_a_sound_mpi_has_no_fault(monkeypatch):
    assert looked(monkeypatch) == ([], "MPICH 5.0.2", MPICH)


def test_a_library_that_cannot_be_loaded_is_told_with_the_variables_that_choose_it(monkeypatch):
    missing = EnvironmentFault("mpi4py cannot load an MPI library (libx.so)")
    (finding,), _, mpi = looked(monkeypatch, {"MPI4PY_LIBMPI": "/x"}, missing)
    assert (finding.name, finding.verdict, mpi) == ("MPI library", BAD, None)
    assert "(libx.so), MPI4PY_LIBMPI=/x" in finding.found
    assert finding.fix == "unset MPI4PY_LIBMPI"


def test_a_launcher_that_does_not_fit_is_told_as_launch_tells_it(monkeypatch):
    (finding,), _, mpi = looked(
        monkeypatch, found=EnvironmentFault(f"every rank would be 0{FIX}do this")
    )
    assert finding == Finding("launcher", BAD, "every rank would be 0", "do this")
    assert mpi is None


def test_another_mpis_mpiexec_on_path_is_a_warning(monkeypatch):
    (finding,), _, mpi = looked(monkeypatch, typed=OPENMPI)
    assert (finding.name, finding.verdict, mpi) == ("mpiexec", WARN, MPICH)
    assert "/usr/bin/mpiexec" in finding.found
    assert "/v/bin/mpiexec" in finding.fix


def test_a_rank_starts_no_further_ranks(monkeypatch):
    launcher = looked(monkeypatch, {"PMI_RANK": "0", "PMI_SIZE": "3"}, found=EnvironmentFault(FIX))
    assert launcher == ([], "MPICH 5.0.2", None)


@pytest.mark.parametrize(
    ("printed", "ending", "verdict", "found"),
    [
        ([f"{looks.MARK}2"] * 2, Ending(0), OK, "2 ranks started and met in"),
        ([f"{looks.MARK}1"] * 2, Ending(0), BAD, "MPI makes each of them rank 0 of 1"),
        ([f"{looks.MARK}2"] * 2, Ending(9), BAD, "exit code 9"),
        ([f"{looks.MARK}2", "a", "b", "--", "c", "d"], Ending(9), BAD, "did not meet: b; c; d"),
        ([], Ending(-9, cut=TIME_LIMIT), BAD, "the time limit of 60 s ended them"),
    ],
)
def test_what_two_ranks_said(printed, ending, verdict, found, monkeypatch):
    class Job:
        def __init__(self, plan, limits, out, err):
            assert plan.ranks == 2
            assert limits.timeout_s == looks.LIMIT_S
            out.write("".join(f"{line}\n" for line in printed))

        def run(self):
            return ending

    monkeypatch.setattr(looks, "Supervisor", Job)
    finding = looks.try_ranks(MPICH)
    assert finding.verdict == verdict
    assert found in finding.found


# ---- the screen ----------------------------------------------------------------


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_the_screen_keeps_to_its_width(columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    command.show(Finding("threads", WARN, "a word " * 40, "another word " * 40))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("warn  threads     a word a word")
    assert max(map(len, lines)) <= columns


def test_what_doctor_waits_for_is_told_before_it_waits(monkeypatch, capsys):
    """Ranks that do not meet are ended by a signal, so that nothing can be told afterwards."""
    monkeypatch.setattr(command, "launcher_size", lambda: 2)
    monkeypatch.setattr(command, "meet", lambda: sys.exit(7))
    with pytest.raises(SystemExit):
        main(["doctor"])
    out, err = capsys.readouterr()
    assert "doctor on" in out
    assert "2 ranks must meet within 60 s" in err


def test_the_last_line_counts_and_names_the_next_step():
    assert command.conclusion(1, 0).startswith("1 fault: do what `fix` says")
    assert command.conclusion(0, 2).startswith("no fault, 2 warnings. Next: collage-mpi run --dry")


def test_nothing_heavy_is_imported():
    program = (
        "import sys, collage_mpi.commands.doctor\n"
        "heavy = {'torch', 'h5py', 'mpi4py', 'numpy', 'rich'}\n"
        "assert not heavy & {name.partition('.')[0] for name in sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
