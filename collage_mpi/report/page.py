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
from collage_mpi.results.manifest import readable, recorded_settings
from collage_mpi.results.reader import Run, distinct, open_run
from collage_mpi.results.render import points, warnings
from collage_mpi.results.summary import summarise
from collage_mpi.results.tally import Tally
from collage_mpi.results.verify import VerifyReport, verify_run
from collage_mpi.settings.flags import words_of
from collage_mpi.system.files import write_atomic, writing
from collage_mpi.system.printable import printable

MOST_RUNS = 12  # each takes about 100 KB with its pictures
PICTURES = 24  # worst images on the page, shared by all runs
SHARES = {"p99": "99 % of its images", "p95": "95 % of its images", "p50": "half of its images"}
ALIKE = 0.005  # points of accuracy; a smaller difference is shown as 0.00
LEVEL = 1.01  # a smaller ratio of images/s or of rank-seconds is told as equal
# Scheme -> what it does, in words of somebody who has not read the documentation.
PLAIN = {
    "none": "single network only",
    "replicate": "copies of every image",
    "hedge": "copies of late images",
    "collage": "collages beside single images",
    "collage-only": "collages only",
    "cascade": "collages first",
    "cascade-batch": "quick network first",
}
MOST_DIFFERING = 3  # settings in the name of a run
LONGEST_WORD = 40  # of these settings; a longer one does not help the reader
SCRIPTS = ("uPlot.iife.min.js", "charts.js")

Json = dict[str, Any]
Side = tuple[str, Json, Json]  # name of a run, its entry of `compare`, its latency per image


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
    """The names of the runs on the page: what the scheme does, and, for runs of one scheme, the
    settings in which they differ."""
    schemes = [run.manifest.get("scheme") or "unknown scheme" for run in runs]
    plain = [PLAIN.get(scheme, scheme) for scheme in schemes]
    alike = [
        [other for other, same in zip(runs, schemes, strict=True) if same == scheme]
        for scheme in schemes
    ]
    names = [
        ", ".join([name, *_differing(run, others)])
        for name, run, others in zip(plain, runs, alike, strict=True)
    ]
    return [readable(name) for name in distinct(names, runs)]


