"""What `--first` says of the stages of a cascade: their words, and what a rank makes of them."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from collage_mpi.encoding.collage import best_five, decode
from collage_mpi.errors import DataFault, UsageError
from collage_mpi.job.handshake import welcomes
from collage_mpi.job.networks import NetworkLoader, Networks, result_of
from collage_mpi.job.plan import check_top_k, make_plan
from collage_mpi.job.session import build_encoder
from collage_mpi.mpi.tasks import WireTask
from collage_mpi.settings.flags import add_setting_flags
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.settings.stages import read_stage, read_stages
from collage_mpi.shards import write_shard

OWN = '''
"""A network that says of each picture how large it is."""
import numpy as np


class Sizes:
    def predict(self, batch):
        scores = np.full((len(batch), 1, 10), 0.02, np.float32)
        scores[:, :, batch.shape[1] % 10] = 0.82
        return scores


def network(**told):
    return Sizes()

'''


def test_a_stage_has_its_suffixes_in_any_order_and_is_told_as_it_was_given():
    text = "timm:lite0@160px@bfloat16@openvino@top@0.9"
    found = read_stage("timm:lite0@0.9@top@160px@openvino@bfloat16", 0)
    assert found == read_stage(text, 0)
    assert found.text == text
    assert (found.kind, found.network, found.px) == ("stage1", "timm:lite0", 160)
    assert (found.precision, found.runtime, found.scored) == ("bfloat16", "openvino", "top")
    revised = read_stage("timm:hf-hub:me/net@v1.0", 1)
    assert (revised.kind, revised.network) == ("stage2", "timm:hf-hub:me/net@v1.0")
    assert (revised.threshold, revised.scored) == (None, "margin")


def test_collages_come_first_and_are_the_only_stage_where_none_is_named():
    (only,) = read_stages(())
    assert (only.kind, only.network, only.scored, only.text) == ("collage", "", "top", "collage")
    found = read_stages(("collage:c.safetensors@0.8", "q"))
    assert [(stage.kind, stage.text) for stage in found] == [
        ("collage", "collage:c.safetensors@0.8"),
        ("stage2", "q"),
    ]
    settings = RunSettings(scheme="cascade", first=("collage:c.safetensors", "q@bfloat16"))
    assert [settings.network(kind) for kind in settings.accept] == ["c.safetensors", "q"]
    assert [settings.tuning(kind).precision for kind in settings.accept] == ["auto", "bfloat16"]


def test_a_word_without_a_network_means_the_exact_one():
    settings = RunSettings(scheme="cascade", single="timm:x", first=("@bfloat16", "@int8"))
    assert [settings.network(kind) for kind in settings.accept] == ["timm:x", "timm:x"]
    assert [settings.tuning(kind).format for kind in settings.accept] == ["bfloat16", "int8"]
    assert [stage.text for stage in settings.stages] == ["timm:x@bfloat16", "timm:x@int8"]
    with pytest.raises(UsageError, match="it needs a network"):
        RunSettings(scheme="cascade", first=("@bfloat16",))


def test_the_flag_may_be_given_once_for_each_stage():
    parser = argparse.ArgumentParser()
    add_setting_flags(parser)
    for words in (["--first", "a", "b"], ["--first", "a", "--first", "b"]):
        assert parser.parse_args(words).first == ["a", "b"]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"first": ("q@bf16",)}, r"unknown is @bf16; known are an input size such as @160px"),
        ({"first": ("q@0.9@0.8",)}, "threshold is given twice"),
        ({"first": ("@0.9",)}, "it needs a network"),
        ({"first": ("q", "collage")}, "collages come first"),
        ({"first": ("collage@96px",)}, "the cells' size is --cell-px, not @96px"),
        ({"first": ("a", "b", "c", "d")}, "first has 4 networks; at most 3"),
        ({"first": ("q",), "scheme": "none"}, "only scheme cascade asks networks"),
        ({"first": ("s@0.9",), "single": "s"}, "the single network itself: .* such as s@bfloat16"),
        ({"first": ("collage:a",), "collage": "b"}, "first names the collage network a, and"),
        (
            {"first": ("a@0.9",), "agree": 0.99},
            "a@0.9 has a threshold: --agree chooses",
        ),
    ],
)
def test_stages_that_cannot_be_are_refused_with_what_to_type(given, said):
    with pytest.raises(UsageError, match=said):
        RunSettings(**{"scheme": "cascade", **given})


def test_the_margin_is_between_the_two_largest_probabilities():
    scores = np.array([[0.5, 0.1, 0.4], [1.0, 0.0, 0.0], [0.0, 0.0, 0.0]], np.float32)
    top, alone, absent = decode(scores, margin=True)
    assert top == (0, pytest.approx(0.1))
    assert alone == (0, 1.0)
    assert absent is None
    assert decode(scores[:, :1], margin=True)[0] == (0, 0.5)


def test_the_five_best_classes_are_a_set():
    scores = np.array([[6, 5, 4, 3, 2, 1, 0], [2, 3, 4, 5, 6, 1, 0], [6, 5, 4, 3, 1, 2, 0]]) / 21
    first, ordered, other = best_five(scores.astype(np.float32)).tolist()
    assert first == ordered != other
    ties = np.zeros((2, 9), np.float32)
    ties[:, 3], ties[1, 7] = 1, 1e-9
    alone, two = best_five(ties).tolist()  # 3 and 0, 1, 2, 4; then 3, 7, 0, 1, 2
    best = np.zeros((1, 9), np.float32)
    best[0, [0, 1, 2, 3, 4]] = 0.2
    assert [alone] == best_five(best).tolist() != [two]
    drawn = np.random.default_rng(0).random((4_000, 1_000)).astype(np.float32)
    assert len(np.unique(best_five(drawn))) > 3_800  # of 65,536, by chance


@pytest.mark.parametrize(("agree_on", "alike"), [("class", True), ("top5", False)])
def test_a_rank_tells_of_the_five_best_classes_where_these_are_promised(agree_on, alike):
    scores = np.array([[[6, 5, 4, 3, 2, 1, 0]], [[6, 5, 4, 3, 1, 2, 0]]], np.float32) / 21
    task = WireTask(1, "single", ((0, 0), (1, 1)))
    one, other = result_of(task, scores, "top", agree_on).cells
    assert one[:2] == other[:2] == (0, pytest.approx(6 / 21))
    assert (one.also == other.also) == alike
    assert alike == (one.also == 0)


def test_five_of_five_classes_are_always_the_best():
    asked = RunSettings(scheme="cascade", agree=0.99, top_k=5)
    assert asked.agree_on == "top5"
    assert RunSettings(scheme="cascade", top_k=5).agree_on == "class"
    check_top_k(asked, 6)
    with pytest.raises(UsageError, match="only 5 classes: all of them"):
        check_top_k(asked, 5)


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Plans a cascade over pictures of 56 px; the exact network is the user's own."""
    monkeypatch.chdir(tmp_path)
    Path("own.py").write_text(OWN)
    pixels = np.zeros((12, 56, 56, 1), np.uint8)
    write_shard(tmp_path / "a.h5", pixels, np.arange(12) % 10, class_names=list("abcdefghij"))

    def plan(*first: str, **more):
        asked = {"single": "own.py:network", "shards": ("a.h5",), "out": "out", **more}
        settings = RunSettings(scheme="cascade", side=2, first=first, **asked)
        return make_plan(settings, 3)

    return plan


