"""The style of all figures, and their output as PNG and PDF. Other modules get matplotlib from
`pyplot`, which imports it when it is first called, with a backend that needs no display.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from collage_mpi.plugins import optional
from collage_mpi.system.files import writing

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
