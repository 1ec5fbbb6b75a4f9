"""`prep shards`: other sizes, storage, order and labels of the same images."""

from __future__ import annotations

import io
import re
import shlex
from pathlib import Path

import h5py
import numpy as np
import pytest
from PIL import Image

from collage_mpi.cli import main
from collage_mpi.errors import DataFault, ExitCode
from collage_mpi.models.info import NetworkInfo, check_fit
from collage_mpi.shards import ShardSet, inspect_shard, verify_shard, write_shard
from collage_mpi.shards.inputs import ids_of
from collage_mpi.shards.pictures import PictureFit, fit_pixels, picture_pixels

RANDOM = np.random.default_rng(0)
IMAGES = RANDOM.integers(0, 256, (7, 12, 12, 3), dtype=np.uint8)
LABELS = np.arange(7) % 3
NAMES = ("ant", "bee", "cat")
IDS = [f"photos/{number}.jpg" for number in range(7)]


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two shards in a folder, the second without ids."""
    first = {"class_names": NAMES, "source": "my camera"}
    write_shard(tmp_path / "in/a.h5", IMAGES[:4], LABELS[:4], IDS[:4], **first)
    write_shard(tmp_path / "in/b.h5", IMAGES[4:], LABELS[4:], class_names=NAMES)
    return tmp_path / "in"


def png(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


FILES = [png(RANDOM.integers(0, 256, (16, 20, 3), dtype=np.uint8)) for _ in range(7)]


def make(path: Path, *flags: str) -> ShardSet:
    out = path.parent / "out"
    assert main(["prep", "shards", str(path), f"--out={out}", *flags]) == 0
    assert [verify_shard(item) for item in sorted(out.glob("*.h5"))] == [[]] * len(
        list(out.glob("*.h5"))
    )
    return ShardSet.open([out])


def test_resized_images_keep_ids_labels_names_and_source(raw: Path) -> None:
    with make(raw, "--size=5", "--rows-per-shard=4") as shards:
        images, labels = shards.read_all()
        assert shards.class_names == NAMES
        assert [info.source for info in shards.infos] == ["my camera"] * 2
        ids = [one for info in shards.infos for one in ids_of(info) or []]
    np.testing.assert_array_equal(images, [fit_pixels(image, PictureFit(5)) for image in IMAGES])
    assert labels is not None
    assert labels.tolist() == LABELS.tolist()
    assert ids == [*IDS[:4], "b.h5:0", "b.h5:1", "b.h5:2"]


@pytest.mark.parametrize(
    ("flags", "fit"),
    [
        ([], PictureFit(224)),
        (["--size=6"], PictureFit(6)),
        (["--size=6", "--fit=letterbox", "--channels=1"], PictureFit(6, "letterbox", None, 1)),
    ],
)
def test_pictures_are_decoded_at_the_wanted_size(
    tmp_path: Path, flags: list[str], fit: PictureFit
) -> None:
    (tmp_path / "photos").mkdir()
    for number, data in enumerate(FILES):
        (tmp_path / "photos" / f"{number}.png").write_bytes(data)
    with make(tmp_path / "photos", *flags) as shards:
        expected = [picture_pixels(data, fit) for data in FILES]
        np.testing.assert_array_equal(shards.read_all()[0], expected)
        assert ids_of(shards.infos[0]) == [f"{number}.png" for number in range(7)]


def test_shuffled_cut_and_with_other_labels(raw: Path) -> None:
    with h5py.File(raw.parent / "y.h5", "w") as file:
        file["y"] = (6 - np.arange(7))[:, None, None, None]
    names = ",".join("abcdefg")
    more = [f"--labels={raw.parent / 'y.h5'}", f"--class-names={names}", "--seed=3", "--limit=5"]
    with make(raw, *more) as shards:
        images, labels = shards.read_all()
        ids = ids_of(shards.infos[0])
        assert shards.class_names == tuple("abcdefg")
    rows = np.random.default_rng(3).permutation(7)[:5]
    np.testing.assert_array_equal(images, IMAGES[rows])
    assert labels is not None
    assert labels.tolist() == (6 - rows).tolist()
    all_ids = [*IDS[:4], "b.h5:0", "b.h5:1", "b.h5:2"]
    assert ids == [all_ids[row] for row in rows]


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--channels=1"], ExitCode.USAGE, "--channels needs --size"),
        (["--size=0"], ExitCode.USAGE, "size 0 px"),
        (["--class-names=a,b"], ExitCode.DATA, "label 2 has no name"),
        (["--labels=none.npy"], ExitCode.ENVIRONMENT, "none.npy: cannot be read"),
    ],
)
def test_refusals(
    raw: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, words: str
) -> None:
    assert main(["prep", "shards", str(raw), f"--out={raw.parent / 'out'}", *flags]) == code
    assert words in capsys.readouterr().err
    assert not list(raw.parent.glob("out/*"))


def test_the_folder_that_is_read_is_not_written(raw: Path) -> None:
    words = ["prep", "shards", str(raw / "a.h5"), f"--out={raw}", "--prefix=a", "--overwrite"]
    assert main(words) == ExitCode.USAGE
    assert (raw / "a.h5").exists()


def test_a_damaged_row_ends_it(raw: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = raw / "a.h5"
    with h5py.File(path, "r+") as file:
        file["images"][3] ^= 1
    (raw / "a.h5.sha256").unlink()
    words = ["prep", "shards", str(path), f"--out={raw.parent / 'out'}"]
    assert main(words) == ExitCode.DATA
    assert "row 3: checksum does not match" in capsys.readouterr().err


def typed(message: str) -> int:
    """The exit code of the command that a message names."""
    found = re.search(r"`(collage-mpi [^`]+)`", message)
    assert found, message
    return main(shlex.split(found.group(1))[1:])


@pytest.mark.parametrize(("kind", "wanted"), [("single", (8, 8, 3)), ("single", (30, 30, 1))])
def test_what_a_job_says_of_another_size_works_as_typed(
    raw: Path, monkeypatch: pytest.MonkeyPatch, kind: str, wanted: tuple[int, int, int]
) -> None:
    monkeypatch.chdir(raw.parent)
    network = NetworkInfo(kind, {}, wanted, None, None, NAMES, "f" * 64)
    with ShardSet.open(["in"]) as shards, pytest.raises(DataFault) as caught:
        check_fit([network], shards.shape, shards.class_names, ["in"])
    assert typed(str(caught.value)) == 0
    with ShardSet.open(["shards-{}x{}x{}".format(*wanted)]) as shards:
        assert shards.shape == wanted


def test_what_is_said_of_a_shard_that_is_one_already_works_as_typed(
    raw: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(raw.parent)
    assert main(["prep", "hdf5", "in/a.h5", "--size", "6", "--out", "new"]) == ExitCode.USAGE
    assert typed(capsys.readouterr().err) == 0
    assert inspect_shard(Path("new/shard.h5")).shape == (6, 6, 3)


def test_what_is_said_of_a_file_without_checksums_works_as_typed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with h5py.File("f.h5", "w") as file:
        file["a/x"], file["a/y"] = IMAGES, LABELS
    assert main(["prep", "inspect", "f.h5::a"]) == 0
    said = capsys.readouterr().out.strip().splitlines()
    assert main(shlex.split(next(one for one in said if "prep shards" in one))[1:]) == 0
    (problem,) = verify_shard("f.h5")
    assert "prep shards f.h5" in problem
    (tmp_path / "shards").rename(tmp_path / "before")
    assert typed(problem) == 0
    with ShardSet.open(["shards"]) as shards:
        np.testing.assert_array_equal(shards.read_all()[0], IMAGES)


@pytest.mark.parametrize("size", [(), ("--size=8",)])
def test_labels_of_an_input_that_is_no_shard_are_taken_or_left(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], size: tuple[str, ...]
) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        Image.new("RGB", (20, 16)).save(tmp_path / "photos" / name / "0.png")
    words = ["prep", "shards", str(tmp_path / "photos"), *size]
    for given, names in (((), ("cat", "dog")), (("--input-labels=none",), ())):
        out = tmp_path / f"out{len(given)}"
        assert main([*words, f"--out={out}", *given]) == 0
        with ShardSet.open([out]) as shards:
            assert (shards.labels() is not None, shards.class_names or ()) == (bool(names), names)
        advice = "give --input-labels none"
        assert capfd.readouterr().err.count(advice) == (0 if given else 1)
