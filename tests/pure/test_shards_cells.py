"""Cells stored beside the images, and made while reading ahead."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from collage_mpi.cli import main
from collage_mpi.encoding.collage import Encoder
from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.shards import ReadAhead, ShardSet, verify_shard, write_shard
from collage_mpi.shards.cells import add_cells
from collage_mpi.shards.check import inspect_here
from collage_mpi.shards.readahead import CellMaker, ImageParts

pytest.importorskip("torch")

IMAGES = np.random.default_rng(0).integers(0, 256, (23, 12, 12, 3), dtype=np.uint8)
ENCODER = Encoder(Grid(2, 5), (12, 12, 3))
CELLS = ENCODER.shrink(IMAGES)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A shard with cells of 5 px."""
    write_shard(tmp_path / "a.h5", IMAGES, np.arange(23) % 4, class_names=list("abcd"), source="s")
    copy, count = add_cells(tmp_path / "a.h5", tmp_path / "new/cells", 5, ENCODER.shrink)
    assert count == 23
    return copy


def records_of(path: Path, maker: CellMaker | None, order: list[int]) -> list:
    with (
        ShardSet([inspect_here(path, hash_file=True)]) as shards,
        ReadAhead(shards, order, batch=5, parts=ImageParts(cells=maker)) as reader,
    ):
        records = []
        while taken := reader.take(4):
            records += taken
        assert (reader.cells_ns > 0) == (maker is not None)
    return records


def refuse(images: np.ndarray) -> np.ndarray:
    raise AssertionError("nothing is shrunk where cells are stored")


def test_the_copy_is_the_shard_with_cells(stored: Path) -> None:
    assert verify_shard(stored) == []
    info = inspect_here(stored, hash_file=True)
    assert (info.cell_sizes, info.class_names, info.source) == ((5,), tuple("abcd"), "s")
    with ShardSet([info]) as shards:
        pixels, labels = shards.read_all()
        assert np.array_equal(pixels, IMAGES)
        assert labels is not None
        assert np.array_equal(labels, np.arange(23) % 4)
        cells, good = shards.read_cells([22, 0, 7, 7], 5)
        assert good.all()
        assert np.array_equal(cells, CELLS[[22, 0, 7, 7]])


@pytest.mark.parametrize("maker", [CellMaker(ENCODER.shrink), CellMaker(refuse, 5), None])
def test_cells_come_with_the_images(stored: Path, maker: CellMaker | None) -> None:
    order = [3, 22, 0, 5, 4, 3, 19, 20, 21]
    for record, index in zip(records_of(stored, maker, order), order, strict=True):
        assert np.array_equal(record.pixels, IMAGES[index])
        if maker is None:
            assert record.cell is None
        else:
            assert record.cell is not None
            assert np.array_equal(record.cell, CELLS[index])


def test_a_damaged_cell_is_made_again_and_told_by_verify(stored: Path) -> None:
    with h5py.File(stored, "a") as file:
        file["cells_5"][7] ^= 1
    assert "row 7: checksum does not match its cells_5" in verify_shard(stored)
    stored.with_name(stored.name + ".sha256").unlink()
    (record,) = records_of(stored, CellMaker(ENCODER.shrink, 5), [7])
    assert record.fault is None
    assert np.array_equal(record.cell, CELLS[7])


def test_cells_of_another_filter_are_not_used(stored: Path) -> None:
    stored.with_name(stored.name + ".sha256").unlink()
    with h5py.File(stored, "a") as file:
        file["cells_5"].attrs["filter"] = "nearest"
    assert inspect_here(stored, hash_file=True).cell_sizes == ()
    again, _ = add_cells(stored, stored.parent / "again", 5, ENCODER.shrink)
    assert inspect_here(again, hash_file=True).cell_sizes == (5,)


@pytest.mark.parametrize("what", ["shape", "checksums", "filter", "cut"])
def test_malformed_cells_are_refused(stored: Path, what: str) -> None:
    stored.with_name(stored.name + ".sha256").unlink()
    with h5py.File(stored, "a") as file:
        if what == "shape":
            del file["cells_5"]
            file["cells_5"] = np.zeros((23, 5, 4, 3), np.uint8)
        elif what == "checksums":
            del file["cells_5_crc32"]
        elif what == "filter":
            del file["cells_5"].attrs["filter"]
        else:
            del file["cells_5"]
            file.create_dataset("cells_5", (23, 5, 5, 3), np.uint8, chunks=(4, 5, 5, 3))
    with pytest.raises(DataFault, match=r"cells_5|filter|chunks"):
        inspect_here(stored, hash_file=True)


def test_the_command_copies_and_refuses(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    write_shard(tmp_path / "a.h5", IMAGES)
    words = ["shards", "add-cells", str(tmp_path / "a.h5"), "--cell-px", "5", "--out"]
    assert main([*words, str(tmp_path / "new")]) == 0
    assert "23 images of 12 x 12 with cells of 5 x 5" in capsys.readouterr().out
    assert main(["shards", "inspect", str(tmp_path / "new" / "a.h5")]) == 0
    assert "stored for 5 px" in capsys.readouterr().out
    assert main([*words, str(tmp_path)]) == int(EnvironmentFault.exit_code)
    again = ["shards", "add-cells", str(tmp_path / "new" / "a.h5"), "--cell-px", "5", "--out"]
    assert main([*again, str(tmp_path / "third")]) == int(DataFault.exit_code)
    assert not (tmp_path / "third").exists()
    same = ["shards", "add-cells", str(tmp_path / "a.h5"), "--cell-px", "12", "--out"]
    assert main([*same, str(tmp_path / "third")]) == 2
