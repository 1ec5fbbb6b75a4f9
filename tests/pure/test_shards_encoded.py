"""Shards of encoded pictures: the same pixels as raw ones, damage told row by row."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.shards import (
    EncodedWriter,
    ReadAhead,
    ShardSet,
    inspect_shard,
    readahead,
    verify_shard,
)
from collage_mpi.shards.check import inspect_here, verify_here
from collage_mpi.shards.inputs import open_source
from collage_mpi.shards.openshard import EncodedShard
from collage_mpi.shards.pictures import PictureFit, picture_pixels
from collage_mpi.shards.readahead import ImageParts
from collage_mpi.shards.schema import row_crc32
from collage_mpi.shards.source import ReadMeter

FIT = PictureFit(16)


def files(count: int) -> list[bytes]:
    random = np.random.default_rng(0)
    found = []
    for k in range(count):
        buffer = io.BytesIO()
        pixels = random.integers(0, 256, (20 + k, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(buffer, "JPEG" if k % 2 else "PNG")
        found.append(buffer.getvalue())
    return found


def write(path: Path, data: list[bytes]) -> Path:
    with EncodedWriter(path, FIT, class_names=["a", "b"], source="made up") as writer:
        writer.append_files(data[:3], [0, 1, 0], ["p", "q", "r"])
        writer.append_files(
            data[3:], [k % 2 for k in range(3, len(data))], list("stuvwxyz")[: len(data) - 3]
        )
    return path


def test_a_shard_may_hold_one_picture(tmp_path: Path) -> None:
    with EncodedWriter(tmp_path / "a.h5", FIT, class_names=["a"], source="made up") as writer:
        writer.append_files(files(1), [0], ["p"])
    assert inspect_here(tmp_path / "a.h5", hash_file=True).count == 1


def test_files_that_end_elsewhere_than_when_they_were_described_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.h5", files(8))
    info = inspect_here(path, hash_file=True)
    with h5py.File(path, "a") as file:
        file["ends"][-1] += 1
    with pytest.raises(DataFault, match="has changed since it was checked"):
        open_source(info)


def test_any_order_gives_the_pixels_of_the_files(tmp_path: Path) -> None:
    data = files(8)
    info = inspect_shard(write(tmp_path / "a.h5", data))
    assert (info.storage, info.fit, info.shape) == ("encoded", "crop 16 x 16 x 3", (16, 16, 3))
    assert verify_shard(tmp_path / "a.h5") == []
    expected = np.stack([picture_pixels(one, FIT) for one in data])
    order = [5, 0, 1, 2, 2, 7, 6]
    with ShardSet([info]) as shards:
        pixels, labels = shards.read(order)
        np.testing.assert_array_equal(pixels, expected[order])
        assert labels is not None
        assert labels.tolist() == [k % 2 for k in order]
        with ReadAhead(shards, order, batch=2) as reader:
            records = [record for _ in order for record in reader.take(1)]
    assert [record.index for record in records] == order
    assert all((r.pixels == expected[r.index]).all() for r in records)


def test_damage_is_told_by_row_and_costs_no_other(tmp_path: Path) -> None:
    data = files(6)
    path = write(tmp_path / "a.h5", data)
    path.with_name("a.h5.sha256").unlink()
    with h5py.File(path, "r+") as file:
        ends = file["ends"][...]
        file["encoded"][ends[0] + 50] ^= 1  # row 1
        broken = bytearray(data[4])
        broken[:4] = b"\0" * 4
        file["encoded"][ends[3] : ends[4]] = np.frombuffer(bytes(broken), np.uint8)
        file["crc32"][4] = row_crc32(bytes(broken), 0)  # sound, but no picture
    told = verify_here(path)[1:]
    assert told[0] == "row 1: checksum does not match its bytes and label"
    assert "row 4: cannot be decoded: no picture" in told[1]
    with ShardSet([inspect_here(path, hash_file=True)]) as shards:
        with ReadAhead(shards, range(6)) as reader:
            records = [record for _ in range(6) for record in reader.take(1)]
        assert [r.fault is None for r in records] == [True, False, True, True, False, True]
        assert str(records[1].fault) == "checksum does not match its bytes and label"
        assert str(records[4].fault).startswith("cannot be decoded: no picture")
        assert not records[4].pixels.any()
        with pytest.raises(DataFault, match="row 4: cannot be decoded"):
            shards.read([3, 4])
    with ShardSet([inspect_here(path, hash_file=True)]) as shards:
        with ReadAhead(shards, range(6), parts=ImageParts(files=True)) as reader:
            records = [record for _ in range(6) for record in reader.take(1)]
        assert [r.fault is None for r in records] == [True, False, True, True, False, True]
        assert str(records[1].fault) == "checksum does not match its bytes and label"
        assert (records[1].file, records[1].label) == (None, None)


def test_files_are_left_as_they_are_where_they_are_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = files(8)
    limit = sorted(map(len, data))[4]
    path = write(tmp_path / "a.h5", data)
    order = [5, 0, 1, 2, 2, 7, 6]
    with ShardSet([inspect_here(path, hash_file=False)]) as shards:
        monkeypatch.setattr(readahead.math, "prod", lambda shape: limit)
        with ReadAhead(shards, order, batch=4, parts=ImageParts(files=True)) as reader:
            records = [record for _ in order for record in reader.take(1)]
        assert shards.fit == FIT.text()
    assert [r.index for r in records] == order
    assert [r.label for r in records] == [k % 2 for k in order]
    for record in records:
        if len(data[record.index]) <= limit:
            assert (record.file, record.pixels) == (data[record.index], None)
        else:
            assert record.file is None
            np.testing.assert_array_equal(record.pixels, picture_pixels(data[record.index], FIT))
    assert len({r.file is None for r in records}) == 2


def test_a_file_that_cannot_be_read_at_once_is_tried_row_by_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = files(4)
    path = write(tmp_path / "a.h5", data)
    plain = EncodedShard._files

    def bad_sector(shard: EncodedShard, rows: np.ndarray) -> list[bytes]:
        if 2 in rows:
            raise EnvironmentFault("bad") from OSError("error message = 'sector'")
        return plain(shard, rows)

    monkeypatch.setattr(EncodedShard, "_files", bad_sector)
    with ShardSet([inspect_here(path, hash_file=False)]) as shards:
        found, labels = shards.read_files_checked([3, 2, 0])
        assert found == [data[3], None, data[0]]
        assert labels.tolist() == [1, 0, 0]
        assert shards.row_fault(2) == "cannot be read: sector"


def swap_ends(file: h5py.File) -> None:
    file["ends"][1:3] = file["ends"][1:3][::-1]


def run_past(file: h5py.File) -> None:
    file["ends"][-1] += 10


def drop_fit(file: h5py.File) -> None:
    del file.attrs["fit"]


def strange_fit(file: h5py.File) -> None:
    file.attrs["fit"] = "crop 16 x 16 x 4"


def drop_ends(file: h5py.File) -> None:
    del file["ends"]


def miscount(file: h5py.File) -> None:
    file.attrs["count"] = 5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (swap_ends, "one file an image"),
        (run_past, "one file an image"),
        (drop_fit, "fit is ''"),
        (strange_fit, "crop 16 x 16 x 4"),
        (drop_ends, "no dataset 'ends'"),
        (miscount, "count is 5"),
    ],
)
def test_structure_faults_are_told(
    tmp_path: Path, change: Callable[[h5py.File], None], words: str
) -> None:
    path = write(tmp_path / "a.h5", files(4))
    path.with_name("a.h5.sha256").unlink()
    with h5py.File(path, "r+") as file:
        change(file)
    with pytest.raises(DataFault, match=words):
        inspect_here(path, hash_file=True)


def test_what_the_writer_refuses(tmp_path: Path) -> None:
    data = files(2)
    for wrong in (
        lambda w: w.append_files([b""], [0]),
        lambda w: w.append_files(data, [0]),
        lambda w: w.append_files(data, [0, 2]),
        lambda w: w.append(np.zeros((1, 16, 16, 3), np.uint8), [0]),
    ):
        with (
            pytest.raises(DataFault),
            EncodedWriter(tmp_path / "a.h5", FIT, class_names=["a", "b"]) as writer,
        ):
            wrong(writer)
    assert list(tmp_path.iterdir()) == []


def test_reading_and_decoding_are_timed_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_ns, plain = [0], EncodedShard._files

    def slow(source: EncodedShard, rows: np.ndarray) -> list[bytes | None]:
        now_ns[0] += 5
        return plain(source, rows)

    def decode(*_: object, **__: object) -> np.ndarray:
        now_ns[0] += 70
        return np.zeros(FIT.shape, np.uint8)

    monkeypatch.setattr(EncodedShard, "_files", slow)
    monkeypatch.setattr("collage_mpi.shards.source.picture_pixels", decode)
    monkeypatch.setattr("time.monotonic_ns", lambda: now_ns[0])
    with ShardSet.open([write(tmp_path / "a.h5", files(7))]) as shards:
        shards.decoders = 1
        shards.read([0, 1, 2])
        assert shards.meter == ReadMeter(reading_ns=5, decoding_ns=210)
        shards.read_files([3])
        assert shards.meter == ReadMeter(reading_ns=10, decoding_ns=210)


@pytest.mark.parametrize("decoders", [1, 3])
def test_pictures_are_the_same_however_many_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, decoders: int
) -> None:
    data, here = files(7), threading.current_thread().name
    with ShardSet.open([write(tmp_path / "a.h5", data)]) as shards:
        shards.decoders, by = decoders, set()

        def noted(one: bytes, fit: PictureFit) -> np.ndarray:
            by.add(threading.current_thread().name.partition("_")[0])
            return picture_pixels(one, fit)

        monkeypatch.setattr("collage_mpi.shards.source.picture_pixels", noted)
        pixels, _ = shards.read([5, 0, 1, 6])
    assert np.array_equal(pixels, [picture_pixels(data[i], FIT) for i in (5, 0, 1, 6)])
    assert by == {here if decoders == 1 else "decode"}
