"""Lists that are handed over in extents, and runs that grow by them: each picture has one row,
which is the answer to its bytes, whoever dies and whatever changes meanwhile.
"""

from __future__ import annotations

import io
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from jobs_by_hand import Job
from test_updates import Folder, check

from collage_mpi.errors import DataFault, EnvironmentFault, Interrupted, UsageError
from collage_mpi.job import plan as plans
from collage_mpi.job import run as run_module
from collage_mpi.job.plan import Growing
from collage_mpi.ledger.reading import runs
from collage_mpi.ledger.records import Run
from collage_mpi.results.manifest import compose
from collage_mpi.results.parts import read_ledger
from collage_mpi.shards import extents, lister, listing
from collage_mpi.shards.lister import Lister, TakesLong, in_time
from collage_mpi.shards.listing import FolderSource, ListSource
from collage_mpi.shards.members import Member, MemberIndex, Stream
from collage_mpi.shards.order import Order, Permutation, Shuffle
from collage_mpi.shards.schema import ShardInfo
from collage_mpi.shards.source import MemberSource, ReadAs, fingerprint_of
from collage_mpi.shards.update import AGAIN, Update
from collage_mpi.system.forked import RELAYED
from collage_mpi.system.process_tree import own_command

READ_AS = ReadAs(labels=False)
PLAYS = 30


