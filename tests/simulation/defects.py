"""Defects put in on purpose, one by one: which seed finds each, or which of drawn ones and mutants.

    python -m tests.simulation.defects [--seeds 1000] [--from 0] [NAME ...]
    python -m tests.simulation.defects --planted [--seeds 400] [NAME ...]
    python -m tests.simulation.defects --mutants 60 --draw 7 --seeds 300

A defect lies in a fork that loads the package anew, with another text; no file changes. Seeds whose
case cannot reach its lines are left out. They are those of `play --wide`.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

from tests.simulation import world
from tests.simulation.case import Case, draw, wider
from tests.simulation.play import made_inputs, play, with_fixed_order

PACKAGE = Path(__file__).parents[2] / "collage_mpi"
PLANTED = Path(__file__).with_name("planted.toml")  # drawn by a seed
MUTATED = ("job", "mpi", "results", "faults")


def any_case(case: Case) -> bool:
    return True


def of_teams(case: Case) -> bool:
    return case.teams > 1


def of_sessions(case: Case) -> bool:
    return len(case.sessions) > 1 or bool(case.sessions[0].faults)


def team_lost(case: Case) -> bool:
    """A coordinator is lost, or silent: else no lease goes to another team."""
    faults = [fault for session in case.sessions for fault in session.faults]
    lost = ("kill rank", "exit rank", "stop rank", "delay rank", "stall messages")
    return case.teams > 1 and any(each.rank < 0 and each.kind in lost for each in faults)


def taken_over(case: Case) -> bool:
    """Nobody else writes there in other cases."""
    faults = [fault for session in case.sessions for fault in session.faults]
    return any(fault.kind == "take-over" and fault.for_ms > 30_000 for fault in faults)


def cut(case: Case) -> bool:
    """A session ends at a rename that it has not synced."""
    return any(fault.kind == "cut" for session in case.sessions for fault in session.faults)


def measured_batch(case: Case) -> bool:
    return case.measures_batch


def teams_measure_batch(case: Case) -> bool:
    return case.measures_batch and case.teams > 1


@dataclass(frozen=True)
class Defect:
    """A change of sources.

    Attributes:
        changes: (file of the package, text that is there once, what takes its place).
        reaches: whether a case may run these lines.
    """

    name: str
    changes: tuple[tuple[str, str, str], ...]
    reaches: Callable[[Case], bool] = any_case

    def texts(self) -> dict[str, str]:
        """Module -> its source with the defect."""
        found: dict[str, str] = {}
        for file, old, new in self.changes:
            module = "collage_mpi." + file.removesuffix(".py").replace("/", ".")
            text = found.get(module) or (PACKAGE / file).read_text()
            assert text.count(old) == 1, f"{self.name}: {text.count(old)} times in {file}: {old}"
            found[module] = text.replace(old, new)
        return found


def of_agree(case: Case) -> bool:
    return "--agree" in case.work


def of_first(case: Case) -> bool:
    """Some answers are of a network that errs."""
    return not case.exact


DEFECTS = (
    Defect(
        "an unsure answer counts",
        (
            (
                "scheduler/policies.py",
                "if score.score >= self.confidence:",
                "if score.score >= self.confidence - 0.1:",
            ),
        ),
        of_first,
    ),
    Defect(
        "a threshold is chosen by a bound that does not hold",
        (("results/agreement.py", "if below > 1 - level:", "if below > level:"),),
        of_agree,
    ),
    Defect(
        "a team that was told to pause is never told again",
        (
            (
                "job/lead.py",
                "team.lease, team.paused = lease.number, False",
                "team.lease = lease.number",
            ),
        ),
        team_lost,
    ),
    Defect(
        "a part of an epoch that is over counts",
        (
            (
                "scheduler/leases.py",
                "if by is None or by.epoch != epoch:\n            return False",
                "if by is None:\n            return True",
            ),
            (
                "job/lead.py",
                "        if team.gone is not None:\n            return\n        if part.table",
                "        if part.table",
            ),
            ("job/lead.py", "            self._others.transport.drop(team.rank)\n", ""),
        ),
        team_lost,
    ),
    Defect(
        "a file is renamed before its content is on the disk",
        (("system/files.py", "            os.fsync(file.fileno())\n", ""),),
    ),
    Defect(
        "a name is not on the disk when the next thing is done",
        (
            (
                "system/files.py",
                "        raise\n    sync_directory(path.parent)\n",
                "        raise\n",
            ),
        ),
    ),
    Defect(
        "what an ended session did not sync is relied on",
        (
            (
                "results/folder.py",
                "        if folder.is_dir():\n            sync",
                "        if False:\n            sync",
            ),
        ),
        cut,
    ),
    Defect(
        "a run is marked that lacks rows",
        (
            (
                "results/writer.py",
                "            if status in COMPLETE:  # last",
                "            if True:  # last",
            ),
        ),
        of_sessions,
    ),
    Defect(
        "an answer counts twice after a resume",
        (
            (
                "results/writer.py",
                "done = run.done_keys(answered=retry_errors)\n            if",
                "done = run.done_keys(answered=retry_errors)[:-1]\n            if",
            ),
        ),
        of_sessions,
    ),
    Defect(
        "a buffer is used again before its send is complete",
        (
            (
                "mpi/transport.py",
                "complete = send.request.Test()",
                "complete = send.request.Test() or True",
            ),
        ),
    ),
    Defect(
        "the claim is not looked at before a rename",
        (
            (
                "system/files.py",
                "        if check is not None:\n            check()\n        try:\n",
                "        try:\n",
            ),
        ),
        taken_over,
    ),
    Defect(
        "a rank's loss during the start is not noticed",
        (("job/worker_group.py", "        wait.missing.intersection_update(self.present)\n", ""),),
        of_sessions,
    ),
    Defect(
        "an image of a lost rank is not sent again",
        (
            (
                "scheduler/retries.py",
                "            self.redo(task, why)\n        self.ranks",
                "        self.ranks",
            ),
        ),
        of_sessions,
    ),
    Defect(
        "the scheduler is not told that the input pauses",
        (
            (
                "job/coordinator.py",
                "        if paused and not self._paused:\n",
                "        if False:\n",
            ),
        ),
        of_teams,
    ),
    Defect(
        "a rank gets a message beyond its credit",
        (("scheduler/state.py", "self.credit = credit\n", "self.credit = credit + 1\n"),),
    ),
    Defect(
        "a part's name is used twice",
        (
            (
                "results/row_sink.py",
                "self._numbers[table.name] += 1",
                "self._numbers[table.name] = 1",
            ),
        ),
    ),
    Defect(
        "leases are not of the batch that was chosen",
        (
            (
                "job/run.py",
                "            lead.group_by(build_lease_book(plan, self.lacking))\n",
                "",
            ),
        ),
        teams_measure_batch,
    ),
    Defect(
        "the batch that was chosen is not told",
        (
            (
                "job/run.py",
                "        if costs.chosen is not None and not self.ask.brief:\n",
                "        if False:\n",
            ),
        ),
        measured_batch,
    ),
    Defect(
        "a whole batch counts as one group",
        (
            (
                "job/session.py",
                "settings.warm_groups, asked.whole_batches)",
                "settings.warm_groups, False)",
            ),
        ),
    ),
)


REACHES: dict[str, Callable[[Case], bool]] = {
    "any_case": any_case,
    "of_teams": of_teams,
    "of_sessions": of_sessions,
    "team_lost": team_lost,
    "of_agree": of_agree,
    "agreed_by_teams": lambda case: of_agree(case) and of_teams(case),
    "agreed_again": lambda case: of_agree(case) and of_sessions(case),
    "lingers": lambda case: "--linger-ms" in case.work,
    "keeps": lambda case: "--save" in case.work or "--top-k" in case.work,
    "of_limit": lambda case: case.limited,
    "fails": lambda case: any(
        fault.kind == "failing network" for session in case.sessions for fault in session.faults
    ),
}


def planted() -> list[Defect]:
    """Those that were drawn, in the order drawn."""
    found: list[dict[str, Any]] = tomllib.loads(PLANTED.read_text())["planted"]
    return [
        Defect(
            f"{each['number']:02d} {each['kind']}: {each['duty']}",
            tuple((file, old, new) for file, old, new in each["changes"]),
            REACHES[each["reaches"]],
        )
        for each in found
    ]


def case_of(seed: int) -> Case:
    """The case by which defects are sought."""
    return wider(draw(seed))


def first_found(
    texts: dict[str, str], seeds: Iterable[int], reaches: Callable[[Case], bool], inputs: Path
) -> tuple[int, str] | None:
    """The first of these seeds that a defect breaks, and how; None if none does."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        _play_until(texts, [s for s in seeds if reaches(case_of(s))], inputs, writing)
    os.close(writing)
    with os.fdopen(reading) as answers:
        told = answers.read().splitlines()
    os.waitpid(child, 0)
    last = told[-1] if told else "at the first import"
    if last == "none":
        return None
    seed, _, how = last.partition(" ")
    return int(seed) if seed.isdigit() else -1, how or "it ends the simulation, or loops for ever"


