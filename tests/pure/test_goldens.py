"""What people and machines read of one run made by hand: every label, cell and unit."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hand_made import hand_made

from collage_mpi import __version__
from collage_mpi.cli import main
from collage_mpi.commands.look import drawn
from collage_mpi.figures.plots import plot_latency_cdf
from collage_mpi.report.page import render_page
from collage_mpi.results import Results, compare, read_results, render_comparison, summarise
from collage_mpi.results.render import render_summary
from collage_mpi.results.status import ALIVE, View
from collage_mpi.system.table import to_text

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("made")
    error = "complete_with_errors"
    plain = hand_made(out / "none", collage=False)
    return [plain, hand_made(out / "collage", collage=True, status=error)]


@pytest.fixture(scope="module")
def runs(folders: list[Path]) -> list[Results]:
    return [read_results(folder) for folder in folders]


def check(name: str, text: str, tmp_path: Path, *places: Path) -> None:
    """The text is the golden's, but for the folders, the version and the time of day."""
    for place in places:
        text = text.replace(str(place), f"<{place.name}>")
    text = re.sub(r"\d{4}-\d\d-\d\d[T ][\d:.]+(\+00:00| UTC)", "<time>", text)
    text = text.replace(__version__, "<version>").rstrip() + "\n"
    found = tmp_path / name
    found.write_text("\n".join(line.rstrip() for line in text.splitlines()) + "\n", "utf-8")
    golden = GOLDEN / name
    assert found.read_text("utf-8") == golden.read_text("utf-8"), (
        f"what users read has changed; where that is meant: cp {found} {golden}"
    )


# ---- the report ---------------------------------------------------------------


class Lines(HTMLParser):
    """The page as lines: a line a row of a table with its cells, a line a paragraph."""

    BLOCKS = frozenset(
        [
            "h1",
            "h2",
            "h3",
            "h4",
            "p",
            "li",
            "tr",
            "caption",
            "dt",
            "figcaption",
            "summary",
            "output",
            "title",
        ]
    )

    def __init__(self, page: str) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.hidden = False
        self.charts = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        about = dict(attrs)
        self.hidden = "hidden" in about
        if tag in self.BLOCKS:
            self.lines.append("")
        if tag in ("h2", "table"):
            self.lines += ["", ""]
        if tag in ("td", "th", "dd", "span", "b", "a", "img"):
            marked = " ".join(filter(None, (about.get("class"), about.get("alt"))))
            self.lines[-1] += " | " + (f"[{marked}] " if marked else "")
        if tag == "line":  # of a range: from where to where, in per cent of its cell
            self.lines[-1] += f"<{float(about['x1'] or 0):.4g} to {float(about['x2'] or 0):.4g}>"
        if tag == "td" and "style" in about:
            self.lines[-1] += f"<{about['style']}> "
        if "aria-label" in about:
            self.lines.append(f"({tag}: {about['aria-label']})")

    def handle_data(self, data: str) -> None:
        if self.lasttag == "script":
            self.charts = self.charts or data
        elif self.lasttag != "style" and not self.hidden and data.strip():
            self.lines[-1] += " ".join(data.split())


def drawn_in(charts: list[dict[str, Any]]) -> list[str]:
    """What the page's charts are drawn from, a line a thing; of long lists both ends."""
    lines = []
    for run in charts:
        for chart in ("curve", "time", "timeline"):
            for key, value in (run[chart] or {}).items():
                shown = value if not isinstance(value, list) or len(value) < 12 else None
                ends = {"of": len(value), "ends": [value[0], value[-1]]} if shown is None else {}
                lines.append(f"{run['name']}, {chart}, {key}: {json.dumps(shown or ends)}")
    return lines


def test_the_report(folders: list[Path], tmp_path: Path) -> None:
    page = Lines(render_page(folders))
    text = "\n".join([*page.lines, "", *drawn_in(json.loads(page.charts))])
    text = re.sub(r"\n[ |]+As by default\n.*?(?=\nBy what)", "", text, flags=re.DOTALL)
    check("report.txt", re.sub(r"\n{3,}", "\n\n", text), tmp_path, *folders)


def test_the_report_of_one_run_that_is_incomplete(tmp_path: Path) -> None:
    run = hand_made(tmp_path / "half", collage=True, status="incomplete")
    page = Lines(render_page([run]))
    text = "\n".join(page.lines).partition("\nSpeed and price")[0]
    check("report_incomplete.txt", re.sub(r"\n{3,}", "\n\n", text), tmp_path, run)


# ---- the terminal -------------------------------------------------------------


def test_the_summary(runs: list[Results], folders: list[Path], tmp_path: Path) -> None:
    text = "\n\n".join(render_summary(summarise(run), width=120) for run in runs)
    check("summary.txt", text, tmp_path, *folders)


