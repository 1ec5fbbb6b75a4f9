"""The ledger: its rules, its files, and jobs that share a run on a folder that lies.

`python -m tests.ledger_plays` plays many more.
"""

from __future__ import annotations

import errno
import itertools
import os
import random
from pathlib import Path
from typing import Any

import msgspec
import pytest

from collage_mpi.errors import EnvironmentFault
from collage_mpi.ledger import damage
from collage_mpi.ledger import spans as sp
from collage_mpi.ledger.cells import Cell, Change, last_rows
from collage_mpi.ledger.jobs import jobs, note, register
from collage_mpi.ledger.owner import CELLS, Owner, cell_size, join
from collage_mpi.ledger.reading import Found, View, counted, runs
from collage_mpi.ledger.records import (
    LARGEST_BYTES,
    MARK_BYTES,
    Damage,
    Part,
    Record,
    Run,
    beat_name,
    decode,
    encode,
    lease_name,
    lease_of,
    mark,
    unmarked,
)
from collage_mpi.ledger.store import FolderStore
from tests.ledger_bounded import cases, play, short_times
from tests.ledger_defects import PLANTED, texts_of, tomllib
from tests.ledger_plays import damaged_play, random_play
from tests.ledger_quick import Quick, QuickStore

ME, OTHER = "a" * 32, "b" * 32
RUN = Run(1, 0, 100, 40)


def after(cell: Cell, change: Change) -> Cell:
    """The cell after the record that is proposed."""
    record = cell.proposed(change)
    assert record is not None
    return cell.after(encode(record), record.gen)


def part(*spans: sp.Span, **more: Any) -> Part:
    return Part("images-0001-000001.parquet", 10, 7, spans, **more)


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
        encode(Record(0, 40, 0, "", ME, (Part("../images-0001-000001.parquet", 1, 1, ((0, 1),)),))),
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
    with pytest.raises(EnvironmentFault, match="of format 5; this version has format 2"):
        join(store, Run(1, 0, 7, 7, format=2))
    (tmp_path / "run.2.json").write_text('{"format": 2, "what": "is not known here"}')
    with pytest.raises(EnvironmentFault, match="of format 2; this version has format 5"):
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
            live.wrote(part(*grant.spans))
    assert live.counts["taken over"] == 1


@pytest.mark.parametrize(
    ("number", "error", "text"),
    [
        (errno.EPERM, EnvironmentFault, "has no hard links"),
        (errno.ENOSPC, OSError, "No space"),  # a refusal would mean that somebody was first
    ],
)
def test_a_link_that_failed_is_told(
    tmp_path: Path, number: int, error: type[Exception], text: str
) -> None:
    class Failing:
        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def link(self, source: str, target: str) -> None:
            raise OSError(number, os.strerror(number))

    with pytest.raises(error, match=text):
        FolderStore(tmp_path, Failing()).link("name", b"")
    assert not [*tmp_path.iterdir()]


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
            owner.wrote(Part(f"images-0001-{len(rows):06d}.parquet", 1, 1, spans))
    assert sorted(rows) == [*range(100)]
    left = sorted(path.name for path in (tmp_path / "leases").iterdir())
    assert [name.partition(".")[0] for name in left] == ["0", "0", "40", "40", "80", "80"]
    assert not damage.examine(store, RUN).damage


