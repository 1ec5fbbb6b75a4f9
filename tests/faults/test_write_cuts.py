"""Rank 0 killed at any byte of any write of a run: the next session repairs and goes on.

A run of two sessions writes parts, manifests, a marker and summaries. It is killed within a
write, after so many bytes in all; what lies there then must be read, told truly and finished.
The short suite tries bytes drawn from a seed, `--fuzz N` so many, `--fuzz 1000000` every one.
"""

from __future__ import annotations

import builtins
import json
import random
from pathlib import Path
from typing import Any

import pytest
from results_harness import InlineThread, Kill, fill, manifest

from collage_mpi.errors import EnvironmentFault
from collage_mpi.results import RunWriter, row_sink, verify_run
from collage_mpi.system import files

pytestmark = pytest.mark.faults
ROWS, FIRST = 27, 14
FEW = 60


class Cut:
    """Counts the bytes that results write, and kills at a chosen one."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.written = 0
        self.files: dict[str, int] = {}  # final name -> bytes

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
                room = len(chunk) if cut.at is None else cut.at - cut.written
                if room < len(chunk):
                    plain(bytes(chunk)[:room])
                    raise Kill
                cut.written += len(chunk)
                name = Path(path).name[1:].partition(files.TEMP_MARK)[0]
                cut.files[name] = cut.files.get(name, 0) + len(chunk)
                return plain(chunk)

        return File()


@pytest.fixture
def cut_at(monkeypatch: pytest.MonkeyPatch):
    """`cut_at(byte)` arms the next kill."""
    monkeypatch.setattr(row_sink, "PartThread", InlineThread)
    monkeypatch.setattr(files.os, "fsync", lambda _fd: None)  # not waited for

    def arm(at: int | None) -> Cut:
        cut = Cut(at)
        monkeypatch.setattr(files, "open", cut.open, raising=False)
        return cut

    return arm


def rest_of(full: dict[str, Any], done: Any) -> list[int]:
    first = full["shards"][0]["count"]
    keys = {(int(key["shard"]), int(key["row"])) for key in done}
    return [i for i in range(ROWS) if (int(i >= first), i - first * (i >= first)) not in keys]


def session(out: Path, stop_at: int = ROWS) -> None:
    """What a job does: begin or go on, write rows, close, summarise."""
    full = manifest(ROWS)
    if (out / "manifest.json").exists():
        if RunWriter.finished(out, full) is not None:
            return
        run, done = RunWriter.reopen(out, full, rows_per_part=10)
        rows = rest_of(full, done)
    else:
        run, rows = RunWriter.create(out, full, rows_per_part=10), list(range(ROWS))
    fill(run, full, [row for row in rows if row < stop_at])
    run.close("complete" if stop_at >= ROWS else "incomplete", summary=True)


def story(out: Path) -> None:
    session(out, FIRST)
    session(out)


def look(out: Path) -> str:
    """What lies there after a kill is told truly."""
    try:
        report = verify_run(out)
    except EnvironmentFault:
        assert not (out / "manifest.json").exists()
        return "no run"
    assert report.doubles == 0
    assert report.status == "incomplete" or report.ok, report.problems
    assert report.ok is (out / "COMPLETE").exists()
    if (out / "summary.json").exists():
        json.loads((out / "summary.json").read_text())
    return report.status


def finish(out: Path) -> None:
    session(out)
    report = verify_run(out)
    assert report.ok, report.problems
    assert (report.rows, report.doubles, report.missing) == (ROWS, 0, 0)


def test_a_kill_at_any_byte(tmp_path: Path, cut_at, request) -> None:
    whole = cut_at(None)
    story(tmp_path / "whole")
    names = {name.partition("-")[0] for name in whole.files}
    assert names == {"images", "tasks", "manifest.json", "COMPLETE", "summary.json"}
    rng = random.Random(request.config.getoption("chaos_seed"))
    wanted = min(request.config.getoption("fuzz") or FEW, whole.written)
    states = set()
    for number, at in enumerate(sorted(rng.sample(range(whole.written), wanted))):
        out = tmp_path / f"cut-{number % 50}-{at}"
        cut_at(at)
        with pytest.raises(Kill):
            story(out)
        states.add(look(out))
        cut_at(rng.randrange(whole.written))  # the session that repairs is killed too
        try:
            session(out)
        except Kill:
            states.add(look(out))
        cut_at(None)
        finish(out)
        assert not list((out / "parts").glob(f".*{files.TEMP_MARK}*"))
    assert states >= {"no run", "incomplete"}


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
    assert len(renames) > 8
    for i in renames:
        assert events[i - 1] == ("sync", events[i][1])
        assert events[i + 1] == ("sync", "folder")
