"""Writing and reading shards: round trips, orders, what is refused. Lists of class names: doubles
are told apart by their number and named, in a short message.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zlib
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from chunked import write_chunked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from collage_mpi.errors import DataFault, EnvironmentFault, ShardFault, UsageError
from collage_mpi.shards import ShardSet, ShardWriter, write_shard
from collage_mpi.shards import reader as reader_module
from collage_mpi.shards.guard import OpenShard, inspect_here
from collage_mpi.shards.inputs import expand_paths, open_source
from collage_mpi.shards.schema import (
    ShardInfo,
    chunk_rows,
    read_class_names,
    read_sidecar,
    row_crc32,
    rows_crc32,
    sha256_of,
    sidecar_path,
    told_apart,
)

SHARED_FOLDER = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def make_images(count: int, shape: tuple[int, int, int] = (3, 4, 1), seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def open_here(*paths: Path) -> ShardSet:
    """A ShardSet without the guard's process."""
    return ShardSet([inspect_here(path, hash_file=True) for path in paths])


@SHARED_FOLDER
@given(data=st.data())
def test_what_is_written_is_read(tmp_path: Path, data: st.DataObject) -> None:
    channels = data.draw(st.sampled_from([1, 3]))
    sides = st.integers(1, 5)
    shape = (data.draw(st.integers(1, 12)), data.draw(sides), data.draw(sides), channels)
    images = data.draw(hnp.arrays(np.uint8, shape))
    names = data.draw(st.none() | st.just(("one", "zwölf", "三")))
    top = 2 if names else 2**63 - 1
    labels = data.draw(st.none() | hnp.arrays(np.int64, shape[0], elements=st.integers(0, top)))
    ids = data.draw(st.none() | st.just([f"é{k}" for k in range(shape[0])]))
    rows = data.draw(st.none() | st.integers(1, 20))
    path = tmp_path / "a.h5"
    info = write_chunked(path, rows, images, labels, ids, class_names=names, source="söurce")
    assert inspect_here(path, hash_file=True) == info
    assert info == ShardInfo.from_json(info.to_json())
    with open_here(path) as shards:
        pixels, tags = shards.read_all()
        np.testing.assert_array_equal(pixels, images)
        assert (tags is None) == (labels is None)
        if labels is not None:
            np.testing.assert_array_equal(tags, labels)
            np.testing.assert_array_equal(shards.labels(), labels)


@SHARED_FOLDER
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    picks=st.lists(st.integers(0, 10**6), max_size=40),
)
def test_any_rows_in_any_order(tmp_path: Path, counts: list[int], picks: list[int]) -> None:
    total = sum(counts)
    images, labels = make_images(total), np.arange(total)
    starts = np.cumsum([0, *counts])
    paths = [tmp_path / f"{k}.h5" for k in range(len(counts))]
    for path, start, stop in zip(paths, starts, starts[1:], strict=False):
        write_chunked(path, 4, images[start:stop], labels[start:stop])
    wanted = np.array(picks, dtype=np.int64) % total
    with open_here(*paths) as shards:
        assert len(shards) == total
        pixels, tags = shards.read(wanted)
        np.testing.assert_array_equal(pixels, images[wanted])
        np.testing.assert_array_equal(tags, labels[wanted])
        for index in wanted.tolist():
            shard, row = shards.locate(index)
            assert 0 <= row < counts[shard]
            assert starts[shard] + row == index


def test_open_checks_in_the_guard_and_expands_folders(tmp_path: Path) -> None:
    for name, seed in (("b.h5", 1), ("a.h5", 0)):
        write_shard(tmp_path / name, make_images(5, seed=seed))
    with ShardSet.open([tmp_path]) as shards:
        assert [info.path.name for info in shards.infos] == ["a.h5", "b.h5"]
        assert shards.labels() is None
        np.testing.assert_array_equal(shards.read([7])[0], make_images(5, seed=1)[2:3])


