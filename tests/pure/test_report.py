"""The report: what stands on the page, that it is whole, small and safe."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from results_harness import as_two_teams, fill, make_run, manifest

from collage_mpi.cli import main
from collage_mpi.report.page import (
    SCRIPTS,
    STEPS,
    chart_data,
    kept_steps,
    render_page,
    verdicts,
    worst_images,
)
from collage_mpi.report.tables import Cell, confusions, ranks
from collage_mpi.report.tables import settings as settings_table
from collage_mpi.results import compare, read_results, render_summary, summarise
from collage_mpi.results.reader import groups_of
from collage_mpi.results.render import notes
from collage_mpi.results.slow_ranks import rank_speeds
from collage_mpi.results.verify import VerifyReport
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards import ShardSet, inspect_shard, write_shard
from collage_mpi.simulation.runs import run_job
from collage_mpi.simulation.simulator import SimulatedJob

EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(1)>\"'\u202e{{ 7 * 7 }}"


class Page(HTMLParser):
    """What a browser would see: tags with attributes, texts of cells, and scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script":
            self.scripts[-1] += data
        else:
            self.words += f" {data}"

    @property
    def charts(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.scripts[0])
        return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A run without and a run with the collage, on the images of one shard."""
    out = tmp_path_factory.mktemp("report")
    pixels = np.random.default_rng(1).integers(0, 256, (900, 8, 8, 3), dtype=np.uint8)
    write_shard(out / "in.h5", pixels, ids=[f"picture-{i}.jpg" for i in range(900)])
    info = inspect_shard(out / "in.h5")
    shards = [{"path": str(info.path), "fingerprint": info.fingerprint, "count": 900}]
    plain = make_run(out / "none", 900, collage=False, shards=shards)
    errors = frozenset({7})
    status = "complete_with_errors"
    return [plain, make_run(out / "collage", 900, shards=shards, errors=errors, status=status)]


def test_the_page_says_what_the_summary_says(folders: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "new" / "report.html"
    assert main(["report", *map(str, folders), "--out", str(out)]) == 0
    page = Page(out.read_text("utf-8"))
    summary = summarise(read_results(folders[1]))
    group, price = summary["latency"]["group"], summary["price"]
    low, high = group["p95_ci95_ms"]
    ratio = group["p95_ms"] / summarise(read_results(folders[0]))["latency"]["group"]["p95_ms"]
    for wanted in (
        "Complete and verified",
        "complete with errors: 900 of 900 rows, no doubles, 1 error row",
        f"{group['p95_ms']:.1f} ({ratio:.2f}x) [{low:.1f}, {high:.1f}]",
        "n/a (n=100)",  # P99 of 100 groups
        f"{100 * price['collage_share']:.2f} %",
        f"{price['rank_seconds_per_image']:.4f}",
        "crc32 of row wrong",
        "rank 4 (",
        "picture-",
        "class 3",
    ):
        assert wanted in page.words, wanted


def test_nothing_is_loaded_and_only_known_scripts_run(folders: list[Path]) -> None:
    text = render_page(folders)
    page = Page(text)
    assert len(text) < 400_000
    loaded = [attrs.get(key) for _, attrs in page.tags for key in ("src", "href") if key in attrs]
    assert loaded
    assert all(re.match(r"#|data:image/(png|jpeg);base64,", str(target)) for target in loaded)
    policy = next(a["content"] for _, a in page.tags if "http-equiv" in a)
    assert policy is not None
    assert policy.startswith("default-src 'none'; img-src data:;")
    assert policy.count("'sha256-") == len(SCRIPTS) == len(page.scripts) - 1


def test_names_from_data_are_text_and_no_script(tmp_path: Path) -> None:
    run = make_run(
        tmp_path / "evil<b>",
        90,
        errors=frozenset({3}),
        status="complete_with_errors",
        class_names=[f"{EVIL}{i}" for i in range(10)],
        straggler=EVIL,
        scheme=EVIL,
        mode=EVIL,
        order=EVIL,
        shards=[{"path": EVIL, "fingerprint": EVIL, "count": 90}],
        settings={"scheme": EVIL, EVIL: EVIL},
        job={"command": [EVIL], "host": EVIL, "versions": {EVIL: EVIL}},
        world=[{"rank": r, "host": EVIL, "kinds": ["single"]} for r in range(11)],
    )
    harmless = Page(render_page([make_run(tmp_path / "good", 90, errors=frozenset({3}))]))
    page = Page(render_page([run, run]))
    assert len(page.scripts) == len(harmless.scripts)
    assert not [attrs for _, attrs in page.tags if any(key.startswith("on") for key in attrs)]
    assert {tag for tag, _ in page.tags} <= {tag for tag, _ in harmless.tags} | {"b", "h3"}
    assert EVIL.replace("\u202e", "\\u202e") in page.words
    assert "\u202e" not in page.words
    assert "49" not in re.findall(r"'\\u202e(.{2})", page.words)  # no template in a template
    assert page.charts[0]["name"].startswith("</script><script>")


@pytest.mark.parametrize("n", [1, 5, 1000, 300_000])
def test_a_curve_keeps_its_ends_its_tail_and_few_steps(n: int) -> None:
    share = np.arange(1, n + 1) / n  # of values that are all different
    keep = kept_steps(share, n)
    assert len(keep) <= STEPS
    assert keep[0] == 0
    assert keep[-1] == n - 1
    assert set(range(max(0, n - 10), n)) <= set(keep.tolist())  # the slowest, one by one
    gaps = np.diff(share[keep])
    assert not len(gaps) or gaps.max() < 2.5 / STEPS + 2 / n
    tail = 1 - share[keep][:-1]  # near one step in its logarithm too, where there are values
    assert n < 1000 or (tail[:-1] / tail[1:]).max() <= 2


def test_over_time_is_the_median_and_the_slowest_of_neighbours(tmp_path: Path) -> None:
    settings = RunSettings(out=str(tmp_path / "run"), warmup_groups=0, straggler="lognormal")
    run_job(SimulatedJob(settings, 9 * 1000))
    run = read_results(tmp_path / "run")
    shown = chart_data(run, "x")["time"]
    assert shown["each"] == 4
    assert len(shown["s"]) == len(shown["median"]) == len(shown["slowest"]) == 300
    first = np.sort(run.groups, order="t0_ns")[:4]
    assert shown["median"][0] == pytest.approx(np.median(first["latency_ns"]) / 1e6, rel=1e-5)
    assert max(shown["slowest"]) == pytest.approx(run.groups["latency_ns"].max() / 1e6, rel=1e-5)
    assert shown["s"] == sorted(shown["s"])


def test_sessions_stand_one_behind_another(tmp_path: Path) -> None:
    run = read_results(make_run(tmp_path / "run", 90))
    groups = run.groups.copy()
    groups["session"][5:] = 2
    groups["t0_ns"][5:] -= groups["t0_ns"][5] - 3  # its clock begins again
    object.__setattr__(run, "groups", groups)
    shown = chart_data(run, "x")["time"]
    assert shown["s"] == sorted(shown["s"])
    first = groups[:5]
    end_s = ((first["t0_ns"] + first["latency_ns"]).max() - first["t0_ns"].min()) / 1e9
    assert shown["sessions"] == [pytest.approx(end_s, rel=1e-5)]
    assert shown["s"][5] == pytest.approx(end_s, rel=1e-5)


def test_teams_stand_side_by_side_and_where_they_differ_each_has_a_line(tmp_path: Path) -> None:
    run = read_results(make_run(tmp_path / "run", 90))
    alone, teams = chart_data(run, "x"), chart_data(as_two_teams(run), "x", by_team=True)
    (first, mine), (second, others) = teams["time"].pop("teams")
    assert {first, second} == {"team 0", "team 1"}
    assert [a is None for a in mine] == [b is not None for b in others]  # a slice is of one group
    assert alone["time"].pop("teams") == []
    assert teams["time"] == alone["time"]
    assert teams["curve"] == alone["curve"]


def side(p99: float | None, p50: float | None, **more: Any) -> tuple[dict[str, Any], ...]:
    """An entry of `compare` and a summary, as far as the verdict reads them."""
    entry = {"accuracy": 0.9, "open_loop": False, "mode": "carry, depth 1"}
    price = {"ranks": 10, "wasted_work": 0.25, "images_per_s": 50.0}
    price |= {"rank_seconds_per_image": 0.2, **more.pop("price", {})}
    pair = {"n": 0, "same": None, "only_this": 0, "only_baseline": 0, "difference": None}
    entry |= {"price": price, "paired": {**pair, **more.pop("paired", {})}}
    image = {"p99_ms": p99, "p95_ms": None, "p50_ms": p50}
    image |= {"p99_ci95_ms": more.pop("ends")} if "ends" in more else {}  # else too few images
    arrivals = more.pop("arrivals", None)
    summary = {"latency": {"image": image}, "arrivals": arrivals}
    return {**entry, **more}, summary


LOST = {"n": 1000, "difference": -0.05, "only_this": 10, "only_baseline": 60}
CHANCE = {"n": 1000, "difference": 0.004, "only_this": 22, "only_baseline": 18}
SAME = {"n": 1000, "difference": 0.0}
OPEN = {"open_loop": True}


@pytest.mark.parametrize(
    ("first", "other", "said"),
    [
        (
            side(100.0, 40.0, price={"images_per_s": 12.9, "rank_seconds_per_image": 0.31}),
            # P99 is sooner, but a batch job is slower
            side(50.0, 20.0, paired=SAME, price={"images_per_s": 7.9, "wasted_work": 0.78}),
            'The run "b" classified only 0.61 times as many images a second as the run "a" (7.9 '
            "instead of 12.9), took 0.2 rank-seconds an image instead of 0.31, was as often right, "
            "wasted 78 % of its work instead of 25 %, and used 10 ranks like the other; both runs "
            "are complete, verified and valid.",
        ),
        (
            side(100.0, 40.0),
            side(100.0, 40.0, paired=LOST, price={"images_per_s": 75.0, "ranks": 11}),
            'At unequal answers the run "b" classified 1.50 times as many images a second as the '
            'run "a" (75.0 instead of 50.0), took 0.2 rank-seconds an image like the other, lost '
            "5.00 points of accuracy, wasted 25 % of its work like the other, and used 11 ranks "
            "instead of 10; both runs are complete, verified and valid.",
        ),
        (
            side(100.0, 40.0),
            side(
                *(None, None),
                paired={"same": 0.979},
                price={"images_per_s": 50.2, "wasted_work": None},
                mode="carry, simulated",
            ),
            'The run "b" classified as many images a second as the run "a" (50.2 instead of 50.0), '
            "took 0.2 rank-seconds an image like the other, gave 97.90 % of the images the same "
            "class, and used 10 ranks like the other; both runs are simulated, complete, verified "
            "and valid.",
        ),
        (
            side(100.0, 40.0, ends=[90.0, 110.0], **OPEN),
            side(50.0, 20.0, ends=[45.0, 55.0], paired=CHANCE, **OPEN),
            'The run "b" answered 99 % of its images 2.00 times sooner than the run "a" (50.0 ms '
            "instead of 100.0 ms), gained 0.40 points of accuracy, a difference within chance, "
            "wasted 25 % of its work like the other, and used 10 ranks like the other; both runs "
            "are complete, verified and valid.",
        ),
        (
            side(100.0, 40.0, ends=[90.0, 110.0], **OPEN),
            side(95.0, 20.0, ends=[85.0, 99.0], arrivals={"overloaded": True}, **OPEN),
            'NOT VALID: The run "b" got more images than its ranks could answer. The run "b" '
            'answered 99 % of its images about as soon as the run "a" (95.0 ms instead of 100.0 '
            "ms, a difference within chance), gave answers that cannot be compared, wasted 25 % "
            "of its work like the other, and used 10 ranks like the other.",
        ),
        (
            side(100.0, 40.0, **OPEN),
            side(50.0, 20.0, paired=SAME, **OPEN),
            'The run "b" answered 99 % of its images 2.00 times sooner than the run "a" (50.0 ms '
            "instead of 100.0 ms), was as often right, wasted 25 % of its work like the other, and "
            "used 10 ranks like the other; both runs are complete, verified and valid.",
        ),
        (
            side(100.0, 40.0),
            side(50.0, 20.0, **OPEN),
            'The run "b" and the run "a" cannot be compared: in one of them images arrive at a '
            "given rate, in the other all images wait from the start; both runs are complete, "
            "verified and valid.",
        ),
    ],
    ids=["slower", "unequal", "alike", "sooner", "overloaded", "few", "other"],
)
def test_the_page_opens_with_what_a_run_gains_and_costs(
    first: tuple[dict[str, Any], ...], other: tuple[dict[str, Any], ...], said: str
) -> None:
    entries, summaries = zip(first, other, strict=True)
    proof = VerifyReport(Path("x"), status="complete")
    (verdict,) = verdicts(["a", "b"], entries, summaries, [proof, proof])
    assert verdict["text"] == said
    assert verdict["good"] == (not said.startswith("NOT VALID"))


def test_of_one_run_the_page_says_what_it_did() -> None:
    proof = VerifyReport(Path("x"), status="complete")
    told = []
    for more in ({}, OPEN):
        entry, summary = side(100.0, 40.0, **more)
        (verdict,) = verdicts(["a"], [entry], [summary], [proof])
        told.append(verdict["text"])
    end = (
        "classified 50.0 images a second, took 0.2 rank-seconds an image, classified 90.00 % of "
        "all images rightly, and used 10 ranks; the run is complete, verified and valid."
    )
    assert told == [f"The run {end}", f"The run answered 99 % of its images within 100.0 ms, {end}"]


def test_runs_of_one_scheme_are_named_by_the_settings_in_which_they_differ(tmp_path: Path) -> None:
    scheme = {"scheme": "none", "accept": None}
    paths = [
        make_run(tmp_path / assign, 27, **scheme, settings={"scheme": "none", "assign": assign})
        for assign in ("pull", "turn")
    ]
    page = render_page([*paths, make_run(tmp_path / "c", 27, scheme="cascade")])
    for name in ("single network only, --assign turn", "collages first"):
        assert f"</span>{name}</h3>" in page


def test_that_teams_differ_is_told_and_drawn(tmp_path: Path) -> None:
    teams = as_two_teams(read_results(make_run(tmp_path / "run", 360)))
    slower = teams.images.copy()
    slower["latency_ns"][slower["session"] == 2] *= 5
    unlike = dataclasses.replace(teams, images=slower, groups=groups_of(slower, teams.manifest))
    told = [notes(compare([run])) for run in (teams, unlike)]
    line = "P50 per group differs between teams: "
    assert [any(line in text for text in lines) for lines in told] == [False, True]
    (text,) = (text for text in told[1] if line in text)
    of_team = (unlike.measured_groups["session"] == session for session in (1, 2))
    latency_ms = unlike.measured_groups["latency_ns"] / 1e6
    fast, slow = (np.quantile(latency_ms[own], 0.5, method="inverted_cdf") for own in of_team)
    assert text.endswith(f"{fast:.1f} in team 0 to {slow:.1f} in team 1")
    assert line in render_summary(summarise(unlike))
    drawn = [name for name, _ in chart_data(unlike, "x", by_team=True)["time"]["teams"]]
    assert drawn == ["team 0", "team 1"]


def test_the_timeline_holds_the_slowest_group(tmp_path: Path) -> None:
    settings = RunSettings(out=str(tmp_path / "run"), straggler="lognormal", slow_ranks=("4:5",))
    run_job(SimulatedJob(settings, 9 * 100))
    run = read_results(tmp_path / "run")
    shown = chart_data(run, "x")["timeline"]
    slowest = run.groups[np.argmax(run.groups["latency_ns"])]
    assert shown["group"] == slowest["group"]
    assert shown["first"] == shown["group"] - 4
    assert shown["last"] == shown["group"] + 4
    assert {bar[2] for bar in shown["bars"]} >= set(range(shown["first"], shown["last"] + 1))
    for row, _, group, sent, start, end, *_ in shown["bars"]:
        rank = int(shown["ranks"][row].split()[1])
        tasks = run.tasks[(run.tasks["rank"] == rank) & (run.tasks["group"] == group)]
        service_ms = tasks["compute_ns"] / 1e6
        assert sent <= start <= end
        assert np.abs(service_ms - (end - start)).min() < 1e-3
    colours = {shown["looks"][bar[1]]["name"] for bar in shown["bars"]}
    assert "collage answer that resolved images" in colours


def test_a_slow_rank_is_named_against_its_peers(tmp_path: Path) -> None:
    run = read_results(make_run(tmp_path / "run", 9 * 80))
    (speed,) = (one for one in rank_speeds(run) if one.slow)
    named, tables = ranks(run)
    assert f"Slow against its peers: rank 4 ({speed.ratio:.1f}x)." in named
    assert len(tables) == 1  # one host
    rows = {str(row[0]): row for row in tables[0].cells()}
    assert list(rows) == [f"rank {rank}" for rank in range(1, 11)]
    low, high = speed.interval or (0, 0)
    assert rows["rank 4"][-1] == Cell(f"{speed.ratio:.2f}x [{low:.2f}, {high:.2f}] SLOW", bad=True)
    assert not isinstance(rows["rank 3"][-1], Cell)
    assert rows["rank 10"][1] == "collage"
    assert rows["rank 10"][-1] == ""  # the only one of its kind
    fast = read_results(make_run(tmp_path / "fast", 9 * 80, slow_rank=None))
    assert ranks(fast)[0] == "No rank is significantly slower than its peers."


def test_a_rank_that_answered_nothing_is_named(tmp_path: Path) -> None:
    run = read_results(make_run(tmp_path / "run", 9 * 80, slow_rank=None))
    kinds = {10: ["collage"]}
    world = [
        {"rank": rank, "host": "node1", "kinds": kinds.get(rank, ["single"])}
        for rank in range(1, 40)
    ]
    told = dataclasses.replace(run, manifest={**run.manifest, "world": world, "sessions": []})
    named, (table, *_) = ranks(told)
    assert "No answer came from rank 11 on node1, rank 12 on node1" in named
    assert named.endswith("rank 20 on node1 and 19 more.")
    assert ["rank 11", "single", "n/a", "0", ""] in [list(row) for row in table.cells()]


def test_hosts_are_told_apart(tmp_path: Path) -> None:
    world = [
        {
            "rank": r,
            "host": "slow-host" if r == 4 else "h",
            "kinds": ["single"] if 0 < r < 10 else [],
        }
        for r in range(11)
    ]
    run = read_results(make_run(tmp_path / "run", 9 * 80, final={"world": world}))
    named, (by_rank, by_host) = ranks(run)
    assert "host slow-host (" in named
    assert [row[1] for row in by_rank.cells()][3] == "slow-host"
    rows = {str(row[0]): row for row in by_host.cells()}
    assert isinstance(rows["slow-host"][-1], Cell)
    assert not isinstance(rows["h"][-1], Cell)


def test_the_confusion_adds_up(folders: list[Path]) -> None:
    run = read_results(folders[1])
    matrix, mistakes = confusions(run)
    assert matrix is not None
    assert mistakes is not None
    images = run.images[run.images["answered"]]
    for label, row in enumerate(matrix.cells()):
        counts = [int(cell.text or 0) for cell in row[1:] if isinstance(cell, Cell)]
        of_label = images["predicted"][images["label"] == label]
        assert counts == np.bincount(of_label, minlength=10).tolist()
    wrong = images[images["predicted"] != images["label"]]
    found = {(str(row[0]), str(row[1])): int(str(row[2])) for row in mistakes.cells()}
    assert sum(found.values()) == len(wrong)
    one = wrong[0]
    pair = (f"class {one['label']}", f"class {one['predicted']}")
    assert found[pair] == int(
        ((wrong["label"] == one["label"]) & (wrong["predicted"] == one["predicted"])).sum()
    )


def test_pictures_are_of_the_shard_or_missed_in_words(folders: list[Path], tmp_path: Path) -> None:
    there = render_page([folders[0]])
    assert there.count('src="data:image/png;base64,') == 24
    moved = tmp_path / "moved.h5"
    shard = folders[0].parent / "in.h5"
    shard.rename(moved)
    try:
        page = render_page([folders[0]])
        assert "data:image" not in page.replace("img-src data:", "")
        assert "--shards PATH says where they are now" in page
        assert render_page([folders[0]], [moved]).count("data:image/png") == 24
    finally:
        moved.rename(shard)


@pytest.mark.parametrize("labels", [True, False])
def test_the_worst_are_the_surest_mistakes_or_the_least_sure(
    folders: list[Path], labels: bool
) -> None:
    run = read_results(folders[0])
    images = run.images.copy()
    images["score"] = np.random.default_rng(2).permutation(len(images)) / len(images)
    images["has_label"] = labels
    run = dataclasses.replace(run, images=images)
    found = worst_images(run, None, 5)
    assert found is not None
    sought = images[images["predicted"] != images["label"]] if labels else images
    sought = np.sort(sought, order="score")
    sought = sought[::-1][:5] if labels else sought[:5]
    with ShardSet.open([folders[0].parent / "in.h5"]) as shards:
        pixels, _ = shards.read(sought["row"].astype(int))
    for picture, row, wanted in zip(found["pictures"], sought, pixels, strict=True):
        assert f"score {row['score']:.3f}, single" in picture["lines"]
        assert f"picture-{row['row']}.jpg" in picture["lines"]
        names = [f"class {row['label']}", f"class {row['predicted']}"]
        assert picture["title"] == (" taken for ".join(names) if labels else names[1])
        assert picture["uri"] is not None
        data = base64.b64decode(picture["uri"].partition("base64,")[2])
        assert (np.asarray(Image.open(io.BytesIO(data))) == wanted).all()


def test_settings_that_differ_are_marked(folders: list[Path]) -> None:
    runs = [read_results(folder) for folder in folders]
    runs[0].manifest["settings"]["scheme"] = "none"
    rows = {str(row[0]): row for row in settings_table(runs, ["a", "b"]).cells()}
    assert rows["scheme"][1:] == [Cell("none", bad=True), Cell("collage", bad=True), "collage"]
    assert rows["side"][1:] == ["3", "3", "3"]
    assert rows["out"][1] == Cell("somewhere")  # not the default, and the same


def test_an_unfinished_run_and_one_without_groups_have_a_page(tmp_path: Path) -> None:
    from collage_mpi.results.sole import SoleWriter

    full = manifest(90, warmup_groups=5)
    writer = SoleWriter(tmp_path / "half", full)
    fill(writer, full, range(45))
    writer.close("incomplete")
    page = Page(render_page([tmp_path / "half"]))
    assert "Incomplete" in page.words
    assert "45 of 90 rows" in page.words
    assert page.charts[0]["curve"] is None
    assert "No group was measured." in page.words


def test_what_cannot_be_shown_is_one_message(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = str(make_run(tmp_path / "run", 9))
    assert main(["report", run, run]) == 2
    assert "--out is missing" in capsys.readouterr().err
    assert main(["report", *[run] * 13, "--out", str(tmp_path / "x.html")]) == 2
    assert "1 to 12" in capsys.readouterr().err
    assert main(["report", str(tmp_path / "nothing")]) == 3
    assert main(["report", run, "--out", str(tmp_path / "run" / "run.1.json" / "x")]) == 3
    assert "cannot be written" in capsys.readouterr().err
