"""Draws the timeline of a run: ranks as rows, tasks as bars."""

from __future__ import annotations

from itertools import groupby
from pathlib import Path
from typing import Any

from collage_mpi.figures import style
from collage_mpi.results.timeline import STRAGGLER, Bar, Timeline, look_of, looks

_WAIT = "0.7"
_HEIGHT = 0.66  # of a bar, in rows


def plot_timeline(timeline: Timeline, out_stem: Path, title: str) -> list[Path]:
    """Draw the tasks of each rank as bars, over ms since the first group's admission.

    Args:
        timeline: of some groups of a run; about ten are readable.
        out_stem: path without suffix; .png and .pdf are written.
        title: the first line is bold, and further lines are below it.

    Returns:
        The PNG and the PDF.

    Raises:
        EnvironmentFault: matplotlib is missing, or the files cannot be written.
    """
    pyplot = style.pyplot()
    rows = {rank: row for row, rank in enumerate(timeline.ranks)}
    under = title.count("\n")
    height_in = 1.75 + 0.16 * under + 0.24 * len(rows)
    with pyplot.rc_context(style.STYLE):
        margins_in = (0.82, 0.13, 0.5 + 0.16 * under, 0.95)
        figure, grid = style.subplots((8.6, height_in), margins_in)
        axes = grid[0, 0]
        colours = {look: colour for look, (colour, _) in looks(timeline).items()}
        for bar in timeline.bars:
            _draw_bar(axes, bar, rows[bar.rank], timeline, colours[look_of(bar)])
        _finish(axes, timeline, rows)
        _legend(figure, timeline)
        return style.save(figure, out_stem, title)


def _draw_bar(axes: Any, bar: Bar, row: int, timeline: Timeline, colour: str) -> None:
    """Draw the wait as a thin grey bar, and the service as a thick bar in the colour of the state.
    Stragglers are outlined.
    """
    low, high = timeline.begin_ns, timeline.end_ns
    sent, start, end = (
        min(max(t, low), high) - low for t in (bar.sent_ns, bar.start_ns, bar.end_ns)
    )
    if start > sent:
        left, width = sent / 1e6, (start - sent) / 1e6
        axes.barh(row + 0.41, width, left=left, height=0.1, color=_WAIT, zorder=1)
    if bar.end_ns == bar.start_ns:  # the task was skipped or lost, so it did not run
        axes.plot(end / 1e6, row, marker="x", markersize=4, color=colour, linestyle="", zorder=3)
        return
    height = _HEIGHT / bar.lanes
    look = {"edgecolor": "black", "linewidth": 1.1, "hatch": "////"} if bar.straggler else {}
    axes.barh(
        row - _HEIGHT / 2 + (bar.lane + 0.5) * height,
        (end - start) / 1e6,
        left=start / 1e6,
        height=height,
        color=colour,
        zorder=2,
        **{"edgecolor": "white", "linewidth": 0.4, **look},
    )


def _finish(axes: Any, timeline: Timeline, rows: dict[int, int]) -> None:
    begin_ns = timeline.begin_ns
    for t0_ns, together in groupby(timeline.releases, key=lambda release: release.t0_ns):
        numbers = [release.group for release in together]
        x = (t0_ns - begin_ns) / 1e6
        axes.axvline(x, color="0.45", linewidth=0.7, linestyle=(0, (2, 2)), zorder=0)
        axes.annotate(
            str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]}-{numbers[-1]}",
            (x, 1.0),
            xycoords=("data", "axes fraction"),
            xytext=(1, 1),
            textcoords="offset points",
            fontsize=7,
            color="0.35",
        )
    axes.set_yticks(list(rows.values()), list(timeline.ranks.values()))
    axes.set_ylim(len(rows) - 0.4, -0.6)  # rank 1 at the top
    axes.set_xlim(0, (timeline.end_ns - begin_ns) / 1e6)
    axes.set_xlabel(f"ms since the release of group {timeline.releases[0].group}; dashed: releases")
    axes.tick_params(axis="y", length=0)


def _legend(figure: Any, timeline: Timeline) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = [
        Line2D([], [], marker="x", color=colour, linestyle="", label=label)
        if look in ("skipped", "lost")
        else Patch(color=colour, label=label)
        for look, (colour, label) in looks(timeline).items()
    ]
    if any(bar.start_ns > bar.sent_ns for bar in timeline.bars):
        handles.append(Patch(color=_WAIT, label="waits at its rank (thin, below)"))
    if any(bar.straggler for bar in timeline.bars):
        label = f"straggler: over {STRAGGLER:g} x the median service"
        handles.append(Patch(facecolor="white", edgecolor="black", hatch="////", label=label))
    figure.legend(
        handles=handles, loc="lower left", ncols=3, fontsize=8, bbox_to_anchor=(0.07, 0.0)
    )
