"""Audits: which images are drawn, what rows and summary say of them, what verify misses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from simulate_to import simulate_to
from test_simulator import FREE

from collage_mpi.results import read_results, render_summary, summarise, verify_run
from collage_mpi.results.export import export_run
from collage_mpi.results.number_sets import Draw, draw_of
from collage_mpi.results.summary import ImageTally
from collage_mpi.rows import AUDITS, KEY_ROW, SOURCE_CODE
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.runs import simulate_in_memory
from collage_mpi.simulation.simulator import SimulatedJob

CELLS, IMAGES = 9, 900
SURE = {"confidence": 0.8, "warmup_groups": 0, "singles": 4}


def keys(count: int, shard: int = 0) -> np.ndarray:
    found = np.zeros(count, KEY_ROW)
    found["shard"], found["row"] = shard, np.arange(count)
    return found


def test_a_share_of_the_images_is_drawn_by_their_keys_alone():
    draw = Draw(0.1, 0, ("aa", "bb"))
    drawn = draw.some(keys(20_000))
    assert 0.09 < drawn.mean() < 0.11
    half = drawn[:10_000].mean(), drawn[10_000:].mean(), drawn[::2].mean(), drawn[1::2].mean()
    assert max(half) - min(half) < 0.02, "all over the shard"
    assert (draw.some(keys(500)) == drawn[:500]).all()
    assert (draw.some(keys(20_000, shard=1)) == Draw(0.1, 0, ("bb",)).some(keys(20_000))).all()


@pytest.mark.parametrize("other", [Draw(0.1, 1, ("aa",)), Draw(0.1, 0, ("ab",))])
def test_another_seed_or_shard_draws_others(other):
    both = other.some(keys(20_000)) & Draw(0.1, 0, ("aa",)).some(keys(20_000))
    assert 0.005 < both.mean() < 0.015


def test_a_larger_share_draws_the_same_and_more():
    few, more = (Draw(share, 3, ("aa",)).some(keys(5000)) for share in (0.01, 0.3))
    assert few.any()
    assert not (few & ~more).any()
    assert Draw(1.0, 3, ("aa",)).some(keys(5000)).all()
    assert not Draw(0.0, 0, ()).some(keys(5)).any()


@pytest.fixture
def answers(tmp_path: Path) -> str:
    """The collage is sure of six cells of nine, and of these one is not what the single says."""
    cells = np.arange(IMAGES) % CELLS
    np.savez(
        tmp_path / "answers.npz",
        version=1,
        side=3,
        labels=np.zeros(IMAGES, int),
        class_names=np.array(["a", "b"]),
        single_class=np.zeros(IMAGES, int),
        single_score=np.ones(IMAGES),
        collage_class=(cells == 8).astype(int),
        collage_score=np.where(cells < 3, 0.5, 0.9),
        collage_absent=cells < 0,
    )
    return str(tmp_path / "answers.npz")


def simulated(answers: str, **settings) -> SimulatedJob:
    return SimulatedJob(
        RunSettings(scheme="cascade", **{**SURE, **settings}), IMAGES, FREE, answers=answers
    )


def test_every_drawn_answer_that_counts_is_audited_and_no_answer_changes(answers: str):
    plain = simulate_in_memory(simulated(answers, audit=0.0)).images
    run = simulate_in_memory(simulated(answers, audit=0.5))
    images = run.images[np.argsort(run.images["row"])]
    plain = plain[np.argsort(plain["row"])]
    accepted = images["source"] == SOURCE_CODE["collage"]
    assert accepted.sum() == IMAGES * 6 // 9
    assert (images["predicted"] == plain["predicted"]).all()
    drawn = Draw(0.5, 0, ("simulated",)).some(images)
    collaged = images["audited"] == AUDITS.index("done")
    assert (collaged == drawn).all(), "unsure ones have been asked about twice, too"
    assert (images["other"][accepted & drawn] == 0).all(), "what the single network said"
    unsure = drawn & ~accepted
    assert (images["other_score"][unsure] == 0.5).all(), "what the collage said"
    assert (images["other_score"][~drawn] == 0).all()


def test_the_summary_tells_the_agreement_and_its_interval(answers: str):
    run = simulate_in_memory(simulated(answers, audit=1.0))
    audit = summarise(run)["audit"]
    assert (audit["audited"], audit["differing"], audit["not_done"]) == (600, 100, 0)
    assert audit["agreement"] == pytest.approx(5 / 6)
    low, high = audit["ci95"]
    assert 0.77 < low < 5 / 6 < high < 0.89
    by_class = {of["name"]: (of["audited"], of["differing"]) for of in audit["by_class"]}
    assert by_class == {"a": (500, 0), "b": (100, 100)}
    assert "agreement: 83.33 % of 600 accepted answers" in render_summary(summarise(run), width=200)


def test_of_few_audits_no_class_is_told_and_without_any_nothing(answers: str):
    audit = summarise(simulate_in_memory(simulated(answers, audit=0.1)))["audit"]
    assert 0 < audit["audited"] < 500
    assert audit["by_class"] is None
    plain = summarise(simulate_in_memory(simulated(answers, audit=0.0)))
    assert plain["audit"] is None
    assert "agreement" not in render_summary(plain)


def test_an_audit_that_could_not_be_had_is_counted_apart(answers: str):
    run = simulate_in_memory(simulated(answers, audit=1.0))
    accepted = np.flatnonzero(run.images["source"] == SOURCE_CODE["collage"])
    run.images["audited"][accepted[:50]] = AUDITS.index("failed")
    run.images["other"][accepted[:50]] = 0
    lost = int((run.images["predicted"][accepted[:50]] == 1).sum())
    audit = summarise(run)["audit"]
    assert (audit["audited"], audit["differing"], audit["not_done"]) == (550, 100 - lost, 50)
    assert "; 50 could not be done" in render_summary(summarise(run), width=200)
    run.images["audited"][accepted] = AUDITS.index("failed")
    audit = summarise(run)["audit"]
    assert (audit["audited"], audit["not_done"], audit["ci95"]) == (0, 600, [0, 1])
    assert "none of 600 audits could be done" in render_summary(summarise(run), width=200)


@pytest.mark.parametrize("first", ["collage", "stage1"])
def test_audits_are_counted_over_all_that_is_read_of_a_run(answers: str, first: str):
    run = simulate_in_memory(simulated(answers, audit=1.0))
    run.images["source"][run.images["source"] == SOURCE_CODE["collage"]] = SOURCE_CODE[first]
    in_two = ImageTally(run)
    in_two.add(run.images[:300])
    in_two.add(run.images[300:])
    assert in_two.audits == {0: [500, 0], 1: [100, 100]}


def test_an_audit_costs_work_that_resolves_nothing(answers: str):
    busy = [
        summarise(simulate_in_memory(simulated(answers, audit=share)))["price"]["wasted_work"]
        for share in (0.0, 0.5)
    ]
    assert busy[0] < busy[1]


def test_only_a_cascade_is_audited():
    assert RunSettings(scheme="cascade", **SURE).audit_share == 0.01
    assert RunSettings(scheme="collage").audit_share == 0.0


def stored(answers: str, out: Path) -> Path:
    job = simulated(answers, audit=0.5)
    simulate_to(job.settings, out, IMAGES, FREE, answers)
    return out


def spoil(out: Path, change) -> None:
    """Change rows of images where they lie, as a defect of the writer would."""
    from collage_mpi.results import parts
    from collage_mpi.results.columns import Form, rows_of
    from collage_mpi.rows import IMAGES as TABLE

    for part in parts.list_parts(out / "parts"):
        if part.table == TABLE.name:
            rows = rows_of(part.path, TABLE)
            change(rows)
            part.path.unlink()
            parts.write_part(part.path, TABLE, rows, Form(["f"] * 9))


def test_verify_knows_which_answers_should_have_been_audited(answers: str, tmp_path: Path):
    run = stored(answers, tmp_path / "run")
    assert verify_run(run).ok

    def forget(rows: np.ndarray) -> None:
        rows["audited"][np.flatnonzero(rows["audited"] & (rows["source"] == 1))[:1]] = 0

    spoil(run, forget)
    assert any("without their audit" in problem for problem in verify_run(run).problems)


def test_verify_misses_no_audit_of_an_image_that_no_collage_answered(answers: str, tmp_path: Path):
    run = stored(answers, tmp_path / "run")

    def sent_alone(rows: np.ndarray) -> None:
        for column in ("audited", "other", "other_score"):
            rows[column][rows["source"] == SOURCE_CODE["single"]] = 0

    spoil(run, sent_alone)
    assert verify_run(run).ok


def test_a_run_says_what_it_drew(answers: str, tmp_path: Path):
    job = simulated(answers, audit=0.5)
    simulate_to(job.settings, tmp_path / "run", IMAGES, FREE, answers)
    run = read_results(tmp_path / "run")
    drawn = draw_of(run.manifest).some(run.images)
    assert (drawn == Draw(0.5, 0, ("simulated",)).some(run.images)).all()
    run.manifest.pop("audit")
    assert not draw_of(run.manifest).some(run.images).any(), "as in runs without audits"


@pytest.mark.parametrize("other", [-1, 2])
def test_verify_finds_an_audit_of_no_class(answers: str, tmp_path: Path, other: int):
    run = stored(answers, tmp_path / "run")

    def damage(rows: np.ndarray) -> None:
        rows["other"][rows["audited"] == 1] = other

    spoil(run, damage)
    problems = verify_run(run).problems
    assert any("other outside the 2 classes" in problem for problem in problems)


def test_verify_takes_an_audit_that_could_not_be_had(answers: str, tmp_path: Path):
    run = stored(answers, tmp_path / "run")

    def give_up(rows: np.ndarray) -> None:
        rows["audited"][rows["audited"] == 1] = AUDITS.index("failed")

    spoil(run, give_up)
    assert verify_run(run).ok


def test_verify_tells_of_a_shard_that_is_none_of_the_run(answers: str, tmp_path: Path):
    run = stored(answers, tmp_path / "run")

    def move(rows: np.ndarray) -> None:
        rows["shard"][:1] = 9

    spoil(run, move)
    assert any("outside the input" in problem for problem in verify_run(run).problems)


def test_what_was_not_audited_is_exported_as_absent(answers: str, tmp_path: Path):
    run = stored(answers, tmp_path / "run")
    files = export_run(read_results(run), "csv", tmp_path / "out")
    head, *lines = files[0].read_text().splitlines()
    place = {name: head.split(",").index(name) for name in ("audited", "other", "other_score")}
    found = {tuple(bool(line.split(",")[i]) for i in place.values()) for line in lines}
    assert found == {(True, True, True), (False, False, False)}
