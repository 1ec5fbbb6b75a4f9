"""A promise of unchanged answers: the procedure step by step, its order, its end and its audits."""

from __future__ import annotations

import math
from itertools import accumulate

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collage_mpi.bounds.bets import PROVE, REFUTE, money_of
from collage_mpi.bounds.draw import Draw
from collage_mpi.bounds.exact import share_interval
from collage_mpi.bounds.promise import Answer, Promise, Threshold
from collage_mpi.bounds.recall import Recall, exact_answers
from collage_mpi.bounds.sample import (
    Asked,
    Candidate,
    Pairs,
    choose,
    front,
    least_images,
    price_s,
    prove,
    raised,
    thresholds_of,
    worth_trying,
)

CHEAP = Candidate("cheap", 0.0, 0.05)
FIRST = 200  # answers that choose
MOST = (10_000, 0)
GAMES = {
    "prove": (PROVE, [(0.0, 0.4), (0.25, 0.2), (0.5, 0.2), (0.75, 0.2)]),
    "refute": (REFUTE, [(1.5, 0.4), (2.0, 0.3), (4.0, 0.3)]),
}


def step_by_step(differs, population, differing, game) -> list[float]:
    """The bettors' money after 0, 1, ... answers at one threshold, as the papers have it."""
    money, seen, held = [weight for _, weight in game], 0, [1.0]
    for drawn, differing_one in enumerate(differs.tolist()):
        m = (differing - seen) / (population - drawn)
        for bettor, (f, _) in enumerate(game):
            unchanged = max(0.0, 1 - f * m) / (1 - m) if m < 1 else math.inf
            money[bettor] *= f if differing_one else unchanged
        seen += differing_one
        held.append(sum(money) if seen < differing or game[0][0] > 1 else 0.0)
    return held


@pytest.mark.parametrize("game", GAMES)
@pytest.mark.parametrize(
    ("population", "drawn", "differing", "share"),
    [
        (1_000, 400, 11, 0.01),
        (5_000, 900, 26, 0.003),
        (300, 150, 20, 0.05),
        (900, 500, 30, 0.02),
        (60, 20, 20, 0.05),
    ],
)
def test_money_is_that_of_the_papers_step_by_step(game, population, drawn, differing, share):
    bets, bettors = GAMES[game]
    differs = np.random.default_rng(population).random((drawn, 3)) < share * np.array([0, 1, 2])
    looks = np.array([0, 1, drawn // 2, drawn])
    found = money_of(differs, looks, population, differing, bets)
    events = np.flatnonzero(differs.any(axis=1)).tolist()
    for at in range(3):
        money = step_by_step(differs[:, at], population, differing, bettors)
        for look, highest, held in zip(looks, found.highest, found.held, strict=True):
            points = [each for each in [*looks.tolist(), *events] if each <= look]
            assert math.exp(highest[at]) == pytest.approx(max(money[each] for each in points))
            if bets is REFUTE or money[look]:
                assert np.exp(held[at]).sum() == pytest.approx(money[look])


@pytest.mark.parametrize("game", GAMES)
def test_an_endless_population_is_the_limit_of_larger_ones(game):
    bets, _ = GAMES[game]
    differs = np.random.default_rng(2).random((900, 2)) < np.array([0.004, 0.012])
    looks = np.array([0, 300, 900])
    endless = money_of(differs, looks, math.inf, 0.01, bets)
    large = money_of(differs, looks, 10**9, 10**7, bets)
    assert endless.highest == pytest.approx(large.highest, abs=1e-4)
    assert endless.held[:, :, 1:] == pytest.approx(large.held[:, :, 1:], abs=1e-4)
    own = money_of(differs, looks, 900, 9, bets).highest  # which the answers use up
    assert abs(own - endless.highest).max() > 1


def test_what_cannot_be_is_proved_when_too_few_answers_are_left():
    nothing, two = np.zeros((10, 1), bool), np.eye(10, 1, dtype=bool) | np.eye(10, 1, -9, bool)
    looks = np.arange(11)
    proved = money_of(nothing, looks, 10, 2, PROVE).highest[:, 0] > 20
    assert proved.tolist() == [look >= 9 for look in looks]  # 8 of 10: both left may differ
    assert money_of(two, looks, 10, 3, PROVE).highest[-1, 0] > 20
    assert money_of(two, looks, 10, 2, PROVE).highest[-1, 0] < math.log(20)
    assert money_of(two, looks, 10, 1, REFUTE).highest[-1, 0] > 20


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), min_size=1, max_size=60))
def test_no_threshold_is_proved_before_a_higher_one(pairs):
    scores, differs = (np.array(each) for each in zip(*pairs, strict=True))
    counted = (scores[:, None] >= np.arange(9, -1, -1)) & differs[:, None]
    highest = money_of(counted, np.array([len(pairs)]), 80, 4, PROVE).highest[0]
    assert (np.diff(highest) <= 1e-9).all()


