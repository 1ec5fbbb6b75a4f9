"""Who belongs to a process: by descent, and by session when the parent has gone."""

from __future__ import annotations

import subprocess
from pathlib import Path

from collage_mpi import __version__
from collage_mpi.launch.mpiexec import mpi4py_library
from collage_mpi.system.process_tree import family_of, own_command, process_table

# pid: (parent, session)
TABLE = {
    1: (0, 1),
    10: (1, 10),  # the launcher, leader of its session
    11: (10, 10),  # its proxy
    12: (11, 12),  # a rank in a session of its own (MPICH)
    13: (1, 12),  # a child of that rank whose parent has ended
    14: (1, 10),  # a rank whose launcher has ended, in the launcher's session
    20: (1, 20),  # somebody else
    21: (20, 20),
}


def test_descendants_and_sessions():
    assert family_of(10, TABLE) == {10, 11, 12, 13, 14}


def test_a_dead_leader_still_has_its_session():
    rest = {pid: entry for pid, entry in TABLE.items() if pid not in (10, 11)}
    assert family_of(10, rest) == {14}


def test_what_we_start_imports_nothing_from_the_current_folder(tmp_path: Path):
    """Beside a checkout, or a user's own queue.py, it is still this package and Python's own."""
    (tmp_path / "collage_mpi").mkdir()
    for name in ("queue.py", "platform.py", "collage_mpi/__init__.py"):
        (tmp_path / name).write_text("raise SystemExit('not ours')")
    module = tmp_path / "collage_mpi_asked.py"
    found = [
        subprocess.run(
            [*own_command(name), *words],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        for name, *words in (("collage_mpi", "--version"), ("queue",), (module.stem,))
    ]
    assert found[0].stdout == f"collage-mpi {__version__}\n"
    assert (found[1].returncode, found[1].stderr) == (0, "")
    assert "No module named collage_mpi_asked" in found[2].stderr


def test_nor_does_the_question_what_mpi4py_loads(tmp_path: Path, monkeypatch):
    (tmp_path / "mpi4py.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    assert mpi4py_library().startswith(("MPICH ", "Open MPI "))


def test_a_process_may_have_any_name(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_bytes(b"7 (caf\xe9) S 1 7 7")
    assert process_table(tmp_path) == {7: (1, 7)}


def test_a_process_that_ends_while_its_file_is_read_is_left_out(tmp_path):
    for pid, text in ((7, "7 (rank) S 1 7 7"), (8, "")):
        (tmp_path / str(pid)).mkdir()
        (tmp_path / str(pid) / "stat").write_text(text)
    assert process_table(tmp_path) == {7: (1, 7)}
