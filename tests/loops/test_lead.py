"""The lead and teams that tests play: who is told what, which parts count."""

from __future__ import annotations

import json
from collections import deque
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import Clock

from collage_mpi.core import events as ev
from collage_mpi.core.outcomes import Totals
from collage_mpi.errors import DataFault, EnvironmentFault, ExitCode, RankGone, UsageError
from collage_mpi.faults.failure_detector import FailureDetector
from collage_mpi.job import messages
from collage_mpi.job.calibration import Pair
from collage_mpi.job.lead import Lead, LeadSettings, build_lead, build_lease_book, ranks_of_others
from collage_mpi.job.leases import LeaseBook, LeaseSettings
from collage_mpi.job.messages import (
    Begin,
    Begun,
    Close,
    Done,
    Fault,
    Halt,
    Idle,
    Lease,
    Pairs,
    Part,
    Pause,
    Progress,
    Ready,
    SetThreshold,
    Start,
    Stop,
)
from collage_mpi.mpi import protocol as wire
from collage_mpi.mpi.protocol import WireFault
from collage_mpi.mpi.transport import Gone, Received
from collage_mpi.results.pending import entry_path, status_folder
from collage_mpi.results.status import StatusFiles
from collage_mpi.rows import TASK_ROW
from collage_mpi.shards.order import Order, Permutation, ranges_of

MS = 1_000_000
START, READY = Start(1.5, {}, 1, 4096, 16384), Ready({"single": "aa"})


class Others:
    """Stands for the worker group of the other coordinators."""

    def __init__(self, clock: Clock, ranks: tuple[int, ...] = (4, 8)) -> None:
        self.clock, self.ranks = clock, ranks
        self.transport = self
        self.detector = FailureDetector(self.ranks, clock.now_ns)
        self.detector.keep_going = True
        self.told: dict[int, list[messages.Message]] = {rank: [] for rank in self.ranks}
        self.arrivals: deque[Received | Gone] = deque()
        self.dropped: set[int] = set()

    def tell(self, rank, message):
        assert rank not in self.dropped
        self.told[rank].append(message)

    def drop(self, rank):
        self.dropped.add(rank)

    def poll(self):
        found = [a for a in self.arrivals if a.rank not in self.dropped]
        self.arrivals.clear()
        return found

    def says(self, rank, message):
        buffer = np.empty(wire.CONTROL_BYTES, np.uint8)
        nbytes = messages.pack(buffer, 0, message)
        self.arrivals.append(Received(rank, buffer[:nbytes], self.clock.now_ns))


class Published(list):
    def put(self, *part):
        self.append(part)


class Play:
    """A lead of three teams over 16 images in groups of 2; leases of one batch of 2 groups."""

    def __init__(self, images: int = 16, done=()) -> None:
        self.clock = Clock()
        self.others = Others(self.clock)
        self.published = Published()
        self.stop: str | None = None
        book = LeaseBook(LeaseSettings(2, batch=2, smallest=1, largest=1), images, done=done)
        self.lead = Lead(
            self.others,
            book,
            self.published,
            LeadSettings(session=5, late_s=2.0),
            lambda: self.stop,
            self.clock,
        )

    def look(self, ms: int = 2) -> None:
        self.clock.now_ns += ms * MS
        self.lead.look()

    def says(self, rank: int, *said) -> None:
        for message in said:
            self.others.says(rank, message)
        self.look()

    def told(self, rank: int, kind: type) -> list:
        found = self.lead.inbox if rank == 0 else self.others.told[rank]
        return [message for message in found if isinstance(message, kind)]

    def part(self, rank: int, lease: Lease, number: int = 1) -> Part:
        return Part("images", number, lease.epoch, lease.places)


@pytest.fixture
def play() -> Play:
    return Play()


def start(play: Play, *ranks: int) -> None:
    play.lead.begin("run", "digest")
    play.lead.start(START, {"single": "aa"})
    for rank in ranks:
        play.says(rank, READY)


