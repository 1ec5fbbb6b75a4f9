"""What an update of a run does with pictures that are new, changed, moved or gone."""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from jobs_by_hand import GOOD, Job, answer_to

from collage_mpi.errors import CollageError, EnvironmentFault, UsageError
from collage_mpi.job.plan import make_plan
from collage_mpi.job.run import next_run
from collage_mpi.ledger.reading import runs
from collage_mpi.results import read_results, verify_run
from collage_mpi.results.export import NameBook
from collage_mpi.shards import ShardSet, write_shard
from collage_mpi.shards.members import FRESH_NS, Member, MemberIndex
from collage_mpi.shards.reader import as_before
from collage_mpi.shards.update import AGAIN, SAME, Update, compare, update

PLAYS = 3
MOST_JOBS = 40  # until a folder that seldom changes is done
DIGEST = b"%016d"


def listed(*members: tuple, digests: bool = True, listed_ns: int = 0) -> MemberIndex:
    """A list of members, each (name, size, time, digest or fault)."""
    found = [
        Member(name, name, size, time_ns=time_ns, fault=about if isinstance(about, str) else None)
        for name, size, time_ns, about in members
    ]
    index = MemberIndex.of((each.id, each) for each in found)
    index = index.listed_at(listed_ns) if listed_ns else index
    raw = [DIGEST % (0 if isinstance(about, str) else about) for *_, about in members]
    rows = [np.frombuffer(each, np.uint8) * any(each != b"0"[0] for each in each) for each in raw]
    index.__dict__["digests"] = np.array(rows, np.uint8) if digests else None
    return index


def said(old: MemberIndex, new: MemberIndex, *, content: bool = False) -> tuple:
    found, changed, by_time, touched, _, more = compare(old, new, content=content)
    rows = [np.flatnonzero(each).tolist() for each in (changed, by_time, touched)]
    return (found.tolist(), *rows, more.tolist())


A, B = ("a", 5, 50, 1), ("b", 6, 60, 2)


@pytest.mark.parametrize(
    ("new", "digests", "expected"),
    [
        ([A, B], True, ([0, 1], [], [], [], [])),
        ([B, ("c", 5, 70, 3)], True, ([-1, 0], [], [], [], [1])),
        ([("a", 5, 51, 9), B], True, ([0, 1], [0], [], [0], [])),  # rewritten
        ([("a", 5, 50, 9), B], True, ([0, 1], [0], [], [0], [])),  # its time was put back
        ([("a", 5, 51, 1), B], True, ([0, 1], [], [], [0], [])),  # touched
        ([("a", 5, 51, 1), B], False, ([0, 1], [0], [0], [0], [])),  # perhaps
        ([("a", 7, 50, 1), B], False, ([0, 1], [0], [], [0], [])),  # of another size
        ([("a", 0, 0, "leads nowhere"), B], True, ([-1, 1], [], [], [], [])),
        ([B, A, ("a", 5, 50, 1)], True, ([1, 0], [], [], [], [2])),  # listed twice
    ],
)
def test_what_has_changed_between_two_lists(new, digests, expected) -> None:
    assert said(listed(A, B, digests=digests), listed(*new, digests=digests)) == expected


def test_a_name_that_is_there_twice_is_two_pictures_and_the_last_one_goes() -> None:
    assert said(listed(A, B, A), listed(A, B, A))[0] == [0, 1, 2]
    assert said(listed(A, B, A), listed(B, A))[0] == [1, 0, -1]


def test_a_faulty_picture_stays_so_until_it_can_be_read() -> None:
    bad = ("a", 0, 0, "leads nowhere")
    assert said(listed(bad, B), listed(bad, B)) == ([0, 1], [], [], [], [])
    assert said(listed(bad, B), listed(A, B)) == ([0, 1], [0], [], [0], [])
    assert said(listed(B), listed(B, bad)) == ([0], [], [], [], [1])


