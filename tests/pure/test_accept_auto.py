"""Accept auto: the threshold in a network's own file, and what it may cost."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest
from rows_by_name import cells_of

from collage_mpi import cli
from collage_mpi.errors import DataFault, UsageError
from collage_mpi.job.plan import make_plan
from collage_mpi.models.architecture import AcceptSpec, read_spec
from collage_mpi.models.weights import describe_weights, with_accept
from collage_mpi.settings.run_settings import RunSettings, with_accept_of
from collage_mpi.shards import ShardSet, write_shard
from collage_mpi.simulation.simulator import SimulatedJob
from collage_mpi.system.fields import with_shipped
from collage_mpi.training.threshold import (
    ACCURACY,
    MOST_POINTS,
    Aim,
    TwoStages,
    choose_threshold,
    find_savings,
    told_savings,
)

SPEC = AcceptSpec(0.93, "f" * 64, 5000, 0.05, 5000, 0.04, 0.6)
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
               {**vars(SPEC), "single": 1}, {**vars(SPEC), "agreeing": "x"},
               {**vars(SPEC), "errors": "2"},
               {**vars(SPEC), "more": 1}],
)  # fmt: skip
def test_a_record_that_is_none_is_refused(record):
    with pytest.raises(DataFault, match="accept record"):
        read_spec(AcceptSpec, "accept", record)


@pytest.mark.parametrize("name", ["agreeing", "errors"])
def test_a_record_of_an_earlier_version_says_less(name):
    """Not how many answers agreed, nor how many standard errors were added."""
    record = asdict(SPEC)
    del record[name]
    assert read_spec(AcceptSpec, "accept", record) == SPEC
    assert getattr(SPEC, name) is None


def test_own_code_is_not_told_to_measure_a_threshold_which_takes_weights_files_alone():
    own = RunSettings(scheme="cascade", single="own.py:Single", collage="own.py:Collage")
    with pytest.raises(UsageError) as told:
        with_accept_of(own, {})
    assert "weights threshold" not in str(told.value)
    assert "--agree 0.99" in str(told.value)


def test_the_file_says_with_how_many_standard_errors_the_score_was_chosen(networks, tmp_path):
    stages = stages_of(*network(20_000, wrong_below=0.5), 9)
    chosen = choose_threshold(stages, "s", Aim(errors=2.0))
    kept = with_accept(networks[1], chosen, tmp_path / "w.safetensors").accept
    assert kept is not None
    assert kept.errors == 2.0
    told = told_savings(find_savings(stages, 0.8, kept), "timed so")
    assert "Saving at the threshold in the file (chosen with 2 standard errors): " in told
    assert "(chosen with 1 standard error): " in told_savings(
        find_savings(stages, 0.8, replace(kept, errors=1.0)), "timed so"
    )


def stages_of(single: list, first: list, labels: np.ndarray, cells: int) -> TwoStages:
    return TwoStages(cells_of(single), cells_of(first), labels, cells)


def network(n: int, wrong_below: float) -> tuple[list, list, np.ndarray]:
    """A single network that is always right, and a collage network that errs when unsure."""
    scores = np.random.default_rng(0).random(n)
    labels = np.zeros(n, np.int64)
    collage = [(int(s < wrong_below), float(s)) for s in scores]
    return [(0, 1.0)] * n, collage, labels


def test_a_threshold_costs_at_most_what_is_allowed():
    single, collage, labels = network(20_000, wrong_below=0.5)
    found = choose_threshold(stages_of(single, collage, labels, 9), "s")
    assert 0.499 < found.confidence < 0.501
    assert 0 < found.chosen_points <= MOST_POINTS
    assert found.chosen_on + found.measured_on == 20_000
    assert abs(found.share - 0.5) < 0.02
    assert found.agreeing == pytest.approx(1 - 2 * found.measured_points / 100, abs=2e-3)
    collage = [None if score > 0.9 else (label, score) for label, score in collage]
    assert choose_threshold(stages_of(single, collage, labels, 9), "s").share == pytest.approx(
        0.4, abs=0.02
    )


def test_a_cell_that_has_the_score_of_the_threshold_counts():
    """All cells have one of two scores, and those of the upper one are right. The threshold has
    four digits, so it is rounded down."""
    labels = np.zeros(4000, np.int64)
    upper = 0.84957
    collage = [(0, upper) if i % 3 else (1, 0.25) for i in range(4000)]
    found = choose_threshold(stages_of([(0, 1.0)] * 4000, collage, labels, 4), "s")
    assert found.confidence == 0.8495
    assert found.share == pytest.approx(2 / 3, abs=1e-3)
    for score in (found.confidence, upper):
        assert np.float32(score) >= found.confidence


def test_the_half_that_measures_does_not_choose():
    single, collage, labels = network(4000, wrong_below=0.5)
    other = np.arange(4000) // 4 % 2 == 1
    worse = [(1, s) if o else (c, s) for (c, s), o in zip(collage, other, strict=True)]
    sure = choose_threshold(stages_of(single, collage, labels, 4), "s").confidence
    with pytest.raises(DataFault, match=f"the score {sure:g} loses .* that did not choose it"):
        choose_threshold(stages_of(single, worse, labels, 4), "s")


def test_a_threshold_can_be_that_of_most_accuracy():
    """Cells of a score from 0.7 are right, half of the single's answers are; below, neither."""
    single, collage, labels = network(20_000, wrong_below=0.7)
    single = [(i // 2 % 2, 1.0) for i in range(len(single))]  # pairs, so that both halves have both
    found = choose_threshold(stages_of(single, collage, labels, 9), "s", ACCURACY)
    assert 0.699 < found.confidence < 0.701
    assert found.share == pytest.approx(0.3, abs=0.02)
    assert found.chosen_points == pytest.approx(-15, abs=1)
    assert found.measured_points == pytest.approx(-15, abs=1)
    assert (
        choose_threshold(stages_of(single, collage, labels, 9), "s").confidence < 0.5
    )  # which costs nothing


ONE_ERROR, ACCURACY_ONE = Aim(errors=1.0), Aim(share=False, errors=1.0)


@pytest.mark.parametrize(
    ("aim", "lost", "confidence"),
    [
        (ONE_ERROR, [[0], [0], [1], [-1]], 0.88),  # the fourth comes too late
        (ONE_ERROR, [[0], [0], [0], [0]], 0.84),
        (ONE_ERROR, [[0], [0], [0], [1]], 0.86),
        (ONE_ERROR, [[0], [0, 0, 1]], 0.9),  # of one score all count, or none
        (ACCURACY_ONE, [[-1], [-1], [1], [0]], 0.88),
        (ACCURACY_ONE, [[-1], [-1], [-1], [1]], 0.86),
        (ACCURACY_ONE, [[-1] * 4, [1] * 3, [-1] * 4], 0.9),  # one more is gained by the third: luck
        (ACCURACY_ONE, [[0], [-1, -1, 1, -1, -1]], 0.88),
        (ACCURACY_ONE, [[-1] * 1000], 0.9),  # every cell
        (ACCURACY_ONE, [[-1] * 9, [1] * 2, [-1] * 3], 0.86),
        (ACCURACY, [[-1] * 9, [1] * 2, [-1] * 3], 0.9),  # by default two standard errors are added
        (ACCURACY_ONE, [[-1] * 50, [0] * 300, [1]], 0.88),  # as good as 0.9, and more cells count
    ],
)
def test_a_threshold_by_hand(aim, lost, confidence):
    """Of every other image the first ones have cells, by levels of score; else all are wrong."""
    labels = np.zeros(2000, np.int64)
    single, collage = [(1, 1.0)] * 2000, [None] * 2000
    cells = [(0.9 - level / 50, change) for level, each in enumerate(lost) for change in each]
    for i, (score, change) in enumerate(cells):
        single[2 * i] = (int(change < 0), 1.0)
        collage[2 * i] = (int(change > 0), score)
    found = choose_threshold(stages_of(single, collage, labels, 1), "s", aim)
    assert found.confidence == pytest.approx(confidence, abs=1e-3)


def test_more_standard_errors_choose_a_surer_score():
    """One answer of the surest level is wrong, two of the next: 0.1 + 1 e, 0.3 + 1.73 e points."""
    single, collage, labels = [(0, 1.0)] * 8000, [None] * 8000, np.zeros(8000, np.int64)
    for i, wrong, score in ((0, 1, 0.9), (1, 1, 0.8), (2, 1, 0.8), (3, 0, 0.7)):
        collage[2 * i] = (wrong, score)
    single[8:] = [(1, 1.0)] * 7992
    scores = [
        choose_threshold(stages_of(single, collage, labels, 1), "s", Aim(errors=errors)).confidence
        for errors in (0.0, 2.0)
    ]
    assert scores == pytest.approx([0.7, 0.9], abs=1e-3)


def test_a_threshold_counts_the_cells_that_chose_it():
    """Of a score of 1, 30 are wrong; of one that is written as 0.9999, 80 are right."""
    single, collage, labels = [(1, 1.0)] * 2000, [None] * 2000, np.zeros(2000, np.int64)
    for i in range(110):
        single[2 * i] = (int(i >= 30), 1.0)
        collage[2 * i] = (int(i < 30), 1.0 if i < 30 else 0.99992)
    found = choose_threshold(stages_of(single, collage, labels, 1), "s", ACCURACY)
    assert found.confidence == 0.9999
    assert found.chosen_points == -5


def test_a_threshold_that_loses_on_the_others_is_none():
    """Two cells of the half that does not choose are wrong: 0.2 points of 1,000; one is 0.1."""
    single, collage, labels = [(1, 1.0)] * 2000, [None] * 2000, np.zeros(2000, np.int64)
    for i in range(50):
        collage[2 * i] = (0, 0.9)
    single[1], collage[1] = (0, 1.0), (1, 0.9)
    with pytest.raises(
        DataFault, match="at most 0 may be lost: there is no threshold; try --errors 3, use"
    ):
        choose_threshold(stages_of(single, collage, labels, 1), "s", ACCURACY)
    assert choose_threshold(stages_of(single, collage, labels, 1), "s").measured_points == 0.1
    single[3], collage[3] = (0, 1.0), (1, 0.9)
    with pytest.raises(DataFault, match=r"0.20 points .* at most 0.1 may be .* try --aim acc"):
        choose_threshold(stages_of(single, collage, labels, 1), "s")


def test_a_threshold_of_most_accuracy_counts_scattered_luck_for_nothing():
    single, collage, labels = network(4000, wrong_below=0.0)  # as right as the single
    single[0], single[9] = (1, 1.0), (1, 1.0)  # better by one image in either half
    with pytest.raises(DataFault, match="gains accuracy"):
        choose_threshold(stages_of(single, collage, labels, 9), "s", ACCURACY)
    collage = [None] * 4000
    with pytest.raises(DataFault, match="gains accuracy"):
        choose_threshold(stages_of(single, collage, labels, 9), "s", ACCURACY)


@pytest.mark.parametrize("side", ["3", "3_balanced", "3_yolo", "4", "5"])
def test_the_shipped_networks_give_at_most_a_tenth_of_a_point_away(side, networks):
    """As measured on images that did not choose it."""
    name = f"shipped:fashion_collage_side{side}.safetensors"
    spec = describe_weights(with_shipped(name)).accept
    assert spec is not None
    assert spec.single == networks[0].fingerprint
    assert max(spec.chosen_points, spec.measured_points) <= MOST_POINTS


def test_no_threshold_without_images_or_worth():
    with pytest.raises(DataFault, match="1,999 labelled images"):
        choose_threshold(stages_of(*network(1999, 0.5), 9), "s")
    with pytest.raises(DataFault, match="no score"):
        choose_threshold(stages_of(*network(2000, 2.0), 9), "s")


def test_too_few_images_are_told_of_before_a_network_runs(tmp_path, monkeypatch, capsys):
    shard = tmp_path / "a.h5"
    images, labels = np.zeros((20, 28, 28, 1), np.uint8), np.zeros(20, np.int64)
    names = tuple(ShardSet.open([with_shipped("shipped:fashion_demo.h5")]).class_names or ())
    write_shard(shard, images, labels, class_names=names)
    monkeypatch.setattr("collage_mpi.commands.networks.load_predictor", None)  # it is not asked for
    words = ["weights", "threshold", "--shards", str(shard), "--out", str(tmp_path / "w")]
    words += ["--single", "shipped:fashion_single.safetensors"]
    words += ["--collage", "shipped:fashion_collage_side3.safetensors"]
    assert cli.main(words) == 4
    assert "20 labelled images: a threshold needs 2,000" in capsys.readouterr().err
    assert cli.main([*words, "--errors", "-0.5"]) == 2
    assert "--errors is -0.5; it needs at least 0" in capsys.readouterr().err
