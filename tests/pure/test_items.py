"""Items that are no pictures, of any type and number of axes: stored, read, given to a network as
they are, and refused where they do not fit.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import h5py
import numpy as np
import pytest
from test_shards_readahead import take

from collage_mpi.cli import main
from collage_mpi.errors import DataFault, ExitCode, UsageError
from collage_mpi.job.networks import joined
from collage_mpi.job.plan import make_plan, read_as
from collage_mpi.models import load_predictor
from collage_mpi.models.architecture import default_architecture
from collage_mpi.models.info import PLAIN, Geometry, Loading
from collage_mpi.models.null import NullPredictor
from collage_mpi.models.weights import save_weights
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards import ReadAhead, ShardSet, verify_shard, write_shard
from collage_mpi.shards.source import ANY_ITEMS

SHAPES = [
    ("uint8", (4, 5, 12)),
    ("uint16", (4, 5, 12)),
    ("int16", (2, 3, 4, 1)),
    ("float16", (7,)),
    ("float32", (3, 4)),
    ("float32", (2, 2, 3, 4, 2)),
]
MODULE = """
import numpy as np
import torch

class Seen(torch.nn.Module):
    '''Two logits: the sum of channel 0 of what it gets, and 0.'''
    def forward(self, x):
        first = x[:, 0].reshape(len(x), -1).sum(1)
        return torch.stack([first, torch.zeros_like(first)], 1)

def plain(kind, shape, side, cell_px, classes, device):
    return Seen()

def spread(**told):
    net = Seen()
    net.input_mean, net.input_std, net.input_dtype = [10.0, 0.0], 4, "uint16"
    return net

def first(**told):
    net = Seen()
    net.input_channels, net.input_shape = "first", (2, 3, 4)
    return net

def unclear(**told):
    net = Seen()
    net.input_mean = "high"
    return net

class Kept:
    input_dtype = np.float16
    def predict(self, batch):
        assert batch.dtype == np.float16 and batch.shape[1:] == (7,), batch.shape
        return np.full((len(batch), 1, 2), 0.5)

def kept(**told):
    return Kept()