def _play_until(texts: dict[str, str], seeds: Iterable[int], inputs: Path, writing: int) -> None:
    """In a process of its own, which it ends: a line at the begin of each seed, one at the end."""
    silent = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silent, 2)
    try:
        world.install(texts)
        for seed in seeds:
            os.write(writing, f"{seed}\n".encode())
            faults = play(case_of(seed), inputs).faults
            if faults:
                os.write(writing, f"{seed} {' '.join(faults[0].split())[-160:]}\n".encode())
                os._exit(0)
        os.write(writing, b"none\n")
    finally:
        os._exit(0)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help="words of the defects' names; by default all")
    parser.add_argument("--seeds", type=int, default=1000, help="how many are tried")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first of them")
    parser.add_argument("--planted", action="store_true", help="those of planted.toml instead")
    parser.add_argument("--mutants", type=int, help="so many mutants instead")
    parser.add_argument("--draw", type=int, default=1, help="seed by which mutants are drawn")
    told = parser.parse_args()
    with_fixed_order("tests.simulation.defects")
    with made_inputs() as inputs:
        if first_found({}, (), any_case, inputs) is not None:  # else each counts as found
            raise SystemExit("the package does not load in the simulation, without any defect")
        if told.mutants:
            return _judge_mutants(told, inputs)
        missed, seeds = 0, range(told.first, told.first + told.seeds)
        words = told.names or [""]
        defects = planted() if told.planted else DEFECTS
        played = [each for each in defects if any(word in each.name for word in words)]
        for defect in played:
            found = first_found(defect.texts(), seeds, defect.reaches, inputs)
            missed += found is None
            print(f"{defect.name}: {_told(found)}", flush=True)
        print(f"{len(played) - missed} of {len(played)} found by {told.seeds} seeds")
    return bool(missed)


