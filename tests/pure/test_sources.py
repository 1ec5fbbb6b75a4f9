"""Pictures are read where they lie: the same pixels from every source, bad items told apart."""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import (
    CLASSES,
    COUNT,
    FIT,
    KINDS,
    make_source,
    picture,
    write_folder,
    write_parquet,
    write_tar,
)

from collage_mpi.cli import main
from collage_mpi.errors import DataFault, EnvironmentFault, ShardFault, UsageError
from collage_mpi.job.row_reader import RowReader, described
from collage_mpi.shards import ShardSet, members, write_shard
from collage_mpi.shards import source as shards_source
from collage_mpi.shards.inputs import expand_paths, ids_of, source_class
from collage_mpi.shards.members import Member, MemberIndex
from collage_mpi.shards.pictures import PictureFit, picture_pixels
from collage_mpi.shards.reader import as_before
from collage_mpi.shards.source import ReadAs
from collage_mpi.shards.update import differences

AS = ReadAs(FIT)
PICTURE_KINDS = [kind for kind in KINDS if "zarr" not in kind]
ORDER = np.array([7, 0, 11, 3, 3, 8, 1])


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    return write_folder(tmp_path / "photos")


def source(kind: str, tmp_path: Path, files: list[Path]) -> Path:
    if "zarr" in kind:
        pytest.importorskip("zarr", reason="zarr is not installed")
    return make_source(kind, tmp_path / kind, files)


def read(path: Path | str, read_as: ReadAs = AS) -> ShardSet:
    return ShardSet.open([path], read_as=read_as)


@pytest.mark.parametrize("kind", KINDS)
def test_every_source_gives_the_pixels_of_the_pictures(kind, tmp_path, files) -> None:
    expected = np.stack([picture_pixels(file.read_bytes(), FIT) for file in files])
    labels = [CLASSES.index(file.parent.name) for file in files]
    with read(source(kind, tmp_path, files)) as found:
        assert (len(found), found.shape) == (COUNT, FIT.shape)
        pixels, own, good = found.read_checked(ORDER)
        assert good.all()
        assert (pixels == expected[ORDER]).all()
        assert (own is None) == (kind == "list")
        assert own is None or own.tolist() == [labels[row] for row in ORDER]
        named = found.class_names
        assert named == (CLASSES if kind in ("shard", "folder", "hugging") else None)
        if found.fit is not None:
            assert found.read_files_checked(ORDER)[0] == [files[row].read_bytes() for row in ORDER]
        [info] = found.infos
    of = source_class(info.storage)
    assert of.fingerprint(info.path) == info.fingerprint
    assert read(info.path).changed() == {}


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_reads_what_rank_0_has_described(kind, tmp_path, files) -> None:
    with read(source(kind, tmp_path, files)) as found:
        expected = found.read_all()[0]
        alone = RowReader(described(found))  # it lists the members itself
        found.save_indexes(tmp_path / "index")
        told = RowReader(described(found))
        indexed = [info.index is not None for info in found.infos]
        assert indexed == [kind in ("folder", "list", "tar")]
        for reader in (alone, told):
            pixels, faults = reader.read([(0, row) for row in range(COUNT)])
            assert (pixels == expected).all()
            assert not any(faults)
            reader.close()


@pytest.mark.parametrize("kind", ["folder", "list", "tar", "parquet", "hugging"])
def test_a_bad_picture_is_the_fault_of_its_row_alone(kind, tmp_path, files) -> None:
    files[2].write_bytes(picture(2)[:60])
    files[5].write_bytes(b"no picture")
    files[9].write_bytes(b"")
    path = source(kind, tmp_path, files)
    with read(path) as found:
        pixels, _, good = found.read_checked(np.arange(COUNT))
        assert np.flatnonzero(~good).tolist() == [2, 5, 9]
        assert not pixels[~good].any()
        assert "cannot be decoded: " in found.row_fault(2)
        assert "no picture in a known format" in found.row_fault(5)
        assert found.row_fault(9) in (
            "0 bytes",
            "holds no bytes (a path beside them is not followed)",
        )
        assert [data is None for data in found.read_files_checked([2, 9])[0]] == [False, True]
    assert main(["prep", "verify", str(path)]) == 4


