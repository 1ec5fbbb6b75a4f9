"""Schemes and launchers of other packages: a folder of the path with entry points is such a one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from test_pals import PLACES

from collage_mpi import plugins
from collage_mpi.cli import main
from collage_mpi.commands.launch import LaunchArguments, launch_ranks
from collage_mpi.core.schemes import REGISTERED, SCHEME_NAMES, SCHEMES, scheme_class
from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.job.row_reader import RowReader, described
from collage_mpi.launch import mpiexec
from collage_mpi.shards import ShardSet
from collage_mpi.shards.inputs import source_class
from collage_mpi.system.launchers import VARIABLE, launcher_of, launchers

SCHEME = """
from collage_mpi.core.schemes import Scheme

class Theirs(Scheme):
    name = "theirs"
"""
SIMULATE = ["simulate", "--images", "16", "--side", "2", "--scheme"]

LAUNCHER = """
from collage_mpi.system.launchers import Launcher

class Relay(Launcher):
    name = word = "relay"
    who = "the relay"
    programs = ("relayrun",)
    versions = (r"relay (\\S+)",)
    marks = ("RELAY_RANK",)
    ranks = ("RELAY_RANK",)
    sizes = ("RELAY_SIZE",)
    local_ranks = ("RELAY_LOCAL",)

    def flags(self, ranks, site, env):
        return ["--spread"]
"""
NUMBERS = """
from collage_mpi.shards.schema import ShardInfo
from collage_mpi.shards.source import Source

class Numbers(Source):
    name = "numbers"

    @classmethod
    def describe(cls, path, read_as):
        count, about = int(path.read_text()), (None, False, "", cls.fingerprint(path))
        return ShardInfo(path, count, (2, 2, 1), *about, storage=cls.name)

    def read_into(self, out, places, rows):
        out[places] = rows[:, None, None, None]
"""
RELAYRUN = """#!{python}
import os, subprocess, sys
if sys.argv[1:] == ["--version"]:
    sys.exit(print("relay 1.2"))
assert sys.argv[1:3] == ["--spread", "-n"], sys.argv
n = int(sys.argv[3])
place = lambda i: {{"RELAY_RANK": str(i), "RELAY_SIZE": str(n), "RELAY_LOCAL": str(i)}}
ranks = [subprocess.Popen(sys.argv[4:], env={{**os.environ, **place(i)}}) for i in range(n)]
sys.exit(max(rank.wait() for rank in ranks))
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Puts a module and its package's entry points on the path, of this process and of ranks."""
    before = {*REGISTERED}

    def add(package: str, entries: str, **modules: str) -> Path:
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(entries)
        for name, source in modules.items():
            (tmp_path / f"{name}.py").write_text(source)
        forget()
        return tmp_path

    def forget() -> None:
        plugins.offered.cache_clear()
        launcher_of.cache_clear()
        for name in REGISTERED.keys() - before:
            del REGISTERED[name]
        source_class.cache_clear()
        for name in ("theirs_module", "relay_module", "numbers_module"):
            sys.modules.pop(name, None)

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    yield add
    forget()


def schemes(*names: str, of: str = "theirs_module:Theirs") -> str:
    return "[collage_mpi.schemes]\n" + "".join(f"{name} = {of}\n" for name in names)


def test_a_scheme_of_another_package_is_simulated_and_listed(install, capsys, tmp_path):
    install("their-schemes", schemes("theirs"), theirs_module=SCHEME)
    out = str(tmp_path / "run")
    assert main([*SIMULATE, "theirs", "--out", out]) == 0
    assert main(["verify", out]) == 0
    assert "theirs, pulled" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["run", "--help"])
    assert "theirs" in capsys.readouterr().out


def test_a_source_of_another_package_is_read_and_inspected(install, capsys, tmp_path):
    entries = "[collage_mpi.sources]\nnumbers = numbers_module:Numbers\n"
    install("their-sources", entries, numbers_module=NUMBERS)
    (tmp_path / "five").write_text("5")
    with ShardSet.open([f"numbers:{tmp_path / 'five'}"]) as found:
        assert found.read([4, 1])[0][:, 0, 0, 0].tolist() == [4, 1]
        reader = RowReader(described(found))
        assert reader.read([(0, 3)])[0].max() == 3
        reader.close()
    assert main(["prep", "inspect", f"numbers:{tmp_path / 'five'}"]) == 0
    assert "5 of 2 x 2 x 1" in capsys.readouterr().out