def drawn_pairs(seed: int, n: int, share: float = 0.01, digits: int = 1) -> Pairs:
    """Answers with ties, of which low scores differ more often."""
    rng = np.random.default_rng(seed)
    scores = rng.random(n).round(digits)
    return Pairs(scores, rng.random(n) < 2 * share * (1 - scores))


@pytest.mark.parametrize("seed", range(12))
def test_a_sample_proves_what_the_procedure_proves(seed):
    images, agree = 1_500 + 100 * seed, (0.96, 0.97, 0.98)[seed % 3]
    asked, thresholds = Asked(images, agree, 1.0), np.array([0.9, 0.7, 0.5, 0.3, 0.0])
    pairs = drawn_pairs(seed, images - FIRST, 2 * (1 - agree) / 3)
    found = prove(asked, CHEAP, thresholds, pairs)
    assert found is not None
    least = math.floor((1 - agree) * images + 1e-9) + 1
    passed = []
    for threshold in thresholds:
        differs = pairs.differs & (pairs.scores >= threshold)
        money = step_by_step(differs[: found.drawn], images - FIRST, least, GAMES["prove"][1])
        passed.append(max(money) >= 20)
    assert found.deepest == sum(accumulate(passed, min)) - 1


def test_how_many_may_differ():
    asked = (Asked(n, agree, 1.0) for n, agree in ((10_000, 0.99), (999, 0.9), (10, 0.9)))
    assert [each.may_differ for each in asked] == [100, 99, 1]
    # 64 answers that do not differ rule out 54 of 996, and not 57 of 1,065; 53 and 58 it would be
    # the other way round.
    assert prove(Asked(1_196, 0.955, 1.0), CHEAP, np.zeros(1), same(1_196)) == (64, 0)
    assert prove(Asked(1_265, 0.955, 1.0), CHEAP, np.zeros(1), same(1_265)) == (96, 0)


def same(n: int) -> Pairs:
    """Answers that never differ."""
    return Pairs(np.ones(n - FIRST), np.zeros(n - FIRST, bool))


# ---- the end of the sample --------------------------------------------------


def test_the_sample_ends_when_nothing_more_is_to_be_gained():
    asked, thresholds = Asked(100_000, 0.99, 1.0), np.array([0.9, 0.5, 0.0])
    assert prove(asked, CHEAP, thresholds, same(5_000)) == (384, 2)
    tenth = Pairs(np.ones(64), np.arange(64) % 10 == 0)
    assert prove(asked, CHEAP, thresholds, tenth) == (32, -1)
    assert prove(asked, CHEAP, thresholds, same(FIRST + 383)) is None
    # One half of the answers is sure and never differs; in the other half some do. The proof that
    # they are few enough pays in the larger job alone, and 10,000 answers must do.
    n = np.arange(20_000)
    for each, images, end in ((600, 2_000, (512, 0)), (600, 10**6, (2_560, 1)), (300, 10**6, MOST)):
        half = Pairs(np.where(n % 2, 1.0, 0.2), n % each == 150)
        assert prove(Asked(images, 0.995, 1.0), CHEAP, np.array([0.9, 0.1]), half) == end


