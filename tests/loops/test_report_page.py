"""The report in a real browser: no complaint, marks in every chart, keys, widths, dark."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from browser import CHROMIUM, Browser

from collage_mpi.report.page import write_report
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.runs import run_job
from collage_mpi.simulation.simulator import SimulatedJob

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here: apt install chromium")

PLOT = 'document.querySelectorAll(".plot")'
# The colours of the first two runs (assets/page.css), light and dark.
COLOURS = {False: ("#d55e00", "#0072b2"), True: ("#ff8b3d", "#58b2f2")}


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of two simulated runs, one with a class of service times that is slow."""
    out = tmp_path_factory.mktemp("page")
    for scheme in ("none", "collage"):
        settings = RunSettings(
            out=str(out / scheme), scheme=scheme, straggler="lognormal", slow_ranks=("4:5",)
        )
        run_job(SimulatedJob(settings, 9 * 500))
    write_report([out / "none", out / "collage"], out / "report.html")
    return out / "report.html"


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser") / "profile") as found:
        yield found


def marks(browser: Browser, picture: np.ndarray, chart: int, colour: str) -> int:
    """Pixels of a colour inside a chart's frame, its legend left out."""
    place = f"(() => {{const r = {PLOT}[{chart}].querySelector('.u-over').getBoundingClientRect();"
    place += "return [r.left + scrollX, r.top + scrollY, r.right + scrollX, r.bottom + scrollY]})()"
    left, top, right, bottom = (round(x) for x in browser.value(place))
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    inside = picture[top:bottom, left:right].astype(int)
    return int((np.abs(inside - wanted).max(axis=2) <= 3).sum())


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_charts_have_marks_and_nothing_complains(
    browser: Browser, page: Path, width: int, dark: bool
) -> None:
    browser.complaints.clear()
    browser.open(page, width, dark=dark)
    assert browser.complaints == []
    assert browser.value("document.documentElement.scrollWidth") <= width
    shown = browser.value('[...document.querySelectorAll(".chart")].map((c) => c.dataset.kind)')
    assert shown == ["cdf", "tail", "time", "timeline", "timeline"]
    picture = browser.picture()
    for chart in range(3):
        for colour in COLOURS[dark]:
            assert marks(browser, picture, chart, colour) > 60, (shown[chart], colour)
    for chart in (3, 4):  # answers of single ranks, in the kinds' own colour
        assert marks(browser, picture, chart, "#0072B2") > 300
    assert marks(browser, picture, 4, "#009E73") > 100  # the collage's
    paper = picture[5, 5].astype(int)
    assert (paper.max() < 60) if dark else (paper.min() > 240)


def test_keys_move_the_cursor_and_zoom(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    legend = f"{PLOT}[0].querySelector('.u-legend').innerText"
    idle = browser.value(legend)
    assert "none, pulled" in idle
    assert "--" not in idle  # no value without a cursor
    assert "latency" not in idle
    browser.value(f"{PLOT}[0].focus()")
    browser.press("ArrowRight")
    told = browser.value(legend)
    assert "%" in told
    browser.press(*["ArrowLeft"] * 20)  # far: between two steps the same one holds
    assert browser.value(legend) != told
    before = browser.picture()
    browser.press("+")
    zoomed = browser.picture()
    assert (before != zoomed).any()
    browser.press("0", "ArrowLeft", "ArrowRight")
    assert (browser.picture() == before).all()


def test_a_table_says_that_it_has_more_columns_while_it_has(browser: Browser, page: Path) -> None:
    told = "[...document.querySelectorAll('.scroll')].filter((t) => t.offsetParent).map((t) => "
    told += "[t.scrollWidth > t.clientWidth + 2, !t.previousElementSibling.hidden])"
    for width in (400, 1280):
        browser.open(page, width)
        found = browser.value(told)
        assert all(wide == said for wide, said in found)
        assert any(wide for wide, _ in found) == (width == 400)
    browser.open(page, 400)
    browser.value("document.querySelectorAll('.scroll').forEach((t) => t.scrollLeft = 9999)")
    browser.press("Shift")  # waits for the next frame
    assert not any(said for _, said in browser.value(told))


def test_the_charts_say_what_their_axes_are(browser: Browser, page: Path) -> None:
    keep = "const fill = CanvasRenderingContext2D.prototype.fillText; window.texts = new Set();"
    keep += "CanvasRenderingContext2D.prototype.fillText = function(text, ...more) {"
    keep += "texts.add(text); fill.call(this, text, ...more)}"
    script = browser.call("Page.addScriptToEvaluateOnNewDocument", source=keep)["identifier"]
    browser.open(page, 1280)
    browser.call("Page.removeScriptToEvaluateOnNewDocument", identifier=script)
    texts = [text for text in browser.value("[...texts]") if not re.match(r"[\d.,]*$", text)]
    ranks = {f"rank {rank}" for rank in range(1, 10)} | {"collage 10"}
    group = re.compile(r"ms since the release of group \d+")
    assert {group.sub("ms since the release", text) for text in texts} - ranks == {
        *("latency of a group, ms (log scale)", "latency of a group, ms"),
        *("done, % of groups", "still waiting, % of groups (log scale)"),
        *("seconds since the first measured release", "ms since the release"),
        *("P50", "P95", "P99"),
    }


def test_the_timeline_tells_what_is_under_the_cursor(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    browser.value(f"{PLOT}[4].focus()")
    said = set()
    for _ in range(12):
        browser.press("ArrowUp", "ArrowRight")
        said.add(browser.value('document.querySelectorAll(".chart output")[4].innerText'))
    assert any("waited" in line and "worked" in line for line in said), said


def test_a_name_is_reached_by_tab_and_hides_its_line(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    browser.value(f"{PLOT}[0].focus()")
    browser.press("Tab", "Tab")  # the chart's first two names: latency, and the first run
    name = browser.value("document.activeElement.innerText")
    assert name.startswith("none"), name
    before = marks(browser, browser.picture(), 0, COLOURS[False][0])
    browser.press("Enter")
    assert marks(browser, browser.picture(), 0, COLOURS[False][0]) < before / 10


def test_a_change_to_dark_redraws(browser: Browser, page: Path) -> None:
    browser.open(page, 1280)
    scheme = {"name": "prefers-color-scheme", "value": "dark"}
    browser.call("Emulation.setEmulatedMedia", features=[scheme])
    browser.press("Shift")
    assert marks(browser, browser.picture(), 0, COLOURS[True][0]) > 60
