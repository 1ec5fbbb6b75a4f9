"""The same pictures in every source that takes pictures."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from collage_mpi.shards import write_shard
from collage_mpi.shards.pictures import PictureFit, picture_pixels

FIT = PictureFit(16)
CLASSES = ("ant", "bee", "cat")
COUNT = 12
KINDS = ("shard", "folder", "list", "tar", "parquet", "hugging", "zarr2", "zarr3")


def picture(seed: int) -> bytes:
    """A JPEG or PNG, larger or smaller than the 16 x 16 pixels that are made of it."""
    size = (10 + 7 * seed % 40, 30, 3)
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "JPEG" if seed % 2 else "PNG")
    return buffer.getvalue()


def write_folder(root: Path, count: int = COUNT) -> list[Path]:
    """A folder a class; the files in the order of their rows."""
    files = []
    for number in range(count):
        folder = root / CLASSES[number * len(CLASSES) // count]
        folder.mkdir(parents=True, exist_ok=True)
        files.append(folder / f"{number:03d}.{'jpg' if number % 2 else 'png'}")
        files[-1].write_bytes(picture(number))
    return files


def make_source(kind: str, path: Path, files: Iterable[Path]) -> Path:
    """Make one of KINDS of the pictures; returns what --input takes."""
    files = list(files)
    data = [file.read_bytes() for file in files]
    labels = [CLASSES.index(file.parent.name) for file in files]
    path.mkdir()
    if kind == "folder":
        return files[0].parent.parent
    if kind == "shard":
        pixels = np.stack([picture_pixels(one, FIT) for one in data])
        return write_shard(path / "a.h5", pixels, labels, class_names=CLASSES).path
    if kind == "list":
        (path / "list.txt").write_text("".join(f"{file}\n" for file in files))
        return path / "list.txt"
    if kind == "tar":
        return write_tar(path / "a.tar", files, labels)
    if kind in ("parquet", "hugging"):
        return write_parquet(path / "a.parquet", data, labels, hugging=kind == "hugging")
    return write_zarr(path / "a.zarr", data, labels, int(kind[-1]))


def write_tar(path: Path, files: list[Path], labels: list[int]) -> Path:
    with tarfile.open(path, "w") as tar:
        for file, label in zip(files, labels, strict=True):
            tar.add(file, file.name)
            info = tarfile.TarInfo(f"{file.stem}.cls")
            info.size = 1
            tar.addfile(info, io.BytesIO(str(label).encode()))
    return path


def write_parquet(path: Path, data: list[bytes], labels: list, hugging: bool = False) -> Path:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = pa.array(data, pa.binary())
    if hugging:
        names = pa.array([f"{row}.jpg" for row in range(len(data))])
        images = pa.StructArray.from_arrays([images, names], ["bytes", "path"])
    table = pa.table({"image": images, "label": pa.array(labels)})
    if hugging:
        about = {"info": {"features": {"label": {"names": list(CLASSES), "_type": "ClassLabel"}}}}
        table = table.replace_schema_metadata({"huggingface": json.dumps(about)})
    pq.write_table(table, path, row_group_size=5)
    return path


def write_zarr(path: Path, data: list[bytes], labels: list[int], version: int = 3) -> Path:
    import zarr

    pixels = np.stack([picture_pixels(one, FIT) for one in data])
    group = zarr.open_group(str(path), mode="w", zarr_format=version)
    chunks = (4, 8, *pixels.shape[2:])
    array = group.create_array("images", shape=pixels.shape, dtype="u1", chunks=chunks)
    array[...] = pixels
    named = group.create_array("labels", shape=(len(data),), dtype="i8", chunks=(len(data),))
    named[...] = labels
    return path