@pytest.mark.parametrize(
    ("new", "found", "changed", "more"),
    [
        ([("x/a", 5, 50, 1), B], [0, 1], [], []),  # moved
        ([("a", 6, 60, 2), ("b", 5, 50, 1)], [1, 0], [], []),  # swapped
        ([A, ("c", 5, 50, 1), B], [0, 2], [], [1]),  # copied
        (
            [("a", 9, 90, 9), ("c", 5, 50, 1), B],
            [1, 2],
            [],
            [0],
        ),  # and replaced
        ([("a", 9, 90, 9), B], [0, 1], [0], []),
    ],
)
def test_by_content_a_row_goes_with_the_bytes(new, found, changed, more) -> None:
    where = said(listed(A, B), listed(*new), content=True)
    assert (where[0], where[1], where[4]) == (found, changed, more)


def test_a_picture_that_was_listed_within_two_seconds_of_its_change_is_read_again() -> None:
    at = 10**18
    for ago, again in ((FRESH_NS - 1, [0]), (FRESH_NS, [])):
        one = ("a", 5, at - ago, 1)
        old = listed(one, digests=False, listed_ns=at)
        new = listed(one, digests=False, listed_ns=at + FRESH_NS + 1)
        assert said(old, new)[1] == again
        assert said(new, new)[1] == []
        assert update("", old, new, None).again.tolist() == []  # no update is asked for


@pytest.mark.parametrize(("touched", "again"), [(AGAIN, 2), (SAME, 0)])
def test_many_pictures_of_another_time_alone_are_asked_about(touched, again) -> None:
    rows = [(f"{n:02d}", 5, 50, 1) for n in range(11)]
    old = listed(*rows, digests=False)

    def later(count: int) -> MemberIndex:
        new = [(name, size, at + (n < count), 1) for n, (name, size, at, _) in enumerate(rows)]
        return listed(*new, digests=False)

    assert len(update("photos", old, later(1), Update()).again) == 1
    with pytest.raises(UsageError, match=r"photos: 2 of 11 pictures .*--touched same .*--key cont"):
        update("photos", old, later(2), Update())
    assert len(update("photos", old, later(2), Update(touched=touched)).again) == again


def test_pictures_that_are_gone_are_marked_and_found_again() -> None:
    found = update("", listed(A, B), listed(B), Update())
    assert (found.known.live.tolist(), found.removed) == ([False, True], 1)
    again = update("", found.known, listed(B), Update())
    assert (again.removed, again.renamed) == (0, False)
    there = update("", found.known, listed(A, B), Update())
    assert there.known.live.all()
    assert there.renamed
    assert len(there.again) == len(there.more) == 0


def test_another_name_is_recorded() -> None:
    moved = update("", listed(A, B), listed(("x", 5, 50, 1), B), Update(), content=True)
    assert moved.renamed
    assert moved.known.raw_names() == [b"x", b"b"]
    assert not update("", listed(A, B), listed(B, A), Update(), content=True).renamed


# ---- plays ------------------------------------------------------------------


