"""`prep idx` and `prep inspect|verify` as a user types them; the IDX parser against good files,
damaged files and headers that lie.
"""

from __future__ import annotations

import gzip
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import collage_mpi
from collage_mpi.cli import main
from collage_mpi.errors import DataFault, ExitCode
from collage_mpi.prep.work import DTYPES, read_idx
from collage_mpi.shards import ShardSet
from collage_mpi.shards.guard import inspect_here, verify_here

IMAGES = np.random.default_rng(0).integers(0, 256, (25, 4, 3), dtype=np.uint8)
LABELS = (np.arange(25) % 3).astype(np.uint8)


@pytest.fixture
def idx(tmp_path: Path) -> list[str]:
    """The flags that name two IDX files and an output folder."""
    images = struct.pack(">BBBB3I", 0, 0, 8, 3, *IMAGES.shape) + IMAGES.tobytes()
    labels = struct.pack(">BBBBI", 0, 0, 8, 1, 25) + LABELS.tobytes()
    (tmp_path / "images.gz").write_bytes(gzip.compress(images))
    (tmp_path / "labels").write_bytes(labels)
    flags = {"images": "images.gz", "labels": "labels", "out": "out"}
    return ["prep", "idx", *(f"--{flag}={tmp_path / name}" for flag, name in flags.items())]


def read_out(tmp_path: Path) -> ShardSet:
    paths = sorted((tmp_path / "out").glob("*.h5"))
    return ShardSet([inspect_here(path, hash_file=True) for path in paths])


def test_prep_in_order_over_several_shards(
    tmp_path: Path, idx: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*idx, "--rows-per-shard=10", "--prefix=t", "--class-names=a, b,c"]) == 0
    assert "25 images of 4 x 3 x 1 in 3 shards" in capsys.readouterr().out
    with read_out(tmp_path) as shards:
        names = [info.path.name for info in shards.infos]
        assert names == [f"t-{k:05d}-of-00003.h5" for k in range(3)]
        assert shards.class_names == ("a", "b", "c")
        images, labels = shards.read_all()
    np.testing.assert_array_equal(images[..., 0], IMAGES)
    np.testing.assert_array_equal(labels, LABELS)


def test_prep_shuffled_and_limited_is_the_same_each_time(tmp_path: Path, idx: list[str]) -> None:
    flags = [*idx, "--seed=7", "--limit=12", "--source=made up"]
    assert main(flags) == 0
    with read_out(tmp_path) as shards:
        first, info = shards.read_all(), shards.infos[0]
    assert info.path.name == "shard.h5"
    assert info.source == "made up"
    rows = np.random.default_rng(7).permutation(25)[:12]
    np.testing.assert_array_equal(first[0][..., 0], IMAGES[rows])
    np.testing.assert_array_equal(first[1], LABELS[rows])
    assert main(flags) == ExitCode.ENVIRONMENT
    assert main([*flags, "--overwrite"]) == 0
    with read_out(tmp_path) as shards:
        assert shards.infos[0].fingerprint == info.fingerprint


def test_images_that_lie_on_their_side_and_labels_of_two_axes(
    tmp_path: Path, idx: list[str]
) -> None:
    two = struct.pack(">BBBB2I", 0, 0, 8, 2, 25, 1) + LABELS.tobytes()
    (tmp_path / "labels").write_bytes(two)
    assert main([*idx, "--transpose"]) == 0
    with read_out(tmp_path) as shards:
        images, labels = shards.read_all()
    np.testing.assert_array_equal(images[..., 0], IMAGES.swapaxes(1, 2))
    np.testing.assert_array_equal(labels, LABELS)


def test_overwrite_removes_shards_of_another_number(tmp_path: Path, idx: list[str]) -> None:
    assert main([*idx, "--rows-per-shard=5"]) == 0
    assert main([*idx, "--overwrite"]) == 0
    assert sorted(item.name for item in (tmp_path / "out").iterdir()) == [
        "shard.h5",
        "shard.h5.sha256",
    ]


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--limit=0"], ExitCode.USAGE, "--limit is 0; it needs at least 1"),
        (["--rows-per-shard=-1"], ExitCode.USAGE, "at least 1"),
        (["--prefix=a/b"], ExitCode.USAGE, "--prefix"),
        (["--seed=-1"], ExitCode.USAGE, "--seed"),
        (["--class-names=a,,b"], ExitCode.USAGE, "class 1 has none"),
        (["--class-names=a,b"], ExitCode.DATA, "label 2 has no name"),
        (["--class-names-file=/none"], ExitCode.ENVIRONMENT, "/none: cannot be read"),
        (["--images=/none"], ExitCode.ENVIRONMENT, "/none: cannot be read"),
    ],
)
def test_prep_refuses(
    idx: list[str],
    capsys: pytest.CaptureFixture[str],
    flags: list[str],
    code: ExitCode,
    words: str,
) -> None:
    assert main([*idx, *flags]) == code
    assert words in capsys.readouterr().err


