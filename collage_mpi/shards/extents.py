"""What the process of `lister` does: lists a source, and tells each extent in a line. It ends when
its job closes its standard input.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from collage_mpi.errors import CollageError, DataFault
from collage_mpi.shards.inputs import source_class
from collage_mpi.shards.lister import FIRST_S
from collage_mpi.shards.members import Member, MemberIndex, Stream
from collage_mpi.shards.remote import path_of
from collage_mpi.shards.source import MemberSource, ReadAs
from collage_mpi.system.files import reading
from collage_mpi.system.forked import RELAYED
from collage_mpi.system.process_tree import sheltered


def extents(
    source: type[MemberSource],
    path: Path,
    stream: Stream,
    *,
    content: bool = False,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[MemberIndex]:
    """Yields the extents of a source in order. Raises as `MemberSource.stream`.

    Args:
        source, path: which source.
        stream: its pictures.
        content: read the pictures, to know them by their bytes.
        clock: monotonic, in s.
    """
    span_s = FIRST_S
    while True:
        listed_ns = time.time_ns()
        index = MemberIndex.of(_until(stream.members, clock() + span_s, clock))
        if not len(index):
            return
        index = index.listed_at(listed_ns)
        yield source.with_digests(path, index, content=True) if content else index
        span_s *= 2


def _until(
    members: Iterator[tuple[str, Member]], until_s: float, clock: Callable[[], float]
) -> Iterator[tuple[str, Member]]:
    for member in members:
        yield member
        if clock() >= until_s:
            return


def main() -> None:
    """List what the first line of the standard input asks for, and tell each extent in a line. Only
    the job ends it: a signal to all processes of a rank, which may leave the job at work, does not.
    """
    with sheltered(*RELAYED):  # once more, for a process that a server forked
        _list_what_is_asked()


def _list_what_is_asked() -> None:
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_job, daemon=True).start()
    path, number, said = path_of(asked["path"]), 0, dict[str, Any]()
    try:
        source = source_class(asked["source"])
        assert issubclass(source, MemberSource)
        with reading(path):
            stream = source.stream(path, ReadAs(labels=False))
            assert stream is not None
            for number, index in enumerate(extents(source, path, stream, content=asked["content"])):
                name = f"{number}.npz"
                index.save(Path(asked["folder"], name))
                print(json.dumps({"extent": name}), flush=True)
            said = {"warnings": stream.warnings()}
    except CollageError as error:
        said = {"fault": str(error), "data": isinstance(error, DataFault)}
    print(json.dumps(said), flush=True)


def _end_with_job() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    main()