class Folder:
    """A folder of pictures that changes.

    Attributes:
        there: name -> bytes.
        past: all bytes that a picture ever had.
        ever: number of pictures that were ever made.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.root, self.random = root, random.Random(seed)
        self.there: dict[str, bytes] = {}
        self.past: list[bytes] = []
        self.ever, self.ns, self.now_ns = 0, 10**18, 2 * 10**18
        root.mkdir()
        for _ in range(5):
            self.new()

    def write(self, name: str, data: bytes) -> None:
        path = self.root / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)
        self.there[name] = data
        self.past.append(data)
        if self.random.random() < 0.7:  # otherwise it is written now, by a clock of seconds
            self.touch(name)
        else:
            os.utime(path, ns=(self.now_ns, self.now_ns))

    def time_ns(self) -> int:
        """The time at which a list is begun; some time passes between two of them."""
        self.now_ns += 10 * 10**9
        return self.now_ns + 10**9 - 1

    def touch(self, name: str) -> None:
        self.ns += 10**6
        os.utime(self.root / name, ns=(self.ns, self.ns))

    def data(self) -> bytes:
        self.ever += 1
        return (GOOD if self.random.random() < 0.8 else b"broken  ") + b"%09d" % self.ever

    def new(self) -> None:
        self.write(f"{self.random.choice(('', 'x/', 'y/'))}{self.ever:04d}.png", self.data())

    def some(self) -> str:
        return self.random.choice([*self.there])

    def change(self) -> None:
        kinds = ("new", "rewrite", "touch", "remove", "move", "copy", "back", "restore")
        what = self.random.choice(kinds)
        name = self.some()
        if what == "new" or (what in ("remove", "move") and len(self.there) < 3):
            self.new()
        elif what == "rewrite":
            self.write(name, self.data())
        elif what == "touch":
            self.touch(name)
        elif what == "restore":
            self.write(name, self.random.choice(self.past))
        elif what == "copy":
            self.write(f"copy{self.ever:04d}.png", self.there[name])
            self.ever += 1
        elif what == "back":  # a name that was there before, or not
            self.write(f"{self.random.randrange(self.ever):04d}.png", self.data())
        else:
            data = self.there.pop(name)
            (self.root / name).unlink()
            if what == "move":
                self.write(f"moved{self.ever:04d}.png", data)
                self.ever += 1


def check(folder: Folder, out: Path, *, prune: bool) -> None:
    """Each picture has one row, which is the answer to its bytes; others are marked or dropped."""
    assert verify_run(out).ok, verify_run(out).problems
    run = read_results(out)
    book = NameBook(out, run.manifest)
    ids, gone = book.ids(run.images).tolist(), book.removed(run.images)
    marks = gone["removed"].tolist() if gone else [False] * len(ids)
    rows: dict[str, int | None] = {}
    for row, name, removed in zip(run.images, ids, marks, strict=True):
        if removed:
            assert not prune
            assert row["answered"]  # an error row of a picture that is gone says nothing
            continue
        assert name not in rows
        rows[name] = int(row["predicted"]) if row["answered"] else None
    assert rows == {name: answer_to(data) for name, data in folder.there.items()}
    errors = None in rows.values()
    assert run.manifest["status"] == ("complete_with_errors" if errors else "complete")


@pytest.mark.parametrize(
    ("key", "limit"), [("path", 1 << 20), ("path", 0), ("content", 1 << 20), ("content", 0)]
)
def test_a_folder_that_changes_has_each_picture_once(key, limit, tmp_path, monkeypatch) -> None:
    """`limit`: bytes of a source that is read to know its pictures' digests, if not by content."""
    monkeypatch.setattr("collage_mpi.shards.source.HASH_LIMIT_BYTES", limit)
    for seed in range(PLAYS):
        chance = random.Random(seed)
        folder, out = Folder(tmp_path / f"{seed}", seed), tmp_path / f"{seed}.run"
        out.mkdir()
        clock = SimpleNamespace(time_ns=folder.time_ns, monotonic_ns=time.monotonic_ns)
        monkeypatch.setattr("collage_mpi.shards.source.time", clock)

        def come(name: str = "a", prune: bool = False) -> Job:
            how = Update(touched=AGAIN, prune=prune)
            return Job(folder.root, out, how, name * 32, key=key)  # noqa: B023

        come().begin().do([])
        for _ in range(chance.randrange(2, 6)):
            for _ in range(chance.randrange(4)):
                folder.change()
            prune = chance.random() < 0.3
            for _ in range(MOST_JOBS):
                job = come(prune=prune)
                if job.mine is None:
                    break
                other = come("b", prune) if chance.random() < 0.3 else None
                job.begin()
                if other is not None:  # a second update at once: it joins, or is refused
                    with suppress(EnvironmentFault):
                        other.begin()
                if chance.random() < 0.2:
                    folder.change()  # while the job is at work
                some = chance.sample(job.lacking, chance.randrange(len(job.lacking) + 1))
                job.do(job.lacking if chance.random() < 0.6 else some)  # it may be killed
            check(folder, out, prune=prune)