def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, idx: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*idx, f"--images={tmp_path / 'labels'}"]) == ExitCode.DATA
    assert main([*idx, f"--labels={tmp_path / 'images.gz'}"]) == ExitCode.DATA
    assert not (tmp_path / "out").exists()


def test_shards_inspect_and_verify(
    tmp_path: Path, idx: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*idx, "--class-names=a,b,c"]) == 0
    out = str(tmp_path / "out")
    capsys.readouterr()
    assert main(["prep", "inspect", out]) == 0
    assert "25 of 4 x 3 x 1" in capsys.readouterr().out
    assert main(["prep", "inspect", "--json", out]) == 0
    assert json.loads(capsys.readouterr().out)["class_names"] == ["a", "b", "c"]
    assert main(["prep", "verify", out]) == 0
    assert "shard.h5: good" in capsys.readouterr().out
    shard = tmp_path / "out" / "shard.h5"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert main(["prep", "verify", "--json", out]) == ExitCode.DATA
    assert "SHA-256" in json.loads(capsys.readouterr().out)["problems"][0]
    assert main(["prep", "inspect", out]) == ExitCode.DATA
    assert main(["prep", "inspect", str(tmp_path / "none.h5")]) == ExitCode.ENVIRONMENT


def test_the_demo_data() -> None:
    path = Path(collage_mpi.__file__).parent / "data" / "fashion_demo.h5"
    assert verify_here(path) == []
    info = inspect_here(path, hash_file=True)
    assert (info.count, info.shape) == (1800, (28, 28, 1))
    assert "Fashion-MNIST" in info.source
    assert info.class_names is not None
    with ShardSet([info]) as shards:
        labels = shards.labels()
    assert labels is not None
    assert np.bincount(labels).min() >= 150  # about 180 of each class
    assert (np.diff(labels) < 0).sum() > 600  # shuffled: sorted would be 0


CODES = {np.dtype(text): code for code, text in DTYPES.items()}
SHARED_FOLDER = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def idx_bytes(array: np.ndarray) -> bytes:
    """`array` (big-endian dtype) as an IDX file."""
    header = struct.pack(">BBBB", 0, 0, CODES[array.dtype], array.ndim)
    return header + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@SHARED_FOLDER
@given(
    array=st.sampled_from(sorted(DTYPES.values())).flatmap(
        lambda text: hnp.arrays(text, hnp.array_shapes(max_dims=4, max_side=5))
    ),
    zipped=st.booleans(),
)
def test_round_trip(tmp_path: Path, array: np.ndarray, zipped: bool) -> None:
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(idx_bytes(array)) if zipped else idx_bytes(array))
    read = read_idx(path)
    assert read.dtype == array.dtype.newbyteorder("=")
    np.testing.assert_array_equal(read, array)


@SHARED_FOLDER
@given(data=st.binary(max_size=64), zipped=st.booleans(), headed=st.booleans())
def test_any_bytes_are_read_or_refused(
    tmp_path: Path, data: bytes, zipped: bool, headed: bool
) -> None:
    data = b"\0\0\x08" + data if headed else data
    path = tmp_path / "file"
    path.write_bytes(gzip.compress(data) if zipped else data)
    try:
        array = read_idx(path)
    except DataFault:
        return
    assert idx_bytes(array.astype(array.dtype.newbyteorder(">"))) == data


@SHARED_FOLDER
@given(data=st.data())
def test_damaged_gzip_is_refused_or_the_same(tmp_path: Path, data: st.DataObject) -> None:
    array = np.arange(60, dtype=">u1").reshape(3, 4, 5)
    raw = bytearray(gzip.compress(idx_bytes(array)))
    place = data.draw(st.integers(0, len(raw) - 1))
    raw[place] ^= data.draw(st.integers(1, 255))
    path = tmp_path / "file"
    path.write_bytes(raw[: data.draw(st.integers(place + 1, len(raw)))])
    try:
        read = read_idx(path)
    except DataFault:
        return
    np.testing.assert_array_equal(read, array)


def test_a_header_that_claims_terabytes_costs_nothing(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(struct.pack(">BBBB3I", 0, 0, 8, 3, 2**32 - 1, 2**32 - 1, 2**31) + b"abc")
    with pytest.raises(DataFault, match="the file has 3"):
        read_idx(path)


def test_left_over_bytes_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(idx_bytes(np.zeros(4, dtype=">u1")) + b"x")
    with pytest.raises(DataFault, match="has more"):
        read_idx(path)
