"""Pictures that are decoded when they are read: files kept for others, times, threads."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from pictures import FIT, write_folder
from test_shards_readahead import take

from collage_mpi.shards import ReadAhead, ShardSet, readahead
from collage_mpi.shards.listing import FolderSource
from collage_mpi.shards.pictures import PictureFit, picture_pixels
from collage_mpi.shards.source import ReadAs, ReadMeter


@pytest.fixture
def folder(tmp_path: Path) -> tuple[ShardSet, list[bytes]]:
    """Eight pictures, and their bytes."""
    data = [file.read_bytes() for file in write_folder(tmp_path / "photos", 8)]
    with ShardSet.open([tmp_path / "photos"], read_as=ReadAs(FIT)) as found:
        yield found, data


def test_files_are_left_as_they_are_where_they_are_smaller(
    folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards, data = folder
    limit = sorted(map(len, data))[4]
    order = [5, 0, 1, 2, 2, 7, 6]
    monkeypatch.setattr(readahead.math, "prod", lambda shape: limit)
    with ReadAhead(shards, order, batch=4, files=True) as reader:
        records = [record for _ in order for record in take(reader, 1)]
    assert [r.index for r in records] == order
    assert [r.label for r in records] == shards.labels()[order].tolist()
    for record in records:
        if len(data[record.index]) <= limit:
            assert (record.file, record.pixels) == (data[record.index], None)
        else:
            assert record.file is None
            np.testing.assert_array_equal(record.pixels, picture_pixels(data[record.index], FIT))
    assert len({r.file is None for r in records}) == 2


def test_a_file_that_is_gone_is_a_fault_of_its_row(folder) -> None:
    shards, data = folder
    shards.infos[0].path.joinpath("ant/001.jpg").unlink()
    shards.shape = (999, 999, 3)  # larger than the files
    with ReadAhead(shards, range(3), files=True) as reader:
        records = [record for _ in range(3) for record in take(reader, 1)]
    assert [record.file for record in records] == [data[0], None, data[2]]
    assert (records[1].label, records[1].fault is None) == (None, False)


def test_reading_and_decoding_are_timed_apart(folder, monkeypatch: pytest.MonkeyPatch) -> None:
    shards, _ = folder
    now_ns, plain = [0], FolderSource.files

    def slow(source: FolderSource, rows: np.ndarray) -> list[bytes | None]:
        now_ns[0] += 5
        return plain(source, rows)

    def decode(*_: object, **__: object) -> np.ndarray:
        now_ns[0] += 70
        return np.zeros(FIT.shape, np.uint8)

    monkeypatch.setattr(FolderSource, "files", slow)
    monkeypatch.setattr("collage_mpi.shards.source.picture_pixels", decode)
    monkeypatch.setattr("time.monotonic_ns", lambda: now_ns[0])
    shards.decoders = 1
    shards.read([0, 1, 2])
    assert shards.meter == ReadMeter(reading_ns=5, decoding_ns=210)
    shards.read_files_checked([3])
    assert shards.meter == ReadMeter(reading_ns=10, decoding_ns=210)


@pytest.mark.parametrize("decoders", [1, 3])
def test_pictures_are_the_same_however_many_decode(
    folder, monkeypatch: pytest.MonkeyPatch, decoders: int
) -> None:
    shards, data = folder
    here = threading.current_thread().name
    shards.decoders, by = decoders, set()

    def noted(one: bytes, fit: PictureFit) -> np.ndarray:
        by.add(threading.current_thread().name.partition("_")[0])
        return picture_pixels(one, fit)

    monkeypatch.setattr("collage_mpi.shards.source.picture_pixels", noted)
    pixels, _ = shards.read([5, 0, 1, 6])
    assert np.array_equal(pixels, [picture_pixels(data[i], FIT) for i in (5, 0, 1, 6)])
    assert by == {here if decoders == 1 else "decode"}