def test_the_last_records_are_on_the_disk_before_the_run_is_marked(tmp_path: Path) -> None:
    """Who made them may have died before it could sync their folder."""
    done: list[str] = []

    class Noted:
        def __getattr__(self, name: str) -> object:
            return getattr(os, name)

        def fsync(self, file: int) -> None:
            done.append(Path(os.readlink(f"/proc/self/fd/{file}")).name)
            os.fsync(file)

        def link(self, source: str, name: str) -> None:
            done.append(f"link {Path(name).name}")
            os.link(source, name)

    store = FolderStore(tmp_path, Noted())
    store.make()
    now = [0.0]
    first, second = (Owner(store, join(store, RUN), clock=lambda: now[0]) for _ in range(2))
    taken = 0
    while taken < 100 or first.waiting:
        now[0] += 1
        first.turn(100 - taken)
        while first.grants:
            spans = first.grants.popleft().spans
            taken += sum(stop - start for start, stop in spans)
            first.wrote(Part(f"images-0001-{taken:06d}.parquet", 1, 1, spans))
    done.clear()
    while not second.complete and now[0] < 100:
        now[0] += 1
        second.turn(100)
    assert "leases" in done[: done.index("link COMPLETE.1")]


def test_an_owner_counts_its_rows_by_the_records_that_it_knows(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.make()
    join(store, RUN)
    mine, other = (Owner(store, RUN, name=name, place=0) for name in (ME, OTHER))
    mine.turn(60)
    mine.wrote(part((0, 50)))
    mine.wrote(msgspec.structs.replace(part((50, 55)), file="images-0001-000002.parquet"))
    mine.turn()
    assert mine.rows == 55
    mine.leave()
    other.turn(60)
    other.turn(60)
    assert other.held(0) == other.held(40) == ()
    assert other.rows == 0


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


def test_planted_defects_fit_the_text_of_the_ledger() -> None:
    """`python -m tests.ledger_defects` says which plays find each."""
    planted = tomllib.loads(PLANTED.read_text())["planted"]
    assert [bool(texts_of(each["changes"])) for each in planted] == [True] * 12


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
    stores = [QuickStore(truth, lambda operation: None) for _ in range(2)]
    ones = [
        Owner(store, run, 1, lambda: now[0], name)
        for store, name in zip(stores, (ME, OTHER), strict=True)
    ]
    stores[0].replace(part((0, 20)).name, b"[[0, 20]]")
    for one in ones:
        while not one.held(0) and now[0] < 100:
            now[0] += 1
            one.turn(10)
        one.wrote(part(*one.held(0)))
    ones[1].turn()
    refused = ones[0].counts["failed"]
    while not ones[0].leave() and now[0] < 200:
        now[0] += 1
    assert ones[0].counts["failed"] > refused
    assert truth.counted == 20


def test_a_row_is_replaced_only_with_a_reason_and_never_once_its_cell_is_closed() -> None:
    cell = after(Cell(0, 40), Change(ME, take=20))
    cell = after(cell, Change(ME, (part((0, 10), errors=((3, 4),)),)))
    assert cell.record is not None
    wrong = msgspec.structs.replace(cell.record, gen=2, prev=cell.digest, by=OTHER)
    for again in (part((3, 4)), part((3, 4), (12, 13), reason="refuted")):
        with pytest.raises(Damage, match="it is no record of its cell"):
            cell.after(encode(msgspec.structs.replace(wrong, parts=(*cell.parts, again))), 2)
    newer = Part("images-0002-000001.parquet", 1, 1, ((3, 4), (12, 13)), reason="refuted")
    cell = after(cell, Change(OTHER, (part((2, 4)), newer)))
    assert [(each.file, each.spans) for each in last_rows(cell.parts)] == [
        ("images-0001-000001.parquet", ((0, 3), (4, 10))),
        ("images-0002-000001.parquet", ((3, 4),)),
    ]
    assert not any(each.errors for each in last_rows(cell.parts))
    assert cell.proposed(Change(OTHER, (newer,))) is None  # its reply was lost
    cell = after(cell, Change(ME, (part((10, 20)),), take=20))
    cell = after(cell, Change(ME, (part((20, 40)),)))
    assert cell.closed
    late = msgspec.structs.replace(cell.record, gen=5, prev=cell.digest, by=OTHER)
    again = part((1, 2), reason="refuted")
    with pytest.raises(Damage, match="it does not follow from"):
        cell.after(encode(msgspec.structs.replace(late, parts=(*cell.parts, again))), 5)
    assert cell.proposed(Change(OTHER, (part((1, 2), reason="refuted"),))) is None


def test_the_job_that_made_the_run_begins_at_its_first_cell_and_goes_in_order(
    tmp_path: Path,
) -> None:
    store = FolderStore(tmp_path)
    store.make()
    run = join(store, Run(1, 0, 1000, 10, by=ME))
    begun = Owner(store, run, name=ME, clock=itertools.count().__next__)
    begun.turn(20)
    begun.turn(20)
    assert [grant.start for grant in begun.grants] == [0, 10, 20, 30]
    other = Owner(store, run, clock=itertools.count().__next__, place=50)
    other.turn(10)
    assert [grant.start for grant in other.grants] == [500]


def test_a_whole_run_has_one_job_and_a_second_one_is_refused_while_it_lives(tmp_path: Path) -> None:
    store, now = FolderStore(tmp_path), [0.0]
    store.make()
    run = join(store, Run(1, 0, 100, 100, by=ME, whole=True))
    first, second, third = (Owner(store, run, 1, lambda: now[0], name * 32) for name in "abc")
    first.rate, second.rate, first.ahead = 0.1, 10.0, {0: (10, 100)}
    first.turn(10)
    assert [grant.spans for grant in first.grants] == [((0, 100),)]

    def both() -> None:
        while now[0] < 40:
            now[0] += 0.5
            first.turn()
            second.turn(100)

    with pytest.raises(EnvironmentFault, match="another job is at work on this run"):
        both()
    assert View(store, run).look().holds == {first.name: ((0, 100),)}
    while not third.held(0) and now[0] < 200:  # the first one has died
        now[0] += 1
        third.turn(100)
    assert sp.count(third.held(0)) < 100  # a share, as with all who have died
    fourth = Owner(store, run, 1, lambda: now[0])
    fourth.turn(100)
    fourth.turn(100)
    assert not fourth.holding


def test_each_job_gets_the_first_number_that_nobody_has(tmp_path: Path) -> None:
    class Lost:
        """Of two links the reply is lost: the first was not made, the second was."""

        links = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def link(self, source: str, target: str) -> None:
            self.links += 1
            if self.links != 1:
                os.link(source, target)
            if self.links < 3:
                raise OSError(errno.EIO, os.strerror(errno.EIO))

        def listdir(self, path: str) -> list[str]:
            return []  # it is old

    store = FolderStore(tmp_path)
    store.make()
    assert register(store, ME, {"host": "a"}) == 1
    assert register(FolderStore(tmp_path, Lost()), OTHER, {}, lambda seconds: None) == 2
    note(store, 1, ME, {"host": "a", "ended": "complete"})
    assert register(store, "c" * 32, {}) == 3
    found = jobs(store)
    assert [found[number].owner[0] for number in (1, 2, 3)] == ["a", "b", "c"]
    assert found[1].facts == {"host": "a", "ended": "complete"}


def test_a_number_is_not_given_again_while_parts_of_its_job_are_there(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.make()
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "tasks-0003-000001.npy").touch()
    (tmp_path / "parts" / "images-0004-000001.parquet").touch()
    assert register(store, ME, {}, rows="parts") == 5


def test_a_mark_of_the_end_that_was_cut_is_damage_and_moved_away(tmp_path: Path) -> None:
    store, run = FolderStore(tmp_path), Run(1, 0, 4, 4)
    store.make()
    whole_run(store, run)
    assert not damage.examine(store, run).damage
    (tmp_path / "COMPLETE.1").write_bytes(b'{"number":1,')
    found = damage.examine(store, run)
    assert list(found.damage) == found.orphans == ["COMPLETE.1"]
    damage.repair(store, run, found)
    assert not damage.examine(store, run).damage


def test_repairing_is_advised_only_where_it_is_done() -> None:
    told = {name: str(Damage(name, "it is damaged")) for name in ("leases/0.1", "COMPLETE.1")}
    assert all("--repair" in text for text in told.values())
    for name in ("run.1.json", "jobs/0001.json", "thresholds/1.json"):
        assert str(Damage(name, "it is damaged")).endswith("Restore the file from a copy.")


def whole_run(store: FolderStore, run: Run, name: str = ME) -> None:
    """One job does all positions of a run; the first of each cell is an error row."""
    now = [0.0]
    owner = Owner(store, run, 1, lambda: now[0], name)
    while not owner.complete and now[0] < 300:
        now[0] += 1
        owner.turn(10)
        while owner.grants:
            grant = owner.grants.popleft()
            errors = sp.common(grant.spans, ((grant.start, grant.start + 1),))
            file = f"images-{run.number:04d}-{grant.spans[0][0]:06d}.parquet"
            owner.wrote(Part(file, 1, 1, grant.spans, errors))


def test_readers_find_the_last_rows_of_all_runs(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.make()
    run = join(store, RUN)
    view = View(store, run)
    assert view.look() == Found((), {}, 0, False, ())
    now = itertools.count()
    Owner(store, run, 1, now.__next__, OTHER, 0).turn(10)
    assert view.look().holds == {OTHER: ((0, 10),)}
    whole_run(store, run)
    found = view.look()
    assert found.complete
    assert found.counted == ((0, 100),)
    assert found.errors == ((0, 1), (40, 41), (80, 81))
    again = join(store, Run(2, 100, 110, 10, again=found.errors))
    assert runs(store) == [run, again]
    assert sp.count(sp.union(*(each.spans for each in counted(store)))) == 100
    whole_run(store, again)
    rows = [p for each in counted(store) for first, stop in each.spans for p in range(first, stop)]
    assert sorted(rows) == [p for p in range(110) if p not in (0, 40, 80)]
    last = max(gen for start, gen in leases(tmp_path) if start == 40)
    (tmp_path / lease_name(40, last)).unlink()
    found = View(store, run).look()
    assert not found.complete
    assert found.late == (lease_name(40, last),)


def leases(folder: Path) -> list[tuple[int, int]]:
    return [lease for path in (folder / "leases").iterdir() if (lease := lease_of(path.name))]


def test_a_folder_that_takes_no_new_file_is_told_and_a_suspended_job_is_not() -> None:
    """Beats are written in place, so they get through on a full disk."""

    class Full(QuickStore):
        room = False

        def link(self, name: str, data: bytes) -> bool:
            if not self.room:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().link(name, data)

    now = [0.0]
    store = Full(Quick(RUN), lambda operation: None)
    owner = Owner(store, RUN, 1, lambda: now[0], lost_s=100.0)  # type: ignore[arg-type]
    owner.turn(10)
    now[0] += 300  # it was suspended
    owner.turn(10)
    while now[0] < 370:
        now[0] += 1
        owner.turn(0 if now[0] % 7 else 10)  # there is not always something to link
    store.room = True
    owner.turn(10)
    assert owner.grants
    store.room = False

    def go_on() -> None:
        for now[0] in range(400, 600):
            owner.turn(0 if now[0] % 7 else 20)

    with pytest.raises(EnvironmentFault, match="has not worked for 100 s"):
        go_on()
    assert 490 < now[0] < 520


def test_a_part_in_very_many_pieces_is_committed_and_can_be_read(tmp_path: Path) -> None:
    now = [0.0]
    store, run = FolderStore(tmp_path), Run(1, 0, 140_000, 140_000)
    store.make()
    owner = Owner(store, join(store, run), 1, lambda: now[0], ME)
    owner.turn(140_000)
    pieces = tuple((p, p + 1) for p in range(0, 140_000, 2))
    owner.wrote(part(*pieces))
    owner.turn()
    assert View(store, run).look().counted == pieces


def test_the_mark_of_a_packed_cell_is_in_one_block_of_its_file() -> None:
    for name in (ME, OTHER):
        for stop in (9, 99, 999):
            record = Cell(0, stop).proposed(Change(name, take=stop))
            assert record is not None
            assert len(encode(record)) % MARK_BYTES == 0


def test_who_is_told_that_there_is_a_file_waits_until_it_sees_it(tmp_path: Path) -> None:
    """This host asked for the run before it was made, so it believes for a minute that none is."""
    now = [0.0]

    class Late:
        def __getattr__(self, name: str) -> Any:
            return getattr(os, name)

        def open(self, path: str, flags: int, mode: int = 0o666) -> int:
            if now[0] < 60 and flags == os.O_RDONLY and path.endswith("1.json"):
                raise FileNotFoundError(path)
            return os.open(path, flags, mode)

    def sleep(seconds: float) -> None:
        now[0] += seconds

    join(FolderStore(tmp_path), RUN)
    assert join(FolderStore(tmp_path, Late()), Run(1, 0, 7, 7), sleep) == RUN
    assert now[0] == 60


def test_a_job_that_is_alone_completes_the_run_as_soon_as_its_rows_count(tmp_path: Path) -> None:
    store, now = FolderStore(tmp_path), [0.0]
    store.make()
    run = join(store, Run(1, 0, 20, 10, by=ME))
    first, second = (Owner(store, run, 1, lambda: now[0], name * 32) for name in "ab")
    first.turn(20)
    (tmp_path / beat_name(ME)).unlink()  # a listing that is old lacks it, too
    for now[0] in (1.0, 2.0):
        second.turn(20)
    assert second.others == 20
    assert not second.alone
    assert not second.settle()
    first.turn(1)
    assert first.holding
    assert first.alone
    first.wrote(part((0, 20)))
    now[0] += 1
    first.turn()
    assert not first.complete
    assert first.settle()
    assert second.settle()


def test_who_is_known_to_have_died_is_taken_over_at_once(tmp_path: Path) -> None:
    store, now = FolderStore(tmp_path), [0.0]
    store.make()
    run = join(store, Run(1, 0, 20, 10, by=ME))
    first, second = (Owner(store, run, 1, lambda: now[0], name * 32) for name in "ab")
    first.turn(20)
    for now[0] in (1.0, 2.0):
        second.turn(5)
    assert not second.holding
    second.died(first.name)
    now[0] += 1
    second.turn(5)
    assert second.holding


ALL, HALF = {"silent": (ME,)}, {"split": (ME, ((5, 10),))}


@pytest.mark.parametrize(
    ("lost", "removed"), [([ALL], False), ([ALL, ALL], True), ([HALF, ALL], False)]
)
@pytest.mark.parametrize("told", [False, True])
def test_a_part_that_no_record_names_is_removed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    lost: list[dict[str, Any]],
    removed: bool,
    told: bool,
) -> None:
    """Its job was suspended meanwhile, and lost positions of one cell, or of both. `told`: it is
    told that its records were refused, though they were made."""
    store, now = FolderStore(tmp_path), [0.0]
    store.make()
    (tmp_path / "parts").mkdir()
    run = join(store, Run(1, 0, 20, 10, by=ME))
    first, second = (Owner(store, run, 1, lambda: now[0], name * 32) for name in "ab")
    first.turn(20)
    for start, how in zip((0, 10), lost, strict=False):
        second._look(start)
        second._propose(start, Change(second.name, take=10, **how))
    mine = part((0, 20))
    (tmp_path / mine.name).write_text("rows")
    first.wrote(mine)
    if told:
        link = store.link
        monkeypatch.setattr(store, "link", lambda *args: link(*args) and False)
    now[0] += 1
    first.turn()
    assert (tmp_path / mine.name).exists() is not removed


@pytest.mark.parametrize("seen", [True, False])
def test_a_part_whose_positions_others_did_is_removed_though_the_disk_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seen: bool
) -> None:
    """`seen`: the job knows it, and its record takes other positions; else its record is void,
    since the cell was packed."""
    store, now = FolderStore(tmp_path), [0.0]
    store.make()
    (tmp_path / "parts").mkdir()
    run = join(store, Run(1, 0, 20, 20 if seen else 10, by=ME))
    first, second = (Owner(store, run, 1, lambda: now[0], name * 32) for name in "ab")
    first.turn(10)
    second._look(0)
    second._propose(0, Change(second.name, split=(ME, ((0, 10),))))
    theirs = msgspec.structs.replace(part((0, 10)), file="images-0001-000002.parquet")
    second.wrote(theirs)
    now[0] += 1
    second.turn()
    if seen:
        first._look(0)
    mine = part((0, 10))
    (tmp_path / mine.name).write_text("rows")
    remove, calls = store.remove, []

    def fails_once(name: str) -> None:
        calls.append(name)
        if len(calls) == 1:
            raise OSError(errno.EIO, "bad disk")
        remove(name)

    monkeypatch.setattr(store, "remove", fails_once)
    first.wrote(mine)
    for _ in range(3):
        now[0] += 1
        first.turn(10 if seen else 0)
    assert calls[:2] == [mine.name] * 2
    assert not (tmp_path / mine.name).exists()
    assert (sp.count(first.held(0)) == 10) is seen