def test_few_files_are_open_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader_module, "OPEN_FILES", 2)
    paths = [tmp_path / f"{k}.h5" for k in range(5)]
    for k, path in enumerate(paths):
        write_shard(path, make_images(2, seed=k), [k, k])
    with open_here(*paths) as shards:
        np.testing.assert_array_equal(shards.labels(), np.repeat(np.arange(5), 2))
        assert len(shards._open) == 2
        np.testing.assert_array_equal(shards.read([9, 0, 5])[1], [4, 0, 2])


def repacked(path: Path, images: np.ndarray, rows: int) -> None:
    """A shard as another program may write it: in gzip chunks of so many rows, no sidecar."""
    write_shard(path, images)
    sidecar_path(path).unlink()
    with h5py.File(path, "a") as file:
        del file["images"]
        chunks = (rows, *images.shape[1:])
        file.create_dataset("images", data=images, chunks=chunks, compression="gzip")


def test_a_compressed_shard_of_somebody_else_is_read(tmp_path: Path) -> None:
    path, images = tmp_path / "a.h5", make_images(20)
    repacked(path, images, rows=4)
    with open_here(path) as shards:
        np.testing.assert_array_equal(shards.read([3, 19, 0])[0], images[[3, 19, 0]])


def test_a_row_that_cannot_be_unpacked_leaves_the_others(tmp_path: Path) -> None:
    path, images = tmp_path / "a.h5", make_images(6)
    repacked(path, images, rows=1)
    with h5py.File(path, "a") as file:
        file["images"].id.write_direct_chunk((4, 0, 0, 0), b"no gzip")
    with open_here(path) as shards:
        pixels, _, good = shards.read_checked([5, 4, 3, 4])
        assert good.tolist() == [True, False, True, False]
        np.testing.assert_array_equal(pixels[[0, 2]], images[[5, 3]])
        assert shards.row_fault(4).startswith("cannot be read: ")
        assert not shards.lost


def test_a_file_that_is_gone_after_a_failed_read_is_lost(tmp_path: Path, monkeypatch) -> None:
    """Else every row of it would be an error of its own."""

    def gone(*_: object) -> None:
        raise EnvironmentFault("stale file handle")

    path = tmp_path / "a.h5"
    write_shard(path, make_images(4))
    with open_here(path) as shards:
        shards.read([0])
        path.rename(tmp_path / "away")
        monkeypatch.setattr(OpenShard, "read_into", gone)
        with pytest.raises(ShardFault, match=r"a\.h5: can no longer be read"):
            shards.read_checked([1, 2])
        assert [*shards.lost] == [0]


@pytest.mark.parametrize("other", [{"count": 3}, {"shape": (5, 6, 1)}])
@pytest.mark.parametrize("foreign", [False, True])
def test_a_file_that_is_not_as_it_was_described_is_refused(tmp_path: Path, other, foreign) -> None:
    path, images = tmp_path / "a.h5", make_images(4, (6, 5, 1))
    if foreign:
        with h5py.File(path, "w") as file:
            file["images"] = images
    else:
        write_shard(path, images)
    with open_here(path) as shards:
        [info] = shards.infos
    open_source(info).close()
    with pytest.raises(DataFault, match="has changed since it was checked"):
        open_source(replace(info, **other))
    if not foreign:
        with h5py.File(path, "a") as file:
            del file["crc32"]
            file["crc32"] = np.zeros(3, np.uint32)
        with pytest.raises(DataFault, match="has changed since it was checked"):
            open_source(info)