def test_the_comparison(runs: list[Results], folders: list[Path], tmp_path: Path) -> None:
    each = [render_comparison(compare(runs, per=per), width=160) for per in ("group", "image")]
    check("comparison.txt", "\n\n".join(each), tmp_path, *folders)


def test_the_slow_ranks(
    folders: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["ranks", str(folders[0])]) == 0
    assert main(["verify", str(folders[1])]) == 0
    check("commands.txt", capsys.readouterr().out, tmp_path, *folders)


# ---- the status ---------------------------------------------------------------

STATUS: dict[str, Any] = {
    "label": "collage, first (carry, depth 1)",
    "total": 328,
    "before": 12,
    "done": 164,
    "host": "node1",
    "pid": 7,
    "session": 2,
    "every_s": 5.0,
    "elapsed_s": 90.0,
    "out": "/out",
    "written": "at noon",
    "written_s": 1_790_000_000.0,
    "count": 3,
    "jobs": 1,
    "errors": 1,
    "by_collage": 41,
    "images_per_s": 2.5,
    "images_per_s_lately": 4.0,
    "left_s": 41.0,
    "ranks": [
        {"rank": rank, "host": f"node{rank}", "kinds": [kind], "state": state, "tasks": 3}
        | {"service_ms": service_ms, "answers": 20, "why": why}
        for rank, kind, state, service_ms, why in (
            (1, "single", "ready", 110.0, None),
            (2, "single", "ready", 100.0, None),
            (3, "single", "suspected", 450.0, "silent for 9 s"),
            (4, "single", "lost", None, "its link broke"),
            (5, "collage", "ready", 1500.0, None),
        )
    ],
}


def test_top(tmp_path: Path) -> None:
    view = View({**STATUS, "state": "running"}, ALIVE, 0.0, 1.0)
    check("top.txt", to_text(drawn(Path("runs/x"), view, 9), width=100), tmp_path)


# ---- figures ------------------------------------------------------------------


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The texts and marks of the figures that are drawn, in place of their files."""
    matplotlib_figure = pytest.importorskip("matplotlib.figure")
    found: list[str] = []

    def savefig(figure: Any, path: Path, **more: Any) -> None:
        if path.suffix == ".png":
            figure.canvas.draw()
            found.extend(_told(figure))

    monkeypatch.setattr(matplotlib_figure.Figure, "savefig", savefig)
    return found


def _told(figure: Any) -> list[str]:
    lines = [f"figure: {text.get_text()!r}" for text in figure.texts]
    for i, axes in enumerate(figure.axes):
        title = axes.get_title(loc="left") or axes.get_title()
        lines.append(f"panel {i}: {title!r}")
        for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
            ticks = [tick.get_text() for tick in axis.get_ticklabels()]
            lines.append(f"  {name}: {axis.get_label_text()!r}, {axis.get_scale()}; {ticks}")
        lines += [f"  text {text.get_text()!r} at {_xy(text)}" for text in axes.texts]
        lines += [f"  {_line(line)}" for line in axes.lines]
        lines += [f"  bar {_bar(bar)}" for bar in axes.patches]
    for legend in figure.legends:
        for handle, text in zip(legend.legend_handles, legend.get_texts(), strict=True):
            lines.append(f"legend {_look(handle)}: {text.get_text()!r}")
    return [*lines, ""]


def _xy(text: Any) -> list[float]:
    return [float(f"{value:.5g}") for value in getattr(text, "xy", text.get_position())]


def _line(line: Any) -> str:
    places = [tuple(float(f"{v:.5g}") for v in xy) for xy in np.array(line.get_data(), float).T]
    shown = places if len(places) < 8 else [*places[:3], f"{len(places)} places", places[-1]]
    return f"line {_look(line)}: {shown}"


def _look(artist: Any) -> str:
    from matplotlib.colors import to_hex

    if not hasattr(artist, "get_marker"):
        return f"{to_hex(artist.get_facecolor())} {artist.get_hatch() or ''}"
    marks = f"{artist.get_marker()} {artist.get_markerfacecolor()}"
    return f"{artist.get_color()} {artist.get_linestyle()} {marks}"


def _bar(bar: Any) -> str:
    x, y, wide, high = (float(f"{v:.5g}") for v in bar.get_bbox().bounds)
    return f"{x} + {wide} at {y} + {high} {_look(bar)}"


def test_the_figures_of_distributions(
    runs: list[Results], figures: list[str], tmp_path: Path
) -> None:
    for per in ("group", "image"):
        _, _, table = plot_latency_cdf(runs, tmp_path / "cdf", per=per)
        lines = table.read_text().splitlines()
        figures += [*lines[:3], *lines[-1:], ""]
    check("figure_cdf.txt", "\n".join(figures), tmp_path, *(run.path for run in runs))
