"""The ledger: its rules, its files, and jobs that share a run on a folder that lies.

`python -m tests.ledger_plays` plays many more.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
from pathlib import Path

import msgspec
import pytest

from collage_mpi.errors import EnvironmentFault
from collage_mpi.ledger import damage
from collage_mpi.ledger import spans as sp
from collage_mpi.ledger.cells import Cell, Change
from collage_mpi.ledger.owner import CELLS, Owner, cell_size, join
from collage_mpi.ledger.records import (
    LARGEST_BYTES,
    MARK_BYTES,
    Damage,
    Part,
    Record,
    Run,
    decode,
    encode,
    lease_name,
    mark,
    unmarked,
)
from collage_mpi.ledger.store import FolderStore
from tests.ledger_bounded import cases, play, short_times
from tests.ledger_plays import damaged_play, random_play
from tests.ledger_quick import Quick, QuickStore

ME, OTHER = "a" * 32, "b" * 32
RUN = Run(1, 0, 100, 40)


def after(cell: Cell, change: Change) -> Cell:
    """The cell after the record that is proposed."""
    record = cell.proposed(change)
    assert record is not None
    return cell.after(encode(record), record.gen)


def part(*spans: sp.Span, by: str = ME) -> Part:
    return Part(f"{by}-0.npy", 10, 7, spans)


def test_a_part_commits_what_its_owner_still_holds() -> None:
    cell = after(Cell(0, 40), Change(ME, take=20))
    cell = after(cell, Change(OTHER, split=(ME, ((10, 20),))))
    cell = after(cell, Change(ME, (part((5, 15)),), take=5))
    assert cell.record is not None
    assert [each.spans for each in cell.record.parts] == [((5, 10),)]
    assert cell.held(ME) == ((0, 5), (20, 25))
    assert cell.held(OTHER) == ((10, 20),)
    assert cell.free == ((25, 40),)


def test_positions_of_dead_holders_are_taken_in_ever_smaller_shares_and_end_as_error_rows() -> None:
    cell, shares = after(Cell(0, 640), Change(ME, take=640)), []
    for _ in range(4):
        cell = after(cell, Change(OTHER, silent=(ME,), take=640))
        shares.append(cell.times(cell.held(OTHER)))
        cell = after(cell, Change(ME, split=(OTHER, cell.held(OTHER))))
    assert shares == [
        [(1, ((0, 80),))],
        [(2, ((0, 10),))],
        [(3, ((0, 1),))],
        [(4, ((0, 1),))],
    ]


def test_what_does_not_follow_is_damage() -> None:
    cell = after(Cell(0, 40), Change(ME, take=20))
    good = cell.proposed(Change(ME, (part((0, 5)),)))
    assert good is not None
    wrong = {
        "another record before it": {"prev": "0" * 32},
        "rows of what its owner does not hold": {"parts": (part((15, 25)),)},
        "positions twice": {"parts": (part((0, 5)), part((4, 6)))},
        "beyond the cell": {"stop": 50},
        "another number": {"gen": 7},
        "more for somebody else": {"by": OTHER},
    }
    for change in wrong.values():
        with pytest.raises(Damage, match=r"leases/0\.1: "):
            cell.after(encode(msgspec.structs.replace(good, **change)), 1)
    assert cell.after(encode(good), 1).gen == 1


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[]",
        b"\xff" * 9,
        b" " * (LARGEST_BYTES + 1),
        encode(Record(0, 40, 0, "", "../../etc")),
        encode(Record(0, 40, 0, "", ME, (Part("../x-0.npy", 1, 1, ((0, 1),)),))),
        encode(Record(0, 40, 0, "", ME, (part((3, 2)),))),
        encode(Record(0, 40, 0, "", ME)).replace(b"{", b'{"more":1,', 1),
    ],
)
def test_a_record_of_others_is_input(raw: bytes) -> None:
    with pytest.raises(Damage, match=r"leases/0\.0"):
        decode(Record, raw, lease_name(0, 0))


def test_who_joins_second_gets_the_run_that_is_there(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    assert join(store, RUN) == RUN
    assert join(store, Run(1, 0, 7, 7)) == RUN
    with pytest.raises(EnvironmentFault, match="of format 1; this version has format 2"):
        join(store, Run(1, 0, 7, 7, format=2))
    (tmp_path / "run.2.json").write_text('{"format": 2, "what": "is not known here"}')
    with pytest.raises(EnvironmentFault, match="of format 2; this version has format 1"):
        join(store, Run(2, 0, 7, 7))


def test_what_is_no_beat_in_the_folder_of_beats_is_passed_over(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.make()
    (tmp_path / "beats" / "old").mkdir()
    owner = Owner(store, join(store, RUN), clock=itertools.count().__next__)
    for _ in range(20):
        owner.turn(1)
    assert owner.grants
    assert not owner.counts["errors"]


def test_a_file_and_then_its_name_are_on_the_disk_before_a_link_counts(tmp_path: Path) -> None:
    done: list[str] = []

    class Noted:
        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def fsync(self, file: int) -> None:
            path = Path(os.readlink(f"/proc/self/fd/{file}"))
            done.append("folder" if path.is_dir() else "file")

        def link(self, source: str, name: str) -> None:
            done.append("link")

    FolderStore(tmp_path).make()
    assert FolderStore(tmp_path, Noted()).link(lease_name(0, 0), b"text")
    assert done == ["file", "link", "folder"]


def test_a_dead_owner_is_taken_over_though_its_record_was_seen_late(tmp_path: Path) -> None:
    """The watcher's host believes for a minute that the record is missing."""
    hidden: set[str] = set()

    class Late:
        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def open(self, path: str, flags: int, mode: int = 0o666) -> int:
            if path in hidden and flags == os.O_RDONLY:
                raise FileNotFoundError(path)
            return os.open(path, flags, mode)

    now_s = [0.0]
    store, run = FolderStore(tmp_path), Run(1, 0, 20, 10)
    store.make()
    dead, live = (
        Owner(each, join(store, run), clock=lambda: now_s[0])
        for each in (store, FolderStore(tmp_path, Late()))
    )
    dead.rate = live.rate = 1.0
    dead.turn(10)
    hidden.add(f"{tmp_path}/{lease_name(dead.grants[0].start, 0)}")
    for now_s[0] in range(1, 100):
        if now_s[0] == 60:
            hidden.clear()
        live.turn(10)
        while live.grants:
            grant = live.grants.popleft()
            live.wrote(part(*grant.spans, by=live.name))
    assert live.counts["taken over"] == 1


