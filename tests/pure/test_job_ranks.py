"""A job's ranks as launch sees them: who is who, and when rank 0 alone stands still."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from collage_mpi.launch import job_ranks
from collage_mpi.launch.job_ranks import LONGEST_LOOK_S, RankProcesses
from collage_mpi.system import hard_exit

WORD = "COLLAGE_MPI_JOB=abc"


class Proc:
    """A /proc of one's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def add(self, pid: int, parent: int, name="python", word=WORD, rank=None, maps="") -> None:
        (self.folder / str(pid)).mkdir()
        told = [word, *([] if rank is None else [f"PMI_RANK={rank}"])]
        (self.folder / str(pid) / "environ").write_text("\0".join(told) + "\0")
        (self.folder / str(pid) / "maps").write_text(maps)
        self.state(pid, "S", parent, name)

    def state(self, pid: int, state: str, parent: int = 1, name: str = "python") -> None:
        (self.folder / str(pid) / "stat").write_text(f"{pid} ({name}) {state} {parent} {pid} {pid}")


@pytest.fixture
def proc(tmp_path):
    """A launcher, a shell around rank 0, rank 0 with a child, ranks 1 and 2, a stranger."""
    folder = tmp_path / "proc"
    folder.mkdir()
    found = Proc(folder)
    found.add(10, 1, name="mpiexec")
    found.add(20, 10, name="sh", rank=0)
    found.add(21, 20, rank=0)
    found.add(22, 21, rank=0)
    found.add(31, 10, rank=1)
    found.add(32, 10, rank=2)
    found.add(99, 1, word="COLLAGE_MPI_JOB=other", rank=1)
    return found


def met(proc: Proc) -> RankProcesses:
    found = RankProcesses(WORD, proc.folder)
    found.meet()
    found.look(0.0)
    return found


def test_a_forked_rank_is_not_its_relay(proc):
    """Its parent is the server."""
    proc.state(21, "S", 20, name="relay")
    shutil.rmtree(proc.folder / "22")
    proc.add(40, 1)
    proc.add(41, 40, rank=0)
    assert met(proc).rank_0 == 41


def test_rank_0_is_neither_the_shell_around_it_nor_its_child(proc):
    assert met(proc).rank_0 == 21


def test_a_rank_is_lost_once_it_has_no_process_left(proc):
    found = RankProcesses(WORD, proc.folder)
    assert [found.lost(), found.lost()] == [None, None]
    for pid in (20, 22, 31):  # the shell, a child, and rank 1, which has another by then
        shutil.rmtree(proc.folder / str(pid))
    proc.add(41, 10, rank=1)
    assert [found.lost(), found.lost()] == [None, None]
    shutil.rmtree(proc.folder / "32")
    assert found.lost() is None  # a process that starts another program has no environment
    proc.add(32, 10, rank=2)
    assert [found.lost(), found.lost()] == [None, None]
    shutil.rmtree(proc.folder / "32")
    assert [found.lost(), found.lost(), found.lost()] == [None, 2, 2]
    assert found.rank_0 == 21


def test_rank_0_stands_still_while_another_rank_does_not(proc):
    found = met(proc)
    assert found.look(1.0) == 0.0
    proc.state(21, "T")
    assert [found.look(2.0), found.look(3.0)] == [1.0, 2.0]
    proc.state(21, "R")
    assert found.look(4.0) == 0.0


def test_a_rank_that_ends_while_it_is_looked_at_ends_no_watch(proc):
    found = met(proc)
    (proc.folder / "31" / "stat").write_text("")
    assert found.look(1.0) == 0.0
    found.meet()
    assert found.rank_0 == 21


@pytest.mark.parametrize("others", ["T", "Z"])
def test_a_job_that_is_suspended_or_over_as_a_whole_does_not_stand_still(proc, others):
    found = met(proc)
    for pid in (31, 32):
        proc.state(pid, others)
    proc.state(21, "T")
    assert found.look(1.0) == 0.0


def test_all_are_gone_when_none_is_left(proc):
    found = met(proc)
    for pid in (21, 31):
        proc.state(pid, "Z")
    found.look(1.0)
    assert found.gone_s == 0.0
    shutil.rmtree(proc.folder / "32")
    found.look(2.0)
    found.look(3600.0)
    assert found.gone_s == 1.0 + LONGEST_LOOK_S
    nobody = RankProcesses("COLLAGE_MPI_JOB=none", proc.folder)
    nobody.look(1.0)
    assert nobody.gone_s == 0.0


def test_a_debugger_may_look_at_rank_0(proc):
    found = met(proc)
    proc.state(21, "t")
    assert found.look(1.0) == 0.0


def test_the_time_that_launch_was_stopped_itself_does_not_count(proc):
    found = met(proc)
    proc.state(21, "T")
    assert found.look(3600.0) == LONGEST_LOOK_S


def test_where_rank_0_is_elsewhere_nothing_is_said_of_it(proc):
    found = RankProcesses("COLLAGE_MPI_JOB=other", proc.folder)
    found.meet()
    assert found.rank_0 is None
    assert found.look(1.0) == 0.0


def test_only_what_its_ranks_had_mapped_is_removed(proc, tmp_path, monkeypatch):
    monkeypatch.setattr(hard_exit, "SHARED", (f"{tmp_path}/mpich_shm_",))
    monkeypatch.setattr(hard_exit, "FOLDER", f"{tmp_path}/")
    line = "7f00-7f01 rw-s 00000000 00:19 12 {}\n"
    monkeypatch.setattr(job_ranks, "UCX", f"{tmp_path}/ucx_")
    (tmp_path / "ucx_ours").touch()
    for name in ("ours", "others"):
        (tmp_path / f"mpich_shm_{name}").touch()
    mapped = [line.format(tmp_path / name) for name in ("mpich_shm_ours", "ucx_ours")]
    (proc.folder / "31" / "maps").write_text("".join(mapped))
    (proc.folder / "99" / "maps").write_text(line.format(tmp_path / "mpich_shm_others"))
    met(proc).tidy()
    assert [path.name for path in tmp_path.glob("*_o*")] == ["mpich_shm_others"]
