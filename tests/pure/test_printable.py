"""Names from files reach the terminal as text; values in messages stay short; a table is written
the same way in a terminal and on a page.
"""

from __future__ import annotations

import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from results_harness import make_run
from rich.text import Text

from collage_mpi.cli import main
from collage_mpi.shards import write_shard
from collage_mpi.system.printable import (
    brief,
    counted,
    did_you_mean,
    numbered,
    printable,
    ranges_in,
    shown,
    some_of,
)
from collage_mpi.system.progress import plain_line
from collage_mpi.system.table import Cell, Column, Table, to_text
from collage_mpi.system.tell import tell, told_on_stderr

HOSTILE = "cat\x1b[2J\x9b2J\u202egod\r"
SHOWN = r"cat\x1b[2J\x9b2J\u202egod\x0d"


def test_what_a_terminal_obeys_is_shown_by_its_code() -> None:
    assert printable(HOSTILE) == SHOWN
    assert printable("a\tb\nc, über, 猫") == "a\tb\nc, über, 猫"


@given(st.text(st.characters()))
def test_no_control_is_left_and_all_can_be_encoded(text: str) -> None:
    found = printable(text)
    found.encode()
    controls = {c for c in found if unicodedata.category(c) == "Cc"}
    assert controls <= {"\n", "\t"}
    assert printable(found) == found


def test_class_names_and_file_names_are_text(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"{HOSTILE}.h5"
    images = np.zeros((4, 4, 4, 1), np.uint8)
    write_shard(path, images, np.arange(4) % 2, class_names=(HOSTILE, "dog"), source=HOSTILE)
    assert main(["prep", "inspect", str(path)]) == 0
    assert main(["prep", "verify", str(path)]) == 0
    assert main(["evaluate", "--shards", str(path), "--single", f"{HOSTILE}.safetensors"]) == 3
    assert main(["verify", str(tmp_path / HOSTILE)]) == 3
    said = capsys.readouterr()
    assert said.out.count(SHOWN) >= 3  # the path, a class, the source
    assert said.err.count(SHOWN) >= 2
    for text in (said.out, said.err):
        assert not set(text) & set("\x1b\x9b\u202e\r")


def test_names_of_exports_are_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path / "run", 18)
    out = tmp_path / HOSTILE
    assert main(["export", str(run), "--to", "csv", "--out", str(out)]) == 0
    said = capsys.readouterr()
    assert said.out.count(SHOWN) == 4
    assert not set(said.out + said.err) & set("\x1b\x9b\u202e\r")


def test_wrong_flags_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", f"--{HOSTILE}"])
    assert SHOWN in capsys.readouterr().err


def test_a_table_keeps_its_own_colours_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    left = SHOWN.removesuffix("\\x0d")  # rich itself drops it
    assert to_text(Text(f"error rows: 1 x {HOSTILE}", style="bold red")).endswith(left)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    coloured = to_text(Text(HOSTILE, style="bold red"), 80)
    assert left in coloured
    assert coloured.startswith("\x1b[1;31m")


def test_progress_lines_are_text() -> None:
    assert plain_line({"phase": HOSTILE, "done": 1}).startswith(SHOWN)


def test_a_name_that_is_not_utf8_can_be_told(capsys: pytest.CaptureFixture[str]) -> None:
    with told_on_stderr():
        tell(os.fsdecode(b"shard\xff.h5"))
    assert capsys.readouterr().err == "shard\\udcff.h5\n"


def test_values_in_messages_are_short() -> None:
    assert shown("a" * 10**6, 60) == shown("a" * 10**6)[:57] + "..."
    nested: list[object] = ["lol"]
    for _ in range(40):
        nested = [nested] * 9  # its repr would have 9**40 words
    assert len(shown(nested)) <= 120
    assert shown({"side": 3, "names": ["a", None]}) == "{'names': ['a', None], 'side': 3}"


@pytest.mark.parametrize(
    ("number", "said"), [(0, "0 images"), (1, "1 image"), (2, "2 images"), (1800, "1,800 images")]
)
def test_plurals_and_zero_are_right(number: int, said: str) -> None:
    assert counted(number, "image") == said


def test_numbers_are_listed_behind_their_noun() -> None:
    assert numbered("rank", [3]) == "rank 3"
    assert numbered("rank", [1, 3]) == "ranks 1, 3"


def test_the_nearest_words_are_proposed_and_no_others() -> None:
    assert did_you_mean("rnu", ["run", "report"]) == "; did you mean 'run'?"
    assert did_you_mean("side_px", ["size_px", "side_px2"]) == (
        "; did you mean 'side_px2' or 'size_px'?"
    )
    assert did_you_mean("zzz", ["run"]) == ""


def test_no_message_of_ours_has_a_plural_in_brackets() -> None:
    package = Path(__file__).parents[2] / "collage_mpi"
    lines = [line for path in package.rglob("*.py") for line in path.read_text().splitlines()]
    assert not [line for line in lines if "(s)" in line]


def test_many_names_are_cut_short_and_counted() -> None:
    assert some_of(["a", "b"], 2) == "a, b"
    assert some_of(["a", "b", "c", "d"], 2, "; ") == "a; b and 2 more"
    assert some_of([], 2) == ""
    assert numbered("rank", range(5), 3) == "ranks 0, 1, 2 and 2 more"
    assert numbered("rank", [7], 3) == "rank 7"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "n/a"),
        (0, "0"),
        (150.0, "150"),
        (0.12345, "0.123"),
        (99.96, "100"),
        (999.6, "1,000"),
        (12345.6, "12,346"),
    ],
)
def test_a_figure_has_three_digits_and_no_exponent(value: float | None, text: str) -> None:
    assert brief(value) == text


def test_ranges_are_read_or_refused() -> None:
    assert ranges_in("0-3, 8") == [range(4), range(8, 9)]
    assert ranges_in("3-1") == [range(3, 2)]
    assert [ranges_in(text) for text in ("", "x", "-1", "1,,2", "1-2-3")] == [None] * 5


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
