"""Lists of class names: doubles are told apart by their number and named, in a short message."""

from __future__ import annotations

from pathlib import Path

import pytest

from collage_mpi.errors import EnvironmentFault, UsageError
from collage_mpi.shards.schema import read_class_names, told_apart


def test_doubles_get_their_class_number_and_are_named(tmp_path: Path, caplog) -> None:
    """As in ImageNet's own list, of 1,000 names: cranes are birds and machines."""
    names = [f"class {number}" for number in range(1000)]
    for number, name in ((134, "crane"), (517, "crane"), (638, "maillot"), (639, "maillot")):
        names[number] = name
    path = tmp_path / "names.txt"
    path.write_text("\n".join(names) + "\n\n")
    found = read_class_names(path)
    assert [found[number] for number in (134, 517, 638, 639)] == [
        "crane (134)",
        "crane (517)",
        "maillot (638)",
        "maillot (639)",
    ]
    assert len(set(found)) == 1000
    assert [a for a, b in zip(found, names, strict=True) if a == b] == sorted(
        set(names) - {"crane", "maillot"}, key=names.index
    )
    (said,) = caplog.messages
    assert said.endswith('gets its class number: "crane" (134, 517), "maillot" (638, 639)')


def test_names_that_differ_are_left_alone(caplog) -> None:
    assert told_apart(["a", "b"]) == ("a", "b")
    assert not caplog.messages


def test_what_is_said_stays_short(caplog) -> None:
    assert told_apart(["x"] * 999)[998] == "x (998)"
    assert told_apart([f"{number % 500}" for number in range(1000)])[0] == "0 (0)"
    assert all(len(said) < 250 for said in caplog.messages)
    assert caplog.messages[1].endswith(" and 495 more")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ([], "there are none"),
        (["a", ""], r"class 1 has none"),
        (["a", "a", "a (1)"], r'more than once: "a" \(0, 1\); rename'),
    ],
)
def test_names_that_cannot_be(names: list[str], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        told_apart(names)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"none\.txt: cannot be read"):
        read_class_names(tmp_path / "none.txt")
