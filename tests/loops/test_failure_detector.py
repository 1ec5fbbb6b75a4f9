"""Silent and lost ranks: who is suspected, when, by which layer, and what the user is told."""

from __future__ import annotations

import pytest

from collage_mpi.core.events import RankLost, RankSilent
from collage_mpi.errors import RankGone
from collage_mpi.faults.failure_detector import LOOK_EVERY_NS, FailureDetector
from collage_mpi.faults.process_monitor import Ended
from collage_mpi.faults.reply_timeout import (
    LEAST_REPLY_NS,
    SCAN_EVERY_NS,
    SECOND_NS,
    ReplyTimeouts,
    Silence,
)
from collage_mpi.faults.tcp_link import Offer
from collage_mpi.mpi.transport import Gone

S = SECOND_NS


class FakeMonitor:
    """The watch over processes: the test says who has ended."""

    def __init__(self, here=()) -> None:
        self.ended: list[Ended] = []
        self.here, self.killed, self.looks = set(here), [], 0

    def offer(self):
        return Offer((), 1, "")

    def look(self):
        self.looks += 1
        ended, self.ended = self.ended, []
        return ended

    def kill(self, rank):
        if rank in self.here:
            self.killed.append(rank)
        return rank in self.here


def detector_of(
    process_monitor=None, keep_going=True, kinds=("single", "single", "collage")
) -> FailureDetector:
    found = FailureDetector(range(1, len(kinds) + 1), 0, process_monitor)
    found.keep_going = keep_going
    found.begin({rank: [kind] for rank, kind in enumerate(kinds, start=1)})
    found.timeouts.reply_timeout_ns = S
    return found