def test_a_picture_that_goes_or_grows_meanwhile_is_a_bad_row(tmp_path, files) -> None:
    with read(tmp_path / "photos") as found:
        files[1].unlink()
        files[4].write_bytes(picture(4) + b"more")
        files[6].write_bytes(picture(6)[:-9])
        _, _, good = found.read_checked(np.arange(COUNT))
        assert np.flatnonzero(~good).tolist() == [1, 4, 6]
        assert found.row_fault(1) == "cannot be read: No such file or directory"
        assert (
            found.row_fault(4)
            == f"it has grown: it had {len(picture(4)):,} bytes when it was listed"
        )
        assert "bytes are there" in found.row_fault(6)
        assert found.lost == {}
        files[8].write_bytes(picture(8)[::-1])  # of the same size
        found.read_checked(np.arange(COUNT))
        assert found.row_fault(8) == "it has changed since it was listed"
        assert found.changed() == {}  # a later update of the run finds it


def test_a_folder_that_goes_as_a_whole_is_lost_and_not_bad_row_by_row(tmp_path, files) -> None:
    with read(tmp_path / "photos") as found:
        found.read([0])
        shutil.rmtree(tmp_path / "photos")
        with pytest.raises(EnvironmentFault, match=r"photos: can no longer be read"):
            found.read_checked([1])
        assert list(found.lost) == [0]


