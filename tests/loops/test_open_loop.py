"""Rank 0 in an open loop: t0 is the intended arrival whatever the disk and the ranks do."""

from __future__ import annotations

import numpy as np
import pytest
from fakes import MS
from test_coordinator import Job

from collage_mpi.bounds.promise import Threshold
from collage_mpi.job.pairs import Heard
from collage_mpi.rows import AUDIT_CODE
from collage_mpi.workload.arrivals import OpenLoop, poisson_times_ns


def open_job(times_ns: np.ndarray, **settings) -> Job:
    job = Job(len(times_ns), **settings)
    job.coordinator._arrivals = OpenLoop(times_ns)
    return job


def t0s(job: Job) -> list[int]:
    return [row.t0_ns for row in sorted(job.writer.images, key=lambda row: row.row)]


@pytest.mark.parametrize("depth", [1, 50])
@pytest.mark.parametrize("every_ns", [0, 30 * MS])
def test_latency_counts_from_the_intended_arrival(depth, every_ns):
    """A slow disk, a narrow window and busy ranks all show in it; nothing is left out."""
    times_ns = poisson_times_ns(400.0, 1, 37)
    job = open_job(times_ns, depth=depth, every_ns=every_ns)
    job.complete()
    assert t0s(job) == times_ns.tolist()
    if every_ns:  # the disk gives an image each 30 ms
        last = max(job.writer.images, key=lambda row: row.row)
        assert last.latency_ns > 37 * 30 * MS - times_ns[-1]
        assert last.read_ns > 0
    assert all(row.read_ns <= row.latency_ns for row in job.writer.images)


def test_the_window_bounds_what_is_held_while_the_queue_grows_in_time():
    times_ns = np.zeros(400, np.int64)  # all at once
    job = open_job(times_ns, depth=3, cluster={"service_ns": lambda rank, task: 5 * MS})
    job.complete()
    assert job.most_held <= 4 * 4  # three groups of four, and one that is ending
    assert t0s(job) == [0] * 400
    latencies = [row.latency_ns for row in sorted(job.writer.images, key=lambda row: row.row)]
    assert latencies[-1] > 20 * latencies[0]


def test_rank_0_wakes_for_the_next_arrival():
    """With nothing else to do it sleeps until then, not by its longest pause too long."""
    times_ns = np.array([0, 400 * MS, 900 * MS], np.int64)
    job = open_job(times_ns, scheme="none")
    job.complete()
    assert all(row.latency_ns < 4 * MS for row in job.writer.images)


def test_at_a_low_load_the_images_that_choose_a_threshold_meet_both_networks():
    """They come one by one, at 0.3 of what the ranks can serve, and wait for their collage."""
    times_ns = poisson_times_ns(0.3 * 4 / 0.004, 1, 120)  # 4 ranks, 4 ms an image
    cluster = {"service_ns": lambda rank, task: 4 * MS}
    layout = {"singles": 3, "placement": "fastest", "together": False, "depth": 50, "credit": 1}
    job = open_job(times_ns, scheme="cascade", calibration=40, cluster=cluster, **layout)
    book, places = job.leased.book, set()

    def hear(pairs):
        places.update(pair.place for pair in pairs)
        if len(places) == 40:
            book.hear(Heard(("collage",), Threshold(0.8999, "collage", 30, 40)))

    book.tell(hear)
    job.complete()
    rows = sorted(job.writer.images, key=lambda row: row.row)
    assert [row.audited for row in rows[:40]] == [AUDIT_CODE["done"]] * 40
    waits_ns = [row.latency_ns for row in rows[:40]]
    assert max(waits_ns) > 8 * MS, "of the two networks"
    assert max(waits_ns) < times_ns[39] / 4, "none waits for the whole calibration"
