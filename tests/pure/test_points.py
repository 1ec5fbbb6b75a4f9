"""Figures of points: the file read back, the frontier, what is drawn and what is refused."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from collage_mpi.errors import DataFault, EnvironmentFault, UsageError
from collage_mpi.experiments.spec import expand
from collage_mpi.figures.points import (
    axis_labels,
    choose,
    free_offsets,
    frontier,
    need,
    read_points,
)

SCRIPT = Path(__file__).parents[2] / "analysis" / "points.py"
HEAD = "name,how,axis:side,axis:scheme,side,placements,groups,ranks,accuracy,p99_ms,p99_low_ms,"
HEAD += "p99_high_ms,std_ms,std_low_ms,std_high_ms,p99_vs_none,p99_vs_none_low,p99_vs_none_high"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    lines = [HEAD]
    for side in (3, 4):
        for scheme, gain in (("none", 1.0), ("collage, first", 2.0), ("replicate", 1.5)):
            ranks = 1 + side**2 * (2 if scheme == "replicate" else 1)
            p99 = 800 / gain
            lines.append(
                f'side-{side}_{scheme[:4]},simulate,{side},"{scheme}",{side},24,14400,{ranks},0.94,'
                f"{p99},{p99 - 50},{p99 + 90},{p99 / 9},,,{gain},{gain - 0.2},{gain + 0.3}"
            )
    path = tmp_path / "points.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_points_are_read_back_and_chosen(file: Path) -> None:
    rows = read_points([file])
    assert len(rows) == 6
    assert rows[1]["axis:scheme"] == "collage, first"
    assert rows[1]["axis:side"] == "3"  # a label, no number
    assert need(rows[1], "p99_ms") == 400
    assert rows[1]["std_low_ms"] is None
    assert axis_labels(rows, "scheme") == ["none", "collage, first", "replicate"]
    chosen = choose(rows, ["side=4", "scheme=none"])
    assert [row["name"] for row in chosen] == ["side-4_none"]
    several = choose(rows, ["scheme=none", "scheme=replicate", "side=3"])
    assert [row["name"] for row in several] == ["side-3_none", "side-3_repl"]


def test_what_is_no_point_or_no_axis_is_said(file: Path, tmp_path: Path) -> None:
    rows = read_points([file])
    with pytest.raises(UsageError, match="labels of side: 3; 4"):
        choose(rows, ["side=5"])
    with pytest.raises(UsageError, match="there are: side, scheme"):
        axis_labels(rows, "depth")
    with pytest.raises(DataFault, match="no p95_ms"):
        need(rows[0], "p95_ms")
    (tmp_path / "table.csv").write_text("index,name\n0,a\n")
    with pytest.raises(DataFault, match="no points"):
        read_points([tmp_path / "table.csv"])
    with pytest.raises(EnvironmentFault, match="cannot be read"):
        read_points([tmp_path / "none.csv"])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_the_frontier_is_what_none_beats(points: list[tuple[int, int]]) -> None:
    costs, gains = zip(*points, strict=True)
    found = frontier(costs, gains)
    kept = {points[i] for i in found}
    for cost, gain in points:
        beaten = any(c <= cost and g >= gain and (c, g) != (cost, gain) for c, g in points)
        assert ((cost, gain) in kept) == (not beaten)
    assert [costs[i] for i in found] == sorted(costs[i] for i in found)


def script(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *words])
    with pytest.raises(SystemExit) as left:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    return int(left.value.code or 0)


def test_the_figures(
    file: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("matplotlib")
    out = str(tmp_path / "sub" / "figure")
    common = [str(file), "--out", out]
    grid = ["--series", "scheme", "--panels", "side"]
    assert script(monkeypatch, "ranks", *common, *grid) == 0
    assert script(monkeypatch, "frontier", *common, *grid) == 0
    heat = ["--value", "p99_vs_none", "--across", "side", "--down", "scheme"]
    assert script(monkeypatch, "heat", *common, *heat) == 0
    for suffix, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):
        assert Path(out + suffix).read_bytes().startswith(magic)
    capsys.readouterr()
    assert script(monkeypatch, "ranks", *common, "--series", "x", "--panels", "side") == 2
    assert "no axis 'x'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changed", "code", "said"),
    [
        ((",14400,", ",many,"), 4, "point side-3_none: groups is many; a number is needed"),
        ((",24,14400,", ",,14400,"), 4, "point side-3_none: no placements"),
        ((",24,14400,", ",0,14400,"), 0, ""),
        ((",14400,", ",nan,"), 4, "groups is nan"),
        ((",1.0,0.8,1.3", ",-1.0,0.8,1.3"), 4, "side=3, scheme=none: p99_vs_none is 0 or less"),
        ((",1.0,0.8,1.3", ",1.0,little,1.3"), 0, ""),
        (('simulate,3,"replicate"', 'simulate,3,"none"'), 2, "several points"),
        (('simulate,3,"replicate"', "simulate,,"), 4, "side=3, scheme=replicate: no p99_vs_none"),
    ],
)
def test_a_file_that_was_changed_by_hand_is_told(
    file: Path, tmp_path: Path, monkeypatch, capsys, changed: tuple[str, str], code: int, said: str
) -> None:
    pytest.importorskip("matplotlib")
    text = file.read_text()
    assert changed[0] in text
    file.write_text(text.replace(*changed, 1))
    common = [str(file), "--out", str(tmp_path / "figure")]
    heat = ["--value", "p99_vs_none", "--across", "side", "--down", "scheme"]
    assert script(monkeypatch, "heat", *common, *heat) == code
    assert said in capsys.readouterr().err
    script(monkeypatch, "ranks", *common, "--series", "scheme", "--panels", "side")


def test_numbers_keep_clear_of_markers_and_of_each_other() -> None:
    rng = np.random.default_rng(3)
    crowd = rng.normal(100, 12, (18, 2))  # 18 markers within some 50 points
    places = np.concatenate([crowd, [[6.0, 6.0], [194.0, 194.0]]])  # and two in corners
    digits = [1] * 9 + [2] * 11
    offsets = np.array(free_offsets(places, digits, np.array([[0.0, 0.0], [200.0, 200.0]])))
    spots = places + offsets
    halves = np.array([[2.1 * count, 3.6] for count in digits])  # of 7.5 point numbers
    for i in range(len(places)):
        apart = np.abs(spots[i] - np.delete(spots, i, 0)) > halves[i] + np.delete(halves, i, 0)
        assert apart.any(axis=1).all(), f"number {i} covers another"
        assert (np.abs(spots[i] - places) > halves[i] + 3.0).any(axis=1).all(), f"{i} on a marker"
        assert (spots[i] - halves[i] > 0).all()
        assert (spots[i] + halves[i] < 200).all()


def test_singles_may_be_given_by_the_side() -> None:
    grid = {"side": [2, 3], "scheme": [{"name": "a", "scheme": "none", "singles": "N+1"}]}
    found = expand({"how": "simulate", "images": 9, "grid": grid})
    assert [point.settings.singles for point in found.points] == [5, 10]
    for bad in ("M+1", "N-1", "N+", ""):
        with pytest.raises(UsageError, match="N\\+2 for two more"):
            expand({"how": "simulate", "images": 9, "base": {"singles": bad}})
