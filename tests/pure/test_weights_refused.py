"""Collage weights that are not those the job needs: refused, both values named. No torch."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest

from collage_mpi.cli import main
from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.job.plan import make_plan
from collage_mpi.models.architecture import Architecture, Stage
from collage_mpi.models.libraries import load_tensors
from collage_mpi.models.weights import METADATA_KEY, describe_weights, read_tensors, save_weights
from collage_mpi.settings.flags import read_settings_file
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards import write_shard
from collage_mpi.simulation.simulator import read_answers

NAMES = ("cat", "dog", "cow", "hen", "pig", "owl")


def weights(path: Path, **changes: object) -> Path:
    record = {
        "kind": "collage",
        "architecture": asdict(Architecture(8, 3, 1, (Stage(8, 1),))),
        "side": 3,
        "cell_px": 12,
        "channels": 1,
        "class_names": list(NAMES),
        "normalisation": {"mean": [0.2], "std": [0.5]},
        "temperature": 1.0,
        **changes,
    }
    save_weights(path, {"classifier.bias": np.zeros(6, np.float32)}, record)
    return path


def shard(folder: Path) -> str:
    path = folder / "a.h5"
    labels = np.arange(40, dtype=np.int64) % 6
    write_shard(path, np.zeros((40, 12, 12, 1), np.uint8), labels, class_names=NAMES)
    return str(path)


@pytest.mark.parametrize(
    ("changes", "asked", "says"),
    [
        ({"side": 2}, {}, ("--side is 3", "side 2")),
        ({"cell_px": 10}, {"cell_px": 12}, ("--cell-px is 12", "10 px")),
        ({"channels": 3, "normalisation": {"mean": [0] * 3, "std": [1] * 3}}, {}, ("1 ch", "3")),
        ({"class_names": list(NAMES[:5])}, {}, ("6 classes in the shards, 5 in",)),
        ({"class_names": [*NAMES[:5], "emu"]}, {}, ("class 5 is 'owl'", "'emu'")),
        ({"class_names": list(NAMES[::-1])}, {}, ("class 0 is 'cat'", "'owl'")),
    ],
)
def test_a_job_refuses_weights_of_another_kind_of_collage(
    tmp_path: Path, changes: dict[str, object], asked: dict[str, int], says: tuple[str, ...]
) -> None:
    path = weights(tmp_path / "w.safetensors", **changes)
    settings = RunSettings(
        shards=(shard(tmp_path),),
        single="null:height=12,width=12,classes=6",
        collage=str(path),
        out="out",
        side=3,
        **asked,
    )
    with pytest.raises(DataFault) as caught:
        make_plan(settings, 11)
    for text in says:
        assert text in str(caught.value)


def test_evaluate_refuses_them_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["evaluate", "--shards", shard(tmp_path)]
    late = weights(tmp_path / "late", class_names=[*NAMES[:5], "emu"])
    assert main([*words, "--collage", str(late)]) == 4
    assert "class 5 is 'owl' in the shards and 'emu' in" in capsys.readouterr().err
    whole = ["--collage", str(weights(tmp_path / "w"))]
    for more, says in ((["--side", "4"], "--side is 4"), (["--cell-px", "10"], "--cell-px is 10")):
        assert main([*words, *whole, *more]) == 4
        assert says in capsys.readouterr().err


def test_tensors_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = weights(tmp_path / "w")
    record = path.read_bytes()
    header = record[8 : 8 + int.from_bytes(record[:8], "little")]
    meta = json.loads(header)["__metadata__"]
    assert METADATA_KEY in meta
    save_file({"classifier.bias": np.array([np.nan], np.float32)}, path, metadata=meta)
    with pytest.raises(DataFault, match=r"'classifier.bias' holds NaN"):
        read_tensors(describe_weights(path))
    with pytest.raises(DataFault, match="not finite"):
        save_weights(path, {"a": np.array([np.inf], np.float32)}, {})


def test_damage_is_found_before_ranks_load_anything(tmp_path: Path) -> None:
    import sys

    from safetensors.numpy import save

    whole, nan = weights(tmp_path / "w.safetensors"), tmp_path / "nan.safetensors"
    record = describe_weights(whole).metadata
    tensors = {"classifier.bias": np.full(6, np.nan, np.float32)}
    nan.write_bytes(save(tensors, metadata={METADATA_KEY: json.dumps(record)}))
    out = str(tmp_path / "out")
    settings = RunSettings(
        shards=(shard(tmp_path),), single="null", collage=str(nan), side=3, out=out
    )
    before = "torch" in sys.modules
    with pytest.raises(DataFault, match="holds NaN or infinity"):
        make_plan(settings, 11)
    assert ("torch" in sys.modules) == before


def make(sort: str, path: Path) -> Path:
    if sort == "FIFO":
        os.mkfifo(path)  # opening it would wait for a writer for ever
    elif sort == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    return path


@pytest.mark.parametrize("sort", ["FIFO", "device", "folder"])
@pytest.mark.parametrize("flag", ["single", "collage", "straggler", "arrival_file"])
def test_a_job_refuses_what_is_no_regular_file(tmp_path: Path, sort: str, flag: str) -> None:
    path = make(sort, tmp_path / "file.npy")
    values = {"single": "null", "collage": "null", flag: str(path)}
    settings = RunSettings(shards=(shard(tmp_path),), side=3, out="out", **values)
    with pytest.raises(EnvironmentFault, match=f"it is a {sort}; a.* file is needed"):
        make_plan(settings, settings.world_size)


@pytest.mark.parametrize("sort", ["FIFO", "device"])
def test_other_readers_refuse_it_too(tmp_path: Path, sort: str) -> None:
    path = make(sort, tmp_path / "file.toml")
    for read in (read_settings_file, load_tensors, lambda p: read_answers(p, 3)):
        with pytest.raises(EnvironmentFault, match=f"it is a {sort}; a regular file is needed"):
            read(path)