def test_a_sample_without_a_proof_ends_as_planned():
    asked = Asked(100_000, 0.99, 1.0)
    assert asked.planned == 2_000
    assert Asked(10_000, 0.995, 1.0).planned == 1_000
    pairs = Pairs(np.ones(9_000), np.arange(9_000) % 118 == 117)
    found = prove(asked, CHEAP, np.zeros(1), pairs)
    assert found == (2_016, -1)
    assert prove(asked, CHEAP, np.zeros(1), pairs.part(0, 2_015)) is None


def test_a_proved_threshold_that_does_not_pay_is_none():
    # A quarter of the answers is sure. Almost as many as may differ in the next quarter.
    n = np.arange(20_000)
    few = Pairs(np.where(n % 4 == 0, 0.9, np.where(n % 4 == 1, 0.5, 0.1)), n % 120 == 117)
    dear, asked = Candidate("dear", 0.0, 0.3), Asked(100_000, 0.99, 1.0)
    assert prove(asked, CHEAP, np.array([0.9, 0.5]), few).deepest == 0
    assert prove(asked, dear, np.array([0.9, 0.5]), few) == (2_016, -1)


# ---- the choice -------------------------------------------------------------


def test_one_candidate_is_chosen_by_its_price():
    asked = Asked(100_000, 0.99, 1.0)
    sure, unsure = same(400), drawn_pairs(3, 200, 0.3, 3)
    both = [Candidate("a", 0.0, 0.3), Candidate("b", 0.0, 0.25)]
    assert choose(asked, both, [sure, sure]) == 1
    assert choose(asked, both, [sure, unsure]) == 0
    assert choose(asked, [Candidate("made", 7e4, 0.3), both[1]], [sure, unsure]) is None
    assert choose(asked, [], []) is None
    two = Pairs(np.arange(200.0)[::-1], np.isin(np.arange(200), (100, 150)))  # one may differ
    price = 10_000 * (1.1 - 0.75) + 700 * 0.75
    assert price_s(Asked(10_000, 0.99, 1.0), Candidate("c", 0.0, 0.1), two) == pytest.approx(price)


def test_nothing_is_tried_below_the_size_at_which_it_pays():
    asked = Asked(10_000, 0.995, 1.0)
    third = Candidate("third", 0.0, 0.35)
    assert least_images(asked, third) == 9_600
    assert least_images(asked, Candidate("no gain", 0.0, 0.9)) is None
    for images, tried in ((9_599, []), (9_600, [third])):
        assert worth_trying(Asked(images, 0.995, 1.0), [third]) == tried
    many = [Candidate(str(each), 0.0, 0.35) for each in range(40)]
    spent = 200 * 0.35 * len(worth_trying(asked, many)) + 0.35 * asked.planned
    assert 0.14 < spent / 10_000 <= 0.15
    made = Candidate("made", 1_500.0, 0.1)
    assert worth_trying(asked, [made, third]) == [third]


def test_thresholds_are_few_and_descend_and_end_where_too_many_differ():
    chose = drawn_pairs(1, 200, 0.04, 4)
    found = thresholds_of(Asked(10**5, 0.99, 1.0), chose)
    assert 20 < len(found) <= 32
    assert (np.diff(found) < 0).all()
    assert (chose.differs & (chose.scores >= found[0])).sum() == 0
    assert 2 <= (chose.differs & (chose.scores >= found[-1])).sum() <= 6
    unscored = Pairs(np.full(200, np.nan), chose.differs)
    assert len(thresholds_of(Asked(10**5, 0.99, 1.0), unscored)) == 0


# ---- the job ----------------------------------------------------------------