def test_a_server_that_hangs_for_minutes_kills_nobody() -> None:
    now = [0.0]
    truth = Quick(RUN)
    first, second = (
        Owner(QuickStore(truth, lambda operation: None), RUN, 1, lambda: now[0], name)  # type: ignore[arg-type]
        for name in (ME, OTHER)
    )
    first.turn(100)
    first.turn(100)
    for now[0] in (*range(1, 16), *range(190, 200)):
        if now[0] < 8:
            first.turn()
        second.turn(5)
    assert not second.holding


def test_who_lives_keeps_its_positions_when_another_holder_of_the_cell_has_died() -> None:
    now = [0.0]
    run = Run(1, 0, 40, 40)
    truth = Quick(run)
    owners = [
        Owner(QuickStore(truth, lambda operation: None), run, 1, lambda: now[0], name * 32)  # type: ignore[arg-type]
        for name in "abc"
    ]
    dead, live, taker = owners
    for owner in (dead, live):
        while not owner.holding and now[0] < 60:
            now[0] += 1
            owner.turn(10)
    held = live.held(0)
    assert held
    while now[0] < 160:
        now[0] += 1
        if now[0] % 4 == 0:  # it sees later than the other that somebody is silent
            live.turn()
        taker.turn(40)
    assert taker.counts["taken over"]
    assert not sp.minus(held, truth.cells[0].held(live.name))


def test_while_nothing_can_be_written_nobody_is_silent() -> None:
    now, truth = [0.0], Quick(RUN)

    class ReadOnly(QuickStore):
        def overwrite(self, name: str, data: bytes) -> None:
            if 10 <= now[0] < 100:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            super().overwrite(name, data)

    first, second = (
        Owner(ReadOnly(truth, lambda operation: None), RUN, 1, lambda: now[0], name)  # type: ignore[arg-type]
        for name in (ME, OTHER)
    )
    first.turn(100)
    first.turn(100)
    for now[0] in range(1, 120):
        second.turn(5)
        first.turn()
    assert not second.holding


def test_many_jobs_that_begin_at_once_get_their_numbers_soon() -> None:
    class Old(QuickStore):
        def names(self, folder: str) -> list[str]:
            return []

    truth = Quick(RUN)
    stores = [Old(truth, lambda operation: None) for _ in range(200)]
    numbers = [register(store, f"{n:032x}", {}) for n, store in enumerate(stores)]  # type: ignore[arg-type]
    assert len({*numbers}) == 200
    assert numbers[:8] == [*range(1, 9)]
    assert truth.operations["link"] < 10_000  # 200 * 201 / 2 if each tried all
