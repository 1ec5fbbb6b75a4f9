"""The simulator against times worked out by hand, and against a computation without events."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from paper import paper
from rows_by_name import group_rows
from simulate_to import simulate_to

from collage_mpi.cli import main
from collage_mpi.errors import UsageError
from collage_mpi.results import read_results, verify_run
from collage_mpi.rows import GroupRow, ImageRow, TaskRow
from collage_mpi.settings.run_settings import RunSettings
from collage_mpi.simulation.costs import Costs
from collage_mpi.simulation.simulator import SimulatedJob, Simulation
from collage_mpi.workload.straggler_settings import make_delays

FREE = Costs(receive_ns=0, send_ns=0, encode_ns=0, network_ns=0)
MS = 1_000_000


class Rows:
    """A writer that keeps what it is given."""

    session = 1

    def __init__(self):
        self.images, self.tasks = [], []

    def image_rows(self, rows: np.ndarray) -> None:
        self.images += [ImageRow(*row) for row in rows.tolist()]

    @property
    def groups(self) -> list[GroupRow]:
        return group_rows(self.images)

    def task_rows(self, rows: np.ndarray) -> None:
        self.tasks += [TaskRow(*row) for row in rows.tolist()]


def play(
    groups: int, ratio: float = 1.0, costs: Costs = FREE, dead: tuple[str, ...] = (), **settings
) -> Rows:
    rows = Rows()
    job = paper(warmup_groups=0, cost_ratio=ratio, **settings)
    images = groups * job.group_size
    Simulation(SimulatedJob(job, images, costs, dead_ranks=dead), rows).run()
    return rows


def test_one_slow_rank_by_hand():
    constant = {"straggler": "pinned:100", "slow_ranks": ("2:5",)}
    none = play(4, scheme="none", side=2, **constant)
    assert [g.latency_ns for g in none.groups] == [500 * MS] * 4
    collage = play(4, ratio=1.2, scheme="collage", side=2, **constant)
    assert [g.latency_ns for g in collage.groups] == [120 * MS] * 4
    assert [g.collage_cells for g in collage.groups] == [1] * 4


def test_a_rank_runs_one_message_at_a_time():
    rows = play(1, scheme="none", side=2, singles=1)
    assert [image.latency_ns for image in rows.images] == [5 * MS * n for n in (1, 2, 3, 4)]


def test_rank_0_is_a_serial_server():
    costs = Costs(receive_ns=3, send_ns=10, encode_ns=100, network_ns=7, single_ns=1000)
    (group,) = play(1, costs=costs, scheme="none", side=2).groups
    # the last of four sends leaves at 40, arrives at 47, is done at 1047, back at 1054
    assert group.latency_ns == 4 * 10 + 7 + 1000 + 7


COSTS = Costs(receive_ns=3, send_ns=10, encode_ns=100, network_ns=7, single_ns=1000)


def test_a_collage_on_its_way_by_hand():
    """Four singles leave at 10, 20, 30, 40; the collage, encoded first, at 150."""
    rows = play(1, ratio=1.5, costs=COSTS, scheme="collage", side=2)
    tasks = sorted(rows.tasks, key=lambda task: task.task)
    assert [task.sent_ns for task in tasks] == [10, 20, 30, 40, 150]
    # Back after 7 + 1000 + 7, each on a rank of its own; rank 0 is free when they come.
    assert [task.done_ns for task in tasks[:4]] == [1024, 1034, 1044, 1054]
    assert [image.latency_ns for image in rows.images] == [1024, 1034, 1044, 1054]
    assert {image.encode_ns for image in rows.images} == {100}
    (group,) = rows.groups
    assert (group.latency_ns, group.encode_ns, group.t0_ns) == (1054, 100, 0)
    # The collage, moot at 1054, was begun at 157 and takes 1500: it is answered all the same.
    late = tasks[4]
    assert (late.done_ns, late.compute_ns, late.resolved) == (150 + 7 + 1500 + 7, 1500, 0)
    assert [task.compute_ns for task in tasks[:4]] == [1000] * 4


def test_answers_that_come_together_are_taken_one_after_the_other():
    """With slow receives rank 0 falls behind: the answers come at 1024 + 10 n."""
    slow = Costs(receive_ns=40, send_ns=10, encode_ns=100, network_ns=7, single_ns=1000)
    rows = play(1, costs=slow, scheme="none", side=2)
    # Taken when it is free: 1024, then 1064, 1104, 1144 (the others had come by then).
    assert [image.latency_ns for image in rows.images] == [1024, 1064, 1104, 1144]


def test_the_next_group_is_let_in_when_rank_0_comes_to_it():
    """t0 of the second group is the end of the first and what rank 0 does until then."""
    rows = play(2, costs=COSTS, scheme="none", side=2)
    first, second = rows.groups
    # The last answer is taken at 1054; receiving it takes 3, and then the group is asked for.
    assert (first.latency_ns, second.t0_ns) == (1054, 1057)
    sent = [task.sent_ns for task in rows.tasks if task.group == 1]
    assert sent == [1067, 1077, 1087, 1097]
    assert second.latency_ns == 4 * 10 + 7 + 1000 + 7


def test_a_cancel_costs_a_message_and_reaches_its_rank_after_the_wire():
    """Rank 2 has the second group's image behind the first's: it skips what was cancelled."""
    rows = play(3, ratio=1.0, costs=COSTS, scheme="collage", side=2, straggler="pinned:1",
                slow_ranks=("2:5",))  # fmt: skip
    of_rank = sorted((t for t in rows.tasks if t.rank == 2), key=lambda t: t.task)
    first, second = of_rank[:2]
    # Sent second of four; its draw is 5 ms. The collage leaves at 150 and answers for it.
    assert (first.sent_ns, first.done_ns, first.resolved) == (20, 20 + 7 + 5 * MS + 7, 0)
    (image,) = (row for row in rows.images if (row.group, row.cell) == (0, 1))
    assert (image.rank, image.latency_ns) == (5, 150 + 7 + MS + 7)
    # The next group begins when that answer is taken (3) and the cancel for rank 2 has left (10).
    assert rows.groups[1].t0_ns == image.latency_ns + 3 + 10
    assert (second.outcome, second.compute_ns) == (1, 0)  # skipped, at once when the first was done
    assert second.done_ns == first.done_ns + 3, "both come at once, and are taken in turn"


@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.5])
@pytest.mark.parametrize("side", [2, 3])
def test_drain_equals_the_formula(side, ratio):
    """All ranks idle at each release: a group takes max over cells of min(single, collage)."""
    settings = {"side": side, "between": "drain", "straggler": "lognormal:100:0.8"}
    n = side * side
    draw = make_delays(paper(**settings)).draw_ns
    singles = np.array([[draw(r, g, 1) for r in range(1, n + 1)] for g in range(50)])  # (g, n)
    collage = np.array([[round(draw(n + 1, g, 1) * ratio)] for g in range(50)])  # (g, 1)
    found = [g.latency_ns for g in play(50, ratio, scheme="collage", **settings).groups]
    assert found == np.minimum(singles, collage).max(axis=1).tolist()
    found = [g.latency_ns for g in play(50, scheme="none", **settings).groups]
    assert found == singles.max(axis=1).tolist()


@pytest.mark.parametrize("ratio", [1.0, 1.5])
def test_on_the_fastest_rank_the_collage_bounds_every_group(ratio):
    """Rank 1 is twice as fast, rank 3 slow: a group takes as long as rank 1's collage."""
    constant = {"straggler": "pinned:100"}
    slow = {"slow_ranks": ("1:0.5", "3:9"), "placement": "fastest", "side": 2}
    groups = play(20, ratio=ratio, **constant, **slow).groups
    assert [g.latency_ns for g in groups[10:]] == [50 * ratio * MS] * 10


