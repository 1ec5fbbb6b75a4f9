"""The command line for each MPI, as a pure function; what `--version` texts mean."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from collage_mpi.cli import main
from collage_mpi.commands import launch
from collage_mpi.commands.launch import LaunchArguments, launch_ranks, why_not_forked
from collage_mpi.commands.parser import read_command
from collage_mpi.errors import EnvironmentFault, ExitCode, UsageError
from collage_mpi.launch import mpiexec
from collage_mpi.launch.mpiexec import (
    TOLERANT_WRAPPER,
    WRAPPER,
    Mpi,
    Site,
    build_command,
    site_here,
)
from collage_mpi.system.environment import STATUS_VARIABLE
from collage_mpi.system.launchers import FAMILIES

MPICH = Mpi(Path("/v/bin/mpiexec"), "mpich", "5.0.2")
OPENMPI = Mpi(Path("/v/bin/mpiexec"), "openmpi", "5.0.11")
INTEL = Mpi(Path("/v/bin/mpiexec"), "intel", "2021.14")
PALS = Mpi(Path("/opt/cray/pals/1.8/bin/mpiexec"), "pals", "1.8.0")
PROGRAM = ("python", "-m", "collage_mpi", "run")


def test_mpich_needs_no_flags():
    plan = build_command(MPICH, 11, PROGRAM, Site(cores=2, root=True))
    assert plan.argv == ("/v/bin/mpiexec", "-n", "11", *PROGRAM)
    assert plan.env == {
        "HYDRA_IFACE": "lo",
        "FI_TCP_IFACE": "lo",
        "UCX_NET_DEVICES": "lo",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def test_openmpi_as_root_on_a_small_machine():
    plan = build_command(OPENMPI, 11, PROGRAM, Site(cores=2, root=True))
    flags = ("--oversubscribe", "--bind-to", "none")
    assert plan.argv == ("/v/bin/mpiexec", *flags, "-n", "11", *PROGRAM)
    assert plan.env["OMPI_MCA_mpi_yield_when_idle"] == "1"
    assert plan.env["OMPI_ALLOW_RUN_AS_ROOT"] == plan.env["PRTE_ALLOW_RUN_AS_ROOT_CONFIRM"] == "1"
    assert plan.env["OMPI_MCA_btl_tcp_if_include"] == plan.env["UCX_NET_DEVICES"] == "lo"
    assert plan.env["OMPI_MCA_btl"] == "^tcp"
    assert "OMPI_MCA_btl" not in build_command(OPENMPI, 11, PROGRAM, Site(cores=2, hosts=2)).env


def test_openmpi_as_a_user_on_a_large_machine():
    plan = build_command(OPENMPI, 11, PROGRAM, Site(cores=64))
    assert not any("ROOT" in name or "yield" in name for name in plan.env)
    assert plan.env["OMP_NUM_THREADS"] == "5"


def test_open_mpi_keeps_its_files_where_no_killed_one_has_left_any():
    site = Site(cores=64, scratch="/tmp/collage-mpi-1")
    for each in (site, Site(64, hosts=2, scratch=site.scratch)):
        plan = build_command(OPENMPI, 11, PROGRAM, each)
        assert plan.env["PRTE_MCA_prte_local_tmpdir_base"] == plan.scratch == "/tmp/collage-mpi-1"
    assert "/tmp/collage-mpi-1" not in build_command(OPENMPI, 11, PROGRAM, Site(64)).env.values()
    assert "/tmp/collage-mpi-1" not in build_command(MPICH, 11, PROGRAM, site).env.values()
    first, second = site_here().scratch, site_here().scratch
    assert first != second
    assert site_here(scratch=False).scratch is None


def test_pals_spreads_ranks_and_binds_them_to_nothing():
    plan = build_command(PALS, 11, PROGRAM, Site(cores=16, hosts=4))
    flags = ("--ppn", "3", "--cpu-bind", "none")
    assert plan.argv == (str(PALS.mpiexec), *flags, "-n", "11", *PROGRAM)
    own = {name: value for name, value in plan.env.items() if "PALS" in name}
    assert own == {"PALS_TRANSFER": "0", "PALS_LINE_BUFFER": "1", "COLLAGE_MPI_PALS_SIZE": "11"}
    with pytest.raises(EnvironmentFault, match=r"pals 1\.8\.0 ends all ranks.*openmpi, mpich\."):
        build_command(PALS, 11, PROGRAM, Site(cores=16), fault_tolerant=True)


def test_flux_is_told_that_ranks_share_cores_and_gpus():
    plan = build_command(Mpi(Path("/usr/bin/flux"), "flux", "0.50.0"), 11, PROGRAM, Site(cores=16))
    flags = ("run", "-o", "cpu-affinity=off", "-o", "gpu-affinity=off")
    assert plan.argv == ("/usr/bin/flux", *flags, "-n", "11", *PROGRAM)
    assert set(plan.env) == set(mpiexec.THREAD_VARIABLES)  # it may start ranks on other hosts


@pytest.mark.parametrize("mpi", [MPICH, OPENMPI, INTEL, PALS])
def test_several_hosts_keep_their_network_and_slots(mpi):
    plan = build_command(
        mpi, 11, PROGRAM, Site(cores=16, hosts=4), extra_env={"COLLAGE_MPI_STATUS": "1"}
    )
    assert "lo" not in plan.env.values()
    assert "--oversubscribe" not in plan.argv
    assert plan.env["OMP_NUM_THREADS"] == "5"  # 3 ranks on the fullest host
    exported = [plan.argv[i + 1] for i, word in enumerate(plan.argv) if word == "-x"]
    assert ("COLLAGE_MPI_STATUS" in exported) == (mpi is OPENMPI)


def test_the_users_variables_win_and_ours_are_certain():
    theirs = {"OMP_NUM_THREADS": "4", "HYDRA_IFACE": "eth0", "COLLAGE_MPI_STATUS": "0"}
    site = Site(cores=2, environ=theirs)
    plan = build_command(MPICH, 3, PROGRAM, site, extra_env={"COLLAGE_MPI_STATUS": "1"})
    assert "OMP_NUM_THREADS" not in plan.env
    assert "HYDRA_IFACE" not in plan.env
    assert plan.env["COLLAGE_MPI_STATUS"] == "1"


def test_loopback_is_named_lo_on_linux_only():
    assert "lo" not in build_command(MPICH, 3, PROGRAM, Site(4, loopback=False)).env.values()


@pytest.mark.parametrize(
    "words",
    [("-n", "0", "--", "run"), ("-n", "-1", "--", "run"), ("-n", "2"), ("-n", "2", "--")],
)
def test_nothing_to_launch(words):
    assert main(["launch", *words]) == 2


def test_the_shell_line_can_be_pasted():
    plan = mpiexec.LaunchPlan(("mpiexec", "-n", "2", "a b"), FAMILIES["mpich"], {"X": "1 2"})
    assert plan.shell_line() == "X='1 2' mpiexec -n 2 'a b'"


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("HYDRA build details:\n    Version:         5.0.2\n    CC: cc\n", ("mpich", "5.0.2")),
        ("mpiexec (Open MPI) 5.0.11\n\nReport bugs to ...", ("openmpi", "5.0.11")),
        ("mpirun (Open MPI) 4.1.4\n", ("openmpi", "4.1.4")),
        ("mpiexec (OpenRTE) 4.1.4\n", ("openmpi", "4.1.4")),
        (
            "Intel(R) MPI Library for Linux* OS, Version 2021.14 Build 20241121 (id: e7829d6)\n",
            ("intel", "2021.14"),
        ),
        ("mpiexec version 1.8.0 revision 3f1a\n", ("pals", "1.8.0")),
        ("commands:    \t\t0.50.0\nlibflux-core:\t\t0.50.0\n", ("flux", "0.50.0")),
        ("ls (GNU coreutils) 9.1\n", None),
        ("", None),
    ],
)
def test_identify(text, known):
    assert mpiexec.identify(text) == known


def found_here(monkeypatch, launchers: list[Mpi], library: str) -> None:
    paths = [mpi.mpiexec for mpi in launchers]
    monkeypatch.setattr(mpiexec, "launcher_candidates", lambda programs: iter(paths))
    by_path = {m.mpiexec: m for m in launchers}
    monkeypatch.setattr(mpiexec, "inspect_launcher", lambda path, want: by_path.get(path))
    monkeypatch.setattr(mpiexec, "mpi4py_library", lambda: library)


SYSTEM = Mpi(Path("/usr/bin/mpiexec"), "openmpi", "4.1.4")


def test_the_one_that_mpi4py_loads_is_taken(monkeypatch):
    found_here(monkeypatch, [MPICH, SYSTEM], "Open MPI 4.1.4")
    assert mpiexec.find_mpi() == SYSTEM
    found_here(monkeypatch, [MPICH, SYSTEM], "MPICH 5.0.2")
    assert mpiexec.find_mpi() == MPICH


def test_intel_launches_what_speaks_mpichs_abi(monkeypatch):
    found_here(monkeypatch, [INTEL], "MPICH 5.0.2")
    assert mpiexec.find_mpi("intel") == INTEL


def test_no_mpi_says_what_to_install(monkeypatch):
    found_here(monkeypatch, [], "MPICH 5.0.2")
    with pytest.raises(EnvironmentFault, match="pip install 'mpich>=") as caught:
        mpiexec.find_mpi()
    assert caught.value.exit_code == ExitCode.ENVIRONMENT


def test_a_launcher_that_does_not_fit_is_refused(monkeypatch):
    found_here(monkeypatch, [SYSTEM], "MPICH 5.0.2")
    with pytest.raises(EnvironmentFault, match="mpi4py loads MPICH 5"):
        mpiexec.find_mpi()
    with pytest.raises(EnvironmentFault, match=r"found: openmpi 4\.1\.4"):
        mpiexec.find_mpi("mpich")


def test_a_launcher_given_by_path_must_be_one(tmp_path):
    with pytest.raises(UsageError, match="no such program"):
        mpiexec.find_mpi(mpiexec=str(tmp_path / "none"))
    with pytest.raises(UsageError, match="names no known launcher"):
        mpiexec.find_mpi(mpiexec="/bin/ls")


@pytest.mark.parametrize(
    ("words", "folder"),
    [
        (("run", "--out", "a"), Path("a")),
        (("run", "--side", "3", "--out=b"), Path("b")),
        (("run",), None),
        ((), None),
    ],
)
def test_where_the_marker_of_a_run_would_be(words, folder):
    assert LaunchArguments(words=words).out == folder


def test_what_a_run_is_to_do_is_read_once(monkeypatch):
    read: list[tuple[str, ...]] = []
    monkeypatch.setattr(
        launch, "read_command", lambda words: read.append(words) or read_command(words)
    )
    how = LaunchArguments(words=("--", *WORDS, "--on-rank-loss", "continue"))
    assert (how.tolerant, how.networks, how.out) == (True, ["w.safetensors"], Path("o"))
    assert how.run is not None
    assert read == [how.program]


def test_a_script_must_be_there(tmp_path, monkeypatch):
    with pytest.raises(UsageError, match=r"none\.py: this script does not exist"):
        launch_ranks(3, LaunchArguments(words=(str(tmp_path / "none.py"),)))
    assert LaunchArguments(words=("none.py",), on_rank_loss="continue").on_loss == "continue"


@pytest.mark.parametrize(
    ("program", "code"),
    [("exit 0", 0), ("exit 4", 4), ("kill -KILL $$", -9), ("kill -TERM $$", -15)],
)
def test_a_plain_launch_is_told_how_each_rank_ended_and_so_is_its_launcher(program, code):
    environ = {"PATH": os.environ["PATH"], "PMI_RANK": "3", STATUS_VARIABLE: "w"}
    words = ["sh", str(WRAPPER), "sh", "-c", f"echo said >&2; {program}"]
    done = subprocess.run(words, env=environ, capture_output=True, text=True)
    told = code if code >= 0 else 128 - code
    assert done.returncode == code
    assert done.stderr == f'said\n@status:w {{"ended": 3, "code": {told}}}\n'


@pytest.mark.parametrize(
    ("code", "connection", "stays"),
    [(0, {"PMI_FD": "9"}, False), (4, {}, False), (4, {"PMI_FD": "9"}, True)],
)
def test_the_shell_of_a_rank_that_left_with_an_error_stays_a_moment_under_mpich(
    tmp_path, code, connection, stays
):
    """MPICH's launcher, woken by its word, must not find that it has ended already."""
    said, said_by_then = tmp_path / "said", tmp_path / "said_by_then"
    sleep = tmp_path / "sleep"
    sleep.write_text(f"#!/bin/sh\ncp {said} {said_by_then}\n")
    sleep.chmod(0o755)
    environ = {"PATH": f"{tmp_path}:{os.environ['PATH']}", STATUS_VARIABLE: "w", **connection}
    with said.open("w") as stderr:
        words = ["sh", str(WRAPPER), "sh", "-c", f"exit {code}"]
        assert subprocess.run(words, env=environ, stderr=stderr).returncode == code
    assert said_by_then.exists() == stays
    assert not stays or said_by_then.read_text() == said.read_text() != ""


