"""Renders the report: one HTML file, with its styles and scripts, about one or several runs.

The template escapes everything that comes from data. By the page's Content-Security-Policy only its
two scripts can run, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any

from collage_mpi import __version__
from collage_mpi.errors import UsageError
from collage_mpi.report import tables
from collage_mpi.report.charts import chart_data, excerpt, worst_images
from collage_mpi.results.comparison import compare, notes
from collage_mpi.results.manifest import readable
from collage_mpi.results.reader import Run, distinct, open_run
from collage_mpi.results.render import points, warnings
from collage_mpi.results.summary import summarise
from collage_mpi.results.tally import Tally
from collage_mpi.results.verify import VerifyReport, verify_run
from collage_mpi.system.files import write_atomic, writing
from collage_mpi.system.printable import printable

MOST_RUNS = 12  # each takes about 100 KB with its pictures
PICTURES = 24  # worst images on the page, shared by all runs
SHARES = {"p99": "99 % of its groups", "p95": "95 % of its groups", "p50": "half of its groups"}
ALIKE = 0.005  # points of accuracy; a smaller difference is shown as 0.00
SCRIPTS = ("uPlot.iife.min.js", "charts.js")

Json = dict[str, Any]
Side = tuple[str, Json, Json]  # name of a run, its entry of `compare`, its latency per group


def write_report(
    folders: Sequence[Path], out: Path, shards: Sequence[Path | str] | None = None
) -> None:
    """Read, verify and summarise runs, and write the page.

    Args:
        folders: of 1 to MOST_RUNS runs. The first run is the baseline.
        out: the file to write.
        shards: files and folders that hold the runs' shards now; by default the recorded paths.

    Raises:
        UsageError: there are no runs, or too many.
        EnvironmentFault: a run or `shards` does not exist, or the file cannot be written.
        DataFault: a run is damaged.
    """
    if not 1 <= len(folders) <= MOST_RUNS:
        raise UsageError(f"{len(folders)} runs; a report shows 1 to {MOST_RUNS}")
    text = render_page(folders, shards)
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(out, (text.encode(),))


def render_page(folders: Sequence[Path], shards: Sequence[Path | str] | None = None) -> str:
    """The page as text. Raises as `write_report`."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("collage_mpi.report", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # As in a terminal, no control character can turn or hide text. Markup is not changed.
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    assets = files("collage_mpi.report") / "assets"
    scripts = [(assets / name).read_text("utf-8") for name in SCRIPTS]
    return environment.get_template("page.html").render(
        **_contents(folders, shards),
        styles=[(assets / name).read_text("utf-8") for name in ("uPlot.min.css", "page.css")],
        scripts=scripts,
        policy=" ".join(f"'sha256-{_sha256(script)}'" for script in scripts),
        version=__version__,
        made=datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
    )


def _names(runs: Sequence[Run]) -> list[str]:
    """The names of the runs on the page. They contain the mode only if the runs' modes differ."""
    alike = len({run.mode for run in runs}) == 1
    names = [run.scheme if alike else run.label for run in runs]
    return [readable(name) for name in distinct(names, runs)]


def _short(names: Sequence[str]) -> list[str]:
    schemes = [name.split(",")[0] for name in names]
    return schemes if len(set(schemes)) == len(schemes) else list(names)


def _pace(mode: str) -> str:
    words = {
        "carry": "a rank that is still busy stays busy when the next group comes",
        "drain": "the next group comes when all ranks are idle",
    }
    known = words.get(mode.replace(",", " ").split()[0])
    return f"{known} ({mode})" if known else mode


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _contents(folders: Sequence[Path], shards: Sequence[Path | str] | None) -> Json:
    runs = [open_run(folder) for folder in folders]
    tallies = [Tally(run) for run in runs]
    summaries = [summarise(run, tally) for run, tally in zip(runs, tallies, strict=True)]
    names = _names(runs)
    entries = [
        {**entry, "name": name}
        for entry, name in zip(compare(runs, summaries=summaries), names, strict=True)
    ]
    proofs = [verify_run(run.path, run) for run in runs]
    parts = []
    for run, tally, summary, entry, name, proof in zip(
        runs, tallies, summaries, entries, names, proofs, strict=True
    ):
        some, by_team = excerpt(run, tally), bool(entry["unlike_teams"])
        slow, rank_tables = tables.ranks(some, tally.tasks.answered)
        parts.append(
            {
                "name": name,
                "run": summary["run"],
                "summary": summary,
                "pace": _pace(run.mode),
                "world": [member for member in run.manifest.get("world") or () if member],
                "simulated": "simulated" in run.manifest,
                "proof": proof,
                "warnings": readable(warnings(summary)),
                "chart": chart_data(some, printable(name), by_team=by_team, tally=tally),
                "slow": slow,
                "ranks": rank_tables,
                "confusion": tables.confusions(run),
                "worst": worst_images(run, shards, max(6, PICTURES // len(runs))),
                "errors": tables.errors(run, summary),
            }
        )
    return {
        "runs": parts,
        "verdicts": verdicts(_short(names), entries, summaries, proofs),
        "notes": notes(entries),
        "compared": tables.compared(entries, summaries),
        "accuracies": tables.accuracies(summaries, names),
        "settings": tables.settings(runs, names),
        "origins": tables.origins(runs, names),
        "charts": [part["chart"] for part in parts],
    }


# ---- the sentence that opens the page ---------------------------------------


@dataclass(frozen=True)
class Verdict:
    """A sentence of the verdict. `good`: every run in it is complete, verified and valid."""

    text: str
    good: bool


def verdicts(
    names: Sequence[str],
    entries: Sequence[Json],
    summaries: Sequence[Json],
    proofs: Sequence[VerifyReport],
) -> list[Verdict]:
    """The result of a single run; or, for several runs, each further run compared with the first.

    Args:
        names: short names of the runs.
        entries: from `compare`.
        summaries: from `summarise`.
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
    """Sentences that say why a run's figures should not be trusted."""
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
    """The gain in the highest percentile that both runs have."""
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