def test_a_team_is_a_session_and_gets_leases_two_ahead(play):
    start(play, 4)
    assert play.others.told[4][:2] == [Begin(6, "run", "digest"), START]
    mine, other = play.told(0, Lease), play.told(4, Lease)
    assert [lease.first_group for lease in (*mine, *other)] == [0, 2, 4, 6]
    assert [messages.unpacked_ranges(lease.places) for lease in other] == [[(8, 12)], [(12, 16)]]
    assert play.told(4, Pause) == [Pause()]


def test_a_pause_is_told_when_nothing_is_left_and_team_0_hears_of_it_by_asking(play):
    start(play)
    assert len(play.told(0, Lease)) == 2
    assert play.told(0, Pause) == play.told(0, Begin) == []
    play.others.says(4, READY)
    heard = []
    for _ in range(4):
        play.clock.now_ns += 2 * MS
        heard.append(type(play.lead.hear()))
    assert heard == [Lease, Lease, Pause, type(None)]
    assert len(play.told(4, Lease)) == 2


def test_a_lease_begun_makes_room_for_another(play):
    start(play)
    assert len(play.told(0, Lease)) == 2
    play.lead.say(Begun(0))
    play.look()
    assert len(play.told(0, Lease)) == 3


def test_of_news_from_one_team_no_other_is_looked_at(play, monkeypatch):
    """With hundreds of teams, most of a lease's time went into asking the book of the others."""
    play = Play(images=80)
    start(play, 4, 8)
    asked, wants = [], LeaseBook.wants
    monkeypatch.setattr(LeaseBook, "wants", lambda *of: asked.append(of[1]) or wants(*of))
    play.says(4, Progress(1, 0, 0))
    play.look()
    assert asked == []
    play.says(4, Begun(play.told(4, Lease)[0].number))
    play.look()
    assert asked == [1, 1]  # once more when it has got one


class Lone(Play):
    """A lead of one team: there is no other coordinator, and nobody who publishes parts."""

    def __init__(self, images: int = 16, done=()) -> None:
        self.clock = Clock()
        self.others = Others(self.clock, ())
        self.stop = None
        leases = LeaseSettings(2, 2, smallest=images, largest=images)
        self.lead = Lead(
            self.others,
            LeaseBook(leases, images, done=done),
            None,
            LeadSettings(session=5, late_s=2.0),
            lambda: self.stop,
            self.clock,
        )


def test_a_team_alone_gets_all_that_is_left_and_the_end_of_the_input_before_it_is_ready():
    play = Lone(done=[(3, 5), (9, 10)])
    play.lead.begin("run", "digest")
    lease, close = play.lead.inbox
    assert messages.unpacked_ranges(lease.places) == [(0, 3), (5, 9), (10, 16)]
    assert (lease.first_group, close) == (0, Close())
    play.lead.start(START, {"single": "aa"})
    play.lead.say(Begun(lease.number))
    play.look(2000)
    assert len(play.lead.inbox) == 2  # no pause: no image may come back


def test_of_a_job_with_nothing_left_a_team_alone_hears_the_end_at_once():
    play = Lone(images=4, done=[(0, 4)])
    play.lead.begin("run", "digest")
    assert list(play.lead.inbox) == [Close()]


@pytest.mark.parametrize("status", ["complete", "complete_with_errors", "incomplete"])
def test_a_job_of_one_team_ends_as_the_team_says_and_waits_for_nobody(status):
    play = Lone()
    play.lead.begin("run", "digest")
    play.lead.start(START, {})
    play.lead.say(Done(status, "why", (), ()))
    play.lead.wait(lambda: pytest.fail("nobody is awaited"))
    assert play.lead.finish == ev.Finish(status, "why")
    assert (play.lead.unread, play.lead.lost_shards) == (0, [])


def test_a_lead_of_one_team_looks_for_others_once_a_second_at_most():
    play, polls = Lone(), []
    play.others.poll = lambda: polls.append(play.clock.now_ns) or []
    play.lead.begin("run", "digest")
    play.lead.start(START, {})
    for _ in range(2500):
        play.clock.now_ns += MS
        play.lead.hear()
    assert len(polls) == 3


