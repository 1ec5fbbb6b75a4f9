"""Ours beside its peers: whose turn it is, which figure stands in a cell, what a page gets."""

from __future__ import annotations

import importlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from collage_mpi.system.table import Cell, Column, Table

ANALYSIS = Path(__file__).parents[2] / "analysis"
MODULES = ("cases", "compare", "page", "report")


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The scripts by name, as they find each other."""
    monkeypatch.syspath_prepend(ANALYSIS / "peers")
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    yield {name: importlib.import_module(name) for name in MODULES}
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def compare(peers: dict[str, ModuleType]) -> Any:
    return peers["compare"]


@pytest.fixture
def cases(peers: dict[str, ModuleType]) -> Any:
    return peers["cases"]


@pytest.fixture
def report(peers: dict[str, ModuleType]) -> Any:
    return peers["report"]


def line(program: str, rate: float, **more: Any) -> dict[str, Any]:
    return {"case": "224 px", "program": program, "chunk": 8, "repeat": 0, "lost": 0, "rows": 9,
            "class_sum": 5, "images_per_s": rate, "peak_mb": 100, "exit": 0, "ended_s": None,
            "load": 0.5, "machine": "a machine", **more}  # fmt: skip


# ---- whose turn -------------------------------------------------------------


def test_all_cases_have_a_turn_before_any_has_a_second(cases: Any) -> None:
    two = [c for c in cases.CASES if c.name in ("224 px", "killed")]
    found = list(cases.turns(two, ["futures", "futures+sender", "ours"], 2, ()))
    assert [(t.repeat, t.case.name) for t in found] == (
        [(r, name) for r in (0, 1) for name in ["224 px"] * 7 + ["killed"] * 2]
    )
    assert len({t.key for t in found}) == len(found)


def test_who_takes_part_with_what(cases: Any) -> None:
    named = {case.name: case for case in cases.CASES}
    assert cases.takes_part("futures", named["224 px"])
    assert not cases.takes_part("futures", named["JPEG of 500 x 375"])  # in memory it is raw
    assert cases.takes_part("futures+workers", named["JPEG of 500 x 375"])
    assert cases.takes_part("ours-throughput", named["60 x slow"])
    assert not cases.takes_part("ours-throughput+workers", named["60 x slow"])
    assert cases.chunks_of("futures", named["224 px"], ()) == (1, 8, 32)
    assert cases.chunks_of("futures", named["60 x slow"], ()) == (1, 8)
    assert cases.chunks_of("ray_actors", named["224 px"], (4,)) == (4,)
    assert cases.chunks_of("ours", named["224 px"], (4,)) == (0,)


def test_a_slow_rank_is_as_slow_in_ours_as_in_a_peer(cases: Any, tmp_path: Path) -> None:
    case = next(c for c in cases.CASES if c.slow == 60)
    peer = cases.command(cases.Turn(case, 0, "futures", 8), tmp_path / "s.h5", tmp_path)
    words = cases.command(cases.Turn(case, 0, "ours-collage", 0), tmp_path / "s.h5", tmp_path)
    assert peer[peer.index("--slow") + 1] == "60.0"
    assert peer[peer.index("--service-ms") + 1] == "10.0"
    assert words[words.index("--slow-ranks") + 1] == "1:60.0"
    assert words[words.index("--straggler") + 1] == "pinned:10.0"
    assert words[words.index("--batch-cost") + 1] == "1"  # a batch of 8 takes 8 times as long
    assert words[words.index("-n") + 1] == "10"  # eight, one for collages, rank 0


def test_what_has_a_line_is_not_done_again(
    compare: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    played = []

    def play(turn: Any, shard: Path) -> dict[str, Any]:
        played.append(turn.key)
        return {"case": turn.case.name, "repeat": turn.repeat, "program": turn.program,
                "chunk": turn.chunk}  # fmt: skip

    monkeypatch.setattr(compare, "play", play)
    monkeypatch.setattr(compare, "make_shards", lambda cases, folder: {c.shard: 0 for c in cases})
    words = ["compare.py", "--out", str(tmp_path / "lines"), "--only", "ours-batch-1"]
    monkeypatch.setattr(sys, "argv", [*words, "--cases", "224;JPEG"])
    compare.main()
    assert len(played) == 4
    monkeypatch.setattr(sys, "argv", [*words, "--cases", "224;JPEG;killed"])
    compare.main()
    assert [key[0] for key in played[4:]] == ["killed"]
    assert len((tmp_path / "lines").read_text().splitlines()) == 5
    assert "1 runs, 4 lines are there already" in capsys.readouterr().err


def test_a_worker_is_killed_once_the_work_has_gone_on(
    cases: Any, compare: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for a program: it says that it began, and is worker 2 itself."""
    monkeypatch.setattr(compare, "KILL_AFTER_S", 1.0)
    monkeypatch.setattr(compare, "SAMPLE_S", 0.05)
    case = next(c for c in cases.CASES if c.kill)
    script = (
        "import os, pathlib, time; os.chdir(os.environ['THERE'])\n"
        "pathlib.Path('2').write_text(str(os.getpid()))\n"
        "time.sleep(0.5); pathlib.Path('started').touch(); begun = time.monotonic()\n"
        "while True: print(time.monotonic() - begun, flush=True); time.sleep(0.02)\n"
    )
    env = {**os.environ, compare.MARK: "here", "THERE": str(tmp_path)}
    with (tmp_path / "lived").open("w") as lived:
        process = subprocess.Popen([sys.executable, "-c", script], env=env, stdout=lived)
    seen = compare.watch(process, cases.Turn(case, 0, "futures", 1), tmp_path, "here")
    assert seen.exit == -9
    assert float((tmp_path / "lived").read_text().split()[-1]) > 0.3
    assert 0 <= seen.ended_s < 60
    assert seen.peak_mb > 1
    (tmp_path / "started").unlink()
    assert not compare.has_begun(tmp_path)
    (tmp_path / "errors").write_text("loading networks: 0 of 8 ranks\nnone: 0 of 1800 images (0 %)")
    assert not compare.has_begun(tmp_path)
    (tmp_path / "errors").write_text("none: 256 of 1,800 images (14.2 %)")
    assert compare.has_begun(tmp_path)
    quiet = subprocess.Popen([sys.executable, "-c", "pass"], env=env)
    unkilled = compare.watch(quiet, cases.Turn(cases.CASES[0], 0, "futures", 1), tmp_path, "here")
    assert (unkilled.exit, unkilled.ended_s) == (0, None)


