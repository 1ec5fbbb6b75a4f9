"""Updates with --trust-dirs: what is looked at of the pictures of a folder, and what is found."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from jobs_by_hand import GOOD, Job
from test_updates import MOST_JOBS, Folder, check

from collage_mpi.cli import main
from collage_mpi.errors import UsageError
from collage_mpi.job.joining import finished_status
from collage_mpi.job.run import Ask, run_session
from collage_mpi.results import INDEX_FOLDER
from collage_mpi.results.manifest import compose
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards import listing
from collage_mpi.shards.lister import TakesLong
from collage_mpi.shards.listing import list_folder
from collage_mpi.shards.members import FRESH_NS, Member, MemberIndex
from collage_mpi.shards.update import AGAIN, Known, Update

TICK_S = 0.02  # some kernels count the times of folders in steps of 10 ms
TRUST = Update(touched=AGAIN, trust_dirs=True)
PLAYS = 3


@pytest.fixture
def looked_at(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Names of the pictures that are looked at, and a clock that is ahead, so that all is old."""
    found: list[str] = []
    member = listing._member

    def look(entry: os.DirEntry[str]) -> Member:
        found.append(entry.name)
        return member(entry)

    monkeypatch.setattr(listing, "_member", look)
    monkeypatch.setattr("collage_mpi.shards.source.HASH_LIMIT_BYTES", 0)
    ahead = SimpleNamespace(
        time_ns=lambda: time.time_ns() + 2 * FRESH_NS, monotonic_ns=time.monotonic_ns
    )
    monkeypatch.setattr("collage_mpi.shards.source.time", ahead)
    return found


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for name in ("0.png", "x/1.png", "x/2.png", "x/deep/3.png", "y/4.png"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(GOOD + name.encode())
    (tmp_path / "run").mkdir()
    return tmp_path / "photos"


def update(photos: Path, how: Update | None = TRUST, **more: str) -> Job:
    """An update that is done to its end."""
    time.sleep(TICK_S)
    job = Job(photos, photos.parent / "run", how, **more)
    if job.mine is not None:
        job.begin().do(job.lacking)
    elif how is not None:  # as a job with ranks does
        job.plan.shards.save_folders(job.out / INDEX_FOLDER, compose(job.out)["shards"])
    return job


def changed(job: Job) -> list[str]:
    """The pictures that a job has done."""
    shards, found = job.plan.shards, []
    for image in job.lacking or ():
        shard, row = shards.locate(image)
        found.append(shards.infos[shard].members.name(row))
    return sorted(found)


def rewrite(path: Path) -> None:
    """In place, with another size and time, and the folder keeps its own."""
    with path.open("r+b") as stream:
        stream.write(GOOD + b"rewritten in place")
        stream.truncate()


def replace(path: Path) -> None:
    new = path.with_suffix(".new")
    new.write_bytes(GOOD + b"replaced by rename")
    os.replace(new, path)


def replace_and_put_back(path: Path) -> None:
    """As rsync does: the folder gets its time of modification again."""
    about = path.parent.stat()
    replace(path)
    os.utime(path.parent, ns=(about.st_atime_ns, about.st_mtime_ns))


def swap_folder(path: Path) -> None:
    """Another folder with this name."""
    shutil.copytree(path.parent, aside := path.parent.with_name(".aside"))
    (aside / path.name).write_bytes(GOOD + b"in another folder")
    shutil.rmtree(path.parent)
    aside.rename(path.parent)


ALL = ["0.png", "1.png", "2.png", "3.png", "4.png"]


@pytest.mark.parametrize(
    ("change", "seen", "found"),
    [
        (None, [], []),
        (
            lambda top: (top / "x/new.png").write_bytes(GOOD),
            ["1.png", "2.png", "new.png"],
            ["x/new.png"],
        ),
        (
            lambda top: (top / "x/deep/new.png").write_bytes(GOOD),
            ["3.png", "new.png"],
            ["x/deep/new.png"],
        ),
        (
            lambda top: shutil.copytree(top / "y", top / "x/deep/z"),
            ["3.png", "4.png"],
            ["x/deep/z/4.png"],
        ),
        (lambda top: (top / "x/1.png").unlink(), ["2.png"], []),
        (lambda top: (top / "x/1.png").rename(top / "x/m.png"), ["2.png", "m.png"], ["x/m.png"]),
        (lambda top: replace(top / "x/1.png"), ["1.png", "2.png"], ["x/1.png"]),
        (lambda top: replace_and_put_back(top / "x/1.png"), ["1.png", "2.png"], ["x/1.png"]),
        (lambda top: swap_folder(top / "y/4.png"), ["0.png", "4.png"], ["y/4.png"]),
        (lambda top: rewrite(top / "x/1.png"), [], []),  # the limit of the option
    ],
)
def test_pictures_of_unchanged_folders_are_not_looked_at(
    change, seen, found, photos, looked_at
) -> None:
    update(photos, None)
    assert sorted(looked_at) == ALL
    for round in range(2):  # a later update trusts what an update has noted
        looked_at.clear()
        assert (update(photos).mine, looked_at) == (None, []), round
    time.sleep(TICK_S)
    if change is not None:
        change(photos)
    looked_at.clear()
    job = update(photos)
    assert (sorted(looked_at), changed(job)) == (seen, found)
    looked_at.clear()
    assert (update(photos).mine, looked_at) == (None, [])
    looked_at.clear()
    last = update(photos, Update(touched=AGAIN))  # without the option all is looked at
    assert len(looked_at) == sum(1 for _ in photos.rglob("*.png"))
    in_place = change is not None and not found and (photos / "x/1.png").exists()
    assert changed(last) == (["x/1.png"] if in_place else [])


def test_what_was_done_to_a_trusted_picture_stays_done(photos, looked_at) -> None:
    """Sizes, times and digests of the earlier list go on, and the content key reads nothing."""
    update(photos, None, key="content")
    before = update(photos, Update(touched=AGAIN), key="content").plan.shards.infos[0].members
    looked_at.clear()
    (photos / "y/new.png").write_bytes(GOOD)
    now = update(photos, key="content").plan.shards.infos[0].members
    assert sorted(looked_at) == ["4.png", "new.png"]
    assert now.content == before.content
    assert now.digests is not None


def test_links_are_looked_at(photos, looked_at, tmp_path) -> None:
    (tmp_path / "elsewhere.png").write_bytes(GOOD)
    (photos / "x/link.png").symlink_to(tmp_path / "elsewhere.png")
    (photos / "x/broken.png").symlink_to(tmp_path / "nowhere.png")
    update(photos, None)
    looked_at.clear()
    replace(tmp_path / "elsewhere.png")
    job = update(photos)
    assert (sorted(looked_at), changed(job)) == (["broken.png", "link.png"], ["x/link.png"])
    (tmp_path / "nowhere.png").write_bytes(GOOD)
    assert changed(update(photos)) == ["x/broken.png"]


def test_a_link_to_another_folder_is_another_folder(photos, looked_at, tmp_path) -> None:
    for name in "ab":
        shutil.copytree(photos / "y", tmp_path / name)
    (tmp_path / "b/4.png").write_bytes(GOOD + b"b")
    (photos / "link").symlink_to(tmp_path / "a")
    update(photos, None)
    time.sleep(TICK_S)
    (photos / "link").unlink()
    (photos / "link").symlink_to(tmp_path / "b")
    assert changed(update(photos)) == ["link/4.png"]


def test_a_folder_that_may_change_without_another_time_is_not_trusted(
    photos, looked_at, monkeypatch
) -> None:
    monkeypatch.setattr("collage_mpi.shards.source.time", time)
    os.utime(photos / "0.png", ns=(1, 1))
    update(photos, None)
    looked_at.clear()
    update(photos)
    assert sorted(looked_at) == ALL


def test_stamps_are_true_at_their_times() -> None:
    index = MemberIndex.of([("a", Member("a", "a", 1, time_ns=1))])
    at = 10**18
    stamps = {"old": [at - FRESH_NS, 1], "fresh": [at - FRESH_NS + 1, 2], "none": [0, 3]}
    index.__dict__["folders"] = stamps
    assert [*index.listed_at(at).folders] == ["old"]


def test_stamps_are_of_the_lists_they_were_saved_with(photos, looked_at) -> None:
    """An update that dies before its run begins has noted stamps, but the run has older lists."""
    update(photos, None)
    (photos / "x/new.png").write_bytes(GOOD)
    update(photos)  # the run has two lists
    for name in ("x/1.png", "x/new.png"):  # one of each
        time.sleep(TICK_S)
        replace(photos / name)
        job = Job(photos, photos.parent / "run", TRUST)
        job.plan.shards.save_indexes(job.out / INDEX_FOLDER)
        assert changed(update(photos)) == [name]


@pytest.mark.parametrize("key", ["path", "content"])
def test_stamps_of_older_facts_are_not_kept(key, photos, looked_at) -> None:
    """A job that goes on with a run keeps what the run has listed, though it sees newer folders."""
    job = Job(photos, photos.parent / "run", key=key).begin()
    job.do(job.lacking[:2])
    for name in ("x/1.png", "x/2.png", "x/deep/3.png", "y/4.png", "0.png"):
        replace(photos / name)
    for done in (3, 5):
        looked_at.clear()
        assert len(changed(update(photos, key=key))) == done
        assert sorted(looked_at) == ALL


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b'{"": 5, "x": null, "y": ["a"]}'])
def test_without_stamps_all_is_looked_at(damage, photos, looked_at) -> None:
    update(photos, None)
    (stamps,) = (photos.parent / "run" / INDEX_FOLDER).glob("*.folders.json")
    stamps.write_bytes(damage)
    looked_at.clear()
    update(photos)
    assert sorted(looked_at) == ALL
    looked_at.clear()
    update(photos)
    assert looked_at == []