def test_totals_are_those_of_all_teams(play):
    start(play, 4)
    play.says(4, Progress(3, 1, 2, 1, 1))
    own = Totals(images=5, admitted=7)
    assert play.lead.totals(own) == Totals(8, 1, 2, 1, 1, admitted=7)


def test_pairs_of_all_teams_go_to_the_judge_and_its_threshold_to_all_teams(play):
    heard = []
    play.lead.tell_pairs(heard.extend)
    start(play, 4)
    pair = Pair(3, 0.5, differs=True)
    play.says(4, Pairs((pair,)))
    play.lead.say(Pairs((pair,)))
    assert heard == [pair, pair]
    threshold = SetThreshold(0.8, 1, 70)
    play.lead.set_threshold(threshold)
    assert play.told(0, SetThreshold) == play.told(4, SetThreshold) == [threshold]
    assert play.told(8, SetThreshold) == []
    play.says(8, READY)  # it comes late
    assert play.told(8, SetThreshold) == [threshold]
    play.says(8, Fault("disk full", int(ExitCode.ENVIRONMENT)))
    play.says(8, Pairs((pair,)))
    assert len(heard) == 2  # its images are done again


def test_ready_waits_until_the_costs_are_known(play):
    play.lead.begin("run", "digest")
    play.says(4, READY)
    assert play.told(4, Start) == []
    play.lead.start(START, {})
    assert play.told(4, Start) == [START]


def test_input_is_closed_when_every_image_is_in_a_part(play):
    start(play, 4)
    for rank in (0, 4):
        for number, lease in enumerate(play.told(rank, Lease)):
            assert play.told(4, Close) == []
            part = play.part(rank, lease, number)
            if rank:
                play.says(rank, part)
            else:
                play.lead.say(part)
    play.look()
    assert play.told(0, Close) == play.told(4, Close) == [Close()]
    assert play.published == [
        ("images", 5, 0),
        ("images", 5, 1),
        ("images", 6, 0),
        ("images", 6, 1),
    ]


def test_of_a_team_that_cannot_go_on_nothing_further_is_published(play):
    start(play, 4)
    first, _ = play.told(4, Lease)
    play.says(4, Fault("disk full", int(ExitCode.ENVIRONMENT)))
    play.says(4, Part("tasks", 1, first.epoch, ()), play.part(4, first))
    assert play.published == []


def test_what_a_lost_team_had_goes_to_others_and_what_it_publishes_does_not_count(play):
    start(play, 4)
    first, second = play.told(4, Lease)
    play.says(4, play.part(4, first))
    play.others.arrivals.append(Gone(4, "MPI says so", play.clock.now_ns))
    play.look()
    play.look()  # what came before the loss counts
    play.others.says(4, play.part(4, second, 2))  # it was only asleep
    play.look()
    play.lead.say(Begun(0))
    play.lead.say(Begun(1))
    play.look()
    again = play.told(0, Lease)[2:]
    assert [lease.places for lease in again] == [second.places]
    assert again[0].first_group == 8  # beyond the last
    assert play.published == [("images", 6, 1)]
    assert play.lead.progress.images == 4  # published before
    assert play.told(4, Stop) == [Stop(int(ExitCode.COMPLETE))]


def test_what_a_lost_team_had_is_granted_though_no_team_says_anything(play):
    start(play, 4)
    for lease in play.told(0, Lease):
        play.lead.say(Begun(lease.number))
    play.look()
    play.look()
    assert len(play.told(0, Lease)) == 2
    play.others.arrivals.append(Gone(4, "MPI says so", play.clock.now_ns))
    play.look()
    play.look()
    assert play.told(0, Lease)[2:] != []


def test_team_0_has_work_though_all_other_teams_were_missed_before_the_start(play):
    play.clock.now_ns = 2 * LATE_MS * MS  # of a host that has long been up
    play.lead.begin("run", "digest")
    for rank in (4, 8):
        play.says(rank, Fault("disk full", int(ExitCode.ENVIRONMENT)))
    play.look()
    play.lead.start(START, {})
    assert len(play.told(0, Lease)) == 2


