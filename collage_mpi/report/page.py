"""Renders the report: one HTML file, with its styles and scripts, about one or several runs.

The template escapes everything that comes from data. By the page's Content-Security-Policy only its
two scripts can run, and nothing is loaded from elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi import __version__
from collage_mpi.errors import UsageError
from collage_mpi.report import tables
from collage_mpi.report.tables import name_or_number
from collage_mpi.results.export import from_shards, image_names
from collage_mpi.results.manifest import (
    began_ns,
    clock_offsets_ns,
    launch_of,
    recorded_settings,
)
from collage_mpi.results.reader import Results, Run, distinct, open_run
from collage_mpi.results.render import compare, notes, points, warnings
from collage_mpi.results.statistics import PERCENTILES, percentile_name
from collage_mpi.results.summary import GroupTally, Tally, summarise
from collage_mpi.results.timeline import STRAGGLER, Timeline, look_of, looks, make_timeline
from collage_mpi.results.vectors import extras_of
from collage_mpi.results.verify import VerifyReport, verify_run
from collage_mpi.rows import GROUPS, IMAGES, SOURCES, TASKS, TableLayout
from collage_mpi.settings.flags import words_of
from collage_mpi.system.files import write_atomic, writing
from collage_mpi.system.printable import counted, printable, readable

STEPS = 1200  # points of a curve: half at even shares, half at even logarithms of the tail
SLICES = 300  # points of a chart over time
GROUPS_SHOWN = 9  # in the timeline, around the slowest group
RANKS_SHOWN = 40
BARS = 1500  # in the timeline, about
ABOUT = 9  # groups before and after the slowest group that an excerpt keeps completely

Json = dict[str, Any]


def chart_data(
    run: Results, name: str, *, by_team: bool = False, tally: Tally | None = None
) -> Json:
    """The data of all charts of a run, ready for JSON. A chart without data is None.

    Args:
        run: the whole run, or an excerpt.
        name: of the run.
        by_team: also draw lines over time for the fastest and the slowest team.
        tally: of the whole run, if it is known.
    """
    tally = tally or Tally(run)
    measured = tally.groups.latency_ms.n > 0
    return {
        "name": name,
        "curve": _curve(tally.groups) if measured else None,
        "time": _over_time(run, by_team) if measured else None,
        "timeline": _timeline(run, tally) if measured and len(run.tasks) else None,
    }


def _curve(groups: GroupTally) -> Json:
    """The distribution of group latencies: steps (ms, share done) and percentiles."""
    sample = groups.latency_ms
    x_ms, below = sample.steps()
    share = below / sample.n
    keep = kept_steps(share, sample.n)
    found = {q: sample.percentile(q, len(groups.samples)) for q in PERCENTILES}
    return {
        "n": sample.n,
        "ms": _digits(x_ms[keep]),
        "share": _digits(share[keep], 8),
        "marks": [
            {"name": percentile_name(q).upper(), "q": q, "ms": float(f"{ms:.6g}")}
            for q, ms in found.items()
            if ms is not None
        ],
    }


def kept_steps(share: np.ndarray, n: int) -> np.ndarray:
    """Indices of the steps to draw, dense in the body and in the tail, including both ends.

    Args:
        share: (k,) ascending shares of values at or below each step; the last is 1.0.
        n: number of values.
    """
    if len(share) <= STEPS:
        return np.arange(len(share))
    body = np.linspace(0.0, 1.0, STEPS // 2)
    tail = 1.0 - np.logspace(0.0, -np.log10(n), STEPS // 2)
    wanted = np.searchsorted(share, np.concatenate([body, tail]) - 1e-12)
    return np.unique(np.clip(wanted, 0, len(share) - 1))


def _over_time(run: Results, by_team: bool) -> Json:
    """The median and the slowest group of at most SLICES slices of the run.

    Sessions follow each other on the time axis, but the teams of a launch share it.
    """
    groups = np.sort(run.measured_groups, order=("session", "t0_ns", "group"))
    launches, began = launch_of(run.manifest), began_ns(run.manifest)
    t0_ns = groups["t0_ns"].astype(np.int64)
    launch = groups["session"].astype(np.int64)
    for session in began:
        mine = groups["session"] == session
        t0_ns[mine] += began[session]
        launch[mine] = launches.get(session, session)
    begins_s, end_ns = [], 0
    for each in np.unique(launch):
        mine = launch == each
        t0_ns[mine] += end_ns - t0_ns[mine].min()
        begins_s.append(end_ns / 1e9)
        end_ns = int((t0_ns[mine] + groups["latency_ns"][mine]).max())
    order = np.argsort(t0_ns, kind="stable")
    groups, t0_ns, team = groups[order], t0_ns[order], (groups["session"] - launch)[order]
    slices = np.array_split(np.arange(len(groups)), min(SLICES, len(groups)))
    latency_ms = groups["latency_ns"] / 1e6
    return {
        "s": _digits([t0_ns[part].mean() / 1e9 for part in slices], 7),
        "median": _digits([np.median(latency_ms[part]) for part in slices]),
        "slowest": _digits([latency_ms[part].max() for part in slices]),
        "each": len(slices[0]) * run.every,
        "sessions": _digits(begins_s[1:], 7),
        "teams": [
            [f"team {each}", [_median(latency_ms[part][team[part] == each]) for part in slices]]
            for each in (_unlike(latency_ms, team) if by_team else ())
        ],
    }


def _timeline(run: Results, tally: Tally) -> Json:
    slowest = tally.groups.slowest
    assert slowest is not None
    session, group = int(slowest["session"]), int(slowest["group"])
    tasks_each = tally.inventory.all("tasks") / max(1, tally.groups.n)
    half = int(max(0, min(GROUPS_SHOWN, BARS / tasks_each) - 1) // 2)
    timeline = make_timeline(run, group - half, group + half, session)
    ranks = _ranks_shown(timeline)
    row = {rank: i for i, rank in enumerate(ranks)}
    begin_ns = timeline.begin_ns

    def ms(at_ns: int) -> float:
        return round((at_ns - begin_ns) / 1e6, 4)

    shown = looks(timeline)
    number = {look: i for i, look in enumerate(shown)}
    bars = [bar for bar in timeline.bars if bar.rank in row and bar.end_ns >= begin_ns]
    return {
        "group": group,
        "session": session,
        "first": timeline.releases[0].group,
        "last": timeline.releases[-1].group,
        "ranks": [timeline.ranks[rank] for rank in ranks],
        "of_ranks": len(timeline.ranks),
        "end": ms(timeline.end_ns),
        "straggler": STRAGGLER,
        "releases": [[release.group, ms(release.t0_ns)] for release in timeline.releases],
        "looks": [{"colour": colour, "name": name} for colour, name in shown.values()],
        # row, look, group, sent, start, end (ms), lane, lanes, whether a straggler
        "bars": [
            [
                *(row[bar.rank], number[look_of(bar)], bar.group),
                *(ms(bar.sent_ns), ms(bar.start_ns), ms(bar.end_ns)),
                *(bar.lane, bar.lanes, int(bar.straggler)),
            ]
            for bar in bars
        ],
    }


def _ranks_shown(timeline: Timeline) -> list[int]:
    longest = dict.fromkeys(timeline.ranks, 0)
    for bar in timeline.bars:
        longest[bar.rank] = max(longest[bar.rank], bar.end_ns - bar.start_ns)
    return sorted(sorted(longest, key=lambda rank: -longest[rank])[:RANKS_SHOWN])


def _unlike(latency_ms: np.ndarray, team: np.ndarray) -> list[int]:
    found = sorted(np.unique(team).tolist(), key=lambda each: np.median(latency_ms[team == each]))
    return [found[0], found[-1]]


def _median(values: np.ndarray) -> float | None:
    return float(f"{np.median(values):.6g}") if len(values) else None


def _digits(values: Any, digits: int = 6) -> list[float]:
    """Round to this many significant digits, which halves the size of the page."""
    return [float(f"{value:.{digits}g}") for value in np.asarray(values, float).tolist()]


# ---- of a long run ----------------------------------------------------------


def excerpt(run: Run, tally: Tally) -> Results:
    """Read groups and tasks of a run, without images. If the run is long, only every k-th part is
    read completely, where k is `every` of the result.

    Raises:
        EnvironmentFault, DataFault: a part cannot be read, or is damaged.
    """
    rows, bound = run.rows_of(TASKS), run.bound
    every = 1 if bound is None or rows <= bound else -(-2 * rows // bound)

    def kept(table: TableLayout, wanted: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        chunks = enumerate(run.chunks(table))
        some = (rows if i % every == 0 else rows[wanted(rows)] for i, rows in chunks)
        return np.concatenate([np.empty(0, table.dtype), *some])

    groups = kept(GROUPS, lambda rows: _telling(rows, tally))
    spans_ns = _about(run, groups, tally) if every > 1 else {}
    tasks = kept(TASKS, lambda rows: _within(rows, spans_ns))
    images = np.empty(0, IMAGES.dtype)
    return Results(run.path, run.manifest, images, groups, tasks, run.complete, every=every)


def _telling(groups: np.ndarray, tally: Tally) -> np.ndarray:
    """(n,) bool: the slowest measured group of a part, and groups near the slowest of the run."""
    telling = _near(groups, tally)
    measured = np.flatnonzero(~groups["warmup"])
    if len(measured):
        telling[measured[int(np.argmax(groups["latency_ns"][measured]))]] = True
    return telling


def _near(groups: np.ndarray, tally: Tally) -> np.ndarray:
    slowest = tally.groups.slowest
    if slowest is None:
        return np.zeros(len(groups), bool)
    off = np.abs(groups["group"] - slowest["group"])
    return (groups["session"] == slowest["session"]) & (off <= ABOUT)


def _about(run: Run, groups: np.ndarray, tally: Tally) -> dict[int, tuple[int, int]]:
    """Session -> (begin, end), in ns on the session's clock, of the time whose tasks are kept."""
    near = groups[_near(groups, tally)]
    if not len(near):
        return {}
    session = int(near["session"][0])
    first_ns = int(near["t0_ns"].min())
    last_ns = int((near["t0_ns"] + near["latency_ns"]).max())
    later_ns = clock_offsets_ns(run.manifest, session).items()
    return {each: (first_ns - later, last_ns - later) for each, later in later_ns}