def test_a_shard_that_was_lost_stays_lost(tmp_path: Path) -> None:
    """Else its rows would have an error or an answer, as it happens."""
    paths = [tmp_path / name for name in ("a.h5", "b.h5")]
    images = make_images(4)
    for path, own in zip(paths, (images[:2], images[2:]), strict=True):
        write_shard(path, own)
    with open_here(*paths) as shards:
        paths[0].rename(tmp_path / "away")
        with pytest.raises(ShardFault, match=r"a\.h5: can no longer be read"):
            shards.read([0])
        (tmp_path / "away").rename(paths[0])
        with pytest.raises(ShardFault, match=r"a\.h5: can no longer be read"):
            shards.read([0])
        np.testing.assert_array_equal(shards.read([2])[0], images[2:3])


def test_a_changed_pixel_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    write_shard(path, make_images(6), np.zeros(6, dtype=int))
    with h5py.File(path, "a") as file:
        file["images"][4, 0, 0, 0] ^= 1
        file["labels"][2] = 1
    with pytest.raises(DataFault, match=r"SHA-256 is not the one in a\.h5\.sha256"):
        inspect_here(path, hash_file=True)
    with ShardSet([inspect_here(path, hash_file=False)]) as shards:
        pixels, _, good = shards.read_checked(np.arange(6))
        assert good.tolist() == [True, True, False, True, False, True]
        assert not pixels[~good].any()
        with pytest.raises(DataFault, match=r"a\.h5: row 4: checksum"):
            shards.read([5, 4])


def test_the_checksum_of_a_row_is_as_documented() -> None:
    images, labels = make_images(3), np.array([1, 2, 3])
    expected = [row_crc32(image.tobytes(), k) for image, k in zip(images, (1, 2, 3), strict=True)]
    assert rows_crc32(images, labels).tolist() == expected
    assert row_crc32(b"123456789", None) == 0xCBF43926
    for size in (1, 15, 16, 63, 64, 1000, 150_528):  # the ways of a vectorised one
        row = np.random.default_rng(size).bytes(size)
        tag = (-size).to_bytes(8, "little", signed=True)
        assert row_crc32(row, -size) == zlib.crc32(row + tag)


@pytest.mark.parametrize(
    ("row_bytes", "count", "rows"),
    [(784, None, 334), (784, 1800, 300), (150_528, None, 1), (10**7, 5, 1), (784, 3, 3)],
)
def test_chunk_rule(row_bytes: int, count: int | None, rows: int) -> None:
    assert chunk_rows(row_bytes, count) == rows


def test_many_chunks_open_fast(tmp_path: Path) -> None:
    """One pass over the chunk index; one look-up a chunk took over a minute."""
    write_chunked(tmp_path / "a.h5", 1, make_images(20_000, (1, 1, 1)))
    start = time.process_time()
    inspect_here(tmp_path / "a.h5", hash_file=False)
    assert time.process_time() - start < 10


def test_many_long_class_names(tmp_path: Path) -> None:
    names = [f"class number {k:020d}" for k in range(21_000)]
    write_shard(tmp_path / "a.h5", make_images(1), [20_999], class_names=names)
    assert inspect_here(tmp_path / "a.h5", hash_file=True).class_names == tuple(names)


def test_the_same_input_makes_the_same_bytes(tmp_path: Path) -> None:
    first = write_shard(tmp_path / "a.h5", make_images(9), range(9), source="s")
    second = write_shard(tmp_path / "b.h5", make_images(9), range(9), source="s")
    assert first.fingerprint == second.fingerprint == sha256_of(tmp_path / "a.h5")