def test_a_part_of_an_older_epoch_is_not_published(play):
    start(play)
    lease = play.told(0, Lease)[0]
    play.lead.say(Part("images", 1, lease.epoch + 7, lease.places))
    assert play.published == []


def test_silence_of_a_coordinator_is_a_loss(play):
    play.others.detector.timeouts.reply_timeout_ns = 100 * MS
    start(play, 4, 8)
    for _ in range(60):
        play.others.says(8, Progress(3, 1, 2))
        play.look(10)
    assert play.others.dropped == {4}
    assert play.lead.progress == Progress(3, 1, 2)


def test_where_each_rank_is_needed_a_silent_coordinator_ends_the_job(play):
    play.others.detector.keep_going, play.others.detector.all_needed = False, True
    play.others.detector.timeouts.reply_timeout_ns = 100 * MS
    start(play, 4)
    for _ in range(19):
        play.look(10)
    with pytest.raises(RankGone, match=r"rank 4 is lost.*--resume"):
        play.look(50)


LATE_MS = 2000  # from the start on: no team is waited for any more


def unread_by_team_1(play: Play) -> Lease:
    """Teams 0 and 1 work; what team 1 could not read, the lease returned, is for others now."""
    start(play, 4)
    first, second = play.told(4, Lease)
    play.says(4, Idle(first.number))  # it had not heard of the second one
    assert play.lead._book.held(1) == ((8, 16),)
    play.says(4, play.part(4, first), Begun(first.number), Begun(second.number))
    play.says(4, Idle(second.number))
    assert (play.lead._book.held(1), play.lead.unread) == ((), 0)
    return second


def does_its_leases(play: Play, rank: int) -> None:
    """All leases that the team has, and those that it gets meanwhile."""
    done = 0
    while done < len(play.told(rank, Lease)):
        lease = play.told(rank, Lease)[done]
        done += 1
        said = Begun(lease.number), play.part(rank, lease, 10 + done)
        if rank:
            play.says(rank, *said)
        else:
            for each in said:
                play.lead.say(each)
            play.look()


def test_what_no_team_can_read_is_counted_once_each_has_tried_it(play, caplog):
    unread = unread_by_team_1(play)
    assert "team 1 could not read 4 images, which other teams try" in caplog.text
    for lease in play.told(0, Lease):
        play.lead.say(play.part(0, lease))
        play.lead.say(Begun(lease.number))
    play.look()
    (again,) = play.told(0, Lease)[2:]
    assert (again.places, again.first_group) == (unread.places, 8)
    assert len(play.told(4, Lease)) == 2
    play.says(4, Part("tasks", 3, unread.epoch, ()), Part("images", 4, unread.epoch, (12, 4)))
    assert ("tasks", 6, 3) in play.published
    assert ("images", 6, 4) not in play.published  # it has no image any more
    play.lead.say(Begun(again.number))
    play.lead.say(Idle(again.number))
    play.look()
    assert play.told(0, Close) == play.told(4, Close) == []  # team 2 may come yet
    assert (play.lead.unread, play.lead.finish.status) == (0, "incomplete")
    play.look(LATE_MS)
    assert play.told(0, Close) == play.told(4, Close) == [Close()]
    assert (play.lead.unread, play.lead.finish.status) == (4, "complete")
    play.says(4, Done("complete", "", ("its disk",), ("another",)))
    assert (play.lead.lost_shards, play.lead.changed_shards) == (["its disk"], ["another"])


