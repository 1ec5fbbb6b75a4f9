"""`collage-mpi advise TRACE|RUN`: simulates the schemes and recommends one for the given service
times.
"""

from __future__ import annotations

import contextlib
import json
import math
import shlex
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from collage_mpi.commands.parser import Command
from collage_mpi.errors import CollageError, DataFault, UsageError
from collage_mpi.kinds import BACKUP, COLLAGE, NETWORKS, SINGLE
from collage_mpi.models import describe
from collage_mpi.scheduler.rank_speed import WINDOW
from collage_mpi.scheduler.schemes import scheme_class
from collage_mpi.settings.flags import Arguments, switch
from collage_mpi.simulation.costs import costs_of
from collage_mpi.system.fields import REQUIRED, setting, with_shipped
from collage_mpi.system.printable import say
from collage_mpi.system.progress import advancing
from collage_mpi.system.table import Column, Table, Value, to_text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from collage_mpi.simulation.advice import Candidate, Question
    from collage_mpi.workload.trace import Tail

Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class AdviseArguments(Arguments):
    """The arguments of advise."""

    source: str = setting(
        REQUIRED,
        "service times: a trace (.npy from `trace record`, in seconds) or the folder of a finished "
        "run",
        metavar="TRACE|RUN",
        positional=True,
        shipped=True,
    )
    side: int | None = setting(
        None, "cells along an edge of the collage", unset="as in the run, or 3"
    )
    spare: int = setting(
        2, "number of ranks in addition to the single ranks", metavar="M", at_least=1
    )
    cost_ratio: float | None = setting(
        None,
        "service time of the collage network divided by that of the single network",
        unset="as in the run, or 1",
    )
    batch_cost: float | None = setting(
        None,
        "time of each further image of a batch divided by that of the first one",
        unset="as in the run, or 1, with which a batch saves nothing",
    )
    answers: str | None = setting(
        None,
        "file of `evaluate --save-answers`, from which the accuracy of each scheme is computed",
        metavar="FILE",
        shipped=True,
    )
    collage: str | None = setting(
        None,
        "weights of the collage network whose answers --answers holds; scheme cascade takes the "
        "threshold in this file",
        unset="the run's network",
        metavar="FILE",
        shipped=True,
    )
    rate: float | None = setting(
        None,
        "simulate an open loop, in which R images a second arrive",
        unset="a closed loop, in which the next group enters when a rank has nothing to do",
        metavar="R",
        above=0,
    )
    points: float = setting(0.2, "largest loss of accuracy to accept, in points")
    placements: int = setting(12, "how many times the ranks are drawn from the trace", at_least=1)
    groups: int | None = setting(
        None,
        "groups simulated for each placement",
        unset="as many as a rank has service times, from 33 to 200",
        at_least=3,
    )
    json: bool = switch("print everything as JSON")


def execute(args: AdviseArguments) -> int:
    """Simulate the schemes; print the table and the recommendation. Returns 0."""
    from collage_mpi.simulation.advice import candidates, simulated
    from collage_mpi.workload.trace import measure_tail

    question = _question(args)
    schemes = len(candidates(question, question.load_answers()))
    with advancing(schemes, "simulating", unit="schemes", bar=False) as advance:
        found = simulated(question, advance)
    tail = measure_tail(question.times_s)
    if args.json:
        print(json.dumps(_as_json(args, question, found, tail), indent=1))
    else:
        _print_all(args, question, found, tail)
    return 0


def _chosen(
    args: AdviseArguments, question: Question, found: list[Candidate]
) -> tuple[Candidate, Candidate | None]:
    """The candidate with the lowest P99, and the one with the most images/s (closed loop only)."""
    from collage_mpi.simulation.advice import Candidate, best_of

    most = 1 + question.side**2 + question.spare
    served = best_of(found, most, args.points, Candidate.more) if args.rate is None else None
    return best_of(found, most, args.points), served