def play(promise: Promise, scores, differs, order=None, until: int = 20_000) -> Promise:
    """Answer the drawn images in an order. Of two candidates the first one always differs."""
    for number in range(until) if order is None else order:
        last = Answer(float(scores[number]), bool(differs[number]))
        both = [Answer(last.score, True), last] if len(promise.tried) == 2 else [last]
        names = [each.name for each in promise.tried]
        promise.take(int(number), dict(zip(names, both, strict=True)))
    return promise


def test_equal_answers_lead_to_equal_thresholds_in_any_order():
    pairs = drawn_pairs(0, 20_000, 0.015, 4)
    asked, candidates = Asked(20_000, 0.99, 1.0), [CHEAP, Candidate("other", 0.0, 0.2)]
    first = play(Promise(asked, candidates), *pairs)
    assert first.chosen == candidates[1]
    assert first.threshold is not None
    assert first.threshold.confidence is not None
    assert first.threshold.drawn == first.threshold.proved + 200
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(20_000)
        twice = np.concatenate([order[:5_000], order])
        assert play(Promise(asked, candidates), *pairs, twice).threshold == first.threshold
    gap = [*range(first.threshold.drawn - 1), *range(first.threshold.drawn, 20_000)]
    assert play(Promise(asked, candidates), *pairs, gap).threshold is None


def test_an_image_that_lacks_an_answer_of_a_candidate_is_left_out_until_one_is_chosen():
    asked, candidates = Asked(20_000, 0.99, 1.0), [CHEAP, Candidate("other", 0.0, 0.2)]
    promise = Promise(asked, candidates)
    assert promise.asks == ("cheap", "other")
    lacking = {"cheap": Answer(0.9, True)}
    for number in range(400):
        found = lacking if number % 2 else {**lacking, "other": Answer(0.9, False)}
        assert promise.asks == ("cheap", "other")
        promise.take(number, found)
        if number == 398:
            break
    assert promise.asks == ("other",)
    promise.take(399, lacking)
    for number in range(400, 5_000):
        promise.take(number, {"other": Answer(0.9, False)})
    held = promise.threshold
    assert (held.candidate, held.confidence) == ("other", pytest.approx(0.9))
    assert held.proved - 400 < 500


def test_after_the_choice_the_chosen_candidate_alone_may_answer():
    pairs = drawn_pairs(0, 20_000, 0.015, 4)
    asked, candidates = Asked(20_000, 0.99, 1.0), [CHEAP, Candidate("other", 0.0, 0.2)]
    promise, wanted = Promise(asked, candidates), play(Promise(asked, candidates), *pairs)
    play(promise, *pairs, until=FIRST)
    for number in range(FIRST, 20_000):
        answer = Answer(float(pairs.scores[number]), bool(pairs.differs[number]))
        promise.take(number, {"other": answer})
    assert promise.threshold == wanted.threshold


def test_a_small_job_is_exact_and_draws_nothing():
    small = Promise(Asked(150, 0.99, 1.0), [CHEAP])
    assert small.threshold == Threshold(None, None, 0, 0)
    assert (small.tried, small.audited(), small.counting()) == ([], (0, 0, (0.0, 1.0)), 0.0)
    assert [front(Asked(n, 0.99, 1.0)) for n in (699, 700, 10**5)] == [0, 700, 10_500]


def test_what_lacks_an_answer_is_left_out():
    pairs, known = drawn_pairs(0, 9_000, 0.001, 4), []
    asked = Asked(9_000, 0.98, 1.0)
    one, other = Promise(asked, [CHEAP]), Promise(asked, [CHEAP])
    for number in range(9_000):
        answer = Answer(float(pairs.scores[number]), bool(pairs.differs[number]))
        if number % 3:
            known.append(answer)
        one.take(number, {CHEAP.name: answer} if number % 3 else {})
    for number, answer in enumerate(known):
        other.take(number, {CHEAP.name: answer})
    assert one.threshold is not None
    assert other.threshold is not None
    assert one.threshold.confidence == other.threshold.confidence is not None
    assert one.threshold.drawn == 3 * other.threshold.drawn // 2
    assert one.audited() == other.audited()


