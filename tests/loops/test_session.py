"""A team's whole session without MPI: its ranks answer at once, its rows come to the disk."""

from __future__ import annotations

import json
from collections import deque
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from job_messages import HELLO

from collage_mpi.errors import EnvironmentFault
from collage_mpi.faults.failure_detector import FailureDetector
from collage_mpi.job.lead import build_lead
from collage_mpi.job.messages import Ready, Start
from collage_mpi.job.plan import make_plan
from collage_mpi.job.provenance import final_facts, make_manifest
from collage_mpi.job.run import TeamRun
from collage_mpi.job.session import NAMED_BATCH, SENT_BATCH, Audience, TeamSession
from collage_mpi.job.team import LeadLost
from collage_mpi.mpi.answers import ANSWERED, Score, WireResult, pack_results
from collage_mpi.mpi.protocol import CANCEL, read_header
from collage_mpi.mpi.tasks import unpack_tasks
from collage_mpi.mpi.transport import Received
from collage_mpi.results import RunWriter, read_results
from collage_mpi.results.pending import entry_path
from collage_mpi.results.status import read_status
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards import write_shard
from collage_mpi.system.bottleneck import Use
from collage_mpi.system.progress import NoLines

SESSION, IMAGES = 3, 22
START = Start(1.0, {}, 1, 1 << 12, 8)


class Ranks:
    """Stands for the workers and their transport; each answers at the next poll."""

    size, library, session = 3, "none", SESSION

    def __init__(self, ranks=(1, 2)) -> None:
        self.ranks = self.present = tuple(ranks)
        self.transport = self
        self.detector = FailureDetector(ranks, 0)
        self.found: deque = deque()
        self.calls: list[str] = []
        self.sizes: list[int] = []  # images of each message
        self.told = None
        self.session_of: object = None
        self.measured = lambda: None
        self.use = Use()

    def expect(self, nbytes) -> None:
        self.expected = nbytes

    def welcome(self, *told):
        opened = "supply" in vars(self.session_of)
        self.calls.append("welcome, reading" if opened else "welcome")
        said = replace(HELLO, classes={}, cannot_read="")
        return dict.fromkeys(self.ranks, said)

    def start(self, told) -> None:
        self.told = told
        self.calls.append("start")

    def measure_together(self, ranks, kind, batch, interrupted):
        self.calls.append(f"{kind} of {batch} on {ranks}")
        self.measured()
        if interrupted() is not None:
            raise LeadLost(interrupted())
        return {}

    def end(self) -> None:
        self.calls.append("end")

    def buffer(self, nbytes):
        return np.zeros(nbytes, np.uint8)

    def send_task(self, rank, buffer, nbytes) -> None:
        message = buffer[:nbytes]
        if read_header(message).type == CANCEL:
            return
        tasks, _ = unpack_tasks(message)
        self.sizes.append(sum(len(task.items) for task in tasks))
        cells = (Score(3, 0.5),)
        ends = [
            WireResult(t.task, ANSWERED, compute_ns=9, cells=cells * len(t.items)) for t in tasks
        ]
        room = np.zeros(1 << 16, np.uint8)
        self.found.append((rank, room[: pack_results(room, SESSION, ends, self.use)]))

    def poll(self):
        if not self.found:
            return []
        rank, message = self.found.popleft()
        return [Received(rank, message, 1)]


class Made:
    """A run of one team over 22 images, and its session."""

    def __init__(self, folder, lacking=None, **settings) -> None:
        write_shard(folder / "a.h5", np.zeros((IMAGES, 6, 6, 1), np.uint8), np.arange(IMAGES) % 10)
        common = {"scheme": "none", "single": "null", "singles": 2, "side": 2, "out": "out"}
        asked = RunSettings(shards=(str(folder / "a.h5"),), **{**common, **settings})
        self.plan = make_plan(replace(asked, out=str(folder / "out")), 3, launched=False)
        self.writer = RunWriter.create(folder / "out", make_manifest(self.plan))
        lacking = lacking or [(0, IMAGES)]
        self.lead = build_lead(self.plan, Ranks(()), self.writer, lacking, lambda: None)
        files = self.writer.publish({"label": "l", "total": IMAGES, "before": 0}, 5.0)
        self.group = Ranks()
        audience = Audience(files, lacking, lines=NoLines())
        self.session = TeamSession(
            self.plan, self.group, self.lead, self.writer, audience, lambda: None
        )
        self.group.session_of = self.session

    def close(self, status: str) -> None:
        self.writer.close(status)
        self.plan.shards.close()