def _within(tasks: np.ndarray, spans_ns: dict[int, tuple[int, int]]) -> np.ndarray:
    within = np.zeros(len(tasks), bool)
    for session, (first_ns, last_ns) in spans_ns.items():
        mine = (tasks["session"] == session) & (tasks["done_ns"] >= first_ns)
        within |= mine & (tasks["sent_ns"] <= last_ns)
    return within


EDGE_PX = 96
SMALL_PX = 48  # up to this size PNG is smaller than JPEG


def worst_images(run: Run, shards: Sequence[Path | str] | None, most: int) -> Json | None:
    """The wrong answers with the highest scores; without labels, the answers with the lowest
    scores.

    Args:
        shards: files and folders that hold the run's shards now; by default the recorded paths.
        most: largest number of images.

    Returns:
        heading; pictures, each with uri (its thumbnail; None if its shard cannot be read), title
        and lines of text; notes about images that could not be read. None if no answer is wrong,
        the images were simulated, or the run maps a function.

    Raises:
        EnvironmentFault: `shards` names nothing that exists.
    """
    if not extras_of(run.manifest).classifies:
        return None
    labelled = any(rows["has_label"].any() for rows in run.chunks(IMAGES))
    chosen, n = _chosen(run, labelled, most)
    if not n:
        return None
    heading = "Wrong, with the highest scores" if labelled else "Lowest scores"
    heading += f": {len(chosen)} of {n:,} {'wrong answers' if labelled else 'answers'}"
    none = np.empty(0)
    names = image_names(Results(run.path, run.manifest, chosen, none, none, run.complete), shards)
    pixels, notes = _pixels(run, chosen, shards)
    pictures = []
    for i, row in enumerate(chosen):
        place = f"{names.shard_name[i]}, row {int(row['row']):,}"
        title = name_or_number(run, int(row["predicted"]))
        title = f"{name_or_number(run, int(row['label']))} taken for {title}" if labelled else title
        named = () if names.id[i] is np.ma.masked else (str(names.id[i]),)
        sure = f"score {float(row['score']):.3f}, {SOURCES[int(row['source'])]}"
        uri = _thumbnail(pixels[i]) if i in pixels else None
        pictures.append({"uri": uri, "title": title, "lines": (sure, *named, place)})
    return {"heading": heading, "pictures": pictures, "notes": notes}


