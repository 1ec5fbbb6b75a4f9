"""The names of the files of a run. They never change, because every version reads older runs."""

from __future__ import annotations

MANIFEST = "manifest.json"
MARKER = "COMPLETE"  # written last, once every image has a row
SUMMARY = "summary.json"
STATUS = "status.json"  # the state of a job, while it runs and after
PARTS_FOLDER = "parts"  # rows
PENDING_FOLDER = "pending"  # parts of teams that the lead has not published yet
INDEX_FOLDER = "index"  # lists of the members of folders, tar files and other sources
VECTORS_FOLDER = "vectors"  # scores, embeddings and outputs of functions
REPORT = "report.html"
EXPORT = "export"  # the folder that `export` writes to by default