@pytest.mark.parametrize("moved", [True, False])
@pytest.mark.parametrize("key", ["path", "content"])
def test_a_picture_that_changes_before_it_is_read_is_not_the_answer_to_what_was_listed(
    key, moved, tmp_path
) -> None:
    folder, out = Folder(tmp_path / "photos", 0), tmp_path / "run"
    out.mkdir()
    name = next(name for name, data in folder.there.items() if data.startswith(GOOD))
    first = folder.there[name]
    Job(folder.root, out, key=key).begin()
    if moved:
        (folder.root / name).rename(folder.root / "moved.png")
        folder.there["moved.png"] = first
    folder.write(name, GOOD + b"while")
    job = Job(folder.root, out, Update(touched=AGAIN), key=key).begin()
    held, _ = job.plan.shards.read_files_checked(job.lacking)
    assert (None in held) == (key == "path" or not moved), "what has moved is found by its bytes"
    job.do(job.lacking)
    if not moved:
        folder.write(name, first)
    while (job := Job(folder.root, out, Update(touched=AGAIN), key=key)).mine is not None:
        job.begin().do(job.lacking)
    check(folder, out, prune=False)


def test_other_bytes_of_the_same_size_and_time_are_not_those_that_were_listed(tmp_path) -> None:
    folder, out = Folder(tmp_path / "photos", 0), tmp_path / "run"
    out.mkdir()
    job = Job(folder.root, out, key="content").begin()
    name = next(name for name, data in folder.there.items() if data.startswith(GOOD))
    path, first = folder.root / name, folder.there[name]
    times = path.stat().st_atime_ns, path.stat().st_mtime_ns
    path.write_bytes(first[::-1])
    os.utime(path, ns=times)
    held, _ = job.plan.shards.read_files_checked(job.lacking)
    assert held.count(None) == 1
    fault = job.plan.shards.row_fault(job.lacking[held.index(None)])
    assert "it has changed since it was listed" in fault


def test_a_job_refuses_what_is_no_update(tmp_path) -> None:
    folder, out = Folder(tmp_path / "photos", 0), tmp_path / "run"
    out.mkdir()
    job = Job(folder.root, out).begin()
    job.do(job.lacking)
    (tmp_path / "other").mkdir()
    for number in range(5):
        (tmp_path / "other" / f"{number}.png").write_bytes(GOOD)
    with pytest.raises(UsageError, match="the run there has other settings"):
        Job(tmp_path / "other", out, Update())
    with pytest.raises(CollageError, match="--update is for runs over all images"):
        Job(folder.root, out, Update(), limit=3)
    folder.root.rename(tmp_path / "moved")
    assert Job(tmp_path / "moved", out, Update()).mine is None  # the same names


def test_a_pruned_picture_that_comes_back_is_new(tmp_path, monkeypatch) -> None:
    folder, out = Folder(tmp_path / "photos", 0), tmp_path / "run"
    out.mkdir()
    job = Job(folder.root, out).begin()
    job.do(job.lacking)
    name = folder.some()
    (folder.root / name).rename(tmp_path / "aside")
    assert Job(folder.root, out, Update(prune=True)).mine is None
    (tmp_path / "aside").rename(folder.root / name)
    told: list[str] = []
    monkeypatch.setattr("collage_mpi.job.run.tell", lambda text, *_: told.append(text))
    job = Job(folder.root, out, Update())
    next_run(job.plan, job.store, job.ask, say=True)
    assert told == ["update: 1 new, 0 changed, 0 tried again, 0 removed, 4 unchanged"]
    job.begin()
    assert len(job.lacking) == 1
    job.do(job.lacking)
    check(folder, out, prune=False)