def test_a_slow_rank_leaves_to_quicker_ranks_what_they_would_end_sooner():
    """Four ranks, 20 images a second: the three quick ranks end every image in 100 ms."""
    constant = {"straggler": "pinned:100", "slow_ranks": ("2:9",)}
    rows = play(50, scheme="none", assign="pull", side=2, rate=20.0, **constant)
    late = [image for image in rows.images if image.latency_ns > 400 * MS]
    assert {image.rank for image in late} <= {2}
    assert len(late) < 9, "only until its service time is known"


def test_a_slow_rank_takes_a_part_of_a_batch():
    """It is four times slower, so of a batch of eight it takes two: all ranks need 800 ms."""
    constant = {"straggler": "pinned:100", "slow_ranks": ("2:4",)}
    rows = play(160, scheme="none", assign="pull", depth=None, batch=8, side=2, **constant)
    sizes = [task.items for task in rows.tasks if task.rank == 2]
    assert sizes[0] == 8
    assert set(sizes[2:-2]) == {2}


@pytest.mark.parametrize("cost", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("batch", [2, 4])
def test_a_drained_batch_equals_the_formula(batch, cost):
    """A rank takes its largest draw of the batch, times 1 + (B - 1) cost."""
    settings = {"side": 2, "between": "drain", "straggler": "lognormal:100:0.8"}
    draw = make_delays(paper(**settings)).draw_ns
    factor = 1 + (batch - 1) * cost

    def service(rank: int, first: int, ratio: float) -> int:
        slowest_ns = max(draw(rank, g, 1) for g in range(first, first + batch))
        return round(slowest_ns * (ratio * factor))

    expected = []
    for first in range(0, 40, batch):
        collage_ns = service(5, first, 1.2)
        singles_ns = [service(rank, first, 1.0) for rank in range(1, 5)]
        expected += [max(min(ns, collage_ns) for ns in singles_ns)] * batch
    rows = play(40, 1.2, scheme="collage", batch=batch, batch_cost=cost, **settings)
    assert [g.latency_ns for g in rows.groups] == expected
    assert {g.t0_ns for g in rows.groups[:batch]} == {0}


def test_a_batch_amortises_messages():
    """Rank 0 sends a message for the four groups, and takes one answer for them."""
    costs = Costs(receive_ns=3, send_ns=10, encode_ns=100, network_ns=7, single_ns=1000)
    settings = {"scheme": "none", "side": 2, "batch": 4, "batch_cost": 0.5}
    groups = play(4, costs=costs, **settings).groups
    # The last of four sends leaves at 40 and takes 2.5 x 1000.
    assert [g.latency_ns for g in groups] == [40 + 7 + 2500 + 7] * 4


@pytest.mark.parametrize(
    "scheme", ["none", "replicate", "hedge", "collage", "collage-only", "cascade"]
)
@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"depth": 2},
        {"between": "drain"},
        {"singles": 7},
        {"rate": 300.0},
        {"dead": ("1:9",), "reply_timeout_s": 2.0},
    ],
    ids=str,
)
def test_every_scheme_answers_every_image_in_batches(scheme, shape):
    more = {"deadline_ms": 150.0} if scheme == "hedge" else {}
    if scheme == "collage-only":
        shape = {key: value for key, value in shape.items() if key not in ("singles", "dead")}
    dead = shape.get("dead", ())
    shape = {key: value for key, value in shape.items() if key != "dead"}
    job = RunSettings(
        scheme=scheme, side=2, batch=3, straggler="lognormal", batch_cost=0.2, **more, **shape
    )
    rows = Rows()
    images = 4 * 25 + 3
    finish = Simulation(SimulatedJob(job, images, FREE, dead_ranks=dead), rows).run()
    assert finish.status == "complete"
    assert sorted(row.row for row in rows.images) == list(range(images))