def test_a_team_that_comes_late_tries_what_no_other_could_read(play):
    unread = unread_by_team_1(play)
    for lease in play.told(0, Lease):
        play.lead.say(play.part(0, lease))
        play.lead.say(Begun(lease.number))
    play.look()
    play.lead.say(Idle(play.told(0, Lease)[-1].number))
    play.look(LATE_MS // 2)
    play.says(8, READY)
    (lease,) = play.told(8, Lease)
    assert lease.places == unread.places
    play.look(LATE_MS)  # it has come: it is waited for
    assert play.told(8, Close) == []
    play.says(8, play.part(8, lease))
    assert play.told(0, Close) == play.told(4, Close) == play.told(8, Close) == [Close()]
    assert (play.lead.unread, play.lead.finish.status) == (0, "complete")


def test_what_another_team_has_read_is_no_loss(play):
    unread_by_team_1(play)
    does_its_leases(play, 0)
    assert play.told(4, Close) == [Close()]
    play.says(4, Done("complete", "", ("its disk",), ()))
    assert (play.lead.unread, play.lead.lost_shards, play.lead.finish.status) == (0, [], "complete")


def test_where_no_other_is_left_a_team_does_the_rest_but_not_what_it_could_not_read(play):
    unread = unread_by_team_1(play)
    play.lead.say(Done("incomplete", "no rank is left", (), ()))
    play.look(LATE_MS)
    assert play.lead.unread == 4
    does_its_leases(play, 4)
    again = [lease.places for lease in play.told(4, Lease)[2:]]
    assert again == [(0, 4), (4, 4)]
    assert unread.places not in again
    assert play.told(4, Close) == [Close()]


def test_the_last_team_that_could_try_is_not_said_to_leave_it_to_others(play, caplog):
    start(play)
    play.look(LATE_MS)
    play.lead.say(Idle(play.told(0, Lease)[-1].number))
    assert play.lead.unread == 8
    assert "could not read" not in caplog.text


def test_of_a_job_that_is_stopped_nothing_counts_as_unread(play, caplog):
    start(play, 4)
    play.look(LATE_MS)
    play.stop = "stopped by SIGTERM"
    play.look()
    play.lead.say(Idle(play.told(0, Lease)[-1].number))
    play.look()
    assert (play.lead.unread, play.lead.finish.status) == (0, "incomplete")
    assert "other teams try" not in caplog.text


def test_teams_that_have_ended_are_not_waited_for_as_late_ones(play):
    start(play, 4, 8)
    for rank in (4, 8):
        play.says(rank, Done("incomplete", "no rank is left", (), ()))
    play.lead.say(Idle(play.told(0, Lease)[-1].number))
    assert play.lead.unread == 8
    play.lead.say(Done("incomplete", "no rank is left", (), ()))
    assert not play.lead.awaits_teams


def test_what_a_team_says_after_it_was_missed_changes_nothing(play):
    start(play, 4)
    first, second = play.told(4, Lease)
    play.says(4, Fault("disk full", int(ExitCode.ENVIRONMENT)))
    play.says(4, Begun(first.number), Idle(second.number), Done("complete", "", (), ()))
    assert (play.lead.unread, play.lead.teams[1].done) == (0, None)
    assert play.lead.finish.status == "incomplete"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ([READY], "an invalid ready: team 1 is ready already"),
        ([Part("images", 1, 2, (0, 4))], "an invalid part: positions 0 to 3 are not among"),
        ([Part("tastes", 1, 2, ())], "an invalid part: there is no table 'tastes'"),
    ],
)
def test_what_a_team_cannot_have_said_is_told_with_its_rank(play, said, why):
    start(play, 4)
    with pytest.raises(WireFault, match=f"rank 4 sent {why}"):
        play.says(4, *said)


def test_a_team_is_ready_once_also_before_the_costs_are_known(play):
    play.lead.begin("run", "digest")
    with pytest.raises(WireFault, match="team 1 is ready already"):
        play.says(4, READY, READY)


def test_why_a_launch_is_incomplete_is_the_first_reason_that_a_team_gave(play):
    start(play, 4, 8)
    assert play.lead.finish.reason == "no team is left to do the rest"
    play.says(4, Done("complete", "", (), ()))
    play.says(8, Done("incomplete", "no rank is left", (), ()))
    assert play.lead.finish.reason == "no rank is left"


