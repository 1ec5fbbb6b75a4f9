"""What docs/faults.md says of hosts, on virtual hosts: a play each, and some that are drawn.

Several plays run at once, as they mostly wait. `python tests/cluster/plays.py` runs many more.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import replace

import pytest
from hosts import CLOCK, REMOTE_SHELL, hosts, missing
from plays import Fault, Play, Verdict, environment, make_play, play_one, pool_of

WHY_NOT = missing()
pytestmark = [
    pytest.mark.mpi,
    pytest.mark.skipif(WHY_NOT is not None, reason=str(WHY_NOT)),
]
DRAWN = 2
AT_ONCE = 6  # plays; a job's faults come late where many jobs start
DAY_S = 86_400
WORK = ("--straggler", "lognormal:20", "--scheme", "none")
LONG = ("--straggler", "lognormal:210")  # 25 s of two ranks, so that a late fault meets the work
LONGER = ("--straggler", "lognormal:420")  # so that a silent connection is noticed before the end
BUSY = (*WORK, *LONG)
# Three hosts, the last with rank 3; two dates are wrong.
PLAIN = Play(0, 0, (2, 1, 1), (0, DAY_S, -DAY_S), 0, "continue", WORK, None)
GONE = Fault("kill", 3, "work", 0.3, None)

PLAYS = {
    "test_a_rank_whose_host_vanishes_is_lost_and_the_others_do_the_rest": replace(
        PLAIN, fault=GONE, settings=(*WORK, *LONGER, "--reply-timeout-s", "60")
    ),
    "test_without_continue_others_do_the_images_of_a_host_that_vanishes_too": replace(
        PLAIN, fault=GONE, on_loss="abort", settings=(*BUSY, "--reply-timeout-s", "5")
    ),
    "test_a_rank_that_dies_on_another_host_is_lost_and_the_others_do_the_rest": replace(
        PLAIN,
        fault=Fault("rank", 3, "work", 0.3, None),
        settings=(*BUSY, "--reply-timeout-s", "60"),
    ),
    "test_a_network_that_is_away_for_12_s_costs_nothing": replace(
        PLAIN,
        fault=Fault("cut", 3, "work", 0.3, 12.0),
        settings=(*BUSY, "--reply-timeout-s", "30"),
    ),
    "test_without_continue_a_network_that_is_away_for_25_s_costs_nothing": replace(
        PLAIN,
        fault=Fault("cut", 3, "work", 0.3, 25.0),
        on_loss="abort",
        settings=(*BUSY, "--reply-timeout-s", "30"),
    ),
    "test_the_ranks_of_a_host_may_be_suspended_for_longer_than_the_reply_timeout": replace(
        PLAIN,
        fault=Fault("suspend", 3, "work", 0.3, 12.0),
        settings=(*BUSY, "--reply-timeout-s", "10"),
    ),
    "test_when_the_launcher_dies_no_rank_stays_on_any_host_and_no_file_on_its_own": replace(
        PLAIN, fault=Fault("launcher", 1, "work", 0.3, None), settings=BUSY
    ),
    "test_a_host_that_vanishes_before_mpi_is_up_is_told_by_its_ranks": replace(
        PLAIN, fault=Fault("kill", 3, "launch", 0.0, None)
    ),
    "test_when_the_host_of_rank_0_vanishes_the_run_goes_on_elsewhere": replace(
        PLAIN,
        fault=Fault("kill first", 1, "work", 0.8, None),
        slots=(1, 2, 1),
        back=False,
        settings=BUSY,
    ),
    "test_a_host_without_the_input_is_named_before_work_begins": replace(
        PLAIN, copies="absent", on_loss="abort", settings=(*WORK, "--pixels", "workers")
    ),
    "test_with_continue_only_the_ranks_of_a_host_without_the_input_are_lost": replace(
        PLAIN, copies="absent", settings=(*WORK, "--pixels", "workers")
    ),
    "test_with_pixels_auto_rank_0_sends_them_to_a_host_without_the_input": replace(
        PLAIN, copies="absent", settings=(*WORK, "--pixels", "auto")
    ),
    "test_a_row_that_one_host_cannot_read_is_read_by_another": replace(
        PLAIN, copies="damaged", settings=(*WORK, "--pixels", "workers")
    ),
}


@pytest.fixture(scope="module")
def playing(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Verdict]]]:
    """The plays of all tests that are to run."""
    named = {item.originalname for item in request.session.items if hasattr(item, "originalname")}
    plays = {name: play for name, play in PLAYS.items() if name in named}
    seed = request.config.getoption("chaos_seed")
    plays |= {f"drawn-{n}": make_play(seed, n) for n in range(DRAWN)}
    folder = tmp_path_factory.mktemp("plays")
    with pool_of(AT_ONCE) as pool:
        started = {
            name: pool.submit(play_one, play, folder / f"play-{n}")
            for n, (name, play) in enumerate(plays.items())
        }
        yield started


@pytest.fixture
def verdict(playing: dict[str, Future[Verdict]], request: pytest.FixtureRequest) -> Verdict:
    """What the test's own play came to."""
    return playing[request.node.originalname].result()


def fine(verdict: Verdict, first_code: int) -> bool:
    """No row is lost, doubled or wrong, and the first session ended with this code."""
    assert not verdict.wrong, (verdict.wrong, verdict.line(), verdict.said)
    assert verdict.codes[0] == first_code, (verdict.line(), verdict.said)
    return verdict.met or verdict.play.fault is None


def test_a_rank_whose_host_vanishes_is_lost_and_the_others_do_the_rest(verdict: Verdict) -> None:
    assert fine(verdict, 0)
    assert "rank 3 (single) on h3 is lost: its connection" in verdict.said


