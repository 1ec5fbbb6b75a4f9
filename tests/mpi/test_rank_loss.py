"""Ranks that die or hang, at any moment: the job goes on, every image has one right row.

As in test_run: the null network's answer is an image's top-left pixel, so that full accuracy
means that nothing was mixed up.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import pytest
from mortal_jobs import Ended, marked_shard, run_mortal

from collage_mpi.errors import ExitCode
from collage_mpi.job.record import Replay
from collage_mpi.launch import ending
from collage_mpi.results import OUTCOMES, SOURCES, read_results, verify_run
from collage_mpi.results.number_sets import draw_of
from collage_mpi.rows import ASKED_FIRST

pytestmark = pytest.mark.mpi

IMAGES = 123
COMPLETE, INCOMPLETE = int(ExitCode.COMPLETE), int(ExitCode.INCOMPLETE)
# Work of two seconds, so that a job is not over before its end is noticed.
SLOW = ("--straggler", "pinned:50")


@pytest.fixture(scope="module")
def shard(tmp_path_factory) -> Path:
    return marked_shard(tmp_path_factory.mktemp("data") / "a.h5", IMAGES)


class Checked(Ended):
    """A job that is over, and what must hold of it."""

    def check(self, code: int = COMPLETE):
        """Every image has its right row, and the exit code is true."""
        assert self.code == code, self.said
        report = verify_run(self.out)
        assert report.ok or code == INCOMPLETE, report.problems
        found = read_results(self.out)
        rows = found.images[found.images["answered"]]
        assert (rows["predicted"] == rows["label"]).all()
        assert len(found.images) == IMAGES or code == INCOMPLETE
        assert "Traceback" not in self.said or "boom" in self.said
        return found


@pytest.fixture
def job(mpi, shard, tmp_path):
    """Run `collage-mpi run` with deaths under launch's supervision: job(deaths, *flags)."""
    count = iter(range(1 << 30))

    def run(
        deaths: str, *more: str, singles: int = 3, teams: int = 1, out: str = "out", **how
    ) -> Checked:
        flags = ["--single", "null", "--collage", "null", "--side", "2", "--singles", singles]
        flags += ["--teams", teams]
        words = ["run", "--shards", shard, *flags, "--out", tmp_path / out, *more]
        folder, words = tmp_path / f"deaths{next(count)}", [str(word) for word in words]
        deaths = f"{deaths},in-turn"
        ended = run_mortal(
            mpi, teams * (2 + singles), folder, deaths, words, out=tmp_path / out, **how
        )
        return Checked(**vars(ended))

    return run


def read_summary(out: Path) -> dict:
    return json.loads((out / "summary.json").read_text())


def outcomes(found, rank: int) -> set[str]:
    """How the tasks of a rank ended."""
    tasks = found.tasks[found.tasks["rank"] == rank]
    return {OUTCOMES[code] for code in tasks["outcome"]}


def replayed(path: Path) -> Replay:
    """A record, played to the same actions."""
    replay = Replay(path)
    replay.play()
    assert replay.difference is None
    return replay


def told(ended: Ended) -> int:
    """How many losses the user was told of."""
    return sum("is lost" in line for line in ended.said.splitlines())


def test_ranks_die_at_start_up_in_load_on_receipt_and_in_reply(job):
    ended = job("1:start:kill,2:load:kill,3:receive:kill:2,4:reply:kill:3", singles=5)
    found = ended.check()
    assert ended.layers().keys() == {1, 2, 3, 4}
    assert told(ended) == 4
    lost = {loss["rank"]: loss for loss in found.manifest["lost"]}
    assert {rank: loss["layer"] for rank, loss in lost.items()} == ended.layers()
    assert all("single" in loss["kinds"] for loss in lost.values())
    assert outcomes(found, 1) == outcomes(found, 2) == set()
    assert "lost" in outcomes(found, 3) & outcomes(found, 4)
    assert read_summary(ended.out)["lost_ranks"] == found.manifest["lost"]


FORKED = pytest.mark.parametrize("forked", [False, True], ids=["started", "forked"])


@FORKED
def test_any_kind_of_death_is_survived(job, forked):
    deaths = "1:measure:kill,2:compute:segv:2,3:compute:leave:3,4:compute:leave0:4,5:reply:throw:5"
    # Where a collage wins nothing is computed; and an image may be lost with each of the five.
    ended = job(deaths, "--scheme", "none", singles=6, forked=forked)
    found = ended.check()
    assert ended.layers().keys() == {1, 2, 3, 4, 5}
    assert all("lost" in outcomes(found, rank) for rank in (2, 3, 4))
    assert ended.said.count("RuntimeError: boom") == 1  # the worker's own message


