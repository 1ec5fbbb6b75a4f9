"""Readers of HDF5, each with valid files: what fuzz.py damages, by bytes and by values.

Owns: shards and files of other programs, what an HDF5 file may hold in place of what it should.
"""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from chunked import write_chunked
from fuzz import Reader, damage

from collage_mpi.errors import CollageError
from collage_mpi.prep.work import read_labels
from collage_mpi.shards.schema import class_numbers

USER = (CollageError,)
Change = Callable[[random.Random, bytes], bytes]

# ---- shards -----------------------------------------------------------------

SHARDS_A_CHILD = 25


def shard_readers(folder: Path) -> list[Reader]:
    """Many in one input: the child that looks first takes half a second to start."""
    import h5py

    images = np.random.default_rng(0).integers(0, 256, (20, 3, 3, 1), dtype=np.uint8)
    labels = np.arange(20) % 3
    own, other = folder / "s.h5", folder / "other.h5"
    write_chunked(own, 6, images, labels, class_names=["a", "b", "c"], source="s")
    with h5py.File(other, "w") as file:
        file["images"], file["labels"] = images, labels
    truth = images, labels
    beside = folder / "labels.h5"

    def read_labels_file(raw: bytes) -> None:
        beside.write_bytes(raw)
        class_numbers(read_labels(str(beside)), None)

    return [
        Reader("labels .h5", [_hdf5_of({"labels": labels})], read_labels_file, USER, _hdf5_values),
        _shard_reader("shards", folder, own.read_bytes(), truth, damage),
        _shard_reader("shards, values", folder, own.read_bytes(), truth, _hdf5_values),
        _shard_reader("HDF5 of other programs", folder, other.read_bytes(), None, damage),
        _shard_reader("HDF5 of other programs, values", folder, other.read_bytes(), None,
                      _hdf5_values),
    ]  # fmt: skip


def _hdf5_of(arrays: dict[str, np.ndarray]) -> bytes:
    import h5py

    out = io.BytesIO()
    with h5py.File(out, "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return out.getvalue()


def _hdf5_values(rng: random.Random, raw: bytes) -> bytes:
    """A sound HDF5 file with an attribute or a dataset replaced, removed, linked or added."""
    import h5py

    out = io.BytesIO(raw)
    with h5py.File(out, "r+") as file:
        for _ in range(rng.choice((1, 1, 2))):
            if rng.random() < 0.4 and len(file.attrs):
                name = rng.choice([*file.attrs, "encoded", "fit", "x"])
                file.attrs.pop(name, None)
                if rng.random() < 0.8:
                    file.attrs[name] = rng.choice(_hdf5_arrays(rng))
                continue
            name = rng.choice([*file, *file, "encoded", "cells_2", "x"])
            if name in file and rng.random() < 0.9:
                del file[name]  # unopened: it may be a link in a circle
            _put_hdf5(rng, file, "y" if name in file else name)
    return out.getvalue()


def _hdf5_arrays(rng: random.Random) -> list[Any]:
    kind = rng.choice(("u1", "<f8", ">u2", "c8", "?", "S3"))
    shapes = ((20, 3, 3, 1), (20, 3, 3, 2), (0, 3, 3, 1), (3,), (20,), ())
    return [
        *(np.zeros(shape, kind) for shape in shapes), np.arange(20), np.full((20, 3, 3, 1), np.nan),
        np.zeros(20, [("a", "<i4")]), "text", b"\xff\xfe", ["a"] * 20, "long" * 9000,
        -1, 1.5, 2**63 - 1,
    ]  # fmt: skip


def _put_hdf5(rng: random.Random, file: Any, name: str) -> None:
    import h5py

    if name in file:
        return
    how = rng.randrange(8)
    if how < 3:
        file[name] = rng.choice(_hdf5_arrays(rng))
    elif how == 3:
        file[name] = h5py.SoftLink(rng.choice(("/", f"/{name}", "/images", "/nowhere")))
    elif how == 4:
        file[name] = h5py.ExternalLink(rng.choice(("/etc/passwd", "s.h5", "../x.h5")), "/images")
    elif how == 5:  # what is claimed and not there: no chunk is stored
        rows = rng.choice((20, 10**4, 10**12))
        chunks = rng.choice(((1, 3, 3, 1), (20, 3, 3, 1)))
        file.create_dataset(name, (rows, 3, 3, 1), "u1", chunks=chunks, maxshape=(None, 3, 3, 1))
    elif how == 6:
        layout = h5py.VirtualLayout((20, 3, 3, 1), "u1")
        layout[:] = h5py.VirtualSource("/etc/hostname", "images", (20, 3, 3, 1))
        file.create_virtual_dataset(name, layout)
    else:
        file.create_group(name)["images"] = np.zeros((20, 3, 3, 1), "u1")


def _shard_reader(
    name: str,
    folder: Path,
    whole: bytes,
    truth: tuple[np.ndarray, np.ndarray] | None,
    change: Change,
) -> Reader:
    from collage_mpi.shards import ShardSet, guard

    paths = [folder / f"{name.split()[0]}-{number}.h5" for number in range(SHARDS_A_CHILD)]

    def read(raw: bytes) -> None:
        rng = random.Random(raw)
        for path in paths:
            path.write_bytes(change(rng, whole))
        for found in guard.examine_shards(paths):
            if isinstance(found, CollageError):
                continue
            try:
                with ShardSet([found]) as shards:
                    pixels, tags = shards.read_all()
            except CollageError:
                continue
            if truth is not None:  # a file without checksums cannot tell a changed pixel
                assert (pixels == truth[0]).all(), "wrong pixels were given out"
                assert tags is None or (tags == truth[1]).all(), "wrong labels were given out"

    return Reader(name, [b"0"], read, USER, _serial, SHARDS_A_CHILD)


def _serial(rng: random.Random, raw: bytes) -> bytes:
    return rng.randbytes(8)