"""


def items(dtype: str, shape: tuple[int, ...], count: int = 9) -> np.ndarray:
    values = np.random.default_rng(5).integers(0, 3000, (count, *shape))
    return values.astype(dtype)


@pytest.mark.parametrize(("dtype", "shape"), SHAPES)
@pytest.mark.parametrize("kind", ["shard", "zarr", "cut zarr"])
def test_items_are_read_as_they_are_and_travel_as_bytes(tmp_path, kind, dtype, shape) -> None:
    array, path = items(dtype, shape), tmp_path / "a.h5"
    if kind == "shard":
        write_shard(path, array)
    else:
        zarr, path = (
            pytest.importorskip("zarr", reason="zarr is not installed"),
            tmp_path / "a.zarr",
        )
        stored = array.astype(array.dtype.newbyteorder(">"))
        inside = [max(1, size // 2) for size in shape] if kind == "cut zarr" else shape
        node = zarr.create_array(
            str(path), shape=array.shape, dtype=stored.dtype, chunks=(4, *inside)
        )
        node[:] = stored
    order = [8, 0, 3, 3]
    with ShardSet.open([path], read_as=ANY_ITEMS) as found:
        assert (found.dtype, found.shape) == (dtype, shape)
        np.testing.assert_array_equal(found.read(order)[0], array[order])
        with ReadAhead(found, order) as reader:
            records = [record for _ in order for record in take(reader, 1)]
    told = [record.pixels for record in records]
    assert all(each.dtype == np.uint8 and each.flags.c_contiguous for each in told)
    assert [each.tobytes() for each in told] == [array[row].tobytes() for row in order]


def test_a_damaged_item_is_an_error_of_its_row(tmp_path, capsys) -> None:
    array, path = items("float32", (2, 3, 4, 1)), tmp_path / "a.h5"
    write_shard(path, array)
    assert verify_shard(path) == []
    data = path.read_bytes()
    path.write_bytes(data.replace(array[4].tobytes(), (array[4] + 1).tobytes()))
    (tmp_path / "a.h5.sha256").unlink()
    assert any("row 4: checksum does not match" in problem for problem in verify_shard(path))
    with ShardSet.open([path], read_as=ANY_ITEMS) as found:
        good = found.read_checked(range(9))[2]
    assert np.flatnonzero(~good).tolist() == [4]
    assert main(["prep", "inspect", str(path)]) == 0
    assert "images       9 of 2 x 3 x 4 x 1, float32" in capsys.readouterr().out


def test_who_needs_pictures_refuses_other_items(tmp_path, capsys) -> None:
    write_shard(tmp_path / "a.h5", items("uint16", (4, 5, 12)))
    with pytest.raises(DataFault, match=r"uint16 \(4, 5, 12\); needed here: uint8 pictures"):
        ShardSet.open([tmp_path / "a.h5"])
    words = ["prep", "shards", str(tmp_path / "a.h5"), "--out", str(tmp_path / "out")]
    assert main([*words, "--size=4"]) == ExitCode.DATA
    assert capsys.readouterr().err.count("needed here: uint8 pictures") == 1


def test_prep_makes_shards_of_any_items(tmp_path) -> None:
    array = items("float32", (2, 3, 4, 5))
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["volumes"] = array
    words = ["prep", "shards", str(tmp_path / "a.h5"), "--out", str(tmp_path / "out")]
    assert main([*words, "--rows-per-shard=4"]) == 0
    with ShardSet.open([tmp_path / "out"], read_as=ANY_ITEMS) as found:
        assert [info.storage for info in found.infos] == ["images"] * 3
        np.testing.assert_array_equal(found.read_all()[0], array)


def test_shards_of_one_job_hold_items_of_one_type(tmp_path) -> None:
    paths = [tmp_path / "a.h5", tmp_path / "b.h5"]
    for path, dtype in zip(paths, ("uint16", "int16"), strict=True):
        write_shard(path, items(dtype, (4, 5, 12)))
    with pytest.raises(DataFault, match=r"b\.h5: dtype is int16, but .*a\.h5 has uint16"):
        ShardSet.open(paths, read_as=ANY_ITEMS)


def test_a_network_for_other_items_does_not_say_how_pictures_are_read(tmp_path) -> None:
    write_shard(tmp_path / "a.h5", items("uint8", (4, 5, 1)))
    settings = RunSettings(shards=(str(tmp_path / "a.h5"),), single="null", scheme="none", out="o")
    for channels, shape in ((12, (224, 224, 3)), (3, (32, 32, 3))):
        info = SimpleNamespace(image_shape=(32, 32, channels), class_names=None)
        assert read_as(settings, {"single": info}).fit.shape == shape


def loaded(tmp_path: Path, name: str, shape: tuple[int, ...], dtype: str):
    pytest.importorskip("torch")
    (tmp_path / "nets.py").write_text(MODULE)
    how = Loading(geometry=Geometry(shape, 2, 1, 2, dtype), tuning=PLAIN)
    return load_predictor(f"{tmp_path / 'nets.py'}:{name}", "single", how)


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "first"),
    [
        ("plain", "uint8", (2, 2, 2), lambda x: x[..., 0] / 255),
        ("plain", "uint16", (2, 2, 2), lambda x: x[..., 0]),
        ("plain", "float32", (2, 1, 2, 3), lambda x: x[..., 0]),
        ("plain", "float16", (3,), lambda x: x[:, 0]),
        ("plain", "int16", (2, 3), lambda x: x[:, 0]),
        ("spread", "uint16", (2, 2, 2), lambda x: (x[..., 0] - 10) / 4),
        ("first", "float32", (2, 3, 4), lambda x: x[:, 0]),
    ],
)
def test_a_module_gets_the_values_that_it_declares(tmp_path, name, dtype, shape, first) -> None:
    predictor = loaded(tmp_path, name, shape, dtype)
    batch = (items(dtype, shape, 3) % 4).astype(dtype)
    sums = first(batch.astype(np.float64)).reshape(3, -1).sum(1)
    expected = 1 / (1 + np.exp(-sums))
    np.testing.assert_allclose(predictor.predict(batch)[:, 0, 0], expected, rtol=1e-4)
    with pytest.raises(DataFault, match=rf"takes .* {dtype}; it got .* float64"):
        predictor.predict(batch.astype(np.float64))


def test_predict_gets_items_as_they_are(tmp_path) -> None:
    assert loaded(tmp_path, "kept", (7,), "float16").predict(items("float16", (7,))).shape == (
        9,
        1,
        2,
    )


@pytest.mark.parametrize(
    ("name", "dtype", "shape", "words"),
    [
        (
            "spread",
            "float32",
            (4, 5, 2),
            r"holds items of float32 \(4, 5, 2\), the .* takes uint16",
        ),
        ("first", "float32", (3, 4, 2), r"float32 \(3, 4, 2\), the .* takes float32 \(2, 3, 4\)"),
        ("kept", "float32", (7,), r"items of float32 \(7,\), the .* takes float16"),
        ("unclear", "float32", (7,), "input_mean or input_std cannot be read"),
    ],
)
def test_other_items_than_a_network_declares_are_refused(tmp_path, name, dtype, shape, words):
    with pytest.raises(UsageError if name == "unclear" else DataFault, match=words):
        loaded(tmp_path, name, shape, dtype)


def test_the_null_network_reads_the_first_value_of_any_item() -> None:
    null = NullPredictor("single", Geometry((2, 3), 2, 1, 5))
    batch = np.array([[[7.5, 0, 0], [0, 0, 0]], [[np.nan, 0, 0], [0, 0, 0]]], np.float32)
    assert null.predict(batch).argmax(2).tolist() == [[2], [0]]


def test_values_that_lie_askew_in_a_message_are_aligned() -> None:
    values = np.arange(24, dtype=np.float32)
    message = np.concatenate([np.zeros(57, np.uint8), values.view(np.uint8)])
    views = [message[57 + 32 * i : 89 + 32 * i].view(np.float32).reshape(1, 2, 4) for i in range(3)]
    for inputs in (views, views[:1]):
        batch = joined(inputs)
        assert batch.flags.aligned
        np.testing.assert_array_equal(batch, values.reshape(3, 2, 4)[: len(inputs)])
    straight = np.concatenate([np.zeros(64, np.uint8), values.view(np.uint8)])
    views = [
        straight[64 + 32 * i : 96 + 32 * i].view(np.float32).reshape(1, 2, 4) for i in range(3)
    ]
    assert np.shares_memory(joined(views), straight)


def planned(path: Path, **more):
    values = {"single": "null", "collage": "null", "out": "out", "scheme": "none", **more}
    settings = RunSettings(shards=(str(path),), side=2, **values)
    return make_plan(settings, settings.launch_size, launched=False)


@pytest.fixture
def volumes(tmp_path: Path) -> Path:
    write_shard(tmp_path / "volumes.h5", items("float32", (3, 4, 5, 1)))
    return tmp_path / "volumes.h5"


def test_a_run_takes_items_of_any_type(volumes: Path, tmp_path: Path) -> None:
    with planned(volumes).shards as shards:
        assert (shards.dtype, shards.shape) == ("float32", (3, 4, 5, 1))
    write_shard(tmp_path / "long.h5", np.zeros((2, 1 << 22), np.uint16))
    planned(tmp_path / "long.h5").shards.close()  # which has no collage that would be too large


@pytest.mark.parametrize("scheme", ["collage", "collage-only", "cascade"])
def test_schemes_that_paste_refuse_other_items_and_name_those_that_do_not(volumes, scheme) -> None:
    with pytest.raises(UsageError) as caught:
        planned(volumes, scheme=scheme)
    said = str(caught.value)
    assert f"scheme {scheme} pastes" in said
    assert "items of float32 (3, 4, 5, 1)" in said
    assert "pastes nothing: none, replicate, hedge, or cascade with --first W" in said


def test_a_network_for_other_items_is_refused_before_any_rank_loads(volumes, tmp_path) -> None:
    pytest.importorskip("torch")
    (tmp_path / "nets.py").write_text(MODULE)
    with pytest.raises(DataFault, match=r"holds items of float32 \(3, 4, 5, 1\), the .* uint16"):
        planned(volumes, single=f"{tmp_path / 'nets.py'}:spread")
    planned(volumes, single=f"{tmp_path / 'nets.py'}:plain").shards.close()
    architecture = asdict(default_architecture("single", 8, "batch"))
    record = {
        "kind": "single",
        "architecture": architecture,
        "height": 4,
        "width": 5,
        "channels": 1,
        "class_names": ["a", "b"],
        "normalisation": {"mean": [0.5], "std": [0.5]},
        "temperature": 1.0,
    }
    save_weights(tmp_path / "s.safetensors", {"bias": np.ones(2, np.float32)}, record)
    with h5py.File(tmp_path / "pixels.h5", "w") as file:
        file["images"] = np.linspace(0, 1, 40, dtype=np.float32).reshape(2, 4, 5, 1)
    with pytest.raises(DataFault) as caught:
        planned(tmp_path / "pixels.h5", single=str(tmp_path / "s.safetensors"))
    said = str(caught.value)
    assert "holds items of float32 (4, 5, 1), the single network" in said
    assert "takes uint8 (4, 5, 1). " in said
    assert "--range=LOW:HIGH" in said