def test_the_shell_that_tells_is_there_only_where_launch_listens():
    site = Site(cores=2)
    listens = build_command(MPICH, 3, PROGRAM, site, extra_env={STATUS_VARIABLE: "w"})
    assert listens.argv[-6:] == ("sh", str(WRAPPER), *PROGRAM)
    assert "sh" not in build_command(MPICH, 3, PROGRAM, site).argv


@pytest.mark.parametrize(
    ("rank", "program", "code"),
    [
        ("0", "exit 4", 4),
        ("1", "exit 4", 0),
        ("1", "kill -KILL $$", -9),
        ("0", "kill -KILL $$", -9),
    ],
)
def test_open_mpi_is_told_of_deaths_by_signal_and_of_rank_0s_code(rank, program, code):
    """Where all others leave with another code than 0 it kills a rank 0 that is slower."""
    environ = {"PATH": os.environ["PATH"], "OMPI_COMM_WORLD_RANK": rank}
    words = ["sh", str(TOLERANT_WRAPPER), "sh", "-c", program]
    assert subprocess.run(words, env=environ).returncode == code


WORDS = ["run", "--single", "w.safetensors", "--collage", "null", "--shards", "s", "--out", "o"]


def why(words=WORDS, family="mpich", ranks=3, start="auto", **environ) -> str | None:
    plan = mpiexec.LaunchPlan(("mpiexec",), FAMILIES[family], {}, ranks)
    with pytest.MonkeyPatch.context() as patch:
        for name in (*mpiexec.BATCH, *mpiexec.OPENMP_PLACES, *mpiexec.HOST_FILES):
            patch.delenv(name, raising=False)
        for name, value in environ.items():
            patch.setenv(name, value)
        return why_not_forked(plan, LaunchArguments(words=tuple(words), start=start))


