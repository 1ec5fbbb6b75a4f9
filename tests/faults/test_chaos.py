"""Chaos rounds: real jobs, faults at random points, resumed until complete, rows exact.

`pytest -m faults --chaos-rounds 100 --chaos-seed 7` runs more of them; a seed gives the same
plans again. `python tests/faults/chaos.py` does the same without pytest.
"""

from __future__ import annotations

import chaos
import pytest
from chaos import RECORD, plan_of, read_verdicts, report_failure, run_suite, table
from chaos_plan import TEAM_WEIGHTS, WEIGHTS, Round
from chaos_round import Verdict, run_round

pytestmark = pytest.mark.faults
VERDICTS: list[Verdict] = []


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test a round."""
    if "plan" in metafunc.fixturenames:
        rounds, seed = (metafunc.config.getoption(f"chaos_{n}") for n in ("rounds", "seed"))
        plans = [plan_of(seed, number) for number in range(rounds)]
        plans += [plan_of(seed, number, teams=True) for number in range(rounds)]
        ids = [f"seed{p.seed}-round{p.number}-teams{p.teams}" for p in plans]
        metafunc.parametrize("plan", plans, ids=ids)


@pytest.fixture(scope="module")
def summary():
    """The table, printed after the last round: `pytest -s`, or of a failed round."""
    yield VERDICTS
    if VERDICTS:
        print(f"\n{table(VERDICTS)}")


@pytest.mark.mpi
@pytest.mark.timeout(480)
def test_chaos_round(plan: Round, tmp_path, summary: list[Verdict]) -> None:
    verdict = run_round(plan, tmp_path / "round")
    summary.append(verdict)
    assert not verdict.wrong, report_failure(verdict, tmp_path / "round")


def test_a_seed_gives_the_same_plans_again() -> None:
    plans = [plan_of(5, number) for number in range(50)]
    assert plans == [plan_of(5, number) for number in range(50)]
    assert plans != [plan_of(6, number) for number in range(50)]
    kinds = set().union(*(plan.kinds for plan in plans))
    assert kinds >= set(WEIGHTS) - {"stop worker"}
    several = [plan_of(5, number, teams=True) for number in range(50)]
    assert several == [plan_of(5, number, teams=True) for number in range(50)]
    assert set().union(*(plan.kinds for plan in several)) >= set(TEAM_WEIGHTS)
    assert sum("kill coordinator" in plan.kinds for plan in several) > 50 / 3


def test_rounds_with_a_verdict_are_not_run_again(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def run(plan: Round, folder, *, keep: bool) -> Verdict:
        ran.append((plan.number, plan.teams > 1))
        return Verdict(plan, codes=[6, 0], done={*plan.kinds}, doubles=1, strangers=7)

    monkeypatch.setattr(chaos, "run_round", run)
    run_suite(5, [0, 1], tmp_path)
    run_suite(5, [1, 2], tmp_path)
    run_suite(5, [2], tmp_path, teams=True)
    assert ran == [(0, False), (1, False), (2, False), (2, True)]
    found = read_verdicts([tmp_path / RECORD])
    assert [v.plan for v in found] == [
        *(plan_of(5, n) for n in range(3)),
        plan_of(5, 2, teams=True),
    ]
    assert "| rounds in all | 4 (4) | 0 | 4 | 0 | 0 | 0 | 0 |\n\n8 sessions" in table(found)
    assert "28 connections" in table(found)
