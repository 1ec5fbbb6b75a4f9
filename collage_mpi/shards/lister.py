"""A process that lists a source, so that a job begins with the first pictures of a long list. What
was listed by some time is an extent: a list that never changes, and that the next one follows.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from collage_mpi.errors import DataFault, EnvironmentFault
from collage_mpi.shards.members import MemberIndex
from collage_mpi.shards.schema import ShardInfo
from collage_mpi.shards.source import MemberSource, ReadAs, fingerprint_of
from collage_mpi.system.environment import without_rank
from collage_mpi.system.forked import RELAYED, of_server
from collage_mpi.system.process_tree import own_command, sheltered
from collage_mpi.system.tell import tell

FIRST_S = 1.0  # a source that takes longer is listed in extents; each takes as long as those before
LOOK_S = 0.1  # between looks whether the job has to stop


class TakesLong(Exception):
    """A source is not listed in FIRST_S."""


def in_time(clock: Callable[[], float] = time.monotonic) -> Callable[[], None]:
    """A function for `ReadAs.in_time` that raises TakesLong FIRST_S from now on."""
    until_s = clock() + FIRST_S

    def look() -> None:
        if clock() > until_s:
            raise TakesLong

    return look


class Lister:
    """A process that lists a source.

    Attributes:
        path: of the source.
        ended: no further extent will come.
    """

    def __init__(self, source: type[MemberSource], path: Path, read_as: ReadAs) -> None:
        self.ended = False
        self._source, self.path, self._read_as = source, path, read_as
        self._folder = tempfile.TemporaryDirectory()
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        with sheltered(*RELAYED):  # a signal to all processes of a rank is for the job
            self._process = subprocess.Popen(
                [*own_command("collage_mpi.shards.extents")],
                env={**without_rank(os.environ), **of_server},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        asked = {"source": source.name, "path": str(path), "content": read_as.content}
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # `take` says that it died
            self._process.stdin.write(json.dumps({**asked, "folder": self._folder.name}) + "\n")
            self._process.stdin.flush()
        self._hearing = threading.Thread(target=self._hear, name="collage-mpi listing", daemon=True)
        self._hearing.start()

    def _hear(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.put(line)
        self._said.put("")

    def take(self, stop_reason: Callable[[], str | None] = lambda: None) -> list[ShardInfo]:
        """The extents that were listed since the last call; none if no further one comes, or there
        is a reason to stop. Waits for the next one.

        Raises:
            EnvironmentFault, DataFault: the source cannot be listed to its end.
        """
        found: list[ShardInfo] = []
        while not self.ended:
            try:
                line = self._said.get(timeout=0 if found else LOOK_S)
            except queue.Empty:
                if found or stop_reason():
                    break
                continue
            told: dict[str, Any] = json.loads(line if line.endswith("\n") else "{}")
            if "extent" in told:
                found.append(self._extent(told["extent"]))
                continue
            self.ended = True
            for warning in told.get("warnings", ()):
                tell(f"warning: {warning}")
            if "warnings" not in told:
                fault = DataFault if told.get("data") else EnvironmentFault
                raise fault(told.get("fault") or f"{self.path}: the process that lists it died")
        return found

    def _extent(self, name: str) -> ShardInfo:
        path = Path(self._folder.name, name)
        index = MemberIndex.load(path)
        if index is None:
            raise EnvironmentFault(f"{path}: a list of images cannot be read")
        path.unlink()  # a long one stays open
        return self._source.of_list(self.path, self._read_as, index, fingerprint_of(index))

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):  # what it was asked may not have been read
            self._process.stdin.close()  # which also ends a process that it has forked
        self._process.kill()
        self._process.wait()
        self._hearing.join()
        self._process.stdout.close()
        self._folder.cleanup()
