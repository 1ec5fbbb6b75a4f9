"""How many images the exact network calls each class: intervals from few of its answers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from results_harness import make_run
from two_networks import CHEAP, CLASSES, EXACT, Networks

from collage_mpi.bounds.shares import BETS, FIRST, Differences, Shares, differing
from collage_mpi.cli import main
from collage_mpi.commands.counting import Counting
from collage_mpi.errors import DataFault, ExitCode, UsageError
from collage_mpi.kinds import KIND
from collage_mpi.report import tables
from collage_mpi.results.class_counts import ClassCounts
from collage_mpi.rows import AUDIT_CODE, IMAGES, SOURCE_CODE
from collage_mpi.shards.writer import write_shard

ANSWERS = Path(__file__).parents[2] / "analysis" / "answers"
PLAYS = 60


def fashion() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The classes of the exact and of the collage network, and the scores of the latter."""
    with np.load(ANSWERS / "fashion_collage_side3_balanced.npz") as found:
        single, collage = found["single_class"].astype(int), found["collage_class"].astype(int)
        return single, collage, found["collage_score"].astype(float)


def test_intervals_hold_whenever_one_looks_and_shrink_where_the_network_is_unsure() -> None:
    exact, cheap, scores = fashion()
    truth = np.bincount(exact, minlength=10) / len(exact)
    missed, drawn = 0, []
    for seed in range(PLAYS):
        shares, before, wrong = Shares(cheap, scores, range(10), seed=seed), None, False
        while more := shares.more(0.01):
            shares.tell(exact[shares.draw(more)])
            low, high = shares.intervals
            wrong |= bool(((truth < low) | (truth > high)).any())
            assert before is None or ((low >= before[0]) & (high <= before[1])).all()
            before = low, high
        missed += wrong
        drawn.append(shares.drawn)
        assert (high - low).max() <= 0.02
    assert missed <= 0.05 * PLAYS
    assert np.median(drawn) < 1_800  # sampling alone takes 7,251 by the normal approximation


def test_a_network_that_is_always_right_needs_few_answers_and_one_class_fewer() -> None:
    exact, _, scores = fashion()
    every = {}
    for asked in ([0], range(10)):
        shares = Shares(exact, scores, asked)
        while more := shares.more(0.01):
            shares.tell(exact[shares.draw(more)])
        every[len(asked)] = shares.drawn
    assert FIRST <= every[1] < every[10] <= 1_500


def test_draws_are_the_same_by_seed_and_meet_each_image_as_often_as_they_say() -> None:
    scores = np.repeat([0.1, 0.9], 4_000)
    shares = Shares(np.zeros(8_000, int), scores, [0], seed=1)
    drawn = shares.draw(40_000)
    assert (drawn == Shares(np.zeros(8_000, int), scores, [0], seed=1).draw(40_000)).all()
    assert not (drawn == Shares(np.zeros(8_000, int), scores, [0], seed=2).draw(40_000)).all()
    share = np.sqrt(0.9) / (np.sqrt(0.9) + np.sqrt(0.1))  # by the error that the scores forecast
    assert (drawn < 4_000).mean() == pytest.approx((0.5 + share) / 2, abs=0.01)
    assert drawn.min() >= 0
    assert drawn.max() < 8_000
    assert len(np.unique(drawn)) > 7_500
    weights = shares._last[2][shares._last[1]]
    assert weights.mean() == pytest.approx(1, abs=0.02)  # so the mean of d / q is that of d
    assert weights.max() <= 2