def watched(timeouts: ReplyTimeouts, from_ns: int, to_ns: int) -> list[Silence]:
    """What a rank 0 finds that looks all the time, the last time at `to_ns`."""
    looks = range(from_ns, to_ns, SCAN_EVERY_NS // 2)
    return [sign for now_ns in (*looks, to_ns) for sign in timeouts.overdue(now_ns)]


def looked(detector: FailureDetector, from_ns: int, to_ns: int) -> list[RankSilent | RankLost]:
    looks = range(from_ns, to_ns, SCAN_EVERY_NS // 2)
    return [sign for now_ns in (*looks, to_ns) for sign in detector.look(now_ns)]


# ---- silence ------------------------------------------------------------------


def test_a_rank_that_owes_nothing_is_never_silent():
    timeouts = ReplyTimeouts([1], 0, S)
    assert watched(timeouts, 0, 100 * S) == []
    timeouts.sent(1, 100 * S)
    timeouts.heard(1, 101 * S, answers=1)
    assert watched(timeouts, 100 * S, 200 * S) == []


def test_silence_counts_from_the_first_debt_or_the_last_word():
    timeouts = ReplyTimeouts([1], 0, S)
    assert watched(timeouts, 0, 10 * S) == []
    timeouts.sent(1, 10 * S)
    assert watched(timeouts, 10 * S, 10 * S + S // 2) == []
    timeouts.sent(1, 10 * S + S // 2)
    assert watched(timeouts, 10 * S + S // 2, 11 * S - 1) == []
    timeouts.heard(1, 11 * S - 1, answers=1)  # one is still owed
    assert watched(timeouts, 11 * S, 12 * S - 2) == []
    assert watched(timeouts, 12 * S, 12 * S + SCAN_EVERY_NS) == [
        Silence(1, "no answer for 1.0 s", again=False)
    ]
    assert watched(timeouts, 12 * S + SCAN_EVERY_NS, 13 * S - 2) == []  # once
    assert watched(timeouts, 13 * S, 13 * S + 2 * SCAN_EVERY_NS)[0].again


def test_what_a_hung_rank_is_still_sent_does_not_hide_its_silence():
    timeouts = ReplyTimeouts([1], 0, S)
    for at_ns in range(0, S, S // 4):
        assert watched(timeouts, at_ns, at_ns + S // 5) == []
        timeouts.sent(1, at_ns)
    assert timeouts.silent == []  # it owes four answers, and not for long
    assert watched(timeouts, S, S + S // 4) == [Silence(1, "no answer for 1.0 s", again=False)]
    assert timeouts.silent == [1]


def test_silence_counts_in_time_watched_also_where_rank_0_was_away_before():
    timeouts = ReplyTimeouts([1], 0, S)
    hour = 3600 * S
    assert timeouts.overdue(hour) == []
    timeouts.sent(1, hour)
    assert watched(timeouts, hour, hour + S - 1) == []
    assert watched(timeouts, hour + S, hour + S) == [Silence(1, "no answer for 1.0 s", again=False)]


def test_each_task_of_a_message_is_owed():
    detector = detector_of()
    detector.sent(1, 0, 4)
    detector.sent(2, 0, 4)
    detector.heard(1, S // 2, 3, S // 4)
    detector.heard(2, S // 2, 4, S // 4)
    (sign,) = looked(detector, 0, S + S // 2)
    assert (sign.rank, sign.why) == (1, "no answer for 1.0 s")


def test_a_rank_that_was_silent_in_one_session_has_its_second_chance_in_the_next():
    detector = detector_of()
    detector.sent(1, 0)
    assert len(looked(detector, 0, S)) == 1
    detector.begin({1: ["single"], 2: ["single"]})
    assert detector.timeouts.silent == []
    assert looked(detector, S, 3 * S) == []  # it owes nothing
    detector.sent(1, 3 * S)
    assert looked(detector, 3 * S, 4 * S) == [RankSilent(1, "no answer for 1.0 s")]


def test_how_long_a_lost_rank_was_silent_counts_from_the_start_and_is_never_negative():
    timeouts = ReplyTimeouts([1, 2], 5 * S)
    never_heard = timeouts.lose(1, "start", "why", 7 * S)
    timeouts.heard(2, 7 * S + 1)  # its last word came after this turn had begun
    just_heard = timeouts.lose(2, "process", "why", 7 * S)
    assert (never_heard.silent_ns, just_heard.silent_ns) == (2 * S, 0)


def test_more_answers_than_are_owed_are_no_credit_for_later():
    """Late ones of a session that is over: the rank may hang over what it is sent next."""
    timeouts = ReplyTimeouts([1], 0, S)
    timeouts.sent(1, 0, 2)
    timeouts.settle()
    timeouts.heard(1, S // 2, answers=2)
    timeouts.sent(1, S // 2, 2)
    assert watched(timeouts, 0, 2 * S)[0] == Silence(1, "no answer for 1.0 s", again=False)


def test_a_suspect_that_speaks_is_trusted_again():
    timeouts = ReplyTimeouts([1], 0, S)
    timeouts.sent(1, 0)
    assert watched(timeouts, 0, S) == [Silence(1, "no answer for 1.0 s", again=False)]
    assert watched(timeouts, S, 2 * S - 1) == []
    timeouts.heard(1, 2 * S - 1)  # still owed, but it lives
    assert watched(timeouts, 2 * S, 3 * S - 2) == []
    (sign,) = watched(timeouts, 3 * S, 3 * S + S // 2)
    assert not sign.again


def test_the_time_that_rank_0_was_stopped_itself_is_no_silence():
    """A job that is suspended as a whole, for an hour: nobody is silent, nobody lost."""
    timeouts = ReplyTimeouts([1, 2], 0, S)
    timeouts.sent(1, 0)
    timeouts.sent(2, 0)
    assert watched(timeouts, 0, S // 2) == []
    hour = 3600 * S
    assert timeouts.overdue(hour) == []  # rank 0 wakes; their answers are still to be read
    timeouts.heard(1, hour, answers=1)
    assert watched(timeouts, hour, hour + S // 4) == []
    assert watched(timeouts, hour + S // 4, hour + S) == [
        Silence(2, "no answer for 1.0 s", again=False)
    ]


def test_a_whole_timeout_lies_between_silence_and_loss():
    """Rank 0 sleeps while a rank is silent: it has all of its second chance after that."""
    timeouts = ReplyTimeouts([1], 0, S)
    timeouts.sent(1, 0)
    assert len(watched(timeouts, 0, S)) == 1
    assert watched(timeouts, 100 * S, 100 * S + S // 2) == []
    assert watched(timeouts, 100 * S + S // 2, 101 * S)[0].again


def test_a_rank_0_that_stalls_at_every_turn_still_notices():
    timeouts = ReplyTimeouts([1], 0, S)
    timeouts.sent(1, 0)
    found = [sign for now_s in range(1, 11) for sign in timeouts.overdue(now_s * S)]
    assert [sign.again for sign in found] == [False, True]


def test_patience_grows_with_the_longest_service_time():
    timeouts = ReplyTimeouts([1], 0)
    assert timeouts.timeout_ns == LEAST_REPLY_NS == 30 * S
    timeouts.served(2 * S)
    assert timeouts.timeout_ns == 30 * S
    timeouts.served(7 * S)
    timeouts.served(1 * S)
    assert timeouts.timeout_ns == 70 * S


def test_a_scan_is_not_made_at_every_turn():
    timeouts = ReplyTimeouts([1], 0, S)
    timeouts.sent(1, 0)
    for number in range(10):
        assert timeouts.overdue(number * SCAN_EVERY_NS + SCAN_EVERY_NS // 2) == []
    assert timeouts.overdue(S) == []
    assert timeouts.overdue(S + SCAN_EVERY_NS // 2) != []


def test_a_session_s_debts_end_with_it():
    timeouts = ReplyTimeouts([1], 0, S)
    timeouts.sent(1, 0)
    timeouts.settle()
    assert watched(timeouts, 0, 100 * S) == []


def test_a_lost_rank_is_lost_once_and_for_good():
    timeouts = ReplyTimeouts([1, 2], 0, S)
    timeouts.heard(1, 3 * S)
    loss = timeouts.lose(1, "process", "why", 5 * S)
    assert loss is not None
    assert loss.silent_ns == 2 * S
    assert timeouts.lose(1, "mpi", "again", 6 * S) is None
    timeouts.sent(1, 7 * S)
    timeouts.heard(1, 7 * S, 1)
    assert timeouts.present == [2]
    assert timeouts.losses[1].layer == "process"


# ---- layers -------------------------------------------------------------------


def test_each_layer_makes_one_loss_and_the_first_counts(caplog):
    process_monitor = FakeMonitor(here=[1])
    detector = detector_of(process_monitor)
    process_monitor.ended = [Ended(1, "process", "its process has ended")]
    detector.gone(Gone(1, "MPI says: ERR_PROC_FAILED", 5))
    assert detector.look(S) == [RankLost(1, "MPI says: ERR_PROC_FAILED")]
    assert detector.look(2 * S) == []
    (told,) = caplog.messages
    assert told == (
        "collage-mpi run: rank 1 (single) is lost: MPI says: ERR_PROC_FAILED; 1 single rank left"
    )
    (known,) = detector.describe()
    assert (known["rank"], known["layer"], known["kinds"]) == (1, "mpi", ["single"])
    assert process_monitor.killed == [1]  # MPI gave it up: it must not go on


@pytest.mark.parametrize(("here", "end"), [([2], "killed"), ([], "written off")])
def test_a_silent_rank_is_suspected_then_ended(here, end):
    process_monitor = FakeMonitor(here)
    detector = detector_of(process_monitor)
    detector.sent(2, 0)
    assert looked(detector, 0, S) == [RankSilent(2, "no answer for 1.0 s")]
    assert process_monitor.killed == []
    assert looked(detector, S, 2 * S) == [RankLost(2, f"no answer for 2.0 s; {end}")]
    assert process_monitor.killed == here
    assert detector.describe()[0]["layer"] == "timeout"


def test_a_plain_world_suspects_and_kills_nobody():
    detector = detector_of(None, keep_going=False)
    detector.sent(1, 0)
    assert looked(detector, 0, S) == [RankSilent(1, "no answer for 1.0 s")]
    assert looked(detector, S, 100 * S) == []
    detector.heard(1, 101 * S, 1, S)
    assert detector.timeouts.present == [1, 2, 3]


def test_where_all_are_needed_silence_ends_the_job():
    detector = detector_of(None, keep_going=False)
    detector.all_needed = True
    detector.sent(1, 0)
    assert looked(detector, 0, S) == [RankSilent(1, "no answer for 1.0 s")]
    with pytest.raises(RankGone, match=r"rank 1 \(single\) is lost: no answer for 2.0 s; written"):
        looked(detector, S, 3 * S)


def test_a_loss_says_where_what_and_when(caplog):
    detector = FailureDetector([1, 2], 5 * S, FakeMonitor())
    detector.keep_going = True
    detector.begin({1: {"single", "collage"}, 2: ["single"]})
    detector.met(1, "node7", 4 * S)
    assert detector.timeouts.timeout_ns == 40 * S
    at_ns = 6 * S + 123_456_789
    detector.heard(1, at_ns)
    detector.gone(Gone(1, "MPI says: gone", at_ns))
    detector.look(at_ns)
    assert "rank 1 (collage+single) on node7 is lost" in caplog.text
    assert detector.describe() == [
        {
            "rank": 1,
            "host": "node7",
            "kinds": ["collage", "single"],
            "why": "MPI says: gone",
            "layer": "mpi",
            "at_s": 1.123457,
            "silent_s": 0.0,
        }
    ]


def test_what_mpi_says_ends_a_plain_world():
    detector = detector_of(None, keep_going=False)
    detector.gone(Gone(1, "MPI says: gone", S))
    with pytest.raises(RankGone, match="MPI says: gone"):
        detector.look(S)


def test_abort_ends_the_job_at_the_first_loss():
    process_monitor = FakeMonitor()
    detector = detector_of(process_monitor, keep_going=False)
    process_monitor.ended = [Ended(3, "process", "its process has ended")]
    with pytest.raises(RankGone, match=r"rank 3 \(collage\) is lost.*Go on with the same command"):
        detector.look(S)


def test_the_end_of_collages_is_said_once(caplog):
    process_monitor = FakeMonitor()
    detector = detector_of(process_monitor, kinds=("single", "collage", "collage"))
    process_monitor.ended = [Ended(2, "process", "gone"), Ended(3, "process", "gone")]
    detector.look(S)
    first, second = caplog.messages
    assert first.endswith("1 collage rank left")
    assert second.endswith("no collage rank is left: the job goes on as scheme none")


def test_without_single_ranks_there_is_no_scheme_to_go_on_as(caplog):
    process_monitor = FakeMonitor()
    detector = detector_of(process_monitor, kinds=("single", "stage1", "stage1"))
    process_monitor.ended = [Ended(1, "process", "gone"), Ended(2, "process", "gone")]
    detector.look(S)
    first, second = caplog.messages
    assert first.endswith("0 single ranks left")
    assert second.endswith("1 stage1 rank left")


def test_a_rank_that_leaves_at_the_end_is_no_loss(caplog):
    process_monitor = FakeMonitor()
    detector = detector_of(process_monitor)
    detector.leaving = True
    process_monitor.ended = [Ended(1, "process", "its process has ended")]
    assert detector.look(S) == []
    assert detector.timeouts.present == [2, 3]
    assert detector.describe() == []
    assert caplog.messages == []


def test_what_mpi_says_is_told_at_once_between_two_looks():
    detector = detector_of(FakeMonitor())
    assert detector.look(S) == []
    detector.gone(Gone(2, "MPI says: gone", S + 1))
    (lost,) = detector.look(S + 2)
    assert (type(lost), lost.rank) == (RankLost, 2)


def test_processes_are_looked_at_a_thousand_times_a_second_at_most():
    process_monitor = FakeMonitor()
    detector = detector_of(process_monitor)
    for now_ns in range(0, S, LOOK_EVERY_NS // 10):
        detector.look(now_ns)
    assert process_monitor.looks <= S // LOOK_EVERY_NS + 1
