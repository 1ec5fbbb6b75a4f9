"""A table is written the same way in a terminal and on a page."""

from __future__ import annotations

from collage_mpi.system.table import Cell, Column, Table, to_text

TABLE = Table(
    ("", Column("P99", ".1f", " ms"), "note"),
    [["a|b", 1234.56, Cell("slow", bad=True)], ["c", None, ""]],
    "latency",
)


def test_numbers_are_written_as_their_column_says():
    assert TABLE.texts() == [["a|b", "1234.6 ms", "slow"], ["c", "n/a", ""]]
    assert TABLE.cells()[0][2] == Cell("slow", bad=True)


def test_a_terminal_shows_the_caption_in_the_corner_or_above():
    wide = to_text(TABLE, 80).splitlines()
    assert wide == ["latency        P99  note", "a|b      1234.6 ms  slow", "c              n/a"]
    narrow = to_text(TABLE.drawn(narrow=True), 80).splitlines()
    assert narrow[:2] == ["latency", "           P99  note"]


def test_a_table_without_labels_has_no_header():
    table = Table([Column(left=True)] * 2, [["tasks", "4"]])
    assert to_text(table, 80) == "tasks  4"
