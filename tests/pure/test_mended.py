"""A picture that has an error row and was mended is classified again; an answered one is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from jobs_by_hand import Job as Hand
from pictures import COUNT, make_source, picture, write_folder

from collage_mpi.errors import UsageError
from collage_mpi.results import read_results
from collage_mpi.shards.update import Update

BROKEN = 5


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    files = write_folder(tmp_path / "photos")
    files[BROKEN].write_bytes(picture(BROKEN)[:90])
    return files


def Job(source: Path, out: Path) -> Hand:
    return Hand(source, out).begin()


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
    job.do([])  # it is killed before the row is written
    caplog.clear()
    job = Job(source, out)
    assert (job.lacking, caplog.text) == ([BROKEN], "")
    job.do([BROKEN], ())
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


def test_a_run_goes_on_with_its_own_list_and_then_tells_what_has_changed(tmp_path, files, caplog):
    source, out = tmp_path / "photos", tmp_path / "run"
    Job(source, out).do([0, 1, 2, BROKEN], errors=(BROKEN,))
    first, second = files[0].read_bytes(), files[1].read_bytes()
    files[0].rename(files[0].with_name("new.png"))
    files[1].write_bytes(second[:-9] + bytes(9))
    files[7].write_bytes(picture(30))
    job = Job(source, out)
    rest = sorted({*range(COUNT)} - {0, 1, 2, BROKEN})
    assert job.lacking == rest
    said = "1 picture more, such as ant/new.png; 1 picture gone, such as ant/000.png"
    assert f"{said}. --update takes them into the run when it is complete" in caplog.text
    job.do(rest, ())
    with pytest.raises(UsageError, match=f"{said}. --update takes them into the run. Or choose"):
        Job(source, out)
    files[0].with_name("new.png").unlink()
    files[0].write_bytes(first)
    with pytest.raises(UsageError, match=r"2 pictures changed after the run .* row 1 of .*photos"):
        Job(source, out)
    job = Hand(source, out, Update()).begin()
    assert job.lacking == [1, 7]