def test_one_process_that_finds_nothing_to_do_notes_the_folders(
    photos, looked_at, monkeypatch
) -> None:
    update(photos, None)
    monkeypatch.setattr("collage_mpi.shards.source.HASH_LIMIT_BYTES", 1 << 20)  # digests are new
    out = photos.parent / "run"
    (stamps,) = (out / INDEX_FOLDER).glob("*.folders.json")
    stamps.unlink()
    settings = RunSettings(
        shards=(str(photos),), out=str(out), single="null", scheme="none", singles=2,
        input_labels="none",
    )  # fmt: skip
    assert finished_status(settings, retry_errors=False) == "complete"
    assert not stamps.exists(), "no update was asked for"
    assert finished_status(settings, TRUST, retry_errors=False) == "complete"
    assert stamps.exists()
    looked_at.clear()
    assert finished_status(settings, TRUST, retry_errors=False) == "complete"
    assert looked_at == []
    stamps.unlink()
    transport = SimpleNamespace(size=3, library="none")
    world = SimpleNamespace(transport=transport, ranks=range(1, 3), others=None)
    assert run_session(settings, world, Ask(update=TRUST)).status == "complete"
    assert stamps.exists()


def test_what_is_no_folder_of_pictures_is_refused(tmp_path, photos) -> None:
    (tmp_path / "list.txt").write_text("photos/0.png\n")
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match="--trust-dirs is for folders of pictures"):
        Job(tmp_path / "list.txt", tmp_path / "other", TRUST)
    Job(photos, tmp_path / "other", TRUST)


