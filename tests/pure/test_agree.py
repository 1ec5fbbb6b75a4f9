"""--agree: the calibration's images, the threshold they choose, and when the audits raise it."""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from collage_mpi.core.events import Judged
from collage_mpi.errors import UsageError
from collage_mpi.job import run as runs
from collage_mpi.job.calibration import (
    AgreementWatch,
    Asked,
    Judge,
    Pair,
    PairBook,
    calibration_first,
    pairs_of,
)
from collage_mpi.job.handshake import ServiceCosts
from collage_mpi.job.messages import SetThreshold
from collage_mpi.models.architecture import AcceptSpec
from collage_mpi.results.manifest import FORMAT, VERSION, check_manifest
from collage_mpi.rows import AUDIT_CODE, IMAGES, SOURCE_CODE
from collage_mpi.settings.run_settings import RunSettings, with_accept_of, with_every_answer
from collage_mpi.shards.order import Order, Permutation, Shuffle
from collage_mpi.simulation.simulator import SimulatedJob


def at() -> tuple[int, int]:
    """The session, and when in it."""
    return 2, 30


def cascade(**more) -> RunSettings:
    return RunSettings(scheme="cascade", **more)


ASKED = Asked(cascade(agree=0.98), images=10_000, ratio=0.6)  # of them 450 choose the threshold


# ---- settings ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"agree": 0.98, "scheme": "collage"}, "--scheme cascade"),
        ({"agree": 0.98, "scheme": "cascade", "confidence": 0.9}, "leave out --confidence"),
        ({"agree": 0.98, "scheme": "cascade", "deadline_ms": 9.0}, "whatever its"),
        ({"agree": 1.0, "scheme": "cascade"}, "between 0 and 1"),
        ({"agree": 0.0, "scheme": "cascade"}, "between 0 and 1"),
    ],
)
def test_what_does_not_go_together_is_refused(given, named) -> None:
    with pytest.raises(UsageError, match=named):
        RunSettings(**given)


def test_a_simulation_is_told_a_score_and_a_forecast_takes_every_answer() -> None:
    with pytest.raises(UsageError, match="the score that a run told"):
        assert SimulatedJob(cascade(agree=0.98), 90).effective
    assert with_every_answer(cascade(agree=0.98)).agree is None


def test_auto_stays_where_the_run_chooses() -> None:
    asked = cascade(agree=0.98, single="a.safetensors", collage="b.safetensors")
    assert with_accept_of(asked, None, None) is asked
    assert asked.accept_policy().needs_scores


def test_as_many_images_choose_as_show_the_bound_with_some_to_spare() -> None:
    sizes = {agree: cascade(agree=agree).calibration_size for agree in (0.98, 0.99, 0.995)}
    assert sizes == {0.98: 450, 0.99: 900, 0.995: 1800}
    assert cascade(agree=0.98, side=4).calibration_size == 464  # 29 whole runs of 16
    assert cascade(agree=0.98).calibration_images(451) == 450
    assert cascade(agree=0.98).calibration_images(450) == 0  # all that there is
    assert cascade().calibration_images(10_000) == 0
    assert cascade(agree=0.98).labels()["accept"] == "agree 0.98"


# ---- the order --------------------------------------------------------------


def test_the_calibration_is_whole_runs_of_the_order_from_all_over_it() -> None:
    order, every = Order(Shuffle(10_000, 1)), range(10_000)
    moved = calibration_first(order, 450, 9, seed=0)
    found = moved.indices(every)
    assert sorted(found) == list(every)
    assert moved.positions(found).tolist() == list(every)
    place = order.positions(np.arange(10_000))
    runs = place[found[:450]].reshape(50, 9)
    assert (np.diff(runs, axis=1) == 1).all()
    assert (runs[:, 0] % 9 == 0).all()
    assert (np.diff(runs[:, 0]) > 0).all()  # files are read from front to back
    assert runs.min() < 1_000
    assert runs.max() > 9_000
    assert (np.diff(place[found[450:]]) > 0).all()  # the others as they were
    assert (found == calibration_first(order, 450, 9, seed=0).indices(every)).all()
    assert (found != calibration_first(order, 450, 9, seed=1).indices(every)).any()
    assert (calibration_first(order, 0, 9, seed=0).indices(every) == order.indices(every)).all()


# ---- pairs ------------------------------------------------------------------


