"""compare.py's lines as a table (Markdown) and a figure.

    python analysis/peers/report.py peers.jsonl --figure docs/images/peers \\
        --page analysis/reports/peers.md

Owns: which figure of a program stands in a cell (the median over repeats at its best chunk), what
counts as the same work, and where a peer is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections import defaultdict
from math import isnan
from pathlib import Path
from statistics import median
from typing import Any

from cases import CASES, OURS, PEERS, VARIANTS
from page import markdown_of, write_into

from collage_mpi.figures import plots
from collage_mpi.system.table import Table

Key = tuple[str, str]  # case, program
Line = dict[str, Any]
PROGRAMS = [name + reads for name in PEERS for reads in VARIANTS[name]] + list(OURS)
NAMES = {
    "bare_mpi": "mpi4py alone",
    "futures": "mpi4py.futures",
    "static_loader": "static + DataLoader",
    "parsl_htex": "Parsl HTEX",
    "ray_actors": "Ray actors",
    "ray_data": "Ray Data",
    "daft_udf": "Daft",
    "ours": "none, defaults",
    "ours-paper": "none, paper",
    "ours-batch-1": "none, throughput, batch 1",
    "ours-throughput": "none, throughput",
    "ours-collage": "collage, accept first, throughput",
}
READS = {"": "", "sender": ", sender reads", "workers": ", workers read"}
NULL = {case.name for case in CASES if case.network == "null"}
KILLED = {case.name for case in CASES if case.kill}
MEMORY_OF = "224 px"


def name_of(program: str) -> str:
    base, _, reads = program.partition("+")
    return NAMES[base] + READS[reads]


def best(lines: list[Line]) -> dict[Key, tuple[float, int]]:
    """(case, program) -> images/s, the median over repeats at the best chunk, and that chunk."""
    rates: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for line in lines:
        key = (line["case"], line["program"], line["chunk"])
        rates[key].append(0.0 if line["lost"] else line["images_per_s"])
    found: dict[Key, tuple[float, int]] = {}
    for (case, program, chunk), all_rates in rates.items():
        rate = median(all_rates)
        if rate >= found.get((case, program), (0.0, 0))[0]:
            found[case, program] = (rate, chunk)
    return found


def differing(lines: list[Line]) -> list[str]:
    """Cases whose programs gave other answers, where all ran the same null network.

    A collage's cells are shrunk images, of which it reads other pixels.
    """
    sums: dict[str, set[int]] = defaultdict(set)
    for line in lines:
        if line["case"] in NULL and not line["lost"] and "collage" not in line["program"]:
            sums[line["case"]].add(line["class_sum"])
    return [case for case, found in sums.items() if len(found) > 1]


def cases_of(lines: list[Line]) -> list[str]:
    seen = {line["case"] for line in lines}
    return [case.name for case in CASES if case.name in seen]


def programs_of(lines: list[Line]) -> list[str]:
    seen = {line["program"] for line in lines}
    return [program for program in PROGRAMS if program in seen]


def table(lines: list[Line]) -> str:
    """A row a program, a column a case; the fastest of a column is bold."""
    found, cases = best(lines), cases_of(lines)
    most = {c: max(rate for (case, _), (rate, _) in found.items() if case == c) for c in cases}
    rows = []
    for program in programs_of(lines):
        mine = [line for line in lines if line["program"] == program]
        cells = [_cell(c, found.get((c, program)), most[c], mine) for c in cases]
        there = [line["peak_mb"] for line in mine if line["case"] == MEMORY_OF]
        rows.append([name_of(program), *cells, f"{median(there):,.0f}" if there else ""])
    return markdown_of(Table(["", *cases, f"MB, {MEMORY_OF}"], rows))


def _cell(case: str, found: tuple[float, int] | None, most: float, mine: list[Line]) -> str:
    if found is None:
        return ""
    here = [line for line in mine if line["case"] == case]
    if case in KILLED:
        return " / ".join(sorted({fate(line) for line in here}))
    rate, chunk = found
    if not rate:
        return "refused" if all(line["exit"] == 2 for line in here) else "no result"
    text = f"**{rate:,.0f}**" if rate == most else f"{rate:,.0f}"
    return f"{text} ({chunk})" if chunk else text


def fate(line: Line) -> str:
    """What became of a job one of whose workers was killed."""
    if line["ended_s"] is None:
        return "ended before"  # the kill: the case is too short here
    if line["exit"] is None:
        return "hung"
    rows = "all rows lost" if line["lost"] and not line.get("rows") else f"{line['lost']} lost"
    return f"{rows}, ended after {line['ended_s']:.0f} s"


def lines_of_text(lines: list[Line]) -> list[str]:
    """Ours beside the fastest peer of each case, and who is faster than all of ours."""
    found, text = best(lines), []
    for case in cases_of(lines):
        if case in KILLED:
            continue
        rates = {p: rate for (c, p), (rate, _) in found.items() if c == case}
        mine = {p: rate for p, rate in rates.items() if p in OURS}
        if not mine or not any(mine.values()) or len(mine) == len(rates):
            continue
        top = max(mine, key=lambda p: mine[p])
        faster = sorted((p for p in rates if rates[p] > mine[top]), key=lambda p: -rates[p])
        said = ", ".join(f"{name_of(p)} {rates[p] / mine[top]:.2f} x" for p in faster)
        text.append(
            f"- **{case}**: ours at best {mine[top]:,.0f} images/s ({name_of(top)}); "
            + (f"faster: {said}." if faster else "no peer is faster.")
        )
        for peer in ("futures", "futures+sender", "futures+workers"):
            if rates.get(peer):
                text[-1] += f" To {name_of(peer)}: {mine[top] / rates[peer]:.2f} x."
    return text


def draw(lines: list[Line], out: Path) -> None:
    """Bars: images/s by program, a panel a case."""
    found, programs = best(lines), programs_of(lines)
    cases = [case for case in cases_of(lines) if case not in KILLED]
    colours = {"ours": plots.COLOURS[0], "": plots.COLOURS[1], "sender": plots.COLOURS[4],
               "workers": plots.COLOURS[2]}  # fmt: skip
    says = {"ours": "this package", "": "images in memory", "sender": "sender reads",
            "workers": "workers read"}  # fmt: skip
    kinds = ["ours" if p in OURS else p.partition("+")[2] for p in programs]
    plt = plots.pyplot()
    with plt.rc_context(plots.STYLE):
        figure, axes = plt.subplots(
            1,
            len(cases),
            figsize=(1.75 * len(cases) + 1.9, 0.19 * len(programs) + 1.0),
            sharey=True,
            layout="constrained",
            squeeze=False,
        )
        for axis, case in zip(axes[0], cases, strict=True):
            rates = [found.get((case, p), (float("nan"), 0))[0] for p in programs]
            bars = axis.barh(range(len(programs)), rates, color=[colours[k] for k in kinds])
            labels = [
                "" if isnan(rate) else f"{rate:,.0f}" if rate else "no result" for rate in rates
            ]
            axis.bar_label(bars, labels, padding=2, fontsize=6.5)
            top = max(rate for rate in rates if not isnan(rate)) or 1.0
            title = case.replace(", ", ",\n") if ", " in case else f"\n{case}"
            axis.set(title=title, xlabel="images/s", xlim=(0, top * 1.4))
            axis.xaxis.set_major_locator(plt.MaxNLocator(2, prune="upper"))
            axis.xaxis.set_major_formatter("{x:,.0f}")
            axis.tick_params(axis="y", length=0)
        axes[0][0].set_yticks(range(len(programs)), [name_of(p) for p in programs])
        axes[0][0].invert_yaxis()
        shown = [kind for kind in says if kind in kinds]
        patches = [plt.Rectangle((0, 0), 1, 1, color=colours[kind]) for kind in shown]
        labels = [says[kind] for kind in shown]
        figure.legend(patches, labels, loc="outside lower center", ncols=len(shown))
        plots.save(figure, out)


def block(lines: list[Line], figure: Path | None, page: Path | None) -> str:
    """All that is written: what was measured on, the table, the figure, who is faster."""
    loads = [line["load"] for line in lines]
    repeats = 1 + max(line["repeat"] for line in lines)
    on = f"On {lines[0]['machine']}; load before a run {min(loads):.1f} to {max(loads):.1f}; "
    parts = [f"{on}{repeats} run{'s' if repeats > 1 else ''} each, in turn.", table(lines)]
    if figure is not None:
        shown = figure.with_name(figure.name + ".png")
        path = os.path.relpath(shown, page.parent) if page else shown
        parts.append(f"![Images a second by program and case]({path})")
    return "\n\n".join([*parts, "\n".join(lines_of_text(lines))])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("lines", type=Path, nargs="+")
    parser.add_argument("--figure", type=Path, help="without its ending")
    parser.add_argument("--page", type=Path, help="write table and figure's link into this page")
    args = parser.parse_args()
    lines = [json.loads(line) for path in args.lines for line in path.read_text().splitlines()]
    if not lines:
        sys.exit("no lines yet: run compare.py --out FILE")
    wrong = differing(lines)
    if wrong:
        sys.exit(f"not the same work: answers differ between programs in {', '.join(wrong)}")
    if args.figure:
        draw(lines, args.figure)
    text = block(lines, args.figure, args.page)
    if args.page:
        write_into(args.page, "peers", text)
    print(text)


if __name__ == "__main__":
    main()