def _chosen(run: Run, labelled: bool, most: int) -> tuple[np.ndarray, int]:
    """The rows of these images, of IMAGE_ROW, at most `most`; and how many there are in all."""
    entries = run.manifest["shards"]
    real = np.array([bool(entry.get("path")) for entry in entries] or [False])
    chosen, n = np.empty(0, IMAGES.dtype), 0
    for images in run.chunks(IMAGES):
        images = images[images["answered"] & (images["shard"] < len(entries))]
        images = images[real[images["shard"]]]
        if labelled:
            images = images[images["has_label"] & (images["predicted"] != images["label"])]
        n += len(images)
        chosen = np.concatenate([chosen, images])
        by = -chosen["score"] if labelled else chosen["score"]
        chosen = chosen[np.argsort(by, kind="stable")[:most]]
    return chosen, n


def _pixels(
    run: Run, chosen: np.ndarray, shards: Sequence[Path | str] | None
) -> tuple[dict[int, np.ndarray], tuple[str, ...]]:
    """Index in `chosen` -> (H, W, C) uint8, for readable images; and notes about the others."""
    from collage_mpi.shards import ShardSet
    from collage_mpi.shards.schema import ShardInfo

    def read(number: int, info: ShardInfo) -> dict[int, np.ndarray]:
        if not info.is_picture:
            return {}
        places = np.flatnonzero(chosen["shard"] == number)
        with ShardSet([info]) as source:
            images, _, good = source.read_checked(chosen["row"][places].astype(np.int64))
        return {p: images[i] for i, p in enumerate(places.tolist()) if good[i]}

    entries = run.manifest["shards"]
    numbers = np.unique(chosen["shard"]).tolist()
    found, missing = from_shards({number: entries[number] for number in numbers}, shards, read)
    pixels = {place: image for of in found.values() for place, image in of.items()}
    if not missing:
        return pixels, ()
    return pixels, (
        f"No pictures of {counted(len(missing), 'shard')}: {missing[0]}. --shards PATH says "
        "where they are now.",
    )


