"""Some groups of a run as a timeline: ranks as rows, tasks as bars; also for Perfetto.

    python analysis/timeline.py RUN --groups 10-18 --out STEM [--session 1] [--title TEXT]

Writes STEM.png, STEM.pdf and STEM.trace.json, which ui.perfetto.dev and chrome://tracing open.
The same as `collage-mpi plot timeline`, which needs no checkout.
"""

from __future__ import annotations

import sys

from collage_mpi.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["plot", "timeline", *sys.argv[1:]]))