def _told(found: tuple[int, str] | None) -> str:
    return "not found" if found is None else f"seed {found[0]}: {found[1]}"


def _judge_mutants(told: argparse.Namespace, inputs: Path) -> int:
    sys.path.insert(0, str(PACKAGE.parent / "tests" / "mutation"))
    from mutants import drawn, mutants_of

    root, texts, parts = PACKAGE.parent, {}, {}
    for part in MUTATED:
        files = sorted((PACKAGE / part).rglob("*.py"))
        texts |= {str(file.relative_to(root)): file.read_bytes() for file in files}
        names = [str(file.relative_to(root)) for file in files]
        parts[part] = [mutant for name in names for mutant in mutants_of(name, texts[name])]
    sample = drawn(parts, told.mutants, told.draw, lambda m: m.compiles(texts[m.file]))
    killed, seeds = 0, range(told.first, told.first + told.seeds)
    for mutant in sample[: told.mutants]:
        module = mutant.file.removesuffix(".py").replace("/", ".")
        changed = {module: mutant.applied(texts[mutant.file]).decode()}
        found = first_found(changed, seeds, any_case, inputs)
        killed += found is not None
        change = " ".join(mutant.diff(texts[mutant.file]).split())
        print(f"{mutant.key} {mutant.file}:{mutant.line} {change}\n    {_told(found)}", flush=True)
    print(f"{killed} of {told.mutants} found by {told.seeds} seeds, drawn by {told.draw}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