def test_rows_that_are_not_sure_are_not_known() -> None:
    rows = [("a", 5, 50), ("gone", 6, 60), ("fresh", 7, -70), ("none", 8, 0), ("bad", 9, 90)]
    named = [
        (name, Member(name, name, size, time_ns=abs(at), fault="bad" if name == "bad" else None))
        for name, size, at in rows
    ]
    index = MemberIndex.of(named)
    times = np.array([at for *_, at in rows])
    index.__dict__.update(gone=np.array([name == "gone" for name, *_ in rows]), times=times)
    names = [os.fsencode(name) for name, *_ in rows]
    known = Known(index)
    assert known.facts([*names, b"zz"]) == {b"a": (5, 50)}
    index.__dict__["times"] = None
    assert Known(index).facts(names) == {}


def test_pictures_of_a_large_folder_are_known_in_pieces(photos, monkeypatch) -> None:
    monkeypatch.setattr(listing, "SORTED_AT_ONCE", 3)
    monkeypatch.setattr("collage_mpi.shards.members.ROWS_AT_ONCE", 2)
    for number in range(20):
        (photos / f"x/{number:02d}.png").write_bytes(b"0" * number)
    before = list_folder(photos, labels=False, strict=False).index
    monkeypatch.setattr(listing, "_member", lambda entry: pytest.fail(entry.name))
    now = list_folder(photos, labels=False, strict=False, before=before).index
    assert now.content == before.content
    assert now.folders == before.folders == {**before.folders}
    assert {*now.folders} == {"", "x", "x/deep", "y"}


