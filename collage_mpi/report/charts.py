"""The data of the report's charts, reduced so that the page stays small for runs of any size; and
the worst images with thumbnails.

Nothing is smoothed. A point is a step of the distribution, or the median or the slowest of some
consecutive groups. From a long run only every n-th part is used (`excerpt`), with the slowest group
of each other part, and with everything near the slowest group of the run.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.report.tables import name_or_number
from collage_mpi.results.names import from_shards, image_names
from collage_mpi.results.parts import began_ns, clock_offsets_ns, launch_of
from collage_mpi.results.reader import Results, Run
from collage_mpi.results.statistics import PERCENTILES, percentile_name
from collage_mpi.results.tally import GroupTally, Tally
from collage_mpi.results.timeline import STRAGGLER, Timeline, look_of, looks, make_timeline
from collage_mpi.results.vectors import extras_of
from collage_mpi.rows import GROUPS, IMAGES, SOURCES, TASKS, TableLayout
from collage_mpi.system.printable import counted

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
        launch[mine] = launches[session]
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
    found: np.ndarray = (groups["session"] == slowest["session"]) & (off <= ABOUT)
    return found


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


@dataclass(frozen=True)
class Picture:
    """One image of the page: its thumbnail as a data URI (None if its shard cannot be read), and
    its lines of text.
    """

    uri: str | None
    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Worst:
    """The worst images, and notes about images that could not be read."""

    heading: str
    pictures: tuple[Picture, ...]
    notes: tuple[str, ...]


def worst_images(run: Run, shards: Sequence[Path | str] | None, most: int) -> Worst | None:
    """The wrong answers with the highest scores; without labels, the answers with the lowest
    scores.

    Args:
        shards: files and folders that hold the run's shards now; by default the recorded paths.
        most: largest number of images.

    Returns:
        None if no answer is wrong, the images were simulated, or the run maps a function.

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
        pictures.append(Picture(uri, title, (sure, *named, place)))
    return Worst(heading, tuple(pictures), notes)


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
