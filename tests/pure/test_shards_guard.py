"""Damaged files: the child that looks first, its limits, and what its death means."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from chunked import write_chunked
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from collage_mpi.errors import CollageError, DataFault, EnvironmentFault
from collage_mpi.shards import ShardSet, inspect_shard, verify_shard
from collage_mpi.shards import guard as guard_module
from collage_mpi.shards.schema import sidecar_path
from collage_mpi.system.forked import FOLDER_VARIABLE, VARIABLE, of_server, serving
from collage_mpi.system.process_tree import own_command

IMAGES = np.random.default_rng(0).integers(0, 256, (20, 3, 3, 1), dtype=np.uint8)
LABELS = np.arange(20) % 3
NAMES = ("a", "b", "c")


def make_shard(folder: Path, name: str = "good.h5") -> Path:
    write_chunked(folder / name, 6, IMAGES, LABELS, class_names=NAMES, source="s")
    return folder / name


def damaged(raw: bytes, data: st.DataObject) -> bytes:
    """`raw` with a byte changed, a stretch zeroed, or its end cut off."""
    place = data.draw(st.integers(0, len(raw) - 1))
    how = data.draw(st.sampled_from(["change", "zero", "cut"]))
    if how == "cut":
        return raw[:place]
    out = bytearray(raw)
    if how == "change":
        out[place] ^= data.draw(st.integers(1, 255))
    else:
        stop = min(len(raw), place + data.draw(st.integers(1, 64)))
        out[place:stop] = bytes(stop - place)
    return bytes(out)


def reads_as_written(path: Path) -> bool:
    with ShardSet.open([path]) as shards:
        images, labels = shards.read_all()
        return bool((images == IMAGES).all() and (labels == LABELS).all())


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), beside=st.booleans())
def test_damage_is_told_or_harmless(tmp_path: Path, data: st.DataObject, beside: bool) -> None:
    """With its .sha256 every change is found; without, the pixels and labels are still right."""
    good = make_shard(tmp_path)
    raw = good.read_bytes()
    paths = [tmp_path / f"{number}.h5" for number in range(25)]
    for path in paths:
        path.write_bytes(damaged(raw, data))
        if beside:
            sidecar_path(path).write_bytes(sidecar_path(good).read_bytes())
        else:
            sidecar_path(path).unlink(missing_ok=True)
    for path, (kind, told) in zip(paths, guard_module._ask("inspect", paths, 30.0), strict=True):
        changed = path.read_bytes() != raw
        if kind != "found":
            assert changed
            continue
        assert not (beside and changed)
        info = guard_module.ShardInfo.from_json(told)
        try:
            with ShardSet([info]) as shards:
                images, labels = shards.read_all()
        except CollageError:
            continue
        np.testing.assert_array_equal(images, IMAGES)
        np.testing.assert_array_equal(labels, LABELS)


def test_verify_a_good_shard(tmp_path: Path) -> None:
    path = make_shard(tmp_path)
    assert verify_shard(path) == []
    assert reads_as_written(path)


def test_verify_lists_what_is_wrong(tmp_path: Path) -> None:
    path = make_shard(tmp_path)
    with h5py.File(path, "a") as file:
        file["images"][7] ^= 255
        file["labels"][8] = 9
    problems = verify_shard(path)
    assert len(problems) == 4
    assert "SHA-256" in problems[0]
    assert problems[1].startswith("row 7: checksum")
    assert problems[2].startswith("row 8: checksum")
    assert "label 9 has no name" in problems[3]
    sidecar_path(path).unlink()
    assert "no good.h5.sha256 beside it" in verify_shard(path)[0]


def break_attribute(file: h5py.File) -> None:
    file.attrs["version"] = 99


def drop_format(file: h5py.File) -> None:
    del file.attrs["format"]


def drop_checksums(file: h5py.File) -> None:
    del file["crc32"]


def shorten_labels(file: h5py.File) -> None:
    del file["labels"]
    file["labels"] = np.zeros(3, dtype=np.int64)


def link_away(file: h5py.File) -> None:
    del file["images"]
    file["images"] = h5py.ExternalLink("/etc/other.h5", "/images")


def leave_a_gap(file: h5py.File) -> None:
    del file["images"]
    images = file.create_dataset("images", (20, 3, 3, 1), chunks=(6, 3, 3, 1), dtype="u1")
    images[:12] = IMAGES[:12]


def cut_images(file: h5py.File) -> None:
    del file["images"]
    file.create_dataset("images", data=IMAGES, chunks=(6, 2, 3, 1))


def never_store(file: h5py.File) -> None:
    del file["images"]
    file.create_dataset("images", (20, 3, 3, 1), dtype="u1")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (break_attribute, "version 99"),
        (drop_format, "format is None"),
        (drop_checksums, "has no 'crc32'; it holds"),
        (shorten_labels, r"'labels' has shape \(3,\)"),
        (link_away, "is no dataset of this file itself: a group, or a link"),
        (leave_a_gap, "2 chunks of images are stored; 4 are needed"),
        (cut_images, "cut images"),
        (never_store, "not stored in full"),
    ],
)
def test_structure_faults_are_told(tmp_path: Path, change, words: str) -> None:  # type: ignore[no-untyped-def]
    path = make_shard(tmp_path)
    with h5py.File(path, "a") as file:
        change(file)
    sidecar_path(path).unlink()
    with pytest.raises(DataFault, match=words) as caught:
        inspect_shard(path)
    assert "data_prep/README.md" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "what", "instead"),
    [
        ("a.JPG", "is one picture", "Give the folder"),
        ("a.tar.gz", "is compressed", "give the .tar file"),
        ("a.npy", "is a NumPy file", "HDF5"),
    ],
)
def test_a_file_that_is_no_input_is_told_with_what_to_give_instead(
    tmp_path: Path, name: str, what: str, instead: str
) -> None:
    (tmp_path / name).write_bytes(b"something else")
    with pytest.raises(DataFault) as caught:
        ShardSet.open([tmp_path / name])
    said = str(caught.value)
    assert what in said
    assert instead in said
    assert "HDF5:" not in said
    assert "Inputs are folders of pictures, .h5," in said


def test_foreign_and_missing_files(tmp_path: Path) -> None:
    (tmp_path / "text.h5").write_text("no HDF5 here")
    with pytest.raises(DataFault, match="cannot be opened as HDF5"):
        inspect_shard(tmp_path / "text.h5")
    with pytest.raises(EnvironmentFault, match="No such file"):
        inspect_shard(tmp_path / "none.h5")
    with pytest.raises(EnvironmentFault, match="No such file"):
        verify_shard(tmp_path / "none.h5")


def test_a_read_that_does_not_end_is_ended(tmp_path: Path) -> None:
    path = make_shard(tmp_path)
    sidecar_path(path).unlink()
    os.mkfifo(sidecar_path(path))  # opening it waits for a writer for ever
    with pytest.raises(DataFault, match="did not end within 1 s"):
        inspect_shard(path, limit_s=1.0)


def test_a_pipe_or_a_folder_is_no_shard(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.h5")
    (tmp_path / "folder.h5").mkdir()
    for name in ("pipe.h5", "folder.h5"):
        with pytest.raises(EnvironmentFault, match=r"a (regular )?file is needed"):
            inspect_shard(tmp_path / name)


CRASHING_CHILD = """
import json, os, sys
from collage_mpi.shards import guard
plain = guard._answer
def answer(task, path):
    if "bad" in path.name:
        os.abort()
    return plain(task, path)