def test_a_team_that_is_given_up_is_told_with_what_it_had(play, caplog):
    start(play, 4)
    play.says(4, play.part(4, play.told(4, Lease)[0]))
    play.says(8, Fault("no device", int(ExitCode.ENVIRONMENT)))
    play.others.arrivals.append(Gone(4, "MPI says so", play.clock.now_ns))
    play.look()
    play.look()
    told = [text for text in caplog.messages if "given up" in text]
    assert told == [
        "collage-mpi run: team 2 (rank 8) is given up: it cannot work: no device",
        "collage-mpi run: team 1 (rank 4) is given up; other teams get its 4 unpublished images: "
        "MPI says so",
    ]


def test_a_coordinator_that_goes_after_its_last_row_is_told_as_that(play, caplog):
    start(play, 4)
    play.says(4, Done("complete", "", (), ()))
    play.others.arrivals.append(Gone(4, "MPI says so", play.clock.now_ns))
    play.look()
    play.look()
    assert "team 1 (rank 4) has gone after its last row: MPI says so" in caplog.messages[-1]


def test_a_team_that_was_stopped_ends_no_job(play):
    """It says so with exit code 6, wherever each rank is needed too."""
    play.others.detector.keep_going = False
    start(play)
    play.says(4, Fault("stopped by SIGTERM", int(ExitCode.INCOMPLETE)))
    assert play.lead.teams[1].gone == "it cannot work: stopped by SIGTERM"


def test_sessions_of_the_manifest_are_of_the_teams_that_began(play, tmp_path):
    """What a team wrote of its own, if it ended; of one that was lost its ranks as planned."""
    start(play, 4, 8)
    play.says(4, Done("complete", "", (), ()))
    play.others.arrivals.append(Gone(8, "MPI says so", play.clock.now_ns))
    play.look()
    play.look()
    own = {"session": 6, "status": "complete", "rows": {"images": 3}, "final": {}}
    entry_path(tmp_path, 6).parent.mkdir()
    entry_path(tmp_path, 6).write_text(json.dumps(own))
    assert play.lead.entries(tmp_path, lambda team: [{"rank": 4 * team}]) == [
        own,
        {
            "session": 7,
            "status": "incomplete",
            "rows": None,
            "final": {"world": [{"rank": 8}], "batch": 2},
        },
    ]
    assert Play().lead.entries(tmp_path, lambda team: []) == []


def test_a_team_that_is_gone_is_not_waited_for_as_a_late_one():
    start(play := Play(4))
    for rank in (4, 8):
        play.others.arrivals.append(Gone(rank, "MPI says so", play.clock.now_ns))
    play.look()
    play.look()
    play.lead.say(Idle(play.told(0, Lease)[-1].number))
    assert play.lead.unread == 4


def test_what_is_left_when_all_teams_have_gone_is_not_called_unread(play):
    unread_by_team_1(play)
    play.says(4, Done("incomplete", "no rank is left", (), ()))
    play.lead.say(Done("incomplete", "no rank is left", (), ()))
    play.look(LATE_MS)
    assert (play.lead.unread, play.lead.finish.status) == (0, "incomplete")
    assert not play.lead.awaits_teams


def test_a_team_is_paused_though_something_is_left_that_it_has_tried(play):
    """Else its rows stay in memory while a team that is late is waited for."""
    unread_by_team_1(play)
    play.lead.say(Done("incomplete", "no rank is left", (), ()))
    play.look()
    assert len(play.told(4, Lease)) == 4
    assert play.told(4, Pause) == [Pause(), Pause()]
    assert (play.lead._book.left, play.lead.unread) == (4, 0)


def test_no_late_team_is_waited_for_once_all_is_done_or_the_job_is_stopped():
    for stop in (None, "stopped by SIGTERM"):
        play = Play(4)
        start(play)
        if stop is None:
            does_its_leases(play, 0)
        play.stop = stop
        play.look()
        assert play.lead.awaits_teams  # the first one
        play.lead.say(Done("complete", "", (), ()))
        assert not play.lead.awaits_teams