RAISES_ON = """
import numpy as np
from collage_mpi.system.environment import launcher_rank

class TopLeft:
    def predict(self, batch):
        return np.eye(251)[np.minimum(batch[:, 0, 0, 0], 250)][:, None]

def network(kind, shape, side, cell_px, classes, device):
    if launcher_rank() == 2:
        raise OSError("this host has no such weights")
    return TopLeft()
"""


@pytest.mark.any_mpi
def test_a_rank_whose_own_network_raises_while_it_loads_is_lost_alone(job, tmp_path):
    (tmp_path / "mine.py").write_text(RAISES_ON)
    ended = job("", "--scheme", "none", "--single", f"{tmp_path}/mine.py:network")
    found = ended.check()
    assert "OSError: this host has no such weights" in ended.said
    assert ended.layers().keys() == {2}
    assert {1, 3} <= {*found.images["rank"].tolist()}


@pytest.mark.any_mpi
def test_without_its_collage_rank_the_job_goes_on_as_none(job):
    # An end game would answer some of the last images a second time, whatever the scheme.
    ended = job("4:receive:kill:3", "--endgame", "off")
    found = ended.check()
    assert ended.said.count("no collage rank is left: the job goes on as scheme none") == 1
    last = found.images[found.images["group"] > found.images["group"].max() - 5]
    assert {SOURCES[code] for code in last["source"]} == {"single"}


@pytest.mark.any_mpi
def test_all_single_ranks_die_and_the_collage_answers(job):
    ended = job("1:receive:kill:1,2:receive:kill:2,3:receive:kill:2")
    found = ended.check()
    assert ended.layers().keys() == {1, 2, 3}
    last = found.images[found.images["group"] > found.images["group"].max() - 5]
    assert {SOURCES[code] for code in last["source"]} == {"collage"}


def test_all_ranks_die_and_resume_completes_the_run(job):
    ended = job("1:receive:kill:2,2:receive:kill:3,3:receive:kill:4,4:receive:kill:5")
    found = ended.check(INCOMPLETE)
    assert 0 < len(found.images) < IMAGES
    assert "no rank is left that could classify an image" in ended.said
    assert not (ended.out / "COMPLETE.1").exists()
    found = job("").check()
    assert set(found.images["session"]) == {1, 2}


@pytest.mark.any_mpi
def test_a_cascade_loses_ranks_and_is_resumed(job, tmp_path):
    """Ranks die with a collage; the others send its images alone. The core's record says why."""
    flags = ("--scheme", "cascade", "--endgame", "off", "--audit", "0.2")
    flags += ("--record", str(tmp_path / "record"))
    ended = job("1:receive:kill:1,2:reply:kill:2,3:compute:kill:3,4:receive:kill:9", *flags)
    found = ended.check(INCOMPLETE)
    tasks = found.tasks[found.tasks["outcome"] == OUTCOMES.index("lost")]
    assert (tasks["items"] > 1).any()
    sources = {SOURCES[code] for code in found.images["source"]}
    assert {"collage", "single"} <= sources <= {"collage", "single", "retry"}
    found = job("").check()
    assert set(found.images["session"]) == {1, 2}
    due = draw_of(found.manifest).some(found.images) & np.isin(found.images["source"], ASKED_FIRST)
    assert due.sum() > 10
    assert (found.images["audited"][due] > 0).all(), "those that the lost ranks had, too"
    first, then = replayed(tmp_path / "record"), replayed(tmp_path / "record-2")
    assert first.end == then.end == "complete"
    assert first.events["RankLost"] == 4
    assert first.core.outcomes.totals.images + then.core.outcomes.totals.images == IMAGES


@pytest.mark.any_mpi
def test_a_cascade_loses_ranks_as_the_load_rises_and_is_resumed(job, tmp_path):
    """Open loop: four images one by one, then all others at once. Each rank dies with a collage."""
    times_s = np.minimum(np.arange(IMAGES) * 0.2, 0.8)
    np.save(tmp_path / "times.npy", times_s)
    flags = ("--scheme", "cascade", "--endgame", "off")
    flags += ("--arrival-file", str(tmp_path / "times.npy"))
    ended = job(",".join(f"{rank}:receive:kill:6" for rank in (1, 2, 3, 4)), *flags)
    found = ended.check(INCOMPLETE)
    lost = found.tasks[found.tasks["outcome"] == OUTCOMES.index("lost")]
    assert set(lost["rank"]) == {1, 2, 3, 4}
    assert (lost["items"] > 1).any()
    found = job("").check()
    for session in (1, 2):
        rows = found.images[found.images["session"] == session]
        began_ns = rows["t0_ns"] - np.round(times_s[rows["row"]] * 1e9).astype(np.int64)
        assert len(set(began_ns)) == 1  # each latency counts from the image's own time