def test_the_book_knows_its_images_and_says_each_pair_once() -> None:
    said: list[Pair] = []
    book = PairBook([40, 20])
    book.tell(said.extend)
    assert book.calibrates(7, np.array([20, 30])).tolist() == [True, False]
    book.judged(Judged(7, 0.5, False, False))
    book.judged(Judged(8, None, False, False))
    book.judged(Judged(9, 0.5, True, False))
    book.look()
    book.look()
    assert said == [Pair(1, 0.5, differs=False), Pair(None, 0.5, differs=True)]


def test_images_of_a_shard_that_is_lost_are_not_waited_for() -> None:
    said: list[Pair] = []
    shards = SimpleNamespace(lost={}, locate=lambda index: divmod(index, 100))
    book = PairBook([40, 140, 150, 240, 260], shards)
    book.tell(said.extend)
    book.expect([(0, 3), (7, 8)])
    assert book.calibrates(1, np.array([150])).all()
    book.look()
    assert said == []
    shards.lost[1] = "truncated"
    book.look()
    book.look()
    assert said == [Pair(1, None, differs=False)]  # 150 had come in by then
    shards.lost[2] = "gone"
    book.expect([(3, 4)])  # it is lost already; 260 another team may read
    book.look()
    assert said[1:] == [Pair(3, None, differs=False)]
    book.expect([(4, 5)])  # now this one is a lease of this team
    book.look()
    assert said[2:] == [Pair(4, None, differs=False)]


def test_rows_give_the_same_pairs() -> None:
    rows = np.zeros(6, IMAGES.dtype)
    sources = ("single", "collage", "retry", "error", "backup", "collage")
    rows["source"] = [SOURCE_CODE[name] for name in sources]
    rows["audited"] = [AUDIT_CODE[name] for name in ("done", "done", "", "", "done", "failed")]
    rows["score"], rows["other_score"] = 0.75, 0.25
    rows["other"] = [1, 0, 0, 0, 1, 0]
    assert pairs_of(rows, np.array([3, 1, 0, 2, 5, 4])) == [
        Pair(3, 0.25, differs=True),
        Pair(1, 0.75, differs=False),
        Pair(0, None, differs=False),
        Pair(2, None, differs=False),
        Pair(5, 0.75, differs=True),
        Pair(4, None, differs=False),
    ]


def test_a_session_reads_what_an_earlier_one_wrote_of_the_calibration(monkeypatch) -> None:
    """Rows are known by shard and row; places are those in the order."""
    order = Order.of_list([5, 2, 6, 0, 1, 3, 4])  # of shards of four and three images
    plan = SimpleNamespace(
        order=order,
        calibration=3,
        settings=SimpleNamespace(out="out"),
        indices_of=lambda rows: np.array([0, 4])[rows["shard"]] + rows["row"].astype(np.int64),
    )
    rows = np.zeros(4, IMAGES.dtype)
    rows["shard"], rows["row"] = [0, 1, 0, 1], [0, 1, 2, 0]  # of indices 0, 5, 2 and 4
    rows["audited"], rows["other_score"] = AUDIT_CODE["done"], [0.5, 0.625, 0.25, 0.75]
    run = SimpleNamespace(chunks=lambda table: [rows[:2], rows[2:]])
    monkeypatch.setattr(runs, "open_run", lambda out: run)
    found = runs.pairs_before(plan)
    assert found == [Pair(0, 0.625, differs=False), Pair(1, 0.25, differs=False)]


# ---- the threshold is chosen ------------------------------------------------


def calibration(differing: Sequence[int] = (), images: int = 450) -> list[Pair]:
    """Scores fall with the place; those of the places in `differing` differ."""
    return [Pair(at, (1_000 - at) / 1_000, at in differing) for at in range(images)]


def test_nothing_is_decided_before_the_last_image_is_in() -> None:
    judge = Judge(ASKED, at)
    pairs = calibration()
    judge.take([*pairs[:-1], pairs[0]])  # one again: a lost team's images are done again
    assert judge.verdict() is None
    judge.take(pairs[-1:])
    why = judge.verdict() or ""
    assert "score of 0.551 on" in why
    assert "100 % of the cells count, and 0 of these differ" in why
    assert judge.entries() == [{"confidence": 0.551, "session": 2, "since_ns": 30}]