def test_links_hidden_files_and_doubles_are_counted(tmp_path, files, caplog) -> None:
    root = tmp_path / "photos"
    (root / "ant" / ".hidden.jpg").write_bytes(picture(1))
    (root / "ant" / "notes.txt").write_text("none")
    (root / "bee" / "away.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (root / "cat" / "up").symlink_to(root)
    (root / "cat" / "ant").symlink_to(root / "ant")
    with read(root) as found:
        names = ids_of(found.infos[0])
        assert len(found) == COUNT + 1 + sum(name.startswith("ant/") for name in names)
        assert not any("up/" in name for name in names)
    assert "2 hidden files or folders are passed over, such as ant/.hidden.jpg" in caplog.text
    assert "2 files are passed over, whose names do not end in" in caplog.text
    assert "4 pictures are taken twice, as a link leads to their folder" in caplog.text
    double = tmp_path / "list.txt"
    double.write_text(
        "\n".join(["photos/ant/000.png", "", "photos/ant/000.png", "gone.jpg", "photos", "photos"])
    )
    with read(double) as found:
        assert found.read_checked(np.arange(4))[2].tolist() == [True, True, False, False]
        assert found.row_fault(2) == "cannot be read: No such file or directory"
        assert found.row_fault(3) == "cannot be read: it is a folder; a file is needed"
        assert ids_of(found.infos[0])[2] == "gone.jpg"
    said = "2 lines for a picture that was named before, such as photos/ant/000.png"
    assert said in caplog.text
    assert caplog.text.count("that was named before") == 1


@pytest.mark.parametrize("kind", ["folder", "list", "tar", "parquet", "zarr3"])
def test_other_content_has_another_fingerprint(kind, tmp_path, files) -> None:
    path = source(kind, tmp_path, files)
    with read(path) as found:
        before = found.infos[0].fingerprint
        same = bytearray(files[3].read_bytes())
    moved = tmp_path / "moved"
    os.rename(path.parent if kind != "folder" else path, moved)
    at = moved if kind == "folder" else moved / path.name
    if kind != "list":
        with read(at) as found:
            assert found.infos[0].fingerprint == before  # content is identity, not the place
    os.rename(moved, path.parent if kind != "folder" else path)
    same[-5] ^= 1
    files[3].write_bytes(same)
    if kind not in ("folder", "list"):
        shutil.rmtree(path.parent)
        files[3].write_bytes(picture(40))
        path = source(kind, tmp_path, files)
    with read(path) as found:
        assert found.infos[0].fingerprint != before


def test_a_source_above_the_limit_is_known_by_names_and_sizes(tmp_path, files, monkeypatch) -> None:
    monkeypatch.setattr("collage_mpi.shards.source.HASH_LIMIT_BYTES", 10)
    monkeypatch.setattr("collage_mpi.shards.tables.HASH_LIMIT_BYTES", 10)
    for kind in ("folder", "tar", "parquet"):
        path = source(kind, tmp_path, files)
        with read(path) as found:
            before = found.infos[0].fingerprint
            assert source_class(found.infos[0].storage).fingerprint(path) == before
    files[0].write_bytes(picture(0) + b"x")
    with read(tmp_path / "photos") as found:
        other = found.infos[0].fingerprint
    files[0].write_bytes(picture(0) + b"y")
    with read(tmp_path / "photos") as found:
        assert found.infos[0].fingerprint == other  # of the same size


def test_which_members_are_new_or_gone_is_said(tmp_path, files):
    with read(tmp_path / "photos") as found:
        before = found.infos[0].members
        assert differences(before, before) == ""
    files[0].rename(files[0].with_name("new.png"))
    with read(tmp_path / "photos") as found:
        said = differences(before, found.infos[0].members)
    assert said == "1 picture more, such as ant/new.png; 1 picture gone, such as ant/000.png"


def test_an_index_is_read_back_and_a_damaged_one_is_not_used(tmp_path, files) -> None:
    with read(tmp_path / "photos") as found:
        [info] = found.infos
        index = info.members
        index.save(tmp_path / "i.npz")
    same = MemberIndex.load(tmp_path / "i.npz")
    assert [*same.texts()] == [*index.texts()] == [f"{f.parent.name}/{f.name}" for f in files]
    assert same.digest() == index.digest()
    assert same.labels[:].tolist() == index.labels[:].tolist()
    (tmp_path / "i.npz").write_bytes((tmp_path / "i.npz").read_bytes()[:100])
    assert MemberIndex.load(tmp_path / "i.npz") is None
    with ShardSet([replace(info, members=None, index=str(tmp_path / "i.npz"))]) as again:
        assert again.read([3])[0].shape == (1, *FIT.shape)
    files[3].unlink()
    with pytest.raises(DataFault, match="has changed since it was listed"):
        source_class("folder")(replace(info, members=None))


def test_folders_are_classes_only_if_they_can_be(tmp_path, files, caplog) -> None:
    read(tmp_path / "photos").close()
    assert "taken for classes (ant, bee, cat); if they are none, give --input-labels" in caplog.text
    caplog.clear()
    known = ReadAs(FIT, ("cat", "bee", "ant", "dog"))
    with read(tmp_path / "photos", known) as found:
        assert found.class_names == known.class_names
        assert found.labels().tolist() == [2] * 4 + [1] * 4 + [0] * 4
    with read(tmp_path / "photos", replace(known, labels=False)) as found:
        assert found.labels() is None
    assert "taken for" not in caplog.text
    with read(tmp_path / "photos", ReadAs(FIT, ("cat", "bee"))) as found:
        assert found.labels() is None
        assert len(found) == COUNT
    assert "folder 'ant' is none of the 2 classes named" in caplog.text
    assert "read without labels" in caplog.text
    (tmp_path / "photos" / "loose.jpg").write_bytes(picture(1))
    with read(tmp_path / "photos") as found:
        assert (len(found), found.labels()) == (COUNT + 1, None)


@pytest.mark.parametrize("kind", ["tar", "parquet", "hugging", "zarr3"])
def test_labels_that_are_no_classes_of_the_network_are_refused(kind, tmp_path, files) -> None:
    path = source(kind, tmp_path, files)
    if kind == "tar":
        with tarfile.open(path, "a") as tar:
            tar.add(files[0], "more.png")  # without its .cls
    with pytest.raises(DataFault, match="--input-labels none takes no labels"):
        read(path, ReadAs(FIT, ("ant", "bee")))
    with read(path, ReadAs(FIT, ("ant", "bee"), labels=False)) as found:
        assert found.labels() is None
        assert found.read([0])[1] is None


def test_names_of_the_file_are_numbered_as_the_network_has_them(tmp_path, files) -> None:
    path = source("hugging", tmp_path, files)
    with read(path, ReadAs(FIT, ("cat", "bee", "ant"))) as found:
        assert found.labels().tolist() == [2] * 4 + [1] * 4 + [0] * 4
        assert ids_of(found.infos[0])[:2] == ["0.jpg", "1.jpg"]


def test_text_labels_of_parquet_are_classes(tmp_path) -> None:
    data = [picture(k) for k in range(4)]
    path = write_parquet(tmp_path / "t.parquet", data, ["b", "a", "b", "c"])
    with read(path) as found:
        assert found.class_names == ("a", "b", "c")
        assert found.labels().tolist() == [1, 0, 1, 2]


def test_of_two_columns_of_labels_the_first_counts(tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    raw = pa.array([picture(1), picture(2)], pa.binary())
    pq.write_table(
        pa.table({"image": raw, "label": [5, 4], "class": [1, 2]}), tmp_path / "a.parquet"
    )
    with read(tmp_path / "a.parquet") as found:
        assert found.labels().tolist() == [5, 4]


def test_what_is_wrong_with_a_parquet_file_is_said(tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def refused(columns: dict, part: str = "") -> str:
        pq.write_table(pa.table(columns), tmp_path / "a.parquet")
        with pytest.raises(DataFault) as caught:
            read(f"{tmp_path / 'a.parquet'}{part}")
        return str(caught.value)

    raw = pa.array([picture(1)], pa.binary())
    assert "pictures are not found; needed: one column of type binary" in refused({"image": [3]})
    assert "it holds" in refused({"image": [3]}).lower()
    assert "may be in one or two: say which" in refused({"one": raw, "two": raw}).replace(";", ":")
    assert "'label' is no column of pictures" in refused({"one": raw, "label": [1]}, "::label")
    assert "has no rows" in refused({"image": pa.array([], pa.binary())})
    assert "1 rows have no label" in refused({"image": raw, "label": pa.array([None], pa.int64())})
    pq.write_table(pa.table({"one": raw, "two": raw}), tmp_path / "a.parquet")
    with read(f"{tmp_path / 'a.parquet'}::two") as found:
        assert len(found) == 1


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_file_that_is_cut_off_is_a_bad_source_and_the_others_are_read(
    kind, tmp_path, files
) -> None:
    path = source(kind, tmp_path, files)
    cut = tmp_path / f"cut.{kind}"
    cut.write_bytes(path.read_bytes()[: path.stat().st_size * 6 // 10])
    with pytest.raises(DataFault, match=r"cut\.\w+: "):
        read(cut)
    paths = [path, cut]
    with ShardSet.open(paths, skip_bad=True, read_as=AS) as found:
        assert len(found) == COUNT
        assert [*found.bad] == [cut]


def replaced(path: Path, new: bytes) -> None:
    path.with_name("new").write_bytes(new)
    os.replace(path.with_name("new"), path)


def gone(path: Path, new: bytes) -> None:
    path.unlink()


@pytest.mark.parametrize("happens", [replaced, Path.write_bytes, gone])
@pytest.mark.parametrize("batch", [[2], [2, 3]])
def test_no_image_is_read_from_a_tar_that_has_changed_under_an_open_reader(
    happens, batch, tmp_path, files, monkeypatch
) -> None:
    """The file changes before row 2 is read, or between rows 2 and 3 of one batch."""
    path = source("tar", tmp_path, files)
    other = write_tar(tmp_path / "other.tar", files[::-1], [0] * COUNT).read_bytes()
    old = path.read_bytes()
    read_member, read_before = shards_source.read_member, []

    def at_the_last_row(member: Member) -> bytes:
        read_before.append(member)
        if len(read_before) == 1 + len(batch):
            happens(path, other)
        return read_member(member)

    with read(path) as found:
        monkeypatch.setattr(shards_source, "read_member", at_the_last_row)
        assert found.read_checked([1])[2].all()
        with pytest.raises(ShardFault, match=r"has changed since|can no longer be read"):
            found.read_checked(batch)
        assert list(found.lost) == [0]
    path.write_bytes(old)
    with read(path) as found:
        replaced(path, old)  # another file of the same bytes is the same source
        assert found.read_checked(batch)[2].all()


def test_a_row_group_that_is_damaged_is_an_error_of_its_rows(tmp_path, files) -> None:
    path = source("parquet", tmp_path, files)
    (path.parent / "a.parquet.sha256").write_text("0" * 64 + "  a.parquet\n")
    with read(path) as found:
        data = bytearray(path.read_bytes())
        data[4:400] = b"\xff" * 396  # the first page of the first group, and its header
        stat = path.stat()
        path.write_bytes(data)
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
        _, _, good = found.read_checked(np.arange(COUNT))
        assert np.flatnonzero(~good).tolist() == [0, 1, 2, 3, 4]
        assert "cannot be read" in found.row_fault(0)


@pytest.mark.parametrize("kind", ["zarr2", "zarr3"])
def test_a_chunk_that_is_lost_or_damaged_is_an_error_of_its_rows(kind, tmp_path, files) -> None:
    path = source(kind, tmp_path, files)
    found = read(path)
    found.read_checked(np.arange(COUNT))
    chunk = path / "images" / ("1.0.0.0" if kind == "zarr2" else "c/1/0/0/0")
    whole = chunk.read_bytes()
    chunk.unlink()
    _, _, good = found.read_checked(np.arange(COUNT))
    assert np.flatnonzero(~good).tolist() == [4, 5, 6, 7]
    assert found.row_fault(5).startswith("its chunk is not stored: lost")
    chunk.write_bytes(b"\xff" * len(whole))
    _, _, good = found.read_checked(np.arange(COUNT))
    assert np.flatnonzero(~good).tolist() == [4, 5, 6, 7]
    assert found.row_fault(4).startswith("cannot be read")
    chunk.write_bytes(whole)
    assert found.read_checked(np.arange(COUNT))[2].all()


def test_what_is_wrong_with_a_zarr_folder_is_said(tmp_path) -> None:
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w")
    with pytest.raises(DataFault, match="holds no images: it holds no dataset"):
        read(tmp_path / "a.zarr")
    group.create_array("images", shape=(3, 4, 4, 12), dtype="u2", chunks=(3, 4, 4, 12))
    with pytest.raises(DataFault, match=r"uint16 \(4, 4, 12\); needed here: uint8"):
        read(tmp_path / "a.zarr")
    group.create_array("other", shape=(3, 4, 4), dtype="u1", chunks=(3, 4, 4))
    with pytest.raises(DataFault, match=r"images: images .*, other .*\. Say which: .*zarr::NAME"):
        read(tmp_path / "a.zarr")
    with read(f"{tmp_path / 'a.zarr'}::other") as found:
        assert found.shape == (4, 4, 1)
    del group["images"]
    group.create_array("y", data=np.array([[2], [0], [1]]))
    with read(tmp_path / "a.zarr") as found:
        assert found.labels().tolist() == [2, 0, 1]


def test_a_folder_stands_for_what_lies_in_it(tmp_path, files) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    for name in ("b.tar", "a.tar", ".c.tar"):
        (folder / name).touch()
    assert expand_paths([folder]) == [folder / "a.tar", folder / "b.tar"]
    (folder / "a.parquet").touch()
    with pytest.raises(EnvironmentFault, match=r"holds both \.tar and \.parquet files"):
        expand_paths([folder])
    (folder / "a.h5").touch()
    assert expand_paths([folder]) == [folder / "a.h5"]  # shards come first
    assert expand_paths([tmp_path / "photos"]) == [tmp_path / "photos"]
    (tmp_path / "none").mkdir()
    with pytest.raises(EnvironmentFault, match="and no picture below it"):
        expand_paths([tmp_path / "none"])
    (tmp_path / "none" / "link").symlink_to(tmp_path / "photos")
    assert expand_paths([tmp_path / "none"]) == [tmp_path / "none"]


def test_a_source_is_named_before_its_path(tmp_path, files) -> None:
    shutil.copy(source("tar", tmp_path, files), tmp_path / "plain.bin")
    with read(f"tar:{tmp_path / 'plain.bin'}") as found:
        assert len(found) == COUNT
    with pytest.raises(UsageError, match="source 'nosuch' is not known; known are images, tar,"):
        read(f"nosuch:{tmp_path}")


@pytest.mark.parametrize("kind", PICTURE_KINDS)
def test_prep_makes_shards_of_any_source(kind, tmp_path, files) -> None:
    path = source(kind, tmp_path, files)
    out = tmp_path / "out"
    assert main(["prep", "shards", str(path), "--size", "16", "--out", str(out)]) == 0
    expected = np.stack([picture_pixels(file.read_bytes(), FIT) for file in files])
    with ShardSet.open([out]) as found:
        assert found.infos[0].storage == "images"
        assert (found.read_all()[0] == expected).all()


@pytest.mark.parametrize("kind", ["images", "shards"])
def test_prep_resizes_by_the_filter_that_is_named(kind, tmp_path, files, capsys) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    words = ["prep", kind, str(photos), "--size", "12", "--out", str(out), "--filter"]
    more = ["--in-order", "--enlarge"] if kind == "images" else []
    assert main([*words, "bicubic", *more]) == 0
    fit = PictureFit(12, filter="bicubic")
    with read(photos, ReadAs(fit)) as one, ShardSet.open([out]) as other:
        assert (one.read_all()[0] == other.read_all()[0]).all()
    assert main([*words, "nosuch", *more]) == 2
    assert "filter 'nosuch'; known are bilinear, bicubic," in capsys.readouterr().err


def test_prep_without_a_size_makes_pictures_as_large_as_its_help_says(tmp_path, files, capsys):
    with pytest.raises(SystemExit):
        main(["prep", "shards", "--help"])
    assert "picture files become 224 x 224" in " ".join(capsys.readouterr().out.split())
    assert main(["prep", "shards", str(tmp_path / "photos"), "--out", str(tmp_path / "out")]) == 0
    with ShardSet.open([tmp_path / "out"]) as shards:
        assert shards.shape[:2] == (224, 224)


def test_a_filter_without_a_size_is_refused(tmp_path, files, capsys) -> None:
    words = ["prep", "shards", str(tmp_path / "photos"), "--out", str(tmp_path / "out")]
    assert main([*words, "--filter", "bicubic"]) == 2
    assert "--filter bicubic needs --size PX" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_row_that_could_not_be_read_is_not_good_whatever_its_source_says(
    tmp_path, files, monkeypatch
) -> None:
    files[2].write_bytes(b"no picture")
    with read(tmp_path / "photos") as found:
        own = source_class(found.infos[0].storage)
        monkeypatch.setattr(own, "sound", lambda self, pixels, places, rows: rows >= 0)
        pixels, _, good = found.read_checked(np.arange(COUNT))
    assert good.tolist() == [row != 2 for row in range(COUNT)]
    assert not pixels[2].any()


def test_pictures_as_prep_makes_them(tmp_path, files) -> None:
    words = ["prep", "images", str(tmp_path / "photos"), "--size", "12", "--resize", "14"]
    words += ["--channels", "1", "--enlarge", "--in-order", "--out", str(tmp_path / "out")]
    assert main(words) == 0
    fit = PictureFit(12, resize_px=14, channels=1)
    with read(tmp_path / "photos", ReadAs(fit)) as one, ShardSet.open([tmp_path / "out"]) as other:
        assert (one.read_all()[0] == other.read_all()[0]).all()
        assert ids_of(one.infos[0]) == ids_of(other.infos[0])


def test_a_run_that_goes_on_resizes_pictures_as_it_began(tmp_path, files) -> None:
    with read(tmp_path / "photos") as found:
        (began,), expected = found.infos, found.read_all()[0]
    known = [{"path": "photos", "fingerprint": began.fingerprint, "count": COUNT, "fit": began.fit}]
    other = ReadAs(replace(FIT, filter="bicubic"))
    with as_before(read(tmp_path / "photos", other), known, tmp_path) as again:
        assert again.fit == began.fit != other.fit.text()
        assert (again.read_all()[0] == expected).all()
    larger = ReadAs(PictureFit(20))
    with as_before(read(tmp_path / "photos", larger), known, tmp_path) as again:
        assert again.fit == larger.fit.text()  # of another size: the run's settings say so


def test_a_shard_that_is_lost_beside_pictures_is_not_taken_for_pictures(tmp_path, files) -> None:
    pixels, labels = np.ones((3, *FIT.shape), np.uint8), np.zeros(3, np.int64)
    write_shard(tmp_path / "pixels.h5", pixels, labels, class_names=CLASSES)
    paths = [tmp_path / "photos", tmp_path / "pixels.h5"]
    with ShardSet.open(paths, read_as=AS) as found:
        known = [
            {"path": str(i.path), "fingerprint": i.fingerprint, "count": i.count}
            for i in found.infos
        ]
    paths[1].write_bytes(b"damaged")
    with as_before(ShardSet.open(paths, skip_bad=True, read_as=AS), known, tmp_path) as again:
        assert list(again.lost) == [1]
        assert again.gone().tolist() == [False] * (COUNT + 3)


def test_inspect_tells_what_a_source_holds(tmp_path, files, capsys) -> None:
    assert main(["prep", "inspect", str(tmp_path / "photos"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["count"], found["storage"], found["class_names"]) == (COUNT, "folder", [*CLASSES])


def test_a_parquet_file_may_not_become_far_more_than_its_bytes(tmp_path, monkeypatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    monkeypatch.setattr(members, "LARGEST_UNIT_BYTES", 1 << 20)
    zeros = pa.table({"image": [bytes([i]) * 100_000 for i in range(30)]})
    pq.write_table(zeros, tmp_path / "a.parquet", compression="zstd", use_dictionary=False)
    with pytest.raises(DataFault, match=r"row group 0 takes 3,\d{3},\d{3} bytes of memory, from"):
        read(tmp_path / "a.parquet")
    pq.write_table(zeros, tmp_path / "b.parquet", compression="none", use_dictionary=False)
    with read(tmp_path / "b.parquet") as found:
        assert len(found) == 30  # as large, but its bytes become no more


@pytest.mark.parametrize("kind", ["parquet", "hugging"])
def test_a_picture_that_repeats_in_a_row_group_is_held_once(kind, tmp_path) -> None:
    data = [picture(1)] * 500
    path = write_parquet(tmp_path / "a.parquet", data, [0] * 500, kind == "hugging")
    with read(path, replace(AS, class_names=CLASSES)) as found:
        found.read([0, 499])
        assert found._open[0]._group(0).nbytes < 10 * len(data[0])


def test_a_zarr_array_of_huge_chunks_or_too_many_rows_is_refused(tmp_path) -> None:
    zarr = pytest.importorskip("zarr", reason="zarr is not installed")
    for name, shape, chunks, says in (
        ("a", (4096, 1024, 1024), (4096, 1024, 1024), "a chunk takes 4,294,967,296 bytes"),
        ("b", (10**12, 4, 4), (1000, 4, 4), "declares 1,000,000,000,000 images"),
    ):
        path = tmp_path / f"{name}.zarr"
        zarr.create_array(str(path), shape=shape, chunks=chunks, dtype="u1")
        with pytest.raises(DataFault, match=says):
            read(path)


def test_a_list_that_never_ends_is_not_read_for_ever(tmp_path, files, monkeypatch) -> None:
    path = tmp_path / "list.txt"
    path.write_text("photos/ant/000.png\n" * 50)
    monkeypatch.setattr(members, "UNDECLARED_BYTES", 100)
    monkeypatch.setattr("collage_mpi.shards.listing.stat_of", lambda path: (0, 0, 0))
    with pytest.raises(DataFault, match="is longer than 100 bytes"):
        read(path)


def test_another_column_of_a_parquet_file_is_another_source(tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {"left": [picture(1)], "right": [picture(2)]}
    pq.write_table(pa.table(columns), tmp_path / "a.parquet")
    found = {name: read(f"{tmp_path}/a.parquet::{name}").infos[0].fingerprint for name in columns}
    assert found["left"] != found["right"]


def test_the_classes_of_a_tar_are_in_the_order_of_their_names(tmp_path, files) -> None:
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w") as tar:
        for number, name in enumerate(["wolf", "ant", "bee"]):
            for end, data in (("jpg", picture(number)), ("cls", name.encode())):
                info = tarfile.TarInfo(f"{number}.{end}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    with read(path) as found:
        assert found.class_names == ("ant", "bee", "wolf")
        assert found.labels().tolist() == [2, 0, 1]