def test_an_open_loop_waits_for_no_batch():
    """Images that come alone leave alone; what waits for a busy rank leaves together."""
    calm = play(20, scheme="none", side=2, singles=4, batch=4, rate=1.0)
    assert max(row.latency_ns for row in calm.images) < 7 * MS  # the single network takes 5
    busy = play(200, scheme="none", side=2, singles=4, batch=4, rate=3000.0)
    assert Counter(task.items for task in busy.tasks)[4] > 100


def test_two_collage_ranks_are_as_good_as_the_faster():
    settings = {"between": "drain", "straggler": "lognormal:100:0.8"}
    draw = make_delays(paper(**settings)).draw_ns
    draws = np.array([[draw(r, g, 1) for r in range(1, 12)] for g in range(50)])  # (g, 11)
    best = draws[:, 9:].min(axis=1, keepdims=True)
    found = [g.latency_ns for g in play(50, collage_ranks=2, **settings).groups]
    assert found == np.minimum(draws[:, :9], best).max(axis=1).tolist()


def test_replication_equals_the_formula():
    settings = {"between": "drain", "straggler": "lognormal:100:0.8"}
    draw = make_delays(paper(**settings)).draw_ns
    draws = np.array([[draw(r, g, 1) for r in range(1, 19)] for g in range(50)])  # (g, 2N)
    found = [g.latency_ns for g in play(50, scheme="replicate", **settings).groups]
    assert found == np.minimum(draws[:, :9], draws[:, 9:]).max(axis=1).tolist()


