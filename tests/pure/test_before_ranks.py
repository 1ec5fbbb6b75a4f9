"""What `launch` sees before it starts a rank: one message, its exit code, how many ranks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

import collage_mpi
from collage_mpi import cli
from collage_mpi.commands import launch

DATA = Path(collage_mpi.__file__).parent / "data"
SHARD = str(DATA / "fashion_demo.h5")
RUN = ("run", "--shards", SHARD, "--single", "null", "--collage", "null", "--side", "2")
SHIPPED = ("--single", str(DATA / "fashion_single.safetensors"), "--out", "o")
SWAPPED = ("--single", str(DATA / "fashion_collage_side3.safetensors"))
SWAPPED += ("--collage", str(DATA / "fashion_single.safetensors"), "--side", "3")
RIGHT = (SWAPPED[0], SWAPPED[3], SWAPPED[2], SWAPPED[1], *SWAPPED[4:])
TWO = ("--class-names-file", "two.txt")


@pytest.fixture
def started(monkeypatch, tmp_path) -> list[int]:
    """Numbers of ranks of the jobs that launch would have started."""
    monkeypatch.chdir(tmp_path)
    found: list[int] = []

    def start(ranks, _):
        found.append(ranks)
        return 0

    def show(ranks, _):
        found.append(ranks)
        return ""

    monkeypatch.setattr(launch, "launch_ranks", start)
    monkeypatch.setattr(launch, "shell_line", show)
    return found


def launched(*words: str) -> int:
    """The exit code, also of a usage error."""
    try:
        return cli.main(["launch", *words])
    except SystemExit as left:
        return int(left.code)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("-n", "4", "--", *RUN, "--out", "o"), 2, "the world has 4 ranks"),
        (("-n", "1", "--", *RUN, "--out", "o"), 2, "the job needs 6 ranks"),
        (("--", *RUN, "--out", "o", "--scheme", "colage"), 2, "invalid choice: 'colage'"),
        (("--", *RUN, "--out", "o", "--nix"), 2, "unrecognized arguments: --nix"),
        (("--", *RUN), 2, "--out is missing"),
        (("--", "run", "--settings", "bad.toml"), 2, "bad.toml is not valid TOML"),
        (("--", "run", "--settings", "list.json"), 2, "does not hold a table"),
        (("--", *RUN, *SWAPPED, "--out", "o"), 2, "the wrong way round"),
        (("--", *RUN, "--single", "no.safetensors", "--out", "o"), 3, "it is not there"),
        (("--", *RUN, "--single", "gone.py:net", "--out", "o"), 3, "gone.py:net: cannot be read"),
        (("--", *RUN, "--single", "nets.py:net", "--out", "o"), 2, "no function 'net'; it has one"),
        (("--", *RUN, "--single", "nowhere:net", "--out", "o"), 2, "there is no module nowhere"),
        (("--", *RUN, *SHIPPED, "--class-names-file", "two.txt"), 4, "2 classes in --class-names"),
        (("--", *RUN, *SHIPPED, "--class-names-file", "same.txt"), 2, "more than once"),
        (("--", *RUN, *SHIPPED, "--top-k", "11"), 2, "top_k is 11, but there are only 10 classes"),
        (("--", *RUN, "--shards", "nix", "--out", "o"), 3, "nix: cannot be read: No such file"),
        (("--", *RUN, "--out", "used"), 3, "used: a run of format unknown; this version"),
        (("--", *RUN, "--out", "o", "--record", "nix/r"), 3, "nix/r: cannot be written: No such"),
        (("--", *RUN, "--out", "o", "--record", "two.txt"), 2, "two.txt: this file is no record"),
        (("--", *RUN, "--shards", "empty", "--out", "o"), 3, "empty: no *.h5"),
        (("--", *RUN, "--class-names-file", "nix", "--out", "o"), 3, "nix: cannot be read"),
        (("--", *RUN, *TWO, "--top-k", "3", "--out", "o"), 2, "top_k is 3, but there are only 2"),
        (("--", *RUN, *RIGHT, "--top-k", "11", "--out", "o"), 2, "there are only 10 classes"),
        (("--", *RUN, "--straggler", "nix.npy", "--out", "o"), 3, "nix"),
        (("--", "verify", "o"), 2, "-n is missing"),
        (("-n", "2", "--on-rank-loss", "continue", "--", "verify", "o"), 2, "continue is for run"),
    ],
)
def test_what_one_process_can_see_is_told_before_any_rank_starts(
    words, code, said, started, tmp_path, capsys
):
    (tmp_path / "bad.toml").write_text("[[1")
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / "nets.py").write_text("def one(**told): raise SystemExit('it ran')")
    (tmp_path / "two.txt").write_text("a\nb")
    (tmp_path / "same.txt").write_text("a\na\na (0)")
    (tmp_path / "used").mkdir()
    (tmp_path / "empty").mkdir()
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "used" / "manifest.json").write_text("{}")
    assert launched(*words) == code
    assert said in capsys.readouterr().err
    assert started == []


def test_a_folder_where_nothing_may_be_written_is_told_of_before_any_rank_starts(
    started, tmp_path, monkeypatch, capsys
):
    """The tests may run as root, who may write anywhere."""
    may = os.access
    refuse = lambda path, mode: not mode & os.W_OK and may(path, mode)  # noqa: E731
    monkeypatch.setattr("collage_mpi.results.writer.os.access", refuse)
    assert launched("--", *RUN, "--out", "o") == 3
    assert "no right to write to" in capsys.readouterr().err
    assert started == []


@pytest.mark.parametrize(
    ("words", "ranks"),
    [
        (("--", *RUN, "--out", "o"), 6),
        (("--", *RUN, "--out", "o", "--singles", "7"), 9),
        (("-n", "6", "--", *RUN, "--out", "o"), 6),
        (("-n", "3", "--", *RUN, "--out", "o", "--scheme", "none"), 3),
        (("-n", "4", "--", "run", "--settings", "job.json", "--out", "o"), 4),
        (("-n", "2", "--", "verify", "o"), 2),
        (("--dry-run", "--", *RUN, "--shards", "elsewhere", "--out", "o"), 6),
        (("--dry-run", "-n", "3", "--", "run"), 3),
    ],
)
def test_how_many_ranks_are_needed_launch_knows(words, ranks, started, tmp_path):
    job = {"input": SHARD, "single": "null", "scheme": "none", "status-every-s": 9}
    (tmp_path / "job.json").write_text(json.dumps(job))
    assert launched(*words) == 0
    assert started == [ranks]


def test_where_ranks_may_be_on_other_hosts_their_files_are_not_looked_at_here(started, monkeypatch):
    monkeypatch.setenv("SLURM_NNODES", "2")
    assert launched("--", *RUN, "--shards", "on/a/node", "--out", "o") == 0
    assert started == [6]
    assert launched("-n", "5", "--", *RUN, "--shards", "on/a/node", "--out", "o") == 2
