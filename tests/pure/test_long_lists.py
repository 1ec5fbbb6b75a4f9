"""Lists of members that do not fit into the memory that they may have: they say what short ones
say, and take no memory that grows with them."""

from __future__ import annotations

import errno
import os
import random
from collections import defaultdict, deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from memory import peak_bytes

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.shards import column, listing, members
from collage_mpi.shards import update as updates
from collage_mpi.shards.column import Column
from collage_mpi.shards.members import Member, MemberIndex
from collage_mpi.shards.source import ReadAs, digests_of
from collage_mpi.shards.update import Update, compare, pair, repeated, update

DIGEST = 16
FEW, HELD = 7, 100  # rows and bytes


@pytest.fixture
def small(monkeypatch) -> None:
    """A list of a hundred members is long."""
    for of in (column, members):
        monkeypatch.setattr(of, "ROWS_AT_ONCE", FEW)
        monkeypatch.setattr(of, "HELD_BYTES", HELD)
    monkeypatch.setattr(column, "GAP", 2)
    monkeypatch.setattr(updates, "KEYS_AT_ONCE", 10)
    monkeypatch.setattr(listing, "SORTED_AT_ONCE", 5)
    monkeypatch.setattr(listing, "NAMED_AT_ONCE", 4)
    monkeypatch.setattr(listing, "READ_AT_ONCE", 9)