def names_of(indexes: list[MemberIndex]) -> list[str]:
    return [name for index in indexes for name in index.texts()]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of folders, with links, what is passed over, and a picture beside them."""
    root = tmp_path / "photos"
    for name in ("b/2.png", "b/1.jpg", "a/3.png", "a/c/4.png", "5.png", ".hid.png", "a/n.txt"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(name.encode())
    os.symlink("nowhere", root / "b" / "0.png")
    os.symlink(root / "a", root / "z")
    return root


@pytest.mark.parametrize("count", [0, 1, 10, 11, 75, 76])
def test_each_extent_takes_as_long_as_those_before(count: int) -> None:
    now = [0.0]

    def members() -> Iterator[tuple[str, Member]]:
        for number in range(count):
            now[0] += 0.125
            yield f"{number}.png", Member("", "", 1)

    found = [*extents.extents(FolderSource, Path("p"), Stream(members()), clock=lambda: now[0])]
    first = round(extents.FIRST_S / 0.125)
    assert [len(each) for each in found][:-1] == [first << n for n in range(len(found) - 1)]
    assert names_of(found) == [f"{number}.png" for number in range(count)]
    assert all(map(len, found))


@pytest.mark.parametrize("content", [True, False])
def test_an_extent_knows_its_pictures_by_time_and_bytes(content, photos, monkeypatch) -> None:
    os.utime(photos / "5.png", (time.time() + 9, time.time() + 9))
    (found,) = extents.extents(
        FolderSource, photos, FolderSource.stream(photos, READ_AS), content=content
    )
    whole = FolderSource.describe(photos, READ_AS).members
    assert found.times[:].tolist() == whole.times[:].tolist()
    assert found.times[0] < 0, "it may change without another time"
    assert (found.digests is not None) == content
    assert not content or (found.digests[:] == whole.digests[:]).all()


def test_a_stream_has_what_a_listing_has(photos: Path) -> None:
    stream, whole = FolderSource.stream(photos, READ_AS), listing.list_folder(photos, labels=False)
    found = MemberIndex.of(stream.members)
    assert found.digest() == whole.index.digest()
    assert found.faults == whole.index.faults != {}
    assert stream.warnings() == whole.warnings != ()
    table = photos / "l.csv"
    table.write_text("path\n5.png\nb/2.png\nnone.png\n")
    index, whole = (
        MemberIndex.of(ListSource.stream(table, READ_AS).members),
        ListSource.listed(table, READ_AS),
    )
    assert index.digest() == whole.index.digest()
    assert index.offsets[:].tolist() == [0, 1, 2], "the rows of the table"


def test_the_first_pictures_of_a_large_folder_come_before_it_was_read(
    photos: Path, monkeypatch
) -> None:
    monkeypatch.setattr(listing, "SORTED_AT_ONCE", 3)
    for number in range(10):
        (photos / "b" / f"n{number}.png").write_bytes(b"x")
    seen, plain = list[str](), os.scandir

    def scandir(path):
        with plain(path) as entries:
            inside = [*entries]
        each = (seen.append(entry.name) or entry for entry in inside)
        return _Entries(each)

    monkeypatch.setattr(os, "scandir", scandir)
    members = FolderSource.stream(photos / "b", READ_AS).members
    first = [name for name, _ in islice(members, 3)]
    assert len(seen) < 8, "of 13 entries"
    names = [*first, *(name for name, _ in members)]
    assert sorted(names) == [*listing.list_folder(photos / "b").index.texts()]
    for start in range(0, len(names), 3):
        assert names[start : start + 3] == sorted(names[start : start + 3])


class _Entries:
    """What os.scandir returns."""

    def __init__(self, entries: Iterator[os.DirEntry[str]]) -> None:
        self.entries = entries

    def __enter__(self) -> Iterator[os.DirEntry[str]]:
        return self.entries

    def __exit__(self, *raised: object) -> None:
        pass


@pytest.mark.parametrize("source", [FolderSource, ListSource])
def test_what_is_not_listed_soon_takes_long(source, photos: Path) -> None:
    path = photos
    if source is ListSource:
        path = photos / "l.txt"
        path.write_text("5.png\na/3.png\n")
    times = iter([0.0, 1.0, extents.FIRST_S + 0.1])
    with pytest.raises(TakesLong):
        source.describe(path, ReadAs(labels=False, in_time=in_time(lambda: next(times))))
    assert source.describe(path, ReadAs(labels=False, in_time=in_time())).count >= 2


# ---- the process ---------------------------------------------------------------------


def test_a_process_lists_a_source_to_its_end(photos: Path, capfd) -> None:
    lister = Lister(FolderSource, photos, READ_AS)
    try:
        found = []
        while not lister.ended:
            found += lister.take()
        assert lister.take() == []
    finally:
        lister.close()
    whole = FolderSource.describe(photos, READ_AS)
    capfd.readouterr()
    assert sum(info.count for info in found) == whole.count == 8
    assert names_of([info.members for info in found]) == [*whole.members.texts()]
    assert {(info.storage, info.fit, info.has_labels) for info in found} == {
        ("folder", whole.fit, False)
    }


def test_what_goes_wrong_in_the_process_is_told(tmp_path: Path) -> None:
    for path, fault, message in (
        (tmp_path / "gone", EnvironmentFault, "gone: cannot be read"),
        (tmp_path, EnvironmentFault, "the process that lists it died"),
    ):
        lister = Lister(FolderSource, path, READ_AS)
        if path == tmp_path:
            lister._process.kill()
        with pytest.raises(fault, match=message):
            lister.take()
        lister.close()


def test_a_signal_to_all_processes_of_a_rank_is_for_the_job(photos: Path) -> None:
    found = Lister(FolderSource, photos, READ_AS)
    try:
        for number in RELAYED:
            found._process.send_signal(number)
        assert sum(info.count for info in found.take()) > 0
    finally:
        found.close()


def test_a_process_that_a_server_forked_leaves_signals_to_the_job(tmp_path: Path) -> None:
    """It starts without blocked signals."""
    process = subprocess.Popen(
        [*own_command("collage_mpi.shards.extents")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    status, bits = Path(f"/proc/{process.pid}/status"), sum(1 << number - 1 for number in RELAYED)
    until_s = time.monotonic() + 60
    while int(status.read_text().split("SigBlk:")[1].split()[0], 16) & bits != bits:
        assert time.monotonic() < until_s
        time.sleep(0.01)
    for number in RELAYED:
        process.send_signal(number)
    asked = {"source": "folder", "path": f"{tmp_path}/gone", "content": False, "folder": "."}
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(json.dumps(asked).encode() + b"\n")
    process.stdin.flush()
    assert b"gone: cannot be read" in process.stdout.readline()
    process.communicate(timeout=60)


def test_a_process_that_died_before_it_was_asked_is_told(photos: Path, monkeypatch) -> None:
    monkeypatch.setattr(lister, "own_command", lambda module: ("true",))
    popen = subprocess.Popen

    def start(*args: object, **options: Any) -> subprocess.Popen[str]:
        process = popen(*args, **options)
        process.wait()
        return process

    monkeypatch.setattr(subprocess, "Popen", start)
    found = Lister(FolderSource, photos, READ_AS)
    with pytest.raises(EnvironmentFault, match="the process that lists it died"):
        found.take()
    found.close()


@pytest.mark.timeout(60)
def test_what_the_process_has_forked_does_not_keep_its_job(photos: Path, monkeypatch) -> None:
    forks = ("sh", "-c", "exec 3<&0; cat <&3 & wait")  # cat has its pipes, and reads to their end
    monkeypatch.setattr(lister, "own_command", lambda module: forks)
    Lister(FolderSource, photos, READ_AS).close()


def test_who_waits_for_the_next_extent_can_be_stopped(tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text("x.png\n")
    lister = Lister(ListSource, tmp_path / "l.txt", READ_AS)
    os.kill(lister._process.pid, 19)  # SIGSTOP
    try:
        reasons = iter([None, "stopped by SIGTERM"])
        if not lister.take(lambda: next(reasons, "stopped by SIGTERM")):
            growing = Growing(lambda: "stopped by SIGTERM", lister)
            with pytest.raises(Interrupted, match="stopped by SIGTERM: go on"):
                plans._grown([], growing)
    finally:
        lister.close()
    assert lister._process.poll() is not None


def test_the_process_says_what_it_finds_line_by_line(photos, tmp_path, monkeypatch, capsys) -> None:
    asked = {"source": "folder", "path": str(photos), "content": False, "folder": str(tmp_path)}
    monkeypatch.setattr(extents, "_end_with_job", lambda: None)
    monkeypatch.setattr(extents, "_until", lambda members, *_: islice(members, 3))
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(asked) + "\n"))
    extents.main()
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line.get("extent") for line in said] == ["0.npz", "1.npz", "2.npz", None]
    assert any("hidden" in warning for warning in said[-1]["warnings"])
    asked["path"] = str(tmp_path / "gone")
    monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(asked) + "\n"))
    extents.main()
    assert "gone: cannot be read" in json.loads(capsys.readouterr().out)["fault"]


def test_the_process_ends_with_its_job() -> None:
    code = "from collage_mpi.shards.extents import _end_with_job as end; end(); print('goes on')"
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 1


# ---- runs ----------------------------------------------------------------------------


class Extents:
    """A lister of this process, whose extents have so many pictures as `size` says."""

    size: Callable[[], int] = staticmethod(lambda: 4)

    def __init__(self, source: type[MemberSource], path: Path, read_as: ReadAs) -> None:
        self.path, self.ended, self._read_as, self._source = path, False, read_as, source
        self._all = extents.extents(
            source, path, source.stream(path, READ_AS), content=read_as.content
        )

    def take(self, stop_reason: Callable[[], str | None]) -> list[ShardInfo]:
        index = next(self._all, None)
        self.ended = index is None
        if index is None:
            return []
        return [self._source.of_list(self.path, self._read_as, index, fingerprint_of(index))]

    def close(self) -> None:
        self._all.close()


@pytest.fixture
def gradual(monkeypatch) -> None:
    """Every folder takes long to list, and is listed by `Extents`."""
    monkeypatch.setattr(lister, "FIRST_S", -1.0)
    monkeypatch.setattr(plans, "Lister", Extents)
    monkeypatch.setattr(extents, "_until", lambda members, *_: islice(members, Extents.size()))


@pytest.mark.usefixtures("gradual")
@pytest.mark.parametrize("key", ["path", "content"])
def test_a_run_that_grows_has_each_picture_once(key, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("collage_mpi.shards.source.HASH_LIMIT_BYTES", 0)
    seen = set[tuple[str | None, ...]]()
    for seed in range(PLAYS):
        chance = random.Random(seed)
        folder, out = Folder(tmp_path / f"{seed}", seed), tmp_path / f"{seed}.run"
        out.mkdir()
        for _ in range(chance.randrange(10)):
            folder.change()
        clock = SimpleNamespace(time_ns=folder.time_ns, monotonic_ns=time.monotonic_ns)
        monkeypatch.setattr("collage_mpi.shards.source.time", clock)
        monkeypatch.setattr(extents, "time", SimpleNamespace(time_ns=folder.time_ns))
        monkeypatch.setattr(Extents, "size", staticmethod(lambda c=chance: c.randrange(1, 6)))
        growing, name = Growing(), "a"

        def come(how: Update, growing: Growing) -> Job:
            return Job(folder.root, out, how, name * 32, growing=growing, key=key)  # noqa: B023

        while not (out / "run.1.json").exists() or compose(out).get("listing") in ("open", "due"):
            job = come(Update(touched=AGAIN), growing).begin()
            if job.lacking is not None:
                job.do(job.lacking[: None if chance.random() < 0.7 else chance.randrange(9)])
            if chance.random() < 0.3:
                folder.change()
            if chance.random() < 0.15:  # it dies, or another one comes
                growing, name = Growing(), chance.choice("abc")
        seen.add(tuple(run.settings.get("listing") for run in runs(job.store)))
        spans = [(run.first, run.stop) for run in runs(job.store)]
        assert all(one[1] == other[0] for one, other in pairwise(spans))
        while (job := come(Update(touched=AGAIN), Growing()).begin()).lacking is not None:
            job.do(job.lacking)
        check(folder, out, prune=False)
    assert ("open", "over") in seen
    assert any(len(each) > 4 for each in seen)


@pytest.mark.usefixtures("gradual")
def test_a_run_says_what_is_due(tmp_path: Path) -> None:
    folder, out, growing = Folder(tmp_path / "photos", 0), tmp_path / "run", Growing()
    out.mkdir()
    states = []
    for _ in range(3):
        job = Job(folder.root, out, growing=growing).begin()
        states.append((compose(out)["listing"], compose(out)["status"], compose(out)["rows"]))
        if compose(out)["listing"] == "open":
            teams = replace(job.plan.settings, teams=2)
            with pytest.raises(UsageError, match=r"still listed\. Finish it without --teams"):
                plans.shards_of(teams, compose(out), None, READ_AS)
        if job.lacking is not None:
            job.do(job.lacking)
        ledger = read_ledger(out)
        states.append((ledger.due, ledger.complete, compose(out)["listing"]))
        assert growing.lister is not None
    assert states == [
        ("open", "incomplete", 4),
        (True, False, "due"),
        ("open", "incomplete", 5),
        (True, False, "due"),
        ("over", "complete_with_errors", 5),
        (False, True, "over"),
    ], "the last extent is known to be the last when no further one comes"
    assert [run.grows for run in runs(job.store)] == [True, True, False]


@pytest.mark.usefixtures("gradual")
@pytest.mark.parametrize("change", ["nothing", "touch", "remove"])
def test_a_run_that_lacks_only_the_end_of_its_listing_is_ended(change, tmp_path) -> None:
    folder, out = Folder(tmp_path / "photos", 0), tmp_path / "run"
    out.mkdir()
    job, growing = None, Growing()
    for _ in range(2):
        job = Job(folder.root, out, growing=growing, key="content").begin()
        job.do(job.lacking)
    name = folder.some()
    if change == "touch":
        folder.touch(name)
    elif change == "remove":
        (folder.root / name).unlink()
        del folder.there[name]
    assert compose(out)["listing"] == "due"
    assert Job(folder.root, out, key="content").mine is None  # who listed it has died
    assert compose(out)["listing"] == "over"
    check(folder, out, prune=False)


@pytest.mark.usefixtures("gradual")
@pytest.mark.parametrize(
    "more", [{"order": "shuffle:1"}, {"limit": 3}, {"input_labels": "auto"}, {"teams": 2}]
)
def test_settings_that_need_the_number_of_images_wait_for_all_names(more, tmp_path) -> None:
    folder, growing = Folder(tmp_path / "photos", 0), Growing()
    settings = {"single": "null", "scheme": "none", "singles": 2, "input_labels": "none", **more}
    asked = plans.RunSettings(shards=(str(folder.root),), out=str(tmp_path / "out"), **settings)
    plan = plans.make_plan(asked, asked.launch_size, growing=growing)
    assert growing.lister is None
    assert not plan.shards.grows
    assert len(plan.shards) == len(folder.there)


@pytest.mark.usefixtures("gradual")
def test_a_folder_without_pictures_is_refused(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").touch()
    with pytest.raises(DataFault, match="photos: no picture in it"):
        plans._grown([], Growing(lister=Extents(FolderSource, tmp_path / "photos", READ_AS)))


@pytest.mark.parametrize(
    ("states", "lister", "stopped", "slept", "goes_on"),
    [
        (["due"], True, None, 0, True),  # its own next extent is waited for in the plan
        (["due", "due", "open"], False, None, 2, True),  # another job has begun the next run
        (["due"] * 999, False, None, 180, True),  # nobody has: it lists the rest
        (["due"] * 9, False, "SIGTERM", 0, False),
        (["due"], True, "SIGTERM", 0, False),
    ],
)
def test_who_does_not_list_waits_for_who_does(
    states, lister, stopped, slept, goes_on, monkeypatch
) -> None:
    said, sleeps = iter(states), list[float]()
    clock = SimpleNamespace(monotonic=lambda: float(len(sleeps)), sleep=sleeps.append)
    monkeypatch.setattr(run_module, "time", clock)
    monkeypatch.setattr(run_module, "compose", lambda _: {"listing": next(said)})
    growing = Growing(lambda: stopped, SimpleNamespace() if lister else None)
    assert run_module.goes_on(Path("out"), growing) == goes_on
    assert len(sleeps) == slept


def test_an_order_that_grows_is_that_of_the_runs() -> None:
    order = Order(Permutation(9), [(2, 7)])
    grown = order.grown(12)
    assert grown is not None
    assert grown.indices(range(len(grown))).tolist() == [2, 3, 4, 5, 6, 9, 10, 11]
    assert Order(Shuffle(9, 0)).grown(12) is None
    assert Order.of_list(np.arange(9)).grown(12) is None
    there = [Run(1, 0, 5, 5, settings={"images": 9}), Run(2, 5, 7, 1, settings={"images_now": 11})]
    there.append(Run(3, 7, 8, 1, settings={"images_now": 12}))
    plan = SimpleNamespace(order=order, images_of=None)
    monkey = plans.Plan(*[None] * 7)
    for count in (2, 3):
        found = plans.replace(monkey, order=order).at_run(there[:count])
        first, stop = there[count - 1].first, there[count - 1].stop
        every = plans.replace(monkey, order=order).images_of(there[:count])
        assert found.order.indices(range(len(found.order))).tolist() == every[first:stop].tolist()
    assert plan.images_of is None
