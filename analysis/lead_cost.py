"""What the lead of several teams does beside its own images, timed in a real job of them.

    mpiexec -n 16 python analysis/lead_cost.py run --teams 4 --singles 2 --single null \\
        --collage null --shards SHARD --out OUT

It counts the CPU time of each kind of message, of leases and of looks on rank 0. The figures are in
analysis/reports/teams.md.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

from collage_mpi.cli import main
from collage_mpi.job.lead import Lead
from collage_mpi.results.pending import Publisher

SPENT_NS: Counter[str] = Counter()
TIMES: Counter[str] = Counter()


def timed(of: type, method: str, name: Callable[..., str]) -> None:
    """Add up the CPU of the thread in a method, by the name of the call."""
    inner = getattr(of, method)

    def outer(self: Any, *args: Any) -> Any:
        before, start_ns = leases(self), time.thread_time_ns()
        found = inner(self, *args)
        spent_ns = time.thread_time_ns() - start_ns
        kind = name(leases(self) - before, *args)
        SPENT_NS[kind] += spent_ns
        TIMES[kind] += 1
        return found

    setattr(of, method, outer)


def leases(of: Any) -> int:
    """That the lead has granted so far."""
    return of._book._leases if isinstance(of, Lead) else 0


if __name__ == "__main__":
    timed(Lead, "look", lambda new: "look")
    timed(Lead, "_grant", lambda new: "grant" if new else "grant, none wanted")
    timed(Lead, "_take", lambda new, team, said: type(said).__name__)
    timed(Publisher, "_fault_of", lambda new, *part: "publish (in its thread)")
    code = main(sys.argv[1:])
    if TIMES["look"]:
        for kind, times in TIMES.items():
            print(f"lead: {kind}: {times:,} of {SPENT_NS[kind] / times / 1e3:.1f} us CPU")
    raise SystemExit(code)