def test_another_folder_of_the_same_time_is_not_trusted(photos, looked_at) -> None:
    before = list_folder(photos, labels=False).index
    assert before.folders["y"][1] == (photos / "y").stat().st_ino
    before.folders["y"][1] += 1
    looked_at.clear()
    list_folder(photos, labels=False, before=before)
    assert looked_at == ["4.png"]


def test_a_listing_that_takes_too_long_is_cut_off_while_pictures_are_looked_at(
    photos, looked_at
) -> None:
    def in_time() -> None:
        if looked_at:
            raise TakesLong

    with pytest.raises(TakesLong):
        list_folder(photos / "x", in_time=in_time)
    assert len(looked_at) == 1


@pytest.mark.parametrize("asked", [True, False])
def test_the_option_is_for_an_update(asked, photos, capsys) -> None:
    words = ["run", "--dry-run", "--input", str(photos), "--single", "null", "--scheme", "none"]
    words += ["--image-px", "8", "--out", str(photos.parent / "new"), "--trust-dirs"]
    assert main([*words, *(["--update"] if asked else [])]) == (0 if asked else 2)
    said = "-- run --update --trust-dirs " if asked else "--trust-dirs say how a run is updated"
    assert said in "".join(capsys.readouterr())


@pytest.mark.parametrize("key", ["path", "content"])
def test_a_folder_that_changes_by_renames_has_each_picture_once(
    key, tmp_path, looked_at, monkeypatch
) -> None:
    """Nothing is rewritten in place here, so that a trusting update finds all."""

    class Renamed(Folder):
        def write(self, name: str, data: bytes) -> None:
            time.sleep(TICK_S)
            (self.root / name).unlink(missing_ok=True)
            super().write(name, data)

        def touch(self, name: str) -> None:
            """Replaces the file by one of another time."""
            data = (self.root / name).read_bytes()
            (self.root / name).unlink()
            (self.root / name).write_bytes(data)
            super().touch(name)

    skipped = 0
    for seed in range(PLAYS):
        chance = random.Random(seed)
        folder, out = Renamed(tmp_path / f"{seed}", seed), tmp_path / f"{seed}.run"
        out.mkdir()
        clock = SimpleNamespace(time_ns=folder.time_ns, monotonic_ns=time.monotonic_ns)
        monkeypatch.setattr("collage_mpi.shards.source.time", clock)
        Job(folder.root, out, key=key).begin().do([])
        for _ in range(4):
            for _ in range(chance.randrange(3)):
                folder.change()
            time.sleep(TICK_S)
            for _ in range(MOST_JOBS):
                looked_at.clear()
                job = Job(folder.root, out, TRUST, key=key)
                skipped += len(folder.there) - len(looked_at)
                if job.mine is None:
                    break
                job.begin()
                if chance.random() < 0.2:
                    folder.change()
                job.do(job.lacking if chance.random() < 0.6 else job.lacking[::2])
            check(folder, out, prune=False)
    assert skipped > 0