def test_a_name_that_nobody_adds_is_an_error_that_lists_all(install, capsys):
    install("their-schemes", schemes("theirs"), theirs_module=SCHEME)
    with pytest.raises(SystemExit):
        main([*SIMULATE, "nine", "--out", "out"])
    assert "theirs" in capsys.readouterr().err
    with pytest.raises(UsageError, match=r"known are: none, .*hedge, .*, theirs$"):
        scheme_class("nine")
    with pytest.raises(UsageError, match=r"known are: auto, openmpi, mpich, intel, flux, pals$"):
        launcher_of("nine")


@pytest.mark.parametrize(
    ("source", "of", "said"),
    [
        ("import no_such_module", "theirs_module:Theirs", "ModuleNotFoundError: No module named"),
        ("raise SystemError('boom')", "theirs_module:Theirs", "SystemError: boom"),
        ("", "theirs_module:Theirs", "AttributeError"),
        ("", "no such:text:at all", "cannot be loaded"),
        ("Theirs = 7", "theirs_module:Theirs", "is 7; it needs to be a class that inherits"),
        (SCHEME.replace('"theirs"', '"other"'), "theirs_module:Theirs", "calls itself 'other'"),
    ],
)
def test_a_broken_package_is_named_in_one_message(install, capsys, source, of, said):
    install("their-schemes", schemes("theirs", of=of), theirs_module=source)
    assert main([*SIMULATE, "theirs", "--out", "out"]) == EnvironmentFault.exit_code
    told = capsys.readouterr().err
    assert said in told
    assert "package their-schemes 1.0" in told
    assert "pip uninstall their-schemes" in told
    assert "Traceback" not in told


def test_two_packages_that_add_one_name_are_both_named(install):
    install("a-package", schemes("theirs"), theirs_module=SCHEME)
    install("b-package", schemes("theirs"))
    with pytest.raises(EnvironmentFault, match=r"(?s)package a-package 1.0.*package b-package 1.0"):
        scheme_class("theirs")


def test_entry_points_that_cannot_be_read_matter_only_where_they_are_ours(install, capsys):
    install("no-business-of-ours", "[other.group]\nno equals sign\n")
    install("their-schemes", schemes("theirs"), theirs_module=SCHEME)
    assert scheme_class("theirs").name == "theirs"
    install("broken", "[collage_mpi.schemes]\nno equals sign\n")
    assert main([*SIMULATE, "theirs", "--out", "out"]) == EnvironmentFault.exit_code
    assert "entry points of package broken 1.0 cannot be read" in capsys.readouterr().err


def test_no_package_replaces_a_scheme_of_this_one(install):
    install("their-schemes", schemes("none"), theirs_module=SCHEME)
    assert scheme_class("none").__module__.startswith("collage_mpi.")
    assert tuple(SCHEME_NAMES) == SCHEMES


def test_entry_points_are_not_read_for_names_that_are_known(monkeypatch, tmp_path):
    """It takes a look at every installed package."""

    def read(group):
        raise AssertionError(f"{group} was read")

    monkeypatch.setattr(plugins, "offered", read)
    assert main([*SIMULATE, "collage", "--out", str(tmp_path / "run")]) == 0
    monkeypatch.setattr(mpiexec, "mpi4py_library", lambda: "MPICH 5.0.2")
    program = tmp_path / "mpiexec"
    program.write_text("#!/bin/sh\necho HYDRA build details: Version: 5.0.2")
    program.chmod(0o755)
    words = ["launch", "--dry-run", "--mpi", "mpich", "--mpiexec", str(program), "-n", "2"]
    assert main([*words, "--", "top"]) == 0


def test_a_launcher_of_another_package_starts_ranks_that_know_their_place(
    install, tmp_path, monkeypatch
):
    install(
        "their-launcher",
        "[collage_mpi.launchers]\nrelay = relay_module:Relay\n",
        relay_module=LAUNCHER,
    )
    monkeypatch.setattr(mpiexec, "mpi4py_library", lambda: "MPICH 5.0.2")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    program, script = tmp_path / "relayrun", tmp_path / "script.py"
    program.write_text(RELAYRUN.format(python=sys.executable))
    program.chmod(0o755)
    script.write_text(PLACES)
    how = LaunchArguments(words=(str(script), str(tmp_path)), mpi="relay")
    assert launch_ranks(3, how) == 0
    places = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]
    assert places == [[rank, 3, rank, None] for rank in range(3)]


def test_ranks_without_their_launchers_package_say_so(install, monkeypatch, capsys):
    monkeypatch.setenv(VARIABLE, "relay")
    assert [launcher.name for launcher in launchers(os.environ)][:1] == ["openmpi"]
    assert main(["simulate", "--help"]) == UsageError.exit_code
    assert "there is no launcher 'relay'; known are: auto, " in capsys.readouterr().err