def test_sources_that_moved_together_keep_their_rows(tmp_path, monkeypatch) -> None:
    """Their pictures have the same names and sizes, and either times or paths differ."""
    monkeypatch.setattr("collage_mpi.shards.source.HASH_LIMIT_BYTES", 0)
    for case, (later_ns, names) in enumerate([(1, "cd"), (0, "ab")]):
        top, entries = tmp_path / f"{case}", []
        for number, name in enumerate("ab"):
            (top / "was" / name).mkdir(parents=True)
            for row in range(3):
                file = top / "was" / name / f"{row}.png"
                file.write_bytes(GOOD)
                os.utime(file, ns=(10**18, 10**18 + later_ns * number * (row > 0)))
        with ShardSet.open([top / "was" / name for name in "ab"]) as shards:
            shards.save_indexes(top / "indexes")
            for info in shards.infos[::-1]:  # the run has them in another order
                assert info.members is not None
                about = {"path": str(info.path), "fingerprint": info.fingerprint, "count": 3}
                entries.append({**about, "content": info.members.content})
        (top / "is").mkdir()
        for name, new in zip("ab", names, strict=True):
            (top / "was" / name).rename(top / "is" / new)
        found = as_before(
            ShardSet.open([top / "is" / name for name in names]), entries, top / "indexes", Update()
        )
        assert [info.path.name for info in found.infos] == [*names[::-1]]
        assert not found.growth.again


@pytest.mark.parametrize("at_work", [True, False])
def test_an_update_that_began_while_another_one_listed_the_input_is_not_joined(
    at_work, tmp_path, monkeypatch
) -> None:
    """Else its rows would have the numbers of other pictures."""
    folder, out = Folder(tmp_path / "photos", 0), tmp_path / "run"
    out.mkdir()
    job = Job(folder.root, out).begin()
    job.do(job.lacking)
    folder.write("m.png", GOOD + b"m")

    def slowly(*args, **more):
        monkeypatch.undo()
        other = Job(folder.root, out, Update(), "b" * 32).begin()
        other.do([] if at_work else other.lacking)
        folder.write("0.png", GOOD + b"0")  # comes before m.png
        return make_plan(*args, **more)

    monkeypatch.setattr("jobs_by_hand.make_plan", slowly)
    with pytest.raises(EnvironmentFault, match="another job has updated the run meanwhile"):
        Job(folder.root, out, Update())
    for _ in range(2):
        job = Job(folder.root, out, Update()).begin()
        job.do(job.lacking or [])
        if not at_work:
            break
    check(folder, out, prune=False)


@pytest.mark.parametrize("time_ns", [-(10**18), 10**19])
def test_a_picture_of_a_time_that_no_clock_has_is_read(time_ns, tmp_path) -> None:
    (tmp_path / "run").mkdir()
    folder = Folder(tmp_path / "photos", 0)
    about = Member("a", "a", 5, time_ns=time_ns)
    times = MemberIndex.of([("a", about), ("b", Member("b", "b", 5, time_ns=7))]).times
    assert times is not None
    assert times[:].tolist() == [0, 7]
    if time_ns < 0:  # not all file systems keep the other one
        os.utime(folder.root / folder.some(), ns=(time_ns, time_ns))
    job = Job(folder.root, tmp_path / "run").begin()
    job.do(job.lacking)
    check(folder, tmp_path / "run", prune=False)