def test_without_continue_others_do_the_images_of_a_host_that_vanishes_too(
    verdict: Verdict,
) -> None:
    assert fine(verdict, 0)
    assert "rank 3 did not end when told to" in verdict.said


def test_a_rank_that_dies_on_another_host_is_lost_and_the_others_do_the_rest(
    verdict: Verdict,
) -> None:
    assert fine(verdict, 0)
    assert "rank 3 (single) on h3 is lost: its connection" in verdict.said


def test_a_network_that_is_away_for_12_s_costs_nothing(verdict: Verdict) -> None:
    assert fine(verdict, 0)
    assert "is lost" not in verdict.said


def test_without_continue_a_network_that_is_away_for_25_s_costs_nothing(verdict: Verdict) -> None:
    assert fine(verdict, 0)
    assert "did not end when told to" not in verdict.said


def test_the_ranks_of_a_host_may_be_suspended_for_longer_than_the_reply_timeout(
    verdict: Verdict,
) -> None:
    assert fine(verdict, 0)
    assert "is lost" not in verdict.said


def test_when_the_launcher_dies_no_rank_stays_on_any_host_and_no_file_on_its_own(
    verdict: Verdict,
) -> None:
    assert fine(verdict, 6)
    assert "the launcher was ended by SIGKILL" in verdict.said


def test_a_host_that_vanishes_before_mpi_is_up_is_told_by_its_ranks(verdict: Verdict, mpi) -> None:
    """Open MPI starts no rank before all hosts answer. MPICH's launcher may not notice it, and then
    the user ends the start. On a busy machine the host vanishes later, and its rank is lost."""
    assert not verdict.wrong, (verdict.wrong, verdict.line(), verdict.said)
    missing = {"mpich": "rank 3", "openmpi": "ranks 0, 1, 2, 3"}[mpi.family]
    told = {0: "rank 3 (single) is lost", 3: f"nothing yet of {missing}"}
    told[130] = told[3]  # by the user
    assert told[verdict.codes[0]] in verdict.said, verdict.line()


def test_when_the_host_of_rank_0_vanishes_the_run_goes_on_elsewhere(verdict: Verdict) -> None:
    assert fine(verdict, -9)
    assert verdict.codes == [-9, 0]


@pytest.mark.any_mpi
def test_a_host_without_the_input_is_named_before_work_begins(verdict: Verdict) -> None:
    assert verdict.codes == [3], verdict.said
    assert "rank 3: host h3 does not have the input that rank 0 has: /tmp/a.h5" in verdict.said


@pytest.mark.any_mpi
def test_with_continue_only_the_ranks_of_a_host_without_the_input_are_lost(
    verdict: Verdict,
) -> None:
    assert fine(verdict, 0)
    assert "rank 3 (single) is lost: it cannot work: rank 3: host h3 does not" in verdict.said
    assert "2 single ranks left" in verdict.said


@pytest.mark.any_mpi
def test_with_pixels_auto_rank_0_sends_them_to_a_host_without_the_input(verdict: Verdict) -> None:
    assert fine(verdict, 0)
    assert "sends them to rank 3: host h3 does not have the input" in verdict.said


@pytest.mark.any_mpi
def test_a_row_that_one_host_cannot_read_is_read_by_another(verdict: Verdict) -> None:
    assert fine(verdict, 0)


@pytest.mark.parametrize("number", range(DRAWN))
def test_drawn_play(number: int, playing: dict[str, Future[Verdict]]) -> None:
    verdict = playing[f"drawn-{number}"].result()
    assert not verdict.wrong, (verdict.wrong, verdict.line(), verdict.said)


def test_hosts_are_apart_and_a_network_loses_what_it_is_told_to(tmp_path) -> None:
    """Else the plays would prove nothing."""
    shell, other = str(REMOTE_SHELL), tmp_path / "other"
    other.mkdir()
    (other / "theirs").touch()
    with hosts(tmp_path, [0, 5000], {"h2": other}) as two:
        assert "theirs" in two.run(2, ["ls", str(tmp_path)], 10)
        two.run(1, ["touch", "/tmp/own", "/dev/shm/own"], 10)
        there = two.run(1, [shell, "h2", "hostname; ls /tmp /dev/shm; ls /proc; ip route"], 10)
        assert there.startswith("h2\n")
        assert "own" not in there
        assert "default" not in there  # no way out
        assert str(two.up[1].process.pid) not in there.split()
        uptimes = [float(two.run(n, ["cat", "/proc/uptime"], 10).split()[0]) for n in (1, 2)]
        assert uptimes[1] - uptimes[0] > 4000
        inside = environment(tmp_path, "NO=tag")["PYTHONPATH"]
        told = (f"PYTHONPATH={inside}", f"HOST_CLOCK={CLOCK}")
        date = [*told, sys.executable, "-c", "import time; print(time.time())"]
        assert float(two.run(2, ["env", *date], 20)) - time.time() > 4000
        for harm in ({"sends": False}, {"hears": False}):
            two.cut(2, **harm)
            assert "none" in two.run(1, ["sh", "-c", f"timeout 1 {shell} h2 true || echo none"], 10)
            two.heal(2)
            assert two.run(1, [shell, "h2", "hostname"], 10) == "h2\n"
        gone = [host.process.pid for host in two.up.values()]
        two.kill(2)
        two.revive(2, 0)
        assert two.run(1, [shell, "h2", "hostname"], 10) == "h2\n"
    assert not any(is_there(pid) for pid in gone)


def is_there(pid: int) -> bool:
    from collage_mpi.system.process_tree import process_table

    return pid in process_table()
