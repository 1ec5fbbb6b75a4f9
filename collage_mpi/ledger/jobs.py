"""The numbers of jobs: `jobs/NNNN.json` is made once by its owner, and changed by nobody else."""

from __future__ import annotations

import itertools
import random
import re
import time
from collections.abc import Callable
from typing import Any

from collage_mpi.errors import EnvironmentFault
from collage_mpi.ledger.records import Job, decode, encode, job_name
from collage_mpi.ledger.store import FolderStore

MOST_JOBS = (1 << 16) - 1
SOME_JOBS = 8
_NAME = re.compile(r"([0-9]{4,5})\.json")
_PART = re.compile(r"[a-z]+-([0-9]{4,5})-.*")


def register(
    store: FolderStore,
    owner: str,
    facts: dict[str, Any],
    sleep: Callable[[float], None] = time.sleep,
    rows: str | None = None,
) -> int:
    """Get a number that no other owner has: one after those that are there, from 1.

    `rows`: the folder of the parts. Their jobs count as well: the entry of one may have been
    removed, and a part takes the place of one with the same name.

    Raises:
        EnvironmentFault: there are too many jobs.
        OSError: the folder does not work.
    """
    mine, number = encode(Job(owner, facts)), 0
    for tries in itertools.count():
        # Many that begin at once leave numbers out, or each would try all that the others get.
        number = max(number, *_numbers(store), *_of_parts(store, rows), 0) + random.randint(
            1, max(1, tries - SOME_JOBS)
        )
        if number > MOST_JOBS:
            raise EnvironmentFault(
                f"{MOST_JOBS} jobs have worked on this run, and there can be no more. Choose "
                "another --out"
            )
        if store.settled(job_name(number), mine, sleep) == mine:
            break
    return number


def note(store: FolderStore, number: int, owner: str, facts: dict[str, Any]) -> None:
    """The owner of a number changes its facts. Raises OSError."""
    store.replace(job_name(number), encode(Job(owner, facts)))


def jobs(store: FolderStore) -> dict[int, Job]:
    """All jobs, by their numbers. Raises OSError, Damage."""
    found = {}
    for number in sorted(_numbers(store)):
        raw = store.read(name := job_name(number))
        if raw is not None:
            found[number] = decode(Job, raw, name)
    return found


def _of_parts(store: FolderStore, rows: str | None) -> list[int]:
    names = [] if rows is None else store.names(rows)
    return [int(match[1]) for match in map(_PART.fullmatch, names) if match]


def _numbers(store: FolderStore) -> list[int]:
    return [int(match[1]) for match in map(_NAME.fullmatch, store.names("jobs")) if match]