def test_a_job_whose_drawn_images_lack_answers_ends_without_a_threshold():
    promise = Promise(Asked(1_000, 0.98, 1.0), [CHEAP])
    for number in range(999):
        promise.take(number, {CHEAP.name: Answer(1.0, False)} if number % 9 == 0 else {})
    assert promise.threshold is None
    promise.take(999, {})
    assert promise.threshold == Threshold(None, None, 1_000, 1_000)


def test_the_audits_of_the_last_images_count_though_they_are_fewer():
    promise = Promise(Asked(1_000, 0.98, 1.0), [CHEAP])
    for number in range(1_000):
        there = number < 500 or number > 995
        promise.take(number, {CHEAP.name: Answer(1.0, False)} if there else {})
    assert promise.threshold is not None
    assert promise.threshold.confidence == 1.0
    assert promise.asked.audits == 10
    assert promise.audited()[1] == 10


def test_a_refuted_threshold_rises():
    pairs = drawn_pairs(0, 20_000, 0.01, 4)
    asked = Asked(20_000, 0.99, 1.0)
    unspoiled = play(Promise(asked, [CHEAP]), *pairs).threshold
    assert unspoiled is not None
    least, begin = unspoiled.confidence, unspoiled.proved
    assert least is not None
    audits = (np.arange(20_000) >= begin) & (pairs.scores >= least) & (pairs.scores < least + 0.1)
    promise = play(Promise(asked, [CHEAP]), pairs.scores, pairs.differs | audits)
    held = promise.threshold
    assert held is not None
    assert held.confidence is not None
    assert least + 0.09 < held.confidence
    assert (held.proved, held.drawn) == (begin, begin + 200)
    changed, audited, (low, high) = promise.audited()
    assert audited == 200
    assert low <= changed / audited < high < 0.05
    assert promise.counting() == pytest.approx(
        (pairs.scores[: held.drawn] >= held.confidence).mean()
    )


def test_the_last_audits_count():
    scores, differs = np.ones(20_000), np.zeros(20_000, bool)
    asked = Asked(20_000, 0.99, 1.0)
    held = play(Promise(asked, [CHEAP]), scores, differs).threshold
    assert held is not None
    assert (held.confidence, held.drawn) == (1.0, 784)
    differs[776:784] = True
    spoiled = play(Promise(asked, [CHEAP]), scores, differs).threshold
    assert spoiled == Threshold(None, None, 584, 784)


def test_thresholds_are_scores_as_messages_hold_them():
    scores = np.random.default_rng(0).random(200)
    found = thresholds_of(Asked(10**5, 0.99, 1.0), Pairs(scores, np.zeros(200, bool)))
    assert (found == found.astype(np.float32)).all()
    assert len(found) > 20


def test_audits_that_leave_no_threshold_end_in_an_exact_run():
    asked, thresholds = Asked(20_000, 0.99, 1.0), np.array([0.9, 0.5])
    bad = Pairs(np.ones(64), np.arange(64) % 4 == 0)
    assert raised(asked, same(1_000), bad, thresholds, 1) == -1
    assert raised(asked, same(1_000), same(264), thresholds, 1) == 1
    # The sample has seen all 10 that may differ, so that one more refutes.
    ten, one = Pairs(np.ones(700), np.arange(700) < 10), Pairs(np.ones(32), np.arange(32) < 1)
    assert raised(Asked(1_000, 0.99, 1.0), ten, one, thresholds, 1) == -1
    late = Pairs(np.ones(96), np.arange(96) > 80)
    early = Pairs(np.ones(800), np.arange(800) < 6)  # 0.75 % of them differ
    assert raised(asked, same(1_000), late, thresholds, 1) == -1
    assert raised(asked, same(1_000), early, thresholds, 1) == -1
    low = Pairs(np.full(64, 0.6), bad.differs)
    assert raised(asked, same(1_000), low, thresholds, 1) == 0
    assert raised(asked, same(1_000), low, thresholds, 0) == 0