def test_of_an_image_that_comes_again_both_networks_answer_counts_and_it_is_no_audit() -> None:
    judge = Judge(ASKED, at)
    judge.take([Pair(0, None, differs=False), *calibration()[1:]])
    assert judge.verdict() is not None
    again = Judge(ASKED, at)
    again.take([Pair(0, None, differs=False), *calibration(), Pair(5, None, differs=False)])
    why = again.verdict()
    assert why is not None
    assert "450 images went through both" in why
    again.take(calibration())  # a lost team's, done again
    assert again.audited == 0


def test_from_149_pairs_on_there_is_a_bound_and_from_more_than_it_costs_on_it_pays() -> None:
    def chosen(pairs: int, ratio: float) -> float | None:
        judge = Judge(replace(ASKED, ratio=ratio), at)
        judge.take([Pair(at, 0.75 if at < pairs else None, differs=False) for at in range(450)])
        assert judge.verdict() is not None
        return judge.held[-1].confidence

    assert [chosen(n, 0.6) for n in (148, 149)] == [None, 0.75]
    assert [chosen(450, ratio) for ratio in (8.9, 9.0)] == [0.75, None]


def test_an_audited_cell_at_the_threshold_counts_and_an_image_without_one_does_not() -> None:
    judge = judged()
    judge.take([Pair(None, 0.5, differs=True), Pair(None, None, differs=False)])
    judge.take([Pair(None, math.nan, differs=True)])  # it counts nowhere
    assert (judge.audited, judge.differing) == (2, 1)


def test_a_raise_leaves_as_many_differing_as_the_bound_allows_and_begins_anew() -> None:
    judge = judged()
    differing = [0.625] * 9 + [0.6875] + [0.875] * 2  # 12 of 100, where 2 may
    judge.take([Pair(None, score, differs=True) for score in differing])
    judge.take([Pair(None, 0.75, differs=False)] * 88)
    assert judge.verdict() is not None
    assert judge.held[-1].confidence == 0.75
    judge.take([Pair(None, 0.8125, differs=True)] * 10 + [Pair(None, 0.84375, differs=False)])
    assert judge.verdict() is not None
    assert judge.held[-1].confidence == 0.8437  # the two at 0.875 are of the former interval


def test_the_least_score_at_which_three_of_450_differ() -> None:
    judge = Judge(ASKED, at)
    judge.take(calibration(differing=(100, 200, 300, 400)))
    why = judge.verdict()
    assert judge.held[-1].confidence == pytest.approx(0.601)
    assert why is not None
    assert "88.9 % of the cells count, and 3 of these differ" in why


@pytest.mark.parametrize(
    ("asked", "pairs", "said"),
    [
        (replace(ASKED, images=450), [], "it has 450 images, and more than 450 are needed"),
        (
            ASKED,
            [Pair(at, 0.9, differs=True) for at in range(450)],
            "networks, and 0 % of the cells may count",
        ),
        (
            ASKED,
            [Pair(at, None, differs=False) for at in range(450)],
            "only 0 images went through both networks, and 149 are needed. Each other",
        ),
        (ASKED, calibration(range(20, 450)), "the first stage pays from 6.67 % on"),
    ],
)
def test_where_it_does_not_pay_the_single_network_goes_on_alone(asked, pairs, said) -> None:
    judge = Judge(asked, at)
    judge.take(pairs)
    why = judge.verdict()
    assert why is not None
    assert said in why
    assert "the single network classifies every image" in why
    assert judge.held[-1].confidence is None
    judge.take([Pair(None, 0.9, differs=True)] * 100)
    assert judge.verdict() is None  # nothing is left to be raised


@pytest.mark.parametrize(("scheme", "ratio"), [("cascade", 0.5), ("cascade-batch", 0.9)])
def test_a_batch_pays_by_what_all_its_images_take_and_a_collage_by_one_input(scheme, ratio) -> None:
    plan = SimpleNamespace(
        settings=RunSettings(scheme=scheme, agree=0.98), order=Order(Permutation(1_000))
    )
    costs = ServiceCosts({}, {}, 0.5, {"backup": 0.1}, 1, None)
    judge = runs.build_judge(plan, {}, costs, at)
    assert judge is not None
    assert judge.asked.ratio == pytest.approx(ratio)


def test_a_resumed_session_that_has_all_pairs_decides_at_once() -> None:
    announced: list[SetThreshold] = []
    judge = Judge(ASKED, at, pairs=calibration())
    judge.begin(announced.append, lambda entries: None)
    assert announced == [SetThreshold(0.551, 2, 30)]


