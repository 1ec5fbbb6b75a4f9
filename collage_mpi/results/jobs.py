"""The entries of a run's jobs, as its manifest lists them: who they were, and how each ended.

The number of a job is its session: the column `session` of its rows, and a part of the names of its
files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from collage_mpi.ledger.jobs import jobs
from collage_mpi.ledger.store import FolderStore
from collage_mpi.system.files import plain, reading
from collage_mpi.system.printable import readable

KILLED = {"status": "incomplete", "rows": None}  # what the entry of a job says that has no end


def entry(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts for `ledger.jobs.register` and `note`: as JSON, without what only numpy knows, and with
    names of files as they can be stored."""
    found: dict[str, Any] = readable(json.loads(json.dumps(facts, default=plain)))
    return found


def entries(out: Path) -> list[dict[str, Any]]:
    """The entries of all jobs in the order of their numbers.

    Raises:
        DataFault: an entry is damaged.
        EnvironmentFault: an entry cannot be read.
    """
    with reading(out):
        found = jobs(FolderStore(out))
    return [
        readable({**KILLED, "final": {}, **job.facts, "session": number, "owner": job.owner})
        for number, job in found.items()
    ]
