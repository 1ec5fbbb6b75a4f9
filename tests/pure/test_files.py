"""Files that are whole or not there: CSV, the message of one that cannot be written."""

from __future__ import annotations

import contextlib
import csv
import os
from pathlib import Path

import pytest

from collage_mpi.errors import EnvironmentFault
from collage_mpi.system import files
from collage_mpi.system.files import (
    load_json,
    make_directory,
    reading,
    remove_leftovers,
    save_csv,
    save_file,
    save_records,
)


def test_records_have_the_columns_of_all_and_none_is_an_empty_field(tmp_path: Path) -> None:
    save_records(tmp_path / "t.csv", [{"a": 1, "b": None}, {"c": 'x, "y"', "a": 0.5}])
    assert (tmp_path / "t.csv").read_bytes() == b'a,b,c\n1,,\n0.5,,"x, ""y"""\n'


def test_many_rows_are_written_in_pieces_and_in_order(tmp_path: Path) -> None:
    rows = [(str(n), "é") for n in range(3 * files._CSV_ROWS)]
    save_csv(tmp_path / "t.csv", ("n", "t"), rows, line_end="\r\n")
    with open(tmp_path / "t.csv", newline="", encoding="utf-8") as file:
        assert [tuple(row) for row in csv.reader(file)] == [("n", "t"), *rows]
    assert (tmp_path / "t.csv").read_bytes().startswith(b"n,t\r\n0,")


def test_what_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "none" / "t.csv"
    for write in (lambda: save_file(path, b"x"), lambda: save_records(path, [{"a": 1}])):
        with pytest.raises(EnvironmentFault, match=r"t\.csv: cannot be written: No.*free space"):
            write()
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_fails_leaves_the_old_table(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    save_csv(path, ("a",), [(1,)])
    with pytest.raises(ZeroDivisionError):
        save_csv(path, ("a",), ((1 // n,) for n in (1, 0)))
    assert [name.name for name in tmp_path.iterdir()] == ["t.csv"]
    assert path.read_text() == "a\n1\n"


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_a_folder_in_a_files_place_is_named(path: str) -> None:
    with pytest.raises(EnvironmentFault, match="cannot be written: Is a directory"):
        save_file(Path(path), b"x")


def test_what_is_no_regular_file_is_not_replaced(tmp_path: Path) -> None:
    """A pipe for a device: as root a report was written over /dev/null."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EnvironmentFault, match="it exists and is not a regular file"):
        save_file(tmp_path / "pipe", b"x")
    assert [path.is_fifo() for path in tmp_path.iterdir()] == [True]
    link = tmp_path / "link"  # as /dev/stdout is
    link.symlink_to(tmp_path / "pipe")
    with pytest.raises(EnvironmentFault, match="it exists and is not a regular file"):
        save_file(link, b"x")
    assert link.is_symlink()


def test_a_link_to_a_file_is_replaced_but_not_that_of_the_system(tmp_path, monkeypatch):
    (tmp_path / "file").write_bytes(b"a")
    (tmp_path / "link").symlink_to(tmp_path / "file")
    save_file(tmp_path / "link", b"b")
    assert (tmp_path / "link").read_bytes() == b"b"
    (tmp_path / "stdout").symlink_to(tmp_path / "file")
    monkeypatch.setattr(files, "SYSTEM_LINKS", tmp_path)
    with pytest.raises(EnvironmentFault, match="it exists and is not a regular file"):
        save_file(tmp_path / "stdout", b"c")
    assert (tmp_path / "file").read_bytes() == b"a"


def test_a_temporary_name_is_one_that_is_swept(tmp_path: Path) -> None:
    files.temporary_name(tmp_path / "a.h5").touch()
    files.temporary_name(tmp_path / "b.h5").touch()
    remove_leftovers(tmp_path, r"a\.h5")
    assert [path.name.startswith(".b.h5") for path in tmp_path.iterdir()] == [True]


@pytest.mark.parametrize("done", [True, False])
def test_a_rename_whose_reply_is_lost_is_settled_by_its_name(tmp_path, monkeypatch, done) -> None:
    """A file server may rename the file, and the host is told an error."""
    rename = os.replace

    def lose_the_reply(source: Path, target: Path) -> None:
        if done:
            rename(source, target)
        raise FileNotFoundError(2, "No such file or directory", str(source))

    (tmp_path / "x").write_text("old")
    monkeypatch.setattr(files.os, "replace", lose_the_reply)
    with contextlib.nullcontext() if done else pytest.raises(FileNotFoundError):
        files.write_atomic(tmp_path / "x", [b"new"])
    assert (tmp_path / "x").read_text() == ("new" if done else "old")
    assert os.listdir(tmp_path) == ["x"]


def test_each_folder_that_is_made_is_synced_in_the_one_above_it(tmp_path, monkeypatch) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(files, "sync_directory", synced.append)
    make_directory(tmp_path / "a" / "b")
    assert sorted(synced) == [tmp_path, tmp_path / "a"]
    make_directory(tmp_path / "a" / "b")  # made, perhaps, and never synced
    assert synced[2:] == [tmp_path / "a"]


def test_a_folder_is_made_in_one_that_may_not_be_read(tmp_path, monkeypatch) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(files, "sync_directory", refused)
    make_directory(tmp_path / "a")
    assert (tmp_path / "a").is_dir()


def test_json_that_finds_no_memory_is_not_damaged(tmp_path, monkeypatch) -> None:
    def no_memory(path: Path) -> bytes:
        raise MemoryError

    path = tmp_path / "m.json"
    path.write_text("{}")
    with reading(path, "damaged"):
        assert load_json(path) == {}
    monkeypatch.setattr(Path, "read_bytes", no_memory)
    told = pytest.raises(EnvironmentFault, match="cannot be read: Cannot allocate")
    with told, reading(path, "damaged"):
        load_json(path)
