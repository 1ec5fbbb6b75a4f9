"""Several teams, one lead, on real ranks: every image one right row, whoever dies or stops.

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
from collage_mpi.results.status import read_status

pytestmark = pytest.mark.mpi

IMAGES, TEAM = 803, 4
COMPLETE, INCOMPLETE = int(ExitCode.COMPLETE), int(ExitCode.INCOMPLETE)
SHAPE = ("--single", "null", "--collage", "null", "--side", "2", "--singles", "2")
ALL_OF_THE_LEAD = ",".join(f"{rank}:receive:kill:3" for rank in (1, 2, 3))
SLOW = ("--straggler", "pinned", "--straggler-median-ms", "20", "--cost-ratio", "1")


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
        new = ("--shards", shard, *SHAPE) if fresh else ("--resume",)
        words = ["run", *new, "--out", tmp_path / "out", "--teams", teams, *more]
        folder, words = tmp_path / f"deaths{next(count)}", [str(word) for word in words]
        deaths = f"{deaths},in-turn"
        return run_mortal(mpi, TEAM * teams, folder, deaths, words, out=tmp_path / "out", **how)

    return run


def test_teams_share_the_images_and_the_run_is_one(job, tmp_path):
    teams = 2
    # Nobody dies: no rank computes before each other team has its first task, however busy the
    # machine is.
    meeting = ",".join(f"{team * TEAM + 1}:receive:note_memory" for team in range(1, teams))
    more = ("--order", "shuffle:3", "--batch", "2", "--top-k", "2")
    ended = job(meeting, teams, *SLOW, *more, tolerant=False)
    assert ended.code == COMPLETE, ended.said
    found = check(tmp_path / "out")
    assert f"{TEAM * teams} ranks: {teams} coordinators" in ended.said
    at_work = set(found.images["session"].tolist())
    assert {1} < at_work <= set(range(1, teams + 1))
    for team in range(teams):  # a row names its own team's rank, by its number in the world
        ranks = found.images["rank"][found.images["session"] == team + 1]
        assert set(ranks) <= set(range(team * TEAM + 1, (team + 1) * TEAM))
    groups = found.groups["group"]
    assert len(np.unique(groups)) == len(groups)  # of the whole job: a draw is of one group
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    last_ns = {e["session"]: e["final"]["began_ns"] for e in found.manifest["sessions"]}
    at_ns = np.array([last_ns[int(s)] for s in found.groups["session"]]) + found.groups["t0_ns"]
    whole_s = (int((at_ns + found.groups["latency_ns"]).max()) - int(at_ns.min())) / 1e9
    assert summary["price"]["images_per_s"] > 0.5 * IMAGES / whole_s  # not one after another
    assert [team["team"] for team in summary["teams"]] == list(range(teams))
    assert not (tmp_path / "out" / "pending").exists()
    status = read_status(tmp_path / "out")  # of late teams too: each has said its last word
    listed = {rank["rank"]: rank for rank in status["ranks"]}
    working = {rank for rank in range(TEAM * teams) if rank % TEAM and rank // TEAM + 1 in at_work}
    assert working <= set(listed)
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
    assert "team 1 (rank 4) is given up" in ended.said
    assert ended.said.count("Traceback") == 0
    told = {rank["rank"]: rank for rank in read_status(ended.out)["ranks"]}
    lost = {rank for rank, record in told.items() if record["state"] == "lost"}
    assert lost == {5, 6, 7}
    assert set(told) >= {1, 2, 3, 5, 6, 7}
    lost = {loss["rank"] for loss in found.manifest["lost"]}
    assert lost == {4}
    ranks = found.manifest["sessions"][1]["final"]["world"]
    assert [member["rank"] for member in ranks] == [4, 5, 6, 7]


@pytest.mark.any_mpi
def test_a_lost_worker_is_its_teams_affair(job):
    ended = job("5:receive:kill:3", 2, *SLOW)
    assert ended.code == COMPLETE, ended.said
    found = check(ended.out)
    assert {loss["rank"] for loss in found.manifest["sessions"][1]["final"]["lost"]} == {5}
    assert "is given up" not in ended.said


def test_a_coordinator_that_stops_is_given_up_and_writes_no_row_when_it_wakes(job):
    deaths = "4:images:nap:20,apart"
    ended = job(deaths, 2, *SLOW, "--reply-timeout-s", "0.6")
    assert ended.code == COMPLETE, ended.said
    check(ended.out)
    assert "team 1 (rank 4) is given up" in ended.said


@pytest.mark.any_mpi
def test_with_abort_a_coordinator_that_stops_ends_the_job(job):
    """Also when all its images are done: it has still to say so."""
    abort = ("--on-rank-loss", "abort", "--reply-timeout-s", "1")
    ended = job("4:images:stop:20,apart", 2, *SLOW, *abort, tolerant=False)
    assert ended.code == INCOMPLETE, ended.said
    assert "rank 4 is lost: no answer for" in ended.said
    ended = job("", 2, fresh=False)
    assert ended.code == COMPLETE, ended.said
    check(ended.out)


@pytest.mark.any_mpi
def test_a_team_that_never_comes_is_not_waited_for(job):
    ended = job("4:start:kill", 2)
    assert ended.code == COMPLETE, ended.said
    assert set(check(ended.out).images["session"]) == {1}


@pytest.mark.any_mpi
def test_all_workers_of_the_leads_team_die_and_the_others_do_its_images(job):
    ended = job(ALL_OF_THE_LEAD, 2, *SLOW)
    assert ended.code == COMPLETE, ended.said
    check(ended.out)


@pytest.mark.any_mpi
@pytest.mark.parametrize("death", ["0:others:blind:20", "4:images:blind:20"])
def test_what_one_team_can_read_no_more_another_reads(job, death):
    ended = job(death, 2, *SLOW)
    assert ended.code == COMPLETE, ended.said
    check(ended.out)
    team = death.startswith("4")
    assert f"team {int(team)} could not read" in ended.said
    assert "its disk is gone" not in ended.said


@pytest.mark.any_mpi
def test_what_no_team_can_read_is_lacking_and_resume_reads_it(job):
    ended = job("4:images:blind:30,0:others:blind:20", 2, *SLOW)
    assert ended.code == ExitCode.DATA, ended.said
    assert "were removed" not in ended.said
    found = check(ended.out, whole=False)
    assert found.manifest["status"] == "incomplete"
    assert "shard 0: its disk is gone" in ended.said
    ended = job("", 2, fresh=False)
    assert ended.code == COMPLETE, ended.said
    check(ended.out)


def test_the_lead_dies_and_what_its_teams_had_is_kept(job):
    """One team goes on with it."""
    ended = job("0:others:kill:40", 2, *SLOW)
    assert ended.code == INCOMPLETE, ended.said
    assert ended.wall_s < 60
    pending = list((ended.out / "pending").glob("images-*"))
    assert pending, "team 1 has written what it held"
    ended = job("", 1, fresh=False)
    assert ended.code == COMPLETE, ended.said
    assert 2 in check(ended.out).images["session"]  # adopted
