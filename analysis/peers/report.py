"""compare.py's lines as a table (Markdown) and a figure.

    python analysis/peers/report.py peers.jsonl --out docs/figures/peers

Owns: which figure of a program stands in a cell: the median over repeats at its best chunk.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path
from statistics import median

from collage_mpi.figures import style

Key = tuple[str, str]
NAMES = {
    "bare_mpi": "mpi4py alone",
    "futures": "mpi4py.futures",
    "static_loader": "static + DataLoader",
    "parsl_htex": "Parsl HTEX",
    "ray_actors": "Ray actors",
    "ours-none": "none, defaults",
    "ours-throughput": "none, throughput",
    "ours-workers": "same, --pixels workers",
    "ours-collage": "collage, throughput",
}


def best(lines: list[dict[str, object]]) -> dict[Key, tuple[float, int]]:
    """(case, program) -> images/s, the median over repeats at the best chunk, and that chunk."""
    rates: dict[tuple[str, str, int], list[float]] = defaultdict(list)
    for line in lines:
        key = (str(line["case"]), str(line["program"]), int(str(line["chunk"])))
        rates[key].append(0.0 if line["lost"] else float(str(line["images_per_s"])))
    found: dict[Key, tuple[float, int]] = {}
    for (case, program, chunk), all_rates in rates.items():
        rate = median(all_rates)
        if rate >= found.get((case, program), (0.0, 0))[0]:
            found[case, program] = (rate, chunk)
    return found


def table(lines: list[dict[str, object]]) -> str:
    """A row a program, a column a case; where a worker was killed, what became of the rows."""
    found, cases = best(lines), list(dict.fromkeys(str(line["case"]) for line in lines))
    programs = [p for p in NAMES if any((case, p) in found for case in cases)]
    rows = [["program, images/s (images a task)", *cases, "peak memory, MB"]]
    for program in programs:
        mine = [line for line in lines if line["program"] == program]
        cells = [_cell(case, found.get((case, program)), mine) for case in cases]
        rows.append([NAMES[program], *cells, f"{max(int(str(x['peak_mb'])) for x in mine):,}"])
    rows.insert(1, ["---"] * len(rows[0]))
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _cell(case: str, found: tuple[float, int] | None, mine: list[dict[str, object]]) -> str:
    if found is None:
        return ""
    if "killed" not in case:
        return f"{found[0]:,.0f} ({found[1]})" if found[0] else "rows lost"
    ends = {"hung" if x["exit"] is None else f"exit {x['exit']}" for x in mine if x["case"] == case}
    lost = max(int(str(x["lost"])) for x in mine if x["case"] == case)
    return f"{lost:,} rows lost, {' or '.join(sorted(ends))}"


def draw(lines: list[dict[str, object]], out: Path) -> None:
    """Bars: images/s by program, a panel a case."""
    found = best(lines)
    cases = [c for c in dict.fromkeys(str(x["case"]) for x in lines) if "killed" not in c]
    programs = [p for p in NAMES if any((case, p) in found for case in cases)]
    plt = style.pyplot()
    with plt.rc_context(style.STYLE):
        figure, axes = plt.subplots(
            1, len(cases), figsize=(2.3 * len(cases) + 1.6, 2.9), sharey=True, layout="constrained"
        )
        for axis, case in zip(axes, cases, strict=True):
            rates = [found.get((case, p), (0.0, 0))[0] for p in programs]
            own = [p.startswith("ours") for p in programs]
            colours = [style.COLOURS[0] if mine else style.COLOURS[1] for mine in own]
            bars = axis.barh([NAMES[p] for p in programs], rates, color=colours)
            axis.bar_label(bars, [f"{rate:,.0f}" for rate in rates], padding=2, fontsize=7)
            axis.set(title=case, xlabel="images/s", xlim=(0, max(rates) * 1.25))
            axis.invert_yaxis() if axis is axes[0] else None
        style.save(figure, out)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("lines", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the figure, without its ending")
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.lines.read_text().splitlines()]
    print(table(lines))
    draw(lines, args.out)


if __name__ == "__main__":
    main()