def _as_json(args: AdviseArguments, question: Question, found: list[Candidate], tail: Tail) -> Json:
    best, served = _chosen(args, question, found)
    spell = tail.spell if math.isfinite(tail.spell) else None  # inf: longer than the trace
    return {
        "candidates": [{**asdict(one), "points_lost": one.points_lost(found[0])} for one in found],
        "best": asdict(best),
        "command": _command(best, question.side, args.collage),
        "most_images": served and asdict(served),
        "tail": {"weight": tail.weight, "spell_requests": spell, "slow_share": tail.share},
    }


def _print_all(
    args: AdviseArguments, question: Question, found: list[Candidate], tail: Tail
) -> None:
    best, served = _chosen(args, question, found)
    _print_few(question)
    _print_tail(tail)
    _print_table(found, args.rate)
    print(f"Simulated: {question.placements} placements of {question.groups:,} groups each.")
    if not any(one.flags["scheme"] == "cascade" for one in found):
        print(
            "Scheme cascade is not compared: it needs --answers FILE, of evaluate --save-answers, "
            "and a threshold: --collage W names a network that has one."
        )
    _print_best(found, best, args.points)
    say(f"\n{_command(best, question.side, args.collage)}")
    if served is not None and served not in (found[0], best):
        plain = found[0]
        say(
            f"\nFor the most images/s choose {served.label}: {served.images_per_s:.4g} instead "
            f"of {plain.images_per_s:.4g} images/s ({served.more(plain):.2f} x), "
            f"{_price(served, plain)}."
        )
        say(f"\n{_command(served, question.side, args.collage)}")


def _question(args: AdviseArguments) -> Question:
    from collage_mpi.simulation.advice import Question, groups_of
    from collage_mpi.workload.trace import load_trace

    path = Path(args.source)
    known: Json = _of_run(path) if path.is_dir() else {"times_s": load_trace(args.source)}
    said = {name: getattr(args, name) for name in ("side", "cost_ratio", "batch_cost")}
    known |= {name: value for name, value in said.items() if value is not None}
    if args.collage is not None:
        known["confidence"] = _threshold(args.collage, known.get("side", Question.side))
    return Question(
        **known,
        spare=args.spare,
        answers=args.answers,
        placements=args.placements,
        groups=args.groups or groups_of(known["times_s"], args.placements),
        rate=args.rate,
    )


def _threshold(weights: str, side: int) -> float:
    """The score from which on the answers of a collage network count.

    Raises:
        UsageError: the file has no threshold, or the network has another side.
        EnvironmentFault, DataFault: as `describe`.
    """
    info = describe(weights, COLLAGE)
    if info is None or info.accept is None:
        raise UsageError(
            f"--collage {weights} has no threshold, which scheme cascade needs: "
            "`collage-mpi weights threshold` finds one and writes it into the file"
        )
    if info.side != side:
        raise UsageError(
            f"--collage {weights} has side {info.side}, but the schemes are compared at side "
            f"{side}: give --side {info.side} or another network"
        )
    return info.accept.confidence


def _of_run(path: Path) -> Json:
    """The arguments of `Question` that a run gives: the service times of its ranks, and its costs
    and settings as far as they are known.
    """
    import numpy as np

    from collage_mpi.results import read_results
    from collage_mpi.results.slow_ranks import record_trace, service_times_ns
    from collage_mpi.simulation.advice import Question

    run = read_results(path)
    batch = run.manifest.get("batch_costs") or {}
    told = {**run.manifest, "batch_cost": batch.get(BACKUP, batch.get(SINGLE))}
    names = ("side", "cost_ratio", "batch_cost")
    known = {name: told[name] for name in names if told.get(name) is not None}
    with contextlib.suppress(DataFault):  # a simulated or interrupted run has no costs
        known["costs"] = costs_of(run)
    each = sorted(service_times_ns(run).items())  # divided by the batch: times of one input
    rows = [ns / 1e9 for (_, _, kind), ns in each if kind == SINGLE]
    if not rows:
        record_trace([run])  # raises an error that says what is missing
    collage = (run.manifest.get("settings") or {}).get("collage")
    if collage:
        with contextlib.suppress(CollageError):  # the file may no longer be there
            side = known.get("side", Question.side)
            known["confidence"] = _threshold(with_shipped(str(collage)), side)
    # With pull dispatch a slow rank has fewer times. Its times are repeated, so that every rank has
    # the same weight.
    longest = max(map(len, rows))
    return {**known, "times_s": np.stack([np.resize(row, longest) for row in rows])}


