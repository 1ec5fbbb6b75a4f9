"""A source by URL, on real ranks: the rows are those of a run over the file."""

from __future__ import annotations

import pytest
from conftest import codes, run_many
from pictures import make_source, write_folder
from test_remote import served  # noqa: F401 - a fixture
from test_sources_run import COUNT, WORLD, answers, run  # noqa: F401 - a fixture

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi]


def test_a_tar_of_a_server_is_read_by_all_ranks(mpi, run, tmp_path, served):  # noqa: F811
    path = make_source("tar", tmp_path / "tar", write_folder(tmp_path / "photos", COUNT))
    url = f"{served[1]}/{path.relative_to(tmp_path)}"
    cases = [
        [*run, "--input", place, "--pixels", "workers", "--out", tmp_path / name]
        for name, place in (("here", path), ("there", url))
    ]
    done = run_many(mpi, WORLD, cases, tmp_path)
    assert [codes(case) for case in done] == [[0] * WORLD] * 2, done
    assert len(answers(tmp_path / "there")) == COUNT
    assert answers(tmp_path / "there") == answers(tmp_path / "here")
