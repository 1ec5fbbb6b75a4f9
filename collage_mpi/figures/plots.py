"""Draws the latency distributions of runs and their tails, as PNG and PDF, with every step as CSV.
`pyplot` imports matplotlib when it is first called, with a backend that needs no display.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from collage_mpi.errors import DataFault, UsageError
from collage_mpi.plugins import optional
from collage_mpi.results.reader import Results, distinct
from collage_mpi.results.statistics import PERCENTILES, BoundedSample, support_needed
from collage_mpi.system.files import save_csv, writing
from collage_mpi.system.printable import readable

# Okabe and Ito (2008), without yellow, which is hard to see on white: distinct with every common
# colour blindness. Line styles differ too, for prints in grey.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
STYLES = ("-", "--", "-.", (0, (1, 1.2)), (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

STYLE: dict[str, Any] = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 9.5,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text stays text in the PDF
}


def look(number: int) -> tuple[str, str]:
    """The colour and the marker of the line with this number."""
    return COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]


def pyplot() -> Any:
    """matplotlib.pyplot without a display.

    Raises:
        EnvironmentFault: matplotlib is not installed.
    """
    optional("matplotlib", "plot", "the figure").use("Agg")
    from matplotlib import pyplot

    return pyplot


def subplots(
    size_in: tuple[float, float],
    margins_in: tuple[float, float, float, float],
    shape: tuple[int, int] = (1, 1),
    **more: Any,
) -> tuple[Any, Any]:
    """Create a figure and its axes, an array (rows, columns).

    Args:
        size_in: width and height, in inches.
        margins_in: left, right, top and bottom, in inches.
        shape: (rows, columns).
        more: sharex, sharey; wspace and hspace, the spaces between axes.
    """
    (width, height), (left, right, top, bottom) = size_in, margins_in
    spaces = {name: more.pop(name) for name in ("wspace", "hspace") if name in more}
    figure, grid = pyplot().subplots(*shape, figsize=size_in, squeeze=False, **more)
    figure.subplots_adjust(
        left=left / width,
        right=1 - right / width,
        top=1 - top / height,
        bottom=bottom / height,
        **spaces,
    )
    return figure, grid


def plain_numbers(axis: Any, form: str) -> None:
    """Label major ticks with plain numbers, without powers of ten, and minor ticks not at all."""
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axis.set_minor_formatter(NullFormatter())
    axis.set_major_formatter(FuncFormatter(lambda value, _: format(value, form)))


def numbers_on_log_axis(axis: Any, subs: Sequence[float]) -> None:
    """Set ticks on a logarithmic axis at these multiples of each power of ten."""
    from matplotlib.ticker import LogLocator

    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=30))
    plain_numbers(axis, ",.12g")


def save(figure: Any, out_stem: Path | str, title: str = "", dpi: int = 200) -> list[Path]:
    """Write `out_stem`.png and .pdf, creating folders, and close the figure.

    Args:
        title: for the upper left of the figure; its first line is bold, and further lines are grey.

    Raises:
        EnvironmentFault: the files cannot be written.
    """
    out_stem = Path(out_stem)
    if title:
        _head(figure, title)
    paths = [out_stem.with_name(out_stem.name + suffix) for suffix in (".png", ".pdf")]
    try:
        with writing(out_stem):
            out_stem.parent.mkdir(parents=True, exist_ok=True)
            figure.savefig(paths[0], dpi=dpi)
            figure.savefig(paths[1])
    finally:
        pyplot().close(figure)
    return paths


def _head(figure: Any, title: str) -> None:
    height_in = figure.get_figheight()
    first, *rest = title.split("\n")
    figure.text(0.012, 1 - 0.1 / height_in, first, va="top", fontsize=11, fontweight="bold")
    under = "\n".join(rest)
    figure.text(0.012, 1 - 0.32 / height_in, under, va="top", color="0.25", linespacing=1.25)


_LOG_RANGE = 10.0  # x is logarithmic if the largest latency is more than this times the smallest


@dataclass(frozen=True)
class _Curve:
    """The empirical distribution of one run: x in ms, ascending, and the share F of values <= x."""

    name: str
    sample: BoundedSample
    x_ms: np.ndarray
    share: np.ndarray
    independent: int
    run: str

    def at(self, q: float) -> float | None:
        """The percentile q; None if there are too few groups or batches for it."""
        return self.sample.percentile(q, self.independent)


def plot_latency_cdf(
    runs: Sequence[Results],
    out_stem: Path,
    *,
    per: str = "group",
    title: str | None = None,
    names: Sequence[str] | None = None,
) -> list[Path]:
    """Draw the latency distributions of runs: F on the left, the tail 1 - F (logarithmic) on the
    right.

    Args:
        runs: one or more; warm-up groups are left out.
        out_stem: path without suffix; .png, .pdf and .csv are written, and folders created.
        per: "group" (admission to last image) or "image".
        title: first line above the figure; by default what is shown and the straggler model.
        names: one for each run, for the legend; by default scheme and mode.

    Returns:
        The PNG, the PDF and the CSV.

    Raises:
        UsageError: there are no runs, or `per` is unknown.
        DataFault: a run has no measured group.
        EnvironmentFault: matplotlib is missing, or the files cannot be written.
    """
    if per not in ("group", "image"):
        raise UsageError(f"latency per {per!r} is unknown; choose group or image")
    if not runs:
        raise UsageError("no runs to draw; name at least one run directory")
    plt = pyplot()  # first, because it may be missing
    names = names or _legends(runs)
    curves = [_curve(run, per, name) for run, name in zip(runs, names, strict=True)]
    with plt.rc_context(STYLE):
        figure = _draw(curves, title or _title(runs, per), per)
        png, pdf = save(figure, out_stem)
    table = png.with_suffix(".csv")
    columns = ("run", "legend", "per", "latency_ms", "share_done", "share_waiting")
    save_csv(table, columns, _steps(curves, per), line_end="\r\n")
    return [png, pdf, table]


def _straggler(run: Results) -> str:
    return run.manifest.get("straggler") or "none"


def _legends(runs: Sequence[Results]) -> list[str]:
    stragglers = len({_straggler(run) for run in runs}) > 1
    names = [
        f"{run.scheme} | {run.mode}" + (f" | stragglers: {_straggler(run)}" if stragglers else "")
        for run in runs
    ]
    return distinct(names, runs)


def _title(runs: Sequence[Results], per: str) -> str:
    """What is shown, and the straggler model, without which a latency means nothing."""
    models = {_straggler(run) for run in runs}
    model = models.pop() if len(models) == 1 else "differ, see legend"
    side = {run.manifest.get("side") for run in runs}
    images = f" of {n * n} images" if len(side) == 1 and (n := side.pop()) else ""
    subject = f"Latency of a group{images}" if per == "group" else "Latency of an image"
    return f"{subject}\nStragglers: {model}"


def _curve(run: Results, per: str, name: str) -> _Curve:
    rows = run.measured_groups if per == "group" else run.measured_images
    if not len(rows):
        raise DataFault(
            f"{run.path}: no measured {per} in this run (only warm-up, or nothing yet); "
            "leave it out or let it run longer."
        )
    groups = len(run.measured_groups)
    sample = BoundedSample(None)
    sample.add(rows["latency_ns"] / 1e6)
    x_ms, below = sample.steps()
    n = f"n = {groups:,} groups" if per == "group" else f"n = {len(rows):,} in {groups:,} groups"
    flags = "" if run.complete else " (INCOMPLETE)"
    independent = run.independent(run.measured_groups)
    path = readable(str(run.path))
    return _Curve(f"{name} | {n}{flags}", sample, x_ms, below / sample.n, independent, path)


def _draw(curves: list[_Curve], title: str, per: str) -> Any:
    first, *rest = title.split("\n")
    heading = textwrap.wrap(first, 76) or [""]  # bold: 0.1 inch a letter
    under = [line for part in rest for line in textwrap.wrap(part, 108)]
    head_in = 0.14 + 0.2 * len(heading)
    top_in = head_in + 0.24 + 0.18 * len(under)
    texts = [textwrap.fill(curve.name, 118) for curve in curves]
    bottom_in = 0.68 + 0.18 * sum(text.count("\n") + 1 for text in texts)
    height_in = top_in + 3.1 + bottom_in
    margins_in = (0.645, 0.43, top_in, bottom_in)
    figure, grid = subplots((8.6, height_in), margins_in, (1, 2), wspace=0.3)
    left, right = grid[0]
    for i, curve in enumerate(curves):
        _draw_curve(left, curve, i, tail=False)
        _draw_curve(right, curve, i, tail=True)
    _finish_cdf(left, right, curves, per)
    bold = {"fontsize": 11, "fontweight": "bold", "linespacing": 1.1}
    figure.text(0.012, 1 - 0.12 / height_in, "\n".join(heading), va="top", **bold)
    figure.text(0.012, 1 - head_in / height_in, "\n".join(under), va="top", color="0.25")
    handles, _ = left.get_legend_handles_labels()
    figure.legend(
        handles, texts, loc="lower left", bbox_to_anchor=(0.06, 0.0), handlelength=4.2, fontsize=8.8
    )
    return figure


def _draw_curve(axes: Any, curve: _Curve, i: int, *, tail: bool) -> None:
    """Draw F, or 1 - F for the tail, as steps, with a marker at each percentile that the run
    has."""
    x, share = np.append(curve.x_ms[0], curve.x_ms), np.append(0.0, curve.share)
    if tail:
        share = np.maximum(1.0 - share, 0.0)
        share[-1] = 1e-12  # 0, which a logarithmic axis cannot show: the line goes to the frame
    colour, marker = look(i)
    line = {"drawstyle": "steps-post", "linestyle": STYLES[i % len(STYLES)], "linewidth": 1.7}
    in_legend = {} if tail else {"label": curve.name, "marker": marker, "markevery": []}
    axes.plot(x, share, color=colour, **line, **in_legend)
    wanted = PERCENTILES if tail else PERCENTILES[:2]
    found = [(at, 1 - q if tail else q) for q in wanted if (at := curve.at(q)) is not None]
    if found:
        x, y = np.array(found).T
        axes.plot(x, y, linestyle="", marker=marker, color=colour, markersize=5, mec="white")


def _finish_cdf(left: Any, right: Any, curves: list[_Curve], per: str) -> None:
    most = max(curve.independent for curve in curves)
    smallest = min(1.0 / curve.sample.n for curve in curves)
    left.set(ylim=(0, 1.005), ylabel=f"share of {per}s done")
    left.set_title("Distribution", pad=8)
    right.set(yscale="log", ylim=(smallest / 1.6, 1.05), ylabel=f"share of {per}s still waiting")
    right.set_title("Tail", pad=8)
    for axes, wanted in ((left, PERCENTILES[:2]), (right, PERCENTILES)):
        _x_axis(axes, curves)
        for q in wanted:
            if most >= support_needed(q):
                _guide(axes, q, 1 - q if axes is right else q)
    plain_numbers(right.yaxis, ".12g")


def _guide(axes: Any, q: float, y: float) -> None:
    """A horizontal line at a percentile, named at its right end beside the frame."""
    axes.axhline(y, color="0.75", linewidth=0.7, zorder=0)
    axes.annotate(
        f"P{100 * q:.4g}",
        (1.0, y),
        xycoords=("axes fraction", "data"),
        xytext=(3, 0),
        textcoords="offset points",
        ha="left",
        va="center",
        fontsize=7.8,
        color="0.35",
    )


def _x_axis(axes: Any, curves: list[_Curve]) -> None:
    """Set up the axis of latencies in ms, logarithmic if the range is large."""
    low = min(float(curve.x_ms[0]) for curve in curves)
    high = max(float(curve.x_ms[-1]) for curve in curves)
    axes.set_xlabel("latency, ms (log scale)" if _is_log(low, high) else "latency, ms")
    if _is_log(low, high):
        axes.set_xscale("log")
        axes.set_xlim(low / 1.12, high * 1.25)
        numbers_on_log_axis(axes.xaxis, (1, 2, 5) if high / low < 2000 else (1,))
    else:
        axes.set_xlim(0, high * 1.08 if high > 0 else 1.0)


def _is_log(low: float, high: float) -> bool:
    return low > 0 and high / low > _LOG_RANGE


def _steps(curves: list[_Curve], per: str) -> Iterator[tuple[str, ...]]:
    """Yields run, legend text, latency, share done and share waiting for every step of each
    curve."""
    for curve in curves:
        for x, share in zip(curve.x_ms.tolist(), curve.share.tolist(), strict=True):
            yield curve.run, curve.name, per, f"{x:.6f}", f"{share:.8f}", f"{1 - share:.8f}"