@pytest.mark.any_mpi
def test_too_few_ranks_to_begin_with_can_be_resumed(job):
    ended = job("1:load:kill,2:warm:kill,3:load:kill")
    assert ended.code == INCOMPLETE
    assert "no single rank is left, so the session cannot begin" in ended.said
    job("").check()


@pytest.mark.parametrize("apart", ["", ",apart"])
def test_a_stopped_rank_is_killed_or_written_off(job, apart):
    """Apart, rank 0 has no pidfd for it: the connection stays open, and only time tells.

    Without an end game, which would end the job before the time is over.
    """
    flags = ("--reply-timeout-s", "1", "--scheme", "none", "--endgame", "off")
    ended = job(f"2:compute:stop:3{apart}", *flags)
    ended.check()
    assert ended.layers() == {2: "timeout"}
    assert ("written off" if apart else "killed") in ended.said


@pytest.mark.any_mpi
def test_a_job_that_is_suspended_for_longer_than_the_reply_timeout_loses_nobody(job):
    """All ranks are stopped for 3 s: their silence meanwhile is rank 0's own.

    After twice the timeout a silent rank is lost.
    """
    found = job("0:images:suspend:40", "--reply-timeout-s", "1.2").check()
    assert found.manifest["lost"] == []


@FORKED
def test_the_death_of_the_shell_around_a_rank_does_not_end_the_job(job, forked):
    ended = job("2:receive:bare:3", forked=forked)
    ended.check()
    assert told(ended) <= 1  # Open MPI's daemon takes it for the rank's


def test_ranks_of_other_machines_are_seen_to_die_by_their_connection(job):
    ended = job("1:receive:kill:3,2:load:segv,apart")
    ended.check()
    assert ended.layers().keys() == {1, 2}
    assert set(ended.layers().values()) <= {"connection", "mpi"}


def test_a_rank_that_dies_or_stops_at_the_end_changes_nothing(job):
    ended = job("1:shutdown:kill,2:shutdown:stop")
    found = ended.check()
    assert found.manifest["lost"] == []
    assert "rank 2 did not end when told to" in ended.said


@pytest.mark.parametrize(
    ("rank", "teams", "tolerant"), [(0, 1, False), (3, 1, False), (3, 2, True)]
)
def test_a_rank_that_is_stopped_when_its_work_is_done_does_not_keep_the_job(
    job, rank, teams, tolerant
):
    """Rank 3 is a worker, or the coordinator of a second team. Without `continue` nobody but the
    other ranks ends the job."""
    singles = 3 if teams == 1 else 1
    ended = job(f"{rank}:leaving:stop", singles=singles, teams=teams, tolerant=tolerant)
    ended.check()
    assert (time.monotonic_ns() - ended.death_ns(rank)) / 1e9 < 60
    assert ("have not come to leave MPI" in ended.said) == (not tolerant and rank > 0)


@pytest.mark.parametrize("apart", ["", pytest.param(",apart", marks=pytest.mark.any_mpi)])
def test_when_rank_0_dies_all_end_and_resume_is_exact(job, tmp_path, apart):
    ended = job(f"0:images:kill:40{apart}", "--record", str(tmp_path / "record"))
    assert ended.code not in (COMPLETE, int(ExitCode.COMPLETE_WITH_ERRORS))
    assert (time.monotonic_ns() - ended.death_ns(0)) / 1e9 < 60
    assert verify_run(ended.out).exit_code is ExitCode.INCOMPLETE
    assert replayed(tmp_path / "record").end == ""
    job("").check()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_dies_before_mpi_is_up_cannot_keep_the_others(job, monkeypatch, rank):
    """They wait in MPI_Init, deaf to signals; the shell around the dead one tells launch."""
    monkeypatch.setattr(ending, "END_GRACE_S", 2.0)
    ended = job(f"{rank}:mpi:kill", start_limit_s=600.0, forked=False)
    assert ended.code == int(ExitCode.ENVIRONMENT)
    assert f"MPI did not come up on all ranks in time: rank {rank} has ended" in ended.said
    assert "SIGKILL" in ended.said
    assert (time.monotonic_ns() - ended.death_ns(rank)) / 1e9 < 60