def test_a_team_that_is_lost_after_it_gave_up_a_rest_leaves_no_more_to_others(play):
    unread_by_team_1(play)
    play.others.arrivals.append(Gone(4, "MPI says so", play.clock.now_ns))
    play.look()
    play.look()
    for lease in play.told(0, Lease):
        play.lead.say(Begun(lease.number))
    play.look()
    assert len(play.told(0, Lease)) == 3


def test_a_team_that_ends_early_leaves_the_rest_to_others(play):
    start(play, 4)
    play.lead.say(Done("incomplete", "no rank is left", (), ()))
    assert play.lead.finish.reason == "no rank is left"
    for lease in play.told(4, Lease):
        play.says(4, Begun(lease.number))
    places = [lease.places for lease in play.told(4, Lease)[2:]]
    assert places == [(0, 4), (4, 4)]


def test_a_stop_reaches_all_teams_and_nothing_more_is_granted(play):
    start(play, 4)
    play.stop = "stopped by SIGTERM"
    play.look()
    assert play.told(4, Halt) == play.told(8, Halt) == [Halt("stopped by SIGTERM")]
    play.others.arrivals.append(Gone(4, "", play.clock.now_ns))
    play.lead.say(Begun(0))
    play.look()
    play.look()
    assert len(play.told(0, Lease)) == 2
    assert play.told(8, Halt) == [Halt("stopped by SIGTERM")]


def test_another_network_ends_the_job(play):
    start(play)
    with pytest.raises(DataFault, match=r"team 1 .* another single network"):
        play.says(4, Ready({"single": "bb"}))


@pytest.mark.parametrize("kind", [UsageError, EnvironmentFault, DataFault])
def test_a_team_that_cannot_work_is_missed_unless_each_rank_is_needed(play, kind):
    start(play)
    play.says(8, Fault("no device", int(kind.exit_code)))
    assert play.told(8, Stop) == []  # it waits for the end of the job
    play.others.detector.keep_going = False
    with pytest.raises(kind, match="team 1: no device"):
        play.says(4, Fault("no device", int(kind.exit_code)))


def test_the_end_waits_for_teams_at_work_and_for_late_ones_while_something_is_left(play):
    start(play, 4)
    turns = []

    def report():
        turns.append(1)
        play.clock.now_ns += 300 * MS
        if len(turns) == 3:
            play.others.says(4, Done("incomplete", "", (), ("a shard",)))

    play.lead.say(Done("incomplete", "", (), ()))
    play.lead.wait(report)
    assert 6 <= len(turns) <= 8  # rank 8 might still have come
    assert play.lead.changed_shards == ["a shard"]


def test_ranks_of_other_teams_are_those_that_they_tell_of(play, tmp_path):
    start(play, 4)
    assert list(ranks_of_others(tmp_path, play.lead, lambda team: [])) == []
    rank = {"rank": 5, "host": "node1", "kinds": ["single"], "state": "ready", "tasks": 1}
    folder = status_folder(tmp_path, 6)
    folder.mkdir(parents=True)
    facts = {"run_id": "r", "session": 6, "label": "none", "total": 16, "before": 0}
    files = StatusFiles(folder, facts, 0.0, lambda: None)
    files.offer(lambda: ({"done": 1, "state": "running", "ranks": [rank]}, np.empty(0, TASK_ROW)))
    files.end("complete")
    (found,) = ranks_of_others(tmp_path, play.lead, lambda team: [])
    assert found == {**rank, "service_ms": None, "answers": 0}
    for gone in (4, 8):
        play.others.arrivals.append(Gone(gone, "MPI says so", play.clock.now_ns))
    play.look()
    play.look()
    planned = {2: [{"rank": 8, "kinds": []}, {"rank": 9, "kinds": ["collage"]}]}
    lost = list(ranks_of_others(tmp_path, play.lead, planned.get))
    assert [(r["rank"], r["host"], r["state"], r["tasks"], r["why"]) for r in lost] == [
        (5, "node1", "lost", 0, "MPI says so"),
        (9, "", "lost", 0, "MPI says so"),
    ]