def _print_few(question: Question) -> None:
    """Print a warning if there are too few service times to show a tail."""
    from collage_mpi.results.statistics import support_needed

    machines, requests = question.times_s.shape
    needed = support_needed(0.99)
    if machines * requests < needed:
        print(
            f"ROUGH: {machines:,} ranks with {requests:,} service times each, but a P99 needs "
            f"{needed} in all. Rare delays are missing from this advice. Record a run of more "
            "images.\n"
        )


def _print_tail(tail: Tail) -> None:
    lasts = "longer than the trace"
    if math.isfinite(tail.spell):
        lasts = f"{tail.spell:.3g} requests, {tail.memories:.2g} x the {WINDOW} that the scheduler "
        lasts += "remembers of each rank"
    print(
        f"Service times: P99 is {tail.weight:.3g} x the median, a slow spell lasts {lasts}.\n"
        "Which schemes gain at such values: analysis/reports/does-it-work.md\n"
    )


def _print_table(found: list[Candidate], rate: float | None) -> None:
    plain = found[0]
    figures = [Column(name, ".4g") for name in ("P50, ms", "P99, ms")]
    figures += [Column("gain", ".2f", " x"), Column("images/s", ".4g")]
    figures += [Column("points lost", ".2f"), Column("wasted", ".1%")]
    rows: list[Sequence[Value]] = []
    for one in found:
        lost = one.points_lost(plain)
        told = (one.p50_ms, one.p99_ms, one.sooner(plain) or None, one.images_per_s)
        rows.append((one.label, one.ranks, *told, "?" if lost is None else lost, one.wasted))
    print(to_text(Table(("scheme", "ranks", *figures), rows)))
    whose = "Latency of a group."
    if rate is not None:
        whose = f"Open loop: {rate:g} images a second arrive. Latency of an image."
    gain = "Gain: P99 of the first line divided by P99 of this line."
    print(f"{whose} {gain} Ranks: including rank 0.")
    if rate is not None:
        print("If a scheme serves fewer images/s than arrive, its latency grows with the job.")
    if any(one.points_lost(plain) is None for one in found):
        print("?: unknown accuracy. Use evaluate --save-answers FILE, then --answers FILE here.")


def _print_best(found: list[Candidate], best: Candidate, points: float) -> None:
    plain = found[0]
    if best is plain:
        say(
            f"\nChoose scheme none: no other scheme gains 5 % and loses at most {points:g} points "
            "of accuracy."
        )
    else:
        say(
            f"\nChoose {best.label}: P99 {best.p99_ms:.4g} instead of {plain.p99_ms:.4g} ms "
            f"({best.sooner(plain):.2f} x), {_price(best, plain)}."
        )


def _price(best: Candidate, plain: Candidate) -> str:
    ranks = f"on {best.ranks} ranks instead of {plain.ranks}"
    lost = f"{best.points_lost(plain):.2f} points of accuracy"
    return f"{ranks}, for {lost} and {best.wasted:.0%} wasted work"


def _command(best: Candidate, side: int, collage: str | None) -> str:
    said = {"side": side, **best.flags}
    flags = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in said.items())
    needs = scheme_class(best.flags["scheme"]).needs
    named = {COLLAGE: shlex.quote(collage or "W")}
    networks = " ".join(f"--{kind} {named.get(kind, 'W')}" for kind in NETWORKS if kind in needs)
    return f"collage-mpi launch -n {best.ranks} -- run --shards ... {networks} {flags} --out DIR"


COMMAND = Command(
    execute,
    AdviseArguments,
    epilog="Every scheme is simulated with the same service times. The table shows each scheme's "
    "P99 latency (of a group, with --rate of an image), the gain over scheme none, images a "
    "second, and its price: ranks, wasted work and accuracy (docs/simulator.md).",
)