@pytest.mark.parametrize(
    ("death", "said", "tolerant"),
    [
        ("3:mpi:leave", "rank 3 has ended ", True),
        ("3:mpi:leave0", "rank 3 has ended ", False),
        ("0:mpi:leave", "rank 0 has ended ", True),
        ("3:library:throw", "RuntimeError: boom\n", False),
    ],
)
def test_a_rank_that_exits_before_mpi_is_up_cannot_keep_the_others(
    job, monkeypatch, death, said, tolerant
):
    """MPICH's launcher makes nothing of it; what the rank had to say is passed on."""
    monkeypatch.setattr(ending, "END_GRACE_S", 2.0)
    ended = job(death, start_limit_s=600.0, forked=False, tolerant=tolerant)
    assert ended.code == int(ExitCode.ENVIRONMENT), ended.said
    assert ended.said.count(said) == 1
    assert (time.monotonic_ns() - ended.death_ns(int(death[0]))) / 1e9 < 60


def test_a_rank_that_is_interrupted_before_mpi_is_up_ends_a_plain_start(job, monkeypatch):
    """A shell lets what it starts in the background be deaf to Ctrl-C, with `continue`."""
    monkeypatch.setattr(ending, "END_GRACE_S", 2.0)
    ended = job("3:mpi:interrupt", start_limit_s=600.0, forked=False, tolerant=False)
    assert ended.code == int(ExitCode.ENVIRONMENT)
    assert "rank 3 was ended by SIGINT" in ended.said or "rank 3 has ended" in ended.said


def test_a_stopped_rank_does_not_outlive_rank_0(job):
    ended = job("2:receive:stop:3,0:images:kill:40")
    assert ended.code not in (COMPLETE, int(ExitCode.COMPLETE_WITH_ERRORS))
    assert (time.monotonic_ns() - ended.death_ns(0)) / 1e9 < 60
    job("").check()


def test_a_rank_that_hangs_before_mpi_is_up_cannot_keep_the_others(job):
    ended = job("1:mpi:stop", start_limit_s=4.0, forked=False)
    assert ended.code == int(ExitCode.ENVIRONMENT)
    assert "MPI did not come up" in ended.said


@pytest.mark.parametrize(("tolerant", "forked"), [(True, False), (False, True)])
def test_when_the_launcher_dies_no_rank_is_left(job, tolerant, forked):
    """`running`, which looks after each job, finds nobody."""
    mode = ("--on-rank-loss", "continue") if tolerant else ()
    ended = job("0:images:orphan:40", *mode, tolerant=tolerant, forked=forked)
    assert ended.code == INCOMPLETE, ended.said
    assert "the launcher was ended by SIGKILL" in ended.said
    job("", *mode, tolerant=tolerant).check()


@pytest.mark.parametrize(("how", "forked"), [("kill", False), ("leave", True)])
def test_a_rank_that_dies_under_a_plain_launch_is_named(job, how, forked):
    ended = job(f"2:receive:{how}:3", *SLOW, tolerant=False, forked=forked)
    assert ended.code == INCOMPLETE, ended.said
    end = {"kill": "was ended by SIGKILL", "leave": "has ended with code "}[how]
    assert f"rank 2 {end}" in ended.said
    assert "the job is incomplete. Go on with the same command" in ended.said


@pytest.mark.parametrize("tolerant", [True, False])
def test_ranks_that_are_killed_leave_nothing_in_shared_memory(job, tolerant):
    """They note what the MPI library has there for them when rank 0 has its images."""
    ended = job("0:images:orphan:40,2:load:note_memory", tolerant=tolerant)
    (files,) = [file.read_text().split() for file in ended.folder.glob("*.shm")]
    assert not [file for file in files if Path(file).exists()]


def test_abort_ends_the_job_resumably(job):
    ended = job("2:receive:kill:5", *SLOW, "--on-rank-loss", "abort")
    ended.check(INCOMPLETE)
    assert "rank 2 (single)" in ended.said
    assert "Go on with the same command" in ended.said


def test_a_plain_launch_says_once_that_it_cannot_go_on(job):
    ended = job("", "--on-rank-loss", "continue", tolerant=False)
    ended.check()
    assert ended.said.count("collage-mpi launch -n 5 --on-rank-loss continue") == 1
