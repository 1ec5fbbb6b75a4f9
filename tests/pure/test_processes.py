"""Who belongs to a process: by descent, and by session when the parent has gone."""

from __future__ import annotations

from collage_mpi.processes import family_of, process_table

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


def test_a_process_may_have_any_name(tmp_path):
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "stat").write_bytes(b"7 (caf\xe9) S 1 7 7")
    assert process_table(tmp_path) == {7: (1, 7)}