def _thumbnail(pixels: np.ndarray) -> str:
    """An image, (H, W, C) uint8, as a data URI with edges of at most EDGE_PX, in PNG or JPEG."""
    from PIL import Image

    plain = pixels[:, :, 0] if pixels.shape[2] == 1 else pixels
    picture = Image.fromarray(plain)
    picture.thumbnail((EDGE_PX, EDGE_PX))
    kind = "png" if max(picture.size) <= SMALL_PX else "jpeg"
    out = io.BytesIO()
    picture.save(out, kind, **({"optimize": True} if kind == "png" else {"quality": 80}))
    return f"data:image/{kind};base64,{base64.b64encode(out.getvalue()).decode()}"


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
                "counts": tables.class_counts(tally.counts),
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


def verdicts(
    names: Sequence[str],
    entries: Sequence[Json],
    summaries: Sequence[Json],
    proofs: Sequence[VerifyReport],
) -> list[Json]:
    """The result of a single run; or, for several runs, each further run compared with the first:
    text, a sentence, and good, whether every run in it is complete, verified and valid.

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


def _judged(said: str, flaws: Sequence[str], who: str) -> Json:
    if flaws:
        return {"text": f"NOT VALID: {' '.join(flaws)} {said}.", "good": False}
    return {"text": f"{said}; {who} complete, verified and valid.", "good": True}


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
