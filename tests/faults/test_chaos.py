"""Chaos rounds: real jobs, faults at random points, resumed until complete, rows exact.

`pytest -m faults --chaos-rounds 100 --chaos-seed 7` runs more of them; a seed gives the same
plans again. `python tests/faults/chaos.py` does the same without pytest.
"""

from __future__ import annotations

import pytest
from chaos import plan_of, report_failure, table
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
