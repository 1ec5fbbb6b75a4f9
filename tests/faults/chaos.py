"""The fault suite by hand: chaos rounds, and a table of what they met and what they cost.

Usage: python tests/faults/chaos.py --rounds 100 --seed 1 --folder /tmp/chaos
       python tests/faults/chaos.py --seed 1 --only 17 --folder /tmp/again     one round again
       python tests/faults/chaos.py --table /tmp/*/verdicts.jsonl              all of them, added up

Under the environment whose MPI is to be tried. A failed round prints its plan, its
commands and the line that repeats it, and its folder is kept. What became of a round is a line
of `verdicts.jsonl` in the folder: there it is not run again, so that days add up.
"""

from __future__ import annotations

import argparse
import dataclasses
import shutil
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[2]))

from chaos_plan import SCHEMES, TEAM_WEIGHTS, WEIGHTS, Round, make_round, with_teams
from chaos_round import Verdict, run_round

from collage_mpi.settings.run_settings import RunSettings

RECORD = "verdicts.jsonl"


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
    """Markdown, a line a kind of fault: rounds it was planned in (met its victim) by MPI, ..."""
    families = sorted({v.mpi for v in verdicts})
    sums = ("missing", "doubles", "hangs", "leftovers", "segments")
    head = ("fault", *(f"{name}: rounds (met)" for name in families), "rows lost")
    head += ("rows doubled", "hangs", "processes left", "segments left", "failed")
    rows = [head, ("---",) * len(head)]
    for kind in [*WEIGHTS, *TEAM_WEIGHTS, "rounds in all"]:
        every = kind == "rounds in all"
        own = [v for v in verdicts if every or kind in v.plan.kinds]
        met = [v for v in own if (v.done if every else kind in v.done)]
        cells = [
            f"{sum(v.mpi == name for v in own)} ({sum(v.mpi == name for v in met)})"
            for name in families
        ]
        cells += [str(sum(getattr(v, name) for v in own)) for name in sums]
        rows.append((kind, *cells, str(sum(bool(v.wrong) for v in own))))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    codes = Counter(code for v in verdicts for code in v.codes)
    lines += ["", f"{codes.total()} sessions, exit codes: {dict(sorted(codes.items()))}"]
    lines.append(f"{sum(v.survived for v in verdicts)} sessions lost ranks and completed")
    lines.append(f"{sum(v.plan.teams > 1 for v in verdicts)} rounds had teams")
    lines.append(f"{sum(v.strangers for v in verdicts)} connections to the jobs' ports")
    return "\n".join(lines)


def read_verdicts(paths: list[Path]) -> list[Verdict]:
    """The lines of files that `run_suite` has written."""
    return [Verdict.from_line(line) for path in paths for line in path.read_text().splitlines()]


def run_suite(
    seed: int, numbers: list[int], folder: Path, *, keep: bool = False, teams: bool = False
) -> None:
    """Rounds in turn, but for those of which `folder` has a verdict; says how each went."""
    record = folder / RECORD
    record.touch()
    over = {(v.plan.seed, v.plan.number, v.plan.teams > 1) for v in read_verdicts([record])}
    for number in numbers:
        if (seed, number, teams) in over:
            continue
        plan = plan_of(seed, number, teams=teams)
        place = folder / f"round-{seed}-{number}{'-teams' if teams else ''}"
        shutil.rmtree(place, ignore_errors=True)  # of a round that was cut off
        verdict = run_round(plan, place, keep=keep)
        with record.open("a") as lines:
            lines.write(verdict.as_line() + "\n")
        word = "FAILED" if verdict.wrong else "ok"
        print(
            f"round {number}: {word}, {verdict.seconds:.1f} s, {plan.on_loss}, codes "
            f"{verdict.codes}, {', '.join(sorted(plan.kinds))}; {plan.work}, {plan.teams} team(s)",
            flush=True,
        )
        if verdict.wrong:
            print(report_failure(verdict, place), flush=True)


def main() -> int:
    """Run, print the table; 1 if any round failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", type=int, help="one round, its folder kept")
    parser.add_argument("--folder", type=Path, help="a folder of one MPI's rounds")
    parser.add_argument("--teams", action="store_true", help="worlds of two or three teams")
    parser.add_argument("--table", type=Path, nargs="+", metavar="FILE", help="only the table")
    args = parser.parse_args()
    if args.folder is None and args.table is None:
        parser.error("--folder or --table is needed")
    if args.table is None:
        args.folder.mkdir(parents=True, exist_ok=True)
        numbers = list(range(args.first, args.first + args.rounds))
        numbers = numbers if args.only is None else [args.only]
        keep = args.only is not None
        run_suite(args.seed, numbers, args.folder, keep=keep, teams=args.teams)
    verdicts = read_verdicts(args.table or [args.folder / RECORD])
    print(table(verdicts))
    return int(any(verdict.wrong for verdict in verdicts))


if __name__ == "__main__":
    sys.exit(main())