# ---- the level --------------------------------------------------------------


@pytest.mark.parametrize("run", [1, 30])  # near-duplicates lie side by side
def test_promises_are_broken_in_one_job_of_twenty_at_most(run):
    images, replays, broken = 20_010, 600, 0
    asked = Asked(images, 0.99, 1.0)
    differs = np.repeat(np.arange(images // run) % (images // 210) == 0, run)  # a few too many
    for seed in range(replays):
        known = differs[Draw(images, seed).first(800)]
        found = prove(asked, CHEAP, np.zeros(1), Pairs(np.ones(600), known[FIRST:]))
        assert found is not None
        left = differs.sum() - known[: FIRST + found.drawn].sum()
        broken += found.deepest >= 0 and left > asked.may_differ
    assert 0 < broken / replays <= 0.05


def test_a_draw_is_a_permutation_of_single_positions_that_every_version_repeats():
    assert Draw(10, 0).first(99) == [9, 6, 3, 8, 7, 5, 0, 4, 1, 2]
    assert sorted(Draw(9_000, 7).first(9_000)) == list(range(9_000))
    counts = np.zeros((4, 4))
    for seed in range(2_000):
        counts[range(4), Draw(4, seed).first(4)] += 1
    assert abs(counts - 500).max() < 100


# ---- exact bounds -----------------------------------------------------------


@pytest.mark.parametrize(
    ("found", "drawn", "low", "high"),  # Clopper and Pearson 1934
    [
        (0, 10, 0, 0.30850),
        (1, 50, 0.00051, 0.10647),
        (3, 100, 0.00623, 0.08518),
        (4, 1_204, 0.00091, 0.00848),
        (9, 9, 0.66373, 1),
    ],
)
def test_the_interval_of_a_share_is_exact(found, drawn, low, high):
    assert share_interval(found, drawn) == pytest.approx((low, high), abs=5e-6)


def test_a_recall_says_its_price_first_and_is_missed_in_one_job_of_twenty_at_most():
    assert exact_answers(0.001, 0.95) == 59_915
    images, replays, missed = 4_000, 300, 0
    scores, positive = np.full(images, 0.0072), np.zeros(images, bool)
    scores[:900] = 0.99
    positive[:900] = positive[900::30][:101] = True  # 101 are below the top, one too many
    assert positive.sum() == 1_001
    for seed in range(replays):
        job = Recall(scores, 0.9, seed)
        sample = job.sample(900)
        drawn = np.concatenate(sample)
        assert job.answers(900) <= 900 + len(drawn) <= job.answers(900) + 10
        rest = job.rest(900, [int(positive[each].sum()) for each in sample])
        asked = np.concatenate([job.top, drawn, rest])
        assert len(np.unique(asked)) == len(asked)
        missed += positive[asked].sum() < 901
    assert 0 < missed / replays <= 0.05 + 2 * (0.05 * 0.95 / replays) ** 0.5
    assert sorted(job.top) == list(range(900))
    assert len(job.rest(900, [1, *[0] * 9])) == images - 900 - len(drawn)
    assert len(job.rest(900, [0] * 9 + [1])) < 40
    assert len(job.rest(900, [0] * 10)) == 0
    places = [each - each.min() for each in Recall(scores, 0.9, 0).sample(2)[-2:]]
    assert places[0].tolist() != places[1].tolist()  # strata are drawn independently


def test_a_recall_without_a_positive_image_at_the_top_asks_for_all():
    job = Recall(np.append(np.linspace(0, 1, 99), np.nan), 0.95, 0)
    assert 99 in job.top  # it has no score
    assert sum(map(len, job.sample(0))) == len(job.below)
    assert len(job.rest(0, [0] * 10)) == 0