def _differing(run: Run, others: Sequence[Run]) -> list[str]:
    """The flags of the settings in which runs differ, as `run` has them; [] if these are many or
    long, since the folder is then a better name."""
    recorded = [recorded_settings(other.manifest) for other in others]
    keys = sorted({key for one in recorded for key in one})
    unlike = [key for key in keys if any(one.get(key) != recorded[0].get(key) for one in recorded)]
    own = recorded_settings(run.manifest)
    words = [" ".join(words_of({key: own.get(key)})).replace("=", " ", 1) for key in unlike]
    short = len(words) <= MOST_DIFFERING and max(map(len, words), default=0) <= LONGEST_WORD
    return words if short else []


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
        "verdicts": verdicts(names, entries, summaries, proofs),
        "open_loop": any(entry["open_loop"] for entry in entries),
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
        names: of the runs.
        entries: from `compare`.
        summaries: from `summarise`.
        proofs: from `verify_run`.
    """
    runs = [f'The run "{name}"' for name in names]
    made = " simulated," if any("simulated" in entry["mode"] for entry in entries) else ""
    flaws = [_flaws(*each) for each in zip(runs, summaries, proofs, strict=True)]
    if len(runs) == 1:
        alone = _alone(entries[0], summaries[0]["latency"]["image"])
        return [_judged(alone, flaws[0], f"the run is{made}")]
    ends = [summary["latency"]["image"] for summary in summaries]
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
    arrivals, found = summary["arrivals"] or {}, []
    if not proof.ok:
        found.append(f"{run} is {proof.status.replace('_', ' ')}.")
    if arrivals.get("overloaded"):
        found.append(f"{run} got more images than its ranks could answer.")
    return found


def _alone(entry: Json, latency: Json) -> str:
    price, accuracy = entry["price"], entry["accuracy"]
    said = []
    if entry["open_loop"]:
        known = [name for name in SHARES if latency[f"{name}_ms"] is not None]
        said = ["answered too few images to tell a latency"]
        if known:
            said = [f"answered {SHARES[known[0]]} within {latency[f'{known[0]}_ms']:,.1f} ms"]
    if price["images_per_s"] is not None:
        said += [f"classified {price['images_per_s']:,.1f} images a second"]
    if price["rank_seconds_per_image"] is not None:
        said += [f"took {price['rank_seconds_per_image']:.3g} rank-seconds an image"]
    if accuracy is not None:
        said += [f"classified {points(accuracy)} of all images rightly"]
    return _listed("The run", [*said, f"used {price['ranks']:,} ranks"])


def _listed(run: str, said: Sequence[str]) -> str:
    *most, last = said
    return f"{run} {', '.join(most)}, and {last}" if most else f"{run} {last}"


def _beside(this: Side, first: Side) -> str:
    """What a run gains beside the first one. In a job whose images all wait from the start these
    are images/s and rank-seconds; where images arrive at a rate it is the latency."""
    (run, entry, own), (other, base, theirs) = this, first
    other = other.replace("The", "the", 1)
    if entry["open_loop"] != base["open_loop"]:
        return (
            f"{run} and {other} cannot be compared: in one of them images arrive at a given rate, "
            "in the other all images wait from the start"
        )
    gains = [_sooner(own, theirs, other)] if entry["open_loop"] else _more(entry, base, other)
    said = [*gains, _answers(entry["paired"])]
    wasted, before = (each["price"]["wasted_work"] for each in (entry, base))
    if wasted is not None and before is not None:
        shares = (f"{100 * share:.0f} %" for share in (wasted, before))
        said.append("wasted {} of its work {}".format(*_than_the_other(*shares)))
    ranks = (f"{each['price']['ranks']:,}" for each in (entry, base))
    said.append("used {} ranks {}".format(*_than_the_other(*ranks)))
    if _unequal(entry["paired"]):
        return _listed(run.replace("The", "At unequal answers the", 1), said)
    return _listed(run, said)


def _than_the_other(own: str, base: str) -> tuple[str, str]:
    return own, "like the other" if own == base else f"instead of {base}"


def _more(entry: Json, base: Json, other: str) -> list[str]:
    """The ratios of images/s and of rank-seconds an image to those of the first run."""
    (rate, before), (cost, price) = (
        (entry["price"][key], base["price"][key])
        for key in ("images_per_s", "rank_seconds_per_image")
    )
    if not rate or not before or not cost or not price:
        return [f"had too few images beside the warm-up to compare its speed with {other}"]
    how = "as many" if max(rate / before, before / rate) < LEVEL else ""
    how = how or f"{'only ' * (rate < before)}{rate / before:.2f} times as many"
    return [
        f"classified {how} images a second as {other} ({rate:,.1f} instead of {before:,.1f})",
        "took {} rank-seconds an image {}".format(*_than_the_other(f"{cost:.3g}", f"{price:.3g}")),
    ]


def _sooner(own: Json, theirs: Json, other: str) -> str:
    """The gain in the highest percentile of the latency that both runs have."""
    both = [n for n in SHARES if own[f"{n}_ms"] is not None and theirs[f"{n}_ms"] is not None]
    if not both:
        return f"answered too few images to compare its latency with {other}"
    name = both[0]
    own_ms, base_ms = own[f"{name}_ms"], theirs[f"{name}_ms"]
    ends, others = own.get(f"{name}_ci95_ms"), theirs.get(f"{name}_ci95_ms")
    instead = f"{own_ms:,.1f} ms instead of {base_ms:,.1f} ms"
    if ends and others and ends[0] <= others[1] and others[0] <= ends[1]:
        how = "about as soon as"
        instead += ", a difference within chance"
    elif own_ms < base_ms:
        how = f"{base_ms / own_ms:.2f} times sooner than"
    else:
        how = f"{own_ms / base_ms:.2f} times later than"
    return f"answered {SHARES[name]} {how} {other} ({instead})"


def _answers(paired: Json) -> str:
    """Whether the answers of two runs are equal: by their labels, or else by their classes."""
    if not paired["n"]:
        if paired["same"] is None:
            return "gave answers that cannot be compared"
        return f"gave {points(paired['same'])} of the images the same class"
    difference = paired["difference"]
    if abs(100 * difference) < ALIKE:
        return "was as often right"
    how = "lost" if difference < 0 else "gained"
    chance = "" if _unequal(paired) else ", a difference within chance"
    return f"{how} {abs(100 * difference):.2f} points of accuracy{chance}"


def _unequal(paired: Json) -> bool:
    """Whether the accuracy of two runs on the same images differs by more than chance (95 %)."""
    if not paired["n"]:
        return False
    only, difference = paired["only_this"] + paired["only_baseline"], paired["difference"]
    error = max(0.0, only / paired["n"] - difference**2) ** 0.5 / paired["n"] ** 0.5
    return bool(abs(difference) > max(1.96 * error, ALIKE / 100))
