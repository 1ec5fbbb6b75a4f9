"""Accept auto: the threshold in a network's own file, and what it may cost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from collage_mpi import cli
from collage_mpi.errors import DataFault, UsageError
from collage_mpi.job.plan import make_plan
from collage_mpi.models.architecture import AcceptSpec, read_spec
from collage_mpi.models.weights import describe_weights, read_tensors, save_weights, with_accept
from collage_mpi.settings.run_settings import RunSettings, with_accept_of
from collage_mpi.shards import ShardSet, write_shard
from collage_mpi.simulation.simulator import SimulatedJob, read_answers
from collage_mpi.system.fields import with_shipped
from collage_mpi.training.threshold import TwoStages, choose_threshold

SPEC = AcceptSpec(0.93, "f" * 64, 0.99, drawn=5000, share=0.6, changed=0.004)
ANSWERS = Path(__file__).parents[2] / "analysis" / "answers"
DEMO = with_shipped("shipped:fashion_demo.h5")
NAMED = RunSettings(single="a.safetensors", collage="b.safetensors")


@pytest.fixture(scope="module")
def networks():
    names = ("fashion_single", "fashion_collage_side3")
    return tuple(describe_weights(with_shipped(f"shipped:{n}.safetensors")) for n in names)


def resolved(settings, single, collage) -> float:
    return with_accept_of(settings, facts(single, collage)).confidence


def facts(single, collage, kind: str = "collage"):
    given = {"single": single, kind: collage}
    return {kind: info for kind, info in given.items() if info is not None}


def test_auto_is_the_threshold_that_was_measured_beside_this_single_network(networks):
    single, collage = networks
    mine = replace(collage, accept=replace(SPEC, single=single.fingerprint))
    assert resolved(NAMED, single, mine) == 0.93
    assert with_accept_of(NAMED, facts(single, mine)).accept_policy().name == "confident 0.93"
    for other in (replace(collage, accept=SPEC), replace(collage, accept=None), None):
        assert resolved(NAMED, single, other) == 1.0
    assert resolved(NAMED, None, mine) == 1.0


def test_with_confidence_1_no_score_is_high_enough():
    policy = replace(NAMED, confidence=1.0, deadline_ms=2.0).accept_policy()
    assert policy.name == "confident 1, else 2 ms"
    assert not policy.needs_scores
    assert policy.confidence > 1
    assert policy.deadline_ns == 2_000_000


def test_what_is_asked_for_stays_and_null_networks_have_nothing_to_lose(networks):
    single, collage = networks
    asked = replace(NAMED, confidence=0.9, deadline_ms=5.0)
    assert with_accept_of(asked, facts(single, collage)) is asked
    none = replace(NAMED, scheme="none")
    assert with_accept_of(none, facts(single, collage)) is none
    assert resolved(replace(NAMED, collage="null:ms=3"), single, None) == 0.0


def test_a_cascade_without_a_threshold_is_refused_by_the_commands_that_help(networks):
    single, collage = networks
    cascade = replace(NAMED, scheme="cascade")
    mine = replace(collage, accept=replace(SPEC, single=single.fingerprint))
    assert resolved(cascade, single, mine) == 0.93
    for other in (replace(collage, accept=SPEC), None):
        with pytest.raises(
            UsageError, match=r"weights threshold .*--agree .* or set it by hand with --confidence"
        ):
            with_accept_of(cascade, facts(single, other))
    assert resolved(replace(cascade, single="null"), None, collage) == 0.0
    by_hand = replace(cascade, confidence=0.7)
    assert with_accept_of(by_hand, facts(single, None)) is by_hand
    for given in ({"collage": "small.safetensors"}, {"first": ("small.safetensors",)}):
        settings = RunSettings(scheme="cascade", **given)
        with pytest.raises(UsageError, match=r"must know .* by --single, and --collage or --first"):
            _ = SimulatedJob(settings, 9, answers="a.npz").effective


def test_a_quick_network_has_a_threshold_in_its_file_too(networks):
    single, _ = networks
    quick = replace(NAMED, scheme="cascade", first=("small.safetensors",))
    mine = replace(single, fingerprint="q" * 64, accept=replace(SPEC, single=single.fingerprint))
    found = with_accept_of(quick, facts(single, mine, "stage1"))
    assert found.first == ("small.safetensors@top@0.93",), "by the score of which it was measured"
    for other in (replace(mine, accept=SPEC), replace(mine, accept=None), None):
        with pytest.raises(UsageError, match=r"--single a.safetensors --first small.safetensors`"):
            with_accept_of(quick, facts(single, other, "stage1"))


def test_each_stage_of_a_chain_has_a_threshold_of_its_own(networks):
    single, collage = networks
    chain = replace(NAMED, scheme="cascade", first=("collage", "q.safetensors@0.7"))
    mine = replace(collage, accept=replace(SPEC, single=single.fingerprint))
    found = with_accept_of(chain, facts(single, mine))
    assert [policy.name for policy in found.accept.values()] == ["confident 0.93", "confident 0.7"]
    with pytest.raises(UsageError, match=r"--first q.safetensors counts, .* q.safetensors@0.9"):
        with_accept_of(replace(chain, first=("collage@0.9", "q.safetensors")), facts(single, mine))
    by_hand = replace(chain, confidence=0.8)
    assert [policy.confidence for policy in by_hand.accept.values()] == [0.8, 0.7]


def test_a_job_and_its_simulation_take_the_threshold_of_the_quick_network(networks, tmp_path):
    single, _ = networks
    quick, names = tmp_path / "q.safetensors", ShardSet.open([DEMO]).class_names
    assert names is not None
    with_accept(single, replace(SPEC, single=single.fingerprint), quick)
    settings = RunSettings(
        scheme="cascade", shards=(DEMO,), out="o", single=str(single.path), first=(str(quick),)
    )
    plan = make_plan(settings, settings.launch_size, launched=False)
    plan.shards.close()
    for found in (plan.settings, SimulatedJob(settings, 9, answers="a.npz").effective):
        assert [policy.name for policy in found.accept.values()] == ["confident 0.93"]


def test_a_simulation_that_knows_no_scores_takes_every_answer():
    effective = SimulatedJob(RunSettings(), 9).effective
    assert (effective.confidence, effective.labels()["accept"]) == (0.0, "first")
    assert SimulatedJob(RunSettings(confidence=0.5), 9).effective.confidence == 0.5


def test_a_threshold_is_kept_in_the_weights_and_nothing_else_changes(networks, tmp_path):
    _, collage = networks
    made = with_accept(collage, SPEC, tmp_path / "w.safetensors")
    assert made.accept == SPEC
    assert replace(made, accept=None, fingerprint="", path=None, metadata={}) == replace(
        collage, accept=None, fingerprint="", path=None, metadata={}
    )
    assert {**made.metadata, "accept": 0} == {**collage.metadata, "accept": 0}


@pytest.mark.parametrize(
    "record", [3, {}, {**vars(SPEC), "confidence": 2}, {**vars(SPEC), "share": "x"},
               {**vars(SPEC), "single": 1}, {**vars(SPEC), "agree": 1.0},
               {**vars(SPEC), "share": 0.0}, {**vars(SPEC), "more": 1}],
)  # fmt: skip
def test_a_record_that_is_none_is_refused(record):
    with pytest.raises(DataFault, match="accept record"):
        read_spec(AcceptSpec, "accept", record)


def test_a_threshold_that_was_chosen_by_accuracy_is_not_used_and_told_of(
    networks, tmp_path, caplog
):
    single, collage = networks
    old = {"confidence": 0.85, "single": single.fingerprint, "chosen_on": 5004, "share": 0.9,
           "chosen_points": 0.02, "measured_on": 4996, "measured_points": 0.04}  # fmt: skip
    record = {k: v for k, v in collage.metadata.items() if k not in ("format", "version")}
    path = tmp_path / "old.safetensors"
    info = save_weights(path, read_tensors(collage), {**record, "accept": old})
    assert (info.accept, info.outdated, collage.outdated) == (None, True, False)
    assert resolved(NAMED, single, info) == 1.0
    (told,) = caplog.messages
    assert f"{path} was chosen by accuracy" in told
    assert "Choose a new one with `collage-mpi weights threshold`" in told
    assert not with_accept(info, SPEC, path).outdated


def test_own_code_is_not_told_to_measure_a_threshold_which_takes_weights_files_alone():
    own = RunSettings(scheme="cascade", single="own.py:Single", collage="own.py:Collage")
    with pytest.raises(UsageError) as told:
        with_accept_of(own, {})
    assert "weights threshold" not in str(told.value)
    assert "--agree 0.99" in str(told.value)


@pytest.mark.parametrize("name", ["side3", "side3_balanced", "side3_yolo", "side4", "side5"])
def test_the_shipped_networks_have_the_thresholds_that_their_answers_prove(name, networks):
    spec = describe_weights(with_shipped(f"shipped:fashion_collage_{name}.safetensors")).accept
    known = read_answers(ANSWERS / f"fashion_collage_{name}.npz", None)
    stages = TwoStages(known.known["single"], known.known["collage"], known.labels, known.side**2)
    assert spec == choose_threshold(stages, networks[0].fingerprint, 0.99)
    assert spec.drawn == 10_000
    assert 0 < spec.changed < 0.01


def test_too_few_images_are_told_of_before_a_network_runs(tmp_path, monkeypatch, capsys):
    """Copies of an image are one image."""
    shard = tmp_path / "a.h5"
    images = np.zeros((720, 28, 28, 1), np.uint8)
    images[:650] += np.arange(650, dtype=np.int64).astype(np.uint8)[:, None, None, None]
    images[256:650, 0, 0] = 255  # other ones than those with the same grey
    names = tuple(ShardSet.open([with_shipped("shipped:fashion_demo.h5")]).class_names or ())
    write_shard(shard, images, None, class_names=names)
    monkeypatch.setattr("collage_mpi.commands.networks.load_predictor", None)  # it is not asked for
    words = ["weights", "threshold", "--shards", str(shard), "--out", str(tmp_path / "w")]
    words += ["--single", "shipped:fashion_single.safetensors"]
    words += ["--collage", "shipped:fashion_collage_side3.safetensors"]
    assert cli.main(words) == 4
    told = capsys.readouterr()
    different = len(np.unique(images.reshape(720, -1), axis=0))
    assert f"{720 - different} images left out: copies of others" in told.out + told.err
    assert f"{different} different images: a threshold with --agree 0.99 needs 700." in told.err
    assert cli.main([*words, "--agree", "1"]) == 2
    assert "--agree is 1" in capsys.readouterr().err