# ---- and raised -------------------------------------------------------------


def judged(confidence: float = 0.5) -> Judge:
    held = {"confidence": confidence, "session": 1, "since_ns": 7}
    return Judge(ASKED, at, [{**held, "audited": 9, "differing": 9, "images": 99}])


def test_audits_within_the_bound_raise_nothing() -> None:
    judge = judged()
    for n in range(2_000):  # 1 % differ
        judge.take([Pair(None, 0.9, differs=n % 100 == 99)])
        assert judge.verdict() is None
    assert (judge.audited, judge.differing) == (2_000, 20)
    assert [each.confidence for each in judge.held] == [0.5, 0.5]


def test_what_is_kept_of_audits_does_not_grow_with_the_job() -> None:
    judge = judged()
    judge.take([Pair(None, 0.9, differs=False), Pair(None, -1.0, differs=True)])
    before = len(pickle.dumps(judge))
    judge.take([Pair(None, score / 997, differs=False) for score in range(998)] * 10)
    assert len(pickle.dumps(judge)) < before + 100
    assert judge.audited == 9_982


def test_a_network_that_drifts_is_noticed_and_the_threshold_rises_to_what_audits_allow() -> None:
    judge, rng, audits = judged(), np.random.default_rng(3), 0
    while judge.verdict() is None:  # from 0.5 to 0.8 a fifth differ, above none
        score = float(rng.random()) / 2 + 0.5
        judge.take([Pair(None, score, differs=bool(score < 0.8 and rng.random() < 0.2))])
        audits += 1
        assert audits < 300
    raised = judge.held[-1].confidence
    assert raised is not None
    assert 0.6 < raised < 0.9
    assert judge.audited == 0


def test_a_spoiled_network_is_noticed_within_a_few_audits_and_asked_no_more() -> None:
    judge = judged()
    whys = []
    for n in range(50):
        judge.take([Pair(None, 0.9, differs=n % 10 > 0)])
        whys.append(judge.verdict())
    first = next(n for n, why in enumerate(whys) if why)
    assert first < 10
    assert "no higher score keeps the bound" in (whys[first] or "")
    assert [each.confidence for each in judge.held] == [0.5, 0.5, None]


def test_a_cell_below_the_threshold_costs_nothing_however_it_differs() -> None:
    judge = judged()
    judge.take([Pair(None, 0.4, differs=True)] * 1_000)
    assert judge.verdict() is None
    assert judge.differing == 0


def test_each_decision_is_told_noted_and_announced(caplog) -> None:
    noted, announced = [], []
    judge = judged()
    judge.begin(announced.append, noted.append)
    own = SetThreshold(0.5, 2, 30)  # that of the session before
    assert announced == [own]
    manifest = {"format": FORMAT, "version": VERSION, "run_id": "r", "session": 1, "shards": []}
    manifest["accepted"] = {}
    assert check_manifest({**manifest, "rows": 0, "thresholds": noted[0]}, "here")
    with caplog.at_level(logging.INFO):
        judge.hear([Pair(None, 0.9, differs=True)] * 30)
    assert announced == [own, SetThreshold(None, 2, 30)]
    assert "agree 0.98: 30 of 30 audited images" in caplog.text
    assert noted == [judge.entries()[:2], judge.entries()]


# ---- a threshold that was chosen with labels --------------------------------

SPEC = AcceptSpec(0.85, "f" * 64, 5_000, 0.02, 5_000, 0.04, share=0.9, agreeing=0.99)


@pytest.mark.parametrize(
    ("spec", "differing", "warned"),
    [
        (SPEC, 10, False),  # of 1,000: as it was
        (SPEC, 25, False),  # more, but by chance it may be
        (SPEC, 50, True),
        (SPEC, 0, False),  # better than it was
        (replace(SPEC, share=0.01), 50, False),  # what 50 images told, which is little
        (replace(SPEC, agreeing=None), 900, False),  # the file does not say
        (None, 900, False),  # nor is there one
    ],
)
def test_less_agreement_than_the_file_says_is_warned_of_once(
    caplog, spec, differing, warned
) -> None:
    watch = AgreementWatch(spec)
    for _ in range(2):
        watch.look(1_000, differing)
    told = [record.message for record in caplog.records]
    assert len(told) == warned
    assert not told or "50 of 1,000 audited answers" in told[0]
    assert not told or "When the threshold was measured, 1 % differed" in told[0]