def test_a_file_system_without_links_is_told() -> None:
    class NoLinks:
        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def link(self, source: str, target: str) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    with pytest.raises(EnvironmentFault, match="has no hard links"):
        FolderStore("/tmp", NoLinks()).link("no-links", b"")


def test_a_lone_job_does_all_and_leaves_two_files_a_cell(tmp_path: Path) -> None:
    now = [0.0]
    store = FolderStore(tmp_path)
    store.make()
    (tmp_path / "parts").mkdir()
    owner = Owner(store, join(store, RUN), clock=lambda: now[0])
    owner.rate = 10.0
    rows: list[int] = []
    while not owner.complete and now[0] < 100:
        now[0] += 1
        owner.turn(30 - 10 * len(owner.grants))
        if owner.grants:
            spans = owner.grants.popleft().spans
            rows += [p for first, stop in spans for p in range(first, stop)]
            owner.wrote(Part(f"{owner.name}-{len(rows)}.npy", 1, 1, spans))
    assert sorted(rows) == [*range(100)]
    left = sorted(path.name for path in (tmp_path / "leases").iterdir())
    assert [name.partition(".")[0] for name in left] == ["0", "0", "40", "40", "80", "80"]
    assert not damage.examine(store, RUN).damage


def test_cells_are_few_and_hold_whole_units() -> None:
    assert cell_size(10**9, 9, 100.0) % 9 == 0
    assert -(-(10**9) // cell_size(10**9, 9, 100.0)) <= CELLS
    assert cell_size(100, 9, 0.0) == 9


@pytest.mark.parametrize("owners", [2, 3])
@pytest.mark.parametrize(("cell", "want"), [(3, 3), (2, 2), (1, 1)])
def test_some_schedules_of_few_owners(owners: int, cell: int, want: int) -> None:
    every = [*cases(owners, 2)]
    with short_times():
        for case in random.Random(owners).sample(every, 100):
            assert play(owners, cell, want, case).complete


@pytest.mark.parametrize("seed", range(24))
def test_random_plays_on_a_folder_that_lies(seed: int) -> None:
    random_play(seed)


@pytest.mark.parametrize("seed", range(12))
def test_a_record_that_is_removed_or_changed_is_told_by_name_and_repaired(seed: int) -> None:
    damaged_play(seed)


def test_a_mark_that_was_cut_does_not_count() -> None:
    text, whole = b"{}", mark(20, "0" * 32)
    assert unmarked(text + whole) == (text, (20, "0" * 32))
    for size in range(35):
        assert unmarked(text + whole[:size].ljust(MARK_BYTES)) == (text, None)


def test_a_job_that_leaves_gives_nothing_back_whose_rows_wait_for_their_record() -> None:
    run, now = Run(1, 0, 40, 40), [0.0]
    truth = Quick(run)
    ones = [
        Owner(QuickStore(truth, lambda operation: None), run, 1, lambda: now[0], name)
        for name in (ME, OTHER)
    ]
    for one in ones:
        while not one.held(0) and now[0] < 100:
            now[0] += 1
            one.turn(10)
        one.wrote(Part(f"{one.name}-0.npy", 1, 1, one.held(0)))
    ones[1].turn()
    refused = ones[0].counts["failed"]
    while not ones[0].leave() and now[0] < 200:
        now[0] += 1
    assert ones[0].counts["failed"] > refused
    assert truth.counted == 20