@pytest.mark.parametrize(
    ("images", "more", "words"),
    [
        (np.zeros((2, 3, 3, 1), dtype=np.float64), {}, r"float64 \(3, 3, 1\): a shard holds"),
        (np.zeros(2, dtype=np.uint8), {}, r"uint8 \(\): a shard holds"),
        (np.zeros((2, 3, 0), dtype=np.uint16), {}, "no axis is empty"),
        (np.zeros((0, 3, 3, 1), dtype=np.uint8), {}, "at least one image"),
        (make_images(2), {"labels": [0]}, r"shape \(2,\)"),
        (make_images(2), {"labels": [0, -1]}, "negative"),
        (make_images(2), {"labels": [0, 2], "class_names": ["a", "b"]}, "label 2 has no name"),
        (make_images(2), {"labels": [0.5, 1.0]}, "integers"),
        (make_images(2), {"class_names": ["a", "a"]}, "each different"),
        (make_images(2), {"ids": ["a"]}, "1 ids for 2 images"),
        (make_images(1), {"ids": ["a\0"]}, "NUL"),
    ],
)
def test_what_the_writer_refuses_leaves_no_file(
    tmp_path: Path, images: np.ndarray, more: dict, words: str
) -> None:
    with pytest.raises(DataFault, match=words):
        write_shard(tmp_path / "a.h5", images, **more)
    assert list(tmp_path.iterdir()) == []


def test_an_exception_inside_the_writer_leaves_the_old_shard(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    before = write_shard(path, make_images(2))
    with pytest.raises(DataFault), ShardWriter(path, (3, 4, 1)) as writer:
        writer.append(make_images(1, (9, 9, 1)))
    assert inspect_here(path, hash_file=True) == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["a.h5", "a.h5.sha256"]


def test_all_batches_have_labels_or_none(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "a.h5", (3, 4, 1))
    writer.append(make_images(2))
    with pytest.raises(DataFault, match="every batch has labels or none"):
        writer.append(make_images(2), [0, 1])
    writer.abandon()
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_place_is_a_fault_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentFault, match="cannot be written"):
        write_shard(tmp_path / "file" / "a.h5", make_images(1))


def test_shards_of_one_job_must_be_alike(tmp_path: Path) -> None:
    base = write_shard(tmp_path / "a.h5", make_images(2), [0, 1], class_names=["x", "y"])
    others = [
        write_shard(tmp_path / "b.h5", make_images(2, (4, 4, 1)), [0, 1], class_names=["x", "y"]),
        write_shard(tmp_path / "c.h5", make_images(2), [0, 1], class_names=["y", "x"]),
        write_shard(tmp_path / "d.h5", make_images(2), class_names=["x", "y"]),
    ]
    for other, what in zip(others, ("shape", "class_names", "has_labels"), strict=True):
        with pytest.raises(DataFault, match=what):
            ShardSet([base, other])


def test_paths(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match=r"no \*\.h5"):
        expand_paths([tmp_path])
    with pytest.raises(EnvironmentFault, match="no shard given"):
        expand_paths([])
    for number in (0, 2):
        (tmp_path / f"t-{number:05d}-of-00003.h5").touch()
    with pytest.raises(EnvironmentFault, match="2 of the 3 shards"):
        expand_paths([tmp_path])
    (tmp_path / "t-00001-of-00003.h5").touch()
    assert len(expand_paths([tmp_path])) == 3
    with pytest.raises(EnvironmentFault, match="given twice"):
        expand_paths([tmp_path, tmp_path / "t-00001-of-00003.h5"])


def test_links_in_a_circle_and_long_names_are_shards_that_cannot_be_read(tmp_path: Path) -> None:
    write_shard(tmp_path / "good.h5", make_images(3))
    (tmp_path / "loop.h5").symlink_to(tmp_path / "loop.h5")
    with ShardSet.open([tmp_path], skip_bad=True) as shards:
        assert len(shards) == 3
        assert "loop.h5: cannot be read: Too many levels" in next(iter(shards.bad.values()))
    for name in ("a" * 300, "a" * 300 + ".sha256", "loop.h5"):
        with pytest.raises(EnvironmentFault, match=r"too long|Too many levels"):
            ShardSet.open([tmp_path / name])


def test_out_of_range_and_closed(tmp_path: Path) -> None:
    write_shard(tmp_path / "a.h5", make_images(3))
    shards = open_here(tmp_path / "a.h5")
    for index in (-1, 3):
        with pytest.raises(IndexError):
            shards.read([index])
        with pytest.raises(IndexError):
            shards.locate(index)
    shards.close()
    shards.close()
    with pytest.raises(ValueError, match="closed"):
        shards.read([0])