def test_ranks_that_need_torch_are_forked():
    assert why() is why(family="openmpi") is None
    assert "at most one process" in why(ranks=2)
    named = [word.replace("w.safetensors", "timm:resnet18") for word in WORDS]
    assert why(named, ranks=2) is None  # rank 0 has the network asked
    null = [word.replace("w.safetensors", "null") for word in WORDS]
    assert "at most one process" in why(null)
    assert "at most one process" in why(["verify", "o"])
    assert why(null, start="fork") is None
    assert why(start="each") == "--start each"


def test_a_rank_that_would_launch_is_refused_before_its_words_are_checked(monkeypatch, capsys):
    monkeypatch.setenv("PMI_RANK", "0")
    monkeypatch.setenv("PMI_SIZE", "2")
    assert main(["launch", "-n", "2", "--", *WORDS]) == ExitCode.ENVIRONMENT
    assert "it is itself rank 0 of 2" in capsys.readouterr().err


def test_the_server_imports_the_libraries_of_the_networks(monkeypatch):
    def modules(*words: str) -> set[str]:
        plans = []
        monkeypatch.setattr(launch, "_follow", lambda plan, *_: plans.append(plan))
        launch.launch_ranks(3, launch.LaunchArguments(words=words))
        return {*plans[0].modules} - {*launch.MODULES}

    assert modules(*WORDS) == set()
    assert modules("run", "--single", "timm:resnet18", "--collage", "hf:a/b", *WORDS[5:]) == {
        "timm",
        "transformers.models.auto",
    }
    assert modules("run", "--single", "n.onnx", *WORDS[3:]) == set()


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"family": "intel"}, "tried only with Open MPI's mpirun and MPICH's or Intel's mpiexec"),
        ({"SLURM_JOB_ID": "7"}, "SLURM_JOB_ID is set"),
        ({"HYDRA_HOST_FILE": "hosts"}, "HYDRA_HOST_FILE is set"),
        ({"OMP_PROC_BIND": "close"}, "OMP_PROC_BIND is set"),
        ({"words": ["program.py"]}, "a script"),
    ],
)
def test_where_no_server_can_fork_ranks_it_is_said(how, said):
    with pytest.raises(EnvironmentFault, match=re.escape(said)):
        why(start="fork", **how)
    if "words" not in how:
        assert said in why(**how)
