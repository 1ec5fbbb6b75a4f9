"""Some groups of a run as a timeline: ranks as rows, tasks as bars; also for Perfetto.

    python analysis/timeline.py RUN --groups 10-18 --out STEM [--session 1] [--title TEXT]

Writes STEM.png, STEM.pdf and STEM.trace.json, which ui.perfetto.dev and chrome://tracing open.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from collage_mpi.errors import CollageError, UsageError
from collage_mpi.plots_timeline import plot_timeline
from collage_mpi.results import read_results
from collage_mpi.results.reader import Results
from collage_mpi.timeline import make_timeline, write_trace


def parse_groups(text: str) -> tuple[int, int]:
    """Read "10-18" or "7"."""
    match = re.fullmatch(r"(\d{1,15})(?:-(\d{1,15}))?", text)
    if match is None:
        raise UsageError(f"--groups {text}: it needs a number or a range, as in 10-18")
    return int(match[1]), int(match[2] or match[1])


def title_of(run: Results, first: int, last: int) -> str:
    """What is shown, under which stragglers."""
    model = run.manifest.get("straggler") or "none"
    flag = " (INVALID)" if run.invalid else ""
    return f"Groups {first} to {last}: {run.scheme}, {run.mode}{flag}\nStragglers: {model}"


def main() -> int:
    """Parse, read, draw; a mistake is one message and the exit code of its kind."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("run", type=Path, metavar="RUN", help="run directory, with its rows")
    parser.add_argument("--groups", required=True, metavar="A-B", help="first and last group")
    parser.add_argument("--session", type=int, default=1, metavar="N", help="of a resumed run")
    parser.add_argument("--out", required=True, type=Path, metavar="STEM", help="path, no suffix")
    parser.add_argument("--title", help="lines above the figure")
    parser.add_argument("--dpi", type=int, default=200, metavar="N", help="of the PNG")
    args = parser.parse_args()
    try:
        run = read_results(args.run)
        first, last = parse_groups(args.groups)
        timeline = make_timeline(run, first, last, args.session)
        title = args.title or title_of(run, first, last)
        trace = args.out.with_name(args.out.name + ".trace.json")
        write_trace(trace, timeline)
        for path in (*plot_timeline(timeline, args.out, title, args.dpi), trace):
            print(path)
    except CollageError as error:
        print(f"timeline: {error}", file=sys.stderr)
        return int(error.exit_code)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