def test_the_bettors_money_is_what_it_says() -> None:
    """One class; two rounds; the second one bets what would have been the best in the first."""
    draws = [([1, 0, -1, 0, 0, 0, 1, 0], 1.0), ([2, 0, 0, 0, -2, 0], 2.0)]
    bound = Differences(1, 0.9)
    for values, weight in draws:
        more, fewer = values.count(weight), values.count(-weight)
        bound.add(len(values), np.array([weight]), np.array(2 * [[[[more]], [[fewer]]]]))
        if bound._rounds[0].bets is None and len(bound._rounds) == 1:
            first_high = bound.high[0]

    def wealth(values: list[float], weight: float, bet: float, mean: float) -> float:
        return float(np.prod([1 - bet * (x - mean) / (weight - mean) for x in values]))

    def all_money(mean: float) -> float:
        alike = np.mean([wealth(*draws[0], b, mean) * wealth(*draws[1], b, mean) for b in BETS])
        best = max(BETS, key=lambda b: wealth(*draws[0], b, first_high))
        then = np.mean([wealth(*draws[0], b, mean) for b in BETS]) * wealth(*draws[1], best, mean)
        return (alike + then) / 2

    mean = 0.3
    assert np.exp(bound._wealth(np.array([mean]), 0)[0]) == pytest.approx(all_money(mean))
    few = Differences(1, 0.9)
    few.add(100, np.ones(1), np.zeros((2, 2, 1, 1), int))
    money = np.mean([(1 + b * few.high[0] / (1 - few.high[0])) ** 100 for b in BETS])
    assert money == pytest.approx(2 / 0.1, rel=1e-6)
    assert few.low[0] == pytest.approx(-few.high[0])


def test_an_image_without_an_exact_answer_may_be_anything() -> None:
    cheap, exact = np.array([0, 0, 1, 2, 2]), np.array([0, 1, -1, -1, 0])
    upper, lower = differing(cheap, exact, np.array([0, 1]))
    assert upper.tolist() == [[3, 2], [1, 0]]  # 2: both unknown ones may be 0; one may be 1
    assert lower.tolist() == [[1, 1], [1, 1]]  # the unknown one that the cheap network calls 1


def networks_of(images: int = 6_000, unread: int = 0, failing: int = 0) -> Networks:
    rng = np.random.default_rng(3)
    labels = rng.choice(3, images, p=[0.6, 0.3, 0.1])
    sure = rng.random(images) < 0.9
    named = np.where(sure | (rng.random(images) < 0.7), labels, rng.integers(0, 3, images))
    scores = np.full((images, 3), 0.02)
    scores[np.arange(images), named] = np.where(sure, 0.96, 0.5)
    scores[:unread, 0] = np.nan
    labels[:unread] = -1
    labels[unread : unread + failing] = -1
    return Networks(scores, labels)


def job_of(networks: Networks, folder: Path, within: float = 0.02, *classes: str) -> Counting:
    return Counting(len(networks.labels), folder, CHEAP, EXACT, networks.launch, classes, within)


def test_pictures_are_counted_with_few_answers(tmp_path: Path) -> None:
    networks = networks_of(unread=40)
    job = job_of(networks, tmp_path / "job")
    assert job.execute() == ExitCode.COMPLETE
    rows, how = job.known().told()
    assert [row["name"] for row in rows] == CLASSES
    truth = np.bincount(networks.labels[40:], minlength=3)
    for row, true in zip(rows, truth, strict=True):
        assert row["low"] <= true <= row["high"] <= row["low"] + 0.04 * 5_960
        assert row["images"] == 5_960
    assert 400 < len(networks.asked) < 2_980
    assert set(networks.asked.values()) == {1}
    assert min(networks.asked) >= 40  # whoever cannot be read is not asked for
    assert f"asked for {len(networks.asked):,} of 5,960 pictures" in how
    assert "40 pictures cannot be read" in how
    one = job_of(networks, tmp_path / "one", 0.02, "dog")
    assert one.execute() == ExitCode.COMPLETE
    assert [row["name"] for row in one.known().told()[0]] == ["dog"]


