"""The sentence that opens the report: the gain in latency, the price, the number of ranks, and
whether the runs are valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from collage_mpi.results.render import points
from collage_mpi.results.verify import VerifyReport

SHARES = {"p99": "99 % of its groups", "p95": "95 % of its groups", "p50": "half of its groups"}
ALIKE = 0.005  # points of accuracy: what rounds to 0.00

Json = dict[str, Any]
Side = tuple[str, Json, Json]  # what a run is called, its entry, its latency per group


@dataclass(frozen=True)
class Verdict:
    """A sentence; `good` if every run that it is about is complete, verified and valid."""

    text: str
    good: bool


def verdicts(
    names: Sequence[str],
    entries: Sequence[Json],
    summaries: Sequence[Json],
    proofs: Sequence[VerifyReport],
) -> list[Verdict]:
    """For a single run its result; for several runs the result of each compared with the first.

    Args:
        names: of the runs, as short as possible.
        entries: from `compare`.
        proofs: from `verify_run`.
    """
    runs = [f'The "{name}" run' for name in names]
    made = " simulated," if any("simulated" in entry["mode"] for entry in entries) else ""
    flaws = [_flaws(*each) for each in zip(runs, summaries, proofs, strict=True)]
    if len(runs) == 1:
        return [_judged(_alone(entries[0]), flaws[0], f"the run is{made}")]
    ends = [summary["latency"]["group"] for summary in summaries]
    return [
        _judged(
            _beside((runs[i], entries[i], ends[i]), (runs[0], entries[0], ends[0])),
            flaws[0] + flaws[i],
            f"both runs are{made}",
        )
        for i in range(1, len(runs))
    ]


def _judged(said: str, flaws: Sequence[str], who: str) -> Verdict:
    if flaws:
        return Verdict(f"NOT VALID: {' '.join(flaws)} {said}.", good=False)
    return Verdict(f"{said}; {who} complete, verified and valid.", good=True)


def _flaws(run: str, summary: Json, proof: VerifyReport) -> list[str]:
    """Why a run's figures should not be trusted, one sentence each."""
    validity, arrivals, found = summary["validity"], summary["arrivals"] or {}, []
    if not proof.ok:
        found.append(f"{run} is {proof.status.replace('_', ' ')}.")
    if validity["valid"] is False:
        found.append(
            f"{run} has times that do not count: {points(validity['share'])} of its tasks took "
            "over 10 % longer than was injected, and 1 % may."
        )
    if arrivals.get("overloaded"):
        found.append(f"{run} got more images than its ranks could answer.")
    return found


def _alone(entry: Json) -> str:
    price = entry["price"]
    done = f"The run has too few groups to tell a latency ({entry['groups']:,})"
    known = [name for name in SHARES if entry[f"{name}_ms"] is not None]
    if known:
        done = f"The run had {SHARES[known[0]]} done within {entry[f'{known[0]}_ms']:,.1f} ms"
    rate, accuracy = price["images_per_s"], entry["accuracy"]
    pace = "" if rate is None else f", classified {rate:,.1f} images a second"
    right = "" if accuracy is None else f", {points(accuracy)} of all images rightly"
    return f"{done}{pace}{right}, and used {price['ranks']:,} ranks"


def _beside(this: Side, first: Side) -> str:
    (run, entry, _), (_, base, _) = this, first
    said = [f"{run} {_sooner(this, first)}", _accuracy(entry["paired"]["difference"])]
    wasted, before = (each["price"]["wasted_work"] for each in (entry, base))
    if wasted is not None and before is not None:
        shares = (f"{100 * share:.0f} %" for share in (wasted, before))
        said.append("wasted {} of its work {}".format(*_than_the_other(*shares)))
    ranks = (f"{each['price']['ranks']:,}" for each in (entry, base))
    said.append("and used {} ranks {}".format(*_than_the_other(*ranks)))
    return ", ".join(said)


def _than_the_other(own: str, base: str) -> tuple[str, str]:
    return own, "like the other" if own == base else f"instead of {base}"


def _sooner(this: Side, first: Side) -> str:
    """The gain in the highest percentile that both runs support."""
    (_, entry, own_ends), (other, base, base_ends) = this, first
    other = other.replace("The", "the", 1)
    both = [n for n in SHARES if entry[f"{n}_ms"] is not None and base[f"{n}_ms"] is not None]
    if not both:
        counts = f"{entry['groups']:,} and {base['groups']:,}"
        return f"and {other} have too few groups to compare latencies ({counts})"
    name = both[0]
    own_ms, base_ms = entry[f"{name}_ms"], base[f"{name}_ms"]
    ends, others = own_ends[f"{name}_ci95_ms"], base_ends[f"{name}_ci95_ms"]
    instead = f"{own_ms:,.1f} ms instead of {base_ms:,.1f} ms"
    if ends and others and ends[0] <= others[1] and others[0] <= ends[1]:
        how = "about as soon as"
        instead += ", a difference within chance"
    elif own_ms < base_ms:
        how = f"{base_ms / own_ms:.2f} times sooner than"
    else:
        how = f"{own_ms / base_ms:.2f} times later than"
    return f"had {SHARES[name]} done {how} {other} ({instead})"


def _accuracy(difference: float | None) -> str:
    if difference is None:
        return "has no accuracy that could be compared"
    if abs(100 * difference) < ALIKE:
        return "had the same accuracy"
    how = "lost" if difference < 0 else "gained"
    return f"{how} {abs(100 * difference):.2f} points of accuracy"