# ---- the table --------------------------------------------------------------


def test_the_median_at_the_best_chunk_stands_in_a_cell(report: Any) -> None:
    lines = [line("futures", rate, repeat=i) for i, rate in enumerate((900, 100, 300))]
    lines += [line("futures", 250, chunk=1), line("ours-throughput", 200, chunk=0)]
    assert report.best(lines)["224 px", "futures"] == (300, 8)
    rows = report.table(lines).splitlines()
    assert rows[0] == "|  | 224 px | MB, 224 px |"
    assert rows[2:] == [
        "| mpi4py.futures | **300** (8) | 100 |",
        "| none, throughput | 200 | 100 |",
    ]


def test_a_run_that_lost_rows_has_no_rate(report: Any) -> None:
    lines = [line("futures", 900, lost=3), line("ours", 10), line("ours-paper", 0, lost=9, exit=2)]
    assert "| mpi4py.futures | no result |" in report.table(lines)
    assert "| none, paper | refused |" in report.table(lines)


def test_it_says_where_a_peer_is_faster(report: Any) -> None:
    lines = [line("bare_mpi", 500), line("futures", 100), line("ours-throughput", 200),
             line("ours-paper", 50)]  # fmt: skip
    (text,) = report.lines_of_text(lines)
    assert "ours at best 200 images/s (none, throughput); faster: mpi4py alone 2.50 x." in text
    assert "To mpi4py.futures: 2.00 x." in text
    (text,) = report.lines_of_text(lines[1:])
    assert "no peer is faster" in text


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ({"lost": 9, "rows": 0, "exit": 9, "ended_s": 0.4}, "all rows lost, ended after 0 s"),
        ({"lost": 0, "ended_s": 6.2}, "0 lost, ended after 6 s"),
        ({"lost": 2, "ended_s": 6.2}, "2 lost, ended after 6 s"),
        ({"lost": 9, "exit": None, "ended_s": 99.0}, "hung"),
        ({"ended_s": None}, "ended before"),
    ],
)
def test_what_became_of_a_killed_workers_job(report: Any, more: dict, says: str) -> None:
    assert f"| {says} |" in report.table([line("futures", 1, **{"case": "killed", **more})])