def test_a_rank_shrinks_the_pictures_of_a_stage_and_scores_it_as_told(planned):
    plan = planned("own.py:network@4px@0.5", "null@top", confidence=0.9)
    plan.shards.close()
    welcome = welcomes(plan, build_encoder(plan))[1]
    assert welcome.agree_on == "class"
    networks = Networks(welcome, NetworkLoader(1, 3), lambda: 0, lambda: 0)
    pixels, items = np.zeros((2, 56, 56, 1), np.uint8), ((0, 0), (1, 1))
    found = {}
    for kind in ("single", "stage1"):
        (result,) = networks.begin([WireTask(1, kind, items)], [pixels]).finish()
        found[kind] = [(cell.label, round(cell.score, 3)) for cell in result.cells]
    assert found == {"single": [(6, 0.82)] * 2, "stage1": [(4, 0.8)] * 2}


def test_a_stage_with_more_pixels_or_other_classes_is_refused(planned):
    with pytest.raises(UsageError, match="may get square pictures with fewer pixels"):
        planned("own.py:network@57px@0.5")
    fashion = "shipped:fashion_single.safetensors@0.5"
    with pytest.raises(UsageError, match=r"needs pictures of 28 px.* say --first .*@28px"):
        planned(fashion)
    with pytest.raises(DataFault, match=r"class 0 is 'a' in the shards and .* in single network"):
        planned(f"{fashion}@28px")
