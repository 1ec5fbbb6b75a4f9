"""Networks with weights: built, stored, loaded, asked. Tiny nets, one thread."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.models import load_predictor
from collage_mpi.models.architecture import Architecture, Stage
from collage_mpi.models.info import Loading
from collage_mpi.models.weights import METADATA_KEY, save_weights

torch = pytest.importorskip("torch")

TINY = Architecture(8, 3, 1, (Stage(8, 1), Stage(16, 1, 2)))


def make_weights(path: Path, side: int | None = None, **changes: Any) -> Any:
    """Random weights with lively batch norms; returns the network they came from."""
    from collage_mpi.models.collage_net import build_network

    torch.manual_seed(0)
    architecture = changes.pop("architecture", TINY)
    network = build_network(architecture, 1, 4, side)
    for name, value in network.state_dict().items():
        if name.endswith(("running_mean", "norm.bias")):
            value.uniform_(-0.5, 0.5)
        elif name.endswith(("running_var", "norm.weight")):
            value.uniform_(0.5, 1.5)
        elif value.is_floating_point() and value.ndim > 1:
            value.copy_(value.half().float())  # as stored
    tensors = {k: v.numpy() for k, v in network.state_dict().items() if v.is_floating_point()}
    record = {
        "kind": "single" if side is None else "collage",
        "architecture": asdict(architecture),
        "side": side,
        "cell_px": None if side is None else 12,
        "height": 12,
        "width": 12,
        "channels": 1,
        "class_names": list("abcd"),
        "normalisation": {"mean": [0.25], "std": [0.5]},
        "temperature": 2.0,
        "training": {},
        **changes,
    }
    save_weights(path, tensors, record)
    return network.eval()


def test_an_embedding_is_what_the_last_layer_is_given(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    network = make_weights(path)
    batch = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 1), np.uint8)
    predictor = load_predictor(str(path), "single", Loading(save="embeddings"))
    plain = load_predictor(str(path), "single")
    assert [each.shape for each in predictor.columns] == [(16,)]
    assert plain.columns == ()
    scores, given = predictor.answer(batch)
    embeddings = given["embedding"]
    pixels = (torch.from_numpy(batch).permute(0, 3, 1, 2) / 255 - 0.25) / 0.5
    with torch.no_grad():
        pooled = network.trunk(pixels.float()).mean(dim=(2, 3))
    np.testing.assert_allclose(embeddings, pooled.numpy(), atol=2e-2)
    np.testing.assert_allclose(scores, plain.predict(batch), atol=1e-6)
    np.testing.assert_allclose(predictor.predict(batch), scores, atol=1e-6)
    with pytest.raises(UsageError, match="gives no embeddings"):
        load_predictor("null", "single", Loading(save="embeddings"))
    make_weights(tmp_path / "c.safetensors", 2)
    with pytest.raises(UsageError, match="gives no embeddings"):
        load_predictor(str(tmp_path / "c.safetensors"), "collage", Loading(save="embeddings"))


@pytest.mark.parametrize("side", [None, 2, 3, 5])
@pytest.mark.parametrize("norm", ["batch", "group"])
def test_prediction_is_the_networks_softmax(tmp_path: Path, side: int | None, norm: str) -> None:
    path = tmp_path / "w.safetensors"
    architecture = Architecture(8, 3, 1, TINY.stages, norm)
    network = make_weights(path, side, architecture=architecture)
    predictor = load_predictor(str(path), "single" if side is None else "collage")
    px = 12 if side is None else 12 * side
    batch = np.random.default_rng(0).integers(0, 256, (3, px, px, 1), dtype=np.uint8)
    with torch.inference_mode():
        pixels = (torch.from_numpy(batch).permute(0, 3, 1, 2).float() / 255 - 0.25) / 0.5
        expected = torch.softmax(network(pixels) / 2.0, dim=2).numpy()
    scores = predictor.predict(batch)
    assert scores.shape == (3, predictor.cells, 4)
    assert scores.dtype == np.float32
    assert predictor.classes == 4
    assert np.allclose(scores, expected, atol=1e-4)
    assert np.allclose(scores.sum(axis=2), 1, atol=1e-5)
    batch.flags.writeable = False
    assert np.array_equal(predictor.predict(batch), scores)


def test_cells_are_numbered_as_the_grid(tmp_path: Path) -> None:
    """A change in one cell changes that cell's scores most."""
    from collage_mpi.encoding.grid import Grid

    make_weights(tmp_path / "w", 3)
    predictor = load_predictor(str(tmp_path / "w"), "collage")
    blank = np.zeros((1, 36, 36, 1), dtype=np.uint8)
    base = predictor.predict(blank)[0]
    for cell in range(9):
        lit = blank.copy()
        lit[0][Grid(3, 12).box(cell)] = 255
        change = np.abs(predictor.predict(lit)[0] - base).sum(axis=1)
        assert change.argmax() == cell


def test_wrong_batches_are_refused(tmp_path: Path) -> None:
    make_weights(tmp_path / "w")
    predictor = load_predictor(str(tmp_path / "w"), "single")
    for batch in (
        np.zeros((1, 12, 13, 1), np.uint8),
        np.zeros((12, 12, 1), np.uint8),
        np.zeros((1, 12, 12, 1), np.float32),
    ):
        with pytest.raises(DataFault, match=r"12, 12, 1\) uint8"):
            predictor.predict(batch)


def test_tensors_of_another_architecture_are_refused(tmp_path: Path) -> None:
    other = asdict(Architecture(8, 3, 1, (Stage(8, 1), Stage(24, 1, 2))))
    path = tmp_path / "w"
    make_weights(path)
    payload = path.read_bytes()
    length = int.from_bytes(payload[:8], "little")
    header = json.loads(payload[8 : 8 + length])
    record = json.loads(header["__metadata__"][METADATA_KEY])
    header["__metadata__"][METADATA_KEY] = json.dumps({**record, "architecture": other})
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + payload[8 + length :])
    with pytest.raises(DataFault, match="architecture"):
        load_predictor(str(path), "single")


def test_a_device_that_is_not_there_is_told(tmp_path: Path) -> None:
    make_weights(tmp_path / "w")
    for device in ("cuda:99", "nonsense"):
        with pytest.raises(EnvironmentFault, match="--device"):
            load_predictor(str(tmp_path / "w"), "single", Loading(device=device))