def test_other_answers_are_other_work(
    report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [line("futures", 1), line("ours", 1), line("ours-collage", 1, class_sum=6)]
    assert report.differing(lines) == []
    lines.append(line("bare_mpi", 1, class_sum=6))
    assert report.differing(lines) == ["224 px"]
    file = tmp_path / "lines"
    file.write_text("\n".join(map(json.dumps, lines)))
    monkeypatch.setattr(sys, "argv", ["report.py", str(file)])
    with pytest.raises(SystemExit, match=r"not the same work: .* 224 px"):
        report.main()


def test_markdown_keeps_the_cells_apart(peers: dict[str, ModuleType]) -> None:
    columns = "", Column("P99", ".1f", " ms"), "note"
    table = Table(columns, [["a|b", 1234.56, Cell("slow", bad=True)], ["c", None, ""]])
    assert peers["page"].markdown_of(table).splitlines() == [
        "|  | P99 | note |",
        "| --- | ---: | ---: |",
        "| a\\|b | 1234.6 ms | slow |",
        "| c | n/a |  |",
    ]


def test_table_and_figure_go_into_a_page(
    report: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    page, file = tmp_path / "docs" / "p.md", tmp_path / "lines"
    page.parent.mkdir()
    page.write_text("# Before\n\n<!-- peers -->\nold\n<!-- end of peers -->\nafter\n")
    file.write_text("\n".join(json.dumps(x) for x in (line("futures", 300), line("ours", 100))))
    figure = tmp_path / "docs" / "images" / "peers"
    words = ["report.py", str(file), "--figure", str(figure), "--page", str(page)]
    monkeypatch.setattr(sys, "argv", words)
    report.main()
    text = page.read_text()
    assert text.startswith("# Before\n\n<!-- peers -->\n\nOn a machine;")
    assert text.endswith("<!-- end of peers -->\nafter\n")
    assert "old" not in text
    assert "(images/peers.png)" in text
    assert figure.with_suffix(".png").stat().st_size > 1000
    report.main()
    assert page.read_text() == text
    page.write_text("no marks")
    with pytest.raises(SystemExit, match="needs the marks"):
        report.main()


# ---- a slow rank ------------------------------------------------------------


def test_the_ratios_of_a_slow_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two ranks, one of them three times slower, pulled: 4/3 of a rank's speed in all."""
    from collage_mpi.cli import main

    words = [
        "simulate",
        "--images",
        "400",
        "--scheme",
        "none",
        "--side",
        "2",
        "--singles",
        "2",
        "--straggler",
        "pinned:50",
        "--warmup-groups",
        "0",
        "--slow-ranks",
        "2:3",
        "--assign",
    ]
    for how in ("turn --endgame off --depth 1", "pull --endgame on --depth 4"):
        out = str(tmp_path / "runs" / how.split()[0])
        assert main([*words, *how.split(), "--out", out]) == 0
    monkeypatch.syspath_prepend(ANALYSIS)
    script = runpy.run_path(str(ANALYSIS / "slow_rank.py"))
    found = script["ratios"](tmp_path / "runs")
    pull, turn = found["pull"], found["turn"]
    assert pull.seconds == pytest.approx(400 * 0.05 * 3 / 4, rel=0.02)
    assert pull.to_speeds == pytest.approx(1.0, rel=0.02)
    assert pull.to_own == pytest.approx(1.0, rel=0.02)
    assert turn.to_speeds > 1.4  # half of the images each
    assert turn.to_own > 1.4  # and the faster rank waits
    assert pull.by_single == 1
    text = script["markdown"]({"simulated": found})
    assert "| scheme, slow rank | simulated: s | to speeds |" in text
    assert "| pull | 15." in text
