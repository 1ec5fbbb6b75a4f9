"""A picture that has an error row and was mended is classified again; an answered one is not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from pictures import COUNT, make_source, picture, write_folder
from rows_by_name import add_image

from collage_mpi.errors import UsageError
from collage_mpi.job.plan import Plan, make_plan
from collage_mpi.job.provenance import fixed_facts
from collage_mpi.job.run import next_run, refuse_other_settings
from collage_mpi.ledger import spans as sp
from collage_mpi.ledger.jobs import register
from collage_mpi.ledger.owner import Owner, join
from collage_mpi.ledger.reading import View, runs
from collage_mpi.ledger.records import Run
from collage_mpi.ledger.store import FolderStore
from collage_mpi.results import INDEX_FOLDER, read_results
from collage_mpi.results.jobs import entry
from collage_mpi.results.manifest import compose
from collage_mpi.results.row_sink import RowSink
from collage_mpi.settings.run_settings import RunSettings

BROKEN = 5


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    files = write_folder(tmp_path / "photos")
    files[BROKEN].write_bytes(picture(BROKEN)[:90])
    return files


def plan_of(source: Path, out: Path, known: dict | None = None) -> Plan:
    words = {"single": "null", "scheme": "none", "singles": 2, "input_labels": "none"}
    return make_plan(RunSettings(shards=(str(source),), out=str(out), **words), 3, known)


class Job:
    """A job that comes to a folder: what it is told to do; `do` does it.

    Attributes:
        lacking: the input's rows that it is to do; None if nothing is left.
    """

    def __init__(self, source: Path, out: Path) -> None:
        known = compose(out) if (out / "run.1.json").exists() else {}
        plan, self.store, self.name = plan_of(source, out, known), FolderStore(out), "a" * 32
        self.out, self.lacking = out, None
        try:
            if known:
                refuse_other_settings(plan, known)
                there, self.run = next_run(plan, self.store, retry_errors=False)
                if self.run is None:
                    return
                plan = plan.at_run([*there[: self.run.number - 1], self.run])
                self.run = join(self.store, self.run)
            else:
                out.mkdir()
                (out / "parts").mkdir()
                self.store.make()
                settings = entry(fixed_facts(plan))
                self.run = join(self.store, Run(1, 0, COUNT, COUNT, settings=settings))
            plan.shards.save_indexes(out / INDEX_FOLDER)
            since = {str(n): each for n, each in plan.shards.since.items()}
            self.session = register(self.store, self.name, {"since": since})
            done = View(self.store, self.run).look().counted
            self.left = sp.minus(((self.run.first, self.run.stop),), done)
            at = [position - self.run.first for span in self.left for position in range(*span)]
            self.lacking = plan.order.indices(np.array(at, np.int64)).tolist()
        finally:
            plan.shards.close()

    def do(self, rows: list[int], errors: tuple[int, ...] = ()) -> None:
        """Write rows of these images, and leave."""
        owner = Owner(self.store, self.run, name=self.name)
        fixed = {**runs(self.store)[0].settings, **self.run.settings}
        sink = RowSink(self.out, fixed, self.session, owner.wrote)
        positions = [position for span in self.left for position in range(*span)]
        for row in rows:
            failed, at = row in errors, positions[self.lacking.index(row)]
            source, reason = ("error", "cannot be decoded") if failed else ("single", "")
            more = {"source": source, "answered": not failed, "reason": reason}
            add_image(sink, row=row, position=at, **more)
        owner.turn(COUNT)
        owner.turn(COUNT)
        assert sink.drain() is None
        owner.turn()
        owner.settle()
        owner.leave()


@pytest.mark.parametrize("kind", ["folder", "tar", "list"])
def test_a_mended_picture_is_classified_again_also_after_a_kill(
    kind, tmp_path, files, caplog
) -> None:
    source, out = make_source(kind, tmp_path / kind, files), tmp_path / "run"
    Job(source, out).do([*range(COUNT)], errors=(BROKEN,))
    files[BROKEN].write_bytes(picture(BROKEN))
    if kind == "tar":
        source.unlink()
        source.parent.rmdir()
        make_source(kind, tmp_path / kind, files)
    job = Job(source, out)
    assert job.lacking == [BROKEN]
    assert "1 picture changed since the last session" in caplog.text
    assert files[BROKEN].name in caplog.text
    job.do([])  # it is killed before the row is written
    caplog.clear()
    job = Job(source, out)
    assert (job.lacking, caplog.text) == ([BROKEN], "")
    job.do([BROKEN])
    assert Job(source, out).lacking is None
    images = read_results(out).images
    assert images["answered"].sum() == len(images) == COUNT


def test_a_picture_that_stays_broken_is_tried_once_each_time_that_it_changes(tmp_path, files):
    source, out = tmp_path / "photos", tmp_path / "run"
    Job(source, out).do([*range(COUNT)], errors=(BROKEN,))
    for cut in (95, 99):
        files[BROKEN].write_bytes(picture(BROKEN)[:cut])
        job = Job(source, out)
        assert job.lacking == [BROKEN]
        job.do([BROKEN], errors=(BROKEN,))
        assert Job(source, out).lacking is None


def test_a_picture_without_a_row_may_change_and_one_with_an_answer_may_not(tmp_path, files):
    source, out = tmp_path / "photos", tmp_path / "run"
    Job(source, out).do([0, 1, 2, BROKEN], errors=(BROKEN,))
    files[7].write_bytes(picture(30))
    assert Job(source, out).lacking == sorted({*range(COUNT)} - {0, 1, 2, BROKEN})
    was, size = files[1].read_bytes(), files[1].stat().st_size
    files[1].write_bytes(was[:-9] + bytes(9))
    assert files[1].stat().st_size == size
    with pytest.raises(UsageError, match=r"1 picture changed after the answer .*row 1 of .*photos"):
        Job(source, out)
    files[1].write_bytes(was)
    assert Job(source, out).lacking
    files[0].unlink()
    with pytest.raises(UsageError, match="SHA-256"):
        Job(source, out)