def test_a_job_that_was_stopped_asks_for_nothing_twice(tmp_path: Path) -> None:
    whole, stopped = networks_of(), networks_of()
    job_of(whole, tmp_path / "whole", 0.01).execute()
    stopped.stop_at = 3
    job = job_of(stopped, tmp_path / "stopped", 0.01)
    assert job.execute() == ExitCode.INCOMPLETE
    assert job.execute() == ExitCode.COMPLETE
    assert stopped.asked == whole.asked
    assert job.known().told()[0] == job_of(whole, tmp_path / "whole", 0.01).known().told()[0]


def test_where_half_would_be_asked_all_are_and_the_counts_are_exact(tmp_path: Path) -> None:
    networks = networks_of(images=1_200, failing=5)
    job = job_of(networks, tmp_path / "job", 0.01)
    assert job.execute() == ExitCode.COMPLETE
    assert len(networks.asked) == 1_200
    truth = np.bincount(networks.labels[5:], minlength=3)
    rows, how = job.known().told()
    assert [(row["low"], row["high"]) for row in rows] == [(true, true + 5) for true in truth]
    assert how.endswith("5 pictures could not be answered")
    assert job.known().code == ExitCode.COMPLETE_WITH_ERRORS


def test_pictures_that_nobody_can_read_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataFault, match="no picture has an answer of the first network"):
        job_of(networks_of(images=300, unread=300), tmp_path / "job").execute()


def test_without_names_classes_are_those_that_the_first_network_gives(tmp_path: Path) -> None:
    networks = networks_of()
    networks.names = networks.exact_names = None
    networks.labels[:600] = 5
    job = job_of(networks, tmp_path / "job")
    assert job.execute() == ExitCode.COMPLETE
    assert [row["class"] for row in job.known().told()[0]] == [0, 1, 2]


def test_networks_with_other_classes_are_refused(tmp_path: Path) -> None:
    networks = networks_of()
    networks.exact_names = ["cat", "dog", "blank"]
    with pytest.raises(UsageError, match="have different classes"):
        job_of(networks, tmp_path / "job").execute()
    with pytest.raises(UsageError, match="no class 'ship'"):
        job_of(networks_of(), tmp_path / "other", 0.02, "ship").execute()


def rows_of(**columns: object) -> np.ndarray:
    rows = np.zeros(len(next(iter(columns.values()))), IMAGES.dtype)  # type: ignore[arg-type]
    rows["answered"], rows["position"] = True, np.arange(len(rows))
    for name, values in columns.items():
        rows[name] = values
    return rows


def test_audited_answers_bound_the_others() -> None:
    single, collage = SOURCE_CODE["single"], SOURCE_CODE["collage"]
    rng = np.random.default_rng(0)
    n = 20_000
    exact = rng.choice(3, n, p=[0.5, 0.3, 0.2])
    cheap = np.where(rng.random(n) < 0.02, (exact + 1) % 3, exact)
    accepted, audited = rng.random(n) < 0.8, rng.random(n) < 0.1
    rows = rows_of(
        source=np.where(accepted, collage, single),
        predicted=np.where(accepted, cheap, exact),
        other=np.where(accepted & audited, exact, 7),
        audited=np.where(accepted & audited, AUDIT_CODE["done"], 0),
    )
    counts = ClassCounts({"class_names": CLASSES})
    for part in np.array_split(rows, 3):
        counts.add(part)
    told = counts.told()
    assert told is not None
    assert (counts.others, counts.audited) == (accepted.sum(), (accepted & audited).sum())
    for one, true in zip(told, np.bincount(exact), strict=True):
        assert one["low"] <= true <= one["high"] < one["low"] + 800
        assert one["images"] == n
    table = tables.class_counts(counts)
    assert table is not None
    assert [row[0] for row in table.rows] == CLASSES
    assert table.rows[0][1:] == [told[0]["low"], told[0]["high"]]
    assert table.notes[0].startswith(f"{counts.audited:,} of {counts.others:,} answers of other")
    assert tables.class_counts(ClassCounts({})) is None
    (one,) = counts.told([2]) or ()
    assert one["name"] == "dog"
    assert one["high"] - one["low"] < told[2]["high"] - told[2]["low"]


