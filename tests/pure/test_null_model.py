"""The null network reads its answer from the top-left pixel of each cell."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from collage_mpi.encoding.collage import Encoder, decode
from collage_mpi.encoding.grid import Grid
from collage_mpi.errors import UsageError
from collage_mpi.models import describe, load_predictor
from collage_mpi.models.info import Geometry, Loading
from collage_mpi.models.null import NullPredictor


def test_single_answers_by_pixel() -> None:
    network = NullPredictor("single", Geometry((4, 6, 3), 3, 28, 10))
    batch = np.zeros((3, 4, 6, 3), dtype=np.uint8)
    batch[:, 0, 0, 0] = [7, 13, 250]
    scores = network.predict(batch)
    assert scores.shape == (3, 1, 10)
    assert scores.dtype == np.float32
    assert scores[:, 0].argmax(axis=1).tolist() == [7, 3, 0]
    assert (scores.sum(axis=2) == 1).all()


def test_collage_agrees_with_single_on_each_cell() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (9, 5, 5, 1), dtype=np.uint8)
    collage = Encoder(Grid(3, 5), (5, 5, 1)).paste(list(images))
    many = NullPredictor("collage", Geometry((5, 5, 1), 3, 5, 7)).predict(collage[None])
    one = NullPredictor("single", Geometry((5, 5, 1), 3, 5, 7)).predict(images)
    assert decode(many[0]) == decode(one[:, 0])


def test_a_network_that_errs_does_so_the_less_the_surer_it_is() -> None:
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (9000, 4, 4, 1), dtype=np.uint8)
    first = load_predictor("null:height=4,width=4,wrong=30,side=3,cell_px=4", "collage")
    pasted = [
        Encoder(Grid(3, 4), (4, 4, 1)).paste(list(nine)) for nine in images.reshape(-1, 9, 4, 4, 1)
    ]
    scores = first.predict(np.stack(pasted)).reshape(9000, 10)
    single = load_predictor("null:height=4,width=4,wrong=30", "single").predict(images)[:, 0]
    assert np.array_equal(scores, single)
    assert np.allclose(scores.sum(1), 1)
    sure, wrong = scores.max(1), scores.argmax(1) != images[:, 0, 0, 0] % 10
    assert (scores[wrong].argmax(1) == (images[wrong, 0, 0, 0] % 10 + 1) % 10).all()
    assert np.allclose(sure, 0.6 + 0.4 * images[:, 0, 1, 0] / 255, atol=1e-6)
    assert [
        round(wrong[(sure >= low) & (sure < low + 0.1)].mean(), 1) for low in (0.6, 0.7, 0.8, 0.9)
    ] == [0.5, 0.4, 0.2, 0.1]


def test_more_classes_than_grey_levels() -> None:
    network = NullPredictor("single", Geometry((1, 1, 1), 2, 1, 1000))
    assert network.predict(np.full((1, 1, 1, 1), 255, np.uint8)).argmax() == 255


def test_specs() -> None:
    assert describe("null", "single") is None
    network = load_predictor("null:side=2,cell_px=8,classes=4,channels=3", "collage")
    assert (network.cells, network.classes, network.device) == (4, 4, "cpu")
    assert network.fingerprint != load_predictor("null", "collage").fingerprint
    assert len(network.fingerprint) == 64


def test_what_a_spec_does_not_name_is_as_in_the_job() -> None:
    how = Loading(geometry=Geometry((8, 8, 3), 2, 8, 5))
    network = load_predictor("null:wrong=30", "collage", how)
    assert network.predict(np.zeros((2, 16, 16, 3), np.uint8)).shape == (2, 4, 5)
    assert load_predictor("null:classes=7", "single", how).classes == 7
    assert load_predictor("null:height=4,width=4", "single", how).shape == (4, 4, 1)


@pytest.mark.parametrize(
    "spec", ["null:sides=2", "null:side=x", "null:side=0", "null:side", "null:wrong=51"]
)
def test_malformed_specs_are_refused(spec: str) -> None:
    with pytest.raises(UsageError, match="null"):
        load_predictor(spec, "collage")


def test_unknown_kind_is_refused() -> None:
    with pytest.raises(UsageError, match="single, collage"):
        load_predictor("null", "double")


def test_describing_needs_no_torch() -> None:
    code = (
        "import sys, collage_mpi.models as m; "
        "import collage_mpi.encoding.collage, "
        "collage_mpi.commands.networks, collage_mpi.commands.networks, collage_mpi.training; "
        "m.load_predictor('null', 'single'); "
        "bad = {'torch', 'h5py', 'mpi4py', 'safetensors', 'rich', 'PIL'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60, check=False)
    assert done.returncode == 0


def test_where_nobody_says_how_many_classes_there_are_it_has_ten():
    assert NullPredictor("single", Geometry((4, 6, 3), 3, 28, None)).classes == 10
