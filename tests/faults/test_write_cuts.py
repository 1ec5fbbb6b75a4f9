"""Rank 0 killed at any byte of any write of a run: what counts is told truly.

A run of two jobs writes parts, records, entries, a mark and summaries. It is killed within a write,
after so many bytes in all. The short suite tries bytes drawn from a seed, `--fuzz N` so many,
`--fuzz 1000000` every one.
"""

from __future__ import annotations

import builtins
import json
import random
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from results_harness import InlineThread, Kill, fill, manifest

from collage_mpi.errors import EnvironmentFault
from collage_mpi.ledger.store import FolderStore
from collage_mpi.results import row_sink, verify_run
from collage_mpi.results.sole import SoleWriter
from collage_mpi.system import files

pytestmark = pytest.mark.faults
ROWS, FIRST = 27, 14
FEW = 60


class Cut:
    """Counts bytes that this thread writes to results and the ledger, and kills at a chosen one.

    What the thread of an earlier story's status writes is not counted: it lives on here, and would
    take the kill of a later story.
    """

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.written = 0
        self.killed = threading.get_ident()

    def room(self, size: int) -> int:
        """How many of these bytes are written."""
        if threading.get_ident() != self.killed:
            return size
        room = size if self.at is None else min(size, self.at - self.written)
        self.written += room
        return room

    def open(self, path: Path, mode: str) -> Any:
        cut, real = self, builtins.open(path, mode)  # noqa: SIM115
        plain = real.write

        class File:
            def __enter__(self) -> File:
                return self

            def __exit__(self, *error: object) -> None:
                real.close()

            def __getattr__(self, name: str) -> Any:
                return getattr(real, name)

            def write(self, chunk: Any) -> int:
                room = cut.room(len(chunk))
                plain(bytes(chunk)[:room])
                if room < len(chunk):
                    raise Kill
                return room

        return File()


@pytest.fixture
def cut_at(monkeypatch: pytest.MonkeyPatch):
    """`cut_at(byte)` arms the next kill."""
    monkeypatch.setattr(row_sink, "PartThread", InlineThread)
    monkeypatch.setattr(files.os, "fsync", lambda _fd: None)  # not waited for
    real = FolderStore._write

    def arm(at: int | None) -> Cut:
        cut = Cut(at)
        monkeypatch.setattr(files, "open", cut.open, raising=False)

        def write(store: FolderStore, file: int, data: bytes | Iterable[bytes]) -> None:
            whole = data if isinstance(data, bytes) else b"".join(data)
            room = cut.room(len(whole))
            real(store, file, whole[:room])
            if room < len(whole):
                raise Kill

        monkeypatch.setattr(FolderStore, "_write", write)
        return cut

    return arm


def story(out: Path) -> None:
    full = manifest(ROWS)
    for rows in (range(FIRST), range(FIRST, ROWS)):
        run = SoleWriter(out, full, rows_per_part=10)
        fill(run, full, rows)
        run.close("complete" if rows.stop == ROWS else "incomplete", summary=True)


def look(out: Path) -> str:
    """What lies there after a kill is told truly."""
    try:
        report = verify_run(out)
    except EnvironmentFault:
        assert not (out / "run.1.json").exists()
        return "no run"
    assert report.doubles == 0
    assert report.status == "incomplete" or report.ok, report.problems
    assert report.ok is (out / "COMPLETE.1").exists()
    if (out / "summary.json").exists():
        json.loads((out / "summary.json").read_text())
    return report.status


def test_a_kill_at_any_byte(tmp_path: Path, cut_at, request) -> None:
    whole = cut_at(None)
    story(tmp_path / "whole")
    rng = random.Random(request.config.getoption("chaos_seed"))
    wanted = min(request.config.getoption("fuzz") or FEW, whole.written)
    states = set()
    for number, at in enumerate(sorted(rng.sample(range(whole.written), wanted))):
        out = tmp_path / f"cut-{number % 50}-{at}"
        cut_at(at)
        with pytest.raises(Kill):
            story(out)
        states.add(look(out))
    assert states >= {"no run", "incomplete", "complete"}


def test_every_file_is_synced_before_it_has_its_name(tmp_path: Path, monkeypatch) -> None:
    """A power cut, too, leaves nothing under a final name that is not whole."""
    events: list[tuple[str, str]] = []
    real_open, real_fsync, real_replace = builtins.open, files.os.fsync, files.os.replace
    names: dict[int, str] = {}

    def opened(path: Path, mode: str) -> Any:
        file = real_open(path, mode)
        names[file.fileno()] = Path(path).name
        return file

    def fsync(fd: int) -> None:
        events.append(("sync", names.get(fd, "folder")))
        real_fsync(fd)

    def replace(source: Path, target: Path) -> None:
        events.append(("rename", Path(source).name))
        names.clear()  # descriptors are used again
        real_replace(source, target)

    monkeypatch.setattr(row_sink, "PartThread", InlineThread)
    monkeypatch.setattr(files, "open", opened, raising=False)
    monkeypatch.setattr(files.os, "fsync", fsync)
    monkeypatch.setattr(files.os, "replace", replace)
    story(tmp_path / "run")
    renames = [i for i, event in enumerate(events) if event[0] == "rename"]
    assert len(renames) > 6
    for i in renames:
        assert events[i - 1] == ("sync", events[i][1])
        assert events[i + 1] == ("sync", "folder")
