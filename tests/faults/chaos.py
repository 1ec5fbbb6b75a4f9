"""The fault suite by hand: chaos rounds, and a table of what they met and what they cost.

Usage: python tests/faults/chaos.py --rounds 100 --seed 1 --folder /tmp/chaos
       python tests/faults/chaos.py --seed 1 --only 17 --folder /tmp/again     one round again

Under the environment whose MPI is to be tried. A failed round prints its plan, its
commands and the line that repeats it, and its folder is kept.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

from chaos_plan import SCHEMES, TEAM_WEIGHTS, WEIGHTS, Round, make_round, with_teams
from chaos_round import Verdict, run_round

from collage_mpi.settings.run_settings import RunSettings


def modes() -> tuple[str, ...]:
    """What --on-rank-loss may be here; `plain` where there is no such setting."""
    names = {spec.name for spec in dataclasses.fields(RunSettings)}
    return ("continue", "continue", "abort") if "on_rank_loss" in names else ("plain",)


def kinds() -> tuple[str, ...]:
    """The kinds of faults to draw; a rank that stops for good needs somebody who notices."""
    return tuple(k for k in WEIGHTS if k != "stop worker" or modes() != ("plain",))


def plan_of(seed: int, number: int, *, teams: bool = False) -> Round:
    """The round's plan; `teams`: in a world of several."""
    plan = make_round(seed, number, modes(), kinds(), tuple(SCHEMES))
    return with_teams(plan) if teams else plan


def report_failure(verdict: Verdict, folder: Path) -> str:
    """Everything needed to see it again."""
    plan = verdict.plan
    lines = [f"round {plan.number} of seed {plan.seed} ({plan.on_loss}) FAILED; see {folder}"]
    lines += [f"  wrong: {text}" for text in verdict.wrong[:8]]
    lines += [f"  codes: {verdict.codes}"] + [f"  $ {command}" for command in verdict.commands]
    again = f"python tests/faults/chaos.py --seed {plan.seed} --only {plan.number}"
    again += " --teams" if plan.teams > 1 else ""
    return "\n".join([*lines, f"  again: {again} --folder {folder}-again"])


def table(verdicts: list[Verdict]) -> str:
    """A line a kind of fault: rounds it was planned in, met its victim, rows lost, ..."""
    head = ("fault", "rounds", "met", "lost", "doubled", "hangs", "left", "failed")
    rows = [head]
    for kind in [*WEIGHTS, *TEAM_WEIGHTS, "all"]:
        own = [v for v in verdicts if kind == "all" or kind in v.plan.kinds]
        if own:
            met = sum(kind in v.done if kind != "all" else bool(v.done) for v in own)
            sums = [sum(getattr(v, name) for v in own) for name in
                    ("missing", "doubles", "hangs", "leftovers")]  # fmt: skip
            failed = sum(bool(v.wrong) for v in own)
            rows.append(tuple(map(str, (kind, len(own), met, *sums, failed))))
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = ["  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in
             enumerate(zip(row, widths, strict=True))) for row in rows]  # fmt: skip
    codes = Counter(code for v in verdicts for code in v.codes)
    sessions = sum(len(v.codes) for v in verdicts)
    lines.append(f"{sessions} sessions, exit codes: {dict(sorted(codes.items()))}")
    lines.append(f"{sum(v.survived for v in verdicts)} sessions lost ranks and completed")
    return "\n".join(lines)


def run_suite(
    seed: int, numbers: list[int], folder: Path, *, keep: bool = False, teams: bool = False
) -> list[Verdict]:
    """Rounds one after the other; says how each went."""
    verdicts = []
    for number in numbers:
        plan = plan_of(seed, number, teams=teams)
        place = folder / f"round-{seed}-{number}"
        verdict = run_round(plan, place, keep=keep)
        verdicts.append(verdict)
        word = "FAILED" if verdict.wrong else "ok"
        print(
            f"round {number}: {word}, {verdict.seconds:.1f} s, {plan.on_loss}, codes "
            f"{verdict.codes}, {', '.join(sorted(plan.kinds))}; {plan.work}, {plan.teams} team(s)",
            flush=True,
        )
        if verdict.wrong:
            print(report_failure(verdict, place), flush=True)
    return verdicts


def main() -> int:
    """Run, print the table; 1 if any round failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="one round, its folder kept")
    parser.add_argument("--folder", type=Path, required=True, help="a new folder")
    parser.add_argument("--teams", action="store_true", help="worlds of two or three teams")
    args = parser.parse_args()
    args.folder.mkdir(parents=True)
    numbers = list(range(args.first, args.first + args.rounds))
    numbers = numbers if args.only is None else [args.only]
    verdicts = run_suite(
        args.seed, numbers, args.folder, keep=args.only is not None, teams=args.teams
    )
    print(table(verdicts))
    return int(any(verdict.wrong for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