@pytest.mark.parametrize(
    ("scheme", "spare"), [("none", 0), ("replicate", 9), ("collage", 1), ("collage", 2)]
)
def test_carry_equals_a_computation_without_events(scheme, spare):
    """A busy rank stays busy, a stale task is skipped: group by group, with numpy alone."""
    settings = {"straggler": "lognormal:100:0.8", "slow_ranks": ("4:5",)}
    draw = make_delays(paper(**settings)).draw_ns
    free_ns = np.zeros(9 + spare, np.int64)  # when a rank has done what it began
    now_ns, expected = 0, []
    for group in range(80):
        begin = np.maximum(free_ns, now_ns)
        ends = begin + [draw(rank, group, 1) for rank in range(1, 10 + spare)]
        single, other = ends[:9], ends[9:]
        if scheme == "collage":
            resolved = np.minimum(single, other.min())  # (9,)
            wanted = np.append(resolved, [resolved.max()] * spare)
        else:
            resolved = np.minimum(single, other) if spare else single
            wanted = np.tile(resolved, 1 + spare // 9)
        free_ns = np.where(begin < wanted, ends, free_ns)  # else skipped: nobody waits for it
        expected.append(resolved.max() - now_ns)
        now_ns = resolved.max()
    ranks = {"collage_ranks": spare} if scheme == "collage" else {}
    found = play(80, scheme=scheme, **ranks, **settings).groups
    assert [group.latency_ns for group in found] == expected


def test_hedging_bounds_what_a_slow_rank_can_cost():
    """Late after 150 ms, then a constant 100 ms on an idle rank: never more than 250 ms."""
    constant = {"straggler": "pinned:100", "slow_ranks": ("2:9",)}
    hedged = {"scheme": "hedge", "deadline_ms": 150.0}
    found = play(20, singles=10, between="drain", **hedged, **constant).groups
    assert max(g.latency_ns for g in found) == 250 * MS


def test_a_slow_rank_skips_to_the_current_group():
    """In carry a 5x slower rank starts no task of a group that is over."""
    rows = play(40, straggler="pinned", slow_ranks=("4:5",), scheme="collage")
    slow = [task for task in rows.tasks if task.rank == 4]
    ends = {g.group: g.t0_ns + g.latency_ns for g in rows.groups}
    worked = [task for task in slow if task.compute_ns]
    assert any(task.outcome == 1 for task in slow)  # skipped
    assert all(task.done_ns - task.compute_ns <= ends[task.group] for task in worked)


def test_the_rows_are_those_of_a_run(tmp_path):
    settings = RunSettings(
        straggler="lognormal",
        depth=2,
        collage_ranks=2,
        confidence=1.0,
        deadline_ms=90,
    )
    status, out = simulate_to(settings, tmp_path / "run", 100)
    assert status == "complete"
    report = verify_run(out)
    assert report.ok, report.problems
    assert "simulated" in read_results(out).mode


def test_the_same_seed_gives_the_same_rows():
    settings = {"straggler": "lognormal", "depth": 3, "straggler_seed": 5}
    assert play(20, **settings).images == play(20, **settings).images


def test_the_command(tmp_path, capsys):
    out = str(tmp_path / "run")
    flags = ["--straggler", "pinned", "--slow-ranks", "4:5", "--cost-ratio", "1.4"]
    assert main(["simulate", "--images", "900", "--out", out, *flags]) == 0
    assert "simulated" in capsys.readouterr().out
    assert main(["simulate", "--images", "900", "--out", out]) == 3
    assert main(["simulate", "--images", "0", "--out", out + "2"]) == 2
    sure = ["--confidence", "0.9", "--deadline-ms", "200"]
    assert main(["simulate", "--images", "9", "--out", out + "2", *sure]) == 2


def test_a_dead_rank_is_answered_for_by_the_collage():
    dead = {"straggler": "pinned", "dead": ("2:3",), "side": 2, "scheme": "collage"}
    rows = play(40, **dead)
    assert len(rows.images) == 160
    assert sum(row.rank == 2 for row in rows.images) == 3
    assert {task.outcome for task in rows.tasks if task.rank == 2} == {0, 4}  # 4: unfinished
    in_time = play(40, **{**dead, "dead": ("2:0.25s",)})
    assert sum(row.rank == 2 for row in in_time.images) == 2


def test_a_dead_rank_without_redundancy_is_found_by_its_silence():
    """Silent after two seconds: its image goes elsewhere; lost after four: nobody waits."""
    dead = {"straggler": "pinned", "dead": ("2:3",), "side": 2, "scheme": "none"}
    rows = play(40, reply_timeout_s=2.0, **dead)
    assert len(rows.images) == 160
    assert all(row.answered for row in rows.images)
    slow = [g.latency_ns for g in rows.groups if g.latency_ns > 1000 * MS]
    assert len(slow) == 1
    assert 2000 * MS < slow[0] < 2600 * MS
    assert {task.outcome for task in rows.tasks if task.rank == 2} == {0, 3}  # 3: lost


def test_where_no_rank_may_be_lost_a_silent_one_is_only_left_out():
    dead = {"straggler": "pinned", "dead": ("2:3",), "side": 2, "scheme": "none"}
    rows = play(40, reply_timeout_s=2.0, on_rank_loss="abort", **dead)
    assert len(rows.images) == 160
    assert {task.outcome for task in rows.tasks if task.rank == 2} == {0, 4}  # 4: unfinished


def test_what_cannot_be_simulated_is_refused(tmp_path):
    with pytest.raises(UsageError, match="teams is 3; a simulation needs 1"):
        simulate_to(RunSettings(teams=3), tmp_path / "x", 9)