@pytest.mark.parametrize(
    ("settings", "welcome", "read_by"),
    [
        ({"pixels": "rank0"}, "welcome, reading", [0]),
        ({"depth": 1}, "welcome, reading", [0]),
        ({}, "welcome", [1, 2]),
        ({"pixels": "workers", "depth": 1}, "welcome", [1, 2]),
        ({"rate": 1e6, "pixels": "rank0"}, "welcome, reading", [0]),
    ],
    ids=["rank 0 reads", "a group at a time", "workers can", "workers must", "open loop"],
)
def test_the_session_of_one_team_writes_a_row_an_image_in_order(
    tmp_path, settings, welcome, read_by
):
    made = Made(tmp_path, **settings)
    with made.session as session:
        assert session.make_ready() == HELLO.fingerprints
        finish = session.work(START)
    assert (finish.status, made.group.calls) == ("complete", [welcome, "start", "end"])
    assert made.group.expected == 8
    assert session.facts()["read_by"] == read_by
    # Many at a time only of images whose pixels this rank does not hold.
    assert session.reader._batch == (SENT_BATCH if 0 in read_by else NAMED_BATCH)
    made.close(finish.status)
    rows = np.sort(read_results(tmp_path / "out").images, order="row")
    assert rows["row"].tolist() == list(range(IMAGES))
    assert rows["group"].tolist() == [row // 4 for row in range(IMAGES)]


def test_a_session_that_goes_on_does_what_is_left_and_counts_its_groups_from_0(tmp_path):
    made = Made(tmp_path, [(3, 9), (11, 21)])
    with made.session as session:
        session.make_ready()
        finish = session.work(START)
    made.close("incomplete")
    rows = np.sort(read_results(tmp_path / "out").images, order="row")
    assert finish.status == "complete"
    assert rows["row"].tolist() == [*range(3, 9), *range(11, 21)]
    assert rows["group"].tolist() == [place // 4 for place in range(16)]


@pytest.mark.parametrize("asked", [None, 2])
def test_the_batch_that_was_chosen_is_that_of_the_session(tmp_path, asked):
    made, size = Made(tmp_path, batch=asked), asked or 4
    start = replace(START, batch=size)
    with made.session as session:
        session.make_ready()
        finish = session.work(start)
        assert made.group.calls == ["welcome", "start", "end"]
        assert (made.group.told, max(made.group.sizes)) == (start, size)
        assert final_facts(session, {"host": "h", "pid": 1})["batch"] == size
    made.close(finish.status)
    rows = np.sort(read_results(tmp_path / "out").images, order="row")
    assert rows["warmup"].sum() == 4 * size


def another_team(made: Made) -> TeamRun:
    """One whose lead has chosen a batch of 4, and a ratio of costs."""
    team, lead = TeamRun.__new__(TeamRun), made.lead
    said = lead.say
    lead.wait_for = lambda message, stop_reason: replace(START, cost_ratio=1.5, batch=4)
    lead.say = lambda message: None if isinstance(message, Ready) else said(message)
    team.out, team._manifest = made.writer.out, made.writer.manifest
    team._begin = SimpleNamespace(session=made.writer.session)
    team.plan, team._worker_group, team._link = made.plan, made.group, lead
    team._stop_reason = lambda: None
    (team.out / "pending").mkdir()
    return team


@pytest.mark.parametrize(("asked", "tried"), [(None, ["single of 4 on (1, 2)"]), (4, [])])
def test_ranks_of_another_team_try_the_batch_that_was_chosen_for_all(tmp_path, asked, tried):
    made = Made(tmp_path, batch=asked)
    another_team(made).run()
    assert made.group.calls == ["welcome", *tried, "start", "end"]
    entry = json.loads(entry_path(made.writer.out, made.writer.session).read_text())
    assert (entry["status"], entry["final"]["cost_ratio"]) == ("complete", 1.5)
    made.close("incomplete")


def test_while_ranks_try_the_batch_the_lead_is_heard(tmp_path):
    made = Made(tmp_path, batch=None)
    team = another_team(made)
    made.group.measured = lambda: setattr(made.lead, "stop_reason", lambda: "the lead is lost")
    with pytest.raises(LeadLost, match="the lead is lost"):
        team.run()
    made.close("incomplete")


def test_what_kept_a_row_from_the_disk_is_raised_before_the_lead_hears_of_an_end(tmp_path):
    made = Made(tmp_path)
    made.session.rows = SimpleNamespace(
        **{name: getattr(made.writer, name) for name in ("image_rows", "task_rows", "tick")},
        recent_tasks=made.writer.recent_tasks,
        pending=deque(),
        session=1,
        drain=lambda: EnvironmentFault("disk full"),
    )
    with made.session as session:
        session.make_ready()
        with pytest.raises(EnvironmentFault, match="disk full"):
            session.work(START)
    assert made.group.calls[-1] == "end"
    made.close("incomplete")


def test_of_what_is_left_in_an_open_loop_the_first_image_comes_at_once(tmp_path):
    made = Made(tmp_path, [(20, IMAGES)], rate=0.01)
    arrivals = made.session._arrivals()
    arrivals.start(0)
    arrivals.admit(0, 2)
    assert arrivals.due(0) == 1
    made.close("incomplete")


def test_what_limits_a_run_is_in_its_manifest_and_status_and_an_idle_gpu_is_told_once(
    tmp_path, caplog
):
    made = Made(tmp_path)
    made.group.use = Use(10**10, decoding_ns=9 * 10**9, starved_ns=8 * 10**9, computing_ns=10**9)
    welcome = made.group.welcome
    made.group.welcome = lambda *given: {
        rank: replace(hello, devices=("cuda:0",)) for rank, hello in welcome(*given).items()
    }
    with made.session as session:
        session.make_ready()
        finish = session.work(START)
        session.publish()
        session.publish()
        world = final_facts(session, {"host": "h", "pid": 1})["world"]
    made.close(finish.status)
    assert [member["use"]["starved_ns"] for member in world] == [0, 8 * 10**9, 8 * 10**9]
    assert world[0]["use"]["elapsed_ns"] > world[0]["use"]["computing_ns"] > 0
    assert caplog.text.count("warning: GPU node1 cuda:0 is busy 20 % of the time; some sites") == 1
    status = read_status(tmp_path / "out")
    assert status["limit"].startswith("decoding on the CPU is the limit: the network waits 80 %")
    assert [rank["busy"] for rank in status["ranks"]] == [0.1, 0.1]


def test_a_session_that_the_lead_halts_ends_with_the_reason(tmp_path):
    made = Made(tmp_path)
    with made.session as session:
        session.make_ready()
        session.supply.halted = "stopped by SIGTERM"
        finish = session.work(START)
    assert (finish.status, finish.reason) == ("incomplete", "stopped by SIGTERM")
    made.close(finish.status)