guard._answer = answer
guard.main()
"""


def test_a_crash_is_blamed_on_its_file_and_the_rest_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard_module, "CHILD_COMMAND", (sys.executable, "-c", CRASHING_CHILD))
    paths = [make_shard(tmp_path, name) for name in ("a.h5", "bad.h5", "c.h5")]
    answers = guard_module._ask("inspect", paths, 30.0)
    assert [kind for kind, _ in answers] == ["found", "data", "found"]
    assert "bad.h5: reading it crashed" in answers[1][1]
    with pytest.raises(DataFault, match=r"bad\.h5: reading it crashed"):
        inspect_shard(paths[1])
    assert "crashed" in verify_shard(paths[1])[0]


@pytest.mark.parametrize("number", ["SIGUSR1", "SIGUSR2", "SIGTERM", "SIGINT"])
def test_the_child_outlives_what_a_rank_is_told(tmp_path, monkeypatch, number):
    """Launchers tell a rank's process group to stop; MPICH's sends it SIGUSR1 when a rank dies."""
    told = (
        f"import os, signal; os.kill(os.getpid(), signal.{number}); "
        "from collage_mpi.shards.guard import main; main()"
    )
    monkeypatch.setattr(guard_module, "CHILD_COMMAND", (sys.executable, "-c", told))
    assert inspect_shard(make_shard(tmp_path)).count == 20
    assert signal.Signals[number] not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def test_the_clock_ends_a_child_before_its_processor_time_does(tmp_path, monkeypatch):
    """Only then is the user told that reading did not end, and not of a crash."""
    limits, plain = [], guard_module.ask_apart

    def ask(words, request, limit_s, environment):
        limits.append((request["cpu_s"], limit_s))
        return plain(words, request, limit_s, environment)

    monkeypatch.setattr(guard_module, "ask_apart", ask)
    assert inspect_shard(make_shard(tmp_path), limit_s=30.0).count == 20
    assert limits == [(35, 30.0)]


def test_memory_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = (
        "from collage_mpi.shards import guard; import numpy\n"
        "guard._answer = lambda task, path: ('found', [str(numpy.ones(1 << 30).nbytes)])\n"
        "guard.main()"
    )
    monkeypatch.setattr(guard_module, "CHILD_COMMAND", (sys.executable, "-c", child))
    with pytest.raises(EnvironmentFault, match="allocate"):
        verify_shard(make_shard(tmp_path))


@pytest.mark.parametrize("named", [True, False])
def test_a_child_is_forked_from_the_server_of_the_ranks(tmp_path, monkeypatch, named) -> None:
    """It may map more than the limit when it begins, as with a torch for GPUs."""
    (tmp_path / "large.py").write_text("import mmap; held = mmap.mmap(-1, 3 << 30)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    environment = {**os.environ, FOLDER_VARIABLE: str(tmp_path)}
    with serving(environment, ["large"], ["mpiexec"]):
        if named:
            monkeypatch.setitem(of_server, VARIABLE, environment[VARIABLE])
        (tmp_path / "asked.py").write_text(
            "import sys; from collage_mpi.shards import guard\n"
            "guard._answer = lambda task, path: ('found', ['large' in sys.modules])\n"
            "guard.main()"
        )
        assert inspect_shard(make_shard(tmp_path)).count == 20
        monkeypatch.setattr(guard_module, "CHILD_COMMAND", own_command("asked"))
        assert verify_shard(tmp_path / "good.h5") == [named]


def test_a_child_that_cannot_start_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(
        guard_module, "CHILD_COMMAND", (sys.executable, "-c", "import nothing_here")
    )
    with pytest.raises(EnvironmentFault, match="No module named 'nothing_here'"):
        inspect_shard(make_shard(tmp_path))
