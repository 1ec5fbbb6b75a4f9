"""The same pictures, kept in another way, are the same images: pixels, files, labels and ids."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from chunked import write_chunked
from pictures import CLASSES, FIT, write_tar
from PIL import Image

from collage_mpi.shards import ShardSet
from collage_mpi.shards.inputs import ids_of
from collage_mpi.shards.source import ReadAs

COUNT = 15  # two row groups of 7, and one of 1
PIXELS = np.random.default_rng(40).integers(0, 256, (COUNT, *FIT.shape), dtype=np.uint8)
LABELS = [row * len(CLASSES) // COUNT for row in range(COUNT)]
NAMES = [f"{CLASSES[label]}/{row:03d}.png" for row, label in enumerate(LABELS)]


def encoded(pixels: np.ndarray) -> bytes:
    """A PNG, which keeps each pixel."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


DATA = [encoded(pixels) for pixels in PIXELS]


def folder(root: Path) -> Path:
    for name, data in zip(NAMES, DATA, strict=True):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def tar(root: Path) -> Path:
    folder(root / "files")
    return write_tar(root / "a.tar", [root / "files" / name for name in NAMES], LABELS)


def parquet(root: Path, rows_per_group: int) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = pa.StructArray.from_arrays([pa.array(DATA), pa.array(NAMES)], ["bytes", "path"])
    about = {"info": {"features": {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}}}
    table = pa.table({"image": images, "label": pa.array(LABELS)})
    table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, root / "a.parquet", row_group_size=rows_per_group)
    return root / "a.parquet"


def zarr(root: Path, rows: int, shards: int | None, *, channels_first: bool = False) -> Path:
    module = pytest.importorskip("zarr", reason="zarr is not installed")
    pixels = PIXELS.transpose(0, 3, 1, 2) if channels_first else PIXELS
    group = module.open_group(str(root / "a.zarr"), mode="w", zarr_format=3)
    each = pixels.shape[1:]
    shape = None if shards is None else (shards, *each)
    images = group.create_array(
        "images", shape=pixels.shape, dtype="u1", chunks=(rows, *each), shards=shape
    )
    images[...] = pixels
    labels = group.create_array("labels", shape=(COUNT,), dtype="i8", chunks=(COUNT,))
    labels[...] = LABELS
    return root / "a.zarr"


def hdf5(root: Path, rows: int) -> Path:
    write_chunked(root / "a.h5", rows, PIXELS, LABELS, NAMES, class_names=CLASSES)
    return root / "a.h5"


WAYS = {
    "folder": folder,
    "tar": tar,
    "parquet, 1 row a group": lambda root: parquet(root, 1),
    "parquet, 7 rows a group": lambda root: parquet(root, 7),
    "parquet, one group": lambda root: parquet(root, COUNT),
    "zarr, chunks": lambda root: zarr(root, 4, None),
    "zarr, shards": lambda root: zarr(root, 2, 8),
    "zarr, channels first": lambda root: zarr(root, 4, None, channels_first=True),
    "zarr, shards, channels first": lambda root: zarr(root, 2, 8, channels_first=True),
    "HDF5, chunks": lambda root: hdf5(root, 4),
    "HDF5, one chunk": lambda root: hdf5(root, COUNT),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ShardSet]:
    found = {}
    for way, make in WAYS.items():
        (root := tmp_path_factory.mktemp("same") / "kept").mkdir()
        read_as = ReadAs(FIT, class_names=CLASSES)
        found[way] = ShardSet.open([make(root)], read_as=read_as)
    return found


@pytest.mark.parametrize("way", WAYS)
def test_the_same_pictures_kept_in_another_way_are_the_same_images(way: str, made) -> None:
    images, [info] = made[way], made[way].infos
    everything = np.arange(COUNT)
    orders = [everything, everything[::-1], np.array([14, 0, 7, 6, 6, 13]), everything[8:9]]
    for order in orders:
        pixels, labels, good = images.read_checked(order)
        assert good.all()
        assert (pixels == PIXELS[order]).all()
        assert labels.tolist() == [LABELS[row] for row in order]
        if info.storage in ("folder", "tar", "parquet"):
            assert images.read_files_checked(order)[0] == [DATA[row] for row in order]
    assert images.class_names == CLASSES
    # A tar's name stands before its members', and Zarr has no names of images.
    ids = {"tar": [f"a.tar:{Path(name).name}" for name in NAMES], "zarr": None}
    assert ids_of(info) == ids.get(info.storage, NAMES)


def test_each_way_of_keeping_them_is_another_input(made) -> None:
    """A run is resumed with the files that it began with, so what else they are must not count."""
    prints = {way: images.infos[0].fingerprint for way, images in made.items()}
    assert len({*prints.values()}) == len(WAYS), prints
