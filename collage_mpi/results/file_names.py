"""What the files of a run and of an experiment are called. The names never change: runs of older
versions are read by them.
"""

from __future__ import annotations

MANIFEST = "manifest.json"
MARKER = "COMPLETE"  # written last, where every image has a row
SUMMARY = "summary.json"
STATUS, METRICS = "status.json", "status.prom"  # how a job stands, while it runs and after
PARTS_FOLDER = "parts"  # the folder of rows
PENDING_FOLDER = "pending"  # of parts of teams that the lead has not published yet
INDEX_FOLDER = "index"  # of lists of the members of folders, tar files and others
VECTORS_FOLDER = "vectors"  # of what is kept beyond a class
REPORT = "report.html"
EXPORT = "export"  # a folder, where `export` writes by default
LATENCIES = "latencies_ns.npy"  # of a simulation without rows
TABLE, POINTS = "table.csv", "points.csv"  # of many runs: a line a run, a line a point
