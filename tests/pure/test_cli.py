"""The command line itself: one message a failure, whenever and whoever it meets."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from collage_mpi import __main__, cli
from collage_mpi.errors import EnvironmentFault, ExitCode
from collage_mpi.launch import mpiexec
from collage_mpi.shards.inputs import expand_paths
from collage_mpi.system import tell

SHARD = Path(cli.__file__).parent / "data" / "fashion_demo.h5"
LONG = "x" * 300  # a file's name has 255 bytes at most


@pytest.mark.parametrize(
    "words",
    [
        ["prep", "inspect", LONG],
        ["train", "single", "--shards", LONG, "--out", "w.safetensors"],
        ["prep", "images", LONG, "--out", "shards"],
    ],
)
def test_a_name_that_is_too_long_is_one_message(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(words) == 3
    said = capsys.readouterr().err
    assert said.startswith(f"collage-mpi {words[0]}: ")
    assert f"{LONG}: " in said
    assert "File name too long\n" in said or "not a folder. Give" in said
    assert said.count("\n") == 1


def test_a_loop_of_links_in_a_folder_of_shards_is_one_message(tmp_path, capsys):
    (tmp_path / "a.h5").symlink_to("b.h5")
    (tmp_path / "b.h5").symlink_to("a.h5")
    assert len(expand_paths([tmp_path])) == 2
    assert cli.main(["prep", "inspect", str(tmp_path)]) == 3
    said = capsys.readouterr().err
    assert said.endswith("a.h5: cannot be read: Too many levels of symbolic links\n")


def test_an_mpi4py_that_does_not_come_back_is_one_message(monkeypatch):
    monkeypatch.setattr(mpiexec, "PROBE_TIMEOUT_S", 0.1)
    monkeypatch.setattr(mpiexec, "PROBE", "import time; time.sleep(600)")
    with pytest.raises(EnvironmentFault, match=r"mpi4py was not imported within 0\.1 s"):
        mpiexec.mpi4py_library()


def interrupted(*_args: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupt_is_a_word_however_early_it_comes(monkeypatch, capsys):
    monkeypatch.setattr(cli, "read_command", interrupted)
    assert cli.main(["prep"]) == 130
    assert capsys.readouterr().err == "collage-mpi prep: interrupted\n"

    class Finder:
        find_spec = interrupted

    monkeypatch.delitem(sys.modules, "collage_mpi.cli")
    monkeypatch.setattr(sys, "meta_path", [Finder])
    assert __main__.main() == 130
    assert capsys.readouterr().err == "collage-mpi: interrupted\n"


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["--version"]])
def test_help_comes_from_one_rank(words, monkeypatch, capsys):
    for rank, expected in (("0", True), ("3", False)):
        monkeypatch.setenv("PMI_RANK", rank)
        with pytest.raises(SystemExit) as caught:
            cli.main(words)
        assert caught.value.code == 0
        assert bool(capsys.readouterr().out) == expected


def test_what_other_ranks_fail_of_is_for_launch_which_speaks_for_one_that_fails_alone(
    monkeypatch, capsys
):
    monkeypatch.setattr(tell, "SPEAK_FIRST_S", 0.0)
    for rank, word in (("0", "w"), ("3", ""), ("3", "w")):
        monkeypatch.setenv("PMI_RANK", rank)
        monkeypatch.setenv("COLLAGE_MPI_STATUS", word)
        assert cli.main(["verify", "no/such"]) == ExitCode.ENVIRONMENT
        said = capsys.readouterr().err
        assert said.startswith("collage-mpi verify: ") == (rank == "0")
        if rank == "3":
            assert ('"fault":"collage-mpi verify: ' in said) == bool(word)


def test_launch_helps_without_ranks(monkeypatch, capsys):
    monkeypatch.setattr("collage_mpi.commands.launch.find_mpi", interrupted)
    with pytest.raises(SystemExit) as caught:
        cli.main(["launch", "-n", "11", "--", "run", "--side", "3", "--help"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith("usage: collage-mpi run ")


@pytest.mark.parametrize("words", [["--help"], ["run", "--help"], ["prep", "inspect", SHARD]])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_has_gone_ends_nothing(words, unbuffered):
    """As `| head` does."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "collage_mpi", *map(str, words)],
        stdout=writing,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        timeout=60,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, b"")


def test_a_full_disk_of_the_output_is_one_message():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-um", "collage_mpi", "prep", "inspect", str(SHARD)],
            stdout=full,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    assert done.returncode == 3
    assert done.stderr == (
        b"collage-mpi prep: the output cannot be written: No space left on device\n"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rnu"], "'rnu' is not a command of collage-mpi; did you mean 'run'? collage-mpi --help"),
        (["zzzz"], "'zzzz' is not a command of collage-mpi. collage-mpi --help lists them"),
        (
            ["prep", "imgaes"],
            "'imgaes' is not a command of collage-mpi prep; did you mean 'images'?",
        ),
    ],
)
def test_a_mistyped_command_is_told_the_nearest_and_not_all(words, said, capsys):
    with pytest.raises(SystemExit) as caught:
        cli.main(words)
    told = capsys.readouterr().err
    assert caught.value.code == ExitCode.USAGE
    assert said in told
    assert "doctor" not in told


def test_after_launch_too(capsys):
    assert cli.main(["launch", "-n", "2", "--", "rnu"]) == ExitCode.USAGE
    assert "did you mean 'run'? After -- comes a command" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "begins"), [([], "collage-mpi ["), (["prep"], "collage-mpi prep")]
)
def test_a_bare_command_prints_its_help(words, begins, capsys):
    assert cli.main(words) == 0
    told = capsys.readouterr()
    assert told.out.startswith(f"usage: {begins}")
    assert told.err == ""
