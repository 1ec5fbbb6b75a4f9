"""HDF5 files of other programs: what is understood, what is refused with what to type."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shlex
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from test_shards_readahead import take

from collage_mpi.cli import main
from collage_mpi.errors import DataFault, ExitCode
from collage_mpi.shards import ReadAhead, ShardSet, inspect_shard, verify_shard, write_shard
from collage_mpi.shards.guard import inspect_here, stored_in_full, verify_here
from collage_mpi.shards.inputs import ids_of
from collage_mpi.shards.source import ANY_ITEMS

RANDOM = np.random.default_rng(0)
GREY = RANDOM.integers(0, 256, (12, 6, 5), dtype=np.uint8)
COLOUR = RANDOM.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8)
LABELS = (np.arange(12) % 3).astype(np.uint8)
FOUR = LABELS[:, None, None, None]  # as PatchCamelyon has them


def file_of(path: Path, datasets: dict[str, Any], **options: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, data in datasets.items():
            own = options if np.ndim(data) > 2 else {}
            file.create_dataset(name, data=data, **own)
    return path


def test_a_row_that_cannot_be_unpacked_leaves_the_others(tmp_path: Path) -> None:
    """Without checksums, what its place in memory held before must not pass for the image."""
    path = tmp_path / "x.h5"
    with h5py.File(path, "w") as file:
        chunk = (1, *COLOUR.shape[1:])
        images = file.create_dataset("x", data=COLOUR, chunks=chunk, compression="gzip")
        images.id.write_direct_chunk((1, 0, 0, 0), b"no gzip")
    with ShardSet.open([path]) as shards:
        for _ in range(2):
            pixels, _, good = shards.read_checked([2, 1, 0])
            assert good.tolist() == [True, False, True]
            np.testing.assert_array_equal(pixels[[0, 2]], COLOUR[[2, 0]])
            assert shards.row_fault(1).startswith("cannot be read: ")
        assert not shards.lost


def test_a_dataset_of_that_name_holds_no_ids(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.h5", {"x": COLOUR, "ids": np.arange(12).astype("S2")})
    assert ids_of(inspect_here(path, hash_file=True)) is None


@pytest.mark.parametrize(
    ("datasets", "expected", "axes", "labelled"),
    [
        ({"pictures": COLOUR, "numbers": LABELS}, COLOUR, "NHWC", True),
        ({"imgs": COLOUR.transpose(0, 3, 1, 2), "ids": np.arange(5)}, COLOUR, "NCHW", False),
        ({"X": GREY, "Y": LABELS[:, None].astype(np.int32)}, GREY[..., None], "NHW", True),
        ({"a/b/x": GREY[:, None], "a/c/y": FOUR}, GREY[..., None], "NCHW", True),
        ({"x": COLOUR, "scores": LABELS / 2, "flat": GREY[:, 0]}, COLOUR, "NHWC", False),
    ],
)
def test_one_dataset_of_images_and_one_of_labels_are_found_by_their_shape(
    tmp_path: Path, datasets: dict[str, Any], expected: np.ndarray, axes: str, labelled: bool
) -> None:
    info = inspect_here(file_of(tmp_path / "a.h5", datasets), hash_file=True)
    assert info.storage == "foreign"
    assert info.layout is not None
    assert info.layout.axes == axes
    order = [7, 3, 3, 11, 0, 1, 2]
    with ShardSet([info]) as shards:
        pixels, labels = shards.read(order)
        with ReadAhead(shards, order) as reader:
            records = [record for _ in order for record in take(reader, 1)]
    np.testing.assert_array_equal(pixels, expected[order])
    assert all(r.fault is None and (r.pixels == expected[r.index]).all() for r in records)
    assert records[0].pixels.flags.c_contiguous
    assert (labels is not None) == labelled
    assert labels is None or (labels.dtype, labels.tolist()) == (np.int64, LABELS[order].tolist())


@pytest.mark.parametrize("options", [{"compression": "gzip"}, {"chunks": (3, 2, 5, 1)}])
def test_compressed_and_cut_chunks_are_read(tmp_path: Path, options: dict[str, Any]) -> None:
    path = file_of(tmp_path / "a.hdf5", {"images": COLOUR}, **options)
    with ShardSet([inspect_here(path, hash_file=True)]) as shards:
        np.testing.assert_array_equal(shards.read([5, 1])[0], COLOUR[[5, 1]])


def test_several_files_are_one_input_and_must_be_alike(tmp_path: Path) -> None:
    first = file_of(tmp_path / "a.h5", {"x": COLOUR, "y": LABELS})
    second = file_of(tmp_path / "b.h5", {"imgs": COLOUR.transpose(0, 3, 1, 2), "label": LABELS})
    write_shard(tmp_path / "c.h5", COLOUR, LABELS)
    with ShardSet.open([first, second, tmp_path / "c.h5"]) as shards:
        assert len(shards) == 36
        np.testing.assert_array_equal(shards.read_all()[0], np.concatenate([COLOUR] * 3))
    grey = file_of(tmp_path / "d.h5", {"x": GREY, "y": LABELS})
    with pytest.raises(DataFault, match="must be alike"):
        ShardSet.open([first, grey])


def test_a_part_is_named_and_has_a_fingerprint_of_its_own(tmp_path: Path) -> None:
    both = {"train/data": COLOUR, "train/labels": LABELS, "test/data": COLOUR[::-1]}
    path = file_of(tmp_path / "a.h5", {**both, "test/labels": LABELS[::-1]})
    with pytest.raises(
        DataFault, match=r"2 datasets can be the images: test/data .*, train/data .*--images NAME"
    ):
        inspect_here(path, hash_file=True)
    infos = [inspect_shard(Path(f"{path}::{part}")) for part in ("train", "test", "test/data")]
    assert len({info.fingerprint for info in infos}) == 3
    assert not {info.fingerprint for info in infos} & {
        hashlib.sha256(path.read_bytes()).hexdigest()
    }
    with ShardSet(infos) as shards:
        assert (shards.read([12])[0][0] == COLOUR[-1]).all()
        assert shards.changed() == {}
    assert main(["prep", "inspect", f"{path}::train", f"{path}::test"]) == 0
    with pytest.raises(DataFault, match="has no 'val'"):
        inspect_here(Path(f"{path}::val"), hash_file=True)
    shard = tmp_path / "own.h5"
    write_shard(shard, COLOUR)
    with pytest.raises(DataFault, match="used as a whole"):
        inspect_here(Path(f"{shard}::images"), hash_file=True)


def command_in(message: str) -> list[str]:
    """The words after `collage-mpi` of the command that a message says to type."""
    found = re.search(r"`(collage-mpi [^`]+)`", message)
    assert found, message
    return shlex.split(found.group(1))[1:]


BOTH = RANDOM.integers(0, 256, (12, 3, 6, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("datasets", "typed", "images", "labels"),
    [
        ({"g/x": (COLOUR / 255).astype("f4"), "g/y": LABELS}, {"LOW:HIGH": "0:1"}, COLOUR, LABELS),
        ({"x": COLOUR * 2.0 - 255}, {"LOW:HIGH": "-255:255"}, COLOUR, None),
        ({"x": COLOUR.astype("u2")}, {"LOW:HIGH": "0:255"}, COLOUR, None),
        ({"x": GREY.reshape(12, 30), "y": LABELS}, {"H,W": "6,5"}, GREY[..., None], LABELS),
        ({"x": BOTH, "y": LABELS}, {}, BOTH, LABELS),
        ({"x": COLOUR, "z": BOTH}, {"--images NAME --labels NAME": "--images x"}, COLOUR, None),
        ({"x": COLOUR, "a": LABELS, "b": LABELS[::-1]}, {"NAME": "b"}, COLOUR, LABELS[::-1]),
        ({"x": COLOUR, "a": LABELS, "b": LABELS[::-1]}, {"NAME": "none"}, COLOUR, None),
    ],
)
def test_a_refusal_says_what_is_found_and_what_to_type(
    tmp_path: Path,
    datasets: dict[str, Any],
    typed: dict[str, str],
    images: np.ndarray,
    labels: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = file_of(tmp_path / "a b.h5", datasets)
    with pytest.raises(DataFault) as caught:
        ShardSet.open([path])
    message = str(caught.value)
    for word, own in typed.items():
        assert word in message
        message = message.replace(word, own)
    monkeypatch.chdir(tmp_path)
    assert main(command_in(message)) == 0
    assert verify_shard(Path("shards/shard.h5")) == []
    with ShardSet.open(["shards"]) as shards:
        found, numbers = shards.read_all()
    np.testing.assert_array_equal(found, images)
    assert (numbers is None) == (labels is None)
    assert labels is None or numbers.tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("datasets", "words"),
    [
        ({"y": LABELS}, r"holds no images: it holds y \(uint8 "),
        ({"images": COLOUR, "x": COLOUR}, r"2 datasets can be the images: images .*, x .*NAME"),
        ({"x": COLOUR, "y": LABELS, "label": LABELS}, "can be the labels of x: label .*, y .*NAME"),
        ({"x": np.zeros((4, 3, 8, 3), np.uint8)}, "axis 1 or axis 3.*--axes NHWC"),
        ({"x": np.zeros((0, 8, 8, 3), np.uint8)}, "none of them empty"),
        ({"x": COLOUR, "y": LABELS.astype(np.int8) - 1}, "negative"),
        ({"x": RANDOM.normal(size=(4, 8, 8))}, "float64 .*--range=LOW:HIGH"),
    ],
)
def test_what_cannot_be_understood(tmp_path: Path, datasets: dict[str, Any], words: str) -> None:
    path = file_of(tmp_path / "a.h5", datasets)
    with pytest.raises(DataFault, match=words):
        inspect_here(path, hash_file=True)


@pytest.mark.parametrize(
    ("array", "words"),
    [
        (COLOUR.reshape(12, -1), r"uint8 \(90,\); needed here: uint8 pictures.* --shape H,W"),
        (np.zeros((4, 8, 8, 4), np.uint8), r"uint8 \(8, 8, 4\); needed here: .*1 or 3"),
        (np.zeros((4, 3, 4, 5, 2), np.float32), r"float32 \(3, 4, 5, 2\); needed here: uint8"),
    ],
)
def test_items_that_are_no_pictures_are_for_those_that_take_any(
    tmp_path: Path, array: np.ndarray, words: str
) -> None:
    path = file_of(tmp_path / "a.h5", {"images": array})
    with pytest.raises(DataFault, match=words):
        ShardSet.open([path])
    with ShardSet.open([path], read_as=ANY_ITEMS) as found:
        assert (found.dtype, found.shape) == (array.dtype.name, array.shape[1:])
        np.testing.assert_array_equal(found.read_all()[0], array)


@pytest.mark.parametrize("dtype", ["float64", "int32", "complex64"])
def test_values_of_other_types_are_refused_everywhere(tmp_path: Path, dtype: str) -> None:
    path = file_of(tmp_path / "a.h5", {"images": np.zeros((4, 8, 8, 12), dtype)})
    with pytest.raises(DataFault, match=rf"{dtype}|holds no images"):
        ShardSet.open([path], read_as=ANY_ITEMS)


def test_a_dataset_without_values_is_passed_over(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.h5", {"x": COLOUR, "nothing": h5py.Empty("f4")})
    assert inspect_here(path, hash_file=True).count == len(COLOUR)


def test_links_to_elsewhere_are_not_followed(tmp_path: Path) -> None:
    other = file_of(tmp_path / "other.h5", {"images": COLOUR})
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = h5py.ExternalLink(str(other), "/images")
    with pytest.raises(DataFault, match="holds no images"):
        inspect_here(tmp_path / "a.h5", hash_file=True)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        layout = h5py.VirtualLayout(COLOUR.shape, COLOUR.dtype)
        layout[...] = h5py.VirtualSource(str(other), "images", COLOUR.shape)
        file.create_virtual_dataset("images", layout)
    with pytest.raises(DataFault, match="'images' lies in other files: name those instead"):
        inspect_here(tmp_path / "a.h5", hash_file=True)


def test_a_file_of_one_image_is_read_to_its_end(tmp_path: Path) -> None:
    path = file_of(tmp_path / "a.h5", {"images": COLOUR[:1]})
    (problem,) = verify_here(path)
    assert "without checksums" in problem


def test_inspect_and_verify_say_that_nothing_proves_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file_of(tmp_path / "a.h5", {"x": COLOUR, "y": LABELS})
    assert main(["prep", "inspect", str(path)]) == 0
    said = capsys.readouterr().out
    assert "images     dataset x, axes NHWC" in said
    assert "labels     dataset y" in said
    assert "integrity    not checked" in said
    assert main(["prep", "inspect", "--json", str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["layout"]["labels"] == "y"
    assert main(["prep", "verify", str(path)]) == ExitCode.DATA
    assert "sha256sum a.h5 > a.h5.sha256" in capsys.readouterr().out
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (tmp_path / "a.h5.sha256").write_text(f"{digest}  a.h5\n")
    assert main(["prep", "verify", str(path)]) == 0
    with path.open("r+b") as file:
        file.seek(-3, 2)
        file.write(b"\xff\xff\xff")
    assert main(["prep", "verify", str(path)]) == ExitCode.DATA


@pytest.mark.parametrize(
    ("labels", "numbers", "names"),
    [
        (np.eye(3, dtype=np.float32)[LABELS], LABELS, None),
        (LABELS.astype(np.float64), LABELS, None),
        (np.array([b"cat", b"ant", b"bee"])[LABELS], [2, 0, 1], ("ant", "bee", "cat")),
    ],
)
def test_prep_takes_labels_of_other_forms(
    tmp_path: Path, labels: np.ndarray, numbers: Any, names: tuple[str, ...] | None
) -> None:
    path = file_of(tmp_path / "a.h5", {"x": COLOUR, "y": labels})
    out = tmp_path / "out"
    words = ["prep", "hdf5", str(path), "--labels=y", f"--out={out}", "--seed=1", "--size=4"]
    assert main(words) == 0
    with ShardSet.open([out]) as shards:
        found = shards.labels()
        assert shards.class_names == names
        assert shards.shape == (4, 4, 3)
    assert found is not None
    rows = np.random.default_rng(1).permutation(12)
    expected = np.asarray(LABELS if names is None else np.asarray(numbers)[LABELS])
    assert found.tolist() == expected[rows].tolist()


@pytest.mark.parametrize(
    ("datasets", "flags", "code", "words"),
    [
        ({"x": COLOUR * 1.0}, [], ExitCode.DATA, "outside 0 to 1: give its true --range LOW:HIGH"),
        ({"x": COLOUR.astype("i2")}, [], ExitCode.DATA, "black and white: --range LOW:HIGH"),
        ({"x": COLOUR * 1.0}, ["--range=9"], ExitCode.USAGE, "LOW:HIGH"),
        ({"x": COLOUR * 1.0}, ["--range=0:100"], ExitCode.DATA, "outside 0 to 100"),
        ({"x": np.full((3, 4, 4), np.nan)}, ["--range=0:1"], ExitCode.DATA, "image 0 holds nan"),
        (
            {"x": np.eye(4)[[0, 1, 2]] * [[1], [1], [2]]},
            ["--shape=2,2", "--seed=0"],
            ExitCode.DATA,
            "image 2 holds 2",
        ),
        ({"x": COLOUR}, ["--labels=z"], ExitCode.DATA, "has no 'z'"),
        ({"x": COLOUR}, ["--images=g/x"], ExitCode.DATA, "has no 'g/x'"),
        ({"x": COLOUR, "s": 5}, ["--images=s"], ExitCode.DATA, "'s' is a single value, or none"),
        ({"x": COLOUR, "y": LABELS + 0.5}, ["--labels=y"], ExitCode.DATA, "whole numbers, names"),
        ({"x": COLOUR, "y": LABELS}, ["--class-names=a,b"], ExitCode.DATA, "label 2 has no name"),
    ],
)
def test_prep_refuses(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    datasets: dict[str, Any],
    flags: list[str],
    code: ExitCode,
    words: str,
) -> None:
    path = file_of(tmp_path / "a.h5", datasets)
    assert main(["prep", "hdf5", str(path), f"--out={tmp_path / 'o'}", *flags]) == code
    assert words in capsys.readouterr().err
    assert list((tmp_path / "o").glob("*")) == []


def test_prep_names_the_row_that_cannot_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = file_of(tmp_path / "a.h5", {"x": COLOUR}, chunks=(1, 6, 5, 3), compression="gzip")
    with h5py.File(path) as file, path.open("r+b") as raw:
        raw.seek(file["x"].id.get_chunk_info(3).byte_offset)
        raw.write(b"\xff" * 8)
    assert main(["prep", "hdf5", str(path), f"--out={tmp_path / 'o'}"]) == ExitCode.DATA
    assert "a.h5: row 3: cannot be read" in capsys.readouterr().err
    assert list((tmp_path / "o").glob("*.h5")) == []


def test_a_pipe_is_no_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.mkfifo(tmp_path / "pipe")
    out = f"--out={tmp_path / 'o'}"
    assert main(["prep", "hdf5", str(tmp_path / "pipe"), out]) == ExitCode.ENVIRONMENT
    assert "pipe: cannot be read: it is a FIFO; a regular file is needed" in capsys.readouterr().err


def test_axes_by_word(tmp_path: Path) -> None:
    images = RANDOM.integers(0, 256, (4, 3, 8, 3), dtype=np.uint8)
    path = file_of(tmp_path / "a.h5", {"x": images})
    assert main(["prep", "hdf5", str(path), "--axes=NCHW", f"--out={tmp_path / 'o'}"]) == 0
    with ShardSet.open([tmp_path / "o"]) as shards:
        np.testing.assert_array_equal(shards.read_all()[0], images.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("axes", ["NHWC", "NCHW"])
def test_axes_of_another_number_are_refused(tmp_path: Path, capsys, axes: str) -> None:
    path = file_of(tmp_path / "a.h5", {"x": SQUARE})
    assert main(["prep", "hdf5", str(path), f"--axes={axes}", f"--out={tmp_path / 'o'}"]) == 4
    assert f"(12, 6, 6); needed for {axes}: 4 axes" in capsys.readouterr().err


SQUARE = RANDOM.integers(0, 256, (12, 6, 6), dtype=np.uint8)


@pytest.mark.parametrize("how", ["y.h5", "z.h5::far/classes", "y.npy"])
def test_labels_of_another_file(
    tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    file_of(Path("x.h5"), {"x": COLOUR, "y": LABELS[::-1]})
    file_of(Path("y.h5"), {"only": FOUR})
    file_of(Path("z.h5"), {"y": FOUR, "far/classes": FOUR, "other": [1]})
    np.save("y.npy", FOUR)
    assert main(["prep", "hdf5", "x.h5", "--labels", how, "--out=o"]) == 0
    with ShardSet.open(["o"]) as shards:
        found = shards.labels()
    assert found is not None
    assert found.tolist() == LABELS.tolist()
    for wrong, words in (
        ("y.h5::no", "has no 'no'"),
        ("none.npy", "has no 'none.npy'"),
        ("z.h5", "say which of them are the labels: --labels z.h5::NAME"),
    ):
        code = main(["prep", "hdf5", "x.h5", "--labels", wrong, "--out=p"])
        assert code == ExitCode.DATA
        assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--shape=5,6,3"], COLOUR.reshape(12, 5, 6, 3)),
        (["--shape=6,5,3", "--transpose"], COLOUR.swapaxes(1, 2)),
        (["--shape=6,5,3", "--axes=NCHW"], COLOUR.reshape(12, 3, 6, 5).transpose(0, 2, 3, 1)),
        (["--shape=9,10"], COLOUR.reshape(12, 9, 10, 1)),
    ],
)
def test_rows_of_values_by_shape(tmp_path: Path, flags: list[str], expected: np.ndarray) -> None:
    path = file_of(tmp_path / "a.h5", {"train/images": COLOUR.reshape(12, 90)})
    out = f"--out={tmp_path / 'o'}"
    assert main(["prep", "hdf5", f"{path}::train", out, *flags]) == 0
    with ShardSet.open([tmp_path / "o"]) as shards:
        np.testing.assert_array_equal(shards.read_all()[0], expected)
        assert shards.infos[0].source == "a.h5, dataset train/images"


@pytest.mark.parametrize(
    ("shape", "code"), [("6", 2), ("6,x", 2), ("6,5,2", 2), ("0,5", 2), ("9,9", 4)]
)
def test_shapes_that_cannot_be(tmp_path: Path, shape: str, code: int) -> None:
    path = file_of(tmp_path / "a.h5", {"images": COLOUR.reshape(12, 90)})
    words = ["prep", "hdf5", str(path), f"--out={tmp_path / 'o'}", f"--shape={shape}"]
    assert main(words) == code


def test_a_dataset_is_stored_in_full_where_the_file_holds_all_its_bytes(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        images = file.create_dataset("images", data=np.ones((4, 5), np.uint16))
        end = images.id.get_offset() + 40
        assert stored_in_full(images, end)
        assert not stored_in_full(images, end - 1)