def test_sidecar(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    info = write_shard(path, make_images(1))
    assert sidecar_path(path).read_text() == f"{info.fingerprint}  a.h5\n"
    sidecar_path(path).write_bytes(b"\xff nonsense")
    with pytest.raises(DataFault, match="not a SHA-256 line"):
        read_sidecar(path)
    sidecar_path(path).unlink()
    assert read_sidecar(path) is None
    assert inspect_here(path, hash_file=False) == info


@pytest.mark.parametrize("name", [b"caf\xe9.h5", b"a\\b.h5", b"a\nb\r.h5", b"a b.h5"])
def test_the_sidecar_of_any_name_is_what_sha256sum_takes(tmp_path: Path, name: bytes) -> None:
    path = tmp_path / os.fsdecode(name)
    info = write_shard(path, make_images(1))
    assert read_sidecar(path) == info.fingerprint
    check = ["sha256sum", "--check", "--status", os.fsencode(sidecar_path(path))]
    assert subprocess.run(check, cwd=tmp_path, check=False).returncode == 0


@pytest.mark.parametrize("killed_in", ["os.replace", "write_atomic"])
def test_an_older_shard_s_checksum_never_stands_beside_another_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_in: str
) -> None:
    """A shard that is made again, and the writer is killed: the shard can be used as it is."""
    path = tmp_path / "a.h5"
    old = write_shard(path, make_images(2))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"collage_mpi.shards.schema.{killed_in}", killed)
        with pytest.raises(KeyboardInterrupt):
            write_shard(path, make_images(3))
    assert read_sidecar(path) is None
    found = inspect_here(path, hash_file=True)
    replaced = killed_in == "write_atomic"
    assert (found.count, found.fingerprint == old.fingerprint) == (2 + replaced, not replaced)


def test_a_checksum_file_of_another_program_is_read(tmp_path: Path) -> None:
    """In capitals, with the line ends of Windows, without a name, of several lines."""
    path = tmp_path / "a.h5"
    digest = write_shard(path, make_images(1)).fingerprint
    for text in (f"{digest.upper()} *a.h5\r\n", digest, f"{digest}\n{'0' * 64}  b.h5\n"):
        sidecar_path(path).write_text(text)
        assert inspect_here(path, hash_file=True).fingerprint == digest
    for text in (digest[:-1], f"{digest}0  a.h5\n", f" {digest}  a.h5\n", ""):
        sidecar_path(path).write_text(text)
        with pytest.raises(DataFault, match="not a SHA-256 line"):
            read_sidecar(path)


def test_the_package_does_not_import_h5py() -> None:
    code = (
        "import sys, collage_mpi.shards, collage_mpi.prep.work, collage_mpi.commands.prep; "
        "sys.exit(any(name in sys.modules for name in ('h5py', 'torch', 'mpi4py.MPI', 'rich')))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0


FULL_DISK = """
import resource, signal, sys
import numpy as np
from collage_mpi.errors import EnvironmentFault
from collage_mpi.shards import write_shard
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
try:
    write_shard(sys.argv[1], np.zeros((2000, 28, 28, 1), np.uint8))
except EnvironmentFault as fault:
    print(fault)
"""


@pytest.mark.parametrize("room_bytes", [0, 300_000, 1_574_000])
def test_a_full_disk_is_told_and_does_not_crash(tmp_path: Path, room_bytes: int) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path / "a.h5"), str(room_bytes)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert "a.h5: cannot be written: File too large" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_a_shells_star_may_name_the_checksums_too(tmp_path):
    write_shard(tmp_path / "train.h5", np.zeros((3, 4, 4, 1), np.uint8))
    with ShardSet.open(sorted(tmp_path.glob("train*"))) as shards:
        assert len(shards) == 3


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
