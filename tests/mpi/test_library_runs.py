"""Whole jobs with networks of other libraries: begun, gone on with, refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from conftest import codes, run_many
from PIL import Image
from pyarrow import parquet

from collage_mpi.cli import main
from collage_mpi.errors import ExitCode
from collage_mpi.results import read_results, verify_run
from collage_mpi.shards import write_shard

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi, pytest.mark.slow]


def test_networks_of_other_libraries_are_begun_and_gone_on_with(mpi, tmp_path: Path) -> None:
    """Of pictures without labels: the network alone knows the classes. One shard comes late."""
    for package in ("timm", "onnxruntime", "onnx"):
        pytest.importorskip(package)
    from library_files import PX, save_onnx, save_timm

    random = np.random.default_rng(0)
    for px in (PX, 160):
        for name in ("a", "b"):
            images = random.integers(0, 256, (4, px, px, 3), np.uint8)
            write_shard(tmp_path / str(px) / f"{name}.h5", images)
        (tmp_path / str(px) / "b.h5").rename(tmp_path / f"late-{px}")
        (tmp_path / str(px) / "b.h5").write_bytes(b"late")
    file = save_onnx(tmp_path / "n.onnx")
    (tmp_path / "cut.onnx").write_bytes(file.read_bytes()[:60])
    common = ["run", "--scheme", "none", "--singles", "1", "--save", "scores", "--batch", "3"]
    timm = f"timm:test_resnet,weights={save_timm(tmp_path / 'w.pth')}"
    cases = [
        [*common, "--shards", str(PX), "--single", "n.onnx", "--out", "onnx"],
        [*common, "--shards", "160", "--single", timm, "--out", "timm"],
        [*common, "--shards", str(PX), "--single", "cut.onnx", "--out", "no"],
    ]
    *done, broken = run_many(mpi, 2, cases, tmp_path, 200, ["timm"])
    assert [codes(case) for case in done] == [[ExitCode.DATA] * 2] * 2, done  # for the late shard
    assert codes(broken) == [ExitCode.DATA] * 2
    assert "cut.onnx: cannot be loaded" in broken[0]["err"]
    assert not (tmp_path / "no").exists()
    assert "Traceback" not in "".join(rank["err"] for rank in broken)

    for px in (PX, 160):
        os.replace(tmp_path / f"late-{px}", tmp_path / str(px) / "b.h5")
    save_onnx(file, softmax=True)
    (tmp_path / "said").rename(tmp_path / "said before")
    resumed = [["run", "--out", name] for name in ("onnx", "timm")]
    other, done = run_many(mpi, 2, resumed, tmp_path, 200, ["timm"])
    assert codes(other) == [ExitCode.USAGE] * 2, other
    assert "the run there has other settings" in other[0]["err"]
    assert codes(done) == [0] * 2, done
    report, results = verify_run(tmp_path / "timm"), read_results(tmp_path / "timm")
    assert report.ok, report.problems
    assert report.vectors == 8
    assert results.kept("scores").shape == (8, 4)


@pytest.mark.usefixtures("torch_once")
def test_embeddings_by_name_and_classes_by_labels(tmp_path: Path, monkeypatch, capfd) -> None:
    pytest.importorskip("transformers")
    from library_files import PX, save_clip

    monkeypatch.chdir(tmp_path)
    random = np.random.default_rng(0)

    def picture(name: str) -> None:
        Image.fromarray(random.integers(0, 256, (PX, PX, 3), np.uint8)).save(f"photos/{name}")

    Path("photos").mkdir()
    for name in ("a.png", "c.png", "d.png"):
        picture(name)
    Path("photos/damaged.png").write_bytes(b"")
    common = ["--network", f"hf:{save_clip(Path('clip'))}", "--device", "cpu", "--ranks", "1"]
    words = ["embed", "photos", *common, "--out", "e.parquet"]
    assert main(words) == ExitCode.COMPLETE_WITH_ERRORS, capfd.readouterr().err
    said = capfd.readouterr().out
    assert "embeddings in e.parquet" in said
    assert "pictures without an embedding have the reason in the column error" in said
    before = parquet.read_table("e.parquet")
    kind = before.schema.field("embedding").type
    assert str(kind) == "fixed_size_list<element: halffloat>[12]"
    rows = {row["id"]: row for row in before.to_pylist()}
    assert {name for name, row in rows.items() if row["error"]} == {"damaged.png"}
    assert rows["damaged.png"]["embedding"] is None
    length = np.linalg.norm(np.float32(rows["a.png"]["embedding"]))
    assert abs(length - 1) < 2e-3
    about = json.loads(before.schema.metadata[b"collage_mpi"])
    assert about["embedding"] == {"normalisation": "l2", "dimension": 12}
    assert len(about["reference"]["digest"]) == 64
    assert verify_run("e.parquet.run").ok

    picture("b.png")
    assert main(words) == ExitCode.COMPLETE_WITH_ERRORS, capfd.readouterr().err
    after = {row["id"]: row for row in parquet.read_table("e.parquet").to_pylist()}
    assert {name: after[name] for name in rows} == rows
    assert {*after} - {*rows} == {"b.png"}
    assert main([*words, "--normalise", "none"]) == ExitCode.USAGE
    assert "remove e.parquet.run or choose another --out" in capfd.readouterr().out

    labels = ["--labels", "a ship, plane", "--out", "c.parquet"]
    code = main(["classify", "photos", *common, *labels])
    assert code == ExitCode.COMPLETE_WITH_ERRORS, capfd.readouterr().err
    classes = parquet.read_table("c.parquet").to_pylist()
    assert {row["class"] for row in classes if not row["error"]} <= {"a ship", "plane"}

    beside = ["--network", "hf:clip,labels=a ship|plane", "--network", "hf:clip,embed=l2"]
    beside += ["--as", "words", "--as", "e", "--out", "b.parquet", *common[2:]]
    code = main(["classify", "photos", *beside])
    assert code == ExitCode.COMPLETE_WITH_ERRORS, capfd.readouterr().err
    both = parquet.read_table("b.parquet").to_pylist()
    assert [row["class"] for row in both] == [row["class"] for row in classes]
    assert [row["e_embedding"] for row in both] == [after[row["id"]]["embedding"] for row in both]
