"""The bench on real ranks: it ends, and its report has every figure. Never a timing."""

from __future__ import annotations

import json

import pytest
import round
from conftest import BENCH
from round_report import FORMAT, VARIANTS

pytestmark = [pytest.mark.mpi, pytest.mark.any_mpi]

TINY = ["--px", "16", "--rounds", "8", "--blocks", "2", "--warmup", "1"]


def test_two_worlds_make_one_report(mpiexec, monkeypatch, capsys, tmp_path):
    def launch(ranks, how):  # the same ranks, forked from a process that has imported torch
        return mpiexec(ranks, how.words, libraries=["torch"]).returncode

    monkeypatch.setattr("collage_mpi.commands.launch.launch_ranks", launch)
    out = tmp_path / "round.json"
    words = ["round.py", *TINY, "--ranks", "4", "3", "--json", "--out", str(out)]
    monkeypatch.setattr("sys.argv", words)
    assert round.main() == 0
    report = json.loads(capsys.readouterr().out)
    assert report == json.loads(out.read_text())
    assert report["format"] == FORMAT
    assert report["settings"]["cell_px"] == 10
    assert [world["ranks"] for world in report["worlds"]] == [4, 3]
    for world in report["worlds"]:
        assert list(world["variants"]) == list(VARIANTS)
        for name, found in world["variants"].items():
            assert found["rounds"] == 8
            assert found["round_p50_ms"] > 0
            assert found["round_p95_ms"] is None
            assert found["images_s"] > 0
            assert len(found["block_p50_ms"]) == 2
            assert (found["longest_poll_gap_ms"] is None) == (name == "blocking")
            assert (found["encode_p50_ms"] is None) == (name in ("bare", "blocking"))


def test_under_a_launcher_it_is_one_world_and_can_be_profiled(mpiexec, tmp_path):
    profile = tmp_path / "job.pstats"
    words = [BENCH / "round.py", *TINY, "--profile", profile]
    done = mpiexec(3, words, libraries=["torch"])
    assert done.returncode == 0, done.stderr
    assert "1 single + 1 collage ranks" in done.stdout
    assert profile.stat().st_size > 0


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--ranks", "2"], 2, "--ranks 2"),
        (["--rounds", "2"], 2, "--rounds 2"),
        (["--profile", "p.pstats"], 2, "--ranks 11"),
        (["--out", "no/such/folder/x.json"], 3, "Create it first"),
    ],
)
def test_what_cannot_work_is_one_message(words, code, says, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["round.py", *words])
    assert round.main() == code
    assert says in capsys.readouterr().err
