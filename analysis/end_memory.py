"""What the end of a job, `verify` and `report` hold in memory, of 10**5 images and of 10**7.

Rows come from a simulation; those of 10**7 images are the rows of 10**6, written ten times with
other numbers and later times, as if the run had gone on.

    python analysis/end_memory.py --out runs/memory
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from collage_mpi.results import RunWriter
from collage_mpi.results.claim import PATIENT, Claim
from collage_mpi.results.parts import list_parts, part_path, read_part, write_part
from collage_mpi.rows import STORED

RUNS = ((100_000, 1), (1_000_000, 10))  # images simulated, times that they are written
SIMULATE = ("simulate", "--straggler", "lognormal", "--slow-ranks", "4:5")


def main() -> None:
    """Make the runs that are not there yet; print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--close", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.close:
        close(args.close)
        return
    print("images      close  verify  report   (peak MiB)")
    for images, times in RUNS:
        source, run = args.out / f"simulated-{images}", args.out / f"rows-{images * times}"
        if not source.exists():
            peak_mib("-m", "collage_mpi", *SIMULATE, "--images", images, "--out", source)
        repeat(source, times, run)
        peaks = [
            peak_mib(__file__, "--out", args.out, "--close", run),
            peak_mib("-m", "collage_mpi", "verify", run),
            peak_mib("-m", "collage_mpi", "report", run),
        ]
        print(f"{images * times:<10}", *(f"{peak:7.1f}" for peak in peaks), flush=True)


def peak_mib(*words: Any) -> float:
    """Run Python with these words; the most memory that the process held."""
    process = subprocess.Popen([sys.executable, *map(str, words)], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{words}: exit code {process.returncode}")
    return usage.ru_maxrss / 1024


def repeat(source: Path, times: int, out: Path) -> None:
    """The rows of a run, `times` one behind another, as a job leaves them before it closes."""
    (out / "parts").mkdir(parents=True)
    manifest = json.loads((source / "manifest.json").read_text())
    (session,) = manifest["sessions"]
    tables = {table.name: table for table in STORED}
    parts = list_parts(source / "parts")
    last = {name: max(part.number for part in parts if part.table == name) for name in tables}
    more = {"row": manifest["rows"], "task": session["rows"]["tasks"]}
    for part in parts:
        if part.table == "images":
            rows = read_part(part.path, tables["images"])
            more["group"] = max(more.get("group", 0), int(rows["group"].max()) + 1)
            end_ns = int((rows["t0_ns"] + rows["latency_ns"]).max())
            for column in ("t0_ns", "sent_ns", "done_ns"):
                more[column] = max(more.get(column, 0), end_ns)
    for part in parts:
        table = tables[part.table]
        rows = read_part(part.path, table).copy()
        for time in range(times):
            path = part_path(out / "parts", table, 1, time * last[table.name] + part.number)
            write_part(path, table, memoryview(rows.tobytes()))
            for column in more.keys() & set(rows.dtype.names or ()):
                rows[column] += more[column]
    said = {name: n * times for name, n in session["rows"].items()}
    (out / "said.json").write_text(json.dumps({"rows": said, "final": session["final"]}))
    manifest["rows"] = manifest["shards"][0]["count"] = manifest["rows"] * times
    manifest |= {"status": "incomplete", "sessions": []}
    manifest.pop("input_digest", None)
    (out / "manifest.json").write_text(json.dumps(manifest))


def close(out: Path) -> None:
    """What rank 0 does once all rows are written."""
    manifest = json.loads((out / "manifest.json").read_text())
    said = json.loads((out / "said.json").read_text())
    writer = RunWriter(out, manifest, Claim.take(out, PATIENT))
    for buffer in (writer._images, writer._groups, writer._tasks):
        buffer.total = said["rows"][buffer.table.name]  # it wrote them, as far as it knows
    lacking = writer.close("complete", summary=True, **said["final"])
    if lacking or writer.manifest["status"] != "complete":
        raise SystemExit(f"{out}: {lacking or writer.manifest['status']}")


if __name__ == "__main__":
    main()