def test_ranges_of_numbers():
    assert ranges_of(np.array([], np.int64)) == []
    assert ranges_of(np.array([2, 3, 4, 7, 9, 10])) == [(2, 5), (7, 8), (9, 11)]
    packed = messages.packed_ranges([(2, 5), (7, 8), (3, 4)])
    assert packed == (2, 3, 2, 1, -5, 1)
    assert messages.unpacked_ranges(packed) == [(2, 5), (7, 8), (3, 4)]


def polls_of(play, took_ms):
    """When the lead polls, in ns; its n-th poll, from 0, takes `took_ms(n)`."""
    asked, poll = [], play.others.poll

    def timed_poll():
        play.clock.now_ns += took_ms(len(asked)) * MS
        asked.append(play.clock.now_ns)
        return poll()

    play.others.poll = timed_poll
    return asked


def test_polls_take_a_fiftieth_of_the_time_at_most():
    play = Play()
    asked = polls_of(play, lambda n: 3)
    for _ in range(600):
        play.look(1)
    gaps = np.diff(asked)
    assert len(asked) > 3
    assert (gaps >= 150 * MS).all()
    assert (gaps < 160 * MS).all()


def test_after_a_look_that_had_much_to_do_the_next_comes_as_soon_as_after_any(play, monkeypatch):
    start(play, 4)
    polls, poll, begun = [], play.others.poll, LeaseBook.begun

    def slow_begun(*of):
        play.clock.now_ns += 30 * MS
        begun(*of)

    monkeypatch.setattr(LeaseBook, "begun", slow_begun)
    monkeypatch.setattr(play.others, "poll", lambda: polls.append(1) or poll())
    play.says(4, Begun(play.told(4, Lease)[0].number))
    assert len(polls) == 1
    play.look(1)
    assert len(polls) == 2


def test_a_poll_that_waited_for_its_core_puts_off_no_look():
    play = Play()
    asked = polls_of(play, lambda n: 6 * (n % 4 == 2))
    for _ in range(40):
        play.look(1)
    assert len(asked) == 40


def test_after_a_suspended_look_the_next_comes_soon():
    play = Play()
    asked = polls_of(play, lambda n: 60_000 * (n == 0))
    play.look()
    play.look(999 - 60_000)
    assert len(asked) == 1
    play.look(1002)
    assert len(asked) == 2


@pytest.mark.parametrize(("timeout_s", "heard_ns"), [(0.2, 10**9), (3.0, 3 * 10**9), (None, None)])
def test_what_the_lead_of_a_plan_goes_by(timeout_s, heard_ns):
    others = Others(Clock())
    others.detector.keep_going = False
    plan = SimpleNamespace(
        settings=SimpleNamespace(
            on_rank_loss="continue",
            reply_timeout_s=timeout_s,
            start_timeout_s=600.0,
            batch_size=2,
            group_size=4,
            teams=3,
        ),
        placement=SimpleNamespace(workers=range(1, 18)),
        order=Order(Permutation(4)),
        shards=SimpleNamespace(infos=[]),
    )
    writer = SimpleNamespace(publisher=Published(), session=5, manifest={"run_id": "r"})
    lead = build_lead(plan, others, writer, [(2, 4)], lambda: None)
    assert others.detector.keep_going
    assert others.detector.all_needed
    assert others.detector.timeouts.reply_timeout_ns == heard_ns  # they speak twice a second
    assert lead._book.settings.smallest == 3  # units of 8 images: one for each of 17 ranks
    assert lead._book.left == 2
    assert [team.session for team in lead.teams] == [5, 6, 7]
    plan.settings.batch_size = 1
    lead.group_by(build_lease_book(plan, [(2, 4)]))
    assert (lead._book.settings.smallest, lead._book.settings.batch) == (5, 1)
    plan.settings.batch_size = 4096  # a batch is more than the largest lease would be
    book = build_lease_book(plan, [(2, 4)])
    assert (book.settings.smallest, book.settings.largest) == (1, 1)
