"""torch without what answering does not use: off until it is used, in an interpreter of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from collage_mpi.models.part_torch import LATER

pytest.importorskip("torch")

BEGIN = f"""
import sys
import numpy as np
from collage_mpi.models import load_predictor
from collage_mpi.models.info import Loading
from collage_mpi.models.tuning import PLAIN
from collage_mpi.models.part_torch import import_part, whole_torch
from collage_mpi.settings.files import with_shipped
import_part()
off = lambda: [type(sys.modules[name]).__name__ == "_Later" for name in {LATER}]
assert all(off()), off()
"""


def run(program: str) -> None:
    done = subprocess.run([sys.executable, "-c", BEGIN + program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_network_with_weights_answers_without_it() -> None:
    run(
        """
weights = with_shipped("shipped:fashion_single.safetensors")
predictor = load_predictor(weights, "single", Loading(tuning=PLAIN))
scores = predictor.predict(np.zeros((2, 28, 28, 1), np.uint8))
assert np.allclose(scores.sum(axis=-1), 1)
assert all(off()), "something has run it: torch uses it now, or has other parts"
"""
    )


@pytest.mark.parametrize(
    ("name", "is_off"),
    [("efficientnet-lite:lite0_16", True), ("darknet:tiny", True), ("torchvision:resnet18", False)],
)
def test_a_collage_network_of_a_known_trunk_is_built_as_a_rank_builds_it(
    name: str, is_off: bool
) -> None:
    """Shapes first, weights later; torchvision's trunk is asked for its last map."""
    if name.startswith("torchvision"):
        pytest.importorskip("torchvision")
    run(
        f"""
import torch
from collage_mpi.models.architecture import Backbone
from collage_mpi.models.collage_net import build_network
from collage_mpi.models.specs import HeadSpec
with torch.device("meta"):
    network = build_network(Backbone("{name}"), 3, 10, 3, HeadSpec("apart"))
assert all(off()) == {is_off}
network = network.to_empty(device="cpu").eval()
assert network(torch.zeros(1, 3, 288, 288)).shape == (1, 9, 10)
"""
    )


def test_any_other_part_of_torch_comes_after_it() -> None:
    run("import torch._dynamo\nassert not any(off())")


def test_it_is_there_once_it_is_used_or_asked_for() -> None:
    run("import torch\nassert callable(torch.export.export)\nassert not off()[1]")
    run("whole_torch()\nassert not any(off())\nwhole_torch()")
