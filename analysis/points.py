"""Figures of the points of an experiment (docs/experiments.md).

    python analysis/points.py ranks    POINTS.csv --out STEM --series AXIS --panels AXIS
    python analysis/points.py frontier POINTS.csv --out STEM --series AXIS --panels AXIS
    python analysis/points.py heat     POINTS.csv --out STEM --value p99_vs_replicate \\
        --across AXIS --down AXIS

ranks: P99 and standard deviation against worker ranks; frontier: accuracy against P99; heat: a
gain over two axes. --where AXIS=LABEL keeps some points only; of one axis any of the labels
given. Writes STEM.png and STEM.pdf.
The same as `collage-mpi plot points`, which needs no checkout.
"""

from __future__ import annotations

import sys

from collage_mpi.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["plot", "points", *sys.argv[1:]]))