def some_members(seed: int, count: int, *, labels: bool = True) -> list[tuple[str, Member]]:
    """Members of which some have the same name, a fault, or no label."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        name = f"{rng.randrange(count):0{rng.randrange(1, 9)}d}\udcff"
        fault = "gone" if rng.random() < 0.1 else None
        label = rng.choice([None, 0, 5]) if labels else None
        about = rng.randrange(9), rng.randrange(3), label, fault, rng.randrange(9)
        found.append((name, Member(name, name, *about)))
    return found


def with_digests(index: MemberIndex, seed: int) -> MemberIndex:
    digests = np.zeros((len(index), DIGEST), np.uint8)
    digests[:, 0] = np.random.default_rng(seed).integers(0, 9, len(index))  # 0: not read
    return replace(index, digests=digests)


def rows_of(index: MemberIndex) -> list[tuple]:
    """All that a list says, by row."""
    columns = [getattr(index, name) for name in members.MAY_LACK]
    return [
        (
            index.name(row),
            int(index.sizes[row]),
            int(index.offsets[row]),
            index.faults.get(row),
            *(None if each is None else each[row].tolist() for each in columns),
        )
        for row in range(len(index))
    ]


@pytest.mark.usefixtures("small")
def test_a_long_list_is_that_of_its_members(tmp_path) -> None:
    own = some_members(1, 100)
    index = with_digests(MemberIndex.of(own), 2)
    assert not Column.of([np.arange(9)]).__dict__["_file"]  # 72 bytes
    assert index.sizes.__dict__["_file"]
    assert [index.name(row) for row in range(100)] == [name for name, _ in own]
    assert [index.member(row, "f").fault for row in range(100)] == [m.fault for _, m in own]
    assert index.labels[:].tolist() == [m.label or 0 for _, m in own]
    assert index.nbytes == sum(m.nbytes for _, m in own)
    for rows in ([0], [99, 0, 3, 3], [*range(20, 50)], random.Random(3).sample(range(100), 40)):
        assert rows_of(index.take(np.array(rows))) == [rows_of(index)[row] for row in rows]
    assert rows_of(MemberIndex.joined([index])) == rows_of(index)
    index.save(tmp_path / "i.npz")
    again = MemberIndex.load(tmp_path / "i.npz")
    assert rows_of(again) == rows_of(index)
    assert again.content == index.content
    with np.load(tmp_path / "i.npz") as found:
        assert found["sizes"].tolist() == index.sizes[:].tolist()
        np.savez(tmp_path / "old.npz", **found)  # as earlier versions wrote it
    assert MemberIndex.load(tmp_path / "old.npz").content == index.content


def test_the_name_of_a_list_does_not_depend_on_its_length(monkeypatch) -> None:
    index = with_digests(MemberIndex.of(some_members(1, 100)), 2)
    for name in ("HELD_BYTES", "ROWS_AT_ONCE"):
        monkeypatch.setattr(column, name, FEW)
        monkeypatch.setattr(members, name, FEW)
    long = with_digests(MemberIndex.of(some_members(1, 100)), 2)
    assert (long.content, long.digest()) == (index.content, index.digest())


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("wrong", ["cut", "bit", "packed", "type", "rows"])
def test_a_damaged_long_list_is_not_used(wrong, tmp_path) -> None:
    path = tmp_path / "i.npz"
    MemberIndex.of(some_members(1, 2000)).save(path)  # zipfile reads 4 KiB ahead
    data = bytearray(path.read_bytes())
    with np.load(path) as found:
        columns = dict(found)
    assert MemberIndex.load(path) is not None
    if wrong == "cut":
        path.write_bytes(data[:-100])
    elif wrong == "bit":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    elif wrong == "packed":
        np.savez_compressed(path, **columns)
    elif wrong == "type":
        np.savez(path, **(columns | {"sizes": columns["sizes"].astype(np.int32)}))
    else:
        np.savez(path, **(columns | {"sizes": columns["sizes"][1:]}))
    assert MemberIndex.load(path) is None


def by_hand(old: list[bytes], new: list[bytes], live: np.ndarray) -> tuple[list[int], list[int]]:
    rows: dict[bytes, deque[int]] = defaultdict(deque)
    for row in np.argsort(~live, kind="stable").tolist():
        rows[old[row]].append(row)
    found, left = [-1] * len(old), []
    for row, key in enumerate(new):
        if key and rows[key]:
            found[rows[key].popleft()] = row
        else:
            left.append(row)
    return found, left


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("seed", range(6))
def test_rows_are_paired_as_by_hand(seed) -> None:
    rng = random.Random(seed)
    old, new = ([b"%d" % rng.randrange(30) for _ in range(n)] for n in (rng.randrange(70), 60))
    live = np.array([rng.random() < 0.7 for _ in old], bool)
    found, left = np.full(len(old), -1), np.ones(len(new), bool)
    keys = [
        updates.keys_of(
            MemberIndex.of((os.fsdecode(name), Member("", "", 1)) for name in names),
            lambda block: [b"" if name == b"7" else name for name in block.raw_names()],
        )
        for names in (old, new)
    ]
    pair(found, left, *keys, live)
    plain = [[b"" if name == b"7" else name for name in names] for names in (old, new)]
    assert (found.tolist(), np.flatnonzero(left).tolist()) == by_hand(*plain, live)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("content", [False, True])
def test_a_long_list_is_updated_as_a_short_one(content, monkeypatch) -> None:
    def updated() -> tuple:
        old = with_digests(MemberIndex.of(some_members(1, 90)), 1)
        old = replace(old, gone=np.arange(90) % 7 == 0)
        new = with_digests(MemberIndex.of(some_members(2, 100)), 2)
        found = update("", old, new, Update(touched="again"), content=content)
        listed = [each.tolist() for each in compare(old, new, content=content)]
        facts = found.again.tolist(), found.touched.tolist(), found.removed, found.renamed
        return (
            listed,
            rows_of(found.known),
            rows_of(found.more),
            facts,
            updates.differences(old, new),
        )

    long = updated()
    monkeypatch.undo()
    assert long == updated()
    assert long[0][4]  # some are new


@pytest.mark.usefixtures("small")
def test_a_column_that_comes_late_has_zeros_before_and_after() -> None:
    parts = [some_members(seed, 30, labels=seed == 2) for seed in (1, 2, 3)]
    index = MemberIndex.joined(map(MemberIndex.of, parts))
    labels = [member.label or 0 for part in parts for _, member in part]
    assert index.labels[:].tolist() == labels
    assert any(labels)


@pytest.mark.parametrize("held_bytes", [0, 1_000])
def test_a_column_is_indexed_as_an_array_in_memory_and_on_the_disk(held_bytes: int) -> None:
    values = np.arange(9)
    found = Column(np.int64, held_bytes=held_bytes)
    found.append(values)
    for rows in (values % 3 == 0, np.array([7, 2, 2]), slice(2, -1), slice(8, 3), -1):
        assert np.array_equal(found[rows], values[rows])
    with pytest.raises(IndexError, match="no step"):
        found[::2]


@pytest.mark.usefixtures("small")
def test_rows_that_are_read_together_are_few() -> None:
    rows = np.arange(0, 100, 2)
    found = [*column.spans(rows)]
    assert np.concatenate([rows[places] for places, _, _ in found]).tolist() == rows.tolist()
    assert max(stop - first for _, first, stop in found) <= FEW


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("which", ["name", "offset"])
def test_one_picture_that_has_moved_far_from_the_end_is_noticed(which) -> None:
    old = [(f"{n:02d}", Member("", "", 5, 0, time_ns=50)) for n in range(40)]
    moved = ("x", old[0][1]) if which == "name" else ("00", Member("", "", 5, 8, time_ns=50))
    lists = [MemberIndex.of(each) for each in (old, [moved, *old[1:]])]
    digests = np.arange(40 * DIGEST).astype(np.uint8).reshape(40, DIGEST)
    old_list, new_list = (replace(each, digests=digests) for each in lists)
    assert update("", old_list, new_list, Update(), content=True).renamed
    assert not update("", old_list, old_list, Update(), content=True).renamed


@pytest.mark.usefixtures("small")
def test_a_list_of_paths_that_is_too_long_is_refused(tmp_path, monkeypatch) -> None:
    (tmp_path / "l.txt").write_text("a.png\n" * 8)  # 48 bytes
    monkeypatch.setattr(members, "LARGEST_LIST_BYTES", 47)
    with pytest.raises(DataFault, match="is longer than 47 bytes"):
        listing.ListSource.listed(tmp_path / "l.txt", ReadAs())


@pytest.mark.usefixtures("small")
def test_bytes_that_are_known_are_not_read_again(tmp_path) -> None:
    before = with_digests(MemberIndex.of(some_members(1, 80, labels=False)), 1)
    now = MemberIndex.joined([before, MemberIndex.of(some_members(2, 20, labels=False))])
    sizes = now.sizes[:] + (np.arange(100) % 5 == 0)  # some have grown
    now = replace(now, digests=None, sizes=sizes)
    read = list[int]()

    def member(row: int) -> Member:
        read.append(row)
        return now.member(row, str(tmp_path / "none"))

    found = digests_of(now, member, before)
    was = before.digests
    known = [row for row in range(80) if row % 5 and before.times[row] > 0 and was[row].any()]
    assert set(read) == set(range(100)) - set(known)
    assert found[np.array(known)].tolist() == was[known].tolist()


@pytest.mark.usefixtures("small")
def test_the_pictures_of_a_large_folder_are_in_order(tmp_path) -> None:
    names = random.Random(0).sample([f"{n:03d}\u00e9.png" for n in range(300)], 40)
    (tmp_path / "a").mkdir()
    for name in names:
        (tmp_path / "a" / name).write_bytes(b"x" * len(name))
    os.symlink("nowhere", tmp_path / "a" / "zzz.png")
    index = listing.list_folder(tmp_path).index
    assert [*index.texts()] == [f"a/{name}" for name in [*sorted(names), "zzz.png"]]
    assert index.faults == {40: "a link that leads nowhere"}
    assert index.times[3] == (tmp_path / index.name(3)).stat().st_mtime_ns


@pytest.mark.usefixtures("small")
def test_a_long_list_of_paths_tells_of_lines_that_are_there_twice(tmp_path) -> None:
    names = [f"{n}.png" for n in [*range(30), 5, 5, 17]]
    (tmp_path / "l.txt").write_text("\r\n".join(names) + "\n\n")
    found = listing.ListSource.listed(tmp_path / "l.txt", ReadAs())
    assert [*found.index.texts()] == names
    assert repeated(found.index).tolist() == [30, 31, 32]
    assert "3 lines for a picture that was named before, such as 5.png" in found.warnings[0]


def test_a_long_list_takes_the_memory_of_a_short_one(monkeypatch) -> None:
    def long(count: int) -> Iterator[tuple[str, Member]]:
        for n in range(count):
            yield f"folder/picture-{n:08d}.jpg", Member("", "", n, time_ns=n + 1)

    for of in (column, members):
        monkeypatch.setattr(of, "ROWS_AT_ONCE", 1 << 10)
        monkeypatch.setattr(of, "HELD_BYTES", 1 << 12)
    monkeypatch.setattr(updates, "KEYS_AT_ONCE", 1 << 10)

    def update_it() -> None:
        old, new = MemberIndex.of(long(20_000)), MemberIndex.of(long(20_100))
        assert len(update("", old, new, Update()).more) == 100

    # the names alone are 1 MB in each list, 2 MB as Python's objects
    assert peak_bytes(update_it) < 2 << 20


def test_a_list_for_which_there_is_no_room_names_the_folder(monkeypatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    found = Column("u1", held_bytes=10)
    found.append(np.zeros(10, np.uint8))
    monkeypatch.setattr(column.os, "write", full)
    with pytest.raises(EnvironmentFault, match=r"TMPDIR.*No space left"):
        found.append(np.zeros(1, np.uint8))


def test_a_list_that_was_cut_off_while_it_is_read_says_so(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(members, "HELD_BYTES", 0)
    path = Path(tmp_path / "i.npz")
    MemberIndex.of(some_members(1, 100)).save(path)
    index = MemberIndex.load(path)
    os.truncate(path, 10)
    with pytest.raises(EnvironmentFault, match=r"i\.npz.*it is shorter than it was"):
        index.name(50)
