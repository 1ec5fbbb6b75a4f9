"""The sum of a network's weights, by which a rank notices that its memory has changed."""

from __future__ import annotations

import pytest
import torch

from collage_mpi.models import load_predictor
from collage_mpi.models.info import Loading, Tuning
from collage_mpi.system.fields import with_shipped


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_one_bit_of_one_weight_changes_the_sum(precision: str) -> None:
    tuning = Tuning(precision=precision, runtime="torch")
    network = load_predictor(
        with_shipped("shipped:fashion_single.safetensors"), "single", Loading(tuning=tuning)
    )
    before = network.weights_sum()
    assert network.weights_sum() == before
    weight = max(network.network.parameters(), key=torch.numel)
    bits = weight.data.view(torch.int32 if precision == "float32" else torch.int16)
    at = tuple(0 for _ in bits.shape)
    bits[at] ^= 1 << 3
    assert network.weights_sum() != before
    bits[at] ^= 1 << 3
    assert network.weights_sum() == before
    network.change_over(network.torch, "openvino float32")
    assert network.weights_sum() is None
