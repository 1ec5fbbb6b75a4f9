"""A coordinator's whole session without MPI: its ranks answer at once, and its rows are kept."""

from __future__ import annotations

from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from job_messages import HELLO

from collage_mpi.errors import EnvironmentFault
from collage_mpi.faults.failure_detector import FailureDetector
from collage_mpi.job.messages import Start
from collage_mpi.job.plan import make_plan
from collage_mpi.job.provenance import final_facts, fixed_facts
from collage_mpi.job.session import NAMED_BATCH, SENT_BATCH, Audience, TeamSession
from collage_mpi.job.shared import Share
from collage_mpi.ledger.jobs import register
from collage_mpi.ledger.owner import Owner, join
from collage_mpi.ledger.records import Run
from collage_mpi.mpi.answers import ANSWERED, Score, WireResult, pack_results
from collage_mpi.mpi.protocol import CANCEL, read_header
from collage_mpi.mpi.tasks import unpack_tasks
from collage_mpi.mpi.transport import Received
from collage_mpi.results import read_results
from collage_mpi.results.jobs import entry
from collage_mpi.results.lease_files import LeaseFiles
from collage_mpi.results.row_sink import RowSink
from collage_mpi.results.status import StatusFiles, read_status
from collage_mpi.results.writer import open_folder
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.shards import write_shard
from collage_mpi.system.bottleneck import Use
from collage_mpi.system.progress import NoLines

SESSION, IMAGES = 3, 22
START = Start({"collage": 1.0}, {}, 1, 1 << 12, 8)


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
        self.use = Use()

    def expect(self, nbytes) -> None:
        self.expected = nbytes

    def welcome(self, *told):
        self.calls.append("welcome")
        said = replace(HELLO, classes={}, cannot_read="")
        return dict.fromkeys(self.ranks, said)

    def start(self, told) -> None:
        self.told = told
        self.calls.append("start")

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
    """A job alone on a run of 22 images, and its session."""

    def __init__(self, folder, lacking=IMAGES, **settings) -> None:
        write_shard(folder / "a.h5", np.zeros((IMAGES, 6, 6, 1), np.uint8), np.arange(IMAGES) % 10)
        common = {"scheme": "none", "single": "null", "singles": 2, "side": 2, "out": "out"}
        asked = RunSettings(shards=(str(folder / "a.h5"),), **{**common, **settings})
        self.out, name = folder / "out", "a" * 32
        self.plan = make_plan(replace(asked, out=str(self.out)), 3, launched=False)
        store = open_folder(self.out, shared=False)
        fixed, whole = entry(fixed_facts(self.plan)), asked.open_loop
        run = join(store, Run(1, 0, IMAGES, IMAGES, by=name, whole=whole, settings=fixed))
        told = {"session": register(store, name, {}), "owner": name, "run_id": fixed["run_id"]}
        owner = Owner(store, run, 4, name=name, files=LeaseFiles(self.out, run))
        self.share = Share(owner, 4, 1e6)
        self.rows = RowSink(self.out, fixed, 1, self.share.wrote)
        self.files = StatusFiles(
            self.out, {**told, "label": "l", "total": lacking, "before": 0}, 5.0
        )
        self.group = Ranks()
        audience = Audience(self.files, lacking, lines=NoLines())
        self.reason: str | None = None
        self.session = TeamSession(self.plan, self.group, 1, audience, lambda: self.reason)

    def work(self, start=START):
        """The whole session."""
        self.session.make_ready()
        return self.session.work(start, self.share, self.rows)

    def close(self, status: str) -> None:
        self.share.leave()
        self.files.end(status)
        self.plan.shards.close()


@pytest.mark.parametrize(
    ("settings", "read_by"),
    [
        ({"pixels": "rank0"}, [0]),
        ({"depth": 1}, [0]),
        ({}, [1, 2]),
        ({"pixels": "workers", "depth": 1}, [1, 2]),
        ({"rate": 1e6, "pixels": "rank0"}, [0]),
    ],
    ids=["rank 0 reads", "a group at a time", "workers can", "workers must", "open loop"],
)
def test_a_session_alone_writes_a_row_an_image_in_order(tmp_path, settings, read_by):
    made = Made(tmp_path, **settings)
    with made.session as session:
        assert session.make_ready() == HELLO.fingerprints
        finish = session.work(START, made.share, made.rows)
    assert (finish.status, made.group.calls) == ("complete", ["welcome", "start", "end"])
    assert made.group.expected == 8
    assert session.facts()["read_by"] == read_by
    # Many at a time only of images whose pixels this rank does not hold.
    assert session.reader._batch == (SENT_BATCH if 0 in read_by else NAMED_BATCH)
    made.close(finish.status)
    rows = np.sort(read_results(tmp_path / "out").images, order="row")
    assert rows["row"].tolist() == list(range(IMAGES))
    assert rows["group"].tolist() == [row // 4 for row in range(IMAGES)]


@pytest.mark.parametrize("asked", [None, 2])
def test_the_batch_that_was_chosen_is_that_of_the_session(tmp_path, asked):
    made, size = Made(tmp_path, batch=asked), asked or 4
    start = replace(START, batch=size)
    with made.session as session:
        finish = made.work(start)
        assert made.group.calls == ["welcome", "start", "end"]
        assert (made.group.told, max(made.group.sizes)) == (start, size)
        assert final_facts(session, {"host": "h", "pid": 1})["batch"] == size
    made.close(finish.status)
    rows = np.sort(read_results(tmp_path / "out").images, order="row")
    assert rows["warmup"].sum() == 4 * size


def test_what_kept_a_row_from_the_disk_ends_the_job(tmp_path):
    made = Made(tmp_path)
    drain, full = made.rows.drain, EnvironmentFault("disk full")
    made.rows.drain = lambda: drain() or full
    with made.session, pytest.raises(EnvironmentFault, match="disk full"):
        made.work()
    assert made.group.calls[-1] == "end"
    made.close("incomplete")


def test_of_what_is_left_in_an_open_loop_the_first_image_comes_at_once(tmp_path):
    made = Made(tmp_path, 2, rate=0.01)
    arrivals = made.session._arrivals()
    arrivals.start(0)
    arrivals.admit(0, 2)
    assert arrivals.due(0) == 1
    made.close("incomplete")


def test_what_limits_a_job_is_in_its_entry_and_status_and_an_idle_gpu_is_told_once(
    tmp_path, caplog
):
    made = Made(tmp_path)
    made.group.use = Use(10**10, decoding_ns=9 * 10**9, starved_ns=8 * 10**9, computing_ns=10**9)
    welcome = made.group.welcome
    made.group.welcome = lambda *given: {
        rank: replace(hello, devices=("cuda:0",)) for rank, hello in welcome(*given).items()
    }
    with made.session as session:
        finish = made.work()
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


def test_a_session_that_is_stopped_ends_with_the_reason(tmp_path):
    made = Made(tmp_path)
    with made.session:
        made.session.make_ready()
        made.reason = "stopped by SIGTERM"
        finish = made.session.work(START, made.share, made.rows)
    assert (finish.status, finish.reason) == ("incomplete", "stopped by SIGTERM")
    made.close(finish.status)