def test_an_answer_that_nobody_audits_may_be_any_class_and_what_is_all_audited_is_exact() -> None:
    kept, collage = SOURCE_CODE["kept"], SOURCE_CODE["collage"]
    done = [0, AUDIT_CODE["done"], AUDIT_CODE["done"]]
    rows = rows_of(
        source=[kept, collage, collage], predicted=[0, 1, 1], other=[9, 2, 1], audited=done
    )
    counts = ClassCounts({"class_names": CLASSES})
    counts.add(rows)
    told = counts.told() or ()
    assert [(one["low"], one["high"]) for one in told] == [(0, 1), (1, 2), (1, 2)]
    assert counts.others == counts.audited == 2


def test_with_agree_what_was_drawn_after_the_proof_audits_the_others() -> None:
    """Of 12 positions 2 are proved on, then 4 are drawn, two of them above the threshold."""
    kind = KIND["collage"]
    single = SOURCE_CODE["single"]
    held = {"confidence": 0.5, "candidate": "collage", "proved": 2, "drawn": 6}
    rows = rows_of(
        source=[single, kind.source, *4 * [single], *5 * [kind.source], single],
        predicted=[1, 0, 0, 0, 1, 1, 0, 0, 0, 0, 1, 2],
        other=[0, 1, 0, 1, 0, 0] + [9] * 6,
        other_score=[0.9, 0.9, 0.8, 0.7, 0.4, 0.3] + [0.0] * 6,
        stages=[1 << kind.place] * 6 + [0] * 6,
        audited=[AUDIT_CODE["done"]] * 6 + [0] * 6,
    )
    counts = ClassCounts({"class_names": CLASSES, "thresholds": [held]})
    counts.add(rows)
    assert (counts.others, counts.audited) == (5 + 2, 2)
    told = counts.told()
    assert told is not None
    assert [one["low"] for one in told] == [
        0,
        4,
        1,
    ]  # 1: two proved on, and two below the threshold
    assert [one["high"] for one in told] == [7, 4 + 7, 7]


def test_a_run_is_counted_or_refused_and_the_table_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_run(tmp_path / "collages")
    assert main(["count", str(tmp_path / "collages")]) == ExitCode.USAGE
    assert "asked for none of these" in capsys.readouterr().err
    networks = networks_of(images=300)
    networks.launch({"single": "exact", "out": str(tmp_path / "run")})
    assert main(["count", str(tmp_path / "run"), "--json", "--out", str(tmp_path / "c.csv")]) == 0
    told = json.loads(capsys.readouterr().out)
    truth = np.bincount(networks.labels)
    assert [one["low"] for one in told["classes"]] == sorted(truth, reverse=True)
    assert [one["high"] for one in told["classes"]] == sorted(truth, reverse=True)
    assert told["how"] == "300 of 300 images have an answer"
    with (tmp_path / "c.csv").open() as file:
        assert {row["name"]: int(row["high"]) for row in csv.DictReader(file)} == dict(
            zip(CLASSES, truth, strict=True)
        )
    assert main(["count", str(tmp_path / "run"), "--class", "dog"]) == 0
    assert ["dog", f"{truth[2]}", f"{truth[2]}"] == capsys.readouterr().out.split()[7:10]
    assert main(["count", str(tmp_path / "run"), "--within", "0.1"]) == ExitCode.USAGE
    assert main(["count", str(tmp_path / "run"), "--class", "none"]) == ExitCode.USAGE
    assert main(["count", str(tmp_path / "nothing")]) == ExitCode.USAGE
    few = ["--network", "null", "--first", "null:wrong=5", "--within", "0.1", "--out", "few.csv"]
    write_shard(tmp_path / "few.h5", np.zeros((9, 8, 8, 3), np.uint8))
    assert main(["count", str(tmp_path / "few.h5"), *few]) == ExitCode.USAGE
    assert "give --network W, --within 0.01 and --out FILE.csv" in capsys.readouterr().err
