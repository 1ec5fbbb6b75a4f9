"""Several teams of one world on real ranks: every image one right row, whoever dies or stops.

As in test_run: the null network's answer is an image's top-left pixel, so that full accuracy
means that nothing was mixed up. A team here is a coordinator, two single ranks and a collage rank.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from conftest import run_ranks
from mortal_jobs import Ended, marked_shard, run_mortal

from collage_mpi.errors import ExitCode
from collage_mpi.results import read_results, verify_run
from collage_mpi.results.status import read_statuses

pytestmark = pytest.mark.mpi

IMAGES, TEAM = 803, 4
COMPLETE, INCOMPLETE = int(ExitCode.COMPLETE), int(ExitCode.INCOMPLETE)
SHAPE = ("--single", "null", "--collage", "null", "--side", "2", "--singles", "2")
ALL_OF_TEAM_0 = ",".join(f"{rank}:receive:kill:3" for rank in (1, 2, 3))
SLOW = ("--straggler", "pinned:20", "--cost-ratio", "1")


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Path:
    return marked_shard(tmp_path_factory.mktemp("data") / "a.h5", IMAGES)


def check(out: Path, *, whole: bool = True):
    """Every image has its right row, once."""
    report = verify_run(out)
    assert report.doubles == 0
    found = read_results(out)
    rows = found.images[found.images["answered"]]
    assert (rows["predicted"] == rows["label"]).all()
    assert report.ok or not whole, report.problems
    assert not whole or len(found.images) == IMAGES
    return found


@pytest.fixture
def job(mpi, shard, tmp_path):
    """`collage-mpi run` with deaths, of so many teams: job(deaths, teams, *flags)."""
    count = iter(range(1 << 30))

    def run(deaths: str, teams: int, *more: str, fresh: bool = True, **how) -> Ended:
        new = ("--shards", shard, *SHAPE) if fresh else ()
        words = ["run", *new, "--out", tmp_path / "out", "--teams", teams, *more]
        folder, words = tmp_path / f"deaths{next(count)}", [str(word) for word in words]
        deaths = f"{deaths},in-turn"
        return run_mortal(mpi, TEAM * teams, folder, deaths, words, out=tmp_path / "out", **how)

    return run


@pytest.mark.any_mpi
def test_teams_share_the_images_and_the_run_is_one(job, tmp_path):
    teams = 2
    # Nobody dies: no rank computes before each other team has its first task, however busy the
    # machine is.
    meeting = ",".join(f"{team * TEAM + 1}:receive:note_memory" for team in range(1, teams))
    more = ("--order", "shuffle:3", "--batch", "2", "--top-k", "2")
    ended = job(meeting, teams, *SLOW, *more, tolerant=False)
    assert ended.code == COMPLETE, ended.said
    found = check(tmp_path / "out")
    assert " images (100.0 %), " in ended.said  # of those that the other team has not done
    assert f"{TEAM * teams} ranks: {teams} coordinators" in ended.said
    at_work = set(found.images["session"].tolist())
    assert {1} < at_work <= set(range(1, teams + 1))
    for entry in found.manifest["sessions"]:  # a row names a rank by its number in the world
        ranks = found.images["rank"][found.images["session"] == entry["session"]]
        assert set(ranks) <= {member["rank"] for member in entry["final"]["world"]}
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    last_ns = {e["session"]: e["final"]["began_ns"] for e in found.manifest["sessions"]}
    at_ns = np.array([last_ns[int(s)] for s in found.groups["session"]]) + found.groups["t0_ns"]
    whole_s = (int((at_ns + found.groups["latency_ns"]).max()) - int(at_ns.min())) / 1e9
    assert summary["price"]["images_per_s"] > 0.5 * IMAGES / whole_s  # not one after another
    assert [team["team"] for team in summary["teams"]] == list(range(teams))
    statuses = read_statuses(tmp_path / "out")  # each team has said its last word
    listed = {rank["rank"]: rank for status in statuses for rank in status["ranks"]}
    assert {rank for rank in range(TEAM * teams) if rank % TEAM} <= set(listed)
    assert {rank["state"] for rank in listed.values()} == {"ready"}
    assert all(listed[rank]["service_ms"] > 0 for rank in set(found.images["rank"].tolist()))


@pytest.mark.any_mpi
def test_a_world_that_cannot_be_parted_is_told(mpi, shard, tmp_path):
    words = ["-m", "collage_mpi", "run", "--shards", shard, *SHAPE, "--out", tmp_path / "out"]
    done = run_ranks(mpi, 5, [*words, "--teams", "2"], 60.0, {"OMP_NUM_THREADS": "1"}, tmp_path)
    assert done.returncode == ExitCode.ENVIRONMENT
    told = [line for line in done.stderr.splitlines() if line.startswith("collage-mpi run:")]
    needed = "needed are 2 teams of 4 ranks: launch with -n 8"
    assert told == [f"collage-mpi run: --teams 2 with 5 ranks: {needed}"]


def test_a_lost_coordinators_images_go_to_other_teams(job):
    ended = job("4:images:kill:20", 3, *SLOW)
    assert ended.code == COMPLETE, ended.said
    found = check(ended.out)
    assert ended.said.count("Traceback") == 0
    entries = found.manifest["sessions"]
    (dead,) = (entry for entry in entries if "ended" not in entry)
    assert [member["rank"] for member in dead["final"]["world"]] == [4, 5, 6, 7]


@pytest.mark.any_mpi
def test_a_lost_worker_is_its_teams_affair(job):
    ended = job("5:receive:kill:3", 2, *SLOW)
    assert ended.code == COMPLETE, ended.said
    found = check(ended.out)
    lost = [loss for entry in found.manifest["sessions"] for loss in entry["final"]["lost"]]
    assert {loss["rank"] for loss in lost} == {5}


def test_the_images_of_a_coordinator_that_stops_go_to_others_and_it_adds_no_row_when_it_wakes(job):
    ended = job("4:images:nap:20,apart", 2, *SLOW)
    assert ended.code == COMPLETE, ended.said
    check(ended.out)


@pytest.mark.any_mpi
def test_ranks_that_are_let_go_end_and_the_others_do_what_a_coordinator_that_stops_held(job):
    ended = job("4:images:nap:20,apart,hasty", 2, *SLOW)
    assert ended.code == COMPLETE, ended.said
    assert "no image is free: rank 2 released, the others wait" in ended.said
    found = check(ended.out)
    assert not [loss for each in found.manifest["sessions"] for loss in each["final"]["lost"]]


@pytest.mark.any_mpi
def test_a_team_that_never_comes_is_not_waited_for(job):
    ended = job("4:start:kill", 2)
    assert ended.code == COMPLETE, ended.said
    assert set(check(ended.out).images["session"]) == {1}


@pytest.mark.any_mpi
def test_all_workers_of_team_0_die_and_the_others_do_its_images(job):
    ended = job(ALL_OF_TEAM_0, 2, *SLOW)
    assert ended.code == COMPLETE, ended.said
    check(ended.out)


@pytest.mark.any_mpi
@pytest.mark.parametrize("death", ["0:images:blind:20", "4:images:blind:20"])
def test_what_one_team_can_read_no_more_another_reads(job, death):
    ended = job(death, 2, *SLOW)
    assert ended.code == COMPLETE, ended.said
    check(ended.out)
    assert "its disk is gone" not in ended.said


@pytest.mark.any_mpi
def test_what_no_team_can_read_is_lacking_and_the_next_job_reads_it(job):
    ended = job("4:images:blind:30,0:images:blind:20", 2, *SLOW)
    assert ended.code == ExitCode.DATA, ended.said
    assert "were removed" not in ended.said
    found = check(ended.out, whole=False)
    assert found.manifest["status"] == "incomplete"
    assert "shard 0: its disk is gone" in ended.said
    ended = job("", 2, fresh=False)
    assert ended.code == COMPLETE, ended.said
    check(ended.out)


def test_rank_0_dies_and_its_images_are_done_by_the_other_team(job):
    ended = job("0:images:kill:40", 2, *SLOW)
    assert ended.code == COMPLETE, ended.said
    check(ended.out)