@pytest.mark.parametrize(("limit", "fresh"), [(0, False), (0, True), (1 << 20, False)])
def test_what_was_said_of_touched_pictures_is_said_once(
    limit, fresh, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr("collage_mpi.shards.source.HASH_LIMIT_BYTES", limit)
    folder, out = Folder(tmp_path / "photos", 1), tmp_path / "run"
    out.mkdir()
    clock = SimpleNamespace(time_ns=folder.time_ns, monotonic_ns=time.monotonic_ns)
    monkeypatch.setattr("collage_mpi.shards.source.time", clock)

    def touch(at: int) -> None:
        for name in folder.there:
            os.utime(folder.root / name, ns=(at, at))

    touch(folder.now_ns + 10**10 if fresh else 10**18)
    job = Job(folder.root, out).begin()
    job.do(job.lacking, ())
    if not fresh:
        touch(10**18 + 1)
    before = len(runs(job.store))
    assert Job(folder.root, out, Update(touched=SAME)).mine is None
    assert len(runs(job.store)) == before + 1
    later = Job(folder.root, out, Update())
    assert later.mine is None
    assert len(runs(job.store)) == before + 1  # so that no ranks start for it
    assert not later.plan.shards.growth.touched


def test_a_picture_of_another_label_gets_another_row() -> None:
    """Its row has the label. It is so also of --touched same, and not of one that has a fault."""
    bad = ("a", 0, 0, "leads nowhere")
    for digests, rows in ((True, (A, B)), (False, (A, B)), (True, (bad, B))):
        old, new = (
            replace(listed(*rows, digests=digests), labels=np.array(labels))
            for labels in ([0, 1], [1, 1])
        )
        again = update("", old, new, Update(touched=SAME), content=True).again.tolist()
        assert again == ([] if rows[0] is bad else [0])
        assert not len(update("", old, replace(new, labels=None), Update()).again)
    later = replace(listed(("a", 5, 51, 1), B, digests=False), labels=np.array([1, 1]))
    old = replace(listed(A, B, digests=False), labels=np.array([0, 1]))
    assert update("", old, later, Update(touched=SAME)).again.tolist() == [0]


def test_a_source_that_came_later_and_is_gone_is_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ShardSet, "read_files_checked", lambda *_: ([GOOD], None))
    folder, out = tmp_path / "shards", tmp_path / "run"
    for place in (folder, out):
        place.mkdir()
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    write_shard(folder / "a.h5", pixels)
    job = Job(folder, out).begin()
    job.do(job.lacking or [])
    write_shard(folder / "b.h5", pixels + 1)
    told: list[str] = []
    monkeypatch.setattr("collage_mpi.job.run.tell", lambda text, *_: told.append(text))
    job = Job(folder, out, Update())
    next_run(job.plan, job.store, job.ask, say=True)
    assert told == ["update: 2 new, 0 changed, 0 tried again, 0 removed, 2 unchanged"]
    job.begin()
    (folder / "b.h5").unlink()
    with pytest.raises(EnvironmentFault, match=r"the run has images of .*b\.h5 that this job has"):
        Job(folder, out, Update())


def test_the_answers_of_a_rank_are_given_again_on_request(tmp_path, monkeypatch) -> None:
    folder, out = Folder(tmp_path / "photos", 0), tmp_path / "run"
    out.mkdir()
    for number in range(5):
        folder.write(f"{number}.png", GOOD + b"%d" % number)
    first = Job(folder.root, out).begin()
    assert first.lacking == [*range(10)]
    by = {image: 2 + image % 2 for image in range(10)}
    first.do(first.lacking, (9,), by)
    told: list[str] = []
    monkeypatch.setattr("collage_mpi.job.run.tell", lambda text, *_: told.append(text))
    assert Job(folder.root, out).mine is None
    second = Job(folder.root, out, redo="3").begin()
    assert second.lacking == [1, 3, 5, 7]  # the error row has no answer
    assert told == ["rank 3: 4 answers to be given again"]
    second.do([1, 3, 5], (), {1: 3, 3: 3})
    assert Job(folder.root, out, redo="1:3").begin().lacking == [7]  # the run goes on
    last = Job(folder.root, out, owner="b" * 32).begin()
    last.do([7], ())
    assert verify_run(out).ok
    rows = read_results(out).images
    assert dict(zip(rows["row"].tolist(), rows["session"].tolist(), strict=True))[7] == 4
    assert sorted(rows["row"][rows["session"] == 1].tolist()) == [0, 2, 4, 6, 8, 9]
    assert Job(folder.root, out, redo="1:3").mine is None
    assert Job(folder.root, out, redo="2:3").begin().lacking == [1, 3]
    assert told[-1] == "rank 2:3: 2 answers to be given again"


def test_a_rank_of_several_jobs_needs_the_number_of_its_job(tmp_path) -> None:
    folder, out = Folder(tmp_path / "photos", 0), tmp_path / "run"
    out.mkdir()
    for number in range(5):
        folder.write(f"{number}.png", GOOD)
    first = Job(folder.root, out).begin()
    first.do(first.lacking, (), {4: 2})
    again = Job(folder.root, out, redo="2").begin()
    again.do(again.lacking, ())
    with pytest.raises(UsageError, match="several jobs had a rank 1; name one: 1:1 or 2:1"):
        Job(folder.root, out, redo="1")
    assert Job(folder.root, out, redo="2:1").begin().lacking == [4]
