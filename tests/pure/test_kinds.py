"""The table of kinds of network: what is on the wire and on disk stays."""

from __future__ import annotations

from collage_mpi import kinds
from collage_mpi.mpi import tasks
from collage_mpi.results.rows import ENCODED, KIND_CODE, SOURCES


def test_codes_stay():
    assert {kind.name: kind.code for kind in kinds.TABLE} == {
        "single": 0,
        "collage": 1,
        "parity": 2,
    }
    assert [kind.code for kind in kinds.TABLE] == list(range(len(kinds.TABLE)))
    assert kinds.KINDS is tasks.KINDS


def test_rows_and_sources_are_of_the_table():
    assert KIND_CODE == {"single": 0, "collage": 1, "parity": 2}
    assert [SOURCES[code] for code in ENCODED] == ["collage", "parity"] == [*kinds.ENCODED_KINDS]
