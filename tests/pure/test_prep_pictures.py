"""`prep images` and `prep tar` as a user types them: classes, resume, what cannot be read."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from collage_mpi.cli import main
from collage_mpi.errors import DataFault, ExitCode
from collage_mpi.shards import ShardSet
from collage_mpi.shards.guard import inspect_here, verify_here
from collage_mpi.shards.listing import list_tars, split_key

CLASSES = ("ant", "bee", "cat")
SMALL = ["--size=8", "--workers=1"]


def picture(value: int, size: tuple[int, int] = (12, 10)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, (value, value, value)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """30 pictures in three folders; the grey value is 10 x class + number."""
    for number, name in enumerate(CLASSES):
        folder = tmp_path / "tree" / name / "deeper"
        folder.mkdir(parents=True)
        for k in range(10):
            place = folder if k % 2 else folder.parent
            (place / f"{k}.png").write_bytes(picture(10 * number + k))
        (folder / "notes.txt").write_text("not a picture")
        (folder / ".hidden.png").write_bytes(b"")
    return tmp_path / "tree"


def opened(folder: Path) -> ShardSet:
    return ShardSet([inspect_here(path, hash_file=True) for path in sorted(folder.glob("*.h5"))])


def ids_of(folder: Path) -> list[str]:
    import h5py

    found: list[str] = []
    for path in sorted(folder.glob("*.h5")):
        with h5py.File(path) as file:
            found += [name.decode() for name in file["ids"][...]]
    return found


def test_a_tree_becomes_shards(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ["prep", "images", str(tree), f"--out={out}", *SMALL]
    assert main([*flags, "--images-per-shard=16"]) == 0
    said = capsys.readouterr().out
    assert "30 images of 8 x 8 x 3, 3 classes, in 2 shards" in said
    assert "images/s" in said
    with opened(out) as shards:
        assert [info.count for info in shards.infos] == [15, 15]  # evened out
        assert shards.class_names == CLASSES
        images, labels = shards.read_all()
        assert labels is not None
        assert all(verify_here(info.path) == [] for info in shards.infos)
    ids = ids_of(out)
    assert sorted(ids) == sorted(str(p.relative_to(tree)) for p in tree.rglob("[0-9].png"))
    assert ids != sorted(ids)  # shuffled
    for image, label, name in zip(images, labels, ids, strict=True):
        assert CLASSES[label] == name.split("/")[0]
        assert (image == 10 * label + int(name[-5])).all()
    assert sorted(p.suffix for p in out.iterdir()) == [".h5", ".h5", ".sha256", ".sha256"]


def test_split_order_and_limit(tree: Path, tmp_path: Path) -> None:
    base = ["prep", "images", str(tree), *SMALL]
    for folder in ("a", "b"):
        assert main([*base, f"--out={tmp_path / folder}", "--val-share=0.2", "--seed=3"]) == 0
    train, val = ids_of(tmp_path / "a" / "train"), ids_of(tmp_path / "a" / "val")
    assert (len(train), len(val)) == (24, 6)
    assert not set(train) & set(val)
    assert train == ids_of(tmp_path / "b" / "train")
    assert main([*base, f"--out={tmp_path / 'c'}", "--in-order", "--limit=12"]) == 0
    names = [name.split("/")[0] for name in ids_of(tmp_path / "c")]
    assert names == ["ant"] * 10 + ["bee"] * 2


def test_what_is_done_is_not_done_again(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    flags = ["prep", "images", str(tree), f"--out={out}", "--images-per-shard=10", *SMALL]
    assert main(flags) == 0
    first, second, third = sorted(out.glob("*.h5"))
    stamps = {path: path.stat().st_mtime_ns for path in (first, second, third)}
    second.write_bytes(second.read_bytes()[:-9])  # damaged since
    beside = (third.name, f"{third.name}.sha256", f"{third.name}.unreadable.tsv")
    drafts = [out / f".{name}.tmp-4711" for name in beside]
    for draft in drafts:
        draft.write_bytes(b"of a process that was killed")
    capsys.readouterr()
    assert main(flags) == 0
    assert "2 of them were already complete" in capsys.readouterr().out
    assert not any(draft.exists() for draft in drafts)
    assert [p.stat().st_mtime_ns == stamps[p] for p in (first, second, third)] == [1, 0, 1]
    assert verify_here(second) == []
    assert main([*flags, "--seed=1"]) == ExitCode.ENVIRONMENT
    assert "other settings" in capsys.readouterr().err
    (tree / "ant" / "0.png").write_bytes(picture(0, (50, 50)))
    assert main(flags) == ExitCode.ENVIRONMENT  # other files
    assert main([*flags, "--seed=1", "--overwrite"]) == 0
    assert main([*flags[:-3], "--images-per-shard=5", *SMALL]) == ExitCode.ENVIRONMENT
    assert "exists and is not one of the 6" in capsys.readouterr().err
    assert main([*flags[:-3], "--images-per-shard=5", *SMALL, "--overwrite"]) == 0
    assert len(list(out.glob("*.h5"))) == 6


def test_unreadable_pictures_are_listed_or_stop_it(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "bee" / "zz\tz.png").write_bytes(picture(1)[:40])
    (tree / "bee" / "empty.jpg").write_bytes(b"")
    (tree / "ant" / "gone.png").symlink_to(tmp_path / "nowhere.png")
    out = tmp_path / "out"
    flags = ["prep", "images", str(tree), f"--out={out}", *SMALL]
    assert main([*flags, "--unreadable=stop"]) == ExitCode.DATA
    assert re.search("(bee|ant)/.*: ", capsys.readouterr().err)
    assert list(out.iterdir()) == []
    for _ in range(2):  # the second time they are known from the first
        assert main(flags) == ExitCode.COMPLETE_WITH_ERRORS
        said = capsys.readouterr().out
        assert "3 pictures are left out" in said
        assert "unreadable.tsv" in said
    lines = (out / "shard.h5.unreadable.tsv").read_text().splitlines()
    assert lines[0] == "id\treason"
    listed = dict(line.split("\t") for line in lines[1:])
    assert sorted(listed) == ["ant/gone.png", "bee/empty.jpg", "bee/zz\\tz.png"]
    assert listed["ant/gone.png"] == "a link that leads nowhere"
    with opened(out) as shards:
        assert len(shards) == 30


def test_small_pictures_are_enlarged_only_where_it_is_said(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for k, size in enumerate([(7, 30), (1, 1), (8, 8)]):
        (tree / "cat" / f"small{k}.png").write_bytes(picture(9, size))
    out = tmp_path / "out"
    flags = ["prep", "images", str(tree), f"--out={out}", *SMALL]
    assert main(flags) == ExitCode.COMPLETE_WITH_ERRORS
    said = capsys.readouterr().out
    assert "31 images of 8 x 8 x 3" in said
    small = "2 pictures are left out (2 smaller than 8 x 8, which --enlarge takes), listed in"
    assert small in said
    assert "unreadable" not in said.replace("unreadable.tsv", "")
    lines = (out / "shard.h5.unreadable.tsv").read_text().splitlines()[1:]
    assert sorted(lines) == [
        f"cat/small{k}.png\tit has {size} pixels, and its shorter edge needs 8: --enlarge takes it"
        for k, size in enumerate(["7 x 30", "1 x 1"])
    ]
    assert main([*flags, "--enlarge"]) == ExitCode.ENVIRONMENT  # another recipe
    assert main([*flags, "--enlarge", "--overwrite"]) == 0
    assert "2 pictures are smaller than 8 x 8: enlarged" in capsys.readouterr().out
    with opened(out) as shards:
        assert len(shards) == 33
    size, least = ["--size=40", "--workers=1"], [f"--out={tmp_path / 'none'}"]
    assert main(["prep", "images", str(tree), *least, *size]) == ExitCode.DATA
    assert "shorter edge needs 40: --enlarge takes it" in capsys.readouterr().err


def test_what_is_passed_over_or_taken_twice_is_counted_and_said(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / ".cache").mkdir()
    (tree / "ant" / "IMG_1").write_bytes(picture(1))
    (tree / "bee" / "lost").symlink_to(tmp_path / "nowhere")
    (tree / "dog").symlink_to(tree / "ant")
    (tree / "loop").symlink_to(".")
    flags = ["prep", "images", str(tree), f"--out={tmp_path / 'out'}", *SMALL]
    assert main(flags) == 0
    said = capsys.readouterr().err.splitlines()
    assert "warning: 5 hidden files or folders are passed over, such as .cache" in said
    assert "warning: 1 link leads nowhere: bee/lost" in said
    assert "warning: 1 link leads to a folder that holds it and is passed over: loop" in said
    first = (
        "warning: 10 pictures are taken twice, as a link leads to their folder, such as dog/0.png"
    )
    assert first in said
    ends = "not end in .jpg, .jpeg, .png, .webp, .bmp, .gif, .tif, .tiff, .ppm, .pgm"
    other = f"warning: 6 files are passed over, whose names do {ends}, such as ant/IMG_1"
    assert other in said
    with opened(tmp_path / "out") as shards:
        assert len(shards) == 40


def test_a_shard_of_unreadable_pictures_only_is_refused(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (tree / "ant").rglob("*.png"):
        path.write_bytes(b"x")
    flags = [f"--out={tmp_path / 'o'}", "--in-order", "--images-per-shard=10", *SMALL]
    assert main(["prep", "images", str(tree), *flags]) == ExitCode.DATA
    assert "none of its 10 pictures" in capsys.readouterr().err
    assert list((tmp_path / "o").glob("*.h5")) == []


def test_folders_that_are_no_tree(tree: Path, tmp_path: Path) -> None:
    def code(*flags: str) -> int:
        return main(["prep", "images", *flags, f"--out={tmp_path / 'o'}", *SMALL])

    assert code(str(tmp_path / "none")) == ExitCode.ENVIRONMENT
    (tmp_path / "bare").mkdir()
    assert code(str(tmp_path / "bare")) == ExitCode.DATA
    assert code(str(tree), "--class-names=ant,bee") == ExitCode.DATA
    assert code(str(tree), "--prefix=../x") == ExitCode.USAGE
    assert code(str(tree), "--val-share=0.001") == ExitCode.DATA
    assert code(str(tree), "--class-names=zoo,cat,bee,ant") == 0
    with opened(tmp_path / "o") as shards:
        assert shards.class_names == ("zoo", "cat", "bee", "ant")
    assert main(["prep", "images", str(tree / "ant"), f"--out={tmp_path / 'p'}", *SMALL]) == 4
    (tmp_path / "flat").mkdir()
    (tmp_path / "flat" / "a.png").write_bytes(picture(7))
    assert main(["prep", "images", str(tmp_path / "flat"), f"--out={tmp_path / 'q'}", *SMALL]) == 0
    with opened(tmp_path / "q") as shards:
        assert not shards.infos[0].has_labels


def test_a_data_sets_parts_are_not_taken_for_classes_silently(
    tree: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "ant").rename(tree / "train")
    (tree / "bee").rename(tree / "val")
    (tree / "cat").rename(tree / "test")
    assert main(["prep", "images", str(tree), f"--out={tmp_path / 'o'}", *SMALL]) == 0
    assert "are these parts of the data set" in capsys.readouterr().err


# ---- tar ------------------------------------------------------------------------------


def tar_of(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def test_tar_files_by_number_and_by_name(tmp_path: Path) -> None:
    numbered = {f"d/{k:03d}.{e}": v for k in range(6) for e, v in (
        ("PNG", picture(k)), ("cls", f"{k % 3}\n".encode()), ("txt", b"."))}  # fmt: skip
    first = tar_of(tmp_path / "a.tar", numbered)
    listing = list_tars([first])
    assert [m.label for m in listing.members(range(6))] == [0, 1, 2] * 2
    assert listing.class_names is None
    assert listing.members([0])[0].id == "a.tar:d/000.PNG"
    named = {f"{k}.{e}": v for k in range(4) for e, v in (
        ("json", json.dumps({"label": "xy"[k % 2]}).encode()), ("png", picture(k)))}  # fmt: skip
    listing = list_tars([tar_of(tmp_path / "b.tar", named)])
    assert listing.class_names == ("x", "y")
    assert [m.label for m in listing.members(range(4))] == [0, 1, 0, 1]
    flags = ["--class-names=p,q,r", f"--out={tmp_path / 'o'}", *SMALL]
    assert main(["prep", "tar", str(first), *flags]) == 0
    with opened(tmp_path / "o") as shards:
        images, labels = shards.read_all()
        assert shards.class_names == ("p", "q", "r")
    assert labels is not None
    assert (images[:, 0, 0, 0] % 3 == labels).all()


def test_a_record_without_a_class_is_no_label_unless_its_key_was_named(tmp_path: Path) -> None:
    path = tar_of(tmp_path / "a.tar", {"0.png": picture(0), "0.json": b'{"caption": "x"}'})
    (member,) = list_tars([path]).members([0])
    assert (member.label, member.fault) == (None, None)
    with pytest.raises(DataFault, match="no class under 'kind'"):
        list_tars([path], label_key="kind")


def test_names_in_a_tar_lead_nowhere(tmp_path: Path) -> None:
    inside = tmp_path / "in"
    inside.mkdir()
    above = tmp_path.parent / "evil"  # where an absolute name and ".." would lead
    evil = {
        "../../evil/up.png": picture(1),
        f"{above}/abs.png": picture(2),
        "a\\..\\c.png": picture(3),
    }
    path = tar_of(inside / "evil.tar", evil)
    with tarfile.open(path, "a") as tar:
        link = tarfile.TarInfo("link.png")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    out = inside / "out"
    assert main(["prep", "tar", str(path), f"--out={out}", *SMALL]) == 0
    with opened(out) as shards:
        assert len(shards) == 3
    written = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert written == {"in/evil.tar", "in/out/shard.h5", "in/out/shard.h5.sha256"}
    assert not above.exists()


@pytest.mark.parametrize(
    ("members", "words"),
    [
        ({"a.txt": b""}, "no picture"),
        ({"a.png": b"1", "a.cls": b"1", "b.png": b"1"}, "1 of 2 pictures have none"),
        ({"a.png": b"1", "a.cls": b"1", "b.png": b"1", "b.cls": b"x"}, "all by number or all by"),
        ({"a.png": b"1", "a.jpg": b"1"}, "--picture png or --picture jpg"),
        ({"a.png": b"1", "a.json": b"{"}, "cannot be read"),
        ({"a.png": b"1", "a.json": b"[1]"}, "no JSON object"),
        ({"a.png": b"1", "a.json": b'{"label": 1.5}'}, "--label-key"),
        ({"a.png": b"1", "a.cls": b"\xff"}, "cannot be read"),
        ({"a.png": b"1", "a.cls": b"9" * (2 << 20)}, "no label"),
    ],
)
def test_tars_that_cannot_be_understood(
    tmp_path: Path, members: dict[str, bytes], words: str
) -> None:
    with pytest.raises(DataFault, match=words):
        list_tars([tar_of(tmp_path / "a.tar", members)])


@pytest.mark.parametrize(
    ("label", "why"),
    [
        (b"[" * 200_000, "cannot be read: its lists are nested too deeply"),
        (b'{"label": ' + b"9" * 5000 + b"}", "cannot be read: Exceeds the limit"),
        (b'{"label": ' + b"9" * 400 + b"}", "a number of 400 digits is no class number"),
        (b'{"label": -1}', "-1 is no class number; needed: 0 to 2147483647"),
        (b'{"label": [3]}', "no class under"),
        (b"\xff", "cannot be read"),
    ],
)
def test_a_bad_label_leaves_out_its_own_picture_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], label: bytes, why: str
) -> None:
    files = {f"{k}.{e}": v for k in range(4) for e, v in (
        ("png", picture(k)), ("json", b'{"label": %d}' % k))}  # fmt: skip
    path = tar_of(tmp_path / "a.tar", {**files, "1.json": label})
    flags = ["prep", "tar", str(path), f"--out={tmp_path / 'out'}", *SMALL]
    assert main([*flags, "--unreadable=stop"]) == ExitCode.DATA
    assert "a.tar:1.png: 1.json" in capsys.readouterr().err
    assert main(flags) == ExitCode.COMPLETE_WITH_ERRORS
    (line,) = (tmp_path / "out" / "shard.h5.unreadable.tsv").read_text().splitlines()[1:]
    assert line.startswith("a.tar:1.png\t1.json")
    assert why in line
    assert "Python" not in line
    assert "sys." not in line
    with opened(tmp_path / "out") as shards:
        images, labels = shards.read_all()
        assert labels is not None
        assert sorted(labels.tolist()) == [0, 2, 3]
        assert (images[:, 0, 0, 0] == labels).all()


def test_damaged_tars_are_refused_and_not_cut_short(tmp_path: Path) -> None:
    whole = tar_of(tmp_path / "a.tar", {f"{k}.png": picture(k) for k in range(5)}).read_bytes()
    size = 512 * (1 + -(-len(picture(0)) // 512))  # of a member with its header
    for damaged in (
        whole[: 3 * size],  # cut between members: no end mark
        whole[: 3 * size + 100],  # in a header
        whole[: 3 * size + 600],  # in a picture
        whole[: 3 * size] + b"\xff" * 512 + whole[3 * size + 512 :],  # a header overwritten
        b"",
        b"\x1f\x8b" + whole,
    ):
        (tmp_path / "b.tar").write_bytes(damaged)
        with pytest.raises(DataFault):
            list_tars([tmp_path / "b.tar"])


def test_keys_of_members() -> None:
    assert split_key("a.b/c.seg.PNG") == ("a.b/c", "seg.png")
    assert split_key("x.jpg") == ("x", "jpg")
    assert split_key("x") == ("x", "")


# ---- processes ------------------------------------------------------------------------


def test_processes_and_ranks_make_the_same_shards(tree: Path, tmp_path: Path) -> None:
    """Ranks are told by their launcher's variables alone: no MPI is needed for it."""
    flags = ["prep", "images", str(tree), "--size=8", "--images-per-shard=8"]
    assert main([*flags, f"--out={tmp_path / 'one'}", "--workers=1"]) == 0
    assert main([*flags, f"--out={tmp_path / 'two'}", "--workers=2"]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PMI_SIZE", "3")
        for rank in range(3):
            patch.setenv("PMI_RANK", str(rank))
            assert main([*flags, f"--out={tmp_path / 'ranks'}", "--workers=1"]) == 0
    names = sorted(p.name for p in (tmp_path / "one").iterdir())
    assert len(names) == 8
    for other in ("two", "ranks"):
        assert sorted(p.name for p in (tmp_path / other).iterdir()) == names
        for name in names:
            assert (tmp_path / other / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_an_interrupt_of_the_pool_is_noted_and_raised_between_its_calls(
    tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Raised within `wait`, it left locks taken: the command then hung at its end, now and then."""
    from collage_mpi.prep import work

    story: list[str] = []

    def interrupted_wait(futures: set, timeout: float, return_when: str) -> tuple[set, set]:
        os.kill(os.getpid(), signal.SIGTERM)
        story.append("wait ended")
        return set(), futures

    monkeypatch.setattr(work, "wait", interrupted_wait)
    before = signal.getsignal(signal.SIGTERM)
    flags = ["prep", "images", str(tree), "--size=8", "--images-per-shard=8", "--workers=2"]
    assert main([*flags, f"--out={tmp_path / 'out'}"]) == 130
    assert story == ["wait ended"]
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_a_killed_preparation_leaves_whole_shards_and_goes_on(
    tmp_path: Path, how: signal.Signals
) -> None:
    tree = tmp_path / "tree" / "a"
    tree.mkdir(parents=True)
    large = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    Image.fromarray(large).save(tree / "0.png")
    for k in range(1, 60):
        os.link(tree / "0.png", tree / f"{k}.png")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "collage_mpi", "prep", "images", str(tree.parent)]
    command += [f"--out={out}", "--size=400", "--images-per-shard=6", "--workers=2"]
    child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list(out.glob("*.sha256")) and time.monotonic() < deadline:
        time.sleep(0.01)
    child.send_signal(how)
    child.communicate(timeout=60)
    assert child.returncode == (130 if how is signal.SIGTERM else -how)
    done = sorted(out.glob("*.h5"))
    assert 1 <= len(done) < 10
    if how is signal.SIGTERM:
        assert list(out.glob(".*.tmp*")) == []
    whole = sum(path.with_name(f"{path.name}.sha256").exists() for path in done)
    again = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"(\d+) of them were already complete", again.stdout)
    assert found
    assert int(found[1]) >= whole  # a child may finish one while its parent dies
    assert len(list(out.glob("*.h5"))) == 10
    assert list(out.glob(".*.tmp*")) == []
    assert all(verify_here(path) == [] for path in out.glob("*.h5"))


def test_links_in_a_circle_and_long_names_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "loop.jpg").symlink_to("loop.jpg")
    for name, words in (("in", "in/loop.jpg: cannot be read: Too many"), ("a" * 300, "not a f")):
        code = main(["prep", "images", str(tmp_path / name), f"--out={tmp_path / 'out'}"])
        assert code == ExitCode.ENVIRONMENT
        assert words in capsys.readouterr().err
